//! The pool's backings as a client has them mapped: one stretch of addresses for the pool's frames,
//! the data at its start, and each further backing where its frames are.
//!
//! # States
//!
//! ```text
//!   not mapped ── asked for, or at the start ──▶ mapped ── asked again, and it is no more ──▶ gone
//! ```
//!
//! # Who may touch what
//! Frames below [`Mapped::end_bytes`] can be looked at: each that a file can have there is in a
//! backing that is mapped. That is one comparison on the path of a pin. Where it says no, the lock
//! is taken, and the owner asked for what is not mapped yet. Only who has the lock changes it.
//!
//! # Orderings
//! `end_bytes` is Relaxed. It publishes no memory of this process: the kernel has the mapping, for
//! all threads, before it rises.
//!
//! # Lost races
//! Who reads an old, lower end takes the lock. Who reads an old, higher one would look at frames of
//! a backing that is gone: nobody is given such frames, for the owner takes a backing out when none
//! of its frames is anybody's, and gives them to no other as long as this client lives.
//!
//! # Differs from Linux
//! There a process sees all memory through one direct map.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::pfn::PfnRange;
use pgmap_os::sync::{Mutex, MutexGuard};
use pgmap_os::{MemoryFile, OsError, PageSize, WriteMapping};

use crate::client::{Client, unexpected};
use crate::error::Error;
use crate::pool::options::first_backing_bytes;
use crate::refusal::Refusal;
use crate::wire::{BackingInfo, Reply, Request};

/// A further backing that is mapped.
#[derive(Debug)]
struct Part {
    id: u64,
    /// Where its frames start, in bytes of the pool.
    start: u64,
    end: u64,
    /// Where in its file they start.
    offset: u64,
    file: Arc<MemoryFile>,
}

/// What of the pool's stretch of addresses has something behind it.
#[derive(Debug)]
pub(crate) struct Mapped {
    data_bytes: u64,
    end_bytes: AtomicU64,
    parts: Mutex<Vec<Part>>,
}

impl Mapped {
    pub(crate) const fn new(data_bytes: u64) -> Self {
        let end_bytes = AtomicU64::new(data_bytes);
        Self { data_bytes, end_bytes, parts: Mutex::new(Vec::new()) }
    }

    /// Bytes of the pool's data, which is always mapped.
    pub(crate) const fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Up to where every frame that a file can have is mapped.
    #[inline(always)]
    pub(crate) fn end_bytes(&self) -> u64 {
        // Relaxed: see the head of this file.
        self.end_bytes.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Part>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Maps the data at the start of a stretch of addresses for all frames of the pool.
pub(super) fn map_span(
    data: &MemoryFile,
    data_bytes: u64,
    span_bytes: u64,
) -> Result<WriteMapping, OsError> {
    let span = WriteMapping::span(span_bytes, PageSize::Huge1G)?;
    // An owner that gave the device up hands out an empty file.
    let is_gone = !data.is_present() || data.len_bytes() == 0;
    match span.show(0, data, 0, data_bytes) {
        Err(_) if is_gone => Ok(span),
        shown => shown.map(|()| span),
    }
}

impl Client {
    /// Describes the pool's backings, in the order of their frames: its data, and those that were
    /// added.
    ///
    /// # Errors
    /// [`Error::OwnerGone`].
    pub fn backings(&self) -> Result<Vec<BackingInfo>, Error> {
        self.map_backings()
    }

    /// Adds a backing to the pool: memory in `path`, which the owner opens. See
    /// [`Owner::add_backing`](crate::Owner::add_backing).
    ///
    /// # Errors
    /// As there, as [`Error::Refused`].
    pub fn add_backing(&self, options: &crate::BackingOptions) -> Result<(), Error> {
        use std::os::unix::ffi::OsStrExt;
        let Some(path) = &options.path else {
            let why = "memory without a name is added by the process of the owner".into();
            return Err(Refusal::Invalid { why }.into());
        };
        let whole = std::path::absolute(path)
            .map_err(|error| OsError::new("find", path.display().to_string(), error))?;
        let path = whole.as_os_str().as_bytes().to_vec();
        let (size_bytes, name) = (options.size_bytes, options.name.clone());
        self.done(Request::AddBacking { path, size_bytes, name })
    }

    /// Takes a backing out of the pool, waiting up to `deadline_ms` milliseconds for holders of its
    /// frames. See [`Owner::remove_backing`](crate::Owner::remove_backing).
    ///
    /// # Errors
    /// As there, as [`Error::Refused`].
    pub fn remove_backing(&self, name: &str, deadline_ms: u64) -> Result<(), Error> {
        self.cut(Request::RemoveBacking { name: name.into(), deadline_ms }, deadline_ms).map(drop)
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
        let is_there = |part: &Part| part.start <= bytes.start && bytes.end <= part.end;
        if self.inner.backings.lock().iter().any(is_there) {
            return Ok(());
        }
        let infos = self.map_backings()?;
        if self.inner.backings.lock().iter().any(is_there) {
            return Ok(());
        }
        let start_of = |info: &BackingInfo| info.first_pfn * PAGE_BYTES;
        let info = infos.into_iter().rev().find(|info| start_of(info) <= bytes.start);
        let (backing, why) = match info {
            Some(BackingInfo { name, missing: Some(why), .. }) => (name, why),
            Some(info) => (info.name, format!("frames {run} are not mapped here")),
            None => (String::new(), format!("none has frames {run}")),
        };
        Err(Refusal::NoBacking { backing, why }.into())
    }

    /// Asks the owner for the backings, maps those that are not mapped yet, and gives up those that
    /// are no more.
    pub(super) fn map_backings(&self) -> Result<Vec<BackingInfo>, Error> {
        let inner = &self.inner;
        let mut parts = inner.backings.lock();
        let resume = |bell| inner.resume(bell);
        let asked = inner.link.backings(inner.id, self.deadline(), resume, &inner.ledger);
        let (infos, fds) = match asked? {
            (Reply::Backings(infos), fds) => (infos, fds),
            (reply, _) => return Err(unexpected(&reply)),
        };
        let there: Vec<&BackingInfo> =
            infos.iter().filter(|info| info.id != 0 && info.missing.is_none()).collect();
        if there.len() != fds.len() {
            let what = format!("{} backings with {} descriptors", there.len(), fds.len());
            return Err(Error::Protocol { what });
        }
        let is_gone = |part: &Part| there.iter().all(|info| info.id != part.id);
        let gone: Vec<Part> = parts.extract_if(.., |part| is_gone(part)).collect();
        if let Some(first) = gone.iter().map(|part| part.start).min() {
            // Relaxed: see the head of this file.
            inner.backings.end_bytes.fetch_min(first, Ordering::Relaxed);
        }
        for part in gone {
            inner.data.hide(part.start, part.end - part.start)?;
        }
        let mut failed = None;
        for (info, fd) in there.into_iter().zip(fds) {
            if parts.iter().any(|part| part.id == info.id) {
                continue;
            }
            match self.map_backing(info, fd) {
                Ok(part) => parts.push(part),
                Err(error) => failed = Some(error),
            }
        }
        self.raise_end(&parts);
        failed.map_or(Ok(infos), Err)
    }

    fn map_backing(&self, info: &BackingInfo, fd: std::os::fd::OwnedFd) -> Result<Part, Error> {
        let odd = || Error::Protocol { what: format!("a backing at frame {}", info.first_pfn) };
        let start = info.first_pfn.checked_mul(PAGE_BYTES).ok_or_else(odd)?;
        let end = start.checked_add(info.size_bytes).ok_or_else(odd)?;
        if start < self.inner.backings.data_bytes || end > self.inner.data.len_bytes() {
            return Err(odd());
        }
        let file = Arc::new(MemoryFile::from_fd(fd)?);
        self.inner.data.show(start, &file, info.offset_bytes, info.size_bytes)?;
        Ok(Part { id: info.id, start, end, offset: info.offset_bytes, file })
    }

    /// Lets pins go without the lock up to the first place where a backing is that is not mapped,
    /// or could be one day.
    fn raise_end(&self, parts: &[Part]) {
        let backings = &self.inner.backings;
        let mut end = backings.data_bytes;
        let next = |end| parts.iter().find(|part| part.start == first_backing_bytes(end));
        while let Some(part) = next(end) {
            end = part.end;
        }
        // Relaxed: see the head of this file.
        backings.end_bytes.store(end, Ordering::Relaxed);
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
        let inner = &self.inner;
        if at < inner.backings.data_bytes {
            return Some((Arc::clone(&inner.data_file), at));
        }
        let parts = inner.backings.lock();
        let part = parts.iter().find(|part| (part.start..part.end).contains(&at))?;
        Some((Arc::clone(&part.file), part.offset + (at - part.start)))
    }
}
