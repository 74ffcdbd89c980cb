//! Locks that belong to an open file description (`F_OFD_SETLK`).
//!
//! The lock is held by the *description*, the thing that `open` makes and that `dup`, `fork` and
//! `SCM_RIGHTS` share. It is free again the moment the last copy of that description closes, and
//! `kill -9` closes copies like anything else. That makes it a sign of life which needs no pid, no
//! heartbeat and no time-out, but also means: a forked child keeps its parent's lock alive.
//!
//! Two descriptors exclude each other only if they come from different `open` calls; see
//! `MemoryFile::reopen`. The whole file is locked. Linux: fs/locks.c, `fcntl_setlk`.

// UNSAFETY: rustix has no call for F_OFD_SETLK and F_OFD_GETLK; libc's fcntl is variadic and raw.
#![allow(unsafe_code)]

use crate::OsError;
use crate::file_users::{FileUsers, UseKind};
use crate::sim;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

/// Opens the file at `path` to be locked, and makes it, for this user alone, where it is missing.
/// Does not follow a link, and does not wait for the other end of a pipe.
///
/// # Errors
/// `ELOOP` for a symbolic link, `EISDIR` for a directory, `ENXIO` for a socket.
pub fn open_lock_file(path: &Path) -> Result<File, OsError> {
    let flags = OFlags::RDWR
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::NOCTTY;
    sim::call("open")
        .and_then(|()| rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR))
        .map(File::from)
        .map_err(|errno| OsError::new("open", path.display().to_string(), errno))
}

/// Takes the exclusive lock on the whole file; false if another description holds one.
///
/// Never waits. Taking a lock that this description already holds succeeds.
///
/// # Errors
/// `EBADF` if the descriptor is not open for writing; else what the file system says.
pub fn try_lock_exclusive(fd: impl AsFd) -> io::Result<bool> {
    sim::call("lock")?;
    match control(fd.as_fd(), libc::F_OFD_SETLK, libc::F_WRLCK) {
        Ok(_) => Ok(true),
        Err(error) if is_contention(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns true if a description *other than this one* holds a lock on the file.
///
/// The answer may be old when it arrives; a free lock whose holder is known to be the only one who
/// takes it stays free. The descriptor may be open for reading only.
///
/// # Errors
/// What the file system says of `F_OFD_GETLK`.
pub fn is_locked(fd: impl AsFd) -> io::Result<bool> {
    let found = control(fd.as_fd(), libc::F_OFD_GETLK, libc::F_WRLCK)?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

/// Gives this description's lock back; without one, nothing happens.
///
/// # Errors
/// What the file system says of `F_OFD_SETLK`.
pub fn unlock(fd: impl AsFd) -> io::Result<()> {
    control(fd.as_fd(), libc::F_OFD_SETLK, libc::F_UNLCK).map(drop)
}

/// Returns the process that holds a lock on the file at `path`, where this process may see that.
/// What `F_OFD_GETLK` says of a description names no process; `/proc` says which has it open.
pub fn holder(path: &Path) -> Option<u32> {
    let users = FileUsers::of(path).ok()?;
    users.uses.iter().find_map(|a_use| {
        let UseKind::Open { fd, .. } = a_use.kind else { return None };
        let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", a_use.pid)).ok()?;
        if info.contains("OFDLCK") { u32::try_from(a_use.pid).ok() } else { None }
    })
}

fn is_contention(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

/// Runs one of the two lock commands over the whole file and returns what the kernel wrote back.
fn control(fd: BorrowedFd<'_>, command: i32, kind: i32) -> io::Result<libc::flock> {
    // Length 0 means "to the end, wherever that is"; the kernel demands that l_pid is 0 on entry.
    let mut range = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open for the length of the borrow; both commands take a pointer to
    // one `struct flock`, which lives on this stack and which the kernel writes only during the
    // call.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut range) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(range) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};
    use std::path::Path;

    fn open(path: &Path) -> File {
        OpenOptions::new().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn lock_excludes_another_description_and_is_seen_by_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (first, second) = (open(file.path()), open(file.path()));
        assert!(!is_locked(&second).unwrap());
        assert!(try_lock_exclusive(&first).unwrap());
        assert!(try_lock_exclusive(&first).unwrap(), "the holder may ask again");
        assert!(!is_locked(&first).unwrap(), "one's own lock is no obstacle");
        assert!(is_locked(&second).unwrap());
        assert!(!try_lock_exclusive(&second).unwrap());
        unlock(&first).unwrap();
        assert!(try_lock_exclusive(&second).unwrap());
    }

    #[test]
    fn lock_lives_until_the_last_copy_of_its_description_closes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (first, second) = (open(file.path()), open(file.path()));
        let copy = first.try_clone().unwrap();
        assert!(try_lock_exclusive(&first).unwrap());
        drop(first);
        assert!(is_locked(&second).unwrap(), "the copy shares the description");
        drop(copy);
        assert!(!is_locked(&second).unwrap());
    }

    #[test]
    fn read_only_descriptor_can_look_but_not_lock() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let holder = open(file.path());
        assert!(try_lock_exclusive(&holder).unwrap());
        let reader = File::open(file.path()).unwrap();
        assert!(is_locked(&reader).unwrap());
        let error = try_lock_exclusive(&reader).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
