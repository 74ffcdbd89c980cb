//! Files through the embedded owner: what a caller of the library may rely on.

use std::time::Duration;

use crate::support;
use pgmap::{CreateSpec, Error, FileName, FolioSize, Owner, Pool, PoolOptions, Refusal, Replace};

fn owner(size_bytes: u64) -> Owner {
    Owner::start(Pool::create(&PoolOptions::anonymous(size_bytes)).unwrap()).unwrap()
}

fn put(client: &pgmap::Client, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let mut writer = client.create(name, bytes.len() as u64, FolioSize::BestFit)?;
    writer.write_all_at(0, bytes)?;
    writer.commit()
}

#[test]
fn an_uncommitted_file_cannot_be_opened_and_leaves_nothing() {
    let owner = owner(8 << 20);
    let client = owner.client().unwrap();
    let free = owner.info().free_bytes;
    let mut writer = client.create("a", 5000, FolioSize::BestFit).unwrap();
    writer.write_all_at(0, &[1; 5000]).unwrap();
    assert!(matches!(client.open("a"), Err(Error::Refused(Refusal::NotFound { .. }))));
    assert_eq!(owner.info().free_bytes, free - 8192);
    drop(writer);
    assert_eq!(owner.info().free_bytes, free);
}

#[test]
fn unlinked_frames_are_free_when_the_last_pin_goes() {
    let owner = owner(8 << 20);
    let (client, reader) = (owner.client().unwrap(), owner.client().unwrap());
    let free = owner.info().free_bytes;
    put(&client, "a", &[7; 3 << 20]).unwrap();
    let pin = reader.get("a").unwrap();
    client.unlink("a").unwrap();
    assert!(reader.open("a").is_err());
    assert!(pin.is_reclaim_requested());
    let held = owner.info();
    assert_eq!(held.draining_bytes, 3 << 20);
    assert!(pin.to_vec().unwrap().iter().all(|&byte| byte == 7));
    std::thread::scope(|scope| scope.spawn(|| drop(pin)).join().unwrap());
    for _ in 0..1000 {
        if owner.info().free_bytes == free {
            return;
        }
        std::thread::yield_now();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("frames did not come back: {:?}", owner.info());
}

#[test]
fn truncate_names_the_holder_and_leaves_the_file_as_it_was() {
    let owner = owner(16 << 20);
    let client = owner.client().unwrap();
    let bytes: Vec<u8> = (0..4u32 << 20).map(|i| (i / 4096) as u8).collect();
    put(&client, "a", &bytes).unwrap();
    let file = client.open("a").unwrap();
    let pin = file.pin(3 << 20..(3 << 20) + 4096).unwrap();
    let error = client.truncate("a", 100_000, Duration::from_millis(30)).unwrap_err();
    let Error::Refused(Refusal::Held { holders, waited_ms, .. }) = &error else {
        panic!("{error}")
    };
    assert_eq!(holders[0].pid, std::process::id() as i32);
    assert!(*waited_ms >= 30);
    assert_eq!(file.pin_all().unwrap().to_vec().unwrap(), bytes, "as before");
    drop(pin);
    client.truncate("a", 100_000, Duration::from_secs(1)).unwrap();
    assert_eq!(client.get("a").unwrap().to_vec().unwrap(), bytes[..100_000]);
    assert_eq!(file.pin_all().unwrap().len_bytes(), 100_000, "the handle sees the new length");
    assert!(matches!(file.pin(3 << 20..(3 << 20) + 1), Err(Error::OutOfRange { .. })));
}

#[test]
fn a_handle_from_before_a_reuse_is_refused() {
    let owner = owner(1 << 20);
    let client = owner.client().unwrap();
    put(&client, "a", &[1; 4096]).unwrap();
    let old = client.open("a").unwrap();
    client.unlink("a").unwrap();
    put(&client, "a", &[2; 4096]).unwrap();
    assert!(matches!(old.pin_all(), Err(Error::Refused(Refusal::Stale { .. }))));
    assert_eq!(client.get("a").unwrap().to_vec().unwrap(), [2; 4096]);
}

#[test]
fn a_handle_follows_a_rename_and_a_replaced_file_is_stale() {
    let owner = owner(1 << 20);
    let client = owner.client().unwrap();
    put(&client, "a", &[1; 100]).unwrap();
    put(&client, "b", &[2; 100]).unwrap();
    let (a, b) = (client.open("a").unwrap(), client.open("b").unwrap());
    assert!(matches!(
        client.rename("a", "b", Replace::No),
        Err(Error::Refused(Refusal::Exists { .. }))
    ));
    client.rename("a", "b", Replace::Yes).unwrap();
    assert_eq!(a.pin_all().unwrap().to_vec().unwrap(), [1; 100]);
    client.unlink("b").unwrap();
    assert!(a.pin_all().is_err());
    assert!(matches!(b.pin_all(), Err(Error::Refused(Refusal::Stale { .. }))));
}

#[test]
fn unwritten_bytes_read_as_zero_and_not_as_an_earlier_file() {
    let owner = owner(1 << 20);
    let client = owner.client().unwrap();
    put(&client, "a", &[9; 20_000]).unwrap();
    client.unlink("a").unwrap();
    let mut writer = client.create("b", 20_000, FolioSize::BestFit).unwrap();
    writer.write_all_at(5_000, &[1; 10]).unwrap();
    writer.commit().unwrap();
    let mut expected = vec![0; 20_000];
    expected[5_000..5_010].fill(1);
    assert_eq!(client.get("b").unwrap().to_vec().unwrap(), expected);
}

#[test]
fn batches_answer_for_each_item() {
    let owner = owner(8 << 20);
    let client = owner.client().unwrap();
    let name = |i: usize| FileName::new(format!("f{i}")).unwrap();
    let spec = |i: usize| CreateSpec::new(name(i), 4096, FolioSize::Pages4K);
    let writers = client.create_batch((0..64).map(spec).collect()).unwrap();
    let writers: Vec<_> = writers.into_iter().map(Result::unwrap).collect();
    assert!(client.commit_batch(writers).unwrap().into_iter().all(|result| result.is_ok()));
    assert_eq!(client.list().unwrap().len(), 64);
    let opened = client.open_batch(&["f0", "nope", "f63"]);
    assert_eq!(opened.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    let names = ["f0", "f0", "f1"].map(|name| FileName::new(name).unwrap()).to_vec();
    let gone = client.unlink_batch(&names).unwrap();
    assert_eq!(gone.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    let many = client.create_batch((0..1000).map(spec).collect()).unwrap();
    assert_eq!(many.iter().filter(|writer| writer.is_err()).count(), 62, "they have names");
}

#[test]
fn impossible_lengths_are_refused_and_the_owner_lives_on() {
    let owner = owner(1 << 20);
    let client = owner.client().unwrap();
    for len in [(1 << 20) + 1, u64::MAX] {
        for size in [FolioSize::BestFit, FolioSize::Pages4K, FolioSize::Pages1G] {
            let error = client.create("x", len, size).unwrap_err();
            assert_eq!(error.errno(), 22, "{len}: {error}");
        }
    }
    assert_eq!(client.create("x", 1, FolioSize::Pages2M).unwrap_err().errno(), 22);
    put(&client, "one", &[1]).unwrap();
    let full = client.create("y", 1 << 20, FolioSize::BestFit).unwrap_err();
    assert!(matches!(full, Error::Refused(Refusal::NoSpace { .. })), "{full}");
}

#[test]
fn a_pool_in_a_directory_is_found_again() {
    let directory = support::roomy();
    let path = directory.path().join("pool");
    let bytes = vec![5; 3 << 20];
    {
        let owner =
            Owner::start(Pool::create(&PoolOptions::in_directory(&path, 16 << 20)).unwrap())
                .unwrap();
        let client = owner.client().unwrap();
        put(&client, "kept", &bytes).unwrap();
        put(&client, "gone", &bytes).unwrap();
        client.truncate("kept", 2_500_000, Duration::ZERO).unwrap();
        client.unlink("gone").unwrap();
        let draft = client.create("draft", 4096, FolioSize::BestFit).unwrap();
        std::mem::forget(draft);
    }
    let owner = Owner::start(Pool::open(&path).unwrap()).unwrap();
    let client = owner.client().unwrap();
    assert_eq!(client.get("kept").unwrap().to_vec().unwrap(), bytes[..2_500_000]);
    assert_eq!(client.list().unwrap().len(), 1);
    let info = owner.info();
    assert_eq!(info.free_bytes + info.live_bytes, 16 << 20, "{info:?}");
}

#[test]
fn a_second_owner_is_refused() {
    let directory = support::roomy();
    let options = PoolOptions::in_directory(directory.path(), 1 << 20);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let error = Pool::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("owner"), "{error}");
    drop(owner);
    Pool::open(directory.path()).unwrap();
}

#[test]
fn a_pool_larger_than_its_file_system_is_an_error_at_creation() {
    let directory = support::roomy();
    let error = Pool::create(&PoolOptions::in_directory(directory.path(), 1 << 42)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("4398046511104"), "{text}");
}

#[test]
fn another_client_connects_over_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("pgmap.sock");
    let owner = owner(8 << 20);
    owner.serve(&socket).unwrap();
    let near = owner.client().unwrap();
    let far = pgmap::Client::connect(&socket).unwrap();
    put(&far, "a", b"from afar").unwrap();
    assert_eq!(near.get("a").unwrap().to_vec().unwrap(), b"from afar");
    let pin = far.get("a").unwrap();
    assert!(matches!(
        near.truncate("a", 1, Duration::ZERO),
        Ok(()) // one folio: nothing goes
    ));
    near.unlink("a").unwrap();
    let holders = near.who_all().unwrap().holders;
    assert_eq!(holders.len(), 1, "{holders:?}");
    drop(pin);
}

#[test]
fn a_holder_is_notified_that_its_frames_are_to_be_reclaimed() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("pgmap.sock");
    let owner = owner(8 << 20);
    owner.serve(&socket).unwrap();
    let near = owner.client().unwrap();
    let far = pgmap::Client::connect(&socket).unwrap();
    let wait = std::time::Duration::from_secs(5);
    for holder in [&near, &far] {
        put(&near, "a", &[1; 10_000]).unwrap();
        let pin = holder.get("a").unwrap();
        near.unlink("a").unwrap();
        let event = holder.next_event(wait).unwrap();
        let Some(pgmap::Event::ReclaimRequested { nr_pages, .. }) = event else {
            panic!("{event:?}")
        };
        assert_eq!(nr_pages, 3);
        drop(pin);
        assert_eq!(holder.next_event(std::time::Duration::ZERO).unwrap(), None);
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 4096) as u8 ^ (i % 251) as u8).collect()
}

#[test]
fn a_hole_beside_a_pinned_page_of_the_same_folio_does_not_wait() {
    let owner = owner(16 << 20);
    let client = owner.client().unwrap();
    let mut bytes = pattern(4 << 20);
    let mut writer = client.create("a", 4 << 20, FolioSize::Pages2M).unwrap();
    writer.write_all_at(0, &bytes).unwrap();
    writer.commit().unwrap();
    let free = owner.info().free_bytes;
    let file = client.open("a").unwrap();
    let pin = file.pin(8192..12288).unwrap();
    client.punch("a", 4096..8192, Duration::ZERO).unwrap();
    bytes[4096..8192].fill(0);
    assert_eq!(owner.info().free_bytes, free + 4096);
    assert_eq!(client.get("a").unwrap().to_vec().unwrap(), bytes);
    assert_eq!(file.pin_all().unwrap().to_vec().unwrap(), bytes, "an old handle too");
    assert_eq!(pin.to_vec().unwrap(), bytes[8192..12_288]);
    let error = client.punch("a", 8192..12288, Duration::from_millis(10)).unwrap_err();
    assert_eq!(error.errno(), 16, "{error}");
    assert_eq!(client.get("a").unwrap().to_vec().unwrap(), bytes, "as before");
    assert!(client.punch("a", 1..4097, Duration::ZERO).is_err());
    client.truncate("a", 5000, Duration::ZERO).unwrap_err();
    drop(pin);
    client.truncate("a", 5000, Duration::from_secs(1)).unwrap();
    assert_eq!(client.get("a").unwrap().to_vec().unwrap(), bytes[..5000]);
    client.unlink("a").unwrap();
    assert_eq!(owner.info().free_bytes, 16 << 20);
}

#[test]
fn folios_split_and_merge_under_live_pins() {
    let owner = owner(16 << 20);
    let client = owner.client().unwrap();
    let bytes = pattern(4 << 20);
    let mut writer = client.create("a", 4 << 20, FolioSize::Pages2M).unwrap();
    writer.write_all_at(0, &bytes).unwrap();
    writer.commit().unwrap();
    let file = client.open("a").unwrap();
    let pin = file.pin_all().unwrap();
    let shape = |shape| client.reshape("a", 2 << 20, shape);
    shape(pgmap::Shape::Split { to: 0 }).unwrap();
    assert_eq!(client.stat("a").unwrap().nr_folios, [512, 1, 0]);
    assert_eq!(client.get("a").unwrap().to_vec().unwrap(), bytes);
    let small = file.pin_longterm(3 << 20..(3 << 20) + 4096).unwrap();
    assert_eq!(shape(pgmap::Shape::Merge { to: 1 }).unwrap_err().errno(), 16, "held below");
    drop(small);
    shape(pgmap::Shape::Merge { to: 1 }).unwrap();
    assert_eq!(client.stat("a").unwrap().nr_folios, [0, 2, 0]);
    assert_eq!(file.pin_all().unwrap().to_vec().unwrap(), bytes);
    assert_eq!(pin.to_vec().unwrap(), bytes);
    client.unlink("a").unwrap();
    drop(pin);
    let client = owner.client().unwrap();
    client.create("all", 16 << 20, FolioSize::Pages2M).unwrap();
}

#[test]
fn descriptors_and_catalog_on_the_device_are_found_again() {
    let directory = support::roomy();
    let path = directory.path().join("pool");
    let options = PoolOptions::in_directory(&path, 256 << 20).metadata_on_device();
    let bytes = pattern(3 << 20);
    let usable = {
        let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
        let usable = owner.info().free_bytes;
        let head = (256 << 20) - usable;
        assert!(head > 0 && head < 64 << 20, "the head takes {head} bytes");
        let client = owner.client().unwrap();
        put(&client, "kept", &bytes).unwrap();
        put(&client, "gone", &bytes).unwrap();
        client.unlink("gone").unwrap();
        let all = owner.info().free_bytes;
        let rest = client.create("rest", all, FolioSize::Pages4K).unwrap();
        assert_eq!(client.get("kept").unwrap().to_vec().unwrap(), bytes);
        drop(rest);
        usable
    };
    assert!(!path.join("vmemmap").exists() && !path.join("catalog").exists());
    assert!(Pool::create(&options).is_err(), "there is a pool");
    let owner = Owner::start(Pool::open(&path).unwrap()).unwrap();
    let client = owner.client().unwrap();
    assert_eq!(client.get("kept").unwrap().to_vec().unwrap(), bytes);
    assert_eq!(client.list().unwrap().len(), 1);
    assert_eq!(owner.info().free_bytes, usable - (3 << 20));
    let small = PoolOptions::in_directory(directory.path().join("small"), 4 << 20);
    assert!(Pool::create(&small.metadata_on_device()).is_err(), "no frame is left");
}

/// Story: a punch told readers of the piece behind the hole. When it was given up, the old extent
/// was put together again and the piece's own life word left as it was. A later truncate changed
/// only the whole extent's word, and a reader of the piece could pin frames that were another
/// file's by then.
#[test]
fn a_piece_told_by_a_punch_that_was_given_up_is_not_believed_for_ever() {
    let owner = owner(1 << 20);
    let client = owner.client().unwrap();
    let bytes = pattern(16 * 4096);
    let mut writer = client.create("a", 16 * 4096, FolioSize::Pages4K).unwrap();
    writer.write_all_at(0, &bytes).unwrap();
    writer.commit().unwrap();
    let pin = client.open("a").unwrap().pin(5 * 4096..5 * 4096 + 1).unwrap();
    let during = std::thread::scope(|scope| {
        let punch =
            scope.spawn(|| client.punch("a", 5 * 4096..6 * 4096, Duration::from_millis(300)));
        let during = loop {
            let file = client.open("a").unwrap();
            if file.nr_extents() == 3 || punch.is_finished() {
                break file;
            }
        };
        assert_eq!(punch.join().unwrap().unwrap_err().errno(), 16);
        during
    });
    assert_eq!(during.nr_extents(), 3, "the reader was given the pieces");
    assert_eq!(client.get("a").unwrap().to_vec().unwrap(), bytes, "nothing is lost");
    drop(pin);
    client.truncate("a", 8 * 4096, Duration::from_secs(1)).unwrap();
    put(&client, "b", &vec![0xbb; owner.info().free_bytes as usize]).unwrap();
    match during.pin(10 * 4096..11 * 4096) {
        Err(Error::OutOfRange { .. }) => {}
        Ok(pin) => panic!("pinned {:?} of another file", &pin.to_vec().unwrap()[..4]),
        Err(other) => panic!("{other}"),
    }
    assert_eq!(during.pin_all().unwrap().to_vec().unwrap(), bytes[..8 * 4096]);
}

#[test]
fn an_empty_file_is_a_file() {
    let directory = support::roomy();
    let path = directory.path().join("pool");
    let options = PoolOptions::in_directory(&path, 8 << 20);
    let mut owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let free = owner.info().free_bytes;
    let client = owner.client().unwrap();
    for size in [FolioSize::BestFit, FolioSize::Pages4K, FolioSize::Pages2M, FolioSize::Pages1G] {
        client.create("empty", 0, size).unwrap().commit().unwrap();
        let info = client.stat("empty").unwrap();
        assert_eq!((info.len_bytes, info.allocated_bytes, info.nr_extents), (0, 0, 0));
        client.unlink("empty").unwrap();
    }
    put(&client, "cut", &[1; 10_000]).unwrap();
    let pin = client.get("cut").unwrap();
    let held = client.truncate("cut", 0, Duration::ZERO).unwrap_err();
    assert!(matches!(held, Error::Refused(Refusal::Held { .. })), "{held}");
    assert_eq!(pin.to_vec().unwrap(), [1; 10_000]);
    drop(pin);
    client.truncate("cut", 0, Duration::from_secs(1)).unwrap();
    put(&client, "empty", b"").unwrap();
    client.rename("empty", "renamed", Replace::No).unwrap();
    assert!(matches!(put(&client, "renamed", b""), Err(Error::Refused(Refusal::Exists { .. }))));
    drop(client);
    for _ in 0..2 {
        let client = owner.client().unwrap();
        assert_eq!(client.list().unwrap().len(), 2);
        for name in ["cut", "renamed"] {
            assert_eq!(client.get(name).unwrap().to_vec().unwrap(), b"");
            let file = client.open(name).unwrap();
            let pin = file.pin(0..0).unwrap();
            pin.set_tag(1);
            assert_eq!(
                (pin.len_bytes(), pin.segments().count(), pin.is_reclaim_requested()),
                (0, 0, false)
            );
            assert!(pin.read_at(1, &mut []).is_err());
            assert!(matches!(file.pin(0..1), Err(Error::OutOfRange { .. })));
            assert!(matches!(file.pin(1..1), Err(Error::OutOfRange { .. })));
            drop(file.pin_longterm(0..0).unwrap());
            assert!(client.who(name.as_bytes()).unwrap().holders.is_empty());
            client.truncate(name, 0, Duration::ZERO).unwrap();
            client.truncate(name, 1, Duration::ZERO).unwrap_err();
            client.punch(name, 0..0, Duration::ZERO).unwrap_err();
        }
        assert_eq!(owner.info().free_bytes, free);
        drop(client);
        drop(owner);
        owner = Owner::start(Pool::open(&path).unwrap()).unwrap();
    }
    let client = owner.client().unwrap();
    let file = client.open("renamed").unwrap();
    put(&client, "other", b"bytes").unwrap();
    client.rename("other", "renamed", Replace::Yes).unwrap();
    let stale = file.pin_all().unwrap_err();
    assert!(matches!(stale, Error::Refused(Refusal::Stale { .. })), "{stale}");
    assert_eq!(client.get("renamed").unwrap().to_vec().unwrap(), b"bytes");
    client.rename("cut", "renamed", Replace::Yes).unwrap();
    assert_eq!(client.get("renamed").unwrap().to_vec().unwrap(), b"");
    assert_eq!(client.list().unwrap().len(), 1);
}

#[test]
fn a_length_that_the_pool_cannot_have_is_refused_with_what_is_true() {
    let owner = owner(64 << 20);
    let client = owner.client().unwrap();
    let why = |len, size| client.create("a", len, size).unwrap_err().to_string();
    let folios = why(2 << 20, FolioSize::Pages1G);
    for word in ["2097152", "folios of 1G", "1073741824", "67108864", "smaller folios"] {
        assert!(folios.contains(word), "{word}: {folios}");
    }
    let long = why(65 << 20, FolioSize::BestFit);
    assert!(long.contains("68157440") && long.contains("the whole pool has 67108864"), "{long}");
    assert!(why(u64::MAX, FolioSize::Pages1G).contains("the whole pool has 67108864"));
}

#[test]
fn frames_that_a_deadline_passed_for_are_counted_once() {
    let owner = owner(8 << 20);
    let client = owner.client().unwrap();
    put(&client, "a", &[1; 1 << 20]).unwrap();
    put(&client, "b", &[2; 4096]).unwrap();
    let (held, pin) = (client.get("a").unwrap(), client.get("b").unwrap());
    let left = client
        .truncate_or("a", 4096, Duration::from_millis(10), pgmap::OnDeadline::Quarantine)
        .unwrap();
    assert_eq!(left.len(), 1);
    client.unlink("b").unwrap();
    let info = owner.info();
    assert_eq!((info.quarantined_bytes, info.draining_bytes), ((1 << 20) - 4096, 4096));
    let sum = info.free_bytes + info.live_bytes + info.draining_bytes + info.quarantined_bytes;
    assert_eq!(sum, info.size_bytes, "{info:?}");
    drop((held, pin));
}

#[test]
fn trimmed_memory_goes_back_to_the_system_and_comes_again_when_it_is_needed() {
    let owner = owner(256 << 20);
    let client = owner.client().unwrap();
    put(&client, "kept", &[3; 5 << 20]).unwrap();
    for name in ["x", "y"] {
        put(&client, name, &vec![4; 100 << 20]).unwrap();
    }
    let pin = client.get("y").unwrap();
    for name in ["x", "y"] {
        client.unlink(name).unwrap();
    }
    let epoch = client.detach_epoch();
    let before = owner.info();
    assert_eq!(before.backed_bytes, 205 << 20);
    assert_eq!(client.trim().unwrap(), 100 << 20, "what is held stays");
    assert!(client.detach_epoch() > epoch, "registered devices must register again");
    let after = owner.info();
    assert_eq!(after.backed_bytes, 105 << 20);
    assert_eq!(after.free_bytes, before.free_bytes);
    assert_eq!(client.trim().unwrap(), 0);
    assert!(pin.to_vec().unwrap().iter().all(|&byte| byte == 4));
    put(&client, "again", &vec![5; 120 << 20]).unwrap();
    let bytes = client.get("again").unwrap().to_vec().unwrap();
    assert!(bytes.iter().all(|&byte| byte == 5));
    assert!(client.get("kept").unwrap().to_vec().unwrap().iter().all(|&byte| byte == 3));
    // Free frames in many pieces are all found.
    drop(pin);
    let names: Vec<String> = (0..3000).map(|number| format!("f{number}")).collect();
    for name in &names {
        put(&client, name, &[6; 4096]).unwrap();
    }
    for name in names.iter().step_by(2) {
        client.unlink(name).unwrap();
    }
    client.trim().unwrap();
    let info = owner.info();
    assert_eq!(info.backed_bytes, info.size_bytes - info.free_bytes);
}
