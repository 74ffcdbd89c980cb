//! Memory failure: one frame out of use, everything around it alive, everybody concerned told.
//!
//! The order is that of a drain: the books and the catalog say Poisoned, then a heavy barrier and a
//! scan find who holds the frame, and each of those is notified. A pin taken later fails with
//! `EHWPOISON`. The frame comes back when its memory was replaced and its bytes were written again.

use pgmap_mm::descriptor::FolioState;
use pgmap_mm::drain::scan;
use pgmap_mm::extent::Extent;
use pgmap_mm::index::FileId;
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::memory_failure::Isolated;
use pgmap_mm::pagemap::FailureFlags;
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::runs::SortedRuns;

use crate::name::FileName;
use crate::owner::backing::Backing;
use crate::owner::core::Core;
use crate::owner::file_book::FileRecord;
use crate::owner::files::file_idle;
use crate::owner::frames::frame_of;
use crate::owner::holders::Call;
use crate::pool::catalog::Change;
use crate::refusal::Refusal;
use crate::wire::{Event, Reply};

/// Whose frame failed.
enum FrameUse {
    File(FileName, usize),
    Draft(FileId, usize),
    Nowhere,
}

impl Core {
    /// Takes the frame `pfn` out of use and tells its holders.
    pub(crate) fn memory_failure(&mut self, pfn: u64) -> Result<Reply, Refusal> {
        let pfn = Pfn::new(pfn)
            .filter(|pfn| self.pagemaps.at(*pfn).is_some_and(|map| map.pfn_valid(*pfn)))
            .ok_or_else(|| Refusal::Invalid {
                why: format!("frame {pfn:#x} is not in the pool"),
            })?;
        if self.pagemaps.driver_handles_failure(pfn) {
            return Ok(Reply::Done);
        }
        if self.is_closed() {
            self.check_open()?;
        }
        self.open_for_failure(pfn)?;
        self.while_open(|core| core.take_frame_out(pfn))
    }

    /// Takes the frames out of use that their devices' regions know to have failed, before anybody
    /// touches them.
    pub(crate) fn heed_bad_blocks(&mut self) {
        let known: Vec<u64> = self.frames.backings().iter().flat_map(Backing::bad_frames).collect();
        for pfn in known {
            match self.memory_failure(pfn) {
                Ok(_) => tracing::warn!(pfn, "its device knows that this frame failed"),
                Err(refusal) => tracing::debug!(pfn, %refusal, "a frame failed"),
            }
        }
    }

    fn take_frame_out(&mut self, pfn: Pfn) -> Result<Reply, Refusal> {
        // Nobody uses a spare that is damaged.
        self.take_spares_back(u64::MAX, |_, draft| draft.runs().any(|run| run.contains(pfn)));
        let place = self.place_of(pfn);
        let extent = match &place {
            FrameUse::File(name, at) => {
                self.files.get(name).map(|file| (file.extents[*at], file.extents.len()))
            }
            FrameUse::Draft(id, at) => {
                self.files.draft(*id).map(|draft| (draft.extents[*at], draft.extents.len()))
            }
            FrameUse::Nowhere => None,
        };
        let extent = extent.as_ref().map(|(extent, nr_extents)| (extent, *nr_extents));
        let folio = PfnRange::new(pfn.number(), 1).and_then(|run| self.frames.whole_folios(run));
        let isolated = self.frames.fail(pfn, extent)?;
        folio.into_iter().for_each(|folio| self.restorations.again(folio));
        let file = self.adopt_pieces(&place, &isolated);
        self.tell_of_failure(isolated.frame, file);
        self.holder.notify(Call::Failure(isolated.frame, FailureFlags::NONE));
        Ok(Reply::Done)
    }

    fn place_of(&self, pfn: Pfn) -> FrameUse {
        let in_extents = |extents: &[Extent]| {
            extents.iter().position(|extent| !extent.is_hole() && extent.run.contains(pfn))
        };
        for (name, file) in self.files.iter() {
            if let Some(at) = in_extents(&file.extents) {
                return FrameUse::File(name.clone(), at);
            }
        }
        for (id, draft) in self.files.drafts() {
            if let Some(at) = in_extents(&draft.extents) {
                return FrameUse::Draft(id, at);
            }
        }
        FrameUse::Nowhere
    }

    /// Puts the pieces around a failed frame into the books of the file or draft it belongs to.
    fn adopt_pieces(&mut self, place: &FrameUse, isolated: &Isolated) -> Option<String> {
        match place {
            FrameUse::File(name, at) => {
                let mut file = self.files.get(name).cloned()?;
                file.extents.splice(*at..=*at, isolated.pieces.iter().copied());
                self.adopt(name, file);
                Some(name.to_string())
            }
            FrameUse::Draft(id, at) => {
                let draft = self.files.draft_mut(*id)?;
                draft.extents.splice(*at..=*at, isolated.pieces.iter().copied());
                Some(draft.name.to_string())
            }
            FrameUse::Nowhere => None,
        }
    }

    fn tell_of_failure(&mut self, frame: PfnRange, file: Option<String>) {
        for held in self.scan_for(SortedRuns::new(vec![frame])).held() {
            let event = Event::MemoryFailure { file: file.clone(), pfn: frame.start() };
            self.outbox.notify_once(held.client, event);
        }
    }

    /// Whether memory of a draft failed: then it cannot be committed.
    pub(crate) fn is_damaged(extents: &[Extent]) -> bool {
        let is_lost = |state| matches!(state, FolioState::Poisoned | FolioState::Quarantined);
        extents.iter().any(|extent| is_lost(extent.life.state()))
    }

    /// Replaces the memory of a failed page of a file and fills it with `bytes`.
    pub(crate) fn clear_poison(
        &mut self,
        name: &FileName,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Reply, Refusal> {
        let file = self.files.find(name)?;
        file_idle(name, file)?;
        if !offset.is_multiple_of(PAGE_BYTES) || bytes.len() as u64 != PAGE_BYTES {
            let why =
                format!("poison is cleared by 4096 bytes at a multiple of 4096, not {offset}");
            return Err(Refusal::Invalid { why });
        }
        let smallest = self.frames.smallest();
        if smallest != Level::Pte {
            let why = format!(
                "\"{name}\" lost a whole folio of {smallest}, which no single page brings back: \
                 remove the file, then repair what is free"
            );
            return Err(Refusal::Denied { why, errno: pgmap_mm::error::errno::EOPNOTSUPP });
        }
        let mut file = file.clone();
        let lies_in = file.runs().next();
        if let Some(run) = lies_in.filter(|&run| !self.frames.repairs_pages(run)) {
            let why = format!(
                "\"{name}\" lies in pages of {} bytes, which cannot be replaced in part: remove \
                 the file, then repair what is free",
                self.frames.page_bytes(run)
            );
            return Err(Refusal::Denied { why, errno: pgmap_mm::error::errno::EOPNOTSUPP });
        }
        let (at, run) = failed_page(name, &file, offset / PAGE_BYTES)?;
        self.refuse_while_held(name, run)?;
        self.frames.replace(run, bytes)?;
        let flags = self.flags_of(&file);
        let (pieces, live) = self.frames.plan_heal(&file.extents[at], run, flags)?;
        file.extents.splice(at..=at, pieces);
        file.metadata = file.metadata.without_checksum();
        self.record(&[Change::Put(name, file.stored()), Change::Healthy(run.start())])?;
        self.frames.heal(run, live)?;
        self.relist(name, &file)?;
        self.files.update(name, file);
        Ok(Reply::Done)
    }

    fn refuse_while_held(&self, name: &FileName, run: PfnRange) -> Result<(), Refusal> {
        let ledgers = self.clients.ledgers();
        let held = scan(&SortedRuns::new(vec![run]), ledgers);
        if held.is_empty() {
            return Ok(());
        }
        let holders = self.holders(&held, None);
        Err(Refusal::Held { name: name.to_string(), holders, waited_ms: 0 })
    }

    /// Replaces the memory of failed frames that no file has and nobody holds, and frees them. A
    /// frame that waits for its last holder is left to its drain.
    pub(crate) fn repair_free(&mut self) -> Result<Reply, Refusal> {
        self.look_again();
        let failed: Vec<PfnRange> = self
            .frames
            .failed_folios()
            .into_iter()
            .filter(|run| matches!(self.place_of(run.first()), FrameUse::Nowhere))
            .filter(|run| !self.is_awaited(*run))
            .collect();
        // One that cannot be repaired yet is not in the way of the others.
        let mut refused = None;
        for run in failed {
            match self.frames.repair(run) {
                Ok(true) => {}
                Ok(false) => {
                    tracing::info!(%run, "a failed frame waits until the rest of its page is free");
                }
                Err(refusal) => drop(refused.get_or_insert(refusal)),
            }
        }
        self.remove_ended_ledgers();
        refused.map_or(Ok(Reply::Done), Err)
    }

    /// Whether a drain waits for `run`, or a client holds it.
    fn is_awaited(&self, run: PfnRange) -> bool {
        let ledgers = self.clients.ledgers();
        self.drains.iter().any(|pending| pending.drain.runs().overlaps(run))
            || self.drains.scans().any(|pending| pending.runs().overlaps(run))
            || self.frames.is_in_backlog(run)
            || self.restorations.overlaps(run)
            || !scan(&SortedRuns::new(vec![run]), ledgers).is_empty()
    }
}

/// The extent of `file` that is the failed page number `page`, and the page's frame.
fn failed_page(
    name: &FileName,
    file: &FileRecord,
    page: u64,
) -> Result<(usize, PfnRange), Refusal> {
    let found =
        frame_of(&file.extents, page).map(|(at, run)| (at, run, file.extents[at].life.state()));
    let offset = page * PAGE_BYTES;
    match found {
        Some((at, run, FolioState::Poisoned)) if file.extents[at].run == run => Ok((at, run)),
        Some((_, _, FolioState::Poisoned | FolioState::Quarantined)) => {
            let why = format!(
                "\"{name}\" has so many extents that it lost all of the one around {offset}: \
                 remove the file, then repair what is free"
            );
            Err(Refusal::Denied { why, errno: pgmap_mm::error::errno::EOPNOTSUPP })
        }
        _ => Err(Refusal::Invalid { why: format!("\"{name}\" has no failed page at {offset}") }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::owner::backing::AsIf;
    use crate::owner::clients::ClientIdentity;
    use crate::owner::made_file::make_file;
    use crate::pool::{Pool, PoolOptions};

    #[test]
    fn what_its_device_says_has_failed_is_out_of_use_before_anybody_touches_it() {
        let pool = Pool::create(&PoolOptions::anonymous(64 * PAGE_BYTES)).unwrap();
        let mut core = Core::open(Arc::new(pool)).unwrap();
        let (client, _attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        let name = FileName::new("a").unwrap();
        make_file(&mut core, client, &name, 16 * PAGE_BYTES);
        let first = core.files[&name].runs().next().unwrap().start();
        for (page, is_files) in [(first + 3, true), (63, false)] {
            core.frames.backings_mut().pretend(AsIf { bad_page: Some(page), ..AsIf::default() });
            core.heed_bad_blocks();
            // A second look at the same list changes nothing.
            core.heed_bad_blocks();
            let poisoned = core.pool_info().poisoned_bytes;
            assert_eq!(poisoned, PAGE_BYTES * if is_files { 1 } else { 2 }, "page {page}");
        }
        assert_eq!(core.files[&name].extents.len(), 3, "before, failed, behind");
    }
}
