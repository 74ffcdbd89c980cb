//! "Am I the child of the process that made this?", in one load.
//!
//! A forked child inherits every mapping and every descriptor, but none of the standing that its
//! parent has with others. One private page, wiped by the kernel in the child (`MADV_WIPEONFORK`,
//! Linux 4.14), tells the two apart without asking for a pid: it holds a mark where it was made,
//! and 0 in every descendant by `fork`. `vfork` and `CLONE_VM` children share memory and read the
//! mark. The mark is the maker's to choose, so that the one load can answer another question too.

// UNSAFETY: mmap, madvise and munmap are unsafe calls, and the page is read through a pointer.
#![allow(unsafe_code)]

use crate::OsError;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::num::NonZeroU32;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

/// The kernel rounds the length up to its own page size, whichever that is.
const GUARD_LEN_BYTES: usize = 4096;

/// A page that reads its mark in the process that made it and 0 in its forked children.
#[derive(Debug)]
pub struct ForkGuard {
    word: NonNull<AtomicU32>,
    /// Whose guard it is in a simulation, where a child is another party.
    #[cfg(feature = "sim")]
    pid: u32,
}

// SAFETY: the guard owns its page; the pointer is only ever used for atomic loads and in Drop.
unsafe impl Send for ForkGuard {}
// SAFETY: as above; shared use is atomic loads only.
unsafe impl Sync for ForkGuard {}

impl ForkGuard {
    /// Makes a guard that belongs to the calling process, with mark 1.
    ///
    /// # Errors
    /// As [`with_mark`](Self::with_mark).
    pub fn new() -> Result<Self, OsError> {
        Self::with_mark(NonZeroU32::MIN)
    }

    /// Makes a guard that belongs to the calling process and reads `mark` there.
    ///
    /// # Errors
    /// `ENOMEM` without memory; `EINVAL` on a kernel older than 4.14.
    pub fn with_mark(mark: NonZeroU32) -> Result<Self, OsError> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses a fresh place, so no existing memory is touched.
        let mapped = unsafe {
            mmap_anonymous(ptr::null_mut(), GUARD_LEN_BYTES, protection, MapFlags::PRIVATE)
        };
        let base = mapped.map_err(|errno| OsError::new("map", "a fork guard page", errno))?;
        let Some(word) = NonNull::new(base.cast::<AtomicU32>()) else {
            // The kernel puts nothing at address 0 unless asked to.
            return Err(OsError::new("map", "a fork guard page", rustix::io::Errno::NOMEM));
        };
        let guard = Self {
            word,
            #[cfg(feature = "sim")]
            pid: crate::process::id(),
        };
        // SAFETY: the range is the page mapped above, which nobody else knows.
        let advised = unsafe { madvise(base, GUARD_LEN_BYTES, Advice::LinuxWipeOnFork) };
        advised.map_err(|errno| {
            OsError::new("wipe on fork", "a fork guard page", errno)
                .with_advice("MADV_WIPEONFORK needs Linux 4.14")
        })?;
        guard.word().store(mark.get(), Ordering::Relaxed);
        Ok(guard)
    }

    /// Returns true in a forked child of the process that made the guard.
    #[inline(always)]
    pub fn is_child(&self) -> bool {
        self.mark() == 0
    }

    /// Returns the mark, or 0 in a forked child of the process that made the guard.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        #[cfg(feature = "sim")]
        if crate::process::id() != self.pid {
            return 0;
        }
        // Relaxed: the only other writer is the kernel, before the child's first instruction.
        self.word().load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn word(&self) -> &AtomicU32 {
        // SAFETY: the page was mapped readable and writable in `new`, is aligned, zeroed or the
        // mark, is accessed only as this atomic, and stays mapped until Drop, which ends the
        // borrow.
        unsafe { self.word.as_ref() }
    }
}

impl Drop for ForkGuard {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `new`, is unmapped only here, and no borrow of it is left.
        let unmapped = unsafe { munmap(self.word.as_ptr().cast(), GUARD_LEN_BYTES) };
        debug_assert!(unmapped.is_ok(), "munmap of one's own page: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_is_not_a_child_and_threads_are_not_children() {
        let guard = ForkGuard::new().unwrap();
        assert!(!guard.is_child());
        std::thread::scope(|scope| {
            assert!(!scope.spawn(|| guard.is_child()).join().unwrap());
        });
    }
}
