//! arc-swap: a sorted vector behind one swappable pointer, a counted reference to the region found.

use std::hint::black_box;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::rivals::{HoldAt, each, regions};

/// `load`, binary search, clone, drop.
pub fn hold(n: u64) -> HoldAt {
    let map = ArcSwap::from_pointee(regions(n));
    Arc::new(move |worker, pick| {
        each(worker, pick, |address| {
            let regions = map.load();
            let after = regions.partition_point(|region| region.start <= address);
            let region = regions.get(after.wrapping_sub(1)).cloned();
            black_box(region.is_some_and(|region| region.start <= address))
        })
    })
}
