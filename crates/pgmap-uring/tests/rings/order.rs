//! Transfers of pages that lie apart, to and from whatever has an order.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use crate::support::{BASE, holding, owner, pattern, ring, scattered};
use pgmap::space::AddressSpace;
use pgmap_uring::{PoolRing, RingError};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

const PAGE: u64 = 4096;
const BOUND: Duration = Duration::from_secs(60);
const HERE: u64 = u64::MAX;

/// The bytes of the first `nr_pages` pages.
fn inside(space: &AddressSpace, nr_pages: u64) -> Vec<u8> {
    let mut bytes = vec![0; (nr_pages * PAGE) as usize];
    space.read_at(BASE, &mut bytes).unwrap();
    bytes
}

/// Reads until `wanted` bytes came, from wherever `from` is, and says how many each transfer moved.
fn read_on<'s>(
    ring: &mut PoolRing<'s>,
    space: &'s AddressSpace,
    from: impl AsFd,
    wanted: u64,
) -> Vec<u64> {
    let mut moved = Vec::new();
    while moved.iter().sum::<u64>() < wanted {
        let at = moved.iter().sum::<u64>();
        ring.read(space, BASE + at, wanted - at, &from, HERE).unwrap();
        let done = ring.wait_timeout(BOUND).unwrap().unwrap();
        assert_eq!(done.errno, None);
        assert_ne!(done.moved_bytes, 0, "the end after {at} of {wanted} bytes");
        moved.push(done.moved_bytes);
    }
    moved
}

/// Writes until all of `wanted` bytes went.
fn write_on<'s>(ring: &mut PoolRing<'s>, space: &'s AddressSpace, to: impl AsFd, wanted: u64) {
    let mut at = 0;
    while at < wanted {
        ring.write(space, BASE + at, wanted - at, &to, HERE).unwrap();
        let done = ring.wait_timeout(BOUND).unwrap().unwrap();
        assert_eq!(done.errno, None);
        at += done.moved_bytes;
    }
}

/// 64 pieces were each an entry of its own: 180 of 300 files had them in another order at 4 pieces.
#[test]
fn what_is_appended_has_its_pieces_in_order() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = scattered(&client, 64);
    let Some(mut ring) = ring(&client, 64) else { return };
    let bytes = pattern(64 * PAGE as usize, 3);
    space.write_at(BASE, &bytes).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for (round, flags) in [0, libc::O_DIRECT, libc::O_DIRECT, libc::O_DIRECT].iter().enumerate() {
        let path = directory.path().join(round.to_string());
        let mut options = OpenOptions::new();
        options.append(true).create(true).custom_flags(*flags);
        let file = match options.open(&path) {
            Ok(file) => file,
            Err(error) => {
                println!("SKIPPED in part: no O_DIRECT in {}: {error}", directory.path().display());
                continue;
            }
        };
        // The offset is of no account for such a file.
        for offset in [0, 4096, HERE] {
            ring.write(&space, BASE, 64 * PAGE, &file, offset).unwrap();
            let done = ring.wait_timeout(BOUND).unwrap().unwrap();
            assert_eq!((done.moved_bytes, done.errno), (64 * PAGE, None));
        }
        assert!(std::fs::read(&path).unwrap() == bytes.repeat(3), "flags {flags:#o}");
    }
}

#[test]
fn a_pipe_is_read_and_written_in_order() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = scattered(&client, 16);
    let Some(mut ring) = ring(&client, 16) else { return };
    let bytes = pattern(16 * PAGE as usize, 5);
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    // Short counts in the middle of pages: what is there is taken, and nothing twice.
    for part in bytes.chunks(1500) {
        writer.write_all(part).unwrap();
        let at = part.as_ptr() as u64 - bytes.as_ptr() as u64;
        ring.read(&space, BASE + at, 16 * PAGE - at, &reader, HERE).unwrap();
        let done = ring.wait_timeout(BOUND).unwrap().unwrap();
        assert_eq!((done.moved_bytes, done.errno), (part.len() as u64, None));
    }
    assert!(inside(&space, 16) == bytes);
    // All of it at once, more than fits in the pipe's pages one by one.
    std::thread::scope(|scope| {
        let received = scope.spawn(move || {
            let mut received = vec![0; 16 * PAGE as usize];
            reader.read_exact(&mut received).unwrap();
            received
        });
        write_on(&mut ring, &space, &writer, 16 * PAGE);
        assert!(received.join().unwrap() == bytes);
    });
}

#[test]
fn a_stream_socket_is_read_and_written_in_order() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = scattered(&client, 16);
    let Some(mut ring) = ring(&client, 16) else { return };
    let bytes = pattern(16 * PAGE as usize, 7);
    let (mut near, far) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| near.write_all(&bytes).unwrap());
        read_on(&mut ring, &space, &far, 16 * PAGE);
    });
    assert!(inside(&space, 16) == bytes);
    let mut received = vec![0; bytes.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| near.read_exact(&mut received).unwrap());
        write_on(&mut ring, &space, &far, 16 * PAGE);
    });
    assert!(received == bytes);
}

/// A packet that lies in several pieces is one packet, and packets stay apart.
#[test]
fn a_packet_is_one_transfer_however_many_pieces_it_lies_in() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = scattered(&client, 4);
    let Some(mut ring) = ring(&client, 8) else { return };
    let bytes = pattern(4 * PAGE as usize, 9);
    let packets = |kind| {
        let (near, far) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::empty(), None).unwrap();
        (UnixDatagram::from(near), far)
    };
    for kind in [SocketType::DGRAM, SocketType::SEQPACKET] {
        let (near, far) = packets(kind);
        space.write_at(BASE, &bytes).unwrap();
        ring.write(&space, BASE + 100, 3 * PAGE, &far, HERE).unwrap();
        assert_eq!(ring.wait_timeout(BOUND).unwrap().unwrap().moved_bytes, 3 * PAGE);
        let mut received = vec![0; 5 * PAGE as usize];
        near.set_nonblocking(true).unwrap();
        let length = near.recv(&mut received).unwrap();
        assert!(received[..length] == bytes[100..100 + 3 * PAGE as usize], "{kind:?}");
        assert!(near.recv(&mut received).is_err(), "nothing more was sent");
        // Two packets, each shorter than what is asked for.
        for part in [&bytes[..5000], &bytes[5000..5100]] {
            near.send(part).unwrap();
        }
        space.write_at(BASE, &vec![0; bytes.len()]).unwrap();
        for part in [&bytes[..5000], &bytes[5000..5100]] {
            ring.read(&space, BASE, 4 * PAGE, &far, HERE).unwrap();
            let done = ring.wait_timeout(BOUND).unwrap().unwrap();
            assert_eq!(done.moved_bytes, part.len() as u64, "{kind:?}");
            assert!(inside(&space, 4)[..part.len()] == *part, "{kind:?}");
        }
    }
}

#[test]
fn a_terminal_is_read_and_written_in_order() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = scattered(&client, 2);
    let Some(mut ring) = ring(&client, 8) else { return };
    let opened = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR).and_then(|controller| {
        rustix::pty::grantpt(&controller)?;
        rustix::pty::unlockpt(&controller)?;
        Ok((rustix::pty::ptsname(&controller, Vec::new())?, controller))
    });
    let Ok((name, controller)) = opened else {
        println!("SKIPPED a_terminal_is_read_and_written_in_order: no terminal to be had");
        return;
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOCTTY);
    let terminal = options.open(name.to_str().unwrap()).unwrap();
    let line: Vec<u8> = (0..200).map(|at| b'a' + at % 26).collect();
    space.write_at(BASE + PAGE - 100, &line).unwrap();
    ring.write(&space, BASE + PAGE - 100, 200, &terminal, HERE).unwrap();
    assert_eq!(ring.wait_timeout(BOUND).unwrap().unwrap().moved_bytes, 200);
    let mut controller = File::from(controller);
    let mut shown = vec![0; 200];
    controller.read_exact(&mut shown).unwrap();
    assert!(shown == line);
    controller.write_all(&line).unwrap();
    controller.write_all(b"\n").unwrap();
    space.write_at(BASE, &vec![0; 2 * PAGE as usize]).unwrap();
    ring.read(&space, BASE + PAGE - 100, 300, &terminal, HERE).unwrap();
    let done = ring.wait_timeout(BOUND).unwrap().unwrap();
    assert_eq!((done.moved_bytes, done.errno), (201, None));
    assert!(inside(&space, 2)[PAGE as usize - 100..][..200] == line);
}

/// The two halves of a count would be two counts.
#[test]
fn whole_messages_are_refused_in_several_pieces() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = scattered(&client, 2);
    let Some(mut ring) = ring(&client, 8) else { return };
    let counter = eventfd(7, EventfdFlags::NONBLOCK).unwrap();
    let error = ring.write(&space, BASE + PAGE - 4, 8, &counter, HERE).unwrap_err();
    let is_that = matches!(error, RingError::OnePiece { nr_pieces: 2, piece_bytes: 4 });
    assert!(is_that, "{error}");
    assert_eq!(error.errno(), 22);
    assert_eq!(ring.nr_in_flight(), 0);
    ring.read(&space, BASE, 8, &counter, HERE).unwrap();
    assert_eq!(ring.wait_timeout(BOUND).unwrap().unwrap().moved_bytes, 8);
    assert_eq!(inside(&space, 1)[..8], 7_u64.to_ne_bytes());
    ring.write(&space, BASE, 8, &counter, HERE).unwrap();
    assert_eq!(ring.wait_timeout(BOUND).unwrap().unwrap().moved_bytes, 8);
    let mut count = [0; 8];
    rustix::io::read(&counter, &mut count).unwrap();
    assert_eq!(count, 7_u64.to_ne_bytes());
}

/// What gives bytes without an end and knows no offset.
#[test]
fn a_device_without_offsets_fills_every_piece() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = scattered(&client, 4);
    let Some(mut ring) = ring(&client, 8) else { return };
    space.write_at(BASE, &vec![1; 4 * PAGE as usize]).unwrap();
    let zeros = File::open("/dev/zero").unwrap();
    assert_eq!(read_on(&mut ring, &space, &zeros, 4 * PAGE).iter().sum::<u64>(), 4 * PAGE);
    assert!(inside(&space, 4).iter().all(|&byte| byte == 0));
}

#[test]
fn the_current_position_serves_pages_that_lie_apart() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = scattered(&client, 4);
    let Some(mut ring) = ring(&client, 8) else { return };
    let bytes = pattern(8 * PAGE as usize, 11);
    let mut file = holding(&bytes);
    file.rewind().unwrap();
    for part in bytes.chunks(4 * PAGE as usize) {
        ring.read(&space, BASE, 4 * PAGE, &file, HERE).unwrap();
        assert_eq!(ring.wait_timeout(BOUND).unwrap().unwrap().moved_bytes, 4 * PAGE);
        assert!(inside(&space, 4) == part);
    }
}

#[test]
fn more_pieces_than_one_call_moves_begin_nothing() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = scattered(&client, 1025);
    let Some(mut ring) = ring(&client, 8) else { return };
    let bytes = pattern(1024 * PAGE as usize, 13);
    let file = holding(&bytes);
    let error = ring.read(&space, BASE, 1025 * PAGE, &file, 0).unwrap_err();
    let is_that = matches!(error, RingError::TooManyPieces { nr_pieces: 1025, most_pieces: 1024 });
    assert!(is_that, "{error}");
    assert_eq!((error.errno(), ring.nr_in_flight()), (22, 0));
    ring.read(&space, BASE, 1024 * PAGE, &file, 0).unwrap();
    assert_eq!(ring.wait_timeout(BOUND).unwrap().unwrap().moved_bytes, 1024 * PAGE);
    assert!(inside(&space, 1024) == bytes);
}
