//! What a pool is to be, as its maker says, checked once.

use std::path::PathBuf;

use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::memory_type::MemoryType;
use pgmap_os::PageSize;

use crate::error::Error;
use crate::owner::catalog::StoredPool;
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
    pub(super) directory: Option<PathBuf>,
    pub(super) page_size: PageSize,
    pub(super) populate: Populate,
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

    pub(super) fn checked(&self) -> Result<StoredPool, Error> {
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

    pub(super) fn name(&self) -> String {
        pool_name(self.directory.as_deref())
    }
}
