//! What arrives from an owner: replies, and the descriptors that some of them bring.

use std::os::fd::OwnedFd;
use std::time::Duration;

use pgmap_mm::drain::ClientId;
use pgmap_os::{Connection, Doorbell, ParentFd, TransferError};

use super::Link;
use crate::error::Error;
use crate::wire::{self, MAX_MESSAGE_BYTES, Numbered, Reply, Request};

/// A reply and what came along.
pub(super) struct Received {
    reply: Numbered<Reply>,
    fds: Vec<OwnedFd>,
}

impl Received {
    /// The reply; descriptors take the place of those that another reply brought.
    pub(super) fn hand_to(self, handed: &mut Vec<OwnedFd>) -> Numbered<Reply> {
        if !self.fds.is_empty() {
            *handed = self.fds;
        }
        self.reply
    }
}

/// The next message, if there is one.
pub(super) fn receive(connection: &Connection) -> Result<Option<Received>, Error> {
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    match connection.recv(&mut buffer) {
        Ok(received) if received.is_end() => {
            Err(Error::OwnerGone { why: "it closed the connection".into() })
        }
        Ok(received) => {
            let reply = wire::decode(&buffer[..received.len])?;
            Ok(Some(Received { reply, fds: received.fds }))
        }
        Err(TransferError::WouldBlock) => Ok(None),
        Err(error) => Err(Error::OwnerGone { why: error.to_string() }),
    }
}

impl Link {
    /// Asks for the pool's backings, and a descriptor of each further one that is there. One thread
    /// of a client at a time.
    pub(in crate::client) fn backings(
        &self,
        client: ClientId,
        limit: Duration,
        resume: impl Fn(Doorbell),
        ledger: &ParentFd,
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        match self {
            Self::Embedded(shared) => shared.backings(),
            Self::Remote(remote) => {
                remote.lock().handed.clear();
                let called = remote.call_resuming(client, Request::Backings, limit, resume, ledger);
                let reply = called.map_err(|failed| failed.error)?;
                Ok((reply, std::mem::take(&mut remote.lock().handed)))
            }
        }
    }
}
