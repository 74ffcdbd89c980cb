//! What a client brings, and its right to pin: its ledger, opened for writing.
//!
//! # States
//!
//! ```text
//!   all-zero ledger ── new: barrier, then magic ──▶ open
//! ```
//!
//! # Who may touch what
//!
//! The client writes its ledger, the owner reads it.
//!
//! # Orderings
//!
//! The words of the header are Release and pair with Acquire in
//! [`LedgerReader`](crate::ledger::LedgerReader); data: a ledger in order.
//!
//! # Lost races
//!
//! A scan that does not see the magic yet sees a ledger in which nothing is held.
//!
//! # Differs from Linux
//!
//! There is nothing like it: who may pin in the kernel needs no memory of its own.

use super::claims::LaneClaims;
use crate::barrier::BarrierMode;
use crate::ledger::{
    BARRIER_WORD, IS_ASYMMETRIC, KEEP_LOCK, LEDGER_MAGIC, LedgerLayout, MAGIC_WORD, TRANSFERS_WORD,
};
use crate::sync::Ordering;
use crate::vmemmap::Vmemmap;
use crate::words::{ReadWords, WriteCounts, WriteWords};

/// A slot of `S`'s ledger.
pub(crate) type SlotOf<'p, S> = <<S as ClientSide>::Ledger as WriteWords>::Slot<'p>;

/// A descriptor as `S` sees it.
pub(super) type DescriptorOf<'p, S> = <<S as ClientSide>::Descriptors as ReadWords>::Word<'p>;

/// What a client brings: its ledger, the owner's descriptors, and three small services.
pub trait ClientSide: Send + Sync {
    /// The words of this client's ledger.
    type Ledger: WriteWords;
    /// The counts of this client's ledger.
    type Counts: WriteCounts;
    /// The owner's descriptors, read-only.
    type Descriptors: ReadWords;

    /// The ledger's words.
    fn ledger(&self) -> &Self::Ledger;
    /// The ledger's counts.
    fn counts(&self) -> &Self::Counts;
    /// The descriptors.
    fn vmemmap(&self) -> &Vmemmap<Self::Descriptors>;
    /// How this client orders its stores before its loads.
    fn barrier_mode(&self) -> BarrierMode;
    /// Wakes the owner: a hold that a drain may be waiting for is gone.
    fn ring_doorbell(&self);
    /// Whether this process is a forked child of the client, which holds nothing.
    fn is_forked(&self) -> bool;
    /// Whether this process is the client and its light barrier is a compiler fence: the usual
    /// case, for which every pin asks. A client that can answer with a single load says so here.
    #[inline]
    fn is_asymmetric(&self) -> bool {
        !self.is_forked() && self.barrier_mode() == BarrierMode::Asymmetric
    }
    /// A number that no other client of this process has or had.
    fn identity(&self) -> u64;
}

/// A client's right to pin: its ledger, opened for writing.
#[derive(Debug)]
pub struct Pinner<S> {
    pub(super) side: S,
    pub(super) layout: LedgerLayout,
    pub(super) claims: LaneClaims,
}

impl<S: ClientSide> Pinner<S> {
    /// Opens an all-zero ledger; `None` if it is too small for `layout`.
    #[must_use]
    pub fn new(side: S, layout: LedgerLayout) -> Option<Self> {
        if side.ledger().nr_words() < layout.nr_words() {
            return None;
        }
        let is_asymmetric = match side.barrier_mode() {
            BarrierMode::Asymmetric => IS_ASYMMETRIC,
            BarrierMode::Fenced => 0,
        };
        // Release: before any slot; pairs with Acquire in `LedgerReader::is_asymmetric`.
        side.ledger().store(BARRIER_WORD, is_asymmetric, Ordering::Release);
        // Release: whoever sees the magic sees a ledger in order; pairs with the owner's scan.
        side.ledger().store(MAGIC_WORD, LEDGER_MAGIC, Ordering::Release);
        Some(Self { side, layout, claims: LaneClaims::new(&layout) })
    }

    /// Promises that each device that this client holds frames for keeps the ledger's lock for as
    /// long as it can write to them: that the lock is free then proves that all transfers of a dead
    /// client have ended.
    pub fn promise_transfers_keep_lock(&self) {
        // Release: pairs with Acquire in `LedgerReader::do_transfers_keep_lock`.
        self.side.ledger().store(TRANSFERS_WORD, KEEP_LOCK, Ordering::Release);
    }

    /// What the client brought.
    #[inline]
    pub const fn side(&self) -> &S {
        &self.side
    }

    /// Lanes that may be kept between pins.
    #[must_use]
    pub const fn nr_kept_lanes(&self) -> usize {
        self.layout.kept_lanes()
    }

    #[inline]
    pub(crate) const fn layout(&self) -> &LedgerLayout {
        &self.layout
    }

    /// Rings the doorbell. Out of line, so that ending a hold is small enough to be inlined.
    #[cold]
    #[inline(never)]
    pub(crate) fn ring(&self) {
        self.side.ring_doorbell();
    }
}
