//! Holding a range of pages across leaves: one hold for all that a span covers.

use super::fast::Ask;
use super::pinned::Start;
use super::term::{Long, PinTerm, Short};
use super::{Gup, GupFlags, LongSegment, ShortSegment};
use crate::level::{Level, PAGE_BYTES};
use crate::longterm::LongtermPin;
use crate::page_table::span::{Reach, ReachWord};
use crate::page_table::walk::{Epoch, Found};
use crate::pfn::{MAX_RUN_PAGES, PfnRange};
use crate::pin::{ClientSide, Life, Pin};

/// How often the fast path starts again when the page table moves under it.
const MAX_FAST_TRIES: usize = 4;

/// A range from a leaf of 2 MiB on, before it is held.
struct Candidate<'a, 'p, S: ClientSide + 'p> {
    epoch: Epoch,
    found: Found<'a>,
    word: ReachWord<'a>,
    reach: Reach,
    run: PfnRange,
    life: Life<'p, S>,
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
    pub(super) fn hold_range<T: PinTerm>(
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
            let Some((look, run)) = self.look_far(page, nr_pages, flags) else {
                // A table page that was reused meanwhile may lack what the walk looked for.
                if self.mm.table.epoch() == epoch { return None } else { continue }
            };
            let (life, level) = (self.lane.find_life(look.life), look.found.level);
            // The epoch last: until it is looked at the span may cover the same pages in another
            // life.
            let is_as_seen = || self.is_reach_as_seen(&look) && self.is_as_seen(&look);
            match T::pin_far_if(self.lane, life, run, level, flags.agent(), is_as_seen) {
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
        let life = self.lane.known_span().life_of(table, &found)?;
        let word = table.reach_word(found.leaf)?;
        let reach = word.read();
        let most = found.pages_from(page).max(reach.from(page)).min(MAX_RUN_PAGES);
        let run = PfnRange::inside(found.frame_of(page), ask.nr_pages.min(most));
        Some(Candidate { epoch, found, word, reach, run, life })
    }
}
