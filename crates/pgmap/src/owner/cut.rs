//! Taking a part out of a file: truncate and hole punching, with a deadline.
//!
//! A folio of which only a part goes is split first, so that a pin of the part that stays is never
//! in the way (Linux waits for the whole entry: fs/dax.c, dax_busy_page; semantics scenario 53).

use pgmap_mm::drain::{Drain, MAX_ASKS};
use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::pfn::PfnRange;
use pgmap_os::clock;

use crate::name::FileName;
use crate::owner::core::{Core, Outcome, Ticket};
use crate::owner::drains::{PendingDrain, Purpose};
use crate::owner::file_book::FileRecord;
use crate::owner::files::file_idle;
use crate::owner::frames::CutFrames;
use crate::owner::scans::Scanning;
use crate::pool::catalog::Change;
use crate::refusal::{ClientHold, Refusal};
use crate::wire::{OnDeadline, Reply};

/// A cut that waits for holders.
#[derive(Debug)]
pub(crate) struct Cut {
    pub ticket: Ticket,
    pub name: FileName,
    pub started_ms: u64,
    /// How long it waits for holders.
    pub wait_ms: u64,
    /// What happens then.
    pub on_deadline: OnDeadline,
    /// Which pages of the file go, and what was there before, to go back to.
    pub pages: std::ops::Range<u64>,
    pub before: FileRecord,
    /// What became of its frames.
    pub frames: CutFrames,
}

impl Cut {
    /// When it has waited long enough.
    pub(crate) const fn deadline_ms(&self) -> u64 {
        self.started_ms.saturating_add(self.wait_ms)
    }
}

/// How long a cut waits for holders, and what happens then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub wait_ms: u64,
    pub on_deadline: OnDeadline,
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
            let unit = self.frames.smallest().size_bytes();
            let pages =
                (len_bytes.div_ceil(unit) * (unit / PAGE_BYTES)).min(after_pages)..after_pages;
            self.cut_file(name, before, pages, len_bytes, patience)
        });
        result.unwrap_or_else(|refusal| Outcome::Answer(Reply::Refused(refusal)))
    }

    /// Takes whole pages out of the middle of a file, which then read as zero. Where the pool
    /// describes no folios of 4 KiB the hole is made of whole folios of the smallest size.
    pub(crate) fn punch(
        &mut self,
        name: FileName,
        offset: u64,
        len_bytes: u64,
        patience: Patience,
    ) -> Outcome {
        let checked = self.idle_file(&name).and_then(|file| {
            let end = offset.checked_add(len_bytes).filter(|&end| end <= file.len_bytes);
            let unit = self.frames.smallest().size_bytes();
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
                        "a hole at {offset} must be whole {unit}-byte pages inside the file's {} \
                         bytes",
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
        let file = self.files.find(name)?;
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
        let cut = self.frames.begin_cut(&name, &before.extents, &pages, is_tail)?;
        for split in &cut.splits {
            self.pagemaps.notify_of_split(
                PfnRange::folio(split.at, split.from),
                split.at,
                split.to,
            );
        }
        let doing = if is_tail { "truncated" } else { "punched" };
        let after = FileRecord {
            len_bytes,
            extents: cut.extents.clone(),
            doing: Some(doing),
            metadata: before.metadata.without_checksum(),
            ..before.clone()
        };
        self.relist(&name, &after)?;
        self.files.update(&name, after);
        self.frames.retire_cut(&cut.off);
        let ticket = self.outbox.new_ticket();
        let started_ms = clock::monotonic_ms();
        let runs = cut.off.iter().copied().collect();
        let cut = Cut {
            ticket,
            name: name.clone(),
            started_ms,
            wait_ms,
            on_deadline,
            pages,
            before,
            frames: cut,
        };
        self.scan_then(runs, Scanning::Cut(Box::new(cut)));
        if self.scanned_for(&name).is_none() {
            self.look_again();
        }
        Ok(self.outbox.outcome_of(ticket))
    }

    /// The holders of what is cut off are known now: they are asked for it, and waited for.
    pub(crate) fn wait_for_holders(&mut self, drain: Drain, cut: Box<Cut>) {
        let (_, held) = self.split_by_holds(&drain);
        held.iter().for_each(|run| self.frames.mark_held(run));
        self.ask_holders(&drain, MAX_ASKS, Some(cut.wait_ms), cut.on_deadline);
        let (started_ms, purpose) = (cut.started_ms, Purpose::Cut(cut));
        self.drains.add_first(PendingDrain { drain, started_ms, purpose, unasked: None });
    }

    /// Puts a cut on record and zeroes what is left behind the new end.
    ///
    /// # Errors
    /// When it cannot be put on record: the file is to be given back what it lost.
    fn settle(&mut self, cut: &Cut) -> Result<(), Refusal> {
        let Some(file) = self.files.get(&cut.name) else { return Ok(()) };
        let tail = (file.len_bytes < cut.before.len_bytes).then_some(Change::OpenTail(file.id.0));
        let put = Change::Put(&cut.name, file.stored());
        let changes: Vec<Change<'_>> = [put].into_iter().chain(tail).collect();
        self.record(&changes)?;
        // A killed owner's successor zeroes it again.
        if let Err(refusal) = self.close_tail(&cut.name) {
            tracing::error!(file = %cut.name, %refusal, "what was cut off is still behind the end");
            self.files.add_open_tail(cut.before.id);
        }
        if let Some(file) = self.files.get_mut(&cut.name) {
            file.doing = None;
        }
        Ok(())
    }

    /// Zeroes what lies behind a file's end in its last page, which a cut left open, and notes
    /// that.
    pub(crate) fn close_tail(&mut self, name: &FileName) -> Result<(), Refusal> {
        let Some(file) = self.files.get(name) else { return Ok(()) };
        if file.len_bytes.is_multiple_of(PAGE_BYTES) {
            return Ok(());
        }
        self.frames.zero_tail(&file.extents, file.len_bytes)?;
        self.record(&[Change::ClosedTail(file.id.0)])
    }

    /// Whether what was cut off still lies behind the end of a file, for want of memory or of a
    /// disk.
    #[must_use]
    pub fn has_open_tails(&self) -> bool {
        self.files.has_open_tails()
    }

    /// Tries again to zero those.
    pub(crate) fn close_open_tails(&mut self) {
        for id in self.files.take_open_tails() {
            let Some(name) = self.files.name_of(id).cloned() else { continue };
            // What is being cut now may be given back: its end is not decided.
            if self.files.get(&name).is_some_and(|file| file.doing.is_some()) {
                self.files.add_open_tail(id);
                continue;
            }
            if let Err(refusal) = self.close_tail(&name) {
                tracing::debug!(file = %name, %refusal, "what was cut off is still behind the end");
                self.files.add_open_tail(id);
            }
        }
    }

    /// Nobody holds any more what was cut off.
    pub(crate) fn finish_cut(&mut self, drain: &Drain, cut: Cut) {
        if let Err(refusal) = self.settle(&cut) {
            return self.restore(cut, Some(Reply::Refused(refusal)));
        }
        for run in drain.runs().iter() {
            self.frames.release(run);
        }
        self.outbox.answer(cut.ticket, Reply::Done);
    }

    /// The deadline passed, and somebody holds what was cut off.
    pub(crate) fn give_up_cut(&mut self, drain: Drain, cut: Cut) {
        let waited_ms = clock::monotonic_ms() - cut.started_ms;
        let mut holders = self.holders(drain.held(), Some(waited_ms));
        for holder in &mut holders {
            // What is cut off is no part of the file for as long as that lasts.
            holder.file.get_or_insert_with(|| cut.name.to_string());
        }
        if cut.on_deadline == OnDeadline::Quarantine {
            return self.quarantine_cut(drain, cut, holders);
        }
        self.leases.call_off_recall(drain.runs());
        let refusal = Refusal::Held { name: cut.name.to_string(), holders, waited_ms };
        self.restore(cut, Some(Reply::Refused(refusal)));
    }

    /// Ends a cut although somebody holds what was cut off: that stays out of use until it is let
    /// go.
    fn quarantine_cut(&mut self, drain: Drain, cut: Cut, holders: Vec<ClientHold>) {
        if let Err(refusal) = self.settle(&cut) {
            return self.restore(cut, Some(Reply::Refused(refusal)));
        }
        let (_, held) = self.split_by_holds(&drain);
        held.iter().for_each(|run| self.frames.mark_quarantined(run));
        let (started_ms, purpose) = (cut.started_ms, Purpose::FreeQuarantined);
        self.continue_free(PendingDrain { drain, started_ms, purpose, unasked: None });
        self.outbox.answer(cut.ticket, Reply::Quarantined(holders));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pgmap_mm::level::Level;

    use super::*;
    use crate::owner::clients::ClientIdentity;
    use crate::owner::made_file::make_file_in;
    use crate::pool::{Pool, PoolOptions};
    use crate::wire::FolioSize;

    const MIB: u64 = 1 << 20;
    const FILE_BYTES: u64 = 9 * MIB + 5;

    /// A file in the books of an owner, in a pool of folios of `smallest` and larger.
    struct World {
        core: Core,
        name: FileName,
        /// Of all frames, free or the file's.
        all_bytes: u64,
        _place: tempfile::TempDir,
    }

    fn world(smallest: Level) -> World {
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let options = PoolOptions::in_directory(place.path().join("pool"), 64 * MIB);
        let options = options.metadata_on_device().smallest_folio(smallest);
        let mut core = Core::open(Arc::new(Pool::create(&options).unwrap())).unwrap();
        let (client, _) = core.attach(ClientIdentity::own(), false).unwrap();
        let all_bytes = core.pool_info().free_bytes;
        let name = FileName::new("a").unwrap();
        make_file_in(&mut core, client, &name, FILE_BYTES, FolioSize::BestFit);
        World { core, name, all_bytes, _place: place }
    }

    impl World {
        /// Length, and pages of the file in turn: how many are there, how many are a hole.
        fn shape(&self) -> (u64, Vec<(u64, bool)>) {
            let file = &self.core.files[&self.name];
            let mut shape: Vec<(u64, bool)> = Vec::new();
            for extent in &file.extents {
                let nr_pages = extent.run.nr_pages();
                match shape.last_mut() {
                    Some((nr, is_hole)) if *is_hole == extent.is_hole() => *nr += nr_pages,
                    _ => shape.push((nr_pages, extent.is_hole())),
                }
            }
            (file.len_bytes, shape)
        }

        fn is_done(&mut self, outcome: &Outcome) -> bool {
            let info = self.core.pool_info();
            let (_, shape) = self.shape();
            let used: u64 = shape.iter().filter(|part| !part.1).map(|part| part.0).sum();
            let all = info.free_bytes + info.draining_bytes + used * PAGE_BYTES;
            assert_eq!(all, self.all_bytes, "{info:?}");
            match outcome {
                Outcome::Answer(Reply::Done) => true,
                Outcome::Answer(Reply::Refused(Refusal::BadLength { .. })) => false,
                other => panic!("{other:?}"),
            }
        }

        fn truncate(&mut self, len_bytes: u64) -> bool {
            let patience = Patience { wait_ms: 0, on_deadline: OnDeadline::Fail };
            let outcome = self.core.truncate(self.name.clone(), len_bytes, patience);
            self.is_done(&outcome)
        }

        fn punch(&mut self, offset: u64, len_bytes: u64) -> bool {
            let patience = Patience { wait_ms: 0, on_deadline: OnDeadline::Fail };
            let outcome = self.core.punch(self.name.clone(), offset, len_bytes, patience);
            self.is_done(&outcome)
        }
    }

    /// Story: with folios of 4 KiB a unit is a page, and no test noticed when the one was
    /// multiplied where it is divided.
    #[test]
    fn a_truncate_keeps_all_of_the_smallest_folio_in_which_the_end_is() {
        for (smallest, unit_pages) in [(Level::Pte, 1), (Level::Pmd, 512)] {
            for len_bytes in [9 * MIB + 4, 6 * MIB + 1, 6 * MIB, 4096, 1, 0] {
                let mut world = world(smallest);
                assert!(world.truncate(len_bytes));
                let kept = len_bytes.div_ceil(unit_pages * PAGE_BYTES) * unit_pages;
                let shape = if kept == 0 { vec![] } else { vec![(kept, false)] };
                assert_eq!(world.shape(), (len_bytes, shape), "{smallest} {len_bytes}");
            }
            let mut world = world(smallest);
            let before = world.shape();
            assert!(world.truncate(FILE_BYTES));
            assert!(!world.truncate(FILE_BYTES + 1));
            assert_eq!(world.shape(), before);
        }
    }

    #[test]
    fn a_hole_is_whole_smallest_folios_or_reaches_to_the_end() {
        for (smallest, unit_pages) in [(Level::Pte, 1), (Level::Pmd, 512)] {
            let unit = unit_pages * PAGE_BYTES;
            let all = FILE_BYTES.div_ceil(unit) * unit_pages;
            let before = (FILE_BYTES, vec![(all, false)]);
            let last = FILE_BYTES / unit * unit;
            let refused = [
                (unit, 0),
                (unit + 1, unit),
                (unit, unit + 1),
                (unit / 2, unit),
                (last, FILE_BYTES - last - 1),
                (last, FILE_BYTES - last + 1),
                (last, unit),
                (u64::MAX - unit + 1, unit),
            ];
            for (offset, len_bytes) in refused {
                let mut world = world(smallest);
                assert!(!world.punch(offset, len_bytes), "{smallest} {offset} {len_bytes}");
                assert_eq!(world.shape(), before);
            }
            let mut middle = world(smallest);
            assert!(middle.punch(unit, 2 * unit));
            let rest = all - 3 * unit_pages;
            let shape = vec![(unit_pages, false), (2 * unit_pages, true), (rest, false)];
            assert_eq!(middle.shape(), (FILE_BYTES, shape), "{smallest}");
            let mut end = world(smallest);
            assert!(end.punch(last, FILE_BYTES - last));
            let shape = vec![(all - unit_pages, false), (unit_pages, true)];
            assert_eq!(end.shape(), (FILE_BYTES, shape), "{smallest}");
        }
    }
}
