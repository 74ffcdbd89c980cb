//! Verbs that load the machine: a program of their own, so that no other test waits for them.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

mod bench;
mod demo;
#[path = "../server/mod.rs"]
mod server;
