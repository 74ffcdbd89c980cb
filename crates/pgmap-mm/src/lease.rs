//! Leases: long-term pins of whole ranges that the owner granted and may ask back.
//!
//! # States
//!
//! ```text
//!             recall                 deadline, FailTruncate
//!   Held ─────────────────▶ Recalled ───────────────────────▶ Held
//!    │ until passes            │ deadline, Quarantine
//!    ▼                         ▼
//!   Lapsed ── recall ──▶    Quarantined ──── release, or the operator ────▶ gone
//!    │
//!    └── the client dies: gone if only the processor wrote, else Orphaned ─▶ gone
//! ```
//!
//! In every state but the last the frames are held: a deadline decides who is notified, never that
//! memory is reused under whoever may still write to it (I3).
//!
//! # Who may touch what
//!
//! The owner's own table, on one thread. A client asks for a lease and gives it back by messages.
//!
//! # Orderings
//!
//! None of its own: messages are ordered by the socket, and a drain looks at the ledgers and at
//! this table in one turn of the owner.
//!
//! # Lost races
//!
//! *Recall against release.* If the release is handled first, the recall finds nothing to tell. If
//! the recall is first, the client is notified of a lease that it is giving up already, and its
//! release ends the drain that the recall belongs to. A release that comes after the deadline ends
//! a quarantine.
//!
//! *Recall against the client's death.* If the death is first there is nobody to tell: the hold is
//! gone or an orphan. If the recall is first the death ends it the same way.
//!
//! # Differs from Linux
//!
//! There is no such thing: a long-term pin of an fsdax file is refused, and the layout leases
//! proposed for it in 2019 were never merged.

use core::fmt;
use std::collections::BTreeMap;

use crate::drain::ClientId;
use crate::error::errno;
use crate::ledger::Agent;
use crate::pfn::PfnRange;
use crate::runs::SortedRuns;

/// Most leases of one owner. A lease is a range, so 16 GiB are one.
pub const MAX_LEASES: usize = 1 << 16;

/// Which lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// What the end of a recall's patience means. Never that the frames are reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PastDeadline {
    /// The frames leave the file and are kept out of use until the lease ends.
    Quarantine,
    /// Whoever requested reclaim gets a refusal, and the lease goes on.
    FailTruncate,
}

/// The owner requested reclaim of the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Recall {
    /// When that was said.
    pub asked_ms: u64,
    /// Until when the client may keep them.
    pub deadline_ms: u64,
    /// And then?
    pub past_deadline: PastDeadline,
}

/// Where a lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseState {
    /// Granted, and nobody minds.
    Held,
    /// Older than its grant, and nobody minds yet: a recall gives no more time.
    Lapsed,
    /// Reclaim was requested.
    Recalled(Recall),
    /// Not released by the deadline.
    Quarantined,
    /// Its client died with a device that may still write.
    Orphaned,
}

/// One granted long-term pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Which.
    pub id: LeaseId,
    /// Whose.
    pub client: ClientId,
    /// The frames.
    pub run: PfnRange,
    /// Who may write to them.
    pub agent: Agent,
    /// Since when.
    pub granted_ms: u64,
    /// Until when at the latest, if that was said.
    pub until_ms: Option<u64>,
    /// Where it stands.
    pub state: LeaseState,
}

/// A message that a client is owed: give this lease back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tell {
    /// The lease.
    pub id: LeaseId,
    /// Whom to tell.
    pub client: ClientId,
    /// The frames.
    pub run: PfnRange,
    /// Until when they may be kept.
    pub deadline_ms: u64,
}

/// What time has done to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// It has lapsed: remind its client. Nobody wants the frames yet.
    Lapsed(Lease),
    /// A recall's deadline passed, and the frames are quarantined.
    Quarantine(Lease),
    /// A recall's deadline passed: the truncate fails and the lease goes on.
    FailTruncate(Lease),
}

/// What a dead client leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bequest {
    /// Leases that ended: only the dead processor wrote there.
    pub ended: Vec<Lease>,
    /// Leases whose device may still write: they hold until released one by one.
    pub orphaned: Vec<Lease>,
}

/// Why the table refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseError {
    /// There are as many leases as there may be.
    Full {
        /// How many.
        nr_leases: usize,
    },
    /// The lease is no longer, or another client's.
    NotYours {
        /// The lease.
        id: LeaseId,
    },
    /// The time to grant it for is over already.
    Over {
        /// Until when it was to last.
        until_ms: u64,
    },
    /// Reclaim of the frames was requested.
    Wanted {
        /// The frames asked for.
        run: PfnRange,
    },
}

impl LeaseError {
    /// The Linux error number that says the same.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Full { .. } => errno::ENOMEM,
            Self::NotYours { .. } | Self::Over { .. } => errno::EINVAL,
            Self::Wanted { .. } => errno::EBUSY,
        }
    }
}

impl fmt::Display for LeaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { nr_leases } => {
                write!(f, "there are {nr_leases} leases, and no more may be")
            }
            Self::NotYours { id } => write!(f, "lease {} is over or another client's", id.0),
            Self::Over { until_ms } => {
                write!(f, "a lease until {until_ms} ms would be over already")
            }
            Self::Wanted { run } => {
                write!(f, "frames {run} are being recalled from another lease: try again later")
            }
        }
    }
}

impl std::error::Error for LeaseError {}

/// The owner's leases. Times are milliseconds of the caller's clock.
#[derive(Debug, Default)]
pub struct LeaseTable {
    leases: BTreeMap<LeaseId, Lease>,
    last_id: u64,
}

impl LeaseTable {
    /// No lease.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Grants a long-term pin that policy allowed (I7).
    ///
    /// # Errors
    /// [`LeaseError::Full`]; [`LeaseError::Over`] when `until_ms` has passed;
    /// [`LeaseError::Wanted`] while any of the frames are being recalled, else a recall could be
    /// kept from its end for ever.
    pub fn grant(
        &mut self,
        client: ClientId,
        run: PfnRange,
        agent: Agent,
        now_ms: u64,
        until_ms: Option<u64>,
    ) -> Result<LeaseId, LeaseError> {
        if let Some(until_ms) = until_ms.filter(|&until_ms| until_ms <= now_ms) {
            return Err(LeaseError::Over { until_ms });
        }
        if self.overlapping(run).any(|lease| lease.is_wanted()) {
            return Err(LeaseError::Wanted { run });
        }
        if self.leases.len() >= MAX_LEASES {
            return Err(LeaseError::Full { nr_leases: self.leases.len() });
        }
        self.last_id += 1;
        let id = LeaseId(self.last_id);
        let state = LeaseState::Held;
        let lease = Lease { id, client, run, agent, granted_ms: now_ms, until_ms, state };
        self.leases.insert(id, lease);
        Ok(id)
    }

    /// Asks every lease of any of `runs` back and returns whom to tell. A lease that is recalled
    /// already is notified again only when it has to hurry more; a lapsed one has no time left.
    pub fn recall(&mut self, runs: &SortedRuns, recall: Recall) -> Vec<Tell> {
        let mut tells = Vec::new();
        for lease in self.leases.values_mut().filter(|lease| runs.overlaps(lease.run)) {
            let deadline_ms = match lease.state {
                LeaseState::Held => recall.deadline_ms,
                LeaseState::Lapsed => recall.asked_ms,
                LeaseState::Recalled(earlier) if recall.deadline_ms < earlier.deadline_ms => {
                    recall.deadline_ms
                }
                LeaseState::Recalled(_) | LeaseState::Quarantined | LeaseState::Orphaned => {
                    continue;
                }
            };
            lease.state = LeaseState::Recalled(Recall { deadline_ms, ..recall });
            tells.push(Tell { id: lease.id, client: lease.client, run: lease.run, deadline_ms });
        }
        tells
    }

    /// Takes back recalls of `runs` whose reason is gone: the truncate was given up.
    pub fn call_off(&mut self, runs: &SortedRuns) {
        for lease in self.leases.values_mut().filter(|lease| runs.overlaps(lease.run)) {
            if let LeaseState::Recalled(_) = lease.state {
                lease.state = LeaseState::Held;
            }
        }
    }

    /// Ends a lease: its client gives the frames back.
    ///
    /// # Errors
    /// [`LeaseError::NotYours`] when there is no such lease of that client.
    pub fn release(&mut self, client: ClientId, id: LeaseId) -> Result<Lease, LeaseError> {
        match self.leases.get(&id) {
            Some(lease) if lease.client == client && lease.state != LeaseState::Orphaned => {
                self.leases.remove(&id).ok_or(LeaseError::NotYours { id })
            }
            _ => Err(LeaseError::NotYours { id }),
        }
    }

    /// Ends an orphaned or quarantined lease: the operator, a grace rule or the backing says that
    /// no device writes there any more.
    ///
    /// # Errors
    /// [`LeaseError::NotYours`] when the lease is neither.
    pub fn release_stranded(&mut self, id: LeaseId) -> Result<Lease, LeaseError> {
        match self.leases.get(&id).map(|lease| lease.state) {
            Some(LeaseState::Orphaned | LeaseState::Quarantined) => {
                self.leases.remove(&id).ok_or(LeaseError::NotYours { id })
            }
            _ => Err(LeaseError::NotYours { id }),
        }
    }

    /// What has become due by `now_ms`. Each is reported once.
    pub fn expire(&mut self, now_ms: u64) -> Vec<Overdue> {
        let mut overdue = Vec::new();
        for lease in self.leases.values_mut() {
            match lease.state {
                LeaseState::Recalled(recall) if recall.deadline_ms <= now_ms => {
                    overdue.push(match recall.past_deadline {
                        PastDeadline::Quarantine => {
                            lease.state = LeaseState::Quarantined;
                            Overdue::Quarantine(*lease)
                        }
                        PastDeadline::FailTruncate => {
                            lease.state = LeaseState::Held;
                            Overdue::FailTruncate(*lease)
                        }
                    });
                }
                LeaseState::Held if lease.until_ms.is_some_and(|until_ms| until_ms <= now_ms) => {
                    lease.state = LeaseState::Lapsed;
                    overdue.push(Overdue::Lapsed(*lease));
                }
                _ => {}
            }
        }
        overdue
    }

    /// When [`expire`](Self::expire) has something to say next.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        let due = |lease: &Lease| match lease.state {
            LeaseState::Held => lease.until_ms,
            LeaseState::Recalled(recall) => Some(recall.deadline_ms),
            LeaseState::Lapsed | LeaseState::Quarantined | LeaseState::Orphaned => None,
        };
        self.leases.values().filter_map(due).min()
    }

    /// Ends what a dead process held by itself and keeps what its devices may still write to.
    pub fn client_died(&mut self, client: ClientId) -> Bequest {
        let mut bequest = Bequest::default();
        self.leases.retain(|_, lease| {
            if lease.client != client {
                return true;
            }
            match lease.agent {
                Agent::Cpu => bequest.ended.push(*lease),
                Agent::Device => {
                    lease.state = LeaseState::Orphaned;
                    bequest.orphaned.push(*lease);
                }
            }
            lease.agent == Agent::Device
        });
        bequest
    }

    /// The leases that hold any frame of `run`, oldest first.
    pub fn overlapping(&self, run: PfnRange) -> impl Iterator<Item = &Lease> + '_ {
        self.leases.values().filter(move |lease| lease.run.overlaps(run))
    }

    /// The leases that hold any frame of `runs`, oldest first: a drain's second half of the scan.
    pub fn holding<'t>(&'t self, runs: &'t SortedRuns) -> impl Iterator<Item = &'t Lease> {
        self.leases.values().filter(|lease| runs.overlaps(lease.run))
    }

    /// Every lease, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> + '_ {
        self.leases.values()
    }

    /// How many leases there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }
}

impl Lease {
    /// Whether somebody requested reclaim of the frames.
    #[must_use]
    pub const fn is_wanted(&self) -> bool {
        matches!(self.state, LeaseState::Recalled(_) | LeaseState::Quarantined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);

    fn run(first: u64, nr_pages: u64) -> PfnRange {
        PfnRange::new(first, nr_pages).unwrap()
    }

    fn runs(first: u64, nr_pages: u64) -> SortedRuns {
        SortedRuns::new(vec![run(first, nr_pages)])
    }

    fn recall(deadline_ms: u64, past_deadline: PastDeadline) -> Recall {
        Recall { asked_ms: 100, deadline_ms, past_deadline }
    }

    #[test]
    fn a_recall_tells_each_client_once_and_again_only_to_hurry() {
        let mut table = LeaseTable::new();
        let a = table.grant(A, run(0, 512), Agent::Device, 0, None).unwrap();
        table.grant(B, run(512, 512), Agent::Cpu, 0, None).unwrap();
        let told = table.recall(&runs(0, 100), recall(500, PastDeadline::Quarantine));
        assert_eq!(told, [Tell { id: a, client: A, run: run(0, 512), deadline_ms: 500 }]);
        assert!(table.recall(&runs(0, 1), recall(600, PastDeadline::Quarantine)).is_empty());
        assert_eq!(table.recall(&runs(0, 1), recall(400, PastDeadline::Quarantine)).len(), 1);
        assert_eq!(table.next_due_ms(), Some(400));
    }

    #[test]
    fn past_the_deadline_the_frames_are_held_whatever_the_caller_chose() {
        for choice in [PastDeadline::Quarantine, PastDeadline::FailTruncate] {
            let mut table = LeaseTable::new();
            let id = table.grant(A, run(0, 512), Agent::Device, 0, None).unwrap();
            table.recall(&runs(0, 512), recall(500, choice));
            assert!(table.expire(499).is_empty());
            let overdue = table.expire(500);
            match (choice, &overdue[..]) {
                (PastDeadline::Quarantine, [Overdue::Quarantine(lease)])
                | (PastDeadline::FailTruncate, [Overdue::FailTruncate(lease)]) => {
                    assert_eq!(lease.id, id);
                }
                other => panic!("{other:?}"),
            }
            assert!(table.expire(u64::MAX).is_empty(), "reported once");
            assert_eq!(table.overlapping(run(0, 1)).count(), 1, "still held");
            table.release(A, id).unwrap();
            assert!(table.is_empty());
        }
    }

    #[test]
    fn a_lapsed_lease_gets_no_more_time() {
        let mut table = LeaseTable::new();
        table.grant(A, run(0, 1), Agent::Cpu, 0, Some(50)).unwrap();
        assert!(matches!(table.expire(50)[..], [Overdue::Lapsed(_)]));
        assert!(table.expire(60).is_empty());
        let told = table.recall(&runs(0, 1), recall(500, PastDeadline::FailTruncate));
        assert_eq!(told[0].deadline_ms, 100);
    }

    #[test]
    fn death_ends_what_the_processor_held_and_keeps_what_a_device_may_write() {
        let mut table = LeaseTable::new();
        table.grant(A, run(0, 1), Agent::Cpu, 0, None).unwrap();
        let device = table.grant(A, run(1, 1), Agent::Device, 0, None).unwrap();
        table.grant(B, run(2, 1), Agent::Cpu, 0, None).unwrap();
        let bequest = table.client_died(A);
        assert_eq!((bequest.ended.len(), bequest.orphaned.len(), table.len()), (1, 1, 2));
        assert!(
            table.recall(&runs(0, 3), recall(1, PastDeadline::Quarantine)).len() == 1,
            "B only"
        );
        assert_eq!(table.release(A, device), Err(LeaseError::NotYours { id: device }));
        assert_eq!(table.release_stranded(device).unwrap().run, run(1, 1));
        assert!(table.release_stranded(device).is_err());
    }

    #[test]
    fn nobody_gets_a_lease_on_frames_that_are_to_be_reclaimed() {
        let mut table = LeaseTable::new();
        table.grant(A, run(0, 8), Agent::Cpu, 0, None).unwrap();
        table.recall(&runs(0, 1), recall(500, PastDeadline::FailTruncate));
        let refused = table.grant(B, run(7, 1), Agent::Cpu, 0, None);
        assert_eq!(refused.map_err(|e| e.errno()), Err(errno::EBUSY));
        table.call_off(&runs(0, 1));
        assert!(table.grant(B, run(7, 1), Agent::Cpu, 0, None).is_ok());
        assert!(table.grant(B, run(7, 1), Agent::Cpu, 9, Some(9)).is_err());
    }

    #[test]
    fn a_lease_ends_once_and_by_its_own_client() {
        let mut table = LeaseTable::new();
        let id = table.grant(A, run(0, 8), Agent::Cpu, 0, None).unwrap();
        assert!(table.release(B, id).is_err());
        assert!(table.release_stranded(id).is_err(), "nobody is stranded");
        assert!(table.release(A, id).is_ok());
        assert!(table.release(A, id).is_err());
    }
}
