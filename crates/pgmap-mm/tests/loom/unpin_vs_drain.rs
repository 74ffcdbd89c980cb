//! *Unpin against drain*: either the scan sees the cleared slot or the unpin rings. A lost bell is
//! a deadlock, and loom says so.

use std::sync::Arc;

use loom::thread;
use pgmap_mm::extent::Extent;
use pgmap_mm::ledger::Agent;
use pgmap_mm::level::Level;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::pin::Pin;

use crate::support::{Client, Frame, World, explore, explore_up_to, extent, folio, leak};

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

/// A pin of two folios is narrowed to the second while the first is drained: that drain ends
/// although the pin is there still.
#[test]
fn loom_a_drain_hears_that_a_pin_was_narrowed() {
    explore_up_to(3, || {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        let frames = [Frame::new(0), Frame::new(0)];
        let pinner = leak(pinner);
        let both = PfnRange::new(0, folio(0).nr_pages() * 2).unwrap();
        let extent = Extent::new(both, Level::Pmd, extent(0).life).unwrap();
        let pin = pinner.lane().unwrap().pin(&extent, both, Agent::Cpu).unwrap();

        let holder = {
            let frames = frames.clone();
            thread::spawn(move || {
                frames[0].use_while_held();
                let parts = pin.into_parts();
                let mut pin = Pin::from_parts(pinner, parts).unwrap();
                assert!(pin.narrow(folio(1), Agent::Cpu));
                frames[1].use_while_held();
                pin.into_parts()
            })
        };
        world.kill(0);
        world.drain(&[0], &[&reader]);
        frames[0].reuse();
        let parts = holder.join().unwrap();
        assert_eq!(parts.run(), folio(1));
        drop(Pin::from_parts(pinner, parts).unwrap());
        world.drain(&[1], &[&reader]);
        frames[1].reuse();
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
