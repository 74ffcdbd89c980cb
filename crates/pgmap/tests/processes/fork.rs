//! fork: the child gets the error that it was forked, whatever it calls, and takes nothing from
//! its parent; and a child that keeps a dead client's socket and ledger open does not keep its
//! holds (T6).

// UNSAFETY: fork, _exit and waitpid are the subject; rustix offers no fork.
#![allow(unsafe_code)]
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use crate::support::{self, Second, block};
use pgmap::{
    Client, Error, File, FilePin, FileWriter, FolioSize, Owner, PinError, Pool, PoolOptions,
    Replace,
};

const POOL_BYTES: u64 = 32 << 20;

/// Forks. The child runs `child` and leaves with its answer as exit status.
fn forked(mut child: impl FnMut() -> i32) -> i32 {
    // SAFETY: in the processes that fork, no other thread is inside the allocator or holds a lock
    // of the library at that moment (the harness's first thread waits for this one, an owner's
    // thread for its events); the child leaves without running the parent's exit handlers.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid > 0 {
        return pid;
    }
    let status = child();
    // SAFETY: ends the child at once.
    unsafe { libc::_exit(status) }
}

fn wait_for(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: waits for our own child; the status lives on this stack.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid);
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 200 + libc::WTERMSIG(status) }
}

#[test]
fn child_entry() {
    let Some((role, place)) = support::role() else { return };
    if role == "fork-under-owner" {
        fork_under_owner();
        std::process::exit(0);
    }
    if role == "own-and-fork-a-worker" {
        own_and_fork_a_worker(&place);
        std::process::exit(0);
    }
    if role == "loop-fails" {
        own_loop_fails(&place);
        std::process::exit(0);
    }
    let client = Client::connect(&place).unwrap();
    match role.as_str() {
        "fork-and-check" => fork_and_check(&client),
        "fork-and-stay" => fork_and_stay(&client),
        "fork-and-pin" => fork_and_pin(&client),
        other => panic!("no such role: {other}"),
    }
    drop(client);
    std::process::exit(0);
}

struct Inherited<'c> {
    pin: FilePin<'c>,
    longterm: FilePin<'c>,
    writer: FileWriter<'c>,
    file: File<'c>,
    client: Client,
}

/// Forks in the middle of everything, lets the child try everything, and goes on.
fn fork_and_check(client: &Client) {
    let mut writer = client.create("draft", 10_000, FolioSize::BestFit).unwrap();
    writer.write_all_at(0, &block::make(5, 10_000)).unwrap();
    let file = client.open("a").unwrap();
    let mut inherited = Some(Inherited {
        pin: client.get("a").unwrap(),
        longterm: file.pin_longterm(0..4096).unwrap(),
        writer,
        file,
        client: client.clone(),
    });
    let child = forked(|| {
        let wrong = first_wrong(inherited.as_mut().unwrap());
        // Dropped in the child; the parent has its own.
        drop(inherited.take());
        wrong
    });
    assert_eq!(wait_for(child), 0, "what the child got; see first_wrong");
    support::say("forked");
    let mut commands = support::commands();
    assert_eq!(commands.next().as_deref(), Some("go on"));
    let Inherited { pin, longterm, writer, .. } = inherited.take().unwrap();
    assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(1));
    assert!(pin.is_reclaim_requested());
    drop((pin, longterm));
    writer.commit().unwrap();
    assert_eq!(block::check(&client.get("draft").unwrap().to_vec().unwrap()), Ok(5));
    support::say("done");
    assert_eq!(commands.next(), None);
}

/// The number of the first call that did not say "forked"; 0 when all did.
fn first_wrong(inherited: &mut Inherited<'_>) -> i32 {
    fn is_forked<T>(result: Result<T, Error>) -> bool {
        matches!(result, Err(Error::Forked | Error::Pin(PinError::Forked)))
    }
    let Inherited { pin, writer, file, client, .. } = inherited;
    let answers = [
        is_forked(client.get("a")),
        is_forked(client.open("a")),
        is_forked(client.create("x", 1, FolioSize::BestFit)),
        is_forked(client.create_batch(Vec::new())),
        is_forked(client.commit_batch(Vec::new()).map(|_| ()).and_then(|()| client.list())),
        is_forked(client.unlink("a")),
        is_forked(client.rename("a", "b", Replace::Yes)),
        is_forked(client.truncate("a", 1, Duration::ZERO)),
        is_forked(client.stat("a")),
        is_forked(client.list()),
        is_forked(client.pool_stat()),
        is_forked(client.who_all()),
        is_forked(file.pin_all()),
        is_forked(file.pin(0..1)),
        is_forked(file.pin_for_device(0..1)),
        is_forked(file.pin_longterm(0..1)),
        is_forked(writer.write_all_at(0, b"x")),
        // Nothing keeps the frames for the child once the parent lets go.
        is_forked(pin.to_vec()),
        is_forked(pin.read_at(0, &mut [0])),
    ];
    answers.iter().position(|&is_right| !is_right).map_or(0, |place| place as i32 + 1)
}

/// Pins, forks a child that keeps every descriptor open, and stays.
fn fork_and_stay(client: &Client) {
    let _pin = client.get("a").unwrap();
    let mut writer = client.create("draft", 1 << 20, FolioSize::BestFit).unwrap();
    writer.write_all_at(0, &[1; 100]).unwrap();
    let child = forked(|| {
        loop {
            // SAFETY: waits for a signal; touches nothing.
            unsafe { libc::pause() };
        }
    });
    support::say(child);
    assert_eq!(support::commands().count(), 0);
}

/// Forks while it holds as many pins as a scan looks at, pins more, and has the child pin then.
fn fork_and_pin(client: &Client) {
    const PAGE: u64 = 4096;
    let file = client.open("a").unwrap();
    let pin = |page: u64| file.pin(page * PAGE..(page + 1) * PAGE);
    let mut pins: Vec<_> = (0..64).map(|page| pin(page).unwrap()).collect();
    let (reader, writer) = std::io::pipe().unwrap();
    let child = forked(|| {
        (&reader).read_exact(&mut [0]).unwrap();
        i32::from(!matches!(pin(0), Err(Error::Pin(PinError::Forked))))
    });
    pins.extend((64..400).map(|page| pin(page).unwrap()));
    (&writer).write_all(b"x").unwrap();
    assert_eq!(wait_for(child), 0, "the child gets the error that it was forked");
    support::say(pins.len());
    assert_eq!(support::commands().count(), 0);
}

/// A child that looked for a free slot stored its own idea of how far scans must look.
#[test]
fn a_forked_child_that_pins_hides_no_pin_of_its_parent() {
    let (owner, _directory, socket) = support::serving_owner(POOL_BYTES);
    let client = owner.client().unwrap();
    support::put(&client, "a", &block::make(1, 400 * 4096)).unwrap();
    let mut parent = Second::start("fork-and-pin", &socket);
    assert_eq!(parent.answer(), "400");
    client.truncate("a", 350 * 4096, Duration::from_millis(100)).unwrap_err();
    assert!(parent.end().success());
}

#[test]
fn scenario_33_a_forked_child_gets_errors_and_its_parents_pins_stand() {
    let (owner, _directory, socket) = support::serving_owner(POOL_BYTES);
    let client = owner.client().unwrap();
    support::put(&client, "a", &block::make(1, 3 << 20)).unwrap();
    let mut parent = Second::start("fork-and-check", &socket);
    assert_eq!(parent.answer(), "forked");
    // The child has come and gone; the parent's holds and drafts are all there.
    let info = owner.info();
    assert_eq!((info.nr_clients, info.reserved_bytes), (2, 12_288), "{info:?}");
    client.unlink("a").unwrap();
    assert_eq!(owner.info().draining_bytes, 3 << 20);
    assert_eq!(parent.ask("go on"), "done");
    support::wait_for_info(&owner, "the parent let go", |info| info.draining_bytes == 0);
    assert!(parent.end().success());
    let info = support::wait_for_info(&owner, "the parent left", |info| info.nr_clients == 1);
    support::assert_accounted(&info);
}

#[test]
fn t6_a_child_with_its_parents_descriptors_does_not_keep_a_dead_parents_holds() {
    let (owner, _directory, socket) = support::serving_owner(POOL_BYTES);
    let client = owner.client().unwrap();
    support::put(&client, "a", &block::make(1, 3 << 20)).unwrap();
    let mut parent = Second::start("fork-and-stay", &socket);
    let child: i32 = parent.answer().parse().unwrap();
    client.unlink("a").unwrap();
    let info = owner.info();
    assert_eq!((info.draining_bytes, info.reserved_bytes), (3 << 20, 1 << 20), "{info:?}");
    parent.kill();
    let info = support::wait_for_info(&owner, "the parent is reaped", |info| info.nr_clients == 1);
    support::assert_accounted(&info);
    assert_eq!(info.free_bytes, POOL_BYTES);
    assert!(Path::new(&format!("/proc/{child}")).exists(), "the child was there all the time");
    let child = rustix::process::Pid::from_raw(child).unwrap();
    rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
}

/// None of what a forked child inherited of an owner touches the pool.
#[test]
fn a_forked_child_may_drop_the_owner_that_it_inherited() {
    let mut parent = Second::start("fork-under-owner", Path::new("/"));
    assert_eq!(parent.answer(), "done");
    assert!(parent.end().success());
}

/// Forks with an owner in this process: the copy in the child has no thread to join, and must not
/// touch the pool.
fn fork_under_owner() {
    let (owner, directory, socket) = support::serving_owner(POOL_BYTES);
    let client = owner.client().unwrap();
    let mut inherited = Some(owner);
    let child = forked(|| {
        let owner = inherited.take().unwrap();
        let is_told = matches!(owner.client(), Err(Error::Forked))
            && matches!(owner.serve(directory.path().join("t")), Err(Error::Forked))
            && matches!(client.stat("a"), Err(Error::Forked))
            && owner.pagemap_at(0).is_none()
            && owner.info().size_bytes == 0;
        drop(owner);
        if is_told { 7 } else { 8 }
    });
    assert_eq!(wait_within_bound(child), Some(7), "the error that it was forked, and no hang");
    support::put(&client, "a", b"the parent's owner goes on").unwrap();
    let owner: Owner = inherited.take().unwrap();
    assert_eq!(owner.info().nr_files, 1);
    assert!(Client::connect(&socket).is_ok());
    support::say("done");
}

/// As [`wait_for`], and `None` if it takes longer than a hang may.
fn wait_within_bound(pid: i32) -> Option<i32> {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
    let mut status = 0;
    while std::time::Instant::now() < until {
        // SAFETY: asks for our own child; the status lives on this stack.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
        if waited == pid {
            return libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    // SAFETY: ends our own child, which was not reaped.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    wait_for(pid);
    None
}

/// Owns a pool, pins in it, serves it, and forks a worker that never calls exec.
fn own_and_fork_a_worker(place: &Path) {
    let options = PoolOptions::in_directory(place.join("pool"), POOL_BYTES);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    owner.serve(place.join("s")).unwrap();
    let client = owner.client().unwrap();
    support::put(&client, "a", &block::make(1, 3 << 20)).unwrap();
    support::put(&client, "b", &block::make(2, 3 << 20)).unwrap();
    let _pin = client.get("a").unwrap();
    client.unlink("a").unwrap();
    support::say("serving");
    let mut commands = support::commands();
    assert_eq!(commands.next().as_deref(), Some("fork"));
    let worker = forked(|| {
        loop {
            // SAFETY: waits for a signal; touches nothing.
            unsafe { libc::pause() };
        }
    });
    support::say(worker);
    assert_eq!(commands.count(), 0);
}

/// A worker pool that its owner forked kept the lock, the socket and the embedded client alive.
#[test]
fn a_worker_that_an_owner_forked_keeps_nothing_of_the_pool() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let (pool, socket) = (directory.path().join("pool"), directory.path().join("s"));
    let mut first = Second::start("own-and-fork-a-worker", directory.path());
    assert_eq!(first.answer(), "serving");
    let remote = Client::connect(&socket).unwrap();
    let worker: i32 = first.ask("fork").parse().unwrap();
    first.kill();
    // Who was connected hears of it, although the worker had a copy of the connection.
    let gone = remote.next_event(std::time::Duration::from_secs(60)).unwrap_err();
    assert!(matches!(gone, Error::OwnerGone { .. }), "{gone}");
    let owner = Owner::start(Pool::open(&pool).unwrap()).unwrap();
    owner.serve(&socket).unwrap();
    assert!(Path::new(&format!("/proc/{worker}")).exists(), "the worker was there all the time");
    assert_eq!(block::check(&remote.get("b").unwrap().to_vec().unwrap()), Ok(2));
    assert_eq!(remote.stat("b").unwrap().len_bytes, 3 << 20, "it is served again");
    // The first owner's own client died with it, pin and all.
    let info = support::wait_for_info(&owner, "the dead are reaped", |info| info.nr_clients == 1);
    assert_eq!((info.draining_bytes, info.live_bytes), (0, 3 << 20), "{info:?}");
    let worker = rustix::process::Pid::from_raw(worker).unwrap();
    rustix::process::kill_process(worker, rustix::process::Signal::KILL).unwrap();
}

/// An owner whose loop cannot wait any more: its descriptor for that is somebody else's.
fn own_loop_fails(place: &Path) {
    let options = PoolOptions::anonymous(POOL_BYTES);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    owner.serve(place.join("s")).unwrap();
    let client = owner.client().unwrap();
    let remote = Client::connect(place.join("s")).unwrap();
    support::put(&client, "a", &block::make(1, 3 << 20)).unwrap();
    let pin = client.get("a").unwrap();
    let epoll: i32 = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .find(|entry| {
            std::fs::read_link(entry.path())
                .is_ok_and(|to| to.to_string_lossy().contains("eventpoll"))
        })
        .and_then(|entry| entry.file_name().to_str()?.parse().ok())
        .unwrap();
    let nothing = std::fs::File::open("/dev/null").unwrap();
    // SAFETY: both are open descriptors of this process; what reads the second finds no epoll set.
    let replaced = unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&nothing), epoll) };
    assert_eq!(replaced, epoll);
    // An embedded truncate without end, and a call from outside.
    let error = client.truncate("a", 4096, Duration::MAX).unwrap_err();
    assert_eq!(error.errno(), 108, "{error}");
    let error = client.stat("a").unwrap_err();
    assert!(matches!(error, Error::OwnerGone { .. }), "{error}");
    let error = remote.next_event(std::time::Duration::from_secs(60)).unwrap_err();
    assert!(matches!(error, Error::OwnerGone { .. }), "{error}");
    assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(1));
    drop((pin, owner));
    support::say("done");
}

#[test]
fn an_owner_whose_loop_fails_is_stopped_and_nobody_waits_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut second = Second::start("loop-fails", directory.path());
    assert_eq!(second.answer(), "done");
    assert!(second.end().success());
}
