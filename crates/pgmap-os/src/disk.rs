//! Names of files: made, replaced, removed.
//!
//! The standard library's calls; they are here so that a simulation can fail them, or end the
//! caller between two of them.

use std::fs::{DirBuilder, Metadata, ReadDir};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::sim;

/// Makes a directory for this user alone.
///
/// # Errors
/// As [`std::fs::create_dir`].
pub fn create_dir(path: &Path) -> io::Result<()> {
    sim::call("mkdir")?;
    DirBuilder::new().mode(0o700).create(path)
}

/// Makes a directory for this user alone, and those above it that are missing.
///
/// # Errors
/// As [`std::fs::create_dir_all`].
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    sim::call("mkdir")?;
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Gives a file another name, in place of what has it.
///
/// # Errors
/// As [`std::fs::rename`].
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    sim::call("rename")?;
    #[cfg(feature = "sim")]
    sim::with(|world| world.naming(sim::Naming::Renamed(from, to)));
    std::fs::rename(from, to)
}

/// Has the names in a directory outlive the machine, where its file system does.
///
/// # Errors
/// As [`std::fs::File::sync_all`].
pub fn sync_names(directory: &Path) -> io::Result<()> {
    sim::call("fsync")?;
    std::fs::File::open(directory)?.sync_all()?;
    #[cfg(feature = "sim")]
    sim::with(|world| world.naming(sim::Naming::Synced(directory)));
    Ok(())
}

/// Removes a name.
///
/// # Errors
/// As [`std::fs::remove_file`].
pub fn remove_file(path: &Path) -> io::Result<()> {
    sim::call("unlink")?;
    #[cfg(feature = "sim")]
    sim::with(|world| world.naming(sim::Naming::Removed(path)));
    std::fs::remove_file(path)
}

/// Lists a directory.
///
/// # Errors
/// As [`std::fs::read_dir`].
pub fn read_dir(path: &Path) -> io::Result<ReadDir> {
    sim::call("getdents")?;
    std::fs::read_dir(path)
}

/// What a name stands for, not through a link.
///
/// # Errors
/// As [`std::fs::symlink_metadata`].
pub fn symlink_metadata(path: &Path) -> io::Result<Metadata> {
    sim::call("stat")?;
    std::fs::symlink_metadata(path)
}
