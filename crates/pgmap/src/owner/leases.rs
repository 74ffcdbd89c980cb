//! Leases: long-term pins that need the owner's consent and may be asked back.
//!
//! A grant is two things: a line in the lease table, which is the policy (who, until when, recalled
//! or not), and a slot in the client's own ledger, which is the hold. So drains find it as they
//! find any hold, and it outlives the owner that granted it.

use pgmap_mm::admission::{self, Admission, Denied, Ground, HolderStance};
use pgmap_mm::drain::ClientId;
use pgmap_mm::extent::Extent;
use pgmap_mm::holder::{HolderAnswer, QuestionId, Requester, Verdict};
use pgmap_mm::index::FileId;
use pgmap_mm::lease::{LeaseId, PastDeadline, Recall};
use pgmap_mm::ledger::Agent;
use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::prot::Access;
use pgmap_mm::runs::SortedRuns;
use pgmap_os::clock;

use crate::owner::core::{Core, Outcome};
use crate::owner::files::file_idle;
use crate::owner::lease_book::PendingLease;
use crate::owner::pagemaps::DEVICE;
use crate::refusal::Refusal;
use crate::wire::{Event, LeaseGrant, LeaseSpec, Reply};

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self::Denied { why: denied.to_string(), errno: denied.errno() }
    }
}

impl Core {
    /// Decides about a long-term pin that the fast path could not take.
    pub(crate) fn lease(&mut self, client: ClientId, spec: LeaseSpec) -> Outcome {
        match self.admit_lease(client, spec) {
            Ok(outcome) => outcome,
            Err(refusal) => Outcome::Answer(Reply::Refused(refusal)),
        }
    }

    fn admit_lease(&mut self, client: ClientId, spec: LeaseSpec) -> Result<Outcome, Refusal> {
        let parts = self.parts_of(&spec)?;
        let stance = match self.holder.id() {
            Some(_) => HolderStance::NotAsked,
            None => HolderStance::Absent,
        };
        let mut until_ms = None;
        let mut to_ask = Vec::new();
        for (extent, run) in &parts {
            match self.admit(client, &spec, extent, *run, stance)? {
                Admission::Allow => {}
                Admission::AskHolder => to_ask.push(*run),
                Admission::Lease { until_ms: until } => until_ms = sooner(until_ms, until),
                Admission::Deny(denied) => return Err(denied.into()),
            }
        }
        let Some(first) = to_ask.pop() else {
            return self.grant(client, &parts, &spec, until_ms).map(Outcome::Answer);
        };
        let ticket = self.outbox.new_ticket();
        let question = self.ask_holder(client, &spec, first)?;
        self.leases.wait(PendingLease { ticket, client, spec, question, left: to_ask, until_ms });
        Ok(Outcome::Later(ticket))
    }

    /// The extents that a lease would cover, and which part of each.
    fn parts_of(&self, spec: &LeaseSpec) -> Result<Vec<(Extent, PfnRange)>, Refusal> {
        let stale = Refusal::Stale { id: spec.file };
        let (name, file) = self.files.by_id(FileId(spec.file)).ok_or(stale)?;
        if file.doing != Some(DEVICE) {
            file_idle(name, file)?;
        }
        let bad = |why: &str| Refusal::BadLength {
            name: name.to_string(),
            len_bytes: spec.len_bytes,
            why: why.into(),
        };
        let end = spec
            .offset
            .checked_add(spec.len_bytes)
            .filter(|&end| end <= file.len_bytes && spec.len_bytes > 0)
            .ok_or_else(|| bad("the range is not inside the file"))?;
        let pages = spec.offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES);
        let mut parts = Vec::new();
        let mut at = 0;
        for extent in &file.extents {
            let extent_end = at + extent.run.nr_pages();
            let (from, to) = (pages.start.max(at), pages.end.min(extent_end));
            if from < to {
                if extent.is_hole() {
                    return Err(bad("the range has a hole, which cannot be pinned long-term"));
                }
                parts.extend(extent.run.sub_run(from - at, to - from).map(|run| (*extent, run)));
            }
            at = extent_end;
        }
        Ok(parts)
    }

    fn admit(
        &self,
        client: ClientId,
        spec: &LeaseSpec,
        extent: &Extent,
        run: PfnRange,
        holder: HolderStance,
    ) -> Result<Admission, Refusal> {
        let rules = self
            .files
            .by_id(FileId(spec.file))
            .map(|(_, file)| file.rules)
            .ok_or(Refusal::Stale { id: spec.file })?;
        let who = requester(client, spec);
        let request = admission::LongtermRequest { run, who };
        let ground = Ground {
            memory_type: self.pagemaps.type_of(run.first()),
            folio: extent.life.flags(),
            range: self.range_flags(rules, run.first()),
            holder,
        };
        Ok(admission::admit(&request, &ground))
    }

    fn grant(
        &mut self,
        client: ClientId,
        parts: &[(Extent, PfnRange)],
        spec: &LeaseSpec,
        until_ms: Option<u64>,
    ) -> Result<Reply, Refusal> {
        let now_ms = clock::monotonic_ms();
        let runs = parts.iter().map(|(_, run)| *run);
        let ids = self
            .leases
            .grant(client, runs, agent_of(spec), now_ms, until_ms)
            .map_err(|error| Refusal::Denied { why: error.to_string(), errno: error.errno() })?;
        let describe = |(id, (extent, run)): (LeaseId, &(Extent, PfnRange))| LeaseGrant {
            lease: id.0,
            extent: extent.to_words(),
            first_pfn: run.start(),
            nr_pages: run.nr_pages(),
        };
        let grants = ids.into_iter().zip(parts).map(describe).collect();
        let until_ms = until_ms.map(|until_ms| until_ms.saturating_sub(now_ms));
        Ok(Reply::Leased { grants, until_ms })
    }

    /// Takes leases back that their client gave up.
    pub(crate) fn release_leases(&mut self, client: ClientId, ids: &[u64]) -> Reply {
        for &id in ids {
            // One that a predecessor granted is not in this table; its slot was the hold.
            if let Err(error) = self.leases.release(client, LeaseId(id)) {
                tracing::debug!(%error, "a lease was given back that is not known");
            }
        }
        self.look_again();
        Reply::Done
    }

    /// Asks the clients that lease any of `runs` to give them back.
    pub(crate) fn recall_leases(
        &mut self,
        runs: &SortedRuns,
        wait_ms: Option<u64>,
        past_deadline: PastDeadline,
    ) {
        let now_ms = clock::monotonic_ms();
        let deadline_ms = wait_ms.map_or(u64::MAX, |wait_ms| now_ms.saturating_add(wait_ms));
        let recall = Recall { asked_ms: now_ms, deadline_ms, past_deadline };
        for tell in self.leases.recall(runs, recall) {
            let event = Event::LeaseRecalled {
                lease: tell.id.0,
                first_pfn: tell.run.start(),
                nr_pages: tell.run.nr_pages(),
                deadline_ms: wait_ms,
            };
            self.outbox.notify(tell.client, event);
        }
    }

    fn ask_holder(
        &mut self,
        client: ClientId,
        spec: &LeaseSpec,
        run: PfnRange,
    ) -> Result<QuestionId, Refusal> {
        self.holder.ask(run, requester(client, spec), clock::monotonic_ms())
    }

    /// The holder answered a question, or panicked over it.
    pub fn holder_answered(&mut self, question: QuestionId, answer: Option<HolderAnswer>) {
        if let Some(verdict) = self.holder.answer(question, answer, clock::monotonic_ms()) {
            self.hear(&verdict);
        }
    }

    /// Denies what the holder left unanswered, and lets leases lapse.
    pub(crate) fn expire_leases(&mut self) {
        let now_ms = clock::monotonic_ms();
        for verdict in self.holder.expire(now_ms) {
            self.hear(&verdict);
        }
        self.leases.expire(now_ms);
    }

    pub(crate) fn hear(&mut self, verdict: &Verdict) {
        let Some(mut pending) = self.leases.take_waiting(verdict.question.id) else { return };
        let ticket = pending.ticket;
        let outcome = self.go_on(&mut pending, verdict.answer);
        match outcome {
            Ok(Some(reply)) => self.outbox.answer(ticket, reply),
            Ok(None) => self.leases.wait(pending),
            Err(refusal) => self.outbox.refuse(ticket, refusal),
        }
    }

    /// Goes on with a lease after one answer: the next question, or the grant.
    fn go_on(
        &mut self,
        pending: &mut PendingLease,
        answer: HolderAnswer,
    ) -> Result<Option<Reply>, Refusal> {
        let parts = self.parts_of(&pending.spec)?;
        for (extent, run) in &parts {
            let stance = HolderStance::Answered(answer);
            match self.admit(pending.client, &pending.spec, extent, *run, stance)? {
                Admission::Lease { until_ms } => {
                    pending.until_ms = sooner(pending.until_ms, until_ms)
                }
                Admission::Deny(denied) => return Err(denied.into()),
                Admission::Allow | Admission::AskHolder => {}
            }
        }
        if let Some(next) = pending.left.pop() {
            pending.question = self.ask_holder(pending.client, &pending.spec, next)?;
            return Ok(None);
        }
        self.grant(pending.client, &parts, &pending.spec, pending.until_ms).map(Some)
    }

    /// What a dead client asked for and leased.
    pub(crate) fn reap_leases(&mut self, client: ClientId) {
        self.holder.client_died(client);
        self.leases.client_died(client);
    }
}

const fn agent_of(spec: &LeaseSpec) -> Agent {
    if spec.is_device { Agent::Device } else { Agent::Cpu }
}

const fn requester(client: ClientId, spec: &LeaseSpec) -> Requester {
    let access = if spec.is_write { Access::Write } else { Access::Read };
    Requester { client, access, agent: agent_of(spec) }
}

/// The sooner of two ends; none means no end.
fn sooner(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
