//! Mapping, unmapping, protecting and moving areas.

use core::fmt;
use std::sync::Arc;

use super::fill::{BackedPage, FillError};
use super::{AckTicket, CpuMapping, EndedRanges, Mm, MmState, Vacancy};
use crate::error::errno;
use crate::level::{Level, PAGE_BYTES};
use crate::page_table::PageTable;
use crate::page_table::entry::LeafFlags;
use crate::prot::Prot;
use crate::vma::{AreaBacking, Vma, VmaKind, VmaSet};

/// Pages of the longest file: its length in bytes has 64 bits.
const FILE_PAGES: u64 = u64::MAX / PAGE_BYTES;
const EEXIST: i32 = 17;

/// Why an area could not be mapped, unmapped or changed. Nothing was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MapError {
    /// Address or length is no multiple of the page size, or the length is zero.
    Misaligned {
        /// What was given.
        value: u64,
    },
    /// A device-dax area must start and end at multiples of its device's alignment, in addresses
    /// and in the device.
    DaxMisaligned {
        /// The alignment.
        align: Level,
        /// What is no multiple of it.
        address: u64,
    },
    /// A device-dax mapping must be shared.
    PrivateDax,
    /// Private mappings of pool files are not offered.
    PrivateFile,
    /// The device or file is gone.
    Dead,
    /// The addresses lie outside the address space, or no gap is large enough.
    NoRoom {
        /// Length asked for, in bytes.
        len_bytes: u64,
    },
    /// Something is mapped at the addresses already.
    Taken {
        /// The first address asked for.
        address: u64,
    },
    /// The file was not opened for this.
    NotPermitted {
        /// What was asked for.
        wanted: Prot,
    },
    /// Nothing is mapped at some of the addresses.
    NotMapped {
        /// The first address asked for.
        address: u64,
    },
    /// What is to be moved is not mapped, or not by one area.
    NotOneArea {
        /// The first address asked for.
        address: u64,
    },
    /// Where something is to be moved, it lies itself in part.
    Overlapping {
        /// The first address it was to be moved to.
        address: u64,
    },
    /// The last page of the file that is asked for has no number.
    Overflow {
        /// The first one.
        file_page: u64,
    },
    /// Some of the addresses lie outside the address space.
    Outside {
        /// The first address asked for.
        address: u64,
        /// Length asked for, in bytes.
        len_bytes: u64,
    },
    /// The page table or the processor's mapping refused, with this Linux error number.
    Refused(i32),
}

impl MapError {
    /// The Linux error number that says the same.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Misaligned { .. }
            | Self::DaxMisaligned { .. }
            | Self::PrivateDax
            | Self::Overlapping { .. }
            | Self::Outside { .. } => errno::EINVAL,
            Self::NotOneArea { .. } => errno::EFAULT,
            Self::Overflow { .. } => errno::EOVERFLOW,
            Self::PrivateFile => errno::EOPNOTSUPP,
            Self::Dead => errno::ENXIO,
            Self::NoRoom { .. } | Self::NotMapped { .. } => errno::ENOMEM,
            Self::Taken { .. } => EEXIST,
            Self::NotPermitted { .. } => errno::EACCES,
            Self::Refused(number) => *number,
        }
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned { value } => write!(f, "{value:#x} is zero or no multiple of 4 KiB"),
            Self::DaxMisaligned { align, address } => {
                write!(f, "{address:#x} is no multiple of the device's {align} alignment")
            }
            Self::PrivateDax => f.write_str("a device-dax mapping must be shared"),
            Self::PrivateFile => f.write_str("private mappings of pool files are not offered"),
            Self::Dead => f.write_str("the device or file is gone"),
            Self::NoRoom { len_bytes } => {
                write!(f, "the address space has no room for {len_bytes} bytes there")
            }
            Self::Taken { address } => write!(f, "something is mapped at {address:#x} already"),
            Self::NotPermitted { wanted } => write!(f, "the file was not opened for {wanted:?}"),
            Self::NotMapped { address } => {
                write!(f, "some of the addresses from {address:#x} on are not mapped")
            }
            Self::NotOneArea { address } => {
                write!(f, "what is to be moved from {address:#x} is not mapped by one area")
            }
            Self::Overlapping { address } => {
                write!(f, "what is to be moved to {address:#x} lies there itself in part")
            }
            Self::Overflow { file_page } => {
                write!(f, "no file has so many pages from {file_page:#x} on")
            }
            Self::Outside { address, len_bytes } => {
                write!(f, "{len_bytes:#x} bytes from {address:#x} on leave the address space")
            }
            Self::Refused(number) => write!(f, "the mapping was refused with errno {number}"),
        }
    }
}

impl std::error::Error for MapError {}

/// Where to put an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// Wherever there is a gap.
    Anywhere,
    /// At this address, where nothing may be mapped (`MAP_FIXED_NOREPLACE`).
    At(u64),
    /// At this address, over whatever is mapped there (`MAP_FIXED`).
    Over(u64),
}

/// Who sees what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Everybody (`MAP_SHARED`).
    Shared,
    /// Only the writer (`MAP_PRIVATE`): refused, see `docs/adr`.
    Private,
}

/// When pages are filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filling {
    /// At the first fault or pin; in a process address space at once.
    OnFault,
    /// At once, as far as the file reaches (`MAP_POPULATE`).
    AtOnce,
}

/// What to map.
#[derive(Clone, Debug)]
pub struct MapRequest {
    /// What lies behind.
    pub backing: Arc<dyn AreaBacking>,
    /// Page of the file to start with.
    pub file_page: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Where to.
    pub place: Placed,
    /// What may be done.
    pub prot: Prot,
    /// Who sees what is written.
    pub sharing: Sharing,
    /// When pages are filled.
    pub filling: Filling,
}

impl MapRequest {
    /// A shared, readable and writable mapping of the first `len_bytes` bytes, anywhere.
    #[must_use]
    pub fn new(backing: Arc<dyn AreaBacking>, len_bytes: u64) -> Self {
        Self {
            backing,
            file_page: 0,
            len_bytes,
            place: Placed::Anywhere,
            prot: Prot::READ_WRITE,
            sharing: Sharing::Shared,
            filling: Filling::OnFault,
        }
    }

    /// From this page of the file on.
    #[must_use]
    pub fn from_file_page(self, file_page: u64) -> Self {
        Self { file_page, ..self }
    }

    /// At this address, where nothing may be mapped.
    #[must_use]
    pub fn at(self, address: u64) -> Self {
        Self { place: Placed::At(address), ..self }
    }

    /// At this address, over whatever is mapped there.
    #[must_use]
    pub fn over(self, address: u64) -> Self {
        Self { place: Placed::Over(address), ..self }
    }

    /// With these permissions.
    #[must_use]
    pub fn with_prot(self, prot: Prot) -> Self {
        Self { prot, ..self }
    }

    /// Filled at once, as far as the file reaches.
    #[must_use]
    pub fn filled(self) -> Self {
        Self { filling: Filling::AtOnce, ..self }
    }

    /// Seen by the writer alone.
    #[must_use]
    pub fn private(self) -> Self {
        Self { sharing: Sharing::Private, ..self }
    }

    fn area(&self, page: u64, nr_pages: u64) -> Vma {
        let Self { file_page, prot, .. } = *self;
        Vma { page, nr_pages, backing: self.backing.clone(), file_page, prot }
    }
}

/// Takes away what the processor sees where there is no leaf. At its end, however that comes: if
/// the backing of an area panics while it is filled, what is seen there still is of the area
/// before.
struct Sweep<'m> {
    table: &'m PageTable,
    cpu: &'m dyn CpuMapping,
    state: &'m mut MmState,
    from: u64,
    to: u64,
}

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        let cursor = self.table.cursor(&mut self.state.writer);
        let mut at = self.from;
        while at < self.to {
            let end = cursor.absent_until(at, self.to);
            if end > at {
                let (address, len_bytes) = (at * PAGE_BYTES, (end - at) * PAGE_BYTES);
                self.cpu.unmap(address, len_bytes, Vacancy::Reserved);
            }
            at = cursor.leaf_at(end).map_or(end + 1, |leaf| leaf.page + leaf.level.nr_pages());
        }
    }
}

/// What ended with a change.
#[derive(Debug)]
#[must_use = "translations that ended may be cached by devices until the ticket is done"]
pub struct Unmapped {
    /// Pages that had a leaf.
    pub nr_pages: u64,
    /// Who was notified and has not acknowledged.
    pub acks: AckTicket,
}

impl Mm {
    /// Maps a range of a file or pagemap; returns its address. A process address space is filled at
    /// once as far as the file reaches; in a device address space leaves come with faults,
    /// [`populate`](Self::populate) or the first pin.
    ///
    /// # Errors
    /// [`MapError`], as `mmap(2)` and, for device-dax, Linux 7.1: drivers/dax/device.c.
    /// [`MapError::Refused`] where the processor's mapping can hold no more: then nothing is mapped
    /// at the addresses, nor is what was mapped there before.
    pub fn map(&self, request: &MapRequest) -> Result<u64, MapError> {
        let nr_pages = whole_pages(request.len_bytes)?;
        check_request(request, nr_pages)?;
        let mut ended = EndedRanges::default();
        let mut state = self.lock();
        let page = match request.place {
            Placed::Over(address) => {
                self.map_over(&mut state, request, (address, nr_pages), &mut ended)?
            }
            Placed::Anywhere | Placed::At(_) => self.map_in_gap(&mut state, request, nr_pages)?,
        };
        let end = page + nr_pages;
        let filled = self.fill_for_cpu(&mut state, page, end);
        if filled.is_err() {
            // An area of which every touch fails would help nobody.
            self.clear_for_good(&mut state, page, end, &mut ended);
            state.areas.remove(page, end);
        }
        let _told = self.finish(state, &ended);
        match filled {
            Ok(()) => Ok(page * PAGE_BYTES),
            Err(error) => Err(MapError::Refused(error.errno())),
        }
    }

    fn map_in_gap(
        &self,
        state: &mut MmState,
        request: &MapRequest,
        nr_pages: u64,
    ) -> Result<u64, MapError> {
        let page = self.find_place(state, request, nr_pages)?;
        let vma = request.area(page, nr_pages);
        if !self.is_filled_now(request) {
            state.areas.insert(vma);
            return Ok(page);
        }
        state.areas.insert(vma.clone());
        let mut cursor = self.table.cursor(&mut state.writer);
        // What cannot be filled is reported at its fault, as with MAP_POPULATE.
        let _later = self.fill_area(&mut cursor, &vma, page, vma.end());
        Ok(page)
    }

    /// Maps over whatever is there. Where the new pages are filled at once, readers see the old
    /// leaf or the new one and never none.
    fn map_over(
        &self,
        state: &mut MmState,
        request: &MapRequest,
        (address, nr_pages): (u64, u64),
        ended: &mut EndedRanges,
    ) -> Result<u64, MapError> {
        let page = self.place_at(request, address, nr_pages)?;
        let end = page + nr_pages;
        let MmState { areas, writer, .. } = state;
        self.table.cursor(writer).fetch_ahead(page);
        // Before the area is looked up, so that the processor waits for both at once.
        let behind = self
            .is_filled_now(request)
            .then(|| BackedPage::look(&*request.backing, request.file_page));
        let new_area;
        let vma = match areas.exactly(page, end) {
            // The usual change: one area for another.
            Some(vma) => {
                vma.assign(&request.backing, request.file_page, request.prot);
                &*vma
            }
            None => {
                check_split(areas, page, end)?;
                new_area = request.area(page, nr_pages);
                areas.remove(page, end);
                areas.insert(new_area.clone());
                &new_area
            }
        };
        let mut cursor = self.table.cursor(writer);
        match behind {
            Some(first) => self.fill_over(&mut cursor, vma, first, ended),
            None => cursor.clear(page, end, None, |page, nr_pages| ended.push(page, nr_pages)),
        }
        Ok(page)
    }

    /// Whether a device address space is filled when this is mapped. A process address space always
    /// is, in a way of its own.
    fn is_filled_now(&self, request: &MapRequest) -> bool {
        request.filling == Filling::AtOnce && self.cpu.is_none() && request.prot != Prot::NONE
    }

    /// Removes what is mapped from `address` on; addresses where nothing is are passed over.
    ///
    /// # Errors
    /// [`MapError::Misaligned`], [`MapError::Outside`], and [`MapError::DaxMisaligned`] when that
    /// would split a device-dax area elsewhere than at its alignment.
    pub fn unmap(&self, address: u64, len_bytes: u64) -> Result<Unmapped, MapError> {
        let outside = MapError::Outside { address, len_bytes };
        let (from, to) = self.page_range(address, len_bytes, outside)?;
        let mut ended = EndedRanges::default();
        let mut state = self.lock();
        self.table.cursor(&mut state.writer).fetch_ahead(from);
        check_split(&state.areas, from, to)?;
        self.clear_for_good(&mut state, from, to, &mut ended);
        state.areas.remove(from, to);
        Ok(self.finish(state, &ended))
    }

    /// Changes what may be done to pages that are all mapped: all of them or none.
    ///
    /// # Errors
    /// [`MapError::NotMapped`] when there is a gap, [`MapError::NotPermitted`] when a file was not
    /// opened for it, [`MapError::DaxMisaligned`] as [`unmap`](Self::unmap).
    pub fn protect(&self, address: u64, len_bytes: u64, prot: Prot) -> Result<Unmapped, MapError> {
        let not_mapped = MapError::NotMapped { address };
        let (from, to) = self.page_range(address, len_bytes, not_mapped)?;
        let mut ended = EndedRanges::default();
        let mut state = self.lock();
        if !state.areas.covers(from, to) {
            return Err(not_mapped);
        }
        check_split(&state.areas, from, to)?;
        let parts: Vec<Vma> =
            state.areas.overlapping(from, to).map(|vma| vma.part(from, to)).collect();
        if parts.iter().any(|vma| !vma.backing.most_prot().contains(prot)) {
            return Err(MapError::NotPermitted { wanted: prot });
        }
        self.weaken(&mut state, from, to, prot, &mut ended);
        state.areas.remove(from, to);
        for part in parts {
            state.areas.insert(Vma { prot, ..part });
        }
        // What the processor's mapping refuses is reported at its fault.
        let _later = self.fill_for_cpu(&mut state, from, to);
        Ok(self.finish(state, &ended))
    }

    /// Moves, grows or shrinks what is mapped from `address` on, which must lie in one area. What
    /// is moved is faulted in again. Returns the new address.
    ///
    /// # Errors
    /// As `mremap(2)`: [`MapError::NotOneArea`], [`MapError::NoRoom`], [`MapError::Overlapping`];
    /// [`MapError::Taken`] as [`map`](Self::map); [`MapError::DaxMisaligned`] when a split or the
    /// result would not be aligned.
    pub fn remap(
        &self,
        address: u64,
        old_bytes: u64,
        new_bytes: u64,
        place: Placed,
    ) -> Result<u64, MapError> {
        let not_one = MapError::NotOneArea { address };
        let (from, to) = self.page_range(address, old_bytes, not_one)?;
        let nr_pages = whole_pages(new_bytes)?;
        let mut ended = EndedRanges::default();
        let mut state = self.lock();
        let Some(vma) = state.areas.find(from).filter(|vma| to <= vma.end()).cloned() else {
            return Err(not_one);
        };
        check_split(&state.areas, from, to)?;
        let part = vma.part(from, to);
        let request = MapRequest {
            backing: part.backing.clone(),
            file_page: part.file_page,
            len_bytes: new_bytes,
            place,
            prot: part.prot,
            sharing: Sharing::Shared,
            filling: Filling::OnFault,
        };
        check_request(&request, nr_pages)?;
        let page = if place == Placed::Anywhere && nr_pages <= to - from {
            let cut = from + nr_pages;
            if cut < to {
                check_split(&state.areas, cut, to)?;
                self.clear_for_good(&mut state, cut, to, &mut ended);
                state.areas.remove(cut, to);
            }
            from
        } else {
            self.move_area(&mut state, &part, &request, nr_pages, &mut ended)?
        };
        let _told = self.finish(state, &ended);
        Ok(page * PAGE_BYTES)
    }

    fn move_area(
        &self,
        state: &mut MmState,
        part: &Vma,
        request: &MapRequest,
        nr_pages: u64,
        ended: &mut EndedRanges,
    ) -> Result<u64, MapError> {
        let grown_end = part.page + nr_pages;
        let can_grow = request.place == Placed::Anywhere
            && grown_end <= self.pages().1
            && state.areas.overlapping(part.end(), grown_end).next().is_none();
        let page = if can_grow { part.page } else { self.find_place(state, request, nr_pages)? };
        if !can_grow && page < part.end() && part.page < page + nr_pages {
            return Err(MapError::Overlapping { address: page * PAGE_BYTES });
        }
        if !can_grow {
            self.clear_for_good(state, part.page, part.end(), ended);
            self.clear(state, page, page + nr_pages, ended);
        }
        state.areas.remove(part.page, part.end());
        state.areas.remove(page, page + nr_pages);
        state.areas.insert(Vma { page, nr_pages, ..part.clone() });
        // As in `protect`.
        let _later = self.fill_for_cpu(state, page, page + nr_pages);
        Ok(page)
    }

    /// Where the request's pages go.
    fn find_place(
        &self,
        state: &mut MmState,
        request: &MapRequest,
        nr_pages: u64,
    ) -> Result<u64, MapError> {
        let no_room = MapError::NoRoom { len_bytes: request.len_bytes };
        let (low, high) = self.pages();
        let address = match request.place {
            Placed::At(address) | Placed::Over(address) => address,
            Placed::Anywhere => {
                let (align, least) = match request.backing.kind() {
                    VmaKind::DeviceDax { align } => (align, align),
                    _ => (Level::largest_fitting(0, nr_pages).unwrap_or(Level::Pte), Level::Pte),
                };
                let mut find =
                    |level: Level| state.areas.find_gap(low, high, nr_pages, level.nr_pages());
                return find(align).or_else(|| find(least)).ok_or(no_room);
            }
        };
        let page = self.place_at(request, address, nr_pages)?;
        let end = page + nr_pages;
        match request.place {
            Placed::Over(_) => check_split(&state.areas, page, end)?,
            _ if state.areas.overlapping(page, end).next().is_some() => {
                return Err(MapError::Taken { address });
            }
            _ => {}
        }
        Ok(page)
    }

    /// The first page of an area at this address, if it may start there and has room.
    fn place_at(&self, request: &MapRequest, address: u64, nr_pages: u64) -> Result<u64, MapError> {
        if !address.is_multiple_of(PAGE_BYTES) {
            return Err(MapError::Misaligned { value: address });
        }
        let page = address / PAGE_BYTES;
        if let VmaKind::DeviceDax { align } = request.backing.kind()
            && !page.is_multiple_of(align.nr_pages())
        {
            return Err(MapError::DaxMisaligned { align, address });
        }
        let (low, high) = self.pages();
        if page < low || page.checked_add(nr_pages).is_none_or(|end| end > high) {
            return Err(MapError::NoRoom { len_bytes: request.len_bytes });
        }
        Ok(page)
    }

    /// Removes the leaves of a range whose areas are about to go or change.
    fn clear(&self, state: &mut MmState, from: u64, to: u64, ended: &mut EndedRanges) {
        let mut cursor = self.table.cursor(&mut state.writer);
        cursor.clear(from, to, None, |page, nr_pages| ended.push(page, nr_pages));
    }

    /// Removes the leaves of a range that no area will be mapped at.
    fn clear_for_good(&self, state: &mut MmState, from: u64, to: u64, ended: &mut EndedRanges) {
        self.clear(state, from, to, ended);
        if let Some(cpu) = &self.cpu {
            cpu.unmap(from * PAGE_BYTES, (to - from) * PAGE_BYTES, Vacancy::Unmapped);
        }
    }

    /// Takes from leaves what `prot` no longer allows. What it newly allows comes with faults.
    fn weaken(&self, state: &mut MmState, from: u64, to: u64, prot: Prot, ended: &mut EndedRanges) {
        if prot == Prot::NONE || self.cpu.is_some() {
            // A process address space is filled again under the new permissions.
            return self.clear(state, from, to, ended);
        }
        if prot.contains(Prot::WRITE) {
            return;
        }
        let mut cursor = self.table.cursor(&mut state.writer);
        let without = |flags: LeafFlags| flags.without(LeafFlags::WRITE);
        match cursor.change_flags(from, to, without) {
            Ok(()) => ended.push(from, to - from),
            Err(_) => self.clear(state, from, to, ended),
        }
    }

    /// In a process address space, fills what the processor may touch over what it saw there, so
    /// that a page that stays is never away, and then takes away what could not be filled: a touch
    /// of that is an error. Fails where the processor's mapping or the page table can hold no more;
    /// that a file has no page is no failure.
    fn fill_for_cpu(&self, state: &mut MmState, from: u64, to: u64) -> Result<(), FillError> {
        let Some(cpu) = self.cpu.as_deref() else { return Ok(()) };
        let sweep = Sweep { table: &self.table, cpu, state, from, to };
        let mut at = from;
        while at < to
            && let Err((failed, error)) = self.fill_all(sweep.state, at, to)
        {
            match error {
                // What lay behind the page has just changed.
                FillError::Cpu(errno::ESTALE) => at = failed + 1,
                FillError::Cpu(_) | FillError::TableFull => return Err(error),
                _ => at = sweep.state.areas.after_missing(failed),
            }
        }
        Ok(())
    }

    /// The pages of a range, first and after the last, if all of it lies in the address space; else
    /// `outside`, which differs from call to call.
    fn page_range(
        &self,
        address: u64,
        len_bytes: u64,
        outside: MapError,
    ) -> Result<(u64, u64), MapError> {
        if !address.is_multiple_of(PAGE_BYTES) {
            return Err(MapError::Misaligned { value: address });
        }
        let nr_pages = whole_pages(len_bytes)?;
        let page = address / PAGE_BYTES;
        let (low, high) = self.pages();
        match page.checked_add(nr_pages) {
            Some(end) if page >= low && end <= high => Ok((page, end)),
            _ => Err(outside),
        }
    }
}

/// A length in pages, rounded up as `mmap` does.
fn whole_pages(len_bytes: u64) -> Result<u64, MapError> {
    match len_bytes.div_ceil(PAGE_BYTES) {
        0 => Err(MapError::Misaligned { value: len_bytes }),
        nr_pages => Ok(nr_pages),
    }
}

/// What does not depend on the address (Linux 7.1: drivers/dax/device.c, check_vma).
fn check_request(request: &MapRequest, nr_pages: u64) -> Result<(), MapError> {
    let backing = &request.backing;
    if !backing.is_alive() {
        return Err(MapError::Dead);
    }
    let is_whole = request.file_page.checked_add(nr_pages).is_some_and(|end| end <= FILE_PAGES);
    if !is_whole {
        return Err(MapError::Overflow { file_page: request.file_page });
    }
    let kind = backing.kind();
    match (request.sharing, kind) {
        (Sharing::Private, VmaKind::DeviceDax { .. }) => return Err(MapError::PrivateDax),
        (Sharing::Private, _) => return Err(MapError::PrivateFile),
        (Sharing::Shared, _) => {}
    }
    if let VmaKind::DeviceDax { align } = kind {
        for pages in [nr_pages, request.file_page] {
            if !pages.is_multiple_of(align.nr_pages()) {
                return Err(MapError::DaxMisaligned { align, address: pages * PAGE_BYTES });
            }
        }
    }
    if !backing.most_prot().contains(request.prot) {
        return Err(MapError::NotPermitted { wanted: request.prot });
    }
    Ok(())
}

fn check_split(areas: &VmaSet, from: u64, to: u64) -> Result<(), MapError> {
    if areas.may_split(from, to) {
        return Ok(());
    }
    let align = [from, to].into_iter().find_map(|page| match areas.find(page)?.kind() {
        VmaKind::DeviceDax { align } if !page.is_multiple_of(align.nr_pages()) => Some(align),
        _ => None,
    });
    let align = align.unwrap_or(Level::Pte);
    Err(MapError::DaxMisaligned { align, address: from * PAGE_BYTES })
}
