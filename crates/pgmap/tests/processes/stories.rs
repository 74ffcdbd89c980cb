//! Bugs that were found by reading and by the tests beside this one, each with its story.

use std::time::Duration;

use crate::support::{self, Second, block};
use pgmap::report::HolderList;
use pgmap::{CreateSpec, Error, FileName, FolioSize, Owner, Pool, PoolOptions, Refusal};

const MIB: u64 = 1 << 20;

#[test]
fn child_entry() {
    if let Some((role, place)) = support::role() {
        match role.as_str() {
            "client" => support::client_role::run(&place),
            "owner" => own(&place),
            other => panic!("no such role: {other}"),
        }
    }
}

fn owner(size_bytes: u64) -> Owner {
    Owner::start(Pool::create(&PoolOptions::anonymous(size_bytes)).unwrap()).unwrap()
}

/// A truncate changed the life word of what stays by setting a flag, and put the old word back when
/// it gave up. The next truncate then gave the file the very word of the first: whoever had opened
/// it while the first was waiting held a valid reference to frames that the second had freed.
#[test]
fn a_life_word_never_comes_back_after_a_truncate_that_was_given_up() {
    let owner = owner(8 * MIB);
    let client = owner.client().unwrap();
    support::put(&client, "a", &block::make(1, 8 << 20)).unwrap();
    let file = client.open("a").unwrap();
    let pin = file.pin(7 * MIB..7 * MIB + 4096).unwrap();
    let meanwhile = std::thread::scope(|scope| {
        let truncate = scope.spawn(|| client.truncate("a", 6 * MIB, Duration::from_millis(300)));
        let meanwhile = support::wait_until("the truncate waits", || {
            client.open("a").ok().filter(|file| file.len_bytes() == 6 * MIB)
        });
        assert!(matches!(truncate.join().unwrap(), Err(Error::Refused(Refusal::Held { .. }))));
        meanwhile
    });
    drop(pin);
    client.truncate("a", 2 * MIB, Duration::from_secs(10)).unwrap();
    // Somebody else gets the rest.
    support::put(&client, "b", &block::make(2, 6 << 20)).unwrap();
    let pin = meanwhile.pin_all().unwrap();
    assert_eq!(pin.len_bytes(), 2 * MIB, "pinned frames that are another file's");
    assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(1));
}

/// A deadline was added to the clock without a look at the sum.
#[test]
fn a_truncate_without_end_waits_for_its_holder() {
    let owner = owner(8 * MIB);
    let client = owner.client().unwrap();
    for deadline_ms in [u64::MAX, u64::MAX - 1, u64::MAX / 2] {
        support::put(&client, "a", &block::make(1, 4 << 20)).unwrap();
        let pin = client.get("a").unwrap();
        std::thread::scope(|scope| {
            let truncate =
                scope.spawn(|| client.truncate("a", 1, Duration::from_millis(deadline_ms)));
            support::wait_until("the truncate waits", || pin.is_reclaim_requested().then_some(()));
            drop(pin);
            truncate.join().unwrap().unwrap();
        });
        client.unlink("a").unwrap();
    }
}

/// The refusal that names holders was longer than a message may be, and became "too much" instead.
#[test]
fn a_refusal_that_names_many_holders_of_a_long_name_still_says_held() {
    let (owner, _directory, socket) = support::serving_owner(8 * MIB);
    let client = owner.client().unwrap();
    let far = pgmap::Client::connect(&socket).unwrap();
    // Each byte of such a name is four when it is shown.
    let name = [0xff; 255];
    support::put(&client, name, &block::make(1, 4 << 20)).unwrap();
    let pins: Vec<_> = (0..400).map(|_| client.get(name).unwrap()).collect();
    let error = far.truncate(name, 1, Duration::ZERO).unwrap_err();
    let Error::Refused(Refusal::Held { holders, .. }) = &error else { panic!("{error}") };
    assert!(holders.len() > 10 && holders[0].pid == std::process::id() as i32);
    let HolderList { holders, is_cut } = far.who(name).unwrap();
    assert!(holders.len() > 10 && is_cut);
    drop(pins);
}

/// The answer to a batch repeated refused names, escaped, and did not fit: the drafts of the same
/// batch were reserved for a client that never learned of them. Refusals are shortened now, drafts
/// never are.
#[test]
fn drafts_beside_refused_long_names_reach_their_client() {
    let (owner, _directory, socket) = support::serving_owner(8 * MIB);
    let client = owner.client().unwrap();
    let far = pgmap::Client::connect(&socket).unwrap();
    let name = |number: u8| {
        let mut name = vec![0xff; 250];
        name[0] = number;
        name
    };
    let spec = |name| CreateSpec::new(FileName::new(name).unwrap(), 4096, FolioSize::BestFit);
    for number in 1..=100 {
        support::put(&client, name(number), b"taken").unwrap();
    }
    let before = owner.info();
    let specs = (1..=200).map(|number| spec(name(number))).collect();
    let drafts = far.create_batch(specs).unwrap();
    for (number, draft) in (1..=200).zip(&drafts) {
        match draft {
            Ok(_) => assert!(number > 100, "{number}"),
            Err(Error::Refused(Refusal::Exists { .. })) => assert!(number <= 100, "{number}"),
            Err(error) => panic!("{number}: {error}"),
        }
    }
    assert_eq!(owner.info().reserved_bytes, 100 * 4096);
    drop(drafts);
    support::wait_for_info(&owner, "the drafts given up", |info| {
        (info.free_bytes, info.reserved_bytes) == (before.free_bytes, 0)
    });
}

/// A client that pins and never calls gets reclaim requests again and again. When its socket was
/// full it was cut off as one that does not read its answers, and could call no more.
#[test]
fn a_reader_that_never_listens_keeps_its_connection() {
    let (owner, _directory, socket) = support::serving_owner(8 * MIB);
    let client = owner.client().unwrap();
    support::put(&client, "a", &block::make(1, 4 << 20)).unwrap();
    let mut reader = Second::start("client", &socket);
    assert_eq!(reader.answer(), "ok");
    reader.must("pin a");
    for _ in 0..3000 {
        assert!(client.truncate("a", 1, Duration::ZERO).is_err());
    }
    assert_eq!(reader.ask("verify"), "generation 1");
    reader.must("drop");
    assert_eq!(reader.ask("clients"), "2");
    reader.must("put b 2 1000");
}

/// The embedding process forks a child that stays. The child has a copy of every connection, so
/// epoll went on to report those that the owner had closed: a busy loop for as long as the child
/// lived.
#[test]
fn an_owner_whose_process_has_a_forked_child_does_not_spin_on_closed_connections() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let mut owner = Second::start("owner", &socket);
    assert_eq!(owner.answer(), "ok");
    let mut client = Second::start("client", &socket);
    assert_eq!(client.answer(), "ok");
    client.must("put a 1 5000");
    // Copies of its connections, as a forked child has them.
    let test = "an_owner_whose_process_has_a_forked_child_does_not_spin";
    let Some(copies) = support::sockets_of(owner.pid(), test) else { return };
    client.kill();
    assert_eq!(owner.ask("wait"), "1");
    let busy_ms: u64 = owner.ask("busy").parse().unwrap();
    assert!(busy_ms < 60, "the owner ran for {busy_ms} of 400 ms that had nothing to do");
    drop(copies);
}

fn own(socket: &std::path::Path) -> ! {
    let owner = owner(8 * MIB);
    owner.serve(socket).unwrap();
    let client = owner.client().unwrap();
    support::say("ok");
    for command in support::commands() {
        match command.as_str() {
            "wait" => {
                let info =
                    support::wait_for_info(&owner, "the client is gone", |i| i.nr_clients == 1);
                support::say(info.nr_clients);
            }
            _ => {
                let before = busy_ms();
                std::thread::sleep(Duration::from_millis(400));
                support::say(busy_ms() - before);
            }
        }
    }
    drop(client);
    std::process::exit(0);
}

fn busy_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec.unsigned_abs() * 1000 + time.tv_nsec.unsigned_abs() / 1_000_000
}
