//! An owner and its clients in the process of the test.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

mod batches;
mod events;
mod files;
mod kernel_rules;
mod lanes;
mod longterm;
mod memory_failure;
mod metadata;
mod on_device;
mod owned;
mod pagemaps;
mod prefault;
mod scenarios;
mod subscriptions;
#[path = "../support/mod.rs"]
mod support;
