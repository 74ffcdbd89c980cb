//! Table pages: 512 words each, that never move.
//!
//! The middle tables, of 2 MiB entries, lie in one array by address: a reader goes there without
//! asking what the top entry says, and the array's memory is taken as it is written to
//! ([`TableMemory`]). Tables of 4 KiB entries come from an arena.
//!
//! # States
//!
//! ```text
//!   middle: unused ── take ──▶ linked ── emptied, unlinked: retire ──▶ unused
//!   last:   unused ── take ──▶ linked ── emptied, unlinked: retire ──▶ retired
//!           retired ── epoch moves ──▶ unused
//! ```
//!
//! # Who may touch what
//!
//! Readers load entries of any table page at any time, even of one that was retired: the memory
//! stays what it is for as long as the address space lives. The holder of the address space's lock
//! has the [`NodePool`] and alone stores entries.
//!
//! # Orderings
//!
//! Entries are stored with Release and loaded with Acquire: a table is filled before it is linked.
//! Why a reader that walks into a recycled table notices is explained in [`page_table`](super).
//!
//! # Lost races
//!
//! *Walk against recycling*: see [`page_table`](super). A middle table is never recycled: its next
//! life is for the same addresses, where the walk would read the same word anyway.
//!
//! # Differs from Linux
//!
//! Linux frees table pages and so must stop walkers with disabled interrupts (Linux 7.1:
//! mm/gup.c, gup_fast). Here a table page is a table page for ever, as SLAB_TYPESAFE_BY_RCU objects
//! are, and an epoch word tells a reader that it may have walked into another life of it.

use std::sync::OnceLock;

use super::entry::NodeId;
use crate::level::FANOUT;
use crate::sync::AtomicU64;

/// Table pages in the first chunk; each further chunk has twice as many, up to a bound.
const FIRST_CHUNK_TABLES: u64 = if cfg!(loom) { 1 } else { 8 };
const MAX_CHUNK_TABLES: u64 = if cfg!(loom) { 1 } else { (1 << NodeId::WORD_BITS) / FANOUT };
/// Retired tables that are collected before the epoch moves and they may be used again.
pub(super) const RETIRED_TABLES: usize = if cfg!(loom) { 1 } else { 64 };

const fn chunk_tables(chunk: usize) -> u64 {
    let doubled = if chunk >= 32 { MAX_CHUNK_TABLES } else { FIRST_CHUNK_TABLES << chunk };
    if doubled < MAX_CHUNK_TABLES { doubled } else { MAX_CHUNK_TABLES }
}

/// Where the words of page tables come from. All of them read as zero at first.
#[derive(Clone, Copy, Debug)]
pub struct TableMemory {
    /// For the array of 2 MiB entries: by address, and most of it never written to.
    pub sparse: fn(usize) -> Box<[AtomicU64]>,
    /// For tables of 4 KiB entries, which are taken from the front on and read all over.
    pub dense: fn(usize) -> Box<[AtomicU64]>,
}

impl TableMemory {
    /// The heap: all of it is taken at once. A process has better memory.
    pub const HEAP: Self = Self { sparse: heap_words, dense: heap_words };
}

fn heap_words(nr_words: usize) -> Box<[AtomicU64]> {
    (0..nr_words).map(|_| AtomicU64::new(0)).collect()
}

/// The memory of all tables of 4 KiB entries of one address space.
#[derive(Debug)]
pub(super) struct Nodes {
    chunks: Box<[OnceLock<Box<[AtomicU64]>>]>,
    memory: TableMemory,
}

impl Nodes {
    /// Room for every table that `nr_gib` GiB of addresses can need.
    pub(super) fn for_gib(nr_gib: u64, memory: TableMemory) -> Self {
        let most = nr_gib * FANOUT + RETIRED_TABLES as u64 + 1;
        let (mut nr_chunks, mut tables) = (0, 0);
        while tables < most {
            tables += chunk_tables(nr_chunks);
            nr_chunks += 1;
        }
        Self { chunks: (0..nr_chunks).map(|_| OnceLock::new()).collect(), memory }
    }

    /// The entry with this number in the table that starts at `word` of `chunk`; `None` if no table
    /// can be.
    #[inline(always)]
    pub(super) fn entry(&self, chunk: u32, word: u32, index: usize) -> Option<&AtomicU64> {
        self.chunks.get(chunk as usize)?.get()?.get(word as usize + index)
    }

    fn add_chunk(&self, chunk: usize) -> Option<()> {
        let words = chunk_tables(chunk) * FANOUT;
        self.chunks.get(chunk)?.get_or_init(|| (self.memory.dense)(words as usize));
        Some(())
    }
}

/// Which table pages are in use, and how full. Belongs to the holder of the address space's lock.
#[derive(Debug, Default)]
pub(super) struct NodePool {
    /// Present entries of each GiB's middle table.
    in_middle: Vec<u16>,
    /// Present entries of each other table, by chunk.
    present: Vec<Box<[u16]>>,
    /// Tables of the last chunk that never were in use.
    nr_fresh: u64,
    unused: Vec<NodeId>,
    retired: Vec<NodeId>,
    nr_linked: usize,
}

impl NodePool {
    /// The middle table of GiB number `gib`, empty and linked to nothing.
    pub(super) fn take_middle(&mut self, gib: u32) -> NodeId {
        if self.in_middle.len() <= gib as usize {
            self.in_middle.resize(gib as usize + 1, 0);
        }
        self.nr_linked += 1;
        NodeId::Middle { gib }
    }

    /// An empty table of 4 KiB entries that nothing is linked to; `None` if the address space is at
    /// its bound.
    pub(super) fn take(&mut self, nodes: &Nodes) -> Option<NodeId> {
        let node = match self.unused.pop() {
            Some(node) => node,
            None => self.take_fresh(nodes)?,
        };
        self.nr_linked += 1;
        Some(node)
    }

    /// A table that never was in use. They are handed out in rising order, so that memory is taken
    /// as tables are.
    fn take_fresh(&mut self, nodes: &Nodes) -> Option<NodeId> {
        if self.nr_fresh == 0 {
            let chunk = self.present.len();
            nodes.add_chunk(chunk)?;
            self.nr_fresh = chunk_tables(chunk);
            self.present.push(vec![0; self.nr_fresh as usize].into_boxed_slice());
        }
        let chunk = self.present.len() - 1;
        let table = chunk_tables(chunk) - self.nr_fresh;
        self.nr_fresh -= 1;
        Some(NodeId::Last { chunk: chunk as u32, word: (table * FANOUT) as u32 })
    }

    /// Notes that `node`, whose entries are all absent, is no longer linked.
    pub(super) fn retire(&mut self, node: NodeId) {
        self.nr_linked -= 1;
        if matches!(node, NodeId::Last { .. }) {
            self.retired.push(node);
        }
    }

    /// Whether enough tables are retired, and are needed, to be worth moving the epoch.
    pub(super) fn wants_epoch(&self) -> bool {
        self.nr_fresh == 0 && self.unused.is_empty() && self.retired.len() >= RETIRED_TABLES
    }

    /// The epoch has moved: no reader takes a retired table for what it was.
    pub(super) fn epoch_moved(&mut self) {
        self.unused.append(&mut self.retired);
    }

    pub(super) fn present(&mut self, node: NodeId) -> Option<&mut u16> {
        match node {
            NodeId::Middle { gib } => self.in_middle.get_mut(gib as usize),
            NodeId::Last { chunk, word } => {
                self.present.get_mut(chunk as usize)?.get_mut(word as usize / FANOUT as usize)
            }
        }
    }

    /// Tables in use.
    pub(super) const fn nr_linked(&self) -> usize {
        self.nr_linked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retired_table_waits_for_the_epoch() {
        let nodes = Nodes::for_gib(1, TableMemory::HEAP);
        let mut pool = NodePool::default();
        let taken: Vec<_> = (0..8).map(|_| pool.take(&nodes).unwrap()).collect();
        pool.retire(taken[3]);
        assert!(!pool.wants_epoch());
        let next = pool.take(&nodes).unwrap();
        assert!(!taken.contains(&next), "a retired table was given out in the same epoch");
        pool.epoch_moved();
        assert!((0..20).any(|_| pool.take(&nodes) == Some(taken[3])));
    }

    #[test]
    fn the_arena_has_room_for_every_table_and_no_more_than_a_chunk_over() {
        let nodes = Nodes::for_gib(1, TableMemory::HEAP);
        let mut pool = NodePool::default();
        let most = 512;
        let taken = (0..2 * most).map_while(|_| pool.take(&nodes)).count();
        assert!(taken >= most && taken <= 3 * most);
    }
}
