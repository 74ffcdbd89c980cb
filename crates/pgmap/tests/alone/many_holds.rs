//! What many holds cost those who do not hold them: a drain, a question who holds what, and
//! everybody else while frames with many holders go. Times are medians of interleaved rounds, and
//! bounds are several times what a machine needs, for they must tell "grows with the holds" from
//! "does not", no more.
use crate::support;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pgmap::mm::ledger::{Agent, LANE_SLOTS, LedgerLayout, SlotWord};
use pgmap::mm::pfn::PfnRange;
use pgmap::mm::vmemmap::VmemmapLayout;
use pgmap::os::{Connection, MemoryFile, WriteMapping};
use pgmap::report::HolderList;
use pgmap::wire::{self, Hello, Welcome};
use pgmap::{Client, Event, FilePin, FolioSize, Owner, Pool, PoolOptions, Refusal};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const ROUNDS: usize = 9;

fn owner(size_bytes: u64) -> Owner {
    Owner::start(Pool::create(&PoolOptions::anonymous(size_bytes)).unwrap()).unwrap()
}

/// A committed file of pages of 4 KiB that nobody wrote to.
fn make(client: &Client, name: &str, nr_pages: u64) {
    let mut writer = client.create(name, nr_pages * PAGE, FolioSize::Pages4K).unwrap();
    let _zeros = writer.segments();
    writer.commit().unwrap();
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn timed(nr_times: u32, mut what: impl FnMut()) -> Duration {
    let start = Instant::now();
    (0..nr_times).for_each(|_| what());
    start.elapsed() / nr_times
}

/// The bytes of the page with this number.
fn page(number: u64) -> std::ops::Range<u64> {
    number * PAGE..(number + 1) * PAGE
}

/// Pins of single pages of `name`, from the first page on, again and again.
fn pin_pages<'c>(client: &'c Client, name: &str, nr_pages: u64, nr_pins: u64) -> Vec<FilePin<'c>> {
    let file = client.open(name).unwrap();
    (0..nr_pins).map(|n| file.pin(page(n % nr_pages)).unwrap()).collect()
}

/// Create, commit and unlink of a file of one page.
fn churn(client: &Client) {
    make(client, "churn", 1);
    client.unlink("churn").unwrap();
}

/// Medians of a churn in a pool without pins and in one where `hold` took some.
fn churn_beside<T>(hold: impl FnOnce(&'static Client) -> T) -> (Duration, Duration) {
    let (idle, busy) = (owner(256 * MIB), owner(256 * MIB));
    let (idle_client, busy_client) = (idle.client().unwrap(), busy.client().unwrap());
    let holder: &'static Client = Box::leak(Box::new(busy.client().unwrap()));
    let holds = hold(holder);
    // Whoever drains reads a few times what was pinned since before it remembers it.
    (0..60).for_each(|_| churn(&busy_client));
    let (mut idle_times, mut busy_times) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        idle_times.push(timed(100, || churn(&idle_client)));
        busy_times.push(timed(100, || churn(&busy_client)));
    }
    drop(holds);
    let (idle, busy) = (median(idle_times), median(busy_times));
    println!("churn: {idle:?} with nothing held, {busy:?}");
    (idle, busy)
}

#[test]
fn a_drain_costs_no_more_for_pins_of_other_frames() {
    let _alone = crate::alone();
    let one_file = churn_beside(|holder| {
        make(holder, "a", 1000);
        pin_pages(holder, "a", 1000, 100_000)
    });
    let one_page = churn_beside(|holder| {
        make(holder, "a", 1);
        pin_pages(holder, "a", 1, 100_000)
    });
    // Everywhere around the frames that come and go.
    let many_files = churn_beside(|holder| {
        for number in 0..2000 {
            make(holder, &format!("f{number}"), 1);
        }
        for number in (0..2000).step_by(3) {
            holder.unlink(format!("f{number}")).unwrap();
        }
        let names = (0..2000).filter(|number| number % 3 != 0);
        let files: Vec<_> =
            names.map(|number| holder.open(format!("f{number}")).unwrap()).collect();
        let spread = (0..100_000).map(|n| &files[n * 7919 % files.len()]);
        spread.map(|file| file.pin_all().unwrap()).collect::<Vec<_>>()
    });
    let for_long = churn_beside(|holder| {
        make(holder, "a", 1000);
        let file = holder.open("a").unwrap();
        let pin = |n: u64| file.pin_longterm(page(n % 1000)).unwrap();
        (0..100_000u64).map(pin).collect::<Vec<_>>()
    });
    for (idle, busy) in [one_file, one_page, many_files, for_long] {
        assert!(busy < 3 * idle + Duration::from_micros(10), "{busy:?} instead of {idle:?}");
    }
}

/// Slots that were full and are empty again are forgotten, too.
#[test]
fn a_drain_costs_no_more_for_pins_that_were_dropped() {
    let _alone = crate::alone();
    let (idle, busy) = churn_beside(|holder| {
        make(holder, "a", 1000);
        drop(pin_pages(holder, "a", 1000, 100_000));
        holder.unlink("a").unwrap();
    });
    assert!(busy < 3 * idle + Duration::from_micros(10), "{busy:?} instead of {idle:?}");
}

#[test]
fn the_first_200_holders_cost_what_200_holders_cost() {
    let _alone = crate::alone();
    let (few, many) = (owner(256 * MIB), owner(256 * MIB));
    let clients = [few.client().unwrap(), many.client().unwrap()];
    let mut pins = Vec::new();
    for (client, nr_pins) in clients.iter().zip([300, 30_000]) {
        for number in 0..2000 {
            make(client, &format!("f{number}"), 4);
        }
        let files: Vec<_> =
            (0..2000).map(|number| client.open(format!("f{number}")).unwrap()).collect();
        pins.extend((0..nr_pins).map(|n| files[n % 2000].pin(0..PAGE).unwrap()));
    }
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (client, times) in clients.iter().zip(&mut times) {
            times.push(timed(1, || {
                let HolderList { holders, is_cut } = client.who_all().unwrap();
                assert_eq!((holders.len(), is_cut), (200, true));
                assert!(holders.iter().all(|holder| holder.file.is_some()));
            }));
        }
    }
    let [few, many] = times.map(median);
    println!("who: {few:?} of 300 pins, {many:?} of 30,000");
    assert!(many < 4 * few + Duration::from_millis(2), "{many:?} instead of {few:?}");
}

/// How long `what` takes, and the longest that another call takes meanwhile.
fn beside_others(owner: &Owner, what: impl FnOnce()) -> (Duration, Duration) {
    let third = owner.client().unwrap();
    make(&third, "other", 1);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !is_over.load(Ordering::Relaxed) {
                longest = longest.max(timed(1, || drop(third.stat("other").unwrap())));
            }
            longest
        });
        let start = Instant::now();
        what();
        let took = start.elapsed();
        is_over.store(true, Ordering::Relaxed);
        (took, asking.join().unwrap())
    })
}

/// How long it takes to unlink `a`, and the longest that another call takes until all of it is
/// free, which it is once `let_go` was called.
fn unlink_beside_others(owner: &Owner, let_go: impl FnOnce()) -> (Duration, Duration) {
    let client = owner.client().unwrap();
    let mut took = Duration::ZERO;
    let (_, longest) = beside_others(owner, || {
        took = timed(1, || client.unlink("a").unwrap());
        let_go();
        support::wait_for_info(owner, "the frames are free", |info| info.draining_bytes == 0);
    });
    println!("unlink: {took:?}; longest of another call until all was free: {longest:?}");
    (took, longest)
}

#[test]
fn an_unlink_with_65536_holders_keeps_nobody_waiting() {
    let _alone = crate::alone();
    const NR_HOLDERS: u64 = 65_536;
    let owner = owner(512 * MIB);
    let (client, holder) = (owner.client().unwrap(), owner.client().unwrap());
    make(&client, "a", NR_HOLDERS);
    let pins = pin_pages(&holder, "a", NR_HOLDERS, NR_HOLDERS);
    let (took, longest) = unlink_beside_others(&owner, || drop(pins));
    // They were 2.6 s each while each holder was looked for among all events.
    assert!(took < Duration::from_millis(600), "{took:?}");
    assert!(longest < Duration::from_millis(600), "{longest:?}");
}

/// A ledger whose words its client wrote itself: `NR_FORGED` slots, the n-th of which holds
/// `run_of(n)`.
fn forge(owner: &Owner, run_of: impl Fn(u64) -> PfnRange) -> Forged {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    owner.serve(&socket).unwrap();
    let connection = Connection::connect(&socket).unwrap();
    let hello = Hello {
        version: wire::VERSION,
        is_registered: false,
        resume: None,
        label: "a liar".into(),
        is_read_only: false,
    };
    connection.send(&wire::encode(&hello).unwrap(), &[]).unwrap();
    let mut buffer = vec![0; wire::MAX_MESSAGE_BYTES];
    let mut received = connection.recv(&mut buffer).unwrap();
    let welcome: Result<Welcome, Refusal> = wire::decode(&buffer[..received.len]).unwrap();
    let ledger = MemoryFile::from_fd(received.fds.pop().unwrap()).unwrap();
    let layout = LedgerLayout::new(&VmemmapLayout::for_pages(welcome.unwrap().nr_pages).unwrap());
    let [head, _, opened, _] = layout.always_used();
    let (marks_start, slots_start) = (512, head.end as u64 - 512);
    let mapping = WriteMapping::map(&ledger, 0, layout.nr_words() as u64 * 8).unwrap();
    let put = |at: u64, word: u64| mapping.copy_in(at * 8, &word.to_le_bytes()).unwrap();
    let nr_lanes = NR_FORGED / LANE_SLOTS as u64;
    put(1, nr_lanes);
    for lane in 0..nr_lanes {
        put(marks_start + 4 * lane, 1 << 16);
        put(marks_start + 4 * lane + 1, LANE_SLOTS as u64);
    }
    // Each block of 16 slots was opened.
    (0..NR_FORGED / 16).for_each(|block| put(opened.start as u64 + block, 1));
    for n in 0..NR_FORGED {
        put(slots_start + n, SlotWord::new(run_of(n), Agent::Cpu).bits());
    }
    Forged { mapping, slots_start, _ledger: ledger, _connection: connection, _directory: directory }
}

const NR_FORGED: u64 = 262_144;

struct Forged {
    mapping: WriteMapping,
    slots_start: u64,
    _ledger: MemoryFile,
    _connection: Connection,
    _directory: tempfile::TempDir,
}

impl Forged {
    fn empty(&self, n: u64) {
        self.mapping.copy_in((self.slots_start + n) * 8, &[0; 8]).unwrap();
    }
}

/// Pages of the file that forged ledgers hold, of 2 GiB.
const NR_PAGES: u64 = 2 * NR_FORGED;

/// An owner with the file "a" of so many pages, a client of it, and the file's first frame.
fn owner_of_large_file() -> (Owner, Client, u64) {
    let owner = owner((NR_PAGES * PAGE).next_multiple_of(MIB) + 64 * MIB);
    let client = owner.client().unwrap();
    make(&client, "a", NR_PAGES);
    let pins = pin_pages(&client, "a", 1, 1);
    let first = client.who("a").unwrap().holders[0].first_pfn;
    drop(pins);
    (owner, client, first)
}

/// An owner with a file of 2 GiB, which only a forged ledger holds, is unlinked beside others.
fn unlink_with_forged(run_of: impl Fn(u64, u64) -> PfnRange) {
    let (owner, client, first) = owner_of_large_file();
    let forged = forge(&owner, |n| run_of(first, n));
    let HolderList { holders: held, is_cut } = client.who("a").unwrap();
    assert_eq!((held.len(), is_cut), (200, true));
    let (took, longest) = unlink_beside_others(&owner, || {
        // Those of the first half end one by one, then the client goes.
        (0..NR_FORGED / 2).for_each(|n| forged.empty(n));
        drop(forged);
    });
    // It was 114 s.
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

#[test]
fn an_unlink_with_262144_forged_holds_keeps_nobody_waiting() {
    let _alone = crate::alone();
    let run = |first, nr_pages| PfnRange::new(first, nr_pages).unwrap();
    // Every other frame, in a row, from the last to the first, and such that all overlap.
    unlink_with_forged(|first, n| run(first + 2 * n, 1));
    unlink_with_forged(|first, n| run(first + n, 1));
    unlink_with_forged(|first, n| run(first + 2 * (NR_FORGED - 1 - n), 1));
    unlink_with_forged(|first, n| run(first + n, NR_FORGED));
}

/// Reading all its slots, and putting them in order, were one step each.
#[test]
fn a_truncate_with_262144_forged_holds_keeps_nobody_waiting() {
    let _alone = crate::alone();
    let (owner, client, first) = owner_of_large_file();
    let forged = forge(&owner, |n| PfnRange::new(first + n * 7919 % NR_PAGES, 1).unwrap());
    let (took, longest) = beside_others(&owner, || {
        let refused = client.truncate("a", PAGE, Duration::ZERO).unwrap_err();
        assert!(matches!(refused.refusal(), Some(Refusal::Held { .. })), "{refused}");
        assert_eq!(client.stat("a").unwrap().len_bytes, NR_PAGES * PAGE);
    });
    println!("truncate: {took:?}; longest of another call: {longest:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    drop(forged);
}

#[test]
fn a_client_with_many_holds_of_a_file_is_asked_a_few_times() {
    let _alone = crate::alone();
    let owner = owner(64 * MIB);
    let (client, holder) = (owner.client().unwrap(), owner.client().unwrap());
    make(&client, "a", 4000);
    let file = holder.open("a").unwrap();
    let pins: Vec<_> = (10..3000).step_by(2).map(|n| file.pin(page(n)).unwrap()).collect();
    let held = holder.who("a").unwrap().holders;
    client.unlink("a").unwrap();
    let mut asked = Vec::new();
    // The owner's thread hands out all at once.
    let mut patience = Duration::from_secs(10);
    while let Some(event) = holder.next_event(patience).unwrap() {
        patience = Duration::ZERO;
        let Event::ReclaimRequested { first_pfn, nr_pages, .. } = event else {
            panic!("{event:?}")
        };
        asked.push(first_pfn..first_pfn + nr_pages);
    }
    assert!(asked.len() <= pgmap::mm::drain::MAX_ASKS, "{} events", asked.len());
    let is_asked = |pfn| asked.iter().any(|range| range.contains(&pfn));
    assert!(held.iter().all(|holder| is_asked(holder.first_pfn)), "{asked:?}");
    assert!(asked.iter().map(|range| range.end - range.start).sum::<u64>() <= 2990);
    drop(pins);
}
