//! A small pool on the heap for tests that run on one thread: descriptors of 1 GiB, clients with
//! ledgers of a chosen size, a doorbell that counts.
// Two tests share this file and each uses its own part.
#![allow(dead_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pgmap_mm::barrier::BarrierMode;
use pgmap_mm::descriptor::{Descriptor, FolioFlags, FolioState};
use pgmap_mm::extent::Extent;
use pgmap_mm::ledger::{Hold, LedgerLayout, LedgerReader};
use pgmap_mm::level::Level;
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::pin::Pinner;
use pgmap_mm::stamp::Stamp;
use pgmap_mm::vmemmap::{Vmemmap, VmemmapLayout};
use pgmap_mm::words::{HeapCounts, HeapWords};

use crate::client_side;

/// What a client of this world brings; its bell counts.
pub type Side = client_side::Side<Arc<HeapWords>, Arc<HeapCounts>, Arc<AtomicU64>>;

/// A ledger as the owner reads it.
pub type Reader = LedgerReader<Arc<HeapWords>, Arc<HeapCounts>>;

/// A client, the owner's view of its ledger, and what a test may do to it.
#[derive(Debug)]
pub struct Client {
    pub pinner: Pinner<Side>,
    pub reader: Reader,
    pub ledger: Arc<HeapWords>,
    pub is_forked: Arc<AtomicBool>,
    nr_bells: Arc<AtomicU64>,
}

impl Client {
    /// How often the client has rung.
    pub fn nr_bells(&self) -> u64 {
        self.nr_bells.load(Ordering::Relaxed)
    }

    /// What the owner finds in the ledger.
    pub fn holds(&self) -> Vec<Hold> {
        self.reader.all_holds()
    }
}

/// Descriptors of 1 GiB on the heap.
#[derive(Debug)]
pub struct World {
    pub layout: VmemmapLayout,
    descriptors: Arc<HeapWords>,
}

impl World {
    /// All frames Free.
    pub fn new() -> Self {
        let layout = VmemmapLayout::for_pages(Level::Pud.nr_pages()).unwrap();
        Self { layout, descriptors: Arc::new(HeapWords::new(layout.nr_words())) }
    }

    /// The owner's descriptors.
    pub fn vmemmap(&self) -> Vmemmap<Arc<HeapWords>> {
        Vmemmap::new(self.layout, Arc::clone(&self.descriptors)).unwrap()
    }

    /// An extent of the first `nr_folios` folios of 2 MiB, all under one Live word.
    pub fn extent_of_huge_folios(&self, nr_folios: u64) -> Extent {
        let (vmemmap, nr_pages) = (self.vmemmap(), Level::Pmd.nr_pages());
        let extent = Extent::new(run(0, nr_folios * nr_pages), Level::Pmd, live(1)).unwrap();
        vmemmap.set(Level::Pud, extent.first(), Descriptor::SPLIT);
        for folio in 0..nr_folios {
            vmemmap.set(Level::Pmd, Pfn::new(folio * nr_pages).unwrap(), extent.life);
        }
        extent
    }

    /// A new client whose ledger has `nr_lanes` lanes of `lane_slots` slots.
    pub fn client(&self, identity: u64, nr_lanes: usize, lane_slots: usize) -> Client {
        let layout = LedgerLayout::with_lanes(&self.layout, nr_lanes, lane_slots);
        let ledger = Arc::new(HeapWords::new(layout.nr_words()));
        let counts = Arc::new(HeapCounts::new(layout.nr_counts()));
        let (is_forked, nr_bells) = Default::default();
        let side = Side {
            ledger: Arc::clone(&ledger),
            counts: Arc::clone(&counts),
            vmemmap: self.vmemmap(),
            barrier_mode: BarrierMode::Fenced,
            bell: Arc::clone(&nr_bells),
            is_forked: Arc::clone(&is_forked),
            identity,
        };
        Client {
            pinner: Pinner::new(side, layout).unwrap(),
            reader: LedgerReader::new(layout, Arc::clone(&ledger), counts).unwrap(),
            ledger,
            is_forked,
            nr_bells,
        }
    }
}

/// The run of `nr_pages` frames from `first`.
pub fn run(first: u64, nr_pages: u64) -> PfnRange {
    PfnRange::new(first, nr_pages).unwrap()
}

/// The stamp with this number.
pub fn stamp(number: u64) -> Stamp {
    Stamp::new(number).unwrap()
}

/// A Live word that allows long-term pins.
pub fn live(number: u64) -> Descriptor {
    let flags = FolioFlags::WRITABLE.with(FolioFlags::LONGTERM_OK);
    Descriptor::new(FolioState::Live, flags, stamp(number))
}
