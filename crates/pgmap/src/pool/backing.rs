//! A further backing on its medium: the head that says whose it is, and the lock on it.
//!
//! Its frames lie behind the head, which takes whole pages of the medium and 2 MiB at least, so
//! that a frame's place in the medium and in its address agree up to a huge page. The head is
//! written once, before the catalog names the backing, and is wiped when the backing is taken out.

use std::collections::BTreeSet;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::memory_type::MemoryType;
use pgmap_os::{FileAccess, LongTerm, MemoryFile, MemoryKind, PageSize, ParentFd};

use crate::error::Error;
use crate::pool::catalog::StoredBacking;
use crate::pool::directory::{kind_of, remove_file};
use crate::pool::identity::PoolId;
use crate::pool::on::{self, DataSource, place_of};
use crate::pool::options::{MAX_POOL_BYTES, MIN_POOL_BYTES};
use crate::pool::parts::check_memory;
use crate::pool::{Pool, bad, os_error};
use crate::refusal::Refusal;

/// How a head begins; the pool's number follows, and [`NR_FIELDS`] numbers.
const MAGIC: &[u8; 8] = b"pgmapBK1";
const NR_FIELDS: usize = 3;
const HEAD_BYTES: usize = MAGIC.len() + 16 + NR_FIELDS * 8;
/// Longest name of a backing, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 64;
/// What the pool's own data is called among its backings.
pub(crate) const DATA_NAME: &str = "data";

/// A backing that is to be added to a pool with an owner.
#[derive(Clone, Debug)]
pub struct BackingOptions {
    pub(crate) path: Option<PathBuf>,
    pub(crate) size_bytes: u64,
    pub(crate) name: Option<String>,
    pub(crate) nodes: BTreeSet<u32>,
}

impl BackingOptions {
    /// Memory in `path`: a device-dax device, a file that is yet to be made, or a directory of
    /// hugetlbfs, in which a file is made. All of a device is used unless [`size`](Self::size) says
    /// otherwise. A file needs a size.
    ///
    /// A device or file that is on record as a backing of the pool, and was missing, is taken back
    /// with the files that lie there.
    #[must_use]
    pub fn on(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..Self::anonymous(0) }
    }

    /// Memory without a name, `size_bytes` of it, which ends with its users. Anonymous pools only.
    #[must_use]
    pub const fn anonymous(size_bytes: u64) -> Self {
        Self { path: None, size_bytes, name: None, nodes: BTreeSet::new() }
    }

    /// Says how many bytes of frames it is to have.
    #[must_use]
    pub const fn size(mut self, size_bytes: u64) -> Self {
        self.size_bytes = size_bytes;
        self
    }

    /// Says how it is called, in 1 to 64 letters, digits and `._-`. Default: the last part of its
    /// path.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Has its memory be taken on these NUMA nodes: on one alone, or on several in turn. See
    /// [`PoolOptions::nodes`](crate::PoolOptions::nodes).
    #[must_use]
    pub fn nodes(mut self, nodes: impl IntoIterator<Item = u32>) -> Self {
        self.nodes = nodes.into_iter().collect();
        self
    }

    /// What it is called, whatever else it is.
    pub(crate) fn checked_name(&self) -> Result<String, Refusal> {
        let last = self.path.as_deref().and_then(Path::file_name);
        let by_path = last.map_or_else(|| "anonymous".into(), |last| last.to_string_lossy());
        let name = self.name.clone().unwrap_or_else(|| by_path.into_owned());
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.as_bytes().iter().all(is_plain) {
            let why = format!(
                "{name:?} is no name of a backing; give it one of 1 to {MAX_NAME_BYTES} letters, \
                 digits and ._-"
            );
            return Err(Refusal::Invalid { why });
        }
        Ok(name)
    }
}

/// What the head of a backing says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BackingHead {
    pub pool: PoolId,
    pub id: u64,
    pub nr_pages: u64,
    pub offset_bytes: u64,
}

impl BackingHead {
    fn to_bytes(self) -> [u8; HEAD_BYTES + 4] {
        let mut bytes = [0; HEAD_BYTES + 4];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..24].copy_from_slice(&self.pool.0.to_le_bytes());
        let fields = [self.id, self.nr_pages, self.offset_bytes];
        for (place, field) in bytes[24..HEAD_BYTES].chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let sum = crc32fast::hash(&bytes[..HEAD_BYTES]);
        bytes[HEAD_BYTES..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn write(self, data: &MemoryFile) -> Result<(), Error> {
        let path = Path::new(data.name());
        data.write_all_at(&self.to_bytes(), 0).map_err(|error| os_error("write", path, error))?;
        Ok(data.sync()?)
    }

    /// The head that `data` has, if it has one that is whole.
    ///
    /// # Errors
    /// [`Error::Os`] when it cannot be read.
    pub(crate) fn read(data: &MemoryFile) -> Result<Option<Self>, Error> {
        let mut bytes = [0; HEAD_BYTES + 4];
        if data.len_bytes() < bytes.len() as u64 {
            return Ok(None);
        }
        let path = Path::new(data.name());
        data.read_exact_at(&mut bytes, 0).map_err(|error| os_error("read", path, error))?;
        Ok(Self::from_bytes(&bytes))
    }

    fn from_bytes(bytes: &[u8; HEAD_BYTES + 4]) -> Option<Self> {
        let field = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let pool = bytes[8..24].try_into().map(u128::from_le_bytes).ok()?;
        let head = Self {
            pool: PoolId(pool),
            id: field(24)?,
            nr_pages: field(32)?,
            offset_bytes: field(40)?,
        };
        // Whatever reads back as written is whole.
        (head.to_bytes() == *bytes).then_some(head)
    }
}

/// A backing whose medium is there.
#[derive(Debug)]
pub(crate) struct Medium {
    pub data: Arc<MemoryFile>,
    /// Kept as long as the pool has an owner; `None` for memory without a name.
    pub lock: Option<ParentFd>,
}

/// A backing that was made, and is not on record yet.
#[derive(Debug)]
pub(crate) struct Made {
    pub medium: Medium,
    pub path: PathBuf,
    pub nr_pages: u64,
    pub offset_bytes: u64,
    pub memory_type: MemoryType,
    /// Whether there is a file that was not there before.
    is_file: bool,
}

impl Made {
    /// Undoes it.
    pub(crate) fn discard(self) {
        drop(wipe(&self.medium.data));
        if self.is_file
            && let Err(error) = remove_file(&self.path)
        {
            tracing::warn!(%error, "a backing that was not added leaves its file behind");
        }
    }
}

/// Has the head say nothing.
pub(crate) fn wipe(data: &MemoryFile) -> Result<(), Error> {
    let path = Path::new(data.name());
    data.write_all_at(&[0; HEAD_BYTES + 4], 0).map_err(|error| os_error("wipe", path, error))?;
    Ok(data.sync()?)
}

/// Where the frames start on pages of this size.
fn offset_on(page: PageSize) -> u64 {
    page.len_bytes().max(Level::Pmd.size_bytes())
}

impl Pool {
    /// The head of what lies at `path`, and where that is. `None` if there is nothing, or something
    /// else.
    pub(crate) fn backing_at(path: &Path) -> Result<Option<(BackingHead, PathBuf)>, Error> {
        let path = place_of(path)?;
        let is_there = kind_of(&path)?.is_some_and(|kind| {
            use std::os::unix::fs::FileTypeExt;
            kind.is_file() || kind.is_char_device()
        });
        if !is_there {
            return Ok(None);
        }
        let data = MemoryFile::open_named(&path, FileAccess::ReadOnly)?;
        Ok(BackingHead::read(&data)?.map(|head| (head, path)))
    }

    /// Makes the backing number `id` on its medium, with its head. It is on no record yet.
    ///
    /// # Errors
    /// [`Error::BadPool`] for what cannot be one, or is used; [`Error::NotDurable`] where it does
    /// not keep what the pool's files outlive; [`Error::Os`].
    pub(crate) fn make_backing(&self, options: &BackingOptions, id: u64) -> Result<Made, Error> {
        let Some(path) = &options.path else { return self.make_anonymous(options) };
        let ground = DataSource::inspect(path)?;
        let whole = ground.device().map(|device| {
            let has = device.len_bytes().saturating_sub(offset_on(device.page_size()));
            has.min(MAX_POOL_BYTES)
        });
        let size_bytes = match (options.size_bytes, whole) {
            (0, Some(whole)) => whole,
            (0, None) => return Err(bad(path, "a backing in a file needs a size")),
            (size, Some(whole)) if size > whole => {
                let why = format!("a backing of {size} bytes; the device has room for {whole}");
                return Err(bad(path, why));
            }
            (size, _) => size,
        };
        if !(MIN_POOL_BYTES..=MAX_POOL_BYTES).contains(&size_bytes) {
            let why = format!("{size_bytes} bytes; use {MIN_POOL_BYTES} to {MAX_POOL_BYTES}");
            return Err(bad(path, why));
        }
        let is_file = ground.device().is_none();
        let (path, data) = ground.make()?;
        let made = self.prepare(id, &path, data, size_bytes, &options.nodes);
        let made = made.and_then(|prepared| {
            if is_file {
                self.sync_name(&path)?;
            }
            Ok(prepared)
        });
        match made {
            Ok((medium, nr_pages)) => {
                let (page, kind) = (medium.data.page_size(), medium.data.kind());
                let memory_type = type_of(kind);
                let offset_bytes = offset_on(page);
                Ok(Made { medium, path, nr_pages, offset_bytes, memory_type, is_file })
            }
            Err(error) => {
                if is_file {
                    remove_file(&path)?;
                }
                Err(error)
            }
        }
    }

    fn make_anonymous(&self, options: &BackingOptions) -> Result<Made, Error> {
        // As the pool's data, which may be of huge pages.
        let page = self.data.page_size();
        let size_bytes = options.size_bytes.next_multiple_of(page.len_bytes());
        if self.directory().is_some() {
            return Err(Error::BadPool {
                pool: self.name(),
                why: "memory without a name ends with its owner; name a file or device".into(),
            });
        }
        if !(MIN_POOL_BYTES..=MAX_POOL_BYTES).contains(&size_bytes) {
            let why = format!("{size_bytes} bytes; use {MIN_POOL_BYTES} to {MAX_POOL_BYTES}");
            return Err(Error::BadPool { pool: self.name(), why });
        }
        let offset_bytes = offset_on(page);
        let len_bytes = offset_bytes + size_bytes;
        let data = MemoryFile::anonymous("pgmap-backing", len_bytes, page)?;
        data.seal_size()?;
        if !options.nodes.is_empty() {
            data.place_on(&options.nodes, len_bytes)?;
        }
        check_memory(&self.name(), &data, size_bytes)?;
        let medium = Medium { data: Arc::new(data), lock: None };
        let memory_type = type_of(medium.data.kind());
        let nr_pages = size_bytes / PAGE_BYTES;
        let path = PathBuf::new();
        Ok(Made { medium, path, nr_pages, offset_bytes, memory_type, is_file: false })
    }

    fn prepare(
        &self,
        id: u64,
        path: &Path,
        data: MemoryFile,
        size_bytes: u64,
        nodes: &BTreeSet<u32>,
    ) -> Result<(Medium, u64), Error> {
        let page = data.page_size();
        let unit = page.len_bytes().max(self.vmemmap_layout.smallest().size_bytes());
        let size_bytes = match data.kind() {
            // What is left of a device.
            MemoryKind::DevDax => size_bytes / unit * unit,
            _ => size_bytes.next_multiple_of(unit),
        };
        if size_bytes == 0 {
            return Err(bad(path, format!("it has no whole page of {unit} bytes for frames")));
        }
        self.durability().check(&self.name(), &data)?;
        check_memory(&self.name(), &data, size_bytes)?;
        let lock = on::lock(path, &data)?;
        let offset_bytes = offset_on(page);
        if data.kind() != MemoryKind::DevDax {
            data.check_capacity(offset_bytes + size_bytes)?;
            data.set_len(offset_bytes + size_bytes)?;
        }
        if !nodes.is_empty() {
            data.place_on(nodes, offset_bytes + size_bytes)?;
        }
        if data.kind() != MemoryKind::DevDax {
            data.reserve(0..PAGE_BYTES.max(page.len_bytes()))?;
        }
        let nr_pages = size_bytes / PAGE_BYTES;
        BackingHead { pool: self.id(), id, nr_pages, offset_bytes }.write(&data)?;
        Ok((Medium { data: Arc::new(data), lock: Some(lock) }, nr_pages))
    }
}

/// Opens the backing that the catalog of `pool` has as `line`, at `path`.
///
/// # Errors
/// [`Error::BadPool`] when what is there is something else, or is used; [`Error::Os`] when
/// nothing is.
pub(crate) fn open_backing(
    pool: PoolId,
    line: &StoredBacking,
    path: &Path,
) -> Result<Medium, Error> {
    let data = MemoryFile::open_named(path, FileAccess::ReadWrite)?;
    let wanted =
        BackingHead { pool, id: line.id, nr_pages: line.nr_pages, offset_bytes: line.offset_bytes };
    match BackingHead::read(&data)? {
        Some(head) if head == wanted => {}
        Some(head) if head.pool != pool => {
            let why = format!(
                "it is a backing of pool {}, and \"{}\" is one of pool {}",
                head.pool, line.name, pool
            );
            return Err(bad(path, why));
        }
        Some(_) => {
            return Err(bad(path, format!("it is another backing than \"{}\"", line.name)));
        }
        None => {
            let why = format!("it has no whole head of the pool's backing \"{}\"", line.name);
            return Err(bad(path, why));
        }
    }
    let (has, needed) = (data.len_bytes(), line.offset_bytes + line.nr_pages * PAGE_BYTES);
    if has < needed {
        return Err(bad(path, format!("it is cut off: it has {has} bytes of {needed}")));
    }
    let page = data.page_size().len_bytes();
    if !line.offset_bytes.is_multiple_of(page) || !needed.is_multiple_of(page) {
        let why = format!("its pages have {page} bytes now, of which its frames are no whole");
        return Err(bad(path, why));
    }
    let lock = on::lock(path, &data)?;
    Ok(Medium { data: Arc::new(data), lock: Some(lock) })
}

/// Where the catalog says that a backing is, of a pool with this `data`: a name without a folder
/// lies beside that, wherever the pool was carried.
pub(crate) fn path_of(data: &MemoryFile, line: &StoredBacking) -> PathBuf {
    let path = PathBuf::from(std::ffi::OsString::from_vec(line.path.clone()));
    match home_of(data) {
        Some(home) if path.file_name() == Some(path.as_os_str()) => home.join(path),
        _ => path,
    }
}

/// A path as the catalog has it.
pub(crate) fn path_bytes(data: &MemoryFile, path: &Path) -> Vec<u8> {
    let is_beside = path.parent().is_some() && path.parent() == home_of(data);
    let name = path.file_name().filter(|_| is_beside);
    name.unwrap_or(path.as_os_str()).as_bytes().to_vec()
}

fn home_of(data: &MemoryFile) -> Option<&Path> {
    Path::new(data.name()).parent()
}

const fn type_of(kind: MemoryKind) -> MemoryType {
    match kind.long_term() {
        LongTerm::Leased => MemoryType::FsDax,
        LongTerm::Allowed | LongTerm::Refused => MemoryType::Generic,
    }
}
