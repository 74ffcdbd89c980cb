//! What pins of other frames cost: who holds what, and create, commit and unlink, beside so many of
//! them; and what an unlink with many holders costs those who hold nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pgmap::{Client, FilePin, FolioSize, Owner, Pool, PoolOptions};

use crate::failure::Failure;
use crate::harness::{Done, Row, Scale, Scenario, Target};

const PAGE_BYTES: u64 = 4096;
/// Pages of the file whose pages are pinned elsewhere, each as often as it takes.
const NR_PAGES: u64 = 4096;
const NR_PINS: [u64; 4] = [0, 1000, 50_000, 200_000];
const NR_HOLDERS: u64 = 65_536;
const POOL_BYTES: u64 = 1 << 30;
/// Most that pins of other frames may cost: twice nothing.
const TARGET: Target = Target::Ratio(2.0);

/// A pool with so many pins of one of its files, and a client that has none of them.
struct Beside {
    client: Client,
    holder: &'static Client,
    /// Dropped with the row.
    pins: Mutex<Vec<FilePin<'static>>>,
    _owner: Owner,
}

impl Beside {
    fn new(nr_pins: u64) -> Result<Arc<Self>, Failure> {
        let owner = Owner::start(Pool::create(&PoolOptions::anonymous(POOL_BYTES))?)?;
        let client = owner.client()?;
        // Pins borrow their client, and rows live as long as the program.
        let holder: &'static Client = Box::leak(Box::new(owner.client()?));
        let beside = Self { client, holder, pins: Mutex::default(), _owner: owner };
        beside.make("held", NR_PAGES)?;
        beside.pin("held", NR_PAGES, nr_pins)?;
        let holders = beside.client.who("held")?.holders;
        if holders.is_empty() != (nr_pins == 0) {
            return Err(Failure::new(format!("{nr_pins} pins show as {} holders", holders.len())));
        }
        Ok(Arc::new(beside))
    }

    fn make(&self, name: &str, nr_pages: u64) -> Result<(), Failure> {
        let mut writer = self.client.create(name, nr_pages * PAGE_BYTES, FolioSize::Pages4K)?;
        // The frames are as the system gave them: zero.
        let _ = writer.segments();
        Ok(writer.commit()?)
    }

    fn pin(&self, name: &str, nr_pages: u64, nr_pins: u64) -> Result<(), Failure> {
        let file = self.holder.open(name)?;
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        for number in 0..nr_pins {
            let start = number % nr_pages * PAGE_BYTES;
            pins.push(file.pin(start..start + PAGE_BYTES)?);
        }
        Ok(())
    }

    /// Create, commit and unlink of one page; the last of them also on a clock of its own.
    fn churn(&self, nr_ops: u64) -> Result<Duration, Failure> {
        let mut unlinking = Duration::ZERO;
        for _ in 0..nr_ops {
            self.make("churn", 1)?;
            let start = Instant::now();
            self.client.unlink("churn")?;
            unlinking += start.elapsed();
        }
        Ok(unlinking)
    }

    fn ask(&self, nr_ops: u64) -> Result<Done, Failure> {
        for _ in 0..nr_ops {
            let holders = self.client.who_all()?.holders;
            let is_right = holders.is_empty() == self.pins().is_empty();
            is_right.then_some(()).ok_or_else(|| Failure::new("holders are not named"))?;
        }
        Ok(Done::ops(nr_ops))
    }

    fn pins(&self) -> std::sync::MutexGuard<'_, Vec<FilePin<'static>>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unlinks a file each page of which is pinned, and lets go of it, while somebody asks for
    /// another file again and again: how long the unlink took, and the longest of those calls.
    fn unlink_held(&self, nr_holders: u64) -> Result<(Duration, Duration), Failure> {
        self.make("asked", 1)?;
        self.make("going", nr_holders)?;
        self.pin("going", nr_holders, nr_holders)?;
        let is_over = AtomicBool::new(false);
        let measured = std::thread::scope(|scope| {
            let asking = scope.spawn(|| -> Result<Duration, Failure> {
                let mut longest = Duration::ZERO;
                // Relaxed: a moment more or less of asking changes nothing.
                while !is_over.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    self.holder.stat("asked")?;
                    longest = longest.max(start.elapsed());
                }
                Ok(longest)
            });
            let start = Instant::now();
            let unlinked = self.client.unlink("going");
            let took = start.elapsed();
            is_over.store(true, Ordering::Relaxed);
            let longest = asking.join().map_err(|_| Failure::new("a thread panicked"))??;
            unlinked?;
            Ok((took, longest))
        });
        self.pins().clear();
        self.client.unlink("asked")?;
        while self.client.pool_stat()?.draining_bytes != 0 {
            std::thread::yield_now();
        }
        measured
    }
}

fn rows_for(beside: &Arc<Beside>, nr_pins: u64) -> [Row; 3] {
    let [asked, unlinked, churned] = [(); 3].map(|()| Arc::clone(beside));
    [
        Row::new(format!("pgmap: who, {nr_pins} pins held"), move |worker| {
            asked.ask(worker.nr_ops)
        })
        .against(&format!("pgmap: who, {} pins held", NR_PINS[1])),
        Row::new(format!("pgmap: unlink, {nr_pins} pins held elsewhere"), move |worker| {
            Ok(Done::timed(worker.nr_ops, unlinked.churn(worker.nr_ops)?))
        })
        .against(&format!("pgmap: unlink, {} pins held elsewhere", NR_PINS[0]))
        .target(TARGET),
        Row::new(
            format!("pgmap: create + commit + unlink, {nr_pins} pins held elsewhere"),
            move |worker| churned.churn(worker.nr_ops).map(|_| Done::ops(worker.nr_ops)),
        )
        .against(&format!("pgmap: create + commit + unlink, {} pins held elsewhere", NR_PINS[0]))
        .target(TARGET),
    ]
}

/// The scenario.
pub fn scenario(scale: Scale) -> Result<Scenario, Failure> {
    let mut rows = Vec::new();
    for nr_pins in NR_PINS {
        let beside = Beside::new(scale.pick(nr_pins, nr_pins.min(300)))?;
        rows.extend(rows_for(&beside, nr_pins));
    }
    let nr_holders = scale.pick(NR_HOLDERS, 64);
    let unlinked = Beside::new(0)?;
    let longest = Arc::clone(&unlinked);
    rows.push(
        Row::new(format!("pgmap: unlink of a file with {NR_HOLDERS} holders"), move |_| {
            Ok(Done::timed(1, unlinked.unlink_held(nr_holders)?.0))
        })
        .at_most(1)
        .target(Target::Nanoseconds(50e6)),
    );
    rows.push(
        Row::new(
            format!("pgmap: longest other call beside that, {NR_HOLDERS} holders"),
            move |_| Ok(Done::timed(1, longest.unlink_held(nr_holders)?.1)),
        )
        .at_most(1)
        .target(Target::Nanoseconds(10e6)),
    );
    let notes = vec![
        "short pins of single pages of one file of 16 MiB, by one thread; files of one page come \
         and go; owner in the process"
            .into(),
        "`who` of everything names 200 holders".into(),
    ];
    Ok(Scenario { title: "held elsewhere".into(), notes, rows })
}
