//! Taking a part out of a file: truncate and hole punching, with a deadline.
//!
//! A folio of which only a part goes is split first, so that a pin of the part that stays is never in
//! the way (Linux waits for the whole entry: fs/dax.c, dax_busy_page; semantics scenario 53).

use pgmap_mm::descriptor::FolioState;
use pgmap_mm::extent::Extent;
use pgmap_mm::index::ExtentList;
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::stamp::Stamp;
use pgmap_os::clock;

use crate::name::FileName;
use crate::owner::catalog::Change;
use crate::owner::core::{Core, FileRecord, Outcome, Ticket};
use crate::owner::drains::{PendingDrain, Purpose};
use crate::owner::files::file_idle;
use crate::refusal::{Holder, Refusal};
use crate::wire::{OnDeadline, Reply};

/// A cut that waits for holders.
#[derive(Debug)]
pub(crate) struct Cut {
    pub ticket: Ticket,
    pub name: FileName,
    pub deadline_ms: u64,
    /// What happens then.
    pub on_deadline: OnDeadline,
    /// Which pages of the file go, and what was there before, to go back to.
    pub pages: std::ops::Range<u64>,
    pub before: FileRecord,
}

/// How long a cut waits for holders, and what happens then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub wait_ms: u64,
    pub on_deadline: OnDeadline,
}

/// A file's extents after a cut, and the frames that go.
struct Pieces {
    extents: Vec<Extent>,
    off: Vec<PfnRange>,
}

impl Core {
    /// Shortens a file.
    pub(crate) fn truncate(
        &mut self,
        name: FileName,
        len_bytes: u64,
        patience: Patience,
    ) -> Outcome {
        let checked = self.idle_file(&name).and_then(|file| {
            if len_bytes > file.len_bytes {
                return Err(Refusal::BadLength {
                    name: name.to_string(),
                    len_bytes,
                    why: format!("a truncate shortens, and it has {}", file.len_bytes),
                });
            }
            Ok(file.clone())
        });
        let result = checked.and_then(|before| {
            let after_pages = before.extents.iter().map(|extent| extent.run.nr_pages()).sum();
            // What is left of the smallest folio that can be described stays.
            let unit = self.folios.smallest().size_bytes();
            let pages =
                (len_bytes.div_ceil(unit) * (unit / PAGE_BYTES)).min(after_pages)..after_pages;
            self.cut_file(name, before, pages, len_bytes, patience)
        });
        result.unwrap_or_else(|refusal| Outcome::Answer(Reply::Refused(refusal)))
    }

    /// Takes whole pages out of the middle of a file, which then read as zero. Where the pool describes
    /// no folios of 4 KiB the hole is made of whole folios of the smallest size.
    pub(crate) fn punch(
        &mut self,
        name: FileName,
        offset: u64,
        len_bytes: u64,
        patience: Patience,
    ) -> Outcome {
        let checked = self.idle_file(&name).and_then(|file| {
            let end = offset.checked_add(len_bytes).filter(|&end| end <= file.len_bytes);
            let unit = self.folios.smallest().size_bytes();
            let is_whole_pages = offset.is_multiple_of(unit)
                && (len_bytes.is_multiple_of(unit) || end == Some(file.len_bytes));
            match end {
                Some(end) if is_whole_pages && len_bytes > 0 => {
                    let end_page = end.div_ceil(unit) * (unit / PAGE_BYTES);
                    Ok((file.clone(), offset / PAGE_BYTES..end_page))
                }
                _ => Err(Refusal::BadLength {
                    name: name.to_string(),
                    len_bytes,
                    why: format!(
                        "a hole at {offset} must be whole {unit}-byte pages inside the file's {} bytes",
                        file.len_bytes
                    ),
                }),
            }
        });
        let result = checked.and_then(|(before, pages)| {
            let len_bytes = before.len_bytes;
            self.cut_file(name, before, pages, len_bytes, patience)
        });
        result.unwrap_or_else(|refusal| Outcome::Answer(Reply::Refused(refusal)))
    }

    fn idle_file(&self, name: &FileName) -> Result<&FileRecord, Refusal> {
        let file =
            self.files.get(name).ok_or_else(|| Refusal::NotFound { name: name.to_string() })?;
        file_idle(name, file)?;
        Ok(file)
    }

    fn cut_file(
        &mut self,
        name: FileName,
        before: FileRecord,
        pages: std::ops::Range<u64>,
        len_bytes: u64,
        patience: Patience,
    ) -> Result<Outcome, Refusal> {
        let Patience { wait_ms, on_deadline } = patience;
        let is_tail = len_bytes < before.len_bytes;
        // A hole adds two extents at most; rewriting an entry takes its further slots anew before it
        // gives the old ones back.
        self.index.check_room(self.index.slots_for(before.extents.len() + 2) - 1)?;
        let fresh = self.take_stamp()?;
        if let Err(refusal) = self.split_edges(&before.extents, &pages) {
            self.adopt_shape(&name, before)?;
            return Err(refusal);
        }
        let pieces = self.cut_extents(&before.extents, pages.clone(), fresh, is_tail);
        let after = FileRecord { len_bytes, extents: pieces.extents, ..before.clone() };
        if pieces.off.is_empty() {
            self.record(&[Change::Put(&name, after.stored())])?;
            self.write_entry(&name, &after)?;
            self.files.insert(name, after);
            return Ok(Outcome::Answer(Reply::Done));
        }
        self.write_entry(&name, &after)?;
        let drain = self.start_drain(pieces.off.into_iter().collect());
        self.ask_holders(&drain, Some(wait_ms), on_deadline);
        let ticket = self.new_ticket();
        let doing = if is_tail { "truncated" } else { "punched" };
        self.files.insert(name.clone(), FileRecord { doing: Some(doing), ..after });
        let started_ms = clock::monotonic_ms();
        let deadline_ms = started_ms.saturating_add(wait_ms);
        let purpose = Purpose::Cut(Cut { ticket, name, deadline_ms, on_deadline, pages, before });
        self.drains.push(PendingDrain { drain, started_ms, purpose });
        self.look_again();
        let answered = self.answers.iter().position(|&(answered, _)| answered == ticket);
        Ok(match answered {
            Some(place) => Outcome::Answer(self.answers.swap_remove(place).1),
            None => Outcome::Later(ticket),
        })
    }

    /// Makes a file's books say where its life words lie after folios were split.
    fn adopt_shape(&mut self, name: &FileName, mut file: FileRecord) -> Result<(), Refusal> {
        for extent in file.extents.iter_mut().filter(|extent| !extent.is_hole()) {
            if let Some(piece) = self.folios.piece(extent.run) {
                *extent = piece;
            }
        }
        self.write_entry(name, &file)?;
        self.files.insert(name.clone(), file);
        Ok(())
    }

    pub(crate) fn write_entry(
        &mut self,
        name: &FileName,
        file: &FileRecord,
    ) -> Result<(), Refusal> {
        let list: ExtentList = file.extents.iter().copied().collect();
        Ok(self.index.update(file.entry, name.as_bytes(), file.id, file.len_bytes, &list)?)
    }

    /// Divides extents around `pages`, splitting the folios at its ends, and changes the life word of
    /// each extent that loses a part. What goes becomes a hole, or the end of the file.
    fn cut_extents(
        &mut self,
        extents: &[Extent],
        pages: std::ops::Range<u64>,
        fresh: Stamp,
        is_tail: bool,
    ) -> Pieces {
        let mut pieces = Pieces { extents: Vec::new(), off: Vec::new() };
        let mut at = 0;
        for extent in extents {
            let nr_pages = extent.run.nr_pages();
            let from = pages.start.clamp(at, at + nr_pages) - at;
            let to = pages.end.clamp(at, at + nr_pages) - at;
            at += nr_pages;
            if from == to {
                pieces.extents.push(*extent);
                continue;
            }
            let hole = (!is_tail).then_some(to - from);
            self.cut_extent(extent, from..to, fresh, &mut pieces, hole);
        }
        pieces.extents = joined_holes(pieces.extents);
        pieces
    }

    fn cut_extent(
        &mut self,
        extent: &Extent,
        pages: std::ops::Range<u64>,
        fresh: Stamp,
        pieces: &mut Pieces,
        hole: Option<u64>,
    ) {
        let (from, to) = (pages.start, pages.end);
        if extent.is_hole() {
            pieces.extents.extend(Extent::hole(from));
            pieces.extents.extend(hole.and_then(Extent::hole));
            pieces.extents.extend(Extent::hole(extent.run.nr_pages() - to));
            return;
        }
        let run = extent.run;
        if let Some(before) = run.sub_run(0, from) {
            let head = self.folios.vmemmap().load(extent.head_level, extent.first());
            if head == Some(extent.life) {
                pieces
                    .extents
                    .push(self.folios.change_life(&Extent { run: before, ..*extent }, fresh));
            } else {
                // The head folio itself was split: the life word is another's now.
                pieces.extents.extend(self.folios.piece(before));
            }
        }
        pieces.off.extend(run.sub_run(from, to - from));
        pieces.extents.extend(hole.and_then(Extent::hole));
        if let Some(after) = run.sub_run(to, run.nr_pages() - to) {
            pieces.extents.extend(self.folios.piece(after));
        }
    }

    /// Splits folios until one starts at `pfn`.
    fn split_at(&mut self, pfn: Pfn) -> Result<(), Refusal> {
        while let Some((level, _)) = self.folios.vmemmap().folio_of(pfn)
            && !pfn.is_aligned(level)
            && let Some(below) = level.below()
        {
            let split = self.folios.split(pfn, below);
            split.map_err(|error| Refusal::Invalid { why: error.to_string() })?;
            self.tell_driver_of_split(PfnRange::folio(pfn, level), pfn, below);
        }
        Ok(())
    }

    /// Splits the folios at both ends of `pages` of a file.
    fn split_edges(
        &mut self,
        extents: &[Extent],
        pages: &std::ops::Range<u64>,
    ) -> Result<(), Refusal> {
        let mut at = 0;
        for extent in extents {
            let run = extent.run;
            for edge in [pages.start, pages.end] {
                if !extent.is_hole()
                    && edge > at
                    && let Some(pfn) = Pfn::new(run.start() + (edge - at))
                    && run.contains(pfn)
                {
                    self.split_at(pfn)?;
                }
            }
            at += run.nr_pages();
        }
        Ok(())
    }

    /// Puts a cut on record. Where that fails the file is given back what it lost, whoever asked is
    /// told, and the answer is false.
    fn settle(&mut self, pending: &PendingDrain, cut: &Cut) -> bool {
        let recorded = match self.files.get(&cut.name) {
            Some(file) => self.record(&[Change::Put(&cut.name, file.stored())]),
            None => Ok(()),
        };
        if let Err(refusal) = recorded {
            self.restore(pending, cut);
            self.answers.push((cut.ticket, Reply::Refused(refusal)));
            return false;
        }
        if let Some(file) = self.files.get_mut(&cut.name) {
            file.doing = None;
        }
        true
    }

    pub(crate) fn finish_cut(&mut self, pending: &PendingDrain, cut: &Cut) {
        if !self.settle(pending, cut) {
            return;
        }
        for run in pending.drain.runs().iter() {
            self.backlog.push(run);
        }
        self.answers.push((cut.ticket, Reply::Done));
    }

    pub(crate) fn give_up_cut(&mut self, pending: &PendingDrain, cut: &Cut) {
        let waited_ms = clock::monotonic_ms() - pending.started_ms;
        let mut holders = self.holders(pending.drain.held(), Some(waited_ms));
        for holder in &mut holders {
            // What is cut off is no part of the file for as long as that lasts.
            holder.file.get_or_insert_with(|| cut.name.to_string());
        }
        if cut.on_deadline == OnDeadline::Quarantine {
            return self.quarantine_cut(pending, cut, holders);
        }
        for run in pending.drain.runs().iter() {
            self.leases.call_off(run);
        }
        self.restore(pending, cut);
        let refusal = Refusal::Held { name: cut.name.to_string(), holders, waited_ms };
        self.answers.push((cut.ticket, Reply::Refused(refusal)));
    }

    /// Ends a cut although somebody holds what was cut off: that stays out of use until it is let go.
    fn quarantine_cut(&mut self, pending: &PendingDrain, cut: &Cut, holders: Vec<Holder>) {
        if !self.settle(pending, cut) {
            return;
        }
        for run in pending.drain.runs().iter() {
            self.folios.change_healthy(run, |word| word.in_state(FolioState::Quarantined));
        }
        let purpose = Purpose::FreeQuarantined;
        let (drain, started_ms) = (pending.drain.clone(), pending.started_ms);
        self.continue_free(PendingDrain { drain, started_ms, purpose });
        self.answers.push((cut.ticket, Reply::Quarantined(holders)));
    }

    /// Gives a file back what a cut was to take. Its extents stay in the pieces that readers were told
    /// of meanwhile: a piece that was told ends only by a change of its own life word, and putting the
    /// old extent together again would leave the later pieces' words as they are, to be believed by
    /// an old reader when their frames are long somebody else's.
    fn restore(&mut self, pending: &PendingDrain, cut: &Cut) {
        for run in pending.drain.runs().iter() {
            self.folios.change_healthy(run, |word| word.in_state(FolioState::Live));
        }
        let Some(file) = self.files.get(&cut.name) else { return };
        let mut extents = pages_of(&file.extents, 0..cut.pages.start);
        for extent in pages_of(&cut.before.extents, cut.pages.clone()) {
            if extent.is_hole() {
                extents.push(extent);
            } else {
                self.push_with_failures(extent.run, &mut extents);
            }
        }
        extents.extend(pages_of(&file.extents, cut.pages.end..u64::MAX));
        let len_bytes = cut.before.len_bytes;
        let after =
            FileRecord { len_bytes, extents: joined_holes(extents), doing: None, ..file.clone() };
        let written =
            self.record_file(&cut.name, &after).and_then(|()| self.write_entry(&cut.name, &after));
        if let Err(refusal) = written {
            // The frames are the file's all the same; readers are told when the entry is next written.
            tracing::warn!(file = %cut.name, %refusal, "a file's entry could not be written");
        }
        self.files.insert(cut.name.clone(), after);
    }

    /// The extents of `run` as its descriptors have them: failed frames are extents of their own.
    fn push_with_failures(&self, run: PfnRange, extents: &mut Vec<Extent>) {
        let mut rest = Some(run);
        for failed in self.folios.poisoned(run) {
            let Some(whole) = rest else { return };
            let (before, after) = whole.without(failed);
            extents.extend(before.and_then(|before| self.folios.piece(before)));
            extents.extend(self.folios.piece(failed));
            rest = after;
        }
        extents.extend(rest.and_then(|rest| self.folios.piece(rest)));
    }
}

/// The part of a file's extents that is `pages`, which begin and end where folios do.
fn pages_of(extents: &[Extent], pages: std::ops::Range<u64>) -> Vec<Extent> {
    let mut part = Vec::new();
    let mut at = 0;
    for extent in extents {
        let end = at + extent.run.nr_pages();
        let (from, to) = (pages.start.max(at), pages.end.min(end));
        if from < to {
            let is_whole = from == at && to == end;
            let run = extent.run.sub_run(from - at, to - from);
            part.extend(run.and_then(|run| match extent.is_hole() {
                true => Extent::hole(run.nr_pages()),
                false if is_whole => Some(*extent),
                false => Extent::new(run, Level::Pte, extent.life),
            }));
        }
        at = end;
    }
    part
}

/// Neighbouring holes as one.
fn joined_holes(extents: Vec<Extent>) -> Vec<Extent> {
    let mut joined: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        if let Some(last) = joined.last_mut()
            && last.is_hole()
            && extent.is_hole()
            && let Some(both) = Extent::hole(last.run.nr_pages() + extent.run.nr_pages())
        {
            *last = both;
            continue;
        }
        joined.push(extent);
    }
    joined
}
