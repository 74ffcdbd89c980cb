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
mod copy;
mod cpu;
mod error;
mod faults;
pub(crate) mod inner;
mod lane;
mod lease;
mod pinned;
mod run;
mod slot;
mod tail;
mod view;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock, PoisonError, Weak};
use std::time::Duration;

pub use pgmap_mm::fault::FaultError;
use pgmap_mm::gup::{Ask, Gup, GupError, GupFlags, LongtermRefusal, SegmentParts};
pub use pgmap_mm::gup::{Dirty, LongSegment, ReadSection, ShortSegment};
use pgmap_mm::level::{Level, PAGE_BYTES};
pub use pgmap_mm::mm::{InvalidateSubscriber, MapError, Mm, SubscriptionId, Unmapped};
use pgmap_mm::mm::{MapRequest, Placed, TableMemory};
use pgmap_mm::pin::ClientSide;
use pgmap_mm::prot::Prot;
pub use pgmap_mm::vma::AreaBacking;
use pgmap_os::sync::Mutex;
use pgmap_os::{Reservation, zeroed_words, zeroed_words_in_huge_pages};

use self::backing::FileBacking;
pub use self::cpu::CPU_MAPPING_TAG;
use self::cpu::CpuView;
pub use self::error::SpaceError;
use self::faults::FaultService;
pub use self::faults::{FaultAnswer, FaultHandler, TouchFault};
use self::inner::SpaceInner;
pub use self::lane::SpaceLane;
use self::pinned::{Asked, PagesHold};
pub use self::pinned::{MemorySegment, PinnedPages};
use self::run::Runs;
pub use self::slot::{MemorySlot, SlotBytes};
pub use self::tail::Tails;
use self::view::Views;
use crate::client::Client;
use crate::client::events::{Keeping, MappedSpace};
use crate::client::file::File;
use crate::client::lanes;
use crate::client::side::ProcessSide;
use crate::error::Error;
use crate::wire::Event;

/// Memory for page tables that is taken as it is written to. Tables of 4 KiB entries lie in huge
/// pages where the system has some, so that a walk does not wait for the walk of the table's own
/// address.
pub const TABLE_MEMORY: TableMemory =
    TableMemory { sparse: zeroed_words, dense: zeroed_words_in_huge_pages };

/// An address space whose areas are files of one pool.
#[derive(Debug)]
pub struct AddressSpace {
    /// Stops before all else is taken apart.
    faults: Option<FaultService>,
    client: Client,
    inner: Arc<SpaceInner>,
    /// Set while events must be applied as they come.
    keeping: OnceLock<Keeping>,
    /// The files that are mapped, by number, so that two areas of one file are one backing.
    files: Mutex<HashMap<u64, Weak<FileBacking>>>,
    /// Where ranges of it are contiguous in the process.
    views: Arc<Views>,
    runs: Runs,
    /// The frames of further pagemaps, which are devices of their own.
    devices: Range<u64>,
}

/// What came of a pin that took a call. Plain values: a hold with a destructor would come back
/// through memory, and force what was held in line through it too.
enum PinOutcome<'s> {
    Parts(SegmentParts<'s, ProcessSide>),
    Pages(Box<PinnedPages<'s>>),
    Failed(Box<SpaceError>),
}

impl AddressSpace {
    /// A device's address space (guest-physical, IOVA): `len_bytes` bytes from `address` on, with a
    /// page table only.
    ///
    /// # Errors
    /// [`SpaceError::BadSpace`] for an invalid range; [`SpaceError::File`] when the owner, who is
    /// asked once how large the pool is, is gone.
    pub fn for_device(client: &Client, address: u64, len_bytes: u64) -> Result<Self, SpaceError> {
        let layout = client.inner.pinner.side().vmemmap().layout();
        let mm = Mm::for_device_in(TABLE_MEMORY, layout, address, len_bytes)
            .ok_or(SpaceError::BadSpace { address, len_bytes })?;
        Self::new(client, mm, None)
    }

    /// The process's own addresses: `len_bytes` of them, a multiple of the page size, at a multiple
    /// of 1 GiB. What is mapped in the space appears at the same addresses to every instruction of
    /// the process.
    ///
    /// The frames are held while they are mapped (`pgmap who` shows the holds under the tag
    /// [`CPU_MAPPING_TAG`]). When an owner requests reclaim, a thread of the client takes the
    /// mapping away at once, whatever the program does; then copies by [`read_at`](Self::read_at)
    /// and [`write_at`](Self::write_at) fail with the address, and raw touches go to the handler
    /// that [`on_touch_fault`](Self::on_touch_fault) has set, or are SIGSEGV. A touch never reaches
    /// another file's bytes. A forked child has neither the mappings nor the holds.
    ///
    /// Raw stores are not seen by [`Mm::dirty`]. What the kernel touches for a system call is
    /// `EFAULT` where nothing is mapped yet. Files of
    /// [`RAW`](pgmap_mm::descriptor::FolioFlags::RAW) frames cannot be held, and so not be mapped.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pgmap::{AddressSpace, FolioSize, Owner, Placed, Pool, PoolOptions, Prot};
    ///
    /// let owner = Owner::start(Pool::create(&PoolOptions::anonymous(64 << 20))?)?;
    /// let client = owner.client()?;
    /// let mut writer = client.create("ram", 4 << 20, FolioSize::Pages2M)?;
    /// writer.write_all_at(4096, b"guest")?;
    /// writer.commit()?;
    ///
    /// let space = AddressSpace::for_process(&client, 1 << 30)?;
    /// let file = client.open("ram")?;
    /// let at = space.map(&file, 0, 4 << 20, Placed::Anywhere, Prot::READ_WRITE)?;
    /// let mut bytes = [0; 5];
    /// space.read_at(at + 4096, &mut bytes)?;
    /// assert_eq!(&bytes, b"guest");
    ///
    /// // Any process may cut the file. This one need not do anything.
    /// owner.client()?.truncate("ram", 4096, Duration::from_secs(10))?;
    /// let gone = space.read_at(at + 4096, &mut bytes).unwrap_err();
    /// assert_eq!(gone.errno(), 14);
    /// space.read_at(at, &mut bytes)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`SpaceError::BadSpace`] for an invalid length, [`SpaceError::File`] when addresses, a
    /// thread or a handler of SIGSEGV cannot be had, or the owner is gone.
    pub fn for_process(client: &Client, len_bytes: u64) -> Result<Self, SpaceError> {
        let bad = SpaceError::BadSpace { address: 0, len_bytes };
        let len = usize::try_from(len_bytes).map_err(|_| bad)?;
        if len == 0 || !len_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(SpaceError::BadSpace { address: 0, len_bytes });
        }
        let reserved = Reservation::anywhere(len, Level::Pud.size_bytes() as usize);
        Self::in_process(client, reserved.map_err(Error::from)?)
    }

    /// As [`for_process`](Self::for_process), from `address` on, where nothing of the process may
    /// be.
    ///
    /// # Errors
    /// As [`for_process`](Self::for_process); `EEXIST` when something is there.
    pub fn for_process_at(
        client: &Client,
        address: u64,
        len_bytes: u64,
    ) -> Result<Self, SpaceError> {
        let is_good = len_bytes != 0 && (address | len_bytes).is_multiple_of(PAGE_BYTES);
        let reserved = match (usize::try_from(address), usize::try_from(len_bytes)) {
            (Ok(address), Ok(len)) if is_good => Reservation::at(address, len),
            _ => return Err(SpaceError::BadSpace { address, len_bytes }),
        };
        Self::in_process(client, reserved.map_err(Error::from)?)
    }

    fn in_process(client: &Client, reserved: Reservation) -> Result<Self, SpaceError> {
        let addresses = reserved.addresses();
        let (address, len_bytes) = (addresses.start as u64, addresses.len() as u64);
        let layout = client.inner.pinner.side().vmemmap().layout();
        let cpu = Arc::new(CpuView::new(client, reserved));
        let mm = Mm::for_process(TABLE_MEMORY, layout, address, len_bytes, cpu.clone())
            .ok_or(SpaceError::BadSpace { address, len_bytes })?;
        let mut space = Self::new(client, mm, Some(cpu))?;
        space.keep()?;
        let inner = Arc::clone(&space.inner);
        space.faults = Some(FaultService::start(client, addresses, inner)?);
        Ok(space)
    }

    fn new(client: &Client, mm: Mm, cpu: Option<Arc<CpuView>>) -> Result<Self, SpaceError> {
        // Behind the pool's own frames, and before those of further backings.
        let own_bytes = client.backings()?.first().map_or(0, |data| data.size_bytes);
        let devices = own_bytes.div_ceil(PAGE_BYTES)..client.pool_bytes() / PAGE_BYTES;
        let views = Arc::new(Views::default());
        let inner = Arc::new(SpaceInner::new(mm, cpu, Arc::clone(&views)));
        let weak: Weak<SpaceInner> = Arc::downgrade(&inner);
        client.inner.events.add(weak);
        Ok(Self {
            faults: None,
            client: client.clone(),
            inner,
            keeping: OnceLock::new(),
            files: Mutex::default(),
            views,
            runs: Runs::default(),
            devices,
        })
    }

    /// Has events applied as they come, from now on.
    fn keep(&self) -> Result<(), Error> {
        if self.keeping.get().is_none() {
            let keeping = self.client.keep_events()?;
            // Another thread may have been first; then this wish ends here.
            drop(self.keeping.set(keeping));
        }
        Ok(())
    }

    /// The address space itself: areas, translations, faults, what was written.
    #[must_use]
    pub fn mm(&self) -> &Mm {
        &self.inner.mm
    }

    /// Has `handler` decide on raw touches that find nothing; only a process address space has
    /// such. It takes the place of an earlier one.
    pub fn on_touch_fault(
        &self,
        handler: impl Fn(&TouchFault) -> FaultAnswer + Send + Sync + 'static,
    ) {
        self.inner.set_handler(Some(Arc::new(handler)));
    }

    /// The client whose files are mapped.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// What lies behind areas of `file`: to be mapped with [`Mm::map`]. A file that may never be
    /// pinned is `Raw`, one of P2pDma memory `PeerToPeer`, a pagemap's device file `DeviceDax`, any
    /// other `FsDax`.
    ///
    /// # Errors
    /// [`Refusal::Stale`](crate::Refusal::Stale) when the file is gone.
    pub fn backing(&self, file: &File<'_>) -> Result<Arc<dyn AreaBacking>, Error> {
        let known = self.files().get(&file.id()).and_then(Weak::upgrade);
        if let Some(known) = known {
            known.refresh();
            if known.is_alive() {
                return Ok(known);
            }
        }
        let read = Arc::new(FileBacking::read(&self.client, file.id(), &self.devices)?);
        let mut files = self.files();
        files.retain(|_, file| file.strong_count() > 0);
        // Another thread may have been first.
        let known = files.get(&file.id()).and_then(Weak::upgrade).filter(|known| known.is_alive());
        if let Some(known) = known {
            return Ok(known);
        }
        files.insert(file.id(), Arc::downgrade(&read));
        Ok(read)
    }

    /// Maps `len_bytes` of a file from `offset` on; returns the address. In a device address space
    /// pages come with faults, [`populate`](Self::populate) or the first pin; in a process address
    /// space they are there at once, as far as the file reaches.
    ///
    /// # Errors
    /// [`SpaceError::File`] when the file is gone (`ESTALE`), [`SpaceError::Map`] as [`Mm::map`]. A
    /// process address space takes one of the process's mappings (`vm.max_map_count` of them) for
    /// each range of frames in a row, and is refused with `ENOMEM` when there are no more.
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
        Ok(self.inner.mm.map(&request)?)
    }

    /// As [`Mm::unmap`]. Pins stand.
    ///
    /// # Errors
    /// As [`Mm::unmap`].
    pub fn unmap(&self, address: u64, len_bytes: u64) -> Result<Unmapped, MapError> {
        let ended = self.inner.mm.unmap(address, len_bytes);
        self.inner.restore();
        ended
    }

    /// As [`Mm::protect`]. Pins stand.
    ///
    /// # Errors
    /// As [`Mm::protect`].
    pub fn protect(&self, address: u64, len_bytes: u64, prot: Prot) -> Result<Unmapped, MapError> {
        self.inner.mm.protect(address, len_bytes, prot)
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
        self.inner.mm.remap(address, old_bytes, new_bytes, place)
    }

    /// As [`Mm::populate`].
    ///
    /// # Errors
    /// As [`Mm::populate`].
    pub fn populate(&self, address: u64, len_bytes: u64) -> Result<(), FaultError> {
        self.inner.mm.populate(address, len_bytes)
    }

    /// Holds what lies at `nr_pages` pages from `address` on, as far as it can be had, as
    /// [`Gup::pin`]. Where a long-term hold needs the owner's consent, the owner is asked.
    ///
    /// # Errors
    /// [`SpaceError::Gup`] when not even the first page could be held: see [`pgmap_mm::gup`].
    #[inline(always)]
    pub fn pin(
        &self,
        address: u64,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Result<PinnedPages<'_>, SpaceError> {
        let ask = Ask { address, nr_pages, flags };
        // No closure around it, which might be called.
        let parts = match lanes::take_current(&self.client.inner) {
            Some(lane) => Gup::pin_fast_leaf_in(&self.inner.mm, lane, ask, lanes::rest),
            None => None,
        };
        let parts = match parts {
            Some(parts) => parts,
            None => match self.pin_in_lane(ask) {
                PinOutcome::Parts(parts) => parts,
                PinOutcome::Pages(pages) => return Ok(*pages),
                PinOutcome::Failed(error) => return Err(*error),
            },
        };
        let range = parts.into_range(&self.inner.mm, flags.contains(GupFlags::WRITE));
        Ok(self.pinned(address, flags, PagesHold::Pages(range)))
    }

    /// [`pin`](Self::pin) where a short-term hold of one leaf of 2 MiB was not to be had at once.
    #[inline(never)]
    fn pin_in_lane(&self, ask: Ask) -> PinOutcome<'_> {
        let parts = lanes::take_current(&self.client.inner)
            .and_then(|lane| Gup::pin_fast_in(&self.inner.mm, lane, ask, lanes::rest));
        match parts {
            Some(parts) => PinOutcome::Parts(parts),
            None => match self.pin_slow(ask) {
                Ok(pages) => PinOutcome::Pages(Box::new(pages)),
                Err(error) => PinOutcome::Failed(Box::new(error)),
            },
        }
    }

    /// [`pin`](Self::pin) where the fast path is not enough.
    #[cold]
    fn pin_slow(
        &self,
        Ask { address, nr_pages, flags }: Ask,
    ) -> Result<PinnedPages<'_>, SpaceError> {
        let result = lanes::with_lane(&self.client.inner, |lane| {
            // The layout of both is this client's.
            let gup = Gup::new(&self.inner.mm, lane).ok_or(GupError::Outside { address })?;
            gup.pin(address, nr_pages, flags)
        });
        match result {
            Ok(range) => Ok(self.pinned(address, flags, PagesHold::Pages(range))),
            Err(GupError::Longterm { refusal: LongtermRefusal::Unsupported, .. }) => {
                self.lease(address, nr_pages, flags)
            }
            Err(error) => Err(error.into()),
        }
    }

    #[inline(always)]
    fn pinned<'s>(&'s self, address: u64, flags: GupFlags, held: PagesHold<'s>) -> PinnedPages<'s> {
        PinnedPages { client: &self.client, asked: Asked::new(address, flags), held }
    }

    /// Opens a section in which many addresses are translated for the price of one hold.
    ///
    /// A frame's bytes lie in the pool at its [`byte_range`](pgmap_mm::pfn::PfnRange::byte_range),
    /// and the pool lies at [`Client::pool_address`]:
    /// ```
    /// # use pgmap::mm::mm::Placed;
    /// # use pgmap::mm::prot::Prot;
    /// # use pgmap::space::AddressSpace;
    /// # use pgmap::{FolioSize, Owner, Pool, PoolOptions};
    /// # let owner = Owner::start(Pool::create(&PoolOptions::anonymous(64 << 20))?)?;
    /// # let client = owner.client()?;
    /// # let mut writer = client.create("ram", 4096, FolioSize::Pages4K)?;
    /// # writer.write_all_at(0, b"guest")?;
    /// # writer.commit()?;
    /// let space = AddressSpace::for_device(&client, 0, 1 << 30)?;
    /// space.map(&client.open("ram")?, 0, 4096, Placed::At(0), Prot::READ)?;
    /// space.populate(0, 4096)?;
    ///
    /// let section = space.read_section()?;
    /// let found = section.translate(2).ok_or("populated, and gone")?;
    /// let offset = found.run().byte_range().start as usize + 2 % 4096;
    /// // Others may write at the same time, so no reference is made.
    /// let byte = unsafe { client.pool_address().0.add(offset).read_volatile() };
    /// assert_eq!(byte, b'e');
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    /// A section keeps all frames from being reused while it is open, so close it soon.
    ///
    /// # Errors
    /// [`SpaceError::Gup`] as [`ReadSection::open`].
    pub fn read_section(&self) -> Result<ReadSection<'_, ProcessSide>, SpaceError> {
        let opened = lanes::with_lane(&self.client.inner, |lane| {
            ReadSection::open(&self.inner.mm, lane).map_err(GupError::Hold)
        });
        Ok(opened?)
    }

    /// Tells `subscriber` from now on of translations that end, as [`Mm::on_invalidate`]: by this
    /// process's own changes, by events, which a thread of the client takes as they come from now
    /// on, and where nothing here holds the frames, a moment after they have changed hands: that
    /// thread looks every 20 ms, or [`refresh`](Self::refresh) at once. It may be notified of pages
    /// that a file has kept, when the extent around them has changed. A subscriber must not drop
    /// address spaces.
    ///
    /// So a device that caches translations holds what it caches, by [`pin`](Self::pin) with
    /// `DEVICE`. A truncate then notifies it, waits until it has let go, and names it at the
    /// deadline. A change of this process's own says who has not answered:
    /// [`AckTicket::wait`](pgmap_mm::mm::AckTicket::wait).
    pub fn on_invalidate(&self, subscriber: Arc<dyn InvalidateSubscriber>) -> SubscriptionId {
        if let Err(error) = self.keep() {
            tracing::error!(%error, "events are applied only when the program asks for them");
        }
        let id = self.inner.mm.on_invalidate(subscriber);
        self.client.wake_keeper();
        id
    }

    /// Tells the subscriber no more.
    pub fn unsubscribe(&self, id: SubscriptionId) {
        self.inner.mm.unsubscribe(id);
    }

    /// Ends the translations that an event of the client is about: reclaim requested, memory
    /// failed, or leased and recalled. Returns `None` for an event about anything else. Every
    /// address space of a client is notified of each event before the program is, so this is for
    /// events from elsewhere.
    ///
    /// Not to be called by a holder of the pool while the owner asks it.
    pub fn apply(&self, event: &Event) -> Option<Unmapped> {
        self.inner.apply(event)
    }

    /// The client's next event, and what it ended here: nothing, where a look at the life words
    /// found the change first. Subscribers were notified of that, and it has a ticket of its own.
    ///
    /// # Errors
    /// As [`Client::next_event`].
    pub fn next_event(
        &self,
        timeout: Duration,
    ) -> Result<Option<(Event, Option<Unmapped>)>, Error> {
        let applied = self.client.next_applied(timeout)?;
        Ok(applied.map(|applied| {
            let mine = applied.ended.into_iter().find(|(id, _)| *id == self.inner.id());
            (applied.event, mine.map(|(_, ended)| ended))
        }))
    }

    /// Looks at every mapped file and ends translations to frames that are its no more. Owners send
    /// events to holders only; whoever caches translations without holding calls this from time to
    /// time. A pin needs it never.
    pub fn refresh(&self) -> Vec<Unmapped> {
        let files: Vec<_> = self.files().values().filter_map(Weak::upgrade).collect();
        let lost = files.iter().flat_map(|file| file.refresh());
        let mut ended: Vec<_> = lost.map(|run| self.inner.mm.invalidate(run)).collect();
        if self.inner.cpu.is_none() {
            // What a file lost before it was read again for another reason.
            ended.push(self.inner.end_stale(self.client.inner.pinner.side().vmemmap()));
        }
        ended.retain(|ended| ended.nr_pages > 0);
        ended
    }

    fn files(&self) -> pgmap_os::sync::MutexGuard<'_, HashMap<u64, Weak<FileBacking>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        // First nobody answers touches any more; a thread that touches now is the program's bug.
        drop(self.faults.take());
        if let Some(cpu) = &self.inner.cpu {
            cpu.close();
        }
        drop(self.keeping.take());
    }
}
