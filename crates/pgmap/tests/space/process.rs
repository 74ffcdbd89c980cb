//! Process address spaces: what is mapped is what every instruction sees, and what others take away
//! is gone for it, too, before anybody else gets the frames.

// UNSAFETY: raw loads and stores at mapped and vacated addresses, and forks, are the subject.
#![allow(unsafe_code)]
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::mapper_role::{load, map, store};
use crate::support::{self, Second, block, mapper_role};
use pgmap::mm::fault::FaultError;
use pgmap::mm::level::Level;
use pgmap::mm::mm::{MapRequest, Placed};
use pgmap::mm::pagemap::{DeviceRange, OpsPresent, PagemapSpec};
use pgmap::mm::pfn::PfnRange;
use pgmap::mm::prot::Prot;
use pgmap::mm::vma::{AreaBacking, Backed, BackingError, VmaKind};
use pgmap::space::{AddressSpace, CPU_MAPPING_TAG, FaultAnswer, TouchFault};
use pgmap::{Access, Client, FolioSize, MemoryType, Owner, Pool, PoolOptions, Refusal};
use rustix::process::Signal;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const WAIT: Duration = Duration::from_secs(10);
/// Pages of a file of these tests.
const NR_PAGES: u64 = 16;
/// What a handler maps in place of what is gone.
const SPARE: u64 = 999;
/// Generations from here on are what others put into freed frames.
const FOREIGN: u64 = 1000;

fn put(client: &Client, name: &str, generation: u64, nr_pages: u64) {
    support::put(client, name, &block::make(generation, (nr_pages * PAGE) as usize)).unwrap();
}

/// Files until nothing is free: whatever may be reused is.
fn fill(owner: &Owner, client: &Client) {
    for number in 0.. {
        let free = owner.info().free_bytes / PAGE;
        if free == 0 {
            return;
        }
        put(client, &format!("fill{number}"), FOREIGN + number, free.min(NR_PAGES));
    }
}

fn local_owner() -> Owner {
    Owner::start(Pool::create(&PoolOptions::anonymous(64 * MIB)).unwrap()).unwrap()
}

#[test]
fn child_entry() {
    let Some((role, place)) = support::role() else { return };
    match role.as_str() {
        "mapper" => mapper_role::run(&place),
        "forker" => fork_and_check(&place),
        "panicker" => touch_what_panics(&place),
        other => panic!("no such role: {other}"),
    }
}

struct World {
    owner: Owner,
    client: Client,
    mapper: Second,
    _place: tempfile::TempDir,
}

impl World {
    /// A pool with little more than the files "a" and "spare", and a process that may map them.
    fn new() -> Self {
        let (owner, place, socket) = support::serving_owner(2 * MIB);
        let client = owner.client().unwrap();
        put(&client, "a", 1, NR_PAGES);
        put(&client, "spare", SPARE, 1);
        let mut mapper = Second::start("mapper", &socket);
        assert_eq!(mapper.answer(), "ok");
        Self { owner, client, mapper, _place: place }
    }

    fn ask(&mut self, command: impl AsRef<str>) -> String {
        self.mapper.ask(command.as_ref())
    }

    /// Maps "a" in the other process.
    fn map(&mut self) -> u64 {
        self.ask("map a").parse().unwrap()
    }

    /// How many frames the other process holds for its processor.
    fn held_pages(&self) -> u64 {
        let holders = self.client.who_all().unwrap().holders;
        let ours =
            holders.iter().filter(|holder| i64::from(holder.pid) == i64::from(self.mapper.pid()));
        ours.filter(|holder| holder.tag == CPU_MAPPING_TAG).map(|holder| holder.nr_pages).sum()
    }
}

#[test]
fn what_is_mapped_is_the_file_and_held() {
    let mut world = World::new();
    let at = world.map();
    assert_eq!(world.ask(format!("load {at}")), "1");
    assert_eq!(world.ask(format!("load {}", at + 3 * PAGE + 8)), "3");
    assert_eq!(world.ask(format!("read {at} {}", NR_PAGES * PAGE)), "1");
    assert_eq!(world.held_pages(), NR_PAGES);
    world.mapper.must(&format!("store {} 77", at + 5 * PAGE + 16));
    let pinned = world.client.get("a").unwrap();
    let mut word = [0; 8];
    pinned.read_at(5 * PAGE + 16, &mut word).unwrap();
    assert_eq!(u64::from_le_bytes(word), 77, "a store is a write to the file");
    assert!(world.mapper.end().success());
    support::wait_until("the holds end with the process", || {
        world
            .client
            .who("a")
            .unwrap()
            .holders
            .iter()
            .all(|h| h.tag != CPU_MAPPING_TAG)
            .then_some(())
    });
}

#[test]
fn a_truncate_takes_the_mapping_away_before_the_frames_are_anybody_elses() {
    let mut world = World::new();
    let at = world.map();
    let cut = at + 4 * PAGE;
    world.mapper.must("handle");
    world.mapper.must(&format!("watch {}", cut + 8 * PAGE));
    let started = Instant::now();
    world.client.truncate("a", 4 * PAGE, Duration::from_secs(10)).unwrap();
    let took = started.elapsed();
    println!("truncate of a file that another process has mapped: {took:?}");
    fill(&world.owner, &world.client);
    let gone = world.ask(format!("read {cut} 64"));
    assert!(gone.starts_with("err 14 ") && gone.contains(&format!("{cut:#x}")), "{gone}");
    assert!(world.ask(format!("write {cut}")).starts_with("err 14 "));
    assert_eq!(world.ask("event"), "reclaim requested", "the program is notified as well");
    assert_eq!(world.ask(format!("load {cut}")), SPARE.to_string(), "what the handler mapped");
    let seen = support::wait_until("the watching thread is answered", || {
        let seen = world.ask("seen");
        seen.contains(',').then_some(seen)
    });
    assert_eq!(seen, format!("[1, {SPARE}]"));
    let faults = world.ask("faults");
    assert!(faults.contains(&cut.to_string()), "{faults}");
    assert_eq!(world.ask(format!("read {at} {}", 4 * PAGE)), "1", "the rest stays");
    assert_eq!(world.ask(format!("load {}", at + 3 * PAGE)), "1");
    assert_eq!(world.held_pages(), 4 + 2, "and is held");
    assert!(took < Duration::from_secs(2), "{took:?}: nobody had to do anything");
}

#[test]
fn a_raw_touch_of_what_is_gone_is_a_segmentation_fault_without_a_handler() {
    let mut world = World::new();
    let at = world.map();
    assert_eq!(world.ask(format!("load {at}")), "1");
    world.client.unlink("a").unwrap();
    support::wait_for_info(&world.owner, "the frames are free", |info| info.draining_bytes == 0);
    assert!(world.ask(format!("read {at} 8")).starts_with("err 14 "));
    world.mapper.tell(&format!("load {at}"));
    let status =
        support::wait_until("the process ends", || world.mapper.process.try_wait().unwrap());
    assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}");
}

#[test]
fn a_stopped_process_is_named_at_the_deadline_and_nothing_is_reused() {
    let mut world = World::new();
    let at = world.map();
    world.mapper.stop();
    let error = world.client.truncate("a", PAGE, Duration::from_millis(200)).unwrap_err();
    let Some(Refusal::Held { holders, .. }) = error.refusal() else { panic!("{error}") };
    assert_eq!(holders.len(), 1, "{holders:?}");
    assert_eq!(i64::from(holders[0].pid), i64::from(world.mapper.pid()));
    assert_eq!(holders[0].tag, CPU_MAPPING_TAG);
    fill(&world.owner, &world.client);
    world.mapper.signal(Signal::CONT);
    // The keeper takes away what it was notified of; the cut was given up, and the touch maps it
    // again.
    assert_eq!(world.ask(format!("load {}", at + 9 * PAGE)), "1");
    assert_eq!(world.ask(format!("read {at} {}", NR_PAGES * PAGE)), "1");
    world.client.truncate("a", PAGE, Duration::from_secs(10)).unwrap();
    assert!(world.ask(format!("read {} 8", at + PAGE)).starts_with("err 14 "));
}

#[test]
fn a_killed_process_gives_its_mappings_back_at_once() {
    let mut world = World::new();
    world.map();
    world.mapper.stop();
    world.client.unlink("a").unwrap();
    assert_eq!(world.owner.info().draining_bytes, NR_PAGES * PAGE);
    let started = Instant::now();
    world.mapper.kill();
    support::wait_for_info(&world.owner, "the frames are free", |info| info.draining_bytes == 0);
    println!("frames of a killed process's mapping free after {:?}", started.elapsed());
    fill(&world.owner, &world.client);
}

#[test]
fn a_failed_page_is_gone_and_the_pages_around_it_stay() {
    let mut world = World::new();
    let at = world.map();
    let pfn = {
        let holders = world.client.who("a").unwrap().holders;
        holders.iter().find(|holder| holder.tag == CPU_MAPPING_TAG).unwrap().first_pfn + 7
    };
    world.client.memory_failure(pfn).unwrap();
    assert_eq!(world.ask("event"), "failure");
    assert!(world.ask(format!("read {} 8", at + 7 * PAGE)).starts_with("err 133 "));
    // Raw, and without a handler: a touch that found nothing would be the end.
    for page in (0..NR_PAGES).filter(|&page| page != 7) {
        assert_eq!(world.ask(format!("load {}", at + page * PAGE + 8)), page.to_string());
    }
    assert_eq!(world.held_pages(), NR_PAGES - 1);
    world.mapper.tell(&format!("load {}", at + 7 * PAGE));
    let status =
        support::wait_until("the process ends", || world.mapper.process.try_wait().unwrap());
    assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}");
}

#[test]
fn a_hole_takes_the_middle_of_a_mapping_and_both_sides_stay() {
    let mut world = World::new();
    let at = world.map();
    let started = Instant::now();
    world.client.punch("a", 6 * PAGE..8 * PAGE, Duration::from_secs(10)).unwrap();
    println!("punch in the middle of another's mapping: {:?}", started.elapsed());
    fill(&world.owner, &world.client);
    for page in (0..6).chain(8..NR_PAGES) {
        assert_eq!(world.ask(format!("load {}", at + page * PAGE)), "1");
    }
    assert_eq!(world.ask(format!("read {} 8", at + 6 * PAGE)), "0", "a copy takes it for zeros");
    let refused = world.ask(format!("write {}", at + 6 * PAGE));
    assert!(refused.starts_with("err 14 ") && refused.contains("hole"), "{refused}");
    assert_eq!(world.held_pages(), NR_PAGES - 2);
    world.client.unlink("a").unwrap();
    support::wait_for_info(&world.owner, "both sides are free", |info| info.draining_bytes == 0);
}

/// Remembers what a handler was asked.
fn recorded(space: &AddressSpace) -> Arc<Mutex<Vec<TouchFault>>> {
    let faults: Arc<Mutex<Vec<TouchFault>>> = Arc::default();
    let record = Arc::clone(&faults);
    space.on_touch_fault(move |fault| {
        record.lock().unwrap().push(*fault);
        FaultAnswer::Retry
    });
    faults
}

/// Touches on another thread, changes something once the handler was asked, and returns what the
/// touch gave in the end.
fn touched_until<T: Send>(
    faults: &Mutex<Vec<TouchFault>>,
    touch: impl FnOnce() -> T + Send,
    change: impl FnOnce(),
) -> (TouchFault, T) {
    faults.lock().unwrap().clear();
    std::thread::scope(|scope| {
        let touch = scope.spawn(touch);
        let fault =
            support::wait_until("the handler is asked", || faults.lock().unwrap().last().copied());
        change();
        (fault, touch.join().unwrap())
    })
}

#[test]
fn protect_unmap_and_remap_reach_the_processor() {
    let owner = local_owner();
    let client = owner.client().unwrap();
    put(&client, "a", 1, NR_PAGES);
    let space = AddressSpace::for_process(&client, GIB).unwrap();
    let faults = recorded(&space);
    let at = map(&space, "a", Placed::Anywhere, Prot::READ_WRITE);
    let len_bytes = NR_PAGES * PAGE;

    let _told = space.protect(at, len_bytes, Prot::READ).unwrap();
    assert_eq!(load(at), 1, "what stays is never away");
    let writable = || drop(space.protect(at, len_bytes, Prot::READ_WRITE).unwrap());
    let (fault, ()) = touched_until(&faults, || store(at + PAGE, 5), writable);
    assert!(matches!(fault.error, FaultError::Denied { .. }), "{fault:?}");
    assert_eq!((fault.address, fault.access), (at + PAGE, Access::Write));
    assert_eq!(load(at + PAGE), 5);

    let _told = space.protect(at, PAGE, Prot::NONE).unwrap();
    let (fault, word) = touched_until(&faults, || load(at + 8), writable);
    assert_eq!((fault.address, fault.access, word), (at + 8, Access::Read, 0));

    let to = space.remap(at, len_bytes, len_bytes, Placed::At(at + 64 * MIB)).unwrap();
    assert_eq!(load(to + 3 * PAGE + 8), 3);
    let back = || assert_eq!(map(&space, "a", Placed::At(at), Prot::READ), at);
    let (fault, word) = touched_until(&faults, || load(at + 4 * PAGE + 8), back);
    assert!(matches!(fault.error, FaultError::NoArea { .. }), "{fault:?}");
    assert_eq!(word, 4);

    let _told = space.unmap(to + 4 * PAGE, 2 * PAGE).unwrap();
    assert_eq!((load(to + 3 * PAGE + 8), load(to + 6 * PAGE + 8)), (3, 6));
    let again = || assert_eq!(map(&space, "a", Placed::Over(to), Prot::READ), to);
    let (_, word) = touched_until(&faults, || load(to + 4 * PAGE + 8), again);
    assert_eq!(word, 4);
    // Two mappings of one file: one truncate takes both.
    client.truncate("a", PAGE, Duration::from_secs(10)).unwrap();
    for at in [at, to] {
        assert_eq!(load(at), 1);
        assert_eq!(space.read_at(at + PAGE, &mut [0]).unwrap_err().errno(), 14);
    }
}

#[test]
fn a_thousand_mappings_come_and_go() {
    let owner = local_owner();
    let client = owner.client().unwrap();
    let space = AddressSpace::for_process(&client, 4 * GIB).unwrap();
    for number in 0..1000 {
        put(&client, &format!("f{number}"), number, 1);
    }
    // Every other page, so that no two are neighbours.
    let start = space.mm().areas().first().map_or_else(
        || map(&space, "f0", Placed::Anywhere, Prot::READ_WRITE),
        |area| area.page * PAGE,
    );
    let at = |number: u64| start + 2 * number * PAGE;
    for number in 1..1000 {
        map(&space, &format!("f{number}"), Placed::At(at(number)), Prot::READ_WRITE);
    }
    for number in 0..1000 {
        assert_eq!(load(at(number)), number);
    }
    for number in (0..1000).step_by(2) {
        client.unlink(format!("f{number}")).unwrap();
    }
    support::wait_for_info(&owner, "the frames are free", |info| info.draining_bytes == 0);
    for number in 0..1000 {
        let read = space.read_at(at(number), &mut [0; 8]).map_err(|error| error.errno());
        assert_eq!(read, if number % 2 == 0 { Err(14) } else { Ok(()) }, "file {number}");
    }
    drop(space);
    assert!(client.who_all().unwrap().holders.is_empty(), "a space that is gone holds nothing");
}

#[test]
fn a_pool_full_of_large_folios_is_mapped_by_few_holds_and_cut_anywhere() {
    let owner = local_owner();
    let client = owner.client().unwrap();
    let mut writer = client.create("big", 16 * MIB, FolioSize::Pages2M).unwrap();
    writer.write_all_at(0, &block::make(3, 16 << 20)).unwrap();
    writer.commit().unwrap();
    let space = AddressSpace::for_process(&client, GIB).unwrap();
    let at = map(&space, "big", Placed::Anywhere, Prot::READ);
    assert!(at.is_multiple_of(2 * MIB));
    assert_eq!(client.who_all().unwrap().holders.len(), 1, "one range is one hold");
    // In the middle of a folio.
    client.truncate("big", 5 * MIB + PAGE, Duration::from_secs(10)).unwrap();
    assert_eq!(load(at + 5 * MIB), 3);
    assert_eq!(space.read_at(at + 5 * MIB + PAGE, &mut [0]).unwrap_err().errno(), 14);
    let held: u64 = client.who_all().unwrap().holders.iter().map(|holder| holder.nr_pages).sum();
    assert_eq!(held, (5 * MIB + PAGE) / PAGE);
}

#[test]
fn scenario_45_a_removed_device_is_gone_for_the_processor_too() {
    let options = PoolOptions::anonymous(64 * MIB).capacity(4 * GIB);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let spec = PagemapSpec {
        memory_type: MemoryType::Generic,
        ranges: vec![DeviceRange { start_bytes: GIB, len_bytes: 8 * MIB }],
        owner: None,
        largest_level: Level::Pmd.number(),
        ops: OpsPresent::NONE,
    };
    let id = owner.add_pagemap("dax0.0", &spec, None).unwrap();
    let space = AddressSpace::for_process(&client, GIB).unwrap();
    let faults = recorded(&space);
    let at = map(&space, "dax0.0", Placed::Anywhere, Prot::READ_WRITE);
    store(at + 3 * MIB, 7);
    assert_eq!(load(at + 3 * MIB), 7);
    owner.remove_pagemap(id, WAIT).unwrap();
    assert_eq!(space.read_at(at, &mut [0]).unwrap_err().errno(), 14);
    put(&client, "a", 1, NR_PAGES);
    let _told = space.unmap(at, 8 * MIB).unwrap();
    let other = || assert_eq!(map(&space, "a", Placed::At(at + 2 * MIB), Prot::READ), at + 2 * MIB);
    let (fault, word) = touched_until(&faults, || load(at + 2 * MIB), other);
    assert_eq!((fault.address, word), (at + 2 * MIB, 1));
}

#[test]
fn a_space_takes_the_addresses_that_it_is_told_and_gives_them_back() {
    let owner = local_owner();
    let client = owner.client().unwrap();
    put(&client, "a", 1, NR_PAGES);
    let anywhere = AddressSpace::for_process(&client, GIB).unwrap();
    assert!(map(&anywhere, "a", Placed::Anywhere, Prot::READ).is_multiple_of(GIB));
    // Far from where the kernel puts what other tests map meanwhile.
    let at = 0x2200_0000_0000;
    let first = AddressSpace::for_process_at(&client, at, GIB).unwrap();
    let taken = AddressSpace::for_process_at(&client, at, GIB).map_err(|error| error.errno());
    assert_eq!(taken.err(), Some(libc::EEXIST));
    for (address, len_bytes) in [(at + 1, GIB), (at, 0), (at, 5)] {
        let bad = AddressSpace::for_process_at(&client, address, len_bytes);
        assert_eq!(bad.map_err(|error| error.errno()).err(), Some(libc::EINVAL));
    }
    drop(first);
    let second = AddressSpace::for_process_at(&client, at, GIB).unwrap();
    assert_eq!(map(&second, "a", Placed::At(at + PAGE), Prot::READ), at + PAGE);
    assert_eq!(load(at + PAGE), 1);
}

/// Forks with a mapping; the child finds neither mapping nor hold, and drops what it inherited.
fn fork_and_check(socket: &Path) {
    let client = Client::connect(socket).unwrap();
    let mut space = Some(AddressSpace::for_process(&client, GIB).unwrap());
    let at = map(space.as_ref().unwrap(), "a", Placed::Anywhere, Prot::READ_WRITE);
    assert_eq!(load(at), 1);
    // SAFETY: the child makes no call but those under test and leaves without exit handlers; the
    // other threads of this process wait for events and touches and hold no lock.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let inherited = space.take().unwrap();
        let is_forked = |errno: i32| errno == libc::ECHILD;
        let read = inherited.read_at(at, &mut [0; 8]).map_err(|error| error.errno());
        let file = client.open("a").map(drop).map_err(|error| error.errno());
        let good = read.is_err_and(is_forked) && file.is_err_and(is_forked);
        drop(inherited);
        // What comes next ends the child by a signal, unless the mapping was inherited.
        if good {
            load(at);
        }
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(1) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child; the status lives on this stack.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert!(libc::WIFSIGNALED(status), "the child saw the mapping: {status:#x}");
    assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
    assert_eq!(load(at), 1, "the parent's mapping stays");
    support::say("forked");
    let mut commands = support::commands();
    assert_eq!(commands.next().as_deref(), Some("go on"));
    let gone = space.as_ref().unwrap().read_at(at, &mut [0; 8]).unwrap_err();
    assert_eq!(gone.errno(), 14, "{gone}");
    support::say("done");
    drop(space);
    drop(client);
    std::process::exit(0);
}

#[test]
fn a_forked_child_has_neither_the_mapping_nor_the_holds() {
    let (owner, _place, socket) = support::serving_owner(2 * MIB);
    let client = owner.client().unwrap();
    put(&client, "a", 1, NR_PAGES);
    let mut forker = Second::start("forker", &socket);
    assert_eq!(forker.answer(), "forked");
    let holders = client.who("a").unwrap().holders;
    assert_eq!(holders.len(), 1, "the child dropped nothing of its parent's: {holders:?}");
    client.unlink("a").unwrap();
    support::wait_for_info(&owner, "the parent's keeper lives", |info| info.draining_bytes == 0);
    assert_eq!(forker.ask("go on"), "done");
    assert!(forker.end().success());
}

/// A word may lose its mapping again and again; each time it is mapped again, however often.
#[test]
fn an_address_that_is_lost_and_touched_many_times_is_served_each_time() {
    let owner = local_owner();
    let client = owner.client().unwrap();
    put(&client, "a", 1, NR_PAGES);
    let space = AddressSpace::for_process(&client, GIB).unwrap();
    let at = map(&space, "a", Placed::Anywhere, Prot::READ);
    for _ in 0..1200 {
        let pfn = space.mm().translate(at).unwrap().pfn.number();
        let _nobody_caches = space.mm().invalidate(PfnRange::new(pfn, 1).unwrap());
        assert_eq!(load(at), 1);
    }
}

/// A file that panics when it is asked for pages.
#[derive(Debug)]
struct Panicking(Arc<dyn AreaBacking>);

impl AreaBacking for Panicking {
    fn kind(&self) -> VmaKind {
        self.0.kind()
    }

    fn nr_pages(&self) -> u64 {
        self.0.nr_pages()
    }

    fn extent_at(&self, _: u64) -> Result<Backed, BackingError> {
        panic!("a backing panics, as this test wants it to")
    }
}

#[test]
fn a_backing_that_panics_leaves_nothing_mapped_of_what_it_was_mapped_over() {
    let owner = local_owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "a", 1, NR_PAGES);
    let space = AddressSpace::for_process(&client, GIB).unwrap();
    let at = map(&space, "a", Placed::Anywhere, Prot::READ_WRITE);
    let panicking = Arc::new(Panicking(space.backing(&client.open("a").unwrap()).unwrap()));
    let over = MapRequest::new(panicking, NR_PAGES * PAGE).over(at);
    let mapped = catch_unwind(AssertUnwindSafe(|| space.mm().map(&over)));
    assert!(mapped.is_err() && space.mm().translate(at).is_none());
    // It would be waited for until the deadline if something of it were still mapped.
    other.truncate("a", PAGE, Duration::from_secs(2)).unwrap();
}

/// Touches what a backing that panics lies behind.
fn touch_what_panics(socket: &Path) {
    // A panic is no end of this process.
    drop(std::panic::take_hook());
    let client = Client::connect(socket).unwrap();
    let space = AddressSpace::for_process(&client, GIB).unwrap();
    let at = map(&space, "a", Placed::Anywhere, Prot::READ_WRITE);
    let panicking = Arc::new(Panicking(space.backing(&client.open("a").unwrap()).unwrap()));
    let over = MapRequest::new(panicking, NR_PAGES * PAGE).over(at);
    assert!(catch_unwind(AssertUnwindSafe(|| space.mm().map(&over))).is_err());
    // A handler that panics is no answer either.
    space.on_touch_fault(|_| panic!("a handler panics, as this test wants it to"));
    support::say("mapped");
    load(at);
}

#[test]
fn a_touch_of_what_panics_ends_the_thread_that_touched_and_is_not_waited_for() {
    let (owner, _place, socket) = support::serving_owner(2 * MIB);
    let client = owner.client().unwrap();
    put(&client, "a", 1, NR_PAGES);
    let mut toucher = Second::start("panicker", &socket);
    assert_eq!(toucher.answer(), "mapped");
    let status = support::wait_until("the process ends", || toucher.process.try_wait().unwrap());
    assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}");
}
