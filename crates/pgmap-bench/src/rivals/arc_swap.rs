//! arc-swap: a sorted vector behind one swappable pointer, a counted reference to the region found.

use std::hint::black_box;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::rivals::{HoldAt, Region, Rival, each, regions};

/// `load`, binary search, clone, drop.
pub fn hold(n: u64) -> HoldAt {
    rival(n).hold
}

/// The same, and a change: copy the vector with a new region in one place, swap.
pub fn rival(n: u64) -> Rival {
    let map = Arc::new(ArcSwap::from_pointee(regions(n)));
    let changed = Arc::clone(&map);
    let hold: HoldAt = Arc::new(move |worker, pick| {
        each(worker, pick, |address| {
            let regions = map.load();
            let after = regions.partition_point(|region| region.start <= address);
            let region = regions.get(after.wrapping_sub(1)).cloned();
            black_box(region.is_some_and(|region| region.start <= address))
        })
    });
    let change = move |random: &mut crate::random::Random| {
        let mut regions = changed.load().to_vec();
        if let Some(place) = regions.get_mut(random.below(n) as usize) {
            *place = Arc::new(Region { start: place.start });
        }
        changed.store(Arc::new(regions));
        Ok(())
    };
    Rival { hold, change: Arc::new(change) }
}
