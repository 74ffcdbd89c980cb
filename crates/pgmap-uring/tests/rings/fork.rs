//! A ring and a fork.

// UNSAFETY: fork, _exit and waitpid are the subject; rustix offers no fork.
#![allow(unsafe_code)]

use std::io::{Read, Write};
use std::time::Duration;

use crate::support::{self, BASE, MIB};

/// The rings lie in memory that a child has in common with its parent.
#[test]
fn a_forked_child_takes_no_completion_from_its_parent() {
    let owner = support::owner();
    let client = owner.client().unwrap();
    let space = support::space(&client, "block", MIB);
    let Some(mut ring) = support::ring(&client, 8) else { return };
    let (reader, mut writer) = std::io::pipe().unwrap();
    let (mut wait_for_go, mut go) = std::io::pipe().unwrap();
    let id = ring.read(&space, BASE, MIB, &reader, u64::MAX).unwrap();
    // SAFETY: the child waits, lets go of the ring and leaves without running exit handlers.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let is_told = wait_for_go.read_exact(&mut [0]).is_ok();
        let is_refused = ring.try_wait().is_err();
        drop(ring);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(if is_told && is_refused { 0 } else { 1 }) }
    }
    writer.write_all(b"bytes").unwrap();
    go.write_all(b"g").unwrap();
    let mut status = 0;
    // SAFETY: waits for our own child; the status lives on this stack.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0, "the child is refused, and leaves");
    let done = ring.wait_timeout(Duration::from_secs(60)).unwrap().unwrap();
    assert_eq!((done.id, done.moved_bytes, done.errno), (id, 5, None));
}
