//! What is mapped where, and what lies behind it.
//!
//! A [`Vma`] is a run of pages with one backing, one file offset and one set of permissions. `set`
//! is all of an address space's.

mod set;
mod sorted;

use core::fmt;
use std::sync::Arc;

pub(crate) use self::set::VmaSet;

use crate::extent::Extent;
use crate::level::{Level, PAGE_BYTES};
use crate::prot::Prot;

/// How an area behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VmaKind {
    /// A shared mapping of a file or a pagemap.
    Shared,
    /// Mapped, never pinnable (`VM_PFNMAP`).
    Raw,
    /// A device-dax range: every leaf is exactly `align`, and areas start, end and split only at
    /// multiples of it (Linux 7.1: drivers/dax/device.c).
    DeviceDax {
        /// The one leaf size.
        align: Level,
    },
    /// A file whose blocks are the frames (Linux 7.1: fs/dax.c), here with 1 GiB leaves too.
    FsDax,
    /// Another device's memory, pinned only with `P2PDMA`.
    PeerToPeer,
}

/// Why a page of a file cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackingError {
    /// The page lies beyond the end of the file or device. A touch would be SIGBUS.
    BeyondEnd,
    /// The file has a hole there, and no frame to map. A touch would be SIGBUS; a copy may take it
    /// for zeros.
    Hole,
    /// The device or the file is gone. A touch would be SIGBUS.
    Dead,
    /// The page's memory failed.
    Poisoned,
    /// There is no memory to fill the page.
    NoMemory,
    /// The owner could not be asked now. Try again.
    Busy,
}

/// A page of a file: the extent it belongs to and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backed {
    /// The extent.
    pub extent: Extent,
    /// How many frames into the extent the page's frame lies.
    pub skip: u64,
}

/// What lies behind an area: a file, a pagemap. The layer above has them; this layer owns the
/// trait.
///
/// Called with the address space's lock held: an implementation must not call back into the same
/// address space.
pub trait AreaBacking: Send + Sync + fmt::Debug {
    /// How areas of this backing behave.
    fn kind(&self) -> VmaKind;

    /// Whether the file or device is still there.
    fn is_alive(&self) -> bool {
        true
    }

    /// The most that an area may allow: what the file was opened for.
    fn most_prot(&self) -> Prot {
        Prot::READ_WRITE
    }

    /// Length in pages now. Pages from here on are never mapped.
    fn nr_pages(&self) -> u64;

    /// The byte after the file's last, now: what lies behind it in its page is nobody's.
    fn end_bytes(&self) -> u64 {
        self.nr_pages().saturating_mul(PAGE_BYTES)
    }

    /// The extent behind page `page` of the file, under the life word that a pin must find now. All
    /// frames of the extent may be pinned under that word, and the file's pages around `page` are
    /// the extent's frames in the same order as far as extent and file reach.
    ///
    /// # Errors
    /// Why there is none.
    fn extent_at(&self, page: u64) -> Result<Backed, BackingError>;
}

/// A run of pages mapped alike.
#[derive(Clone, Debug)]
pub struct Vma {
    /// First page number.
    pub page: u64,
    /// Pages.
    pub nr_pages: u64,
    /// What lies behind.
    pub backing: Arc<dyn AreaBacking>,
    /// Page of the file at the first page.
    pub file_page: u64,
    /// What may be done.
    pub prot: Prot,
}

impl Vma {
    /// The page after the last.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.page + self.nr_pages
    }

    /// How the area behaves.
    #[must_use]
    pub fn kind(&self) -> VmaKind {
        self.backing.kind()
    }

    /// The page of the file at page number `page`, which lies in the area.
    #[must_use]
    pub const fn file_page_of(&self, page: u64) -> u64 {
        self.file_page + (page - self.page)
    }

    /// The part from page `from` up to `to`.
    #[must_use]
    pub(crate) fn part(&self, from: u64, to: u64) -> Self {
        let page = from.clamp(self.page, self.end());
        let end = to.clamp(page, self.end());
        Self { page, nr_pages: end - page, file_page: self.file_page_of(page), ..self.clone() }
    }

    /// Makes it map something else in the same way.
    pub(crate) fn assign(&mut self, backing: &Arc<dyn AreaBacking>, file_page: u64, prot: Prot) {
        // Counting the same file up and down again would be the most of the work.
        if !Arc::ptr_eq(&self.backing, backing) {
            self.backing = Arc::clone(backing);
        }
        (self.file_page, self.prot) = (file_page, prot);
    }

    /// Whether the area may start or end at this page number.
    fn may_split_at(&self, page: u64) -> bool {
        match self.kind() {
            VmaKind::DeviceDax { align } => page.is_multiple_of(align.nr_pages()),
            _ => true,
        }
    }

    fn carries_on_as(&self, next: &Self) -> bool {
        self.end() == next.page
            && Arc::ptr_eq(&self.backing, &next.backing)
            && self.file_page + self.nr_pages == next.file_page
            && self.prot == next.prot
    }
}
