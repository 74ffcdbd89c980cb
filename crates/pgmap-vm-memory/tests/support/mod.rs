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

/// Files a and b by turns, a page of each after the other from `at` on: no two neighbours in the
/// guest are neighbours in the pool.
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

/// How a range of guest memory may lie in a pool.
const LAYOUTS: [&str; 4] =
    ["one file", "two files", "single pages by turns", "files that end and begin again"];

/// Calls `check` with fresh guest memory from `at` on, in every layout.
pub fn in_every_layout(
    at: u64,
    len_bytes: u64,
    check: impl Fn(&pgmap_vm_memory::GuestSnapshot<'_>, &AddressSpace),
) {
    use vm_memory::GuestAddressSpace;
    let nr_pages = len_bytes / PAGE;
    for layout in LAYOUTS {
        println!("{layout}");
        let owner = owner(16 * MIB);
        let client = owner.client().unwrap();
        let space = space(&client);
        match layout {
            "one file" => {
                put_filled(&client, "a", FolioSize::BestFit, len_bytes, 0);
                map(&space, "a", 0, len_bytes, at);
            }
            "two files" => {
                let half = nr_pages / 2 * PAGE;
                put_filled(&client, "a", FolioSize::Pages4K, half, 0);
                put_filled(&client, "x", FolioSize::Pages4K, PAGE, 0xee);
                put_filled(&client, "b", FolioSize::BestFit, len_bytes - half, 0);
                map(&space, "b", 0, len_bytes - half, at);
                map(&space, "a", 0, half, at + len_bytes - half);
            }
            "single pages by turns" => {
                for name in ["a", "b"] {
                    put_filled(&client, name, FolioSize::Pages4K, nr_pages.div_ceil(2) * PAGE, 0);
                }
                map_by_turns(&space, ["a", "b"], nr_pages, at);
            }
            _ => {
                for page in 0..nr_pages {
                    let name = format!("p{page}");
                    put_filled(&client, &name, FolioSize::Pages4K, PAGE, 0);
                    put_filled(&client, &format!("x{page}"), FolioSize::Pages4K, PAGE, 0xee);
                    map(&space, &name, 0, PAGE, at + page * PAGE);
                }
            }
        }
        check(&pgmap_vm_memory::GuestSpace::new(&space).memory(), &space);
    }
}
