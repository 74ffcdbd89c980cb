//! Several pagemaps in one owner: device ranges brought up beside the pool's own, each shown as one
//! file over the whole range, and taken down again without ever leaving a holder with nothing.
//!
//! A pagemap's bytes lie in the pool's data file at its frames' offsets, inside the capacity that
//! the pool was made with. It ends with its owner: a restarted one adds it again.

use std::sync::Arc;

use pgmap_mm::descriptor::{Descriptor, FolioState};
use pgmap_mm::drain::{Drain, MAX_ASKS};
use pgmap_mm::extent::Extent;
use pgmap_mm::holder::DrainReason;
use pgmap_mm::index::{Facts, FileId};
use pgmap_mm::level::Level;
use pgmap_mm::pagemap::{
    DeviceRange, FailureFlags, PagemapError, PagemapId, PagemapOps, PagemapSpec, TeardownError,
};
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;
use pgmap_os::{clock, process};

use crate::metadata::FileMetadata;
use crate::name::FileName;
use crate::owner::core::{Core, Outcome, Ticket};
use crate::owner::drains::{PendingDrain, Purpose};
use crate::owner::file_book::FileRecord;
use crate::owner::frames::{Listed, STEP_FOLIOS};
use crate::owner::holders::Call;
use crate::owner::pagemap_book::{PagemapRecord, Takedown};
use crate::owner::scans::{PendingScan, Scanning};
use crate::refusal::Refusal;
use crate::wire::{FileRules, OnDeadline, Reply};

/// A teardown that waits for holders.
#[derive(Debug)]
pub(crate) struct Unplug {
    pub ticket: Ticket,
    pub id: PagemapId,
    pub started_ms: u64,
    pub wait_ms: u64,
}

impl Unplug {
    pub(crate) const fn deadline_ms(&self) -> u64 {
        self.started_ms.saturating_add(self.wait_ms)
    }
}

impl From<PagemapError> for Refusal {
    fn from(error: PagemapError) -> Self {
        Self::Denied { why: error.to_string(), errno: error.errno() }
    }
}

impl From<TeardownError> for Refusal {
    fn from(error: TeardownError) -> Self {
        Self::Denied { why: error.to_string(), errno: error.errno() }
    }
}

impl Core {
    /// Brings a pagemap up and shows it as the file `name`.
    pub(crate) fn add_pagemap(
        &mut self,
        name: &FileName,
        spec: &PagemapSpec,
        ops: Option<Arc<dyn PagemapOps>>,
    ) -> Result<PagemapId, Refusal> {
        self.check_open()?;
        if self.files.contains(name) {
            return Err(Refusal::Exists { name: name.to_string() });
        }
        let smallest = self.frames.smallest();
        let is_described = |len_bytes: u64| len_bytes.is_multiple_of(smallest.size_bytes());
        if spec.largest_level < smallest.number()
            || !spec.ranges.iter().all(|range| is_described(range.len_bytes))
        {
            let why = format!("the pool describes whole folios of {smallest} and larger");
            return Err(Refusal::Invalid { why });
        }
        let is_beyond = |range: &DeviceRange| {
            let end = range.start_bytes.saturating_add(range.len_bytes);
            end > self.pool.capacity_bytes().max(self.pool.size_bytes())
        };
        if let Some(range) = spec.ranges.iter().find(|range| is_beyond(range))
            && self.pool.span_bytes() > self.pool.capacity_bytes()
        {
            let why = format!(
                "bytes {} to {} are not inside the capacity of {}; what lies behind is for \
                 backings",
                range.start_bytes,
                range.start_bytes.saturating_add(range.len_bytes),
                self.pool.capacity_bytes()
            );
            return Err(Refusal::Invalid { why });
        }
        let stamp = self.frames.take_stamp()?;
        let present = ops.as_ref().map_or(spec.ops, |ops| ops.present());
        let spec = PagemapSpec { ops: present, ..spec.clone() };
        let (id, runs, map) = self.pagemaps.add(&spec)?;
        let (largest, memory_type) = (map.largest(), map.memory_type());
        let first = runs.iter().next().map(PfnRange::first).unwrap_or_default();
        let flags = self.flags_of_type(memory_type, FileRules::default(), first);
        let word = Descriptor::new(FolioState::Live, flags, stamp);
        let brought_up = self
            .frames
            .check_room(self.frames.slots_for(runs.iter().count()))
            .and_then(|()| self.frames.bring_up(&runs, largest, word));
        let extents = match brought_up {
            Ok(extents) => extents,
            Err(refusal) => {
                self.pagemaps.remove(id);
                return Err(refusal);
            }
        };
        self.show_pagemap(name, (id, &runs), FileId(stamp.number()), extents, largest)?;
        self.pagemaps.add_device(id, PagemapRecord::new(name.clone(), runs, ops));
        Ok(id)
    }

    /// Shows the memory of a pagemap as a file over its whole range, else takes it down again.
    fn show_pagemap(
        &mut self,
        name: &FileName,
        (pagemap, runs): (PagemapId, &SortedRuns),
        id: FileId,
        extents: Vec<Extent>,
        largest: Level,
    ) -> Result<(), Refusal> {
        let len_bytes = extents.iter().map(|extent| extent.run.len_bytes()).sum();
        let facts = Facts::new(id, len_bytes);
        let listed = self.frames.list(Listed { name, facts }, &extents);
        let entry = listed.inspect_err(|_| {
            // Nobody was given its frames.
            let (mut rest, mut left) = (runs.iter().collect(), usize::MAX);
            self.frames.take_down_some(&mut rest, &mut left, |_| {});
            self.pagemaps.remove(pagemap);
        })?;
        let file = FileRecord {
            id,
            len_bytes,
            largest,
            rules: FileRules::default(),
            extents,
            metadata: FileMetadata::default(),
            uid: process::effective_uid(),
            entry,
            doing: Some(DEVICE),
        };
        self.files.insert(name.clone(), file);
        Ok(())
    }

    /// Takes a pagemap down: kill, tell, unmap, drain, free (I8). Waits up to `wait_ms` for
    /// holders; past that it is still dying, its frames are nobody else's, and it can be asked
    /// again.
    pub(crate) fn remove_pagemap(&mut self, id: PagemapId, wait_ms: u64) -> Outcome {
        match self.begin_unplug(id, wait_ms) {
            Ok(ticket) => self.outbox.outcome_of(ticket),
            Err(refusal) => Outcome::Answer(Reply::Refused(refusal)),
        }
    }

    /// Takes the pagemap's file away and has its frames looked for in all ledgers; a removal that
    /// ran into its deadline is continued.
    ///
    /// # Errors
    /// [`TeardownError::Absent`] and [`TeardownError::Begun`] as refusals. Nothing is changed then.
    fn begin_unplug(&mut self, id: PagemapId, wait_ms: u64) -> Result<Ticket, Refusal> {
        let absent = || Refusal::from(TeardownError::Absent { id });
        let device = self.pagemaps.device(id).ok_or_else(absent)?;
        let (name, runs) = (device.name.clone(), device.runs.clone());
        if !device.is_dying() {
            let teardown = self.pagemaps.kill(id)?;
            if let Some((name, file)) = self.files.remove(&name) {
                self.frames.unlist(file.entry, &name);
                self.frames.retire(&*file.extents);
            }
            for run in runs.iter() {
                self.holder.notify(Call::Failure(run, FailureFlags::MEM_PRE_REMOVE));
                self.holder.notify(Call::Drain(run, DrainReason::Unplug, wait_ms));
            }
            self.pagemaps.killed(id, teardown)?;
        } else if self.is_unplugging(id) {
            return Err(TeardownError::Begun { id }.into());
        }
        let ticket = self.outbox.new_ticket();
        let started_ms = clock::monotonic_ms();
        self.scan_then(runs, Scanning::Unplug(Unplug { ticket, id, started_ms, wait_ms }));
        self.look_on();
        Ok(ticket)
    }

    /// The holders of a pagemap's frames are known now: they are asked for them, and waited for.
    pub(crate) fn unplug_after(&mut self, drain: Drain, unplug: Unplug) {
        let (_, held) = self.split_by_holds(&drain);
        held.iter().for_each(|run| self.frames.mark_held(run));
        self.ask_holders(&drain, MAX_ASKS, Some(unplug.wait_ms), OnDeadline::Fail);
        let (started_ms, purpose) = (unplug.started_ms, Purpose::Unplug(unplug));
        self.drains.add_first(PendingDrain { drain, started_ms, purpose, unasked: None });
    }

    fn is_unplugging(&self, id: PagemapId) -> bool {
        let mut scanned = self.drains.scans().filter_map(PendingScan::unplug);
        scanned.any(|unplug| unplug.id == id)
            || self.drains.iter().any(
                |pending| matches!(&pending.purpose, Purpose::Unplug(unplug) if unplug.id == id),
            )
    }

    /// Nobody holds the pagemap's frames: the driver is notified, and they go.
    pub(crate) fn finish_unplug(&mut self, unplug: Unplug) {
        let Some(runs) = self.pagemaps.begin_takedown(unplug) else { return };
        // What was still to be marked is not needed any more.
        self.frames.unmark(&runs);
        self.take_down_some();
    }

    /// Does a step's worth of it.
    pub(crate) fn take_down_some(&mut self) {
        let mut left = STEP_FOLIOS;
        while let Some(mut takedown) = self.pagemaps.next_takedown() {
            let ops = takedown.device.ops.as_deref();
            let tell = |folio: PfnRange| ops.into_iter().for_each(|ops| ops.folio_free(folio));
            self.frames.take_down_some(&mut takedown.rest, &mut left, tell);
            if !takedown.rest.is_empty() {
                return self.pagemaps.put_back(takedown);
            }
            self.end_takedown(takedown);
        }
    }

    fn end_takedown(&mut self, takedown: Takedown) {
        self.remove_ended_ledgers();
        self.pagemaps.end_takedown(takedown.device);
        self.outbox.answer(takedown.unplug.ticket, Reply::Done);
    }

    pub(crate) fn give_up_unplug(&mut self, drain: &Drain, started_ms: u64, unplug: &Unplug) {
        let waited_ms = clock::monotonic_ms() - started_ms;
        let holders = self.holders(drain.held(), Some(waited_ms));
        let name = self.pagemaps.device(unplug.id).map(|device| device.name.to_string());
        let name = name.unwrap_or_default();
        self.outbox.refuse(unplug.ticket, Refusal::Held { name, holders, waited_ms });
    }
}

/// What a pagemap's file says when somebody wants to cut, rename or unlink it.
pub(crate) const DEVICE: &str = "used as a whole device; remove its pagemap instead";

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use pgmap_mm::index::MAX_EXTENTS;
    use pgmap_mm::pagemap::OpsPresent;

    use super::*;
    use crate::owner::clients::{Attachment, ClientIdentity};
    use crate::pool::{Pool, PoolOptions};

    const STEP_PAGES: u64 = STEP_FOLIOS as u64;
    const NR_PAGES: u64 = 5 * STEP_PAGES;
    const START_BYTES: u64 = 1 << 30;

    #[derive(Default)]
    struct Driver(AtomicU64);

    impl PagemapOps for Driver {
        fn present(&self) -> OpsPresent {
            OpsPresent::FOLIO_FREE
        }

        fn folio_free(&self, folio: PfnRange) {
            // Relaxed: one thread.
            self.0.fetch_add(folio.nr_pages(), Ordering::Relaxed);
        }
    }

    /// Books with a pagemap of small folios.
    fn core_with_pagemap() -> (Core, PagemapId, Arc<Driver>, PfnRange) {
        let options = PoolOptions::anonymous(16 << 20).capacity(2 << 30);
        let mut core = Core::open(Arc::new(Pool::create(&options).unwrap())).unwrap();
        let ranges = vec![DeviceRange { start_bytes: START_BYTES, len_bytes: NR_PAGES * 4096 }];
        let spec = PagemapSpec {
            memory_type: pgmap_mm::memory_type::MemoryType::Generic,
            ranges,
            owner: None,
            largest_level: Level::Pte.number(),
            ops: OpsPresent::NONE,
        };
        let driver = Arc::new(Driver::default());
        let name = FileName::new("dax0.0").unwrap();
        let id = core.add_pagemap(&name, &spec, Some(Arc::clone(&driver) as _)).unwrap();
        (core, id, driver, PfnRange::new(START_BYTES / 4096, NR_PAGES).unwrap())
    }

    /// Story: its line in the table and its folios stayed, and the range could not be added again.
    #[test]
    fn a_pagemap_that_the_index_refuses_leaves_nothing() {
        let (mut core, id, _driver, run) = core_with_pagemap();
        let name = FileName::new("dax1.0").unwrap();
        let extent = core.files.find(&FileName::new("dax0.0").unwrap()).unwrap().extents[0];
        let runs = SortedRuns::new(vec![run]);
        let extents = vec![extent; MAX_EXTENTS + 1];
        let refused = core.show_pagemap(&name, (id, &runs), FileId(7), extents, Level::Pte);
        assert!(matches!(refused, Err(Refusal::IndexFull { .. })), "{refused:?}");
        assert!(!core.files.contains(&name) && !core.pagemaps.has_line(run.first()));
        assert_eq!(nr_in(&core, run, FolioState::Offline), NR_PAGES);
    }

    fn nr_in(core: &Core, run: PfnRange, state: FolioState) -> u64 {
        core.frames.vmemmap().folios(run).filter(|(.., word)| word.state() == state).count() as u64
    }

    /// Story: all folios were marked, and all were taken down, in one go, and nobody else was
    /// served.
    #[test]
    fn a_pagemap_of_many_folios_is_taken_down_in_steps() {
        let (mut core, id, driver, run) = core_with_pagemap();
        let outcome = core.remove_pagemap(id, 0);
        assert!(matches!(outcome, Outcome::Later(_)), "{outcome:?}");
        assert!(nr_in(&core, run, FolioState::Dying) <= 1, "its one extent has one life word");
        let mut nr_steps = 0;
        while core.pagemaps.has_takedowns() {
            let before = nr_in(&core, run, FolioState::Offline);
            let (told, again) = (driver.0.load(Ordering::Relaxed), core.remove_pagemap(id, 0));
            assert!(matches!(again, Outcome::Answer(Reply::Refused(_))), "{again:?}");
            core.take_down_some();
            let done = nr_in(&core, run, FolioState::Offline) - before;
            assert!(done > 0 && done <= STEP_PAGES, "{done} folios in a step");
            assert_eq!(driver.0.load(Ordering::Relaxed) - told, done);
            nr_steps += 1;
        }
        assert!(nr_steps >= 2, "{nr_steps} steps were left");
        assert_eq!(nr_in(&core, run, FolioState::Offline), NR_PAGES);
        assert_eq!(driver.0.load(Ordering::Relaxed), NR_PAGES, "each folio once");
        assert!(matches!(&core.take_answers()[..], [(_, Reply::Done)]));
    }

    /// The word of each folio that is held says so, for holders who missed the event: in steps,
    /// too.
    #[test]
    fn a_pagemap_that_is_held_is_marked_in_steps() {
        let (mut core, id, driver, run) = core_with_pagemap();
        let (client, attachment): (_, Attachment) =
            core.attach(ClientIdentity::own(), false).unwrap();
        core.clients.get_mut(client).unwrap().may_hold = Some(SortedRuns::new(vec![run]));
        let outcome = core.remove_pagemap(id, 0);
        let Outcome::Answer(Reply::Refused(Refusal::Held { .. })) = outcome else {
            panic!("{outcome:?}")
        };
        let mut nr_steps = 0;
        while core.frames.has_backlog() {
            let before = nr_in(&core, run, FolioState::Dying);
            core.reclaim_some();
            assert!(nr_in(&core, run, FolioState::Dying) - before <= STEP_PAGES);
            nr_steps += 1;
        }
        assert!(nr_steps >= 3, "{nr_steps} steps were left");
        assert_eq!(nr_in(&core, run, FolioState::Dying), NR_PAGES);
        assert_eq!(driver.0.load(Ordering::Relaxed), 0);
        drop(attachment);
        core.reap(client);
        let outcome = core.remove_pagemap(id, 0);
        assert!(matches!(outcome, Outcome::Later(_)), "{outcome:?}");
        while core.pagemaps.has_takedowns() {
            core.look_on();
        }
        assert_eq!(driver.0.load(Ordering::Relaxed), NR_PAGES);
    }
}
