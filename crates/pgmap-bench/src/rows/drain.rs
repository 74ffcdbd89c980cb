//! Draining one idle folio: mark it, heavy barrier, scan the ledgers, free it.

use std::hint::black_box;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pgmap::mm::barrier::HeavyBarrier;
use pgmap::mm::descriptor::FolioState;
use pgmap::mm::drain::Drain;
use pgmap::mm::folio::Sizing;
use pgmap::mm::ledger::Agent;
use pgmap::mm::level::Level;
use pgmap::mm::runs::SortedRuns;

use crate::children::{Other, Role};
use crate::failure::Failure;
use crate::harness::{Done, Row, Scale, Scenario, Worker};
use crate::rows::SPACE_BYTES;
use crate::space::{Member, Space};

const HEAVY: &str = "heavy barrier alone";
/// Folios made at a time, before their drains are measured.
const BATCH: u64 = 4096;

struct Drained {
    space: Space,
    members: Vec<Member>,
}

impl Drained {
    /// A space whose `nr_members` clients each hold one folio and have used one lane.
    fn new(nr_members: usize) -> Result<Self, Failure> {
        let mut space = Space::new(SPACE_BYTES)?;
        let mut members = Vec::new();
        for _ in 0..nr_members {
            let member = space.member()?;
            let extents = space.publish(Level::Pmd.nr_pages(), Sizing::Fixed(Level::Pmd))?;
            let lane = member.pinner.lane()?;
            for extent in &extents {
                // Stays in the ledger: a client that holds something else than what is drained.
                std::mem::forget(lane.pin(extent, extent.run, Agent::Cpu)?);
            }
            // Keeps the lane, as a thread that goes on would.
            std::mem::forget(lane);
            members.push(member);
        }
        let drained = Self { space, members };
        drained.prove_that_a_held_folio_is_not_idle()?;
        Ok(drained)
    }

    fn prove_that_a_held_folio_is_not_idle(&self) -> Result<(), Failure> {
        for member in &self.members {
            let runs = member.reader.all_holds().iter().map(|hold| hold.run).collect();
            let drain = Drain::start(runs, &self.space.barrier, [(member.id, &member.reader)]);
            if drain.is_idle() {
                return Err(Failure::new("a held folio counts as idle"));
            }
        }
        Ok(())
    }

    fn drains(&mut self, nr_ops: u64) -> Result<Done, Failure> {
        let Self { space, members } = self;
        let mut spent = Duration::ZERO;
        let mut freed = 0;
        while freed < nr_ops {
            let mut folios = Vec::new();
            for _ in 0..(nr_ops - freed).min(BATCH) {
                folios.extend(space.publish(Level::Pmd.nr_pages(), Sizing::Fixed(Level::Pmd))?);
            }
            let start = Instant::now();
            for extent in &folios {
                space.folios.change(extent.run, |word| word.in_state(FolioState::Dying));
                let ledgers = members.iter().map(|member| (member.id, &member.reader));
                let runs = SortedRuns::new(vec![extent.run]);
                let drain = Drain::start(runs, &space.barrier, ledgers);
                if black_box(drain.is_idle()) {
                    space.folios.free(extent.run);
                    freed += 1;
                }
            }
            spent += start.elapsed();
        }
        Ok(Done::timed(freed, spent))
    }
}

/// Runs `path` while the other process runs, and stops that afterwards.
fn beside<T>(other: &Other, path: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    other.go_on()?;
    let result = path();
    other.stop()?;
    result
}

fn heavy(space: &Space, worker: &Worker) -> Done {
    let start = Instant::now();
    for _ in 0..worker.nr_ops {
        black_box(space.barrier.heavy());
    }
    Done::timed(worker.nr_ops, start.elapsed())
}

/// The scenario.
pub fn scenario(_: Scale) -> Result<Scenario, Failure> {
    let other = Arc::new(Other::start(&Role::Spin, "spin")?);
    other.stop()?;
    let spaces = [Space::new(SPACE_BYTES)?, Space::new(SPACE_BYTES)?];
    let [quiet, busy] = spaces.map(Arc::new);
    let beside_other = Arc::clone(&other);
    let mut rows = vec![
        Row::new(HEAVY, move |worker| Ok(heavy(&quiet, &worker))),
        Row::new("heavy barrier alone, another process runs on the other CPU", move |worker| {
            beside(&beside_other, || Ok(heavy(&busy, &worker)))
        })
        .against(HEAVY),
    ];
    for nr_members in [1, 8] {
        let drained = Arc::new(Mutex::new(Drained::new(nr_members)?));
        let (quiet, busy, other) = (Arc::clone(&drained), drained, Arc::clone(&other));
        let drains = |drained: &Mutex<Drained>, nr_ops| {
            drained.lock().unwrap_or_else(PoisonError::into_inner).drains(nr_ops)
        };
        let name = format!("pgmap: drain one idle folio, {nr_members} ledgers");
        rows.push(Row::new(&name, move |worker| drains(&quiet, worker.nr_ops)).against(HEAVY));
        let name = format!("{name}, another process runs");
        rows.push(
            Row::new(name, move |worker| beside(&other, || drains(&busy, worker.nr_ops)))
                .against(HEAVY),
        );
    }
    let notes = vec![
        "mark Dying + heavy barrier + scan + free; each ledger has one lane and holds another folio"
            .into(),
        "the other process is registered for membarrier, spins, and is stopped in the other rows"
            .into(),
    ];
    Ok(Scenario { title: "drain".into(), notes, rows })
}
