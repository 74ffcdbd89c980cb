//! Pages of an address space, held, with their bytes.

use std::marker::PhantomData;

use pgmap_mm::gup::{Dirty, GupFlags, PinnedRange};
use pgmap_mm::ledger::Agent;
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::mm::Mm;
use pgmap_mm::pfn::Pfn;
use pgmap_mm::pin::ClientSide;

use super::SpaceError;
use crate::client::Client;
use crate::client::pinned::FilePin;
use crate::client::side::ProcessSide;
use crate::error::Error;

/// A contiguous range of pinned memory, mapped in this process.
#[derive(Clone, Copy, Debug)]
pub struct MemorySegment<'p> {
    /// Its first address in the address space.
    pub address: u64,
    /// Its first byte in this process.
    pub ptr: *mut u8,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Where it lies in the pool, in bytes: for a device that was given the pool as one buffer.
    pub pool_offset: u64,
    /// The size of the leaf that mapped its first page when it was pinned; that of one page where a
    /// long-term hold was granted for a page that had no leaf by then.
    pub level: Level,
    held: PhantomData<&'p ()>,
}

impl MemorySegment<'_> {
    /// Every page: its address, and its frame in the pool.
    pub fn pages(&self) -> impl Iterator<Item = (u64, Pfn)> + use<> {
        let Self { address, len_bytes, pool_offset, .. } = *self;
        (0..len_bytes / PAGE_BYTES).filter_map(move |at| {
            Some((address + at * PAGE_BYTES, Pfn::new(pool_offset / PAGE_BYTES + at)?))
        })
    }
}

/// Pages that a lease keeps: they count as written when the lease ends.
#[derive(Debug)]
pub(super) struct LeasedPages<'s> {
    pub mm: &'s Mm,
    pub address: u64,
    /// Of each segment, the size of the leaf at its first page.
    pub levels: Vec<Level>,
    pub pin: FilePin<'s>,
    pub may_be_dirty: bool,
}

impl Drop for LeasedPages<'_> {
    fn drop(&mut self) {
        if self.may_be_dirty {
            // Before the hold goes: whoever takes the bits after a drain finds them set.
            let nr_pages = self.pin.len_bytes() / PAGE_BYTES;
            self.mm.dirty().mark(self.address / PAGE_BYTES, nr_pages);
        }
    }
}

#[derive(Debug)]
pub(super) enum PagesHold<'s> {
    Pages(PinnedRange<'s, ProcessSide>),
    Leased(Box<LeasedPages<'s>>),
}

/// Pages of an address space, held: their frames are given to nobody else while this lives,
/// whatever becomes of the mapping and the file. Dropping it unpins; pages pinned for writing then
/// count as written.
///
/// Others may write to the pages, so bytes are copied or reached through raw pointers (I6).
#[derive(Debug)]
#[must_use = "dropping pinned pages releases the frames"]
pub struct PinnedPages<'s> {
    pub(super) client: &'s Client,
    pub(super) asked: Asked,
    pub(super) held: PagesHold<'s>,
}

/// Address and purpose in one word: padding would make moving the pages slow, as `pgmap_mm::gup`
/// tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked(u64);

impl Asked {
    #[inline(always)]
    pub(super) const fn new(address: u64, flags: GupFlags) -> Self {
        let page = address - address % PAGE_BYTES;
        Self(page | flags.contains(GupFlags::WRITE) as u64)
    }

    const fn address(self) -> u64 {
        self.0 - self.0 % PAGE_BYTES
    }

    const fn is_for_writing(self) -> bool {
        !self.0.is_multiple_of(PAGE_BYTES)
    }
}

impl<'s> PinnedPages<'s> {
    /// First address, a multiple of the page size.
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.asked.address()
    }

    /// Pages held, perhaps fewer than were asked for.
    #[must_use]
    pub fn nr_pages(&self) -> u64 {
        self.len_bytes() / PAGE_BYTES
    }

    /// Bytes held.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        match &self.held {
            PagesHold::Pages(range) => range.len_bytes(),
            PagesHold::Leased(leased) => leased.pin.len_bytes(),
        }
    }

    /// Whether no page is held: only after [`FAST_ONLY`](pgmap_mm::gup::GupFlags::FAST_ONLY) or for
    /// none asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len_bytes() == 0
    }

    /// The contiguous ranges in order of address.
    pub fn segments(&self) -> impl Iterator<Item = MemorySegment<'_>> {
        let base = self.client.inner.data.as_ptr();
        let (pages, leased) = match &self.held {
            PagesHold::Pages(range) => (Some(range), None),
            PagesHold::Leased(leased) => (None, Some(leased)),
        };
        let pages = pages.into_iter().flat_map(PinnedRange::segments).map(move |segment| {
            let pool_offset = segment.run().byte_range().start;
            MemorySegment {
                address: segment.address(),
                // The backing hands out no frames outside the mapping. No unsafe to offset so.
                ptr: base.wrapping_add(pool_offset as usize),
                len_bytes: segment.len_bytes(),
                pool_offset,
                level: segment.level(),
                held: PhantomData,
            }
        });
        let leased = leased.into_iter().flat_map(|leased| {
            leased.pin.segments().zip(&leased.levels).map(|(segment, &level)| MemorySegment {
                address: leased.address + segment.range_offset,
                ptr: segment.ptr,
                len_bytes: segment.len_bytes,
                pool_offset: segment.pool_offset,
                level,
                held: PhantomData,
            })
        });
        pages.chain(leased)
    }

    /// Every page: its address, and its frame in the pool.
    pub fn pages(&self) -> impl Iterator<Item = (u64, Pfn)> {
        self.segments().flat_map(|segment| segment.pages())
    }

    /// Copies bytes from `offset` on into `target`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when fewer bytes are held, nothing is copied then; [`Error::Forked`]
    /// in a forked child; [`Error::Memory`] when the memory does not answer.
    pub fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<(), SpaceError> {
        let end = self.check(offset, target.len())?;
        for (from, to, pool_offset) in self.pieces(offset, end) {
            let bytes = &mut target[(from - offset) as usize..(to - offset) as usize];
            self.client.inner.data.copy_out(pool_offset, bytes).map_err(Error::from)?;
        }
        Ok(())
    }

    /// Copies `source` to the bytes from `offset` on.
    ///
    /// # Errors
    /// [`SpaceError::NotForWriting`] when the pages were pinned for reading; else as
    /// [`read_at`](Self::read_at).
    pub fn write_at(&self, offset: u64, source: &[u8]) -> Result<(), SpaceError> {
        if !self.asked.is_for_writing() {
            return Err(SpaceError::NotForWriting { address: self.address() });
        }
        let end = self.check(offset, source.len())?;
        for (from, to, pool_offset) in self.pieces(offset, end) {
            let bytes = &source[(from - offset) as usize..(to - offset) as usize];
            self.client.inner.data.copy_in(pool_offset, bytes).map_err(Error::from)?;
        }
        Ok(())
    }

    fn check(&self, offset: u64, len: usize) -> Result<u64, Error> {
        if self.client.inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        let (len, len_bytes) = (len as u64, self.len_bytes());
        offset.checked_add(len).filter(|&end| end <= len_bytes).ok_or(Error::OutOfRange {
            start: offset,
            end: offset.saturating_add(len),
            len_bytes,
        })
    }

    /// The parts of a byte range: from, to, and where that lies in the pool.
    pub(super) fn pieces(&self, offset: u64, end: u64) -> impl Iterator<Item = (u64, u64, u64)> {
        self.segments().filter_map(move |segment| {
            let start = segment.address - self.address();
            let (from, to) = (offset.max(start), end.min(start + segment.len_bytes));
            (from < to).then(|| (from, to, segment.pool_offset + (from - start)))
        })
    }

    /// Whether the owner wants some of the frames back.
    #[must_use]
    pub fn is_reclaim_requested(&self) -> bool {
        match &self.held {
            PagesHold::Pages(range) => {
                range.segments().any(|segment| segment.is_reclaim_requested())
            }
            PagesHold::Leased(leased) => leased.pin.is_reclaim_requested(),
        }
    }

    /// Writes down what the pin is for, for whoever asks who holds the frames.
    pub fn set_tag(&self, tag: u64) {
        match &self.held {
            PagesHold::Pages(range) => range.segments().for_each(|segment| segment.set_tag(tag)),
            PagesHold::Leased(leased) => leased.pin.set_tag(tag),
        }
    }

    /// Says that a device may write to the frames from now on, or none any more. Only short-term
    /// holds can change; the return value tells whether all did.
    pub fn set_agent(&self, agent: Agent) -> bool {
        match &self.held {
            PagesHold::Pages(range) => range.segments().all(|segment| segment.set_agent(agent)),
            PagesHold::Leased(_) => false,
        }
    }

    /// Gives the pages up and says whether they were written.
    pub fn unpin(self, dirty: Dirty) {
        match self.held {
            PagesHold::Pages(range) => range.unpin(dirty),
            PagesHold::Leased(mut leased) => leased.may_be_dirty = dirty == Dirty::Yes,
        }
    }
}
