//! Copies by address: bytes, or an error that names the address, and never a signal.

use std::ops::Range;

use pgmap_mm::fault::FaultError;
use pgmap_mm::gup::{GupError, GupFlags};
use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::mm::FillError;
use pgmap_mm::vma::BackingError;

use super::{AddressSpace, PinnedPages, SpaceError};

/// Most pages held at a time.
const MAX_PAGES: u64 = 4096;

/// What lies behind a part of the addresses.
enum CopyPart<'p, 's> {
    /// Held pages, and the byte of them that the part starts at.
    Held(&'p PinnedPages<'s>, u64),
    /// A hole in a file, in the words of a pin.
    Hole(SpaceError),
}

impl AddressSpace {
    /// Copies the bytes from `address` on into `target`, holding the pages meanwhile. A hole in a
    /// file reads as zeros.
    ///
    /// # Errors
    /// [`SpaceError::Gup`] names the first address where nothing can be read: bytes before it may
    /// have been copied. Nothing mapped, a file that was cut or removed, and memory that failed are
    /// distinguished as by [`pin`](Self::pin) with [`HWPOISON`](pgmap_mm::gup::GupFlags::HWPOISON).
    pub fn read_at(&self, address: u64, target: &mut [u8]) -> Result<(), SpaceError> {
        self.in_pieces(address, target.len() as u64, GupFlags::NONE, |piece, bytes| {
            let target = &mut target[bytes];
            match piece {
                CopyPart::Held(pages, offset) => pages.read_at(offset, target)?,
                CopyPart::Hole(_) => target.fill(0),
            }
            Ok(())
        })
    }

    /// Copies `source` to the bytes from `address` on, holding the pages meanwhile.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at), where nothing may be written, and in a hole of a file.
    pub fn write_at(&self, address: u64, source: &[u8]) -> Result<(), SpaceError> {
        self.in_pieces(address, source.len() as u64, GupFlags::WRITE, |piece, bytes| match piece {
            CopyPart::Held(pages, offset) => pages.write_at(offset, &source[bytes]),
            CopyPart::Hole(error) => Err(error),
        })
    }

    /// Calls `copy` for one part of the addresses after the other, with where in the caller's bytes
    /// it belongs.
    fn in_pieces(
        &self,
        address: u64,
        len_bytes: u64,
        flags: GupFlags,
        mut copy: impl FnMut(CopyPart<'_, '_>, Range<usize>) -> Result<(), SpaceError>,
    ) -> Result<(), SpaceError> {
        // It is the processor that copies, and it reaches a device's memory too.
        let flags = flags.with(GupFlags::HWPOISON).with(GupFlags::P2PDMA);
        let end = address.checked_add(len_bytes).ok_or(GupError::Overflow { address })?;
        let mut at = address;
        while at < end {
            let page = at - at % PAGE_BYTES;
            let nr_pages = (end - page).div_ceil(PAGE_BYTES).min(MAX_PAGES);
            let bytes_to = |next: u64| (at - address) as usize..(next - address) as usize;
            match self.pin(at, nr_pages, flags) {
                Ok(pinned) => {
                    let next = (pinned.address() + pinned.len_bytes()).min(end);
                    if next <= at {
                        // Asked for a page without FAST_ONLY, a pin holds one or fails.
                        return Err(GupError::Fault(FaultError::NoArea { address: at }).into());
                    }
                    copy(CopyPart::Held(&pinned, at - page), bytes_to(next))?;
                    at = next;
                }
                // An error is about the first page.
                Err(error) if is_hole(&error) => {
                    let next = page.saturating_add(PAGE_BYTES).min(end);
                    copy(CopyPart::Hole(error), bytes_to(next))?;
                    at = next;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Whether a pin failed because its first page lies in a hole of a file.
pub(super) const fn is_hole(error: &SpaceError) -> bool {
    matches!(
        error,
        SpaceError::Gup(GupError::Fault(FaultError::Fill {
            error: FillError::Backing(BackingError::Hole),
            ..
        }))
    )
}
