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
use pgmap::space::AddressSpace;
use pgmap::{FolioSize, Owner, Pool, PoolOptions};

use crate::failure::Failure;
use crate::harness::{Done, Row, Worker};

/// Where the file is mapped: at no multiple of 1 GiB, so that leaves are of 2 MiB.
const ADDRESS: u64 = 2 << 20;

const FILE_BYTES: u64 = 256 << 20;

/// A file of a real pool, mapped many times and filled.
pub struct Library {
    space: AddressSpace,
    len_bytes: u64,
    _owner: Owner,
}

impl Library {
    /// An address space with `len_bytes` of mapped pages, a power of two.
    pub fn new(len_bytes: u64) -> Result<Arc<Self>, Failure> {
        let owner = Owner::start(Pool::create(&PoolOptions::anonymous(FILE_BYTES))?)?;
        let client = owner.client()?;
        let mut writer = client.create("memory", FILE_BYTES, FolioSize::Pages2M)?;
        // The frames are as the system gave them: zero.
        let _ = writer.segments();
        writer.commit()?;
        let space = AddressSpace::for_device(&client, 0, 2 * len_bytes)?;
        let file = client.open("memory")?;
        for turn in 0..len_bytes / FILE_BYTES {
            let place = Placed::At(ADDRESS + turn * FILE_BYTES);
            space.map(&file, 0, FILE_BYTES, place, Prot::READ_WRITE)?;
        }
        space.populate(ADDRESS, len_bytes)?;
        let level = space.mm().translate(ADDRESS + len_bytes / 2).map(|found| found.level);
        if level != Some(Level::Pmd) {
            return Err(Failure::new(format!("the file is mapped by leaves of {level:?}")));
        }
        drop(file);
        Ok(Arc::new(Self { space, len_bytes, _owner: owner }))
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

    /// Pins at random: of one page, of 2 MiB, and of one page for long.
    pub fn rows(self: &Arc<Self>, nr_threads: usize) -> [Row; 3] {
        let name = |what| format!("pgmap: AddressSpace::pin{what} + drop, {nr_threads}T");
        let [one, range, long] = std::array::from_fn(|_| Arc::clone(self));
        let range_pages = Level::Pmd.nr_pages();
        [
            Row::new(name(""), move |worker| one.pins(worker, 1, GupFlags::NONE)),
            Row::new(name(" of 2 MiB"), move |worker| {
                range.pins(worker, range_pages, GupFlags::NONE)
            }),
            Row::new(name(" for long"), move |worker| long.pins(worker, 1, GupFlags::LONGTERM)),
        ]
    }
}
