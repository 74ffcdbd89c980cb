//! Spans: ranges of addresses that map one extent evenly.
//!
//! A leaf says which frame; its span says which extent the frame belongs to, where the life word of
//! that extent lies and what it must be, and for how many pages on from here address and frame
//! rise together under the same permissions. So a pin of a gigabyte that is mapped by 512 leaves of
//! one extent reads one leaf and one span, and publishes one slot.
//!
//! # States
//!
//! ```text
//!   unused ── take ──▶ in use (leaves name it) ── last leaf gone ──▶ retired
//!   retired ── epoch moves ──▶ unused
//!                         │  ▲
//!                 reach cut  reach extended
//! ```
//!
//! # Who may touch what
//!
//! Readers load the three words of a span. The holder of the address space's lock has the
//! [`SpanPool`] and alone stores them.
//!
//! # Orderings
//!
//! `life` and `index` are stored with Release before the first leaf that names the span,
//! and not again until the span was retired and the epoch has moved. `reach` covers pages only
//! while all their leaves are in place: the writer stores leaves, then extends `reach`; it cuts
//! `reach`, then takes leaves away.
//!
//! # Lost races
//!
//! *Long read against a cut.* If the reader's second look at `reach` comes first, all the leaves it
//! skipped were in place when it looked first: what it holds was mapped during the call. If the cut
//! comes first the second look differs, and the reader starts again.
//!
//! *Read against reuse of the span* is explained in [`page_table`](super).
//!
//! # Differs from Linux
//!
//! The kernel has no such record: GUP-fast walks every leaf (Linux 7.1: mm/gup.c,
//! gup_fast_pmd_range).

use std::sync::OnceLock;

use super::entry::{LeafFlags, SPAN_BITS, SpanId};
use crate::descriptor::Descriptor;
use crate::extent::Extent;
use crate::pfn::{MAX_RUN_PAGES, RUN_BITS};
use crate::sync::{AtomicU64, Ordering};
use crate::vmemmap::{LifeWord, VmemmapLayout};

/// A span's number is the number of its chunk and its place there, so that it is found by a shift.
const PLACE_BITS: u32 = 19;
const NR_CHUNKS: usize = 1 << (SPAN_BITS - PLACE_BITS);
/// Spans in the first chunk; each further chunk has twice as many, as far as places go.
const FIRST_CHUNK_BITS: u32 = if cfg!(loom) { 2 } else { 6 };
/// Retired spans that are collected before the epoch moves and they may be used again.
pub(super) const RETIRED_SPANS: usize = if cfg!(loom) { 1 } else { 1024 };

const RUN_MASK: u64 = (1 << RUN_BITS) - 1;
/// Set in a `reach` word that covers something.
const REACH_SET: u64 = 1 << 63;

/// The two words that every pin needs side by side, so that they share a cache line.
#[derive(Debug)]
struct SpanLife {
    /// What the extent's life word must be.
    life: AtomicU64,
    /// Which word of the descriptors it is.
    index: AtomicU64,
}

#[derive(Debug)]
struct SpanChunk {
    lives: Box<[SpanLife]>,
    /// The pages that each covers; long runs and slow paths read it.
    reach: Box<[AtomicU64]>,
}

impl SpanChunk {
    fn new(nr_spans: usize) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            lives: (0..nr_spans).map(|_| SpanLife { life: zero(), index: zero() }).collect(),
            reach: (0..nr_spans).map(|_| zero()).collect(),
        }
    }
}

/// Spans of a chunk.
const fn chunk_spans(chunk: usize) -> usize {
    let bits = FIRST_CHUNK_BITS as usize + chunk;
    1 << if bits < PLACE_BITS as usize { bits } else { PLACE_BITS as usize }
}

/// The pages that a span covers without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reach(u64);

impl Reach {
    const NONE: Self = Self(0);

    fn over(page: u64, nr_pages: u64) -> Self {
        if nr_pages == 0 {
            return Self::NONE;
        }
        Self(REACH_SET | (page << RUN_BITS) | (nr_pages - 1))
    }

    /// First page number covered.
    #[inline]
    pub(super) const fn first(self) -> u64 {
        (self.0 & !REACH_SET) >> RUN_BITS
    }

    #[inline]
    pub(super) const fn nr_pages(self) -> u64 {
        if self.0 == 0 { 0 } else { (self.0 & RUN_MASK) + 1 }
    }

    /// The page after the last one covered.
    #[inline]
    pub(super) const fn end(self) -> u64 {
        self.first() + self.nr_pages()
    }

    /// How many pages from `page` on are covered; 0 when `page` is not.
    #[inline]
    pub(crate) const fn from(self, page: u64) -> u64 {
        if page >= self.first() && page < self.end() { self.end() - page } else { 0 }
    }
}

/// Where a span's reach is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReachWord<'t>(&'t AtomicU64);

impl ReachWord<'_> {
    /// The reach now.
    #[inline(always)]
    pub(crate) fn read(self) -> Reach {
        // Acquire: pairs with Release in `set_reach`; data: the leaves covered, and the epoch.
        Reach(self.0.load(Ordering::Acquire))
    }
}

/// The words of all spans of one address space.
#[derive(Debug)]
pub(super) struct Spans {
    chunks: [OnceLock<SpanChunk>; NR_CHUNKS],
    /// Where the pool's life words lie.
    vmemmap: VmemmapLayout,
}

impl Spans {
    pub(super) fn new(vmemmap: VmemmapLayout) -> Self {
        Self { chunks: std::array::from_fn(|_| OnceLock::new()), vmemmap }
    }

    pub(super) const fn vmemmap(&self) -> &VmemmapLayout {
        &self.vmemmap
    }

    /// Chunk and place in it.
    #[inline(always)]
    const fn locate(span: SpanId) -> (usize, usize) {
        ((span.0 >> PLACE_BITS) as usize, (span.0 & ((1 << PLACE_BITS) - 1)) as usize)
    }

    #[inline]
    fn stored_reach(&self, span: SpanId) -> Option<&AtomicU64> {
        let (chunk, at) = Self::locate(span);
        self.chunks.get(chunk)?.get()?.reach.get(at)
    }

    /// Where the life word of the span's extent lies and what it must be; `None` if there never was
    /// such a span.
    #[inline(always)]
    pub(super) fn life(&self, span: SpanId) -> Option<LifeWord> {
        let (chunk, at) = Self::locate(span);
        let held = self.chunks.get(chunk)?.get()?.lives.get(at)?;
        // Acquire, both: pairs with Release in `describe`; data: the epoch, which the reader loads
        // once more after these.
        let expected = Descriptor::from_bits(held.life.load(Ordering::Acquire));
        let index = held.index.load(Ordering::Acquire) as usize;
        Some(LifeWord { index, expected })
    }

    /// The pages that the span covers.
    #[inline]
    pub(super) fn reach(&self, span: SpanId) -> Reach {
        self.reach_word(span).map_or(Reach::NONE, ReachWord::read)
    }

    /// Where it is written how many pages the span covers, to be read more than once.
    #[inline]
    pub(super) fn reach_word(&self, span: SpanId) -> Option<ReachWord<'_>> {
        self.stored_reach(span).map(ReachWord)
    }

    fn describe(&self, span: SpanId, extent: &Extent) -> Option<()> {
        let index = self.vmemmap.index(extent.head_level, extent.first())?;
        let (chunk, at) = Self::locate(span);
        let nr_spans = chunk_spans(chunk);
        let chunk = self.chunks.get(chunk)?.get_or_init(|| SpanChunk::new(nr_spans));
        let held = chunk.lives.get(at)?;
        // Release, all: pairs with Acquire in `life`; data: the epoch that moved before.
        held.life.store(extent.life.bits(), Ordering::Release);
        held.index.store(index as u64, Ordering::Release);
        Some(())
    }

    fn set_reach(&self, span: SpanId, reach: Reach) {
        if let Some(stored) = self.stored_reach(span) {
            // Release: pairs with Acquire in `reach`; data: the leaves covered, and the epoch.
            stored.store(reach.0, Ordering::Release);
        }
    }
}

/// What the writer knows of a span.
#[derive(Clone, Copy, Debug)]
pub(super) struct SpanState {
    pub(super) extent: Extent,
    pub(super) flags: LeafFlags,
    /// Page number minus frame number, wrapping: the same all over the span.
    pub(super) page_less_pfn: u64,
    pub(super) reach: Reach,
    /// Pages mapped by leaves that name the span, inside and outside `reach`.
    pub(super) nr_pages: u64,
    /// Neighbours in the reverse map's list.
    pub(super) links: Links,
}

/// Places in a doubly linked list of spans.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Links {
    pub(super) next: Option<SpanId>,
    pub(super) previous: Option<SpanId>,
}

/// Which spans are in use, and what they say. Belongs to the holder of the address space's lock.
#[derive(Debug, Default)]
pub(super) struct SpanPool {
    /// By chunk and place; the last chunk grows.
    states: Vec<Vec<Option<SpanState>>>,
    unused: Vec<SpanId>,
    retired: Vec<SpanId>,
    nr_in_use: usize,
}

impl SpanPool {
    /// A new span of `extent` that covers nothing yet; `None` if all are in use, or the extent is
    /// not of the pool.
    pub(super) fn take(
        &mut self,
        spans: &Spans,
        extent: &Extent,
        flags: LeafFlags,
        page_less_pfn: u64,
    ) -> Option<SpanId> {
        let span = match self.unused.pop() {
            Some(span) => span,
            None => self.grow()?,
        };
        if spans.describe(span, extent).is_none() {
            self.unused.push(span);
            return None;
        }
        *self.state_mut(span)? = Some(SpanState {
            extent: *extent,
            flags,
            page_less_pfn,
            reach: Reach::NONE,
            nr_pages: 0,
            links: Links::default(),
        });
        self.nr_in_use += 1;
        Some(span)
    }

    /// A span that was never in use; `None` if there is none left.
    fn grow(&mut self) -> Option<SpanId> {
        let is_full =
            self.states.last().is_none_or(|last| last.len() == chunk_spans(self.states.len() - 1));
        if is_full {
            if self.states.len() == NR_CHUNKS {
                return None;
            }
            self.states.push(Vec::new());
        }
        let chunk = self.states.len() - 1;
        let last = self.states.last_mut()?;
        let span = SpanId(((chunk << PLACE_BITS) | last.len()) as u32);
        last.push(None);
        Some(span)
    }

    fn state_mut(&mut self, span: SpanId) -> Option<&mut Option<SpanState>> {
        let (chunk, at) = Spans::locate(span);
        self.states.get_mut(chunk)?.get_mut(at)
    }

    pub(super) fn get(&self, span: SpanId) -> Option<&SpanState> {
        let (chunk, at) = Spans::locate(span);
        self.states.get(chunk)?.get(at)?.as_ref()
    }

    /// Every span in use.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SpanId, &SpanState)> {
        self.states.iter().enumerate().flat_map(|(chunk, states)| {
            states.iter().enumerate().filter_map(move |(at, state)| {
                Some((SpanId(((chunk << PLACE_BITS) | at) as u32), state.as_ref()?))
            })
        })
    }

    pub(super) fn get_mut(&mut self, span: SpanId) -> Option<&mut SpanState> {
        self.state_mut(span)?.as_mut()
    }

    /// Sets what the span covers, for the writer and for readers.
    pub(super) fn cover(&mut self, spans: &Spans, span: SpanId, page: u64, nr_pages: u64) {
        // A reach is an extent's run at most, so its length always fits.
        let reach = Reach::over(page, nr_pages.min(MAX_RUN_PAGES));
        if let Some(state) = self.get_mut(span)
            && state.reach != reach
        {
            state.reach = reach;
            spans.set_reach(span, reach);
        }
    }

    /// Takes what lies in `from..to` out of the span's reach, and keeps the larger rest. Returns
    /// the smaller rest, first and end page, which no reach covers now.
    pub(super) fn cut(
        &mut self,
        spans: &Spans,
        span: SpanId,
        from: u64,
        to: u64,
    ) -> Option<(u64, u64)> {
        let reach = self.get(span)?.reach;
        let (first, end) = (reach.first(), reach.end());
        if reach == Reach::NONE || to <= first || from >= end {
            return None;
        }
        let before = (first, from.max(first));
        let after = (to.min(end), end);
        let (kept, lost) = if before.1 - before.0 >= after.1 - after.0 {
            (before, after)
        } else {
            (after, before)
        };
        self.cover(spans, span, kept.0, kept.1 - kept.0);
        (lost.1 > lost.0).then_some(lost)
    }

    /// Notes that no leaf names the span any more.
    pub(super) fn retire(&mut self, spans: &Spans, span: SpanId) {
        self.cover(spans, span, 0, 0);
        if let Some(state) = self.state_mut(span) {
            *state = None;
            self.retired.push(span);
            self.nr_in_use -= 1;
        }
    }

    /// Whether enough spans are retired, and are needed, to be worth moving the epoch.
    pub(super) fn wants_epoch(&self) -> bool {
        self.unused.is_empty() && self.retired.len() >= RETIRED_SPANS
    }

    /// The epoch has moved: no reader takes a retired span for what it was.
    pub(super) fn epoch_moved(&mut self) {
        self.unused.append(&mut self.retired);
    }

    /// Spans in use.
    pub(super) const fn nr_in_use(&self) -> usize {
        self.nr_in_use
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::{FolioFlags, FolioState};
    use crate::level::Level;
    use crate::pfn::PfnRange;
    use crate::stamp::Stamp;

    fn layout() -> VmemmapLayout {
        VmemmapLayout::for_pages(1 << 36).unwrap()
    }

    fn extent(first: u64, nr_pages: u64) -> Extent {
        let life = Descriptor::new(FolioState::Live, FolioFlags::WRITABLE, Stamp::new(7).unwrap());
        Extent::new(PfnRange::new(first, nr_pages).unwrap(), Level::Pte, life).unwrap()
    }

    #[test]
    fn a_span_says_its_extent_up_to_the_longest_and_last() {
        let (spans, mut pool) = (Spans::new(layout()), SpanPool::default());
        for extent in [extent(0, MAX_RUN_PAGES), extent((1 << 36) - 1, 1), extent(77, 1000)] {
            let span = pool.take(&spans, &extent, LeafFlags::NONE, 0).unwrap();
            assert_eq!(pool.get(span).map(|state| state.extent), Some(extent));
            let index = layout().index(Level::Pte, extent.first()).unwrap();
            assert_eq!(spans.life(span), Some(LifeWord { index, expected: extent.life }));
        }
    }

    #[test]
    fn every_span_has_a_place_of_its_own() {
        let (spans, mut pool) = (Spans::new(layout()), SpanPool::default());
        for number in 0..1000 {
            let span = pool.take(&spans, &extent(number, 1), LeafFlags::NONE, 0).unwrap();
            assert!(span.0 < 1 << SPAN_BITS);
            pool.get_mut(span).unwrap().nr_pages = number;
        }
        assert_eq!(pool.nr_in_use(), 1000);
        let mut numbers: Vec<u64> =
            pool.states.iter().flatten().flatten().map(|state| state.nr_pages).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..1000));
    }

    #[test]
    fn a_cut_keeps_the_larger_rest() {
        let (spans, mut pool) = (Spans::new(layout()), SpanPool::default());
        let span = pool.take(&spans, &extent(0, 100), LeafFlags::NONE, 50).unwrap();
        pool.cover(&spans, span, 50, 100);
        assert_eq!(pool.cut(&spans, span, 200, 300), None);
        assert_eq!(pool.cut(&spans, span, 60, 70), Some((50, 60)));
        assert_eq!((spans.reach(span).from(70), spans.reach(span).from(69)), (80, 0));
        assert_eq!(pool.cut(&spans, span, 140, 150), None);
        assert_eq!(spans.reach(span).from(139), 1);
        assert_eq!(pool.cut(&spans, span, 0, 1000), None);
        assert_eq!(spans.reach(span), Reach::NONE);
    }

    #[test]
    fn a_retired_span_waits_for_the_epoch() {
        let (spans, mut pool) = (Spans::new(layout()), SpanPool::default());
        let span = pool.take(&spans, &extent(0, 1), LeafFlags::NONE, 0).unwrap();
        pool.retire(&spans, span);
        assert_ne!(pool.take(&spans, &extent(1, 1), LeafFlags::NONE, 0), Some(span));
        let index = layout().index(Level::Pte, extent(0, 1).first());
        assert_eq!(spans.life(span).map(|life| life.index), index, "a late reader's view");
        pool.epoch_moved();
        assert_eq!(pool.take(&spans, &extent(2, 1), LeafFlags::NONE, 0), Some(span));
    }
}
