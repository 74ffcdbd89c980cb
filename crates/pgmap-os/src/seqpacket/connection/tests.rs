//! What a connection promises, also towards a peer that keeps no rules.

use super::*;
use crate::{Doorbell, MemoryFile, PageSize};
use std::fs;
use std::os::fd::AsRawFd;

fn pair() -> (Connection, Connection) {
    Connection::pair().unwrap()
}

/// Sends what `Connection::send` would refuse.
fn send_raw(connection: &Connection, message: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let bytes = [IoSlice::new(message)];
    rustix::net::sendmsg(connection, &bytes, &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// Counts this process's descriptors that refer to `link`, for instance one pipe.
fn nr_open(link: &fs::File) -> usize {
    let wanted = fs::read_link(format!("/proc/self/fd/{}", link.as_raw_fd())).unwrap();
    let all = fs::read_dir("/proc/self/fd").unwrap();
    all.filter(|one| fs::read_link(one.as_ref().unwrap().path()).is_ok_and(|it| it == wanted))
        .count()
}

#[test]
fn messages_keep_their_boundaries_and_their_order() {
    let (left, right) = pair();
    left.send(b"one", &[]).unwrap();
    left.send(b"three", &[]).unwrap();
    let mut buffer = [0; 64];
    assert_eq!(right.recv(&mut buffer).unwrap().len, 3);
    assert_eq!(right.recv(&mut buffer).unwrap().len, 5);
    assert_eq!(&buffer[..5], b"three");
}

#[test]
fn descriptors_arrive_close_on_exec_and_mean_the_same_file() {
    let (left, right) = pair();
    let file = MemoryFile::anonymous("passed", 4096, PageSize::Base).unwrap();
    let bell = Doorbell::new().unwrap();
    left.send(b"both", &[file.as_fd(), bell.as_fd()]).unwrap();
    let mut received = right.recv(&mut [0; 8]).unwrap();
    assert_eq!((received.len, received.fds.len()), (4, 2));
    for fd in &received.fds {
        let flags = rustix::io::fcntl_getfd(fd).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
    Doorbell::from_fd(received.fds.pop().unwrap()).unwrap().ring().unwrap();
    assert!(bell.clear().unwrap());
    let passed = MemoryFile::from_fd(received.fds.pop().unwrap()).unwrap();
    passed.set_len(8192).unwrap();
    assert_eq!(file.len_bytes(), 8192);
}

#[test]
fn as_many_descriptors_as_allowed_arrive() {
    let (left, right) = pair();
    let file = tempfile::tempfile().unwrap();
    left.send(b"x", &[file.as_fd(); MAX_FDS]).unwrap();
    assert_eq!(right.recv(&mut [0; 1]).unwrap().fds.len(), MAX_FDS);
    let error = left.send(b"x", &[file.as_fd(); MAX_FDS + 1]).unwrap_err();
    assert!(matches!(error, TransferError::TooManyDescriptors { nr_fds: 17 }), "{error}");
}

#[test]
fn longest_message_fits_default_buffers_and_a_longer_one_is_refused() {
    let (left, right) = pair();
    left.set_blocking(Blocking::Never).unwrap();
    left.send(&[7; MAX_MESSAGE_BYTES], &[]).unwrap();
    left.send(&[8; MAX_MESSAGE_BYTES], &[]).unwrap();
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    assert_eq!(right.recv(&mut buffer).unwrap().len, MAX_MESSAGE_BYTES);
    let error = left.send(&[7; MAX_MESSAGE_BYTES + 1], &[]).unwrap_err();
    assert_eq!(error.errno(), libc::EMSGSIZE);
    assert!(error.to_string().contains("65537 bytes"), "{error}");
}

#[test]
fn message_longer_than_the_buffer_is_dropped_with_its_descriptors() {
    let (left, right) = pair();
    let file = tempfile::tempfile().unwrap();
    left.send(b"too long", &[file.as_fd(), file.as_fd()]).unwrap();
    left.send(b"ok", &[]).unwrap();
    let error = right.recv(&mut [0; 4]).unwrap_err();
    assert!(matches!(error, TransferError::Truncated { room: 4 }), "{error}");
    assert_eq!(nr_open(&file), 1, "both copies are closed");
    assert_eq!(right.recv(&mut [0; 4]).unwrap().len, 2, "the next message is whole");
}

#[test]
fn message_with_too_many_descriptors_is_dropped_with_all_of_them() {
    let file = tempfile::tempfile().unwrap();
    // The buffer's padding has room for a few more than MAX_FDS: both sides of that are refused.
    for nr_fds in [MAX_FDS + 1, MAX_FDS + 2, MAX_FDS + 3, 60] {
        let (left, right) = pair();
        send_raw(&left, b"hostile", &vec![file.as_fd(); nr_fds]);
        let error = right.recv(&mut [0; 64]).unwrap_err();
        assert!(matches!(error, TransferError::Truncated { .. }), "{nr_fds}: {error}");
        assert_eq!(nr_open(&file), 1, "every copy of {nr_fds} is closed");
    }
}

#[test]
fn end_is_told_from_a_message_that_brings_only_descriptors() {
    let (left, right) = pair();
    let file = tempfile::tempfile().unwrap();
    send_raw(&left, b"", &[file.as_fd()]);
    drop(left);
    let odd = right.recv(&mut [0; 8]).unwrap();
    assert!(!odd.is_end());
    assert_eq!(odd.fds.len(), 1);
    assert!(right.recv(&mut [0; 8]).unwrap().is_end());
    assert!(right.recv(&mut [0; 8]).unwrap().is_end(), "the end stays the end");
}

#[test]
fn sending_to_a_closed_peer_is_an_error_and_no_signal() {
    let (left, right) = pair();
    drop(right);
    let error = left.send(b"x", &[]).unwrap_err();
    assert!(matches!(error, TransferError::Closed), "{error}");
    assert!(matches!(left.send(b"", &[]).unwrap_err(), TransferError::Empty));
}

#[test]
fn connection_that_never_waits_says_so_both_ways() {
    let (left, right) = pair();
    left.set_buffer_bytes(4096).unwrap();
    left.set_blocking(Blocking::Never).unwrap();
    right.set_blocking(Blocking::Never).unwrap();
    let empty = right.recv(&mut [0; 8]).unwrap_err();
    assert!(matches!(empty, TransferError::WouldBlock), "{empty}");
    let full = (0..10_000).find_map(|_| left.send(&[0; 512], &[]).err()).unwrap();
    assert!(matches!(full, TransferError::WouldBlock), "{full}");
    left.set_blocking(Blocking::Wait).unwrap();
    assert_eq!(right.recv(&mut [0; 512]).unwrap().len, 512);
}

#[test]
fn only_seqpacket_sockets_are_connections() {
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert_eq!(Connection::from_fd(stream.into()).unwrap_err().errno(), libc::EINVAL);
    let file = tempfile::tempfile().unwrap();
    assert_eq!(Connection::from_fd(file.into()).unwrap_err().errno(), libc::EINVAL);
    let (left, right) = pair();
    let left = Connection::from_fd(OwnedFd::from(left)).unwrap();
    left.send(b"x", &[]).unwrap();
    assert_eq!(right.recv(&mut [0; 1]).unwrap().len, 1);
}
