//! Whether stdout was open when the command was started.
//!
//! Before `main` the runtime opens `/dev/null` in the place of a standard stream that is closed.
//! What is written there is lost, and no call says so. So the question is asked before the runtime
//! starts.

// UNSAFETY: only the loader calls anything before the runtime does, by the address of a function.
#![allow(unsafe_code)]

use std::sync::OnceLock;

static STDOUT_IS_CLOSED: OnceLock<()> = OnceLock::new();

#[used]
// SAFETY: the loader calls each address of this section once, before `main`, with arguments that
// `look` does not take, which the C calling convention allows. `look` needs nothing that the
// runtime sets up.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = look;

extern "C" fn look() {
    // SAFETY: F_GETFD takes any number and touches no memory.
    if unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } == -1 {
        STDOUT_IS_CLOSED.get_or_init(|| ());
    }
}

/// Whether the command was started without a stdout.
pub fn is_stdout_closed() -> bool {
    STDOUT_IS_CLOSED.get().is_some()
}
