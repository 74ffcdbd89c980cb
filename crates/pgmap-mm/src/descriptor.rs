//! The descriptor: the 8-byte word that says what a folio is now.
//!
//! # States
//!
//! ```text
//!            reserve               publish              retire
//!   Free ──────────────▶ Reserved ─────────▶ Live ────────────────▶ Dying
//!    ▲                      │                 │ ▲  life word changes  │
//!    │        abort         ▼                 ▼ └───── restore ───────┤
//!    ├──────────────────  Dying            Poisoned                   │
//!    │                                        │ clear                 │
//!    └────────────────────────────────────────┴───── last hold gone ──┤
//!                                                     Quarantined ◀───┘
//! ```
//!
//! `Split` says "look one level down", `Tail` "look one level up", `Offline` that no memory backs
//! these frames. All-zero is `Free`, so memory that nobody ever described needs no descriptor page.
//! The owner's frames (`owner/frames` of pgmap) make these moves.
//!
//! Only the word of an extent's *first* folio, its life word, decides whether the extent may be
//! pinned. `Live` or `Reserved` inside an extent means "somebody's" and no more: see
//! [`LifeWord`](crate::vmemmap::LifeWord).
//!
//! # Who may touch what
//!
//! The owner alone writes descriptors (I2). A client loads them to check a pin.
//!
//! # Layout
//!
//! `state:4 | flags:12 | stamp:48`, most significant first. One equality test on the whole word
//! tells a pinner that the extent is still in the same life, the same state and under the same
//! policy as when it was given out.

use core::fmt;

use crate::flags::flag_set;
use crate::stamp::{STAMP_BITS, Stamp};

/// What a folio is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FolioState {
    /// Nobody's. The all-zero word.
    Free = 0,
    /// Described one level down.
    Split = 1,
    /// Described one level up.
    Tail = 2,
    /// Handed to a writer, not published yet.
    Reserved = 3,
    /// Published: may be pinned.
    Live = 4,
    /// Being taken out of use: no new pins, waits for the last hold.
    Dying = 5,
    /// A deadline passed while somebody held it, or a dead client's device may still write to it.
    Quarantined = 6,
    /// Its memory failed.
    Poisoned = 7,
    /// Not backed by memory.
    Offline = 8,
}

impl FolioState {
    /// Every state, in numeric order.
    pub const ALL: [Self; 9] = [
        Self::Free,
        Self::Split,
        Self::Tail,
        Self::Reserved,
        Self::Live,
        Self::Dying,
        Self::Quarantined,
        Self::Poisoned,
        Self::Offline,
    ];

    /// The state's name in lower case, as tools print it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Split => "split",
            Self::Tail => "tail",
            Self::Reserved => "reserved",
            Self::Live => "live",
            Self::Dying => "dying",
            Self::Quarantined => "quarantined",
            Self::Poisoned => "poisoned",
            Self::Offline => "offline",
        }
    }
}

/// Policy decided when a folio is published, so that the fast path needs no other look-up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FolioFlags(u16);

flag_set!(FolioFlags);

impl FolioFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Long-term pins need no slow path.
    pub const LONGTERM_OK: Self = Self(1);
    /// May be pinned for writing.
    pub const WRITABLE: Self = Self(1 << 1);
    /// Mappable, never pinnable (`VM_PFNMAP`).
    pub const RAW: Self = Self(1 << 2);
    /// Part of the extent that starts here has been taken out of use since it was handed out.
    pub const PARTIAL: Self = Self(1 << 3);
    /// Another device's memory: pinned by address only by who says that it can reach it (`P2PDMA`).
    pub const PEER: Self = Self(1 << 4);

    const MASK: u16 = 0xfff;
}

impl fmt::Debug for FolioFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (flag, name) in [
            (Self::LONGTERM_OK, "LONGTERM_OK"),
            (Self::WRITABLE, "WRITABLE"),
            (Self::RAW, "RAW"),
            (Self::PARTIAL, "PARTIAL"),
            (Self::PEER, "PEER"),
        ] {
            if self.contains(flag) {
                write!(f, "{separator}{name}")?;
                separator = "|";
            }
        }
        if separator.is_empty() { f.write_str("-") } else { Ok(()) }
    }
}

const STATE_SHIFT: u32 = 60;
const FLAGS_SHIFT: u32 = STAMP_BITS;
const STAMP_MASK: u64 = (1 << STAMP_BITS) - 1;

/// One descriptor word. Comparing two compares state, flags and stamp at once.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Descriptor(u64);

impl Descriptor {
    /// The all-zero word.
    pub const FREE: Self = Self(0);
    /// "Look one level down."
    pub const SPLIT: Self = Self((FolioState::Split as u64) << STATE_SHIFT);
    /// "Look one level up."
    pub const TAIL: Self = Self((FolioState::Tail as u64) << STATE_SHIFT);
    /// "No memory here."
    pub const OFFLINE: Self = Self((FolioState::Offline as u64) << STATE_SHIFT);

    /// A word from its three parts.
    #[must_use]
    pub const fn new(state: FolioState, flags: FolioFlags, stamp: Stamp) -> Self {
        Self(((state as u64) << STATE_SHIFT) | ((flags.0 as u64) << FLAGS_SHIFT) | stamp.number())
    }

    /// The word as it lies in memory.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The word as it lies in memory.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The state; an unknown number reads as `Offline`, the state nobody may use.
    #[must_use]
    pub const fn state(self) -> FolioState {
        match self.0 >> STATE_SHIFT {
            0 => FolioState::Free,
            1 => FolioState::Split,
            2 => FolioState::Tail,
            3 => FolioState::Reserved,
            4 => FolioState::Live,
            5 => FolioState::Dying,
            6 => FolioState::Quarantined,
            7 => FolioState::Poisoned,
            _ => FolioState::Offline,
        }
    }

    /// The flags.
    #[must_use]
    pub const fn flags(self) -> FolioFlags {
        FolioFlags((self.0 >> FLAGS_SHIFT) as u16 & FolioFlags::MASK)
    }

    /// The stamp, if the folio has one.
    #[must_use]
    pub const fn stamp(self) -> Option<Stamp> {
        Stamp::new(self.0 & STAMP_MASK)
    }

    /// The same word in another state.
    #[must_use]
    pub const fn in_state(self, state: FolioState) -> Self {
        Self((self.0 & !(0xf << STATE_SHIFT)) | ((state as u64) << STATE_SHIFT))
    }

    /// The same word with other flags.
    #[must_use]
    pub const fn with_flags(self, flags: FolioFlags) -> Self {
        Self(
            (self.0 & !((FolioFlags::MASK as u64) << FLAGS_SHIFT))
                | ((flags.0 as u64) << FLAGS_SHIFT),
        )
    }

    /// Whether a pin may be taken under this word.
    #[must_use]
    pub const fn is_pinnable(self) -> bool {
        matches!(self.state(), FolioState::Live | FolioState::Reserved)
            && !self.flags().contains(FolioFlags::RAW)
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.state().name())?;
        if let Some(stamp) = self.stamp() {
            write!(f, " {:?} {stamp:?}", self.flags())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_all_zero_word_is_free() {
        assert_eq!(Descriptor::FREE.bits(), 0);
        assert_eq!(Descriptor::FREE.state(), FolioState::Free);
        assert_eq!(Descriptor::FREE.stamp(), None);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let stamp = Stamp::new((1 << STAMP_BITS) - 1).unwrap();
        let flags = FolioFlags(FolioFlags::MASK);
        for state in FolioState::ALL {
            let word = Descriptor::new(state, flags, stamp);
            assert_eq!((word.state(), word.flags(), word.stamp()), (state, flags, Some(stamp)));
            let other = word.in_state(FolioState::Dying).with_flags(FolioFlags::NONE);
            assert_eq!(other, Descriptor::new(FolioState::Dying, FolioFlags::NONE, stamp));
        }
    }
}
