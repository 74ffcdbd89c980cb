//! Lanes: slots cleared by one thread and filled by another, and the marks that say how far a scan
//! must look.

use std::sync::Arc;

use loom::thread;
use pgmap_mm::error::PinError;
use pgmap_mm::ledger::Agent;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::pin::Lane;
use pgmap_mm::runs::SortedRuns;

use crate::support::{Client, Frame, World, explore, explore_up_to, extent, folio, leak};

/// One slot: the lane's owner can pin again only once the other thread cleared it, and that
/// clearing must not hit the new pin.
#[test]
fn loom_a_slot_cleared_by_another_thread_is_never_overwritten_while_held() {
    explore_up_to(3, || {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        let frames = [Frame::new(0), Frame::new(0)];
        let pinner = leak(pinner);
        let lane = pinner.lane().unwrap();
        let first = lane.pin(&extent(0), extent(0).run, Agent::Cpu).unwrap();
        let parts = lane.into_parts();

        let dropper = {
            let frame = Arc::clone(&frames[0]);
            thread::spawn(move || {
                frame.use_while_held();
                drop(first);
            })
        };
        let lane_owner = {
            let frame = Arc::clone(&frames[1]);
            thread::spawn(move || {
                let lane = Lane::from_parts(pinner, parts).unwrap();
                match lane.pin(&extent(1), extent(1).run, Agent::Cpu) {
                    Ok(_pin) => frame.use_while_held(),
                    Err(PinError::LaneFull { nr_slots: 1 } | PinError::Changed { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            })
        };
        world.kill(0);
        world.kill(1);
        world.drain(&[0, 1], &[&reader]);
        frames[0].reuse();
        frames[1].reuse();
        dropper.join().unwrap();
        lane_owner.join().unwrap();
    });
}

/// The clearing thread's bytes reach the drain through the lane owner's refilling of the slot.
#[test]
fn loom_a_refilled_slot_passes_the_last_holders_writes_on() {
    explore_up_to(3, || {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        let frame = Frame::new(0);
        let pinner = leak(pinner);
        let lane = pinner.lane().unwrap();
        let first = lane.pin(&extent(0), extent(0).run, Agent::Cpu).unwrap();
        let parts = lane.into_parts();

        let dropper = {
            let frame = Arc::clone(&frame);
            thread::spawn(move || {
                frame.use_while_held();
                drop(first);
            })
        };
        let lane_owner = thread::spawn(move || {
            let lane = Lane::from_parts(pinner, parts).unwrap();
            drop(lane.pin(&extent(1), extent(1).run, Agent::Cpu));
        });
        world.kill(0);
        world.drain(&[0], &[&reader]);
        frame.reuse();
        dropper.join().unwrap();
        lane_owner.join().unwrap();
    });
}

/// From claiming a lane to the pin in it: the scan must see the marks with the slot.
#[test]
fn loom_the_first_pin_of_a_fresh_lane_is_seen_through_its_marks() {
    explore(|| {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        let frame = Frame::new(0);
        let holder = {
            let frame = Arc::clone(&frame);
            thread::spawn(move || {
                let lane = pinner.lane().unwrap();
                match lane.pin(&extent(0), extent(0).run, Agent::Cpu) {
                    Ok(_pin) => frame.use_while_held(),
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

/// Two threads race for two lanes, so that one may find the mark raised by the other.
#[test]
fn loom_a_lane_mark_raised_by_another_thread_covers_ones_own_lane() {
    explore_up_to(3, || {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 2, 1);
        let frame = Frame::new(0);
        let holders = [(); 2].map(|()| {
            let (pinner, frame) = (Arc::clone(&pinner), Arc::clone(&frame));
            thread::spawn(move || {
                let lane = pinner.lane().unwrap();
                match lane.pin(&extent(0), extent(0).run, Agent::Cpu) {
                    Ok(_pin) => frame.use_while_held(),
                    Err(PinError::Changed { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
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

/// A lane given back with a pin alive, taken by another thread: the slot stays the pin's.
#[test]
fn loom_a_lane_given_back_with_a_pin_in_it_keeps_the_pin() {
    explore(|| {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 1);
        let frame = Frame::new(0);
        let next = {
            let (pinner, frame) = (Arc::clone(&pinner), Arc::clone(&frame));
            thread::spawn(move || {
                let Ok(lane) = pinner.lane() else { return };
                if let Ok(_pin) = lane.pin(&extent(0), extent(0).run, Agent::Cpu) {
                    frame.use_while_held();
                }
            })
        };
        let mine = pinner
            .lane()
            .ok()
            .and_then(|lane| lane.pin(&extent(0), extent(0).run, Agent::Cpu).ok());
        if let Some(pin) = mine {
            let holds = reader.all_holds();
            assert!(holds.iter().any(|hold| hold.run == pin.run()), "the pin is in no slot");
            frame.use_while_held();
            drop(pin);
        }
        next.join().unwrap();
        world.kill(0);
        world.drain(&[0], &[&reader]);
        frame.reuse();
    });
}

/// All lanes but the shared one are kept by threads that hold nothing: two threads take it in turn,
/// each for one pin, and the second may come to the slot that the first has not emptied yet.
#[test]
fn loom_a_shared_lane_taken_in_turn_overwrites_no_pin() {
    explore_up_to(2, || {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 8, 2);
        let pinner = leak(pinner);
        let kept: Vec<_> = (0..7).filter_map(|_| pinner.lane().ok()).collect();
        assert!(kept.iter().all(|lane| !lane.is_shared()), "one of eight is shared");
        let frames = [Frame::new(0), Frame::new(0)];
        let holders = [0, 1].map(|number: u64| {
            let frame = Arc::clone(&frames[number as usize]);
            thread::spawn(move || {
                let Ok(lane) = pinner.lane() else { return };
                assert!(lane.is_shared());
                let pinned = lane.pin(&extent(number), extent(number).run, Agent::Cpu);
                drop(lane);
                match pinned {
                    Ok(_pin) => frame.use_while_held(),
                    Err(PinError::Changed { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            })
        });
        world.kill(0);
        world.kill(1);
        world.drain(&[0, 1], &[&reader]);
        frames.iter().for_each(|frame| frame.reuse());
        for holder in holders {
            holder.join().unwrap();
        }
    });
}

/// Three blocks of one slot each. A scan may read a block before it is opened, while it is open and
/// when it was left again; what the first scan remembers must not hide a pin from the second.
#[test]
fn loom_a_scan_that_remembers_a_block_sees_what_was_filled_in_since() {
    explore_up_to(3, || {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 3);
        let frame = Frame::new(0);
        let lane = pinner.lane().unwrap();
        // Fills the first block, so that each further pin opens one.
        let _first = lane.pin(&extent(1), extent(1).run, Agent::Cpu).unwrap();
        let parts = lane.into_parts();
        let holder = {
            let (pinner, frame) = (Arc::clone(&pinner), Arc::clone(&frame));
            thread::spawn(move || {
                let lane = Lane::from_parts(&pinner, parts).unwrap();
                match lane.pin(&extent(0), extent(0).run, Agent::Cpu) {
                    Ok(_pin) => {
                        let _next = lane.pin(&extent(1), extent(1).run, Agent::Cpu);
                        frame.use_while_held();
                    }
                    Err(PinError::Changed { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            })
        };
        // Nobody holds these frames: the scan reads blocks and remembers them.
        reader.for_each_hold(&nobodys(), |hold| panic!("{hold:?}"));
        world.kill(0);
        world.drain(&[0], &[&reader]);
        frame.reuse();
        holder.join().unwrap();
    });
}

/// A lane given back with a pin in its open block: the drain finds it among what was left.
#[test]
fn loom_a_pin_left_in_a_lane_that_is_given_back_is_seen() {
    explore(|| {
        let world = World::new();
        let Client { pinner, reader, .. } = world.client(1, 1, 2);
        let frame = Frame::new(0);
        let parts = pinner.lane().unwrap().into_parts();
        let holder = {
            let (pinner, frame) = (Arc::clone(&pinner), Arc::clone(&frame));
            thread::spawn(move || {
                let lane = Lane::from_parts(&pinner, parts).unwrap();
                let pin = lane.pin(&extent(0), extent(0).run, Agent::Cpu);
                drop(lane);
                if let Ok(_pin) = pin {
                    frame.use_while_held();
                }
            })
        };
        reader.for_each_hold(&nobodys(), |hold| panic!("{hold:?}"));
        world.kill(0);
        world.drain(&[0], &[&reader]);
        frame.reuse();
        holder.join().unwrap();
    });
}

/// Frames of neither folio of the world.
fn nobodys() -> SortedRuns {
    SortedRuns::new(vec![PfnRange::new(4 * folio(0).nr_pages(), 1).unwrap()])
}
