//! Mappings as the page model's words and counts: where the two lower crates meet.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pgmap_mm::barrier::HeavyBarrier;
use pgmap_mm::words::{ReadCounts, ReadWord, ReadWords, WriteCounts, WriteWords};
use pgmap_os::{Membarrier, MemoryFile, ReadMapping, ReadOnlyWord, WriteMapping};

/// Bytes of a word and of a page.
const WORD_BYTES: u64 = 8;
const PAGE_BYTES: u64 = 4096;

/// Words somebody else writes.
#[derive(Debug)]
pub struct Readable(pub ReadMapping);

/// A word somebody else writes.
#[derive(Clone, Copy, Debug)]
pub struct ReadableWord<'m>(ReadOnlyWord<'m>);

impl ReadWord for ReadableWord<'_> {
    #[inline(always)]
    fn load(self, order: Ordering) -> u64 {
        self.0.load(order)
    }
}

impl ReadWords for Readable {
    type Word<'w> = ReadableWord<'w>;

    fn nr_words(&self) -> usize {
        (self.0.len_bytes() / WORD_BYTES) as usize
    }

    #[inline(always)]
    fn word(&self, index: usize) -> ReadableWord<'_> {
        ReadableWord(self.0.word(index))
    }

    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.0.load_u64(index, order)
    }
}

/// Counts somebody else writes.
#[derive(Debug)]
pub struct ReadableCounts(pub ReadMapping);

impl ReadCounts for ReadableCounts {
    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u32 {
        self.0.load_u32(index, order)
    }
}

/// Words this process writes.
#[derive(Debug)]
pub struct Writable {
    mapping: WriteMapping,
    /// The file behind the mapping and where in it that starts; given where whole pages are to be
    /// given back.
    file: Option<(Arc<MemoryFile>, u64)>,
}

impl Writable {
    /// Words of `mapping`. Discarding stores zeros.
    #[must_use]
    pub const fn new(mapping: WriteMapping) -> Self {
        Self { mapping, file: None }
    }

    /// Words of `mapping`, which begins at `offset` of `file`. Discarding gives whole pages back.
    #[must_use]
    pub const fn over_file(mapping: WriteMapping, file: Arc<MemoryFile>, offset: u64) -> Self {
        Self { mapping, file: Some((file, offset)) }
    }
}

impl ReadWords for Writable {
    type Word<'w> = &'w AtomicU64;

    fn nr_words(&self) -> usize {
        self.mapping.words().len()
    }

    #[inline(always)]
    fn word(&self, index: usize) -> &AtomicU64 {
        &self.mapping.words()[index]
    }

    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.mapping.words()[index].load(order)
    }
}

impl WriteWords for Writable {
    type Slot<'w> = &'w AtomicU64;

    #[inline(always)]
    fn slot(&self, index: usize) -> &AtomicU64 {
        &self.mapping.words()[index]
    }

    #[inline]
    fn store(&self, index: usize, value: u64, order: Ordering) {
        self.mapping.words()[index].store(value, order);
    }

    fn fetch_or(&self, index: usize, bits: u64, order: Ordering) -> u64 {
        self.mapping.words()[index].fetch_or(bits, order)
    }

    fn discard(&self, range: Range<usize>) {
        let bytes = range.start as u64 * WORD_BYTES..range.end as u64 * WORD_BYTES;
        let is_whole_pages = bytes.start % PAGE_BYTES == 0 && bytes.end % PAGE_BYTES == 0;
        if is_whole_pages
            && let Some((file, offset)) = &self.file
            && file.punch(offset + bytes.start..offset + bytes.end).is_ok()
        {
            return;
        }
        for word in &self.mapping.words()[range] {
            // Relaxed: readers compare for equality with words that zero is not.
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// Counts this process writes.
#[derive(Debug)]
pub struct WritableCounts(pub WriteMapping);

impl ReadCounts for WritableCounts {
    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u32 {
        self.0.counts()[index].load(order)
    }
}

impl WriteCounts for WritableCounts {
    #[inline]
    fn fetch_add(&self, index: usize, by: u32, order: Ordering) -> u32 {
        self.0.counts()[index].fetch_add(by, order)
    }

    #[inline]
    fn fetch_sub(&self, index: usize, by: u32, order: Ordering) -> u32 {
        self.0.counts()[index].fetch_sub(by, order)
    }
}

/// The owner's heavy barrier: `membarrier` for clients that are registered, and the fence that
/// pairs with the others'.
#[derive(Debug)]
pub struct OwnerBarrier {
    membarrier: Membarrier,
}

impl OwnerBarrier {
    /// Registers this process.
    #[must_use]
    pub fn register() -> Self {
        Self { membarrier: Membarrier::register() }
    }

    /// Whether clients may rely on a compiler fence.
    #[must_use]
    pub fn is_asymmetric(&self) -> bool {
        self.membarrier.is_global_available()
    }
}

impl HeavyBarrier for OwnerBarrier {
    fn heavy(&self) {
        // SeqCst: pairs with the fence of a light barrier in fenced mode.
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.membarrier.is_global_available() {
            // It was granted at registration and cannot be refused afterwards (Linux 7.1:
            // kernel/sched/membarrier.c); a failure would be a kernel that changed under us.
            if let Err(error) = self.membarrier.global_expedited() {
                tracing::error!(%error, "membarrier was granted and is now refused");
                std::process::abort();
            }
        }
        // SeqCst: the scan's loads come after the barrier.
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}
