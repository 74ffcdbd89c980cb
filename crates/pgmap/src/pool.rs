//! A pool: the files that hold data, descriptors, index, ledgers and catalog.
//!
//! An anonymous pool is a set of memfds and ends with its last user. A pool in a directory has its
//! files there, so that a restarted owner finds everything again. Of these, catalog and data are the
//! pool. Descriptors and index say what the catalog says in another form: as long as a client lives
//! they are taken over as they are, else they are made again when the pool is opened.

pub(crate) mod directory;
pub(crate) mod identity;
pub(crate) mod ledgers;
pub(crate) mod mark;
pub(crate) mod options;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use pgmap_mm::index::IndexLayout;
use pgmap_mm::ledger::LedgerLayout;
use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::memory_type::MemoryType;
use pgmap_mm::vmemmap::VmemmapLayout;
use pgmap_os::{Access, MemoryFile, OsError, PageSize, disk};

use crate::error::Error;
use crate::name::FileName;
use crate::owner::catalog::header::{HEADER_BYTES, is_catalog};
use crate::owner::catalog::{CLOSING_CHANGES, Catalog, Change, StoredPool};
use crate::owner::device_head::DeviceHead;
use crate::pool::directory::{
    CATALOG, CATALOG_NEW, DATA, Directory, INDEX, VMEMMAP, check_no_parts, holds_a_pool,
    remove_file,
};
use crate::pool::identity::{BootId, FileKind, Found, PoolId, Seal};
pub(crate) use crate::pool::ledgers::{LedgerFile, LedgerIdentity};
use crate::pool::mark::{FoundMark, Mark};
pub use crate::pool::options::{Durability, MAX_POOL_BYTES, MIN_POOL_BYTES, PoolOptions, Populate};
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
    /// Where descriptors and catalog lie, if on the device.
    pub(crate) head: Option<DeviceHead>,
    directory: Option<Directory>,
    /// Clients of earlier owners that have ended, and whose ledgers are missing.
    missing_ledgers: Vec<u64>,
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
        let nr_pages = stored.capacity_bytes / PAGE_BYTES;
        let vmemmap = VmemmapLayout::for_folios(nr_pages, stored.smallest).ok_or_else(none)?;
        let max_files = usize::try_from(stored.max_files).map_err(|_| none())?;
        let head = stored
            .has_metadata_on_device
            .then(|| DeviceHead::of(stored, &vmemmap).ok_or_else(none))
            .transpose()?;
        Ok(Self { vmemmap, index: IndexLayout::for_files(max_files), head })
    }

    const fn vmemmap_bytes(&self) -> u64 {
        self.vmemmap.nr_words() as u64 * 8
    }

    const fn index_bytes(&self) -> u64 {
        self.index.nr_words() as u64 * 8
    }
}

impl Pool {
    /// Makes a pool.
    ///
    /// # Errors
    /// [`Error::NotDurable`] when files are to outlive a power failure; [`Error::BadPool`] for a size out
    /// of bounds, for a directory that holds a pool or anything else under the names of its files, that
    /// another user owns or may change, or that lies on a file system which cannot hold a pool;
    /// [`Error::Os`] when the system has not the memory or the huge pages, which says how many are
    /// missing. Nothing is left behind then.
    pub fn create(options: &PoolOptions) -> Result<Self, Error> {
        let stored = options.checked()?;
        let Some(path) = &options.directory else {
            return Self::create_anonymous(options, stored);
        };
        let directory = Directory::make(path)?;
        if holds_a_pool(path)? {
            return Err(bad(path, "there is a pool already; open it, or remove the directory"));
        }
        directory.check_empty()?;
        match Self::create_files(&directory, options, stored) {
            Ok(pool) => Ok(Self { directory: Some(directory), ..pool }),
            Err(error) => {
                for name in [DATA, VMEMMAP, INDEX, CATALOG, CATALOG_NEW] {
                    remove_file(&directory.file(name))?;
                }
                Err(error)
            }
        }
    }

    fn create_anonymous(options: &PoolOptions, stored: StoredPool) -> Result<Self, Error> {
        let name = pool_name(None);
        let layout = Layout::of(&stored, &name)?;
        let data = MemoryFile::anonymous("pgmap-data", stored.capacity_bytes, options.page_size)?;
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
            stored,
            missing_ledgers: Vec::new(),
        };
        pool.populate(options.populate)?;
        Ok(pool)
    }

    fn create_files(
        directory: &Directory,
        options: &PoolOptions,
        stored: StoredPool,
    ) -> Result<Self, Error> {
        let layout = Layout::of(&stored, &pool_name(Some(directory.path())))?;
        let id = PoolId::random()?;
        // First of all, so that whatever else is found beside it was made by us.
        let unfinished = MemoryFile::create_named(&directory.file(CATALOG_NEW), 0)?;
        unfinished.check_capacity(stored.size_bytes)?;
        let catalog = match layout.head {
            Some(_) => {
                unfinished.reserve(0..HEADER_BYTES)?;
                None
            }
            None => Some(Catalog::create(Arc::new(unfinished), u64::MAX, id, &stored)?),
        };
        directory.probe()?;
        let data = MemoryFile::create_named(&directory.file(DATA), 0)?;
        check_memory(&pool_name(Some(directory.path())), &data, stored.size_bytes)?;
        data.set_len(stored.capacity_bytes)?;
        let kind = data_kind(&stored);
        Seal { id, kind, len_bytes: stored.capacity_bytes }.write(&data)?;
        let data = Arc::new(data);
        let make = |name, kind, len_bytes| derived(directory, id, name, kind, len_bytes);
        let vmemmap = match layout.head {
            Some(_) => Arc::clone(&data),
            None => make(VMEMMAP, FileKind::Vmemmap, layout.vmemmap_bytes())?,
        };
        let index = make(INDEX, FileKind::Index, layout.index_bytes())?;
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
            stored,
            missing_ledgers: Vec::new(),
        };
        pool.populate(options.populate)?;
        // Before the catalog says that there is a pool: a file that lost its seal with the power looks
        // damaged ever after.
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
        Ok(pool)
    }

    /// Whether there is a pool in `directory`, which may be damaged, or of another format.
    ///
    /// # Errors
    /// [`Error::Os`] when the directory cannot be looked into.
    pub fn is_in(directory: impl AsRef<Path>) -> Result<bool, Error> {
        holds_a_pool(directory.as_ref())
    }

    /// Opens the pool in `directory`.
    ///
    /// When the machine was restarted and the last owner had not stopped before, files that were made
    /// since an owner last stopped are not there any more: see [`unsynced`](Self::unsynced).
    ///
    /// # Errors
    /// [`Error::BadPool`] when there is none, its files do not belong together, it has another format,
    /// an owner, or is another user's; [`Error::Catalog`] when its catalog is damaged.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_in_boot(directory.as_ref(), BootId::current()?)
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
        let data = Arc::new(MemoryFile::open_named(&directory.file(DATA), Access::ReadWrite)?);
        let catalog = if catalog_path.exists() {
            let memory = MemoryFile::open_named(&catalog_path, Access::ReadWrite)?;
            Catalog::open_in(Arc::new(memory), u64::MAX, boot)?
        } else {
            Catalog::open_in(Arc::clone(&data), u64::MAX, boot)?
        };
        let (id, stored) = (catalog.id(), catalog.pool());
        check_data(&directory, id, &stored, &data)?;
        check_mark(&directory, &catalog, &data)?;
        if stored.has_metadata_on_device && catalog_path.exists() {
            let why = "its catalog lies in its data, and there is a file `catalog` beside that, which \
                       is not its own; move that away";
            return Err(bad(path, why));
        }
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
        let has_live_client = ledgers::has_live_client(path, id, &data)?;
        let open = |name, kind, len_bytes| {
            if has_live_client {
                return kept(&directory, id, name, kind, len_bytes);
            }
            check_replaceable(&directory, id, name)?;
            derived(&directory, id, name, kind, len_bytes)
        };
        let vmemmap = match &layout.head {
            Some(head) if !has_live_client => {
                data.punch(head.vmemmap_start..head.vmemmap_start + layout.vmemmap_bytes())?;
                Arc::clone(&data)
            }
            Some(_) => Arc::clone(&data),
            None => open(VMEMMAP, FileKind::Vmemmap, layout.vmemmap_bytes())?,
        };
        let index = open(INDEX, FileKind::Index, layout.index_bytes())?;
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
            stored,
            missing_ledgers,
        })
    }

    fn populate(&self, populate: Populate) -> Result<(), Error> {
        if populate == Populate::Upfront {
            self.data.reserve(0..self.stored.size_bytes)?;
        }
        Ok(())
    }

    /// Files that are not there any more: the machine was restarted before an owner had synced them.
    #[must_use]
    pub fn unsynced(&self) -> &[FileName] {
        self.catalog.as_ref().map_or(&[], Catalog::unsynced)
    }

    /// Takes the pool over for changes.
    pub(crate) fn begin(&self) -> Result<(), Error> {
        let Some(catalog) = &self.catalog else { return Ok(()) };
        Mark::Open(catalog.state().sequence).write(&self.data, self.id)?;
        if self.is_new {
            return Ok(());
        }
        catalog.begin()?;
        // And again: the catalog of before this owner does not go with the data any more.
        Mark::Open(catalog.state().sequence).write(&self.data, self.id)
    }

    /// Syncs data and catalog, and puts that on record.
    pub(crate) fn end(&self) -> Result<(), Error> {
        let Some(catalog) = &self.catalog else { return Ok(()) };
        let last = catalog.state().sequence + CLOSING_CHANGES;
        Mark::Closed(last).write(&self.data, self.id)?;
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
        let vmemmap = if self.head.is_some() { 0 } else { self.vmemmap.resident_bytes() };
        vmemmap + self.index.resident_bytes()
    }
}

const fn data_kind(stored: &StoredPool) -> FileKind {
    if stored.has_metadata_on_device { FileKind::DataWithHead } else { FileKind::Data }
}

/// Refuses a pool that this process would be killed for, before anything of it is used.
fn check_memory(name: &str, data: &MemoryFile, size_bytes: u64) -> Result<(), Error> {
    // What lies on a disk can be dropped from memory, and huge pages are counted elsewhere.
    if !data.is_memory_backed() || data.page_size() != PageSize::Base {
        return Ok(());
    }
    match pgmap_os::memory_limit() {
        Some(limit) if size_bytes > limit.len_bytes => Err(Error::BadPool {
            pool: name.into(),
            why: format!(
                "{size_bytes} bytes of memory are more than this process may have, {} bytes by {}; \
                 make it smaller, or raise that limit",
                limit.len_bytes,
                limit.path.display()
            ),
        }),
        _ => Ok(()),
    }
}

/// Makes a file of what the catalog says in another form, in the place of an earlier one.
fn derived(
    directory: &Directory,
    id: PoolId,
    name: &str,
    kind: FileKind,
    len_bytes: u64,
) -> Result<Arc<MemoryFile>, Error> {
    let path = directory.file(name);
    remove_file(&path)?;
    let file = MemoryFile::create_named(&path, Seal::file_bytes(len_bytes))?;
    Seal { id, kind, len_bytes }.write(&file)?;
    Ok(Arc::new(file))
}

/// Opens a file that live clients have mapped.
fn kept(
    directory: &Directory,
    id: PoolId,
    name: &str,
    kind: FileKind,
    len_bytes: u64,
) -> Result<Arc<MemoryFile>, Error> {
    let file = MemoryFile::open_named(&directory.file(name), Access::ReadWrite)?;
    if Seal::read(&file)? != Found::Seal(Seal { id, kind, len_bytes }) {
        let why = format!(
            "its {name} is damaged or another pool's, and clients use it; end them, then it is \
             made again"
        );
        return Err(bad(directory.path(), why));
    }
    Ok(Arc::new(file))
}

/// Refuses to replace a file of another pool.
fn check_replaceable(directory: &Directory, id: PoolId, name: &str) -> Result<(), Error> {
    let path = directory.file(name);
    if !path.exists() {
        return Ok(());
    }
    match Seal::read(&MemoryFile::open_named(&path, Access::ReadOnly)?)? {
        Found::Seal(seal) if seal.id != id => {
            let why = format!("its {name} belongs to pool {}, its catalog to pool {id}", seal.id);
            Err(bad(directory.path(), why))
        }
        _ => Ok(()),
    }
}

/// Refuses data that is not the catalog's, or not all of it.
fn check_data(
    directory: &Directory,
    id: PoolId,
    stored: &StoredPool,
    data: &MemoryFile,
) -> Result<(), Error> {
    let wanted = Seal { id, kind: data_kind(stored), len_bytes: stored.capacity_bytes };
    let why = match Seal::read(data)? {
        Found::Seal(seal) if seal == wanted => return Ok(()),
        Found::Seal(seal) if seal.id != id => {
            format!("its data belongs to pool {}, its catalog to pool {id}", seal.id)
        }
        _ => format!(
            "its data, a file of {} bytes, is cut off or damaged: the pool {id} has {} bytes and \
             a seal behind them",
            data.len_bytes(),
            stored.capacity_bytes
        ),
    };
    Err(bad(directory.path(), why))
}

/// Refuses a catalog and data of which one is an old copy.
fn check_mark(directory: &Directory, catalog: &Catalog, data: &MemoryFile) -> Result<(), Error> {
    let damaged = || "the mark behind its data is damaged".to_owned();
    let why = match Mark::read(data, catalog.id())? {
        FoundMark::Mark { mark, is_alone, .. } => {
            let mismatch = mark.mismatch(catalog.state());
            mismatch.map(|why| if is_alone { damaged() } else { why })
        }
        FoundMark::None => None,
        FoundMark::Damaged => Some(damaged()),
    };
    why.map_or(Ok(()), |why| Err(bad(directory.path(), why)))
}

/// Whether a data file has a catalog at its head. What lies there in other data is a file's, and may
/// look like one.
pub(crate) fn has_head(path: &Path) -> bool {
    let Ok(data) = MemoryFile::open_named(path, Access::ReadOnly) else { return false };
    let is_sealed = match Seal::read(&data) {
        Ok(Found::Seal(seal)) => seal.kind == FileKind::DataWithHead,
        // Before format 2 there were no seals.
        _ => true,
    };
    is_sealed && is_catalog(&data)
}
