//! `get_user_pages`: hold what lies at these addresses.
//!
//! [`Gup::pin`] walks the page table without a lock up to the first page it cannot hold
//! (`fast.rs`), and with FAST_ONLY no further. From there on it takes the address space's lock,
//! checks the area, faults pages in, repairs stale leaves (`slow.rs`).
//!
//! # Arguments and results
//!
//! As Linux 7.1: mm/gup.c. `address` is rounded down to a page. If at least one page could be held
//! the result is those pages and no error; the next call, from the first missing page, gets the
//! error.
//!
//! | what | `pin` | with FAST_ONLY |
//! |---|---|---|
//! | 0 pages asked for | no pages | no pages |
//! | flags that exclude each other | EINVAL | EINVAL |
//! | address + length wraps | EOVERFLOW | EOVERFLOW |
//! | beyond the address space | EFAULT | EFAULT |
//! | no area, RAW area, not permitted | EFAULT | no pages |
//! | NOFAULT and no leaf | EFAULT | no pages |
//! | fault ends in SIGBUS or SIGSEGV | EFAULT | no pages |
//! | memory failed | EFAULT, with HWPOISON EHWPOISON | no pages |
//! | peer memory without P2PDMA | EREMOTEIO | no pages |
//! | LONGTERM where the type says no | EOPNOTSUPP | no pages |
//! | no memory for a page or a table | ENOMEM | no pages |
//! | the frames keep changing | EAGAIN | no pages |
//!
//! # Call tree
//!
//! ```text
//!   pin ── pin_fast ─────────┐
//!   │      pin_fast_in ──────┴ parts ┬ hold_in_one_leaf: hold_huge, hold_gigantic, hold_small
//!   │      (AddressSpace::pin)       └ hold_range: all pages, leaves of one span
//!   │      pin_fast_leaf_in ── hold_huge alone: what AddressSpace::pin tries first
//!   │      fast_leaf, fast_leaf_long ── hold_leaf ┬ hold_in_one_leaf
//!   │      (SpaceLane::try_pin)                   └ hold_by_full_walk
//!   └ pin_with_lock ┬ fast_by_segments ─ fast_run, fast_run_long: as far as it goes
//!                   └ continue_slow ─ slow_segment ─ slow_once: area, fault, attempt
//! ```
//!
//! Each `hold_` ends in `Lane::pin_if` or its long-term twin, through `PinTerm`: slot, light
//! barrier, life word, then the entry once more.
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
mod known_span;
mod pinned;
mod section;
mod slow;

use core::fmt;

pub use self::error::{GupError, LongtermRefusal};
pub use self::fast::{Ask, SegmentParts};
pub use self::flags::GupFlags;
pub use self::pinned::{Dirty, LongSegment, PinnedRange, PinnedSegment, SegmentHold, ShortSegment};
pub use self::section::{Borrowed, ReadSection};
use crate::level::PAGE_BYTES;
use crate::mm::Mm;
use crate::page_table::span::Reach;
use crate::page_table::walk::{Epoch, FoundLeaf};
use crate::pfn::{MAX_RUN_PAGES, PfnRange};
use crate::pin::{ClientSide, Lane};
use crate::vmemmap::LifeWord;

const PAGE_MASK: u64 = !(PAGE_BYTES - 1);

/// What the page table says of a page.
#[derive(Clone, Copy)]
struct Look<'a> {
    epoch: Epoch,
    found: FoundLeaf<'a>,
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

    /// The pages without a lock, run by run, as far as that goes, perhaps none.
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
    fn look_run(&self, page: u64, nr_pages: u64, flags: GupFlags) -> Option<(Look<'a>, PfnRange)> {
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

    fn is_reach_as_seen(&self, look: &Look<'_>) -> bool {
        look.reach.is_none_or(|reach| self.mm.table.reach(look.found.leaf) == reach)
    }
}

/// Whether life words lie where the address space expects them.
fn has_same_layout<S: ClientSide>(mm: &Mm, lane: &Lane<'_, S>) -> bool {
    mm.table.vmemmap() == lane.pinner().side().vmemmap().layout()
}
