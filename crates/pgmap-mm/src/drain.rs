//! Draining: taking frames out of use, in batches, and knowing when nobody holds them any more.
//!
//! # States
//!
//! ```text
//!   in use ── life words changed, folios Dying ──▶ scanned ──▶ idle (free them)
//!                                                     │
//!                                                     └─▶ held ── holds seen to end ──▶ idle
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
//! A client that the heavy barrier did not reach may hold what the scan did not see. It counts as holding
//! all of the drain until it is gone.
//!
//! # Differs from Linux
//!
//! `dax_break_layout` waits for one page's count after another, without a limit and without a name
//! (Linux 7.1: fs/dax.c). Here one pass names every holder of the batch.

use crate::barrier::{BarrierMode, HeavyBarrier, Reached};
use crate::ledger::{Hold, LedgerReader};
use crate::runs::SortedRuns;
use crate::words::{ReadCounts, ReadWords};

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

/// Frames being taken out of use and the holds that are still in the way.
#[derive(Clone, Debug)]
pub struct Drain {
    runs: SortedRuns,
    held: Vec<Held>,
}

impl Drain {
    /// Starts a drain of `runs`, whose life words the caller has changed already: one heavy barrier,
    /// one scan of every ledger.
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
        let mut unreached = Vec::new();
        let ledgers = ledgers.into_iter().inspect(|(client, ledger)| {
            if reached == Reached::Fenced && ledger.mode() == BarrierMode::Asymmetric {
                unreached.push(*client);
            }
        });
        let mut held = scan(&runs, ledgers);
        for client in unreached {
            held.extend(runs.iter().map(|run| Held { client, hold: Hold::unseen(run) }));
        }
        Self { runs, held }
    }

    /// The frames.
    #[must_use]
    pub const fn runs(&self) -> &SortedRuns {
        &self.runs
    }

    /// The holds in the way, as last seen.
    #[must_use]
    pub fn held(&self) -> &[Held] {
        &self.held
    }

    /// The part of this drain that concerns `runs`, which lie inside its own: so that one barrier and
    /// one scan serve a batch whose members then wait each for its own holders.
    #[must_use]
    pub fn part(&self, runs: SortedRuns) -> Self {
        let held = self.held.iter().copied().filter(|held| runs.overlaps(held.hold.run)).collect();
        Self { runs, held }
    }

    /// Whether nobody holds any of the frames: they may be freed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// Looks again at the holds in the way. `ledger_of` gives a client's ledger, or none when the
    /// client is dead: then its holds are gone.
    pub fn look_again<'l, W, C>(
        &mut self,
        ledger_of: impl Fn(ClientId) -> Option<&'l LedgerReader<W, C>>,
    ) where
        W: ReadWords + 'l,
        C: ReadCounts + 'l,
    {
        let runs = &self.runs;
        self.held.retain(|held| {
            ledger_of(held.client).is_some_and(|ledger| ledger.still_holds(&held.hold, runs))
        });
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
