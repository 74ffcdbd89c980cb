//! A pool: the files that hold data, descriptors, index, ledgers and catalog.
//!
//! An anonymous pool is a set of memfds and ends with its last user. A pool in a directory has its
//! files there, so that a restarted owner finds everything again.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgmap_mm::index::IndexLayout;
use pgmap_mm::ledger::LedgerLayout;
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::memory_type::MemoryType;
use pgmap_mm::vmemmap::VmemmapLayout;
use pgmap_os::{Access, MemoryFile, OsError, PageSize, file_lock};

use crate::error::Error;
use crate::owner::catalog::{Catalog, StoredPool};
use crate::owner::device_head::{CatalogRegion, DeviceHead, read_superblock, write_superblock};

/// Smallest pool: one 4 KiB frame.
pub const MIN_POOL_BYTES: u64 = PAGE_BYTES;
/// Largest pool.
pub const MAX_POOL_BYTES: u64 = 1 << 46;
const MIN_FILES: u64 = 1024;
const MAX_FILES: u64 = 1 << 24;

/// When the pool's memory is taken from the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Populate {
    /// When frames are first handed out. A shortage is an error then, never a signal.
    #[default]
    OnDemand,
    /// All of it when the pool is made.
    Upfront,
}

/// What committed files are to outlive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Durability {
    /// Processes: an anonymous pool ends with its last user, one in a directory outlives its owner.
    #[default]
    Processes,
    /// A power failure too, as `MAP_SYNC` promises (Linux 7.1: include/linux/dax.h,
    /// `daxdev_mapping_supported`). No pool
    /// keeps that promise yet, so asking for it is an error and not a flag that is dropped.
    PowerFailure,
}

/// What a pool is to be.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    size_bytes: u64,
    directory: Option<PathBuf>,
    page_size: PageSize,
    populate: Populate,
    max_files: Option<u64>,
    memory_type: MemoryType,
    capacity_bytes: u64,
    has_metadata_on_device: bool,
    smallest: Level,
    durability: Durability,
}

impl PoolOptions {
    /// An anonymous pool of `size_bytes`, rounded up to whole 4 KiB frames.
    #[must_use]
    pub const fn anonymous(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            directory: None,
            page_size: PageSize::Base,
            populate: Populate::OnDemand,
            max_files: None,
            memory_type: MemoryType::Generic,
            capacity_bytes: 0,
            has_metadata_on_device: false,
            smallest: Level::Pte,
            durability: Durability::Processes,
        }
    }

    /// A pool whose files are in `directory`, which is made if it does not exist.
    #[must_use]
    pub fn in_directory(directory: impl Into<PathBuf>, size_bytes: u64) -> Self {
        Self { directory: Some(directory.into()), ..Self::anonymous(size_bytes) }
    }

    /// Uses the system's huge pages for the data. Anonymous pools only.
    #[must_use]
    pub const fn huge_pages(mut self, page_size: PageSize) -> Self {
        self.page_size = page_size;
        self
    }

    /// Says when memory is taken.
    #[must_use]
    pub const fn populate(mut self, populate: Populate) -> Self {
        self.populate = populate;
        self
    }

    /// Says how many files the pool must have room for.
    #[must_use]
    pub const fn max_files(mut self, max_files: u64) -> Self {
        self.max_files = Some(max_files);
        self
    }

    /// Leaves room for pagemaps that are added later: `capacity_bytes` for the pool and all of them,
    /// each on a 1 GiB boundary. Room costs nothing until it is used.
    #[must_use]
    pub const fn capacity(mut self, capacity_bytes: u64) -> Self {
        self.capacity_bytes = capacity_bytes;
        self
    }

    /// Keeps descriptors and catalog at the head of the data that they describe (altmap), for a device
    /// that brings more memory than there is to describe it. Pools in a directory only.
    #[must_use]
    pub const fn metadata_on_device(mut self) -> Self {
        self.has_metadata_on_device = true;
        self
    }

    /// Makes the head of the device only as large as folios of `smallest` level and larger need. Files
    /// then consist of such folios, none is split below, and a failure of memory costs one. Goes with
    /// [`metadata_on_device`](Self::metadata_on_device); elsewhere what is not used costs nothing anyhow.
    #[must_use]
    pub const fn smallest_folio(mut self, smallest: Level) -> Self {
        self.smallest = smallest;
        self
    }

    /// Says what kind of memory the pool is, which decides about long-term pins: `Generic` (device-dax)
    /// allows them, `FsDax` only as leases of files that are leasable.
    #[must_use]
    pub const fn memory_type(mut self, memory_type: MemoryType) -> Self {
        self.memory_type = memory_type;
        self
    }

    /// Says what committed files must outlive.
    #[must_use]
    pub const fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    fn checked(&self) -> Result<StoredPool, Error> {
        let bad = |why: String| Error::BadPool { pool: self.name(), why };
        if self.durability == Durability::PowerFailure {
            return Err(Error::NotDurable { pool: self.name() });
        }
        if self.size_bytes < MIN_POOL_BYTES || self.size_bytes > MAX_POOL_BYTES {
            return Err(bad(format!(
                "a size of {} bytes; use {MIN_POOL_BYTES} to {MAX_POOL_BYTES}",
                self.size_bytes
            )));
        }
        let unit = self.page_size.len_bytes();
        if self.page_size != PageSize::Base && self.directory.is_some() {
            return Err(bad("huge pages need an anonymous pool".into()));
        }
        let size_bytes = self.size_bytes.next_multiple_of(unit);
        let by_size = (size_bytes / (64 * 1024)).clamp(MIN_FILES, 1 << 20);
        let max_files = self.max_files.unwrap_or(by_size);
        if max_files == 0 || max_files > MAX_FILES {
            return Err(bad(format!("room for {max_files} files; use 1 to {MAX_FILES}")));
        }
        let capacity_bytes = self.capacity_bytes.max(size_bytes);
        if capacity_bytes > MAX_POOL_BYTES {
            return Err(bad(format!("a capacity of {capacity_bytes}; at most {MAX_POOL_BYTES}")));
        }
        let capacity_bytes = capacity_bytes.next_multiple_of(unit);
        let has_metadata_on_device = self.has_metadata_on_device;
        if has_metadata_on_device && self.directory.is_none() {
            return Err(bad("metadata on the device needs a pool in a directory".into()));
        }
        let smallest = self.smallest;
        if smallest != Level::Pte {
            if !has_metadata_on_device {
                return Err(bad("a smallest folio goes with metadata on the device".into()));
            }
            let unit = smallest.size_bytes();
            if !size_bytes.is_multiple_of(unit) || !capacity_bytes.is_multiple_of(unit) {
                return Err(bad(format!("a size of {size_bytes} is not whole {smallest} folios")));
            }
        }
        let memory_type = self.memory_type;
        Ok(StoredPool {
            size_bytes,
            capacity_bytes,
            max_files,
            memory_type,
            has_metadata_on_device,
            smallest,
        })
    }

    fn name(&self) -> String {
        pool_name(self.directory.as_deref())
    }
}

fn pool_name(directory: Option<&Path>) -> String {
    directory.map_or_else(|| "(anonymous)".into(), |path| path.display().to_string())
}

/// The files of a pool, open.
#[derive(Debug)]
pub struct Pool {
    directory: Option<PathBuf>,
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
    /// Held, by its lock, for as long as the pool has an owner.
    _lock: Option<File>,
}

impl Pool {
    /// Makes a pool.
    ///
    /// # Errors
    /// [`Error::NotDurable`] when files are to outlive a power failure; [`Error::BadPool`] for a size out of bounds or a directory that holds a pool;
    /// [`Error::Os`] when the system has not the memory or the huge pages, which says how many are
    /// missing.
    pub fn create(options: &PoolOptions) -> Result<Self, Error> {
        let stored = options.checked()?;
        let Some(directory) = &options.directory else {
            let len = stored.capacity_bytes;
            let data = MemoryFile::anonymous("pgmap-data", len, options.page_size)?;
            let pool = Self::assemble(None, stored, data, |name, len| {
                MemoryFile::anonymous(name, len, PageSize::Base)
            })?;
            return pool.populated(options.populate);
        };
        let lock = lock_directory(directory)?;
        let path = |name: &str| directory.join(name);
        if path(CATALOG).exists() || on_device(&path(DATA)).is_some() {
            return Err(Error::BadPool {
                pool: pool_name(Some(directory)),
                why: "there is a pool already; open it, or remove the directory".into(),
            });
        }
        // What a creation that was cut short left behind is no pool: the catalog comes last.
        for name in [DATA, VMEMMAP, INDEX, CATALOG_NEW] {
            remove_file(&path(name))?;
        }
        let data = MemoryFile::create_named(&path(DATA), 0)?;
        data.check_capacity(stored.size_bytes)?;
        data.set_len(stored.capacity_bytes)?;
        let mut pool =
            Self::assemble(Some(directory.clone()), stored.clone(), data, |name, len| {
                MemoryFile::create_named(&path(name), len)
            })?;
        fs::create_dir_all(path(LEDGERS)).map_err(|e| os_error("create", &path(LEDGERS), e))?;
        pool = pool.populated(options.populate)?;
        if let Some(head) = &pool.head {
            let region = CatalogRegion::open(&pool.data, head)?;
            pool.catalog = Some(Catalog::on_device(region, Some(&stored))?);
            write_superblock(&pool.data, &stored)?;
            pool._lock = Some(lock);
            return Ok(pool);
        }
        Catalog::create(&path(CATALOG_NEW), &stored)?;
        fs::rename(path(CATALOG_NEW), path(CATALOG))
            .map_err(|e| os_error("rename", &path(CATALOG), e))?;
        pool.catalog = Some(Catalog::open(&path(CATALOG))?.0);
        pool._lock = Some(lock);
        Ok(pool)
    }

    /// Opens the pool in `directory`.
    ///
    /// # Errors
    /// [`Error::BadPool`] when there is none, its files do not fit together, or it has an owner.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, Error> {
        let directory = directory.as_ref();
        let path = |name: &str| directory.join(name);
        let on_device = on_device(&path(DATA));
        if !path(CATALOG).exists() && on_device.is_none() {
            return Err(Error::BadPool {
                pool: pool_name(Some(directory)),
                why: "there is no pool; create one".into(),
            });
        }
        let lock = lock_directory(directory)?;
        let (catalog, stored) = match on_device {
            Some(stored) => (None, stored),
            None => {
                let (catalog, stored) = Catalog::open(&path(CATALOG))?;
                (Some(catalog), stored)
            }
        };
        let data = MemoryFile::open_named(&path(DATA), Access::ReadWrite)?;
        if data.len_bytes() != stored.capacity_bytes {
            return Err(Error::BadPool {
                pool: pool_name(Some(directory)),
                why: format!("{} bytes of data, not {}", data.len_bytes(), stored.capacity_bytes),
            });
        }
        let mut pool = Self::assemble(Some(directory.into()), stored, data, |name, len| {
            let file = MemoryFile::open_named(&path(name), Access::ReadWrite)?;
            if file.len_bytes() < len {
                file.set_len(len)?;
            }
            Ok(file)
        })?;
        pool.is_new = false;
        pool.catalog = match (catalog, &pool.head) {
            (None, Some(head)) => {
                Some(Catalog::on_device(CatalogRegion::open(&pool.data, head)?, None)?)
            }
            (catalog, _) => catalog,
        };
        pool._lock = Some(lock);
        Ok(pool)
    }

    fn assemble(
        directory: Option<PathBuf>,
        stored: StoredPool,
        data: MemoryFile,
        make: impl Fn(&str, u64) -> Result<MemoryFile, OsError>,
    ) -> Result<Self, Error> {
        let bad = || Error::BadPool {
            pool: pool_name(directory.as_deref()),
            why: format!("no layout for {} bytes", stored.size_bytes),
        };
        let nr_pages = stored.capacity_bytes / PAGE_BYTES;
        let vmemmap_layout =
            VmemmapLayout::for_folios(nr_pages, stored.smallest).ok_or_else(bad)?;
        let index_layout = IndexLayout::for_files(stored.max_files as usize);
        let head = stored
            .has_metadata_on_device
            .then(|| DeviceHead::of(&stored, &vmemmap_layout).ok_or_else(bad))
            .transpose()?;
        let data = Arc::new(data);
        let vmemmap = match head {
            Some(_) => Arc::clone(&data),
            None => Arc::new(make(VMEMMAP, vmemmap_layout.nr_words() as u64 * 8)?),
        };
        let index = make(INDEX, index_layout.nr_words() as u64 * 8)?;
        Ok(Self {
            directory,
            stored,
            is_new: true,
            vmemmap_layout,
            index_layout,
            data,
            vmemmap,
            index: Arc::new(index),
            catalog: None,
            head,
            _lock: None,
        })
    }

    fn populated(self, populate: Populate) -> Result<Self, Error> {
        if populate == Populate::Upfront {
            self.data.reserve(0..self.stored.size_bytes)?;
        }
        Ok(self)
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
        self.directory.as_deref()
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

    pub(crate) fn ledger_layout(&self) -> LedgerLayout {
        LedgerLayout::new(&self.vmemmap_layout)
    }

    /// Where a client's ledger lies in a pool with a directory.
    pub(crate) fn ledger_path(&self, client: u64) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(LEDGERS).join(client.to_string()))
    }

    /// Makes a client's ledger: the owner's own file and the descriptor for the client, a
    /// description of its own that is locked until the last copy of it is closed.
    pub(crate) fn make_ledger(&self, client: u64) -> Result<(MemoryFile, OwnedFd), Error> {
        let len = LedgerFile::new(&self.ledger_layout()).len_bytes;
        let file = match self.ledger_path(client) {
            Some(path) => MemoryFile::create_named(&path, len)?,
            None => MemoryFile::anonymous("pgmap-ledger", len, PageSize::Base)?,
        };
        let theirs = file.reopen_handle(Access::ReadWrite)?;
        match file_lock::try_lock_exclusive(&theirs) {
            Ok(true) => Ok((file, theirs)),
            Ok(false) => Err(Error::BadPool {
                pool: pool_name(self.directory.as_deref()),
                why: format!("somebody locks the new ledger {client}"),
            }),
            Err(error) => Err(OsError::new("lock", format!("ledger {client}"), error).into()),
        }
    }

    /// Numbers of the clients whose ledgers lie in the directory.
    pub(crate) fn ledgers_left(&self) -> Vec<u64> {
        let Some(directory) = &self.directory else { return Vec::new() };
        let Ok(entries) = fs::read_dir(directory.join(LEDGERS)) else { return Vec::new() };
        entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
    }

    /// Memory of descriptors and index now.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        let vmemmap = if self.head.is_some() { 0 } else { self.vmemmap.resident_bytes() };
        vmemmap + self.index.resident_bytes()
    }
}

/// Where words and counts lie in a ledger's file.
pub(crate) struct LedgerFile {
    pub words_bytes: u64,
    pub counts_bytes: u64,
    pub len_bytes: u64,
}

impl LedgerFile {
    pub(crate) fn new(layout: &LedgerLayout) -> Self {
        let words_bytes = (layout.nr_words() as u64 * 8).next_multiple_of(PAGE_BYTES);
        let counts_bytes = (layout.nr_counts() as u64 * 4).next_multiple_of(PAGE_BYTES);
        Self { words_bytes, counts_bytes, len_bytes: words_bytes + counts_bytes }
    }
}

/// What the superblock of a data file says, if there is one.
fn on_device(data: &Path) -> Option<StoredPool> {
    let data = MemoryFile::open_named(data, Access::ReadOnly).ok()?;
    read_superblock(&data).ok().flatten()
}

const DATA: &str = "data";
const VMEMMAP: &str = "vmemmap";
const INDEX: &str = "index";
const CATALOG: &str = "catalog";
const CATALOG_NEW: &str = "catalog.new";
const LEDGERS: &str = "ledgers";
const LOCK: &str = "owner.lock";

fn os_error(what: &'static str, path: &Path, error: std::io::Error) -> Error {
    OsError::new(what, path.display().to_string(), error).into()
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(os_error("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Makes the directory and takes the lock that says "this pool has an owner".
fn lock_directory(directory: &Path) -> Result<File, Error> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|e| os_error("create", directory, e))?;
    let path = directory.join(LOCK);
    let lock = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| os_error("open", &path, e))?;
    match file_lock::try_lock_exclusive(&lock) {
        Ok(true) => Ok(lock),
        Ok(false) => Err(Error::BadPool {
            pool: pool_name(Some(directory)),
            why: "it has an owner already, which holds owner.lock; connect to that, or stop it"
                .into(),
        }),
        Err(error) => Err(os_error("lock", &path, error)),
    }
}
