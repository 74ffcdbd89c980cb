//! Taking a part out of a file's frames, and putting it back.
//!
//! # States
//!
//! ```text
//!   whole ── begin_cut ──▶ cut ── the owner frees what went ──▶ shorter, for good
//!     ▲                     │
//!     └─ undo_cut ◀─ revive_some, until all of it is
//! ```
//!
//! # All or nothing
//!
//! Whatever can be refused is asked before the first word changes: how many extents there will be,
//! room in the index, stamps for the cut and for its undoing, folios that keep their shape. After
//! that neither way can fail. An undone cut leaves the folio sizes and the extents that were there
//! before, under fresh stamps (ADR 0059); only a failure of memory meanwhile leaves more of them.

use std::ops::Range;

use pgmap_mm::extent::Extent;
use pgmap_mm::index::MAX_EXTENTS;
use pgmap_mm::level::Level;
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::split::NoSmallCounts;
use pgmap_mm::stamp::Stamp;

use super::PoolFrames;
use crate::name::FileName;
use crate::refusal::Refusal;

/// Extents that are kept for failures of memory, each of which adds two: no cut uses them.
const KEPT_FOR_FAILURES: usize = 64;
/// Most extents that a file has after a create or a cut.
pub(crate) const MAX_FILE_EXTENTS: usize = MAX_EXTENTS - KEPT_FOR_FAILURES;

/// A folio that was split: around which frame, what it was, and what lies there now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SplitFolio {
    pub at: Pfn,
    pub from: Level,
    pub to: Level,
}

/// A cut that was begun.
#[derive(Clone, Debug)]
pub(crate) struct CutFrames {
    /// The file's extents now. What went is a hole, or the end of the file.
    pub extents: Vec<Extent>,
    /// The frames that go.
    pub off: Vec<PfnRange>,
    /// The folios that were split, in order.
    pub splits: Vec<SplitFolio>,
    /// What its undoing takes: no step of that may fail.
    undo: Stamp,
}

impl PoolFrames {
    /// Takes `pages` out of a file of `extents`: splits the folios at the edges, changes the life
    /// word of each extent that loses a part. What goes stays Live until the caller retires it.
    ///
    /// # Errors
    /// [`Refusal::TooMuch`] for too many extents, [`Refusal::IndexFull`], [`Refusal::NoMemory`] for
    /// descriptors, [`Refusal::Denied`] for a folio that cannot be split, and what taking a stamp
    /// can fail with. Nothing is changed then.
    pub(crate) fn begin_cut(
        &mut self,
        name: &FileName,
        extents: &[Extent],
        pages: &Range<u64>,
        is_tail: bool,
    ) -> Result<CutFrames, Refusal> {
        self.check_cut(name, extents, pages, is_tail)?;
        let (fresh, undo) = (self.take_stamp()?, self.take_stamp()?);
        let splits = self.split_edges(extents, pages)?;
        let mut cut = CutFrames { extents: Vec::new(), off: Vec::new(), splits, undo };
        for (extent, inside) in parts_of(extents, pages) {
            if inside.is_empty() {
                cut.extents.push(extent);
            } else {
                self.cut_extent(&extent, inside, fresh, is_tail, &mut cut);
            }
        }
        cut.extents = joined_holes(cut.extents);
        Ok(cut)
    }

    fn check_cut(
        &self,
        name: &FileName,
        extents: &[Extent],
        pages: &Range<u64>,
        is_tail: bool,
    ) -> Result<(), Refusal> {
        let nr_extents = nr_extents_after(extents, pages, is_tail);
        if nr_extents > MAX_FILE_EXTENTS && nr_extents > extents.len() {
            return Err(Refusal::TooMuch {
                what: format!("extents of \"{name}\", which the cut would leave in pieces"),
                value: nr_extents as u64,
                limit: MAX_FILE_EXTENTS as u64,
            });
        }
        let nr_more = self.slots_for(nr_extents).saturating_sub(self.slots_for(extents.len()));
        self.check_room(nr_more)?;
        for pfn in edges(extents, pages) {
            let to = Level::ALL.into_iter().rev().find(|&level| pfn.is_aligned(level));
            if let (Some((level, _)), Some(to)) = (self.vmemmap().folio_of(pfn), to)
                && to < level
            {
                // Takes memory for the descriptors, too.
                self.folios.plan_split(pfn, to)?;
            }
        }
        Ok(())
    }

    /// Splits folios until one starts at each edge of `pages`.
    fn split_edges(
        &mut self,
        extents: &[Extent],
        pages: &Range<u64>,
    ) -> Result<Vec<SplitFolio>, Refusal> {
        let mut splits = Vec::new();
        for pfn in edges(extents, pages) {
            while let Some((from, _)) = self.vmemmap().folio_of(pfn)
                && !pfn.is_aligned(from)
                && let Some(to) = from.below()
            {
                let split = self.folios.split(pfn, to);
                split.map_err(|error| Refusal::Internal { why: error.to_string() })?;
                splits.push(SplitFolio { at: pfn, from, to });
            }
        }
        Ok(splits)
    }

    fn cut_extent(
        &mut self,
        extent: &Extent,
        Range { start: from, end: to }: Range<u64>,
        fresh: Stamp,
        is_tail: bool,
        cut: &mut CutFrames,
    ) {
        let run = extent.run;
        let hole = if is_tail { None } else { Extent::hole(to - from) };
        if extent.is_hole() {
            cut.extents.extend(Extent::hole(from).into_iter().chain(hole));
            cut.extents.extend(Extent::hole(run.nr_pages() - to));
            return;
        }
        if let Some(before) = run.sub_run(0, from) {
            let head = self.vmemmap().load(extent.head_level, extent.first());
            if head == Some(extent.life) {
                let kept = Extent { run: before, ..*extent };
                cut.extents.push(self.folios.change_life(&kept, fresh));
            } else {
                // The head folio itself was split: the life word is another's now.
                cut.extents.extend(self.folios.piece(before));
            }
        }
        cut.off.extend(run.sub_run(from, to - from));
        cut.extents.extend(hole);
        if let Some(after) = run.sub_run(to, run.nr_pages() - to) {
            cut.extents.extend(self.folios.piece(after));
        }
    }

    /// Gives a file back what a cut was to take, all of which was [revived](Self::revive_some).
    /// `before` are the extents it had, `now` those it has. Returns its extents from now on: as
    /// before, under fresh stamps.
    pub(crate) fn undo_cut(
        &mut self,
        cut: &CutFrames,
        (before, now): (&[Extent], &[Extent]),
        pages: &Range<u64>,
    ) -> Vec<Extent> {
        let mut extents = pages_of(now, 0..pages.start);
        for extent in pages_of(before, pages.clone()) {
            if extent.is_hole() {
                extents.push(extent);
            } else {
                self.push_with_failures(extent.run, &mut extents);
            }
        }
        extents.extend(pages_of(now, pages.end..u64::MAX));
        let mut joined = self.join_within(before, joined_holes(extents), cut.undo);
        for split in cut.splits.iter().rev() {
            self.merge_again(split, &mut joined, cut.undo);
        }
        joined
    }

    /// The extents of `run` as its descriptors have them: failed frames are extents of their own.
    fn push_with_failures(&self, run: PfnRange, extents: &mut Vec<Extent>) {
        let mut rest = Some(run);
        for failed in self.folios.poisoned(run) {
            let Some(whole) = rest else { return };
            let (before, after) = whole.without(failed);
            extents.extend(before.and_then(|before| self.folios.piece(before)));
            extents.extend(self.folios.piece(failed));
            rest = after;
        }
        extents.extend(rest.and_then(|rest| self.folios.piece(rest)));
    }

    /// Joins what was one extent before. The life word of what is absorbed changes, so nobody who
    /// knew the piece is believed again (ADR 0011).
    fn join_within(&mut self, before: &[Extent], extents: Vec<Extent>, undo: Stamp) -> Vec<Extent> {
        let mut joined: Vec<Extent> = Vec::with_capacity(extents.len());
        for extent in extents {
            if let Some(last) = joined.last_mut()
                && !last.is_hole()
                && !extent.is_hole()
                && was_one(before, last.run, extent.run)
                && let Ok(both) = self.folios.join(last, &extent, undo)
            {
                *last = both;
            } else {
                joined.push(extent);
            }
        }
        joined
    }

    /// Makes a folio whole again that the cut split. What failed meanwhile keeps it in parts.
    fn merge_again(&mut self, split: &SplitFolio, extents: &mut [Extent], undo: Stamp) {
        let folio = PfnRange::folio(split.at, split.from);
        let Some(extent) = extents.iter_mut().find(|extent| extent.run.covers(folio)) else {
            return;
        };
        // Counts on its parts that were taken meanwhile are found at any level.
        let proof = NoSmallCounts::of_a_folio_that_was_whole(folio);
        match self.folios.merge(extent, split.at, split.from, undo, &proof) {
            Ok(reshaped) => *extent = reshaped.extent_after(extent),
            Err(error) => tracing::debug!(%folio, %error, "a folio stays split"),
        }
    }
}

/// Whether two runs, one after the other, were of one extent.
fn was_one(before: &[Extent], first: PfnRange, second: PfnRange) -> bool {
    first.end() == second.start()
        && before.iter().any(|extent| {
            !extent.is_hole() && extent.run.covers(first) && extent.run.covers(second)
        })
}

/// The frames at which a folio must start for `pages` of a file to be cut out of it.
fn edges(extents: &[Extent], pages: &Range<u64>) -> Vec<Pfn> {
    let inner = |extent: &Extent, page: u64| {
        (!extent.is_hole() && page > 0 && page < extent.run.nr_pages())
            .then(|| Pfn::new(extent.run.start() + page))
            .flatten()
    };
    parts_of(extents, pages)
        .filter(|(_, inside)| !inside.is_empty())
        .flat_map(|(extent, inside)| {
            [inside.start, inside.end].map(|page| inner(&extent, page)).into_iter().flatten()
        })
        .collect()
}

/// Each extent, and which of its own pages are among `pages` of the file.
fn parts_of(extents: &[Extent], pages: &Range<u64>) -> impl Iterator<Item = (Extent, Range<u64>)> {
    let mut at = 0;
    let pages = pages.clone();
    extents.iter().map(move |extent| {
        let nr_pages = extent.run.nr_pages();
        let inside = |page: u64| page.clamp(at, at + nr_pages) - at;
        let inside = inside(pages.start)..inside(pages.end);
        at += nr_pages;
        (*extent, inside)
    })
}

/// How many extents a file has after a cut.
fn nr_extents_after(extents: &[Extent], pages: &Range<u64>, is_tail: bool) -> usize {
    // Whether each piece is a hole, in order: a hole beside a hole is one.
    let mut pieces: Vec<bool> = Vec::with_capacity(extents.len() + 2);
    let mut push = |is_hole: bool, nr_pages: u64| {
        if nr_pages > 0 && !(is_hole && pieces.last() == Some(&true)) {
            pieces.push(is_hole);
        }
    };
    for (extent, inside) in parts_of(extents, pages) {
        push(extent.is_hole(), inside.start);
        if !is_tail {
            push(true, inside.end - inside.start);
        }
        let nr_after = extent.run.nr_pages() - inside.end.max(inside.start);
        push(extent.is_hole(), nr_after);
    }
    pieces.len()
}

/// The part of a file's extents that is `pages`, which begin and end where extents do, or are of an
/// extent that is to be looked up in the descriptors.
fn pages_of(extents: &[Extent], pages: Range<u64>) -> Vec<Extent> {
    let parts = parts_of(extents, &pages).filter(|(_, inside)| !inside.is_empty());
    parts
        .filter_map(|(extent, inside)| {
            let nr_pages = inside.end - inside.start;
            let run = extent.run.sub_run(inside.start, nr_pages)?;
            match extent.is_hole() {
                true => Extent::hole(nr_pages),
                false if nr_pages == extent.run.nr_pages() => Some(extent),
                false => Extent::new(run, Level::Pte, extent.life),
            }
        })
        .collect()
}

/// Neighbouring holes as one.
fn joined_holes(extents: Vec<Extent>) -> Vec<Extent> {
    let mut joined: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        if let Some(last) = joined.last_mut()
            && last.is_hole()
            && extent.is_hole()
            && let Some(both) = Extent::hole(last.run.nr_pages() + extent.run.nr_pages())
        {
            *last = both;
            continue;
        }
        joined.push(extent);
    }
    joined
}

#[cfg(test)]
mod tests {
    use pgmap_mm::descriptor::{Descriptor, FolioFlags, FolioState};
    use proptest::prelude::*;

    use super::*;

    /// Extents of a file made of (pages, is a hole).
    fn file(parts: &[(u64, bool)]) -> Vec<Extent> {
        let life = Descriptor::new(FolioState::Live, FolioFlags::NONE, Stamp::new(7).unwrap());
        let mut at = 0;
        let extents = parts.iter().map(|&(nr_pages, is_hole)| {
            at += 10_000;
            match is_hole {
                true => Extent::hole(nr_pages).unwrap(),
                false => {
                    Extent::new(PfnRange::new(at, nr_pages).unwrap(), Level::Pte, life).unwrap()
                }
            }
        });
        joined_holes(extents.collect())
    }

    /// As many extents as a file may have, and more only where it had them before.
    #[test]
    fn a_cut_leaves_at_most_so_many_extents_or_no_more_than_there_were() {
        let options = crate::PoolOptions::anonymous(64 << 20).max_files(4096);
        let pool = std::sync::Arc::new(crate::Pool::create(&options).unwrap());
        let frames = PoolFrames::open(&pool).unwrap();
        let life = Descriptor::new(FolioState::Live, FolioFlags::NONE, Stamp::new(7).unwrap());
        // Every other page is there, apart from its neighbours.
        let extents = |nr: usize| -> Vec<Extent> {
            let pages = (0..nr as u64).map(|at| match at % 2 {
                0 => Extent::new(PfnRange::new(at, 1).unwrap(), Level::Pte, life).unwrap(),
                _ => Extent::hole(3).unwrap(),
            });
            pages.collect()
        };
        let name = FileName::new("a").unwrap();
        let cut = |nr: usize, pages: Range<u64>| {
            frames.check_cut(&name, &extents(nr), &pages, false).map_err(|error| error.kind())
        };
        let first = 0..1;
        assert_eq!(nr_extents_after(&extents(5), &first, false), 4);
        assert_eq!(cut(MAX_FILE_EXTENTS + 1, first.clone()), Ok(()));
        assert_eq!(cut(MAX_FILE_EXTENTS + 3, first.clone()), Ok(()), "there were more");
        // A hole in a page that is several: three pieces of one.
        let wide = |nr: usize| {
            let mut extents = extents(nr);
            let run = PfnRange::new(12_000, 8).unwrap();
            extents.push(Extent::new(run, Level::Pte, life).unwrap());
            let start = extents[..nr].iter().map(|extent| extent.run.nr_pages()).sum::<u64>() + 2;
            frames.check_cut(&name, &extents, &(start..start + 2), false)
        };
        assert!(wide(MAX_FILE_EXTENTS - 3).is_ok());
        let refused = wide(MAX_FILE_EXTENTS - 2).unwrap_err();
        assert!(matches!(refused, Refusal::TooMuch { .. }), "{refused}");
    }

    proptest! {
        /// The number that is asked for before a cut is the number that is there after it.
        #[test]
        fn extents_after_a_cut_are_counted_before_it(
            parts in prop::collection::vec((1u64..20, any::<bool>()), 1..8),
            from in 0u64..100,
            nr in 1u64..100,
            is_tail: bool,
        ) {
            let extents = file(&parts);
            let all: u64 = extents.iter().map(|extent| extent.run.nr_pages()).sum();
            let from = from % all;
            let to = if is_tail { all } else { (from + nr).min(all) };
            let mut left = pages_of(&extents, 0..from);
            if !is_tail {
                left.extend(Extent::hole(to - from));
            }
            left.extend(pages_of(&extents, to..u64::MAX));
            let left = joined_holes(left);
            prop_assert_eq!(nr_extents_after(&extents, &(from..to), is_tail), left.len());
        }
    }
}
