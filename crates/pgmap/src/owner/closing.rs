//! Draining a whole pool before its memory goes: nobody new gets in, whoever holds any of it is
//! asked for it and waited for, and then the owner is done with it.
//!
//! Files stay: they are on record, and the next owner finds them. What was created and is not
//! committed is given up when the owner ends, as ever.
//!
//! # States
//!
//! ```text
//!   open ──close──▶ closing ──nobody holds anything──▶ closed: the owner ends
//!    ▲                 │
//!    └──deadline, or the caller is gone──┘
//! ```
//!
//! While the pool is closing the head of every extent is Dying, so that no pin is taken after the
//! heavy barrier of the scan. Clients ask nobody for that word: it is what they pin under. Opening
//! again makes the heads what the files' extents say.
//!
//! # Who may touch what
//! The owner alone, under its lock.
//!
//! # Lost races
//! *A pin that was published before the barrier and reads its word after.* It finds Dying and is
//! undone; the scan may count it, and the next look does not find it. *A commit while the pool is
//! closing* would publish a Live head behind the scan: everything that changes a file is refused.

use pgmap_mm::drain::{Drain, MAX_ASKS};
use pgmap_mm::holder::DrainReason;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;
use pgmap_os::clock;

use crate::owner::core::{Core, Outcome, Ticket};
use crate::owner::drains::{PendingDrain, Purpose};
use crate::owner::holders::Call;
use crate::owner::scans::{PendingScan, Scanning};
use crate::refusal::Refusal;
use crate::wire::{OnDeadline, Reply};

/// The error number of what a pool that is closing refuses: `EBUSY`.
const EBUSY: i32 = 16;

/// How far a pool is on its way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Openness {
    #[default]
    Open,
    Closing,
    Closed,
}

/// Somebody waits for a pool to be closed.
#[derive(Debug)]
pub(crate) struct Closing {
    pub ticket: Ticket,
    started_ms: u64,
    wait_ms: u64,
}

impl Closing {
    pub(crate) const fn deadline_ms(&self) -> u64 {
        self.started_ms.saturating_add(self.wait_ms)
    }
}

impl Core {
    /// Closes the pool, waiting up to `wait_ms` for whoever holds any of it.
    pub(crate) fn close(&mut self, wait_ms: u64) -> Outcome {
        if let Err(refusal) = self.check_open() {
            return Outcome::Answer(Reply::Refused(refusal));
        }
        self.openness = Openness::Closing;
        self.files.values().for_each(|file| self.frames.shut(&file.extents));
        let all = SortedRuns::covering(self.pool.vmemmap_layout.nr_pages());
        for run in all.iter() {
            let until_ms = clock::monotonic_ms().saturating_add(wait_ms);
            self.tell_holder(Call::Drain(run, DrainReason::Operator, until_ms));
        }
        let (ticket, started_ms) = (self.new_ticket(), clock::monotonic_ms());
        self.scan_then(all, Scanning::Close(Closing { ticket, started_ms, wait_ms }));
        self.look_on();
        self.outcome_of(ticket)
    }

    /// # Errors
    /// [`Refusal::Denied`] with `EBUSY` when the pool is being drained, or was.
    pub(crate) fn check_open(&self) -> Result<(), Refusal> {
        if self.openness == Openness::Open {
            return Ok(());
        }
        let why = "the pool is being drained: files cannot be changed until that has ended".into();
        Err(Refusal::Denied { why, errno: EBUSY })
    }

    /// Whether nobody holds anything, and nobody will.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.openness == Openness::Closed
    }

    /// Everything that is held is known now: its holders are asked for it, and waited for.
    pub(crate) fn close_after(&mut self, drain: Drain, closing: Closing) {
        self.ask_holders(&drain, MAX_ASKS, Some(closing.wait_ms), OnDeadline::Fail);
        let (started_ms, purpose) = (closing.started_ms, Purpose::Close(closing));
        self.drains.push_front(PendingDrain { drain, started_ms, purpose, unasked: None });
        self.nr_to_look_at += 1;
    }

    /// Whether nothing is in the way of closing the pool beside what `drain` says is held: a device
    /// of a dead client may be writing.
    pub(crate) fn is_quiet(&self, drain: &Drain) -> bool {
        drain.is_idle() && self.dead.is_empty() && self.burials.is_empty()
    }

    /// Nobody holds anything.
    pub(crate) fn finish_close(&mut self, closing: &Closing) {
        self.openness = Openness::Closed;
        self.frames.close();
        self.answers.push((closing.ticket, Reply::Done));
    }

    /// The deadline passed, and somebody holds some of the pool.
    pub(crate) fn give_up_close(&mut self, drain: &Drain, closing: &Closing) {
        let waited_ms = clock::monotonic_ms() - closing.started_ms;
        let holders = self.holders(drain.held(), Some(waited_ms));
        let dead: Vec<String> = self.dead.keys().map(|client| client.0.to_string()).collect();
        self.leases.call_off(drain.runs());
        let refusal = if holders.is_empty() {
            let why = format!(
                "devices of dead clients may still be writing: {} (`pgmap quarantine ls`)",
                dead.join(", ")
            );
            Refusal::Denied { why, errno: EBUSY }
        } else {
            Refusal::Held { name: self.pool.name(), holders, waited_ms }
        };
        self.open_again();
        self.answers.push((closing.ticket, Reply::Refused(refusal)));
    }

    /// Calls off the closing with this ticket. Says whether there was one.
    pub(crate) fn call_off_close(&mut self, ticket: Ticket) -> bool {
        let is_its = |pending: &PendingDrain| match &pending.purpose {
            Purpose::Close(closing) => closing.ticket == ticket,
            _ => false,
        };
        if let Some(place) = self.drains.iter().position(is_its) {
            self.nr_to_look_at -= usize::from(place < self.nr_to_look_at);
            if let Some(pending) = self.drains.remove(place) {
                self.leases.call_off(pending.drain.runs());
            }
        } else if !self.take_scan(|scan| scan.closing().is_some_and(|one| one.ticket == ticket)) {
            return false;
        }
        self.open_again();
        true
    }

    fn open_again(&mut self) {
        self.files.values().for_each(|file| self.frames.open_again(&file.extents));
        self.openness = Openness::Open;
    }
}

impl PendingScan {
    /// Whether it is of everything, none of which is on its way anywhere.
    pub(crate) fn is_of_all(&self) -> bool {
        self.closing().is_some()
    }
}

impl PendingDrain {
    /// The frames that are on their way somewhere.
    pub(crate) fn going(&self) -> impl Iterator<Item = PfnRange> {
        let is_going = !matches!(self.purpose, Purpose::Close(_));
        is_going.then(|| self.drain.runs().iter()).into_iter().flatten()
    }
}
