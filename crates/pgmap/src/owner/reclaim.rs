//! Freeing frames in bounded steps, so that a large reclaim keeps nobody waiting (T10).
//!
//! A dead client may leave 200 GB behind, in 4 KiB folios: to free them is a descriptor each. They are
//! idle by then, for good: their extents' life words are changed, and a scan after the heavy barrier
//! found nobody. So there is no hurry and no protocol left, only work, and the books are open for
//! others between two steps of it. A successor of an owner that was killed meanwhile finds frames that
//! are no file's and not Free, and drains them.

use std::collections::VecDeque;

use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;

use crate::owner::core::Core;
use crate::refusal::Refusal;
use crate::wire::Reply;

/// Most folios that one step frees: well below a millisecond.
pub(crate) const STEP_FOLIOS: usize = 16_384;
/// Most frames of one step where devices of the dead must be kept out first: the system frees and
/// makes anew each of these pages.
const STEP_DETACHED_PAGES: u64 = 16_384;
/// Most runs of free frames that one step of a trim looks at.
const STEP_RUNS: usize = 1024;

/// Frames that nobody holds and that are still to be freed.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    runs: VecDeque<PfnRange>,
    nr_pages: u64,
}

impl Backlog {
    pub(crate) fn push(&mut self, run: PfnRange) {
        self.nr_pages += run.nr_pages();
        self.runs.push_back(run);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(crate) const fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    pub(crate) fn overlaps(&self, run: PfnRange) -> bool {
        self.runs.iter().any(|waiting| waiting.overlaps(run))
    }

    /// The next run, cut after what `end_of` says of it; the rest stays first in line.
    fn take(&mut self, end_of: impl FnOnce(PfnRange) -> u64) -> Option<PfnRange> {
        let run = self.runs.pop_front()?;
        let nr_pages = end_of(run).clamp(run.start() + 1, run.end()) - run.start();
        if let Some(rest) = run.sub_run(nr_pages, run.nr_pages() - nr_pages) {
            self.runs.push_front(rest);
        }
        self.nr_pages -= nr_pages;
        run.sub_run(0, nr_pages)
    }
}

impl Core {
    /// Frees one step's worth of what is to be freed.
    pub(crate) fn reclaim_some(&mut self) {
        let mut left = STEP_FOLIOS;
        while left > 0 && !self.backlog.is_empty() {
            let mut backlog = std::mem::take(&mut self.backlog);
            let step = backlog.take(|run| self.end_of_step(run, &mut left));
            self.backlog = backlog;
            if let Some(run) = step {
                self.free_step(run);
            }
        }
    }

    /// Gives the memory behind free frames back to the system: a step's worth, from frame `from` on.
    pub(crate) fn trim(&mut self, from: u64) -> Result<Reply, Refusal> {
        let unit = self.backing.page_pages();
        let free = self.folios.frames().runs().filter(|&(start, length)| start + length > from);
        let mut runs: Vec<PfnRange> = Vec::new();
        let (mut left, mut next) = (STEP_DETACHED_PAGES.max(unit), None);
        for (number, (start, length)) in free.enumerate() {
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
        let before = self.backing.resident_bytes();
        for run in &runs {
            self.backing.detach(*run)?;
        }
        let freed_bytes = before.saturating_sub(self.backing.resident_bytes());
        if freed_bytes > 0 {
            // A device that has the pool registered still has the old pages.
            self.index.bump_detach_epoch();
        }
        Ok(Reply::Trimmed { freed_bytes, next })
    }

    /// Whether idle frames still are to be freed.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// The frame after the last folio of `run` that fits into this step, which has `left` folios left.
    fn end_of_step(&self, run: PfnRange, left: &mut usize) -> u64 {
        let is_orphaned = self.orphans.iter().any(|orphan| orphan.run.overlaps(run));
        let most = if is_orphaned { run.start() + STEP_DETACHED_PAGES } else { u64::MAX };
        let mut end = run.start();
        for (first, level, _) in self.folios.vmemmap().folios(run) {
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

    /// The folios of `runs` that no run of `held` touches, and those that one does. Takes as long as
    /// there are runs, not folios.
    pub(crate) fn split_by_holds(
        &self,
        runs: &SortedRuns,
        held: &[PfnRange],
    ) -> (Vec<PfnRange>, SortedRuns) {
        let held: Vec<PfnRange> = SortedRuns::new(held.to_vec()).iter().collect();
        let (mut idle, mut waiting) = (Vec::new(), Vec::new());
        let mut next = 0;
        for run in runs.iter() {
            next += held[next..].partition_point(|hold| hold.end() <= run.start());
            let touching = held[next..].iter().take_while(|hold| hold.start() < run.end());
            let parts = touching.filter_map(|hold| self.whole_folios(hold.intersection(run)?));
            let parts: SortedRuns = parts.collect();
            let mut rest = Some(run);
            for part in parts.iter() {
                let Some(whole) = rest else { break };
                let (before, after) = whole.without(part);
                idle.extend(before);
                rest = after;
            }
            idle.extend(rest);
            waiting.extend(parts.iter());
        }
        (idle, SortedRuns::new(waiting))
    }

    /// `part`, up to where the folios at its ends begin and end.
    fn whole_folios(&self, part: PfnRange) -> Option<PfnRange> {
        let last = part.sub_run(part.nr_pages() - 1, 1)?.first();
        let vmemmap = self.folios.vmemmap();
        let first = PfnRange::folio(part.first(), vmemmap.folio_of(part.first())?.0);
        let last = PfnRange::folio(last, vmemmap.folio_of(last)?.0);
        PfnRange::new(first.start(), last.end() - first.start())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::name::FileName;
    use crate::owner::clients::Identity;
    use crate::owner::core::Outcome;
    use crate::pool::{Pool, PoolOptions};
    use crate::wire::{CreateSpec, FolioSize, Reply, Request};

    const POOL_PAGES: u64 = 5 * STEP_FOLIOS as u64;

    fn core() -> Core {
        let options = PoolOptions::anonymous(POOL_PAGES * 4096);
        Core::open(Arc::new(Pool::create(&options).unwrap())).unwrap()
    }

    fn draft(core: &mut Core, client: pgmap_mm::drain::ClientId, nr_pages: u64) -> u64 {
        let name = FileName::new("draft").unwrap();
        let spec = CreateSpec::new(name, nr_pages * 4096, FolioSize::Pages4K);
        let outcome = core.handle(client, Request::Create(vec![spec]));
        let Outcome::Answer(Reply::Created(drafts)) = outcome else { panic!("{outcome:?}") };
        drafts[0].as_ref().unwrap().id
    }

    #[test]
    fn t10_what_a_dead_client_leaves_is_freed_in_steps_between_which_others_are_served() {
        let mut core = core();
        let (dead, _) = core.attach(Identity::own(), false).unwrap();
        draft(&mut core, dead, POOL_PAGES);
        core.reap(dead);
        let mut nr_steps = 0;
        while core.has_backlog() {
            let before = core.pool_info();
            assert_eq!(before.free_bytes + before.draining_bytes, POOL_PAGES * 4096, "{before:?}");
            let (newcomer, _attachment) = core.attach(Identity::own(), false).unwrap();
            core.reclaim_some();
            let freed = core.pool_info().free_bytes - before.free_bytes;
            assert!(freed > 0 && freed <= STEP_FOLIOS as u64 * 4096, "{freed} bytes in a step");
            core.reap(newcomer);
            nr_steps += 1;
        }
        assert!(nr_steps >= 2, "{nr_steps} steps were left after the client was reaped");
        assert_eq!(core.pool_info().free_bytes, POOL_PAGES * 4096);
    }

    #[test]
    fn whoever_needs_the_memory_at_once_gets_it() {
        let mut core = core();
        let (dead, _) = core.attach(Identity::own(), false).unwrap();
        draft(&mut core, dead, POOL_PAGES);
        core.reap(dead);
        assert!(core.has_backlog());
        let (client, _attachment) = core.attach(Identity::own(), false).unwrap();
        draft(&mut core, client, POOL_PAGES);
        assert!(!core.has_backlog());
    }

    #[test]
    fn memory_that_fails_while_it_waits_to_be_freed_stays_out_of_use() {
        let mut core = core();
        let (dead, _) = core.attach(Identity::own(), false).unwrap();
        let id = draft(&mut core, dead, POOL_PAGES);
        let last = core.drafts[&pgmap_mm::index::FileId(id)].extents[0].run.end() - 1;
        core.reap(dead);
        core.memory_failure(last).unwrap();
        core.repair_free().unwrap();
        assert_eq!(core.pool_info().poisoned_bytes, 4096, "its turn has not come");
        while core.has_backlog() {
            core.reclaim_some();
        }
        assert_eq!(core.pool_info().free_bytes, (POOL_PAGES - 1) * 4096);
        core.repair_free().unwrap();
        assert_eq!(core.pool_info().free_bytes, POOL_PAGES * 4096);
    }
}
