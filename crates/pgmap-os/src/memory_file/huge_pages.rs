//! Huge pages of hugetlbfs: which sizes, how many are left, and how to promise some to a file.
//!
//! The kernel hands huge pages out from a pool that the administrator fills. A mapping that finds
//! the pool empty dies by SIGBUS, so a file of huge pages gets its promise when it is made: mapping
//! it once without `MAP_NORESERVE` books the pages for the *file*, and the booking outlives the
//! mapping (Linux: mm/hugetlb.c, `hugetlb_reserve_pages`, VM_MAYSHARE). Punching a hole gives the
//! booking back with the page; `MemoryFile::reserve` books again.

// UNSAFETY: the booking is made by mmap and munmap, which are unsafe calls.
#![allow(unsafe_code)]

use crate::OsError;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs;
use std::os::fd::BorrowedFd;
use std::ptr;

/// The size of the pages that a file's memory comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageSize {
    /// The machine's base page, 4 KiB on x86-64 (a transparent huge page is an optimisation of it).
    Base,
    /// 2 MiB pages of hugetlbfs.
    Huge2M,
    /// 1 GiB pages of hugetlbfs.
    Huge1G,
}

impl PageSize {
    /// Returns the size in bytes.
    pub fn len_bytes(self) -> u64 {
        match self {
            Self::Base => rustix::param::page_size() as u64,
            Self::Huge2M => 2 << 20,
            Self::Huge1G => 1 << 30,
        }
    }

    /// Returns the hugetlbfs page size of `len` bytes, if it is one that we know.
    pub(super) fn huge_from_bytes(len: u64) -> Option<Self> {
        [Self::Huge2M, Self::Huge1G].into_iter().find(|size| size.len_bytes() == len)
    }

    pub(super) fn memfd_flags(self) -> MemfdFlags {
        match self {
            Self::Base => MemfdFlags::empty(),
            Self::Huge2M => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            Self::Huge1G => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        }
    }

    fn sysfs_dir(self) -> String {
        format!("/sys/kernel/mm/hugepages/hugepages-{}kB", self.len_bytes() / 1024)
    }
}

/// What `/sys` says of one huge page size.
#[derive(Debug, Clone, Copy)]
struct HugePageCounts {
    nr_pages: u64,
    nr_free: u64,
    nr_booked: u64,
}

impl HugePageCounts {
    /// `None` if the size is unknown to this machine or `/sys` is hidden.
    fn read(size: PageSize) -> Option<Self> {
        let read = |name| {
            let text = fs::read_to_string(format!("{}/{name}", size.sysfs_dir())).ok()?;
            text.trim().parse().ok()
        };
        Some(Self {
            nr_pages: read("nr_hugepages")?,
            nr_free: read("free_hugepages")?,
            nr_booked: read("resv_hugepages")?,
        })
    }

    fn nr_left(self) -> u64 {
        self.nr_free.saturating_sub(self.nr_booked)
    }
}

/// Returns the bytes of huge pages that nobody has taken or booked, if `/sys` says so.
pub(super) fn available_bytes(size: PageSize) -> Option<u64> {
    Some(HugePageCounts::read(size)?.nr_left() * size.len_bytes())
}

/// Books huge pages for the first `len` bytes of a hugetlbfs file.
pub(super) fn book(
    fd: BorrowedFd<'_>,
    subject: &str,
    size: PageSize,
    len: u64,
) -> Result<(), OsError> {
    // SAFETY: the kernel chooses a fresh place, so no existing memory is touched.
    let mapped = unsafe {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        mmap(ptr::null_mut(), len as usize, protection, MapFlags::SHARED, fd, 0)
    };
    let base =
        mapped.map_err(|errno| shortage("book huge pages for", subject, size, len, errno))?;
    // SAFETY: the range was mapped above; nobody else knows of it.
    let unmapped = unsafe { munmap(base, len as usize) };
    unmapped.map_err(|errno| OsError::new("unmap", subject, errno))
}

/// Describes an errno of a call that needed `len` bytes of huge pages, with what is missing.
pub(super) fn shortage(
    what: &'static str,
    subject: &str,
    size: PageSize,
    len: u64,
    errno: Errno,
) -> OsError {
    let error = OsError::new(what, subject, errno);
    if !matches!(errno, Errno::NOMEM | Errno::NOSPC | Errno::NODEV | Errno::INVAL | Errno::NOENT) {
        return error;
    }
    let kib = size.len_bytes() / 1024;
    let nr_needed = len.div_ceil(size.len_bytes());
    let Some(counts) = HugePageCounts::read(size) else {
        return error.with_advice(format!("this machine offers no pages of {kib} KiB"));
    };
    let nr_missing = nr_needed.saturating_sub(counts.nr_left());
    let (nr_left, nr_wanted) = (counts.nr_left(), counts.nr_pages + nr_missing);
    error.with_advice(format!(
        "{nr_missing} pages of {kib} KiB are missing: {nr_needed} are needed and {nr_left} are \
         free; as root: echo {nr_wanted} > {}/nr_hugepages",
        size.sysfs_dir()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortage_says_how_many_are_missing_and_how_to_get_them() {
        let Some(counts) = HugePageCounts::read(PageSize::Huge2M) else {
            println!("SKIPPED shortage_says_how_many...: no 2 MiB pages in /sys on this machine");
            return;
        };
        let nr_needed = counts.nr_left() + 3;
        let error = shortage("book", "memfd:x", PageSize::Huge2M, nr_needed << 21, Errno::NOMEM);
        let text = error.to_string();
        assert!(text.contains("3 pages of 2048 KiB are missing"), "{text}");
        assert!(text.contains("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"), "{text}");
    }

    #[test]
    fn page_sizes_are_recognised_by_their_bytes() {
        assert_eq!(PageSize::huge_from_bytes(1 << 30), Some(PageSize::Huge1G));
        assert_eq!(PageSize::huge_from_bytes(2 << 20), Some(PageSize::Huge2M));
        assert_eq!(PageSize::huge_from_bytes(4096), None);
    }
}
