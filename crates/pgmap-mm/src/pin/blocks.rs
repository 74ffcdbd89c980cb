//! Which block of its slots a lane fills, and where the next empty slot is.
//!
//! # States
//!
//! See [`ledger`](crate::ledger): a lane has one open block while a thread has it, else none.
//!
//! # Who may touch what
//!
//! The thread that has the lane stores its marks and fills its slots; the owner reads both.
//!
//! # Orderings
//!
//! `opened word of the block; state of the lane (both Release); slots of the block`. A scan loads
//! the state, then opened words, then slots (Acquire each); data: the slots filled before the block
//! was left.
//!
//! # Lost races
//!
//! See [`ledger`](crate::ledger), *scan against the opening of a block*.
//!
//! # Differs from Linux
//!
//! There is nothing like it: a page's count says how often it is pinned, not by whom.

use super::{ClientSide, Pinner};
use crate::error::PinError;
use crate::ledger::{LONG_SLOTS, LaneState, SLOT_STEP};
use crate::sync::Ordering;
use crate::words::{ReadWord, ReadWords, WriteWords};

impl<S: ClientSide> Pinner<S> {
    /// Takes memory for slots of a lane, their tags and their blocks, before the lane's mark covers
    /// them: the owner looks at what the mark covers.
    pub(super) fn reserve_slots(
        &self,
        lane: usize,
        from: usize,
        to: usize,
    ) -> Result<(), PinError> {
        let mut words = self.layout.words_of(lane, from, to).into_iter();
        let is_there = words.all(|range| self.side.ledger().reserve(range));
        is_there.then_some(()).ok_or(PinError::NoRoom)
    }

    /// Makes `block` the one that the lane fills slots of; `None` after the last opening that there
    /// is.
    pub(super) fn open_block(&self, lane: usize, block: usize) -> Option<()> {
        let ledger = self.side.ledger();
        let state = self.layout.lane_state(lane);
        // Relaxed: the lane's marks are those of the thread that has it, handed on with the claim.
        let now = LaneState::from_bits(ledger.load(state, Ordering::Relaxed)).opening(block)?;
        // Release: stored before the state, so that a scan that sees this opening's state, or a
        // later one, sees that the block was opened; pairs with Acquire in
        // `LedgerReader::scan_lanes`.
        ledger.store(self.layout.opened(lane, block), now.openings(), Ordering::Release);
        // Release: stored before the slots that are filled under it, and after those filled before;
        // pairs with Acquire in `LedgerReader::lane_view`; data: the slots of the block that is
        // left.
        ledger.store(state, now.bits(), Ordering::Release);
        Some(())
    }

    /// Says that no block of the lane is open, so that a scan need not look at it. The holds in it
    /// stay.
    pub(super) fn close_lane(&self, lane: usize) {
        // A forked child has its own claims and its parent's ledger.
        if self.side.is_forked() {
            return;
        }
        let ledger = self.side.ledger();
        let is_full = |at| {
            // Relaxed: full slots of this lane were filled by the thread that has it, before.
            ledger.load(self.layout.long_slot(lane, at), Ordering::Relaxed) != 0
        };
        let has_left = (0..LONG_SLOTS).any(is_full);
        // Release: before the state; pairs with Acquire in `LedgerReader::walk_long_slots`.
        ledger.store(self.layout.lane_left(lane), u64::from(has_left), Ordering::Release);
        let state = self.layout.lane_state(lane);
        // Relaxed: as in `open_block`.
        let now = LaneState::from_bits(ledger.load(state, Ordering::Relaxed)).closed();
        // Release: as in `open_block`.
        ledger.store(state, now.bits(), Ordering::Release);
    }

    /// The number of an empty slot of the lane after `cursor`, of the `high` that were used, or of
    /// more of them; and of how many then. Its block is open. Plain values, so that a lane can live
    /// in registers.
    #[cold]
    #[inline(never)]
    pub(super) fn search_lane(
        &self,
        lane: usize,
        cursor: usize,
        high: usize,
    ) -> Result<(usize, usize), PinError> {
        let (ledger, base) = (self.side.ledger(), self.layout.slot(lane, 0));
        let full = PinError::LaneFull { nr_slots: self.layout.lane_slots() };
        // Acquire: pairs with the Release of whichever thread cleared it.
        let is_free = |&number: &usize| ledger.slot(base + number).load(Ordering::Acquire) == 0;
        let (block, block_slots) = (self.layout.block_of(cursor), self.layout.block_slots());
        let (start, end) = (block * block_slots, ((block + 1) * block_slots).min(high));
        // In the open block first: it need not be left then, and its two cache lines are at hand.
        if let Some(free) = (cursor + 1..end).chain(start..cursor).find(is_free) {
            return Ok((free, high));
        }
        if let Some(free) = (end..high).chain(0..start).find(is_free) {
            self.open_block(lane, self.layout.block_of(free)).ok_or(full)?;
            return Ok((free, high));
        }
        let bound = self.layout.lane_slots();
        if high >= bound {
            return Err(full);
        }
        // Doubling keeps the search above constant per pin, spread over the pins held.
        let raised = (high * 2).max(SLOT_STEP).min(bound);
        self.reserve_slots(lane, high, raised)?;
        // Release: stored before the slot it covers, so that a scan that must see the slot looks at
        // it; pairs with the scan's Acquire.
        ledger.store(self.layout.lane_used(lane), raised as u64, Ordering::Release);
        if self.layout.block_of(high) != block {
            self.open_block(lane, self.layout.block_of(high)).ok_or(full)?;
        }
        Ok((high, raised))
    }
}
