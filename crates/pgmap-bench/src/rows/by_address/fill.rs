//! J: mapping and filling 1 TiB by 2 MiB leaves.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pgmap::mm::level::Level;
use pgmap::mm::mm::{MapRequest, Mm};
use pgmap::space::TABLE_MEMORY;

use super::{Stage, world};
use crate::failure::Failure;
use crate::harness::{Done, Row, Scenario, Target};
use crate::space::Space;

const TARGET: Target = Target::Nanoseconds(10e6);
const FLOOR: &str = "floor: one store a leaf";
const MOST_OPS: u64 = 64;

/// The scenario.
pub fn scenario(stage: &mut Stage) -> Result<Scenario, Failure> {
    let bytes: u64 = stage.scale.pick(1 << 40, 1 << 34);
    let nr_gib = bytes >> 30;
    let mut space = Space::new(bytes)?;
    let mut files = Vec::new();
    for _ in 0..nr_gib {
        files.push(world::file(&mut space, 1 << 30, Level::Pmd)?);
    }
    let requests: Vec<MapRequest> = files
        .into_iter()
        .enumerate()
        .map(|(at, file)| MapRequest::new(file, 1 << 30).at((at as u64) << 30).filled())
        .collect();
    let layout = *space.layout();
    // The space's descriptors are the files' life words.
    let space = Arc::new(space);
    let own = Row::new(format!("pgmap: Mm::map, filled, {nr_gib} files of 1 GiB"), move |worker| {
        let _alive = Arc::clone(&space);
        let mut spent = Duration::ZERO;
        let mut nr_filled = 0;
        for _ in 0..worker.nr_ops {
            let start = Instant::now();
            let mm = Mm::for_device_in(TABLE_MEMORY, &layout, 0, bytes);
            let mm = mm.ok_or_else(|| Failure::new("no such address space"))?;
            for request in &requests {
                mm.map(request)?;
            }
            spent += start.elapsed();
            let last = mm.translate(bytes - 1).map(|found| found.level);
            nr_filled += u64::from(last == Some(Level::Pmd));
        }
        Ok(Done::timed(nr_filled, spent))
    });
    let words = Mutex::new(vec![0_u64; (bytes >> 21) as usize]);
    let floor = Row::new(FLOOR, move |worker| {
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        for turn in 0..worker.nr_ops {
            for (at, word) in words.iter_mut().enumerate() {
                *word = std::hint::black_box(at as u64 + turn);
            }
        }
        Ok(Done::ops(worker.nr_ops))
    });
    let own = own.at_most(MOST_OPS).target(TARGET).against(FLOOR);
    let notes = vec!["a new address space each time; times are for all of it".into()];
    Ok(Scenario { title: String::new(), notes, rows: vec![floor, own] })
}
