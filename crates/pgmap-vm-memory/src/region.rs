//! A stretch of guest memory that is pinned and contiguous in this process.

// UNSAFETY: a VolatileSlice is made of a raw pointer; that is vm-memory's one way to reach bytes.
#![allow(unsafe_code)]

use pgmap::space::AddressSpace;
use vm_memory::bitmap::{BS, Bitmap};
use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestMemoryResult,
    GuestUsize, MemoryRegionAddress, VolatileSlice,
};

use crate::bitmap::DirtyPages;

/// A stretch of guest memory. It lives in the snapshot that pins it, and is reached only there.
#[derive(Debug)]
pub struct GuestRegion<'s> {
    space: &'s AddressSpace,
    address: u64,
    len_bytes: u64,
    pool_offset: u64,
    dirty: DirtyPages<'s>,
}

impl<'s> GuestRegion<'s> {
    /// The bytes at `pool_offset` of the pool, which the snapshot holds, at guest address `address`.
    pub(crate) fn new(
        space: &'s AddressSpace,
        address: u64,
        len_bytes: u64,
        pool_offset: u64,
    ) -> Self {
        let dirty = DirtyPages::new(space.mm().dirty(), address);
        Self { space, address, len_bytes, pool_offset, dirty }
    }

    /// First guest address.
    pub(crate) const fn start(&self) -> u64 {
        self.address
    }

    /// The guest address after the last.
    pub(crate) const fn end(&self) -> u64 {
        self.address + self.len_bytes
    }

    /// The byte at `offset`, if that many bytes follow it.
    fn pointer(&self, offset: u64, count: u64) -> GuestMemoryResult<*mut u8> {
        let is_inside = offset.checked_add(count).is_some_and(|end| end <= self.len_bytes);
        let (base, pool_bytes) = self.space.client().pool_address();
        let start = self.pool_offset + offset;
        if !is_inside || start + count > pool_bytes as u64 {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        Ok(base.wrapping_add(start as usize))
    }
}

impl<'s> GuestMemoryRegion for GuestRegion<'s> {
    type B = DirtyPages<'s>;

    fn len(&self) -> GuestUsize {
        self.len_bytes
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.address)
    }

    fn bitmap(&self) -> BS<'_, Self::B> {
        self.dirty
    }

    fn get_host_address(&self, address: MemoryRegionAddress) -> GuestMemoryResult<*mut u8> {
        self.pointer(address.0, 1)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> GuestMemoryResult<VolatileSlice<'_, BS<'_, Self::B>>> {
        let pointer = self.pointer(offset.0, count as u64)?;
        let bitmap = self.dirty.slice_at(offset.0 as usize);
        // SAFETY: `pointer` checked that the bytes lie inside this region and the client's mapping of
        // the pool, which lives as long as `space`. The snapshot that owns `self` pins them for the
        // slice's lifetime (I1). Everybody reaches pool memory by volatile or atomic access or by
        // copies that the compiler cannot see (I6).
        Ok(unsafe { VolatileSlice::with_bitmap(pointer, count, bitmap, None) })
    }
}

impl GuestMemoryRegionBytes for GuestRegion<'_> {}
