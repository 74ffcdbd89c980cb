//! Calls that end: with an owner that is stopped, full, killed, dropped or at work on something
//! large; and what it does for callers that are gone.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{self, Second, block};
use pgmap::os::Connection;
use pgmap::wire::{self, Hello, Numbered, Reply, Request, Welcome};
use pgmap::{
    Client, ConnectOptions, CreateSpec, Error, Event, FileName, FolioSize, OnDeadline, Owner, Pool,
    PoolOptions, Refusal,
};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;
const POOL_BYTES: u64 = 64 * MIB;
/// Long enough for any answer of an owner that is there.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn child_entry() {
    let Some((role, place)) = support::role() else { return };
    match role.as_str() {
        "client" => support::client_role::run(&place.join("s")),
        "owner" => {
            let pool = Pool::create(&PoolOptions::anonymous(POOL_BYTES)).unwrap();
            let owner = Owner::start(pool).unwrap();
            owner.serve(place.join("s")).unwrap();
            support::say("ok");
            assert_eq!(support::commands().count(), 0);
            drop(owner);
        }
        other => panic!("no such role: {other}"),
    }
    std::process::exit(0);
}

fn place() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = directory.path().to_owned();
    (directory, path)
}

/// How long `act` takes.
fn timed<T>(act: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let result = act();
    (result, started.elapsed())
}

fn is_timed_out<T: std::fmt::Debug>(result: Result<T, Error>, pid: i32) -> bool {
    match result {
        Err(error @ Error::TimedOut { .. }) => {
            let text = error.to_string();
            assert!(text.contains(&format!("pid {pid}")) && text.contains("ms"), "{text}");
            assert_eq!(error.errno(), 110);
            true
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_call_of_a_stopped_owner_ends_with_its_deadline_and_works_again_when_it_goes_on() {
    let (_directory, place) = place();
    let owner = Second::ready("owner", &place);
    let client = Client::connect(place.join("s")).unwrap();
    support::put(&client, "a", &block::make(1, 100_000)).unwrap();
    let limit = Duration::from_millis(150);
    client.set_deadline(limit);
    assert_eq!(client.clone().deadline(), limit, "all clones are one client");
    owner.stop();
    let pid = owner.pid();
    type Call<'c> = (&'c str, &'c dyn Fn() -> Result<(), Error>);
    let calls: [Call<'_>; 11] = [
        ("stat", &|| client.stat("a").map(drop)),
        ("list", &|| client.list().map(drop)),
        ("stat of the pool", &|| client.pool_stat().map(drop)),
        ("who", &|| client.who_all().map(drop)),
        ("create", &|| client.create("b", 1000, FolioSize::BestFit).map(drop)),
        ("unlink", &|| client.unlink("none")),
        ("rename", &|| client.rename("none", "b", pgmap::Replace::No)),
        ("repair", &|| client.repair_free()),
        ("memory failure", &|| client.memory_failure(u64::MAX)),
        ("truncate", &|| client.truncate("none", 1, Duration::from_millis(20))),
        ("punch", &|| client.punch("none", 0..4096, Duration::from_millis(20))),
    ];
    for (name, call) in calls {
        let (result, took) = timed(call);
        assert!(is_timed_out(result, pid), "{name}");
        assert!(took < PATIENCE, "{name} took {took:?}");
    }
    // What is there can be read meanwhile, and a newcomer does not wait for ever either.
    assert_eq!(block::check(&client.get("a").unwrap().to_vec().unwrap()), Ok(1));
    let options = ConnectOptions::new().deadline(limit);
    assert!(is_timed_out(Client::connect_with(place.join("s"), &options), pid));
    owner.signal(Signal::CONT);
    client.set_deadline(PATIENCE);
    // The late answers are nobody's; what they brought is given back.
    assert_eq!(client.stat("a").unwrap().len_bytes, 100_000);
    let info = support::wait_until("the late draft is given back", || {
        let info = client.pool_stat().unwrap();
        (info.reserved_bytes == 0 && info.draining_bytes == 0).then_some(info)
    });
    support::assert_accounted(&info);
    assert_eq!(client.list().unwrap().len(), 1);
}

#[test]
fn a_connection_full_of_unheard_requests_ends_calls_in_time_and_recovers() {
    let (_directory, place) = place();
    let owner = Second::ready("owner", &place);
    let client = Client::connect(place.join("s")).unwrap();
    client.set_deadline(Duration::from_millis(5));
    owner.stop();
    let mut nr_calls = 0;
    // More than any connection holds.
    for _ in 0..600 {
        let name = "n".repeat(255);
        let names = vec![FileName::new(&name).unwrap(); 8];
        assert!(matches!(client.unlink_batch(&names), Err(Error::TimedOut { .. })));
        nr_calls += 1;
    }
    println!("{nr_calls} calls");
    owner.signal(Signal::CONT);
    client.set_deadline(PATIENCE);
    for file in 0..10 {
        support::put(&client, format!("f{file}"), &block::make(file, 10_000)).unwrap();
    }
    assert_eq!(client.list().unwrap().len(), 10);
}

#[test]
fn dropping_clients_writers_and_leases_of_a_stopped_owner_waits_for_nobody() {
    let (_directory, place) = place();
    let owner = Second::ready("owner", &place);
    let client = Client::connect(place.join("s")).unwrap();
    let draft = client.create("draft", MIB, FolioSize::BestFit).unwrap();
    owner.stop();
    let ((), took) = timed(|| drop(draft));
    assert!(took < Duration::from_secs(2), "a writer: {took:?}");
    let ((), took) = timed(|| drop(client));
    assert!(took < Duration::from_secs(2), "a client: {took:?}");
    owner.signal(Signal::CONT);
    let client = Client::connect(place.join("s")).unwrap();
    support::wait_until("it is noticed", || {
        let info = client.pool_stat().unwrap();
        (info.nr_clients == 1 && info.free_bytes == POOL_BYTES).then_some(())
    });
}

#[test]
fn a_writer_whose_owner_was_killed_ends_at_once_with_the_reason() {
    let (_directory, place) = place();
    let mut owner = Second::ready("owner", &place);
    let client = Client::connect(place.join("s")).unwrap();
    let mut writer = client.create("a", 40 * MIB, FolioSize::BestFit).unwrap();
    let idle = client.create("b", MIB, FolioSize::BestFit).unwrap();
    let bytes = vec![1; MIB as usize];
    writer.write_all_at(0, &bytes).unwrap();
    owner.kill();
    let mut nr_written = 1;
    let (error, took) = timed(|| {
        loop {
            match writer.write_all_at(nr_written * MIB, &bytes) {
                Ok(()) => nr_written += 1,
                Err(error) => return error,
            }
        }
    });
    assert!(nr_written < 20, "it does not copy to the end: {nr_written} MiB");
    assert!(matches!(error, Error::Refused(Refusal::NoDraft { .. })), "{error}");
    assert!(error.to_string().contains("owner"), "{error}");
    let (committed, took_commit) = timed(|| idle.commit());
    let error = committed.unwrap_err();
    assert!(error.to_string().contains("owner"), "{error}");
    assert!(took + took_commit < Duration::from_secs(3), "{took:?} and {took_commit:?}");
    let ((), took) = timed(|| drop(writer));
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_large_write_in_one_call_notices_that_its_owner_was_killed() {
    let (_directory, place) = place();
    let mut owner = Second::ready("owner", &place);
    let client = Client::connect(place.join("s")).unwrap();
    let mut writer = client.create("a", 40 * MIB, FolioSize::BestFit).unwrap();
    owner.kill();
    let error = writer.write_all_at(0, &vec![1; 40 << 20]).unwrap_err();
    assert!(matches!(error, Error::Refused(Refusal::NoDraft { .. })), "{error}");
    // And one that only zeroes.
    drop(writer);
}

#[test]
fn calls_of_an_embedded_client_say_that_its_owner_was_dropped() {
    let (_directory, place) = place();
    let options = PoolOptions::in_directory(place.join("p"), POOL_BYTES);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let client = owner.client().unwrap();
    support::put(&client, "a", &block::make(1, 8192)).unwrap();
    let pin = client.get("a").unwrap();
    let draft = client.create("draft", 8192, FolioSize::BestFit).unwrap();
    drop(owner);
    let gone = |result: Result<(), Error>| match result.unwrap_err() {
        Error::OwnerGone { .. } => {}
        error => panic!("{error}"),
    };
    gone(client.stat("a").map(drop));
    gone(client.unlink("a"));
    gone(client.truncate("a", 1, Duration::MAX));
    gone(client.create("b", 1, FolioSize::BestFit).map(drop));
    gone(client.list().map(drop));
    gone(client.next_event(PATIENCE).map(drop));
    assert!(matches!(draft.commit(), Err(Error::Refused(Refusal::NoDraft { .. }))));
    // Its pins stand, and the pool can have another owner while it lives.
    assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(1));
    let next = Owner::start(Pool::open(place.join("p")).unwrap()).unwrap();
    let other = next.client().unwrap();
    assert_eq!(block::check(&other.get("a").unwrap().to_vec().unwrap()), Ok(1));
    other.unlink("a").unwrap();
    let held = next.info();
    assert_eq!(held.draining_bytes, 8192, "the old client's pin counts: {held:?}");
    assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(1));
    drop(pin);
    drop(client);
    drop(other);
    support::wait_for_info(&next, "all is free", |info| {
        info.nr_clients == 0 && info.free_bytes == POOL_BYTES
    });
}

/// A connection that has said hello, without the library around it.
struct Raw {
    _ledger: Option<std::os::fd::OwnedFd>,
    connection: Connection,
    welcome: Welcome,
}

impl Raw {
    fn attach(socket: &Path, label: &str) -> Self {
        let connection = Connection::connect(socket).unwrap();
        let hello = Hello {
            version: wire::VERSION,
            is_registered: false,
            resume: None,
            label: label.into(),
            is_read_only: false,
        };
        connection.send(&wire::encode(&hello).unwrap(), &[]).unwrap();
        let mut buffer = vec![0; wire::MAX_MESSAGE_BYTES];
        let mut received = connection.recv(&mut buffer).unwrap();
        let welcome: Result<Welcome, Refusal> = wire::decode(&buffer[..received.len]).unwrap();
        Self { _ledger: received.fds.pop(), connection, welcome: welcome.unwrap() }
    }

    fn send(&self, number: u64, body: Request) {
        let message = wire::encode(&Numbered { number, body }).unwrap();
        self.connection.send(&message, &[]).unwrap();
    }

    fn answer(&self) -> Numbered<Reply> {
        let mut buffer = vec![0; wire::MAX_MESSAGE_BYTES];
        let received = self.connection.recv(&mut buffer).unwrap();
        wire::decode(&buffer[..received.len]).unwrap()
    }
}

fn truncate(name: &str, deadline_ms: u64) -> Request {
    Request::Truncate {
        name: FileName::new(name).unwrap(),
        len_bytes: 4096,
        deadline_ms,
        on_deadline: OnDeadline::Fail,
    }
}

/// Whether the file is as it was, and can be changed.
fn must_be_whole(client: &Client, name: &str) {
    support::wait_until("the truncate is called off", || {
        match client.rename(name, name, pgmap::Replace::No) {
            Ok(()) => Some(()),
            Err(Error::Refused(Refusal::InUse { .. })) => None,
            Err(error) => panic!("{error}"),
        }
    });
    assert_eq!(client.stat(name).unwrap().len_bytes, MIB);
    assert_eq!(block::check(&client.get(name).unwrap().to_vec().unwrap()), Ok(1));
}

#[test]
fn an_endless_truncate_ends_with_its_caller_its_connection_or_a_cancel() {
    let (owner, directory, socket) = support::serving_owner(POOL_BYTES);
    let client = Client::connect(&socket).unwrap();
    support::put(&client, "a", &block::make(1, MIB as usize)).unwrap();
    let pin = client.get("a").unwrap();
    // Its caller is killed.
    let mut caller = Second::ready("client", directory.path());
    caller.tell(&format!("truncate a 4096 {}", u64::MAX));
    in_use(&client);
    caller.kill();
    must_be_whole(&client, "a");
    // Its connection ends, and its process lives on.
    let raw = Raw::attach(&socket, "raw");
    raw.send(1, truncate("a", u64::MAX));
    in_use(&client);
    let Raw { _ledger: ledger, connection, .. } = raw;
    drop(connection);
    must_be_whole(&client, "a");
    drop(ledger);
    // Nobody waits for the answer any more.
    let raw = Raw::attach(&socket, "raw");
    raw.send(7, truncate("a", u64::MAX));
    in_use(&client);
    raw.send(8, Request::Forget(7));
    must_be_whole(&client, "a");
    raw.send(9, Request::PoolStat);
    assert_eq!(raw.answer().number, 9, "what was forgotten has no answer");
    drop(raw);
    // Somebody calls it off.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.truncate("a", 4096, Duration::MAX));
        let other = owner.client().unwrap();
        support::wait_until("it waits", || other.cancel_cut("a").ok());
        let error = waiting.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Refused(Refusal::CalledOff { .. })), "{error}");
        let refused = other.cancel_cut("a").unwrap_err();
        assert!(matches!(refused, Error::Refused(Refusal::Invalid { .. })), "{refused}");
        let refused = other.cancel_cut("none").unwrap_err();
        assert!(matches!(refused, Error::Refused(Refusal::NotFound { .. })), "{refused}");
    });
    must_be_whole(&client, "a");
    drop(pin);
    client.truncate("a", 4096, Duration::ZERO).unwrap();
}

/// Waits until a truncate of "a" is under way.
fn in_use(client: &Client) {
    support::wait_until("it waits for holders", || {
        // Renaming a file to itself changes nothing.
        let renamed = client.rename("a", "a", pgmap::Replace::No);
        matches!(renamed, Err(Error::Refused(Refusal::InUse { .. }))).then_some(())
    });
}

#[test]
fn an_embedded_truncate_ends_with_its_deadline_also_where_the_owner_goes() {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(POOL_BYTES)).unwrap()).unwrap();
    let client = owner.client().unwrap();
    support::put(&client, "a", &block::make(1, MIB as usize)).unwrap();
    let pin = client.get("a").unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.truncate("a", 4096, Duration::MAX));
        in_use(&client);
        drop(owner);
        let error = waiting.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::OwnerGone { .. }), "{error}");
    });
    drop(pin);
}

#[test]
fn others_are_served_while_memory_for_a_large_file_is_taken() {
    let (owner, _directory, socket) = support::serving_owner(1 << 30);
    let client = Client::connect(&socket).unwrap();
    let raw = Raw::attach(&socket, "large");
    let name = FileName::new("large").unwrap();
    let spec = CreateSpec::new(name, 768 * MIB, FolioSize::BestFit);
    raw.send(1, Request::Create(vec![spec]));
    // It is begun, and not answered, and somebody is served.
    support::wait_until("it is begun", || (owner.info().reserved_bytes > 0).then_some(()));
    raw.connection.set_blocking(pgmap::os::Blocking::Never).unwrap();
    let mut buffer = vec![0; wire::MAX_MESSAGE_BYTES];
    let mut nr_served = 0;
    let reply = loop {
        match raw.connection.recv(&mut buffer) {
            Ok(received) => {
                let reply: Numbered<Reply> = wire::decode(&buffer[..received.len]).unwrap();
                match reply.body {
                    Reply::Working => continue,
                    reply => break reply,
                }
            }
            Err(pgmap::os::TransferError::WouldBlock) => {
                client.stat("none").unwrap_err();
                support::put(&client, "small", b"x").unwrap();
                client.unlink("small").unwrap();
                nr_served += 1;
            }
            Err(error) => panic!("{error}"),
        }
    };
    println!("{nr_served} rounds of calls were served meanwhile");
    assert!(nr_served >= 3, "{nr_served}");
    let Reply::Created(drafts) = reply else { panic!("{reply:?}") };
    assert_eq!(drafts.len(), 1);
    drafts[0].as_ref().unwrap();
    assert!(owner.info().backed_bytes >= 768 * MIB, "its memory is there: {:?}", owner.info());
    // One that nobody waits for any more is given up in the middle, and so is a dead client's.
    let files = ["forgotten", "left"]
        .map(|name| CreateSpec::new(FileName::new(name).unwrap(), 100 * MIB, FolioSize::BestFit));
    let [forgotten, left] = files;
    raw.connection.set_blocking(pgmap::os::Blocking::Wait).unwrap();
    raw.send(2, Request::Create(vec![forgotten]));
    raw.send(3, Request::Forget(2));
    raw.send(4, Request::Create(vec![left]));
    drop(raw);
    drop(client);
    let info = support::wait_for_info(&owner, "all is given back", |info| {
        info.nr_clients == 0 && info.draining_bytes == 0
    });
    assert_eq!((info.free_bytes, info.reserved_bytes), (1 << 30, 0), "{info:?}");
    // An embedded client's create comes back with all of its memory, too.
    let client = owner.client().unwrap();
    client.set_deadline(Duration::from_millis(1));
    let writer = client.create("embedded", 900 * MIB, FolioSize::BestFit).unwrap();
    assert_eq!(owner.info().reserved_bytes, 900 * MIB);
    drop(writer);
}

#[test]
fn a_batch_of_large_files_has_an_answer_for_each() {
    let (_owner, _directory, socket) = support::serving_owner(POOL_BYTES);
    let client = Client::connect(&socket).unwrap();
    let spec = |name: &str, len_bytes| {
        CreateSpec::new(FileName::new(name).unwrap(), len_bytes, FolioSize::BestFit)
    };
    let specs = vec![
        spec("a", 30 * MIB),
        spec("b", u64::MAX),
        spec("c", MIB),
        spec("d", 60 * MIB),
        spec("e", 20 * MIB),
    ];
    let drafts = client.create_batch(specs).unwrap();
    let is_made: Vec<bool> = drafts.iter().map(Result::is_ok).collect();
    assert_eq!(is_made, [true, false, true, false, true]);
    let writers: Vec<_> = drafts.into_iter().flatten().collect();
    let lengths: Vec<u64> = writers.iter().map(pgmap::FileWriter::len_bytes).collect();
    assert_eq!(lengths, [30 * MIB, MIB, 20 * MIB]);
    assert!(client.commit_batch(writers).unwrap().iter().all(Result::is_ok));
    assert_eq!(client.list().unwrap().len(), 3);
}

#[test]
fn a_client_names_itself_and_a_hostile_name_is_made_harmless() {
    let (owner, _directory, socket) = support::serving_owner(POOL_BYTES);
    let client = Client::connect(&socket).unwrap();
    support::put(&client, "a", &block::make(1, 8192)).unwrap();
    let named = Client::connect_with(&socket, &ConnectOptions::new().label("loader 7")).unwrap();
    let _pins = (client.get("a").unwrap(), named.get("a").unwrap());
    let label_of = |client: &Client| {
        let holders = owner.client().unwrap().who_all().unwrap().holders;
        holders.into_iter().find(|holder| holder.client == client.id()).unwrap().label
    };
    assert_eq!(label_of(&named), "loader 7");
    let own = format!("own pid {}", std::process::id());
    assert!(label_of(&client).contains(&own), "{}", label_of(&client));
    let hostile = format!("\x1b[2J\n\u{202e}evil\0{}", "x".repeat(60_000));
    let raw = Raw::attach(&socket, &hostile);
    raw.send(
        1,
        Request::Create(vec![CreateSpec::new(
            FileName::new("draft").unwrap(),
            8192,
            FolioSize::BestFit,
        )]),
    );
    let Reply::Created(drafts) = raw.answer().body else { panic!("another answer") };
    drafts[0].as_ref().unwrap();
    // Its writer holds nothing that a ledger says, so a hold is forged.
    let ledger = raw._ledger.as_ref().unwrap().try_clone().unwrap();
    let client_id = raw.welcome.client;
    forge_hold(ledger);
    let holders = client.who_all().unwrap().holders;
    let label = &holders.iter().find(|holder| holder.client == client_id).unwrap().label;
    assert_eq!(label.chars().count(), wire::MAX_LABEL_CHARS, "{label:?}");
    assert!(label.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{label:?}");
    assert!(label.contains("evil"), "{label:?}");
}

/// Writes a hold of frame 0 into a ledger: lane 0 is in use, with one step of slots.
fn forge_hold(ledger: std::os::fd::OwnedFd) {
    use pgmap::mm::ledger::{Agent, LedgerLayout, SlotWord};
    use pgmap::mm::pfn::PfnRange;
    use pgmap::mm::vmemmap::VmemmapLayout;
    let file = pgmap::os::MemoryFile::from_fd(ledger).unwrap();
    let mapping = pgmap::os::WriteMapping::map(&file, 0, file.len_bytes()).unwrap();
    let layout = VmemmapLayout::for_folios(POOL_BYTES / 4096, pgmap::mm::level::Level::Pte);
    let slots = LedgerLayout::new(&layout.unwrap());
    let hold = SlotWord::new(PfnRange::new(0, 1).unwrap(), Agent::Cpu).bits();
    // Every word of the ledger's short-term slots claims it; the marks say that they are used.
    let nr_words = slots.nr_words();
    println!("{nr_words} words");
    let page: Vec<u8> = hold.to_le_bytes().iter().copied().cycle().take(4096).collect();
    for at in (0..file.len_bytes()).step_by(4096).take(64) {
        mapping.copy_in(at, &page).unwrap();
    }
}

/// The answers to requests that nobody waits for were each taken for the end of what there was, so
/// that an event behind them was not heard.
#[test]
fn an_event_behind_answers_that_nobody_waits_for_is_heard_without_waiting() {
    let (_owner, _place, socket) = support::serving_owner(POOL_BYTES);
    let (holder, other) = (Client::connect(&socket).unwrap(), Client::connect(&socket).unwrap());
    support::put(&other, "a", &block::make(1, 4096)).unwrap();
    let pin = holder.get("a").unwrap();
    let create = |number: u32| holder.create(format!("{number}"), 4096, FolioSize::BestFit);
    let writers: Vec<_> = (0..8).map(create).collect::<Result<_, _>>().unwrap();
    // Each is given up without waiting.
    drop(writers);
    // The owner sends the event after those answers.
    support::wait_until("all were given up", || {
        (other.pool_stat().unwrap().reserved_bytes == 0).then_some(())
    });
    other.unlink("a").unwrap();
    // It asks the holder once that is answered, and before it answers anything else.
    other.pool_stat().unwrap();
    let event = holder.next_event(Duration::ZERO).unwrap();
    assert!(matches!(event, Some(Event::ReclaimRequested { .. })), "{event:?}");
    drop(pin);
}
