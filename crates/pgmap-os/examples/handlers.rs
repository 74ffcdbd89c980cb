//! A library that has pgmap's signal handlers installed: the test `unloaded` opens and closes it.

// UNSAFETY: a function that is found by its name must be exported, which is an unsafe attribute.
#![allow(unsafe_code)]

use pgmap_os::{MemoryFile, PageSize, WriteMapping, touch};

/// Has both handlers installed, for one touch watch that ends at once and one mapping that goes
/// again. Returns an error number, or 0.
// SAFETY: no other library that the test opens exports the name.
#[unsafe(no_mangle)]
pub extern "C" fn install_handlers(address: usize) -> i32 {
    let watched = touch::watch(address..address + 4096).map(drop);
    let mapped = watched.and_then(|()| {
        let file = MemoryFile::anonymous("handlers", 4096, PageSize::Base)?;
        WriteMapping::map(&file, 0, 4096).map(drop)
    });
    mapped.map_or_else(|error| error.errno(), |()| 0)
}
