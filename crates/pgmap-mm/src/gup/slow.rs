//! Holding pages under the address space's lock: the area is checked, pages are faulted in, stale
//! leaves repaired.

use super::pinned::{Start, is_for_the_caller};
use super::{
    Gup, GupError, GupFlags, LongtermRefusal, Look, PinnedRange, PinnedSegment, SegmentHold,
};
use crate::descriptor::{FolioFlags, FolioState};
use crate::error::{PinError, errno};
use crate::fault::FaultError;
use crate::level::PAGE_BYTES;
use crate::longterm::LongtermPin;
use crate::mm::{EndedRanges, FillError, MmState};
use crate::page_table::entry::LeafFlags;
use crate::pfn::PfnRange;
use crate::pin::ClientSide;
use crate::vma::VmaKind;

/// How often the slow path repairs one page whose extent changes again and again.
const MAX_REPAIRS: usize = 8;

/// What one attempt at the front of a range came to.
enum Attempt<'a, S: ClientSide> {
    Held(PinnedSegment<'a, S>),
    /// The page table moved meanwhile.
    Moved,
    /// Not without the lock.
    Stop,
    /// The leaf names an extent that is no more, or not as it was.
    Refused(PinError),
}

/// What one try under the lock came to.
enum Slow<'a, S: ClientSide> {
    Held(PinnedSegment<'a, S>),
    /// What was in the way is out of it.
    Again,
}

impl<'a, S: ClientSide> Gup<'_, 'a, S> {
    /// Adds pages to `range` up to `nr_pages`, as far as they can be had.
    pub(super) fn continue_slow(
        &self,
        mut range: PinnedRange<'a, S>,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Result<PinnedRange<'a, S>, GupError> {
        let page = address / PAGE_BYTES;
        let (low, high) = self.mm.pages();
        let mut done = range.nr_pages();
        while done < nr_pages {
            let (at, left) = (page + done, nr_pages - done);
            let held = if at < low || at >= high {
                Err(GupError::Outside { address: at * PAGE_BYTES })
            } else {
                self.slow_segment(at, left.min(high - at), flags)
            };
            match held {
                Ok(segment) => {
                    done += segment.run().nr_pages();
                    range.push(segment);
                }
                Err(error) if range.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(range)
    }

    /// Holds the first range from `page` on, with the lock.
    fn slow_segment(
        &self,
        page: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Result<PinnedSegment<'a, S>, GupError> {
        for _ in 0..MAX_REPAIRS {
            let mut ended = EndedRanges::default();
            let mut state = self.mm.lock();
            let once = self.slow_once(&mut state, page, nr_pages, flags, &mut ended);
            // Who caches what proved stale is notified now; no event may have been for this
            // process.
            let _notified = self.mm.finish(state, &ended);
            match once? {
                Slow::Held(segment) => return Ok(segment),
                Slow::Again => {}
            }
        }
        Err(GupError::Unstable { address: page * PAGE_BYTES })
    }

    /// One try of [`slow_segment`](Self::slow_segment), under the lock.
    fn slow_once(
        &self,
        state: &mut MmState,
        page: u64,
        nr_pages: u64,
        flags: GupFlags,
        ended: &mut EndedRanges,
    ) -> Result<Slow<'a, S>, GupError> {
        let nr_pages = nr_pages.min(check_area(state, page, flags)?);
        match self.bring_in(state, page, nr_pages, flags, ended) {
            // The backing answered with an extent that has ended since.
            Err(GupError::Fault(FaultError::Fill {
                error: FillError::Cpu(errno::ESTALE), ..
            })) => return Ok(Slow::Again),
            brought_in => brought_in?,
        }
        match self.attempt(page, nr_pages, flags) {
            Attempt::Held(segment) => return Ok(Slow::Held(segment)),
            Attempt::Refused(error) if is_for_the_caller(&error) => {
                return Err(GupError::Hold(error));
            }
            Attempt::Refused(PinError::NeedsConsent { .. }) => {
                let refusal = LongtermRefusal::Unsupported;
                return Err(GupError::Longterm { address: page * PAGE_BYTES, refusal });
            }
            Attempt::Refused(error) => {
                poison_of(&error, page * PAGE_BYTES, flags)?;
                self.mm.drop_leaf(state, page, ended);
            }
            // The leaf says that its frames cannot be pinned now.
            Attempt::Stop => {
                self.unpinnable(page, flags)?;
                self.mm.drop_leaf(state, page, ended);
            }
            // Only the holder of the lock moves the page table.
            Attempt::Moved => {}
        }
        Ok(Slow::Again)
    }

    /// An error when the leaf that maps the page is of frames that can never be pinned, or failed.
    fn unpinnable(&self, page: u64, flags: GupFlags) -> Result<(), GupError> {
        let life = self.mm.table.walk(page).and_then(|found| self.mm.table.life(found.leaf));
        let Some(life) = life else { return Ok(()) };
        let refused = PinError::NotPinnable { word: life.expected() };
        poison_of(&refused, page * PAGE_BYTES, flags)
    }

    /// Faults the page in unless a leaf allows the access already, and the pages after it that are
    /// wanted too, so that one hold covers them.
    fn bring_in(
        &self,
        state: &mut MmState,
        page: u64,
        nr_pages: u64,
        flags: GupFlags,
        ended: &mut EndedRanges,
    ) -> Result<(), GupError> {
        let address = page * PAGE_BYTES;
        if flags.contains(GupFlags::NOFAULT) {
            let has_leaf = self.mm.table.walk(page).is_some_and(|found| {
                !flags.contains(GupFlags::WRITE) || found.leaf.flags().contains(LeafFlags::WRITE)
            });
            return if has_leaf { Ok(()) } else { Err(GupError::NotPresent { address }) };
        }
        match self.mm.fault_locked(state, address, flags.access(), ended) {
            Ok(_) => {
                // What cannot be filled is reported when its turn comes.
                let _later = self.mm.fill_all(state, page + 1, page + nr_pages);
                Ok(())
            }
            Err(error) => Err(GupError::of_fault(error, flags)),
        }
    }

    /// Tries once to hold the first range from `page` on by what the page table says.
    fn attempt(&self, page: u64, nr_pages: u64, flags: GupFlags) -> Attempt<'a, S> {
        let Some((look, run)) = self.look_run(page, nr_pages, flags) else { return Attempt::Stop };
        let held = if flags.contains(GupFlags::LONGTERM) {
            self.pin_long(&look, run, flags).map(SegmentHold::Long)
        } else {
            self.lane.pin_pinnable(look.life, run, flags.agent()).map(SegmentHold::Short)
        };
        if !self.is_reach_as_seen(&look) || !self.is_as_seen(&look) {
            self.undo(held);
            return Attempt::Moved;
        }
        let start = Start::new(page * PAGE_BYTES, look.found.level);
        match held {
            Ok(hold) => Attempt::Held(PinnedSegment { start, hold }),
            Err(error) => Attempt::Refused(error),
        }
    }

    #[inline(always)]
    fn pin_long(
        &self,
        look: &Look<'_>,
        run: PfnRange,
        flags: GupFlags,
    ) -> Result<LongtermPin<'a, S>, PinError> {
        // Counted by whole leaves where the run is whole leaves.
        let level = look.found.level;
        self.lane.pinner().pin_longterm_under(look.life, run, level, flags.agent())
    }

    /// Lets go of a hold that was published on the word of a page table that moved.
    ///
    /// Life word and frames may be of two extents, so the hold's own check on letting go may look
    /// at the wrong life word, while a drain of the frames has seen the hold and waits: ring
    /// always.
    #[cold]
    fn undo<H>(&self, hold: H) {
        drop(hold);
        self.lane.pinner().side().ring_doorbell();
    }
}

/// Whether the area allows the hold at all, in the kernel's order (Linux 7.1: mm/gup.c,
/// check_vma_flags). Returns its pages from here on.
fn check_area(state: &MmState, page: u64, flags: GupFlags) -> Result<u64, GupError> {
    let address = page * PAGE_BYTES;
    let Some(vma) = state.areas.find(page) else {
        return Err(GupError::Fault(FaultError::NoArea { address }));
    };
    if vma.kind() == VmaKind::Raw {
        return Err(GupError::Raw { address });
    }
    let access = flags.access();
    if !vma.prot.allows(access) {
        return Err(GupError::Fault(FaultError::Denied { address, access }));
    }
    if vma.kind() == VmaKind::PeerToPeer && !flags.contains(GupFlags::P2PDMA) {
        return Err(GupError::Peer { address });
    }
    Ok(vma.end() - page)
}

/// An error when the frames were refused because their memory failed, or can never be pinned.
fn poison_of(error: &PinError, address: u64, flags: GupFlags) -> Result<(), GupError> {
    let word = match error {
        PinError::Changed { now, .. } => *now,
        PinError::NotPinnable { word } => *word,
        _ => return Ok(()),
    };
    if word.state() == FolioState::Poisoned {
        let is_reported = flags.contains(GupFlags::HWPOISON);
        return Err(GupError::Poisoned { address, is_reported });
    }
    if matches!(error, PinError::NotPinnable { .. }) && word.flags().contains(FolioFlags::RAW) {
        return Err(GupError::Raw { address });
    }
    Ok(())
}
