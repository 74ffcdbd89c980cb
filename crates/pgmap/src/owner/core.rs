//! The owner's books: everything it knows, without a thread, a lock or a socket.
//!
//! One thread at a time has the core. It answers each request at once or, for a truncate that must
//! wait for holders, with a ticket whose answer comes out of [`Core::take_answers`] later.
//!
//! # Who may touch what
//!
//! The core alone changes descriptors, the index and the catalog (I2). Of clients it reads ledgers.
//!
//! # Order of a change (I10)
//!
//! Publishing: catalog, descriptors, index. Taking away: catalog, index, life words, heavy barrier,
//! scan, and only then the frames. A truncate changes the catalog last, when its frames are idle
//! and before they are freed, so that a killed owner's successor finds the file whole or shortened.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use pgmap_mm::drain::ClientId;
use pgmap_mm::extent::Extent;
use pgmap_mm::holder::{HolderSlot, Question, Questions};
use pgmap_mm::index::{EntryId, Facts, FileId};
use pgmap_mm::lease::LeaseTable;
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::memory_type::MemoryType;
use pgmap_mm::pagemap::{DeviceRange, OpsPresent, PagemapSpec, PagemapTable, SUBSECTION_BYTES};
use pgmap_mm::pfn::PfnRange;

use crate::error::Error;
use crate::memory::OwnerBarrier;
use crate::metadata::{FileMetadata, UserMetadata};
use crate::name::FileName;
use crate::owner::backings::Retired;
use crate::owner::clients::{ClientRecord, MAX_CLIENTS};
use crate::owner::closing::Openness;
use crate::owner::counted::Counted;
use crate::owner::cut::Patience;
use crate::owner::dead_devices::DeadClients;
use crate::owner::departures::Departure;
use crate::owner::devices::Attempts;
use crate::owner::drains::PendingDrain;
use crate::owner::evictables::Evictables;
use crate::owner::frames::{Listed, PoolFrames};
use crate::owner::holders::HolderLine;
use crate::owner::leases::PendingLease;
use crate::owner::pagemaps::{Devices, Takedown};
use crate::owner::part_drains::PartDrain;
use crate::owner::populate::Population;
use crate::owner::quotas::Quotas;
use crate::owner::restore::Restoration;
use crate::owner::scans::PendingScan;
use crate::owner::subscribers::Subscribers;
use crate::owner::water::Water;
use crate::pool::Pool;
use crate::pool::catalog::{Change, StoredFile};
use crate::refusal::Refusal;
use crate::wire::{Event, FileRules, FolioSize, Reply, Request};

/// Names a request whose answer comes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What became of a request.
#[derive(Debug)]
pub enum Outcome {
    /// Its answer.
    Answer(Reply),
    /// Its answer comes later.
    Later(Ticket),
}

/// A committed file.
#[derive(Debug, Clone)]
pub(crate) struct FileRecord {
    pub id: FileId,
    pub len_bytes: u64,
    pub largest: Level,
    pub rules: FileRules,
    pub extents: Vec<Extent>,
    pub metadata: FileMetadata,
    /// The user whose client created it.
    pub uid: u32,
    pub entry: EntryId,
    /// What is being done to it that has not ended.
    pub doing: Option<&'static str>,
}

impl FileRecord {
    pub(crate) fn stored(&self) -> StoredFile {
        StoredFile {
            id: self.id.0,
            len_bytes: self.len_bytes,
            largest_level: self.largest.number(),
            rules: self.rules,
            extents: crate::wire::extents_to_words(&self.extents),
            metadata: self.metadata.clone(),
            uid: self.uid,
        }
    }

    /// What the index says of it beside its extents.
    pub(crate) const fn listed<'a>(&'a self, name: &'a FileName) -> Listed<'a> {
        let facts = Facts {
            id: self.id,
            len_bytes: self.len_bytes,
            user: self.metadata.user.as_bytes(),
            checksum: self.metadata.checksum,
        };
        Listed { name, facts }
    }

    /// Its frames, without the holes.
    pub(crate) fn runs(&self) -> impl Iterator<Item = PfnRange> {
        self.extents.iter().filter(|extent| !extent.is_hole()).map(|extent| extent.run)
    }

    pub(crate) fn allocated_pages(&self) -> u64 {
        self.runs().map(PfnRange::nr_pages).sum()
    }
}

/// A file that its writer has not committed.
#[derive(Debug)]
pub(crate) struct DraftRecord {
    pub client: ClientId,
    /// Its client's user.
    pub uid: u32,
    pub name: FileName,
    pub len_bytes: u64,
    pub largest: Level,
    pub replace: bool,
    pub rules: FileRules,
    pub extents: Vec<Extent>,
    pub metadata: UserMetadata,
    pub is_checksummed: bool,
}

/// The owner's books.
#[derive(Debug)]
pub struct Core {
    pub(crate) pool: Arc<Pool>,
    pub(crate) barrier: OwnerBarrier,
    pub(crate) frames: PoolFrames,
    pub(crate) files: Counted<FileName, FileRecord>,
    pub(crate) names: HashMap<FileId, FileName>,
    pub(crate) drafts: Counted<FileId, DraftRecord>,
    pub(crate) clients: BTreeMap<ClientId, ClientRecord>,
    /// Whether the pool is on its way out.
    pub(crate) openness: Openness,
    /// Dead clients whose devices may still write.
    pub(crate) dead: DeadClients,
    /// Dead clients whose ledgers are still to be read.
    pub(crate) burials: VecDeque<ClientId>,
    /// Scans for drains that have not ended.
    pub(crate) scans: VecDeque<PendingScan>,
    pub(crate) drains: VecDeque<PendingDrain>,
    /// How many of the drains are left to look at, from the first on.
    pub(crate) nr_to_look_at: usize,
    pub(crate) memory_type: MemoryType,
    pub(crate) pagemaps: PagemapTable,
    pub(crate) devices: Devices,
    /// Frames of backings that were taken out, which clients may still have mapped.
    pub(crate) retired: Vec<Retired>,
    /// Parts of the pool that are drained, or are being drained.
    pub(crate) parts: Vec<PartDrain>,
    /// Backings that are being taken out.
    pub(crate) departures: Vec<Departure>,
    /// Devices that may be those of missing backings.
    pub(crate) attempts: Attempts,
    pub(crate) leases: LeaseTable,
    pub(crate) questions: Questions,
    pub(crate) pending_leases: Vec<PendingLease>,
    pub(crate) consultations: Vec<Question>,
    pub(crate) holder_slot: HolderSlot,
    pub(crate) holder_line: Option<HolderLine>,
    pub(crate) holder_patience_ms: u64,
    /// Files whose memory is being taken from the system, a step at a time.
    pub(crate) populations: VecDeque<Population>,
    /// Files that are being given back what a cut was to take.
    pub(crate) restorations: VecDeque<Restoration>,
    /// Pagemaps that are being taken down.
    pub(crate) takedowns: VecDeque<Takedown>,
    /// Files behind whose ends lies what was cut off, because it could not be zeroed.
    pub(crate) open_tails: BTreeSet<FileId>,
    /// Clients whose connections are to end.
    pub(crate) cut_off: Vec<ClientId>,
    /// Most clients at a time.
    pub(crate) max_clients: u64,
    pub(crate) answers: Vec<(Ticket, Reply)>,
    pub(crate) events: Vec<(ClientId, Event)>,
    /// Who follows what becomes of files.
    pub(crate) subscribers: Subscribers,
    /// Files that may be evicted.
    pub(crate) evictables: Evictables,
    /// What users and prefixes may take.
    pub(crate) quotas: Quotas,
    /// Room that is kept free.
    pub(crate) water: Water,
    next_ticket: u64,
}

impl Core {
    /// Opens the books of `pool`, recovering what an earlier owner left.
    ///
    /// # Errors
    /// [`Error::Os`] when the pool cannot be mapped, [`Error::Catalog`] or [`Error::BadPool`] when
    /// its catalog is damaged, or a ledger cannot be read.
    pub fn open(pool: Arc<Pool>) -> Result<Self, Error> {
        let frames = PoolFrames::open(&pool)?;
        if pool.directory().is_none() {
            // The descriptors are not sealed against writing: that would forbid punching them too.
            // Readers get a read-only description, see docs/adr/0005-no-write-seal.md. A client
            // that changes the size of one of these cannot take memory from under the owner.
            for file in [&pool.data, &pool.vmemmap, &pool.index] {
                file.seal_size()?;
            }
        }
        pool.begin()?;
        let mut core = Self {
            barrier: OwnerBarrier::register(),
            frames,
            files: Counted::default(),
            names: HashMap::new(),
            drafts: Counted::default(),
            clients: BTreeMap::new(),
            scans: VecDeque::new(),
            drains: VecDeque::new(),
            nr_to_look_at: 0,
            memory_type: pool.memory_type(),
            pagemaps: own_pagemap(&pool)?,
            devices: Devices::new(),
            retired: Vec::new(),
            parts: Vec::new(),
            departures: Vec::new(),
            attempts: Attempts::new(),
            leases: LeaseTable::new(),
            questions: Questions::new(),
            pending_leases: Vec::new(),
            consultations: Vec::new(),
            holder_slot: HolderSlot::new(),
            holder_line: None,
            holder_patience_ms: 0,
            populations: VecDeque::new(),
            restorations: VecDeque::new(),
            burials: VecDeque::new(),
            openness: Openness::default(),
            dead: DeadClients::new(),
            takedowns: VecDeque::new(),
            open_tails: BTreeSet::new(),
            cut_off: Vec::new(),
            max_clients: MAX_CLIENTS,
            answers: Vec::new(),
            events: Vec::new(),
            subscribers: Subscribers::default(),
            evictables: Evictables::default(),
            quotas: Quotas::default(),
            water: Water::default(),
            next_ticket: 0,
            pool,
        };
        core.recover_quotas();
        core.list_backings()?;
        // Clients of an earlier owner ask for what is there now.
        core.frames.backings_changed();
        if !core.pool.is_new {
            core.recover().map_err(|error| core.bad_start(error))?;
        }
        core.heed_bad_blocks();
        core.note_level();
        core.pool.keep_spare_ledger();
        Ok(core)
    }

    /// The error of a start that found in the pool's files what cannot be.
    fn bad_start(&self, error: Error) -> Error {
        match error {
            Error::Refused(Refusal::NoMemory { .. }) => error,
            Error::Refused(refusal) => Error::BadPool {
                pool: self.pool.name(),
                why: format!("what its catalog says cannot be put back: {refusal}"),
            },
            other => other,
        }
    }

    /// Does what `client` asks.
    pub fn handle(&mut self, client: ClientId, request: Request) -> Outcome {
        let answer =
            |result: Result<Reply, Refusal>| Outcome::Answer(result.unwrap_or_else(Reply::Refused));
        let refused = |refusal| Outcome::Answer(Reply::Refused(refusal));
        if request.needs_open_pool()
            && let Err(refusal) = self.check_open()
        {
            return refused(refusal);
        }
        if !request.is_for_readers() && self.is_read_only(client) {
            return refused(Refusal::ReadOnlyClient { call: request.name().into() });
        }
        match request {
            Request::Create(specs) => self.create(client, specs).unwrap_or_else(refused),
            Request::Commit(ids) => answer(self.commit(client, &ids)),
            Request::Abort(ids) => answer(self.abort(client, &ids)),
            Request::Unlink(names) => answer(self.unlink(&names)),
            Request::UnlinkUnlessHeld(names) => answer(self.unlink_unless_held(&names)),
            Request::Rename { from, to, replace } => answer(self.rename(&from, to, replace)),
            Request::Truncate { name, len_bytes, deadline_ms, on_deadline } => {
                self.truncate(name, len_bytes, Patience { wait_ms: deadline_ms, on_deadline })
            }
            Request::Punch { name, offset, len_bytes, deadline_ms, on_deadline } => {
                let patience = Patience { wait_ms: deadline_ms, on_deadline };
                self.punch(name, offset, len_bytes, patience)
            }
            Request::Lease(spec) => self.lease(client, spec),
            Request::ReleaseLeases(ids) => Outcome::Answer(self.release_leases(client, &ids)),
            Request::Locate(id) => answer(self.locate(id)),
            Request::Stat(name) => answer(self.stat(&name)),
            Request::List(after) => Outcome::Answer(self.list(after.as_ref())),
            Request::MemoryFailure(pfn) => answer(self.memory_failure(pfn)),
            Request::ClearPoison { name, offset, bytes } => {
                answer(self.clear_poison(&name, offset, &bytes))
            }
            Request::Reshape { name, offset, shape } => answer(self.reshape(&name, offset, shape)),
            Request::RepairFree => answer(self.repair_free()),
            Request::Trim { from_pfn } => answer(self.trim(from_pfn)),
            Request::Quarantine { after } => Outcome::Answer(self.quarantine(after)),
            Request::Close { deadline_ms } => self.close(deadline_ms),
            Request::DrainPart { backing, bytes, deadline_ms } => {
                self.drain_part(&backing, bytes, deadline_ms)
            }
            Request::UndoDrain { backing, bytes } => answer(self.undo_drain(&backing, bytes)),
            Request::ReleaseQuarantine(client) => answer(self.release_quarantine(client)),
            Request::PoolStat => Outcome::Answer(Reply::PoolStat(self.pool_info())),
            Request::Backings => Outcome::Answer(Reply::Backings(self.backing_infos())),
            Request::AddBacking { path, size_bytes, name, nodes } => {
                answer(self.add_backing_at(path, size_bytes, name, nodes))
            }
            Request::Grow { by_bytes } => {
                answer(self.grow(by_bytes).map(|()| Reply::Done).map_err(Refusal::from))
            }
            Request::RemoveBacking { name, deadline_ms } => self.remove_backing(&name, deadline_ms),
            Request::Who(name) => answer(self.who(name.as_ref())),
            Request::Subscribe { prefix, changes } => {
                answer(self.subscribe(client, prefix, changes))
            }
            set @ (Request::SetQuota { .. }
            | Request::RemoveQuota(_)
            | Request::SetWaterMarks(_)) => answer(self.operate(client, set)),
            Request::Quotas => Outcome::Answer(Reply::Quotas(self.quota_infos(), self.water.marks)),
            Request::CancelCut(name) => answer(self.cancel_cut(&name)),
            // The connection knows which ticket that is.
            Request::Forget(_) => Outcome::Answer(Reply::Done),
            Request::Leave => {
                self.reap(client);
                Outcome::Answer(Reply::Done)
            }
        }
    }

    /// The answers that have become ready.
    pub fn take_answers(&mut self) -> Vec<(Ticket, Reply)> {
        std::mem::take(&mut self.answers)
    }

    /// What became of the request with this ticket: its answer, if there is one by now.
    pub(crate) fn outcome_of(&mut self, ticket: Ticket) -> Outcome {
        match self.answers.iter().position(|&(answered, _)| answered == ticket) {
            Some(place) => Outcome::Answer(self.answers.swap_remove(place).1),
            None => Outcome::Later(ticket),
        }
    }

    /// Events for clients.
    pub fn take_events(&mut self) -> Vec<(ClientId, Event)> {
        std::mem::take(&mut self.events)
    }

    /// Whether answers or events wait to be handed out.
    #[must_use]
    pub fn has_messages(&self) -> bool {
        !self.answers.is_empty()
            || !self.events.is_empty()
            || !self.consultations.is_empty()
            || self.subscribers.has_news()
    }

    /// The descriptors that an answer brings.
    pub(crate) fn fds_of(
        &mut self,
        client: ClientId,
        reply: &Reply,
    ) -> Result<Vec<OwnedFd>, Error> {
        match *reply {
            Reply::Backings(_) => self.hand_backings(self.access_of(client)),
            Reply::Subscribed { subscription } => Ok(vec![self.open_line(subscription)?]),
            _ => Ok(Vec::new()),
        }
    }

    pub(crate) fn new_ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    /// Puts changes on record where the pool has a catalog.
    pub(crate) fn record(&self, changes: &[Change<'_>]) -> Result<(), Refusal> {
        self.pool.record(changes)
    }

    /// Puts a file's record into the catalog. What is being cut is put there when the cut has ended
    /// or was undone: a successor knows nothing of whoever waits for it. A pagemap's file is never:
    /// it ends with its owner.
    pub(crate) fn record_file(&self, name: &FileName, file: &FileRecord) -> Result<(), Refusal> {
        if file.doing.is_some() {
            return Ok(());
        }
        self.record(&[Change::Put(name, file.stored())])
    }

    /// Writes what the index says of a file again; the file has no more extents than there is room
    /// for.
    pub(crate) fn relist(&mut self, name: &FileName, file: &FileRecord) -> Result<(), Refusal> {
        self.frames.relist(file.entry, file.listed(name), &file.extents)
    }

    /// Puts a file's new extents, which its frames have already, into the index and the books. That
    /// the catalog cannot be written is only logged: a successor finds descriptors that do not fit
    /// the catalog, and mends them.
    pub(crate) fn adopt(&mut self, name: &FileName, file: FileRecord) {
        if let Err(refusal) = self.record_file(name, &file) {
            tracing::warn!(file = %name, %refusal, "the catalog is behind");
        }
        if let Err(refusal) = self.relist(name, &file) {
            tracing::error!(file = %name, %refusal, "a file keeps its old entry");
        }
        self.files.insert(name.clone(), file);
    }

    pub(crate) fn draining_pages(&self) -> u64 {
        self.drains.iter().map(PendingDrain::nr_pages).sum::<u64>()
            + self
                .scans
                .iter()
                .filter(|scan| !scan.is_of_all())
                .map(|scan| scan.runs().nr_pages())
                .sum::<u64>()
            + self.restorations.iter().map(Restoration::nr_pages).sum::<u64>()
            + self.frames.backlog_pages()
    }

    pub(crate) fn largest_level(size: FolioSize) -> Level {
        match size {
            FolioSize::Pages4K => Level::Pte,
            FolioSize::Pages2M => Level::Pmd,
            FolioSize::BestFit | FolioSize::Pages1G => Level::Pud,
        }
    }
}

/// The table of pagemaps with the pool's own in it, at frame 0. Whatever is added lies beyond,
/// inside the capacity or on a backing of its own.
fn own_pagemap(pool: &Pool) -> Result<PagemapTable, Error> {
    let len_bytes = pool.size_bytes().next_multiple_of(SUBSECTION_BYTES);
    let nr_pages = pool.span_bytes().max(len_bytes) / PAGE_BYTES;
    let mut table = PagemapTable::new(nr_pages, Vec::new(), u64::MAX);
    let spec = PagemapSpec {
        memory_type: pool.memory_type(),
        ranges: vec![DeviceRange { start_bytes: 0, len_bytes }],
        owner: Some(0),
        largest_level: Level::Pud.number(),
        ops: OpsPresent::FOLIO_FREE,
    };
    table.add(&spec).map_err(|error| Error::BadPool {
        pool: pool.name(),
        why: format!("its kind of memory cannot be a pool's: {error}"),
    })?;
    Ok(table)
}

/// The whole of a pool as bytes.
pub(crate) const fn bytes(nr_pages: u64) -> u64 {
    nr_pages * PAGE_BYTES
}
