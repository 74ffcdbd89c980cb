//! Connecting to an owner and greeting it, within a deadline.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use pgmap_os::poll::wait_for;
use pgmap_os::{Blocking, Connection, Interest, TransferError};

use crate::deadline::{Deadline, millis};
use crate::error::Error;
use crate::refusal::Refusal;
use crate::wire::{self, Hello, MAX_MESSAGE_BYTES, VERSION, Welcome};

/// The error number of a listener whose queue is full, and how long it is left alone then.
const EAGAIN: i32 = 11;
const QUEUE_PAUSE: Duration = Duration::from_millis(20);

/// Whose process a client takes for the pool's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::client) enum Trust {
    /// Whoever listens at the path.
    Anybody,
    /// A process of this user or of root.
    OwnUser,
}

/// A connection that never blocks, and who listens at `path`; nothing is said to anybody who is not
/// trusted. A listener whose queue is full is asked again until the deadline.
pub(super) fn connect(
    path: &Path,
    trust: Trust,
    deadline: Deadline,
) -> Result<(Connection, i32), Error> {
    loop {
        match Connection::connect(path) {
            Ok(connection) => {
                if trust == Trust::OwnUser {
                    connection.check_peer_user(path)?;
                }
                connection.set_blocking(Blocking::Never)?;
                let owner_pid = connection.peer()?.pid;
                return Ok((connection, owner_pid));
            }
            Err(error) if error.errno() == EAGAIN && !deadline.left().is_zero() => {
                pgmap_os::thread::sleep(QUEUE_PAUSE.min(deadline.left()));
            }
            Err(error) if error.errno() == EAGAIN => return Err(timed_out(0, deadline)),
            Err(error) => return Err(error.into()),
        }
    }
}

fn timed_out(owner_pid: i32, deadline: Deadline) -> Error {
    let waited_ms = millis(deadline.timeout());
    Error::TimedOut { call: "greeting", waited_ms, owner_pid }
}

pub(super) fn greet(
    connection: &Connection,
    owner_pid: i32,
    hello: &Hello,
    shown: &[BorrowedFd<'_>],
    deadline: Deadline,
) -> Result<(Welcome, Vec<OwnedFd>), Error> {
    let gone = |error: TransferError| Error::OwnerGone { why: error.to_string() };
    let message = wire::encode(hello)?;
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    let (mut is_said, mut is_closed) = (false, false);
    loop {
        if !is_said {
            match connection.send(&message, shown) {
                // An owner that is full answers without hearing, and hangs up: hear it all the
                // same.
                Ok(()) | Err(TransferError::Closed) => is_said = true,
                Err(TransferError::WouldBlock) => {}
                Err(error) => return Err(gone(error)),
            }
        }
        match connection.recv(&mut buffer) {
            Ok(received) if received.is_end() => {
                return Err(Error::OwnerGone { why: "it closed the connection".into() });
            }
            Ok(received) => {
                let welcome: Result<Welcome, Refusal> = wire::decode(&buffer[..received.len])?;
                let welcome = welcome?;
                if welcome.version != VERSION {
                    let what = format!("version {}, this is {VERSION}", welcome.version);
                    return Err(Error::Protocol { what });
                }
                return Ok((welcome, received.fds));
            }
            Err(TransferError::WouldBlock) => {}
            // Reported once, before what it had said.
            Err(TransferError::Closed) if !is_closed => {
                is_closed = true;
                continue;
            }
            Err(error) => return Err(gone(error)),
        }
        let left = deadline.left();
        if left.is_zero() {
            return Err(timed_out(owner_pid, deadline));
        }
        let interest = if is_said { Interest::Read } else { Interest::ReadWrite };
        wait_for([(connection.as_fd(), interest)], left)?;
    }
}
