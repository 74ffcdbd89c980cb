//! The index against a map from names to files.

use std::collections::BTreeMap;

use pgmap_mm::extent::Extent;
use pgmap_mm::index::{
    EntryId, ExtentList, Facts, FileId, IndexLayout, IndexReader, IndexWriter, Lookup,
    MAX_METADATA_BYTES, OneExtentFile,
};
use pgmap_mm::level::Level;
use pgmap_mm::words::HeapWords;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::config;
use crate::heap_world::{live, run};

/// Few buckets, so that names share chains, and few slots, so that they run out.
const MAX_FILES: usize = 10;
const NR_SLOTS: usize = MAX_FILES + MAX_FILES / 8 + 2 - 1;
const NR_NAMES: usize = 14;
const MAX_NR_EXTENTS: usize = 40;

#[derive(Clone, Debug)]
enum Step {
    /// Creates the file if there is none of that name, else writes it again.
    Write {
        name: usize,
        nr_extents: usize,
    },
    Rename {
        from: usize,
        to: usize,
    },
    Remove {
        name: usize,
    },
    /// The owner dies and its successor fills the index again.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0..NR_NAMES;
    let nr_extents = prop_oneof![2 => 0usize..=8, 1 => 9..=MAX_NR_EXTENTS];
    prop_oneof![
        8 => (name(), nr_extents).prop_map(|(name, nr_extents)| Step::Write { name, nr_extents }),
        3 => (name(), name()).prop_map(|(from, to)| Step::Rename { from, to }),
        4 => name().prop_map(|name| Step::Remove { name }),
        1 => Just(Step::Reopen),
    ]
}

/// Names of 1 to 255 bytes, some of which begin alike.
fn name(number: usize) -> Vec<u8> {
    let len = [1, 7, 8, 9, 16, 100, 255][number % 7];
    let mut name = vec![b'n'; len];
    name[len - 1] = b'a' + number as u8;
    name
}

#[derive(Clone, Debug)]
struct File {
    entry: EntryId,
    id: FileId,
    len_bytes: u64,
    extents: ExtentList,
    user: Vec<u8>,
    checksum: Option<u32>,
}

impl File {
    fn facts(&self) -> Facts<'_> {
        let Self { id, len_bytes, ref user, checksum, .. } = *self;
        Facts { id, len_bytes, user, checksum }
    }
}

fn slots_of(nr_extents: usize) -> usize {
    1 + nr_extents.saturating_sub(8).div_ceil(20)
}

struct History<'w> {
    layout: IndexLayout,
    words: &'w HeapWords,
    writer: IndexWriter<&'w HeapWords>,
    reader: IndexReader<&'w HeapWords>,
    files: BTreeMap<usize, File>,
    gone: Vec<(EntryId, FileId)>,
    next: u64,
}

impl<'w> History<'w> {
    fn new(layout: IndexLayout, words: &'w HeapWords) -> Self {
        let writer = IndexWriter::new(layout, words, 7).unwrap();
        let reader = IndexReader::new(layout, words).unwrap();
        Self { layout, words, writer, reader, files: BTreeMap::new(), gone: vec![], next: 1 }
    }

    fn nr_free_slots(&self) -> usize {
        NR_SLOTS - self.files.values().map(|file| slots_of(file.extents.len())).sum::<usize>()
    }

    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Write { name, nr_extents } => self.write(name, nr_extents),
            Step::Rename { from, to } => self.rename(from, to),
            Step::Remove { name } => {
                if let Some(file) = self.files.remove(&name) {
                    self.writer.remove(file.entry, &self::name(name));
                    self.gone.push((file.entry, file.id));
                }
                Ok(())
            }
            Step::Reopen => self.reopen(),
        }
    }

    fn write(&mut self, number: usize, nr_extents: usize) -> Result<(), TestCaseError> {
        let first = self.next;
        self.next += 100;
        let extent = |i| Extent::new(run(first + i, 1), Level::Pte, live(first + i)).unwrap();
        let extents: ExtentList = (0..nr_extents as u64).map(extent).collect();
        let (name, free) = (name(number), self.nr_free_slots());
        let len_bytes = first * 3;
        let user = vec![first as u8; first as usize / 100 * 37 % (MAX_METADATA_BYTES + 1)];
        let checksum = (first % 300 != 1).then_some(first as u32 * 77);
        if let Some(file) = self.files.get_mut(&number) {
            let facts = Facts { id: file.id, len_bytes, user: &user, checksum };
            let wrote = self.writer.update(file.entry, &name, facts, &extents);
            // The slots that it has are written over.
            let had = slots_of(file.extents.len());
            prop_assert_eq!(wrote.is_ok(), slots_of(nr_extents) <= free + had);
            if wrote.is_ok() {
                (file.len_bytes, file.extents) = (len_bytes, extents);
                (file.user, file.checksum) = (user, checksum);
            }
        } else {
            let id = FileId(first % 16 + 16 * (first / 100) + 1);
            let facts = Facts { id, len_bytes, user: &user, checksum };
            let wrote = self.writer.insert(&name, facts, &extents);
            prop_assert_eq!(wrote.is_ok(), slots_of(nr_extents) <= free);
            if let Ok(entry) = wrote {
                self.files.insert(number, File { entry, id, len_bytes, extents, user, checksum });
            }
        }
        Ok(())
    }

    fn rename(&mut self, from: usize, to: usize) -> Result<(), TestCaseError> {
        if self.files.contains_key(&to) {
            return Ok(());
        }
        let free = self.nr_free_slots();
        let Some(file) = self.files.get(&from).cloned() else { return Ok(()) };
        let names = (&*name(from), &*name(to));
        let File { entry, id, .. } = file;
        let renamed = self.writer.rename(entry, names, file.facts(), &file.extents);
        prop_assert_eq!(renamed.is_ok(), slots_of(file.extents.len()) <= free);
        if let Ok(renamed) = renamed {
            self.files.remove(&from);
            self.files.insert(to, File { entry: renamed, ..file });
            self.gone.push((entry, id));
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), TestCaseError> {
        self.writer = IndexWriter::reopen(self.layout, self.words, 8).unwrap();
        self.gone.extend(self.files.values().map(|file| (file.entry, file.id)));
        for number in 0..NR_NAMES {
            prop_assert_eq!(self.reader.lookup(&name(number)), Lookup::Busy);
        }
        for (&number, file) in &mut self.files {
            let entry = self.writer.insert(&name(number), file.facts(), &file.extents);
            file.entry = entry.unwrap();
        }
        self.writer.finish_reopening();
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for number in 0..NR_NAMES {
            let looked_up = self.reader.lookup(&name(number));
            let number_of = self.reader.id_of(&name(number));
            let one_extent = self.reader.lookup_one_extent(&name(number));
            let Some(file) = self.files.get(&number) else {
                prop_assert_eq!(looked_up, Lookup::Absent, "name {}", number);
                prop_assert_eq!(number_of, Lookup::Absent);
                prop_assert_eq!(one_extent, Lookup::Absent);
                continue;
            };
            prop_assert_eq!(number_of, Lookup::Found(file.id));
            let only = file.extents.only().map(|&extent| OneExtentFile {
                entry: file.entry,
                len_bytes: file.len_bytes,
                extent,
            });
            prop_assert_eq!(one_extent, Lookup::Found(only));
            let reread = self.reader.reread(file.entry, file.id);
            prop_assert_eq!(&reread, &looked_up);
            let Lookup::Found(found) = looked_up else {
                return Err(TestCaseError::fail(format!("name {number}: {looked_up:?}")));
            };
            prop_assert_eq!((found.entry, found.id), (file.entry, file.id));
            prop_assert_eq!(found.len_bytes, file.len_bytes);
            let metadata = Some((file.user.clone(), file.checksum));
            prop_assert_eq!(self.reader.metadata(file.entry, file.id), metadata);
            prop_assert_eq!(&found.extents, &file.extents);
        }
        for &(entry, id) in &self.gone {
            if !self.files.values().any(|file| (file.entry, file.id) == (entry, id)) {
                prop_assert_eq!(self.reader.reread(entry, id), Lookup::Absent);
                prop_assert_eq!(self.reader.metadata(entry, id), None);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn the_index_says_what_a_map_says(steps in prop::collection::vec(step(), 1..60)) {
        let layout = IndexLayout::for_files(MAX_FILES);
        let words = HeapWords::new(layout.nr_words());
        let mut history = History::new(layout, &words);
        for step in &steps {
            history.apply(step)?;
            history.check()?;
        }
    }
}
