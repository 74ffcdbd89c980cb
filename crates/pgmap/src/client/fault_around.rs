//! Fault-around for memory that is about to be written.
//!
//! A client's page table is filled in as pages are touched. A read of tmpfs maps the 16 pages
//! around it at once (`fault_around_bytes`), and what is mapped so can be written; a write maps its
//! own page alone. So a client that put into frames for the first time took a fault for every page:
//! 545 us for 2 MiB, where a page read out of each 64 KiB before takes 97 us. A writer has that
//! done for its frames, once for each window of 64 KiB.
//!
//! # States
//! The bit of a window: clear at first, set once a page of it was mapped for reading. It never says
//! more than that: the kernel may have unmapped the window since, or some of its pages may have had
//! no memory then. Their writes fault one by one, as without this.
//!
//! # Orderings
//! Relaxed: a bit publishes nothing; the kernel has the page table, for all threads.
//!
//! # Lost races
//! Two threads that see a bit clear both map the window, which does nothing the second time.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use pgmap_mm::level::PAGE_BYTES;

use crate::client::data::Data;

/// As much as the kernel maps at a read, unless debugfs says otherwise.
const WINDOW_BYTES: u64 = 64 << 10;
const WORD_BYTES: u64 = WINDOW_BYTES * u64::BITS as u64;
/// So much of a pool's memory has bits.
const MAX_BYTES: u64 = 1 << 44;

/// Which windows of the pool's memory were mapped.
#[derive(Debug)]
pub(crate) struct FaultAround {
    words: Box<[AtomicU64]>,
}

impl FaultAround {
    /// For so many bytes of a pool.
    pub(crate) fn new(len_bytes: u64) -> Self {
        let nr_words = len_bytes.min(MAX_BYTES).div_ceil(WORD_BYTES) as usize;
        Self { words: pgmap_os::zeroed_words(nr_words) }
    }

    /// Maps the windows that some bytes lie in, as far as they were not. The bytes have memory, of
    /// tmpfs.
    pub(crate) fn map(&self, data: &Data, bytes: Range<u64>) {
        // Where the kernel cannot (before Linux 5.14) it is not asked again.
        self.each_new(bytes, |at| data.populate_for_reading(at..at + PAGE_BYTES).is_ok());
    }

    /// Takes note of bytes that were mapped by other means.
    pub(crate) fn set(&self, bytes: Range<u64>) {
        self.each_new(bytes, |_| true);
    }

    /// Calls `map` with a page of each window whose bit is clear, and sets it if that succeeded.
    fn each_new(&self, bytes: Range<u64>, mut map: impl FnMut(u64) -> bool) {
        let mut at = bytes.start;
        while at < bytes.end {
            let window = at / WINDOW_BYTES;
            let Some(word) = self.words.get((at / WORD_BYTES) as usize) else { return };
            let bit = 1 << (window % u64::from(u64::BITS));
            // Relaxed: see the head of this file.
            if word.load(Ordering::Relaxed) & bit == 0 && map(at) {
                // Relaxed: as above.
                word.fetch_or(bit, Ordering::Relaxed);
            }
            at = (window + 1) * WINDOW_BYTES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(around: &FaultAround, start: u64, nr_pages: u64, succeeds: bool) -> Vec<u64> {
        let mut pages = Vec::new();
        around.each_new(start * PAGE_BYTES..(start + nr_pages) * PAGE_BYTES, |at| {
            pages.push(at / PAGE_BYTES);
            succeeds
        });
        pages
    }

    #[test]
    fn each_window_is_mapped_once() {
        let around = FaultAround::new(WORD_BYTES + 1);
        assert_eq!(mapped(&around, 5, 40, false), [5, 16, 32]);
        assert_eq!(mapped(&around, 5, 40, true), [5, 16, 32], "it failed before");
        assert_eq!(mapped(&around, 0, 64, true), [48]);
        around.set(64 * PAGE_BYTES..96 * PAGE_BYTES);
        assert_eq!(mapped(&around, 64, 33, true), [96]);
        // The first and the last windows that have bits, and one that has none.
        let last = 2 * WORD_BYTES / PAGE_BYTES - 16;
        assert_eq!(mapped(&around, last, 17, true), [last]);
        assert_eq!(mapped(&around, WORD_BYTES / PAGE_BYTES, 1, true), [WORD_BYTES / PAGE_BYTES]);
    }
}
