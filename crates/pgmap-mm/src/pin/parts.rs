//! A pin without its borrow, for whoever keeps holds beside the client they are of: a processor's
//! mapping, for instance. And narrowing a pin, which such a holder needs.
//!
//! # States
//!
//! ```text
//!   held ── into_parts ──▶ parts ── from_parts ──▶ held ── narrow ──▶ held, of fewer frames
//! ```
//!
//! # Who may touch what
//!
//! As [`pin`](crate::pin): the slot is the holder's, and is full all the while.
//!
//! # Orderings
//!
//! `slot = fewer frames (Release); light barrier; load life word`, as an unpin. A scan (Acquire)
//! sees the longer run or the shorter; data: what the holder did to the frames given up.
//!
//! # Lost races
//!
//! *Narrowing against drain.* If the store comes first, the scan sees the shorter run and frees the
//! rest. If the change of the life word comes first, the narrowing sees it and rings, and the scan
//! that the bell starts sees the shorter run. What stays held is held by either word.
//!
//! # Differs from Linux
//!
//! Unpinning some of the pages that one call pinned lowers one count there (Linux 7.1: mm/gup.c,
//! `unpin_user_page_range_dirty_lock`). A slot is one run, so here the rest must be one run too.

use super::{ClientSide, FoundLife, Pin, Pinner, RawPin};
use crate::descriptor::Descriptor;
use crate::ledger::{Agent, SlotWord};
use crate::pfn::PfnRange;
use crate::vmemmap::LifeWord;
use crate::words::WriteWords;

/// A pin without its borrow. The frames stay held; the parts must come back through
/// [`Pin::from_parts`], or they are held until the client ends.
#[derive(Debug)]
#[must_use = "parts that do not come back hold the frames until the client ends"]
pub struct PinParts {
    identity: u64,
    slot: usize,
    life: LifeWord,
    run: PfnRange,
}

impl PinParts {
    /// The frames held.
    #[must_use]
    pub const fn run(&self) -> PfnRange {
        self.run
    }

    /// The ledger's slot that it is in.
    #[must_use]
    pub const fn slot(&self) -> usize {
        self.slot
    }

    /// The life word under which the pin was taken.
    #[must_use]
    pub const fn life(&self) -> LifeWord {
        self.life
    }

    /// Whether the owner has changed the life word since: somebody waits for the frames. False of
    /// a pin that is not of `pinner`.
    #[must_use]
    pub fn is_reclaim_requested<S: ClientSide>(&self, pinner: &Pinner<S>) -> bool {
        self.raw(pinner).is_some_and(|raw| !raw.life.is_as_expected())
    }

    /// As [`Pin::set_agent`], of a pin of `pinner`.
    pub fn set_agent<S: ClientSide>(&self, pinner: &Pinner<S>, agent: Agent) {
        if let Some(raw) = self.raw(pinner) {
            raw.set_agent(agent);
        }
    }

    /// Takes note that the owner changed the life word to `life` on this holder's own request, so
    /// that dropping the pin does not ring for it.
    pub const fn expect_life(&mut self, life: Descriptor) {
        self.life = self.life.with_expected(life);
    }

    #[inline]
    fn raw<'p, S: ClientSide>(&self, pinner: &'p Pinner<S>) -> Option<RawPin<'p, S>> {
        if self.identity != pinner.side.identity() {
            return None;
        }
        let (slot, life) =
            (pinner.side.ledger().slot(self.slot), FoundLife::find(pinner, self.life));
        Some(RawPin { pinner, slot, at: self.slot, life, run: self.run })
    }
}

impl<'p, S: ClientSide> Pin<'p, S> {
    /// Puts the pin aside; the frames stay held.
    pub fn into_parts(self) -> PinParts {
        let RawPin { pinner, at, life, run, .. } = self.raw;
        let parts = PinParts { identity: pinner.side.identity(), slot: at, life: life.at, run };
        std::mem::forget(self);
        parts
    }

    /// Takes the pin up again.
    ///
    /// # Errors
    /// The parts, when they are not of a pin of `pinner`.
    pub fn from_parts(pinner: &'p Pinner<S>, parts: PinParts) -> Result<Self, PinParts> {
        parts.raw(pinner).map(Self::of).ok_or(parts)
    }

    /// Gives up all frames but `run`, which must be some of those held; false, and nothing is given
    /// up, when it is not.
    pub fn narrow(&mut self, run: PfnRange, agent: Agent) -> bool {
        if !self.raw.run.covers(run) {
            return false;
        }
        self.raw.run = run;
        let is_ours = self.raw.pinner.store_slot(self.raw.slot, SlotWord::new(run, agent).bits());
        if is_ours && self.is_reclaim_requested() {
            self.raw.pinner.ring();
        }
        true
    }
}
