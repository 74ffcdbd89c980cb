//! Reading a lane's slots, whose words are loaded a block at a time: nearly all of them are empty.
//!
//! Orderings and lost races are those of [`ledger`](crate::ledger).

use core::ops::{ControlFlow, Range};

use super::remembered::LaneView;
use super::{BLOCK_SLOTS, Hold, HoldPlace, LONG_SLOTS, LaneState, LedgerReader, SlotWord};
use crate::runs::SortedRuns;
use crate::sync::Ordering;
use crate::words::{ReadCounts, ReadWords};

/// The hold that a slot's word says, without its tag.
fn hold_in(place: HoldPlace, bits: u64) -> Option<Hold> {
    let (run, agent) = SlotWord::read(bits)?;
    Some(Hold { place, run, agent, nr_pins: 1, tag: 0 })
}

impl<W: ReadWords, C: ReadCounts> LedgerReader<W, C> {
    /// Slots of a lane, then its long-term slots. Says how many of the former were read.
    pub(super) fn walk_lane<B>(
        &self,
        (lane, view): (usize, LaneView),
        slots: Range<usize>,
        runs: &SortedRuns,
        found: &mut impl FnMut(Hold) -> ControlFlow<B>,
    ) -> ControlFlow<B, usize> {
        let nr_slots = slots.len();
        self.walk_short_slots(lane, slots, runs, found)?;
        self.walk_long_slots(lane, view.state, runs, found)?;
        ControlFlow::Continue(nr_slots)
    }

    /// Short-term slots of a lane. Most are empty, so words are loaded a block at a time and looked
    /// at only where there is something.
    pub(super) fn walk_short_slots<B>(
        &self,
        lane: usize,
        slots: Range<usize>,
        runs: &SortedRuns,
        found: &mut impl FnMut(Hold) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut words = [0; BLOCK_SLOTS];
        let mut next = slots.start;
        while next < slots.end {
            let words = &mut words[..(slots.end - next).min(BLOCK_SLOTS)];
            let first = self.layout.slot(lane, next);
            // Acquire: pairs with Release in `Pin::drop`; data: what the holder did to the bytes.
            self.words.load_run(first, words);
            for (at, &bits) in words.iter().enumerate().filter(|(_, bits)| **bits != 0) {
                if let Some(hold) = self.short_hold(first + at, bits, runs) {
                    found(hold)?;
                }
            }
            next += words.len();
        }
        ControlFlow::Continue(())
    }

    pub(super) fn walk_long_slots<B>(
        &self,
        lane: usize,
        state: LaneState,
        runs: &SortedRuns,
        found: &mut impl FnMut(Hold) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        // Acquire: pairs with Release in `close_lane`.
        let has_left = || self.words.load(self.layout.lane_left(lane), Ordering::Acquire) != 0;
        if state.open_block().is_none() && !has_left() {
            return ControlFlow::Continue(());
        }
        let mut words = [0; LONG_SLOTS];
        let first = self.layout.long_slot(lane, 0);
        // Acquire: as for short-term slots.
        self.words.load_run(first, &mut words);
        for (at, &bits) in words.iter().enumerate().filter(|(_, bits)| **bits != 0) {
            if let Some(hold) = hold_in(HoldPlace::LongSlot(first + at), bits)
                && runs.overlaps(hold.run)
            {
                found(hold)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// The short-term hold at word `index`, if it overlaps one of `runs`.
    #[inline]
    pub(super) fn read_short_slot(&self, index: usize, runs: &SortedRuns) -> Option<Hold> {
        // Acquire: as in `read_slot`.
        self.short_hold(index, self.words.load(index, Ordering::Acquire), runs)
    }

    /// As [`read_short_slot`](Self::read_short_slot), of a word that was loaded.
    fn short_hold(&self, index: usize, bits: u64, runs: &SortedRuns) -> Option<Hold> {
        let hold = hold_in(HoldPlace::Slot(index), bits)?;
        runs.overlaps(hold.run).then(|| {
            // Relaxed: a note to a human reader.
            let tag = self.words.load(self.layout.tag_of(index), Ordering::Relaxed);
            Hold { tag, ..hold }
        })
    }

    /// What the slot at word `index` says.
    pub(super) fn read_slot(&self, place: HoldPlace, index: usize) -> Option<Hold> {
        // Acquire: pairs with Release in `Pin::drop`; data: what the holder did to the bytes.
        hold_in(place, self.words.load(index, Ordering::Acquire))
    }
}
