//! One connection: messages and descriptors, each whole or not at all.

use super::{MAX_FDS, MAX_MESSAGE_BYTES, Peer, address, new_socket};
use crate::sim;
use crate::{OsError, ParentFd};
use rustix::io::{Errno, IoSlice, IoSliceMut, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use std::error::Error;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Room for MAX_FDS descriptors. The macro pads, so a few more may fit: `recv` counts them as well.
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(MAX_FDS));

/// Whether a call on a connection waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocking {
    /// Wait until there is room, or a message.
    Wait,
    /// Answer [`TransferError::WouldBlock`] instead.
    Never,
}

/// One end of a connection. New connections wait ([`Blocking::Wait`]); accepted ones never do. A
/// forked child does not keep it, so that the peer hears of this process's end.
#[derive(Debug)]
pub struct Connection {
    fd: ParentFd,
}

/// A message that arrived: its bytes lie in the caller's buffer.
#[derive(Debug)]
#[must_use]
pub struct Received {
    /// How many bytes of the buffer it fills.
    pub len: usize,
    /// The descriptors that came along, close-on-exec, at most `MAX_FDS`.
    pub fds: Vec<OwnedFd>,
}

impl Received {
    /// Returns true if the peer has ended the conversation. A message with neither bytes nor
    /// descriptors, which `send` refuses, looks the same and is taken for the same.
    pub fn is_end(&self) -> bool {
        self.len == 0 && self.fds.is_empty()
    }
}

impl Connection {
    /// Connects to the listener at `path`.
    ///
    /// # Errors
    /// `ENOENT` without a socket, `ECONNREFUSED` if nobody listens, `EACCES`, `ENAMETOOLONG`,
    /// `EAGAIN` if the listener has more callers waiting than it keeps.
    pub fn connect(path: &Path) -> Result<Self, OsError> {
        let connection = Self { fd: ParentFd::new(new_socket()?) };
        let address = address(path)?;
        sim::call("connect")
            .and_then(|()| sim::name_caller(connection.fd.as_fd()))
            .map_err(|errno| OsError::new("connect to", path.display().to_string(), errno))?;
        rustix::net::connect(&connection.fd, &address).map_err(|errno| {
            let error = OsError::new("connect to", path.display().to_string(), errno);
            match errno {
                Errno::NOENT | Errno::CONNREFUSED => error.with_advice("is the service running?"),
                Errno::AGAIN => error.with_advice("it is busy; try again"),
                _ => error,
            }
        })?;
        sim::happened();
        connection.set_blocking(Blocking::Wait)?;
        Ok(connection)
    }

    /// Makes two connected ends, both of this process.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE` when descriptors run out.
    pub fn pair() -> Result<(Self, Self), OsError> {
        let kind = SocketType::SEQPACKET;
        let (left, right) =
            rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
                .map_err(|errno| OsError::new("create", "a pair of connections", errno))?;
        Ok((Self { fd: ParentFd::new(left) }, Self { fd: ParentFd::new(right) }))
    }

    /// Takes over a connected SEQPACKET socket, for instance one inherited from a parent.
    ///
    /// # Errors
    /// `EINVAL` for any other kind of descriptor.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, OsError> {
        match rustix::net::sockopt::socket_type(&fd) {
            Ok(SocketType::SEQPACKET) => Ok(Self { fd: ParentFd::new(fd) }),
            Ok(_) | Err(Errno::NOTSOCK) => {
                let error = OsError::new("accept", "a descriptor as a connection", Errno::INVAL);
                Err(error.with_advice("it must be a SOCK_SEQPACKET socket"))
            }
            Err(errno) => Err(OsError::new("accept", "a descriptor as a connection", errno)),
        }
    }

    pub(super) fn accepted(fd: OwnedFd) -> Self {
        Self { fd: ParentFd::new(fd) }
    }

    /// Sends one message with descriptors, whole or not at all. The peer gets copies of the
    /// descriptors, which share their open file descriptions with ours.
    ///
    /// # Errors
    /// [`TransferError::WouldBlock`] if there is no room (only under [`Blocking::Never`]),
    /// [`TransferError::Closed`] if the peer is gone, and refusals of a message that is empty, too
    /// long or carries too many descriptors. No signal is raised.
    pub fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), TransferError> {
        if message.is_empty() {
            return Err(TransferError::Empty);
        }
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(TransferError::TooLong { len: message.len() });
        }
        if fds.len() > MAX_FDS {
            return Err(TransferError::TooManyDescriptors { nr_fds: fds.len() });
        }
        if let Err(errno) = sim::call("sendmsg") {
            return Err(TransferError::from_errno("send", errno));
        }
        let sent = retry_on_intr(|| {
            let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                // CONTROL_BYTES has room for MAX_FDS, and there are no more.
                return Err(Errno::NOBUFS);
            }
            let bytes = [IoSlice::new(message)];
            // Linux raises SIGPIPE for stream sockets only (net/unix/af_unix.c); POSIX allows it
            // here.
            rustix::net::sendmsg(&self.fd, &bytes, &mut control, SendFlags::NOSIGNAL)
        });
        sim::happened();
        match sent {
            // SEQPACKET sends whole messages or none.
            Ok(_) => Ok(()),
            Err(errno) => Err(TransferError::from_errno("send", errno)),
        }
    }

    /// Receives one message into `buffer`.
    ///
    /// # Errors
    /// [`TransferError::WouldBlock`] if there is none (only under [`Blocking::Never`]),
    /// [`TransferError::Truncated`] if it was longer than `buffer` or brought more than `MAX_FDS`
    /// descriptors: it is lost, and all of its descriptors are closed.
    pub fn recv(&self, buffer: &mut [u8]) -> Result<Received, TransferError> {
        let room = buffer.len();
        if let Err(errno) = sim::call("recvmsg") {
            return Err(TransferError::from_errno("receive", errno));
        }
        let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = retry_on_intr(|| {
            let mut bytes = [IoSliceMut::new(buffer)];
            rustix::net::recvmsg(&self.fd, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)
        })
        .map_err(|errno| TransferError::from_errno("receive", errno))?;
        sim::happened();
        // Take the descriptors in any case: those of a message that is refused close right here.
        let mut fds = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = part {
                fds.extend(received);
            }
        }
        if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) || fds.len() > MAX_FDS
        {
            return Err(TransferError::Truncated { room });
        }
        Ok(Received { len: message.bytes, fds })
    }

    /// Returns who is at the other end.
    ///
    /// # Errors
    /// What the kernel says; none is known for a connected socket.
    pub fn peer(&self) -> Result<Peer, OsError> {
        Peer::of(self.fd.as_fd())
    }

    /// Checks that the other end, which listens at `path`, is a process of this user or of root.
    ///
    /// # Errors
    /// `EPERM` if it is another user's.
    pub fn check_peer_user(&self, path: &Path) -> Result<(), OsError> {
        let (theirs, own) = (self.peer()?.uid, rustix::process::geteuid().as_raw());
        if theirs == own || theirs == 0 {
            return Ok(());
        }
        let error =
            OsError::new("trust", format!("who listens at {}", path.display()), Errno::PERM);
        Err(error.with_advice(format!("it is a process of user {theirs}, and this is user {own}")))
    }

    /// Says whether `send` and `recv` wait.
    ///
    /// # Errors
    /// What the kernel says; none is known for a socket.
    pub fn set_blocking(&self, blocking: Blocking) -> Result<(), OsError> {
        let is_nonblocking = matches!(blocking, Blocking::Never);
        rustix::io::ioctl_fionbio(&self.fd, is_nonblocking)
            .map_err(|errno| OsError::new("set the blocking mode of", "a connection", errno))
    }

    /// Asks for socket buffers of `len` bytes in both directions. The kernel doubles the number for
    /// its own overhead and cuts it to `net.core.wmem_max` and `rmem_max` without a word.
    ///
    /// # Errors
    /// What the kernel says; none is known for a socket.
    pub fn set_buffer_bytes(&self, len: usize) -> Result<(), OsError> {
        let failed = |errno| OsError::new("size", format!("socket buffers of {len} bytes"), errno);
        // The option is an int; more than that cannot be asked for.
        let len = len.min(i32::MAX as usize);
        rustix::net::sockopt::set_socket_send_buffer_size(&self.fd, len).map_err(failed)?;
        rustix::net::sockopt::set_socket_recv_buffer_size(&self.fd, len).map_err(failed)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Connection> for OwnedFd {
    fn from(connection: Connection) -> Self {
        connection.fd.into_inner()
    }
}

/// Why a message was not sent or not received.
#[derive(Debug)]
#[non_exhaustive]
pub enum TransferError {
    /// No room to send, or nothing to receive, and the connection never waits.
    WouldBlock,
    /// The peer is gone.
    Closed,
    /// The peer sent more than fits: the message is lost, its descriptors are closed.
    Truncated {
        /// The bytes that there was room for.
        room: usize,
    },
    /// The caller's message is longer than `MAX_MESSAGE_BYTES`.
    TooLong {
        /// Its length.
        len: usize,
    },
    /// The caller's message carries more than `MAX_FDS` descriptors.
    TooManyDescriptors {
        /// How many.
        nr_fds: usize,
    },
    /// The caller's message has no bytes: it would look like the end of the conversation.
    Empty,
    /// The system refused.
    Os(OsError),
}

impl TransferError {
    fn from_errno(what: &'static str, errno: Errno) -> Self {
        match errno {
            Errno::AGAIN => Self::WouldBlock,
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Self::Closed,
            _ => Self::Os(OsError::new(what, "a message", errno)),
        }
    }

    /// Returns the errno as a positive number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::WouldBlock => libc::EAGAIN,
            Self::Closed => libc::EPIPE,
            Self::Truncated { .. } => libc::EBADMSG,
            Self::TooLong { .. } => libc::EMSGSIZE,
            Self::TooManyDescriptors { .. } => libc::E2BIG,
            Self::Empty => libc::EINVAL,
            Self::Os(error) => error.errno(),
        }
    }
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WouldBlock => write!(f, "the connection would have to wait"),
            Self::Closed => write!(f, "the peer has closed the connection"),
            Self::Truncated { room } => write!(
                f,
                "the peer sent a message of more than {room} bytes or {MAX_FDS} descriptors: \
                 dropped"
            ),
            Self::TooLong { len } => {
                write!(f, "a message of {len} bytes is over the limit of {MAX_MESSAGE_BYTES}")
            }
            Self::TooManyDescriptors { nr_fds } => {
                write!(f, "{nr_fds} descriptors in one message are over the limit of {MAX_FDS}")
            }
            Self::Empty => write!(f, "an empty message would look like the end: send a byte"),
            Self::Os(error) => error.fmt(f),
        }
    }
}

impl Error for TransferError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Os(error) => error.source(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
