//! The catalog's log: records that are appended, and now and then written together.
//!
//! A change is one record: its length, a checksum over the pool's number, the record's place and
//! its bytes, and the bytes. It counts from the moment a slot of the header says so ([`Header`]).
//! What a failed or interrupted write left behind the committed end is overwritten by the next
//! change, so an error of the file system spoils the change that met it and no other.
//!
//! The log lies in one of two areas of equal size. When that is full, the contents are written as a
//! fresh log to the other one, or both areas are made twice as large, and the header says where it
//! is.
//!
//! # Room
//! Both areas have their room from the file system before anything is written to them. In the area
//! in use, every record that adds a file or a quota leaves room behind it in which all files can be
//! removed again: a full file system, or a full area, keeps nobody from emptying the pool.

use std::io;
use std::sync::Arc;

use pgmap_os::MemoryFile;

use crate::error::Error;
use crate::name::FileName;
use crate::pool::catalog::header::{HEADER_BYTES, Header, Slot, read_slots};
use crate::pool::catalog::{CLOSING_CHANGES, Change, Contents, Recorded, StoredPool};
use crate::pool::identity::{BootId, PoolId};

/// Kept for what is no file: stamps, failed frames.
const SLACK_BYTES: u64 = 16 << 10;
/// An area of a catalog without files.
pub(super) const FIRST_AREA_BYTES: u64 = 64 << 10;
/// What a record takes besides names and values.
const RECORD_HEAD_BYTES: u64 = 8;
/// What removing a file takes besides its name, in a record of its own.
const REMOVAL_BYTES: u64 = RECORD_HEAD_BYTES + 8;
/// Changes of one record of a fresh log.
const CHANGES_PER_RECORD: usize = 256;

/// The file, or the part of one, that a catalog lies in.
#[derive(Debug)]
pub(super) struct CatalogFile {
    memory: Arc<MemoryFile>,
    /// Bytes that it may have, header included.
    most_bytes: u64,
}

impl CatalogFile {
    pub(super) const fn new(memory: Arc<MemoryFile>, most_bytes: u64) -> Self {
        Self { memory, most_bytes }
    }

    fn failed(&self, why: impl std::fmt::Display) -> Error {
        Error::Catalog { path: self.memory.name().to_owned(), why: why.to_string() }
    }

    /// Takes room from the file system, which a write then does not need to find.
    fn reserve(&self, start: u64, end: u64) -> Result<(), Error> {
        if end > self.most_bytes {
            let most = self.most_bytes;
            return Err(self.failed(format!("its {most} bytes are full; remove files")));
        }
        Ok(self.memory.reserve(start..end)?)
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), Error> {
        self.memory.write_all_at(bytes, at).map_err(|error| self.failed(format!("write: {error}")))
    }

    fn sync(&self) -> Result<(), Error> {
        self.memory.sync().map_err(|error| self.failed(error))
    }

    /// Reads up to `len` bytes, fewer where the file ends.
    fn read(&self, at: u64, len: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let there = self.memory.len_bytes().saturating_sub(at).min(len);
        bytes.resize(usize::try_from(there).map_err(|error| self.failed(error))?, 0);
        self.memory
            .read_exact_at(&mut bytes, at)
            .map_err(|error: io::Error| self.failed(format!("read: {error}")))?;
        Ok(bytes)
    }
}

/// An open log.
#[derive(Debug)]
pub(super) struct Log {
    medium: CatalogFile,
    header: Header,
    /// What the other slot says.
    previous: Header,
    /// Where the log ended when its contents were found not to fit into less.
    tried_end: u64,
    /// Bytes that removing all files may take.
    removal_bytes: u64,
    /// Stamps below this may be in use.
    stamp_limit: u64,
    /// Whether a refused change may be in the file.
    is_in_doubt: bool,
}

impl Log {
    /// Makes an empty log.
    pub(super) fn create(medium: CatalogFile, header: Header) -> Result<Self, Error> {
        let area_bytes = FIRST_AREA_BYTES;
        medium.reserve(0, HEADER_BYTES + 2 * area_bytes)?;
        let previous = Header { start: HEADER_BYTES, end: HEADER_BYTES, area_bytes, ..header };
        let header = Header { sequence: previous.sequence + 1, ..previous.clone() };
        for header in [&previous, &header] {
            medium.write(&header.to_bytes(), Header::offset(header.sequence))?;
        }
        medium.sync()?;
        Ok(Self::of(medium, header, previous))
    }

    /// Opens a log and reads its contents.
    ///
    /// # Errors
    /// [`Error::Catalog`] when any part of it that counts is not as it was written.
    pub(super) fn open(medium: CatalogFile, boot: BootId) -> Result<(Self, Contents), Error> {
        let slots = read_slots(&medium.memory);
        let (header, previous) = match slots {
            [Slot::Whole(one), Slot::Whole(other)] => {
                if one.sequence > other.sequence {
                    (*one, *other)
                } else {
                    (*other, *one)
                }
            }
            [Slot::Unreadable(error), _] | [_, Slot::Unreadable(error)] => {
                return Err(medium.failed(format_args!(
                    "one of its two headers cannot be read: {error}; `pgmap check --repair` \
                     writes it again"
                )));
            }
            [Slot::Whole(whole), _] | [_, Slot::Whole(whole)] => {
                // The machine may have stopped in the middle of a write, also of the second that
                // says that the owner stopped. A process cannot.
                if whole.boot == boot {
                    return Err(medium.failed(
                        "one of its two headers is damaged; `pgmap check --repair` writes it again",
                    ));
                }
                let torn = Header { sequence: whole.sequence.wrapping_sub(1), ..(*whole).clone() };
                (*whole, torn)
            }
            [Slot::OtherFormat(format), _] | [_, Slot::OtherFormat(format)] => {
                return Err(medium.failed(format_args!(
                    "the pool has format {format}, and this version opens format {}; copy its \
                     files with the version that made it",
                    crate::pool::identity::FORMAT
                )));
            }
            _ => return Err(medium.failed("its header is damaged, or it is no catalog")),
        };
        // A pool is given room by a change that is in one slot before it is in both.
        let span_bytes = header.pool.span_bytes;
        let before = StoredPool { span_bytes, ..previous.pool.clone() };
        let is_one_pool = header.id == previous.id && header.pool == before;
        if !is_one_pool || header.sequence != previous.sequence.wrapping_add(1) {
            return Err(medium.failed("its two headers do not belong together"));
        }
        let mut log = Self::of(medium, header, previous);
        let contents = match log.contents() {
            // The last record of a machine that stopped may not have reached the disk; it was not
            // answered either.
            Err(_) if log.is_unsynced(boot) => {
                log.header = Header { sequence: log.header.sequence, ..log.previous.clone() };
                log.contents()?
            }
            contents => contents?,
        };
        log.removal_bytes = contents.files.keys().map(removal_bytes).sum();
        log.stamp_limit = contents.stamp_limit.max(1);
        Ok((log, contents))
    }

    /// What a log says that its owner, perhaps on another machine, may be changing, and how far it
    /// is. Nothing is taken over or mended.
    ///
    /// # Errors
    /// [`Error::Catalog`] for what is no log, also when it was changed meanwhile: try again.
    pub(super) fn observe(medium: CatalogFile) -> Result<(Header, Contents), Error> {
        let slots = read_slots(&medium.memory);
        let whole = slots.into_iter().filter_map(|slot| match slot {
            Slot::Whole(header) => Some(*header),
            Slot::Damaged | Slot::OtherFormat(_) | Slot::Unreadable(_) => None,
        });
        let Some(header) = whole.max_by_key(|header| header.sequence) else {
            return Err(medium.failed("its header is damaged, or it is no catalog of this format"));
        };
        let log = Self::of(medium, header.clone(), header);
        let contents = log.contents()?;
        Ok((log.header, contents))
    }

    /// Writes the one slot of the header that is damaged, or cannot be read, again: as the change
    /// before the whole one. Says whether that is what was wrong.
    pub(super) fn mend_header(medium: &CatalogFile) -> Result<bool, Error> {
        let slots = read_slots(&medium.memory);
        let ([Slot::Whole(whole), Slot::Damaged | Slot::Unreadable(_)]
        | [Slot::Damaged | Slot::Unreadable(_), Slot::Whole(whole)]) = slots
        else {
            return Ok(false);
        };
        let Some(sequence) = whole.sequence.checked_sub(1) else { return Ok(false) };
        let before = Header { sequence, ..*whole };
        medium.write(&before.to_bytes(), Header::offset(sequence))?;
        medium.sync()?;
        Ok(true)
    }

    const fn of(medium: CatalogFile, header: Header, previous: Header) -> Self {
        Self {
            medium,
            header,
            previous,
            tried_end: 0,
            removal_bytes: 0,
            stamp_limit: 1,
            is_in_doubt: false,
        }
    }

    /// Puts another description of the file in the place of the one that is read and written.
    #[cfg(test)]
    pub(super) fn exchange_file(&mut self, file: Arc<MemoryFile>) -> Arc<MemoryFile> {
        std::mem::replace(&mut self.medium.memory, file)
    }

    pub(super) const fn bound(&mut self, most_bytes: u64) {
        self.medium.most_bytes = most_bytes;
    }

    pub(super) const fn header(&self) -> &Header {
        &self.header
    }

    /// Stamps below this may be in use.
    pub(super) const fn stamp_limit(&self) -> u64 {
        self.stamp_limit
    }

    /// Whether the machine was restarted after the last owner, and that owner had not synced all.
    pub(super) fn is_unsynced(&self, boot: BootId) -> bool {
        !self.header.is_clean && self.header.boot != boot
    }

    /// Where the area in use ends.
    const fn area_end(&self) -> u64 {
        let header = &self.header;
        let number = (header.start - HEADER_BYTES) / header.area_bytes;
        HEADER_BYTES + (number + 1) * header.area_bytes
    }

    /// What the log says, every record of it checked.
    pub(super) fn contents(&self) -> Result<Contents, Error> {
        let (start, end) = (self.header.start, self.header.end);
        if !self.header.is_possible() {
            return Err(self.medium.failed("its header is damaged"));
        }
        let (needed, len) = (self.header.file_bytes(), self.medium.memory.len_bytes());
        if len < needed {
            let why = format!("it is cut off: it has {len} bytes, and its log is kept in {needed}");
            return Err(self.medium.failed(why));
        }
        let bytes = self.medium.read(start, end - start)?;
        let mut contents = Contents::default();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let at = end - rest.len() as u64;
            let damaged = || self.medium.failed(format_args!("the record at byte {at} is damaged"));
            let (payload, behind) = split_record(self.header.id, at, rest).ok_or_else(damaged)?;
            let changes: Vec<Recorded> = postcard::from_bytes(payload).map_err(|error| {
                self.medium.failed(format_args!("the record at byte {at}: {error}"))
            })?;
            changes.into_iter().for_each(|change| contents.apply(change));
            rest = behind;
        }
        Ok(contents)
    }

    /// Puts `changes` on record, all or none.
    pub(super) fn append(&mut self, changes: &[Change<'_>]) -> Result<(), Error> {
        let payload = encode(&self.medium, changes)?;
        let len = payload.len() as u64 + RECORD_HEAD_BYTES;
        let (mut added, mut removed) = (0, 0);
        let mut stamp_limit = self.stamp_limit;
        let mut is_adding = false;
        for change in changes {
            match change {
                Change::Put(name, _) => {
                    is_adding = true;
                    added += removal_bytes(name);
                }
                Change::Delete(name) => removed += removal_bytes(name),
                Change::StampLimit(limit) => stamp_limit = *limit,
                Change::Quota(..) => is_adding = true,
                Change::Poisoned(_)
                | Change::Healthy(_)
                | Change::OpenTail(_)
                | Change::ClosedTail(_)
                | Change::Enrolled(_)
                | Change::Left(_)
                | Change::Backing(_)
                | Change::BackingGone(_)
                | Change::QuotaGone(_)
                | Change::Marks(_) => {}
            }
        }
        let all_removals = |log: &Self| (log.removal_bytes + added).saturating_sub(removed);
        if let Err(error) = self.make_room(len + all_removals(self) + SLACK_BYTES) {
            let fits = self.header.end + len <= self.area_end();
            if is_adding || !fits {
                return Err(error);
            }
        }
        let end = self.header.end;
        self.medium.write(&record(self.header.id, end, &payload), end)?;
        self.commit(Header { end: end + len, ..self.header.clone() })?;
        // A log that was written again for it knows better which names there are.
        self.removal_bytes = all_removals(self);
        self.stamp_limit = stamp_limit;
        Ok(())
    }

    /// Changes what the header says of owners and syncs. Both slots then say the same.
    pub(super) fn mark(&mut self, mark: impl Fn(&mut Header)) -> Result<(), Error> {
        for _ in 0..CLOSING_CHANGES {
            let mut header = self.header.clone();
            mark(&mut header);
            self.commit(header)?;
        }
        Ok(())
    }

    /// Has the header say `header`, in the next change.
    fn commit(&mut self, header: Header) -> Result<(), Error> {
        let header = Header { sequence: self.header.sequence + 1, ..header };
        let at = Header::offset(header.sequence);
        let written = self.medium.write(&header.to_bytes(), at).and_then(|()| self.medium.sync());
        if let Err(error) = written {
            self.is_in_doubt = true;
            if let Err(error) = self.settle() {
                tracing::error!(%error, "the catalog's header cannot be put back");
            }
            return Err(error);
        }
        self.is_in_doubt = false;
        self.previous = std::mem::replace(&mut self.header, header);
        Ok(())
    }

    /// Whether the file may have a change that was refused, because it could be neither synced nor
    /// taken back: whoever opens the pool next would find it.
    pub(super) const fn is_in_doubt(&self) -> bool {
        self.is_in_doubt
    }

    /// Takes that change back: whoever opens the pool next must not find what was refused.
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        if self.is_in_doubt {
            let at = Header::offset(self.previous.sequence);
            self.medium.write(&self.previous.to_bytes(), at)?;
            self.is_in_doubt = false;
        }
        Ok(())
    }

    /// Makes sure that `len` bytes fit behind the committed end.
    fn make_room(&mut self, len: u64) -> Result<(), Error> {
        if self.header.end + len <= self.area_end() {
            return Ok(());
        }
        let area_bytes = self.header.area_bytes;
        let is_worth_a_look =
            self.header.end - self.tried_end.min(self.header.end) > area_bytes / 64;
        if is_worth_a_look {
            let fresh = self.fresh()?;
            let most_bytes = area_bytes.checked_sub(len);
            if most_bytes.is_some_and(|most| fresh.len_bytes <= most / 2) {
                return self.write_again(fresh, area_bytes);
            }
            // Most of it is no history.
            if self.grow(fresh.len_bytes + len).is_ok() {
                return Ok(());
            }
            if most_bytes.is_some_and(|most| fresh.len_bytes <= most) {
                return self.write_again(fresh, area_bytes);
            }
            self.tried_end = self.header.end;
        }
        self.grow(len)
    }

    /// Makes both areas so large that `len` bytes fit behind the committed end, or into a fresh
    /// log.
    fn grow(&mut self, len: u64) -> Result<(), Error> {
        let old_bytes = self.header.area_bytes;
        let is_first = self.header.start == HEADER_BYTES;
        let needed = if is_first { self.header.end - HEADER_BYTES + len } else { len };
        let mut area_bytes = old_bytes * 2;
        while area_bytes < needed {
            area_bytes *= 2;
        }
        self.medium.reserve(HEADER_BYTES + 2 * old_bytes, HEADER_BYTES + 2 * area_bytes)?;
        if is_first {
            // The other old area is the rest of this one now.
            return self.commit(Header { area_bytes, ..self.header.clone() });
        }
        let fresh = self.fresh()?;
        self.write_again(fresh, area_bytes)
    }

    /// The contents as the records of a fresh log.
    fn fresh(&self) -> Result<Fresh, Error> {
        let contents = self.contents()?;
        let changes = contents.changes();
        let payloads = changes
            .chunks(CHANGES_PER_RECORD)
            .map(|chunk| encode(&self.medium, chunk))
            .collect::<Result<Vec<_>, Error>>()?;
        let len_bytes = payloads.iter().map(|bytes| bytes.len() as u64 + RECORD_HEAD_BYTES).sum();
        let removal_bytes = contents.files.keys().map(removal_bytes).sum();
        Ok(Fresh { payloads, len_bytes, removal_bytes })
    }

    /// Writes a fresh log to the area that is not in use, of `area_bytes` from now on: the second
    /// one where areas grow.
    fn write_again(&mut self, fresh: Fresh, area_bytes: u64) -> Result<(), Error> {
        let is_second = self.header.start == HEADER_BYTES || area_bytes != self.header.area_bytes;
        let start = if is_second { HEADER_BYTES + area_bytes } else { HEADER_BYTES };
        let mut at = start;
        for payload in fresh.payloads {
            let record = record(self.header.id, at, &payload);
            self.medium.write(&record, at)?;
            at += record.len() as u64;
        }
        // The records are there before the header that speaks of them.
        self.medium.sync()?;
        self.commit(Header { start, end: at, area_bytes, ..self.header.clone() })?;
        self.removal_bytes = fresh.removal_bytes;
        self.tried_end = 0;
        Ok(())
    }
}

/// The contents of a catalog as records.
struct Fresh {
    payloads: Vec<Vec<u8>>,
    len_bytes: u64,
    removal_bytes: u64,
}

fn removal_bytes(name: &FileName) -> u64 {
    REMOVAL_BYTES + name.as_bytes().len() as u64
}

fn encode(medium: &CatalogFile, changes: &[Change<'_>]) -> Result<Vec<u8>, Error> {
    postcard::to_stdvec(changes).map_err(|error| medium.failed(error))
}

/// The checksum of a record: of one pool, at one place.
fn checksum(id: PoolId, at: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&id.0.to_le_bytes());
    hasher.update(&at.to_le_bytes());
    hasher.update(&(payload.len() as u64).to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

fn record(id: PoolId, at: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + RECORD_HEAD_BYTES as usize);
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(checksum(id, at, payload).to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// The payload of the record that `bytes`, which lie at `at`, begin with, and what is behind it.
fn split_record(id: PoolId, at: u64, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (payload, behind) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    let is_whole = checksum(id, at, payload) == u32::from_le_bytes(*sum);
    is_whole.then_some((payload, behind))
}
