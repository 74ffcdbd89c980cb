//! What others do for the same end, each in a file of its own.
//!
//! All of them answer "which memory is at this address, and keep it for me until I let go", over
//! the same 64 GiB, cut into `n` equal regions where they know regions.

pub mod arc_swap;
pub mod dash_map;
pub mod epoch;
pub mod memcpy;
pub mod rw_lock;
pub mod vm_memory;

use std::hint::black_box;
use std::sync::Arc;

use crate::failure::Failure;
use crate::harness::{Done, Row, Scale, Worker};
use crate::random::Random;
use crate::rows::SPACE_BYTES;
use crate::rows::floor::HOT_ADDRESS;

/// Looks addresses up and holds what it found of each until the next: how often it found something.
pub type HoldAt = Arc<dyn Fn(&mut Worker, Pick) -> u64 + Send + Sync>;

/// Ends what is at a random place of the map and puts it back.
pub type Change = Arc<dyn Fn(&mut Random) -> Result<(), Failure> + Send + Sync>;

/// A map that is read and changed.
pub struct Rival {
    pub hold: HoldAt,
    pub change: Change,
}

/// Which addresses are asked for.
#[derive(Clone, Copy, Debug)]
pub enum Pick {
    /// Any.
    Random,
    /// Always the same.
    Hot,
}

/// A region: what a rival's reference keeps.
#[derive(Debug)]
pub struct Region {
    pub start: u64,
}

/// `n` regions in order.
pub fn regions(n: u64) -> Vec<Arc<Region>> {
    (0..n).map(|at| Arc::new(Region { start: at * (SPACE_BYTES / n) })).collect()
}

/// Calls `hold` for each operation with an address; counts how often it held what was asked for.
#[inline(always)]
pub fn each(worker: &mut Worker, pick: Pick, mut hold: impl FnMut(u64) -> bool) -> u64 {
    let mut held = 0;
    for _ in 0..worker.nr_ops {
        let address = match pick {
            Pick::Random => worker.random.next() & (SPACE_BYTES - 1),
            Pick::Hot => black_box(HOT_ADDRESS),
        };
        held += u64::from(hold(address));
    }
    held
}

/// A row that holds with `hold` on so many threads.
pub fn row(name: &str, nr_threads: usize, pick: Pick, hold: &HoldAt) -> Row {
    let hold = Arc::clone(hold);
    let hot = if matches!(pick, Pick::Hot) { "hot folio, " } else { "" };
    Row::new(format!("{hot}{name}, {nr_threads}T"), move |mut worker| {
        Ok(Done::ops(hold(&mut worker, pick)))
    })
    .on_threads(nr_threads)
}

fn many(scale: Scale) -> u64 {
    scale.pick(1024, 64)
}

/// Rows for one folio at random.
pub fn pin_rows(scale: Scale, nr_threads: usize) -> Result<Vec<Row>, Failure> {
    let random = |name: &str, hold: &HoldAt| row(name, nr_threads, Pick::Random, hold);
    let mut rows = Vec::new();
    for n in [1, 16, many(scale)] {
        rows.push(random(&format!("vm-memory guard, n={n}"), &vm_memory::guard(n)?));
    }
    for n in [16, many(scale)] {
        rows.push(random(&format!("arc-swap Vec + Arc, n={n}"), &arc_swap::hold(n)));
        rows.push(random(&format!("RwLock<BTreeMap> + Arc, n={n}"), &rw_lock::hold(n)));
    }
    rows.push(random("dashmap per 2 MiB + Arc", &dash_map::hold(scale.pick(32768, 1024))));
    rows.push(random("crossbeam_epoch::pin + walk", &epoch::hold()));
    Ok(rows)
}

/// Rows for one folio that all want.
pub fn hot_rows(scale: Scale, nr_threads: usize) -> Result<Vec<Row>, Failure> {
    let hot = |name: &str, hold: &HoldAt| row(name, nr_threads, Pick::Hot, hold);
    let n = many(scale);
    Ok(vec![
        hot(&format!("vm-memory guard, n={n}"), &vm_memory::guard(n)?),
        hot(&format!("arc-swap Vec + Arc, n={n}"), &arc_swap::hold(n)),
        hot(&format!("RwLock<BTreeMap> + Arc, n={n}"), &rw_lock::hold(n)),
        hot("crossbeam_epoch::pin + walk", &epoch::hold()),
    ])
}

/// Rows for 1 GiB in one call.
pub fn range_rows(scale: Scale) -> Result<Vec<Row>, Failure> {
    const LEN: u64 = 1 << 30;
    let ns = [1, 16, many(scale)].into_iter();
    let row = |n| {
        let name = format!("vm-memory guard + get_slices, n={n}");
        Ok(vm_memory::range_row(&name, &vm_memory::map(n)?, LEN, LEN))
    };
    ns.map(row).collect()
}
