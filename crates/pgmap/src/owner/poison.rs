//! Memory failure: one frame out of use, everything around it alive, everybody concerned told.
//!
//! The order is that of a drain: the books and the catalog say Poisoned, then a heavy barrier and a
//! scan find who holds the frame, and each of those is told. A pin taken later fails with
//! `EHWPOISON`. The frame comes back when its memory was replaced and its bytes were written anew.

use pgmap_mm::descriptor::{Descriptor, FolioFlags, FolioState};
use pgmap_mm::drain::scan;
use pgmap_mm::extent::Extent;
use pgmap_mm::index::FileId;
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::memory_failure::{FailureError, Isolated};
use pgmap_mm::pagemap::FailureFlags;
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::runs::SortedRuns;

use crate::name::FileName;
use crate::owner::catalog::Change;
use crate::owner::core::{Core, FileRecord};
use crate::owner::files::file_idle;
use crate::owner::holders::Call;
use crate::refusal::Refusal;
use crate::wire::{Event, Reply};

impl From<FailureError> for Refusal {
    fn from(error: FailureError) -> Self {
        Self::Denied { why: error.to_string(), errno: error.errno() }
    }
}

/// Whose frame failed.
enum Place {
    File(FileName, usize),
    Draft(FileId, usize),
    Nowhere,
}

impl Core {
    /// Takes the frame `pfn` out of use and tells its holders.
    pub(crate) fn memory_failure(&mut self, pfn: u64) -> Result<Reply, Refusal> {
        let pfn = Pfn::new(pfn)
            .filter(|pfn| self.pagemaps.get(*pfn).is_some_and(|map| map.pfn_valid(*pfn)))
            .ok_or_else(|| Refusal::Invalid {
                why: format!("frame {pfn:#x} is not in the pool"),
            })?;
        if self.driver_handles_failure(pfn) {
            return Ok(Reply::Done);
        }
        let fresh = self.take_stamp()?;
        let place = self.place_of(pfn);
        let extent = match &place {
            Place::File(name, at) => self.files.get(name).map(|file| file.extents[*at]),
            Place::Draft(id, at) => self.drafts.get(id).map(|draft| draft.extents[*at]),
            Place::Nowhere => None,
        };
        if matches!(place, Place::Nowhere) {
            self.end_life_of_nobodys(pfn);
        }
        let isolated = self.folios.isolate(pfn, extent.as_ref(), fresh)?;
        self.poisoned.give(isolated.frame);
        if isolated.was == FolioState::Free {
            self.folios.claim_any_of(isolated.frame);
        }
        self.record(&[Change::Poisoned(isolated.frame.start())])?;
        let file = self.adopt_pieces(&place, &isolated)?;
        self.tell_of_failure(isolated.frame, file);
        self.tell_holder(Call::Failure(isolated.frame, FailureFlags::NONE));
        Ok(Reply::Done)
    }

    /// Marks the folio around `pfn` Dying when it waits to be freed under the word that it had in its
    /// file: there is no extent to cut it out of any more.
    fn end_life_of_nobodys(&mut self, pfn: Pfn) {
        let Some((level, word)) = self.folios.vmemmap().folio_of(pfn) else { return };
        if matches!(word.state(), FolioState::Live | FolioState::Reserved) {
            self.folios
                .change(PfnRange::folio(pfn, level), |word| word.in_state(FolioState::Dying));
        }
    }

    fn place_of(&self, pfn: Pfn) -> Place {
        let in_extents = |extents: &[Extent]| {
            extents.iter().position(|extent| !extent.is_hole() && extent.run.contains(pfn))
        };
        for (name, file) in &self.files {
            if let Some(at) = in_extents(&file.extents) {
                return Place::File(name.clone(), at);
            }
        }
        for (&id, draft) in &self.drafts {
            if let Some(at) = in_extents(&draft.extents) {
                return Place::Draft(id, at);
            }
        }
        Place::Nowhere
    }

    /// Puts the pieces around a failed frame into the books of the file or draft it belongs to.
    fn adopt_pieces(
        &mut self,
        place: &Place,
        isolated: &Isolated,
    ) -> Result<Option<String>, Refusal> {
        match place {
            Place::File(name, at) => {
                let Some(mut file) = self.files.get(name).cloned() else { return Ok(None) };
                file.extents.splice(*at..=*at, isolated.pieces.iter().copied());
                self.record_file(name, &file)?;
                self.write_entry(name, &file)?;
                self.files.insert(name.clone(), file);
                Ok(Some(name.to_string()))
            }
            Place::Draft(id, at) => {
                let Some(draft) = self.drafts.get_mut(id) else { return Ok(None) };
                draft.extents.splice(*at..=*at, isolated.pieces.iter().copied());
                Ok(Some(draft.name.to_string()))
            }
            Place::Nowhere => Ok(None),
        }
    }

    fn tell_of_failure(&mut self, frame: PfnRange, file: Option<String>) {
        for held in self.scan_for(SortedRuns::new(vec![frame])).held() {
            let event = Event::MemoryFailure { file: file.clone(), pfn: frame.start() };
            let told = (held.client, event);
            if !self.events.contains(&told) {
                self.events.push(told);
            }
        }
    }

    /// Whether memory of a draft failed: then it cannot be committed.
    pub(crate) fn is_damaged(extents: &[Extent]) -> bool {
        extents.iter().any(|extent| extent.life.state() == FolioState::Poisoned)
    }

    /// Replaces the memory of a failed page of a file and fills it with `bytes`.
    pub(crate) fn clear_poison(
        &mut self,
        name: &FileName,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Reply, Refusal> {
        let file =
            self.files.get(name).ok_or_else(|| Refusal::NotFound { name: name.to_string() })?;
        file_idle(name, file)?;
        if !offset.is_multiple_of(PAGE_BYTES) || bytes.len() as u64 != PAGE_BYTES {
            let why =
                format!("poison is cleared by 4096 bytes at a multiple of 4096, not {offset}");
            return Err(Refusal::Invalid { why });
        }
        let smallest = self.folios.smallest();
        if smallest != Level::Pte {
            let why = format!(
                "\"{name}\" lost a whole folio of {smallest}, which no single page brings back: \
                 remove the file, then repair what is free"
            );
            return Err(Refusal::Denied { why, errno: pgmap_mm::error::errno::EOPNOTSUPP });
        }
        let mut file = file.clone();
        let (at, run) = poisoned_page(&file, offset / PAGE_BYTES).ok_or_else(|| {
            Refusal::Invalid { why: format!("\"{name}\" has no failed page at {offset}") }
        })?;
        self.refuse_while_held(name, run)?;
        self.backing.detach(run)?;
        self.backing.ensure(std::iter::once(run))?;
        self.index.bump_detach_epoch();
        self.backing.fill(run, bytes)?;
        let fresh = self.take_stamp()?;
        let live = Descriptor::new(FolioState::Live, self.flags_for(file.rules), fresh);
        let cleared = self.folios.clear_poison(run, live)?;
        self.poisoned.take_exactly(run);
        let (before, after) = file.extents[at].run.without(run);
        let around = |part: Option<PfnRange>| part.and_then(|part| self.folios.piece(part));
        let pieces = [around(before), Some(cleared), around(after)];
        file.extents.splice(at..=at, pieces.into_iter().flatten());
        self.record(&[Change::Put(name, file.stored()), Change::Healthy(run.start())])?;
        self.write_entry(name, &file)?;
        self.files.insert(name.clone(), file);
        Ok(Reply::Done)
    }

    fn refuse_while_held(&self, name: &FileName, run: PfnRange) -> Result<(), Refusal> {
        let ledgers = self.clients.iter().map(|(&id, client)| (id, &client.ledger));
        let held = scan(&SortedRuns::new(vec![run]), ledgers);
        if held.is_empty() {
            return Ok(());
        }
        let holders = self.holders(&held, None);
        Err(Refusal::Held { name: name.to_string(), holders, waited_ms: 0 })
    }

    /// Replaces the memory of failed frames that no file has and nobody holds, and frees them. A frame
    /// that waits for its last holder is left to its drain.
    pub(crate) fn repair_free(&mut self) -> Result<Reply, Refusal> {
        self.look_again();
        let unit = self.folios.smallest().nr_pages();
        let failed: Vec<PfnRange> = self
            .poisoned
            .runs()
            .flat_map(|(start, length)| {
                let folios = (start..start + length).step_by(unit as usize);
                folios.filter_map(|at| PfnRange::new(at, unit))
            })
            .filter(|run| matches!(self.place_of(run.first()), Place::Nowhere))
            .filter(|run| !self.is_awaited(*run))
            .collect();
        for run in failed {
            self.backing.detach(run)?;
            self.record(&[Change::Healthy(run.start())])?;
            if self.folios.return_repaired(run).is_ok() {
                self.poisoned.take_exactly(run);
            }
        }
        Ok(Reply::Done)
    }

    /// Whether a drain waits for `run`, or a client holds it.
    fn is_awaited(&self, run: PfnRange) -> bool {
        let ledgers = self.clients.iter().map(|(&id, client)| (id, &client.ledger));
        self.drains.iter().any(|pending| pending.drain.runs().overlaps(run))
            || self.backlog.overlaps(run)
            || !scan(&SortedRuns::new(vec![run]), ledgers).is_empty()
    }

    /// Keeps failed frames out of use after a restart.
    pub(crate) fn recover_poison(&mut self, failed: &[u64]) {
        let smallest = self.folios.smallest();
        for &number in failed {
            let run = Pfn::new(number).map(|pfn| PfnRange::folio(pfn, smallest));
            let Some(run) = run.filter(|run| run.end() <= self.nr_pages()) else { continue };
            self.poisoned.give(run);
            let known = self.folios.vmemmap().folio_of(run.first());
            if known.is_some_and(|(_, word)| word.state() == FolioState::Poisoned) {
                self.folios.claim_any_of(run);
            } else if self.folios.frames().is_free(run)
                && let Some(stamp) = self.stamps.take()
            {
                let word = Descriptor::new(FolioState::Poisoned, FolioFlags::NONE, stamp);
                self.folios.reclaim(run, smallest, word);
            }
        }
    }
}

/// The extent of `file` that is the failed page number `page`, and the page's frame.
fn poisoned_page(file: &FileRecord, page: u64) -> Option<(usize, PfnRange)> {
    let mut at = 0;
    for (place, extent) in file.extents.iter().enumerate() {
        let end = at + extent.run.nr_pages();
        if page < end {
            let is_failed = extent.life.state() == FolioState::Poisoned;
            return is_failed.then(|| Some((place, extent.run.sub_run(page - at, 1)?))).flatten();
        }
        at = end;
    }
    None
}
