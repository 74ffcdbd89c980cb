//! Mounted file systems whose files are memory: tmpfs, hugetlbfs, and those that map their device.

use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::tree::Tree;

/// A file system whose files can be memory of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub path: PathBuf,
    /// What it is.
    pub kind: MountKind,
    /// Its device, or what stands in its place.
    pub source: String,
    /// Its room; `None` where that could not be asked.
    pub room: Option<Room>,
    /// Whether it can be written.
    pub is_writable: bool,
}

/// What a mount is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// Memory that can be swapped.
    Tmpfs,
    /// Huge pages of so many bytes.
    Hugetlbfs(Option<u64>),
    /// A file system that maps its device.
    Dax {
        /// `ext4`, `xfs`.
        file_system: String,
        /// Which of its files.
        mode: DaxMode,
    },
}

/// Which files of a file system map the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaxMode {
    /// All.
    Always,
    /// Those whose attribute says so.
    Inode,
}

/// Bytes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// All.
    pub total_bytes: u64,
    /// What this user can still take.
    pub available_bytes: u64,
}

pub(super) fn read(tree: &Tree) -> Vec<Mount> {
    let table = tree.text("proc/self/mountinfo").unwrap_or_default();
    let mut mounts: Vec<Mount> = Vec::new();
    for line in table.lines() {
        let Some(mut mount) = parse(line) else { continue };
        mount.room = room(tree, &mount);
        // What is mounted later at the same place hides what was there.
        mounts.retain(|other| other.path != mount.path);
        mounts.push(mount);
    }
    mounts
}

/// A line of `mountinfo`, if it is of a file system that is listed here.
fn parse(line: &str) -> Option<Mount> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mount: Vec<&str> = mount.split(' ').collect();
    let (path, options) = (mount.get(4)?, mount.get(5)?);
    let mut words = file_system.split(' ');
    let (name, source, flags) = (words.next()?, words.next()?, words.next().unwrap_or_default());
    let flag = |wanted: &str| flags.split(',').find(|flag| flag.split('=').next() == Some(wanted));
    let kind = match name {
        "tmpfs" => MountKind::Tmpfs,
        "hugetlbfs" => MountKind::Hugetlbfs(flag("pagesize").and_then(page_bytes)),
        _ => MountKind::Dax {
            file_system: name.to_owned(),
            mode: match flag("dax")? {
                "dax" | "dax=always" => DaxMode::Always,
                "dax=inode" => DaxMode::Inode,
                _ => return None,
            },
        },
    };
    let is_writable = [options, flags].iter().all(|list| list.split(',').all(|flag| flag != "ro"));
    let path = PathBuf::from(std::ffi::OsString::from_vec(unescaped(path)));
    Some(Mount { path, kind, source: source.to_owned(), room: None, is_writable })
}

/// `pagesize=2M` in bytes.
fn page_bytes(flag: &str) -> Option<u64> {
    let value = flag.split_once('=')?.1;
    let (digits, factor) = match value.as_bytes().last()? {
        b'K' => (&value[..value.len() - 1], 1 << 10),
        b'M' => (&value[..value.len() - 1], 1 << 20),
        b'G' => (&value[..value.len() - 1], 1 << 30),
        _ => (value, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// The kernel writes white space and backslashes of paths as three octal digits.
fn unescaped(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match value {
            Some(value) if first == b'\\' => {
                bytes.push(value);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

fn room(tree: &Tree, mount: &Mount) -> Option<Room> {
    let path = mount.path.to_str()?.trim_start_matches('/');
    match rustix::fs::statvfs(tree.at(path)) {
        Ok(found) => Some(Room {
            total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
            available_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        }),
        Err(errno) => {
            tree.lost(path, errno.into());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_told_apart_by_type_and_options() {
        let dax = parse("40 25 259:0 / /mnt/a\\040b rw,relatime - ext4 /dev/pmem0 rw,dax=always");
        let dax = dax.unwrap();
        assert_eq!(dax.path, PathBuf::from("/mnt/a b"));
        let expected = MountKind::Dax { file_system: "ext4".into(), mode: DaxMode::Always };
        assert_eq!(dax.kind, expected);
        let huge = parse("40 25 0:30 / /dev/hugepages rw shared:9 - hugetlbfs none rw,pagesize=2M");
        assert_eq!(huge.unwrap().kind, MountKind::Hugetlbfs(Some(2 << 20)));
        let tmpfs = parse("40 25 0:30 / /run ro,nosuid - tmpfs tmpfs rw,size=8k").unwrap();
        assert_eq!((tmpfs.kind, tmpfs.is_writable), (MountKind::Tmpfs, false));
        assert_eq!(parse("40 25 8:1 / /home rw - ext4 /dev/sda1 rw"), None);
        assert_eq!(parse("40 25 8:1 / /home rw - xfs /dev/sda1 rw,dax=never"), None);
    }
}
