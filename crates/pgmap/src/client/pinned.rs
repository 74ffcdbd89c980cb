//! Pinned bytes of a file.

use std::marker::PhantomData;

use pgmap_mm::error::PinError;
use pgmap_mm::extent::Extent;
use pgmap_mm::index::FileEntry;
use pgmap_mm::ledger::Agent;
use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::longterm::LongtermPin;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::pin::{ClientSide, Pin, PinParts};

use crate::client::owned::OwnedPin;
use crate::client::side::ProcessSide;
use crate::client::{Client, lanes};
use crate::error::Error;
use crate::metadata::{CHECKSUM_STEP_BYTES, Checksum};
use crate::wire::LeaseGrant;

/// What keeps the frames: one pin per extent.
#[derive(Debug)]
enum ExtentHold<'c> {
    Short(Pin<'c, ProcessSide>),
    Longterm(LongtermPin<'c, ProcessSide>),
    /// With the owner's consent, under this lease.
    Leased(Pin<'c, ProcessSide>, u64),
    /// Nothing to keep: so many pages that read as zero.
    Hole(u64),
}

impl ExtentHold<'_> {
    /// The frames held, or how many pages of a hole.
    const fn held(&self) -> Result<PfnRange, u64> {
        match self {
            Self::Short(pin) | Self::Leased(pin, _) => Ok(pin.run()),
            Self::Longterm(pin) => Ok(pin.run()),
            Self::Hole(nr_pages) => Err(*nr_pages),
        }
    }

    /// Without its borrow. By name only short-term pins are taken.
    #[inline(always)]
    fn into_owned(self) -> Option<Result<PinParts, u64>> {
        match self {
            Self::Short(pin) => Some(Ok(pin.into_parts())),
            Self::Hole(nr_pages) => Some(Err(nr_pages)),
            Self::Longterm(_) | Self::Leased(..) => None,
        }
    }

    fn is_reclaim_requested(&self) -> bool {
        match self {
            Self::Short(pin) | Self::Leased(pin, _) => pin.is_reclaim_requested(),
            Self::Longterm(pin) => pin.is_reclaim_requested(),
            Self::Hole(_) => false,
        }
    }
}

/// A part of a pinned range in one extent.
pub(super) struct Part {
    /// Where it starts in the range, in bytes.
    offset: u64,
    len_bytes: u64,
    /// Where it lies in the pool, in bytes; none in a hole.
    pool_offset: Option<u64>,
}

/// The parts of a range of `len_bytes` that starts `skip_bytes` into what is held: runs of frames,
/// or so many pages that read as zero.
pub(super) fn parts_of(
    held: impl Iterator<Item = Result<PfnRange, u64>>,
    skip_bytes: u64,
    len_bytes: u64,
) -> impl Iterator<Item = Part> {
    let (mut skip, mut offset) = (skip_bytes, 0);
    held.map(move |held| {
        let nr_pages = held.map_or_else(|hole| hole, PfnRange::nr_pages);
        let part_bytes = (nr_pages * PAGE_BYTES - skip).min(len_bytes - offset);
        let pool_offset = held.ok().map(|run| run.byte_range().start + skip);
        let part = Part { offset, len_bytes: part_bytes, pool_offset };
        offset += part_bytes;
        skip = 0;
        part
    })
}

/// The parts that are memory, where `client` has it mapped.
pub(super) fn segments_of<'p>(
    client: &'p Client,
    parts: impl Iterator<Item = Part>,
) -> impl Iterator<Item = Segment<'p>> {
    let base = client.inner.data.as_ptr();
    parts.filter_map(move |part| {
        let pool_offset = part.pool_offset?;
        Some(Segment {
            // The frames lie inside the mapping: the run was checked when it was pinned. Offsetting
            // without wrapping needs no unsafe.
            ptr: base.wrapping_add(pool_offset as usize),
            len_bytes: part.len_bytes,
            pool_offset,
            range_offset: part.offset,
            held: PhantomData,
        })
    })
}

/// Copies bytes of a pinned range of `len_bytes` from `offset` on.
pub(super) fn copy_out(
    client: &Client,
    parts: impl Iterator<Item = Part>,
    len_bytes: u64,
    offset: u64,
    target: &mut [u8],
) -> Result<(), Error> {
    if client.inner.pinner.side().is_forked() {
        return Err(Error::Forked);
    }
    let end = offset.checked_add(target.len() as u64).filter(|&end| end <= len_bytes);
    let Some(end) = end else {
        let end = offset.saturating_add(target.len() as u64);
        return Err(Error::OutOfRange { start: offset, end, len_bytes });
    };
    for part in parts {
        let (from, to) = (offset.max(part.offset), end.min(part.offset + part.len_bytes));
        if from < to {
            let bytes = &mut target[(from - offset) as usize..(to - offset) as usize];
            match part.pool_offset {
                Some(at) => client.inner.data.copy_out(at + (from - part.offset), bytes)?,
                None => bytes.fill(0),
            }
        }
    }
    Ok(())
}

/// Copies all bytes of a pinned range.
pub(super) fn to_vec(
    client: &Client,
    parts: impl Iterator<Item = Part>,
    len_bytes: u64,
) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; len_bytes as usize];
    copy_out(client, parts, len_bytes, 0, &mut bytes)?;
    Ok(bytes)
}

/// A piece of pinned memory, mapped in this process.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'p> {
    /// Its first byte.
    pub ptr: *mut u8,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Where it lies in the pool, in bytes: for a device that was given the pool as one buffer.
    pub pool_offset: u64,
    /// Where it lies in the pinned range, in bytes.
    pub range_offset: u64,
    held: PhantomData<&'p ()>,
}

/// A range of a file that is pinned: while this lives, its frames hold this file's bytes and are
/// given to nobody else. Dropping it releases them, on any thread.
///
/// Others who attached to the pool may still write to the frames, as a device may, so bytes are
/// copied out or reached through raw pointers, never as `&[u8]` (I6).
#[derive(Debug)]
#[must_use = "dropping a pin releases the frames"]
pub struct FilePin<'c> {
    client: &'c Client,
    /// Where the range starts in the first hold's frames.
    skip_bytes: u64,
    len_bytes: u64,
    first: ExtentHold<'c>,
    more: Vec<ExtentHold<'c>>,
}

/// How a range is to be pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Term {
    Short,
    Longterm,
}

impl<'c> FilePin<'c> {
    /// Pins a whole file.
    #[inline(always)]
    pub(crate) fn take_all(client: &'c Client, entry: &FileEntry) -> Result<Self, Error> {
        let len_bytes = entry.len_bytes;
        let taken = entry.extents.only().and_then(|extent| {
            Self::take_one_extent(client, extent, len_bytes, (0, len_bytes), Agent::Cpu)
        });
        match taken {
            Some(pin) => Ok(pin),
            None => Self::take(client, entry, 0, len_bytes, Agent::Cpu, Term::Short),
        }
    }

    /// Pins `len_bytes` from `offset` on of a file of `file_bytes` that lies in `extent`, where
    /// this thread has a lane at hand, as it mostly does. `None` otherwise.
    #[inline(always)]
    pub(crate) fn take_one_extent(
        client: &'c Client,
        extent: &Extent,
        file_bytes: u64,
        (offset, len_bytes): (u64, u64),
        agent: Agent,
    ) -> Option<Self> {
        let end = offset.checked_add(len_bytes)?;
        if end > file_bytes || len_bytes == 0 || extent.is_hole() {
            return None;
        }
        let first_page = offset / PAGE_BYTES;
        let run = extent.run.sub_run(first_page, end.div_ceil(PAGE_BYTES) - first_page)?;
        if run.byte_range().end > client.inner.backings.end_bytes() {
            return None;
        }
        let lane = lanes::take_current(&client.inner)?;
        let first = ExtentHold::Short(lane.pin_once(extent, run, agent, lanes::rest)?);
        Some(Self { client, skip_bytes: offset % PAGE_BYTES, len_bytes, first, more: Vec::new() })
    }

    /// Pins `len_bytes` from `offset` on, extent by extent. The caller has checked the range.
    #[inline(never)]
    pub(crate) fn take(
        client: &'c Client,
        entry: &FileEntry,
        offset: u64,
        len_bytes: u64,
        agent: Agent,
        term: Term,
    ) -> Result<Self, Error> {
        if len_bytes == 0 {
            let (first, more) = (ExtentHold::Hole(0), Vec::new());
            return Ok(Self { client, skip_bytes: 0, len_bytes, first, more });
        }
        let first_page = offset / PAGE_BYTES;
        let end_page = (offset + len_bytes).div_ceil(PAGE_BYTES);
        let mut first = None;
        let mut more = Vec::new();
        let mut at = 0;
        for extent in entry.extents.iter() {
            let end = at + extent.run.nr_pages();
            let (from, to) = (first_page.max(at), end_page.min(end));
            if from < to {
                let run = extent.run.sub_run(from - at, to - from);
                if let Some(run) = run.filter(|_| !extent.is_hole()) {
                    client.reach(run)?;
                }
                let hold = run.map(|run| pin(client, extent, run, agent, term)).transpose()?;
                match (&first, hold) {
                    (None, hold) => first = hold,
                    (Some(_), hold) => more.extend(hold),
                }
            }
            at = end;
        }
        let Some(first) = first.filter(|_| at >= end_page) else {
            return Err(Error::OutOfRange {
                start: offset,
                end: offset + len_bytes,
                len_bytes: at * PAGE_BYTES,
            });
        };
        Ok(Self { client, skip_bytes: offset % PAGE_BYTES, len_bytes, first, more })
    }

    /// Takes the holds that leases allow. The slots are published before the owner can think of
    /// taking the frames, or fail their check.
    pub(crate) fn take_leased(
        client: &'c Client,
        offset: u64,
        len_bytes: u64,
        grants: &[LeaseGrant],
        agent: Agent,
    ) -> Result<Self, Error> {
        let ids: Vec<u64> = grants.iter().map(|grant| grant.lease).collect();
        let mut holds = Vec::with_capacity(grants.len());
        for grant in grants {
            let hold = leased(client, grant, agent);
            match hold {
                Ok(pin) => holds.push(ExtentHold::Leased(pin, grant.lease)),
                Err(error) => {
                    drop(holds);
                    client.release_leases(ids);
                    return Err(error);
                }
            }
        }
        let mut holds = holds.into_iter();
        let Some(first) = holds.next() else {
            return Err(Error::Protocol { what: "a lease of nothing".into() });
        };
        let skip_bytes = offset % PAGE_BYTES;
        Ok(Self { client, skip_bytes, len_bytes, first, more: holds.collect() })
    }

    /// The leases behind the pin, as recalls name them.
    pub fn leases(&self) -> impl Iterator<Item = u64> + '_ {
        std::iter::once(&self.first).chain(&self.more).filter_map(|hold| match hold {
            ExtentHold::Leased(_, lease) => Some(*lease),
            ExtentHold::Short(_) | ExtentHold::Longterm(_) | ExtentHold::Hole(_) => None,
        })
    }

    /// Bytes pinned.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The pinned memory in file order, one segment per extent. Holes have none.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        segments_of(self.client, self.parts())
    }

    fn parts(&self) -> impl Iterator<Item = Part> {
        let holds = std::iter::once(&self.first).chain(&self.more);
        parts_of(holds.map(ExtentHold::held), self.skip_bytes, self.len_bytes)
    }

    /// Copies bytes from `offset` on into `target`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when the pin is shorter; nothing is copied then. [`Error::Forked`]
    /// in a forked child, for which nothing keeps the frames once its parent lets go.
    pub fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<(), Error> {
        copy_out(self.client, self.parts(), self.len_bytes, offset, target)
    }

    /// Copies all pinned bytes.
    ///
    /// # Errors
    /// None in practice; those of [`read_at`](Self::read_at).
    pub fn to_vec(&self) -> Result<Vec<u8>, Error> {
        to_vec(self.client, self.parts(), self.len_bytes)
    }

    /// The CRC-32C of all pinned bytes, to be compared with
    /// [`FileMetadata::checksum`](crate::report::FileMetadata) where the whole file is pinned.
    ///
    /// # Errors
    /// Those of [`read_at`](Self::read_at).
    pub fn checksum(&self) -> Result<u32, Error> {
        let mut sum = Checksum::default();
        let mut bytes = vec![0; CHECKSUM_STEP_BYTES.min(self.len_bytes) as usize];
        let mut at = 0;
        while at < self.len_bytes {
            let part = &mut bytes[..CHECKSUM_STEP_BYTES.min(self.len_bytes - at) as usize];
            self.read_at(at, part)?;
            sum.update(part);
            at += part.len() as u64;
        }
        Ok(sum.value())
    }

    /// Whether the owner requested reclaim of the frames: they were truncated or unlinked and wait
    /// for this pin.
    #[must_use]
    pub fn is_reclaim_requested(&self) -> bool {
        self.first.is_reclaim_requested() || self.more.iter().any(ExtentHold::is_reclaim_requested)
    }

    /// Writes down what the pin is for, for whoever asks who holds the frames. Short-term pins
    /// only.
    pub fn set_tag(&self, tag: u64) {
        for hold in std::iter::once(&self.first).chain(&self.more) {
            if let ExtentHold::Short(pin) = hold {
                pin.set_tag(tag);
            }
        }
    }
}

impl Drop for FilePin<'_> {
    #[inline]
    fn drop(&mut self) {
        if matches!(self.first, ExtentHold::Leased(..)) {
            self.drop_leased();
        }
    }
}

impl FilePin<'_> {
    /// A short-term pin without its borrow.
    #[inline(always)]
    pub(super) fn into_owned(mut self) -> OwnedPin {
        let first = std::mem::replace(&mut self.first, ExtentHold::Hole(0)).into_owned();
        let more = match self.more.is_empty() {
            true => Box::default(),
            false => self.more.drain(..).filter_map(ExtentHold::into_owned).collect(),
        };
        OwnedPin::new(self.client, (self.skip_bytes, self.len_bytes), first, more)
    }

    /// Gives the leases back with the slots. Leased pins are leased in all their parts.
    #[cold]
    fn drop_leased(&mut self) {
        let leases: Vec<u64> = self.leases().collect();
        if leases.is_empty() {
            return;
        }
        // The slots first: the owner looks at them when it hears of the leases.
        self.first = ExtentHold::Hole(0);
        self.more.clear();
        self.client.release_leases(leases);
    }
}

fn leased<'c>(
    client: &'c Client,
    grant: &LeaseGrant,
    agent: Agent,
) -> Result<Pin<'c, ProcessSide>, Error> {
    let odd = || Error::Protocol { what: format!("a lease of {grant:x?}") };
    let extent = Extent::from_words(grant.extent).ok_or_else(odd)?;
    let run = PfnRange::new(grant.first_pfn, grant.nr_pages).ok_or_else(odd)?;
    if run.byte_range().end > client.inner.data.len_bytes() {
        return Err(odd());
    }
    client.reach(run)?;
    Ok(lanes::pin(&client.inner, &extent, run, agent)?)
}

#[inline]
fn pin<'c>(
    client: &'c Client,
    extent: &Extent,
    run: PfnRange,
    agent: Agent,
    term: Term,
) -> Result<ExtentHold<'c>, PinError> {
    if extent.is_hole() {
        return Ok(ExtentHold::Hole(run.nr_pages()));
    }
    if run.byte_range().end > client.inner.data.len_bytes() {
        return Err(PinError::Outside { run });
    }
    match term {
        Term::Short => lanes::pin(&client.inner, extent, run, agent).map(ExtentHold::Short),
        Term::Longterm => {
            client.inner.pinner.pin_longterm(extent, run, agent).map(ExtentHold::Longterm)
        }
    }
}
