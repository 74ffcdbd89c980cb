//! *Pin against drain*: either the scan sees the slot or the pin sees the changed life word.

use std::sync::Arc;

use loom::thread;
use pgmap_mm::error::PinError;
use pgmap_mm::ledger::Agent;
use pgmap_mm::pin::{ClientSide, Lane};

use crate::support::{Client, Frame, World, explore, extent, extent_in_life};

#[test]
fn loom_a_pin_and_a_drain_of_one_folio_never_both_win() {
    explore(|| {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        let frame = Frame::new(0);
        let parts = pinner.lane().unwrap().into_parts();

        let holder = {
            let frame = Arc::clone(&frame);
            thread::spawn(move || {
                let lane = Lane::from_parts(&pinner, parts).unwrap();
                match lane.pin(&extent(0), extent(0).run, Agent::Cpu) {
                    Ok(pin) => {
                        frame.use_while_held();
                        drop(pin);
                    }
                    Err(PinError::Changed { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            })
        };
        world.kill(0);
        world.drain(&[0], &[&reader]);
        frame.reuse();
        holder.join().unwrap();
    });
}

#[test]
fn loom_a_pin_taken_again_and_again_never_meets_a_reused_frame() {
    explore(|| {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        let frame = Frame::new(0);
        let parts = pinner.lane().unwrap().into_parts();

        let holder = {
            let frame = Arc::clone(&frame);
            thread::spawn(move || {
                let lane = Lane::from_parts(&pinner, parts).unwrap();
                let mut was_refused = false;
                for _ in 0..2 {
                    match lane.pin(&extent(0), extent(0).run, Agent::Cpu) {
                        Ok(_pin) => {
                            assert!(!was_refused, "pinned after the life word was seen changed");
                            frame.use_while_held();
                        }
                        Err(PinError::Changed { .. }) => was_refused = true,
                        Err(other) => panic!("{other}"),
                    }
                }
            })
        };
        world.kill(0);
        world.drain(&[0], &[&reader]);
        frame.reuse();
        holder.join().unwrap();
    });
}

/// Whoever got the new life word by other means than the index sees the publisher's bytes.
#[test]
fn loom_a_pin_under_a_published_life_word_sees_the_publishers_bytes() {
    explore(|| {
        let world = World::new();
        let Client { pinner, .. } = world.client(1, 1, 1);
        let frame = Frame::new(0);
        let parts = pinner.lane().unwrap().into_parts();

        let holder = {
            let frame = Arc::clone(&frame);
            thread::spawn(move || {
                let lane = Lane::from_parts(&pinner, parts).unwrap();
                let told = extent_in_life(0, 2);
                if let Ok(_pin) = lane.pin(&told, told.run, Agent::Cpu) {
                    assert_eq!(frame.read_while_held(), 2, "bytes from before the publication");
                }
            })
        };
        frame.overwrite(2);
        world.set_life(0, extent_in_life(0, 2).life);
        holder.join().unwrap();
    });
}

/// A window holds first and looks after: what it then finds as expected stays until it ends.
#[test]
fn loom_a_window_keeps_what_it_finds_alive() {
    explore(|| {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        let frame = Frame::new(0);
        let parts = pinner.lane().unwrap().into_parts();

        let holder = {
            let frame = Arc::clone(&frame);
            thread::spawn(move || {
                let lane = Lane::from_parts(&pinner, parts).unwrap();
                let told = extent(0);
                let _window = lane.pin_window(told.run, Agent::Cpu).unwrap();
                let vmemmap = pinner.side().vmemmap();
                if vmemmap.load(told.head_level, told.first()) == Some(told.life) {
                    frame.use_while_held();
                }
            })
        };
        world.kill(0);
        world.drain(&[0], &[&reader]);
        frame.reuse();
        holder.join().unwrap();
    });
}
