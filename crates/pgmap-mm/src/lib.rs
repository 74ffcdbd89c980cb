//! What is a page: descriptors, ledgers, pins, drains and the name index of pgmap.
//!
//! Makes no system call, starts no thread, reads no clock and has no dependency at run time; only
//! `AckTicket::wait` of [`mm`] blocks, up to a limit of its caller. Memory and the heavy barrier
//! come from the caller through small traits, so loom runs the very code that ships.
//!
//! Read in this order: [`pfn`], [`descriptor`], [`ledger`], [`mod@pin`], [`drain`].
#![forbid(unsafe_code)]

// values
pub mod descriptor;
pub mod error;
pub mod extent;
pub(crate) mod flags;
pub mod level;
pub mod memory_type;
pub mod pfn;
pub mod prot;
pub mod stamp;
// atomics
pub mod barrier;
pub mod sync;
pub mod words;
// metadata
pub mod drain;
pub mod folio;
pub mod frames;
pub mod index;
pub mod ledger;
pub mod longterm;
pub mod pin;
pub mod runs;
pub mod vmemmap;
// shape and policy
pub mod admission;
pub mod altmap;
pub mod holder;
pub mod lease;
pub mod memory_failure;
pub mod pagemap;
pub mod split;
// translation
pub mod mm;
pub(crate) mod page_table;
pub mod vma;
// access
pub mod fault;
pub mod gup;
