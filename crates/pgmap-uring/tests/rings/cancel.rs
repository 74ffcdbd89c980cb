//! Transfers that do not end by themselves.

use std::io::Write;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::{self, BASE, MIB, owner, ring, space};
use pgmap_uring::RingError;

const ECANCELED: i32 = 125;
/// Longer than any of these may take, on the slowest machine.
const BOUND: Duration = Duration::from_secs(60);
const HERE: u64 = u64::MAX;

/// Fails if `what` takes longer than [`BOUND`].
fn in_time<T: Send>(what: &str, act: impl FnOnce() -> T + Send) -> T {
    let (done, over) = mpsc::channel();
    std::thread::scope(|scope| {
        let acting = scope.spawn(move || {
            let result = act();
            let _heard = done.send(());
            result
        });
        if over.recv_timeout(BOUND).is_err() && !acting.is_finished() {
            eprintln!("{what}: no end after {BOUND:?}");
            std::process::abort();
        }
        acting.join().unwrap()
    })
}

#[test]
fn a_full_ring_says_so_and_goes_on() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = space(&client, "block", MIB);
    let Some(mut ring) = ring(&client, 1) else { return };
    let (reader, mut writer) = std::io::pipe().unwrap();
    let id = ring.read(&space, BASE, 4096, &reader, HERE).unwrap();
    let error =
        in_time("a second read", || ring.read(&space, BASE, 4096, &reader, HERE)).unwrap_err();
    assert!(matches!(error, RingError::Full { nr_entries: 1 }), "{error}");
    assert_eq!((error.errno(), ring.nr_in_flight()), (11, 1));
    writer.write_all(b"bytes").unwrap();
    let done = ring.wait_timeout(BOUND).unwrap().unwrap();
    assert_eq!((done.id, done.moved_bytes, done.errno), (id, 5, None));
    writer.write_all(b"more").unwrap();
    ring.read(&space, BASE, 4096, &reader, HERE).unwrap();
    assert_eq!(ring.wait_timeout(BOUND).unwrap().unwrap().moved_bytes, 4);
}

#[test]
fn a_cancelled_transfer_ends_as_cancelled_and_takes_nothing() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = space(&client, "block", MIB);
    let Some(mut ring) = ring(&client, 2) else { return };
    let (reader, mut writer) = std::io::pipe().unwrap();
    let id = ring.read(&space, BASE, MIB, &reader, HERE).unwrap();
    assert!(ring.cancel(id).unwrap());
    let done = ring.wait_timeout(BOUND).unwrap().unwrap();
    assert_eq!((done.id, done.moved_bytes, done.errno), (id, 0, Some(ECANCELED)));
    assert!(!ring.cancel(id).unwrap(), "it is over");
    assert_eq!((ring.nr_in_flight(), ring.wait().unwrap()), (0, None));
    writer.write_all(b"for the next").unwrap();
    let next = ring.read(&space, BASE, MIB, &reader, HERE).unwrap();
    let done = ring.wait_timeout(BOUND).unwrap().unwrap();
    assert_eq!((done.id, done.moved_bytes, done.errno), (next, 12, None));
}

/// The kernel may touch the pages until it says that it is done, cancelled or not.
#[test]
fn pages_are_held_until_the_cancelled_transfer_was_reaped() {
    let owner = owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    let space = space(&client, "block", MIB);
    let Some(mut ring) = ring(&client, 2) else { return };
    let (reader, _writer) = std::io::pipe().unwrap();
    let id = ring.read(&space, BASE, MIB, &reader, HERE).unwrap();
    let holders = || other.who("block").unwrap().holders;
    assert_eq!(holders().len(), 1);
    assert!(other.truncate("block", 4096, Duration::ZERO).is_err());
    ring.cancel(id).unwrap();
    ring.wait_timeout(BOUND).unwrap().unwrap();
    assert!(holders().is_empty());
    other.truncate("block", 4096, Duration::from_secs(10)).unwrap();
}

#[test]
fn a_transfer_that_ended_before_it_was_cancelled_says_what_it_moved() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = space(&client, "block", MIB);
    let Some(mut ring) = ring(&client, 2) else { return };
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"there already").unwrap();
    let id = ring.read(&space, BASE, MIB, &reader, HERE).unwrap();
    ring.cancel(id).unwrap();
    let done = ring.wait_timeout(BOUND).unwrap().unwrap();
    assert_eq!((done.id, done.moved_bytes, done.errno), (id, 13, None));
}

/// Of many under way one is cancelled, and the others go on.
#[test]
fn only_the_named_transfer_is_cancelled() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = space(&client, "block", MIB);
    let Some(mut ring) = ring(&client, 4) else { return };
    let pipes: Vec<_> = (0..4).map(|_| std::io::pipe().unwrap()).collect();
    let ids: Vec<_> = (0..4)
        .map(|at| ring.read(&space, BASE + at * 4096, 4096, &pipes[at as usize].0, HERE).unwrap())
        .collect();
    ring.cancel(ids[2]).unwrap();
    let done = ring.wait_timeout(BOUND).unwrap().unwrap();
    assert_eq!((done.id, done.errno), (ids[2], Some(ECANCELED)));
    for at in [3, 0, 1] {
        (&pipes[at].1).write_all(&[at as u8; 9]).unwrap();
        let done = ring.wait_timeout(BOUND).unwrap().unwrap();
        assert_eq!((done.id, done.moved_bytes), (ids[at], 9));
    }
}

#[test]
fn a_ring_that_is_dropped_cancels_what_is_under_way() {
    let owner = owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    let space = space(&client, "block", MIB);
    let Some(mut ring) = ring(&client, 4) else { return };
    let pipes: Vec<_> = (0..4).map(|_| std::io::pipe().unwrap()).collect();
    for (reader, _) in &pipes {
        ring.read(&space, BASE, MIB, reader, HERE).unwrap();
    }
    let start = Instant::now();
    in_time("the drop", || drop(ring));
    println!("dropped after {:?}", start.elapsed());
    assert!(other.who("block").unwrap().holders.is_empty());
    other.truncate("block", 4096, Duration::from_secs(10)).unwrap();
}

/// What was detached is registered again when nothing is under way, and a transfer before that goes
/// without: it does not wait for a pipe.
#[test]
fn a_pipe_under_way_does_not_keep_others_from_memory_that_was_replaced() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = space(&client, "block", MIB);
    let Some(mut ring) = ring(&client, 4) else { return };
    let (reader, _writer) = std::io::pipe().unwrap();
    let waiting = ring.read(&space, BASE + 4096, 4096, &reader, HERE).unwrap();
    let pinned = space.pin(BASE, 1, pgmap::mm::gup::GupFlags::NONE).unwrap();
    let pfn = pinned.segments().next().unwrap().pool_offset / 4096;
    drop(pinned);
    client.memory_failure(pfn).unwrap();
    client.clear_poison("block", 0, &[7; 4096]).unwrap();
    let file = support::holding(&[]);
    for _ in 0..2 {
        in_time("the write", || ring.write(&space, BASE, 4096, &file, 0)).unwrap();
        assert_eq!(ring.wait_timeout(BOUND).unwrap().unwrap().moved_bytes, 4096);
        let mut bytes = [0; 4096];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
        assert!(bytes == [7; 4096], "not what the old memory held");
        // The second time all of the pool is registered again.
        ring.cancel(waiting).unwrap();
        while ring.wait_timeout(BOUND).unwrap().is_some() {}
    }
}
