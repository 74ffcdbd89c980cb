//! The head of a pool's data: its catalog, and with altmap the descriptors, before what they
//! describe.
//!
//! The head is the catalog's header, its log and perhaps the descriptor arrays, rounded up to 2 MiB
//! or to the pool's smallest folio; its frames are Offline. There are arrays for the folio sizes
//! that the pool was made for and for no smaller one: see
//! docs/adr/0027-the-head-fits-the-folios.md. With the descriptors it is as sparse as they are:
//! what no folio needs is not backed, so storing the metadata on the device and paying 8 bytes a
//! folio go together, which Linux cannot (Linux 7.1: include/linux/mm.h, `vmemmap_can_optimize`).

use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::vmemmap::VmemmapLayout;

use crate::pool::catalog::header::HEADER_BYTES;
use crate::pool::catalog::{Head, StoredPool};

const MIN_CATALOG_BYTES: u64 = 4 << 20;
const MAX_CATALOG_BYTES: u64 = 1 << 30;
/// The catalog's share of the pool.
const CATALOG_SHARE: u64 = 32;

/// Where the parts of a head lie, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceHead {
    pub catalog_bytes: u64,
    /// Where the descriptors start, if they are a part of it.
    pub vmemmap_start: Option<u64>,
    pub head_bytes: u64,
}

impl DeviceHead {
    /// The head of a pool that has one; `None` if it leaves no frame.
    pub(crate) fn of(pool: &StoredPool, layout: &VmemmapLayout) -> Option<Self> {
        let unit = Level::Pmd.max(pool.smallest).size_bytes();
        let share = (pool.size_bytes / CATALOG_SHARE).clamp(MIN_CATALOG_BYTES, MAX_CATALOG_BYTES);
        let catalog_bytes = share.next_multiple_of(PAGE_BYTES);
        let catalog_end = HEADER_BYTES + catalog_bytes;
        let (vmemmap_start, end) = if pool.head == Head::CatalogAndDescriptors {
            let start = catalog_end.next_multiple_of(Level::Pmd.size_bytes());
            (Some(start), start + layout.nr_words() as u64 * 8)
        } else {
            (None, catalog_end)
        };
        let head_bytes = end.next_multiple_of(unit);
        let head = Self { catalog_bytes, vmemmap_start, head_bytes };
        (head_bytes < pool.size_bytes).then_some(head)
    }
}
