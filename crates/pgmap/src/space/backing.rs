//! A file of a pool as what lies behind an area.
//!
//! # States
//!
//! ```text
//!   current ── life word differs, page count shrank ──▶ read again ──▶ current
//!                                                           └──▶ gone, for good
//! ```
//!
//! # Who may touch what
//!
//! The lock is held while the index is read again and, when the file is not where it was, while the
//! owner is asked. The address space's lock may be held around it, never the other way round.
//!
//! # Lost races
//!
//! *Fault against truncate.* The owner changes life words first and the entry then. A fault in
//! between finds a word that fits no entry yet and reads a few times; then it says "try again".
//!
//! # Differs from Linux
//!
//! A hole has no page, not even one of zeros: a fault there fails, and says that it is a hole (ADR
//! 0033).

use std::ops::Range;
use std::sync::PoisonError;

use pgmap_mm::descriptor::{FolioFlags, FolioState};
use pgmap_mm::extent::Extent;
use pgmap_mm::index::{EntryId, ExtentList, FileEntry, FileId};
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::pin::ClientSide;
use pgmap_mm::prot::Prot;
use pgmap_mm::vma::{AreaBacking, Backed, BackingError, VmaKind};
use pgmap_os::sync::{Mutex, MutexGuard};

use crate::client::Client;
use crate::error::Error;
use crate::refusal::Refusal;

/// How often an entry is read again while the owner changes the file.
const MAX_READS: usize = 32;
/// The attempt after which the owner is asked whether it is done with the file.
const ASK_AT: usize = 4;

/// A file of a pool.
#[derive(Debug)]
pub(super) struct FileBacking {
    client: Client,
    id: u64,
    kind: VmaKind,
    most_prot: Prot,
    state: Mutex<LastRead>,
}

/// What was last read of the file.
#[derive(Debug)]
struct LastRead {
    entry: FileEntry,
    /// The page of the file after each extent's last.
    ends: Vec<u64>,
    nr_pages: u64,
    /// The most pages it ever had: with fewer, a cut may have been given up since.
    most_pages: u64,
    is_gone: bool,
}

impl LastRead {
    fn of(entry: FileEntry, most_pages: u64) -> Self {
        let mut end = 0;
        let ends = entry.extents.iter().map(|extent| {
            end += extent.run.nr_pages();
            end
        });
        let ends: Vec<u64> = ends.collect();
        let nr_pages = entry.len_bytes.div_ceil(PAGE_BYTES).min(end);
        Self { entry, ends, nr_pages, most_pages: most_pages.max(nr_pages), is_gone: false }
    }

    /// The extent with this page of the file, and how far into it.
    fn extent_of(&self, page: u64) -> Option<Backed> {
        let number = self.ends.partition_point(|&end| end <= page);
        let extent = *self.entry.extents.iter().nth(number)?;
        let start = self.ends.get(number)? - extent.run.nr_pages();
        Some(Backed { extent, skip: page - start })
    }
}

impl FileBacking {
    /// Reads file `id`'s entry. Frames in `devices` are further pagemaps'.
    ///
    /// # Errors
    /// [`Refusal::Stale`] when it is gone.
    pub(super) fn read(client: &Client, id: u64, devices: &Range<u64>) -> Result<Self, Error> {
        // The entry's place is not known here: a first guess that is wrong costs a call.
        let extents = ExtentList::default();
        let guess =
            FileEntry { entry: EntryId::from_number(0), id: FileId(id), len_bytes: 0, extents };
        let entry = client.reread(&guess)?;
        let kind = kind_of(&entry, devices);
        let has = |extent: &Extent| extent.life.flags().contains(FolioFlags::WRITABLE);
        let is_writable = !client.is_read_only()
            && entry.extents.iter().filter(|extent| !extent.is_hole()).all(has);
        let most_prot = if is_writable { Prot::READ_WRITE } else { Prot::READ };
        let state = Mutex::new(LastRead::of(entry, 0));
        Ok(Self { client: client.clone(), id, kind, most_prot, state })
    }

    /// The file's number.
    pub(super) const fn id(&self) -> u64 {
        self.id
    }

    /// Its length in bytes when it was last read.
    pub(super) fn len_bytes(&self) -> u64 {
        self.lock().entry.len_bytes
    }

    /// How many pages from `page` of the file on can be held: at most `most`, up to the first hole,
    /// failed page or the end of the frames, which may lie beyond the file's.
    ///
    /// # Errors
    /// Why not even the first can.
    pub(super) fn nr_good_pages(&self, page: u64, most: u64) -> Result<u64, BackingError> {
        let mut nr_pages = 0;
        while nr_pages < most {
            match self.extent_at(page + nr_pages) {
                Ok(backed) => nr_pages += backed.extent.run.nr_pages() - backed.skip,
                Err(error) if nr_pages == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(nr_pages.min(most))
    }

    /// How many pages from `page` of the file on are of one hole, as it was last read.
    pub(super) fn hole_pages(&self, page: u64) -> u64 {
        let found = self.lock().extent_of(page).filter(|backed| backed.extent.is_hole());
        found.map_or(0, |backed| backed.extent.run.nr_pages() - backed.skip)
    }

    /// Reads the entry again. Returns the frames that were the file's, as it was known before, and
    /// are so no more.
    pub(super) fn refresh(&self) -> Vec<PfnRange> {
        let mut state = self.lock();
        let before: Vec<Extent> = state.entry.extents.iter().copied().collect();
        let _gone = self.read_anew(&mut state);
        let is_kept =
            |extent: &Extent| !state.is_gone && state.entry.extents.iter().any(|now| now == extent);
        let lost = before.iter().filter(|extent| !extent.is_hole() && !is_kept(extent));
        lost.map(|extent| extent.run).collect()
    }

    fn lock(&self) -> MutexGuard<'_, LastRead> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_anew(&self, state: &mut LastRead) -> Result<(), BackingError> {
        if state.is_gone {
            return Err(BackingError::Dead);
        }
        match self.client.reread(&state.entry) {
            Ok(entry) => {
                *state = LastRead::of(entry, state.most_pages);
                Ok(())
            }
            Err(Error::Refused(Refusal::Stale { .. } | Refusal::NotFound { .. })) => {
                state.is_gone = true;
                Err(BackingError::Dead)
            }
            Err(_) => Err(BackingError::Busy),
        }
    }

    /// Whether the extent's life word is what the entry says.
    fn is_current(&self, extent: &Extent) -> bool {
        let vmemmap = self.client.inner.pinner.side().vmemmap();
        vmemmap.load(extent.head_level, extent.first()) == Some(extent.life)
    }
}

impl AreaBacking for FileBacking {
    fn kind(&self) -> VmaKind {
        self.kind
    }

    fn is_alive(&self) -> bool {
        !self.lock().is_gone
    }

    fn most_prot(&self) -> Prot {
        self.most_prot
    }

    fn nr_pages(&self) -> u64 {
        let mut state = self.lock();
        if state.nr_pages < state.most_pages {
            let _as_before = self.read_anew(&mut state);
        }
        state.nr_pages
    }

    fn end_bytes(&self) -> u64 {
        let mut state = self.lock();
        let _as_before = self.read_anew(&mut state);
        state.entry.len_bytes.min(state.nr_pages * PAGE_BYTES)
    }

    fn extent_at(&self, page: u64) -> Result<Backed, BackingError> {
        let mut state = self.lock();
        if state.is_gone {
            return Err(BackingError::Dead);
        }
        for attempt in 0..MAX_READS {
            let found = (page < state.nr_pages).then(|| state.extent_of(page)).flatten();
            if let Some(backed) = found
                && !backed.extent.is_hole()
                && self.is_current(&backed.extent)
            {
                return checked(&self.client, backed);
            }
            // An error is read again before it is returned.
            match found {
                None if attempt > 0 => return Err(BackingError::BeyondEnd),
                Some(backed) if attempt > 0 && backed.extent.is_hole() => {
                    return Err(BackingError::Hole);
                }
                _ => {}
            }
            if attempt > 1 {
                pgmap_os::thread::yield_now();
            }
            if attempt == ASK_AT && found.is_some() {
                let _told = self.client.wait_if_shut(attempt, &state.entry);
            }
            self.read_anew(&mut state)?;
        }
        Err(BackingError::Busy)
    }
}

fn checked(client: &Client, backed: Backed) -> Result<Backed, BackingError> {
    match client.reach(backed.extent.run) {
        Ok(()) => {}
        Err(Error::Pin(_)) => return Err(BackingError::BeyondEnd),
        Err(Error::Refused(Refusal::NoBacking { .. })) => return Err(BackingError::Dead),
        Err(_) => return Err(BackingError::Busy),
    }
    // Quarantined: withheld with a page that failed, because the file can have no more extents.
    if matches!(backed.extent.life.state(), FolioState::Poisoned | FolioState::Quarantined) {
        return Err(BackingError::Poisoned);
    }
    Ok(backed)
}

/// How areas of a file behave: what its frames say, and whose they are.
fn kind_of(entry: &FileEntry, devices: &Range<u64>) -> VmaKind {
    let mut frames = entry.extents.iter().filter(|extent| !extent.is_hole()).peekable();
    let Some(first) = frames.peek() else { return VmaKind::FsDax };
    let flags = first.life.flags();
    if flags.contains(FolioFlags::RAW) {
        VmaKind::Raw
    } else if flags.contains(FolioFlags::PEER) {
        // Folios of any size, mapped at any page (Linux 7.1: drivers/pci/p2pdma.c,
        // `p2pmem_alloc_mmap`).
        VmaKind::PeerToPeer
    } else if devices.contains(&first.run.start()) {
        // Every folio of a device that is well has its alignment; a failed one may be smaller.
        let align = frames.map(|extent| extent.head_level).max().unwrap_or(Level::Pte);
        VmaKind::DeviceDax { align }
    } else {
        VmaKind::FsDax
    }
}
