//! What the owner tells people: stat, list, who.

use std::collections::HashSet;
use std::ops::ControlFlow;

use pgmap_mm::drain::{ClientId, Held};
use pgmap_mm::extent::Extent;
use pgmap_mm::index::FileId;
use pgmap_mm::ledger::{Agent, HoldPlace};
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;
use pgmap_os::clock;

use crate::name::FileName;
use crate::owner::core::{Core, bytes};
use crate::owner::file_book::FileRecord;
use crate::owner::pagemaps::DEVICE;
use crate::refusal::{ClientHold, HoldKind, Refusal};
use crate::wire::{FileInfo, MAX_LIST, PoolInfo, Reply};

/// Most holders one answer names.
pub(crate) const MAX_HOLDERS: usize = 200;

impl Core {
    /// Describes a file.
    pub(crate) fn stat(&self, name: &FileName) -> Result<Reply, Refusal> {
        let file = self.files.find(name)?;
        Ok(Reply::Stat(self.file_info(name, file)))
    }

    /// Describes the files after `after`, at most [`MAX_LIST`].
    pub(crate) fn list(&self, after: Option<&FileName>) -> Reply {
        let files = self.files.after(after).take(MAX_LIST);
        Reply::List(files.map(|(name, file)| self.file_info(name, file)).collect())
    }

    fn file_info(&self, name: &FileName, file: &FileRecord) -> FileInfo {
        let mut nr_folios = [0; 3];
        for run in file.runs() {
            for (_, level, _) in self.frames.vmemmap().folios(run) {
                nr_folios[level as usize] += 1;
            }
        }
        FileInfo {
            name: name.clone(),
            id: file.id.0,
            len_bytes: file.len_bytes,
            allocated_bytes: bytes(file.allocated_pages()),
            nr_extents: file.extents.len() as u64,
            nr_folios,
            metadata: file.metadata.clone(),
            evict_priority: file.rules.evict_priority,
            uid: file.uid,
        }
    }

    /// Describes the pool.
    pub(crate) fn pool_info(&self) -> PoolInfo {
        // Each frame is counted once: what a deadline has passed for waits too, and is quarantined.
        let (draining, quarantined) = (self.draining_pages(), self.quarantined_pages());
        let draining = (draining + self.frames.quarantined_pages()).saturating_sub(quarantined);
        let drafts = self.files.drafts().flat_map(|(_, draft)| &draft.extents);
        let readers = self.clients.values().filter(|client| client.identity.is_read_only);
        let ledgers: u64 = self.clients.values().map(|client| client.file.resident_bytes()).sum();
        PoolInfo {
            size_bytes: bytes(self.all_pages()),
            free_bytes: bytes(self.frames.free_pages()),
            live_bytes: bytes(self.live_pages()),
            reserved_bytes: drafts.map(|extent| extent.run.len_bytes()).sum(),
            spare_bytes: bytes(self.files.spare_pages()),
            draining_bytes: bytes(draining),
            quarantined_bytes: bytes(quarantined),
            poisoned_bytes: bytes(self.frames.failed_pages()),
            drained_bytes: bytes(self.frames.withheld_pages()),
            orphaned_bytes: bytes(self.frames.orphaned_pages()),
            longest_free_bytes: bytes(self.frames.longest_free_run()),
            backed_bytes: self.frames.resident_bytes(),
            metadata_bytes: self.pool.metadata_bytes() + ledgers,
            nr_files: self.files.len() as u64,
            nr_clients: self.clients.len(),
            evictable_bytes: bytes(self.evictable_pages()),
            nr_evicted: self.evictables.nr_evicted,
            evicted_bytes: bytes(self.evictables.evicted_pages),
            nr_read_only_clients: readers.count() as u64,
            evict_low_bytes: self.water.marks.low_bytes,
            evict_high_bytes: self.water.marks.high_bytes,
        }
    }

    /// Frames of all backings.
    pub(crate) fn all_pages(&self) -> u64 {
        self.frames.backings().iter().map(|it| it.nr_pages).sum()
    }

    fn evictable_pages(&self) -> u64 {
        let files = self.files.values().filter(|file| file.rules.evict_priority > 0);
        files.map(FileRecord::allocated_pages).sum()
    }

    /// Frames of committed files, without those of further pagemaps.
    fn live_pages(&self) -> u64 {
        let files = self.files.values().filter(|file| file.doing != Some(DEVICE));
        files.map(FileRecord::allocated_pages).sum()
    }

    /// Who holds a file, or anything.
    pub(crate) fn who(&mut self, name: Option<&FileName>) -> Result<Reply, Refusal> {
        let runs = match name {
            None => SortedRuns::covering(self.pool.vmemmap_layout.nr_pages()),
            Some(name) => self.files.find(name)?.runs().collect(),
        };
        let mut held = self.holds_on(&runs);
        // First: nothing else says why these clients were cut off.
        let lost = self.lost_holds(&runs);
        held.splice(0..0, lost);
        let is_cut = held.len() > MAX_HOLDERS;
        Ok(Reply::Who(self.holders(&held, None), is_cut))
    }

    /// The holds on any of `runs`, one more than one answer names at most.
    fn holds_on(&self, runs: &SortedRuns) -> Vec<Held> {
        let mut held = Vec::new();
        let _stopped = self.clients.iter().try_for_each(|(client, record)| {
            record.ledger.try_for_each_hold(runs, |hold| {
                held.push(Held { client, hold });
                match held.len() > MAX_HOLDERS {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            })
        });
        held
    }

    /// Who holds any of `runs`, which were waited for.
    pub(crate) fn holders_of(&self, runs: &SortedRuns, waited_ms: u64) -> Vec<ClientHold> {
        self.holders(&self.holds_on(runs), Some(waited_ms))
    }

    /// The first of `held` as people read them, at most [`MAX_HOLDERS`]. Each table of the owner is
    /// gone through once for all of them.
    pub(crate) fn holders(&self, held: &[Held], seen_for_ms: Option<u64>) -> Vec<ClientHold> {
        let held = &held[..held.len().min(MAX_HOLDERS)];
        let runs = || held.iter().map(|held| held.hold.run).enumerate();
        let is_draft = self.drafts_among(held);
        let is_leased = self.leases_among(held);
        let mut files = self.files_among(held);
        let mut seen_for = vec![seen_for_ms; held.len()];
        if seen_for_ms.is_none() {
            let now_ms = clock::monotonic_ms();
            let mut sought = Sought::new(runs());
            for pending in self.drains.iter() {
                for place in sought.take_any(pending.drain.runs().iter(), |_| true) {
                    seen_for[place] = Some(now_ms.saturating_sub(pending.started_ms));
                }
            }
        }
        let holder = |(place, held): (usize, &Held)| {
            let client = self.clients.get(held.client)?;
            let kind = match held.hold.place {
                HoldPlace::Slot(_) if is_draft[place] => HoldKind::Writer,
                HoldPlace::Slot(_) if is_leased[place] => HoldKind::Lease,
                HoldPlace::Slot(_) => HoldKind::Short,
                HoldPlace::LongSlot(_) | HoldPlace::Count(_) => HoldKind::Longterm,
                HoldPlace::Unseen => HoldKind::Unseen,
                HoldPlace::Lost => HoldKind::Unreadable,
            };
            Some(ClientHold {
                client: held.client.0,
                pid: client.identity.pid,
                uid: client.identity.uid,
                command: client.identity.command.clone(),
                label: client.identity.label.clone(),
                is_read_only: client.identity.is_read_only,
                kind,
                is_device: held.hold.agent == Agent::Device,
                first_pfn: held.hold.run.start(),
                nr_pages: held.hold.run.nr_pages(),
                nr_pins: held.hold.nr_pins,
                tag: held.hold.tag,
                file: files[place].take(),
                seen_for_ms: seen_for[place],
            })
        };
        held.iter().enumerate().filter_map(holder).collect()
    }

    /// Which holds are of drafts that the same client is writing.
    fn drafts_among(&self, held: &[Held]) -> Vec<bool> {
        let mut is_draft = vec![false; held.len()];
        let mut sought = Sought::new(held.iter().map(|held| held.hold.run).enumerate());
        for (_, draft) in self.files.drafts() {
            let is_theirs = |place: usize| held[place].client == draft.client;
            for place in sought.take_any(runs_of(&draft.extents), is_theirs) {
                is_draft[place] = true;
            }
        }
        is_draft
    }

    /// Which holds are what a lease of the same client allowed.
    fn leases_among(&self, held: &[Held]) -> Vec<bool> {
        let leases: HashSet<(ClientId, PfnRange)> =
            self.leases.iter().map(|lease| (lease.client, lease.run)).collect();
        held.iter().map(|held| leases.contains(&(held.client, held.hold.run))).collect()
    }

    /// The names of the files or drafts that the frames held are of.
    fn files_among(&self, held: &[Held]) -> Vec<Option<String>> {
        let mut names: Vec<Option<String>> =
            held.iter().map(|held| self.file_by_stamp(held.hold.run)).collect();
        let left = held.iter().map(|held| held.hold.run).enumerate();
        let mut sought = Sought::new(left.filter(|&(place, _)| names[place].is_none()));
        for (name, extents) in self.files.all_named_extents() {
            if sought.is_empty() {
                break;
            }
            for place in sought.take_any(runs_of(extents), |_| true) {
                names[place] = Some(name.to_string());
            }
        }
        names
    }

    /// The name of the file that `run` belongs to, for people only.
    pub(crate) fn file_of(&self, run: PfnRange) -> Option<String> {
        let is_in = |extents: &[Extent]| runs_of(extents).any(|of_it| of_it.overlaps(run));
        self.file_by_stamp(run).or_else(|| {
            let mut all = self.files.all_named_extents();
            all.find(|(_, extents)| is_in(extents)).map(|(name, _)| name.to_string())
        })
    }

    /// As [`file_of`](Self::file_of) without going through all files: a file's number is the first
    /// stamp of its frames, which they keep as long as nothing is taken out of it.
    fn file_by_stamp(&self, run: PfnRange) -> Option<String> {
        let (_, word) = self.frames.vmemmap().folio_of(run.first())?;
        let id = FileId(word.stamp()?.number());
        let file = self.files.by_id(id).map(|(name, file)| (name, &file.extents));
        let draft = || self.files.draft(id).map(|draft| (&draft.name, &draft.extents));
        let (name, extents) = file.or_else(draft)?;
        runs_of(extents).any(|of_it| of_it.overlaps(run)).then(|| name.to_string())
    }
}

/// Frames of extents, without the holes.
fn runs_of(extents: &[Extent]) -> impl Iterator<Item = PfnRange> + '_ {
    extents.iter().filter(|extent| !extent.is_hole()).map(|extent| extent.run)
}

/// Runs that are looked for in many others, each until it is found.
struct Sought {
    left: Vec<(usize, PfnRange)>,
    /// The frames of those left, to tell most others apart from them at once.
    frames: SortedRuns,
}

impl Sought {
    fn new(runs: impl Iterator<Item = (usize, PfnRange)>) -> Self {
        let left: Vec<(usize, PfnRange)> = runs.collect();
        let frames = left.iter().map(|&(_, run)| run).collect();
        Self { left, frames }
    }

    fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Takes out the places of all that overlap one of `runs` and are `wanted`.
    fn take_any(
        &mut self,
        runs: impl Iterator<Item = PfnRange>,
        wanted: impl Fn(usize) -> bool,
    ) -> Vec<usize> {
        let mut taken = Vec::new();
        for run in runs {
            if self.frames.overlaps(run) {
                self.left.retain(|&(place, sought)| {
                    let is_taken = sought.overlaps(run) && wanted(place);
                    taken.extend(is_taken.then_some(place));
                    !is_taken
                });
            }
        }
        if !taken.is_empty() {
            self.frames = self.left.iter().map(|&(_, run)| run).collect();
        }
        taken
    }
}
