//! crossbeam-epoch: a guard on everything, then a walk down a table.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::random::Random;
use crate::rivals::{HoldAt, Rival, each};
use crate::rows::SPACE_BYTES;

/// `pin`, look at the leaf, unpin. Nobody can tell from it who holds what.
pub fn hold() -> HoldAt {
    rival().hold
}

/// The same, and a change: clear a leaf and set it.
pub fn rival() -> Rival {
    let leaves: Arc<[AtomicU64]> =
        (0..SPACE_BYTES >> 21).map(|at| AtomicU64::new(at + 1)).collect();
    let changed = Arc::clone(&leaves);
    let hold: HoldAt = Arc::new(move |worker, pick| {
        each(worker, pick, |address| {
            let guard = crossbeam_epoch::pin();
            // Acquire: as the leaf of every floor.
            let leaf = leaves[(address >> 21) as usize].load(Ordering::Acquire);
            let is_there = black_box(leaf) != 0;
            drop(guard);
            is_there
        })
    });
    let change = move |random: &mut Random| {
        let at = random.below(SPACE_BYTES >> 21);
        let leaf = &changed[at as usize];
        // Release, twice: as an update that publishes what lies behind the leaf.
        leaf.store(0, Ordering::Release);
        leaf.store(at + 1, Ordering::Release);
        Ok(())
    };
    Rival { hold, change: Arc::new(change) }
}
