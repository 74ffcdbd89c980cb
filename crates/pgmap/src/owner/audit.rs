//! Whether each frame is in one book: asked by simulations after every turn of the owner's loop.

use pgmap_mm::pfn::PfnRange;

use crate::owner::core::Core;
use crate::owner::drains::Purpose;

/// In which books a frame may be.
const FREE: u8 = 1;
const FILE: u8 = 2;
const DRAFT: u8 = 4;
/// It waits for holders, or to be freed, or is out of use for a dead client's device.
const GOING: u8 = 8;
const FAILED: u8 = 16;

impl Core {
    /// Checks that each frame of the pool is in exactly one book. A failed frame of a file is in
    /// two until the file lets go of it, and so is what a cut is waiting for.
    ///
    /// # Errors
    /// Which frame is in which books.
    pub(crate) fn audit(&self) -> Result<(), String> {
        self.audit_quotas()?;
        self.audit_spares()?;
        // The frames of all backings in a row.
        let places: Vec<(u64, u64)> =
            self.frames.backings().iter().map(|it| (it.first_pfn, it.nr_pages)).collect();
        let nr_pages: u64 = places.iter().map(|&(_, nr_pages)| nr_pages).sum();
        let mut books = vec![0_u8; nr_pages as usize];
        let mut twice = None;
        let mut enter = |book: u8, run: PfnRange| {
            for pfn in run.start()..run.end() {
                let Some(frame) = place_of(&places, pfn).and_then(|place| books.get_mut(place))
                else {
                    twice.get_or_insert(format!("frame {pfn} of book {book} is outside the pool"));
                    continue;
                };
                if *frame & book != 0 && book != GOING {
                    twice.get_or_insert(format!("frame {pfn} is twice in book {book}"));
                }
                *frame |= book;
            }
        };
        for file in self.files.values() {
            file.runs().for_each(|run| enter(FILE, run));
        }
        for (_, draft) in self.files.drafts() {
            draft.extents.iter().for_each(|extent| enter(DRAFT, extent.run));
        }
        for pending in self.drains.iter() {
            if !matches!(pending.purpose, Purpose::Unplug(_)) {
                pending.going().for_each(|run| enter(GOING, run));
            }
        }
        let scanned = self
            .drains
            .scans()
            .filter(|scan| !scan.is_of_all())
            .flat_map(|pending| pending.runs().iter());
        let restored = self.restorations.runs();
        scanned.chain(restored).for_each(|run| enter(GOING, run));
        self.frames.backlog_runs().for_each(|run| enter(GOING, run));
        for (start, nr_pages) in self.frames.quarantined_runs() {
            PfnRange::new(start, nr_pages).into_iter().for_each(|run| enter(GOING, run));
        }
        for (start, nr_pages) in self.frames.failed_runs() {
            PfnRange::new(start, nr_pages).into_iter().for_each(|run| enter(FAILED, run));
        }
        for (start, nr_pages) in self.frames.free_runs().chain(self.frames.withheld_runs()) {
            PfnRange::new(start, nr_pages).into_iter().for_each(|run| enter(FREE, run));
        }
        if let Some(twice) = twice {
            return Err(twice);
        }
        for (pfn, &frame) in books.iter().enumerate() {
            let is_one = frame.count_ones() == 1
                || frame == FILE | FAILED
                || frame == DRAFT | FAILED
                || frame == FILE | GOING
                || frame == GOING | FAILED
                || frame == FILE | GOING | FAILED;
            if !is_one {
                return Err(format!(
                    "frame {pfn} of all in a row is in books {frame:#07b} (failed, going, draft, \
                     file, free)"
                ));
            }
        }
        Ok(())
    }
}

/// Where frame `pfn` is, if the frames of all `places` (first frame, frames) lie in a row.
fn place_of(places: &[(u64, u64)], pfn: u64) -> Option<usize> {
    let mut before = 0;
    for &(first, nr_pages) in places {
        if (first..first + nr_pages).contains(&pfn) {
            return Some((before + pfn - first) as usize);
        }
        before += nr_pages;
    }
    None
}
