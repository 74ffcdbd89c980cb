//! The owner: the one who changes descriptors.

mod again;
#[cfg(feature = "sim")]
mod audit;
pub(crate) mod backing;
pub(crate) mod backing_changes;
pub(crate) mod backings;
mod batch_room;
mod burst;
pub(crate) mod client_table;
pub mod clients;
pub(crate) mod closing;
pub mod core;
pub(crate) mod counted;
pub(crate) mod cut;
pub(crate) mod dead_devices;
pub(crate) mod departures;
pub(crate) mod devices;
pub(crate) mod drain_queue;
pub(crate) mod drains;
mod evict;
pub(crate) mod evictables;
pub(crate) mod file_book;
pub(crate) mod files;
pub(crate) mod frames;
pub mod handle;
pub(crate) mod holders;
pub(crate) mod lease_book;
pub(crate) mod leases;
mod lines;
#[cfg(test)]
mod made_file;
pub(crate) mod outbox;
pub(crate) mod pagemap_book;
pub(crate) mod pagemaps;
mod part_drains;
pub(crate) mod part_list;
pub(crate) mod poison;
pub(crate) mod populate;
pub(crate) mod quotas;
pub(crate) mod reclaim;
mod records;
pub(crate) mod recovery;
pub(crate) mod registered_holder;
pub(crate) mod report;
pub(crate) mod reshape;
pub(crate) mod restore;
pub(crate) mod scans;
pub(crate) mod service;
#[doc(hidden)]
pub mod session;
mod spares;
mod stock;
mod subscribers;
pub(crate) mod water;

pub use handle::Owner;
