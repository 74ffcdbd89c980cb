//! The index: look-ups without a lock against one writer, with the pin's check on top.

use std::sync::Arc;

use loom::thread;
use pgmap_mm::extent::Extent;
use pgmap_mm::index::{
    EntryId, ExtentList, Facts, FileEntry, FileId, IndexLayout, IndexReader, IndexWriter, Lookup,
};
use pgmap_mm::ledger::Agent;
use pgmap_mm::pin::Lane;

use crate::support::{Client, Frame, SparseWords, World, explore, explore_up_to, extent_in_life};

const SEED: u64 = 7;
const HEADER_WORDS: usize = 512;
const SLOT_WORDS: usize = 64;
/// Words of the header that mean something.
const HEADER_USED: usize = 8;
/// Words of an entry with a name of up to 8 bytes and one extent.
const ENTRY_WORDS: [usize; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 40, 41, 42];

type Words = Arc<SparseWords>;

/// Words of an index for `max_files` files of one extent, of which only the used ones exist.
fn index_words(max_files: usize, nr_buckets: usize) -> Words {
    let slots_start = HEADER_WORDS + SLOT_WORDS;
    let slots = (1..=max_files + 1)
        .flat_map(|slot| ENTRY_WORDS.map(|word| slots_start + slot * SLOT_WORDS + word));
    let buckets = HEADER_WORDS..HEADER_WORDS + nr_buckets;
    let nr_words = IndexLayout::for_files(max_files).nr_words();
    SparseWords::new(nr_words, (0..HEADER_USED).chain(buckets).chain(slots))
}

fn index_in(max_files: usize, words: &Words) -> (IndexWriter<Words>, IndexReader<Words>) {
    let layout = IndexLayout::for_files(max_files);
    let writer = IndexWriter::new(layout, Arc::clone(words), SEED).unwrap();
    (writer, IndexReader::new(layout, Arc::clone(words)).unwrap())
}

/// An index with one bucket.
fn index() -> (IndexWriter<Words>, IndexReader<Words>) {
    index_in(1, &index_words(1, 1))
}

/// How many of two buckets have a chain.
fn nr_chains(words: &Words) -> usize {
    [0, 1].iter().filter(|&&bucket| words.peek(HEADER_WORDS + bucket) != 0).count()
}

fn list(extent: Extent) -> ExtentList {
    [extent].into_iter().collect()
}

fn insert(writer: &mut IndexWriter<Words>, name: &[u8], id: u64) -> EntryId {
    writer.insert(name, Facts::new(FileId(id), len_of(id)), &list(extent_in_life(0, id))).unwrap()
}

/// Each file's length tells its id, so that a mixed picture shows.
fn len_of(id: u64) -> u64 {
    id * 1000
}

/// Asserts that `found` is one of the files `ids` and a picture of that file alone.
fn assert_whole(found: &FileEntry, ids: &[u64]) {
    let id = found.id.0;
    assert!(ids.contains(&id), "{found:?}");
    assert_eq!(found.len_bytes, len_of(id), "torn: {found:?}");
    assert_eq!(found.extents, list(extent_in_life(0, id)), "torn: {found:?}");
}

/// File 1 is unlinked, its frame drained and reused for file 2 of the same name.
#[test]
fn loom_a_reader_never_holds_the_new_file_believing_it_is_the_old() {
    explore_up_to(2, || {
        let world = World::new();
        let Client { pinner, reader: ledger, .. } = world.client(1, 1, 1);
        let (mut writer, reader) = index();
        let frame = Frame::new(1);
        let entry = insert(&mut writer, b"a", 1);
        let parts = pinner.lane().unwrap().into_parts();

        let client = {
            let frame = Arc::clone(&frame);
            thread::spawn(move || {
                let lane = Lane::from_parts(&pinner, parts).unwrap();
                let Lookup::Found(found) = reader.lookup(b"a") else { return };
                assert_whole(&found, &[1, 2]);
                let extent = found.extents.first().unwrap();
                if let Ok(_pin) = lane.pin(extent, extent.run, Agent::Cpu) {
                    assert_eq!(frame.read_while_held(), found.id.0, "another file's bytes");
                }
            })
        };
        writer.remove(entry, b"a");
        world.kill(0);
        world.drain(&[0], &[&ledger]);
        frame.overwrite(2);
        world.set_life(0, extent_in_life(0, 2).life);
        insert(&mut writer, b"a", 2);
        client.join().unwrap();
    });
}

#[test]
fn loom_an_update_is_seen_whole_or_not_at_all() {
    explore_up_to(3, || {
        let (mut writer, reader) = index();
        let entry = insert(&mut writer, b"a", 1);
        let client = thread::spawn(move || {
            let Lookup::Found(found) = reader.lookup(b"a") else {
                panic!("a name that exists was not found");
            };
            assert_whole(&found, &[1, 2]);
        });
        let extents = list(extent_in_life(0, 2));
        writer.update(entry, b"a", Facts::new(FileId(2), len_of(2)), &extents).unwrap();
        client.join().unwrap();
    });
}

#[test]
fn loom_a_look_up_of_one_extent_sees_an_update_whole_or_not_at_all() {
    explore_up_to(3, || {
        let (mut writer, reader) = index();
        let entry = insert(&mut writer, b"a", 1);
        let client = thread::spawn(move || {
            let Lookup::Found(Some(found)) = reader.lookup_one_extent(b"a") else {
                panic!("a name that exists was not found");
            };
            let is_file =
                |id| (found.len_bytes, found.extent) == (len_of(id), extent_in_life(0, id));
            assert!(is_file(1) || is_file(2), "torn: {found:?}");
        });
        let extents = list(extent_in_life(0, 2));
        writer.update(entry, b"a", Facts::new(FileId(2), len_of(2)), &extents).unwrap();
        client.join().unwrap();
    });
}

#[test]
fn loom_a_renamed_file_is_found_under_one_of_its_names() {
    explore_up_to(3, || rename_under_a_reader(1, b"old", b"new"));
}

#[test]
fn loom_a_file_renamed_into_another_chain_is_found_under_one_of_its_names() {
    explore_up_to(3, || rename_under_a_reader(2, STAYS, OTHER_CHAIN));
}

/// Names are looked up old first: a reader that asks for the new one first may miss both.
fn rename_under_a_reader(nr_chains: usize, old: &'static [u8], new: &'static [u8]) {
    let (mut writer, reader) = index_in(nr_chains, &index_words(nr_chains, nr_chains));
    let entry = insert(&mut writer, old, 1);
    let client = thread::spawn(move || {
        let found = match reader.lookup(old) {
            Lookup::Found(found) => found,
            Lookup::Absent => match reader.lookup(new) {
                Lookup::Found(found) => found,
                other => panic!("neither name was found: {other:?}"),
            },
            Lookup::Busy => panic!("64 attempts against one rename"),
        };
        assert_whole(&found, &[1]);
    });
    let extents = list(extent_in_life(0, 1));
    writer.rename(entry, (old, new), Facts::new(FileId(1), len_of(1)), &extents).unwrap();
    client.join().unwrap();
}

/// A reader on its way through a slot is led into another chain when the slot is used again there.
/// It must not believe that its own chain ended.
#[test]
fn loom_a_walk_led_astray_into_another_chain_starts_again() {
    explore_up_to(4, || {
        let words = index_words(2, 2);
        let (mut writer, reader) = index_in(2, &words);
        insert(&mut writer, STAYS, 1);
        let before = insert(&mut writer, SAME_CHAIN, 2);
        assert_eq!(nr_chains(&words), 1);
        let client = thread::spawn(move || {
            let Lookup::Found(found) = reader.lookup(STAYS) else {
                panic!("a name that exists was not found");
            };
            assert_whole(&found, &[1]);
        });
        writer.remove(before, SAME_CHAIN);
        let moved = insert(&mut writer, OTHER_CHAIN, 3);
        assert_eq!(moved, before, "the slot is used again");
        assert_eq!(nr_chains(&words), 2);
        client.join().unwrap();
    });
}

/// A slot linked at the head of a chain leads on to the rest of it from the first moment.
#[test]
fn loom_an_insert_never_hides_the_names_behind_it() {
    explore(|| {
        let words = index_words(2, 2);
        let (mut writer, reader) = index_in(2, &words);
        insert(&mut writer, STAYS, 1);
        let client = thread::spawn(move || {
            let Lookup::Found(found) = reader.lookup(STAYS) else {
                panic!("a name that exists was not found");
            };
            assert_whole(&found, &[1]);
        });
        insert(&mut writer, SAME_CHAIN, 2);
        assert_eq!(nr_chains(&words), 1);
        client.join().unwrap();
    });
}

const STAYS: &[u8] = b"a";
const SAME_CHAIN: &[u8] = b"b";
const OTHER_CHAIN: &[u8] = b"c";

/// An entry is read again by number while its slot is given to another file.
#[test]
fn loom_a_reread_entry_is_the_same_file_or_none() {
    explore_up_to(3, || {
        let (mut writer, reader) = index();
        let entry = insert(&mut writer, b"a", 1);
        let client = thread::spawn(move || match reader.reread(entry, FileId(1)) {
            Lookup::Found(found) => assert_whole(&found, &[1]),
            Lookup::Absent => {}
            Lookup::Busy => panic!("64 attempts against one write"),
        });
        writer.remove(entry, b"a");
        insert(&mut writer, b"b", 2);
        client.join().unwrap();
    });
}

#[test]
fn loom_a_file_that_was_whole_before_it_was_linked_is_found_whole() {
    explore(|| {
        let world = World::new();
        let Client { pinner, .. } = world.client(1, 1, 1);
        let (mut writer, reader) = index();
        let frame = Frame::new(0);
        let parts = pinner.lane().unwrap().into_parts();
        let client = {
            let frame = Arc::clone(&frame);
            thread::spawn(move || {
                let lane = Lane::from_parts(&pinner, parts).unwrap();
                let Lookup::Found(found) = reader.lookup(b"a") else { return };
                assert_whole(&found, &[2]);
                let extent = found.extents.first().unwrap();
                let pin = lane.pin(extent, extent.run, Agent::Cpu);
                assert!(pin.is_ok(), "published before it was linked");
                assert_eq!(frame.read_while_held(), 2, "the writer's bytes");
            })
        };
        frame.overwrite(2);
        world.set_life(0, extent_in_life(0, 2).life);
        insert(&mut writer, b"a", 2);
        client.join().unwrap();
    });
}
