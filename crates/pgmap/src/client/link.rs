//! How a client reaches its owner: a call in the same process, or a message to another.
//!
//! Every call ends: with its answer, with the loss of the owner, or with its deadline. The
//! connection never blocks; whoever waits for it waits in `poll`, and only as long as its own
//! deadline allows. An owner that says that it is at work starts the deadline again.
//!
//! # After a call that timed out
//! The connection stays in use. The answer may come late: it is known by its number, for which
//! nobody waits any more, and what it brought (reserved frames, leases) is given back. The owner is
//! asked to forget the request. What does not fit into the connection at that moment is *owed*: it
//! goes out before the next call.

mod begun;
mod greeting;
mod replies;
mod waking;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use pgmap_mm::drain::ClientId;
use pgmap_os::clock::Instant;
use pgmap_os::poll::wait_for;
use pgmap_os::sync::{Condvar, Mutex, MutexGuard};
use pgmap_os::{Connection, Doorbell, Interest, OsError, TransferError};

use crate::client::Inner;
use crate::client::link::greeting::{connect, greet};
use crate::client::link::replies::{ReceivedReply, receive, wait_for_reply};
use crate::client::local::{Handed, LocalOwner, MAX_EVENTS};
use crate::deadline::Deadline;
use crate::error::Error;
use crate::wire::{self, Event, Hello, Numbered, Reply, Request, VERSION};

pub(super) use begun::BegunCall;
use begun::SentCall;
pub(super) use greeting::Trust;

/// Descriptors that come with a welcome: data, vmemmap, index, doorbell, ledger.
const NR_HANDED: usize = 5;
/// How long structural calls wait for an owner that restarts, if their deadline allows that much.
const RESTART_WAIT: Duration = Duration::from_secs(5);
const RESTART_POLL: Duration = Duration::from_millis(20);
/// Most messages that one call without time to wait takes: an owner may send them as fast as they
/// are read.
const MAX_LOOKS: usize = 4096;
/// How long a thread that waits for events keeps the connection to itself. It hands replies to
/// whoever waits for them, and an interruption ends the wait.
const EVENT_POLL: Duration = Duration::from_secs(1);
/// How long a thread waits for room while another reads.
const ROOM_POLL: Duration = Duration::from_millis(50);
/// Most requests that wait for room in the connection. The owner learns the same from the client's
/// end.
const MAX_OWED: usize = 1024;

/// The way to the owner.
#[derive(Debug)]
pub(super) enum Link {
    /// The owner is in this process.
    Embedded(Arc<dyn LocalOwner>),
    /// The owner listens at a socket.
    Remote(Box<Remote>),
}

/// A call without an answer.
#[derive(Debug)]
pub(super) struct Failed {
    pub error: Error,
    /// Whether an owner was asked, then lost, and may have done what changes the pool.
    pub may_be_done: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, may_be_done: false }
    }
}

/// A connection shared by the threads of a client: whichever waits reads for all.
#[derive(Debug)]
pub(super) struct Remote {
    path: PathBuf,
    trust: Trust,
    /// What it said first.
    label: String,
    is_read_only: bool,
    state: Mutex<PendingCalls>,
    arrived: Condvar,
    /// Rung to end a wait for events.
    interruption: Doorbell,
}

/// A call that waits for its answer.
#[derive(Debug)]
enum PendingCall {
    /// Not answered; the owner said so often that it is at work.
    Waiting(u64),
    Answered(Answer),
}

/// A reply, and the descriptors that it brought.
type Answer = (Reply, Vec<OwnedFd>);

#[derive(Debug)]
struct PendingCalls {
    connection: Arc<Connection>,
    owner_pid: i32,
    /// Counts reconnections, so that two threads do not both reconnect for one loss.
    generation: u64,
    next_number: u64,
    /// When a call was sent last.
    last_sent: Option<Instant>,
    is_reading: bool,
    /// Messages that were taken from the connection.
    nr_taken: u64,
    /// For the thread that reads.
    buffer: Vec<u8>,
    is_connecting: bool,
    nr_interruptions: u64,
    /// Threads that wait for another to read.
    nr_paused: usize,
    calls: HashMap<u64, PendingCall>,
    /// Requests without a caller that found no room.
    owed: VecDeque<Request>,
    events: VecDeque<Event>,
    failed: Option<String>,
}

impl PendingCalls {
    fn take(&mut self, received: Result<ReceivedReply, Error>) {
        self.nr_taken += 1;
        let ReceivedReply { reply: Numbered { number, body }, fds } = match received {
            Ok(received) => received,
            Err(error) => {
                self.failed = Some(error.why_gone());
                return;
            }
        };
        match (body, self.calls.get_mut(&number)) {
            (Reply::Event(event), _) => {
                for _ in 0..pgmap_os::sim::deliveries() {
                    if self.events.len() >= MAX_EVENTS {
                        self.events.pop_front();
                    }
                    self.events.push_back(event.clone());
                }
            }
            (Reply::Working, Some(PendingCall::Waiting(nr_signs))) => *nr_signs += 1,
            (reply, Some(call)) => *call = PendingCall::Answered((reply, fds)),
            (reply, None) => self.give_back(reply),
        }
    }

    /// Gives back what an answer brings that nobody waits for.
    fn give_back(&mut self, late: Reply) {
        match late {
            Reply::Created(drafts) => {
                let ids: Vec<u64> = drafts.into_iter().flatten().map(|draft| draft.id).collect();
                if !ids.is_empty() {
                    self.owe(Request::Abort(ids));
                }
            }
            Reply::Put(answers) => {
                let spares = answers.into_iter().flat_map(|answer| answer.spares);
                let ids: Vec<u64> = spares.map(|spare| spare.id).collect();
                if !ids.is_empty() {
                    self.owe(Request::Abort(ids));
                }
            }
            Reply::Leased { grants, .. } => {
                self.owe(Request::ReleaseLeases(grants.iter().map(|grant| grant.lease).collect()));
            }
            _ => {}
        }
    }

    fn owe(&mut self, request: Request) {
        if self.owed.len() >= MAX_OWED {
            self.owed.pop_front();
        }
        self.owed.push_back(request);
    }

    /// Sends what is owed, as far as there is room.
    fn pay(&mut self) {
        while let Some(request) = self.owed.pop_front() {
            if let Ok(false) = self.send_unanswered(&request) {
                self.owed.push_front(request);
                return;
            }
        }
    }

    /// Sends a request for whose answer nobody waits; false if there is no room for it. The
    /// next reader finds out if that is the end.
    ///
    /// # Errors
    /// When it is no message.
    fn send_unanswered(&mut self, request: &Request) -> Result<bool, Error> {
        let message = wire::encode(&Numbered { number: self.next_number, body: request })?;
        let is_sent = self.connection.send(&message, &[]).is_ok();
        self.next_number += u64::from(is_sent);
        Ok(is_sent)
    }

    fn gone(&self) -> Option<Error> {
        self.failed.as_ref().map(|why| Error::OwnerGone { why: why.clone() })
    }
}

impl Link {
    /// The next thing the owner says of its own accord, waiting up to `timeout` for it, or until
    /// there were more interruptions than the `seen` ones. Whoever waits reads
    /// [`nr_interruptions`](Self::nr_interruptions) first, and then looks whether there is a reason
    /// to wait: an interruption after that ends the wait, and is nobody's to take away.
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

    /// How often the client reconnected to another owner. What the one before said in between is
    /// lost.
    pub(super) fn generation(&self) -> u64 {
        match self {
            Self::Embedded(_) => 0,
            Self::Remote(remote) => remote.lock().generation,
        }
    }

    /// An error if the owner that the client had at `generation` is certainly gone, and with it the
    /// files that it had reserved and not committed. Asks nobody.
    pub(super) fn check_owner(&self, generation: u64) -> Result<(), Error> {
        match self {
            Self::Embedded(shared) => shared.check_running(),
            Self::Remote(remote) => remote.check_owner(generation),
        }
    }

    /// Reconnects to a restarted owner, if it is there by now, after the old one was lost.
    pub(super) fn reconnect_now(&self, caller: &Inner, limit: Duration) -> Result<(), Error> {
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
        let deadline = Deadline::after(limit);
        let found = remote.reconnect(caller, generation, Duration::ZERO, deadline)?;
        found.into_iter().for_each(|doorbell| caller.resume(doorbell));
        Ok(())
    }

    /// Asks the owner for `caller`, and waits up to `limit` for its answer.
    pub(super) fn call(
        &self,
        caller: &Inner,
        request: Request,
        limit: Duration,
    ) -> Result<Reply, Failed> {
        match self {
            Self::Embedded(shared) => Ok(shared.call(caller.id, request, limit)?),
            Self::Remote(remote) => Ok(remote.call_resuming(caller, request, None, limit)?.0),
        }
    }

    /// Tells the owner something without waiting for an answer, or for room: then it goes out with
    /// the next call.
    pub(super) fn post(&self, client: ClientId, request: Request) {
        match self {
            Self::Embedded(shared) => {
                if let Err(error) = shared.call(client, request, Duration::ZERO) {
                    tracing::debug!(%error, "the owner was not there to be notified");
                }
            }
            Self::Remote(remote) => {
                let mut state = remote.lock();
                if state.failed.is_none() {
                    state.owe(request);
                    state.pay();
                }
            }
        }
    }
}

impl Remote {
    /// Connects to the owner at `path` and says hello, within `limit`.
    pub(super) fn connect(
        path: &Path,
        trust: Trust,
        hello: Hello,
        limit: Duration,
    ) -> Result<(Self, Handed), Error> {
        let deadline = Deadline::after(limit);
        let (connection, owner_pid) = connect(path, trust, deadline)?;
        let (welcome, fds) = greet(&connection, owner_pid, &hello, &[], deadline)?;
        let nr_fds = fds.len();
        let Ok([data, vmemmap, index, doorbell, ledger]) = <[OwnedFd; NR_HANDED]>::try_from(fds)
        else {
            return Err(Error::Protocol { what: format!("a welcome with {nr_fds} descriptors") });
        };
        let doorbell = Doorbell::from_fd(doorbell)?;
        let calls = PendingCalls {
            connection: Arc::new(connection),
            owner_pid,
            generation: 0,
            next_number: 1,
            last_sent: None,
            is_reading: false,
            nr_taken: 0,
            buffer: Vec::new(),
            is_connecting: false,
            nr_interruptions: 0,
            nr_paused: 0,
            calls: HashMap::new(),
            owed: VecDeque::new(),
            events: VecDeque::new(),
            failed: None,
        };
        let (state, arrived) = (Mutex::new(calls), Condvar::new());
        let Hello { label, is_read_only, .. } = hello;
        let (path, interruption) = (path.into(), Doorbell::new()?);
        let remote = Self { path, trust, label, is_read_only, state, arrived, interruption };
        Ok((remote, Handed { welcome, data, vmemmap, index, doorbell, ledger }))
    }

    fn lock(&self) -> MutexGuard<'_, PendingCalls> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to arrive, or `left`.
    fn pause<'a>(
        &self,
        mut state: MutexGuard<'a, PendingCalls>,
        left: Duration,
    ) -> MutexGuard<'a, PendingCalls> {
        state.nr_paused += 1;
        let mut state =
            self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        state.nr_paused -= 1;
        state
    }

    fn check_owner(&self, generation: u64) -> Result<(), Error> {
        let state = self.lock();
        if let Some(gone) = state.gone() {
            return Err(gone);
        }
        if state.generation != generation {
            return Err(Error::OwnerGone { why: "it was restarted".into() });
        }
        let connection = Arc::clone(&state.connection);
        drop(state);
        match wait_for([(connection.as_fd(), Interest::HangUp)], Duration::ZERO)? {
            [false] => Ok(()),
            [true] => Err(Error::OwnerGone { why: "it closed the connection".into() }),
        }
    }

    /// Calls; if the owner is gone, waits for its successor and calls again. What the old one had
    /// reserved the successor does not know: a commit waits for nobody. If the old one may have
    /// done it, the successor changes only the files that had the names when the call began, and a
    /// refusal says that it may be done. `sent` is the first call if it was begun already.
    fn call_resuming(
        &self,
        caller: &Inner,
        mut request: Request,
        mut sent: Option<SentCall>,
        limit: Duration,
    ) -> Result<Answer, Failed> {
        let mut may_be_done = false;
        let mut seen = caller.files_changed_by(&request);
        let name = request.name();
        let deadline = Deadline::after(limit);
        let wait = match request {
            Request::Commit(_) | Request::Put(_) => Duration::ZERO,
            _ => RESTART_WAIT.min(limit),
        };
        let until = Instant::now() + wait;
        loop {
            let begun = sent.take();
            let generation = begun.as_ref().map(|sent| sent.generation);
            let generation = generation.unwrap_or_else(|| self.lock().generation);
            let answer = match begun {
                Some(sent) => self.finish(sent, name, limit, deadline),
                None => self.call(&request, name, limit, deadline),
            };
            let gone = match answer {
                Ok((reply, fds)) if may_be_done => match reply.after_a_lost(name) {
                    Reply::Refused(refusal) => return Err(Error::from(refusal).into()),
                    reply => return Ok((reply, fds)),
                },
                Ok((Reply::Refused(refusal), _)) => return Err(Error::from(refusal).into()),
                Ok(answer) => return Ok(answer),
                Err(Failed { error: gone @ Error::OwnerGone { .. }, may_be_done: was_sent }) => {
                    may_be_done |= was_sent && request.changes_pool();
                    gone
                }
                Err(Failed { error, .. }) => return Err(Failed { error, may_be_done }),
            };
            let left = until.saturating_duration_since(Instant::now());
            match self.reconnect(caller, generation, left, deadline) {
                Ok(doorbell) => doorbell.into_iter().for_each(|bell| caller.resume(bell)),
                Err(Error::OwnerGone { .. }) => return Err(Failed { error: gone, may_be_done }),
                // A successor that does not know this client.
                Err(Error::Refused(refusal)) if may_be_done => {
                    return Err(Error::from(refusal.after_a_lost(name)).into());
                }
                Err(error) => return Err(Failed { error, may_be_done }),
            }
            if deadline.left().is_zero() || (left.is_zero() && wait != Duration::ZERO) {
                return Err(Failed { error: gone, may_be_done });
            }
            if may_be_done && let Some(seen) = seen.take() {
                request = Request::Again { request: wire::encode(&request)?, seen };
            }
        }
    }

    fn call(
        &self,
        request: &Request,
        name: &'static str,
        limit: Duration,
        deadline: Deadline,
    ) -> Result<Answer, Failed> {
        let sent = self.start(request, deadline)?;
        self.finish(sent, name, limit, deadline)
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

    /// Sends a message; false if the deadline passed before there was room. An owner whose answers
    /// nobody reads takes no further requests, so this reads as well.
    fn send(
        &self,
        message: &[u8],
        connection: &Arc<Connection>,
        generation: u64,
        deadline: Deadline,
    ) -> Result<bool, Error> {
        loop {
            match connection.send(message, &[]) {
                Ok(()) => return Ok(true),
                Err(TransferError::WouldBlock) => {}
                Err(error) => return Err(self.fail(generation, error.to_string())),
            }
            let left = deadline.left();
            if left.is_zero() {
                return Ok(false);
            }
            let mut state = self.lock();
            if state.is_reading || state.generation != generation {
                drop(state);
                wait_for([(connection.as_fd(), Interest::Write)], left.min(ROOM_POLL))?;
                continue;
            }
            state.is_reading = true;
            drop(state);
            let waited = wait_for([(connection.as_fd(), Interest::ReadWrite)], left);
            drop(self.read_once(connection, generation, waited.map(drop)));
        }
    }

    /// Takes one message, if there is one, for whoever waits for it. The caller has `is_reading`.
    fn read_once(
        &self,
        connection: &Connection,
        generation: u64,
        waited: Result<(), OsError>,
    ) -> MutexGuard<'_, PendingCalls> {
        let mut buffer = std::mem::take(&mut self.lock().buffer);
        let received = waited.map_err(Error::from);
        let received = received.and_then(|()| receive(connection, &mut buffer)).transpose();
        let mut state = self.lock();
        (state.is_reading, state.buffer) = (false, buffer);
        if let Some(received) = received
            && state.generation == generation
        {
            state.take(received);
            state.pay();
        }
        // A call of the system, mostly for nobody.
        if state.nr_paused > 0 {
            self.arrived.notify_all();
        }
        state
    }

    /// Waits for the answer of this number; `None` if the deadline passed.
    fn wait_for(
        &self,
        number: u64,
        connection: &Arc<Connection>,
        generation: u64,
        limit: Duration,
        mut deadline: Deadline,
    ) -> Result<Option<Answer>, Error> {
        let mut nr_signs = 0;
        let mut state = self.lock();
        loop {
            match state.calls.get(&number) {
                Some(PendingCall::Waiting(signs)) if *signs == nr_signs => {}
                Some(PendingCall::Waiting(signs)) => {
                    nr_signs = *signs;
                    deadline = Deadline::after(limit);
                }
                Some(PendingCall::Answered(_)) => {
                    return Ok(match state.calls.remove(&number) {
                        Some(PendingCall::Answered(answer)) => Some(answer),
                        _ => None,
                    });
                }
                None => return Ok(None),
            }
            if state.generation != generation {
                return Err(Error::OwnerGone { why: "it was restarted during a call".into() });
            }
            if let Some(gone) = state.gone() {
                return Err(gone);
            }
            let left = deadline.left();
            if left.is_zero() {
                return Ok(None);
            }
            if state.is_reading {
                state = self.pause(state, left);
                continue;
            }
            state.is_reading = true;
            drop(state);
            let waited = wait_for_reply(connection, left);
            state = self.read_once(connection, generation, waited);
        }
    }

    /// As [`Link::next_event`].
    fn next_event(&self, timeout: Duration, seen: u64) -> Result<Option<Event>, Error> {
        let deadline = Deadline::after(timeout);
        // A caller without time to wait hears what is there, also behind answers for nobody.
        let (mut is_empty, mut nr_looks) = (false, 0);
        let mut state = self.lock();
        loop {
            if let Some(event) = state.events.pop_front() {
                return Ok(Some(event));
            }
            if state.nr_interruptions != seen {
                return Ok(None);
            }
            if let Some(gone) = state.gone() {
                return Err(gone);
            }
            let left = deadline.left();
            if left.is_zero() && (is_empty || nr_looks >= MAX_LOOKS || state.is_reading) {
                return Ok(None);
            }
            if state.is_reading {
                state = self.pause(state, left);
                continue;
            }
            let nr_before = state.nr_taken;
            // Of an interruption that was seen. A later one is counted first and rung for
            // afterwards.
            self.interruption.clear()?;
            state.is_reading = true;
            let (connection, generation) = (Arc::clone(&state.connection), state.generation);
            drop(state);
            let both =
                [(connection.as_fd(), Interest::Read), (self.interruption.as_fd(), Interest::Read)];
            let waited = wait_for(both, left.min(EVENT_POLL));
            state = self.read_once(&connection, generation, waited.map(drop));
            is_empty = state.nr_taken == nr_before;
            nr_looks += 1;
        }
    }

    fn interrupt(&self) {
        self.lock().nr_interruptions += 1;
        self.arrived.notify_all();
        if let Err(error) = self.interruption.ring() {
            tracing::error!(%error, "a wait for events cannot be interrupted");
        }
    }

    /// Reconnects to a restarted owner, waiting up to `wait` for it to be there and until
    /// `deadline` for it to answer; `None` if another thread has done so.
    fn reconnect(
        &self,
        caller: &Inner,
        lost: u64,
        wait: Duration,
        deadline: Deadline,
    ) -> Result<Option<Doorbell>, Error> {
        let until = Instant::now() + wait;
        loop {
            let mut state = self.lock();
            if state.generation != lost {
                return Ok(None);
            }
            if state.is_connecting {
                let left = deadline.left();
                if left.is_zero() {
                    return Err(Error::OwnerGone { why: "another call reconnects".into() });
                }
                drop(self.pause(state, left));
                continue;
            }
            state.is_connecting = true;
            drop(state);
            let resumed = self.resume_once(caller, deadline);
            let mut state = self.lock();
            state.is_connecting = false;
            self.arrived.notify_all();
            match resumed {
                Ok((connection, owner_pid, doorbell)) => {
                    state.connection = Arc::new(connection);
                    state.owner_pid = owner_pid;
                    state.generation += 1;
                    state.failed = None;
                    state.owed.clear();
                    drop(state);
                    // Whoever waits for events is to see that some may have been missed.
                    self.interrupt();
                    return Ok(Some(doorbell));
                }
                Err(
                    error @ (Error::Refused(_) | Error::Protocol { .. } | Error::TimedOut { .. }),
                ) => {
                    return Err(error);
                }
                Err(error) if Instant::now() >= until || deadline.left().is_zero() => {
                    return Err(Error::OwnerGone { why: error.why_gone() });
                }
                Err(_) => drop(state),
            }
            pgmap_os::thread::sleep(RESTART_POLL);
        }
    }

    fn resume_once(
        &self,
        caller: &Inner,
        deadline: Deadline,
    ) -> Result<(Connection, i32, Doorbell), Error> {
        let (connection, owner_pid) = connect(&self.path, self.trust, deadline)?;
        let is_registered = pgmap_os::Membarrier::register().is_global_available();
        let hello = Hello {
            version: VERSION,
            is_registered,
            resume: Some(caller.id.0),
            label: self.label.clone(),
            is_read_only: self.is_read_only,
        };
        let (_, fds) = greet(&connection, owner_pid, &hello, &[caller.ledger.as_fd()], deadline)?;
        let doorbell = fds
            .into_iter()
            .nth(NR_HANDED - 2)
            .ok_or_else(|| Error::Protocol { what: "a welcome without a doorbell".into() })?;
        Ok((connection, owner_pid, Doorbell::from_fd(doorbell)?))
    }
}
