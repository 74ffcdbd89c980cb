//! The table that the handler of SIGSEGV reads: which ranges are watched, and who waits.
//!
//! # States
//! Of a range's slot in the table, and of a cell, one per thread that waits:
//! ```text
//!          watch()             watch()                drop             no visitor left
//!   Free ----------> Opening ----------> Watching ----------> Closing -----------------> Free
//!
//!   Free -- visitor --> Claimed -- visitor --> Asked
//!   Asked -- wait() --> Taken -- answer() --> Retry, Fail
//!     ^                                          \------- drop: Fail -----/                  |
//!     \---------------------------------- visitor -------------------------------------------/
//! ```
//!
//! # Who may touch what
//! Range and server: written by the watch while Opening, and the server by `wait`. A cell's address
//! and access: by the visitor that claimed it, until it is Free again. A *visitor* is a run of the
//! handler on any thread; it counts itself in and out. The table is wiped in a forked child, so
//! that a touch there waits for nobody.
//!
//! # Orderings
//! - writer `state = Watching` (Release), reader `state == Watching` (Acquire): range, cells;
//! - writer `cell = Asked` (Release), reader `Asked -> Taken` (Acquire): address and access;
//! - writer `cell = answer` (Release), reader `cell` (Acquire): what was mapped;
//! - writer `visitors -= 1` (Release), reader `visitors == 0` (Acquire): the visitor's last use;
//! - `visitors += 1; fence(SeqCst); read state` against `state = Closing; fence(SeqCst); read
//!   visitors`: not both miss the other.
//!
//! # Lost races
//! - *Touch against drop.* If the visitor counts itself first, the drop answers Fail until it is
//!   gone. If the drop is first, the visitor sees Closing, and the touch is nobody's.
//! - *Touch against mapping.* If the mapping is first, there is no signal. If the touch is first,
//!   it is answered Retry and done again.
//! - *Ask against `wait`.* A `wait` that missed the cell sees the bell changed and looks again.
//!
//! # Differs from Linux
//! The kernel resolves a fault in the thread that touched (Linux 7.1: mm/memory.c,
//! `handle_mm_fault`).

// UNSAFETY: the table lies in memory that a forked child finds wiped, which the language cannot ask
// for.
#![allow(unsafe_code)]

use super::{MAX_TOUCH_WATCHES, MAX_WAITING, Touch, TouchAccess, TouchAnswer};
use crate::OsError;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use rustix::thread::futex;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering, fence};
use std::time::Duration;

/// How long a thread that finds no cell waits before it touches again.
const NO_CELL_PAUSE: Duration = Duration::from_millis(1);
/// How often a drop yields to visitors before it gives its slot up.
const MAX_YIELDS: usize = 100_000;

// All zero is a table in which every slot and cell is free.
const FREE: u32 = 0;
const OPENING: u32 = 1;
const WATCHING: u32 = 2;
const CLOSING: u32 = 3;

const CLAIMED: u32 = 1;
const ASKED: u32 = 2;
const TAKEN: u32 = 3;
const RETRY: u32 = 4;
const FAIL: u32 = 5;

/// Every watch of the process.
#[derive(Debug)]
#[repr(transparent)]
pub(super) struct Table([TouchSlot; MAX_TOUCH_WATCHES]);

impl Table {
    /// A new table, all free, for the life of the process.
    pub(super) fn map() -> Result<&'static Self, OsError> {
        let failed = |what, errno| OsError::new(what, "the table of touches", errno);
        let len = size_of::<Self>();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses a fresh place, so no existing memory is touched.
        let mapped = unsafe { mmap_anonymous(ptr::null_mut(), len, protection, MapFlags::PRIVATE) };
        let base = mapped.map_err(|errno| failed("map", errno))?;
        // SAFETY: the range mapped above, which nobody else knows.
        let advised = unsafe { madvise(base, len, Advice::LinuxWipeOnFork) };
        advised.map_err(|errno| failed("wipe on fork", errno))?;
        let table = NonNull::new(base.cast::<Self>())
            .ok_or_else(|| failed("map", rustix::io::Errno::NOMEM))?;
        // SAFETY: mapped readable and writable for ever, page-aligned, long enough, and zeroed,
        // which is a valid value of atomics.
        Ok(unsafe { table.as_ref() })
    }

    pub(super) fn slots(&self) -> &[TouchSlot] {
        &self.0
    }

    /// Puts a touch to the watch of the address, if there is one, and waits for its answer. Returns
    /// true if the thread is to touch again. Called by the signal handler alone: no locks, no
    /// allocation, no panic.
    pub(super) fn offer(&self, address: usize, access: TouchAccess) -> bool {
        self.0.iter().any(|slot| slot.visit(address, access))
    }
}

/// A watched range, and the threads that wait for its watch.
#[derive(Debug)]
pub(super) struct TouchSlot {
    state: AtomicU32,
    visitors: AtomicU32,
    start: AtomicUsize,
    end: AtomicUsize,
    /// The thread that answers.
    server: AtomicI32,
    /// Counts questions; the server sleeps on it.
    bell: AtomicU32,
    is_stopped: AtomicU32,
    cells: [WaitingTouch; MAX_WAITING],
}

#[derive(Debug)]
struct WaitingTouch {
    state: AtomicU32,
    access: AtomicU32,
    address: AtomicUsize,
}

impl TouchSlot {
    /// Takes the slot if it is free.
    pub(super) fn open(&self, range: &Range<usize>) -> bool {
        // Acquire: pairs with Release in `close`; what was stored before comes before what follows.
        let taken =
            self.state.compare_exchange(FREE, OPENING, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_err() {
            return false;
        }
        // Relaxed: published by the store of the state below; nobody reads them before. The cells
        // are free: the last visitor left them so.
        self.start.store(range.start, Ordering::Relaxed);
        self.end.store(range.end, Ordering::Relaxed);
        self.server.store(0, Ordering::Relaxed);
        self.is_stopped.store(0, Ordering::Relaxed);
        // Release: publishes the range; pairs with Acquire in `visit`.
        self.state.store(WATCHING, Ordering::Release);
        true
    }

    /// Ends the watch. Whoever waits is answered Fail.
    pub(super) fn close(&self) {
        // Relaxed: ordered by the fence; takes nothing away yet.
        self.state.store(CLOSING, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `visit`, see the head of the file.
        fence(Ordering::SeqCst);
        for _ in 0..MAX_YIELDS {
            for cell in &self.cells {
                cell.give_up();
            }
            // Acquire: pairs with Release in `visit`; the visitor's uses lie before what follows.
            if self.visitors.load(Ordering::Acquire) == 0 {
                // Release: all uses lie before the next watch of the slot; pairs with `open`.
                self.state.store(FREE, Ordering::Release);
                return;
            }
            std::thread::yield_now();
        }
        // A visitor was stopped on its way out. The slot is lost.
    }

    /// Puts the touch here if it is in the range; true if the thread is to touch again.
    fn visit(&self, address: usize, access: TouchAccess) -> bool {
        // Relaxed: ordered by the fence.
        self.visitors.fetch_add(1, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `close`, see the head of the file.
        fence(Ordering::SeqCst);
        // Acquire: the range; pairs with Release in `open`.
        let is_watching = self.state.load(Ordering::Acquire) == WATCHING;
        let is_retried = is_watching && self.covers(address) && self.ask(address, access);
        // Release: the uses above lie before it; pairs with Acquire in `close`.
        self.visitors.fetch_sub(1, Ordering::Release);
        is_retried
    }

    fn covers(&self, address: usize) -> bool {
        // Relaxed: published by the state.
        let (start, end) = (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
        (start..end).contains(&address)
    }

    fn ask(&self, address: usize, access: TouchAccess) -> bool {
        let own = rustix::thread::gettid().as_raw_nonzero().get();
        // Relaxed: a thread sees its own store, and that is the only one it looks for.
        if self.server.load(Ordering::Relaxed) == own {
            return false;
        }
        let Some(cell) = self.cells.iter().find(|cell| cell.claim()) else {
            pause(NO_CELL_PAUSE);
            return true;
        };
        // Relaxed: published by the store of the cell's state.
        cell.address.store(address, Ordering::Relaxed);
        cell.access.store(access as u32, Ordering::Relaxed);
        // Release: publishes address and access; pairs with Acquire in `Cell::take`.
        cell.state.store(ASKED, Ordering::Release);
        self.ring();
        cell.await_answer()
    }

    fn ring(&self) {
        // Release: the cell is asked before the bell is seen; pairs with Acquire in `wait`.
        self.bell.fetch_add(1, Ordering::Release);
        wake(&self.bell);
    }

    /// The next touch; `None` once the watch is stopped.
    pub(super) fn wait(&self) -> Option<Touch> {
        let own = rustix::thread::gettid().as_raw_nonzero().get();
        // Relaxed: read by this thread alone for what it decides.
        self.server.store(own, Ordering::Relaxed);
        loop {
            // Acquire: pairs with Release in `ring`; what was asked or stopped before is seen
            // below.
            let heard = self.bell.load(Ordering::Acquire);
            // Relaxed: ordered by the bell.
            if self.is_stopped.load(Ordering::Relaxed) != 0 {
                return None;
            }
            if let Some((number, cell)) =
                self.cells.iter().enumerate().find(|(_, cell)| cell.take())
            {
                // Relaxed: published by the cell's state, which `take` acquired.
                let address = cell.address.load(Ordering::Relaxed);
                let access = match cell.access.load(Ordering::Relaxed) {
                    access if access == TouchAccess::Load as u32 => TouchAccess::Load,
                    access if access == TouchAccess::Store as u32 => TouchAccess::Store,
                    _ => TouchAccess::Unknown,
                };
                return Some(Touch { address, access, cell: number });
            }
            sleep_while(&self.bell, heard);
        }
    }

    pub(super) fn answer(&self, cell: usize, answer: TouchAnswer) {
        let word = match answer {
            TouchAnswer::Retry => RETRY,
            TouchAnswer::Fail => FAIL,
        };
        if let Some(cell) = self.cells.get(cell) {
            cell.finish(TAKEN, word);
        }
    }

    pub(super) fn stop(&self) {
        // Relaxed: ordered by the bell.
        self.is_stopped.store(1, Ordering::Relaxed);
        self.ring();
    }
}

impl WaitingTouch {
    fn claim(&self) -> bool {
        // Acquire: pairs with Release in `await_answer`; the last visitor's uses lie before.
        self.state.compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn take(&self) -> bool {
        // Acquire: pairs with Release in `ask`; data: address and access.
        self.state.compare_exchange(ASKED, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn finish(&self, from: u32, answer: u32) {
        // Release: pairs with Acquire in `await_answer`; data: what the answer rests on.
        if self.state.compare_exchange(from, answer, Ordering::Release, Ordering::Relaxed).is_ok() {
            wake(&self.state);
        }
    }

    /// Answers Fail, whether or not the question was taken.
    fn give_up(&self) {
        self.finish(ASKED, FAIL);
        self.finish(TAKEN, FAIL);
    }

    fn await_answer(&self) -> bool {
        loop {
            // Acquire: pairs with Release in `finish`.
            let state = self.state.load(Ordering::Acquire);
            if state == RETRY || state == FAIL {
                // Release: pairs with Acquire in `claim`.
                self.state.store(FREE, Ordering::Release);
                return state == RETRY;
            }
            // Bounded by whoever answers, as a fault is by the kernel.
            sleep_while(&self.state, state);
        }
    }
}

/// Sleeps while the word is `value`, or a little less long.
fn sleep_while(word: &AtomicU32, value: u32) {
    // Interrupted, or changed already: the caller looks again.
    let _ = futex::wait(word, futex::Flags::PRIVATE, value, None);
}

fn wake(word: &AtomicU32) {
    // Nobody sleeping is no error.
    let _ = futex::wake(word, futex::Flags::PRIVATE, i32::MAX as u32);
}

/// A pause that a signal handler may make.
fn pause(pause: Duration) {
    let Ok(time) = rustix::time::Timespec::try_from(pause) else { return };
    // Interrupted is as good.
    let _ = rustix::thread::nanosleep(&time);
}
