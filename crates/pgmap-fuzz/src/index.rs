//! The index, as clients read it and as the next owner takes it over: any words at all.

use pgmap::mm::descriptor::Descriptor;
use pgmap::mm::extent::Extent;
use pgmap::mm::index::{
    EntryId, ExtentList, Facts, FileEntry, FileId, IndexLayout, IndexReader, IndexWriter, Lookup,
    MAX_EXTENTS, MAX_METADATA_BYTES,
};
use pgmap::mm::pfn::PFN_BITS;
use pgmap::mm::words::ReadWords;

use crate::input::Input;
use crate::words::CountedWords;

const MAX_FILES: usize = 64;
const SEED: u64 = 0x9e37_79b9;
/// What one look-up may load: 64 attempts along a chain of 4,096 entries, each of which may have a
/// name that is right up to its last word, and one entry with all its extents.
const MOST_LOADS: u64 = 64 * (4096 * 40 + 2 * 3 * MAX_EXTENTS as u64);
/// What one look at a file's metadata may load.
const MOST_METADATA_LOADS: u64 = 64 * 40;
const NAMES: [&[u8]; 5] = [b"a", b"bb", b"a name of more than eight bytes", b"many", b"\xff\x01"];

/// An index of a few files, or none, in which then some words are changed: a byte for what is there
/// before, then for each word its number (two bytes) and its value (eight).
pub fn index(bytes: &[u8]) {
    let layout = IndexLayout::for_files(MAX_FILES);
    let words = CountedWords::new(layout.nr_words());
    let mut input = Input::new(bytes);
    let kind = input.byte();
    if let Some(writer) = IndexWriter::new(layout, &words, SEED).filter(|_| kind & 1 != 0) {
        fill(writer, kind);
    }
    while !input.is_empty() {
        let at = usize::from(input.number16());
        words.set(at % words.nr_words(), input.number64());
    }
    words.take_nr_loads();
    let Some(reader) = IndexReader::new(layout, &words) else { return };
    for name in NAMES.iter().chain(&[bytes]) {
        check(&reader.lookup(name), &words);
        let _number = reader.id_of(name);
        assert!(words.take_nr_loads() <= MOST_LOADS);
        if let Lookup::Found(Some(file)) = reader.lookup_one_extent(name) {
            check_extent(&file.extent);
        }
        assert!(words.take_nr_loads() <= MOST_LOADS);
    }
    for number in [0, 1, 2, 3, 70, 1 << 20, u32::MAX] {
        for id in [0, 1, 2, 4, u64::MAX] {
            check(&reader.reread(EntryId::from_number(number), FileId(id)), &words);
            if let Some((user, _)) = reader.metadata(EntryId::from_number(number), FileId(id)) {
                assert!(user.len() <= MAX_METADATA_BYTES);
            }
            assert!(words.take_nr_loads() <= MOST_METADATA_LOADS);
        }
    }
    let _epoch = reader.detach_epoch();
    take_over(layout, &words, &reader);
}

/// A few files, one of them of many extents.
fn fill(mut writer: IndexWriter<&CountedWords>, kind: u8) {
    for (number, name) in NAMES.into_iter().enumerate() {
        let nr_extents = if name == b"many" { usize::from(kind >> 1) * 4 } else { 1 };
        let user = &name[..usize::from(kind) % (name.len() + 1)];
        let facts = Facts { user, ..Facts::new(FileId(number as u64 + 1), 4096) };
        let _full = writer.insert(name, facts, &extents(nr_extents));
    }
    writer.remove(EntryId::from_number(2), NAMES[1]);
}

fn extents(nr_extents: usize) -> ExtentList {
    let word = Descriptor::from_bits(0x1234);
    let run = |number: usize| pgmap::mm::pfn::PfnRange::new(number as u64 * 2, 1);
    let extent = |run| Extent::new(run, pgmap::mm::level::Level::Pte, word);
    (0..nr_extents).filter_map(run).filter_map(extent).collect()
}

fn check(found: &Lookup, words: &CountedWords) {
    let nr_loads = words.take_nr_loads();
    assert!(nr_loads <= MOST_LOADS, "{nr_loads} loads");
    if let Lookup::Found(entry) = found {
        check_entry(entry);
    }
}

fn check_entry(entry: &FileEntry) {
    assert!(entry.extents.len() <= MAX_EXTENTS);
    assert_ne!(entry.id, FileId(0));
    entry.extents.iter().for_each(check_extent);
}

fn check_extent(extent: &Extent) {
    assert!(extent.run.nr_pages() > 0 && extent.run.end() <= 1 << PFN_BITS);
    assert!(extent.first().is_aligned(extent.head_level));
    assert_eq!(Extent::from_words(extent.to_words()), Some(*extent));
}

/// Whatever the words said: the next owner makes an index of them that is right.
fn take_over(layout: IndexLayout, words: &CountedWords, reader: &IndexReader<&CountedWords>) {
    let Some(mut writer) = IndexWriter::reopen(layout, words, SEED) else { return };
    let mut listed = Vec::new();
    for (number, name) in NAMES.into_iter().enumerate() {
        let extents = extents(1 + number * 20);
        let id = FileId(100 + number as u64);
        let facts = Facts { user: name, checksum: Some(7), ..Facts::new(id, 4096) };
        if let Ok(entry) = writer.insert(name, facts, &extents) {
            listed.push((name, id, entry, extents));
        }
    }
    if let Some((name, id, entry, extents)) = listed.first_mut() {
        *extents = self::extents(100);
        if writer.update(*entry, name, Facts::new(*id, 8192), extents).is_err() {
            *extents = self::extents(1);
        }
    }
    let removed = (listed.len() > 3).then(|| listed.remove(1));
    if let Some((name, _, entry, _)) = &removed {
        writer.remove(*entry, name);
    }
    writer.finish_reopening();
    for (name, id, entry, extents) in listed {
        let Lookup::Found(found) = reader.lookup(name) else { panic!("{name:?} is lost") };
        assert_eq!((found.id, found.entry, &found.extents), (id, entry, &extents));
        let metadata = reader.metadata(entry, id);
        assert!(metadata.is_some_and(|(user, _)| user == name || user.is_empty()));
    }
    if let Some((name, ..)) = removed {
        assert_eq!(reader.lookup(name), Lookup::Absent);
    }
    words.take_nr_loads();
}
