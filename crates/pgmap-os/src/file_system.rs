//! What a directory lies on, and whether shared memory can be kept there.
//!
//! A pool needs holes that cost nothing, room that can be taken beforehand, and mappings that all
//! processes of the machine share. File systems that are known to lack one of them are named here;
//! of others the caller finds out by trying.

use std::path::Path;

use rustix::fs::StatVfsMountFlags;

use crate::OsError;

const HUGETLBFS: u64 = 0x9584_58f6;

/// `f_type` of file systems (linux/magic.h and the file systems' own headers), their names, and
/// what they lack.
const UNFIT: &[(u64, &str, &str)] = &[
    (0x8584_58f6, "ramfs", "which has no limit and keeps no room"),
    (HUGETLBFS, "hugetlbfs", "whose files are whole huge pages"),
    (0x4d44, "vfat", "which stores holes as bytes"),
    (0x2011_bab0, "exfat", "which stores holes as bytes"),
    (0x6969, "NFS", "whose files other machines change"),
    (0x517b, "SMB", "whose files other machines change"),
    (0xff53_4d42, "CIFS", "whose files other machines change"),
    (0xfe53_4d42, "SMB", "whose files other machines change"),
    (0x0102_1997, "9p", "whose files another machine keeps"),
    (0x00c3_6400, "Ceph", "whose files other machines change"),
    (0x9fa0, "proc", "which keeps no files"),
    (0x6265_6572, "sysfs", "which keeps no files"),
    (0x0027_e0eb, "a cgroup file system", "which keeps no files"),
    (0x6367_7270, "a cgroup file system", "which keeps no files"),
    (0x9660, "isofs", "which cannot be written"),
    (0x7371_7368, "squashfs", "which cannot be written"),
];

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    magic: u64,
    is_read_only: bool,
}

impl FileSystem {
    /// Returns what `path` lies on.
    ///
    /// # Errors
    /// What `statfs` says.
    pub fn of(path: &Path) -> Result<Self, OsError> {
        let failed =
            |errno| OsError::new("inspect the file system of", path.display().to_string(), errno);
        let found = rustix::fs::statfs(path).map_err(failed)?;
        let flags = rustix::fs::statvfs(path).map_err(failed)?.f_flag;
        // The kernel's numbers have 32 bits; some machines extend their sign.
        let magic = found.f_type as u64 & 0xffff_ffff;
        Ok(Self { magic, is_read_only: flags.contains(StatVfsMountFlags::RDONLY) })
    }

    /// Whether its files are whole huge pages.
    pub const fn is_hugetlbfs(&self) -> bool {
        self.magic == HUGETLBFS
    }

    /// Returns its name where it is one of those that cannot be used.
    pub fn name(&self) -> &'static str {
        let known = UNFIT.iter().find(|(magic, _, _)| *magic == self.magic);
        known.map_or("a file system", |known| known.1)
    }

    /// Returns why shared memory cannot be kept there, where that is known.
    pub fn unfit(&self) -> Option<&'static str> {
        let known = UNFIT.iter().find(|(magic, _, _)| *magic == self.magic).map(|known| known.2);
        known.or(self.is_read_only.then_some("which is mounted read-only"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_refused_by_name_and_a_temporary_directory_is_not() {
        let proc = FileSystem::of(Path::new("/proc")).unwrap();
        assert_eq!(proc.name(), "proc");
        assert!(proc.unfit().is_some());
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(FileSystem::of(directory.path()).unwrap().unfit(), None);
        assert!(FileSystem::of(Path::new("/nowhere/at/all")).is_err());
    }
}
