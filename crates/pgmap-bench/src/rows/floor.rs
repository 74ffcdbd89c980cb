//! The floors: what the machine takes for the least that any page model must do.
//!
//! F is the walk down a radix tree to a 2 MiB leaf, an atomic addition to the folio's count, a
//! second look at the leaf, and an atomic subtraction: what `get_user_pages_fast` does, without all
//! else. The hazard floor has a store into the thread's own slot in place of the additions.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use crate::failure::Failure;
use crate::harness::{Done, Row, Worker};
use crate::rows::SPACE_BYTES;

/// Names of the floors, for rows that are compared to them.
pub const F: [&str; 2] = ["F: walk + fetch_add + re-read + fetch_sub, 1T", "F, 2T"];

/// The name of F on so many threads.
pub fn f_name(nr_threads: usize) -> String {
    F.get(nr_threads - 1).map_or_else(|| format!("F, {nr_threads}T"), |&name| name.into())
}

/// Most threads of a row with a slot each.
const NR_SLOTS: usize = 128;

const NR_FOLIOS: usize = (SPACE_BYTES >> 21) as usize;
const ADDRESS_MASK: u64 = SPACE_BYTES - 1;
/// The one folio that everybody wants.
pub const HOT_ADDRESS: u64 = 0x1_2345_6000;

type Leaves = [AtomicU64; 512];
type Middle = [Option<Box<Leaves>>; 512];

/// A page table of three levels and a packed count per folio.
pub struct Tree {
    top: Box<[Option<Box<Middle>>; 512]>,
    counts: Box<[AtomicU64; NR_FOLIOS]>,
    slots: Box<[Slot; NR_SLOTS]>,
}

/// A line of its own.
#[repr(align(128))]
struct Slot(AtomicU64);

impl Tree {
    /// The whole space mapped by 2 MiB leaves.
    pub fn new() -> Result<Arc<Self>, Failure> {
        let mut top: Box<[Option<Box<Middle>>; 512]> = Box::new([const { None }; 512]);
        let mut middle: Box<Middle> = Box::new([const { None }; 512]);
        for (at, place) in middle.iter_mut().enumerate().take(NR_FOLIOS / 512) {
            let leaves = std::array::from_fn(|i| AtomicU64::new(((at * 512 + i) as u64) << 1 | 1));
            *place = Some(Box::new(leaves));
        }
        top[0] = Some(middle);
        let counts: Vec<AtomicU64> = (0..NR_FOLIOS).map(|_| AtomicU64::new(0)).collect();
        let counts = counts.into_boxed_slice().try_into();
        let counts = counts.map_err(|_| Failure::new("as many counts as folios"))?;
        let slots = Box::new([const { Slot(AtomicU64::new(0)) }; NR_SLOTS]);
        Ok(Arc::new(Self { top, counts, slots }))
    }

    /// The place of the leaf that maps the address.
    #[inline(always)]
    pub fn leaf(&self, address: u64) -> Option<&AtomicU64> {
        let index = |shift: u32| (address >> shift) as usize & 511;
        let leaves = self.top[index(39)].as_deref()?[index(30)].as_deref()?;
        Some(&leaves[index(21)])
    }

    /// The count of a leaf's folio.
    #[inline(always)]
    pub fn count(&self, leaf: u64) -> &AtomicU64 {
        &self.counts[(leaf >> 1) as usize & (NR_FOLIOS - 1)]
    }

    /// Whether every count is back where it was.
    fn is_idle(&self) -> bool {
        self.counts.iter().all(|count| count.load(Ordering::Relaxed) == 0)
    }

    /// Walks only; how many leaves were there.
    fn walks(&self, mut worker: Worker) -> u64 {
        let mut found = 0;
        for _ in 0..worker.nr_ops {
            let Some(leaf) = self.leaf(worker.random.next() & ADDRESS_MASK) else { continue };
            found += black_box(leaf.load(Ordering::Acquire)) & 1;
        }
        found
    }

    /// Pins and unpins the folio of each address in turn; how many were held.
    #[inline(always)]
    pub fn pins(&self, nr_ops: u64, mut address: impl FnMut() -> u64) -> u64 {
        let mut held = 0;
        for _ in 0..nr_ops {
            let Some(place) = self.leaf(address()) else { continue };
            let leaf = place.load(Ordering::Acquire);
            let count = self.count(leaf);
            count.fetch_add(1, Ordering::Acquire);
            if place.load(Ordering::Acquire) == leaf {
                held += black_box(leaf) & 1;
            }
            count.fetch_sub(1, Ordering::Release);
        }
        held
    }

    #[inline(always)]
    fn hazards(&self, thread: usize, nr_ops: u64, mut address: impl FnMut() -> u64) -> u64 {
        let slot = &self.slots[thread % NR_SLOTS].0;
        let mut held = 0;
        for _ in 0..nr_ops {
            let Some(place) = self.leaf(address()) else { continue };
            let leaf = place.load(Ordering::Acquire);
            slot.store(leaf, Ordering::Release);
            // SeqCst: the cheap half of an asymmetric barrier, as pgmap's own.
            compiler_fence(Ordering::SeqCst);
            if place.load(Ordering::Acquire) == leaf {
                held += black_box(leaf) & 1;
            }
            slot.store(0, Ordering::Release);
        }
        held
    }
}

/// F on `nr_threads` threads.
pub fn floor(tree: &Arc<Tree>, nr_threads: usize) -> Row {
    let tree = Arc::clone(tree);
    Row::new(f_name(nr_threads), move |mut worker| {
        let held = tree.pins(worker.nr_ops, || worker.random.next() & ADDRESS_MASK);
        if worker.nr_ops < 1000 && nr_threads == 1 && !tree.is_idle() {
            return Err(Failure::new("counts are left over"));
        }
        Ok(Done::ops(held))
    })
    .on_threads(nr_threads)
}

/// F with a part of the space for each thread, so that no two share a folio.
pub fn parted_floor(tree: &Arc<Tree>, nr_threads: usize) -> Row {
    let tree = Arc::clone(tree);
    let part = SPACE_BYTES / nr_threads as u64;
    Row::new(format!("floor: F, each thread its own part, {nr_threads}T"), move |mut worker| {
        let first = worker.thread as u64 * part;
        Ok(Done::ops(tree.pins(worker.nr_ops, || first + worker.random.below(part))))
    })
    .on_threads(nr_threads)
    .against(&f_name(nr_threads))
}

/// F over the first `len_bytes` of the space, whose leaves map `nr_folios` folios again and again;
/// both powers of two.
pub fn repeated_floor(
    tree: &Arc<Tree>,
    name: String,
    nr_threads: usize,
    len_bytes: u64,
    nr_folios: u64,
) -> Row {
    let tree = Arc::clone(tree);
    Row::new(name, move |mut worker| {
        let mut held = 0;
        for _ in 0..worker.nr_ops {
            let address = worker.random.next() & (len_bytes - 1);
            let Some(place) = tree.leaf(address) else { continue };
            let leaf = place.load(Ordering::Acquire);
            let count = tree.count(leaf & (nr_folios * 2 - 1));
            count.fetch_add(1, Ordering::Acquire);
            if place.load(Ordering::Acquire) == leaf {
                held += black_box(leaf) & 1;
            }
            count.fetch_sub(1, Ordering::Release);
        }
        Ok(Done::ops(held))
    })
    .on_threads(nr_threads)
    .against(&f_name(nr_threads))
}

/// The walk alone, at random addresses.
pub fn walk_floor(tree: &Arc<Tree>, nr_threads: usize) -> Row {
    let tree = Arc::clone(tree);
    Row::new(format!("floor: walk only, {nr_threads}T"), move |worker| {
        Ok(Done::ops(tree.walks(worker)))
    })
    .on_threads(nr_threads)
    .against(&f_name(nr_threads))
}

/// A slot of the thread's own in place of the folio's count, at random addresses.
pub fn hazard_floor(tree: &Arc<Tree>, nr_threads: usize) -> Row {
    let tree = Arc::clone(tree);
    Row::new(format!("floor: hazard slot, {nr_threads}T"), move |mut worker| {
        let Worker { thread, nr_ops, .. } = worker;
        let address = || worker.random.next() & ADDRESS_MASK;
        Ok(Done::ops(tree.hazards(thread, nr_ops, address)))
    })
    .on_threads(nr_threads)
    .against(&f_name(nr_threads))
}

/// The other floors at random addresses.
pub fn lower_floors(tree: &Arc<Tree>, nr_threads: usize) -> Vec<Row> {
    vec![walk_floor(tree, nr_threads), hazard_floor(tree, nr_threads)]
}

/// The floors for one folio that all threads want.
pub fn hot_floors(tree: &Arc<Tree>, nr_threads: usize) -> Vec<Row> {
    let (adding, hazard) = (Arc::clone(tree), Arc::clone(tree));
    let rows = [
        Row::new(
            format!("floor: hot folio, fetch_add + fetch_sub, {nr_threads}T"),
            move |worker| Ok(Done::ops(adding.pins(worker.nr_ops, || black_box(HOT_ADDRESS)))),
        ),
        Row::new(format!("floor: hot folio, hazard slot, {nr_threads}T"), move |worker| {
            let Worker { thread, nr_ops, .. } = worker;
            Ok(Done::ops(hazard.hazards(thread, nr_ops, || black_box(HOT_ADDRESS))))
        }),
    ];
    rows.into_iter().map(|row| row.on_threads(nr_threads).against(&f_name(nr_threads))).collect()
}

/// F for each 2 MiB folio of a random 1 GiB.
pub fn range_floor(tree: &Arc<Tree>) -> Row {
    let tree = Arc::clone(tree);
    Row::new("floor: walk + fetch_add + fetch_sub, 512 folios", move |mut worker| {
        let mut done = 0;
        for _ in 0..worker.nr_ops {
            let mut address = (worker.random.next() & ADDRESS_MASK) & !((1 << 30) - 1);
            let next = || {
                address += 1 << 21;
                address - (1 << 21)
            };
            done += u64::from(tree.pins(512, next) == 512);
        }
        Ok(Done::ops(done))
    })
}

/// All folios of `len` bytes from a random multiple of `align` on, counted one by one, then let go.
pub fn held_range(tree: &Arc<Tree>, name: &str, len: u64, align: u64) -> Row {
    let tree = Arc::clone(tree);
    Row::new(name, move |mut worker| {
        let mut done = 0;
        for _ in 0..worker.nr_ops {
            let start = worker.random.below(SPACE_BYTES - len + 1) & !(align - 1);
            let folios = (start >> 21)..(start + len).div_ceil(1 << 21);
            let nr_folios = folios.end - folios.start;
            let mut held = 0;
            for folio in folios.clone() {
                let Some(place) = tree.leaf(folio << 21) else { continue };
                let leaf = place.load(Ordering::Acquire);
                tree.count(leaf).fetch_add(1, Ordering::Acquire);
                held += u64::from(place.load(Ordering::Acquire) == black_box(leaf));
            }
            for folio in folios {
                let Some(place) = tree.leaf(folio << 21) else { continue };
                tree.count(place.load(Ordering::Acquire)).fetch_sub(1, Ordering::Release);
            }
            done += u64::from(held == nr_folios);
        }
        Ok(Done::ops(done))
    })
}

/// F on leaves of 1 GiB: the top of the tree is all of it.
pub fn giant_floor(name: &str) -> Row {
    const NR_LEAVES: u64 = SPACE_BYTES >> 30;
    let leaves: Vec<AtomicU64> = (0..NR_LEAVES).map(|at| AtomicU64::new(at << 1 | 1)).collect();
    let counts: Vec<AtomicU64> = (0..NR_LEAVES).map(|_| AtomicU64::new(0)).collect();
    Row::new(name, move |mut worker| {
        let mut held = 0;
        for _ in 0..worker.nr_ops {
            let place = &leaves[((worker.random.next() & ADDRESS_MASK) >> 30) as usize];
            let leaf = place.load(Ordering::Acquire);
            let count = &counts[(leaf >> 1) as usize];
            count.fetch_add(1, Ordering::Acquire);
            if place.load(Ordering::Acquire) == leaf {
                held += black_box(leaf) & 1;
            }
            count.fetch_sub(1, Ordering::Release);
        }
        Ok(Done::ops(held))
    })
}

/// Two stores: a leaf cleared and set, at a random place.
pub fn store_floor(tree: &Arc<Tree>) -> Row {
    let tree = Arc::clone(tree);
    Row::new("floor: clear and set a leaf, two stores", move |mut worker| {
        let mut set = 0;
        for _ in 0..worker.nr_ops {
            let address = worker.random.next() & ADDRESS_MASK;
            let Some(place) = tree.leaf(address) else { continue };
            place.store(0, Ordering::Release);
            place.store(black_box(address >> 21) << 1 | 1, Ordering::Release);
            set += 1;
        }
        Ok(Done::ops(set))
    })
}
