//! Shared memory as arrays of atomic words, wherever it comes from.
//!
//! The page model never maps memory. It asks for words it may read ([`ReadWords`]), words it may
//! write ([`WriteWords`]), and 32-bit counts. A process backs them with shared mappings, a test
//! with the heap ([`HeapWords`]), a loom model with loom's atomics.
//!
//! Read access and write access are two traits because they are two rights: a client maps the
//! descriptors read-only, and a store there would be a fault, not an error.

use core::ops::Range;

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Words that the caller may load.
pub trait ReadWords: Send + Sync {
    /// How many 8-byte words there are.
    fn nr_words(&self) -> usize;

    /// Loads the word at `index`.
    ///
    /// # Panics
    /// When `index` is not below [`nr_words`](Self::nr_words), as a slice does.
    fn load(&self, index: usize, order: Ordering) -> u64;
}

/// Words that the caller may also change.
pub trait WriteWords: ReadWords {
    /// Stores `value` at `index`.
    ///
    /// # Panics
    /// When `index` is out of range.
    fn store(&self, index: usize, value: u64, order: Ordering);

    /// Sets the bits of `bits` in the word at `index` and returns what it held before.
    ///
    /// # Panics
    /// When `index` is out of range.
    fn fetch_or(&self, index: usize, bits: u64, order: Ordering) -> u64;

    /// Makes `range` read as zero and gives its memory back where the backing can do that.
    ///
    /// # Panics
    /// When `range` is out of range.
    fn discard(&self, range: Range<usize>);
}

/// 32-bit counters that the caller may load.
pub trait ReadCounts: Send + Sync {
    /// Loads the counter at `index`.
    ///
    /// # Panics
    /// When `index` is out of range.
    fn load(&self, index: usize, order: Ordering) -> u32;
}

/// 32-bit counters that the caller may also change.
pub trait WriteCounts: ReadCounts {
    /// Adds `by`, wrapping, and returns the value before.
    ///
    /// # Panics
    /// When `index` is out of range.
    fn fetch_add(&self, index: usize, by: u32, order: Ordering) -> u32;

    /// Subtracts `by`, wrapping, and returns the value before.
    ///
    /// # Panics
    /// When `index` is out of range.
    fn fetch_sub(&self, index: usize, by: u32, order: Ordering) -> u32;
}

/// Words on the heap: for tests, models and a page model that no other process shares.
#[derive(Debug)]
pub struct HeapWords {
    words: Box<[AtomicU64]>,
}

impl HeapWords {
    /// Makes `nr_words` words, all zero.
    #[must_use]
    pub fn new(nr_words: usize) -> Self {
        Self { words: (0..nr_words).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl ReadWords for HeapWords {
    fn nr_words(&self) -> usize {
        self.words.len()
    }

    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.words[index].load(order)
    }
}

impl WriteWords for HeapWords {
    #[inline]
    fn store(&self, index: usize, value: u64, order: Ordering) {
        self.words[index].store(value, order);
    }

    fn fetch_or(&self, index: usize, bits: u64, order: Ordering) -> u64 {
        self.words[index].fetch_or(bits, order)
    }

    fn discard(&self, range: Range<usize>) {
        for word in &self.words[range] {
            // Relaxed: whoever may still look here holds a stale idea of the level and compares
            // for equality with a word that zero is not.
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// Counters on the heap.
#[derive(Debug)]
pub struct HeapCounts {
    counts: Box<[AtomicU32]>,
}

impl HeapCounts {
    /// Makes `nr_counts` counters, all zero.
    #[must_use]
    pub fn new(nr_counts: usize) -> Self {
        Self { counts: (0..nr_counts).map(|_| AtomicU32::new(0)).collect() }
    }
}

impl ReadCounts for HeapCounts {
    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u32 {
        self.counts[index].load(order)
    }
}

impl WriteCounts for HeapCounts {
    #[inline]
    fn fetch_add(&self, index: usize, by: u32, order: Ordering) -> u32 {
        self.counts[index].fetch_add(by, order)
    }

    #[inline]
    fn fetch_sub(&self, index: usize, by: u32, order: Ordering) -> u32 {
        self.counts[index].fetch_sub(by, order)
    }
}

macro_rules! forward_to_shared {
    ($($pointer:ty),*) => {$(
        impl<T: ReadWords + ?Sized> ReadWords for $pointer {
            fn nr_words(&self) -> usize { (**self).nr_words() }
            #[inline]
            fn load(&self, index: usize, order: Ordering) -> u64 { (**self).load(index, order) }
        }
        impl<T: WriteWords + ?Sized> WriteWords for $pointer {
            #[inline]
            fn store(&self, index: usize, value: u64, order: Ordering) {
                (**self).store(index, value, order);
            }
            fn fetch_or(&self, index: usize, bits: u64, order: Ordering) -> u64 {
                (**self).fetch_or(index, bits, order)
            }
            fn discard(&self, range: Range<usize>) { (**self).discard(range); }
        }
        impl<T: ReadCounts + ?Sized> ReadCounts for $pointer {
            #[inline]
            fn load(&self, index: usize, order: Ordering) -> u32 { (**self).load(index, order) }
        }
        impl<T: WriteCounts + ?Sized> WriteCounts for $pointer {
            #[inline]
            fn fetch_add(&self, index: usize, by: u32, order: Ordering) -> u32 {
                (**self).fetch_add(index, by, order)
            }
            #[inline]
            fn fetch_sub(&self, index: usize, by: u32, order: Ordering) -> u32 {
                (**self).fetch_sub(index, by, order)
            }
        }
    )*};
}

forward_to_shared!(&T, std::sync::Arc<T>);
