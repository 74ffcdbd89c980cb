//! What lies behind a file's end in its last page: nobody's bytes, which are zeros.
//!
//! A device moves whole sectors and a mapping whole pages, so both reach behind the end. The kernel
//! clears that part before it writes a page out (Linux 7.1: fs/iomap/buffered-io.c,
//! `iomap_writeback_handle_eof`); here it is cleared when a transfer starts and when it ends.

use std::sync::Arc;

use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::vma::Vma;

use super::{AddressSpace, PinnedPages};

/// What was mapped at some addresses, for [`PinnedPages::clear_tails`].
#[derive(Clone, Debug)]
pub struct Tails {
    areas: Vec<Vma>,
}

impl AddressSpace {
    /// What is mapped at `len_bytes` bytes from `address` on, where files may end.
    #[must_use]
    pub fn tails(&self, address: u64, len_bytes: u64) -> Tails {
        let end = address.saturating_add(len_bytes);
        let mut areas = Vec::new();
        let mut at = address;
        while at < end {
            let Some(area) = self.inner.mm.area_at(at) else { break };
            at = area.end().saturating_mul(PAGE_BYTES);
            areas.push(area);
        }
        Tails { areas }
    }
}

impl PinnedPages<'_> {
    /// Writes zeros behind the end of each file, up to the end of its last page, where that page is
    /// held here and is the file's still.
    pub fn clear_tails(&self, tails: &Tails) {
        let mut last = None;
        for area in &tails.areas {
            // The areas of a transfer are mostly of one file.
            let end = match last {
                Some((file, end)) if Arc::ptr_eq(file, &area.backing) => end,
                _ => area.backing.end_bytes(),
            };
            last = Some((&area.backing, end));
            self.clear_tail(area, end);
        }
    }

    /// As [`clear_tails`](Self::clear_tails), of one area, whose file ends at byte `end`.
    fn clear_tail(&self, area: &Vma, end: u64) {
        let (file_page, in_page) = (end / PAGE_BYTES, end % PAGE_BYTES);
        let is_inside = file_page
            .checked_sub(area.file_page)
            .filter(|&pages| in_page != 0 && pages < area.nr_pages);
        let Some(pages) = is_inside else { return };
        let address = (area.page + pages) * PAGE_BYTES;
        let Some(page) = address.checked_sub(self.address()) else { return };
        // The area may have been mapped after the pages were pinned: what is held decides.
        let now = area.backing.extent_at(file_page).ok();
        let now = now.map(|now| (now.extent.run.start() + now.skip) * PAGE_BYTES);
        for (_, _, at) in self.pieces(page + in_page, page + PAGE_BYTES) {
            if now != Some(at - in_page) {
                continue;
            }
            let zeros = &[0; PAGE_BYTES as usize][in_page as usize..];
            // Memory that does not answer keeps nothing that could be read.
            let _cleared = self.client.inner.data.copy_in(at, zeros);
        }
    }
}
