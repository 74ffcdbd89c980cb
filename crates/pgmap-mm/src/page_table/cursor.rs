//! The page table's one writer.
//!
//! # States
//!
//! Those of [`page_table`](super).
//!
//! # Who may touch what
//!
//! A cursor exists only while its owner holds the address space's lock.
//!
//! # Orderings
//!
//! Every store of an entry is Release and pairs with the Acquire loads of a walk. The cursor's own
//! loads are Relaxed: nobody else stores. Before leaves go or change, the reach of their span is
//! cut; after leaves came, it is extended ([`span`](super::span)).
//!
//! # Lost races
//!
//! Those of [`page_table`](super).
//!
//! # Differs from Linux
//!
//! Splitting a huge leaf needs no invalid state in between (Linux 7.1: mm/huge_memory.c,
//! __split_huge_pmd_locked): a reader sees the leaf or the table, and both say the same.

use super::entry::{Entry, Leaf, LeafFlags, NodeId, SpanId};
use super::{PageTable, TableWriter, index_in_table};
use crate::extent::Extent;
use crate::level::{FANOUT, Level};
use crate::pfn::{Pfn, PfnRange};
use crate::sync::{AtomicU64, Ordering};

/// Most leaves that are given another span when a span is cut in two or two are joined. A longer
/// rest keeps its span without being covered by its reach, and is read leaf by leaf.
const RENAMED_LEAVES: u64 = 1024;

/// The page table can hold no more: all its tables or spans are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableFull;

/// Part of an extent, to be mapped at `page`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeafPlacement {
    /// First page number.
    pub(crate) page: u64,
    /// Pages to map.
    pub(crate) nr_pages: u64,
    /// What they are part of.
    pub(crate) extent: Extent,
    /// How many frames into the extent the first page's frame lies.
    pub(crate) skip: u64,
    /// What the leaves say besides.
    pub(crate) flags: LeafFlags,
    /// The size of every leaf; none for the largest that fits at each place.
    pub(crate) only_level: Option<Level>,
}

impl LeafPlacement {
    fn end(&self) -> u64 {
        self.page + self.nr_pages
    }

    fn first_pfn(&self) -> u64 {
        self.extent.run.start() + self.skip
    }

    fn page_less_pfn(&self) -> u64 {
        self.page.wrapping_sub(self.first_pfn())
    }

    /// Whether the extent has frames before those placed, which may be mapped there.
    fn has_before(&self) -> bool {
        self.skip != 0
    }

    /// Whether the extent has frames after those placed.
    fn has_after(&self) -> bool {
        self.skip + self.nr_pages < self.extent.run.nr_pages()
    }

    /// The leaf size for the page at `at`; `None` if no leaf of the demanded size can be.
    fn level_at(&self, at: u64) -> Option<Level> {
        let pfn = self.first_pfn() + (at - self.page);
        let left = self.end() - at;
        let fits =
            |level: &Level| (at | pfn).is_multiple_of(level.nr_pages()) && left >= level.nr_pages();
        match self.only_level {
            Some(level) => Some(level).filter(fits),
            None => Level::ALL.into_iter().rev().find(fits),
        }
    }
}

/// Where an entry lies: its word, and the table page around it unless it is in the top array.
#[derive(Clone, Copy, Debug)]
struct EntryPlace<'t> {
    word: &'t AtomicU64,
    node: Option<NodeId>,
}

/// The entry at a page, at the lowest level that there is a table for.
#[derive(Clone, Copy, Debug)]
struct EntryAt<'t> {
    slot: EntryPlace<'t>,
    level: Level,
    entry: Entry,
    /// First page that the entry stands for.
    base: u64,
}

impl EntryAt<'_> {
    const fn end(&self) -> u64 {
        self.base + self.level.nr_pages()
    }
}

/// A leaf as the writer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeafAt {
    /// First page that it maps.
    pub(crate) page: u64,
    pub(crate) level: Level,
    pub(crate) leaf: Leaf,
}

/// The right to change the page table.
#[derive(Debug)]
pub(crate) struct Cursor<'t> {
    table: &'t PageTable,
    writer: &'t mut TableWriter,
}

impl<'t> Cursor<'t> {
    pub(super) fn new(table: &'t PageTable, writer: &'t mut TableWriter) -> Self {
        Self { table, writer }
    }

    /// The leaf that maps `page`.
    pub(crate) fn leaf_at(&self, page: u64) -> Option<LeafAt> {
        let found = self.entry_at(page)?;
        match found.entry {
            Entry::Leaf(leaf) => Some(LeafAt { page: found.base, level: found.level, leaf }),
            Entry::Absent | Entry::Table(_) => None,
        }
    }

    /// Has the processor fetch what a change of the 2 MiB around `page` will need, while the caller
    /// looks at other things. With many spans each of these is a cache miss, and the change itself
    /// would take them one after the other.
    pub(crate) fn fetch_ahead(&self, page: u64) {
        let Some(found) = self.table.walk_huge(page) else { return };
        let state = self.writer.spans.get(found.leaf.span());
        let state = state.map(|state| (state.nr_pages, state.links.next));
        core::hint::black_box((self.table.life(found.leaf), self.table.reach(found.leaf), state));
    }

    /// The extent that a leaf is of.
    pub(crate) fn extent_of(&self, leaf: Leaf) -> Option<Extent> {
        Some(self.writer.spans.get(leaf.span())?.extent)
    }

    /// Whether nothing is mapped in the block of `level` around `page`.
    pub(crate) fn is_block_empty(&self, page: u64, level: Level) -> bool {
        self.entry_at(page)
            .is_some_and(|found| found.level >= level && found.entry == Entry::Absent)
    }

    /// The first page from `from` up to `to` that is mapped, else `to`.
    pub(crate) fn absent_until(&self, from: u64, to: u64) -> u64 {
        let mut at = from;
        while at < to
            && let Some(found) = self.entry_at(at)
            && found.entry == Entry::Absent
        {
            at = found.end();
        }
        at.min(to)
    }

    /// Maps part of an extent, over whatever was there. Calls `removed` for each leaf that was,
    /// with its first page and length.
    pub(crate) fn map(
        &mut self,
        place: &LeafPlacement,
        mut removed: impl FnMut(u64, u64),
    ) -> Result<(), TableFull> {
        self.cut_spans(place.page, place.end());
        let span = self.join_or_take(place)?;
        let mut at = place.page;
        while at < place.end() {
            let placed = match place.level_at(at) {
                Some(level) => Pfn::new(place.first_pfn() + (at - place.page))
                    .ok_or(TableFull)
                    .and_then(|pfn| {
                        let leaf = Leaf::new(pfn, span, place.flags);
                        self.place(at, level, leaf, &mut removed)
                    })
                    .map(|()| level.nr_pages()),
                None => Err(TableFull),
            };
            match placed {
                Ok(nr_pages) => at += nr_pages,
                Err(error) => {
                    self.extend(span, place.page, at - place.page);
                    self.release(span, place.end() - at);
                    return Err(error);
                }
            }
        }
        self.extend(span, place.page, place.nr_pages);
        self.join_right(span, place);
        Ok(())
    }

    /// Removes what is mapped from page `from` up to `to`, or only leaves of `only`; a larger leaf
    /// across an edge is split. Calls `removed` for each leaf that went, with its first page and
    /// length.
    pub(crate) fn clear(
        &mut self,
        from: u64,
        to: u64,
        only: Option<SpanId>,
        mut removed: impl FnMut(u64, u64),
    ) {
        self.split_edge(from, only);
        self.split_edge(to, only);
        let mut at = from;
        while at < to {
            let Some(found) = self.entry_at(at) else { return };
            at = found.end();
            let Entry::Leaf(leaf) = found.entry else { continue };
            if only.is_some_and(|only| only != leaf.span()) {
                continue;
            }
            // No table was left to split a leaf across an edge: all of it goes.
            self.cut(leaf.span(), from.min(found.base), to.max(found.end()));
            self.store_absent(&found);
            self.release(leaf.span(), found.level.nr_pages());
            removed(found.base, found.level.nr_pages());
        }
    }

    /// Gives the leaves from page `from` up to `to` other flags; a larger leaf across an edge is
    /// split.
    pub(crate) fn change_flags(
        &mut self,
        from: u64,
        to: u64,
        change: impl Fn(LeafFlags) -> LeafFlags,
    ) -> Result<(), TableFull> {
        self.split_edge(from, None);
        self.split_edge(to, None);
        let mut at = from;
        while at < to {
            let Some(found) = self.entry_at(at) else { return Ok(()) };
            let Entry::Leaf(leaf) = found.entry else {
                at = found.end();
                continue;
            };
            let flags = change(leaf.flags());
            let end = self.range_end(&found, leaf, to);
            if flags != leaf.flags() {
                self.change_range(&found, leaf, end, flags)?;
            }
            at = end;
        }
        Ok(())
    }

    /// The ranges of pages that map a frame of `run`: span, first page, page after the last. Not
    /// every page of them need be mapped.
    pub(crate) fn ranges_of(&self, run: PfnRange) -> Vec<(SpanId, u64, u64)> {
        let spans = self.writer.reverse.overlapping(&self.writer.spans, run);
        spans.into_iter().filter_map(|span| self.range_of(span, run)).collect()
    }

    /// As [`ranges_of`](Self::ranges_of), of the extents of which `is_current` says no.
    pub(crate) fn ranges_unless(
        &self,
        is_current: impl Fn(&Extent) -> bool,
    ) -> Vec<(SpanId, u64, u64)> {
        let in_use = self.writer.spans.iter();
        let stale = in_use.filter(|(_, state)| !is_current(&state.extent));
        stale.filter_map(|(span, state)| self.range_of(span, state.extent.run)).collect()
    }

    /// The pages at which the span maps frames of `run`.
    fn range_of(&self, span: SpanId, run: PfnRange) -> Option<(SpanId, u64, u64)> {
        let (low, high) = self.table.pages();
        let state = self.writer.spans.get(span)?;
        let both = state.extent.run.intersection(run)?;
        // Frames of the extent that were never mapped may lie off the table; numbers have 36
        // bits, so the signed sums cannot overflow.
        let page_of = |pfn: u64| pfn.wrapping_add(state.page_less_pfn).cast_signed();
        let first = page_of(both.start()).max(low.cast_signed());
        let end = page_of(both.end()).min(high.cast_signed());
        (first < end).then(|| (span, first.cast_unsigned(), end.cast_unsigned()))
    }

    /// Where the leaves that carry on from `found` evenly under the same word's flags and span end.
    fn range_end(&self, found: &EntryAt<'_>, leaf: Leaf, to: u64) -> u64 {
        let mut end = found.end();
        while end < to
            && let Some(next) = self.leaf_at(end)
            && next.leaf.span() == leaf.span()
            && next.leaf.flags() == leaf.flags()
        {
            end = next.page + next.level.nr_pages();
        }
        end
    }

    fn change_range(
        &mut self,
        found: &EntryAt<'_>,
        leaf: Leaf,
        end: u64,
        flags: LeafFlags,
    ) -> Result<(), TableFull> {
        let (page, old) = (found.base, leaf.span());
        let Some(extent) = self.extent_of(leaf) else { return Ok(()) };
        let skip = leaf.pfn() - extent.run.start();
        let nr_pages = end - page;
        let place = LeafPlacement { page, nr_pages, extent, skip, flags, only_level: None };
        self.cut(old, page, end);
        let span = self.join_or_take(&place)?;
        self.rename(page, end, span, flags);
        self.release(old, nr_pages);
        self.extend(span, page, nr_pages);
        self.join_right(span, &place);
        Ok(())
    }

    /// Puts one leaf where it belongs, over whatever was there. The reach of what was there is cut
    /// already, and the page count of the leaf's span includes it.
    fn place(
        &mut self,
        page: u64,
        level: Level,
        leaf: Leaf,
        removed: &mut impl FnMut(u64, u64),
    ) -> Result<(), TableFull> {
        // Each turn is one level nearer, or empties the block once: bounded by twice the levels.
        for _ in 0..2 * Level::ALL.len() {
            let found = self.entry_at(page).ok_or(TableFull)?;
            if found.level < level {
                // Smaller leaves are here. The block is empty afterwards, so this happens once.
                self.clear(page, page + level.nr_pages(), None, &mut *removed);
                continue;
            }
            if found.level > level {
                // One level down each time.
                self.open(&found)?;
                continue;
            }
            store(found.slot, Entry::Leaf(leaf));
            match found.entry {
                Entry::Leaf(old) => {
                    self.release(old.span(), level.nr_pages());
                    removed(page, level.nr_pages());
                }
                Entry::Absent | Entry::Table(_) => self.count_present(found.slot.node),
            }
            return Ok(());
        }
        Err(TableFull)
    }

    /// Replaces the entry, absent or a leaf, by a table that says the same.
    fn open(&mut self, found: &EntryAt<'_>) -> Result<(), TableFull> {
        let below = found.level.below().ok_or(TableFull)?;
        let node = self.take_table(found.base, below)?;
        if let Entry::Leaf(leaf) = found.entry {
            for index in 0..FANOUT {
                if let Some(slot) = self.slot_in(node, index as usize) {
                    store(slot, Entry::Leaf(leaf.advanced(index * below.nr_pages())));
                }
            }
        }
        if let Some(present) = self.writer.nodes.present(node) {
            *present = if found.entry == Entry::Absent { 0 } else { FANOUT as u16 };
        }
        store(found.slot, Entry::Table(node));
        if found.entry == Entry::Absent {
            self.count_present(found.slot.node);
        }
        Ok(())
    }

    /// An empty table with entries of `level` for the block around `page`.
    fn take_table(&mut self, page: u64, level: Level) -> Result<NodeId, TableFull> {
        if level == Level::Pmd {
            let gib = self.table.gib(page).ok_or(TableFull)?;
            return Ok(self.writer.nodes.take_middle(gib));
        }
        self.writer.refill(self.table);
        self.writer.nodes.take(&self.table.nodes).ok_or(TableFull)
    }

    /// Splits a leaf that `page` lies in the middle of. Where no table is left it stays whole.
    fn split_edge(&mut self, page: u64, only: Option<SpanId>) {
        while let Some(found) = self.entry_at(page)
            && let Entry::Leaf(leaf) = found.entry
            && found.base < page
            && only.is_none_or(|only| only == leaf.span())
            && self.open(&found).is_ok()
        {}
    }

    fn count_present(&mut self, node: Option<NodeId>) {
        if let Some(present) = node.and_then(|node| self.writer.nodes.present(node)) {
            *present += 1;
        }
    }

    /// Makes the entry absent, and unlinks the tables that this empties.
    fn store_absent(&mut self, found: &EntryAt<'_>) {
        store(found.slot, Entry::Absent);
        let mut emptied = found.slot.node;
        let mut level = found.level;
        while let Some(node) = emptied {
            let Some(present) = self.writer.nodes.present(node) else { return };
            *present -= 1;
            if *present != 0 {
                return;
            }
            let Some(above) = level.above() else { return };
            let Some(parent) = self.slot_at(found.base, above) else { return };
            store(parent, Entry::Absent);
            self.writer.nodes.retire(node);
            (emptied, level) = (parent.node, above);
        }
    }

    /// Entry number `index` of a table.
    fn slot_in(&self, node: NodeId, index: usize) -> Option<EntryPlace<'t>> {
        Some(EntryPlace { word: self.table.entry(node, index)?, node: Some(node) })
    }

    /// What stands at `page`; none outside the table.
    #[inline]
    fn entry_at(&self, page: u64) -> Option<EntryAt<'t>> {
        let mut slot = EntryPlace { word: self.table.top_entry(page)?, node: None };
        let mut level = Level::Pud;
        loop {
            // Relaxed: only the cursor stores entries.
            let entry = Entry::read(slot.word.load(Ordering::Relaxed));
            let (Entry::Table(node), Some(below)) = (entry, level.below()) else {
                let base = page & !(level.nr_pages() - 1);
                return Some(EntryAt { slot, level, entry, base });
            };
            slot = self.slot_in(node, index_in_table(page, below))?;
            level = below;
        }
    }

    /// The slot of `level` for `page`, if there is a table for it.
    fn slot_at(&self, page: u64, level: Level) -> Option<EntryPlace<'t>> {
        let top = EntryPlace { word: self.table.top_entry(page)?, node: None };
        if level == Level::Pud {
            return Some(top);
        }
        // Relaxed: only the cursor stores entries.
        let Entry::Table(node) = Entry::read(top.word.load(Ordering::Relaxed)) else { return None };
        self.slot_in(node, index_in_table(page, Level::Pmd)).filter(|_| level == Level::Pmd)
    }

    /// Takes `from..to` out of the reach of every span that has a leaf there.
    fn cut_spans(&mut self, from: u64, to: u64) {
        let mut at = from;
        while at < to {
            let Some(found) = self.entry_at(at) else { return };
            if let Entry::Leaf(leaf) = found.entry {
                self.cut(leaf.span(), from, to);
            }
            at = found.end();
        }
    }

    /// Takes `from..to` out of the span's reach, and gives what that leaves uncovered a span of its
    /// own where it is short enough.
    fn cut(&mut self, span: SpanId, from: u64, to: u64) {
        let lost = self.writer.spans.cut(&self.table.spans, span, from, to);
        let Some((first, end)) = lost else { return };
        let Some(start) = self.leaf_at(first) else { return };
        let is_whole = start.page == first && start.leaf.span() == span;
        if !is_whole || (end - first) >> start.level.shift() > RENAMED_LEAVES {
            return;
        }
        let Some(state) = self.writer.spans.get(span).copied() else { return };
        if let Ok(other) = self.take_span(&state.extent, state.flags, state.page_less_pfn) {
            self.add_pages(other, end - first);
            let renamed = self.rename(first, end, other, state.flags);
            // Of what was not renamed the pages go back.
            self.release(other, end - first - renamed);
            self.release(span, renamed);
            self.extend(other, first, renamed);
        }
    }

    /// Gives the leaves from `from` to `to` another span and other flags; stops at what is no leaf
    /// or crosses `to`. Returns the number of pages done.
    fn rename(&mut self, from: u64, to: u64, span: SpanId, flags: LeafFlags) -> u64 {
        let mut at = from;
        while at < to
            && let Some(found) = self.entry_at(at)
            && let Entry::Leaf(leaf) = found.entry
            && found.base == at
            && found.end() <= to
        {
            store(found.slot, Entry::Leaf(leaf.in_span(span).with_flags(flags)));
            at = found.end();
        }
        at - from
    }

    /// The span for pages about to be mapped: the one that ends or starts there if it carries on
    /// evenly, else a new one. Its page count includes them already.
    fn join_or_take(&mut self, place: &LeafPlacement) -> Result<SpanId, TableFull> {
        let left = place.page.checked_sub(1).filter(|_| place.has_before());
        let left = left.and_then(|page| self.leaf_at(page));
        let right = Some(place.end()).filter(|_| place.has_after());
        let right = right.and_then(|page| self.leaf_at(page));
        let joined = [(left, true), (right, false)].into_iter().find_map(|(neighbour, is_left)| {
            let span = neighbour?.leaf.span();
            let state = self.writer.spans.get(span)?;
            let touches = if is_left {
                state.reach.from(place.page - 1) == 1
            } else {
                state.reach.from(place.end()) != 0 && state.reach.from(place.end() - 1) == 0
            };
            let same = state.extent == place.extent
                && state.flags == place.flags
                && state.page_less_pfn == place.page_less_pfn();
            (touches && same).then_some(span)
        });
        let span = match joined {
            Some(span) => span,
            None => self.take_span(&place.extent, place.flags, place.page_less_pfn())?,
        };
        self.add_pages(span, place.nr_pages);
        Ok(span)
    }

    /// Joins the span that starts where the place ends to `span`, which ends there, if it carries
    /// on.
    fn join_right(&mut self, span: SpanId, place: &LeafPlacement) {
        let end = place.end();
        let Some(next) = self.leaf_at(end).filter(|_| place.has_after()) else { return };
        let other = next.leaf.span();
        let (Some(left), Some(right)) =
            (self.writer.spans.get(span).copied(), self.writer.spans.get(other).copied())
        else {
            return;
        };
        let is_same = other != span
            && left.extent == right.extent
            && left.flags == right.flags
            && left.page_less_pfn == right.page_less_pfn
            && left.reach.end() == end
            && right.reach.from(end) != 0;
        let nr_pages = right.reach.from(end);
        if !is_same || nr_pages >> next.level.shift() > RENAMED_LEAVES {
            return;
        }
        self.writer.spans.cut(&self.table.spans, other, end, end + nr_pages);
        self.add_pages(span, nr_pages);
        let renamed = self.rename(end, end + nr_pages, span, left.flags);
        self.release(span, nr_pages - renamed);
        self.release(other, renamed);
        self.extend(span, end, renamed);
    }

    fn take_span(
        &mut self,
        extent: &Extent,
        flags: LeafFlags,
        page_less_pfn: u64,
    ) -> Result<SpanId, TableFull> {
        self.writer.refill(self.table);
        let TableWriter { spans, reverse, .. } = &mut *self.writer;
        let span = spans.take(&self.table.spans, extent, flags, page_less_pfn).ok_or(TableFull)?;
        reverse.insert(spans, span);
        Ok(span)
    }

    fn add_pages(&mut self, span: SpanId, nr_pages: u64) {
        if let Some(state) = self.writer.spans.get_mut(span) {
            state.nr_pages += nr_pages;
        }
    }

    /// Takes pages from the span's count; the span goes with its last page.
    fn release(&mut self, span: SpanId, nr_pages: u64) {
        let Some(state) = self.writer.spans.get_mut(span) else { return };
        state.nr_pages -= nr_pages;
        if state.nr_pages == 0 && nr_pages != 0 {
            let TableWriter { spans, reverse, .. } = &mut *self.writer;
            reverse.remove(spans, span);
            spans.retire(&self.table.spans, span);
        }
    }

    /// Lets the span's reach cover `nr_pages` from `page` on as well, which it touches, or which
    /// are its first.
    fn extend(&mut self, span: SpanId, page: u64, nr_pages: u64) {
        let Some(state) = self.writer.spans.get(span) else { return };
        let reach = state.reach;
        if nr_pages == 0 {
            return;
        }
        let (first, end) = if reach.nr_pages() == 0 {
            (page, page + nr_pages)
        } else if reach.end() == page {
            (reach.first(), page + nr_pages)
        } else if page + nr_pages == reach.first() {
            (page, reach.end())
        } else {
            return;
        };
        self.writer.spans.cover(&self.table.spans, span, first, end - first);
    }
}

fn store(slot: EntryPlace<'_>, entry: Entry) {
    // Release: pairs with Acquire in `walk`; data: the table page or span that the word leads to.
    slot.word.store(entry.bits(), Ordering::Release);
}
