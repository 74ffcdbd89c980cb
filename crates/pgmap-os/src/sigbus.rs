//! SIGBUS, the signal of memory that does not answer: copies return an error, failures are told.
//!
//! One handler for the process, [`install`]ed by the first mapping. It does three things, in order:
//!
//! 1. a machine check (`BUS_MCEERR_AR`, `BUS_MCEERR_AO`) inside a watched range is left for its
//!    [`FailureWatch`] to collect;
//! 2. a fault of one of the copy loops of [`crate::bytes`] makes that copy return an error;
//! 3. everything else is passed on to the handler that was there before, or kills as it would have.
//!
//! What was told to a watch and needs no action (`BUS_MCEERR_AO`) ends there; a fault outside the
//! copy loops goes on to 3 even when it was told.
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
//! Atomics on static memory, `write` to an eventfd, `sigaction` and `raise`: nothing that locks,
//! allocates or panics. `errno` is saved.

// UNSAFETY: a signal handler is installed, and reads what the kernel points it to.
#![allow(unsafe_code)]

use crate::OsError;
use rustix::process::{
    MachineCheckMemoryCorruptionKillPolicy as KillPolicy,
    set_machine_check_memory_corruption_kill_policy as set_kill_policy,
};
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

mod watch;
pub use watch::{FailureKind, FailureWatch, MAX_PENDING, MAX_WATCHES, MemoryFailure, watch};

// asm-generic/siginfo.h; the libc crate does not have them.
const BUS_ADRERR: c_int = 2;
pub(crate) const BUS_MCEERR_AR: c_int = 4;
const BUS_MCEERR_AO: c_int = 5;

/// The handler that was there before, as `sa_sigaction` holds it. Written before ours is installed.
static PREVIOUS: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
/// Whether it takes three arguments (`SA_SIGINFO`).
static PREVIOUS_TAKES_INFO: AtomicBool = AtomicBool::new(false);

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
    INSTALLED.get_or_init(install_now).map_err(|errno| {
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

fn install_now() -> Result<(), i32> {
    // The previous handler is known before ours can run: asked for first, then replaced.
    let before = change_action(None)?;
    remember(&before);
    let mut action = before;
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
    action.sa_sigaction = handler as *const () as usize;
    // Whether SIGBUS is blocked meanwhile, and what else (sa_mask), stays as the previous handler
    // wants it, because it runs inside of ours. With SA_ONSTACK an overflowing stack does not hide
    // the overflow; with SA_RESTART a notice interrupts no system call.
    action.sa_flags &= libc::SA_NODEFER;
    action.sa_flags |= libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // Another thread may have installed its own between the two calls.
    remember(&change_action(Some(&action))?);
    Ok(())
}

/// Installs `action`, if any, and returns what was there before.
fn change_action(action: Option<&libc::sigaction>) -> Result<libc::sigaction, i32> {
    let action = action.map_or(ptr::null(), ptr::from_ref);
    let mut before = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: `action` is null or valid, `before` has room for the answer; a handler that is
    // installed here is `on_sigbus`, which may interrupt any code.
    let changed = unsafe { libc::sigaction(libc::SIGBUS, action, before.as_mut_ptr()) };
    if changed != 0 {
        return Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO));
    }
    // SAFETY: the call succeeded, so the kernel has filled it in.
    Ok(unsafe { before.assume_init() })
}

fn remember(before: &libc::sigaction) {
    let takes_info = before.sa_flags & libc::SA_SIGINFO != 0;
    // Relaxed: `sigaction`, a system call, lies between these stores and the first load; whoever
    // replaces the handler in between is read with either flag only until the second `remember`.
    PREVIOUS_TAKES_INFO.store(takes_info, Ordering::Relaxed);
    PREVIOUS.store(before.sa_sigaction, Ordering::Relaxed);
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // A rustix that is built on libc (feature use-libc) sets errno when a bell is at its limit.
    // SAFETY: no precondition.
    let errno_place = unsafe { libc::__errno_location() };
    // SAFETY: the calling thread's errno, valid as long as the thread.
    let errno = unsafe { errno_place.read() };
    // SAFETY: the kernel passes a valid siginfo_t of 128 bytes, aligned, fully initialised, of which
    // BusInfo is the beginning.
    let bus = unsafe { info.cast::<BusInfo>().read() };
    // SAFETY: the kernel passes the interrupted thread's context, which nobody else uses while the
    // handler runs.
    let interrupted = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let is_done = handle(&bus, interrupted);
    // SAFETY: as for the read.
    unsafe { errno_place.write(errno) };
    // After all else, for the previous handler may never return.
    if !is_done {
        pass_on(&bus, signal, info, context);
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

/// Does what would have been done without our handler.
fn pass_on(bus: &BusInfo, signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // A fault happens again on return; what was sent (code 0 and below) or is a mere notice does not.
    let is_fault = bus.code > 0 && bus.code != BUS_MCEERR_AO;
    // Relaxed: see `remember`.
    match PREVIOUS.load(Ordering::Relaxed) {
        // The kernel does not let a fault be ignored. It happens again on return, and kills.
        libc::SIG_IGN | libc::SIG_DFL if is_fault => restore_default(),
        libc::SIG_IGN => {}
        libc::SIG_DFL => {
            restore_default();
            // SAFETY: no precondition. Kills now, or on return if the handler blocks SIGBUS.
            unsafe { libc::raise(signal) };
        }
        // Relaxed: as above.
        handler if PREVIOUS_TAKES_INFO.load(Ordering::Relaxed) => {
            type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            // SAFETY: whoever installed it with SA_SIGINFO promised a function of this type.
            let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: whoever installed it without SA_SIGINFO promised a function of this type.
            let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler) };
            handler(signal);
        }
    }
}

fn restore_default() {
    // SAFETY: SIG_DFL needs no function.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installing_twice_is_one_installation() {
        install().unwrap();
        let first = change_action(None).unwrap();
        install().unwrap();
        assert_eq!(change_action(None).unwrap().sa_sigaction, first.sa_sigaction);
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
        assert_ne!(PREVIOUS.load(Ordering::Relaxed), handler as *const () as usize);
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
