//! The ledger: one client's own record of what it holds.
//!
//! A client publishes each short-term pin in a *slot* and each long-term pin in a *count*, or in
//! one of the few slots that each lane keeps for those, in shared memory that only it writes and
//! the owner reads. So no client can corrupt another's pins, and a killed client's pins end with
//! its ledger, which the owner reads once more for the holds of devices.
//!
//! # States
//!
//! A lane's slots are grouped in *blocks*, and the lane fills slots of one block only, its *open*
//! one.
//!
//! ```text
//!            openings + 1: opened word of the block, then the lane's state
//!   (closed) ───────────────────────────────────────────────▶ open: slots are filled and cleared
//!       ▲        another block is opened, or the lane is given back  │
//!       └────────────────────────────────────────────────────────────┘
//!   closed: slots are cleared and narrowed, never filled
//! ```
//!
//! # Layout
//!
//! Words: a header of one page (magic, lanes in use, kind of light barrier, whether the client's
//! devices keep the ledger's lock), four words of marks per lane (state, slots ever used, whether
//! long-term holds were left behind, one unused), a bitmap of the count pages ever touched, the
//! lanes' slots, the slots' tags (what a pin is for, for whoever asks), per block the opening in
//! which it was opened last, the lanes' long-term slots. Counts: three arrays of `u32`, largest
//! level first, in a region of their own. All of it is sparse: what was never written is not
//! backed, and the owner never reads it, because on tmpfs even a read populates a hole.
//!
//! # Who may touch what
//!
//! Only the client stores (I2). A slot is taken only by the thread that has its lane and cleared by
//! whichever thread drops the pin; a lane's marks and its blocks' are that thread's too. The owner
//! loads, and believes nothing: a mark or a slot that makes no sense is clamped or passed
//! over (I9). A false mark hides slots of the liar's own ledger, so it can only lose the liar's own
//! pins.
//!
//! # Orderings
//!
//! Marks (lane in use, slots used, block opened, lane state, page touched) are stored before the
//! record they cover and both lie before the client's light barrier, so a scan after the heavy
//! barrier that must see the record also sees its mark. Release on clearing a slot, Acquire on
//! scanning it: what the client did to the bytes while it held them happens before the owner gives
//! them to somebody else. The state is stored with Release and loaded with Acquire before anything
//! else of the lane: data: every slot that was filled before the block was left.
//!
//! # Lost races
//!
//! *Scan against the opening of a block.* The scan reads the open block always, and of the others
//! those that were opened since it last read them (`remembered`). Take a pin that the scan must
//! see. If the state loaded is the one that opened its block, the block is read. If it is a later
//! one, the block was left before that was stored, so its slots are seen as they were then, and it
//! is read unless its opened word is what it was when it was read last. It cannot be an earlier
//! one: the state was stored before the pin's light barrier. What is remembered of a block was read
//! under a state not older than its opening, in which it was not open: so nothing was filled in
//! since.

mod remembered;
mod slots;
mod steps;

use core::ops::{ControlFlow, Range};
use std::sync::Mutex;

use self::remembered::{LaneView, Remembered};
pub use self::steps::ScanPlace;
use crate::barrier::{BarrierMode, Reached};
use crate::level::Level;
use crate::pfn::{PFN_BITS, Pfn, PfnRange, RUN_BITS};
use crate::runs::SortedRuns;
use crate::sync::Ordering;
use crate::vmemmap::VmemmapLayout;
use crate::words::{ReadCounts, ReadWords};

/// Lanes of one ledger.
pub const MAX_LANES: usize = 256;
/// Slots of one lane. A thread that needs more takes another lane.
pub const LANE_SLOTS: usize = 16_384;
/// Of so many lanes, one is shared: see [`LedgerLayout::kept_lanes`].
const LANES_PER_SHARED: usize = 8;
/// Step in which a lane's "slots used" mark grows.
pub(crate) const SLOT_STEP: usize = 64;
/// Slots of one block: two cache lines.
const BLOCK_SLOTS: usize = 16;
/// Blocks of a lane at the least, so that the small lanes of models have several, too.
const MIN_BLOCKS: usize = 4;
/// Long-term pins that a lane holds in slots, one cache line of them; further ones are counts.
pub(crate) const LONG_SLOTS: usize = 8;
/// Written first into every ledger.
pub const LEDGER_MAGIC: u64 = u64::from_le_bytes(*b"pgmapLG2");

const PAGE_WORDS: usize = 512;
const COUNTS_PER_PAGE: usize = 1024;
pub(crate) const MAGIC_WORD: usize = 0;
pub(crate) const LANES_USED_WORD: usize = 1;
pub(crate) const BARRIER_WORD: usize = 2;
/// In the barrier word: this client's light barrier is a compiler fence.
pub(crate) const IS_ASYMMETRIC: u64 = 1;
pub(crate) const TRANSFERS_WORD: usize = 3;
/// In the word of transfers: no device of this client writes after the ledger's lock is free.
pub(crate) const KEEP_LOCK: u64 = 1;
const LANE_MARKS_START: usize = PAGE_WORDS;
/// Words of a lane's marks.
const LANE_MARK_WORDS: usize = 4;

/// One half of a count word is for the processor's holds, the other for devices'.
pub(crate) const CPU_ONE: u32 = 1;
pub(crate) const DEVICE_ONE: u32 = 1 << 16;
/// Most long-term pins of one kind that one client may have on one folio.
pub const MAX_COUNT: u32 = 0x7fff;

/// Who may still write through a hold after its holder died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Agent {
    /// Only the process's own instructions: a dead process touches nothing.
    Cpu,
    /// A device transfer may outlive the process.
    Device,
}

/// One slot: `valid:1 | device:1 | first_pfn:36 | nr_pages - 1:26`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotWord(u64);

impl SlotWord {
    const VALID: u64 = 1 << 63;
    const DEVICE: u64 = 1 << 62;

    /// The word that publishes a hold of `run`.
    #[inline]
    #[must_use]
    pub const fn new(run: PfnRange, agent: Agent) -> Self {
        let device = match agent {
            Agent::Cpu => 0,
            Agent::Device => Self::DEVICE,
        };
        Self(Self::VALID | device | (run.start() << RUN_BITS) | (run.nr_pages() - 1))
    }

    /// As it lies in memory.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// What a word from a ledger says; `None` if it is empty or says nothing possible.
    #[must_use]
    pub fn read(bits: u64) -> Option<(PfnRange, Agent)> {
        if bits & Self::VALID == 0 {
            return None;
        }
        let first = (bits >> RUN_BITS) & ((1 << PFN_BITS) - 1);
        let run = PfnRange::new(first, (bits & ((1 << RUN_BITS) - 1)) + 1)?;
        Some((run, if bits & Self::DEVICE == 0 { Agent::Cpu } else { Agent::Device }))
    }
}

/// What a lane says in one word: `openings:48 | open block + 1:16`. Zero before it was first taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LaneState(u64);

impl LaneState {
    const BLOCK_BITS: u32 = 16;
    /// Most openings of one lane: a million a second for eight years.
    const MAX_OPENINGS: u64 = (1 << 48) - 1;

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// How often a block of this lane was opened.
    pub(crate) const fn openings(self) -> u64 {
        self.0 >> Self::BLOCK_BITS
    }

    /// The block that slots are filled in; `None` while no thread has the lane.
    pub(crate) const fn open_block(self) -> Option<usize> {
        ((self.0 & ((1 << Self::BLOCK_BITS) - 1)) as usize).checked_sub(1)
    }

    /// The open block, if no other was ever open: only there can a slot be full.
    pub(crate) const fn only_block(self) -> Option<usize> {
        if self.openings() == 1 { self.open_block() } else { None }
    }

    /// The next state, in which `block` is open; `None` after the last opening that there is.
    pub(crate) fn opening(self, block: usize) -> Option<Self> {
        let openings = self.openings() + 1;
        let is_possible = openings <= Self::MAX_OPENINGS && block + 1 < 1 << Self::BLOCK_BITS;
        is_possible.then_some(Self(openings << Self::BLOCK_BITS | (block as u64 + 1)))
    }

    /// The state in which no block is open.
    pub(crate) const fn closed(self) -> Self {
        Self(self.openings() << Self::BLOCK_BITS)
    }
}

/// Where everything lies in a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerLayout {
    nr_pages: u64,
    count_start: [usize; 3],
    nr_counts: usize,
    touched_start: usize,
    slots_start: usize,
    tags_start: usize,
    opened_start: usize,
    long_start: usize,
    nr_lanes: usize,
    lane_slots: usize,
    block_slots: usize,
}

impl LedgerLayout {
    /// The layout for the pfn space that `vmemmap` describes.
    #[must_use]
    pub fn new(vmemmap: &VmemmapLayout) -> Self {
        Self::with_lanes(vmemmap, MAX_LANES, LANE_SLOTS)
    }

    /// As [`new`](Self::new) with fewer or smaller lanes, for models and tests.
    #[must_use]
    pub fn with_lanes(vmemmap: &VmemmapLayout, nr_lanes: usize, lane_slots: usize) -> Self {
        let nr_pages = vmemmap.nr_pages();
        // Every array fits in a usize: there are at most 2^36 frames.
        let counts_of =
            |level: Level| ((nr_pages >> level.shift()) as usize).next_multiple_of(COUNTS_PER_PAGE);
        let pmd = counts_of(Level::Pud);
        let pte = pmd + counts_of(Level::Pmd);
        let nr_counts = pte + counts_of(Level::Pte);
        let nr_lanes = nr_lanes.min(MAX_LANES);
        let lane_slots = lane_slots.min(LANE_SLOTS);
        let block_slots = lane_slots.div_ceil(MIN_BLOCKS).clamp(1, BLOCK_SLOTS);
        let touched_start = LANE_MARKS_START + MAX_LANES * LANE_MARK_WORDS;
        let touched_words = nr_counts.div_ceil(COUNTS_PER_PAGE).div_ceil(64);
        let slots_start = touched_start + touched_words.next_multiple_of(PAGE_WORDS);
        let slot_words = (nr_lanes * lane_slots).next_multiple_of(PAGE_WORDS);
        let opened_start = slots_start + 2 * slot_words;
        let opened_words = nr_lanes * lane_slots.div_ceil(block_slots);
        Self {
            nr_pages,
            count_start: [pte, pmd, 0],
            nr_counts,
            touched_start,
            slots_start,
            tags_start: slots_start + slot_words,
            opened_start,
            long_start: opened_start + opened_words.next_multiple_of(PAGE_WORDS),
            nr_lanes,
            lane_slots,
            block_slots,
        }
    }

    /// Words the ledger needs.
    #[must_use]
    pub const fn nr_words(&self) -> usize {
        self.long_start + (self.nr_lanes * LONG_SLOTS).next_multiple_of(PAGE_WORDS)
    }

    /// Words that client and owner touch whatever is held, and those of one lane's first pins.
    /// Whoever makes a ledger sees to it that they have memory; the client does for all others when
    /// it first uses them.
    #[must_use]
    pub fn always_used(&self) -> [Range<usize>; 4] {
        let page = |at: usize| at..(at + PAGE_WORDS).min(self.long_start);
        [
            0..(self.slots_start + PAGE_WORDS).min(self.long_start),
            page(self.tags_start),
            page(self.opened_start),
            self.long_start..self.nr_words(),
        ]
    }

    /// Counts the ledger needs.
    #[must_use]
    pub const fn nr_counts(&self) -> usize {
        self.nr_counts
    }

    /// Lanes of this ledger.
    #[must_use]
    pub const fn nr_lanes(&self) -> usize {
        self.nr_lanes
    }

    /// Lanes that may be kept between pins. Those after them are shared: each is taken for one pin
    /// and given back at once, so that threads that keep lanes and hold nothing shut nobody out.
    #[must_use]
    pub const fn kept_lanes(&self) -> usize {
        self.nr_lanes - self.nr_lanes / LANES_PER_SHARED
    }

    pub(crate) const fn lane_slots(&self) -> usize {
        self.lane_slots
    }

    /// The word with the lane's state.
    pub(crate) const fn lane_state(&self, lane: usize) -> usize {
        LANE_MARKS_START + lane * LANE_MARK_WORDS
    }

    /// The word with the number of the lane's slots that were ever used.
    pub(crate) const fn lane_used(&self, lane: usize) -> usize {
        self.lane_state(lane) + 1
    }

    /// The word that is not 0 when the lane was given back with long-term holds in its slots.
    pub(crate) const fn lane_left(&self, lane: usize) -> usize {
        self.lane_state(lane) + 2
    }

    /// Slots of a block.
    pub(crate) const fn block_slots(&self) -> usize {
        self.block_slots
    }

    /// The block of a lane that `slot` of it lies in.
    pub(crate) const fn block_of(&self, slot: usize) -> usize {
        slot / self.block_slots
    }

    /// The words of a lane's slots from `from` up to `to`, of their tags and of their blocks.
    pub(crate) fn words_of(&self, lane: usize, from: usize, to: usize) -> [Range<usize>; 3] {
        let slots = self.slot(lane, from)..self.slot(lane, to);
        let tags = self.tag_of(slots.start)..self.tag_of(slots.end);
        let last = self.block_of(to.saturating_sub(1));
        [slots, tags, self.opened(lane, self.block_of(from))..self.opened(lane, last) + 1]
    }

    /// The word that says in which opening the block was opened last.
    pub(crate) const fn opened(&self, lane: usize, block: usize) -> usize {
        self.opened_start + lane * self.lane_slots.div_ceil(self.block_slots) + block
    }

    #[inline]
    pub(crate) const fn slot(&self, lane: usize, slot: usize) -> usize {
        self.slots_start + lane * self.lane_slots + slot
    }

    #[inline]
    pub(crate) const fn long_slot(&self, lane: usize, slot: usize) -> usize {
        self.long_start + lane * LONG_SLOTS + slot
    }

    #[inline]
    pub(crate) const fn tag_of(&self, slot_word: usize) -> usize {
        slot_word + (self.tags_start - self.slots_start)
    }

    #[inline]
    pub(crate) fn count(&self, level: Level, folio: u64) -> usize {
        self.count_start[level as usize] + folio as usize
    }

    /// The word and the bit that say whether the page of `count` was ever touched.
    #[inline]
    pub(crate) const fn touched(&self, count: usize) -> (usize, u64) {
        let page = count / COUNTS_PER_PAGE;
        (self.touched_start + page / 64, 1 << (page % 64))
    }

    /// The counts of the page that `count` lies in.
    pub(crate) fn page_of_count(&self, count: usize) -> Range<usize> {
        let start = count - count % COUNTS_PER_PAGE;
        start..(start + COUNTS_PER_PAGE).min(self.nr_counts)
    }

    pub(crate) const fn nr_pages(&self) -> u64 {
        self.nr_pages
    }
}

/// Where in a ledger a hold is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HoldPlace {
    /// A short-term pin, in the slot at this word.
    Slot(usize),
    /// A long-term pin, in the slot at this word.
    LongSlot(usize),
    /// Long-term pins, in the count at this index.
    Count(usize),
    /// Nowhere: the heavy barrier did not reach the client, so it may have stored what was not
    /// seen.
    Unseen,
    /// Nowhere: the ledger cannot be read any more, and may have said so.
    Lost,
}

/// One hold, as an owner reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Where it is recorded.
    pub place: HoldPlace,
    /// The frames held.
    pub run: PfnRange,
    /// Who may still write.
    pub agent: Agent,
    /// How many pins this stands for: 1 for a slot of either kind.
    pub nr_pins: u32,
    /// What the client said the pin is for; 0 when it said nothing.
    pub tag: u64,
}

impl Hold {
    /// What a client that a heavy barrier did not reach may have stored.
    pub(crate) const fn unseen(run: PfnRange) -> Self {
        Self { place: HoldPlace::Unseen, run, agent: Agent::Cpu, nr_pins: 0, tag: 0 }
    }
}

/// The owner's view of one client's ledger.
#[derive(Debug)]
pub struct LedgerReader<W, C> {
    layout: LedgerLayout,
    mode: BarrierMode,
    words: W,
    counts: C,
    /// What earlier scans found, which later ones need not read again.
    remembered: Mutex<Remembered>,
}

impl<W: ReadWords, C: ReadCounts> LedgerReader<W, C> {
    /// Reads the ledger in `words` and `counts`; `None` if there are too few words.
    #[must_use]
    pub fn new(layout: LedgerLayout, words: W, counts: C) -> Option<Self> {
        let remembered = Mutex::new(Remembered::default());
        (words.nr_words() >= layout.nr_words()).then_some(Self {
            layout,
            mode: BarrierMode::Asymmetric,
            words,
            counts,
            remembered,
        })
    }

    /// The ledger of a client that must make its light barriers so.
    #[must_use]
    pub fn in_mode(self, mode: BarrierMode) -> Self {
        Self { mode, ..self }
    }

    /// Whether a heavy barrier that reached so much was one for this client too: what it holds is
    /// then in its ledger.
    pub(crate) fn is_reached(&self, reached: Reached) -> bool {
        reached == Reached::All || self.mode() == BarrierMode::Fenced
    }

    /// How the client makes its light barriers, as far as the owner knows.
    #[must_use]
    pub const fn mode(&self) -> BarrierMode {
        self.mode
    }

    /// Whether the client says that it relies on a heavy barrier that interrupts its processors.
    #[must_use]
    pub fn is_asymmetric(&self) -> bool {
        // Acquire: pairs with Release in `Pinner::new`.
        self.words.load(BARRIER_WORD, Ordering::Acquire) == IS_ASYMMETRIC
    }

    /// Whether the client promised that each device that it holds frames for keeps the ledger's
    /// lock for as long as it can write to them. False of a ledger that cannot be read.
    #[must_use]
    pub fn do_transfers_keep_lock(&self) -> bool {
        // Acquire: pairs with Release in `Pinner::promise_transfers_keep_lock`.
        self.words.load(TRANSFERS_WORD, Ordering::Acquire) == KEEP_LOCK
    }

    /// Whether some of the ledger could not be read: what it said there is not known, and the holds
    /// that were found need not be all.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.words.is_lost() || self.counts.is_lost()
    }

    /// Calls `found` for every hold that overlaps one of `runs`. Reads the slots that were filled
    /// since the last call and those that may hold some of `runs`, not all that are held.
    pub fn for_each_hold(&self, runs: &SortedRuns, mut found: impl FnMut(Hold)) {
        let _all = self.try_for_each_hold(runs, |hold| {
            found(hold);
            ControlFlow::<()>::Continue(())
        });
    }

    /// As [`for_each_hold`](Self::for_each_hold) for as long as `found` wants more.
    pub fn try_for_each_hold<B>(
        &self,
        runs: &SortedRuns,
        mut found: impl FnMut(Hold) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let (mut next, mut left) = (0, usize::MAX);
        self.scan_lanes(runs, &mut next, &mut left, &mut found)?;
        self.walk_counts(runs, &mut found)
    }

    /// The lanes from number `from` on that were ever taken.
    fn lanes(&self, from: usize) -> impl Iterator<Item = (usize, LaneView)> + '_ {
        // Acquire here and below: pairs with the client's Release stores of marks and slots.
        let lanes = self.words.load(LANES_USED_WORD, Ordering::Acquire);
        let lanes = usize::try_from(lanes).unwrap_or(usize::MAX).min(self.layout.nr_lanes);
        (from..lanes).filter_map(|lane| Some((lane, self.lane_view(lane)?)))
    }

    /// A lane's marks, the state first.
    fn lane_view(&self, lane: usize) -> Option<LaneView> {
        let load = |index| self.words.load(index, Ordering::Acquire);
        let state = LaneState::from_bits(load(self.layout.lane_state(lane)));
        if state.bits() == 0 {
            return None;
        }
        let used = usize::try_from(load(self.layout.lane_used(lane))).unwrap_or(usize::MAX);
        Some(LaneView { state, nr_slots: used.min(self.layout.lane_slots) })
    }

    fn walk_counts<B>(
        &self,
        runs: &SortedRuns,
        found: &mut impl FnMut(Hold) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut seen_to = [0; 3];
        runs.iter().try_for_each(|run| self.scan_counts(run, &mut seen_to, found))
    }

    /// Folios below `seen_to` were found through an earlier run that shares a larger folio with
    /// this.
    fn scan_counts<B>(
        &self,
        run: PfnRange,
        seen_to: &mut [u64; 3],
        found: &mut impl FnMut(Hold) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let end = run.end().min(self.layout.nr_pages);
        if run.start() >= end {
            return ControlFlow::Continue(());
        }
        for level in Level::ALL {
            let mut folio = (run.start() >> level.shift()).max(seen_to[level as usize]);
            let last = (end - 1) >> level.shift();
            seen_to[level as usize] = last + 1;
            while folio <= last {
                let index = self.layout.count(level, folio);
                let (word, bit) = self.layout.touched(index);
                // Acquire: pairs with the client's setting of the bit before the count.
                let touched = self.words.load(word, Ordering::Acquire);
                if touched & bit == 0 {
                    // On to the next page of counts that was touched, or to the next word of them.
                    let pages = (touched & !(bit - 1)).trailing_zeros() - bit.trailing_zeros();
                    let skipped = pages as usize * COUNTS_PER_PAGE - index % COUNTS_PER_PAGE;
                    folio += skipped as u64;
                    continue;
                }
                self.read_count(level, folio, found)?;
                folio += 1;
            }
        }
        ControlFlow::Continue(())
    }

    fn read_count<B>(
        &self,
        level: Level,
        folio: u64,
        found: &mut impl FnMut(Hold) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let index = self.layout.count(level, folio);
        // Acquire: pairs with Release in the long-term unpin; data: what the holder did.
        let count = self.counts.load(index, Ordering::Acquire);
        let Some(pfn) = Pfn::new(folio << level.shift()) else { return ControlFlow::Continue(()) };
        let run = PfnRange::folio(pfn, level);
        for (agent, nr_pins) in [(Agent::Cpu, count & 0xffff), (Agent::Device, count >> 16)] {
            if nr_pins != 0 {
                found(Hold { place: HoldPlace::Count(index), run, agent, nr_pins, tag: 0 })?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Whether what `hold` recorded still covers some of `runs`: the question a waiting drain asks
    /// again. The slot may have been cleared and reused for a pin of something else.
    #[must_use]
    pub fn still_holds(&self, hold: &Hold, runs: &SortedRuns) -> bool {
        let holds = match hold.place {
            // As long as there is a client, or a ledger.
            HoldPlace::Lost | HoldPlace::Unseen => true,
            HoldPlace::Slot(index) | HoldPlace::LongSlot(index) => {
                self.read_slot(hold.place, index).is_some_and(|now| runs.overlaps(now.run))
            }
            HoldPlace::Count(index) => {
                // Acquire: pairs with Release in the long-term unpin.
                let count = self.counts.load(index, Ordering::Acquire);
                match hold.agent {
                    Agent::Cpu => count & 0xffff != 0,
                    Agent::Device => count >> 16 != 0,
                }
            }
        };
        // What cannot be read any more has not said that it let go.
        holds || self.is_lost()
    }

    /// Every hold in the ledger, wherever it lies: what a dead client leaves behind.
    #[must_use]
    pub fn all_holds(&self) -> Vec<Hold> {
        let everything = SortedRuns::covering(self.layout.nr_pages);
        let mut holds = Vec::new();
        let _all = self.try_for_each_hold(&everything, |hold| {
            holds.push(hold);
            ControlFlow::<()>::Continue(())
        });
        holds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_holds_the_longest_run_and_the_last_frame() {
        for run in [
            PfnRange::new(0, 1 << RUN_BITS).unwrap(),
            PfnRange::new((1 << PFN_BITS) - 1, 1).unwrap(),
            PfnRange::new(0x1234, 77).unwrap(),
        ] {
            for agent in [Agent::Cpu, Agent::Device] {
                assert_eq!(SlotWord::read(SlotWord::new(run, agent).bits()), Some((run, agent)));
            }
        }
        assert_eq!(SlotWord::read(0), None);
        assert_eq!(SlotWord::read(u64::MAX), None, "a run off the pfn space is no hold");
    }
}
