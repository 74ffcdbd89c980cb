//! Faults: SIGBUS in copies, touches of reserved addresses, and whose handler runs.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

mod sigbus;
mod sigbus_handler;
mod touch;
mod unloaded;

/// The test `name` of the module with `module_path`, as `--exact` takes it.
fn test_path(module_path: &str, name: &str) -> String {
    let (_program, modules) = module_path.split_once("::").unwrap();
    format!("{modules}::{name}")
}
