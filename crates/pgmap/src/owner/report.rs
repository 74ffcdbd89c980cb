//! What the owner tells people: stat, list, who.

use pgmap_mm::drain::{Held, scan};
use pgmap_mm::extent::Extent;
use pgmap_mm::ledger::{Agent, HoldPlace};
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;
use pgmap_os::clock;

use crate::name::FileName;
use crate::owner::core::{Core, FileRecord, bytes};
use crate::owner::pagemaps::DEVICE;
use crate::refusal::{HoldKind, Holder, Refusal};
use crate::wire::{FileInfo, MAX_LIST, PoolInfo, Reply};

/// Most holders one answer names.
pub(crate) const MAX_HOLDERS: usize = 200;

impl Core {
    /// Describes a file.
    pub(crate) fn stat(&self, name: &FileName) -> Result<Reply, Refusal> {
        let file =
            self.files.get(name).ok_or_else(|| Refusal::NotFound { name: name.to_string() })?;
        Ok(Reply::Stat(self.file_info(name, file)))
    }

    /// Describes the files after `after`, at most [`MAX_LIST`].
    pub(crate) fn list(&self, after: Option<&FileName>) -> Reply {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let files = self.files.range::<FileName, _>((from, Unbounded)).take(MAX_LIST);
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
        }
    }

    /// Describes the pool.
    pub(crate) fn pool_info(&self) -> PoolInfo {
        // Each frame is counted once: what a deadline has passed for waits too, and is quarantined.
        let (draining, quarantined) = (self.draining_pages(), self.quarantined_pages());
        let draining = (draining + self.frames.quarantined_pages()).saturating_sub(quarantined);
        let drafts = self.drafts.values().flat_map(|draft| &draft.extents);
        let ledgers: u64 = self.clients.values().map(|client| client.file.resident_bytes()).sum();
        PoolInfo {
            size_bytes: self.pool.size_bytes(),
            free_bytes: bytes(self.frames.free_pages()),
            live_bytes: bytes(self.live_pages()),
            reserved_bytes: drafts.map(|extent| extent.run.len_bytes()).sum(),
            draining_bytes: bytes(draining),
            quarantined_bytes: bytes(quarantined),
            poisoned_bytes: bytes(self.frames.failed_pages()),
            orphaned_bytes: bytes(self.frames.orphaned_pages()),
            longest_free_bytes: bytes(self.frames.longest_free_run()),
            backed_bytes: self.frames.resident_bytes(),
            metadata_bytes: self.pool.metadata_bytes() + ledgers,
            nr_files: self.files.len() as u64,
            nr_clients: self.clients.len() as u64,
        }
    }

    /// Frames of committed files, without those of further pagemaps.
    fn live_pages(&self) -> u64 {
        let files = self.files.values().filter(|file| file.doing != Some(DEVICE));
        files.map(FileRecord::allocated_pages).sum()
    }

    /// Who holds a file, or anything.
    pub(crate) fn who(&self, name: Option<&FileName>) -> Result<Reply, Refusal> {
        let runs = match name {
            None => SortedRuns::covering(self.pool.vmemmap_layout.nr_pages()),
            Some(name) => self
                .files
                .get(name)
                .ok_or_else(|| Refusal::NotFound { name: name.to_string() })?
                .runs()
                .collect(),
        };
        let ledgers = self.clients.iter().map(|(&id, client)| (id, &client.ledger));
        let held = scan(&runs, ledgers);
        let mut holders: Vec<Holder> = held.iter().filter_map(|h| self.holder(h, None)).collect();
        let is_cut = holders.len() > MAX_HOLDERS;
        holders.truncate(MAX_HOLDERS);
        Ok(Reply::Who(holders, is_cut))
    }

    /// A hold as people read it.
    pub(crate) fn holder(&self, held: &Held, seen_for_ms: Option<u64>) -> Option<Holder> {
        let client = self.clients.get(&held.client)?;
        let run = held.hold.run;
        let is_draft = self
            .drafts
            .values()
            .any(|d| d.client == held.client && d.extents.iter().any(|e| e.run.overlaps(run)));
        let kind = match held.hold.place {
            HoldPlace::Slot(_) if is_draft => HoldKind::Writer,
            HoldPlace::Slot(_) if self.is_leased(held.client, run) => HoldKind::Lease,
            HoldPlace::Slot(_) => HoldKind::Short,
            HoldPlace::LongSlot(_) | HoldPlace::Count(_) => HoldKind::Longterm,
            HoldPlace::Unseen => HoldKind::Unseen,
        };
        Some(Holder {
            client: held.client.0,
            pid: client.identity.pid,
            uid: client.identity.uid,
            command: client.identity.command.clone(),
            kind,
            is_device: held.hold.agent == Agent::Device,
            first_pfn: run.start(),
            nr_pages: run.nr_pages(),
            nr_pins: held.hold.nr_pins,
            tag: held.hold.tag,
            file: self.file_of(run),
            seen_for_ms: seen_for_ms.or_else(|| self.seen_for(run)),
        })
    }

    /// The name of the file that `run` belongs to, found by going through all; for people only.
    pub(crate) fn file_of(&self, run: PfnRange) -> Option<String> {
        let is_in = |extents: &[Extent]| {
            extents.iter().any(|extent| !extent.is_hole() && extent.run.overlaps(run))
        };
        let of_file = self.files.iter().map(|(name, file)| (name, &file.extents));
        let of_draft = self.drafts.values().map(|draft| (&draft.name, &draft.extents));
        of_file
            .chain(of_draft)
            .find(|(_, extents)| is_in(extents))
            .map(|(name, _)| name.to_string())
    }

    /// For how long a drain has been waiting for `run`.
    fn seen_for(&self, run: PfnRange) -> Option<u64> {
        let waiting = self.drains.iter().find(|pending| pending.drain.runs().overlaps(run))?;
        Some(clock::monotonic_ms() - waiting.started_ms)
    }
}
