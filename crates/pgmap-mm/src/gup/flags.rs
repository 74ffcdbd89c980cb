//! How `get_user_pages` is asked to hold pages.

use core::fmt;

use crate::flags::flag_set;
use crate::ledger::Agent;
use crate::page_table::entry::LeafFlags;
use crate::prot::Access;

/// How pages are to be held.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct GupFlags(u16);

flag_set!(GupFlags);

impl GupFlags {
    /// For reading, for a short time, by the processor.
    pub const NONE: Self = Self(0);
    /// The pages will be written.
    pub const WRITE: Self = Self(1);
    /// The hold may last.
    pub const LONGTERM: Self = Self(1 << 1);
    /// A borrow for this moment, not a pin: cannot be LONGTERM.
    pub const GET: Self = Self(1 << 2);
    /// No lock, whatever happens.
    pub const FAST_ONLY: Self = Self(1 << 3);
    /// Only pages that have a leaf.
    pub const NOFAULT: Self = Self(1 << 4);
    /// A device may use the pages after this process died.
    pub const DEVICE: Self = Self(1 << 5);
    /// Another device's memory will do. Cannot be LONGTERM, so that the device can be taken away.
    pub const P2PDMA: Self = Self(1 << 6);
    /// Tell failed memory from a bad address.
    pub const HWPOISON: Self = Self(1 << 7);

    const MASK: u16 = 0xff;

    /// The flags in these bits; `None` if one is unknown.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Option<Self> {
        if bits & !Self::MASK == 0 { Some(Self(bits)) } else { None }
    }

    /// Whether no two flags exclude each other (Linux 7.1: mm/gup.c, is_valid_gup_args).
    #[inline]
    #[must_use]
    pub const fn is_valid(self) -> bool {
        // All pairs hold LONGTERM, which is rare.
        !self.contains(Self::LONGTERM) || (self.0 & (Self::GET.0 | Self::P2PDMA.0)) == 0
    }

    /// What the leaf must allow.
    #[inline]
    #[must_use]
    pub const fn access(self) -> Access {
        if self.contains(Self::WRITE) { Access::Write } else { Access::Read }
    }

    #[inline]
    pub(super) const fn agent(self) -> Agent {
        if self.contains(Self::DEVICE) { Agent::Device } else { Agent::Cpu }
    }

    /// Whether the fast path may hold what such a leaf maps.
    #[inline]
    pub(super) const fn allow(self, leaf: LeafFlags) -> bool {
        (!self.contains(Self::WRITE) || leaf.contains(LeafFlags::WRITE))
            && !leaf.contains(LeafFlags::RAW)
            && (!leaf.contains(LeafFlags::PEER) || self.contains(Self::P2PDMA))
    }
}

impl fmt::Debug for GupFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names =
            ["WRITE", "LONGTERM", "GET", "FAST_ONLY", "NOFAULT", "DEVICE", "P2PDMA", "HWPOISON"];
        let set = names.iter().enumerate().filter(|(bit, _)| self.0 & 1 << bit != 0);
        let names: Vec<&str> = set.map(|(_, name)| *name).collect();
        f.write_str(if names.is_empty() { "NONE" } else { "" })?;
        f.write_str(&names.join("|"))
    }
}
