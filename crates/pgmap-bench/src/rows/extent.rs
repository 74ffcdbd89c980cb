//! A pin of 1 GiB in 512 folios: one slot for the run, beside a pin of one of its folios.

use std::hint::black_box;
use std::sync::Arc;

use pgmap::mm::ledger::Agent;
use pgmap::mm::level::Level;

use crate::failure::Failure;
use crate::harness::{Done, Row, Scale, Scenario, Target, Worker};
use crate::rivals;
use crate::rows::floor::{self, Tree};
use crate::rows::pin::Live;

const FOLIO: &str = "pgmap: one 2 MiB folio of an extent";
/// Issue 2: an extent pin no more expensive than this many folio pins.
const TARGET: Target = Target::Ratio(1.3);

/// Pins `nr_pages` of a random extent, from its start.
#[inline(always)]
fn pins(live: &Live, mut worker: Worker, nr_pages: u64) -> Result<Done, Failure> {
    let lane = live.member.pinner.lane()?;
    let mut held = 0;
    for _ in 0..worker.nr_ops {
        let extent = &live.extents[worker.random.below(live.extents.len() as u64) as usize];
        let run = extent.run.sub_run(0, nr_pages).ok_or_else(|| Failure::new("a short extent"))?;
        let pin = lane.pin(extent, run, Agent::Cpu)?;
        held += u64::from(black_box(pin.run().nr_pages()) == nr_pages);
    }
    Ok(Done::ops(held))
}

/// The scenario.
pub fn scenario(scale: Scale) -> Result<Scenario, Failure> {
    let tree = Tree::new()?;
    let live = Live::new()?;
    let (one, all, counted) = (Arc::clone(&live), Arc::clone(&live), Arc::clone(&live));
    let mut rows = vec![
        Row::new(FOLIO, move |worker| pins(&one, worker, Level::Pmd.nr_pages())),
        Row::new("pgmap: all 512 folios, one slot", move |worker| {
            pins(&all, worker, Level::Pud.nr_pages())
        })
        .against(FOLIO)
        .target(TARGET),
        Row::new("pgmap: all 512 folios, long-term (512 counts)", move |mut worker| {
            let mut held = 0;
            for _ in 0..worker.nr_ops {
                let at = worker.random.below(counted.extents.len() as u64) as usize;
                let extent = &counted.extents[at];
                let pin = counted.member.pinner.pin_longterm(extent, extent.run, Agent::Cpu)?;
                held += u64::from(black_box(pin.run().nr_pages()) == Level::Pud.nr_pages());
            }
            Ok(Done::ops(held))
        })
        .against(FOLIO),
        floor::range_floor(&tree).against(FOLIO),
    ];
    rows.extend(rivals::range_rows(scale)?.into_iter().map(|row| row.against(FOLIO)));
    let notes = vec!["64 extents of 1 GiB, each of 512 folios of 2 MiB; random extent".into()];
    Ok(Scenario { title: "extent".into(), notes, rows })
}
