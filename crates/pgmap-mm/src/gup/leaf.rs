//! Holding pages of one leaf: the least work that pins anything by address.
//!
//! Most pins are in an extent that the thread pinned in before. For those everything is inlined, 2 MiB
//! leaves first, and nothing but the entries, the slot and the life word is touched; all else goes
//! through a call.

use super::pinned::Start;
use super::{Gup, GupFlags, LongSegment, Look, ShortSegment};
use crate::level::{Level, PAGE_BYTES};
use crate::longterm::{LongtermPin, RawLongterm};
use crate::page_table::walk::Found;
use crate::pfn::PfnRange;
use crate::pin::{ClientSide, Pin, RawPin};

impl<'a, S: ClientSide> Gup<'_, 'a, S> {
    /// Holds `nr_pages` pages from `address` on that lie in one leaf, for a short time, without
    /// taking a lock: the least work that pins anything. None where that cannot be done at once, or
    /// `flags` has LONGTERM; then call [`pin`](Self::pin).
    #[inline(always)]
    #[must_use]
    pub fn fast_leaf(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<ShortSegment<'a, S>> {
        if flags.contains(GupFlags::LONGTERM) {
            return None;
        }
        let (level, raw) = match self.hold_known(address, nr_pages, flags) {
            Some(held) => held,
            None => self.hold_elsewhere(address, nr_pages, flags)?,
        };
        Some(ShortSegment { start: Start::new(address, level), pin: Pin::of(raw) })
    }

    /// Holds pages of one leaf, in line, whatever its size.
    #[inline(always)]
    pub(super) fn hold_known(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<(Level, RawPin<'a, S>)> {
        if let Some(raw) = self.hold_huge(address, nr_pages, flags) {
            return Some((Level::Pmd, raw));
        }
        if let Some(raw) = self.hold_gigantic(address, nr_pages, flags) {
            return Some((Level::Pud, raw));
        }
        Some((Level::Pte, self.hold_small(address, nr_pages, flags)?))
    }

    /// Holds pages of one leaf of 2 MiB.
    #[inline(always)]
    pub(super) fn hold_huge(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<RawPin<'a, S>> {
        let found = self.mm.table.walk_huge(address / PAGE_BYTES)?;
        self.hold_found(&found, address, nr_pages, flags)
    }

    /// Holds one page of a leaf of 4 KiB.
    #[inline(always)]
    fn hold_small(&self, address: u64, nr_pages: u64, flags: GupFlags) -> Option<RawPin<'a, S>> {
        let table = &self.mm.table;
        let epoch = table.epoch();
        let found = table.walk_small(address / PAGE_BYTES)?;
        let run = run_in_leaf(&found, address, nr_pages, flags)?;
        let life = self.lane.known_span().life_of(table, &found)?;
        self.lane
            .pin_if(life, run, flags.agent(), || found.is_unchanged() && table.epoch() == epoch)
    }

    /// Holds pages of one leaf of 1 GiB.
    #[inline(always)]
    fn hold_gigantic(&self, address: u64, nr_pages: u64, flags: GupFlags) -> Option<RawPin<'a, S>> {
        let found = self.mm.table.walk_gigantic(address / PAGE_BYTES)?;
        self.hold_found(&found, address, nr_pages, flags)
    }

    /// Holds pages of a leaf that no other address can ever have at the same place: one of 2 MiB or
    /// 1 GiB.
    #[inline(always)]
    fn hold_found(
        &self,
        found: &Found<'a>,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<RawPin<'a, S>> {
        let run = run_in_leaf(found, address, nr_pages, flags)?;
        let life = self.lane.known_span().life_of(&self.mm.table, found)?;
        self.lane.pin_if(life, run, flags.agent(), || found.is_unchanged())
    }

    /// Holds pages of any leaf. The table of a 4 KiB leaf may be in another life, which the epoch tells.
    #[inline(never)]
    fn hold_elsewhere(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<(Level, RawPin<'a, S>)> {
        let (look, run) = self.look_in_leaf(address, nr_pages, flags)?;
        let life = self.lane.find_life(look.life);
        let raw = self.lane.pin_if(life, run, flags.agent(), || self.is_as_seen(&look))?;
        Some((look.found.level, raw))
    }

    /// As [`fast_leaf`](Self::fast_leaf), for long: none where the life word does not allow it
    /// without being asked, or `flags` has GET or P2PDMA.
    #[inline(always)]
    #[must_use]
    pub fn fast_leaf_long(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<LongSegment<'a, S>> {
        let flags = flags.with(GupFlags::LONGTERM);
        if !flags.is_valid() {
            return None;
        }
        let (level, raw) = match self.hold_known_long(address, nr_pages, flags) {
            Some(held) => held,
            None => self.hold_elsewhere_long(address, nr_pages, flags)?,
        };
        Some(LongSegment { start: Start::new(address, level), pin: LongtermPin::of(raw) })
    }

    /// As [`hold_known`](Self::hold_known), for long.
    #[inline(always)]
    pub(super) fn hold_known_long(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<(Level, RawLongterm<'a, S>)> {
        if let Some(raw) = self.hold_huge_long(address, nr_pages, flags) {
            return Some((Level::Pmd, raw));
        }
        if let Some(raw) = self.hold_gigantic_long(address, nr_pages, flags) {
            return Some((Level::Pud, raw));
        }
        Some((Level::Pte, self.hold_small_long(address, nr_pages, flags)?))
    }

    #[inline(always)]
    fn hold_huge_long(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<RawLongterm<'a, S>> {
        let found = self.mm.table.walk_huge(address / PAGE_BYTES)?;
        self.hold_found_long(&found, address, nr_pages, flags)
    }

    #[inline(always)]
    fn hold_small_long(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<RawLongterm<'a, S>> {
        let table = &self.mm.table;
        let epoch = table.epoch();
        let found = table.walk_small(address / PAGE_BYTES)?;
        let run = run_in_leaf(&found, address, nr_pages, flags)?;
        let life = self.lane.known_span().life_of(table, &found)?;
        self.lane.pin_longterm_slot_if(life, run, flags.agent(), || {
            found.is_unchanged() && table.epoch() == epoch
        })
    }

    #[inline(always)]
    fn hold_gigantic_long(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<RawLongterm<'a, S>> {
        let found = self.mm.table.walk_gigantic(address / PAGE_BYTES)?;
        self.hold_found_long(&found, address, nr_pages, flags)
    }

    #[inline(always)]
    fn hold_found_long(
        &self,
        found: &Found<'a>,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<RawLongterm<'a, S>> {
        let run = run_in_leaf(found, address, nr_pages, flags)?;
        let life = self.lane.known_span().life_of(&self.mm.table, found)?;
        self.lane.pin_longterm_slot_if(life, run, flags.agent(), || found.is_unchanged())
    }

    #[inline(never)]
    fn hold_elsewhere_long(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<(Level, RawLongterm<'a, S>)> {
        let (look, run) = self.look_in_leaf(address, nr_pages, flags)?;
        let (life, level, agent) =
            (self.lane.find_life(look.life), look.found.level, flags.agent());
        let raw = self.lane.pin_longterm_if(life, run, level, agent, || self.is_as_seen(&look))?;
        Some((level, raw))
    }

    /// What the page table says of `nr_pages` pages from `address` on, if one leaf maps them all and
    /// allows it.
    fn look_in_leaf(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<(Look<'a>, PfnRange)> {
        let look = self.look(address / PAGE_BYTES, flags)?;
        Some((look, run_in_leaf(&look.found, address, nr_pages, flags)?))
    }
}

/// The frames of `nr_pages` pages from `address` on, if the leaf maps them all and allows it.
#[inline(always)]
fn run_in_leaf(
    found: &Found<'_>,
    address: u64,
    nr_pages: u64,
    flags: GupFlags,
) -> Option<PfnRange> {
    let page = address / PAGE_BYTES;
    let is_held = nr_pages != 0 && nr_pages <= found.pages_from(page);
    (is_held && flags.allow(found.leaf.flags()))
        .then(|| PfnRange::inside(found.frame_of(page), nr_pages))
}
