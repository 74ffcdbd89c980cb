//! The protocols of this crate under loom: every interleaving of at most three threads, up to a
//! number of preemptions, with every value that a load may legally return.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p pgmap-mm --release --test loom`; `docs/model-checks.md`
//! says how to break each protocol and what is seen then. One file per race.
#![cfg(loom)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a fixture that is not there fails the test"
)]

#[path = "../client_side/mod.rs"]
mod client_side;
mod get_vs_evict;
mod gup;
mod index_lookup;
mod lanes_and_marks;
mod longterm_vs_drain;
mod pin_vs_drain;
mod split;
mod support;
mod two_clients;
mod undone_pin;
mod unpin_vs_drain;
