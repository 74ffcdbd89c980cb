//! Files that are evicted to make room: the least recently used first, never one that is held.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pgmap::FileChange::{Created, Drained, Evicted};
use pgmap::{
    Client, CreateSpec, Error, FileName, FolioSize, Owner, Pool, PoolOptions, Refusal,
    SubscribeOptions,
};

use crate::support::{self, BOUND, Random, Second, SetOnDrop, block, serving_owner, wait_until};

const MIB: u64 = 1 << 20;
const UNIT: u64 = 2 * MIB;

#[test]
fn child_entry() {
    let Some((role, place)) = support::role() else { return };
    match role.as_str() {
        "reader" => read_all_the_time(&Client::connect(&place).unwrap()),
        _ => support::client_role::run(&place),
    }
}

fn spec(name: &str, len_bytes: u64, folio_size: FolioSize, priority: u8) -> CreateSpec {
    CreateSpec::new(FileName::new(name).unwrap(), len_bytes, folio_size).evictable(priority)
}

fn put_with(client: &Client, spec: CreateSpec, bytes: &[u8]) -> Result<(), Error> {
    client.put_batch(vec![(spec, bytes)])?.remove(0)
}

/// Puts a file of one folio of 2 MiB.
fn put(client: &Client, name: &str, priority: u8) -> Result<(), Error> {
    put_with(client, spec(name, UNIT, FolioSize::Pages2M, priority), name.as_bytes())
}

fn names(client: &Client) -> Vec<String> {
    client.list().unwrap().iter().map(|file| file.name.to_string()).collect()
}

fn owner_of(nr_units: u64) -> Owner {
    Owner::start(Pool::create(&PoolOptions::anonymous(nr_units * UNIT)).unwrap()).unwrap()
}

#[test]
fn small_files_go_a_few_at_a_time_and_the_next_creates_evict_none() {
    const NR_FILES: u64 = 1024;
    let pool = Pool::create(&PoolOptions::anonymous(NR_FILES * 4096)).unwrap();
    let owner = Owner::start(pool).unwrap();
    let client = owner.client().unwrap();
    let put = |number: u64| {
        let spec = spec(&format!("{number:04}"), 4096, FolioSize::Pages4K, 1);
        put_with(&client, spec, b"x").unwrap();
        client.pool_stat().unwrap().nr_evicted
    };
    for number in 0..NR_FILES {
        assert_eq!(put(number), 0);
    }
    // One that is needed, and a 128th part of the pool.
    for (number, nr_evicted) in (0..18).map(|nth| (NR_FILES + nth, 9 * (1 + nth / 9))) {
        assert_eq!(put(number), nr_evicted, "file {number}");
    }
    assert_eq!(names(&client)[0], "0018", "the least recently used went");
}

#[test]
fn a_create_that_needs_room_evicts_the_least_recently_used_file() {
    let owner = owner_of(4);
    let client = owner.client().unwrap();
    let mut events = client.subscribe(&SubscribeOptions::new()).unwrap();
    for name in ["a", "b", "c", "d"] {
        put(&client, name, 1).unwrap();
    }
    // "a" is the oldest, and was used last.
    drop(client.get("a").unwrap());
    drop(client.get("c").unwrap());
    drop(client.get("b").unwrap());
    put(&client, "e", 1).unwrap();
    assert_eq!(names(&client), ["a", "b", "c", "e"]);
    // Within one generation the order of uses is not known; between two of them it is.
    drop(client.get("b").unwrap());
    put(&client, "f", 1).unwrap();
    let left = names(&client);
    assert!(left.contains(&"b".to_owned()) && left.contains(&"e".to_owned()), "{left:?}");
    drop(client.try_get("b").unwrap().unwrap());
    for name in ["g", "h"] {
        put(&client, name, 1).unwrap();
    }
    assert_eq!(names(&client), ["b", "f", "g", "h"]);
    let stat = client.pool_stat().unwrap();
    assert_eq!((stat.nr_evicted, stat.evicted_bytes), (4, 4 * UNIT));
    assert_eq!((stat.evictable_bytes, stat.free_bytes), (4 * UNIT, 0));
    let mut seen = Vec::new();
    while seen.len() < 16 {
        let notice = events.next(Duration::from_secs(10)).unwrap().expect("an event in time");
        seen.push((notice.event.change, notice.event.name.to_string()));
    }
    let at = |change, name: &str| seen.iter().position(|it| *it == (change, name.to_owned()));
    assert!(at(Evicted, "d") < at(Drained, "d") && at(Drained, "d") < at(Created, "e"), "{seen:?}");
    assert!(at(Evicted, "d").is_some() && at(Evicted, "e").is_some(), "{seen:?}");
}

/// A batch makes room for all its files at once. It must not make more than they need, and none for
/// files that will be refused.
#[test]
fn a_batch_evicts_as_many_files_as_it_has_and_no_more() {
    let owner = owner_of(16);
    let client = owner.client().unwrap();
    let put_named = |names: &[&str]| {
        let specs = names.iter().map(|name| spec(name, UNIT, FolioSize::Pages2M, 1));
        let files = specs.zip(names).map(|(spec, name)| (spec, name.as_bytes())).collect();
        client.put_batch(files).unwrap()
    };
    let old: Vec<String> = (0..16).map(|number| format!("old/{number:02}")).collect();
    put_named(&old.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(put_named(&["a", "b", "c", "d", "e"]).iter().all(Result::is_ok));
    let left = names(&client);
    assert_eq!(left[..5], ["a", "b", "c", "d", "e"]);
    assert_eq!(left[5..], old[5..], "the least recently used are gone, and no others");
    // Of these one is there already, and one is larger than the pool.
    let specs = [("f", UNIT), ("a", UNIT), ("g", 64 * UNIT), ("h", UNIT)];
    let files = specs.map(|(name, len)| (spec(name, len, FolioSize::BestFit, 1), name.as_bytes()));
    let answers = client.put_batch(files.to_vec()).unwrap();
    assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, false, true]);
    assert_eq!(client.pool_stat().unwrap().nr_evicted, 7);
    assert_eq!(names(&client)[7..], old[7..]);
    let specs = [("i", UNIT), ("j", 64 * UNIT)];
    let files = specs.map(|(name, len)| (spec(name, len, FolioSize::BestFit, 1), name.as_bytes()));
    let answers = client.put_batch(files.to_vec()).unwrap();
    assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false]);
    assert_eq!(client.pool_stat().unwrap().nr_evicted, 8);
}

#[test]
fn what_is_held_or_not_evictable_stays_and_the_refusal_says_how_much_that_is() {
    let owner = owner_of(4);
    let client = owner.client().unwrap();
    put(&client, "kept", 0).unwrap();
    for name in ["a", "b", "c"] {
        put(&client, name, 3).unwrap();
    }
    let (a, b) = (client.get("a").unwrap(), client.get("b").unwrap());
    put(&client, "d", 3).unwrap();
    assert_eq!(names(&client), ["a", "b", "d", "kept"]);
    let d = client.get("d").unwrap();
    let Err(Error::Refused(full)) = put(&client, "e", 3) else { panic!("there is no room") };
    let Refusal::NoSpace { wanted_bytes, free_bytes, evictable_held_bytes, .. } = full else {
        panic!("{full}");
    };
    assert_eq!((wanted_bytes, free_bytes, evictable_held_bytes), (UNIT, 0, 3 * UNIT));
    // All of them are as they were, and can be held again.
    for (name, pin) in [("a", &a), ("b", &b), ("d", &d)] {
        assert!(!pin.is_reclaim_requested());
        assert_eq!(&pin.to_vec().unwrap()[..1], name.as_bytes());
        assert_eq!(&client.get(name).unwrap().to_vec().unwrap()[..1], name.as_bytes());
    }
    drop(b);
    put(&client, "e", 3).unwrap();
    assert_eq!(names(&client), ["a", "d", "e", "kept"]);
}

#[test]
fn files_of_lower_priority_go_first() {
    let owner = owner_of(3);
    let client = owner.client().unwrap();
    put(&client, "high", 200).unwrap();
    put(&client, "cheap", 1).unwrap();
    put(&client, "middle", 9).unwrap();
    drop(client.get("cheap").unwrap());
    for name in ["x", "y"] {
        put(&client, name, 250).unwrap();
    }
    assert_eq!(names(&client), ["high", "x", "y"]);
    assert_eq!(client.stat("high").unwrap().evict_priority, 200);
}

#[test]
fn what_other_processes_use_stays_also_after_they_left() {
    let (_owner, _place, socket) = serving_owner(4 * UNIT);
    let client = Client::connect(&socket).unwrap();
    for name in ["a", "b", "c", "d"] {
        put_with(&client, spec(name, UNIT, FolioSize::Pages2M, 1), &block::make(1, UNIT as usize))
            .unwrap();
    }
    let mut other = Second::ready("client", &socket);
    other.ask("get a");
    put(&client, "e", 1).unwrap();
    assert_eq!(names(&client), ["a", "c", "d", "e"]);
    other.ask("get c");
    other.kill();
    wait_until("the other client is gone", || {
        (client.pool_stat().unwrap().nr_clients == 1).then_some(())
    });
    put(&client, "f", 1).unwrap();
    put(&client, "g", 1).unwrap();
    // "a" was used before "e" was put, and "c" after it.
    assert_eq!(names(&client), ["c", "e", "f", "g"]);
}

#[test]
fn a_large_folio_is_made_of_what_small_files_leave_and_of_no_more() {
    let options = PoolOptions::anonymous(4 * UNIT).max_files(3000);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let small = |number: u64| spec(&format!("s{number:04}"), 4096, FolioSize::Pages4K, 1);
    let specs = |numbers: std::ops::Range<u64>| numbers.map(|n| (small(n), &b"x"[..])).collect();
    for put in client.put_batch(specs(0..2048)).unwrap() {
        put.unwrap();
    }
    assert_eq!(client.pool_stat().unwrap().free_bytes, 0);
    // All but some of one block are used since: those are the least recently used, and keep the
    // other blocks whole.
    for number in (0..2048).filter(|number| number % 4 != 1) {
        drop(client.get(format!("s{number:04}")).unwrap());
    }
    put(&client, "large", 1).unwrap();
    let stat = client.pool_stat().unwrap();
    // A quarter of all goes as the oldest, then a block of what is left.
    assert!(stat.nr_evicted <= 512 + 512, "{stat:?}");
    drop(client.get("large").unwrap());
    // Where others were used later, the block of the oldest files goes.
    put(&client, "larger", 1).unwrap();
    assert!(client.exists("large").unwrap());
    assert!(client.pool_stat().unwrap().nr_evicted <= 1600);
}

#[test]
fn a_commit_for_which_the_index_has_no_room_evicts_too() {
    let options = PoolOptions::anonymous(4 * UNIT).max_files(16);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let small =
        |number: u64, priority| spec(&format!("s{number:02}"), 4096, FolioSize::Pages4K, priority);
    put_with(&client, small(0, 0), b"").unwrap();
    for number in 1..16 {
        put_with(&client, small(number, 1), b"").unwrap();
    }
    let pin = client.get("s01").unwrap();
    put_with(&client, small(16, 1), b"").unwrap();
    let batch: Vec<_> = (17..20).map(|number| (small(number, 1), &b""[..])).collect();
    assert!(client.put_batch(batch).unwrap().iter().all(Result::is_ok));
    let left: Vec<String> =
        [0, 1].into_iter().chain(6..20).map(|number| format!("s{number:02}")).collect();
    assert_eq!(names(&client), left);
    drop(pin);
}

#[test]
fn a_file_is_unlinked_if_nobody_holds_it_and_stays_whole_if_somebody_does() {
    let owner = owner_of(4);
    let client = owner.client().unwrap();
    put(&client, "a", 0).unwrap();
    put(&client, "b", 0).unwrap();
    put_with(&client, spec("empty", 0, FolioSize::BestFit, 0), b"").unwrap();
    let pin = client.get("a").unwrap();
    let held = client.unlink_unless_held("a").unwrap_err();
    let Error::Refused(Refusal::Held { name, holders, .. }) = &held else { panic!("{held}") };
    assert_eq!((name.as_str(), holders.len(), holders[0].client), ("a", 1, client.id()));
    assert!(!pin.is_reclaim_requested());
    let again = client.get("a").unwrap();
    drop((pin, again));
    let batch = ["a", "gone", "b", "empty", "a"];
    let b = client.get("b").unwrap();
    let results = client.unlink_unless_held_batch(&batch).unwrap();
    let kinds: Vec<_> = results
        .iter()
        .map(|result| result.as_ref().map_err(|error| error.refusal().unwrap().kind()))
        .collect();
    assert_eq!(kinds, [Ok(&()), Err("not_found"), Err("held"), Ok(&()), Err("not_found")]);
    drop(b);
    client.unlink_unless_held("b").unwrap();
    assert_eq!(names(&client), [""; 0]);
    assert_eq!(client.pool_stat().unwrap().free_bytes, 4 * UNIT);
}

#[test]
fn the_next_owner_knows_what_may_be_evicted() {
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = place.path().join("pool");
    let pool = Pool::create(&PoolOptions::in_directory(&path, 3 * UNIT)).unwrap();
    let owner = Owner::start(pool).unwrap();
    let client = owner.client().unwrap();
    put(&client, "kept", 0).unwrap();
    put(&client, "a", 7).unwrap();
    drop(client);
    drop(owner);
    let owner = Owner::start(Pool::open(&path).unwrap()).unwrap();
    let client = owner.client().unwrap();
    assert_eq!(client.stat("a").unwrap().evict_priority, 7);
    put(&client, "b", 7).unwrap();
    put(&client, "c", 7).unwrap();
    assert_eq!(names(&client), ["b", "c", "kept"]);
}

const NR_NAMES: u64 = 100;

fn name_of(number: u64) -> String {
    format!("f{number}")
}

/// Gets files at random and checks each byte of what it holds, for ever. The first ones it holds as
/// long as it lives, so that they become the least recently used.
fn read_all_the_time(client: &Client) -> ! {
    support::say("ok");
    let mut random = Random(u64::from(std::process::id()));
    let mut held = Vec::new();
    loop {
        let name = name_of(random.below(NR_NAMES));
        match client.get(&name) {
            Ok(pin) => {
                let was = block::check(&pin.to_vec().unwrap());
                held.push((name, pin, was));
            }
            Err(Error::Refused(Refusal::NotFound { .. })) => {}
            Err(error) => support::say(format!("a get failed: {error}")),
        }
        if held.len() > 5 {
            drop(held.pop());
        }
        for (name, pin, was) in &held {
            let is = block::check(&pin.to_vec().unwrap());
            if is.is_err() || is != *was {
                support::say(format!("held contents changed: {was:?}, {is:?}"));
            }
            if !client.exists(name).unwrap() {
                support::say(format!("{name} is held, and was evicted"));
            }
        }
    }
}

/// Readers hold and check files while a writer evicts others all the time, and are killed while
/// they do.
#[test]
fn nobody_ever_reads_an_evicted_file_and_what_the_killed_held_is_evicted_later() {
    const NR_READERS: usize = 2;
    let (_owner, _place, socket) = serving_owner(UNIT);
    let client = Client::connect(&socket).unwrap();
    let stop = AtomicBool::new(false);
    let nr_puts = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(17);
            while !stop.load(Ordering::Relaxed) {
                let len = 1 + random.below(UNIT / 16);
                let spec = spec(&name_of(random.below(NR_NAMES)), len, FolioSize::BestFit, 1);
                match put_with(&client, spec, &block::make(random.next(), len as usize)) {
                    Ok(()) => drop(nr_puts.fetch_add(1, Ordering::Relaxed)),
                    Err(Error::Refused(Refusal::NoSpace { .. } | Refusal::Exists { .. })) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let _stop = SetOnDrop(&stop);
        let start = Instant::now();
        let nr_evicted = || client.pool_stat().unwrap().nr_evicted;
        // Longer where the machine is busy.
        while start.elapsed() < Duration::from_secs(3) || nr_evicted() <= 500 {
            assert!(start.elapsed() < BOUND, "{} evicted after {nr_puts:?} puts", nr_evicted());
            let mut readers: Vec<_> =
                (0..NR_READERS).map(|_| Second::ready("reader", &socket)).collect();
            std::thread::sleep(Duration::from_millis(300));
            for reader in &mut readers {
                reader.kill();
                assert_eq!(reader.said(), [""; 0]);
            }
        }
    });
    wait_until("all readers are gone", || {
        (client.pool_stat().unwrap().nr_clients == 1).then_some(())
    });
    // Nothing is held any more, so all of it can be had again.
    put_with(&client, spec("all", UNIT, FolioSize::Pages2M, 0), b"").unwrap();
    assert_eq!(names(&client), ["all"]);
}
