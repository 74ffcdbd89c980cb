//! What a pool is to be, as its maker says, checked once.

use std::collections::BTreeSet;
use std::path::PathBuf;

use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::memory_type::MemoryType;
use pgmap_os::{LongTerm, MemoryFile, MemoryKind, PageSize, Persistence};

use crate::error::Error;
use crate::pool::catalog::{Head, StoredPool};
use crate::pool::pool_name;

/// Smallest pool: one 4 KiB frame.
pub const MIN_POOL_BYTES: u64 = PAGE_BYTES;
/// Largest pool.
pub const MAX_POOL_BYTES: u64 = 1 << 46;
const MIN_FILES: u64 = 1024;
/// Most files that a pool can be made for.
pub(crate) const MAX_FILES: u64 = 1 << 24;

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

/// What committed files are to outlive. A pool that cannot keep it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Durability {
    /// Processes: an anonymous pool ends with its last user, one in a directory outlives its owner.
    #[default]
    Processes,
    /// An orderly restart of the machine, after the owner has stopped: the data lies on a disk, or
    /// in memory that is persistent.
    Restart,
    /// A power failure, from the moment that a commit returned. The contents are flushed before the
    /// catalog says so: by fdatasync, on device-dax by CLWB and SFENCE. The region of a device must
    /// say that what was flushed is safe (`persistence_domain` in sysfs); that a device accepts
    /// `MAP_SYNC` says nothing, for memory that forgets does too.
    PowerFailure,
}

impl Durability {
    /// As the catalog's header stores it.
    pub(crate) const fn number(self) -> u64 {
        self as u64
    }

    pub(crate) const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Processes),
            1 => Some(Self::Restart),
            2 => Some(Self::PowerFailure),
            _ => None,
        }
    }

    /// Refuses what `data` does not keep.
    pub(crate) fn check(self, pool: &str, data: &MemoryFile) -> Result<(), Error> {
        let (needed, kept) = match self {
            Self::Processes => return Ok(()),
            Self::Restart => (Persistence::Restart, data.persistence()),
            Self::PowerFailure => (Persistence::PowerFailure, data.persistence()),
        };
        if kept >= needed {
            return Ok(());
        }
        let (name, kind) = (data.name(), data.kind());
        let why = match (kind, kept) {
            (MemoryKind::DevDax, Persistence::Restart) => format!(
                "the region of {name} does not say that what was flushed is safe \
                 (persistence_domain in sysfs)"
            ),
            _ => format!("{name} ({kind}) outlives {kept}"),
        };
        Err(Error::NotDurable { pool: pool.into(), needed: needed.to_string(), why })
    }
}

/// What a pool is to be.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// 0 stands for all that a device has.
    size_bytes: u64,
    pub(super) directory: Option<PathBuf>,
    pub(super) on: Option<PathBuf>,
    pub(super) page_size: PageSize,
    pub(super) populate: Populate,
    max_files: Option<u64>,
    memory_type: Option<MemoryType>,
    capacity_bytes: u64,
    room_bytes: u64,
    has_metadata_on_device: bool,
    smallest: Level,
    pub(super) durability: Durability,
    pub(super) nodes: BTreeSet<u32>,
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
            on: None,
            max_files: None,
            memory_type: None,
            capacity_bytes: 0,
            room_bytes: 0,
            has_metadata_on_device: false,
            smallest: Level::Pte,
            durability: Durability::Processes,
            nodes: BTreeSet::new(),
        }
    }

    /// A pool whose files are in `directory`, which is made if it does not exist.
    #[must_use]
    pub fn in_directory(directory: impl Into<PathBuf>, size_bytes: u64) -> Self {
        Self { directory: Some(directory.into()), ..Self::anonymous(size_bytes) }
    }

    /// A pool whose data is `on`: a device-dax device, a file that is yet to be made, on a file
    /// system mounted with DAX or not, or a directory of hugetlbfs, in which a file is made. The
    /// data carries the catalog, so it can be opened elsewhere
    /// ([`Pool::open_on`](crate::Pool::open_on)). What is good for this run of the machine only
    /// lies in `directory`, which is best on tmpfs.
    ///
    /// All of a device is used unless [`size`](Self::size) says otherwise. A file needs a size.
    #[must_use]
    pub fn on(on: impl Into<PathBuf>, directory: impl Into<PathBuf>) -> Self {
        Self { on: Some(on.into()), ..Self::in_directory(directory, 0) }
    }

    /// Says how many bytes of data the pool is to have.
    #[must_use]
    pub const fn size(mut self, size_bytes: u64) -> Self {
        self.size_bytes = size_bytes;
        self
    }

    /// Uses the system's huge pages for the data. Anonymous pools only: [`on`](Self::on) takes a
    /// directory of hugetlbfs.
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

    /// Leaves room for pagemaps that are added later: `capacity_bytes` for the pool and all of
    /// them, each on a 1 GiB boundary. Room costs nothing until it is used.
    #[must_use]
    pub const fn capacity(mut self, capacity_bytes: u64) -> Self {
        self.capacity_bytes = capacity_bytes;
        self
    }

    /// Leaves room for further backings, which can be added later
    /// ([`Owner::add_backing`](crate::Owner::add_backing)): `room_bytes` for all of them together,
    /// each of which starts at a multiple of 1 GiB, with a page or more before it that it does not
    /// use. Room is addresses in each process, and costs no memory until it is used.
    #[must_use]
    pub const fn room(mut self, room_bytes: u64) -> Self {
        self.room_bytes = room_bytes;
        self
    }

    /// Keeps descriptors and catalog at the head of the data that they describe (altmap), for a
    /// device that brings more memory than there is to describe it. Pools in a directory only.
    #[must_use]
    pub const fn metadata_on_device(mut self) -> Self {
        self.has_metadata_on_device = true;
        self
    }

    /// Has files consist of folios of `smallest` level and larger; none is split below, and a
    /// failure of memory costs one. Descriptors on the device are then only as many as such folios
    /// need. Goes with [`metadata_on_device`](Self::metadata_on_device) and with [`on`](Self::on);
    /// elsewhere what is not used costs nothing anyhow.
    #[must_use]
    pub const fn smallest_folio(mut self, smallest: Level) -> Self {
        self.smallest = smallest;
        self
    }

    /// Says what kind of memory the pool is, which decides about long-term pins: `Generic`
    /// (device-dax) allows them, `FsDax` only as leases of files that are leasable. Default: what
    /// the data lies on.
    #[must_use]
    pub const fn memory_type(mut self, memory_type: MemoryType) -> Self {
        self.memory_type = Some(memory_type);
        self
    }

    /// Says what committed files must outlive.
    #[must_use]
    pub const fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Has the data's memory be taken on these NUMA nodes: on one alone, or on several in turn. For
    /// memory that is not bound to a node by nature: memfds, tmpfs, huge pages. Default: where the
    /// process runs that first writes it.
    #[must_use]
    pub fn nodes(mut self, nodes: impl IntoIterator<Item = u32>) -> Self {
        self.nodes = nodes.into_iter().collect();
        self
    }

    /// What is asked for, checked against the device that it is to be on, if any.
    pub(super) fn checked(&self, device: Option<&MemoryFile>) -> Result<StoredPool, Error> {
        let bad = |why: String| Error::BadPool { pool: self.name(), why };
        let (size_bytes, unit) = self.checked_size(device)?;
        if self.page_size != PageSize::Base && self.directory.is_some() {
            let why = "huge pages in files lie on hugetlbfs: name a directory of it with `on`";
            return Err(bad(why.into()));
        }
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
        if let Some(has) = device.map(MemoryFile::len_bytes).filter(|&has| capacity_bytes > has) {
            return Err(bad(format!("a capacity of {capacity_bytes}; the device has {has} bytes")));
        }
        let span_bytes = span_bytes(capacity_bytes, self.room_bytes).ok_or_else(|| {
            let room = self.room_bytes;
            bad(format!("room for {room} bytes of backings; at most {MAX_POOL_BYTES} in all"))
        })?;
        if self.has_metadata_on_device && self.directory.is_none() {
            return Err(bad("metadata on the device needs a pool in a directory".into()));
        }
        let head = match (self.has_metadata_on_device, &self.on) {
            (true, _) => Head::CatalogAndDescriptors,
            (false, Some(_)) => Head::Catalog,
            (false, None) => Head::Nothing,
        };
        let smallest = self.smallest;
        if smallest != Level::Pte {
            if head == Head::Nothing {
                let why = "a smallest folio goes with data on a device, or with metadata on it";
                return Err(bad(why.into()));
            }
            let unit = smallest.size_bytes();
            if !size_bytes.is_multiple_of(unit) || !capacity_bytes.is_multiple_of(unit) {
                return Err(bad(format!("a size of {size_bytes} is not whole {smallest} folios")));
            }
        }
        Ok(StoredPool {
            size_bytes,
            capacity_bytes,
            span_bytes,
            max_files,
            memory_type: self.memory_type.unwrap_or(MemoryType::Generic),
            head,
            smallest,
            page: level_of(self.page_size),
            durability: self.durability,
        })
    }

    /// What follows from the memory that the data lies in.
    ///
    /// # Errors
    /// [`Error::NotDurable`] when it does not keep what was asked for.
    pub(super) fn fit(&self, stored: &mut StoredPool, data: &MemoryFile) -> Result<(), Error> {
        self.durability.check(&self.name(), data)?;
        stored.page = level_of(data.page_size());
        if self.memory_type.is_none() && data.kind().long_term() == LongTerm::Leased {
            stored.memory_type = MemoryType::FsDax;
        }
        Ok(())
    }

    /// The size in whole units, and the unit.
    fn checked_size(&self, device: Option<&MemoryFile>) -> Result<(u64, u64), Error> {
        let bad = |why: String| Error::BadPool { pool: self.name(), why };
        let size_bytes = match (self.size_bytes, device) {
            (0, Some(device)) => {
                let whole = self.smallest.size_bytes();
                device.len_bytes().min(MAX_POOL_BYTES) / whole * whole
            }
            (0, None) if self.on.is_some() => {
                return Err(bad("a pool in a file needs a size".into()));
            }
            (bytes, _) => bytes,
        };
        if !(MIN_POOL_BYTES..=MAX_POOL_BYTES).contains(&size_bytes) {
            let why =
                format!("a size of {size_bytes} bytes; use {MIN_POOL_BYTES} to {MAX_POOL_BYTES}");
            return Err(bad(why));
        }
        if let Some(has) = device.map(MemoryFile::len_bytes).filter(|&has| size_bytes > has) {
            return Err(bad(format!("a size of {size_bytes} bytes; the device has {has}")));
        }
        let unit = self.page_size.len_bytes();
        Ok((size_bytes.next_multiple_of(unit), unit))
    }

    pub(super) fn name(&self) -> String {
        pool_name(self.directory.as_deref())
    }
}

/// Bytes that frames are to be described for, of a pool with room for `room_bytes` of further
/// backings; `None` for more than any pool has.
pub(super) fn span_bytes(capacity_bytes: u64, room_bytes: u64) -> Option<u64> {
    if room_bytes == 0 {
        return Some(capacity_bytes);
    }
    let step = Level::Pud.size_bytes();
    let first = first_backing_bytes(capacity_bytes);
    let room_bytes = room_bytes.checked_next_multiple_of(step)?;
    first.checked_add(room_bytes).filter(|&span| span <= MAX_POOL_BYTES)
}

/// Where the first frame of a backing can be behind `end_bytes`: on a 1 GiB boundary, with a frame
/// in between that is nobody's.
pub(crate) const fn first_backing_bytes(end_bytes: u64) -> u64 {
    (end_bytes + 1).next_multiple_of(Level::Pud.size_bytes())
}

/// The folio size that is as large as a page of a backing.
pub(super) const fn level_of(page: PageSize) -> Level {
    match page {
        PageSize::Base => Level::Pte,
        PageSize::Huge2M => Level::Pmd,
        PageSize::Huge1G => Level::Pud,
    }
}
