//! Why a copy was not done: the range lies outside, or memory did not answer.

use std::error::Error;
use std::fmt;

/// Why a copy was not done, or not to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CopyError {
    /// The caller asked for bytes outside the mapping; nothing was copied.
    OutOfBounds(OutOfBounds),
    /// The mapping's memory did not answer. Some of the bytes may have been copied.
    Fault(MemoryFault),
    /// The memory of the caller's own slice did not answer: the slice lies on some other mapped
    /// file, or its page failed. The offset counts from the start of the slice.
    SliceFault(MemoryFault),
}

/// A range that does not lie inside the mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfBounds {
    /// Where the range starts, in bytes from the start of the mapping.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
    /// How long the mapping is.
    pub mapping_len: u64,
}

/// The place where memory did not answer, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryFault {
    /// A byte of the first page that did not answer, in bytes from the start of the mapping; never
    /// outside the range that was asked for.
    pub offset: u64,
    /// What the kernel said.
    pub cause: FaultCause,
}

/// Why memory did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultCause {
    /// Nothing lies behind the address (`BUS_ADRERR`): the file was cut shorter, its file system is
    /// full, huge pages ran out, or the device is gone. The kernel does not say which.
    Unbacked,
    /// The memory is broken and its contents are lost (`BUS_MCEERR_AR`).
    Poisoned,
}

impl CopyError {
    /// Returns `EFAULT` outside the mapping, else what [`FaultCause::errno`] says.
    pub fn errno(&self) -> i32 {
        match self {
            Self::OutOfBounds(error) => error.errno(),
            Self::Fault(fault) | Self::SliceFault(fault) => fault.errno(),
        }
    }
}

impl OutOfBounds {
    /// Returns `EFAULT`: what the kernel says of an address outside.
    pub fn errno(&self) -> i32 {
        libc::EFAULT
    }
}

impl MemoryFault {
    /// Returns what [`FaultCause::errno`] says.
    pub fn errno(&self) -> i32 {
        self.cause.errno()
    }
}

impl FaultCause {
    /// Returns `EIO` where nothing lies behind the address, `EHWPOISON` for broken memory.
    pub fn errno(self) -> i32 {
        match self {
            Self::Unbacked => libc::EIO,
            Self::Poisoned => libc::EHWPOISON,
        }
    }
}

impl From<OutOfBounds> for CopyError {
    fn from(error: OutOfBounds) -> Self {
        Self::OutOfBounds(error)
    }
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfBounds(error) => error.fmt(f),
            Self::Fault(fault) => write!(f, "the mapping has {fault}"),
            Self::SliceFault(fault) => write!(f, "the caller's slice has {fault}"),
        }
    }
}

impl fmt::Display for OutOfBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, len, mapping_len } = self;
        write!(f, "{len} bytes at {offset} do not lie inside a mapping of {mapping_len} bytes")
    }
}

impl fmt::Display for MemoryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, cause } = self;
        match cause {
            FaultCause::Unbacked => write!(
                f,
                "nothing behind byte {offset}: its file was cut shorter, its file system is full, \
                 or its device is gone"
            ),
            FaultCause::Poisoned => write!(f, "broken memory at byte {offset}: its bytes are lost"),
        }
    }
}

impl Error for CopyError {}
impl Error for OutOfBounds {}
impl Error for MemoryFault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_names_its_place_and_has_the_errno_of_the_kernel() {
        let outside = OutOfBounds { offset: 9, len: 2, mapping_len: 10 };
        let unbacked = MemoryFault { offset: 4096, cause: FaultCause::Unbacked };
        let poisoned = MemoryFault { offset: 7, cause: FaultCause::Poisoned };
        let cases = [
            (CopyError::from(outside), libc::EFAULT, "2 bytes at 9 do not lie inside a mapping of"),
            (CopyError::Fault(unbacked), libc::EIO, "the mapping has nothing behind byte 4096: "),
            (
                CopyError::Fault(poisoned),
                libc::EHWPOISON,
                "the mapping has broken memory at byte 7",
            ),
            (CopyError::SliceFault(unbacked), libc::EIO, "the caller's slice has nothing behind"),
        ];
        for (error, errno, start) in cases {
            assert_eq!(error.errno(), errno);
            assert!(error.to_string().starts_with(start), "{error}");
        }
    }
}
