//! Messages and descriptors between processes: Unix `SOCK_SEQPACKET`.
//!
//! A connection carries *messages*: each arrives whole or not at all, in order, with the
//! descriptors that were sent along. There is a definite end, and the kernel vouches for who is at
//! the other end.
//!
//! - [`Listener`] owns a path, and the right to own it;
//! - [`Connection`] sends and receives;
//! - [`Peer`] is who made the connection.
//!
//! Whatever arrives is an allegation: lengths and numbers of descriptors are bounded here, contents
//! are the caller's to check.

mod connection;
mod listener;
mod peer;

pub use connection::{Blocking, Connection, Received, TransferError};
pub use listener::{BindError, Listener};
pub use peer::Peer;

use crate::OsError;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use std::path::Path;

/// The longest message. Fits the default socket buffer (`wmem_default`, 212992 bytes, which also
/// counts the kernel's own overhead) three times over, so no sender needs to enlarge one.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// The most descriptors in one message. The kernel would allow 253 (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 16;

/// The longest path of a socket: `sun_path` less its closing zero.
pub const MAX_PATH_BYTES: usize = 107;

fn new_socket() -> Result<OwnedFd, OsError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|errno| OsError::new("create", "a SEQPACKET socket", errno))
}

fn address(path: &Path) -> Result<SocketAddrUnix, OsError> {
    let len = path.as_os_str().len();
    let failed = |errno| OsError::new("use", format!("socket path {}", path.display()), errno);
    if len > MAX_PATH_BYTES {
        return Err(failed(Errno::NAMETOOLONG)
            .with_advice(format!("it has {len} bytes, a socket's path at most {MAX_PATH_BYTES}")));
    }
    if len == 0 {
        // The kernel would take this for a request to choose an abstract name.
        return Err(failed(Errno::INVAL).with_advice("the path is empty"));
    }
    SocketAddrUnix::new(path).map_err(failed)
}
