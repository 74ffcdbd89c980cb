//! What a pin can fail with.

use core::fmt;

use crate::descriptor::{Descriptor, FolioFlags, FolioState};
use crate::pfn::PfnRange;

/// Linux error numbers that the page model's errors map to.
pub mod errno {
    #![allow(missing_docs)] // the names are Linux's own
    pub const EPERM: i32 = 1;
    pub const ENOMEM: i32 = 12;
    pub const EACCES: i32 = 13;
    pub const EFAULT: i32 = 14;
    pub const EBUSY: i32 = 16;
    pub const EINVAL: i32 = 22;
    pub const ENOSPC: i32 = 28;
    pub const EAGAIN: i32 = 11;
    pub const ECHILD: i32 = 10;
    pub const ENXIO: i32 = 6;
    pub const EOVERFLOW: i32 = 75;
    pub const EOPNOTSUPP: i32 = 95;
    pub const ESTALE: i32 = 116;
    pub const EHWPOISON: i32 = 133;
}

/// Why a pin was not taken. Nothing is held afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PinError {
    /// The frames are not what the caller was given: truncated, unlinked, reused, failed.
    Changed {
        /// What was to be pinned.
        run: PfnRange,
        /// What the life word is now.
        now: Descriptor,
    },
    /// The word that the caller was given allows no pins.
    NotPinnable {
        /// That word.
        word: Descriptor,
    },
    /// The run lies outside the extent, or the extent outside the pool.
    Outside {
        /// The run.
        run: PfnRange,
    },
    /// Every slot of the lane is in use.
    LaneFull {
        /// Slots of a lane.
        nr_slots: usize,
    },
    /// More threads are taking pins at this moment than the ledger has lanes.
    NoLane {
        /// Lanes of a ledger.
        nr_lanes: usize,
    },
    /// The file system of the client's ledger has no room to record the pin.
    NoRoom,
    /// One client has as many long-term pins on one folio as a count can hold.
    CountFull {
        /// The folio.
        run: PfnRange,
    },
    /// A long-term pin needs the owner's consent for these frames.
    NeedsConsent {
        /// What was to be pinned.
        run: PfnRange,
    },
    /// This process is a forked child of the client. It must attach again.
    Forked,
}

impl PinError {
    /// A name for programs, in snake case. It stays what it is.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Changed { .. } | Self::NotPinnable { .. } => match self.errno() {
                errno::EHWPOISON => "memory_failed",
                errno::EFAULT => "raw",
                _ => "changed",
            },
            Self::Outside { .. } => "outside",
            Self::LaneFull { .. } => "lane_full",
            Self::NoLane { .. } => "no_lane",
            Self::CountFull { .. } => "count_full",
            Self::NoRoom => "no_room",
            Self::NeedsConsent { .. } => "needs_consent",
            Self::Forked => "forked",
        }
    }

    /// The Linux error number that says the same.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Changed { now, .. } => match now.state() {
                FolioState::Poisoned => errno::EHWPOISON,
                _ => errno::ESTALE,
            },
            Self::NotPinnable { word } => match word.state() {
                FolioState::Poisoned | FolioState::Quarantined => errno::EHWPOISON,
                _ if word.flags().contains(FolioFlags::RAW) => errno::EFAULT,
                _ => errno::ESTALE,
            },
            Self::Outside { .. } => errno::EFAULT,
            Self::LaneFull { .. } | Self::NoLane { .. } => errno::EAGAIN,
            Self::CountFull { .. } => errno::ENOMEM,
            Self::NoRoom => errno::ENOSPC,
            Self::NeedsConsent { .. } => errno::EOPNOTSUPP,
            Self::Forked => errno::ECHILD,
        }
    }
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed { run, now } => {
                write!(f, "frames {run} are no longer what they were: now {now:?}; open them again")
            }
            Self::NotPinnable { word } => match word.state() {
                FolioState::Poisoned | FolioState::Quarantined => {
                    f.write_str("memory there failed and cannot be pinned")
                }
                _ if word.flags().contains(FolioFlags::RAW) => {
                    f.write_str("raw memory is mapped and never pinned")
                }
                _ => write!(f, "a {word:?} folio cannot be pinned"),
            },
            Self::Outside { run } => write!(f, "frames {run} lie outside the extent or the pool"),
            Self::LaneFull { nr_slots } => {
                write!(f, "this thread holds {nr_slots} pins in one lane; drop some or take a lane")
            }
            Self::NoLane { nr_lanes } => {
                write!(
                    f,
                    "all {nr_lanes} lanes of this client are in use at this moment; try again"
                )
            }
            Self::CountFull { run } => {
                write!(f, "frames {run} carry as many long-term pins as one client may have")
            }
            Self::NoRoom => f.write_str(
                "the file system of the client's ledger has no room to record the pin; make room \
                 on it",
            ),
            Self::NeedsConsent { run } => {
                write!(f, "frames {run} may be pinned long-term only with the owner's consent")
            }
            Self::Forked => f.write_str(
                "this process was forked from a client and must attach to the pool again",
            ),
        }
    }
}

impl std::error::Error for PinError {}
