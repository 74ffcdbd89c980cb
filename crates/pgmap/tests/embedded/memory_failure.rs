//! Memory failure: the smallest folio goes, everything around it lives, everybody concerned is
//! notified.

use std::time::Duration;

use crate::support;
use pgmap::{Client, Error, Event, FolioSize, Owner, Pool, PoolOptions};

const EHWPOISON: i32 = 133;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 4096) as u8 ^ (i % 251) as u8).collect()
}

fn put(client: &Client, name: &str, bytes: &[u8]) {
    let mut writer = client.create(name, bytes.len() as u64, FolioSize::BestFit).unwrap();
    writer.write_all_at(0, bytes).unwrap();
    writer.commit().unwrap();
}

/// The frame behind a byte of a file.
fn frame_of(client: &Client, name: &str, offset: u64) -> u64 {
    let file = client.open(name).unwrap();
    let pin = file.pin(offset..offset + 1).unwrap();
    pin.segments().next().unwrap().pool_offset / 4096
}

#[test]
fn one_page_fails_and_the_rest_of_its_folio_lives() {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(16 << 20)).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let mut bytes = pattern(4 << 20);
    put(&client, "a", &bytes);
    let file = client.open("a").unwrap();
    let bystander = file.pin(0..4096).unwrap();
    let holder = file.pin(8192..12288).unwrap();
    let pfn = frame_of(&client, "a", 8192);
    client.memory_failure(pfn).unwrap();
    let told = client.next_event(std::time::Duration::from_secs(5)).unwrap();
    assert_eq!(told, Some(Event::MemoryFailure { file: Some("a".into()), pfn }));
    assert_eq!(client.next_event(std::time::Duration::ZERO).unwrap(), None, "told once");
    assert!(holder.is_reclaim_requested());
    assert_eq!(bystander.to_vec().unwrap(), bytes[..4096]);

    let error = file.pin(8192..8193).unwrap_err();
    assert_eq!(error.errno(), EHWPOISON, "{error}");
    assert_eq!(file.pin_all().unwrap_err().errno(), EHWPOISON);
    for (from, to) in [(0, 8192), (12_288, 4 << 20)] {
        let pin = file.pin(from as u64..(from as u64) + ((to - from) as u64)).unwrap();
        assert_eq!(pin.to_vec().unwrap(), bytes[from..to]);
    }
    assert_eq!(client.memory_failure(pfn).unwrap_err().errno(), EHWPOISON, "it is known");
    assert_eq!(owner.info().poisoned_bytes, 4096);

    let fresh = [0xee; 4096];
    let error = client.clear_poison("a", 8192, &fresh).unwrap_err();
    assert_eq!(error.errno(), 16, "still held: {error}");
    drop(holder);
    client.clear_poison("a", 8192, &fresh).unwrap();
    bytes[8192..12_288].copy_from_slice(&fresh);
    assert_eq!(client.get("a").unwrap().to_vec().unwrap(), bytes);
    assert_eq!(owner.info().poisoned_bytes, 0);
    assert_eq!(client.detach_epoch(), 1);
    drop(bystander);
    client.unlink("a").unwrap();
    assert_eq!(owner.info().free_bytes, 16 << 20);
}

/// Without room in the index a page cannot be cut out of an extent: its file would be listed with
/// more extents than it can have. All of the extent is withheld then, until the file goes.
#[test]
fn a_page_fails_in_a_file_that_can_have_no_more_extents() {
    let options = PoolOptions::anonymous(1 << 20).max_files(2);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let client = owner.client().unwrap();
    // Seven extents, of which holes part the first ones; the last has pages enough to be cut.
    let bytes = pattern(16 * 4096);
    put(&client, "a", &bytes);
    for page in [1, 3, 5] {
        client.punch("a", page * 4096..(page + 1) * 4096, Duration::from_secs(1)).unwrap();
    }
    // Nine, which is more than the first slot of a file in the index has room for.
    put(&client, "b", &bytes);
    for page in [1, 3, 5, 7] {
        client.punch("b", page * 4096..(page + 1) * 4096, Duration::from_secs(1)).unwrap();
    }
    let pfn = frame_of(&client, "a", 10 * 4096);
    client.memory_failure(pfn).unwrap();
    let file = client.open("a").unwrap();
    for page in [0, 2, 4] {
        let pin = file.pin(page * 4096..(page + 1) * 4096).unwrap();
        assert_eq!(pin.to_vec().unwrap(), bytes[page as usize * 4096..][..4096]);
    }
    for page in [8, 10] {
        let error = file.pin(page * 4096..page * 4096 + 1).unwrap_err();
        assert_eq!(error.errno(), EHWPOISON, "all of the extent is withheld: {error}");
    }
    assert!(client.create("c", 1, FolioSize::Pages4K).unwrap().commit().is_err());
    assert_eq!(client.list().unwrap().len(), 2);
    client.unlink("a").unwrap();
    client.unlink("b").unwrap();
    assert_eq!(owner.info().free_bytes, (1 << 20) - 4096, "all but the one that failed");
}

#[test]
fn failed_frames_of_a_file_that_goes_stay_out_of_use_until_repaired() {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(1 << 20)).unwrap()).unwrap();
    let client = owner.client().unwrap();
    put(&client, "a", &pattern(40_960));
    client.memory_failure(frame_of(&client, "a", 4096)).unwrap();
    client.unlink("a").unwrap();
    assert_eq!(owner.info().free_bytes, (1 << 20) - 4096);
    client.memory_failure(255).unwrap();
    assert_eq!(owner.info().free_bytes, (1 << 20) - 8192);
    let error = client.create("all", 1 << 20, FolioSize::Pages4K).unwrap_err();
    assert_eq!(error.errno(), 28, "{error}");
    client.repair_free().unwrap();
    assert_eq!(owner.info().free_bytes, 1 << 20);
    assert!(client.memory_failure(256).is_err(), "outside the pool");
}

#[test]
fn a_draft_whose_memory_failed_cannot_be_committed() {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(1 << 20)).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let mut writer = client.create("a", 20_000, FolioSize::BestFit).unwrap();
    let pfn = writer.segments()[0].2 / 4096;
    client.memory_failure(pfn).unwrap();
    assert_eq!(writer.commit().unwrap_err().errno(), EHWPOISON);
    assert!(matches!(client.open("a"), Err(Error::Refused(_))));
    assert_eq!(owner.info().free_bytes, (1 << 20) - 4096);
}

#[test]
fn poison_survives_a_restart_of_the_owner() {
    let directory = support::roomy();
    let path = directory.path().join("pool");
    let bytes = pattern(3 << 20);
    {
        let pool = Pool::create(&PoolOptions::in_directory(&path, 16 << 20)).unwrap();
        let owner = Owner::start(pool).unwrap();
        let client = owner.client().unwrap();
        put(&client, "a", &bytes);
        client.memory_failure(frame_of(&client, "a", 0)).unwrap();
        client.memory_failure(4095).unwrap();
    }
    let owner = Owner::start(Pool::open(&path).unwrap()).unwrap();
    let client = owner.client().unwrap();
    assert_eq!(owner.info().poisoned_bytes, 8192);
    assert_eq!(owner.info().free_bytes, (16 << 20) - (3 << 20) - 4096);
    let file = client.open("a").unwrap();
    assert_eq!(file.pin(0..1).unwrap_err().errno(), EHWPOISON);
    assert_eq!(file.pin(4096..8192).unwrap().to_vec().unwrap(), bytes[4096..8192]);
    client.clear_poison("a", 0, &bytes[..4096]).unwrap();
    client.repair_free().unwrap();
    assert_eq!(client.get("a").unwrap().to_vec().unwrap(), bytes);
    client.unlink("a").unwrap();
    assert_eq!(owner.info().free_bytes, 16 << 20);
}

/// The file behind a pool in a directory is cut short under its readers, as a failing device or a
/// careless operator would do it: copies say so, and nobody is killed.
#[test]
fn copies_of_memory_that_went_away_are_errors_and_not_signals() {
    let directory = support::roomy();
    let path = directory.path().join("pool");
    let pool = Pool::create(&PoolOptions::in_directory(&path, 16 << 20)).unwrap();
    let owner = Owner::start(pool).unwrap();
    let client = owner.client().unwrap();
    put(&client, "a", &pattern(3 << 20));
    let pin = client.get("a").unwrap();
    let mut writer = client.create("b", 8192, FolioSize::BestFit).unwrap();
    std::fs::File::options().write(true).open(path.join("data")).unwrap().set_len(4096).unwrap();
    let mut bytes = vec![0; 8192];
    let error = pin.read_at(1 << 20, &mut bytes).unwrap_err();
    assert_eq!(error.errno(), 5, "{error}");
    assert!(writer.write_all_at(0, &bytes).is_err());
    pin.read_at(0, &mut bytes[..4096]).unwrap();
    let reporter = client.watch_memory().unwrap();
    assert_eq!(reporter.report().unwrap(), 0, "a short file is no failed memory");
}
