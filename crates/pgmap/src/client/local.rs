//! An owner in the same process, as its clients reach it: what the owner gives them, and what they
//! ask of it without a message.

use std::fmt;
use std::os::fd::OwnedFd;
use std::time::Duration;

use pgmap_mm::drain::ClientId;
use pgmap_os::Doorbell;

use crate::error::Error;
use crate::wire::{Event, Reply, Request, Welcome};

/// Most events kept for a client that does not ask for them; the oldest go first. In a simulation
/// few are many.
pub(crate) const MAX_EVENTS: usize = if cfg!(feature = "sim") { 4 } else { 1024 };

/// What a client needs to map a pool.
#[derive(Debug)]
pub(crate) struct Handed {
    pub welcome: Welcome,
    pub data: OwnedFd,
    pub vmemmap: OwnedFd,
    pub index: OwnedFd,
    pub doorbell: Doorbell,
    pub ledger: OwnedFd,
}

/// An owner in the same process.
pub(crate) trait LocalOwner: fmt::Debug + Send + Sync {
    /// An error once it is stopping, and in a forked child.
    fn check_running(&self) -> Result<(), Error>;

    /// The next event for a client, waiting up to `timeout` for it, or until there were more
    /// interruptions than the `seen` ones.
    fn next_event(
        &self,
        client: ClientId,
        timeout: Duration,
        seen: u64,
    ) -> Result<Option<Event>, Error>;

    /// Ends the client's waits for events that began before.
    fn interrupt(&self, client: ClientId);

    /// How often that was done.
    fn nr_interruptions(&self, client: ClientId) -> u64;

    /// Does what a client asks, and waits up to `limit` for an answer that comes later.
    fn call(&self, client: ClientId, request: Request, limit: Duration) -> Result<Reply, Error>;

    /// Does what a client asks, for an answer that comes at once and brings descriptors.
    fn call_for_fds(
        &self,
        client: ClientId,
        request: Request,
    ) -> Result<(Reply, Vec<OwnedFd>), Error>;
}
