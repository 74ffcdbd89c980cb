//! The owner's one loop: sockets, deaths, the doorbell and deadlines.
//!
//! It moves bytes and calls the core; what they mean is decided there. It never waits for a client:
//! sending never blocks, and a client that does not read its answers is disconnected.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use pgmap_mm::drain::ClientId;
use pgmap_os::{
    Blocking, Connection, Interest, Listener, OsError, Poller, Ready, TransferError, clock, process,
};

use crate::error::Error;
use crate::owner::clients::Identity;
use crate::owner::core::Ticket;
use crate::owner::handle::Shared;
use crate::owner::session::{Reaction, Session, answer};
use crate::wire::{EVENT_NUMBER, MAX_MESSAGE_BYTES, Reply};

/// How often waiting drains are looked at although no bell rang, for clients that never ring.
const SLOW_POLL: Duration = Duration::from_millis(20);
/// Most connections at a time.
const MAX_CONNECTIONS: usize = 1024;
/// How long a connection may stay silent before its first message; a client greets as it connects.
const GREETING_MS: u64 = 2_000;
/// Most answers that wait for a client to read.
const MAX_UNSENT: usize = 64;

const DOORBELL: u64 = 0;
const WAKE: u64 = 1;
const LISTENER: u64 = 2;
/// Tokens of connection `n` are `FIRST + 2 * n` for its socket and one more for its pidfd.
const FIRST: u64 = 16;

struct Link {
    connection: Connection,
    session: Session,
    unsent: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// Watches the process, once it is a client.
    pidfd: Option<OwnedFd>,
    awaited: Vec<(Ticket, u64)>,
}

/// The loop's own state.
pub(crate) struct Service {
    shared: Arc<Shared>,
    poller: Poller,
    listener: Option<Listener>,
    links: HashMap<u64, Link>,
    next_link: u64,
    /// Connections in the order in which they came, and when, until they greeted or had their time.
    silent: VecDeque<(u64, u64)>,
    /// Clients without a connection that are not known to be dead, and what watches them.
    adrift: Vec<(ClientId, Option<(u64, OwnedFd)>)>,
    buffer: Vec<u8>,
}

impl Service {
    pub(crate) fn new(shared: Arc<Shared>) -> Result<Self, Error> {
        let poller = Poller::new()?;
        poller.add(shared.doorbell.as_fd(), DOORBELL, Interest::Read)?;
        poller.add(shared.wake.as_fd(), WAKE, Interest::Read)?;
        let adrift = shared.lock().core.clients_adrift();
        Ok(Self {
            shared,
            poller,
            listener: None,
            links: HashMap::new(),
            next_link: 0,
            silent: VecDeque::new(),
            adrift: adrift.into_iter().map(|client| (client, None)).collect(),
            buffer: vec![0; MAX_MESSAGE_BYTES],
        })
    }

    /// Runs until the owner stops.
    pub(crate) fn run(mut self) {
        let mut ready = Vec::new();
        while !self.shared.is_stopping() {
            if let Err(error) = self.poller.wait(self.timeout(), &mut ready) {
                tracing::error!(%error, "the owner's loop cannot wait");
                return;
            }
            for event in &ready {
                self.on_event(event);
            }
            self.find_dead_adrift();
            self.end_silent();
            {
                let mut state = self.shared.lock();
                state.core.look_again();
                state.core.consult_holder();
            }
            self.hand_out_answers();
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let state = self.shared.lock();
        if state.core.frames.has_backlog() {
            return Some(Duration::ZERO);
        }
        let greeting = self.silent.front().map(|&(_, since_ms)| {
            let due_ms = since_ms + GREETING_MS;
            Duration::from_millis(due_ms.saturating_sub(clock::monotonic_ms()))
        });
        let is_watched = |(_, watch): &(ClientId, Option<_>)| watch.is_some();
        if !state.core.is_draining() && self.adrift.iter().all(is_watched) {
            return greeting;
        }
        let deadline = state
            .core
            .next_deadline_ms()
            .map(|deadline| Duration::from_millis(deadline.saturating_sub(clock::monotonic_ms())));
        Some([deadline, greeting].into_iter().flatten().fold(SLOW_POLL, Duration::min))
    }

    fn on_event(&mut self, event: &Ready) {
        match event.token {
            DOORBELL => drop(self.shared.doorbell.clear()),
            WAKE => {
                drop(self.shared.wake.clear());
                self.take_listener();
            }
            LISTENER => self.accept(),
            token => self.on_link_event((token - FIRST) / 2, (token - FIRST) % 2 == 1, event),
        }
    }

    fn take_listener(&mut self) {
        let Some(listener) = self.shared.lock().new_listener.take() else { return };
        match self.poller.add(listener.as_fd(), LISTENER, Interest::Read) {
            Ok(()) => self.listener = Some(listener),
            Err(error) => tracing::error!(%error, "the socket cannot be watched"),
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let connection = match listener.accept() {
            Ok(Some(connection)) => connection,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be taken");
                if self.end_longest_silent() {
                    return;
                }
                // The connection stays in the queue: do not spin on it.
                std::thread::sleep(Duration::from_millis(5));
                return;
            }
        };
        if self.links.len() >= MAX_CONNECTIONS && !self.end_longest_silent() {
            tracing::warn!(limit = MAX_CONNECTIONS, "too many connections; one is refused");
            return;
        }
        if let Err(error) = self.add_link(connection) {
            tracing::warn!(%error, "a connection cannot be served");
        }
    }

    fn add_link(&mut self, connection: Connection) -> Result<(), OsError> {
        connection.set_blocking(Blocking::Never)?;
        let number = self.next_link;
        self.next_link += 1;
        self.poller.add(connection.as_fd(), FIRST + 2 * number, Interest::Read)?;
        let link = Link {
            connection,
            session: Session::Greeting,
            unsent: VecDeque::new(),
            pidfd: None,
            awaited: Vec::new(),
        };
        self.links.insert(number, link);
        self.silent.push_back((number, clock::monotonic_ms()));
        Ok(())
    }

    fn is_silent(&self, number: u64) -> bool {
        self.links.get(&number).is_some_and(|link| matches!(link.session, Session::Greeting))
    }

    /// Ends connections that had their time to greet, and forgets those that did.
    fn end_silent(&mut self) {
        let now_ms = clock::monotonic_ms();
        while let Some(&(number, since_ms)) = self.silent.front() {
            let is_silent = self.is_silent(number);
            if is_silent && now_ms < since_ms + GREETING_MS {
                return;
            }
            self.silent.pop_front();
            if is_silent {
                self.close(number, "it did not say who it is");
            }
        }
    }

    /// Ends the connection that has been silent for longest, to make room for another: whoever only
    /// connects keeps no client out. False when there is none.
    fn end_longest_silent(&mut self) -> bool {
        while let Some((number, _)) = self.silent.pop_front() {
            if self.is_silent(number) {
                self.close(number, "others wait and it did not say who it is");
                return true;
            }
        }
        false
    }

    fn on_link_event(&mut self, number: u64, is_pidfd: bool, event: &Ready) {
        if is_pidfd {
            return self.on_process_end(number);
        }
        if event.is_writable {
            self.flush(number);
        }
        // One message a turn, so that a client that sends without pause does not shut others out.
        if event.is_readable || event.is_hung_up || event.is_failed {
            self.receive(number);
        }
    }

    fn receive(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number) else { return };
        let received = match link.connection.recv(&mut self.buffer) {
            Ok(received) if received.is_end() => return self.close(number, "the connection ended"),
            Ok(received) => received,
            Err(TransferError::WouldBlock) => return,
            Err(error) => return self.close(number, &error.to_string()),
        };
        let message = &self.buffer[..received.len];
        let connection = &link.connection;
        let mut state = self.shared.lock();
        let reaction = link.session.on_message(
            &mut state.core,
            &self.shared.doorbell,
            || identify(connection),
            message,
            received.fds,
        );
        let client = link.session.client();
        let pidfd = client.and_then(|client| state.core.pidfd_of(client));
        drop(state);
        if let Some(client) = client
            && link.pidfd.is_none()
        {
            self.adrift.retain(|(adrift, watch)| {
                let is_another = *adrift != client;
                if !is_another && let Some((_, pidfd)) = watch {
                    // It may be watched again under another token.
                    drop(self.poller.remove(pidfd));
                }
                is_another
            });
            if let Some(pidfd) = pidfd {
                self.watch_process(number, pidfd);
            }
        }
        self.react(number, reaction);
    }

    fn watch_process(&mut self, number: u64, pidfd: OwnedFd) {
        if let Err(error) = self.poller.add(pidfd.as_fd(), FIRST + 2 * number + 1, Interest::Read) {
            tracing::warn!(%error, "a client's process cannot be watched");
        }
        if let Some(link) = self.links.get_mut(&number) {
            link.pidfd = Some(pidfd);
        }
    }

    fn react(&mut self, number: u64, reaction: Reaction) {
        match reaction {
            Reaction::Send(bytes, fds) => self.send(number, bytes, fds),
            Reaction::Await(ticket, request) => {
                if let Some(link) = self.links.get_mut(&number) {
                    link.awaited.push((ticket, request));
                }
            }
            Reaction::Close(said, why) => {
                if let Some(said) = said {
                    self.send(number, said, Vec::new());
                }
                self.close(number, &why);
            }
        }
    }

    fn send(&mut self, number: u64, bytes: Vec<u8>, fds: Vec<OwnedFd>) {
        let Some(link) = self.links.get_mut(&number) else { return };
        link.unsent.push_back((bytes, fds));
        if link.unsent.len() > MAX_UNSENT {
            return self.close(number, "it does not read its answers");
        }
        self.flush(number);
    }

    fn flush(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number) else { return };
        let had_queue = link.unsent.len() > 1;
        while let Some((bytes, fds)) = link.unsent.front() {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match link.connection.send(bytes, &fds) {
                Ok(()) => drop(link.unsent.pop_front()),
                Err(TransferError::WouldBlock) => break,
                Err(error) => return self.close(number, &error.to_string()),
            }
        }
        let interest = if link.unsent.is_empty() { Interest::Read } else { Interest::ReadWrite };
        if (had_queue || !link.unsent.is_empty())
            && let Err(error) =
                self.poller.modify(link.connection.as_fd(), FIRST + 2 * number, interest)
        {
            tracing::warn!(%error, "a connection cannot be watched");
        }
    }

    /// The process behind a connection has ended, whoever else has its socket.
    fn on_process_end(&mut self, number: u64) {
        if number >= self.next_link {
            return;
        }
        if self.links.contains_key(&number) {
            self.close(number, "its process ended");
        }
    }

    /// Ends a connection. The client is reaped if it is dead, and watched until it is if not.
    fn close(&mut self, number: u64, why: &str) {
        let Some(link) = self.links.remove(&number) else { return };
        self.forget(&link.connection);
        let Some(client) = link.session.client() else {
            link.pidfd.iter().for_each(|pidfd| self.forget(pidfd));
            return;
        };
        let mut state = self.shared.lock();
        let who = state.core.describe_client(client);
        if state.core.is_dead(client) {
            link.pidfd.iter().for_each(|pidfd| self.forget(pidfd));
            tracing::info!(client = %who, why, "client reaped");
            state.core.reap(client);
        } else {
            tracing::info!(client = %who, why, "client disconnected; its holds stand");
            drop(state);
            let watch = link.pidfd.map(|pidfd| (FIRST + 2 * number + 1, pidfd));
            self.adrift.push((client, watch));
        }
    }

    /// Stops watching a descriptor that is about to be closed: a forked child may have a copy of it,
    /// and the poller would go on to report it for as long as that is open.
    fn forget(&self, fd: impl AsFd) {
        if let Err(error) = self.poller.remove(fd) {
            tracing::debug!(%error, "a descriptor was not watched");
        }
    }

    fn find_dead_adrift(&mut self) {
        if self.adrift.is_empty() {
            return;
        }
        let mut state = self.shared.lock();
        let poller = &self.poller;
        self.adrift.retain(|(client, watch)| {
            let is_dead = state.core.is_dead(*client);
            if is_dead {
                if let Some((_, pidfd)) = watch
                    && let Err(error) = poller.remove(pidfd)
                {
                    tracing::debug!(%error, "a process was not watched");
                }
                tracing::info!(client = %state.core.describe_client(*client), "client reaped");
                state.core.reap(*client);
            }
            !is_dead
        });
    }

    fn hand_out_answers(&mut self) {
        let mut state = self.shared.lock();
        let answers = state.core.take_answers();
        let mut remote = Vec::new();
        let mut has_local = false;
        for (ticket, reply) in answers {
            let awaiting = self.links.iter_mut().find_map(|(&number, link)| {
                let place = link.awaited.iter().position(|&(awaited, _)| awaited == ticket)?;
                Some((number, link.awaited.swap_remove(place).1))
            });
            match awaiting {
                Some((number, request)) => remote.push((number, answer(request, reply))),
                None => has_local |= state.answer_local(ticket, reply),
            }
        }
        let mut events = Vec::new();
        for (client, event) in state.core.take_events() {
            let link = self.links.iter().find(|(_, link)| link.session.client() == Some(client));
            match link {
                Some((&number, _)) => events.push((number, event)),
                None => has_local |= state.tell_local(client, event),
            }
        }
        drop(state);
        if has_local {
            self.shared.answered.notify_all();
        }
        for (number, reaction) in remote {
            self.react(number, reaction);
        }
        for (number, event) in events {
            // Whoever reads nothing while it calls nothing must not lose its connection for it, as it
            // would for answers: it is told no more, and can still ask its pins.
            if self.links.get(&number).is_some_and(|link| link.unsent.is_empty()) {
                self.react(number, answer(EVENT_NUMBER, Reply::Event(event)));
            }
        }
    }
}

fn identify(connection: &Connection) -> Result<Identity, Error> {
    let peer = connection.peer()?;
    Ok(Identity {
        command: process::command_name(peer.pid).unwrap_or_else(|| "?".into()),
        pid: peer.pid,
        uid: peer.uid,
        pidfd: peer.pidfd,
    })
}
