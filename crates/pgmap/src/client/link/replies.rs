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
    pub reply: Numbered<Reply>,
    pub fds: Vec<OwnedFd>,
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
    /// As [`call`](Self::call), for requests whose answers bring descriptors.
    pub(in crate::client) fn call_for_fds(
        &self,
        client: ClientId,
        request: Request,
        limit: Duration,
        resume: impl Fn(Doorbell),
        ledger: &ParentFd,
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        match self {
            Self::Embedded(shared) => shared.call_for_fds(client, request),
            Self::Remote(remote) => remote
                .call_resuming(client, request, limit, resume, ledger)
                .map_err(|failed| failed.error),
        }
    }
}
