//! Leases in the owner's books: those that were granted, and those that wait for the pool's holder.
//!
//! # Invariants
//!
//! - What was asked for as one is granted whole or not at all.
//! - A lease that waits has one question open, which is its key; when that is answered the lease is
//!   taken out, and put back with its next question or not at all.
//! - Nothing is kept of a client that died. Its ledger's slots say which frames its devices may
//!   still write to.

use pgmap_mm::drain::ClientId;
use pgmap_mm::holder::QuestionId;
use pgmap_mm::lease::{Lease, LeaseError, LeaseId, LeaseTable, Recall, Tell};
use pgmap_mm::ledger::Agent;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;

use crate::owner::core::Ticket;
use crate::wire::LeaseSpec;

/// A lease that waits for the holder's answer about one run after another.
#[derive(Debug)]
pub(crate) struct PendingLease {
    pub ticket: Ticket,
    pub client: ClientId,
    pub spec: LeaseSpec,
    pub question: QuestionId,
    /// Runs the holder has not been asked about yet.
    pub left: Vec<PfnRange>,
    /// The shortest time granted so far.
    pub until_ms: Option<u64>,
}

/// The leases of a pool.
#[derive(Debug)]
pub(crate) struct LeaseBook {
    table: LeaseTable,
    waiting: Vec<PendingLease>,
}

impl LeaseBook {
    pub(crate) fn new() -> Self {
        Self { table: LeaseTable::new(), waiting: Vec::new() }
    }

    /// Grants a lease of each of `runs`, in order.
    ///
    /// # Errors
    /// The table's, and then none was granted.
    pub(crate) fn grant(
        &mut self,
        client: ClientId,
        runs: impl Iterator<Item = PfnRange>,
        agent: Agent,
        now_ms: u64,
        until_ms: Option<u64>,
    ) -> Result<Vec<LeaseId>, LeaseError> {
        let mut granted = Vec::new();
        for run in runs {
            match self.table.grant(client, run, agent, now_ms, until_ms) {
                Ok(id) => granted.push(id),
                Err(error) => {
                    for id in granted {
                        let _ = self.table.release(client, id);
                    }
                    return Err(error);
                }
            }
        }
        Ok(granted)
    }

    /// # Errors
    /// The table's, if the client has no such lease.
    pub(crate) fn release(&mut self, client: ClientId, id: LeaseId) -> Result<(), LeaseError> {
        self.table.release(client, id).map(drop)
    }

    /// Recalls the leases of any of `runs`. Returns which clients are to be notified.
    pub(crate) fn recall(&mut self, runs: &SortedRuns, recall: Recall) -> Vec<Tell> {
        self.table.recall(runs, recall)
    }

    /// Undoes the recall of leases of any of `runs`.
    pub(crate) fn call_off_recall(&mut self, runs: &SortedRuns) {
        self.table.call_off(runs);
    }

    /// Lets leases lapse. A recall's deadline is the cut's own, which answers; here the table only
    /// takes note.
    pub(crate) fn expire(&mut self, now_ms: u64) {
        drop(self.table.expire(now_ms));
    }

    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        self.table.next_due_ms()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.table.iter()
    }

    /// Whether any of `runs` is leased.
    pub(crate) fn is_leased(&self, runs: &SortedRuns) -> bool {
        self.table.holding(runs).next().is_some()
    }

    /// Keeps a lease that waits for the answer to its question.
    pub(crate) fn wait(&mut self, lease: PendingLease) {
        self.waiting.push(lease);
    }

    /// Takes out the lease that waits for the answer to `question`.
    pub(crate) fn take_waiting(&mut self, question: QuestionId) -> Option<PendingLease> {
        let place = self.waiting.iter().position(|lease| lease.question == question)?;
        Some(self.waiting.swap_remove(place))
    }

    /// Drops the lease for which nobody waits any more.
    pub(crate) fn drop_waiting(&mut self, ticket: Ticket) {
        self.waiting.retain(|lease| lease.ticket != ticket);
    }

    pub(crate) fn client_died(&mut self, client: ClientId) {
        self.waiting.retain(|lease| lease.client != client);
        for lease in self.table.client_died(client).orphaned {
            let _ = self.table.release_stranded(lease.id);
        }
    }
}
