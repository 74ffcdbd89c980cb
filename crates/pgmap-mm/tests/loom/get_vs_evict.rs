//! *Get against evict*: a file is shut, its holders are looked for, and it is opened again or goes.
//! A pin that was taken is never of a file that went, and one that was refused is of a file that is
//! gone or can be pinned again.

use std::sync::Arc;

use loom::thread;
use pgmap_mm::barrier::PortableBarrier;
use pgmap_mm::drain::{ClientId, Drain};
use pgmap_mm::error::PinError;
use pgmap_mm::ledger::Agent;
use pgmap_mm::pin::{ClientSide, Lane};

use crate::support::{Client, Frame, Reader, World, explore, explore_up_to, extent, folio};

/// Evicts folio 0 unless `reader` holds it; says whether it went.
fn evict(world: &World, reader: &Reader, frame: &Frame) -> bool {
    world.kill(0);
    let runs = [folio(0)].into_iter().collect();
    let drain = Drain::start(runs, &PortableBarrier, [(ClientId(0), reader)]);
    if !drain.is_idle() {
        world.set_life(0, extent(0).life);
        return false;
    }
    frame.reuse();
    true
}

fn hold<S: ClientSide>(lane: &Lane<'_, S>, frame: &Frame) -> bool {
    match lane.pin(&extent(0), extent(0).run, Agent::Cpu) {
        Ok(_pin) => {
            frame.use_while_held();
            true
        }
        Err(PinError::Changed { .. }) => false,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn loom_a_get_and_an_eviction_never_both_win() {
    explore(|| {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        let frame = Frame::new(0);
        let parts = pinner.lane().unwrap().into_parts();
        let holder = {
            let (frame, pinner) = (Arc::clone(&frame), Arc::clone(&pinner));
            thread::spawn(move || {
                let lane = Lane::from_parts(&pinner, parts).unwrap();
                let was_held = hold(&lane, &frame);
                (was_held, lane.into_parts())
            })
        };
        let has_gone = evict(&world, &reader, &frame);
        let (_, parts) = holder.join().unwrap();
        // The owner is asked, and answers when it has decided.
        let lane = Lane::from_parts(&pinner, parts).unwrap();
        assert_eq!(hold(&lane, &frame), !has_gone, "a file that stayed can be held");
    });
}

/// A file that was shut and opened again has its old life word: what was held meanwhile is found
/// when it is shut the next time.
#[test]
fn loom_a_second_eviction_finds_who_held_the_file_during_the_first() {
    explore_up_to(4, || {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 2);
        let frame = Frame::new(0);
        let parts = pinner.lane().unwrap().into_parts();
        let holder = {
            let frame = Arc::clone(&frame);
            thread::spawn(move || {
                let lane = Lane::from_parts(&pinner, parts).unwrap();
                for _ in 0..2 {
                    hold(&lane, &frame);
                }
            })
        };
        if !evict(&world, &reader, &frame) {
            evict(&world, &reader, &frame);
        }
        holder.join().unwrap();
    });
}
