//! What a forked child inherits and what it does not: with real forks.

// UNSAFETY: fork, _exit and waitpid are the subject; rustix offers no fork.
#![allow(unsafe_code)]

use pgmap_os::{FileAccess, ForkGuard, MemoryFile, PageSize, WriteMapping, file_lock};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Each test forks alone: a child of another test, forked while a descriptor is being opened here,
/// keeps it for as long as it lives. One that dumps core lives long enough to be seen.
fn fork_alone() -> MutexGuard<'static, ()> {
    static FORK: Mutex<()> = Mutex::new(());
    FORK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Exit(i32),
    Signal(i32),
}

/// Runs `child` in a forked child; its answer becomes the exit status. It must not allocate, lock
/// or panic: another thread of this process may hold any lock at the moment of the fork.
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
    let _alone = fork_alone();
    let guard = ForkGuard::new().unwrap();
    assert_eq!(in_forked_child(|| i32::from(guard.is_child())), End::Exit(1));
    assert!(!guard.is_child(), "the parent stays what it is");
}

#[test]
fn a_forked_child_keeps_no_lock_no_listener_and_no_connection_of_its_parent() {
    let _alone = fork_alone();
    use pgmap_os::{Connection, Listener, ParentFd};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("locked");
    let open = || {
        std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .unwrap()
    };
    let lock = ParentFd::from(open());
    assert!(file_lock::try_lock_exclusive(&lock).unwrap());
    let socket = directory.path().join("s");
    let listener = Listener::bind(&socket, 0o600).unwrap();
    let caller = Connection::connect(&socket).unwrap();
    let accepted = listener.accept().unwrap().unwrap();
    let (mut said, say) = std::io::pipe().unwrap();
    let (go_on, mut tell) = std::io::pipe().unwrap();
    // SAFETY: the child only reads a pipe and leaves.
    let child = unsafe { libc::fork() };
    if child == 0 {
        use std::io::{Read, Write};
        drop(tell);
        // What it inherited it may drop: those numbers are /dev/null's now.
        drop((accepted, caller));
        let _ = (&say).write_all(b"x");
        let _ = (&go_on).read(&mut [0]);
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(0) };
    }
    use std::io::{Read, Write};
    said.read_exact(&mut [0]).unwrap();
    // The parent lets go; the child is there, and nothing is held by it.
    drop(lock);
    assert!(file_lock::try_lock_exclusive(open()).unwrap(), "the child keeps no lock");
    drop(accepted);
    assert!(caller.recv(&mut [0]).unwrap().is_end(), "the child keeps no connection");
    drop(listener);
    let again = Listener::bind(&socket, 0o600).unwrap();
    drop(again);
    tell.write_all(b"x").unwrap();
    let mut status = 0;
    // SAFETY: waits for our own child; the status lives on this stack.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
}

#[test]
fn mapping_is_shared_with_a_child_unless_it_is_left_out() {
    let _alone = fork_alone();
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
    let _alone = fork_alone();
    let file = MemoryFile::anonymous("fork-lock", 4096, PageSize::Base).unwrap();
    let other = file.reopen(FileAccess::ReadWrite).unwrap();
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
