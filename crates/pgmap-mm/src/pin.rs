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
//! may drop a [`Pin`], which clears its slot and nothing else. The client's memory is in
//! `pin/client.rs`, its lanes are in `pin/lane.rs`.
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
mod client;
mod lane;
mod last_life;
mod parts;
mod window;

use self::client::DescriptorOf;
pub(crate) use self::client::SlotOf;
pub use self::client::{ClientSide, Pinner};
pub use self::lane::{Lane, LaneParts};
pub(crate) use self::last_life::LastLife;
pub use self::parts::PinParts;
pub use self::window::Window;
use crate::barrier::BarrierMode;
use crate::descriptor::Descriptor;
use crate::error::PinError;
use crate::extent::Extent;
use crate::ledger::{Agent, SlotWord};
use crate::pfn::PfnRange;
use crate::sync::Ordering;
use crate::vmemmap::LifeWord;
use crate::words::{ReadWord, WriteWord, WriteWords};

/// A [`LifeWord`] whose place in memory was found.
#[derive(Debug)]
pub(crate) struct FoundLife<'p, S: ClientSide + 'p> {
    word: DescriptorOf<'p, S>,
    at: LifeWord,
}

impl<S: ClientSide> Clone for FoundLife<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: ClientSide> Copy for FoundLife<'_, S> {}

impl<'p, S: ClientSide + 'p> FoundLife<'p, S> {
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

impl<S: ClientSide> Pinner<S> {
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
        if self.side.is_forked() {
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
}

/// All pins do the same three steps: store the slot, light barrier, compare the life word. `pin`,
/// `pin_under` and `pin_pinnable` say why they fail, and each leaves out one check of the one
/// before it. `pin_if` has a further condition and no reason; `pin_once` is `pin_if` in a lane that
/// is put back at once, which is what a file's pin calls.
impl<'p, S: ClientSide> Lane<'p, S> {
    /// Pins `run`, which must lie inside `extent`.
    ///
    /// # Errors
    /// [`PinError::Changed`] when the extent's life word is no longer what the caller was given:
    /// look the extent up again. [`PinError::NotPinnable`] when that word allows no pins,
    /// [`PinError::Outside`] when `run` or the extent lies elsewhere, [`PinError::LaneFull`] when
    /// every slot of this lane is in use, [`PinError::NoRoom`] when there is no memory for more,
    /// [`PinError::Forked`] in a forked child.
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

    /// [`pin`](Self::pin) in a lane that is taken for it and given to `put_back` as soon as it
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
            return Err(PinError::Forked);
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
        life: FoundLife<'p, S>,
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

    #[inline(always)]
    fn pinned(&self, slot: SlotOf<'p, S>, life: FoundLife<'p, S>, run: PfnRange) -> RawPin<'p, S> {
        let (pinner, at) = (self.pinner, self.base + self.cursor.get());
        RawPin { pinner, slot, at, life, run }
    }
}

/// What a pin is made of. Plain values, so that they can be handed over in registers.
#[derive(Debug)]
pub(crate) struct RawPin<'p, S: ClientSide> {
    pinner: &'p Pinner<S>,
    slot: SlotOf<'p, S>,
    /// Which word of the ledger the slot is.
    at: usize,
    life: FoundLife<'p, S>,
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
        if !self.pinner.side.is_forked() {
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

    /// What the life word was when the pin was taken, for the scenarios under loom.
    #[cfg(loom)]
    #[must_use]
    pub const fn expected_life(&self) -> Descriptor {
        self.raw.life.at.expected
    }

    /// Writes down what the pin is for, for whoever asks who holds the frames.
    pub fn set_tag(&self, tag: u64) {
        if !self.raw.pinner.side.is_forked() {
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
