//! Finding a file by name and pinning it: in shared memory, and where that does not do, by asking
//! the owner.

use std::time::Duration;

use pgmap_mm::error::PinError;
use pgmap_mm::index::{EntryId, FileEntry, FileId, Lookup, OneExtentFile};
use pgmap_mm::ledger::Agent;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::pin::ClientSide;

use crate::client::file::File;
use crate::client::owned::OwnedPin;
use crate::client::pinned::FilePin;
use crate::client::{Client, Inner, unexpected};
use crate::deadline::Deadline;
use crate::error::Error;
use crate::name::{Escaped, FileName};
use crate::refusal::Refusal;
use crate::wire::{Reply, Request};

/// Attempts of an open or get while the owner changes the file under it.
pub(super) const MAX_ATTEMPTS: usize = 16;
/// Of these, so many without asking the owner whether it is about to evict the file.
const CALM_ATTEMPTS: usize = 2;

impl Inner {
    /// Says that the file in `entry` was used, see `pgmap_mm::used`. As long as no file may be
    /// evicted there is no generation, and nothing to say.
    #[inline]
    fn note_use(&self, entry: EntryId) {
        let generation = self.index.generation();
        if generation != 0 {
            self.used.mark(entry, generation);
        }
    }
}

impl Client {
    /// Finds a file by name, without a call unless the owner keeps changing the index there: then
    /// it is asked, for no longer than [`set_deadline`](Self::set_deadline) says in all. Counts as
    /// a use of the file, where it is evictable, as [`get`](Self::get) does.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] and [`Refusal::BadName`] as [`Error::Refused`]; [`Error::TimedOut`].
    pub fn open(&self, name: impl AsRef<[u8]>) -> Result<File<'_>, Error> {
        let entry = self.look_up(name.as_ref())?;
        self.inner.note_use(entry.entry);
        Ok(File::new(self, entry))
    }

    /// As [`open`](Self::open), for who only looks: no use of the file.
    ///
    /// # Errors
    /// The same.
    pub fn inspect(&self, name: impl AsRef<[u8]>) -> Result<File<'_>, Error> {
        Ok(File::new(self, self.look_up(name.as_ref())?))
    }

    /// Finds a file by name and pins all of it, with a call only where [`Self::open`] makes one.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`File::pin`].
    pub fn get(&self, name: impl AsRef<[u8]>) -> Result<FilePin<'_>, Error> {
        let name = name.as_ref();
        match self.try_get_as(name, |pin| pin)? {
            Some(pin) => Ok(pin),
            None => self.get_slowly(name),
        }
    }

    /// What a look at the index did not give.
    #[cold]
    fn get_slowly(&self, name: &[u8]) -> Result<FilePin<'_>, Error> {
        for attempt in 0..MAX_ATTEMPTS {
            let entry = self.look_up(name)?;
            self.inner.note_use(entry.entry);
            match FilePin::take_all(self, &entry) {
                Err(Error::Pin(PinError::Changed { .. })) => {
                    self.wait_if_shut(attempt, &entry)?;
                }
                result => return result,
            }
        }
        Err(self.why_changing(name))
    }

    /// As [`get`](Self::get), and never with a call: `None` where one would be needed.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn try_get(&self, name: impl AsRef<[u8]>) -> Result<Option<FilePin<'_>>, Error> {
        self.try_get_as(name.as_ref(), |pin| pin)
    }

    /// As [`try_get`](Self::try_get), and makes something of the pin where it is.
    #[inline(always)]
    fn try_get_as<'c, T>(
        &'c self,
        name: &[u8],
        make: impl Fn(FilePin<'c>) -> T,
    ) -> Result<Option<T>, Error> {
        let inner = &self.inner;
        if inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        let found = match inner.index.lookup_one_extent(name) {
            Lookup::Found(found) => found,
            Lookup::Absent => return Err(absent(name)),
            Lookup::Busy => return Ok(None),
        };
        if let Some(OneExtentFile { entry, len_bytes, extent }) = found
            && let Some(pin) =
                FilePin::take_one_extent(self, &extent, len_bytes, (0, len_bytes), Agent::Cpu)
        {
            inner.note_use(entry);
            return Ok(Some(make(pin)));
        }
        Ok(self.try_get_any(name)?.map(make))
    }

    /// [`try_get`](Self::try_get) of a file in several extents, or that changes, or by a thread
    /// without a lane.
    #[inline(never)]
    fn try_get_any(&self, name: &[u8]) -> Result<Option<FilePin<'_>>, Error> {
        let inner = &self.inner;
        for _ in 0..MAX_ATTEMPTS {
            // Looked at where it is: copying an entry costs as much as pinning what it names.
            let found = inner.index.lookup(name);
            let entry = match &found {
                Lookup::Found(entry) => entry,
                Lookup::Absent => return Err(absent(name)),
                Lookup::Busy => return Ok(None),
            };
            let is_mapped = |run: PfnRange| run.byte_range().end <= inner.backings.end_bytes();
            let mut frames = entry.extents.iter().filter(|extent| !extent.is_hole());
            if !frames.all(|extent| is_mapped(extent.run)) {
                return Ok(None);
            }
            match FilePin::take_all(self, entry) {
                Err(Error::Pin(PinError::Changed { .. })) => {}
                Err(error) => return Err(error),
                Ok(pin) => {
                    inner.note_use(entry.entry);
                    return Ok(Some(pin));
                }
            }
        }
        Ok(None)
    }

    /// As [`get`](Self::get), with a pin that has a clone of the client.
    ///
    /// # Errors
    /// The same.
    pub fn get_owned(&self, name: impl AsRef<[u8]>) -> Result<OwnedPin, Error> {
        let name = name.as_ref();
        match self.try_get_as(name, FilePin::into_owned)? {
            Some(pin) => Ok(pin),
            None => Ok(self.get_slowly(name)?.into_owned()),
        }
    }

    /// As [`try_get`](Self::try_get), with a pin that has a clone of the client.
    ///
    /// # Errors
    /// The same.
    pub fn try_get_owned(&self, name: impl AsRef<[u8]>) -> Result<Option<OwnedPin>, Error> {
        self.try_get_as(name.as_ref(), FilePin::into_owned)
    }

    pub(super) fn look_up(&self, name: &[u8]) -> Result<FileEntry, Error> {
        if self.inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        match self.inner.index.lookup(name) {
            Lookup::Found(entry) => Ok(entry),
            Lookup::Absent => Err(absent(name)),
            Lookup::Busy => self.look_up_slowly(name),
        }
    }

    /// Waits for an owner that may be looking whether anybody holds the file, and lets nobody pin
    /// it meanwhile: it answers when it has decided.
    #[cold]
    pub(crate) fn wait_if_shut(&self, attempt: usize, entry: &FileEntry) -> Result<(), Error> {
        if attempt < CALM_ATTEMPTS {
            return Ok(());
        }
        match self.locate(entry.id.0, self.deadline()) {
            Err(error @ Error::Refused(Refusal::InUse { .. })) => Err(error),
            Ok(_) | Err(Error::Refused(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks the owner where a file is, when its index was too busy to tell.
    #[cold]
    pub(super) fn look_up_slowly(&self, name: &[u8]) -> Result<FileEntry, Error> {
        let deadline = Deadline::after(self.deadline());
        for _ in 0..MAX_ATTEMPTS {
            let stat = Request::Stat(FileName::new(name)?);
            let id = match self.call_within(stat, deadline.left())? {
                Reply::Stat(info) => info.id,
                reply => return Err(unexpected(&reply)),
            };
            if let Some(entry) = self.locate(id, deadline.left())? {
                return Ok(entry);
            }
        }
        let doing = "changed again and again".into();
        Err(Refusal::InUse { name: Escaped(name).to_string(), doing }.into())
    }

    /// Reads a file's entry again: in the index where it was, else where the owner says it is.
    pub(crate) fn reread(&self, old: &FileEntry) -> Result<FileEntry, Error> {
        if let Lookup::Found(entry) = self.inner.index.reread(old.entry, old.id) {
            return Ok(entry);
        }
        let deadline = Deadline::after(self.deadline());
        for _ in 0..MAX_ATTEMPTS {
            if let Some(entry) = self.locate(old.id.0, deadline.left())? {
                return Ok(entry);
            }
        }
        Err(Refusal::Stale { id: old.id.0 }.into())
    }

    pub(super) fn locate(&self, id: u64, limit: Duration) -> Result<Option<FileEntry>, Error> {
        match self.call_within(Request::Locate(id), limit)? {
            Reply::Located { entry, .. } => {
                let entry = EntryId::from_number(entry);
                match self.inner.index.reread(entry, FileId(id)) {
                    Lookup::Found(entry) => Ok(Some(entry)),
                    Lookup::Absent | Lookup::Busy => Ok(None),
                }
            }
            reply => Err(unexpected(&reply)),
        }
    }
}

/// No file is called `name`, or can be.
#[cold]
fn absent(name: &[u8]) -> Error {
    match FileName::new(name) {
        Ok(name) => Refusal::NotFound { name: name.to_string() }.into(),
        Err(bad) => bad.into(),
    }
}
