//! Drains: frames on their way out of use, and those that wait for their last holder.

use std::sync::Arc;

use pgmap_mm::drain::{Drain, MAX_ASKS};
use pgmap_mm::holder::DrainReason;
use pgmap_mm::lease::PastDeadline;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;
use pgmap_os::clock;

use crate::name::FileName;
use crate::owner::closing::Closing;
use crate::owner::core::{Core, Ticket};
use crate::owner::cut::Cut;
use crate::owner::file_book::{DraftRecord, FileRecord};
use crate::owner::holders::Call;
use crate::owner::pagemaps::Unplug;
use crate::owner::scans::Scanning;
use crate::owner::subscribers::Fading;
use crate::refusal::Refusal;
use crate::wire::{Event, OnDeadline, Reply};

/// Most holds that one step looks at again, and about as many are in the way of one drain of frames
/// that are only to be freed: well below a millisecond.
pub(crate) const STEP_HOLDS: usize = 2048;

/// Frames that wait for their holders.
#[derive(Debug)]
pub(crate) struct PendingDrain {
    pub drain: Drain,
    pub started_ms: u64,
    pub purpose: Purpose,
    /// In how many ranges each holder is to be asked for the frames; `None` once they were.
    pub unasked: Option<usize>,
}

/// What happens when nobody holds the frames any more.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// They are freed, and may be the last of a file.
    Free(Option<Arc<Fading>>),
    /// They are freed; a deadline passed before.
    FreeQuarantined,
    /// A pagemap goes.
    Unplug(Unplug),
    /// The pool closes.
    Close(Closing),
    /// A part of it is drained, for this ticket.
    Part(Ticket),
    /// A truncate or hole punching ends.
    Cut(Box<Cut>),
}

/// Frames that go together, and the file that they are the rest of, if anybody follows that.
pub(crate) type Member = (SortedRuns, Option<Arc<Fading>>);

/// What goes with one scan.
#[derive(Debug)]
pub(crate) enum Batch {
    /// All frames of the scan.
    One(Option<Arc<Fading>>),
    /// Each for itself.
    Several(Vec<Member>),
}

impl PendingDrain {
    pub(crate) fn nr_pages(&self) -> u64 {
        self.going().map(PfnRange::nr_pages).sum()
    }
}

impl Core {
    /// Takes the frames of files that have no name any more out of use.
    pub(crate) fn retire(&mut self, files: Vec<(FileName, FileRecord)>) {
        self.frames.retire(files.iter().flat_map(|(_, file)| &file.extents));
        let fading: Vec<_> = files.iter().map(|(name, file)| self.fading(name, file)).collect();
        let runs = files.iter().map(|(_, file)| file.runs().collect());
        self.take_out(runs.zip(fading));
    }

    /// Takes the frames of drafts out of use.
    pub(crate) fn retire_drafts(&mut self, drafts: Vec<DraftRecord>) {
        self.frames.retire(drafts.iter().flat_map(|draft| &draft.extents));
        let runs = |draft: &DraftRecord| draft.extents.iter().map(|e| e.run).collect();
        self.take_out(drafts.iter().map(|draft| (runs(draft), None)));
    }

    /// Scans once for the batch, whose life words are changed, frees what nobody holds and keeps
    /// the rest waiting, file by file. A long scan goes on in further steps.
    pub(crate) fn take_out(&mut self, mut batch: impl ExactSizeIterator<Item = Member>) {
        let (all, batch): (SortedRuns, _) = match (batch.len(), batch.next()) {
            (_, None) => return,
            // The usual case, whose frames are those of the scan.
            (1, Some((runs, fading))) => (runs, Batch::One(fading)),
            (_, Some(first)) => {
                let members: Vec<Member> = std::iter::once(first).chain(batch).collect();
                let all = members.iter().flat_map(|(runs, _)| runs.iter()).collect();
                (all, Batch::Several(members))
            }
        };
        match (all.is_empty(), batch) {
            (false, batch) => self.scan_then(all, Scanning::Free(batch)),
            // Files without frames.
            (true, Batch::One(fading)) => self.faded(fading),
            (true, Batch::Several(members)) => {
                members.into_iter().for_each(|(_, fading)| self.faded(fading));
            }
        }
    }

    /// As [`take_out`](Self::take_out), when the scan has ended.
    pub(crate) fn took_out(&mut self, drain: Drain, batch: Batch) {
        match batch {
            Batch::One(fading) => self.took_one_out(drain, fading),
            Batch::Several(members) => {
                for (runs, fading) in members {
                    self.took_one_out(drain.part(runs), fading);
                }
            }
        }
        self.reclaim_some();
    }

    pub(crate) fn took_one_out(&mut self, drain: Drain, fading: Option<Arc<Fading>>) {
        // The usual case, which has nothing to wait for and nobody to ask.
        if drain.is_idle() {
            drain.runs().iter().for_each(|run| self.frames.release(run));
            return self.faded(fading);
        }
        let parts = self.in_steps(drain);
        let most_asks = (MAX_ASKS / parts.len().max(1)).max(1);
        let started_ms = clock::monotonic_ms();
        let pending = |(drain, fading)| PendingDrain {
            drain,
            started_ms,
            purpose: Purpose::Free(fading),
            unasked: Some(most_asks),
        };
        // The last part has the last of `fading`.
        let fading = std::iter::repeat_n(fading, parts.len());
        let mut parts = parts.into_iter().zip(fading).map(pending);
        // Most files have few holders. The parts of one with many wait each for its step.
        if let Some(first) = parts.next() {
            self.continue_free(first);
        }
        if parts.len() > 0 {
            self.drains.add_unseen(parts);
        }
    }

    /// A drain in parts that a step can look at.
    fn in_steps(&self, drain: Drain) -> Vec<Drain> {
        drain.in_parts(STEP_HOLDS, |pfn| {
            let folio =
                PfnRange::new(pfn.number(), 1).and_then(|one| self.frames.whole_folios(one));
            folio.map_or(pfn.number(), PfnRange::start)
        })
    }

    /// Asks each client that is in the way for its frames, in at most `most_asks` ranges (T14).
    pub(crate) fn ask_holders(
        &mut self,
        drain: &Drain,
        most_asks: usize,
        deadline_ms: Option<u64>,
        on_deadline: OnDeadline,
    ) {
        if drain.is_idle() {
            return;
        }
        let past_deadline = match on_deadline {
            OnDeadline::Fail => PastDeadline::FailTruncate,
            OnDeadline::Quarantine => PastDeadline::Quarantine,
        };
        self.recall_leases(drain.runs(), deadline_ms, past_deadline);
        let reason =
            if deadline_ms.is_some() { DrainReason::Truncate } else { DrainReason::Unlink };
        let until_ms =
            deadline_ms.map_or(u64::MAX, |wait| clock::monotonic_ms().saturating_add(wait));
        for run in drain.runs().iter() {
            self.holder.notify(Call::Drain(run, reason, until_ms));
        }
        // Only what is cut still is a file's.
        let cut_run = deadline_ms.and_then(|_| drain.runs().iter().next());
        let file = cut_run.and_then(|run| self.file_of(run));
        for (client, ranges) in drain.asks(most_asks) {
            for run in ranges {
                let (first_pfn, nr_pages) = (run.start(), run.nr_pages());
                let file = file.clone();
                let event = Event::ReclaimRequested { file, first_pfn, nr_pages, deadline_ms };
                self.outbox.notify(client, event);
            }
        }
    }

    /// Frees a step's worth of what is idle, and removes the ledgers of dead clients whose devices
    /// have no way into the pool any more.
    pub(crate) fn reclaim_some(&mut self) {
        self.frames.reclaim_some();
        self.remove_ended_ledgers();
    }

    /// Removes the ledgers of dead clients whose last frame was detached.
    pub(crate) fn remove_ended_ledgers(&mut self) {
        for client in self.frames.take_ended_orphans() {
            self.remove_ledger(client);
        }
    }

    /// Looks at the waiting drains again: after the doorbell, a death, or a while. That is a step's
    /// worth; [`look_on`](Self::look_on) does the rest.
    pub fn look_again(&mut self) {
        if self.pool.is_in_doubt() {
            self.pool.settle();
        }
        self.close_open_tails();
        self.drains.look_at_all();
        self.look_on();
    }

    /// Whether scans or drains are left to look at in further steps.
    #[must_use]
    pub fn is_looking(&self) -> bool {
        self.drains.has_steps() || self.clients.has_burials() || self.evictables.has_left()
    }

    /// Looks at a step's worth of what is left to look at. Frees a step's worth of what is idle.
    pub fn look_on(&mut self) {
        self.expire_leases();
        self.bury_some();
        self.read_last_uses();
        self.scan_some();
        let mut left = STEP_HOLDS;
        while left > 0
            && let Some(mut pending) = self.drains.take_next()
        {
            let nr_held = pending.drain.held().len();
            let clients = &self.clients;
            let looked =
                pending.drain.look_on(left, |id| clients.get(id).map(|client| &client.ledger));
            left = left.saturating_sub(nr_held.max(1));
            match looked {
                None => self.drains.put_back(pending),
                Some(nr_ended) => {
                    self.drains.looked_at_one();
                    self.on_looked(pending, nr_ended);
                }
            }
        }
        self.drains.end_step();
        self.find_lost_ledgers();
        self.restore_some();
        self.take_down_some();
        self.dead.end_transfers(&mut self.frames);
        self.reclaim_some();
        if self.changes.has_departures() {
            self.see_departures();
        }
    }

    /// Ends what waits for this ticket's answer, as if nobody had asked: a cut leaves the file as
    /// it was.
    pub(crate) fn call_off(&mut self, ticket: Ticket) {
        self.drop_population(ticket);
        self.leases.drop_waiting(ticket);
        self.drop_departure(ticket);
        if self.call_off_close(ticket) || self.call_off_part(ticket) {
            return;
        }
        // Its answer would be about a deadline that did not pass.
        self.call_off_cut(ticket, None);
    }

    /// Ends the cut with this ticket. Its caller gets `answer` once the file is as it was.
    fn call_off_cut(&mut self, ticket: Ticket, answer: Option<Reply>) {
        let is_its = |pending: &PendingDrain| match &pending.purpose {
            Purpose::Cut(cut) => cut.ticket == ticket,
            _ => false,
        };
        let Some(pending) = self.drains.take(is_its) else {
            match self.take_scanned_cut(ticket) {
                Some(cut) => self.restore(cut, answer),
                None => self.restorations.set_answer(ticket, answer),
            }
            return;
        };
        if let Purpose::Cut(cut) = pending.purpose {
            self.leases.call_off_recall(pending.drain.runs());
            self.restore(*cut, answer);
        }
    }

    /// Calls off the cut of a file, whoever asked for it.
    pub(crate) fn cancel_cut(&mut self, name: &FileName) -> Result<Reply, Refusal> {
        if !self.files.contains(name) {
            return Err(Refusal::NotFound { name: name.to_string() });
        }
        let ticket = self.drains.iter().find_map(|pending| match &pending.purpose {
            Purpose::Cut(cut) if cut.name == *name => Some(cut.ticket),
            _ => None,
        });
        let ticket =
            ticket.or_else(|| self.scanned_for(name)).or_else(|| self.restorations.cut_of(name));
        let ticket = ticket.ok_or_else(|| Refusal::Invalid {
            why: format!("\"{name}\" is not being truncated or punched"),
        })?;
        let refusal = Refusal::CalledOff { name: name.to_string() };
        self.call_off_cut(ticket, Some(Reply::Refused(refusal)));
        Ok(Reply::Done)
    }

    /// All holds of `pending` were looked at, and so many have ended.
    fn on_looked(&mut self, pending: PendingDrain, nr_ended: usize) {
        let PendingDrain { drain, started_ms, purpose, unasked } = pending;
        let now_ms = clock::monotonic_ms();
        let purpose = match purpose {
            Purpose::Cut(cut) if drain.is_idle() => return self.finish_cut(&drain, *cut),
            Purpose::Cut(cut) if cut.deadline_ms() <= now_ms => {
                return self.give_up_cut(drain, *cut);
            }
            Purpose::Unplug(unplug) if drain.is_idle() => return self.finish_unplug(unplug),
            Purpose::Unplug(unplug) if unplug.deadline_ms() <= now_ms => {
                return self.give_up_unplug(&drain, started_ms, &unplug);
            }
            Purpose::Close(closing) if self.is_quiet(&drain) => return self.finish_close(&closing),
            Purpose::Close(closing) if closing.deadline_ms() <= now_ms => {
                return self.give_up_close(&drain, &closing);
            }
            Purpose::Part(ticket) => return self.look_at_part(drain, ticket),
            purpose => purpose,
        };
        let is_freed = matches!(purpose, Purpose::Free(_) | Purpose::FreeQuarantined);
        let is_news = nr_ended > 0 || unasked.is_some();
        let pending = PendingDrain { drain, started_ms, purpose, unasked };
        if is_freed && is_news {
            self.continue_free(pending);
        } else {
            self.drains.add_last(pending);
        }
    }

    /// Frees what nobody holds any more of what waits to be freed, and asks the holders of the rest
    /// for it if they were not asked before.
    pub(crate) fn continue_free(&mut self, pending: PendingDrain) {
        let (idle, waiting) = self.split_by_holds(&pending.drain);
        for run in idle {
            self.frames.release(run);
        }
        let PendingDrain { drain, started_ms, purpose, unasked } = pending;
        if waiting.is_empty() {
            if let Purpose::Free(fading) = purpose {
                self.faded(fading);
            }
            return;
        }
        let drain = drain.narrowed_to(waiting);
        if let Some(most_asks) = unasked {
            drain.runs().iter().for_each(|run| self.frames.mark_held(run));
            self.ask_holders(&drain, most_asks, None, OnDeadline::Fail);
        }
        self.drains.add_last(PendingDrain { drain, started_ms, purpose, unasked: None });
    }

    /// Frames that are on their way somewhere.
    pub(crate) fn draining_pages(&self) -> u64 {
        self.drains.going().map(PfnRange::nr_pages).sum::<u64>()
            + self.restorations.runs().map(PfnRange::nr_pages).sum::<u64>()
            + self.frames.backlog_pages()
    }

    /// Frames that are out of use after a deadline, or for good.
    pub(crate) fn quarantined_pages(&self) -> u64 {
        let after_deadline = self.drains.iter().filter_map(|pending| match pending.purpose {
            Purpose::FreeQuarantined => Some(pending.nr_pages()),
            _ => None,
        });
        after_deadline.sum::<u64>() + self.frames.quarantined_pages()
    }

    /// When the next waiting truncate's time is up, in milliseconds of the monotonic clock.
    #[must_use]
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let deadlines = self.drains.iter().filter_map(|pending| match &pending.purpose {
            Purpose::Cut(cut) => Some(cut.deadline_ms()),
            Purpose::Unplug(unplug) => Some(unplug.deadline_ms()),
            Purpose::Close(closing) => Some(closing.deadline_ms()),
            Purpose::Free(_) | Purpose::FreeQuarantined | Purpose::Part(_) => None,
        });
        let deadlines = deadlines.chain(self.parts.deadlines_ms());
        let others = self.holder.next_deadline_ms().into_iter().chain(self.leases.next_due_ms());
        deadlines.chain(others).chain(self.changes.deadlines_ms()).min()
    }

    /// Whether any drain waits: then the owner polls slowly besides listening for the doorbell.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        !self.drains.is_empty()
            || self.clients.has_burials()
            || self.evictables.has_left()
            || self.frames.has_backlog()
            || self.is_restoring()
            || self.pagemaps.has_takedowns()
            || self.changes.has_departures()
            || self.holder.next_deadline_ms().is_some()
    }
}
