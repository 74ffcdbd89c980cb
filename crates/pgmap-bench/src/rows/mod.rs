//! The scenarios, one file each.

pub mod bring_up;
pub mod by_address;
pub mod churn;
pub mod drain;
pub mod durable;
pub mod extent;
pub mod floor;
pub mod get;
pub mod held;
pub mod hot;
pub mod kinds;
pub mod longterm;
pub mod longterm_many;
pub mod metadata;
pub mod pin;
pub mod put;
pub mod reshape;

use crate::failure::Failure;
use crate::harness::{Scale, Scenario};

/// A scenario that can be built.
pub struct Entry {
    pub name: &'static str,
    pub build: fn(Scale) -> Result<Scenario, Failure>,
}

/// Every scenario, in the order in which they run.
pub const SCENARIOS: &[Entry] = &[
    Entry { name: "short pin", build: pin::scenario },
    Entry { name: "hot folio", build: hot::scenario },
    Entry { name: "extent", build: extent::scenario },
    Entry { name: "long pin", build: longterm::scenario },
    Entry { name: "16 GiB long-term", build: longterm_many::scenario },
    Entry { name: "library pin", build: pin::library_scenario },
    Entry { name: "drain", build: drain::scenario },
    Entry { name: "get", build: get::scenario },
    Entry { name: "put", build: put::scenario },
    Entry { name: "churn", build: churn::scenario },
    Entry { name: "held elsewhere", build: held::scenario },
    Entry { name: "reshape", build: reshape::scenario },
    Entry { name: "bring-up", build: bring_up::scenario },
    Entry { name: "kinds of memory", build: kinds::scenario },
    Entry { name: "pinned reads", build: kinds::reads_scenario },
    Entry { name: "durable commits", build: durable::scenario },
    Entry { name: "many files", build: durable::many_files_scenario },
];

/// Bytes of address space that the pin rows draw from.
pub const SPACE_BYTES: u64 = 64 << 30;
/// Bytes of a block.
pub const BLOCK_BYTES: u64 = 2 << 20;
