//! Pin against drain between two processes on two processors, over real shared memory.
//!
//! One process pins, looks at a canary in the data while it holds, and lets go, without pause. The
//! other marks a folio Dying, runs the heavy barrier and scans; a folio that the scan finds idle is
//! reused at once: its canary changes and it is published under a new stamp. A pin that its check
//! let through while the scan saw nothing sees the canary change under it: a violation.
//!
//! Both sides are those that ship: the owner's barrier, and a process's side of a pool. The same
//! test then takes the heavy barrier away. Violations must appear, or the first half, which had
//! none, proved nothing.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::support::{self, Second};
use pgmap::ProcessSide;
use pgmap::memory::{OwnerBarrier, Readable, Writable, WritableCounts};
use pgmap::mm::barrier::{BarrierMode, HeavyBarrier, Reached};
use pgmap::mm::descriptor::{Descriptor, FolioFlags, FolioState};
use pgmap::mm::drain::{ClientId, Drain, scan};
use pgmap::mm::extent::Extent;
use pgmap::mm::ledger::{Agent, LedgerLayout, LedgerReader};
use pgmap::mm::level::Level;
use pgmap::mm::pfn::PfnRange;
use pgmap::mm::pin::{Lane, Pinner};
use pgmap::mm::runs::SortedRuns;
use pgmap::mm::stamp::Stamp;
use pgmap::mm::vmemmap::{Vmemmap, VmemmapLayout};
use pgmap::mm::words::ReadCounts;
use pgmap::os::{
    Connection, Doorbell, Listener, Membarrier, MemoryFile, PageSize, ReadMapping, WriteMapping,
    process,
};

/// Drains of the first half, unless its time is up before.
const NR_DRAINS: u64 = 500_000;
const MOST_TIME: Duration = Duration::from_secs(6);
/// Fewer than this prove too little, however slow the machine.
const LEAST_DRAINS: u64 = 20_000;
/// Violations after which the control has shown its point.
const ENOUGH_VIOLATIONS: u64 = 1_000;
const NR_FOLIOS: u64 = 2;
/// Descriptors and canaries of two folios never share a cache line.
const STRIDE: u64 = 16;
/// How often a pinner looks at the canary while it holds, and how often once it knows that the
/// folio is dying: long enough for a drainer that missed it to reuse the folio.
const NR_LOOKS: usize = 512;
const NR_LONG_LOOKS: usize = 4096;
/// Turns of an empty loop between two pins, and between two drains, at most: the slot must rest
/// empty for a while, and the two processes must meet at every phase.
const LONGEST_IDLE: u64 = 1024;
/// Looks of the drainer before a drain.
const MOST_LOOKS_BEFORE: usize = 64;

// Words of the control page, in the same file as the canaries.
const PAUSE: usize = 512;
const PAUSED: usize = 520;
const VIOLATIONS: usize = 528;
const PINS: usize = 536;
const DATA_BYTES: u64 = 2 * 4096;

/// What the drainer reads of counts: the pinner has no long-term pins.
struct NoCounts;

impl ReadCounts for NoCounts {
    fn load(&self, _: usize, _: Ordering) -> u32 {
        0
    }
}

fn layouts() -> (VmemmapLayout, LedgerLayout) {
    let vmemmap = VmemmapLayout::for_pages(1).unwrap();
    (vmemmap, LedgerLayout::with_lanes(&vmemmap, 1, 2))
}

fn folio(number: u64) -> PfnRange {
    PfnRange::new(number * STRIDE, 1).unwrap()
}

fn canary(number: u64) -> usize {
    (number * STRIDE) as usize
}

fn live(stamp: u64) -> Descriptor {
    Descriptor::new(FolioState::Live, FolioFlags::WRITABLE, Stamp::new(stamp).unwrap())
}

#[test]
fn child_entry() {
    if let Some((cpu, place)) = support::role() {
        process::pin_to_cpu(cpu.parse().unwrap()).unwrap();
        let _ = Membarrier::register();
        pin_without_pause(&place);
    }
}

/// The pinner: never returns; the parent kills it.
fn pin_without_pause(place: &std::path::Path) -> ! {
    let drainer = Connection::connect(place).unwrap();
    let received = drainer.recv(&mut [0; 8]).unwrap();
    let [vmemmap, ledger, counts, data] =
        <[_; 4]>::try_from(received.fds).unwrap().map(|fd| MemoryFile::from_fd(fd).unwrap());
    let (layout, ledger_layout) = layouts();
    let vmemmap = ReadMapping::map(&vmemmap, 0, vmemmap.len_bytes()).unwrap();
    let map = |file: &MemoryFile| WriteMapping::map(file, 0, file.len_bytes()).unwrap();
    let side = ProcessSide::new(
        Writable::new(map(&ledger)),
        WritableCounts::over_file(map(&counts), Arc::new(counts), 0),
        Vmemmap::new(layout, Readable::new(vmemmap)).unwrap(),
        BarrierMode::Asymmetric,
        // The drainer looks without pause and hears no bell.
        Doorbell::new().unwrap(),
    )
    .unwrap();
    let data = map(&data);
    let pinner = Pinner::new(side, ledger_layout).unwrap();
    let lane = pinner.lane().unwrap();
    drainer.send(b"ready", &[]).unwrap();
    let words = data.words();
    let mut random = support::Random(1);
    for number in (0..NR_FOLIOS).cycle() {
        idle(random.below(LONGEST_IDLE));
        pin_once(&lane, words, number);
        if words[PAUSE].load(Ordering::Relaxed) != 0 {
            words[PAUSED].store(1, Ordering::SeqCst);
            while words[PAUSE].load(Ordering::SeqCst) != 0 {
                std::hint::spin_loop();
            }
            words[PAUSED].store(0, Ordering::SeqCst);
        }
    }
    unreachable!("an endless cycle");
}

fn idle(turns: u64) {
    for turn in 0..turns {
        std::hint::black_box(turn);
    }
}

fn pin_once(lane: &Lane<'_, ProcessSide>, words: &[std::sync::atomic::AtomicU64], number: u64) {
    let run = folio(number);
    let life = words[canary(number) + 1].load(Ordering::Acquire);
    let life = Descriptor::from_bits(life);
    let Some(extent) = Extent::new(run, Level::Pte, life) else { return };
    let Ok(pin) = lane.pin(&extent, run, Agent::Cpu) else { return };
    let stamp = life.stamp().unwrap().number();
    let is_changed = |_| words[canary(number)].load(Ordering::Acquire) != stamp;
    let was_changed = (0..NR_LOOKS).any(is_changed)
        || (pin.is_reclaim_requested() && (0..NR_LONG_LOOKS).any(is_changed));
    drop(pin);
    // One writer each: this process.
    let count = |word: usize| {
        words[word].store(words[word].load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    };
    count(PINS);
    if was_changed {
        count(VIOLATIONS);
    }
}

/// The heavy barrier as it ships, or none at all.
enum Heavy {
    Shipped(OwnerBarrier),
    Broken,
}

impl HeavyBarrier for Heavy {
    fn heavy(&self) -> Reached {
        match self {
            Self::Shipped(barrier) => barrier.heavy(),
            Self::Broken => Reached::All,
        }
    }
}

struct Drainer {
    vmemmap: Vmemmap<Writable>,
    ledger: LedgerReader<Readable, NoCounts>,
    data: WriteMapping,
    stamp: u64,
    random: support::Random,
}

#[derive(Debug, Default)]
#[allow(dead_code, reason = "printed")]
struct Tally {
    drains: u64,
    found_held: u64,
    pins: u64,
    violations: u64,
}

impl Drainer {
    /// Gives folio `number` its next life: canary, descriptor, and where pinners learn of it.
    fn publish(&mut self, number: u64) {
        self.stamp += 1;
        let (words, life) = (self.data.words(), live(self.stamp));
        words[canary(number)].store(self.stamp, Ordering::Release);
        self.vmemmap.set(Level::Pte, folio(number).first(), life);
        words[canary(number) + 1].store(life.bits(), Ordering::Release);
    }

    /// Takes folio `number` out of use, waits for its holders and reuses it.
    fn drain(&mut self, number: u64, barrier: &Heavy) -> bool {
        let run = folio(number);
        let runs = SortedRuns::new(vec![run]);
        let dying = live(self.stamp).in_state(FolioState::Dying);
        idle(self.random.below(LONGEST_IDLE));
        // Looks beforehand, as `who` does, until the slot is empty: that fetches its cache line, so
        // that the scan below is quick and the pinner's next store slow. Races become likely, no
        // more.
        for _ in 0..MOST_LOOKS_BEFORE {
            if scan(&runs, [(ClientId(1), &self.ledger)]).is_empty() {
                break;
            }
        }
        self.vmemmap.set(Level::Pte, run.first(), dying);
        let mut drain = Drain::start(runs, barrier, [(ClientId(1), &self.ledger)]);
        let found_held = !drain.is_idle();
        std::hint::black_box(&drain);
        let until = Instant::now() + support::BOUND;
        while !drain.is_idle() {
            assert!(Instant::now() < until, "a holder never lets go");
            drain.look_again(|_| Some(&self.ledger));
        }
        // Reused by somebody else: from here on an old pin would show him a stranger's bytes.
        self.data.words()[canary(number)].store(u64::MAX, Ordering::Release);
        self.publish(number);
        found_held
    }

    /// The pinner's figures, while it stands still.
    fn figures(&self) -> (u64, u64) {
        let words = self.data.words();
        let wait_for = |wanted| {
            support::wait_until("the pinner pauses", || {
                (words[PAUSED].load(Ordering::SeqCst) == wanted).then_some(())
            });
        };
        words[PAUSE].store(1, Ordering::SeqCst);
        wait_for(1);
        let figures = [PINS, VIOLATIONS].map(|word| words[word].load(Ordering::Relaxed));
        words[PAUSE].store(0, Ordering::SeqCst);
        wait_for(0);
        (figures[0], figures[1])
    }

    fn run(&mut self, barrier: &Heavy, is_enough: impl Fn(&Tally, u64) -> bool) -> Tally {
        let (pins_before, violations_before) = self.figures();
        let started = Instant::now();
        let mut tally = Tally::default();
        for number in (0..NR_FOLIOS).cycle() {
            tally.found_held += u64::from(self.drain(number, barrier));
            tally.drains += 1;
            let violations = self.data.words()[VIOLATIONS].load(Ordering::Relaxed);
            if is_enough(&tally, violations - violations_before)
                || (tally.drains % 64 == 0 && started.elapsed() > MOST_TIME)
            {
                break;
            }
        }
        let (pins, violations) = self.figures();
        Tally { pins: pins - pins_before, violations: violations - violations_before, ..tally }
    }
}

#[test]
fn no_pin_is_missed_by_a_drain_and_without_the_barrier_some_are() {
    let _alone = crate::alone();
    let name = "no_pin_is_missed_by_a_drain_and_without_the_barrier_some_are";
    let cpus = process::allowed_cpus();
    let barrier = OwnerBarrier::register();
    let [drainer_cpu, pinner_cpu, ..] = cpus[..] else {
        return println!("SKIPPED {name}: one processor only");
    };
    if !barrier.is_asymmetric() {
        return println!("SKIPPED {name}: membarrier is refused here");
    }
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("s");
    let (layout, ledger_layout) = layouts();
    let file = |len: u64| MemoryFile::anonymous("pin-vs-drain", len, PageSize::Base).unwrap();
    let vmemmap = file(layout.nr_words() as u64 * 8);
    let ledger = file(ledger_layout.nr_words() as u64 * 8);
    let counts = file(ledger_layout.nr_counts() as u64 * 4);
    let data = file(DATA_BYTES);
    let map = |file: &MemoryFile| WriteMapping::map(file, 0, file.len_bytes()).unwrap();
    let reader = ReadMapping::map(&ledger, 0, ledger.len_bytes()).unwrap();
    let mut drainer = Drainer {
        vmemmap: Vmemmap::new(layout, Writable::new(map(&vmemmap))).unwrap(),
        ledger: LedgerReader::new(ledger_layout, Readable::new(reader), NoCounts).unwrap(),
        data: map(&data),
        stamp: 0,
        random: support::Random(support::seed()),
    };
    (0..NR_FOLIOS).for_each(|number| drainer.publish(number));

    let listener = Listener::bind(&place, 0o600).unwrap();
    let _pinner = Second::start(&pinner_cpu.to_string(), &place);
    let connection = support::wait_until("the pinner connects", || listener.accept().unwrap());
    let memory = [&vmemmap, &ledger, &counts, &data].map(|file| file.as_fd());
    connection.send(b"memory", &memory).unwrap();
    let ready = support::wait_until("the pinner is ready", || connection.recv(&mut [0; 8]).ok());
    assert_eq!(ready.len, 5);

    let figures = std::thread::scope(|scope| {
        let both = scope.spawn(|| {
            process::pin_to_cpu(drainer_cpu).unwrap();
            let shipped = Heavy::Shipped(barrier);
            let right = drainer.run(&shipped, |tally, _| tally.drains >= NR_DRAINS);
            let wrong = drainer.run(&Heavy::Broken, |_, seen| seen >= ENOUGH_VIOLATIONS);
            (right, wrong)
        });
        both.join().unwrap()
    });
    let (right, wrong) = figures;
    println!("with the heavy barrier: {right:?}");
    println!("negative control, without it: {wrong:?}");
    assert_eq!(right.violations, 0, "a pin was let through that the scan did not see");
    assert!(right.drains >= LEAST_DRAINS && right.found_held > 0, "too little was tried");
    assert!(
        wrong.violations > 0,
        "without the heavy barrier nothing went wrong either: this test proved nothing"
    );
}
