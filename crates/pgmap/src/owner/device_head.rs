//! altmap: a pool's descriptors and catalog at the head of the data that they describe.
//!
//! The head is a superblock page, the catalog's region and the descriptor arrays, rounded up to
//! 2 MiB or to the pool's smallest folio; its frames are Offline. There are arrays for the folio sizes that the pool
//! was made for and for no smaller one: see docs/adr/0027-the-head-fits-the-folios.md. It is as sparse as the descriptors are: what no folio needs is not
//! backed, so storing the metadata on the device and paying 8 bytes a folio go together, which
//! Linux cannot (Linux 7.1: include/linux/mm.h, `vmemmap_can_optimize`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::memory_type::MemoryType;
use pgmap_mm::vmemmap::VmemmapLayout;
use pgmap_os::MemoryFile;
use redb::StorageBackend;

use crate::error::Error;
use crate::owner::catalog::StoredPool;

const MAGIC: u64 = u64::from_le_bytes(*b"pgmapSB1");
const NR_FIELDS: usize = 8;
/// Which field says how much of the catalog's region is in use.
const CATALOG_LEN_FIELD: usize = 6;
const MIN_CATALOG_BYTES: u64 = 4 << 20;
const MAX_CATALOG_BYTES: u64 = 1 << 30;
/// The catalog's share of the pool.
const CATALOG_SHARE: u64 = 32;

/// Where the parts of a head lie, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceHead {
    pub catalog_bytes: u64,
    pub vmemmap_start: u64,
    pub head_bytes: u64,
}

impl DeviceHead {
    /// The head of a pool; none when it leaves no frame.
    pub(crate) fn of(pool: &StoredPool, layout: &VmemmapLayout) -> Option<Self> {
        let unit = Level::Pmd.max(pool.smallest).size_bytes();
        let share = (pool.size_bytes / CATALOG_SHARE).clamp(MIN_CATALOG_BYTES, MAX_CATALOG_BYTES);
        let catalog_bytes = share.next_multiple_of(PAGE_BYTES);
        let vmemmap_start = (PAGE_BYTES + catalog_bytes).next_multiple_of(Level::Pmd.size_bytes());
        let vmemmap_bytes = layout.nr_words() as u64 * 8;
        let head_bytes = (vmemmap_start + vmemmap_bytes).next_multiple_of(unit);
        let head = Self { catalog_bytes, vmemmap_start, head_bytes };
        (head_bytes < pool.size_bytes).then_some(head)
    }
}

fn damaged(why: impl Into<String>) -> Error {
    Error::BadPool { pool: "superblock".into(), why: why.into() }
}

fn io_failed(what: &'static str, error: io::Error) -> Error {
    pgmap_os::OsError::new(what, "the pool's superblock", error).into()
}

fn as_file(data: &MemoryFile) -> Result<File, Error> {
    Ok(File::from(data.try_clone_fd()?))
}

/// Writes the superblock, last of all when a pool is made.
pub(crate) fn write_superblock(data: &MemoryFile, pool: &StoredPool) -> Result<(), Error> {
    let file = as_file(data)?;
    let mut used = [0; 8];
    let at = CATALOG_LEN_FIELD as u64 * 8;
    file.read_exact_at(&mut used, at).map_err(|error| io_failed("read", error))?;
    let fields: [u64; NR_FIELDS] = [
        MAGIC,
        1,
        pool.size_bytes,
        pool.capacity_bytes,
        pool.max_files,
        u64::from(pool.memory_type.number()),
        u64::from_le_bytes(used),
        u64::from(pool.smallest.number()),
    ];
    let bytes: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
    file.write_all_at(&bytes, 0).map_err(|error| io_failed("write", error))
}

/// What a superblock says; none when there is none.
pub(crate) fn read_superblock(data: &MemoryFile) -> Result<Option<StoredPool>, Error> {
    let mut bytes = [0; NR_FIELDS * 8];
    as_file(data)?.read_exact_at(&mut bytes, 0).map_err(|error| io_failed("read", error))?;
    let mut fields = [0; NR_FIELDS];
    for (field, chunk) in fields.iter_mut().zip(bytes.chunks_exact(8)) {
        *field = chunk.try_into().map(u64::from_le_bytes).map_err(|_| damaged("it is cut off"))?;
    }
    let [magic, version, size_bytes, capacity_bytes, max_files, memory_type, _, smallest] = fields;
    if magic != MAGIC {
        return Ok(None);
    }
    let memory_type = u8::try_from(memory_type).ok().and_then(MemoryType::from_number);
    let smallest = u8::try_from(smallest).ok().and_then(Level::from_number);
    match (memory_type, smallest) {
        (Some(memory_type), Some(smallest)) if version == 1 => Ok(Some(StoredPool {
            size_bytes,
            capacity_bytes,
            max_files,
            memory_type,
            has_metadata_on_device: true,
            smallest,
        })),
        _ => Err(damaged(format!("version {version}, memory type or smallest folio is not known"))),
    }
}

/// The catalog's region as a file of its own.
#[derive(Debug)]
pub(crate) struct CatalogRegion {
    file: File,
    most_bytes: u64,
    len_bytes: AtomicU64,
}

impl CatalogRegion {
    /// The region in `data`, as long as the superblock says it is in use.
    pub(crate) fn open(data: &MemoryFile, head: &DeviceHead) -> Result<Self, Error> {
        let file = as_file(data)?;
        let mut used = [0; 8];
        let at = CATALOG_LEN_FIELD as u64 * 8;
        file.read_exact_at(&mut used, at).map_err(|error| io_failed("read", error))?;
        let len_bytes = u64::from_le_bytes(used);
        if len_bytes > head.catalog_bytes {
            return Err(damaged(format!("a catalog of {len_bytes} bytes does not fit")));
        }
        Ok(Self { file, most_bytes: head.catalog_bytes, len_bytes: AtomicU64::new(len_bytes) })
    }

    fn check(&self, offset: u64, len: usize) -> Result<(), io::Error> {
        // Relaxed: redb orders its own calls.
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.len_bytes.load(Ordering::Relaxed)) {
            let why = format!("{len} bytes at {offset} lie outside the catalog");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        Ok(())
    }
}

impl StorageBackend for CatalogRegion {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.len_bytes.load(Ordering::Relaxed))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.check(offset, out.len())?;
        self.file.read_exact_at(out, PAGE_BYTES + offset)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        if len > self.most_bytes {
            let why = format!("the catalog's region of {} bytes is full", self.most_bytes);
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        let before = self.len_bytes.load(Ordering::Relaxed);
        // What grows must read as zero, whatever a shrunk catalog left there.
        let zeros = [0; PAGE_BYTES as usize];
        let mut at = before;
        while at < len {
            let part = (len - at).min(PAGE_BYTES) as usize;
            self.file.write_all_at(&zeros[..part], PAGE_BYTES + at)?;
            at += part as u64;
        }
        self.file.write_all_at(&len.to_le_bytes(), CATALOG_LEN_FIELD as u64 * 8)?;
        self.len_bytes.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.check(offset, data.len())?;
        self.file.write_all_at(data, PAGE_BYTES + offset)
    }
}
