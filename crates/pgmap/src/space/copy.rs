//! Copies by address: bytes, or an error that names the address, and never a signal.

use pgmap_mm::fault::FaultError;
use pgmap_mm::gup::{GupError, GupFlags};
use pgmap_mm::level::PAGE_BYTES;

use super::{AddressSpace, SpaceError};

/// Most pages held at a time.
const MAX_PAGES: u64 = 4096;

impl AddressSpace {
    /// Copies the bytes from `address` on into `target`, holding the pages meanwhile.
    ///
    /// # Errors
    /// [`SpaceError::Gup`] names the first address where nothing can be read: bytes before it may have
    /// been copied. Nothing mapped, a file that was cut or removed, and memory that failed are
    /// told apart as by [`pin`](Self::pin) with
    /// [`HWPOISON`](pgmap_mm::gup::GupFlags::HWPOISON).
    pub fn read_at(&self, address: u64, target: &mut [u8]) -> Result<(), SpaceError> {
        self.in_pieces(address, target.len() as u64, GupFlags::NONE, |pinned, offset, piece| {
            pinned.read_at(offset, &mut target[piece])
        })
    }

    /// Copies `source` to the bytes from `address` on, holding the pages meanwhile.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at), and where nothing may be written.
    pub fn write_at(&self, address: u64, source: &[u8]) -> Result<(), SpaceError> {
        self.in_pieces(address, source.len() as u64, GupFlags::WRITE, |pinned, offset, piece| {
            pinned.write_at(offset, &source[piece])
        })
    }

    fn in_pieces(
        &self,
        address: u64,
        len_bytes: u64,
        flags: GupFlags,
        mut copy: impl FnMut(
            &super::PinnedPages<'_>,
            u64,
            std::ops::Range<usize>,
        ) -> Result<(), SpaceError>,
    ) -> Result<(), SpaceError> {
        let end = address.checked_add(len_bytes).ok_or(GupError::Overflow { address })?;
        let mut at = address;
        while at < end {
            let nr_pages = (end - (at - at % PAGE_BYTES)).div_ceil(PAGE_BYTES).min(MAX_PAGES);
            // It is the processor that copies, and it reaches a device's memory too.
            let flags = flags.with(GupFlags::HWPOISON).with(GupFlags::P2PDMA);
            let pinned = self.pin(at, nr_pages, flags)?;
            let held_end = pinned.address() + pinned.len_bytes();
            if held_end <= at {
                // Asked for a page without FAST_ONLY, a pin holds one or fails.
                return Err(GupError::Fault(FaultError::NoArea { address: at }).into());
            }
            let next = held_end.min(end);
            let piece = (at - address) as usize..(next - address) as usize;
            copy(&pinned, at - pinned.address(), piece)?;
            at = next;
        }
        Ok(())
    }
}
