//! Recovery: what an owner finds that a predecessor left, killed at any step.
//!
//! The catalog says which frames are files (I10). A ledger whose lock is free is a dead client's and
//! is removed; one whose lock is held is a live client's, whose holds stand although it has no
//! connection yet. Every frame that no file has and whose descriptor is not Free was on its way
//! somewhere: it is drained like any other, and so freed when no live ledger holds it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use pgmap_mm::barrier::BarrierMode;
use pgmap_mm::descriptor::{Descriptor, FolioFlags, FolioState};
use pgmap_mm::drain::ClientId;
use pgmap_mm::extent::Extent;
use pgmap_mm::index::{ExtentList, FileId};
use pgmap_mm::level::Level;
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::runs::SortedRuns;
use pgmap_os::{Access, MemoryFile, file_lock};

use crate::error::Error;
use crate::name::FileName;
use crate::owner::catalog::StoredFile;
use crate::owner::clients::{ClientRecord, Identity};
use crate::owner::core::{Core, FileRecord};
use crate::refusal::Refusal;

impl Core {
    /// Puts the books in order from the pool's files.
    pub(crate) fn recover(&mut self) -> Result<(), Error> {
        let (files, failed) = match &self.pool.catalog {
            Some(catalog) => (catalog.files()?, catalog.poisoned().to_vec()),
            None => (BTreeMap::new(), Vec::new()),
        };
        self.find_ledgers()?;
        for (name, stored) in files {
            self.recover_file(name, &stored)?;
        }
        self.recover_poison(&failed);
        self.index.finish_reopening();
        self.drain_strays();
        Ok(())
    }

    fn recover_file(&mut self, name: FileName, stored: &StoredFile) -> Result<(), Error> {
        let pool = self.pool.name();
        let bad = |why: &str| Error::BadPool {
            pool: pool.clone(),
            why: format!("the catalog's file \"{name}\" {why}"),
        };
        let extents = stored.extents().ok_or_else(|| bad("has an extent that is none"))?;
        let largest = Level::from_number(stored.largest_level)
            .ok_or_else(|| bad("has a folio size that is none"))?;
        let mut recovered = Vec::with_capacity(extents.len());
        let unit = self.folios.smallest().nr_pages();
        for extent in &extents {
            let is_described = extent.run.start().is_multiple_of(unit)
                && extent.run.nr_pages().is_multiple_of(unit)
                && (extent.is_hole() || extent.head_level >= self.folios.smallest());
            if !is_described {
                return Err(bad("has folios smaller than the pool describes"));
            }
            if extent.is_hole() {
                recovered.push(*extent);
                continue;
            }
            match self.recover_extent(extent, largest)? {
                Some(pieces) => recovered.extend(pieces),
                None => return Err(bad(&self.why_not_free(extent.run))),
            }
        }
        let is_changed = recovered != extents;
        let extents = recovered;
        let list: ExtentList = extents.iter().copied().collect();
        let id = FileId(stored.id);
        let entry = self
            .index
            .insert(name.as_bytes(), id, stored.len_bytes, &list)
            .map_err(crate::refusal::Refusal::from)?;
        self.names.insert(id, name.clone());
        let record = FileRecord {
            id,
            len_bytes: stored.len_bytes,
            largest,
            rules: stored.rules,
            extents,
            entry,
            doing: None,
        };
        if is_changed {
            self.record_file(&name, &record)?;
        }
        self.files.insert(name, record);
        Ok(())
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

    /// Takes an extent's frames back and returns what readers are to be told of it. Descriptors that
    /// survived keep their folio sizes. One whose head is not as the catalog says was being cut, split
    /// or merged: readers may have been told of its pieces, so each of its folios gets a fresh stamp,
    /// which ends all of them. None when a frame is another file's or outside the pool.
    fn recover_extent(
        &mut self,
        extent: &Extent,
        largest: Level,
    ) -> Result<Option<Vec<Extent>>, Error> {
        let Some(found) = self.folios.as_found(extent) else {
            let largest = largest.min(extent.head_level).max(self.folios.smallest());
            if !self.folios.has_descriptors(extent.run, largest) {
                let why = format!("no room for the descriptors of frames {}", extent.run);
                return Err(Refusal::NoMemory { why }.into());
            }
            let is_taken = self.folios.reclaim(extent.run, largest, extent.life);
            return Ok(is_taken.then(|| vec![*extent]));
        };
        if !self.folios.claim(extent.run) {
            return Ok(None);
        }
        self.folios.discard_stale_below(extent.run);
        if found == *extent {
            return Ok(Some(vec![*extent]));
        }
        let flags = extent.life.flags().without(FolioFlags::PARTIAL);
        let life = Descriptor::new(FolioState::Live, flags, self.take_stamp()?);
        self.folios.change_healthy(extent.run, |_| life);
        let fresh = self.take_stamp()?;
        let Some(piece) = self.folios.piece(extent.run) else { return Ok(None) };
        let pieces = self.folios.cut_around_poison(&piece, fresh).map_err(Refusal::from)?;
        Ok(Some(pieces))
    }

    /// Opens the ledgers of live clients and removes the dead ones'.
    fn find_ledgers(&mut self) -> Result<(), Error> {
        for number in self.pool.ledgers_left()? {
            let Some(path) = self.pool.ledger_path(number) else { continue };
            let file = match MemoryFile::open_named(&path, Access::ReadWrite) {
                Ok(file) => file,
                Err(error) => {
                    tracing::warn!(%error, "a ledger cannot be opened");
                    continue;
                }
            };
            let ledger = self.map_ledger(&file)?;
            let identity =
                Identity { pid: 0, uid: 0, command: "(not connected)".into(), pidfd: None };
            let mode = match ledger.is_asymmetric() {
                true => BarrierMode::Asymmetric,
                false => BarrierMode::Fenced,
            };
            let record = ClientRecord { identity, ledger: ledger.in_mode(mode), file };
            let is_alive = !matches!(file_lock::is_locked(&record.file), Ok(false));
            if is_alive && record.ledger.is_asymmetric() && !self.barrier.is_asymmetric() {
                return Err(Error::BadPool {
                    pool: self.pool.name(),
                    why: format!(
                        "client {number} lives and relies on membarrier, which is refused here; \
                         start the owner where it is allowed, or end that client"
                    ),
                });
            }
            self.clients.insert(ClientId(number), record);
            if !is_alive {
                self.reap(ClientId(number));
            }
        }
        Ok(())
    }

    /// Drains frames that no file has and that are not Free.
    fn drain_strays(&mut self) {
        let free: Vec<(u64, u64)> = self.folios.frames().runs().collect();
        let mut strays = Vec::new();
        for (start, length) in free {
            let mut at = start;
            while at < start + length {
                let Some(pfn) = Pfn::new(at) else { break };
                let Some((level, word)) = self.folios.vmemmap().folio_of(pfn) else { break };
                let folio = PfnRange::folio(pfn, level);
                if !matches!(
                    word.state(),
                    FolioState::Free | FolioState::Offline | FolioState::Poisoned
                ) {
                    strays.push(folio);
                }
                at = folio.end();
            }
        }
        // A live client may also hold frames whose descriptors were lost with the machine's memory.
        let held = self.clients.values().flat_map(|client| client.ledger.all_holds());
        let unit = self.folios.smallest().nr_pages();
        let whole = |run: PfnRange| {
            let start = run.start() - run.start() % unit;
            PfnRange::new(start, run.end().next_multiple_of(unit) - start)
        };
        let held: Vec<PfnRange> = held.filter_map(|hold| whole(hold.run)).collect();
        strays.extend(held.into_iter().filter(|run| self.folios.frames().is_free(*run)));
        let strays = SortedRuns::new(strays);
        for run in strays.iter() {
            self.folios.discard_stale_below(run);
            self.folios.claim_any_of(run);
        }
        if !strays.is_empty() {
            tracing::info!(pages = strays.nr_pages(), "draining what an earlier owner left");
            for run in strays.iter() {
                self.folios.change_healthy(run, |word| word.in_state(FolioState::Dying));
            }
            self.take_out(vec![strays]);
        }
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
