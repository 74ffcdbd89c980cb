//! Words and counts that say anything, and count how often they are looked at.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use pgmap::mm::words::{HeapWords, Indexed, ReadCounts, ReadWords, WriteWords};

/// Words, each zero unless it was set. Whatever lies outside is a panic, as with shared memory.
#[derive(Debug, Default)]
pub struct SparseWords {
    nr_words: usize,
    set: Mutex<HashMap<usize, u64>>,
    nr_loads: AtomicU64,
}

impl SparseWords {
    /// `nr_words` words.
    pub fn new(nr_words: usize) -> Self {
        Self { nr_words, ..Self::default() }
    }

    /// Sets a word, as another process does at any moment.
    pub fn set(&self, index: usize, value: u64) {
        assert!(index < self.nr_words);
        self.set.lock().unwrap_or_else(PoisonError::into_inner).insert(index, value);
    }

    /// The words that were set.
    pub fn places(&self) -> Vec<usize> {
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        set.keys().copied().collect()
    }

    /// How many there are.
    pub const fn nr(&self) -> usize {
        self.nr_words
    }

    /// Loads since the last call.
    pub fn take_nr_loads(&self) -> u64 {
        // Relaxed: one thread counts and asks.
        self.nr_loads.swap(0, Ordering::Relaxed)
    }

    fn get(&self, index: usize) -> u64 {
        assert!(index < self.nr_words, "word {index} of {}", self.nr_words);
        // Relaxed: as above.
        self.nr_loads.fetch_add(1, Ordering::Relaxed);
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        set.get(&index).copied().unwrap_or(0)
    }
}

impl ReadWords for SparseWords {
    type Word<'w> = Indexed<'w, Self>;

    fn nr_words(&self) -> usize {
        self.nr_words
    }

    fn word(&self, index: usize) -> Indexed<'_, Self> {
        Indexed::new(self, index)
    }

    fn load(&self, index: usize, _order: Ordering) -> u64 {
        self.get(index)
    }
}

impl ReadCounts for SparseWords {
    fn load(&self, index: usize, _order: Ordering) -> u32 {
        self.get(index) as u32
    }
}

/// Words on the heap whose loads are counted.
#[derive(Debug)]
pub struct CountedWords {
    words: HeapWords,
    nr_loads: AtomicU64,
}

impl CountedWords {
    /// `nr_words` words, all zero.
    pub fn new(nr_words: usize) -> Self {
        Self { words: HeapWords::new(nr_words), nr_loads: AtomicU64::new(0) }
    }

    /// Sets a word.
    pub fn set(&self, index: usize, value: u64) {
        // Relaxed: one thread sets and looks.
        self.words.store(index, value, Ordering::Relaxed);
    }

    /// Loads since the last call.
    pub fn take_nr_loads(&self) -> u64 {
        // Relaxed: as above.
        self.nr_loads.swap(0, Ordering::Relaxed)
    }
}

impl ReadWords for CountedWords {
    type Word<'w> = Indexed<'w, Self>;

    fn nr_words(&self) -> usize {
        self.words.nr_words()
    }

    fn word(&self, index: usize) -> Indexed<'_, Self> {
        Indexed::new(self, index)
    }

    fn load(&self, index: usize, order: Ordering) -> u64 {
        // Relaxed: as above.
        self.nr_loads.fetch_add(1, Ordering::Relaxed);
        self.words.load(index, order)
    }
}

impl WriteWords for CountedWords {
    type Slot<'w> = Indexed<'w, Self>;

    fn slot(&self, index: usize) -> Indexed<'_, Self> {
        Indexed::new(self, index)
    }

    fn store(&self, index: usize, value: u64, order: Ordering) {
        self.words.store(index, value, order);
    }

    fn fetch_or(&self, index: usize, bits: u64, order: Ordering) -> u64 {
        self.words.fetch_or(index, bits, order)
    }

    fn discard(&self, range: core::ops::Range<usize>) {
        self.words.discard(range);
    }
}
