//! What the tests of rings have in common.

#![allow(dead_code, reason = "each test program uses some of it")]
#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

use std::fs::File;
use std::io::Write;

use pgmap::mm::gup::GupFlags;
use pgmap::mm::mm::Placed;
use pgmap::mm::prot::Prot;
use pgmap::space::AddressSpace;
use pgmap::{Client, FolioSize, Owner, Pool, PoolOptions};
use pgmap_uring::PoolRing;

pub const MIB: u64 = 1 << 20;
pub const BASE: u64 = 1 << 32;
const PAGE: u64 = 4096;

pub fn owner() -> Owner {
    Owner::start(Pool::create(&PoolOptions::anonymous(16 * MIB)).unwrap()).unwrap()
}

/// A file of `len_bytes`, mapped from [`BASE`] on up to the end of its last page.
pub fn space(client: &Client, name: &str, len_bytes: u64) -> AddressSpace {
    client.create(name, len_bytes, FolioSize::Pages4K).unwrap().commit().unwrap();
    let space = AddressSpace::for_device(client, BASE, 1 << 30).unwrap();
    let file = client.open(name).unwrap();
    let mapped_bytes = len_bytes.next_multiple_of(PAGE);
    space.map(&file, 0, mapped_bytes, Placed::At(BASE), Prot::READ_WRITE).unwrap();
    space
}

/// A ring, or `None` where the kernel offers none to this process.
pub fn ring<'s>(client: &Client, nr_entries: u32) -> Option<PoolRing<'s>> {
    match PoolRing::new(client, nr_entries) {
        Ok(ring) => Some(ring),
        Err(error) if [1, 12, 38].contains(&error.errno()) => {
            let thread = std::thread::current();
            println!("SKIPPED {}: {error}", thread.name().unwrap_or("a test of rings"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Pages that lie apart in the pool, so that each is a piece of its own.
pub fn scattered(client: &Client, nr_pages: u64) -> AddressSpace {
    client.create("scattered", nr_pages * PAGE, FolioSize::Pages4K).unwrap().commit().unwrap();
    let space = AddressSpace::for_device(client, BASE, 1 << 30).unwrap();
    let file = client.open("scattered").unwrap();
    for page in 0..nr_pages {
        let (offset, at) = ((nr_pages - 1 - page) * PAGE, Placed::At(BASE + page * PAGE));
        space.map(&file, offset, PAGE, at, Prot::READ_WRITE).unwrap();
    }
    let pinned = space.pin(BASE, nr_pages, GupFlags::NONE).unwrap();
    assert_eq!(pinned.segments().count() as u64, nr_pages);
    drop(pinned);
    space
}

pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|at| ((at * 31) ^ (at >> 9) ^ seed) as u8).collect()
}

/// A file outside the pool with these bytes.
pub fn holding(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}
