//! A ledger, as the owner reads it: any words at all, changed at any time.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use pgmap::mm::barrier::PortableBarrier;
use pgmap::mm::drain::{ClientId, Drain};
use pgmap::mm::ledger::{Agent, Hold, HoldPlace, LedgerLayout, LedgerReader, SlotWord};
use pgmap::mm::pfn::{PFN_BITS, PfnRange};
use pgmap::mm::runs::SortedRuns;
use pgmap::mm::vmemmap::VmemmapLayout;

use crate::input::Input;
use crate::words::SparseWords;

type Reader = LedgerReader<Arc<SparseWords>, Arc<SparseWords>>;

const NR_PAGES: u64 = 1 << 18;
const NR_LANES: usize = 3;
const LANE_SLOTS: usize = 40;
/// Blocks of a lane.
const NR_BLOCKS: usize = 4;
const LONG_SLOTS: usize = 8;
const PAGE_WORDS: usize = 512;
const COUNTS_PER_PAGE: usize = 1024;
const LANES_USED: usize = 1;
/// Frames of a run that is scanned for.
const MOST_RUN_PAGES: u16 = 4096;
const LANE_MARKS: usize = PAGE_WORDS;
/// Loads of marks, slots and tags of one scan, however many runs it is for.
const MOST_SLOT_LOADS: u64 = (NR_LANES * (8 + NR_BLOCKS + 8 * LANE_SLOTS + LONG_SLOTS)) as u64;

/// Changes of words, and scans between them. Each begins with a byte that says what it is.
pub fn ledger_words(bytes: &[u8]) {
    let Some(ledger) = Ledger::new() else { panic!("no layout") };
    let mut input = Input::new(bytes);
    let mut drains = Vec::new();
    while !input.is_empty() {
        match input.byte() % 8 {
            0 => {
                let at = usize::from(input.number16()) % ledger.words.nr();
                ledger.words.set(at, input.number64());
            }
            1 => ledger.words.set(LANES_USED, u64::from(input.byte())),
            2 => ledger.set_lane(&mut input),
            3 => ledger.set_slot(&mut input),
            4 => {
                let block = usize::from(input.byte()) % (NR_LANES * NR_BLOCKS);
                ledger.words.set(ledger.opened_start + block, u64::from(input.byte()));
            }
            5 => ledger.set_count(&mut input),
            6 => {
                let slot = usize::from(input.byte()) % (NR_LANES * LONG_SLOTS);
                ledger.words.set(ledger.long_start + slot, slot_word(&mut input));
            }
            _ => {
                let runs = runs(&mut input);
                ledger.scan(&runs);
                if drains.len() < 8 {
                    drains.push(Drain::start(runs, &PortableBarrier, [ledger.as_client()]));
                }
            }
        }
    }
    ledger.look_at_everything();
    ledger.end(drains);
}

/// The ledger and where things lie in it.
struct Ledger {
    words: Arc<SparseWords>,
    counts: Arc<SparseWords>,
    reader: Reader,
    touched_start: usize,
    slots_start: usize,
    opened_start: usize,
    long_start: usize,
}

impl Ledger {
    fn new() -> Option<Self> {
        let vmemmap = VmemmapLayout::for_pages(NR_PAGES)?;
        let layout = LedgerLayout::with_lanes(&vmemmap, NR_LANES, LANE_SLOTS);
        let words = Arc::new(SparseWords::new(layout.nr_words()));
        let counts = Arc::new(SparseWords::new(layout.nr_counts()));
        let [head, _tags, opened, long] = layout.always_used();
        Some(Self {
            reader: LedgerReader::new(layout, Arc::clone(&words), Arc::clone(&counts))?,
            words,
            counts,
            touched_start: head.end - 2 * PAGE_WORDS,
            slots_start: head.end - PAGE_WORDS,
            opened_start: opened.start,
            long_start: long.start,
        })
    }

    const fn as_client(&self) -> (ClientId, &Reader) {
        (ClientId(1), &self.reader)
    }

    /// A lane's state, its number of used slots, or whether holds were left: as it may be, or any
    /// value.
    fn set_lane(&self, input: &mut Input<'_>) {
        let lane = usize::from(input.byte()) % NR_LANES;
        let (mark, value) = (input.byte(), input.number16());
        let [openings, block] = value.to_le_bytes().map(u64::from);
        let value = match mark % 8 {
            0 | 4 => (openings << 16) | (block % (NR_BLOCKS as u64 + 2)),
            _ => u64::from(value),
        };
        self.words.set(LANE_MARKS + lane * 4 + usize::from(mark % 4), value);
    }

    fn set_slot(&self, input: &mut Input<'_>) {
        let slot = usize::from(input.byte()) % (NR_LANES * LANE_SLOTS);
        self.words.set(self.slots_start + slot, slot_word(input));
    }

    /// A count, and that its page was touched.
    fn set_count(&self, input: &mut Input<'_>) {
        let count = input.number32() as usize % self.counts.nr();
        self.counts.set(count, u64::from(input.number32()));
        let page = count / COUNTS_PER_PAGE;
        self.words.set(self.touched_start + page / 64, 1 << (page % 64) | input.number64());
    }

    fn scan(&self, runs: &SortedRuns) {
        self.words.take_nr_loads();
        let mut seen = HashSet::new();
        self.reader.for_each_hold(runs, |hold| {
            self.check(&hold);
            assert!(runs.overlaps(hold.run), "{hold:?} is none of {runs:?}");
            assert!(seen.insert((hold.place, hold.agent)), "{hold:?} is found twice");
        });
        let nr_loads = self.words.take_nr_loads();
        // Beside those, one for each count and two for each jump over what was not touched.
        let most = MOST_SLOT_LOADS + 2 * (runs.nr_pages().min(NR_PAGES) + 64);
        assert!(nr_loads <= most, "{nr_loads} loads, at most {most}");
    }

    fn check(&self, hold: &Hold) {
        assert!(hold.nr_pins > 0 && hold.run.end() <= 1 << PFN_BITS);
        match hold.place {
            HoldPlace::Slot(at) => {
                let slots = self.slots_start..self.slots_start + NR_LANES * LANE_SLOTS;
                assert!(slots.contains(&at));
            }
            HoldPlace::LongSlot(at) => {
                let slots = self.long_start..self.long_start + NR_LANES * LONG_SLOTS;
                assert!(slots.contains(&at));
            }
            HoldPlace::Count(at) => {
                assert!(at < self.counts.nr() && hold.run.end() <= NR_PAGES);
            }
            HoldPlace::Unseen | HoldPlace::Lost => panic!("{hold:?} from readable words"),
        }
    }

    /// What `who` of everything asks, and what a dead client leaves behind.
    fn look_at_everything(&self) {
        let holds = self.reader.all_holds();
        let mut nr_found = 0;
        let _stopped = self.reader.try_for_each_hold(&SortedRuns::covering(NR_PAGES), |hold| {
            self.check(&hold);
            nr_found += 1;
            if nr_found > 200 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!(nr_found, holds.len().min(201));
        let device = holds.iter().filter(|hold| hold.agent == Agent::Device);
        let orphans: SortedRuns = device.map(|hold| hold.run).collect();
        assert!(orphans.nr_pages() <= 1 << PFN_BITS);
        let pairs = orphans.iter().zip(orphans.iter().skip(1));
        assert!(pairs.into_iter().all(|(run, next)| run.end() <= next.start()));
    }

    /// Once the words say nothing any more, nothing waits.
    fn end(&self, drains: Vec<Drain>) {
        let ledger_of = |_| Some(&self.reader);
        let mut parts = Vec::new();
        for mut drain in drains {
            for ranges in drain.asks(4).values() {
                assert!(ranges.len() <= 4);
            }
            let nr_held = drain.held().len();
            drain.look_again(ledger_of);
            assert!(drain.held().len() <= nr_held);
            let nr_held = drain.held().len();
            let in_parts = drain.in_parts(3, |pfn| pfn.number());
            assert_eq!(in_parts.iter().map(|part| part.held().len()).sum::<usize>(), nr_held);
            parts.extend(in_parts);
        }
        for words in [&self.words, &self.counts] {
            words.places().into_iter().for_each(|at| words.set(at, 0));
        }
        for mut drain in parts {
            while drain.look_on(2, ledger_of).is_none() {}
            assert!(drain.is_idle(), "{:?}", drain.held());
        }
    }
}

/// A hold of some frames, or any word.
fn slot_word(input: &mut Input<'_>) -> u64 {
    let kind = input.byte();
    if kind & 3 == 3 {
        return input.number64();
    }
    let agent = if kind & 1 == 0 { Agent::Cpu } else { Agent::Device };
    let first = u64::from(input.number16()) << (kind >> 5);
    let nr_pages = u64::from(input.number16()) + 1;
    PfnRange::new(first, nr_pages).map_or(0, |run| SlotWord::new(run, agent).bits())
}

fn runs(input: &mut Input<'_>) -> SortedRuns {
    let nr_runs = input.byte() % 8;
    let mut run = |_| {
        let shift = input.byte() % 12;
        // A scan of long runs takes long where all counts were touched.
        let nr_pages = u64::from(input.number16() % MOST_RUN_PAGES) + 1;
        PfnRange::new(u64::from(input.number16()) << shift, nr_pages)
    };
    (0..nr_runs).filter_map(&mut run).collect()
}
