//! The scan of a drain, in steps.
//!
//! # Lost races
//!
//! *A step against a pin.* If the pin was published before the heavy barrier, which comes before
//! every step, its ledger says so whenever it is read, until it ends. If it was published after the
//! barrier, its own check finds the life word changed, and it is undone: a step that sees it
//! reports a hold that soon ends.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{ClientId, Drain, Held};
use crate::barrier::HeavyBarrier;
use crate::ledger::{LedgerReader, ScanPlace};
use crate::pfn::PfnRange;
use crate::runs::SortedRuns;
use crate::words::{ReadCounts, ReadWords};

/// The scan of a drain, in steps: a client may have millions of slots.
#[derive(Debug)]
pub struct Scan {
    runs: SortedRuns,
    /// The first client whose ledger is not read to its end, how far it is, and the last client.
    next: ClientId,
    place: ScanPlace,
    last: Option<ClientId>,
    /// What each step found, by first frame.
    found: Vec<Vec<Held>>,
    /// The next hold of each of these, and which it is of.
    heads: BinaryHeap<Reverse<(PfnRange, usize)>>,
    /// How many of each are in `merged`.
    nr_merged: Vec<usize>,
    /// The first ones of all, in order.
    merged: Vec<Held>,
}

impl Scan {
    /// Starts a scan for a drain of `runs`, whose life words the caller has changed already, with
    /// one heavy barrier.
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
        let (mut unseen, mut last) = (Vec::new(), None);
        for (client, ledger) in ledgers {
            last = Some(client);
            if !ledger.is_reached(reached) {
                unseen.extend(Held::unseen(client, &runs));
            }
        }
        let mut scan = Self {
            runs,
            next: ClientId(0),
            place: ScanPlace::default(),
            last,
            found: Vec::new(),
            heads: BinaryHeap::new(),
            nr_merged: Vec::new(),
            merged: Vec::new(),
        };
        scan.add(unseen);
        scan
    }

    /// The frames.
    #[must_use]
    pub const fn runs(&self) -> &SortedRuns {
        &self.runs
    }

    /// The first client whose ledger the next step reads.
    #[must_use]
    pub const fn next_client(&self) -> ClientId {
        self.next
    }

    /// Makes a step of about `most` words or holds. `ledgers` are those of the clients that live,
    /// from [`next_client`](Self::next_client) on, in rising order; of clients that are newer than
    /// the scan nothing is read. True once all was read and put in order.
    pub fn look_on<'l, W, C>(
        &mut self,
        most: usize,
        ledgers: impl IntoIterator<Item = (ClientId, &'l LedgerReader<W, C>)>,
    ) -> bool
    where
        W: ReadWords + 'l,
        C: ReadCounts + 'l,
    {
        let (mut left, mut held, last) = (most, Vec::new(), self.last);
        for (client, ledger) in ledgers {
            if last.is_none_or(|last| last < client) {
                break;
            }
            if client != self.next {
                (self.next, self.place) = (client, ScanPlace::default());
            }
            let (runs, place) = (&self.runs, &mut self.place);
            let found = |hold| held.push(Held { client, hold });
            if !ledger.scan_on(runs, place, &mut left, found) {
                self.add(held);
                return false;
            }
            (self.next, self.place) = (ClientId(client.0.saturating_add(1)), ScanPlace::default());
        }
        self.last = None;
        self.add(held);
        self.merge_on(left)
    }

    fn add(&mut self, mut held: Vec<Held>) {
        let Some(nearest) = held.iter().map(|held| held.hold.run).min() else { return };
        held.sort_by_key(|held| held.hold.run);
        self.heads.push(Reverse((nearest, self.found.len())));
        self.found.push(held);
        self.nr_merged.push(0);
    }

    fn merge_on(&mut self, most: usize) -> bool {
        if self.found.len() == 1 && self.merged.is_empty() {
            self.heads.clear();
            self.merged = self.found.pop().unwrap_or_default();
            return true;
        }
        if self.merged.is_empty() {
            // Grown in one go, for to grow it later is to move it.
            self.merged.reserve_exact(self.found.iter().map(Vec::len).sum());
        }
        for _ in 0..most {
            let Some(Reverse((_, which))) = self.heads.pop() else { return true };
            let at = self.nr_merged[which];
            self.merged.push(self.found[which][at]);
            self.nr_merged[which] = at + 1;
            if let Some(next) = self.found[which].get(at + 1) {
                self.heads.push(Reverse((next.hold.run, which)));
            }
        }
        self.heads.is_empty()
    }

    /// The drain, with the holds that were found.
    #[must_use]
    pub fn finish(self) -> Drain {
        Drain::in_order(self.runs, self.merged)
    }
}
