//! Address spaces over the files of a pool: map files at addresses, pin by address.
//!
//! An [`AddressSpace`] is a page model's [`Mm`] whose areas are files of one [`Client`]. What other
//! processes do to those files never shows as wrong bytes: a translation that went stale fails the
//! check of its life word, and the slow path repairs it or says why there is nothing any more.
//!
//! ```
//! use pgmap::mm::gup::GupFlags;
//! use pgmap::mm::mm::Placed;
//! use pgmap::mm::prot::Prot;
//! use pgmap::space::AddressSpace;
//! use pgmap::{FolioSize, Owner, Pool, PoolOptions};
//!
//! let owner = Owner::start(Pool::create(&PoolOptions::anonymous(64 << 20))?)?;
//! let client = owner.client()?;
//! let mut writer = client.create("ram", 4 << 20, FolioSize::Pages2M)?;
//! writer.write_all_at(4096, b"guest")?;
//! writer.commit()?;
//!
//! let space = AddressSpace::for_device(&client, 0, 1 << 30)?; // guest-physical addresses
//! let file = client.open("ram")?;
//! let at = Placed::At(0x1000_0000);
//! space.map(&file, 0, 4 << 20, at, Prot::READ_WRITE)?;
//! let pinned = space.pin(0x1000_1000, 1, GupFlags::NONE)?;
//! let mut bytes = [0; 5];
//! pinned.read_at(0, &mut bytes)?;
//! assert_eq!(&bytes, b"guest");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod backing;
mod error;
mod lane;
mod lease;
mod pinned;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use pgmap_mm::fault::FaultError;
use pgmap_mm::gup::{Gup, GupError, GupFlags, LongtermRefusal, ReadSection};
use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::mm::{
    InvalidateSubscriber, MapError, MapRequest, Mm, Placed, SubscriptionId, Unmapped,
};
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::pin::ClientSide;
use pgmap_mm::prot::Prot;
use pgmap_mm::vma::Backing;
use pgmap_os::zeroed_words;

use self::backing::FileBacking;
pub use self::error::SpaceError;
use self::pinned::Held;
pub use self::pinned::{MemorySegment, PinnedPages};
use crate::client::Client;
use crate::client::file::File;
use crate::client::side::ProcessSide;
use crate::error::Error;
use crate::wire::Event;

/// An address space whose areas are files of one pool.
#[derive(Debug)]
pub struct AddressSpace {
    client: Client,
    mm: Mm,
    /// The files that are mapped, by number, so that two areas of one file are one backing.
    files: Mutex<HashMap<u64, Weak<FileBacking>>>,
    /// The frame where files end and devices begin.
    files_end: u64,
}

impl AddressSpace {
    /// A device's address space (guest-physical, IOVA): `len_bytes` bytes from `address` on, with a
    /// page table only.
    ///
    /// # Errors
    /// [`SpaceError::BadSpace`] for addresses that are none; [`SpaceError::File`] when the owner,
    /// who is asked once how large the pool is, is gone.
    pub fn for_device(client: &Client, address: u64, len_bytes: u64) -> Result<Self, SpaceError> {
        let layout = client.inner.pinner.side().vmemmap().layout();
        let mm = Mm::for_device_in(zeroed_words, layout, address, len_bytes)
            .ok_or(SpaceError::BadSpace { address, len_bytes })?;
        let files_end = client.pool_stat()?.size_bytes.div_ceil(PAGE_BYTES);
        Ok(Self { client: client.clone(), mm, files: Mutex::default(), files_end })
    }

    /// The address space itself: areas, translations, faults, what was written.
    #[must_use]
    pub const fn mm(&self) -> &Mm {
        &self.mm
    }

    /// The client whose files are mapped.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// What lies behind areas of `file`: to be mapped with [`Mm::map`]. A file that may never be
    /// pinned is `Raw`, a pagemap's device file `DeviceDax`, any other `FsDax`.
    ///
    /// # Errors
    /// [`Refusal::Stale`](crate::Refusal::Stale) when the file is gone.
    pub fn backing(&self, file: &File<'_>) -> Result<Arc<dyn Backing>, Error> {
        let known = self.files().get(&file.id()).and_then(Weak::upgrade);
        if let Some(known) = known {
            known.refresh();
            if known.is_alive() {
                return Ok(known);
            }
        }
        let read = Arc::new(FileBacking::read(&self.client, file.id(), self.files_end)?);
        let mut files = self.files();
        files.retain(|_, file| file.strong_count() > 0);
        files.insert(file.id(), Arc::downgrade(&read));
        Ok(read)
    }

    /// Maps `len_bytes` of a file from `offset` on; returns the address. Pages come with faults,
    /// [`populate`](Self::populate) or the first pin.
    ///
    /// # Errors
    /// [`SpaceError::File`] when the file is gone, [`SpaceError::Map`] as [`Mm::map`].
    pub fn map(
        &self,
        file: &File<'_>,
        offset: u64,
        len_bytes: u64,
        place: Placed,
        prot: Prot,
    ) -> Result<u64, SpaceError> {
        if !offset.is_multiple_of(PAGE_BYTES) {
            return Err(MapError::Misaligned { value: offset }.into());
        }
        let request = MapRequest {
            place,
            ..MapRequest::new(self.backing(file)?, len_bytes)
                .from_file_page(offset / PAGE_BYTES)
                .with_prot(prot)
        };
        Ok(self.mm.map(&request)?)
    }

    /// As [`Mm::unmap`]. Pins stand.
    ///
    /// # Errors
    /// As [`Mm::unmap`].
    pub fn unmap(&self, address: u64, len_bytes: u64) -> Result<Unmapped, MapError> {
        self.mm.unmap(address, len_bytes)
    }

    /// As [`Mm::protect`]. Pins stand.
    ///
    /// # Errors
    /// As [`Mm::protect`].
    pub fn protect(&self, address: u64, len_bytes: u64, prot: Prot) -> Result<Unmapped, MapError> {
        self.mm.protect(address, len_bytes, prot)
    }

    /// As [`Mm::remap`]. Pins stand.
    ///
    /// # Errors
    /// As [`Mm::remap`].
    pub fn remap(
        &self,
        address: u64,
        old_bytes: u64,
        new_bytes: u64,
        place: Placed,
    ) -> Result<u64, MapError> {
        self.mm.remap(address, old_bytes, new_bytes, place)
    }

    /// As [`Mm::populate`].
    ///
    /// # Errors
    /// As [`Mm::populate`].
    pub fn populate(&self, address: u64, len_bytes: u64) -> Result<(), FaultError> {
        self.mm.populate(address, len_bytes)
    }

    /// Holds what lies at `nr_pages` pages from `address` on, as far as it can be had, as
    /// [`Gup::pin`]. Where a long-term hold needs the owner's consent, the owner is asked.
    ///
    /// # Errors
    /// [`SpaceError::Gup`] when not even the first page could be held: see [`pgmap_mm::gup`].
    #[inline]
    pub fn pin(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Result<PinnedPages<'_>, SpaceError> {
        let result = lane::with_lane(&self.client.inner, |lane| {
            // The layout of both is this client's.
            let gup = Gup::new(&self.mm, lane).ok_or(GupError::Outside { address })?;
            gup.pin(address, nr_pages, flags)
        });
        match result {
            Ok(range) => Ok(self.pinned(address, flags, Held::Pages(range))),
            Err(GupError::Longterm { refusal: LongtermRefusal::Unsupported, .. }) => {
                self.lease(address, nr_pages, flags)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn pinned<'s>(&'s self, address: u64, flags: GupFlags, held: Held<'s>) -> PinnedPages<'s> {
        let is_for_writing = flags.contains(GupFlags::WRITE);
        let address = address - address % PAGE_BYTES;
        PinnedPages { client: &self.client, address, is_for_writing, held }
    }

    /// Opens a section in which many addresses are translated for the price of one hold.
    ///
    /// # Errors
    /// [`SpaceError::Gup`] as [`ReadSection::open`].
    pub fn read_section(&self) -> Result<ReadSection<'_, ProcessSide>, SpaceError> {
        let opened = lane::with_lane(&self.client.inner, |lane| {
            ReadSection::open(&self.mm, lane).map_err(GupError::Hold)
        });
        Ok(opened?)
    }

    /// Tells `subscriber` from now on of translations that end, as [`Mm::on_invalidate`]: by this
    /// process's own changes, by [`apply`](Self::apply) and by [`refresh`](Self::refresh).
    pub fn on_invalidate(&self, subscriber: Arc<dyn InvalidateSubscriber>) -> SubscriptionId {
        self.mm.on_invalidate(subscriber)
    }

    /// Tells the subscriber no more.
    pub fn unsubscribe(&self, id: SubscriptionId) {
        self.mm.unsubscribe(id);
    }

    /// Ends the translations that an event of the client is about: frames wanted back, failed, or
    /// leased and recalled. None for an event about anything else.
    ///
    /// Not to be called by a holder of the pool while the owner asks it.
    pub fn apply(&self, event: &Event) -> Option<Unmapped> {
        let run = match *event {
            Event::WantedBack { first_pfn, nr_pages, .. }
            | Event::LeaseRecalled { first_pfn, nr_pages, .. } => {
                PfnRange::new(first_pfn, nr_pages)?
            }
            Event::MemoryFailure { pfn, .. } => PfnRange::new(pfn, 1)?,
        };
        Some(self.mm.invalidate(run))
    }

    /// The client's next event, applied. Events are told once: where several address spaces are of
    /// one client, take them with [`Client::next_event`] and [`apply`](Self::apply) them to each.
    ///
    /// # Errors
    /// As [`Client::next_event`].
    pub fn next_event(
        &self,
        timeout: Duration,
    ) -> Result<Option<(Event, Option<Unmapped>)>, Error> {
        let event = self.client.next_event(timeout)?;
        Ok(event.map(|event| {
            let ended = self.apply(&event);
            (event, ended)
        }))
    }

    /// Looks at every mapped file and ends translations to frames that are its no more. Owners send
    /// events to holders only; whoever caches translations without holding calls this from time to
    /// time. A pin needs it never.
    pub fn refresh(&self) -> Vec<Unmapped> {
        let files: Vec<_> = self.files().values().filter_map(Weak::upgrade).collect();
        let lost = files.iter().flat_map(|file| file.refresh());
        lost.map(|run| self.mm.invalidate(run)).filter(|ended| ended.nr_pages > 0).collect()
    }

    fn files(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Weak<FileBacking>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
