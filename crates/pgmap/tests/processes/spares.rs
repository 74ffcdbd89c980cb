//! Frames that are handed out ahead: a put that has them is one call, and they are back in the pool
//! when somebody needs the room, or their client dies.

use pgmap::quota::{QuotaLimits, QuotaOf};
use pgmap::{Client, CreateSpec, Error, FileName, FolioSize, Owner, Pool, PoolOptions, Refusal};

use crate::support::{self, Second, block, serving_owner, wait_until};

const MIB: u64 = 1 << 20;
const UNIT: u64 = 2 * MIB;
const POOL_BYTES: u64 = 8 * UNIT;

#[test]
fn child_entry() {
    support::owner_role::run_if_asked(POOL_BYTES);
}

fn spec(name: &str) -> CreateSpec {
    CreateSpec::new(FileName::new(name).unwrap(), UNIT, FolioSize::BestFit)
}

fn put(client: &Client, name: &str, generation: u64) -> Result<(), Error> {
    client.put(spec(name), &block::make(generation, UNIT as usize))
}

/// What is reserved for a client with one spare: that, and the one in stock.
const SPARE: u64 = 2 * UNIT;

/// Puts two files, after which the client has a spare.
fn put_two(client: &Client) {
    put(client, "a", 1).unwrap();
    assert_eq!(reserved(client), 0, "who puts one file may put no other");
    put(client, "b", 2).unwrap();
    assert_eq!(reserved(client), SPARE);
}

fn reserved(client: &Client) -> u64 {
    client.pool_stat().unwrap().reserved_bytes
}

fn free(client: &Client) -> u64 {
    client.pool_stat().unwrap().free_bytes
}

fn names(client: &Client) -> Vec<String> {
    client.list().unwrap().iter().map(|file| file.name.to_string()).collect()
}

fn check(client: &Client, name: &str, generation: u64) {
    let bytes = client.get(name).unwrap().to_vec().unwrap();
    assert_eq!(block::check(&bytes), Ok(generation), "{name}");
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> Refusal {
    let Err(Error::Refused(refusal)) = result else { panic!("{result:?}") };
    refusal
}

/// Nothing of what comes before the commit can have asked an owner that stands still.
#[test]
fn frames_that_were_handed_out_ahead_are_written_without_a_call() {
    let place = tempfile::tempdir().unwrap();
    let owner = Second::ready("create", place.path());
    let client = Client::connect(place.path().join("s")).unwrap();
    put_two(&client);
    owner.stop();
    let mut writer = client.create_ahead(spec("c")).unwrap();
    writer.write_all_at(0, &block::make(3, UNIT as usize)).unwrap();
    owner.signal(rustix::process::Signal::CONT);
    assert_eq!(names(&client), ["a", "b"], "a spare is no file");
    writer.commit().unwrap();
    check(&client, "c", 3);
    assert_eq!(reserved(&client), SPARE, "the commit brought the next one");
    // A name that is taken is refused before anything is copied, and costs no spare.
    let taken = refused(put(&client, "a", 9));
    assert!(matches!(taken, Refusal::Exists { .. }), "{taken}");
    assert_eq!(reserved(&client), SPARE);
    check(&client, "a", 1);
    client.put(CreateSpec { replace: true, ..spec("a") }, &block::make(4, UNIT as usize)).unwrap();
    check(&client, "a", 4);
    // What is put shorter than it is said to be ends in zeros, whatever the spare had.
    client.unlink("a").unwrap();
    client.put(spec("d"), b"short").unwrap();
    let pinned = client.get("d").unwrap().to_vec().unwrap();
    assert!(pinned.starts_with(b"short") && pinned[5..].iter().all(|&byte| byte == 0));
}

#[test]
fn a_killed_client_gives_its_spares_back_used_or_not() {
    let (_owner, _place, socket) = serving_owner(POOL_BYTES);
    let client = Client::connect(&socket).unwrap();
    for half_written in [false, true] {
        let mut other = Second::ready("other", &socket);
        other.must(&format!("put-once a 1 {UNIT}"));
        other.must(&format!("put-once b 2 {UNIT}"));
        assert_eq!((reserved(&client), free(&client)), (SPARE, POOL_BYTES - 4 * UNIT));
        if half_written {
            other.must(&format!("write-ahead c 3 {UNIT}"));
        }
        other.kill();
        wait_until("its frames are free", || {
            ((reserved(&client), free(&client)) == (0, POOL_BYTES - 2 * UNIT)).then_some(())
        });
        assert_eq!(names(&client), ["a", "b"]);
        client.unlink_batch(&["a", "b"]).unwrap();
    }
}

#[test]
fn a_spare_goes_back_when_somebody_needs_the_room_and_nothing_is_written_into_it_then() {
    let (_owner, _place, socket) = serving_owner(POOL_BYTES);
    let (client, other) = (Client::connect(&socket).unwrap(), Client::connect(&socket).unwrap());
    put_two(&client);
    for number in 0..6 {
        other
            .create(format!("other-{number}"), UNIT, FolioSize::BestFit)
            .unwrap()
            .commit()
            .unwrap();
    }
    assert_eq!((reserved(&other), free(&other)), (0, 0));
    assert!(matches!(refused(put(&client, "c", 3)), Refusal::NoSpace { .. }));
    let zeros = vec![0; UNIT as usize];
    for number in 0..6 {
        let bytes = other.get(format!("other-{number}")).unwrap().to_vec().unwrap();
        assert!(bytes == zeros, "other-{number} was written to");
    }
    other.unlink("other-0").unwrap();
    put(&client, "c", 3).unwrap();
    check(&client, "c", 3);
    assert_eq!(reserved(&client), 0, "there is no room for one");
}

#[test]
fn a_spare_in_use_is_nobody_elses() {
    let (_owner, _place, socket) = serving_owner(POOL_BYTES);
    let (client, other) = (Client::connect(&socket).unwrap(), Client::connect(&socket).unwrap());
    put_two(&client);
    let mut writer = client.create_ahead(spec("c")).unwrap();
    let wanted = other.create("other", 6 * UNIT, FolioSize::BestFit);
    assert!(matches!(refused(wanted), Refusal::NoSpace { .. }));
    writer.write_all_at(0, &block::make(3, UNIT as usize)).unwrap();
    writer.commit().unwrap();
    check(&client, "c", 3);
    // Its successor is in use by nobody.
    other.create("other", 5 * UNIT, FolioSize::BestFit).unwrap().commit().unwrap();
    assert_eq!(free(&client), 0);
}

#[test]
fn spares_count_in_quotas_and_go_before_a_create_is_refused() {
    let (_owner, _place, socket) = serving_owner(POOL_BYTES);
    let (client, other) = (Client::connect(&socket).unwrap(), Client::connect(&socket).unwrap());
    let all = QuotaOf::Uid(rustix::process::geteuid().as_raw());
    let kv = QuotaOf::Prefix(FileName::new("kv/").unwrap());
    client.set_quota(all.clone(), QuotaLimits::new().bytes(4 * UNIT)).unwrap();
    client.set_quota(kv.clone(), QuotaLimits::new().files(1)).unwrap();
    put_two(&client);
    let used = |of: &QuotaOf| {
        let quotas = client.quotas().unwrap();
        let quota = quotas.into_iter().find(|quota| quota.of == *of).unwrap();
        (quota.used_bytes / UNIT, quota.used_files)
    };
    assert_eq!((used(&all), used(&kv)), ((4, 4), (0, 0)));
    other.create("other", 2 * UNIT, FolioSize::BestFit).unwrap().commit().unwrap();
    assert_eq!(used(&all), (4, 3), "the spares are gone");
    assert!(matches!(refused(put(&client, "c", 3)), Refusal::OverQuota { .. }));
    other.unlink("other").unwrap();
    put(&client, "c", 3).unwrap();
    assert_eq!(used(&all), (4, 4));
    // A spare gets its name when it is put: then it is counted in that name's quotas.
    put(&client, "kv/1", 4).unwrap();
    assert_eq!((used(&all), used(&kv)), ((4, 4), (1, 1)));
    assert!(matches!(refused(put(&client, "d", 5)), Refusal::OverQuota { .. }));
    client.remove_quota(all).unwrap();
    put(&client, "d", 5).unwrap();
    assert_eq!(reserved(&client), SPARE);
    let refusal = refused(put(&client, "kv/2", 6));
    assert!(matches!(&refusal, Refusal::OverQuota { of, .. } if of.contains("kv/")), "{refusal}");
}

#[test]
fn after_a_restart_of_the_owner_frames_are_asked_for_again() {
    let place = tempfile::tempdir().unwrap();
    let mut owner = Second::ready("create", place.path());
    let client = Client::connect(place.path().join("s")).unwrap();
    put_two(&client);
    owner.kill();
    let _owner = Second::ready("open", place.path());
    // Of the frames of the spare, which the owner does not know.
    let other = Client::connect(place.path().join("s")).unwrap();
    other.create("other", 6 * UNIT, FolioSize::BestFit).unwrap().commit().unwrap();
    assert!(matches!(refused(put(&client, "c", 3)), Refusal::NoSpace { .. }));
    assert!(other.get("other").unwrap().to_vec().unwrap().iter().all(|&byte| byte == 0));
    other.unlink("other").unwrap();
    put(&client, "c", 3).unwrap();
    check(&client, "c", 3);
    assert_eq!(reserved(&client), SPARE);
}

#[test]
fn threads_of_a_client_have_spares_of_their_own() {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(64 * UNIT)).unwrap()).unwrap();
    let place = tempfile::tempdir().unwrap();
    owner.serve(place.path().join("s")).unwrap();
    let client = Client::connect(place.path().join("s")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let client = &client;
            scope.spawn(move || {
                for round in 0..50 {
                    let name = format!("{thread}-{}", round % 3);
                    let wanted = CreateSpec { replace: true, ..spec(&name) };
                    client.put(wanted, &block::make(round, UNIT as usize)).unwrap();
                    check(client, &name, round);
                }
            });
        }
    });
    assert!((SPARE..=4 * SPARE).contains(&reserved(&client)), "{}", reserved(&client));
    drop(client);
    let local = owner.client().unwrap();
    wait_until("its spares are back", || (reserved(&local) == 0).then_some(()));
}
