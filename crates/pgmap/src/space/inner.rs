//! What of an address space other threads reach: the one that hears events, the one that answers
//! touches.

use std::fmt;
use std::sync::{Arc, PoisonError};

use pgmap_mm::extent::Extent;
use pgmap_mm::fault::FaultError;
use pgmap_mm::mm::{Mm, Unmapped};
use pgmap_mm::pfn::{MAX_RUN_PAGES, PfnRange};
use pgmap_mm::prot::Access;
use pgmap_mm::vmemmap::Vmemmap;
use pgmap_os::sync::Mutex;

use super::cpu::CpuView;
use super::faults::FaultHandler;
use super::view::Views;
use crate::client::events::MappedSpace;
use crate::client::side::new_identity;
use crate::memory::Readable;
use crate::wire::Event;

/// How a fault of the processor was resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolved {
    /// Something was mapped.
    Mapped,
    /// It was mapped already.
    InOrder,
}

/// An address space as its client's threads know it.
pub(crate) struct SpaceInner {
    id: u64,
    pub(super) mm: Mm,
    pub(super) cpu: Option<Arc<CpuView>>,
    views: Arc<Views>,
    handler: Mutex<Option<Arc<FaultHandler>>>,
}

impl fmt::Debug for SpaceInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, mm, cpu, .. } = self;
        f.debug_struct("SpaceInner").field("id", id).field("mm", mm).field("cpu", cpu).finish()
    }
}

impl MappedSpace for SpaceInner {
    fn id(&self) -> u64 {
        self.id
    }

    fn apply(&self, event: &Event) -> Option<Unmapped> {
        let run = match *event {
            Event::ReclaimRequested { first_pfn, nr_pages, .. }
            | Event::LeaseRecalled { first_pfn, nr_pages, .. } => {
                PfnRange::new(first_pfn, nr_pages)?
            }
            Event::MemoryFailure { pfn, .. } => PfnRange::new(pfn, 1)?,
            Event::DeviceGone => PfnRange::new(0, MAX_RUN_PAGES)?,
            Event::BackingGone { first_pfn, nr_pages, .. } => {
                PfnRange::new(first_pfn, nr_pages.min(MAX_RUN_PAGES))?
            }
        };
        let ended = self.mm.invalidate(run);
        if matches!(event, Event::DeviceGone | Event::BackingGone { .. }) {
            self.views.lose(&run.byte_range());
        }
        self.restore();
        Some(ended)
    }

    fn has_subscribers(&self) -> bool {
        self.mm.has_subscribers()
    }

    fn look_for_missed(&self, vmemmap: &Vmemmap<Readable>) {
        let Some(cpu) = &self.cpu else {
            if self.has_subscribers() {
                let _told = self.end_stale(vmemmap);
            }
            return;
        };
        // What is mapped for the processor is held: this client is notified, and keeps the rest.
        for run in cpu.reclaim_requested() {
            let _told = self.mm.invalidate(run);
        }
        self.restore();
    }
}

impl SpaceInner {
    pub(super) fn new(mm: Mm, cpu: Option<Arc<CpuView>>, views: Arc<Views>) -> Self {
        Self { id: new_identity(), mm, cpu, views, handler: Mutex::default() }
    }

    /// Ends the translations to extents that are not what they were.
    pub(super) fn end_stale(&self, vmemmap: &Vmemmap<Readable>) -> Unmapped {
        let now = |extent: &Extent| vmemmap.load(extent.head_level, extent.first());
        self.mm.invalidate_stale(|extent| now(extent) == Some(extent.life))
    }

    /// Maps for the processor again what was taken away together with something else.
    pub(super) fn restore(&self) {
        let Some(cpu) = &self.cpu else { return };
        for (addresses, frames) in cpu.take_disturbed() {
            // Their leaves are of an extent that is no more; the new ones come with new holds.
            let _told = self.mm.invalidate(frames);
            let len_bytes = addresses.end - addresses.start;
            if let Err(error) = self.mm.populate(addresses.start, len_bytes) {
                // A touch there is a fault, and says so.
                tracing::debug!(%error, "a part of a mapping is not restored");
            }
        }
    }

    /// Resolves a fault of the processor: afterwards it may do this at the address, unless the
    /// address space changes again.
    ///
    /// # Errors
    /// As [`Mm::fault`].
    pub(super) fn fault(&self, address: u64, access: Access) -> Result<Resolved, FaultError> {
        self.restore();
        let found = self.mm.fault(address, access)?;
        if !found.was_present {
            return Ok(Resolved::Mapped);
        }
        if self.cpu.as_ref().is_none_or(|cpu| cpu.allows(address, access)) {
            return Ok(Resolved::InOrder);
        }
        // A translation that the processor's mapping does not have, left from a mapping that
        // failed.
        if let Some(stale) = self.mm.translate(address)
            && let Some(run) = PfnRange::new(stale.pfn.number(), 1)
        {
            let _told = self.mm.invalidate(run);
        }
        self.mm.fault(address, access).map(|_| Resolved::Mapped)
    }

    pub(super) fn set_handler(&self, handler: Option<Arc<FaultHandler>>) {
        *self.handler.lock().unwrap_or_else(PoisonError::into_inner) = handler;
    }

    pub(super) fn handler(&self) -> Option<Arc<FaultHandler>> {
        self.handler.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
