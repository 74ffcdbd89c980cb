//! The catalog: the truth about allocation that outlives an owner (I10).
//!
//! Files by name, frames whose memory failed, and how far stamps were used. Every change is on
//! record before the world can see what it says, so a killed owner's successor either finds a file
//! whole or not at all. An anonymous pool has no catalog: it ends with its owner.
//!
//! It is a log of checksummed records (`log`) under a header (`header`). Damage to any part
//! that counts is an error that says where; see docs/adr/0050-the-catalog-is-a-log.md.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, PoisonError};

use pgmap_mm::extent::Extent;
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::memory_type::MemoryType;
use pgmap_os::sync::{Mutex, MutexGuard};
use pgmap_os::{FileAccess, MemoryFile};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::metadata::FileMetadata;
use crate::name::FileName;
use crate::pool::catalog::header::Header;
use crate::pool::catalog::log::{CatalogFile, Log};
use crate::pool::identity::{BootId, PoolId};
use crate::pool::mark::CatalogState;
use crate::pool::options::{Durability, MAX_FILES, MAX_POOL_BYTES, MIN_POOL_BYTES};
use crate::wire::{FileRules, QuotaLimits, QuotaOf, WaterMarks};

pub(crate) mod header;
mod log;
#[cfg(test)]
mod tests;

/// Changes of the header by which an owner that stops says so: one for each slot.
pub(crate) const CLOSING_CHANGES: u64 = 2;

/// What was fixed when the pool was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPool {
    /// Bytes of data.
    pub size_bytes: u64,
    /// Bytes of the data file, which leaves room for more pagemaps.
    pub capacity_bytes: u64,
    /// Bytes that frames can be described for: the data file and further backings.
    pub span_bytes: u64,
    /// Files the index has room for.
    pub max_files: u64,
    /// What kind of memory it is.
    pub memory_type: MemoryType,
    /// What lies at the head of the data.
    pub head: Head,
    /// The smallest folio that is described; 4 KiB in a pool without a head.
    pub smallest: Level,
    /// Pages that the data comes in: what a device is aligned to, or huge pages.
    pub page: Level,
    /// What committed files outlive.
    pub durability: Durability,
}

/// What of a pool lies at the head of its data, before the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Nothing: the catalog has a file of its own.
    Nothing,
    /// The catalog, so that the data is the pool, wherever it is carried.
    Catalog,
    /// The catalog, and the descriptors (altmap).
    CatalogAndDescriptors,
}

impl Head {
    const ALL: [Self; 3] = [Self::Nothing, Self::CatalogAndDescriptors, Self::Catalog];

    /// As the catalog's header stores it.
    pub(crate) fn number(self) -> u64 {
        Self::ALL.iter().position(|&head| head == self).unwrap_or(0) as u64
    }

    /// The head with this number.
    pub(crate) fn from_number(number: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }
}

impl StoredPool {
    /// Whether any pool is made so.
    pub(crate) fn is_possible(&self) -> bool {
        let unit = self.smallest.size_bytes();
        let is_size = |bytes: u64| (MIN_POOL_BYTES..=MAX_POOL_BYTES).contains(&bytes);
        is_size(self.size_bytes)
            && is_size(self.capacity_bytes)
            && is_size(self.span_bytes)
            && self.size_bytes <= self.capacity_bytes
            && self.capacity_bytes <= self.span_bytes
            && self.span_bytes.is_multiple_of(unit)
            && self.size_bytes.is_multiple_of(unit)
            && self.capacity_bytes.is_multiple_of(unit)
            && (1..=MAX_FILES).contains(&self.max_files)
            && (self.smallest == Level::Pte || self.head != Head::Nothing)
    }
}

/// One committed file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Its number.
    pub id: u64,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Its folio sizes, as `FolioSize` says.
    pub largest_level: u8,
    /// What may be done with it.
    pub rules: FileRules,
    /// Its frames under their life words.
    pub extents: Vec<[u64; 3]>,
    /// What it carries beside its contents.
    pub metadata: FileMetadata,
    /// The user whose client created it.
    pub uid: u32,
}

impl StoredFile {
    /// The extents; `None` if the record is damaged.
    pub fn extents(&self) -> Option<Vec<Extent>> {
        self.extents.iter().map(|&words| Extent::from_words(words)).collect()
    }
}

/// A client that was given a ledger, as the catalog's roster has it: a ledger that is missing is
/// missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Its number.
    pub client: u64,
    /// Which file its data are in: who has a ledger of other data never held any of these.
    pub data: u64,
    /// Which file its ledger is.
    pub ledger: u64,
    /// Its process, 0 if that is not known.
    pub pid: i32,
    /// When that began.
    pub started: u64,
    /// In which namespace its process has that number.
    pub namespace: u64,
}

/// A further backing: memory of its own beside the data file's, with frames of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredBacking {
    /// Its number, which no other backing of the pool has or had.
    pub id: u64,
    /// As people call it.
    pub name: String,
    /// Where it is: the bytes of a path.
    pub path: Vec<u8>,
    /// Its first frame, on a 1 GiB boundary behind the data file's.
    pub first_pfn: u64,
    /// Its frames.
    pub nr_pages: u64,
    /// Where in it the first frame lies, behind its head.
    pub offset_bytes: u64,
    /// What kind of memory it is, as `MemoryType` numbers it.
    pub memory_type: u8,
    /// Whether it was taken out, and its frames are kept because a client may still have it mapped.
    pub is_retired: bool,
}

/// One change of the catalog.
#[derive(Debug, Serialize)]
pub enum Change<'a> {
    /// A file is now this.
    Put(&'a FileName, StoredFile),
    /// A file is gone.
    Delete(&'a FileName),
    /// Stamps below this may be in use.
    StampLimit(u64),
    /// The memory of this frame failed.
    Poisoned(u64),
    /// The memory of this frame was replaced.
    Healthy(u64),
    /// The file of this number was cut inside a page, and the rest of the page is not zeroed yet.
    OpenTail(u64),
    /// It is.
    ClosedTail(u64),
    /// A client was given a ledger.
    Enrolled(Enrolled),
    /// The ledger of the client of this number is not needed any more.
    Left(u64),
    /// A further backing is there, or is elsewhere.
    Backing(StoredBacking),
    /// The backing of this number is not the pool's any more.
    BackingGone(u64),
    /// A quota is now this.
    Quota(&'a QuotaOf, QuotaLimits),
    /// There is none of it.
    QuotaGone(&'a QuotaOf),
    /// The water marks are now these.
    Marks(WaterMarks),
}

/// A [`Change`] as it is read: the same variants in the same order.
#[derive(Debug, Deserialize)]
enum Recorded {
    Put(FileName, StoredFile),
    Delete(FileName),
    StampLimit(u64),
    Poisoned(u64),
    Healthy(u64),
    OpenTail(u64),
    ClosedTail(u64),
    Enrolled(Enrolled),
    Left(u64),
    Backing(StoredBacking),
    BackingGone(u64),
    Quota(QuotaOf, QuotaLimits),
    QuotaGone(QuotaOf),
    Marks(WaterMarks),
}

/// Everything that a catalog says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    pub files: BTreeMap<FileName, StoredFile>,
    pub poisoned: BTreeSet<u64>,
    pub open_tails: BTreeSet<u64>,
    pub roster: BTreeMap<u64, Enrolled>,
    pub backings: BTreeMap<u64, StoredBacking>,
    pub quotas: BTreeMap<QuotaOf, QuotaLimits>,
    pub marks: WaterMarks,
    /// Stamps below this may be in use.
    pub stamp_limit: u64,
}

impl Contents {
    fn apply(&mut self, change: Recorded) {
        match change {
            Recorded::Put(name, file) => drop(self.files.insert(name, file)),
            Recorded::Delete(name) => drop(self.files.remove(&name)),
            Recorded::StampLimit(limit) => self.stamp_limit = limit,
            Recorded::Poisoned(pfn) => drop(self.poisoned.insert(pfn)),
            Recorded::Healthy(pfn) => drop(self.poisoned.remove(&pfn)),
            Recorded::OpenTail(id) => drop(self.open_tails.insert(id)),
            Recorded::ClosedTail(id) => drop(self.open_tails.remove(&id)),
            Recorded::Enrolled(client) => drop(self.roster.insert(client.client, client)),
            Recorded::Left(client) => drop(self.roster.remove(&client)),
            Recorded::Backing(backing) => drop(self.backings.insert(backing.id, backing)),
            Recorded::BackingGone(id) => drop(self.backings.remove(&id)),
            Recorded::Quota(of, limits) => drop(self.quotas.insert(of, limits)),
            Recorded::QuotaGone(of) => drop(self.quotas.remove(&of)),
            Recorded::Marks(marks) => self.marks = marks,
        }
    }

    /// The changes that make it of nothing.
    fn changes(&self) -> Vec<Change<'_>> {
        let files = self.files.iter().map(|(name, file)| Change::Put(name, file.clone()));
        let poisoned = self.poisoned.iter().copied().map(Change::Poisoned);
        let tails = self.open_tails.iter().copied().map(Change::OpenTail);
        let limit = [Change::StampLimit(self.stamp_limit)].into_iter();
        let roster = self.roster.values().copied().map(Change::Enrolled);
        let backings = self.backings.values().cloned().map(Change::Backing);
        let quotas = self.quotas.iter().map(|(of, &limits)| Change::Quota(of, limits));
        let marks = (self.marks != WaterMarks::default()).then_some(Change::Marks(self.marks));
        let kept = limit.chain(files).chain(poisoned).chain(tails).chain(roster).chain(backings);
        kept.chain(quotas).chain(marks).collect()
    }
}

/// An open catalog.
#[derive(Debug)]
pub struct Catalog {
    log: Mutex<Log>,
    /// The files that were read when it was opened, until somebody asks.
    files: Mutex<Option<BTreeMap<FileName, StoredFile>>>,
    /// The other numbers that were read then.
    poisoned: Vec<u64>,
    open_tails: Vec<u64>,
    roster: Vec<Enrolled>,
    backings: Vec<StoredBacking>,
    quotas: BTreeMap<QuotaOf, QuotaLimits>,
    marks: WaterMarks,
    /// The boot it was opened in.
    boot: BootId,
    /// Files that were dropped then, because the machine was restarted before they were synced.
    unsynced: Vec<FileName>,
}

impl Catalog {
    /// Makes a catalog in `memory`, which may have `most_bytes` for it.
    ///
    /// # Errors
    /// [`Error::Catalog`]; [`Error::Os`] when the file system has no room.
    pub(crate) fn create(
        memory: Arc<MemoryFile>,
        most_bytes: u64,
        id: PoolId,
        pool: &StoredPool,
    ) -> Result<Self, Error> {
        let boot = BootId::current()?;
        let header = Header {
            id,
            pool: pool.clone(),
            sequence: 1,
            start: 0,
            end: 0,
            area_bytes: 0,
            synced_below: 0,
            boot,
            is_clean: false,
        };
        let log = Log::create(CatalogFile::new(memory, most_bytes), header)?;
        Ok(Self::with(log, Contents::default(), boot))
    }

    /// Opens the catalog in the file at `path`. Nothing is changed by that.
    ///
    /// # Errors
    /// [`Error::Catalog`] when it is damaged or of another format; [`Error::Os`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let memory = MemoryFile::open_named(path, FileAccess::ReadWrite)?;
        Self::open_in(Arc::new(memory), u64::MAX, BootId::current()?)
    }

    /// As [`open`](Self::open), in `memory`, of whose bytes it may have the first `most_bytes`, in
    /// the boot `boot`.
    pub(crate) fn open_in(
        memory: Arc<MemoryFile>,
        most_bytes: u64,
        boot: BootId,
    ) -> Result<Self, Error> {
        let (log, mut contents) = Log::open(CatalogFile::new(memory, most_bytes), boot)?;
        let mut unsynced = Vec::new();
        if log.is_unsynced(boot) {
            let synced_below = log.header().synced_below;
            // What is on record was flushed before, where that is promised.
            let is_flushed = log.header().pool.durability == Durability::PowerFailure;
            contents.files.retain(|name, file| {
                let is_synced = is_flushed || file.id < synced_below;
                if !is_synced {
                    unsynced.push(name.clone());
                }
                is_synced
            });
            // What was zeroed behind their ends since may be lost too.
            let has_tail = |file: &&StoredFile| !file.len_bytes.is_multiple_of(PAGE_BYTES);
            let tails = contents.files.values().filter(has_tail).map(|file| file.id);
            contents.open_tails.extend(tails.collect::<Vec<_>>());
        }
        Ok(Self { unsynced, ..Self::with(log, contents, boot) })
    }

    /// Every file that is on record in `memory`, whose owner may be changing it, and which pool it
    /// is.
    ///
    /// # Errors
    /// [`Error::Catalog`] for what is no catalog, also when it was changed meanwhile: try again.
    pub(crate) fn observe(
        memory: &Arc<MemoryFile>,
    ) -> Result<(PoolId, BTreeMap<FileName, StoredFile>), Error> {
        let (header, contents) = Log::observe(CatalogFile::new(Arc::clone(memory), u64::MAX))?;
        Ok((header.id, contents.files))
    }

    /// Writes a damaged slot of the header again, from the other one, and opens the catalog; `None`
    /// if anything else is wrong with it.
    ///
    /// # Errors
    /// [`Error::Catalog`] when it cannot be written.
    pub(crate) fn mend(memory: Arc<MemoryFile>, boot: BootId) -> Result<Option<Self>, Error> {
        if !Log::mend_header(&CatalogFile::new(Arc::clone(&memory), u64::MAX))? {
            return Ok(None);
        }
        match Self::open_in(memory, u64::MAX, boot) {
            Err(Error::Catalog { .. }) => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn with(log: Log, contents: Contents, boot: BootId) -> Self {
        let Contents { files, poisoned, open_tails, roster, backings, quotas, marks, .. } =
            contents;
        Self {
            log: Mutex::new(log),
            files: Mutex::new(Some(files)),
            poisoned: poisoned.into_iter().collect(),
            open_tails: open_tails.into_iter().collect(),
            roster: roster.into_values().collect(),
            backings: backings.into_values().collect(),
            quotas,
            marks,
            boot,
            unsynced: Vec::new(),
        }
    }

    /// Keeps the catalog inside the first `most_bytes` of its file.
    pub(crate) fn bound(&self, most_bytes: u64) {
        self.log().bound(most_bytes);
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        // A log whose user panicked is as the last change that ended left it.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was fixed when the pool was made.
    #[must_use]
    pub fn pool(&self) -> StoredPool {
        self.log().header().pool.clone()
    }

    /// Which pool it is.
    #[must_use]
    pub fn id(&self) -> PoolId {
        self.log().header().id
    }

    /// How far it is.
    pub(crate) fn state(&self) -> CatalogState {
        let log = self.log();
        let header = log.header();
        CatalogState {
            sequence: header.sequence,
            is_clean: header.is_clean,
            is_unsynced: log.is_unsynced(self.boot),
        }
    }

    /// Whether processes of the last owner's time may still run: the machine was not restarted.
    pub(crate) fn is_same_boot(&self) -> bool {
        self.log().header().boot == self.boot
    }

    /// Whether nobody is left who could hold anything: the machine was restarted, or no client has
    /// a ledger.
    pub(crate) fn is_idle(&self) -> bool {
        !self.is_same_boot() || self.roster.is_empty()
    }

    /// Files that are not there any more, because the machine was restarted before they were
    /// synced.
    #[must_use]
    pub fn unsynced(&self) -> &[FileName] {
        &self.unsynced
    }

    /// Takes the pool over: from now on it is not synced. Files that may have been lost are
    /// removed.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub(crate) fn begin(&self) -> Result<(), Error> {
        let boot = self.boot;
        for names in self.unsynced.chunks(256) {
            let changes: Vec<_> = names.iter().map(Change::Delete).collect();
            self.log().append(&changes)?;
        }
        if self.log().is_unsynced(boot) {
            for tails in self.open_tails.chunks(256) {
                let changes: Vec<_> = tails.iter().copied().map(Change::OpenTail).collect();
                self.log().append(&changes)?;
            }
        }
        if !self.is_same_boot() && !self.roster.is_empty() {
            // A clean catalog that is newer than its data is one that was copied
            // (`Mark::mismatch`).
            self.log().mark(|header| header.is_clean = false)?;
            for clients in self.roster.chunks(256) {
                let left: Vec<_> = clients.iter().map(|one| Change::Left(one.client)).collect();
                self.log().append(&left)?;
            }
        }
        self.log().mark(|header| {
            header.boot = boot;
            header.is_clean = false;
        })
    }

    /// Says that frames can be described for `span_bytes` from now on.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub(crate) fn set_span(&self, span_bytes: u64) -> Result<(), Error> {
        self.log().mark(|header| header.pool.span_bytes = span_bytes)
    }

    /// Takes note that the contents of all files were synced, and that nothing is changed from now
    /// on.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub(crate) fn end(&self) -> Result<(), Error> {
        let mut log = self.log();
        // Stamps number files too, and those of the next owner start here.
        let synced_below = log.stamp_limit();
        log.mark(|header| {
            header.is_clean = true;
            header.synced_below = synced_below;
        })
    }

    /// Whether the file may have a change that was refused. No frame is freed as long as that is
    /// so: the change may say that it is a file's.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.log().is_in_doubt()
    }

    /// Tries again to take that change back.
    pub(crate) fn settle(&self) {
        if let Err(error) = self.log().settle() {
            tracing::debug!(%error, "the catalog's header cannot be put back");
        }
    }

    /// The limit that stamps have not passed.
    pub(crate) fn stamp_limit(&self) -> u64 {
        self.log().stamp_limit()
    }

    /// Every file.
    ///
    /// # Errors
    /// [`Error::Catalog`] when it is damaged.
    pub fn files(&self) -> Result<BTreeMap<FileName, StoredFile>, Error> {
        let found = self.files.lock().unwrap_or_else(PoisonError::into_inner).take();
        found.map_or_else(|| Ok(self.log().contents()?.files), Ok)
    }

    /// Frames whose memory had failed when it was opened.
    #[must_use]
    pub fn poisoned(&self) -> &[u64] {
        &self.poisoned
    }

    /// Numbers of files whose last page might hold bytes behind the end when it was opened.
    #[must_use]
    pub fn open_tails(&self) -> &[u64] {
        &self.open_tails
    }

    /// The clients that had ledgers when it was opened.
    pub(crate) fn roster(&self) -> &[Enrolled] {
        &self.roster
    }

    /// The further backings that the pool had when it was opened.
    #[must_use]
    pub fn backings(&self) -> &[StoredBacking] {
        &self.backings
    }

    /// The quotas that the pool had when it was opened.
    pub(crate) const fn quotas(&self) -> &BTreeMap<QuotaOf, QuotaLimits> {
        &self.quotas
    }

    /// The water marks that it had then.
    pub(crate) const fn marks(&self) -> WaterMarks {
        self.marks
    }

    /// Puts `changes` on record, all or none.
    ///
    /// # Errors
    /// [`Error::Catalog`], and [`Error::Os`] when there is no room; nothing is on record then, and
    /// the next call may be answered otherwise.
    pub fn record(&self, changes: &[Change<'_>]) -> Result<(), Error> {
        self.log().append(changes)
    }
}
