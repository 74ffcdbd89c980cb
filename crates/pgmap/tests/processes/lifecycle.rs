//! Frames change hands in one place: across restarts, refused cuts, failed memory, devices of the
//! dead, and damage to the descriptors.

use std::cell::RefCell;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{self, Random, Second, block};
use pgmap::mm::level::Level;
use pgmap::mm::mm::Placed;
use pgmap::mm::pagemap::{DeviceRange, OpsPresent, PagemapSpec};
use pgmap::mm::prot::Prot;
use pgmap::space::AddressSpace;
use pgmap::{
    Access, Agent, Client, CreateSpec, Error, FileName, FileRules, FolioSize, LongtermRule,
    MemoryType, Owner, Pool, PoolInfo, PoolOptions, Refusal, Shape,
};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const POOL_BYTES: u64 = 64 * MIB;
const EBUSY: i32 = 16;
const EHWPOISON: i32 = 133;

#[test]
fn child_entry() {
    support::owner_role::run_if_asked(POOL_BYTES);
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = directory.path().to_owned();
    (directory, path)
}

/// A pool in a directory, whose owner is another process that can be killed, and a client of it.
struct World {
    place: PathBuf,
    client: Client,
    owner: RefCell<Second>,
    _directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let (directory, place) = place();
        let owner = RefCell::new(Second::ready("create", &place));
        let client = Client::connect(place.join("s")).unwrap();
        Self { place, owner, client, _directory: directory }
    }

    /// With the file "a", a block that proves what it is.
    fn with_block(len_bytes: usize) -> Self {
        let world = Self::new();
        support::put(&world.client, "a", &block::make(1, len_bytes)).unwrap();
        world
    }

    /// Another process, which attaches as a client.
    fn second_client(&self) -> Second {
        Second::ready("client", &self.place)
    }

    fn kill_owner(&self) {
        self.owner.borrow_mut().kill();
    }

    /// The next owner, after the last one was killed.
    fn restart(&self) {
        self.owner.replace(Second::ready("open", &self.place));
    }

    fn wait_until_all_is_free(&self) -> PoolInfo {
        support::wait_until("all is free", || {
            let info = self.client.pool_stat().unwrap();
            (info.free_bytes == POOL_BYTES).then_some(info)
        })
    }
}

/// A directory with a pool that no owner has.
fn ownerless() -> (tempfile::TempDir, PathBuf) {
    let (directory, place) = place();
    Second::ready("create", &place).kill();
    (directory, place)
}

fn own(options: &PoolOptions) -> Owner {
    Owner::start(Pool::create(options).unwrap()).unwrap()
}

fn anonymous(size_bytes: u64) -> Owner {
    own(&PoolOptions::anonymous(size_bytes))
}

/// An owner in this process of a pool in a directory.
fn in_directory(size_bytes: u64) -> (tempfile::TempDir, PathBuf, Owner) {
    let (directory, place) = place();
    let path = place.join("pool");
    let owner = own(&PoolOptions::in_directory(&path, size_bytes));
    (directory, path, owner)
}

fn reopen(path: &Path) -> Owner {
    Owner::start(Pool::open(path).unwrap()).unwrap()
}

fn put(client: &Client, name: &str, size: FolioSize, bytes: &[u8]) {
    let mut writer = client.create(name, bytes.len() as u64, size).unwrap();
    writer.write_all_at(0, bytes).unwrap();
    writer.commit().unwrap();
}

fn holds_device_across(kill_client_first: bool) {
    let world = World::with_block(2 << 20);
    let mut victim = world.second_client();
    victim.must("pin-device a");
    if kill_client_first {
        victim.kill();
        support::wait_until("the orphan is noted", || {
            (world.client.pool_stat().unwrap().orphaned_bytes == 2 * MIB).then_some(())
        });
    }
    world.kill_owner();
    if !kill_client_first {
        victim.kill();
    }
    for _ in 0..2 {
        world.restart();
        assert_eq!(world.client.pool_stat().unwrap().orphaned_bytes, 2 * MIB);
        world.kill_owner();
    }
    world.restart();
    let epoch = world.client.detach_epoch();
    world.client.unlink("a").unwrap();
    let info = world.wait_until_all_is_free();
    assert_eq!((info.orphaned_bytes, info.nr_clients), (0, 1), "{info:?}");
    let nr_moves = world.client.detach_epoch() - epoch;
    assert_eq!(nr_moves, 1, "the frames were detached before they were free");
    let ledgers = std::fs::read_dir(world.place.join("pool/ledgers")).unwrap();
    let is_number = |name: std::ffi::OsString| name.to_str().unwrap().parse::<u64>().is_ok();
    let nr_ledgers = ledgers.filter(|entry| is_number(entry.as_ref().unwrap().file_name())).count();
    assert_eq!(nr_ledgers, 1, "its ledger went");
}

/// Story: recovery reaped dead clients before any file had its frames back. All frames were free
/// then, a hold of a free frame counts for nothing, and so the hold was forgotten with its ledger.
#[test]
fn a_device_hold_of_a_client_that_died_while_no_owner_ran_is_known_to_the_next() {
    holds_device_across(false);
}

#[test]
fn a_device_hold_of_a_dead_client_is_known_to_every_later_owner() {
    holds_device_across(true);
}

/// The hold is on frames that had no file any more when the owner was killed.
#[test]
fn a_device_hold_on_frames_that_were_draining_outlives_client_and_owner() {
    let world = World::with_block(2 << 20);
    let mut victim = world.second_client();
    victim.must("pin-device a");
    let pin = world.client.get("a").unwrap();
    world.client.unlink("a").unwrap();
    world.kill_owner();
    victim.kill();
    world.restart();
    let epoch = world.client.detach_epoch();
    assert_eq!(world.client.pool_stat().unwrap().orphaned_bytes, 2 * MIB);
    assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(1));
    drop(pin);
    world.wait_until_all_is_free();
    assert_eq!(world.client.detach_epoch() - epoch, 1);
}

/// Recovery failed open: a ledger that could not be opened was skipped, and its client's holds with
/// it.
#[test]
fn a_ledger_that_cannot_be_read_stops_the_start_and_is_named() {
    let (_directory, place) = ownerless();
    let ledgers = place.join("pool/ledgers");
    std::fs::create_dir(ledgers.join("4711")).unwrap();
    let error = Pool::open(place.join("pool")).and_then(Owner::start).map(drop).unwrap_err();
    assert!(error.to_string().contains("4711"), "{error}");
    std::fs::remove_dir(ledgers.join("4711")).unwrap();
    std::fs::rename(&ledgers, place.join("elsewhere")).unwrap();
    std::fs::write(&ledgers, b"").unwrap();
    let opened = Pool::open(place.join("pool")).and_then(Owner::start).map(drop);
    assert!(opened.unwrap_err().to_string().contains("ledgers"));
}

/// Names in the directory of ledgers that the pool would not write are nobody's ledgers.
#[test]
fn other_spellings_of_a_number_are_no_ledgers() {
    let (_directory, place) = ownerless();
    for name in ["00005", "+5", "5.bak"] {
        std::fs::write(place.join("pool/ledgers").join(name), b"").unwrap();
    }
    let owner = Pool::open(place.join("pool")).and_then(Owner::start).unwrap();
    assert_eq!(owner.info().nr_clients, 0);
}

#[test]
fn a_pool_takes_as_many_files_as_it_was_made_for() {
    let owner = own(&PoolOptions::anonymous(4 * MIB).max_files(2));
    let client = owner.client().unwrap();
    put(&client, "a", FolioSize::Pages4K, b"1");
    put(&client, "b", FolioSize::Pages4K, b"2");
    let error = client.create("c", 1, FolioSize::Pages4K).unwrap().commit().unwrap_err();
    assert!(matches!(error, Error::Refused(Refusal::IndexFull { nr_slots: 2 })), "{error}");
    client.rename("a", "c", pgmap::Replace::No).unwrap();
    client.unlink("b").unwrap();
    put(&client, "d", FolioSize::Pages4K, b"3");
}

#[test]
fn an_owner_killed_while_a_truncate_waits_leaves_the_file_whole() {
    let world = World::with_block(4 << 20);
    let mut other = world.second_client();
    let pin = world.client.get("a").unwrap();
    other.tell("truncate a 4096 60000");
    support::wait_until("the truncate waits", || {
        (world.client.pool_stat().unwrap().draining_bytes != 0).then_some(())
    });
    world.kill_owner();
    other.kill();
    world.restart();
    assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(1), "the old pin");
    let again = world.client.get("a").unwrap();
    assert_eq!(block::check(&again.to_vec().unwrap()), Ok(1));
    let nr_folios = world.client.stat("a").unwrap().nr_folios;
    assert_eq!(nr_folios, [0, 2, 0], "and its folios as large");
    drop((pin, again));
    world.client.unlink("a").unwrap();
    world.wait_until_all_is_free();
}

/// Story: without a client the descriptors are made again, and were made of folios as small as the
/// file was asked for. The catalog said that the first one is large, nobody found it, and the file
/// was "gone".
#[test]
fn a_file_whose_folios_were_merged_is_there_after_a_restart_without_clients() {
    let (_directory, path, owner) = in_directory(POOL_BYTES);
    let client = owner.client().unwrap();
    put(&client, "a", FolioSize::Pages4K, &block::make(1, 2 << 20));
    client.reshape("a", 0, Shape::Merge { to: 1 }).unwrap();
    drop((client, owner));
    let owner = reopen(&path);
    let client = owner.client().unwrap();
    assert_eq!(block::check(&client.get("a").unwrap().to_vec().unwrap()), Ok(1));
    assert_eq!(client.stat("a").unwrap().nr_folios, [0, 1, 0]);
    client.unlink("a").unwrap();
    support::wait_for_info(&owner, "all is free", |info| info.free_bytes == POOL_BYTES);
}

#[test]
fn a_number_of_a_file_is_never_given_twice_across_owners_that_are_killed() {
    let world = World::new();
    let mut last = 0;
    for number in 0..4 {
        let name = format!("f{number}");
        support::put(&world.client, &name, b"bytes").unwrap();
        let id = world.client.stat(&name).unwrap().id;
        assert!(id > last, "{id} after {last}");
        last = id;
        world.kill_owner();
        world.restart();
    }
}

#[test]
fn every_way_to_replace_memory_moves_the_detach_epoch() {
    let owner = own(&PoolOptions::anonymous(POOL_BYTES).capacity(4 * GIB));
    let client = owner.client().unwrap();
    let moves = |what: &str, act: &dyn Fn()| {
        let before = client.detach_epoch();
        act();
        assert!(client.detach_epoch() > before, "{what}");
    };
    client.memory_failure(7).unwrap();
    moves("repair of what is free", &|| client.repair_free().unwrap());
    put(&client, "a", FolioSize::Pages4K, &[1; 8192]);
    let pfn = client.get("a").unwrap().segments().next().unwrap().pool_offset / PAGE;
    client.memory_failure(pfn).unwrap();
    moves("repair of a file", &|| client.clear_poison("a", 0, &[2; 4096]).unwrap());
    let id = owner.add_pagemap("dax0.0", &device_spec(), None).unwrap();
    moves("a pagemap removed", &|| owner.remove_pagemap(id, Duration::ZERO).unwrap());
}

fn device_spec() -> PagemapSpec {
    PagemapSpec {
        memory_type: MemoryType::Generic,
        ranges: vec![DeviceRange { start_bytes: GIB, len_bytes: 8 * MIB }],
        owner: None,
        largest_level: Level::Pmd.number(),
        ops: OpsPresent::NONE,
    }
}

/// Story: only frames of the pool's own range counted when a client died.
#[test]
fn a_device_hold_on_a_further_pagemap_is_an_orphan_until_the_pagemap_goes() {
    let directory = tempfile::tempdir().unwrap();
    let owner = own(&PoolOptions::anonymous(POOL_BYTES).capacity(4 * GIB));
    owner.serve(directory.path().join("s")).unwrap();
    let id = owner.add_pagemap("dax0.0", &device_spec(), None).unwrap();
    let mut victim = Second::ready("client", directory.path());
    victim.must("pin-device dax0.0");
    victim.kill();
    support::wait_for_info(&owner, "the orphan", |info| info.orphaned_bytes == 8 * MIB);
    owner.remove_pagemap(id, Duration::from_secs(10)).unwrap();
    assert_eq!(owner.info().orphaned_bytes, 0);
}

fn tail_through_a_mapping(client: &Client, name: &str, nr_pages: u64) -> Vec<u8> {
    let space = AddressSpace::for_device(client, 0, GIB).unwrap();
    let file = client.open(name).unwrap();
    space.map(&file, 0, nr_pages * PAGE, Placed::At(0x10000), Prot::READ).unwrap();
    let mut bytes = vec![0xcc; (nr_pages * PAGE) as usize];
    space.read_at(0x10000, &mut bytes).unwrap();
    bytes
}

#[test]
fn behind_the_end_of_a_file_its_last_page_is_zero() {
    let owner = anonymous(4 * MIB);
    let client = owner.client().unwrap();
    for (size, len) in [
        (FolioSize::BestFit, 5),
        (FolioSize::Pages4K, 5000),
        (FolioSize::Pages2M, 5000),
        (FolioSize::BestFit, MIB as usize + 4095),
    ] {
        put(&client, "secret", FolioSize::BestFit, &vec![0xAA; 4 << 20]);
        client.unlink("secret").unwrap();
        support::wait_for_info(&owner, "free", |info| info.free_bytes == 4 * MIB);
        put(&client, "small", size, &vec![0x55; len]);
        let nr_pages = (len as u64).div_ceil(PAGE);
        let bytes = tail_through_a_mapping(&client, "small", nr_pages);
        assert!(bytes[..len].iter().all(|&b| b == 0x55));
        assert!(bytes[len..].iter().all(|&b| b == 0), "{size:?} {len}");
        client.unlink("small").unwrap();
        support::wait_for_info(&owner, "free", |info| info.free_bytes == 4 * MIB);
    }
}

#[test]
fn what_a_truncate_cuts_off_inside_a_page_is_zero() {
    let owner = anonymous(4 * MIB);
    let client = owner.client().unwrap();
    for (size, from, to) in
        [(FolioSize::BestFit, 8192, 5), (FolioSize::Pages2M, MIB, 4097), (FolioSize::Pages4K, 9, 1)]
    {
        put(&client, "a", size, &vec![0xAA; from as usize]);
        client.truncate("a", to, Duration::from_secs(1)).unwrap();
        let bytes = tail_through_a_mapping(&client, "a", to.div_ceil(PAGE));
        assert!(bytes[..to as usize].iter().all(|&b| b == 0xAA));
        assert!(bytes[to as usize..].iter().all(|&b| b == 0), "{size:?} {from} {to}");
        client.unlink("a").unwrap();
    }
}

/// Story: the limit was asked for when life words had changed already. The 504th hole was refused,
/// the file could not be opened any more, and the pool neither.
#[test]
fn a_file_is_cut_up_to_its_limit_and_stays_whole() {
    let (_directory, path, owner) = in_directory(16 * MIB);
    let client = owner.client().unwrap();
    let len = 8 * MIB;
    put(&client, "f", FolioSize::BestFit, &vec![b'x'; len as usize]);
    let mut nr_holes = 0;
    let refused = loop {
        match client.punch(
            "f",
            2 * PAGE * (nr_holes + 1)..2 * PAGE * (nr_holes + 1) + PAGE,
            Duration::from_secs(1),
        ) {
            Ok(()) => nr_holes += 1,
            Err(error) => break error,
        }
        assert!(nr_holes < len / PAGE / 2, "there is a limit");
    };
    let Error::Refused(Refusal::TooMuch { limit, what, .. }) = &refused else {
        panic!("{refused}")
    };
    assert!(what.contains("\"f\"") && *limit >= 900, "{refused}");
    let before = client.stat("f").unwrap();
    let check = |client: &Client| {
        let bytes = client.get("f").unwrap().to_vec().unwrap();
        assert_eq!(bytes.len() as u64, len);
        let zeros = bytes.chunks(4096).filter(|page| page.iter().all(|&b| b == 0)).count() as u64;
        assert_eq!(zeros, nr_holes);
    };
    check(&client);
    for attempt in 0..4 {
        let pin = client.get("f").unwrap();
        assert_eq!(
            client.truncate("f", PAGE * (attempt + 1), Duration::ZERO).unwrap_err().errno(),
            EBUSY
        );
        drop(pin);
        check(&client);
    }
    let after = client.stat("f").unwrap();
    assert_eq!((after.nr_extents, after.nr_folios), (before.nr_extents, before.nr_folios));
    // A hole beside a hole needs no room.
    client.punch("f", 3 * PAGE..4 * PAGE, Duration::from_secs(1)).unwrap();
    nr_holes += 1;
    drop(client);
    drop(owner);
    let owner = reopen(&path);
    let client = owner.client().unwrap();
    assert_eq!(client.stat("f").unwrap().nr_extents, before.nr_extents - 2);
    let bytes = client.get("f").unwrap().to_vec().unwrap();
    assert_eq!(bytes.iter().filter(|&&b| b == b'x').count() as u64, len - nr_holes * PAGE);
    client.truncate("f", PAGE, Duration::from_secs(1)).unwrap();
    client.unlink("f").unwrap();
    support::wait_for_info(&owner, "all is free", |info| info.free_bytes == 16 * MIB);
}

/// A failure of memory cannot be refused. A file that can have no more extents loses all of the one
/// around the failed page, and nothing else.
#[test]
fn memory_that_fails_in_a_file_of_as_many_extents_as_can_be_leaves_the_rest_readable() {
    let (_directory, path, owner) = in_directory(16 * MIB);
    let client = owner.client().unwrap();
    put(&client, "f", FolioSize::BestFit, &vec![b'x'; 12 << 20]);
    let file = client.open("f").unwrap();
    let pfn_of = |page: u64| {
        let pin = file.pin(page * PAGE..page * PAGE + 1).unwrap();
        pin.segments().next().unwrap().pool_offset / PAGE
    };
    for hole in 0..460 {
        client
            .punch("f", 2 * PAGE * (hole + 1)..2 * PAGE * (hole + 1) + PAGE, Duration::from_secs(1))
            .unwrap();
    }
    assert_eq!(client.stat("f").unwrap().nr_extents, 921);
    // Pages far behind the holes, one after another, until no piece can be added.
    let failed: Vec<u64> = (0..50).map(|k| 1100 + 3 * k).collect();
    let pfns: Vec<u64> = failed.iter().map(|&page| pfn_of(page)).collect();
    for pfn in pfns {
        client.memory_failure(pfn).unwrap();
    }
    let check = |client: &Client, owner: &Owner| {
        let file = client.open("f").unwrap();
        assert_eq!(owner.info().poisoned_bytes, 50 * PAGE);
        for &page in &failed {
            assert_eq!(
                file.pin(page * PAGE..page * PAGE + 1).unwrap_err().errno(),
                EHWPOISON,
                "page {page}"
            );
        }
        assert_eq!(file.pin(0..2 * PAGE).unwrap().to_vec().unwrap(), vec![b'x'; 8192]);
    };
    check(&client, &owner);
    assert!(client.stat("f").unwrap().nr_extents <= 1008);
    drop(file);
    drop(client);
    drop(owner);
    let owner = reopen(&path);
    let client = owner.client().unwrap();
    check(&client, &owner);
    client.unlink("f").unwrap();
    support::wait_for_info(&owner, "the rest is free", |info| {
        info.free_bytes == 16 * MIB - 50 * PAGE
    });
    client.repair_free().unwrap();
    assert_eq!(owner.info().free_bytes, 16 * MIB);
}

/// Story: the file stayed in 512 small folios and in more extents, one more at each attempt.
#[test]
fn a_refused_cut_leaves_folios_and_extents_as_they_were() {
    let owner = anonymous(64 * MIB);
    let client = owner.client().unwrap();
    let mut random = Random(support::seed());
    for (size, len) in [
        (FolioSize::Pages2M, 8 * MIB),
        (FolioSize::Pages4K, 40 * PAGE),
        (FolioSize::BestFit, 5 * MIB + 17),
    ] {
        let bytes: Vec<u8> = (0..len).map(|at| ((at * 31) >> 8) as u8).collect();
        put(&client, "f", size, &bytes);
        if size == FolioSize::BestFit {
            client.punch("f", 40 * PAGE..43 * PAGE, Duration::from_secs(1)).unwrap();
        }
        let kept = client.get("f").unwrap().to_vec().unwrap();
        let before = client.stat("f").unwrap();
        let pin = client.get("f").unwrap();
        for _ in 0..200 {
            let page = random.below(len / PAGE);
            let nr_pages = 1 + random.below(len / PAGE - page);
            let refused = match random.below(2) {
                0 => client.truncate("f", page * PAGE + 1, Duration::ZERO),
                _ => client.punch("f", page * PAGE..page * PAGE + nr_pages * PAGE, Duration::ZERO),
            };
            // A hole in a hole, and a cut inside the last page, need nobody's frames.
            match refused {
                Err(error) => assert_eq!(error.errno(), EBUSY, "{error}"),
                Ok(()) if client.stat("f").unwrap().len_bytes == len => {}
                Ok(()) => break,
            }
            let now = client.stat("f").unwrap();
            assert_eq!((now.nr_extents, now.nr_folios), (before.nr_extents, before.nr_folios));
        }
        if client.stat("f").unwrap().len_bytes == len {
            assert_eq!(client.get("f").unwrap().to_vec().unwrap(), kept);
        }
        drop(pin);
        client.unlink("f").unwrap();
        support::wait_for_info(&owner, "all is free", |info| info.free_bytes == 64 * MIB);
    }
}

/// While a cut waits: a pin and a long-term pin of what stays, a failure of what goes, another
/// policy.
#[test]
fn a_cut_that_is_given_up_keeps_what_happened_while_it_waited() {
    let owner = anonymous(64 * MIB);
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "f", FolioSize::Pages2M, &vec![7; 4 << 20]);
    let pin = client.get("f").unwrap();
    let failed = pin.segments().next().unwrap().pool_offset / PAGE + 600;
    std::thread::scope(|scope| {
        let truncate = scope.spawn(|| other.truncate("f", 100 * PAGE, Duration::from_millis(400)));
        support::wait_until("the cut waits", || (owner.info().draining_bytes > 0).then_some(()));
        let file = client.open("f").unwrap();
        let long = file.pin_longterm(0..PAGE).unwrap();
        client.memory_failure(failed).unwrap();
        assert_eq!(truncate.join().unwrap().unwrap_err().errno(), EBUSY);
        drop(long);
    });
    let file = client.open("f").unwrap();
    assert_eq!(file.len_bytes(), 4 * MIB);
    assert_eq!(file.pin(600 * PAGE..600 * PAGE + 1).unwrap_err().errno(), EHWPOISON);
    assert_eq!(file.pin(0..600 * PAGE).unwrap().to_vec().unwrap(), vec![7; 600 * 4096]);
    assert_eq!(client.stat("f").unwrap().nr_folios, [512, 1, 0], "the one that failed is split");
    drop(pin);
    client.unlink("f").unwrap();
    support::wait_for_info(&owner, "all but one is free", |info| {
        info.free_bytes == 64 * MIB - PAGE
    });
}

/// Story: a cut that was given up left its leases recalled, and nobody got another.
#[test]
fn after_a_cut_that_is_given_up_its_leases_are_in_force_again() {
    let owner = own(&PoolOptions::anonymous(16 * MIB).memory_type(MemoryType::FsDax));
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    let mut spec = CreateSpec::new(FileName::new("a").unwrap(), 4 * MIB, FolioSize::BestFit);
    spec.rules = FileRules { longterm: LongtermRule::Leasable, ..FileRules::default() };
    let writer = client.create_batch(vec![spec]).unwrap().pop().unwrap().unwrap();
    writer.commit().unwrap();
    let file = client.open("a").unwrap();
    let lease = file.lease(0..4 * MIB, Agent::Device, Access::Write).unwrap();
    assert_eq!(other.truncate("a", PAGE, Duration::ZERO).unwrap_err().errno(), EBUSY);
    let second = other.open("a").unwrap();
    let second = second.lease(0..4 * MIB, Agent::Device, Access::Write).unwrap();
    drop((lease, second));
}

#[test]
fn a_failed_frame_stays_out_of_use_when_its_descriptor_is_lost() {
    let (_directory, path, owner) = in_directory(4 * MIB);
    owner.client().unwrap().memory_failure(3).unwrap();
    drop(owner);
    lose_descriptors(&path);
    let owner = reopen(&path);
    assert_eq!(owner.info().free_bytes, 4 * MIB - PAGE);
    let client = owner.client().unwrap();
    assert!(client.create("all", 4 * MIB, FolioSize::BestFit).is_err());
    client.repair_free().unwrap();
    assert_eq!(owner.info().free_bytes, 4 * MIB);
}

fn lose_descriptors(pool: &Path) {
    // All but the page at the end that says whose file it is.
    let vmemmap = std::fs::File::options().write(true).open(pool.join("vmemmap")).unwrap();
    let len = vmemmap.metadata().unwrap().len();
    vmemmap.write_all_at(&vec![0; len as usize - 4096], 0).unwrap();
}

#[test]
fn frames_that_a_live_client_holds_are_not_free_when_their_descriptors_are_lost() {
    let world = World::with_block(2 << 20);
    let pin = world.client.get("a").unwrap();
    world.client.unlink("a").unwrap();
    world.kill_owner();
    lose_descriptors(&world.place.join("pool"));
    world.restart();
    let info = world.client.pool_stat().unwrap();
    assert_eq!((info.free_bytes, info.draining_bytes), (POOL_BYTES - 2 * MIB, 2 * MIB), "{info:?}");
    assert!(world.client.create("all", POOL_BYTES, FolioSize::Pages4K).is_err());
    assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(1));
    drop(pin);
    world.wait_until_all_is_free();
}

/// The catalog says whose a frame is; whatever the descriptors say, every file is right and every
/// frame is in one book.
#[test]
fn damaged_descriptors_cost_no_file_and_no_frame() {
    const NR_TRIALS: u64 = 150;
    let (_directory, path, owner) = in_directory(16 * MIB);
    let client = owner.client().unwrap();
    let files = [("small", 3 * PAGE), ("large", 5 * MIB), ("holes", 40 * PAGE), ("bad", 9 * PAGE)];
    for (number, (name, len)) in files.into_iter().enumerate() {
        put(&client, name, FolioSize::BestFit, &vec![number as u8 + 1; len as usize]);
    }
    client.punch("holes", 7 * PAGE..9 * PAGE, Duration::from_secs(1)).unwrap();
    let pin = client.open("bad").unwrap().pin(4 * PAGE..4 * PAGE + 1).unwrap();
    let failed = pin.segments().next().unwrap().pool_offset / PAGE;
    drop(pin);
    client.memory_failure(failed).unwrap();
    let expected: Vec<Vec<u8>> =
        ["small", "large", "holes"].map(|name| client.get(name).unwrap().to_vec().unwrap()).into();
    let info = owner.info();
    drop(client);
    drop(owner);
    let vmemmap = path.join("vmemmap");
    let saved = std::fs::read(&vmemmap).unwrap();
    // Where the words of this pool lie: the first of each level, and those of its 4096 pages.
    let used: Vec<usize> = (0..saved.len() / 8).filter(|&at| word(&saved, at) != 0).collect();
    let mut random = Random(support::seed());
    for trial in 0..NR_TRIALS {
        let file = std::fs::File::options().write(true).open(&vmemmap).unwrap();
        for _ in 0..1 + random.below(8) {
            let at = used[random.below(used.len() as u64) as usize];
            let old = word(&saved, at);
            let new = match random.below(4) {
                0 => random.next(),
                1 => old ^ (1 << random.below(64)),
                2 => (old & !(0xf << 60)) | random.below(10) << 60,
                _ => word(&saved, used[random.below(used.len() as u64) as usize]),
            };
            file.write_all_at(&new.to_le_bytes(), at as u64 * 8).unwrap();
        }
        drop(file);
        let owner = reopen(&path);
        let client = owner.client().unwrap();
        for (name, bytes) in ["small", "large", "holes"].into_iter().zip(&expected) {
            assert_eq!(client.get(name).unwrap().to_vec().unwrap(), *bytes, "trial {trial} {name}");
        }
        let bad = client.open("bad").unwrap();
        assert_eq!(
            bad.pin(4 * PAGE..4 * PAGE + 1).unwrap_err().errno(),
            EHWPOISON,
            "trial {trial}"
        );
        assert_eq!(bad.pin(5 * PAGE..6 * PAGE).unwrap().to_vec().unwrap(), vec![4; 4096]);
        let now = support::wait_for_info(&owner, "strays are free", |now| now.draining_bytes == 0);
        assert_eq!(
            (now.free_bytes, now.live_bytes, now.poisoned_bytes, now.quarantined_bytes),
            (info.free_bytes, info.live_bytes, info.poisoned_bytes, 0),
            "trial {trial}"
        );
        // And it can all be used.
        let all = client.create("all", now.free_bytes, FolioSize::Pages4K).unwrap();
        all.commit().unwrap();
        client.unlink("all").unwrap();
        support::wait_for_info(&owner, "free again", |now| now.free_bytes == info.free_bytes);
    }
    println!("{NR_TRIALS} trials over {} words", used.len());
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap())
}
