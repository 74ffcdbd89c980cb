//! The parts of a pool that are drained, or are being drained.
//!
//! # Invariants
//!
//! - No two parts overlap.
//! - A part has a ticket while somebody waits for it, and none once it is drained. A further
//!   backing as a whole is only here while it is being drained: then it is no part of the pool.
//! - The memory of every part is withheld, and the files in it are shut, except for the moment in
//!   which a failure changes their words.

use std::sync::Arc;

use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;

use crate::owner::core::Ticket;

/// A part of the pool that is drained, or is being drained.
#[derive(Debug)]
pub(crate) struct PartDrain {
    pub runs: Arc<SortedRuns>,
    /// The number of its backing.
    pub backing: u64,
    /// As errors call it.
    pub name: String,
    /// Whether it is a further backing, of which nothing is kept.
    pub is_given_up: bool,
    /// Who waits for it; nobody any more once it is drained.
    pub waits: Option<Waits>,
}

/// Who waits for a part to be drained.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waits {
    pub ticket: Ticket,
    pub started_ms: u64,
    pub wait_ms: u64,
}

impl Waits {
    pub(crate) const fn deadline_ms(&self) -> u64 {
        self.started_ms.saturating_add(self.wait_ms)
    }
}

impl PartDrain {
    fn is_for(&self, ticket: Ticket) -> bool {
        self.waits.is_some_and(|waits| waits.ticket == ticket)
    }

    pub(crate) fn overlaps(&self, runs: &SortedRuns) -> bool {
        runs.iter().any(|run| self.runs.overlaps(run))
    }
}

/// The parts, in no order.
#[derive(Debug, Default)]
pub(crate) struct PartList {
    parts: Vec<PartDrain>,
}

impl PartList {
    /// Adds a part that overlaps no other.
    pub(crate) fn add(&mut self, part: PartDrain) {
        self.parts.push(part);
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &PartDrain> {
        self.parts.iter()
    }

    /// The part for which `ticket` waits.
    pub(crate) fn waited_for(&self, ticket: Ticket) -> Option<(&PartDrain, Waits)> {
        let part = self.parts.iter().find(|part| part.is_for(ticket))?;
        part.waits.map(|waits| (part, waits))
    }

    /// The part that has any of `run`.
    pub(crate) fn at(&self, run: PfnRange) -> Option<&PartDrain> {
        self.parts.iter().find(|part| part.runs.overlaps(run))
    }

    /// The first part of a backing.
    pub(crate) fn of_backing(&self, id: u64) -> Option<&PartDrain> {
        self.parts.iter().find(|part| part.backing == id)
    }

    /// The part for which `ticket` waits is drained, and stays.
    pub(crate) fn set_drained(&mut self, ticket: Ticket) {
        let its = self.parts.iter_mut().find(|part| part.is_for(ticket));
        its.into_iter().for_each(|part| part.waits = None);
    }

    /// Takes the first part out that `is_meant`.
    pub(crate) fn take(&mut self, is_meant: impl Fn(&PartDrain) -> bool) -> Option<PartDrain> {
        let place = self.parts.iter().position(is_meant)?;
        Some(self.parts.swap_remove(place))
    }

    /// Takes the part out for which `ticket` waits.
    pub(crate) fn take_waited_for(&mut self, ticket: Ticket) -> Option<PartDrain> {
        self.take(|part| part.is_for(ticket))
    }

    /// When those who wait have waited long enough.
    pub(crate) fn deadlines_ms(&self) -> impl Iterator<Item = u64> {
        self.parts.iter().filter_map(|part| part.waits).map(|waits| waits.deadline_ms())
    }

    /// Bytes of a backing that are out of use because they were drained.
    pub(crate) fn drained_bytes(&self, id: u64) -> u64 {
        let drained = self.parts.iter().filter(|part| part.backing == id && part.waits.is_none());
        drained.map(|part| part.runs.nr_pages() * PAGE_BYTES).sum()
    }
}
