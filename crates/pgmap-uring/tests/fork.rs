//! A ring and a fork.

// UNSAFETY: fork, _exit and waitpid are the subject; rustix offers no fork.
#![allow(unsafe_code)]

use std::io::{Read, Write};
use std::time::Duration;

use pgmap::mm::mm::Placed;
use pgmap::mm::prot::Prot;
use pgmap::space::AddressSpace;
use pgmap::{FolioSize, Owner, Pool, PoolOptions};
use pgmap_uring::PoolRing;

const MIB: u64 = 1 << 20;
const BASE: u64 = 1 << 32;

/// The rings lie in memory that a child has in common with its parent.
#[test]
fn a_forked_child_takes_no_completion_from_its_parent() {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(16 * MIB)).unwrap()).unwrap();
    let client = owner.client().unwrap();
    client.create("block", MIB, FolioSize::Pages4K).unwrap().commit().unwrap();
    let space = AddressSpace::for_device(&client, BASE, 1 << 30).unwrap();
    let file = client.open("block").unwrap();
    space.map(&file, 0, MIB, Placed::At(BASE), Prot::READ_WRITE).unwrap();
    let mut ring = match PoolRing::new(&client, 8) {
        Ok(ring) => ring,
        Err(error) => {
            assert!([1, 12, 38].contains(&error.errno()), "{error}");
            println!("not tested here: {error}");
            return;
        }
    };
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
