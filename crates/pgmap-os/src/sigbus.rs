//! SIGBUS, the signal of memory that does not answer: copies return an error, failures are
//! reported.
//!
//! One handler for the process, [`install`]ed by the first mapping. It does three things, in order:
//!
//! 1. a machine check (`BUS_MCEERR_AR`, `BUS_MCEERR_AO`) inside a watched range is left for its
//!    [`FailureWatch`] to collect;
//! 2. a fault of one of the copy loops of [`crate::bytes`] makes that copy return an error;
//! 3. everything else is passed on to the handler that was there before, or kills as it would have.
//!
//! What was reported to a watch and needs no action (`BUS_MCEERR_AO`) ends there; a fault outside
//! the copy loops goes on to 3 even when it was reported.
//!
//! # Limits
//! - A handler that others install later must pass on what is not its own, or copies kill again.
//! - A thread that blocks SIGBUS is killed by a fault whatever is installed: Linux asks no handler
//!   then (kernel/signal.c, `force_sig_info_to_task`).
//! - The handler of Rust's standard library, usually the one that was there before, answers what it
//!   does not know by restoring the default: a fault then kills, as it should, but a SIGBUS sent by
//!   `kill` is swallowed once and leaves copies unprotected, as it leaves the library's own guard
//!   pages.
//!
//! # What may be called in the handler
//! As `signal_chain` says, and `write` to an eventfd. `errno` is saved.

// UNSAFETY: a signal handler is installed, and reads what the kernel points it to.
#![allow(unsafe_code)]

use crate::OsError;
use crate::signal_chain::{self, Chain, Origin};
use rustix::process::{
    MachineCheckMemoryCorruptionKillPolicy as KillPolicy,
    set_machine_check_memory_corruption_kill_policy as set_kill_policy,
};
use std::ffi::{c_int, c_void};
use std::io;
use std::sync::OnceLock;

mod watch;
pub use watch::{FailureKind, FailureWatch, MAX_PENDING, MAX_WATCHES, MemoryFailure, watch};

// asm-generic/siginfo.h; the libc crate does not have them.
const BUS_ADRERR: c_int = 2;
pub(crate) const BUS_MCEERR_AR: c_int = 4;
const BUS_MCEERR_AO: c_int = 5;

static CHAIN: Chain = Chain::new(libc::SIGBUS);

/// The part of `siginfo_t` that SIGBUS fills (asm-generic/siginfo.h, 64-bit).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct BusInfo {
    signal: c_int,
    errno: c_int,
    code: c_int,
    padding: c_int,
    address: usize,
    address_lsb: i16,
}

/// Installs the handler. Once for the process; later calls only repeat the answer. Every mapping
/// calls it, so that copies need not; call it yourself to choose when.
///
/// # Errors
/// What `sigaction` says; none is known.
pub fn install() -> Result<(), OsError> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED.get_or_init(|| CHAIN.install(on_sigbus)).map_err(|errno| {
        let source = io::Error::from_raw_os_error(errno);
        OsError::new("install", "a handler of SIGBUS", source)
    })
}

/// Asks the kernel to tell the calling thread of broken memory that the process has mapped as soon
/// as it is known (`BUS_MCEERR_AO`), rather than when the memory is next touched.
///
/// Threads that it starts from now on inherit the wish; one willing thread is enough for a process.
/// What no watch takes is passed on, and kills a process that has no other handler: watch first,
/// and know that other memory of the process may break as well.
///
/// # Errors
/// `EINVAL` on a kernel without memory failure handling.
pub fn ask_for_early_notice() -> Result<(), OsError> {
    set_kill_policy(Some(KillPolicy::Early)).map_err(|errno| {
        OsError::new("ask for early notice of", "broken memory (PR_MCE_KILL)", errno)
            .with_advice("the kernel must be built with CONFIG_MEMORY_FAILURE")
    })
}

extern "C" fn on_sigbus(_signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo_t of 128 bytes, aligned, fully initialised, of
    // which BusInfo is the beginning.
    let bus = unsafe { info.cast::<BusInfo>().read() };
    // SAFETY: the kernel passes the interrupted thread's context, which nobody else uses while the
    // handler runs.
    let interrupted = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let is_done = signal_chain::keeping_errno(|| handle(&bus, interrupted));
    if !is_done {
        // What was sent has code 0 or below.
        let is_fault = bus.code > 0 && bus.code != BUS_MCEERR_AO;
        CHAIN.pass_on(if is_fault { Origin::Fault } else { Origin::Sent }, info, context);
    }
}

/// Returns true if nobody else need hear of it.
fn handle(bus: &BusInfo, interrupted: &mut libc::ucontext_t) -> bool {
    let is_told = match bus.code {
        BUS_MCEERR_AR => watch::tell(bus.address, bus.address_lsb, FailureKind::ActionRequired),
        BUS_MCEERR_AO => watch::tell(bus.address, bus.address_lsb, FailureKind::ActionOptional),
        _ => false,
    };
    match bus.code {
        BUS_ADRERR | BUS_MCEERR_AR => crate::bytes::end_copy(interrupted, bus.address, bus.code),
        // Not caused by the interrupted instruction, whichever that is.
        _ => is_told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installing_twice_is_one_installation() {
        install().unwrap();
        let first = CHAIN.handlers();
        install().unwrap();
        assert_eq!(CHAIN.handlers(), first);
        let handler: signal_chain::Handler = on_sigbus;
        assert_eq!(first.0, handler as *const () as usize);
        assert_ne!(first.1, first.0);
    }

    #[test]
    fn early_notice_is_asked_for_or_the_kernel_has_none() {
        std::thread::spawn(|| match ask_for_early_notice() {
            Ok(()) => {
                let policy = rustix::process::machine_check_memory_corruption_kill_policy();
                assert_eq!(policy.unwrap(), KillPolicy::Early);
            }
            Err(error) => {
                assert_eq!(error.errno(), libc::EINVAL);
                println!("SKIPPED early_notice_is_asked_for_or_the_kernel_has_none: {error}");
            }
        })
        .join()
        .unwrap();
    }
}
