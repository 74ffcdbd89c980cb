//! For how long pages are held: both ways to pin behind one face, so that each way to a hold is
//! written once.

use crate::ledger::Agent;
use crate::level::Level;
use crate::longterm::RawLongterm;
use crate::pfn::PfnRange;
use crate::pin::{ClientSide, Lane, Life, RawPin};

/// A kind of hold. Its values are plain until they are handed to the caller: see
/// [`fast`](super::fast).
pub(super) trait PinTerm {
    /// A hold that has no destructor yet.
    type Raw<'a, S: ClientSide + 'a>;

    /// Pins, if that takes a slot and no more. `is_still_so` is asked last.
    fn pin_if<'a, S: ClientSide>(
        lane: &Lane<'a, S>,
        life: Life<'a, S>,
        run: PfnRange,
        agent: Agent,
        is_still_so: impl FnOnce() -> bool,
    ) -> Option<Self::Raw<'a, S>>;

    /// Pins as far as that goes without a lock. `head_level` is the size of the first leaf.
    #[inline]
    fn pin_far_if<'a, S: ClientSide>(
        lane: &Lane<'a, S>,
        life: Life<'a, S>,
        run: PfnRange,
        _head_level: Level,
        agent: Agent,
        is_still_so: impl Fn() -> bool,
    ) -> Option<Self::Raw<'a, S>> {
        Self::pin_if(lane, life, run, agent, is_still_so)
    }
}

/// For a short time: a slot in the lane.
pub(super) enum Short {}

impl PinTerm for Short {
    type Raw<'a, S: ClientSide + 'a> = RawPin<'a, S>;

    #[inline(always)]
    fn pin_if<'a, S: ClientSide>(
        lane: &Lane<'a, S>,
        life: Life<'a, S>,
        run: PfnRange,
        agent: Agent,
        is_still_so: impl FnOnce() -> bool,
    ) -> Option<RawPin<'a, S>> {
        lane.pin_if(life, run, agent, is_still_so)
    }
}

/// Long-term: a slot where one is free, else a count per folio.
pub(super) enum Long {}

impl PinTerm for Long {
    type Raw<'a, S: ClientSide + 'a> = RawLongterm<'a, S>;

    #[inline(always)]
    fn pin_if<'a, S: ClientSide>(
        lane: &Lane<'a, S>,
        life: Life<'a, S>,
        run: PfnRange,
        agent: Agent,
        is_still_so: impl FnOnce() -> bool,
    ) -> Option<RawLongterm<'a, S>> {
        lane.pin_longterm_slot_if(life, run, agent, is_still_so)
    }

    #[inline]
    fn pin_far_if<'a, S: ClientSide>(
        lane: &Lane<'a, S>,
        life: Life<'a, S>,
        run: PfnRange,
        head_level: Level,
        agent: Agent,
        is_still_so: impl Fn() -> bool,
    ) -> Option<RawLongterm<'a, S>> {
        lane.pin_longterm_if(life, run, head_level, agent, is_still_so)
    }
}
