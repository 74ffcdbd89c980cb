//! Long-term holds that the owner is asked for.

use std::sync::{Arc, Weak};

use pgmap_mm::error::PinError;
use pgmap_mm::error::errno::{EACCES, EAGAIN, EBUSY, EOPNOTSUPP};
use pgmap_mm::fault::FaultError;
use pgmap_mm::gup::{GupError, GupFlags, LongtermRefusal};
use pgmap_mm::ledger::Agent;
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::mm::FillError;
use pgmap_mm::vma::{BackingError, Vma};

use super::backing::FileBacking;
use super::pinned::{LeasedPages, PagesHold, PinnedPages};
use super::{AddressSpace, SpaceError};
use crate::client::pinned::FilePin;
use crate::error::Error;
use crate::refusal::Refusal;
use crate::wire::LeaseSpec;

/// How often the owner is asked again because the frames changed before they were held.
const MAX_ASKS: usize = 8;

impl AddressSpace {
    /// Holds the pages from `address` on that lie in its area, as far as they can be had, by the
    /// owner's leave.
    #[cold]
    pub(super) fn lease(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Result<PinnedPages<'_>, SpaceError> {
        let page = address / PAGE_BYTES;
        let address = page * PAGE_BYTES;
        let agent = if flags.contains(GupFlags::DEVICE) { Agent::Device } else { Agent::Cpu };
        for _ in 0..MAX_ASKS {
            let area = self.inner.mm.area_at(address).ok_or(GupError::NotPresent { address })?;
            // Another area may have taken its place since the pages were looked at.
            let access = flags.access();
            if !area.prot.allows(access) {
                return Err(GupError::Fault(FaultError::Denied { address, access }).into());
            }
            let file = self.file_of(&area).ok_or_else(|| refused(address, EOPNOTSUPP))?;
            let file_page = area.file_page_of(page);
            // What follows the first page that cannot be held is the next call's to hear of.
            let nr_good = file
                .nr_good_pages(file_page, nr_pages.min(area.end() - page))
                .map_err(|error| unfilled(address, flags, error))?;
            let offset = file_page * PAGE_BYTES;
            let in_file = (nr_good * PAGE_BYTES).min(file.len_bytes().saturating_sub(offset));
            let len_bytes = in_file.next_multiple_of(PAGE_BYTES);
            let spec = LeaseSpec {
                file: file.id(),
                offset,
                len_bytes: in_file,
                is_device: agent == Agent::Device,
                is_write: flags.contains(GupFlags::WRITE),
            };
            let taken = self.client.ask_lease(spec).and_then(|grants| {
                FilePin::take_leased(&self.client, offset, len_bytes, &grants, agent)
            });
            match taken {
                Ok(pin) => return Ok(self.leased(address, flags, pin)),
                // The file was cut, or memory of it failed, since it was looked at.
                Err(Error::Refused(Refusal::BadLength { .. })) => drop(file.refresh()),
                Err(Error::Pin(PinError::Changed { .. } | PinError::NotPinnable { .. })) => {}
                Err(error) => return Err(refusal_of(address, error)),
            }
        }
        Err(GupError::Unstable { address }.into())
    }

    fn leased<'s>(&'s self, address: u64, flags: GupFlags, pin: FilePin<'s>) -> PinnedPages<'s> {
        let mm = &self.inner.mm;
        let level_at = |address| mm.translate(address).map_or(Level::Pte, |found| found.level);
        let starts = pin.segments().map(|segment| address + segment.range_offset);
        let levels = starts.map(level_at).collect();
        let may_be_dirty = flags.contains(GupFlags::WRITE);
        let leased = LeasedPages { mm, address, levels, pin, may_be_dirty };
        self.pinned(address, flags, PagesHold::Leased(Box::new(leased)))
    }

    /// The file behind an area.
    pub(super) fn file_of(&self, area: &Vma) -> Option<Arc<FileBacking>> {
        let backing = Arc::as_ptr(&area.backing);
        let files = self.files();
        let mut known = files.values().filter_map(Weak::upgrade);
        known.find(|file| std::ptr::addr_eq(Arc::as_ptr(file), backing))
    }
}

/// Why there is no page, in the words of a pin.
fn unfilled(address: u64, flags: GupFlags, error: BackingError) -> SpaceError {
    let error = FillError::Backing(error);
    GupError::of_fault(FaultError::Fill { address, error }, flags).into()
}

fn refused(address: u64, errno: i32) -> SpaceError {
    let refusal = match errno {
        EOPNOTSUPP => LongtermRefusal::Unsupported,
        EACCES => LongtermRefusal::Denied,
        _ => LongtermRefusal::Busy,
    };
    GupError::Longterm { address, refusal }.into()
}

/// What the owner's answer means to whoever asked by address.
fn refusal_of(address: u64, error: Error) -> SpaceError {
    match error {
        // Memory that would have to move first: asking again does not help (Linux 7.1: mm/gup.c,
        // `migrate_longterm_unpinnable_folios`).
        error @ Error::Refused(Refusal::Denied { errno: EBUSY, .. }) => error.into(),
        Error::Refused(Refusal::Denied { errno, .. }) => refused(address, errno),
        Error::Refused(Refusal::InUse { .. } | Refusal::Stale { .. }) => refused(address, EAGAIN),
        error => error.into(),
    }
}
