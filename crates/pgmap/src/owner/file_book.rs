//! The files of a pool in the owner's books: names, numbers and records, and what is not committed
//! yet.
//!
//! # Invariants
//!
//! - Names and numbers belong together: a number leads to a name exactly while the record under
//!   that name has this number. No two files have one name, or one number.
//! - A draft has no name yet. Its number becomes the file's when it is committed, and is no other
//!   file's before.
//! - `spares` has the drafts that are spares, and no others; their `pages` are their frames, and
//!   `spare_pages` those of all.
//! - What each user and each prefix with a quota takes is counted, files and drafts together.
//! - What the record says of extents and entry is what descriptors and index say, except between
//!   two steps of one request.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound::{Excluded, Unbounded};

use pgmap_mm::drain::ClientId;
use pgmap_mm::extent::Extent;
use pgmap_mm::index::{EntryId, Facts, FileId};
use pgmap_mm::level::Level;
use pgmap_mm::pfn::PfnRange;

use crate::metadata::{FileMetadata, UserMetadata};
use crate::name::FileName;
use crate::owner::counted::{Counted, Use};
use crate::owner::frames::Listed;
use crate::pool::catalog::StoredFile;
use crate::refusal::Refusal;
use crate::wire::{FileRules, FolioSize, Placement, QuotaOf};

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
    /// That of the file that it becomes; of a spare, of the one that it was handed out with.
    pub name: FileName,
    pub len_bytes: u64,
    pub folio_size: FolioSize,
    pub placement: Placement,
    pub replace: bool,
    pub rules: FileRules,
    pub extents: Vec<Extent>,
    pub metadata: UserMetadata,
    pub is_checksummed: bool,
    /// Whether it was handed out ahead, and nobody asked for it to become a file yet.
    pub is_spare: bool,
}

impl DraftRecord {
    pub(crate) fn runs(&self) -> impl Iterator<Item = PfnRange> {
        self.extents.iter().map(|extent| extent.run)
    }

    pub(crate) fn nr_pages(&self) -> u64 {
        self.runs().map(PfnRange::nr_pages).sum()
    }
}

/// The spares of one client.
#[derive(Debug, Default)]
struct SparesOf {
    ids: BTreeSet<FileId>,
    pages: u64,
}

/// The files and drafts of a pool.
#[derive(Debug, Default)]
pub(crate) struct FileBook {
    records: Counted<FileName, FileRecord>,
    names: HashMap<FileId, FileName>,
    drafts: Counted<FileId, DraftRecord>,
    /// Of each client that has some.
    spares: BTreeMap<ClientId, SparesOf>,
    /// Frames of all of those.
    spare_pages: u64,
    /// Files behind whose ends lies what was cut off, because it could not be zeroed.
    open_tails: BTreeSet<FileId>,
}

impl FileBook {
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn contains(&self, name: &FileName) -> bool {
        self.records.contains_key(name)
    }

    pub(crate) fn get(&self, name: &FileName) -> Option<&FileRecord> {
        self.records.get(name)
    }

    /// As [`get`](Self::get).
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub(crate) fn find(&self, name: &FileName) -> Result<&FileRecord, Refusal> {
        self.get(name).ok_or_else(|| Refusal::NotFound { name: name.to_string() })
    }

    pub(crate) fn by_id(&self, id: FileId) -> Option<(&FileName, &FileRecord)> {
        let name = self.names.get(&id)?;
        Some((name, self.records.get(name)?))
    }

    pub(crate) fn name_of(&self, id: FileId) -> Option<&FileName> {
        self.names.get(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&FileName, &FileRecord)> {
        self.records.iter()
    }

    /// The files whose names come after `name`.
    pub(crate) fn after(
        &self,
        name: Option<&FileName>,
    ) -> impl Iterator<Item = (&FileName, &FileRecord)> {
        let from = name.map_or(Unbounded, Excluded);
        self.records.range::<FileName, _>((from, Unbounded))
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &FileRecord> {
        self.records.values()
    }

    /// Where what is being done to files is noted. Their numbers, users and frames stay.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut FileRecord> {
        self.records.iter_mut().map(|(_, file)| file)
    }

    /// As [`values_mut`](Self::values_mut), of one file.
    pub(crate) fn get_mut(&mut self, name: &FileName) -> Option<&mut FileRecord> {
        self.records.get_mut(name)
    }

    /// Gives a file its name. Returns the file that had it.
    pub(crate) fn insert(&mut self, name: FileName, record: FileRecord) -> Option<FileRecord> {
        self.names.insert(record.id, name.clone());
        let old = self.records.insert(name, record)?;
        self.names.remove(&old.id);
        Some(old)
    }

    /// Replaces the record of a file by a newer one of the same file.
    pub(crate) fn update(&mut self, name: &FileName, record: FileRecord) {
        if let Some(old) = self.records.get(name) {
            debug_assert_eq!(old.id, record.id, "\"{name}\" is another file");
            self.records.insert(name.clone(), record);
        }
    }

    /// Takes a name away, and the file with it.
    pub(crate) fn remove(&mut self, name: &FileName) -> Option<(FileName, FileRecord)> {
        let (name, record) = self.records.remove_entry(name)?;
        self.names.remove(&record.id);
        Some((name, record))
    }

    /// The drafts, by number.
    pub(crate) fn drafts(&self) -> impl Iterator<Item = (FileId, &DraftRecord)> {
        self.drafts.iter().map(|(&id, draft)| (id, draft))
    }

    pub(crate) fn draft(&self, id: FileId) -> Option<&DraftRecord> {
        self.drafts.get(&id)
    }

    /// The draft with this number, if it is that client's.
    pub(crate) fn draft_of(&self, id: FileId, client: ClientId) -> Option<&DraftRecord> {
        self.draft(id).filter(|draft| draft.client == client)
    }

    /// To change what is not counted.
    pub(crate) fn draft_mut(&mut self, id: FileId) -> Option<&mut DraftRecord> {
        self.drafts.get_mut(&id)
    }

    pub(crate) fn add_draft(&mut self, id: FileId, draft: DraftRecord) {
        if draft.is_spare {
            let nr_pages = draft.nr_pages();
            let spares = self.spares.entry(draft.client).or_default();
            spares.ids.insert(id);
            spares.pages += nr_pages;
            self.spare_pages += nr_pages;
        }
        self.drafts.insert(id, draft);
    }

    pub(crate) fn take_draft(&mut self, id: FileId) -> Option<DraftRecord> {
        let draft = self.drafts.remove(&id)?;
        if draft.is_spare
            && let Some(spares) = self.spares.get_mut(&draft.client)
        {
            let nr_pages = draft.nr_pages();
            spares.ids.remove(&id);
            spares.pages -= nr_pages;
            self.spare_pages -= nr_pages;
        }
        Some(draft)
    }

    /// A draft of this client that is a spare.
    pub(crate) fn spare_of(&self, id: FileId, client: ClientId) -> Option<&DraftRecord> {
        self.draft_of(id, client).filter(|draft| draft.is_spare)
    }

    /// As [`take_draft`](Self::take_draft), if it is still a spare of that client.
    pub(crate) fn take_spare(&mut self, id: FileId, client: ClientId) -> Option<DraftRecord> {
        self.spare_of(id, client)?;
        self.take_draft(id)
    }

    /// Takes out all drafts of a client.
    pub(crate) fn take_drafts_of(&mut self, client: ClientId) -> Vec<DraftRecord> {
        self.spare_pages -= self.spares.remove(&client).map_or(0, |spares| spares.pages);
        self.drafts.take_all(|draft| draft.client == client)
    }

    /// The spares, with their numbers.
    pub(crate) fn spares(&self) -> impl Iterator<Item = (FileId, &DraftRecord)> {
        let ids = self.spares.values().flat_map(|spares| &spares.ids);
        ids.filter_map(|&id| Some((id, self.drafts.get(&id)?)))
    }

    /// The frames of all spares.
    pub(crate) const fn spare_pages(&self) -> u64 {
        self.spare_pages
    }

    /// How many spares a client has, and how many frames those have.
    pub(crate) fn spares_of(&self, client: ClientId) -> (usize, u64) {
        self.spares.get(&client).map_or((0, 0), |spares| (spares.ids.len(), spares.pages))
    }

    /// The extents of every file and draft.
    pub(crate) fn all_extents(&self) -> impl Iterator<Item = &[Extent]> {
        let of_files = self.records.values().map(|file| &*file.extents);
        of_files.chain(self.drafts.values().map(|draft| &*draft.extents))
    }

    /// The extents of every file and draft, with its name.
    pub(crate) fn all_named_extents(&self) -> impl Iterator<Item = (&FileName, &[Extent])> {
        let of_files = self.records.iter().map(|(name, file)| (name, &*file.extents));
        of_files.chain(self.drafts.values().map(|draft| (&draft.name, &*draft.extents)))
    }

    /// What those take that a quota is for.
    pub(crate) fn used_by(&self, of: &QuotaOf) -> Use {
        self.records.used_by(of).plus(self.drafts.used_by(of))
    }

    /// As [`used_by`](Self::used_by), by going through all.
    #[cfg(feature = "sim")]
    pub(crate) fn recounted(&self, of: &QuotaOf) -> Use {
        self.records.recounted(of).plus(self.drafts.recounted(of))
    }

    /// Counts what has names with this prefix, from now on.
    pub(crate) fn count_prefix(&mut self, prefix: &FileName) {
        self.records.count_prefix(prefix);
        self.drafts.count_prefix(prefix);
    }

    /// Counts it no more.
    pub(crate) fn forget_prefix(&mut self, prefix: &FileName) {
        self.records.forget_prefix(prefix);
        self.drafts.forget_prefix(prefix);
    }

    /// Takes note that what was cut off lies behind the end of a file.
    pub(crate) fn add_open_tail(&mut self, id: FileId) {
        self.open_tails.insert(id);
    }

    pub(crate) fn has_open_tail(&self, id: FileId) -> bool {
        self.open_tails.contains(&id)
    }

    pub(crate) fn has_open_tails(&self) -> bool {
        !self.open_tails.is_empty()
    }

    pub(crate) fn take_open_tails(&mut self) -> BTreeSet<FileId> {
        std::mem::take(&mut self.open_tails)
    }
}

#[cfg(test)]
impl std::ops::Index<&FileName> for FileBook {
    type Output = FileRecord;

    fn index(&self, name: &FileName) -> &FileRecord {
        &self.records[name]
    }
}
