//! Spares: frames that a client is handed ahead, so that its next put costs one call.
//!
//! A spare is a draft for which nobody has asked yet. The answer to a put brings one as large as
//! the file that was put, if its client asked for it and there is room; out of its client's stock
//! (see `stock`), unless that has none. Its client pins it when it takes it into use, as any writer
//! pins its draft, and names it in the put that commits it. See docs/adr/0099-spares.md.
//!
//! # Lost races
//!
//! *Use against reclaim.* A spare goes back to the pool when somebody needs the room, and only if
//! nobody holds it: as an eviction does it, heads Dying, heavy barrier, scan. A client that pinned
//! it before the barrier is found, and keeps it; one that pins it later finds the head Dying, has
//! written nothing, and asks for frames as if it had had no spare.

use pgmap_mm::drain::ClientId;
use pgmap_mm::index::FileId;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;
use smallvec::SmallVec;

use crate::owner::batch_room::BatchRoom;
use crate::owner::core::{Core, bytes};
use crate::owner::file_book::DraftRecord;
use crate::owner::files::checked_batch;
use crate::owner::populate::STEP_PAGES;
use crate::owner::quotas::QuotaEvictions;
use crate::owner::stock::{MAX_STOCK, MAX_STOCK_BYTES};
use crate::refusal::Refusal;
use crate::wire::{
    CommitSpec, CreateSpec, Draft, MAX_SPARES, MAX_SPARES_BYTES, PutAnswer, PutSpec, Reply,
};

/// Spares for which files are evicted have at most one in so many of the pool's frames, all of a
/// client's together.
const EVICTING_SHARE: u64 = 64;

/// Who is to make room for frames that are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Spares first, then files that may be evicted.
    File,
    /// Files that may be evicted, in the pool and not for a quota.
    Spare,
    /// Nobody.
    IdleSpare,
}

impl Core {
    /// Gives drafts their names and commits them, and hands out spares like them where they are
    /// asked for and there is room.
    pub(crate) fn put(&mut self, client: ClientId, specs: Vec<PutSpec>) -> Result<Reply, Refusal> {
        checked_batch(specs.len())?;
        let mut commits = Vec::with_capacity(specs.len());
        let named: Vec<_> = specs
            .into_iter()
            .map(|spec| {
                let commit = CommitSpec { id: spec.id, checksum: spec.checksum };
                let nr_spares = usize::from(spec.nr_spares);
                let next = self.name_draft(client, spec)?;
                commits.push(commit);
                Ok((next, nr_spares))
            })
            .collect();
        let Reply::Committed(results) = self.commit(client, &commits)? else {
            return Err(Refusal::Internal { why: "commits without an answer".into() });
        };
        let nexts = named.iter().flatten();
        let nexts = nexts.flat_map(|(next, nr_spares)| std::iter::repeat_n(next, *nr_spares));
        let wanted_pages = self.evicting_pages(client, nexts);
        let mut results = results.into_iter();
        let mut room = BatchRoom { wanted_pages, ..BatchRoom::new() };
        let (mut like, mut is_short) = (Vec::new(), false);
        let answers = named.into_iter().map(|named: Result<(CreateSpec, usize), Refusal>| {
            let (next, nr_spares) = match named {
                Ok(next) => next,
                Err(refusal) => {
                    return PutAnswer { committed: Err(refusal), spares: SmallVec::new() };
                }
            };
            let gone = || Err(Refusal::Internal { why: "a commit without an answer".into() });
            let committed = results.next().unwrap_or_else(gone);
            let nr_spares = if committed.is_ok() { nr_spares } else { 0 };
            let spares = (0..nr_spares).map_while(|_| self.hand_out(client, &next, &mut room));
            let spares: SmallVec<[_; 1]> = spares.collect();
            is_short |= spares.len() < nr_spares;
            like.extend(std::iter::repeat_n(next, spares.len()));
            PutAnswer { committed, spares }
        });
        let answers = answers.collect();
        if !is_short {
            like.into_iter().for_each(|spec| self.stock.order(client, spec));
        }
        Ok(Reply::Put(answers))
    }

    /// Has a draft of `client` be what a put says, if quotas have room for it as for a file that is
    /// created. Returns what is to be asked for to have another as large.
    fn name_draft(&mut self, client: ClientId, spec: PutSpec) -> Result<CreateSpec, Refusal> {
        let id = FileId(spec.id);
        self.check_name_free(&spec.name, spec.replace)?;
        let is_theirs = self.files.draft_of(id, client).is_some();
        let draft = if is_theirs { self.files.take_draft(id) } else { None };
        // It is counted nowhere meanwhile.
        let mut draft = draft.ok_or(Refusal::NoDraft { id: spec.id, why: String::new() })?;
        let nr_pages = draft.nr_pages();
        let mut evictions = QuotaEvictions::new();
        let room = self.make_quota_room(draft.uid, &spec.name, nr_pages, &mut evictions);
        if let Err(refusal) = room {
            self.files.add_draft(id, draft);
            return Err(refusal);
        }
        draft.is_spare = false;
        draft.is_checksummed = spec.checksum.is_some();
        (draft.replace, draft.rules, draft.metadata) = (spec.replace, spec.rules, spec.metadata);
        draft.name = spec.name;
        let next = CreateSpec {
            placement: draft.placement.clone(),
            replace: true,
            ..CreateSpec::new(draft.name.clone(), draft.len_bytes, draft.folio_size)
        };
        self.files.add_draft(id, draft);
        Ok(next)
    }

    /// The frames of spares for which files may be evicted: one eviction serves all of them.
    pub(crate) fn evicting_pages<'s>(
        &self,
        client: ClientId,
        specs: impl Iterator<Item = &'s CreateSpec>,
    ) -> u64 {
        let (_, pages_before) = self.files.spares_of(client);
        let mut pages = pages_before;
        for spec in specs {
            let its = self.frames.pages_for(spec.len_bytes, spec.folio_size.sizing());
            match its.filter(|its| self.may_evict_for_spares(pages + its)) {
                Some(its) => pages += its,
                None => break,
            }
        }
        pages - pages_before
    }

    /// Whether files may be evicted for so many frames of one client's spares.
    fn may_evict_for_spares(&self, pages: u64) -> bool {
        pages <= self.evicting_share()
    }

    fn evicting_share(&self) -> u64 {
        self.all_pages() / EVICTING_SHARE
    }

    /// A spare for an answer, out of stock if there is one.
    fn hand_out(
        &mut self,
        client: ClientId,
        spec: &CreateSpec,
        room: &mut BatchRoom,
    ) -> Option<Draft> {
        let stocked = self.take_stocked(client, spec);
        stocked.or_else(|| self.spare_like(client, spec.clone(), room, false))
    }

    /// Reserves a spare; `None` if there is no room for it, or its client has enough of them.
    pub(crate) fn spare_like(
        &mut self,
        client: ClientId,
        spec: CreateSpec,
        room: &mut BatchRoom,
        is_stock: bool,
    ) -> Option<Draft> {
        let pages = self.frames.pages_for(spec.len_bytes, spec.folio_size.sizing())?;
        let (nr_before, pages_before) = self.files.spares_of(client);
        let has_enough = nr_before >= MAX_SPARES + MAX_STOCK
            || bytes(pages_before + pages) > MAX_SPARES_BYTES + MAX_STOCK_BYTES;
        if pages == 0 || pages > STEP_PAGES || has_enough {
            return None;
        }
        let need = match self.may_evict_for_spares(pages_before + pages) {
            true => Need::Spare,
            // What little is free is for those who ask for it.
            false if is_stock && self.frames.free_pages() < pages + self.evicting_share() => {
                return None;
            }
            false => Need::IdleSpare,
        };
        self.create_spare(client, spec, need, room)
    }

    /// Whether the frames of spares are so many as is said.
    ///
    /// # Errors
    /// How many they are.
    #[cfg(feature = "sim")]
    pub(crate) fn audit_spares(&self) -> Result<(), String> {
        let spares = self.files.drafts().filter(|(_, draft)| draft.is_spare);
        let (said, are) =
            (self.files.spare_pages(), spares.map(|(_, draft)| draft.nr_pages()).sum::<u64>());
        if said == are {
            return Ok(());
        }
        Err(format!("{said} frames are said to be spare, and {are} are"))
    }

    /// Takes spares back that lie in the zones `order`.
    pub(crate) fn take_spares_on(&mut self, order: &[u64], pages: u64) -> bool {
        self.take_spares_back(pages, |core, draft| {
            let zone = |run: PfnRange| core.frames.backings().at(run.start()).first_pfn;
            draft.runs().next().is_some_and(|run| order.contains(&zone(run)))
        })
    }

    /// Takes spares that nobody holds back into the pool, of those that are meant: until they have
    /// so many frames, and one at the least. False if there is none.
    pub(crate) fn take_spares_back(
        &mut self,
        pages: u64,
        is_meant: impl Fn(&Self, &DraftRecord) -> bool,
    ) -> bool {
        let (mut ids, mut nr_taken) = (Vec::new(), 0);
        for (id, draft) in self.files.spares() {
            if !ids.is_empty() && nr_taken >= pages {
                break;
            }
            let runs: SortedRuns = draft.runs().collect();
            // Most spares that are in use are found so without harm.
            if is_meant(self, draft) && !self.is_held(&runs) {
                nr_taken += draft.nr_pages();
                ids.push(id);
            }
        }
        if ids.is_empty() {
            return false;
        }
        let mut all = Vec::new();
        for draft in ids.iter().filter_map(|&id| self.files.draft(id)) {
            self.frames.shut(&draft.extents);
            all.extend(draft.runs());
        }
        let drain = self.scan_for(SortedRuns::new(all));
        let mut has_taken = false;
        for id in ids {
            let Some(draft) = self.files.take_draft(id) else { continue };
            let part = drain.part(draft.runs().collect());
            if !part.is_idle() {
                self.frames.open_again(&draft.extents);
                self.files.add_draft(id, draft);
                continue;
            }
            // Of those that cannot be pinned, too.
            self.frames.retire(&draft.extents);
            self.took_one_out(part, None);
            has_taken = true;
        }
        has_taken
    }
}
