//! C: long pins by address, counted per folio.

use std::hint::black_box;
use std::sync::Arc;

use pgmap::mm::gup::GupFlags;
use pgmap::mm::level::Level;

use super::world::{World, not_held};
use super::{Stage, to_f};
use crate::failure::Failure;
use crate::harness::{Done, Row, Scenario, Target, Worker};
use crate::random::Random;
use crate::rivals::{self, Pick, vm_memory};
use crate::rows::{SPACE_BYTES, floor};

const TARGET: Target = Target::Ratio(1.25);
const FOLIO_MASK: u64 = !(Level::Pmd.size_bytes() - 1);

/// Pins and unpins `nr_pages` pages from each address on, long-term.
#[inline(always)]
pub fn pins(
    world: &World,
    worker: Worker,
    nr_pages: u64,
    address: impl Fn(&mut Random) -> u64,
) -> Result<Done, Failure> {
    let Worker { nr_ops, mut random, .. } = worker;
    let lane = world.lane()?;
    let gup = world.gup(&lane)?;
    let mut held = 0;
    for _ in 0..nr_ops {
        let segment = gup.fast_leaf_long(address(&mut random), nr_pages, GupFlags::NONE);
        let segment = segment.ok_or_else(not_held)?;
        held += u64::from(black_box(segment.run().start()) < world.nr_pages());
    }
    Ok(Done::ops(held))
}

/// Rows that pin with one world: of distinct folios, of any, and one page of a folio.
fn own_rows(world: &Arc<World>, n: u64, nr_threads: usize) -> Vec<Row> {
    let folio_pages = Level::Pmd.nr_pages();
    let part = SPACE_BYTES / nr_threads as u64;
    let distinct = Arc::clone(world);
    let how = if nr_threads == 1 { "" } else { ", each thread its own part" };
    let name = format!("pgmap: Gup::fast_leaf_long, n={n}{how}, {nr_threads}T");
    let mut rows = vec![
        Row::new(name, move |worker| {
            let first = worker.thread as u64 * part;
            pins(&distinct, worker, folio_pages, |random| (first + random.below(part)) & FOLIO_MASK)
        })
        .target(TARGET),
    ];
    if n == 1 {
        let page = Arc::clone(world);
        let name = format!("pgmap: Gup::fast_leaf_long of one 4 KiB page, n={n}, {nr_threads}T");
        rows.push(Row::new(name, move |worker| {
            pins(&page, worker, 1, |random| random.next() & page.mask())
        }));
        if nr_threads > 1 {
            let any = Arc::clone(world);
            let name = format!("pgmap: Gup::fast_leaf_long, n={n}, any folio, {nr_threads}T");
            rows.push(Row::new(name, move |worker| {
                let mask = any.mask() & FOLIO_MASK;
                pins(&any, worker, folio_pages, |random| random.next() & mask)
            }));
        }
    }
    rows
}

/// The scenario.
pub fn scenario(stage: &mut Stage) -> Result<Scenario, Failure> {
    let tree = stage.tree()?;
    let mut rows = Vec::new();
    for nr_threads in stage.threads.clone() {
        rows.push(floor::floor(&tree, nr_threads));
        if nr_threads > 1 {
            rows.push(floor::parted_floor(&tree, nr_threads));
        }
        stage.world(1)?.back_counts()?;
        for &n in stage.regions() {
            let own = own_rows(&stage.world(n)?, n, nr_threads);
            rows.extend(own.into_iter().map(|row| to_f(row, nr_threads)));
        }
        for &n in stage.regions() {
            rows.extend(stage.library(n)?.long_rows(&tree, nr_threads));
        }
        for &n in stage.regions() {
            let map = stage.map(n)?;
            let rows_of = [
                ("owned snapshot", vm_memory::owned_snapshot(&map)),
                ("owned region", vm_memory::owned_region(&map)),
            ];
            for (what, hold) in rows_of {
                let name = format!("vm-memory {what}, n={n}");
                rows.push(to_f(rivals::row(&name, nr_threads, Pick::Random, &hold), nr_threads));
            }
        }
    }
    let notes = vec![
        "a folio of 2 MiB is pinned whole: counted once; a page of it is counted for itself".into(),
        "F draws from the whole space on every thread; beside it F with a part for each".into(),
    ];
    Ok(Scenario { title: String::new(), notes, rows })
}
