//! Filling the page table from what lies behind an area: which leaf, and how large.

use core::fmt;

use super::{EndedRanges, Mm, MmState, Vacancy};
use crate::descriptor::FolioFlags;
use crate::error::errno;
use crate::level::{Level, PAGE_BYTES};
use crate::page_table::TableWriter;
use crate::page_table::cursor::{Cursor, LeafPlacement};
use crate::page_table::entry::LeafFlags;
use crate::pfn::PfnRange;
use crate::prot::Prot;
use crate::vma::{AreaBacking, Backed, BackingError, Vma, VmaKind};

/// Why a page could not be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FillError {
    /// What lies behind the area has no page there.
    Backing(BackingError),
    /// The area's device demands a leaf that does not fit there.
    Misfit {
        /// The size it demands.
        align: Level,
    },
    /// The frames are not of the pool that the address space maps.
    Foreign {
        /// The frames.
        run: PfnRange,
    },
    /// The page table can hold no more.
    TableFull,
    /// The processor's mapping was refused, with this Linux error number.
    Cpu(i32),
}

impl FillError {
    /// The Linux error number that `get_user_pages` would give. Poison is EFAULT to callers who did
    /// not ask to be notified; [`gup`](crate::gup) notifies the others.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Backing(BackingError::NoMemory) | Self::TableFull => errno::ENOMEM,
            Self::Backing(BackingError::Busy) => errno::EAGAIN,
            Self::Backing(_) | Self::Misfit { .. } | Self::Foreign { .. } => errno::EFAULT,
            Self::Cpu(number) => *number,
        }
    }
}

impl fmt::Display for FillError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backing(BackingError::BeyondEnd) => f.write_str("the file ends before this page"),
            Self::Backing(BackingError::Hole) => f.write_str("the file has a hole there"),
            Self::Backing(BackingError::Dead) => f.write_str("the device or file is gone"),
            Self::Backing(BackingError::Poisoned) => f.write_str("the page's memory failed"),
            Self::Backing(BackingError::NoMemory) => f.write_str("no memory to fill the page"),
            Self::Backing(BackingError::Busy) => f.write_str("the owner cannot be asked now"),
            Self::Misfit { align } => write!(f, "no leaf of {align} fits here, and none else may"),
            Self::Foreign { run } => write!(f, "frames {run} are of another pool"),
            Self::TableFull => f.write_str("the page table can hold no more"),
            Self::Cpu(number) => write!(f, "the processor's mapping failed with errno {number}"),
        }
    }
}

impl std::error::Error for FillError {}

/// What a fill put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    pub(crate) page: u64,
    pub(crate) level: Level,
    pub(crate) flags: LeafFlags,
}

/// What lies behind a page of a file, looked up once: a backing is asked through its trait, and one
/// that is a file may take a lock of its own each time.
#[derive(Clone, Copy, Debug)]
pub(super) struct BackedPage {
    kind: VmaKind,
    backed: Backed,
    /// Pages of the file from this one on.
    left_in_file: u64,
}

impl BackedPage {
    pub(super) fn look(backing: &dyn AreaBacking, file_page: u64) -> Result<Self, FillError> {
        if !backing.is_alive() {
            return Err(FillError::Backing(BackingError::Dead));
        }
        let mut left_in_file = backing.nr_pages().saturating_sub(file_page);
        if left_in_file == 0 {
            // That end may be of a cut that was given up since; whoever is asked for a page behind
            // it looks again.
            let _looked = backing.extent_at(file_page).map_err(FillError::Backing)?;
            left_in_file = backing.nr_pages().saturating_sub(file_page);
        }
        if left_in_file == 0 {
            return Err(FillError::Backing(BackingError::BeyondEnd));
        }
        let backed = backing.extent_at(file_page).map_err(FillError::Backing)?;
        if backed.skip >= backed.extent.run.nr_pages() {
            return Err(FillError::Backing(BackingError::BeyondEnd));
        }
        Ok(Self { kind: backing.kind(), backed, left_in_file })
    }

    fn of(vma: &Vma, page: u64) -> Result<Self, FillError> {
        Self::look(&*vma.backing, vma.file_page_of(page))
    }

    fn first_pfn(&self) -> u64 {
        self.backed.extent.run.start() + self.backed.skip
    }

    /// How many pages from here on file and extent go on together.
    fn nr_ahead(&self) -> u64 {
        self.left_in_file.min(self.backed.extent.run.nr_pages() - self.backed.skip)
    }

    /// What lies `nr_pages` before, if the extent has that.
    fn back(&self, nr_pages: u64) -> Option<Self> {
        let skip = self.backed.skip.checked_sub(nr_pages)?;
        let left_in_file = self.left_in_file.saturating_add(nr_pages);
        Some(Self { backed: Backed { skip, ..self.backed }, left_in_file, ..*self })
    }

    /// What the leaves say that map it with these permissions.
    fn leaf_flags(&self, prot: Prot) -> LeafFlags {
        let mut flags = match self.kind {
            VmaKind::Raw => LeafFlags::RAW,
            VmaKind::PeerToPeer => LeafFlags::PEER,
            _ => LeafFlags::NONE,
        };
        let life = self.backed.extent.life;
        // A life word that allows no pins never will: whoever changes it changes it for good.
        if !life.is_pinnable() {
            flags = flags.with(LeafFlags::RAW);
        }
        if prot.contains(Prot::WRITE) && life.flags().contains(FolioFlags::WRITABLE) {
            flags = flags.with(LeafFlags::WRITE);
        }
        flags
    }

    /// At most `most` pages of `vma` from `page` on that lie in one piece, in leaves of what
    /// device-dax demands, else of the largest that fit.
    #[inline]
    fn onward(&self, vma: &Vma, page: u64, most: u64) -> Result<LeafPlacement, FillError> {
        let mut nr_pages = self.nr_ahead().min(vma.end() - page).min(most);
        let mut only_level = None;
        if let VmaKind::DeviceDax { align } = self.kind {
            nr_pages -= nr_pages % align.nr_pages();
            let is_aligned =
                (vma.page | vma.nr_pages | self.first_pfn()).is_multiple_of(align.nr_pages());
            if nr_pages == 0 || !is_aligned {
                return Err(FillError::Misfit { align });
            }
            only_level = Some(align);
        }
        let flags = self.leaf_flags(vma.prot);
        let Backed { extent, skip } = self.backed;
        Ok(LeafPlacement { page, nr_pages, extent, skip, flags, only_level })
    }

    /// The block of `level` around `page`, if area, file and extent have all of it in one piece.
    fn block(&self, vma: &Vma, page: u64, level: Level) -> Option<LeafPlacement> {
        let nr_before = page % level.nr_pages();
        let base = page - nr_before;
        let start = self.back(nr_before)?;
        let fits = base >= vma.page
            && start.first_pfn().is_multiple_of(level.nr_pages())
            && start.nr_ahead().min(vma.end() - base) >= level.nr_pages();
        let Backed { extent, skip } = start.backed;
        let flags = start.leaf_flags(vma.prot);
        let nr_pages = level.nr_pages();
        fits.then_some(LeafPlacement {
            page: base,
            nr_pages,
            extent,
            skip,
            flags,
            only_level: Some(level),
        })
    }
}

/// The one leaf to put in at a page: what device-dax demands, else the largest that fits and does
/// not run over leaves that are there (Linux 7.1: fs/dax.c, small entries win).
fn choose(
    cursor: &Cursor<'_>,
    vma: &Vma,
    page: u64,
    behind: &BackedPage,
) -> Result<LeafPlacement, FillError> {
    if let VmaKind::DeviceDax { align } = behind.kind {
        let is_aligned = (vma.page | vma.nr_pages).is_multiple_of(align.nr_pages());
        let block = behind.block(vma, page, align).filter(|_| is_aligned);
        return block.ok_or(FillError::Misfit { align });
    }
    let present = cursor.leaf_at(page).map_or(Level::Pte, |leaf| leaf.level);
    Level::ALL
        .into_iter()
        .rev()
        .filter(|&level| level <= present || cursor.is_block_empty(page, level))
        .find_map(|level| behind.block(vma, page, level))
        .ok_or(FillError::Misfit { align: Level::Pte })
}

/// What is still to be filled over. It is cleared at the end, however that comes: what is there is
/// of the area that was there before, even if the backing of the new one panics.
struct Rest<'r, 't> {
    cursor: &'r mut Cursor<'t>,
    at: u64,
    end: u64,
    ended: &'r mut EndedRanges,
}

impl Drop for Rest<'_, '_> {
    fn drop(&mut self) {
        if self.at < self.end {
            let Self { cursor, at, end, ended } = self;
            cursor.clear(*at, *end, None, |page, nr_pages| ended.push(page, nr_pages));
        }
    }
}

impl Mm {
    /// Puts in the leaf for `page`, which lies in `vma`, over whatever is there: a leaf that
    /// allowed less, or of what lay behind the page before.
    pub(crate) fn fill(
        &self,
        writer: &mut TableWriter,
        vma: &Vma,
        page: u64,
        ended: &mut EndedRanges,
    ) -> Result<Filled, FillError> {
        let mut cursor = self.table.cursor(writer);
        let place = choose(&cursor, vma, page, &BackedPage::of(vma, page)?)?;
        self.put(&mut cursor, vma.prot, &place, |page, nr_pages| ended.push(page, nr_pages))?;
        let level = place.only_level.unwrap_or(Level::Pte);
        Ok(Filled { page: place.page, level, flags: place.flags })
    }

    /// Fills every page from `from` up to `to` that has an area, allows an access and has no leaf,
    /// with the largest leaves that fit. Stops at the first page that cannot be filled; returns
    /// that page and why.
    pub(crate) fn fill_all(
        &self,
        state: &mut MmState,
        from: u64,
        to: u64,
    ) -> Result<(), (u64, FillError)> {
        let MmState { areas, writer, .. } = state;
        let mut cursor = self.table.cursor(writer);
        for vma in areas.overlapping(from, to).filter(|vma| vma.prot != Prot::NONE) {
            self.fill_area(&mut cursor, vma, from, to)?;
        }
        Ok(())
    }

    /// As [`fill_all`](Self::fill_all), for one area that allows an access.
    pub(super) fn fill_area(
        &self,
        cursor: &mut Cursor<'_>,
        vma: &Vma,
        from: u64,
        to: u64,
    ) -> Result<(), (u64, FillError)> {
        let mut at = vma.page.max(from);
        while at < vma.end().min(to) {
            if let Some(leaf) = cursor.leaf_at(at) {
                at = leaf.page + leaf.level.nr_pages();
                continue;
            }
            at = self.fill_range(cursor, vma, at, to).map_err(|error| (at, error))?;
        }
        Ok(())
    }

    /// Fills an area that allows an access over whatever is there, as far as that goes, and clears
    /// the rest. `first` is what lies behind its first page. What cannot be filled is reported at
    /// its fault, as with MAP_POPULATE.
    pub(super) fn fill_over(
        &self,
        cursor: &mut Cursor<'_>,
        vma: &Vma,
        first: Result<BackedPage, FillError>,
        ended: &mut EndedRanges,
    ) {
        let mut rest = Rest { cursor, at: vma.page, end: vma.end(), ended };
        let mut behind = first;
        while let Ok(here) = behind
            && let Ok(place) = here.onward(vma, rest.at, u64::MAX)
        {
            let Rest { cursor, ended, .. } = &mut rest;
            let removed = |page, nr_pages| ended.push(page, nr_pages);
            if self.put(cursor, vma.prot, &place, removed).is_err() {
                break;
            }
            rest.at = place.page + place.nr_pages;
            if rest.at == rest.end {
                break;
            }
            behind = BackedPage::of(vma, rest.at);
        }
    }

    /// Fills from `at` on as far as one extent goes and nothing is mapped. Returns where it
    /// stopped.
    fn fill_range(
        &self,
        cursor: &mut Cursor<'_>,
        vma: &Vma,
        at: u64,
        to: u64,
    ) -> Result<u64, FillError> {
        let behind = BackedPage::of(vma, at)?;
        let first = choose(cursor, vma, at, &behind)?;
        let behind = behind.back(at - first.page).ok_or(FillError::Misfit { align: Level::Pte })?;
        let most = first.nr_pages.max(to.max(at + 1) - first.page);
        let mut place = behind.onward(vma, first.page, most)?;
        let free_end =
            cursor.absent_until(first.page + first.nr_pages, place.page + place.nr_pages);
        place.nr_pages = free_end - place.page;
        self.put(cursor, vma.prot, &place, |_, _| {})?;
        Ok(place.page + place.nr_pages)
    }

    /// Puts leaves in over whatever is there; calls `removed` for each that was.
    fn put(
        &self,
        cursor: &mut Cursor<'_>,
        prot: Prot,
        place: &LeafPlacement,
        removed: impl FnMut(u64, u64),
    ) -> Result<(), FillError> {
        if !self.table.vmemmap().covers(place.extent.run) {
            return Err(FillError::Foreign { run: place.extent.run });
        }
        if let Some(cpu) = &self.cpu {
            let first = place.extent.run.start() + place.skip;
            let run = PfnRange::new(first, place.nr_pages).ok_or(FillError::TableFull)?;
            let address = place.page * PAGE_BYTES;
            cpu.map(address, &place.extent, run, prot).map_err(FillError::Cpu)?;
        }
        cursor.map(place, removed).map_err(|_| {
            if let Some(cpu) = &self.cpu {
                // Without a leaf no invalidation would find it.
                let (address, len_bytes) = (place.page * PAGE_BYTES, place.nr_pages * PAGE_BYTES);
                cpu.unmap(address, len_bytes, Vacancy::Reserved);
            }
            FillError::TableFull
        })
    }
}
