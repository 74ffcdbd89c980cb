//! The processor's mapping of a process address space: the pool's data file, mapped at the very
//! addresses, and held for as long as it is.
//!
//! # States
//! Of a range of addresses:
//! ```text
//!            pin, then mmap                     part goes: PROT_NONE, then narrow
//!   vacant ─────────────────▶ mapped and held ────────────────────────────────────▶ shorter
//!      ▲                            │
//!      └── PROT_NONE, then unpin ───┘
//! ```
//!
//! # Who may touch what
//! The address space calls with its lock held; the lock here only makes that visible to the
//! compiler. The lanes that the holds lie in are this mapping's own: no thread pins in them.
//!
//! # Orderings
//! `pin (life word as expected); mmap` and `PROT_NONE; unpin`. The kernel's change of the page
//! table reaches every processor before the call returns, so no access through the mapping comes
//! before its pin or after its unpin.
//!
//! # Lost races
//! *Map against drain.* If the pin is first, the scan sees it, this client is notified, and its
//! keeper takes the mapping away. If the drain is first, the pin fails and nothing is mapped.
//!
//! *A raw touch against an unmap.* If the touch is first, it reaches frames that are held. If the
//! unmap is first, it is a fault.
//!
//! # Differs from Linux
//! A mapping of fsdax counts in the page itself (Linux 7.1: fs/dax.c) and a truncate removes it
//! from every page table by itself; here the process removes it, and one that is stopped is named.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::PoisonError;

use pgmap_mm::descriptor::{FolioFlags, FolioState};
use pgmap_mm::error::PinError;
use pgmap_mm::error::errno::{EACCES, EFAULT, EINVAL, ESTALE};
use pgmap_mm::extent::Extent;
use pgmap_mm::ledger::Agent;
use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::mm::{CpuMapping, Vacancy};
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::pin::{ClientSide, Lane, LaneParts, Pin, PinParts, Pinner};
use pgmap_mm::prot::{Access, Prot};
use pgmap_mm::runs::SortedRuns;
use pgmap_os::Reservation;
use pgmap_os::sync::{Mutex, MutexGuard};

use crate::client::side::ProcessSide;
use crate::client::{Client, lanes};

/// The tag of the holds of processors' mappings, as `pgmap who` shows it.
pub const CPU_MAPPING_TAG: u64 = u64::from_le_bytes(*b"cpu-map\0");

/// Most lanes one mapping takes; each holds as many ranges as a lane has slots.
const MAX_LANES: usize = 64;

/// What the processor sees of an address space.
#[derive(Debug)]
pub(super) struct CpuView {
    client: Client,
    start: u64,
    state: Mutex<CpuMappings>,
}

#[derive(Debug)]
struct CpuMappings {
    /// None once the address space is closed.
    addresses: Option<Reservation>,
    /// What is mapped, by first address.
    ranges: BTreeMap<u64, MappedRun>,
    /// The one used last is last.
    lanes: Vec<LaneParts>,
    /// What was taken away beyond what was asked for, and which frames lay there.
    disturbed: Vec<(Range<u64>, PfnRange)>,
    /// Holds of what may still be mapped and could not be taken away.
    stuck: Vec<PinParts>,
}

/// Addresses that map one run of frames alike.
#[derive(Debug)]
struct MappedRun {
    len_bytes: u64,
    access: pgmap_os::FileAccess,
    hold: PinParts,
}

impl MappedRun {
    /// The frames behind the bytes from `from` up to `to` of the range.
    fn frames(&self, from: u64, to: u64) -> Option<PfnRange> {
        self.hold.run().sub_run(from / PAGE_BYTES, (to - from) / PAGE_BYTES)
    }
}

impl CpuView {
    pub(super) fn new(client: &Client, addresses: Reservation) -> Self {
        let start = addresses.addresses().start as u64;
        let state = CpuMappings {
            addresses: Some(addresses),
            ranges: BTreeMap::new(),
            lanes: Vec::new(),
            disturbed: Vec::new(),
            stuck: Vec::new(),
        };
        Self { client: client.clone(), start, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, CpuMappings> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pinner(&self) -> &Pinner<ProcessSide> {
        &self.client.inner.pinner
    }

    /// Whether the processor can do this at the address now.
    pub(super) fn allows(&self, address: u64, access: Access) -> bool {
        let state = self.lock();
        let found = state.ranges.range(..=address).next_back();
        found.is_some_and(|(start, range)| {
            address - start < range.len_bytes
                && (access == Access::Read || range.access == pgmap_os::FileAccess::ReadWrite)
        })
    }

    /// What was taken away beyond what was asked for since the last call: addresses, and frames
    /// that lay there.
    pub(super) fn take_disturbed(&self) -> Vec<(Range<u64>, PfnRange)> {
        std::mem::take(&mut self.lock().disturbed)
    }

    /// The mapped frames that are being taken out of use, whether or not an event has said so.
    pub(super) fn reclaim_requested(&self) -> Vec<PfnRange> {
        let mut state = self.lock();
        let mut wanted = Vec::new();
        let vmemmap = self.pinner().side().vmemmap();
        for (at, MappedRun { len_bytes, access, hold }) in std::mem::take(&mut state.ranges) {
            // They are of this client.
            let Ok(pin) = Pin::from_parts(self.pinner(), hold) else { continue };
            if pin.is_reclaim_requested() {
                let folios = vmemmap.folios(pin.run());
                let going = folios.filter(|(_, _, word)| word.state() != FolioState::Live);
                let of_pin =
                    |(first, level, _)| PfnRange::folio(first, level).intersection(pin.run());
                wanted.extend(going.filter_map(of_pin));
            }
            let hold = pin.into_parts();
            state.ranges.insert(at, MappedRun { len_bytes, access, hold });
        }
        SortedRuns::new(wanted).iter().collect()
    }

    /// Gives the addresses back and everything up that is held. Nothing can be mapped any more.
    pub(super) fn close(&self) {
        if self.pinner().side().is_forked() {
            return;
        }
        let mut state = self.lock();
        // The mappings go before the holds.
        drop(state.addresses.take());
        for (_, range) in std::mem::take(&mut state.ranges) {
            release(self.pinner(), range.hold);
        }
        for hold in state.stuck.drain(..) {
            release(self.pinner(), hold);
        }
        for parts in state.lanes.drain(..) {
            // Dropping a lane gives it back.
            drop(Lane::from_parts(self.pinner(), parts));
        }
    }

    /// Holds `run` of `extent` in a lane of this mapping, if the life word is the extent's.
    fn hold(
        &self,
        state: &mut CpuMappings,
        extent: &Extent,
        run: PfnRange,
    ) -> Result<PinParts, PinError> {
        self.in_lanes(state, |lane| lane.pin(extent, run, Agent::Cpu))
    }

    fn in_lanes<'p>(
        &'p self,
        state: &mut CpuMappings,
        pin: impl Fn(&Lane<'p, ProcessSide>) -> Result<Pin<'p, ProcessSide>, PinError>,
    ) -> Result<PinParts, PinError> {
        let pinner = self.pinner();
        let mut result = Err(PinError::LaneFull { nr_slots: 0 });
        // Shared lanes that are full, kept from being found again until another one did.
        let mut full = Vec::new();
        // The one used last first, then the others, then a new one.
        let known = state.lanes.len();
        let mut places = (0..known).rev();
        while matches!(result, Err(PinError::LaneFull { .. })) {
            let next = places.next();
            let lane = match next {
                Some(place) => Lane::from_parts(pinner, state.lanes.remove(place)).ok(),
                None if state.lanes.len() < MAX_LANES => Some(lanes::claim(pinner)?),
                None => return result.map(Pin::into_parts),
            };
            let Some(lane) = lane else { continue };
            result = pin(&lane);
            if lane.is_shared() {
                full.push(lane);
                continue;
            }
            let place = match (&result, next) {
                (Err(PinError::LaneFull { .. }), Some(place)) => place,
                _ => state.lanes.len(),
            };
            state.lanes.insert(place, lane.into_parts());
        }
        let pin = result?;
        pin.set_tag(CPU_MAPPING_TAG);
        Ok(pin.into_parts())
    }

    /// Forgets and gives up what the ranges have from `from` up to `to`, where nothing of them
    /// is mapped any more. What they have around it stays mapped and held.
    fn give_up(&self, state: &mut CpuMappings, from: u64, to: u64) {
        let first = state.ranges.range(..from).next_back();
        let first = first.filter(|(at, range)| *at + range.len_bytes > from);
        let first = first.map_or(from, |(&at, _)| at);
        let touched: Vec<u64> = state.ranges.range(first..to).map(|(&at, _)| at).collect();
        for at in touched {
            let Some(range) = state.ranges.remove(&at) else { continue };
            self.cut(state, at, range, from.max(at), to);
        }
    }

    /// The range at `at` loses its part from `from` up to `to`.
    fn cut(&self, state: &mut CpuMappings, at: u64, range: MappedRun, from: u64, to: u64) {
        let end = at + range.len_bytes;
        let upper = (to < end).then(|| range.frames(to - at, end - at)).flatten();
        let lower = (at < from).then(|| range.frames(0, from - at)).flatten();
        let access = range.access;
        let (keep, place, len_bytes) = match (lower, upper) {
            (None, None) => return release(self.pinner(), range.hold),
            (None, Some(upper)) => (upper, to, end - to),
            (Some(lower), None) => (lower, at, from - at),
            (Some(_), Some(upper)) if !self.keep_upper(state, &range, upper, to..end) => {
                state.stuck.push(range.hold);
                return;
            }
            (Some(lower), Some(_)) => (lower, at, from - at),
        };
        if let Ok(mut pin) = Pin::from_parts(self.pinner(), range.hold) {
            pin.narrow(keep, Agent::Cpu);
            let hold = pin.into_parts();
            state.ranges.insert(place, MappedRun { len_bytes, access, hold });
        }
    }

    /// A slot is one run: the upper of two parts needs a hold of its own. Where the life word has
    /// changed it cannot have one, and what is mapped there goes, too, before the old hold does.
    /// False if that cannot be.
    fn keep_upper(
        &self,
        state: &mut CpuMappings,
        range: &MappedRun,
        upper: PfnRange,
        addresses: Range<u64>,
    ) -> bool {
        let (life, access) = (range.hold.life(), range.access);
        let len_bytes = addresses.end - addresses.start;
        if let Ok(hold) = self.in_lanes(state, |lane| lane.pin_under(life, upper, Agent::Cpu)) {
            let range = MappedRun { len_bytes, access, hold };
            state.ranges.insert(addresses.start, range);
            return true;
        }
        let is_vacated = self.vacate(state, addresses.start, len_bytes);
        if is_vacated {
            state.disturbed.push((addresses, upper));
        }
        is_vacated
    }

    /// Makes addresses inaccessible, if the kernel can.
    fn vacate(&self, state: &CpuMappings, address: u64, len_bytes: u64) -> bool {
        let Some(addresses) = &state.addresses else { return true };
        let vacated = addresses.vacate((address - self.start) as usize, len_bytes as usize);
        if let Err(error) = &vacated {
            tracing::error!(%error, "the frames stay mapped, and held");
        }
        vacated.is_ok()
    }
}

/// Ends a hold.
fn release(pinner: &Pinner<ProcessSide>, hold: PinParts) {
    if let Ok(pin) = Pin::from_parts(pinner, hold) {
        // The slot's next holder may leave no tag.
        pin.set_tag(0);
    }
}

impl CpuMapping for CpuView {
    fn map(&self, address: u64, extent: &Extent, run: PfnRange, prot: Prot) -> Result<(), i32> {
        let is_writable =
            !self.client.is_read_only() && extent.life.flags().contains(FolioFlags::WRITABLE);
        let access = match (prot.contains(Prot::READ), prot.contains(Prot::WRITE)) {
            (_, true) if is_writable => pgmap_os::FileAccess::ReadWrite,
            (true, _) => pgmap_os::FileAccess::ReadOnly,
            _ => return Err(EACCES),
        };
        let len_bytes = run.byte_range().end - run.byte_range().start;
        let mut state = self.lock();
        // The hold comes first, and with it the check of the life word.
        let hold = self.hold(&mut state, extent, run).map_err(|error| match error {
            PinError::Changed { .. } => ESTALE,
            error => error.errno(),
        })?;
        let file = self.client.file_of(run);
        let mapped = match (&state.addresses, address.checked_sub(self.start)) {
            (Some(addresses), Some(offset)) => {
                file.map_err(|error| error.errno()).and_then(|(file, at)| {
                    addresses
                        .map(offset as usize, &file, at, len_bytes as usize, access)
                        .map_err(|error| error.errno())
                })
            }
            (None, _) => Err(EFAULT),
            (_, None) => Err(EINVAL),
        };
        if let Err(errno) = mapped {
            release(self.pinner(), hold);
            // What was there may be gone or not: now it is.
            if self.vacate(&state, address, len_bytes) {
                self.give_up(&mut state, address, address + len_bytes);
            }
            return Err(errno);
        }
        self.give_up(&mut state, address, address + len_bytes);
        state.ranges.insert(address, MappedRun { len_bytes, access, hold });
        Ok(())
    }

    fn unmap(&self, address: u64, len_bytes: u64, _: Vacancy) {
        if self.pinner().side().is_forked() {
            return;
        }
        let mut state = self.lock();
        let end = address + len_bytes;
        let last = state.ranges.range(..end).next_back();
        let is_vacant = last.is_none_or(|(at, range)| at + range.len_bytes <= address);
        if is_vacant || !self.vacate(&state, address, len_bytes) {
            return;
        }
        self.give_up(&mut state, address, end);
    }
}

impl Drop for CpuView {
    fn drop(&mut self) {
        self.close();
    }
}
