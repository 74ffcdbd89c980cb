//! Shared memory as arrays of atomic words, wherever it comes from.
//!
//! The page model never maps memory. It asks for words it may read ([`ReadWords`]), words it may
//! write ([`WriteWords`]), and 32-bit counts. A process backs them with shared mappings, a test
//! with the heap ([`HeapWords`]), a loom model with loom's atomics.
//!
//! Read access and write access are two traits because they are two rights: a client maps the
//! descriptors read-only, and a store there would be a fault, not an error.
//!
//! Whoever goes to the same word more than once asks for the word itself ([`ReadWord`],
//! [`WriteWord`]): its index is checked once, and a pin checks and clears without a second look.

use core::fmt;
use core::ops::Range;

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// One word that the caller may load, found already.
pub trait ReadWord: Copy + Send + Sync + fmt::Debug {
    /// Loads it.
    fn load(self, order: Ordering) -> u64;
}

/// One word that the caller may also change.
pub trait WriteWord: ReadWord {
    /// Stores `value`.
    fn store(self, value: u64, order: Ordering);
}

/// Words that the caller may load.
pub trait ReadWords: Send + Sync {
    /// One of the words. What has no better way says [`Indexed`].
    type Word<'w>: ReadWord
    where
        Self: 'w;

    /// How many 8-byte words there are.
    fn nr_words(&self) -> usize;

    /// Finds the word at `index`.
    ///
    /// # Panics
    /// When `index` is not below [`nr_words`](Self::nr_words), as a slice does; at the latest when
    /// the word is used.
    fn word(&self, index: usize) -> Self::Word<'_>;

    /// Loads the word at `index`.
    ///
    /// # Panics
    /// When `index` is not below [`nr_words`](Self::nr_words), as a slice does.
    fn load(&self, index: usize, order: Ordering) -> u64;

    /// Loads as many words as `loaded` has room for from `index` on, one after the other, each an
    /// acquire load.
    ///
    /// # Panics
    /// When they are not all below [`nr_words`](Self::nr_words).
    #[inline]
    fn load_run(&self, index: usize, loaded: &mut [u64]) {
        for (at, word) in loaded.iter_mut().enumerate() {
            *word = self.load(index + at, Ordering::Acquire);
        }
    }

    /// Whether some load found that the words are no longer there, and answered 0 instead.
    fn is_lost(&self) -> bool {
        false
    }
}

/// Words that the caller may also change.
pub trait WriteWords: ReadWords {
    /// One of the words. What has no better way says [`Indexed`].
    type Slot<'w>: WriteWord
    where
        Self: 'w;

    /// Finds the word at `index`, to be stored to.
    ///
    /// # Panics
    /// When `index` is out of range; at the latest when the word is used.
    fn slot(&self, index: usize) -> Self::Slot<'_>;

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

    /// Takes memory for `range`, so that no later use of it fails for want of any. Says whether
    /// there is some; where memory is never short there always is.
    ///
    /// # Panics
    /// When `range` is out of range.
    fn reserve(&self, range: Range<usize>) -> bool {
        let _ = range;
        true
    }

    /// Makes `range` read as zero and gives its memory back where the backing can do that.
    ///
    /// # Panics
    /// When `range` is out of range.
    fn discard(&self, range: Range<usize>);
}

/// A word as its words and its index, checked again at every use.
pub struct Indexed<'w, W> {
    words: &'w W,
    index: usize,
}

impl<'w, W> Indexed<'w, W> {
    /// The word at `index` of `words`.
    #[must_use]
    pub const fn new(words: &'w W, index: usize) -> Self {
        Self { words, index }
    }
}

impl<W> Clone for Indexed<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Indexed<'_, W> {}

impl<W> fmt::Debug for Indexed<'_, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "word {}", self.index)
    }
}

impl<W: ReadWords> ReadWord for Indexed<'_, W> {
    fn load(self, order: Ordering) -> u64 {
        self.words.load(self.index, order)
    }
}

impl<W: WriteWords> WriteWord for Indexed<'_, W> {
    fn store(self, value: u64, order: Ordering) {
        self.words.store(self.index, value, order);
    }
}

impl ReadWord for &AtomicU64 {
    #[inline(always)]
    fn load(self, order: Ordering) -> u64 {
        AtomicU64::load(self, order)
    }
}

impl WriteWord for &AtomicU64 {
    #[inline(always)]
    fn store(self, value: u64, order: Ordering) {
        AtomicU64::store(self, value, order);
    }
}

/// 32-bit counters that the caller may load.
pub trait ReadCounts: Send + Sync {
    /// Loads the counter at `index`.
    ///
    /// # Panics
    /// When `index` is out of range.
    fn load(&self, index: usize, order: Ordering) -> u32;

    /// As [`ReadWords::is_lost`].
    fn is_lost(&self) -> bool {
        false
    }
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

    /// Stores `value`.
    ///
    /// # Panics
    /// When `index` is out of range.
    fn store(&self, index: usize, value: u32, order: Ordering);

    /// Takes memory for `range`, as [`WriteWords::reserve`] does.
    ///
    /// # Panics
    /// When `range` is out of range.
    fn reserve(&self, range: Range<usize>) -> bool {
        let _ = range;
        true
    }
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
    type Word<'w> = &'w AtomicU64;

    fn nr_words(&self) -> usize {
        self.words.len()
    }

    #[inline]
    fn word(&self, index: usize) -> &AtomicU64 {
        &self.words[index]
    }

    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.words[index].load(order)
    }
}

impl WriteWords for HeapWords {
    type Slot<'w> = &'w AtomicU64;

    #[inline]
    fn slot(&self, index: usize) -> &AtomicU64 {
        &self.words[index]
    }

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

    #[inline]
    fn store(&self, index: usize, value: u32, order: Ordering) {
        self.counts[index].store(value, order);
    }
}

macro_rules! forward_to_shared {
    ($($pointer:ty),*) => {$(
        impl<T: ReadWords> ReadWords for $pointer {
            type Word<'w> = T::Word<'w> where Self: 'w;
            fn nr_words(&self) -> usize { (**self).nr_words() }
            #[inline]
            fn word(&self, index: usize) -> T::Word<'_> { (**self).word(index) }
            #[inline]
            fn load(&self, index: usize, order: Ordering) -> u64 { (**self).load(index, order) }
            #[inline]
            fn load_run(&self, index: usize, loaded: &mut [u64]) {
                (**self).load_run(index, loaded);
            }
            fn is_lost(&self) -> bool { (**self).is_lost() }
        }
        impl<T: WriteWords> WriteWords for $pointer {
            type Slot<'w> = T::Slot<'w> where Self: 'w;
            #[inline]
            fn slot(&self, index: usize) -> T::Slot<'_> { (**self).slot(index) }
            #[inline]
            fn store(&self, index: usize, value: u64, order: Ordering) {
                (**self).store(index, value, order);
            }
            fn fetch_or(&self, index: usize, bits: u64, order: Ordering) -> u64 {
                (**self).fetch_or(index, bits, order)
            }
            fn reserve(&self, range: Range<usize>) -> bool { (**self).reserve(range) }
            fn discard(&self, range: Range<usize>) { (**self).discard(range); }
        }
        impl<T: ReadCounts> ReadCounts for $pointer {
            #[inline]
            fn load(&self, index: usize, order: Ordering) -> u32 { (**self).load(index, order) }
            fn is_lost(&self) -> bool { (**self).is_lost() }
        }
        impl<T: WriteCounts> WriteCounts for $pointer {
            #[inline]
            fn fetch_add(&self, index: usize, by: u32, order: Ordering) -> u32 {
                (**self).fetch_add(index, by, order)
            }
            #[inline]
            fn fetch_sub(&self, index: usize, by: u32, order: Ordering) -> u32 {
                (**self).fetch_sub(index, by, order)
            }
            #[inline]
            fn store(&self, index: usize, value: u32, order: Ordering) {
                (**self).store(index, value, order);
            }
            fn reserve(&self, range: Range<usize>) -> bool { (**self).reserve(range) }
        }
    )*};
}

forward_to_shared!(&T, std::sync::Arc<T>);
