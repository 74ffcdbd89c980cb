//! The owner's pagemaps: who may have which bytes, and which frames they get.

use std::collections::BTreeMap;

use super::{
    DeviceRange, Lifecycle, Pagemap, PagemapError, PagemapSpec, PlacedRange, SPACE_PAGES,
    SUBSECTION_BYTES, Teardown, TeardownError,
};
use crate::level::{Level, PAGE_BYTES};
use crate::pfn::Pfn;

/// Which of the owner's pagemaps. Never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PagemapId(pub u64);

/// All pagemaps of one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagemapTable {
    maps: BTreeMap<PagemapId, Pagemap>,
    last_id: u64,
    system_ram: Vec<DeviceRange>,
    reach_bytes: u64,
    nr_pages: u64,
}

impl PagemapTable {
    /// No pagemap yet, in a pfn space of `nr_pages` frames. `system_ram` is what no pagemap may
    /// have, `reach_bytes` the end of what can be addressed.
    #[must_use]
    pub fn new(nr_pages: u64, system_ram: Vec<DeviceRange>, reach_bytes: u64) -> Self {
        let nr_pages = nr_pages.min(SPACE_PAGES);
        Self { maps: BTreeMap::new(), last_id: 0, system_ram, reach_bytes, nr_pages }
    }

    /// Makes a pagemap, range by range. When one fails the table is as it was.
    ///
    /// # Errors
    /// The first rule that the spec or one of its ranges breaks, in the kernel's order.
    pub fn add(&mut self, spec: &PagemapSpec) -> Result<PagemapId, PagemapError> {
        self.add_where(spec, None)
    }

    /// As [`add`](Self::add), of one range whose frames are those from `first` on.
    ///
    /// # Errors
    /// As there; [`PagemapError::NoRoom`] when some of the frames are another's.
    pub fn add_at(&mut self, spec: &PagemapSpec, first: u64) -> Result<PagemapId, PagemapError> {
        self.add_where(spec, Some(first))
    }

    fn add_where(
        &mut self,
        spec: &PagemapSpec,
        first: Option<u64>,
    ) -> Result<PagemapId, PagemapError> {
        let largest = spec.check()?;
        let mut ranges: Vec<PlacedRange> = Vec::with_capacity(spec.ranges.len());
        for &device in &spec.ranges {
            self.place_range(device, first, &mut ranges)?;
        }
        self.last_id += 1;
        let id = PagemapId(self.last_id);
        let pagemap = Pagemap {
            id,
            memory_type: spec.memory_type,
            ranges,
            owner: spec.owner,
            largest,
            ops: spec.ops,
            lifecycle: Lifecycle::Live,
            has_teardown: false,
        };
        self.maps.insert(id, pagemap);
        Ok(id)
    }

    fn place_range(
        &self,
        range: DeviceRange,
        first: Option<u64>,
        done: &mut Vec<PlacedRange>,
    ) -> Result<(), PagemapError> {
        self.check_range(range, done)?;
        let nr_pages = range.len_bytes / PAGE_BYTES;
        let first = match first {
            Some(first) => Some(first).filter(|&first| self.is_nobodys(first, nr_pages, done)),
            None => self.gap(nr_pages, done),
        };
        let first = first.ok_or(PagemapError::NoRoom { nr_pages })?;
        done.push(PlacedRange { device: range, first });
        Ok(())
    }

    fn check_range(&self, range: DeviceRange, done: &[PlacedRange]) -> Result<(), PagemapError> {
        if done.iter().any(|earlier| earlier.device.overlaps(range)) {
            return Err(PagemapError::Taken { range, by: PagemapId(self.last_id + 1) });
        }
        for pagemap in self.maps.values() {
            if pagemap.device_ranges().any(|taken| taken.overlaps(range)) {
                return Err(PagemapError::Taken { range, by: pagemap.id });
            }
        }
        if self.system_ram.iter().any(|ram| ram.overlaps(range)) {
            return Err(PagemapError::SystemRam { range });
        }
        let end = range.start_bytes.checked_add(range.len_bytes);
        if end.is_none_or(|end| end > self.reach_bytes) {
            return Err(PagemapError::OutOfReach { range });
        }
        let is_aligned = range.start_bytes.is_multiple_of(SUBSECTION_BYTES)
            && range.len_bytes.is_multiple_of(SUBSECTION_BYTES);
        if !is_aligned || range.len_bytes == 0 {
            return Err(PagemapError::Misaligned { range });
        }
        Ok(())
    }

    /// Whether `nr_pages` frames from `first` on are there and no pagemap's.
    fn is_nobodys(&self, first: u64, nr_pages: u64, done: &[PlacedRange]) -> bool {
        let spans = self.maps.values().flat_map(Pagemap::pfn_spans);
        let mut taken = spans.chain(done.iter().map(|range| range.first..range.end()));
        let end = first.saturating_add(nr_pages);
        end <= self.nr_pages && taken.all(|span| end <= span.start || span.end <= first)
    }

    /// The lowest 1 GiB boundary from which `nr_pages` frames are nobody's.
    fn gap(&self, nr_pages: u64, done: &[PlacedRange]) -> Option<u64> {
        let mut spans: Vec<_> = self.maps.values().flat_map(Pagemap::pfn_spans).collect();
        spans.extend(done.iter().map(|range| range.first..range.end()));
        spans.sort_unstable_by_key(|span| span.start);
        let mut first = 0;
        for span in spans {
            if first + nr_pages <= span.start {
                break;
            }
            first = span.end.next_multiple_of(Level::Pud.nr_pages());
        }
        (first + nr_pages <= self.nr_pages).then_some(first)
    }

    /// The live pagemap that has `pfn`; none once it is dying (Linux 7.1: mm/memremap.c,
    /// `get_dev_pagemap`).
    #[must_use]
    pub fn get(&self, pfn: Pfn) -> Option<&Pagemap> {
        self.covering(pfn).filter(|pagemap| pagemap.lifecycle == Lifecycle::Live)
    }

    /// The pagemap that has `pfn`, dying or not.
    #[must_use]
    pub fn covering(&self, pfn: Pfn) -> Option<&Pagemap> {
        self.maps.values().find(|pagemap| pagemap.ranges.iter().any(|range| range.contains(pfn)))
    }

    /// The pagemap with this id.
    #[must_use]
    pub fn by_id(&self, id: PagemapId) -> Option<&Pagemap> {
        self.maps.get(&id)
    }

    /// All pagemaps, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Pagemap> + '_ {
        self.maps.values()
    }

    /// Begins to take a pagemap down. From now on nothing new starts on it.
    ///
    /// # Errors
    /// [`TeardownError::Absent`] when there is none, [`TeardownError::Begun`] when it is being
    /// taken down already.
    pub fn begin_teardown(&mut self, id: PagemapId) -> Result<Teardown, TeardownError> {
        let pagemap = self.maps.get_mut(&id).ok_or(TeardownError::Absent { id })?;
        if pagemap.has_teardown {
            return Err(TeardownError::Begun { id });
        }
        pagemap.has_teardown = true;
        Ok(Teardown::new(id))
    }

    /// Moves a pagemap on in its life; a drained one leaves the table, and its frames may be
    /// another's.
    pub(super) fn advance(&mut self, id: PagemapId, to: Lifecycle) {
        if to == Lifecycle::Drained {
            self.maps.remove(&id);
        } else if let Some(pagemap) = self.maps.get_mut(&id) {
            pagemap.lifecycle = to;
        }
    }
}
