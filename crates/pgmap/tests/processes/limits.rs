//! Peers and neighbours that take too much: ledgers cut short, answers too long for a message, more
//! clients than there is room for, clients that never read. The owner serves everybody else.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use crate::support::{self, Second, block};
use pgmap::mm::ledger::{Agent, SlotWord};
use pgmap::mm::pfn::PfnRange;
use pgmap::os::{Blocking, Connection, MemoryFile, TransferError, WriteMapping};
use pgmap::report::{HoldKind, HolderList};
use pgmap::wire::{self, Hello, Numbered, Reply, Request, Welcome};
use pgmap::{Client, Error, FileName, FolioSize, OnDeadline, Owner, Pool, PoolOptions, Refusal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const MIB: u64 = 1 << 20;
const POOL_BYTES: u64 = 32 * MIB;

#[test]
fn child_entry() {
    let Some((role, place)) = support::role() else { return };
    match role.as_str() {
        "client" => support::client_role::run(&place.join("s")),
        "few descriptors" => owner_with(&place, 160, Some(160)),
        "low soft limit" => owner_with(&place, 64, None),
        "owner" => owner_with(&place, 4096, None),
        other => panic!("no such role: {other}"),
    }
    std::process::exit(0);
}

/// An owner under a limit of open files; says what it takes when asked.
fn owner_with(place: &Path, soft: u64, hard: Option<u64>) {
    let limits = getrlimit(Resource::Nofile);
    let maximum = hard.or(limits.maximum);
    let soft = soft.min(maximum.unwrap_or(soft));
    setrlimit(Resource::Nofile, Rlimit { current: Some(soft), maximum }).unwrap();
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(POOL_BYTES)).unwrap()).unwrap();
    owner.serve(place.join("s")).unwrap();
    support::say("ok");
    for command in support::commands() {
        match command.as_str() {
            "rss" => support::say(own_memory()),
            "clients" => support::say(owner.info().nr_clients),
            other => panic!("no such command: {other}"),
        }
    }
    drop(owner);
}

/// Bytes of memory that are this process's alone.
fn own_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// A connection that has said hello, without the library around it.
struct Raw {
    ledger: Option<OwnedFd>,
    connection: Connection,
    welcome: Welcome,
}

impl Raw {
    fn attach(socket: &Path) -> Self {
        Self::try_attach(socket).unwrap()
    }

    fn try_attach(socket: &Path) -> Result<Self, Refusal> {
        let connection =
            support::wait_until("a place in the queue", || Connection::connect(socket).ok());
        let hello = Hello {
            version: wire::VERSION,
            is_registered: false,
            resume: None,
            label: "raw".into(),
            is_read_only: false,
        };
        // One that is full says so before it hears anything.
        let _ = connection.send(&wire::encode(&hello).unwrap(), &[]);
        let mut buffer = vec![0; wire::MAX_MESSAGE_BYTES];
        let mut received = match connection.recv(&mut buffer) {
            Err(TransferError::Closed) => connection.recv(&mut buffer).unwrap(),
            received => received.unwrap(),
        };
        let welcome: Result<Welcome, Refusal> = wire::decode(&buffer[..received.len]).unwrap();
        let welcome = welcome?;
        Ok(Self { ledger: received.fds.pop(), connection, welcome })
    }

    fn is_cut_off(&self) -> bool {
        match self.connection.recv(&mut vec![0; wire::MAX_MESSAGE_BYTES]) {
            Ok(received) => received.is_end(),
            Err(error) => matches!(error, TransferError::Closed),
        }
    }

    fn ledger_file(&self) -> MemoryFile {
        MemoryFile::from_fd(self.ledger.as_ref().unwrap().try_clone().unwrap()).unwrap()
    }

    /// Writes `word` over all words from byte `from` to byte `to` of the ledger.
    fn scribble(&self, from: u64, to: u64, word: u64) {
        let file = self.ledger_file();
        let mapping = WriteMapping::map(&file, 0, file.len_bytes()).unwrap();
        let page: Vec<u8> = word.to_le_bytes().into_iter().cycle().take(4096).collect();
        for at in (from..to.min(file.len_bytes())).step_by(4096) {
            mapping.copy_in(at, &page).unwrap();
        }
    }

    /// Claims a device's hold of `run`: every word of the marks and the first slots says so.
    fn claim(&self, run: PfnRange) {
        self.scribble(0, 256 * 1024, SlotWord::new(run, Agent::Device).bits());
    }
}

fn frames(client: &Client, name: &str) -> PfnRange {
    let pin = client.get(name).unwrap();
    let segment = pin.segments().next().unwrap();
    PfnRange::new(segment.pool_offset / 4096, segment.len_bytes.div_ceil(4096)).unwrap()
}

fn in_directory() -> (Owner, tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let options = PoolOptions::in_directory(directory.path().join("pool"), POOL_BYTES);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let socket = directory.path().join("s");
    owner.serve(&socket).unwrap();
    (owner, directory, socket)
}

#[test]
fn a_client_that_cuts_its_ledger_short_is_cut_off_and_everybody_else_goes_on() {
    let (owner, _directory, socket) = in_directory();
    let client = Client::connect(&socket).unwrap();
    let whole = Raw::attach(&socket).ledger_file().len_bytes();
    for len_bytes in [0, 100, 4096, 8192, 100_000, whole / 2, whole - 2 * 4096] {
        support::put(&client, "a", &block::make(1, MIB as usize)).unwrap();
        let run = frames(&client, "a");
        let raw = Raw::attach(&socket);
        // It says that everything is used, so that the owner looks everywhere.
        raw.scribble(0, 3 * 4096, u64::MAX);
        raw.scribble(3 * 4096, 4 * 4096, SlotWord::new(run, Agent::Device).bits());
        raw.ledger_file().set_len(len_bytes).unwrap();
        let holders = client.who_all().unwrap().holders;
        let unreadable = holders.iter().any(|holder| holder.kind == HoldKind::Unreadable);
        println!("cut to {len_bytes}: {} holders, unreadable: {unreadable}", holders.len());
        client.unlink("a").unwrap();
        client.who_all().unwrap();
        assert!(owner.info().draining_bytes >= MIB, "what it may hold is given to nobody");
        // Others go on, with files of their own that are gone when they are removed.
        support::put(&client, "b", &block::make(2, MIB as usize)).unwrap();
        assert_eq!(block::check(&client.get("b").unwrap().to_vec().unwrap()), Ok(2));
        client.unlink("b").unwrap();
        support::wait_for_info(&owner, "what came later is free", |info| {
            info.draining_bytes == MIB
        });
        // The rest of the ledger was claims, so it may be cut off or not; it is if something was
        // lost.
        if unreadable {
            assert!(raw.is_cut_off(), "cut to {len_bytes}");
        }
        drop(raw);
        let info = support::wait_for_info(&owner, "its end is the end of it", |info| {
            info.nr_clients == 1 && info.draining_bytes == 0
        });
        assert_eq!((info.free_bytes, info.orphaned_bytes), (POOL_BYTES, 0), "{info:?}");
    }
}

#[test]
fn frames_that_a_lost_ledger_may_have_named_for_a_device_are_detached_before_reuse() {
    let (owner, _directory, socket) = in_directory();
    let client = Client::connect(&socket).unwrap();
    support::put(&client, "a", &block::make(1, MIB as usize)).unwrap();
    support::put(&client, "stays", &block::make(3, MIB as usize)).unwrap();
    let raw = Raw::attach(&socket);
    raw.claim(frames(&client, "a"));
    // Nobody looks before it is dead.
    raw.ledger_file().set_len(0).unwrap();
    let epoch = client.detach_epoch();
    drop(raw);
    let info = support::wait_for_info(&owner, "it is reaped", |info| info.nr_clients == 1);
    assert_eq!(info.orphaned_bytes, 2 * MIB, "all that was in use: {info:?}");
    assert_eq!(block::check(&client.get("stays").unwrap().to_vec().unwrap()), Ok(3));
    client.unlink("a").unwrap();
    support::wait_for_info(&owner, "it is free", |info| info.free_bytes == POOL_BYTES - MIB);
    assert!(client.detach_epoch() > epoch, "a device that registered the pool must know");
    assert_eq!(owner.info().orphaned_bytes, MIB);
    client.unlink("stays").unwrap();
    let info = support::wait_for_info(&owner, "all is free", |info| info.free_bytes == POOL_BYTES);
    assert_eq!(info.orphaned_bytes, 0);
}

#[test]
fn a_ledger_that_a_neighbour_empties_ends_at_most_its_client() {
    let (owner, directory, socket) = in_directory();
    let client = owner.client().unwrap();
    support::put(&client, "a", &block::make(1, MIB as usize)).unwrap();
    let mut victim = Second::ready("client", directory.path());
    victim.must("pin-device a");
    let ledgers = std::fs::read_dir(directory.path().join("pool/ledgers")).unwrap();
    let own = client.id().to_string();
    for ledger in ledgers.flatten().filter(|entry| *entry.file_name() != *own) {
        std::fs::File::options().write(true).truncate(true).open(ledger.path()).unwrap();
    }
    client.who_all().unwrap();
    client.unlink("a").unwrap();
    client.who_all().unwrap();
    assert_eq!(owner.info().draining_bytes, MIB, "its pin is not forgotten");
    victim.kill();
    support::wait_for_info(&owner, "its end is the end of it", |info| {
        info.free_bytes == POOL_BYTES && info.orphaned_bytes == 0
    });
    drop(socket);
}

#[test]
fn the_files_of_an_anonymous_pool_keep_their_size_whatever_a_client_does() {
    let (owner, _directory, socket) = support::serving_owner(POOL_BYTES);
    let connection = Connection::connect(&socket).unwrap();
    let hello = Hello {
        version: wire::VERSION,
        is_registered: false,
        resume: None,
        label: String::new(),
        is_read_only: false,
    };
    connection.send(&wire::encode(&hello).unwrap(), &[]).unwrap();
    let received = connection.recv(&mut vec![0; wire::MAX_MESSAGE_BYTES]).unwrap();
    assert_eq!(received.fds.len(), 5);
    for (place, fd) in received.fds.into_iter().enumerate().filter(|&(place, _)| place != 3) {
        // A read-only descriptor does not keep the file's own user from opening it for writing.
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        for len in [0, 8, 1 << 40] {
            let error = file.set_len(len).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{place}: {error}");
        }
    }
    let client = owner.client().unwrap();
    support::put(&client, "a", &block::make(1, 10_000)).unwrap();
    client.who_all().unwrap();
}

/// An owner that was killed while it made a ledger shut everybody out of the pool.
#[test]
fn a_ledger_that_was_never_attached_is_removed_at_the_start() {
    let (owner, directory, socket) = in_directory();
    let client = Client::connect(&socket).unwrap();
    support::put(&client, "a", &block::make(1, MIB as usize)).unwrap();
    drop((client, owner));
    let (pool, ledgers) = (directory.path().join("pool"), directory.path().join("pool/ledgers"));
    let planted: Vec<_> = [0, 1, 100, 4096, 100_000]
        .iter()
        .map(|&len| {
            let path = ledgers.join(format!("{}", 900_000 + len));
            std::fs::File::create(&path).unwrap().set_len(len).unwrap();
            path
        })
        .collect();
    // One that a client wrote to and that was cut since may have named anything for a device.
    let cut = ledgers.join("900007");
    let mark = pgmap::mm::ledger::LEDGER_MAGIC.to_le_bytes();
    std::fs::write(&cut, [&mark[..], &[0; 100]].concat()).unwrap();
    let owner = Owner::start(Pool::open(&pool).unwrap()).unwrap();
    assert!(planted.iter().all(|path| !path.exists()));
    let info = owner.info();
    assert_eq!((info.nr_clients, info.live_bytes, info.orphaned_bytes), (0, MIB, MIB), "{info:?}");
    assert!(cut.exists());
    let client = owner.client().unwrap();
    assert_eq!(block::check(&client.get("a").unwrap().to_vec().unwrap()), Ok(1));
    client.unlink("a").unwrap();
    let info = support::wait_for_info(&owner, "it is free", |info| info.free_bytes == POOL_BYTES);
    assert_eq!(info.orphaned_bytes, 0);
    support::wait_until("its ledger goes with its last orphan", || (!cut.exists()).then_some(()));
}

/// A name of 255 bytes, each of which messages write as four characters.
fn long_name(number: usize) -> FileName {
    let mut bytes = vec![1; 255];
    bytes[..4].copy_from_slice(format!("{number:04}").as_bytes());
    FileName::new(bytes).unwrap()
}

#[test]
fn an_unlink_of_many_long_names_says_what_became_of_each() {
    let (owner, _directory, socket) = support::serving_owner(POOL_BYTES);
    let client = Client::connect(&socket).unwrap();
    for number in (0..240).step_by(2) {
        support::put(&client, long_name(number).as_bytes(), b"x").unwrap();
    }
    let results = client.unlink_batch(&(0..240).map(long_name).collect::<Vec<_>>()).unwrap();
    assert_eq!(results.len(), 240);
    for (number, result) in results.iter().enumerate() {
        match result {
            Ok(()) => assert!(number.is_multiple_of(2)),
            Err(Error::Refused(Refusal::NotFound { name })) => {
                assert!(!number.is_multiple_of(2) && name.starts_with(&format!("{number:04}")));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(owner.info().nr_files, 0);
    // The same of commits: each name is taken by the first half.
    let spec = |number| pgmap::CreateSpec::new(long_name(number), 1, FolioSize::BestFit);
    let mut writers = Vec::new();
    for _ in 0..2 {
        let drafts = client.create_batch((0..120).map(spec).collect()).unwrap();
        writers.extend(drafts.into_iter().map(Result::unwrap));
    }
    let results = client.commit_batch(writers).unwrap();
    let nr_done = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!((results.len(), nr_done, owner.info().nr_files), (240, 120, 120));
    let exists =
        |result: &Result<(), Error>| matches!(result, Err(Error::Refused(Refusal::Exists { .. })));
    assert!(results[120..].iter().all(exists));
    let drafts = client.create_batch((0..200).map(spec).collect()).unwrap();
    let made: Vec<bool> = drafts.iter().map(Result::is_ok).collect();
    assert!(made[..120].iter().all(|&is_made| !is_made) && made[120..].iter().all(|&made| made));
}

#[test]
fn a_commit_of_many_drafts_in_many_pieces_is_reported_as_done() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let options = PoolOptions::anonymous(80 * MIB).max_files(1 << 16);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    owner.serve(&socket).unwrap();
    let local = owner.client().unwrap();
    let nr_pages = 80 * MIB / 4096;
    let name = |page: u64| FileName::new(format!("p{page}")).unwrap();
    // Every second page of the pool is taken, so that free memory is in pieces of one.
    for first in (0..nr_pages).step_by(256) {
        let pages = first..nr_pages.min(first + 256);
        let specs =
            pages.clone().map(|p| pgmap::CreateSpec::new(name(p), 4096, FolioSize::Pages4K));
        let writers: Vec<_> =
            local.create_batch(specs.collect()).unwrap().into_iter().map(Result::unwrap).collect();
        local.commit_batch(writers).unwrap();
    }
    for first in (0..nr_pages).step_by(512) {
        let names: Vec<_> = (first..nr_pages.min(first + 512)).step_by(2).map(name).collect();
        assert!(local.unlink_batch(&names).unwrap().iter().all(Result::is_ok));
    }
    let client = Client::connect(&socket).unwrap();
    let writers: Vec<_> = (0..9)
        .map(|file| client.create(format!("f{file}"), 850 * 4096, FolioSize::BestFit).unwrap())
        .collect();
    let results = client.commit_batch(writers).unwrap();
    let refused: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert!(refused.is_empty(), "{}", refused[0]);
    for file in 0..9 {
        let info = client.stat(format!("f{file}")).unwrap();
        assert!(info.nr_extents > 800, "{info:?}");
        drop(client.get(format!("f{file}")).unwrap());
    }
    // A create that cannot be answered is refused, and nothing of it is kept.
    let before = owner.info().reserved_bytes;
    let spec = |file| {
        let name = FileName::new(format!("g{file}")).unwrap();
        pgmap::CreateSpec::new(name, 900 * 4096, FolioSize::BestFit)
    };
    let drafts = client.create_batch(vec![spec(0), spec(1), spec(2)]).unwrap();
    assert!(drafts.iter().any(Result::is_err));
    drop(drafts);
    support::wait_for_info(&owner, "nothing is kept", |info| info.reserved_bytes == before);
}

#[test]
fn a_quarantine_with_more_holders_than_a_message_names_is_reported_as_done() {
    let (owner, _directory, socket) = support::serving_owner(POOL_BYTES);
    let client = Client::connect(&socket).unwrap();
    let name = long_name(7);
    support::put(&client, name.as_bytes(), &block::make(1, MIB as usize)).unwrap();
    let file = client.open(name.as_bytes()).unwrap();
    let pins: Vec<_> = (0..250)
        .map(|page| file.pin((page + 1) * 4096..(page + 1) * 4096 + 4096).unwrap())
        .collect();
    let refused = client.truncate(name.as_bytes(), 4096, Duration::ZERO).unwrap_err();
    assert!(matches!(refused, Error::Refused(Refusal::Held { .. })), "{refused}");
    let HolderList { holders, is_cut } = client.who(name.as_bytes()).unwrap();
    assert!(!holders.is_empty() && is_cut);
    let holders =
        client.truncate_or(name.as_bytes(), 4096, Duration::ZERO, OnDeadline::Quarantine).unwrap();
    assert!(!holders.is_empty(), "some are named");
    assert_eq!(client.stat(name.as_bytes()).unwrap().len_bytes, 4096, "it is done");
    drop(pins);
    support::wait_for_info(&owner, "they let go", |info| info.quarantined_bytes == 0);
}

#[test]
fn a_pool_that_is_full_of_clients_says_so_and_serves_those_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let mut owner = Second::ready("few descriptors", directory.path());
    let client = Client::connect(&socket).unwrap();
    support::put(&client, "a", &block::make(1, 10_000)).unwrap();
    let mut raws = Vec::new();
    let full = loop {
        assert!(raws.len() < 160, "there is an end to it");
        match Raw::try_attach(&socket) {
            Ok(raw) => raws.push(raw),
            Err(refusal) => break refusal,
        }
    };
    println!("{} clients, then: {full}", raws.len() + 1);
    assert!(raws.len() >= 5);
    let Refusal::Full { nr_clients, limit, nr_disconnected: 0 } = full else { panic!("{full}") };
    assert_eq!((nr_clients, limit), (raws.len() as u64 + 1, nr_clients));
    for _ in 0..20 {
        let error = Client::connect(&socket).unwrap_err();
        assert!(matches!(error, Error::Refused(Refusal::Full { .. })), "{error}");
    }
    assert_eq!(client.stat("a").unwrap().len_bytes, 10_000, "who is there is served");
    // Those that close the connection and keep the ledger count, and are named.
    let ledgers: Vec<_> = raws.drain(..).map(|raw| raw.ledger).collect();
    support::wait_until("they are disconnected", || match Client::connect(&socket) {
        Err(Error::Refused(Refusal::Full { nr_disconnected, .. })) => {
            (nr_disconnected == nr_clients - 1).then_some(())
        }
        other => panic!("{other:?}"),
    });
    drop(ledgers);
    let newcomer = support::wait_until("there is room again", || Client::connect(&socket).ok());
    assert_eq!(newcomer.stat("a").unwrap().len_bytes, 10_000);
    drop(newcomer);
    // Whoever only connects takes no descriptor that a client needs, whatever they get as an
    // answer.
    let silent: Vec<_> = (0..200).filter_map(|_| Connection::connect(&socket).ok()).collect();
    let served = support::wait_until("it is served", || Client::connect(&socket).ok());
    assert_eq!(served.stat("a").unwrap().len_bytes, 10_000);
    assert_eq!(client.stat("a").unwrap().len_bytes, 10_000);
    drop(silent);
    assert!(owner.ask("clients").parse::<u64>().unwrap() <= nr_clients);
}

#[test]
fn an_owner_raises_its_soft_limit_of_open_files() {
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if hard < 1024 {
        println!(
            "SKIPPED an_owner_raises_its_soft_limit_of_open_files: the hard limit is {hard}; \
             raise it to 1024"
        );
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let _owner = Second::ready("low soft limit", directory.path());
    let socket = directory.path().join("s");
    let raws: Vec<_> = (0..100).map(|_| Raw::attach(&socket)).collect();
    let ids: std::collections::BTreeSet<u64> = raws.iter().map(|raw| raw.welcome.client).collect();
    assert_eq!(ids.len(), 100);
}

#[test]
fn clients_that_never_read_cost_little_and_are_cut_off_and_others_are_served() {
    const NR_DEAF: u64 = 60;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let mut owner = Second::ready("owner", directory.path());
    let client = Client::connect(&socket).unwrap();
    for file in 0..100 {
        support::put(&client, format!("{file:0>250}"), b"x").unwrap();
    }
    let memory = |owner: &mut Second| owner.ask("rss").parse::<u64>().unwrap();
    let idle: Vec<_> = (0..NR_DEAF).map(|_| Raw::attach(&socket)).collect();
    client.list().unwrap();
    let before = memory(&mut owner);
    let list = wire::encode(&Numbered { number: 1, body: Request::List(None) }).unwrap();
    for raw in &idle {
        raw.connection.set_blocking(Blocking::Never).unwrap();
        // Until its own requests find no room either, or it is cut off.
        for _ in 0..2000 {
            match raw.connection.send(&list, &[]) {
                Ok(()) => {}
                Err(TransferError::WouldBlock | TransferError::Closed) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert_eq!(client.list().unwrap().len(), 100, "others are served meanwhile");
    let each = memory(&mut owner).saturating_sub(before) / NR_DEAF;
    println!("{each} bytes of the owner per client that never reads");
    assert!(each < 128 << 10, "{each}");
    support::wait_until("all of them are cut off", || {
        assert_eq!(client.list().unwrap().len(), 100, "others are served meanwhile");
        let is_cut =
            |raw: &Raw| matches!(raw.connection.send(&list, &[]), Err(TransferError::Closed));
        idle.iter().all(is_cut).then_some(())
    });
    let after = memory(&mut owner).saturating_sub(before);
    println!("{after} bytes are kept afterwards");
    drop(idle);
    support::wait_until("they are reaped", || (owner.ask("clients") == "1").then_some(()));
}

/// A client that lets go and never rings: only the owner's own look finds it.
#[test]
fn a_hold_that_ends_without_a_bell_is_noticed_by_the_owners_own_look() {
    let (owner, _directory, socket) = support::serving_owner(POOL_BYTES);
    let client = owner.client().unwrap();
    support::put(&client, "a", &block::make(1, MIB as usize)).unwrap();
    let raw = Raw::attach(&socket);
    raw.claim(frames(&client, "a"));
    client.unlink("a").unwrap();
    assert_eq!(owner.info().draining_bytes, MIB);
    // Only the slots: what else it wrote stays. Nothing tells the owner.
    raw.scribble(0, 256 * 1024, 0);
    let started = std::time::Instant::now();
    support::wait_for_info(&owner, "the owner looks by itself", |info| info.draining_bytes == 0);
    println!("noticed after {:?}", started.elapsed());
}

#[test]
fn a_client_in_a_living_process_that_lets_go_of_its_ledger_is_reaped_without_a_bell() {
    let (owner, _directory, socket) = support::serving_owner(POOL_BYTES);
    let Raw { ledger, connection, .. } = Raw::attach(&socket);
    drop(connection);
    support::wait_until("it is disconnected", || (owner.info().nr_clients == 1).then_some(()));
    drop(ledger);
    support::wait_for_info(&owner, "it is reaped", |info| info.nr_clients == 0);
}

#[test]
fn more_waiting_requests_than_one_client_may_have_are_refused() {
    let (owner, _directory, socket) = support::serving_owner(POOL_BYTES);
    let client = owner.client().unwrap();
    let nr_files = 300;
    for file in 0..nr_files {
        support::put(&client, format!("f{file}"), &block::make(file, 8192)).unwrap();
    }
    let pins: Vec<_> = (0..nr_files).map(|file| client.get(format!("f{file}")).unwrap()).collect();
    let raw = Raw::attach(&socket);
    for file in 0..nr_files {
        let body = Request::Truncate {
            name: FileName::new(format!("f{file}")).unwrap(),
            len_bytes: 1,
            deadline_ms: u64::MAX,
            on_deadline: OnDeadline::Fail,
        };
        let message = wire::encode(&Numbered { number: file + 1, body }).unwrap();
        raw.connection.send(&message, &[]).unwrap();
    }
    let mut buffer = vec![0; wire::MAX_MESSAGE_BYTES];
    let received = raw.connection.recv(&mut buffer).unwrap();
    let reply: Numbered<Reply> = wire::decode(&buffer[..received.len]).unwrap();
    let Reply::Refused(Refusal::TooMuch { limit, .. }) = reply.body else { panic!("{reply:?}") };
    assert_eq!(reply.number, limit + 1);
    drop(raw);
    support::wait_until("they are called off", || {
        let holders = client.who("f0").unwrap().holders;
        (holders.len() == 1 && client.rename("f0", "g0", pgmap::Replace::No).is_ok()).then_some(())
    });
    drop(pins);
}
