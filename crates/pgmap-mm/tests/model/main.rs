//! Random histories on one thread, each step compared with a naive model of plain maps and arrays.
//!
//! A failing history is printed as the shortest list of steps that still fails. The seed is fixed
//! and printed; `PROPTEST_RNG_SEED` and `PROPTEST_CASES` choose another and more.
#![cfg(not(loom))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a fixture that is not there fails the test"
)]

mod address_space;
#[path = "../client_side/mod.rs"]
mod client_side;
mod folios;
#[path = "../gup_world/mod.rs"]
mod gup_world;
#[path = "../heap_world/mod.rs"]
mod heap_world;
mod names;
mod pages;

use proptest::test_runner::{Config, RngSeed};

const SEED: u64 = 0x7067_6d61_7031;

/// `cases` histories from the fixed seed, unless the environment says otherwise.
fn config(cases: u32) -> Config {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if let RngSeed::Random = config.rng_seed {
        config.rng_seed = RngSeed::Fixed(SEED);
    }
    println!("{} cases from PROPTEST_RNG_SEED={:?}", config.cases, config.rng_seed);
    config
}
