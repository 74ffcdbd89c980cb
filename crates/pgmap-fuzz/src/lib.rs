//! What the fuzzers run: one function for each target.
//!
//! Each takes any bytes, gives them to the code that ships, and panics if that breaks a promise.
//! The libFuzzer targets in `fuzz/` call these functions and nothing else; [`drive`] runs them on
//! stable. See docs/fuzzing.md.

#![allow(clippy::unwrap_used, reason = "a target fails as a test does")]

pub mod catalog;
pub mod catalog_file;
mod cli;
pub mod drive;
mod greeting;
mod index;
mod input;
mod ledger_words;
pub mod pool_header;
mod wire;
mod words;

pub use catalog::catalog;
pub use cli::cli;
pub use greeting::greeting;
pub use index::index;
pub use ledger_words::ledger_words;
pub use pool_header::pool_header;
pub use wire::wire;

/// A target, as the driver and the tools know it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which its file in `fuzz/fuzz_targets` and its folder in `fuzz/corpus` have as
    /// well.
    pub name: &'static str,
    /// What it does with an input.
    pub run: fn(&[u8]),
    /// How many inputs the bounded run makes: some seconds' worth.
    pub nr_inputs: u64,
}

/// Every target.
pub const TARGETS: [Target; 7] = [
    Target { name: "wire", run: wire, nr_inputs: 1_000_000 },
    Target { name: "greeting", run: greeting, nr_inputs: 20_000 },
    Target { name: "catalog", run: catalog, nr_inputs: 50_000 },
    Target { name: "pool_header", run: pool_header, nr_inputs: 20_000 },
    Target { name: "ledger_words", run: ledger_words, nr_inputs: 4_000 },
    Target { name: "index", run: index, nr_inputs: 50_000 },
    Target { name: "cli", run: cli, nr_inputs: 500_000 },
];
