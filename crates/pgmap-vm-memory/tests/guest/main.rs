//! Guest memory, as vm-memory and virtio-queue use it.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

mod differential;
mod held;
mod one_mapping;
#[path = "../support/mod.rs"]
mod support;
mod virtio_queue;
mod virtio_told_again;
mod vm_memory_told_again;
