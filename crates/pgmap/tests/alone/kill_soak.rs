//! Clients killed at random moments while two others work: nothing is lost, nothing is leaked, and
//! no byte that anybody reads is another's.
//!
//! Every page of every file proves what it is (`support::block`). Victims are killed with
//! uncommitted writers, with short, long-term and device pins, in the middle of any call.
//! Afterwards every frame is free or belongs to a committed file whose checksums are right.
//! `PGMAP_SOAK_SECONDS` says how long; the seed is printed. `PGMAP_TEST_ON` puts the pool's data on
//! a device or into a file: nobody is then killed as a device, for what a dead device may still
//! write to is not taken from such memory.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{self, Random, Second, block};
use pgmap::report::HolderList;
use pgmap::{
    Agent, Client, CreateSpec, Error, FileName, FilePin, FileWriter, FolioSize, Owner, Pool,
    PoolOptions, Refusal, Replace,
};

const POOL_BYTES: u64 = 64 << 20;
/// The same where the data has the catalog at its head.
const POOL_ON_BYTES: u64 = 256 << 20;
const ON: &str = "PGMAP_TEST_ON";
const EOPNOTSUPP: i32 = 95;
const NR_NAMES: u64 = 24;
/// Kills that prove something.
const LEAST_KILLS: usize = 10;
const DEFAULT_SECONDS: u64 = 20;
/// Longest life of a victim once it works.
const LONGEST_LIFE_MS: u64 = 40;
/// Most that a worker or victim holds at a time.
const MOST_HELD: usize = 8;

#[test]
fn child_entry() {
    let Some((role, place)) = support::role() else { return };
    let mut parts = role.split(' ');
    let (kind, seed) = (parts.next().unwrap(), parts.next().unwrap().parse().unwrap());
    let client = Client::connect(&place).unwrap();
    let stop = AtomicBool::new(false);
    let nr_steps = std::thread::scope(|scope| {
        scope.spawn(|| {
            // The parent says nothing: the end of its pipe is the sign.
            assert_eq!(support::commands().count(), 0);
            stop.store(true, Ordering::Relaxed);
        });
        support::say("ok");
        work(&client, seed, kind == "victim", &stop)
    });
    support::say(format!("steps {nr_steps}"));
    drop(client);
    std::process::exit(0);
}

/// What a process does until it is asked to stop, or killed.
fn work(client: &Client, seed: u64, is_victim: bool, stop: &AtomicBool) -> u64 {
    let mut worker = Worker {
        client,
        random: Random(seed),
        pins: Vec::new(),
        writers: Vec::new(),
        generation: 0,
        is_victim,
    };
    let mut nr_steps = 0;
    while !stop.load(Ordering::Relaxed) {
        match worker.step() {
            Ok(()) => {}
            Err(error) if is_expected(&error) => {}
            Err(error) => panic!("step {nr_steps} of seed {seed}: {error}"),
        }
        nr_steps += 1;
    }
    nr_steps
}

/// What happens to those who share names and a pool that is too small.
fn is_expected(error: &Error) -> bool {
    matches!(
        error,
        Error::Refused(
            Refusal::NotFound { .. }
                | Refusal::Exists { .. }
                | Refusal::Stale { .. }
                | Refusal::NoSpace { .. }
                | Refusal::Held { .. }
                | Refusal::InUse { .. }
                | Refusal::BadLength { .. }
                | Refusal::MayBeDone { .. }
        ) | Error::OutOfRange { .. }
    )
}

struct Worker<'c> {
    client: &'c Client,
    random: Random,
    pins: Vec<FilePin<'c>>,
    writers: Vec<FileWriter<'c>>,
    generation: u64,
    is_victim: bool,
}

impl<'c> Worker<'c> {
    fn name(&mut self) -> String {
        format!("f{}", self.random.below(NR_NAMES))
    }

    fn step(&mut self) -> Result<(), Error> {
        let name = self.name();
        match self.random.below(16) {
            0..=3 => self.put(&name),
            4..=8 => self.verify(&name),
            9 => self.client.unlink(&name),
            10 => {
                let len = 1 + self.random.below(300_000);
                self.client.truncate(&name, len, Duration::from_millis(self.random.below(3)))
            }
            11 => {
                let to = self.name();
                let replace = if self.random.below(2) == 0 { Replace::Yes } else { Replace::No };
                self.client.rename(&name, &to, replace)
            }
            12 => self.put_batch(),
            13 => self.hold(&name),
            14 => self.leave_open(&name),
            _ => {
                self.let_go();
                self.client.pool_stat().map(drop)
            }
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        self.generation = self.random.next();
        let len = match self.random.below(10) {
            0 => 2 << 20,
            1 | 2 => 1 + self.random.below(1 << 20),
            _ => 1 + self.random.below(40_000),
        };
        block::make(self.generation, len as usize)
    }

    fn folio_size(&mut self) -> FolioSize {
        match self.random.below(4) {
            0 => FolioSize::Pages4K,
            1 => FolioSize::Pages2M,
            _ => FolioSize::BestFit,
        }
    }

    fn put(&mut self, name: &str) -> Result<(), Error> {
        let bytes = self.bytes();
        let folio_size = self.folio_size();
        let mut writer = self.client.create(name, bytes.len() as u64, folio_size)?;
        // In two parts, so that a kill finds it half written.
        let half = bytes.len() / 2;
        writer.write_all_at(0, &bytes[..half])?;
        writer.write_all_at(half as u64, &bytes[half..])?;
        writer.commit()
    }

    fn put_batch(&mut self) -> Result<(), Error> {
        let contents: Vec<Vec<u8>> = (0..4).map(|_| self.bytes()).collect();
        let specs = contents.iter().map(|bytes| {
            let name = FileName::new(format!("f{}", self.random.below(NR_NAMES))).unwrap();
            let spec = CreateSpec::new(name, bytes.len() as u64, FolioSize::BestFit);
            CreateSpec { replace: true, ..spec }
        });
        let created = self.client.create_batch(specs.collect())?;
        let mut writers = Vec::new();
        for (writer, bytes) in created.into_iter().zip(&contents) {
            match writer {
                Ok(mut writer) => {
                    writer.write_all_at(0, bytes)?;
                    writers.push(writer);
                }
                Err(error) if is_expected(&error) => {}
                Err(error) => return Err(error),
            }
        }
        for committed in self.client.commit_batch(writers)? {
            match committed {
                Err(error) if !is_expected(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn verify(&mut self, name: &str) -> Result<(), Error> {
        verify(&self.client.get(name)?, name);
        Ok(())
    }

    fn hold(&mut self, name: &str) -> Result<(), Error> {
        if self.pins.len() >= MOST_HELD {
            let place = self.random.below(self.pins.len() as u64) as usize;
            verify(&self.pins.swap_remove(place), "held");
        }
        let file = self.client.open(name)?;
        let len = file.len_bytes();
        let may_be_device = self.is_victim && agent() == Agent::Device;
        let pin = match self.random.below(if may_be_device { 3 } else { 2 }) {
            0 => file.pin(0..len),
            1 => file.pin_longterm(0..len),
            _ => file.pin_for_device(0..len),
        };
        let pin = match pin {
            // On DAX files only leases are long: there a short pin is held instead.
            Err(error) if error.errno() == EOPNOTSUPP => file.pin(0..len)?,
            pin => pin?,
        };
        self.pins.push(pin);
        Ok(())
    }

    fn leave_open(&mut self, name: &str) -> Result<(), Error> {
        if self.writers.len() >= MOST_HELD {
            self.writers.clear();
        }
        let bytes = self.bytes();
        let mut writer = self.client.create(name, bytes.len() as u64, FolioSize::BestFit)?;
        writer.write_all_at(0, &bytes[..bytes.len() / 3])?;
        if self.is_victim && self.random.below(2) == 0 {
            writer.set_agent(agent());
        }
        self.writers.push(writer);
        Ok(())
    }

    fn let_go(&mut self) {
        for pin in self.pins.drain(..) {
            verify(&pin, "held");
        }
        self.writers.clear();
    }
}

/// Who writes in the place of a device.
fn agent() -> Agent {
    if std::env::var_os(ON).is_some() { Agent::Cpu } else { Agent::Device }
}

fn options(pool: &Path) -> PoolOptions {
    match std::env::var_os(ON) {
        Some(on) => PoolOptions::on(on, pool).size(POOL_ON_BYTES),
        None => PoolOptions::in_directory(pool, POOL_BYTES),
    }
}

fn verify(pin: &FilePin<'_>, name: &str) {
    if let Err(wrong) = block::check(&pin.to_vec().unwrap()) {
        panic!("\"{name}\" under a pin: {wrong}");
    }
}

#[test]
fn killed_clients_leak_nothing_and_nobody_reads_anothers_bytes() {
    let _alone = crate::alone();
    let seconds = std::env::var("PGMAP_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(DEFAULT_SECONDS));
    let mut random = Random(support::seed());
    let directory = support::roomy();
    let (pool, socket) = (directory.path().join("pool"), directory.path().join("s"));
    let owner = Owner::start(Pool::create(&options(&pool)).unwrap()).unwrap();
    let whole_bytes = owner.info().free_bytes;
    owner.serve(&socket).unwrap();
    let client = owner.client().unwrap();

    let start = |kind: &str, seed: u64| {
        let mut process = Second::start(&format!("{kind} {seed}"), &socket);
        assert_eq!(process.answer(), "ok");
        process
    };
    let workers: Vec<Second> = (0..2).map(|_| start("worker", random.next())).collect();
    let mut reclaims = Vec::new();
    // A slow machine gets as much longer as it takes to have killed enough.
    while Instant::now() < until || reclaims.len() < LEAST_KILLS {
        let mut victim = start("victim", random.next());
        // The moment of the kill is what is random here; nothing is waited for.
        std::thread::sleep(Duration::from_micros(random.below(LONGEST_LIFE_MS * 1000)));
        assert!(victim.process.try_wait().unwrap().is_none(), "the victim ended by itself");
        let killed = Instant::now();
        victim.process.kill().unwrap();
        support::wait_for_info(&owner, "the victim is reaped", |info| info.nr_clients == 3);
        reclaims.push(killed.elapsed());
        victim.process.wait().unwrap();
    }
    for mut worker in workers {
        drop(worker.input.take());
        let steps = worker.answer();
        println!("worker: {steps}");
        assert!(worker.end().success(), "a worker read what it should not, see above");
    }
    report(&mut reclaims);
    check_what_is_left(&owner, &client, &pool, whole_bytes);
}

fn report(reclaims: &mut [Duration]) {
    reclaims.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let nr = reclaims.len();
    println!(
        "kills: {nr}; reclaimed after p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        ms(reclaims[nr / 2]),
        ms(reclaims[nr * 99 / 100]),
        ms(reclaims[nr - 1]),
    );
    assert!(nr >= LEAST_KILLS, "too few kills to prove anything: {nr}");
}

fn check_what_is_left(owner: &Owner, client: &Client, pool: &Path, whole_bytes: u64) {
    let info = support::wait_for_info(owner, "the workers are gone", |info| info.nr_clients == 1);
    let assert_accounted = |info: &pgmap::PoolInfo| {
        assert_eq!(info.free_bytes + info.live_bytes, whole_bytes, "{info:?}");
        assert_eq!((info.reserved_bytes, info.draining_bytes), (0, 0), "{info:?}");
    };
    assert_accounted(&info);
    assert_eq!(client.who_all().unwrap(), HolderList::default(), "nobody holds anything");
    let ledgers_of_living = |info: &pgmap::PoolInfo| {
        // A ledger has its client's number for a name; a spare one has none.
        let files = std::fs::read_dir(pool.join("ledgers")).unwrap().flatten();
        let is_ledger =
            |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.parse::<u64>().is_ok());
        let left = files.filter(|file| is_ledger(&file.file_name())).count() as u64;
        assert!(left >= info.nr_clients, "a living client's ledger is there");
        left == info.nr_clients
    };
    let files = client.list().unwrap();
    let allocated: u64 = files.iter().map(|file| file.allocated_bytes).sum();
    assert_eq!(allocated, info.live_bytes, "every frame that is not free is a file's");
    for file in &files {
        let pin = client.get(file.name.as_bytes()).unwrap();
        assert_eq!(pin.len_bytes(), file.len_bytes);
        verify(&pin, &file.name.to_string());
    }
    println!("{} files left, all as they should be: {info:?}", files.len());
    for file in &files {
        client.unlink(file.name.as_bytes()).unwrap();
    }
    let info = owner.info();
    assert_accounted(&info);
    assert_eq!((info.free_bytes, info.orphaned_bytes), (whole_bytes, 0), "{info:?}");
    assert!(ledgers_of_living(&info), "ledgers of the dead are left");
    // The whole pool can be used again.
    let bytes = block::make(1, whole_bytes as usize);
    support::put(client, "all", &bytes).unwrap();
    verify(&client.get("all").unwrap(), "all");
}
