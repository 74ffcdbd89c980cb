//! Frames whose memory failed: out of use, replaced, back in use.
//!
//! The catalog says first that a frame failed, its descriptor then (I10): so a restarted owner that
//! finds a Poisoned descriptor of which the catalog knows nothing knows that it is damage.

use pgmap_mm::descriptor::{Descriptor, FolioFlags, FolioState};
use pgmap_mm::error::errno::EBUSY;
use pgmap_mm::extent::Extent;
use pgmap_mm::index::MAX_EXTENTS;
use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::memory_failure::{FailureError, Isolated};
use pgmap_mm::pfn::{Pfn, PfnRange};

use super::PoolFrames;
use crate::pool::catalog::Change;
use crate::refusal::Refusal;

impl From<FailureError> for Refusal {
    fn from(error: FailureError) -> Self {
        Self::Denied { why: error.to_string(), errno: error.errno() }
    }
}

impl PoolFrames {
    /// Takes the frame `pfn` out of use. `extent` is the one it lies in, and how many its file has.
    /// A file that can have no more extents loses all of this one.
    ///
    /// # Errors
    /// As `Folios::isolate`, and what the catalog can fail with; nothing is changed then.
    pub(crate) fn fail(
        &mut self,
        pfn: Pfn,
        extent: Option<(&Extent, usize)>,
    ) -> Result<Isolated, Refusal> {
        let frame = PfnRange::folio(pfn, self.smallest());
        if self.failed.is_free(frame) {
            return Err(FailureError::AlreadyPoisoned { pfn }.into());
        }
        let fresh = self.take_stamp()?;
        self.pool.record(&[Change::Poisoned(frame.start())])?;
        if extent.is_none() {
            self.end_life_of_nobodys(pfn);
        }
        let isolated = match extent {
            Some((extent, nr_extents)) if !self.has_room_for_pieces(nr_extents) => {
                self.folios.isolate_in_whole(pfn, extent, fresh)
            }
            _ => self.folios.isolate(pfn, extent.map(|(extent, _)| extent), fresh),
        };
        let isolated = match isolated {
            Ok(isolated) => isolated,
            Err(error) => {
                self.pool.record(&[Change::Healthy(frame.start())])?;
                return Err(error.into());
            }
        };
        self.failed.give(isolated.frame);
        self.folios.claim_any_of(isolated.frame);
        Ok(isolated)
    }

    /// Whether a file of so many extents can have two more.
    fn has_room_for_pieces(&self, nr_extents: usize) -> bool {
        let nr_more = self.slots_for(nr_extents + 2) - self.slots_for(nr_extents);
        nr_extents + 2 <= MAX_EXTENTS && self.check_room(nr_more).is_ok()
    }

    /// Marks the folio around `pfn` Dying when it waits to be freed under the word that it had in
    /// its file: there is no extent to cut it out of any more.
    fn end_life_of_nobodys(&mut self, pfn: Pfn) {
        let Some((level, word)) = self.vmemmap().folio_of(pfn) else { return };
        if matches!(word.state(), FolioState::Live | FolioState::Reserved) {
            self.folios
                .change(PfnRange::folio(pfn, level), |word| word.in_state(FolioState::Dying));
        }
    }

    /// Bytes of one page of the backing of `run`, the least that can be replaced.
    pub(crate) fn page_bytes(&self, run: PfnRange) -> u64 {
        self.backings.at(run.start()).page_bytes()
    }

    /// Whether the memory of `run` can be given back to the system.
    pub(crate) fn can_detach(&self, run: PfnRange) -> bool {
        self.backings.at(run.start()).can_detach()
    }

    /// Replaces the memory of the failed `run`, which nobody holds, and fills it with `bytes`. It
    /// is still out of use.
    ///
    /// # Errors
    /// [`Refusal::Internal`] when the backing cannot do that, [`Refusal::NoMemory`].
    pub(crate) fn replace(&mut self, run: PfnRange, bytes: &[u8]) -> Result<(), Refusal> {
        if !self.can_detach(run) {
            return self.write_over(run, bytes);
        }
        self.detach(run)?;
        self.backings.ensure(std::iter::once(run))?;
        self.backings.fill(run, bytes)
    }

    /// Writes over failed memory of a device, which has no other to put in its place.
    ///
    /// # Errors
    /// [`Refusal::Denied`] with `EBUSY` when a dead client's device may still write there,
    /// [`Refusal::Internal`] when the memory does not take what is written.
    fn write_over(&mut self, run: PfnRange, bytes: &[u8]) -> Result<(), Refusal> {
        if self.orphans.overlaps(run) {
            let why = format!(
                "a device of a dead client may still write to {run}: pgmap quarantine ls says of \
                 which, and release ends that"
            );
            return Err(Refusal::Denied { why, errno: EBUSY });
        }
        self.backings.fill(run, bytes)
    }

    /// Whether single pages of the failed memory of `run` can be brought back: by other memory, or
    /// on a device by writing over them.
    pub(crate) fn repairs_pages(&self, run: PfnRange) -> bool {
        self.page_bytes(run) == PAGE_BYTES || !self.can_detach(run)
    }

    /// What takes the place of `extent` when its failed `run` is back in use under `flags`, to be
    /// put on record before [`heal`](Self::heal).
    ///
    /// # Errors
    /// What taking a stamp can fail with.
    pub(crate) fn plan_heal(
        &mut self,
        extent: &Extent,
        run: PfnRange,
        flags: FolioFlags,
    ) -> Result<(Vec<Extent>, Descriptor), Refusal> {
        let live = Descriptor::new(FolioState::Live, flags, self.take_stamp()?);
        let healed = Extent::new(run, self.smallest(), live);
        let (before, after) = extent.run.without(run);
        let piece = |part: Option<PfnRange>| part.and_then(|part| self.folios.piece(part));
        Ok(([piece(before), healed, piece(after)].into_iter().flatten().collect(), live))
    }

    /// Puts the failed `run`, whose memory was replaced, back into use under `live`.
    ///
    /// # Errors
    /// As `Folios::clear_poison`.
    pub(crate) fn heal(&mut self, run: PfnRange, live: Descriptor) -> Result<(), Refusal> {
        self.folios.clear_poison(run, live)?;
        self.failed.take_exactly(run);
        Ok(())
    }

    /// The failed folios, each by itself.
    pub(crate) fn failed_folios(&self) -> Vec<PfnRange> {
        let unit = self.smallest().nr_pages();
        let folios = self.failed.runs().flat_map(|(start, length)| {
            let starts = (start..start + length).step_by(unit as usize);
            starts.filter_map(move |at| PfnRange::new(at, unit))
        });
        folios.collect()
    }

    /// Replaces the memory of the failed `run`, which no file has and nobody holds, and frees it.
    /// Says whether it did: a part of a huge page waits until the rest of the page is free.
    ///
    /// # Errors
    /// When the backing or the catalog fails.
    pub(crate) fn repair(&mut self, run: PfnRange) -> Result<bool, Refusal> {
        if !self.can_detach(run) {
            self.write_over(run, &vec![0; run.len_bytes() as usize])?;
            self.return_repaired(run)?;
            return Ok(true);
        }
        let pages = self.whole_pages(run);
        let is_alone = self.folios.frames().without_free(pages).into_iter().all(|used| {
            let failed: u64 = self.failed.within(used).iter().map(|run| run.nr_pages()).sum();
            failed == used.nr_pages()
        });
        if !is_alone {
            return Ok(false);
        }
        self.detach(pages)?;
        self.return_repaired(run)?;
        Ok(true)
    }

    fn return_repaired(&mut self, run: PfnRange) -> Result<(), Refusal> {
        self.pool.record(&[Change::Healthy(run.start())])?;
        self.folios.return_repaired(run)?;
        self.failed.take_exactly(run);
        Ok(())
    }

    /// Keeps a frame out of use that failed under an earlier owner, whatever its descriptor says.
    /// Files have their extents back by now.
    ///
    /// # Errors
    /// What taking a stamp can fail with.
    pub(crate) fn recover_failed(&mut self, run: PfnRange) -> Result<(), Refusal> {
        let smallest = self.smallest();
        let known = self.vmemmap().folio_of(run.first());
        let Some((level, word)) = known else { return Ok(()) };
        if word.state() == FolioState::Poisoned && level == smallest {
            self.folios.claim_any_of(run);
            return Ok(());
        }
        if word.state() == FolioState::Offline {
            // Of a pagemap that ended with its owner, or of the head: nobody is given it.
            return Ok(());
        }
        let word = Descriptor::new(FolioState::Poisoned, FolioFlags::NONE, self.take_stamp()?);
        if self.is_free(run) {
            if !self.folios.reclaim(run, smallest, word) {
                let why = format!("no room for the descriptors of frames {run}");
                return Err(Refusal::NoMemory { why });
            }
        } else {
            // It is a file's that lost all of the extent around it, or part of a run that is not
            // free.
            if level > smallest {
                let split = self.folios.split(run.first(), smallest);
                split.map_err(|error| Refusal::Internal { why: error.to_string() })?;
            }
            self.folios.claim_any_of(run);
            self.folios.change(run, |word| word.in_state(FolioState::Poisoned));
        }
        Ok(())
    }

    /// Takes note of the frames that failed under an earlier owner, before any extent is looked at.
    pub(crate) fn know_failed(&mut self, failed: &[u64]) -> Vec<PfnRange> {
        let smallest = self.smallest();
        let end = self.vmemmap().layout().nr_pages();
        let runs = failed.iter().filter_map(|&number| {
            let run = PfnRange::folio(Pfn::new(number)?, smallest);
            (run.end() <= end).then_some(run)
        });
        let runs: Vec<PfnRange> = runs.collect();
        for &run in &runs {
            self.failed.give(run);
        }
        runs
    }
}

/// The extent of a file that has page number `page`, and the page's frame.
pub(crate) fn frame_of(extents: &[Extent], page: u64) -> Option<(usize, PfnRange)> {
    let mut at = 0;
    for (place, extent) in extents.iter().enumerate() {
        let end = at + extent.run.nr_pages();
        if page < end {
            return Some((place, extent.run.sub_run(page - at, 1)?));
        }
        at = end;
    }
    None
}
