//! Splitting a 2 MiB folio into 512 small ones and making it whole again, on the owner's side.
//!
//! A split fills one metadata page, a merge gives it back. Both floors are taken with and without
//! the system's part in that: the first touch of a fresh page, and punching it out.

use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pgmap::memory::{OwnerBarrier, Writable};
use pgmap::mm::barrier::HeavyBarrier;
use pgmap::mm::descriptor::FolioFlags;
use pgmap::mm::extent::Extent;
use pgmap::mm::folio::{Folios, Sizing};
use pgmap::mm::level::{FANOUT, Level, PAGE_BYTES};
use pgmap::mm::pfn::Pfn;
use pgmap::mm::split::NoSmallCounts;
use pgmap::mm::stamp::Stamp;
use pgmap::mm::vmemmap::{Vmemmap, VmemmapLayout};
use pgmap::mm::words::WriteWords;
use pgmap::os::{MemoryFile, PageSize, WriteMapping};
use pgmap::{Client, FolioSize, Owner, Pool, PoolOptions, Shape};

use crate::failure::Failure;
use crate::harness::{Done, Row, Scale, Scenario, Worker};

const STORES: &str = "floor: 512 words into a page that is there";
const FRESH: &str = "floor: 512 words into a fresh page";
const PUNCH: &str = "floor: punching one page out";
const TABLE: usize = FANOUT as usize;
/// Folios that are split before their merges are measured, and the other way round.
const NR_FOLIOS: u64 = 256;

/// Words of a memory file, as the owner's descriptors lie.
fn words(name: &str, nr_words: usize) -> Result<Writable, Failure> {
    let len = nr_words as u64 * 8;
    let file = Arc::new(MemoryFile::anonymous(name, len, PageSize::Base)?);
    Ok(Writable::over_memory(WriteMapping::map(&file, 0, len)?, file, 0))
}

/// Which half of a round is timed.
#[derive(Clone, Copy)]
enum Timed {
    First,
    Second,
}

/// A page of a file for each folio, filled and punched without a page model.
struct Tables(Writable);

impl Tables {
    fn fill(&self, table: u64) {
        let first = table as usize * TABLE;
        for word in first..first + TABLE {
            // Release: as a descriptor is stored; nobody reads it.
            self.0.store(word, black_box(7), Ordering::Release);
        }
    }

    fn punch(&self, table: u64) {
        let first = table as usize * TABLE;
        self.0.discard(first..first + TABLE);
    }
}

/// 2 MiB folios of one extent, all whole between two calls.
struct Reshaped {
    folios: Folios<Writable>,
    extent: Extent,
    stamps: u64,
}

impl Reshaped {
    fn new() -> Result<Self, Failure> {
        let nr_pages = NR_FOLIOS * Level::Pmd.nr_pages();
        let layout = VmemmapLayout::for_pages(nr_pages).ok_or_else(|| Failure::new("no layout"))?;
        let words = words("bench-reshape", layout.nr_words())?;
        let vmemmap = Vmemmap::new(layout, words).ok_or_else(|| Failure::new("too few words"))?;
        let mut folios = Folios::new(vmemmap);
        folios.bring_online(Pfn::new(0).ok_or_else(|| Failure::new("no frame"))?, nr_pages);
        let reserved = folios.reserve(nr_pages, Sizing::Fixed(Level::Pmd), stamp(1)?);
        let reserved = reserved.map_err(|_| Failure::new("no frames"))?;
        let live = folios.publish(&reserved, FolioFlags::WRITABLE);
        let [extent] = live[..] else { return Err(Failure::new("several extents")) };
        Ok(Self { folios, extent, stamps: 1 })
    }

    fn at(folio: u64) -> Result<Pfn, Failure> {
        Pfn::new(folio * Level::Pmd.nr_pages()).ok_or_else(|| Failure::new("no frame"))
    }

    fn split(&mut self, folio: u64) -> Result<(), Failure> {
        let reshaped = self.folios.split(Self::at(folio)?, Level::Pte)?;
        self.extent = black_box(reshaped.extent_after(&self.extent));
        Ok(())
    }

    fn merge(&mut self, folio: u64) -> Result<(), Failure> {
        let pfn = Self::at(folio)?;
        self.stamps += 1;
        let fresh = stamp(self.stamps)?;
        let proof = NoSmallCounts::among(pgmap::mm::pfn::PfnRange::folio(pfn, Level::Pmd), [])
            .map_err(|_| Failure::new("nobody holds anything"))?;
        let reshaped = self.folios.merge(&self.extent, pfn, Level::Pmd, fresh, &proof)?;
        self.extent = black_box(reshaped.extent_after(&self.extent));
        Ok(())
    }
}

fn stamp(number: u64) -> Result<Stamp, Failure> {
    Stamp::new(number).ok_or_else(|| Failure::new("no stamp is left"))
}

/// Does `first` for so many folios, then `second` for as many, until `worker` has its operations.
fn rounds<T>(
    worker: &Worker,
    timed: Timed,
    subject: &mut T,
    first: impl Fn(&mut T, u64) -> Result<(), Failure>,
    second: impl Fn(&mut T, u64) -> Result<(), Failure>,
) -> Result<Done, Failure> {
    let mut spent = Duration::ZERO;
    let mut done = 0;
    while done < worker.nr_ops {
        let nr = (worker.nr_ops - done).min(NR_FOLIOS);
        let start = Instant::now();
        (0..nr).try_for_each(|folio| first(subject, folio))?;
        let middle = Instant::now();
        (0..nr).try_for_each(|folio| second(subject, folio))?;
        spent += match timed {
            Timed::First => middle - start,
            Timed::Second => middle.elapsed(),
        };
        done += nr;
    }
    Ok(Done::timed(done, spent))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn floors() -> Result<Vec<Row>, Failure> {
    let tables =
        || Ok::<_, Failure>(Mutex::new(Tables(words("bench-tables", NR_FOLIOS as usize * TABLE)?)));
    let fill = |tables: &mut Tables, table| {
        tables.fill(table);
        Ok(())
    };
    let punch = |tables: &mut Tables, table| {
        tables.punch(table);
        Ok(())
    };
    let (there, fresh, punched) = (tables()?, tables()?, tables()?);
    Ok(vec![
        Row::new(STORES, move |worker| {
            rounds(&worker, Timed::Second, &mut *lock(&there), fill, fill)
        }),
        Row::new(FRESH, move |worker| {
            rounds(&worker, Timed::First, &mut *lock(&fresh), fill, punch)
        })
        .against(STORES),
        Row::new(PUNCH, move |worker| {
            rounds(&worker, Timed::Second, &mut *lock(&punched), fill, punch)
        })
        .against(STORES),
        Row::new("floor: one heavy barrier", {
            let heavy = OwnerBarrier::register();
            move |worker| {
                for _ in 0..worker.nr_ops {
                    black_box(heavy.heavy());
                }
                Ok(Done::ops(worker.nr_ops))
            }
        })
        .against(STORES),
    ])
}

/// The whole call of a client in the owner's process: books, descriptors and the index's entry.
struct Called {
    client: Client,
    _owner: Owner,
}

impl Called {
    fn new() -> Result<Self, Failure> {
        let bytes = 4 * Level::Pmd.size_bytes();
        let owner = Owner::start(Pool::create(&PoolOptions::anonymous(bytes))?)?;
        let client = owner.client()?;
        client.create("folio", Level::Pmd.size_bytes(), FolioSize::Pages2M)?.commit()?;
        Ok(Self { client, _owner: owner })
    }

    fn there_and_back(&self) -> Result<(), Failure> {
        self.client.reshape("folio", 0, Shape::Split { to: Level::Pte.number() })?;
        Ok(self.client.reshape("folio", 0, Shape::Merge { to: Level::Pmd.number() })?)
    }
}

/// The scenario.
pub fn scenario(_: Scale) -> Result<Scenario, Failure> {
    let mut rows = floors()?;
    let (split, merge) = (Mutex::new(Reshaped::new()?), Mutex::new(Reshaped::new()?));
    rows.push(
        Row::new("pgmap: split 2 MiB into 512 x 4 KiB", move |worker| {
            rounds(&worker, Timed::First, &mut *lock(&split), Reshaped::split, Reshaped::merge)
        })
        .against(FRESH),
    );
    rows.push(
        Row::new("pgmap: merge 512 x 4 KiB into 2 MiB", move |worker| {
            rounds(&worker, Timed::Second, &mut *lock(&merge), Reshaped::split, Reshaped::merge)
        })
        .against(PUNCH),
    );
    let called = Arc::new(Called::new()?);
    rows.push(
        Row::new("pgmap: Client::reshape, split and merge", move |worker| {
            (0..worker.nr_ops).try_for_each(|_| called.there_and_back())?;
            Ok(Done::ops(worker.nr_ops))
        })
        .against(FRESH),
    );
    let notes = vec![
        format!("a split fills a metadata page of {PAGE_BYTES} bytes, a merge gives it back"),
        "neither needs a heavy barrier: holds stand, and a life word that moved fails by itself"
            .into(),
    ];
    Ok(Scenario { title: "reshape".into(), notes, rows })
}
