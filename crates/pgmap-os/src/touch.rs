//! Touches of addresses that nobody has mapped, offered to whoever keeps the addresses.
//!
//! A load or store at an inaccessible address is SIGSEGV, which kills. A [`TouchWatch`] has the
//! touches of one range put to it instead: the thread that touched waits, in the signal handler,
//! until another thread, in ordinary context, answers. After [`TouchAnswer::Retry`] the instruction
//! is done again; after [`TouchAnswer::Fail`] the signal goes its usual way, to the handler that
//! was there before or to the end of the process, at that very instruction.
//!
//! The addresses are inaccessible all the while, whatever becomes of the watch: see
//! `docs/adr/0020-touches-by-signal.md` for why this is not `userfaultfd`.
//!
//! # Limits
//! - A handler of SIGSEGV that others install later must pass on what is not its own.
//! - A thread that blocks SIGSEGV is killed by a touch, whatever is installed.
//! - What the kernel touches for a system call is `EFAULT` and not offered.
//! - The thread that answers cannot be served itself; nor can one that holds a lock which it needs.

// UNSAFETY: the table lies in memory that a forked child finds wiped, and a signal handler reads
// what the kernel points it to.
#![allow(unsafe_code)]

use crate::signal_chain::{self, Chain, Origin};
use crate::{ForkGuard, OsError};
use rustix::io::Errno;
use std::ffi::{c_int, c_void};
use std::io;
use std::ops::Range;
use std::sync::OnceLock;

mod table;
use table::{Table, TouchSlot};

/// At most this many ranges are watched by one process.
pub const MAX_TOUCH_WATCHES: usize = 64;

/// At most this many threads wait for one watch; further ones touch again a little later.
pub const MAX_WAITING: usize = 64;

static CHAIN: Chain = Chain::new(libc::SIGSEGV);
static TABLE: OnceLock<&'static Table> = OnceLock::new();

/// What a thread was about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TouchAccess {
    /// Load, or execute.
    Load,
    /// Store.
    Store,
    /// This machine does not say.
    Unknown,
}

/// A touch that waits for its answer.
#[derive(Debug)]
#[must_use = "the thread that touched waits for the answer"]
pub struct Touch {
    /// The address.
    pub address: usize,
    /// What was to be done there.
    pub access: TouchAccess,
    cell: usize,
}

/// What becomes of a thread that touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TouchAnswer {
    /// It touches again.
    Retry,
    /// It gets its SIGSEGV.
    Fail,
}

/// The right to answer touches of one range of addresses.
#[derive(Debug)]
pub struct TouchWatch {
    slot: &'static TouchSlot,
    guard: ForkGuard,
}

/// Watches `addresses` from now on. The first call of a process installs the handler.
///
/// # Errors
/// `EINVAL` for an empty range; `ENOSPC` when [`MAX_TOUCH_WATCHES`] are in use; `ENOMEM`.
pub fn watch(addresses: Range<usize>) -> Result<TouchWatch, OsError> {
    let failed = |errno| {
        let Range { start, end } = addresses;
        OsError::new("watch", format!("addresses {start:#x}..{end:#x} for touches"), errno)
    };
    if addresses.is_empty() {
        return Err(failed(Errno::INVAL));
    }
    let table = install()?;
    let slot = table.slots().iter().find(|slot| slot.open(&addresses));
    Ok(TouchWatch { slot: slot.ok_or_else(|| failed(Errno::NOSPC))?, guard: ForkGuard::new()? })
}

fn install() -> Result<&'static Table, OsError> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let table = match TABLE.get() {
        Some(table) => table,
        None => {
            let made = Table::map()?;
            // Another thread may have been first; its table is the one, and ours is not used.
            TABLE.get_or_init(|| made)
        }
    };
    INSTALLED.get_or_init(|| CHAIN.install(on_sigsegv)).map_err(|errno| {
        let source = io::Error::from_raw_os_error(errno);
        OsError::new("install", "a handler of SIGSEGV", source)
    })?;
    Ok(table)
}

impl TouchWatch {
    /// The next touch, waiting for it; none after [`stop`](Self::stop). From the first call on the
    /// calling thread's own touches are nobody's, for nobody could answer them: one thread calls
    /// this.
    pub fn wait(&self) -> Option<Touch> {
        self.slot.wait()
    }

    /// Answers a touch.
    pub fn answer(&self, touch: Touch, answer: TouchAnswer) {
        self.slot.answer(touch.cell, answer);
    }

    /// Ends every [`wait`](Self::wait), now and later.
    pub fn stop(&self) {
        self.slot.stop();
    }
}

impl Drop for TouchWatch {
    fn drop(&mut self) {
        // A forked child's table was wiped: the slot there is free, or another's.
        if !self.guard.is_child() {
            self.slot.close();
        }
    }
}

/// The part of `siginfo_t` that SIGSEGV fills (asm-generic/siginfo.h, 64-bit).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct SegvInfo {
    signal: c_int,
    errno: c_int,
    code: c_int,
    padding: c_int,
    address: usize,
}

extern "C" fn on_sigsegv(_signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo_t of 128 bytes, aligned, fully initialised, of
    // which SegvInfo is the beginning.
    let segv = unsafe { info.cast::<SegvInfo>().read() };
    // SAFETY: the kernel passes the interrupted thread's context, which nobody else uses while the
    // handler runs.
    let interrupted = unsafe { &*context.cast::<libc::ucontext_t>() };
    // What was sent has code 0 or below, and says nothing true of an address.
    let is_fault = segv.code > 0;
    let access = access_of(interrupted);
    let offer = || TABLE.get().is_some_and(|table| table.offer(segv.address, access));
    if is_fault && signal_chain::keeping_errno(offer) {
        return;
    }
    CHAIN.pass_on(if is_fault { Origin::Fault } else { Origin::Sent }, info, context);
}

/// Bit 1 of the page fault's error code is set for a store (Intel SDM volume 3, 4.7).
#[cfg(target_arch = "x86_64")]
fn access_of(interrupted: &libc::ucontext_t) -> TouchAccess {
    let error = interrupted.uc_mcontext.gregs[libc::REG_ERR as usize];
    if error & 2 == 0 { TouchAccess::Load } else { TouchAccess::Store }
}

#[cfg(not(target_arch = "x86_64"))]
fn access_of(_: &libc::ucontext_t) -> TouchAccess {
    TouchAccess::Unknown
}
