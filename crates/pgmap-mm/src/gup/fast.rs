//! Holding all pages of a call on the fast path: in one leaf, or in leaves of one span. Most calls
//! come to that.
//!
//! What is held is handed on as plain values and made a value with a destructor last. A hold that
//! went through memory on its way would cost twice as much: it is written word by word and read in
//! larger pieces at once, for which the processor waits.

use super::pinned::Start;
use super::term::{Long, Short};
use super::{Gup, GupFlags, LongSegment, PinnedRange, ShortSegment};
use crate::level::Level;
use crate::longterm::{LongtermPin, RawLongterm};
use crate::mm::Mm;
use crate::pin::{ClientSide, Lane, LaneParts, Pin, RawPin};

/// What to hold.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// From which address on.
    pub address: u64,
    /// How many pages.
    pub nr_pages: u64,
    /// How.
    pub flags: GupFlags,
}

/// Held pages of one segment, not yet a range. The frames stay held; the parts must become a range,
/// or they are held until the client ends.
#[derive(Debug)]
#[must_use = "parts that become no range hold the frames until the client ends"]
pub struct SegmentParts<'a, S: ClientSide> {
    start: Start,
    hold: RawHold<'a, S>,
}

#[derive(Debug)]
enum RawHold<'a, S: ClientSide> {
    Short(RawPin<'a, S>),
    Long(RawLongterm<'a, S>),
}

impl<'a, S: ClientSide> SegmentParts<'a, S> {
    /// The range of `mm`, in which the pages were held.
    #[inline(always)]
    pub fn into_range(self, mm: &'a Mm, is_for_writing: bool) -> PinnedRange<'a, S> {
        let start = self.start;
        let segment = match self.hold {
            RawHold::Short(raw) => ShortSegment { start, pin: Pin::of(raw) }.into(),
            RawHold::Long(raw) => LongSegment { start, pin: LongtermPin::of(raw) }.into(),
        };
        PinnedRange::one(mm, segment, is_for_writing)
    }
}

impl<'a, S: ClientSide> Gup<'_, 'a, S> {
    /// All of the pages; `None` if the slow path is needed.
    #[inline(always)]
    pub(super) fn pin_fast(&self, ask: Ask) -> Option<PinnedRange<'a, S>> {
        let is_for_writing = ask.flags.contains(GupFlags::WRITE);
        Some(self.parts(ask)?.into_range(self.mm, is_for_writing))
    }

    /// Both terms are written out: one `Option` that holds what either way gave would go through
    /// memory, and cost 8 ns of 18.
    #[inline(always)]
    fn parts(&self, ask: Ask) -> Option<SegmentParts<'a, S>> {
        let Ask { address, nr_pages, flags } = ask;
        let (level, hold) = if flags.contains(GupFlags::LONGTERM) {
            if !flags.is_valid() {
                return None;
            }
            let (level, raw) = match self.hold_in_one_leaf::<Long>(ask) {
                Some(held) => held,
                None => self.hold_range::<Long>(address, nr_pages, flags)?,
            };
            (level, RawHold::Long(raw))
        } else {
            let (level, raw) = match self.hold_in_one_leaf::<Short>(ask) {
                Some(held) => held,
                None => self.hold_range::<Short>(address, nr_pages, flags)?,
            };
            (level, RawHold::Short(raw))
        };
        Some(SegmentParts { start: Start::new(address, level), hold })
    }

    /// [`pin`](Self::pin) on the fast path, in a lane that is taken for it and given to `put_back`
    /// as soon as it was used. `None` if that is not enough.
    #[inline(always)]
    pub fn pin_fast_in(
        mm: &'a Mm,
        lane: Lane<'a, S>,
        ask: Ask,
        put_back: impl FnOnce(LaneParts),
    ) -> Option<SegmentParts<'a, S>> {
        let parts = Gup::new(mm, &lane).and_then(|gup| gup.parts(ask));
        put_back(lane.into_parts());
        parts
    }

    /// As [`pin_fast_in`](Self::pin_fast_in) for pages of one leaf of 2 MiB for a short time and no
    /// more than that: little enough to be in line wherever a program pins.
    #[inline(always)]
    pub fn pin_fast_leaf_in(
        mm: &'a Mm,
        lane: Lane<'a, S>,
        ask: Ask,
        put_back: impl FnOnce(LaneParts),
    ) -> Option<SegmentParts<'a, S>> {
        let held = match Gup::new(mm, &lane) {
            Some(gup) if !ask.flags.contains(GupFlags::LONGTERM) => gup.hold_huge::<Short>(ask),
            _ => None,
        };
        put_back(lane.into_parts());
        let start = Start::new(ask.address, Level::Pmd);
        Some(SegmentParts { start, hold: RawHold::Short(held?) })
    }
}
