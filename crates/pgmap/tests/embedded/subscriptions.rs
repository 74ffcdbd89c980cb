//! Following what becomes of files: in order, by prefix, with gaps that show, at no one else's
//! cost.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{self, Random, put, seed, serving_owner};
use pgmap::FileChange::{Created, Drained, Removed};
use pgmap::wire::MAX_SUBSCRIPTIONS;
use pgmap::{
    Client, CreateSpec, Error, FileChange, FolioSize, Owner, Pool, PoolOptions, Refusal, Replace,
    SubscribeOptions, Subscription,
};
use rustix::event::{PollFd, PollFlags, poll};

const MIB: u64 = 1 << 20;
const WAIT: Duration = Duration::from_secs(10);

fn follow(client: &Client, prefix: &str) -> Subscription {
    client.subscribe(&SubscribeOptions::new().prefix(prefix)).unwrap()
}

/// The next event as change, name and number of the file.
fn next(subscription: &mut Subscription) -> (FileChange, String, u64) {
    let notice = subscription.next(WAIT).unwrap().expect("an event in time");
    assert_eq!(notice.nr_missed, 0);
    (notice.event.change, notice.event.name.to_string(), notice.event.id)
}

fn is_silent(subscription: &mut Subscription) -> bool {
    subscription.next(Duration::from_millis(30)).unwrap().is_none()
}

#[test]
fn each_subscriber_is_told_what_it_asked_for_in_order() {
    let (owner, _place, socket) = serving_owner(16 * MIB);
    let maker = Client::connect(&socket).unwrap();
    for client in [owner.client().unwrap(), Client::connect(&socket).unwrap()] {
        let mut all = follow(&client, "");
        let mut some = follow(&client, "kv/");
        let only = SubscribeOptions::new().only(&[Drained]);
        let mut drained = client.subscribe(&only).unwrap();
        put(&maker, "kv/a", &[1; 5000]).unwrap();
        put(&maker, "other", &[1; 5000]).unwrap();
        put(&maker, "empty", b"").unwrap();
        let ids: Vec<u64> =
            ["kv/a", "other", "empty"].iter().map(|name| maker.stat(name).unwrap().id).collect();
        let pin = maker.get("kv/a").unwrap();
        maker.rename("other", "kv/b", Replace::No).unwrap();
        maker.unlink("kv/a").unwrap();
        maker.unlink("empty").unwrap();
        for (change, name, id) in [
            (Created, "kv/a", ids[0]),
            (Created, "other", ids[1]),
            (Created, "empty", ids[2]),
            (Removed, "other", ids[1]),
            (Created, "kv/b", ids[1]),
            (Removed, "kv/a", ids[0]),
            (Removed, "empty", ids[2]),
            (Drained, "empty", ids[2]),
        ] {
            assert_eq!(next(&mut all), (change, name.to_owned(), id));
        }
        assert_eq!(next(&mut some), (Created, "kv/a".into(), ids[0]));
        assert_eq!(next(&mut some), (Created, "kv/b".into(), ids[1]));
        assert_eq!(next(&mut some), (Removed, "kv/a".into(), ids[0]));
        assert_eq!(next(&mut drained), (Drained, "empty".into(), ids[2]));
        assert!(is_silent(&mut drained), "it is held");
        drop(pin);
        assert_eq!(next(&mut drained), (Drained, "kv/a".into(), ids[0]));
        assert_eq!(next(&mut some), (Drained, "kv/a".into(), ids[0]));
        let spec = CreateSpec::named("kv/b", 9, FolioSize::BestFit).unwrap().replacing();
        maker.create_batch(vec![spec]).unwrap().pop().unwrap().unwrap().commit().unwrap();
        let new = maker.stat("kv/b").unwrap().id;
        assert_eq!(next(&mut some), (Removed, "kv/b".into(), ids[1]));
        assert_eq!(next(&mut some), (Created, "kv/b".into(), new));
        assert_eq!(next(&mut some), (Drained, "kv/b".into(), ids[1]));
        maker.unlink("kv/b").unwrap();
    }
}

#[test]
fn the_descriptor_is_readable_when_there_is_an_event() {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(16 * MIB)).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let mut events = follow(&client, "");
    let is_readable = |events: &Subscription| {
        let mut fds = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::IN)];
        let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
        poll(&mut fds, Some(&wait)).unwrap() == 1
    };
    assert!(!is_readable(&events));
    assert_eq!(events.try_next().unwrap(), None);
    put(&client, "a", b"1").unwrap();
    assert!(is_readable(&events));
    assert_eq!(events.try_next().unwrap().unwrap().event.change, Created);
    assert!(!is_readable(&events));
}

/// Whoever reads late gets the newest, and knows how many it did not get; a put takes no longer.
#[test]
fn a_reader_that_is_slow_loses_the_oldest_and_knows_how_many() {
    const NR_PUTS: u64 = 6000;
    let (_owner, _place, socket) = serving_owner(16 * MIB);
    let maker = Client::connect(&socket).unwrap();
    let slow = Client::connect(&socket).unwrap();
    let only = SubscribeOptions::new().only(&[Created]);
    let mut events = slow.subscribe(&only).unwrap();
    for number in 0..NR_PUTS {
        let name = format!("f{number}");
        maker.create(&name, 0, FolioSize::BestFit).unwrap().commit().unwrap();
        maker.unlink(&name).unwrap();
    }
    let (mut nr_got, mut nr_missed, mut last, mut since_gap) = (0, 0, 0, 0);
    while let Some(notice) = events.next(Duration::from_millis(300)).unwrap() {
        nr_got += 1;
        nr_missed += notice.nr_missed;
        since_gap = if notice.nr_missed > 0 { 0 } else { since_gap + 1 };
        assert_eq!(notice.event.sequence, nr_got + nr_missed);
        assert!(notice.event.id > last, "in order");
        last = notice.event.id;
        assert_eq!(notice.event.name.to_string(), format!("f{}", notice.event.sequence - 1));
    }
    assert_eq!(nr_got + nr_missed, NR_PUTS, "{nr_got} got, {nr_missed} missed");
    assert!(nr_missed > 0 && nr_got >= 1024, "{nr_got} got, {nr_missed} missed");
    assert!(since_gap >= 1000, "the newest are all there: {since_gap}");
    maker.create("after", 0, FolioSize::BestFit).unwrap().commit().unwrap();
    assert_eq!(next(&mut events).1, "after");
}

#[test]
fn a_client_has_so_many_subscriptions_and_gets_the_room_of_dropped_ones_back() {
    let (_owner, _place, socket) = serving_owner(16 * MIB);
    let greedy = Client::connect(&socket).unwrap();
    for _ in 0..3 {
        let mut all: Vec<Subscription> =
            (0..MAX_SUBSCRIPTIONS).map(|_| follow(&greedy, "")).collect();
        let refused = greedy.subscribe(&SubscribeOptions::new()).unwrap_err();
        assert!(matches!(refused, Error::Refused(Refusal::TooMuch { .. })), "{refused}");
        put(&greedy, "a", b"1").unwrap();
        greedy.unlink("a").unwrap();
        assert_eq!(next(&mut all[7]).0, Created);
        drop(all);
        support::wait_until("room for a subscription", || {
            greedy.subscribe(&SubscribeOptions::new()).ok()
        });
        support::wait_until("room for all", || {
            let all: Result<Vec<_>, _> = (0..MAX_SUBSCRIPTIONS)
                .map(|_| greedy.subscribe(&SubscribeOptions::new()))
                .collect();
            all.ok()
        });
        std::thread::sleep(Duration::from_millis(50));
    }
    for refused in [
        greedy.subscribe(&SubscribeOptions::new().only(&[])),
        greedy.subscribe(&SubscribeOptions::new().prefix([b'x'; 256])),
    ] {
        let refused = refused.unwrap_err();
        assert!(matches!(refused, Error::Refused(Refusal::Invalid { .. })), "{refused}");
    }
}

/// A follower's book of names and numbers is the pool's list, after any history.
#[test]
fn a_book_that_is_kept_by_events_is_the_pools_list() {
    let seed = seed();
    let mut random = Random(seed);
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(16 * MIB)).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let mut events = follow(&client, "");
    let (mut book, mut undrained) = (BTreeMap::new(), BTreeMap::new());
    let mut pins = Vec::new();
    for _ in 0..400 {
        let (name, other) = (format!("n{}", random.below(6)), format!("n{}", random.below(6)));
        match random.below(6) {
            0 | 1 => {
                let spec = CreateSpec::named(&name, 5000, FolioSize::BestFit).unwrap().replacing();
                client.create_batch(vec![spec]).unwrap().pop().unwrap().unwrap().commit().unwrap();
            }
            2 => drop(client.unlink(&name)),
            3 => drop(client.rename(&name, &other, Replace::Yes)),
            4 => pins.extend(client.get(&name)),
            _ => pins.truncate(random.below(3) as usize),
        }
        if random.below(20) == 0 {
            follow_up(&mut events, &mut book, &mut undrained);
        }
    }
    pins.clear();
    support::wait_for_info(&owner, "nothing to drain", |info| info.draining_bytes == 0);
    follow_up(&mut events, &mut book, &mut undrained);
    let list: BTreeMap<String, u64> =
        client.list().unwrap().iter().map(|file| (file.name.to_string(), file.id)).collect();
    assert_eq!(book, list);
    assert_eq!(undrained, BTreeMap::new(), "removed, and not said to be drained");
}

fn follow_up(
    events: &mut Subscription,
    book: &mut BTreeMap<String, u64>,
    undrained: &mut BTreeMap<u64, String>,
) {
    while let Some(notice) = events.next(Duration::from_millis(100)).unwrap() {
        assert_eq!(notice.nr_missed, 0);
        let (name, id) = (notice.event.name.to_string(), notice.event.id);
        match notice.event.change {
            Created => {
                assert_eq!(book.insert(name, id), None, "removed before it is there again");
                undrained.remove(&id);
            }
            Removed => {
                assert_eq!(book.remove(&name), Some(id));
                undrained.insert(id, name);
            }
            Drained => assert_eq!(undrained.remove(&id), Some(name), "drained once, at the end"),
            other => panic!("{other:?}"),
        }
    }
}

/// The file is committed at any moment around the look-up and the subscription.
#[test]
fn a_wait_for_a_file_never_misses_its_commit() {
    let (owner, _place, socket) = serving_owner(16 * MIB);
    let mut random = Random(seed());
    for client in [owner.client().unwrap(), Client::connect(&socket).unwrap()] {
        let maker = Client::connect(&socket).unwrap();
        for round in 0..150 {
            let name = format!("kv/{round}");
            let pause = Duration::from_micros(random.below(300));
            std::thread::scope(|scope| {
                let waiting =
                    scope.spawn(|| client.wait_for(&name, WAIT).map(|file| file.is_some()));
                std::thread::sleep(pause);
                put(&maker, format!("{name}-longer"), b"1").unwrap();
                put(&maker, &name, b"1").unwrap();
                assert!(waiting.join().unwrap().unwrap());
            });
            maker.unlink(&name).unwrap();
            maker.unlink(format!("{name}-longer")).unwrap();
        }
        let started = Instant::now();
        assert!(client.wait_for("never", Duration::from_millis(50)).unwrap().is_none());
        assert!(started.elapsed() >= Duration::from_millis(50));
        assert!(client.wait_for("", WAIT).is_err());
    }
}

#[test]
fn a_subscription_ends_with_its_owner_and_a_wait_goes_on_with_the_next() {
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let (path, socket) = (place.path().join("pool"), place.path().join("s"));
    let serve = |pool: Pool| {
        let owner = Owner::start(pool).unwrap();
        owner.serve(&socket).unwrap();
        owner
    };
    let owner = serve(Pool::create(&PoolOptions::in_directory(&path, 16 * MIB)).unwrap());
    let client = Client::connect(&socket).unwrap();
    let mut events = follow(&client, "");
    let is_waiting = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            is_waiting.store(true, Ordering::Relaxed);
            client.wait_for("late", WAIT).map(|file| file.is_some())
        });
        support::wait_until("a wait", || is_waiting.load(Ordering::Relaxed).then_some(()));
        std::thread::sleep(Duration::from_millis(50));
        drop(owner);
        let gone = events.next(WAIT).unwrap_err();
        assert!(matches!(gone, Error::OwnerGone { .. }), "{gone}");
        let owner = serve(Pool::open(&path).unwrap());
        put(&owner.client().unwrap(), "late", b"1").unwrap();
        assert!(waiting.join().unwrap().unwrap());
        let mut events = follow(&client, "");
        put(&client, "again", b"1").unwrap();
        assert_eq!(next(&mut events).1, "again");
    });
}
