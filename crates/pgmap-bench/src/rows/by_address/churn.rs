//! H: short pins while another thread remaps as fast as it can.
//!
//! On n threads, n - 1 read and one remaps.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Instant;

use pgmap::mm::gup::GupFlags;

use super::world::{World, not_held};
use super::{Stage, remap};
use crate::failure::Failure;
use crate::harness::{Done, Row, Scenario, Target, Worker, cpus};
use crate::random::Random;
use crate::rivals::{Change, Pick, Rival, arc_swap, epoch, rw_lock, vm_memory};

const TARGET: Target = Target::Ratio(1.3);
/// Of so many reads one may find that what it wants is between two changes.
const FOUND_AT_LEAST: f64 = 0.5;
/// Reads of so long a cell in which nothing changed are done again, at most so often.
const LONG_OPS: u64 = 100_000;
const MAX_TRIES: usize = 16;

/// Reads of one thread: how many found something.
type Read = Arc<dyn Fn(&mut Worker) -> Result<u64, Failure> + Send + Sync>;

/// Pins one page at each random address; where the page table moved, by way of the lock.
fn reads(world: &World, worker: &mut Worker) -> Result<u64, Failure> {
    let lane = world.lane()?;
    let gup = world.gup(&lane)?;
    let mut held = 0;
    for _ in 0..worker.nr_ops {
        let address = worker.random.next() & world.mask();
        if let Some(segment) = gup.fast_leaf(address, 1, GupFlags::NONE) {
            held += u64::from(black_box(segment.run().start()) < world.nr_pages());
        } else {
            let pages = gup.pin(address, 1, GupFlags::NONE).map_err(|_| not_held())?;
            held += black_box(pages.nr_pages());
        }
    }
    Ok(held)
}

/// Who reads and who changes, and how they meet.
struct Pair {
    read: Read,
    change: Change,
    readers: Barrier,
    is_over: AtomicBool,
    /// Whether the reads are to be done again.
    is_void: AtomicBool,
    nr_changes: AtomicU64,
}

impl Pair {
    fn new(read: Read, change: Change, nr_readers: usize) -> Arc<Self> {
        Arc::new(Self {
            read,
            change,
            readers: Barrier::new(nr_readers),
            is_over: AtomicBool::new(false),
            is_void: AtomicBool::new(false),
            nr_changes: AtomicU64::new(0),
        })
    }

    /// One reader's part; the first one has the other thread run from before the reads of all until
    /// after them.
    fn run(&self, nr_readers: usize, mut worker: Worker) -> Result<Done, Failure> {
        let is_first = worker.thread == 0;
        let mut done = Err(Failure::new("nothing was read"));
        let changed = std::thread::scope(|scope| {
            // Relaxed, here and below: counts and flags to look at; the barrier orders what
            // matters.
            let changer = is_first.then(|| {
                self.is_over.store(false, Ordering::Relaxed);
                self.nr_changes.store(0, Ordering::Relaxed);
                scope.spawn(|| self.changes(nr_readers))
            });
            while changer.as_ref().is_some_and(|changer| !changer.is_finished())
                && self.nr_changes.load(Ordering::Relaxed) == 0
            {
                std::hint::spin_loop();
            }
            for _ in 0..MAX_TRIES {
                done = self.read_once(&mut worker);
                if !self.is_void.load(Ordering::Relaxed) {
                    break;
                }
                done = Err(Failure::new("the thread that changes never got a CPU meanwhile"));
            }
            self.readers.wait();
            if is_first {
                self.is_over.store(true, Ordering::Relaxed);
            }
            changer.map_or(Ok(()), |changer| {
                changer.join().map_err(|_| Failure::new("the changing thread panicked"))?
            })
        });
        changed.and(done)
    }

    /// Reads, together with all readers. Void for all of them if nothing changed meanwhile: on a
    /// busy machine the thread that changes may not have run.
    fn read_once(&self, worker: &mut Worker) -> Result<Done, Failure> {
        self.readers.wait();
        let before = self.nr_changes.load(Ordering::Relaxed);
        let start = Instant::now();
        let read = (self.read)(worker);
        let spent = start.elapsed();
        if worker.thread == 0 {
            let has_changed = self.nr_changes.load(Ordering::Relaxed) > before;
            // So few reads are over before anybody could change anything.
            let is_short = worker.nr_ops < LONG_OPS;
            self.is_void.store(!has_changed && !is_short && read.is_ok(), Ordering::Relaxed);
        }
        self.readers.wait();
        let found = read?;
        if (found as f64) < worker.nr_ops as f64 * FOUND_AT_LEAST {
            return Err(Failure::new(format!("{found} reads found something")));
        }
        Ok(Done::timed(worker.nr_ops, spent))
    }

    fn changes(&self, nr_readers: usize) -> Result<(), Failure> {
        let cpu = cpus().get(nr_readers).ok_or_else(|| Failure::new("no CPU to change from"))?;
        pgmap::os::process::pin_to_cpu(*cpu)?;
        let mut random = Random::new(0xc0ffee);
        while !self.is_over.load(Ordering::Relaxed) {
            (self.change)(&mut random)?;
            self.nr_changes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Two rows: readers alone, and with a thread that changes.
fn rows_of(what: &str, nr_readers: usize, read: &Read, change: &Change) -> [Row; 2] {
    let quiet_name = format!("{what}, quiet, {nr_readers} readers");
    let quiet = Arc::clone(read);
    let pair = Pair::new(Arc::clone(read), Arc::clone(change), nr_readers);
    let alone = Row::new(quiet_name.as_str(), move |mut worker| Ok(Done::ops(quiet(&mut worker)?)));
    let name = format!("{what}, one thread remaps, {nr_readers} readers");
    let churned = Row::new(name, move |worker| pair.run(nr_readers, worker));
    [alone.on_threads(nr_readers), churned.on_threads(nr_readers).against(&quiet_name)]
}

fn rival_rows(what: &str, nr_readers: usize, rival: Rival) -> [Row; 2] {
    let Rival { hold, change } = rival;
    let read: Read = Arc::new(move |worker| Ok(hold(worker, Pick::Random)));
    rows_of(what, nr_readers, &read, &change)
}

/// The scenario.
pub fn scenario(stage: &mut Stage) -> Result<Scenario, Failure> {
    let mut rows = Vec::new();
    let ns: Vec<u64> = stage.many_regions().iter().copied().take(2).collect();
    for nr_threads in stage.threads.clone() {
        // One CPU is for whoever changes.
        let Some(nr_readers) = nr_threads.checked_sub(1).filter(|&readers| readers > 0) else {
            continue;
        };
        for &n in &ns {
            let (read, changed) = (stage.world(n)?, stage.world(n)?);
            let read: Read = Arc::new(move |worker| reads(&read, worker));
            let change: Change = Arc::new(move |random| remap::map_over(&changed, random));
            let [quiet, churned] = rows_of(&format!("pgmap, n={n}"), nr_readers, &read, &change);
            rows.extend([quiet, churned.target(TARGET)]);
        }
        for &n in &ns {
            let map = stage.map(n)?;
            let vm = format!("vm-memory guard, n={n}");
            rows.extend(rival_rows(&vm, nr_readers, vm_memory::rival(&map, n)));
            let lock = format!("RwLock<BTreeMap>, n={n}");
            rows.extend(rival_rows(&lock, nr_readers, rw_lock::rival(n)));
            let arc = format!("arc-swap Vec + Arc, n={n}");
            rows.extend(rival_rows(&arc, nr_readers, arc_swap::rival(n)));
        }
        let epoch = "crossbeam_epoch::pin + walk";
        rows.extend(rival_rows(epoch, nr_readers, epoch::rival()));
    }
    let notes = vec![
        "readers pin one page at random; one thread remaps random leaves without a pause".into(),
        "each row with a remapping thread is compared to the same readers alone".into(),
    ];
    Ok(Scenario { title: String::new(), notes, rows })
}
