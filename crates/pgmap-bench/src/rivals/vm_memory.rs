//! vm-memory: a guard on the whole map, then a binary search for the region.

use std::hint::black_box;
use std::sync::Arc;

use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap,
};

use crate::failure::Failure;
use crate::harness::{Done, Row};
use crate::rivals::{HoldAt, each};
use crate::rows::SPACE_BYTES;

fn map(n: u64) -> Result<GuestMemoryAtomic<GuestMemoryMmap<()>>, Failure> {
    let len = SPACE_BYTES / n;
    let ranges: Vec<_> = (0..n).map(|at| (GuestAddress(at * len), len as usize)).collect();
    Ok(GuestMemoryAtomic::new(GuestMemoryMmap::from_ranges(&ranges)?))
}

/// `memory()`, `get_host_address`, drop.
pub fn guard(n: u64) -> Result<HoldAt, Failure> {
    let map = map(n)?;
    Ok(Arc::new(move |worker, pick| {
        each(worker, pick, |address| {
            let guard = map.memory();
            black_box(guard.get_host_address(GuestAddress(address)).is_ok())
        })
    }))
}

/// `memory()`, `get_slices` over 1 GiB, drop.
pub fn range_row(n: u64) -> Result<Row, Failure> {
    const LEN: u64 = 1 << 30;
    let map = map(n)?;
    Ok(Row::new(format!("vm-memory guard + get_slices, n={n}"), move |mut worker| {
        let mut held = 0;
        for _ in 0..worker.nr_ops {
            let address = (worker.random.next() & (SPACE_BYTES - 1)) & !(LEN - 1);
            let guard = map.memory();
            let slices = guard.get_slices(GuestAddress(address), LEN as usize);
            let found: usize = slices.map(|slice| slice.map_or(0, |slice| slice.len())).sum();
            held += u64::from(black_box(found) == LEN as usize);
        }
        Ok(Done::ops(held))
    }))
}
