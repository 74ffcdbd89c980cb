//! The only door to atomics.
//!
//! Everything in this crate that touches shared words does so through these names, so that building
//! with `--cfg loom` swaps in loom's model and checks the very code that ships. Locks that may be
//! held while the layer above is called come from here, too.

mod locks;

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU32, AtomicU64, compiler_fence, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, fence};

pub use core::sync::atomic::Ordering;
use std::sync::PoisonError;

pub(crate) use self::locks::{Condvar, Mutex, MutexGuard};
#[cfg(feature = "sim")]
pub use self::locks::{Scheduler, schedule};

/// Lets another thread get on before the next attempt of a bounded retry.
pub fn pause() {
    #[cfg(not(loom))]
    core::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}

/// A number that no other call in this process returns, never 0. For what happens rarely.
pub(crate) fn unique_number() -> u64 {
    static LAST: std::sync::Mutex<u64> = std::sync::Mutex::new(0);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    *last += 1;
    *last
}
