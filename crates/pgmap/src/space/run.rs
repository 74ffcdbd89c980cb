//! Runs: how far memory that can be held goes on around an address, remembered until it changes.
//!
//! Areas that adjoin each other make one run, and there may be one for every page. So a run is
//! found once, and then only asked whether it is what it was: by a number that every change of an
//! area moves, and by where each of its files ends.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, PoisonError, Weak};

use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::mm::Mm;
use pgmap_mm::prot::Prot;
use pgmap_mm::vma::{AreaBacking, BackingError, Vma, VmaKind};
use pgmap_os::sync::Mutex;

/// Most runs that are remembered.
const MAX_RUNS: usize = 4096;

/// Addresses in a row that may be read and written, each with a page of a file behind it: one with
/// memory, or that failed, or of a hole.
#[derive(Debug)]
pub(super) struct Run {
    pub range: Range<u64>,
    /// When it was found.
    nr_changes: u64,
    files: Vec<KnownFile>,
}

#[derive(Debug)]
struct KnownFile {
    file: Weak<dyn AreaBacking>,
    /// The last page of it that an area has.
    last: u64,
    end: Option<u64>,
}

impl Run {
    /// The run around an address.
    pub(super) fn find(mm: &Mm, address: u64) -> Option<Self> {
        let page = address / PAGE_BYTES;
        // Before the areas are looked at: a change in between is seen.
        let nr_changes = mm.nr_changes();
        let areas = mm.areas_around(address, Prot::READ_WRITE);
        let mut pages = 0..0;
        for area in &areas {
            if pages.end != area.page {
                pages.start = area.page;
            }
            pages.end = end_in(area);
            if pages.end < area.end() && page < area.end() {
                break;
            }
        }
        let range = pages.start * PAGE_BYTES..pages.end * PAGE_BYTES;
        range.contains(&address).then(|| Self { range, nr_changes, files: files_of(&areas) })
    }

    /// Whether it would be found again.
    pub(super) fn is_current(&self, mm: &Mm) -> bool {
        let is_as_it_was = |known: &KnownFile| {
            let file = known.file.upgrade();
            file.is_some_and(|file| end_before(&*file, known.last) == known.end)
        };
        mm.nr_changes() == self.nr_changes && self.files.iter().all(is_as_it_was)
    }
}

fn files_of(areas: &[Vma]) -> Vec<KnownFile> {
    let mut lasts: HashMap<*const (), (&Arc<dyn AreaBacking>, u64)> = HashMap::new();
    for area in areas {
        let last = area.file_page_of(area.end() - 1);
        let known = lasts.entry(Arc::as_ptr(&area.backing).cast()).or_insert((&area.backing, last));
        known.1 = known.1.max(last);
    }
    let known = lasts.into_values().map(|(file, last)| {
        let end = end_before(&**file, last);
        KnownFile { file: Arc::downgrade(file), last, end }
    });
    known.collect()
}

/// The number of pages of a file that does not reach over this page of it.
fn end_before(file: &dyn AreaBacking, page: u64) -> Option<u64> {
    match file.extent_at(page) {
        Err(BackingError::Dead) => Some(0),
        Err(BackingError::BeyondEnd) => Some(file.nr_pages()),
        _ => None,
    }
}

/// The page of the address space at which the file behind an area ends, or the area; its first page
/// where nothing of it can ever be held.
pub(super) fn end_in(area: &Vma) -> u64 {
    if area.kind() == VmaKind::Raw {
        return area.page;
    }
    match end_before(&*area.backing, area.file_page_of(area.end() - 1)) {
        Some(nr_pages) => area.end().min(area.page + nr_pages.saturating_sub(area.file_page)),
        None => area.end(),
    }
}

/// The runs of an address space that were found last, by first address.
#[derive(Debug, Default)]
pub(super) struct Runs(Mutex<BTreeMap<u64, Arc<Run>>>);

impl Runs {
    /// The run that had the address when it was found.
    pub(super) fn at(&self, address: u64) -> Option<Arc<Run>> {
        let runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, run) = runs.range(..=address).next_back()?;
        run.range.contains(&address).then(|| Arc::clone(run))
    }

    pub(super) fn keep(&self, run: Run) -> Arc<Run> {
        let run = Arc::new(run);
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // None is asked for as often as what was found last.
        if runs.len() >= MAX_RUNS {
            runs.clear();
        }
        while let Some((&at, last)) = runs.range(..run.range.end).next_back()
            && last.range.end > run.range.start
        {
            runs.remove(&at);
        }
        runs.insert(run.range.start, Arc::clone(&run));
        run
    }
}
