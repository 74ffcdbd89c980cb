//! *Unpin against drain*: either the scan sees the cleared slot or the unpin rings. A lost bell is a
//! deadlock, and loom says so.

use std::sync::Arc;

use loom::thread;
use pgmap_mm::ledger::Agent;

use crate::support::{Client, Frame, World, explore, extent, leak};

#[test]
fn loom_a_drain_that_found_a_hold_hears_it_end() {
    explore(|| {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        let frame = Frame::new(0);
        let pinner = leak(pinner);
        let pin = pinner.lane().unwrap().pin(&extent(0), extent(0).run, Agent::Cpu).unwrap();

        let holder = {
            let frame = Arc::clone(&frame);
            thread::spawn(move || {
                frame.use_while_held();
                drop(pin);
            })
        };
        world.kill(0);
        world.drain(&[0], &[&reader]);
        frame.reuse();
        holder.join().unwrap();
    });
}

#[test]
fn loom_a_pin_whose_agent_changes_is_never_seen_empty() {
    explore(|| {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        let frame = Frame::new(0);
        let pinner = leak(pinner);
        let pin = pinner.lane().unwrap().pin(&extent(0), extent(0).run, Agent::Cpu).unwrap();

        let holder = {
            let frame = Arc::clone(&frame);
            thread::spawn(move || {
                pin.set_agent(Agent::Device);
                frame.use_while_held();
                pin.set_agent(Agent::Cpu);
                drop(pin);
            })
        };
        world.kill(0);
        world.drain(&[0], &[&reader]);
        frame.reuse();
        holder.join().unwrap();
    });
}
