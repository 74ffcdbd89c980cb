//! An address space: areas and a page table.
//!
//! A *device* address space (guest-physical, IOVA) is a page table only. A *process* address space
//! also has a [`CpuMapping`], through which the same pages appear at the same addresses of this
//! process; there, areas are filled when they are mapped, because nobody catches a processor's
//! fault.
//!
//! Changing an address space takes its lock. Translating and pinning do not: see
//! [`gup`](crate::gup).
//!
//! # States
//!
//! ```text
//!   unmapped ── map ──▶ mapped, no leaf ── fault, populate ──▶ leaf ──┐
//!      ▲                    │   ▲                                     │
//!      └────── unmap ───────┘   └── invalidate, leaf found stale ─────┤
//!      └───────────────────────── unmap ──────────────────────────────┘
//! ```
//!
//! # Who may touch what
//!
//! The holder of `state`'s lock changes areas and page table. Readers walk `table` freely. The lock
//! is held while an [`AreaBacking`](crate::vma::AreaBacking) or the `CpuMapping` is called and
//! never while a subscriber is.
//!
//! # Orderings
//!
//! Those of the page table. Between an owner and a process address space:
//! `life word changed; invalidate (lock)` against `lock; life word read; mapped for the processor`:
//! whichever holds the lock second sees what the other did, so a frame that was taken away is
//! either removed from the processor's page table by the first or refused by the second.
//!
//! # Lost races
//!
//! *Fault against invalidation.* If the fault is first, the invalidation removes its leaf. If the
//! invalidation is first, a fault with an extent read before may still put a stale leaf in; every
//! pin through it fails its check of the life word and has it repaired, and the processor's mapping
//! is refused by the order above.
//!
//! # Differs from Linux
//!
//! `mprotect` here changes all or nothing (Linux 7.1: mm/mprotect.c changes up to the first gap). A
//! translation that is gone is reported to subscribers after the lock is dropped.

mod dirty;
mod fill;
mod invalidate;
mod map;

use core::fmt;
use std::sync::{Arc, PoisonError};

pub use self::dirty::DirtyTracker;
pub use self::fill::FillError;
pub(crate) use self::invalidate::EndedRanges;
use self::invalidate::RangeSubscribers;
pub use self::invalidate::{
    AckTicket, AckToken, EndedRange, InvalidateSubscriber, SubscriptionId, Unanswered,
};
pub use self::map::{Filling, MapError, MapRequest, Placed, Sharing, Unmapped};
use crate::extent::Extent;
use crate::level::{Level, PAGE_BYTES};
pub use crate::page_table::TableMemory;
use crate::page_table::cursor::Cursor;
use crate::page_table::entry::{LeafFlags, SpanId};
use crate::page_table::{PageTable, TableWriter};
use crate::pfn::{Pfn, PfnRange};
use crate::prot::Prot;
use crate::sync::{Mutex, MutexGuard};
use crate::vma::{Vma, VmaKind, VmaSet};
use crate::vmemmap::VmemmapLayout;

/// Addresses have at most 48 bits.
pub const ADDRESS_BITS: u32 = 48;

const GIB_BYTES: u64 = Level::Pud.size_bytes();

/// The processor's own mapping of a process address space. The layer above has it; this layer owns
/// the trait. All calls come with the address space's lock held.
pub trait CpuMapping: Send + Sync + fmt::Debug {
    /// Makes the frames of `run`, which are part of `extent`, appear at `address`, over whatever is
    /// there. Must read the extent's life word first and refuse when it is not `extent.life`: the
    /// lock orders that check against the invalidation that follows every change of a life word.
    ///
    /// # Errors
    /// The Linux error number; `ESTALE` when the life word differs.
    fn map(&self, address: u64, extent: &Extent, run: PfnRange, prot: Prot) -> Result<(), i32>;

    /// Takes what is at `address` away, so that the next touch is an error and never another file's
    /// data. What cannot be taken away must at least never be reused: there is no error to return.
    fn unmap(&self, address: u64, len_bytes: u64, vacancy: Vacancy);
}

/// What becomes of addresses whose frames were taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vacancy {
    /// An area is still mapped there: a touch is a fault.
    Reserved,
    /// Nothing is mapped there.
    Unmapped,
}

/// Where an address translates to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The frame of the address.
    pub pfn: Pfn,
    /// The size of the leaf that maps it.
    pub level: Level,
    /// Whether the leaf allows writes.
    pub is_writable: bool,
}

/// How much an address space holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmUsage {
    /// Areas.
    pub nr_areas: usize,
    /// Table pages of 4 KiB in use.
    pub nr_tables: usize,
    /// Spans in use: ranges that map one extent evenly.
    pub nr_spans: usize,
}

/// What the lock guards.
#[derive(Debug, Default)]
pub(crate) struct MmState {
    pub(crate) areas: VmaSet,
    pub(crate) writer: TableWriter,
    subscribers: RangeSubscribers,
}

/// An address space.
#[derive(Debug)]
pub struct Mm {
    pub(crate) table: PageTable,
    state: Mutex<MmState>,
    cpu: Option<Arc<dyn CpuMapping>>,
    dirty: DirtyTracker,
    first_page: u64,
    end_page: u64,
}

impl Mm {
    /// A device's address space: `len_bytes` bytes from `address` on, both multiples of the page
    /// size, for memory of the pool whose descriptors lie as `pool` says; `None` if that is empty,
    /// misaligned or has more than [`ADDRESS_BITS`] bits.
    #[must_use]
    pub fn for_device(pool: &VmemmapLayout, address: u64, len_bytes: u64) -> Option<Self> {
        Self::new(pool, address, len_bytes, None, TableMemory::HEAP)
    }

    /// As [`for_device`](Self::for_device), with tables in `memory`: a large address space is
    /// best on memory that is taken when it is first written to.
    #[must_use]
    pub fn for_device_in(
        memory: TableMemory,
        pool: &VmemmapLayout,
        address: u64,
        len_bytes: u64,
    ) -> Option<Self> {
        Self::new(pool, address, len_bytes, None, memory)
    }

    /// As [`for_device_in`](Self::for_device_in), where the processor sees the same pages at the
    /// same addresses.
    #[must_use]
    pub fn for_process(
        memory: TableMemory,
        pool: &VmemmapLayout,
        address: u64,
        len_bytes: u64,
        cpu: Arc<dyn CpuMapping>,
    ) -> Option<Self> {
        Self::new(pool, address, len_bytes, Some(cpu), memory)
    }

    fn new(
        pool: &VmemmapLayout,
        address: u64,
        len_bytes: u64,
        cpu: Option<Arc<dyn CpuMapping>>,
        memory: TableMemory,
    ) -> Option<Self> {
        let end = address.checked_add(len_bytes)?;
        let is_aligned = (address | len_bytes).is_multiple_of(PAGE_BYTES);
        if len_bytes == 0 || !is_aligned || end > 1 << ADDRESS_BITS {
            return None;
        }
        let first_gib = address / GIB_BYTES;
        let nr_gib = end.div_ceil(GIB_BYTES) - first_gib;
        let pages = (address / PAGE_BYTES, end / PAGE_BYTES);
        Some(Self {
            table: PageTable::new(pages, *pool, memory),
            state: Mutex::default(),
            cpu,
            dirty: DirtyTracker::new(first_gib, nr_gib),
            first_page: address / PAGE_BYTES,
            end_page: end / PAGE_BYTES,
        })
    }

    /// First page number of the address space, and the one after the last.
    #[inline]
    pub(crate) const fn pages(&self) -> (u64, u64) {
        (self.first_page, self.end_page)
    }

    /// Where the address translates to now. A hint: nothing keeps the frame from being reused; pin
    /// it, or translate inside a [`ReadSection`](crate::gup::ReadSection).
    #[inline]
    #[must_use]
    pub fn translate(&self, address: u64) -> Option<Translation> {
        let page = address / PAGE_BYTES;
        let found = self.table.walk(page)?;
        Some(Translation {
            pfn: Pfn::new(found.frame_of(page))?,
            level: found.level,
            is_writable: found.leaf.flags().contains(LeafFlags::WRITE),
        })
    }

    /// The area that contains the address.
    #[must_use]
    pub fn area_at(&self, address: u64) -> Option<Vma> {
        self.lock().areas.find(address / PAGE_BYTES).cloned()
    }

    /// The area that contains the address and those that adjoin it on either side without a gap, in
    /// order of address, as far as all allow `prot`. Empty if that area does not.
    #[must_use]
    pub fn areas_around(&self, address: u64, prot: Prot) -> Vec<Vma> {
        let state = self.lock();
        let wanted = |vma: &Vma| vma.prot.contains(prot);
        state.areas.around(address / PAGE_BYTES, wanted).cloned().collect()
    }

    /// A number that every change of an area moves, and perhaps others do: for a caller that keeps
    /// what it has found out about areas.
    #[must_use]
    pub fn nr_changes(&self) -> u64 {
        self.lock().areas.nr_changes()
    }

    /// Every area, in order of address.
    #[must_use]
    pub fn areas(&self) -> Vec<Vma> {
        self.lock().areas.iter().cloned().collect()
    }

    /// Which pages were written.
    #[inline]
    #[must_use]
    pub const fn dirty(&self) -> &DirtyTracker {
        &self.dirty
    }

    /// How much the address space holds.
    #[must_use]
    pub fn usage(&self) -> MmUsage {
        let state = self.lock();
        let table = state.writer.usage();
        MmUsage {
            nr_areas: state.areas.len(),
            nr_tables: table.nr_tables,
            nr_spans: table.nr_spans,
        }
    }

    /// Tells `subscriber` from now on of translations that end. Whoever caches translations must
    /// hold their frames besides, with [`DEVICE`](crate::gup::GupFlags::DEVICE): a notification
    /// keeps nothing from being reused.
    pub fn on_invalidate(&self, subscriber: Arc<dyn InvalidateSubscriber>) -> SubscriptionId {
        self.lock().subscribers.add(subscriber)
    }

    /// True if anybody subscribes to translations that end.
    #[must_use]
    pub fn has_subscribers(&self) -> bool {
        !self.lock().subscribers.is_empty()
    }

    /// Tells the subscriber no more.
    pub fn unsubscribe(&self, id: SubscriptionId) {
        self.lock().subscribers.remove(id);
    }

    /// Removes every translation to a frame of `run`: it is being truncated, drained, or has
    /// failed. A device-dax leaf goes as a whole.
    ///
    /// The frames may be held still; waiting for that is the drain's part.
    pub fn invalidate(&self, run: PfnRange) -> Unmapped {
        self.end_ranges(|cursor| cursor.ranges_of(run))
    }

    /// Removes every translation to an extent of which `is_current` says no: for whoever must know
    /// soon of frames that changed hands, and hears of it from nobody, because nothing here holds
    /// them.
    pub fn invalidate_stale(&self, is_current: impl Fn(&Extent) -> bool) -> Unmapped {
        self.end_ranges(|cursor| cursor.ranges_unless(is_current))
    }

    fn end_ranges(&self, find: impl FnOnce(&Cursor<'_>) -> Vec<(SpanId, u64, u64)>) -> Unmapped {
        let mut ended = EndedRanges::default();
        let mut state = self.lock();
        let MmState { areas, writer, .. } = &mut *state;
        let mut cursor = self.table.cursor(writer);
        for (span, first, end) in find(&cursor) {
            let (first, end) = widen(areas, first, end);
            cursor.clear(first, end, Some(span), |page, nr| ended.push(page, nr));
        }
        for range in ended.ranges() {
            self.cpu_unmap(range.address, range.len_bytes);
        }
        self.finish(state, &ended)
    }

    /// Takes the lock. A thread that panicked under it left areas and table each in order: every
    /// change of one is complete before the next call.
    pub(crate) fn lock(&self) -> MutexGuard<'_, MmState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes away the leaf that maps the page, which proved stale.
    pub(crate) fn drop_leaf(&self, state: &mut MmState, page: u64, ended: &mut EndedRanges) {
        let mut cursor = self.table.cursor(&mut state.writer);
        let Some(stale) = cursor.leaf_at(page) else { return };
        let end = stale.page + stale.level.nr_pages();
        cursor.clear(stale.page, end, None, |page, nr_pages| {
            self.cpu_unmap(page * PAGE_BYTES, nr_pages * PAGE_BYTES);
            ended.push(page, nr_pages);
        });
    }

    /// Takes what a leaf that has gone mapped away from the processor, too; its area stays.
    fn cpu_unmap(&self, address: u64, len_bytes: u64) {
        if let Some(cpu) = &self.cpu {
            cpu.unmap(address, len_bytes, Vacancy::Reserved);
        }
    }

    /// Gives the lock back and tells subscribers of what ended under it.
    pub(crate) fn finish(&self, state: MutexGuard<'_, MmState>, ended: &EndedRanges) -> Unmapped {
        let subscribers = state.subscribers.to_tell(ended);
        drop(state);
        Unmapped { nr_pages: ended.nr_pages(), acks: invalidate::tell(subscribers, ended) }
    }
}

/// Where an area must not be mapped in part, the whole blocks around the pages.
fn widen(areas: &VmaSet, first: u64, end: u64) -> (u64, u64) {
    let align_at = |page: u64| match areas.find(page).map(Vma::kind) {
        Some(VmaKind::DeviceDax { align }) => align.nr_pages(),
        _ => 1,
    };
    let first_align = align_at(first);
    (first - first % first_align, end.next_multiple_of(align_at(end - 1)))
}
