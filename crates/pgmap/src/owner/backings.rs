//! Further backings, added and taken out while the owner serves.
//!
//! # Order of a change
//! A backing is on record before a file can lie on it, and off the record only when none does.
//!
//! # Frames that are kept
//! A client that mapped a backing's frames keeps the mapping until it hears that the backing is
//! gone. Should other memory get the same frames meanwhile, that client would look at the wrong
//! one. So the frames of a backing that was taken out are nobody's, on record, until every client
//! of that time has gone.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use pgmap_mm::drain::ClientId;
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::pagemap::{DeviceRange, OpsPresent, PagemapSpec, SUBSECTION_BYTES};
use pgmap_mm::pfn::PfnRange;

use crate::error::Error;
use crate::owner::backing::{Backing, BackingState, MAX_BACKINGS};
use crate::owner::catalog::{Change, StoredBacking};
use crate::owner::core::{Core, bytes};
use crate::owner::frames::stored;
use crate::pool::Pool;
use crate::pool::backing::{BackingHead, BackingOptions, Made, open_backing, wipe};
use crate::refusal::Refusal;
use crate::wire::{BackingInfo, Reply};

/// The frames of a backing that was taken out.
#[derive(Debug)]
pub(crate) struct Retired {
    pub line: StoredBacking,
    /// Clients that may have it mapped.
    pub clients: BTreeSet<ClientId>,
}

impl Core {
    /// Adds a backing, or takes one back that was missing. Returns its number.
    ///
    /// # Errors
    /// As [`Owner::add_backing`](crate::Owner::add_backing).
    pub(crate) fn add_backing(&mut self, options: &BackingOptions) -> Result<u64, Error> {
        let found = options.path.as_deref().map(Pool::backing_at).transpose()?.flatten();
        if let Some((head, path)) = found {
            return self.take_back(head, path);
        }
        let name = options.checked_name()?;
        if self.frames.backings().named(&name).is_some() {
            let why = format!("the pool has a backing \"{name}\" already; give this another name");
            return Err(Refusal::Invalid { why }.into());
        }
        if self.frames.backings().iter().count() >= MAX_BACKINGS {
            let (what, limit) = ("backings of a pool".into(), MAX_BACKINGS as u64);
            return Err(Refusal::TooMuch { what, value: limit + 1, limit }.into());
        }
        let id = self.frames.take_stamp()?.number();
        let made = self.pool.make_backing(options, id)?;
        let Some(first_pfn) = self.find_place(made.nr_pages) else {
            let why = format!(
                "{} bytes do not fit into the room that the pool was made with for further \
                 backings ({} bytes in all, behind {}); choose a smaller size, or make a pool with \
                 more room",
                bytes(made.nr_pages),
                self.pool.span_bytes() - self.pool.capacity_bytes(),
                self.pool.capacity_bytes()
            );
            made.discard();
            return Err(Refusal::Invalid { why }.into());
        };
        let Made { nr_pages, offset_bytes, memory_type, ref path, .. } = made;
        let backing = Backing {
            id,
            name,
            path: path.clone(),
            first_pfn,
            nr_pages,
            offset_bytes,
            memory_type,
            state: BackingState::Open,
            data: Some(Arc::clone(&made.medium.data)),
            lock: None,
            end_pfn: first_pfn + nr_pages,
        };
        let line = stored(&backing, &backing.path);
        let added = self
            .add_to_table(&backing)
            .and_then(|()| self.record(&[Change::Backing(line)]))
            .and_then(|()| self.frames.add_backing(backing));
        if let Err(refusal) = added {
            self.remove_from_table(first_pfn);
            self.record(&[Change::BackingGone(id)])?;
            made.discard();
            return Err(refusal.into());
        }
        if let Some(backing) = self.frames.backings_mut().iter_mut().find(|it| it.id == id) {
            backing.lock = made.medium.lock;
        }
        Ok(id)
    }

    /// As [`add_backing`](Self::add_backing), for a client that names a path.
    pub(crate) fn add_backing_at(
        &mut self,
        path: Vec<u8>,
        size_bytes: u64,
        name: Option<String>,
    ) -> Result<Reply, Refusal> {
        let path = PathBuf::from(OsString::from_vec(path));
        if !path.is_absolute() {
            let why = format!("the path of a backing is absolute, which {} is not", path.display());
            return Err(Refusal::Invalid { why });
        }
        let options = BackingOptions { path: Some(path), size_bytes, name };
        self.add_backing(&options)?;
        Ok(Reply::Done)
    }

    /// The medium of a missing backing was named: its files have their contents again.
    fn take_back(&mut self, head: BackingHead, path: PathBuf) -> Result<u64, Error> {
        let bad = |why: String| Error::BadPool { pool: path.display().to_string(), why };
        if head.pool != self.pool.id() {
            let why = format!(
                "it is a backing of pool {}, and this is pool {}; take it out there, or zero its \
                 first page",
                head.pool,
                self.pool.id()
            );
            return Err(bad(why));
        }
        let line = self.frames.backings().iter().find(|it| it.id == head.id);
        let Some(backing) = line else {
            let why = "it is a backing that the pool does not have on record; if nothing of it is \
                       needed, remove the file, or zero the first page of the device";
            return Err(bad(why.into()));
        };
        if backing.data.is_some() {
            return Err(bad(format!("it is the pool's backing \"{}\" already", backing.name)));
        }
        let line = stored(backing, &path);
        let medium = open_backing(self.pool.id(), &line)?;
        if backing.path != path {
            self.record(&[Change::Backing(line)])?;
        }
        let id = head.id;
        self.frames.backings_mut().bring_back(id, |backing| {
            backing.path = path;
            backing.data = Some(medium.data);
            backing.lock = medium.lock;
            backing.state = BackingState::Open;
        });
        self.republish();
        Ok(id)
    }

    /// Where a backing of `nr_pages` frames can start.
    fn find_place(&mut self, nr_pages: u64) -> Option<u64> {
        self.end_retirements();
        let kept = self.retired.iter().map(|retired| {
            let first = retired.line.first_pfn;
            (first, first + retired.line.nr_pages)
        });
        let end = self.pool.span_bytes() / PAGE_BYTES;
        self.frames.backings().find_place(nr_pages, end, kept)
    }

    /// Frees the frames of backings that no client of their time is left of.
    pub(crate) fn end_retirements(&mut self) {
        let clients = &self.clients;
        for retired in &mut self.retired {
            retired.clients.retain(|client| clients.contains_key(client));
        }
        let ended: Vec<u64> = self
            .retired
            .iter()
            .filter(|retired| retired.clients.is_empty())
            .map(|retired| retired.line.id)
            .collect();
        for id in ended {
            match self.record(&[Change::BackingGone(id)]) {
                Ok(()) => self.retired.retain(|retired| retired.line.id != id),
                Err(refusal) => tracing::warn!(%refusal, "the frames of a backing stay out of use"),
            }
        }
    }

    /// Takes up what the catalog says of backings that were taken out: every client that lives may
    /// have them mapped. Those that are there get their lines in the table of pagemaps.
    pub(crate) fn recover_backings(&mut self) -> Result<(), Error> {
        let lines = self.pool.catalog.as_ref().map_or(&[][..], |catalog| catalog.backings());
        let clients: BTreeSet<ClientId> = self.clients.keys().copied().collect();
        for line in lines.iter().filter(|line| line.is_retired) {
            self.retired.push(Retired { line: line.clone(), clients: clients.clone() });
        }
        self.end_retirements();
        Ok(())
    }

    /// Puts the backings that are on record into the table of pagemaps.
    pub(crate) fn list_backings(&mut self) -> Result<(), Error> {
        let firsts: Vec<u64> = self.frames.backings().iter().map(|it| it.first_pfn).collect();
        for first in firsts.into_iter().filter(|&first| first != 0) {
            let backing = self.frames.backings().at(first);
            let spec = spec_of(backing);
            self.pagemaps.add(&spec, &mut ()).map_err(Refusal::from)?;
        }
        Ok(())
    }

    fn add_to_table(&mut self, backing: &Backing) -> Result<(), Refusal> {
        self.pagemaps.add(&spec_of(backing), &mut ())?;
        Ok(())
    }

    fn remove_from_table(&mut self, first_pfn: u64) {
        let first = pgmap_mm::pfn::Pfn::new(first_pfn);
        let id = first.and_then(|first| self.pagemaps.covering(first)).map(|map| map.id());
        id.into_iter().for_each(|id| self.drop_pagemap(id));
    }

    /// Takes a backing out on which no file lies and no frame is held.
    ///
    /// # Errors
    /// As [`Owner::remove_backing`](crate::Owner::remove_backing).
    pub(crate) fn remove_backing(&mut self, name: &str) -> Result<(), Error> {
        let backing = self.frames.backings().named(name);
        let absent = || {
            let why = "the pool has none of that name".into();
            Refusal::NoBacking { backing: name.into(), why }
        };
        let backing = backing.ok_or_else(absent)?;
        if backing.id == 0 {
            let why = "the pool's own data cannot be taken out of it".into();
            return Err(Refusal::Invalid { why }.into());
        }
        self.check_empty(backing)?;
        let (id, first_pfn) = (backing.id, backing.first_pfn);
        self.look_again();
        while self.is_looking() {
            self.look_on();
        }
        while self.frames.has_backlog() {
            self.reclaim_some();
        }
        let line =
            StoredBacking { is_retired: true, ..stored(backing_of(self, id)?, &PathBuf::new()) };
        self.record(&[Change::Backing(line.clone())])?;
        let Some(backing) = self.frames.remove_backing(id) else {
            let backing = backing_of(self, id)?;
            let line = stored(backing, &backing.path);
            self.record(&[Change::Backing(line)])?;
            let why = format!(
                "\"{name}\" has frames that are no file's and not free: they wait for holders, or \
                 are out of use; ask who holds them"
            );
            return Err(Refusal::InUse { name: name.into(), doing: why }.into());
        };
        self.remove_from_table(first_pfn);
        let clients = self.clients.keys().copied().collect();
        self.retired.push(Retired { line, clients });
        self.end_retirements();
        release(backing);
        Ok(())
    }

    /// Refuses while a file or draft has frames of it.
    fn check_empty(&self, backing: &Backing) -> Result<(), Refusal> {
        let runs = backing.runs();
        let is_there = |run: PfnRange| runs.iter().any(|of_backing| of_backing.overlaps(run));
        let on_it: Vec<String> = self
            .files
            .iter()
            .filter(|(_, file)| file.runs().any(is_there))
            .map(|(name, _)| format!("\"{name}\""))
            .collect();
        if let Some(first) = on_it.first() {
            let doing = format!(
                "used by {} files, of which {first} is the first; unlink or move them",
                on_it.len()
            );
            return Err(Refusal::InUse { name: backing.name.clone(), doing });
        }
        let drafts = self.drafts.values();
        let drafted =
            drafts.filter(|draft| draft.extents.iter().any(|extent| is_there(extent.run))).count();
        if drafted > 0 {
            let doing = format!("written to by {drafted} writers that have not committed");
            return Err(Refusal::InUse { name: backing.name.clone(), doing });
        }
        Ok(())
    }

    /// What clients are told of the backings.
    pub(crate) fn backing_infos(&self) -> Vec<BackingInfo> {
        let infos = self.frames.backings().iter().map(|backing| {
            let (free_pages, longest_pages) = self.frames.free_in(backing);
            BackingInfo {
                id: backing.id,
                name: backing.name.clone(),
                path: backing.path.display().to_string(),
                kind: backing.data.as_ref().map(|data| data.kind().to_string()),
                numa_node: backing.data.as_ref().and_then(|data| data.numa_node()),
                first_pfn: backing.first_pfn,
                size_bytes: bytes(backing.nr_pages),
                offset_bytes: backing.offset_bytes,
                free_bytes: bytes(free_pages),
                longest_free_bytes: bytes(longest_pages),
                backed_bytes: backing.data.as_ref().map_or(0, |data| data.resident_bytes()),
                missing: match &backing.state {
                    BackingState::Missing(why) => Some(why.clone()),
                    BackingState::Open => None,
                },
            }
        });
        infos.collect()
    }

    /// A descriptor of each further backing that is there.
    pub(crate) fn hand_backings(&self) -> Result<Vec<OwnedFd>, Error> {
        let there = self.frames.backings().iter().filter(|backing| backing.id != 0);
        let files = there.filter_map(|backing| backing.data.as_ref());
        Ok(files.map(|file| file.try_clone_fd()).collect::<Result<_, _>>()?)
    }

    /// Has the contents of further backings be where their pool's are to be.
    pub(crate) fn sync_backings(&self) -> Result<(), Error> {
        let further = self.frames.backings().iter().filter(|backing| backing.id != 0);
        for data in further.filter_map(|backing| backing.data.as_ref()) {
            data.sync()?;
        }
        Ok(())
    }
}

fn backing_of(core: &Core, id: u64) -> Result<&Backing, Refusal> {
    let found = core.frames.backings().iter().find(|backing| backing.id == id);
    found.ok_or_else(|| Refusal::Internal { why: format!("backing {id} is gone") })
}

/// A backing as a pagemap: what kind of memory its frames are.
fn spec_of(backing: &Backing) -> PagemapSpec {
    let len_bytes = bytes(backing.nr_pages).next_multiple_of(SUBSECTION_BYTES);
    PagemapSpec {
        memory_type: backing.memory_type,
        ranges: vec![DeviceRange { start_bytes: bytes(backing.first_pfn), len_bytes }],
        owner: Some(0),
        largest_level: Level::Pud.number(),
        ops: OpsPresent::FOLIO_FREE,
        altmap: None,
    }
}

/// A backing that was taken out is nobody's: a file is removed, a device has no head any more.
fn release(backing: Backing) {
    let Some(data) = &backing.data else { return };
    if let Err(error) = wipe(data) {
        tracing::warn!(backing = %backing.name, %error, "a head cannot be wiped");
    }
    if backing.lock.is_some()
        && data.kind() != pgmap_os::MemoryKind::DevDax
        && let Err(error) = pgmap_os::disk::remove_file(&backing.path)
    {
        tracing::warn!(backing = %backing.name, %error, "its file is left behind");
    }
    if let Err(error) = data.abandon() {
        tracing::warn!(backing = %backing.name, %error, "a descriptor is left open");
    }
}
