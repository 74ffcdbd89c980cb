//! What the contents of a memory file lie in, and what follows from that.
//!
//! | kind | punch | take room first | pread, pwrite | long-term pins | outlives |
//! |---|---|---|---|---|---|
//! | memfd, tmpfs | yes | yes | yes | allowed | processes |
//! | hugetlb | yes | yes | through a mapping | allowed | processes |
//! | page cache of a disk | yes | yes | yes | refused | a power failure, once synced |
//! | file on DAX | yes | yes | yes | refused without a lease | a power failure, once synced |
//! | device-dax | no | no | through a mapping | allowed | what its region says |
//!
//! The column of long-term pins is what `IORING_REGISTER_BUFFERS` answers on Linux 6.12 and later
//! (mm/gup.c, `check_vma_flags` and `folio_fast_pin_allowed`): EOPNOTSUPP on a file on DAX, EFAULT
//! on the page cache of a disk.

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
use std::fmt;
use std::os::fd::BorrowedFd;

/// `f_type` of tmpfs, which is also what a memfd of base pages lies on (linux/magic.h).
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// `f_type` of hugetlbfs.
pub(super) const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// What the contents of a file lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// A memfd of base pages, or a file on tmpfs.
    Shmem,
    /// Huge pages: a memfd of them, or a file on hugetlbfs.
    Hugetlb,
    /// The page cache of a file system on a disk.
    PageCache,
    /// A file on a file system that is mounted with DAX: the memory of the device itself.
    FsDax,
    /// A device-dax character device, `/dev/daxX.Y`.
    DevDax,
}

/// Who may hold memory of a kind for as long as it likes (`FOLL_LONGTERM`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LongTerm {
    /// Everybody.
    Allowed,
    /// Whoever has a lease.
    Leased,
    /// Nobody.
    Refused,
}

/// What the contents of a file outlive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Persistence {
    /// Processes, and nothing else.
    Processes,
    /// An orderly restart of the machine. Its memory is persistent, and nothing says that what was
    /// flushed from the processor's caches is safe when the power fails.
    Restart,
    /// A power failure, once flushed or synced.
    PowerFailure,
}

impl MemoryKind {
    /// What the file of `fd` lies in, on a file system of type `fs_type`.
    pub(super) fn of_file(fd: BorrowedFd<'_>, fs_type: u64) -> Self {
        match fs_type {
            TMPFS_MAGIC => Self::Shmem,
            HUGETLBFS_MAGIC => Self::Hugetlb,
            _ if is_on_dax(fd) => Self::FsDax,
            _ => Self::PageCache,
        }
    }

    /// Returns whether a part can be given back to the system, to be replaced by zeros.
    #[must_use]
    pub const fn can_punch(self) -> bool {
        !matches!(self, Self::DevDax)
    }

    /// Returns whether memory must be taken before it is touched, which may otherwise end in
    /// SIGBUS.
    #[must_use]
    pub const fn must_reserve(self) -> bool {
        !matches!(self, Self::DevDax)
    }

    /// Returns whether the kernel reads and writes it without a mapping.
    pub(super) const fn has_pread(self) -> bool {
        !matches!(self, Self::DevDax | Self::Hugetlb)
    }

    /// Returns who may hold it long-term.
    #[must_use]
    pub const fn long_term(self) -> LongTerm {
        match self {
            Self::Shmem | Self::Hugetlb | Self::DevDax => LongTerm::Allowed,
            Self::FsDax => LongTerm::Leased,
            Self::PageCache => LongTerm::Refused,
        }
    }
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shmem => "shmem",
            Self::Hugetlb => "hugetlb",
            Self::PageCache => "page cache",
            Self::FsDax => "fsdax",
            Self::DevDax => "device-dax",
        })
    }
}

impl fmt::Display for Persistence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Processes => "processes",
            Self::Restart => "a restart",
            Self::PowerFailure => "a power failure",
        })
    }
}

/// Whether reads and writes of the file go to the memory of a device (`STATX_ATTR_DAX`).
fn is_on_dax(fd: BorrowedFd<'_>) -> bool {
    let found = statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::empty());
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::DAX))
}
