//! The pagemaps of a pool in the owner's books: which memory is of which kind, and the devices that
//! were brought up beside the pool's own.
//!
//! # Invariants
//!
//! - The table has a line for the pool's own frames, at frame 0, for each backing, and for each
//!   device, until its frames are nobody's and its driver is done with them (I8).
//! - A device is in one of two places: in `devices` from when it is shown until nobody holds its
//!   frames, then in `takedowns` until every folio was taken down.
//! - A device whose teardown has begun keeps it, and never goes back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::memory_type::MemoryType;
use pgmap_mm::pagemap::{
    DeviceRange, FailureFlags, OpsPresent, Pagemap, PagemapError, PagemapId, PagemapOps,
    PagemapSpec, PagemapTable, SUBSECTION_BYTES, Step, Teardown, TeardownError,
};
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::runs::SortedRuns;

use crate::error::Error;
use crate::name::FileName;
use crate::owner::core::Ticket;
use crate::owner::pagemaps::Unplug;
use crate::pool::Pool;
use crate::refusal::Refusal;

/// What the owner keeps of a pagemap beside the table's line.
pub(crate) struct PagemapRecord {
    pub name: FileName,
    pub runs: SortedRuns,
    pub ops: Option<Arc<dyn PagemapOps>>,
    teardown: Option<Teardown>,
}

impl PagemapRecord {
    pub(crate) const fn new(
        name: FileName,
        runs: SortedRuns,
        ops: Option<Arc<dyn PagemapOps>>,
    ) -> Self {
        Self { name, runs, ops, teardown: None }
    }

    pub(crate) const fn is_dying(&self) -> bool {
        self.teardown.is_some()
    }
}

impl std::fmt::Debug for PagemapRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PagemapRecord").field("name", &self.name).field("runs", &self.runs).finish()
    }
}

/// A pagemap whose frames nobody holds: the driver is notified of each folio, and its memory goes,
/// in bounded steps.
#[derive(Debug)]
pub(crate) struct Takedown {
    pub unplug: Unplug,
    pub device: PagemapRecord,
    /// The frames that are left to do.
    pub rest: VecDeque<PfnRange>,
}

/// The pagemaps of a pool.
#[derive(Debug)]
pub(crate) struct PagemapBook {
    own_type: MemoryType,
    table: PagemapTable,
    devices: BTreeMap<PagemapId, PagemapRecord>,
    takedowns: VecDeque<Takedown>,
}

impl PagemapBook {
    /// The book with the pool's own pagemap in it. Whatever is added lies beyond, inside the
    /// capacity or on a backing of its own.
    ///
    /// # Errors
    /// [`Error::BadPool`] when the pool's kind of memory cannot be one's.
    pub(crate) fn open(pool: &Pool) -> Result<Self, Error> {
        let len_bytes = pool.size_bytes().next_multiple_of(SUBSECTION_BYTES);
        let nr_pages = pool.span_bytes().max(len_bytes) / PAGE_BYTES;
        let mut table = PagemapTable::new(nr_pages, Vec::new(), u64::MAX);
        let own_type = pool.memory_type();
        let spec = PagemapSpec {
            memory_type: own_type,
            ranges: vec![DeviceRange { start_bytes: 0, len_bytes }],
            owner: Some(0),
            largest_level: Level::Pud.number(),
            ops: OpsPresent::FOLIO_FREE,
        };
        table.add(&spec).map_err(|error| Error::BadPool {
            pool: pool.name(),
            why: format!("its kind of memory cannot be a pool's: {error}"),
        })?;
        Ok(Self { own_type, table, devices: BTreeMap::new(), takedowns: VecDeque::new() })
    }

    /// The type of the pool's own memory.
    pub(crate) const fn own_type(&self) -> MemoryType {
        self.own_type
    }

    /// The type of the memory around `pfn`.
    pub(crate) fn type_of(&self, pfn: Pfn) -> MemoryType {
        self.table.covering(pfn).map_or(self.own_type, Pagemap::memory_type)
    }

    /// The pagemap around `pfn`; `None` if there is no living one.
    pub(crate) fn at(&self, pfn: Pfn) -> Option<&Pagemap> {
        self.table.get(pfn)
    }

    #[cfg(test)]
    pub(crate) fn has_line(&self, pfn: Pfn) -> bool {
        self.table.covering(pfn).is_some()
    }

    /// Adds a line, at a place that the table chooses. Returns what of it can be used.
    ///
    /// # Errors
    /// The table's.
    pub(crate) fn add(
        &mut self,
        spec: &PagemapSpec,
    ) -> Result<(PagemapId, SortedRuns, &Pagemap), Refusal> {
        let id = self.table.add(spec)?;
        let vanished = || Refusal::Internal { why: "a pagemap vanished as it was made".into() };
        let map = self.table.by_id(id).ok_or_else(vanished)?;
        Ok((id, map.usable_runs().collect(), map))
    }

    /// Adds a line from frame `first` on.
    ///
    /// # Errors
    /// The table's.
    pub(crate) fn add_at(&mut self, spec: &PagemapSpec, first: u64) -> Result<(), PagemapError> {
        self.table.add_at(spec, first).map(drop)
    }

    /// Takes a line out again that no device has.
    pub(crate) fn remove(&mut self, id: PagemapId) {
        let Ok(mut teardown) = self.table.begin_teardown(id) else { return };
        for step in [Step::Kill, Step::Tell, Step::Unmap] {
            let _ = teardown.done(step, &mut self.table);
        }
        let _ = teardown.drained(0);
        let _ = teardown.done(Step::Free, &mut self.table);
    }

    /// As [`remove`](Self::remove), the line from frame `first_pfn` on.
    pub(crate) fn remove_at(&mut self, first_pfn: u64) {
        let first = Pfn::new(first_pfn);
        let id = first.and_then(|first| self.table.covering(first)).map(Pagemap::id);
        id.into_iter().for_each(|id| self.remove(id));
    }

    /// Keeps the device of a line that was added.
    pub(crate) fn add_device(&mut self, id: PagemapId, device: PagemapRecord) {
        self.devices.insert(id, device);
    }

    pub(crate) fn device(&self, id: PagemapId) -> Option<&PagemapRecord> {
        self.devices.get(&id)
    }

    /// Kills a device's pagemap: nobody finds it from now on.
    ///
    /// # Errors
    /// The table's. Nothing is changed then.
    pub(crate) fn kill(&mut self, id: PagemapId) -> Result<Teardown, TeardownError> {
        let mut teardown = self.table.begin_teardown(id)?;
        teardown.done(Step::Kill, &mut self.table)?;
        Ok(teardown)
    }

    /// All holders were notified that a pagemap was killed, and nothing maps it any more.
    ///
    /// # Errors
    /// The table's.
    pub(crate) fn killed(
        &mut self,
        id: PagemapId,
        mut teardown: Teardown,
    ) -> Result<(), TeardownError> {
        teardown.done(Step::Tell, &mut self.table)?;
        teardown.done(Step::Unmap, &mut self.table)?;
        if let Some(device) = self.devices.get_mut(&id) {
            device.teardown = Some(teardown);
        }
        Ok(())
    }

    /// Begins to take a device down whose frames nobody holds. Returns those.
    pub(crate) fn begin_takedown(&mut self, unplug: Unplug) -> Option<Vec<PfnRange>> {
        let device = self.devices.remove(&unplug.id)?;
        let runs: Vec<PfnRange> = device.runs.iter().collect();
        self.takedowns.push_back(Takedown { unplug, device, rest: runs.clone().into() });
        Some(runs)
    }

    /// Whether pagemaps are left of which something is to be taken down.
    pub(crate) fn has_takedowns(&self) -> bool {
        !self.takedowns.is_empty()
    }

    /// Whether the pagemap whose removal has this ticket is being taken down.
    pub(crate) fn is_taking_down(&self, ticket: Ticket) -> bool {
        self.takedowns.iter().any(|takedown| takedown.unplug.ticket == ticket)
    }

    /// Takes out the takedown whose turn it is. It is [put back](Self::put_back) or
    /// [ended](Self::end_takedown).
    pub(crate) fn next_takedown(&mut self) -> Option<Takedown> {
        self.takedowns.pop_front()
    }

    pub(crate) fn put_back(&mut self, takedown: Takedown) {
        self.takedowns.push_front(takedown);
    }

    /// Every folio of it was taken down: the line goes.
    pub(crate) fn end_takedown(&mut self, device: PagemapRecord) {
        let Some(mut teardown) = device.teardown else { return };
        let stepped = teardown.drained(0).and_then(|_| teardown.done(Step::Free, &mut self.table));
        if let Err(error) = stepped {
            tracing::error!(%error, "a pagemap was freed out of turn");
        }
    }

    /// Asks the driver of the pagemap around `pfn` to deal with a failure of its memory. Says
    /// whether it did; if not, the generic way follows.
    pub(crate) fn driver_handles_failure(&self, pfn: Pfn) -> bool {
        let Some(frame) = PfnRange::new(pfn.number(), 1) else { return false };
        self.devices
            .values()
            .filter(|device| device.runs.overlaps(frame))
            .filter_map(|device| device.ops.as_ref())
            .any(|ops| ops.memory_failure(frame, FailureFlags::NONE).is_ok())
    }

    /// Notifies the driver of the pagemap around `pfn` that a folio was split.
    pub(crate) fn notify_of_split(&self, folio: PfnRange, at: Pfn, to: Level) {
        for device in self.devices.values().filter(|device| device.runs.overlaps(folio)) {
            if let Some(ops) = &device.ops {
                ops.folio_split(folio, at, to);
            }
        }
    }
}
