//! The page table: from addresses to frames, read without a lock.
//!
//! A flat top array has one entry per GiB of addresses; below it lies a middle table of 512 entries
//! that map 2 MiB each, and below those, tables that map 4 KiB each. A leaf may stand at each of
//! the three levels. All middle tables are one array by address, into which readers look first: a
//! walk of a 2 MiB leaf loads one table word. [`entry`] is one word, [`node`] the table pages,
//! [`span`] what a leaf says of its extent, [`reverse`] the way back from frames to addresses,
//! [`walk`] the readers, [`cursor`] the writer.
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
//! Everybody may walk. Only the holder of the address space's lock has the [`TableWriter`], and so
//! a [`Cursor`](cursor::Cursor), and stores.
//!
//! # Orderings
//!
//! Writer: `fill table page or span; entry (Release)`. Reader:
//! `entry (Acquire); table page or span`. Data: the words behind the entry.
//!
//! Writer of a second life:
//! `entry = absent (Release); next epoch (Release); table page or span of the next life (Release)`.
//! Reader: `epoch (Acquire); walk, span (Acquire); pin; entry; epoch`. Data: the words of table
//! pages and spans. Retired pages and spans are collected, so that one step of the epoch serves
//! many.
//!
//! # Lost races
//!
//! *Walk against clear.* If the reader's second load of the entry comes first, it holds what was
//! mapped during its call, as if the clear had come after it. If the clear comes first, the second
//! load differs and the reader lets go. Either way the frames are safe: the life word and not the
//! entry decides whether they may be held.
//!
//! *Walk against a leaf of 1 GiB that is split.* The middle table is filled, then the top entry
//! turns from leaf to table. A reader that looked into the middle table before finds the leaf at
//! the top, or a table there, and then looks into the middle table once more.
//!
//! *Walk against reuse of a table page or span.* If the reader's first load of the epoch sees the
//! step, it also sees the old entry gone, and finds only what the new life holds. If it does not,
//! and it then loads a word of the new life, that word's Release makes the step visible to its
//! second load of the epoch: it differs, and the reader lets go and starts again.
//!
//! *Leaf against what a reader remembers of its span.* A reader may keep what a span said in an
//! epoch, and believe it for a leaf that it loads before it sees the same epoch: spans are reused
//! in later epochs only, and the leaf of a later life is stored after the step. No two epochs of a
//! process are the same number, whichever address space they are of, so it needs to remember no
//! more than that.
//!
//! *Walk against unmap and map of another extent at the same address.* Frame and span number lie in
//! one word; it differs on the second load, or the reader saw one of the two mappings whole. That
//! both words are the same by chance means the same frame and the same span, so, with the epoch
//! unmoved, the same extent and life word.
//!
//! # Differs from Linux
//!
//! Linux frees table pages and has to keep them from vanishing under a walker by interrupts and RCU
//! (Linux 7.1: mm/gup.c, gup_fast; mm/mmu_gather.c). Here they are only ever reused as table pages,
//! and the epoch tells. Linux re-reads the entry after the grab to order the grab against
//! truncation; here the life word orders that, and the re-read only against unmapping.

pub(crate) mod cursor;
pub(crate) mod entry;
mod node;
mod reverse;
pub(crate) mod span;
#[cfg(test)]
mod tests;
pub(crate) mod walk;

use self::cursor::Cursor;
use self::entry::NodeId;
pub use self::node::TableMemory;
use self::node::{NodePool, Nodes};
use self::reverse::ReverseMap;
use self::span::{SpanPool, Spans};
use crate::level::{FANOUT, Level};
use crate::sync::{self, AtomicU64, Ordering};
use crate::vmemmap::VmemmapLayout;

/// The part of a page table that readers use. On cache lines of its own, two at a time as
/// processors fetch them: a writer's lock and lists beside it would take the lines away from every
/// reader.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct PageTable {
    epoch: AtomicU64,
    /// First GiB of addresses that the table covers.
    first_gib: u64,
    /// First block of 2 MiB of that.
    first_block: u64,
    /// The middle tables, by block of addresses.
    huge: Box<[AtomicU64]>,
    top: Box<[AtomicU64]>,
    /// First page number covered, and the one after the last.
    pages: (u64, u64),
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
    /// An empty table for the pages from `pages.0` up to `pages.1`, for frames of the pool whose
    /// descriptors lie as `vmemmap` says.
    pub(crate) fn new(pages: (u64, u64), vmemmap: VmemmapLayout, memory: TableMemory) -> Self {
        let first_gib = pages.0 >> Level::Pud.shift();
        let nr_gib = pages.1.div_ceil(Level::Pud.nr_pages()) - first_gib;
        let first_block = first_gib * FANOUT;
        let nr_blocks = pages.1.div_ceil(Level::Pmd.nr_pages()) - first_block;
        Self {
            epoch: AtomicU64::new(sync::unique_number()),
            first_gib,
            first_block,
            huge: (memory.sparse)(nr_blocks as usize),
            top: (0..nr_gib).map(|_| AtomicU64::new(0)).collect(),
            pages,
            nodes: Nodes::for_gib(nr_gib, memory),
            spans: Spans::new(vmemmap),
        }
    }

    /// Number in the table of the GiB of addresses that this page number lies in; none outside the
    /// table.
    fn gib(&self, page: u64) -> Option<u32> {
        let gib = (page >> Level::Pud.shift()).wrapping_sub(self.first_gib);
        u32::try_from(gib).ok().filter(|&gib| (gib as usize) < self.top.len())
    }

    /// The top entry for this page number; none outside the table.
    #[inline]
    fn top_entry(&self, page: u64) -> Option<&AtomicU64> {
        let gib = (page >> Level::Pud.shift()).wrapping_sub(self.first_gib);
        self.top.get(usize::try_from(gib).ok()?)
    }

    /// The entry of 2 MiB for this page number; none outside the table.
    #[inline(always)]
    fn huge_entry(&self, page: u64) -> Option<&AtomicU64> {
        let block = (page >> Level::Pmd.shift()).wrapping_sub(self.first_block);
        self.huge.get(usize::try_from(block).ok()?)
    }

    /// The entry with this number in a table page; `None` if no table page can be.
    #[inline]
    fn entry(&self, node: NodeId, index: usize) -> Option<&AtomicU64> {
        match node {
            NodeId::Middle { gib } => self.huge.get(gib as usize * FANOUT as usize + index),
            NodeId::Last { chunk, word } => self.nodes.entry(chunk, word, index),
        }
    }

    /// The shape of the pool whose frames the table maps.
    #[inline]
    pub(crate) const fn vmemmap(&self) -> &VmemmapLayout {
        self.spans.vmemmap()
    }

    /// First page number covered, and the one after the last.
    pub(crate) const fn pages(&self) -> (u64, u64) {
        self.pages
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
            // Release: pairs with Acquire in `epoch`; data: the entries cleared before.
            table.epoch.store(sync::unique_number(), Ordering::Release);
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
    ((page >> level.shift()) % FANOUT) as usize
}
