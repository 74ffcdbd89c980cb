//! Memory of a pool that was replaced after a ring had registered it.

use std::time::Duration;

use crate::support::{self, BASE, MIB, holding, pattern, ring};
use pgmap::mm::level::Level;
use pgmap::mm::mm::Placed;
use pgmap::mm::pagemap::{DeviceRange, OpsPresent, PagemapSpec};
use pgmap::mm::prot::Prot;
use pgmap::space::AddressSpace;
use pgmap::{Client, FolioSize, MemoryType, Owner, Pool, PoolOptions};
use pgmap_uring::PoolRing;

const GIB: u64 = 1 << 30;

fn map(space: &AddressSpace, client: &Client, name: &str, len_bytes: u64) {
    let file = client.open(name).unwrap();
    space.map(&file, 0, len_bytes, Placed::At(BASE), Prot::READ_WRITE).unwrap();
}

/// Reads a file into the mapping by the ring: pages of which the processor sees something else.
fn wrong_pages<'s>(ring: &mut PoolRing<'s>, space: &'s AddressSpace, len_bytes: u64) -> usize {
    let bytes = pattern(len_bytes as usize, 5);
    let from = holding(&bytes);
    ring.read(space, BASE, len_bytes, &from, 0).unwrap();
    let done = ring.wait().unwrap().unwrap();
    assert_eq!((done.moved_bytes, done.errno), (len_bytes, None));
    let mut inside = vec![0; len_bytes as usize];
    space.read_at(BASE, &mut inside).unwrap();
    inside.chunks(4096).zip(bytes.chunks(4096)).filter(|(a, b)| a != b).count()
}

/// The transfer completed without an error, into the page that had failed.
#[test]
fn a_ring_reaches_frames_that_were_repaired_while_nobody_had_them() {
    let owner = support::owner();
    let client = owner.client().unwrap();
    let space = AddressSpace::for_device(&client, BASE, 1 << 30).unwrap();
    let Some(mut ring) = ring(&client, 8) else { return };
    client.memory_failure(7).unwrap();
    client.repair_free().unwrap();
    client.create("block", 16 * MIB, FolioSize::Pages4K).unwrap().commit().unwrap();
    map(&space, &client, "block", 16 * MIB);
    assert_eq!(wrong_pages(&mut ring, &space, 16 * MIB), 0);
}

#[test]
fn a_ring_reaches_a_pagemap_that_was_removed_and_added_again() {
    // Frames of devices begin at the next GiB.
    let options = PoolOptions::anonymous(16 * MIB).capacity(GIB + 4 * MIB);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let spec = PagemapSpec {
        memory_type: MemoryType::Generic,
        ranges: vec![DeviceRange { start_bytes: GIB, len_bytes: 4 * MIB }],
        owner: None,
        largest_level: Level::Pmd.number(),
        ops: OpsPresent::NONE,
    };
    let space = AddressSpace::for_device(&client, BASE, 1 << 30).unwrap();
    let id = owner.add_pagemap("dax0.0", &spec, None).unwrap();
    let Some(mut ring) = ring(&client, 8) else { return };
    owner.remove_pagemap(id, Duration::from_secs(60)).unwrap();
    owner.add_pagemap("dax0.1", &spec, None).unwrap();
    map(&space, &client, "dax0.1", 4 * MIB);
    assert_eq!(wrong_pages(&mut ring, &space, 4 * MIB), 0);
}
