//! The drains that have not ended: those whose scan goes on, and those that wait for holders.
//!
//! # Invariants
//!
//! - A drain is in one list only: it has a scan until its holders are known, and waits from then on
//!   while there are any.
//! - The steps look at drains from the front on, `nr_to_look_at` times. One that has been looked at
//!   and still waits goes to the end, so each is looked at once before any is again.
//! - A drain that is put at the front is counted, one that is put at the end is not. One that is
//!   taken out from among those to be looked at is no longer counted.

use std::collections::VecDeque;

use pgmap_mm::pfn::PfnRange;

use crate::owner::drains::PendingDrain;
use crate::owner::scans::PendingScan;

/// Drains that have not ended.
#[derive(Debug, Default)]
pub(crate) struct DrainQueue {
    scans: VecDeque<PendingScan>,
    waiting: VecDeque<PendingDrain>,
    /// How many of the waiting drains are left to look at, from the first on.
    nr_to_look_at: usize,
}

impl DrainQueue {
    /// The drains that wait for holders.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &PendingDrain> {
        self.waiting.iter()
    }

    /// Whether no drain waits, and no scan goes on.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.scans.is_empty()
    }

    /// Whether scans go on, or drains are left to look at.
    pub(crate) fn has_steps(&self) -> bool {
        self.nr_to_look_at > 0 || !self.scans.is_empty()
    }

    /// The frames that are on their way somewhere.
    pub(crate) fn going(&self) -> impl Iterator<Item = PfnRange> {
        let scanned = self.scans.iter().filter(|scan| !scan.is_of_all());
        let scanned = scanned.flat_map(|scan| scan.runs().iter());
        self.waiting.iter().flat_map(PendingDrain::going).chain(scanned)
    }

    /// Adds a drain that the next step looks at.
    pub(crate) fn add_first(&mut self, pending: PendingDrain) {
        self.waiting.push_front(pending);
        self.nr_to_look_at += 1;
    }

    /// Adds a drain that was looked at just now.
    pub(crate) fn add_last(&mut self, pending: PendingDrain) {
        self.waiting.push_back(pending);
    }

    /// Adds drains, and has the next steps look at all there are.
    pub(crate) fn add_unseen(&mut self, pending: impl Iterator<Item = PendingDrain>) {
        self.waiting.extend(pending);
        self.nr_to_look_at = self.waiting.len();
    }

    /// Has the next steps look at all drains.
    pub(crate) fn look_at_all(&mut self) {
        // What the step under way has seen of the first one is seen again.
        let in_round = self.waiting.front().is_some_and(|first| first.drain.is_in_round());
        self.nr_to_look_at = self.waiting.len() + usize::from(in_round);
    }

    /// Takes out the next drain to look at. It is either [put back](Self::put_back) or
    /// [done with](Self::looked_at_one).
    pub(crate) fn take_next(&mut self) -> Option<PendingDrain> {
        if self.nr_to_look_at == 0 { None } else { self.waiting.pop_front() }
    }

    /// Puts a drain back of which only some was looked at.
    pub(crate) fn put_back(&mut self, pending: PendingDrain) {
        self.waiting.push_front(pending);
    }

    /// All holds of the drain that was taken out were looked at.
    pub(crate) const fn looked_at_one(&mut self) {
        self.nr_to_look_at -= 1;
    }

    /// Ends a step: where no drain waits, none is left to look at.
    pub(crate) fn end_step(&mut self) {
        if self.waiting.is_empty() {
            self.nr_to_look_at = 0;
        }
    }

    /// Takes the first drain out that `is_its`.
    pub(crate) fn take(&mut self, is_its: impl Fn(&PendingDrain) -> bool) -> Option<PendingDrain> {
        let place = self.waiting.iter().position(is_its)?;
        self.nr_to_look_at -= usize::from(place < self.nr_to_look_at);
        self.waiting.remove(place)
    }

    /// The scans that go on.
    pub(crate) fn scans(&self) -> impl Iterator<Item = &PendingScan> {
        self.scans.iter()
    }

    pub(crate) fn add_scan(&mut self, pending: PendingScan) {
        self.scans.push_back(pending);
    }

    /// Takes out the scan whose turn it is.
    pub(crate) fn next_scan(&mut self) -> Option<PendingScan> {
        self.scans.pop_front()
    }

    /// Takes the first scan out that `is_its`.
    pub(crate) fn take_scan(
        &mut self,
        is_its: impl Fn(&PendingScan) -> bool,
    ) -> Option<PendingScan> {
        let place = self.scans.iter().position(is_its)?;
        self.scans.remove(place)
    }
}
