//! Where a simulation takes the place of the machine.
//!
//! Each call of this crate that others can notice comes here first. Without the feature `sim` that
//! is nothing, compiled away. With it a `World` may run other parties first, fail the call, or
//! end the calling party on the spot; it also tells the time, starts threads and names processes.
//! What the kernel keeps (files, sockets, locks, mappings) stays the kernel's: one process, one
//! thread, and so always the same (ADR 0063).
//!
//! A thread that has no world uses the machine itself, so the feature changes nothing for others.

#[cfg(feature = "sim")]
pub mod power;
#[cfg(feature = "sim")]
mod world;
#[cfg(feature = "sim")]
pub use world::{Ended, Happening, Naming, World, enter, with};

#[cfg(not(feature = "sim"))]
mod machine {
    use rustix::io::Errno;
    use std::os::fd::BorrowedFd;
    use std::path::Path;

    /// See the simulation's.
    #[inline(always)]
    pub(crate) const fn call(_name: &'static str) -> Result<(), Errno> {
        Ok(())
    }

    /// See the simulation's.
    #[inline(always)]
    pub(crate) const fn happened() {}

    /// See the simulation's.
    #[inline(always)]
    pub(crate) const fn ring() -> Result<bool, Errno> {
        Ok(true)
    }

    /// See the simulation's.
    #[inline(always)]
    pub(crate) const fn writable(nr_bytes: usize, _offset: u64) -> Result<usize, Errno> {
        Ok(nr_bytes)
    }

    /// See the simulation's.
    #[inline(always)]
    pub(crate) const fn name_caller(_socket: BorrowedFd<'_>) -> Result<(), Errno> {
        Ok(())
    }

    /// See the simulation's.
    #[inline(always)]
    pub(crate) const fn is_disk() -> bool {
        false
    }

    /// See the simulation's.
    #[inline(always)]
    pub(crate) const fn listens(_path: &Path) {}

    /// See the simulation's.
    #[inline(always)]
    pub const fn word() -> bool {
        true
    }

    /// See the simulation's.
    #[inline(always)]
    pub const fn deliveries() -> usize {
        1
    }
}

#[cfg(not(feature = "sim"))]
pub(crate) use machine::{call, happened, is_disk, listens, name_caller, ring, writable};
#[cfg(not(feature = "sim"))]
pub use machine::{deliveries, word};
#[cfg(feature = "sim")]
pub(crate) use world::{call, happened, is_disk, listens, name_caller, peer, ring, wait, writable};
#[cfg(feature = "sim")]
pub use world::{changed, deliveries, word};
