//! vm-memory: a guard on the whole map, then a binary search for the region.

use std::hint::black_box;
use std::sync::{Arc, PoisonError};

use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap,
};

use crate::failure::Failure;
use crate::harness::{Done, Row};
use crate::random::Random;
use crate::rivals::{HoldAt, Rival, each};
use crate::rows::SPACE_BYTES;

/// A map of regions that can be replaced.
pub type Map = Arc<GuestMemoryAtomic<GuestMemoryMmap<()>>>;

/// `n` regions over the whole space. Addresses only: no page is ever touched.
pub fn map(n: u64) -> Result<Map, Failure> {
    let len = SPACE_BYTES / n;
    let ranges: Vec<_> = (0..n).map(|at| (GuestAddress(at * len), len as usize)).collect();
    Ok(Arc::new(GuestMemoryAtomic::new(GuestMemoryMmap::from_ranges(&ranges)?)))
}

/// `memory()`, `get_host_address`, drop.
pub fn guard(n: u64) -> Result<HoldAt, Failure> {
    Ok(guard_in(&map(n)?))
}

/// As [`guard`], in this map.
pub fn guard_in(map: &Map) -> HoldAt {
    let map = Arc::clone(map);
    Arc::new(move |worker, pick| {
        each(worker, pick, |address| {
            let guard = map.memory();
            black_box(guard.get_host_address(GuestAddress(address)).is_ok())
        })
    })
}

/// `get_host_address` in a snapshot that was taken before: nothing is held for an address.
pub fn bare(map: &Map) -> HoldAt {
    let map = Arc::clone(map);
    Arc::new(move |worker, pick| {
        let guard = map.memory();
        each(worker, pick, |address| {
            black_box(guard.get_host_address(GuestAddress(address)).is_ok())
        })
    })
}

/// `memory().into_inner()`, `get_host_address`, drop: a hold that may last.
pub fn owned_snapshot(map: &Map) -> HoldAt {
    let map = Arc::clone(map);
    Arc::new(move |worker, pick| {
        each(worker, pick, |address| {
            let snapshot = map.memory().into_inner();
            black_box(snapshot.get_host_address(GuestAddress(address)).is_ok())
        })
    })
}

/// `memory()`, `find_region`, `get_mmap`, drop: a counted reference to the one region.
pub fn owned_region(map: &Map) -> HoldAt {
    let map = Arc::clone(map);
    Arc::new(move |worker, pick| {
        each(worker, pick, |address| {
            let guard = map.memory();
            let region = guard.find_region(GuestAddress(address)).map(|region| region.get_mmap());
            drop(guard);
            black_box(region.is_some())
        })
    })
}

/// The guard, and a change: `remove_region`, replace, `insert_region` of the same, replace.
pub fn rival(map: &Map, n: u64) -> Rival {
    let hold = guard_in(map);
    let map = Arc::clone(map);
    let len = SPACE_BYTES / n;
    let replace = move |random: &mut Random| -> Result<(), Failure> {
        let start = GuestAddress(random.below(n) * len);
        let (without, region) = map.memory().remove_region(start, len)?;
        map.lock().unwrap_or_else(PoisonError::into_inner).replace(without);
        let with = map.memory().insert_region(region)?;
        map.lock().unwrap_or_else(PoisonError::into_inner).replace(with);
        Ok(())
    };
    Rival { hold, change: Arc::new(replace) }
}

/// `memory()`, `get_slices` over `len` bytes from a random multiple of `align` on, drop.
pub fn range_row(name: &str, map: &Map, len: u64, align: u64) -> Row {
    let map = Arc::clone(map);
    Row::new(name, move |mut worker| {
        let mut held = 0;
        for _ in 0..worker.nr_ops {
            let address = worker.random.below(SPACE_BYTES - len + 1) & !(align - 1);
            let guard = map.memory();
            let slices = guard.get_slices(GuestAddress(address), len as usize);
            let found: usize = slices.map(|slice| slice.map_or(0, |slice| slice.len())).sum();
            held += u64::from(black_box(found) == len as usize);
        }
        Ok(Done::ops(held))
    })
}
