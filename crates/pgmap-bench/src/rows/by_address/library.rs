//! The library's own way from an address to a pin: a pool, a file in it, an address space.
//!
//! The memory of a pool's file is there from its creation. So that 64 GiB of addresses do not need
//! 64 GiB of memory, one file is mapped many times; walks and leaves are as if there were many.

use std::hint::black_box;
use std::sync::Arc;

use pgmap::mm::gup::GupFlags;
use pgmap::mm::level::{Level, PAGE_BYTES};
use pgmap::mm::mm::Placed;
use pgmap::mm::prot::Prot;
use pgmap::space::{AddressSpace, SpaceLane};
use pgmap::{FolioSize, Owner, Pool, PoolOptions};

use super::to_f;
use super::world::not_held;
use crate::failure::Failure;
use crate::harness::{Done, Row, Target, Worker};
use crate::rows::SPACE_BYTES;
use crate::rows::floor::{self, Tree};

/// Where the file is mapped: at no multiple of 1 GiB, so that leaves are of 2 MiB.
const ADDRESS: u64 = 2 << 20;

const FILE_BYTES: u64 = 256 << 20;
const NR_FOLIOS: u64 = FILE_BYTES / Level::Pmd.size_bytes();
const SHORT_TARGET: Target = Target::Ratio(0.7);
const LONG_TARGET: Target = Target::Ratio(0.9);

/// A file of a real pool, mapped in many regions and filled.
pub struct Library {
    space: AddressSpace,
    nr_regions: u64,
    len_bytes: u64,
    _owner: Owner,
}

impl Library {
    /// An address space of `nr_regions` regions, a power of two: as many bytes as the file has
    /// each, and at most 64 GiB in all.
    pub fn new(nr_regions: u64) -> Result<Arc<Self>, Failure> {
        let region_bytes = FILE_BYTES.min(SPACE_BYTES / nr_regions);
        let len_bytes = nr_regions * region_bytes;
        let owner = Owner::start(Pool::create(&PoolOptions::anonymous(FILE_BYTES))?)?;
        let client = owner.client()?;
        let mut writer = client.create("memory", FILE_BYTES, FolioSize::Pages2M)?;
        // The frames are as the system gave them: zero.
        let _ = writer.segments();
        writer.commit()?;
        let space = AddressSpace::for_device(&client, 0, 2 * len_bytes.max(FILE_BYTES))?;
        let file = client.open("memory")?;
        for region in 0..nr_regions {
            let place = Placed::At(ADDRESS + region * region_bytes);
            let offset = region * region_bytes % FILE_BYTES;
            space.map(&file, offset, region_bytes, place, Prot::READ_WRITE)?;
        }
        space.populate(ADDRESS, len_bytes)?;
        let level = space.mm().translate(ADDRESS + len_bytes / 2).map(|found| found.level);
        if level != Some(Level::Pmd) {
            return Err(Failure::new(format!("the file is mapped by leaves of {level:?}")));
        }
        drop(file);
        Ok(Arc::new(Self { space, nr_regions, len_bytes, _owner: owner }))
    }

    /// Pins at random pages, in line: what one pin costs depends on whether its flags are known.
    #[inline(always)]
    fn pins(&self, worker: Worker, nr_pages: u64, flags: GupFlags) -> Result<Done, Failure> {
        let Worker { nr_ops, mut random, .. } = worker;
        let nr_starts = self.len_bytes - (nr_pages - 1) * PAGE_BYTES;
        let mut held = 0;
        for _ in 0..nr_ops {
            let address = ADDRESS + random.below(nr_starts);
            let pages = self.space.pin(address, nr_pages, flags)?;
            held += u64::from(black_box(pages.nr_pages()) == nr_pages);
        }
        Ok(Done::ops(held))
    }

    /// Pins of one page at random, in a lane that the thread has taken once.
    #[inline(always)]
    fn pins_in_lane(
        &self,
        worker: Worker,
        pin: impl for<'s> Fn(&SpaceLane<'s>, u64) -> Option<u64>,
    ) -> Result<Done, Failure> {
        let Worker { nr_ops, mut random, .. } = worker;
        let lane = self.space.lane()?;
        let mut held = 0;
        for _ in 0..nr_ops {
            let address = ADDRESS + (random.next() & (self.len_bytes - 1));
            held += pin(&lane, address).ok_or_else(not_held)?;
        }
        Ok(Done::ops(held))
    }

    /// F over the same addresses and folios.
    fn floor(&self, tree: &Arc<Tree>, nr_threads: usize) -> Row {
        let name = self.name("floor: F over the library's folios", nr_threads);
        floor::repeated_floor(tree, name, nr_threads, self.len_bytes, NR_FOLIOS)
    }

    fn name(&self, what: &str, nr_threads: usize) -> String {
        format!("{what}, n={}, {nr_threads}T", self.nr_regions)
    }

    fn against_floor(&self, row: Row, nr_threads: usize) -> Row {
        let base = self.name("floor: F over the library's folios", nr_threads);
        row.on_threads(nr_threads).against(&base)
    }

    /// Short pins in a lane, and their floor.
    pub fn short_rows(self: &Arc<Self>, tree: &Arc<Tree>, nr_threads: usize) -> [Row; 2] {
        let (name, library) =
            (self.name("pgmap: SpaceLane::try_pin", nr_threads), Arc::clone(self));
        let row = Row::new(name, move |worker| {
            library.pins_in_lane(worker, |lane, address| {
                let pages = lane.try_pin(address, 1, GupFlags::NONE)?;
                Some(black_box(pages.run()).nr_pages())
            })
        });
        let row = self.against_floor(row.target(SHORT_TARGET), nr_threads);
        [self.floor(tree, nr_threads), row]
    }

    /// Long-term pins in a lane, and their floor.
    pub fn long_rows(self: &Arc<Self>, tree: &Arc<Tree>, nr_threads: usize) -> [Row; 2] {
        let name = self.name("pgmap: SpaceLane::try_pin_long", nr_threads);
        let library = Arc::clone(self);
        let row = Row::new(name, move |worker| {
            library.pins_in_lane(worker, |lane, address| {
                let pages = lane.try_pin_long(address, 1, GupFlags::NONE)?;
                Some(black_box(pages.run()).nr_pages())
            })
        });
        let row = self.against_floor(row.target(LONG_TARGET), nr_threads);
        [self.floor(tree, nr_threads), row]
    }

    /// Pins without a lane of one's own: of one page, of 2 MiB, and of one page long-term.
    pub fn rows(self: &Arc<Self>, nr_threads: usize) -> [Row; 3] {
        let name = |what| format!("pgmap: AddressSpace::pin{what} + drop, {nr_threads}T");
        let [one, range, long] = std::array::from_fn(|_| Arc::clone(self));
        let range_pages = Level::Pmd.nr_pages();
        [
            Row::new(name(""), move |worker| one.pins(worker, 1, GupFlags::NONE)),
            Row::new(name(" of 2 MiB"), move |worker| {
                range.pins(worker, range_pages, GupFlags::NONE)
            }),
            Row::new(name(" long-term"), move |worker| long.pins(worker, 1, GupFlags::LONGTERM)),
        ]
        .map(|row| to_f(row, nr_threads))
    }
}
