//! Long-term pins: pins that may outlive the thread, the call, and the reader's patience.
//!
//! They are counts, so that a client may have any number of them at the price of one addition a
//! folio, and an owner finds them however many there are. A lane also has a few slots for long-term
//! pins. Pins *by address* use those first, for a store of the thread's own, whatever their length,
//! where a count is an atomic addition to a word that other threads may want; pins of a file are
//! always counts.
//!
//! # States
//!
//! ```text
//!   count n ── +1 per folio; life word as expected ──▶ n+1, held ── drop ──▶ n
//!      ▲                       │ differs or overflow
//!      └── -1 per folio ◀──────┘
//! ```
//!
//! # Who may touch what
//!
//! Any thread of the client adds to and takes from the client's own counts; the owner loads them.
//!
//! # Orderings
//!
//! As a short-term pin, with the count in place of the slot: `touched bit; count += 1; light
//! barrier; load life word`, against `store life word; heavy barrier; load counts`. Taking from the
//! count is Release and pairs with the scan's Acquire.
//!
//! A pin in a slot is ordered as a short-term one.
//!
//! # Lost races
//!
//! The two of [`pin`](crate::pin). A third, *count against another thread's count*, is the atomic
//! addition's: both are in the sum.
//!
//! # Differs from Linux
//!
//! `FOLL_LONGTERM` with `FOLL_WRITE` on device-dax never succeeds without the mmap lock (Linux 7.1:
//! mm/gup.c, gup_fast_folio_allowed). Here the publisher put the answer into the life word, so the
//! fast path succeeds wherever the policy said yes.

use crate::descriptor::FolioFlags;
use crate::error::PinError;
use crate::extent::Extent;
use crate::ledger::{Agent, CPU_ONE, DEVICE_ONE, MAX_COUNT, SlotWord};
use crate::level::Level;
use crate::pfn::{Pfn, PfnRange};
use crate::pin::{ClientSide, FoundLife, Lane, Pinner, SlotOf};
use crate::sync::Ordering;
use crate::vmemmap::LifeWord;
use crate::words::{ReadWords, WriteCounts, WriteWords};

/// A long-term pin: while it lives, the frames are not reused. May be dropped on any thread.
#[derive(Debug)]
#[must_use = "dropping a pin releases the frames"]
pub struct LongtermPin<'p, S: ClientSide> {
    raw: RawLongterm<'p, S>,
}

/// What a long-term pin is made of. Plain values, so that they can be handed over in registers.
#[derive(Debug)]
pub(crate) struct RawLongterm<'p, S: ClientSide> {
    pinner: &'p Pinner<S>,
    life: FoundLife<'p, S>,
    run: PfnRange,
    record: Record<SlotOf<'p, S>>,
}

impl<S: ClientSide> Clone for RawLongterm<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: ClientSide> Copy for RawLongterm<'_, S> {}

/// Where a long-term pin is written down.
#[derive(Clone, Copy, Debug)]
enum Record<T> {
    /// In a slot of a lane.
    Slot(T),
    /// In a count for each folio of this level.
    Counts(Level, Agent),
}

const fn one(agent: Agent) -> u32 {
    match agent {
        Agent::Cpu => CPU_ONE,
        Agent::Device => DEVICE_ONE,
    }
}

const fn pins_of(count: u32, agent: Agent) -> u32 {
    match agent {
        Agent::Cpu => count & 0xffff,
        Agent::Device => count >> 16,
    }
}

impl<S: ClientSide> Pinner<S> {
    /// Pins `run`, which must lie inside `extent`, long-term, if the extent's life word says that
    /// this needs nobody's consent.
    ///
    /// The pin is counted once per folio of the extent's head level, or of the largest level below
    /// of which `run` is whole folios.
    ///
    /// # Errors
    /// [`PinError::NeedsConsent`] when the life word does not say so; [`PinError::CountFull`] when
    /// a count is at its bound; else as [`Lane::pin`](crate::pin::Lane::pin).
    #[inline(always)]
    pub fn pin_longterm(
        &self,
        extent: &Extent,
        run: PfnRange,
        agent: Agent,
    ) -> Result<LongtermPin<'_, S>, PinError> {
        if !extent.run.covers(run) {
            return Err(PinError::Outside { run });
        }
        let life = self.side().vmemmap().life_of(extent).ok_or(PinError::Outside { run })?;
        self.pin_longterm_under(life, run, extent.head_level, agent)
    }

    /// As [`pin_longterm`](Self::pin_longterm), under a life word that the caller already found.
    ///
    /// # Errors
    /// The same.
    #[inline(always)]
    pub fn pin_longterm_under(
        &self,
        life: LifeWord,
        run: PfnRange,
        head_level: Level,
        agent: Agent,
    ) -> Result<LongtermPin<'_, S>, PinError> {
        self.pin_longterm_found(FoundLife::find(self, life), run, head_level, agent)
    }

    /// As [`pin_longterm_under`](Self::pin_longterm_under), under a word that was found.
    #[inline(always)]
    pub(crate) fn pin_longterm_found<'p>(
        &'p self,
        life: FoundLife<'p, S>,
        run: PfnRange,
        head_level: Level,
        agent: Agent,
    ) -> Result<LongtermPin<'p, S>, PinError> {
        if self.side().is_forked() {
            return Err(PinError::Forked);
        }
        let expected = life.expected();
        if !expected.is_pinnable() {
            return Err(PinError::NotPinnable { word: expected });
        }
        if !expected.flags().contains(FolioFlags::LONGTERM_OK) {
            return Err(PinError::NeedsConsent { run });
        }
        if run.end() > self.layout().nr_pages() {
            return Err(PinError::Outside { run });
        }
        let level = counting_level(run, head_level);
        self.add_counts(run, level, agent)?;
        self.side().barrier_mode().light();
        let now = life.now();
        if now == expected {
            let record = Record::Counts(level, agent);
            return Ok(LongtermPin { raw: RawLongterm { pinner: self, life, run, record } });
        }
        self.take_counts(run, level, agent);
        // As for short-term pins: a scan may wait for what is now undone.
        self.side().ring_doorbell();
        Err(PinError::Changed { run, now })
    }

    /// What is not usual is left to calls that return to the caller, so that the loop keeps nothing
    /// over one.
    #[inline(always)]
    fn add_counts(&self, run: PfnRange, level: Level, agent: Agent) -> Result<(), PinError> {
        for folio in run.start() >> level.shift()..run.end() >> level.shift() {
            let index = self.layout().count(level, folio);
            if !self.is_touched(index) {
                return self.touch_and_add(run, folio, level, agent);
            }
            if !self.add_count(index, agent) {
                return Err(self.count_full(run, folio, level, agent));
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn is_touched(&self, index: usize) -> bool {
        let (word, bit) = self.layout().touched(index);
        // Relaxed: only this client sets bits, and a bit once seen set stays.
        self.side().ledger().load(word, Ordering::Relaxed) & bit != 0
    }

    /// Adds one pin; false when the count is as high as it may be then.
    #[inline(always)]
    fn add_count(&self, index: usize, agent: Agent) -> bool {
        // Relaxed: the light barrier that follows orders it before the check.
        let before = self.side().counts().fetch_add(index, one(agent), Ordering::Relaxed);
        pins_of(before, agent) < MAX_COUNT
    }

    /// [`add_counts`](Self::add_counts) from the folio number `from` on, whose page of counts was
    /// never touched.
    #[cold]
    #[inline(never)]
    fn touch_and_add(
        &self,
        run: PfnRange,
        from: u64,
        level: Level,
        agent: Agent,
    ) -> Result<(), PinError> {
        for folio in from..run.end() >> level.shift() {
            let index = self.layout().count(level, folio);
            if !self.is_touched(index) && !self.touch(index) {
                self.give_up_counts(run, folio, level, agent);
                return Err(PinError::NoRoom);
            }
            if !self.add_count(index, agent) {
                return Err(self.count_full(run, folio, level, agent));
            }
        }
        Ok(())
    }

    /// Marks the page of the count at `index` as touched, when it has memory; false when it has
    /// none.
    fn touch(&self, index: usize) -> bool {
        if !self.side().counts().reserve(self.layout().page_of_count(index)) {
            return false;
        }
        let (word, bit) = self.layout().touched(index);
        // Release: before the count it covers; pairs with the scan's Acquire.
        self.side().ledger().fetch_or(word, bit, Ordering::Release);
        true
    }

    /// Takes back what was counted of `run`, because the count of the folio number `folio` is full.
    #[cold]
    #[inline(never)]
    fn count_full(&self, run: PfnRange, folio: u64, level: Level, agent: Agent) -> PinError {
        self.give_up_counts(run, folio + 1, level, agent);
        let run = Pfn::new(folio << level.shift()).map(|pfn| PfnRange::folio(pfn, level));
        run.map_or(PinError::Forked, |run| PinError::CountFull { run })
    }

    /// Takes back what was counted of `run`, up to but without the folio number `end`.
    #[cold]
    #[inline(never)]
    fn give_up_counts(&self, run: PfnRange, end: u64, level: Level, agent: Agent) {
        if let Some(done) = PfnRange::new(run.start(), (end << level.shift()) - run.start()) {
            self.take_counts(done, level, agent);
            // As for a pin that lost: a scan may wait for what is now taken back.
            self.side().ring_doorbell();
        }
    }

    /// Takes a pin out of the counts; false, with nothing done, in a forked child.
    #[inline(never)]
    fn uncount(&self, run: PfnRange, level: Level, agent: Agent) -> bool {
        if self.side().is_forked() {
            return false;
        }
        self.take_counts(run, level, agent);
        self.side().barrier_mode().light();
        true
    }

    #[inline(always)]
    fn take_counts(&self, run: PfnRange, level: Level, agent: Agent) {
        for folio in run.start() >> level.shift()..run.end() >> level.shift() {
            let index = self.layout().count(level, folio);
            // Release: pairs with the scan's Acquire; data: what the holder did to the bytes.
            self.side().counts().fetch_sub(index, one(agent), Ordering::Release);
        }
    }
}

impl<'p, S: ClientSide> Lane<'p, S> {
    /// Pins `run` long-term in a long-term slot, for a caller who has something else to look at
    /// after the life word, and to whom every failure is the same, that no slot is free too. The
    /// caller makes it a [`LongtermPin`] at once.
    #[inline(always)]
    pub(crate) fn pin_longterm_slot_if(
        &self,
        life: FoundLife<'p, S>,
        run: PfnRange,
        agent: Agent,
        is_still_so: impl FnOnce() -> bool,
    ) -> Option<RawLongterm<'p, S>> {
        let expected = life.expected();
        if !expected.is_pinnable() || !expected.flags().contains(FolioFlags::LONGTERM_OK) {
            return None;
        }
        let (pinner, slot) = (self.pinner(), self.free_long_slot()?);
        if !pinner.store_slot(slot, SlotWord::new(run, agent).bits()) {
            return None;
        }
        if life.is_as_expected() && is_still_so() {
            return Some(RawLongterm { pinner, life, run, record: Record::Slot(slot) });
        }
        pinner.take_back(slot);
        None
    }

    /// As [`pin_longterm_slot_if`](Self::pin_longterm_slot_if), and by counts where no slot is
    /// free.
    pub(crate) fn pin_longterm_if(
        &self,
        life: FoundLife<'p, S>,
        run: PfnRange,
        head_level: Level,
        agent: Agent,
        is_still_so: impl Fn() -> bool,
    ) -> Option<RawLongterm<'p, S>> {
        if self.free_long_slot().is_some() {
            return self.pin_longterm_slot_if(life, run, agent, is_still_so);
        }
        let pin = self.pinner().pin_longterm_found(life, run, head_level, agent).ok()?;
        if is_still_so() {
            let raw = pin.raw;
            core::mem::forget(pin);
            return Some(raw);
        }
        drop(pin);
        // Life word and frames may be of two extents: see `gup`.
        self.pinner().ring();
        None
    }
}

/// The level at which a pin of `run` is counted: the largest, up to the extent's own, of which the
/// run is whole folios.
fn counting_level(run: PfnRange, head_level: Level) -> Level {
    let is_whole = |level: &Level| {
        *level <= head_level && (run.start() | run.nr_pages()).is_multiple_of(level.nr_pages())
    };
    Level::ALL.into_iter().rev().find(is_whole).unwrap_or(Level::Pte)
}

impl<'p, S: ClientSide> LongtermPin<'p, S> {
    /// The pin of a hold that was written down and found good, and that nobody else ends.
    #[inline(always)]
    pub(crate) const fn of(raw: RawLongterm<'p, S>) -> Self {
        Self { raw }
    }

    /// The frames held.
    #[inline]
    #[must_use]
    pub const fn run(&self) -> PfnRange {
        self.raw.run
    }

    /// Whether the owner has changed the life word since: reclaim was requested.
    #[must_use]
    pub fn is_reclaim_requested(&self) -> bool {
        !self.raw.life.is_as_expected()
    }
}

impl<S: ClientSide> Drop for LongtermPin<'_, S> {
    #[inline(always)]
    fn drop(&mut self) {
        let is_ended = match self.raw.record {
            Record::Slot(slot) => self.raw.pinner.store_slot(slot, 0),
            Record::Counts(level, agent) => self.raw.pinner.uncount(self.raw.run, level, agent),
        };
        if is_ended && !self.raw.life.is_as_expected() {
            self.raw.pinner.ring();
        }
    }
}
