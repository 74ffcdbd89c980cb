//! altmap: the head of a pagemap's first range, kept for its own descriptors and catalog.
//!
//! Memory that describes a terabyte can lie on that terabyte. The head holds, in this order: frames
//! reserved for the driver, the descriptor arrays from the largest level down, the catalog. Its
//! frames have no folio and are never handed out.
//!
//! The arrays are as small as the folio sizes allow: one word per folio and nothing for its tails.
//! The kernel gives up its own deduplication as soon as an altmap is used (Linux 7.1:
//! include/linux/mm.h, `vmemmap_can_optimize`), so 1 TiB of 2 MiB folios costs 16 GiB of the device
//! there and 4 MiB here.
//!
//! # Differs from Linux
//!
//! The kernel's altmap hands out pages one after the other as the memmap asks for them and can run
//! out (Linux 7.1: mm/sparse-vmemmap.c, `altmap_alloc_block_buf`). Here the head's size follows
//! from the range and the smallest folio, exactly, before anything is written.

use crate::level::{Level, PAGE_BYTES};
use crate::pfn::PFN_BITS;

/// Descriptors in one metadata page.
const PAGE_WORDS: u64 = 512;

/// How a range's head is divided, in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Altmap {
    nr_pages: u64,
    smallest: Level,
    reserve_pages: u64,
    catalog_pages: u64,
    head_pages: u64,
}

impl Altmap {
    /// The head of a range of `nr_pages` frames whose folios are of `smallest` level or larger,
    /// with `reserve_pages` frames for the driver and `catalog_bytes` for the catalog. `None` if
    /// that leaves no frame, or the range is longer than a pfn space.
    #[must_use]
    pub fn for_range(
        nr_pages: u64,
        smallest: Level,
        reserve_pages: u64,
        catalog_bytes: u64,
    ) -> Option<Self> {
        if nr_pages > 1 << PFN_BITS || reserve_pages > nr_pages {
            return None;
        }
        let catalog_pages = catalog_bytes.div_ceil(PAGE_BYTES);
        let fixed_pages = reserve_pages.checked_add(catalog_pages)?;
        let is_enough = |head: u64| {
            head >= fixed_pages.saturating_add(descriptor_pages(nr_pages, head, smallest))
        };
        // A longer head leaves fewer frames to describe, so the least that is enough is found by
        // halving.
        let (mut too_short, mut enough) = (0, nr_pages);
        if is_enough(0) {
            enough = 0;
        }
        while enough - too_short > 1 {
            let middle = too_short + (enough - too_short) / 2;
            if is_enough(middle) { enough = middle } else { too_short = middle }
        }
        let head_pages = enough;
        (head_pages < nr_pages && is_enough(head_pages)).then_some(Self {
            nr_pages,
            smallest,
            reserve_pages,
            catalog_pages,
            head_pages,
        })
    }

    /// Frames of the range, the head included.
    #[must_use]
    pub const fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// The smallest folio that there is room to describe.
    #[must_use]
    pub const fn smallest(&self) -> Level {
        self.smallest
    }

    /// Frames of the head.
    #[must_use]
    pub const fn head_pages(&self) -> u64 {
        self.head_pages
    }

    /// Frames at the very start, kept for the driver.
    #[must_use]
    pub const fn reserve_pages(&self) -> u64 {
        self.reserve_pages
    }

    /// Frames that hold descriptors.
    #[must_use]
    pub fn descriptor_pages(&self) -> u64 {
        descriptor_pages(self.nr_pages, self.head_pages, self.smallest)
    }

    /// First frame and number of frames of the catalog.
    #[must_use]
    pub fn catalog(&self) -> (u64, u64) {
        (self.reserve_pages + self.descriptor_pages(), self.catalog_pages)
    }

    /// Whether the `frame`th frame of the range can be part of a folio.
    #[must_use]
    pub const fn is_usable(&self, frame: u64) -> bool {
        frame >= self.head_pages && frame < self.nr_pages
    }
}

/// Frames with the descriptors of frames `head..nr_pages` when every folio is of `smallest` level:
/// the worst mix there can be.
fn descriptor_pages(nr_pages: u64, head: u64, smallest: Level) -> u64 {
    let levels = Level::ALL.into_iter().filter(|&level| level >= smallest);
    levels.map(|level| array_pages(nr_pages, head, level)).sum()
}

/// Frames with the descriptors of `level` for frames `head..nr_pages`, one page per 512 folios.
const fn array_pages(nr_pages: u64, head: u64, level: Level) -> u64 {
    if head >= nr_pages {
        return 0;
    }
    let first_folio = head >> level.shift();
    let last_folio = (nr_pages - 1) >> level.shift();
    last_folio / PAGE_WORDS - first_folio / PAGE_WORDS + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIB: u64 = 1 << 28;

    #[test]
    fn a_terabyte_describes_itself_in_what_its_folio_size_needs() {
        // 1 GiB folios: 1024 words. 2 MiB: a page for each 1 GiB more. 4 KiB: a page for each 2 MiB
        // more, but for the 2 GiB that are the head itself.
        for (smallest, pages) in [(Level::Pud, 2), (Level::Pmd, 2 + 1024), (Level::Pte, 524_288)] {
            let altmap = Altmap::for_range(TIB, smallest, 0, 0).unwrap();
            assert_eq!(altmap.descriptor_pages(), pages, "{smallest}");
            assert_eq!(altmap.head_pages(), pages, "{smallest}");
        }
    }

    #[test]
    fn the_head_is_the_shortest_that_is_enough() {
        for (nr_pages, smallest, reserve, catalog) in
            [(512, Level::Pte, 0, 0), (1 << 18, Level::Pte, 7, 5000), (513 << 9, Level::Pmd, 1, 1)]
        {
            let altmap = Altmap::for_range(nr_pages, smallest, reserve, catalog).unwrap();
            let needs = |head| {
                reserve + catalog.div_ceil(PAGE_BYTES) + descriptor_pages(nr_pages, head, smallest)
            };
            assert!(altmap.head_pages() >= needs(altmap.head_pages()));
            let shorter = altmap.head_pages() - 1;
            assert!(shorter < needs(shorter));
            let (catalog, len) = altmap.catalog();
            assert!(catalog + len <= altmap.head_pages());
        }
    }

    #[test]
    fn parts_of_the_head_follow_each_other() {
        let altmap = Altmap::for_range(TIB, Level::Pmd, 3, 1).unwrap();
        assert_eq!(altmap.catalog(), (3 + 2 + 1024, 1));
        assert!(
            !altmap.is_usable(altmap.head_pages() - 1) && altmap.is_usable(altmap.head_pages())
        );
    }

    #[test]
    fn a_head_that_leaves_nothing_is_none() {
        assert_eq!(Altmap::for_range(0, Level::Pte, 0, 0), None);
        assert_eq!(Altmap::for_range(3, Level::Pte, 0, 0), None, "three pages describe none");
        assert_eq!(Altmap::for_range(512, Level::Pmd, 512, 0), None);
        assert_eq!(Altmap::for_range(512, Level::Pmd, 513, 0), None);
        assert_eq!(Altmap::for_range(512, Level::Pmd, 0, u64::MAX), None);
        assert_eq!(Altmap::for_range(u64::MAX, Level::Pmd, 0, 0), None);
    }
}
