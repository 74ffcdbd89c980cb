//! The owner as the embedding program holds it.

use pgmap_os::sync::{Condvar, Mutex, MutexGuard};
use pgmap_os::thread::JoinHandle;
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use pgmap_mm::drain::ClientId;
use pgmap_mm::holder::{Holder, HolderId};
use pgmap_mm::memory_type::MemoryType;
use pgmap_mm::pagemap::{PagemapId, PagemapOps, PagemapSpec};
use pgmap_os::{Doorbell, FileAccess, ForkGuard, Listener, OsError, process};

use crate::client::Client;
use crate::client::local::{Handed, LocalOwner, MAX_EVENTS};
use crate::deadline::{Deadline, millis};
use crate::device_watch;
use crate::error::Error;
use crate::name::FileName;
use crate::owner::burst::BusyPoll;
use crate::owner::clients::{Attachment, ClientIdentity};
use crate::owner::core::{Core, Outcome, Ticket};
use crate::owner::holders::HolderLine;
use crate::owner::service::Service;
use crate::pool::Pool;
use crate::pool::backing::BackingOptions;
use crate::refusal::Refusal;
use crate::wire::{Event, PoolInfo, QuotaInfo, QuotaLimits, QuotaOf, Reply, Request, WaterMarks};

/// The books and who waits for an answer in this process.
#[derive(Debug)]
pub(crate) struct OwnerState {
    pub core: Core,
    pub new_listener: Option<Listener>,
    pub busy_poll: BusyPoll,
    waiting: HashSet<Ticket>,
    answered: HashMap<Ticket, Reply>,
    /// Events that clients of this process have not got yet.
    told: HashMap<ClientId, VecDeque<Event>>,
    /// How often waits of each client for events were interrupted.
    interruptions: HashMap<ClientId, u64>,
}

/// The error number of a process that may open no more files.
const EMFILE: i32 = 24;
/// How much longer than its own deadline the removal of a pagemap waits for its answer.
const UNPLUG_GRACE: Duration = Duration::from_secs(10);
impl OwnerState {
    fn nr_interruptions(&self, client: ClientId) -> u64 {
        self.interruptions.get(&client).copied().unwrap_or(0)
    }

    /// Keeps an event for a client of this process; false if it is another's.
    pub(crate) fn tell_local(&mut self, client: ClientId, event: Event) -> bool {
        let Some(queue) = self.told.get_mut(&client) else { return false };
        for _ in 0..pgmap_os::sim::deliveries() {
            if queue.len() >= MAX_EVENTS {
                queue.pop_front();
            }
            queue.push_back(event.clone());
        }
        true
    }

    /// Keeps an answer for a thread of this process; false when nobody waits for it.
    pub(crate) fn answer_local(&mut self, ticket: Ticket, reply: Reply) -> bool {
        let is_awaited = self.waiting.remove(&ticket);
        if is_awaited {
            self.answered.insert(ticket, reply);
        }
        is_awaited
    }
}

fn stopped() -> Error {
    Error::OwnerGone { why: "it was stopped".into() }
}

/// What the owner's thread and its callers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pool: Arc<Pool>,
    state: Mutex<OwnerState>,
    pub answered: Condvar,
    pub doorbell: Doorbell,
    pub wake: Doorbell,
    stopping: AtomicBool,
    guard: ForkGuard,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, OwnerState> {
        // A panic while the books were open is a bug; they are still the best there is.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        // Acquire: pairs with Release in `stop`.
        self.stopping.load(Ordering::Acquire)
    }

    /// An error once it is stopping, and in a forked child, which has a copy of the books and must
    /// not write into the pool by them.
    pub(crate) fn check_running(&self) -> Result<(), Error> {
        if self.guard.is_child() {
            return Err(Error::Forked);
        }
        if self.is_stopping() {
            return Err(stopped());
        }
        Ok(())
    }

    /// Ends the owner's work: its loop, and every wait for an answer that will not come.
    pub(crate) fn stop(&self) {
        // Release: pairs with Acquire in `is_stopping`.
        self.stopping.store(true, Ordering::Release);
        self.wake();
        // Under the lock: whoever looked before the store above is waiting by now.
        let state = self.lock();
        self.answered.notify_all();
        drop(state);
    }

    /// The books, if the owner is running.
    pub(crate) fn lock_running(&self) -> Result<MutexGuard<'_, OwnerState>, Error> {
        // Before the lock: in a forked child nobody may ever give it back.
        if self.guard.is_child() {
            return Err(Error::Forked);
        }
        let state = self.lock();
        if self.is_stopping() {
            return Err(stopped());
        }
        Ok(state)
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn wake(&self) {
        if let Err(error) = self.wake.ring() {
            tracing::error!(%error, "the owner's thread cannot be woken");
        }
    }

    /// Has the core do something, and waits for its answer if that comes later. What is not
    /// answered in time is called off.
    fn await_outcome(
        &self,
        name: &'static str,
        limit: Duration,
        act: impl FnOnce(&mut Core) -> Outcome,
    ) -> Result<Reply, Error> {
        let mut state = self.lock_running()?;
        let outcome = act(&mut state.core);
        let reply = match outcome {
            Outcome::Answer(reply) => {
                state.core.holder.pass_questions();
                let core = &state.core;
                let has_work = core.is_draining() || core.evicts_ahead();
                if has_work || core.has_messages() || core.dead.awaits_transfers() {
                    self.wake();
                }
                reply
            }
            Outcome::Later(ticket) => {
                state.waiting.insert(ticket);
                state.core.holder.pass_questions();
                self.wake();
                let mut deadline = Deadline::after(limit);
                loop {
                    if let Some(reply) = state.answered.remove(&ticket) {
                        break reply;
                    }
                    if self.is_stopping() {
                        // A cut that could not be taken back has been done.
                        let why = format!("it stopped during a {name}");
                        return Err(Error::OwnerGone { why });
                    }
                    if state.core.populations.is_waited_for(ticket)
                        || state.core.pagemaps.is_taking_down(ticket)
                    {
                        deadline = Deadline::after(limit);
                    }
                    let left = deadline.left();
                    if left.is_zero() {
                        state.waiting.remove(&ticket);
                        state.core.call_off(ticket);
                        self.wake();
                        let waited_ms = millis(limit);
                        let owner_pid = i32::try_from(pgmap_os::process::id()).unwrap_or(0);
                        return Err(Error::TimedOut { call: name, waited_ms, owner_pid });
                    }
                    let waited = self.answered.wait_timeout(state, left);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        };
        drop(state);
        match reply {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }
}

impl LocalOwner for Shared {
    fn check_running(&self) -> Result<(), Error> {
        self.check_running()
    }

    fn next_event(
        &self,
        client: ClientId,
        timeout: Duration,
        seen: u64,
    ) -> Result<Option<Event>, Error> {
        let deadline = Deadline::after(timeout);
        let mut state = self.lock();
        loop {
            let Some(told) = state.told.get_mut(&client) else { return Ok(None) };
            if let Some(event) = told.pop_front() {
                return Ok(Some(event));
            }
            if state.nr_interruptions(client) != seen {
                return Ok(None);
            }
            self.check_running()?;
            let left = deadline.left();
            if left.is_zero() {
                return Ok(None);
            }
            state =
                self.answered.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn interrupt(&self, client: ClientId) {
        *self.lock().interruptions.entry(client).or_default() += 1;
        self.answered.notify_all();
    }

    fn nr_interruptions(&self, client: ClientId) -> u64 {
        self.lock().nr_interruptions(client)
    }

    fn call(&self, client: ClientId, request: Request, limit: Duration) -> Result<Reply, Error> {
        let name = request.name();
        if matches!(request, Request::Leave) {
            let mut state = self.lock_running()?;
            state.told.remove(&client);
            state.interruptions.remove(&client);
        }
        self.await_outcome(name, limit, |core| core.handle(client, request))
    }

    fn call_for_fds(
        &self,
        client: ClientId,
        request: Request,
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        let mut state = self.lock_running()?;
        let reply = match state.core.handle(client, request) {
            Outcome::Answer(Reply::Refused(refusal)) => return Err(refusal.into()),
            Outcome::Answer(reply) => reply,
            Outcome::Later(_) => {
                let why = "an answer with descriptors came late".into();
                return Err(Refusal::Internal { why }.into());
            }
        };
        let fds = state.core.fds_of(client, &reply)?;
        drop(state);
        self.wake();
        Ok((reply, fds))
    }
}

/// The one who changes a pool's descriptors: hands out frames, publishes files, drains them.
///
/// Works by itself in one thread. Dropping it stops it; clients keep their pins, and for a pool in
/// a directory a new owner can go on.
#[derive(Debug)]
pub struct Owner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Owner {
    /// Becomes the owner of `pool`.
    ///
    /// # Errors
    /// [`Error::Os`] when the pool cannot be mapped or the thread not started; [`Error::BadPool`]
    /// and [`Error::Catalog`] when what an earlier owner left is damaged.
    pub fn start(pool: Pool) -> Result<Self, Error> {
        let pool = Arc::new(pool);
        let core = Core::open(Arc::clone(&pool))?;
        let state = OwnerState {
            core,
            new_listener: None,
            busy_poll: BusyPoll::default(),
            waiting: HashSet::new(),
            answered: HashMap::new(),
            told: HashMap::new(),
            interruptions: HashMap::new(),
        };
        let shared = Arc::new(Shared {
            pool,
            state: Mutex::new(state),
            answered: Condvar::new(),
            doorbell: Doorbell::new()?,
            wake: Doorbell::new()?,
            stopping: AtomicBool::new(false),
            guard: ForkGuard::new()?,
        });
        if shared.pool.is_on_device() || shared.pool.has_room() {
            device_watch::watch(&shared)?;
        }
        let service = Service::new(Arc::clone(&shared))?;
        let thread = pgmap_os::thread::Builder::new()
            .name("pgmap-owner".into())
            .spawn(move || service.run())
            .map_err(|error| pgmap_os::OsError::new("start", "the owner's thread", error))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Listens at `path` for clients of other processes, until the owner is dropped. Each of them
    /// costs four descriptors, so the process's soft limit of open files is raised to its hard one.
    ///
    /// # Errors
    /// [`Error::Os`] when somebody listens there already, the path cannot be used, or so few files
    /// may be open that there is room for no client.
    pub fn serve(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.shared.check_running()?;
        let listener = Listener::bind(path.as_ref(), 0o600)?;
        if let Err(error) = process::raise_descriptor_limit() {
            tracing::warn!(%error, "few clients will find room");
        }
        let mut state = self.shared.lock_running()?;
        let nr_left = process::descriptors_left();
        if !state.core.clients.set_limit(nr_left) {
            let full = std::io::Error::from_raw_os_error(EMFILE);
            return Err(OsError::new(
                "serve clients at",
                path.as_ref().display().to_string(),
                full,
            )
            .with_advice(format!(
                "{nr_left} more files may be open, too few for one client; raise the limit of \
                     open files (ulimit -n) to 64 or more"
            ))
            .into());
        }
        state.new_listener = Some(listener);
        drop(state);
        self.shared.wake();
        Ok(())
    }

    /// The longest time that [`set_busy_poll`](Self::set_busy_poll) takes.
    pub const MAX_BUSY_POLL: Duration = BusyPoll::MAX;

    /// From the next message on, how long the owner's thread polls for another before it sleeps,
    /// after two that came within that time of each other: 250 us unless another time is said here.
    /// Zero: never. A sleeping thread takes some 50 us to wake on a virtual machine. A polling one
    /// uses an otherwise idle processor, for as long as messages come that often. Compare
    /// `net.core.busy_poll`.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] for more than [`MAX_BUSY_POLL`](Self::MAX_BUSY_POLL);
    /// [`Error::OwnerGone`] once it stops.
    pub fn set_busy_poll(&self, busy_poll: Duration) -> Result<(), Error> {
        self.shared.lock_running()?.busy_poll = busy_poll.try_into()?;
        Ok(())
    }

    /// A client in this process.
    ///
    /// # Errors
    /// [`Error::Os`] when its ledger cannot be made.
    pub fn client(&self) -> Result<Client, Error> {
        let is_registered = pgmap_os::Membarrier::register().is_global_available();
        let mut state = self.shared.lock_running()?;
        let (id, attachment) = state.core.attach(ClientIdentity::own(), is_registered)?;
        state.told.insert(id, VecDeque::new());
        drop(state);
        let client = self.embed(attachment);
        if client.is_err() {
            // Nobody else would ever say that it is gone.
            self.shared.lock().core.reap(id);
        }
        client
    }

    fn embed(&self, attachment: Attachment) -> Result<Client, Error> {
        let Attachment { welcome, ledger } = attachment;
        let pool = &self.shared.pool;
        let handed = Handed {
            welcome,
            data: pool.data.try_clone_fd()?,
            vmemmap: pool.vmemmap.reopen_handle(FileAccess::ReadOnly)?,
            index: pool.index.reopen_handle(FileAccess::ReadOnly)?,
            doorbell: self.shared.doorbell.try_clone()?,
            ledger,
        };
        let owner: Arc<Shared> = Arc::clone(&self.shared);
        Client::embedded(handed, owner)
    }

    /// Registers `holder` as the pool's one holder: it is asked before long-term pins and told of
    /// failure and drains, on a thread of its own. A question that it has not answered after
    /// `patience` is answered no. Ends when the registration is dropped.
    ///
    /// # Errors
    /// [`Refusal::Denied`] with `EBUSY` when the pool has a holder; [`Error::Os`] when no thread
    /// can be started.
    pub fn set_holder(
        &self,
        id: HolderId,
        holder: Arc<dyn Holder>,
        patience: Duration,
    ) -> Result<HolderRegistration, Error> {
        let shared = Arc::downgrade(&self.shared);
        let answered = move |question, answer| {
            if let Some(shared) = shared.upgrade()
                && let Ok(mut state) = shared.lock_running()
            {
                state.core.holder_answered(question, answer);
                drop(state);
                shared.wake();
            }
        };
        let line = HolderLine::open(holder, answered)
            .map_err(|error| pgmap_os::OsError::new("start", "the holder's thread", error))?;
        let patience_ms = millis(patience);
        let mut state = self.shared.lock_running()?;
        state.core.set_holder(id, line, patience_ms).map_err(Refusal::from)?;
        drop(state);
        Ok(HolderRegistration { shared: Arc::clone(&self.shared), id })
    }

    /// Brings another pagemap up, inside the capacity that the pool was made with, and shows it as
    /// the file `name` over its whole range. Its memory is taken now.
    ///
    /// # Errors
    /// [`Refusal::Denied`] with the kernel's error number for the first rule that `spec` breaks
    /// (Linux 7.1: mm/memremap.c, `memremap_pages`); [`Refusal::Exists`], [`Refusal::NoMemory`].
    pub fn add_pagemap(
        &self,
        name: impl AsRef<[u8]>,
        spec: &PagemapSpec,
        ops: Option<Arc<dyn PagemapOps>>,
    ) -> Result<PagemapId, Error> {
        let name = FileName::new(name)?;
        Ok(self.shared.lock_running()?.core.add_pagemap(&name, spec, ops)?)
    }

    /// Takes a pagemap down: nobody new gets in, the holder and every holder of a frame are
    /// notified, and when the last has let go the memory goes. Waits up to `deadline` for that.
    ///
    /// # Errors
    /// [`Refusal::Held`] names who still holds frames. The pagemap stays closed then, its memory is
    /// nobody else's, and this can be called again.
    pub fn remove_pagemap(&self, id: PagemapId, deadline: Duration) -> Result<(), Error> {
        let wait_ms = millis(deadline);
        let limit = deadline.saturating_add(UNPLUG_GRACE);
        let name = "removal of a pagemap";
        self.shared.await_outcome(name, limit, |core| core.remove_pagemap(id, wait_ms)).map(drop)
    }

    /// Adds a backing to the pool, in the room that it was made with
    /// ([`PoolOptions::room`](crate::PoolOptions::room)): memory of its own beside the pool's data,
    /// on which files may lie from now on. It is on record, and found again by the next owner. A
    /// device or file that is a backing on record, and was missing, is taken back. Returns its
    /// number.
    ///
    /// # Errors
    /// [`Error::BadPool`] for what cannot be one, is used, or is another pool's;
    /// [`Error::NotDurable`] where it does not keep what the pool's files outlive;
    /// [`Refusal::Invalid`] when there is no room, or the name is taken; [`Refusal::TooMuch`] for
    /// more than 8 with the pool's data; [`Error::Os`]. Nothing is left behind then.
    pub fn add_backing(&self, options: &BackingOptions) -> Result<u64, Error> {
        self.shared.lock_running()?.core.add_backing(options)
    }

    /// Gives the pool `by_bytes` more memory while it is served, beside its data and of the same
    /// kind: a memfd of the same pages for an anonymous pool, else a file beside the data, which
    /// goes where the pool goes. It is a backing (`data-2` and so on) in the room that the pool was
    /// made with, or was given by [`Pool::give_room`], and is taken out as any other.
    ///
    /// # Errors
    /// As [`add_backing`](Self::add_backing); [`Refusal::Invalid`] for a pool on a device, which
    /// has what it has.
    pub fn grow(&self, by_bytes: u64) -> Result<(), Error> {
        self.shared.lock_running()?.core.grow(by_bytes)
    }

    /// Takes a backing out of the pool, on which no file lies any more: nothing new is put there,
    /// and it goes when nobody holds a frame of it. Waits up to `deadline` for that. A file that
    /// was made for it is removed then, and a device is nobody's.
    ///
    /// # Errors
    /// [`Refusal::InUse`] when files lie on it, or frames are out of use; [`Refusal::Held`] names
    /// who still holds some when the time is over; the backing is as before then.
    /// [`Refusal::NoBacking`] when there is none of that name, [`Refusal::Invalid`] for the data.
    pub fn remove_backing(&self, name: &str, deadline: Duration) -> Result<(), Error> {
        let wait_ms = millis(deadline);
        let limit = deadline.saturating_add(UNPLUG_GRACE);
        let call = "removal of a backing";
        self.shared.await_outcome(call, limit, |core| core.remove_backing(name, wait_ms)).map(drop)
    }

    /// As [`Client::set_quota`].
    ///
    /// # Errors
    /// As there, but for who may.
    pub fn set_quota(&self, of: QuotaOf, limits: QuotaLimits) -> Result<(), Error> {
        self.shared.lock_running()?.core.set_quota(of, limits)?;
        Ok(())
    }

    /// As [`Client::remove_quota`].
    ///
    /// # Errors
    /// As there, but for who may.
    pub fn remove_quota(&self, of: &QuotaOf) -> Result<(), Error> {
        self.shared.lock_running()?.core.remove_quota(of)?;
        Ok(())
    }

    /// The quotas and how much of each is used, those of users first.
    ///
    /// # Errors
    /// [`Error::OwnerGone`] once it stops.
    pub fn quotas(&self) -> Result<Vec<QuotaInfo>, Error> {
        Ok(self.shared.lock_running()?.core.quota_infos())
    }

    /// As [`Client::set_water_marks`].
    ///
    /// # Errors
    /// As there, but for who may.
    pub fn set_water_marks(&self, marks: WaterMarks) -> Result<(), Error> {
        self.shared.lock_running()?.core.set_water_marks(marks)?;
        self.shared.wake();
        Ok(())
    }

    /// The type of the pagemap around a frame; `None` if there is no living one, and in a forked
    /// child.
    #[must_use]
    pub fn pagemap_at(&self, pfn: u64) -> Option<(PagemapId, MemoryType)> {
        let state = self.shared.lock_running().ok()?;
        let map = state.core.pagemaps.at(pgmap_mm::pfn::Pfn::new(pfn)?)?;
        Some((map.id(), map.memory_type()))
    }

    /// A summary of the pool. A forked child owns nothing, and sees zeros.
    #[must_use]
    pub fn info(&self) -> PoolInfo {
        if self.shared.guard.is_child() {
            return PoolInfo::default();
        }
        self.shared.lock().core.pool_info()
    }

    /// Whether the pool was closed ([`Client::close_pool`](crate::Client::close_pool)): nobody
    /// holds anything any more, nobody gets in, and the owner is to be dropped.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        !self.shared.guard.is_child() && self.shared.lock().core.is_closed()
    }

    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

/// Keeps a holder registered.
#[derive(Debug)]
#[must_use = "dropping the registration ends it"]
pub struct HolderRegistration {
    shared: Arc<Shared>,
    id: HolderId,
}

impl Drop for HolderRegistration {
    fn drop(&mut self) {
        // A stopped owner's books are nobody's: the pool may have another owner by now.
        let Ok(mut state) = self.shared.lock_running() else { return };
        if let Err(error) = state.core.unset_holder(self.id) {
            tracing::debug!(%error, "a holder had gone already");
        }
        drop(state);
        self.shared.wake();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.shared.guard.is_child() {
            // The thread, and the pool, are the parent's.
            std::mem::forget(self.thread.take());
            return;
        }
        self.shared.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the owner's thread panicked");
        }
        let state = self.shared.lock();
        state.core.flush_files();
        if let Err(error) = state.core.sync_backings() {
            tracing::error!(
                %error,
                "a backing could not be synced; files may be lost when the machine stops"
            );
        }
        drop(state);
        if let Err(error) = self.shared.pool.end() {
            tracing::error!(
                %error,
                "the pool could not be synced; files may be lost when the machine stops"
            );
        }
        // Clients of this process may keep the books for as long as they like, and the pool's lock
        // with them. Nobody uses those books any more: every way to them asks whether the owner
        // runs.
        self.shared.lock().core.release_backings();
        self.shared.pool.release();
    }
}
