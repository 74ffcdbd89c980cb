//! Short-term pins: publish the hold first, then look whether the extent is still what the client
//! was given.
//!
//! # States
//!
//! ```text
//!            store slot          life word as expected
//!   (empty) ───────────▶ published ───────────────────▶ held ── drop ──▶ (empty)
//!                            │ life word differs                 │
//!                            └──▶ slot cleared, doorbell         └─ doorbell if it differs now
//! ```
//!
//! # Who may touch what
//!
//! A [`Lane`] belongs to one thread at a time; only that thread fills the lane's slots. Any thread
//! may drop a [`Pin`], which clears its slot and nothing else.
//!
//! # Orderings
//!
//! Pin: `slot = hold; light barrier; load life word`. Drain: `store life word; heavy barrier; load
//! slots`. Unpin: `slot = 0; light barrier; load life word`. The light and heavy barriers pair as
//! [`barrier`](crate::barrier) says. Clearing a slot is Release and pairs with the scan's Acquire:
//! what the holder read or wrote happens before the frames are somebody else's. Loading an
//! unchanged life word is Acquire and pairs with the Release that published it: the writer's bytes
//! are visible to the holder.
//!
//! # Lost races
//!
//! *Pin against drain.* If the slot's store comes first, the scan sees it and the drain waits. If
//! the change of the life word comes first, the pin sees it and undoes itself. Were both missed,
//! each side's load would have passed its own store, which the barrier pair forbids.
//!
//! *Unpin against drain.* If the clearing comes first, the scan sees an empty slot and frees. If
//! the change of the life word comes first, the unpin sees it and rings the doorbell, and the
//! second look that the bell starts sees the slot empty. Were both missed, the drain would sleep
//! for a bell that nobody rings; the same argument forbids it.
//!
//! *Two pins of one folio* do not meet: each has a slot of its own.
//!
//! # Differs from Linux
//!
//! `get_user_pages_fast` adds to a count that all pinners share, then re-reads the page-table entry
//! (Linux 7.1: mm/gup.c, gup_fast_pmd_leaf). Here the count is the set of slots, so pinning writes
//! no shared line, and one slot covers a run of any length.

mod blocks;
mod claims;
mod known_span;
mod parts;
mod window;

use core::cell::Cell;

use self::claims::LaneClaims;
use self::known_span::KnownParts;
pub(crate) use self::known_span::KnownSpan;
pub use self::parts::PinParts;
pub use self::window::Window;
use crate::barrier::BarrierMode;
use crate::descriptor::Descriptor;
use crate::error::PinError;
use crate::extent::Extent;
use crate::ledger::{
    Agent, BARRIER_WORD, IS_ASYMMETRIC, KEEP_LOCK, LANES_USED_WORD, LEDGER_MAGIC, LONG_SLOTS,
    LedgerLayout, MAGIC_WORD, SLOT_STEP, SlotWord, TRANSFERS_WORD,
};
use crate::pfn::PfnRange;
use crate::sync::Ordering;
use crate::vmemmap::{LifeWord, Vmemmap};
use crate::words::{ReadWord, ReadWords, WriteCounts, WriteWord, WriteWords};

/// A slot of `S`'s ledger.
pub(crate) type SlotOf<'p, S> = <<S as ClientSide>::Ledger as WriteWords>::Slot<'p>;
/// A descriptor as `S` sees it.
pub(crate) type LifeOf<'p, S> = <<S as ClientSide>::Descriptors as ReadWords>::Word<'p>;

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
    /// Whether this process is a forked child of the client, which holds nothing. Not to be
    /// confused with frames that were detached (ADR 0006).
    fn is_detached(&self) -> bool;
    /// Whether this process is the client and its light barrier is a compiler fence: the usual
    /// case, for which every pin asks. A client that can answer with a single load says so here.
    #[inline]
    fn is_asymmetric(&self) -> bool {
        !self.is_detached() && self.barrier_mode() == BarrierMode::Asymmetric
    }
    /// A number that no other client of this process has or had.
    fn identity(&self) -> u64;
}

/// A client's right to pin: its ledger, opened for writing.
#[derive(Debug)]
pub struct Pinner<S> {
    side: S,
    layout: LedgerLayout,
    claims: LaneClaims,
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

    /// Takes the first lane that nobody has. One that [`is_shared`](Lane::is_shared) must be
    /// dropped after the pin; pins outlive their lane.
    ///
    /// # Errors
    /// [`PinError::NoLane`] when all are taken just now, [`PinError::NoRoom`] when there is no
    /// memory for its slots, [`PinError::Detached`] in a forked child.
    pub fn lane(&self) -> Result<Lane<'_, S>, PinError> {
        if self.side.is_detached() {
            return Err(PinError::Detached);
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
            known: KnownSpan::from_parts(self, KnownParts::default()),
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

    /// Stores a hold in a slot of this client, or 0 to end one, and makes the light barrier. False,
    /// with nothing done, in a forked child: it shares the parent's ledger and must not touch the
    /// parent's slots.
    #[inline(always)]
    pub(crate) fn store_slot(&self, slot: SlotOf<'_, S>, bits: u64) -> bool {
        if !self.side.is_asymmetric() {
            return self.store_slot_fenced(slot, bits);
        }
        // Release: a full slot only for tools that cannot see the barrier, for the pair that counts
        // is the light barrier with the drain's heavy one; an empty one pairs with Acquire in the
        // drain's scan; data: what the holder did to the bytes.
        slot.store(bits, Ordering::Release);
        BarrierMode::Asymmetric.light();
        true
    }

    /// [`store_slot`](Self::store_slot) where the light barrier is a fence, or there is none to
    /// make.
    #[cold]
    #[inline(never)]
    fn store_slot_fenced(&self, slot: SlotOf<'_, S>, bits: u64) -> bool {
        if self.side.is_detached() {
            return false;
        }
        // Release: as in `store_slot`.
        slot.store(bits, Ordering::Release);
        self.side.barrier_mode().light();
        true
    }

    /// Empties a slot whose hold did not come to be.
    #[cold]
    #[inline(never)]
    pub(crate) fn take_back(&self, slot: SlotOf<'_, S>) {
        // Release: pairs with the scan's Acquire. A scan may have seen the slot meanwhile and now
        // waits for it, perhaps for other frames of the run than the life word's, so ring always.
        slot.store(0, Ordering::Release);
        self.side.ring_doorbell();
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

    /// Rings the doorbell. Out of line, so that ending a hold is small enough to be inlined.
    #[cold]
    #[inline(never)]
    pub(crate) fn ring(&self) {
        self.side.ring_doorbell();
    }
}

/// One thread's part of the ledger.
#[derive(Debug)]
pub struct Lane<'p, S: ClientSide> {
    pinner: &'p Pinner<S>,
    lane: usize,
    /// The word of the lane's first slot.
    base: usize,
    /// Where the last pin went: free again if it was dropped since.
    current: Cell<SlotOf<'p, S>>,
    /// Which slot of the lane that is.
    cursor: Cell<usize>,
    /// Slots of this lane that were ever used.
    high: Cell<usize>,
    /// Where the last long-term pin went, if it went to a slot.
    long: Cell<SlotOf<'p, S>>,
    /// The span that a pin by address met last: the next one is often of the same.
    known: KnownSpan<'p, S>,
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
    known: KnownParts,
}

impl LaneParts {
    /// Whose lane it is: the client's [`ClientSide::identity`].
    #[must_use]
    pub const fn identity(&self) -> u64 {
        self.identity
    }
}

/// All pins do the same three steps: store the slot, light barrier, compare the life word. `pin`,
/// `pin_under` and `pin_pinnable` say why they fail, and each leaves out one check of the one
/// before it. `pin_if` has a further condition and no reason; `pin_once` is `pin_if` in a lane that
/// is put back at once, which is what a file's pin calls.
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
            known: self.known.to_parts(),
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
        let LaneParts { lane, base, cursor, high, known, .. } = parts;
        let current = Cell::new(pinner.side.ledger().slot(base + cursor));
        let (cursor, high) = (Cell::new(cursor), Cell::new(high));
        let known = KnownSpan::from_parts(pinner, known);
        let long = Cell::new(pinner.side.ledger().slot(pinner.layout.long_slot(lane, 0)));
        Ok(Self { pinner, lane, base, current, cursor, high, long, known })
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

    /// Pins `run`, which must lie inside `extent`.
    ///
    /// # Errors
    /// [`PinError::Changed`] when the extent's life word is no longer what the caller was given:
    /// look the extent up again. [`PinError::NotPinnable`] when that word allows no pins,
    /// [`PinError::Outside`] when `run` or the extent lies elsewhere, [`PinError::LaneFull`] when
    /// every slot of this lane is in use, [`PinError::NoRoom`] when there is no memory for more,
    /// [`PinError::Detached`] in a forked child.
    #[inline(always)]
    pub fn pin(
        &self,
        extent: &Extent,
        run: PfnRange,
        agent: Agent,
    ) -> Result<Pin<'p, S>, PinError> {
        if !extent.run.covers(run) {
            return Err(PinError::Outside { run });
        }
        let vmemmap = self.pinner.side.vmemmap();
        let life = vmemmap.life_of(extent).ok_or(PinError::Outside { run })?;
        self.pin_under(life, run, agent)
    }

    /// [`pin`](Self::pin) in a lane that is taken up for it and given to `put_back` as soon as it
    /// was used, before the pin is made a value with a destructor: so that all of it can stay in
    /// registers. `None` if [`pin`](Self::pin) would fail, or has to be tried again.
    #[inline(always)]
    pub fn pin_once(
        self,
        extent: &Extent,
        run: PfnRange,
        agent: Agent,
        put_back: impl FnOnce(LaneParts),
    ) -> Option<Pin<'p, S>> {
        let vmemmap = self.pinner.side.vmemmap();
        let life = vmemmap.life_of(extent);
        let held = match life {
            Some(life) if extent.run.covers(run) && extent.life.is_pinnable() => {
                self.pin_if(self.find_life(life), run, agent, || true)
            }
            _ => None,
        };
        put_back(self.into_parts());
        held.map(Pin::of)
    }

    /// Pins `run` under a life word that the caller already found.
    ///
    /// # Errors
    /// As [`pin`](Self::pin).
    #[inline(always)]
    pub fn pin_under(
        &self,
        life: LifeWord,
        run: PfnRange,
        agent: Agent,
    ) -> Result<Pin<'p, S>, PinError> {
        if !life.expected.is_pinnable() {
            return Err(PinError::NotPinnable { word: life.expected });
        }
        self.pin_pinnable(life, run, agent)
    }

    /// As [`pin_under`](Self::pin_under), where the caller knows that the word allows pins.
    #[inline(always)]
    pub(crate) fn pin_pinnable(
        &self,
        life: LifeWord,
        run: PfnRange,
        agent: Agent,
    ) -> Result<Pin<'p, S>, PinError> {
        let slot = self.free_slot()?;
        let life = self.find_life(life);
        if !self.pinner.store_slot(slot, SlotWord::new(run, agent).bits()) {
            return Err(PinError::Detached);
        }
        let now = life.now();
        if now == life.at.expected {
            return Ok(Pin::of(self.pinned(slot, life, run)));
        }
        self.pinner.take_back(slot);
        Err(PinError::Changed { run, now })
    }

    /// As [`pin_pinnable`](Self::pin_pinnable), for a caller who has something else to look at
    /// after the life word, and to whom every failure is the same. The caller makes it a [`Pin`] at
    /// once.
    #[inline(always)]
    pub(crate) fn pin_if(
        &self,
        life: Life<'p, S>,
        run: PfnRange,
        agent: Agent,
        is_still_so: impl FnOnce() -> bool,
    ) -> Option<RawPin<'p, S>> {
        let slot = self.free_slot().ok()?;
        if !self.pinner.store_slot(slot, SlotWord::new(run, agent).bits()) {
            return None;
        }
        if life.is_as_expected() && is_still_so() {
            return Some(self.pinned(slot, life, run));
        }
        self.pinner.take_back(slot);
        None
    }

    /// Finds the life word that `life` speaks of.
    #[inline(always)]
    pub(crate) fn find_life(&self, life: LifeWord) -> Life<'p, S> {
        Life::find(self.pinner, life)
    }

    /// What a walk of an address space kept here last.
    #[inline(always)]
    pub(crate) fn known_span(&self) -> &KnownSpan<'p, S> {
        &self.known
    }

    #[inline(always)]
    fn pinned(&self, slot: SlotOf<'p, S>, life: Life<'p, S>, run: PfnRange) -> RawPin<'p, S> {
        let (pinner, at) = (self.pinner, self.base + self.cursor.get());
        RawPin { pinner, slot, at, life, run }
    }

    /// A slot that is empty. The last one used comes first: most pins are dropped before the next.
    #[inline(always)]
    fn free_slot(&self) -> Result<SlotOf<'p, S>, PinError> {
        let slot = self.current.get();
        // Acquire: pairs with the Release of whichever thread cleared it.
        if slot.load(Ordering::Acquire) == 0 { Ok(slot) } else { self.find_slot() }
    }

    /// Looks for an empty slot beyond the last one used.
    #[inline(always)]
    fn find_slot(&self) -> Result<SlotOf<'p, S>, PinError> {
        let pinner = self.pinner;
        // A forked child must not lower the mark that its parent has raised since.
        if pinner.side.is_detached() {
            return Err(PinError::Detached);
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

/// A life word that was found, and what it must be.
#[derive(Debug)]
pub(crate) struct Life<'p, S: ClientSide + 'p> {
    word: LifeOf<'p, S>,
    at: LifeWord,
}

impl<S: ClientSide> Clone for Life<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: ClientSide> Copy for Life<'_, S> {}

impl<'p, S: ClientSide + 'p> Life<'p, S> {
    /// Finds the word that `life` speaks of.
    #[inline(always)]
    pub(crate) fn find(pinner: &'p Pinner<S>, life: LifeWord) -> Self {
        Self { word: pinner.side.vmemmap().word(life), at: life }
    }

    /// What it must be.
    #[inline(always)]
    pub(crate) const fn expected(&self) -> Descriptor {
        self.at.expected
    }

    /// What it is now.
    #[inline(always)]
    pub(crate) fn now(self) -> Descriptor {
        // Acquire: pairs with Release in `Vmemmap::set`; data: the folio's bytes.
        Descriptor::from_bits(self.word.load(Ordering::Acquire))
    }

    #[inline(always)]
    pub(crate) fn is_as_expected(self) -> bool {
        self.now() == self.at.expected
    }
}

/// What a pin is made of. Plain values, so that they can be handed over in registers.
#[derive(Debug)]
pub(crate) struct RawPin<'p, S: ClientSide> {
    pinner: &'p Pinner<S>,
    slot: SlotOf<'p, S>,
    /// Which word of the ledger the slot is.
    at: usize,
    life: Life<'p, S>,
    run: PfnRange,
}

impl<S: ClientSide> Clone for RawPin<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: ClientSide> Copy for RawPin<'_, S> {}

impl<S: ClientSide> RawPin<'_, S> {
    fn set_agent(self, agent: Agent) {
        if !self.pinner.side.is_detached() {
            // Release: pairs with the scan's Acquire; the slot is never seen empty in between.
            self.slot.store(SlotWord::new(self.run, agent).bits(), Ordering::Release);
        }
    }
}

/// A short-term pin: while it lives, the frames are not reused. May be dropped on any thread.
#[derive(Debug)]
#[must_use = "dropping a pin releases the frames"]
pub struct Pin<'p, S: ClientSide> {
    raw: RawPin<'p, S>,
}

impl<'p, S: ClientSide> Pin<'p, S> {
    /// The pin of a hold that was published and found good, and that nobody else ends.
    #[inline(always)]
    pub(crate) const fn of(raw: RawPin<'p, S>) -> Self {
        Self { raw }
    }
}

impl<S: ClientSide> Pin<'_, S> {
    /// The frames held.
    #[inline]
    #[must_use]
    pub const fn run(&self) -> PfnRange {
        self.raw.run
    }

    /// What the life word was when the pin was taken.
    #[must_use]
    pub const fn expected_life(&self) -> Descriptor {
        self.raw.life.at.expected
    }

    /// Writes down what the pin is for, for whoever asks who holds the frames.
    pub fn set_tag(&self, tag: u64) {
        if !self.raw.pinner.side.is_detached() {
            let word = self.raw.pinner.layout.tag_of(self.raw.at);
            // Relaxed: a note to a human reader.
            self.raw.pinner.side.ledger().store(word, tag, Ordering::Relaxed);
        }
    }

    /// Says from now on that a device (or no device any more) may write to the frames.
    pub fn set_agent(&self, agent: Agent) {
        self.raw.set_agent(agent);
    }

    /// Whether the owner has changed the life word since: reclaim was requested.
    #[inline]
    #[must_use]
    pub fn is_reclaim_requested(&self) -> bool {
        !self.raw.life.is_as_expected()
    }
}

impl<S: ClientSide> Drop for Pin<'_, S> {
    #[inline(always)]
    fn drop(&mut self) {
        if !self.raw.pinner.store_slot(self.raw.slot, 0) {
            return;
        }
        if self.is_reclaim_requested() {
            self.raw.pinner.ring();
        }
    }
}
