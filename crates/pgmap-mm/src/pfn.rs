//! Page frame numbers and runs of them.

use core::fmt;

use crate::level::{Level, PAGE_BYTES};

/// Bits of a page frame number: 2^36 frames of 4 KiB are 256 TiB.
pub const PFN_BITS: u32 = 36;
/// Bits of a run's length in frames: a run is at most 2^26 frames, 256 GiB.
pub const RUN_BITS: u32 = 26;
/// The longest run in frames.
pub const MAX_RUN_PAGES: u64 = 1 << RUN_BITS;

/// A 4 KiB page frame number in the owner's one pfn space.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(u64);

impl Pfn {
    /// The frame with this number, if it has no more than [`PFN_BITS`] bits.
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        if number >> PFN_BITS == 0 { Some(Self(number)) } else { None }
    }

    /// The frame number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Where the frame starts, in bytes from frame 0.
    #[must_use]
    pub const fn offset_bytes(self) -> u64 {
        self.0 * PAGE_BYTES
    }

    /// Which folio of `level` the frame lies in, counted from frame 0.
    #[must_use]
    pub const fn folio(self, level: Level) -> u64 {
        self.0 >> level.shift()
    }

    /// Whether a folio of `level` can start here.
    #[must_use]
    pub const fn is_aligned(self, level: Level) -> bool {
        self.0.is_multiple_of(level.nr_pages())
    }

    /// The first frame of the folio of `level` that this frame lies in.
    #[must_use]
    pub const fn align_down(self, level: Level) -> Self {
        Self(self.0 & !(level.nr_pages() - 1))
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A run of 1 to [`MAX_RUN_PAGES`] consecutive frames, all with valid numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PfnRange {
    first: u64,
    nr_pages: u64,
}

impl PfnRange {
    /// The run of `nr_pages` frames from `first`; `None` if it is empty, too long, or runs off the
    /// pfn space.
    #[must_use]
    pub const fn new(first: u64, nr_pages: u64) -> Option<Self> {
        if nr_pages == 0 || nr_pages > MAX_RUN_PAGES || first > (1 << PFN_BITS) - nr_pages {
            return None;
        }
        Some(Self { first, nr_pages })
    }

    /// Some frames of a folio or leaf that lies in the pfn space: at least one, and no more than it
    /// has.
    #[inline(always)]
    pub(crate) fn inside(first: u64, nr_pages: u64) -> Self {
        debug_assert!(Self::new(first, nr_pages).is_some(), "{first:#x}+{nr_pages}");
        Self { first, nr_pages }
    }

    /// The one folio of `level` that contains `pfn`.
    #[must_use]
    pub const fn folio(pfn: Pfn, level: Level) -> Self {
        Self { first: pfn.align_down(level).0, nr_pages: level.nr_pages() }
    }

    /// First frame.
    #[must_use]
    pub const fn first(self) -> Pfn {
        Pfn(self.first)
    }

    /// Number of the first frame.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.first
    }

    /// Number of the frame after the last.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.first + self.nr_pages
    }

    /// Frames in the run.
    #[must_use]
    pub const fn nr_pages(self) -> u64 {
        self.nr_pages
    }

    /// Bytes in the run.
    #[must_use]
    pub const fn len_bytes(self) -> u64 {
        self.nr_pages * PAGE_BYTES
    }

    /// Where the run lies, in bytes from frame 0.
    #[must_use]
    pub const fn byte_range(self) -> core::ops::Range<u64> {
        self.first * PAGE_BYTES..self.end() * PAGE_BYTES
    }

    /// Whether `pfn` is one of the frames.
    #[must_use]
    pub const fn contains(self, pfn: Pfn) -> bool {
        pfn.0 >= self.first && pfn.0 < self.end()
    }

    /// Whether all of `other` lies inside.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        other.first >= self.first && other.end() <= self.end()
    }

    /// Whether the two have a frame in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first < other.end() && other.first < self.end()
    }

    /// The frames the two have in common.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        let first = self.first.max(other.first);
        let end = self.end().min(other.end());
        if first < end { Self::new(first, end - first) } else { None }
    }

    /// The part of the run of `nr_pages` frames that starts `skip` frames in.
    #[must_use]
    pub const fn sub_run(self, skip: u64, nr_pages: u64) -> Option<Self> {
        if skip > self.nr_pages || nr_pages > self.nr_pages - skip {
            return None;
        }
        Self::new(self.first + skip, nr_pages)
    }

    /// What is left of the run before and after `cut`.
    #[must_use]
    pub fn without(self, cut: Self) -> (Option<Self>, Option<Self>) {
        let before_end = cut.first.clamp(self.first, self.end());
        let after_start = cut.end().clamp(self.first, self.end());
        (
            Self::new(self.first, before_end - self.first),
            Self::new(after_start, self.end() - after_start),
        )
    }
}

impl fmt::Debug for PfnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{}", self.first, self.nr_pages)
    }
}

impl fmt::Display for PfnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.first, self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_off_the_pfn_space_is_no_run() {
        assert!(PfnRange::new((1 << PFN_BITS) - 1, 1).is_some());
        assert!(PfnRange::new((1 << PFN_BITS) - 1, 2).is_none());
        assert!(PfnRange::new(u64::MAX, 1).is_none());
        assert!(PfnRange::new(0, 0).is_none());
        assert!(PfnRange::new(0, MAX_RUN_PAGES + 1).is_none());
    }

    #[test]
    fn without_leaves_what_lies_outside_the_cut() {
        let run = PfnRange::new(10, 10).unwrap();
        let cut = |first, nr| run.without(PfnRange::new(first, nr).unwrap());
        assert_eq!(cut(0, 5), (None, Some(run)));
        assert_eq!(cut(12, 3), (PfnRange::new(10, 2), PfnRange::new(15, 5)));
        assert_eq!(cut(10, 10), (None, None));
        assert_eq!(cut(25, 5), (Some(run), None));
    }
}
