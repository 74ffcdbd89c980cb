//! Files through a ring: bytes, holds until completion, errors, and a pool that was detached.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::time::{Duration, Instant};

use crate::support::{BASE, MIB, holding, owner, pattern, ring, scattered, space};
use pgmap::mm::gup::GupFlags;
use pgmap::mm::mm::Placed;
use pgmap::mm::prot::Prot;
use pgmap::space::AddressSpace;
use pgmap_uring::RingError;

#[test]
fn bytes_go_through_the_pool_and_come_out_the_same() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = space(&client, "block", 4 * MIB);
    let Some(mut ring) = ring(&client, 8) else { return };
    let bytes = pattern(3 * MIB as usize + 777, 5);
    let (mut from, mut to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    from.write_all(&bytes).unwrap();
    let id = ring.read(&space, BASE, 4 * MIB, &from, 0).unwrap();
    let done = ring.wait().unwrap().unwrap();
    assert_eq!((done.id, done.moved_bytes, done.errno), (id, bytes.len() as u64, None));
    let mut inside = vec![0; bytes.len()];
    let pinned = space.pin(BASE, 1024, GupFlags::NONE).unwrap();
    pinned.read_at(0, &mut inside).unwrap();
    assert!(inside == bytes);
    drop(pinned);
    for at in (0..bytes.len() as u64).step_by(256 << 10) {
        let len_bytes = (bytes.len() as u64 - at).min(256 << 10);
        ring.write(&space, BASE + at, len_bytes, &to, at).unwrap();
    }
    let mut moved_bytes = 0;
    while let Some(done) = ring.wait().unwrap() {
        assert_eq!(done.errno, None);
        moved_bytes += done.moved_bytes;
    }
    assert_eq!((moved_bytes, ring.nr_in_flight()), (bytes.len() as u64, 0));
    let mut copied = Vec::new();
    to.rewind().unwrap();
    to.read_to_end(&mut copied).unwrap();
    assert!(copied == bytes);
}

#[test]
fn a_truncation_waits_for_a_transfer_under_way() {
    let owner = owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    let space = space(&client, "block", MIB);
    let Some(mut ring) = ring(&client, 8) else { return };
    let (reader, mut writer) = std::io::pipe().unwrap();
    ring.read(&space, BASE, MIB, &reader, u64::MAX).unwrap();
    let error = other.truncate("block", 4096, Duration::from_millis(30)).unwrap_err();
    assert_eq!(error.errno(), 16, "{error}");
    writer.write_all(b"late").unwrap();
    assert_eq!(ring.wait().unwrap().unwrap().moved_bytes, 4);
    other.truncate("block", 4096, Duration::from_secs(10)).unwrap();
    let error = ring.read(&space, BASE, MIB, &reader, 0).unwrap_err();
    assert!(matches!(error, RingError::Short { held_bytes: 4096, .. }), "{error}");
}

/// A hold of the processor alone would end with this process, and the device would go on.
#[test]
fn transfers_both_ways_are_holds_of_a_device() {
    let owner = owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    let space = space(&client, "block", MIB);
    let Some(mut ring) = ring(&client, 8) else { return };
    let (empty, _writer) = std::io::pipe().unwrap();
    let (_reader, mut full) = std::io::pipe().unwrap();
    full.write_all(&[0; 65536]).unwrap();
    let holds = || {
        let holders = other.who("block").unwrap().holders;
        holders.iter().map(|h| (h.is_device, h.nr_pages)).collect::<Vec<_>>()
    };
    let read = ring.read(&space, BASE, 8192, &empty, u64::MAX).unwrap();
    assert_eq!(holds(), [(true, 2)]);
    ring.cancel(read).unwrap();
    ring.wait().unwrap().unwrap();
    let write = ring.write(&space, BASE + 4096, 4096, &full, u64::MAX).unwrap();
    assert_eq!(holds(), [(true, 1)]);
    ring.cancel(write).unwrap();
    ring.wait().unwrap().unwrap();
    assert_eq!(holds(), []);
}

#[test]
fn what_is_registered_follows_the_pool_after_frames_were_detached() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = space(&client, "block", MIB);
    let Some(mut ring) = ring(&client, 8) else { return };
    let before = client.detach_epoch();
    // A failed page gets other memory: the registered one is not the pool's any more.
    let pinned = space.pin(BASE, 1, GupFlags::NONE).unwrap();
    let pfn = pinned.segments().next().unwrap().pool_offset / 4096;
    drop(pinned);
    client.memory_failure(pfn).unwrap();
    client.clear_poison("block", 0, &[7; 4096]).unwrap();
    assert_eq!(client.detach_epoch(), before + 1);
    let mut file = tempfile::tempfile().unwrap();
    ring.write(&space, BASE, 4096, &file, 0).unwrap();
    assert_eq!(ring.wait().unwrap().unwrap().moved_bytes, 4096);
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert!(bytes == [7; 4096], "not what the old memory held");
}

#[test]
fn addresses_that_cannot_be_held_begin_nothing() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = space(&client, "block", MIB);
    let Some(mut ring) = ring(&client, 8) else { return };
    let file = tempfile::tempfile().unwrap();
    let errno = |result: Result<_, RingError>| result.map(drop).map_err(|e| e.errno()).err();
    assert_eq!(errno(ring.read(&space, BASE + 2 * MIB, 4096, &file, 0)), Some(14));
    assert_eq!(errno(ring.read(&space, BASE, 0, &file, 0)), Some(14));
    assert_eq!(errno(ring.read(&space, BASE + MIB - 8, 16, &file, 0)), Some(14));
    assert_eq!(errno(ring.read(&space, BASE + 8, u64::MAX, &file, 0)), Some(75));
    assert_eq!((ring.nr_in_flight(), ring.wait().unwrap()), (0, None));
}

/// A ring wrote over a file of its own pool what was read to a space of another one.
#[test]
fn a_space_of_another_client_is_refused() {
    let (owner, other_owner) = (owner(), owner());
    let (client, other) = (owner.client().unwrap(), other_owner.client().unwrap());
    let victim = space(&client, "victim", MIB);
    let foreign = space(&other, "block", MIB);
    let neighbour = AddressSpace::for_device(&owner.client().unwrap(), BASE, 1 << 30).unwrap();
    let clone = client.clone();
    let cloned = AddressSpace::for_device(&clone, BASE, 1 << 30).unwrap();
    cloned.map(&clone.open("victim").unwrap(), 0, MIB, Placed::At(BASE), Prot::READ_WRITE).unwrap();
    let Some(mut ring) = ring(&client, 8) else { return };
    victim.write_at(BASE, &[1; 4096]).unwrap();
    let file = holding(&[0xee; 4096]);
    for space in [&foreign, &neighbour] {
        for result in
            [ring.read(space, BASE, 4096, &file, 0), ring.write(space, BASE, 4096, &file, 4096)]
        {
            let error = result.unwrap_err();
            assert!(matches!(error, RingError::OtherClient), "{error}");
            assert_eq!(error.errno(), 22);
        }
    }
    assert_eq!((ring.nr_in_flight(), ring.wait().unwrap()), (0, None));
    assert_eq!(file.metadata().unwrap().len(), 4096);
    let mut bytes = [0; 4096];
    victim.read_at(BASE, &mut bytes).unwrap();
    assert!(bytes == [1; 4096]);
    ring.read(&cloned, BASE, 4096, &file, 0).unwrap();
    assert_eq!(ring.wait().unwrap().unwrap().moved_bytes, 4096);
    victim.read_at(BASE, &mut bytes).unwrap();
    assert!(bytes == [0xee; 4096]);
}

/// Addresses that are no multiple of the page size were "only 0 of 512 bytes".
#[test]
fn a_transfer_may_begin_and_end_within_pages() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = scattered(&client, 3);
    let Some(mut ring) = ring(&client, 8) else { return };
    space.write_at(BASE, &[9; 3 * 4096]).unwrap();
    let bytes = pattern(8192, 7);
    let file = holding(&bytes);
    ring.read(&space, BASE + 4095, 4098, &file, 5).unwrap();
    assert_eq!(ring.wait().unwrap().unwrap().moved_bytes, 4098);
    let mut expected = vec![9; 3 * 4096];
    expected[4095..4095 + 4098].copy_from_slice(&bytes[5..5 + 4098]);
    let mut inside = vec![0; 3 * 4096];
    space.read_at(BASE, &mut inside).unwrap();
    assert!(inside == expected);
    let mut target = holding(&[]);
    ring.write(&space, BASE + 4000, 100, &target, 0).unwrap();
    assert_eq!(ring.wait().unwrap().unwrap().moved_bytes, 100);
    let mut written = Vec::new();
    target.rewind().unwrap();
    target.read_to_end(&mut written).unwrap();
    assert!(written == expected[4000..4100]);
}

/// The offset of the second piece overflowed, and the ring then waited for pieces never begun.
#[test]
fn offsets_that_no_file_has_begin_nothing() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = scattered(&client, 2);
    let Some(mut ring) = ring(&client, 8) else { return };
    let file = holding(&[]);
    for file_offset in [u64::MAX - 1, u64::MAX - 4096, u64::MAX - 8191] {
        let error = ring.write(&space, BASE, 8192, &file, file_offset).unwrap_err();
        assert!(matches!(error, RingError::OffsetOverflow { .. }), "{error}");
        assert_eq!(error.errno(), 22);
    }
    assert_eq!((ring.nr_in_flight(), ring.wait().unwrap()), (0, None));
}

/// The bytes of good pieces behind a failed one were counted as if they came first.
#[test]
fn what_is_counted_ends_before_a_piece_that_failed() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = scattered(&client, 2);
    let Some(mut ring) = ring(&client, 8) else { return };
    // In front of the lowest mapping there is nothing to read.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let lowest = u64::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap();
    let memory = File::open("/proc/self/mem").unwrap();
    ring.read(&space, BASE, 8192, &memory, lowest - 4096).unwrap();
    let done = ring.wait().unwrap().unwrap();
    let mut second = [0; 4];
    space.read_at(BASE + 4096, &mut second).unwrap();
    assert_eq!(done.moved_bytes, 0, "{done:?}");
    assert!(done.errno.is_some(), "{done:?}");
    if &second != b"\x7fELF" {
        println!("tested in part: the kernel reads such files to no registered buffer");
    }
}

#[test]
fn a_wait_ends_with_its_time_and_a_look_never_waits() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = space(&client, "block", MIB);
    let Some(mut ring) = ring(&client, 8) else { return };
    let limit = Duration::from_secs(60);
    // With nothing under way neither waits.
    assert_eq!((ring.try_wait().unwrap(), ring.wait_timeout(limit).unwrap()), (None, None));
    let (reader, mut writer) = std::io::pipe().unwrap();
    let id = ring.read(&space, BASE, MIB, &reader, u64::MAX).unwrap();
    assert_eq!((ring.try_wait().unwrap(), ring.nr_in_flight()), (None, 1));
    assert_eq!(ring.wait_timeout(Duration::ZERO).unwrap(), None);
    let (start, short) = (Instant::now(), Duration::from_millis(20));
    assert_eq!((ring.wait_timeout(short).unwrap(), ring.nr_in_flight()), (None, 1));
    assert!(start.elapsed() >= short);
    writer.write_all(b"late").unwrap();
    let done = ring.wait_timeout(limit).unwrap().unwrap();
    assert_eq!((done.id, done.moved_bytes, done.errno), (id, 4, None));
    // Looks alone find the end of a transfer too.
    let id = ring.read(&space, BASE, MIB, &reader, u64::MAX).unwrap();
    writer.write_all(b"later").unwrap();
    let start = Instant::now();
    let done = loop {
        if let Some(done) = ring.try_wait().unwrap() {
            break done;
        }
        assert!(start.elapsed() < limit, "never done");
        std::thread::yield_now();
    };
    assert_eq!((done.id, done.moved_bytes, ring.nr_in_flight()), (id, 5, 0));
    // Longer than any clock tells.
    ring.read(&space, BASE, MIB, &reader, u64::MAX).unwrap();
    writer.write_all(b"last").unwrap();
    assert_eq!(ring.wait_timeout(Duration::MAX).unwrap().unwrap().moved_bytes, 4);
}
