//! The keeper: what an owner says reaches every address space of a client, whatever the client
//! does, and whatever was missed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::mapper_role::{load, map};
use crate::support::{self, Second, block, mapper_role};
use pgmap::mm::gup::GupFlags;
use pgmap::mm::mm::{AckToken, EndedRange, InvalidateSubscriber, Placed};
use pgmap::mm::prot::Prot;
use pgmap::space::AddressSpace;
use pgmap::{Client, Event, FileName, Owner, Pool, PoolOptions};
use rustix::process::Signal;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const WAIT: Duration = Duration::from_secs(10);
/// Pages of a file of these tests.
const NR_PAGES: u64 = 16;

fn put(client: &Client, name: &str, generation: u64, nr_pages: u64) {
    support::put(client, name, &block::make(generation, (nr_pages * PAGE) as usize)).unwrap();
}

fn local_owner() -> Owner {
    Owner::start(Pool::create(&PoolOptions::anonymous(64 * MIB)).unwrap()).unwrap()
}

#[test]
fn child_entry() {
    let Some((role, place)) = support::role() else { return };
    match role.as_str() {
        "mapper" => mapper_role::run(&place),
        "owner" => serve(&place),
        other => panic!("no such role: {other}"),
    }
}

/// The owner of a pool in a directory, made again or taken over.
fn serve(place: &Path) {
    let directory = place.join("pool");
    let pool = match directory.exists() {
        false => Pool::create(&PoolOptions::in_directory(&directory, 2 * MIB)),
        true => Pool::open(&directory),
    };
    let owner = Owner::start(pool.unwrap()).unwrap();
    owner.serve(place.join("s")).unwrap();
    support::say("ok");
    assert_eq!(support::commands().count(), 0);
    drop(owner);
    std::process::exit(0);
}

#[derive(Debug, Default)]
struct Iotlb {
    nr_told: AtomicUsize,
    first: AtomicU64,
}

impl InvalidateSubscriber for Iotlb {
    fn ended(&self, ranges: &[EndedRange], token: AckToken) {
        self.first.store(ranges[0].address, Ordering::SeqCst);
        self.nr_told.fetch_add(1, Ordering::SeqCst);
        token.acknowledge();
    }
}

#[test]
fn every_space_of_a_client_is_told_of_every_event_and_the_program_too() {
    let owner = local_owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "a", 1, NR_PAGES);
    let process = AddressSpace::for_process(&client, GIB).unwrap();
    let second = AddressSpace::for_process(&client, GIB).unwrap();
    let device = AddressSpace::for_device(&client, GIB, GIB).unwrap();
    let iotlb = Arc::new(Iotlb::default());
    device.on_invalidate(iotlb.clone());
    map(&device, "a", Placed::At(GIB), Prot::READ);
    device.populate(GIB, NR_PAGES * PAGE).unwrap();
    let ats = [&process, &second].map(|space| map(space, "a", Placed::Anywhere, Prot::READ));
    other.truncate("a", PAGE, Duration::from_secs(10)).unwrap();
    support::wait_until("the device's cache is notified", || {
        (iotlb.nr_told.load(Ordering::SeqCst) > 0).then_some(())
    });
    assert_eq!(iotlb.first.load(Ordering::SeqCst), GIB + PAGE);
    assert!(device.mm().translate(GIB + PAGE).is_none());
    for (space, at) in [&process, &second].into_iter().zip(ats) {
        assert!(space.mm().translate(at + PAGE).is_none());
        assert_eq!(load(at), 1);
    }
    let event = client.next_event(WAIT).unwrap();
    assert!(matches!(event, Some(Event::ReclaimRequested { .. })), "{event:?}");
    // Without keepers, events wait for whoever asks, and reach every space all the same.
    drop((process, second));
    let pinned = device.pin(GIB, 1, GupFlags::NONE).unwrap();
    other.unlink("a").unwrap();
    while device.mm().translate(GIB).is_some() {
        client.next_event(WAIT).unwrap().expect("the pin is asked back");
    }
    drop(pinned);
}

/// An owner tells holders only, and a device address space holds nothing by itself.
#[test]
fn a_subscriber_is_told_of_frames_that_nothing_here_holds() {
    let owner = local_owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "a", 1, NR_PAGES);
    put(&client, "b", 2, NR_PAGES);
    let device = AddressSpace::for_device(&client, GIB, GIB).unwrap();
    map(&device, "a", Placed::At(GIB), Prot::READ);
    map(&device, "b", Placed::At(GIB + MIB), Prot::READ);
    device.populate(GIB, NR_PAGES * PAGE).unwrap();
    device.populate(GIB + MIB, NR_PAGES * PAGE).unwrap();
    let iotlb = Arc::new(Iotlb::default());
    device.on_invalidate(iotlb.clone());
    other.unlink("b").unwrap();
    support::wait_until("the device's cache is notified", || {
        (iotlb.nr_told.load(Ordering::SeqCst) > 0).then_some(())
    });
    assert_eq!(iotlb.first.load(Ordering::SeqCst), GIB + MIB);
    assert!(device.mm().translate(GIB + MIB).is_none());
    assert!(device.mm().translate(GIB + PAGE).is_some(), "what is as it was stays");
}

#[test]
fn a_mapping_outlives_its_owner_and_the_next_one_is_heard() {
    let place = support::roomy();
    let mut owner = Second::start("owner", place.path());
    assert_eq!(owner.answer(), "ok");
    let socket = place.path().join("s");
    let client = Client::connect(&socket).unwrap();
    put(&client, "a", 1, NR_PAGES);
    let mut mapper = Second::start("mapper", &socket);
    assert_eq!(mapper.answer(), "ok");
    let at: u64 = mapper.ask("map a").parse().unwrap();
    owner.kill();
    assert_eq!(mapper.ask(format!("load {at}").as_str()), "1");
    let mut owner = Second::start("owner", place.path());
    assert_eq!(owner.answer(), "ok");
    // The mapper makes no call: its keeper reconnects to the new owner by itself.
    client.truncate("a", PAGE, Duration::from_secs(10)).unwrap();
    assert!(mapper.ask(&format!("read {} 8", at + PAGE)).starts_with("err 14 "));
    assert_eq!(mapper.ask(&format!("load {at}")), "1");
}

/// Maps many files of `nr_pages` each while the mapper is stopped and its connection overflows: an
/// owner drops events that find a connection full. What they asked for must go all the same.
fn miss_events_of_files_of(nr_pages: u64) {
    const NR_FILES: u64 = 1000;
    let (owner, _place, socket) = support::serving_owner(64 * MIB);
    let client = owner.client().unwrap();
    for number in 0..NR_FILES {
        put(&client, &format!("f{number}"), number, nr_pages);
    }
    let mut mapper = Second::start("mapper", &socket);
    assert_eq!(mapper.answer(), "ok");
    mapper.must(&format!("map-many {NR_FILES}"));
    mapper.stop();
    for number in 0..NR_FILES {
        client.unlink_batch(&[FileName::new(format!("f{number}")).unwrap()]).unwrap();
    }
    support::wait_for_info(&owner, "the files are held", |info| {
        info.draining_bytes == NR_FILES * nr_pages * PAGE
    });
    mapper.signal(Signal::CONT);
    support::wait_for_info(&owner, "everything is given back", |info| info.draining_bytes == 0);
}

#[test]
fn a_process_that_missed_events_takes_its_mappings_away_all_the_same() {
    miss_events_of_files_of(1);
}

/// Story: only the word of a file's first folio said that the file was gone, and a process that had
/// missed the event looked at each folio's own: all but the first page stayed mapped and held for
/// ever.
#[test]
fn a_process_that_missed_events_takes_mappings_of_several_folios_away_too() {
    miss_events_of_files_of(4);
}

#[test]
fn a_file_of_several_folios_unlinked_before_its_mapper_is_back_after_a_restart_goes() {
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut owner = Second::start("owner", place.path());
    assert_eq!(owner.answer(), "ok");
    let socket = place.path().join("s");
    let client = Client::connect(&socket).unwrap();
    put(&client, "a", 1, NR_PAGES);
    let mut mapper = Second::start("mapper", &socket);
    assert_eq!(mapper.answer(), "ok");
    let _at: u64 = mapper.ask("map a").parse().unwrap();
    mapper.stop();
    owner.kill();
    let mut owner = Second::start("owner", place.path());
    assert_eq!(owner.answer(), "ok");
    client.unlink("a").unwrap();
    assert_eq!(client.pool_stat().unwrap().draining_bytes, NR_PAGES * PAGE);
    mapper.signal(Signal::CONT);
    support::wait_until("the mapping went", || {
        (client.pool_stat().unwrap().draining_bytes == 0).then_some(())
    });
}
