//! The files that may do what other files may not. An entry whose file is gone, or no longer needs
//! its permission, is itself a violation: the lists can only be as long as the need.

/// Files whose code may say `unsafe`. Each opens with a line `// UNSAFETY: why this file cannot do
/// without`. No file of pgmap-mm can be listed here.
pub const UNSAFE_FILES: &[&str] = &[
    "crates/pgmap-os/src/bytes.rs",
    "crates/pgmap-os/src/file_lock.rs",
    "crates/pgmap-os/src/fork_guard.rs",
    "crates/pgmap-os/src/mapping.rs",
    "crates/pgmap-os/src/mapping/region.rs",
    "crates/pgmap-os/src/memory_file/huge_pages.rs",
];

/// Files that may name a memory ordering. An entry that ends in a slash allows a whole folder.
pub const ORDERING_FILES: &[&str] = &[
    "crates/pgmap-mm/src/barrier.rs",
    "crates/pgmap-mm/src/index.rs",
    "crates/pgmap-mm/src/ledger.rs",
    "crates/pgmap-mm/src/longterm.rs",
    "crates/pgmap-mm/src/pin.rs",
    "crates/pgmap-mm/src/vmemmap.rs",
    "crates/pgmap-mm/src/words.rs",
    "crates/pgmap-os/src/fork_guard.rs",
    "crates/pgmap-os/src/mapping.rs",
];
