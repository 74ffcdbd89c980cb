//! All areas of an address space, in order of address. Splits and joins areas as `munmap` and
//! `mprotect` do.

use super::Vma;
use super::sorted::{Place, SortedAreas};

/// The areas of an address space. No two have a page in common.
#[derive(Debug, Default)]
pub(crate) struct VmaSet {
    areas: SortedAreas,
    /// Where the search for a gap starts: after the last area that a gap was found for.
    next_gap: u64,
    nr_changes: u64,
}

impl VmaSet {
    /// The area that contains the page.
    pub(crate) fn find(&self, page: u64) -> Option<&Vma> {
        self.place_around(page).and_then(|at| self.areas.get(at))
    }

    /// The areas that have a page from `from` up to `to`, in order.
    pub(crate) fn overlapping(&self, from: u64, to: u64) -> impl Iterator<Item = &Vma> {
        let first = self.place_around(from).unwrap_or_else(|| self.areas.lower_bound(from));
        self.areas.iter_from(first).take_while(move |vma| vma.page < to)
    }

    /// The area that contains the page and those that adjoin it on either side without a gap, in
    /// order, as far as all are `wanted`.
    pub(crate) fn around(
        &self,
        page: u64,
        wanted: impl Fn(&Vma) -> bool,
    ) -> impl Iterator<Item = &Vma> {
        let around = self.place_around(page);
        let mut first = around.filter(|&at| self.areas.get(at).is_some_and(&wanted));
        while let Some(at) = first
            && let Some(before) = self.areas.before(at)
            && self.adjoin(before, at)
            && self.areas.get(before).is_some_and(&wanted)
        {
            first = Some(before);
        }
        let mut end = first.and_then(|at| self.areas.get(at)).map(|vma| vma.page);
        first.into_iter().flat_map(|first| self.areas.iter_from(first)).take_while(move |vma| {
            let goes_on = end == Some(vma.page) && wanted(vma);
            end = Some(vma.end());
            goes_on
        })
    }

    fn adjoin(&self, before: Place, at: Place) -> bool {
        let (before, at) = (self.areas.get(before), self.areas.get(at));
        before.zip(at).is_some_and(|(before, at)| before.end() == at.page)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Vma> {
        self.areas.iter_from(self.areas.lower_bound(0))
    }

    pub(crate) fn len(&self) -> usize {
        self.areas.len()
    }

    /// How often anything was changed, or handed out to be changed.
    pub(crate) const fn nr_changes(&self) -> u64 {
        self.nr_changes
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
        if self.place_of(from, to).is_some() {
            return true;
        }
        [from, to].into_iter().all(|page| {
            self.find(page).is_none_or(|vma| vma.page == page || vma.may_split_at(page))
        })
    }

    /// Takes out every area from `from` up to `to`; areas across an edge are split there.
    pub(crate) fn remove(&mut self, from: u64, to: u64) {
        self.nr_changes += 1;
        // The usual change is of exactly one area.
        if let Some(at) = self.place_of(from, to) {
            self.areas.remove(at);
            return;
        }
        self.split_at(from);
        self.split_at(to);
        let mut first = self.areas.lower_bound(from);
        while self.areas.get(first).is_some_and(|vma| vma.page < to) {
            first = self.areas.remove(first);
        }
    }

    fn split_at(&mut self, page: u64) {
        let around = self.place_around(page).and_then(|at| self.areas.get_mut(at));
        let Some(vma) = around.filter(|vma| vma.page < page) else { return };
        let after = vma.part(page, vma.end());
        vma.nr_pages = page - vma.page;
        self.areas.insert(self.areas.lower_bound(page), after);
    }

    /// Where the area is that contains the page.
    fn place_around(&self, page: u64) -> Option<Place> {
        // Of the areas that start there or before, the last.
        let at = self.areas.before(self.areas.lower_bound(page + 1))?;
        self.areas.get(at).is_some_and(|vma| page < vma.end()).then_some(at)
    }

    /// Puts in an area where none is, and joins it to neighbours that it carries on.
    pub(crate) fn insert(&mut self, mut vma: Vma) {
        self.nr_changes += 1;
        let mut at = self.areas.lower_bound(vma.page);
        if let Some(next) = self.areas.get(at).filter(|next| vma.carries_on_as(next)) {
            vma.nr_pages += next.nr_pages;
            at = self.areas.remove(at);
        }
        let before = self.areas.before(at).and_then(|before| self.areas.get_mut(before));
        match before.filter(|before| before.carries_on_as(&vma)) {
            Some(before) => before.nr_pages += vma.nr_pages,
            None => self.areas.insert(at, vma),
        }
    }

    /// The area of exactly the pages from `from` up to `to`, if there is one. Made another, it may
    /// carry its neighbours on and stays an area of its own, which changes nothing but their
    /// number.
    pub(crate) fn exactly(&mut self, from: u64, to: u64) -> Option<&mut Vma> {
        self.nr_changes += 1;
        self.place_of(from, to).and_then(|at| self.areas.get_mut(at))
    }

    /// Where the area of exactly these pages is.
    fn place_of(&self, from: u64, to: u64) -> Option<Place> {
        let at = self.areas.lower_bound(from);
        self.areas.get(at).is_some_and(|vma| (vma.page, vma.end()) == (from, to)).then_some(at)
    }

    /// The next page that may have one of its file's behind it, after one that has none: beyond the
    /// end of the file none of the area has.
    pub(crate) fn after_missing(&self, page: u64) -> u64 {
        let vma = self.find(page);
        let is_beyond = |vma: &&Vma| vma.file_page_of(page) >= vma.backing.nr_pages();
        vma.filter(is_beyond).map_or(page + 1, Vma::end)
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
    use std::sync::Arc;

    use super::super::{AreaBacking, Backed, BackingError, VmaKind};
    use super::*;
    use crate::level::Level;
    use crate::prot::Prot;
    use proptest::prelude::*;

    #[derive(Debug)]
    struct File(VmaKind);

    impl AreaBacking for File {
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

    fn area(file: &Arc<dyn AreaBacking>, page: u64, nr_pages: u64, prot: Prot) -> Vma {
        Vma { page, nr_pages, backing: file.clone(), file_page: page, prot }
    }

    #[test]
    fn areas_that_carry_on_evenly_are_one() {
        let file: Arc<dyn AreaBacking> = Arc::new(File(VmaKind::Shared));
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
    fn what_adjoins_is_found_up_to_the_first_gap_and_the_first_that_is_not_wanted() {
        let files: [Arc<dyn AreaBacking>; 2] =
            [Arc::new(File(VmaKind::Shared)), Arc::new(File(VmaKind::Shared))];
        let mut set = VmaSet::default();
        // A gap at 3, and what is read-only at 8.
        for page in [0, 1, 2, 4, 5, 6, 7, 8, 9] {
            let prot = if page == 8 { Prot::READ } else { Prot::READ_WRITE };
            set.insert(area(&files[page as usize % 2], page, 1, prot));
        }
        let wanted = |vma: &Vma| vma.prot.contains(Prot::READ_WRITE);
        let found = |page| set.around(page, wanted).map(|vma| vma.page).collect::<Vec<_>>();
        assert_eq!(found(1), [0, 1, 2]);
        for page in 4..8 {
            assert_eq!(found(page), [4, 5, 6, 7]);
        }
        assert_eq!((found(3), found(8), found(9), found(10)), (vec![], vec![], vec![9], vec![]));
    }

    #[test]
    fn a_device_dax_area_splits_only_at_its_alignment() {
        let file: Arc<dyn AreaBacking> = Arc::new(File(VmaKind::DeviceDax { align: Level::Pmd }));
        let mut set = VmaSet::default();
        set.insert(area(&file, 512, 1024, Prot::READ));
        assert!(set.may_split(512, 1024));
        assert!(!set.may_split(512, 1000));
        assert!(!set.may_split(513, 1536));
        assert!(set.may_split(0, 5000));
    }

    #[test]
    fn a_gap_is_found_again_after_the_space_was_used_up_once() {
        let file: Arc<dyn AreaBacking> = Arc::new(File(VmaKind::Shared));
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
            let file: Arc<dyn AreaBacking> = Arc::new(File(VmaKind::Shared));
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
