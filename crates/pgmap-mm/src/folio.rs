//! Folios as the owner sees them: free frames and descriptors kept in step.
//!
//! # States
//!
//! Those of [`descriptor`](crate::descriptor); this file makes the transitions that need no
//! waiting: reserve, publish, take out, put back, free.
//!
//! # Who may touch what
//!
//! The owner alone (I2). A frame is handed out only when its descriptor is Free and nothing holds
//! it (I3): a frame reaches the allocator only through [`Folios::free`].
//!
//! # Orderings
//!
//! A table of 512 words is described one level up by Split. To use the whole as one folio, its own
//! word changes first and the table is discarded after, so a reader going down sees the old table,
//! zeros, or the new word, and none of them equals a Live word that it was given.

use std::collections::{BTreeSet, VecDeque};

use crate::descriptor::{Descriptor, FolioFlags, FolioState};
use crate::extent::Extent;
use crate::frames::{Frames, FramesShort};
use crate::index::MAX_EXTENTS;
use crate::level::{FANOUT, Level};
use crate::pfn::{Pfn, PfnRange};
use crate::stamp::Stamp;
use crate::vmemmap::Vmemmap;
use crate::words::WriteWords;

/// Tables with nothing but free folios that are kept for the next small allocation. More are given
/// back, oldest first.
const MAX_EMPTY_TABLES: usize = 64;

/// Which folio sizes an allocation is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sizing {
    /// All of one level; the length is rounded up.
    Fixed(Level),
    /// The largest that fit, rounded up to 4 KiB only.
    BestFit,
}

/// The owner's folios.
#[derive(Debug)]
pub struct Folios<W> {
    vmemmap: Vmemmap<W>,
    frames: Frames,
    empty_tables: VecDeque<(Level, u64)>,
    is_empty_table: BTreeSet<(Level, u64)>,
}

impl<W: WriteWords> Folios<W> {
    /// Folios over all-zero descriptors. No frame is usable yet.
    #[must_use]
    pub fn new(vmemmap: Vmemmap<W>) -> Self {
        Self {
            vmemmap,
            frames: Frames::new(),
            empty_tables: VecDeque::new(),
            is_empty_table: BTreeSet::new(),
        }
    }

    /// The descriptors.
    #[must_use]
    pub const fn vmemmap(&self) -> &Vmemmap<W> {
        &self.vmemmap
    }

    /// The free frames.
    #[must_use]
    pub const fn frames(&self) -> &Frames {
        &self.frames
    }

    /// Takes memory for the descriptors of `run`, see [`Vmemmap::reserve`]: to be asked for before
    /// frames are described by [`reclaim`](Self::reclaim).
    #[must_use]
    pub fn has_descriptors(&self, run: PfnRange, most: Level) -> bool {
        self.vmemmap.reserve(run, most)
    }

    /// Brings frames into use: `nr_pages` from the 1 GiB boundary `first` on. What is left of the
    /// last 1 GiB is marked Offline. Touches no descriptor when nothing is left. False, with
    /// nothing done, when there is no memory for the descriptors of that.
    pub fn bring_online(&mut self, first: Pfn, nr_pages: u64) -> bool {
        let mut at = first.number();
        let end = at + nr_pages;
        let whole = end.next_multiple_of(Level::Pud.nr_pages());
        let rest = PfnRange::new(end, whole - end);
        if rest.is_some_and(|rest| !self.vmemmap.reserve(rest, Level::Pmd)) {
            return false;
        }
        while let Some(run) = PfnRange::new(at, (end - at).min(crate::pfn::MAX_RUN_PAGES)) {
            self.frames.give(run);
            at = run.end();
        }
        if let Some(rest) = rest {
            self.describe(rest, Level::Pmd, Descriptor::OFFLINE);
        }
        true
    }

    /// Brings the frames of a further memory into use, as a zone: `nr_pages` from the 1 GiB
    /// boundary `first` on, before which the frame is in no use. False, with nothing done, as
    /// [`bring_online`](Self::bring_online), and if there is a zone.
    pub fn add_zone(&mut self, first: Pfn, nr_pages: u64) -> bool {
        let is_free = PfnRange::new(first.number(), 1).is_none_or(|run| self.frames.overlaps(run));
        if is_free || !self.frames.add_zone(first.number()) {
            return false;
        }
        let is_online = self.bring_online(first, nr_pages);
        if !is_online {
            self.frames.remove_zone(first.number());
        }
        is_online
    }

    /// Takes a zone out of use of which all frames are free. False, with nothing done, if one is
    /// not.
    pub fn remove_zone(&mut self, runs: &[PfnRange]) -> bool {
        let Some(first) = runs.first() else { return false };
        if !runs.iter().all(|&run| self.frames.is_free(run)) {
            return false;
        }
        runs.iter().for_each(|&run| self.frames.take_any_of(run));
        self.frames.remove_zone(first.start())
    }

    /// Forgets what the descriptors say of the `nr_pages` from the 1 GiB boundary `first` on, up to
    /// the next one, which are in no zone: another memory was there.
    pub fn forget(&mut self, first: Pfn, nr_pages: u64) {
        let whole = nr_pages.next_multiple_of(Level::Pud.nr_pages());
        for at in (0..whole).step_by(Level::Pud.nr_pages() as usize) {
            if let Some(pfn) = Pfn::new(first.number() + at) {
                self.describe_folio(pfn, Level::Pud, Descriptor::FREE);
            }
        }
    }

    /// The smallest folio that can be described.
    #[must_use]
    pub const fn smallest(&self) -> Level {
        self.vmemmap.layout().smallest()
    }

    /// Frames an allocation of `len_bytes` takes; `None` if that overflows, or its folios are too
    /// small to be described.
    #[must_use]
    pub fn pages_for(&self, len_bytes: u64, sizing: Sizing) -> Option<u64> {
        let unit = match sizing {
            Sizing::Fixed(level) => Some(level).filter(|&level| level >= self.smallest())?,
            Sizing::BestFit => self.smallest(),
        };
        let bytes = len_bytes.checked_next_multiple_of(unit.size_bytes())?;
        Some(bytes / Level::Pte.size_bytes())
    }

    /// Hands out `nr_pages` frames of the first zone, as [`pages_for`](Self::pages_for) says, as
    /// Reserved folios under `stamp`.
    ///
    /// # Errors
    /// [`FramesShort`] when there are not so many, or only in too many pieces, or no memory to
    /// describe them. Nothing is taken.
    pub fn reserve(
        &mut self,
        nr_pages: u64,
        sizing: Sizing,
        stamp: Stamp,
    ) -> Result<Vec<Extent>, FramesShort> {
        self.reserve_in(0, nr_pages, sizing, stamp)
    }

    /// As [`reserve`](Self::reserve), of the zone around frame `zone`.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn reserve_in(
        &mut self,
        zone: u64,
        nr_pages: u64,
        sizing: Sizing,
        stamp: Stamp,
    ) -> Result<Vec<Extent>, FramesShort> {
        let runs = match sizing {
            Sizing::Fixed(level) => self.frames.take(zone, nr_pages, level, MAX_EXTENTS)?,
            Sizing::BestFit => self.take_best_fit(zone, nr_pages)?,
        };
        let word = Descriptor::new(FolioState::Reserved, FolioFlags::NONE, stamp);
        let most = match sizing {
            Sizing::Fixed(level) => level,
            Sizing::BestFit => Level::Pud,
        };
        if !runs.iter().all(|&run| self.vmemmap.reserve(run, most)) {
            for run in runs {
                self.frames.give(run);
            }
            let short = self.frames.short_of(zone, nr_pages);
            return Err(FramesShort { lacks_descriptors: true, ..short });
        }
        let mut extents = Vec::with_capacity(runs.len());
        for run in runs {
            self.describe(run, most, word);
            let head = Level::largest_fitting(run.start(), run.nr_pages()).unwrap_or(most);
            extents.extend(Extent::new(run, head.min(most), word));
        }
        Ok(extents)
    }

    /// One run if there is one that starts where the largest folio can; else level by level.
    fn take_best_fit(&mut self, zone: u64, nr_pages: u64) -> Result<Vec<PfnRange>, FramesShort> {
        let smallest = self.smallest();
        let largest = Level::largest_fitting(0, nr_pages).unwrap_or(smallest);
        if let Some(run) = self.frames.take_run(zone, nr_pages, largest) {
            return Ok(vec![run]);
        }
        let short = self.frames.short_of(zone, nr_pages);
        let mut runs: Vec<PfnRange> = Vec::new();
        let mut missing = nr_pages;
        for level in Level::ALL.into_iter().rev().filter(|&level| level >= smallest) {
            while missing >= level.nr_pages() {
                let wanted = missing / level.nr_pages() * level.nr_pages();
                let left = MAX_EXTENTS - runs.len();
                let taken = self.frames.take(zone, wanted, level, left).or_else(|short| {
                    // Fewer folios of this level, then the rest from the levels below.
                    match self.frames.take_run(zone, level.nr_pages(), level) {
                        Some(run) if level != smallest && left > 0 => Ok(vec![run]),
                        Some(run) => {
                            self.frames.give(run);
                            Err(short)
                        }
                        None => Err(short),
                    }
                });
                match taken {
                    Ok(taken) => {
                        missing -= taken.iter().map(|run| run.nr_pages()).sum::<u64>();
                        runs.extend(taken);
                    }
                    Err(_) if level == smallest => {
                        for run in runs {
                            self.frames.give(run);
                        }
                        return Err(short);
                    }
                    Err(_) => break,
                }
            }
        }
        Ok(runs)
    }

    /// Takes exactly `run` out of the free frames and describes it: how a restarted owner puts back
    /// what the catalog says. Refused, with nothing changed, when a frame of it is not free, or
    /// there is no memory for its descriptors.
    pub fn reclaim(&mut self, run: PfnRange, most: Level, word: Descriptor) -> bool {
        let is_free = self.vmemmap.layout().covers(run) && self.frames.is_free(run);
        if !is_free || !self.vmemmap.reserve(run, most) || !self.frames.take_exactly(run) {
            return false;
        }
        self.describe(run, most, word);
        true
    }

    /// Takes exactly `run` out of the free frames and leaves its descriptors as they are: for a
    /// restarted owner whose descriptors survived. Refused when a frame of it is not free.
    pub fn claim(&mut self, run: PfnRange) -> bool {
        self.vmemmap.layout().covers(run) && self.frames.take_exactly(run)
    }

    /// Takes whatever frames of `run` are free out of the free frames.
    pub fn claim_any_of(&mut self, run: PfnRange) {
        self.frames.take_any_of(run);
    }

    /// Describes `run`, which is nobody's and no longer among the free frames, as Dying: for a
    /// restarted owner. Its folios keep their sizes where they are whole folios of `run`, and are
    /// the largest that fit where the descriptors are not to be believed. False, with nothing done,
    /// where there is no memory for that.
    #[must_use]
    pub fn stray(&mut self, run: PfnRange) -> bool {
        let is_inside =
            |(first, level, _): (Pfn, Level, Descriptor)| run.covers(PfnRange::folio(first, level));
        if self.vmemmap.folios(run).all(is_inside) {
            self.change(run, |word| word.in_state(FolioState::Dying));
            return true;
        }
        if !self.vmemmap.reserve(run, Level::Pud) {
            return false;
        }
        self.describe(run, Level::Pud, Descriptor::FREE.in_state(FolioState::Dying));
        true
    }

    /// Writes `word` for the folios of `run`, the largest that fit and are not above `most`.
    fn describe(&mut self, run: PfnRange, most: Level, word: Descriptor) {
        let mut at = run.start();
        while let Some(level) = Level::largest_fitting(at, run.end() - at) {
            let level = level.min(most);
            if let Some(pfn) = Pfn::new(at) {
                self.describe_folio(pfn, level, word);
            }
            at += level.nr_pages();
        }
    }

    pub(crate) fn describe_folio(&mut self, pfn: Pfn, level: Level, word: Descriptor) {
        for parent in [Level::Pud, Level::Pmd] {
            if parent > level
                && self.vmemmap.load(parent, pfn).is_some_and(|w| w.state() != FolioState::Split)
            {
                self.vmemmap.set(parent, pfn, Descriptor::SPLIT);
            }
        }
        let was_split =
            self.vmemmap.load(level, pfn).is_some_and(|w| w.state() == FolioState::Split);
        self.vmemmap.set(level, pfn, word);
        if was_split {
            self.discard_tables_below(level, pfn);
        }
    }

    /// Gives back the metadata below a folio whose own word no longer says Split.
    pub(crate) fn discard_tables_below(&mut self, level: Level, pfn: Pfn) {
        let Some(below) = level.below().filter(|&below| below >= self.smallest()) else { return };
        // A table that cannot be had has nothing in it.
        if below != Level::Pte && self.vmemmap.reserve_below(level, pfn) {
            for i in 0..FANOUT {
                let Some(child) = Pfn::new(pfn.number() + i * below.nr_pages()) else { break };
                if self.vmemmap.load(below, child).is_some_and(|w| w.state() == FolioState::Split) {
                    self.vmemmap.set(below, child, Descriptor::FREE);
                    self.discard_tables_below(below, child);
                }
            }
        }
        self.vmemmap.discard_below(level, pfn);
    }

    /// Changes the descriptor of every folio of `run`, which is made of whole folios.
    pub fn change(&mut self, run: PfnRange, change: impl Fn(Descriptor) -> Descriptor) {
        let mut at = run.start();
        while at < run.end() {
            let Some((pfn, (level, word))) =
                Pfn::new(at).and_then(|pfn| Some((pfn, self.vmemmap.folio_of(pfn)?)))
            else {
                return;
            };
            self.vmemmap.set(level, pfn, change(word));
            at = pfn.align_down(level).number() + level.nr_pages();
        }
    }

    /// Publishes reserved extents: their folios become Live with `flags`. The head of each extent
    /// is written last, because its life word is what a pin checks.
    #[must_use]
    pub fn publish(&mut self, extents: &[Extent], flags: FolioFlags) -> Vec<Extent> {
        let live = |word: Descriptor| word.in_state(FolioState::Live).with_flags(flags);
        for extent in extents {
            let head = PfnRange::folio(extent.first(), extent.head_level);
            if let (_, Some(rest)) = extent.run.without(head) {
                self.change(rest, live);
            }
            self.change(head, live);
        }
        extents.iter().map(|extent| Extent { life: live(extent.life), ..*extent }).collect()
    }

    /// Changes an extent's life word so that no pin under the old one succeeds any more, without
    /// taking the head folio out of use: sets PARTIAL and a fresh stamp. Returns the extent under
    /// its new word.
    #[must_use]
    pub fn change_life(&mut self, extent: &Extent, fresh: Stamp) -> Extent {
        let flags = extent.life.flags().with(FolioFlags::PARTIAL);
        // Never PARTIAL under the old stamp: a truncate that is given up restores the old word, and
        // the next one would give out the very word under which somebody was given the first.
        let life = Descriptor::new(extent.life.state(), flags, fresh);
        self.vmemmap.set(extent.head_level, extent.first(), life);
        Extent { life, ..*extent }
    }

    /// Puts an extent's life word back to what it was before [`change_life`](Self::change_life).
    pub fn restore_life(&mut self, extent: &Extent) {
        self.vmemmap.set(extent.head_level, extent.first(), extent.life);
    }

    /// The part of `extent` that is `run`, as an extent under its own first folio's word; `None` if
    /// no folio starts there.
    #[must_use]
    pub fn piece(&self, run: PfnRange) -> Option<Extent> {
        let (level, word) = self.vmemmap.folio_of(run.first())?;
        Extent::new(run, level, word)
    }

    /// Frees `run`, made of whole folios that nothing holds.
    pub fn free(&mut self, run: PfnRange) {
        let smallest = self.vmemmap.folios(run).map(|(_, level, _)| level).min();
        self.change(run, |_| Descriptor::FREE);
        self.frames.give(run);
        for level in [Level::Pmd, Level::Pud] {
            if smallest.is_some_and(|smallest| smallest < level) {
                self.note_empty_tables(run, level);
            }
        }
        while self.empty_tables.len() > MAX_EMPTY_TABLES {
            if let Some((level, folio)) = self.empty_tables.pop_front() {
                self.is_empty_table.remove(&(level, folio));
                self.merge_if_free(level, folio);
            }
        }
    }

    pub(crate) fn note_empty_tables(&mut self, run: PfnRange, level: Level) {
        for folio in run.start() >> level.shift()..=(run.end() - 1) >> level.shift() {
            let whole = PfnRange::new(folio << level.shift(), level.nr_pages());
            if whole.is_some_and(|whole| self.frames.is_free(whole))
                && self.is_empty_table.insert((level, folio))
            {
                self.empty_tables.push_back((level, folio));
            }
        }
    }

    /// Merges the children of a folio that are all free, and gives their table back.
    pub(crate) fn merge_if_free(&mut self, level: Level, folio: u64) {
        let Some(pfn) = Pfn::new(folio << level.shift()) else { return };
        let is_split =
            self.vmemmap.load(level, pfn).is_some_and(|w| w.state() == FolioState::Split);
        // Below a larger whole folio there is nothing to merge.
        let is_described = level.above().is_none_or(|above| {
            self.vmemmap.load(above, pfn).is_some_and(|w| w.state() == FolioState::Split)
        });
        if is_split && is_described && self.frames.is_free(PfnRange::folio(pfn, level)) {
            self.vmemmap.set(level, pfn, Descriptor::FREE);
            self.discard_tables_below(level, pfn);
        }
    }

    /// Gives back every table with nothing but free folios now.
    pub fn trim(&mut self) {
        while let Some((level, folio)) = self.empty_tables.pop_front() {
            self.is_empty_table.remove(&(level, folio));
            self.merge_if_free(level, folio);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmemmap::VmemmapLayout;
    use crate::words::HeapWords;

    fn folios(nr_pages: u64) -> Folios<HeapWords> {
        let layout = VmemmapLayout::for_pages(nr_pages).unwrap();
        let vmemmap = Vmemmap::new(layout, HeapWords::new(layout.nr_words())).unwrap();
        let mut folios = Folios::new(vmemmap);
        folios.bring_online(Pfn::new(0).unwrap(), nr_pages);
        folios
    }

    fn stamp(number: u64) -> Stamp {
        Stamp::new(number).unwrap()
    }

    #[test]
    fn best_fit_makes_three_mebibytes_one_large_and_256_small_folios() {
        let mut folios = folios(Level::Pud.nr_pages());
        let extents = folios.reserve(768, Sizing::BestFit, stamp(1)).unwrap();
        assert_eq!(extents.len(), 1);
        let levels: Vec<Level> =
            folios.vmemmap().folios(extents[0].run).map(|(_, level, _)| level).collect();
        assert_eq!(levels.len(), 257);
        assert_eq!((levels[0], levels[1]), (Level::Pmd, Level::Pte));
    }

    #[test]
    fn frames_past_the_end_are_offline() {
        let folios = folios(1000);
        let at = |pfn| folios.vmemmap().folio_of(Pfn::new(pfn).unwrap()).unwrap();
        assert_eq!(at(0), (Level::Pmd, Descriptor::FREE));
        assert_eq!(at(999), (Level::Pte, Descriptor::FREE));
        assert_eq!(at(1000), (Level::Pte, Descriptor::OFFLINE));
        assert_eq!(at(2000), (Level::Pmd, Descriptor::OFFLINE));
    }

    #[test]
    fn a_freed_table_is_used_again_at_any_level() {
        let mut folios = folios(Level::Pud.nr_pages());
        let small = folios.reserve(3, Sizing::Fixed(Level::Pte), stamp(1)).unwrap();
        folios.free(small[0].run);
        let whole =
            folios.reserve(Level::Pud.nr_pages(), Sizing::Fixed(Level::Pud), stamp(2)).unwrap();
        let live = folios.publish(&whole, FolioFlags::WRITABLE);
        let pfn = Pfn::new(5).unwrap();
        assert_eq!(folios.vmemmap().folio_of(pfn), Some((Level::Pud, live[0].life)));
        folios.free(whole[0].run);
        folios.trim();
        assert_eq!(folios.vmemmap().folio_of(pfn), Some((Level::Pud, Descriptor::FREE)));
        assert_eq!(folios.vmemmap().load(Level::Pte, pfn), Some(Descriptor::FREE));
    }

    /// Story: no test noticed when tables were never given back, and descriptors kept their memory
    /// for ever.
    #[test]
    fn of_tables_with_nothing_but_free_folios_the_oldest_are_given_back() {
        const NR_OLD: u64 = 3;
        let (block, nr_blocks) = (Level::Pmd.nr_pages(), MAX_EMPTY_TABLES as u64 + NR_OLD);
        let mut folios = folios(Level::Pud.nr_pages());
        let reserve = |folios: &mut Folios<_>, nr_blocks, level| {
            let reserved = folios.reserve(nr_blocks * block, Sizing::Fixed(level), stamp(1));
            reserved.unwrap().iter().map(|extent| extent.run).collect::<Vec<_>>()
        };
        let has_table = |folios: &Folios<HeapWords>, nr: u64| {
            let word = folios.vmemmap().load(Level::Pmd, Pfn::new(nr * block).unwrap());
            word.unwrap().state() == FolioState::Split
        };
        let left = |folios: &Folios<HeapWords>| -> Vec<u64> {
            (0..=nr_blocks).filter(|&nr| has_table(folios, nr)).collect()
        };
        assert_eq!(reserve(&mut folios, nr_blocks, Level::Pte)[0].start(), 0);
        let without_table = reserve(&mut folios, 1, Level::Pmd)[0];
        for nr in (0..nr_blocks).rev() {
            folios.free(PfnRange::new(nr * block, block).unwrap());
        }
        assert_eq!(left(&folios), (0..nr_blocks - NR_OLD).collect::<Vec<_>>());
        // One that has no table takes nobody's place. The table of the whole gibibyte does.
        folios.free(without_table);
        assert_eq!(left(&folios), (0..nr_blocks - NR_OLD - 1).collect::<Vec<_>>());
        for run in reserve(&mut folios, nr_blocks, Level::Pmd) {
            folios.free(run);
        }
        assert_eq!(left(&folios), [], "whole folios were handed out");
        folios.trim();
        let whole = folios.vmemmap().folio_of(Pfn::new(0).unwrap());
        assert_eq!(whole, Some((Level::Pud, Descriptor::FREE)));
    }

    #[test]
    fn a_table_that_is_in_use_again_is_not_given_back() {
        let mut folios = folios(Level::Pud.nr_pages());
        let small = folios.reserve(3, Sizing::Fixed(Level::Pte), stamp(1)).unwrap();
        folios.free(small[0].run);
        let again = folios.reserve(3, Sizing::Fixed(Level::Pte), stamp(2)).unwrap();
        assert_eq!(again[0].run, small[0].run);
        folios.trim();
        let word = folios.vmemmap().folio_of(again[0].first());
        assert_eq!(word, Some((Level::Pte, again[0].life)));
    }

    #[test]
    fn a_life_word_changes_each_time() {
        let mut folios = folios(4096);
        let reserved = folios.reserve(1024, Sizing::Fixed(Level::Pmd), stamp(7)).unwrap();
        let live = folios.publish(&reserved, FolioFlags::WRITABLE)[0];
        let once = folios.change_life(&live, stamp(8));
        let twice = folios.change_life(&once, stamp(9));
        assert!(live.life != once.life && once.life != twice.life && live.life != twice.life);
        assert_eq!(folios.piece(live.run), Some(twice));
    }
}
