//! Dead clients whose devices may still write, and how it is known that they do not.
//!
//! A transfer outlives the process that began it, and nobody tells when it ends. So frames that a
//! dead client held for a device stay *orphaned*: they are detached before anybody else gets them,
//! and where the memory cannot be detached, as on a device, they are quarantined (ADR 0006). Two
//! things end that earlier:
//!
//! - **The ledger's lock is free**, of a client that promised that its devices keep it
//!   ([`Client::transfer_lock`](crate::Client::transfer_lock), ADR 0075). The lock belongs to an
//!   open file description. An io_uring in which that is registered keeps it open until its last
//!   transfer has ended, whoever else has the ring: a forked child, or a process that was sent it.
//! - **An operator says so** ([`Client::release_quarantine`](crate::Client::release_quarantine)).
//!
//! # Invariants
//! A client is here while frames are orphaned because of it, and no longer has a record among the
//! [clients](crate::owner::client_table).
//!
//! # Who may touch what
//! The owner alone, under its lock.
//!
//! # Lost races
//! *A transfer begun after the lock was seen to be free.* There is none: the client is dead, so
//! nobody could take the lock again, and a ring that had it would have kept it.

use std::collections::BTreeMap;
use std::sync::Arc;

use pgmap_mm::drain::ClientId;
use pgmap_os::{MemoryFile, clock, file_lock};

use crate::owner::clients::{ClientIdentity, ClientRecord};
use crate::owner::core::bytes;
use crate::owner::drains::STEP_HOLDS;
use crate::owner::frames::PoolFrames;
use crate::refusal::Refusal;
use crate::wire::{DeadClient, MAX_LIST, Reply};

/// A dead client that held frames for devices.
#[derive(Debug)]
pub(crate) struct DeadRecord {
    pid: i32,
    command: String,
    /// When it was found dead; `None` if an earlier owner found it.
    since_ms: Option<u64>,
    /// Its ledger, if its devices keep the lock of that for as long as they can write.
    locked: Option<Arc<MemoryFile>>,
    /// Its devices can write no more: its frames are given up in steps.
    is_ending: bool,
}

impl DeadRecord {
    /// Whether a device keeps the lock. An error is no proof that none does.
    fn is_locked(&self) -> bool {
        self.locked.as_ref().is_some_and(|file| !matches!(file_lock::is_locked(file), Ok(false)))
    }
}

/// Dead clients with orphaned frames.
#[derive(Debug, Default)]
pub(crate) struct DeadClients {
    records: BTreeMap<ClientId, DeadRecord>,
}

impl ClientRecord {
    /// Whether it is known that no device of this client, which is dead, can write any more.
    pub(crate) fn have_transfers_ended(&self) -> bool {
        self.may_hold.is_none()
            && self.ledger.do_transfers_keep_lock()
            && matches!(file_lock::is_locked(&self.file), Ok(false))
    }
}

impl DeadClients {
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = ClientId> {
        self.records.keys().copied()
    }

    /// Keeps what is known of a dead client as long as it has orphaned frames.
    pub(crate) fn keep(&mut self, id: ClientId, client: &ClientRecord) {
        let do_keep = client.may_hold.is_none() && client.ledger.do_transfers_keep_lock();
        let locked = do_keep.then(|| Arc::clone(&client.file));
        let ClientIdentity { pid, command, .. } = &client.identity;
        let (pid, command, since_ms) = (*pid, command.clone(), Some(clock::monotonic_ms()));
        let is_ending = client.have_transfers_ended();
        self.records.insert(id, DeadRecord { pid, command, since_ms, locked, is_ending });
    }

    /// Keeps a client that an earlier owner, or nobody, saw die, and of which only `pid` may be
    /// known.
    pub(crate) fn keep_from_before(&mut self, id: ClientId, pid: Option<i32>) {
        let command = pid.map_or("(not known)", |_| "(of an earlier owner)").to_owned();
        let pid = pid.unwrap_or(0);
        let dead = DeadRecord { pid, command, since_ms: None, locked: None, is_ending: false };
        self.records.insert(id, dead);
    }

    /// Whether the end of a dead client's transfers is yet to be seen, or to be followed.
    pub(crate) fn awaits_transfers(&self) -> bool {
        self.records.values().any(|dead| dead.locked.is_some() || dead.is_ending)
    }

    /// Finds dead clients whose transfers have ended, and gives up a step's worth of the frames
    /// that are kept for them.
    pub(crate) fn end_transfers(&mut self, frames: &mut PoolFrames) {
        let mut left = STEP_HOLDS;
        for (&id, dead) in &mut self.records {
            if dead.locked.is_some() && !dead.is_ending && !dead.is_locked() {
                tracing::info!(client = id.0, pid = dead.pid, "its last transfer has ended");
                dead.is_ending = true;
            }
            if dead.is_ending && left > 0 {
                left = frames.end_orphans(id, left);
            }
        }
        self.records.retain(|&id, _| frames.has_orphans(id));
    }

    /// Which dead clients' devices may still write, at most [`MAX_LIST`] after client `after`.
    pub(crate) fn list(&self, after: Option<u64>, frames: &PoolFrames) -> Reply {
        let from = after.map_or(0, |after| after.saturating_add(1));
        let now_ms = clock::monotonic_ms();
        let dead = self.records.range(ClientId(from)..).take(MAX_LIST);
        let describe = |(&id, dead): (&ClientId, &DeadRecord)| {
            let (orphaned, quarantined) = frames.orphans_of(id);
            DeadClient {
                client: id.0,
                pid: dead.pid,
                command: dead.command.clone(),
                orphaned_bytes: bytes(orphaned),
                quarantined_bytes: bytes(quarantined),
                dead_for_ms: dead.since_ms.map(|since_ms| now_ms.saturating_sub(since_ms)),
                is_transferring: dead.is_locked(),
            }
        };
        Reply::Quarantine(dead.map(describe).collect())
    }

    /// Believes that no device of a dead client can write any more.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] when there is no such client, or it is known that one can.
    pub(crate) fn release(&mut self, client: u64) -> Result<Reply, Refusal> {
        let Some(dead) = self.records.get_mut(&ClientId(client)) else {
            let why = format!("no device of a dead client {client} is waited for");
            return Err(Refusal::Invalid { why });
        };
        if dead.is_locked() {
            let why = format!(
                "a ring of client {client} (pid {}) is open and may be writing: end the processes \
                 that share it",
                dead.pid
            );
            return Err(Refusal::Invalid { why });
        }
        dead.is_ending = true;
        tracing::warn!(client, pid = dead.pid, "its transfers have ended, an operator says");
        Ok(Reply::Done)
    }
}
