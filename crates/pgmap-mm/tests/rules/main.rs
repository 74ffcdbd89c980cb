//! The kernel's rules and the bounds of this crate, one scenario a test.

#![cfg(not(loom))]
#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

mod bounds;
#[path = "../client_side/mod.rs"]
mod client_side;
mod folios;
mod gup_changes;
mod gup_scenarios;
#[path = "../gup_world/mod.rs"]
mod gup_world;
#[path = "../heap_world/mod.rs"]
mod heap_world;
mod pagemaps;
mod remembered;
mod scan_in_steps;
