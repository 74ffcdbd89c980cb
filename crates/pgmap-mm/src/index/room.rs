//! Room in the index, and taking it over from an owner that was killed at any step.

use core::ops::Range;

use super::{
    CLOSED, EXTENTS_PER_MORE, FILE_ID, HASH, HEADER_WORDS, HIGH, INDEX_MAGIC, INLINE_EXTENTS,
    IndexLayout, IndexWriter, MAGIC, MORE, SEED, SHAPE, SLOT_WORDS, STRUCTURE,
};
use crate::sync::{Ordering, fence};
use crate::words::WriteWords;

/// The index has no room for another file, or for so many extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexFull {
    /// Slots in all.
    pub nr_slots: usize,
    /// Whether it is not slots that are missing, but memory for them.
    pub lacks_memory: bool,
}

impl IndexLayout {
    /// Words that a look-up reads whatever is in the index.
    #[must_use]
    pub const fn always_used(&self) -> Range<usize> {
        0..self.slots_start()
    }
}

impl<W: WriteWords> IndexWriter<W> {
    /// Slots that a file of `nr_extents` extents takes.
    #[must_use]
    pub fn slots_for(&self, nr_extents: usize) -> usize {
        1 + nr_extents.saturating_sub(INLINE_EXTENTS).div_ceil(EXTENTS_PER_MORE)
    }

    /// Whether `nr_slots` more slots can be had. Takes memory for them.
    ///
    /// # Errors
    /// [`IndexFull`] when not.
    pub fn check_room(&self, nr_slots: usize) -> Result<(), IndexFull> {
        let left = self.layout.nr_slots - self.high as usize + self.free.len();
        if nr_slots > left {
            return Err(self.full());
        }
        self.reserve_slots(nr_slots.saturating_sub(self.free.len()))
    }

    /// A slot for an entry or for further extents.
    pub(super) fn take_slot(&mut self) -> Result<u32, IndexFull> {
        if let Some(slot) = self.free.pop() {
            return Ok(slot);
        }
        if self.high as usize >= self.layout.nr_slots {
            return Err(self.full());
        }
        self.reserve_slots(1)?;
        // Nothing is there, unless the words were damaged before this owner took them over.
        let file_id = self.layout.slot(self.high) + FILE_ID;
        self.words.store(file_id, 0, Ordering::Relaxed);
        self.high += 1;
        // Relaxed: read by the owner's successor only.
        self.words.store(HIGH, u64::from(self.high), Ordering::Relaxed);
        Ok(self.high - 1)
    }

    /// Takes memory for the next `nr_slots` slots that were never used.
    pub(super) fn reserve_slots(&self, nr_slots: usize) -> Result<(), IndexFull> {
        let words = |slot: usize| self.layout.slots_start() + slot * SLOT_WORDS;
        let high = self.high as usize;
        if self.words.reserve(words(high)..words(high + nr_slots)) {
            return Ok(());
        }
        Err(IndexFull { lacks_memory: true, ..self.full() })
    }

    /// The error where there is no slot left.
    pub(super) const fn full(&self) -> IndexFull {
        IndexFull { nr_slots: self.layout.nr_slots, lacks_memory: false }
    }

    /// Takes over an index that readers may be using and whose writer is gone: empties it. Until
    /// [`finish_reopening`](Self::finish_reopening), readers who miss a name are notified that the
    /// index is busy, not that the name is gone. An index that nobody made is made.
    #[must_use]
    pub fn reopen(layout: IndexLayout, words: W, seed: u64) -> Option<Self> {
        if words.nr_words() < layout.nr_words() {
            return None;
        }
        if words.load(MAGIC, Ordering::Relaxed) != INDEX_MAGIC {
            return Self::new(layout, words, seed);
        }
        words.store(CLOSED, 0, Ordering::Relaxed);
        let structure = words.load(STRUCTURE, Ordering::Relaxed) | 1;
        words.store(STRUCTURE, structure, Ordering::Relaxed);
        // Release: links and entries change after the structure word is odd; pairs with the
        // readers' Acquire fence.
        fence(Ordering::Release);
        for bucket in HEADER_WORDS..HEADER_WORDS + layout.nr_buckets {
            words.store(bucket, 0, Ordering::Relaxed);
        }
        let high = words.load(HIGH, Ordering::Relaxed).clamp(1, layout.nr_slots as u64) as u32;
        if !words.reserve(0..layout.slot(high)) {
            return None;
        }
        // The readers' copies of the seed stay right.
        let seed = words.load(SEED, Ordering::Relaxed);
        let free = (1..high).rev().collect();
        let writer = Self { layout, words, seed, high, free };
        for slot in 1..high {
            let at = writer.layout.slot(slot);
            let sequence = writer.begin(at);
            for word in [FILE_ID, HASH, SHAPE, MORE] {
                writer.words.store(at + word, 0, Ordering::Relaxed);
            }
            writer.end(at, sequence);
        }
        Some(writer)
    }

    /// Ends a [`reopen`](Self::reopen): what is not in the index now does not exist.
    pub fn finish_reopening(&self) {
        let structure = self.words.load(STRUCTURE, Ordering::Relaxed);
        if !structure.is_multiple_of(2) {
            // Release: the links are whole; pairs with the readers' Acquire.
            self.words.store(STRUCTURE, structure.wrapping_add(1), Ordering::Release);
        }
    }
}
