//! Errors as C has them: a negative number of errno.h, and a message for each thread.

// UNSAFETY: a symbol without mangling.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use pgmap::Error;

/// `EINVAL` and `EIO`: the same on all architectures of Linux.
const EINVAL: c_int = 22;
const EIO: c_int = 5;

thread_local! {
    static LAST: RefCell<CString> = RefCell::new(CString::default());
}

/// Why a call failed.
pub struct Failure {
    errno: c_int,
    message: String,
}

impl Failure {
    /// What was passed cannot be.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { errno: EINVAL, message: message.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { errno: error.errno(), message: error.to_string() }
    }
}

fn keep(message: &str) {
    let message: Vec<u8> = message.bytes().filter(|&byte| byte != 0).collect();
    let message = CString::new(message).unwrap_or_default();
    // Where the thread ends nobody asks any more.
    let _ = LAST.try_with(|last| *last.borrow_mut() = message);
}

/// What C gets for the result of a call. A panic is a failure, too: it must not unwind into C.
pub fn answer(call: impl FnOnce() -> Result<c_int, Failure>) -> c_int {
    let panicked = || Failure { errno: EIO, message: "pgmap failed inside (a panic)".into() };
    match catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err(panicked())) {
        Ok(number) => number,
        Err(failure) => {
            keep(&failure.message);
            // Whatever has no number of its own failed all the same.
            if failure.errno > 0 { -failure.errno } else { -EIO }
        }
    }
}

/// What the last call that failed on this thread failed with: text that stays until the next one
/// fails. Empty if none did.
#[unsafe(no_mangle)]
pub extern "C" fn pgmap_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}
