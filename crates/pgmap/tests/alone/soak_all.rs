//! Four processes do all of it at random, over an owner in a fifth, and each of the five is killed
//! again and again, or stopped for a while, and the file system of the pool is full now and then:
//! no frame is lost, none is given twice, every committed byte is right.
//!
//! The file system is a small one of its own, in a mount namespace. Where that cannot be had, the
//! rest is done without it, and the test says so.
//!
//! Every page proves what it is: it carries its generation and its place, and all its other bytes
//! follow from these. Only a hole, and what a truncate cut off inside a page, reads as zero.
//! `PGMAP_SOAK_SECONDS` says how long; the seed is printed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{self, Random, Second};
use pgmap::report::HolderList;
use pgmap::{
    Access, Agent, Client, CreateSpec, Error, FileName, FilePin, FileRules, FileWriter, FolioSize,
    LongtermRule, MemoryType, OnDeadline, Owner, Pool, PoolInfo, PoolOptions, Replace, Shape,
};

const PAGE_BYTES: u64 = 4096;
const POOL_BYTES: u64 = 64 << 20;
const NR_WORKERS: usize = 4;
const NR_NAMES: u64 = 24;
const DEFAULT_SECONDS: u64 = 60;
/// Pins and writers that a worker keeps at most.
const MOST_HELD: usize = 8;
/// Longest pause between two kills.
const LONGEST_PAUSE_MS: u64 = 120;
/// One blow in so many hits the owner.
const OWNER_ONE_IN: u64 = 6;
/// One blow in so many is a stop and not a kill.
const STOP_ONE_IN: u64 = 4;
/// Longest stop.
const LONGEST_STOP_MS: u64 = 80;
/// Bytes of the pool's own file system: half as much again as the pool.
const FILE_SYSTEM_BYTES: u64 = 96 << 20;
/// Longest time for which the file system is full, and is not.
const LONGEST_FULL_MS: u64 = 500;
/// Failures of memory are rare even here: each costs extents.
const FAILURE_ONE_IN: u64 = 4;

/// What happens to those who share names, and lose their owner in the middle of a call: not found,
/// busy, exists, invalid (the file is shorter now), no space, stale, failed memory, and long-term
/// pins or leases that the rules forbid.
const EXPECTED: [i32; 10] = [2, 14, 16, 17, 22, 28, 95, 116, 133, 12];

#[test]
fn child_entry() {
    let Some((role, place)) = support::role() else { return };
    match role.split(' ').collect::<Vec<_>>().as_slice() {
        ["worker", seed] => work_until_told(&place, seed.parse().unwrap()),
        ["owner"] => own(&place),
        ["soak"] => {
            soak(&place, true);
            support::say("end");
        }
        other => panic!("no such role: {other:?}"),
    }
    std::process::exit(0);
}

fn own(place: &Path) {
    let pool = place.join("pool");
    let options = PoolOptions::in_directory(&pool, POOL_BYTES).memory_type(MemoryType::Generic);
    // A first owner that was killed while it made the pool left none.
    let pool = Pool::open(&pool).or_else(|_| Pool::create(&options)).unwrap();
    let owner = Owner::start(pool).unwrap();
    owner.serve(place.join("s")).unwrap();
    support::say("ok");
    assert_eq!(support::commands().count(), 0);
    drop(owner);
}

fn work_until_told(place: &Path, seed: u64) {
    let client = support::wait_until("an owner is there", || Client::connect(place.join("s")).ok());
    let stop = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            // The parent says nothing: the end of its pipe is the sign.
            assert_eq!(support::commands().count(), 0);
            stop.store(true, Ordering::Relaxed);
        });
        support::say("ok");
        let mut worker = Worker {
            client: &client,
            random: Random(seed),
            pins: Vec::new(),
            writers: Vec::new(),
            done: BTreeMap::new(),
        };
        let mut nr_steps = 0;
        while !stop.load(Ordering::Relaxed) {
            nr_steps += 1;
            let (what, result) = worker.step();
            match result {
                Ok(()) => *worker.done.entry(what).or_default() += 1,
                Err(error) if EXPECTED.contains(&error.errno()) => {}
                Err(error) => panic!("step {nr_steps} of seed {seed}, {what}: {error}"),
            }
        }
        worker.pins.iter().for_each(verify);
        worker.done
    });
    drop(client);
    let done: Vec<String> = done.iter().map(|(what, nr)| format!("{what} {nr}")).collect();
    support::say(done.join(", "));
}

struct Worker<'c> {
    client: &'c Client,
    random: Random,
    pins: Vec<FilePin<'c>>,
    writers: Vec<FileWriter<'c>>,
    /// What succeeded, and how often.
    done: BTreeMap<&'static str, u64>,
}

impl<'c> Worker<'c> {
    fn name(&mut self) -> String {
        format!("f{}", self.random.below(NR_NAMES))
    }

    fn picked<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len() as u64) as usize]
    }

    fn step(&mut self) -> (&'static str, Result<(), Error>) {
        let name = self.name();
        match self.random.below(24) {
            0..=5 => ("put", self.create(&name).and_then(FileWriter::commit)),
            6 => ("draft", self.leave_open(&name)),
            7..=9 => ("read", self.read(&name)),
            10..=12 => ("pin", self.pin(&name)),
            13 => ("let go", self.let_go()),
            14 => ("truncate", self.truncate(&name)),
            15 => ("punch", self.punch(&name)),
            16 | 17 => ("reshape", self.reshape(&name)),
            18 => ("memory failure", self.memory_failure()),
            19 => ("clear poison", self.clear_poison(&name)),
            20 => ("repair", self.client.repair_free()),
            21 => ("unlink", self.client.unlink(&name)),
            22 => ("events", self.hear()),
            _ => {
                let (to, replace) = (self.name(), self.picked(&[Replace::No, Replace::Yes]));
                ("rename", self.client.rename(&name, &to, replace))
            }
        }
    }

    fn create(&mut self, name: &str) -> Result<FileWriter<'c>, Error> {
        let len = match self.random.below(10) {
            0 => 3 << 20,
            1 => 2 << 20,
            2 | 3 => 1 + self.random.below(1 << 20),
            _ => 1 + self.random.below(60_000),
        };
        let size = self.picked(&[FolioSize::BestFit, FolioSize::Pages4K, FolioSize::Pages2M]);
        let longterm = self.picked(&[
            LongtermRule::AsType,
            LongtermRule::Leasable,
            LongtermRule::Forbid,
            LongtermRule::ForbidDevice,
        ]);
        let spec = CreateSpec::new(FileName::new(name).unwrap(), len, size);
        let rules = FileRules { longterm, ..FileRules::default() };
        let spec = CreateSpec { rules, replace: self.random.below(2) == 0, ..spec };
        let mut writer = self.client.create_batch(vec![spec])?.pop().unwrap()?;
        // In two parts, so that a kill finds it half written.
        let bytes = contents(1 + self.random.next() / 2, len);
        let (first, second) = bytes.split_at(bytes.len() / 2);
        writer.write_all_at(0, first)?;
        writer.write_all_at(first.len() as u64, second)?;
        Ok(writer)
    }

    fn leave_open(&mut self, name: &str) -> Result<(), Error> {
        if self.writers.len() >= MOST_HELD {
            let writers: Vec<_> = self.writers.drain(..).collect();
            for committed in self.client.commit_batch(writers)? {
                // Without a draft any more: the owner that knew of it was killed.
                committed?;
            }
        }
        let writer = self.create(name)?;
        writer.set_agent(self.picked(&[Agent::Cpu, Agent::Device]));
        self.writers.push(writer);
        Ok(())
    }

    fn read(&mut self, name: &str) -> Result<(), Error> {
        verify(&self.client.get(name)?);
        Ok(())
    }

    fn pin(&mut self, name: &str) -> Result<(), Error> {
        if self.pins.len() >= MOST_HELD {
            let at = self.random.below(self.pins.len() as u64) as usize;
            verify(&self.pins.swap_remove(at));
        }
        let file = self.client.open(name)?;
        let nr_pages = file.len_bytes().div_ceil(PAGE_BYTES);
        let from = self.random.below(nr_pages) * PAGE_BYTES;
        let len = 1 + self.random.below(file.len_bytes() - from);
        let agent = self.picked(&[Agent::Cpu, Agent::Device]);
        let access = self.picked(&[Access::Read, Access::Write]);
        let pin = match self.random.below(4) {
            0 => file.pin(from..from + len)?,
            1 => file.pin_for_device(from..from + len)?,
            2 => file.pin_longterm(from..from + len)?,
            _ => file.lease(from..from + len, agent, access)?,
        };
        verify(&pin);
        self.pins.push(pin);
        Ok(())
    }

    fn let_go(&mut self) -> Result<(), Error> {
        for pin in self.pins.drain(..) {
            verify(&pin);
        }
        self.writers.clear();
        Ok(())
    }

    fn truncate(&mut self, name: &str) -> Result<(), Error> {
        let (len, wait_ms) = (1 + self.random.below(2 << 20), self.random.below(3));
        let on_deadline = self.picked(&[OnDeadline::Fail, OnDeadline::Quarantine]);
        self.client.truncate_or(name, len, Duration::from_millis(wait_ms), on_deadline).map(drop)
    }

    fn punch(&mut self, name: &str) -> Result<(), Error> {
        // Not the first page, which says what the others must be.
        let from = (1 + self.random.below(12)) * PAGE_BYTES;
        let to = from + (1 + self.random.below(4)) * PAGE_BYTES;
        let on_deadline = self.picked(&[OnDeadline::Fail, OnDeadline::Quarantine]);
        self.client
            .punch_or(name, from..to, Duration::from_millis(self.random.below(3)), on_deadline)
            .map(drop)
    }

    fn reshape(&mut self, name: &str) -> Result<(), Error> {
        let shape =
            self.picked(&[Shape::Split { to: 0 }, Shape::Merge { to: 1 }, Shape::Merge { to: 1 }]);
        self.client.reshape(name, self.random.below(3 << 20), shape)
    }

    fn memory_failure(&mut self) -> Result<(), Error> {
        if self.random.below(FAILURE_ONE_IN) != 0 {
            return Ok(());
        }
        self.client.memory_failure(self.random.below(POOL_BYTES / PAGE_BYTES))
    }

    /// Replaces the first failed page.
    fn clear_poison(&mut self, name: &str) -> Result<(), Error> {
        let file = self.client.open(name)?;
        for page in 0..file.len_bytes().div_ceil(PAGE_BYTES) {
            let pinned = file.pin(page * PAGE_BYTES..page * PAGE_BYTES + 1);
            if pinned.is_err_and(|error| error.errno() == 133) {
                return self.client.clear_poison(name, page * PAGE_BYTES, &CLEARED);
            }
        }
        Ok(())
    }

    /// Gives back what is asked back, now and then.
    fn hear(&mut self) -> Result<(), Error> {
        while self.client.next_event(Duration::ZERO).is_ok_and(|event| event.is_some()) {
            if !self.pins.is_empty() {
                verify(&self.pins.swap_remove(0));
            }
        }
        self.client.pool_stat().map(drop)
    }
}

/// The pages under a pin are one file's, each in its place.
fn verify(pin: &FilePin<'_>) {
    if let Err(wrong) = Proof::default().see(0, pin) {
        panic!("under a pin: {wrong}");
    }
}

/// What a page says that nobody has written since its memory was replaced.
const CLEARED: [u8; PAGE_BYTES as usize] = [0xc1; PAGE_BYTES as usize];

/// Page `place` of a generation: both in clear, then bytes that follow from them.
fn page_of(generation: u64, place: u64) -> Vec<u8> {
    let mut random = Random(generation ^ place.rotate_left(32));
    let body = (2..PAGE_BYTES / 8).map(|_| random.next());
    [generation, place].into_iter().chain(body).flat_map(u64::to_le_bytes).collect()
}

fn contents(generation: u64, len: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((len + PAGE_BYTES) as usize);
    for place in 0..len.div_ceil(PAGE_BYTES) {
        bytes.extend_from_slice(&page_of(generation, place));
    }
    bytes.truncate(len as usize);
    bytes
}

/// What the pages seen so far have in common: their generation, and where page 0 of it would lie.
#[derive(Default)]
struct Proof {
    of: Option<(u64, u64)>,
}

impl Proof {
    /// Looks at pinned pages; the first is number `first`. Only a hole may read as zero.
    fn see(&mut self, first: u64, pin: &FilePin<'_>) -> Result<(), String> {
        let bytes = pin.to_vec().unwrap();
        let mut has_frame = vec![false; bytes.len().div_ceil(PAGE_BYTES as usize)];
        for part in pin.segments() {
            let end = part.range_offset + part.len_bytes;
            let pages = part.range_offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES);
            has_frame[pages.start as usize..pages.end as usize].fill(true);
        }
        for (at, page) in bytes.chunks(PAGE_BYTES as usize).enumerate() {
            if has_frame[at] {
                self.see_page(first + at as u64, page)?;
            } else if page.iter().any(|&byte| byte != 0) {
                return Err(format!("page {at} is a hole and not zero"));
            }
        }
        Ok(())
    }

    fn see_page(&mut self, at: u64, page: &[u8]) -> Result<(), String> {
        let word = |at: usize| {
            page.get(at * 8..at * 8 + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
        };
        // A truncate inside a page zeroes the rest of it, also under pins, as ftruncate does.
        let nr_kept = page.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        if nr_kept <= 16 || page[..nr_kept] == CLEARED[..nr_kept] {
            return Ok(());
        }
        let (Some(generation), Some(place)) = (word(0), word(1)) else { return Ok(()) };
        let found = (generation, place.wrapping_sub(at));
        let of = *self.of.get_or_insert(found);
        if found != of {
            return Err(format!(
                "page {at} is page {place} of {generation:#x}, not of {:#x}",
                of.0
            ));
        }
        if page[..nr_kept] != page_of(generation, place)[..nr_kept] {
            return Err(format!("page {at} of generation {generation:#x}: wrong bytes"));
        }
        Ok(())
    }
}

/// Runs what follows in a mount namespace of its own, with a small file system at `place`.
fn in_own_file_system(place: &Path) -> Vec<String> {
    let mount = format!(
        "mount -t tmpfs -o size={FILE_SYSTEM_BYTES} tmpfs '{}' && exec \"$@\"",
        place.display()
    );
    let user = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    ["unshare", user, "--propagation", "private", "sh", "-c", &mount, "sh"].map(String::from).into()
}

#[test]
fn after_kills_stops_and_shortage_no_frame_is_lost_or_given_twice_and_every_byte_is_right() {
    let _alone = crate::alone();
    let directory = support::roomy();
    let wrapper = in_own_file_system(directory.path());
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let tried = std::process::Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").output();
    match tried {
        Ok(tried) if tried.status.success() => {
            let mut inside = Second::start_by(&wrapper, "soak", directory.path());
            loop {
                match inside.answer() {
                    end if end == "end" => break,
                    line => println!("{line}"),
                }
            }
            assert!(inside.end().success());
        }
        refused => {
            println!("skipped: the full file system, which needs a mount namespace: {refused:?}");
            soak(directory.path(), false);
        }
    }
}

/// Fills the file system of `place`, and makes room again, until `stop`.
fn fill_now_and_then(place: &Path, mut random: Random, stop: &AtomicBool) {
    let eaten = place.join("eaten");
    let mut pause = || {
        let until = Instant::now() + Duration::from_millis(random.below(LONGEST_FULL_MS));
        while Instant::now() < until && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    while !stop.load(Ordering::Relaxed) {
        let mut file = std::fs::File::create(&eaten).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 16_384]).is_ok() {}
        pause();
        std::fs::remove_file(&eaten).unwrap();
        drop(file);
        pause();
    }
}

fn soak(place: &Path, is_filled: bool) {
    let seconds = std::env::var("PGMAP_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(DEFAULT_SECONDS));
    let seed = support::seed();
    support::say(format!("seed {seed}; repeat with PGMAP_TEST_SEED={seed}"));
    let mut random = Random(seed);
    let mut owner = Second::ready("owner", place);
    let stop = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        let _stop = support::SetOnDrop(&stop);
        let fill = Random(random.next());
        if is_filled {
            scope.spawn(|| fill_now_and_then(place, fill, &stop));
        }
        strike(place, &mut owner, &mut random, until)
    });
    support::say(done);
    let client = support::wait_until("an owner is there", || Client::connect(place.join("s")).ok());
    check_what_is_left(&client);
    owner.kill();
    let owner = Second::ready("owner", place);
    check_what_is_left(&client);
    give_everything_back(&client);
    drop(owner);
}

/// Kills and stops owner and workers until `until`; then lets them end. Says what was done.
fn strike(place: &Path, owner: &mut Second, random: &mut Random, until: Instant) -> String {
    let worker = |random: &mut Random| Second::ready(&format!("worker {}", random.next()), place);
    let mut workers: Vec<Second> = (0..NR_WORKERS).map(|_| worker(random)).collect();
    let (mut nr_killed, mut nr_restarts, mut nr_stops) = (0, 0, 0);
    let mut last_said = Instant::now();
    while Instant::now() < until {
        if last_said.elapsed() > Duration::from_secs(20) {
            support::say(format!("{nr_killed} clients killed so far"));
            last_said = Instant::now();
        }
        // The moment of the blow is what is random here; nothing is waited for.
        std::thread::sleep(Duration::from_micros(random.below(LONGEST_PAUSE_MS * 1000)));
        let hits_owner = random.below(OWNER_ONE_IN) == 0;
        let at = random.below(NR_WORKERS as u64) as usize;
        if random.below(STOP_ONE_IN) == 0 {
            let victim = if hits_owner { &*owner } else { &workers[at] };
            victim.signal(rustix::process::Signal::STOP);
            std::thread::sleep(Duration::from_millis(random.below(LONGEST_STOP_MS)));
            victim.signal(rustix::process::Signal::CONT);
            nr_stops += 1;
        } else if hits_owner {
            owner.kill();
            *owner = Second::ready("owner", place);
            nr_restarts += 1;
        } else {
            let is_alive = workers[at].process.try_wait().unwrap().is_none();
            assert!(is_alive, "a worker read what it should not, see above");
            workers[at].kill();
            workers[at] = worker(random);
            nr_killed += 1;
        }
    }
    for mut worker in workers {
        drop(worker.input.take());
        support::say(format!("the last life of a worker: {}", worker.answer()));
        assert!(worker.end().success(), "a worker read what it should not, see above");
    }
    format!("{nr_killed} clients killed, {nr_restarts} owners, {nr_stops} stops")
}

fn settled(client: &Client) -> PoolInfo {
    support::wait_until("the workers are gone and nothing waits for them", || {
        let info = client.pool_stat().unwrap();
        let is_settled = info.nr_clients == 1 && info.draining_bytes == 0;
        is_settled.then_some(info)
    })
}

fn check_what_is_left(client: &Client) {
    let info = settled(client);
    assert_eq!((info.reserved_bytes, info.quarantined_bytes), (0, 0), "{info:?}");
    assert_eq!(client.who_all().unwrap(), HolderList::default(), "nobody holds anything");
    let files = client.list().unwrap();
    let allocated: u64 = files.iter().map(|file| file.allocated_bytes).sum();
    assert_eq!(allocated, info.live_bytes, "every live frame is a file's");
    let missing = info.size_bytes - info.free_bytes - info.live_bytes;
    assert!(missing <= info.poisoned_bytes, "frames are lost: {info:?}");
    let mut frames = std::collections::BTreeSet::new();
    for listed in &files {
        let file = client.open(listed.name.as_bytes()).unwrap();
        let mut proof = Proof::default();
        for page in 0..listed.len_bytes.div_ceil(PAGE_BYTES) {
            let from = page * PAGE_BYTES;
            match file.pin(from..from + PAGE_BYTES.min(listed.len_bytes - from)) {
                Ok(pin) => {
                    if let Err(wrong) = proof.see(page, &pin) {
                        panic!("\"{}\": {wrong}", listed.name);
                    }
                    let mut given = pin.segments().map(|part| part.pool_offset);
                    assert!(given.all(|frame| frames.insert(frame)), "a frame of two files");
                }
                Err(error) => assert_eq!(error.errno(), 133, "{error}"),
            }
        }
    }
    support::say(format!("{} files left, all as they should be: {info:?}", files.len()));
}

fn give_everything_back(client: &Client) {
    for file in client.list().unwrap() {
        client.unlink(file.name.as_bytes()).unwrap();
    }
    client.repair_free().unwrap();
    let info = settled(client);
    assert_eq!((info.free_bytes, info.poisoned_bytes), (POOL_BYTES, 0), "{info:?}");
    assert_eq!(info.orphaned_bytes, 0, "{info:?}");
    // The whole pool can be used again.
    support::put(client, "all", &contents(1, POOL_BYTES)).unwrap();
    verify(&client.get("all").unwrap());
}
