//! Bringing up a pool of 1 TiB that takes memory on demand.

use std::time::{Duration, Instant};

use pgmap::os::{MemoryFile, PageSize, WriteMapping};
use pgmap::{Owner, Pool, PoolOptions};

use crate::failure::Failure;
use crate::harness::{Done, Row, Scale, Scenario, Target};

const TIB: u64 = 1 << 40;
const BASE: &str = "memfd of 1 TiB: create, size, map, unmap";
/// Issue 2.
const TARGET: Target = Target::Nanoseconds(10e6);

/// The scenario.
pub fn scenario(_: Scale) -> Result<Scenario, Failure> {
    let base = Row::new(BASE, |worker| {
        for _ in 0..worker.nr_ops {
            let file = MemoryFile::anonymous("bench-tebibyte", TIB, PageSize::Base)?;
            let _mapping = WriteMapping::map(&file, 0, TIB)?;
        }
        Ok(Done::ops(worker.nr_ops))
    });
    let up = Row::new("pgmap: Pool::create + Owner::start, 1 TiB", |worker| {
        let mut spent = Duration::ZERO;
        let mut bytes = 0;
        for _ in 0..worker.nr_ops {
            let start = Instant::now();
            let owner = Owner::start(Pool::create(&PoolOptions::anonymous(TIB))?)?;
            spent += start.elapsed();
            bytes += owner.info().free_bytes;
        }
        Ok(Done::timed(bytes / TIB, spent))
    });
    let up_and_down = Row::new("pgmap: the same, one client, and drop", |worker| {
        let mut bytes = 0;
        for _ in 0..worker.nr_ops {
            let owner = Owner::start(Pool::create(&PoolOptions::anonymous(TIB))?)?;
            bytes += owner.client()?.pool_bytes();
        }
        Ok(Done::ops(bytes / TIB))
    });
    let rows = vec![
        base,
        up.against(BASE).target(TARGET).at_most(64),
        up_and_down.against(BASE).target(TARGET).at_most(64),
    ];
    let notes = vec!["anonymous and sparse; times are per pool".into()];
    Ok(Scenario { title: "bring-up".into(), notes, rows })
}
