//! Which frames of a drain are idle, and which wait for a holder.

use pgmap_mm::drain::Drain;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;

use crate::owner::core::Core;
use crate::refusal::Refusal;
use crate::wire::Reply;

impl Core {
    /// Gives the memory behind free frames back to the system: a step's worth, from frame `from`
    /// on.
    pub(crate) fn trim(&mut self, from: u64) -> Result<Reply, Refusal> {
        let (freed_bytes, next) = self.frames.trim(from)?;
        Ok(Reply::Trimmed { freed_bytes, next })
    }

    /// The folios of a drain that no hold touches, and those that one does. Takes as long as there
    /// are runs, not folios.
    pub(crate) fn split_by_holds(&self, drain: &Drain) -> (Vec<PfnRange>, SortedRuns) {
        let runs = drain.runs();
        let held: SortedRuns = drain.held().iter().map(|held| held.hold.run).collect();
        let held: Vec<PfnRange> = held.iter().collect();
        let (mut idle, mut waiting) = (Vec::new(), Vec::new());
        let mut next = 0;
        for run in runs.iter() {
            next += held[next..].partition_point(|hold| hold.end() <= run.start());
            let touching = held[next..].iter().take_while(|hold| hold.start() < run.end());
            let parts =
                touching.filter_map(|hold| self.frames.whole_folios(hold.intersection(run)?));
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
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::name::FileName;
    use crate::owner::clients::ClientIdentity;
    use crate::owner::core::Outcome;
    use crate::owner::frames::STEP_FOLIOS;
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
        if let Outcome::Answer(Reply::Created(drafts)) = &outcome {
            return drafts[0].as_ref().unwrap().id;
        }
        let Outcome::Later(ticket) = outcome else { panic!("{outcome:?}") };
        // As the owner's loop does, between other things.
        while let Some(step) = core.next_step() {
            let result = step.take();
            core.step_taken(&step, result);
        }
        let answers = core.take_answers();
        let [(answered, Reply::Created(drafts))] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!(*answered, ticket);
        drafts[0].as_ref().unwrap().id
    }

    #[test]
    fn t10_what_a_dead_client_leaves_is_freed_in_steps_between_which_others_are_served() {
        let mut core = core();
        let (dead, _) = core.attach(ClientIdentity::own(), false).unwrap();
        draft(&mut core, dead, POOL_PAGES);
        core.reap(dead);
        let mut nr_steps = 0;
        while core.frames.has_backlog() {
            let before = core.pool_info();
            assert_eq!(before.free_bytes + before.draining_bytes, POOL_PAGES * 4096, "{before:?}");
            let (newcomer, _attachment) = core.attach(ClientIdentity::own(), false).unwrap();
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
        let (dead, _) = core.attach(ClientIdentity::own(), false).unwrap();
        draft(&mut core, dead, POOL_PAGES);
        core.reap(dead);
        assert!(core.frames.has_backlog());
        let (client, _attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        draft(&mut core, client, POOL_PAGES);
        assert!(!core.frames.has_backlog());
    }

    #[test]
    fn memory_that_fails_while_it_waits_to_be_freed_stays_out_of_use() {
        let mut core = core();
        let (dead, _) = core.attach(ClientIdentity::own(), false).unwrap();
        let id = draft(&mut core, dead, POOL_PAGES);
        let last = core.files.draft(pgmap_mm::index::FileId(id)).unwrap().extents[0].run.end() - 1;
        core.reap(dead);
        core.memory_failure(last).unwrap();
        core.repair_free().unwrap();
        assert_eq!(core.pool_info().poisoned_bytes, 4096, "its turn has not come");
        while core.frames.has_backlog() {
            core.reclaim_some();
        }
        assert_eq!(core.pool_info().free_bytes, (POOL_PAGES - 1) * 4096);
        core.repair_free().unwrap();
        assert_eq!(core.pool_info().free_bytes, POOL_PAGES * 4096);
    }
}
