//! Quotas: what a user or a name prefix may take of the pool, checked before it is given.
//!
//! A quota counts files and drafts alike, by their frames ([`Counted`](super::counted::Counted)).
//! Where a create would exceed one, files that it counts and that may be evicted go first, the
//! least recently used first; then it is refused. See docs/adr/0095-quotas.md.

use std::collections::BTreeMap;

use pgmap_mm::drain::ClientId;
use pgmap_mm::error::errno::EPERM;
use pgmap_mm::index::FileId;
use pgmap_mm::level::PAGE_BYTES;
use pgmap_os::process;

use crate::name::FileName;
use crate::owner::core::{Core, bytes};
use crate::owner::counted::Use;
use crate::owner::evict::Eviction;
use crate::owner::file_book::DraftRecord;
use crate::pool::catalog::Change;
use crate::refusal::Refusal;
use crate::wire::{MAX_QUOTAS, QuotaInfo, QuotaLimits, QuotaOf, Reply, Request};

/// A quota's number, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct QuotaId(u64);

/// What was evicted for the sake of quotas by one request.
pub(crate) type QuotaEvictions = BTreeMap<QuotaId, Eviction>;

/// The quotas of a pool.
#[derive(Debug, Default)]
pub(crate) struct Quotas {
    by: BTreeMap<QuotaOf, (QuotaId, QuotaLimits)>,
    next: u64,
}

impl Quotas {
    /// Takes note of a quota; `None` if it had its number before.
    fn put(&mut self, of: QuotaOf, limits: QuotaLimits) -> Option<QuotaId> {
        if let Some((_, before)) = self.by.get_mut(&of) {
            *before = limits;
            return None;
        }
        let id = QuotaId(self.next);
        self.next += 1;
        self.by.insert(of, (id, limits));
        Some(id)
    }

    /// Those that count a file of this user and name.
    pub(crate) fn ids_of(&self, uid: u32, name: &FileName) -> Vec<QuotaId> {
        self.matching(uid, name).map(|(_, id, _)| id).collect()
    }

    /// All of them.
    #[cfg(feature = "sim")]
    pub(crate) fn subjects(&self) -> impl Iterator<Item = &QuotaOf> {
        self.by.keys()
    }

    pub(crate) fn matching(
        &self,
        uid: u32,
        name: &FileName,
    ) -> impl Iterator<Item = (&QuotaOf, QuotaId, QuotaLimits)> {
        let all = self.by.iter().map(|(of, &(id, limits))| (of, id, limits));
        all.filter(move |(of, ..)| of.has(uid, name))
    }
}

/// What a quota is to have room for.
#[derive(Clone, Copy)]
struct Wanted<'n> {
    nr_pages: u64,
    /// The name of a file that goes in the same step, if there is one.
    replaced: Option<&'n FileName>,
}

/// How much too much it would be.
struct Excess {
    pages: u64,
    files: usize,
    what: &'static str,
    limit: u64,
    used: u64,
    wanted: u64,
    /// Whether it would be too much also if nothing else were there.
    is_hopeless: bool,
}

impl Core {
    /// Puts the quotas on record back. Before the files: they are counted as they come.
    pub(crate) fn recover_quotas(&mut self) {
        let Some(catalog) = &self.pool.catalog else { return };
        let (quotas, marks) = (catalog.quotas().clone(), catalog.marks());
        self.water.marks = marks;
        for (of, limits) in quotas {
            self.count_quota(of, limits);
        }
    }

    /// Does what only an operator may ask for.
    ///
    /// # Errors
    /// Of [`check_operator`](Self::check_operator), and of what is asked.
    pub(crate) fn operate(&mut self, client: ClientId, request: Request) -> Result<Reply, Refusal> {
        self.check_operator(client, request.name())?;
        match request {
            Request::SetQuota { of, limits } => self.set_quota(of, limits),
            Request::RemoveQuota(of) => self.remove_quota(&of),
            Request::SetWaterMarks(marks) => self.set_water_marks(marks),
            other => {
                let why = format!("a {} is for anybody", other.name());
                Err(Refusal::Internal { why })
            }
        }
    }

    /// Sets a quota, in the place of what it allowed before. What is over it stays.
    ///
    /// # Errors
    /// [`Refusal::Invalid`]; [`Refusal::TooMuch`] for more than [`MAX_QUOTAS`]; of the catalog.
    pub(crate) fn set_quota(&mut self, of: QuotaOf, limits: QuotaLimits) -> Result<Reply, Refusal> {
        let invalid = |why: &str| Refusal::Invalid { why: format!("quota of {of}: {why}") };
        if limits == QuotaLimits::default() {
            return Err(invalid("it limits nothing; remove it, or name bytes, files or clients"));
        }
        if limits.clients.is_some() && matches!(of, QuotaOf::Prefix(_)) {
            return Err(invalid("clients are a user's: limit those of a uid"));
        }
        if !self.quotas.by.contains_key(&of) && self.quotas.by.len() >= MAX_QUOTAS {
            let (what, limit) = ("quotas of a pool".into(), MAX_QUOTAS as u64);
            return Err(Refusal::TooMuch { what, value: limit + 1, limit });
        }
        self.record(&[Change::Quota(&of, limits)])?;
        self.count_quota(of, limits);
        Ok(Reply::Done)
    }

    fn count_quota(&mut self, of: QuotaOf, limits: QuotaLimits) {
        let Some(id) = self.quotas.put(of.clone(), limits) else { return };
        if let QuotaOf::Prefix(prefix) = &of {
            self.files.count_prefix(prefix);
        }
        let its = self.files.iter().filter(|(name, file)| of.has(file.uid, name));
        let its: Vec<FileId> = its.map(|(_, file)| file.id).collect();
        self.evictables.begin_quota(id, &its);
    }

    /// Ends a quota.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] when there is none; of the catalog.
    pub(crate) fn remove_quota(&mut self, of: &QuotaOf) -> Result<Reply, Refusal> {
        if !self.quotas.by.contains_key(of) {
            return Err(Refusal::Invalid { why: format!("there is no quota of {of}") });
        }
        self.record(&[Change::QuotaGone(of)])?;
        if let Some((id, _)) = self.quotas.by.remove(of) {
            self.evictables.end_quota(id);
        }
        if let QuotaOf::Prefix(prefix) = of {
            self.files.forget_prefix(prefix);
        }
        Ok(Reply::Done)
    }

    /// Describes them.
    pub(crate) fn quota_infos(&self) -> Vec<QuotaInfo> {
        let describe = |(of, &(_, limits)): (&QuotaOf, &(QuotaId, QuotaLimits))| {
            let used = self.used_by(of);
            QuotaInfo {
                of: of.clone(),
                limits,
                used_bytes: bytes(used.pages),
                used_files: used.files,
                used_clients: self.clients_of(of),
            }
        };
        self.quotas.by.iter().map(describe).collect()
    }

    /// Refuses users other than root and the owner's own.
    ///
    /// # Errors
    /// [`Refusal::Denied`] with `EPERM`.
    fn check_operator(&self, client: ClientId, what: &str) -> Result<(), Refusal> {
        let operator = process::effective_uid();
        match self.uid_of(client) {
            0 => Ok(()),
            uid if uid == operator => Ok(()),
            uid => {
                let why = format!("the {what} is for root and uid {operator}, not for uid {uid}");
                Err(Refusal::Denied { why, errno: EPERM })
            }
        }
    }

    /// The user of a client.
    pub(crate) fn uid_of(&self, client: ClientId) -> u32 {
        // A request of a client that is not in the books cannot be: nobody's files are counted.
        self.clients.get(client).map_or(u32::MAX, |client| client.identity.uid)
    }

    fn used_by(&self, of: &QuotaOf) -> Use {
        self.files.used_by(of)
    }

    fn clients_of(&self, of: &QuotaOf) -> u64 {
        match of {
            QuotaOf::Uid(uid) => {
                let its = self.clients.values().filter(|client| client.identity.uid == *uid);
                its.count() as u64
            }
            QuotaOf::Prefix(_) => 0,
        }
    }

    /// Whether a user may have one more client.
    ///
    /// # Errors
    /// [`Refusal::OverQuota`].
    pub(crate) fn check_client_quota(&self, uid: u32) -> Result<(), Refusal> {
        let of = QuotaOf::Uid(uid);
        let limit = self.quotas.by.get(&of).and_then(|(_, limits)| limits.clients);
        let Some(limit) = limit else { return Ok(()) };
        let used = self.clients_of(&of);
        match used < limit {
            true => Ok(()),
            false => Err(Refusal::OverQuota {
                of: of.to_string(),
                what: "clients".into(),
                limit,
                used,
                wanted: 1,
                evictable_held_bytes: 0,
            }),
        }
    }

    /// Makes room in every quota that counts a file of this user and name for one more of so many
    /// frames.
    ///
    /// # Errors
    /// [`Refusal::OverQuota`].
    pub(crate) fn make_quota_room(
        &mut self,
        uid: u32,
        name: &FileName,
        nr_pages: u64,
        evictions: &mut QuotaEvictions,
    ) -> Result<(), Refusal> {
        let of_file = self.quotas.matching(uid, name);
        let of_file: Vec<_> = of_file.map(|(of, id, limits)| (of.clone(), id, limits)).collect();
        for (of, id, limits) in of_file {
            let eviction = evictions.entry(id).or_default();
            let wanted = Wanted { nr_pages, replaced: None };
            self.evict_for_quota(&of, id, limits, wanted, eviction)?;
        }
        Ok(())
    }

    /// Whether every quota that counts a file of this user and name has room for one more of so
    /// many frames, without anything being evicted.
    ///
    /// # Errors
    /// [`Refusal::OverQuota`].
    pub(crate) fn check_quota_room(
        &self,
        uid: u32,
        name: &FileName,
        nr_pages: u64,
    ) -> Result<(), Refusal> {
        let wanted = Wanted { nr_pages, replaced: None };
        for (of, _, limits) in self.quotas.matching(uid, name) {
            if let Some(excess) = self.excess(of, limits, wanted) {
                return Err(excess.refusal(of, 0));
            }
        }
        Ok(())
    }

    /// As [`make_quota_room`](Self::make_quota_room), for a file that is there and gets the name
    /// `to`: in the quotas that do not count it yet.
    ///
    /// # Errors
    /// The same.
    pub(crate) fn make_rename_room(
        &mut self,
        from: &FileName,
        to: &FileName,
    ) -> Result<(), Refusal> {
        let Some(file) = self.files.get(from) else { return Ok(()) };
        let (uid, nr_pages) = (file.uid, file.allocated_pages());
        let new = self.quotas.matching(uid, to).filter(|(of, ..)| !of.has(uid, from));
        let new: Vec<_> = new.map(|(of, id, limits)| (of.clone(), id, limits)).collect();
        for (of, id, limits) in new {
            let wanted = Wanted { nr_pages, replaced: Some(to) };
            self.evict_for_quota(&of, id, limits, wanted, &mut Eviction::default())?;
        }
        Ok(())
    }

    /// Takes spares back and evicts files that a quota counts, until it has room for one more of so
    /// many frames.
    fn evict_for_quota(
        &mut self,
        of: &QuotaOf,
        id: QuotaId,
        limits: QuotaLimits,
        wanted: Wanted<'_>,
        eviction: &mut Eviction,
    ) -> Result<(), Refusal> {
        while let Some(excess) = self.excess(of, limits, wanted) {
            let (pages, files) = (excess.pages, excess.files);
            let is_counted = |_: &Self, draft: &DraftRecord| of.has(draft.uid, &draft.name);
            if !excess.is_hopeless && self.take_spares_back(pages, is_counted) {
                continue;
            }
            if excess.is_hopeless || !self.evict_of_quota(eviction, id, pages, files) {
                return Err(excess.refusal(of, eviction.held_pages()));
            }
        }
        Ok(())
    }

    /// Whether each quota's use is what going through all files and drafts says.
    ///
    /// # Errors
    /// Which is not.
    #[cfg(feature = "sim")]
    pub(crate) fn audit_quotas(&self) -> Result<(), String> {
        let uids = self.files.values().map(|file| file.uid);
        let uids = uids.chain(self.files.drafts().map(|(_, draft)| draft.uid)).map(QuotaOf::Uid);
        for of in self.quotas.subjects().cloned().chain(uids) {
            let (used, counted) = (self.used_by(&of), self.files.recounted(&of));
            if used != counted {
                return Err(format!("{of} is said to use {used:?}, and uses {counted:?}"));
            }
        }
        Ok(())
    }

    /// By how much one more file of so many frames would exceed a quota; `None` if it would not.
    fn excess(&self, of: &QuotaOf, limits: QuotaLimits, wanted: Wanted<'_>) -> Option<Excess> {
        let Wanted { nr_pages, replaced } = wanted;
        let used = self.used_by(of);
        // It may be evicted meanwhile, and is nobody's credit then.
        let used = match replaced.and_then(|name| self.files.get(name)) {
            Some(file) => used.minus(Use { files: 1, pages: file.allocated_pages() }),
            None => used,
        };
        let (used_bytes, wanted_bytes) = (bytes(used.pages), bytes(nr_pages));
        if let Some(limit) = limits.bytes
            && nr_pages > 0
            && used_bytes + wanted_bytes > limit
        {
            let pages = (used_bytes + wanted_bytes - limit).div_ceil(PAGE_BYTES);
            let is_hopeless = wanted_bytes > limit;
            let (used, wanted) = (used_bytes, wanted_bytes);
            return Some(Excess {
                pages,
                files: 0,
                what: "bytes",
                limit,
                used,
                wanted,
                is_hopeless,
            });
        }
        let limit = limits.files.filter(|&limit| used.files + 1 > limit)?;
        let files = usize::try_from(used.files + 1 - limit).unwrap_or(usize::MAX);
        let (used, is_hopeless) = (used.files, limit == 0);
        Some(Excess { pages: 0, files, what: "files", limit, used, wanted: 1, is_hopeless })
    }
}

impl Excess {
    fn refusal(self, of: &QuotaOf, held_pages: u64) -> Refusal {
        let Self { what, limit, used, wanted, .. } = self;
        let (of, what) = (of.to_string(), what.to_owned());
        let evictable_held_bytes = bytes(held_pages);
        Refusal::OverQuota { of, what, limit, used, wanted, evictable_held_bytes }
    }
}
