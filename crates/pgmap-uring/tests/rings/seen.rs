//! What a ring has pinned is seen from outside: `pgmap who FILE` asks the kernel, not the pool.

use crate::support;
use std::path::Path;

use pgmap::os::file_users::{FileUsers, UseKind};
use pgmap::{Owner, Pool, PoolOptions};

/// Bytes of `path` that rings of this process have pinned, as anybody can see.
fn pinned_bytes(path: &Path) -> u64 {
    let users = FileUsers::of(path).unwrap();
    let me = std::process::id() as i32;
    let of_ring = |kind| match kind {
        UseKind::RingBuffers { len_bytes, .. } => len_bytes,
        _ => 0,
    };
    users.uses.iter().filter(|one| one.pid == me).map(|one| of_ring(one.kind)).sum()
}

#[test]
fn buffers_of_a_ring_are_seen_while_they_are_registered() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let pool = directory.path().join("pool");
    let options = PoolOptions::in_directory(&pool, 16 * support::MIB);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let data = pool.join("data");
    assert_eq!(pinned_bytes(&data), 0);
    let Some(ring) = support::ring(&client, 8) else { return };
    assert_eq!(pinned_bytes(&data), 16 * support::MIB);
    drop(ring);
    assert_eq!(pinned_bytes(&data), 0);
}
