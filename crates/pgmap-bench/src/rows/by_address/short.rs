//! B: short pins by address, each beside what rivals do to keep what is at an address.

use std::hint::black_box;

use super::world::{World, not_held};
use super::{Stage, to_f};
use crate::failure::Failure;
use crate::harness::{Done, Row, Scenario, Target, Worker};
use crate::random::Random;
use crate::rivals::{self, Pick, arc_swap, epoch, rw_lock, vm_memory};
use crate::rows::floor;
use pgmap::mm::gup::GupFlags;

/// For one thread and for two; more threads claim what two do.
const TARGETS: [Target; 2] = [Target::Ratio(0.65), Target::Ratio(0.50)];

/// Pins and unpins one page of each address, without a lock and without another try.
#[inline(always)]
pub fn pins(
    world: &World,
    worker: Worker,
    address: impl Fn(&mut Random) -> u64,
) -> Result<Done, Failure> {
    let Worker { nr_ops, mut random, .. } = worker;
    let lane = world.lane()?;
    let gup = world.gup(&lane)?;
    let mut held = 0;
    for _ in 0..nr_ops {
        let segment = gup.fast_leaf(address(&mut random), 1, GupFlags::NONE);
        let segment = segment.ok_or_else(not_held)?;
        held += u64::from(black_box(segment.run().start()) < world.nr_pages());
    }
    Ok(Done::ops(held))
}

/// The scenario.
pub fn scenario(stage: &mut Stage) -> Result<Scenario, Failure> {
    let tree = stage.tree()?;
    let library = stage.library(stage.scale.pick(1024, 4))?;
    let ns = stage.regions();
    let arcs: Vec<_> = ns.iter().map(|&n| arc_swap::hold(n)).collect();
    let locks: Vec<_> = ns.iter().map(|&n| rw_lock::hold(n)).collect();
    let epoch = epoch::hold();
    let mut rows = Vec::new();
    for nr_threads in stage.threads.clone() {
        rows.push(floor::floor(&tree, nr_threads));
        rows.push(floor::hazard_floor(&tree, nr_threads));
        let target = TARGETS[nr_threads.min(2) - 1];
        for &n in ns {
            let world = stage.world(n)?;
            let name = format!("pgmap: Gup::fast_leaf, n={n}, {nr_threads}T");
            let row = Row::new(name, move |worker| {
                pins(&world, worker, |random| random.next() & world.mask())
            });
            rows.push(to_f(row.target(target), nr_threads));
        }
        for &n in ns {
            rows.extend(stage.library(n)?.short_rows(&tree, nr_threads));
        }
        rows.extend(library.rows(nr_threads));
        let mut rival = |name: &str, hold: &rivals::HoldAt| {
            rows.push(to_f(rivals::row(name, nr_threads, Pick::Random, hold), nr_threads));
        };
        rival("crossbeam_epoch::pin + walk", &epoch);
        for (at, n) in ns.iter().enumerate() {
            let guard = vm_memory::guard_in(&stage.map(*n)?);
            rival(&format!("vm-memory guard, n={n}"), &guard);
            rival(&format!("arc-swap Vec + Arc, n={n}"), &arcs[at]);
            rival(&format!("RwLock<BTreeMap> + Arc, n={n}"), &locks[at]);
        }
    }
    let notes = vec![
        "a pin keeps one page from reuse; a guard keeps the whole map, an epoch everything".into(),
        "SpaceLane and AddressSpace are the library's: one file of 256 MiB mapped n times, at most \
         64 GiB in all; their floor is F over as many addresses and folios"
            .into(),
    ];
    Ok(Scenario { title: String::new(), notes, rows })
}
