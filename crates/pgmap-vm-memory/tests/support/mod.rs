//! What the tests of this crate share: an owner, a client, files and where they are mapped.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

use pgmap::mm::mm::Placed;
use pgmap::mm::prot::Prot;
use pgmap::space::AddressSpace;
use pgmap::{Client, FolioSize, Owner, Pool, PoolOptions};

pub const PAGE: u64 = 4096;
pub const MIB: u64 = 1 << 20;

pub fn owner(len_bytes: u64) -> Owner {
    Owner::start(Pool::create(&PoolOptions::anonymous(len_bytes)).unwrap()).unwrap()
}

pub fn put(client: &Client, name: &str, folio: FolioSize, bytes: &[u8]) {
    let mut writer = client.create(name, bytes.len() as u64, folio).unwrap();
    writer.write_all_at(0, bytes).unwrap();
    writer.commit().unwrap();
}

/// A file of one byte, over and over.
pub fn put_filled(client: &Client, name: &str, folio: FolioSize, len_bytes: u64, byte: u8) {
    put(client, name, folio, &vec![byte; len_bytes as usize]);
}

pub fn map(space: &AddressSpace, name: &str, offset: u64, len_bytes: u64, at: u64) {
    let file = space.client().open(name).unwrap();
    space.map(&file, offset, len_bytes, Placed::Over(at), Prot::READ_WRITE).unwrap();
}

pub fn space(client: &Client) -> AddressSpace {
    AddressSpace::for_device(client, 0, 1 << 32).unwrap()
}

/// Files a and b by turns, a page of each after the other from `at` on: no two neighbours in the guest
/// are neighbours in the pool.
pub fn map_by_turns(space: &AddressSpace, [a, b]: [&str; 2], nr_pages: u64, at: u64) {
    for page in 0..nr_pages {
        let name = if page % 2 == 0 { a } else { b };
        map(space, name, page / 2 * PAGE, PAGE, at + page * PAGE);
    }
}

/// Numbers that a seed repeats (SplitMix64).
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another one each time.
    pub fn of_now() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Self(now.as_nanos() as u64)
    }

    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// From 0 up to but not including `end`; 0 for none.
    pub const fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.next() % end }
    }

    pub const fn one_in(&mut self, nr: u64) -> bool {
        self.below(nr) == 0
    }

    pub fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        &from[self.below(from.len() as u64) as usize]
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// Waits until nothing is being taken back any more.
pub fn wait_for_drains(owner: &Owner) {
    let started = std::time::Instant::now();
    while owner.info().draining_bytes > 0 {
        assert!(started.elapsed().as_secs() < 20, "somebody holds frames still");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
