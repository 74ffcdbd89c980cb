//! Writing entries and chains: the owner's side of the index. [`index`](crate::index) has the
//! protocol.

use super::{
    EXTENTS, EXTENTS_PER_MORE, EntryId, ExtentList, FILE_ID, Facts, HASH, INDEX_MAGIC,
    INLINE_EXTENTS, IndexFull, IndexLayout, LEN_BYTES, MAGIC, MAX_EXTENTS, MAX_MORE_SLOTS, MORE,
    MORE_EXTENTS, NAME, NEXT, SEED, SEQUENCE, SHAPE, STRUCTURE, WORDS_PER_EXTENT, hash_name,
    name_words,
};
use crate::sync::{Ordering, fence};
use crate::words::WriteWords;

/// The owner's side of the index.
#[derive(Debug)]
pub struct IndexWriter<W> {
    pub(super) layout: IndexLayout,
    pub(super) words: W,
    pub(super) seed: u64,
    /// Slots below this were used at some time.
    pub(super) high: u32,
    pub(super) free: Vec<u32>,
}

impl<W: WriteWords> IndexWriter<W> {
    /// Makes an empty index in all-zero `words`; `None` if there are too few.
    #[must_use]
    pub fn new(layout: IndexLayout, words: W, seed: u64) -> Option<Self> {
        if words.nr_words() < layout.nr_words() {
            return None;
        }
        words.store(SEED, seed, Ordering::Relaxed);
        // Release: pairs with Acquire in `IndexReader::new`; data: the seed.
        words.store(MAGIC, INDEX_MAGIC, Ordering::Release);
        Some(Self { layout, words, seed, high: 1, free: Vec::new() })
    }

    /// Adds a file. The caller knows that no file has this valid name.
    ///
    /// # Errors
    /// [`IndexFull`]; nothing is changed then.
    pub fn insert(
        &mut self,
        name: &[u8],
        facts: Facts<'_>,
        extents: &ExtentList,
    ) -> Result<EntryId, IndexFull> {
        let slot = self.take_slot()?;
        if let Err(full) = self.write_entry(slot, name, facts, extents) {
            self.free.push(slot);
            return Err(full);
        }
        let at = self.layout.slot(slot);
        let bucket = self.layout.bucket(hash_name(self.seed, name));
        let head = self.words.load(bucket, Ordering::Relaxed);
        self.words.store(at + NEXT, head, Ordering::Relaxed);
        // Release: links a filled slot; pairs with Acquire in `walk`.
        self.words.store(bucket, u64::from(slot), Ordering::Release);
        Ok(EntryId(slot))
    }

    /// Writes what is said of a file again.
    ///
    /// # Errors
    /// [`IndexFull`], only where the file has more extents than before; nothing is changed then.
    pub fn update(
        &mut self,
        entry: EntryId,
        name: &[u8],
        facts: Facts<'_>,
        extents: &ExtentList,
    ) -> Result<(), IndexFull> {
        self.write_entry(entry.0, name, facts, extents)
    }

    /// Gives a file another name: links it there, then unlinks it here. Returns its new entry.
    ///
    /// # Errors
    /// [`IndexFull`]; nothing is changed then.
    pub fn rename(
        &mut self,
        entry: EntryId,
        names: (&[u8], &[u8]),
        facts: Facts<'_>,
        extents: &ExtentList,
    ) -> Result<EntryId, IndexFull> {
        let renamed = self.insert(names.1, facts, extents)?;
        self.remove(entry, names.0);
        Ok(renamed)
    }

    /// Removes a file.
    pub fn remove(&mut self, entry: EntryId, name: &[u8]) {
        let at = self.layout.slot(entry.0);
        self.unlink(entry.0, name);
        let more = self.more_slots(at);
        let sequence = self.begin(at);
        self.words.store(at + FILE_ID, 0, Ordering::Relaxed);
        self.words.store(at + HASH, 0, Ordering::Relaxed);
        self.words.store(at + SHAPE, 0, Ordering::Relaxed);
        self.words.store(at + MORE, 0, Ordering::Relaxed);
        self.end(at, sequence);
        self.free.extend(more);
        self.free.push(entry.0);
    }

    /// Makes the sequence odd and returns it.
    pub(super) fn begin(&self, at: usize) -> u64 {
        let sequence = self.words.load(at + SEQUENCE, Ordering::Relaxed) | 1;
        self.words.store(at + SEQUENCE, sequence, Ordering::Relaxed);
        // Release: the words change after the sequence is odd; pairs with the reader's fence.
        fence(Ordering::Release);
        sequence
    }

    pub(super) fn end(&self, at: usize, sequence: u64) {
        // Release: the words are whole; pairs with the reader's Acquire.
        self.words.store(at + SEQUENCE, sequence.wrapping_add(1), Ordering::Release);
    }

    fn write_entry(
        &mut self,
        slot: u32,
        name: &[u8],
        facts: Facts<'_>,
        extents: &ExtentList,
    ) -> Result<(), IndexFull> {
        if extents.len() > MAX_EXTENTS {
            return Err(self.full());
        }
        self.reserve_metadata(slot, facts.user)?;
        let at = self.layout.slot(slot);
        let nr_more = extents.len().saturating_sub(INLINE_EXTENTS).div_ceil(EXTENTS_PER_MORE);
        // The slots it has are written over while the sequence is odd, so an entry that does not
        // grow never lacks room.
        let mut more = self.more_slots(at);
        let nr_had = more.len();
        while more.len() < nr_more {
            match self.take_slot() {
                Ok(slot) => more.push(slot),
                Err(full) => {
                    self.free.extend(more.drain(nr_had..));
                    return Err(full);
                }
            }
        }
        let surplus = more.split_off(nr_more);
        let sequence = self.begin(at);
        self.words.store(at + HASH, hash_name(self.seed, name), Ordering::Relaxed);
        self.words.store(at + FILE_ID, facts.id.0, Ordering::Relaxed);
        self.words.store(at + LEN_BYTES, facts.len_bytes, Ordering::Relaxed);
        self.write_metadata(slot, facts);
        let shape = (extents.len() as u64) << 16 | name.len() as u64;
        self.words.store(at + SHAPE, shape, Ordering::Relaxed);
        let first_more = more.first().copied().unwrap_or(0);
        self.words.store(at + MORE, u64::from(first_more), Ordering::Relaxed);
        for (i, word) in name_words(name).enumerate() {
            self.words.store(at + NAME + i, word, Ordering::Relaxed);
        }
        self.write_extents(at, &more, extents);
        self.end(at, sequence);
        self.free.extend(surplus);
        Ok(())
    }

    fn write_extents(&self, at: usize, more_slots: &[u32], extents: &ExtentList) {
        for (i, extent) in extents.iter().enumerate() {
            let place = if i < INLINE_EXTENTS {
                at + EXTENTS + i * WORDS_PER_EXTENT
            } else {
                let further = i - INLINE_EXTENTS;
                self.layout.slot(more_slots[further / EXTENTS_PER_MORE])
                    + MORE_EXTENTS
                    + further % EXTENTS_PER_MORE * WORDS_PER_EXTENT
            };
            for (j, word) in extent.to_words().into_iter().enumerate() {
                self.words.store(place + j, word, Ordering::Relaxed);
            }
        }
        for (i, &more) in more_slots.iter().enumerate() {
            let next = more_slots.get(i + 1).copied().unwrap_or(0);
            let link = self.layout.slot(more) + NEXT;
            self.words.store(link, u64::from(next), Ordering::Relaxed);
        }
    }

    /// The slots of further extents of the entry at `at`; `None` if there is no file in it, for
    /// then the slot may last have held further extents itself.
    fn more_slots(&self, at: usize) -> Vec<u32> {
        let mut slots = Vec::new();
        if self.words.load(at + FILE_ID, Ordering::Relaxed) == 0 {
            return slots;
        }
        let mut more = self.words.load(at + MORE, Ordering::Relaxed);
        while let Ok(slot @ 1..) = u32::try_from(more)
            && slots.len() < MAX_MORE_SLOTS
            && (slot as usize) < self.layout.nr_slots
        {
            slots.push(slot);
            more = self.words.load(self.layout.slot(slot) + NEXT, Ordering::Relaxed);
        }
        slots
    }

    fn unlink(&self, slot: u32, name: &[u8]) {
        let bucket = self.layout.bucket(hash_name(self.seed, name));
        let next = self.words.load(self.layout.slot(slot) + NEXT, Ordering::Relaxed);
        let structure = self.words.load(STRUCTURE, Ordering::Relaxed);
        // It is odd already while an index is being reopened, and stays odd then.
        self.words.store(STRUCTURE, structure | 1, Ordering::Relaxed);
        // Release: links change after the structure word is odd; pairs with the reader's fence.
        fence(Ordering::Release);
        let mut link = bucket;
        for _ in 0..self.layout.nr_slots {
            let here = self.words.load(link, Ordering::Relaxed);
            if here == u64::from(slot) {
                self.words.store(link, next, Ordering::Release);
                break;
            }
            match u32::try_from(here) {
                Ok(other @ 1..) if (other as usize) < self.layout.nr_slots => {
                    link = self.layout.slot(other) + NEXT;
                }
                _ => break,
            }
        }
        // Release: links are whole; pairs with the reader's Acquire.
        self.words.store(STRUCTURE, structure.wrapping_add(2), Ordering::Release);
    }
}
