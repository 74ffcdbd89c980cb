//! Prefaulting: what has memory is mapped in this process, in steps, and nothing else is taken.

use std::ops::ControlFlow;
use std::time::Duration;

use pgmap::{
    BackingOptions, Client, ConnectOptions, FolioSize, Owner, Pool, PoolOptions, Prefault,
};

use crate::support;

const MIB: u64 = 1 << 20;
const FILE_BYTES: u64 = 40 * MIB;
const POOL_BYTES: u64 = 128 * MIB;
const LONG: Duration = Duration::from_secs(60);

/// A pool that takes memory on demand, with a file in it and as much again before and after.
fn owner() -> Owner {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(POOL_BYTES)).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let mut writer = client.create("a", FILE_BYTES, FolioSize::Pages4K).unwrap();
    writer.write_all_at(0, &support::block::make(1, FILE_BYTES as usize)).unwrap();
    writer.commit().unwrap();
    owner
}

/// Page faults of this thread so far that took no I/O.
fn nr_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(7).unwrap().parse().unwrap()
}

/// How many page faults it takes to read the file.
fn faults_of_reading(client: &Client) -> u64 {
    let pinned = client.get("a").unwrap();
    let mut page = [0; 4096];
    let before = nr_faults();
    for at in (0..FILE_BYTES).step_by(4096) {
        pinned.read_at(at, &mut page).unwrap();
    }
    nr_faults() - before
}

#[test]
fn what_was_prefaulted_is_read_without_page_faults_and_no_memory_is_taken_for_it() {
    let owner = owner();
    let unprepared = faults_of_reading(&owner.client().unwrap());
    assert!(unprepared > 100, "{unprepared} page faults");
    let place = tempfile::tempdir().unwrap();
    owner.serve(place.path().join("s")).unwrap();
    let reader = ConnectOptions::new().read_only();
    let reader = Client::connect_with(place.path().join("s"), &reader).unwrap();
    for client in [owner.client().unwrap(), reader] {
        let backed_bytes = client.pool_stat().unwrap().backed_bytes;
        let mut steps = Vec::new();
        let prefault = client.prefault(LONG, |so_far| {
            steps.push(so_far.mapped_bytes);
            ControlFlow::Continue(())
        });
        let prefault = prefault.unwrap();
        assert!(prefault.is_complete() && prefault.total_bytes == POOL_BYTES, "{prefault:?}");
        assert!((FILE_BYTES..POOL_BYTES).contains(&prefault.mapped_bytes), "{prefault:?}");
        assert!(steps.len() >= 3 && steps.is_sorted(), "{steps:?}");
        let faults = faults_of_reading(&client);
        assert!(faults < 10, "{faults} page faults after a prefault, {unprepared} without");
        assert_eq!(client.pool_stat().unwrap().backed_bytes, backed_bytes);
    }
}

#[test]
fn a_prefault_ends_at_its_deadline_or_when_it_is_told_to_and_says_how_far_it_is() {
    let client = owner().client().unwrap();
    let none = client.prefault(Duration::ZERO, |_| panic!("there was no time for a step"));
    let nothing = Prefault { total_bytes: POOL_BYTES, ..Prefault::default() };
    assert_eq!(none.unwrap(), nothing);
    let mut last = nothing;
    let ended = client.prefault(LONG, |so_far| {
        last = so_far;
        ControlFlow::Break(())
    });
    let ended = ended.unwrap();
    assert_eq!(ended, last);
    assert!(!ended.is_complete() && (1..=16 * MIB).contains(&ended.mapped_bytes), "{ended:?}");
    assert!(client.prefault(LONG, |_| ControlFlow::Continue(())).unwrap().is_complete());
}

#[test]
fn further_backings_are_prefaulted_too() {
    let place = tempfile::tempdir().unwrap();
    let options = PoolOptions::in_directory(place.path().join("pool"), 16 * MIB);
    let owner = Owner::start(Pool::create(&options.room(64 * MIB)).unwrap()).unwrap();
    let more = BackingOptions::on(place.path().join("more")).size(16 * MIB);
    owner.add_backing(&more).unwrap();
    let client = owner.client().unwrap();
    client.backings().unwrap();
    let prefault = client.prefault(LONG, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((prefault.total_bytes, prefault.is_complete()), (32 * MIB, true));
}
