//! A pool: the files that hold data, descriptors, index, ledgers and catalog.
//!
//! An anonymous pool is a set of memfds and ends with its last user. A pool in a directory has its
//! files there, so that a restarted owner finds everything again. Of these, catalog and data are
//! the pool. Descriptors and index say what the catalog says in another form: as long as a client
//! lives they are taken over as they are, else they are made again when the pool is opened.

pub mod backing;
#[doc(hidden)]
pub mod catalog;
pub mod check;
pub(crate) mod device_head;
pub(crate) mod directory;
mod growth;
pub(crate) mod identity;
pub(crate) mod ledgers;
pub(crate) mod mark;
pub mod observer;
pub(crate) mod on;
pub(crate) mod options;
pub(crate) mod parts;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError};

use pgmap_mm::index::IndexLayout;
use pgmap_mm::ledger::LedgerLayout;
use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::memory_type::MemoryType;
use pgmap_mm::vmemmap::VmemmapLayout;
use pgmap_os::sync::{Mutex, MutexGuard};
use pgmap_os::{FileAccess, MemoryFile, MemoryKind, OsError, PageSize, ParentFd, disk, file_lock};

use crate::error::Error;
use crate::name::FileName;
use crate::pool::catalog::header::HEADER_BYTES;
use crate::pool::catalog::{CLOSING_CHANGES, Catalog, Change, Head, StoredPool};
use crate::pool::device_head::DeviceHead;
use crate::pool::directory::{
    CATALOG, CATALOG_NEW, DATA, Directory, INDEX, ON, VMEMMAP, check_no_parts, holds_a_pool,
    kind_of, remove_file,
};
use crate::pool::identity::{BootId, PoolId};
pub(crate) use crate::pool::ledgers::{LedgerFile, LedgerIdentity};
use crate::pool::mark::Mark;
use crate::pool::on::{DataSource, On};
pub use crate::pool::options::{Durability, MAX_POOL_BYTES, MIN_POOL_BYTES, PoolOptions, Populate};
pub(crate) use crate::pool::parts::has_head;
use crate::pool::parts::{
    check_data, check_mark, check_memory, create_data, derived_files, give_length,
};
use crate::refusal::Refusal;

fn pool_name(directory: Option<&Path>) -> String {
    directory.map_or_else(|| "(anonymous)".into(), |path| path.display().to_string())
}

fn os_error(what: &'static str, path: &Path, error: std::io::Error) -> Error {
    OsError::new(what, path.display().to_string(), error).into()
}

fn bad(directory: &Path, why: impl Into<String>) -> Error {
    Error::BadPool { pool: pool_name(Some(directory)), why: why.into() }
}

/// The files of a pool, open.
#[derive(Debug)]
pub struct Pool {
    id: PoolId,
    stored: StoredPool,
    pub(crate) is_new: bool,
    pub(crate) vmemmap_layout: VmemmapLayout,
    pub(crate) index_layout: IndexLayout,
    pub(crate) data: Arc<MemoryFile>,
    pub(crate) vmemmap: Arc<MemoryFile>,
    pub(crate) index: Arc<MemoryFile>,
    pub(crate) catalog: Option<Catalog>,
    /// What lies before the frames, if anything does.
    pub(crate) head: Option<DeviceHead>,
    directory: Option<Directory>,
    /// Clients of earlier owners that have ended, and whose ledgers are missing.
    missing_ledgers: Vec<u64>,
    /// Held for as long as the pool has an owner, where the data lies apart from the directory.
    data_lock: Mutex<Option<ParentFd>>,
    /// Set when the device that the data lies on is gone and was given up.
    is_given_up: OnceLock<()>,
}

/// What the sizes of a pool make of its files.
struct Layout {
    vmemmap: VmemmapLayout,
    index: IndexLayout,
    head: Option<DeviceHead>,
}

impl Layout {
    fn of(stored: &StoredPool, name: &str) -> Result<Self, Error> {
        let none = || Error::BadPool {
            pool: name.into(),
            why: format!("no layout for {} bytes", stored.size_bytes),
        };
        let nr_pages = stored.span_bytes / PAGE_BYTES;
        let vmemmap = VmemmapLayout::for_folios(nr_pages, stored.smallest).ok_or_else(none)?;
        let max_files = usize::try_from(stored.max_files).map_err(|_| none())?;
        let head = (stored.head != Head::Nothing)
            .then(|| DeviceHead::of(stored, &vmemmap).ok_or_else(none))
            .transpose()?;
        Ok(Self { vmemmap, index: IndexLayout::for_files(max_files), head })
    }

    const fn vmemmap_bytes(&self) -> u64 {
        self.vmemmap.nr_words() as u64 * 8
    }

    /// Where the descriptors start in the data, if they lie there.
    fn vmemmap_start(&self) -> Option<u64> {
        self.head.and_then(|head| head.vmemmap_start)
    }

    const fn index_bytes(&self) -> u64 {
        self.index.nr_words() as u64 * 8
    }
}

impl Pool {
    /// Makes a pool.
    ///
    /// # Errors
    /// [`Error::NotDurable`] when files are to outlive what the memory does not; [`Error::BadPool`]
    /// for a size out of bounds, for a device or file that holds a pool, for a directory that holds
    /// a pool or anything else under the names of its files, that another user owns or may change,
    /// or that lies on a file system which cannot hold a pool; [`Error::Os`] when the system has
    /// not the memory or the huge pages, which says how many are missing. Nothing is left behind
    /// then.
    pub fn create(options: &PoolOptions) -> Result<Self, Error> {
        let ground = options.on.as_deref().map(DataSource::inspect).transpose()?;
        let stored = options.checked(ground.as_ref().and_then(DataSource::device))?;
        let Some(path) = &options.directory else {
            return Self::create_anonymous(options, stored);
        };
        let directory = Directory::make(path)?;
        if holds_a_pool(path)? {
            return Err(bad(path, "there is a pool already; open it, or remove the directory"));
        }
        directory.check_empty()?;
        let made = match &ground {
            Some(DataSource::File(file)) => Some(file.clone()),
            _ => None,
        };
        match Self::create_files(&directory, options, stored, ground) {
            Ok(pool) => Ok(Self { directory: Some(directory), ..pool }),
            Err(error) => {
                for name in [DATA, VMEMMAP, INDEX, ON, CATALOG, CATALOG_NEW] {
                    remove_file(&directory.file(name))?;
                }
                made.map_or(Ok(()), |file| remove_file(&file))?;
                Err(error)
            }
        }
    }

    fn create_anonymous(options: &PoolOptions, mut stored: StoredPool) -> Result<Self, Error> {
        let name = pool_name(None);
        let layout = Layout::of(&stored, &name)?;
        let data = MemoryFile::anonymous("pgmap-data", stored.capacity_bytes, options.page_size)?;
        options.fit(&mut stored, &data)?;
        check_memory(&name, &data, stored.size_bytes)?;
        let make = |name, len| MemoryFile::anonymous(name, len, PageSize::Base).map(Arc::new);
        let pool = Self {
            id: PoolId::random()?,
            is_new: true,
            vmemmap: make(VMEMMAP, layout.vmemmap_bytes())?,
            index: make(INDEX, layout.index_bytes())?,
            vmemmap_layout: layout.vmemmap,
            index_layout: layout.index,
            data: Arc::new(data),
            catalog: None,
            head: None,
            directory: None,
            data_lock: Mutex::default(),
            is_given_up: OnceLock::new(),
            stored,
            missing_ledgers: Vec::new(),
        };
        pool.take_on(&options.nodes)?;
        pool.populate(options.populate)?;
        Ok(pool)
    }

    fn create_files(
        directory: &Directory,
        options: &PoolOptions,
        mut stored: StoredPool,
        ground: Option<DataSource>,
    ) -> Result<Self, Error> {
        let layout = Layout::of(&stored, &pool_name(Some(directory.path())))?;
        let id = PoolId::random()?;
        // First of all, so that whatever else is found beside it was made by us.
        let unfinished = MemoryFile::create_named(&directory.file(CATALOG_NEW), 0)?;
        if ground.is_none() {
            unfinished.check_capacity(stored.size_bytes)?;
        }
        directory.probe()?;
        let (data, data_lock) = create_data(directory, id, ground, stored.size_bytes)?;
        options.fit(&mut stored, &data)?;
        let catalog = match layout.head {
            Some(_) => {
                unfinished.reserve(0..HEADER_BYTES)?;
                None
            }
            None => Some(Catalog::create(Arc::new(unfinished), u64::MAX, id, &stored)?),
        };
        give_length(id, &data, &stored)?;
        let data = Arc::new(data);
        let (vmemmap, index) = derived_files(directory, id, &layout, &data, false)?;
        ledgers::make_place(directory.path())?;
        let mut pool = Self {
            id,
            is_new: true,
            vmemmap,
            index,
            vmemmap_layout: layout.vmemmap,
            index_layout: layout.index,
            data,
            catalog,
            head: layout.head,
            directory: None,
            data_lock: Mutex::new(data_lock),
            is_given_up: OnceLock::new(),
            stored,
            missing_ledgers: Vec::new(),
        };
        pool.take_on(&options.nodes)?;
        pool.populate(options.populate)?;
        // Before the catalog says that there is a pool: a file that lost its seal with the power
        // looks damaged ever after.
        for file in [&pool.data, &pool.vmemmap, &pool.index] {
            file.sync()?;
        }
        let unfinished = directory.file(CATALOG_NEW);
        match &pool.head {
            Some(head) => {
                let most_bytes = HEADER_BYTES + head.catalog_bytes;
                pool.catalog =
                    Some(Catalog::create(Arc::clone(&pool.data), most_bytes, id, &pool.stored)?);
                remove_file(&unfinished)?;
            }
            None => disk::rename(&unfinished, &directory.file(CATALOG))
                .map_err(|error| os_error("rename", &unfinished, error))?,
        }
        pool.sync_names(directory)?;
        Ok(pool)
    }

    /// Has the names of a new pool's files outlive the machine, if the pool is to.
    fn sync_names(&self, directory: &Directory) -> Result<(), Error> {
        if self.stored.durability == Durability::Processes {
            return Ok(());
        }
        let data = Path::new(self.data.name());
        let places = [Some(directory.path()), directory.path().parent(), data.parent()];
        for place in places.into_iter().flatten().filter(|place| place.is_dir()) {
            disk::sync_names(place).map_err(|error| os_error("sync", place, error))?;
        }
        Ok(())
    }

    /// Has the name of a file outlive the machine, if the pool is to.
    pub(crate) fn sync_name(&self, path: &Path) -> Result<(), Error> {
        match path.parent() {
            Some(place) if self.stored.durability != Durability::Processes => {
                disk::sync_names(place).map_err(|error| os_error("sync", place, error))
            }
            _ => Ok(()),
        }
    }

    /// Whether there is a pool in `directory`, which may be damaged, or of another format.
    ///
    /// # Errors
    /// [`Error::Os`] when the directory cannot be looked into.
    pub fn is_in(directory: impl AsRef<Path>) -> Result<bool, Error> {
        holds_a_pool(directory.as_ref())
    }

    /// Whether `on`, a device, a file, or a directory of huge pages, is the data of a pool, which
    /// may be damaged, or of another format.
    ///
    /// # Errors
    /// [`Error::Os`] when it cannot be looked into.
    pub fn is_on(on: impl AsRef<Path>) -> Result<bool, Error> {
        On::is_at(on.as_ref())
    }

    /// Opens the pool in `directory`.
    ///
    /// When the machine was restarted and the last owner had not stopped before, files that were
    /// made since an owner last stopped are not there any more: see [`unsynced`](Self::unsynced).
    ///
    /// # Errors
    /// [`Error::BadPool`] when there is none, its files do not belong together, it has another
    /// format, an owner, or is another user's; [`Error::Catalog`] when its catalog is damaged.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_in_boot(directory.as_ref(), BootId::current()?)
    }

    /// Opens the pool whose data is `on`, with what is good for this run of the machine in
    /// `directory`, which is made where it is missing.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Error::BadPool`] also when `directory` is another pool's, or when
    /// it is a fresh one and clients may be left of an owner that had another.
    pub fn open_on(on: impl AsRef<Path>, directory: impl AsRef<Path>) -> Result<Self, Error> {
        let (on, path) = (on.as_ref(), directory.as_ref());
        let boot = BootId::current()?;
        let found = On::of(on, boot)?;
        match On::read(path)? {
            Some(known) if known == found.on => {}
            Some(known) => {
                let why = format!(
                    "its data is pool {} on {}, and that on {} is pool {}; choose another \
                     directory",
                    known.id,
                    known.path.display(),
                    on.display(),
                    found.on.id
                );
                return Err(bad(path, why));
            }
            None if holds_a_pool(path)? => {
                return Err(bad(
                    path,
                    "there is a pool whose data is here; choose another directory",
                ));
            }
            None if !found.is_idle => {
                let why = format!(
                    "pool {} was in use since the machine was started, with another directory, \
                     whose ledgers say what its clients hold; name that, or restart the machine",
                    found.on.id
                );
                return Err(bad(on, why));
            }
            None => {
                let directory = Directory::make(path)?;
                directory.check_empty()?;
                ledgers::make_place(path)?;
                found.on.write(&directory)?;
            }
        }
        Self::open_in_boot(path, boot)
    }

    /// As [`open`](Self::open), as if the machine were in the boot `boot`.
    pub(crate) fn open_in_boot(path: &Path, boot: BootId) -> Result<Self, Error> {
        if !holds_a_pool(path)? {
            check_no_parts(path)?;
            return Err(bad(path, "there is no pool; create one"));
        }
        let directory = Directory::open(path)?;
        directory.check_kinds()?;
        let catalog_path = directory.file(CATALOG);
        let on = On::read(path)?;
        let data_path = on.as_ref().map_or_else(|| directory.file(DATA), |on| on.path.clone());
        let data = Arc::new(MemoryFile::open_named(&data_path, FileAccess::ReadWrite)?);
        let data_lock = on.as_ref().map(|on| on::lock(&on.path, &data)).transpose()?;
        let catalog = if kind_of(&catalog_path)?.is_some() {
            let memory = MemoryFile::open_named(&catalog_path, FileAccess::ReadWrite)?;
            Catalog::open_in(Arc::new(memory), u64::MAX, boot)?
        } else {
            Catalog::open_in(Arc::clone(&data), u64::MAX, boot)?
        };
        let (id, stored) = (catalog.id(), catalog.pool());
        on.map_or(Ok(()), |on| on.check(path, id))?;
        check_data(&directory, id, &stored, &data)?;
        check_mark(&directory, &catalog, &data)?;
        stored.durability.check(&pool_name(Some(path)), &data)?;
        check_memory(&pool_name(Some(path)), &data, stored.size_bytes)?;
        let layout = Layout::of(&stored, &pool_name(Some(path)))?;
        if let Some(head) = &layout.head {
            catalog.bound(HEADER_BYTES + head.catalog_bytes);
        }
        if !catalog.is_same_boot() {
            ledgers::make_place(path)?;
            ledgers::remove_all(path)?;
        }
        let missing_ledgers = match catalog.is_same_boot() {
            true => ledgers::find_missing(path, id, &data, catalog.roster())?,
            false => Vec::new(),
        };
        let has_live_client = ledgers::has_live_client(path, id, &data, catalog.roster())?;
        let (vmemmap, index) = derived_files(&directory, id, &layout, &data, has_live_client)?;
        // Left by a creation on the device that was cut short at its last step.
        remove_file(&directory.file(CATALOG_NEW))?;
        Ok(Self {
            id,
            is_new: false,
            vmemmap,
            index,
            vmemmap_layout: layout.vmemmap,
            index_layout: layout.index,
            data,
            catalog: Some(catalog),
            head: layout.head,
            directory: Some(directory),
            data_lock: Mutex::new(data_lock),
            is_given_up: OnceLock::new(),
            stored,
            missing_ledgers,
        })
    }

    /// Has memory of the data that is taken from now on be taken on `nodes`: on one alone, or on
    /// several in turn. None is as before. What is there already stays where it is.
    ///
    /// # Errors
    /// [`Error::Os`] with `EINVAL` for a node without memory, and for data whose memory lies
    /// elsewhere by its nature.
    pub fn take_on(&self, nodes: &BTreeSet<u32>) -> Result<(), Error> {
        if !nodes.is_empty() {
            let page = self.data.page_size().len_bytes();
            self.data.place_on(nodes, self.stored.capacity_bytes.next_multiple_of(page))?;
        }
        Ok(())
    }

    fn populate(&self, populate: Populate) -> Result<(), Error> {
        if populate == Populate::Upfront {
            self.data.reserve(0..self.stored.size_bytes)?;
        }
        Ok(())
    }

    /// Files that are not there any more: the machine was restarted before an owner had synced
    /// them.
    #[must_use]
    pub fn unsynced(&self) -> &[FileName] {
        self.catalog.as_ref().map_or(&[], Catalog::unsynced)
    }

    /// Takes the pool over for changes.
    pub(crate) fn begin(&self) -> Result<(), Error> {
        let Some(catalog) = &self.catalog else { return Ok(()) };
        self.mark(Mark::Open(catalog.state().sequence))?;
        if self.is_new {
            return Ok(());
        }
        catalog.begin()?;
        // And again: the catalog of before this owner does not go with the data any more.
        self.mark(Mark::Open(catalog.state().sequence))
    }

    /// Says in the data how far the catalog is, where that lies elsewhere or can be copied without
    /// it.
    fn mark(&self, mark: Mark) -> Result<(), Error> {
        if on::has_seal(&self.data) { mark.write(&self.data, self.id) } else { Ok(()) }
    }

    /// Syncs data and catalog, and puts that on record.
    pub(crate) fn end(&self) -> Result<(), Error> {
        let Some(catalog) = &self.catalog else { return Ok(()) };
        let last = catalog.state().sequence + CLOSING_CHANGES;
        self.mark(Mark::Closed(last))?;
        self.data.sync()?;
        catalog.end()
    }

    /// Lets another become the pool's owner, whoever still has this.
    pub(crate) fn release(&self) {
        if let Some(directory) = &self.directory
            && let Err(error) = directory.release()
        {
            tracing::warn!(%error, pool = %self.name(), "the owner's lock could not be given back");
        }
        if let Some(lock) = &*self.data_lock()
            && let Err(error) = file_lock::unlock(lock)
        {
            tracing::warn!(
                %error,
                pool = %self.name(),
                "the lock of the data could not be given back"
            );
        }
    }

    fn data_lock(&self) -> MutexGuard<'_, Option<ParentFd>> {
        self.data_lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the data lies on a device that went away: the owner has given it up, and goes on to
    /// say what it knows.
    #[must_use]
    pub fn is_device_gone(&self) -> bool {
        self.is_given_up.get().is_some()
    }

    /// Whether that device is back: the pool can be opened again when this owner has ended.
    #[must_use]
    pub fn is_device_back(&self) -> bool {
        self.is_device_gone() && self.data.is_device_back()
    }

    /// Whether the data lies on a device, which may go away.
    #[must_use]
    pub fn is_on_device(&self) -> bool {
        self.data.kind() == MemoryKind::DevDax
    }

    /// Where the descriptors start in their file.
    pub(crate) fn vmemmap_start(&self) -> u64 {
        self.head.and_then(|head| head.vmemmap_start).unwrap_or(0)
    }

    pub(crate) const fn id(&self) -> PoolId {
        self.id
    }

    /// Bytes of data.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.stored.size_bytes
    }

    /// Files of few extents that it has room for.
    #[must_use]
    pub const fn max_files(&self) -> u64 {
        self.stored.max_files
    }

    /// Where its files are; none for an anonymous pool.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_ref().map(Directory::path)
    }

    /// As messages call it.
    pub(crate) fn name(&self) -> String {
        pool_name(self.directory())
    }

    /// Bytes of the data file: the pool and room for more pagemaps.
    #[must_use]
    pub const fn capacity_bytes(&self) -> u64 {
        self.stored.capacity_bytes
    }

    /// Bytes that frames can be described for: the data file, and room for further backings.
    #[must_use]
    pub const fn span_bytes(&self) -> u64 {
        self.stored.span_bytes
    }

    pub(crate) const fn nr_pages(&self) -> u64 {
        self.stored.size_bytes / PAGE_BYTES
    }

    /// What kind of memory it is.
    #[must_use]
    pub const fn memory_type(&self) -> MemoryType {
        self.stored.memory_type
    }

    /// Clients of earlier owners that have ended, and of whose ledgers nobody knows what they said.
    pub(crate) fn missing_ledgers(&self) -> &[u64] {
        &self.missing_ledgers
    }

    /// The process of a client of an earlier owner, where the roster says it.
    pub(crate) fn pid_on_roster(&self, client: u64) -> Option<i32> {
        let mut roster = self.catalog.as_ref()?.roster().iter();
        roster.find(|enrolled| enrolled.client == client).map(|enrolled| enrolled.pid)
    }

    /// What committed files outlive.
    #[must_use]
    pub const fn durability(&self) -> Durability {
        self.stored.durability
    }

    pub(crate) fn ledger_layout(&self) -> LedgerLayout {
        LedgerLayout::new(&self.vmemmap_layout)
    }

    /// Puts changes on record where the pool has a catalog.
    pub(crate) fn record(&self, changes: &[Change<'_>]) -> Result<(), Refusal> {
        match &self.catalog {
            Some(catalog) if !changes.is_empty() => Ok(catalog.record(changes)?),
            _ => Ok(()),
        }
    }

    /// Whether the catalog may have a change that was refused.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.catalog.as_ref().is_some_and(Catalog::is_in_doubt)
    }

    /// Tries again to take that change back.
    pub(crate) fn settle(&self) {
        self.catalog.iter().for_each(Catalog::settle);
    }

    /// Memory of descriptors and index now.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        let is_apart = !Arc::ptr_eq(&self.vmemmap, &self.data);
        let vmemmap = if is_apart { self.vmemmap.resident_bytes() } else { 0 };
        vmemmap + self.index.resident_bytes()
    }
}

impl Pool {
    /// Whether it was made with room for further backings.
    pub(crate) const fn has_room(&self) -> bool {
        self.stored.span_bytes > self.stored.capacity_bytes
    }

    /// Gives up a device that is gone: nothing of it is mapped or open here any more.
    pub(crate) fn give_up(&self) -> Result<(), Error> {
        self.data.abandon()?;
        *self.data_lock() = None;
        self.is_given_up.get_or_init(|| ());
        Ok(())
    }
}
