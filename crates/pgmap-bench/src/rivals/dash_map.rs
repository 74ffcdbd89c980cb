//! dashmap: a sharded hash table from 2 MiB granule to a counted reference.

use std::hint::black_box;
use std::sync::Arc;

use dashmap::DashMap;

use crate::rivals::{HoldAt, each, regions};
use crate::rows::SPACE_BYTES;

/// `get`, clone, unlock, drop; for `n` granules.
pub fn hold(n: u64) -> HoldAt {
    let granule = SPACE_BYTES / n;
    let map: DashMap<u64, _> = regions(n).into_iter().map(|r| (r.start / granule, r)).collect();
    Arc::new(move |worker, pick| {
        each(worker, pick, |address| {
            let region = map.get(&(address / granule)).map(|found| Arc::clone(&found));
            black_box(region.is_some_and(|region| region.start <= address))
        })
    })
}
