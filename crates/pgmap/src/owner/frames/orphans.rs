//! Frames that dead clients' devices may still write to.
//!
//! A hold for a device outlives its process, because a transfer may be under way. The frames stay
//! whose they are; before anybody else gets them they are detached (ADR 0006). The dead client's
//! ledger stays in the pool's directory as long as one of its frames is here, so that a restarted
//! owner knows of them too.

use std::collections::BTreeMap;

use pgmap_mm::drain::ClientId;
use pgmap_mm::frames::Frames;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;

/// The frames of dead clients' devices.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    /// All of them, each once.
    all: Frames,
    of_client: BTreeMap<ClientId, Frames>,
    /// Clients that have had none since somebody asked.
    ended: Vec<ClientId>,
}

impl Orphans {
    /// A device of the dead `client` may still write to `run`.
    pub(super) fn add(&mut self, client: ClientId, run: PfnRange) {
        self.all.give(run);
        self.of_client.entry(client).or_default().give(run);
    }

    /// No device of the dead has a way into `run` any more.
    pub(super) fn forget(&mut self, run: PfnRange) {
        if !self.overlaps(run) {
            return;
        }
        self.all.take_any_of(run);
        let ended = &mut self.ended;
        self.of_client.retain(|&client, frames| {
            frames.take_any_of(run);
            let is_left = frames.free_pages() > 0;
            if !is_left {
                ended.push(client);
            }
            is_left
        });
    }

    /// No device of the dead `client` can write any more: takes note of that for up to `most` of
    /// its runs, and returns those that no device of another dead client can write to.
    pub(super) fn end(&mut self, client: ClientId, most: usize) -> Vec<PfnRange> {
        let Some(frames) = self.of_client.get_mut(&client) else { return Vec::new() };
        let runs: Vec<(u64, u64)> = frames.runs().take(most).collect();
        let runs: SortedRuns =
            runs.into_iter().filter_map(|(start, length)| PfnRange::new(start, length)).collect();
        runs.iter().for_each(|run| frames.take_any_of(run));
        if frames.free_pages() == 0 {
            self.of_client.remove(&client);
            self.ended.push(client);
        }
        let mut ended = Vec::new();
        for run in runs.iter() {
            self.all.take_any_of(run);
            for others in self.of_client.values() {
                for part in others.within(run) {
                    self.all.give(part);
                }
            }
            ended.extend(self.all.without_free(run));
        }
        ended
    }

    /// The frames that devices of `client` may still write to.
    pub(super) fn of(&self, client: ClientId) -> impl Iterator<Item = PfnRange> {
        let frames = self.of_client.get(&client).into_iter();
        frames.flat_map(Frames::runs).filter_map(|(start, length)| PfnRange::new(start, length))
    }

    /// Whether a device may still write to a frame of `run`.
    pub(super) fn overlaps(&self, run: PfnRange) -> bool {
        self.all.overlaps(run)
    }

    /// The frames of `run` that a device may still write to.
    pub(super) fn within(&self, run: PfnRange) -> Vec<PfnRange> {
        self.all.within(run)
    }

    /// How many frames there are.
    pub(super) const fn nr_pages(&self) -> u64 {
        self.all.free_pages()
    }

    /// Whether a device of `client` may still write anywhere.
    pub(super) fn has(&self, client: ClientId) -> bool {
        self.of_client.contains_key(&client)
    }

    /// Clients that have no such frame any more since the last call.
    pub(super) fn take_ended(&mut self) -> Vec<ClientId> {
        std::mem::take(&mut self.ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, nr_pages: u64) -> PfnRange {
        PfnRange::new(start, nr_pages).unwrap()
    }

    #[test]
    fn what_two_dead_clients_held_is_waited_for_until_both_have_ended() {
        let (one, two) = (ClientId(1), ClientId(2));
        let mut orphans = Orphans::default();
        orphans.add(one, run(0, 10));
        orphans.add(two, run(5, 10));
        assert_eq!(orphans.end(one, 100), [run(0, 5)]);
        assert!(!orphans.overlaps(run(0, 5)) && orphans.overlaps(run(5, 1)));
        assert_eq!(orphans.nr_pages(), 10);
        assert_eq!(orphans.take_ended(), [one]);
        assert_eq!(orphans.end(two, 100), [run(5, 10)]);
        assert_eq!(orphans.nr_pages(), 0);
        assert_eq!(orphans.take_ended(), [two]);
        assert_eq!(orphans.end(two, 100), []);
        assert_eq!(orphans.take_ended(), []);
    }

    #[test]
    fn a_client_with_many_runs_ends_in_steps() {
        let mut orphans = Orphans::default();
        (0..10).for_each(|number| orphans.add(ClientId(1), run(number * 4, 2)));
        assert_eq!(orphans.end(ClientId(1), 7).len(), 7);
        assert!(orphans.has(ClientId(1)) && orphans.take_ended().is_empty());
        assert_eq!(orphans.end(ClientId(1), 7).len(), 3);
        assert!(!orphans.has(ClientId(1)));
    }
}
