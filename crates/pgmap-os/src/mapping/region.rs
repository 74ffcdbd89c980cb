//! One mapped range of addresses: where it goes, and that it is unmapped again.
//!
//! # Placement
//! A range of 2 MiB or more starts at a multiple of 2 MiB (1 GiB on pages of that size), so that
//! huge pages fit and so that the low bits of an address and of an offset agree. The kernel makes
//! no such promise: we reserve more than we need, map over an aligned part of our own reservation,
//! and return the rest. Nothing but that reservation is ever mapped over.

// UNSAFETY: mmap, munmap and madvise are unsafe calls.
#![allow(unsafe_code)]

use crate::{MemoryFile, OsError, PageSize};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::ops::Range;
use std::ptr::{self, NonNull};

/// Ranges of at least this length start at a multiple of it.
pub(crate) const LARGE_ALIGNMENT_BYTES: u64 = 2 << 20;

/// A mapped range, unmapped on drop.
#[derive(Debug)]
pub(super) struct Region {
    base: NonNull<u8>,
    /// What the caller asked for and may touch.
    len: usize,
    /// What is mapped: the whole pages around that.
    mapped: NonNull<c_void>,
    mapped_len: usize,
    protection: ProtFlags,
}

// SAFETY: a Region is an address range that it alone unmaps; its methods only pass the range to the
// kernel. Access to the bytes is the business of the types around it.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes of `file` from `offset` on, shared.
    pub(super) fn map(
        file: &MemoryFile,
        offset: u64,
        len: u64,
        protection: ProtFlags,
    ) -> Result<Self, OsError> {
        let page = file.page_size().len_bytes();
        let base_page = PageSize::Base.len_bytes();
        let failed = |errno| {
            OsError::new("map", format!("{len} bytes at {offset} of {}", file.name()), errno)
        };
        if len == 0 || !offset.is_multiple_of(base_page) {
            return Err(failed(Errno::INVAL).with_advice(format!(
                "the length must not be 0 and the offset a multiple of the page size, {base_page}"
            )));
        }
        let file_len = file.len_bytes();
        let fits = offset.checked_add(len).is_some_and(|end| end <= file_len);
        // File lengths fit in an i64, so from here on no sum of a length and a page overflows.
        if !fits {
            return Err(failed(Errno::INVAL)
                .with_advice(format!("the file ends at {file_len}: nothing lies behind that")));
        }
        // Huge pages and devices are mapped in whole pages of their own.
        let lead = (offset % page) as usize;
        let mapped_len = (lead as u64 + len).next_multiple_of(page) as usize;
        let mapped_offset = offset - lead as u64;
        let alignment = alignment_for(mapped_len as u64, page) as usize;
        let mapped = crate::sim::call("mmap")
            .and_then(|()| reserve(mapped_len, alignment))
            .map_err(failed)?;
        // Booked huge pages must stay booked; everything else is taken when it is touched.
        // Copies rely on it, and here it costs them nothing.
        crate::sigbus::install()?;
        let commitment = match file.page_size() {
            PageSize::Base => MapFlags::NORESERVE,
            _ => MapFlags::empty(),
        };
        let flags = MapFlags::SHARED | MapFlags::FIXED | commitment;
        // SAFETY: MAP_FIXED replaces exactly the range that `reserve` just mapped for us and that
        // nobody else has seen.
        let made =
            unsafe { mmap(mapped.as_ptr(), mapped_len, protection, flags, file, mapped_offset) };
        // Owns the range either way: a failed MAP_FIXED leaves the reservation or a hole there, and
        // unmapping a hole that only we know of is no error.
        let base =
            NonNull::new(mapped.as_ptr().wrapping_byte_add(lead).cast()).unwrap_or(mapped.cast());
        let region = Self { base, len: len as usize, mapped, mapped_len, protection };
        made.map_err(failed)?;
        Ok(region)
    }

    #[inline]
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Keeps `len` addresses, from a multiple of `page` on, with nothing behind them: copies fail.
    /// Parts can be shown there.
    pub(super) fn span(len: u64, page: PageSize, protection: ProtFlags) -> Result<Self, OsError> {
        let failed = |errno| OsError::new("keep", format!("{len} bytes of addresses"), errno);
        crate::sigbus::install()?;
        let mapped_len = usize::try_from(len).map_err(|_| failed(Errno::NOMEM))?;
        let mapped_len = mapped_len.next_multiple_of(PageSize::Base.len_bytes() as usize);
        let alignment = alignment_for(len, page.len_bytes()) as usize;
        let mapped = crate::sim::call("mmap")
            .and_then(|()| reserve(mapped_len, alignment))
            .map_err(failed)?;
        let base = mapped.cast();
        let region = Self { base, len: len as usize, mapped, mapped_len, protection };
        region.abandon()?;
        Ok(region)
    }

    /// Maps `len` bytes of `file` from `offset` on, shared, at byte `at` of a
    /// [`span`](Self::span), in the place of what was there. What follows up to the end of the last
    /// page is mapped too.
    pub(super) fn show(
        &self,
        at: u64,
        file: &MemoryFile,
        offset: u64,
        len: u64,
    ) -> Result<(), OsError> {
        let page = file.page_size().len_bytes();
        let failed = |errno| {
            OsError::new("map", format!("{len} bytes at {offset} of {}", file.name()), errno)
        };
        let mapped_len = len.checked_next_multiple_of(page);
        let end = mapped_len.and_then(|mapped_len| at.checked_add(mapped_len));
        let address = self.mapped.as_ptr().wrapping_byte_add(at as usize);
        let is_aligned = offset.is_multiple_of(page) && (address as u64).is_multiple_of(page);
        let is_inside = end.is_some_and(|end| end <= self.mapped_len as u64);
        let (Some(mapped_len), true, true) = (mapped_len, is_aligned && len > 0, is_inside) else {
            return Err(failed(Errno::INVAL).with_advice(format!(
                "offset and place must be multiples of the page size, {page}, and the end inside \
                 the {} bytes of addresses",
                self.mapped_len
            )));
        };
        let file_len = file.len_bytes();
        if offset.checked_add(len).is_none_or(|end| end > file_len) {
            return Err(failed(Errno::INVAL)
                .with_advice(format!("the file ends at {file_len}: nothing lies behind that")));
        }
        let commitment = match file.page_size() {
            PageSize::Base => MapFlags::NORESERVE,
            _ => MapFlags::empty(),
        };
        let flags = MapFlags::SHARED | MapFlags::FIXED | commitment;
        crate::sim::call("mmap").map_err(failed)?;
        // SAFETY: MAP_FIXED replaces a part of the range that this Region mapped and will unmap:
        // both ends were checked. Whoever looks there sees other bytes of shared memory, as if
        // another process had written them.
        let made =
            unsafe { mmap(address, mapped_len as usize, self.protection, flags, file, offset) };
        made.map(drop).map_err(failed)
    }

    /// Puts a file without a byte in the place of what is mapped: copies fail from now on, and
    /// nothing of the file that was mapped is kept.
    pub(super) fn abandon(&self) -> Result<(), OsError> {
        self.hide(0, self.mapped_len as u64)
    }

    /// As [`abandon`](Self::abandon), of the whole pages of `len` bytes from `at` on.
    pub(super) fn hide(&self, at: u64, len: u64) -> Result<(), OsError> {
        let failed = |errno| OsError::new("give up", format!("{len} mapped bytes"), errno);
        let len = len.next_multiple_of(PageSize::Base.len_bytes());
        let is_inside = at.checked_add(len).is_some_and(|end| end <= self.mapped_len as u64);
        if !is_inside || !at.is_multiple_of(PageSize::Base.len_bytes()) {
            return Err(failed(Errno::INVAL));
        }
        let nothing =
            rustix::fs::memfd_create("pgmap-nothing", MemfdFlags::CLOEXEC).map_err(failed)?;
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
        let address = self.mapped.as_ptr().wrapping_byte_add(at as usize);
        // SAFETY: MAP_FIXED replaces a part of the range that this Region mapped and will unmap:
        // both ends were checked. Whoever touches it meets the end of a file, as if its own file
        // had been cut shorter.
        let mapped = unsafe { mmap(address, len as usize, self.protection, flags, nothing, 0) };
        mapped.map(drop).map_err(failed)
    }

    /// Passes advice that cannot change the contents.
    pub(super) fn advise(&self, advice: HarmlessAdvice) -> Result<(), Errno> {
        let range: *mut c_void = self.mapped.as_ptr();
        // SAFETY: the range is mapped by this Region; none of the advice discards or remaps memory.
        unsafe { madvise(range, self.mapped_len, advice.to_os()) }
    }

    /// As [`advise`](Self::advise), for the base pages around `bytes`.
    pub(super) fn advise_range(
        &self,
        bytes: Range<u64>,
        advice: HarmlessAdvice,
    ) -> Result<(), Errno> {
        if bytes.start >= bytes.end || bytes.end > self.len as u64 {
            return Err(Errno::RANGE);
        }
        let page = PageSize::Base.len_bytes() as usize;
        let start = self.base.as_ptr().wrapping_add(bytes.start as usize);
        let before = start.addr() % page;
        let first: *mut c_void = start.wrapping_sub(before).cast();
        let len = before + (bytes.end - bytes.start) as usize;
        // SAFETY: the bytes are inside the range that is mapped by this Region, which consists of
        // whole pages; none of the advice discards or remaps memory.
        unsafe { madvise(first, len, advice.to_os()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map` and is unmapped only here; borrows of its bytes
        // borrow the mapping around this Region, so none is left.
        let unmapped = unsafe { munmap(self.mapped.as_ptr(), self.mapped_len) };
        debug_assert!(unmapped.is_ok(), "munmap of one's own range: {unmapped:?}");
    }
}

/// The advice that leaves contents and places alone.
#[derive(Debug, Clone, Copy)]
pub(super) enum HarmlessAdvice {
    PopulateWrite,
    PopulateRead,
    DontFork,
    HugePages,
    DontDump,
}

impl HarmlessAdvice {
    fn to_os(self) -> Advice {
        match self {
            Self::PopulateWrite => Advice::LinuxPopulateWrite,
            Self::PopulateRead => Advice::LinuxPopulateRead,
            Self::DontFork => Advice::LinuxDontFork,
            Self::HugePages => Advice::LinuxHugepage,
            Self::DontDump => Advice::LinuxDontDump,
        }
    }
}

fn alignment_for(mapped_len: u64, page: u64) -> u64 {
    if mapped_len >= LARGE_ALIGNMENT_BYTES { page.max(LARGE_ALIGNMENT_BYTES) } else { page }
}

/// Takes `len` bytes of address space, inaccessible, at a multiple of `alignment`.
pub(crate) fn reserve(len: usize, alignment: usize) -> Result<NonNull<c_void>, Errno> {
    let base_page = PageSize::Base.len_bytes() as usize;
    let slack = alignment - base_page;
    let total = len.checked_add(slack).ok_or(Errno::NOMEM)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: the kernel chooses a fresh place, so no existing memory is touched.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), total, ProtFlags::empty(), flags) }?;
    let head = (start as usize).next_multiple_of(alignment) - start as usize;
    let base = start.wrapping_byte_add(head);
    // len is in whole pages of at least the base page, so both ends of the middle are page-aligned.
    give_back(start, head);
    give_back(base.wrapping_byte_add(len), slack - head);
    NonNull::new(base).ok_or(Errno::NOMEM)
}

/// Unmaps a part of a reservation. If the kernel cannot (too many mappings) the part stays
/// reserved: address space without memory, which nobody misses.
fn give_back(start: *mut c_void, len: usize) {
    if len == 0 {
        return;
    }
    // SAFETY: the part belongs to a reservation of `reserve` that nobody else has seen and that no
    // reference points into.
    let _ = unsafe { munmap(start, len) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_ranges_are_aligned_to_two_mib_or_their_own_page() {
        assert_eq!(alignment_for(4096, 4096), 4096);
        assert_eq!(alignment_for((2 << 20) - 4096, 4096), 4096);
        assert_eq!(alignment_for(2 << 20, 4096), 2 << 20);
        assert_eq!(alignment_for(1 << 30, 1 << 30), 1 << 30);
    }

    #[test]
    fn reservations_come_aligned_and_return_their_slack() {
        for alignment in [4096, 2 << 20, 1 << 30] {
            let base = reserve(4 << 20, alignment).unwrap();
            assert!((base.as_ptr() as usize).is_multiple_of(alignment));
            give_back(base.as_ptr(), 4 << 20);
        }
        assert!(reserve(usize::MAX - 4095, 2 << 20).is_err());
    }
}
