//! Long-term pins: counted per folio in the client's own ledger.

use std::hint::black_box;
use std::sync::Arc;

use pgmap::mm::ledger::Agent;
use pgmap::mm::level::Level;
use pgmap::mm::pfn::{Pfn, PfnRange};
use pgmap::mm::pin::ClientSide;

use crate::failure::Failure;
use crate::harness::{Done, Row, Scale, Scenario, Target, Worker};
use crate::random::Random;
use crate::rows::SPACE_BYTES;
use crate::rows::floor::{self, F, HOT_ADDRESS, Tree};
use crate::rows::pin::{Live, life_of_folio, refused};

/// Peers.md, target C; and D for the hot folio with two threads.
const DISTINCT: Target = Target::Ratio(1.25);
const HOT: Target = Target::Ratio(1.7);

#[inline(always)]
fn pins(
    live: &Live,
    worker: Worker,
    address: impl Fn(&mut Random) -> u64,
) -> Result<Done, Failure> {
    let Worker { nr_ops, mut random, .. } = worker;
    let pinner = &live.member.pinner;
    let vmemmap = pinner.side().vmemmap();
    let mut held = 0;
    for _ in 0..nr_ops {
        let pfn = Pfn::new(address(&mut random) >> 12);
        let Some(pfn) = pfn else { continue };
        let Some(life) = life_of_folio(vmemmap, pfn) else { continue };
        let run = PfnRange::folio(pfn, Level::Pmd);
        let pin = pinner.pin_longterm_under(life, run, Level::Pmd, Agent::Cpu).map_err(refused)?;
        held += u64::from(black_box(pin.run().start()) < SPACE_BYTES >> 12);
    }
    Ok(Done::ops(held))
}

/// The scenario.
pub fn scenario(_: Scale) -> Result<Scenario, Failure> {
    let tree = Tree::new()?;
    let live = Live::new()?;
    let mut rows = Vec::new();
    for nr_threads in [1, 2] {
        let (random, hot) = (Arc::clone(&live), Arc::clone(&live));
        rows.push(floor::floor(&tree, nr_threads));
        let row = Row::new(format!("pgmap: pin_longterm_under, random folio, {nr_threads}T"), {
            move |worker| pins(&random, worker, |random| random.next() & (SPACE_BYTES - 1))
        });
        rows.push(row.target(DISTINCT).on_threads(nr_threads).against(F[nr_threads - 1]));
        let row = Row::new(format!("pgmap: pin_longterm_under, hot folio, {nr_threads}T"), {
            move |worker| pins(&hot, worker, |_| black_box(HOT_ADDRESS))
        });
        rows.push(row.target(HOT).on_threads(nr_threads).against(F[nr_threads - 1]));
    }
    let notes = vec!["the rivals' counted references are in `short pin` and `hot folio`".into()];
    Ok(Scenario { title: "long pin".into(), notes, rows })
}
