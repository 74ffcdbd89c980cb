//! vm-memory's dirty bitmap, kept by the address space.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use pgmap::mm::level::PAGE_BYTES;
use pgmap::mm::mm::DirtyTracker;
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

/// Marks pages of an address space as written, from some address on.
#[derive(Clone, Debug)]
pub struct DirtyPages<'s> {
    dirty: &'s DirtyTracker,
    address: u64,
    /// Of a slice over holes of files.
    holes: Option<Arc<Holes>>,
}

/// Holes that a slice reaches over, and the place for the address of a write there.
#[derive(Debug)]
pub(crate) struct Holes {
    pub ranges: Vec<Range<u64>>,
    pub refused: Arc<Refused>,
}

/// The first address of a hole that something was written to through a guard, until it is reported.
#[derive(Debug, Default)]
pub(crate) struct Refused(Mutex<Option<u64>>);

impl Drop for Refused {
    fn drop(&mut self) {
        if let Some(address) = self.take() {
            tracing::error!(address, "what was written to a hole of a file is dropped");
        }
    }
}

impl Refused {
    fn note(&self, address: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(address);
    }

    pub(crate) fn take(&self) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<'s> DirtyPages<'s> {
    pub(crate) const fn new(dirty: &'s DirtyTracker, address: u64) -> Self {
        Self { dirty, address, holes: None }
    }

    /// From `offset` on, where `holes` are among the bytes.
    pub(crate) fn over(&self, offset: u64, holes: Option<Holes>) -> Self {
        Self { address: self.address + offset, holes: holes.map(Arc::new), ..*self }
    }

    fn mark(&self, from: u64, to: u64) {
        if from < to {
            let first = from / PAGE_BYTES;
            self.dirty.mark(first, to.div_ceil(PAGE_BYTES) - first);
        }
    }
}

impl<'s> WithBitmapSlice<'_> for DirtyPages<'s> {
    type S = DirtyPages<'s>;
}

impl BitmapSlice for DirtyPages<'_> {}

impl Bitmap for DirtyPages<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let mut from = self.address + offset as u64;
        let to = from + len as u64;
        for hole in self.holes.iter().flat_map(|holes| &holes.ranges) {
            let inside = hole.start.max(from)..hole.end.min(to);
            if inside.is_empty() {
                continue;
            }
            if let Some(holes) = &self.holes {
                holes.refused.note(inside.start);
            }
            self.mark(from, inside.start);
            from = inside.end;
        }
        self.mark(from, to);
    }

    /// Whether the page was written since writes are recorded and it was last asked for.
    fn dirty_at(&self, offset: usize) -> bool {
        self.dirty.is_marked((self.address + offset as u64) / PAGE_BYTES)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { address: self.address + offset as u64, ..self.clone() }
    }
}
