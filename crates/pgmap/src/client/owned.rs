//! Pinned bytes of a file, held beside the client instead of borrowing it.

use std::sync::Arc;

use pgmap_mm::pfn::PfnRange;
use pgmap_mm::pin::{Pin, PinParts};

use crate::client::Client;
use crate::client::keepers::Keeper;
use crate::client::pinned::{self, Part, Segment};
use crate::error::Error;

/// A [`FilePin`](crate::FilePin) that has a clone of its client: it can be kept, sent and dropped
/// anywhere, and keeps the client attached. What is true of a [`FilePin`](crate::FilePin) is true
/// of it.
///
/// ```
/// # use pgmap::{FolioSize, Owner, Pool, PoolOptions};
/// # let owner = Owner::start(Pool::create(&PoolOptions::anonymous(4 << 20))?)?;
/// # let client = owner.client()?;
/// # client.create("block", 5, FolioSize::BestFit)?.commit()?;
/// let pinned = client.get_owned("block")?;
/// drop(client);
/// let reader = std::thread::spawn(move || pinned.to_vec());
/// assert_eq!(reader.join().unwrap()?, [0; 5]);
/// # Ok::<(), pgmap::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping a pin releases the frames"]
pub struct OwnedPin {
    keeper: Arc<Keeper>,
    skip_bytes: u64,
    len_bytes: u64,
    first: Option<OwnedHold>,
    more: Box<[OwnedHold]>,
}

/// A pin, or so many pages that read as zero.
type OwnedHold = Result<PinParts, u64>;

impl OwnedPin {
    /// A pin of `client` that holds `first` and then `more`, in file order.
    #[inline]
    pub(super) fn new(
        client: &Client,
        (skip_bytes, len_bytes): (u64, u64),
        first: Option<OwnedHold>,
        more: Box<[OwnedHold]>,
    ) -> Self {
        let held = first.as_ref().and_then(|first| first.as_ref().ok());
        Self { keeper: client.keeper(held), skip_bytes, len_bytes, first, more }
    }

    fn holds(&self) -> impl Iterator<Item = &OwnedHold> {
        self.first.iter().chain(&self.more)
    }

    /// The client that it is a pin of.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.keeper.client
    }

    /// Bytes pinned.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// As [`FilePin::segments`](crate::FilePin::segments).
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        pinned::segments_of(self.client(), self.parts())
    }

    fn parts(&self) -> impl Iterator<Item = Part> {
        let held = |hold: &OwnedHold| -> Result<PfnRange, u64> {
            hold.as_ref().map(PinParts::run).map_err(|&nr_pages| nr_pages)
        };
        pinned::parts_of(self.holds().map(held), self.skip_bytes, self.len_bytes)
    }

    /// As [`FilePin::read_at`](crate::FilePin::read_at).
    ///
    /// # Errors
    /// The same.
    pub fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<(), Error> {
        pinned::copy_out(self.client(), self.parts(), self.len_bytes, offset, target)
    }

    /// As [`FilePin::to_vec`](crate::FilePin::to_vec).
    ///
    /// # Errors
    /// The same.
    pub fn to_vec(&self) -> Result<Vec<u8>, Error> {
        pinned::to_vec(self.client(), self.parts(), self.len_bytes)
    }

    /// As [`FilePin::is_reclaim_requested`](crate::FilePin::is_reclaim_requested).
    #[must_use]
    pub fn is_reclaim_requested(&self) -> bool {
        let pinner = &self.client().inner.pinner;
        self.holds().flatten().any(|hold| hold.is_reclaim_requested(pinner))
    }
}

impl Drop for OwnedPin {
    #[inline]
    fn drop(&mut self) {
        if let Some(Ok(hold)) = self.first.take() {
            drop(Pin::from_parts(&self.keeper.client.inner.pinner, hold));
        }
        if !self.more.is_empty() {
            self.drop_more();
        }
    }
}

impl OwnedPin {
    /// Drops the holds of a pin in several extents.
    #[cold]
    fn drop_more(&mut self) {
        for hold in std::mem::take(&mut self.more).into_iter().flatten() {
            drop(Pin::from_parts(&self.keeper.client.inner.pinner, hold));
        }
    }
}
