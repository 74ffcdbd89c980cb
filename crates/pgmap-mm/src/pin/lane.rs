//! Lanes: each thread's part of the ledger, and which of its slots is empty.
//!
//! # States
//!
//! ```text
//!   free ── Pinner::lane ──▶ taken ── into_parts ──▶ put aside ── from_parts ──▶ taken
//!   taken ── drop ──▶ free
//! ```
//!
//! # Who may touch what
//!
//! A lane belongs to one thread at a time, and only that thread fills its slots. Which lanes are
//! taken is in `claims.rs`, which block of a lane is open in `blocks.rs`.
//!
//! # Orderings
//!
//! `lanes used; slots used; block opened (all Release); slots`. A scan loads them in that order
//! (Acquire). A slot is found empty with Acquire, which pairs with the Release that cleared it.
//!
//! # Lost races
//!
//! *Scan against a lane that is taken.* A scan that does not see the mark that covers a lane was
//! begun before the light barrier of the first pin in it: that pin's check sees what the drain
//! changed.
//!
//! # Differs from Linux
//!
//! There is nothing like it: a page's count is shared by all who pin it.

use core::cell::Cell;

use super::last_life::{LastLife, LastLifeParts};
use super::{ClientSide, FoundLife, Pinner, SlotOf};
use crate::error::PinError;
use crate::ledger::{LANES_USED_WORD, LONG_SLOTS, SLOT_STEP};
use crate::sync::Ordering;
use crate::vmemmap::LifeWord;
use crate::words::{ReadWord, ReadWords, WriteWords};

/// One thread's part of the ledger.
#[derive(Debug)]
pub struct Lane<'p, S: ClientSide> {
    pub(super) pinner: &'p Pinner<S>,
    lane: usize,
    /// The word of the lane's first slot.
    pub(super) base: usize,
    /// Where the last pin went: free again if it was dropped since.
    current: Cell<SlotOf<'p, S>>,
    /// Which slot of the lane that is.
    pub(super) cursor: Cell<usize>,
    /// Slots of this lane that were ever used.
    high: Cell<usize>,
    /// Where the last long-term pin went, if it went to a slot.
    long: Cell<SlotOf<'p, S>>,
    /// What a pin by address found last: the next one is often of the same extent.
    last: LastLife<'p, S>,
}

impl<S: ClientSide> Drop for Lane<'_, S> {
    /// Only reads and a call by value: a path that unwinds then needs no address of the lane, so
    /// that it can live in registers (ADR 0014).
    #[inline(always)]
    fn drop(&mut self) {
        self.pinner.release_lane(self.lane, self.cursor.get());
    }
}

/// A lane without its borrow: what a thread keeps between pins. Must come back through
/// [`Lane::from_parts`], or the lane stays taken until the client ends.
#[derive(Debug)]
pub struct LaneParts {
    identity: u64,
    lane: usize,
    base: usize,
    cursor: usize,
    high: usize,
    last: LastLifeParts,
}

impl LaneParts {
    /// Whose lane it is: the client's [`ClientSide::identity`].
    #[must_use]
    pub const fn identity(&self) -> u64 {
        self.identity
    }
}

impl<S: ClientSide> Pinner<S> {
    /// Takes the first lane that nobody has. One that [`is_shared`](Lane::is_shared) must be
    /// dropped after the pin; pins outlive their lane.
    ///
    /// # Errors
    /// [`PinError::NoLane`] when all are taken just now, [`PinError::NoRoom`] when there is no
    /// memory for its slots, [`PinError::Forked`] in a forked child.
    pub fn lane(&self) -> Result<Lane<'_, S>, PinError> {
        if self.side.is_forked() {
            return Err(PinError::Forked);
        }
        // A lane whose blocks cannot be opened any more stays taken.
        while let Some((lane, cursor)) = self.claims.take() {
            match self.open_lane(lane, cursor) {
                Err(PinError::NoLane { .. }) => {}
                Err(error) => {
                    self.claims.give_back(lane, cursor);
                    return Err(error);
                }
                opened => return opened,
            }
        }
        Err(self.no_lane())
    }

    const fn no_lane(&self) -> PinError {
        PinError::NoLane { nr_lanes: self.layout.nr_lanes() }
    }

    /// Opens the block of slot `cursor` in a lane that was just taken.
    fn open_lane(&self, lane: usize, cursor: usize) -> Result<Lane<'_, S>, PinError> {
        let ledger = self.side.ledger();
        // Relaxed: the mark only grows, under the claims above; the light barrier of the first pin
        // in the lane orders it before that pin's check.
        let mut used = ledger.load(LANES_USED_WORD, Ordering::Relaxed);
        while used <= lane as u64 {
            used = self.raise_lanes_used(lane as u64 + 1);
        }
        let mark = self.layout.lane_used(lane);
        let mut high = ledger.load(mark, Ordering::Relaxed) as usize;
        if high == 0 {
            high = SLOT_STEP.min(self.layout.lane_slots());
            self.reserve_slots(lane, 0, high)?;
            // Release: stored before the slots it covers, as in `search_lane`.
            ledger.store(mark, high as u64, Ordering::Release);
        }
        let is_open = self.open_block(lane, self.layout.block_of(cursor));
        is_open.ok_or_else(|| self.no_lane())?;
        let base = self.layout.slot(lane, 0);
        Ok(Lane {
            pinner: self,
            lane,
            base,
            current: Cell::new(ledger.slot(base + cursor)),
            cursor: Cell::new(cursor),
            high: Cell::new(high),
            long: Cell::new(ledger.slot(self.layout.long_slot(lane, 0))),
            last: LastLife::nothing(self),
        })
    }

    /// Gives back a lane whose last pin went to slot `cursor`.
    #[cold]
    #[inline(never)]
    fn release_lane(&self, lane: usize, cursor: usize) {
        self.close_lane(lane);
        self.claims.give_back(lane, cursor);
    }

    /// Sets the number of lanes in use to at least `to`. Written as bits so that two threads cannot
    /// lower it: the mark is a count whose value any reader rounds up.
    fn raise_lanes_used(&self, to: u64) -> u64 {
        let ledger = self.side.ledger();
        // The mark is kept of the form 2^k - 1, which or-ing can only raise. Release: pairs with
        // the scan's Acquire.
        let mark = to.next_power_of_two().max(2) - 1;
        let mark = if mark < to { (mark << 1) | 1 } else { mark };
        ledger.fetch_or(LANES_USED_WORD, mark, Ordering::Release) | mark
    }

    /// An empty long-term slot of the lane.
    #[cold]
    #[inline(never)]
    fn search_long_slots(&self, lane: usize) -> Option<SlotOf<'_, S>> {
        let slots =
            (0..LONG_SLOTS).map(|at| self.side.ledger().slot(self.layout.long_slot(lane, at)));
        // Acquire: as in `search_lane`.
        slots.into_iter().find(|slot| slot.load(Ordering::Acquire) == 0)
    }
}

impl<'p, S: ClientSide> Lane<'p, S> {
    /// Puts the lane aside.
    #[inline(always)]
    #[must_use]
    pub fn into_parts(self) -> LaneParts {
        let parts = LaneParts {
            identity: self.pinner.side.identity(),
            lane: self.lane,
            base: self.base,
            cursor: self.cursor.get(),
            high: self.high.get(),
            last: self.last.to_parts(),
        };
        std::mem::forget(self);
        parts
    }

    /// Takes the lane up again.
    ///
    /// # Errors
    /// The parts, when they are not of a lane of `pinner`.
    #[inline(always)]
    pub fn from_parts(pinner: &'p Pinner<S>, parts: LaneParts) -> Result<Self, LaneParts> {
        if parts.identity != pinner.side.identity() {
            return Err(parts);
        }
        let LaneParts { lane, base, cursor, high, last, .. } = parts;
        let current = Cell::new(pinner.side.ledger().slot(base + cursor));
        let (cursor, high) = (Cell::new(cursor), Cell::new(high));
        let last = LastLife::from_parts(pinner, last);
        let long = Cell::new(pinner.side.ledger().slot(pinner.layout.long_slot(lane, 0)));
        Ok(Self { pinner, lane, base, current, cursor, high, long, last })
    }

    /// Whether the lane is one of the last, which are shared: it must be dropped after the pin.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        self.lane >= self.pinner.layout.kept_lanes()
    }

    /// The client whose lane this is.
    #[inline]
    #[must_use]
    pub const fn pinner(&self) -> &'p Pinner<S> {
        self.pinner
    }

    /// Finds the life word that `life` speaks of.
    #[inline(always)]
    pub(crate) fn find_life(&self, life: LifeWord) -> FoundLife<'p, S> {
        FoundLife::find(self.pinner, life)
    }

    /// What the thread found last.
    #[inline(always)]
    pub(crate) const fn last_life(&self) -> &LastLife<'p, S> {
        &self.last
    }

    /// A slot that is empty. The last one used comes first: most pins are dropped before the next.
    #[inline(always)]
    pub(super) fn free_slot(&self) -> Result<SlotOf<'p, S>, PinError> {
        let slot = self.current.get();
        // Acquire: pairs with the Release of whichever thread cleared it.
        if slot.load(Ordering::Acquire) == 0 { Ok(slot) } else { self.find_slot() }
    }

    /// Looks for an empty slot beyond the last one used.
    #[inline(always)]
    fn find_slot(&self) -> Result<SlotOf<'p, S>, PinError> {
        let pinner = self.pinner;
        // A forked child must not lower the mark that its parent has raised since.
        if pinner.side.is_forked() {
            return Err(PinError::Forked);
        }
        let (number, high) = pinner.search_lane(self.lane, self.cursor.get(), self.high.get())?;
        let slot = pinner.side.ledger().slot(self.base + number);
        self.high.set(high);
        self.cursor.set(number);
        self.current.set(slot);
        Ok(slot)
    }

    /// An empty long-term slot; `None` if all are full, which is no error: counts go on from there.
    #[inline(always)]
    pub(crate) fn free_long_slot(&self) -> Option<SlotOf<'p, S>> {
        let slot = self.long.get();
        // Acquire: pairs with the Release of whichever thread cleared it.
        if slot.load(Ordering::Acquire) == 0 {
            return Some(slot);
        }
        let free = self.pinner.search_long_slots(self.lane)?;
        self.long.set(free);
        Some(free)
    }
}
