//! altmap: pools whose descriptors and catalog lie at the head of the data that they describe, for
//! all folio sizes or only for the larger ones.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::support::{self, Random, block};
use pgmap::mm::level::Level;
use pgmap::{Client, Error, FolioSize, Owner, Pool, PoolOptions, Refusal, Shape};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const ENXIO: i32 = 6;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;
const EHWPOISON: i32 = 133;

fn options(path: &Path, size_bytes: u64, smallest: Level) -> PoolOptions {
    PoolOptions::in_directory(path, size_bytes).metadata_on_device().smallest_folio(smallest)
}

fn create(path: &Path, size_bytes: u64, smallest: Level) -> Owner {
    Owner::start(Pool::create(&options(path, size_bytes, smallest)).unwrap()).unwrap()
}

fn reopen(path: &Path) -> Owner {
    Owner::start(Pool::open(path).unwrap()).unwrap()
}

fn frame_of(client: &Client, name: &str, offset: u64) -> u64 {
    let file = client.open(name).unwrap();
    file.pin(offset..offset + 1).unwrap().segments().next().unwrap().pool_offset / 4096
}

#[test]
fn a_head_is_as_large_as_its_smallest_folio_needs() {
    let Some(directory) = support::roomy_for(4 * GIB) else {
        println!(
            "skipped: a_head_is_as_large_as_its_smallest_folio_needs: neither /dev/shm nor $TMPDIR \
             could hold 4 GiB"
        );
        return;
    };
    let head_bytes = |name: &str, smallest| {
        let owner = create(&directory.path().join(name), 4 * GIB, smallest);
        4 * GIB - owner.info().free_bytes
    };
    // One superblock page and 128 MiB of catalog, up to the next 2 MiB.
    let before = 130 * MIB;
    // 512 words of 1 GiB, 4 pages of 2 MiB, and 2 MiB per GiB of 4 KiB descriptors.
    assert_eq!(head_bytes("4k", Level::Pte), before + 10 * MIB);
    assert_eq!(head_bytes("2m", Level::Pmd), before + 2 * MIB);
    assert_eq!(head_bytes("1g", Level::Pud), GIB, "the next folio starts there");
}

#[test]
fn what_has_no_room_to_be_described_is_refused_by_name() {
    let directory = support::roomy();
    let path = directory.path().join("pool");
    for (bad, why) in [
        (options(&path, 64 * MIB + 4096, Level::Pmd), "whole 2M folios"),
        (PoolOptions::anonymous(64 * MIB).smallest_folio(Level::Pmd), "goes with data on a device"),
    ] {
        let error = Pool::create(&bad).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    let mut owner = create(&path, 64 * MIB, Level::Pmd);
    // What the pool was made for is on record.
    for is_reopened in [false, true] {
        if is_reopened {
            drop(owner);
            owner = reopen(&path);
        }
        let client = owner.client().unwrap();
        let error = client.create("small", 4096, FolioSize::Pages4K).map(drop).unwrap_err();
        assert_eq!(error.errno(), EINVAL);
        assert!(error.to_string().contains("folios of 2M and larger"), "{error}");
        if !is_reopened {
            support::put(&client, "a", &block::make(1, (5 * MIB) as usize)).unwrap();
        }
        let info = client.stat("a").unwrap();
        assert_eq!((info.allocated_bytes, info.nr_folios), (6 * MIB, [0, 3, 0]));
        let error = client.reshape("a", 0, Shape::Split { to: 0 }).unwrap_err();
        assert!(error.to_string().contains("folios of 2M and larger"), "{error}");
        for (offset, len_bytes) in [(0, 4096), (4096, 2 * MIB), (2 * MIB, 4096)] {
            let error = client.punch("a", offset..offset + len_bytes, Duration::ZERO).unwrap_err();
            assert_eq!(error.errno(), EINVAL, "{error}");
        }
        assert_eq!(block::check(&client.get("a").unwrap().to_vec().unwrap()), Ok(1));
        let parts = client.open("a").unwrap();
        match parts.pin_longterm(4096..12288) {
            Ok(pin) => drop(pin),
            // Where the directory is on a DAX file system only leases are long.
            Err(error) => assert_eq!(error.errno(), EOPNOTSUPP, "{error}"),
        }
    }
}

#[test]
fn a_failure_takes_the_smallest_folio_that_can_be_described() {
    let directory = support::roomy();
    let path = directory.path().join("pool");
    let mut owner = create(&path, 64 * MIB, Level::Pmd);
    let free = owner.info().free_bytes;
    let client = owner.client().unwrap();
    let bytes = block::make(3, (6 * MIB) as usize);
    support::put(&client, "a", &bytes).unwrap();
    assert_eq!(client.memory_failure(0).unwrap_err().errno(), ENXIO, "the head is nobody's");
    client.memory_failure(frame_of(&client, "a", 3 * MIB)).unwrap();
    drop(client);
    for is_reopened in [false, true] {
        if is_reopened {
            drop(owner);
            owner = reopen(&path);
        }
        let client = owner.client().unwrap();
        assert_eq!(owner.info().poisoned_bytes, 2 * MIB);
        let file = client.open("a").unwrap();
        for at in [2 * MIB, 4 * MIB - 4096] {
            assert_eq!(file.pin(at..at + 4096).unwrap_err().errno(), EHWPOISON);
        }
        for (from, to) in [(0, 2 * MIB), (4 * MIB, 6 * MIB)] {
            let pin = file.pin(from..to).unwrap();
            assert_eq!(pin.to_vec().unwrap(), bytes[from as usize..to as usize]);
        }
        let error = client.clear_poison("a", 2 * MIB, &[0; 4096]).unwrap_err();
        assert_eq!(error.errno(), EOPNOTSUPP, "{error}");
    }
    let client = owner.client().unwrap();
    client.unlink("a").unwrap();
    assert_eq!(owner.info().free_bytes, free - 2 * MIB);
    client.repair_free().unwrap();
    assert_eq!((owner.info().free_bytes, owner.info().poisoned_bytes), (free, 0));
    let all = client.create("b", free, FolioSize::Pages2M).unwrap();
    drop(all);
}

/// Random creates, cuts and restarts against a copy of what the files must hold.
#[test]
fn files_of_large_folios_on_the_device_are_what_a_naive_copy_says() {
    for smallest in [Level::Pte, Level::Pmd] {
        let directory = support::roomy();
        let path = directory.path().join("pool");
        let mut owner = create(&path, 64 * MIB, smallest);
        let free = owner.info().free_bytes;
        let mut random = Random(support::seed());
        let mut naive: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for step in 0..300 {
            let client = owner.client().unwrap();
            let name = format!("f{}", random.below(6));
            match (random.below(6), naive.get_mut(&name)) {
                (0 | 1, None) => {
                    let bytes = block::make(step + 1, 1 + random.below(9 * MIB) as usize);
                    match support::put(&client, &name, &bytes) {
                        Ok(()) => drop(naive.insert(name, bytes)),
                        Err(Error::Refused(Refusal::NoSpace { .. })) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                (2, Some(bytes)) => {
                    let len = 1 + random.below(bytes.len() as u64);
                    client.truncate(&name, len, Duration::ZERO).unwrap();
                    bytes.truncate(len as usize);
                }
                (3, Some(bytes)) => {
                    let unit = smallest.size_bytes();
                    let from = random.below(bytes.len() as u64) / unit * unit;
                    let len = (unit * (1 + random.below(4))).min(bytes.len() as u64 - from);
                    client.punch(&name, from..from + len, Duration::ZERO).unwrap();
                    bytes[from as usize..(from + len) as usize].fill(0);
                }
                (4, Some(_)) => {
                    client.unlink(&name).unwrap();
                    naive.remove(&name);
                }
                (5, _) if random.below(4) == 0 => {
                    drop(client);
                    drop(owner);
                    owner = reopen(&path);
                }
                (_, bytes) => {
                    let found = client.get(&name).map(|pin| pin.to_vec().unwrap()).ok();
                    assert!(found.as_ref() == bytes.as_deref(), "{name} at step {step}");
                }
            }
        }
        let client = owner.client().unwrap();
        let info = client.pool_stat().unwrap();
        let live: u64 = client.list().unwrap().iter().map(|file| file.allocated_bytes).sum();
        assert_eq!((info.live_bytes, info.free_bytes), (live, free - live));
        for (name, bytes) in &naive {
            assert!(client.get(name).unwrap().to_vec().unwrap() == *bytes, "{name}");
            client.unlink(name).unwrap();
        }
        assert_eq!(owner.info().free_bytes, free);
    }
}
