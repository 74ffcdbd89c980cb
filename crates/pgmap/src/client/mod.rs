//! A client: a process attached to a pool.

pub(crate) mod backings;
mod batch;
pub(crate) mod data;
pub(crate) mod events;
pub(crate) mod failure;
mod fault_around;
pub(crate) mod file;
mod keepers;
pub(crate) mod lanes;
pub(crate) mod link;
pub(crate) mod local;
mod look_up;
pub(crate) mod options;
pub(crate) mod owned;
pub(crate) mod pinned;
pub(crate) mod prefault;
mod put_batch;
mod quotas;
mod report;
pub(crate) mod side;
mod spares;
pub(crate) mod subscription;
mod transfers;
mod upkeep;
pub(crate) mod writer;

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use pgmap_mm::drain::ClientId;
use pgmap_mm::index::{IndexLayout, IndexReader, Lookup};
use pgmap_mm::ledger::LedgerLayout;
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::pin::{ClientSide, Pinner};
use pgmap_mm::used::UsedMarks;
use pgmap_mm::vmemmap::{Vmemmap, VmemmapLayout};
use pgmap_os::sync::Mutex;
use pgmap_os::{Membarrier, MemoryFile, ParentFd, ReadMapping, WriteMapping};

use crate::client::backings::Mapped;
use crate::client::data::{Data, Stance};
use crate::client::events::Events;
use crate::client::fault_around::FaultAround;
use crate::client::keepers::Keepers;
use crate::client::link::{BegunCall, Failed, Link, Remote, Trust};
use crate::client::local::{Handed, LocalOwner};
use crate::client::options::{ConnectOptions, DEFAULT_DEADLINE, Replace, default_label};
use crate::client::side::ProcessSide;
use crate::client::spares::{AskedSpares, Spares};
use crate::client::writer::{FileWriter, OwnedWriter};
use crate::deadline::{Deadline, millis};
use crate::error::Error;
use crate::memory::{Readable, Writable, WritableCounts};
use crate::name::FileName;
use crate::pool::LedgerFile;
use crate::refusal::{ClientHold, Refusal};
use crate::wire::{
    self, CommitSpec, Committed, CreateSpec, Event, FolioSize, Hello, LeaseGrant, LeaseSpec,
    MAX_BATCH, OnDeadline, Reply, Request, Welcome,
};

/// How much longer than its own deadline a truncate or punch waits for the answer, at most.
const CUT_GRACE: Duration = Duration::from_secs(2);

/// What a client has mapped and how it reaches its owner.
#[derive(Debug)]
pub(crate) struct Inner {
    pub pinner: Pinner<ProcessSide>,
    pub data: Data,
    /// What of `data` has something behind it.
    pub backings: Mapped,
    pub fault_around: FaultAround,
    /// Whether what a file holds is flushed before it is committed.
    pub is_flushed: bool,
    pub events: Events,
    index: IndexReader<Readable>,
    /// What it says that it used.
    used: UsedMarks<WritableCounts>,
    /// Its lock says that this client lives. Dropped before the connection: who hears of the end of
    /// that finds the lock free.
    ledger: ParentFd,
    link: Link,
    /// Frames that were handed out ahead.
    spares: Spares,
    id: ClientId,
    deadline: Mutex<Duration>,
}

impl Inner {
    fn resume(&self, doorbell: pgmap_os::Doorbell) {
        let place = &self.pinner.side().doorbell;
        *place.lock().unwrap_or_else(PoisonError::into_inner) = doorbell;
    }

    /// The numbers of the files that have now the names whose files a request changes; `None` if
    /// it names no file.
    fn files_changed_by(&self, request: &Request) -> Option<Vec<Option<u64>>> {
        let number = |name: &FileName| match self.index.id_of(name.as_bytes()) {
            Lookup::Found(id) => Some(id.0),
            Lookup::Absent | Lookup::Busy => None,
        };
        Some(request.changed_names()?.iter().map(number).collect())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A forked child is not the client and must not say that the client leaves.
        if !self.pinner.side().is_forked() {
            self.link.post(self.id, Request::Leave);
        }
    }
}

/// A process's attachment to a pool. Cheap to clone; all clones are one client.
///
/// Opening, pinning and releasing never leave the process, except that a look-up which finds the
/// index changing under it again and again asks the owner where the file is. Creating, committing,
/// truncating, renaming, unlinking and listing call the owner. A call waits no longer than
/// [`set_deadline`](Self::set_deadline) says, and ends with [`Error::TimedOut`] then. Dropping the
/// last clone, a [`FileWriter`] or a leased pin waits for nobody.
///
/// ```
/// use pgmap::{FolioSize, Owner, Pool, PoolOptions};
///
/// let owner = Owner::start(Pool::create(&PoolOptions::anonymous(16 << 20))?)?;
/// let client = owner.client()?;
/// let mut writer = client.create("greeting", 5, FolioSize::BestFit)?;
/// writer.write_all_at(0, b"hello")?;
/// writer.commit()?;
/// let pinned = client.get("greeting")?;
/// assert_eq!(pinned.to_vec()?, b"hello");
/// # Ok::<(), pgmap::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
    keepers: Arc<Keepers>,
}

impl Client {
    /// Attaches to the pool whose owner listens at `path`.
    ///
    /// # Errors
    /// [`Error::Os`] when nobody listens there, [`Error::OwnerGone`] when the owner goes meanwhile,
    /// [`Error::TimedOut`] when it does not answer, [`Error::Protocol`] when it speaks another
    /// version, [`Refusal::Full`] when it serves as many clients as it can.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::connect_with(path, &ConnectOptions::new())
    }

    /// As [`connect`](Self::connect), for a path that nobody chose: refuses an owner that is
    /// neither this user's nor root's, before anything is sent to it.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), and [`Error::Os`] with `EPERM`.
    pub fn connect_own(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::connect_to(path.as_ref(), Trust::OwnUser, &ConnectOptions::new())
    }

    /// As [`connect_own`](Self::connect_own), with options.
    ///
    /// # Errors
    /// As [`connect_own`](Self::connect_own).
    pub fn connect_own_with(
        path: impl AsRef<Path>,
        options: &ConnectOptions,
    ) -> Result<Self, Error> {
        Self::connect_to(path.as_ref(), Trust::OwnUser, options)
    }

    /// As [`connect`](Self::connect), with a name and a deadline of one's own, or read-only.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_with(path: impl AsRef<Path>, options: &ConnectOptions) -> Result<Self, Error> {
        Self::connect_to(path.as_ref(), Trust::Anybody, options)
    }

    fn connect_to(path: &Path, trust: Trust, options: &ConnectOptions) -> Result<Self, Error> {
        let is_registered = Membarrier::register().is_global_available();
        let label = options.label.clone().unwrap_or_else(default_label);
        // What the owner keeps of it is all that has to travel.
        let label = wire::clean_label(&label);
        let limit = options.deadline;
        let until = Deadline::after(limit);
        let hello = Hello {
            version: wire::VERSION,
            is_registered,
            resume: None,
            label,
            is_read_only: options.stance == Stance::Reader,
        };
        let (remote, handed) = Remote::connect(path, trust, hello, limit)?;
        Self::assemble(handed, Link::Remote(Box::new(remote)), (limit, until), options.stance)
    }

    pub(crate) fn embedded(handed: Handed, owner: Arc<dyn LocalOwner>) -> Result<Self, Error> {
        let until = Deadline::after(DEFAULT_DEADLINE);
        let times = (DEFAULT_DEADLINE, until);
        Self::assemble(handed, Link::Embedded(owner), times, Stance::Writer)
    }

    /// A client that waits `deadline` for each later call, and is to be there at `until`.
    fn assemble(
        handed: Handed,
        link: Link,
        (deadline, until): (Duration, Deadline),
        stance: Stance,
    ) -> Result<Self, Error> {
        let welcome = handed.welcome;
        let layout = layout_of(&welcome)?;
        let data_file = MemoryFile::from_fd(handed.data)?;
        let (data, data_file) =
            backings::map_data(data_file, welcome.data_bytes, welcome.span_bytes, stance)?;
        let fault_around = FaultAround::new(data.len_bytes());
        let vmemmap = words_of(handed.vmemmap, welcome.vmemmap_start, layout.nr_words())?;
        let index_layout =
            usize::try_from(welcome.max_files).map(IndexLayout::for_files).map_err(|_| {
                malformed(format!("an invalid index size: {} files", welcome.max_files))
            })?;
        let index = words_of(handed.index, 0, index_layout.nr_words())?;
        let ledger = MemoryFile::from_fd(handed.ledger.try_clone().map_err(|error| {
            pgmap_os::OsError::new("duplicate", "the ledger's descriptor", error)
        })?)?;
        // Another description: who keeps this one, a forked child too, does not keep the lock. A
        // client of another user than the owner's may not have one.
        let ledger = Arc::new(match ledger.reopen(pgmap_os::FileAccess::ReadWrite) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => ledger,
            reopened => reopened?,
        });
        let ledger_layout = LedgerLayout::new(&layout);
        let parts = LedgerFile::new(&ledger_layout, &index_layout);
        let words = WriteMapping::map(&ledger, 0, parts.words_bytes)?;
        let counts = WriteMapping::map(&ledger, parts.words_bytes, parts.counts_bytes)?;
        let used = WriteMapping::map(&ledger, parts.used_start, parts.used_bytes)?;
        let used = WritableCounts::over_file(used, Arc::clone(&ledger), parts.used_start);
        let vmemmap = Vmemmap::new(layout, vmemmap)
            .ok_or_else(|| malformed("a descriptor file that is too short for the pool"))?;
        let side = ProcessSide::new(
            Writable::over_file(words, Arc::clone(&ledger), 0).named("ledger word"),
            WritableCounts::over_file(counts, ledger, parts.words_bytes),
            vmemmap,
            welcome.barrier_mode(),
            handed.doorbell,
        )?;
        let pinner = Pinner::new(side, ledger_layout)
            .ok_or_else(|| malformed("a ledger that is too short"))?;
        let index = IndexReader::new(index_layout, index)
            .ok_or_else(|| malformed("an index that is too short, or is no index"))?;
        let epoch = index.backings_epoch();
        let inner = Arc::new(Inner {
            pinner,
            data,
            backings: Mapped::new(welcome.data_bytes, data_file, epoch),
            fault_around,
            is_flushed: welcome.is_flushed,
            events: Events::default(),
            index,
            used: UsedMarks::new(parts.used, used),
            // A forked child is not this client, and must not keep it alive.
            ledger: ParentFd::new(handed.ledger),
            link,
            spares: Spares::default(),
            id: ClientId(welcome.client),
            deadline: Mutex::new(deadline),
        });
        let client = Self::of(inner);
        client.watch_backings(welcome.span_bytes > welcome.data_bytes, until)?;
        Ok(client)
    }

    fn of(inner: Arc<Inner>) -> Self {
        Self { inner, keepers: Arc::default() }
    }

    /// The owner's number for this client.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.inner.id.0
    }

    /// Whether it attached read-only ([`ConnectOptions::read_only`]).
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.inner.data.stance() == Stance::Reader
    }

    /// Bytes of the pool's data, without further backings.
    #[must_use]
    pub fn pool_bytes(&self) -> u64 {
        self.inner.backings.data_bytes()
    }

    /// How often frames were detached from dead processes' devices. Whoever registered the pool's
    /// memory with a device must, after pinning and before starting a transfer, see the number it
    /// registered at, or register again.
    #[must_use]
    pub fn detach_epoch(&self) -> u64 {
        self.inner.index.detach_epoch()
    }

    /// Where the pool's data is mapped in this process: to register it with a device as one buffer.
    /// Further backings lie behind it, see [`backings`](Self::backings). A client that attached
    /// read-only cannot write there.
    #[must_use]
    pub fn pool_address(&self) -> (*mut u8, usize) {
        (self.inner.data.as_ptr(), self.inner.backings.data_bytes() as usize)
    }

    /// Says how long calls of this client, and of all its clones, wait for the owner's answer from
    /// now on: [`DEFAULT_DEADLINE`] unless something else is said. An owner that says that it is at
    /// work on a call starts its time again. A truncate or punch waits as long as its own deadline
    /// says, and a little for the answer.
    pub fn set_deadline(&self, deadline: Duration) {
        *self.inner.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
    }

    /// How long calls wait for the owner's answer.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        *self.inner.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next thing the owner says of its own accord, waiting up to `timeout` for it: frames that
    /// this client holds are to be reclaimed. Every [`AddressSpace`](crate::space::AddressSpace) of
    /// the client has been notified of it before.
    ///
    /// # Errors
    /// [`Error::OwnerGone`].
    pub fn next_event(&self, timeout: Duration) -> Result<Option<Event>, Error> {
        Ok(self.next_applied(timeout)?.map(|applied| applied.event))
    }

    fn call(&self, request: Request) -> Result<Reply, Error> {
        self.call_within(request, self.deadline())
    }

    fn call_within(&self, request: Request, limit: Duration) -> Result<Reply, Error> {
        self.try_call(request, limit).map_err(|failed| failed.error)
    }

    fn try_call(&self, request: Request, limit: Duration) -> Result<Reply, Failed> {
        let inner = &self.inner;
        if inner.pinner.side().is_forked() {
            return Err(Error::Forked.into());
        }
        inner.link.call(inner, request, limit)
    }

    /// Begins a call, which [`finish`](Self::finish) ends.
    fn begin(&self, request: Request) -> Result<BegunCall<'_>, Error> {
        if self.inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        Ok(self.inner.link.begin(request))
    }

    /// Waits for the answer to what was begun, for `limit` from now on.
    fn finish(&self, call: BegunCall<'_>, limit: Duration) -> Result<Reply, Failed> {
        let inner = &self.inner;
        if inner.pinner.side().is_forked() {
            return Err(Error::Forked.into());
        }
        inner.link.finish(inner, call, limit)
    }

    /// As [`call_within`](Self::call_within), for answers that bring descriptors.
    fn call_for_fds(
        &self,
        request: Request,
        limit: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        let inner = &self.inner;
        if inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        inner.link.call_for_fds(inner, request, limit)
    }

    /// Notifies the owner, without waiting for an answer.
    fn post(&self, request: Request) {
        if !self.inner.pinner.side().is_forked() {
            self.inner.link.post(self.inner.id, request);
        }
    }

    /// Reconnects to a restarted owner, if it is there by now.
    pub(crate) fn reconnect_now(&self) -> Result<(), Error> {
        let inner = &self.inner;
        let limit = self.deadline();
        inner.link.reconnect_now(inner, limit)
    }

    /// How often the client reconnected, to ask [`check_owner`](Self::check_owner) later.
    pub(crate) fn generation(&self) -> u64 {
        self.inner.link.generation()
    }

    /// An error if the owner of `generation` is gone.
    pub(crate) fn check_owner(&self, generation: u64) -> Result<(), Error> {
        self.inner.link.check_owner(generation)
    }

    /// Reserves frames for a file of `len_bytes` that will be called `name`. Nobody else sees it
    /// before [`FileWriter::commit`]; dropping the writer gives it up.
    ///
    /// # Errors
    /// [`Refusal::Exists`], [`Refusal::NoSpace`], [`Refusal::BadName`] and
    /// [`Refusal::BadLength`] as [`Error::Refused`].
    pub fn create(
        &self,
        name: impl AsRef<[u8]>,
        len_bytes: u64,
        folio_size: FolioSize,
    ) -> Result<FileWriter<'_>, Error> {
        let spec = CreateSpec::named(name, len_bytes, folio_size)?;
        one(self.create_batch(vec![spec])?)?
    }

    /// As [`create`](Self::create), with a writer that has a clone of the client.
    ///
    /// # Errors
    /// The same.
    pub fn create_owned(
        &self,
        name: impl AsRef<[u8]>,
        len_bytes: u64,
        folio_size: FolioSize,
    ) -> Result<OwnedWriter, Error> {
        let spec = CreateSpec::named(name, len_bytes, folio_size)?;
        self.create_owned_with(spec)
    }

    /// As [`create_owned`](Self::create_owned), of a file with rules or a place of its own.
    ///
    /// # Errors
    /// The same.
    pub fn create_owned_with(&self, spec: CreateSpec) -> Result<OwnedWriter, Error> {
        one(self.create_all(vec![spec], || self.clone())?)?
    }

    /// Takes a name away at once. The frames are free when the last hold of them is gone.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] as [`Error::Refused`].
    pub fn unlink(&self, name: impl AsRef<[u8]>) -> Result<(), Error> {
        one(self.unlink_batch(&[name])?)?
    }

    /// As [`unlink`](Self::unlink), if nobody holds any of the file: else it stays as it is. This
    /// is how the owner evicts.
    ///
    /// # Errors
    /// [`Refusal::NotFound`]; [`Refusal::Held`] names who holds it.
    pub fn unlink_unless_held(&self, name: impl AsRef<[u8]>) -> Result<(), Error> {
        one(self.unlink_unless_held_batch(&[name])?)?
    }

    /// Gives a file another name. With `Replace::Yes` it takes the place of a file that has it.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] and [`Refusal::Exists`] as [`Error::Refused`].
    pub fn rename(
        &self,
        from: impl AsRef<[u8]>,
        to: impl AsRef<[u8]>,
        replace: Replace,
    ) -> Result<(), Error> {
        let (from, to) = (FileName::new(from)?, FileName::new(to)?);
        self.done(Request::Rename { from, to, replace: replace == Replace::Yes })
    }

    /// Shortens a file to `len_bytes`, waiting up to `deadline` for holders of the folios that go.
    /// Nobody can pin those meanwhile.
    ///
    /// # Errors
    /// [`Refusal::Held`] names who still holds them when the time is over; the file is then as
    /// before. [`Refusal::BadLength`] when it would grow.
    pub fn truncate(
        &self,
        name: impl AsRef<[u8]>,
        len_bytes: u64,
        deadline: Duration,
    ) -> Result<(), Error> {
        self.truncate_or(name, len_bytes, deadline, OnDeadline::Fail).map(drop)
    }

    /// As [`truncate`](Self::truncate), and says what is to become of it when the deadline passes.
    /// Returns who still holds what was cut off: nobody, unless it was quarantined.
    ///
    /// # Errors
    /// As [`truncate`](Self::truncate).
    pub fn truncate_or(
        &self,
        name: impl AsRef<[u8]>,
        len_bytes: u64,
        deadline: Duration,
        on_deadline: OnDeadline,
    ) -> Result<Vec<ClientHold>, Error> {
        let (name, deadline_ms) = (FileName::new(name)?, millis(deadline));
        self.cut(Request::Truncate { name, len_bytes, deadline_ms, on_deadline }, deadline)
    }

    fn cut(&self, request: Request, deadline: Duration) -> Result<Vec<ClientHold>, Error> {
        let grace = self.deadline().min(CUT_GRACE);
        match self.call_within(request, deadline.saturating_add(grace))? {
            Reply::Done => Ok(Vec::new()),
            Reply::Quarantined(holders) => Ok(holders),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Takes whole pages out of the middle of a file, waiting up to `deadline` for their holders.
    /// They read as zero from then on, and their frames are free. A holder of other pages is never
    /// in the way.
    ///
    /// # Errors
    /// As [`truncate`](Self::truncate); both ends of `bytes` must be multiples of 4096, or the end
    /// that of the file.
    pub fn punch(
        &self,
        name: impl AsRef<[u8]>,
        bytes: Range<u64>,
        deadline: Duration,
    ) -> Result<(), Error> {
        self.punch_or(name, bytes, deadline, OnDeadline::Fail).map(drop)
    }

    /// As [`punch`](Self::punch), and says what is to become of it when the deadline passes.
    /// Returns who still holds what was cut out, which is then quarantined.
    ///
    /// # Errors
    /// As [`punch`](Self::punch).
    pub fn punch_or(
        &self,
        name: impl AsRef<[u8]>,
        bytes: Range<u64>,
        deadline: Duration,
        on_deadline: OnDeadline,
    ) -> Result<Vec<ClientHold>, Error> {
        let (name, deadline_ms) = (FileName::new(name)?, millis(deadline));
        let (offset, len_bytes) = (bytes.start, bytes.end.saturating_sub(bytes.start));
        self.cut(Request::Punch { name, offset, len_bytes, deadline_ms, on_deadline }, deadline)
    }

    /// Calls off the truncate or punch of a file that waits for holders, whoever asked for it. That
    /// call ends with [`Refusal::CalledOff`], and the file is as before.
    ///
    /// # Errors
    /// [`Refusal::NotFound`]; [`Refusal::Invalid`] if nothing waits there.
    pub fn cancel_cut(&self, name: impl AsRef<[u8]>) -> Result<(), Error> {
        self.done(Request::CancelCut(FileName::new(name)?))
    }

    /// Stores `value` in a word of this client's ledger, as one could that keeps no rules.
    #[cfg(feature = "sim")]
    #[doc(hidden)]
    pub fn scribble(&self, index: usize, value: u64) {
        self.inner.pinner.side().scribble(index, value);
    }

    /// Asks for commits, without waiting for the answer.
    pub(crate) fn begin_commit(&self, specs: Vec<CommitSpec>) -> Result<BegunCommit<'_>, Error> {
        debug_assert!(specs.len() <= MAX_BATCH);
        let ids = specs.iter().map(|spec| spec.id).collect();
        let call = self.begin(Request::Commit(specs))?;
        Ok(BegunCommit { ids, named: Vec::new(), asked: AskedSpares::default(), call })
    }

    /// Waits for the answer to [`begin_commit`](Self::begin_commit) or
    /// [`begin_puts`](Self::begin_puts), for `limit` from now on.
    pub(crate) fn finish_commit(
        &self,
        begun: BegunCommit<'_>,
        limit: Duration,
    ) -> Result<Vec<Result<Committed, Refusal>>, Error> {
        let BegunCommit { ids, named, call, .. } = begun;
        let name = call.name();
        match self.finish(call, limit) {
            Ok(Reply::Committed(results)) if named.is_empty() && results.len() == ids.len() => {
                Ok(results)
            }
            Ok(Reply::Put(answers)) if !named.is_empty() && answers.len() == ids.len() => {
                Ok(self.keep_spares(&named, answers))
            }
            Ok(reply) => Err(unexpected(&reply)),
            Err(Failed { error: Error::OwnerGone { why }, may_be_done }) => {
                let lost = |id| Err(lost_draft(id, &why, may_be_done, name));
                Ok(ids.into_iter().map(lost).collect())
            }
            Err(failed) => Err(failed.error),
        }
    }

    pub(crate) fn ask_lease(&self, spec: LeaseSpec) -> Result<Vec<LeaseGrant>, Error> {
        match self.call(Request::Lease(spec))? {
            Reply::Leased { grants, .. } => Ok(grants),
            reply => Err(unexpected(&reply)),
        }
    }

    pub(crate) fn release_leases(&self, leases: Vec<u64>) {
        // The slots are empty, and those are the hold.
        self.post(Request::ReleaseLeases(leases));
    }

    pub(crate) fn abort_ids(&self, ids: Vec<u64>) {
        self.post(Request::Abort(ids));
    }
}

/// Commits that were asked for, and not answered yet.
#[derive(Debug)]
pub(crate) struct BegunCommit<'c> {
    ids: Vec<u64>,
    /// What they are named only now; none for a plain commit.
    named: Vec<CreateSpec>,
    /// The spares that they ask for.
    asked: AskedSpares,
    call: BegunCall<'c>,
}

/// Why a draft was not committed whose owner is gone, who may have committed it before.
fn lost_draft(id: u64, why: &str, may_be_done: bool, call: &str) -> Refusal {
    let why = format!(
        "the owner that reserved it is gone ({why}); unless the file is there, put it again"
    );
    let refusal = Refusal::NoDraft { id, why };
    if may_be_done { refusal.after_a_lost(call) } else { refusal }
}

fn one<T>(answers: Vec<T>) -> Result<T, Error> {
    let nr = answers.len();
    answers
        .into_iter()
        .next()
        .ok_or_else(|| Error::Protocol { what: format!("{nr} answers to one question") })
}

/// Words that the owner writes, which begin at `start` of the file it handed out.
fn words_of(fd: OwnedFd, start: u64, nr_words: usize) -> Result<Readable, Error> {
    let file = Arc::new(MemoryFile::from_fd(fd)?);
    let mapping = ReadMapping::map(&file, start, nr_words as u64 * 8)?;
    Ok(Readable::new(mapping).of_file(&file, start))
}

/// The pool's shape as its owner says, if that is possible.
fn layout_of(welcome: &Welcome) -> Result<VmemmapLayout, Error> {
    let Welcome { nr_pages, smallest_level, data_bytes, .. } = *welcome;
    let layout = Level::from_number(smallest_level)
        .and_then(|smallest| VmemmapLayout::for_folios(nr_pages, smallest));
    let layout = layout.ok_or_else(|| {
        let folios = format!("folios of level {smallest_level} and larger");
        malformed(format!("an invalid pool size: {nr_pages} pages in {folios}"))
    })?;
    if data_bytes == 0 || data_bytes > layout.nr_pages() * PAGE_BYTES {
        let nr_pages = layout.nr_pages();
        let what = format!("an invalid data size: {data_bytes} bytes for {nr_pages} pages");
        return Err(malformed(what));
    }
    Ok(layout)
}

fn malformed(what: impl Into<String>) -> Error {
    Error::Protocol { what: what.into() }
}

fn unexpected(reply: &Reply) -> Error {
    let mut what = format!("{reply:?}");
    what.truncate(what.char_indices().nth(80).map_or(what.len(), |(at, _)| at));
    Error::Protocol { what: format!("an unexpected reply: {what}") }
}
