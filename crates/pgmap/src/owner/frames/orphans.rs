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

/// The frames of dead clients' devices.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    /// All of them, each once.
    all: Frames,
    of_client: BTreeMap<ClientId, Frames>,
    /// Clients whose last frame was detached since somebody asked.
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

    /// Clients of which the last frame was detached since the last call.
    pub(super) fn take_ended(&mut self) -> Vec<ClientId> {
        std::mem::take(&mut self.ended)
    }
}
