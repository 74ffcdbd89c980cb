//! Recovery: what an owner finds that a predecessor left, killed at any step.
//!
//! The catalog says which frames are files (I10). A ledger whose lock is free is a dead client's
//! and is removed; one whose lock is held is a live client's, whose holds stand although it has no
//! connection yet. Every frame that no file has and whose descriptor is not Free was on its way
//! somewhere: it is drained like any other, and so freed when no live ledger holds it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use pgmap_mm::barrier::BarrierMode;
use pgmap_mm::drain::ClientId;
use pgmap_mm::index::{EntryId, FileId};
use pgmap_mm::ledger::LEDGER_MAGIC;
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;
use pgmap_os::{FileAccess, MemoryFile, OsError, file_lock};

use crate::error::Error;
use crate::name::FileName;
use crate::owner::clients::{ClientIdentity, ClientRecord, device_holds};
use crate::owner::core::Core;
use crate::owner::file_book::FileRecord;
use crate::pool::LedgerIdentity;
use crate::pool::catalog::{Change, StoredFile};
use crate::refusal::Refusal;
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
        self.clear_roster(&ledgers);
        self.recover_backings()?;
        let held = self.clients.values().flat_map(|client| client.ledger.all_holds());
        let strays = self.frames.claim_strays(held.map(|hold| hold.run))?;
        self.doubt_ledgers();
        for (id, holds) in dead {
            self.frames.orphan(id, holds.iter(), true);
            if self.frames.has_orphans(id) {
                self.dead.keep_from_before(id, self.pool.pid_on_roster(id.0));
            } else {
                self.remove_ledger(id);
            }
        }
        self.frames.finish_recovery();
        if !strays.is_empty() {
            tracing::info!(pages = strays.nr_pages(), "draining what an earlier owner left");
            self.take_out(std::iter::once((strays, None)));
        }
        Ok(())
    }

    /// Zeroes what earlier cuts left behind the ends of files. On a backing that is missing that
    /// waits until it is back.
    fn close_tails(&mut self, open: &[u64]) -> Result<(), Error> {
        for open in open.chunks(MAX_BATCH) {
            for id in open {
                if let Some((_, file)) = self.files.by_id(FileId(*id)) {
                    match self.frames.zero_tail(&file.extents, file.len_bytes) {
                        Err(Refusal::NoBacking { .. }) => self.files.add_open_tail(FileId(*id)),
                        zeroed => zeroed?,
                    }
                }
            }
            let closed = open.iter().copied().filter(|&id| !self.files.has_open_tail(FileId(id)));
            let closed: Vec<Change<'_>> = closed.map(Change::ClosedTail).collect();
            self.record(&closed)?;
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
        let extents = stored.extents().ok_or_else(|| bad("has an invalid extent"))?;
        let largest = Level::from_number(stored.largest_level)
            .ok_or_else(|| bad("has an invalid folio size"))?;
        let nr_pages: u64 = extents.iter().map(|extent| extent.run.nr_pages()).sum();
        if stored.len_bytes > nr_pages * PAGE_BYTES {
            return Err(bad("is longer than its frames"));
        }
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
            match self.frames.recover_extent(extent, is_known, extents.len())? {
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
            metadata: stored.metadata.clone(),
            uid: stored.uid,
            entry: EntryId::from_number(0),
            doing: None,
        };
        record.entry = self.frames.list(record.listed(name), &record.extents)?;
        self.note_listed(name, &record);
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

    /// Opens the ledgers of live clients; returns what devices of the dead ones may still write to.
    /// A ledger that cannot be read stops the start: its client may hold anything.
    fn find_ledgers(&mut self, numbers: &[u64]) -> Result<Vec<(ClientId, SortedRuns)>, Error> {
        let mut dead = Vec::new();
        for &number in numbers {
            let Some(path) = self.pool.ledger_path(number) else { continue };
            let file = Arc::new(MemoryFile::open_named(&path, FileAccess::ReadWrite)?);
            let whole_bytes = self.pool.ledger_file().len_bytes;
            let is_its = self.pool.ledger_identity(number, &file)? == LedgerIdentity::Its;
            let is_whole = is_its && file.len_bytes() >= whole_bytes;
            if !is_whole && matches!(file_lock::is_locked(&file), Ok(false)) {
                if was_attached(&file)? || self.pool.missing_ledgers().contains(&number) {
                    // Cut short or written over, its client dead: nobody knows what it said.
                    dead.push((ClientId(number), self.frames.all_in_use()));
                } else {
                    // A predecessor was killed while it made it: no client ever had it.
                    self.remove_ledger(ClientId(number));
                }
                continue;
            }
            let (ledger, used) = self.map_ledger(&file)?;
            let identity = ClientIdentity {
                pid: 0,
                uid: 0,
                command: "(not connected)".into(),
                label: "(not connected)".into(),
                is_read_only: false,
                pidfd: None,
            };
            let mode = match ledger.is_asymmetric() {
                true => BarrierMode::Asymmetric,
                false => BarrierMode::Fenced,
            };
            let record = ClientRecord {
                identity,
                ledger: ledger.in_mode(mode),
                used,
                file,
                is_connected: false,
                // What that is, is known when all frames in use are.
                may_hold: (!is_its).then(SortedRuns::default),
                burial: None,
            };
            if matches!(file_lock::is_locked(&record.file), Ok(false)) {
                let are_over = record.have_transfers_ended();
                let holds =
                    if are_over { SortedRuns::default() } else { device_holds(&record.ledger) };
                dead.push((ClientId(number), holds));
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
        let missing = self.pool.missing_ledgers().iter().filter(|one| !numbers.contains(one));
        dead.extend(missing.map(|&client| (ClientId(client), self.frames.all_in_use())));
        Ok(dead)
    }

    /// Takes those off the roster who have no ledger, and of whom it is known that they hold
    /// nothing.
    fn clear_roster(&mut self, numbers: &[u64]) {
        let Some(catalog) = &self.pool.catalog else { return };
        let is_known =
            |client: &u64| numbers.contains(client) || self.pool.missing_ledgers().contains(client);
        let clients = catalog.roster().iter().map(|enrolled| enrolled.client);
        let left: Vec<Change<'_>> =
            clients.filter(|client| !is_known(client)).map(Change::Left).collect();
        for left in left.chunks(MAX_BATCH) {
            if let Err(refusal) = self.pool.record(left) {
                tracing::warn!(%refusal, "the roster cannot be changed");
            }
        }
    }

    /// Live clients whose ledgers were written over may hold whatever is in use.
    fn doubt_ledgers(&mut self) {
        let in_use = self.frames.all_in_use();
        for (id, client) in self.clients.iter_mut() {
            if let Some(may_hold) = &mut client.may_hold {
                tracing::error!(
                    client = id.0,
                    "its ledger was written over: it is cut off, and may hold what is in use now"
                );
                may_hold.clone_from(&in_use);
            }
        }
    }

    /// Joins a reconnecting client to the ledger it kept; `None` if there is no such live ledger,
    /// or it cannot be read. The descriptor it shows must be of that very file.
    ///
    /// # Errors
    /// [`Error::Os`] when that cannot be found out: the client may ask again.
    pub fn resume(
        &mut self,
        number: u64,
        identity: ClientIdentity,
        shown: OwnedFd,
    ) -> Result<Option<ClientId>, Error> {
        use std::os::unix::fs::MetadataExt;
        let id = ClientId(number);
        let is_readable =
            |client: &&mut ClientRecord| client.may_hold.is_none() && client.burial.is_none();
        let path = self.pool.ledger_path(number);
        let (Some(path), Some(client)) = (path, self.clients.get_mut(id).filter(is_readable))
        else {
            return Ok(None);
        };
        let failed = |error| OsError::new("inspect", path.display().to_string(), error);
        let ours = match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(failed)?,
        };
        let shown = std::fs::File::from(shown);
        let theirs = shown.metadata().map_err(failed)?;
        if (ours.dev(), ours.ino()) != (theirs.dev(), theirs.ino()) {
            return Ok(None);
        }
        // The lock belongs to the description that the client was handed: this asks for a lock that
        // only it has already. Another who opened the same file is refused, and so is nobody's
        // heir.
        if !file_lock::try_lock_exclusive(&shown).map_err(failed)? {
            return Ok(None);
        }
        client.identity = identity;
        client.is_connected = true;
        Ok(Some(id))
    }
}

/// Whether a client ever wrote to this ledger: the first thing that it writes is the mark.
fn was_attached(file: &MemoryFile) -> Result<bool, Error> {
    let mut first = [0; 8];
    if file.len_bytes() < first.len() as u64 {
        return Ok(false);
    }
    file.read_exact_at(&mut first, 0).map_err(|error| OsError::new("read", file.name(), error))?;
    Ok(first == LEDGER_MAGIC.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use pgmap_mm::descriptor::FolioState;
    use pgmap_mm::extent::Extent;

    use super::*;
    use crate::client::Client;
    use crate::owner::backing::AsIf;
    use crate::owner::core::Outcome;
    use crate::owner::cut::Patience;
    use crate::owner::handle::Owner;
    use crate::pool::{Pool, PoolOptions};
    use crate::wire::{CommitSpec, CreateSpec, FolioSize, OnDeadline, Reply, Request};

    const POOL_BYTES: u64 = 16 << 20;

    /// The books of a pool, without a thread: dropping them is being killed.
    fn open(path: &Path) -> Core {
        let pool = match path.exists() {
            true => Pool::open(path),
            false => Pool::create(&PoolOptions::in_directory(path, POOL_BYTES)),
        };
        Core::open(Arc::new(pool.unwrap())).unwrap()
    }

    fn put(core: &mut Core, client: ClientId, name: &FileName, len_bytes: u64) {
        let spec = CreateSpec::new(name.clone(), len_bytes, FolioSize::Pages4K);
        let outcome = core.handle(client, Request::Create(vec![spec]));
        let Outcome::Answer(Reply::Created(drafts)) = outcome else { panic!("{outcome:?}") };
        let id = drafts[0].as_ref().unwrap().id;
        let outcome = core.handle(client, Request::Commit(vec![CommitSpec::new(id)]));
        assert!(matches!(outcome, Outcome::Answer(Reply::Committed(_))), "{outcome:?}");
    }

    fn is_current(core: &Core, extent: &Extent) -> bool {
        core.frames.vmemmap().load(extent.head_level, extent.first()) == Some(extent.life)
    }

    /// An owner is killed when it is on record that a frame failed, and before its descriptor says
    /// so. The frame is cut out of its file also where it is the first of an extent. Story: it was
    /// not, so that readers were told of a file that is being changed, for as long as it was there.
    #[test]
    fn a_frame_that_is_on_record_as_failed_is_cut_out_wherever_it_lies_in_an_extent() {
        for nth in [0, 3, 7] {
            let directory = tempfile::tempdir_in("/dev/shm").unwrap();
            let path = directory.path().join("pool");
            let name = FileName::new("a").unwrap();
            let mut core = open(&path);
            let (client, attachment) = core.attach(ClientIdentity::own(), false).unwrap();
            put(&mut core, client, &name, 8 * PAGE_BYTES);
            let failed = core.files[&name].extents[0].run.start() + nth;
            core.record(&[Change::Poisoned(failed)]).unwrap();
            drop((core, attachment));

            for start in 1..=2 {
                let core = open(&path);
                let extents = &core.files[&name].extents;
                let of_failed = extents.iter().find(|extent| extent.run.start() == failed).unwrap();
                assert_eq!(of_failed.run.nr_pages(), 1, "start {start}: {extents:?}");
                let is_poisoned = |extent: &&Extent| extent.life.state() == FolioState::Poisoned;
                assert_eq!(extents.iter().filter(is_poisoned).count(), 1, "{extents:?}");
                assert!(is_poisoned(&of_failed));
                assert!(extents.iter().all(|extent| is_current(&core, extent)), "{extents:?}");
            }
        }
    }

    /// A punch waits for a holder and readers know three pieces when the owner is killed. The file
    /// is whole again; none of the pieces may be believed, for when the file goes only the word of
    /// the whole is changed. And the catalog has the words of now, or the next start changes them
    /// again.
    #[test]
    fn what_readers_knew_of_a_cut_that_a_killed_owner_began_is_never_true_again() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = directory.path().join("pool");
        let name = FileName::new("a").unwrap();
        let mut core = open(&path);
        let (client, attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        put(&mut core, client, &name, 16 * PAGE_BYTES);
        let whole = core.files[&name].extents.clone();
        let pages = 5..6;
        let cut = core.frames.begin_cut(&name, &whole, &pages, false).unwrap();
        cut.off.iter().for_each(|&run| core.frames.retire_run(run));
        let pieces: Vec<Extent> =
            cut.extents.iter().filter(|piece| !piece.is_hole()).copied().collect();
        assert_eq!(pieces.len(), 2);
        assert!(pieces.iter().all(|piece| is_current(&core, piece)));
        drop(core);

        let core = open(&path);
        drop(attachment);
        let recovered = core.files[&name].extents.clone();
        assert_eq!(recovered.len(), 1);
        assert!(is_current(&core, &recovered[0]));
        assert_eq!(recovered[0].run, whole[0].run);
        for known in pieces.iter().chain(&whole) {
            assert!(!is_current(&core, known), "{known:?} is believed");
        }
        let on_record = core.pool.catalog.as_ref().unwrap().files().unwrap();
        assert_eq!(on_record[&name], core.files[&name].stored());
    }

    /// An owner that is killed between putting a truncate on record and zeroing what it cut off.
    #[test]
    fn a_tail_that_a_killed_owner_did_not_zero_is_zeroed_by_the_next() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = directory.path().join("pool");
        let name = FileName::new("a").unwrap();
        let mut core = open(&path);
        let (client, _attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        put(&mut core, client, &name, 100);
        let file = core.files[&name].clone();
        core.record(&[Change::Put(&name, file.stored()), Change::OpenTail(file.id.0)]).unwrap();
        let at = file.extents[0].run.byte_range().start;
        let data = path.join("data");
        let page = || std::fs::read(&data).unwrap()[at as usize..][..4096].to_vec();
        std::os::unix::fs::FileExt::write_all_at(
            &std::fs::File::options().write(true).open(&data).unwrap(),
            &[0xAA; 4096],
            at,
        )
        .unwrap();
        drop(core);

        let core = open(&path);
        assert_eq!(core.pool.catalog.as_ref().unwrap().open_tails(), [file.id.0]);
        assert_eq!(page()[..100], [0xAA; 100]);
        assert!(page()[100..].iter().all(|&byte| byte == 0));
        drop(core);
        assert!(Pool::open(&path).unwrap().catalog.unwrap().open_tails().is_empty());
    }

    /// A pool of huge pages in one of which lie the files "a" and "b", and two clients; `None`
    /// where there are no huge pages.
    fn huge_page_of_two() -> Option<(Owner, Client, Client)> {
        let options = PoolOptions::anonymous(8 << 20).huge_pages(pgmap_os::PageSize::Huge2M);
        let owner = match Pool::create(&options).and_then(Owner::start) {
            Ok(owner) => owner,
            Err(error) => {
                println!("skipped: no huge pages here ({error}); set vm.nr_hugepages to 8");
                return None;
            }
        };
        let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
        for name in ["a", "b"] {
            client.create(name, 64 << 10, FolioSize::Pages4K).unwrap().commit().unwrap();
        }
        Some((owner, client, other))
    }

    /// Pages of the backing that are larger than the frames of a dead client's device are replaced
    /// as a whole, when nothing else of them is in use.
    #[test]
    fn a_device_hold_of_a_part_of_a_huge_page_ends_when_all_of_the_page_is_free() {
        let Some((owner, client, other)) = huge_page_of_two() else { return };
        let pin = other.open("a").unwrap().pin_for_device(0..64 << 10).unwrap();
        std::mem::forget(pin);
        drop(other);
        assert_eq!(owner.info().orphaned_bytes, 64 << 10);
        client.unlink("a").unwrap();
        assert_eq!(owner.info().quarantined_bytes, 64 << 10, "\"b\" lies in the same page");
        let dead = client.quarantine().unwrap();
        assert_eq!(dead[0].quarantined_bytes, 64 << 10, "{dead:?}");
        let epoch = client.detach_epoch();
        client.unlink("b").unwrap();
        let info = owner.info();
        assert_eq!((info.quarantined_bytes, info.orphaned_bytes), (0, 0), "{info:?}");
        assert_eq!(info.free_bytes, 8 << 20);
        assert_eq!(client.detach_epoch() - epoch, 1);
    }

    /// What a dead client's ledger names of a large free folio was quarantined without a descriptor
    /// of its own, and so could never be freed.
    #[test]
    fn a_part_of_a_free_folio_goes_into_quarantine_and_comes_back() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut core = open(&directory.path().join("pool"));
        core.frames.backings_mut().pretend(AsIf { is_attached: true, ..AsIf::default() });
        let before = (core.frames.free_pages(), core.frames.longest_free_run());
        let held = [PfnRange::new(3, 200).unwrap(), PfnRange::new(100, 300).unwrap()];
        let dead = ClientId(1 << 40);
        core.frames.orphan(dead, held, true);
        assert_eq!(core.frames.quarantined_pages(), 397);
        assert_eq!(core.frames.free_pages(), before.0 - 397);
        core.dead.keep_from_before(dead, None);
        core.dead.release(dead.0).unwrap();
        core.dead.end_transfers(&mut core.frames);
        assert_eq!((core.frames.free_pages(), core.frames.longest_free_run()), before);
        assert_eq!(core.frames.quarantined_pages(), 0);
        assert!(!core.dead.awaits_transfers());
    }

    /// Frames that were kept out of use for a dead client's device were so for good.
    #[test]
    fn what_is_in_quarantine_is_free_once_an_operator_says_that_no_device_writes() {
        let Some((owner, client, other)) = huge_page_of_two() else { return };
        for bytes in [0..16 << 10, 32 << 10..40 << 10] {
            let pin = other.open("a").unwrap().pin_for_device(bytes);
            std::mem::forget(pin.unwrap());
        }
        drop(other);
        client.unlink("a").unwrap();
        assert_eq!(owner.info().quarantined_bytes, 64 << 10, "\"b\" lies in the same page");
        let dead = client.quarantine().unwrap()[0].client;
        client.release_quarantine(dead).unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while owner.info().free_bytes < (8 << 20) - (64 << 10) {
            assert!(std::time::Instant::now() < end, "{:?}", owner.info());
            std::thread::yield_now();
        }
        let info = owner.info();
        assert_eq!((info.quarantined_bytes, info.orphaned_bytes), (0, 0), "{info:?}");
        assert!(client.quarantine().unwrap().is_empty());
    }

    /// Story: a holder that was unregistered while a truncate waited had every file put on record
    /// again, the cut one as if the truncate had ended. The next owner found it short, and answered
    /// the truncate that was asked for again although what was cut off was still held.
    #[test]
    fn a_file_that_is_being_cut_is_whole_on_record_although_its_policy_changes() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let name = FileName::new("a").unwrap();
        let mut core = open(&directory.path().join("pool"));
        let (client, _attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        put(&mut core, client, &name, 16 * PAGE_BYTES);
        core.clients.get_mut(client).unwrap().may_hold = Some(core.frames.all_in_use());
        let patience = Patience { wait_ms: 60_000, on_deadline: OnDeadline::Fail };
        let cut = core.truncate(name.clone(), PAGE_BYTES, patience);
        assert!(matches!(cut, Outcome::Later(_)), "{cut:?}");
        core.republish();
        assert_eq!(core.files[&name].len_bytes, PAGE_BYTES);
        drop(core);
        let core = open(&directory.path().join("pool"));
        assert_eq!(core.files[&name].len_bytes, 16 * PAGE_BYTES);
    }

    /// A client that lives and whose ledger was cut short may hold anything: no owner starts. Once
    /// it has ended one does, and keeps whatever was in use.
    #[test]
    fn a_ledger_that_was_cut_short_is_a_live_clients_as_long_as_its_lock_is_taken() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let name = FileName::new("a").unwrap();
        let mut core = open(&directory.path().join("pool"));
        let (client, attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        put(&mut core, client, &name, 16 * PAGE_BYTES);
        let path = core.pool.ledger_path(client.0).unwrap();
        drop(core);
        let whole = std::fs::File::options().write(true).open(path).unwrap();
        // As its client does first of all.
        let mark = LEDGER_MAGIC.to_le_bytes();
        std::os::unix::fs::FileExt::write_all_at(&whole, &mark, 0).unwrap();
        whole.set_len(whole.metadata().unwrap().len() / 2).unwrap();
        let path = directory.path().join("pool");
        let started = Core::open(Arc::new(Pool::open(&path).unwrap())).map(drop);
        assert!(started.is_err(), "its client lives");
        drop(attachment);
        let core = open(&path);
        assert!(!core.clients.contains(client) && core.dead.ids().any(|dead| dead == client));
    }

    /// A client that is dead, and whose ledger is whole, holds for devices what that says.
    #[test]
    fn a_whole_ledger_of_a_dead_client_says_what_its_devices_hold() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let name = FileName::new("a").unwrap();
        let mut core = open(&directory.path().join("pool"));
        let (client, attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        put(&mut core, client, &name, 16 * PAGE_BYTES);
        drop((core, attachment));
        let core = open(&directory.path().join("pool"));
        assert!(core.dead.is_empty() && core.clients.len() == 0, "{:?}", core.dead);
        assert_eq!(core.frames.orphaned_pages(), 0);
    }

    #[test]
    fn a_ledger_that_is_gone_cannot_be_resumed_and_one_that_cannot_be_looked_at_is_an_error() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut core = open(&directory.path().join("pool"));
        let (client, attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        let resume = |core: &mut Core| {
            let shown = attachment.ledger.try_clone().unwrap();
            core.resume(client.0, ClientIdentity::own(), shown)
        };
        assert_eq!(resume(&mut core).unwrap(), Some(client));
        let path = core.pool.ledger_path(client.0).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(resume(&mut core).unwrap(), None);
        let ledgers = path.parent().unwrap();
        std::fs::remove_dir_all(ledgers).unwrap();
        std::fs::write(ledgers, b"no directory").unwrap();
        let error = resume(&mut core).unwrap_err();
        assert!(matches!(error, Error::Os(_)), "{error}");
    }

    /// A policy that changes while a cut waits holds for what the cut gives back, too.
    #[test]
    fn frames_that_a_cut_gives_back_have_the_policy_of_now() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let name = FileName::new("a").unwrap();
        let mut core = open(&directory.path().join("pool"));
        let (client, _attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        put(&mut core, client, &name, 16 * PAGE_BYTES);
        let before = core.files[&name].clone();
        let cut = core.frames.begin_cut(&name, &before.extents, &(5..16), true).unwrap();
        cut.off.iter().for_each(|&run| core.frames.retire_run(run));
        let now = FileRecord { extents: cut.extents.clone(), ..before.clone() };
        core.files.update(&name, now);
        core.files.get_mut(&name).unwrap().rules.is_read_only = true;
        core.republish();
        let flags = core.flags_of(&core.files[&name]);
        assert_ne!(flags, before.extents[0].life.flags());
        let now = core.files[&name].extents.clone();
        let mut rest = cut.off.iter().copied().collect();
        core.frames.revive_some(&mut rest, flags, &mut 1000);
        assert!(rest.is_empty());
        let extents = core.frames.undo_cut(&cut, (&before.extents, &now), &(5..16));
        assert_eq!(extents.len(), 1);
        let words = core.frames.vmemmap().folios(extents[0].run);
        let partial = pgmap_mm::descriptor::FolioFlags::PARTIAL;
        for (first, _, word) in words {
            assert_eq!(word.flags().without(partial), flags, "{first}");
        }
    }
}
