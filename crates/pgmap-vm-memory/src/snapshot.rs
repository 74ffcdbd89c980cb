//! The guard: guest memory as it was when each block of it was first touched.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pgmap::mm::level::PAGE_BYTES;
use pgmap::mm::prot::Prot;
use pgmap::space::AddressSpace;
use vm_memory::{
    AtomicAccess, ByteValued, Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend,
    GuestMemoryRegion, GuestMemoryResult, ReadVolatile,
};

use crate::region::{GuestRegion, Regions};

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
/// A backend that wants `'static` (a thread, a vhost-user device) gets it where the guest's memory
/// lives as long as the program does: `GuestSpace::new(Box::leak(Box::new(space)))`.
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
        Arc::new(GuestSnapshot { space: self.space, regions: Regions::new(self.space) })
    }
}

/// Guest memory, held from the first touch of each block on.
#[derive(Debug)]
pub struct GuestSnapshot<'s> {
    space: &'s AddressSpace,
    regions: Regions<'s>,
}

/// The calls of [`Bytes`] that write, for callers that have the guard itself: they refuse a hole of
/// a file before anything is written, or taken from a source. Code that is generic over the memory
/// cannot say that it writes (`docs/adr/0041-holes-under-a-guest.md`).
impl GuestSnapshot<'_> {
    /// As [`Bytes::write`].
    ///
    /// # Errors
    /// As [`Bytes::write`], and where a file has a hole.
    pub fn write(&self, buf: &[u8], addr: GuestAddress) -> GuestMemoryResult<usize> {
        self.regions.refuse_holes(addr.0, buf.len())?;
        Bytes::write(self, buf, addr)
    }

    /// As [`Bytes::write_slice`].
    ///
    /// # Errors
    /// As [`Bytes::write_slice`], and where a file has a hole.
    pub fn write_slice(&self, buf: &[u8], addr: GuestAddress) -> GuestMemoryResult<()> {
        self.regions.refuse_holes(addr.0, buf.len())?;
        Bytes::write_slice(self, buf, addr)
    }

    /// As [`Bytes::write_obj`].
    ///
    /// # Errors
    /// As [`Bytes::write_obj`], and where a file has a hole.
    pub fn write_obj<T: ByteValued>(&self, val: T, addr: GuestAddress) -> GuestMemoryResult<()> {
        self.regions.refuse_holes(addr.0, size_of::<T>())?;
        Bytes::write_obj(self, val, addr)
    }

    /// As [`Bytes::store`].
    ///
    /// # Errors
    /// As [`Bytes::store`], and where a file has a hole.
    pub fn store<T: AtomicAccess>(
        &self,
        val: T,
        addr: GuestAddress,
        order: Ordering,
    ) -> GuestMemoryResult<()> {
        self.regions.refuse_holes(addr.0, size_of::<T>())?;
        Bytes::store(self, val, addr, order)
    }

    /// As [`Bytes::read_volatile_from`].
    ///
    /// # Errors
    /// As [`Bytes::read_volatile_from`], and where a file has a hole.
    pub fn read_volatile_from<F: ReadVolatile>(
        &self,
        addr: GuestAddress,
        src: &mut F,
        count: usize,
    ) -> GuestMemoryResult<usize> {
        self.regions.refuse_holes(addr.0, count)?;
        Bytes::read_volatile_from(self, addr, src, count)
    }

    /// As [`Bytes::read_exact_volatile_from`].
    ///
    /// # Errors
    /// As [`Bytes::read_exact_volatile_from`], and where a file has a hole.
    pub fn read_exact_volatile_from<F: ReadVolatile>(
        &self,
        addr: GuestAddress,
        src: &mut F,
        count: usize,
    ) -> GuestMemoryResult<()> {
        self.regions.refuse_holes(addr.0, count)?;
        Bytes::read_exact_volatile_from(self, addr, src, count)
    }
}

impl<'s> GuestMemoryBackend for GuestSnapshot<'s> {
    type R = GuestRegion<'s>;

    fn find_region(&self, address: GuestAddress) -> Option<&Self::R> {
        self.regions.at(address.0)
    }

    /// Every region: looks at every area that there is, and holds nothing.
    fn iter(&self) -> impl Iterator<Item = &Self::R> {
        let areas = if self.space.is_forked() { Vec::new() } else { self.space.mm().areas() };
        for area in areas.iter().filter(|area| area.prot.contains(Prot::READ_WRITE)) {
            let (mut at, end) = (area.page * PAGE_BYTES, area.end() * PAGE_BYTES);
            // One area may have several: of an earlier look, and what was mapped around it since.
            while at < end
                && let Some(region) = self.regions.at(at)
            {
                at = region.start_addr().0 + region.len();
            }
        }
        self.regions.all().into_iter()
    }
}
