//! F: pins of 4 KiB leaves, where leaf and count each miss the cache.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pgmap::mm::level::{Level, PAGE_BYTES};

use super::world::{Cut, Shape};
use super::{Stage, long, short};
use crate::failure::Failure;
use crate::harness::{Done, Row, Scenario, Target, Worker};
use crate::rows::SPACE_BYTES;

const SEPARATE: &str = "floor: 4 KiB leaf, counts apart";
const CO_LOCATED: &str = "floor: 4 KiB leaf, count beside it";
const TARGET: Target = Target::Ratio(1.15);

/// Leaves of 4 KiB below a top and middle table, as words that are `STRIDE` apart; with a stride of
/// two the second word is the page's count.
struct Pages {
    top: Vec<Vec<u32>>,
    words: Vec<AtomicU64>,
    counts: Vec<AtomicU64>,
    stride: usize,
    mask: u64,
}

impl Pages {
    fn new(bytes: u64, stride: usize) -> Arc<Self> {
        let nr_pages = (bytes / PAGE_BYTES) as usize;
        let nr_counts = if stride == 1 { nr_pages } else { 0 };
        let zeroes = |nr: usize| (0..nr).map(|_| AtomicU64::new(0)).collect();
        let words: Vec<AtomicU64> = zeroes(nr_pages * stride);
        for page in 0..nr_pages {
            words[page * stride].store((page as u64) << 1 | 1, Ordering::Relaxed);
        }
        let counts: Vec<AtomicU64> = zeroes(nr_counts);
        for count in &counts {
            // Zeroed memory is not there until it is written.
            count.fetch_add(1, Ordering::Relaxed);
            count.fetch_sub(1, Ordering::Relaxed);
        }
        let table = |gib: u32| (0..512).map(|at| gib * 512 + at).collect();
        let top = (0..bytes.div_ceil(1 << 30) as u32).map(table).collect();
        Arc::new(Self { top, words, counts, stride, mask: bytes - 1 })
    }

    fn pins(&self, worker: Worker) -> Done {
        let Worker { nr_ops, mut random, .. } = worker;
        let mut held = 0;
        for _ in 0..nr_ops {
            let address = random.next() & self.mask;
            let tables = &self.top[(address >> 30) as usize];
            let table = tables[(address >> 21) as usize & 511] as usize;
            let at = (table * 512 + ((address >> 12) as usize & 511)) * self.stride;
            let place = &self.words[at];
            let leaf = place.load(Ordering::Acquire);
            let count = if self.stride == 1 {
                &self.counts[(leaf >> 1) as usize]
            } else {
                &self.words[at + 1]
            };
            count.fetch_add(1, Ordering::Acquire);
            if place.load(Ordering::Acquire) == leaf {
                held += black_box(leaf) & 1;
            }
            count.fetch_sub(1, Ordering::Release);
        }
        Done::ops(held)
    }
}

/// The scenario.
pub fn scenario(stage: &mut Stage) -> Result<Scenario, Failure> {
    let bytes = stage.scale.pick(SPACE_BYTES, 1 << 30);
    let nr_regions = bytes >> 30;
    let world = stage.world_of(Shape { bytes, leaf: Level::Pte, nr_regions, cut: Cut::Whole })?;
    world.back_counts()?;
    let (separate, co_located) = (Pages::new(bytes, 1), Pages::new(bytes, 2));
    let counted = Arc::clone(&world);
    let rows = vec![
        Row::new(SEPARATE, move |worker| Ok(separate.pins(worker))),
        Row::new(CO_LOCATED, move |worker| Ok(co_located.pins(worker))).against(SEPARATE),
        Row::new("pgmap: 4 KiB leaf, fast_leaf_long", move |worker| {
            long::pins(&counted, worker, 1, |random| random.next() & counted.mask())
        })
        .target(TARGET)
        .against(SEPARATE),
        Row::new("pgmap: 4 KiB leaf, fast_leaf", move |worker| {
            short::pins(&world, worker, |random| random.next() & world.mask())
        })
        .target(TARGET)
        .against(SEPARATE),
    ];
    let notes = vec![format!(
        "{} GiB of 4 KiB leaves in extents of 1 GiB, counted long pins and short ones",
        bytes >> 30
    )];
    Ok(Scenario { title: String::new(), notes, rows })
}
