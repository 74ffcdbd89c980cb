//! The page table: from addresses to frames, read without a lock.
//!
//! A flat top array has one entry per GiB of addresses; below it lie tables of 512 entries that map
//! 2 MiB each, and below those, tables that map 4 KiB each. A leaf may stand at each of the three
//! levels, so a walk of a 2 MiB leaf is two dependent loads of table words. [`entry`] is one word,
//! [`node`] the table pages, [`span`] what a leaf says of its extent, [`reverse`] the way back from
//! frames to addresses, [`walk`] the readers, [`cursor`] the writer.
//!
//! # States
//!
//! ```text
//!              map                    split
//!   absent ───────────▶ leaf ─────────────────────▶ table of 512 smaller leaves
//!     ▲  ▲               │ ▲                             │
//!     │  └──── clear ────┘ └── map over, protect         │ last entry cleared
//!     └──────────────────────────────────────────────────┘ (the table page is retired)
//! ```
//!
//! # Who may touch what
//!
//! Everybody may walk. Only the holder of the address space's lock has the [`TableWriter`], and so a
//! [`Cursor`](cursor::Cursor), and stores.
//!
//! # Orderings
//!
//! Writer: `fill table page or span; entry (Release)`. Reader: `entry (Acquire); table page or span`.
//! Data: the words behind the entry.
//!
//! Writer of a second life: `entry = absent (Release); epoch + 1 (Release); table page or span of the
//! next life (Release)`. Reader: `epoch (Acquire); walk, span (Acquire); pin; entry; epoch`. Data: the
//! words of table pages and spans. Retired pages and spans are collected, so that one step of the
//! epoch serves many.
//!
//! # Lost races
//!
//! *Walk against clear.* If the reader's second load of the entry comes first, it holds what was
//! mapped during its call, as if the clear had come after it. If the clear comes first, the second
//! load differs and the reader lets go. Either way the frames are safe: the life word and not the
//! entry decides whether they may be held.
//!
//! *Walk against reuse of a table page or span.* If the reader's first load of the epoch sees the
//! step, it also sees the old entry gone, and finds only what the new life holds. If it does not,
//! and it then loads a word of the new life, that word's Release makes the step visible to its
//! second load of the epoch: it differs, and the reader lets go and starts again.
//!
//! *Walk against unmap and map of another extent at the same address.* Frame and span number lie in
//! one word; it differs on the second load, or the reader saw one of the two mappings whole. That
//! both words are the same by chance means the same frame and the same span, so, with the epoch
//! unmoved, the same extent and life word.
//!
//! # Differs from Linux
//!
//! Linux frees table pages and has to keep them from vanishing under a walker by interrupts and
//! RCU (Linux 7.1: mm/gup.c, gup_fast; mm/mmu_gather.c). Here they are only ever reused as table pages, and the epoch
//! tells. Linux re-reads the entry after the grab to order the grab against truncation; here the
//! life word orders that, and the re-read only against unmapping.

pub(crate) mod cursor;
pub(crate) mod entry;
mod node;
mod reverse;
pub(crate) mod span;
#[cfg(test)]
mod tests;
pub(crate) mod walk;

use self::cursor::Cursor;
use self::node::{NodePool, Nodes};
use self::reverse::ReverseMap;
use self::span::{SpanPool, Spans};
use crate::level::Level;
use crate::sync::{AtomicU64, Ordering};
use crate::vmemmap::VmemmapLayout;

/// The part of a page table that readers use.
#[derive(Debug)]
pub(crate) struct PageTable {
    epoch: AtomicU64,
    /// First GiB of addresses that the table covers.
    first_gib: u64,
    top: Box<[AtomicU64]>,
    nodes: Nodes,
    spans: Spans,
}

/// The part of a page table that its writer needs besides.
#[derive(Debug, Default)]
pub(crate) struct TableWriter {
    nodes: NodePool,
    spans: SpanPool,
    reverse: ReverseMap,
}

/// How much a page table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableUsage {
    /// Table pages in use.
    pub(crate) nr_tables: usize,
    /// Spans in use.
    pub(crate) nr_spans: usize,
}

impl PageTable {
    /// An empty table for `nr_gib` GiB of addresses from `first_gib` on, for frames of the pool
    /// whose descriptors lie as `vmemmap` says.
    pub(crate) fn new(first_gib: u64, nr_gib: u64, vmemmap: VmemmapLayout) -> Self {
        Self {
            epoch: AtomicU64::new(0),
            first_gib,
            top: (0..nr_gib).map(|_| AtomicU64::new(0)).collect(),
            nodes: Nodes::for_gib(nr_gib),
            spans: Spans::new(vmemmap),
        }
    }

    /// The top entry for this page number; none outside the table.
    #[inline]
    fn top_entry(&self, page: u64) -> Option<&AtomicU64> {
        let gib = (page >> Level::Pud.shift()).wrapping_sub(self.first_gib);
        self.top.get(usize::try_from(gib).ok()?)
    }

    /// The shape of the pool whose frames the table maps.
    #[inline]
    pub(crate) const fn vmemmap(&self) -> &VmemmapLayout {
        self.spans.vmemmap()
    }

    /// First page number covered, and the one after the last.
    pub(crate) fn pages(&self) -> (u64, u64) {
        let end_gib = self.first_gib + self.top.len() as u64;
        (self.first_gib << Level::Pud.shift(), end_gib << Level::Pud.shift())
    }

    /// The writer's view of the table.
    pub(crate) fn cursor<'t>(&'t self, writer: &'t mut TableWriter) -> Cursor<'t> {
        Cursor::new(self, writer)
    }
}

impl TableWriter {
    /// Moves the epoch if something waits for it and is needed.
    fn refill(&mut self, table: &PageTable) {
        if self.nodes.wants_epoch() || self.spans.wants_epoch() {
            // Relaxed: only the holder of the lock, us, stores it.
            let epoch = table.epoch.load(Ordering::Relaxed);
            // Release: pairs with Acquire in `epoch`; data: the entries cleared before.
            table.epoch.store(epoch + 1, Ordering::Release);
            self.nodes.epoch_moved();
            self.spans.epoch_moved();
        }
    }

    pub(crate) fn usage(&self) -> TableUsage {
        TableUsage { nr_tables: self.nodes.nr_linked(), nr_spans: self.spans.nr_in_use() }
    }
}

/// Index in its table of the entry of `level` for this page number.
#[inline]
const fn index_in_table(page: u64, level: Level) -> usize {
    ((page >> level.shift()) % crate::level::FANOUT) as usize
}
