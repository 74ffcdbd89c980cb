//! Recovery: what an owner finds that a predecessor left, killed at any step.
//!
//! The catalog says which frames are files (I10). A ledger whose lock is free is a dead client's and
//! is removed; one whose lock is held is a live client's, whose holds stand although it has no
//! connection yet. Every frame that no file has and whose descriptor is not Free was on its way
//! somewhere: it is drained like any other, and so freed when no live ledger holds it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use pgmap_mm::barrier::BarrierMode;
use pgmap_mm::drain::ClientId;
use pgmap_mm::index::{EntryId, FileId};
use pgmap_mm::level::Level;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;
use pgmap_os::{Access, MemoryFile, file_lock};

use crate::error::Error;
use crate::name::FileName;
use crate::owner::catalog::{Change, StoredFile};
use crate::owner::clients::{ClientRecord, Identity, device_holds};
use crate::owner::core::{Core, FileRecord};
use crate::wire::MAX_BATCH;

impl Core {
    /// Puts the books in order from the pool's files. Whose a frame is comes first: only then can
    /// anybody say which holds of the dead concern frames that are in use.
    pub(crate) fn recover(&mut self) -> Result<(), Error> {
        let (files, failed, open_tails) = match &self.pool.catalog {
            Some(catalog) => {
                (catalog.files()?, catalog.poisoned().to_vec(), catalog.open_tails().to_vec())
            }
            None => (BTreeMap::new(), Vec::new(), Vec::new()),
        };
        let ledgers = self.pool.ledgers_left()?;
        let failed = self.frames.know_failed(&failed);
        let mut changed = Vec::new();
        for (name, stored) in files {
            if self.recover_file(&name, &stored, !ledgers.is_empty())? {
                changed.push(name);
            }
        }
        for run in failed {
            self.frames.recover_failed(run)?;
        }
        for names in changed.chunks(MAX_BATCH) {
            let files = names.iter().filter_map(|name| Some((name, self.files.get(name)?)));
            let changes: Vec<Change<'_>> =
                files.map(|(name, file)| Change::Put(name, file.stored())).collect();
            self.record(&changes)?;
        }
        self.close_tails(&open_tails)?;
        let dead = self.find_ledgers(&ledgers)?;
        let held = self.clients.values().flat_map(|client| client.ledger.all_holds());
        let strays = self.frames.claim_strays(held.map(|hold| hold.run))?;
        for (id, holds) in dead {
            self.frames.orphan(id, holds.iter(), true);
            if !self.frames.has_orphans(id) {
                self.remove_ledger(id);
            }
        }
        self.frames.finish_recovery();
        if !strays.is_empty() {
            tracing::info!(pages = strays.nr_pages(), "draining what an earlier owner left");
            self.take_out(vec![strays]);
        }
        Ok(())
    }

    /// Zeroes what earlier cuts left behind the ends of files.
    fn close_tails(&mut self, open: &[u64]) -> Result<(), Error> {
        for &id in open {
            match self.names.get(&FileId(id)).cloned() {
                Some(name) => self.close_tail(&name)?,
                None => self.record(&[Change::ClosedTail(id)])?,
            }
        }
        Ok(())
    }

    /// Puts a file of the catalog back. Says whether its extents are not as the catalog has them.
    fn recover_file(
        &mut self,
        name: &FileName,
        stored: &StoredFile,
        is_known: bool,
    ) -> Result<bool, Error> {
        let pool = self.pool.name();
        let bad = |why: &str| Error::BadPool {
            pool: pool.clone(),
            why: format!("the catalog's file \"{name}\" {why}"),
        };
        let extents = stored.extents().ok_or_else(|| bad("has an extent that is none"))?;
        let largest = Level::from_number(stored.largest_level)
            .ok_or_else(|| bad("has a folio size that is none"))?;
        let mut recovered = Vec::with_capacity(extents.len());
        let unit = self.frames.smallest().nr_pages();
        for extent in &extents {
            let is_described = extent.run.start().is_multiple_of(unit)
                && extent.run.nr_pages().is_multiple_of(unit)
                && (extent.is_hole() || extent.head_level >= self.frames.smallest());
            if !is_described {
                return Err(bad("has folios smaller than the pool describes"));
            }
            if extent.is_hole() {
                recovered.push(*extent);
                continue;
            }
            match self.frames.recover_extent(extent, largest, is_known, extents.len())? {
                Some(pieces) => recovered.extend(pieces),
                None => return Err(bad(&self.why_not_free(extent.run))),
            }
        }
        let is_changed = recovered != extents;
        let id = FileId(stored.id);
        let mut record = FileRecord {
            id,
            len_bytes: stored.len_bytes,
            largest,
            rules: stored.rules,
            extents: recovered,
            entry: EntryId::from_number(0),
            doing: None,
        };
        record.entry = self.frames.list(record.listed(name), &record.extents)?;
        self.names.insert(id, name.clone());
        self.files.insert(name.clone(), record);
        Ok(is_changed)
    }

    /// Why the frames that a file claims are not to be had: a frame belongs to one file.
    fn why_not_free(&self, run: PfnRange) -> String {
        let has_some =
            |file: &FileRecord| file.runs().any(|theirs| theirs.intersection(run).is_some());
        match self.files.iter().find(|(_, file)| has_some(file)) {
            Some((other, _)) => format!("claims frames {run}, and \"{other}\" has some of them"),
            None => format!("claims frames {run} twice, or from outside the pool"),
        }
    }

    /// Opens the ledgers of live clients; returns what devices of the dead ones may still write to. A
    /// ledger that cannot be read stops the start: its client may hold anything.
    fn find_ledgers(&mut self, numbers: &[u64]) -> Result<Vec<(ClientId, SortedRuns)>, Error> {
        let mut dead = Vec::new();
        for &number in numbers {
            let Some(path) = self.pool.ledger_path(number) else { continue };
            let file = MemoryFile::open_named(&path, Access::ReadWrite)?;
            let ledger = self.map_ledger(&file)?;
            let identity =
                Identity { pid: 0, uid: 0, command: "(not connected)".into(), pidfd: None };
            let mode = match ledger.is_asymmetric() {
                true => BarrierMode::Asymmetric,
                false => BarrierMode::Fenced,
            };
            let record = ClientRecord { identity, ledger: ledger.in_mode(mode), file };
            if matches!(file_lock::is_locked(&record.file), Ok(false)) {
                dead.push((ClientId(number), device_holds(&record.ledger)));
                continue;
            }
            if record.ledger.is_asymmetric() && !self.barrier.is_asymmetric() {
                return Err(Error::BadPool {
                    pool: self.pool.name(),
                    why: format!(
                        "client {number} lives and relies on membarrier, which is refused here; \
                         start the owner where it is allowed, or end that client"
                    ),
                });
            }
            self.clients.insert(ClientId(number), record);
        }
        Ok(dead)
    }

    /// Joins a reconnecting client to the ledger it kept; none when there is no such live ledger.
    /// The descriptor it shows must be of that very file.
    pub fn resume(&mut self, number: u64, identity: Identity, shown: &OwnedFd) -> Option<ClientId> {
        use std::os::unix::fs::MetadataExt;
        let id = ClientId(number);
        let path = self.pool.ledger_path(number)?;
        let client = self.clients.get_mut(&id)?;
        let ours = std::fs::metadata(path).ok()?;
        let theirs = std::fs::File::from(shown.try_clone().ok()?).metadata().ok()?;
        if (ours.dev(), ours.ino()) != (theirs.dev(), theirs.ino()) {
            return None;
        }
        // The lock belongs to the description that the client was handed: this asks for a lock that
        // only it has already. Another who opened the same file is refused, and so is nobody's heir.
        if !matches!(file_lock::try_lock_exclusive(shown), Ok(true)) {
            return None;
        }
        client.identity = identity;
        Some(id)
    }
}
