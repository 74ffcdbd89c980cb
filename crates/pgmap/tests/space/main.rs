//! Address spaces: what is mapped, pinned and touched by address.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

mod faults;
mod keeper;
mod mappings;
mod process;
#[path = "../support/mod.rs"]
mod support;
