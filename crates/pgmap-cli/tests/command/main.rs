//! The command as its users run it.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

mod backings;
mod busy_poll;
mod ends;
mod files;
mod machine;
mod memory;
mod metadata;
mod quotas;
#[path = "../server/mod.rs"]
mod server;
