//! The kernel's rules for folios: counting, what descriptors cost, truncate, poison, teardown under
//! pins.
//!
//! Tests are numbered as the scenarios of the project's list of kernel semantics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pgmap_mm::barrier::{BarrierMode, PortableBarrier};
use pgmap_mm::descriptor::{Descriptor, FolioFlags, FolioState};
use pgmap_mm::drain::{ClientId, Drain};
use pgmap_mm::error::{PinError, errno};
use pgmap_mm::extent::Extent;
use pgmap_mm::folio::{Folios, Sizing};
use pgmap_mm::ledger::{Agent, HoldPlace, LedgerLayout, LedgerReader, MAX_COUNT};
use pgmap_mm::level::Level;
use pgmap_mm::memory_failure::FailureError;
use pgmap_mm::memory_type::MemoryType;
use pgmap_mm::pagemap::{
    DeviceRange, OpsPresent, PagemapId, PagemapSpec, PagemapTable, Step, Teardown, TeardownError,
};
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::pin::{Lane, Pinner};
use pgmap_mm::runs::SortedRuns;
use pgmap_mm::split::ReshapeError;
use pgmap_mm::stamp::Stamp;
use pgmap_mm::vmemmap::{Vmemmap, VmemmapLayout};
use pgmap_mm::words::{HeapCounts, HeapWords, ReadWords};

use crate::heap_world::Side;

/// A pagemap of 1 GiB, and its teardown up to the drain.
fn dying_pagemap(memory_type: MemoryType) -> (PagemapTable, PagemapId, Teardown) {
    let mut table = PagemapTable::new(1 << 18, Vec::new(), 1 << 40);
    let spec = PagemapSpec {
        memory_type,
        ranges: vec![DeviceRange { start_bytes: 1 << 30, len_bytes: 1 << 30 }],
        owner: Some(7),
        largest_level: 2,
        ops: OpsPresent::FOLIO_FREE.with(OpsPresent::MIGRATE_TO_RAM),
    };
    let id = table.add(&spec).unwrap();
    let mut teardown = table.begin_teardown(id).unwrap();
    for step in [Step::Kill, Step::Tell, Step::Unmap] {
        teardown.done(step, &mut table).unwrap();
    }
    (table, id, teardown)
}

/// One owner with one client: the smallest thing in which pins meet descriptors.
struct World {
    words: Arc<HeapWords>,
    folios: Folios<Arc<HeapWords>>,
    ledger: LedgerReader<Arc<HeapWords>, Arc<HeapCounts>>,
    pinner: Pinner<Side>,
    last_stamp: u64,
}

impl World {
    fn new() -> Self {
        let layout = VmemmapLayout::for_pages(1 << 18).unwrap();
        let words = Arc::new(HeapWords::new(layout.nr_words()));
        let mut folios = Folios::new(Vmemmap::new(layout, Arc::clone(&words)).unwrap());
        folios.bring_online(Pfn::new(0).unwrap(), 1 << 18);
        let ledger_layout = LedgerLayout::with_lanes(&layout, 1, 4096);
        let ledger = Arc::new(HeapWords::new(ledger_layout.nr_words()));
        let counts = Arc::new(HeapCounts::new(ledger_layout.nr_counts()));
        let side = Side {
            ledger: Arc::clone(&ledger),
            counts: Arc::clone(&counts),
            vmemmap: Vmemmap::new(layout, Arc::clone(&words)).unwrap(),
            barrier_mode: BarrierMode::Fenced,
            bell: Arc::default(),
            is_forked: Arc::default(),
            identity: 1,
        };
        Self {
            words,
            folios,
            ledger: LedgerReader::new(ledger_layout, ledger, counts).unwrap(),
            pinner: Pinner::new(side, ledger_layout).unwrap(),
            last_stamp: 0,
        }
    }

    fn stamp(&mut self) -> Stamp {
        self.last_stamp += 1;
        Stamp::new(self.last_stamp).unwrap()
    }

    fn create(&mut self, nr_pages: u64, level: Level, flags: FolioFlags) -> Extent {
        let stamp = self.stamp();
        let reserved = self.folios.reserve(nr_pages, Sizing::Fixed(level), stamp).unwrap();
        assert_eq!(reserved.len(), 1);
        self.folios.publish(&reserved, flags.with(FolioFlags::WRITABLE))[0]
    }

    fn lane(&self) -> Lane<'_, Side> {
        self.pinner.lane().unwrap()
    }

    /// Holds on `run`: short and long.
    fn holds(&self, run: PfnRange) -> (usize, u32) {
        let (mut short, mut long) = (0, 0);
        self.ledger.for_each_hold(&SortedRuns::new(vec![run]), |hold| match hold.place {
            HoldPlace::Slot(_) => short += 1,
            HoldPlace::LongSlot(_) | HoldPlace::Count(_) => long += hold.nr_pins,
            HoldPlace::Unseen | HoldPlace::Lost => unreachable!("a scan sees what it finds"),
        });
        (short, long)
    }

    /// Metadata pages that hold a word.
    fn metadata_pages(&self) -> usize {
        let pages = self.words.nr_words() / 512;
        let is_used = |page: &usize| {
            (page * 512..(page + 1) * 512).any(|word| self.words.load(word, Ordering::Relaxed) != 0)
        };
        (0..pages).filter(is_used).count()
    }

    fn state(&self, pfn: u64) -> (Level, FolioState) {
        let (level, word) = self.folios.vmemmap().folio_of(Pfn::new(pfn).unwrap()).unwrap();
        (level, word.state())
    }
}

fn start_drain(
    folios: &mut Folios<Arc<HeapWords>>,
    ledger: &LedgerReader<Arc<HeapWords>, Arc<HeapCounts>>,
    run: PfnRange,
) -> Drain {
    folios.change_healthy(run, |word| word.in_state(FolioState::Dying));
    Drain::start(SortedRuns::new(vec![run]), &PortableBarrier, [(ClientId(1), ledger)])
}

#[test]
fn scenario_09_a_generic_two_mebibyte_folio_is_idle_at_zero_with_one_descriptor() {
    let mut world = World::new();
    let extent = world.create(512, Level::Pmd, FolioFlags::LONGTERM_OK);
    assert_eq!(world.holds(extent.run), (0, 0));
    assert_eq!(world.state(extent.run.start() + 300), (Level::Pmd, FolioState::Live));
}

#[test]
fn scenario_10_fsdax_frames_are_idle_at_zero() {
    let mut world = World::new();
    let extent = world.create(512, Level::Pte, FolioFlags::NONE);
    assert_eq!(world.holds(extent.run), (0, 0));
    assert_eq!(world.state(extent.run.start() + 300), (Level::Pte, FolioState::Live));
}

#[test]
fn scenario_11_private_memory_is_taken_down_when_nobody_holds_it() {
    let mut world = World::new();
    let (mut table, id, mut teardown) = dying_pagemap(MemoryType::Private);
    let extent = world.create(512, Level::Pmd, FolioFlags::NONE);
    let World { folios, ledger, pinner, .. } = &mut world;
    let lane = pinner.lane().unwrap();
    let pin = lane.pin(&extent, extent.run.sub_run(9, 1).unwrap(), Agent::Cpu).unwrap();
    let mut drain = start_drain(folios, ledger, extent.run);
    assert!(teardown.drained(drain.held().len()).is_err(), "blocks while it is in use");
    assert!(teardown.done(Step::Free, &mut table).is_err());
    drop(pin);
    drain.look_again(|_| Some(&*ledger));
    assert_eq!(teardown.drained(drain.held().len()), Ok(Step::Free));
    assert!(folios.free_healthy(extent.run).is_empty());
    teardown.done(Step::Free, &mut table).unwrap();
    assert!(table.by_id(id).is_none());
}

#[test]
fn scenario_12_and_13_teardown_waits_for_pins_of_every_type() {
    for memory_type in MemoryType::ALL {
        let mut world = World::new();
        let (_table, _, mut teardown) = dying_pagemap(memory_type);
        let extent = world.create(512, Level::Pmd, FolioFlags::LONGTERM_OK);
        let World { folios, ledger, pinner, .. } = &mut world;
        let long = pinner.pin_longterm(&extent, extent.run, Agent::Device).unwrap();
        let mut drain = start_drain(folios, ledger, extent.run);
        assert_eq!(drain.held()[0].client, ClientId(1), "and says whose pin it is");
        assert_eq!(teardown.drained(drain.held().len()), Err(TeardownError::Held { nr_holds: 1 }));
        drop(long);
        drain.look_again(|_| Some(&*ledger));
        assert_eq!(teardown.drained(drain.held().len()), Ok(Step::Free));
    }
}

#[test]
fn scenario_14_a_two_mebibyte_folio_costs_one_word() {
    let mut world = World::new();
    let extent = world.create(512, Level::Pmd, FolioFlags::NONE);
    // The page of level 2 that says Split and the page of level 1: one word each.
    assert_eq!(world.metadata_pages(), 2, "no page for 512 tails");
    for pfn in extent.run.start()..extent.run.end() {
        let pfn = Pfn::new(pfn).unwrap();
        assert_eq!(world.folios.vmemmap().folio_of(pfn), Some((Level::Pmd, extent.life)));
    }
}

#[test]
fn scenario_15_a_gibibyte_folio_costs_one_word() {
    let mut world = World::new();
    let extent = world.create(1 << 18, Level::Pud, FolioFlags::NONE);
    assert_eq!(world.metadata_pages(), 1);
    let last = Pfn::new(extent.run.end() - 1).unwrap();
    assert_eq!(world.folios.vmemmap().folio_of(last), Some((Level::Pud, extent.life)));
}

#[test]
fn scenario_17_four_kibibyte_folios_cost_a_word_each() {
    let mut world = World::new();
    world.create(512, Level::Pte, FolioFlags::NONE);
    assert_eq!(world.metadata_pages(), 3, "one page for 512 words, and the two above it");
}

#[test]
fn scenario_19_a_pin_of_one_frame_comes_and_goes() {
    let mut world = World::new();
    let extent = world.create(1, Level::Pte, FolioFlags::NONE);
    let pin = world.lane().pin(&extent, extent.run, Agent::Cpu).unwrap();
    assert_eq!(world.holds(extent.run), (1, 0));
    drop(pin);
    assert_eq!(world.holds(extent.run), (0, 0));
}

#[test]
fn scenario_20_512_pages_are_pinned_by_one_store_and_given_back_in_any_order() {
    let mut world = World::new();
    let extent = world.create(512, Level::Pmd, FolioFlags::NONE);
    let lane = world.lane();
    let whole = lane.pin(&extent, extent.run, Agent::Cpu).unwrap();
    assert_eq!(world.holds(extent.run), (1, 0), "one grab");
    let pin = |n| lane.pin(&extent, extent.run.sub_run(n, 1).unwrap(), Agent::Cpu).unwrap();
    let mut pins: Vec<_> = (0..512).map(pin).collect();
    assert_eq!(world.holds(extent.run), (513, 0));
    drop(whole);
    for n in 0..512 {
        drop(pins.swap_remove((n * 7919) % pins.len()));
    }
    assert_eq!(world.holds(extent.run), (0, 0));
}

#[test]
fn scenario_21_short_holds_are_never_taken_for_longterm_pins() {
    let mut world = World::new();
    let extent = world.create(1, Level::Pte, FolioFlags::NONE);
    let lane = world.lane();
    let pins: Vec<_> =
        (0..1024).map(|_| lane.pin(&extent, extent.run, Agent::Cpu).unwrap()).collect();
    assert_eq!(world.holds(extent.run), (pins.len(), 0));
}

#[test]
fn scenario_22_a_full_count_is_enomem_and_nothing_is_pinned() {
    let mut world = World::new();
    let extent = world.create(2, Level::Pte, FolioFlags::LONGTERM_OK);
    let second = extent.run.sub_run(1, 1).unwrap();
    let pin = |run| world.pinner.pin_longterm(&extent, run, Agent::Cpu);
    let pins: Vec<_> = (0..MAX_COUNT).map(|_| pin(second).unwrap()).collect();
    let refused = pin(extent.run).map(drop).unwrap_err();
    assert_eq!((refused, refused.errno()), (PinError::CountFull { run: second }, errno::ENOMEM));
    assert_eq!(world.holds(extent.run), (0, MAX_COUNT), "the first frame's count was taken back");
    drop(pins);
    assert_eq!(world.holds(extent.run), (0, 0));
}

#[test]
fn scenario_51_a_truncate_without_pins_frees_at_once() {
    let mut world = World::new();
    let free = world.folios.frames().free_pages();
    let extent = world.create(1024, Level::Pmd, FolioFlags::NONE);
    let fresh = world.stamp();
    let World { folios, ledger, .. } = &mut world;
    let cut = folios.cut_out(&extent, extent.run.sub_run(700, 324).unwrap(), fresh).unwrap();
    let drain = start_drain(folios, ledger, cut.hole.run);
    assert!(drain.is_idle());
    assert!(folios.free_healthy(cut.hole.run).is_empty());
    assert_eq!(folios.frames().free_pages(), free - 700);
}

#[test]
fn scenario_52_and_54_a_truncate_says_at_once_who_is_in_the_way_and_can_be_given_up() {
    let mut world = World::new();
    let extent = world.create(1024, Level::Pmd, FolioFlags::NONE);
    let tail = extent.run.sub_run(512, 512).unwrap();
    let (one, two) = (world.stamp(), world.stamp());
    let World { folios, ledger, pinner, .. } = &mut world;
    let lane = pinner.lane().unwrap();
    let pin = lane.pin(&extent, tail, Agent::Device).unwrap();
    let cut = folios.cut_out(&extent, tail, one).unwrap();
    let mut drain = start_drain(folios, ledger, tail);
    assert_eq!((drain.held().len(), drain.held()[0].hold.agent), (1, Agent::Device));
    // Given up: the file is whole again, and what was given out meanwhile cannot mislead.
    folios.change_healthy(tail, |word| word.in_state(FolioState::Live));
    let whole = folios.join(&cut.before.unwrap(), &cut.hole, two).unwrap();
    assert_eq!(whole.run, extent.run);
    assert!(lane.pin(&whole, whole.run, Agent::Cpu).is_ok());
    // Tried again: the last unpin lets it end.
    let fresh = Stamp::new(99).unwrap();
    folios.cut_out(&whole, tail, fresh).unwrap();
    folios.change_healthy(tail, |word| word.in_state(FolioState::Dying));
    drop(pin);
    assert!(pinner.side().bell.load(Ordering::Relaxed) > 0, "the owner is woken");
    drain.look_again(|_| Some(&*ledger));
    assert!(drain.is_idle());
}

#[test]
fn scenario_53_a_hole_next_to_a_pinned_frame_does_not_wait() {
    let mut world = World::new();
    let extent = world.create(512, Level::Pmd, FolioFlags::NONE);
    let fresh = world.stamp();
    let World { folios, ledger, pinner, .. } = &mut world;
    let lane = pinner.lane().unwrap();
    let (pinned, hole) = (extent.run.sub_run(7, 1).unwrap(), extent.run.sub_run(8, 1).unwrap());
    let pin = lane.pin(&extent, pinned, Agent::Cpu).unwrap();
    let cut = folios.cut_out(&extent, hole, fresh).unwrap();
    assert!(start_drain(folios, ledger, hole).is_idle(), "the pin is of another frame");
    assert!(folios.free_healthy(hole).is_empty());
    let stale = lane.pin(&extent, hole, Agent::Cpu).map(drop).unwrap_err();
    assert_eq!(stale.errno(), errno::ESTALE);
    for piece in [cut.before.unwrap(), cut.after.unwrap()] {
        assert!(lane.pin(&piece, piece.run, Agent::Cpu).is_ok());
    }
    assert!(pin.is_reclaim_requested(), "the life word moved, the hold stands");
}

#[test]
fn scenario_59_a_failed_frame_is_ehwpoison_until_it_is_overwritten() {
    let mut world = World::new();
    let extent = world.create(1024, Level::Pmd, FolioFlags::LONGTERM_OK);
    let pfn = Pfn::new(extent.run.start() + 600).unwrap();
    let fresh = [world.stamp(), world.stamp(), world.stamp()];
    let World { folios, ledger, pinner, .. } = &mut world;
    let lane = pinner.lane().unwrap();
    let holder = lane.pin(&extent, extent.run, Agent::Cpu).unwrap();
    let isolated = folios.isolate(pfn, Some(&extent), fresh[0]).unwrap();
    let told = Drain::start(
        SortedRuns::new(vec![isolated.frame]),
        &PortableBarrier,
        [(ClientId(1), &*ledger)],
    );
    assert_eq!(told.held().len(), 1, "its holder is notified");
    let [before, failed, after] = isolated.pieces[..] else { panic!("{isolated:?}") };
    assert_eq!(failed.life.stamp(), extent.life.stamp(), "whose it was can still be seen");
    let refused = lane.pin(&failed, failed.run, Agent::Cpu).map(drop).unwrap_err();
    assert_eq!(refused.errno(), errno::EHWPOISON);
    let refused = pinner.pin_longterm(&failed, failed.run, Agent::Device).map(drop).unwrap_err();
    assert_eq!(refused.errno(), errno::EHWPOISON);
    for piece in [before, after] {
        assert!(lane.pin(&piece, piece.run, Agent::Cpu).is_ok(), "the rest lives on");
    }
    assert_eq!(
        folios.isolate(pfn, Some(&failed), fresh[1]).map_err(|e| e.errno()),
        Err(errno::EHWPOISON)
    );
    // Overwritten in full.
    let word = Descriptor::new(FolioState::Live, FolioFlags::WRITABLE, fresh[2]);
    let cleared = folios.clear_poison(failed.run, word).unwrap();
    assert!(lane.pin(&cleared, cleared.run, Agent::Cpu).is_ok());
    drop(holder);
}

#[test]
fn what_is_freed_while_poisoned_stays_out_of_the_free_frames() {
    let mut world = World::new();
    let extent = world.create(1024, Level::Pmd, FolioFlags::NONE);
    let (free, pfn) =
        (world.folios.frames().free_pages(), Pfn::new(extent.run.start() + 600).unwrap());
    let (one, two) = (world.stamp(), world.stamp());
    world.folios.isolate(pfn, Some(&extent), one).unwrap();
    let World { folios, ledger, .. } = &mut world;
    assert!(start_drain(folios, ledger, extent.run).is_idle());
    let failed = PfnRange::folio(pfn, Level::Pte);
    assert_eq!(folios.free_healthy(extent.run), [failed]);
    assert_eq!(folios.frames().free_pages(), free + 1023);
    assert_eq!(folios.poisoned(extent.run), [failed]);
    assert_eq!(world.state(pfn.number()), (Level::Pte, FolioState::Poisoned));
    world.folios.return_repaired(failed).unwrap();
    assert_eq!(world.folios.frames().free_pages(), free + 1024);
    // A free frame can fail too.
    let isolated = world.folios.isolate(pfn, None, two).unwrap();
    assert_eq!((isolated.was, isolated.pieces.len()), (FolioState::Free, 0));
    assert_eq!(world.folios.frames().free_pages(), free + 1023);
    let live = world.create(1, Level::Pte, FolioFlags::NONE);
    let refused = world.folios.isolate(live.first(), None, two);
    assert!(matches!(refused, Err(FailureError::NeedsExtent { .. })), "a frame in use");
}

/// A restarted owner whose catalog is older than the failure.
#[test]
fn a_restarted_owner_cuts_its_extents_around_what_failed() {
    let mut world = World::new();
    let extent = world.create(1024, Level::Pmd, FolioFlags::NONE);
    let stamps = [world.stamp(), world.stamp(), world.stamp(), world.stamp()];
    let [one, two] = [3, 700].map(|n| Pfn::new(extent.run.start() + n).unwrap());
    let isolated = world.folios.isolate(one, Some(&extent), stamps[0]).unwrap();
    world.folios.isolate(two, isolated.pieces.last(), stamps[1]).unwrap();
    let found = world.folios.as_found(&extent).unwrap();
    let pieces = world.folios.cut_around_poison(&found, stamps[3]).unwrap();
    let states: Vec<_> = pieces.iter().map(|p| (p.run.nr_pages(), p.life.state())).collect();
    let (live, failed) = (FolioState::Live, FolioState::Poisoned);
    assert_eq!(states, [(3, live), (1, failed), (696, live), (1, failed), (323, live)]);
    for piece in &pieces {
        assert_eq!(world.folios.vmemmap().load(piece.head_level, piece.first()), Some(piece.life));
    }
}

#[test]
fn a_space_of_gibibyte_folios_has_no_smaller_ones() {
    let gib = Level::Pud.nr_pages();
    let layout = VmemmapLayout::for_folios(4 * gib, Level::Pud).unwrap();
    assert_eq!(layout.nr_words(), 512, "one page");
    let mut folios =
        Folios::new(Vmemmap::new(layout, Arc::new(HeapWords::new(layout.nr_words()))).unwrap());
    folios.bring_online(Pfn::new(0).unwrap(), 4 * gib);
    let stamp = |number| Stamp::new(number).unwrap();
    assert_eq!(folios.pages_for(1, Sizing::BestFit), Some(gib));
    for small in [Level::Pte, Level::Pmd] {
        assert_eq!(folios.pages_for(1, Sizing::Fixed(small)), None);
    }
    let reserved = folios.reserve(2 * gib, Sizing::BestFit, stamp(1)).unwrap();
    let live = folios.publish(&reserved, FolioFlags::WRITABLE)[0];
    for small in [Level::Pte, Level::Pmd] {
        let refused = folios.split(live.first(), small).unwrap_err();
        assert!(matches!(refused, ReshapeError::BelowSmallest { .. }), "{refused}");
        assert_eq!(refused.errno(), errno::EINVAL);
    }
    let part = live.run.sub_run(512, gib).unwrap();
    let refused = folios.cut_out(&live, part, stamp(2)).unwrap_err();
    assert!(matches!(refused, ReshapeError::BelowSmallest { .. }), "{refused}");
    assert_eq!(folios.piece(live.run), Some(live), "nothing was changed");

    let isolated = folios.isolate(Pfn::new(gib + 77).unwrap(), Some(&live), stamp(3)).unwrap();
    assert_eq!((isolated.frame.start(), isolated.frame.nr_pages()), (gib, gib));
    folios.discard_stale_below(live.run);
    assert_eq!(folios.free_healthy(live.run), [isolated.frame]);
    folios.trim();
    assert_eq!(folios.frames().free_pages(), 3 * gib);
    folios.return_repaired(isolated.frame).unwrap();
    assert_eq!(folios.frames().free_pages(), 4 * gib);
}
