//! A signal handler that passes on what is not its own.
//!
//! It is never uninstalled. A library that is closed by the program stays loaded once it has one
//! installed.
//!
//! # What may be called in a handler
//! Atomics on static memory, and system calls that neither lock nor allocate: nothing that panics.

// UNSAFETY: signal handlers are installed, and others' are called by their address.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A handler as `SA_SIGINFO` calls it.
pub(crate) type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// One signal, and the handler that was there before ours.
#[derive(Debug)]
pub(crate) struct Chain {
    signal: c_int,
    /// As `sa_sigaction` holds it. Written before ours is installed.
    previous: AtomicUsize,
    /// Whether it takes three arguments (`SA_SIGINFO`).
    previous_takes_info: AtomicBool,
}

/// Whether the interrupted instruction caused the signal: then it happens again on return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Fault,
    /// It was sent, or is a mere notice.
    Sent,
}

impl Chain {
    pub(crate) const fn new(signal: c_int) -> Self {
        let previous = AtomicUsize::new(libc::SIG_DFL);
        Self { signal, previous, previous_takes_info: AtomicBool::new(false) }
    }

    /// Puts `handler` before the one that is there, which [`Self::pass_on`] calls from then on.
    pub(crate) fn install(&self, handler: Handler) -> Result<(), i32> {
        keep_loaded(handler);
        // The previous handler is known before ours can run: asked for first, then replaced.
        let before = self.change_action(None)?;
        self.remember(&before);
        let mut action = before;
        action.sa_sigaction = handler as *const () as usize;
        // Whether the signal is blocked meanwhile, and what else (sa_mask), stays as the previous
        // handler wants it, because it runs inside of ours. With SA_ONSTACK an overflowing stack
        // does not hide the overflow; with SA_RESTART a notice interrupts no system call.
        action.sa_flags &= libc::SA_NODEFER;
        action.sa_flags |= libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // Another thread may have installed its own between the two calls.
        self.remember(&self.change_action(Some(&action))?);
        Ok(())
    }

    /// Installs `action`, if any, and returns what was there before.
    fn change_action(&self, action: Option<&libc::sigaction>) -> Result<libc::sigaction, i32> {
        let action = action.map_or(ptr::null(), ptr::from_ref);
        let mut before = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: `action` is null or valid, `before` has room for the answer; a handler that is
        // installed here was given to `install` as one that may interrupt any code.
        let changed = unsafe { libc::sigaction(self.signal, action, before.as_mut_ptr()) };
        if changed != 0 {
            return Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO));
        }
        // SAFETY: the call succeeded, so the kernel has filled it in.
        Ok(unsafe { before.assume_init() })
    }

    fn remember(&self, before: &libc::sigaction) {
        let takes_info = before.sa_flags & libc::SA_SIGINFO != 0;
        // Relaxed: `sigaction`, a system call, lies between these stores and the first load;
        // whoever replaces the handler in between is read with either flag only until the second
        // call.
        self.previous_takes_info.store(takes_info, Ordering::Relaxed);
        self.previous.store(before.sa_sigaction, Ordering::Relaxed);
    }

    /// Does what would have been done without our handler. Called by it, after all else, for the
    /// previous handler may never return.
    pub(crate) fn pass_on(&self, origin: Origin, info: *mut libc::siginfo_t, context: *mut c_void) {
        // Relaxed: see `remember`.
        match self.previous.load(Ordering::Relaxed) {
            // The kernel does not let a fault be ignored. It happens again on return, and kills.
            libc::SIG_IGN | libc::SIG_DFL if origin == Origin::Fault => self.restore_default(),
            libc::SIG_IGN => {}
            libc::SIG_DFL => {
                self.restore_default();
                // SAFETY: no precondition. Kills now, or on return if the handler blocks the
                // signal.
                unsafe { libc::raise(self.signal) };
            }
            // Relaxed: as above.
            handler if self.previous_takes_info.load(Ordering::Relaxed) => {
                // SAFETY: whoever installed it with SA_SIGINFO promised a function of this type.
                let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
                handler(self.signal, info, context);
            }
            handler => {
                // SAFETY: whoever installed it without SA_SIGINFO promised a function of this type.
                let handler =
                    unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler) };
                handler(self.signal);
            }
        }
    }

    fn restore_default(&self) {
        // SAFETY: SIG_DFL needs no function.
        unsafe { libc::signal(self.signal, libc::SIG_DFL) };
    }

    /// The handler that is installed now, and the one to pass on to.
    #[cfg(test)]
    pub(crate) fn handlers(&self) -> (usize, usize) {
        let now = self.change_action(None).unwrap().sa_sigaction;
        (now, self.previous.load(Ordering::Relaxed))
    }
}

/// Whether this process ignores `signal`; false for what is no signal.
pub(crate) fn is_ignored(signal: c_int) -> bool {
    let action = Chain::new(signal).change_action(None);
    action.is_ok_and(|action| action.sa_sigaction == libc::SIG_IGN)
}

/// Keeps the library with the handler loaded, even when the program closes it. The handler cannot
/// be taken out again: one that was installed later may pass on to it.
fn keep_loaded(handler: Handler) {
    let mut found = MaybeUninit::<libc::Dl_info>::zeroed();
    let address = (handler as *const ()).cast::<c_void>();
    // SAFETY: reads no memory at the address; `found` has room for the answer.
    if unsafe { libc::dladdr(address, found.as_mut_ptr()) } == 0 {
        // Not of a library.
        return;
    }
    // SAFETY: the call succeeded; a Dl_info is valid when it is all zeros, too.
    let library = unsafe { found.assume_init() };
    // What is open is opened once more, and never closed. The program itself is no library and is
    // refused, which is as good.
    // SAFETY: the name is the loader's own, a string that lives as long as the library is loaded.
    unsafe { libc::dlopen(library.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
}

/// Runs `handle` with `errno` as it was before and after.
pub(crate) fn keeping_errno<T>(handle: impl FnOnce() -> T) -> T {
    // A rustix that is built on libc (feature use-libc) sets errno.
    // SAFETY: no precondition.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: the calling thread's errno, valid as long as the thread.
    let errno = unsafe { place.read() };
    let result = handle();
    // SAFETY: as for the read.
    unsafe { place.write(errno) };
    result
}
