//! The guard: guest memory as it was when each block of it was first touched.

use std::sync::{Arc, OnceLock};

use pgmap::mm::gup::{Dirty, GupFlags};
use pgmap::mm::level::PAGE_BYTES;
use pgmap::mm::prot::Prot;
use pgmap::space::{AddressSpace, PinnedPages};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryBackend};

use crate::region::GuestRegion;

/// What one touch pins, at most: the aligned block of this size around the address.
const BLOCK_BYTES: u64 = 2 << 20;

/// An address space as vm-memory's `GuestAddressSpace`. A guard costs one small allocation, however
/// many areas there are.
///
/// ```
/// use pgmap::mm::mm::Placed;
/// use pgmap::mm::prot::Prot;
/// use pgmap::{FolioSize, Owner, Pool, PoolOptions};
/// use pgmap_vm_memory::{AddressSpace, GuestSpace};
/// use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
///
/// let owner = Owner::start(Pool::create(&PoolOptions::anonymous(16 << 20))?)?;
/// let client = owner.client()?;
/// client.create("ram", 1 << 20, FolioSize::BestFit)?.commit()?;
/// let space = AddressSpace::for_device(&client, 0, 1 << 32)?;
/// space.map(&client.open("ram")?, 0, 1 << 20, Placed::At(0x1000), Prot::READ_WRITE)?;
///
/// let guest = GuestSpace::new(&space);
/// let memory = guest.memory();
/// memory.write_obj(7_u32, GuestAddress(0x2000))?;
/// client.unlink("ram")?; // the guard holds what it touched
/// assert_eq!(memory.read_obj::<u32>(GuestAddress(0x2000))?, 7);
/// drop(memory);
/// assert!(guest.memory().read_obj::<u32>(GuestAddress(0x2000)).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A backend that wants `'static` (a thread, a vhost-user device) gets it where the guest's memory lives as
/// long as the program does: `GuestSpace::new(Box::leak(Box::new(space)))`.
#[derive(Clone, Copy, Debug)]
pub struct GuestSpace<'s> {
    space: &'s AddressSpace,
}

impl<'s> GuestSpace<'s> {
    /// The guest memory in `space`.
    #[must_use]
    pub const fn new(space: &'s AddressSpace) -> Self {
        Self { space }
    }
}

impl<'s> GuestAddressSpace for GuestSpace<'s> {
    type M = GuestSnapshot<'s>;
    type T = Arc<GuestSnapshot<'s>>;

    fn memory(&self) -> Self::T {
        Arc::new(GuestSnapshot { space: self.space, first: OnceLock::new() })
    }
}

/// Guest memory, held from the first touch of each block on.
#[derive(Debug)]
pub struct GuestSnapshot<'s> {
    space: &'s AddressSpace,
    first: OnceLock<Box<Block<'s>>>,
}

/// What one touch pinned, and the block that was touched next. Blocks are only ever added, so
/// references to their regions are good for as long as the snapshot.
#[derive(Debug)]
struct Block<'s> {
    regions: Vec<GuestRegion<'s>>,
    pinned: Option<PinnedPages<'s>>,
    next: OnceLock<Box<Self>>,
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        if let Some(pinned) = self.pinned.take() {
            // Whoever wrote through vm-memory marked the bitmap.
            pinned.unpin(Dirty::No);
        }
    }
}

impl Drop for GuestSnapshot<'_> {
    fn drop(&mut self) {
        // One after the other: dropping the first with all behind it would take stack for each.
        let mut next = self.first.take();
        while let Some(mut block) = next {
            next = block.next.take();
        }
    }
}

impl<'s> GuestSnapshot<'s> {
    fn regions(&self) -> impl Iterator<Item = &GuestRegion<'s>> {
        let blocks = std::iter::successors(self.first.get(), |block| block.next.get());
        blocks.flat_map(|block| &block.regions)
    }

    fn known(&self, address: u64) -> Option<&GuestRegion<'s>> {
        self.regions().find(|region| region.start() <= address && address < region.end())
    }

    /// The region with this address, pinned now if it was not.
    fn touch(&self, address: u64) -> Option<&GuestRegion<'s>> {
        if let Some(region) = self.known(address) {
            return Some(region);
        }
        let mut block = Box::new(self.pin_around(address)?);
        let mut place = &self.first;
        while let Err(back) = place.set(block) {
            block = back;
            // Set, or `set` would not have failed.
            place = &place.get()?.next;
        }
        // Another thread may have been first; then this gives its region, as any later look will.
        self.known(address)
    }

    /// Pins the block around the address as far as area, file and what is pinned already allow.
    fn pin_around(&self, address: u64) -> Option<Block<'s>> {
        let area = self.space.mm().area_at(address)?;
        if !area.prot.contains(Prot::READ_WRITE) {
            return None;
        }
        let page = address - address % PAGE_BYTES;
        let block = address - address % BLOCK_BYTES;
        let (mut low, mut high) = (block, block + BLOCK_BYTES);
        low = low.max(area.page * PAGE_BYTES);
        high = high.min(area.end() * PAGE_BYTES);
        for region in self.regions() {
            if region.end() <= address {
                low = low.max(region.end());
            } else {
                high = high.min(region.start());
            }
        }
        [low, page].into_iter().find_map(|from| self.pin_range(from, high, address))
    }

    /// Pins from `from` up to `to` as far as that goes; none when it does not reach `address`.
    fn pin_range(&self, from: u64, to: u64, address: u64) -> Option<Block<'s>> {
        let nr_pages = to.checked_sub(from)? / PAGE_BYTES;
        let pinned = self.space.pin(from, nr_pages, GupFlags::WRITE).ok()?;
        if address >= from + pinned.len_bytes() {
            return None;
        }
        let regions = pinned.segments().map(|segment| {
            let (address, len_bytes) = (segment.address, segment.len_bytes);
            GuestRegion::new(self.space, address, len_bytes, segment.pool_offset)
        });
        let regions = regions.collect();
        Some(Block { regions, pinned: Some(pinned), next: OnceLock::new() })
    }
}

impl<'s> GuestMemoryBackend for GuestSnapshot<'s> {
    type R = GuestRegion<'s>;

    fn find_region(&self, address: GuestAddress) -> Option<&Self::R> {
        self.touch(address.0)
    }

    /// Every region: touches every block that there is, so use it for small spaces only.
    fn iter(&self) -> impl Iterator<Item = &Self::R> {
        for area in self.space.mm().areas() {
            let mut at = area.page * PAGE_BYTES;
            while at < area.end() * PAGE_BYTES {
                let next = self.touch(at).map_or(at + PAGE_BYTES, GuestRegion::end);
                at = next;
            }
        }
        let mut regions: Vec<_> = self.regions().collect();
        regions.sort_by_key(|region| region.start());
        regions.into_iter()
    }
}
