//! The pool's backings as a client has them mapped: one range of addresses for the pool's frames,
//! the data at its start, and each further backing where its frames are.
//!
//! # States
//!
//! ```text
//!   not mapped ── at the start, or when a frame of it is asked for ──▶ mapped
//!        ▲                                                               │
//!        └── it was taken out of the pool, or its device went away ──────┘
//! ```
//!
//! # Who may touch what
//! Frames below [`Mapped::end_bytes`] can be looked at: each that a file can have there is in a
//! backing that is mapped. That is one comparison on the path of a pin. Where it says no, the lock
//! is taken, and the owner asked for what is not mapped yet. Only who has the lock changes it; the
//! owner is not asked under that lock, but under `asking`, so that its answers are taken in order.
//! What is gone is given up by the thread of `device_watch` alone: address spaces are notified
//! then, and whoever asks for frames may be inside one.
//!
//! # Orderings
//! `end_bytes` is Relaxed. It publishes no memory of this process: the kernel has the mapping, for
//! all threads, before it rises.
//!
//! # Lost races
//! Who reads an old, lower end takes the lock. Who reads an old, higher one would look at frames of
//! a backing that is gone: nobody is given such frames, for the owner takes a backing out when none
//! of its frames is anybody's, and gives them to no other as long as this client lives. Of a device
//! that went away it meets the end of a file, which is an error.
//!
//! # Differs from Linux
//! There a process sees all memory through one direct map.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::pin::ClientSide;
use pgmap_os::sync::{Condvar, Mutex, MutexGuard};
use pgmap_os::{MemoryFile, MemoryKind, OsError, PageSize};

use crate::client::data::{Data, Stance};
use crate::client::{Client, Inner, unexpected};
use crate::deadline::{Deadline, millis};
use crate::device_watch::{HasDevices, NextLook};
use crate::error::Error;
use crate::pool::backing::BackingOptions;
use crate::pool::backing::DATA_NAME;
use crate::pool::options::first_backing_bytes;
use crate::refusal::Refusal;
use crate::wire::{BackingInfo, Event, Reply, Request};

/// How long the owner is asked for what changed before it is asked another time.
const LOOK_LIMIT: Duration = Duration::from_millis(500);

/// A backing that is mapped; the data is number 0.
#[derive(Debug)]
pub(crate) struct MappedBacking {
    id: u64,
    name: String,
    /// Where its frames start, in bytes of the pool.
    start: u64,
    end: u64,
    /// Where in its file they start.
    offset: u64,
    file: Arc<MemoryFile>,
}

impl MappedBacking {
    fn is_on_device(&self) -> bool {
        self.file.kind() == MemoryKind::DevDax
    }
}

/// What of the pool's range of addresses has something behind it.
#[derive(Debug)]
pub(crate) struct Mapped {
    data_bytes: u64,
    end_bytes: AtomicU64,
    parts: Mutex<Vec<MappedBacking>>,
    /// Who asks the owner for backings has it.
    asking: Turn,
    /// Which change of the backings was last taken note of: only by the thread that looks.
    seen: AtomicU64,
}

/// A lock that is waited for up to a deadline: whoever has it waits for the owner.
#[derive(Debug, Default)]
struct Turn {
    is_taken: Mutex<bool>,
    given_back: Condvar,
}

struct Taken<'t>(&'t Turn);

impl Turn {
    /// `None` if somebody else has it until the deadline.
    fn take(&self, deadline: Deadline) -> Option<Taken<'_>> {
        let mut is_taken = self.is_taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *is_taken {
            let left = deadline.left();
            if left.is_zero() {
                return None;
            }
            let waited = self.given_back.wait_timeout(is_taken, left);
            is_taken = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *is_taken = true;
        Some(Taken(self))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.is_taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.given_back.notify_all();
    }
}

impl Mapped {
    /// The data alone, if it is there; `epoch` says how often backings changed before.
    pub(crate) fn new(data_bytes: u64, data: Option<MemoryFile>, epoch: u64) -> Self {
        let name = DATA_NAME.into();
        let data = data.map(|file| {
            let file = Arc::new(file);
            MappedBacking { id: 0, name, start: 0, end: data_bytes, offset: 0, file }
        });
        let end_bytes = AtomicU64::new(if data.is_some() { data_bytes } else { 0 });
        let parts = Mutex::new(data.into_iter().collect());
        Self { data_bytes, end_bytes, parts, asking: Turn::default(), seen: AtomicU64::new(epoch) }
    }

    /// Bytes of the pool's data.
    pub(crate) const fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Up to where every frame that a file can have is mapped.
    #[inline(always)]
    pub(crate) fn end_bytes(&self) -> u64 {
        // Relaxed: see the head of this file.
        self.end_bytes.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<MappedBacking>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is mapped: bytes of the pool, and where in which file the first of them is.
    pub(crate) fn files(&self) -> Vec<(Range<u64>, u64, Arc<MemoryFile>)> {
        let parts = self.lock();
        let file =
            |part: &MappedBacking| (part.start..part.end, part.offset, Arc::clone(&part.file));
        parts.iter().map(file).collect()
    }

    /// Whether these bytes of the pool are mapped.
    pub(crate) fn has_bytes(&self, bytes: &Range<u64>) -> bool {
        self.lock().iter().any(|part| part.start <= bytes.start && bytes.end <= part.end)
    }

    /// Whether a part of it is on a device.
    pub(crate) fn has_device(&self) -> bool {
        self.lock().iter().any(MappedBacking::is_on_device)
    }

    /// Lets pins go without the lock up to the first place where a backing is that is not mapped,
    /// or could be one day.
    fn set_end(&self, parts: &[MappedBacking]) {
        let mut end = 0;
        let mut at = Some(0);
        while let Some(part) = at.and_then(|at| parts.iter().find(|part| part.start == at)) {
            end = part.end;
            at = Some(first_backing_bytes(end));
        }
        // Relaxed: see the head of this file.
        self.end_bytes.store(end, Ordering::Relaxed);
    }
}

/// Maps the pool's data, at the start of a range of addresses for all frames of the pool where
/// further backings are to lie beside it. `None` for the data of a device that is gone: then there
/// is nothing to map, and the client can still ask who holds what.
///
/// # Errors
/// As [`Data::map`].
pub(super) fn map_data(
    data: MemoryFile,
    data_bytes: u64,
    span_bytes: u64,
    stance: Stance,
) -> Result<(Data, Option<MemoryFile>), OsError> {
    // An owner that gave the device up hands out an empty file.
    let is_gone = |data: &MemoryFile| !data.is_present() || data.len_bytes() == 0;
    if span_bytes <= data_bytes {
        return match Data::map(&data, data_bytes, stance) {
            Err(_) if is_gone(&data) => {
                Ok((Data::span(data_bytes, PageSize::Huge1G, stance)?, None))
            }
            mapped => Ok((mapped?, Some(data))),
        };
    }
    let span = Data::span(span_bytes, PageSize::Huge1G, stance)?;
    match span.show(0, &data, 0, data_bytes) {
        Err(_) if is_gone(&data) => Ok((span, None)),
        shown => shown.map(|()| (span, Some(data))),
    }
}

impl Client {
    /// Describes the pool's backings, in the order of their frames: its data, and those that were
    /// added.
    ///
    /// # Errors
    /// [`Error::OwnerGone`].
    pub fn backings(&self) -> Result<Vec<BackingInfo>, Error> {
        self.map_backings(self.deadline())
    }

    /// Adds a backing to the pool: memory in `path`, which the owner opens. See
    /// [`Owner::add_backing`](crate::Owner::add_backing).
    ///
    /// # Errors
    /// As there, as [`Error::Refused`].
    pub fn add_backing(&self, options: &BackingOptions) -> Result<(), Error> {
        use std::os::unix::ffi::OsStrExt;
        let Some(path) = &options.path else {
            let why = "memory without a name is added by the process of the owner".into();
            return Err(Refusal::Invalid { why }.into());
        };
        let whole = std::path::absolute(path)
            .map_err(|error| OsError::new("find", path.display().to_string(), error))?;
        let path = whole.as_os_str().as_bytes().to_vec();
        let (size_bytes, name) = (options.size_bytes, options.name.clone());
        let nodes = options.nodes.iter().copied().collect();
        self.done(Request::AddBacking { path, size_bytes, name, nodes })
    }

    /// Gives the pool `by_bytes` more memory, beside its data and of the same kind. See
    /// [`Owner::grow`](crate::Owner::grow).
    ///
    /// # Errors
    /// As there, as [`Error::Refused`].
    pub fn grow(&self, by_bytes: u64) -> Result<(), Error> {
        self.done(Request::Grow { by_bytes })
    }

    /// Takes a backing out of the pool, waiting up to `deadline` for holders of its frames. See
    /// [`Owner::remove_backing`](crate::Owner::remove_backing).
    ///
    /// # Errors
    /// As there, as [`Error::Refused`].
    pub fn remove_backing(&self, name: &str, deadline: Duration) -> Result<(), Error> {
        let request = Request::RemoveBacking { name: name.into(), deadline_ms: millis(deadline) };
        self.cut(request, deadline).map(drop)
    }

    /// Has everybody let go of a part of the pool before its memory goes, as before a device is
    /// unplugged: all of a backing, or `bytes` of its medium, a file or a device, rounded up to
    /// whole pages of it. Files of which some lies there cannot be pinned from now on, nor changed,
    /// and nothing new is put there; holders are asked for what they hold, and waited for up to
    /// `deadline`.
    ///
    /// A further backing as a whole is given up then: owner and clients, these within 200 ms, have
    /// nothing of it mapped or open, and its files are errors that name it until it is added again
    /// ([`add_backing`](Self::add_backing)). Anything else stays out of use until
    /// [`undo_drain`](Self::undo_drain) or the end of the owner.
    ///
    /// # Errors
    /// [`Refusal::Held`] names who holds what after `deadline`; [`Refusal::InUse`] says what else
    /// is in the way: a file that is not committed, a device of a dead client, another drain, a
    /// file that is being cut. [`Refusal::NoBacking`] and [`Refusal::Invalid`] for what is no part
    /// of the pool. Everything is as before then.
    pub fn drain_backing(
        &self,
        name: &str,
        bytes: Option<Range<u64>>,
        deadline: Duration,
    ) -> Result<(), Error> {
        let deadline_ms = millis(deadline);
        let request = Request::DrainPart { backing: name.into(), bytes, deadline_ms };
        self.cut(request, deadline).map(drop)
    }

    /// Has what was drained of a backing, of `bytes` of it or of all, be in use again.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] when nothing of it is drained; [`Refusal::NoBacking`] when it was
    /// drained as a whole, and is to be added again.
    pub fn undo_drain(&self, name: &str, bytes: Option<Range<u64>>) -> Result<(), Error> {
        self.done(Request::UndoDrain { backing: name.into(), bytes })
    }

    /// Makes sure that `run` is mapped, without a call where it is known to be.
    ///
    /// # Errors
    /// [`Refusal::NoBacking`] when the backing is not there; those of a call.
    #[inline(always)]
    pub(crate) fn reach(&self, run: PfnRange) -> Result<(), Error> {
        if run.byte_range().end <= self.inner.backings.end_bytes() {
            return Ok(());
        }
        self.reach_far(run)
    }

    #[cold]
    fn reach_far(&self, run: PfnRange) -> Result<(), Error> {
        let bytes = run.byte_range();
        if bytes.end > self.inner.data.len_bytes() {
            return Err(pgmap_mm::error::PinError::Outside { run }.into());
        }
        // Before any lock: in a forked child nobody may ever give it back.
        if self.inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        let is_there = |part: &MappedBacking| part.start <= bytes.start && bytes.end <= part.end;
        if self.inner.backings.lock().iter().any(is_there) {
            return Ok(());
        }
        let infos = self.map_backings(self.deadline())?;
        if self.inner.backings.lock().iter().any(is_there) {
            return Ok(());
        }
        let has = |info: &BackingInfo| {
            let nr_pages = info.size_bytes / PAGE_BYTES;
            (info.first_pfn..info.first_pfn.saturating_add(nr_pages)).contains(&run.start())
        };
        let info = infos.into_iter().find(has);
        let (backing, why) = match info {
            Some(BackingInfo { name, missing: Some(why), .. }) => (name, why),
            Some(info) => (info.name, format!("frames {run} are not mapped here")),
            None => (String::new(), format!("it had frames {run}, and was taken out")),
        };
        Err(Refusal::NoBacking { backing, why }.into())
    }

    /// Asks the owner for the backings within `limit`, and maps those that are not mapped yet. The
    /// limit holds however many threads ask: each has waited for those before it.
    pub(super) fn map_backings(&self, limit: Duration) -> Result<Vec<BackingInfo>, Error> {
        let inner = &self.inner;
        // In a forked child nobody may ever give the turn back.
        if inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        let deadline = Deadline::after(limit);
        let Some(_asking) = inner.backings.asking.take(deadline) else {
            let waited_ms = millis(limit);
            return Err(Error::TimedOut { call: "backings", waited_ms, owner_pid: 0 });
        };
        let asked = self.call_for_fds(Request::Backings, deadline.left());
        let (infos, fds) = match asked? {
            (Reply::Backings(infos), fds) => (infos, fds),
            (reply, _) => return Err(unexpected(&reply)),
        };
        let there: Vec<&BackingInfo> = infos.iter().filter(|info| info.missing.is_none()).collect();
        if there.len() != fds.len() {
            let what = format!("{} backings with {} descriptors", there.len(), fds.len());
            return Err(Error::Protocol { what });
        }
        let mut failed = None;
        let mut parts = inner.backings.lock();
        for (info, fd) in there.into_iter().zip(fds) {
            if parts.iter().any(|part| part.id == info.id) {
                continue;
            }
            match self.map_backing(info, fd) {
                Ok(part) => parts.push(part),
                Err(error) => failed = Some(error),
            }
        }
        inner.backings.set_end(&parts);
        failed.map_or(Ok(infos), Err)
    }

    fn map_backing(
        &self,
        info: &BackingInfo,
        fd: std::os::fd::OwnedFd,
    ) -> Result<MappedBacking, Error> {
        let odd = || Error::Protocol { what: format!("a backing at frame {}", info.first_pfn) };
        let (id, name) = (info.id, info.name.clone());
        let start = info.first_pfn.checked_mul(PAGE_BYTES).ok_or_else(odd)?;
        let data_bytes = self.inner.backings.data_bytes;
        let len_bytes = if id == 0 { data_bytes } else { info.size_bytes };
        let end = start.checked_add(len_bytes).ok_or_else(odd)?;
        let least = if id == 0 { 0 } else { data_bytes };
        if start < least || end > self.inner.data.len_bytes() {
            return Err(odd());
        }
        let file = Arc::new(MemoryFile::from_fd(fd)?);
        self.inner.data.show(start, &file, info.offset_bytes, len_bytes)?;
        Ok(MappedBacking { id, name, start, end, offset: info.offset_bytes, file })
    }

    /// Gives up parts: nothing of them is mapped or open here any more, also where an address space
    /// shows it.
    pub(crate) fn give_up(&self, is_to_go: impl Fn(&MappedBacking) -> bool) -> Result<(), Error> {
        let inner = &self.inner;
        let (mut gone, mut failed) = (Vec::new(), None);
        let mut parts = inner.backings.lock();
        while let Some(place) = parts.iter().position(&is_to_go) {
            let part = parts.swap_remove(place);
            inner.backings.set_end(&parts);
            let page = part.file.page_size().len_bytes();
            let len_bytes = (part.end - part.start).next_multiple_of(page);
            match inner.data.hide(part.start, len_bytes).and_then(|()| part.file.abandon()) {
                Ok(()) => gone.push(part),
                Err(error) => {
                    parts.push(part);
                    inner.backings.set_end(&parts);
                    failed = Some(error);
                    break;
                }
            }
        }
        drop(parts);
        for part in &gone {
            tracing::warn!(backing = %part.name, "it is gone, and was given up");
            inner.events.tell_gone(match part.id {
                0 => Event::DeviceGone,
                _ => Event::BackingGone {
                    backing: part.name.clone(),
                    first_pfn: part.start / PAGE_BYTES,
                    nr_pages: (part.end - part.start) / PAGE_BYTES,
                },
            });
        }
        if !gone.is_empty() {
            inner.link.interrupt(inner.id);
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Maps the further backings where there `is_room` for some, until a deadline, and has those
    /// that go and come be noticed.
    pub(super) fn watch_backings(&self, is_room: bool, until: Deadline) -> Result<(), Error> {
        if is_room {
            // What cannot be mapped now is an error where it is needed.
            drop(self.map_backings(until.left()));
        }
        let backings = &self.inner.backings;
        // A client that came while the device is away waits for it too.
        if is_room || backings.has_device() || backings.end_bytes() == 0 {
            crate::device_watch::watch(&self.inner)?;
        }
        Ok(())
    }

    /// Gives up what of the pool's memory is gone, and takes up what came, as the owner says.
    fn look_at_backings(&self) -> Result<(), Error> {
        let backings = &self.inner.backings;
        let is_closed = self.inner.index.is_closed();
        let is_gone =
            |part: &MappedBacking| part.is_on_device() && (is_closed || !part.file.is_present());
        self.give_up(is_gone)?;
        let epoch = self.inner.index.backings_epoch();
        // Relaxed: only this thread uses it.
        if is_closed || backings.seen.load(Ordering::Relaxed) == epoch {
            return Ok(());
        }
        let infos = self.map_backings(LOOK_LIMIT)?;
        // The data stays until its device is seen to be gone from here: its owner may have given
        // it up for itself alone.
        let is_no_more = |part: &MappedBacking| {
            let mut same = infos.iter().filter(|info| info.id == part.id);
            part.id != 0 && same.all(|info| info.missing.is_some())
        };
        self.give_up(is_no_more)?;
        // Relaxed: as above.
        backings.seen.store(epoch, Ordering::Relaxed);
        Ok(())
    }

    /// The file that the frames of `run` lie in, and where.
    ///
    /// # Errors
    /// As [`reach`](Self::reach).
    pub(crate) fn file_of(&self, run: PfnRange) -> Result<(Arc<MemoryFile>, u64), Error> {
        self.reach(run)?;
        let at = run.byte_range().start;
        self.file_at(at).ok_or_else(|| {
            let why = format!("frames {run} are not mapped here");
            Refusal::NoBacking { backing: String::new(), why }.into()
        })
    }

    /// The file that byte `at` of the pool lies in, and where. `None` if it is not mapped.
    pub(crate) fn file_at(&self, at: u64) -> Option<(Arc<MemoryFile>, u64)> {
        let parts = self.inner.backings.lock();
        let part = parts.iter().find(|part| (part.start..part.end).contains(&at))?;
        Some((Arc::clone(&part.file), part.offset + (at - part.start)))
    }
}

impl HasDevices for Inner {
    fn look(inner: &Arc<Self>) -> NextLook {
        let client = Client::of(Arc::clone(inner));
        if let Err(error) = client.look_at_backings() {
            tracing::debug!(%error, "what of the pool's memory went or came is looked at again");
        }
        NextLook::Again
    }
}
