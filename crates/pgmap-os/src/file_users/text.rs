//! What proc's files say, taken apart.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MapLine {
    pub start: u64,
    pub end: u64,
    pub is_writable: bool,
    pub is_shared: bool,
    pub offset: u64,
    pub major: u32,
    pub minor: u32,
    pub inode: u64,
    pub path: PathBuf,
}

impl MapLine {
    /// How many bytes of `start..end` it has.
    pub(super) fn overlap(&self, start: u64, end: u64) -> u64 {
        self.end.min(end).saturating_sub(self.start.max(start))
    }
}

/// The lines of `/proc/PID/maps`.
pub(super) fn map_lines(maps: &[u8]) -> Vec<MapLine> {
    maps.split(|&byte| byte == b'\n').filter_map(map_line).collect()
}

fn map_line(line: &[u8]) -> Option<MapLine> {
    // Five fields, each followed by one space; then spaces and a path that may have any bytes in
    // it.
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let mut field = || std::str::from_utf8(fields.next()?).ok();
    let (range, rights, offset, device, inode) = (field()?, field()?, field()?, field()?, field()?);
    let path = fields.next().unwrap_or_default().trim_ascii_start();
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = range.split_once('-')?;
    let (major, minor) = device.split_once(':')?;
    Some(MapLine {
        start: hex(start)?,
        end: hex(end)?,
        is_writable: rights.as_bytes().get(1) == Some(&b'w'),
        is_shared: rights.as_bytes().get(3) == Some(&b's'),
        offset: hex(offset)?,
        major: u32::from_str_radix(major, 16).ok()?,
        minor: u32::from_str_radix(minor, 16).ok()?,
        inode: inode.parse().ok()?,
        path: OsStr::from_bytes(path).into(),
    })
}

/// Whether the descriptor that an `fdinfo` is of can be written through.
pub(super) fn is_writable(info: &[u8]) -> bool {
    let info = String::from_utf8_lossy(info);
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

/// `PF_KTHREAD` of include/linux/sched.h.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Whether the process that a `stat` is of is a thread of the kernel.
pub(super) fn is_of_kernel(stat: &[u8]) -> bool {
    let stat = String::from_utf8_lossy(stat);
    // The name in parentheses may have any characters in it. The flags are the seventh field behind
    // it.
    let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
    let flags = after.split(' ').nth(6).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & KERNEL_THREAD != 0)
}

/// `VmPin` of `/proc/PID/status`.
pub(super) fn pinned_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Where `mountinfo` says that the device with these numbers is mounted.
pub(super) fn mounts_of(mountinfo: &[u8], (major, minor): (u32, u32)) -> Vec<PathBuf> {
    let wanted = format!("{major}:{minor}");
    let of_line = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').take(5).collect();
        let is_wanted = fields.get(2).is_some_and(|numbers| *numbers == wanted.as_bytes());
        is_wanted.then(|| fields.get(4).map(|path| PathBuf::from(OsStr::from_bytes(path))))?
    };
    mountinfo.split(|&byte| byte == b'\n').filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_taken_apart() {
        let maps = b"7f0000200000-7f0000600000 rw-s 00400000 fd:1f 77      /dev/a b (deleted)\n\
                     7f0001000000-7f0001001000 r--p 00000000 00:00 0 \n";
        let lines = map_lines(maps);
        assert_eq!(lines.len(), 2);
        let line = &lines[0];
        assert_eq!((line.start, line.end), (0x7f00_0020_0000, 0x7f00_0060_0000));
        assert!(line.is_writable && line.is_shared);
        assert_eq!((line.offset, line.major, line.minor, line.inode), (0x40_0000, 0xfd, 0x1f, 77));
        assert_eq!(line.path, PathBuf::from("/dev/a b (deleted)"));
        assert!(!lines[1].is_writable && !lines[1].is_shared);
        assert_eq!(line.overlap(0x7f00_0010_0000, 0x7f00_0030_0000), 0x10_0000);
        assert_eq!(line.overlap(0x7f00_0060_0000, 0x7f00_0070_0000), 0);
    }

    #[test]
    fn rights_of_descriptors_are_octal_flags() {
        assert!(is_writable(b"pos:\t0\nflags:\t0100002\n"));
        assert!(!is_writable(b"pos:\t0\nflags:\t0100000\n"));
        assert!(!is_writable(b""));
    }

    #[test]
    fn threads_of_the_kernel_are_told_by_their_flags() {
        assert!(is_of_kernel(b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0"));
        assert!(!is_of_kernel(b"9 (a) b) S 1 9 9 0 -1 4194560 0 0 0"));
    }

    #[test]
    fn pinned_bytes_are_read_from_the_status() {
        assert_eq!(pinned_bytes("Name:\tx\nVmPin:\t   16384 kB\n"), Some(16384 << 10));
        assert_eq!(pinned_bytes("Name:\tx\n"), None);
    }

    #[test]
    fn mounts_are_found_by_number() {
        let table = b"1 2 259:0 / /mnt/a rw - ext4 /dev/pmem0 rw\n1 2 259:1 / /b rw - xfs x rw\n";
        assert_eq!(mounts_of(table, (259, 0)), [PathBuf::from("/mnt/a")]);
    }
}
