//! Drains: frames on their way out of use, and those that wait for their last holder.

use pgmap_mm::drain::Drain;
use pgmap_mm::holder::DrainReason;
use pgmap_mm::lease::PastDeadline;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;
use pgmap_os::clock;

use crate::name::FileName;
use crate::owner::core::{Core, DraftRecord, FileRecord, Ticket};
use crate::owner::cut::Cut;
use crate::owner::holders::Call;
use crate::owner::pagemaps::Unplug;
use crate::refusal::Refusal;
use crate::wire::{Event, OnDeadline, Reply};

/// Frames that wait for their holders.
#[derive(Debug)]
pub(crate) struct PendingDrain {
    pub drain: Drain,
    pub started_ms: u64,
    pub purpose: Purpose,
}

/// What happens when nobody holds the frames any more.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// They are freed.
    Free,
    /// They are freed; a deadline passed before.
    FreeQuarantined,
    /// A pagemap goes.
    Unplug(Unplug),
    /// A truncate or hole punching ends.
    Cut(Cut),
}

impl PendingDrain {
    pub(crate) fn nr_pages(&self) -> u64 {
        self.drain.runs().nr_pages()
    }
}

impl Core {
    /// Takes the frames of files that have no name any more out of use.
    pub(crate) fn retire(&mut self, files: Vec<FileRecord>) {
        self.frames.retire(files.iter().flat_map(|file| &file.extents));
        let runs = files.iter().map(|file| file.runs().collect()).collect();
        self.take_out(runs);
    }

    /// Takes the frames of drafts out of use.
    pub(crate) fn retire_drafts(&mut self, drafts: Vec<DraftRecord>) {
        self.frames.retire(drafts.iter().flat_map(|draft| &draft.extents));
        let runs = drafts.iter().map(|d| d.extents.iter().map(|e| e.run).collect()).collect();
        self.take_out(runs);
    }

    /// Scans once for the batch, whose life words are changed, frees what nobody holds and keeps the
    /// rest waiting, file by file.
    pub(crate) fn take_out(&mut self, batch: Vec<SortedRuns>) {
        let all: SortedRuns = batch.iter().flat_map(SortedRuns::iter).collect();
        if all.is_empty() {
            return;
        }
        let drain = self.scan_for(all);
        for runs in batch {
            let mut drain = drain.part(runs);
            let held: Vec<PfnRange> = drain.held().iter().map(|held| held.hold.run).collect();
            let (idle, waiting) = self.split_by_holds(drain.runs(), &held);
            for run in idle {
                self.frames.release(run);
            }
            if !waiting.is_empty() {
                waiting.iter().for_each(|run| self.frames.mark_held(run));
                drain = drain.part(waiting);
                self.ask_holders(&drain, None, OnDeadline::Fail);
                let started_ms = clock::monotonic_ms();
                self.drains.push(PendingDrain { drain, started_ms, purpose: Purpose::Free });
            }
        }
        self.reclaim_some();
    }

    /// Retires all of `runs` and scans for their holders.
    pub(crate) fn start_drain(&mut self, runs: SortedRuns) -> Drain {
        runs.iter().for_each(|run| self.frames.retire_run(run));
        self.scan_for(runs)
    }

    /// One heavy barrier, one scan: who holds any of `runs`, whose life words are changed.
    pub(crate) fn scan_for(&mut self, runs: SortedRuns) -> Drain {
        let ledgers = self.clients.iter().map(|(&id, client)| (id, &client.ledger));
        let mut drain = Drain::start(runs, &self.barrier, ledgers);
        let lost = self.lost_holds(drain.runs());
        drain.add(lost);
        drain
    }

    /// Tells each client that is in the way that its frames are wanted back (T14).
    pub(crate) fn ask_holders(
        &mut self,
        drain: &Drain,
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
        self.recall_leases(drain, deadline_ms, past_deadline);
        let reason =
            if deadline_ms.is_some() { DrainReason::Truncate } else { DrainReason::Unlink };
        let until_ms =
            deadline_ms.map_or(u64::MAX, |wait| clock::monotonic_ms().saturating_add(wait));
        for run in drain.runs().iter() {
            self.tell_holder(Call::Drain(run, reason, until_ms));
        }
        // Only what is cut still is a file's.
        let cut_run = deadline_ms.and_then(|_| drain.runs().iter().next());
        let file = cut_run.and_then(|run| self.file_of(run));
        for (client, ranges) in drain.asks() {
            self.events.extend(ranges.into_iter().map(|run| {
                let (first_pfn, nr_pages) = (run.start(), run.nr_pages());
                (client, Event::WantedBack { file: file.clone(), first_pfn, nr_pages, deadline_ms })
            }));
        }
    }

    /// Frees a step's worth of what is idle, and removes the ledgers of dead clients whose devices have no
    /// way into the pool any more.
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

    /// Looks at every waiting drain again: after the doorbell, a death, or a while. Frees a step's worth
    /// of what is idle.
    pub fn look_again(&mut self) {
        self.expire_leases();
        for mut pending in std::mem::take(&mut self.drains) {
            let nr_held = pending.drain.held().len();
            let clients = &self.clients;
            pending.drain.look_again(|id| clients.get(&id).map(|client| &client.ledger));
            let is_idle = pending.drain.is_idle();
            match &pending.purpose {
                Purpose::Free | Purpose::FreeQuarantined
                    if pending.drain.held().len() == nr_held =>
                {
                    self.drains.push(pending);
                }
                Purpose::Free | Purpose::FreeQuarantined => self.continue_free(pending),
                Purpose::Cut(cut) if is_idle => self.finish_cut(&pending, cut),
                Purpose::Cut(cut) if cut.deadline_ms <= clock::monotonic_ms() => {
                    self.give_up_cut(&pending, cut);
                }
                Purpose::Unplug(unplug) if is_idle => self.finish_unplug(unplug),
                Purpose::Unplug(unplug) if unplug.deadline_ms <= clock::monotonic_ms() => {
                    self.give_up_unplug(&pending, unplug);
                }
                Purpose::Cut(_) | Purpose::Unplug(_) => self.drains.push(pending),
            }
        }
        self.find_lost_ledgers();
        self.reclaim_some();
    }

    /// Ends what waits for this ticket's answer, as if nobody had asked: a cut leaves the file as it was.
    pub(crate) fn call_off(&mut self, ticket: Ticket) {
        self.drop_population(ticket);
        self.drop_pending_lease(ticket);
        let is_its = |pending: &PendingDrain| match &pending.purpose {
            Purpose::Cut(cut) => cut.ticket == ticket,
            Purpose::Free | Purpose::FreeQuarantined | Purpose::Unplug(_) => false,
        };
        let Some(place) = self.drains.iter().position(is_its) else { return };
        let mut pending = self.drains.swap_remove(place);
        if let Purpose::Cut(cut) = &mut pending.purpose {
            // Whatever its deadline would have done.
            cut.on_deadline = OnDeadline::Fail;
        }
        let Purpose::Cut(cut) = &pending.purpose else { return };
        self.give_up_cut(&pending, cut);
        // Its answer is about a deadline that did not pass.
        self.answers.retain(|(answered, _)| *answered != ticket);
    }

    /// Calls off the cut of a file, whoever asked for it.
    pub(crate) fn cancel_cut(&mut self, name: &FileName) -> Result<Reply, Refusal> {
        if !self.files.contains_key(name) {
            return Err(Refusal::NotFound { name: name.to_string() });
        }
        let ticket = self.drains.iter().find_map(|pending| match &pending.purpose {
            Purpose::Cut(cut) if cut.name == *name => Some(cut.ticket),
            _ => None,
        });
        let ticket = ticket.ok_or_else(|| Refusal::Invalid {
            why: format!("\"{name}\" is not being truncated or punched"),
        })?;
        self.call_off(ticket);
        let refusal = Refusal::CalledOff { name: name.to_string() };
        self.answers.push((ticket, Reply::Refused(refusal)));
        Ok(Reply::Done)
    }

    pub(crate) fn continue_free(&mut self, mut pending: PendingDrain) {
        let held: Vec<PfnRange> = pending.drain.held().iter().map(|held| held.hold.run).collect();
        let (idle, waiting) = self.split_by_holds(pending.drain.runs(), &held);
        for run in idle {
            self.frames.release(run);
        }
        if !waiting.is_empty() {
            pending.drain = pending.drain.part(waiting);
            self.drains.push(pending);
        }
    }

    /// Frames that are out of use after a deadline, or for good.
    pub(crate) fn quarantined_pages(&self) -> u64 {
        let after_deadline = self.drains.iter().filter_map(|pending| match pending.purpose {
            Purpose::FreeQuarantined => Some(pending.nr_pages()),
            Purpose::Free | Purpose::Cut(_) | Purpose::Unplug(_) => None,
        });
        after_deadline.sum::<u64>() + self.frames.quarantined_pages()
    }

    /// When the next waiting truncate's time is up, in milliseconds of the monotonic clock.
    #[must_use]
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let deadlines = self.drains.iter().filter_map(|pending| match &pending.purpose {
            Purpose::Cut(cut) => Some(cut.deadline_ms),
            Purpose::Unplug(unplug) => Some(unplug.deadline_ms),
            Purpose::Free | Purpose::FreeQuarantined => None,
        });
        deadlines.chain(self.questions.next_deadline_ms()).chain(self.leases.next_due_ms()).min()
    }

    /// Whether any drain waits: then the owner polls slowly besides listening for the doorbell.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        !self.drains.is_empty()
            || self.frames.has_backlog()
            || self.questions.next_deadline_ms().is_some()
    }
}
