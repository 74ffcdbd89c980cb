//! Marks of use: when each client last got the file in each slot of the index, said by one store.
//!
//! The owner counts *generations* in the index, one for each file that it lists since there was one
//! that may be evicted. A client that gets a file stores the present generation under the file's
//! slot, unless it is there already, in an array that only it writes. An owner that is about to
//! evict a file reads what the clients say of it, as `lru_gen` reads accessed bits: late, and only
//! of what it would otherwise take.
//!
//! # States
//!
//! ```text
//!   page of marks:  untouched ── memory taken, flag set ──▶ touched
//!   mark:           0 (never) ── store ──▶ a generation ── store ──▶ a later one
//! ```
//!
//! # Layout
//!
//! Counts of 32 bits: a flag for each page of marks, in whole pages, then a mark for each slot. A
//! page that was never touched has no memory, and the owner does not look at it: on tmpfs a read
//! would fill it.
//!
//! # Who may touch what
//!
//! A client stores to its own marks. The owner loads, and believes nothing (I9): a mark decides in
//! which order files go, never whether one may. One that lies in the future counts for nothing.
//!
//! # Orderings
//!
//! All relaxed. A mark publishes nothing: what keeps a file is a pin.
//!
//! # Lost races
//!
//! *Mark against choice.* A mark that the owner misses is a use that it learns of too late; the
//! file goes unless it is pinned, which the drain finds.
//!
//! *Mark against another file in the slot.* A file that is listed begins with the generation before
//! the present one, so that a mark of the slot's last file, which is no newer, counts for nothing.
//! A client that stores late says that a file was used that was not: it stays a little longer.
//!
//! # Differs from Linux
//!
//! `lru_gen` keeps a generation in each folio's flags, where the aging walk and the fault path
//! write it (Linux 7.1: mm/vmscan.c, `folio_update_gen`; include/linux/mm_inline.h,
//! `lru_gen_add_folio`). Here each client has an array of its own, so no line is written by two
//! processors.

use core::ops::Range;

use crate::index::EntryId;
use crate::sync::{AtomicU64, Ordering};
use crate::words::{ReadCounts, WriteCounts};

const COUNTS_PER_PAGE: usize = 1024;
/// A mark that is older than this, or newer than the present, cannot be told from one of another
/// turn of the 32 bits.
const MAX_AGE: u32 = 1 << 31;

/// Where a client's marks lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedLayout {
    nr_slots: usize,
    marks_start: usize,
}

impl UsedLayout {
    /// The layout for an index of so many slots.
    #[must_use]
    pub const fn for_slots(nr_slots: usize) -> Self {
        let nr_pages = nr_slots.div_ceil(COUNTS_PER_PAGE);
        Self { nr_slots, marks_start: nr_pages.next_multiple_of(COUNTS_PER_PAGE) }
    }

    /// Counts the marks need, whole pages.
    #[must_use]
    pub const fn nr_counts(&self) -> usize {
        (self.marks_start + self.nr_slots).next_multiple_of(COUNTS_PER_PAGE)
    }

    /// Counts that the owner looks at whatever is marked. Whoever makes the marks sees to it that
    /// they have memory.
    #[must_use]
    pub const fn always_used(&self) -> Range<usize> {
        0..self.marks_start
    }

    /// The flag of the page that the slot's mark lies in, which is the page's number, too.
    const fn flag(slot: usize) -> usize {
        slot / COUNTS_PER_PAGE
    }

    const fn mark(&self, slot: usize) -> usize {
        self.marks_start + slot
    }

    const fn page(&self, number: usize) -> Range<usize> {
        let start = self.mark(number * COUNTS_PER_PAGE);
        start..start + COUNTS_PER_PAGE
    }
}

/// A client's right to say what it used.
#[derive(Debug)]
pub struct UsedMarks<C> {
    layout: UsedLayout,
    counts: C,
    /// A bit for each page of marks that has memory.
    ready: Box<[AtomicU64]>,
}

impl<C: WriteCounts> UsedMarks<C> {
    /// Marks in `counts`, which has as many as `layout` says.
    #[must_use]
    pub fn new(layout: UsedLayout, counts: C) -> Self {
        let nr_pages = layout.nr_slots.div_ceil(COUNTS_PER_PAGE);
        let ready = (0..nr_pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { layout, counts, ready }
    }

    /// Says that the file in the slot `entry` was used in `generation`. Where there is no memory to
    /// say so it stays unsaid.
    #[inline]
    pub fn mark(&self, entry: EntryId, generation: u64) {
        let slot = entry.number() as usize;
        if slot >= self.layout.nr_slots {
            return;
        }
        let page = UsedLayout::flag(slot);
        // Relaxed here and below: see the head of this file. A bit is a note of what the kernel
        // did, which is there for everybody.
        if self.ready[page / 64].load(Ordering::Relaxed) & 1 << (page % 64) == 0
            && !self.take_page(page)
        {
            return;
        }
        // Not stored again: threads of one client would take the line from each other for nothing.
        let (place, mark) = (self.layout.mark(slot), generation as u32);
        if self.counts.load(place, Ordering::Relaxed) != mark {
            self.counts.store(place, mark, Ordering::Relaxed);
        }
    }

    #[cold]
    fn take_page(&self, page: usize) -> bool {
        if !self.counts.reserve(self.layout.page(page)) {
            return false;
        }
        self.counts.store(page, 1, Ordering::Relaxed);
        self.ready[page / 64].fetch_or(1 << (page % 64), Ordering::Relaxed);
        true
    }
}

/// What a client says that it used, as the owner reads it.
#[derive(Debug)]
pub struct UsedReader<C> {
    layout: UsedLayout,
    counts: C,
}

impl<C: ReadCounts> UsedReader<C> {
    /// Reads the marks in `counts`, which has as many as `layout` says.
    #[must_use]
    pub const fn new(layout: UsedLayout, counts: C) -> Self {
        Self { layout, counts }
    }

    /// In which generation, up to the present one `now`, the client last used what is in the slot
    /// `entry`, as far as it says so.
    #[must_use]
    pub fn last_use(&self, entry: EntryId, now: u64) -> Option<u64> {
        let slot = entry.number() as usize;
        if slot >= self.layout.nr_slots
            || self.counts.load(UsedLayout::flag(slot), Ordering::Relaxed) == 0
        {
            return None;
        }
        let mark = self.counts.load(self.layout.mark(slot), Ordering::Relaxed);
        let age = (now as u32).wrapping_sub(mark);
        if mark == 0 || age > MAX_AGE {
            return None;
        }
        now.checked_sub(u64::from(age))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::words::HeapCounts;

    fn world(nr_slots: usize) -> (UsedMarks<Arc<HeapCounts>>, UsedReader<Arc<HeapCounts>>) {
        let layout = UsedLayout::for_slots(nr_slots);
        let counts = Arc::new(HeapCounts::new(layout.nr_counts()));
        (UsedMarks::new(layout, Arc::clone(&counts)), UsedReader::new(layout, counts))
    }

    fn entry(number: u32) -> EntryId {
        EntryId::from_number(number)
    }

    #[test]
    fn a_mark_says_the_generation_of_the_last_use_of_its_slot_alone() {
        let (marks, reader) = world(5000);
        for slot in [0, 1, 1023, 1024, 4999] {
            assert_eq!(reader.last_use(entry(slot), 7), None);
            marks.mark(entry(slot), 7);
            assert_eq!(reader.last_use(entry(slot), 7), Some(7));
            marks.mark(entry(slot), 9);
            assert_eq!(reader.last_use(entry(slot), 12), Some(9));
        }
        assert_eq!(reader.last_use(entry(2), 12), None);
        marks.mark(entry(5000), 9);
        assert_eq!(reader.last_use(entry(5000), 12), None, "there is no such slot");
    }

    #[test]
    fn a_mark_of_the_future_or_of_another_age_counts_for_nothing() {
        let (marks, reader) = world(10);
        marks.mark(entry(3), 100);
        assert_eq!(reader.last_use(entry(3), 99), None);
        assert_eq!(reader.last_use(entry(3), 100 + u64::from(MAX_AGE)), Some(100));
        assert_eq!(reader.last_use(entry(3), 101 + u64::from(MAX_AGE)), None);
        // Beyond 32 bits.
        let late = (5 << 32) + 17;
        marks.mark(entry(3), late);
        assert_eq!(reader.last_use(entry(3), late + 4), Some(late));
    }
}
