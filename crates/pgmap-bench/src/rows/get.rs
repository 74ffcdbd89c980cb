//! Get by name, pin and release, in another process than the owner's; beside tables of references
//! in the same process.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::{Arc, Mutex, PoisonError};

use dashmap::DashMap;
use pgmap::{Client, CreateSpec, FileName, FolioSize};

use crate::children::{Other, Role};
use crate::failure::Failure;
use crate::harness::{Done, Row, Scale, Scenario, Target, Worker};
use crate::random::Random;
use crate::rows::BLOCK_BYTES;

const BASE: &str = "HashMap, no lock: get + Arc clone + drop, 1T";
/// Issue 2: get + release of a committed 2 MiB file.
const TARGET: Target = Target::Nanoseconds(300.0);
/// An owned pin beside a borrowed one.
const OWNED_TARGET: Target = Target::Ratio(1.10);
const SMALL_BYTES: u64 = 4096;
const BATCH: usize = 64;

/// A client of an owner in another process, and the files it made there.
struct Served {
    client: Client,
    /// Names of the 2 MiB files.
    blocks: Vec<String>,
    /// Names of all files.
    all: Vec<String>,
    other: Other,
}

/// Names like those of a cache of blocks: 40 bytes, of which most differ.
pub fn names(nr: u64) -> Vec<String> {
    let mut random = Random::new(40);
    (0..nr).map(|_| format!("block-{:016x}-{:016x}", random.next(), random.next())).collect()
}

/// Makes and commits files; what their frames held before is what they hold.
pub fn make_files(client: &Client, names: &[String], len_bytes: u64) -> Result<(), Failure> {
    for names in names.chunks(BATCH) {
        // They may be evicted, so that a get has to say that it used the file.
        let evictable = |name: &String| Ok(spec(name, len_bytes)?.evictable(1));
        let specs = names.iter().map(evictable).collect::<Result<_, Failure>>()?;
        let mut writers = client.create_batch(specs)?.into_iter().collect::<Result<Vec<_>, _>>()?;
        writers.iter_mut().for_each(|writer| drop(writer.segments()));
        client.commit_batch(writers)?.into_iter().collect::<Result<Vec<()>, _>>()?;
    }
    Ok(())
}

/// What to ask for a file.
pub fn spec(name: &str, len_bytes: u64) -> Result<CreateSpec, Failure> {
    let folio_size = if len_bytes >= BLOCK_BYTES { FolioSize::Pages2M } else { FolioSize::Pages4K };
    Ok(CreateSpec::new(FileName::new(name)?, len_bytes, folio_size))
}

impl Served {
    fn new(scale: Scale) -> Result<Self, Failure> {
        let (nr_files, nr_blocks) = (scale.pick(10_000, 100), scale.pick(512, 8));
        let nr_small = nr_files - nr_blocks;
        // One more block: small files leave their last 2 MiB in pieces.
        let bytes = nr_blocks * BLOCK_BYTES
            + (nr_small * SMALL_BYTES).next_multiple_of(BLOCK_BYTES)
            + BLOCK_BYTES;
        let role = Role::Owner { bytes, max_files: 16_384, directory: None };
        let other = Other::start(&role, "get")?;
        let client = Client::connect(other.socket())?;
        let all = names(nr_files);
        let (blocks, small) = all.split_at(nr_blocks as usize);
        make_files(&client, blocks, BLOCK_BYTES)?;
        make_files(&client, small, SMALL_BYTES)?;
        let blocks = blocks.to_vec();
        let served = Self { client, blocks, all, other };
        served.prove_that_no_call_is_made()?;
        Ok(served)
    }

    /// Gets every file once while the owner's process is stopped: a call would never return.
    fn prove_that_no_call_is_made(&self) -> Result<(), Failure> {
        self.other.stop()?;
        let result = self.all.iter().try_for_each(|name| -> Result<(), Failure> {
            let pin = self.client.get(name)?;
            if pin.len_bytes() != self.client.open(name)?.len_bytes() {
                return Err(Failure::new(format!("a pin of {} bytes", pin.len_bytes())));
            }
            Ok(())
        });
        self.other.go_on()?;
        result
    }

    fn gets(&self, names: &[String], worker: &mut Worker) -> Result<Done, Failure> {
        get_each(names, worker, |name| Ok(black_box(self.client.get(name)?).len_bytes()))
    }

    fn owned_gets(&self, worker: &mut Worker) -> Result<Done, Failure> {
        get_each(&self.blocks, worker, |name| {
            Ok(black_box(self.client.get_owned(name)?).len_bytes())
        })
    }
}

/// Gets files at random; `get` returns the length of one.
fn get_each(
    names: &[String],
    worker: &mut Worker,
    get: impl Fn(&str) -> Result<u64, Failure>,
) -> Result<Done, Failure> {
    let mut got = 0;
    for _ in 0..worker.nr_ops {
        let name = &names[worker.random.below(names.len() as u64) as usize];
        got += u64::from(get(name)? >= SMALL_BYTES);
    }
    Ok(Done::ops(got))
}

#[derive(Debug)]
struct Block(u64);

fn table_row(
    name: &str,
    names: &Arc<Vec<String>>,
    nr_threads: usize,
    get: impl Fn(&str) -> Option<Arc<Block>> + Send + Sync + 'static,
) -> Row {
    let names = Arc::clone(names);
    Row::new(format!("{name}, {nr_threads}T"), move |mut worker| {
        let mut got = 0;
        for _ in 0..worker.nr_ops {
            let name = &names[worker.random.below(names.len() as u64) as usize];
            got += u64::from(black_box(get(name)).is_some_and(|block| block.0 > 0));
        }
        Ok(Done::ops(got))
    })
    .on_threads(nr_threads)
    .against(BASE)
}

fn tables(names: &Arc<Vec<String>>) -> Vec<Row> {
    let pairs = || names.iter().map(|name| (name.clone(), Arc::new(Block(BLOCK_BYTES))));
    let plain: HashMap<String, Arc<Block>> = pairs().collect();
    let mut rows = vec![table_row("HashMap, no lock: get + Arc clone + drop", names, 1, {
        move |name| plain.get(name).cloned()
    })];
    let locked: Arc<Mutex<HashMap<String, Arc<Block>>>> = Arc::new(Mutex::new(pairs().collect()));
    let sharded: Arc<DashMap<String, Arc<Block>>> = Arc::new(pairs().collect());
    for nr_threads in [1, 2] {
        let (locked, sharded) = (Arc::clone(&locked), Arc::clone(&sharded));
        rows.push(table_row("Mutex<HashMap>: the same", names, nr_threads, move |name| {
            locked.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
        }));
        rows.push(table_row("dashmap: the same", names, nr_threads, move |name| {
            sharded.get(name).map(|found| Arc::clone(&found))
        }));
    }
    rows
}

/// The scenario.
pub fn scenario(scale: Scale) -> Result<Scenario, Failure> {
    let served = Arc::new(Served::new(scale)?);
    let nr_files = served.all.len();
    let mut rows = tables(&Arc::new(served.all.clone()));
    for nr_threads in [1, 2] {
        let (blocks, owned) = (Arc::clone(&served), Arc::clone(&served));
        let all = Arc::clone(&served);
        let borrowed = format!("pgmap: Client::get + drop, 2 MiB files, {nr_threads}T");
        let row = Row::new(borrowed.clone(), {
            move |mut worker| blocks.gets(&blocks.blocks, &mut worker)
        });
        rows.push(row.on_threads(nr_threads).target(TARGET).against(BASE));
        let row =
            Row::new(format!("pgmap: Client::get_owned + drop, 2 MiB files, {nr_threads}T"), {
                move |mut worker| owned.owned_gets(&mut worker)
            });
        rows.push(row.on_threads(nr_threads).target(OWNED_TARGET).against(&borrowed));
        let row = Row::new(format!("pgmap: Client::get + drop, any file, {nr_threads}T"), {
            move |mut worker| all.gets(&all.all, &mut worker)
        });
        rows.push(row.on_threads(nr_threads).target(TARGET).against(BASE));
    }
    let notes = vec![
        format!(
            "{nr_files} files with names of 39 bytes, {} of them of 2 MiB and the rest of 4 KiB",
            served.blocks.len()
        ),
        "the owner is another process; it was stopped (SIGSTOP) while each file was got once"
            .into(),
        "the tables are in this process and can neither be shared nor revoked".into(),
    ];
    Ok(Scenario { title: "get".into(), notes, rows })
}
