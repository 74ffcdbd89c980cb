//! What `get_user_pages` gives back: runs of frames, held.

use super::PAGE_MASK;
use crate::error::PinError;
use crate::ledger::Agent;
use crate::level::{Level, PAGE_BYTES};
use crate::longterm::LongtermPin;
use crate::mm::Mm;
use crate::pfn::{Pfn, PfnRange};
use crate::pin::{ClientSide, Pin};

/// What keeps a segment's frames from being reused.
#[derive(Debug)]
#[non_exhaustive]
pub enum SegmentHold<'a, S: ClientSide> {
    /// A slot in this thread's lane.
    Short(Pin<'a, S>),
    /// A long-term slot of the lane, else a count per folio.
    Long(LongtermPin<'a, S>),
}

/// Where a segment starts, and the size of the leaf there, in one word. Fields with padding between
/// them are copied in pieces that overlap, and reading such a copy back at once stalls the
/// processor for as long as the whole pin takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Start(u64);

impl Start {
    #[inline(always)]
    pub(super) const fn new(address: u64, level: Level) -> Self {
        Self(address & PAGE_MASK | level.number() as u64)
    }

    #[inline]
    const fn address(self) -> u64 {
        self.0 & PAGE_MASK
    }

    #[inline]
    const fn level(self) -> Level {
        match self.0 & !PAGE_MASK {
            0 => Level::Pte,
            1 => Level::Pmd,
            _ => Level::Pud,
        }
    }
}

impl core::fmt::Debug for Start {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x} in a leaf of {}", self.address(), self.level())
    }
}

/// Addresses that are backed by consecutive frames, held for a short time. Unlike a [`PinnedRange`]
/// it does not say at its end that pages were written: whoever writes marks them in
/// [`Mm::dirty`](crate::mm::Mm::dirty) before it goes.
#[derive(Debug)]
#[must_use = "dropping a segment releases the frames"]
pub struct ShortSegment<'a, S: ClientSide> {
    pub(super) start: Start,
    pub(crate) pin: Pin<'a, S>,
}

impl<'a, S: ClientSide> ShortSegment<'a, S> {
    /// First address, a multiple of the page size.
    #[inline]
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.start.address()
    }

    /// The size of the leaf that maps the first page.
    #[inline]
    #[must_use]
    pub const fn level(&self) -> Level {
        self.start.level()
    }

    /// The frames.
    #[inline]
    #[must_use]
    pub const fn run(&self) -> PfnRange {
        self.pin.run()
    }

    /// The hold.
    #[inline]
    pub const fn pin(&self) -> &Pin<'a, S> {
        &self.pin
    }
}

/// Addresses that are backed by consecutive frames, held long-term. As with a [`ShortSegment`],
/// whoever writes marks what was written.
#[derive(Debug)]
#[must_use = "dropping a segment releases the frames"]
pub struct LongSegment<'a, S: ClientSide> {
    pub(super) start: Start,
    pub(crate) pin: LongtermPin<'a, S>,
}

impl<'a, S: ClientSide> LongSegment<'a, S> {
    /// First address, a multiple of the page size.
    #[inline]
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.start.address()
    }

    /// The size of the leaf that maps the first page.
    #[inline]
    #[must_use]
    pub const fn level(&self) -> Level {
        self.start.level()
    }

    /// The frames.
    #[inline]
    #[must_use]
    pub const fn run(&self) -> PfnRange {
        self.pin.run()
    }

    /// The hold.
    #[inline]
    pub const fn pin(&self) -> &LongtermPin<'a, S> {
        &self.pin
    }
}

impl<'a, S: ClientSide> From<ShortSegment<'a, S>> for PinnedSegment<'a, S> {
    #[inline]
    fn from(segment: ShortSegment<'a, S>) -> Self {
        let ShortSegment { start, pin } = segment;
        Self { start, hold: SegmentHold::Short(pin) }
    }
}

impl<'a, S: ClientSide> From<LongSegment<'a, S>> for PinnedSegment<'a, S> {
    #[inline]
    fn from(segment: LongSegment<'a, S>) -> Self {
        let LongSegment { start, pin } = segment;
        Self { start, hold: SegmentHold::Long(pin) }
    }
}

/// Addresses that are backed by consecutive frames, which are held.
#[derive(Debug)]
#[must_use = "dropping a segment releases the frames"]
pub struct PinnedSegment<'a, S: ClientSide> {
    pub(super) start: Start,
    pub(crate) hold: SegmentHold<'a, S>,
}

impl<'a, S: ClientSide> PinnedSegment<'a, S> {
    /// First address, a multiple of the page size.
    #[inline]
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.start.address()
    }

    /// The frames.
    #[inline]
    #[must_use]
    pub const fn run(&self) -> PfnRange {
        match &self.hold {
            SegmentHold::Short(pin) => pin.run(),
            SegmentHold::Long(pin) => pin.run(),
        }
    }

    /// Length in bytes.
    #[inline]
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.run().len_bytes()
    }

    /// The size of the leaf that maps the first page.
    #[inline]
    #[must_use]
    pub const fn level(&self) -> Level {
        self.start.level()
    }

    /// What holds the frames.
    #[must_use]
    pub const fn hold(&self) -> &SegmentHold<'a, S> {
        &self.hold
    }

    /// Whether reclaim was requested.
    #[must_use]
    pub fn is_reclaim_requested(&self) -> bool {
        match &self.hold {
            SegmentHold::Short(pin) => pin.is_reclaim_requested(),
            SegmentHold::Long(pin) => pin.is_reclaim_requested(),
        }
    }

    /// Writes down what the pin is for, for whoever asks who holds the frames.
    pub fn set_tag(&self, tag: u64) {
        if let SegmentHold::Short(pin) = &self.hold {
            pin.set_tag(tag);
        }
    }

    /// Says from now on that a device (or no device any more) may write to the frames. Only a
    /// short-term hold can change; the return value tells whether it did.
    pub fn set_agent(&self, agent: Agent) -> bool {
        match &self.hold {
            SegmentHold::Short(pin) => {
                pin.set_agent(agent);
                true
            }
            SegmentHold::Long(_) => false,
        }
    }
}

/// Whether the holder wrote to the pages. As wide as a word, for the reason that `Start` is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Dirty {
    /// It did not.
    No = 0,
    /// It did, or may have.
    Yes = 1,
}

impl Dirty {
    /// What pages that were pinned for writing are taken for.
    #[inline(always)]
    pub(crate) const fn if_for_writing(is_for_writing: bool) -> Self {
        if is_for_writing { Self::Yes } else { Self::No }
    }
}

/// Pages that were asked for by address, from the first one on, as far as they could be had.
///
/// Dropping it unpins. Where the pin was for writing and nobody said otherwise with
/// [`unpin`](Self::unpin), the pages then count as written.
#[derive(Debug)]
#[must_use = "dropping a pinned range releases the frames"]
pub struct PinnedRange<'a, S: ClientSide> {
    mm: &'a Mm,
    /// The usual range is one segment, which needs no allocation.
    first: Option<PinnedSegment<'a, S>>,
    rest: Option<Box<Further<'a, S>>>,
    dirty: Dirty,
}

/// Boxed, because a range is moved about more often than it has more than one segment.
#[derive(Debug)]
struct Further<'a, S: ClientSide> {
    segments: Vec<PinnedSegment<'a, S>>,
}

impl<'a, S: ClientSide> PinnedRange<'a, S> {
    #[inline]
    pub(crate) const fn empty(mm: &'a Mm, is_for_writing: bool) -> Self {
        Self { mm, first: None, rest: None, dirty: Dirty::if_for_writing(is_for_writing) }
    }

    #[inline(always)]
    pub(crate) const fn one(
        mm: &'a Mm,
        segment: PinnedSegment<'a, S>,
        is_for_writing: bool,
    ) -> Self {
        Self { mm, first: Some(segment), rest: None, dirty: Dirty::if_for_writing(is_for_writing) }
    }

    pub(crate) fn push(&mut self, segment: PinnedSegment<'a, S>) {
        if self.first.is_none() {
            self.first = Some(segment);
            return;
        }
        let rest = self.rest.get_or_insert_with(|| Box::new(Further { segments: Vec::new() }));
        rest.segments.push(segment);
    }

    /// Pages held, which may be fewer than were asked for.
    #[inline]
    #[must_use]
    pub fn nr_pages(&self) -> u64 {
        let first = self.first.as_ref().map_or(0, |segment| segment.run().nr_pages());
        first + self.further().iter().map(|segment| segment.run().nr_pages()).sum::<u64>()
    }

    #[inline]
    fn further(&self) -> &[PinnedSegment<'a, S>] {
        self.rest.as_ref().map_or(&[], |rest| &rest.segments)
    }

    /// Whether no page is held.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Bytes held.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.nr_pages() * PAGE_BYTES
    }

    /// Contiguous ranges in order of address, each with its own hold.
    pub fn segments(&self) -> impl Iterator<Item = &PinnedSegment<'a, S>> {
        self.first.iter().chain(self.further())
    }

    /// Every page: address and frame.
    pub fn pages(&self) -> impl Iterator<Item = (u64, Pfn)> {
        self.segments().flat_map(|segment| {
            let (address, first) = (segment.address(), segment.run().start());
            (0..segment.run().nr_pages())
                .filter_map(move |at| Some((address + at * PAGE_BYTES, Pfn::new(first + at)?)))
        })
    }

    /// Gives the pages up and says whether they were written.
    pub fn unpin(mut self, dirty: Dirty) {
        self.dirty = dirty;
    }

    fn mark(&self) {
        if self.dirty == Dirty::Yes && self.mm.dirty().is_on() {
            for segment in self.segments() {
                self.mm.dirty().mark(segment.address() / PAGE_BYTES, segment.run().nr_pages());
            }
        }
    }
}

impl<S: ClientSide> Drop for PinnedRange<'_, S> {
    #[inline]
    fn drop(&mut self) {
        // Before the holds go: whoever takes the bits after a drain finds them set.
        if self.dirty == Dirty::Yes {
            self.mark();
        }
    }
}

/// What may go wrong with a hold that is no fault of the address.
pub(crate) const fn is_for_the_caller(error: &PinError) -> bool {
    matches!(
        error,
        PinError::LaneFull { .. }
            | PinError::NoLane { .. }
            | PinError::NoRoom
            | PinError::CountFull { .. }
            | PinError::Forked
    )
}
