//! Random histories against naive models.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

mod eviction;
mod files;
mod pages;
#[path = "../support/mod.rs"]
mod support;
