//! Two clients pin one folio while the owner drains it: their slots never meet.

use std::sync::Arc;

use loom::thread;
use pgmap_mm::error::PinError;
use pgmap_mm::ledger::Agent;
use pgmap_mm::pin::Lane;

use crate::support::{Client, Frame, World, explore_up_to, extent};

#[test]
fn loom_a_drain_waits_for_each_of_two_clients() {
    explore_up_to(3, || {
        let world = World::new();
        let frame = Frame::new(0);
        let mut readers = Vec::new();
        let mut holders = Vec::new();
        for identity in 1..=2 {
            let Client { pinner, reader, .. } = world.client(identity, 1, 1);
            readers.push(reader);
            let parts = pinner.lane().unwrap().into_parts();
            let frame = Arc::clone(&frame);
            holders.push(thread::spawn(move || {
                let lane = Lane::from_parts(&pinner, parts).unwrap();
                match lane.pin(&extent(0), extent(0).run, Agent::Cpu) {
                    Ok(_pin) => frame.use_while_held(),
                    Err(PinError::Changed { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }));
        }
        world.kill(0);
        world.drain(&[0], &readers.iter().collect::<Vec<_>>());
        frame.reuse();
        for holder in holders {
            holder.join().unwrap();
        }
    });
}
