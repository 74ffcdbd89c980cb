//! The memory behind the frames: taken from the system when frames are handed out, so that a
//! shortage is an error there and never a signal later.

use std::ops::Range;
use std::sync::Arc;

use pgmap_mm::frames::Frames;
use pgmap_mm::pfn::{MAX_RUN_PAGES, PfnRange};
use pgmap_os::MemoryFile;

use crate::refusal::Refusal;

/// Which frames have memory behind them.
#[derive(Debug)]
pub(crate) struct Backing {
    data: Arc<MemoryFile>,
    page_bytes: u64,
    /// Frames that have none, or may have none.
    missing: Frames,
}

impl Backing {
    /// Nothing is known of any frame: each is asked for once. A device has all of its memory.
    pub(crate) fn new(data: Arc<MemoryFile>, nr_pages: u64) -> Self {
        let mut missing = Frames::new();
        let mut at = if data.kind().must_reserve() { 0 } else { nr_pages };
        while let Some(run) = PfnRange::new(at, (nr_pages - at).min(MAX_RUN_PAGES)) {
            missing.give(run);
            at = run.end();
        }
        let page_bytes = data.page_size().len_bytes();
        Self { data, page_bytes, missing }
    }

    /// Makes sure that `runs` have memory.
    pub(crate) fn ensure(&mut self, runs: impl Iterator<Item = PfnRange>) -> Result<(), Refusal> {
        for run in runs {
            if !self.missing.overlaps(run) {
                continue;
            }
            self.missing.take_any_of(run);
            if let Err(error) = self.data.reserve(run.byte_range()) {
                self.missing.give(run);
                return Err(Refusal::NoMemory { why: error.to_string() });
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
        let (bytes, page) = (run.byte_range(), self.page_bytes);
        if !self.can_detach() {
            let why = format!(
                "{run} cannot be taken from a device: {} keeps its memory",
                self.data.name()
            );
            return Err(Refusal::Internal { why });
        }
        if !bytes.start.is_multiple_of(page) || !bytes.end.is_multiple_of(page) {
            // The system would only zero a part of a page, and leave the page to the device.
            let why = format!("{run} is not whole pages of {page} bytes, which can be detached");
            return Err(Refusal::Internal { why });
        }
        self.data
            .punch(run.byte_range())
            .map_err(|error| Refusal::Internal { why: error.to_string() })?;
        self.missing.give(run);
        Ok(())
    }

    /// Whether memory can be given back to the system at all.
    pub(crate) fn can_detach(&self) -> bool {
        self.data.kind().can_punch()
    }

    /// Bytes of one page of the backing, the least that can be replaced.
    pub(crate) const fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// Zeroes `bytes` of `run`, counted from its start.
    pub(crate) fn zero(&self, run: PfnRange, bytes: Range<u64>) -> Result<(), Refusal> {
        let start = run.byte_range().start;
        let failed = |error: &dyn std::fmt::Display| Refusal::Internal {
            why: format!("the rest of page {run} could not be zeroed: {error}"),
        };
        // Takes no mapping where that can be, for there may be no memory for one.
        let zeros = vec![0; (bytes.end - bytes.start) as usize];
        self.data.write_all_at(&zeros, start + bytes.start).map_err(|error| failed(&error))
    }

    /// Writes `bytes` to the start of `run`.
    pub(crate) fn fill(&self, run: PfnRange, bytes: &[u8]) -> Result<(), Refusal> {
        let failed = |why: String| Refusal::Internal { why };
        self.data
            .write_all_at(bytes, run.byte_range().start)
            .map_err(|error| failed(error.to_string()))?;
        // The file may count as synced already.
        self.data.sync().map_err(|error| failed(error.to_string()))
    }

    /// Bytes of memory behind the data now.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.data.resident_bytes()
    }
}
