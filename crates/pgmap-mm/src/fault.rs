//! Faults: what happens at an address that has no leaf yet, or one that does not allow enough.

use core::fmt;

use crate::error::errno;
use crate::level::{Level, PAGE_BYTES};
use crate::mm::{EndedRanges, FillError, Mm, MmState};
use crate::page_table::entry::LeafFlags;
use crate::prot::{Access, Prot};
use crate::vma::BackingError;

/// Why a fault could not be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultError {
    /// Nothing is mapped at the address.
    NoArea {
        /// The address.
        address: u64,
    },
    /// What is mapped there does not allow this access.
    Denied {
        /// The address.
        address: u64,
        /// The access.
        access: Access,
    },
    /// The page could not be filled.
    Fill {
        /// The address.
        address: u64,
        /// Why.
        error: FillError,
    },
}

/// What the kernel would send to a process for an unresolved fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// `SIGSEGV`.
    Segv,
    /// `SIGBUS`, `BUS_ADRERR`.
    Bus,
    /// `SIGBUS`, `BUS_MCEERR_AR`.
    BusHwPoison,
}

impl FaultError {
    /// The signal that a process would get.
    #[must_use]
    pub const fn signal(&self) -> Signal {
        match self {
            Self::NoArea { .. } | Self::Denied { .. } => Signal::Segv,
            Self::Fill { error: FillError::Backing(BackingError::Poisoned), .. } => {
                Signal::BusHwPoison
            }
            Self::Fill { .. } => Signal::Bus,
        }
    }

    /// The Linux error number that `get_user_pages` would give.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::NoArea { .. } | Self::Denied { .. } => errno::EFAULT,
            Self::Fill { error, .. } => error.errno(),
        }
    }
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoArea { address } => write!(f, "nothing is mapped at {address:#x}"),
            Self::Denied { address, access } => {
                write!(f, "what is mapped at {address:#x} does not allow a {access}")
            }
            Self::Fill { address, error } => write!(f, "{address:#x} cannot be filled: {error}"),
        }
    }
}

impl std::error::Error for FaultError {}

/// How a fault was resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faulted {
    /// First address that the leaf maps.
    pub address: u64,
    /// The size of the leaf.
    pub level: Level,
    /// Whether it was there already and allowed the access.
    pub was_present: bool,
}

impl Mm {
    /// Resolves a fault: puts in the leaf that maps the address. The leaf is the largest that
    /// address, area, file and the leaves already there allow; for device-dax it is exactly the
    /// device's alignment.
    ///
    /// # Errors
    /// [`FaultError`], as Linux 7.1: drivers/dax/device.c and fs/dax.c, with 1 GiB leaves for files
    /// too.
    pub fn fault(&self, address: u64, access: Access) -> Result<Faulted, FaultError> {
        let mut ended = EndedRanges::default();
        let mut state = self.lock();
        let found = self.fault_locked(&mut state, address, access, &mut ended);
        let _told = self.finish(state, &ended);
        found
    }

    pub(crate) fn fault_locked(
        &self,
        state: &mut MmState,
        address: u64,
        access: Access,
        ended: &mut EndedRanges,
    ) -> Result<Faulted, FaultError> {
        let page = address / PAGE_BYTES;
        let MmState { areas, writer, .. } = state;
        let Some(vma) = areas.find(page) else {
            return Err(FaultError::NoArea { address });
        };
        if !vma.prot.allows(access) {
            return Err(FaultError::Denied { address, access });
        }
        let is_enough =
            |flags: LeafFlags| access == Access::Read || flags.contains(LeafFlags::WRITE);
        let present = self.table.cursor(writer).leaf_at(page);
        if let Some(found) = present.filter(|found| is_enough(found.leaf.flags())) {
            let address = found.page * PAGE_BYTES;
            return Ok(Faulted { address, level: found.level, was_present: true });
        }
        let filled = self
            .fill(writer, vma, page, ended)
            .map_err(|error| FaultError::Fill { address, error })?;
        if !is_enough(filled.flags) {
            // The folio itself is read-only, whatever the area says.
            return Err(FaultError::Denied { address, access });
        }
        let address = filled.page * PAGE_BYTES;
        Ok(Faulted { address, level: filled.level, was_present: false })
    }

    /// Fills every page of the range, as `MAP_POPULATE` does, with the largest leaves that fit.
    ///
    /// # Errors
    /// At once where something is not mapped or allows no access, as `MADV_POPULATE_READ`; else at
    /// the first page that cannot be filled, and those before it are.
    pub fn populate(&self, address: u64, len_bytes: u64) -> Result<(), FaultError> {
        let page = address / PAGE_BYTES;
        let end = address.saturating_add(len_bytes).div_ceil(PAGE_BYTES);
        let mut state = self.lock();
        if !state.areas.covers(page, end) {
            return Err(FaultError::NoArea { address });
        }
        if let Some(vma) = state.areas.overlapping(page, end).find(|vma| vma.prot == Prot::NONE) {
            let address = vma.page.max(page) * PAGE_BYTES;
            return Err(FaultError::Denied { address, access: Access::Read });
        }
        self.fill_all(&mut state, page, end)
            .map_err(|(page, error)| FaultError::Fill { address: page * PAGE_BYTES, error })
    }
}
