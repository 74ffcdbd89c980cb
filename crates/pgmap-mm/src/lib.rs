//! What is a page: descriptors, ledgers, pins, drains and the name index of pgmap.
//!
//! Makes no system call, starts no thread, reads no clock and has no dependency at run time; apart
//! from mutexes, only `AckTicket::wait` of [`mm`] blocks, up to a limit of its caller. Memory and
//! the heavy barrier come from the caller through small traits, so loom runs the very code that
//! ships. `docs/README.md` has the order in which to read it.
#![forbid(unsafe_code)]

// In layers, lowest first; `cargo xtask tidy` checks who uses whom.

// atomics
pub mod barrier;
pub mod sync;
pub mod words;

// values
pub mod descriptor;
pub mod error;
pub mod extent;
pub(crate) mod flags;
pub mod level;
pub mod memory_type;
pub mod pfn;
pub mod prot;
pub mod runs;
pub mod stamp;

// metadata
pub mod folio;
pub mod frames;
pub mod index;
pub mod ledger;
pub mod pagemap;
pub mod split;
pub mod used;
pub mod vmemmap;

// translation
pub mod mm;
pub(crate) mod page_table;
pub mod vma;

// access
pub mod admission;
pub mod drain;
pub mod fault;
pub mod gup;
pub mod holder;
pub mod lease;
pub mod longterm;
pub mod pin;

// trouble
pub mod memory_failure;
