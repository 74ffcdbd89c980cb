//! The files that may do what other files may not. An entry whose file is gone, or no longer needs
//! its permission, is itself a violation: the lists can only be as long as the need.

/// Files whose code may say `unsafe`. Each opens with a line `// UNSAFETY: why this file cannot do
/// without`. No file of pgmap-mm can be listed here.
pub const UNSAFE_FILES: &[&str] = &[
    "crates/pgmap-cli/src/demo/dma.rs",
    "crates/pgmap-os/src/bytes.rs",
    "crates/pgmap-os/src/bytes/portable.rs",
    "crates/pgmap-os/src/bytes/x86_64.rs",
    "crates/pgmap-os/src/file_lock.rs",
    "crates/pgmap-os/src/fork_guard.rs",
    "crates/pgmap-os/src/mapping.rs",
    "crates/pgmap-os/src/mapping/region.rs",
    "crates/pgmap-os/src/memory_file/huge_pages.rs",
    "crates/pgmap-os/src/seqpacket/peer.rs",
    "crates/pgmap-os/src/sigbus.rs",
    "crates/pgmap-os/src/sigbus/watch.rs",
    "crates/pgmap-os/src/zeroed.rs",
    "crates/pgmap-os/tests/fork.rs",
    "crates/pgmap-os/tests/sigbus.rs",
    "crates/pgmap-os/tests/sigbus_handler.rs",
    "crates/pgmap-uring/src/ring.rs",
    "crates/pgmap-vm-memory/src/region.rs",
    "crates/pgmap/tests/device.rs",
    "crates/pgmap/tests/fork.rs",
    "crates/pgmap/tests/space_faults.rs",
];

/// Files that may name a memory ordering. An entry that ends in a slash allows a whole folder.
pub const ORDERING_FILES: &[&str] = &[
    "crates/pgmap-bench/src/",
    "crates/pgmap-cli/src/demo/lease.rs",
    "crates/pgmap-mm/src/barrier.rs",
    "crates/pgmap-mm/src/holder.rs",
    "crates/pgmap-mm/src/index.rs",
    "crates/pgmap-mm/src/index/room.rs",
    "crates/pgmap-mm/src/ledger.rs",
    "crates/pgmap-mm/src/longterm.rs",
    "crates/pgmap-mm/src/mm/dirty.rs",
    "crates/pgmap-mm/src/mm/invalidate.rs",
    "crates/pgmap-mm/src/page_table/cursor.rs",
    "crates/pgmap-mm/src/page_table/mod.rs",
    "crates/pgmap-mm/src/page_table/span.rs",
    "crates/pgmap-mm/src/page_table/walk.rs",
    "crates/pgmap-mm/src/pin.rs",
    "crates/pgmap-mm/src/vmemmap.rs",
    "crates/pgmap-mm/src/words.rs",
    "crates/pgmap-os/src/fork_guard.rs",
    "crates/pgmap-os/src/mapping.rs",
    "crates/pgmap-os/src/sigbus.rs",
    "crates/pgmap-os/src/sigbus/watch.rs",
    "crates/pgmap/src/client/side.rs",
    "crates/pgmap/src/memory.rs",
    "crates/pgmap/src/owner/device_head.rs",
    "crates/pgmap/src/owner/handle.rs",
];
