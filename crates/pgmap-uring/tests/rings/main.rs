//! Transfers through rings.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

mod cancel;
mod dead;
mod epoch;
mod fork;
mod order;
mod seen;
#[path = "../support/mod.rs"]
mod support;
mod tails;
mod transfers;
