//! The descriptor arrays: one flat, sparse array of words per level.
//!
//! A folio is described by one word at its own level, so a 1 GiB folio costs one word at level 2
//! and the words below it do not exist. The arrays lie largest level first in one shared object,
//! each starting on a page, so that the 512 words below one split folio are exactly one page that
//! can be given back when the folio is whole again.
//!
//! # Who may touch what
//!
//! The owner stores (I2); everybody loads.
//!
//! # Orderings
//!
//! Release store by the owner, Acquire load by a pinner: publishes the bytes that the writer put
//! into the folio, and the index entry written before. The drain's "store, then scan" is ordered by
//! the heavy barrier, not here.

use core::ops::Range;

use crate::descriptor::{Descriptor, FolioState};
use crate::extent::Extent;
use crate::level::{FANOUT, Level};
use crate::pfn::{PFN_BITS, Pfn, PfnRange};
use crate::sync::Ordering;
use crate::words::{ReadWords, WriteWords};

/// Words in one metadata page.
const PAGE_WORDS: usize = 512;

/// Where each level's array starts, for a pfn space of a given size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmemmapLayout {
    nr_pages: u64,
    start: [usize; 3],
    nr_words: usize,
    smallest: Level,
}

impl VmemmapLayout {
    /// The layout for `nr_pages` frames, rounded up to whole 1 GiB folios; `None` if that leaves
    /// the pfn space or this machine's address range, or is empty.
    #[must_use]
    pub fn for_pages(nr_pages: u64) -> Option<Self> {
        Self::for_folios(nr_pages, Level::Pte)
    }

    /// As [`for_pages`](Self::for_pages), with room for folios of `smallest` level and larger only.
    /// No word of a lower level may be asked for then: there is none.
    #[must_use]
    pub fn for_folios(nr_pages: u64, smallest: Level) -> Option<Self> {
        let whole = nr_pages.checked_next_multiple_of(Level::Pud.nr_pages())?;
        if whole == 0 || whole > 1 << PFN_BITS {
            return None;
        }
        let words_of = |level: Level| -> Option<usize> {
            if level < smallest {
                return Some(0);
            }
            let words = usize::try_from(whole >> level.shift()).ok()?;
            words.checked_next_multiple_of(PAGE_WORDS)
        };
        let pud = 0;
        let pmd = words_of(Level::Pud)?;
        let pte = pmd + words_of(Level::Pmd)?;
        let nr_words = pte + words_of(Level::Pte)?;
        Some(Self { nr_pages: whole, start: [pte, pmd, pud], nr_words, smallest })
    }

    /// The smallest folio that there is room to describe.
    #[must_use]
    pub const fn smallest(&self) -> Level {
        self.smallest
    }

    /// Frames described, a multiple of 1 GiB.
    #[must_use]
    pub const fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// Words that the three arrays need.
    #[must_use]
    pub const fn nr_words(&self) -> usize {
        self.nr_words
    }

    /// Where the descriptor of the folio of `level` that contains `pfn` lies; `None` if the frame
    /// is not described.
    #[inline]
    #[must_use]
    pub fn index(&self, level: Level, pfn: Pfn) -> Option<usize> {
        (pfn.number() < self.nr_pages).then(|| self.index_unchecked(level, pfn.number()))
    }

    #[inline]
    fn index_unchecked(&self, level: Level, pfn: u64) -> usize {
        // The frame is described, so the folio number is below the array's length, a usize.
        self.start[level as usize] + (pfn >> level.shift()) as usize
    }

    /// Words that are read whatever is described: those of the largest folios.
    #[must_use]
    pub const fn always_used(&self) -> Range<usize> {
        0..self.start[Level::Pmd as usize]
    }

    /// The words for the folios of `level` in `run`, whole pages; `None` where there is no room for
    /// any.
    fn words_of(&self, level: Level, run: PfnRange) -> Option<Range<usize>> {
        let (first, last) = (run.start(), run.end() - 1);
        if level < self.smallest || last >= self.nr_pages {
            return None;
        }
        let (first, last) = (self.index_unchecked(level, first), self.index_unchecked(level, last));
        Some(first - first % PAGE_WORDS..(last + 1).next_multiple_of(PAGE_WORDS))
    }

    /// Whether all of `run` is described.
    #[must_use]
    pub const fn covers(&self, run: PfnRange) -> bool {
        run.end() <= self.nr_pages
    }

    /// The words one level below the folio of `level` that contains `pfn`.
    fn table_below(&self, level: Level, pfn: Pfn) -> Option<Range<usize>> {
        let below = level.below().filter(|&below| below >= self.smallest)?;
        let start = self.index(below, pfn.align_down(level))?;
        Some(start..start + FANOUT as usize)
    }
}

/// The descriptor arrays, in whatever memory the caller brought.
#[derive(Debug)]
pub struct Vmemmap<W> {
    layout: VmemmapLayout,
    words: W,
}

/// Where an extent's life word lies and what it must be.
///
/// The extent is the only way to one. A descriptor says Live in the midst of an extent, too, where
/// no drain changes it: a pin under such a word would be granted after the frames were freed.
///
/// ```compile_fail,E0599
/// # use pgmap_mm::{level::Level, pfn::Pfn, vmemmap::Vmemmap, words::HeapWords};
/// fn of_any_frame(vmemmap: &Vmemmap<HeapWords>, pfn: Pfn) {
///     let life = vmemmap.life_at(Level::Pmd, pfn);
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LifeWord {
    pub(crate) index: usize,
    pub(crate) expected: Descriptor,
}

impl LifeWord {
    /// The word that the holder was given.
    #[must_use]
    pub const fn expected(self) -> Descriptor {
        self.expected
    }

    /// The same word for a holder who was given `life` of its extent.
    #[inline]
    #[must_use]
    pub const fn with_expected(self, life: Descriptor) -> Self {
        Self { expected: life, ..self }
    }
}

impl<W: ReadWords> Vmemmap<W> {
    /// Puts the arrays into `words`; `None` if there are too few.
    #[must_use]
    pub fn new(layout: VmemmapLayout, words: W) -> Option<Self> {
        (words.nr_words() >= layout.nr_words()).then_some(Self { layout, words })
    }

    /// The layout.
    #[inline]
    #[must_use]
    pub const fn layout(&self) -> &VmemmapLayout {
        &self.layout
    }

    /// The descriptor at `level` for the folio that contains `pfn`. What lies at a level that does
    /// not describe the frame now is [`Descriptor::FREE`] or stale, never Live by accident.
    #[inline]
    #[must_use]
    pub fn load(&self, level: Level, pfn: Pfn) -> Option<Descriptor> {
        let index = self.layout.index(level, pfn)?;
        // Acquire: pairs with Release in `set`; data: the folio's bytes and its index entry.
        Some(Descriptor::from_bits(self.words.load(index, Ordering::Acquire)))
    }

    /// The life word of `extent`; `None` when its frames are not described.
    #[inline]
    #[must_use]
    pub fn life_of(&self, extent: &Extent) -> Option<LifeWord> {
        let index = self.layout.index(extent.head_level, extent.first())?;
        Some(LifeWord { index, expected: extent.life })
    }

    /// The word that `life` speaks of.
    #[inline(always)]
    pub(crate) fn word(&self, life: LifeWord) -> W::Word<'_> {
        self.words.word(life.index)
    }

    /// What `life` is now.
    #[inline]
    #[must_use]
    pub fn life_now(&self, life: LifeWord) -> Descriptor {
        // Acquire: pairs with Release in `set`; data: the folio's bytes.
        Descriptor::from_bits(self.words.load(life.index, Ordering::Acquire))
    }

    /// The folio that contains `pfn` now: its level and its descriptor, found from the top down.
    #[must_use]
    pub fn folio_of(&self, pfn: Pfn) -> Option<(Level, Descriptor)> {
        for level in [Level::Pud, Level::Pmd] {
            let word = self.load(level, pfn)?;
            if word.state() != FolioState::Split {
                return Some((level, word));
            }
        }
        Some((Level::Pte, self.load(Level::Pte, pfn)?))
    }

    /// The folios that overlap `run` now, in order: first frame, level and descriptor.
    pub fn folios(&self, run: PfnRange) -> impl Iterator<Item = (Pfn, Level, Descriptor)> + '_ {
        let mut at = run.start();
        std::iter::from_fn(move || {
            if at >= run.end() {
                return None;
            }
            let pfn = Pfn::new(at)?;
            let (level, word) = self.folio_of(pfn)?;
            let first = pfn.align_down(level);
            at = first.number() + level.nr_pages();
            Some((first, level, word))
        })
    }
}

impl<W: WriteWords> Vmemmap<W> {
    /// Writes the descriptor of the folio of `level` that contains `pfn`. Owner only. Frames that
    /// are not described are left alone.
    pub fn set(&self, level: Level, pfn: Pfn, word: Descriptor) {
        if let Some(index) = self.layout.index(level, pfn) {
            // Release: pairs with Acquire in `load` and `life_now`; data: the folio's bytes.
            self.words.store(index, word.bits(), Ordering::Release);
        }
    }

    /// Takes memory for the descriptors of `run` as folios of `most` and smaller ones, the largest
    /// that fit. Says whether there is some.
    #[must_use]
    pub fn reserve(&self, run: PfnRange, most: Level) -> bool {
        Level::ALL.into_iter().all(|level| {
            // Folios of this level lie at the edges that no larger one ends at, or everywhere.
            let parts = match level.above().filter(|&above| above <= most) {
                Some(above) => edges(run, above),
                None => [Some(run), None],
            };
            let words =
                parts.into_iter().flatten().filter_map(|part| self.layout.words_of(level, part));
            words.into_iter().all(|words| self.words.reserve(words))
        })
    }

    /// Takes memory for the descriptors that split the folio of `level` around `pfn`.
    #[must_use]
    pub fn reserve_below(&self, level: Level, pfn: Pfn) -> bool {
        self.layout.table_below(level, pfn).is_none_or(|table| self.words.reserve(table))
    }

    /// Gives back the metadata page below the folio of `level` that contains `pfn`. Owner only,
    /// and only once the folio's own word no longer says Split.
    pub fn discard_below(&self, level: Level, pfn: Pfn) {
        if let Some(table) = self.layout.table_below(level, pfn) {
            self.words.discard(table);
        }
    }
}

/// What of `run` lies before its first and behind its last whole folio of `level`.
fn edges(run: PfnRange, level: Level) -> [Option<PfnRange>; 2] {
    let size = level.nr_pages();
    let first = run.start().next_multiple_of(size);
    let last = run.end() - run.end() % size;
    if first >= last {
        return [Some(run), None];
    }
    [PfnRange::new(run.start(), first - run.start()), PfnRange::new(last, run.end() - last)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::HeapWords;

    #[test]
    fn arrays_start_on_pages_and_do_not_overlap() {
        let layout = VmemmapLayout::for_pages(3 * Level::Pud.nr_pages()).unwrap();
        let pfn = Pfn::new(3 * Level::Pud.nr_pages() - 1).unwrap();
        assert_eq!(layout.index(Level::Pud, pfn), Some(2));
        assert_eq!(layout.index(Level::Pmd, pfn), Some(512 + 3 * 512 - 1));
        assert_eq!(layout.index(Level::Pte, pfn), Some(layout.nr_words() - 1));
        assert_eq!(layout.index(Level::Pte, Pfn::new(layout.nr_pages()).unwrap()), None);
        assert!(VmemmapLayout::for_pages(0).is_none());
        assert!(VmemmapLayout::for_pages(u64::MAX).is_none());
    }

    #[test]
    fn what_is_too_small_to_be_described_has_no_room() {
        let nr_pages = 3 * Level::Pud.nr_pages();
        let words = |smallest| VmemmapLayout::for_folios(nr_pages, smallest).unwrap().nr_words();
        assert_eq!((words(Level::Pud), words(Level::Pmd)), (512, 512 + 3 * 512));
        let layout = VmemmapLayout::for_folios(nr_pages, Level::Pmd).unwrap();
        let all = VmemmapLayout::for_pages(nr_pages).unwrap();
        for level in [Level::Pmd, Level::Pud] {
            let pfn = Pfn::new(nr_pages - 1).unwrap();
            assert_eq!(layout.index(level, pfn), all.index(level, pfn), "the same places");
        }
        let vmemmap = Vmemmap::new(layout, HeapWords::new(layout.nr_words())).unwrap();
        vmemmap.discard_below(Level::Pmd, Pfn::new(0).unwrap());
    }

    #[test]
    fn an_untouched_space_is_free_at_the_largest_level() {
        let layout = VmemmapLayout::for_pages(1).unwrap();
        let vmemmap = Vmemmap::new(layout, HeapWords::new(layout.nr_words())).unwrap();
        let pfn = Pfn::new(77).unwrap();
        assert_eq!(vmemmap.folio_of(pfn), Some((Level::Pud, Descriptor::FREE)));
        vmemmap.set(Level::Pud, pfn, Descriptor::SPLIT);
        assert_eq!(vmemmap.folio_of(pfn), Some((Level::Pmd, Descriptor::FREE)));
    }
}
