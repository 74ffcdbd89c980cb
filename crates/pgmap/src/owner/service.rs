//! The owner's one loop: sockets, deaths, the doorbell and deadlines.
//!
//! It moves bytes and calls the core; what they mean is decided there. It never waits for a client:
//! sending never blocks. A client that does not read its answers is not heard meanwhile, so that
//! what waits for it stays small, and is disconnected when it has not read for a while.
//!
//! However the loop ends, by the owner's wish, an error or a panic, the owner is then stopped:
//! nobody waits for an answer of a loop that is gone.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use pgmap_mm::drain::ClientId;
use pgmap_os::{
    Blocking, Connection, Interest, Listener, OsError, Poller, Ready, TransferError, clock, process,
};

use crate::error::Error;
use crate::owner::burst::Burst;
use crate::owner::clients::ClientIdentity;
use crate::owner::core::Ticket;
use crate::owner::handle::Shared;
use crate::owner::lines::{LINE, Lines};
use crate::owner::session::{Greeting, MAX_AWAITED, Reaction, Session, answer, tell};
use crate::wire::{self, EVENT_NUMBER, MAX_MESSAGE_BYTES, Reply};

/// How often waiting drains are looked at although no bell rang, for clients that never ring.
const SLOW_POLL: Duration = Duration::from_millis(20);
/// How often clients without a connection are asked whether they still hold their ledger.
const DISCONNECTED_POLL: Duration = Duration::from_millis(250);
/// Most connections at a time beyond those of clients: newcomers that have not greeted.
const MAX_NEWCOMERS: u64 = 128;
/// How long a connection may stay silent before its first message; a client greets as it connects.
const GREETING_MS: u64 = 2_000;
/// How long a client may leave its answers unread once they fill the connection.
const UNREAD_MS: u64 = 5_000;
/// How long the loop looks away from newcomers for whom there is no descriptor at all.
const LISTENER_PAUSE_MS: u64 = 200;
/// How often the same complaint goes to the log.
const LOG_PAUSE_MS: u64 = 10_000;

const DOORBELL: u64 = 0;
const WAKE: u64 = 1;
const LISTENER: u64 = 2;
/// Tokens of connection `n` are `FIRST + 2 * n` for its socket and one more for its pidfd.
const FIRST: u64 = 16;

struct ClientLink {
    connection: Connection,
    session: Session,
    /// Answers that found no room in the connection. While there are any no request is taken.
    unsent: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// When the client last read, as long as something is unsent.
    unread_since_ms: u64,
    /// Watches the process, once it is a client.
    pidfd: Option<OwnedFd>,
    awaited: Vec<(Ticket, u64)>,
}

/// Says the same thing once in a while, and how often it would have said it.
#[derive(Default)]
struct Complaint {
    next_ms: u64,
    nr_silenced: u64,
}

impl Complaint {
    /// How often the complaint was held back since it was last made; `None` to hold this one back.
    fn due(&mut self) -> Option<u64> {
        let now_ms = clock::monotonic_ms();
        if now_ms < self.next_ms {
            self.nr_silenced += 1;
            return None;
        }
        self.next_ms = now_ms + LOG_PAUSE_MS;
        Some(std::mem::take(&mut self.nr_silenced))
    }
}

/// The loop's own state.
pub(crate) struct Service {
    shared: Arc<Shared>,
    poller: Poller,
    burst: Burst,
    listener: Option<Listener>,
    /// Until when newcomers are not looked at.
    listener_paused_ms: Option<u64>,
    /// Given up for a moment to refuse a newcomer for whom there is no descriptor.
    spare: Option<File>,
    full: Complaint,
    links: HashMap<u64, ClientLink>,
    next_link: u64,
    /// The connection of each client that has one.
    link_of: HashMap<ClientId, u64>,
    /// Connections in the order in which they came, and when, until they greeted or had their time.
    silent: VecDeque<(u64, u64)>,
    /// Connections whose answers found no room, and since when.
    unread: VecDeque<(u64, u64)>,
    /// Clients without a connection that are not known to be dead, and what watches them.
    disconnected: Vec<(ClientId, Option<(u64, OwnedFd)>)>,
    buffer: Vec<u8>,
    lines: Lines,
}

/// Stops the owner when the loop ends, however it does.
struct StopAtEnd(Arc<Shared>);

impl Drop for StopAtEnd {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Service {
    pub(crate) fn new(shared: Arc<Shared>) -> Result<Self, Error> {
        let poller = Poller::new()?;
        poller.add(shared.doorbell.as_fd(), DOORBELL, Interest::Read)?;
        poller.add(shared.wake.as_fd(), WAKE, Interest::Read)?;
        let disconnected: Vec<ClientId> = shared.lock().core.clients.ids().collect();
        Ok(Self {
            shared,
            poller,
            burst: Burst::default(),
            listener: None,
            listener_paused_ms: None,
            spare: None,
            full: Complaint::default(),
            links: HashMap::new(),
            next_link: 0,
            link_of: HashMap::new(),
            silent: VecDeque::new(),
            unread: VecDeque::new(),
            disconnected: disconnected.into_iter().map(|client| (client, None)).collect(),
            buffer: vec![0; MAX_MESSAGE_BYTES],
            lines: Lines::default(),
        })
    }

    /// Runs until the owner stops.
    pub(crate) fn run(mut self) {
        // Dropped before the connections are, so that who hears of their end finds the owner
        // stopped.
        let _stop = StopAtEnd(Arc::clone(&self.shared));
        let mut ready = Vec::new();
        while !self.shared.is_stopping() {
            let timeout = self.timeout();
            if let Err(error) = self.burst.wait(&self.poller, timeout, &mut ready) {
                tracing::error!(%error, "the owner's loop cannot wait: the owner stops");
                return;
            }
            for event in &ready {
                self.on_event(event);
            }
            self.find_dead_disconnected();
            self.end_silent();
            self.end_unread();
            self.resume_listener();
            {
                let rang = ready.iter().any(|event| event.token == DOORBELL);
                let mut state = self.shared.lock();
                if rang || !state.core.is_looking() {
                    state.core.look_again();
                } else {
                    state.core.look_on();
                }
                state.core.holder.pass_questions();
                state.core.evict_ahead();
            }
            self.populate();
            self.hand_out_answers();
            self.shared.lock().core.restock();
            #[cfg(feature = "sim")]
            if let Err(what) = self.shared.lock().core.audit() {
                pgmap_os::sim::with(|world| world.failed(&what));
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let state = self.shared.lock();
        let core = &state.core;
        let has_work = core.frames.has_backlog() || !core.populations.is_empty();
        let has_work = has_work || core.evicts_ahead() || core.pagemaps.has_takedowns();
        let has_work = has_work || core.stock.has_due();
        if has_work || core.is_looking() || core.is_restoring() {
            return Some(Duration::ZERO);
        }
        let now_ms = clock::monotonic_ms();
        let until = |due_ms: u64| Duration::from_millis(due_ms.saturating_sub(now_ms));
        let is_watched = |(_, watch): &(ClientId, Option<_>)| watch.is_some();
        let is_polling = state.core.is_draining()
            || state.core.has_open_tails()
            || state.core.dead.awaits_transfers()
            || state.core.pool.is_in_doubt()
            || !self.disconnected.iter().all(is_watched);
        [
            self.silent.front().map(|&(_, since_ms)| until(since_ms + GREETING_MS)),
            self.unread.front().map(|&(_, since_ms)| until(since_ms + UNREAD_MS)),
            self.listener_paused_ms.map(until),
            core.evicts_ahead_at_ms().map(until),
            state.core.next_deadline_ms().filter(|_| is_polling).map(until),
            is_polling.then_some(SLOW_POLL),
            (!self.disconnected.is_empty()).then_some(DISCONNECTED_POLL),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Takes the next step's worth of memory for a large file, while others may use the books.
    fn populate(&mut self) {
        let mut state = self.shared.lock();
        let Some(step) = state.core.next_step() else { return };
        let signs = state.core.populations.signs_due();
        drop(state);
        let result = step.take();
        self.shared.lock().core.step_taken(&step, result);
        for ticket in signs {
            let working = self.links.iter().find_map(|(&number, link)| {
                let (_, request) = link.awaited.iter().find(|(awaited, _)| *awaited == ticket)?;
                link.unsent.is_empty().then_some((number, *request))
            });
            if let Some((number, request)) = working {
                self.react(number, answer(request, Reply::Working));
            }
        }
    }

    fn on_event(&mut self, event: &Ready) {
        match event.token {
            DOORBELL => drop(self.shared.doorbell.clear()),
            WAKE => {
                drop(self.shared.wake.clear());
                self.take_listener();
            }
            LISTENER => self.accept(),
            token if token & LINE != 0 => {
                self.lines.on_event(event, &mut self.shared.lock().core, &self.poller);
            }
            token => self.on_link_event((token - FIRST) / 2, (token - FIRST) % 2 == 1, event),
        }
    }

    fn take_listener(&mut self) {
        let Some(listener) = self.shared.lock().new_listener.take() else { return };
        match self.poller.add(listener.as_fd(), LISTENER, Interest::Read) {
            Ok(()) => {
                self.listener = Some(listener);
                self.spare = open_spare();
            }
            Err(error) => tracing::error!(%error, "the socket cannot be watched"),
        }
    }

    /// Looks at newcomers again after a pause.
    fn resume_listener(&mut self) {
        if self.listener_paused_ms.is_some_and(|until_ms| until_ms <= clock::monotonic_ms())
            && let Some(listener) = &self.listener
        {
            match self.poller.add(listener.as_fd(), LISTENER, Interest::Read) {
                Ok(()) => self.listener_paused_ms = None,
                Err(error) => tracing::error!(%error, "the socket cannot be watched"),
            }
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        match listener.accept() {
            Ok(Some(connection)) => self.take_newcomer(connection),
            Ok(None) => {}
            Err(_) if self.end_longest_silent() => {}
            Err(error) => self.refuse_without_descriptor(&error),
        }
    }

    fn take_newcomer(&mut self, connection: Connection) {
        let max_links = self.shared.lock().core.clients.limit() + MAX_NEWCOMERS;
        if self.links.len() as u64 >= max_links && !self.end_longest_silent() {
            return self.refuse(&connection);
        }
        if let Err(error) = self.add_link(connection) {
            tracing::warn!(%error, "a connection cannot be served");
        }
    }

    /// Tells a newcomer that there is no room, before it says anything.
    fn refuse(&mut self, connection: &Connection) {
        let full = self.shared.lock().core.clients.full();
        if let Some(nr_silenced) = self.full.due() {
            tracing::warn!(reason = %full, nr_silenced, "a newcomer is refused");
        }
        if let Ok(said) = wire::encode(&Greeting::Err(full)) {
            // Who has gone meanwhile hears nothing.
            drop(connection.send(&said, &[]));
        }
    }

    /// Takes a newcomer by a descriptor that was kept for this, tells it that there is no room, and
    /// lets it go. If even that fails it stays in the queue, and the loop looks away for a while.
    fn refuse_without_descriptor(&mut self, error: &OsError) {
        if self.spare.take().is_some()
            && let Some(listener) = &self.listener
            && let Ok(Some(connection)) = listener.accept()
        {
            self.refuse(&connection);
            drop(connection);
            self.spare = open_spare();
            return;
        }
        self.spare = open_spare();
        if let Some(nr_silenced) = self.full.due() {
            tracing::warn!(%error, nr_silenced, "a connection cannot be taken");
        }
        if let Some(listener) = &self.listener
            && self.poller.remove(listener.as_fd()).is_ok()
        {
            self.listener_paused_ms = Some(clock::monotonic_ms() + LISTENER_PAUSE_MS);
        }
    }

    fn add_link(&mut self, connection: Connection) -> Result<(), OsError> {
        connection.set_blocking(Blocking::Never)?;
        let number = self.next_link;
        self.next_link += 1;
        self.poller.add(connection.as_fd(), FIRST + 2 * number, Interest::Read)?;
        let link = ClientLink {
            connection,
            session: Session::Greeting,
            unsent: VecDeque::new(),
            unread_since_ms: 0,
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

    /// Ends connections whose clients have not read their answers for a while.
    fn end_unread(&mut self) {
        let now_ms = clock::monotonic_ms();
        while let Some(&(number, since_ms)) = self.unread.front() {
            if now_ms < since_ms + UNREAD_MS {
                return;
            }
            self.unread.pop_front();
            let Some(link) = self.links.get(&number) else { continue };
            if link.unsent.is_empty() {
                continue;
            }
            if link.unread_since_ms > since_ms {
                self.unread.push_back((number, link.unread_since_ms));
                continue;
            }
            self.close(number, "it does not read its answers");
        }
    }

    /// Ends the connection that has been silent longest, to make room for another: who only
    /// connects keeps no client out. False if there is none.
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
        let Some(link) = self.links.get(&number) else { return };
        if !link.unsent.is_empty() {
            if event.is_hung_up || event.is_failed {
                self.close(number, "the connection ended before its answers were read");
            }
            return;
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
        let has_room = link.awaited.len() < MAX_AWAITED;
        let mut state = self.shared.lock();
        self.burst.note_message(state.busy_poll);
        let reaction = link.session.on_message(
            &mut state.core,
            &self.shared.doorbell,
            || identify(connection),
            message,
            received.fds,
            has_room,
        );
        let client = link.session.client();
        // It is another's, or nobody's, if the client has just come.
        let newcomer = client.filter(|client| self.link_of.get(client) != Some(&number));
        let pidfd = newcomer.and_then(|client| state.core.clients.pidfd_of(client));
        drop(state);
        if let Some(client) = newcomer {
            self.link_of.insert(client, number);
            self.disconnected.retain(|(disconnected, watch)| {
                let is_another = *disconnected != client;
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
            Reaction::StayAwake => self.burst.expect_message(self.shared.lock().busy_poll),
            Reaction::Forget(request) => self.forget_request(number, request),
            Reaction::Close(said, why) => {
                if let Some(said) = said {
                    self.send(number, said, Vec::new());
                }
                self.close(number, &why);
            }
        }
    }

    /// Calls off what a client no longer waits for.
    fn forget_request(&mut self, number: u64, request: u64) {
        let Some(link) = self.links.get_mut(&number) else { return };
        let place = link.awaited.iter().position(|&(_, awaited)| awaited == request);
        if let Some(place) = place {
            let (ticket, _) = link.awaited.swap_remove(place);
            self.shared.lock().core.call_off(ticket);
        }
    }

    fn send(&mut self, number: u64, mut bytes: Vec<u8>, fds: Vec<OwnedFd>) {
        let Some(link) = self.links.get_mut(&number) else { return };
        // It may lie there for a while.
        bytes.shrink_to_fit();
        let was_empty = link.unsent.is_empty();
        link.unsent.push_back((bytes, fds));
        if was_empty {
            link.unread_since_ms = clock::monotonic_ms();
            self.flush(number);
        }
    }

    fn flush(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number) else { return };
        let (nr_before, since_ms) = (link.unsent.len(), link.unread_since_ms);
        while let Some((bytes, fds)) = link.unsent.front() {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match link.connection.send(bytes, &fds) {
                Ok(()) => {
                    link.unsent.pop_front();
                    link.unread_since_ms = clock::monotonic_ms();
                }
                Err(TransferError::WouldBlock) => break,
                Err(error) => return self.close(number, &error.to_string()),
            }
        }
        let interest = match link.unsent.is_empty() {
            // The usual case: the first answer went out at once, and nothing changes.
            true if nr_before == 1 && !self.unread.iter().any(|&(unread, _)| unread == number) => {
                return;
            }
            true => {
                link.unsent.shrink_to_fit();
                self.unread.retain(|&(unread, _)| unread != number);
                Interest::Read
            }
            false => Interest::Write,
        };
        if interest == Interest::Write && !self.unread.iter().any(|&(unread, _)| unread == number) {
            self.unread.push_back((number, since_ms));
        }
        if let Err(error) =
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
        if !link.awaited.is_empty() {
            // Nobody is there any more to hear how it ends.
            let mut state = self.shared.lock();
            link.awaited.iter().for_each(|&(ticket, _)| state.core.call_off(ticket));
        }
        let Some(client) = link.session.client() else {
            link.pidfd.iter().for_each(|pidfd| self.forget(pidfd));
            return;
        };
        self.link_of.remove(&client);
        let mut state = self.shared.lock();
        let who = state.core.clients.describe(client);
        if state.core.clients.is_dead(client) {
            link.pidfd.iter().for_each(|pidfd| self.forget(pidfd));
            tracing::info!(client = %who, why, "client reaped");
            state.core.reap(client);
        } else {
            tracing::info!(client = %who, why, "client disconnected; its holds stand");
            state.core.clients.set_disconnected(client);
            drop(state);
            let watch = link.pidfd.map(|pidfd| (FIRST + 2 * number + 1, pidfd));
            self.disconnected.push((client, watch));
        }
    }

    /// Stops watching a descriptor that is about to be closed: a forked child may have a copy of
    /// it, and the poller would go on to report it for as long as that is open.
    fn forget(&self, fd: impl AsFd) {
        if let Err(error) = self.poller.remove(fd) {
            tracing::debug!(%error, "a descriptor was not watched");
        }
    }

    fn find_dead_disconnected(&mut self) {
        if self.disconnected.is_empty() {
            return;
        }
        let mut state = self.shared.lock();
        let poller = &self.poller;
        self.disconnected.retain(|(client, watch)| {
            let is_dead = state.core.clients.is_dead(*client);
            if is_dead {
                if let Some((_, pidfd)) = watch
                    && let Err(error) = poller.remove(pidfd)
                {
                    tracing::debug!(%error, "a process was not watched");
                }
                tracing::info!(client = %state.core.clients.describe(*client), "client reaped");
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
                Some((number, link.session.client()?, link.awaited.swap_remove(place).1))
            });
            match awaiting {
                Some((number, client, request)) => {
                    remote.push((number, tell(&mut state.core, client, request, reply)));
                }
                None => has_local |= state.answer_local(ticket, reply),
            }
        }
        self.lines.hand_out(&mut state.core, &self.poller);
        let cut_off = state.core.clients.take_cut_off();
        let mut events = Vec::new();
        for (client, event) in state.core.take_events() {
            match self.link_of.get(&client) {
                Some(&number) => events.push((number, event)),
                None => has_local |= state.tell_local(client, event),
            }
        }
        drop(state);
        if has_local {
            self.shared.answered.notify_all();
        }
        for client in cut_off {
            if let Some(&number) = self.link_of.get(&client) {
                self.close(number, "its ledger was cut short");
            }
        }
        for (number, reaction) in remote {
            self.react(number, reaction);
        }
        for (number, event) in events {
            // Who reads nothing while it calls nothing must not lose its connection for it, as it
            // would for answers: it hears no more, and can still ask its pins.
            if self.links.get(&number).is_some_and(|link| link.unsent.is_empty()) {
                self.react(number, answer(EVENT_NUMBER, Reply::Event(event)));
            }
        }
    }
}

fn identify(connection: &Connection) -> Result<ClientIdentity, Error> {
    let peer = connection.peer()?;
    Ok(ClientIdentity {
        command: process::command_name(peer.pid).unwrap_or_else(|| "?".into()),
        label: String::new(),
        is_read_only: false,
        pid: peer.pid,
        uid: peer.uid,
        pidfd: peer.pidfd,
    })
}

/// A descriptor for a moment in which there is no other.
fn open_spare() -> Option<File> {
    File::open("/dev/null").ok()
}
