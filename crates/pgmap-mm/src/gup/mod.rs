//! `get_user_pages`: hold what lies at these addresses.
//!
//! [`Gup::fast`] walks the page table without a lock and stops at the first page it cannot hold.
//! [`Gup::slow`] takes the address space's lock, checks the area, faults pages in, repairs stale
//! leaves. [`Gup::pin`] is the first, then the second from where the first stopped.
//!
//! # Arguments and results
//!
//! As Linux 7.1: mm/gup.c. `address` is rounded down to a page. If at least one page could be held
//! the result is those pages and no error; the next call, from the first missing page, gets the
//! error.
//!
//! | what | `fast`, `pin` | `slow` |
//! |---|---|---|
//! | 0 pages asked for | no pages | no pages |
//! | flags that exclude each other | EINVAL | no pages |
//! | address + length wraps | EOVERFLOW | EFAULT |
//! | beyond the address space | EFAULT | EFAULT |
//! | no area, RAW area, not permitted | `fast` no pages, `pin` EFAULT | EFAULT |
//! | NOFAULT and no leaf | `fast` no pages, `pin` EFAULT | EFAULT |
//! | fault ends in SIGBUS or SIGSEGV | `fast` no pages, `pin` EFAULT | EFAULT |
//! | memory failed | `fast` no pages, `pin` EFAULT, with HWPOISON EHWPOISON | same as `pin` |
//! | peer memory without P2PDMA | `fast` no pages, `pin` EREMOTEIO | EREMOTEIO |
//! | LONGTERM where the type says no | `fast` no pages, `pin` EOPNOTSUPP | EOPNOTSUPP |
//! | no memory for a page or a table | `fast` no pages, `pin` ENOMEM | ENOMEM |
//! | the frames keep changing | `fast` no pages, `pin` EAGAIN | EAGAIN |
//! | FAST_ONLY | what could be held, perhaps no pages | no pages |
//!
//! # Call tree
//!
//! ```text
//!   pin ─ pin_fast ─ parts ─ hold_in_one_leaf: one leaf of 2 MiB, 1 GiB, 4 KiB
//!     │                    └ hold_range: all pages, leaves of one span
//!     └ pin_with_lock ─ fast_by_segments ─ fast_run*: as far as it goes, segment by segment
//!                     └ continue_slow ─ slow_once: lock, area, fault, attempt
//! ```
//!
//! # States
//!
//! ```text
//!   address ──▶ leaf ──▶ hold published ──▶ life word, entry and epoch as expected ──▶ held
//!                 │                              │ entry, epoch or reach moved: again, a few times
//!                 │ absent, not allowed          │ life word differs
//!                 └───────────▶ slow: lock ──▶ area checked ──▶ leaf filled or repaired ──▶ held
//! ```
//!
//! # Who may touch what
//!
//! Any thread with a lane. The page table is only read here; [`mm`](crate::mm) changes it.
//!
//! # Orderings
//!
//! `hold published; light barrier; life word` is [`pin`](crate::pin)'s. The entry, the reach and
//! the epoch are loaded once more after that, as `page_table/mod.rs`, *Orderings*, says.
//!
//! # Lost races
//!
//! *Pin against truncation.* The life word decides, as in [`pin`](crate::pin): a stale leaf fails
//! its check and is repaired under the lock.
//!
//! *Undone pin against drain.* A pin on the word of a page table that moved may name frames of one
//! extent and the life word of another. A drain of the frames that saw the slot would not be rung
//! by the usual unpin, which looks at that life word; so such an undo rings always (loom found
//! this).
//!
//! *Pin against unmap.* If the second look at the entry is first, the pages were mapped during the
//! call and outlive the unmapping, as in the kernel. If the unmap is first, the look differs and
//! the pin is undone exactly.
//!
//! # Differs from Linux
//!
//! One hold covers what the span's reach covers, mostly the whole mapped extent, so a gigabyte
//! costs what a page costs. LONGTERM succeeds without a lock wherever the publisher said yes,
//! device-dax write pins included; Linux 7.1 never does (mm/gup.c, gup_fast_folio_allowed).
//! HWPOISON may be given to `pin`; Linux takes it in slow calls only. EAGAIN is new: the kernel
//! would sleep or retry without bound. FORCE is not offered: there are no private mappings to
//! force.

mod error;
mod fast;
mod flags;
mod leaf;
mod pinned;
mod run;
mod section;
mod term;

use core::fmt;

pub use self::error::{GupError, LongtermRefusal};
pub use self::fast::{Ask, SegmentParts};
pub use self::flags::GupFlags;
pub use self::pinned::{Dirty, LongSegment, PinnedRange, PinnedSegment, SegmentHold, ShortSegment};
use self::pinned::{Start, is_for_the_caller};
pub use self::section::{Borrowed, ReadSection};
use crate::descriptor::{FolioFlags, FolioState};
use crate::error::{PinError, errno};
use crate::fault::FaultError;
use crate::level::PAGE_BYTES;
use crate::longterm::LongtermPin;
use crate::mm::{Ended, FillError, Mm, MmState};
use crate::page_table::entry::LeafFlags;
use crate::page_table::span::Reach;
use crate::page_table::walk::{Epoch, Found};
use crate::pfn::{MAX_RUN_PAGES, PfnRange};
use crate::pin::{ClientSide, Lane};
use crate::vma::VmaKind;
use crate::vmemmap::LifeWord;

/// How often the slow path repairs one page whose extent changes again and again.
const MAX_REPAIRS: usize = 8;

const PAGE_MASK: u64 = !(PAGE_BYTES - 1);

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

/// What the page table says of a page.
#[derive(Clone, Copy)]
struct Look<'a> {
    epoch: Epoch,
    found: Found<'a>,
    life: LifeWord,
    /// The reach of the leaf's span, where the run goes beyond the leaf.
    reach: Option<Reach>,
}

/// An address space and a lane, together able to hold pages by address.
#[derive(Clone, Copy)]
pub struct Gup<'c, 'a, S: ClientSide> {
    mm: &'a Mm,
    lane: &'c Lane<'a, S>,
}

impl<S: ClientSide> fmt::Debug for Gup<'_, '_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gup").finish_non_exhaustive()
    }
}

impl<'c, 'a, S: ClientSide> Gup<'c, 'a, S> {
    /// Holds pages of `mm` in `lane`; `None` if they are of pools of different shape. Long-term
    /// holds that the life word does not allow are refused.
    #[inline]
    #[must_use]
    pub fn new(mm: &'a Mm, lane: &'c Lane<'a, S>) -> Option<Self> {
        has_same_layout(mm, lane).then_some(Self { mm, lane })
    }

    /// Holds pages from `address` on without taking a lock, as far as that goes, perhaps none.
    ///
    /// # Errors
    /// Those of the arguments: see the [module](self).
    #[inline(always)]
    pub fn fast(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Result<PinnedRange<'a, S>, GupError> {
        match self.pin_fast(Ask { address, nr_pages, flags }) {
            Some(range) => Ok(range),
            None => self.fast_by_segments(address, nr_pages, flags),
        }
    }

    /// [`fast`](Self::fast) where the fast path is not enough.
    #[inline(never)]
    fn fast_by_segments(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Result<PinnedRange<'a, S>, GupError> {
        self.check(address, nr_pages, flags)?;
        let mut range = PinnedRange::empty(self.mm, flags.contains(GupFlags::WRITE));
        let page = address / PAGE_BYTES;
        // Counted here: a range counts its segments, of which there may be one for every page.
        let mut done = 0;
        while done < nr_pages {
            let Some(segment) = self.try_segment(page + done, nr_pages - done, flags) else {
                break;
            };
            done += segment.run().nr_pages();
            range.push(segment);
        }
        Ok(range)
    }

    /// Holds pages from `address` on, and takes the lock where that is needed.
    ///
    /// # Errors
    /// See the [module](self). Only when not even the first page could be held.
    #[inline(always)]
    pub fn pin(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Result<PinnedRange<'a, S>, GupError> {
        match self.pin_fast(Ask { address, nr_pages, flags }) {
            Some(range) => Ok(range),
            None => match self.pin_with_lock(address, nr_pages, flags) {
                Ok(range) => Ok(*range),
                Err(error) => Err(error),
            },
        }
    }

    /// [`pin`](Self::pin) where the fast path is not enough. Boxed: a range that comes back through
    /// memory would force what it holds through memory too, which costs as much as holding it.
    #[inline(never)]
    fn pin_with_lock(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Result<Box<PinnedRange<'a, S>>, GupError> {
        let range = self.fast_by_segments(address, nr_pages, flags)?;
        if range.nr_pages() == nr_pages || flags.contains(GupFlags::FAST_ONLY) {
            return Ok(Box::new(range));
        }
        self.continue_slow(range, address, nr_pages, flags).map(Box::new)
    }

    /// Holds pages from `address` on under the address space's lock.
    ///
    /// # Errors
    /// See the [module](self). Only when not even the first page could be held.
    pub fn slow(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Result<PinnedRange<'a, S>, GupError> {
        let range = PinnedRange::empty(self.mm, flags.contains(GupFlags::WRITE));
        if !flags.is_valid() || flags.contains(GupFlags::FAST_ONLY) || nr_pages == 0 {
            return Ok(range);
        }
        self.continue_slow(range, address, nr_pages, flags)
    }

    fn check(&self, address: u64, nr_pages: u64, flags: GupFlags) -> Result<(), GupError> {
        if !flags.is_valid() {
            return Err(GupError::BadFlags { flags });
        }
        let len_bytes = nr_pages.checked_mul(PAGE_BYTES);
        let Some(end) = len_bytes.and_then(|len| (address & PAGE_MASK).checked_add(len)) else {
            return Err(GupError::Overflow { address });
        };
        if end > self.mm.pages().1 * PAGE_BYTES && nr_pages != 0 {
            return Err(GupError::Outside { address });
        }
        Ok(())
    }

    /// Holds the first range from `page` on; again a few times if the page table moves.
    #[inline]
    fn try_segment(
        &self,
        page: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<PinnedSegment<'a, S>> {
        let address = page * PAGE_BYTES;
        if flags.contains(GupFlags::LONGTERM) {
            self.fast_run_long(address, nr_pages, flags).map(PinnedSegment::from)
        } else {
            self.fast_run(address, nr_pages, flags).map(PinnedSegment::from)
        }
    }

    /// Tries once to hold the first range from `page` on by what the page table says.
    fn attempt(&self, page: u64, nr_pages: u64, flags: GupFlags) -> Attempt<'a, S> {
        let Some((look, run)) = self.look_far(page, nr_pages, flags) else { return Attempt::Stop };
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

    /// What the page table says of `page`. `None` if there is no leaf that allows the access.
    #[inline(always)]
    fn look(&self, page: u64, flags: GupFlags) -> Option<Look<'a>> {
        let table = &self.mm.table;
        let epoch = table.epoch();
        let found = table.walk(page)?;
        if !flags.allow(found.leaf.flags()) {
            return None;
        }
        Some(Look { epoch, found, life: table.life(found.leaf)?, reach: None })
    }

    /// As [`look`](Self::look), with the frames from `page` on as far as they are wanted and go on
    /// evenly, across leaves.
    fn look_far(&self, page: u64, nr_pages: u64, flags: GupFlags) -> Option<(Look<'a>, PfnRange)> {
        let mut look = self.look(page, flags)?;
        let in_leaf = look.found.pages_from(page);
        let mut run_pages = nr_pages.min(in_leaf);
        if nr_pages > in_leaf {
            let reach = self.mm.table.reach(look.found.leaf);
            run_pages = nr_pages.min(in_leaf.max(reach.from(page))).min(MAX_RUN_PAGES);
            look.reach = Some(reach);
        }
        Some((look, PfnRange::new(look.found.frame_of(page), run_pages)?))
    }

    /// Whether the page table still says what it said at the look.
    #[inline(always)]
    fn is_as_seen(&self, look: &Look<'_>) -> bool {
        look.found.is_unchanged() && self.mm.table.epoch() == look.epoch
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

    fn is_reach_as_seen(&self, look: &Look<'_>) -> bool {
        look.reach.is_none_or(|reach| self.mm.table.reach(look.found.leaf) == reach)
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

    fn continue_slow(
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
            let mut ended = Ended::default();
            let mut state = self.mm.lock();
            let once = self.slow_once(&mut state, page, nr_pages, flags, &mut ended);
            // Who caches what proved stale is notified now; no event may have been for this
            // process.
            let _told = self.mm.finish(state, &ended);
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
        ended: &mut Ended,
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
        ended: &mut Ended,
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
}

/// Whether life words lie where the address space expects them.
fn has_same_layout<S: ClientSide>(mm: &Mm, lane: &Lane<'_, S>) -> bool {
    mm.table.vmemmap() == lane.pinner().side().vmemmap().layout()
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
        let is_told = flags.contains(GupFlags::HWPOISON);
        return Err(GupError::Poisoned { address, is_told });
    }
    if matches!(error, PinError::NotPinnable { .. }) && word.flags().contains(FolioFlags::RAW) {
        return Err(GupError::Raw { address });
    }
    Ok(())
}
