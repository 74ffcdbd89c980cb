//! The clients of a pool in the owner's books, until all that their ledgers say was read.
//!
//! # Invariants
//!
//! - A client has a record while a drain must look at its ledger: from when it attaches, or is
//!   found by a later owner, until it is dead and all of its ledger was read. Who is buried stays
//!   here.
//! - `burials` has each client once whose record has a `burial`, in the order in which they died.
//! - A client whose ledger cannot be read has `may_hold`, for good. It is handed out once to be cut
//!   off.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

use pgmap_mm::drain::{ClientId, Held};
use pgmap_mm::ledger::{Agent, Hold, HoldPlace, ScanPlace};
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;
use pgmap_os::{file_lock, process};

use crate::owner::clients::{ClientRecord, Ledger};
use crate::refusal::Refusal;

/// Most clients at a time, however many descriptors there are: a drain looks into every ledger.
const MAX_CLIENTS: u64 = 4096;
/// Descriptors of an owner per client: its connection, its ledger, and two watches on its process.
const FDS_PER_CLIENT: u64 = 4;
/// Descriptors that are left for everything else, of many and of few: what a client is handed is
/// open twice for a moment, and newcomers are heard before they are clients.
const FDS_KEPT: std::ops::RangeInclusive<u64> = 8..=64;

/// The clients that have ledgers.
#[derive(Debug)]
pub(crate) struct ClientTable {
    records: BTreeMap<ClientId, ClientRecord>,
    /// Dead clients whose ledgers are still to be read.
    burials: VecDeque<ClientId>,
    /// Clients whose connections are to end.
    cut_off: Vec<ClientId>,
    limit: u64,
}

/// What one step read of the ledger of a dead client.
#[derive(Debug)]
pub(crate) struct BurialStep {
    pub client: ClientId,
    /// What it says that devices hold.
    pub device_holds: SortedRuns,
    /// The client's record, once all was read.
    pub ended: Option<ClientRecord>,
}

impl ClientTable {
    pub(crate) const fn new() -> Self {
        Self {
            records: BTreeMap::new(),
            burials: VecDeque::new(),
            cut_off: Vec::new(),
            limit: MAX_CLIENTS,
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.records.len() as u64
    }

    /// Most clients at a time.
    pub(crate) const fn limit(&self) -> u64 {
        self.limit
    }

    /// Takes no more clients from now on than `nr_descriptors` further descriptors allow. Says
    /// whether that is any at all.
    pub(crate) fn set_limit(&mut self, nr_descriptors: u64) -> bool {
        let kept = (nr_descriptors / 4).clamp(*FDS_KEPT.start(), *FDS_KEPT.end());
        let room = nr_descriptors.saturating_sub(kept) / FDS_PER_CLIENT;
        self.limit = (self.len() + room).min(MAX_CLIENTS);
        room > 0
    }

    /// The refusal of a newcomer for whom there is no room.
    pub(crate) fn full(&self) -> Refusal {
        let is_disconnected = |client: &&ClientRecord| !client.is_connected;
        Refusal::Full {
            nr_clients: self.len(),
            limit: self.limit,
            nr_disconnected: self.values().filter(is_disconnected).count() as u64,
        }
    }

    pub(crate) fn insert(&mut self, id: ClientId, record: ClientRecord) {
        self.records.insert(id, record);
    }

    pub(crate) fn get(&self, id: ClientId) -> Option<&ClientRecord> {
        self.records.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: ClientId) -> Option<&mut ClientRecord> {
        self.records.get_mut(&id)
    }

    pub(crate) fn contains(&self, id: ClientId) -> bool {
        self.records.contains_key(&id)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = ClientId> {
        self.records.keys().copied()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &ClientRecord> {
        self.records.values()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ClientId, &ClientRecord)> {
        self.records.iter().map(|(&id, record)| (id, record))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (ClientId, &mut ClientRecord)> {
        self.records.iter_mut().map(|(&id, record)| (id, record))
    }

    /// The ledgers of `next` and later clients.
    pub(crate) fn ledgers_from(&self, next: ClientId) -> impl Iterator<Item = (ClientId, &Ledger)> {
        self.records.range(next..).map(|(&id, client)| (id, &client.ledger))
    }

    /// All ledgers.
    pub(crate) fn ledgers(&self) -> impl Iterator<Item = (ClientId, &Ledger)> {
        self.ledgers_from(ClientId(0))
    }

    /// Whether a client whose connection ended is certainly dead: its ledger's lock is free or its
    /// process has ended. A live one keeps its holds.
    pub(crate) fn is_dead(&self, id: ClientId) -> bool {
        let Some(client) = self.get(id) else { return true };
        if let Some(pidfd) = &client.identity.pidfd
            && process::pidfd_has_exited(pidfd.as_fd())
        {
            return true;
        }
        // An error here is no proof of death.
        matches!(file_lock::is_locked(&client.file), Ok(false))
    }

    /// Takes note that a client has no connection any more and lives on.
    pub(crate) fn set_disconnected(&mut self, id: ClientId) {
        if let Some(client) = self.get_mut(id) {
            client.is_connected = false;
        }
    }

    /// A watch on a client's process.
    pub(crate) fn pidfd_of(&self, id: ClientId) -> Option<OwnedFd> {
        self.get(id)?.identity.pidfd.as_ref()?.try_clone().ok()
    }

    /// A client's process number and name, for logs.
    pub(crate) fn describe(&self, id: ClientId) -> String {
        self.get(id).map_or_else(
            || format!("client {}", id.0),
            |client| format!("{} (pid {})", client.identity.command, client.identity.pid),
        )
    }

    /// Has the ledger of a client read that is dead, or left. Says whether this was news.
    pub(crate) fn begin_burial(&mut self, id: ClientId) -> bool {
        let Some(client) = self.records.get_mut(&id) else { return false };
        if client.burial.is_some() {
            return false;
        }
        client.burial = Some(ScanPlace::default());
        client.is_connected = false;
        self.burials.push_back(id);
        true
    }

    /// Whether ledgers of dead clients are still to be read.
    pub(crate) fn has_burials(&self) -> bool {
        !self.burials.is_empty()
    }

    /// Reads on in the ledger of the first of the dead, at most `left` slots, for holds of
    /// `everything`.
    pub(crate) fn bury_some(
        &mut self,
        everything: &SortedRuns,
        left: &mut usize,
    ) -> Option<BurialStep> {
        let &id = self.burials.front()?;
        let mut runs = Vec::new();
        let is_read = self.records.get_mut(&id).is_none_or(|client| {
            let place = client.burial.get_or_insert_default();
            client.ledger.scan_on(everything, place, left, |hold| {
                if hold.agent == Agent::Device {
                    runs.push(hold.run);
                }
            })
        });
        let ended = if is_read {
            self.burials.pop_front();
            self.records.remove(&id)
        } else {
            None
        };
        Some(BurialStep { client: id, device_holds: SortedRuns::new(runs), ended })
    }

    /// Clients whose ledgers turned out to be unreadable, or shorter than `whole_bytes`.
    pub(crate) fn find_lost_ledgers(&self, whole_bytes: u64) -> Vec<ClientId> {
        let is_lost = |client: &ClientRecord| {
            client.may_hold.is_none()
                && (client.ledger.is_lost()
                    || (whole_bytes > 0 && client.file.len_bytes() < whole_bytes))
        };
        self.iter().filter(|(_, client)| is_lost(client)).map(|(id, _)| id).collect()
    }

    /// Has the connection of a client ended whose ledger cannot be read: it may hold `in_use`.
    pub(crate) fn cut_off(&mut self, id: ClientId, in_use: SortedRuns) {
        if let Some(client) = self.get_mut(id) {
            client.may_hold = Some(in_use);
        }
        self.cut_off.push(id);
    }

    /// Clients whose connections are to end.
    pub(crate) fn take_cut_off(&mut self) -> Vec<ClientId> {
        std::mem::take(&mut self.cut_off)
    }

    /// The holds on any of `runs` of clients whose ledgers cannot be read.
    pub(crate) fn lost_holds(&self, runs: &SortedRuns) -> Vec<Held> {
        let mut held = Vec::new();
        if self.values().all(|client| client.may_hold.is_none()) {
            return held;
        }
        for (client, record) in self.iter() {
            let Some(may_hold) = &record.may_hold else { continue };
            for run in runs.iter() {
                let parts = may_hold.iter().filter_map(|part| part.intersection(run));
                held.extend(parts.map(|run| held_by_lost(client, run)));
            }
        }
        held
    }
}

const fn held_by_lost(client: ClientId, run: PfnRange) -> Held {
    let (place, agent) = (HoldPlace::Lost, Agent::Device);
    Held { client, hold: Hold { place, run, agent, nr_pins: 1, tag: 0 } }
}
