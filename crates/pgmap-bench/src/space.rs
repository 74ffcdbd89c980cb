//! A pfn space full of live folios, with its owner's side and clients, and no data behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pgmap::ProcessSide;
use pgmap::memory::{LedgerCounts, LedgerWords, OwnerBarrier, Readable, Writable, WritableCounts};
use pgmap::mm::barrier::BarrierMode;
use pgmap::mm::descriptor::FolioFlags;
use pgmap::mm::drain::ClientId;
use pgmap::mm::extent::Extent;
use pgmap::mm::folio::{Folios, Sizing};
use pgmap::mm::ledger::{LedgerLayout, LedgerReader};
use pgmap::mm::level::{Level, PAGE_BYTES};
use pgmap::mm::pfn::Pfn;
use pgmap::mm::pin::Pinner;
use pgmap::mm::stamp::Stamp;
use pgmap::mm::vmemmap::{Vmemmap, VmemmapLayout};
use pgmap::os::{Doorbell, FileAccess, MemoryFile, PageSize, ReadMapping, WriteMapping};

use crate::failure::Failure;

/// What the library gives to files of a memory pool.
const FLAGS: FolioFlags = FolioFlags::LONGTERM_OK.with(FolioFlags::WRITABLE);

/// A client of a [`Space`], and how the space's owner reads its ledger.
pub struct Member {
    pub pinner: Pinner<ProcessSide>,
    pub reader: LedgerReader<LedgerWords, LedgerCounts>,
    pub id: ClientId,
}

/// The owner's side.
pub struct Space {
    layout: VmemmapLayout,
    vmemmap: MemoryFile,
    pub folios: Folios<Writable>,
    pub barrier: OwnerBarrier,
    stamps: u64,
}

impl Space {
    /// `len_bytes` of free frames.
    pub fn new(len_bytes: u64) -> Result<Self, Failure> {
        let layout = VmemmapLayout::for_pages(len_bytes / PAGE_BYTES)
            .ok_or_else(|| Failure::new(format!("no pfn space of {len_bytes} bytes")))?;
        let len = layout.nr_words() as u64 * 8;
        let vmemmap = MemoryFile::anonymous("bench-vmemmap", len, PageSize::Base)?;
        let words = Writable::new(WriteMapping::map(&vmemmap, 0, len)?);
        let mut folios = Folios::new(Vmemmap::new(layout, words).ok_or_else(too_short)?);
        let first = Pfn::new(0).ok_or_else(too_short)?;
        folios.bring_online(first, len_bytes / PAGE_BYTES);
        Ok(Self { layout, vmemmap, folios, barrier: OwnerBarrier::register(), stamps: 0 })
    }

    /// Where descriptors lie.
    pub const fn layout(&self) -> &VmemmapLayout {
        &self.layout
    }

    /// Makes a file's worth of live folios, without the file.
    pub fn publish(&mut self, nr_pages: u64, sizing: Sizing) -> Result<Vec<Extent>, Failure> {
        self.stamps += 1;
        let stamp = Stamp::new(self.stamps).ok_or_else(|| Failure::new("no stamp is left"))?;
        let reserved = self.folios.reserve(nr_pages, sizing, stamp).map_err(|short| {
            Failure::new(format!("{} of {} frames are free", short.free_pages, short.wanted_pages))
        })?;
        Ok(self.folios.publish(&reserved, FLAGS))
    }

    /// Fills the space with extents of 1 GiB each, made of folios of `level`.
    pub fn fill(&mut self, level: Level) -> Result<Vec<Extent>, Failure> {
        let mut extents = Vec::new();
        for _ in 0..self.layout.nr_pages() / Level::Pud.nr_pages() {
            extents.extend(self.publish(Level::Pud.nr_pages(), Sizing::Fixed(level))?);
        }
        Ok(extents)
    }

    /// Memory behind the descriptors.
    pub fn vmemmap_bytes(&self) -> u64 {
        self.vmemmap.resident_bytes()
    }

    /// Attaches a client.
    pub fn member(&self) -> Result<Member, Failure> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Relaxed: only uniqueness matters.
        let identity = NEXT.fetch_add(1, Ordering::Relaxed);
        let layout = LedgerLayout::new(&self.layout);
        let words_bytes = (layout.nr_words() as u64 * 8).next_multiple_of(PAGE_BYTES);
        let counts_bytes = (layout.nr_counts() as u64 * 4).next_multiple_of(PAGE_BYTES);
        let len = words_bytes + counts_bytes;
        let file = Arc::new(MemoryFile::anonymous("bench-ledger", len, PageSize::Base)?);
        let descriptors = self.vmemmap.reopen(FileAccess::ReadOnly)?;
        let descriptors = ReadMapping::map(&descriptors, 0, self.layout.nr_words() as u64 * 8)?;
        let mode = match self.barrier.is_asymmetric() {
            true => BarrierMode::Asymmetric,
            false => BarrierMode::Fenced,
        };
        let ledger = WriteMapping::map(&file, 0, words_bytes)?;
        let counts = WriteMapping::map(&file, words_bytes, counts_bytes)?;
        let side = ProcessSide::new(
            Writable::over_file(ledger, Arc::clone(&file), 0),
            WritableCounts::over_file(counts, Arc::clone(&file), words_bytes),
            Vmemmap::new(self.layout, Readable::new(descriptors)).ok_or_else(too_short)?,
            mode,
            Doorbell::new()?,
        )?;
        let words = ReadMapping::map(&file, 0, words_bytes)?;
        let words = LedgerWords::new(words, &file, 0, len);
        let counts = ReadMapping::map(&file, words_bytes, counts_bytes)?;
        let counts = LedgerCounts::new(counts, &file, words_bytes, len);
        let reader = LedgerReader::new(layout, words, counts).ok_or_else(too_short)?;
        let pinner = Pinner::new(side, layout).ok_or_else(too_short)?;
        Ok(Member { pinner, reader, id: ClientId(identity) })
    }
}

fn too_short() -> Failure {
    Failure::new("a mapping is too short")
}
