//! The owner's books: everything it knows, without a thread, a lock or a socket.
//!
//! Each book is a type with its own file, whose header has its invariants; the core has them all
//! and passes each request to the file that deals with it.
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

use std::os::fd::OwnedFd;
use std::sync::Arc;

use pgmap_mm::drain::ClientId;
use pgmap_mm::level::PAGE_BYTES;

use crate::error::Error;
use crate::memory::OwnerBarrier;
use crate::owner::backing_changes::BackingChanges;
use crate::owner::client_table::ClientTable;
use crate::owner::closing::Openness;
use crate::owner::cut::Patience;
use crate::owner::dead_devices::DeadClients;
use crate::owner::drain_queue::DrainQueue;
use crate::owner::evictables::Evictables;
use crate::owner::file_book::FileBook;
use crate::owner::frames::PoolFrames;
use crate::owner::lease_book::LeaseBook;
use crate::owner::outbox::Outbox;
use crate::owner::pagemap_book::PagemapBook;
use crate::owner::part_list::PartList;
use crate::owner::populate::Populations;
use crate::owner::quotas::Quotas;
use crate::owner::registered_holder::RegisteredHolder;
use crate::owner::restore::Restorations;
use crate::owner::stock::Stock;
use crate::owner::subscribers::Subscribers;
use crate::owner::water::Water;
use crate::pool::Pool;
use crate::refusal::Refusal;
use crate::wire::{Event, Reply, Request};

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

/// The owner's books.
#[derive(Debug)]
pub struct Core {
    pub(crate) pool: Arc<Pool>,
    pub(crate) barrier: OwnerBarrier,
    pub(crate) frames: PoolFrames,
    pub(crate) files: FileBook,
    /// Spares that are made ahead.
    pub(crate) stock: Stock,
    pub(crate) clients: ClientTable,
    /// Whether the pool is on its way out.
    pub(crate) openness: Openness,
    /// Dead clients whose devices may still write.
    pub(crate) dead: DeadClients,
    pub(crate) drains: DrainQueue,
    pub(crate) pagemaps: PagemapBook,
    /// Parts of the pool that are drained, or are being drained.
    pub(crate) parts: PartList,
    /// What is happening to backings.
    pub(crate) changes: BackingChanges,
    pub(crate) leases: LeaseBook,
    pub(crate) holder: RegisteredHolder,
    /// Files whose memory is being taken from the system, a step at a time.
    pub(crate) populations: Populations,
    /// Files that are being given back what a cut was to take.
    pub(crate) restorations: Restorations,
    pub(crate) outbox: Outbox,
    /// Who follows what becomes of files.
    pub(crate) subscribers: Subscribers,
    /// Files that may be evicted.
    pub(crate) evictables: Evictables,
    /// What users and prefixes may take.
    pub(crate) quotas: Quotas,
    /// Room that is kept free.
    pub(crate) water: Water,
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
            files: FileBook::default(),
            stock: Stock::default(),
            clients: ClientTable::new(),
            drains: DrainQueue::default(),
            pagemaps: PagemapBook::open(&pool)?,
            parts: PartList::default(),
            changes: BackingChanges::default(),
            leases: LeaseBook::new(),
            holder: RegisteredHolder::new(),
            populations: Populations::default(),
            restorations: Restorations::default(),
            openness: Openness::default(),
            dead: DeadClients::default(),
            outbox: Outbox::default(),
            subscribers: Subscribers::default(),
            evictables: Evictables::default(),
            quotas: Quotas::default(),
            water: Water::default(),
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
        if let Err(refusal) = self.check_allowed(client, &request) {
            return refused(refusal);
        }
        match request {
            Request::Create(specs) => self.create(client, specs).unwrap_or_else(refused),
            Request::Commit(ids) => answer(self.commit(client, &ids)),
            Request::Put(specs) => answer(self.put(client, specs)),
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
            Request::Quarantine { after } => Outcome::Answer(self.dead.list(after, &self.frames)),
            Request::Close { deadline_ms } => self.close(deadline_ms),
            Request::DrainPart { backing, bytes, deadline_ms } => {
                self.drain_part(&backing, bytes, deadline_ms)
            }
            Request::UndoDrain { backing, bytes } => answer(self.undo_drain(&backing, bytes)),
            Request::ReleaseQuarantine(client) => answer(self.dead.release(client)),
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
            Request::Again { request, seen } => self.handle_again(client, &request, &seen),
            // The connection knows which ticket that is, or has no answer to send.
            Request::Forget(_) | Request::Wake => Outcome::Answer(Reply::Done),
            Request::Leave => {
                self.reap(client);
                Outcome::Answer(Reply::Done)
            }
        }
    }

    /// Refuses what this client, or the pool as it is now, does not allow.
    fn check_allowed(&self, client: ClientId, request: &Request) -> Result<(), Refusal> {
        if request.needs_open_pool() {
            self.check_open()?;
        }
        if !request.is_for_readers() && self.is_read_only(client) {
            return Err(Refusal::ReadOnlyClient { call: request.name().into() });
        }
        Ok(())
    }

    /// The answers that have become ready.
    pub fn take_answers(&mut self) -> Vec<(Ticket, Reply)> {
        self.outbox.take_answers()
    }

    /// Events for clients.
    pub fn take_events(&mut self) -> Vec<(ClientId, Event)> {
        self.outbox.take_events()
    }

    /// Whether answers or events wait to be handed out.
    #[must_use]
    pub fn has_messages(&self) -> bool {
        !self.outbox.is_empty() || self.holder.has_unsent() || self.subscribers.has_news()
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
}

/// So many pages in bytes.
pub(crate) const fn bytes(nr_pages: u64) -> u64 {
    nr_pages * PAGE_BYTES
}
