//! A pagemap: one piece of device memory with a type, ops, an owner and a largest folio.
//!
//! # States
//!
//! ```text
//!   Live ── teardown begins: nothing new starts; holder notified ──▶ Dying ── freed ──▶ Drained
//!     look-ups answer                                   look-ups refuse    the frames are nobody's
//! ```
//!
//! # Who may touch what
//!
//! The owner alone, on one thread; the kernel's percpu reference has no counterpart, because a
//! look-up borrows the table.
//!
//! # Orderings
//!
//! None of its own: descriptors and ledgers carry what other threads see.
//!
//! # Lost races
//!
//! *Look-up against teardown.* Both are the owner's. If the look-up is first its caller ends before
//! the next step of the teardown; if the teardown is first the look-up finds nothing.
//!
//! # Differs from Linux
//!
//! Validation reports what Linux 7.1 reports (mm/memremap.c, `memremap_pages` and `pagemap_range`;
//! mm/memory_hotplug.c, `check_pfn_span`), in its order. A live pagemap in the *middle* of a range
//! is found too, where the kernel looks at the first and the last frame only. Each range starts at
//! a 1 GiB boundary of the pfn space, so no folio can lie across two. Teardown waits for device-dax
//! and fsdax frames, which the kernel has not done since 5.19.

use core::fmt;
use core::ops::Range;

use crate::error::errno;
use crate::flags::flag_set;
use crate::level::{Level, PAGE_BYTES};
use crate::memory_type::MemoryType;
use crate::pfn::{MAX_RUN_PAGES, PFN_BITS, Pfn, PfnRange};

pub use teardown::{Step, Teardown, TeardownError};

mod table;
mod teardown;

pub use table::{PagemapId, PagemapTable};

/// Ranges must start and end at multiples of this (Linux 7.1: `SUBSECTION_SHIFT`).
pub const SUBSECTION_BYTES: u64 = 2 << 20;
/// Most ranges of one pagemap.
pub const MAX_RANGES: usize = 64;

/// Bytes of the address space in which devices lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRange {
    /// First byte.
    pub start_bytes: u64,
    /// How many.
    pub len_bytes: u64,
}

impl DeviceRange {
    /// The byte after the last; at the end of the address space where it would lie beyond.
    #[must_use]
    pub const fn end_bytes(self) -> u64 {
        self.start_bytes.saturating_add(self.len_bytes)
    }

    /// Whether the two have a byte in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start_bytes < other.end_bytes() && other.start_bytes < self.end_bytes()
    }
}

/// Which ops a pagemap's driver has.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct OpsPresent(u8);

flag_set!(OpsPresent);

impl OpsPresent {
    /// None.
    pub const NONE: Self = Self(0);
    /// [`PagemapOps::folio_free`].
    pub const FOLIO_FREE: Self = Self(1);
    /// [`PagemapOps::migrate_to_ram`].
    pub const MIGRATE_TO_RAM: Self = Self(1 << 1);
    /// [`PagemapOps::memory_failure`].
    pub const MEMORY_FAILURE: Self = Self(1 << 2);
    /// [`PagemapOps::folio_split`].
    pub const FOLIO_SPLIT: Self = Self(1 << 3);
}

impl fmt::Debug for OpsPresent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::FOLIO_FREE, "folio_free"),
            (Self::MIGRATE_TO_RAM, "migrate_to_ram"),
            (Self::MEMORY_FAILURE, "memory_failure"),
            (Self::FOLIO_SPLIT, "folio_split"),
        ];
        f.debug_set()
            .entries(names.iter().filter(|(op, _)| self.contains(*op)).map(|(_, name)| name))
            .finish()
    }
}

/// How a memory failure came about, numbered as the kernel's `MF_` flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FailureFlags(u32);

flag_set!(FailureFlags);

impl FailureFlags {
    /// Found by a scrubber.
    pub const NONE: Self = Self(0);
    /// A processor consumed the bad bytes.
    pub const ACTION_REQUIRED: Self = Self(1 << 1);
    /// Somebody asked for it, to test.
    pub const SW_SIMULATED: Self = Self(1 << 5);
    /// Nothing failed: the memory is about to be removed.
    pub const MEM_PRE_REMOVE: Self = Self(1 << 7);

    /// As the kernel writes them.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// An op that this pagemap's driver does not have or does not do here (`EOPNOTSUPP`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSupported;

/// What a pagemap's driver does (Linux 7.1: include/linux/memremap.h, struct `dev_pagemap_ops`).
/// The owner calls a method only if [`present`](Self::present) names it.
pub trait PagemapOps: Send + Sync {
    /// Which of the following there are.
    fn present(&self) -> OpsPresent {
        OpsPresent::NONE
    }

    /// Nothing holds `folio` any more. Called once in each of its lives, before it is free.
    fn folio_free(&self, _folio: PfnRange) {}

    /// A processor touched private memory: bring the bytes back.
    ///
    /// # Errors
    /// [`NotSupported`], which the toucher sees as `SIGBUS`.
    fn migrate_to_ram(&self, _folio: PfnRange) -> Result<(), NotSupported> {
        Err(NotSupported)
    }

    /// Memory failed. The generic way follows when this says [`NotSupported`].
    ///
    /// # Errors
    /// [`NotSupported`].
    fn memory_failure(&self, _run: PfnRange, _flags: FailureFlags) -> Result<(), NotSupported> {
        Err(NotSupported)
    }

    /// `folio` has been split; around `at` its parts are now of level `to`.
    fn folio_split(&self, _folio: PfnRange, _at: Pfn, _to: Level) {}
}

/// A pagemap as somebody asks for it; nothing is believed yet (I9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagemapSpec {
    /// What kind of memory.
    pub memory_type: MemoryType,
    /// Where on the device.
    pub ranges: Vec<DeviceRange>,
    /// Whose: compared before private and coherent memory is migrated. An opaque number.
    pub owner: Option<u64>,
    /// The largest folio, by [`Level::number`] (`vmemmap_shift` in steps of nine).
    pub largest_level: u8,
    /// What its driver can do.
    pub ops: OpsPresent,
}

/// Why a pagemap was not made. Nothing is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PagemapError {
    /// It has no range, or more than [`MAX_RANGES`].
    NrRanges {
        /// How many it has.
        nr_ranges: usize,
    },
    /// Its largest folio is larger than there are.
    LevelTooLarge {
        /// The number given.
        level: u8,
    },
    /// Its type needs an op that its driver does not have.
    MissingOp {
        /// The type.
        memory_type: MemoryType,
        /// The op.
        op: &'static str,
    },
    /// Its type needs an owner.
    MissingOwner {
        /// The type.
        memory_type: MemoryType,
    },
    /// A live pagemap has some of the bytes.
    Taken {
        /// The range.
        range: DeviceRange,
        /// Whose they are.
        by: PagemapId,
    },
    /// Some of the bytes are not device memory.
    SystemRam {
        /// The range.
        range: DeviceRange,
    },
    /// The bytes lie beyond what can be addressed.
    OutOfReach {
        /// The range.
        range: DeviceRange,
    },
    /// The range does not start and end at multiples of 2 MiB, or is empty.
    Misaligned {
        /// The range.
        range: DeviceRange,
    },
    /// The pfn space has no gap that is long enough.
    NoRoom {
        /// Frames needed.
        nr_pages: u64,
    },
}

impl PagemapError {
    /// The Linux error number that says the same.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::NrRanges { .. }
            | Self::LevelTooLarge { .. }
            | Self::MissingOp { .. }
            | Self::MissingOwner { .. }
            | Self::OutOfReach { .. }
            | Self::Misaligned { .. } => errno::EINVAL,
            Self::Taken { .. } => errno::ENOMEM,
            Self::NoRoom { .. } => errno::ENOSPC,
            Self::SystemRam { .. } => errno::ENXIO,
        }
    }
}

impl fmt::Display for PagemapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NrRanges { nr_ranges } => {
                write!(f, "a pagemap has 1 to {MAX_RANGES} ranges, not {nr_ranges}")
            }
            Self::LevelTooLarge { level } => {
                write!(f, "folio level {level} is larger than 2, which is 1 GiB")
            }
            Self::MissingOp { memory_type, op } => {
                write!(f, "{memory_type} memory needs the op {op}")
            }
            Self::MissingOwner { memory_type } => write!(f, "{memory_type} memory needs an owner"),
            Self::Taken { range, by } => {
                write!(f, "range {range} belongs in part to the live pagemap {}", by.0)
            }
            Self::SystemRam { range } => write!(f, "range {range} is not all device memory"),
            Self::OutOfReach { range } => write!(f, "range {range} lies beyond the address space"),
            Self::Misaligned { range } => {
                write!(f, "range {range} does not start and end at multiples of 2 MiB")
            }
            Self::NoRoom { nr_pages } => {
                write!(f, "the pfn space has no gap of {nr_pages} frames")
            }
        }
    }
}

impl std::error::Error for PagemapError {}

impl fmt::Display for DeviceRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start_bytes, self.end_bytes())
    }
}

impl PagemapSpec {
    /// What can be said of the spec by itself, in the kernel's order; returns the largest folio.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn check(&self) -> Result<Level, PagemapError> {
        let nr_ranges = self.ranges.len();
        if nr_ranges == 0 || nr_ranges > MAX_RANGES {
            return Err(PagemapError::NrRanges { nr_ranges });
        }
        let level = Level::from_number(self.largest_level)
            .ok_or(PagemapError::LevelTooLarge { level: self.largest_level })?;
        let memory_type = self.memory_type;
        for (op, name) in required_ops(memory_type) {
            if !self.ops.contains(*op) {
                return Err(PagemapError::MissingOp { memory_type, op: name });
            }
        }
        let needs_owner = matches!(memory_type, MemoryType::Private | MemoryType::Coherent);
        if needs_owner && self.owner.is_none() {
            return Err(PagemapError::MissingOwner { memory_type });
        }
        Ok(level)
    }
}

/// The ops that a type cannot do without, in the order in which the kernel asks for them.
const fn required_ops(memory_type: MemoryType) -> &'static [(OpsPresent, &'static str)] {
    const FOLIO_FREE: (OpsPresent, &str) = (OpsPresent::FOLIO_FREE, "folio_free");
    match memory_type {
        MemoryType::Private => &[(OpsPresent::MIGRATE_TO_RAM, "migrate_to_ram"), FOLIO_FREE],
        MemoryType::Coherent => &[FOLIO_FREE],
        MemoryType::FsDax | MemoryType::Generic | MemoryType::P2pDma => &[],
    }
}

/// Whether a pagemap is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// It is.
    Live,
    /// It is going; look-ups refuse.
    Dying,
    /// It is gone: nothing holds a frame of it.
    Drained,
}

/// One range of a pagemap and its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedRange {
    device: DeviceRange,
    first: u64,
}

impl PlacedRange {
    /// Where it lies on the device.
    #[must_use]
    pub const fn device(&self) -> DeviceRange {
        self.device
    }

    /// Number of its first frame, a multiple of 1 GiB.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.first
    }

    /// How many frames.
    #[must_use]
    pub const fn nr_pages(&self) -> u64 {
        self.device.len_bytes / PAGE_BYTES
    }

    /// Number of the frame after the last.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first + self.nr_pages()
    }

    /// The frames, in runs as long as runs can be.
    fn runs(&self) -> impl Iterator<Item = PfnRange> + use<> {
        let (start, end) = (self.first, self.end());
        (start..end)
            .step_by(MAX_RUN_PAGES as usize)
            .filter_map(move |at| PfnRange::new(at, (end - at).min(MAX_RUN_PAGES)))
    }

    const fn contains(&self, pfn: Pfn) -> bool {
        pfn.number() >= self.first && pfn.number() < self.end()
    }
}

/// A pagemap that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pagemap {
    id: PagemapId,
    memory_type: MemoryType,
    ranges: Vec<PlacedRange>,
    owner: Option<u64>,
    largest: Level,
    ops: OpsPresent,
    lifecycle: Lifecycle,
    has_teardown: bool,
}

impl Pagemap {
    /// Which.
    #[must_use]
    pub const fn id(&self) -> PagemapId {
        self.id
    }

    /// What kind of memory.
    #[must_use]
    pub const fn memory_type(&self) -> MemoryType {
        self.memory_type
    }

    /// Its ranges, in the order in which they were given.
    #[must_use]
    pub fn ranges(&self) -> &[PlacedRange] {
        &self.ranges
    }

    /// The tag of whoever made it.
    #[must_use]
    pub const fn owner(&self) -> Option<u64> {
        self.owner
    }

    /// The largest folio.
    #[must_use]
    pub const fn largest(&self) -> Level {
        self.largest
    }

    /// What its driver can do.
    #[must_use]
    pub const fn ops(&self) -> OpsPresent {
        self.ops
    }

    /// Whether it is in use.
    #[must_use]
    pub const fn lifecycle(&self) -> Lifecycle {
        self.lifecycle
    }

    /// Whether a folio may lie here (Linux 7.1: mm/memremap.c, `pgmap_pfn_valid`).
    #[must_use]
    pub fn pfn_valid(&self, pfn: Pfn) -> bool {
        self.ranges.iter().any(|range| range.contains(pfn))
    }

    /// The frames that folios can be made of, as runs.
    pub fn usable_runs(&self) -> impl Iterator<Item = PfnRange> + '_ {
        self.ranges.iter().flat_map(PlacedRange::runs)
    }

    fn device_ranges(&self) -> impl Iterator<Item = DeviceRange> + '_ {
        self.ranges.iter().map(|range| range.device)
    }

    fn pfn_spans(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|range| range.first..range.end())
    }
}

/// Frames of the whole pfn space.
const SPACE_PAGES: u64 = 1 << PFN_BITS;
