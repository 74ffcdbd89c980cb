//! The owner: the one who changes descriptors.

#[cfg(feature = "sim")]
mod audit;
pub(crate) mod backing;
pub(crate) mod backings;
pub mod clients;
pub(crate) mod closing;
pub mod core;
pub(crate) mod counted;
pub(crate) mod cut;
pub(crate) mod dead_devices;
pub(crate) mod departures;
pub(crate) mod devices;
pub(crate) mod drains;
mod evict;
pub(crate) mod evictables;
pub(crate) mod files;
pub(crate) mod frames;
pub mod handle;
pub(crate) mod holders;
pub(crate) mod leases;
mod lines;
#[cfg(test)]
mod made_file;
pub(crate) mod pagemaps;
mod part_drains;
pub(crate) mod poison;
pub(crate) mod populate;
pub(crate) mod quotas;
pub(crate) mod reclaim;
pub(crate) mod recovery;
pub(crate) mod report;
pub(crate) mod reshape;
pub(crate) mod restore;
pub(crate) mod scans;
pub(crate) mod service;
#[doc(hidden)]
pub mod session;
mod subscribers;
pub(crate) mod water;

pub use handle::Owner;
