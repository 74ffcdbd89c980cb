//! Every bound of pins, ledgers and the index reached, and every shared word made a lie.
use std::sync::atomic::Ordering;

use crate::heap_world::{World, live, run, stamp};
use pgmap_mm::barrier::{BarrierMode, HeavyBarrier, PortableBarrier, Reached};
use pgmap_mm::descriptor::{Descriptor, FolioFlags, FolioState};
use pgmap_mm::drain::{ClientId, Drain};
use pgmap_mm::error::PinError;
use pgmap_mm::extent::Extent;
use pgmap_mm::index::{
    EntryId, ExtentList, Facts, FileId, IndexLayout, IndexReader, IndexWriter, Lookup, MAX_EXTENTS,
};
use pgmap_mm::ledger::{Agent, HoldPlace, LEDGER_MAGIC, LedgerLayout, LedgerReader, MAX_COUNT};
use pgmap_mm::level::Level;
use pgmap_mm::pin::Lane;
use pgmap_mm::runs::SortedRuns;
use pgmap_mm::vmemmap::VmemmapLayout;
use pgmap_mm::words::{HeapCounts, HeapWords, ReadWords, WriteCounts, WriteWords};
use proptest::prelude::*;

const PMD: u64 = Level::Pmd.nr_pages();

/// Two folios of 2 MiB under one Live word.
fn two_folios(world: &World) -> Extent {
    world.extent_of_huge_folios(2)
}

#[test]
fn a_full_lane_says_so_and_takes_the_next_pin_once_one_is_dropped() {
    let world = World::new();
    let extent = two_folios(&world);
    let client = world.client(1, 1, 100);
    let lane = client.pinner.lane().unwrap();
    let pin = |first| lane.pin(&extent, run(first, 1), Agent::Cpu);
    let mut pins: Vec<_> = (0..100).map(|first| pin(first).unwrap()).collect();
    assert_eq!(pin(100).map(drop), Err(PinError::LaneFull { nr_slots: 100 }));
    assert_eq!(client.holds().len(), 100);

    drop(pins.swap_remove(37));
    let refilled = pin(101).unwrap();
    assert_eq!(pin(102).map(drop), Err(PinError::LaneFull { nr_slots: 100 }));
    let mut held: Vec<u64> = client.holds().iter().map(|hold| hold.run.start()).collect();
    held.sort_unstable();
    let expected: Vec<u64> = (0..100).filter(|&first| first != 37).chain([101]).collect();
    assert_eq!(held, expected, "no slot was overwritten and none lost");
    drop((pins, refilled));
    assert_eq!(client.holds(), []);
}

#[test]
fn a_lane_is_one_threads_until_it_is_given_back() {
    let world = World::new();
    let client = world.client(1, 2, 1);
    let first = client.pinner.lane().unwrap();
    let parts = client.pinner.lane().unwrap().into_parts();
    let none_left = || client.pinner.lane().map(drop);
    assert_eq!(none_left(), Err(PinError::NoLane { nr_lanes: 2 }));
    drop(first);
    assert_eq!(none_left(), Ok(()));
    let _first = client.pinner.lane().unwrap();
    assert_eq!(none_left(), Err(PinError::NoLane { nr_lanes: 2 }), "parts keep their lane");
    drop(Lane::from_parts(&client.pinner, parts).unwrap());
    assert_eq!(none_left(), Ok(()));
}

#[test]
fn parts_of_another_pinners_lane_are_refused_and_still_good_at_home() {
    let world = World::new();
    let extent = two_folios(&world);
    let (one, two) = (world.client(1, 1, 4), world.client(2, 1, 4));
    let parts = one.pinner.lane().unwrap().into_parts();
    let parts = Lane::from_parts(&two.pinner, parts).unwrap_err();
    let lane = Lane::from_parts(&one.pinner, parts).unwrap();
    let _pin = lane.pin(&extent, extent.run, Agent::Cpu).unwrap();
    assert_eq!((one.holds().len(), two.holds().len()), (1, 0));
}

#[test]
fn a_lane_given_back_with_pins_in_it_keeps_them() {
    let world = World::new();
    let extent = two_folios(&world);
    let client = world.client(1, 1, 2);
    let old = client.pinner.lane().unwrap().pin(&extent, run(0, 1), Agent::Cpu).unwrap();
    let lane = client.pinner.lane().unwrap();
    let new = lane.pin(&extent, run(1, 1), Agent::Device).unwrap();
    assert_eq!(client.holds().len(), 2);
    assert_eq!(
        lane.pin(&extent, run(2, 1), Agent::Cpu).map(drop),
        Err(PinError::LaneFull { nr_slots: 2 })
    );
    drop(old);
    let held: Vec<_> = client.holds().iter().map(|hold| (hold.run, hold.agent)).collect();
    assert_eq!(held, [(new.run(), Agent::Device)]);
}

#[test]
fn a_count_takes_32767_pins_of_each_kind_and_no_more() {
    let world = World::new();
    let extent = two_folios(&world);
    let client = world.client(1, 1, 1);
    let pin = |run, agent| client.pinner.pin_longterm(&extent, run, agent);
    let second = run(PMD, PMD);
    let mut pins: Vec<_> = (0..MAX_COUNT).map(|_| pin(second, Agent::Cpu).unwrap()).collect();
    assert_eq!(pin(second, Agent::Cpu).map(drop), Err(PinError::CountFull { run: second }));

    let bells = client.nr_bells();
    assert_eq!(pin(extent.run, Agent::Cpu).map(drop), Err(PinError::CountFull { run: second }));
    assert!(client.nr_bells() > bells, "the first folio was counted for a moment: ring");
    let held = |agent| {
        let of_agent = client.holds().into_iter().filter(move |hold| hold.agent == agent);
        of_agent.map(|hold| (hold.run, hold.nr_pins)).collect::<Vec<_>>()
    };
    assert_eq!(held(Agent::Cpu), [(second, MAX_COUNT)], "what failed left nothing behind");

    let device = pin(extent.run, Agent::Device).unwrap();
    assert_eq!(held(Agent::Device), [(run(0, PMD), 1), (second, 1)]);
    drop(pins.pop());
    pins.push(pin(second, Agent::Cpu).unwrap());
    drop((pins, device));
    assert_eq!(client.holds(), []);
}

#[test]
fn a_pin_outside_its_extent_or_without_leave_is_refused() {
    let world = World::new();
    let extent = two_folios(&world);
    let client = world.client(1, 1, 1);
    let lane = client.pinner.lane().unwrap();
    let beyond = run(PMD, 2 * PMD);
    assert_eq!(
        lane.pin(&extent, beyond, Agent::Cpu).map(drop),
        Err(PinError::Outside { run: beyond })
    );
    let far = run(1 << 30, PMD);
    let elsewhere = Extent::new(far, Level::Pmd, live(1)).unwrap();
    assert_eq!(
        lane.pin(&elsewhere, far, Agent::Cpu).map(drop),
        Err(PinError::Outside { run: far })
    );
    assert_eq!(
        client.pinner.pin_longterm(&elsewhere, far, Agent::Cpu).map(drop),
        Err(PinError::Outside { run: far })
    );
    let raw = Descriptor::new(FolioState::Live, FolioFlags::RAW, stamp(1));
    let dying = extent.life.in_state(FolioState::Dying);
    for word in [raw, dying, Descriptor::FREE] {
        let told = Extent { life: word, ..extent };
        let refused = Err(PinError::NotPinnable { word });
        assert_eq!(lane.pin(&told, told.run, Agent::Cpu).map(drop), refused);
        assert_eq!(client.pinner.pin_longterm(&told, told.run, Agent::Cpu).map(drop), refused);
    }
    let told = Extent { life: extent.life.with_flags(FolioFlags::WRITABLE), ..extent };
    assert_eq!(
        client.pinner.pin_longterm(&told, told.run, Agent::Cpu).map(drop),
        Err(PinError::NeedsConsent { run: told.run })
    );
    assert_eq!((client.holds(), client.nr_bells()), (vec![], 0), "nothing was published");
}

#[test]
fn a_forked_child_is_refused_everything_and_clears_nothing() {
    let world = World::new();
    let extent = two_folios(&world);
    let client = world.client(1, 2, 2);
    let lane = client.pinner.lane().unwrap();
    let pin = lane.pin(&extent, run(0, 1), Agent::Cpu).unwrap();
    pin.set_tag(9);
    let longterm = client.pinner.pin_longterm(&extent, extent.run, Agent::Device).unwrap();
    let before = client.holds();
    assert_eq!(before.len(), 3);
    let words = || {
        let ledger = &client.ledger;
        (0..ledger.nr_words()).map(|index| ledger.load(index, Ordering::Relaxed)).collect()
    };
    let before_words: Vec<u64> = words();

    client.is_forked.store(true, Ordering::Relaxed);
    let refused = Err(PinError::Forked);
    assert_eq!(client.pinner.lane().map(drop), refused);
    assert_eq!(lane.pin(&extent, run(1, 1), Agent::Cpu).map(drop), refused);
    assert_eq!(client.pinner.pin_longterm(&extent, extent.run, Agent::Cpu).map(drop), refused);
    pin.set_tag(10);
    pin.set_agent(Agent::Device);
    world.vmemmap().set(Level::Pmd, extent.first(), extent.life.in_state(FolioState::Dying));
    drop((pin, longterm, lane));
    assert_eq!(client.holds(), before, "the parent's holds are the parent's");
    let after: Vec<u64> = words();
    assert!(after == before_words, "the child stored to its parent's ledger");
    assert_eq!(client.nr_bells(), 0);
}

/// A count of a 2 MiB folio was reported once for each 4 KiB run of the batch in it.
#[test]
fn a_folio_with_several_runs_of_a_batch_in_it_is_found_once() {
    let world = World::new();
    let extent = two_folios(&world);
    let client = world.client(1, 1, 1);
    let _pin = client.pinner.pin_longterm(&extent, extent.run, Agent::Cpu).unwrap();
    let batch: SortedRuns = [run(3, 1), run(5, 1), run(500, 20), run(900, 1)].into_iter().collect();
    let mut found = Vec::new();
    client.reader.for_each_hold(&batch, |hold| found.push(hold.run));
    assert_eq!(found, [run(0, PMD), run(PMD, PMD)]);
}

/// A run that reached past the last frame was not scanned for counts at all.
#[test]
fn a_run_that_ends_off_the_pool_is_scanned_as_far_as_it_lies_on_it() {
    let world = World::new();
    let extent = two_folios(&world);
    let client = world.client(1, 1, 1);
    let _pin = client.pinner.pin_longterm(&extent, run(PMD, PMD), Agent::Cpu).unwrap();
    let mut found = Vec::new();
    let batch = SortedRuns::new(vec![run(0, 1 << 26)]);
    client.reader.for_each_hold(&batch, |hold| found.push(hold.run));
    assert_eq!(found, [run(PMD, PMD)]);
}

fn extents_from(first: u64, nr: u64) -> ExtentList {
    let extent = |i| Extent::new(run(first + i, 1), Level::Pte, live(first + i + 1)).unwrap();
    (0..nr).map(extent).collect()
}

/// The link of a slot of further extents lay where an entry has its file id, so a removed file
/// whose id was the number of that slot's successor came back with extents made of other files'
/// words.
#[test]
fn a_removed_file_does_not_come_back_when_its_slot_holds_further_extents() {
    let layout = IndexLayout::for_files(8);
    let words = HeapWords::new(layout.nr_words());
    let mut writer = IndexWriter::new(layout, &words, 7).unwrap();
    let reader = IndexReader::new(layout, &words).unwrap();
    for id in 0..16 {
        let first =
            writer.insert(b"first", Facts::new(FileId(id), 1), &extents_from(0, 1)).unwrap();
        let second =
            writer.insert(b"second", Facts::new(FileId(id), 1), &extents_from(1, 1)).unwrap();
        writer.remove(first, b"first");
        writer.remove(second, b"second");
        let large =
            writer.insert(b"large", Facts::new(FileId(100), 1), &extents_from(2, 40)).unwrap();
        for gone in [first, second] {
            assert_eq!(reader.reread(gone, FileId(id)), Lookup::Absent, "file {id}");
        }
        writer.remove(large, b"large");
    }
}

/// What a slot of further extents held was taken for the list of further slots when the slot became
/// an entry, and slots in use were given out again.
#[test]
fn a_slot_that_held_further_extents_becomes_an_entry_without_any() {
    let layout = IndexLayout::for_files(16);
    let words = HeapWords::new(layout.nr_words());
    let mut writer = IndexWriter::new(layout, &words, 7).unwrap();
    let reader = IndexReader::new(layout, &words).unwrap();
    // A life word that is a slot number, where an entry says which slot holds its further extents.
    let odd = |i| Extent::new(run(i, 1), Level::Pte, Descriptor::from_bits(1)).unwrap();
    let stays = writer.insert(b"stays", Facts::new(FileId(1), 1), &extents_from(0, 1)).unwrap();
    let large =
        writer.insert(b"large", Facts::new(FileId(2), 1), &(0..20).map(odd).collect()).unwrap();
    writer.remove(large, b"large");
    for id in 3..10u64 {
        let name = [b'a' + id as u8];
        writer.insert(&name, Facts::new(FileId(id), 1), &extents_from(id, 1)).unwrap();
    }
    let Lookup::Found(found) = reader.lookup(b"stays") else { panic!("slot given out twice") };
    assert_eq!((found.entry, found.id), (stays, FileId(1)));
    assert_eq!(found.extents, extents_from(0, 1));
}

#[test]
fn an_index_without_room_changes_nothing() {
    let layout = IndexLayout::for_files(1);
    let words = HeapWords::new(layout.nr_words());
    let mut writer = IndexWriter::new(layout, &words, 7).unwrap();
    let reader = IndexReader::new(layout, &words).unwrap();
    let one = writer.insert(b"one", Facts::new(FileId(1), 1), &extents_from(0, 8)).unwrap();
    assert!(writer.update(one, b"one", Facts::new(FileId(1), 2), &extents_from(0, 29)).is_err());
    let too_many = extents_from(0, MAX_EXTENTS as u64 + 1);
    assert!(writer.update(one, b"one", Facts::new(FileId(1), 2), &too_many).is_err());
    let _two = writer.insert(b"two", Facts::new(FileId(2), 1), &extents_from(8, 1)).unwrap();
    assert!(writer.insert(b"three", Facts::new(FileId(3), 1), &extents_from(9, 1)).is_err());
    assert!(
        writer
            .rename(one, (b"one", b"uno"), Facts::new(FileId(1), 1), &extents_from(0, 8))
            .is_err()
    );
    let Lookup::Found(found) = reader.lookup(b"one") else { panic!("lost") };
    assert_eq!((found.len_bytes, found.extents), (1, extents_from(0, 8)));
    assert_eq!(reader.lookup(b"uno"), Lookup::Absent);
    assert_eq!(reader.lookup(b"three"), Lookup::Absent);
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// A word somebody might write to do harm: small numbers, all ones, anything.
fn hostile_word() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => 0u64..70,
        1 => Just(u64::MAX),
        1 => Just(1 << 63),
        3 => any::<u64>(),
        2 => any::<u64>().prop_map(|bits| bits | 1 << 63),
    ]
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn a_ledger_full_of_lies_never_panics_the_scan(
        header in prop::collection::vec(hostile_word(), 4),
        words in prop::collection::vec((0usize..4096, hostile_word()), 0..200),
        counts in prop::collection::vec((0usize..4000, any::<u32>()), 0..50),
        batch in prop::collection::vec((0u64..1 << 20, 1u64..600_000), 1..6),
    ) {
        let vmemmap = VmemmapLayout::for_pages(1).unwrap();
        let layout = LedgerLayout::with_lanes(&vmemmap, 3, 100);
        let ledger = HeapWords::new(layout.nr_words());
        let folio_counts = HeapCounts::new(layout.nr_counts());
        for (index, word) in header.into_iter().enumerate() {
            ledger.store(index, word, Ordering::Relaxed);
        }
        for (index, word) in words {
            ledger.store(index % layout.nr_words(), word, Ordering::Relaxed);
        }
        for (index, count) in counts {
            folio_counts.fetch_add(index, count, Ordering::Relaxed);
        }
        let batch: SortedRuns = batch.into_iter().map(|(first, nr)| run(first, nr)).collect();
        let reader = LedgerReader::new(layout, &ledger, &folio_counts).unwrap();
        let mut found = Vec::new();
        reader.for_each_hold(&batch, |hold| found.push(hold));
        for hold in &found {
            prop_assert!(batch.overlaps(hold.run), "{hold:?} is not in {batch:?}");
            prop_assert!(hold.nr_pins > 0);
            prop_assert!(reader.still_holds(hold, &batch), "{hold:?}");
        }
        let mut places: Vec<_> =
            found.iter().map(|hold| format!("{:?} {:?}", hold.place, hold.agent)).collect();
        places.sort();
        places.dedup();
        prop_assert_eq!(places.len(), found.len(), "a hold was found twice");
        drop(reader.all_holds());
    }

    #[test]
    fn an_index_full_of_lies_never_panics_or_holds_up_a_reader(
        whole in prop::collection::vec(hostile_word(), 0..64),
        lies in prop::collection::vec((0usize..1200, hostile_word()), 0..40),
        entry in any::<u32>(),
        id in hostile_word(),
    ) {
        let layout = IndexLayout::for_files(6);
        let words = HeapWords::new(layout.nr_words());
        let mut writer = IndexWriter::new(layout, &words, 7).unwrap();
        let reader = IndexReader::new(layout, &words).unwrap();
        writer.insert(b"one", Facts::new(FileId(1), 1), &extents_from(0, 1)).unwrap();
        writer.insert(b"many", Facts::new(FileId(2), 1), &extents_from(1, 40)).unwrap();
        for (index, word) in whole.into_iter().enumerate() {
            // Over the slot of the first file, whatever it says.
            words.store(512 + 64 + 64 + index, word, Ordering::Relaxed);
        }
        for (index, word) in lies {
            words.store(index % words.nr_words(), word, Ordering::Relaxed);
        }
        for name in [&b"one"[..], b"many", b"none", b"", &[b'x'; 300]] {
            if let Lookup::Found(found) = reader.lookup(name) {
                prop_assert!(found.extents.len() <= MAX_EXTENTS);
            }
        }
        for number in [entry, entry % 8] {
            if let Lookup::Found(found) = reader.reread(EntryId::from_number(number), FileId(id)) {
                prop_assert_eq!(found.id, FileId(id));
            }
        }
        if let Some(reader) = IndexReader::new(layout, &words) {
            drop(reader.lookup(b"one"));
        }
    }
}

/// Links that lead in a circle: the walk ends by its own bound.
#[test]
fn a_chain_bent_into_a_circle_ends_a_lookup_as_busy() {
    let layout = IndexLayout::for_files(1);
    let words = HeapWords::new(layout.nr_words());
    let mut writer = IndexWriter::new(layout, &words, 7).unwrap();
    let entry = writer.insert(b"one", Facts::new(FileId(1), 1), &extents_from(0, 1)).unwrap();
    let next = 512 + 64 + entry.number() as usize * 64 + 2;
    words.store(next, u64::from(entry.number()), Ordering::Relaxed);
    let reader = IndexReader::new(layout, &words).unwrap();
    assert_eq!(reader.lookup(b"two"), Lookup::Busy);
}

/// An entry that names the file and cannot be true was passed over: the name was said to be absent,
/// and in a chain that was a circle the entry was copied once for every turn.
#[test]
fn an_entry_that_cannot_be_true_is_busy_and_its_name_not_absent() {
    let layout = IndexLayout::for_files(4);
    let words = HeapWords::new(layout.nr_words());
    let mut writer = IndexWriter::new(layout, &words, 7).unwrap();
    let reader = IndexReader::new(layout, &words).unwrap();
    let entry = writer.insert(b"one", Facts::new(FileId(1), 1), &extents_from(0, 3)).unwrap();
    let length_of_third = 512 + 64 + entry.number() as usize * 64 + 40 + 2 * 3 + 1;
    words.store(length_of_third, 0, Ordering::Relaxed);
    assert_eq!(reader.lookup(b"one"), Lookup::Busy);
    assert_eq!(reader.reread(entry, FileId(1)), Lookup::Busy);
    assert_eq!(reader.lookup(b"two"), Lookup::Absent);
}

/// Damage to the number of slots in use left old entries where the next owner saw fresh slots. What
/// such an entry said of further slots was believed: a panic, or slots given out twice.
#[test]
fn what_lies_in_a_fresh_slot_is_not_believed_by_the_next_owner() {
    let layout = IndexLayout::for_files(8);
    let words = HeapWords::new(layout.nr_words());
    let mut writer = IndexWriter::new(layout, &words, 7).unwrap();
    writer.insert(b"one", Facts::new(FileId(1), 1), &extents_from(0, 1)).unwrap();
    for (slot, more) in [(2, 5000), (3, 4)] {
        let at = 512 + 64 + slot * 64;
        words.store(at + 3, 9, Ordering::Relaxed);
        words.store(at + 6, more, Ordering::Relaxed);
    }
    let mut writer = IndexWriter::reopen(layout, &words, 7).unwrap();
    let names = [&b"a"[..], b"b", b"c", b"d"];
    for (id, name) in (1..).zip(names) {
        writer.insert(name, Facts::new(FileId(id), 1), &extents_from(id, 1)).unwrap();
    }
    writer.finish_reopening();
    let reader = IndexReader::new(layout, &words).unwrap();
    for (id, name) in (1..).zip(names) {
        let Lookup::Found(found) = reader.lookup(name) else { panic!("{name:?} is lost") };
        assert_eq!(found.extents, extents_from(id, 1));
    }
}

#[test]
fn a_ledger_too_small_for_its_layout_is_no_ledger() {
    let vmemmap = VmemmapLayout::for_pages(1).unwrap();
    let layout = LedgerLayout::with_lanes(&vmemmap, 1, 1);
    let words = HeapWords::new(layout.nr_words() - 1);
    let counts = HeapCounts::new(0);
    assert!(LedgerReader::new(layout, &words, &counts).is_none());
    assert_ne!(LEDGER_MAGIC, 0);
}

/// An owner that may not interrupt other processes any more.
struct FencesOnly;

impl HeavyBarrier for FencesOnly {
    fn heavy(&self) -> Reached {
        let _always = PortableBarrier.heavy();
        Reached::Fenced
    }
}

#[test]
fn a_client_that_no_barrier_reached_holds_all_of_a_drain_until_it_is_gone() {
    let world = World::new();
    let _extent = two_folios(&world);
    let [fenced, asymmetric] = [1, 2].map(|identity| world.client(identity, 1, 8).reader);
    let fenced = fenced.in_mode(BarrierMode::Fenced);
    let ledgers = [(ClientId(1), &fenced), (ClientId(2), &asymmetric)];
    let runs = SortedRuns::new(vec![run(0, PMD), run(2 * PMD, 1)]);
    let mut drain = Drain::start(runs.clone(), &FencesOnly, ledgers);
    let unseen: Vec<_> =
        drain.held().iter().map(|h| (h.client, h.hold.run, h.hold.place)).collect();
    let expected = runs.iter().map(|run| (ClientId(2), run, HoldPlace::Unseen));
    assert_eq!(unseen, expected.collect::<Vec<_>>());
    drain.look_again(|client| ledgers.into_iter().find(|(id, _)| *id == client).map(|(_, l)| l));
    assert!(!drain.is_idle(), "nobody can tell what it holds");
    drain.look_again(|client| (client == ClientId(1)).then_some(&fenced));
    assert!(drain.is_idle());
    assert!(Drain::start(runs, &PortableBarrier, ledgers).is_idle(), "a barrier that reaches all");
}
