//! A file being written: nobody else can open it before it is committed (T11).

use std::borrow::Borrow;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use pgmap_mm::descriptor::Descriptor;
use pgmap_mm::extent::Extent;
use pgmap_mm::ledger::Agent;
use pgmap_mm::pin::{Pin, PinParts};
use pgmap_os::{MemoryFile, MemoryKind};
use smallvec::SmallVec;

use crate::client::batch::in_pieces;
use crate::client::{Client, lanes};
use crate::error::Error;
use crate::metadata::{CHECKSUM_STEP_BYTES, Checksum};
use crate::refusal::Refusal;
use crate::wire::{CommitSpec, Committed, CreateSpec, Draft, extents_from_words};

/// How many bytes are written between two looks at the connection to the owner.
const CHECK_BYTES: u64 = 8 << 20;
/// What is written at once, in one file or in all files of a batch, goes past the processor's
/// caches from so many bytes on: frames of that many are in no cache (ADR 0008).
pub(super) const STREAM_BYTES: u64 = 1 << 20;
/// Writes of a batch that are shorter go through the caches.
const STREAM_WRITE_BYTES: u64 = 16 << 10;

/// Frames reserved for a file and the means to fill them.
///
/// The writer holds its frames in its own ledger, so that neither its death nor the owner's restart
/// lets anybody else have them while it may still write. Bytes it never wrote read as zero after
/// the commit, not as what an earlier file left there.
///
/// Dropping a writer without committing gives the file up.
///
/// It borrows its client, as a [`FileWriter`], or has it, as an [`OwnedWriter`], which can go
/// wherever it is needed.
#[derive(Debug)]
pub struct Writer<C: Borrow<Client>> {
    client: C,
    id: u64,
    len_bytes: u64,
    extents: SmallVec<[Extent; 1]>,
    holds: SmallVec<[PinParts; 1]>,
    /// Every byte below this was written; those above may or may not have been.
    written_to: u64,
    /// Where [`io::Write`] goes on.
    position: u64,
    /// How often the client had reconnected when the frames were reserved.
    generation: u64,
    /// Bytes written since somebody looked whether the owner is still there.
    unchecked_bytes: u64,
    /// The backing that its frames lie in; `None` for a file without a byte.
    backing: Option<Arc<MemoryFile>>,
    /// Whether somebody had raw pointers: then what is unwritten is theirs to know.
    is_raw: bool,
    /// Whether something was written through the processor's caches, and is to be flushed at the
    /// commit.
    is_cached: bool,
    /// Whether it is one of a batch of at least [`STREAM_BYTES`].
    is_of_many: bool,
    /// Whether the file gets a checksum when it is committed.
    is_checksummed: bool,
    /// What the commit says of the file, if its frames were handed out without a name, or it asks
    /// for the next ones.
    named: Option<Box<CreateSpec>>,
    is_done: bool,
}

/// A writer that borrows its client.
pub type FileWriter<'c> = Writer<&'c Client>;
/// A writer that has a clone of its client, and keeps it attached.
pub type OwnedWriter = Writer<Client>;

impl<C: Borrow<Client>> Writer<C> {
    /// A writer of `draft`, which is to have so many bytes, and a checksum or not.
    pub(crate) fn new(
        client: C,
        draft: Draft,
        (len_bytes, is_checksummed): (u64, bool),
    ) -> Result<Self, Error> {
        let extents = extents_from_words(&draft.extents)?;
        let generation = Borrow::<Client>::borrow(&client).generation();
        let mut writer = Self {
            client,
            id: draft.id,
            len_bytes,
            extents,
            holds: SmallVec::new(),
            written_to: 0,
            position: 0,
            generation,
            unchecked_bytes: 0,
            backing: None,
            is_raw: false,
            is_cached: false,
            is_of_many: false,
            is_checksummed,
            named: None,
            is_done: false,
        };
        writer.client().inner.data.check_writer("create")?;
        let held: u64 = writer.extents.iter().map(|extent| extent.run.len_bytes()).sum();
        if held < len_bytes {
            return Err(Error::Protocol {
                what: format!("{held} bytes for a file of {len_bytes}"),
            });
        }
        for extent in &writer.extents {
            let client: &Client = writer.client.borrow();
            if extent.run.byte_range().end > client.inner.data.len_bytes() {
                return Err(Error::Protocol { what: format!("frames {} outside", extent.run) });
            }
            client.reach(extent.run)?;
            let hold = lanes::pin(&client.inner, extent, extent.run, Agent::Cpu)?;
            writer.holds.push(hold.into_parts());
        }
        if let Some(extent) = writer.extents.first() {
            writer.backing = Some(writer.client().file_of(extent.run)?.0);
        }
        writer.map_around();
        Ok(writer)
    }

    /// Maps its frames ahead where a write would map them one by one.
    fn map_around(&self) {
        let is_shmem = |file: &Arc<MemoryFile>| file.kind() == MemoryKind::Shmem;
        if self.backing.as_ref().is_some_and(is_shmem) {
            let inner = &self.client().inner;
            self.extents
                .iter()
                .for_each(|extent| inner.fault_around.map(&inner.data, extent.run.byte_range()));
        }
    }

    /// Has the commit say what the file is, and ask for frames for the next.
    pub(super) fn named_at_commit(mut self, spec: CreateSpec) -> Self {
        self.named = Some(Box::new(spec));
        self
    }

    /// Says whether it is one of a batch of at least [`STREAM_BYTES`].
    pub(super) const fn set_of_many(&mut self, is_of_many: bool) {
        self.is_of_many = is_of_many;
    }

    fn client(&self) -> &Client {
        self.client.borrow()
    }

    /// The number that the file will have.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// The file's length in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Copies `bytes` into the file from `offset` on.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when the file is shorter; nothing is copied then. [`Error::Forked`]
    /// in a forked child. [`Refusal::NoDraft`] if the owner went meanwhile, and the file with it;
    /// that is looked at every 8 MiB.
    pub fn write_all_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= self.len_bytes);
        let Some(end) = end else {
            let end = offset.saturating_add(bytes.len() as u64);
            return Err(Error::OutOfRange { start: offset, end, len_bytes: self.len_bytes });
        };
        self.check_attached()?;
        if offset > self.written_to && !self.is_raw {
            self.zero(self.written_to, offset)?;
        }
        // What is to be in a device's memory itself.
        let goes_past_caches = self.client().inner.is_flushed && self.is_on_device();
        self.is_cached |= !goes_past_caches;
        let len_bytes = bytes.len() as u64;
        let streams =
            len_bytes >= STREAM_BYTES || self.is_of_many && len_bytes >= STREAM_WRITE_BYTES;
        let mut at = offset;
        while at < end {
            let piece = CHECK_BYTES.saturating_sub(self.unchecked_bytes).min(end - at);
            let data = &self.client().inner.data;
            self.each_part(at, at + piece, |pool_offset, part| {
                let source = &bytes[(part.start - offset) as usize..(part.end - offset) as usize];
                if goes_past_caches {
                    data.copy_in_flushed(pool_offset, source)
                } else if streams {
                    data.copy_in_streaming(pool_offset, source)
                } else {
                    data.copy_in(pool_offset, source)
                }
            })?;
            at += piece;
            self.unchecked_bytes += piece;
            if self.unchecked_bytes >= CHECK_BYTES {
                self.check_owner()?;
            }
        }
        self.written_to = self.written_to.max(end);
        Ok(())
    }

    /// Refuses to go on if the owner that reserved the frames is gone: its successor knows of no
    /// draft. Writes ask that themselves, once in a while; this is for who waits for what to write.
    ///
    /// # Errors
    /// [`Refusal::NoDraft`] as [`Error::Refused`].
    pub fn check_owner(&mut self) -> Result<(), Error> {
        self.unchecked_bytes = 0;
        self.client().check_owner(self.generation).map_err(|gone| match gone {
            Error::OwnerGone { why } => {
                let why = format!("the owner that reserved it is gone ({why}); put it again");
                Refusal::NoDraft { id: self.id, why }.into()
            }
            other => other,
        })
    }

    fn check_attached(&self) -> Result<(), Error> {
        use pgmap_mm::pin::ClientSide;
        if self.client().inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        Ok(())
    }

    fn zero(&mut self, from: u64, to: u64) -> Result<(), Error> {
        self.is_cached = true;
        let mut at = from;
        while at < to {
            let piece = CHECK_BYTES.min(to - at);
            self.each_part(at, at + piece, |pool_offset, part| {
                self.client().inner.data.fill_zero(pool_offset, part.end - part.start)
            })?;
            at += piece;
            if at < to {
                self.check_owner()?;
            }
        }
        Ok(())
    }

    /// Calls `part` for each extent's share of the file range: where it lies in the pool, and which
    /// bytes of the file they are.
    fn each_part(
        &self,
        from: u64,
        to: u64,
        part: impl Fn(u64, Range<u64>) -> Result<(), pgmap_os::CopyError>,
    ) -> Result<(), Error> {
        let mut at = 0;
        for extent in &self.extents {
            let end = at + extent.run.len_bytes();
            let (start, stop) = (from.max(at), to.min(end));
            if start < stop {
                part(extent.run.byte_range().start + (start - at), start..stop)?;
            }
            at = end;
        }
        Ok(())
    }

    /// The file's memory, to be filled by other means: address, length and offset in the pool of
    /// each extent. Nothing is zeroed at the commit then: what the caller leaves unwritten shows
    /// what was there before.
    pub fn segments(&mut self) -> Vec<(*mut u8, u64, u64)> {
        self.is_raw = true;
        self.is_cached = true;
        let base = self.client().inner.data.as_ptr();
        let mut left = self.len_bytes;
        let mut segments = Vec::with_capacity(self.extents.len());
        for extent in &self.extents {
            let pool_offset = extent.run.byte_range().start;
            let len_bytes = extent.run.len_bytes().min(left);
            left -= len_bytes;
            segments.push((base.wrapping_add(pool_offset as usize), len_bytes, pool_offset));
        }
        segments
    }

    /// Says that a device may be writing to the file from now on, until the next call with
    /// `Agent::Cpu`: should this process die meanwhile, the frames are given to nobody while the
    /// device can still write to them.
    pub fn set_agent(&self, agent: Agent) {
        for hold in &self.holds {
            hold.set_agent(&self.client().inner.pinner, agent);
        }
    }

    /// Publishes the file under its name.
    ///
    /// # Errors
    /// [`crate::Refusal::Exists`] when another got the name first; the file is given up then.
    pub fn commit(mut self) -> Result<(), Error> {
        let client = self.client().clone();
        let Some(spec) = self.named.take() else {
            return Self::commit_all(&client, vec![self])?.pop().unwrap_or(Ok(()));
        };
        self.complete()?;
        Self::flush_all(&client, std::slice::from_ref(&self))?;
        let CommitSpec { id, checksum } = self.commit_spec()?;
        let committed = client.put_draft(id, *spec, checksum)?;
        self.finish(&committed.life);
        Ok(())
    }

    /// Writes zeros where nothing was written.
    fn complete(&mut self) -> Result<(), Error> {
        self.check_attached()?;
        if !self.is_raw && self.written_to < self.len_bytes {
            self.zero(self.written_to, self.len_bytes)?;
        }
        Ok(())
    }

    pub(crate) fn commit_all(
        client: &Client,
        mut writers: Vec<Self>,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        if writers.iter().any(|writer| writer.named.is_some()) {
            // Their commits say more than a batch does.
            return Ok(writers.into_iter().map(Self::commit).collect());
        }
        for writer in &mut writers {
            writer.complete()?;
        }
        Self::flush_all(client, &writers)?;
        in_pieces(
            &mut writers,
            |_| 1,
            |batch| {
                let specs = batch.iter().map(Self::commit_spec).collect::<Result<_, _>>()?;
                let answers =
                    client.finish_commit(client.begin_commit(specs)?, client.deadline())?;
                Ok(Self::finish_all(batch, answers))
            },
        )
    }

    /// Ends the writing of writers that one message has room for: what is asked of their commits.
    pub(super) fn complete_all(
        client: &Client,
        writers: &mut [Self],
    ) -> Result<Vec<CommitSpec>, Error> {
        writers.iter_mut().try_for_each(Self::complete)?;
        Self::flush_all(client, writers)?;
        writers.iter().map(Self::commit_spec).collect()
    }

    /// Takes the answers to their commits.
    pub(super) fn finish_all(
        writers: &mut [Self],
        answers: Vec<Result<Committed, Refusal>>,
    ) -> Vec<Result<(), Error>> {
        let finish = |(writer, answer): (&mut Self, Result<Committed, Refusal>)| {
            answer.map(|done| writer.finish(&done.life)).map_err(Error::from)
        };
        writers.iter_mut().zip(answers).map(finish).collect()
    }

    /// What the owner is asked, with a checksum of what the frames have now if there is to be one.
    fn commit_spec(&self) -> Result<CommitSpec, Error> {
        if !self.is_checksummed {
            return Ok(CommitSpec::new(self.id));
        }
        let mut sum = Checksum::default();
        let mut bytes = vec![0; CHECKSUM_STEP_BYTES.min(self.len_bytes) as usize];
        let mut left = self.len_bytes;
        for extent in &self.extents {
            let Range { mut start, end } = extent.run.byte_range();
            while start < end && left > 0 {
                let part = &mut bytes[..CHECKSUM_STEP_BYTES.min(end - start).min(left) as usize];
                self.client().inner.data.copy_out(start, part)?;
                sum.update(part);
                start += part.len() as u64;
                left -= part.len() as u64;
            }
        }
        Ok(CommitSpec { id: self.id, checksum: Some(sum.value()) })
    }

    /// Has the contents outlive a power failure, before the catalog names them, where the pool
    /// promises that: on a device line by line, elsewhere all at once.
    fn flush_all(client: &Client, writers: &[Self]) -> Result<(), Error> {
        if !client.inner.is_flushed {
            return Ok(());
        }
        let mut synced: Vec<&Arc<MemoryFile>> = Vec::new();
        for writer in writers {
            let Some(backing) = &writer.backing else { continue };
            if !writer.is_on_device() {
                if !synced.iter().any(|other| Arc::ptr_eq(other, backing)) {
                    backing.sync()?;
                    synced.push(backing);
                }
                continue;
            }
            if !writer.is_cached {
                continue;
            }
            writer.each_part(0, writer.len_bytes, |pool_offset, part| {
                client.inner.data.flush(pool_offset, part.end - part.start)
            })?;
        }
        Ok(())
    }

    fn is_on_device(&self) -> bool {
        self.backing.as_ref().is_some_and(|backing| backing.kind() == MemoryKind::DevDax)
    }

    /// Lets go of the frames, which are the pool's now.
    fn finish(&mut self, life: &[u64]) {
        for (hold, &life) in self.holds.iter_mut().zip(life) {
            // The owner changed the word because of this commit; that needs no doorbell.
            hold.expect_life(Descriptor::from_bits(life));
        }
        self.let_go();
        self.is_done = true;
    }

    fn let_go(&mut self) {
        for hold in std::mem::take(&mut self.holds) {
            drop(Pin::from_parts(&self.client().inner.pinner, hold));
        }
    }
}

impl<C: Borrow<Client>> Drop for Writer<C> {
    fn drop(&mut self) {
        self.let_go();
        if !self.is_done && self.check_attached().is_ok() {
            // A dead owner's successor finds the draft in nobody's books.
            self.client().abort_ids(vec![self.id]);
        }
    }
}

impl<C: Borrow<Client>> io::Write for Writer<C> {
    /// Writes at the writer's own position; a short count when the file is full.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.len_bytes - self.position;
        let part = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        self.write_all_at(self.position, part)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        self.position += part.len() as u64;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
