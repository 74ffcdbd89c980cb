//! The memory behind the frames, of each backing: taken from the system when frames are handed out,
//! so that a shortage is an error there and never a signal later.
//!
//! The first backing is the pool's data, from frame 0 on. Each further one starts at a 1 GiB
//! boundary, with a frame before it that is nobody's, so that no run of frames that is free or
//! somebody's lies in two of them. What can be done with a frame's memory is asked of its backing.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use pgmap_mm::frames::Frames;
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::memory_type::MemoryType;
use pgmap_mm::pfn::{MAX_RUN_PAGES, PfnRange};
use pgmap_os::{LongTerm, MemoryFile, ParentFd};

use crate::pool::backing::DATA_NAME;
use crate::refusal::Refusal;

/// Most backings of a pool, its data among them.
pub(crate) const MAX_BACKINGS: usize = 8;

/// Whether files may be put on a backing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BackingState {
    /// They may.
    Open,
    /// It is to go when nobody holds a frame of it.
    Leaving,
    /// Its medium is not there, for this reason.
    Missing(String),
}

/// One memory and its frames.
#[derive(Debug)]
pub(crate) struct Backing {
    /// 0 for the pool's data.
    pub id: u64,
    pub name: String,
    pub path: PathBuf,
    pub first_pfn: u64,
    /// Frames that files can have.
    pub nr_pages: u64,
    /// Where in the medium the first frame lies.
    pub offset_bytes: u64,
    pub memory_type: MemoryType,
    pub state: BackingState,
    /// The medium, if it is there.
    pub data: Option<Arc<MemoryFile>>,
    /// Kept as long as the owner has it.
    pub lock: Option<ParentFd>,
    /// Frames up to here lie in the medium.
    pub end_pfn: u64,
    #[cfg(test)]
    pub as_if: AsIf,
}

/// Memory that a machine of tests does not have.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AsIf {
    /// It comes in pages of so many bytes.
    pub page_bytes: Option<u64>,
    /// It cannot be detached, as a device's.
    pub is_attached: bool,
    /// Its device went away.
    pub is_gone: bool,
    /// Its device says that this page of it failed.
    pub bad_page: Option<u64>,
}

impl Backing {
    /// The medium.
    ///
    /// # Errors
    /// [`Refusal::NoBacking`] when it is not there.
    pub(crate) fn file(&self) -> Result<&Arc<MemoryFile>, Refusal> {
        let why = match &self.state {
            BackingState::Missing(why) => why.clone(),
            BackingState::Open | BackingState::Leaving => "it is gone".into(),
        };
        self.data.as_ref().ok_or_else(|| Refusal::NoBacking { backing: self.name.clone(), why })
    }

    /// Where the frames of `run` lie in the medium.
    pub(crate) fn bytes_of(&self, run: PfnRange) -> Range<u64> {
        let start = self.offset_bytes + (run.start() - self.first_pfn) * PAGE_BYTES;
        start..start + run.len_bytes()
    }

    /// Bytes of one page of the medium, the least that can be replaced.
    pub(crate) fn page_bytes(&self) -> u64 {
        #[cfg(test)]
        if let Some(bytes) = self.as_if.page_bytes {
            return bytes;
        }
        self.data.as_ref().map_or(PAGE_BYTES, |data| data.page_size().len_bytes())
    }

    /// Whether memory can be given back to the system.
    pub(crate) fn can_detach(&self) -> bool {
        #[cfg(test)]
        if self.as_if.is_attached {
            return false;
        }
        #[cfg(feature = "sim")]
        if pgmap_os::sim::with(|world| world.can_punch()) == Some(false) {
            return false;
        }
        self.data.as_ref().is_some_and(|data| data.kind().can_punch())
    }

    /// Who may hold it long-term.
    pub(crate) fn long_term(&self) -> LongTerm {
        self.data.as_ref().map_or(LongTerm::Refused, |data| data.kind().long_term())
    }

    /// Frames whose memory failed, as its device says.
    pub(crate) fn bad_frames(&self) -> Vec<u64> {
        #[cfg(test)]
        if let Some(page) = self.as_if.bad_page {
            return vec![self.first_pfn + page];
        }
        let bad = self.data.as_ref().map(|data| data.bad_bytes()).transpose();
        let bad = bad.unwrap_or_else(|error| {
            tracing::warn!(backing = %self.name, %error, "what failed of it is not known");
            None
        });
        let (start, end) = (self.offset_bytes, self.offset_bytes + self.nr_pages * PAGE_BYTES);
        let frames = bad.into_iter().flatten().flat_map(|bytes| {
            let (from, to) = (bytes.start.max(start), bytes.end.min(end));
            let pages = from.saturating_sub(start) / PAGE_BYTES
                ..to.saturating_sub(start).div_ceil(PAGE_BYTES);
            pages.map(|page| self.first_pfn + page)
        });
        frames.collect()
    }

    /// Its frames.
    pub(crate) fn runs(&self) -> Vec<PfnRange> {
        runs_of(self.first_pfn, self.nr_pages).collect()
    }
}

/// `nr_pages` frames from `first` on as runs.
fn runs_of(first: u64, nr_pages: u64) -> impl Iterator<Item = PfnRange> {
    let starts = (0..nr_pages).step_by(MAX_RUN_PAGES as usize);
    starts.filter_map(move |at| PfnRange::new(first + at, (nr_pages - at).min(MAX_RUN_PAGES)))
}

/// All backings of a pool, and which of their frames have memory behind them.
#[derive(Debug)]
pub(crate) struct Backings {
    /// By their first frames. There is always one.
    all: Vec<Backing>,
    /// Frames that have none, or may have none.
    missing: Frames,
}

impl Backings {
    /// Those of a pool with the frames of its `data` alone. Nothing is known of any frame: each is
    /// asked for once. A device has all of its memory.
    pub(crate) fn new(
        data: &Arc<MemoryFile>,
        nr_pages: u64,
        capacity_pages: u64,
        memory_type: MemoryType,
    ) -> Self {
        let mut backings = Self { all: Vec::new(), missing: Frames::new() };
        backings.add(Backing {
            id: 0,
            name: DATA_NAME.into(),
            path: data.name().into(),
            first_pfn: 0,
            nr_pages,
            offset_bytes: 0,
            memory_type,
            state: BackingState::Open,
            data: Some(Arc::clone(data)),
            lock: None,
            end_pfn: capacity_pages,
            #[cfg(test)]
            as_if: AsIf::default(),
        });
        backings
    }

    /// Takes one in.
    pub(crate) fn add(&mut self, backing: Backing) {
        self.expect_nothing(&backing);
        let place = self.all.partition_point(|other| other.first_pfn < backing.first_pfn);
        self.all.insert(place, backing);
    }

    /// The medium of a backing that was missing is there.
    pub(crate) fn bring_back(&mut self, id: u64, change: impl FnOnce(&mut Backing)) {
        let Some(place) = self.all.iter().position(|backing| backing.id == id) else { return };
        let mut backing = self.all.remove(place);
        change(&mut backing);
        self.add(backing);
    }

    /// Takes one out.
    pub(crate) fn remove(&mut self, id: u64) -> Option<Backing> {
        let place = self.all.iter().position(|backing| backing.id == id && id != 0)?;
        let backing = self.all.remove(place);
        runs_of(backing.first_pfn, backing.nr_pages).for_each(|run| self.missing.take_any_of(run));
        Some(backing)
    }

    /// Nothing is known of the memory of its frames, where it is taken on demand.
    fn expect_nothing(&mut self, backing: &Backing) {
        if backing.data.as_ref().is_some_and(|data| data.kind().must_reserve()) {
            let nr_pages = backing.end_pfn - backing.first_pfn;
            for run in runs_of(backing.first_pfn, nr_pages) {
                self.missing.give(run);
            }
        }
    }

    /// Whether the pool has no further one.
    pub(crate) fn is_data_alone(&self) -> bool {
        self.all.len() == 1
    }

    /// All of them, by their frames.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Backing> {
        self.all.iter()
    }

    /// Says whether files may be put on one.
    pub(crate) fn set_state(&mut self, id: u64, state: BackingState) {
        self.all.iter_mut().filter(|it| it.id == id).for_each(|it| it.state = state.clone());
    }

    /// Has all of them be as if they were other memory.
    #[cfg(test)]
    pub(crate) fn pretend(&mut self, as_if: AsIf) {
        self.iter_mut().for_each(|backing| backing.as_if = as_if);
    }

    /// As [`iter`](Self::iter), to be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Backing> {
        self.all.iter_mut()
    }

    /// The one that `run` lies in: the first if it lies in none.
    pub(crate) fn at(&self, pfn: u64) -> &Backing {
        let place = self.all.partition_point(|backing| backing.first_pfn <= pfn);
        &self.all[place.saturating_sub(1)]
    }

    /// The one of this name or number.
    pub(crate) fn named(&self, name: &str) -> Option<&Backing> {
        self.all.iter().find(|backing| backing.name == name)
    }

    /// Makes sure that `runs` have memory.
    pub(crate) fn ensure(&mut self, runs: impl Iterator<Item = PfnRange>) -> Result<(), Refusal> {
        for run in runs {
            if !self.missing.overlaps(run) {
                continue;
            }
            self.missing.take_any_of(run);
            let backing = self.at(run.start());
            let reserved = backing.file().and_then(|file| {
                file.reserve(backing.bytes_of(run))
                    .map_err(|error| Refusal::NoMemory { why: error.to_string() })
            });
            if let Err(refusal) = reserved {
                self.missing.give(run);
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// How many frames of `run` have no memory, or may have none.
    pub(crate) fn missing_pages(&self, run: PfnRange) -> u64 {
        if !self.missing.overlaps(run) {
            return 0;
        }
        let backed: u64 = self.missing.without_free(run).iter().map(|run| run.nr_pages()).sum();
        run.nr_pages() - backed
    }

    /// Takes note that all of `run` has memory.
    pub(crate) fn has_memory(&mut self, run: PfnRange) {
        self.missing.take_any_of(run);
    }

    /// Replaces the memory behind `run`, which nobody holds but perhaps a dead process's device:
    /// the device keeps the old physical pages, whoever gets the frames next gets others.
    ///
    /// # Errors
    /// When the backing cannot do that; the frames must not be used again.
    pub(crate) fn detach(&mut self, run: PfnRange) -> Result<(), Refusal> {
        let backing = self.at(run.start());
        let (data, bytes, page) = (backing.file()?, backing.bytes_of(run), backing.page_bytes());
        if !backing.can_detach() {
            let why =
                format!("{run} cannot be taken from a device: {} keeps its memory", data.name());
            return Err(Refusal::Internal { why });
        }
        if !bytes.start.is_multiple_of(page) || !bytes.end.is_multiple_of(page) {
            // The system would only zero a part of a page, and leave the page to the device.
            let why = format!("{run} is not whole pages of {page} bytes, which can be detached");
            return Err(Refusal::Internal { why });
        }
        data.punch(bytes).map_err(|error| Refusal::Internal { why: error.to_string() })?;
        self.missing.give(run);
        Ok(())
    }

    /// Zeroes `bytes` of `run`, counted from its start.
    pub(crate) fn zero(&self, run: PfnRange, bytes: Range<u64>) -> Result<(), Refusal> {
        let backing = self.at(run.start());
        let start = backing.bytes_of(run).start;
        let failed = |error: &dyn std::fmt::Display| Refusal::Internal {
            why: format!("the rest of page {run} could not be zeroed: {error}"),
        };
        // Takes no mapping where that can be, for there may be no memory for one.
        let zeros = vec![0; (bytes.end - bytes.start) as usize];
        backing.file()?.write_all_at(&zeros, start + bytes.start).map_err(|error| failed(&error))
    }

    /// Writes `bytes` to the start of `run`.
    pub(crate) fn fill(&self, run: PfnRange, bytes: &[u8]) -> Result<(), Refusal> {
        let failed = |why: String| Refusal::Internal { why };
        let backing = self.at(run.start());
        let data = backing.file()?;
        data.write_all_at(bytes, backing.bytes_of(run).start)
            .map_err(|error| failed(error.to_string()))?;
        // The file may count as synced already.
        data.sync().map_err(|error| failed(error.to_string()))
    }

    /// Bytes of memory behind the data now.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.all
            .iter()
            .filter_map(|backing| backing.data.as_ref())
            .map(|it| it.resident_bytes())
            .sum()
    }

    /// Where a backing of `nr_pages` frames can start, behind `least` and inside `end`, beside the
    /// backings and `kept` frames.
    pub(crate) fn find_place(
        &self,
        nr_pages: u64,
        end: u64,
        kept: impl Iterator<Item = (u64, u64)>,
    ) -> Option<u64> {
        let step = Level::Pud.nr_pages();
        let taken = self.all.iter().map(|backing| (backing.first_pfn, backing.end_pfn));
        let mut taken: Vec<(u64, u64)> = taken.chain(kept).collect();
        taken.sort_unstable();
        let mut at = 0;
        for (first, taken_end) in taken {
            if at > 0 && at + nr_pages < first {
                break;
            }
            at = at.max((taken_end + 1).next_multiple_of(step));
        }
        (at + nr_pages <= end).then_some(at)
    }
}
