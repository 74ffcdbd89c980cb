//! Freeing frames in bounded steps, so that a large reclaim keeps nobody waiting (T10).
//!
//! A dead client may leave 200 GB behind, in 4 KiB folios: to free them is a descriptor each. They
//! are idle by then, for good: their extents' life words are changed, and a scan after the heavy
//! barrier found nobody. So there is no hurry and no protocol left, only work, and the owner serves
//! others between two steps of it. A successor of an owner that was killed meanwhile finds frames
//! that are no file's and not Free, and drains them.
//!
//! # Frames of dead clients' devices
//!
//! They are detached first, by whole pages of the backing: the rest of a huge page must be free, or
//! part of what is being freed. Where it is not, the frames stay in quarantine until it is.

use std::collections::VecDeque;

use pgmap_mm::descriptor::{Descriptor, FolioFlags, FolioState};
use pgmap_mm::drain::ClientId;
use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;

use super::PoolFrames;
use crate::refusal::Refusal;

/// Most folios that one step frees: well below a millisecond.
pub(crate) const STEP_FOLIOS: usize = 16_384;
/// What a run of frames costs beside the folios in it, in folios.
const RUN_FOLIOS: usize = 15;
/// Most frames of one step where devices of the dead must be kept out first: the system frees and
/// makes again each of these pages.
const STEP_DETACHED_PAGES: u64 = 16_384;
/// Most runs of free frames that one step of a trim looks at.
const STEP_RUNS: usize = 1024;

/// What is to be done with retired frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Somebody holds them: say so in the word of each folio.
    Mark,
    /// Somebody still does after a deadline.
    MarkQuarantined,
    /// Nobody does: free them.
    Free,
}

/// Work that is left, in the order in which it came: frames are marked before they are freed.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    runs: VecDeque<(Work, PfnRange)>,
    /// Frames that are to be freed.
    nr_pages: u64,
}

impl Backlog {
    fn push(&mut self, work: Work, run: PfnRange) {
        if work == Work::Free {
            self.nr_pages += run.nr_pages();
        }
        self.runs.push_back((work, run));
    }

    /// The next run, cut after what `end_of` says of it; the rest stays first in line.
    fn take(&mut self, end_of: impl FnOnce(PfnRange) -> u64) -> Option<(Work, PfnRange)> {
        let (work, run) = self.runs.pop_front()?;
        let nr_pages = end_of(run).clamp(run.start() + 1, run.end()) - run.start();
        if let Some(rest) = run.sub_run(nr_pages, run.nr_pages() - nr_pages) {
            self.runs.push_front((work, rest));
        }
        if work == Work::Free {
            self.nr_pages -= nr_pages;
        }
        Some((work, run.sub_run(0, nr_pages)?))
    }
}

#[cfg(feature = "sim")]
impl PoolFrames {
    /// Frames that are to be freed.
    pub(crate) fn backlog_runs(&self) -> impl Iterator<Item = PfnRange> + '_ {
        self.backlog.runs.iter().filter(|(work, _)| *work == Work::Free).map(|&(_, run)| run)
    }

    /// Runs of frames that are out of use for dead clients' devices: start and pages.
    pub(crate) fn quarantined_runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.quarantined.runs()
    }

    /// Runs of frames whose memory failed: start and pages.
    pub(crate) fn failed_runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.failed.runs()
    }

    /// Runs of free frames that are withheld: start and pages.
    pub(crate) fn withheld_runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.withheld.runs()
    }

    /// Runs of free frames: start and pages.
    pub(crate) fn free_runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.folios.frames().runs()
    }
}

impl PoolFrames {
    /// Nobody holds `run`, whose life is ended: it is freed in one of the next steps.
    pub(crate) fn release(&mut self, run: PfnRange) {
        self.backlog.push(Work::Free, run);
    }

    /// Somebody holds `run`, whose life is ended: the words of all its folios are to say so, for
    /// holders who look at them because they missed the event. That is work for the next steps,
    /// too.
    pub(crate) fn mark_held(&mut self, run: PfnRange) {
        self.backlog.push(Work::Mark, run);
    }

    /// As [`mark_held`](Self::mark_held), of frames that somebody holds after a deadline.
    pub(crate) fn mark_quarantined(&mut self, run: PfnRange) {
        self.backlog.push(Work::MarkQuarantined, run);
    }

    /// What of `off` was still to be marked is not: it goes back to its file.
    pub(crate) fn unmark(&mut self, off: &[PfnRange]) {
        let off = SortedRuns::new(off.to_vec());
        self.backlog.runs.retain(|&(work, run)| work == Work::Free || !off.overlaps(run));
    }

    /// Gives the folios at the front of `rest`, which a cut was to take, their life under `flags`
    /// again: as many as are left of the step, of which they are taken off.
    pub(crate) fn revive_some(
        &mut self,
        rest: &mut VecDeque<PfnRange>,
        flags: FolioFlags,
        left: &mut usize,
    ) {
        while let Some(run) = rest.pop_front() {
            let nr_pages = self.end_of_step(run, left) - run.start();
            if let Some(part) = run.sub_run(0, nr_pages) {
                self.folios
                    .change_healthy(part, |word| word.in_state(FolioState::Live).with_flags(flags));
            }
            if let Some(after) = run.sub_run(nr_pages, run.nr_pages() - nr_pages) {
                return rest.push_front(after);
            }
        }
    }

    /// Takes the frames at the front of `rest`, of a further pagemap, down: as many folios as are
    /// left of the step, of each of which `tell` is notified.
    pub(crate) fn take_down_some(
        &mut self,
        rest: &mut VecDeque<PfnRange>,
        left: &mut usize,
        tell: impl Fn(PfnRange),
    ) {
        while let Some(run) = rest.pop_front() {
            if *left == 0 {
                return rest.push_front(run);
            }
            let most = run.sub_run(0, STEP_DETACHED_PAGES.min(run.nr_pages())).unwrap_or(run);
            // Up to the end of a folio and of a page of the backing, of which only the whole can
            // go.
            let nr_pages = (self.end_of_step(most, left) - run.start())
                .next_multiple_of(self.page_bytes(run) / PAGE_BYTES)
                .min(run.nr_pages());
            if let Some(part) = run.sub_run(0, nr_pages) {
                for (first, level, _) in self.vmemmap().folios(part) {
                    tell(PfnRange::folio(first, level));
                }
                if let Err(refusal) = self.detach(part) {
                    tracing::warn!(
                        run = %part,
                        %refusal,
                        "memory of a removed pagemap stays taken"
                    );
                }
                self.folios.change(part, |_| Descriptor::OFFLINE);
            }
            if let Some(after) = run.sub_run(nr_pages, run.nr_pages() - nr_pages) {
                rest.push_front(after);
            }
        }
    }

    /// Whether there is work for further steps. Nothing is freed while the catalog may say that it
    /// is a file's.
    pub(crate) fn has_backlog(&self) -> bool {
        !self.backlog.runs.is_empty() && !self.pool.is_in_doubt()
    }

    /// Idle frames that still are to be freed.
    pub(crate) const fn backlog_pages(&self) -> u64 {
        self.backlog.nr_pages
    }

    /// Whether a frame of `run` is still to be freed.
    pub(crate) fn is_in_backlog(&self, run: PfnRange) -> bool {
        self.backlog.runs.iter().any(|(_, waiting)| waiting.overlaps(run))
    }

    /// Frees one step's worth of what is to be freed.
    pub(crate) fn reclaim_some(&mut self) {
        let mut left = STEP_FOLIOS;
        while left > 0 && self.has_backlog() {
            let mut backlog = std::mem::take(&mut self.backlog);
            let step = backlog.take(|run| self.end_of_step(run, &mut left));
            self.backlog = backlog;
            left = left.saturating_sub(RUN_FOLIOS);
            match step {
                Some((Work::Mark, run)) => self.retire_run(run),
                Some((Work::MarkQuarantined, run)) => self.quarantine_run(run),
                Some((Work::Free, run)) => self.free(run),
                None => {}
            }
        }
    }

    /// Gives the memory behind free frames back to the system: a step's worth, from frame `from`
    /// on. Says how many bytes that were, and where to go on. A device keeps its memory.
    ///
    /// # Errors
    /// When the backing cannot do that.
    pub(crate) fn trim(&mut self, from: u64) -> Result<(u64, Option<u64>), Refusal> {
        let free = self.folios.frames().runs().filter(|&(start, length)| start + length > from);
        let free = free.filter(|&(start, _)| self.backings.at(start).can_detach());
        let mut runs: Vec<PfnRange> = Vec::new();
        let (mut left, mut next) = (STEP_DETACHED_PAGES, None);
        for (number, (start, length)) in free.enumerate() {
            let unit = self.backings.at(start).page_bytes() / PAGE_BYTES;
            left = if runs.is_empty() { left.max(unit) } else { left / unit * unit };
            let first = start.max(from).next_multiple_of(unit);
            let end = (start + length) / unit * unit;
            let taken = end.saturating_sub(first).min(left);
            runs.extend(PfnRange::new(first, taken));
            left -= taken;
            if first + taken < end || number + 1 == STEP_RUNS {
                next = Some((first + taken).max(from + 1));
                break;
            }
        }
        let before = self.resident_bytes();
        for run in &runs {
            self.detach(*run)?;
        }
        Ok((before.saturating_sub(self.resident_bytes()), next))
    }

    /// The frame after the last folio of `run` that fits into this step, which has `left` folios
    /// left.
    fn end_of_step(&self, run: PfnRange, left: &mut usize) -> u64 {
        let is_orphaned = self.orphans.overlaps(run);
        let most = if is_orphaned { run.start() + STEP_DETACHED_PAGES } else { u64::MAX };
        let mut end = run.start();
        for (first, level, _) in self.vmemmap().folios(run) {
            if *left == 0 || end >= most {
                break;
            }
            *left -= 1;
            end = PfnRange::folio(first, level).end();
        }
        if end >= most {
            *left = 0;
        }
        end
    }

    /// Frees frames that nobody holds, detaching them first from devices of the dead.
    fn free(&mut self, run: PfnRange) {
        if self.orphans.overlaps(run) {
            self.free_orphaned(run);
        } else {
            // What failed stays out of use; it is in the books of failed frames already.
            drop(self.folios.free_healthy(run));
        }
        self.end_quarantine_around(run);
    }

    /// As [`free`](Self::free), where devices of the dead may write.
    fn free_orphaned(&mut self, run: PfnRange) {
        let mut rest = vec![run];
        let orphaned = self.orphans.within(run);
        let pages: SortedRuns = orphaned.iter().map(|part| self.whole_pages(*part)).collect();
        for pages in pages.iter() {
            if let Err(refusal) = self.detach_with(pages, run)
                && let Some(kept) = pages.intersection(run)
            {
                let kept = self.whole_folios(kept).unwrap_or(kept);
                // They cannot be distinguished from the device's any more, or not yet.
                tracing::warn!(run = %kept, %refusal, "frames are quarantined");
                self.quarantine_run(kept);
                self.quarantined.give(kept);
                rest = without(rest, kept);
            }
        }
        for part in rest {
            // What failed: as in `free`.
            drop(self.folios.free_healthy(part));
        }
    }

    /// Detaches `pages`, whole pages of the backing, while `freed` is being freed: what of them is
    /// not part of it must be free.
    pub(super) fn detach_with(&mut self, pages: PfnRange, freed: PfnRange) -> Result<(), Refusal> {
        let (before, after) = pages.without(freed);
        let others = before.into_iter().chain(after);
        for other in others {
            if !self.is_free(other) {
                let why = format!(
                    "{other} is in use, in the same page of {} bytes as {freed}",
                    self.page_bytes(pages)
                );
                return Err(Refusal::Internal { why });
            }
        }
        self.detach(pages)
    }

    /// No device of the dead `client` can write any more. Frees what is in quarantine for it alone:
    /// a step's worth, up to `left` runs. Returns how many are left of the step.
    pub(crate) fn end_orphans(&mut self, client: ClientId, left: usize) -> usize {
        let ended = self.orphans.end(client, left);
        for run in &ended {
            // Whole folios, and what was freed beside them in the same pages of memory, are in
            // quarantine for any part of theirs.
            let around = self.whole_pages(self.whole_folios(*run).unwrap_or(*run));
            let waiting = self.quarantined.within(around);
            let folios: Vec<PfnRange> = waiting
                .iter()
                .flat_map(|run| self.vmemmap().folios(*run))
                .map(|(first, level, _)| PfnRange::folio(first, level))
                .collect();
            for folio in folios {
                let is_over = !self.orphans.overlaps(self.whole_pages(folio));
                if is_over && self.quarantined.take_exactly(folio) {
                    drop(self.folios.free_healthy(folio));
                }
            }
        }
        left.saturating_sub(ended.len().max(1))
    }

    /// Frames that devices of the dead `client` may still write to, and how many of them are in
    /// quarantine.
    pub(crate) fn orphans_of(&self, client: ClientId) -> (u64, u64) {
        self.orphans.of(client).fold((0, 0), |(all, quarantined), run| {
            let waiting = self.quarantined.within(run).into_iter();
            (all + run.nr_pages(), quarantined + waiting.map(PfnRange::nr_pages).sum::<u64>())
        })
    }

    /// Looks whether frames in quarantine are alone now in their pages of memory, of which `freed`
    /// was a part: then the pages are detached, and the frames are free.
    fn end_quarantine_around(&mut self, freed: PfnRange) {
        if self.quarantined.free_pages() == 0 || self.page_bytes(freed) == PAGE_BYTES {
            return;
        }
        let ends = [freed.start(), freed.end() - 1];
        let pages = ends.iter().filter_map(|&at| Some(self.whole_pages(PfnRange::new(at, 1)?)));
        let pages: SortedRuns = pages.collect();
        for pages in pages.iter() {
            let waiting = self.quarantined.within(pages);
            let mut others = vec![pages];
            for run in &waiting {
                others = without(others, *run);
            }
            let is_alone = others.iter().all(|other| self.is_free(*other));
            if waiting.is_empty() || !is_alone || self.detach(pages).is_err() {
                continue;
            }
            for run in waiting {
                self.quarantined.take_exactly(run);
                drop(self.folios.free_healthy(run));
            }
        }
    }
}

impl PoolFrames {
    /// `part`, up to where the folios at its ends begin and end.
    pub(crate) fn whole_folios(&self, part: PfnRange) -> Option<PfnRange> {
        let last = part.sub_run(part.nr_pages() - 1, 1)?.first();
        let first = PfnRange::folio(part.first(), self.vmemmap().folio_of(part.first())?.0);
        let last = PfnRange::folio(last, self.vmemmap().folio_of(last)?.0);
        PfnRange::new(first.start(), last.end() - first.start())
    }
}

/// What of `runs` is left without `gone`.
pub(super) fn without(runs: Vec<PfnRange>, gone: PfnRange) -> Vec<PfnRange> {
    let left = runs.into_iter().flat_map(|run| {
        let (before, after) = run.without(gone);
        before.into_iter().chain(after)
    });
    left.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pgmap_mm::level::Level;

    use super::*;
    use crate::name::FileName;
    use crate::owner::backing::AsIf;
    use crate::owner::clients::ClientIdentity;
    use crate::owner::core::Core;
    use crate::owner::made_file::make_file;
    use crate::pool::{Pool, PoolOptions};

    const BLOCK: u64 = Level::Pmd.nr_pages();
    /// More than one step of a trim.
    const NR_BLOCKS: u64 = STEP_DETACHED_PAGES / BLOCK + 8;

    fn run(start: u64, nr_pages: u64) -> PfnRange {
        PfnRange::new(start, nr_pages).unwrap()
    }

    /// A pool on pages of `page_bytes`, as far as the books are concerned, in which each frame has
    /// memory, and the first page and one in the middle belong to a file.
    fn world(page_bytes: u64) -> Core {
        let options = PoolOptions::anonymous(NR_BLOCKS * BLOCK * PAGE_BYTES);
        let mut core = Core::open(Arc::new(Pool::create(&options).unwrap())).unwrap();
        let (client, _) = core.attach(ClientIdentity::own(), false).unwrap();
        let name = |name: &str| FileName::new(name).unwrap();
        make_file(&mut core, client, &name("first"), PAGE_BYTES);
        make_file(&mut core, client, &name("between"), 3 * BLOCK * PAGE_BYTES);
        make_file(&mut core, client, &name("middle"), PAGE_BYTES);
        core.unlink(&[name("between")]).unwrap();
        let as_if = AsIf { page_bytes: Some(page_bytes), ..AsIf::default() };
        core.frames.backings_mut().pretend(as_if);
        core.frames.has_memory(run(0, NR_BLOCKS * BLOCK));
        core
    }

    /// A cut that was called off takes its own marks back, and those of no other.
    #[test]
    fn what_is_unmarked_is_marks_of_those_frames() {
        let mut core = world(PAGE_BYTES);
        let (free, own, others) = (run(1, 2), run(1, 4), run(8, 4));
        let backlog = &mut core.frames.backlog;
        backlog.push(Work::Free, free);
        backlog.push(Work::Mark, own);
        backlog.push(Work::MarkQuarantined, own);
        backlog.push(Work::Mark, others);
        core.frames.unmark(&[own]);
        let left = core.frames.backlog.runs.iter().copied().collect::<Vec<_>>();
        assert!(left == [(Work::Free, free), (Work::Mark, others)], "{left:?}");
    }

    /// Trims all; says how many steps that took.
    fn trim(core: &mut Core) -> u64 {
        let (mut from, mut nr_steps) = (0, 0);
        loop {
            nr_steps += 1;
            match core.frames.trim(from).unwrap().1 {
                Some(next) => from = next,
                None => return nr_steps,
            }
        }
    }

    /// Blocks of which all frames lack memory, and those of which some do.
    fn missing(core: &Core) -> (Vec<u64>, Vec<u64>) {
        let missing = |&nr: &u64| core.frames.missing_pages(run(nr * BLOCK, BLOCK));
        let whole = (0..NR_BLOCKS).filter(|nr| missing(nr) == BLOCK).collect();
        (whole, (0..NR_BLOCKS).filter(|nr| (1..BLOCK).contains(&missing(nr))).collect())
    }

    /// Story: huge pages are in no test's pool, so nobody noticed where a trim cut them.
    #[test]
    fn a_trim_gives_whole_pages_of_the_memory_back_and_no_part_of_one() {
        let mut core = world(BLOCK * PAGE_BYTES);
        assert_eq!(missing(&core), (vec![], vec![]));
        assert_eq!(trim(&mut core), 2, "steps");
        let all_but_two = [1, 2].into_iter().chain(4..NR_BLOCKS).collect();
        assert_eq!(missing(&core), (all_but_two, vec![]), "block 0 and 3 have a file's page");
        let mut core = world(PAGE_BYTES);
        assert_eq!(trim(&mut core), 2, "steps");
        let all_but_two = [1, 2].into_iter().chain(4..NR_BLOCKS).collect();
        assert_eq!(missing(&core), (all_but_two, vec![0, 3]));
        for nr in [0, 3] {
            assert_eq!(core.frames.missing_pages(run(nr * BLOCK, BLOCK)), BLOCK - 1);
        }
    }

    #[test]
    fn a_step_of_a_trim_goes_on_where_the_last_one_ended() {
        let mut core = world(BLOCK * PAGE_BYTES);
        let next = core.frames.trim(0).unwrap().1.unwrap();
        let lacks: u64 =
            (0..NR_BLOCKS).map(|nr| core.frames.missing_pages(run(nr * BLOCK, BLOCK))).sum();
        assert_eq!(lacks, STEP_DETACHED_PAGES);
        assert_eq!(core.frames.missing_pages(run(next, NR_BLOCKS * BLOCK - next)), 0);
        // In the middle of a page: the next whole one.
        let mut core = world(BLOCK * PAGE_BYTES);
        assert_eq!(core.frames.trim((NR_BLOCKS - 2) * BLOCK + 1).unwrap().1, None);
        assert_eq!(missing(&core), (vec![NR_BLOCKS - 1], vec![]));
    }
}
