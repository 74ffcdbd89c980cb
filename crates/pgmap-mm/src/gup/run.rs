//! Holding a stretch of pages across leaves: one hold for all that a span covers.

use super::pinned::Start;
use super::{Gup, GupFlags, LongSegment, ShortSegment};
use crate::level::{Level, PAGE_BYTES};
use crate::longterm::{LongtermPin, RawLongterm};
use crate::page_table::span::{Reach, ReachWord};
use crate::page_table::walk::{Epoch, Found};
use crate::pfn::{MAX_RUN_PAGES, PfnRange};
use crate::pin::{ClientSide, Life, Pin, RawPin};

/// How often the fast path starts again when the page table moves under it.
const MAX_FAST_TRIES: usize = 4;

/// A stretch from a leaf of 2 MiB on, before it is held.
struct Stretch<'a, 'p, S: ClientSide + 'p> {
    epoch: Epoch,
    found: Found<'a>,
    word: ReachWord<'a>,
    reach: Reach,
    run: PfnRange,
    life: Life<'p, S>,
}

impl<'a, S: ClientSide> Gup<'_, 'a, S> {
    /// Holds the first contiguous stretch of at most `nr_pages` pages from `address` on, across
    /// leaves, for a short time, without taking a lock. None where that cannot be done, or `flags`
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
        if let Some(stretch) = self.stretch(address, nr_pages, flags)
            && let Some(raw) = self.lane.pin_if(stretch.life, stretch.run, flags.agent(), || {
                self.is_stretch_as_seen(&stretch)
            })
        {
            let start = Start::new(address, stretch.found.level);
            return Some(ShortSegment { start, pin: Pin::of(raw) });
        }
        self.fast_run_elsewhere(address, nr_pages, flags)
    }

    /// Holds all of the pages in leaves of one span, from one of 2 MiB on.
    #[inline(never)]
    pub(super) fn hold_stretch(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<(Level, RawPin<'a, S>)> {
        let stretch = self.whole_stretch(address, nr_pages, flags)?;
        let is_as_seen = || self.is_stretch_as_seen(&stretch);
        let raw = self.lane.pin_if(stretch.life, stretch.run, flags.agent(), is_as_seen)?;
        Some((stretch.found.level, raw))
    }

    /// As [`hold_stretch`](Self::hold_stretch), for long.
    #[inline(never)]
    pub(super) fn hold_stretch_long(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<(Level, RawLongterm<'a, S>)> {
        let stretch = self.whole_stretch(address, nr_pages, flags)?;
        let (run, agent) = (stretch.run, flags.agent());
        let is_as_seen = || self.is_stretch_as_seen(&stretch);
        let raw = self.lane.pin_longterm_slot_if(stretch.life, run, agent, is_as_seen)?;
        Some((stretch.found.level, raw))
    }

    #[inline(always)]
    fn whole_stretch(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<Stretch<'a, 'a, S>> {
        self.stretch(address, nr_pages, flags).filter(|stretch| stretch.run.nr_pages() == nr_pages)
    }

    /// [`fast_run`](Self::fast_run) from any leaf on, and again if the page table moves.
    #[inline(never)]
    fn fast_run_elsewhere(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<ShortSegment<'a, S>> {
        let (level, raw) =
            self.in_tries(address, nr_pages, flags, |life, run, _, is_as_seen| {
                self.lane.pin_if(life, run, flags.agent(), is_as_seen)
            })?;
        Some(ShortSegment { start: Start::new(address, level), pin: Pin::of(raw) })
    }

    /// Has the first stretch from `address` on held by `hold`, which is given the life word, the frames,
    /// the size of the first leaf, and whether the page table still says so; again a few times if the
    /// page table moves.
    #[inline]
    fn in_tries<H>(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
        hold: impl Fn(Life<'a, S>, PfnRange, Level, &dyn Fn() -> bool) -> Option<H>,
    ) -> Option<(Level, H)> {
        if nr_pages == 0 {
            return None;
        }
        let page = address / PAGE_BYTES;
        for _ in 0..MAX_FAST_TRIES {
            let epoch = self.mm.table.epoch();
            let Some((look, run)) = self.look_far(page, nr_pages, flags) else {
                // A table page that was reused meanwhile may lack what the walk looked for.
                if self.mm.table.epoch() == epoch { return None } else { continue }
            };
            let (life, level) = (self.lane.find_life(look.life), look.found.level);
            let is_as_seen = || self.is_as_seen(&look) && self.is_reach_as_seen(&look);
            match hold(life, run, level, &is_as_seen) {
                Some(held) => return Some((level, held)),
                None if is_as_seen() => return None,
                None => {}
            }
        }
        None
    }

    /// As [`fast_run`](Self::fast_run), for long.
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
        if let Some(stretch) = self.stretch(address, nr_pages, flags) {
            let (run, level, agent) = (stretch.run, stretch.found.level, flags.agent());
            let is_as_seen = || self.is_stretch_as_seen(&stretch);
            if let Some(raw) = self.lane.pin_longterm_slot_if(stretch.life, run, agent, is_as_seen)
            {
                let pin = LongtermPin::of(raw);
                return Some(LongSegment { start: Start::new(address, level), pin });
            }
        }
        self.fast_run_long_elsewhere(address, nr_pages, flags)
    }

    #[inline(never)]
    fn fast_run_long_elsewhere(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<LongSegment<'a, S>> {
        let (level, raw) =
            self.in_tries(address, nr_pages, flags, |life, run, level, is_as_seen| {
                self.lane.pin_longterm_if(life, run, level, flags.agent(), is_as_seen)
            })?;
        Some(LongSegment { start: Start::new(address, level), pin: LongtermPin::of(raw) })
    }

    /// What the page table says of the pages from `address` on as far as they are wanted and go on
    /// evenly, where a leaf of 2 MiB maps the first.
    #[inline(always)]
    fn stretch(&self, address: u64, nr_pages: u64, flags: GupFlags) -> Option<Stretch<'a, 'a, S>> {
        let (table, page) = (&self.mm.table, address / PAGE_BYTES);
        let epoch = table.epoch();
        let found = table.walk_huge(page)?;
        if nr_pages == 0 || !flags.allow(found.leaf.flags()) {
            return None;
        }
        let life = self.lane.known_span().life_of(table, &found)?;
        let word = table.reach_word(found.leaf)?;
        let reach = word.read();
        let most = found.pages_from(page).max(reach.from(page)).min(MAX_RUN_PAGES);
        let run = PfnRange::inside(found.frame_of(page), nr_pages.min(most));
        Some(Stretch { epoch, found, word, reach, run, life })
    }

    #[inline(always)]
    fn is_stretch_as_seen(&self, stretch: &Stretch<'_, '_, S>) -> bool {
        stretch.found.is_unchanged()
            && stretch.word.read() == stretch.reach
            && self.mm.table.epoch() == stretch.epoch
    }
}
