//! The reverse map: from frames to the spans that map them.
//!
//! Spans are kept in doubly linked lists through [`Links`]: one list per 2 MiB of frames for
//! extents that lie inside it, one per 1 GiB for those that lie inside that, one for all larger
//! ones. So noting and forgetting a span is a few stores, however many there are, and the spans of
//! a run are found in the lists that the run touches.

use super::entry::SpanId;
use super::span::{SpanPool, SpanState};
use crate::level::{FANOUT, Level};
use crate::pfn::PfnRange;

/// The lists of one GiB of frames.
#[derive(Debug)]
struct GibLists {
    whole: Option<SpanId>,
    parts: Box<[Option<SpanId>]>,
}

impl GibLists {
    fn new() -> Self {
        Self { whole: None, parts: vec![None; FANOUT as usize].into_boxed_slice() }
    }
}

/// Which spans map which frames. Belongs to the holder of the address space's lock.
#[derive(Debug, Default)]
pub(super) struct ReverseMap {
    /// By GiB of frames; grown as far as frames were ever mapped.
    gibs: Vec<Option<Box<GibLists>>>,
    larger: Option<SpanId>,
}

/// Folio number of the one folio of `level` that contains all of `run`.
fn only_folio(run: PfnRange, level: Level) -> Option<u64> {
    let first = run.start() >> level.shift();
    (first == (run.end() - 1) >> level.shift()).then_some(first)
}

impl ReverseMap {
    /// The list that a span of an extent of `run` is in.
    fn list_of(&mut self, run: PfnRange) -> &mut Option<SpanId> {
        let Some(gib) = only_folio(run, Level::Pud) else { return &mut self.larger };
        let gib = gib as usize;
        if gib >= self.gibs.len() {
            self.gibs.resize_with(gib + 1, || None);
        }
        let lists = self.gibs[gib].get_or_insert_with(|| Box::new(GibLists::new()));
        match only_folio(run, Level::Pmd) {
            Some(part) => &mut lists.parts[(part % FANOUT) as usize],
            None => &mut lists.whole,
        }
    }

    /// Notes a span that was just taken.
    pub(super) fn insert(&mut self, pool: &mut SpanPool, span: SpanId) {
        let Some(run) = pool.get(span).map(|state| state.extent.run) else { return };
        let head = self.list_of(run);
        let next = head.replace(span);
        if let Some(state) = pool.get_mut(span) {
            state.links.next = next;
            state.links.previous = None;
        }
        if let Some(state) = next.and_then(|next| pool.get_mut(next)) {
            state.links.previous = Some(span);
        }
    }

    /// Forgets a span that is about to be retired.
    pub(super) fn remove(&mut self, pool: &mut SpanPool, span: SpanId) {
        let Some(&SpanState { extent, links, .. }) = pool.get(span) else { return };
        if let Some(state) = links.next.and_then(|next| pool.get_mut(next)) {
            state.links.previous = links.previous;
        }
        match links.previous.and_then(|previous| pool.get_mut(previous)) {
            Some(state) => state.links.next = links.next,
            None => *self.list_of(extent.run) = links.next,
        }
    }

    /// The spans whose extent overlaps `run`.
    pub(super) fn overlapping(&self, pool: &SpanPool, run: PfnRange) -> Vec<SpanId> {
        let mut found = Vec::new();
        let mut look = |head: Option<SpanId>| {
            let mut at = head;
            while let Some(span) = at
                && let Some(state) = pool.get(span)
            {
                if state.extent.run.overlaps(run) {
                    found.push(span);
                }
                at = state.links.next;
            }
        };
        look(self.larger);
        let last_gib = ((run.end() - 1) >> Level::Pud.shift()) as usize;
        for gib in (run.start() >> Level::Pud.shift()) as usize..=last_gib {
            let Some(Some(lists)) = self.gibs.get(gib) else { continue };
            look(lists.whole);
            let gib_first = (gib as u64) << Level::Pud.shift();
            let first = run.start().saturating_sub(gib_first) >> Level::Pmd.shift();
            let last = ((run.end() - 1 - gib_first) >> Level::Pmd.shift()).min(FANOUT - 1);
            for part in first..=last {
                look(lists.parts[part as usize]);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::LeafFlags;
    use super::super::span::Spans;
    use super::*;
    use crate::descriptor::Descriptor;
    use crate::extent::Extent;
    use crate::vmemmap::VmemmapLayout;
    use proptest::prelude::*;

    fn run_strategy() -> impl Strategy<Value = PfnRange> {
        let first = 0..4 * Level::Pud.nr_pages();
        let length = prop_oneof![1..5_u64, 500..600_u64, 200_000..600_000_u64];
        (first, length).prop_map(|(first, length)| PfnRange::new(first, length).unwrap())
    }

    proptest! {
        #[test]
        fn the_spans_of_a_run_are_those_a_full_search_finds(
            runs in prop::collection::vec(run_strategy(), 1..40),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            asked in run_strategy(),
        ) {
            let spans = Spans::new(VmemmapLayout::for_pages(1 << 36).unwrap());
            let mut pool = SpanPool::default();
            let mut map = ReverseMap::default();
            let mut live = Vec::new();
            for run in runs {
                let extent = Extent::new(run, Level::Pte, Descriptor::FREE).unwrap();
                let span = pool.take(&spans, &extent, LeafFlags::NONE, 0).unwrap();
                map.insert(&mut pool, span);
                live.push((span, run));
            }
            for index in removed {
                if live.is_empty() { break }
                let (span, _) = live.swap_remove(index.index(live.len()));
                map.remove(&mut pool, span);
                pool.retire(&spans, span);
            }
            let mut found = map.overlapping(&pool, asked);
            found.sort_unstable();
            let mut expected: Vec<_> =
                live.iter().filter(|(_, run)| run.overlaps(asked)).map(|&(span, _)| span).collect();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
