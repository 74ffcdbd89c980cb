//! G: ending one translation and making it again, as an update of a guest's memory map does.

use std::hint::black_box;
use std::sync::Arc;

use pgmap::mm::level::Level;
use pgmap::mm::mm::{MapRequest, Placed};
use pgmap::mm::prot::Access;

use super::Stage;
use super::world::World;
use crate::failure::Failure;
use crate::harness::{Done, Row, Scenario, Target, Worker};
use crate::random::Random;
use crate::rivals::{Change, arc_swap, rw_lock, vm_memory};
use crate::rows::floor;

const LEAF_BYTES: u64 = Level::Pmd.size_bytes();
const MOST_NS: f64 = 100.0;
const FLAT: f64 = 1.2;

/// Where a request maps to.
fn address_of(request: &MapRequest) -> u64 {
    match request.place {
        Placed::At(address) | Placed::Over(address) => address,
        Placed::Anywhere => 0,
    }
}

/// Maps a random leaf over itself, filled at once: cleared and set under one lock.
pub fn map_over(world: &World, random: &mut Random) -> Result<(), Failure> {
    let request = world.remap(random)?;
    black_box(world.mm.map(request)?);
    Ok(())
}

/// Unmaps a random leaf, maps it and faults it in: three calls.
fn unmap_map_fault(world: &World, random: &mut Random) -> Result<(), Failure> {
    let request = world.remap(random)?;
    let address = address_of(request);
    let ended = world.mm.unmap(address, LEAF_BYTES)?;
    if ended.nr_pages != Level::Pmd.nr_pages() {
        return Err(Failure::new(format!("{} pages were unmapped", ended.nr_pages)));
    }
    drop(ended);
    world.mm.map(request)?;
    black_box(world.mm.fault(address, Access::Read)?);
    Ok(())
}

/// Changes again and again; afterwards every address is mapped as before.
fn changes(
    worker: Worker,
    change: impl Fn(&mut Random) -> Result<(), Failure>,
) -> Result<Done, Failure> {
    let Worker { nr_ops, mut random, .. } = worker;
    for _ in 0..nr_ops {
        change(&mut random)?;
    }
    Ok(Done::ops(nr_ops))
}

fn rival(name: String, change: &Change) -> Row {
    let change = Arc::clone(change);
    Row::new(name, move |worker| changes(worker, |random| change(random)))
}

/// The scenario.
pub fn scenario(stage: &mut Stage) -> Result<Scenario, Failure> {
    let tree = stage.tree()?;
    let base = format!("pgmap: map over, filled, n={}", stage.many_regions()[0]);
    let base3 = format!("pgmap: unmap + map + fault, n={}", stage.many_regions()[0]);
    let mut rows = vec![floor::store_floor(&tree).against(&base)];
    for (at, &n) in stage.many_regions().iter().enumerate() {
        let target =
            if at == 0 { Target::Nanoseconds(MOST_NS) } else { Target::Both(MOST_NS, FLAT) };
        let world = stage.world(n)?;
        let (over, apart) = (Arc::clone(&world), world);
        let row = Row::new(format!("pgmap: map over, filled, n={n}"), move |worker| {
            let done = changes(worker, |random| map_over(&over, random));
            check(&over).and(done)
        });
        rows.push(row.target(target).against(&base));
        let row = Row::new(format!("pgmap: unmap + map + fault, n={n}"), move |worker| {
            let done = changes(worker, |random| unmap_map_fault(&apart, random));
            check(&apart).and(done)
        });
        rows.push(row.against(&base3));
    }
    for &n in stage.many_regions() {
        let map = stage.map(n)?;
        let vm = vm_memory::rival(&map, n).change;
        rows.push(rival(format!("vm-memory remove + insert region, n={n}"), &vm).against(&base));
        let lock = rw_lock::rival(n).change;
        rows.push(rival(format!("RwLock<BTreeMap> remove + insert, n={n}"), &lock).against(&base));
        let arc = arc_swap::rival(n).change;
        rows.push(rival(format!("arc-swap Vec copy + swap, n={n}"), &arc).against(&base));
    }
    let notes = vec![
        "a random one of n regions; here its first 2 MiB, for the others an entry of their map"
            .into(),
        "the space has 2 n areas: a region's first 2 MiB are one, its rest another".into(),
    ];
    Ok(Scenario { title: String::new(), notes, rows })
}

/// Every first leaf is there.
fn check(world: &World) -> Result<(), Failure> {
    let mut random = Random::new(1);
    for _ in 0..16 {
        let address = address_of(world.remap(&mut random)?);
        if world.mm.translate(address).map(|found| found.level) != Some(Level::Pmd) {
            return Err(Failure::new(format!("{address:#x} is not mapped any more")));
        }
    }
    Ok(())
}
