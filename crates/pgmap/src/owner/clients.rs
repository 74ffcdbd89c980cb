//! Clients: their ledgers, how one attaches, and what is done when it dies.
//!
//! A client is alive while its process is. That is never judged by a number: the socket's end or the
//! pidfd's event says that something ended, and a free lock on the ledger, or the pidfd, that the
//! process did (T6). Until then its holds stand, whatever its socket does.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use pgmap_mm::barrier::BarrierMode;
use pgmap_mm::drain::ClientId;
use pgmap_mm::ledger::{Agent, LedgerReader};
use pgmap_mm::runs::SortedRuns;
use pgmap_os::{MemoryFile, ReadMapping, file_lock, process};

use crate::error::Error;
use crate::memory::{Readable, ReadableCounts};
use crate::owner::core::Core;
use crate::pool::LedgerFile;
use crate::wire::Welcome;

/// One client's ledger as the owner reads it.
pub(crate) type Ledger = LedgerReader<Readable, ReadableCounts>;

/// Whose client it is.
#[derive(Debug)]
pub struct Identity {
    /// The process, for people to read.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its name.
    pub command: String,
    /// Tells when it ends; none for a client in the owner's own process.
    pub pidfd: Option<OwnedFd>,
}

impl Identity {
    /// This process.
    #[must_use]
    pub fn own() -> Self {
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        Self {
            pid,
            uid: rustix_uid(),
            command: process::command_name(pid).unwrap_or_default(),
            pidfd: None,
        }
    }
}

fn rustix_uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").map_or(0, |metadata| metadata.uid())
}

/// One client, in the owner's books.
#[derive(Debug)]
pub(crate) struct ClientRecord {
    pub identity: Identity,
    pub ledger: Ledger,
    /// The owner's own description of the ledger's file, to ask about the client's lock.
    pub file: MemoryFile,
}

/// What a client is handed when it attaches.
#[derive(Debug)]
pub struct Attachment {
    /// What it is told.
    pub welcome: Welcome,
    /// Its ledger: a description of its own, locked.
    pub ledger: OwnedFd,
}

impl Core {
    /// Takes a new client in.
    ///
    /// # Errors
    /// [`Error::Os`] when its ledger cannot be made.
    pub fn attach(
        &mut self,
        identity: Identity,
        is_registered: bool,
    ) -> Result<(ClientId, Attachment), Error> {
        let id = ClientId(self.frames.take_stamp()?.number());
        let (file, theirs) = self.pool.make_ledger(id.0)?;
        self.pool.keep_spare_ledger();
        let welcome = self.welcome(id, is_registered);
        let ledger = self.map_ledger(&file)?.in_mode(welcome.barrier_mode());
        self.clients.insert(id, ClientRecord { identity, ledger, file });
        Ok((id, Attachment { welcome, ledger: theirs }))
    }

    pub(crate) fn map_ledger(&self, file: &MemoryFile) -> Result<Ledger, Error> {
        let layout = self.pool.ledger_layout();
        let parts = LedgerFile::new(&layout);
        let words = ReadMapping::map(file, 0, parts.words_bytes)?;
        let counts = ReadMapping::map(file, parts.words_bytes, parts.counts_bytes)?;
        LedgerReader::new(layout, Readable(words), ReadableCounts(counts)).ok_or_else(|| {
            Error::BadPool { pool: "ledger".into(), why: format!("{} is too short", file.name()) }
        })
    }

    /// What a client is told of the pool.
    #[must_use]
    pub fn welcome(&self, id: ClientId, is_registered: bool) -> Welcome {
        Welcome {
            version: crate::wire::VERSION,
            client: id.0,
            nr_pages: self.pool.vmemmap_layout.nr_pages(),
            data_bytes: self.pool.capacity_bytes(),
            vmemmap_start: self.pool.head.map_or(0, |head| head.vmemmap_start),
            smallest_level: self.frames.smallest().number(),
            max_files: self.pool.max_files(),
            is_asymmetric: self.barrier.is_asymmetric() && is_registered,
        }
    }

    /// Whether a client whose connection ended is certainly dead: its ledger's lock is free or its
    /// process has ended. A live one keeps its holds.
    #[must_use]
    pub fn is_dead(&self, id: ClientId) -> bool {
        let Some(client) = self.clients.get(&id) else { return true };
        if let Some(pidfd) = &client.identity.pidfd
            && process::pidfd_has_exited(pidfd.as_fd())
        {
            return true;
        }
        // An error here is no proof of death.
        matches!(file_lock::is_locked(&client.file), Ok(false))
    }

    /// Takes a dead client, or one that left, off the books: its drafts are given up, its holds are
    /// gone, except that frames a device of it may still write to are noted as orphaned.
    pub fn reap(&mut self, id: ClientId) {
        let Some(client) = self.clients.remove(&id) else { return };
        // A hold of a free folio is one that its check was about to undo: nobody was let in by it.
        self.frames.orphan(id, device_holds(&client.ledger).iter(), false);
        if !self.frames.has_orphans(id) {
            self.remove_ledger(id);
        }
        let (drafts, others) =
            std::mem::take(&mut self.drafts).into_iter().partition(|(_, draft)| draft.client == id);
        self.drafts = others;
        let drafts: BTreeMap<_, _> = drafts;
        self.retire_drafts(drafts.into_values().collect());
        self.reap_leases(id);
        self.look_again();
    }

    /// Removes a dead client's ledger from the pool's directory. As long as its devices may write,
    /// the ledger stays, so that a restarted owner knows of them too.
    pub(crate) fn remove_ledger(&self, id: ClientId) {
        if let Some(path) = self.pool.ledger_path(id.0)
            && let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a ledger could not be removed");
        }
        self.pool.keep_spare_ledger();
    }

    /// Clients that have a ledger and no connection: those of an earlier owner.
    #[must_use]
    pub fn clients_adrift(&self) -> Vec<ClientId> {
        self.clients.keys().copied().collect()
    }

    /// A watch on a client's process.
    #[must_use]
    pub fn pidfd_of(&self, id: ClientId) -> Option<OwnedFd> {
        self.clients.get(&id)?.identity.pidfd.as_ref()?.try_clone().ok()
    }

    /// A client's process number and name, for logs.
    #[must_use]
    pub fn describe_client(&self, id: ClientId) -> String {
        self.clients.get(&id).map_or_else(
            || format!("client {}", id.0),
            |client| format!("{} (pid {})", client.identity.command, client.identity.pid),
        )
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
