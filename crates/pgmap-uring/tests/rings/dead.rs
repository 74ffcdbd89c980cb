//! Clients that die while a ring of theirs transfers.
//!
//! A device could write into frames of a dead client, and nobody could tell when that ended: on
//! memory that cannot be detached from a device, every such death cost its frames for good.

// UNSAFETY: fork and pause are the subject; rustix offers neither.
#![allow(unsafe_code)]
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{self, BASE, MIB};
use pgmap::mm::mm::Placed;
use pgmap::mm::prot::Prot;
use pgmap::space::AddressSpace;
use pgmap::{Client, FolioSize, Owner, Pool, PoolOptions};

/// The child's socket, and what it does.
const SOCKET: &str = "PGMAP_TEST_SOCKET";
const ROLE: &str = "PGMAP_TEST_ROLE";
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Reads from a pipe that brings nothing into "block", says so, and sleeps.
#[test]
fn child_entry() {
    let (Some(socket), Ok(role)) = (std::env::var_os(SOCKET), std::env::var(ROLE)) else { return };
    let client = Client::connect(Path::new(&socket)).unwrap();
    if role != "unpromised" {
        client.promise_transfers_keep_lock().unwrap();
    }
    let space = AddressSpace::for_device(&client, BASE, 1 << 30).unwrap();
    let file = client.open("block").unwrap();
    space.map(&file, 0, MIB, Placed::At(BASE), Prot::READ_WRITE).unwrap();
    let Some(mut ring) = support::ring(&client, 8) else { return };
    let (reader, _writer) = std::io::pipe().unwrap();
    ring.read(&space, BASE, MIB, &reader, u64::MAX).unwrap();
    let mut heir = 0;
    if role == "shared" {
        // SAFETY: the child does nothing but sleep.
        heir = unsafe { libc::fork() };
        assert!(heir >= 0, "fork: {}", std::io::Error::last_os_error());
    }
    if heir > 0 || role != "shared" {
        println!("\nreads {heir}");
    }
    loop {
        // SAFETY: sleeps until a signal comes.
        unsafe { libc::pause() };
    }
}

/// The process that shares a child's ring, if there is one: nobody else would end it.
struct Heir(i32);

impl Heir {
    fn kill(&mut self) {
        if self.0 > 0 {
            // SAFETY: a signal to the process that the child made, which nobody else waits for.
            assert_eq!(unsafe { libc::kill(self.0, libc::SIGKILL) }, 0);
            self.0 = 0;
        }
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A child at work, and the process that shares its ring; `None` where there is no io_uring.
fn start(socket: &Path, role: &str) -> Option<(Child, Heir)> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["dead::child_entry", "--exact", "--nocapture"])
        .env(SOCKET, socket)
        .env(ROLE, role);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        if let Some(heir) = line.strip_prefix("reads ") {
            return Some((child, Heir(heir.parse().unwrap())));
        }
        if line.contains("SKIPPED") {
            println!("{line}");
            child.wait().unwrap();
            return None;
        }
    }
    panic!("the child said nothing: {:?}", child.wait());
}

fn pool(place: &Path) -> (Owner, Client) {
    let owner = Owner::start(
        Pool::create(&PoolOptions::in_directory(place.join("pool"), 8 * MIB)).unwrap(),
    )
    .unwrap();
    owner.serve(place.join("socket")).unwrap();
    let client = owner.client().unwrap();
    client.create("block", MIB, FolioSize::Pages4K).unwrap().commit().unwrap();
    (owner, client)
}

#[test]
fn frames_of_a_dead_client_are_free_once_its_ring_has_ended() {
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let (owner, client) = pool(place.path());
    let Some((mut child, _)) = start(&place.path().join("socket"), "alone") else { return };
    child.kill().unwrap();
    child.wait().unwrap();
    until("its holds are gone", || owner.info().nr_clients == 1);
    until("its transfer has ended", || owner.info().orphaned_bytes == 0);
    let epoch = client.detach_epoch();
    client.unlink("block").unwrap();
    until("its frames are free", || owner.info().free_bytes == 8 * MIB);
    assert_eq!(client.detach_epoch(), epoch, "nothing had to be detached");
    assert!(client.quarantine().unwrap().is_empty());
}

#[test]
fn a_ring_that_a_child_shares_keeps_the_frames_as_long_as_the_child_lives() {
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let (owner, client) = pool(place.path());
    let Some((mut child, mut heir)) = start(&place.path().join("socket"), "shared") else { return };
    child.kill().unwrap();
    child.wait().unwrap();
    until("its holds are gone", || owner.info().nr_clients == 1);
    std::thread::sleep(Duration::from_millis(300));
    let dead = client.quarantine().unwrap();
    let [dead] = &dead[..] else { panic!("{dead:?}") };
    assert!(dead.is_transferring && dead.orphaned_bytes == MIB, "{dead:?}");
    assert_eq!(dead.pid.cast_unsigned(), child.id());
    let refusal = client.release_quarantine(dead.client).unwrap_err().to_string();
    assert!(refusal.contains("ring") && refusal.contains(&child.id().to_string()), "{refusal}");
    // The owner ends, and the next one finds the ledger locked.
    drop(client);
    drop(owner);
    let owner = Owner::start(Pool::open(place.path().join("pool")).unwrap()).unwrap();
    let client = owner.client().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(owner.info().nr_clients, 2, "whoever keeps the lock may hold what the ledger says");
    heir.kill();
    until("the ring has ended", || owner.info().nr_clients == 1);
    until("its transfer has ended", || owner.info().orphaned_bytes == 0);
    assert!(client.quarantine().unwrap().is_empty());
}

#[test]
fn without_the_promise_only_an_operator_ends_the_wait() {
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let (owner, client) = pool(place.path());
    let Some((mut child, _)) = start(&place.path().join("socket"), "unpromised") else { return };
    child.kill().unwrap();
    child.wait().unwrap();
    until("its holds are gone", || owner.info().orphaned_bytes == MIB);
    std::thread::sleep(Duration::from_millis(100));
    let dead = client.quarantine().unwrap();
    let [dead] = &dead[..] else { panic!("{dead:?}") };
    assert!(!dead.is_transferring && dead.orphaned_bytes == MIB, "{dead:?}");
    assert!(client.release_quarantine(dead.client + 1).is_err());
    client.release_quarantine(dead.client).unwrap();
    until("they are given up", || owner.info().orphaned_bytes == 0);
    let left = std::fs::read_dir(place.path().join("pool/ledgers")).unwrap().flatten();
    let names: Vec<_> = left.map(|file| file.file_name()).collect();
    assert!(!names.contains(&dead.client.to_string().into()), "{names:?}");
}
