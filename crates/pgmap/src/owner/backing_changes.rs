//! What is happening to further backings: those that are being taken out, the frames of those that
//! were, and the devices that may be those of missing ones.
//!
//! # Invariants
//!
//! - A backing of which there is a departure is leaving, and one that is no longer leaving has
//!   none.
//! - The frames of a backing that was taken out are nobody else's while a client of its time lives,
//!   which may have them mapped, and until they are off the record.
//! - Attempts are counted for each binding of a device, and only for backings that are missing.

use std::collections::{BTreeMap, BTreeSet};

use pgmap_mm::drain::ClientId;

use crate::owner::core::Ticket;
use crate::pool::catalog::StoredBacking;

/// How often the device of a missing backing is tried after it was bound: its node may be there a
/// moment later than the device, and one that a process kept open cannot be opened at first.
const MAX_ATTEMPTS: u32 = 50;
/// How many looks it is left alone before: until then clients have given up what they had of it.
/// What is closed when the device is in use again can keep it from being opened once more (seen on
/// Linux 6.12).
const NR_LEFT_ALONE: u32 = 2;

/// A backing that is to go when nobody holds a frame of it.
#[derive(Debug)]
pub(crate) struct Departure {
    pub ticket: Ticket,
    /// The number of the backing.
    pub id: u64,
    pub started_ms: u64,
    pub deadline_ms: u64,
    /// Why its medium was missing before, if it was.
    pub was_missing: Option<String>,
}

/// The frames of a backing that was taken out.
#[derive(Debug)]
struct Retired {
    line: StoredBacking,
    /// Clients that may have it mapped.
    clients: BTreeSet<ClientId>,
}

/// What is happening to further backings.
#[derive(Debug, Default)]
pub(crate) struct BackingChanges {
    departures: Vec<Departure>,
    retired: Vec<Retired>,
    /// By backing: a binding of the device, and how often it was tried.
    attempts: BTreeMap<u64, (u64, u32)>,
}

impl BackingChanges {
    /// Begins a departure of a backing that has none.
    pub(crate) fn depart(&mut self, departure: Departure) {
        self.departures.push(departure);
    }

    /// Whether a backing waits for holders.
    pub(crate) const fn has_departures(&self) -> bool {
        !self.departures.is_empty()
    }

    /// When the departures have waited long enough.
    pub(crate) fn deadlines_ms(&self) -> impl Iterator<Item = u64> {
        self.departures.iter().map(|departure| departure.deadline_ms)
    }

    /// Takes all departures out. Those that have not ended [go on](Self::depart).
    pub(crate) fn take_departures(&mut self) -> Vec<Departure> {
        std::mem::take(&mut self.departures)
    }

    /// Takes the departure out for which `ticket` waits.
    pub(crate) fn take_departure(&mut self, ticket: Ticket) -> Option<Departure> {
        let place = self.departures.iter().position(|departure| departure.ticket == ticket)?;
        Some(self.departures.swap_remove(place))
    }

    /// The medium of a backing that is being taken out is gone.
    pub(crate) fn departs_missing(&mut self, id: u64, why: &str) {
        let departing = self.departures.iter_mut().find(|departure| departure.id == id);
        departing.into_iter().for_each(|departure| departure.was_missing = Some(why.to_owned()));
    }

    /// Keeps the frames of `line` out of use, which `clients` may have mapped.
    pub(crate) fn retire(
        &mut self,
        line: StoredBacking,
        clients: impl IntoIterator<Item = ClientId>,
    ) {
        self.retired.push(Retired { line, clients: clients.into_iter().collect() });
    }

    /// The frames that are kept out of use: first, and behind the last.
    pub(crate) fn retired_frames(&self) -> impl Iterator<Item = (u64, u64)> {
        self.retired.iter().map(|retired| {
            let first = retired.line.first_pfn;
            (first, first + retired.line.nr_pages)
        })
    }

    /// The backings whose frames no client of their time has mapped any more.
    pub(crate) fn unmapped(&mut self, is_there: impl Fn(ClientId) -> bool) -> Vec<u64> {
        for retired in &mut self.retired {
            retired.clients.retain(|&client| is_there(client));
        }
        let unmapped = self.retired.iter().filter(|retired| retired.clients.is_empty());
        unmapped.map(|retired| retired.line.id).collect()
    }

    /// A backing that was taken out is off the record.
    pub(crate) fn end_retirement(&mut self, id: u64) {
        self.retired.retain(|retired| retired.line.id != id);
    }

    /// Forgets the attempts for backings that are not missing.
    pub(crate) fn keep_attempts(&mut self, is_missing: impl Fn(u64) -> bool) {
        self.attempts.retain(|&id, _| is_missing(id));
    }

    /// Whether a device that is bound may be the one of backing `id` and is to be tried now: it has
    /// not been tried so often since it was bound.
    pub(crate) fn is_worth_trying(&mut self, id: u64, binding: u64) -> bool {
        let (last, nr_tried) = self.attempts.entry(id).or_insert((binding, 0));
        if *last != binding {
            (*last, *nr_tried) = (binding, 0);
        }
        *nr_tried += 1;
        (NR_LEFT_ALONE + 1..=NR_LEFT_ALONE + MAX_ATTEMPTS).contains(nr_tried)
    }

    /// Has the device of backing `id` not tried before it is bound again.
    pub(crate) fn leave_alone(&mut self, id: u64, binding: u64) {
        self.attempts.insert(id, (binding, NR_LEFT_ALONE + MAX_ATTEMPTS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_tried_a_number_of_times_after_each_binding() {
        let mut changes = BackingChanges::default();
        let mut tried = |binding| {
            (0..2 * MAX_ATTEMPTS).filter(|_| changes.is_worth_trying(3, binding)).count() as u32
        };
        assert_eq!(tried(7), MAX_ATTEMPTS);
        assert_eq!(tried(7), 0);
        assert_eq!(tried(8), MAX_ATTEMPTS);
    }
}
