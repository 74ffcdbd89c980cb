//! Pins and writers that have their client, and gets that never call.

use crate::support;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use pgmap::{
    BackingOptions, Client, CreateSpec, Error, FolioSize, OwnedPin, OwnedWriter, Owner, Placement,
    Pool, PoolOptions, Refusal,
};

const MIB: u64 = 1 << 20;

fn owner() -> Owner {
    Owner::start(Pool::create(&PoolOptions::anonymous(16 * MIB)).unwrap()).unwrap()
}

fn put(client: &Client, name: &str, bytes: &[u8]) {
    let mut writer = client.create_owned(name, bytes.len() as u64, FolioSize::BestFit).unwrap();
    writer.write_all_at(0, bytes).unwrap();
    writer.commit().unwrap();
}

#[test]
fn owned_pins_and_writers_can_go_anywhere() {
    fn can_go<T: Send + Sync + 'static>() {}
    can_go::<OwnedPin>();
    can_go::<OwnedWriter>();
}

#[test]
fn an_owned_pin_holds_its_bytes_when_client_and_owner_are_gone() {
    let owner = owner();
    let client = owner.client().unwrap();
    let bytes = support::block::make(7, 3 * 4096 + 5);
    put(&client, "a", &bytes);
    let pinned = client.get_owned("a").unwrap();
    client.unlink("a").unwrap();
    let observer = owner.client().unwrap();
    assert_eq!(observer.pool_stat().unwrap().draining_bytes, 4 * 4096, "the pin is a hold");
    drop(client);
    assert_eq!(observer.pool_stat().unwrap().draining_bytes, 4 * 4096, "it keeps its client");
    let reader = std::thread::spawn(move || {
        assert_eq!(pinned.to_vec().unwrap(), bytes);
        assert!(pinned.is_reclaim_requested());
        assert_eq!(pinned.segments().map(|segment| segment.len_bytes).sum::<u64>(), 3 * 4096 + 5);
    });
    reader.join().unwrap();
    support::wait_until("the frames are free", || {
        (observer.pool_stat().unwrap().draining_bytes == 0).then_some(())
    });
    put(&observer, "b", b"after");
    let pinned = observer.get_owned("b").unwrap();
    drop((observer, owner));
    assert_eq!(pinned.to_vec().unwrap(), b"after");
}

/// Pins of several lanes keep the client by counts of their own, and so do those that were taken
/// through a pin's client.
#[test]
fn a_client_ends_with_its_last_owned_pin_whichever_thread_took_it() {
    const NR_THREADS: usize = 40;
    let owner = owner();
    let client = owner.client().unwrap();
    put(&client, "a", b"bytes");
    let gate = Barrier::new(NR_THREADS);
    let mut pins: Vec<OwnedPin> = std::thread::scope(|scope| {
        let take = || {
            let pin = client.get_owned("a").unwrap();
            // All live at once, so each has a lane of its own.
            gate.wait();
            pin
        };
        let threads: Vec<_> = (0..NR_THREADS).map(|_| scope.spawn(take)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    drop(client);
    let of_a_pin = pins[0].client().clone();
    pins.push(of_a_pin.get_owned("a").unwrap());
    drop(of_a_pin);
    while let Some(pin) = pins.pop() {
        assert_eq!(owner.info().nr_clients, 1, "{} pins and this one keep it", pins.len());
        assert_eq!(pin.to_vec().unwrap(), b"bytes");
    }
    assert_eq!(owner.info().nr_clients, 0);
}

#[test]
fn an_owned_pin_reads_files_in_pieces_and_with_holes() {
    let owner = owner();
    let client = owner.client().unwrap();
    let bytes = support::block::make(9, 16 * 4096);
    put(&client, "a", &bytes);
    client.punch("a", 4096..4096 + 2 * 4096, Duration::from_secs(1)).unwrap();
    let pinned = client.get_owned("a").unwrap();
    assert!(pinned.segments().count() > 1);
    let mut expected = bytes;
    expected[4096..3 * 4096].fill(0);
    assert_eq!(pinned.to_vec().unwrap(), expected);
    let mut some = [1; 5000];
    pinned.read_at(4000, &mut some).unwrap();
    assert_eq!(some, expected[4000..9000]);
    assert!(matches!(pinned.read_at(16 * 4096 - 1, &mut [0; 2]), Err(Error::OutOfRange { .. })));
}

#[test]
fn an_owned_writer_commits_on_another_thread_or_gives_up() {
    let owner = owner();
    let client = owner.client().unwrap();
    let mut writer = client.create_owned("a", 6, FolioSize::BestFit).unwrap();
    let other = std::thread::spawn(move || {
        writer.write_all_at(0, b"tokens").unwrap();
        writer.commit()
    });
    other.join().unwrap().unwrap();
    assert_eq!(client.get("a").unwrap().to_vec().unwrap(), b"tokens");
    let lost = client.create_owned("b", MIB, FolioSize::BestFit).unwrap();
    assert_eq!(client.pool_stat().unwrap().reserved_bytes, MIB);
    drop(lost);
    assert_eq!(client.pool_stat().unwrap().reserved_bytes, 0);
    // A commit that comes too late is refused, and its frames are free.
    let late = client.create_owned("c", MIB, FolioSize::BestFit).unwrap();
    put(&client, "c", b"first");
    assert!(matches!(late.commit(), Err(Error::Refused(Refusal::Exists { .. }))));
    assert_eq!(client.pool_stat().unwrap().reserved_bytes, 0);
}

#[test]
fn try_get_needs_no_owner() {
    let owner = owner();
    let client = owner.client().unwrap();
    put(&client, "a", b"here");
    drop(owner);
    let started = Instant::now();
    let pinned = client.try_get("a").unwrap().expect("no call is needed");
    assert_eq!(pinned.to_vec().unwrap(), b"here");
    let absent = client.try_get("b").unwrap_err();
    assert!(matches!(absent, Error::Refused(Refusal::NotFound { .. })), "{absent}");
    let bad = client.try_get("").unwrap_err();
    assert!(matches!(bad, Error::Refused(Refusal::BadName { .. })), "{bad}");
    assert!(started.elapsed() < Duration::from_secs(1), "nothing waited for the owner");
}

#[test]
fn try_get_says_so_where_a_backing_must_be_mapped_first() {
    let directory = support::roomy();
    let path = directory.path();
    let options = PoolOptions::in_directory(path.join("pool"), 8 * MIB).room(4 << 30);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    owner.add_backing(&BackingOptions::on(path.join("far")).size(4 * MIB)).unwrap();
    let spec = CreateSpec::named("a", 3, FolioSize::BestFit).unwrap();
    let spec = spec.placement(Placement::Only(vec!["far".into()]));
    let mut writer = other.create_owned_with(spec).unwrap();
    writer.write_all_at(0, b"far").unwrap();
    writer.commit().unwrap();
    assert!(client.try_get_owned("a").unwrap().is_none());
    assert_eq!(client.get_owned("a").unwrap().to_vec().unwrap(), b"far");
    let pinned = client.try_get_owned("a").unwrap().expect("it is mapped now");
    assert_eq!(pinned.to_vec().unwrap(), b"far");
}
