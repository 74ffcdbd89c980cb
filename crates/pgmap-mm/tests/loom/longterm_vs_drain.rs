//! *Long-term count against drain*, the touched bits included.

use std::sync::Arc;

use loom::thread;
use pgmap_mm::error::PinError;
use pgmap_mm::ledger::Agent;
use pgmap_mm::pin::Pinner;

use crate::support::{Client, Frame, Side, World, explore, explore_up_to, extent, leak};

fn pin_and_use(pinner: &Pinner<Side>, frame: &Frame) {
    match pinner.pin_longterm(&extent(0), extent(0).run, Agent::Cpu) {
        Ok(_pin) => frame.use_while_held(),
        Err(PinError::Changed { .. }) => {}
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn loom_a_longterm_pin_and_a_drain_never_both_win() {
    explore(|| {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        let frame = Frame::new(0);
        let holder = {
            let frame = Arc::clone(&frame);
            thread::spawn(move || pin_and_use(&pinner, &frame))
        };
        world.kill(0);
        world.drain(&[0], &[&reader]);
        frame.reuse();
        holder.join().unwrap();
    });
}

/// The thread that finds the bit set already has not set it itself, and yet a scan that must see
/// its count must see the bit.
#[test]
fn loom_a_touched_bit_set_by_another_thread_is_seen_with_the_count() {
    explore_up_to(3, || {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        let frame = Frame::new(0);
        let holders = [(); 2].map(|()| {
            let (pinner, frame) = (Arc::clone(&pinner), Arc::clone(&frame));
            thread::spawn(move || pin_and_use(&pinner, &frame))
        });
        world.kill(0);
        world.drain(&[0], &[&reader]);
        frame.reuse();
        for holder in holders {
            holder.join().unwrap();
        }
    });
}

#[test]
fn loom_a_drain_hears_the_last_of_two_counts_end() {
    explore_up_to(3, || {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        let frame = Frame::new(0);
        let pinner = leak(pinner);
        let holders = [Agent::Cpu, Agent::Device].map(|agent| {
            let pin = pinner.pin_longterm(&extent(0), extent(0).run, agent).unwrap();
            let frame = Arc::clone(&frame);
            thread::spawn(move || {
                frame.use_while_held();
                drop(pin);
            })
        });
        world.kill(0);
        world.drain(&[0], &[&reader]);
        frame.reuse();
        for holder in holders {
            holder.join().unwrap();
        }
    });
}
