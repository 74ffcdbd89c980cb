//! A client's side of the page model, over the very mappings that the library's own clients use.
//!
//! The library opens its page model to nobody, rightly. So the rows that need 64 GiB of live
//! descriptors without 64 GiB of memory bring a side of their own: the same mappings, the same fork
//! guard, the same barrier mode. The rows named `File::pin` go through the library itself.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use pgmap::mm::barrier::BarrierMode;
use pgmap::mm::pin::ClientSide;
use pgmap::mm::vmemmap::Vmemmap;
use pgmap::mm::words::{ReadCounts, ReadWord, ReadWords, WriteCounts, WriteWords};
use pgmap::os::{Doorbell, ForkGuard, ReadMapping, ReadOnlyWord, WriteMapping};

/// What the fork guard of a side reads whose light barrier is a compiler fence, and of any other.
pub const ASYMMETRIC_MARK: u32 = 1;
pub const FENCED_MARK: u32 = 2;

/// Words that somebody else writes.
#[derive(Debug)]
pub struct Readable(pub ReadMapping);

/// A word that somebody else writes.
#[derive(Clone, Copy, Debug)]
pub struct ReadableWord<'m>(ReadOnlyWord<'m>);

impl ReadWord for ReadableWord<'_> {
    #[inline(always)]
    fn load(self, order: Ordering) -> u64 {
        self.0.load(order)
    }
}

impl ReadWords for Readable {
    type Word<'w> = ReadableWord<'w>;

    #[inline(always)]
    fn word(&self, index: usize) -> ReadableWord<'_> {
        ReadableWord(self.0.word(index))
    }

    fn nr_words(&self) -> usize {
        (self.0.len_bytes() / 8) as usize
    }

    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.0.load_u64(index, order)
    }
}

impl ReadCounts for Readable {
    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u32 {
        self.0.load_u32(index, order)
    }
}

/// Words or counts that this process writes.
#[derive(Debug)]
pub struct Writable(pub WriteMapping);

impl ReadWords for Writable {
    type Word<'w> = &'w AtomicU64;

    #[inline(always)]
    fn word(&self, index: usize) -> &AtomicU64 {
        &self.0.words()[index]
    }

    fn nr_words(&self) -> usize {
        self.0.words().len()
    }

    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.0.words()[index].load(order)
    }
}

impl WriteWords for Writable {
    type Slot<'w> = &'w AtomicU64;

    #[inline(always)]
    fn slot(&self, index: usize) -> &AtomicU64 {
        &self.0.words()[index]
    }

    #[inline]
    fn store(&self, index: usize, value: u64, order: Ordering) {
        self.0.words()[index].store(value, order);
    }

    fn fetch_or(&self, index: usize, bits: u64, order: Ordering) -> u64 {
        self.0.words()[index].fetch_or(bits, order)
    }

    fn discard(&self, range: Range<usize>) {
        for word in &self.0.words()[range] {
            // Relaxed: zero equals no word that anybody was told of.
            word.store(0, Ordering::Relaxed);
        }
    }
}

impl ReadCounts for Writable {
    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u32 {
        self.0.counts()[index].load(order)
    }
}

impl WriteCounts for Writable {
    #[inline]
    fn fetch_add(&self, index: usize, by: u32, order: Ordering) -> u32 {
        self.0.counts()[index].fetch_add(by, order)
    }

    #[inline]
    fn fetch_sub(&self, index: usize, by: u32, order: Ordering) -> u32 {
        self.0.counts()[index].fetch_sub(by, order)
    }
}

/// What a client has mapped.
#[derive(Debug)]
pub struct Side {
    pub ledger: Writable,
    pub counts: Writable,
    pub vmemmap: Vmemmap<Readable>,
    pub mode: BarrierMode,
    pub doorbell: Doorbell,
    pub guard: ForkGuard,
    pub identity: u64,
}

impl ClientSide for Side {
    type Ledger = Writable;
    type Counts = Writable;
    type Descriptors = Readable;

    #[inline]
    fn ledger(&self) -> &Writable {
        &self.ledger
    }

    #[inline]
    fn counts(&self) -> &Writable {
        &self.counts
    }

    #[inline]
    fn vmemmap(&self) -> &Vmemmap<Readable> {
        &self.vmemmap
    }

    #[inline]
    fn barrier_mode(&self) -> BarrierMode {
        self.mode
    }

    #[cold]
    fn ring_doorbell(&self) {
        // Nobody drains while pins are measured; a bell that cannot be rung changes no figure.
        let _ = self.doorbell.ring();
    }

    #[inline]
    fn is_detached(&self) -> bool {
        self.guard.is_child()
    }

    #[inline(always)]
    fn is_asymmetric(&self) -> bool {
        self.guard.mark() == ASYMMETRIC_MARK
    }

    #[inline]
    fn identity(&self) -> u64 {
        self.identity
    }
}
