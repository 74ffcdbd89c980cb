//! What owned pins keep their client by: a count for each lane, not one for all.
//!
//! A pin that has a clone of its client writes to the count of clones when it is taken and when it
//! is dropped, and threads that do so at once wait for each other. So an owned pin has a share of a
//! keeper, and the keeper has the client. The lane of the pin says which keeper: mostly one thread
//! uses a lane at a time, so mostly one thread writes to a keeper's count.
//!
//! A [`Client`]'s clones share its keepers; a keeper's client has keepers of its own, so none keeps
//! itself. What was made goes with the last clone, except what pins have a share of.

use std::sync::{Arc, OnceLock};

use pgmap_mm::ledger::LANE_SLOTS;
use pgmap_mm::pin::PinParts;

use crate::client::Client;

/// So many keepers at most; lanes share them.
const MAX_KEEPERS: usize = 32;

/// The keepers of a client, each made when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Keepers([OnceLock<Arc<Keeper>>; MAX_KEEPERS]);

/// Keeps a client. Aligned, so that no count shares a cache line with another (two lines are
/// fetched at once).
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Keeper {
    pub(super) client: Client,
}

impl Client {
    /// A keeper of this client for a pin in the lane of `hold`.
    #[inline]
    pub(super) fn keeper(&self, hold: Option<&PinParts>) -> Arc<Keeper> {
        let lane = hold.map_or(0, |hold| hold.slot() / LANE_SLOTS);
        let keeper = &self.keepers.0[lane % MAX_KEEPERS];
        Arc::clone(keeper.get_or_init(|| {
            let client = Self::of(Arc::clone(&self.inner));
            Arc::new(Keeper { client })
        }))
    }
}
