//! Scans that remember what they read, against the list of all holds: pins in several lanes come,
//! shrink and go between scans, lanes are given back and taken again.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::heap_world::{Client, Side, World, run};
use pgmap_mm::barrier::PortableBarrier;
use pgmap_mm::drain::{ClientId, Scan};
use pgmap_mm::error::PinError;
use pgmap_mm::extent::Extent;
use pgmap_mm::ledger::{Agent, HoldPlace, LedgerLayout, LedgerReader};
use pgmap_mm::level::Level;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::pin::{Lane, Pin};
use pgmap_mm::runs::SortedRuns;
use pgmap_mm::words::{HeapCounts, HeapWords, Indexed, ReadWords};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

const NR_PAGES: u64 = 2 * Level::Pmd.nr_pages();
const NR_LANES: usize = 2;
/// Four blocks a lane, the last of them short.
const LANE_SLOTS: usize = 22;

#[derive(Clone, Debug)]
enum Step {
    /// As many pins of one lane, each a little further on.
    Pin {
        lane: usize,
        first: u64,
        nr_pages: u64,
        nr_pins: usize,
    },
    Drop {
        pin: usize,
    },
    DropMost {
        keep_every: usize,
    },
    Narrow {
        pin: usize,
    },
    /// Gives the lane back, with its pins in it, or takes it again.
    GiveBackOrTake {
        lane: usize,
    },
    /// Scans for frames, as often as it takes until nothing is read twice.
    Scan {
        runs: Vec<(u64, u64)>,
        nr_times: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let frames = || (0..NR_PAGES, 1u64..40);
    prop_oneof![
        4 => (0..NR_LANES, frames(), 1usize..14).prop_map(|(lane, (first, nr_pages), nr_pins)| {
            Step::Pin { lane, first, nr_pages, nr_pins }
        }),
        3 => any::<usize>().prop_map(|pin| Step::Drop { pin }),
        1 => (2usize..9).prop_map(|keep_every| Step::DropMost { keep_every }),
        2 => any::<usize>().prop_map(|pin| Step::Narrow { pin }),
        1 => (0..NR_LANES).prop_map(|lane| Step::GiveBackOrTake { lane }),
        5 => (prop::collection::vec(frames(), 1..9), 1usize..9)
            .prop_map(|(runs, nr_times)| Step::Scan { runs, nr_times }),
    ]
}

struct History<'p> {
    client: &'p Client,
    extent: Extent,
    lanes: [Option<Lane<'p, Side>>; NR_LANES],
    pins: Vec<Pin<'p, Side>>,
}

impl History<'_> {
    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Pin { lane, first, nr_pages, nr_pins } => {
                let Some(lane) = &self.lanes[lane] else { return Ok(()) };
                for n in 0..nr_pins as u64 {
                    let first = (first + 7 * n) % NR_PAGES;
                    let run = run(first, nr_pages.min(NR_PAGES - first));
                    match lane.pin(&self.extent, run, Agent::Cpu) {
                        Ok(pin) => self.pins.push(pin),
                        Err(error) => {
                            prop_assert_eq!(error, PinError::LaneFull { nr_slots: LANE_SLOTS });
                        }
                    }
                }
            }
            Step::Drop { pin } if !self.pins.is_empty() => {
                drop(self.pins.swap_remove(pin % self.pins.len()));
            }
            Step::DropMost { keep_every } => {
                let mut number = 0;
                self.pins.retain(|_| {
                    number += 1;
                    number % keep_every == 0
                });
            }
            Step::Narrow { pin } if !self.pins.is_empty() => {
                let place = pin % self.pins.len();
                let pin = &mut self.pins[place];
                let rest = pin.run().sub_run(0, pin.run().nr_pages().div_ceil(2)).unwrap();
                prop_assert!(pin.narrow(rest, Agent::Device));
            }
            Step::GiveBackOrTake { lane } => {
                self.lanes[lane] = match self.lanes[lane].take() {
                    Some(_given_back) => None,
                    None => self.client.pinner.lane().ok(),
                };
            }
            Step::Scan { runs, nr_times } => {
                let runs = runs.into_iter().map(|(first, nr)| run(first, nr)).collect();
                for _ in 0..nr_times {
                    self.check(&runs)?;
                }
            }
            Step::Drop { .. } | Step::Narrow { .. } => {}
        }
        Ok(())
    }

    fn check(&self, runs: &SortedRuns) -> Result<(), TestCaseError> {
        let mut found = Vec::new();
        self.client.reader.for_each_hold(runs, |hold| found.push((hold.run, hold.place)));
        let places: std::collections::HashSet<HoldPlace> = found.iter().map(|&(_, p)| p).collect();
        prop_assert_eq!(places.len(), found.len(), "a hold was found twice");
        let mut found: Vec<PfnRange> = found.into_iter().map(|(run, _)| run).collect();
        found.sort_unstable();
        let held = self.pins.iter().map(Pin::run).filter(|&run| runs.overlaps(run));
        let mut held: Vec<PfnRange> = held.collect();
        held.sort_unstable();
        prop_assert_eq!(&found, &held);
        let ledgers = || [(ClientId(1), &self.client.reader)];
        let mut scan = Scan::start(runs.clone(), &PortableBarrier, ledgers());
        while !scan.look_on(1, ledgers().into_iter().skip((scan.next_client().0 > 1).into())) {}
        let in_steps: Vec<PfnRange> = scan.finish().held().iter().map(|h| h.hold.run).collect();
        prop_assert_eq!(in_steps, held, "found in steps, and in order");
        Ok(())
    }
}

fn one_extent(world: &World) -> Extent {
    world.extent_of_huge_folios(2)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_scan_that_remembers_finds_what_is_held_and_nothing_twice(
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let world = World::new();
        let client = world.client(1, NR_LANES, LANE_SLOTS);
        let lanes = [(); NR_LANES].map(|()| client.pinner.lane().ok());
        let mut history = History {
            client: &client,
            extent: one_extent(&world),
            lanes,
            pins: Vec::new(),
        };
        for step in steps {
            history.take(step)?;
        }
        history.check(&SortedRuns::covering(NR_PAGES))?;
        let nr_held = history.pins.len();
        prop_assert_eq!(client.holds().len(), nr_held, "the look at everything agrees");
    }
}

/// A ledger's words that count how often they are looked at.
#[derive(Debug)]
struct Counted<'l> {
    words: Arc<HeapWords>,
    nr_loads: &'l AtomicU64,
}

impl ReadWords for Counted<'_> {
    type Word<'w>
        = Indexed<'w, Self>
    where
        Self: 'w;

    fn nr_words(&self) -> usize {
        self.words.nr_words()
    }

    fn word(&self, index: usize) -> Indexed<'_, Self> {
        Indexed::new(self, index)
    }

    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.nr_loads.fetch_add(1, Ordering::Relaxed);
        self.words.load(index, order)
    }
}

/// One long hold at low frames made every hold behind it a candidate for every run of a drain: a
/// scan for a file of many extents took the product of both, under the owner's lock.
#[test]
fn a_scan_for_many_runs_reads_what_is_held_a_few_times_and_not_once_for_each_run() {
    const NR_PINS: u64 = 400;
    let world = World::new();
    let extent = one_extent(&world);
    let client = world.client(1, 1, 1000);
    let lane = client.pinner.lane().unwrap();
    let pin = |first, nr_pages| lane.pin(&extent, run(first, nr_pages), Agent::Cpu).unwrap();
    let mut pins = vec![pin(0, NR_PAGES)];
    pins.extend((0..NR_PINS).map(|n| pin(2 * n, 1)));
    let nr_loads = AtomicU64::new(0);
    let words = Counted { words: Arc::clone(&client.ledger), nr_loads: &nr_loads };
    let layout = LedgerLayout::with_lanes(&world.layout, 1, 1000);
    let counts = HeapCounts::new(layout.nr_counts());
    let reader = LedgerReader::new(layout, words, counts).unwrap();
    let scan = |runs: &SortedRuns| {
        nr_loads.store(0, Ordering::Relaxed);
        let mut nr_found = 0;
        reader.for_each_hold(runs, |_| nr_found += 1);
        (nr_found, nr_loads.load(Ordering::Relaxed))
    };
    // Until what the lane has left is sorted in.
    let one = SortedRuns::new(vec![run(NR_PAGES - 1, 1)]);
    for _ in 0..20 {
        assert_eq!(scan(&one).0, 1);
    }
    let many: SortedRuns = (0..NR_PINS).map(|n| run(2 * n, 1)).collect();
    let (nr_found, nr_loads) = scan(&many);
    assert_eq!(nr_found, NR_PINS + 1);
    assert!(nr_loads < 12 * NR_PINS, "{nr_loads} loads for {NR_PINS} holds");
}
