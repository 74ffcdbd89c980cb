//! The standard library: a B-tree under a read-write lock, a counted reference to the region found.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::{Arc, PoisonError, RwLock};

use crate::failure::Failure;
use crate::random::Random;
use crate::rivals::{HoldAt, Rival, each, regions};
use crate::rows::SPACE_BYTES;

/// Read lock, `range`, clone, unlock, drop.
pub fn hold(n: u64) -> HoldAt {
    rival(n).hold
}

/// The same, and a change: write lock, remove, insert, unlock.
pub fn rival(n: u64) -> Rival {
    let map: BTreeMap<u64, _> = regions(n).into_iter().map(|r| (r.start, r)).collect();
    let map = Arc::new(RwLock::new(map));
    let changed = Arc::clone(&map);
    let hold: HoldAt = Arc::new(move |worker, pick| {
        each(worker, pick, |address| {
            let regions = map.read().unwrap_or_else(PoisonError::into_inner);
            let region =
                regions.range(..=address).next_back().map(|(_, region)| Arc::clone(region));
            drop(regions);
            black_box(region.is_some_and(|region| region.start <= address))
        })
    });
    let change = move |random: &mut Random| {
        let start = random.below(n) * (SPACE_BYTES / n);
        let mut regions = changed.write().unwrap_or_else(PoisonError::into_inner);
        let region = regions.remove(&start).ok_or_else(|| Failure::new("a region is gone"))?;
        regions.insert(start, region);
        Ok(())
    };
    Rival { hold, change: Arc::new(change) }
}
