//! Drains that wait: frames whose last holder has not let go, and truncates with a deadline.

use pgmap_mm::descriptor::FolioState;
use pgmap_mm::drain::Drain;
use pgmap_mm::extent::Extent;
use pgmap_mm::index::ExtentList;
use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::runs::SortedRuns;
use pgmap_os::clock;

use crate::name::FileName;
use crate::owner::catalog::Change;
use crate::owner::core::{Core, DraftRecord, FileRecord, Orphan, Outcome, Ticket};
use crate::owner::files::file_idle;
use crate::refusal::Refusal;
use crate::wire::{Event, Reply};

/// Frames that wait for their holders.
#[derive(Debug)]
pub(crate) struct PendingDrain {
    pub drain: Drain,
    pub started_ms: u64,
    pub purpose: Purpose,
}

/// What happens when nobody holds the frames any more.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// They are freed.
    Free,
    /// A truncate ends.
    Truncate(Truncate),
}

/// A truncate that waits.
#[derive(Debug)]
pub(crate) struct Truncate {
    pub ticket: Ticket,
    pub name: FileName,
    pub deadline_ms: u64,
    /// The file as it was, to go back to.
    pub before: FileRecord,
}

impl PendingDrain {
    pub(crate) fn nr_pages(&self) -> u64 {
        self.drain.runs().nr_pages()
    }
}

/// What a truncate keeps and what it cuts off.
struct Cut {
    kept: Vec<Extent>,
    /// Extents of which a part is cut off.
    shortened: Vec<Extent>,
    off: Vec<PfnRange>,
}

impl Core {
    /// Takes the frames of files that have no name any more out of use.
    pub(crate) fn retire(&mut self, files: Vec<FileRecord>) {
        let runs = files.iter().map(|f| f.extents.iter().map(|e| e.run).collect()).collect();
        self.take_out(runs);
    }

    /// Takes the frames of drafts out of use.
    pub(crate) fn retire_drafts(&mut self, drafts: Vec<DraftRecord>) {
        let runs = drafts.iter().map(|d| d.extents.iter().map(|e| e.run).collect()).collect();
        self.take_out(runs);
    }

    /// Marks frames Dying, scans once for the batch, frees what nobody holds and keeps the rest
    /// waiting, file by file.
    pub(crate) fn take_out(&mut self, batch: Vec<SortedRuns>) {
        let all: SortedRuns = batch.iter().flat_map(SortedRuns::iter).collect();
        if all.is_empty() {
            return;
        }
        let drain = self.start_drain(all);
        for runs in batch {
            let mut drain = drain.part(runs);
            let held: Vec<PfnRange> = drain.held().iter().map(|held| held.hold.run).collect();
            let (idle, waiting) = self.split_by_holds(drain.runs(), &held);
            for run in idle {
                self.free_run(run);
            }
            if !waiting.is_empty() {
                drain = drain.part(waiting);
                self.ask_holders(&drain, None);
                let started_ms = clock::monotonic_ms();
                self.drains.push(PendingDrain { drain, started_ms, purpose: Purpose::Free });
            }
        }
    }

    fn start_drain(&mut self, runs: SortedRuns) -> Drain {
        for run in runs.iter() {
            self.folios.change(run, |word| word.in_state(FolioState::Dying));
        }
        let ledgers = self.clients.iter().map(|(&id, client)| (id, &client.ledger));
        Drain::start(runs, &self.barrier, ledgers)
    }

    /// Tells each client that is in the way that its frames are wanted back (T14).
    fn ask_holders(&mut self, drain: &Drain, deadline_ms: Option<u64>) {
        for held in drain.held() {
            for run in drain.runs().iter().filter_map(|run| run.intersection(held.hold.run)) {
                let event = Event::WantedBack {
                    file: self.file_of(run),
                    first_pfn: run.start(),
                    nr_pages: run.nr_pages(),
                    deadline_ms,
                };
                let told = (held.client, event);
                if !self.events.contains(&told) {
                    self.events.push(told);
                }
            }
        }
    }

    /// The folios of `runs` that no run of `held` touches, and those that one does.
    fn split_by_holds(&self, runs: &SortedRuns, held: &[PfnRange]) -> (Vec<PfnRange>, SortedRuns) {
        if held.is_empty() {
            return (runs.iter().collect(), SortedRuns::default());
        }
        let held = SortedRuns::new(held.to_vec());
        let (mut idle, mut waiting) = (Vec::new(), Vec::new());
        for run in runs.iter() {
            for (first, level, _) in self.folios.vmemmap().folios(run) {
                let folio = PfnRange::folio(first, level);
                if held.overlaps(folio) { waiting.push(folio) } else { idle.push(folio) }
            }
        }
        (SortedRuns::new(idle).iter().collect(), SortedRuns::new(waiting))
    }

    /// Frees frames that nobody holds, detaching them first from devices of the dead.
    fn free_run(&mut self, run: PfnRange) {
        let orphaned: Vec<PfnRange> =
            self.orphans.iter().filter_map(|orphan| orphan.run.intersection(run)).collect();
        for part in &orphaned {
            if let Err(refusal) = self.backing.detach(*part) {
                // The frames cannot be told apart from the device's any more: keep them out of use.
                tracing::warn!(run = %run, %refusal, "frames are quarantined");
                self.folios.change(run, |word| word.in_state(FolioState::Quarantined));
                return;
            }
        }
        if !orphaned.is_empty() {
            self.index.bump_detach_epoch();
            self.forget_orphans(run);
        }
        self.folios.free(run);
    }

    /// The dead clients' devices have no way into `run` any more.
    fn forget_orphans(&mut self, run: PfnRange) {
        let mut left = Vec::new();
        let mut cleared = Vec::new();
        for orphan in std::mem::take(&mut self.orphans) {
            let client = orphan.client;
            let (before, after) = orphan.run.without(run);
            left.extend(before.into_iter().chain(after).map(|run| Orphan { client, run }));
            cleared.push(client);
        }
        self.orphans = left;
        for client in cleared {
            if !self.orphans.iter().any(|orphan| orphan.client == client) {
                self.remove_ledger(client);
            }
        }
    }

    /// Looks at every waiting drain again: after the doorbell, a death, or a while.
    pub fn look_again(&mut self) {
        for mut pending in std::mem::take(&mut self.drains) {
            let clients = &self.clients;
            pending.drain.look_again(|id| clients.get(&id).map(|client| &client.ledger));
            match pending.purpose {
                Purpose::Free => self.continue_free(pending),
                Purpose::Truncate(_) if pending.drain.is_idle() => self.finish_truncate(pending),
                Purpose::Truncate(ref truncate)
                    if truncate.deadline_ms <= clock::monotonic_ms() =>
                {
                    self.give_up_truncate(pending);
                }
                Purpose::Truncate(_) => self.drains.push(pending),
            }
        }
    }

    fn continue_free(&mut self, mut pending: PendingDrain) {
        let held: Vec<PfnRange> = pending.drain.held().iter().map(|held| held.hold.run).collect();
        let (idle, waiting) = self.split_by_holds(pending.drain.runs(), &held);
        for run in idle {
            self.free_run(run);
        }
        if !waiting.is_empty() {
            pending.drain = pending.drain.part(waiting);
            self.drains.push(pending);
        }
    }

    /// When the next waiting truncate's time is up, in milliseconds of the monotonic clock.
    #[must_use]
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let deadlines = self.drains.iter().filter_map(|pending| match &pending.purpose {
            Purpose::Truncate(truncate) => Some(truncate.deadline_ms),
            Purpose::Free => None,
        });
        deadlines.min()
    }

    /// Whether any drain waits: then the owner polls slowly besides listening for the doorbell.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        !self.drains.is_empty()
    }

    /// Shortens a file.
    pub(crate) fn truncate(&mut self, name: FileName, len_bytes: u64, wait_ms: u64) -> Outcome {
        match self.begin_truncate(name, len_bytes, wait_ms) {
            Ok(outcome) => outcome,
            Err(refusal) => Outcome::Answer(Reply::Refused(refusal)),
        }
    }

    fn begin_truncate(
        &mut self,
        name: FileName,
        len_bytes: u64,
        wait_ms: u64,
    ) -> Result<Outcome, Refusal> {
        let file =
            self.files.get(&name).ok_or_else(|| Refusal::NotFound { name: name.to_string() })?;
        file_idle(&name, file)?;
        if len_bytes == 0 || len_bytes > file.len_bytes {
            return Err(Refusal::BadLength {
                name: name.to_string(),
                len_bytes,
                why: format!("a truncate shortens, to at least 1 byte; it has {}", file.len_bytes),
            });
        }
        if len_bytes == file.len_bytes {
            return Ok(Outcome::Answer(Reply::Done));
        }
        let before = file.clone();
        // Rewriting an entry takes its further slots anew before it gives the old ones back.
        self.index.check_room(self.index.slots_for(before.extents.len()) - 1)?;
        let cut = self.cut(&before.extents, len_bytes);
        if cut.off.is_empty() {
            return self.shorten_in_place(name, before, len_bytes).map(Outcome::Answer);
        }
        let kept = self.change_lives(cut.kept, &cut.shortened)?;
        let list: ExtentList = kept.iter().copied().collect();
        self.index.update(before.entry, name.as_bytes(), before.id, len_bytes, &list)?;
        let drain = self.start_drain(cut.off.into_iter().collect());
        self.ask_holders(&drain, Some(wait_ms));
        let ticket = self.new_ticket();
        if let Some(file) = self.files.get_mut(&name) {
            file.extents = kept;
            file.len_bytes = len_bytes;
            file.doing = Some("truncated");
        }
        let started_ms = clock::monotonic_ms();
        let deadline_ms = started_ms.saturating_add(wait_ms);
        let truncate = Truncate { ticket, name, deadline_ms, before };
        let purpose = Purpose::Truncate(truncate);
        self.drains.push(PendingDrain { drain, started_ms, purpose });
        self.look_again();
        let answered = self.answers.iter().position(|&(answered, _)| answered == ticket);
        Ok(match answered {
            Some(place) => Outcome::Answer(self.answers.swap_remove(place).1),
            None => Outcome::Later(ticket),
        })
    }

    /// Divides extents at the first folio that starts at or after `len_bytes`.
    fn cut(&self, extents: &[Extent], len_bytes: u64) -> Cut {
        let mut cut = Cut { kept: Vec::new(), shortened: Vec::new(), off: Vec::new() };
        let keep_pages = len_bytes.div_ceil(PAGE_BYTES);
        let mut at = 0;
        for extent in extents {
            let run = extent.run;
            let end = at + run.nr_pages();
            let keep = if end <= keep_pages {
                run.nr_pages()
            } else if at >= keep_pages {
                0
            } else {
                self.whole_folios(run, keep_pages - at)
            };
            if keep > 0
                && let Some(run) = run.sub_run(0, keep)
            {
                let kept = Extent { run, ..*extent };
                cut.kept.push(kept);
                if keep < extent.run.nr_pages() {
                    cut.shortened.push(kept);
                }
            }
            cut.off.extend(run.sub_run(keep, run.nr_pages() - keep));
            at = end;
        }
        cut
    }

    /// `nr_pages` of `run` rounded up to the end of a folio.
    fn whole_folios(&self, run: PfnRange, nr_pages: u64) -> u64 {
        let last = Pfn::new(run.start() + nr_pages - 1);
        let folio = last.and_then(|last| {
            let (level, _) = self.folios.vmemmap().folio_of(last)?;
            Some(PfnRange::folio(last, level))
        });
        folio.map_or(run.nr_pages(), |folio| folio.end().min(run.end()) - run.start())
    }

    /// Changes the life words of the extents that lose a part, so that no pin of the whole succeeds.
    fn change_lives(
        &mut self,
        kept: Vec<Extent>,
        shortened: &[Extent],
    ) -> Result<Vec<Extent>, Refusal> {
        let fresh = self.take_stamp()?;
        let change = |extent: Extent| {
            if shortened.contains(&extent) {
                self.folios.change_life(&extent, fresh)
            } else {
                extent
            }
        };
        Ok(kept.into_iter().map(change).collect())
    }

    /// A truncate that cuts off less than a folio: no frame goes.
    fn shorten_in_place(
        &mut self,
        name: FileName,
        before: FileRecord,
        len_bytes: u64,
    ) -> Result<Reply, Refusal> {
        let after = FileRecord { len_bytes, ..before };
        self.record(&[Change::Put(&name, after.stored())])?;
        let list: ExtentList = after.extents.iter().copied().collect();
        self.index.update(after.entry, name.as_bytes(), after.id, len_bytes, &list)?;
        self.files.insert(name, after);
        Ok(Reply::Done)
    }

    fn finish_truncate(&mut self, pending: PendingDrain) {
        let Purpose::Truncate(truncate) = &pending.purpose else { return };
        let recorded = match self.files.get(&truncate.name) {
            Some(file) => self.record(&[Change::Put(&truncate.name, file.stored())]),
            None => Ok(()),
        };
        if let Err(refusal) = recorded {
            self.restore(&pending);
            self.answers.push((truncate.ticket, Reply::Refused(refusal)));
            return;
        }
        if let Some(file) = self.files.get_mut(&truncate.name) {
            file.doing = None;
        }
        for run in pending.drain.runs().iter() {
            self.free_run(run);
        }
        self.answers.push((truncate.ticket, Reply::Done));
    }

    fn give_up_truncate(&mut self, pending: PendingDrain) {
        self.restore(&pending);
        let Purpose::Truncate(truncate) = &pending.purpose else { return };
        let waited_ms = clock::monotonic_ms() - pending.started_ms;
        let mut holders: Vec<_> = pending
            .drain
            .held()
            .iter()
            .filter_map(|held| self.holder(held, Some(waited_ms)))
            .collect();
        holders.truncate(crate::owner::report::MAX_HOLDERS);
        let name = truncate.name.to_string();
        let refusal = Refusal::Held { name, holders, waited_ms };
        self.answers.push((truncate.ticket, Reply::Refused(refusal)));
    }

    /// Puts a file back to what it was before its truncate: exactly, so that pins and references of
    /// before go on.
    fn restore(&mut self, pending: &PendingDrain) {
        let Purpose::Truncate(truncate) = &pending.purpose else { return };
        let before = FileRecord { doing: None, ..truncate.before.clone() };
        for run in pending.drain.runs().iter() {
            self.folios.change(run, |word| word.in_state(FolioState::Live));
        }
        for extent in &before.extents {
            self.folios.restore_life(extent);
        }
        let list: ExtentList = before.extents.iter().copied().collect();
        let name = truncate.name.as_bytes();
        if let Err(full) = self.index.update(before.entry, name, before.id, before.len_bytes, &list)
        {
            // The longer list's slots were this entry's own a moment ago and nobody else is served
            // in between, unless other files took them: then the file keeps its shorter entry and
            // pins of its end ask the owner.
            tracing::warn!(file = %truncate.name, ?full, "the index has no room to restore a file");
        }
        self.files.insert(truncate.name.clone(), before);
    }
}
