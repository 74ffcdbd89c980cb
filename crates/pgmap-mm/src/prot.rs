//! What may be done to mapped memory, and what is about to be done to it.

use core::fmt;

use crate::flags::flag_set;

/// The permissions of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Prot(u8);

flag_set!(Prot);

impl Prot {
    /// Nothing: every access is a fault (`PROT_NONE`).
    pub const NONE: Self = Self(0);
    /// May be read.
    pub const READ: Self = Self(1);
    /// May be written.
    pub const WRITE: Self = Self(1 << 1);
    /// May be read and written.
    pub const READ_WRITE: Self = Self(Self::READ.0 | Self::WRITE.0);

    /// Whether `access` is allowed. Write permission does not imply read permission here, as in a
    /// VMA's flags (Linux 7.1: mm/gup.c, check_vma_flags).
    #[must_use]
    pub const fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => self.contains(Self::READ),
            Access::Write => self.contains(Self::WRITE),
        }
    }
}

impl fmt::Debug for Prot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.contains(Self::READ) { "r" } else { "-" })?;
        f.write_str(if self.contains(Self::WRITE) { "w" } else { "-" })
    }
}

/// What somebody is about to do to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Load from it.
    Read,
    /// Store to it.
    Write,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_permission_alone_does_not_allow_reads() {
        assert!(Prot::WRITE.allows(Access::Write));
        assert!(!Prot::WRITE.allows(Access::Read));
        assert!(Prot::READ_WRITE.allows(Access::Read));
        assert!(!Prot::NONE.allows(Access::Read));
        assert_eq!(format!("{:?} {:?}", Prot::READ_WRITE, Prot::NONE), "rw --");
    }
}
