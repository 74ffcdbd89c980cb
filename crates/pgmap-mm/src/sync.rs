//! The only door to atomics.
//!
//! Everything in this crate that touches shared words does so through these names, so that building
//! with `--cfg loom` swaps in loom's model and checks the very code that ships.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU32, AtomicU64, compiler_fence, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, fence};

pub use core::sync::atomic::Ordering;

/// Lets another thread get on before the next attempt of a bounded retry.
pub fn pause() {
    #[cfg(not(loom))]
    core::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}
