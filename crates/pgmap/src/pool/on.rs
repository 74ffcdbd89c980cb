//! Data that lies on a device or in one file, apart from the pool's directory.
//!
//! Such data carries its catalog at its head, so it is the pool, wherever it is carried. What is
//! good for this run of the machine only stays in the directory, which is best on tmpfs: the
//! owner's lock, ledgers, index, descriptors, and a file `on` that says where the data lies.
//!
//! # Two directories
//! The ledgers say what clients hold. An owner that opened the same data with another directory
//! would not find them and would give held frames away. So the data is locked for as long as it has
//! an owner; and data that was in use since the machine was started opens with a fresh directory
//! only if no client has a ledger (the catalog's roster says so).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgmap_os::{FileAccess, FileSystem, MemoryFile, MemoryKind, ParentFd, disk, file_lock};

use crate::error::Error;
use crate::pool::backing::BackingHead;
use crate::pool::catalog::Catalog;
use crate::pool::catalog::header::is_catalog;
use crate::pool::directory::{Directory, ON, check_file_system};
use crate::pool::identity::{BootId, PoolId};
use crate::pool::{bad, os_error};

/// How a file `on` begins; the pool's number follows, and the path of the data.
const MAGIC: &[u8; 8] = b"pgmapON1";
const HEAD_BYTES: usize = MAGIC.len() + 16;
const MAX_BYTES: u64 = 8192;
/// The data in a directory of hugetlbfs.
const FILE_NAME: &str = "pgmap-data";

/// Where the data of a pool lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct On {
    pub id: PoolId,
    pub path: PathBuf,
}

impl On {
    /// Reads what the directory at `path` says; `None` if its data lies in itself.
    pub(crate) fn read(directory: &Path) -> Result<Option<Self>, Error> {
        let path = directory.join(ON);
        match disk::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(os_error("inspect", &path, error)),
            Ok(_) => {}
        }
        let file = MemoryFile::open_named(&path, FileAccess::ReadOnly)?;
        let mut bytes = vec![0; file.len_bytes().min(MAX_BYTES) as usize];
        file.read_exact_at(&mut bytes, 0).map_err(|error| os_error("read", &path, error))?;
        let damaged = || {
            let why = "its file `on`, which says where its data lies, is damaged; remove the \
                       directory, and open the pool on its data";
            bad(directory, why)
        };
        let sum = bytes.len().checked_sub(4).ok_or_else(damaged)?;
        let (said, sum) = bytes.split_at(sum);
        if crc32fast::hash(said).to_le_bytes() != *sum || said.len() <= HEAD_BYTES {
            return Err(damaged());
        }
        let (head, path) = said.split_at(HEAD_BYTES);
        let (magic, id) = head.split_at(MAGIC.len());
        let id = id.try_into().map(u128::from_le_bytes).map_err(|_| damaged())?;
        if magic != MAGIC {
            return Err(damaged());
        }
        Ok(Some(Self { id: PoolId(id), path: OsString::from_vec(path.to_vec()).into() }))
    }

    /// Refuses data that is by now pool `id`.
    pub(crate) fn check(&self, directory: &Path, id: PoolId) -> Result<(), Error> {
        if self.id == id {
            return Ok(());
        }
        let why =
            format!("its data is pool {}, and that on {} is {id}", self.id, self.path.display());
        Err(bad(directory, why))
    }

    /// Writes it, in the place of what an earlier pool left.
    pub(crate) fn write(&self, directory: &Directory) -> Result<(), Error> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.id.0.to_le_bytes());
        bytes.extend(self.path.as_os_str().as_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        let (path, new) = (directory.file(ON), directory.file(ON).with_extension("new"));
        crate::pool::directory::remove_file(&new)?;
        let file = MemoryFile::create_named(&new, 0)?;
        file.write_all_at(&bytes, 0).map_err(|error| os_error("write", &new, error))?;
        file.sync()?;
        disk::rename(&new, &path).map_err(|error| os_error("rename", &new, error))
    }
}

/// What data says of itself.
pub(crate) struct Found {
    pub on: On,
    /// Whether nobody is left who could hold any of it.
    pub is_idle: bool,
}

impl On {
    /// Whether the data of a pool lies at `path`.
    pub(crate) fn is_at(path: &Path) -> Result<bool, Error> {
        let place = place_of(path)?;
        match disk::symlink_metadata(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(os_error("inspect", &place, error)),
            Ok(found) if found.file_type().is_block_device() => Ok(false),
            Ok(_) => is_catalog(&MemoryFile::open_named(&place, FileAccess::ReadOnly)?),
        }
    }

    /// Looks at the data at `path`, in the boot `boot`.
    ///
    /// # Errors
    /// [`Error::BadPool`] when there is no pool, [`Error::Catalog`] when its catalog is damaged.
    pub(crate) fn of(path: &Path, boot: BootId) -> Result<Found, Error> {
        let place = place_of(path)?;
        let data = Arc::new(MemoryFile::open_named(&place, FileAccess::ReadWrite)?);
        if !is_catalog(&data)? {
            return Err(bad(path, "there is no pool; create one"));
        }
        if file_lock::is_locked(&*data)
            .map_err(|error| os_error("inspect the lock of", path, error))?
        {
            return Err(owned(path));
        }
        let catalog = Catalog::open_in(data, u64::MAX, boot)?;
        Ok(Found { on: Self { id: catalog.id(), path: place }, is_idle: catalog.is_idle() })
    }
}

/// The file or device that `path` names, in a directory the one that a pool has there.
/// It is absolute: who opens the pool later may be in another directory.
pub(crate) fn place_of(path: &Path) -> Result<PathBuf, Error> {
    let whole = std::path::absolute(path).map_err(|error| os_error("find", path, error))?;
    Ok(match disk::symlink_metadata(&whole) {
        Ok(found) if found.is_dir() => whole.join(FILE_NAME),
        _ => whole,
    })
}

/// What a new pool's data can be made of.
#[derive(Debug)]
pub(crate) enum DataSource {
    /// A device, which is there and has its length.
    Device(PathBuf, MemoryFile),
    /// A file that is yet to be made.
    File(PathBuf),
}

impl DataSource {
    /// Looks at `path`: a device, a file that is not there yet, or a directory of huge pages.
    ///
    /// # Errors
    /// [`Error::BadPool`] when there is a pool, or anything else that would be lost.
    pub(crate) fn inspect(path: &Path) -> Result<Self, Error> {
        let path = place_of(path)?;
        let found = match disk::symlink_metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                check_file_place(&path)?;
                return Ok(Self::File(path));
            }
            Err(error) => return Err(os_error("inspect", &path, error)),
        };
        if found.file_type().is_block_device() {
            let why = "it is a block device; make a file system on it and name a file there, or \
                       change its namespace to device-dax (ndctl create-namespace -m devdax)";
            return Err(bad(&path, why));
        }
        let data = MemoryFile::open_named(&path, FileAccess::ReadWrite)?;
        if is_catalog(&data)? {
            return Err(bad(&path, "there is a pool already; open it, or erase it first"));
        }
        if let Some(head) = BackingHead::read(&data)? {
            let why = format!(
                "there is a backing of pool {}; take it out there, or zero its first page",
                head.pool
            );
            return Err(bad(&path, why));
        }
        if data.kind() == MemoryKind::DevDax {
            return Ok(Self::Device(path, data));
        }
        let len = data.len_bytes();
        Err(bad(&path, format!("there is a file of {len} bytes; name one that does not exist")))
    }

    /// Makes the file, without a byte, where it is to be one.
    pub(crate) fn make(self) -> Result<(PathBuf, MemoryFile), Error> {
        match self {
            Self::Device(path, data) => Ok((path, data)),
            Self::File(path) => {
                let data = MemoryFile::create_named(&path, 0)?;
                Ok((path, data))
            }
        }
    }

    /// The device, if it is one.
    pub(crate) const fn device(&self) -> Option<&MemoryFile> {
        match self {
            Self::Device(_, data) => Some(data),
            Self::File(_) => None,
        }
    }
}

/// Refuses a file system that no data can be on, before a file is made there. The files of
/// hugetlbfs hold data, and nothing else of a pool.
fn check_file_place(path: &Path) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(path);
    if FileSystem::of(directory)?.is_hugetlbfs() {
        return Ok(());
    }
    let way_out = "choose a file on tmpfs, ext4, XFS or Btrfs, or device-dax";
    check_file_system(path, directory, way_out)
}

/// Whether a page behind the data says whose it is. Elsewhere the catalog at the head says it, and
/// there is no room for a page that is no whole one.
pub(crate) fn has_seal(data: &MemoryFile) -> bool {
    !matches!(data.kind(), MemoryKind::DevDax | MemoryKind::Hugetlb)
}

/// Locks the data against a second owner, which may have another directory.
pub(crate) fn lock(path: &Path, data: &MemoryFile) -> Result<ParentFd, Error> {
    let lock = data.reopen_handle(FileAccess::ReadWrite)?;
    match file_lock::try_lock_exclusive(&lock) {
        Ok(true) => Ok(fs::File::from(lock).into()),
        Ok(false) => Err(owned(path)),
        Err(error) => Err(os_error("lock", path, error)),
    }
}

fn owned(path: &Path) -> Error {
    let whose = match file_lock::holder(path) {
        Some(pid) => format!("process {pid}"),
        None => "a process that this user may not look at".into(),
    };
    bad(path, format!("it has an owner already, {whose}; connect to that, or stop it"))
}
