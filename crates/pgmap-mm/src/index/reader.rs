//! Looking names up: the reader's side of the index. [`index`](crate::index) has the protocol.

use super::{
    EXTENTS, EXTENTS_PER_MORE, EntryId, ExtentList, FILE_ID, FileEntry, FileId, HASH, INDEX_MAGIC,
    INLINE_EXTENTS, IndexLayout, LEN_BYTES, Lookup, MAGIC, MAX_ATTEMPTS, MAX_CHAIN, MAX_EXTENTS,
    MAX_NAME_BYTES, MORE, MORE_EXTENTS, NAME, NEXT, OneExtentFile, SEED, SEQUENCE, SHAPE,
    STRUCTURE, WORDS_PER_EXTENT, hash_name, name_words,
};
use crate::extent::Extent;
use crate::sync::{Ordering, fence, pause};
use crate::words::ReadWords;

/// How a walk along a chain, or a look at one entry, ended.
enum Walk<T> {
    Found(T),
    End,
    Disturbed,
}

/// A reader's view of the index.
#[derive(Debug)]
pub struct IndexReader<W> {
    pub(super) layout: IndexLayout,
    pub(super) words: W,
    seed: u64,
}

impl<W: ReadWords> IndexReader<W> {
    /// Reads the index in `words`; `None` if there are too few or nobody made an index there.
    #[must_use]
    pub fn new(layout: IndexLayout, words: W) -> Option<Self> {
        if words.nr_words() < layout.nr_words() {
            return None;
        }
        // Acquire: pairs with the Release that made the index; data: the seed.
        if words.load(MAGIC, Ordering::Acquire) != INDEX_MAGIC {
            return None;
        }
        let seed = words.load(SEED, Ordering::Relaxed);
        Some(Self { layout, words, seed })
    }

    /// Looks `name` up without a lock.
    pub fn lookup(&self, name: &[u8]) -> Lookup {
        self.find(name, |slot, at| self.copy_entry(slot, at))
    }

    /// As [`lookup`](Self::lookup), of a file that lies in one extent: found, and `None`, if it
    /// lies in several or in none. A [`FileEntry`] is some cache lines, and to move it costs as
    /// much as to find it.
    #[inline]
    pub fn lookup_one_extent(&self, name: &[u8]) -> Lookup<Option<OneExtentFile>> {
        self.find(name, |slot, at| {
            if self.word(at, FILE_ID) == 0 {
                return Walk::End;
            }
            if self.word(at, SHAPE) >> 16 != 1 {
                return Walk::Found(None);
            }
            let (entry, len_bytes) = (EntryId(slot), self.word(at, LEN_BYTES));
            // What is no extent was never written, or is being changed.
            self.extent_at(at + EXTENTS).map_or(Walk::Disturbed, |extent| {
                Walk::Found(Some(OneExtentFile { entry, len_bytes, extent }))
            })
        })
    }

    /// The number of the file that is called `name`.
    pub fn id_of(&self, name: &[u8]) -> Lookup<FileId> {
        self.find(name, |_, at| match self.word(at, FILE_ID) {
            0 => Walk::End,
            id => Walk::Found(FileId(id)),
        })
    }

    /// Looks `name` up and reads from its slot, and the place of that in the words, what is wanted
    /// of it.
    #[inline(always)]
    fn find<T>(&self, name: &[u8], mut read: impl FnMut(u32, usize) -> Walk<T>) -> Lookup<T> {
        // No name in the index has a NUL, so no name with one is found.
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Lookup::Absent;
        }
        let hash = hash_name(self.seed, name);
        for _ in 0..MAX_ATTEMPTS {
            // Acquire: pairs with the writer's Release at the end of a change of links.
            let structure = self.words.load(STRUCTURE, Ordering::Acquire);
            match self.walk(hash, name, &mut read) {
                Walk::Found(found) => return Lookup::Found(found),
                Walk::Disturbed => {}
                Walk::End => {
                    // Acquire fence: the links were loaded before the second look at the structure
                    // word; pairs with the writer's Release fence.
                    fence(Ordering::Acquire);
                    if structure.is_multiple_of(2)
                        && self.words.load(STRUCTURE, Ordering::Relaxed) == structure
                    {
                        return Lookup::Absent;
                    }
                }
            }
            pause();
        }
        Lookup::Busy
    }

    /// Reads the entry `entry` again, if it is still the file `id`.
    pub fn reread(&self, entry: EntryId, id: FileId) -> Lookup {
        let slot = entry.0;
        if slot == 0 || slot as usize >= self.layout.nr_slots {
            return Lookup::Absent;
        }
        for _ in 0..MAX_ATTEMPTS {
            let is_wanted = |at| self.word(at, FILE_ID) == id.0;
            match self.read_entry(slot, is_wanted, |at| self.copy_entry(slot, at)) {
                Walk::Found(found) => return Lookup::Found(found),
                Walk::End => return Lookup::Absent,
                Walk::Disturbed => pause(),
            }
        }
        Lookup::Busy
    }

    #[inline(always)]
    fn walk<T>(
        &self,
        hash: u64,
        name: &[u8],
        read: &mut impl FnMut(u32, usize) -> Walk<T>,
    ) -> Walk<T> {
        // Acquire: pairs with the Release that links a filled slot; data: the slot's words.
        let mut next = self.words.load(self.layout.bucket(hash), Ordering::Acquire);
        for _ in 0..MAX_CHAIN {
            if next == 0 {
                return Walk::End;
            }
            let Ok(slot) = u32::try_from(next) else { return Walk::Disturbed };
            if slot as usize >= self.layout.nr_slots {
                return Walk::Disturbed;
            }
            let is_wanted = |at| self.is_named(at, hash, name);
            match self.read_entry(slot, is_wanted, |at| read(slot, at)) {
                Walk::End => {}
                // An entry that is being written may be the one that is looked for.
                found_or_disturbed => return found_or_disturbed,
            }
            // Acquire: as for the bucket.
            next = self.words.load(self.layout.slot(slot) + NEXT, Ordering::Acquire);
        }
        Walk::Disturbed
    }

    /// What `read` reads from the entry in `slot`; [`Walk::End`] when it is not the one that is
    /// wanted.
    #[inline(always)]
    fn read_entry<T>(
        &self,
        slot: u32,
        is_wanted: impl Fn(usize) -> bool,
        read: impl FnOnce(usize) -> Walk<T>,
    ) -> Walk<T> {
        let at = self.layout.slot(slot);
        // Acquire: pairs with Release at the end of a write; data: the entry's words.
        let sequence = self.words.load(at + SEQUENCE, Ordering::Acquire);
        if !sequence.is_multiple_of(2) {
            return Walk::Disturbed;
        }
        let found = if is_wanted(at) { read(at) } else { Walk::End };
        // Acquire fence: the words were loaded before the second look at the sequence; pairs with
        // the writer's Release fence after it made the sequence odd.
        fence(Ordering::Acquire);
        if self.words.load(at + SEQUENCE, Ordering::Relaxed) != sequence {
            return Walk::Disturbed;
        }
        found
    }

    #[inline]
    pub(super) fn word(&self, at: usize, offset: usize) -> u64 {
        // Relaxed: the sequence word on both sides orders it.
        self.words.load(at + offset, Ordering::Relaxed)
    }

    #[inline(always)]
    fn is_named(&self, at: usize, hash: u64, name: &[u8]) -> bool {
        self.word(at, HASH) == hash
            && (self.word(at, SHAPE) & 0xffff) as usize == name.len()
            && name_words(name).enumerate().all(|(i, word)| self.word(at, NAME + i) == word)
    }

    /// The file in the entry at `at`. An entry that names a file and cannot be true was
    /// never written so: to go on along the chain would be to read it again for every turn of a
    /// chain that is a circle.
    fn copy_entry(&self, slot: u32, at: usize) -> Walk<FileEntry> {
        let id = FileId(self.word(at, FILE_ID));
        if id.0 == 0 {
            return Walk::End;
        }
        let len_bytes = self.word(at, LEN_BYTES);
        self.copy_extents(at).map_or(Walk::Disturbed, |extents| {
            Walk::Found(FileEntry { entry: EntryId(slot), id, len_bytes, extents })
        })
    }

    fn copy_extents(&self, at: usize) -> Option<ExtentList> {
        let nr_extents = (self.word(at, SHAPE) >> 16) as usize;
        if nr_extents > MAX_EXTENTS {
            return None;
        }
        let mut extents = ExtentList::default();
        for i in 0..nr_extents.min(INLINE_EXTENTS) {
            extents.push(self.extent_at(at + EXTENTS + i * WORDS_PER_EXTENT)?);
        }
        let mut more = self.word(at, MORE);
        while extents.len() < nr_extents {
            let more_slot = u32::try_from(more).ok()?;
            if more_slot == 0 || more_slot as usize >= self.layout.nr_slots {
                return None;
            }
            let base = self.layout.slot(more_slot);
            let left = nr_extents - extents.len();
            for i in 0..left.min(EXTENTS_PER_MORE) {
                extents.push(self.extent_at(base + MORE_EXTENTS + i * WORDS_PER_EXTENT)?);
            }
            more = self.word(base, NEXT);
        }
        Some(extents)
    }

    fn extent_at(&self, at: usize) -> Option<Extent> {
        Extent::from_words([self.word(at, 0), self.word(at, 1), self.word(at, 2)])
    }
}
