//! Further backings, added and taken out while the owner serves.
//!
//! # Order of a change
//! A backing is on record before a file can lie on it, and off the record only when none does.
//!
//! # Frames that are kept
//! A client that mapped a backing's frames keeps the mapping until it hears that the backing is
//! gone. Should other memory get the same frames meanwhile, that client would look at the wrong
//! one. So the frames of a backing that was taken out are nobody's, on record, until every client
//! of that time has gone.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::pagemap::{DeviceRange, OpsPresent, PagemapSpec, SUBSECTION_BYTES};
use pgmap_os::{FileAccess, file_lock};

use crate::error::Error;
use crate::owner::backing::{Backing, BackingState, MAX_BACKINGS};
use crate::owner::clients::handle_of;
use crate::owner::core::{Core, bytes};
use crate::owner::frames::stored;
use crate::pool::Pool;
use crate::pool::backing::{BackingHead, BackingOptions, Made, open_backing, wipe};
use crate::pool::catalog::{Change, StoredBacking};
use crate::refusal::Refusal;
use crate::wire::{BackingInfo, Reply};

impl Core {
    /// Adds a backing, or takes one back that was missing. Returns its number.
    ///
    /// # Errors
    /// As [`Owner::add_backing`](crate::Owner::add_backing).
    pub(crate) fn add_backing(&mut self, options: &BackingOptions) -> Result<u64, Error> {
        let found = options.path.as_deref().map(Pool::backing_at).transpose()?.flatten();
        if let Some((head, path)) = found {
            return self.take_back(head, path);
        }
        let name = options.checked_name()?;
        if let Some(other) = self.frames.backings().named(&name) {
            let out = match &other.state {
                BackingState::Missing(why) => {
                    format!(", which is missing ({why}); take it out, or")
                }
                _ => " already;".into(),
            };
            let why = format!("the pool has a backing \"{name}\"{out} give this another name");
            return Err(Refusal::Invalid { why }.into());
        }
        if self.frames.backings().iter().count() >= MAX_BACKINGS {
            let (what, limit) = ("backings of a pool".into(), MAX_BACKINGS as u64);
            return Err(Refusal::TooMuch { what, value: limit + 1, limit }.into());
        }
        let id = self.frames.take_stamp()?.number();
        let made = self.pool.make_backing(options, id)?;
        let Some(first_pfn) = self.find_place(made.nr_pages) else {
            let why = format!(
                "{} bytes do not fit into the room that the pool was made with for further \
                 backings ({} bytes in all, behind {}); choose a smaller size, or stop the owner \
                 and give the pool more room (pgmap grow --room)",
                bytes(made.nr_pages),
                self.pool.span_bytes() - self.pool.capacity_bytes(),
                self.pool.capacity_bytes()
            );
            made.discard();
            return Err(Refusal::Invalid { why }.into());
        };
        let Made { nr_pages, offset_bytes, memory_type, ref path, .. } = made;
        let backing = Backing {
            id,
            name,
            path: path.clone(),
            first_pfn,
            nr_pages,
            offset_bytes,
            memory_type,
            state: BackingState::Open,
            data: Some(Arc::clone(&made.medium.data)),
            lock: None,
            end_pfn: first_pfn + nr_pages,
            #[cfg(test)]
            as_if: crate::owner::backing::AsIf::default(),
        };
        let line = stored(&self.pool.data, &backing, &backing.path);
        let added = self
            .add_to_table(&backing)
            .and_then(|()| self.record(&[Change::Backing(line.clone())]))
            .and_then(|()| self.frames.add_backing(backing));
        if let Err(refusal) = added {
            return Err(self.undo_addition(refusal, line, made));
        }
        if let Some(backing) = self.frames.backings_mut().iter_mut().find(|it| it.id == id) {
            backing.lock = made.medium.lock;
        }
        self.frames.backings_changed();
        Ok(id)
    }

    /// A backing could not be added: it goes off the record, and then its memory.
    fn undo_addition(&mut self, refusal: Refusal, line: StoredBacking, made: Made) -> Error {
        self.pagemaps.remove_at(line.first_pfn);
        if let Err(unsure) = self.record(&[Change::BackingGone(line.id)]) {
            // It may be on record. So its memory stays, for an owner that finds it there; and its
            // frames are no other's: two lines of the same frames are a pool that no owner opens.
            self.changes.retire(line, []);
            let why = format!(
                "{unsure}; the backing {} may be added when the owner is started again",
                made.path.display()
            );
            return Refusal::Internal { why }.into();
        }
        // Only what is off the record: a backing without its memory would be missing for good.
        made.discard();
        refusal.into()
    }

    /// Adds a backing of the pool's own, beside its data and of the same kind.
    ///
    /// # Errors
    /// As [`Owner::grow`](crate::Owner::grow).
    pub(crate) fn grow(&mut self, by_bytes: u64) -> Result<(), Error> {
        let is_taken = |name: &str| self.frames.backings().named(name).is_some();
        let options = self.pool.growth(by_bytes, is_taken)?;
        self.add_backing(&options).map(drop)
    }

    /// As [`add_backing`](Self::add_backing), for a client that names a path.
    pub(crate) fn add_backing_at(
        &mut self,
        path: Vec<u8>,
        size_bytes: u64,
        name: Option<String>,
        nodes: Vec<u32>,
    ) -> Result<Reply, Refusal> {
        let path = PathBuf::from(OsString::from_vec(path));
        if !path.is_absolute() {
            let why = format!("the path of a backing is absolute, which {} is not", path.display());
            return Err(Refusal::Invalid { why });
        }
        let nodes = nodes.into_iter().collect();
        let options = BackingOptions { path: Some(path), size_bytes, name, nodes };
        match self.add_backing(&options) {
            Ok(_) => Ok(Reply::Done),
            // What was named cannot be one: that is no failure of the owner.
            Err(error @ (Error::BadPool { .. } | Error::NotDurable { .. })) => {
                Err(Refusal::Invalid { why: error.to_string() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The medium of a missing backing was named: its files have their contents again.
    pub(crate) fn take_back(&mut self, head: BackingHead, path: PathBuf) -> Result<u64, Error> {
        let bad = |why: String| Error::BadPool { pool: path.display().to_string(), why };
        if head.pool != self.pool.id() {
            let why = format!(
                "it is a backing of pool {}, and this is pool {}; take it out there, or zero its \
                 first page",
                head.pool,
                self.pool.id()
            );
            return Err(bad(why));
        }
        let line = self.frames.backings().iter().find(|it| it.id == head.id);
        let Some(backing) = line else {
            let why = "it is a backing that the pool does not have on record; if nothing of it is \
                       needed, remove the file, or zero the first page of the device";
            return Err(bad(why.into()));
        };
        if backing.data.is_some() {
            return Err(bad(format!("it is the pool's backing \"{}\" already", backing.name)));
        }
        let line = stored(&self.pool.data, backing, &path);
        let medium = open_backing(self.pool.id(), &line, &path)?;
        if backing.path != path {
            self.record(&[Change::Backing(line)])?;
        }
        let id = head.id;
        self.frames.backings_mut().bring_back(id, |backing| {
            backing.path = path;
            backing.data = Some(medium.data);
            backing.lock = medium.lock;
            backing.state = BackingState::Open;
        });
        self.republish();
        self.heed_bad_blocks();
        self.frames.backings_changed();
        Ok(id)
    }

    /// Where a backing of `nr_pages` frames can start.
    fn find_place(&mut self, nr_pages: u64) -> Option<u64> {
        self.end_retirements();
        let end = self.pool.span_bytes() / PAGE_BYTES;
        self.frames.backings().find_place(nr_pages, end, self.changes.retired_frames())
    }

    /// Frees the frames of backings that no client of their time is left of.
    pub(crate) fn end_retirements(&mut self) {
        let clients = &self.clients;
        for id in self.changes.unmapped(|client| clients.contains(client)) {
            match self.record(&[Change::BackingGone(id)]) {
                Ok(()) => self.changes.end_retirement(id),
                Err(refusal) => tracing::warn!(%refusal, "the frames of a backing stay out of use"),
            }
        }
    }

    /// Takes up what the catalog says of backings that were taken out: every client that lives may
    /// have them mapped. Those that are there get their lines in the table of pagemaps.
    pub(crate) fn recover_backings(&mut self) -> Result<(), Error> {
        let lines = self.pool.catalog.as_ref().map_or(&[][..], |catalog| catalog.backings());
        for line in lines.iter().filter(|line| line.is_retired) {
            self.changes.retire(line.clone(), self.clients.ids());
        }
        self.end_retirements();
        Ok(())
    }

    /// Puts the backings that are on record into the table of pagemaps.
    pub(crate) fn list_backings(&mut self) -> Result<(), Error> {
        let firsts: Vec<u64> = self.frames.backings().iter().map(|it| it.first_pfn).collect();
        for first in firsts.into_iter().filter(|&first| first != 0) {
            let backing = self.frames.backings().at(first);
            let spec = spec_of(backing);
            self.pagemaps.add_at(&spec, first).map_err(Refusal::from)?;
        }
        Ok(())
    }

    fn add_to_table(&mut self, backing: &Backing) -> Result<(), Refusal> {
        self.pagemaps.add_at(&spec_of(backing), backing.first_pfn)?;
        Ok(())
    }

    /// What clients get to know of the backings.
    pub(crate) fn backing_infos(&self) -> Vec<BackingInfo> {
        let infos = self.frames.backings().iter().map(|backing| {
            let (free_pages, longest_pages) = self.frames.free_in(backing);
            BackingInfo {
                id: backing.id,
                name: backing.name.clone(),
                path: backing.path.display().to_string(),
                kind: backing.data.as_ref().map(|data| data.kind().to_string()),
                numa_node: backing.data.as_ref().and_then(|data| data.numa_node()),
                first_pfn: backing.first_pfn,
                size_bytes: bytes(backing.nr_pages),
                offset_bytes: backing.offset_bytes,
                free_bytes: bytes(free_pages),
                drained_bytes: self.parts.drained_bytes(backing.id),
                longest_free_bytes: bytes(longest_pages),
                backed_bytes: backing.data.as_ref().map_or(0, |data| data.resident_bytes()),
                missing: self.why_missing(backing),
            }
        });
        infos.collect()
    }

    /// Why a backing is not there, if it is not.
    fn why_missing(&self, backing: &Backing) -> Option<String> {
        if backing.id == 0 {
            let is_gone = self.pool.is_device_gone();
            return is_gone.then(|| "its device went away, and the pool with it".into());
        }
        match (&backing.state, &backing.data) {
            (BackingState::Missing(why), _) => Some(why.clone()),
            (_, None) => Some("it is missing, and is being taken out".into()),
            (BackingState::Open | BackingState::Leaving, Some(_)) => None,
        }
    }

    /// A descriptor of each backing that is there.
    pub(crate) fn hand_backings(&self, access: FileAccess) -> Result<Vec<OwnedFd>, Error> {
        let is_there = |backing: &&Backing| self.why_missing(backing).is_none();
        let there = self.frames.backings().iter().filter(is_there);
        let files = there.filter_map(|backing| backing.data.as_ref());
        Ok(files.map(|file| handle_of(file, access)).collect::<Result<_, _>>()?)
    }

    /// Has the contents of further backings be where their pool's are to be.
    pub(crate) fn sync_backings(&self) -> Result<(), Error> {
        let further = self.frames.backings().iter().filter(|backing| backing.id != 0);
        for data in further.filter_map(|backing| backing.data.as_ref()) {
            data.sync()?;
        }
        Ok(())
    }
}

impl Core {
    /// Lets another become the owner of the further backings, whoever still has their descriptors.
    pub(crate) fn release_backings(&self) {
        for backing in self.frames.backings().iter() {
            if let Some(lock) = &backing.lock
                && let Err(error) = file_lock::unlock(lock)
            {
                tracing::warn!(backing = %backing.name, %error, "its lock could not be given back");
            }
        }
    }
}

pub(super) fn backing_of(core: &Core, id: u64) -> Result<&Backing, Refusal> {
    let found = core.frames.backings().iter().find(|backing| backing.id == id);
    found.ok_or_else(|| Refusal::Internal { why: format!("backing {id} is gone") })
}

/// A backing as a pagemap: what kind of memory its frames are.
fn spec_of(backing: &Backing) -> PagemapSpec {
    let len_bytes = bytes(backing.nr_pages).next_multiple_of(SUBSECTION_BYTES);
    PagemapSpec {
        memory_type: backing.memory_type,
        ranges: vec![DeviceRange { start_bytes: bytes(backing.first_pfn), len_bytes }],
        owner: Some(0),
        largest_level: Level::Pud.number(),
        ops: OpsPresent::FOLIO_FREE,
    }
}

/// A backing that was taken out is nobody's: a file is removed, a device has no head any more.
pub(super) fn release(backing: Backing) {
    let Some(data) = &backing.data else { return };
    if let Err(error) = wipe(data) {
        tracing::warn!(backing = %backing.name, %error, "a head cannot be wiped");
    }
    if backing.lock.is_some()
        && data.kind() != pgmap_os::MemoryKind::DevDax
        && let Err(error) = pgmap_os::disk::remove_file(&backing.path)
    {
        tracing::warn!(backing = %backing.name, %error, "its file is left behind");
    }
    if let Err(error) = data.abandon() {
        tracing::warn!(backing = %backing.name, %error, "a descriptor is left open");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use super::*;
    use crate::name::FileName;
    use crate::owner::clients::ClientIdentity;
    use crate::owner::core::Outcome;
    use crate::pool::PoolOptions;
    use crate::wire::{CommitSpec, CreateSpec, FolioSize, Placement, Request};

    fn open(path: &Path) -> Core {
        let options = PoolOptions::in_directory(path, 8 << 20).room(2 << 30);
        let pool = if path.exists() { Pool::open(path) } else { Pool::create(&options) };
        Core::open(Arc::new(pool.unwrap())).unwrap()
    }

    /// Story: what a cut had left behind a file's end could not be zeroed on a backing that was not
    /// there, and the pool did not open. After a restart of the machine that is every such file.
    #[test]
    fn a_tail_on_a_missing_backing_waits_until_it_is_back() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let (path, two) = (directory.path().join("pool"), directory.path().join("two"));
        let mut core = open(&path);
        core.add_backing(&BackingOptions::on(&two).size(1 << 20)).unwrap();
        let (client, _attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        let name = FileName::new("a").unwrap();
        let placement = Placement::Only(vec!["two".into()]);
        let spec =
            CreateSpec { placement, ..CreateSpec::new(name.clone(), 100, FolioSize::Pages4K) };
        let outcome = core.handle(client, Request::Create(vec![spec]));
        let Outcome::Answer(Reply::Created(drafts)) = outcome else { panic!("{outcome:?}") };
        drop(core.handle(
            client,
            Request::Commit(vec![CommitSpec::new(drafts[0].as_ref().unwrap().id)]),
        ));
        let file = core.files[&name].clone();
        core.record(&[Change::Put(&name, file.stored()), Change::OpenTail(file.id.0)]).unwrap();
        let backing = core.frames.backings().at(file.extents[0].run.start());
        let at = backing.bytes_of(file.extents[0].run).start;
        let data = backing.file().unwrap();
        data.write_all_at(&[0xAA; 4096], at).unwrap();
        drop(core);
        let away = directory.path().join("away");
        std::fs::rename(&two, &away).unwrap();

        let core = open(&path);
        assert!(core.has_open_tails());
        drop(core);
        let mut core = open(&path);
        core.add_backing(&BackingOptions::on(&away)).unwrap();
        core.look_again();
        assert!(!core.has_open_tails());
        let bytes = std::fs::read(&away).unwrap();
        let page = &bytes[at as usize..][..4096];
        assert!(page[..100].iter().all(|&byte| byte == 0xAA));
        assert!(page[100..].iter().all(|&byte| byte == 0));
    }

    /// Story: a missing backing that was being taken out was told to clients as if it were there,
    /// without a descriptor, and no client could map any backing. One that was taken back meanwhile
    /// was missing again when the removal gave up.
    #[test]
    fn a_missing_backing_that_is_being_taken_out_is_missing_until_it_is_taken_back() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let (path, two) = (directory.path().join("pool"), directory.path().join("two"));
        let mut core = open(&path);
        core.add_backing(&BackingOptions::on(&two).size(1 << 20)).unwrap();
        // Something that a removal waits for.
        core.memory_failure(1 << 18).unwrap();
        drop(core);
        let away = directory.path().join("away");
        std::fs::rename(&two, &away).unwrap();
        let is_there = |core: &Core| {
            let infos = core.backing_infos();
            let nr_there = infos.iter().filter(|it| it.missing.is_none()).count();
            assert_eq!(
                core.hand_backings(FileAccess::ReadWrite).unwrap().len(),
                nr_there,
                "{infos:?}"
            );
            nr_there == 2
        };

        let mut core = open(&path);
        assert!(!is_there(&core));
        let outcome = core.remove_backing("two", 60_000);
        let Outcome::Later(ticket) = outcome else { panic!("{outcome:?}") };
        assert!(!is_there(&core));
        core.drop_departure(ticket);
        assert!(!is_there(&core));
        let outcome = core.remove_backing("two", 60_000);
        let Outcome::Later(ticket) = outcome else { panic!("{outcome:?}") };
        core.add_backing(&BackingOptions::on(&away)).unwrap();
        assert!(is_there(&core));
        core.drop_departure(ticket);
        assert!(is_there(&core));
        assert_eq!(core.frames.backings().named("two").unwrap().state, BackingState::Open);
    }

    /// Story: the table of pagemaps put a backing at its first gap, also where that was kept for
    /// clients of one that had been taken out. The frames of the backing were of no known kind of
    /// memory then, and its line stayed in the table when it went.
    #[test]
    fn the_kind_of_a_backings_memory_is_that_of_its_frames() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut core = open(&directory.path().join("pool"));
        let (_client, _attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        let add = |core: &mut Core, name: &str| {
            let options = BackingOptions::on(directory.path().join(name)).size(1 << 20);
            let id = core.add_backing(&options).unwrap();
            pgmap_mm::pfn::Pfn::new(backing_of(core, id).unwrap().first_pfn).unwrap()
        };
        let first = add(&mut core, "two");
        let removed = core.remove_backing("two", 0);
        assert!(matches!(removed, Outcome::Answer(Reply::Done)), "{removed:?}");
        let second = add(&mut core, "three");
        assert_ne!(first, second, "the client may have the first one mapped");
        assert!(core.pagemaps.has_line(second));
        assert!(!core.pagemaps.has_line(first));
        let removed = core.remove_backing("three", 0);
        assert!(matches!(removed, Outcome::Answer(Reply::Done)), "{removed:?}");
        assert!(!core.pagemaps.has_line(second));
    }

    #[test]
    fn what_a_client_names_and_cannot_be_a_backing_is_no_failure_of_the_owner() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut core = open(&directory.path().join("pool"));
        let other = directory.path().join("other");
        std::fs::write(&other, b"somebody's").unwrap();
        let named = other.as_os_str().as_bytes().to_vec();
        let refused = core.add_backing_at(named, 1 << 20, None, Vec::new()).unwrap_err();
        assert!(matches!(refused, Refusal::Invalid { .. }), "{refused}");
        assert_eq!(std::fs::read(&other).unwrap(), b"somebody's");
    }

    #[test]
    fn a_line_of_the_catalog_where_no_backing_can_be_is_refused() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = directory.path().join("pool");
        let mut core = open(&path);
        core.add_backing(&BackingOptions::on(directory.path().join("two")).size(1 << 20)).unwrap();
        let id = core.frames.backings().at(1 << 18).id;
        let line = stored(&core.pool.data, backing_of(&core, id).unwrap(), &path);
        drop(core);
        for wrong in [
            StoredBacking { first_pfn: 1 << 18 | 1, ..line.clone() },
            StoredBacking { first_pfn: 0, ..line.clone() },
            StoredBacking { first_pfn: u64::MAX << 18, ..line.clone() },
            StoredBacking { nr_pages: u64::MAX, ..line.clone() },
            StoredBacking { nr_pages: 0, ..line.clone() },
            StoredBacking { id: line.id + 1, ..line.clone() },
        ] {
            let pool = Pool::open(&path).unwrap();
            pool.record(&[Change::Backing(wrong.clone())]).unwrap();
            drop(pool);
            let pool = Pool::open(&path).unwrap();
            let error = Core::open(Arc::new(pool)).map(drop).unwrap_err().to_string();
            assert!(error.contains("\"two\" on record"), "{wrong:?}: {error}");
            let pool = Pool::open(&path).unwrap();
            let undone = [Change::BackingGone(wrong.id), Change::Backing(line.clone())];
            pool.record(&undone).unwrap();
        }
    }
}
