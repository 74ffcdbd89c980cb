//! What a client brings in tests: its ledger and the descriptors, of any kind of words, and a bell.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pgmap_mm::barrier::BarrierMode;
use pgmap_mm::pin::ClientSide;
use pgmap_mm::vmemmap::Vmemmap;
use pgmap_mm::words::{WriteCounts, WriteWords};

/// What the client rings to wake the owner.
pub trait Bell: Send + Sync {
    fn ring(&self);
}

/// Nobody listens.
impl Bell for () {
    fn ring(&self) {}
}

/// Counts how often it was rung.
impl Bell for Arc<AtomicU64> {
    fn ring(&self) {
        self.fetch_add(1, Ordering::Relaxed);
    }
}

/// A client's side of a world with words `W`, counts `C` and a bell.
#[derive(Debug)]
pub struct Side<W, C, B> {
    pub ledger: W,
    pub counts: C,
    pub vmemmap: Vmemmap<W>,
    pub barrier_mode: BarrierMode,
    pub bell: B,
    pub is_forked: Arc<AtomicBool>,
    pub identity: u64,
}

impl<W: WriteWords, C: WriteCounts, B: Bell> ClientSide for Side<W, C, B> {
    type Ledger = W;
    type Counts = C;
    type Descriptors = W;

    fn ledger(&self) -> &W {
        &self.ledger
    }

    fn counts(&self) -> &C {
        &self.counts
    }

    fn vmemmap(&self) -> &Vmemmap<W> {
        &self.vmemmap
    }

    fn barrier_mode(&self) -> BarrierMode {
        self.barrier_mode
    }

    fn ring_doorbell(&self) {
        self.bell.ring();
    }

    fn is_forked(&self) -> bool {
        self.is_forked.load(Ordering::Relaxed)
    }

    fn identity(&self) -> u64 {
        self.identity
    }
}
