//! Who is at the other end of a connection, by the kernel's word.
//!
//! The numbers are those of the process that connected (or listened, or made the pair), at that
//! moment. A pid can be reused; the pidfd cannot. Since Linux 6.5 the kernel gives the pidfd of
//! that very process (`SO_PEERPIDFD`); before, it is opened by number, and a process that has died
//! in between might have been replaced.

// UNSAFETY: rustix lacks SO_PEERPIDFD, and its socket_peercred is undefined for the pid 0 of a peer
// in a pid namespace that we cannot see. Both need getsockopt with our own memory.
#![allow(unsafe_code)]

use crate::OsError;
use crate::error::is_shortage;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// asm-generic/socket.h, since Linux 6.5; libc does not name it.
const SO_PEERPIDFD: libc::c_int = 77;

/// The process at the other end of a connection.
#[derive(Debug)]
pub struct Peer {
    /// Its number, 0 if it lives in a pid namespace that we cannot see.
    pub pid: i32,
    /// Its effective user when it connected.
    pub uid: u32,
    /// Its effective group when it connected.
    pub gid: u32,
    /// A handle that stays with that process, `None` if it is already gone or cannot be seen.
    pub pidfd: Option<OwnedFd>,
}

impl Peer {
    /// Asks the kernel about the other end of `socket`.
    pub(super) fn of(socket: BorrowedFd<'_>) -> Result<Self, OsError> {
        let failed = |error| OsError::new("identify", "the peer of a connection", error);
        #[cfg(feature = "sim")]
        if let Some(pid) = crate::sim::peer(socket) {
            let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
            let pidfd = crate::sim::with(|world| world.pidfd(pid)).flatten();
            return Ok(Self { pid, uid: uid.as_raw(), gid: gid.as_raw(), pidfd });
        }
        let mut who = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
        // SAFETY: a ucred is three integers; any bytes that the kernel writes are valid.
        unsafe { get_option(socket, libc::SO_PEERCRED, &mut who) }.map_err(failed)?;
        let mut raw_pidfd: libc::c_int = -1;
        // SAFETY: the option is one int; any bytes that the kernel writes are valid.
        let pidfd = match unsafe { get_option(socket, SO_PEERPIDFD, &mut raw_pidfd) } {
            // SAFETY: on success the kernel has installed a fresh descriptor that nobody else owns.
            Ok(()) if raw_pidfd >= 0 => Some(unsafe { OwnedFd::from_raw_fd(raw_pidfd) }),
            Err(error) if is_shortage(&error) => return Err(failed(error)),
            // The kernel knows the option, hence the peer is gone.
            Err(error) if error.raw_os_error() != Some(libc::ENOPROTOOPT) => None,
            _ => open_by_number(who.pid).map_err(failed)?,
        };
        Ok(Self { pid: who.pid, uid: who.uid, gid: who.gid, pidfd })
    }
}

fn open_by_number(pid: i32) -> io::Result<Option<OwnedFd>> {
    // rustix panics on a negative number.
    let Some(pid) = Pid::from_raw(pid.max(0)) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(error) if is_shortage(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Reads a socket option into `value`.
///
/// # Safety
/// Every pattern of bytes must be a valid `T`.
unsafe fn get_option<T>(socket: BorrowedFd<'_>, option: i32, value: &mut T) -> io::Result<()> {
    let mut len = size_of::<T>() as libc::socklen_t;
    let place = (&raw mut *value).cast();
    // SAFETY: the descriptor is open for the length of the borrow; the kernel writes at most `len`
    // bytes to `place`, which is an exclusively borrowed T, and the caller accepts any bytes there.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, place, &raw mut len)
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::pidfd_has_exited;
    use crate::seqpacket::Connection;
    use std::os::fd::AsFd;

    #[test]
    fn pair_is_its_own_peer() {
        let (left, _right) = Connection::pair().unwrap();
        let peer = left.peer().unwrap();
        assert_eq!(peer.pid, std::process::id() as i32);
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getegid().as_raw());
        assert!(!pidfd_has_exited(peer.pidfd.unwrap().as_fd()));
    }

    #[test]
    fn numbers_that_name_no_process_open_nothing() {
        let open = |pid| open_by_number(pid).unwrap();
        assert!(open(0).is_none());
        assert!(open(-5).is_none());
        assert!(open(std::process::id() as i32).is_some());
    }
}
