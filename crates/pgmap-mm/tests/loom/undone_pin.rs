//! *Undone pin against drain*: a drain that saw the slot of a pin that then failed gets a bell too.

use loom::thread;
use pgmap_mm::error::PinError;
use pgmap_mm::ledger::{Agent, MAX_COUNT};
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::pin::Lane;
use pgmap_mm::sync::Ordering;
use pgmap_mm::words::WriteCounts;

use crate::support::{Client, World, count_of, explore, extent, folio};

#[test]
fn loom_a_drain_that_saw_a_failing_pin_hears_that_it_is_undone() {
    explore(|| {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        let parts = pinner.lane().unwrap().into_parts();
        world.kill(0);

        let loser = thread::spawn(move || {
            let lane = Lane::from_parts(&pinner, parts).unwrap();
            let refused = lane.pin(&extent(0), extent(0).run, Agent::Cpu);
            assert!(matches!(refused, Err(PinError::Changed { .. })), "{refused:?}");
        });
        world.drain(&[0], &[&reader]);
        loser.join().unwrap();
    });
}

/// The run covers two folios under the life word of the first; only the second is drained.
#[test]
fn loom_an_undone_pin_rings_for_every_folio_of_its_run() {
    explore(|| {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        let parts = pinner.lane().unwrap().into_parts();
        let run = PfnRange::new(0, folio(0).nr_pages() + folio(1).nr_pages()).unwrap();
        let mut both = extent(0);
        both.run = run;
        world.kill(0);

        let loser = thread::spawn(move || {
            let lane = Lane::from_parts(&pinner, parts).unwrap();
            let refused = lane.pin(&both, run, Agent::Cpu);
            assert!(matches!(refused, Err(PinError::Changed { .. })), "{refused:?}");
        });
        world.drain(&[1], &[&reader]);
        loser.join().unwrap();
    });
}

#[test]
fn loom_a_drain_that_saw_a_failing_longterm_pin_hears_that_it_is_undone() {
    explore(|| {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        world.kill(0);

        let loser = thread::spawn(move || {
            let refused = pinner.pin_longterm(&extent(0), extent(0).run, Agent::Cpu);
            assert!(matches!(refused, Err(PinError::Changed { .. })), "{refused:?}");
        });
        world.drain(&[0], &[&reader]);
        loser.join().unwrap();
    });
}

/// The pin adds to the first folio's count, finds the second folio's full, and takes back what it
/// added. A drain of the first folio may have seen that.
#[test]
fn loom_a_longterm_pin_that_finds_a_count_full_rings_for_what_it_takes_back() {
    explore(|| {
        let world = World::new();
        let Client { pinner, reader, counts } = world.client(1, 1, 1);
        counts.fetch_add(count_of(1), MAX_COUNT, Ordering::Relaxed);
        let run = PfnRange::new(0, folio(0).nr_pages() + folio(1).nr_pages()).unwrap();
        let mut both = extent(0);
        both.run = run;
        world.kill(0);

        let loser = thread::spawn(move || {
            let refused = pinner.pin_longterm(&both, run, Agent::Cpu).map(drop);
            assert_eq!(refused, Err(PinError::CountFull { run: folio(1) }));
        });
        world.drain(&[0], &[&reader]);
        loser.join().unwrap();
    });
}
