//! Holding pages of one leaf: the least work that pins anything by address.
//!
//! Most pins are in an extent that the thread pinned in before. For those everything is inlined, 2
//! MiB leaves first, and nothing but the entries, the slot and the life word is touched; all else
//! goes through a call.

use super::fast::Ask;
use super::pinned::Start;
use super::term::{Long, PinTerm, Short};
use super::{Gup, GupFlags, LongSegment, Look, ShortSegment};
use crate::level::{Level, PAGE_BYTES};
use crate::longterm::LongtermPin;
use crate::page_table::walk::Found;
use crate::pfn::PfnRange;
use crate::pin::{ClientSide, Pin};

impl<'a, S: ClientSide> Gup<'_, 'a, S> {
    /// Holds `nr_pages` pages from `address` on that lie in one leaf, for a short time, without
    /// taking a lock: the least work that pins anything. `None` if that cannot be done at once, or
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
        let (level, raw) = self.hold_leaf::<Short>(Ask { address, nr_pages, flags })?;
        Some(ShortSegment { start: Start::new(address, level), pin: Pin::of(raw) })
    }

    /// As [`fast_leaf`](Self::fast_leaf), long-term: `None` if the life word does not allow it
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
        let (level, raw) = self.hold_leaf::<Long>(Ask { address, nr_pages, flags })?;
        Some(LongSegment { start: Start::new(address, level), pin: LongtermPin::of(raw) })
    }

    #[inline(always)]
    fn hold_leaf<T: PinTerm>(&self, ask: Ask) -> Option<(Level, T::Raw<'a, S>)> {
        match self.hold_in_one_leaf::<T>(ask) {
            Some(held) => Some(held),
            None => self.hold_by_full_walk::<T>(ask.address, ask.nr_pages, ask.flags),
        }
    }

    /// Holds pages of one leaf, in line, whatever its size.
    #[inline(always)]
    pub(super) fn hold_in_one_leaf<T: PinTerm>(&self, ask: Ask) -> Option<(Level, T::Raw<'a, S>)> {
        if let Some(raw) = self.hold_huge::<T>(ask) {
            return Some((Level::Pmd, raw));
        }
        if let Some(raw) = self.hold_gigantic::<T>(ask) {
            return Some((Level::Pud, raw));
        }
        Some((Level::Pte, self.hold_small::<T>(ask)?))
    }

    /// Holds pages of one leaf of 2 MiB.
    #[inline(always)]
    pub(super) fn hold_huge<T: PinTerm>(&self, ask: Ask) -> Option<T::Raw<'a, S>> {
        let found = self.mm.table.walk_huge(ask.page())?;
        self.hold_found::<T>(&found, ask)
    }

    /// Holds pages of one leaf of 1 GiB.
    #[inline(always)]
    fn hold_gigantic<T: PinTerm>(&self, ask: Ask) -> Option<T::Raw<'a, S>> {
        let found = self.mm.table.walk_gigantic(ask.page())?;
        self.hold_found::<T>(&found, ask)
    }

    /// Holds pages of a leaf whose entry is only ever used for this address: one of 2 MiB or
    /// 1 GiB.
    #[inline(always)]
    fn hold_found<T: PinTerm>(&self, found: &Found<'a>, ask: Ask) -> Option<T::Raw<'a, S>> {
        let run = ask.run_in(found)?;
        let life = self.lane.known_span().life_of(&self.mm.table, found)?;
        T::pin_if(self.lane, life, run, ask.flags.agent(), || found.is_unchanged())
    }

    /// Holds one page of a leaf of 4 KiB. Its table may be in another life, which the epoch tells.
    #[inline(always)]
    fn hold_small<T: PinTerm>(&self, ask: Ask) -> Option<T::Raw<'a, S>> {
        let table = &self.mm.table;
        let epoch = table.epoch();
        let found = table.walk_small(ask.page())?;
        let run = ask.run_in(&found)?;
        let life = self.lane.known_span().life_of(table, &found)?;
        let is_as_seen = || found.is_unchanged() && table.epoch() == epoch;
        T::pin_if(self.lane, life, run, ask.flags.agent(), is_as_seen)
    }

    /// Holds pages of any leaf. Here and wherever a call is not in line, what is asked goes apart:
    /// three values go in registers, and one of their size through memory.
    #[inline(never)]
    fn hold_by_full_walk<T: PinTerm>(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<(Level, T::Raw<'a, S>)> {
        let ask = Ask { address, nr_pages, flags };
        let look: Look<'a> = self.look(ask.page(), ask.flags)?;
        let run = ask.run_in(&look.found)?;
        let (life, level) = (self.lane.find_life(look.life), look.found.level);
        let is_as_seen = || self.is_as_seen(&look);
        let raw = T::pin_far_if(self.lane, life, run, level, ask.flags.agent(), is_as_seen)?;
        Some((level, raw))
    }
}

impl Ask {
    /// The first page.
    #[inline(always)]
    pub(super) const fn page(self) -> u64 {
        self.address / PAGE_BYTES
    }

    /// The frames that are asked for, if the leaf maps them all and allows it.
    #[inline(always)]
    fn run_in(self, found: &Found<'_>) -> Option<PfnRange> {
        let is_held = self.nr_pages != 0 && self.nr_pages <= found.pages_from(self.page());
        (is_held && self.flags.allow(found.leaf.flags()))
            .then(|| PfnRange::inside(found.frame_of(self.page()), self.nr_pages))
    }
}
