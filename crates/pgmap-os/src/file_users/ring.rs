//! What an io_uring says in its `fdinfo`: the buffers and files that are registered with it.

use std::io;
use std::path::PathBuf;

/// A ring.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ring {
    pub fd: i32,
    /// Address and length, in the process that registered them.
    pub buffers: Vec<(u64, u64)>,
    pub files: Vec<PathBuf>,
}

/// Which list the lines belong to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    None,
    Buffers,
    Files,
}

impl Ring {
    /// Takes a ring's `fdinfo` apart.
    ///
    /// # Errors
    /// EAGAIN when the ring was at work: the kernel then leaves the lists out.
    pub(super) fn parse(fd: i32, info: &[u8]) -> io::Result<Ring> {
        let info = String::from_utf8_lossy(info);
        let mut ring = Ring { fd, buffers: Vec::new(), files: Vec::new() };
        let (mut list, mut nr_promised) = (List::None, None);
        for line in info.lines() {
            let (key, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.trim();
            match key {
                "UserFiles" => list = List::Files,
                "UserBufs" => {
                    list = List::Buffers;
                    nr_promised = value.parse::<u64>().ok();
                }
                _ if key.trim().parse::<u64>().is_err() => list = List::None,
                _ if list == List::Buffers => ring.buffers.extend(buffer(value)),
                _ if list == List::Files => ring.files.push(value.into()),
                _ => {}
            }
        }
        let nr_listed = ring.buffers.len() as u64;
        if nr_promised.is_none_or(|promised| promised > 0 && nr_listed == 0) {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        Ok(ring)
    }
}

/// `0x7f0000000000/4096`.
fn buffer(text: &str) -> Option<(u64, u64)> {
    let (address, len) = text.split_once('/')?;
    let address = u64::from_str_radix(address.trim_start_matches("0x"), 16).ok()?;
    Some((address, len.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "pos:\t0\nflags:\t02000002\nSqMask:\t0x7\nUserFiles:\t1\n\
                        \x20   0: /dev/dax0.0\nUserBufs:\t2\n    0: 0x7f0000200000/2097152\n\
                        \x20   1: 0x0/0\nPollList:\nCqOverflowList:\n";

    #[test]
    fn buffers_and_files_are_found() {
        let ring = Ring::parse(7, INFO.as_bytes()).unwrap();
        assert_eq!(ring.buffers, [(0x7f00_0020_0000, 2 << 20), (0, 0)]);
        assert_eq!(ring.files, [PathBuf::from("/dev/dax0.0")]);
    }

    #[test]
    fn a_ring_without_its_lists_is_not_taken_for_an_empty_one() {
        let busy = "pos:\t0\nSqMask:\t0x7\nUserFiles:\t0\nUserBufs:\t2\nPollList:\n";
        assert_eq!(Ring::parse(7, busy.as_bytes()).unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        let idle = "pos:\t0\nUserFiles:\t0\nUserBufs:\t0\nPollList:\n";
        assert!(Ring::parse(7, idle.as_bytes()).unwrap().buffers.is_empty());
        assert!(Ring::parse(7, b"pos:\t0\n").is_err());
    }
}
