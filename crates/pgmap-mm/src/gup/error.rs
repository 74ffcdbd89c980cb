//! Why pages could not be held.

use core::fmt;

use super::flags::GupFlags;
use crate::error::{PinError, errno};
use crate::fault::FaultError;
use crate::mm::FillError;
use crate::vma::BackingError;

const EREMOTEIO: i32 = 121;

/// Why not even the first page could be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GupError {
    /// The flags exclude each other.
    BadFlags {
        /// The flags.
        flags: GupFlags,
    },
    /// Address plus length overflows u64.
    Overflow {
        /// The address.
        address: u64,
    },
    /// The range runs over the end of the address space.
    Outside {
        /// The address.
        address: u64,
    },
    /// A page could not be faulted in, or may not be accessed so.
    Fault(FaultError),
    /// The page has no leaf, and none was to be made.
    NotPresent {
        /// The address.
        address: u64,
    },
    /// The area can be mapped but never pinned (`VM_PFNMAP`).
    Raw {
        /// The address.
        address: u64,
    },
    /// The page belongs to another device, and `P2PDMA` was not given.
    Peer {
        /// The address.
        address: u64,
    },
    /// The page's memory failed.
    Poisoned {
        /// The address.
        address: u64,
        /// Whether the caller asked for that error, with `HWPOISON`.
        is_reported: bool,
    },
    /// The page may not be held long-term.
    Longterm {
        /// The address.
        address: u64,
        /// Why.
        refusal: LongtermRefusal,
    },
    /// The frames behind the page changed each time they were to be held. Try again.
    Unstable {
        /// The address.
        address: u64,
    },
    /// This client can take no more holds.
    Hold(PinError),
}

/// Why pages may not be held long-term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LongtermRefusal {
    /// This type of memory does not allow it.
    Unsupported,
    /// The holder of the memory said no.
    Denied,
    /// The owner cannot be asked now.
    Busy,
}

impl GupError {
    /// What a fault that was not resolved means to a pin with these flags: failed memory is
    /// reported apart to those who asked for it.
    #[must_use]
    pub const fn of_fault(error: FaultError, flags: GupFlags) -> Self {
        match error {
            FaultError::Fill { address, error: FillError::Backing(BackingError::Poisoned) } => {
                Self::Poisoned { address, is_reported: flags.contains(GupFlags::HWPOISON) }
            }
            error => Self::Fault(error),
        }
    }

    /// The Linux error number that says the same.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::BadFlags { .. } => errno::EINVAL,
            Self::Overflow { .. } => errno::EOVERFLOW,
            Self::Outside { .. } | Self::NotPresent { .. } | Self::Raw { .. } => errno::EFAULT,
            Self::Fault(error) => error.errno(),
            Self::Peer { .. } => EREMOTEIO,
            Self::Poisoned { is_reported: true, .. } => errno::EHWPOISON,
            Self::Poisoned { is_reported: false, .. } => errno::EFAULT,
            Self::Longterm { refusal: LongtermRefusal::Unsupported, .. } => errno::EOPNOTSUPP,
            Self::Longterm { refusal: LongtermRefusal::Denied, .. } => errno::EACCES,
            Self::Longterm { refusal: LongtermRefusal::Busy, .. } | Self::Unstable { .. } => {
                errno::EAGAIN
            }
            Self::Hold(error) => error.errno(),
        }
    }
}

impl fmt::Display for GupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadFlags { flags } => write!(f, "the flags {flags:?} exclude each other"),
            Self::Overflow { address } => write!(f, "address {address:#x} + length overflows u64"),
            Self::Outside { address } => {
                write!(f, "the range at {address:#x} ends outside the address space")
            }
            Self::Fault(error) => error.fmt(f),
            Self::NotPresent { address } => write!(f, "no page is present at {address:#x}"),
            Self::Raw { address } => write!(f, "what is mapped at {address:#x} cannot be pinned"),
            Self::Peer { address } => {
                write!(f, "{address:#x} is another device's memory; ask with P2PDMA")
            }
            Self::Poisoned { address, .. } => write!(f, "the memory behind {address:#x} failed"),
            Self::Longterm { address, refusal } => {
                write!(f, "{address:#x} may not be held long-term: {refusal:?}")
            }
            Self::Unstable { address } => {
                write!(f, "the frames behind {address:#x} keep changing; try again")
            }
            Self::Hold(error) => error.fmt(f),
        }
    }
}

impl From<PinError> for GupError {
    fn from(error: PinError) -> Self {
        Self::Hold(error)
    }
}

impl std::error::Error for GupError {}
