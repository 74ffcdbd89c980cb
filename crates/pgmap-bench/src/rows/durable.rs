//! Commits that outlive a power failure, one by one and in batches, beside a write and an fdatasync
//! of the same bytes. And opening a pool with many files.

use std::fs::{File as StdFile, read};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use pgmap::{Client, CreateSpec, Durability, FileName, FolioSize, Owner, Pool, PoolOptions};

use crate::children::Folder;
use crate::failure::Failure;
use crate::harness::{Done, Row, Scale, Scenario};
use crate::rows::get::spec;
use crate::rows::kinds::is_on_disk;

const LEN_BYTES: u64 = 64 << 10;
const BATCH: u64 = 64;
const SINGLE: &str = "floor: write 64 KiB and fdatasync";
const MANY: &str = "floor: write 64 x 64 KiB and fdatasync once, per 64 KiB";

struct Commits {
    client: Client,
    source: Vec<u8>,
    next: u64,
    batch: u64,
    _owner: Owner,
    /// Removed with the last row.
    _folder: Arc<Folder>,
}

impl Commits {
    fn new(folder: &Arc<Folder>, durability: Durability, batch: u64) -> Result<Self, Failure> {
        let options = PoolOptions::in_directory(
            folder.join(&format!("{durability:?}-{batch}")),
            (4 * BATCH + 2) * LEN_BYTES,
        );
        let owner = Owner::start(Pool::create(&options.durability(durability).max_files(1024))?)?;
        let client = owner.client()?;
        let source = vec![0x5a; LEN_BYTES as usize];
        let (_owner, _folder) = (owner, Arc::clone(folder));
        let mut commits = Self { client, source, next: 0, batch, _owner, _folder };
        for _ in 0..4 {
            commits.put()?;
        }
        Ok(commits)
    }

    /// Puts a batch, and takes away the one before it.
    fn put(&mut self) -> Result<(), Failure> {
        let numbers = self.next..self.next + self.batch;
        let before = self.next.saturating_sub(self.batch)..self.next;
        self.next = numbers.end;
        let specs: Vec<CreateSpec> =
            numbers.map(|number| spec(&name(number), LEN_BYTES)).collect::<Result<_, _>>()?;
        let writers = self.client.create_batch(specs)?;
        let mut writers = writers.into_iter().collect::<Result<Vec<_>, _>>()?;
        for writer in &mut writers {
            writer.write_all_at(0, &self.source)?;
        }
        for committed in self.client.commit_batch(writers)? {
            committed?;
        }
        let names: Vec<FileName> =
            before.map(|number| FileName::new(name(number))).collect::<Result<_, _>>()?;
        if !names.is_empty() {
            for unlinked in self.client.unlink_batch(&names)? {
                unlinked?;
            }
        }
        Ok(())
    }

    fn row(self, name: &str, base: &str) -> Row {
        let batch = self.batch;
        let commits = Mutex::new(self);
        Row::new(name, move |worker| {
            let mut commits = commits.lock().unwrap_or_else(PoisonError::into_inner);
            let start = std::time::Instant::now();
            let nr_batches = worker.nr_ops.div_ceil(batch);
            for _ in 0..nr_batches {
                commits.put()?;
            }
            let whole = nr_batches * batch;
            let spent = start.elapsed().mul_f64(worker.nr_ops as f64 / whole as f64);
            Ok(Done::timed(worker.nr_ops, spent))
        })
        .against(base)
    }
}

fn name(number: u64) -> String {
    format!("commit-{number:033}")
}

/// Writes in turn over a file that is there, so that no block has to be found.
fn floor(folder: &Arc<Folder>, name: &'static str, batch: u64) -> Result<Row, Failure> {
    let file = StdFile::create(folder.join(&format!("floor-{batch}")))?;
    let source = vec![0x5a; LEN_BYTES as usize];
    for at in 0..4 * BATCH {
        file.write_all_at(&source, at * LEN_BYTES)?;
    }
    file.sync_all()?;
    let folder = Arc::clone(folder);
    Ok(Row::new(name, move |worker| {
        let _folder = &folder;
        let start = std::time::Instant::now();
        let nr_batches = worker.nr_ops.div_ceil(batch);
        for turn in 0..nr_batches {
            for number in 0..batch {
                let at = (turn * batch + number) % (4 * BATCH);
                file.write_all_at(&source, at * LEN_BYTES)?;
            }
            file.sync_data()?;
        }
        let whole = nr_batches * batch;
        let spent = start.elapsed().mul_f64(worker.nr_ops as f64 / whole as f64);
        Ok(Done::timed(worker.nr_ops, spent))
    }))
}

/// The scenario of commits.
pub fn scenario(scale: Scale) -> Result<Scenario, Failure> {
    let folder = Arc::new(Folder::on_disk("durable")?);
    let batch = scale.pick(BATCH, 4);
    let mut notes = Vec::new();
    if !is_on_disk(&folder)? {
        notes
            .push("the temporary directory is in memory: an fdatasync there writes nothing".into());
    }
    let kinds = [
        (Durability::Processes, "processes"),
        (Durability::Restart, "a restart"),
        (Durability::PowerFailure, "a power failure"),
    ];
    let mut rows = vec![floor(&folder, SINGLE, 1)?, floor(&folder, MANY, batch)?];
    for (durability, outlives) in kinds {
        if durability != Durability::Processes && !notes.is_empty() {
            continue;
        }
        let single = format!("pgmap: put of 64 KiB that outlives {outlives}");
        rows.push(Commits::new(&folder, durability, 1)?.row(&single, SINGLE));
        let many = format!("{single}, batches of 64");
        rows.push(Commits::new(&folder, durability, batch)?.row(&many, MANY));
    }
    notes.push(
        "on the disk of the temporary directory; the unlink of the batch before is timed too"
            .into(),
    );
    Ok(Scenario { title: "durable commits".into(), notes, rows })
}

/// The scenario of a pool with many files.
pub fn many_files_scenario(scale: Scale) -> Result<Scenario, Failure> {
    let nr_files = scale.pick(1 << 20, 1 << 10);
    let folder = Folder::new("many-files")?;
    let place = folder.join("pool");
    let options = PoolOptions::in_directory(&place, nr_files * 4096 + (1 << 20));
    let owner = Owner::start(Pool::create(&options.max_files(nr_files))?)?;
    let client = owner.client()?;
    for first in (0..nr_files).step_by(BATCH as usize) {
        let specs = (first..first + BATCH).map(|number| {
            FileName::new(name(number)).map(|name| CreateSpec::new(name, 1, FolioSize::Pages4K))
        });
        let writers = client.create_batch(specs.collect::<Result<_, _>>()?)?;
        let writers = writers.into_iter().collect::<Result<Vec<_>, _>>()?;
        for committed in client.commit_batch(writers)? {
            committed?;
        }
    }
    drop((client, owner));
    let catalog = place.join("catalog");
    const BASE: &str = "floor: reading the catalog's bytes";
    let base = Row::new(BASE, move |worker| {
        for _ in 0..worker.nr_ops {
            black_box(read(&catalog)?);
        }
        Ok(Done::ops(worker.nr_ops))
    });
    let open =
        Row::new(format!("pgmap: Pool::open + Owner::start, {nr_files} files"), move |worker| {
            let _folder = &folder;
            let mut spent = std::time::Duration::ZERO;
            for _ in 0..worker.nr_ops {
                let start = std::time::Instant::now();
                let owner = Owner::start(Pool::open(&place)?)?;
                spent += start.elapsed();
                if owner.info().nr_files != nr_files {
                    return Err(Failure::new("files are missing"));
                }
            }
            Ok(Done::timed(worker.nr_ops, spent))
        });
    let rows = vec![base, open.against(BASE).at_most(1)];
    let notes = vec!["in memory; each file has a page; no client of before lives".into()];
    Ok(Scenario { title: "many files".into(), notes, rows })
}
