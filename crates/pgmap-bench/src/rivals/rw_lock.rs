//! The standard library: a B-tree under a read-write lock, a counted reference to the region found.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::{Arc, PoisonError, RwLock};

use crate::rivals::{HoldAt, each, regions};

/// Read lock, `range`, clone, unlock, drop.
pub fn hold(n: u64) -> HoldAt {
    let map: BTreeMap<u64, _> = regions(n).into_iter().map(|r| (r.start, r)).collect();
    let map = RwLock::new(map);
    Arc::new(move |worker, pick| {
        each(worker, pick, |address| {
            let regions = map.read().unwrap_or_else(PoisonError::into_inner);
            let region =
                regions.range(..=address).next_back().map(|(_, region)| Arc::clone(region));
            drop(regions);
            black_box(region.is_some_and(|region| region.start <= address))
        })
    })
}
