//! An open file.

use std::ops::Range;

use pgmap_mm::descriptor::FolioFlags;
use pgmap_mm::error::PinError;
use pgmap_mm::extent::Extent;
use pgmap_mm::index::FileEntry;
use pgmap_mm::ledger::Agent;
use pgmap_mm::pin::ClientSide;
use pgmap_mm::prot::Access;

use crate::client::Client;
use crate::client::look_up::MAX_ATTEMPTS;
use crate::client::owned::OwnedPin;
use crate::client::pinned::{FilePin, Term};
use crate::deadline::Deadline;
use crate::error::Error;
use crate::metadata::{FileMetadata, UserMetadata};
use crate::refusal::Refusal;
use crate::wire::LeaseSpec;

/// A committed file. Opening one takes no hold: pins do.
///
/// The handle names the file, not its name: after a rename it is the same file, after an unlink it
/// is stale, even when another file has got the name (T12).
#[derive(Debug, Clone)]
pub struct File<'c> {
    client: &'c Client,
    entry: FileEntry,
}

impl<'c> File<'c> {
    pub(crate) const fn new(client: &'c Client, entry: FileEntry) -> Self {
        Self { client, entry }
    }

    /// The file's number, never given to another.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.entry.id.0
    }

    /// Its length in bytes when it was opened or last pinned.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.entry.len_bytes
    }

    /// What it carries beside its contents: user metadata and a checksum. Read from shared memory,
    /// without a call unless the file was renamed since it was opened.
    ///
    /// # Errors
    /// [`Refusal::Stale`] when the file was unlinked or replaced.
    pub fn metadata(&self) -> Result<FileMetadata, Error> {
        let (inner, id) = (&self.client.inner, self.entry.id);
        if inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        let deadline = Deadline::after(self.client.deadline());
        let mut place = self.entry.entry;
        for _ in 0..MAX_ATTEMPTS {
            if let Some((user, checksum)) = inner.index.metadata(place, id) {
                return Ok(FileMetadata { user: UserMetadata::new(user)?, checksum });
            }
            if let Some(entry) = self.client.locate(id.0, deadline.left())? {
                place = entry.entry;
            }
        }
        Err(Refusal::Stale { id: id.0 }.into())
    }

    /// Extents it had when it was opened or last pinned.
    #[must_use]
    pub const fn nr_extents(&self) -> usize {
        self.entry.extents.len()
    }

    /// Pins all of it for a short while.
    ///
    /// # Errors
    /// As [`pin`](Self::pin).
    #[inline]
    pub fn pin_all(&self) -> Result<FilePin<'c>, Error> {
        self.take(None, Agent::Cpu, Term::Short)
    }

    /// Pins `bytes` of it for a short while, without a call.
    ///
    /// # Errors
    /// [`Refusal::Stale`] when the file was unlinked or replaced; [`Error::OutOfRange`] when the
    /// range is not inside it, perhaps because it was truncated; [`Error::Pin`] when the thread or
    /// client holds too many pins.
    #[inline]
    pub fn pin(&self, bytes: Range<u64>) -> Result<FilePin<'c>, Error> {
        self.take(Some(bytes), Agent::Cpu, Term::Short)
    }

    /// As [`pin`](Self::pin), for a device: should this process die, the frames are not given to
    /// anybody while the device can still write to them.
    ///
    /// # Errors
    /// As [`pin`](Self::pin).
    #[inline]
    pub fn pin_for_device(&self, bytes: Range<u64>) -> Result<FilePin<'c>, Error> {
        self.take(Some(bytes), Agent::Device, Term::Short)
    }

    /// As [`pin_for_device`](Self::pin_for_device), with a pin that has a clone of the client.
    ///
    /// # Errors
    /// As [`pin`](Self::pin).
    pub fn pin_for_device_owned(&self, bytes: Range<u64>) -> Result<OwnedPin, Error> {
        Ok(self.pin_for_device(bytes)?.into_owned())
    }

    /// Pins long-term: counted per folio, allowed where the pool's policy says so.
    ///
    /// # Errors
    /// As [`pin`](Self::pin), and [`PinError::NeedsConsent`].
    pub fn pin_longterm(&self, bytes: Range<u64>) -> Result<FilePin<'c>, Error> {
        self.take(Some(bytes), Agent::Cpu, Term::Longterm)
    }

    /// Pins long-term, asking the owner where the file's rules or the pool's holder want to be
    /// asked. What is granted may be a lease: [`Event::LeaseRecalled`](crate::Event::LeaseRecalled)
    /// then asks for it back, and [`Client::next_event`] says so.
    ///
    /// # Errors
    /// [`Refusal::Denied`]: `EOPNOTSUPP` when the type or the file's rules forbid it, `EACCES` when
    /// the holder does; else as [`pin`](Self::pin).
    pub fn lease(
        &self,
        bytes: Range<u64>,
        agent: Agent,
        access: Access,
    ) -> Result<FilePin<'c>, Error> {
        if access == Access::Write {
            self.client.inner.data.check_writer("lease for writing")?;
        }
        let (offset, len_bytes) = offset_and_len(&bytes);
        match self.take(Some(bytes), agent, Term::Longterm) {
            Ok(pin) if access == Access::Read || self.is_writable() => return Ok(pin),
            Ok(_) | Err(Error::Pin(PinError::NeedsConsent { .. })) => {}
            Err(error) => return Err(error),
        }
        let spec = LeaseSpec {
            file: self.entry.id.0,
            offset,
            len_bytes,
            is_device: agent == Agent::Device,
            is_write: access == Access::Write,
        };
        for _ in 0..MAX_ATTEMPTS {
            let grants = self.client.ask_lease(spec.clone())?;
            match FilePin::take_leased(self.client, offset, len_bytes, &grants, agent) {
                Err(Error::Pin(PinError::Changed { .. })) => {}
                result => return result,
            }
        }
        Err(Refusal::Stale { id: self.entry.id.0 }.into())
    }

    /// Whether every folio of it may be pinned for writing.
    fn is_writable(&self) -> bool {
        let is_writable = |extent: &Extent| extent.life.flags().contains(FolioFlags::WRITABLE);
        self.entry.extents.iter().all(is_writable)
    }

    #[inline(always)]
    fn take(
        &self,
        bytes: Option<Range<u64>>,
        agent: Agent,
        term: Term,
    ) -> Result<FilePin<'c>, Error> {
        let range = bytes.as_ref().map(offset_and_len);
        let (offset, len_bytes) = range.unwrap_or((0, self.entry.len_bytes));
        let near = match term {
            Term::Short => self.entry.extents.only().and_then(|extent| {
                let (file_bytes, range) = (self.entry.len_bytes, (offset, len_bytes));
                FilePin::take_one_extent(self.client, extent, file_bytes, range, agent)
            }),
            Term::Longterm => None,
        };
        match near {
            Some(pin) => Ok(pin),
            None => match self.take_far(range, agent, term) {
                Ok(pin) => Ok(*pin),
                Err(error) => Err(*error),
            },
        }
    }

    /// [`take`](Self::take) where the fast path is not enough. Boxed: a pin that comes back through
    /// memory would force the fast path's own through memory too, which costs as much as pinning.
    #[inline(never)]
    fn take_far(
        &self,
        range: Option<(u64, u64)>,
        agent: Agent,
        term: Term,
    ) -> Result<Box<FilePin<'c>>, Box<Error>> {
        let taken = match self.take_from(&self.entry, range, agent, term) {
            Err(Error::Pin(PinError::Changed { .. })) => self.take_anew(range, agent, term),
            result => result,
        };
        taken.map(Box::new).map_err(Box::new)
    }

    /// The entry is not what it was: reads it again.
    #[cold]
    fn take_anew(
        &self,
        range: Option<(u64, u64)>,
        agent: Agent,
        term: Term,
    ) -> Result<FilePin<'c>, Error> {
        for attempt in 0..MAX_ATTEMPTS {
            let entry = self.client.reread(&self.entry)?;
            match self.take_from(&entry, range, agent, term) {
                Err(Error::Pin(PinError::Changed { .. })) => {
                    self.client.wait_if_shut(attempt, &entry)?;
                }
                result => return result,
            }
        }
        Err(Refusal::Stale { id: self.entry.id.0 }.into())
    }

    fn take_from(
        &self,
        entry: &FileEntry,
        range: Option<(u64, u64)>,
        agent: Agent,
        term: Term,
    ) -> Result<FilePin<'c>, Error> {
        let (offset, len_bytes) = range.unwrap_or((0, entry.len_bytes));
        let is_inside = offset.checked_add(len_bytes).is_some_and(|end| end <= entry.len_bytes);
        if !is_inside {
            return Err(Error::OutOfRange {
                start: offset,
                end: offset.saturating_add(len_bytes),
                len_bytes: entry.len_bytes,
            });
        }
        if len_bytes == 0 {
            // No life word can tell that the file is gone: its entry does.
            self.client.reread(entry)?;
        }
        FilePin::take(self.client, entry, offset, len_bytes, agent, term)
    }
}

/// Where a range starts, and how long it is. One whose end is before its start wraps, and so is
/// outside every file.
#[inline(always)]
const fn offset_and_len(bytes: &Range<u64>) -> (u64, u64) {
    (bytes.start, bytes.end.wrapping_sub(bytes.start))
}
