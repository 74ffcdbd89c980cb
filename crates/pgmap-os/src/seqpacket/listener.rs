//! A listening socket at a path, and the right to be there.
//!
//! A socket's name outlives its process. A newcomer that finds the name taken must tell a leftover
//! from a listener, without a window in which two of them unlink each other. So:
//!
//! 1. lock `PATH.lock` for the life of the listener (an open-file-description lock: it dies with
//!    the process). Locked by another: somebody listens, or is about to;
//! 2. only under the lock, if the name exists, connect to it. Answered: somebody listens who knows
//!    nothing of the lock. Refused: a leftover, which is removed. Not a socket: not ours to remove;
//!    (The listener sees the question as a caller that hangs up at once.)
//! 3. bind, set the mode, and only then listen, so that nobody gets in under a laxer mode.
//!
//! A forked child keeps none of it ([`ParentFd`]), so none of it outlives the process.

use super::{Connection, Peer, address, new_socket};
use crate::process::command_name;
use crate::sim;
use crate::{OsError, ParentFd, file_lock};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// Callers that may wait to be accepted; the next gets `EAGAIN`.
const BACKLOG: i32 = 128;

/// How often the lock file may be replaced under us before we give up.
const MAX_LOCK_TRIES: usize = 16;

/// A listening socket. Its name is removed on drop, if it is still ours.
#[derive(Debug)]
pub struct Listener {
    fd: ParentFd,
    path: PathBuf,
    /// Device and inode of the name we made, to recognise it by.
    identity: (u64, u64),
    // Dropped last: the name goes before the right to it.
    _lock: LockFile,
}

impl Listener {
    /// Listens at `path`; `mode` (for instance `0o600`) says who may connect.
    ///
    /// # Errors
    /// [`BindError::InUse`], with who it is where that can be known; [`BindError::Os`] with
    /// `ENAMETOOLONG` for a path over 107 bytes, `EEXIST` for a path that is no socket, `ENOENT`.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, BindError> {
        let failed = |errno| OsError::new("listen at", path.display().to_string(), errno);
        let address = address(path)?;
        let lock = LockFile::take(path)?;
        remove_leftover(path)?;
        let fd = ParentFd::new(new_socket()?);
        // The socket's own mode is what the name is made with, less the umask; hence once more
        // after.
        let mode = Mode::from_bits_truncate(mode & 0o777);
        rustix::fs::fchmod(&fd, mode).map_err(failed)?;
        sim::call("bind").map_err(failed)?;
        rustix::net::bind(&fd, &address).map_err(failed)?;
        let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let identity = (stat.st_dev, stat.st_ino);
        let listener = Self { fd, path: path.to_owned(), identity, _lock: lock };
        rustix::fs::chmod(path, mode).map_err(failed)?;
        sim::call("listen").map_err(failed)?;
        rustix::net::listen(&listener.fd, BACKLOG).map_err(failed)?;
        sim::listens(path);
        Ok(listener)
    }

    /// Accepts a caller, if one waits. The new connection never waits either.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE` when descriptors run out: the caller stays in the queue, so a loop must
    /// free one first or look away for a while.
    pub fn accept(&self) -> Result<Option<Connection>, OsError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let call = || rustix::net::accept_with(&self.fd, flags);
        match sim::call("accept").and_then(|()| rustix::io::retry_on_intr(call)) {
            Ok(fd) => Ok(Some(Connection::accepted(fd))),
            // A caller that left again while it waited is nobody.
            Err(Errno::AGAIN | Errno::CONNABORTED) => Ok(None),
            Err(errno) => {
                Err(OsError::new("accept a caller at", self.path.display().to_string(), errno))
            }
        }
    }

    /// Returns the path it listens at.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        unlink_if_still(&self.path, self.identity);
    }
}

/// Why a path cannot be listened at.
#[derive(Debug)]
#[non_exhaustive]
pub enum BindError {
    /// Somebody else listens there.
    InUse {
        /// The path.
        path: PathBuf,
        /// Number and name of the process, where the kernel says.
        who: Option<(i32, String)>,
    },
    /// The system refused.
    Os(OsError),
}

impl BindError {
    /// Returns the errno as a positive number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::InUse { .. } => libc::EADDRINUSE,
            Self::Os(error) => error.errno(),
        }
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse { path, who } => {
                write!(f, "{} is in use", path.display())?;
                if let Some((pid, name)) = who {
                    write!(f, " by {name} (pid {pid})")?;
                }
                write!(f, "; stop it or choose another path")
            }
            Self::Os(error) => error.fmt(f),
        }
    }
}

impl Error for BindError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::InUse { .. } => None,
            Self::Os(error) => error.source(),
        }
    }
}

impl From<OsError> for BindError {
    fn from(error: OsError) -> Self {
        Self::Os(error)
    }
}

/// Removes a socket that nobody listens at. Call under the lock.
fn remove_leftover(path: &Path) -> Result<(), BindError> {
    let failed = |errno| OsError::new("listen at", path.display().to_string(), errno);
    let stat = match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed(errno).into()),
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::Socket {
        let advice = format!("a {kind:?} is there, which is not ours to remove");
        return Err(failed(Errno::EXIST).with_advice(advice).into());
    }
    match probe(path) {
        Probe::Listens(who) => Err(BindError::InUse { path: path.to_owned(), who }),
        Probe::Leftover => {
            unlink_if_still(path, (stat.st_dev, stat.st_ino));
            Ok(())
        }
    }
}

enum Probe {
    Listens(Option<(i32, String)>),
    Leftover,
}

/// Finds out by connecting whether somebody listens at an existing socket.
fn probe(path: &Path) -> Probe {
    let Ok(caller) = new_socket() else { return Probe::Listens(None) };
    let Ok(address) = address(path) else { return Probe::Listens(None) };
    match rustix::net::connect(&caller, &address) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Probe::Leftover,
        // Busy, forbidden, or of another kind: somebody is there, or we cannot know.
        Err(_) => Probe::Listens(None),
        Ok(()) => {
            let peer = Peer::of(caller.as_fd()).ok();
            Probe::Listens(peer.map(|peer| {
                let name = command_name(peer.pid).unwrap_or_else(|| "an unknown process".into());
                (peer.pid, name)
            }))
        }
    }
}

/// Removes a name if it is still the thing that we know it as.
fn unlink_if_still(path: &Path, identity: (u64, u64)) {
    let stat =
        sim::call("unlink").and_then(|()| rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW));
    if stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == identity) {
        // Whoever comes next can deal with a leftover, so a failure is no loss.
        let _ = rustix::fs::unlink(path);
    }
}

/// `PATH.lock`, locked. Removed on drop, while still locked.
#[derive(Debug)]
struct LockFile {
    _fd: ParentFd,
    path: PathBuf,
    identity: (u64, u64),
}

impl LockFile {
    fn take(socket_path: &Path) -> Result<Self, BindError> {
        let mut path = socket_path.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let failed = |error: io::Error| OsError::new("lock", path.display().to_string(), error);
        for _ in 0..MAX_LOCK_TRIES {
            let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let fd = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
                .map_err(|errno| failed(errno.into()))?;
            if !file_lock::try_lock_exclusive(&fd).map_err(failed)? {
                let who = match probe(socket_path) {
                    Probe::Listens(who) => who,
                    Probe::Leftover => None,
                };
                return Err(BindError::InUse { path: socket_path.to_owned(), who });
            }
            // The previous holder removes the name before it lets go: if we opened the file just
            // before that, we have locked a file without a name, and must try again.
            let stat = rustix::fs::fstat(&fd).map_err(|errno| failed(errno.into()))?;
            let identity = (stat.st_dev, stat.st_ino);
            let named = rustix::fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW);
            if named.is_ok_and(|named| (named.st_dev, named.st_ino) == identity) {
                return Ok(Self { _fd: ParentFd::new(fd), path, identity });
            }
        }
        Err(failed(Errno::BUSY.into()).with_advice("its name keeps changing; try again").into())
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        unlink_if_still(&self.path, self.identity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        (dir, path)
    }

    #[test]
    fn caller_is_accepted_and_both_ends_talk() {
        let (_dir, path) = place();
        let listener = Listener::bind(&path, 0o600).unwrap();
        assert!(listener.accept().unwrap().is_none());
        let caller = Connection::connect(&path).unwrap();
        let accepted = listener.accept().unwrap().unwrap();
        caller.send(b"hello", &[]).unwrap();
        assert_eq!(accepted.recv(&mut [0; 8]).unwrap().len, 5);
        let nothing = accepted.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(nothing.errno(), libc::EAGAIN, "accepted connections never wait");
        assert_eq!(accepted.peer().unwrap().pid, std::process::id() as i32);
    }

    #[test]
    fn names_are_gone_when_the_listener_is() {
        let (dir, path) = place();
        drop(Listener::bind(&path, 0o600).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(Connection::connect(&path).unwrap_err().errno(), libc::ENOENT);
    }

    #[test]
    fn mode_is_exactly_the_one_asked_for() {
        for mode in [0o600, 0o666, 0o660] {
            let (_dir, path) = place();
            let _listener = Listener::bind(&path, mode).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
    }

    #[test]
    fn second_listener_is_refused_and_told_who_the_first_is() {
        let (_dir, path) = place();
        let first = Listener::bind(&path, 0o600).unwrap();
        let error = Listener::bind(&path, 0o600).unwrap_err();
        assert_eq!(error.errno(), libc::EADDRINUSE);
        let pid = std::process::id();
        assert!(error.to_string().contains(&format!("(pid {pid})")), "{error}");
        assert!(Connection::connect(first.path()).is_ok(), "the first is untouched");
    }

    #[test]
    fn leftover_of_a_dead_listener_is_replaced() {
        let (_dir, path) = place();
        let leftover = new_socket().unwrap();
        rustix::net::bind(&leftover, &address(&path).unwrap()).unwrap();
        drop(leftover);
        assert!(path.exists());
        let _listener = Listener::bind(&path, 0o600).unwrap();
        assert!(Connection::connect(&path).is_ok());
    }

    #[test]
    fn listener_that_knows_no_lock_file_is_left_alone() {
        let (_dir, path) = place();
        let foreign = new_socket().unwrap();
        rustix::net::bind(&foreign, &address(&path).unwrap()).unwrap();
        rustix::net::listen(&foreign, 1).unwrap();
        let error = Listener::bind(&path, 0o600).unwrap_err();
        assert!(matches!(error, BindError::InUse { who: Some(_), .. }), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn what_is_no_socket_is_not_removed() {
        let (_dir, path) = place();
        fs::write(&path, "precious").unwrap();
        assert_eq!(Listener::bind(&path, 0o600).unwrap_err().errno(), libc::EEXIST);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn path_of_another_listener_is_not_unlinked_by_our_drop() {
        let (_dir, path) = place();
        let listener = Listener::bind(&path, 0o600).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody else's").unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn path_that_does_not_fit_is_refused_with_both_lengths() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(103)));
        let error = Listener::bind(&path, 0o600).unwrap_err();
        assert_eq!(error.errno(), libc::ENAMETOOLONG);
        assert!(error.to_string().contains("108 bytes, a socket's path at most 107"), "{error}");
        assert_eq!(Connection::connect(&path).unwrap_err().errno(), libc::ENAMETOOLONG);
        assert_eq!(Connection::connect(Path::new("")).unwrap_err().errno(), libc::EINVAL);
    }
}
