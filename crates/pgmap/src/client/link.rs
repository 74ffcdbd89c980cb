//! How a client reaches its owner: a call in the same process, or a message to another.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pgmap_mm::drain::ClientId;
use pgmap_os::{Connection, Doorbell, TransferError};

use crate::error::Error;
use crate::owner::handle::{Handed, Shared};
use crate::refusal::Refusal;
use crate::wire::{self, Hello, MAX_MESSAGE_BYTES, Numbered, Reply, Request, VERSION, Welcome};

/// Descriptors that come with a welcome: data, vmemmap, index, doorbell, ledger.
const NR_HANDED: usize = 5;
/// How long structural calls wait for an owner that restarts.
const RESTART_WAIT: Duration = Duration::from_secs(5);
const RESTART_POLL: Duration = Duration::from_millis(20);

/// The way to the owner.
#[derive(Debug)]
pub(super) enum Link {
    /// The owner is in this process.
    Embedded(Arc<Shared>),
    /// The owner listens at a socket.
    Remote(Remote),
}

/// A connection shared by the threads of a client: whichever waits reads for all.
#[derive(Debug)]
pub(super) struct Remote {
    path: PathBuf,
    state: Mutex<Calls>,
    arrived: Condvar,
}

#[derive(Debug)]
struct Calls {
    connection: Arc<Connection>,
    /// Counts reconnections, so that two threads do not both reconnect for one loss.
    generation: u64,
    next_number: u64,
    is_reading: bool,
    replies: HashMap<u64, Reply>,
    failed: Option<String>,
}

impl Link {
    /// Asks the owner. `resume` is called to take up with a restarted owner.
    pub(super) fn call(
        &self,
        client: ClientId,
        request: Request,
        resume: impl Fn(Doorbell),
        ledger: &OwnedFd,
    ) -> Result<Reply, Error> {
        match self {
            Self::Embedded(shared) => shared.call(client, request),
            Self::Remote(remote) => remote.call_resuming(client, request, resume, ledger),
        }
    }

    /// Tells the owner that the client holds nothing and goes; it may be gone itself.
    pub(super) fn leave(&self, client: ClientId) {
        let result = match self {
            Self::Embedded(shared) => shared.call(client, Request::Leave),
            Self::Remote(remote) => remote.call(Request::Leave),
        };
        if let Err(error) = result {
            tracing::debug!(%error, "the owner was not there to be told of leaving");
        }
    }
}

impl Remote {
    /// Connects to the owner at `path` and says hello.
    pub(super) fn connect(path: &Path, is_registered: bool) -> Result<(Self, Handed), Error> {
        let connection = Connection::connect(path)?;
        let hello = Hello { version: VERSION, is_registered, resume: None };
        let (welcome, fds) = greet(&connection, &hello, &[])?;
        let nr_fds = fds.len();
        let Ok([data, vmemmap, index, doorbell, ledger]) = <[OwnedFd; NR_HANDED]>::try_from(fds)
        else {
            return Err(Error::Protocol { what: format!("a welcome with {nr_fds} descriptors") });
        };
        let doorbell = Doorbell::from_fd(doorbell)?;
        let calls = Calls {
            connection: Arc::new(connection),
            generation: 0,
            next_number: 1,
            is_reading: false,
            replies: HashMap::new(),
            failed: None,
        };
        let remote = Self { path: path.into(), state: Mutex::new(calls), arrived: Condvar::new() };
        Ok((remote, Handed { welcome, data, vmemmap, index, doorbell, ledger }))
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls; if the owner is gone, waits for its successor and calls again.
    fn call_resuming(
        &self,
        client: ClientId,
        request: Request,
        resume: impl Fn(Doorbell),
        ledger: &OwnedFd,
    ) -> Result<Reply, Error> {
        let generation = self.lock().generation;
        match self.call(request.clone()) {
            Err(Error::OwnerGone { .. }) => {}
            result => return result,
        }
        if let Some(doorbell) = self.reconnect(client, generation, ledger)? {
            resume(doorbell);
        }
        self.call(request)
    }

    fn call(&self, request: Request) -> Result<Reply, Error> {
        let mut state = self.lock();
        if let Some(why) = &state.failed {
            return Err(Error::OwnerGone { why: why.clone() });
        }
        let number = state.next_number;
        state.next_number += 1;
        let message = wire::encode(&Numbered { number, body: request })?;
        let connection = Arc::clone(&state.connection);
        drop(state);
        if let Err(error) = connection.send(&message, &[]) {
            return Err(self.fail(error.to_string()));
        }
        match self.wait_for(number, &connection)? {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    fn fail(&self, why: String) -> Error {
        let mut state = self.lock();
        state.failed = Some(why.clone());
        self.arrived.notify_all();
        Error::OwnerGone { why }
    }

    fn wait_for(&self, number: u64, connection: &Arc<Connection>) -> Result<Reply, Error> {
        let mut state = self.lock();
        loop {
            if let Some(reply) = state.replies.remove(&number) {
                return Ok(reply);
            }
            if let Some(why) = &state.failed {
                return Err(Error::OwnerGone { why: why.clone() });
            }
            if state.is_reading {
                state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.is_reading = true;
            drop(state);
            let received = receive(connection);
            state = self.lock();
            state.is_reading = false;
            match received {
                Ok(reply) => drop(state.replies.insert(reply.number, reply.body)),
                Err(error) => state.failed = Some(error.to_string()),
            }
            self.arrived.notify_all();
        }
    }

    /// Takes up with a restarted owner; none when another thread has done so.
    fn reconnect(
        &self,
        client: ClientId,
        lost: u64,
        ledger: &OwnedFd,
    ) -> Result<Option<Doorbell>, Error> {
        let until = Instant::now() + RESTART_WAIT;
        loop {
            let mut state = self.lock();
            if state.generation != lost {
                return Ok(None);
            }
            match self.resume_once(client, ledger) {
                Ok((connection, doorbell)) => {
                    state.connection = Arc::new(connection);
                    state.generation += 1;
                    state.failed = None;
                    state.replies.clear();
                    return Ok(Some(doorbell));
                }
                Err(error @ (Error::Refused(_) | Error::Protocol { .. })) => return Err(error),
                Err(error) if Instant::now() >= until => {
                    return Err(Error::OwnerGone { why: error.to_string() });
                }
                Err(_) => drop(state),
            }
            std::thread::sleep(RESTART_POLL);
        }
    }

    fn resume_once(
        &self,
        client: ClientId,
        ledger: &OwnedFd,
    ) -> Result<(Connection, Doorbell), Error> {
        let connection = Connection::connect(&self.path)?;
        let is_registered = pgmap_os::Membarrier::register().is_global_available();
        let hello = Hello { version: VERSION, is_registered, resume: Some(client.0) };
        let (_, fds) = greet(&connection, &hello, &[ledger.as_fd()])?;
        let doorbell = fds
            .into_iter()
            .nth(NR_HANDED - 2)
            .ok_or_else(|| Error::Protocol { what: "a welcome without a doorbell".into() })?;
        Ok((connection, Doorbell::from_fd(doorbell)?))
    }
}

fn greet(
    connection: &Connection,
    hello: &Hello,
    shown: &[std::os::fd::BorrowedFd<'_>],
) -> Result<(Welcome, Vec<OwnedFd>), Error> {
    let gone = |error: TransferError| Error::OwnerGone { why: error.to_string() };
    connection.send(&wire::encode(hello)?, shown).map_err(gone)?;
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    let received = connection.recv(&mut buffer).map_err(gone)?;
    if received.is_end() {
        return Err(Error::OwnerGone { why: "it closed the connection".into() });
    }
    let welcome: Result<Welcome, Refusal> = wire::decode(&buffer[..received.len])?;
    let welcome = welcome?;
    if welcome.version != VERSION {
        let what = format!("version {}, this is {VERSION}", welcome.version);
        return Err(Error::Protocol { what });
    }
    Ok((welcome, received.fds))
}

fn receive(connection: &Connection) -> Result<Numbered<Reply>, Error> {
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    let received = connection
        .recv(&mut buffer)
        .map_err(|error| Error::OwnerGone { why: error.to_string() })?;
    if received.is_end() {
        return Err(Error::OwnerGone { why: "it closed the connection".into() });
    }
    wire::decode(&buffer[..received.len])
}
