//! Many threads of one client, more than its ledger has lanes.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Barrier;

use crate::support::{self, block};
use pgmap::mm::gup::GupFlags;
use pgmap::mm::ledger::MAX_LANES;
use pgmap::mm::mm::Placed;
use pgmap::mm::prot::Prot;
use pgmap::report::HolderList;
use pgmap::space::AddressSpace;
use pgmap::{Client, Owner, Pool, PoolOptions};

const PAGE: u64 = 4096;

fn owner() -> (Owner, Client) {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(64 << 20)).unwrap()).unwrap();
    let client = owner.client().unwrap();
    support::put(&client, "a", &block::make(1, 8192)).unwrap();
    (owner, client)
}

/// Runs `each` in `nr` threads that then all live on until every one of them is through, while
/// `then` runs; every one of them must have succeeded.
fn in_threads<T, E: Display + Send>(
    nr: usize,
    each: impl Fn(usize) -> Result<T, E> + Sync,
    then: impl FnOnce(),
) {
    let (through, over) = (Barrier::new(nr + 1), Barrier::new(nr + 1));
    let errors = std::thread::scope(|scope| {
        let in_thread = |number| {
            let (each, through, over) = (&each, &through, &over);
            scope.spawn(move || {
                let result = each(number);
                through.wait();
                over.wait();
                result.map(drop).err()
            })
        };
        let threads: Vec<_> = (0..nr).map(in_thread).collect();
        through.wait();
        // The threads must end whatever comes of it.
        let result = catch_unwind(AssertUnwindSafe(then));
        over.wait();
        if let Err(panic) = result {
            resume_unwind(panic);
        }
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    if let Some(error) = errors.first() {
        panic!("{} of {nr} threads failed: {error}", errors.len());
    }
}

/// 45 of 300 threads could never pin, though nobody held anything.
#[test]
fn threads_that_hold_nothing_shut_nobody_out() {
    let (_owner, client) = owner();
    let pin_some = |_| (0..20).try_for_each(|_| client.get("a").map(drop));
    in_threads(3 * MAX_LANES, pin_some, || {
        assert!(client.who_all().unwrap().holders.is_empty());
    });
}

/// Holds of threads beyond the lanes are holds like others: a drain waits for each, by each way to
/// pin.
#[test]
fn every_thread_holds_however_many_there_are() {
    let (owner, client) = owner();
    let space = AddressSpace::for_device(&client, 0, 1 << 30).unwrap();
    space.map(&client.open("a").unwrap(), 0, 8192, Placed::At(0), Prot::READ).unwrap();
    let hold = |number: usize| -> Result<_, String> {
        if number.is_multiple_of(2) {
            return Ok((Some(client.get("a").map_err(|error| error.to_string())?), None));
        }
        let pages = space.pin(0, 2, GupFlags::NONE).map_err(|error| error.to_string())?;
        Ok((None, Some(pages)))
    };
    in_threads(MAX_LANES + 44, hold, || {
        let HolderList { holders, is_cut } = client.who("a").unwrap();
        assert!(is_cut, "more than an answer names: {}", holders.len());
        client.unlink("a").unwrap();
        assert_eq!(owner.info().draining_bytes, 8192);
    });
    support::wait_for_info(&owner, "all is given back", |info| info.draining_bytes == 0);
}

/// A mapping of the processor has lanes of its own, and may come after all others were taken.
#[test]
fn mappings_of_the_processor_find_lanes_among_idle_threads_and_leave_some() {
    const NR_SPACES: usize = 16;
    let (_owner, client) = owner();
    let file = client.open("a").unwrap();
    in_threads(
        MAX_LANES,
        |_| client.get("a").map(drop),
        || {
            let spaces: Vec<_> = (0..NR_SPACES)
                .map(|_| {
                    let space = AddressSpace::for_process(&client, 1 << 20).unwrap();
                    let at = space.map(&file, 0, PAGE, Placed::Anywhere, Prot::READ).unwrap();
                    space.populate(at, PAGE).unwrap();
                    space
                })
                .collect();
            in_threads(40, |_| client.get("a").map(drop), || ());
            drop(spaces);
        },
    );
}

/// Pins beyond the slots of a lane go to further lanes, also for a thread that has to share.
#[test]
fn a_thread_that_has_to_share_holds_more_than_a_lane_has_slots() {
    let (_owner, client) = owner();
    let nr_pins = pgmap::mm::ledger::LANE_SLOTS + 100;
    in_threads(
        MAX_LANES,
        |_| client.get("a").map(drop),
        || {
            let pins: Vec<_> = (0..nr_pins).map(|_| client.get("a").unwrap()).collect();
            drop(pins);
        },
    );
}

/// A lane that a thread took for an address space is one of its client's: what is pinned in it is
/// seen by `who`, outlives the lane, and lets go of the frames at its end.
#[test]
fn pins_in_a_lane_of_an_address_space_are_holds_like_any_other() {
    let (owner, client) = owner();
    let space = AddressSpace::for_device(&client, 0, 1 << 30).unwrap();
    space.map(&client.open("a").unwrap(), 0, 8192, Placed::At(0), Prot::READ).unwrap();
    space.populate(0, 8192).unwrap();
    let is_held = || !client.who("a").unwrap().holders.is_empty();

    let lane = space.lane().unwrap();
    assert!(lane.try_pin(2 * PAGE, 1, GupFlags::NONE).is_none(), "the file has two pages");
    assert!(lane.try_pin(0, 1, GupFlags::WRITE).is_none(), "mapped for reading");
    let short = lane.try_pin(PAGE + 1, 1, GupFlags::NONE).unwrap();
    let pages = space.pin(PAGE, 1, GupFlags::NONE).unwrap();
    assert_eq!(lane.ptr(short.run()), pages.segments().next().unwrap().ptr);
    drop(pages);
    let long = lane.try_pin_long(0, 1, GupFlags::NONE).unwrap();
    drop(lane);
    assert!(is_held());
    client.unlink("a").unwrap();
    assert!(short.pin().is_reclaim_requested() && long.pin().is_reclaim_requested());
    assert_ne!(client.pool_stat().unwrap().draining_bytes, 0, "pinned frames are not free");
    drop((short, long));
    support::wait_for_info(&owner, "all is given back", |info| info.draining_bytes == 0);
}

#[test]
fn a_thread_that_finds_no_lane_to_keep_is_refused_one_and_pins_without() {
    let (_owner, client) = owner();
    let space = AddressSpace::for_device(&client, 0, 1 << 30).unwrap();
    space.map(&client.open("a").unwrap(), 0, 8192, Placed::At(0), Prot::READ).unwrap();
    let mut lanes = Vec::new();
    let refused = loop {
        match space.lane() {
            Ok(lane) => lanes.push(lane),
            Err(error) => break error,
        }
    };
    assert!(refused.to_string().contains("lanes"), "{refused}");
    assert!(lanes.len() < MAX_LANES, "some are left to be shared");
    drop(space.pin(0, 1, GupFlags::NONE).unwrap());
    lanes.pop();
    space.lane().unwrap();
}
