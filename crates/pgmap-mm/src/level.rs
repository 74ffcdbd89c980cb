//! The three folio sizes.

use core::fmt;

/// Bytes in one page frame.
pub const PAGE_BYTES: u64 = 4096;
/// Entries of one table, and folios of one level in a folio of the next.
pub const FANOUT: u64 = 512;

/// The size of a folio. The kernel calls these orders 0, 9 and 18.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u64)]
pub enum Level {
    /// 4 KiB, what a last-level table entry maps.
    Pte = 0,
    /// 2 MiB.
    Pmd = 1,
    /// 1 GiB.
    Pud = 2,
}

impl Level {
    /// Every level, smallest first.
    pub const ALL: [Self; 3] = [Self::Pte, Self::Pmd, Self::Pud];

    /// The level with this number, if there is one.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Pte),
            1 => Some(Self::Pmd),
            2 => Some(Self::Pud),
            _ => None,
        }
    }

    /// 0, 1 or 2.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// How far a page frame number is shifted right to give a folio number of this level.
    #[must_use]
    pub const fn shift(self) -> u32 {
        9 * self as u32
    }

    /// Page frames in one folio: 1, 512 or 262,144.
    #[must_use]
    pub const fn nr_pages(self) -> u64 {
        1 << self.shift()
    }

    /// Bytes in one folio.
    #[must_use]
    pub const fn size_bytes(self) -> u64 {
        PAGE_BYTES << self.shift()
    }

    /// The next smaller level.
    #[must_use]
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::Pte => None,
            Self::Pmd => Some(Self::Pte),
            Self::Pud => Some(Self::Pmd),
        }
    }

    /// The next larger level.
    #[must_use]
    pub const fn above(self) -> Option<Self> {
        match self {
            Self::Pte => Some(Self::Pmd),
            Self::Pmd => Some(Self::Pud),
            Self::Pud => None,
        }
    }

    /// The largest level whose folio can start at `first` and fits into `nr_pages`.
    #[must_use]
    pub const fn largest_fitting(first: u64, nr_pages: u64) -> Option<Self> {
        if nr_pages == 0 {
            None
        } else if nr_pages >= Self::Pud.nr_pages() && first.is_multiple_of(Self::Pud.nr_pages()) {
            Some(Self::Pud)
        } else if nr_pages >= Self::Pmd.nr_pages() && first.is_multiple_of(Self::Pmd.nr_pages()) {
            Some(Self::Pmd)
        } else {
            Some(Self::Pte)
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pte => "4K",
            Self::Pmd => "2M",
            Self::Pud => "1G",
        })
    }
}
