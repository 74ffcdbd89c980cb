//! Clients: their ledgers, how one attaches, and what is done when it dies.
//!
//! A client is alive while its process is. That is never judged by a number: the socket's end or
//! the pidfd's event says that something ended, and a free lock on the ledger, or the pidfd, that
//! the process did (T6). Until then its holds stand, whatever its socket does.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use pgmap_mm::barrier::BarrierMode;
use pgmap_mm::drain::{ClientId, Held};
use pgmap_mm::ledger::{Agent, LedgerReader, ScanPlace};
use pgmap_mm::runs::SortedRuns;
use pgmap_mm::used::UsedReader;
use pgmap_os::{FileAccess, MemoryFile, OsError, ReadMapping, disk, process};

use crate::error::Error;
use crate::memory::{LedgerCounts, LedgerWords};
use crate::owner::core::Core;
use crate::owner::scans::STEP_SLOTS;
use crate::pool::Durability;
use crate::pool::catalog::Change;
use crate::wire::Welcome;

/// One client's ledger as the owner reads it.
pub(crate) type Ledger = LedgerReader<LedgerWords, LedgerCounts>;

/// What a client says that it used, as the owner reads it.
pub(crate) type Used = UsedReader<LedgerCounts>;

/// Whose client it is.
#[derive(Debug)]
pub struct ClientIdentity {
    /// The process, for people to read.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its name.
    pub command: String,
    /// What the client calls itself.
    pub label: String,
    /// Whether it attached read-only.
    pub is_read_only: bool,
    /// Tells when it ends; `None` for a client in the owner's own process.
    pub pidfd: Option<OwnedFd>,
}

impl ClientIdentity {
    /// This process.
    #[must_use]
    pub fn own() -> Self {
        let pid = i32::try_from(pgmap_os::process::id()).unwrap_or(0);
        Self {
            pid,
            uid: process::effective_uid(),
            command: process::command_name(pid).unwrap_or_default(),
            label: crate::client::options::default_label(),
            is_read_only: false,
            pidfd: None,
        }
    }
}

/// One client, in the owner's books.
#[derive(Debug)]
pub(crate) struct ClientRecord {
    pub identity: ClientIdentity,
    pub ledger: Ledger,
    /// What it says that it used.
    pub used: Used,
    /// The owner's own description of the ledger's file, to ask about the client's lock.
    pub file: Arc<MemoryFile>,
    /// Whether it has a connection, or is a client of this process.
    pub is_connected: bool,
    /// The frames that it may hold, once its ledger cannot be read any more.
    pub may_hold: Option<SortedRuns>,
    /// How far the ledger was read of a client that is dead. Until all of it was, its holds stand.
    pub burial: Option<ScanPlace>,
}

/// What a client is handed when it attaches.
#[derive(Debug)]
pub struct Attachment {
    /// The events for it.
    pub welcome: Welcome,
    /// Its ledger: a description of its own, locked.
    pub ledger: OwnedFd,
}

/// Whether a process, or the system, has no descriptor left.
pub(crate) fn is_out_of_descriptors(error: &Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(error, Error::Os(error) if [EMFILE, ENFILE].contains(&error.errno()))
}

impl Core {
    /// Takes a new client in.
    ///
    /// # Errors
    /// [`Refusal::Full`]; [`Error::Os`] when its ledger cannot be made.
    pub fn attach(
        &mut self,
        identity: ClientIdentity,
        is_registered: bool,
    ) -> Result<(ClientId, Attachment), Error> {
        if self.clients.len() + self.subscribers.places() >= self.clients.limit() {
            return Err(self.clients.full().into());
        }
        self.check_client_quota(identity.uid)?;
        let id = ClientId(self.frames.take_stamp()?.number());
        let (file, theirs) = self.pool.make_ledger(id.0)?;
        // Where this fails the ledger stays: the catalog may have it, and nobody ever attached by
        // it.
        self.pool.enrol(id.0, identity.pid, &file)?;
        let file = Arc::new(file);
        self.pool.keep_spare_ledger();
        let welcome = self.welcome(id, is_registered);
        let (ledger, used) = self.map_ledger(&file)?;
        let ledger = ledger.in_mode(welcome.barrier_mode());
        let record = ClientRecord {
            identity,
            ledger,
            used,
            file,
            is_connected: true,
            may_hold: None,
            burial: None,
        };
        self.clients.insert(id, record);
        Ok((id, Attachment { welcome, ledger: theirs }))
    }

    pub(crate) fn map_ledger(&self, file: &Arc<MemoryFile>) -> Result<(Ledger, Used), Error> {
        let layout = self.pool.ledger_layout();
        let parts = self.pool.ledger_file();
        let words = ReadMapping::map(file, 0, parts.words_bytes)?;
        let counts = ReadMapping::map(file, parts.words_bytes, parts.counts_bytes)?;
        let used = ReadMapping::map(file, parts.used_start, parts.used_bytes)?;
        let whole_bytes = parts.len_bytes;
        let used = LedgerCounts::new(used, file, parts.used_start, whole_bytes);
        let words = LedgerWords::new(words, file, 0, whole_bytes);
        let counts = LedgerCounts::new(counts, file, parts.words_bytes, whole_bytes);
        let ledger = LedgerReader::new(layout, words, counts).ok_or_else(|| Error::BadPool {
            pool: "ledger".into(),
            why: format!("{} is too short", file.name()),
        })?;
        Ok((ledger, UsedReader::new(parts.used, used)))
    }

    /// Whether a client attached read-only.
    pub(crate) fn is_read_only(&self, id: ClientId) -> bool {
        self.clients.get(id).is_some_and(|client| client.identity.is_read_only)
    }

    /// How a client's descriptors of the pool's memory are open.
    pub(crate) fn access_of(&self, id: ClientId) -> FileAccess {
        match self.is_read_only(id) {
            true => FileAccess::ReadOnly,
            false => FileAccess::ReadWrite,
        }
    }

    /// What a client gets to know of the pool.
    #[must_use]
    pub fn welcome(&self, id: ClientId, is_registered: bool) -> Welcome {
        Welcome {
            version: crate::wire::VERSION,
            client: id.0,
            nr_pages: self.pool.vmemmap_layout.nr_pages(),
            data_bytes: self.pool.capacity_bytes(),
            span_bytes: self.pool.span_bytes(),
            vmemmap_start: self.pool.vmemmap_start(),
            smallest_level: self.frames.smallest().number(),
            max_files: self.pool.max_files(),
            is_asymmetric: self.barrier.is_asymmetric() && is_registered,
            is_flushed: self.pool.durability() == Durability::PowerFailure,
        }
    }

    /// Takes a dead client, or one that left, off the books: its drafts are given up, its holds are
    /// gone, except that frames a device of it may still write to are noted as orphaned. Whoever
    /// left millions of holds behind is read in steps.
    pub fn reap(&mut self, id: ClientId) {
        if !self.clients.begin_burial(id) {
            return;
        }
        self.bury_some();
        self.stock.forget(id);
        let drafts = self.files.take_drafts_of(id);
        self.retire_drafts(drafts);
        self.reap_leases(id);
        self.end_subscriptions(id);
        self.look_again();
    }

    /// Reads a step's worth of the ledgers of the dead.
    pub(crate) fn bury_some(&mut self) {
        let everything = SortedRuns::covering(self.pool.vmemmap_layout.nr_pages());
        let mut left = STEP_SLOTS;
        while let Some(step) = self.clients.bury_some(&everything, &mut left) {
            // A hold of a free folio is one that its check was about to undo: nobody was let in by
            // it.
            self.frames.orphan(step.client, step.device_holds.iter(), false);
            match step.ended {
                Some(client) => self.end_burial(step.client, client),
                None => return,
            }
        }
    }

    /// All that a dead client's ledger said was read.
    fn end_burial(&mut self, id: ClientId, client: ClientRecord) {
        let may_hold = self.may_still_hold(&client);
        self.frames.orphan(id, may_hold.iter(), false);
        if self.frames.has_orphans(id) {
            self.dead.keep(id, &client);
        } else {
            self.remove_ledger(id);
        }
        self.evictables.client_left(client.used);
        // Whoever waited for it need wait no longer.
        self.drains.look_at_all();
    }

    /// Finds clients whose ledgers turned out to be unreadable, and has them cut off. What such a
    /// ledger said is not known, so from now on its client may hold every frame that is in use now
    /// (docs/adr/0053-a-lost-ledger-holds.md).
    pub(crate) fn find_lost_ledgers(&mut self) {
        // What was cut off inside a page reads as zero, so the length is asked for as well. A memfd
        // is sealed, and keeps it.
        let whole_bytes = match self.pool.directory() {
            Some(_) => self.pool.ledger_file().len_bytes,
            None => 0,
        };
        let lost = self.clients.find_lost_ledgers(whole_bytes);
        for id in lost {
            tracing::error!(
                client = %self.clients.describe(id),
                "its ledger was cut short: it is cut off, and may hold what is in use now"
            );
            let in_use = self.frames.all_in_use();
            self.clients.cut_off(id, in_use);
        }
    }

    /// The holds on any of `runs` of clients whose ledgers cannot be read.
    pub(crate) fn lost_holds(&mut self, runs: &SortedRuns) -> Vec<Held> {
        self.find_lost_ledgers();
        self.clients.lost_holds(runs)
    }

    /// The frames that a device of a dead client may still write to beside those of which its
    /// ledger says so.
    fn may_still_hold(&self, client: &ClientRecord) -> SortedRuns {
        let whole_bytes = self.pool.ledger_file().len_bytes;
        match &client.may_hold {
            Some(may_hold) => may_hold.clone(),
            None if client.ledger.is_lost() || client.file.len_bytes() < whole_bytes => {
                self.frames.all_in_use()
            }
            None => SortedRuns::default(),
        }
    }

    /// Removes a dead client's ledger from the pool's directory. As long as its devices may write,
    /// the ledger stays, so that a restarted owner knows of them too.
    pub(crate) fn remove_ledger(&self, id: ClientId) {
        if let Err(refusal) = self.pool.record(&[Change::Left(id.0)]) {
            // The next owner finds it, and that its client is dead.
            tracing::warn!(
                client = id.0,
                %refusal,
                "a ledger is kept: the roster cannot be changed"
            );
            return;
        }
        if let Some(path) = self.pool.ledger_path(id.0)
            && let Err(error) = disk::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a ledger could not be removed");
        }
        self.pool.keep_spare_ledger();
    }
}

/// A descriptor of `file` for a client. One to read is of another description, for which the kernel
/// maps nothing that can be written.
pub(crate) fn handle_of(file: &MemoryFile, access: FileAccess) -> Result<OwnedFd, OsError> {
    match access {
        FileAccess::ReadOnly => file.reopen_handle(access),
        FileAccess::ReadWrite => file.try_clone_fd(),
    }
}

/// The frames that a device may still write to because of `ledger`, each once. It may say anything.
pub(crate) fn device_holds(ledger: &Ledger) -> SortedRuns {
    let holds = ledger.all_holds().into_iter();
    holds.filter(|hold| hold.agent == Agent::Device).map(|hold| hold.run).collect()
}

impl Welcome {
    /// How the client must order its stores before its loads.
    pub(crate) const fn barrier_mode(&self) -> BarrierMode {
        if self.is_asymmetric { BarrierMode::Asymmetric } else { BarrierMode::Fenced }
    }
}
