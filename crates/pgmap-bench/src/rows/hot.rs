//! One folio that every thread wants, as the ring of a queue is.

use std::hint::black_box;
use std::sync::Arc;

use pgmap::mm::pfn::Pfn;

use crate::failure::Failure;
use crate::harness::{Row, Scale, Scenario, Target};
use crate::random::Random;
use crate::rivals;
use crate::rows::floor::{self, F, HOT_ADDRESS, Tree};
use crate::rows::pin::{Live, in_lane, in_thread_lane};

/// Peers.md, target D.
const TARGET: Target = Target::Ratio(0.35);

fn hot_pfn(_: &mut Random) -> Result<Pfn, Failure> {
    Pfn::new(black_box(HOT_ADDRESS) >> 12).ok_or_else(|| Failure::new("a frame number"))
}

fn own_rows(live: &Arc<Live>, nr_threads: usize) -> Vec<Row> {
    let (plain, threaded) = (Arc::clone(live), Arc::clone(live));
    let mut rows = vec![
        Row::new(format!("pgmap: hot folio, Lane::pin_under, {nr_threads}T"), move |w| {
            in_lane(&plain, w, hot_pfn)
        }),
        Row::new(format!("pgmap: hot folio, lane from a thread-local, {nr_threads}T"), move |w| {
            in_thread_lane(&threaded, w, hot_pfn)
        }),
    ];
    if nr_threads == 2 {
        rows = rows.into_iter().map(|row| row.target(TARGET)).collect();
    }
    rows.into_iter().map(|row| row.on_threads(nr_threads).against(F[nr_threads - 1])).collect()
}

/// The scenario.
pub fn scenario(scale: Scale) -> Result<Scenario, Failure> {
    let tree = Tree::new()?;
    let live = Live::new()?;
    let mut rows = Vec::new();
    for nr_threads in [1, 2] {
        rows.push(floor::floor(&tree, nr_threads));
        rows.extend(floor::hot_floors(&tree, nr_threads));
        rows.extend(own_rows(&live, nr_threads));
        let rivals = rivals::hot_rows(scale, nr_threads)?;
        rows.extend(rivals.into_iter().map(|row| row.against(F[nr_threads - 1])));
    }
    let notes =
        vec!["F is at random addresses, as in peers.md; all other rows at one folio".into()];
    Ok(Scenario { title: "hot folio".into(), notes, rows })
}
