//! What a client brings to the page model: its ledger, the owner's descriptors, the doorbell.

use std::num::NonZeroU32;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use pgmap_mm::barrier::BarrierMode;
use pgmap_mm::pin::ClientSide;
use pgmap_mm::vmemmap::Vmemmap;
use pgmap_os::sync::Mutex;
use pgmap_os::{Doorbell, ForkGuard, OsError};

use crate::memory::{Readable, Writable, WritableCounts};

/// A process's side of a pool.
#[derive(Debug)]
pub struct ProcessSide {
    ledger: Writable,
    counts: WritableCounts,
    vmemmap: Vmemmap<Readable>,
    mode: BarrierMode,
    /// Replaced when the client resumes with a restarted owner.
    pub(super) doorbell: Mutex<Doorbell>,
    guard: ForkGuard,
    identity: u64,
}

/// What the fork guard reads where pins need a compiler fence only.
const ASYMMETRIC_MARK: u32 = 1;

impl ProcessSide {
    /// What a process that mapped these brings.
    ///
    /// # Errors
    /// When there is no memory for the guard.
    #[doc(hidden)]
    pub fn new(
        ledger: Writable,
        counts: WritableCounts,
        vmemmap: Vmemmap<Readable>,
        mode: BarrierMode,
        doorbell: Doorbell,
    ) -> Result<Self, OsError> {
        // A fork guard that also says how the client orders its stores before its loads.
        let guard = ForkGuard::with_mark(match mode {
            BarrierMode::Asymmetric => NonZeroU32::MIN,
            BarrierMode::Fenced => NonZeroU32::MAX,
        })?;
        let (doorbell, identity) = (Mutex::new(doorbell), new_identity());
        Ok(Self { ledger, counts, vmemmap, mode, doorbell, guard, identity })
    }

    /// Stores `value` in a word of the ledger, whatever it means.
    #[cfg(feature = "sim")]
    pub(super) fn scribble(&self, index: usize, value: u64) {
        use pgmap_mm::words::{ReadWords, WriteWords};
        let index = index % self.ledger.nr_words();
        // What it makes of its own words is its own fault.
        self.ledger.leave_unchecked();
        self.counts.leave_unchecked();
        if self.ledger.reserve(index..index + 1) {
            // Release: as a pin stores it.
            self.ledger.store(index, value, Ordering::Release);
        }
    }
}

/// A number no other client or address space of this process has or had.
pub(crate) fn new_identity() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Relaxed: only uniqueness matters.
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl ClientSide for ProcessSide {
    type Ledger = Writable;
    type Counts = WritableCounts;
    type Descriptors = Readable;

    #[inline]
    fn ledger(&self) -> &Writable {
        &self.ledger
    }

    #[inline]
    fn counts(&self) -> &WritableCounts {
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
        let doorbell = self.doorbell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = doorbell.ring() {
            // The owner also looks by itself, slowly.
            tracing::debug!(%error, "the owner's doorbell cannot be rung");
        }
    }

    #[inline]
    fn is_forked(&self) -> bool {
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
