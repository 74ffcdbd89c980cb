//! vm-memory's dirty bitmap, kept by the address space.

use pgmap::mm::level::PAGE_BYTES;
use pgmap::mm::mm::DirtyTracker;
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

/// Marks pages of an address space as written, from some address on.
#[derive(Clone, Copy, Debug)]
pub struct DirtyPages<'s> {
    dirty: &'s DirtyTracker,
    address: u64,
}

impl<'s> DirtyPages<'s> {
    pub(crate) const fn new(dirty: &'s DirtyTracker, address: u64) -> Self {
        Self { dirty, address }
    }
}

impl<'s> WithBitmapSlice<'_> for DirtyPages<'s> {
    type S = DirtyPages<'s>;
}

impl BitmapSlice for DirtyPages<'_> {}

impl Bitmap for DirtyPages<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let first = (self.address + offset as u64) / PAGE_BYTES;
        let end = (self.address + offset as u64 + len as u64).div_ceil(PAGE_BYTES);
        self.dirty.mark(first, end - first);
    }

    /// Whether the page may have been written: always while writes are recorded, because the
    /// tracker's bits can be taken but not looked at.
    fn dirty_at(&self, _: usize) -> bool {
        self.dirty.is_on()
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { address: self.address + offset as u64, ..*self }
    }
}
