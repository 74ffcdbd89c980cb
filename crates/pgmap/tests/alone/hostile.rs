//! Peers that lie: whatever arrives is an allegation (I9). Each is answered with a clear error or
//! cut off; the owner lives on, serves others, and loses no frame and no descriptor.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::MutexGuard;
use std::time::Duration;

use crate::alone;
use crate::support::{self, Random, block};
use pgmap::mm::ledger::{Agent, SlotWord};
use pgmap::mm::pfn::PfnRange;
use pgmap::os::poll::wait_for;
use pgmap::os::{Connection, Interest, MemoryFile, TransferError, WriteMapping};
use pgmap::wire::{self, CommitSpec, Hello, Numbered, PutSpec, Reply, Request, Welcome};
use pgmap::{
    Client, CreateSpec, Error, FileName, FileRules, FolioSize, OnDeadline, Owner, Pool,
    PoolOptions, Refusal, UserMetadata,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngAlgorithm, TestRng};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage};

const POOL_BYTES: u64 = 32 << 20;

fn put_spec(id: u64) -> PutSpec {
    PutSpec {
        id,
        name: FileName::new("put").unwrap(),
        replace: true,
        rules: FileRules::default(),
        metadata: UserMetadata::default(),
        checksum: None,
        nr_spares: 1,
    }
}

fn nr_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// An owner, what it had before anybody lied to it, and the check that it still has it.
struct Victim {
    owner: Owner,
    socket: std::path::PathBuf,
    nr_descriptors: usize,
    _directory: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Victim {
    fn new() -> Self {
        let alone = alone();
        let (owner, directory, socket) = support::serving_owner(POOL_BYTES);
        drop(Client::connect(&socket).unwrap());
        support::wait_for_info(&owner, "nobody is attached", |info| info.nr_clients == 0);
        let nr_descriptors = nr_descriptors();
        Self { owner, socket, nr_descriptors, _directory: directory, _alone: alone }
    }

    /// A normal client is served.
    fn must_serve(&self) {
        let client = Client::connect(&self.socket).unwrap();
        support::put(&client, "normal", &block::make(7, 100_000)).unwrap();
        let pin = client.get("normal").unwrap();
        assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(7));
        client.unlink("normal").unwrap();
    }

    /// It serves, and nothing of the liars is left: no client, no frame, no descriptor.
    fn must_be_as_before(&self) {
        self.must_serve();
        let info = support::wait_for_info(&self.owner, "all are gone", |info| {
            info.nr_clients == 0 && info.draining_bytes == 0
        });
        assert_eq!((info.free_bytes, info.orphaned_bytes), (POOL_BYTES, 0), "{info:?}");
        support::wait_until("all descriptors are closed", || {
            (nr_descriptors() <= self.nr_descriptors).then_some(())
        });
    }
}

fn hello(version: u32, resume: Option<u64>) -> Hello {
    let (is_registered, is_read_only) = (resume.is_some(), false);
    Hello { version, is_registered, resume, label: "a liar".into(), is_read_only }
}

/// A connection that has said hello, without the library around it.
struct Raw {
    // The ledger goes first: its lock is the sign of life.
    ledger: Option<OwnedFd>,
    connection: Connection,
    welcome: Welcome,
}

impl Raw {
    fn attach(socket: &Path) -> Self {
        let connection = Connection::connect(socket).unwrap();
        let hello = hello(wire::VERSION, None);
        connection.send(&wire::encode(&hello).unwrap(), &[]).unwrap();
        let mut buffer = vec![0; wire::MAX_MESSAGE_BYTES];
        let mut received = connection.recv(&mut buffer).unwrap();
        let welcome: Result<Welcome, Refusal> = wire::decode(&buffer[..received.len]).unwrap();
        let ledger = received.fds.pop();
        Self { ledger, connection, welcome: welcome.unwrap() }
    }

    fn send(&self, request: Request) {
        let message = wire::encode(&Numbered { number: 1, body: request }).unwrap();
        self.connection.send(&message, &[]).unwrap();
    }

    fn ask(&self, request: Request) -> Reply {
        self.send(request);
        self.answer().unwrap()
    }

    /// The next answer; `None` if the owner hung up.
    fn answer(&self) -> Option<Reply> {
        answer(&self.connection)
    }

    /// Sends bytes, and waits until the owner has done with them: there may be no answer to them.
    fn send_bent(&self, message: &[u8]) {
        send_raw(&self.connection, message, &[]).unwrap();
        let last = wire::encode(&Numbered { number: u64::MAX, body: Request::PoolStat }).unwrap();
        // It may have hung up by now.
        drop(self.connection.send(&last, &[]));
        while !matches!(self.answer(), None | Some(Reply::PoolStat(_))) {}
    }
}

fn answer(connection: &Connection) -> Option<Reply> {
    let is_there = wait_for([(connection.as_fd(), Interest::Read)], support::BOUND).unwrap();
    assert_eq!(is_there, [true], "neither an answer nor the end");
    let mut buffer = vec![0; wire::MAX_MESSAGE_BYTES];
    match connection.recv(&mut buffer) {
        Ok(received) if received.is_end() => None,
        Ok(received) => {
            let reply: Numbered<Reply> = wire::decode(&buffer[..received.len]).unwrap();
            Some(reply.body)
        }
        Err(TransferError::Closed) => None,
        Err(error) => panic!("{error}"),
    }
}

fn is_cut_off(connection: &Connection) -> bool {
    answer(connection).is_none()
}

/// Sends bytes and descriptors past the library's own checks.
fn send_raw(
    connection: &Connection,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> rustix::io::Result<()> {
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(250))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let parts = [IoSlice::new(bytes)];
    rustix::net::sendmsg(connection, &parts, &mut control, rustix::net::SendFlags::NOSIGNAL)?;
    Ok(())
}

fn a_file(name: &str, len_bytes: u64) -> Request {
    Request::Create(vec![CreateSpec::new(
        FileName::new(name).unwrap(),
        len_bytes,
        FolioSize::BestFit,
    )])
}

#[test]
fn bytes_that_are_no_greeting_are_told_so_and_cut_off() {
    let victim = Victim::new();
    let greet = |bytes: &[u8]| {
        let connection = Connection::connect(&victim.socket).unwrap();
        send_raw(&connection, bytes, &[]).unwrap();
        let mut buffer = vec![0; wire::MAX_MESSAGE_BYTES];
        let received = connection.recv(&mut buffer).unwrap();
        let said: Result<Welcome, Refusal> = wire::decode(&buffer[..received.len]).unwrap();
        (said, received.fds.len(), connection)
    };
    let mut bytes = strategy_bytes();
    let mut nr_refused = 0;
    for _ in 0..500 {
        let (said, nr_fds, connection) = greet(&bytes());
        match said {
            Err(_) => {
                assert!(nr_fds == 0 && is_cut_off(&connection));
                nr_refused += 1;
            }
            // Three random bytes can be a greeting.
            Ok(_) => assert_eq!(nr_fds, 5),
        }
    }
    assert!(nr_refused > 400, "{nr_refused}");
    for version in [0, wire::VERSION + 1, u32::MAX] {
        let hello = hello(version, None);
        let (said, ..) = greet(&wire::encode(&hello).unwrap());
        let why = said.unwrap_err().to_string();
        assert!(why.contains(&version.to_string()), "it names both versions: {why}");
    }
    for resume in [0, 1, 5, u64::MAX] {
        let hello = hello(wire::VERSION, Some(resume));
        assert!(greet(&wire::encode(&hello).unwrap()).0.is_err(), "no ledger is shown");
    }
    // Longer than any message, and nothing at all.
    for bytes in [vec![1; 150_000], Vec::new()] {
        let connection = Connection::connect(&victim.socket).unwrap();
        send_raw(&connection, &bytes, &[]).unwrap();
        assert!(is_cut_off(&connection));
    }
    victim.must_be_as_before();
}

/// Random messages from a fixed seed: of any bytes, of few different ones, long and short.
fn strategy_bytes() -> impl FnMut() -> Vec<u8> {
    let seed = [0x42; 32];
    println!("seed {seed:x?}");
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(
        proptest::test_runner::Config { failure_persistence: None, ..Default::default() },
        random,
    );
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..64),
        prop::collection::vec(0u8..14, 1..40),
        prop::collection::vec(prop_oneof![Just(0xffu8), Just(0x80), Just(1), Just(0)], 1..40),
        prop::collection::vec(any::<u8>(), 1000..60_000),
    ];
    move || bytes.new_tree(&mut runner).unwrap().current()
}

#[test]
fn a_greeting_with_descriptors_nobody_asked_for_is_refused_and_they_are_closed() {
    let victim = Victim::new();
    let (pipe, _other_end) = rustix::pipe::pipe().unwrap();
    let (pair, _other) = Connection::pair().unwrap();
    let hello = hello(wire::VERSION, None);
    let hello = wire::encode(&hello).unwrap();
    for fds in [vec![pipe.as_fd()], vec![pair.as_fd(), pipe.as_fd()], vec![pipe.as_fd(); 16]] {
        let connection = Connection::connect(&victim.socket).unwrap();
        connection.send(&hello, &fds).unwrap();
        let mut buffer = [0; 512];
        let received = connection.recv(&mut buffer).unwrap();
        let said: Result<Welcome, Refusal> = wire::decode(&buffer[..received.len]).unwrap();
        assert!(said.unwrap_err().to_string().contains(&format!("{} descriptors", fds.len())));
    }
    for nr_fds in [17, 40, 250] {
        let connection = Connection::connect(&victim.socket).unwrap();
        send_raw(&connection, &hello, &vec![pipe.as_fd(); nr_fds]).unwrap();
        assert!(is_cut_off(&connection), "{nr_fds} descriptors");
    }
    // A request never has any.
    let raw = Raw::attach(&victim.socket);
    let request = wire::encode(&Numbered { number: 1, body: Request::PoolStat }).unwrap();
    raw.connection.send(&request, &[pipe.as_fd()]).unwrap();
    assert!(is_cut_off(&raw.connection));
    drop((raw, pipe, _other_end, pair, _other));
    victim.must_be_as_before();
}

#[test]
fn requests_cut_short_lengthened_and_bent_end_at_most_their_connection() {
    let victim = Victim::new();
    let name = FileName::new("some name").unwrap();
    let requests = [
        a_file("some name", 5000),
        Request::Commit([1, 2, 3].map(CommitSpec::new).to_vec()),
        Request::Abort(vec![u64::MAX]),
        Request::Unlink(vec![name.clone()]),
        Request::Rename { from: name.clone(), to: name.clone(), replace: true },
        Request::Locate(7),
        Request::Stat(name.clone()),
        Request::List(Some(name.clone())),
        Request::Who(Some(name)),
        Request::PoolStat,
        Request::Leave,
    ];
    let mut random = Random(support::seed());
    for request in &requests {
        let whole = wire::encode(&Numbered { number: 1, body: request }).unwrap();
        let mut bent: Vec<Vec<u8>> = (1..whole.len()).map(|len| whole[..len].to_vec()).collect();
        bent.push([&whole[..], &[0]].concat());
        bent.extend((0..60).map(|_| {
            let mut copy = whole.clone();
            let at = random.below(copy.len() as u64) as usize;
            copy[at] ^= 1 << random.below(8);
            copy
        }));
        for message in bent {
            let raw = Raw::attach(&victim.socket);
            // Either it was a request after all, or it is the end.
            raw.send_bent(&message);
            drop(raw);
        }
    }
    let mut bytes = strategy_bytes();
    for _ in 0..500 {
        let raw = Raw::attach(&victim.socket);
        raw.send_bent(&bytes());
    }
    victim.must_be_as_before();
}

#[test]
fn names_with_nul_and_of_5000_bytes_on_the_wire_are_no_message() {
    let victim = Victim::new();
    let name = FileName::new("aaaa").unwrap();
    let request = Numbered { number: 1, body: Request::Unlink(vec![name]) };
    let good = wire::encode(&request).unwrap();
    let before_name = good.len() - 5;
    assert_eq!(good[before_name..], *b"\x04aaaa", "as postcard writes a name");
    // 5000, 256 and 0 as postcard writes them.
    let long = |len: usize, prefix: &[u8]| [prefix, &vec![b'x'; len]].concat();
    for name in [b"\x04aa\0a".to_vec(), long(5000, b"\x88\x27"), long(256, b"\x80\x02"), vec![0]] {
        let raw = Raw::attach(&victim.socket);
        let message = [&good[..before_name], &name[..]].concat();
        send_raw(&raw.connection, &message, &[]).unwrap();
        assert!(is_cut_off(&raw.connection), "{} bytes of name", name.len());
    }
    let client = Client::connect(&victim.socket).unwrap();
    for name in [&b""[..], b"a\0b", &[b'x'; 5000]] {
        for refused in [
            client.create(name, 1, FolioSize::BestFit).map(drop),
            client.open(name).map(drop),
            client.unlink(name),
            client.rename("a", name, pgmap::Replace::No),
            client.truncate(name, 1, Duration::ZERO),
        ] {
            assert!(matches!(refused, Err(Error::Refused(Refusal::BadName { .. }))), "{refused:?}");
        }
    }
    drop(client);
    victim.must_be_as_before();
}

#[test]
fn numbers_at_their_limits_are_refused_with_a_reason() {
    let victim = Victim::new();
    let raw = Raw::attach(&victim.socket);
    let name = || FileName::new("a").unwrap();
    for len_bytes in [POOL_BYTES + 1, u64::MAX - 4095, u64::MAX] {
        for size in [FolioSize::BestFit, FolioSize::Pages4K, FolioSize::Pages2M, FolioSize::Pages1G]
        {
            let Reply::Created(drafts) =
                raw.ask(Request::Create(vec![CreateSpec::new(name(), len_bytes, size)]))
            else {
                panic!("another answer")
            };
            let refusal = drafts[0].as_ref().unwrap_err();
            assert!(matches!(refusal, Refusal::BadLength { .. }), "{len_bytes}: {refusal}");
            assert!(refusal.to_string().contains(&len_bytes.to_string()));
        }
    }
    let Reply::Created(drafts) = raw.ask(a_file("a", 1)) else { panic!("another answer") };
    let id = drafts[0].as_ref().unwrap().id;
    let Reply::Committed(done) =
        raw.ask(Request::Commit([0, id, id, u64::MAX].map(CommitSpec::new).to_vec()))
    else {
        panic!("another answer")
    };
    assert_eq!(done.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false, false]);
    for len_bytes in [2, u64::MAX] {
        let truncate = Request::Truncate {
            name: name(),
            len_bytes,
            deadline_ms: u64::MAX,
            on_deadline: OnDeadline::Fail,
        };
        let reply = raw.ask(truncate);
        assert!(matches!(reply, Reply::Refused(Refusal::BadLength { .. })), "{reply:?}");
    }
    for (offset, len_bytes) in [(0, 0), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX), (0, 2)]
    {
        let on_deadline = OnDeadline::Fail;
        let punch = Request::Punch { name: name(), offset, len_bytes, deadline_ms: 0, on_deadline };
        let reply = raw.ask(punch);
        assert!(matches!(reply, Reply::Refused(_)), "{offset} {len_bytes}: {reply:?}");
    }
    for request in [
        Request::Commit(vec![CommitSpec::new(1); 10_000]),
        Request::Put(vec![put_spec(1); 1000]),
        Request::Abort(vec![1; 10_000]),
        Request::Locate(u64::MAX),
    ] {
        let reply = raw.ask(request);
        assert!(matches!(reply, Reply::Refused(_)), "{reply:?}");
    }
    assert!(matches!(raw.ask(Request::Unlink(vec![name()])), Reply::Unlinked(_)));
    drop(raw);
    victim.must_be_as_before();
}

#[test]
fn anothers_drafts_are_nobodys() {
    let victim = Victim::new();
    let (mine, theirs) = (Raw::attach(&victim.socket), Raw::attach(&victim.socket));
    let Reply::Created(drafts) = theirs.ask(a_file("theirs", 5000)) else { panic!() };
    let id = drafts[0].as_ref().unwrap().id;
    let Reply::Committed(done) = mine.ask(Request::Commit(vec![CommitSpec::new(id)])) else {
        panic!()
    };
    assert!(matches!(done[0], Err(Refusal::NoDraft { .. })));
    let Reply::Put(done) = mine.ask(Request::Put(vec![put_spec(id), put_spec(id)])) else {
        panic!()
    };
    for put in done {
        assert!(matches!(put.committed, Err(Refusal::NoDraft { .. })), "another client's was put");
        assert!(put.spares.is_empty());
    }
    assert!(matches!(mine.ask(Request::Abort(vec![id])), Reply::Done));
    assert_eq!(victim.owner.info().reserved_bytes, 8192, "it is still there");
    let Reply::Committed(done) = theirs.ask(Request::Commit(vec![CommitSpec::new(id)])) else {
        panic!()
    };
    assert!(done[0].is_ok());
    let Reply::Unlinked(_) = mine.ask(Request::Unlink(vec![FileName::new("theirs").unwrap()]))
    else {
        panic!()
    };
    drop((mine, theirs));
    victim.must_be_as_before();
}

#[test]
fn nobody_resumes_another_client_and_it_keeps_what_it_has() {
    let _alone = alone();
    let directory = support::roomy();
    let (pool, socket) = (directory.path().join("pool"), directory.path().join("s"));
    let options = PoolOptions::in_directory(&pool, POOL_BYTES);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    owner.serve(&socket).unwrap();
    let client = owner.client().unwrap();
    support::put(&client, "a", &block::make(1, 1 << 20)).unwrap();
    let victim = Client::connect(&socket).unwrap();
    let pin = victim.get("a").unwrap();
    client.unlink("a").unwrap();

    let mine = Raw::attach(&socket);
    let resume = |number: u64, shown: &[BorrowedFd<'_>]| {
        let connection = Connection::connect(&socket).unwrap();
        let hello = hello(wire::VERSION, Some(number));
        connection.send(&wire::encode(&hello).unwrap(), shown).unwrap();
        let mut buffer = [0; 512];
        let received = connection.recv(&mut buffer).unwrap();
        let said: Result<Welcome, Refusal> = wire::decode(&buffer[..received.len]).unwrap();
        said.is_ok()
    };
    let ledger = mine.ledger.as_ref().unwrap();
    assert!(!resume(victim.id(), &[ledger.as_fd()]), "with another ledger");
    // The same user can open the file, but has not the description that is locked.
    let path = pool.join("ledgers").join(victim.id().to_string());
    let opened = std::fs::File::options().read(true).write(true).open(path).unwrap();
    assert!(!resume(victim.id(), &[opened.as_fd()]), "with the ledger's file, opened again");
    let (pipe, _other_end) = rustix::pipe::pipe().unwrap();
    assert!(!resume(victim.id(), &[pipe.as_fd()]));
    assert!(!resume(u64::MAX, &[ledger.as_fd()]));
    assert!(!resume(victim.id(), &[ledger.as_fd(), ledger.as_fd()]));
    assert!(resume(mine.welcome.client, &[ledger.as_fd()]), "with its own");
    drop(mine);

    assert_eq!(victim.pool_stat().unwrap().draining_bytes, 1 << 20);
    assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(1));
    drop(pin);
    drop(victim);
    support::wait_for_info(&owner, "all is free", |info| info.free_bytes == POOL_BYTES);
}

#[test]
fn five_thousand_connections_do_not_end_the_owner() {
    let victim = Victim::new();
    let mut open = Vec::new();
    let mut nr_refused = 0;
    for _ in 0..5000 {
        // Busy or out of descriptors: an error each, and no more than that.
        match Connection::connect(&victim.socket) {
            Ok(connection) => open.push(connection),
            Err(_) => nr_refused += 1,
        }
    }
    println!("{} connected, {nr_refused} refused at once", open.len());
    assert!(open.len() > 100);
    // While they are there the owner may refuse others, but says so.
    if let Err(error) = Client::connect(&victim.socket) {
        let is_said = matches!(
            error,
            Error::Os(_) | Error::TimedOut { .. } | Error::Refused(Refusal::Full { .. })
        );
        assert!(is_said, "{error}");
    }
    let _ = victim.owner.info();
    drop(open);
    support::wait_until("somebody is served again", || Client::connect(&victim.socket).ok());
    victim.must_be_as_before();
}

#[test]
fn a_client_that_never_reads_its_answers_is_cut_off_and_others_are_served() {
    let victim = Victim::new();
    let client = Client::connect(&victim.socket).unwrap();
    for file in 0..100 {
        support::put(&client, format!("file with a long name {file}"), b"x").unwrap();
    }
    let raw = Raw::attach(&victim.socket);
    raw.connection.set_blocking(pgmap::os::Blocking::Never).unwrap();
    let list = wire::encode(&Numbered { number: 1, body: Request::List(None) }).unwrap();
    support::wait_until("it is cut off", || {
        assert_eq!(client.list().unwrap().len(), 100, "others are served meanwhile");
        match raw.connection.send(&list, &[]) {
            Ok(()) | Err(TransferError::WouldBlock) => None,
            Err(_) => Some(()),
        }
    });
    for file in client.list().unwrap() {
        client.unlink(file.name.as_bytes()).unwrap();
    }
    drop(raw);
    drop(client);
    victim.must_be_as_before();
}

/// Writes `word(n)` over every word of a ledger.
fn scribble(raw: &Raw, mut word: impl FnMut(u64) -> u64) {
    let file = MemoryFile::from_fd(raw.ledger.as_ref().unwrap().try_clone().unwrap()).unwrap();
    let mapping = WriteMapping::map(&file, 0, file.len_bytes()).unwrap();
    let len = (file.len_bytes() / 8) as usize;
    // A page at a time, as bytes: whatever is meant by them is the owner's to find out.
    for first in (0..len).step_by(512) {
        let words = (first..len.min(first + 512)).flat_map(|at| word(at as u64).to_le_bytes());
        let bytes: Vec<u8> = words.collect();
        mapping.copy_in(first as u64 * 8, &bytes).unwrap();
    }
}

#[test]
fn a_ledger_full_of_nonsense_harms_only_what_it_claims_and_ends_with_its_client() {
    let victim = Victim::new();
    let client = Client::connect(&victim.socket).unwrap();
    let mut random = Random(support::seed());
    let nr_pages = POOL_BYTES / 4096;
    // Every slot a device's hold of a real run; then any bits; then all ones.
    let mut claim = Random(random.next());
    let claims = move |_| {
        let run = PfnRange::new(claim.below(nr_pages), 1 + claim.below(600)).unwrap();
        SlotWord::new(run, Agent::Device).bits()
    };
    let mut bits = Random(random.next());
    let words: [Box<dyn FnMut(u64) -> u64>; 3] =
        [Box::new(claims), Box::new(move |_| bits.next()), Box::new(|_| u64::MAX)];
    for word in words {
        support::put(&client, "a", &block::make(1, 1 << 20)).unwrap();
        let raw = Raw::attach(&victim.socket);
        scribble(&raw, word);
        // It goes on as if nothing were, and so do others; it may block reuse, as a holder may.
        assert!(matches!(raw.ask(Request::PoolStat), Reply::PoolStat(_)));
        let _ = raw.ask(a_file("draft", 5000));
        assert!(matches!(raw.ask(Request::Who(None)), Reply::Who(..)));
        assert_eq!(block::check(&client.get("a").unwrap().to_vec().unwrap()), Ok(1));
        let _ = client.truncate("a", 4096, Duration::ZERO);
        support::put(&client, "b", &block::make(2, 1 << 20)).unwrap();
        client.unlink("a").unwrap();
        assert_eq!(block::check(&client.get("b").unwrap().to_vec().unwrap()), Ok(2));
        drop(raw);
        support::wait_for_info(&victim.owner, "it is reaped", |info| info.nr_clients == 1);
        client.unlink("b").unwrap();
        let info = support::wait_for_info(&victim.owner, "all is free", |info| {
            info.free_bytes == POOL_BYTES
        });
        assert_eq!(info.orphaned_bytes, 0, "{info:?}");
    }
    drop(client);
    victim.must_be_as_before();
}

#[test]
fn an_owner_that_sends_nonsense_is_an_error_for_its_client() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let listener = pgmap::os::Listener::bind(&socket, 0o600).unwrap();
    let mut bytes = strategy_bytes();
    for _ in 0..50 {
        std::thread::scope(|scope| {
            let client = scope.spawn(|| Client::connect(&socket).map(drop));
            let connection = support::wait_until("it connects", || listener.accept().unwrap());
            support::wait_until("it says hello", || connection.recv(&mut [0; 512]).ok().map(drop));
            send_raw(&connection, &bytes(), &[]).unwrap();
            drop(connection);
            let error = client.join().unwrap().unwrap_err();
            assert!(!error.to_string().is_empty());
        });
    }
}

#[test]
fn silent_connections_are_ended_and_keep_no_client_out() {
    let _alone = alone();
    // More than an owner serves at a time, both ends of each in this process.
    const NR_SILENT: usize = 1100;
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limits.maximum.is_some_and(|most| most < 2 * NR_SILENT as u64 + 256) {
        println!(
            "skipped: silent_connections_are_ended_and_keep_no_client_out: it needs {} \
             descriptors; raise the hard limit (ulimit -Hn)",
            2 * NR_SILENT + 256
        );
        return;
    }
    let raised = rustix::process::Rlimit { current: limits.maximum, ..limits };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let (owner, _directory, socket) = support::serving_owner(POOL_BYTES);
    // The queue in front of the owner is short; a full one is asked again.
    let connect =
        || support::wait_until("a place in the queue", || Connection::connect(&socket).ok());
    let silent: Vec<Connection> = (0..NR_SILENT).map(|_| connect()).collect();
    let client = support::wait_until("it is served", || Client::connect(&socket).ok());
    support::put(&client, "a", &block::make(1, 10_000)).unwrap();
    assert!(silent.iter().all(is_cut_off), "each had its time");
    assert_eq!(block::check(&client.get("a").unwrap().to_vec().unwrap()), Ok(1));
    assert_eq!(client.pool_stat().unwrap().nr_clients, 1, "who greeted stays");
    drop(owner);
}
