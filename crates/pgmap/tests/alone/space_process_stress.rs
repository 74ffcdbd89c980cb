//! Raw loads and stores through a process address space while others truncate, punch, unlink and
//! refill the files under it: a load finds its own file's word or what the fault handler mapped,
//! never another file's.
//!
//! Every word of a file says which file it is of, so that one word of another is found out at once.

// UNSAFETY: raw loads and stores at addresses that others vacate are the subject.
#![allow(unsafe_code)]
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::{self, Random};
use pgmap::mm::mm::{MapRequest, Placed};
use pgmap::mm::prot::Prot;
use pgmap::space::{AddressSpace, FaultAnswer};
use pgmap::{Client, FolioSize, Owner, Pool, PoolOptions};

const PAGE: u64 = 4096;
const POOL_BYTES: u64 = 8 << 20;
const NR_FILES: u64 = 8;
const FILE_PAGES: u64 = 96;
const NR_TOUCHERS: u64 = 3;
/// The generation of what the fault handler maps, until somebody stores there.
const SPARE: u64 = 1 << 50;
/// How long it goes on, unless the environment says otherwise.
const DEFAULT_SECONDS: u64 = 4;
const SECONDS: &str = "PGMAP_SPACE_STRESS_SECONDS";

fn name(file: u64) -> String {
    format!("file{file}")
}

/// Every word of a file: whose it is, and of which generation.
fn word_of(file: u64, generation: u64) -> u64 {
    generation << 8 | file
}

fn create(client: &Client, file: u64, generation: u64) -> Result<(), pgmap::Error> {
    let size = if file.is_multiple_of(2) { FolioSize::Pages4K } else { FolioSize::BestFit };
    let mut writer = client.create(name(file), FILE_PAGES * PAGE, size)?;
    let words = (0..FILE_PAGES * PAGE / 8).flat_map(|_| word_of(file, generation).to_le_bytes());
    writer.write_all_at(0, &words.collect::<Vec<u8>>())?;
    writer.commit()
}

/// Where a file is mapped.
fn address_of(start: u64, file: u64) -> u64 {
    start + file * FILE_PAGES * PAGE
}

#[derive(Default)]
struct Tally {
    loads: AtomicU64,
    stores: AtomicU64,
    faults: AtomicU64,
    spares: AtomicU64,
    cuts: AtomicU64,
    mapped: AtomicU64,
}

/// Takes files apart and puts others in place, as another client.
fn mutate(client: &Client, mut random: Random, until: Instant, tally: &Tally) {
    while Instant::now() < until {
        let file = random.below(NR_FILES);
        let cut = match random.below(4) {
            0 => client.truncate(
                name(file),
                (1 + random.below(FILE_PAGES - 1)) * PAGE,
                Duration::from_secs(5),
            ),
            1 => {
                let from = random.below(FILE_PAGES - 4) * PAGE;
                client.punch(name(file), from..from + 4 * PAGE, Duration::from_secs(5))
            }
            2 => client.unlink(name(file)),
            _ => create(client, file, random.below(1 << 40)),
        };
        match cut {
            Ok(()) => drop(tally.cuts.fetch_add(1, Ordering::Relaxed)),
            // Gone, there already, shorter by now, no room.
            Err(error) => assert!([2, 17, 22, 28].contains(&error.errno()), "{error}"),
        }
    }
}

/// Maps files again, over whatever is there.
fn remap(space: &AddressSpace, start: u64, mut random: Random, until: Instant, tally: &Tally) {
    while Instant::now() < until {
        let file = random.below(NR_FILES);
        let Ok(found) = space.client().open(name(file)) else { continue };
        let place = Placed::Over(address_of(start, file));
        let prot = if random.below(3) == 0 { Prot::READ } else { Prot::READ_WRITE };
        match space.map(&found, 0, FILE_PAGES * PAGE, place, prot) {
            Ok(_) => drop(tally.mapped.fetch_add(1, Ordering::Relaxed)),
            Err(error) => assert!([6, 116].contains(&error.errno()), "{error}"),
        }
        std::thread::sleep(Duration::from_micros(random.below(500)));
    }
}

fn touch(start: u64, mut random: Random, until: Instant, tally: &Tally) {
    while Instant::now() < until {
        let file = random.below(NR_FILES);
        let address = address_of(start, file) + random.below(FILE_PAGES * PAGE / 8) * 8;
        let word = ptr::with_exposed_provenance_mut::<AtomicU64>(address as usize);
        // SAFETY: an address of the process address space, aligned; what is not mapped is answered.
        let word = unsafe { &*word };
        let found = word.load(Ordering::Relaxed);
        assert_eq!(found & 0xff, file, "{address:#x} has {found:#x}");
        if found == word_of(file, SPARE) {
            tally.spares.fetch_add(1, Ordering::Relaxed);
        }
        tally.loads.fetch_add(1, Ordering::Relaxed);
        if random.below(4) == 0 {
            // A store that went astray would be found by whoever loads there.
            let own = word_of(file, random.below(1 << 40));
            word.store(own, Ordering::Relaxed);
            tally.stores.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_raw_touch_never_reaches_another_files_bytes() {
    let _alone = crate::alone();
    let seed = support::seed();
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(POOL_BYTES)).unwrap()).unwrap();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    (0..NR_FILES).for_each(|file| create(&client, file, 1).unwrap());
    let space = AddressSpace::for_process(&client, 1 << 30).unwrap();
    let file = client.open(name(0)).unwrap();
    let start = space.map(&file, 0, PAGE, Placed::Anywhere, Prot::READ).unwrap();
    let spares: Vec<_> = (0..NR_FILES)
        .map(|file| {
            let name = format!("spare{file}");
            let bytes = word_of(file, SPARE).to_le_bytes().repeat(PAGE as usize / 8);
            support::put(&client, &name, &bytes).unwrap();
            space.backing(&client.open(name).unwrap()).unwrap()
        })
        .collect();
    let tally = Arc::new(Tally::default());
    let space = Arc::new(space);
    let (weak, counted) = (Arc::downgrade(&space), tally.clone());
    space.on_touch_fault(move |fault| {
        counted.faults.fetch_add(1, Ordering::Relaxed);
        let Some(space) = weak.upgrade() else { return FaultAnswer::Fail };
        let page = fault.address - fault.address % PAGE;
        let spare = &spares[((page - start) / (FILE_PAGES * PAGE)) as usize];
        let request = MapRequest::new(spare.clone(), PAGE).over(page);
        space.mm().map(&request).unwrap();
        FaultAnswer::Retry
    });
    let seconds =
        std::env::var(SECONDS).ok().and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_SECONDS);
    let until = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        let (space, tally) = (&space, &tally);
        scope.spawn(|| mutate(&other, Random(seed), until, tally));
        scope.spawn(|| remap(space, start, Random(seed ^ 1), until, tally));
        for toucher in 0..NR_TOUCHERS {
            let random = Random(seed ^ (2 + toucher).rotate_left(40));
            scope.spawn(move || touch(start, random, until, tally));
        }
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "loads {} stores {} faults {} spares {} cuts {} mapped {} areas {}",
        count(&tally.loads),
        count(&tally.stores),
        count(&tally.faults),
        count(&tally.spares),
        count(&tally.cuts),
        count(&tally.mapped),
        space.mm().usage().nr_areas,
    );
    for counter in [&tally.loads, &tally.stores, &tally.faults, &tally.cuts, &tally.mapped] {
        assert!(count(counter) > 100, "too little happened");
    }
    drop(space);
    assert!(client.who_all().unwrap().holders.is_empty(), "a space that is gone holds nothing");
}
