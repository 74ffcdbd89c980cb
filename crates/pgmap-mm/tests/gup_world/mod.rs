//! A pool with files for tests of address spaces: 1 GiB of frames by default, one client, and an
//! owner who creates, truncates and poisons.
// Each test uses its own part.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use pgmap_mm::barrier::{BarrierMode, PortableBarrier};
use pgmap_mm::descriptor::{Descriptor, FolioFlags, FolioState};
use pgmap_mm::drain::{ClientId, Drain};
use pgmap_mm::error::errno;
use pgmap_mm::extent::Extent;
use pgmap_mm::ledger::{Hold, LedgerLayout, LedgerReader};
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::mm::{CpuMapping, MapRequest, Mm, TableMemory, Vacancy};
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::pin::Pinner;
use pgmap_mm::prot::Prot;
use pgmap_mm::runs::SortedRuns;
use pgmap_mm::stamp::Stamp;
use pgmap_mm::vma::{AreaBacking, Backed, BackingError, VmaKind};
use pgmap_mm::vmemmap::{Vmemmap, VmemmapLayout};
use pgmap_mm::words::{HeapCounts, HeapWords};

use crate::client_side;

/// Pages of 2 MiB.
pub const HUGE: u64 = Level::Pmd.nr_pages();
/// Pages of 1 GiB.
pub const GIGANTIC: u64 = Level::Pud.nr_pages();
/// Bytes of a page, of 2 MiB, of 1 GiB.
pub const PAGE: u64 = PAGE_BYTES;
pub const MIB2: u64 = Level::Pmd.size_bytes();
pub const GIB: u64 = Level::Pud.size_bytes();

/// What the client brings; nobody listens to its bell.
pub type Side = client_side::Side<Arc<HeapWords>, Arc<HeapCounts>, ()>;

/// What a file is now.
#[derive(Debug, Default)]
pub struct FileState {
    /// In file order; together they are the file's frames.
    pub extents: Vec<Extent>,
    pub nr_pages: u64,
    pub is_dead: bool,
    /// A page of the file that gives this error.
    pub failing: Option<(u64, BackingError)>,
    /// How often an extent was asked for.
    pub nr_asked: u64,
}

/// A file, a device, or whatever an area needs.
#[derive(Debug)]
pub struct File {
    pub kind: VmaKind,
    pub most_prot: Prot,
    pub state: Mutex<FileState>,
}

impl AreaBacking for File {
    fn kind(&self) -> VmaKind {
        self.kind
    }

    fn is_alive(&self) -> bool {
        !self.state.lock().unwrap().is_dead
    }

    fn most_prot(&self) -> Prot {
        self.most_prot
    }

    fn nr_pages(&self) -> u64 {
        self.state.lock().unwrap().nr_pages
    }

    fn extent_at(&self, page: u64) -> Result<Backed, BackingError> {
        let mut state = self.state.lock().unwrap();
        state.nr_asked += 1;
        if let Some((failing, error)) = state.failing
            && failing == page
        {
            return Err(error);
        }
        let mut first = 0;
        for extent in &state.extents {
            let nr_pages = extent.run.nr_pages();
            if page < first + nr_pages {
                return Ok(Backed { extent: *extent, skip: page - first });
            }
            first += nr_pages;
        }
        Err(BackingError::BeyondEnd)
    }
}

impl File {
    /// The frame of a page of the file.
    pub fn frame(&self, page: u64) -> Option<u64> {
        let state = self.state.lock().unwrap();
        let mut first = 0;
        for extent in &state.extents {
            if page < first + extent.run.nr_pages() {
                return (page < state.nr_pages).then(|| extent.run.start() + page - first);
            }
            first += extent.run.nr_pages();
        }
        None
    }
}

/// What a processor sees at each page: frame and permissions.
#[derive(Debug)]
pub struct FakeCpu {
    vmemmap: Vmemmap<Arc<HeapWords>>,
    pub pages: Mutex<BTreeMap<u64, (u64, Prot)>>,
}

impl CpuMapping for FakeCpu {
    fn map(&self, address: u64, extent: &Extent, run: PfnRange, prot: Prot) -> Result<(), i32> {
        assert!(extent.run.covers(run));
        if self.vmemmap.load(extent.head_level, extent.first()) != Some(extent.life) {
            return Err(errno::ESTALE);
        }
        let mut pages = self.pages.lock().unwrap();
        for at in 0..run.nr_pages() {
            pages.insert(address / PAGE + at, (run.start() + at, prot));
        }
        Ok(())
    }

    fn unmap(&self, address: u64, len_bytes: u64, _: Vacancy) {
        let mut pages = self.pages.lock().unwrap();
        let after = pages.split_off(&((address + len_bytes) / PAGE));
        pages.split_off(&(address / PAGE));
        pages.extend(after);
    }
}

/// What folios of ordinary files say.
pub const FLAGS: FolioFlags = FolioFlags::WRITABLE.with(FolioFlags::LONGTERM_OK);

/// The pool and its owner.
#[derive(Debug)]
pub struct World {
    pub layout: VmemmapLayout,
    words: Arc<HeapWords>,
    pub vmemmap: Vmemmap<Arc<HeapWords>>,
    pub pinner: Pinner<Side>,
    reader: LedgerReader<Arc<HeapWords>, Arc<HeapCounts>>,
    next_stamp: Mutex<u64>,
    /// Free frames: from here on nothing was ever used.
    next_frame: Mutex<u64>,
    /// Frames given back, whole 2 MiB each.
    freed: Mutex<Vec<u64>>,
}

impl World {
    /// A pool of this many GiB.
    pub fn new(nr_gib: u64) -> Self {
        let layout = VmemmapLayout::for_pages(nr_gib * GIGANTIC).unwrap();
        let words = Arc::new(HeapWords::new(layout.nr_words()));
        let vmemmap = || Vmemmap::new(layout, Arc::clone(&words)).unwrap();
        let ledger_layout = LedgerLayout::with_lanes(&layout, 4, 1024);
        let ledger = Arc::new(HeapWords::new(ledger_layout.nr_words()));
        let counts = Arc::new(HeapCounts::new(ledger_layout.nr_counts()));
        let side = Side {
            ledger: ledger.clone(),
            counts: counts.clone(),
            vmemmap: vmemmap(),
            barrier_mode: BarrierMode::Fenced,
            bell: (),
            is_forked: Arc::default(),
            identity: 1,
        };
        Self {
            layout,
            vmemmap: vmemmap(),
            words,
            pinner: Pinner::new(side, ledger_layout).unwrap(),
            reader: LedgerReader::new(ledger_layout, ledger, counts).unwrap(),
            next_stamp: Mutex::new(1),
            next_frame: Mutex::new(0),
            freed: Mutex::default(),
        }
    }

    /// A process's address space of this length from address 0 on, and what its processor sees.
    pub fn process_mm(&self, len_bytes: u64) -> (Mm, Arc<FakeCpu>) {
        let words = Arc::clone(&self.words);
        let vmemmap = Vmemmap::new(self.layout, words).unwrap();
        let cpu = Arc::new(FakeCpu { vmemmap, pages: Mutex::default() });
        (Mm::for_process(TableMemory::HEAP, &self.layout, 0, len_bytes, cpu.clone()).unwrap(), cpu)
    }

    /// A device's address space of this length from address 0 on.
    pub fn mm(&self, len_bytes: u64) -> Mm {
        Mm::for_device(&self.layout, 0, len_bytes).unwrap()
    }

    fn fresh_life(&self, flags: FolioFlags) -> Descriptor {
        let mut next = self.next_stamp.lock().unwrap();
        *next += 1;
        Descriptor::new(FolioState::Live, flags, Stamp::new(*next).unwrap())
    }

    /// Frames of one extent, whose first is a multiple of `align` pages.
    fn take_frames(&self, nr_pages: u64, align: u64) -> u64 {
        let mut freed = self.freed.lock().unwrap();
        if nr_pages <= HUGE
            && align <= HUGE
            && let Some(first) = freed.pop()
        {
            return first;
        }
        let mut next = self.next_frame.lock().unwrap();
        // Whole 2 MiB, so that they can be given back.
        let first = next.next_multiple_of(align.max(HUGE));
        *next = (first + nr_pages).next_multiple_of(HUGE);
        assert!(*next <= self.layout.nr_pages(), "the test's pool is too small");
        first
    }

    /// An extent of `nr_pages` frames in folios of `level`.
    pub fn extent(&self, nr_pages: u64, level: Level, flags: FolioFlags) -> Extent {
        let level = fitting(level, nr_pages);
        let first = self.take_frames(nr_pages, level.nr_pages());
        let run = PfnRange::new(first, nr_pages).unwrap();
        let extent = Extent::new(run, level, self.fresh_life(flags)).unwrap();
        self.set_life(&extent, extent.life);
        extent
    }

    /// Writes the life word of an extent.
    pub fn set_life(&self, extent: &Extent, life: Descriptor) {
        self.vmemmap.set(extent.head_level, extent.first(), life);
    }

    /// A file of the given extents' lengths in pages, all of folios of `level`.
    pub fn file(&self, kind: VmaKind, level: Level, extents: &[u64]) -> Arc<File> {
        self.file_with(kind, level, extents, FLAGS)
    }

    /// As [`file`](Self::file) with folios that say `flags`.
    pub fn file_with(
        &self,
        kind: VmaKind,
        level: Level,
        extents: &[u64],
        flags: FolioFlags,
    ) -> Arc<File> {
        let extents: Vec<_> =
            extents.iter().map(|&nr_pages| self.extent(nr_pages, level, flags)).collect();
        let nr_pages = extents.iter().map(|extent| extent.run.nr_pages()).sum();
        let state = FileState { extents, nr_pages, ..FileState::default() };
        Arc::new(File { kind, most_prot: Prot::READ_WRITE, state: Mutex::new(state) })
    }

    /// Lets every extent from page `from` of the file on die and shortens the one across it, which
    /// gets a new life. Returns the frames that are no longer the file's. No address space is
    /// notified.
    pub fn truncate(&self, file: &File, nr_pages: u64) -> Vec<PfnRange> {
        let mut state = file.state.lock().unwrap();
        let mut first = 0;
        let mut gone = Vec::new();
        let mut kept = Vec::new();
        for extent in std::mem::take(&mut state.extents) {
            let end = first + extent.run.nr_pages();
            if end <= nr_pages {
                kept.push(extent);
            } else if first >= nr_pages {
                self.set_life(&extent, extent.life.in_state(FolioState::Dying));
                gone.push(extent.run);
            } else {
                let left = nr_pages - first;
                let flags = extent.life.flags();
                let run = extent.run.sub_run(0, left).unwrap();
                self.set_life(&extent, extent.life.in_state(FolioState::Dying));
                let level = fitting(extent.head_level, left);
                let piece = Extent::new(run, level, self.fresh_life(flags)).unwrap();
                self.set_life(&piece, piece.life);
                gone.extend(extent.run.without(run).1);
                kept.push(piece);
            }
            first = end;
        }
        state.extents = kept;
        state.nr_pages = state.nr_pages.min(nr_pages);
        gone
    }

    /// Adds an extent to the file.
    pub fn grow(&self, file: &File, nr_pages: u64, level: Level) {
        let extent = self.extent(nr_pages, level, FLAGS);
        let mut state = file.state.lock().unwrap();
        state.extents.push(extent);
        state.nr_pages += nr_pages;
    }

    /// Gives frames back for reuse, in whole 2 MiB that lie wholly in the run. A drain must have
    /// found them idle.
    pub fn free(&self, run: PfnRange) {
        assert!(self.held(run).is_empty(), "freed while held");
        let mut at = run.start().next_multiple_of(HUGE);
        while at + HUGE <= run.end().next_multiple_of(HUGE) && at < run.end() {
            self.freed.lock().unwrap().push(at);
            at += HUGE;
        }
    }

    /// What a drain of the run finds in its way.
    pub fn held(&self, run: PfnRange) -> Vec<Hold> {
        let runs: SortedRuns = [run].into_iter().collect();
        let drain = Drain::start(runs, &PortableBarrier, [(ClientId(1), &self.reader)]);
        drain.held().iter().map(|held| held.hold).collect()
    }

    /// Every hold of the client.
    pub fn all_holds(&self) -> Vec<Hold> {
        self.reader.all_holds()
    }
}

/// The level of the first folio of an extent of this length.
fn fitting(level: Level, nr_pages: u64) -> Level {
    if nr_pages < level.nr_pages() { Level::Pte } else { level }
}

/// A mapping of the whole file at this address.
pub fn whole(file: &Arc<File>, address: u64) -> MapRequest {
    let nr_pages = file.state.lock().unwrap().nr_pages;
    MapRequest::new(file.clone(), nr_pages * PAGE).at(address)
}

/// The first frame number of a page frame.
pub fn pfn(number: u64) -> Pfn {
    Pfn::new(number).unwrap()
}
