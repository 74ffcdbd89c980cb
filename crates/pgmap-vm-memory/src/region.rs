//! A range of guest memory that is one mapping in this process, held where it is used.

// UNSAFETY: a VolatileSlice is made of a raw pointer; that is vm-memory's one way to reach bytes. A
// region is lent out of a map that grows, which the language takes for a change of the region.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use pgmap::mm::fault::FaultError;
use pgmap::mm::gup::GupError;
use pgmap::mm::mm::FillError;
use pgmap::mm::vma::BackingError;
use pgmap::space::{AddressSpace, MemorySlot, SlotBytes, SpaceError};
use pgmap::{Error, PinError};
use vm_memory::bitmap::BS;
use vm_memory::{
    AtomicAccess, Bytes, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryResult,
    GuestUsize, MemoryRegionAddress, Permissions, ReadVolatile, VolatileSlice, WriteVolatile,
};

use crate::bitmap::{DirtyPages, Holes, Refused};

/// A range of guest memory: as far as areas of the guest adjoin each other and their files reach,
/// whatever files and frames lie below. It lives in the snapshot that made it.
#[derive(Debug)]
pub struct GuestRegion<'s> {
    slot: MemorySlot<'s>,
    dirty: DirtyPages<'s>,
    refused: SharedRefused,
}

/// One of a guard, made when holes are handed out for the first time.
type SharedRefused = Arc<OnceLock<Arc<Refused>>>;

impl<'s> GuestRegion<'s> {
    fn new(space: &'s AddressSpace, slot: MemorySlot<'s>, refused: SharedRefused) -> Self {
        let dirty = DirtyPages::new(space.mm().dirty(), slot.range().start);
        Self { slot, dirty, refused }
    }

    /// Bytes from `offset` on, held, for an access of this kind; `No` where nobody knows which it
    /// will be.
    fn bytes(
        &self,
        offset: u64,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<VolatileSlice<'_, DirtyPages<'s>>> {
        let range = self.slot.range();
        let is_inside = offset.checked_add(count as u64).is_some_and(|end| end <= self.len());
        if !is_inside {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        if let Some(address) = self.refused.get().and_then(|refused| refused.take()) {
            return Err(hole_written(address));
        }
        let SlotBytes { ptr, holes } = match count {
            0 => SlotBytes { ptr: NonNull::dangling().as_ptr(), holes: Vec::new() },
            _ => self.slot.hold(range.start + offset, count as u64).map_err(refusal)?,
        };
        let holes = match holes.first() {
            None => None,
            Some(hole) if access.has_write() => return Err(hole_written(hole.start)),
            Some(_) => {
                let refused = Arc::clone(self.refused.get_or_init(Arc::default));
                Some(Holes { ranges: holes, refused })
            }
        };
        let bitmap = self.dirty.over(offset, holes);
        // SAFETY: the slot holds the bytes and keeps them at this address as long as it lives, and
        // the slice borrows it (I1). Everybody reaches pool memory by volatile or atomic access or
        // by copies that the compiler cannot see (I6).
        Ok(unsafe { VolatileSlice::with_bitmap(ptr, count, bitmap, None) })
    }

    /// As [`bytes`](Self::bytes), at most `most` of them, up to the region's end.
    fn bytes_up_to(
        &self,
        offset: u64,
        most: usize,
        access: Permissions,
    ) -> GuestMemoryResult<VolatileSlice<'_, DirtyPages<'s>>> {
        let left = self.len().checked_sub(offset);
        let left = left.ok_or(GuestMemoryError::InvalidBackendAddress)?;
        self.bytes(offset, most.min(usize::try_from(left).unwrap_or(usize::MAX)), access)
    }
}

impl<'s> GuestMemoryRegion for GuestRegion<'s> {
    type B = DirtyPages<'s>;

    fn len(&self) -> GuestUsize {
        let Range { start, end } = self.slot.range();
        end - start
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.slot.range().start)
    }

    fn bitmap(&self) -> BS<'_, Self::B> {
        self.dirty.clone()
    }

    /// Holds the whole region, as far as that can be had: nobody knows how far the pointer goes.
    fn get_host_address(&self, address: MemoryRegionAddress) -> GuestMemoryResult<*mut u8> {
        if !self.address_in_range(address) {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        self.slot.hold_all(self.slot.range().start + address.0).map_err(refusal)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> GuestMemoryResult<VolatileSlice<'_, BS<'_, Self::B>>> {
        self.bytes(offset.0, count, Permissions::No)
    }
}

/// As vm-memory's own for plain memory, without a slice of the whole region: what is used is held,
/// and no more.
impl Bytes<MemoryRegionAddress> for GuestRegion<'_> {
    type E = GuestMemoryError;

    fn write(&self, buf: &[u8], addr: MemoryRegionAddress) -> GuestMemoryResult<usize> {
        let slice = self.bytes_up_to(addr.0, buf.len(), Permissions::Write);
        if buf.is_empty() { Ok(0) } else { Ok(slice?.write(buf, 0)?) }
    }

    fn read(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> GuestMemoryResult<usize> {
        let slice = self.bytes_up_to(addr.0, buf.len(), Permissions::Read);
        if buf.is_empty() { Ok(0) } else { Ok(slice?.read(buf, 0)?) }
    }

    fn write_slice(&self, buf: &[u8], addr: MemoryRegionAddress) -> GuestMemoryResult<()> {
        whole(self.write(buf, addr)?, buf.len())
    }

    fn read_slice(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> GuestMemoryResult<()> {
        whole(self.read(buf, addr)?, buf.len())
    }

    fn read_volatile_from<F: ReadVolatile>(
        &self,
        addr: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> GuestMemoryResult<usize> {
        let slice = self.bytes_up_to(addr.0, count, Permissions::Write)?;
        Ok(slice.read_volatile_from(0, src, slice.len())?)
    }

    fn read_exact_volatile_from<F: ReadVolatile>(
        &self,
        addr: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> GuestMemoryResult<()> {
        let slice = self.bytes(addr.0, count, Permissions::Write)?;
        Ok(slice.read_exact_volatile_from(0, src, count)?)
    }

    fn write_volatile_to<F: WriteVolatile>(
        &self,
        addr: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> GuestMemoryResult<usize> {
        let slice = self.bytes_up_to(addr.0, count, Permissions::Read)?;
        Ok(slice.write_volatile_to(0, dst, slice.len())?)
    }

    fn write_all_volatile_to<F: WriteVolatile>(
        &self,
        addr: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> GuestMemoryResult<()> {
        let slice = self.bytes(addr.0, count, Permissions::Read)?;
        Ok(slice.write_all_volatile_to(0, dst, count)?)
    }

    fn store<T: AtomicAccess>(
        &self,
        val: T,
        addr: MemoryRegionAddress,
        order: Ordering,
    ) -> GuestMemoryResult<()> {
        Ok(self.bytes(addr.0, size_of::<T>(), Permissions::Write)?.store(val, 0, order)?)
    }

    fn load<T: AtomicAccess>(
        &self,
        addr: MemoryRegionAddress,
        order: Ordering,
    ) -> GuestMemoryResult<T> {
        Ok(self.bytes(addr.0, size_of::<T>(), Permissions::Read)?.load(0, order)?)
    }
}

fn whole(completed: usize, expected: usize) -> GuestMemoryResult<()> {
    if completed == expected {
        return Ok(());
    }
    Err(GuestMemoryError::PartialBuffer { expected, completed })
}

/// Why bytes cannot be had, in vm-memory's words.
fn refusal(error: SpaceError) -> GuestMemoryError {
    match &error {
        SpaceError::File(Error::Forked) | SpaceError::Gup(GupError::Hold(PinError::Forked)) => {
            GuestMemoryError::HostAddressNotAvailable
        }
        SpaceError::Gup(
            GupError::Outside { address }
            | GupError::Fault(
                FaultError::NoArea { address }
                | FaultError::Denied { address, .. }
                | FaultError::Fill {
                    address,
                    error: FillError::Backing(BackingError::BeyondEnd | BackingError::Dead),
                },
            ),
        ) => GuestMemoryError::InvalidGuestAddress(GuestAddress(*address)),
        _ => GuestMemoryError::IOError(io::Error::other(error)),
    }
}

/// A write to a hole of a file.
#[derive(Debug, Clone, Copy)]
struct HoleWritten {
    address: u64,
}

impl fmt::Display for HoleWritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address } = self;
        write!(
            f,
            "guest address {address:#x} lies in a hole of its file, which has no memory to write to"
        )
    }
}

impl std::error::Error for HoleWritten {}

fn hole_written(address: u64) -> GuestMemoryError {
    GuestMemoryError::IOError(io::Error::other(HoleWritten { address }))
}

fn is_hole(error: &GuestMemoryError) -> bool {
    let GuestMemoryError::IOError(error) = error else { return false };
    error.get_ref().is_some_and(|inner| inner.is::<HoleWritten>())
}

/// The regions of a snapshot, by first address. There is more of it over time, and never less.
#[derive(Debug)]
pub(crate) struct Regions<'s> {
    space: &'s AddressSpace,
    refused: SharedRefused,
    /// None of them is ever removed, replaced or moved while this lives.
    known: Mutex<BTreeMap<u64, Box<GuestRegion<'s>>>>,
}

impl<'s> Regions<'s> {
    pub(crate) fn new(space: &'s AddressSpace) -> Self {
        Self { space, refused: Arc::default(), known: Mutex::default() }
    }

    /// An error if a file has a hole at any of these addresses: for a caller that is about to write
    /// there. What else is wrong with them shows when it is written.
    pub(crate) fn refuse_holes(&self, address: u64, count: usize) -> GuestMemoryResult<()> {
        let (mut at, end) = (address, address.saturating_add(count as u64));
        while at < end
            && let Some(region) = self.at(at)
        {
            let Range { start, end: region_end } = region.slot.range();
            let len = end.min(region_end) - at;
            match region.bytes(at - start, len as usize, Permissions::Write) {
                Err(error) if is_hole(&error) => return Err(error),
                _ => at += len,
            }
        }
        Ok(())
    }

    /// The region with this address: a known one, or what the address space has there now between
    /// those that are known. Returns `None` in a forked child, where another thread may have left
    /// the lock taken.
    pub(crate) fn at(&self, address: u64) -> Option<&GuestRegion<'s>> {
        if self.space.is_forked() {
            return None;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.range(..=address).next_back().map(|(_, region)| region.slot.range());
        let start = match before {
            Some(range) if range.contains(&address) => range.start,
            before => {
                let low = before.map_or(0, |range| range.end);
                let next = known.range(address..).next();
                let high = next.map_or(u64::MAX, |(&start, _)| start);
                let slot = self.space.memory_slot(address, low..high)?;
                let start = slot.range().start;
                known.insert(
                    start,
                    Box::new(GuestRegion::new(self.space, slot, Arc::clone(&self.refused))),
                );
                start
            }
        };
        Some(self.lend(known.get(&start)?))
    }

    /// Every region that is known, in order of address.
    pub(crate) fn all(&self) -> Vec<&GuestRegion<'s>> {
        if self.space.is_forked() {
            return Vec::new();
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().map(|region| self.lend(region)).collect()
    }

    /// Lends a region, which is one of `known`, for longer than the lock is held.
    fn lend(&self, region: &GuestRegion<'s>) -> &GuestRegion<'s> {
        let region: *const GuestRegion<'s> = region;
        // SAFETY: the region lies in a box of its own, which is removed only when `self` is
        // dropped; the borrow of `self` ends before. Nobody has it mutably: regions are only ever
        // lent out shared.
        unsafe { &*region }
    }
}
