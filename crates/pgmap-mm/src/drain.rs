//! Draining: taking frames out of use, in batches, and knowing when nobody holds them any more.
//!
//! # States
//!
//! ```text
//!   in use ── life words changed ──▶ scanned ──▶ idle (free them)
//!                                       │
//!                                       └─▶ held ── holds seen to end ──▶ idle
//! ```
//!
//! # Who may touch what
//!
//! The owner alone drains. It changes descriptors and reads ledgers; it never writes a ledger.
//!
//! # Orderings
//!
//! `store life words (Release); heavy barrier; scan`. The heavy barrier pairs with every client's
//! light one; see [`pin`](crate::pin) for the two races. One barrier serves the whole batch.
//!
//! # Why the first scan is enough
//!
//! After the heavy barrier, a pin that the scan did not see was published after the life word
//! changed, so its own check fails and it is undone. So the holds that the first scan found are all
//! that can matter: a drain waits for exactly those and ignores later ones, and a client that
//! keeps trying in vain cannot starve it.
//!
//! The scan may be made in steps: see [`Scan`]. Many holds need not be looked at in one go: holds
//! that the scan found only end, so a drain may be cut in parts, and its holds looked at a few at a
//! time, in any order.
//!
//! A client that the heavy barrier did not reach may hold what the scan did not see. It counts as
//! holding all of the drain until it is gone.
//!
//! # Differs from Linux
//!
//! `dax_break_layout` waits for one page's count after another, without a limit and without a name
//! (Linux 7.1: fs/dax.c). Here one pass names every holder of the batch.

mod scan;

use std::collections::BTreeMap;

pub use self::scan::Scan;
use crate::barrier::HeavyBarrier;
use crate::ledger::{Hold, LedgerReader};
use crate::pfn::{Pfn, PfnRange};
use crate::runs::SortedRuns;
use crate::words::{ReadCounts, ReadWords};

/// Most ranges in which one client is asked for the frames of one drain.
pub const MAX_ASKS: usize = 64;

/// Which of the owner's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// A hold and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The client.
    pub client: ClientId,
    /// What it holds.
    pub hold: Hold,
}

impl Held {
    /// What a client may hold that the barrier did not reach: all of it.
    fn unseen(client: ClientId, runs: &SortedRuns) -> impl Iterator<Item = Self> {
        runs.iter().map(move |run| Self { client, hold: Hold::unseen(run) })
    }
}

/// Frames being taken out of use and the holds that are still in the way.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    runs: SortedRuns,
    /// By first frame.
    held: Vec<Held>,
    /// Frames of the longest of them, or more.
    longest_pages: u64,
    /// Holds looked at in the round that is under way.
    nr_looked: usize,
    /// Which of these have ended.
    ended: Vec<usize>,
}

impl Drain {
    /// Starts a drain of `runs`, whose life words the caller has changed already: one heavy
    /// barrier, one scan of every ledger. In one go, for small programs; the owner scans in steps,
    /// by [`Scan`].
    #[must_use]
    pub fn start<'l, W, C>(
        runs: SortedRuns,
        barrier: &impl HeavyBarrier,
        ledgers: impl IntoIterator<Item = (ClientId, &'l LedgerReader<W, C>)>,
    ) -> Self
    where
        W: ReadWords + 'l,
        C: ReadCounts + 'l,
    {
        let reached = barrier.heavy();
        let mut held = Vec::new();
        for (client, ledger) in ledgers {
            if !ledger.is_reached(reached) {
                held.extend(Held::unseen(client, &runs));
            }
            ledger.for_each_hold(&runs, |hold| held.push(Held { client, hold }));
        }
        Self::of(runs, held)
    }

    fn of(runs: SortedRuns, mut held: Vec<Held>) -> Self {
        held.sort_by_key(|held| held.hold.run);
        Self::in_order(runs, held)
    }

    fn in_order(runs: SortedRuns, held: Vec<Held>) -> Self {
        let longest_pages = held.iter().map(|held| held.hold.run.nr_pages()).max().unwrap_or(0);
        Self { runs, held, longest_pages, nr_looked: 0, ended: Vec::new() }
    }

    /// Adds holds that no ledger says: those of a client whose ledger cannot be read.
    pub fn add(&mut self, held: impl IntoIterator<Item = Held>) {
        let mut held = held.into_iter().peekable();
        if held.peek().is_none() {
            return;
        }
        let (runs, mut all) = (core::mem::take(&mut self.runs), core::mem::take(&mut self.held));
        all.extend(held);
        *self = Self::of(runs, all);
    }

    /// The frames.
    #[must_use]
    pub const fn runs(&self) -> &SortedRuns {
        &self.runs
    }

    /// The holds in the way, as last seen, by first frame.
    #[must_use]
    pub fn held(&self) -> &[Held] {
        &self.held
    }

    /// The frames of this drain that each client holds: at most `most` ranges for each client, so
    /// that who holds much gets few events. Where a client's holds are in more pieces, ranges also
    /// cover frames between them, to whose holds an unneeded request does no harm.
    #[must_use]
    pub fn asks(&self, most: usize) -> BTreeMap<ClientId, Vec<PfnRange>> {
        let mut asks: BTreeMap<ClientId, Vec<PfnRange>> = BTreeMap::new();
        for Held { client, hold } in &self.held {
            asks.entry(*client).or_default().push(hold.run);
        }
        for ranges in asks.values_mut() {
            *ranges = self.runs.intersections(&SortedRuns::new(std::mem::take(ranges)));
            let nr_joined = ranges.len().div_ceil(most.max(1)).max(1);
            let around = |group: &[PfnRange]| match group {
                [first, .., last] => PfnRange::new(first.start(), last.end() - first.start()),
                _ => None,
            };
            *ranges = ranges
                .chunks(nr_joined)
                .flat_map(|group| around(group).map_or_else(|| group.to_vec(), |one| vec![one]))
                .collect();
        }
        asks
    }

    /// The part of this drain that concerns `runs`, which lie inside its own: so that one barrier
    /// and one scan serve a batch whose members then wait each for its own holders.
    #[must_use]
    pub fn part(&self, runs: SortedRuns) -> Self {
        let start_of = |held: &Held| held.hold.run.start();
        let start = runs.iter().next().map_or(0, PfnRange::start);
        let end = runs.iter().last().map_or(0, PfnRange::end);
        let from = self.held.partition_point(|held| start_of(held) + self.longest_pages <= start);
        let to = self.held.partition_point(|held| start_of(held) < end);
        let concerned = self.held[from..to.max(from)].iter().copied();
        let held = concerned.filter(|held| runs.overlaps(held.hold.run)).collect();
        Self { held, longest_pages: self.longest_pages, ..Self::of(runs, Vec::new()) }
    }

    /// This drain in parts of about `most` holds, each of which then waits on its own. `start_of`
    /// says where the folio of a frame starts; holds of the same folio, and those that overlap,
    /// stay together.
    #[must_use]
    pub fn in_parts(self, most: usize, start_of: impl Fn(Pfn) -> u64) -> Vec<Self> {
        if self.held.len() <= most {
            return vec![self];
        }
        let (mut cuts, mut reach, mut first) = (Vec::new(), 0, 0);
        for (place, held) in self.held.iter().enumerate() {
            let run = held.hold.run;
            if place - first >= most && run.start() >= reach {
                let cut = start_of(run.first());
                if cut >= reach {
                    cuts.push((place, cut));
                    first = place;
                }
            }
            reach = reach.max(run.end());
        }
        if cuts.is_empty() {
            return vec![self];
        }
        cuts.push((self.held.len(), u64::MAX));
        let (mut held, mut runs) = (self.held.as_slice(), self.runs.iter());
        let (mut rest, mut first) = (runs.next(), 0);
        let part = |(place, cut): (usize, u64)| {
            let mut below = Vec::new();
            while let Some(run) = rest.filter(|run| run.start() < cut) {
                let nr_below = run.nr_pages().min(cut - run.start());
                below.extend(run.sub_run(0, nr_below));
                rest = run.sub_run(nr_below, run.nr_pages() - nr_below).or_else(|| runs.next());
            }
            let (of_it, after) = held.split_at(place - first);
            (held, first) = (after, place);
            Self::of(SortedRuns::new(below), of_it.to_vec())
        };
        cuts.into_iter().map(part).collect()
    }

    /// The same drain, with only the frames of `waiting` left to wait for.
    #[must_use]
    pub fn narrowed_to(self, waiting: SortedRuns) -> Self {
        Self { runs: waiting, ..self }
    }

    /// Whether nobody holds any of the frames: they may be freed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// Looks again at the holds in the way. `ledger_of` gives a client's ledger, or `None` if the
    /// client is dead: then its holds are gone.
    pub fn look_again<'l, W, C>(
        &mut self,
        ledger_of: impl Fn(ClientId) -> Option<&'l LedgerReader<W, C>>,
    ) where
        W: ReadWords + 'l,
        C: ReadCounts + 'l,
    {
        (self.nr_looked, self.ended) = (0, Vec::new());
        let _whole = self.look_on(usize::MAX, ledger_of);
    }

    /// As [`look_again`](Self::look_again), at `most` of them, from where the last look ended.
    /// Holds that ended count as in the way until the round is finished: then it returns how many
    /// those are.
    pub fn look_on<'l, W, C>(
        &mut self,
        most: usize,
        ledger_of: impl Fn(ClientId) -> Option<&'l LedgerReader<W, C>>,
    ) -> Option<usize>
    where
        W: ReadWords + 'l,
        C: ReadCounts + 'l,
    {
        let still_holds = |held: &Held| {
            let ledger = ledger_of(held.client);
            ledger.is_some_and(|ledger| ledger.still_holds(&held.hold, &self.runs))
        };
        let left = self.held.iter().enumerate().skip(self.nr_looked).take(most);
        let ended = left.filter(|(_, held)| !still_holds(held)).map(|(place, _)| place);
        self.ended.extend(ended);
        self.nr_looked = self.nr_looked.saturating_add(most);
        if self.is_in_round() {
            return None;
        }
        self.nr_looked = 0;
        let mut ended = std::mem::take(&mut self.ended).into_iter().peekable();
        let nr_ended = ended.len();
        if nr_ended > 0 {
            let mut place = 0;
            self.held.retain(|_| {
                place += 1;
                ended.next_if_eq(&(place - 1)).is_none()
            });
        }
        Some(nr_ended)
    }

    /// Whether some of the holds in the way were looked at, and others not yet.
    #[must_use]
    pub fn is_in_round(&self) -> bool {
        0 < self.nr_looked && self.nr_looked < self.held.len()
    }
}

/// Who holds any of `runs` now. Without a barrier before it this is a report, not a proof.
#[must_use]
pub fn scan<'l, W, C>(
    runs: &SortedRuns,
    ledgers: impl IntoIterator<Item = (ClientId, &'l LedgerReader<W, C>)>,
) -> Vec<Held>
where
    W: ReadWords + 'l,
    C: ReadCounts + 'l,
{
    let mut held = Vec::new();
    for (client, ledger) in ledgers {
        ledger.for_each_hold(runs, |hold| held.push(Held { client, hold }));
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Agent, HoldPlace};

    fn run(first: u64, nr_pages: u64) -> PfnRange {
        PfnRange::new(first, nr_pages).unwrap()
    }

    /// A drain of `runs` in whose way these holds of these clients are.
    fn drain(runs: Vec<PfnRange>, holds: &[(u64, PfnRange)]) -> Drain {
        let hold = |(number, &(client, run)): (usize, &(u64, PfnRange))| {
            let place = HoldPlace::Slot(number);
            let hold = Hold { place, run, agent: Agent::Cpu, nr_pins: 1, tag: 0 };
            Held { client: ClientId(client), hold }
        };
        Drain::of(SortedRuns::new(runs), holds.iter().enumerate().map(hold).collect())
    }

    #[test]
    fn a_part_has_all_holds_that_reach_into_it_and_no_others() {
        let holds =
            [(1, run(90, 5)), (1, run(0, 30)), (2, run(28, 1)), (1, run(29, 2)), (2, run(50, 9))];
        let whole = drain(vec![run(0, 32), run(50, 50)], &holds);
        let first_frames = |part: Vec<PfnRange>| {
            let part = whole.part(SortedRuns::new(part));
            part.held().iter().map(|held| held.hold.run.start()).collect::<Vec<u64>>()
        };
        assert_eq!(first_frames(vec![run(0, 32)]), [0, 28, 29]);
        assert_eq!(first_frames(vec![run(29, 1)]), [0, 29]);
        assert_eq!(first_frames(vec![run(30, 1)]), [29]);
        assert_eq!(first_frames(vec![run(31, 1), run(58, 30)]), [50]);
        assert_eq!(first_frames(vec![run(59, 31)]), [0; 0]);
        assert_eq!(first_frames(vec![run(59, 32)]), [90]);
    }

    #[test]
    fn parts_have_each_hold_once_and_no_folio_or_hold_lies_in_two() {
        let mut holds: Vec<(u64, PfnRange)> = (0..100).map(|n| (1, run(10 + 3 * n, 1))).collect();
        holds.extend([(2, run(100, 64)), (2, run(230, 1)), (3, run(5, 8))]);
        let runs = vec![run(8, 120), run(136, 100), run(240, 100)];
        let frames = SortedRuns::new(runs.clone());
        holds.retain(|&(_, run)| frames.overlaps(run));
        let whole = drain(runs, &holds);
        let parts = whole.clone().in_parts(10, |pfn| pfn.number() / 8 * 8);
        assert!(parts.len() > 5, "{} parts", parts.len());
        let held: Vec<Held> = parts.iter().flat_map(|part| part.held().to_vec()).collect();
        assert_eq!(held, whole.held());
        let frames: SortedRuns = parts.iter().flat_map(|part| part.runs().iter()).collect();
        assert_eq!(frames, *whole.runs());
        let mut before = 0;
        for part in &parts {
            let start = part.runs().iter().next().unwrap().start();
            assert!(start >= before && start % 8 == 0, "a folio lies in two");
            before = part.runs().iter().last().unwrap().end();
            let others = parts.iter().filter(|other| !std::ptr::eq(*other, part));
            for held in part.held() {
                assert!(part.runs().overlaps(held.hold.run));
                assert!(others.clone().all(|other| !other.runs().overlaps(held.hold.run)));
            }
        }
        assert_eq!(whole.clone().in_parts(103, |pfn| pfn.number()).len(), 1);
        let all_overlap: Vec<_> = (0..100).map(|n| (1, run(n, 100))).collect();
        let parts = drain(vec![run(0, 200)], &all_overlap).in_parts(10, |pfn| pfn.number());
        assert_eq!(parts.len(), 1);
    }

    #[test]
    fn each_client_is_asked_for_what_it_holds_in_a_few_ranges() {
        let mut holds = vec![(7, run(0, 300)), (8, run(5, 1)), (8, run(5, 1)), (8, run(6, 1))];
        holds.extend((0..1000).map(|n| (9, run(1000 + 3 * n, 1))));
        let asks = drain(vec![run(2, 100), run(200, 5), run(1000, 3000)], &holds).asks(MAX_ASKS);
        assert_eq!(asks[&ClientId(7)], [run(2, 100), run(200, 5)]);
        assert_eq!(asks[&ClientId(8)], [run(5, 2)]);
        let many = &asks[&ClientId(9)];
        assert!(many.len() <= MAX_ASKS && many.len() > MAX_ASKS / 2, "{} ranges", many.len());
        let is_asked = |pfn: u64| many.iter().any(|range| range.overlaps(run(pfn, 1)));
        assert!((0..1000).all(|n| is_asked(1000 + 3 * n)));
        assert!(many.iter().all(|range| range.start() >= 1000 && range.end() <= 3998));
    }
}
