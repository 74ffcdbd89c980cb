//! crossbeam-epoch: a guard on everything, then a walk down a table.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::rivals::{HoldAt, each};
use crate::rows::SPACE_BYTES;

/// `pin`, look at the leaf, unpin. Nobody can tell from it who holds what.
pub fn hold() -> HoldAt {
    let leaves: Vec<AtomicU64> = (0..SPACE_BYTES >> 21).map(|at| AtomicU64::new(at + 1)).collect();
    Arc::new(move |worker, pick| {
        each(worker, pick, |address| {
            let guard = crossbeam_epoch::pin();
            // Acquire: as the leaf of every floor.
            let leaf = leaves[(address >> 21) as usize].load(Ordering::Acquire);
            let is_there = black_box(leaf) != 0;
            drop(guard);
            is_there
        })
    })
}
