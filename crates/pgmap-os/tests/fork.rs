//! What a forked child inherits and what it does not: with real forks.

// UNSAFETY: fork, _exit and waitpid are the subject; rustix offers no fork.
#![allow(unsafe_code)]

use pgmap_os::{Access, ForkGuard, MemoryFile, PageSize, WriteMapping, file_lock};
use std::sync::atomic::Ordering;

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Exit(i32),
    Signal(i32),
}

/// Runs `child` in a forked child; its answer becomes the exit status. It must not allocate, lock or
/// panic: another thread of this process may hold any lock at the moment of the fork.
fn in_forked_child(child: impl Fn() -> i32) -> End {
    // SAFETY: the child runs only `child`, which keeps to the rule above, and then leaves.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let status = child();
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child; the status lives on this stack.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid);
    if libc::WIFSIGNALED(status) {
        End::Signal(libc::WTERMSIG(status))
    } else {
        End::Exit(libc::WEXITSTATUS(status))
    }
}

#[test]
fn fork_guard_tells_child_from_parent() {
    let guard = ForkGuard::new().unwrap();
    assert_eq!(in_forked_child(|| i32::from(guard.is_child())), End::Exit(1));
    assert!(!guard.is_child(), "the parent stays what it is");
}

#[test]
fn mapping_is_shared_with_a_child_unless_it_is_left_out() {
    let file = MemoryFile::anonymous("fork-test", 8192, PageSize::Base).unwrap();
    let shared = WriteMapping::map(&file, 0, 4096).unwrap();
    let private = WriteMapping::map(&file, 4096, 4096).unwrap();
    private.advise_dont_fork().unwrap();
    let store_shared = || {
        shared.words()[0].store(5, Ordering::Release);
        0
    };
    assert_eq!(in_forked_child(store_shared), End::Exit(0));
    assert_eq!(shared.words()[0].load(Ordering::Acquire), 5);
    let store_left_out = || {
        private.words()[0].store(5, Ordering::Release);
        0
    };
    assert_eq!(in_forked_child(store_left_out), End::Signal(libc::SIGSEGV));
    assert_eq!(private.words()[0].load(Ordering::Acquire), 0);
}

#[test]
fn forked_child_shares_the_lock_and_cannot_be_told_apart_by_it() {
    let file = MemoryFile::anonymous("fork-lock", 4096, PageSize::Base).unwrap();
    let other = file.reopen(Access::ReadWrite).unwrap();
    assert!(file_lock::try_lock_exclusive(&file).unwrap());
    // The same description: the child "holds" the lock too. Another description: it does not.
    let asks = |file: &MemoryFile| match file_lock::try_lock_exclusive(file) {
        Ok(true) => 1,
        Ok(false) => 0,
        Err(_) => 2,
    };
    assert_eq!(in_forked_child(|| asks(&file)), End::Exit(1));
    assert_eq!(in_forked_child(|| asks(&other)), End::Exit(0));
    assert!(file_lock::is_locked(&other).unwrap(), "the child's end did not free it");
}
