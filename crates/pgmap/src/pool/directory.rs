//! A pool's directory: whose it is, what it lies on, what is in it, and the lock of its owner.
//!
//! Nothing that is not known to be a pool's is ever replaced or removed, and nothing is opened
//! through a link.

use std::ffi::OsString;
use std::fs::{self, FileType};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pgmap_os::{FileSystem, MemoryFile, OsError, ParentFd, disk, file_lock};

use crate::error::Error;
use crate::pool::catalog::header::is_unfinished;
use crate::pool::{os_error, pool_name};

pub(crate) const DATA: &str = "data";
pub(crate) const VMEMMAP: &str = "vmemmap";
pub(crate) const INDEX: &str = "index";
pub(crate) const CATALOG: &str = "catalog";
/// The catalog of a pool that is being made: there first, and renamed last.
pub(crate) const CATALOG_NEW: &str = "catalog.new";
pub(crate) const LEDGERS: &str = "ledgers";
/// Where the data lies, of a pool whose data is not here.
pub(crate) const ON: &str = "on";
const LOCK: &str = "owner.lock";
const PROBE: &str = "probe.new";
/// The way out where a file system cannot have a pool's directory.
const OTHER_PLACE: &str = "choose a directory on tmpfs, ext4, XFS or Btrfs";
/// Enough to see whether a file system stores holes.
const PROBE_BYTES: u64 = 1 << 20;

/// A pool's directory, and the lock that says "this pool has an owner". A forked child does not
/// keep it.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// Held for as long as the pool has an owner.
    lock: ParentFd,
}

impl Directory {
    /// Makes the directory where it is missing, and takes the lock.
    pub(crate) fn make(path: &Path) -> Result<Self, Error> {
        // Before anything is made: on some file systems even that waits.
        check_file_system(path, existing(path), OTHER_PLACE)?;
        disk::create_dir_all(path).map_err(|error| os_error("create", path, error))?;
        Self::open(path)
    }

    /// Gives the lock back before its time.
    pub(super) fn release(&self) -> std::io::Result<()> {
        file_lock::unlock(&self.lock)
    }

    /// Takes the lock of the directory at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        check_place(path)?;
        let lock_path = path.join(LOCK);
        check_kind(path, LOCK, FileType::is_file)?;
        let lock = file_lock::open_lock_file(&lock_path)?;
        let failed = |error| os_error("lock", &lock_path, error);
        let metadata = lock.metadata().map_err(failed)?;
        if !metadata.is_file() || metadata.len() != 0 {
            return Err(foreign(path, &[LOCK.into()]));
        }
        match file_lock::try_lock_exclusive(&lock) {
            Ok(true) => {}
            Ok(false) => {
                let why = "it has an owner already, which holds owner.lock; connect to that, or \
                           stop it";
                return Err(bad(path, why));
            }
            Err(error) => return Err(failed(error)),
        }
        if metadata.mode() & 0o077 != 0 {
            lock.set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
        }
        Ok(Self { path: path.into(), lock: lock.into() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Refuses a directory that holds anything under the names of a new pool's files, and removes
    /// what a creation left that was cut short.
    pub(crate) fn check_empty(&self) -> Result<(), Error> {
        let unfinished = self.file(CATALOG_NEW);
        if is_unfinished(&unfinished)? {
            // Nothing else was there when it was made, and so all of this was made after it.
            for name in [DATA, VMEMMAP, INDEX, ON, PROBE] {
                remove_file(&self.file(name))?;
            }
            remove_file(&unfinished)?;
        }
        let names = [DATA, VMEMMAP, INDEX, ON, CATALOG, CATALOG_NEW, PROBE];
        let mut found: Vec<OsString> = Vec::new();
        for name in names {
            if kind_of(&self.file(name))?.is_some() {
                found.push(name.into());
            }
        }
        let ledgers = self.file(LEDGERS);
        match kind_of(&ledgers)? {
            Some(kind) if kind.is_dir() => {
                let mut entries =
                    disk::read_dir(&ledgers).map_err(|error| os_error("read", &ledgers, error))?;
                if entries.next().is_some() {
                    found.push(LEDGERS.into());
                }
            }
            Some(_) => found.push(LEDGERS.into()),
            None => {}
        }
        if found.is_empty() { Ok(()) } else { Err(foreign(&self.path, &found)) }
    }

    /// Tries out what a pool needs of its file system.
    pub(crate) fn probe(&self) -> Result<(), Error> {
        let path = self.file(PROBE);
        let probe = MemoryFile::create_named(&path, PROBE_BYTES)?;
        let tried = self.try_out(&probe);
        remove_file(&path)?;
        tried
    }

    fn try_out(&self, probe: &MemoryFile) -> Result<(), Error> {
        if probe.resident_bytes() > PROBE_BYTES / 2 {
            let why = "its file system stores holes as bytes, and the pool's files are mostly \
                       holes; choose a directory on tmpfs, ext4, XFS or Btrfs";
            return Err(bad(&self.path, why));
        }
        probe.reserve(0..4096)?;
        probe.punch(0..4096)?;
        Ok(())
    }

    /// Refuses anything but plain files and directories under the names of a pool's files.
    pub(crate) fn check_kinds(&self) -> Result<(), Error> {
        for name in [DATA, VMEMMAP, INDEX, ON, CATALOG] {
            check_kind(&self.path, name, FileType::is_file)?;
        }
        check_kind(&self.path, LEDGERS, FileType::is_dir)
    }
}

/// Whether a pool, of whatever format, lies in the directory at `path`.
pub(crate) fn holds_a_pool(path: &Path) -> Result<bool, Error> {
    if !kind_of(path)?.is_some_and(|kind| kind.is_dir()) {
        return Ok(false);
    }
    Ok(kind_of(&path.join(CATALOG))?.is_some()
        || kind_of(&path.join(ON))?.is_some()
        || crate::pool::has_head(&path.join(DATA))?)
}

/// Refuses a directory in which parts of a pool lie without a catalog.
pub(crate) fn check_no_parts(path: &Path) -> Result<(), Error> {
    let mut found: Vec<OsString> = Vec::new();
    for name in [DATA, VMEMMAP, INDEX] {
        if kind_of(&path.join(name))?.is_some() {
            found.push(name.into());
        }
    }
    if found.is_empty() { Ok(()) } else { Err(foreign(path, &found)) }
}

/// Refuses a directory that another user owns or may change, that a link stands for, or on a file
/// system that no pool can be on.
fn check_place(path: &Path) -> Result<(), Error> {
    let failed = |error| os_error("inspect", path, error);
    let metadata = disk::symlink_metadata(path).map_err(failed)?;
    if metadata.is_symlink() {
        return Err(bad(path, "it is a symbolic link; name the directory itself"));
    }
    if !metadata.is_dir() {
        return Err(bad(path, "it is no directory"));
    }
    let own = pgmap_os::process::effective_uid();
    if metadata.uid() != own {
        let theirs = metadata.uid();
        return Err(bad(path, &format!("it belongs to user {theirs}, not {own}; choose another")));
    }
    if metadata.mode() & 0o002 != 0 {
        let why = format!(
            "every user may change it (mode {:04o}); choose a directory inside it, or chmod 700",
            metadata.mode() & 0o7777
        );
        return Err(bad(path, &why));
    }
    check_file_system(path, path, OTHER_PLACE)
}

/// What is there of `path`: itself, or the directory above it that is.
fn existing(path: &Path) -> &Path {
    let is_there = |path: &&Path| disk::symlink_metadata(path).is_ok();
    path.ancestors().find(is_there).unwrap_or(Path::new("."))
}

/// Refuses for `what`, which is or will be in `place`, a file system that no pool can be on.
/// `way_out` says what to do.
pub(super) fn check_file_system(what: &Path, place: &Path, way_out: &str) -> Result<(), Error> {
    let file_system = FileSystem::of(place)?;
    file_system.unfit().map_or(Ok(()), |reason| {
        let why = format!("it lies on {}, {reason}; {way_out}", file_system.name());
        Err(bad(what, &why))
    })
}

/// What lies at `path`, without following a link.
pub(crate) fn kind_of(path: &Path) -> Result<Option<FileType>, Error> {
    use io::ErrorKind::{NotADirectory, NotFound};
    match disk::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.file_type())),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => Ok(None),
        Err(error) => Err(os_error("inspect", path, error)),
    }
}

fn check_kind(
    directory: &Path,
    name: &str,
    is_right: impl Fn(&FileType) -> bool,
) -> Result<(), Error> {
    match kind_of(&directory.join(name))? {
        Some(kind) if !is_right(&kind) => Err(foreign(directory, &[name.into()])),
        _ => Ok(()),
    }
}

/// The error for what is there and is no pool's.
fn foreign(directory: &Path, names: &[OsString]) -> Error {
    let list: Vec<String> = names.iter().map(|name| describe(&directory.join(name))).collect();
    let why = format!(
        "it holds {}, which no pool made or which has lost its catalog; choose an empty directory, \
         or move that away",
        list.join(", ")
    );
    bad(directory, &why)
}

fn describe(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().display().to_string();
    let Ok(metadata) = disk::symlink_metadata(path) else { return name };
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(path).unwrap_or_default();
        return format!("{name} (a symbolic link to {})", target.display());
    }
    let kind = match kind {
        kind if kind.is_dir() => "a directory".to_owned(),
        kind if kind.is_fifo() => "a named pipe".to_owned(),
        kind if kind.is_socket() => "a socket".to_owned(),
        kind if kind.is_file() => format!("a file of {} bytes", metadata.len()),
        _ => "a device".to_owned(),
    };
    format!("{name} ({kind})")
}

fn bad(directory: &Path, why: &str) -> Error {
    Error::BadPool { pool: pool_name(Some(directory)), why: why.into() }
}

pub(crate) fn remove_file(path: &Path) -> Result<(), Error> {
    match disk::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(OsError::new("remove", path.display().to_string(), error).into())
        }
        _ => Ok(()),
    }
}
