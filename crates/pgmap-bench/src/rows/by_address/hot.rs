//! D: one folio that every thread wants, by address.

use std::hint::black_box;

use pgmap::mm::level::Level;

use super::{Stage, long, short, to_f};
use crate::failure::Failure;
use crate::harness::{Row, Scenario, Target};
use crate::rivals::{self, Pick, arc_swap, epoch, rw_lock, vm_memory};
use crate::rows::floor::{self, HOT_ADDRESS};

const SHORT: Target = Target::Ratio(0.35);
const LONG: Target = Target::Ratio(1.7);
const HOT_FOLIO: u64 = HOT_ADDRESS & !(Level::Pmd.size_bytes() - 1);

/// The scenario.
pub fn scenario(stage: &mut Stage) -> Result<Scenario, Failure> {
    let tree = stage.tree()?;
    let n = stage.scale.pick(1024, 16);
    let (world, map) = (stage.world(n)?, stage.map(n)?);
    let holds = [
        (format!("vm-memory guard, n={n}"), vm_memory::guard_in(&map)),
        (format!("vm-memory owned snapshot, n={n}"), vm_memory::owned_snapshot(&map)),
        (format!("vm-memory owned region, n={n}"), vm_memory::owned_region(&map)),
        (format!("arc-swap Vec + Arc, n={n}"), arc_swap::hold(n)),
        (format!("RwLock<BTreeMap> + Arc, n={n}"), rw_lock::hold(n)),
        ("crossbeam_epoch::pin + walk".into(), epoch::hold()),
    ];
    let mut rows = Vec::new();
    // One thread has nobody to want the folio with.
    for nr_threads in stage.threads.iter().copied().filter(|&nr_threads| nr_threads > 1) {
        let (brief, long_lived) = (world.clone(), world.clone());
        rows.push(floor::floor(&tree, nr_threads));
        rows.extend(floor::hot_floors(&tree, nr_threads));
        let short =
            Row::new(format!("pgmap: hot folio, fast_leaf, {nr_threads}T"), move |worker| {
                short::pins(&brief, worker, |_| black_box(HOT_ADDRESS))
            });
        let long = Row::new(format!("pgmap: hot folio, fast_leaf_long, {nr_threads}T"), {
            move |worker| {
                let nr_pages = Level::Pmd.nr_pages();
                long::pins(&long_lived, worker, nr_pages, |_| black_box(HOT_FOLIO))
            }
        });
        rows.push(to_f(short.target(SHORT), nr_threads));
        rows.push(to_f(long.target(LONG), nr_threads));
        for (name, hold) in &holds {
            rows.push(to_f(rivals::row(name, nr_threads, Pick::Hot, hold), nr_threads));
        }
    }
    let notes = vec!["F is at random addresses; all other rows at one folio".into()];
    Ok(Scenario { title: String::new(), notes, rows })
}
