//! A range of addresses kept for one use: pieces of files appear in it and go again, and the rest
//! is inaccessible.
//!
//! An address of the range is at every moment either a piece of a file or zeros that were mapped
//! there, or `PROT_NONE`: nothing else of the process is ever placed there, and no touch ever finds
//! zeros that nobody asked for. Pieces are not inherited by `fork`: they are mapped and marked
//! elsewhere and then moved into place, so that no child is made in between with one at its place.

// UNSAFETY: mmap, mremap, mprotect, madvise and munmap are unsafe calls.
#![allow(unsafe_code)]

use crate::mapping::region;
use crate::{FileAccess, ForkGuard, MemoryFile, OsError};
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags, madvise, mmap, mmap_anonymous,
    mprotect, mremap_fixed, munmap,
};
use std::ffi::c_void;
use std::ops::Range;
use std::ptr::{self, NonNull};

/// A reserved range of addresses, given back on drop.
#[derive(Debug)]
pub struct Reservation {
    base: NonNull<c_void>,
    len: usize,
    guard: ForkGuard,
}

// SAFETY: a Reservation is an address range that it alone changes, by calls to the kernel. Access
// to the bytes is whoever's who dereferences a raw pointer.
unsafe impl Send for Reservation {}
// SAFETY: as above.
unsafe impl Sync for Reservation {}

impl Reservation {
    /// Reserves `len` bytes at a multiple of `alignment`, both multiples of the page size and
    /// `alignment` a power of two.
    ///
    /// # Errors
    /// `EINVAL` for any other number; `ENOMEM` when the address space has no such gap.
    pub fn anywhere(len: usize, alignment: usize) -> Result<Self, OsError> {
        let failed = |errno| OsError::new("reserve", format!("{len} bytes of addresses"), errno);
        if !is_pages(len) || !is_pages(alignment) || !alignment.is_power_of_two() {
            return Err(failed(Errno::INVAL));
        }
        let guard = ForkGuard::new()?;
        let base = region::reserve(len, alignment).map_err(failed)?;
        Ok(Self { base, len, guard })
    }

    /// Reserves `len` bytes from `address` on, where nothing may be mapped.
    ///
    /// # Errors
    /// `EEXIST` when something is mapped there; `EINVAL` when either is no multiple of the page
    /// size.
    pub fn at(address: usize, len: usize) -> Result<Self, OsError> {
        let failed = |errno| {
            OsError::new("reserve", format!("{len} bytes of addresses from {address:#x} on"), errno)
        };
        if !is_pages(len) || !is_pages(address) {
            return Err(failed(Errno::INVAL));
        }
        let guard = ForkGuard::new()?;
        let base = reserve_at(address, len).map_err(failed)?;
        Ok(Self { base, len, guard })
    }

    /// The addresses.
    #[must_use]
    pub fn addresses(&self) -> Range<usize> {
        let start = self.base.as_ptr() as usize;
        start..start + self.len
    }

    /// Makes `len` bytes of `file` from `file_offset` on appear at `offset`, in one step, over
    /// whatever is there.
    ///
    /// # Errors
    /// `EINVAL` for a part that does not lie in the range or the file, or does not consist of the
    /// file's pages; `ENOMEM` when the number of mappings runs out; `EACCES` for writing a file
    /// that is open for reading. What was there is then there still, or inaccessible.
    pub fn map(
        &self,
        offset: usize,
        file: &MemoryFile,
        file_offset: u64,
        len: usize,
        access: FileAccess,
    ) -> Result<(), OsError> {
        let failed = |errno| {
            let name = file.name();
            OsError::new("map", format!("{len} bytes at {file_offset} of {name}"), errno)
        };
        let is_in_file =
            file_offset.checked_add(len as u64).is_some_and(|end| end <= file.len_bytes());
        let Some(place) = self.part(offset, len).filter(|_| is_in_file) else {
            return Err(failed(Errno::INVAL));
        };
        let page = file.page_size().len_bytes();
        // Of a device the kernel refuses some of these, and others at the first touch, by SIGBUS.
        if [file_offset, len as u64, place as u64].iter().any(|at| !at.is_multiple_of(page)) {
            return Err(failed(Errno::INVAL).with_advice(format!(
                "its pages have {page} bytes, and only whole ones can be mapped, at addresses that \
                 are multiples of that: use folios, offsets and lengths of {page} bytes"
            )));
        }
        let protection = match access {
            FileAccess::ReadOnly => ProtFlags::READ,
            FileAccess::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses a fresh place, so no existing memory is touched.
        let fresh = unsafe { mmap(ptr::null_mut(), len, protection, flags, file, file_offset) }
            .map_err(failed)?;
        // SAFETY: the range mapped above; the advice changes no contents.
        let advised = unsafe { madvise(fresh, len, Advice::LinuxDontFork) };
        let how = MremapFlags::MAYMOVE;
        let moved = advised.and_then(|()| {
            // SAFETY: moves the fresh mapping, which nobody else knows, over a part of the range
            // that this reservation owns; no reference into either exists.
            unsafe { mremap_fixed(fresh, len, len, how, place) }
        });
        moved.map(drop).map_err(|errno| {
            // SAFETY: the fresh mapping, which nobody else knows. It may have been moved in part.
            let _ = unsafe { munmap(fresh, len) };
            // The kernel clears the place before it moves anything there. What is there still
            // is a part of this range, and stays.
            let _ = reserve_at(place as usize, len);
            failed(errno)
        })
    }

    /// Makes `len` bytes from `offset` on private memory of this process that reads as zeros, in
    /// one step, over whatever is there.
    ///
    /// # Errors
    /// As [`vacate`](Self::vacate).
    pub fn map_zeros(&self, offset: usize, len: usize) -> Result<(), OsError> {
        let failed = |errno| OsError::new("map", format!("{len} bytes of zeros"), errno);
        let place = self.part(offset, len).ok_or_else(|| failed(Errno::INVAL))?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: replaces a part of the range that this reservation owns; no reference into it
        // exists.
        unsafe { mmap_anonymous(place, len, protection, flags) }.map(drop).map_err(failed)
    }

    /// Makes `len` bytes from `offset` on the memory of no file, in one step, over whatever is
    /// there: copies fail, other touches are SIGBUS.
    ///
    /// # Errors
    /// As [`vacate`](Self::vacate); `EMFILE`.
    pub fn map_nothing(&self, offset: usize, len: usize) -> Result<(), OsError> {
        let failed = |errno| OsError::new("give up", format!("{len} mapped bytes"), errno);
        let place = self.part(offset, len).ok_or_else(|| failed(Errno::INVAL))?;
        let nothing = rustix::fs::memfd_create("pgmap-nothing", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(failed)?;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: replaces a part of the range that this reservation owns; no reference into it
        // exists. Whoever touches it meets the end of a file.
        unsafe { mmap(place, len, protection, flags, nothing, 0) }.map(drop).map_err(failed)
    }

    /// Makes `len` bytes from `offset` on inaccessible. After that no load or store of any thread
    /// reaches what was there.
    ///
    /// # Errors
    /// `EINVAL` for a part that does not lie in the range or cuts a huge page; `ENOMEM` when the
    /// number of mappings runs out. What was there is then there still.
    pub fn vacate(&self, offset: usize, len: usize) -> Result<(), OsError> {
        let failed = |errno| OsError::new("vacate", format!("{len} bytes of addresses"), errno);
        let place = self.part(offset, len).ok_or_else(|| failed(Errno::INVAL))?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: replaces a part of the range that this reservation owns; no reference into it
        // exists.
        let vacated = unsafe { mmap_anonymous(place, len, ProtFlags::empty(), flags) };
        if vacated.is_ok() {
            return Ok(());
        }
        // A change of protection may need no mapping more.
        // SAFETY: as above.
        unsafe { mprotect(place, len, MprotectFlags::empty()) }.map_err(failed)
    }

    /// A part of the range, in whole pages.
    fn part(&self, offset: usize, len: usize) -> Option<*mut c_void> {
        let is_inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        let is_ours = !self.guard.is_child();
        (is_inside && is_pages(len) && offset.is_multiple_of(PAGE) && is_ours)
            .then(|| self.base.as_ptr().wrapping_byte_add(offset))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // In a forked child the pieces were left out, and something else may be there by now.
        if self.guard.is_child() {
            return;
        }
        // SAFETY: the range was reserved by this value and is given back only here; whoever still
        // has raw pointers into it was notified that it goes.
        let unmapped = unsafe { munmap(self.base.as_ptr(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of one's own range: {unmapped:?}");
    }
}

const PAGE: usize = 4096;

fn is_pages(len: usize) -> bool {
    len != 0 && len.is_multiple_of(PAGE)
}

fn reserve_at(address: usize, len: usize) -> Result<NonNull<c_void>, Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
    let wanted = ptr::without_provenance_mut(address);
    // SAFETY: FIXED_NOREPLACE touches nothing that is mapped.
    let base = unsafe { mmap_anonymous(wanted, len, ProtFlags::empty(), flags) }?;
    if base != wanted {
        // Linux before 4.17 takes the address for a hint.
        // SAFETY: the range mapped above, which nobody else knows.
        let _ = unsafe { munmap(base, len) };
        return Err(Errno::EXIST);
    }
    NonNull::new(base).ok_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PageSize, WriteMapping};
    use std::sync::atomic::Ordering;

    /// The permissions of the mapping at an address, as the kernel shows them, or nothing.
    fn permissions(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| {
            let (start, rest) = line.split_once('-').unwrap();
            let end = rest.split(' ').next().unwrap();
            let number = |text| usize::from_str_radix(text, 16).unwrap();
            (number(start)..number(end)).contains(&address)
        });
        line.map_or_else(String::new, |line| line.split(' ').nth(1).unwrap().to_owned())
    }

    fn load(address: usize) -> u64 {
        // SAFETY: the test has mapped a file there.
        unsafe { ptr::with_exposed_provenance::<u64>(address).read_volatile() }
    }

    #[test]
    fn pages_of_a_file_are_mapped_whole_or_the_error_says_how_large_they_are() {
        const HUGE: usize = 2 << 20;
        let file = match MemoryFile::anonymous("huge", 4 << 20, PageSize::Huge2M) {
            Ok(file) => file,
            Err(error) => return println!("SKIPPED pages_of_a_file_are_mapped_whole: {error}"),
        };
        let kept = Reservation::anywhere(16 << 20, HUGE).unwrap();
        for (offset, file_offset, len) in [(PAGE, 0, HUGE), (0, 4096, HUGE), (0, 0, PAGE)] {
            let error =
                kept.map(offset, &file, file_offset, len, FileAccess::ReadWrite).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL);
            assert!(error.to_string().contains("2097152 bytes"), "{error}");
        }
        kept.map(HUGE, &file, HUGE as u64, HUGE, FileAccess::ReadWrite).unwrap();
        assert_eq!(load(kept.addresses().start + HUGE), 0);
    }

    #[test]
    fn pieces_come_and_go_and_the_rest_is_inaccessible() {
        let file = MemoryFile::anonymous("reservation-test", 1 << 20, PageSize::Base).unwrap();
        let words = WriteMapping::map(&file, 0, 1 << 20).unwrap();
        for page in 0..256 {
            words.words()[page * 512].store(page as u64, Ordering::Relaxed);
        }
        let kept = Reservation::anywhere(4 << 30, 1 << 30).unwrap();
        let start = kept.addresses().start;
        assert!(start.is_multiple_of(1 << 30));
        assert_eq!(permissions(start), "---p");
        kept.map(8 * PAGE, &file, 3 * 4096, 4 * PAGE, FileAccess::ReadOnly).unwrap();
        assert_eq!((load(start + 8 * PAGE), load(start + 11 * PAGE)), (3, 6));
        assert_eq!(permissions(start + 8 * PAGE), "r--s");
        kept.map(9 * PAGE, &file, 100 * 4096, PAGE, FileAccess::ReadWrite).unwrap();
        assert_eq!((load(start + 8 * PAGE), load(start + 9 * PAGE)), (3, 100));
        assert_eq!(permissions(start + 9 * PAGE), "rw-s");
        kept.map_zeros(9 * PAGE, PAGE).unwrap();
        assert_eq!((load(start + 9 * PAGE), load(start + 10 * PAGE)), (0, 5));
        assert_eq!(permissions(start + 9 * PAGE), "rw-p");
        kept.vacate(0, 11 * PAGE).unwrap();
        assert_eq!(permissions(start + 9 * PAGE), "---p");
        assert_eq!(load(start + 11 * PAGE), 6);
        drop(kept);
        assert_eq!(permissions(start), "");
    }

    #[test]
    fn what_lies_outside_the_range_or_the_file_is_refused() {
        let file = MemoryFile::anonymous("reservation-test", 1 << 20, PageSize::Base).unwrap();
        let kept = Reservation::anywhere(16 * PAGE, PAGE).unwrap();
        let errno = |offset, file_offset, len| {
            let mapped = kept.map(offset, &file, file_offset, len, FileAccess::ReadOnly);
            mapped.unwrap_err().errno()
        };
        for (offset, file_offset, len) in [
            (16 * PAGE, 0, PAGE),
            (15 * PAGE, 0, 2 * PAGE),
            (0, 1 << 20, PAGE),
            (0, u64::MAX, PAGE),
            (0, 0, 0),
            (1, 0, PAGE),
            (0, 0, 100),
            (usize::MAX - 4095, 0, PAGE),
        ] {
            assert_eq!(errno(offset, file_offset, len), libc::EINVAL, "{offset:#x} {len}");
        }
        assert_eq!(kept.map_zeros(15 * PAGE, 2 * PAGE).unwrap_err().errno(), libc::EINVAL);
        assert_eq!(kept.vacate(PAGE, usize::MAX).unwrap_err().errno(), libc::EINVAL);
        assert_eq!(Reservation::anywhere(4096, 3 * PAGE).unwrap_err().errno(), libc::EINVAL);
    }

    #[test]
    fn a_failed_mapping_leaves_the_addresses_inaccessible_or_as_they_were() {
        let file = MemoryFile::anonymous("reservation-test", 1 << 20, PageSize::Base).unwrap();
        let reader = file.reopen(FileAccess::ReadOnly).unwrap();
        let kept = Reservation::anywhere(16 * PAGE, PAGE).unwrap();
        let start = kept.addresses().start;
        kept.map(0, &file, 0, PAGE, FileAccess::ReadWrite).unwrap();
        let refused = kept.map(0, &reader, 0, PAGE, FileAccess::ReadWrite).unwrap_err();
        assert_eq!((refused.errno(), permissions(start).as_str()), (libc::EACCES, "rw-s"));
    }

    #[test]
    fn a_chosen_place_is_taken_only_where_nothing_is() {
        // Far from where the kernel puts what other tests map meanwhile.
        let address = 0x2100_0000_0000;
        let first = Reservation::at(address, 16 * PAGE).unwrap();
        assert_eq!(Reservation::at(address, PAGE).unwrap_err().errno(), libc::EEXIST);
        drop(first);
        let second = Reservation::at(address, 16 * PAGE).unwrap();
        assert_eq!(second.addresses(), address..address + 16 * PAGE);
    }
}
