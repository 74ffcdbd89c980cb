//! Putting 2 MiB: create, copy, commit; beside a memcpy into memory that is there. And unlinking.

use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pgmap::os::{MemoryFile, PageSize, WriteMapping};
use pgmap::{Client, Owner, Pool, PoolOptions};

use crate::children::{Other, Role};
use crate::failure::Failure;
use crate::harness::{Done, Row, Scale, Scenario, Target};
use crate::rivals::memcpy::Faulted;
use crate::rows::BLOCK_BYTES;
use crate::rows::get::spec;

/// Issue 2.
const TARGET: Target = Target::Ratio(1.2);
/// Blocks that single puts go round, as in peers.md; more than the caches of a core hold.
const NR_BLOCKS: u64 = 16;
const BATCH: u64 = 64;
const MAX_FILES: u64 = 1024;

/// A client that puts files and takes them away again.
pub struct Putter {
    client: Client,
    source: Vec<u8>,
    next: u64,
    oldest: u64,
    /// Files of one call.
    batch: u64,
    /// Files that stay.
    keep: u64,
    /// Whether the owner evicts the others, instead of their being unlinked.
    evicts: bool,
    /// The owner, in this process or another: dropped after the client.
    _owner: Box<dyn Send>,
}

/// What of a put is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    Put,
    Unlink,
    /// Create, commit and unlink, without a copy.
    Churn,
}

impl Putter {
    /// With an owner in this process.
    pub fn embedded(keep: u64, batch: u64) -> Result<Self, Failure> {
        let options = PoolOptions::anonymous(pool_bytes(keep, batch)).max_files(MAX_FILES);
        let owner = Owner::start(Pool::create(&options)?)?;
        let client = owner.client()?;
        Self::over(client, Box::new(owner), keep, batch)
    }

    /// With an owner in another process, over its socket.
    pub fn remote(what: &str, keep: u64, batch: u64, in_directory: bool) -> Result<Self, Failure> {
        let bytes = pool_bytes(keep, batch);
        let folder = crate::children::Folder::new(&format!("{what}-pool"))?;
        let directory = in_directory.then(|| folder.join("pool"));
        let other = Other::start(&Role::Owner { bytes, max_files: MAX_FILES, directory }, what)?;
        let other = other.with_folder(folder);
        let client = Client::connect(other.socket())?;
        Self::over(client, Box::new(other), keep, batch)
    }

    fn over(client: Client, owner: Box<dyn Send>, keep: u64, batch: u64) -> Result<Self, Failure> {
        let source = vec![0x5a; BLOCK_BYTES as usize];
        let mut putter =
            Self { client, source, next: 0, oldest: 0, batch, keep, evicts: false, _owner: owner };
        // Every frame is taken from the system and mapped here before anything is measured.
        for _ in 0..3 {
            putter.run((keep + batch).next_multiple_of(batch), Timed::Put)?;
        }
        putter.prove_that_a_put_can_be_got()?;
        Ok(putter)
    }

    /// From now on what is put is evictable, and nothing is unlinked: the pool is full, and each
    /// put evicts as much as it puts.
    pub fn evicting(mut self) -> Result<Self, Failure> {
        let numbers = self.oldest..self.next;
        let names: Vec<_> = numbers.map(name).collect();
        self.client.unlink_batch(&names)?;
        self.evicts = true;
        for _ in 0..3 {
            self.run((self.keep + self.batch).next_multiple_of(self.batch), Timed::Put)?;
        }
        if self.client.pool_stat()?.nr_evicted == 0 {
            return Err(Failure::new("nothing is evicted"));
        }
        self.prove_that_a_put_can_be_got()?;
        Ok(self)
    }

    fn prove_that_a_put_can_be_got(&self) -> Result<(), Failure> {
        let pin = self.client.get(name(self.next - 1))?;
        if pin.to_vec()? != self.source {
            return Err(Failure::new("a file does not hold what was put"));
        }
        Ok(())
    }

    /// `nr_ops` files, a multiple of the batch; the oldest are taken away so that `keep` stay.
    pub fn run(&mut self, nr_ops: u64, timed: Timed) -> Result<Done, Failure> {
        let mut spent = Duration::ZERO;
        for _ in 0..nr_ops / self.batch {
            let start = Instant::now();
            self.put_batch(timed == Timed::Put)?;
            let put = start.elapsed();
            let start = Instant::now();
            let has_unlinked = !self.evicts && self.next - self.oldest > self.keep;
            if has_unlinked {
                self.unlink_batch()?;
            }
            spent += match timed {
                Timed::Put => put,
                Timed::Unlink => start.elapsed(),
                Timed::Churn => put + start.elapsed(),
            };
        }
        Ok(Done::timed(nr_ops, spent))
    }

    fn put_batch(&mut self, has_bytes: bool) -> Result<(), Failure> {
        let numbers = self.next..self.next + self.batch;
        self.next = numbers.end;
        let priority = u8::from(self.evicts);
        let specs = numbers
            .map(|number| Ok::<_, Failure>(spec(&name(number), BLOCK_BYTES)?.evictable(priority)));
        if self.batch == 1 && has_bytes {
            for spec in specs {
                self.client.put(spec?, &self.source)?;
            }
            return Ok(());
        }
        let writers = self.client.create_batch(specs.collect::<Result<_, _>>()?)?;
        let mut writers = writers.into_iter().collect::<Result<Vec<_>, _>>()?;
        for writer in &mut writers {
            if has_bytes {
                writer.write_all_at(0, &self.source)?;
            } else {
                black_box(writer.segments());
            }
        }
        for committed in self.client.commit_batch(writers)? {
            committed?;
        }
        Ok(())
    }

    fn unlink_batch(&mut self) -> Result<(), Failure> {
        let numbers = self.oldest..self.oldest + self.batch;
        self.oldest = numbers.end;
        let names: Vec<_> = numbers.map(name).collect();
        for unlinked in self.client.unlink_batch(&names)? {
            unlinked?;
        }
        Ok(())
    }

    /// As a row of `timed`.
    pub fn row(self, name: &str, timed: Timed) -> Row {
        let batch = self.batch;
        let putter = Mutex::new(self);
        Row::new(name, move |worker| {
            let mut putter = putter.lock().unwrap_or_else(PoisonError::into_inner);
            // In whole batches; the time is for as many as were asked for.
            let whole = worker.nr_ops.next_multiple_of(batch);
            let done = putter.run(whole, timed)?;
            let spent = done.spent.unwrap_or_default().mul_f64(worker.nr_ops as f64 / whole as f64);
            Ok(Done::timed(worker.nr_ops, spent))
        })
    }
}

/// Singly there is room for one more, which is handed out ahead.
const fn pool_bytes(keep: u64, batch: u64) -> u64 {
    (keep + if batch == 1 { 2 } else { batch }) * BLOCK_BYTES
}

fn name(number: u64) -> String {
    format!("block-{number:034}")
}

fn memcpy_row(name: &str, nr_blocks: u64) -> Result<Row, Failure> {
    let faulted = Faulted::new(nr_blocks, BLOCK_BYTES)?;
    let source = vec![0x5a; BLOCK_BYTES as usize];
    Ok(Row::new(name, move |mut worker| {
        let first = worker.random.below(faulted.nr_blocks());
        for turn in 0..worker.nr_ops {
            faulted.copy(first + turn, &source)?;
        }
        Ok(Done::ops(worker.nr_ops))
    }))
}

fn own_copy_row(name: &str) -> Result<Row, Failure> {
    let len = NR_BLOCKS * BLOCK_BYTES;
    let file = MemoryFile::anonymous("bench-copy", len, PageSize::Base)?;
    let mapping = WriteMapping::map(&file, 0, len)?;
    let _ = mapping.populate()?;
    let source = vec![0x5a; BLOCK_BYTES as usize];
    Ok(Row::new(name, move |worker| {
        for turn in 0..worker.nr_ops {
            mapping.copy_in(turn % NR_BLOCKS * BLOCK_BYTES, &source)?;
        }
        Ok(Done::ops(worker.nr_ops))
    }))
}

fn fresh_memfd_row(name: &str) -> Row {
    let source = vec![0x5a; BLOCK_BYTES as usize];
    Row::new(name, move |worker| {
        for _ in 0..worker.nr_ops {
            let file = MemoryFile::anonymous("bench-fresh", BLOCK_BYTES, PageSize::Base)?;
            let mapping = WriteMapping::map(&file, 0, BLOCK_BYTES)?;
            mapping.copy_in(0, &source)?;
        }
        Ok(Done::ops(worker.nr_ops))
    })
}

/// The scenario.
pub fn scenario(scale: Scale) -> Result<Scenario, Failure> {
    const SINGLE: &str = "memcpy into a faulted pool, 16 x 2 MiB in turn";
    const MANY: &str = "memcpy into a faulted pool, 128 x 2 MiB in turn";
    let batch = scale.pick(BATCH, 4);
    // One file goes before the next but 16 comes: singly 18 frames are gone round, in batches 128.
    let rows = vec![
        memcpy_row(SINGLE, NR_BLOCKS)?,
        own_copy_row("pgmap: copy_in alone, 16 x 2 MiB in turn")?.against(SINGLE),
        Putter::embedded(NR_BLOCKS, 1)?
            .row("pgmap: put, owner in the process", Timed::Put)
            .against(SINGLE)
            .target(TARGET),
        Putter::remote("put-1", NR_BLOCKS, 1, false)?
            .row("pgmap: put, owner in another process", Timed::Put)
            .against(SINGLE)
            .target(TARGET),
        Putter::embedded(NR_BLOCKS, 1)?
            .evicting()?
            .row("pgmap: put into a full pool that evicts, owner in the process", Timed::Put)
            .against(SINGLE),
        Putter::remote("put-evict-1", NR_BLOCKS, 1, false)?
            .evicting()?
            .row("pgmap: put into a full pool that evicts, owner in another process", Timed::Put)
            .against(SINGLE),
        memcpy_row(MANY, 2 * batch)?,
        Putter::embedded(batch, batch)?
            .row("pgmap: put, batches of 64, owner in the process", Timed::Put)
            .against(MANY)
            .target(TARGET),
        Putter::remote("put-64", batch, batch, false)?
            .row("pgmap: put, batches of 64, owner in another process", Timed::Put)
            .against(MANY)
            .target(TARGET),
        Putter::remote("put-evict-64", batch, batch, false)?
            .evicting()?
            .row("pgmap: put, batches of 64, into a full pool that evicts", Timed::Put)
            .against(MANY),
        fresh_memfd_row("a fresh memfd each time: create, map, copy, unmap").against(SINGLE),
        Putter::embedded(NR_BLOCKS, 1)?
            .row("pgmap: unlink (and free), owner in the process", Timed::Unlink)
            .against(SINGLE),
        Putter::remote("unlink-64", batch, batch, false)?
            .row("pgmap: unlink, batches of 64, owner in another process", Timed::Unlink)
            .against(SINGLE),
    ];
    let notes = vec![
        "a put is create + copy of 2 MiB + commit; the unlink of an older file is not timed, an \
         eviction is"
            .into(),
        "singly, puts go round 18 frames, in batches round 128; all frames are faulted before"
            .into(),
    ];
    Ok(Scenario { title: "put".into(), notes, rows })
}
