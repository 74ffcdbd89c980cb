//! A small world: two folios of 2 MiB, clients with tiny ledgers, a doorbell, and an owner.
//!
//! [`SparseWords`] map only the words that a scenario uses. Any other word reads as zero and may
//! not be stored, so a protocol that starts to use another word says so instead of losing its
//! store.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use loom::sync::{Condvar, Mutex};
use pgmap_mm::barrier::{BarrierMode, PortableBarrier};
use pgmap_mm::descriptor::{Descriptor, FolioFlags, FolioState};
use pgmap_mm::drain::{ClientId, Drain};
use pgmap_mm::extent::Extent;
use pgmap_mm::ledger::{LedgerLayout, LedgerReader};
use pgmap_mm::level::Level;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::pin::Pinner;
use pgmap_mm::runs::SortedRuns;
use pgmap_mm::stamp::Stamp;
use pgmap_mm::sync::{AtomicU32, AtomicU64, Ordering};
use pgmap_mm::vmemmap::{Vmemmap, VmemmapLayout};
use pgmap_mm::words::{Indexed, ReadCounts, ReadWords, WriteCounts, WriteWords};

use crate::client_side::{self, Bell};

/// Thread switches against a thread's will that are explored, unless `LOOM_MAX_PREEMPTIONS` says.
const PREEMPTIONS: usize = 6;
/// Operations of one execution; more means that a retry does not end.
const MAX_BRANCHES: usize = 10_000;

/// Explores `scenario`, with a bound on preemptions even when the environment names none.
pub fn explore(scenario: impl Fn() + Sync + Send + 'static) {
    explore_up_to(PREEMPTIONS, scenario);
}

/// As [`explore`] for scenarios whose full search takes longer than a test may.
pub fn explore_up_to(preemptions: usize, scenario: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(preemptions));
    model.max_branches = model.max_branches.max(MAX_BRANCHES);
    let nr_executions = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = Arc::clone(&nr_executions);
    model.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        scenario();
    });
    println!("{} executions", nr_executions.load(Ordering::Relaxed));
}

/// A shared value whose every access loom takes for dependent on every other.
///
/// loom 0.7.3 remembers one last access per atomic (rt/atomic.rs, `last_access`). Where a thread
/// loads a word and then stores it, its own load hides another thread's earlier load, and the order
/// "store, then that load" is never tried: a lost bell passed in a single execution. `order` is
/// stored before each access and never loaded, so it tells loom of the order and gives nobody a
/// happens-before that the protocol did not make.
#[derive(Debug)]
struct Watched<T> {
    order: AtomicU32,
    value: T,
    latest: std::sync::atomic::AtomicU64,
}

impl<T> Watched<T> {
    fn new(value: T) -> Self {
        Self { order: AtomicU32::new(0), value, latest: 0.into() }
    }

    fn get(&self) -> &T {
        self.order.store(0, Ordering::Relaxed);
        &self.value
    }
}

/// Words of which a few exist.
#[derive(Debug)]
pub struct SparseWords {
    nr_words: usize,
    words: BTreeMap<usize, Watched<AtomicU64>>,
}

impl SparseWords {
    /// `nr_words` words, of which those in `mapped` exist.
    pub fn new(nr_words: usize, mapped: impl IntoIterator<Item = usize>) -> Arc<Self> {
        let word = |index| (index, Watched::new(AtomicU64::new(0)));
        Arc::new(Self { nr_words, words: mapped.into_iter().map(word).collect() })
    }

    fn word(&self, index: usize) -> &Watched<AtomicU64> {
        let word = self.words.get(&index);
        word.unwrap_or_else(|| panic!("word {index} is stored but not mapped"))
    }

    fn mapped(&self, index: usize) -> &AtomicU64 {
        self.word(index).get()
    }

    /// What was stored last, for the scenario itself.
    pub fn peek(&self, index: usize) -> u64 {
        self.latest(index).load(Ordering::Relaxed)
    }

    /// What was stored last, which is not necessarily what a thread sees.
    fn latest(&self, index: usize) -> &std::sync::atomic::AtomicU64 {
        &self.word(index).latest
    }
}

impl ReadWords for SparseWords {
    type Word<'w> = Indexed<'w, Self>;

    fn word(&self, index: usize) -> Indexed<'_, Self> {
        Indexed::new(self, index)
    }

    fn nr_words(&self) -> usize {
        self.nr_words
    }

    fn load(&self, index: usize, order: Ordering) -> u64 {
        assert!(index < self.nr_words, "word {index} of {}", self.nr_words);
        self.words.get(&index).map_or(0, |word| word.get().load(order))
    }
}

impl WriteWords for SparseWords {
    type Slot<'w> = Indexed<'w, Self>;

    fn slot(&self, index: usize) -> Indexed<'_, Self> {
        Indexed::new(self, index)
    }

    fn store(&self, index: usize, value: u64, order: Ordering) {
        // A Relaxed store of what is there already is left out: who reads the older store reads the
        // same value and is ordered after less, so more behaviours are tried, in fewer executions.
        let is_new = self.latest(index).swap(value, Ordering::Relaxed) != value;
        if is_new || order != Ordering::Relaxed {
            self.mapped(index).store(value, order);
        }
    }

    fn fetch_or(&self, index: usize, bits: u64, order: Ordering) -> u64 {
        self.latest(index).fetch_or(bits, Ordering::Relaxed);
        self.mapped(index).fetch_or(bits, order)
    }

    fn discard(&self, range: Range<usize>) {
        for (&index, _) in self.words.range(range) {
            self.store(index, 0, Ordering::Relaxed);
        }
    }
}

/// Counts of which a few exist.
#[derive(Debug)]
pub struct SparseCounts {
    counts: BTreeMap<usize, Watched<AtomicU32>>,
}

impl SparseCounts {
    fn mapped(&self, index: usize) -> &AtomicU32 {
        let count = self.counts.get(&index);
        count.unwrap_or_else(|| panic!("count {index} is not mapped")).get()
    }
}

impl ReadCounts for SparseCounts {
    fn load(&self, index: usize, order: Ordering) -> u32 {
        self.counts.get(&index).map_or(0, |count| count.get().load(order))
    }
}

impl WriteCounts for SparseCounts {
    fn fetch_add(&self, index: usize, by: u32, order: Ordering) -> u32 {
        self.mapped(index).fetch_add(by, order)
    }

    fn fetch_sub(&self, index: usize, by: u32, order: Ordering) -> u32 {
        self.mapped(index).fetch_sub(by, order)
    }

    fn store(&self, index: usize, value: u32, order: Ordering) {
        self.mapped(index).store(value, order);
    }
}

/// The owner's doorbell: rung by clients, waited for by the owner. A drain that waits for a bell
/// that nobody rings is a deadlock, which loom reports.
#[derive(Debug, Default)]
pub struct Doorbell {
    is_rung: Mutex<bool>,
    rang: Condvar,
}

impl Bell for Arc<Doorbell> {
    /// Rings; the bell stays rung until somebody waited for it.
    fn ring(&self) {
        *self.is_rung.lock().unwrap() = true;
        self.rang.notify_one();
    }
}

impl Doorbell {
    /// Waits until the bell was rung, and stills it.
    pub fn wait(&self) {
        let mut is_rung = self.is_rung.lock().unwrap();
        while !*is_rung {
            is_rung = self.rang.wait(is_rung).unwrap();
        }
        *is_rung = false;
    }
}

/// What is in a folio, and who really holds it.
///
/// `bytes` is loaded and stored Relaxed: only the protocol can put one thread's bytes before
/// another's. `holders` and `is_reused` are not loom's atomics but the truth of this execution.
#[derive(Debug)]
pub struct Frame {
    bytes: Watched<AtomicU64>,
    nr_writes: std::sync::atomic::AtomicU64,
    holders: std::sync::atomic::AtomicU64,
    is_reused: std::sync::atomic::AtomicBool,
}

/// Bytes of a frame whose drain ended, for the next life.
pub const NEXT_LIFE: u64 = 1 << 32;

impl Frame {
    /// A frame whose publisher wrote `bytes`.
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            bytes: Watched::new(AtomicU64::new(bytes)),
            nr_writes: 0.into(),
            holders: 0.into(),
            is_reused: false.into(),
        })
    }

    /// What a holder does: the frame must be in the life that was pinned, before and after a write
    /// to it.
    pub fn use_while_held(&self) {
        self.holders.fetch_add(1, Ordering::SeqCst);
        self.check_not_reused();
        self.bytes.get().fetch_add(1, Ordering::Relaxed);
        self.nr_writes.fetch_add(1, Ordering::SeqCst);
        self.check_not_reused();
        self.holders.fetch_sub(1, Ordering::SeqCst);
    }

    fn check_not_reused(&self) {
        assert!(!self.is_reused.load(Ordering::SeqCst), "held, and freed by the drain");
        assert!(
            self.bytes.get().load(Ordering::Relaxed) < NEXT_LIFE,
            "held, and sees the next life"
        );
    }

    /// What a holder that only reads does; returns the bytes.
    pub fn read_while_held(&self) -> u64 {
        self.holders.fetch_add(1, Ordering::SeqCst);
        let bytes = self.bytes.get().load(Ordering::Relaxed);
        self.holders.fetch_sub(1, Ordering::SeqCst);
        bytes
    }

    /// What the owner does with a frame that a drain found idle: nobody may hold it, every holder's
    /// write must be visible, and the next life may begin.
    pub fn reuse(&self) {
        assert_eq!(self.holders.load(Ordering::SeqCst), 0, "freed by the drain, and held");
        let written = self.bytes.get().load(Ordering::Relaxed);
        assert_eq!(written, self.nr_writes.load(Ordering::SeqCst), "a holder's write is not seen");
        self.is_reused.store(true, Ordering::SeqCst);
        self.bytes.get().store(NEXT_LIFE, Ordering::Relaxed);
    }

    /// Writes the bytes of another life without looking.
    pub fn overwrite(&self, bytes: u64) {
        assert_eq!(self.holders.load(Ordering::SeqCst), 0, "freed by the drain, and held");
        self.bytes.get().store(bytes, Ordering::Relaxed);
    }
}

/// What a client of this world brings.
pub type Side = client_side::Side<Arc<SparseWords>, Arc<SparseCounts>, Arc<Doorbell>>;

/// A ledger as the owner reads it.
pub type Reader = LedgerReader<Arc<SparseWords>, Arc<SparseCounts>>;

/// A client and the owner's view of its ledger.
#[derive(Debug)]
pub struct Client {
    pub pinner: Arc<Pinner<Side>>,
    pub reader: Reader,
    pub counts: Arc<SparseCounts>,
}

/// Lets `pinner` live for ever, so that a pin taken on one thread can be dropped on another: a few
/// hundred bytes per execution.
pub fn leak(pinner: Arc<Pinner<Side>>) -> &'static Pinner<Side> {
    Box::leak(Box::new(pinner))
}

/// The owner's descriptors and the doorbell.
#[derive(Debug)]
pub struct World {
    layout: VmemmapLayout,
    descriptors: Arc<SparseWords>,
    pub vmemmap: Vmemmap<Arc<SparseWords>>,
    pub bell: Arc<Doorbell>,
}

/// Folios of 2 MiB in this world.
const NR_FOLIOS: u64 = 2;
// Where things lie in a ledger for 1 GiB with lanes of at most 512 slots in all; `SparseWords`
// object when the layout is another.
const FIRST_LANE_MARK: usize = 512;
const LANE_MARKS: usize = 4;
const TOUCHED: usize = 1536;
const FIRST_SLOT: usize = 2048;
const FIRST_BLOCK: usize = 3072;
const FIRST_LONG_SLOT: usize = 3584;
/// Where the counts of 2 MiB folios start.
const FIRST_COUNT: usize = 1024;

impl World {
    /// Two Live folios of 2 MiB.
    pub fn new() -> Self {
        let layout = VmemmapLayout::for_pages(1).unwrap();
        let mapped = (0..NR_FOLIOS).map(|n| layout.index(Level::Pmd, folio(n).first()).unwrap());
        let descriptors = SparseWords::new(layout.nr_words(), mapped);
        let vmemmap = Vmemmap::new(layout, Arc::clone(&descriptors)).unwrap();
        let world = Self { layout, descriptors, vmemmap, bell: Arc::new(Doorbell::default()) };
        for n in 0..NR_FOLIOS {
            world.set_life(n, extent(n).life);
        }
        world
    }

    /// Writes the life word of folio `n`.
    pub fn set_life(&self, n: u64, life: Descriptor) {
        self.vmemmap.set(Level::Pmd, folio(n).first(), life);
    }

    /// Lets folio `n` die.
    pub fn kill(&self, n: u64) {
        self.set_life(n, extent(n).life.in_state(FolioState::Dying));
    }

    /// A new client whose ledger has `nr_lanes` lanes of `lane_slots` slots. Its long-term slots
    /// cannot be used.
    pub fn client(&self, identity: u64, nr_lanes: usize, lane_slots: usize) -> Client {
        self.client_with(identity, nr_lanes, lane_slots, None)
    }

    /// A new client whose ledger has one lane, with one long-term slot that can be used.
    pub fn client_with_long_slot(&self, identity: u64) -> Client {
        self.client_with(identity, 1, 2, Some(FIRST_LONG_SLOT))
    }

    fn client_with(
        &self,
        identity: u64,
        nr_lanes: usize,
        lane_slots: usize,
        further: Option<usize>,
    ) -> Client {
        let layout = LedgerLayout::with_lanes(&self.layout, nr_lanes, lane_slots);
        let header = [0, 1, 2, TOUCHED];
        let marks = (0..nr_lanes * LANE_MARKS).map(|mark| FIRST_LANE_MARK + mark);
        // The blocks of lanes as small as these have one slot each.
        let blocks = (0..nr_lanes * lane_slots).map(|block| FIRST_BLOCK + block);
        let slots = (0..nr_lanes * lane_slots).map(|slot| FIRST_SLOT + slot);
        let mapped = header.into_iter().chain(marks).chain(blocks).chain(slots).chain(further);
        let words = SparseWords::new(layout.nr_words(), mapped);
        let counts =
            (0..NR_FOLIOS as usize).map(|n| (FIRST_COUNT + n, Watched::new(AtomicU32::new(0))));
        let counts = Arc::new(SparseCounts { counts: counts.collect() });
        let vmemmap = Vmemmap::new(self.layout, Arc::clone(&self.descriptors)).unwrap();
        let side = Side {
            ledger: Arc::clone(&words),
            counts: Arc::clone(&counts),
            vmemmap,
            barrier_mode: BarrierMode::Asymmetric,
            bell: Arc::clone(&self.bell),
            is_forked: Arc::default(),
            identity,
        };
        Client {
            pinner: Arc::new(Pinner::new(side, layout).unwrap()),
            reader: LedgerReader::new(layout, words, Arc::clone(&counts)).unwrap(),
            counts,
        }
    }

    /// Drains the folios `dying`, whose life words are changed already, and waits for the bell
    /// until nobody holds them.
    pub fn drain(&self, dying: &[u64], readers: &[&Reader]) {
        let runs: SortedRuns = dying.iter().map(|&n| folio(n)).collect();
        let id_of = |i: usize| ClientId(i as u64);
        let ledgers = readers.iter().enumerate().map(|(i, reader)| (id_of(i), *reader));
        let mut drain = Drain::start(runs, &PortableBarrier, ledgers);
        while !drain.is_idle() {
            self.bell.wait();
            drain.look_again(|id| readers.get(id.0 as usize).copied());
        }
    }
}

/// The count of folio `n`.
pub fn count_of(n: u64) -> usize {
    FIRST_COUNT + n as usize
}

/// The frames of folio `n`.
pub fn folio(n: u64) -> PfnRange {
    PfnRange::new(n * Level::Pmd.nr_pages(), Level::Pmd.nr_pages()).unwrap()
}

/// Folio `n` as an extent of its own, as it was published.
pub fn extent(n: u64) -> Extent {
    extent_in_life(n, n + 1)
}

/// Folio `n` as an extent of its own under the stamp `stamp`.
pub fn extent_in_life(n: u64, stamp: u64) -> Extent {
    let flags = FolioFlags::WRITABLE.with(FolioFlags::LONGTERM_OK);
    let life = Descriptor::new(FolioState::Live, flags, Stamp::new(stamp).unwrap());
    Extent::new(folio(n), Level::Pmd, life).unwrap()
}
