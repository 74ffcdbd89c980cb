//! Scanning a ledger in steps: it may have millions of slots, and who drains serves others, too.

use core::ops::ControlFlow;

use super::{COUNTS_PER_PAGE, Hold, LedgerReader};
use crate::level::Level;
use crate::pfn::PfnRange;
use crate::runs::SortedRuns;
use crate::sync::Ordering;
use crate::words::{ReadCounts, ReadWords};

/// Most frames of which the counts are read between two looks at what is left of a step.
const STEP_FRAMES: u64 = 16_384;

/// How far a scan of a ledger in steps has come.
#[derive(Clone, Debug, Default)]
pub struct ScanPlace {
    /// The first lane that was not read.
    lane: usize,
    /// The first frame of which no counts were read.
    next_frame: u64,
    /// Per level, the first folio whose count was not read.
    seen_to: [u64; 3],
}

impl<W: ReadWords, C: ReadCounts> LedgerReader<W, C> {
    /// As [`for_each_hold`](Self::for_each_hold), a step at a time: goes on at `place`, and ends
    /// when about `left` words were read, which it counts down. Says whether that was all.
    ///
    /// Each lane is read in one go, and what a step must see lies before its lane's marks: so a
    /// scan in steps sees whatever one that began with the first of them must.
    pub fn scan_on(
        &self,
        runs: &SortedRuns,
        place: &mut ScanPlace,
        left: &mut usize,
        mut found: impl FnMut(Hold),
    ) -> bool {
        let mut found = |hold| {
            found(hold);
            ControlFlow::<()>::Continue(())
        };
        let _all = self.scan_lanes(runs, &mut place.lane, left, &mut found);
        for run in runs.iter() {
            let mut start = run.start().max(place.next_frame);
            while start < run.end() {
                if *left == 0 {
                    return false;
                }
                start = match self.next_touched(start) {
                    Some(touched) => start.max(touched),
                    None => break,
                };
                if start >= run.end() {
                    break;
                }
                let Some(part) = PfnRange::new(start, (run.end() - start).min(STEP_FRAMES)) else {
                    break;
                };
                let mut nr_found = 0;
                let _all = self.scan_counts(part, &mut place.seen_to, &mut |hold| {
                    nr_found += 1;
                    found(hold)
                });
                *left = left.saturating_sub(nr_found);
                start = part.end();
                place.next_frame = start;
            }
        }
        true
    }

    /// A frame from which on there may be counts that were touched, and before which, from `from`
    /// on, there are none; `None` if there are none at all.
    fn next_touched(&self, from: u64) -> Option<u64> {
        let next_of = |level: Level| {
            let last = self.layout.nr_pages.checked_sub(1)? >> level.shift();
            let first = from >> level.shift();
            if first > last {
                return None;
            }
            let page_of = |folio: u64| self.layout.count(level, folio) / COUNTS_PER_PAGE;
            let (mut page, end) = (page_of(first), page_of(last) + 1);
            while page < end {
                let (word, bit) = self.layout.touched(page * COUNTS_PER_PAGE);
                // Acquire: as in `scan_counts`.
                let touched = self.words.load(word, Ordering::Acquire) & !(bit - 1);
                if touched == 0 {
                    page = (page / 64 + 1) * 64;
                    continue;
                }
                page += (touched.trailing_zeros() - bit.trailing_zeros()) as usize;
                let folio = (page - page_of(0)) * COUNTS_PER_PAGE;
                return (page < end).then_some((folio as u64) << level.shift());
            }
            None
        };
        Level::ALL.into_iter().filter_map(next_of).min()
    }

    /// Lanes from number `next` on, as far as `left` words go.
    pub(super) fn scan_lanes<B>(
        &self,
        runs: &SortedRuns,
        next: &mut usize,
        left: &mut usize,
        found: &mut impl FnMut(Hold) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let is_everything = runs.nr_pages() >= self.layout.nr_pages;
        // Locked by the first lane of which there is anything to remember; `None` inside if another
        // scan of this ledger is under way, or ended in a panic.
        let mut remembered = None;
        let mut may_sort = true;
        for (lane, view) in self.lanes(*next) {
            if *left == 0 {
                break;
            }
            let every_slot = 0..view.nr_slots;
            let nr_read = if is_everything {
                self.walk_lane((lane, view), every_slot, runs, found)?
            } else if let Some(block) = view.state.only_block() {
                self.walk_lane((lane, view), self.slots_of(view, block), runs, found)?
            } else {
                match remembered.get_or_insert_with(|| self.remembered.try_lock().ok()) {
                    Some(remembered) => {
                        self.scan_lane(remembered, (lane, view), runs, &mut may_sort, found)?
                    }
                    None => self.walk_lane((lane, view), every_slot, runs, found)?,
                }
            };
            *left = left.saturating_sub(nr_read);
            *next = lane + 1;
        }
        ControlFlow::Continue(())
    }
}
