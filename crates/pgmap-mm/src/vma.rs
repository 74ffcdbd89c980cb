//! What is mapped where, and what lies behind it.
//!
//! A [`Vma`] is a run of pages with one backing, one file offset and one set of permissions. The set
//! of them is ordered by address; it splits and joins areas as `munmap` and `mprotect` do.

use core::fmt;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::extent::Extent;
use crate::level::Level;
use crate::prot::Prot;

/// How an area behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VmaKind {
    /// A shared mapping of a file or a pagemap.
    Shared,
    /// Mapped, never pinnable (`VM_PFNMAP`).
    Raw,
    /// A device-dax range: every leaf is exactly `align`, and areas start, end and split only at
    /// multiples of it (Linux 7.1: drivers/dax/device.c).
    DeviceDax {
        /// The one leaf size.
        align: Level,
    },
    /// A file whose blocks are the frames (Linux 7.1: fs/dax.c), here with 1 GiB leaves too.
    FsDax,
    /// Another device's memory, pinned only with `P2PDMA`.
    PeerToPeer,
}

/// Why a page of a file cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackingError {
    /// The page lies beyond the end of the file or device. A touch would be SIGBUS.
    BeyondEnd,
    /// The device or the file is gone. A touch would be SIGBUS.
    Dead,
    /// The page's memory failed.
    Poisoned,
    /// There is no memory to fill the page.
    NoMemory,
    /// The owner could not be asked now. Try again.
    Busy,
}

/// A page of a file: the extent it belongs to and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backed {
    /// The extent.
    pub extent: Extent,
    /// How many frames into the extent the page's frame lies.
    pub skip: u64,
}

/// What lies behind an area: a file, a pagemap. The layer above has them; this layer owns the trait.
///
/// Called with the address space's lock held: an implementation must not call back into the same
/// address space.
pub trait Backing: Send + Sync + fmt::Debug {
    /// How areas of this backing behave.
    fn kind(&self) -> VmaKind;

    /// Whether the file or device is still there.
    fn is_alive(&self) -> bool {
        true
    }

    /// The most that an area may allow: what the file was opened for.
    fn most_prot(&self) -> Prot {
        Prot::READ_WRITE
    }

    /// Length in pages now. Pages from here on are never mapped.
    fn nr_pages(&self) -> u64;

    /// The extent behind page `page` of the file, under the life word that a pin must find now. All
    /// frames of the extent may be pinned under that word, and the file's pages around `page` are
    /// the extent's frames in the same order as far as extent and file reach.
    ///
    /// # Errors
    /// Why there is none.
    fn extent_at(&self, page: u64) -> Result<Backed, BackingError>;
}

/// A run of pages mapped alike.
#[derive(Clone, Debug)]
pub struct Vma {
    /// First page number.
    pub page: u64,
    /// Pages.
    pub nr_pages: u64,
    /// What lies behind.
    pub backing: Arc<dyn Backing>,
    /// Page of the file at the first page.
    pub file_page: u64,
    /// What may be done.
    pub prot: Prot,
}

impl Vma {
    /// The page after the last.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.page + self.nr_pages
    }

    /// How the area behaves.
    #[must_use]
    pub fn kind(&self) -> VmaKind {
        self.backing.kind()
    }

    /// The page of the file at page number `page`, which lies in the area.
    #[must_use]
    pub const fn file_page_of(&self, page: u64) -> u64 {
        self.file_page + (page - self.page)
    }

    /// The part from page `from` up to `to`.
    #[must_use]
    pub(crate) fn part(&self, from: u64, to: u64) -> Self {
        let page = from.clamp(self.page, self.end());
        let end = to.clamp(page, self.end());
        Self { page, nr_pages: end - page, file_page: self.file_page_of(page), ..self.clone() }
    }

    /// Makes it map something else in the same way.
    pub(crate) fn assign(&mut self, backing: &Arc<dyn Backing>, file_page: u64, prot: Prot) {
        // Counting the same file up and down again would be the most of the work.
        if !Arc::ptr_eq(&self.backing, backing) {
            self.backing = Arc::clone(backing);
        }
        (self.file_page, self.prot) = (file_page, prot);
    }

    /// Whether the area may start or end at this page number.
    fn may_split_at(&self, page: u64) -> bool {
        match self.kind() {
            VmaKind::DeviceDax { align } => page.is_multiple_of(align.nr_pages()),
            _ => true,
        }
    }

    fn carries_on_as(&self, next: &Self) -> bool {
        self.end() == next.page
            && Arc::ptr_eq(&self.backing, &next.backing)
            && self.file_page + self.nr_pages == next.file_page
            && self.prot == next.prot
    }
}

/// All areas of an address space, by first page number.
#[derive(Debug, Default)]
pub(crate) struct VmaSet {
    areas: BTreeMap<u64, Vma>,
    /// Where the search for a gap starts: after the last area that a gap was found for.
    next_gap: u64,
}

impl VmaSet {
    /// The area that contains the page.
    pub(crate) fn find(&self, page: u64) -> Option<&Vma> {
        let (_, vma) = self.areas.range(..=page).next_back()?;
        (page < vma.end()).then_some(vma)
    }

    /// The areas that have a page from `from` up to `to`, in order.
    pub(crate) fn overlapping(&self, from: u64, to: u64) -> impl Iterator<Item = &Vma> {
        let first = self.find(from).map_or(from, |vma| vma.page);
        self.areas.range(first..to.max(first)).map(|(_, vma)| vma)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Vma> {
        self.areas.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.areas.len()
    }

    /// Whether every page from `from` up to `to` is in some area.
    pub(crate) fn covers(&self, from: u64, to: u64) -> bool {
        let mut at = from;
        for vma in self.overlapping(from, to) {
            if vma.page > at {
                return false;
            }
            at = vma.end();
        }
        at >= to
    }

    /// Whether the areas at `from` and `to` may be split there.
    pub(crate) fn may_split(&self, from: u64, to: u64) -> bool {
        // The usual change is of exactly one area, which is not split at all.
        if self.areas.get(&from).is_some_and(|vma| vma.end() == to) {
            return true;
        }
        [from, to].into_iter().all(|page| {
            self.find(page).is_none_or(|vma| vma.page == page || vma.may_split_at(page))
        })
    }

    /// Takes out every area from `from` up to `to`; areas across an edge are split there.
    pub(crate) fn remove(&mut self, from: u64, to: u64) {
        self.split_at(from);
        self.split_at(to);
        while let Some((&page, _)) = self.areas.range(from..to).next() {
            self.areas.remove(&page);
        }
    }

    fn split_at(&mut self, page: u64) {
        let Some(vma) = self.find(page).filter(|vma| vma.page < page).cloned() else { return };
        self.areas.insert(vma.page, vma.part(vma.page, page));
        self.areas.insert(page, vma.part(page, vma.end()));
    }

    /// Puts in an area where none is, and joins it to neighbours that it carries on.
    pub(crate) fn insert(&mut self, mut vma: Vma) {
        let next = self.areas.get(&vma.end()).filter(|next| vma.carries_on_as(next));
        if let Some((page, nr_pages)) = next.map(|next| (next.page, next.nr_pages)) {
            self.areas.remove(&page);
            vma.nr_pages += nr_pages;
        }
        if let Some((_, before)) = self.areas.range_mut(..vma.page).next_back()
            && before.carries_on_as(&vma)
        {
            before.nr_pages += vma.nr_pages;
            return;
        }
        self.areas.insert(vma.page, vma);
    }

    /// The area of exactly the pages from `from` up to `to`, if there is one. Made another, it may carry
    /// its neighbours on and stays an area of its own, which changes nothing but their number.
    pub(crate) fn exactly(&mut self, from: u64, to: u64) -> Option<&mut Vma> {
        self.areas.get_mut(&from).filter(|vma| vma.end() == to)
    }

    /// The first page of a gap of `nr_pages` between `low` and `high`, a multiple of `align_pages`.
    pub(crate) fn find_gap(
        &mut self,
        low: u64,
        high: u64,
        nr_pages: u64,
        align_pages: u64,
    ) -> Option<u64> {
        let start = self.next_gap.clamp(low, high);
        let found = self
            .gap_between(start, high, nr_pages, align_pages)
            .or_else(|| self.gap_between(low, high, nr_pages, align_pages))?;
        self.next_gap = found + nr_pages;
        Some(found)
    }

    fn gap_between(&self, low: u64, high: u64, nr_pages: u64, align_pages: u64) -> Option<u64> {
        let mut at = low.checked_next_multiple_of(align_pages)?;
        for vma in self.overlapping(low, high) {
            if at.checked_add(nr_pages)? <= vma.page {
                break;
            }
            at = at.max(vma.end()).checked_next_multiple_of(align_pages)?;
        }
        (at.checked_add(nr_pages)? <= high).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug)]
    struct File(VmaKind);

    impl Backing for File {
        fn kind(&self) -> VmaKind {
            self.0
        }
        fn nr_pages(&self) -> u64 {
            0
        }
        fn extent_at(&self, _: u64) -> Result<Backed, BackingError> {
            Err(BackingError::BeyondEnd)
        }
    }

    fn area(file: &Arc<dyn Backing>, page: u64, nr_pages: u64, prot: Prot) -> Vma {
        Vma { page, nr_pages, backing: file.clone(), file_page: page, prot }
    }

    #[test]
    fn areas_that_carry_on_evenly_are_one() {
        let file: Arc<dyn Backing> = Arc::new(File(VmaKind::Shared));
        let mut set = VmaSet::default();
        set.insert(area(&file, 0, 4, Prot::READ));
        set.insert(area(&file, 8, 4, Prot::READ));
        assert_eq!(set.len(), 2);
        set.insert(area(&file, 4, 4, Prot::READ));
        assert_eq!((set.len(), set.find(11).unwrap().nr_pages), (1, 12));
        set.remove(5, 6);
        assert_eq!((set.len(), set.find(5).is_none(), set.covers(0, 12)), (2, true, false));
        set.insert(area(&file, 5, 1, Prot::READ_WRITE));
        assert_eq!((set.len(), set.covers(0, 12)), (3, true));
    }

    #[test]
    fn a_device_dax_area_splits_only_at_its_alignment() {
        let file: Arc<dyn Backing> = Arc::new(File(VmaKind::DeviceDax { align: Level::Pmd }));
        let mut set = VmaSet::default();
        set.insert(area(&file, 512, 1024, Prot::READ));
        assert!(set.may_split(512, 1024));
        assert!(!set.may_split(512, 1000));
        assert!(!set.may_split(513, 1536));
        assert!(set.may_split(0, 5000));
    }

    #[test]
    fn a_gap_is_found_again_after_the_space_was_used_up_once() {
        let file: Arc<dyn Backing> = Arc::new(File(VmaKind::Shared));
        let mut set = VmaSet::default();
        for _ in 0..10 {
            let page = set.find_gap(0, 100, 10, 1).unwrap();
            set.insert(Vma { file_page: 7 * page, ..area(&file, page, 10, Prot::READ) });
        }
        assert_eq!(set.find_gap(0, 100, 10, 1), None);
        set.remove(33, 48);
        assert_eq!(set.find_gap(0, 100, 10, 4), Some(36));
    }

    proptest! {
        #[test]
        fn the_set_says_what_a_page_by_page_map_says(
            steps in prop::collection::vec((0..64_u64, 1..20_u64, 0..3_u8), 1..60)
        ) {
            let file: Arc<dyn Backing> = Arc::new(File(VmaKind::Shared));
            let (mut set, mut naive) = (VmaSet::default(), [None; 100]);
            for (page, nr_pages, what) in steps {
                let prot = if what == 1 { Prot::READ } else { Prot::READ_WRITE };
                set.remove(page, page + nr_pages);
                if what != 0 {
                    set.insert(area(&file, page, nr_pages, prot));
                }
                for slot in &mut naive[page as usize..(page + nr_pages) as usize] {
                    *slot = (what != 0).then_some(prot);
                }
                for (page, expected) in naive.iter().enumerate() {
                    let found = set.find(page as u64);
                    prop_assert_eq!(found.map(|vma| vma.prot), *expected);
                    prop_assert!(found.is_none_or(|v| v.file_page_of(page as u64) == page as u64));
                }
                let pieces = naive.chunk_by(|a, b| a == b).filter(|c| c[0].is_some()).count();
                prop_assert_eq!(set.len(), pieces);
            }
        }
    }
}
