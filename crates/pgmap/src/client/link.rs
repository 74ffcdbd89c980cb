//! How a client reaches its owner: a call in the same process, or a message to another.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pgmap_mm::drain::ClientId;
use pgmap_os::{Connection, Doorbell, Interest, Poller, TransferError};

use crate::deadline::Deadline;
use crate::error::Error;
use crate::owner::handle::{Handed, MAX_EVENTS, Shared};
use crate::refusal::Refusal;
use crate::wire::{
    self, Event, Hello, MAX_MESSAGE_BYTES, Numbered, Reply, Request, VERSION, Welcome,
};

/// Descriptors that come with a welcome: data, vmemmap, index, doorbell, ledger.
const NR_HANDED: usize = 5;
/// How long structural calls wait for an owner that restarts.
const RESTART_WAIT: Duration = Duration::from_secs(5);
const RESTART_POLL: Duration = Duration::from_millis(20);
/// How long a thread that waits for events keeps the connection to itself. It hands replies to whoever
/// waits for them, and an interruption ends the wait.
const EVENT_POLL: Duration = Duration::from_secs(1);

/// The way to the owner.
#[derive(Debug)]
pub(super) enum Link {
    /// The owner is in this process.
    Embedded(Arc<Shared>),
    /// The owner listens at a socket.
    Remote(Remote),
}

/// Whose process a client takes for the pool's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Whoever listens at the path.
    Anybody,
    /// A process of this user or of root.
    OwnUser,
}

impl Trust {
    /// Connects, and says nothing to anybody who is not trusted.
    fn connect(self, path: &Path) -> Result<Connection, Error> {
        let connection = Connection::connect(path)?;
        if self == Self::OwnUser {
            connection.check_peer_user(path)?;
        }
        Ok(connection)
    }
}

/// A connection shared by the threads of a client: whichever waits reads for all.
#[derive(Debug)]
pub(super) struct Remote {
    path: PathBuf,
    trust: Trust,
    state: Mutex<Calls>,
    arrived: Condvar,
    /// Rung to end a wait for events.
    interruption: Doorbell,
}

#[derive(Debug)]
struct Calls {
    connection: Arc<Connection>,
    /// Counts reconnections, so that two threads do not both reconnect for one loss.
    generation: u64,
    next_number: u64,
    is_reading: bool,
    nr_interruptions: u64,
    replies: HashMap<u64, Reply>,
    events: VecDeque<Event>,
    failed: Option<String>,
}

impl Calls {
    fn take(&mut self, received: Result<Numbered<Reply>, Error>) {
        match received {
            Ok(Numbered { body: Reply::Event(event), .. }) => {
                if self.events.len() >= MAX_EVENTS {
                    self.events.pop_front();
                }
                self.events.push_back(event);
            }
            Ok(reply) => drop(self.replies.insert(reply.number, reply.body)),
            Err(error) => self.failed = Some(error.to_string()),
        }
    }
}

/// Waits until there is something to read; not longer than until `interruption` rings.
fn wait_readable(
    connection: &Connection,
    interruption: &Doorbell,
    timeout: Duration,
) -> Result<bool, Error> {
    const CONNECTION: u64 = 0;
    const INTERRUPTION: u64 = 1;
    let poller = Poller::new()?;
    poller.add(connection.as_fd(), CONNECTION, Interest::Read)?;
    poller.add(interruption, INTERRUPTION, Interest::Read)?;
    let mut ready = Vec::new();
    poller.wait(Some(timeout), &mut ready)?;
    Ok(ready.iter().any(|one| one.token == CONNECTION))
}

impl Link {
    /// The next thing the owner says unasked, waiting up to `timeout` for it, or until there were more
    /// interruptions than the `seen` ones. Whoever waits reads [`nr_interruptions`](Self::nr_interruptions)
    /// first, and then looks whether there is a reason to wait: an interruption after that ends the wait,
    /// and is nobody's to take away.
    pub(super) fn next_event(
        &self,
        client: ClientId,
        timeout: Duration,
        seen: u64,
    ) -> Result<Option<Event>, Error> {
        match self {
            Self::Embedded(shared) => shared.next_event(client, timeout, seen),
            Self::Remote(remote) => remote.next_event(timeout, seen),
        }
    }

    /// How often waits for events were interrupted.
    pub(super) fn nr_interruptions(&self, client: ClientId) -> u64 {
        match self {
            Self::Embedded(shared) => shared.nr_interruptions(client),
            Self::Remote(remote) => remote.lock().nr_interruptions,
        }
    }

    /// Ends every wait for events that began before.
    pub(super) fn interrupt(&self, client: ClientId) {
        match self {
            Self::Embedded(shared) => shared.interrupt(client),
            Self::Remote(remote) => remote.interrupt(),
        }
    }

    /// How often the client took up with another owner. What the one before said in between is lost.
    pub(super) fn generation(&self) -> u64 {
        match self {
            Self::Embedded(_) => 0,
            Self::Remote(remote) => remote.lock().generation,
        }
    }

    /// Takes up with a restarted owner, if it is there by now, after the old one was lost.
    pub(super) fn take_up(
        &self,
        client: ClientId,
        resume: impl Fn(Doorbell),
        ledger: &OwnedFd,
    ) -> Result<(), Error> {
        let remote = match self {
            Self::Remote(remote) => remote,
            Self::Embedded(shared) => return shared.check_running(),
        };
        let state = remote.lock();
        if state.failed.is_none() {
            return Ok(());
        }
        let generation = state.generation;
        drop(state);
        if let Some(doorbell) = remote.reconnect(client, generation, ledger, Duration::ZERO)? {
            resume(doorbell);
        }
        Ok(())
    }

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
    pub(super) fn connect(
        path: &Path,
        trust: Trust,
        is_registered: bool,
    ) -> Result<(Self, Handed), Error> {
        let connection = trust.connect(path)?;
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
            nr_interruptions: 0,
            replies: HashMap::new(),
            events: VecDeque::new(),
            failed: None,
        };
        let (path, state, arrived) = (path.into(), Mutex::new(calls), Condvar::new());
        let remote = Self { path, trust, state, arrived, interruption: Doorbell::new()? };
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
        let until = Instant::now() + RESTART_WAIT;
        loop {
            let generation = self.lock().generation;
            match self.call(request.clone()) {
                Err(Error::OwnerGone { .. }) if Instant::now() < until => {}
                result => return result,
            }
            if let Some(doorbell) = self.reconnect(client, generation, ledger, RESTART_WAIT)? {
                resume(doorbell);
            }
        }
    }

    fn call(&self, request: Request) -> Result<Reply, Error> {
        let mut state = self.lock();
        if let Some(why) = &state.failed {
            return Err(Error::OwnerGone { why: why.clone() });
        }
        let number = state.next_number;
        state.next_number += 1;
        let message = wire::encode(&Numbered { number, body: request })?;
        let (connection, generation) = (Arc::clone(&state.connection), state.generation);
        drop(state);
        if let Err(error) = connection.send(&message, &[]) {
            return Err(self.fail(generation, error.to_string()));
        }
        match self.wait_for(number, &connection, generation)? {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    /// The connection of `generation` is lost; another thread may have made the next one already.
    fn fail(&self, generation: u64, why: String) -> Error {
        let mut state = self.lock();
        if state.generation == generation {
            state.failed = Some(why.clone());
        }
        self.arrived.notify_all();
        Error::OwnerGone { why }
    }

    fn wait_for(
        &self,
        number: u64,
        connection: &Arc<Connection>,
        generation: u64,
    ) -> Result<Reply, Error> {
        let mut state = self.lock();
        loop {
            if let Some(reply) = state.replies.remove(&number) {
                return Ok(reply);
            }
            if state.generation != generation {
                return Err(Error::OwnerGone { why: "it was restarted during a call".into() });
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
            if state.generation == generation {
                state.take(received);
            }
            self.arrived.notify_all();
        }
    }

    /// As [`Link::next_event`].
    fn next_event(&self, timeout: Duration, seen: u64) -> Result<Option<Event>, Error> {
        let deadline = Deadline::after(timeout);
        let mut state = self.lock();
        loop {
            if let Some(event) = state.events.pop_front() {
                return Ok(Some(event));
            }
            if state.nr_interruptions != seen {
                return Ok(None);
            }
            if let Some(why) = &state.failed {
                return Err(Error::OwnerGone { why: why.clone() });
            }
            let left = deadline.left();
            if left.is_zero() {
                return Ok(None);
            }
            if state.is_reading {
                let waited = self.arrived.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            // Of an interruption that was seen. A later one is counted first and rung for afterwards.
            self.interruption.clear()?;
            state.is_reading = true;
            let (connection, generation) = (Arc::clone(&state.connection), state.generation);
            drop(state);
            let left = left.min(EVENT_POLL);
            let received = match wait_readable(&connection, &self.interruption, left) {
                Ok(true) => Some(receive(&connection)),
                Ok(false) => None,
                Err(error) => Some(Err(error)),
            };
            state = self.lock();
            state.is_reading = false;
            if let Some(received) = received
                && state.generation == generation
            {
                state.take(received);
            }
            self.arrived.notify_all();
        }
    }

    fn interrupt(&self) {
        self.lock().nr_interruptions += 1;
        self.arrived.notify_all();
        if let Err(error) = self.interruption.ring() {
            tracing::error!(%error, "a wait for events cannot be interrupted");
        }
    }

    /// Takes up with a restarted owner, waiting up to `wait` for it; none when another thread has done
    /// so.
    fn reconnect(
        &self,
        client: ClientId,
        lost: u64,
        ledger: &OwnedFd,
        wait: Duration,
    ) -> Result<Option<Doorbell>, Error> {
        let until = Instant::now() + wait;
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
                    drop(state);
                    // Whoever waits for events is to see that some may have been missed.
                    self.interrupt();
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
        let connection = self.trust.connect(&self.path)?;
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
