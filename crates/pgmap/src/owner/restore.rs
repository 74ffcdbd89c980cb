//! Giving a file back what a cut was to take, in bounded steps: a cut that is given up keeps nobody
//! waiting, however long the file.
//!
//! Until all folios are what they were the file stays what the cut made of it, and other changes of
//! it are refused; the caller of the cut has no answer. An owner that is killed meanwhile leaves a
//! file that is whole in the catalog, and its successor believes no word of it.
//!
//! # Invariants
//!
//! - The file of a restoration is busy with its cut until that has ended.
//! - A restoration has at most one answer to give, as its last step.

use std::collections::VecDeque;

use pgmap_mm::pfn::PfnRange;

use crate::name::FileName;
use crate::owner::core::{Core, Ticket};
use crate::owner::cut::Cut;
use crate::owner::file_book::FileRecord;
use crate::owner::frames::STEP_FOLIOS;
use crate::wire::Reply;

/// A file that is being given back what a cut was to take.
#[derive(Debug)]
pub(crate) struct Restoration {
    cut: Cut,
    /// The frames that are left to do.
    rest: VecDeque<PfnRange>,
    /// What the caller of the cut hears; `None` if nobody listens any more.
    answer: Option<Reply>,
}

impl Restoration {
    /// The frames that it is given back.
    fn runs(&self) -> impl Iterator<Item = PfnRange> {
        self.cut.frames.off.iter().copied()
    }

    fn has(&self, run: PfnRange) -> bool {
        self.runs().any(|off| off.overlaps(run))
    }

    fn start_again(&mut self) {
        self.rest = self.runs().collect();
    }
}

/// The restorations that have not ended. Steps are taken of the first.
#[derive(Debug, Default)]
pub(crate) struct Restorations {
    queue: VecDeque<Restoration>,
}

impl Restorations {
    /// The frames that files are given back.
    pub(crate) fn runs(&self) -> impl Iterator<Item = PfnRange> {
        self.queue.iter().flat_map(Restoration::runs)
    }

    /// The caller of the cut with this ticket gets this answer instead, `None` if it waits no more.
    pub(crate) fn set_answer(&mut self, ticket: Ticket, answer: Option<Reply>) {
        let its = self.queue.iter_mut().find(|restoration| restoration.cut.ticket == ticket);
        if let Some(restoration) = its {
            restoration.answer = answer;
        }
    }

    /// The cut of this file that is being undone.
    pub(crate) fn cut_of(&self, name: &FileName) -> Option<Ticket> {
        let its = self.queue.iter().find(|restoration| restoration.cut.name == *name);
        its.map(|restoration| restoration.cut.ticket)
    }

    /// Whether a file is being given `run` back.
    pub(crate) fn overlaps(&self, run: PfnRange) -> bool {
        self.queue.iter().any(|restoration| restoration.has(run))
    }

    /// The words of `folio` were changed: they are restored again.
    pub(crate) fn again(&mut self, folio: PfnRange) {
        let its = self.queue.iter_mut().find(|restoration| restoration.has(folio));
        its.into_iter().for_each(|restoration| restoration.rest.push_back(folio));
    }

    /// The policy of files was changed: what they were given back has the old one.
    pub(crate) fn all_again(&mut self) {
        self.queue.iter_mut().for_each(Restoration::start_again);
    }
}

impl Core {
    /// Gives a file back what `cut` was to take, then its caller the answer. Short ones are done at
    /// once.
    pub(crate) fn restore(&mut self, cut: Cut, answer: Option<Reply>) {
        self.frames.unmark(&cut.frames.off);
        let mut restoration = Restoration { cut, rest: VecDeque::new(), answer };
        restoration.start_again();
        self.restorations.queue.push_back(restoration);
        self.restore_some();
    }

    /// Whether files are left to be given something back. Nobody is to pin any of that as long as
    /// the pool is closing.
    #[must_use]
    pub fn is_restoring(&self) -> bool {
        !self.restorations.queue.is_empty() && self.check_open().is_ok()
    }

    /// Does a step's worth of it.
    pub(crate) fn restore_some(&mut self) {
        if !self.is_restoring() {
            return;
        }
        let mut left = STEP_FOLIOS;
        while let Some(mut restoration) = self.restorations.queue.pop_front() {
            let flags = self.flags_of(&restoration.cut.before);
            self.frames.revive_some(&mut restoration.rest, flags, &mut left);
            if !restoration.rest.is_empty() {
                return self.restorations.queue.push_front(restoration);
            }
            self.end_restoration(restoration);
        }
    }

    /// The words of all folios are what they were: folios and extents are made so, too.
    fn end_restoration(&mut self, restoration: Restoration) {
        let Restoration { cut, answer, .. } = restoration;
        if let Some(file) = self.files.get(&cut.name) {
            let extents = (&*cut.before.extents, &*file.extents);
            let extents = self.frames.undo_cut(&cut.frames, extents, &cut.pages);
            let (len_bytes, metadata) = (cut.before.len_bytes, cut.before.metadata);
            let after = FileRecord { len_bytes, extents, metadata, doing: None, ..file.clone() };
            self.adopt(&cut.name, after);
        }
        if let Some(answer) = answer {
            self.outbox.answer(cut.ticket, answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pgmap_mm::descriptor::FolioState;
    use pgmap_mm::drain::ClientId;

    use super::*;
    use crate::owner::clients::{Attachment, ClientIdentity};
    use crate::owner::core::Outcome;
    use crate::owner::cut::Patience;
    use crate::owner::made_file::make_file;
    use crate::pool::{Pool, PoolOptions};
    use crate::refusal::Refusal;
    use crate::wire::OnDeadline;

    const STEP_PAGES: u64 = STEP_FOLIOS as u64;
    const FILE_PAGES: u64 = 5 * STEP_PAGES;

    /// Books with the file "a" of small folios, all of which a client may hold.
    fn core_with_held_file() -> (Core, FileName, ClientId, Attachment) {
        let options = PoolOptions::anonymous((FILE_PAGES + 1000) * 4096);
        let mut core = Core::open(Arc::new(Pool::create(&options).unwrap())).unwrap();
        let (client, attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        let name = FileName::new("a").unwrap();
        make_file(&mut core, client, &name, FILE_PAGES * 4096);
        core.clients.get_mut(client).unwrap().may_hold = Some(core.frames.all_in_use());
        (core, name, client, attachment)
    }

    fn nr_live(core: &Core, run: PfnRange) -> u64 {
        let folios = core.frames.vmemmap().folios(run);
        folios.filter(|(.., word)| word.state() == FolioState::Live).count() as u64
    }

    /// Story: a truncate marked every folio in one go, and one that was given up did it again.
    #[test]
    fn a_cut_of_many_folios_and_its_undoing_are_done_in_steps() {
        let (mut core, name, _, _attachment) = core_with_held_file();
        let before = core.files[&name].extents.clone();
        let run = before[0].run;
        assert_eq!((before.len(), run.nr_pages()), (1, FILE_PAGES));
        let patience = Patience { wait_ms: 60_000, on_deadline: OnDeadline::Fail };
        let outcome = core.truncate(name.clone(), 4096, patience);
        let Outcome::Later(ticket) = outcome else { panic!("{outcome:?}") };
        let mut nr_steps = 0;
        while core.frames.has_backlog() {
            let before = nr_live(&core, run);
            core.reclaim_some();
            assert!(before - nr_live(&core, run) <= STEP_PAGES);
            nr_steps += 1;
        }
        assert!(nr_steps >= 3 && nr_live(&core, run) == 1, "{nr_steps} steps were left");
        core.call_off(ticket);
        let mut nr_steps = 0;
        while core.is_restoring() {
            let info = core.pool_info();
            assert_eq!(info.live_bytes + info.draining_bytes, FILE_PAGES * 4096, "{info:?}");
            let refused = core.truncate(name.clone(), 0, patience);
            let is_in_use = |refusal: &Refusal| matches!(refusal, Refusal::InUse { .. });
            assert!(matches!(&refused, Outcome::Answer(Reply::Refused(r)) if is_in_use(r)));
            let before = nr_live(&core, run);
            core.restore_some();
            assert!(nr_live(&core, run) - before <= STEP_PAGES);
            nr_steps += 1;
        }
        assert!(nr_steps >= 3, "{nr_steps} steps were left");
        assert_eq!(nr_live(&core, run), FILE_PAGES);
        let now = &core.files[&name];
        assert_eq!((now.extents.len(), now.extents[0].run, now.doing), (1, run, None));
        assert!(core.take_answers().is_empty(), "nobody waits for one");
    }

    /// It gets its answer when all is as before, and what failed meanwhile is no part of that.
    #[test]
    fn memory_that_fails_while_a_cut_is_undone_is_cut_out_and_the_rest_comes_back() {
        let (mut core, name, _, _attachment) = core_with_held_file();
        let run = core.files[&name].extents[0].run;
        let patience = Patience { wait_ms: 0, on_deadline: OnDeadline::Fail };
        let outcome = core.truncate(name.clone(), 4096, patience);
        let Outcome::Later(ticket) = outcome else { panic!("{outcome:?}") };
        assert!(core.is_restoring() && core.take_answers().is_empty());
        // One that is restored already, one that is not.
        core.memory_failure(run.start() + 5).unwrap();
        core.memory_failure(run.end() - 5).unwrap();
        core.repair_free().unwrap();
        while core.is_restoring() {
            core.restore_some();
        }
        let answers = core.take_answers();
        assert!(
            matches!(&answers[..], [(its, Reply::Refused(Refusal::Held { .. }))] if *its == ticket),
            "{answers:?}"
        );
        let file = &core.files[&name];
        let runs: Vec<PfnRange> = file.extents.iter().map(|extent| extent.run).collect();
        let lengths: Vec<u64> = runs.iter().map(|run| run.nr_pages()).collect();
        assert_eq!(lengths, [5, 1, FILE_PAGES - 11, 1, 4]);
        assert_eq!(nr_live(&core, run), FILE_PAGES - 2);
    }

    #[test]
    fn what_a_deadline_passed_for_is_marked_in_steps() {
        let (mut core, name, client, attachment) = core_with_held_file();
        let run = core.files[&name].extents[0].run;
        let patience = Patience { wait_ms: 0, on_deadline: OnDeadline::Quarantine };
        let outcome = core.truncate(name.clone(), 4096, patience);
        assert!(matches!(outcome, Outcome::Answer(Reply::Quarantined(_))), "{outcome:?}");
        assert_eq!(core.pool_info().quarantined_bytes, (FILE_PAGES - 1) * 4096);
        let nr_quarantined = |core: &Core| {
            let folios = core.frames.vmemmap().folios(run);
            folios.filter(|(.., word)| word.state() == FolioState::Quarantined).count() as u64
        };
        while core.frames.has_backlog() {
            let before = nr_quarantined(&core);
            core.reclaim_some();
            assert!(nr_quarantined(&core) - before <= STEP_PAGES);
        }
        assert_eq!(nr_quarantined(&core), FILE_PAGES - 1);
        drop(attachment);
        core.reap(client);
        while core.frames.has_backlog() || core.is_looking() {
            core.look_on();
        }
        let info = core.pool_info();
        assert_eq!((info.quarantined_bytes, info.live_bytes), (0, 4096), "{info:?}");
    }
}
