//! The catalog against a naive map, full and failing file systems, and machines that stop.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use pgmap_os::PageSize;

use super::header::HEADER_BYTES;
use super::*;
use crate::metadata::UserMetadata;

const ROOM: u64 = 512 << 10;

fn geometry() -> StoredPool {
    StoredPool {
        size_bytes: 1 << 30,
        capacity_bytes: 1 << 30,
        span_bytes: 1 << 30,
        max_files: 1024,
        memory_type: MemoryType::Generic,
        head: Head::Nothing,
        page: Level::Pte,
        durability: Durability::Processes,
        smallest: Level::Pte,
    }
}

fn memory() -> Arc<MemoryFile> {
    Arc::new(MemoryFile::anonymous("catalog-test", 0, PageSize::Base).unwrap())
}

fn create(memory: &Arc<MemoryFile>) -> Catalog {
    Catalog::create(Arc::clone(memory), ROOM, PoolId(7), &geometry()).unwrap()
}

fn open(memory: &Arc<MemoryFile>, boot: BootId) -> Result<Catalog, Error> {
    Catalog::open_in(Arc::clone(memory), ROOM, boot)
}

fn reopen(memory: &Arc<MemoryFile>) -> Catalog {
    open(memory, BootId::current().unwrap()).unwrap()
}

fn name(number: u64) -> FileName {
    FileName::new(format!("file-{number}")).unwrap()
}

fn file(id: u64) -> StoredFile {
    let extents = vec![[id, 1, id]; 1 + (id % 40) as usize];
    let user = UserMetadata::new(vec![id as u8; (id % 257) as usize]).unwrap();
    let checksum = (!id.is_multiple_of(3)).then_some(id as u32);
    StoredFile {
        id,
        len_bytes: id * 3,
        largest_level: 0,
        rules: FileRules::default(),
        extents,
        metadata: FileMetadata { user, checksum },
        uid: id as u32,
    }
}

#[test]
fn the_catalog_is_what_a_naive_map_says_however_often_it_is_written_again() {
    let memory = memory();
    let mut catalog = create(&memory);
    let mut naive = BTreeMap::new();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for step in 1..6000_u64 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step);
        let one = name(random >> 40 & 0xff);
        if random >> 60 < 5 {
            naive.remove(&one);
            catalog.record(&[Change::Delete(&one)]).unwrap();
        } else {
            naive.insert(one.clone(), file(step));
            catalog.record(&[Change::Put(&one, file(step)), Change::StampLimit(step)]).unwrap();
        }
        if random >> 33 & 0x1ff == 0 {
            catalog = reopen(&memory);
            assert_eq!(catalog.files().unwrap(), naive, "step {step}");
            assert!(catalog.stamp_limit() + 64 > step);
        }
    }
    assert_eq!(catalog.log().contents().unwrap().files, naive);
    assert!(memory.len_bytes() <= ROOM, "its history is given up");
}

/// Story: what removing the files may take was added up for each change of a file, and never became
/// less, so that a catalog of one file was full after some thousand.
#[test]
fn quotas_and_water_marks_are_in_every_log_that_is_written_again() {
    let memory = memory();
    let catalog = create(&memory);
    let of = |number: u64| QuotaOf::Prefix(name(number));
    let (limits, marks) = (QuotaLimits::new().bytes(7), WaterMarks { low_bytes: 1, high_bytes: 2 });
    for number in 0..9 {
        catalog.record(&[Change::Quota(&of(number), limits)]).unwrap();
    }
    catalog.record(&[Change::Quota(&QuotaOf::Uid(3), limits.clients(4))]).unwrap();
    catalog.record(&[Change::QuotaGone(&of(8)), Change::Marks(marks)]).unwrap();
    let one = name(1);
    for id in 0..20_000 {
        catalog.record(&[Change::Put(&one, file(id))]).unwrap();
    }
    let catalog = reopen(&memory);
    assert!(memory.len_bytes() <= ROOM, "its history is given up");
    let mut expected: BTreeMap<QuotaOf, QuotaLimits> = (0..8).map(|it| (of(it), limits)).collect();
    expected.insert(QuotaOf::Uid(3), limits.clients(4));
    assert_eq!((catalog.quotas(), catalog.marks()), (&expected, marks));
}

#[test]
fn a_full_catalog_refuses_files_and_can_be_emptied() {
    let memory = memory();
    let catalog = create(&memory);
    let mut nr_files = 0;
    let error = loop {
        let one = name(nr_files);
        match catalog.record(&[Change::Put(&one, file(nr_files))]) {
            Ok(()) => nr_files += 1,
            Err(error) => break error,
        }
    };
    assert!(nr_files > 100, "{nr_files}");
    assert!(error.to_string().contains(&ROOM.to_string()), "{error}");
    for number in 0..nr_files {
        let one = name(number);
        catalog.record(&[Change::Delete(&one)]).unwrap();
        catalog.record(&[Change::Poisoned(number), Change::Healthy(number)]).unwrap();
    }
    assert!(reopen(&memory).files().unwrap().is_empty());
    for number in 0..nr_files / 2 {
        catalog.record(&[Change::Put(&name(number), file(number))]).unwrap();
    }
}

#[test]
fn an_error_of_the_file_system_spoils_the_change_that_met_it_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("catalog");
    let memory = Arc::new(MemoryFile::create_named(&path, 0).unwrap());
    let catalog = create(&memory);
    catalog.record(&[Change::Put(&name(1), file(1))]).unwrap();
    // A descriptor that cannot write stands for a device that fails.
    let broken = Arc::new(MemoryFile::open_named(&path, FileAccess::ReadOnly).unwrap());
    let whole = catalog.log().exchange_file(broken);
    for _ in 0..3 {
        let error = catalog.record(&[Change::Put(&name(2), file(2))]).unwrap_err();
        assert!(matches!(error, Error::Catalog { .. }), "{error}");
    }
    assert_eq!(reopen(&memory).files().unwrap().len(), 1);
    catalog.log().exchange_file(whole);
    catalog.record(&[Change::Put(&name(3), file(3))]).unwrap();
    let files = reopen(&memory).files().unwrap();
    assert_eq!(files.into_keys().collect::<Vec<_>>(), [name(1), name(3)]);
}

#[test]
fn what_a_machine_did_not_write_to_the_end_counts_as_not_done_after_its_restart_only() {
    let memory = memory();
    let catalog = create(&memory);
    catalog.record(&[Change::StampLimit(10)]).unwrap();
    for number in [1, 2] {
        catalog.record(&[Change::Put(&name(number), file(number))]).unwrap();
    }
    catalog.end().unwrap();
    catalog.begin().unwrap();
    catalog.record(&[Change::StampLimit(100), Change::Put(&name(50), file(50))]).unwrap();
    let before = catalog.log().header().end;
    catalog.record(&[Change::Put(&name(51), file(51))]).unwrap();
    // The header reached the disk, the record did not.
    let raw = File::from(memory.try_clone_fd().unwrap());
    raw.write_all_at(&[0; 64], before).unwrap();
    let error = open(&memory, BootId::current().unwrap()).unwrap_err();
    assert!(error.to_string().contains(&format!("byte {before}")), "{error}");
    let after = open(&memory, BootId(1)).unwrap();
    assert_eq!(after.unsynced(), [name(50)]);
    assert_eq!(after.files().unwrap().into_keys().collect::<Vec<_>>(), [name(1), name(2)]);
    // A header that was torn.
    after.begin().unwrap();
    after.record(&[Change::Put(&name(60), file(60))]).unwrap();
    let newest = Header::offset(after.log().header().sequence);
    raw.write_all_at(&[0xff; 32], newest + 16).unwrap();
    assert!(open(&memory, BootId(1)).is_err(), "a process cannot tear it");
    assert_eq!(open(&memory, BootId(2)).unwrap().files().unwrap().len(), 2);
}

#[test]
fn every_changed_bit_of_what_counts_is_an_error_or_known_to_be_said_twice() {
    let memory = memory();
    let catalog = create(&memory);
    for number in 1..4 {
        catalog.record(&[Change::Put(&name(number), file(number))]).unwrap();
    }
    catalog.end().unwrap();
    let end = catalog.log().header().end;
    let raw = File::from(memory.try_clone_fd().unwrap());
    let slots = [0, 1].map(|slot| Header::offset(slot)..Header::offset(slot) + 148);
    let mut nr_trials = 0;
    for at in slots.into_iter().flatten().chain(HEADER_BYTES..end) {
        let mut byte = [0];
        raw.read_exact_at(&mut byte, at).unwrap();
        for bit in 0..8 {
            raw.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
            assert!(open(&memory, BootId::current().unwrap()).is_err(), "bit {bit} of byte {at}");
            // A power failure may have torn one of the two headers that say that the owner stopped,
            // and the other says the same. Story: that was refused as damage.
            match open(&memory, BootId(1)) {
                Ok(catalog) if at < HEADER_BYTES => {
                    assert_eq!(catalog.files().unwrap().len(), 3, "bit {bit} of byte {at}");
                }
                Ok(_) => panic!("bit {bit} of byte {at} of the log"),
                Err(_) => {}
            }
            nr_trials += 2;
        }
        raw.write_all_at(&byte, at).unwrap();
    }
    println!("{nr_trials} trials");
    assert_eq!(reopen(&memory).files().unwrap().len(), 3);
}
