//! Several processes: clients and owners that are killed, stopped, forked, confined, or started
//! again.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

mod acceptance;
mod backings;
mod device;
mod evict;
mod fault_around;
mod fork;
mod full;
mod lifecycle;
mod limits;
mod link;
mod lost_answers;
mod membarrier_refused;
mod namespaces;
mod no_descriptors;
mod owner_restart;
mod places;
mod put_waves;
mod quotas;
mod read_only;
mod replaced_ledgers;
mod spares;
mod stories;
#[path = "../support/mod.rs"]
mod support;
mod waking;
