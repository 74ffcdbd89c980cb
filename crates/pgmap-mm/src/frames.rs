//! The frame allocator: which frames are free, as runs.
//!
//! Free frames are kept as maximal runs in two orders, by address (to join neighbours) and by
//! length (to find the best fit). A buddy allocator would round an extent of three folios up to
//! four; runs hand out exactly what is asked for, and a whole untouched terabyte is one entry.
//! `docs/adr/0003-frame-allocator.md` argues why this is not a crate.
//!
//! Frames may lie in several zones, one for each memory that they are in. A zone reaches from its
//! first frame to the next zone, what is taken comes out of one zone, and a run that is free lies
//! in one: whoever adds a zone leaves a frame that is never free before it.

use std::collections::{BTreeMap, BTreeSet};

use crate::level::Level;
use crate::pfn::{MAX_RUN_PAGES, PfnRange};

/// How many best-fit candidates are tried for alignment before a run is taken that fits anyhow.
const MAX_CANDIDATES: usize = 16;

/// Why frames could not be handed out. Nothing was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FramesShort {
    /// Frames asked for.
    pub wanted_pages: u64,
    /// Frames free in all.
    pub free_pages: u64,
    /// Frames of the longest free run.
    pub longest_run_pages: u64,
    /// Whether it is not frames that are missing, but memory to describe them.
    pub lacks_descriptors: bool,
}

/// The free frames of one memory.
#[derive(Clone, Debug, Default)]
struct Zone {
    /// Length and first frame.
    by_length: BTreeSet<(u64, u64)>,
    free_pages: u64,
}

/// The free frames of a pfn space.
#[derive(Clone, Debug)]
pub struct Frames {
    /// First frame to length.
    by_start: BTreeMap<u64, u64>,
    /// By the first frame; the first zone starts at 0 and is always there.
    zones: BTreeMap<u64, Zone>,
    free_pages: u64,
}

impl Default for Frames {
    fn default() -> Self {
        let zones = BTreeMap::from([(0, Zone::default())]);
        Self { by_start: BTreeMap::new(), zones, free_pages: 0 }
    }
}

impl Frames {
    /// No free frame.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Frames free in all.
    #[must_use]
    pub const fn free_pages(&self) -> u64 {
        self.free_pages
    }

    /// Frames of the longest free run.
    #[must_use]
    pub fn longest_run_pages(&self) -> u64 {
        self.zones.values().map(Zone::longest_run_pages).max().unwrap_or(0)
    }

    /// Adds a zone that starts at `first`. Of the frames before it and from it on none is free yet,
    /// up to the next zone. False if there is such a zone.
    pub fn add_zone(&mut self, first: u64) -> bool {
        let is_new = !self.zones.contains_key(&first);
        self.zones.entry(first).or_default();
        is_new
    }

    /// Takes out the zone that starts at `first`, which is not the first one. False if one of its
    /// frames is free, or there is no such zone.
    pub fn remove_zone(&mut self, first: u64) -> bool {
        let is_used = self.zones.get(&first).is_none_or(|zone| zone.free_pages > 0);
        !is_used && first != 0 && self.zones.remove(&first).is_some()
    }

    /// Frames free in the zone around `pfn`, and those of its longest free run.
    #[must_use]
    pub fn free_in_zone(&self, pfn: u64) -> (u64, u64) {
        let zone = self.zones.range(..=pfn).next_back();
        zone.map_or((0, 0), |(_, zone)| (zone.free_pages, zone.longest_run_pages()))
    }

    /// The error of a request for `wanted_pages` of the zone around `zone`.
    pub(crate) fn short_of(&self, zone: u64, wanted_pages: u64) -> FramesShort {
        let (free_pages, longest_run_pages) = self.free_in_zone(zone);
        FramesShort { wanted_pages, free_pages, longest_run_pages, lacks_descriptors: false }
    }

    /// The free runs of the zone around `zone`, by length and first frame, from `least` on.
    fn by_length(
        &self,
        zone: u64,
        least: u64,
    ) -> impl DoubleEndedIterator<Item = &(u64, u64)> + '_ {
        let zone = self.zones.range(..=zone).next_back().map(|(_, zone)| zone);
        zone.into_iter().flat_map(move |zone| zone.by_length.range((least, 0)..))
    }

    /// The free runs by address: first frame and length.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.by_start.iter().map(|(&start, &length)| (start, length))
    }

    /// Whether every frame of `run` is free.
    #[must_use]
    pub fn is_free(&self, run: PfnRange) -> bool {
        self.run_around(run).is_some()
    }

    /// The free run that contains all of `run`: first frame and length.
    #[must_use]
    pub fn run_around(&self, run: PfnRange) -> Option<(u64, u64)> {
        let (&start, &length) = self.by_start.range(..=run.start()).next_back()?;
        (run.end() <= start + length).then_some((start, length))
    }

    /// What of `run` is not free, in order.
    #[must_use]
    pub fn without_free(&self, run: PfnRange) -> Vec<PfnRange> {
        let before = self.by_start.range(..run.start()).next_back();
        let inside = self.by_start.range(run.start()..run.end());
        let mut parts = Vec::new();
        let mut at = run.start();
        for (&start, &length) in before.into_iter().chain(inside) {
            parts.extend(PfnRange::new(at, start.saturating_sub(at)));
            at = at.max(start + length);
        }
        parts.extend(PfnRange::new(at, run.end().saturating_sub(at)));
        parts
    }

    /// What of `run` is free, in order.
    #[must_use]
    pub fn within(&self, run: PfnRange) -> Vec<PfnRange> {
        let before = self.by_start.range(..run.start()).next_back();
        let inside = self.by_start.range(run.start()..run.end());
        let runs = before.into_iter().chain(inside);
        let parts = runs.filter_map(|(&start, &length)| {
            let (from, to) = (start.max(run.start()), (start + length).min(run.end()));
            PfnRange::new(from, to.checked_sub(from)?)
        });
        parts.collect()
    }

    /// Whether a frame of `run` is free.
    #[must_use]
    pub fn overlaps(&self, run: PfnRange) -> bool {
        let before = self.by_start.range(..run.end()).next_back();
        before.is_some_and(|(&start, &length)| start + length > run.start())
    }

    /// Makes `run` free. Frames that are free already stay free; the return value is the number
    /// that were not.
    pub fn give(&mut self, run: PfnRange) -> u64 {
        let before = self.free_pages;
        let (mut start, mut end) = (run.start(), run.end());
        let neighbour = self.by_start.range(..start).next_back().map(|(&s, &l)| (s, l));
        if let Some((s, l)) = neighbour
            && s + l >= start
        {
            self.remove(s, l);
            (start, end) = (s, end.max(s + l));
        }
        while let Some((s, l)) = self.by_start.range(start..=end).next().map(|(&s, &l)| (s, l)) {
            self.remove(s, l);
            end = end.max(s + l);
        }
        self.insert(start, end - start);
        self.free_pages - before
    }

    /// Takes exactly `run`, if all of it is free.
    pub fn take_exactly(&mut self, run: PfnRange) -> bool {
        let Some((start, length)) = self.run_around(run) else { return false };
        self.carve(start, length, run);
        true
    }

    /// Takes whatever frames of `run` are free.
    pub fn take_any_of(&mut self, run: PfnRange) {
        let first =
            self.by_start.range(..=run.start()).next_back().map_or(run.start(), |(&s, _)| s);
        let inside: Vec<(u64, u64)> =
            self.by_start.range(first..run.end()).map(|(&s, &l)| (s, l)).collect();
        for (start, length) in inside {
            let end = (start + length).min(run.end());
            let from = start.max(run.start());
            if from < end
                && let Some(part) = PfnRange::new(from, end - from)
            {
                self.carve(start, length, part);
            }
        }
    }

    /// Takes `nr_pages` consecutive frames of the zone around `zone` that start at a folio of
    /// `level`.
    pub fn take_run(&mut self, zone: u64, nr_pages: u64, level: Level) -> Option<PfnRange> {
        if nr_pages == 0 || nr_pages > MAX_RUN_PAGES {
            return None;
        }
        let align = level.nr_pages();
        let fits = |&&(length, start): &&(u64, u64)| {
            let aligned = start.next_multiple_of(align);
            aligned - start + nr_pages <= length
        };
        let candidates = || self.by_length(zone, nr_pages);
        let &(length, start) = candidates()
            .take(MAX_CANDIDATES)
            .find(fits)
            .or_else(|| self.by_length(zone, nr_pages + align - 1).next())
            .or_else(|| candidates().find(fits))?;
        let run = PfnRange::new(start.next_multiple_of(align), nr_pages)?;
        self.carve(start, length, run);
        Some(run)
    }

    /// Takes `nr_pages` frames of the zone around `zone`, a multiple of the folio size of `level`,
    /// in as few aligned runs as it can, at most `max_runs`.
    ///
    /// # Errors
    /// [`FramesShort`] when there are not so many, or only in more pieces. Nothing is taken then.
    pub fn take(
        &mut self,
        zone: u64,
        nr_pages: u64,
        level: Level,
        max_runs: usize,
    ) -> Result<Vec<PfnRange>, FramesShort> {
        let short = self.short_of(zone, nr_pages);
        let mut taken = Vec::new();
        let mut missing = nr_pages;
        while missing > 0 {
            let run = self
                .take_run(zone, missing.min(MAX_RUN_PAGES), level)
                .or_else(|| self.take_longest(zone, missing, level));
            match run {
                Some(run) if taken.len() < max_runs => {
                    missing -= run.nr_pages();
                    taken.push(run);
                }
                run => {
                    for run in taken.into_iter().chain(run) {
                        self.give(run);
                    }
                    return Err(short);
                }
            }
        }
        Ok(taken)
    }

    /// Takes the longest run of whole folios of `level`, at most `most_pages` frames.
    fn take_longest(&mut self, zone: u64, most_pages: u64, level: Level) -> Option<PfnRange> {
        let align = level.nr_pages();
        let usable = |length: u64, start: u64| {
            let skip = start.next_multiple_of(align) - start;
            length.saturating_sub(skip) / align * align
        };
        // Alignment can cost a run up to one folio, so the longest usable one is among those not
        // more than a folio shorter than the longest.
        let (_, longest) = self.free_in_zone(zone);
        let &(length, start) = self
            .by_length(zone, longest.saturating_sub(align))
            .rev()
            .take(MAX_CANDIDATES * 16)
            .max_by_key(|&&(length, start)| usable(length, start))?;
        let nr_pages = usable(length, start).min(most_pages).min(MAX_RUN_PAGES);
        let run = PfnRange::new(start.next_multiple_of(align), nr_pages)?;
        self.carve(start, length, run);
        Some(run)
    }

    /// Cuts `run` out of the free run of `length` frames at `start`, which contains it.
    fn carve(&mut self, start: u64, length: u64, run: PfnRange) {
        self.remove(start, length);
        if run.start() > start {
            self.insert(start, run.start() - start);
        }
        if run.end() < start + length {
            self.insert(run.end(), start + length - run.end());
        }
    }

    fn insert(&mut self, start: u64, length: u64) {
        self.by_start.insert(start, length);
        if let Some((_, zone)) = self.zones.range_mut(..=start).next_back() {
            zone.by_length.insert((length, start));
            zone.free_pages += length;
        }
        self.free_pages += length;
    }

    fn remove(&mut self, start: u64, length: u64) {
        self.by_start.remove(&start);
        if let Some((_, zone)) = self.zones.range_mut(..=start).next_back() {
            zone.by_length.remove(&(length, start));
            zone.free_pages -= length;
        }
        self.free_pages -= length;
    }
}

impl Zone {
    fn longest_run_pages(&self) -> u64 {
        self.by_length.last().map_or(0, |&(length, _)| length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(first: u64, nr: u64) -> PfnRange {
        PfnRange::new(first, nr).unwrap()
    }

    #[test]
    fn what_is_not_free_of_a_run_is_what_the_free_runs_leave() {
        let run = |first, nr| PfnRange::new(first, nr).unwrap();
        let mut frames = Frames::new();
        assert_eq!(frames.without_free(run(5, 10)), [run(5, 10)]);
        for free in [run(0, 6), run(8, 2), run(14, 9)] {
            frames.give(free);
        }
        assert_eq!(frames.without_free(run(5, 10)), [run(6, 2), run(10, 4)]);
        assert_eq!(frames.without_free(run(9, 3)), [run(10, 2)]);
        assert_eq!(frames.without_free(run(15, 2)), []);
        assert_eq!(frames.without_free(run(20, 10)), [run(23, 7)]);
    }

    #[test]
    fn a_short_request_takes_nothing() {
        let mut frames = Frames::new();
        frames.give(run(0, 100));
        frames.give(run(200, 50));
        let short = frames.take(0, 151, Level::Pte, 8).unwrap_err();
        assert_eq!((short.free_pages, short.longest_run_pages), (150, 100));
        assert_eq!(frames.free_pages(), 150);
        assert_eq!(frames.take(0, 150, Level::Pte, 8).unwrap().len(), 2);
        assert_eq!(frames.free_pages(), 0);
    }

    #[test]
    fn aligned_folios_come_from_unaligned_runs() {
        let mut frames = Frames::new();
        frames.give(run(1, 1023));
        assert_eq!(frames.take(0, 512, Level::Pmd, 1).unwrap(), [run(512, 512)]);
        assert!(frames.take(0, 512, Level::Pmd, 1).is_err());
        assert_eq!(frames.free_pages(), 511);
    }

    #[test]
    fn what_is_taken_comes_out_of_one_zone() {
        let mut frames = Frames::new();
        frames.give(run(0, 100));
        assert!(frames.add_zone(512) && !frames.add_zone(512));
        frames.give(run(512, 1024));
        assert_eq!(frames.free_in_zone(0), (100, 100));
        assert_eq!(frames.free_in_zone(600), (1024, 1024));
        assert_eq!((frames.free_pages(), frames.longest_run_pages()), (1124, 1024));
        let short = frames.take(0, 101, Level::Pte, 8).unwrap_err();
        assert_eq!((short.free_pages, short.longest_run_pages), (100, 100));
        assert_eq!(frames.take(512, 512, Level::Pmd, 8).unwrap(), [run(512, 512)]);
        assert_eq!(frames.take(0, 50, Level::Pte, 8).unwrap(), [run(0, 50)]);
        assert_eq!(frames.take(512, 50, Level::Pte, 8).unwrap(), [run(1024, 50)]);
        assert!(!frames.remove_zone(512), "some of it is free");
        frames.take_any_of(run(512, 1024));
        assert!(frames.remove_zone(512) && !frames.remove_zone(512) && !frames.remove_zone(0));
        assert_eq!((frames.free_pages(), frames.free_in_zone(600)), (50, (50, 50)));
    }

    proptest! {
        /// Against a set of free frame numbers.
        #[test]
        fn frames_are_never_given_twice_and_never_lost(
            steps in prop::collection::vec((0u8..4, 0u64..2048, 1u64..700, 0u8..2), 1..80)
        ) {
            let mut frames = Frames::new();
            let mut free = std::collections::BTreeSet::new();
            let mut held: Vec<PfnRange> = Vec::new();
            frames.give(run(0, 2048));
            free.extend(0..2048u64);
            for (what, at, nr, level) in steps {
                let level = Level::from_number(level).unwrap();
                match what {
                    0 | 1 => {
                        let nr = nr.next_multiple_of(level.nr_pages());
                        if let Ok(taken) = frames.take(0, nr, level, 4) {
                            prop_assert_eq!(taken.iter().map(|r| r.nr_pages()).sum::<u64>(), nr);
                            for r in taken {
                                prop_assert!(r.first().is_aligned(level));
                                for pfn in r.start()..r.end() {
                                    prop_assert!(free.remove(&pfn), "frame {} given twice", pfn);
                                }
                                held.push(r);
                            }
                        }
                    }
                    2 if !held.is_empty() => {
                        let r = held.swap_remove(at as usize % held.len());
                        prop_assert_eq!(frames.give(r), r.nr_pages());
                        free.extend(r.start()..r.end());
                    }
                    _ => {
                        let r = run(at, nr);
                        let all_free = (r.start()..r.end()).all(|pfn| free.contains(&pfn));
                        prop_assert_eq!(frames.is_free(r), all_free);
                        if frames.take_exactly(r) {
                            prop_assert!(all_free);
                            for pfn in r.start()..r.end() { free.remove(&pfn); }
                            held.push(r);
                        }
                    }
                }
                let asked = run(at, nr.max(1));
                let inside = frames.within(asked);
                let nr_inside = inside.iter().map(|r| r.nr_pages()).sum::<u64>();
                let nr_free = (asked.start()..asked.end()).filter(|pfn| free.contains(pfn)).count();
                prop_assert_eq!(nr_inside, nr_free as u64);
                prop_assert!(inside.iter().all(|r| frames.is_free(*r)));
                prop_assert_eq!(frames.overlaps(asked), nr_free > 0);
                prop_assert_eq!(frames.free_pages(), free.len() as u64);
                let listed: u64 = frames.runs().map(|(_, length)| length).sum();
                prop_assert_eq!(listed, free.len() as u64);
            }
        }
    }
}
