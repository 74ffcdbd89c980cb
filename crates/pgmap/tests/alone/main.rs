//! Tests that load the machine, measure time or count what the process has open: one at a time.
//!
//! Each takes [`alone`] first. Which runs is chosen by module: `cargo test -p pgmap --test alone
//! kill_soak`.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

mod hostile;
mod kill_soak;
mod many_holds;
mod pin_vs_drain;
mod soak_all;
mod space_process_stress;
mod space_stress;
#[path = "../support/mod.rs"]
mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Waits until no other test of this program runs.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
