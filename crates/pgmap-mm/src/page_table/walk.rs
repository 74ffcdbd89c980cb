//! Reading the page table without a lock.
//!
//! # States
//!
//! ```text
//!   epoch ──▶ walk ──▶ leaf ──▶ span ──▶ (the caller pins) ──▶ entry and epoch as before ──▶ held
//!               │                                                 │ not
//!               └──▶ absent                                       └──▶ let go, start again
//!
//!   walk: middle table ── leaf ──▶ found          middle table ── table ──▶ last table
//!              └── absent ──▶ top ── leaf ──▶ found; table ──▶ middle table once more
//! ```
//!
//! # Who may touch what
//!
//! Readers only load.
//!
//! # Orderings
//!
//! Those of [`page_table`](super): every load is Acquire, so the last look at entry and epoch comes
//! after all that they vouch for.
//!
//! # Lost races
//!
//! Those of [`page_table`](super).
//!
//! # Differs from Linux
//!
//! See [`page_table`](super).

use super::entry::{Entry, Leaf, NodeId};
use super::span::{Reach, ReachWord};
use super::{PageTable, index_in_table};
use crate::level::Level;
use crate::sync::{AtomicU64, Ordering};
use crate::vmemmap::LifeWord;

/// Which life of table pages and spans a reader is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

impl Epoch {
    /// The number, which no other page table of this process has or had, and which is never 0.
    #[inline(always)]
    pub(crate) const fn number(self) -> u64 {
        self.0
    }
}

/// A leaf and where it was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FoundLeaf<'t> {
    pub(crate) leaf: Leaf,
    pub(crate) level: Level,
    entry: &'t AtomicU64,
}

impl FoundLeaf<'_> {
    /// Whether the entry still says the same.
    #[inline]
    pub(crate) fn is_unchanged(&self) -> bool {
        // Acquire: pairs with Release in the cursor's stores; keeps the epoch's load after this
        // one.
        self.entry.load(Ordering::Acquire) == self.leaf.bits()
    }

    /// The number of the frame that backs `page`, which must be in the leaf.
    #[inline]
    pub(crate) const fn frame_of(&self, page: u64) -> u64 {
        self.leaf.pfn() + (page & (self.level.nr_pages() - 1))
    }

    /// How many pages the leaf maps from `page` on; `page` must be one of them.
    #[inline]
    pub(crate) const fn pages_from(&self, page: u64) -> u64 {
        self.level.nr_pages() - (page & (self.level.nr_pages() - 1))
    }
}

impl PageTable {
    /// The epoch now.
    #[inline(always)]
    pub(crate) fn epoch(&self) -> Epoch {
        // Acquire: pairs with Release in `refill`; data: entries that were cleared before the step.
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// The leaf of 2 MiB that maps `page`: what most addresses are mapped by, and so in few
    /// instructions. Where there is none, [`walk`](Self::walk) may find another leaf.
    #[inline(always)]
    pub(crate) fn walk_huge(&self, page: u64) -> Option<FoundLeaf<'_>> {
        let entry = self.huge_entry(page)?;
        // Acquire, here and below: pairs with Release in the cursor's stores; data: the table page
        // or the span that the word leads to.
        let leaf = Leaf::read(entry.load(Ordering::Acquire))?;
        Some(FoundLeaf { leaf, level: Level::Pmd, entry })
    }

    /// The leaf of 4 KiB that maps `page`; `None` if larger ones do or nothing does. Good only if
    /// epoch is the same before and after: the table may be in another life.
    #[inline(always)]
    pub(crate) fn walk_small(&self, page: u64) -> Option<FoundLeaf<'_>> {
        // Acquire, both: as in `walk_huge`.
        let middle = Entry::read(self.huge_entry(page)?.load(Ordering::Acquire));
        let Entry::Table(NodeId::Last { chunk, word }) = middle else { return None };
        let entry = self.nodes.entry(chunk, word, index_in_table(page, Level::Pte))?;
        let leaf = Leaf::read(entry.load(Ordering::Acquire))?;
        Some(FoundLeaf { leaf, level: Level::Pte, entry })
    }

    /// The leaf of 1 GiB that maps `page`; `None` if smaller ones do or nothing does.
    #[inline(always)]
    pub(crate) fn walk_gigantic(&self, page: u64) -> Option<FoundLeaf<'_>> {
        let entry = self.top_entry(page)?;
        // Acquire: as in `walk_huge`.
        let leaf = Leaf::read(entry.load(Ordering::Acquire))?;
        Some(FoundLeaf { leaf, level: Level::Pud, entry })
    }

    /// The leaf that maps `page`.
    #[inline(never)]
    pub(crate) fn walk(&self, page: u64) -> Option<FoundLeaf<'_>> {
        if let Some(found) = self.walk_middle(page) {
            return found;
        }
        let entry = self.top_entry(page)?;
        match Entry::read(entry.load(Ordering::Acquire)) {
            Entry::Leaf(leaf) => Some(FoundLeaf { leaf, level: Level::Pud, entry }),
            // Linked since: it was filled before.
            Entry::Table(_) => self.walk_middle(page).flatten(),
            Entry::Absent => None,
        }
    }

    /// What the middle table leads to; `None` if it has no entry for the page.
    fn walk_middle(&self, page: u64) -> Option<Option<FoundLeaf<'_>>> {
        let entry = self.huge_entry(page)?;
        match Entry::read(entry.load(Ordering::Acquire)) {
            Entry::Leaf(leaf) => Some(Some(FoundLeaf { leaf, level: Level::Pmd, entry })),
            Entry::Table(node) => Some(self.walk_last(node, page)),
            Entry::Absent => None,
        }
    }

    #[inline]
    fn walk_last(&self, node: NodeId, page: u64) -> Option<FoundLeaf<'_>> {
        let entry = self.entry(node, index_in_table(page, Level::Pte))?;
        match Entry::read(entry.load(Ordering::Acquire)) {
            Entry::Leaf(leaf) => Some(FoundLeaf { leaf, level: Level::Pte, entry }),
            Entry::Table(_) | Entry::Absent => None,
        }
    }

    /// The life word that frames of the leaf are pinned under.
    #[inline(always)]
    pub(crate) fn life(&self, leaf: Leaf) -> Option<LifeWord> {
        self.spans.life(leaf.span())
    }

    /// Where it is written how far the leaf's span covers.
    #[inline(always)]
    pub(crate) fn reach_word(&self, leaf: Leaf) -> Option<ReachWord<'_>> {
        self.spans.reach_word(leaf.span())
    }

    /// How far the leaf's span covers.
    #[inline]
    pub(crate) fn reach(&self, leaf: Leaf) -> Reach {
        self.spans.reach(leaf.span())
    }
}
