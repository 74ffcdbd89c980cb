//! Files: create, commit, abort, unlink, rename.

use std::collections::BTreeSet;
use std::sync::Arc;

use pgmap_mm::admission::{HolderStance, RangeFlags, publish_flags};
use pgmap_mm::descriptor::{Descriptor, FolioFlags, FolioState};
use pgmap_mm::drain::ClientId;
use pgmap_mm::extent::Extent;
use pgmap_mm::folio::Sizing;
use pgmap_mm::frames::FramesShort;
use pgmap_mm::index::{EntryId, FileId};
use pgmap_mm::level::Level;
use pgmap_mm::memory_type::MemoryType;
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::stamp::Stamp;
use pgmap_os::{LongTerm, MemoryFile, MemoryKind, Persistence};
use smallvec::SmallVec;

use crate::metadata::{FileMetadata, UserMetadata};
use crate::name::FileName;
use crate::owner::batch_room::BatchRoom;
use crate::owner::core::{Core, Outcome, bytes};
use crate::owner::evict::{Eviction, Want};
use crate::owner::file_book::{DraftRecord, FileRecord};
use crate::owner::frames::MAX_FILE_EXTENTS;
use crate::owner::part_drains::DRAINED;
use crate::owner::spares::Need;
use crate::pool::catalog::Change;
use crate::refusal::Refusal;
use crate::wire::{
    self, CommitSpec, Committed, CreateSpec, Draft, FileChange, FileRules, FolioSize, MAX_BATCH,
    MAX_REPLY_EXTENTS, Reply, extents_to_words,
};

pub(crate) fn checked_batch(nr_items: usize) -> Result<(), Refusal> {
    if nr_items > MAX_BATCH {
        return Err(Refusal::TooMuch {
            what: "items of a batch".into(),
            value: nr_items as u64,
            limit: MAX_BATCH as u64,
        });
    }
    Ok(())
}

impl Core {
    /// Reserves frames for files. Memory for the first few is taken at once; for more the answer
    /// comes later.
    pub(crate) fn create(
        &mut self,
        client: ClientId,
        specs: Vec<CreateSpec>,
    ) -> Result<Outcome, Refusal> {
        checked_batch(specs.len())?;
        let mut room =
            BatchRoom { wanted_pages: self.wanted_pages(client, &specs), ..BatchRoom::new() };
        let mut drafts = Vec::with_capacity(specs.len());
        let mut todo = Vec::new();
        for spec in specs {
            let draft = self.create_one(client, spec, Need::File, &mut room);
            if let Ok((id, runs)) = &draft
                && !runs.is_empty()
            {
                todo.push((drafts.len(), FileId(id.id), runs.clone()));
            }
            drafts.push(draft.map(|(draft, _)| draft));
        }
        if todo.is_empty() {
            return Ok(Outcome::Answer(Reply::Created(drafts)));
        }
        Ok(Outcome::Later(self.populate(client, drafts, todo)))
    }

    /// Reserves a spare that is as a file of this `spec` would be; `None` if there is no room.
    pub(crate) fn create_spare(
        &mut self,
        client: ClientId,
        spec: CreateSpec,
        need: Need,
        room: &mut BatchRoom,
    ) -> Option<Draft> {
        let (draft, lacking) = self.create_one(client, spec, need, room).ok()?;
        if lacking.is_empty() {
            return Some(draft);
        }
        // Nobody was given these frames, so nobody holds them.
        let taken = self.files.take_draft(FileId(draft.id));
        taken.iter().for_each(|draft| self.frames.give_back(&draft.extents));
        None
    }

    fn create_one(
        &mut self,
        client: ClientId,
        spec: CreateSpec,
        need: Need,
        room: &mut BatchRoom,
    ) -> Result<(Draft, Vec<PfnRange>), Refusal> {
        self.check_name_free(&spec.name, spec.replace)?;
        let sizing = spec.folio_size.sizing();
        let smallest = self.frames.smallest();
        if matches!(sizing, Sizing::Fixed(level) if level < smallest) {
            let why = format!("the pool describes folios of {smallest} and larger; ask for those");
            return Err(Refusal::Invalid { why });
        }
        let order = self.frames.order(&spec.placement)?;
        let most_pages = self.frames.most_pages(&order);
        let pages = self.frames.pages_for(spec.len_bytes, sizing);
        let pages = pages
            .filter(|&pages| pages <= most_pages)
            .ok_or_else(|| too_long(&spec, pages, &self.frames.places(&order), most_pages))?;
        let uid = self.uid_of(client);
        match need {
            Need::File => self.make_quota_room(uid, &spec.name, pages, &mut room.of_quotas)?,
            Need::Spare | Need::IdleSpare => self.check_quota_room(uid, &spec.name, pages)?,
        }
        let stamp = self.frames.take_stamp()?;
        let extents = match pages {
            // An empty file has no frames, and its number from the stamp as any other.
            0 => Vec::new(),
            _ => {
                let batch_pages = room.wanted_pages;
                let want = Want { pages, batch_pages, nr_files: 1, sizing, order: &order };
                self.reserve(want, stamp, need, &mut room.eviction)?
            }
        };
        if extents.len() > room.nr_extents {
            self.frames.give_back(&extents);
            return Err(Refusal::TooMuch {
                what: "extents of a batch, because free memory is in pieces; ask for fewer".into(),
                value: extents.len() as u64,
                limit: room.nr_extents as u64,
            });
        }
        let missing: u64 = extents.iter().map(|e| self.frames.missing_pages(e.run)).sum();
        let mut lacking: Vec<PfnRange> = Vec::new();
        if missing > room.nr_pages {
            lacking = extents.iter().rev().map(|extent| extent.run).collect();
        } else if let Err(refusal) = self.frames.back(&extents) {
            self.frames.give_back(&extents);
            return Err(refusal);
        } else {
            room.nr_pages -= missing;
        }
        room.nr_extents -= extents.len();
        room.wanted_pages = room.wanted_pages.saturating_sub(pages);
        let id = FileId(stamp.number());
        let draft = Draft { id: id.0, extents: extents_to_words(&extents) };
        self.files.add_draft(
            id,
            DraftRecord {
                client,
                uid,
                name: spec.name,
                len_bytes: spec.len_bytes,
                folio_size: spec.folio_size,
                placement: spec.placement,
                replace: spec.replace,
                rules: spec.rules,
                extents,
                metadata: spec.metadata,
                is_checksummed: spec.is_checksummed,
                is_spare: need != Need::File,
            },
        );
        Ok((draft, lacking))
    }

    /// Hands frames out. What is missing may have been let go a moment ago: then that is looked
    /// for. Else spares are taken back, then files evicted, as far as `need` says.
    fn reserve(
        &mut self,
        want: Want<'_>,
        stamp: Stamp,
        need: Need,
        eviction: &mut Eviction,
    ) -> Result<Vec<Extent>, Refusal> {
        let Want { pages, sizing, order, .. } = want;
        let mut reserved = match self.frames.reserve(pages, sizing, stamp, order) {
            Err(_) if self.is_draining() => {
                self.look_again();
                while self.is_looking() {
                    self.look_on();
                }
                self.frames.reserve(pages, sizing, stamp, order)
            }
            result => result,
        };
        while let Err(short) = &reserved
            && need != Need::IdleSpare
            && (need == Need::File && !short.lacks_descriptors && self.take_spares_on(order, pages)
                || self.evict_for(eviction, want, short))
        {
            reserved = self.frames.reserve(pages, sizing, stamp, order);
        }
        if need == Need::File {
            self.note_level();
        }
        let held_pages = eviction.held_pages();
        let extents = reserved.map_err(|short| self.no_space(short, order, held_pages))?;
        if extents.len() > MAX_FILE_EXTENTS {
            self.frames.give_back(&extents);
            return Err(Refusal::TooMuch {
                what: "extents of a file, because free memory is in pieces".into(),
                value: extents.len() as u64,
                limit: MAX_FILE_EXTENTS as u64,
            });
        }
        Ok(extents)
    }

    fn no_space(&self, short: FramesShort, order: &[u64], held_pages: u64) -> Refusal {
        let evictable_held_bytes = bytes(held_pages);
        if short.lacks_descriptors {
            let why = format!(
                "its file system has no room for the descriptors of {} bytes",
                bytes(short.wanted_pages)
            );
            return Refusal::NoMemory { why };
        }
        if !self.frames.backings().is_data_alone() {
            let wanted_bytes = bytes(short.wanted_pages);
            let tried = self.frames.free_on(order);
            return Refusal::NoSpaceOn { wanted_bytes, tried, evictable_held_bytes };
        }
        Refusal::NoSpace {
            wanted_bytes: bytes(short.wanted_pages),
            free_bytes: bytes(short.free_pages),
            longest_bytes: bytes(short.longest_run_pages),
            draining_bytes: bytes(self.draining_pages()),
            evictable_held_bytes,
        }
    }

    pub(crate) fn check_name_free(&self, name: &FileName, replace: bool) -> Result<(), Refusal> {
        match self.files.get(name) {
            None => Ok(()),
            Some(file) if replace => file_idle(name, file),
            Some(_) => Err(Refusal::Exists { name: name.to_string() }),
        }
    }

    /// Publishes drafts: on record first, then Live, then in the index.
    pub(crate) fn commit(
        &mut self,
        client: ClientId,
        specs: &[CommitSpec],
    ) -> Result<Reply, Refusal> {
        checked_batch(specs.len())?;
        let mut results: Vec<Result<Committed, Refusal>> = Vec::with_capacity(specs.len());
        let mut ready: Vec<(usize, CommitSpec)> = Vec::new();
        let (mut seen, mut names) = (BTreeSet::new(), BTreeSet::new());
        // One alone is named once.
        let is_batch = specs.len() > 1;
        self.make_index_room(client, specs);
        // Slots of the index that the batch takes, and names that are new.
        let mut room = (0, 0);
        for (place, &spec) in specs.iter().enumerate() {
            let id = FileId(spec.id);
            let draft = self.files.draft_of(id, client);
            let is_known_id = is_batch && seen.contains(&id);
            let draft = draft.filter(|_| !self.populations.lacks_memory(id) && !is_known_id);
            let draft = draft.ok_or(Refusal::NoDraft { id: id.0, why: String::new() });
            let verdict = draft.and_then(|draft| {
                let is_named_twice = is_batch && names.contains(&draft.name);
                self.may_commit(draft, is_named_twice, &mut room)?;
                if is_batch {
                    seen.insert(id);
                    names.insert(&draft.name);
                }
                ready.push((place, spec));
                Ok(())
            });
            results.push(verdict.map(|()| Committed { life: SmallVec::new() }));
        }
        ready.retain(|(place, spec)| {
            let zeroed = self
                .files
                .draft(FileId(spec.id))
                .map_or(Ok(()), |draft| self.frames.zero_tail(&draft.extents, draft.len_bytes));
            zeroed.map_err(|refusal| results[*place] = Err(refusal)).is_ok()
        });
        self.record_commits(&ready)?;
        let mut replaced = Vec::new();
        for (place, spec) in ready {
            let Some(draft) = self.files.take_draft(FileId(spec.id)) else { continue };
            results[place] = self.publish(spec, draft, &mut replaced);
        }
        self.retire(replaced);
        // What may be evicted now could not before.
        self.note_level();
        Ok(Reply::Committed(results))
    }

    /// Evicts files where the index has no room for the drafts of a commit.
    fn make_index_room(&mut self, client: ClientId, specs: &[CommitSpec]) {
        let drafts =
            || specs.iter().filter_map(|spec| self.files.draft_of(FileId(spec.id), client));
        let slots = drafts().map(|draft| self.frames.slots_for(draft.extents.len()));
        let nr_slots = slots.sum();
        let nr_files = self.files.len() + specs.len();
        if nr_files as u64 <= self.pool.max_files() && self.frames.check_room(nr_slots).is_ok() {
            return;
        }
        let nr_new = drafts().filter(|draft| !self.files.contains(&draft.name)).count();
        self.evict_for_index(nr_new, nr_slots);
    }

    /// Whether `draft` may get its name, which others of the batch may have been given already.
    fn may_commit(
        &self,
        draft: &DraftRecord,
        is_named_twice: bool,
        (slots, new_names): &mut (usize, usize),
    ) -> Result<(), Refusal> {
        if Self::is_damaged(&draft.extents) {
            return Err(Refusal::Poisoned { name: draft.name.to_string() });
        }
        self.check_name_free(&draft.name, draft.replace)?;
        if is_named_twice {
            return Err(Refusal::Exists { name: draft.name.to_string() });
        }
        // Who is refused takes nothing away from the rest of the batch.
        let max_files = self.pool.max_files();
        // Who would not replace a file was found to have a new name.
        let is_new = !draft.replace || !self.files.contains(&draft.name);
        let nr_new = *new_names + usize::from(is_new);
        if (self.files.len() + nr_new) as u64 > max_files.max(self.files.len() as u64) {
            return Err(Refusal::IndexFull { nr_slots: max_files });
        }
        let nr_slots = *slots + self.frames.slots_for(draft.extents.len());
        self.frames.check_room(nr_slots)?;
        if draft.metadata != UserMetadata::default() {
            self.frames.check_metadata_room(nr_slots)?;
        }
        (*slots, *new_names) = (nr_slots, nr_new);
        Ok(())
    }

    fn record_commits(&self, ready: &[(usize, CommitSpec)]) -> Result<(), Refusal> {
        if self.pool.catalog.is_none() {
            return Ok(());
        }
        let mut changes = Vec::with_capacity(ready.len());
        for (_, spec) in ready {
            let id = FileId(spec.id);
            let Some(draft) = self.files.draft(id) else { continue };
            let live = draft.extents.iter().map(|extent| Extent {
                life: live_word(extent.life, self.flags_for(draft.rules, &draft.extents)),
                ..*extent
            });
            let record = draft.committed(*spec, live.collect());
            changes.push(Change::Put(&draft.name, record.stored()));
        }
        self.record(&changes)
    }

    fn publish(
        &mut self,
        spec: CommitSpec,
        draft: DraftRecord,
        replaced: &mut Vec<(FileName, FileRecord)>,
    ) -> Result<Committed, Refusal> {
        let mut record = draft.committed(spec, Vec::new());
        let flags = self.flags_for(draft.rules, &draft.extents);
        let published = self.frames.publish(record.listed(&draft.name), &draft.extents, flags);
        let (extents, entry) = match published {
            Ok(published) => published,
            Err(refusal) => {
                // Room was asked for before; should it be gone, nothing of the file stays.
                let change = match self.files.get(&draft.name) {
                    Some(old) => Change::Put(&draft.name, old.stored()),
                    None => Change::Delete(&draft.name),
                };
                self.record(&[change])?;
                self.retire_drafts(vec![draft]);
                return Err(refusal);
            }
        };
        let life = extents.iter().map(|extent| extent.life.bits()).collect();
        (record.extents, record.entry) = (extents, entry);
        self.note_listed(&draft.name, &record);
        let (id, len_bytes) = (record.id, record.len_bytes);
        if let Some(old) = self.files.insert(draft.name.clone(), record) {
            // The new entry heads the chain, so nobody ever misses the name.
            self.frames.unlist(old.entry, &draft.name);
            self.evictables.forget(old.id);
            self.announce(FileChange::Removed, &draft.name, old.id, old.len_bytes);
            replaced.push((draft.name.clone(), old));
        }
        self.announce(FileChange::Created, &draft.name, id, len_bytes);
        Ok(Committed { life })
    }

    /// Gives up drafts; their frames are free when nothing holds them any more.
    pub(crate) fn abort(&mut self, client: ClientId, ids: &[u64]) -> Result<Reply, Refusal> {
        checked_batch(ids.len())?;
        let mut given_up = Vec::new();
        for &id in ids {
            let id = FileId(id);
            let is_theirs = self.files.draft_of(id, client).is_some();
            if is_theirs && let Some(draft) = self.files.take_draft(id) {
                given_up.push(draft);
            }
        }
        self.retire_drafts(given_up);
        Ok(Reply::Done)
    }

    /// Takes names away at once; the frames follow when the last hold is gone.
    pub(crate) fn unlink(&mut self, names: &[FileName]) -> Result<Reply, Refusal> {
        checked_batch(names.len())?;
        let mut results = Vec::with_capacity(names.len());
        let (mut going, mut seen) = (Vec::new(), BTreeSet::new());
        // One alone is named once.
        let is_batch = names.len() > 1;
        for name in names {
            let verdict = match self.files.get(name) {
                Some(file) if !is_batch || !seen.contains(name) => file_idle(name, file),
                _ => Err(Refusal::NotFound { name: name.to_string() }),
            };
            if verdict.is_ok() {
                if is_batch {
                    seen.insert(name);
                }
                going.push(name);
            }
            results.push(verdict);
        }
        let changes: Vec<Change<'_>> = going.iter().map(|name| Change::Delete(name)).collect();
        self.record(&changes)?;
        let mut gone = Vec::with_capacity(going.len());
        for name in going {
            if let Some((name, file)) = self.files.remove(name) {
                self.frames.unlist(file.entry, &name);
                self.evictables.forget(file.id);
                self.announce(FileChange::Removed, &name, file.id, file.len_bytes);
                gone.push((name, file));
            }
        }
        self.retire(gone);
        Ok(Reply::Unlinked(results))
    }

    /// Gives a file another name.
    pub(crate) fn rename(
        &mut self,
        from: &FileName,
        to: FileName,
        replace: bool,
    ) -> Result<Reply, Refusal> {
        let file = self.files.find(from)?;
        file_idle(from, file)?;
        if *from == to {
            return Ok(Reply::Done);
        }
        self.check_name_free(&to, replace)?;
        self.make_rename_room(from, &to)?;
        let file = self.files.find(from)?;
        let nr_slots = self.frames.slots_for(file.extents.len());
        self.frames.check_room(nr_slots)?;
        if file.metadata.user != UserMetadata::default() {
            self.frames.check_metadata_room(nr_slots)?;
        }
        self.record(&[Change::Put(&to, file.stored()), Change::Delete(from)])?;
        let entry = match self.frames.rename(file.entry, from, file.listed(&to), &file.extents) {
            Ok(entry) => entry,
            Err(refusal) => {
                // Room was asked for before; should it be gone, both names are as they were.
                let undone = match self.files.get(&to) {
                    Some(old) => Change::Put(&to, old.stored()),
                    None => Change::Delete(&to),
                };
                self.record(&[Change::Put(from, file.stored()), undone])?;
                return Err(refusal);
            }
        };
        let (_, mut file) =
            self.files.remove(from).ok_or_else(|| Refusal::NotFound { name: from.to_string() })?;
        file.entry = entry;
        self.note_listed(&to, &file);
        let (id, len_bytes) = (file.id, file.len_bytes);
        let old = self.files.insert(to.clone(), file);
        if let Some(old) = &old {
            self.frames.unlist(old.entry, &to);
            self.evictables.forget(old.id);
            self.announce(FileChange::Removed, &to, old.id, old.len_bytes);
        }
        self.announce(FileChange::Removed, from, id, len_bytes);
        self.announce(FileChange::Created, &to, id, len_bytes);
        self.retire(old.map(|old| (to, old)).into_iter().collect());
        Ok(Reply::Done)
    }

    /// Where a file is, by its number.
    pub(crate) fn locate(&self, id: u64) -> Result<Reply, Refusal> {
        let (name, file) = self.files.by_id(FileId(id)).ok_or(Refusal::Stale { id })?;
        if file.doing == Some(DRAINED) {
            file_idle(name, file)?;
        }
        Ok(Reply::Located { entry: file.entry.number(), name: name.clone() })
    }

    /// Has what files hold reach a device's memory, before a restart of the machine that is no
    /// power failure: nobody syncs a device.
    pub(crate) fn flush_files(&self) {
        let is_lasting = |data: &&Arc<MemoryFile>| {
            data.kind() == MemoryKind::DevDax && data.persistence() >= Persistence::Restart
        };
        for run in self.files.values().flat_map(FileRecord::runs) {
            let backing = self.frames.backings().at(run.start());
            let Some(data) = backing.data.as_ref().filter(is_lasting) else { continue };
            if let Err(error) = data.flush(backing.bytes_of(run)) {
                tracing::error!(%error, "a file may be lost when the machine restarts");
            }
        }
    }

    /// The flags under which a file's folios are published: the policy, where the fast path sees
    /// it.
    pub(crate) fn flags_for(&self, rules: FileRules, extents: &[Extent]) -> FolioFlags {
        let first = extents.iter().find(|extent| !extent.is_hole()).map(Extent::first);
        let first = first.unwrap_or_default();
        // The usual case, without a look into the table.
        let is_own = first.number() < self.pool.nr_pages();
        let memory_type =
            if is_own { self.pagemaps.own_type() } else { self.pagemaps.type_of(first) };
        self.flags_of_type(memory_type, rules, first)
    }

    /// What `rules` and the memory around `pfn` say together: the kernel registers no page cache of
    /// a disk for a device (Linux 7.1: mm/gup.c, `folio_fast_pin_allowed`).
    pub(crate) fn range_flags(&self, rules: FileRules, pfn: Pfn) -> RangeFlags {
        match self.frames.backings().at(pfn.number()).long_term() {
            LongTerm::Refused => rules.range_flags().with(RangeFlags::FORBID_DEVICE),
            LongTerm::Allowed | LongTerm::Leased => rules.range_flags(),
        }
    }

    /// As [`flags_for`](Self::flags_for), for memory of a given type around `pfn`.
    pub(crate) fn flags_of_type(
        &self,
        memory_type: MemoryType,
        rules: FileRules,
        pfn: Pfn,
    ) -> FolioFlags {
        let stance = match self.holder.id() {
            Some(_) => HolderStance::NotAsked,
            None => HolderStance::Absent,
        };
        publish_flags(memory_type, self.range_flags(rules, pfn), stance)
    }

    /// The flags of a file's folios, by the memory it lies in.
    pub(crate) fn flags_of(&self, file: &FileRecord) -> FolioFlags {
        self.flags_for(file.rules, &file.extents)
    }

    /// Writes every file's policy again, after a holder came or went. What a cut is taking out of a
    /// file gets it if the cut is given up.
    pub(crate) fn republish(&mut self) {
        if !self.is_closed() {
            self.while_open(Self::republish_open);
        }
    }

    fn republish_open(&mut self) {
        let names: Vec<FileName> = self.files.iter().map(|(name, _)| name.clone()).collect();
        for name in names {
            let Some(mut file) = self.files.get(&name).cloned() else { continue };
            if file.doing == Some(DRAINED) {
                // It is written when that ends.
                continue;
            }
            let flags = self.flags_of(&file);
            self.frames.set_flags(&mut file.extents, flags);
            self.adopt(&name, file);
        }
        self.restorations.all_again();
    }
}

impl DraftRecord {
    /// The file that it becomes, whose entry in the index is still to be written.
    fn committed(&self, spec: CommitSpec, extents: Vec<Extent>) -> FileRecord {
        let checksum = spec.checksum.filter(|_| self.is_checksummed);
        FileRecord {
            id: FileId(spec.id),
            len_bytes: self.len_bytes,
            largest: largest_level(self.folio_size),
            rules: self.rules,
            extents,
            metadata: FileMetadata { user: self.metadata.clone(), checksum },
            uid: self.uid,
            entry: EntryId::from_number(0),
            doing: None,
        }
    }
}

/// Why a file of this length cannot be: it would take so many frames, if that is a number at all,
/// and the largest of the `places` where it may lie has fewer.
fn too_long(spec: &CreateSpec, pages: Option<u64>, places: &str, most_pages: u64) -> Refusal {
    let has = bytes(most_pages);
    let why = match (spec.folio_size.sizing(), pages) {
        (Sizing::Fixed(level), Some(pages)) if spec.len_bytes <= has => {
            let takes = bytes(pages);
            format!(
                "in folios of {level} it takes {takes} bytes, and {places} has {has}; ask for \
                 smaller folios"
            )
        }
        _ => format!("{places} has {has} bytes"),
    };
    Refusal::BadLength { name: spec.name.to_string(), len_bytes: spec.len_bytes, why }
}

/// The largest folios that a file asks for.
const fn largest_level(size: FolioSize) -> Level {
    match size {
        FolioSize::Pages4K => Level::Pte,
        FolioSize::Pages2M => Level::Pmd,
        FolioSize::BestFit | FolioSize::Pages1G => Level::Pud,
    }
}

/// What a draft's life word becomes when it is published.
fn live_word(reserved: Descriptor, flags: FolioFlags) -> Descriptor {
    reserved.in_state(FolioState::Live).with_flags(flags)
}

/// Refuses while another operation on the file has not ended.
pub(crate) fn file_idle(name: &FileName, file: &FileRecord) -> Result<(), Refusal> {
    match file.doing {
        None => Ok(()),
        Some(doing) => Err(Refusal::InUse { name: name.to_string(), doing: doing.into() }),
    }
}

const _: () = assert!(MAX_REPLY_EXTENTS * 30 < wire::MAX_MESSAGE_BYTES);

#[cfg(test)]
mod tests {
    use pgmap_mm::index::MAX_EXTENTS;

    use super::*;
    use crate::owner::clients::ClientIdentity;
    use crate::owner::made_file::make_file;
    use crate::pool::{Pool, PoolOptions};

    /// Story: the file was out of the books before the index was asked, and its frames were
    /// nobody's.
    #[test]
    fn a_rename_that_the_index_refuses_changes_nothing() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = directory.path().join("pool");
        let pool = Pool::create(&PoolOptions::in_directory(&path, 16 << 20)).unwrap();
        let mut core = Core::open(Arc::new(pool)).unwrap();
        let (client, attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        let names = ["a", "b", "c"].map(|name| FileName::new(name).unwrap());
        let [from, to, new] = &names;
        make_file(&mut core, client, from, 8192);
        make_file(&mut core, client, to, 4096);
        let file = core.files[from].clone();
        // More extents than an entry has, so that the index refuses after the check for room.
        let extents = vec![file.extents[0]; MAX_EXTENTS + 1];
        core.files.update(from, FileRecord { extents, ..file.clone() });
        for name in [to, new] {
            let refused = core.rename(from, name.clone(), true);
            assert!(matches!(refused, Err(Refusal::IndexFull { .. })), "{refused:?}");
        }
        assert_eq!([from, to, new].map(|name| core.files.contains(name)), [true, true, false]);
        core.record_file(from, &file).unwrap();
        drop((core, attachment));
        let core = Core::open(Arc::new(Pool::open(&path).unwrap())).unwrap();
        let lens = names.map(|name| core.files.get(&name).map(|file| file.len_bytes));
        assert_eq!(lens, [Some(8192), Some(4096), None]);
    }
}
