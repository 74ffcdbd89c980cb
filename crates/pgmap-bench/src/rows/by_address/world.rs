//! An address space over a pfn space full of live folios, cut into regions.

use std::sync::Arc;

use pgmap::ProcessSide;
use pgmap::mm::extent::Extent;
use pgmap::mm::folio::Sizing;
use pgmap::mm::gup::{Gup, GupFlags, ReadSection};
use pgmap::mm::level::{Level, PAGE_BYTES};
use pgmap::mm::mm::{MapRequest, Mm};
use pgmap::mm::pin::Lane;
use pgmap::mm::vma::{AreaBacking, Backed, BackingError, VmaKind};
use pgmap::space::TABLE_MEMORY;

use crate::failure::Failure;
use crate::random::Random;
use crate::space::{Member, Space};

/// Counts of frames on one page of a ledger.
const COUNTS_A_PAGE: usize = 1024;

/// A file of the space: extents one after the other, mapped by leaves of one size.
#[derive(Debug)]
struct File {
    leaf: Level,
    extents: Vec<Extent>,
    nr_pages: u64,
}

impl AreaBacking for File {
    fn kind(&self) -> VmaKind {
        // So that every leaf has that size, however well the frames lie.
        VmaKind::DeviceDax { align: self.leaf }
    }

    fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    fn extent_at(&self, page: u64) -> Result<Backed, BackingError> {
        let mut first = 0;
        for extent in &self.extents {
            let nr_pages = extent.run.nr_pages();
            if page - first < nr_pages {
                return Ok(Backed { extent: *extent, skip: page - first });
            }
            first += nr_pages;
        }
        Err(BackingError::BeyondEnd)
    }
}

/// How a region lies in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It is one file.
    Whole,
    /// Its first leaf is a file of its own, which can be mapped over: two areas a region.
    FirstLeafApart,
}

/// What an address space is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub bytes: u64,
    pub leaf: Level,
    pub nr_regions: u64,
    pub cut: Cut,
}

/// The address space, filled, and a client that pins in it.
pub struct World {
    /// Keeps the owner's side, as an owner would.
    _space: Space,
    pub member: Member,
    pub mm: Mm,
    shape: Shape,
    /// What maps the first leaf of each region over itself.
    remaps: Vec<MapRequest>,
}

impl World {
    /// Makes the space, maps and fills all of it, and proves that a hold by address is one.
    pub fn new(shape: Shape) -> Result<Arc<Self>, Failure> {
        let mut space = Space::new(shape.bytes)?;
        let member = space.member()?;
        let mm = Mm::for_device_in(TABLE_MEMORY, space.layout(), 0, shape.bytes)
            .ok_or_else(|| Failure::new("no such address space"))?;
        let region_bytes = shape.bytes / shape.nr_regions;
        let leaf_bytes = shape.leaf.size_bytes();
        let mut remaps = Vec::new();
        for region in 0..shape.nr_regions {
            let mut at = region * region_bytes;
            let end = at + region_bytes;
            if shape.cut == Cut::FirstLeafApart {
                let file = file(&mut space, leaf_bytes, shape.leaf)?;
                let request = MapRequest::new(file, leaf_bytes).at(at).filled();
                mm.map(&request)?;
                remaps.push(request.over(at));
                at += leaf_bytes;
            }
            let file = file(&mut space, end - at, shape.leaf)?;
            mm.map(&MapRequest::new(file, end - at).at(at).filled())?;
        }
        let world = Self { _space: space, member, mm, shape, remaps };
        world.prove()?;
        Ok(Arc::new(world))
    }

    /// A hold shows in the ledger while it lives and not afterwards; the leaves have their size.
    fn prove(&self) -> Result<(), Failure> {
        let lane = self.lane()?;
        let gup = self.gup(&lane)?;
        let leaf_pages = self.shape.leaf.nr_pages();
        let address = (self.shape.bytes / 3) & !(self.shape.leaf.size_bytes() - 1);
        let reader = &self.member.reader;
        let held = || reader.all_holds().iter().map(|hold| hold.run.nr_pages()).sum::<u64>();
        let short = gup.fast_leaf(address, 1, GupFlags::NONE).ok_or_else(not_held)?;
        let (during, level) = (held(), short.level());
        drop(short);
        if (during, held(), level) != (1, 0, self.shape.leaf) {
            return Err(Failure::new(format!("a page held shows as {during} in a {level} leaf")));
        }
        let long = gup.fast_leaf_long(address, leaf_pages, GupFlags::NONE).ok_or_else(not_held)?;
        let during = held();
        drop(long);
        if (during, held()) != (leaf_pages, 0) {
            return Err(Failure::new(format!("{leaf_pages} pages held long show as {during}")));
        }
        Ok(())
    }

    /// Backs every page of the client's counts of 4 KiB frames with memory, as it is once it was
    /// used.
    pub fn back_counts(&self) -> Result<(), Failure> {
        let lane = self.lane()?;
        let gup = self.gup(&lane)?;
        for page in (0..self.nr_pages()).step_by(COUNTS_A_PAGE) {
            let held = gup.fast_leaf_long(page * PAGE_BYTES, 1, GupFlags::NONE);
            drop(held.ok_or_else(not_held)?);
        }
        Ok(())
    }

    /// A lane for this thread.
    pub fn lane(&self) -> Result<Lane<'_, ProcessSide>, Failure> {
        Ok(self.member.pinner.lane()?)
    }

    /// Holds by address in that lane.
    pub fn gup<'c, 'a>(
        &'a self,
        lane: &'c Lane<'a, ProcessSide>,
    ) -> Result<Gup<'c, 'a, ProcessSide>, Failure> {
        Gup::new(&self.mm, lane).ok_or_else(|| Failure::new("a lane of another pool"))
    }

    /// A section in which addresses are translated.
    pub fn section<'a>(
        &'a self,
        lane: &Lane<'a, ProcessSide>,
    ) -> Result<ReadSection<'a, ProcessSide>, Failure> {
        Ok(ReadSection::open(&self.mm, lane)?)
    }

    /// Pages of the space.
    pub const fn nr_pages(&self) -> u64 {
        self.shape.bytes / PAGE_BYTES
    }

    /// What makes an address of any number: the space has a power of two of bytes.
    pub const fn mask(&self) -> u64 {
        self.shape.bytes - 1
    }

    /// What maps the first leaf of a random region over itself, filled at once.
    pub fn remap(&self, random: &mut Random) -> Result<&MapRequest, Failure> {
        let at = random.below(self.remaps.len() as u64) as usize;
        self.remaps.get(at).ok_or_else(|| Failure::new("a world without leaves apart"))
    }
}

/// A file of `len_bytes` in folios of `leaf`.
pub fn file(
    space: &mut Space,
    len_bytes: u64,
    leaf: Level,
) -> Result<Arc<dyn AreaBacking>, Failure> {
    let nr_pages = len_bytes / PAGE_BYTES;
    let extents = space.publish(nr_pages, Sizing::Fixed(leaf))?;
    Ok(Arc::new(File { leaf, extents, nr_pages }))
}

/// A look that found nothing where all is mapped.
#[cold]
pub fn not_held() -> Failure {
    Failure::new("a mapped page could not be held")
}
