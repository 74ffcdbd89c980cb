//! What a simulation must be able to do, and who is in one.

// UNSAFETY: the world of a thread is kept as a pointer, for the length of a call.
#![allow(unsafe_code)]

use crate::Ready;
use rustix::io::Errno;
use std::cell::Cell;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// A simulated machine. All its parties run in one thread of the real one, each until it comes
/// here.
pub trait World {
    /// The calling party is about to do something that others can notice: `what` names it. Others
    /// may run first. Does not return if the party is ended meanwhile: then it unwinds with
    /// [`Ended`].
    fn step(&self, what: &'static str);

    /// The error number with which the system call `name` fails instead of being made.
    fn fault(&self, name: &'static str) -> Option<i32>;

    /// Whether the calling party was ended and unwinds. Nothing that it does now may reach others.
    fn is_ended(&self) -> bool;

    /// The time in nanoseconds.
    fn now_ns(&self) -> u64;

    /// Waits until something [`happened`](Self::happened) or the time has come; or for no reason.
    fn wait(&self, until_ns: Option<u64>, what: Happening);

    /// Something was done that others may wait for.
    fn happened(&self, what: Happening);

    /// The calling thread took a lock, or gave one back.
    fn locked(&self, is_taken: bool);

    /// The number of the calling process.
    fn pid(&self) -> i32;

    /// A number from the run's source of chance.
    fn random(&self) -> u64;

    /// Starts a thread of the calling process.
    fn spawn(&self, run: Box<dyn FnOnce()>) -> u64;

    /// The number of the calling thread.
    fn thread(&self) -> u64;

    /// Whether a thread is over.
    fn is_over(&self, thread: u64) -> bool;

    /// When a process of this number began, if it lives.
    fn started_at(&self, pid: i32) -> Option<u64>;

    /// A descriptor that becomes readable when a process ends.
    fn pidfd(&self, pid: i32) -> Option<OwnedFd>;

    /// The calling process listens at `path` from now on.
    fn listens(&self, path: &Path);

    /// Who listened at `path` last.
    fn listener(&self, path: &Path) -> Option<i32>;

    /// What an epoll set reports, of which the world may withhold or reorder some.
    fn arrange(&self, ready: &mut Vec<Ready>);

    /// Whether this ring of a doorbell is lost.
    fn is_ring_lost(&self) -> bool;

    /// How often a notification of the calling process, which has no answer, arrives.
    fn deliveries(&self) -> usize;

    /// Whether membarrier works for the calling process.
    fn has_membarrier(&self) -> bool;

    /// The contents of a file have reached its disk.
    fn synced(&self, file: BorrowedFd<'_>);

    /// Whether files outlive the machine, as on a disk; names do when their directory is synced.
    fn is_disk(&self) -> bool;

    /// A name of a file is about to change, or names have reached their disk.
    fn naming(&self, what: Naming<'_>);

    /// The memory behind a part of a file was given back: what a device still writes to it is lost.
    fn punched(&self, file: BorrowedFd<'_>, range: Range<u64>);

    /// Whether memory behind a pool's frames can be given back to the system.
    fn can_punch(&self) -> bool;

    /// Something is wrong in the calling process.
    fn failed(&self, what: &str);

    /// A word that others can see was changed: `what` says which, and how, for people.
    fn changed(&self, what: &dyn Fn() -> String);

    /// The identity of the machine's present run, as [`crate::identity::boot_id`] has it.
    fn boot_id(&self) -> u128;
}

/// What becomes of names of files.
#[derive(Clone, Copy, Debug)]
pub enum Naming<'p> {
    /// A file is made.
    Made(&'p Path),
    /// A file is given another name.
    Renamed(&'p Path, &'p Path),
    /// A name is taken away.
    Removed(&'p Path),
    /// What became of the names in a directory until now has reached its disk.
    Synced(&'p Path),
}

/// What threads wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A lock of the same process.
    Lock,
    /// A condition of the same process. Another than locks: whoever goes to wait for a condition
    /// gives a lock back, and two who do must not wake each other for ever.
    Condition,
    /// A descriptor, or the end of a thread or a process.
    Descriptor,
}

/// What a party unwinds with that was ended.
#[derive(Debug)]
pub struct Ended;

thread_local! {
    static WORLD: Cell<Option<*const dyn World>> = const { Cell::new(None) };
}

/// Puts the calling thread into `world` while `run` runs.
pub fn enter<T>(world: &dyn World, run: impl FnOnce() -> T) -> T {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            WORLD.set(None);
        }
    }
    let _leave = Leave;
    let world: *const (dyn World + '_) = world;
    // SAFETY: only the lifetime changes; the pointer is forgotten before the borrow of `world`
    // ends.
    let world = unsafe { std::mem::transmute::<*const (dyn World + '_), *const dyn World>(world) };
    WORLD.set(Some(world));
    run()
}

/// Asks the world that the calling thread is in, if it is in one.
#[inline]
pub fn with<T>(ask: impl FnOnce(&dyn World) -> T) -> Option<T> {
    // A thread at its end is in no world.
    let world = WORLD.try_with(Cell::get).ok().flatten()?;
    // SAFETY: `enter` set the pointer from a borrow that lasts until it takes the pointer away.
    Some(ask(unsafe { &*world }))
}

/// The system call `name` is about to be made.
#[inline]
pub(crate) fn call(name: &'static str) -> Result<(), Errno> {
    let fault = with(|world| {
        if world.is_ended() {
            return Some(libc::ESHUTDOWN);
        }
        world.step(name);
        world.fault(name)
    });
    match fault.flatten() {
        None => Ok(()),
        Some(errno) => Err(Errno::from_raw_os_error(errno)),
    }
}

/// Something was done that others may wait for.
#[inline]
pub(crate) fn happened() {
    with(|world| world.happened(Happening::Descriptor));
}

/// A word that others can see is about to be loaded or stored. False if the caller must not store
/// it.
#[inline]
pub fn word() -> bool {
    with(|world| {
        if world.is_ended() {
            return false;
        }
        world.step("word");
        true
    })
    .unwrap_or(true)
}

/// A word that others can see was changed, as `what` says if anybody reads it.
#[inline]
pub fn changed(what: impl Fn() -> String) {
    with(|world| world.changed(&what));
}

/// Whether files outlive the machine, in a simulation.
pub(crate) fn is_disk() -> bool {
    with(|world| world.is_disk()).unwrap_or(false)
}

/// How often an event arrives that its receiver did not ask for: queues that are full drop some,
/// and an owner's successor says again what was said.
pub fn deliveries() -> usize {
    with(|world| world.deliveries()).unwrap_or(1)
}

/// A doorbell is about to be rung. False if nobody will hear it.
pub(crate) fn ring(is_foreign: bool) -> Result<bool, Errno> {
    call("ring")?;
    Ok(!(is_foreign && with(|world| world.is_ring_lost()).unwrap_or(false)))
}

/// How many of `nr_bytes` bytes the next write to a file at `offset` takes. Writes may be short,
/// and the caller be ended in between; but Linux copies whole pages before it looks at a signal
/// (7.1: mm/filemap.c, `generic_perform_write`).
pub(crate) fn writable(nr_bytes: usize, offset: u64) -> Result<usize, Errno> {
    call("pwrite")?;
    let first = (PAGE_BYTES - offset % PAGE_BYTES) as usize;
    if nr_bytes <= first {
        return Ok(nr_bytes);
    }
    let is_short = with(|world| world.random().is_multiple_of(4)).unwrap_or(false);
    Ok(if is_short { first } else { nr_bytes })
}

/// Waits, without making the thread of the machine wait, until `look` finds something or the time
/// is over.
pub(crate) fn wait<T, E>(
    timeout: Option<Duration>,
    mut look: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    let now_ns = || with(|world| world.now_ns()).unwrap_or(0);
    let nanos = |timeout: Duration| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
    let until_ns = timeout.and_then(|timeout| now_ns().checked_add(nanos(timeout)));
    with(|world| {
        if !world.is_ended() {
            world.step("poll");
        }
    });
    loop {
        let found = look()?;
        let is_over = until_ns.is_some_and(|until_ns| until_ns <= now_ns());
        if found.is_some() || is_over || with(|world| world.is_ended()).unwrap_or(true) {
            return Ok(found);
        }
        with(|world| world.wait(until_ns, Happening::Descriptor));
    }
}

/// Names a caller's socket after its process, so that who listens can tell.
pub(crate) fn name_caller(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let asked = with(|world| (world.pid(), world.random(), std::ptr::from_ref(world).addr()));
    let Some((pid, number, world)) = asked else { return Ok(()) };
    // Other threads may run the same seed, and other processes.
    let name = format!("{NAME_PREFIX}{pid}-{}-{world:x}-{number:x}", std::process::id());
    let name = rustix::net::SocketAddrUnix::new_abstract_name(name.as_bytes())?;
    rustix::net::bind(socket, &name)
}

/// The process at the other end of a socket, in a simulation.
pub(crate) fn peer(socket: BorrowedFd<'_>) -> Option<i32> {
    with(|_| ())?;
    let address = rustix::net::getpeername(socket).ok()??;
    let address = rustix::net::SocketAddrUnix::try_from(address).ok()?;
    if let Some(name) = address.abstract_name() {
        let name = std::str::from_utf8(name).ok()?.strip_prefix(NAME_PREFIX)?;
        return name.split('-').next()?.parse().ok();
    }
    let path = address.path()?.to_string_lossy().into_owned();
    with(|world| world.listener(Path::new(&path))).flatten()
}

const PAGE_BYTES: u64 = 4096;
const NAME_PREFIX: &str = "pgmap-sim-";

/// The calling process listens at `path`.
pub(crate) fn listens(path: &Path) {
    with(|world| world.listens(path));
}
