//! A: translations inside an open read section: no hold per address.

use std::hint::black_box;

use super::world::World;
use super::{Stage, to_f};
use crate::failure::Failure;
use crate::harness::{Done, Row, Scenario, Target, Worker};
use crate::rivals::{self, Pick, vm_memory};
use crate::rows::floor;

const TARGET: Target = Target::Ratio(0.42);

fn translates(world: &World, worker: Worker) -> Result<Done, Failure> {
    let Worker { nr_ops, mut random, .. } = worker;
    let lane = world.lane()?;
    let section = world.section(&lane)?;
    let mut found = 0;
    for _ in 0..nr_ops {
        let Some(borrowed) = section.translate(random.next() & world.mask()) else { continue };
        found += u64::from(black_box(borrowed.run().start()) < world.nr_pages());
    }
    Ok(Done::ops(found))
}

/// The scenario.
pub fn scenario(stage: &mut Stage) -> Result<Scenario, Failure> {
    let tree = stage.tree()?;
    let mut rows = Vec::new();
    for nr_threads in stage.threads.clone() {
        rows.push(floor::floor(&tree, nr_threads));
        rows.push(floor::walk_floor(&tree, nr_threads));
        for &n in stage.regions() {
            let world = stage.world(n)?;
            let name = format!("pgmap: ReadSection::translate, n={n}, {nr_threads}T");
            let row = Row::new(name, move |worker| translates(&world, worker));
            rows.push(to_f(row.target(TARGET), nr_threads));
        }
        for &n in stage.regions() {
            let map = stage.map(n)?;
            let bare = format!("vm-memory bare get_host_address, n={n}");
            let guarded = format!("vm-memory Atomic.memory() + get_host_address, n={n}");
            let rows_of = [(bare, vm_memory::bare(&map)), (guarded, vm_memory::guard_in(&map))];
            for (name, hold) in rows_of {
                rows.push(to_f(rivals::row(&name, nr_threads, Pick::Random, &hold), nr_threads));
            }
        }
    }
    let notes = vec![
        "uniformly random 4 KiB addresses over 64 GiB of 2 MiB leaves; data is never touched"
            .into(),
        "the section is opened once; what it returns is not reused until it is dropped".into(),
    ];
    Ok(Scenario { title: String::new(), notes, rows })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::harness::{Scale, run_cell};

    #[test]
    fn every_translation_is_found_and_counted() {
        let mut stage = Stage::new(Scale::Small, vec![1]);
        let world = stage.world(16).unwrap();
        assert!(Arc::ptr_eq(&world, &stage.world(16).unwrap()));
        let row = Row::new("pgmap", move |worker| translates(&world, worker));
        assert!(run_cell(&row, 100, 7).is_ok());
    }
}
