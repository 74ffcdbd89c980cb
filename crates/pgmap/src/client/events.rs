//! Events of a client: every address space of the client first, then whoever asks for them.
//!
//! An owner tells a client once. Whoever takes an event off the link applies it to all address
//! spaces of the client before anybody else sees it. Where that must not wait until the program
//! asks, because a processor's mapping holds frames or a device caches translations, the client has
//! a *keeper*: a thread that takes events as they come, and leaves them here for the program.
//!
//! # States
//! ```text
//!   no keeper ── first Keeping ──▶ keeper runs ── last Keeping dropped ──▶ no keeper
//! ```
//!
//! # Who may touch what
//! `queue` is locked for moments, never while an event is applied. `keeper_thread` is held while
//! the keeper is started and not while one is waited for: a subscriber that the keeper calls may
//! take it. Two keepers may run for a moment, the number in `queue` says which one goes on.
//!
//! # Lost races
//! *A program that waits at the link against the start of the keeper.* Both read; each event
//! reaches one of them, which applies it; the program looks here again when its own wait is
//! interrupted.
//!
//! *A wait at the link against its interruption.* Interruptions are counted. Whoever waits reads
//! the count, then looks here, then waits until the count differs: an interruption for one waiter
//! is never another's to use up.
//!
//! # Differs from Linux
//! `mmu_notifier` runs in the thread that unmaps (Linux 7.1: mm/mmu_notifier.c); here that thread
//! is in another process, and waits for the holds to go.

use pgmap_os::clock::Instant;
use pgmap_os::sync::{Condvar, Mutex, MutexGuard};
use pgmap_os::thread::JoinHandle;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use pgmap_mm::mm::Unmapped;
use pgmap_mm::pin::ClientSide;
use pgmap_mm::vmemmap::Vmemmap;

use crate::client::Client;
use crate::client::local::MAX_EVENTS;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::memory::Readable;
use crate::wire::Event;

/// How long the keeper waits for events at a time; an interruption ends the wait.
const KEEPER_WAIT: Duration = Duration::from_secs(60);
/// How long after an event it looks whether others were missed.
const BURST_PAUSE: Duration = Duration::from_millis(10);
/// How long it waits before it looks at translations that somebody caches and nobody holds: owners
/// tell holders only.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// It takes at most one part in so many of its time for that.
const LOOK_SHARE: u32 = 20;
/// How long it waits before it looks for an owner's successor again.
const OWNER_PAUSE: Duration = Duration::from_millis(20);

/// An event that every address space of the client was notified of.
#[derive(Debug)]
pub(crate) struct AppliedEvent {
    pub event: Event,
    /// What ended in which address space.
    pub ended: Vec<(u64, Unmapped)>,
}

/// An address space, as the events of its client reach it.
pub(crate) trait MappedSpace: fmt::Debug + Send + Sync {
    /// A number that no other address space of this process has.
    fn id(&self) -> u64;

    /// Ends the translations that an event is about; none for an event about anything else.
    fn apply(&self, event: &Event) -> Option<Unmapped>;

    /// Whether anybody caches translations of it.
    fn has_subscribers(&self) -> bool;

    /// Takes away the parts of the processor's mapping whose reclaim was requested, and what others
    /// may have cached of frames that are not what they were: for when an event may have been
    /// missed, or was for holders only.
    fn look_for_missed(&self, vmemmap: &Vmemmap<Readable>);
}

/// The address spaces and events of a client.
#[derive(Debug, Default)]
pub(crate) struct Events {
    queue: Mutex<EventQueue>,
    changed: Condvar,
    keeper_thread: Mutex<KeeperThread>,
}

#[derive(Debug, Default)]
struct EventQueue {
    spaces: Vec<Weak<dyn MappedSpace>>,
    /// What the keeper took and the program has not asked for; the oldest go first.
    applied: VecDeque<AppliedEvent>,
    /// The number of the keeper that runs, or 0.
    keeper: u64,
    /// Why the keeper hears nothing.
    lost: Option<String>,
}

#[derive(Debug, Default)]
struct KeeperThread {
    nr_wishes: usize,
    last_keeper: u64,
    thread: Option<JoinHandle<()>>,
}

impl Events {
    fn queue(&self) -> MutexGuard<'_, EventQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `space` of every event from now on.
    pub(crate) fn add(&self, space: Weak<dyn MappedSpace>) {
        let mut queue = self.queue();
        queue.spaces.retain(|known| known.strong_count() > 0);
        queue.spaces.push(space);
    }

    fn spaces(&self) -> Vec<Arc<dyn MappedSpace>> {
        self.queue().spaces.iter().filter_map(Weak::upgrade).collect()
    }

    /// Tells every address space.
    fn tell(&self, event: Event) -> AppliedEvent {
        let spaces = self.spaces();
        let ended = spaces.iter().filter_map(|space| Some((space.id(), space.apply(&event)?)));
        let ended = ended.collect();
        AppliedEvent { event, ended }
    }

    /// Has every address space look at what it holds, and what others cache of it: the life words
    /// say what events have not.
    fn look_for_missed(&self, client: &Client) {
        let vmemmap = client.inner.pinner.side().vmemmap();
        self.spaces().iter().for_each(|space| space.look_for_missed(vmemmap));
    }

    /// Whether somebody caches translations, and so must hear of frames that nothing here holds.
    fn has_subscribers(&self) -> bool {
        self.spaces().iter().any(|space| space.has_subscribers())
    }

    /// Tells every address space, and leaves the event for the program.
    fn leave(&self, keeper: u64, event: Event, interrupt: impl FnOnce()) {
        let applied = self.tell(event);
        let mut queue = self.queue();
        if queue.applied.len() >= MAX_EVENTS {
            queue.applied.pop_front();
        }
        queue.applied.push_back(applied);
        let is_last = queue.keeper != keeper;
        drop(queue);
        self.changed.notify_all();
        if is_last {
            // The program waits at the link by now, and is to look here.
            interrupt();
        }
    }

    /// Ends the translations that `event` is about, which this process found out by itself, and
    /// leaves it for the program.
    pub(crate) fn tell_gone(&self, event: Event) {
        let applied = self.tell(event);
        let mut queue = self.queue();
        if queue.applied.len() >= MAX_EVENTS {
            queue.applied.pop_front();
        }
        queue.applied.push_back(applied);
        drop(queue);
        self.changed.notify_all();
    }

    /// Whether the keeper of this number is to go on.
    fn is_kept_by(&self, keeper: u64) -> bool {
        self.queue().keeper == keeper
    }

    /// A pause of the keeper of this number, which its end ends.
    fn pause(&self, keeper: u64, pause: Duration) {
        let queue = self.queue();
        if queue.keeper == keeper {
            drop(self.changed.wait_timeout(queue, pause));
        }
    }
}

impl Client {
    /// The next event, of which every address space was notified, waiting up to `timeout` for it.
    pub(crate) fn next_applied(&self, timeout: Duration) -> Result<Option<AppliedEvent>, Error> {
        let inner = &self.inner;
        if inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        let deadline = Deadline::after(timeout);
        loop {
            let seen = inner.link.nr_interruptions(inner.id);
            let mut queue = inner.events.queue();
            if let Some(applied) = queue.applied.pop_front() {
                return Ok(Some(applied));
            }
            if let Some(why) = &queue.lost {
                return Err(Error::OwnerGone { why: why.clone() });
            }
            let left = deadline.left();
            if queue.keeper != 0 {
                if left.is_zero() {
                    return Ok(None);
                }
                drop(inner.events.changed.wait_timeout(queue, left));
                continue;
            }
            drop(queue);
            if let Some(event) = inner.link.next_event(inner.id, left, seen)? {
                return Ok(Some(inner.events.tell(event)));
            }
            let queue = inner.events.queue();
            if deadline.left().is_zero() && queue.keeper == 0 && queue.applied.is_empty() {
                return Ok(None);
            }
        }
    }

    /// Has events taken and applied as they come, as long as the answer lives.
    ///
    /// # Errors
    /// [`Error::Os`] when no thread can be started.
    pub(crate) fn keep_events(&self) -> Result<Keeping, Error> {
        let events = &self.inner.events;
        let mut keeper_thread = events.keeper_thread.lock().unwrap_or_else(PoisonError::into_inner);
        if keeper_thread.nr_wishes == 0 {
            keeper_thread.last_keeper += 1;
            let keeper = keeper_thread.last_keeper;
            events.queue().keeper = keeper;
            let client = self.clone();
            let started = pgmap_os::thread::Builder::new()
                .name("pgmap-keeper".into())
                .spawn(move || client.keep(keeper));
            match started {
                Ok(thread) => keeper_thread.thread = Some(thread),
                Err(error) => {
                    events.queue().keeper = 0;
                    return Err(pgmap_os::OsError::new("start", "a keeper's thread", error).into());
                }
            }
            // A program that waits at the link is to wait here instead.
            self.inner.link.interrupt(self.inner.id);
        }
        keeper_thread.nr_wishes += 1;
        Ok(Keeping { client: self.clone() })
    }

    /// Has the keeper find out now whether anybody caches translations.
    pub(crate) fn wake_keeper(&self) {
        self.inner.link.interrupt(self.inner.id);
    }

    /// What the keeper does.
    fn keep(&self, keeper: u64) {
        let (inner, events) = (&self.inner, &self.inner.events);
        let (mut was_silent, mut is_due, mut is_over) = (false, false, false);
        let (mut generation, mut look_pause) = (inner.link.generation(), LOOK_PAUSE);
        loop {
            let seen = inner.link.nr_interruptions(inner.id);
            if !events.is_kept_by(keeper) {
                break;
            }
            let before = std::mem::replace(&mut generation, inner.link.generation());
            if is_over || generation != before {
                // Of a burst an owner drops what finds the connection full; and one that restarts
                // asks holders before they are all there to hear it.
                let started = Instant::now();
                events.look_for_missed(self);
                look_pause = LOOK_PAUSE.max(started.elapsed() * LOOK_SHARE);
                is_due = false;
            }
            let has_subscribers = events.has_subscribers();
            let wait = match (is_due, has_subscribers) {
                (true, _) => BURST_PAUSE,
                (false, true) => look_pause,
                (false, false) => KEEPER_WAIT,
            };
            let started = Instant::now();
            let heard = inner.link.next_event(inner.id, wait, seen);
            let is_silent = matches!(heard, Ok(None)) && started.elapsed() < wait;
            if is_silent && was_silent {
                // An interruption ends one wait. What ends every one must not make this thread
                // spin.
                events.pause(keeper, OWNER_PAUSE);
            }
            was_silent = is_silent;
            is_over = matches!(heard, Ok(None)) && (is_due || has_subscribers);
            match heard {
                Ok(Some(event)) => {
                    events.leave(keeper, event, || inner.link.interrupt(inner.id));
                    is_due = true;
                }
                Ok(None) => {}
                Err(error) => self.await_successor(keeper, &error),
            }
        }
    }

    /// The owner is not to be heard. What is mapped stays mapped and held, until it or its
    /// successor changes the life words, which needs no connection to be seen.
    fn await_successor(&self, keeper: u64, error: &Error) {
        let (inner, events) = (&self.inner, &self.inner.events);
        events.queue().lost = Some(error.why_gone());
        events.changed.notify_all();
        while events.is_kept_by(keeper) && self.reconnect_now().is_err() {
            events.look_for_missed(self);
            events.pause(keeper, OWNER_PAUSE);
        }
        events.queue().lost = None;
        tracing::debug!(client = inner.id.0, "the keeper hears an owner again, or stops");
    }
}

/// Keeps a client's keeper running.
#[derive(Debug)]
pub(crate) struct Keeping {
    client: Client,
}

impl Drop for Keeping {
    fn drop(&mut self) {
        let inner = &self.client.inner;
        if inner.pinner.side().is_forked() {
            // The thread is the parent's.
            return;
        }
        let events = &inner.events;
        let mut keeper_thread = events.keeper_thread.lock().unwrap_or_else(PoisonError::into_inner);
        keeper_thread.nr_wishes -= 1;
        if keeper_thread.nr_wishes > 0 {
            return;
        }
        events.queue().keeper = 0;
        events.changed.notify_all();
        inner.link.interrupt(inner.id);
        let thread = keeper_thread.thread.take();
        // The keeper may be in a subscriber that asks for a keeper.
        drop(keeper_thread);
        if let Some(thread) = thread
            && thread.thread().id() != pgmap_os::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("a keeper's thread panicked");
        }
    }
}
