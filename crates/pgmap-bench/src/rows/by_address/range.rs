//! E: ranges of 2 MiB and of 1 GiB in one call.

use std::hint::black_box;
use std::sync::Arc;

use pgmap::ProcessSide;
use pgmap::mm::gup::{Gup, GupFlags};
use pgmap::mm::level::{Level, PAGE_BYTES};

use super::Stage;
use super::world::{Cut, Shape, World, not_held};
use crate::failure::Failure;
use crate::harness::{Done, Row, Scenario, Target, Worker};
use crate::rivals::vm_memory;
use crate::rows::{SPACE_BYTES, floor};

const MIB2: u64 = Level::Pmd.size_bytes();
const GIB: u64 = Level::Pud.size_bytes();

/// What both folios of 2 MiB across a boundary, all 512 of a GiB, and a GiB in one folio cost.
const FLOOR_2M: &str = "floor: 2 MiB range";
const FLOOR_1G: &str = "floor: 1 GiB range";
const FLOOR_GIANT: &str = "floor: 1 GiB leaf";

/// Holds a range from a random multiple of `align` on: how many pages it held of those asked.
fn row(
    name: &str,
    world: &Arc<World>,
    (len, align): (u64, u64),
    hold: impl Fn(&Gup<'_, '_, ProcessSide>, u64, u64) -> Option<u64> + Send + Sync + 'static,
) -> Row {
    let world = Arc::clone(world);
    Row::new(name, move |worker| {
        let Worker { nr_ops, mut random, .. } = worker;
        let lane = world.lane()?;
        let gup = world.gup(&lane)?;
        let nr_pages = len / PAGE_BYTES;
        let mut held = 0;
        for _ in 0..nr_ops {
            let address = random.below(SPACE_BYTES - len + 1) & !(align - 1);
            let found = hold(&gup, address, nr_pages).ok_or_else(not_held)?;
            held += u64::from(black_box(found) == nr_pages);
        }
        Ok(Done::ops(held))
    })
}

/// The scenario.
pub fn scenario(stage: &mut Stage) -> Result<Scenario, Failure> {
    let tree = stage.tree()?;
    let shape = |leaf, nr_regions| Shape { bytes: SPACE_BYTES, leaf, nr_regions, cut: Cut::Whole };
    // One extent, so that a range of any start is one run.
    let one = stage.world_of(shape(Level::Pmd, 1))?;
    let giant = stage.world_of(shape(Level::Pud, 64))?;
    let (small, large) = ((MIB2, PAGE_BYTES), (GIB, GIB));
    let mut rows = vec![
        floor::held_range(&tree, FLOOR_2M, MIB2, PAGE_BYTES),
        floor::held_range(&tree, FLOOR_1G, GIB, GIB),
        floor::giant_floor(FLOOR_GIANT),
        row("pgmap: 2 MiB range, fast_run", &one, small, |gup, address, nr| {
            gup.fast_run(address, nr, GupFlags::NONE).map(|held| held.run().nr_pages())
        })
        .target(Target::Ratio(1.25))
        .against(FLOOR_2M),
        row("pgmap: 2 MiB range, Gup::pin", &one, small, |gup, address, nr| {
            gup.pin(address, nr, GupFlags::NONE).ok().map(|held| held.nr_pages())
        })
        .against(FLOOR_2M),
        row("pgmap: 1 GiB of 2 MiB folios, fast_run_long", &one, large, |gup, address, nr| {
            gup.fast_run_long(address, nr, GupFlags::NONE).map(|held| held.run().nr_pages())
        })
        .target(Target::Ratio(1.25))
        .against(FLOOR_1G),
        row("pgmap: 1 GiB of 2 MiB leaves, fast_run", &one, large, |gup, address, nr| {
            gup.fast_run(address, nr, GupFlags::NONE).map(|held| held.run().nr_pages())
        })
        .target(Target::Nanoseconds(10.0))
        .against(FLOOR_1G),
        row("pgmap: 1 GiB of one folio, fast_leaf", &giant, large, |gup, address, nr| {
            gup.fast_leaf(address, nr, GupFlags::NONE).map(|held| held.run().nr_pages())
        })
        .target(Target::Ratio(2.0))
        .against(FLOOR_GIANT),
        row("pgmap: 1 GiB of one folio, fast_leaf_long", &giant, large, |gup, address, nr| {
            gup.fast_leaf_long(address, nr, GupFlags::NONE).map(|held| held.run().nr_pages())
        })
        .target(Target::Ratio(2.0))
        .against(FLOOR_GIANT),
    ];
    for &n in stage.regions() {
        let map = stage.map(n)?;
        let name = format!("vm-memory guard + get_slices of 2 MiB, n={n}");
        rows.push(vm_memory::range_row(&name, &map, MIB2, PAGE_BYTES).against(FLOOR_2M));
        let name = format!("vm-memory guard + get_slices of 1 GiB, n={n}");
        rows.push(vm_memory::range_row(&name, &map, GIB, GIB).against(FLOOR_1G));
    }
    let notes = vec![
        "the floors walk, fetch_add and look again for each folio, then fetch_sub each".into(),
        "2 MiB ranges start at any page and so lie in two folios; 1 GiB ranges are aligned".into(),
        "one extent of 64 GiB; the 1 GiB folio is a file of its own".into(),
    ];
    Ok(Scenario { title: String::new(), notes, rows })
}
