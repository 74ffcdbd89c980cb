//! What the kernel says and does: files, descriptors, forks, other processes.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

mod file_users;
mod fork;
mod inventory;
mod no_descriptors;
mod processes;

/// The test `name` of the module with `module_path`, as `--exact` takes it.
fn test_path(module_path: &str, name: &str) -> String {
    let (_program, modules) = module_path.split_once("::").unwrap();
    format!("{modules}::{name}")
}
