//! Descriptors that stay with the process that opened them: a forked child does not keep them.
//!
//! `fork` copies every descriptor, and what lives as long as its last copy then outlives its
//! process: an open-file-description lock, a listening socket, a connection. Closing on exec does
//! not help with a child that never calls exec. So such descriptors are registered here. In a child
//! made by `fork(3)` each is replaced by `/dev/null` before `fork` returns (`pthread_atfork`): its
//! number stays taken, so that the child may drop what it inherited, and the description is the
//! parent's alone.
//!
//! # Limits
//! - A child made by a raw `clone` keeps its copies: nobody is asked there. `vfork` and
//!   `posix_spawn` do not ask either, and their children call exec.
//! - At most [`MAX_KEPT`] descriptors are registered; further ones are inherited.
//! - A descriptor that another thread is just opening when a thread forks may be inherited.
//!
//! # Who may touch what
//! A slot belongs to the [`ParentFd`] that took it; the handler runs in the child's only thread.
//!
//! # Orderings
//! A slot is filled by the thread that has the descriptor and read in a child, which is a copy of
//! the whole process at one moment: there is nobody to order anything against, so all is Relaxed.

// UNSAFETY: pthread_atfork takes a function pointer that runs in the child, and dup3 there replaces
// descriptors by number.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

/// Most descriptors that are kept from children.
pub const MAX_KEPT: usize = 16_384;
const NONE: RawFd = -1;

static SLOTS: [AtomicI32; MAX_KEPT] = [const { AtomicI32::new(NONE) }; MAX_KEPT];
/// Slots from here on were never used.
static NR_USED: AtomicUsize = AtomicUsize::new(0);
/// Where to look for a free slot first.
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// What children get instead; absent if the handler could not be installed.
static NOTHING: OnceLock<Option<File>> = OnceLock::new();

/// A descriptor that forked children do not keep.
#[derive(Debug)]
pub struct ParentFd {
    // Given back before the number can be somebody else's.
    registration: Registration,
    fd: OwnedFd,
}

#[derive(Debug)]
struct Registration(Option<usize>);

impl ParentFd {
    /// Keeps `fd` from the children that are forked from now on.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        let is_installed = NOTHING.get_or_init(install).is_some();
        let slot = if is_installed { take_slot(fd.as_raw_fd()) } else { None };
        Self { registration: Registration(slot), fd }
    }

    /// The descriptor, which children inherit from now on.
    #[must_use]
    pub fn into_inner(self) -> OwnedFd {
        let Self { registration, fd } = self;
        drop(registration);
        fd
    }
}

impl From<File> for ParentFd {
    fn from(file: File) -> Self {
        Self::new(file.into())
    }
}

impl AsFd for ParentFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            SLOTS[slot].store(NONE, Ordering::Relaxed);
        }
    }
}

fn take_slot(fd: RawFd) -> Option<usize> {
    let start = NEXT.load(Ordering::Relaxed);
    // Once around at most.
    for turn in 0..MAX_KEPT {
        let slot = (start + turn) % MAX_KEPT;
        let taken = SLOTS[slot].compare_exchange(NONE, fd, Ordering::Relaxed, Ordering::Relaxed);
        if taken.is_ok() {
            NEXT.store((slot + 1) % MAX_KEPT, Ordering::Relaxed);
            NR_USED.fetch_max(slot + 1, Ordering::Relaxed);
            return Some(slot);
        }
    }
    None
}

fn install() -> Option<File> {
    let nothing = File::open("/dev/null").ok()?;
    // SAFETY: the handler is a function of this program, which is never unloaded before it ends,
    // and does only what may be done in the child of a process with threads.
    let result = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    (result == 0).then_some(nothing)
}

/// Runs in the child before `fork` returns. Only loads, stores and `dup3`: nothing that takes a
/// lock.
unsafe extern "C" fn in_child() {
    let Some(Some(nothing)) = NOTHING.get() else { return };
    for slot in &SLOTS[..NR_USED.load(Ordering::Relaxed).min(MAX_KEPT)] {
        let fd = slot.swap(NONE, Ordering::Relaxed);
        if fd != NONE {
            // SAFETY: the number belongs to a ParentFd, of which this child has a copy; whatever it
            // does with that afterwards it does with /dev/null. A failure leaves the copy as it is.
            unsafe { libc::dup3(nothing.as_raw_fd(), fd, libc::O_CLOEXEC) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_again_when_its_descriptor_is_gone_or_given_out() {
        let open = || OwnedFd::from(File::open("/dev/null").unwrap());
        let kept = ParentFd::new(open());
        let slot = kept.registration.0.unwrap();
        assert_eq!(SLOTS[slot].load(Ordering::Relaxed), kept.as_fd().as_raw_fd());
        let inner = kept.into_inner();
        assert_ne!(SLOTS[slot].load(Ordering::Relaxed), inner.as_raw_fd());
        let again = ParentFd::new(inner);
        let slot = again.registration.0.unwrap();
        drop(again);
        assert_eq!(SLOTS[slot].load(Ordering::Relaxed), NONE);
    }
}
