//! Holding pages without a lock: in one leaf, in leaves of one span, or run by run.
//!
//! Most pins are in an extent that the thread pinned in before. For those everything is inlined, 2
//! MiB leaves first, and nothing but the entries, the slot and the life word is touched; all else
//! goes through a call. Each way is written once, for both terms ([`PinTerm`]).
//!
//! What is held is handed on as plain values and made a value with a destructor last (ADR 0014). A
//! hold that went through memory on its way would cost twice as much: it is written word by word
//! and read in larger pieces at once, for which the processor waits.

use super::pinned::Start;
use super::{Gup, GupFlags, LongSegment, Look, PinnedRange, ShortSegment, known_span};
use crate::ledger::Agent;
use crate::level::{Level, PAGE_BYTES};
use crate::longterm::{LongtermPin, RawLongterm};
use crate::mm::Mm;
use crate::page_table::span::{Reach, ReachWord};
use crate::page_table::walk::{Epoch, FoundLeaf};
use crate::pfn::{MAX_RUN_PAGES, PfnRange};
use crate::pin::{ClientSide, FoundLife, Lane, LaneParts, Pin, RawPin};

/// How often the fast path starts again when the page table moves under it.
const MAX_FAST_TRIES: usize = 4;

/// What to hold.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// From which address on.
    pub address: u64,
    /// How many pages.
    pub nr_pages: u64,
    /// How.
    pub flags: GupFlags,
}

impl Ask {
    /// The first page.
    #[inline(always)]
    const fn page(self) -> u64 {
        self.address / PAGE_BYTES
    }

    /// The frames that are asked for, if the leaf maps them all and allows it.
    #[inline(always)]
    fn run_in(self, found: &FoundLeaf<'_>) -> Option<PfnRange> {
        let is_held = self.nr_pages != 0 && self.nr_pages <= found.pages_from(self.page());
        (is_held && self.flags.allow(found.leaf.flags()))
            .then(|| PfnRange::inside(found.frame_of(self.page()), self.nr_pages))
    }
}

/// Held pages of one segment, not yet a range. The frames stay held; the parts must become a range,
/// or they are held until the client ends.
#[derive(Debug)]
#[must_use = "parts that become no range hold the frames until the client ends"]
pub struct SegmentParts<'a, S: ClientSide> {
    start: Start,
    hold: RawHold<'a, S>,
}

#[derive(Debug)]
enum RawHold<'a, S: ClientSide> {
    Short(RawPin<'a, S>),
    Long(RawLongterm<'a, S>),
}

impl<'a, S: ClientSide> SegmentParts<'a, S> {
    /// The range of `mm`, in which the pages were held.
    #[inline(always)]
    pub fn into_range(self, mm: &'a Mm, is_for_writing: bool) -> PinnedRange<'a, S> {
        let start = self.start;
        let segment = match self.hold {
            RawHold::Short(raw) => ShortSegment { start, pin: Pin::of(raw) }.into(),
            RawHold::Long(raw) => LongSegment { start, pin: LongtermPin::of(raw) }.into(),
        };
        PinnedRange::one(mm, segment, is_for_writing)
    }
}

impl<'a, S: ClientSide> Gup<'_, 'a, S> {
    /// All of the pages; `None` if the slow path is needed.
    #[inline(always)]
    pub(super) fn pin_fast(&self, ask: Ask) -> Option<PinnedRange<'a, S>> {
        let is_for_writing = ask.flags.contains(GupFlags::WRITE);
        Some(self.parts(ask)?.into_range(self.mm, is_for_writing))
    }

    /// Both terms are written out: one `Option` that holds what either way gave would go through
    /// memory, and cost 8 ns of 18.
    #[inline(always)]
    fn parts(&self, ask: Ask) -> Option<SegmentParts<'a, S>> {
        let Ask { address, nr_pages, flags } = ask;
        let (level, hold) = if flags.contains(GupFlags::LONGTERM) {
            if !flags.is_valid() {
                return None;
            }
            let (level, raw) = match self.hold_in_one_leaf::<Long>(ask) {
                Some(held) => held,
                None => self.hold_range::<Long>(address, nr_pages, flags)?,
            };
            (level, RawHold::Long(raw))
        } else {
            let (level, raw) = match self.hold_in_one_leaf::<Short>(ask) {
                Some(held) => held,
                None => self.hold_range::<Short>(address, nr_pages, flags)?,
            };
            (level, RawHold::Short(raw))
        };
        Some(SegmentParts { start: Start::new(address, level), hold })
    }

    /// [`pin`](Self::pin) on the fast path, in a lane that is taken for it and given to `put_back`
    /// as soon as it was used. `None` if that is not enough.
    #[inline(always)]
    pub fn pin_fast_in(
        mm: &'a Mm,
        lane: Lane<'a, S>,
        ask: Ask,
        put_back: impl FnOnce(LaneParts),
    ) -> Option<SegmentParts<'a, S>> {
        let parts = Gup::new(mm, &lane).and_then(|gup| gup.parts(ask));
        put_back(lane.into_parts());
        parts
    }

    /// As [`pin_fast_in`](Self::pin_fast_in) for pages of one leaf of 2 MiB for a short time and no
    /// more than that: little enough to be in line wherever a program pins.
    #[inline(always)]
    pub fn pin_fast_leaf_in(
        mm: &'a Mm,
        lane: Lane<'a, S>,
        ask: Ask,
        put_back: impl FnOnce(LaneParts),
    ) -> Option<SegmentParts<'a, S>> {
        let held = match Gup::new(mm, &lane) {
            Some(gup) if !ask.flags.contains(GupFlags::LONGTERM) => gup.hold_huge::<Short>(ask),
            _ => None,
        };
        put_back(lane.into_parts());
        let start = Start::new(ask.address, Level::Pmd);
        Some(SegmentParts { start, hold: RawHold::Short(held?) })
    }
}

/// Pages of one leaf: the least work that pins anything by address.
impl<'a, S: ClientSide> Gup<'_, 'a, S> {
    /// Holds `nr_pages` pages from `address` on that lie in one leaf, for a short time, without
    /// taking a lock: the least work that pins anything. `None` if that cannot be done at once, or
    /// `flags` has LONGTERM; then call [`pin`](Self::pin).
    #[inline(always)]
    #[must_use]
    pub fn fast_leaf(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<ShortSegment<'a, S>> {
        if flags.contains(GupFlags::LONGTERM) {
            return None;
        }
        let (level, raw) = self.hold_leaf::<Short>(Ask { address, nr_pages, flags })?;
        Some(ShortSegment { start: Start::new(address, level), pin: Pin::of(raw) })
    }

    /// As [`fast_leaf`](Self::fast_leaf), long-term: `None` if the life word does not allow it
    /// without being asked, or `flags` has GET or P2PDMA.
    #[inline(always)]
    #[must_use]
    pub fn fast_leaf_long(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<LongSegment<'a, S>> {
        let flags = flags.with(GupFlags::LONGTERM);
        if !flags.is_valid() {
            return None;
        }
        let (level, raw) = self.hold_leaf::<Long>(Ask { address, nr_pages, flags })?;
        Some(LongSegment { start: Start::new(address, level), pin: LongtermPin::of(raw) })
    }

    #[inline(always)]
    fn hold_leaf<T: PinTerm>(&self, ask: Ask) -> Option<(Level, T::Raw<'a, S>)> {
        match self.hold_in_one_leaf::<T>(ask) {
            Some(held) => Some(held),
            None => self.hold_by_full_walk::<T>(ask.address, ask.nr_pages, ask.flags),
        }
    }

    /// Holds pages of one leaf, in line, whatever its size.
    #[inline(always)]
    fn hold_in_one_leaf<T: PinTerm>(&self, ask: Ask) -> Option<(Level, T::Raw<'a, S>)> {
        if let Some(raw) = self.hold_huge::<T>(ask) {
            return Some((Level::Pmd, raw));
        }
        if let Some(raw) = self.hold_gigantic::<T>(ask) {
            return Some((Level::Pud, raw));
        }
        Some((Level::Pte, self.hold_small::<T>(ask)?))
    }

    /// Holds pages of one leaf of 2 MiB.
    #[inline(always)]
    fn hold_huge<T: PinTerm>(&self, ask: Ask) -> Option<T::Raw<'a, S>> {
        let found = self.mm.table.walk_huge(ask.page())?;
        self.hold_found::<T>(&found, ask)
    }

    /// Holds pages of one leaf of 1 GiB.
    #[inline(always)]
    fn hold_gigantic<T: PinTerm>(&self, ask: Ask) -> Option<T::Raw<'a, S>> {
        let found = self.mm.table.walk_gigantic(ask.page())?;
        self.hold_found::<T>(&found, ask)
    }

    /// Holds pages of a leaf whose entry is only ever used for this address: one of 2 MiB or
    /// 1 GiB.
    #[inline(always)]
    fn hold_found<T: PinTerm>(&self, found: &FoundLeaf<'a>, ask: Ask) -> Option<T::Raw<'a, S>> {
        let run = ask.run_in(found)?;
        let life = known_span::life_of(self.lane.last_life(), &self.mm.table, found)?;
        T::pin_if(self.lane, life, run, ask.flags.agent(), || found.is_unchanged())
    }

    /// Holds one page of a leaf of 4 KiB. Its table may be in another life, which the epoch tells.
    #[inline(always)]
    fn hold_small<T: PinTerm>(&self, ask: Ask) -> Option<T::Raw<'a, S>> {
        let table = &self.mm.table;
        let epoch = table.epoch();
        let found = table.walk_small(ask.page())?;
        let run = ask.run_in(&found)?;
        let life = known_span::life_of(self.lane.last_life(), table, &found)?;
        let is_as_seen = || found.is_unchanged() && table.epoch() == epoch;
        T::pin_if(self.lane, life, run, ask.flags.agent(), is_as_seen)
    }

    /// Holds pages of any leaf. Here and wherever a call is not in line, what is asked goes apart:
    /// three values go in registers, and one of their size through memory.
    #[inline(never)]
    fn hold_by_full_walk<T: PinTerm>(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<(Level, T::Raw<'a, S>)> {
        let ask = Ask { address, nr_pages, flags };
        let look: Look<'a> = self.look(ask.page(), ask.flags)?;
        let run = ask.run_in(&look.found)?;
        let (life, level) = (self.lane.find_life(look.life), look.found.level);
        let is_as_seen = || self.is_as_seen(&look);
        let raw = T::pin_run_if(self.lane, life, run, level, ask.flags.agent(), is_as_seen)?;
        Some((level, raw))
    }
}

/// A range from a leaf of 2 MiB on, before it is held.
struct Candidate<'a, 'p, S: ClientSide + 'p> {
    epoch: Epoch,
    found: FoundLeaf<'a>,
    word: ReachWord<'a>,
    reach: Reach,
    run: PfnRange,
    life: FoundLife<'p, S>,
}

impl<'a, S: ClientSide> Gup<'_, 'a, S> {
    /// Holds the first contiguous range of at most `nr_pages` pages from `address` on, across
    /// leaves, for a short time, without taking a lock. `None` if that cannot be done, or `flags`
    /// has LONGTERM.
    #[inline(always)]
    #[must_use]
    pub fn fast_run(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<ShortSegment<'a, S>> {
        if flags.contains(GupFlags::LONGTERM) {
            return None;
        }
        let (level, raw) = self.hold_run::<Short>(Ask { address, nr_pages, flags })?;
        Some(ShortSegment { start: Start::new(address, level), pin: Pin::of(raw) })
    }

    /// As [`fast_run`](Self::fast_run), long-term.
    #[inline(always)]
    #[must_use]
    pub fn fast_run_long(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<LongSegment<'a, S>> {
        if !flags.is_valid() {
            return None;
        }
        let (level, raw) = self.hold_run::<Long>(Ask { address, nr_pages, flags })?;
        Some(LongSegment { start: Start::new(address, level), pin: LongtermPin::of(raw) })
    }

    #[inline(always)]
    fn hold_run<T: PinTerm>(&self, ask: Ask) -> Option<(Level, T::Raw<'a, S>)> {
        if let Some(candidate) = self.candidate(ask)
            && let Some(raw) = self.hold_seen::<T>(&candidate, ask)
        {
            return Some((candidate.found.level, raw));
        }
        self.hold_run_with_retries::<T>(ask.address, ask.nr_pages, ask.flags)
    }

    /// Holds all of the pages in leaves of one span, from one of 2 MiB on.
    #[inline(never)]
    fn hold_range<T: PinTerm>(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<(Level, T::Raw<'a, S>)> {
        let ask = Ask { address, nr_pages, flags };
        let candidate = self.candidate(ask).filter(|found| found.run.nr_pages() == nr_pages)?;
        let raw = self.hold_seen::<T>(&candidate, ask)?;
        Some((candidate.found.level, raw))
    }

    #[inline(always)]
    fn hold_seen<T: PinTerm>(
        &self,
        candidate: &Candidate<'a, 'a, S>,
        ask: Ask,
    ) -> Option<T::Raw<'a, S>> {
        T::pin_if(self.lane, candidate.life, candidate.run, ask.flags.agent(), || {
            candidate.found.is_unchanged()
                && candidate.word.read() == candidate.reach
                && self.mm.table.epoch() == candidate.epoch
        })
    }

    /// Holds the first contiguous range of the pages from any leaf on, again a few times if the
    /// page table moves.
    #[inline(never)]
    fn hold_run_with_retries<T: PinTerm>(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<(Level, T::Raw<'a, S>)> {
        if nr_pages == 0 {
            return None;
        }
        let page = address / PAGE_BYTES;
        for _ in 0..MAX_FAST_TRIES {
            let epoch = self.mm.table.epoch();
            let Some((look, run)) = self.look_run(page, nr_pages, flags) else {
                // A table page that was reused meanwhile may lack what the walk looked for.
                if self.mm.table.epoch() == epoch { return None } else { continue }
            };
            let (life, level) = (self.lane.find_life(look.life), look.found.level);
            // The epoch last: until it is looked at the span may cover the same pages in another
            // life.
            let is_as_seen = || self.is_reach_as_seen(&look) && self.is_as_seen(&look);
            match T::pin_run_if(self.lane, life, run, level, flags.agent(), is_as_seen) {
                Some(held) => return Some((level, held)),
                None if is_as_seen() => return None,
                None => {}
            }
        }
        None
    }

    /// What the page table says of the pages as far as they go on evenly, where a leaf of 2 MiB
    /// maps the first.
    #[inline(always)]
    fn candidate(&self, ask: Ask) -> Option<Candidate<'a, 'a, S>> {
        let (table, page) = (&self.mm.table, ask.page());
        let epoch = table.epoch();
        let found = table.walk_huge(page)?;
        if ask.nr_pages == 0 || !ask.flags.allow(found.leaf.flags()) {
            return None;
        }
        let life = known_span::life_of(self.lane.last_life(), table, &found)?;
        let word = table.reach_word(found.leaf)?;
        let reach = word.read();
        let most = found.pages_from(page).max(reach.from(page)).min(MAX_RUN_PAGES);
        let run = PfnRange::inside(found.frame_of(page), ask.nr_pages.min(most));
        Some(Candidate { epoch, found, word, reach, run, life })
    }
}

/// For how long pages are held. The values are plain until they are handed to the caller.
trait PinTerm {
    /// A hold that has no destructor yet.
    type Raw<'a, S: ClientSide + 'a>;

    /// Pins, if that takes a slot and no more. `is_still_so` is asked last.
    fn pin_if<'a, S: ClientSide>(
        lane: &Lane<'a, S>,
        life: FoundLife<'a, S>,
        run: PfnRange,
        agent: Agent,
        is_still_so: impl FnOnce() -> bool,
    ) -> Option<Self::Raw<'a, S>>;

    /// Pins as far as that goes without a lock. `head_level` is the size of the first leaf.
    #[inline]
    fn pin_run_if<'a, S: ClientSide>(
        lane: &Lane<'a, S>,
        life: FoundLife<'a, S>,
        run: PfnRange,
        _head_level: Level,
        agent: Agent,
        is_still_so: impl Fn() -> bool,
    ) -> Option<Self::Raw<'a, S>> {
        Self::pin_if(lane, life, run, agent, is_still_so)
    }
}

/// For a short time: a slot in the lane.
enum Short {}

impl PinTerm for Short {
    type Raw<'a, S: ClientSide + 'a> = RawPin<'a, S>;

    #[inline(always)]
    fn pin_if<'a, S: ClientSide>(
        lane: &Lane<'a, S>,
        life: FoundLife<'a, S>,
        run: PfnRange,
        agent: Agent,
        is_still_so: impl FnOnce() -> bool,
    ) -> Option<RawPin<'a, S>> {
        lane.pin_if(life, run, agent, is_still_so)
    }
}

/// Long-term: a slot where one is free, else a count per folio.
enum Long {}

impl PinTerm for Long {
    type Raw<'a, S: ClientSide + 'a> = RawLongterm<'a, S>;

    #[inline(always)]
    fn pin_if<'a, S: ClientSide>(
        lane: &Lane<'a, S>,
        life: FoundLife<'a, S>,
        run: PfnRange,
        agent: Agent,
        is_still_so: impl FnOnce() -> bool,
    ) -> Option<RawLongterm<'a, S>> {
        lane.pin_longterm_slot_if(life, run, agent, is_still_so)
    }

    #[inline]
    fn pin_run_if<'a, S: ClientSide>(
        lane: &Lane<'a, S>,
        life: FoundLife<'a, S>,
        run: PfnRange,
        head_level: Level,
        agent: Agent,
        is_still_so: impl Fn() -> bool,
    ) -> Option<RawLongterm<'a, S>> {
        lane.pin_longterm_if(life, run, head_level, agent, is_still_so)
    }
}
