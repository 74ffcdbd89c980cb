//! The heavy half of an asymmetric barrier: `membarrier(2)`.
//!
//! One side runs often and pays only a compiler fence; the other side runs rarely and asks the
//! kernel to make every CPU that runs a registered process pass a full barrier. Afterwards each
//! such thread has either made its earlier stores visible, or will see the caller's.
//!
//! - *private expedited* reaches the threads of the calling process;
//! - *global expedited* reaches every process that has registered for it. It silently skips those
//!   that have not, so both sides must have registered before either relies on it.
//!
//! A sandbox may refuse the call (seccomp, gVisor). That is a value here, never a panic: whoever
//! shares memory must then agree on `fence(SeqCst)` on both sides.

use rustix::io::Errno;
use rustix::thread::{MembarrierCommand, membarrier, membarrier_query};
use std::io;

/// What this process was allowed to register for.
///
/// Registration belongs to the process: it is inherited by threads and by `fork`, and lost by
/// `execve`. Registering twice is harmless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a refused registration means that both sides need fence(SeqCst)"]
pub struct Membarrier {
    global: bool,
    private: bool,
}

impl Membarrier {
    /// Registers the calling process for both expedited barriers, as far as it may.
    pub fn register() -> Self {
        #[cfg(feature = "sim")]
        if let Some(is_there) = crate::sim::with(|world| world.has_membarrier()) {
            return Self { global: is_there, private: is_there };
        }
        let offered = membarrier_query();
        let accepts = |register, command| {
            offered.contains_command(register)
                && offered.contains_command(command)
                && membarrier(register).is_ok()
                // Only a barrier that has worked once is trusted: some sandboxes accept the
                // registration and refuse the use.
                && membarrier(command).is_ok()
        };
        Self {
            global: accepts(
                MembarrierCommand::RegisterGlobalExpedited,
                MembarrierCommand::GlobalExpedited,
            ),
            private: accepts(
                MembarrierCommand::RegisterPrivateExpedited,
                MembarrierCommand::PrivateExpedited,
            ),
        }
    }

    /// Returns a value that refuses every barrier: for tests, and for processes told to go without.
    pub fn unavailable() -> Self {
        Self { global: false, private: false }
    }

    /// Returns true if both barriers may be relied on.
    pub fn is_available(&self) -> bool {
        self.global && self.private
    }

    /// Returns true if [`Self::global_expedited`] may be relied on.
    pub fn is_global_available(&self) -> bool {
        self.global
    }

    /// Returns true if [`Self::private_expedited`] may be relied on.
    pub fn is_private_available(&self) -> bool {
        self.private
    }

    /// Runs a full barrier on every CPU that runs a thread of a registered process.
    ///
    /// Costs 0.6 us when the other CPUs idle, about 7 us when they run registered processes: batch.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where registration was refused; else what the kernel says.
    pub fn global_expedited(&self) -> io::Result<()> {
        run(self.global, MembarrierCommand::GlobalExpedited)
    }

    /// Runs a full barrier on every CPU that runs another thread of the calling process.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where registration was refused; `EPERM` in a program that replaced this one.
    pub fn private_expedited(&self) -> io::Result<()> {
        run(self.private, MembarrierCommand::PrivateExpedited)
    }
}

fn run(registered: bool, command: MembarrierCommand) -> io::Result<()> {
    if !registered {
        return Err(Errno::OPNOTSUPP.into());
    }
    crate::sim::call("membarrier")?;
    membarrier(command).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registered_barriers_work() {
        let barrier = Membarrier::register();
        if !barrier.is_available() {
            println!("SKIPPED registered_barriers_work: this kernel or sandbox refuses membarrier");
            return;
        }
        barrier.global_expedited().unwrap();
        barrier.private_expedited().unwrap();
        assert_eq!(barrier, Membarrier::register(), "registering twice is harmless");
    }

    #[test]
    fn refusal_is_a_value_that_names_itself() {
        let barrier = Membarrier::unavailable();
        assert!(!barrier.is_available());
        let refused = |result: io::Result<()>| result.unwrap_err().raw_os_error();
        assert_eq!(refused(barrier.global_expedited()), Some(libc::EOPNOTSUPP));
        assert_eq!(refused(barrier.private_expedited()), Some(libc::EOPNOTSUPP));
    }
}
