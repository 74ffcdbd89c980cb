//! Address spaces over real pools: map, pin across files, partial results, cuts by other clients.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{self, block};
use pgmap::mm::gup::{Dirty, GupFlags};
use pgmap::mm::level::Level;
use pgmap::mm::mm::{AckToken, EndedRange, InvalidateSubscriber, MapError, Placed};
use pgmap::mm::pagemap::{DeviceRange, OpsPresent, PagemapSpec};
use pgmap::mm::prot::Prot;
use pgmap::mm::vma::VmaKind;
use pgmap::space::{AddressSpace, PinnedPages, SpaceError};
use pgmap::{
    Client, CreateSpec, Event, FileRules, FolioSize, LongtermRule, MemoryType, Owner, Pool,
    PoolOptions,
};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const BASE: u64 = 0x4000_0000;
const WAIT: Duration = Duration::from_secs(10);

fn owner_of(memory_type: MemoryType) -> Owner {
    let options = PoolOptions::anonymous(64 * MIB).capacity(4 * GIB).memory_type(memory_type);
    Owner::start(Pool::create(&options).unwrap()).unwrap()
}

fn owner() -> Owner {
    owner_of(MemoryType::Generic)
}

fn put_with(client: &Client, name: &str, generation: u64, nr_pages: u64, rules: FileRules) {
    let spec = CreateSpec::named(name, nr_pages * PAGE, FolioSize::BestFit).unwrap().rules(rules);
    let mut writer = client.create_batch(vec![spec]).unwrap().pop().unwrap().unwrap();
    writer.write_all_at(0, &block::make(generation, (nr_pages * PAGE) as usize)).unwrap();
    writer.commit().unwrap();
}

fn put(client: &Client, name: &str, generation: u64, nr_pages: u64) {
    put_with(client, name, generation, nr_pages, FileRules::default());
}

fn space(client: &Client) -> AddressSpace {
    AddressSpace::for_device(client, BASE, 8 * GIB).unwrap()
}

fn map(space: &AddressSpace, name: &str, page: u64, nr_pages: u64, at: u64) {
    let file = space.client().open(name).unwrap();
    let place = Placed::At(BASE + at * PAGE);
    space.map(&file, page * PAGE, nr_pages * PAGE, place, Prot::READ_WRITE).unwrap();
}

fn pin(space: &AddressSpace, at: u64, nr_pages: u64) -> Result<PinnedPages<'_>, SpaceError> {
    space.pin(BASE + at * PAGE, nr_pages, GupFlags::NONE)
}

fn errno<T>(result: Result<T, SpaceError>) -> i32 {
    result.map(drop).map_err(|error| error.errno()).err().unwrap_or(0)
}

/// What the page says it is: generation and place in its file.
fn page_says(pinned: &PinnedPages<'_>, page: u64) -> (u64, u64) {
    let mut words = [0; 16];
    pinned.read_at(page * PAGE, &mut words).unwrap();
    let word = |at: usize| u64::from_le_bytes(words[at..at + 8].try_into().unwrap());
    (word(0), word(8))
}

#[derive(Debug, Default)]
struct Iotlb {
    ended: Mutex<Vec<EndedRange>>,
    tokens: Mutex<Vec<AckToken>>,
}

impl InvalidateSubscriber for Iotlb {
    fn ended(&self, ranges: &[EndedRange], token: AckToken) {
        self.ended.lock().unwrap().extend(ranges);
        self.tokens.lock().unwrap().push(token);
    }
}

#[test]
fn one_pin_reaches_across_two_files_with_real_pointers() {
    let owner = owner();
    let client = owner.client().unwrap();
    put(&client, "a", 7, 8);
    put(&client, "b", 9, 8);
    let space = space(&client);
    map(&space, "a", 0, 8, 0);
    map(&space, "b", 2, 6, 8);
    let pinned = pin(&space, 6, 5).unwrap();
    assert_eq!((pinned.nr_pages(), pinned.address()), (5, BASE + 6 * PAGE));
    let says: Vec<_> = (0..5).map(|page| page_says(&pinned, page)).collect();
    assert_eq!(says, [(7, 6), (7, 7), (9, 2), (9, 3), (9, 4)]);
    let (pool, pool_bytes) = client.pool_address();
    let mut address = pinned.address();
    for segment in pinned.segments() {
        assert_eq!(segment.address, address);
        assert_eq!(segment.ptr, pool.wrapping_add(segment.pool_offset as usize));
        assert!(segment.pool_offset + segment.len_bytes <= pool_bytes as u64);
        address += segment.len_bytes;
    }
    assert_eq!(address, BASE + 11 * PAGE);
    let pages: Vec<_> = pinned.pages().collect();
    assert_eq!(pages.len(), 5);
    for (at, (address, pfn)) in pages.into_iter().enumerate() {
        assert_eq!(address, pinned.address() + at as u64 * PAGE);
        let found = space.mm().translate(address).unwrap();
        assert_eq!(pfn, found.pfn);
    }
    let mut across = [0; 32];
    pinned.read_at(2 * PAGE - 16, &mut across).unwrap();
    assert_eq!(u64::from_le_bytes(across[16..24].try_into().unwrap()), 9);
    assert_eq!(space.mm().usage().nr_areas, 2);
    assert!(matches!(space.mm().area_at(BASE).unwrap().kind(), VmaKind::FsDax));
}

#[test]
fn results_are_partial_and_the_next_call_says_why() {
    let owner = owner();
    let client = owner.client().unwrap();
    put(&client, "a", 1, 4);
    let space = space(&client);
    map(&space, "a", 0, 4, 0);
    assert_eq!(pin(&space, 2, 10).unwrap().nr_pages(), 2);
    assert_eq!(errno(pin(&space, 4, 1)), 14, "no area");
    assert_eq!(pin(&space, 0, 0).unwrap().nr_pages(), 0);
    let flags = |flags| errno(space.pin(BASE, 1, flags));
    assert_eq!(flags(GupFlags::LONGTERM.with(GupFlags::GET)), 22);
    assert_eq!(errno(space.pin(u64::MAX - PAGE, 8, GupFlags::NONE)), 75);
    assert_eq!(errno(space.pin(BASE + 8 * GIB, 1, GupFlags::NONE)), 14);
    map(&space, "a", 0, 4, 100);
    assert_eq!(errno(space.pin(BASE + 100 * PAGE, 1, GupFlags::NOFAULT)), 14, "no leaf yet");
    let fast = space.pin(BASE + 100 * PAGE, 1, GupFlags::FAST_ONLY).unwrap();
    assert!(fast.is_empty());
    drop(fast);
    space.populate(BASE + 100 * PAGE, 4 * PAGE).unwrap();
    assert_eq!(space.pin(BASE + 100 * PAGE, 4, GupFlags::FAST_ONLY).unwrap().nr_pages(), 4);
}

#[test]
fn what_may_not_be_mapped_or_written_is_refused_as_mmap_does() {
    let owner = owner();
    let client = owner.client().unwrap();
    put(&client, "a", 1, 4);
    put_with(&client, "ro", 2, 4, FileRules { is_read_only: true, ..FileRules::default() });
    put_with(&client, "raw", 3, 4, FileRules { is_raw: true, ..FileRules::default() });
    let space = space(&client);
    let try_map = |name: &str, offset, len_bytes, at: u64, prot| {
        let file = client.open(name).unwrap();
        errno(space.map(&file, offset, len_bytes, Placed::At(BASE + at), prot))
    };
    assert_eq!(try_map("a", 12, PAGE, 0, Prot::READ), 22);
    assert_eq!(try_map("a", 0, 0, 0, Prot::READ), 22);
    assert_eq!(try_map("a", 0, 4 * PAGE, 0, Prot::READ), 0);
    assert_eq!(try_map("a", 0, 4 * PAGE, PAGE, Prot::READ), 17);
    assert_eq!(errno(space.pin(BASE, 1, GupFlags::WRITE)), 14, "mapped for reading");
    let pinned = pin(&space, 0, 1).unwrap();
    assert_eq!(errno(pinned.write_at(0, b"x")), 13);
    assert_eq!(errno(pinned.read_at(PAGE - 1, &mut [0; 2])), 22);
    assert_eq!(try_map("ro", 0, PAGE, MIB, Prot::READ_WRITE), 13);
    assert_eq!(try_map("ro", 0, PAGE, MIB, Prot::READ), 0);
    assert_eq!(page_says(&pin(&space, 256, 1).unwrap(), 0), (2, 0));
    assert_eq!(try_map("raw", 0, PAGE, 2 * MIB, Prot::READ), 0);
    assert_eq!(errno(pin(&space, 512, 1)), 14, "mapped, never pinned");
    assert_eq!(space.mm().area_at(BASE + 2 * MIB).unwrap().kind(), VmaKind::Raw);
}

#[test]
fn a_truncation_by_another_client_ends_the_pages_that_go_and_no_others() {
    let owner = owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "a", 5, 16);
    let space = space(&client);
    map(&space, "a", 0, 16, 0);
    space.populate(BASE, 16 * PAGE).unwrap();
    let kept = pin(&space, 0, 4).unwrap();
    other.truncate("a", 8 * PAGE, Duration::from_secs(1)).unwrap();
    assert_eq!(errno(pin(&space, 8, 1)), 14);
    let pinned = pin(&space, 0, 16).unwrap();
    assert_eq!(pinned.nr_pages(), 8, "up to the new end");
    assert_eq!((0..8).map(|page| page_says(&pinned, page)).collect::<Vec<_>>()[7], (5, 7));
    assert_eq!(page_says(&kept, 3), (5, 3));
    // The frames are another file's now, and nothing shows it here.
    put(&other, "b", 6, 8);
    assert_eq!(errno(pin(&space, 8, 1)), 14);
    let section = space.read_section().unwrap();
    assert!(section.translate(BASE + 7 * PAGE).is_some());
    assert!(section.translate(BASE + 8 * PAGE).is_none());
}

#[test]
fn a_truncation_that_is_given_up_gives_the_pages_back() {
    let owner = owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "a", 5, 16);
    let space = space(&client);
    map(&space, "a", 0, 16, 0);
    let held = pin(&space, 12, 2).unwrap();
    std::thread::scope(|scope| {
        let cut = scope.spawn(|| other.truncate("a", 8 * PAGE, Duration::from_millis(500)));
        support::wait_until("the cut shows", || {
            (pin(&space, 0, 16).ok()?.nr_pages() == 8).then_some(())
        });
        let error = cut.join().unwrap().unwrap_err();
        assert_eq!(error.errno(), 16, "{error}");
    });
    assert_eq!(page_says(&held, 1), (5, 13));
    let pinned = pin(&space, 0, 16).unwrap();
    assert_eq!((pinned.nr_pages(), page_says(&pinned, 15)), (16, (5, 15)));
}

#[test]
fn a_hole_has_no_page_and_its_neighbours_have() {
    let owner = owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "a", 5, 16);
    let space = space(&client);
    map(&space, "a", 0, 16, 0);
    assert_eq!(pin(&space, 0, 16).unwrap().nr_pages(), 16);
    other.punch("a", 4 * PAGE..6 * PAGE, Duration::from_secs(1)).unwrap();
    assert_eq!(pin(&space, 0, 16).unwrap().nr_pages(), 4);
    assert_eq!(errno(pin(&space, 4, 1)), 14);
    let after = pin(&space, 6, 16).unwrap();
    assert_eq!((after.nr_pages(), page_says(&after, 0)), (10, (5, 6)));
}

#[test]
fn an_unlinked_file_lives_as_long_as_its_pins_and_its_area_stays_empty() {
    let owner = owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "a", 5, 4);
    let space = space(&client);
    map(&space, "a", 0, 4, 0);
    let file = client.open("a").unwrap();
    let pinned = pin(&space, 0, 4).unwrap();
    other.unlink("a").unwrap();
    put(&other, "a", 6, 4);
    assert_eq!(page_says(&pinned, 2), (5, 2));
    assert!(pinned.is_reclaim_requested());
    assert_eq!(errno(pin(&space, 0, 1)), 14, "the name is another file's");
    let again = space.map(&file, 0, PAGE, Placed::Anywhere, Prot::READ);
    assert_eq!(errno(again), 116);
    map(&space, "a", 0, 4, 8);
    assert_eq!(page_says(&pin(&space, 8, 4).unwrap(), 3), (6, 3));
}

#[test]
fn what_is_remapped_is_found_at_the_new_address_only() {
    let owner = owner();
    let client = owner.client().unwrap();
    put(&client, "a", 5, 8);
    let space = space(&client);
    map(&space, "a", 0, 8, 0);
    let pinned = pin(&space, 0, 8).unwrap();
    let to = Placed::At(BASE + 64 * PAGE);
    assert_eq!(space.remap(BASE, 8 * PAGE, 8 * PAGE, to).unwrap(), BASE + 64 * PAGE);
    assert_eq!(errno(pin(&space, 0, 1)), 14);
    assert_eq!(page_says(&pin(&space, 64, 8).unwrap(), 7), (5, 7));
    assert_eq!(page_says(&pinned, 7), (5, 7), "a pin stands");
    assert!(space.protect(BASE + 64 * PAGE, 4 * PAGE, Prot::READ).is_ok());
    assert_eq!(errno(space.pin(BASE + 64 * PAGE, 1, GupFlags::WRITE)), 14);
    assert_eq!(space.pin(BASE + 68 * PAGE, 1, GupFlags::WRITE).unwrap().nr_pages(), 1);
}

#[test]
fn two_clients_see_each_others_writes_at_their_own_addresses() {
    let owner = owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "a", 5, 4);
    let (mine, theirs) = (space(&client), space(&other));
    map(&mine, "a", 0, 4, 0);
    map(&theirs, "a", 1, 3, 500);
    mine.mm().dirty().start();
    let pinned = mine.pin(BASE + PAGE, 2, GupFlags::WRITE).unwrap();
    pinned.write_at(PAGE - 2, b"over").unwrap();
    let mut bytes = [0; 4];
    pin(&theirs, 500, 2).unwrap().read_at(PAGE - 2, &mut bytes).unwrap();
    assert_eq!(&bytes, b"over");
    pinned.unpin(Dirty::Yes);
    mine.pin(BASE, 1, GupFlags::WRITE).unwrap().unpin(Dirty::No);
    assert_eq!(mine.mm().dirty().take(BASE / PAGE, 4), [(BASE / PAGE + 1, 2)]);
}

#[test]
fn failed_memory_is_told_to_those_who_ask_and_can_be_repaired() {
    let owner = owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "a", 5, 8);
    let space = space(&client);
    map(&space, "a", 0, 8, 0);
    let offset = pin(&space, 3, 1).unwrap().segments().next().unwrap().pool_offset;
    other.memory_failure(offset / PAGE).unwrap();
    assert_eq!(errno(pin(&space, 3, 1)), 14);
    assert_eq!(errno(space.pin(BASE + 3 * PAGE, 1, GupFlags::HWPOISON)), 133);
    assert_eq!(pin(&space, 0, 8).unwrap().nr_pages(), 3);
    assert_eq!(page_says(&pin(&space, 4, 4).unwrap(), 0), (5, 4));
    let bytes = block::make(5, 8 * PAGE as usize);
    other.clear_poison("a", 3 * PAGE, &bytes[3 * 4096..4 * 4096]).unwrap();
    let pinned = pin(&space, 0, 8).unwrap();
    assert_eq!((pinned.nr_pages(), page_says(&pinned, 3)), (8, (5, 3)));
}

#[test]
fn a_device_file_is_mapped_and_pinned_by_its_alignment() {
    let owner = owner();
    let client = owner.client().unwrap();
    let spec = PagemapSpec {
        memory_type: MemoryType::Generic,
        ranges: vec![DeviceRange { start_bytes: GIB, len_bytes: 8 * MIB }],
        owner: None,
        largest_level: Level::Pmd.number(),
        ops: OpsPresent::NONE,
    };
    let id = owner.add_pagemap("dax0.0", &spec, None).unwrap();
    let space = space(&client);
    let file = client.open("dax0.0").unwrap();
    let odd = space.map(&file, 0, 3 * PAGE, Placed::Anywhere, Prot::READ);
    assert!(matches!(odd, Err(SpaceError::Map(MapError::DaxMisaligned { .. }))), "{odd:?}");
    let at = space.map(&file, 0, 8 * MIB, Placed::Anywhere, Prot::READ_WRITE).unwrap();
    assert_eq!(at % (2 * MIB), 0);
    assert!(space.unmap(at + PAGE, PAGE).is_err(), "a block is not split");
    let flags = GupFlags::WRITE.with(GupFlags::LONGTERM).with(GupFlags::DEVICE);
    let pinned = space.pin(at + MIB, 1024, flags).unwrap();
    let segment = pinned.segments().next().unwrap();
    assert_eq!((pinned.nr_pages(), segment.level), (1024, Level::Pmd));
    assert_eq!(segment.pool_offset, GIB + MIB);
    drop(pinned);
    owner.remove_pagemap(id, WAIT).unwrap();
    assert_eq!(errno(space.pin(at, 1, GupFlags::NONE)), 14);
}

#[test]
fn an_event_ends_translations_and_the_iotlb_is_told_before_the_cut_is_done() {
    let owner = owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "a", 5, 16);
    let space = space(&client);
    map(&space, "a", 0, 16, 0);
    let iotlb = Arc::new(Iotlb::default());
    let id = space.on_invalidate(iotlb.clone());
    let pinned = pin(&space, 0, 16).unwrap();
    std::thread::scope(|scope| {
        let cut = scope.spawn(|| other.truncate("a", 8 * PAGE, Duration::from_secs(10)));
        let (event, ended) = space.next_event(WAIT).unwrap().unwrap();
        assert!(matches!(event, Event::ReclaimRequested { nr_pages: 8, .. }), "{event:?}");
        // Those that look for what they may have missed sometimes find the changed life word before
        // the event comes, and then the event ends nothing more.
        let ended = ended.unwrap();
        assert!([(8, false), (0, true)].contains(&(ended.nr_pages, ended.acks.is_done())));
        let told = EndedRange { address: BASE + 8 * PAGE, len_bytes: 8 * PAGE };
        // The rest of the extent, whose life word has changed as well, may be reported a moment
        // later.
        assert_eq!(iotlb.ended.lock().unwrap()[0], told);
        assert!(space.mm().translate(BASE + 8 * PAGE).is_none());
        iotlb.tokens.lock().unwrap().remove(0).acknowledge();
        assert!(ended.acks.is_done());
        assert_eq!(page_says(&pinned, 15), (5, 15), "the cut waits");
        drop(pinned);
        cut.join().unwrap().unwrap();
    });
    space.unsubscribe(id);
}

#[test]
fn a_refresh_ends_translations_of_frames_that_nobody_held() {
    let owner = owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "a", 5, 4);
    put(&client, "b", 6, 4);
    let space = space(&client);
    map(&space, "a", 0, 4, 0);
    map(&space, "b", 0, 4, 4);
    space.populate(BASE, 8 * PAGE).unwrap();
    assert!(space.refresh().is_empty());
    other.unlink("a").unwrap();
    assert_eq!(space.refresh().iter().map(|ended| ended.nr_pages).sum::<u64>(), 4);
    assert!(space.mm().translate(BASE).is_none());
    assert!(space.mm().translate(BASE + 4 * PAGE).is_some());
    // Whoever caches is notified by this, or by the client's thread that looks from time to time.
    let iotlb = Arc::new(Iotlb::default());
    space.on_invalidate(iotlb.clone());
    other.unlink("b").unwrap();
    drop(space.refresh());
    let told = support::wait_until("the subscriber is notified", || {
        iotlb.ended.lock().unwrap().first().copied()
    });
    assert_eq!(told, EndedRange { address: BASE + 4 * PAGE, len_bytes: 4 * PAGE });
}

#[test]
fn a_long_pin_of_files_is_a_lease_where_the_file_allows_and_an_error_elsewhere() {
    let owner = owner_of(MemoryType::FsDax);
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "a", 5, 8);
    put_with(&client, "leasable", 6, 8, leasable());
    let space = space(&client);
    map(&space, "a", 0, 8, 0);
    map(&space, "leasable", 0, 8, 8);
    let long = |at: u64, nr_pages| space.pin(BASE + at * PAGE, nr_pages, GupFlags::LONGTERM);
    assert_eq!(errno(long(0, 1)), 95);
    let leased = long(10, 100).unwrap();
    assert_eq!((leased.nr_pages(), leased.address()), (6, BASE + 10 * PAGE));
    assert_eq!((page_says(&leased, 0), page_says(&leased, 5)), ((6, 2), (6, 7)));
    std::thread::scope(|scope| {
        let cut = scope.spawn(|| other.truncate("leasable", 2 * PAGE, Duration::from_secs(10)));
        let (event, _) = space.next_event(WAIT).unwrap().unwrap();
        let wanted = matches!(event, Event::LeaseRecalled { .. } | Event::ReclaimRequested { .. });
        assert!(wanted, "{event:?}");
        assert_eq!(page_says(&leased, 5), (6, 7));
        drop(leased);
        cut.join().unwrap().unwrap();
    });
    assert_eq!(errno(long(10, 1)), 14);
}

fn leasable() -> FileRules {
    FileRules { longterm: LongtermRule::Leasable, ..FileRules::default() }
}

#[test]
fn a_lease_ends_where_a_short_pin_would_and_the_next_call_says_why() {
    let owner = owner_of(MemoryType::FsDax);
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put_with(&client, "a", 5, 16, leasable());
    let space = space(&client);
    map(&space, "a", 0, 20, 0);
    let long = GupFlags::LONGTERM;
    let with = |at: u64, nr_pages, flags| space.pin(BASE + at * PAGE, nr_pages, flags);
    let offset = pin(&space, 9, 1).unwrap().segments().next().unwrap().pool_offset;
    // A hole of two pages, then three pages, then one that failed.
    other.punch("a", 4 * PAGE..6 * PAGE, Duration::from_secs(1)).unwrap();
    other.memory_failure(offset / PAGE).unwrap();
    for (at, nr_pages) in [(0, 4), (3, 1), (6, 3), (8, 1), (10, 6), (15, 1)] {
        for (flags, wanted) in [(GupFlags::NONE, 20), (long, 20), (long, nr_pages)] {
            let pinned = with(at, wanted, flags).unwrap();
            assert_eq!(pinned.nr_pages(), nr_pages, "{flags:?} of {wanted} from {at} on");
            assert_eq!(page_says(&pinned, nr_pages - 1), (5, at + nr_pages - 1));
        }
    }
    for flags in [GupFlags::NONE, long] {
        assert_eq!(errno(with(4, 8, flags)), 14, "a hole");
        assert_eq!(errno(with(9, 8, flags)), 14, "failed");
        assert_eq!(errno(with(9, 8, flags.with(GupFlags::HWPOISON))), 133);
        assert_eq!(errno(with(16, 1, flags)), 14, "beyond the end");
    }
    // Its folios reach further than the file.
    let spec = CreateSpec::named("b", 5000, FolioSize::Pages2M).unwrap().rules(leasable());
    client.create_batch(vec![spec]).unwrap().pop().unwrap().unwrap().commit().unwrap();
    map(&space, "b", 0, 8, 100);
    assert_eq!(with(100, 8, GupFlags::NONE).unwrap().nr_pages(), 2);
    let leased = with(100, 8, long).unwrap();
    assert_eq!((leased.nr_pages(), leased.segments().next().unwrap().len_bytes), (2, 2 * PAGE));
    drop(leased);
    assert_eq!(client.who_all().unwrap().holders, []);
}

#[test]
fn each_range_of_a_lease_says_how_large_its_own_leaf_is() {
    let options = PoolOptions::anonymous(4 * MIB).memory_type(MemoryType::FsDax);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let client = owner.client().unwrap();
    put(&client, "in the way", 1, 1);
    put_with(&client, "a", 5, 700, leasable());
    let space = space(&client);
    map(&space, "a", 0, 700, 0);
    let show = |flags| {
        let pinned = space.pin(BASE, 700, flags).unwrap();
        let all = pinned.segments().map(|range| (range.address, range.level));
        all.collect::<Vec<_>>()
    };
    let leased = show(GupFlags::LONGTERM);
    assert_eq!(leased, [(BASE, Level::Pmd), (BASE + 512 * PAGE, Level::Pte)]);
    assert_eq!(leased, show(GupFlags::NONE));
}

#[test]
fn more_pins_than_a_lane_has_slots_take_further_lanes() {
    let owner = owner();
    let client = owner.client().unwrap();
    put(&client, "a", 5, 4);
    let space = space(&client);
    map(&space, "a", 0, 4, 0);
    let pins: Vec<_> = (0..40_000).map(|at| pin(&space, at % 4, 1).unwrap()).collect();
    assert_eq!(page_says(&pins[39_999], 0), (5, 3));
    drop(pins);
    client.truncate("a", PAGE, Duration::from_secs(1)).unwrap();
}

/// A file that was first looked at while a cut of it was under way had an end that came back when
/// the cut was given up; what lies behind it was said to lie beyond the file ever after.
#[test]
fn what_was_mapped_while_a_cut_was_under_way_is_there_when_that_is_called_off() {
    let owner = owner();
    let (cutter, holder, client) =
        (owner.client().unwrap(), owner.client().unwrap(), owner.client().unwrap());
    put(&holder, "a", 1, 4);
    let hold = holder.get("a").unwrap();
    std::thread::scope(|scope| {
        let cut = scope.spawn(|| cutter.truncate("a", PAGE, Duration::from_secs(60)));
        while owner.info().draining_bytes == 0 {
            std::thread::yield_now();
        }
        let space = space(&client);
        map(&space, "a", 0, 4, 0);
        assert!(pin(&space, 3, 1).is_err(), "behind the end that the cut is to leave");
        holder.cancel_cut("a").unwrap();
        cut.join().unwrap().unwrap_err();
        assert_eq!(pin(&space, 3, 1).unwrap().nr_pages(), 1);
    });
    drop(hold);
}
