//! Splitting and merging a file's folios on request: for the curious and for tests. What cuts files
//! splits by itself.

use pgmap_mm::drain::scan;
use pgmap_mm::extent::Extent;
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::runs::SortedRuns;
use pgmap_mm::split::{NoSmallCounts, ReshapeError};

use crate::name::FileName;
use crate::owner::core::Core;
use crate::owner::file_book::FileRecord;
use crate::owner::files::file_idle;
use crate::pool::catalog::Change;
use crate::refusal::Refusal;
use crate::wire::{Reply, Shape};

impl From<ReshapeError> for Refusal {
    fn from(error: ReshapeError) -> Self {
        if matches!(error, ReshapeError::NoDescriptors { .. }) {
            return Self::NoMemory { why: error.to_string() };
        }
        Self::Denied { why: error.to_string(), errno: error.errno() }
    }
}

impl Core {
    /// Splits the folio at `offset` of a file, or merges the folios around it.
    pub(crate) fn reshape(
        &mut self,
        name: &FileName,
        offset: u64,
        shape: Shape,
    ) -> Result<Reply, Refusal> {
        let file = self.files.find(name)?;
        file_idle(name, file)?;
        let mut file = file.clone();
        let (at, pfn) = frame_at(&file, offset).ok_or_else(|| Refusal::Invalid {
            why: format!("\"{name}\" has no memory at {offset}: that is its end or a hole"),
        })?;
        let bad_level =
            |level| Refusal::Invalid { why: format!("folios have level 0, 1 or 2, not {level}") };
        match shape {
            Shape::Split { to } => {
                let to = Level::from_number(to).ok_or_else(|| bad_level(to))?;
                let reshaped = self.frames.split(pfn, to, |planned| {
                    file.extents[at] = planned.extent_after(&file.extents[at]);
                    self.pool.record(&[Change::Put(name, file.stored())])
                })?;
                self.pagemaps.notify_of_split(reshaped.folio(), pfn, to);
            }
            Shape::Merge { to } => {
                let to = Level::from_number(to).ok_or_else(|| bad_level(to))?;
                let proof = self.no_small_counts(PfnRange::folio(pfn, to))?;
                let extent = file.extents[at];
                self.frames.merge(&extent, pfn, to, &proof, |planned| {
                    file.extents[at] = planned.extent_after(&extent);
                    self.pool.record(&[Change::Put(name, file.stored())])
                })?;
            }
        }
        self.relist(name, &file)?;
        self.files.update(name, file);
        Ok(Reply::Done)
    }

    fn no_small_counts(&self, folio: PfnRange) -> Result<NoSmallCounts, Refusal> {
        let ledgers = self.clients.ledgers();
        let held = scan(&SortedRuns::new(vec![folio]), ledgers);
        NoSmallCounts::among(folio, held.iter().map(|held| held.hold))
            .map_err(|hold| Refusal::from(ReshapeError::HeldBelow { folio: hold.run }))
    }
}

/// The extent of `file` that has the byte at `offset`, and its frame.
fn frame_at(file: &FileRecord, offset: u64) -> Option<(usize, Pfn)> {
    let page = offset / PAGE_BYTES;
    let mut at = 0;
    for (place, extent) in file.extents.iter().enumerate() {
        let nr_pages = extent.run.nr_pages();
        if page < at + nr_pages {
            let in_frames = |extent: &Extent| Pfn::new(extent.run.start() + (page - at));
            return (!extent.is_hole())
                .then(|| in_frames(extent))
                .flatten()
                .map(|pfn| (place, pfn));
        }
        at += nr_pages;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgmap_mm::error::errno::ENOMEM;

    /// Story: a cut that had no memory for the descriptors of smaller folios was said to be
    /// invalid.
    #[test]
    fn a_want_of_memory_for_descriptors_is_refused_as_one() {
        let folio = PfnRange::new(0, 512).unwrap();
        let refusal = Refusal::from(ReshapeError::NoDescriptors { folio });
        assert!(matches!(refusal, Refusal::NoMemory { .. }) && refusal.errno() == ENOMEM);
    }
}
