//! Which pages were written since somebody last asked.
//!
//! One bit per page, in chunks of 1 GiB of addresses that exist once something in them was written.
//! Nothing is recorded, and no memory used, until a migration or a flush starts tracking.
//!
//! # States
//!
//! ```text
//!   off ── start ──▶ clean ── mark ──▶ dirty ── take ──▶ clean
//!    ▲                └────────────── stop ──────────────┘
//!    └───────────────────────────────────┘
//! ```
//!
//! # Who may touch what
//!
//! Any thread marks, any thread takes.
//!
//! # Orderings
//!
//! Marking is Release, taking Acquire. Data: the bytes written before the mark. Whoever takes a set
//! bit and then reads the page reads at least those.
//!
//! # Lost races
//!
//! *Mark against take.* If the mark comes first the take returns the page. If the take comes first
//! the bit is set again for the next take. Marking never skips a bit that is set already: the take
//! that clears it might miss the bytes.
//!
//! # Differs from Linux
//!
//! KVM's dirty log must write-protect or trust hardware bits. Here whoever unpins says so.

use std::sync::OnceLock;

use crate::level::Level;
use crate::sync::{AtomicU64, Ordering};

const WORD_PAGES: u64 = 64;
const CHUNK_WORDS: u64 = Level::Pud.nr_pages() / WORD_PAGES;

const OFF: u64 = 0;
const ON: u64 = 1;

type DirtyChunk = Box<[AtomicU64]>;

/// Pages written, one bit each.
#[derive(Debug)]
pub struct DirtyTracker {
    is_on: AtomicU64,
    first_page: u64,
    nr_gib: u64,
    chunks: OnceLock<Box<[OnceLock<DirtyChunk>]>>,
}

impl DirtyTracker {
    pub(super) fn new(first_gib: u64, nr_gib: u64) -> Self {
        let first_page = first_gib << Level::Pud.shift();
        Self { is_on: AtomicU64::new(OFF), first_page, nr_gib, chunks: OnceLock::new() }
    }

    /// Records from now on what is written.
    pub fn start(&self) {
        self.chunks.get_or_init(|| (0..self.nr_gib).map(|_| OnceLock::new()).collect());
        // Release: pairs with Acquire in `is_on`; data: none, the chunks have their own lock.
        self.is_on.store(ON, Ordering::Release);
    }

    /// Records no more. What was recorded can still be taken.
    pub fn stop(&self) {
        // Release: pairs with Acquire in `is_on`; data: none.
        self.is_on.store(OFF, Ordering::Release);
    }

    /// Whether writes are recorded.
    #[inline]
    #[must_use]
    pub fn is_on(&self) -> bool {
        // Acquire: pairs with Release in `start` and `stop`; data: none.
        self.is_on.load(Ordering::Acquire) == ON
    }

    /// Marks `nr_pages` pages from page number `page` on as written, if anybody wants to know.
    #[inline]
    pub fn mark(&self, page: u64, nr_pages: u64) {
        if self.is_on() {
            self.set(page, nr_pages);
        }
    }

    #[cold]
    fn set(&self, page: u64, nr_pages: u64) {
        self.for_each_word(page, nr_pages, |chunk, index, mask| {
            let chunk = chunk.get_or_init(|| (0..CHUNK_WORDS).map(|_| AtomicU64::new(0)).collect());
            if mask == u64::MAX {
                // Release: pairs with Acquire in `take`; data: the bytes. A swap and not a store,
                // so that a take of this word also sees the bytes of marks that came before.
                chunk[index].swap(mask, Ordering::Release);
            } else {
                // Release: pairs with Acquire in `take`; data: the bytes.
                chunk[index].fetch_or(mask, Ordering::Release);
            }
        });
    }

    /// The runs of pages written since the last call, as first page number and length, from
    /// `page` up to `page + nr_pages`; they count as clean from now on.
    #[must_use]
    pub fn take(&self, page: u64, nr_pages: u64) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut at = page.max(self.first_page);
        self.for_each_word(page, nr_pages, |chunk, index, mask| {
            let base = at - at % WORD_PAGES;
            at = base + WORD_PAGES;
            let Some(chunk) = chunk.get() else { return };
            // AcqRel: pairs with Release in `set`; data: the bytes. Release, so that a mark that
            // comes later in the word's order is later than this take for everybody.
            let mut bits = chunk[index].fetch_and(!mask, Ordering::AcqRel) & mask;
            while bits != 0 {
                let first = bits.trailing_zeros();
                let nr = (bits >> first).trailing_ones();
                bits &= !(u64::MAX >> (64 - nr) << first);
                let first = base + u64::from(first);
                match runs.last_mut() {
                    Some(last) if last.0 + last.1 == first => last.1 += u64::from(nr),
                    _ => runs.push((first, u64::from(nr))),
                }
            }
        });
        runs
    }

    /// Whether the page was marked and not taken since.
    #[must_use]
    pub fn is_marked(&self, page: u64) -> bool {
        let mut is_marked = false;
        self.for_each_word(page, 1, |chunk, index, mask| {
            // Acquire: pairs with Release in `set`; data: the bytes, for who reads the page next.
            let bits = chunk.get().map_or(0, |chunk| chunk[index].load(Ordering::Acquire));
            is_marked = bits & mask != 0;
        });
        is_marked
    }

    /// Calls `each` with chunk, index and bits of every word that the pages touch, in order.
    fn for_each_word(
        &self,
        page: u64,
        nr_pages: u64,
        mut each: impl FnMut(&OnceLock<DirtyChunk>, usize, u64),
    ) {
        let Some(chunks) = self.chunks.get() else { return };
        let last = self.first_page + (self.nr_gib << Level::Pud.shift());
        let end = page.saturating_add(nr_pages).min(last);
        let mut at = page.max(self.first_page);
        while at < end {
            let from_start = at - self.first_page;
            let bit = at % WORD_PAGES;
            let nr = (WORD_PAGES - bit).min(end - at);
            let mask = (u64::MAX >> (WORD_PAGES - nr)) << bit;
            let chunk = &chunks[(from_start >> Level::Pud.shift()) as usize];
            each(chunk, ((from_start / WORD_PAGES) % CHUNK_WORDS) as usize, mask);
            at += nr;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_recorded_before_the_start() {
        let dirty = DirtyTracker::new(1, 2);
        dirty.mark(Level::Pud.nr_pages(), 10);
        assert!(dirty.take(0, u64::MAX).is_empty());
        dirty.start();
        assert!(dirty.take(0, u64::MAX).is_empty());
    }

    proptest! {
        #[test]
        fn what_was_marked_is_taken_once(
            marks in prop::collection::vec((0..600_u64, 1..300_u64), 0..10),
            asked in (0..700_u64, 0..700_u64),
        ) {
            let base = 2 * Level::Pud.nr_pages() - 300;
            let dirty = DirtyTracker::new(1, 2);
            dirty.start();
            let mut naive = [false; 1000];
            for (page, nr_pages) in marks {
                dirty.mark(base + page, nr_pages);
                naive[page as usize..(page + nr_pages) as usize].fill(true);
            }
            let read = |runs: Vec<(u64, u64)>| {
                let mut found = [false; 1000];
                for (page, nr_pages) in runs {
                    let page = (page - base) as usize;
                    found[page..page + nr_pages as usize].fill(true);
                }
                found
            };
            for page in 0..1000_u64 {
                prop_assert_eq!(dirty.is_marked(base + page), naive[page as usize]);
            }
            let first = read(dirty.take(base + asked.0, asked.1));
            let rest = read(dirty.take(0, u64::MAX));
            prop_assert!((0..1000).all(|page| !dirty.is_marked(base + page)));
            for page in 0..1000_u64 {
                let inside = page >= asked.0 && page < asked.0 + asked.1;
                let was = naive[page as usize];
                prop_assert_eq!(first[page as usize], was && inside);
                prop_assert_eq!(rest[page as usize], was && !inside);
            }
        }
    }
}
