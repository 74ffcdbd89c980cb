//! A thread's own lane for pins in one address space: the least work that pins anything by address.

use pgmap_mm::error::PinError;
use pgmap_mm::gup::{Gup, GupError, GupFlags, LongSegment, ShortSegment};
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::pin::Lane;

use super::{AddressSpace, SpaceError};
use crate::client::lanes;
use crate::client::side::ProcessSide;

/// A lane of the client's ledger that one thread keeps for pins in one address space.
///
/// [`AddressSpace::pin`] finds the calling thread's lane at each call and gives back a range of any
/// number of segments. A thread that pins pages of one leaf all the time takes a lane once, for a
/// third of the cost. Pins outlive their lane. A client has
/// [`MAX_LANES`](pgmap_mm::ledger::MAX_LANES) lanes at most: take one per thread.
///
/// ```
/// use pgmap::mm::gup::GupFlags;
/// use pgmap::mm::mm::Placed;
/// use pgmap::mm::prot::Prot;
/// use pgmap::space::AddressSpace;
/// use pgmap::{FolioSize, Owner, Pool, PoolOptions};
///
/// let owner = Owner::start(Pool::create(&PoolOptions::anonymous(64 << 20))?)?;
/// let client = owner.client()?;
/// client.create("ram", 4 << 20, FolioSize::Pages2M)?.commit()?;
/// let space = AddressSpace::for_device(&client, 0, 1 << 30)?;
/// space.map(&client.open("ram")?, 0, 4 << 20, Placed::At(0), Prot::READ_WRITE)?;
///
/// space.populate(0, 4 << 20)?;
///
/// let lane = space.lane()?;
/// for page in 0..1024 {
///     let pinned = lane.try_pin(page * 4096, 1, GupFlags::NONE).ok_or("see AddressSpace::pin")?;
///     // Others may write at the same time, so no reference is made.
///     let first = unsafe { lane.ptr(pinned.run()).read_volatile() };
///     assert_eq!(first, 0);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SpaceLane<'s> {
    space: &'s AddressSpace,
    lane: Lane<'s, ProcessSide>,
}

impl AddressSpace {
    /// Takes a lane for the calling thread's pins.
    ///
    /// # Errors
    /// [`PinError::NoLane`] in [`SpaceError::Gup`] when other threads have all lanes that can be
    /// kept; [`pin`](Self::pin) works then too.
    pub fn lane(&self) -> Result<SpaceLane<'_>, SpaceError> {
        let pinner = &self.client.inner.pinner;
        let lane = lanes::claim(pinner).map_err(GupError::Hold)?;
        if lane.is_shared() {
            // Other threads wait for it.
            let nr_lanes = pinner.nr_kept_lanes();
            return Err(GupError::Hold(PinError::NoLane { nr_lanes }).into());
        }
        Ok(SpaceLane { space: self, lane })
    }
}

impl<'s> SpaceLane<'s> {
    /// Holds `nr_pages` pages from `address` on for a short time, if they lie in one leaf of the
    /// page table and nothing has to be faulted in, repaired or asked for. `None` else: then
    /// [`AddressSpace::pin`] holds them, or says why it cannot be.
    ///
    /// Whoever writes to the pages marks them in [`Mm::dirty`](pgmap_mm::mm::Mm::dirty) before the
    /// hold ends.
    #[inline(always)]
    #[must_use]
    pub fn try_pin(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<ShortSegment<'s, ProcessSide>> {
        Gup::new(&self.space.inner.mm, &self.lane)?.fast_leaf(address, nr_pages, flags)
    }

    /// As [`try_pin`](Self::try_pin), for a long-term hold: in a long-term slot of the lane, else
    /// counted per folio. `None` also where the long-term policy has to be asked.
    #[inline(always)]
    #[must_use]
    pub fn try_pin_long(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Option<LongSegment<'s, ProcessSide>> {
        Gup::new(&self.space.inner.mm, &self.lane)?.fast_leaf_long(address, nr_pages, flags)
    }

    /// The first byte of a held run of frames, in this process.
    #[inline]
    #[must_use]
    pub fn ptr(&self, run: PfnRange) -> *mut u8 {
        // The backing hands out no frames outside the mapping. No unsafe to offset so.
        let base = self.space.client.inner.data.as_ptr();
        base.wrapping_add(run.byte_range().start as usize)
    }
}
