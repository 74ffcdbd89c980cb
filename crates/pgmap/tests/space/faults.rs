//! What breaks the peers breaks nothing here: their seven fault tests, rewritten. Each ends in an
//! error or a wait; the bytes are read through the raw pointers, as a device or a kernel would, so
//! that a signal or another file's bytes would show.

// UNSAFETY: a load through the raw pointer of a pin is the very thing that must not fault.
#![allow(unsafe_code)]
use std::time::Duration;

use crate::support::{self, block};
use pgmap::mm::gup::{Dirty, GupFlags};
use pgmap::mm::mm::Placed;
use pgmap::mm::prot::Prot;
use pgmap::space::{AddressSpace, PinnedPages};
use pgmap::{Client, Event, Owner, Pool, PoolOptions};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const BASE: u64 = 1 << 32;
const NR_PAGES: u64 = 16;

struct World {
    owner: Owner,
    client: Client,
    other: Client,
}

fn world() -> World {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(4 * MIB)).unwrap()).unwrap();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "a", 1);
    World { owner, client, other }
}

fn put(client: &Client, name: &str, generation: u64) {
    support::put(client, name, &block::make(generation, (NR_PAGES * PAGE) as usize)).unwrap();
}

fn mapped(client: &Client) -> AddressSpace {
    let space = AddressSpace::for_device(client, BASE, 1 << 30).unwrap();
    map(&space, Placed::At(BASE)).unwrap();
    space
}

fn map(space: &AddressSpace, place: Placed) -> Option<u64> {
    let file = space.client().open("a").ok()?;
    space.map(&file, 0, NR_PAGES * PAGE, place, Prot::READ_WRITE).ok()
}

fn pin(space: &AddressSpace, flags: GupFlags) -> Result<PinnedPages<'_>, i32> {
    space.pin(BASE, NR_PAGES, flags).map_err(|error| error.errno())
}

/// The generation of all the pinned bytes, read as a device reads them.
fn generation(pinned: &PinnedPages<'_>) -> Result<u64, String> {
    let mut bytes = Vec::with_capacity(pinned.len_bytes() as usize);
    for segment in pinned.segments() {
        for at in 0..segment.len_bytes as usize / 8 {
            let word = segment.ptr.cast::<u64>().wrapping_add(at);
            // SAFETY: the segment is mapped for as long as the client lives, page-aligned, and
            // held.
            let word = unsafe { word.read_volatile() };
            bytes.extend(word.to_le_bytes());
        }
    }
    block::check(&bytes)
}

/// Files until nothing is free: whatever may be reused is.
fn fill(world: &World) {
    for number in 0.. {
        let room = world.owner.info().free_bytes >= NR_PAGES * PAGE;
        if !room {
            return;
        }
        let name = format!("fill{number}");
        // An earlier filling's files are still there.
        if world.other.stat(&name).is_err() {
            put(&world.other, &name, 1000 + number);
        }
    }
}

/// vm-memory: `ftruncate(0)` under a file region, then a safe write: SIGBUS.
#[test]
fn fault_1_a_file_cut_under_its_mapping_is_an_error_and_the_pinned_part_a_wait() {
    let world = world();
    let space = mapped(&world.client);
    let pinned = pin(&space, GupFlags::WRITE).unwrap();
    let error = world.other.truncate("a", 1, Duration::from_millis(20)).unwrap_err();
    assert_eq!(error.errno(), 16, "it waits for the pin: {error}");
    assert_eq!(generation(&pinned), Ok(1));
    drop(pinned);
    world.other.truncate("a", PAGE, Duration::from_secs(10)).unwrap();
    fill(&world);
    let pinned = pin(&space, GupFlags::WRITE).unwrap();
    assert_eq!((pinned.nr_pages(), generation(&pinned)), (1, Ok(1)));
    let beyond = space.pin(BASE + PAGE, 1, GupFlags::WRITE).map_err(|error| error.errno());
    assert_eq!(beyond.err(), Some(14));
}

/// vm-memory: a host pointer handed out, the region removed, the map replaced, the pointer used:
/// SIGSEGV.
#[test]
fn fault_2_a_pointer_handed_out_outlives_its_region_and_the_map() {
    let world = world();
    let space = mapped(&world.client);
    let pinned = pin(&space, GupFlags::DEVICE).unwrap();
    let _told = space.unmap(BASE, NR_PAGES * PAGE).unwrap();
    put(&world.other, "b", 2);
    let file = world.client.open("b").unwrap();
    space.map(&file, 0, NR_PAGES * PAGE, Placed::At(BASE), Prot::READ_WRITE).unwrap();
    assert_eq!(generation(&pinned), Ok(1));
    assert_eq!(generation(&pin(&space, GupFlags::NONE).unwrap()), Ok(2));
}

/// vm-memory: the same while a guard is held: memory lives until the guard drops, and nobody is
/// notified.
#[test]
fn fault_3_whoever_takes_memory_away_is_told_when_the_last_holder_lets_go() {
    let world = world();
    let space = mapped(&world.client);
    let pinned = pin(&space, GupFlags::NONE).unwrap();
    std::thread::scope(|scope| {
        let cut = scope.spawn(|| world.other.truncate("a", PAGE, Duration::from_secs(10)));
        let (event, _) = space.next_event(Duration::from_secs(10)).unwrap().unwrap();
        assert!(matches!(event, Event::ReclaimRequested { .. }), "the holder is notified first");
        assert!(pinned.is_reclaim_requested());
        assert!(!cut.is_finished());
        assert_eq!(generation(&pinned), Ok(1));
        drop(pinned);
        cut.join().unwrap().unwrap();
    });
}

/// libvfio-user: `sgl_get`, the region removed, the iovec used: SIGSEGV.
#[test]
fn fault_4_segments_stay_good_when_area_and_file_are_gone() {
    let world = world();
    let space = mapped(&world.client);
    let pinned = pin(&space, GupFlags::NONE).unwrap();
    let _told = space.unmap(BASE, NR_PAGES * PAGE).unwrap();
    world.other.unlink("a").unwrap();
    fill(&world);
    assert_eq!(generation(&pinned), Ok(1));
    assert_eq!(pin(&space, GupFlags::NONE).err(), Some(14));
}

/// libvfio-user: `sgl_get`, the region removed, `sgl_put` with a dirty log: use after free.
#[test]
fn fault_5_pages_are_marked_dirty_after_their_area_went() {
    let world = world();
    let space = mapped(&world.client);
    space.mm().dirty().start();
    let pinned = pin(&space, GupFlags::WRITE).unwrap();
    let _told = space.unmap(BASE, NR_PAGES * PAGE).unwrap();
    pinned.write_at(0, &[0; 8]).unwrap();
    pinned.unpin(Dirty::Yes);
    assert_eq!(space.mm().dirty().take(BASE / PAGE, NR_PAGES), [(BASE / PAGE, NR_PAGES)]);
}

/// UCX: a region held by `get`, munmap, access: SIGSEGV, the reference keeps no memory.
#[test]
fn fault_6_a_hold_keeps_memory_that_is_taken_away_everywhere() {
    let world = world();
    let space = mapped(&world.client);
    let elsewhere = mapped(&world.other);
    let pinned = pin(&space, GupFlags::LONGTERM).unwrap();
    drop(elsewhere);
    world.other.unlink("a").unwrap();
    let _told = space.refresh();
    assert!(space.mm().translate(BASE).is_none());
    fill(&world);
    assert_eq!(generation(&pinned), Ok(1));
    drop(pinned);
    fill(&world);
    assert_eq!(pin(&space, GupFlags::LONGTERM).err(), Some(14));
}

/// SPDK: munmap with a translation present, translate: the stale translation.
#[test]
fn fault_7_a_stale_translation_is_never_used() {
    let world = world();
    let space = mapped(&world.client);
    space.populate(BASE, NR_PAGES * PAGE).unwrap();
    world.other.unlink("a").unwrap();
    fill(&world);
    assert!(space.mm().translate(BASE).is_some(), "a hint, and stale");
    assert!(space.read_section().unwrap().translate(BASE).is_none());
    assert!(space.pin(BASE, 1, GupFlags::FAST_ONLY).unwrap().is_empty());
    assert_eq!(pin(&space, GupFlags::NONE).err(), Some(14));
    assert!(space.mm().translate(BASE).is_none(), "repaired by the slow path");
    put_in_place(&world);
    assert!(map(&space, Placed::Over(BASE)).is_some());
    assert_eq!(generation(&pin(&space, GupFlags::NONE).unwrap()), Ok(9));
}

fn put_in_place(world: &World) {
    world.other.unlink("fill0").unwrap();
    support::wait_for_info(&world.owner, "room", |info| info.free_bytes >= NR_PAGES * PAGE);
    put(&world.other, "a", 9);
}

/// The same in the process's own addresses, where the pointer that is used after is the mapping.
mod process {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use pgmap::space::FaultAnswer;

    use super::*;
    use crate::support::mapper_role::load;

    /// What an answered touch finds.
    const SPARE: u64 = 999;

    /// A process address space with "a" mapped; a touch that finds nothing is counted, and gets a
    /// page of the file "spare".
    fn mapped(world: &World) -> (Arc<AddressSpace>, u64, Arc<AtomicU64>) {
        put(&world.client, "spare", SPARE);
        let space = Arc::new(AddressSpace::for_process(&world.client, 1 << 30).unwrap());
        let at = map(&space, Placed::Anywhere).unwrap();
        let (weak, nr_faults) = (Arc::downgrade(&space), Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&nr_faults);
        space.on_touch_fault(move |fault| {
            counter.fetch_add(1, Ordering::Relaxed);
            let Some(space) = weak.upgrade() else { return FaultAnswer::Fail };
            let spare = space.client().open("spare").unwrap();
            let page = fault.address - fault.address % PAGE;
            space.map(&spare, 0, PAGE, Placed::Over(page), Prot::READ).unwrap();
            FaultAnswer::Retry
        });
        (space, at, nr_faults)
    }

    fn count(nr_faults: &AtomicU64) -> u64 {
        nr_faults.load(Ordering::Relaxed)
    }

    #[test]
    fn fault_1_a_file_cut_under_its_mapping_is_an_error_and_no_wait() {
        let world = world();
        let (space, at, nr_faults) = mapped(&world);
        world.other.truncate("a", PAGE, Duration::from_secs(10)).unwrap();
        fill(&world);
        assert_eq!((load(at), count(&nr_faults)), (1, 0));
        assert_eq!(space.write_at(at + PAGE, b"x").unwrap_err().errno(), 14);
        assert_eq!((load(at + PAGE), count(&nr_faults)), (SPARE, 1));
    }

    #[test]
    fn fault_2_and_4_a_pointer_into_a_region_that_was_replaced_or_removed() {
        let world = world();
        let (space, at, nr_faults) = mapped(&world);
        let pinned = space.pin(at, NR_PAGES, GupFlags::DEVICE).unwrap();
        put(&world.other, "b", 2);
        let file = world.client.open("b").unwrap();
        space.map(&file, 0, NR_PAGES * PAGE, Placed::Over(at), Prot::READ).unwrap();
        assert_eq!((load(at), generation(&pinned)), (2, Ok(1)));
        let _told = space.unmap(at, NR_PAGES * PAGE).unwrap();
        world.other.unlink("a").unwrap();
        fill(&world);
        assert_eq!((load(at + PAGE), count(&nr_faults)), (SPARE, 1));
        assert_eq!(generation(&pinned), Ok(1), "what is pinned is not what is mapped");
    }

    #[test]
    fn fault_3_whoever_takes_memory_away_waits_for_the_mapping_and_the_pin() {
        let world = world();
        let (space, at, _) = mapped(&world);
        let pinned = space.pin(at, NR_PAGES, GupFlags::NONE).unwrap();
        std::thread::scope(|scope| {
            let cut = scope.spawn(|| world.other.truncate("a", PAGE, Duration::from_secs(10)));
            let (event, _) = space.next_event(Duration::from_secs(10)).unwrap().unwrap();
            assert!(matches!(event, Event::ReclaimRequested { .. }), "{event:?}");
            assert!(space.mm().translate(at + PAGE).is_none(), "applied before it was notified");
            assert!(!cut.is_finished(), "the pin stands");
            drop(pinned);
            cut.join().unwrap().unwrap();
        });
    }

    #[test]
    fn fault_5_pages_are_marked_dirty_after_their_area_went() {
        let world = world();
        let (space, at, _) = mapped(&world);
        space.mm().dirty().start();
        let pinned = space.pin(at, NR_PAGES, GupFlags::WRITE).unwrap();
        let _told = space.unmap(at, NR_PAGES * PAGE).unwrap();
        pinned.write_at(0, &[0; 8]).unwrap();
        pinned.unpin(Dirty::Yes);
        assert_eq!(space.mm().dirty().take(at / PAGE, NR_PAGES), [(at / PAGE, NR_PAGES)]);
    }

    #[test]
    fn fault_6_and_7_a_mapping_is_gone_before_its_frames_are_anybody_elses() {
        let world = world();
        let (space, at, nr_faults) = mapped(&world);
        world.other.unlink("a").unwrap();
        support::wait_for_info(&world.owner, "the frames", |info| info.draining_bytes == 0);
        fill(&world);
        assert!(space.mm().translate(at).is_none(), "not even a hint is left");
        assert_eq!(space.read_at(at, &mut [0; 8]).unwrap_err().errno(), 14);
        assert_eq!((load(at + PAGE), count(&nr_faults)), (SPARE, 1));
    }
}
