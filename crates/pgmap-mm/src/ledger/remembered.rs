//! What the owner remembers of a ledger: the holds in blocks that their lane has left, sorted by
//! frame.
//!
//! Who drains a few frames must not read the slots of all that is held elsewhere. A block that its
//! lane has left is filled no more until it is opened again, and then its opened word changes. So
//! the owner reads such a block a few times, then sorts its holds in, and from then on looks the
//! frames up: what it finds there it reads again in the ledger, because holds end and shrink at any
//! time.
//!
//! # States
//!
//! ```text
//!   of a block:  unread ── opened ──▶ loose: read by each scan ── left, and read often ──▶ sorted
//!                                       ▲                                                    │
//!                                       └──────────────── opened again ──────────────────────┘
//! ```
//!
//! # Who may touch what
//!
//! The owner's own memory, behind the reader's lock. No client sees it.
//!
//! # Orderings
//!
//! As [`ledger`](crate::ledger): the lane's state (Acquire) is loaded before its blocks' opened
//! words (Acquire) and those before slots (Acquire); all three pair with the client's Release
//! stores; data: what was filled in before the block was left. An opened word newer than the state
//! is not believed: its block may be filled under it, unseen, without changing any more.
//!
//! # Lost races
//!
//! See [`ledger`](crate::ledger), *scan against the opening of a block*.

use core::ops::ControlFlow;

use super::{Hold, HoldPlace, LaneState, LedgerReader};
use crate::runs::SortedRuns;
use crate::sync::Ordering;
use crate::words::{ReadCounts, ReadWords};

/// How often what is loose is read, in its own size and that of what is sorted, before it is sorted
/// in. Under loom at once, so that its few scans get that far.
const PATIENCE: usize = if cfg!(loom) { 0 } else { 4 };
/// Most holds of one ledger that are sorted. What a client holds beyond these is read by each scan.
const MAX_SORTED: usize = 1 << 20;
/// Opened word of a block that is not known to be left: no word of a client is that.
const UNKNOWN: u64 = u64::MAX;
/// Slot of an entry whose hold has ended.
const ENDED: u32 = u32::MAX;

/// A lane's marks, as a scan found them.
#[derive(Clone, Copy, Debug)]
pub(super) struct LaneView {
    pub state: LaneState,
    /// Slots that were ever used.
    pub nr_slots: usize,
}

/// What is remembered of one ledger.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    lanes: Vec<LaneMemory>,
    nr_sorted: usize,
}

#[derive(Debug, Default)]
struct LaneMemory {
    /// The state under which the blocks were looked at.
    state: u64,
    blocks: Vec<BlockMemory>,
    /// The blocks that are loose.
    loose: Vec<usize>,
    /// Slots of loose blocks read since the last sorting.
    nr_read: usize,
    sorted: Sorted,
}

#[derive(Clone, Copy, Debug, Default)]
struct BlockMemory {
    /// Its opened word, or [`UNKNOWN`]. 0 is what it is before its first opening: it is empty.
    opened: u64,
    is_loose: bool,
}

/// Holds by first frame.
#[derive(Debug, Default)]
struct Sorted {
    entries: Vec<RememberedHold>,
    /// The first frame of all and the frame after the last.
    within: (u64, u64),
    /// How often entries were met whose holds have ended.
    nr_wasted: usize,
}

#[derive(Clone, Copy, Debug)]
struct RememberedHold {
    start: u64,
    /// The frame after the last one that this hold or one before it reaches.
    reach: u64,
    nr_pages: u32,
    slot: u32,
}

impl LaneMemory {
    /// Finds out which blocks were opened since the last scan.
    fn catch_up(&mut self, view: LaneView, nr_blocks: usize, opened: impl Fn(usize) -> u64) {
        if self.state == view.state.bits() && self.blocks.len() == nr_blocks {
            return;
        }
        if nr_blocks < self.blocks.len() {
            // Only a liar's lane shrinks.
            *self = Self::default();
        }
        self.state = view.state.bits();
        self.blocks.resize(nr_blocks, BlockMemory::default());
        let (open, openings) = (view.state.open_block(), view.state.openings());
        for (number, block) in self.blocks.iter_mut().enumerate() {
            let now = opened(number);
            let is_left = open != Some(number) && now <= openings;
            if is_left && now == block.opened {
                continue;
            }
            block.opened = if is_left { now } else { UNKNOWN };
            if !block.is_loose {
                block.is_loose = true;
                self.loose.push(number);
            }
        }
    }

    fn is_worth_sorting(&self, block_slots: usize) -> bool {
        let nr_slots = self.loose.len() * block_slots;
        self.loose.len() > 1 && self.nr_read > PATIENCE * (nr_slots + self.sorted.entries.len())
    }
}

impl Sorted {
    /// The entries that may overlap frames from `start` to `end`, from the last to the first.
    fn candidates(&self, start: u64, end: u64) -> impl Iterator<Item = usize> + use<'_> {
        let after = match self.within {
            (first, last) if first < end && start < last => {
                self.entries.partition_point(|entry| entry.start < end)
            }
            _ => 0,
        };
        (0..after).rev().take_while(move |&at| self.entries[at].reach > start)
    }

    fn forget_ended(&mut self) {
        if self.nr_wasted > self.entries.len() {
            self.entries.retain(|entry| entry.slot != ENDED);
            self.settle();
        }
    }

    /// Puts the entries in order, and says how far each reaches.
    fn settle(&mut self) {
        self.entries.sort_unstable_by_key(|entry| entry.start);
        let mut reach = 0;
        for entry in &mut self.entries {
            reach = reach.max(entry.start + u64::from(entry.nr_pages));
            entry.reach = reach;
        }
        self.within = (self.entries.first().map_or(0, |entry| entry.start), reach);
        self.nr_wasted = 0;
    }
}

impl<W: ReadWords, C: ReadCounts> LedgerReader<W, C> {
    /// Calls `found` for each hold by slot of `lane` that overlaps one of `runs`. Says how many
    /// slots were read. Sorts the lane if it `may_sort` and that is worth while; then it may not
    /// again, so that no step takes much longer than it would without.
    pub(super) fn scan_lane<B>(
        &self,
        remembered: &mut Remembered,
        (lane, view): (usize, LaneView),
        runs: &SortedRuns,
        may_sort: &mut bool,
        found: &mut impl FnMut(Hold) -> ControlFlow<B>,
    ) -> ControlFlow<B, usize> {
        if remembered.lanes.len() <= lane {
            remembered.lanes.resize_with(lane + 1, LaneMemory::default);
        }
        let Remembered { lanes, nr_sorted } = remembered;
        let memory = &mut lanes[lane];
        let nr_blocks = view.nr_slots.div_ceil(self.layout.block_slots());
        memory.catch_up(view, nr_blocks, |block| {
            // Acquire: pairs with Release in `Pinner::open_block`; see the module's text.
            self.words.load(self.layout.opened(lane, block), Ordering::Acquire)
        });
        let nr_loose = memory.loose.len() * self.layout.block_slots();
        self.scan_loose(lane, view, memory, runs, found)?;
        let nr_sorted_read = self.scan_sorted(lane, memory, runs, found)?;
        if *may_sort && memory.is_worth_sorting(self.layout.block_slots()) {
            *may_sort = false;
            *nr_sorted -= memory.sorted.entries.len();
            self.sort(lane, view, memory, MAX_SORTED - *nr_sorted);
            *nr_sorted += memory.sorted.entries.len();
        }
        self.walk_long_slots(lane, view.state, runs, found)?;
        ControlFlow::Continue(nr_loose + nr_sorted_read)
    }

    fn scan_loose<B>(
        &self,
        lane: usize,
        view: LaneView,
        memory: &mut LaneMemory,
        runs: &SortedRuns,
        found: &mut impl FnMut(Hold) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        for &block in &memory.loose {
            self.walk_short_slots(lane, self.slots_of(view, block), runs, found)?;
        }
        memory.nr_read += memory.loose.len() * self.layout.block_slots();
        ControlFlow::Continue(())
    }

    /// The slots of a block that were ever used.
    pub(super) fn slots_of(&self, view: LaneView, block: usize) -> core::ops::Range<usize> {
        let first = block * self.layout.block_slots();
        first..(first + self.layout.block_slots()).min(view.nr_slots)
    }

    fn scan_sorted<B>(
        &self,
        lane: usize,
        memory: &mut LaneMemory,
        runs: &SortedRuns,
        found: &mut impl FnMut(Hold) -> ControlFlow<B>,
    ) -> ControlFlow<B, usize> {
        let LaneMemory { blocks, sorted, .. } = memory;
        let mut ended = Vec::new();
        let (mut before, mut nr_met) = (0, 0);
        for run in runs.iter() {
            // A long hold makes many entries candidates for each run. Once that came to as many as
            // there are, all further runs are looked for together: so the work is linear, not a
            // product.
            let is_for_all = nr_met > sorted.entries.len();
            let end = if is_for_all { u64::MAX } else { run.end() };
            for at in sorted.candidates(run.start(), end) {
                nr_met += 1;
                let slot = sorted.entries[at].slot;
                if slot == ENDED {
                    ended.push(at);
                    continue;
                }
                if blocks.get(self.layout.block_of(slot as usize)).is_none_or(|b| b.is_loose) {
                    continue;
                }
                let index = self.layout.slot(lane, slot as usize);
                let Some(hold) = self.read_slot(HoldPlace::Slot(index), index) else {
                    ended.push(at);
                    continue;
                };
                // One that overlaps a run before, too, was found there.
                if (is_for_all || hold.run.overlaps(run))
                    && hold.run.start() >= before
                    && let Some(hold) = self.read_short_slot(index, runs)
                {
                    found(hold)?;
                }
            }
            if is_for_all {
                break;
            }
            before = run.end();
        }
        sorted.nr_wasted += ended.len();
        for at in ended {
            sorted.entries[at].slot = ENDED;
        }
        sorted.forget_ended();
        ControlFlow::Continue(nr_met)
    }

    /// Sorts in what the lane has left, as long as there are at most `most` entries then.
    fn sort(&self, lane: usize, view: LaneView, memory: &mut LaneMemory, most: usize) {
        memory.nr_read = 0;
        let LaneMemory { blocks, loose, sorted, .. } = memory;
        sorted.entries.retain(|entry| {
            let block = blocks.get(self.layout.block_of(entry.slot as usize));
            entry.slot != ENDED && block.is_some_and(|block| !block.is_loose)
        });
        loose.retain(|&number| {
            let is_settled = blocks[number].opened != UNKNOWN;
            if !is_settled || sorted.entries.len() + self.layout.block_slots() > most {
                return true;
            }
            blocks[number].is_loose = false;
            for slot in self.slots_of(view, number) {
                let index = self.layout.slot(lane, slot);
                if let Some(hold) = self.read_slot(HoldPlace::Slot(index), index) {
                    let (start, nr_pages) = (hold.run.start(), hold.run.nr_pages() as u32);
                    sorted.entries.push(RememberedHold {
                        start,
                        reach: 0,
                        nr_pages,
                        slot: slot as u32,
                    });
                }
            }
            false
        });
        sorted.settle();
    }
}
