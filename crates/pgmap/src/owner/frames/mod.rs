//! The frames of a pool: the one place where a frame changes hands.
//!
//! Who has a frame is said in several books at once: the allocator of free frames, the descriptors,
//! the index, the memory behind the data file, the frames of dead clients' devices, those that
//! failed and those in quarantine. Each verb here changes all the books that it concerns, so that
//! nothing outside can leave them out of step.
//!
//! # States
//!
//! ```text
//!             reserve            publish          retire             release       reclaim
//!   free ──────────────▶ draft ──────────▶ file ──────────▶ retired ────────▶ idle ────────▶ free
//!                          └──────────────────────────────────▲                 │
//!                                                      (last hold seen to end)  └─▶ quarantined
//!   any of them ── fail ──▶ failed ── repair ──▶ free
//! ```
//!
//! *Idle* frames wait in the backlog. What a dead client's device may still write to is *detached*
//! before it is free: the memory behind it is given back to the system, and the detach epoch moves,
//! in [`PoolFrames::detach`] and nowhere else.
//!
//! # What a descriptor says
//!
//! Where a folio begins and how large it is, for every folio. Whether an extent is in use is said
//! by its *head*, the word of its first folio, under which all pins of it are taken: retiring an
//! extent, or the part of it that a cut takes, changes that one word. The words of its inner folios
//! follow in steps, and only where somebody holds them; until then Live or Reserved means
//! "somebody's" there and nothing more, while Dying and Quarantined are true. Free, Offline and
//! Poisoned are said by each folio for itself.
//!
//! # Who may touch what
//!
//! The owner alone (I2), under its lock.

mod backings;
mod cut;
mod failure;
mod orphans;
mod reclaim;
mod recovery;

use std::sync::Arc;

use pgmap_mm::descriptor::{Descriptor, FolioFlags, FolioState};
use pgmap_mm::extent::Extent;
use pgmap_mm::folio::{Folios, Sizing};
use pgmap_mm::frames::{Frames, FramesShort};
use pgmap_mm::index::{EntryId, ExtentList, Facts, IndexFull, IndexWriter};
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::runs::SortedRuns;
use pgmap_mm::split::{NoSmallCounts, Reshaped};
use pgmap_mm::stamp::{Stamp, StampSource};
use pgmap_mm::vmemmap::Vmemmap;
use pgmap_mm::words::WriteWords;
use pgmap_os::WriteMapping;

use crate::error::Error;
use crate::memory::Writable;
use crate::name::FileName;
use crate::owner::backing::{Backing, Backings};
use crate::pool::Pool;
use crate::pool::catalog::{Catalog, Change};
use crate::refusal::Refusal;

pub(crate) use backings::stored;
pub(crate) use cut::{CutFrames, MAX_FILE_EXTENTS};
pub(crate) use failure::frame_of;

use orphans::Orphans;
use reclaim::Backlog;
pub(crate) use reclaim::STEP_FOLIOS;

/// The frames of a pool.
#[derive(Debug)]
pub(crate) struct PoolFrames {
    pool: Arc<Pool>,
    folios: Folios<Writable>,
    index: IndexWriter<Writable>,
    backings: Backings,
    stamps: StampSource,
    /// Frames that dead clients' devices may still write to.
    orphans: Orphans,
    /// Frames whose memory failed.
    failed: Frames,
    /// Frames that are out of use because a dead client's device cannot be kept out of them: for
    /// good, or until the rest of their page of memory is free.
    quarantined: Frames,
    /// Free frames of parts that are drained, which nobody gets.
    withheld: Frames,
    /// Frames that nobody holds and that are still to be freed.
    backlog: Backlog,
}

/// Where a file is in the index, and under which name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listed<'a> {
    pub name: &'a FileName,
    pub facts: Facts<'a>,
}

impl From<IndexFull> for Refusal {
    fn from(full: IndexFull) -> Self {
        if full.lacks_memory {
            return Self::NoMemory { why: "its file system has no room for the index".into() };
        }
        Self::IndexFull { nr_slots: full.nr_slots as u64 }
    }
}

impl PoolFrames {
    /// Maps the books of `pool`. Those of a pool that was in use before are read by
    /// [`recover_extent`](Self::recover_extent) and what follows it.
    ///
    /// # Errors
    /// [`Error::Os`] when the pool cannot be mapped, [`Error::BadPool`] when a file is too short.
    pub(crate) fn open(pool: &Arc<Pool>) -> Result<Self, Error> {
        let bad = |why: &str| Error::BadPool { pool: pool.name(), why: why.into() };
        let map = |name, file: &Arc<pgmap_os::MemoryFile>, start: u64, nr_words: usize| {
            let mapping = WriteMapping::map(file, start, nr_words as u64 * 8)?;
            mapping.advise_dont_fork()?;
            let file = Arc::clone(file);
            let words = match pool.directory() {
                Some(_) => Writable::over_file(mapping, file, start),
                None => Writable::over_memory(mapping, file, start),
            };
            Ok::<_, Error>(words.named(name))
        };
        let no_room = || {
            bad("its file system has no room for descriptors and index; make some, or enlarge it")
        };
        let vmemmap_start = pool.vmemmap_start();
        let vmemmap_words =
            map("descriptor", &pool.vmemmap, vmemmap_start, pool.vmemmap_layout.nr_words())?;
        let is_there = vmemmap_words.reserve(pool.vmemmap_layout.always_used());
        is_there.then_some(()).ok_or_else(no_room)?;
        let vmemmap = Vmemmap::new(pool.vmemmap_layout, vmemmap_words)
            .ok_or_else(|| bad("its descriptor file is too short"))?;
        let index_words = map("index word", &pool.index, 0, pool.index_layout.nr_words())?;
        let is_there = index_words.reserve(pool.index_layout.always_used());
        is_there.then_some(()).ok_or_else(no_room)?;
        let seed = pgmap_os::identity::random_u64();
        let index = if pool.is_new {
            IndexWriter::new(pool.index_layout, index_words, seed)
        } else {
            IndexWriter::reopen(pool.index_layout, index_words, seed)
        }
        .ok_or_else(|| bad("its index file is too short"))?;
        let mut folios = Folios::new(vmemmap);
        if !Pfn::new(0).is_some_and(|first| folios.bring_online(first, pool.nr_pages())) {
            return Err(no_room());
        }
        if let Some(head) = pool.head
            && let Some(run) = PfnRange::new(0, head.head_bytes / PAGE_BYTES)
        {
            let is_described = folios.reclaim(run, Level::Pud, Descriptor::OFFLINE);
            is_described.then_some(()).ok_or_else(no_room)?;
        }
        let first_stamp = pool.catalog.as_ref().map_or(1, Catalog::stamp_limit);
        let mut frames = Self {
            backings: Backings::new(
                &pool.data,
                pool.nr_pages(),
                pool.capacity_bytes() / PAGE_BYTES,
                pool.memory_type(),
            ),
            folios,
            index,
            stamps: StampSource::starting_at(first_stamp),
            orphans: Orphans::default(),
            failed: Frames::new(),
            quarantined: Frames::new(),
            withheld: Frames::new(),
            backlog: Backlog::default(),
            pool: Arc::clone(pool),
        };
        frames.open_backings()?;
        Ok(frames)
    }

    /// The descriptors, to be read.
    pub(crate) const fn vmemmap(&self) -> &Vmemmap<Writable> {
        self.folios.vmemmap()
    }

    /// The smallest folio that the pool describes.
    pub(crate) const fn smallest(&self) -> Level {
        self.folios.smallest()
    }

    /// Frames that are free.
    pub(crate) const fn free_pages(&self) -> u64 {
        self.folios.frames().free_pages()
    }

    /// Frames of the longest free run.
    pub(crate) fn longest_free_run(&self) -> u64 {
        self.folios.frames().longest_run_pages()
    }

    /// Whether all of `run` is free.
    pub(crate) fn is_free(&self, run: PfnRange) -> bool {
        self.folios.frames().is_free(run)
    }

    /// Frames whose memory failed.
    pub(crate) const fn failed_pages(&self) -> u64 {
        self.failed.free_pages()
    }

    /// Frames that no device can be kept out of.
    pub(crate) const fn quarantined_pages(&self) -> u64 {
        self.quarantined.free_pages()
    }

    /// Bytes of memory behind the data now.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.backings.resident_bytes()
    }

    /// A stamp that nobody had before, on record before it is used (I4).
    pub(crate) fn take_stamp(&mut self) -> Result<Stamp, Refusal> {
        if let Some(limit) = self.stamps.reservation_due() {
            self.pool.record(&[Change::StampLimit(limit)])?;
            self.stamps.reserved_up_to(limit);
        }
        self.stamps
            .take()
            .ok_or_else(|| Refusal::Internal { why: "all 2^48 stamps are used up".into() })
    }

    /// Frames that a file of `len_bytes` takes; `None` when that overflows, or its folios are too
    /// small to be described.
    pub(crate) fn pages_for(&self, len_bytes: u64, sizing: Sizing) -> Option<u64> {
        self.folios.pages_for(len_bytes, sizing)
    }

    /// Hands out `nr_pages` frames, as [`pages_for`](Self::pages_for) says, under a stamp of their
    /// own, of the first backing of `order` that has them; backings are named by their first
    /// frames. Frees what waits to be freed when that is needed. The frames may have no memory yet:
    /// see [`back`](Self::back).
    ///
    /// # Errors
    /// [`FramesShort`] of the last of them, when there are not so many, or only in too many pieces.
    /// Nothing is taken.
    pub(crate) fn reserve(
        &mut self,
        nr_pages: u64,
        sizing: Sizing,
        stamp: Stamp,
        order: &[u64],
    ) -> Result<Vec<Extent>, FramesShort> {
        loop {
            let mut short = FramesShort { wanted_pages: nr_pages, ..FramesShort::default() };
            for &zone in order {
                match self.folios.reserve_in(zone, nr_pages, sizing, stamp) {
                    Ok(extents) => return Ok(extents),
                    // Whichever it was: more free frames would not help.
                    Err(error) => {
                        let lacks_descriptors = short.lacks_descriptors | error.lacks_descriptors;
                        short = FramesShort { lacks_descriptors, ..error };
                    }
                }
            }
            if !self.has_backlog() {
                return Err(short);
            }
            self.reclaim_some();
        }
    }

    /// Makes sure that `extents` have memory behind them.
    ///
    /// # Errors
    /// [`Refusal::NoMemory`] when the system has none.
    pub(crate) fn back(&mut self, extents: &[Extent]) -> Result<(), Refusal> {
        self.backings.ensure(extents.iter().map(|extent| extent.run))
    }

    /// How many frames of `run` have no memory, or may have none.
    pub(crate) fn missing_pages(&self, run: PfnRange) -> u64 {
        self.backings.missing_pages(run)
    }

    /// Takes note that all of `run` has memory.
    pub(crate) fn has_memory(&mut self, run: PfnRange) {
        self.backings.has_memory(run);
    }

    /// All frames that are not free.
    pub(crate) fn all_in_use(&self) -> SortedRuns {
        let all = self.backings.iter().flat_map(Backing::runs);
        all.flat_map(|run| self.folios.frames().without_free(run)).collect()
    }

    /// Takes back what [`reserve`](Self::reserve) handed out, before anybody knows of it.
    pub(crate) fn give_back(&mut self, extents: &[Extent]) {
        extents.iter().for_each(|extent| self.folios.free(extent.run));
    }

    /// The present generation of uses: one for each file that was listed since there was one that
    /// may be evicted; 0 before.
    pub(crate) fn generation(&self) -> u64 {
        self.index.generation()
    }

    /// Begins a generation of uses, and returns the one that ends with it.
    pub(crate) fn begin_generation(&self) -> u64 {
        self.index.begin_generation()
    }

    /// Frames that are free in the zone around `pfn`.
    pub(crate) fn free_around(&self, pfn: u64) -> u64 {
        self.folios.frames().free_in_zone(pfn).0
    }

    /// How many frames of `run` are not free.
    pub(crate) fn pages_in_use(&self, run: PfnRange) -> u64 {
        self.folios.frames().without_free(run).iter().map(|run| run.nr_pages()).sum()
    }

    /// Index slots that files of so many extents take together.
    pub(crate) fn slots_for(&self, nr_extents: usize) -> usize {
        self.index.slots_for(nr_extents)
    }

    /// Whether `nr_slots` more slots of the index can be had.
    ///
    /// # Errors
    /// [`Refusal::IndexFull`] when not.
    pub(crate) fn check_room(&self, nr_slots: usize) -> Result<(), Refusal> {
        Ok(self.index.check_room(nr_slots)?)
    }

    /// Whether the next `nr_slots` slots of the index can have user metadata.
    ///
    /// # Errors
    /// [`Refusal::NoMemory`] when not.
    pub(crate) fn check_metadata_room(&self, nr_slots: usize) -> Result<(), Refusal> {
        Ok(self.index.check_metadata_room(nr_slots)?)
    }

    /// Publishes a draft's frames as a file: their folios become Live under `flags`, and the index
    /// names them. On record already.
    pub(crate) fn publish(
        &mut self,
        file: Listed<'_>,
        drafted: &[Extent],
        flags: FolioFlags,
    ) -> Result<(Vec<Extent>, EntryId), Refusal> {
        let extents = self.folios.publish(drafted, flags);
        let entry = self.list(file, &extents)?;
        Ok((extents, entry))
    }

    /// Names frames in the index that are Live already.
    pub(crate) fn list(
        &mut self,
        file: Listed<'_>,
        extents: &[Extent],
    ) -> Result<EntryId, Refusal> {
        let list: ExtentList = extents.iter().copied().collect();
        Ok(self.index.insert(file.name.as_bytes(), file.facts, &list)?)
    }

    /// Writes what the index says of a file again. Cannot fail where the file has no more extents
    /// than before.
    pub(crate) fn relist(
        &mut self,
        entry: EntryId,
        file: Listed<'_>,
        extents: &[Extent],
    ) -> Result<(), Refusal> {
        let list: ExtentList = extents.iter().copied().collect();
        Ok(self.index.update(entry, file.name.as_bytes(), file.facts, &list)?)
    }

    /// Gives a file another name in the index; returns its new entry.
    pub(crate) fn rename(
        &mut self,
        entry: EntryId,
        from: &FileName,
        to: Listed<'_>,
        extents: &[Extent],
    ) -> Result<EntryId, Refusal> {
        let list: ExtentList = extents.iter().copied().collect();
        let names = (from.as_bytes(), to.name.as_bytes());
        Ok(self.index.rename(entry, names, to.facts, &list)?)
    }

    /// Takes a file's name out of the index.
    pub(crate) fn unlist(&mut self, entry: EntryId, name: &FileName) {
        self.index.remove(entry, name.as_bytes());
    }

    /// Ends the lives of extents: from the next heavy barrier on nobody can pin them. One word an
    /// extent; see the head of this file.
    pub(crate) fn retire<'e>(&mut self, extents: impl IntoIterator<Item = &'e Extent>) {
        for extent in extents.into_iter().filter(|extent| !extent.is_hole()) {
            let head = PfnRange::folio(extent.first(), extent.head_level);
            self.folios.change_healthy(head, |word| word.in_state(FolioState::Dying));
        }
    }

    /// As [`retire`](Self::retire), until they are opened again: those that can be pinned by the
    /// files' readers, and by the writers of what is not committed.
    pub(crate) fn shut(&mut self, extents: &[Extent]) {
        self.retire(extents.iter().filter(can_be_pinned));
    }

    /// Undoes [`shut`](Self::shut).
    pub(crate) fn open_again<'e>(&mut self, extents: impl IntoIterator<Item = &'e Extent>) {
        let extents = extents.into_iter().filter(|extent| !extent.is_hole());
        for extent in extents.filter(can_be_pinned) {
            let head = PfnRange::folio(extent.first(), extent.head_level);
            self.folios.change_healthy(head, |word| word.in_state(extent.life.state()));
        }
    }

    /// Keeps what is free of `run` from being handed out.
    pub(crate) fn withhold(&mut self, run: PfnRange) {
        for free in self.folios.frames().within(run) {
            self.folios.claim_any_of(free);
            self.withheld.give(free);
        }
    }

    /// How many frames are withheld.
    pub(crate) const fn withheld_pages(&self) -> u64 {
        self.withheld.free_pages()
    }

    /// Whether a dead client's device may still write to a frame of `run`.
    pub(crate) fn is_orphaned(&self, run: PfnRange) -> bool {
        self.orphans.overlaps(run)
    }

    /// Runs of free frames: start and pages.
    #[cfg(test)]
    pub(crate) fn free_runs_for_tests(&self) -> Vec<(u64, u64)> {
        self.folios.frames().runs().collect()
    }

    /// Undoes [`withhold`](Self::withhold).
    pub(crate) fn end_withholding(&mut self, run: PfnRange) {
        for kept in self.withheld.within(run) {
            self.withheld.take_any_of(kept);
            self.folios.free(kept);
        }
    }

    /// Tells clients that the pool's backings changed.
    pub(crate) fn backings_changed(&self) {
        self.index.bump_backings_epoch();
    }

    /// Tells clients that what they registered of the pool with devices is of no use any more.
    pub(crate) fn registrations_ended(&self) {
        self.index.bump_detach_epoch();
    }

    /// Tells clients that nobody may use the memory any more.
    pub(crate) fn close(&self) {
        self.index.close();
    }

    /// As [`retire`](Self::retire), for frames that are part of an extent, or of no known one:
    /// every folio of `run`.
    pub(crate) fn retire_run(&mut self, run: PfnRange) {
        self.folios.change_healthy(run, |word| word.in_state(FolioState::Dying));
    }

    /// As [`retire`](Self::retire), for what a cut takes: runs of whole folios, of which the first
    /// may be the head of an extent. The cut changed the words of all other extents that had some
    /// of them.
    pub(crate) fn retire_cut(&mut self, off: &[PfnRange]) {
        for run in off {
            if let Some((level, _)) = self.vmemmap().folio_of(run.first()) {
                self.retire_run(PfnRange::folio(run.first(), level));
            }
        }
    }

    /// Notes that a deadline passed and somebody still holds `run`: it stays out of use until then.
    fn quarantine_run(&mut self, run: PfnRange) {
        self.folios.change_healthy(run, |word| word.in_state(FolioState::Quarantined));
    }

    /// Writes another policy into the life words of a file, where it is in use.
    pub(crate) fn set_flags(&mut self, extents: &mut [Extent], flags: FolioFlags) {
        for extent in extents.iter_mut().filter(|e| e.life.state() == FolioState::Live) {
            let kept = extent.life.flags().contains(FolioFlags::PARTIAL);
            let partial = if kept { FolioFlags::PARTIAL } else { FolioFlags::NONE };
            self.folios.change_healthy(extent.run, |word| match word.state() {
                FolioState::Live => word.with_flags(flags),
                _ => word,
            });
            extent.life = extent.life.with_flags(flags.with(partial));
            self.folios.restore_life(extent);
        }
    }

    /// Splits the folio around `pfn`, after `record` put on record what that does (I10).
    ///
    /// # Errors
    /// As `Folios::split`, and as `record`; nothing is changed then.
    pub(crate) fn split(
        &mut self,
        pfn: Pfn,
        to: Level,
        record: impl FnOnce(&Reshaped) -> Result<(), Refusal>,
    ) -> Result<Reshaped, Refusal> {
        record(&self.folios.plan_split(pfn, to)?)?;
        Ok(self.folios.split(pfn, to)?)
    }

    /// Merges the folios around `pfn`, after `record` put on record what that does (I10).
    ///
    /// # Errors
    /// As `Folios::merge`, and as `record`; nothing is changed then.
    pub(crate) fn merge(
        &mut self,
        extent: &Extent,
        pfn: Pfn,
        to: Level,
        proof: &NoSmallCounts,
        record: impl FnOnce(&Reshaped) -> Result<(), Refusal>,
    ) -> Result<Reshaped, Refusal> {
        let fresh = self.take_stamp()?;
        self.folios.merge_after((extent, pfn), to, fresh, proof, record)
    }

    /// Brings the frames of a further pagemap up as Live folios of at most `largest`, which are
    /// never free for files. A device of a dead client that may still write there, because an
    /// earlier owner had the same pagemap, is kept out first.
    ///
    /// # Errors
    /// [`Refusal::NoMemory`] when there is no memory for them; nothing is brought up then.
    pub(crate) fn bring_up(
        &mut self,
        runs: &SortedRuns,
        largest: Level,
        word: Descriptor,
    ) -> Result<Vec<Extent>, Refusal> {
        for run in runs.iter() {
            if self.orphans.overlaps(run) {
                self.detach(run)?;
            }
        }
        self.backings.ensure(runs.iter())?;
        let has_room = |run: PfnRange| {
            self.folios.has_descriptors(run, largest)
                && self.folios.bring_online(run.first(), run.nr_pages())
                && self.folios.reclaim(run, largest, word)
        };
        if !runs.iter().all(has_room) {
            let why = "its file system has no room for the pagemap's descriptors".into();
            return Err(Refusal::NoMemory { why });
        }
        Ok(runs.iter().filter_map(|run| self.folios.piece(run)).collect())
    }

    /// Zeroes what lies behind the end of a file in its last page, so that a mapping of the page
    /// shows nothing that was somebody else's.
    ///
    /// # Errors
    /// [`Refusal::Internal`] when the memory does not answer.
    pub(crate) fn zero_tail(&self, extents: &[Extent], len_bytes: u64) -> Result<(), Refusal> {
        let used = len_bytes % PAGE_BYTES;
        if used == 0 {
            return Ok(());
        }
        let mut page = len_bytes / PAGE_BYTES;
        for extent in extents {
            if page < extent.run.nr_pages() {
                let is_written = !extent.is_hole() && extent.life.state() != FolioState::Poisoned;
                return match extent.run.sub_run(page, 1) {
                    Some(run) if is_written => self.backings.zero(run, used..PAGE_BYTES),
                    _ => Ok(()),
                };
            }
            page -= extent.run.nr_pages();
        }
        Ok(())
    }

    /// Replaces the memory behind `run`, which nobody holds but perhaps a dead client's device: the
    /// device keeps the old memory, and who gets the frames next gets other memory. Whole pages of
    /// the backing only.
    ///
    /// # Errors
    /// When the backing cannot do that; the frames must not be used again.
    fn detach(&mut self, run: PfnRange) -> Result<(), Refusal> {
        self.backings.detach(run)?;
        self.index.bump_detach_epoch();
        self.orphans.forget(run);
        Ok(())
    }

    /// `run`, widened to whole pages of the backing.
    fn whole_pages(&self, run: PfnRange) -> PfnRange {
        let unit = self.page_bytes(run) / PAGE_BYTES;
        let start = run.start() - run.start() % unit;
        PfnRange::new(start, run.end().next_multiple_of(unit) - start).unwrap_or(run)
    }
}

/// Whether somebody who knows the extent can take a pin of it.
fn can_be_pinned(extent: &&Extent) -> bool {
    matches!(extent.life.state(), FolioState::Live | FolioState::Reserved)
}
