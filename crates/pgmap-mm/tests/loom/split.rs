//! Reshaping, failure and recall under loom: every interleaving with a client that pins.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p pgmap-mm --release --test loom split`. The owner runs the
//! code that ships, on [`FewWords`]: words of which only those that both sides touch are loom's
//! atomics, so that writing a table of 512 is one step and not 512.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64 as PlainU64};

use loom::sync::Mutex;
use loom::thread;
use pgmap_mm::barrier::{BarrierMode, HeavyBarrier, PortableBarrier};
use pgmap_mm::descriptor::{FolioFlags, FolioState};
use pgmap_mm::drain::{ClientId, Drain};
use pgmap_mm::error::PinError;
use pgmap_mm::extent::Extent;
use pgmap_mm::folio::{Folios, Sizing};
use pgmap_mm::lease::{LeaseTable, PastDeadline, Recall};
use pgmap_mm::ledger::{Agent, LedgerLayout, LedgerReader};
use pgmap_mm::level::Level;
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::pin::Pinner;
use pgmap_mm::runs::SortedRuns;
use pgmap_mm::split::NoSmallCounts;
use pgmap_mm::stamp::Stamp;
use pgmap_mm::sync::{AtomicU64, Ordering};
use pgmap_mm::vmemmap::{Vmemmap, VmemmapLayout};
use pgmap_mm::words::{Indexed, ReadCounts, ReadWords, WriteCounts, WriteWords};

use crate::client_side::{self, Bell};
use crate::support::Doorbell;

const PREEMPTIONS: usize = 3;

fn explore(scenario: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(PREEMPTIONS));
    model.max_branches = model.max_branches.max(10_000);
    let nr_executions = Arc::new(PlainU64::new(0));
    let counter = Arc::clone(&nr_executions);
    model.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        scenario();
    });
    println!("{} executions", nr_executions.load(Ordering::Relaxed));
}

/// Words of which those in `shared` are loom's and the others plain memory of the owner's.
#[derive(Debug)]
struct FewWords {
    nr_words: usize,
    shared: Vec<(usize, AtomicU64)>,
    private: std::sync::Mutex<std::collections::BTreeMap<usize, u64>>,
}

impl FewWords {
    fn new(nr_words: usize, shared: impl IntoIterator<Item = usize>) -> Arc<Self> {
        let shared: BTreeSet<usize> = shared.into_iter().collect();
        Arc::new(Self {
            nr_words,
            shared: shared.into_iter().map(|index| (index, AtomicU64::new(0))).collect(),
            private: std::sync::Mutex::default(),
        })
    }

    fn shared(&self, index: usize) -> Option<&AtomicU64> {
        assert!(index < self.nr_words);
        let place = self.shared.binary_search_by_key(&index, |&(index, _)| index).ok()?;
        Some(&self.shared[place].1)
    }
}

impl ReadWords for FewWords {
    type Word<'w> = Indexed<'w, Self>;

    fn word(&self, index: usize) -> Indexed<'_, Self> {
        Indexed::new(self, index)
    }

    fn nr_words(&self) -> usize {
        self.nr_words
    }

    fn load(&self, index: usize, order: Ordering) -> u64 {
        match self.shared(index) {
            Some(word) => word.load(order),
            None => self.private.lock().unwrap().get(&index).copied().unwrap_or(0),
        }
    }
}

impl WriteWords for FewWords {
    type Slot<'w> = Indexed<'w, Self>;

    fn slot(&self, index: usize) -> Indexed<'_, Self> {
        Indexed::new(self, index)
    }

    fn store(&self, index: usize, value: u64, order: Ordering) {
        match self.shared(index) {
            Some(word) => word.store(value, order),
            None => drop(self.private.lock().unwrap().insert(index, value)),
        }
    }

    fn fetch_or(&self, index: usize, bits: u64, order: Ordering) -> u64 {
        self.shared(index).unwrap().fetch_or(bits, order)
    }

    fn discard(&self, range: Range<usize>) {
        for (_, word) in self.shared.iter().filter(|(index, _)| range.contains(index)) {
            word.store(0, Ordering::Relaxed);
        }
        self.private.lock().unwrap().retain(|index, _| !range.contains(index));
    }
}

/// No count is ever taken here.
#[derive(Debug)]
struct NoCounts;

impl ReadCounts for NoCounts {
    fn load(&self, _: usize, _: Ordering) -> u32 {
        0
    }
}

impl WriteCounts for NoCounts {
    fn fetch_add(&self, _: usize, _: u32, _: Ordering) -> u32 {
        unreachable!("no count is taken")
    }

    fn fetch_sub(&self, _: usize, _: u32, _: Ordering) -> u32 {
        unreachable!("no count is taken")
    }

    fn store(&self, _: usize, _: u32, _: Ordering) {
        unreachable!("no count is taken")
    }
}

/// The client has one page to pin, and counts none.
type Side = client_side::Side<Arc<FewWords>, NoCounts, Arc<Doorbell>>;

/// What really happens to the frames, outside of the model.
#[derive(Debug, Default)]
struct Truth {
    is_held: AtomicBool,
    is_reused: AtomicBool,
}

impl Truth {
    fn hold(&self) {
        self.is_held.store(true, Ordering::SeqCst);
        assert!(!self.is_reused.load(Ordering::SeqCst), "held, and given away");
        thread::yield_now();
        assert!(!self.is_reused.load(Ordering::SeqCst), "held, and given away");
        self.is_held.store(false, Ordering::SeqCst);
    }

    fn reuse(&self) {
        assert!(!self.is_held.load(Ordering::SeqCst), "given away, and held");
        self.is_reused.store(true, Ordering::SeqCst);
    }
}

/// One owner with 4 MiB in one file, one client with one slot.
struct World {
    folios: Folios<Arc<FewWords>>,
    ledger: LedgerReader<Arc<FewWords>, NoCounts>,
    pinner: Option<Pinner<Side>>,
    bell: Arc<Doorbell>,
    truth: Arc<Truth>,
    extent: Extent,
    last_stamp: u64,
}

impl World {
    fn new() -> Self {
        let layout = VmemmapLayout::for_pages(1).unwrap();
        // The words at which an extent of this file may have its life word.
        let places =
            [(Level::Pmd, 0), (Level::Pmd, 512), (Level::Pte, 0), (Level::Pte, 7), (Level::Pte, 8)];
        let shared =
            places.map(|(level, pfn)| layout.index(level, Pfn::new(pfn).unwrap()).unwrap());
        let words = FewWords::new(layout.nr_words(), shared);
        let mut folios = Folios::new(Vmemmap::new(layout, Arc::clone(&words)).unwrap());
        folios.bring_online(Pfn::new(0).unwrap(), 1024);
        let reserved =
            folios.reserve(1024, Sizing::Fixed(Level::Pmd), Stamp::new(1).unwrap()).unwrap();
        let extent = folios.publish(&reserved, FolioFlags::WRITABLE)[0];
        assert_eq!(extent.run.start(), 0);

        let ledger_layout = LedgerLayout::with_lanes(&layout, 1, 1);
        let ledger = FewWords::new(ledger_layout.nr_words(), [0, 1, 2, 512, 513, 514, 2048, 3072]);
        let bell = Arc::new(Doorbell::default());
        let vmemmap = Vmemmap::new(layout, words).unwrap();
        let side = Side {
            ledger: Arc::clone(&ledger),
            counts: NoCounts,
            vmemmap,
            barrier_mode: BarrierMode::Asymmetric,
            bell: Arc::clone(&bell),
            is_forked: Arc::default(),
            identity: 1,
        };
        Self {
            folios,
            pinner: Pinner::new(side, ledger_layout),
            ledger: LedgerReader::new(ledger_layout, ledger, NoCounts).unwrap(),
            bell,
            truth: Arc::default(),
            extent,
            last_stamp: 1,
        }
    }

    fn stamp(&mut self) -> Stamp {
        self.last_stamp += 1;
        Stamp::new(self.last_stamp).unwrap()
    }

    /// A client that pins `run` of `extent` once, on a thread of its own. Says what it got.
    fn pin(&mut self, extent: Extent, run: PfnRange) -> thread::JoinHandle<Result<(), PinError>> {
        let (pinner, truth) = (self.pinner.take().unwrap(), Arc::clone(&self.truth));
        thread::spawn(move || {
            let lane = pinner.lane().unwrap();
            let pin = lane.pin(&extent, run, Agent::Cpu)?;
            truth.hold();
            drop(pin);
            Ok(())
        })
    }

    fn drain(&mut self, run: PfnRange) {
        self.folios.change_healthy(run, |word| word.in_state(FolioState::Dying));
        let runs = SortedRuns::new(vec![run]);
        let id = ClientId(0);
        let mut drain = Drain::start(runs, &PortableBarrier, [(id, &self.ledger)]);
        while !drain.is_idle() {
            self.bell.wait();
            drain.look_again(|_| Some(&self.ledger));
        }
        self.truth.reuse();
    }
}

fn run(first: u64, nr_pages: u64) -> PfnRange {
    PfnRange::new(first, nr_pages).unwrap()
}

/// A pin of the whole meets a hole of one frame: the head folio is split and the frame drained.
#[test]
fn loom_a_split_and_a_pin_under_the_old_life_word_never_both_win() {
    explore(|| {
        let mut world = World::new();
        let (extent, hole) = (world.extent, run(7, 1));
        let client = world.pin(extent, hole);
        let fresh = world.stamp();
        let cut = world.folios.cut_out(&extent, hole, fresh).unwrap();
        assert_eq!(cut.before.unwrap().head_level, Level::Pte);
        world.drain(hole);
        let _ = client.join().unwrap();
    });
}

/// A split takes nothing away: a pin under the old word is either held or asked to look again, and
/// what is given out afterwards can be pinned.
#[test]
fn loom_a_pin_during_a_split_is_held_or_sent_to_look_again() {
    explore(|| {
        let mut world = World::new();
        let extent = world.extent;
        let client = world.pin(extent, extent.run);
        let reshaped = world.folios.split(Pfn::new(7).unwrap(), Level::Pte).unwrap();
        let told = reshaped.extent_after(&extent);
        let result = client.join().unwrap();
        assert!(matches!(result, Ok(()) | Err(PinError::Changed { .. })), "{result:?}");
        let life = world.folios.vmemmap().load(told.head_level, told.first());
        assert_eq!(life, Some(told.life));
    });
}

/// A pin under the word of the small head meets a merge and the drain of the merged folio.
#[test]
fn loom_a_merge_and_a_pin_under_the_small_life_word_never_both_win() {
    explore(|| {
        let mut world = World::new();
        let extent = world.extent;
        let split = world.folios.split(Pfn::new(7).unwrap(), Level::Pte).unwrap();
        let small = split.extent_after(&extent);
        let client = world.pin(small, run(7, 1));
        let proof = NoSmallCounts::among(run(0, 512), []).unwrap();
        let fresh = world.stamp();
        let pfn = small.first();
        let merged = world.folios.merge(&small, pfn, Level::Pmd, fresh, &proof).unwrap();
        assert_eq!(merged.extent_after(&small).head_level, Level::Pmd);
        world.drain(extent.run);
        let _ = client.join().unwrap();
    });
}

/// A frame fails while it is being pinned: either the client is found and told, or its pin fails.
fn a_frame_fails_while_it_is_pinned(pfn: u64) {
    explore(move || {
        let mut world = World::new();
        let (extent, pfn) = (world.extent, Pfn::new(pfn).unwrap());
        let pinner = world.pinner.take().unwrap();
        let client = thread::spawn(move || {
            let lane = pinner.lane().unwrap();
            // Kept for ever: whoever holds now must be found by the scan, however late it is.
            lane.pin(&extent, extent.run, Agent::Cpu).map(std::mem::forget).is_ok()
        });
        let fresh = world.stamp();
        let isolated = world.folios.isolate(pfn, Some(&extent), fresh).unwrap();
        let _reached = PortableBarrier.heavy();
        let mut is_told = false;
        world.ledger.for_each_hold(&SortedRuns::new(vec![isolated.frame]), |_| is_told = true);
        let is_held = client.join().unwrap();
        assert!(!is_held || is_told, "a holder of a failed frame was not told");
        let failed = isolated.pieces[1];
        assert_eq!(failed.life.state(), FolioState::Poisoned);
        assert!(!failed.life.is_pinnable());
    });
}

/// The life word of the extent moves, because its head folio is split.
#[test]
fn loom_a_failed_frame_of_the_head_is_pinned_by_nobody_who_is_not_told() {
    a_frame_fails_while_it_is_pinned(7);
}

/// The life word of the extent stays where it is and changes.
#[test]
fn loom_a_failed_frame_past_the_head_is_pinned_by_nobody_who_is_not_told() {
    a_frame_fails_while_it_is_pinned(600);
}

/// A client gives its lease back, after a last short pin, while the owner recalls it: the drain
/// ends, and not before both are gone.
#[test]
fn loom_a_recall_meets_the_last_unpin_and_the_release() {
    explore(|| {
        let mut world = World::new();
        let (extent, id) = (world.extent, ClientId(0));
        let mut table = LeaseTable::new();
        let lease = table.grant(id, extent.run, Agent::Device, 0, None).unwrap();
        // The owner's turn of the loop, and the socket's: one at a time.
        let table = Arc::new(Mutex::new(table));
        let client = {
            let (table, bell) = (Arc::clone(&table), Arc::clone(&world.bell));
            let (pinner, truth) = (world.pinner.take().unwrap(), Arc::clone(&world.truth));
            thread::spawn(move || {
                let lane = pinner.lane().unwrap();
                let pin = lane.pin(&extent, extent.run, Agent::Cpu);
                truth.hold();
                drop(pin);
                truth.hold();
                table.lock().unwrap().release(id, lease).unwrap();
                bell.ring();
            })
        };
        let recall =
            Recall { asked_ms: 0, deadline_ms: 10, past_deadline: PastDeadline::Quarantine };
        world.folios.change_healthy(extent.run, |word| word.in_state(FolioState::Dying));
        let nr_told =
            table.lock().unwrap().recall(&SortedRuns::new(vec![extent.run]), recall).len();
        let runs = SortedRuns::new(vec![extent.run]);
        let mut drain = Drain::start(runs.clone(), &PortableBarrier, [(id, &world.ledger)]);
        loop {
            let is_leased = table.lock().unwrap().holding(&runs).next().is_some();
            assert!(nr_told == 1 || !is_leased, "held, and not told");
            drain.look_again(|_| Some(&world.ledger));
            if drain.is_idle() && !is_leased {
                break;
            }
            world.bell.wait();
        }
        world.truth.reuse();
        client.join().unwrap();
    });
}
