//! What arrives from an owner: replies, and the descriptors that some of them bring.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use pgmap_os::clock::Instant;
use pgmap_os::poll::wait_for;
use pgmap_os::{Connection, Interest, OsError, TransferError, thread};

use super::Link;
use crate::client::Inner;
use crate::error::Error;
use crate::wire::{self, MAX_MESSAGE_BYTES, Numbered, Reply, Request};

/// How long a thread looks for an answer before it sleeps.
const BUSY_POLL: Duration = Duration::from_micros(50);

/// A reply and what came along.
pub(super) struct ReceivedReply {
    pub reply: Numbered<Reply>,
    pub fds: Vec<OwnedFd>,
}

/// Waits until there is something to read, or for `left`. Most answers come sooner than a thread
/// falls asleep and is woken again, so it looks a few times first.
pub(super) fn wait_for_reply(connection: &Connection, left: Duration) -> Result<(), OsError> {
    let is_there = |left| wait_for([(connection.as_fd(), Interest::Read)], left);
    // In a simulation nothing arrives until the thread gives up its turn.
    if !cfg!(feature = "sim") {
        let until = Instant::now() + BUSY_POLL.min(left);
        while Instant::now() < until {
            if is_there(Duration::ZERO)?[0] {
                return Ok(());
            }
            // The owner may wait for this processor: who sends a message is expected to fall
            // asleep, so the kernel has the receiver run where the sender did.
            thread::yield_now();
        }
    }
    is_there(left).map(drop)
}

/// The next message, if there is one. `buffer` is empty at first, and used again.
pub(super) fn receive(
    connection: &Connection,
    buffer: &mut Vec<u8>,
) -> Result<Option<ReceivedReply>, Error> {
    buffer.resize(MAX_MESSAGE_BYTES, 0);
    match connection.recv(buffer) {
        Ok(received) if received.is_end() => {
            Err(Error::OwnerGone { why: "it closed the connection".into() })
        }
        Ok(received) => {
            let reply = wire::decode(&buffer[..received.len])?;
            Ok(Some(ReceivedReply { reply, fds: received.fds }))
        }
        Err(TransferError::WouldBlock) => Ok(None),
        Err(error) => Err(Error::OwnerGone { why: error.to_string() }),
    }
}

impl Link {
    /// As [`call`](Self::call), for requests whose answers bring descriptors.
    pub(in crate::client) fn call_for_fds(
        &self,
        caller: &Inner,
        request: Request,
        limit: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        match self {
            Self::Embedded(shared) => shared.call_for_fds(caller.id, request),
            Self::Remote(remote) => {
                remote.call_resuming(caller, request, None, limit).map_err(|failed| failed.error)
            }
        }
    }
}
