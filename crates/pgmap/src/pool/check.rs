//! Checking a pool that nobody owns: its head, its catalog, its files, and if asked every byte.
//!
//! Nothing is changed unless repairs are asked for. What is checked, in this order:
//!
//! 1. the catalog: both slots of its header, every record of its log;
//! 2. that the data is the catalog's: length, page size, seal, mark;
//! 3. each file: whole folios inside the pool, outside the head, each frame in one file, under
//!    stamps that were given out;
//! 4. if asked, the contents: every byte can be read, they have the checksum on record where there
//!    is one, and what lies behind a file's end is zero.
//!
//! Descriptors and index are not looked at: they are made again from the catalog when the pool is
//! opened. A file has a checksum if its creator asked for one; bytes of another that changed while
//! they can be read are not found.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgmap_mm::extent::Extent;
use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::pfn::PfnRange;
use pgmap_os::{FileAccess, MemoryFile, ParentFd};

use crate::error::Error;
use crate::metadata::Checksum;
use crate::name::FileName;
use crate::pool::backing::{Medium, open_backing, path_of};
use crate::pool::catalog::{Catalog, Change, Head, StoredBacking, StoredFile, StoredPool};
use crate::pool::directory::{CATALOG, DATA, Directory, holds_a_pool, kind_of};
use crate::pool::identity::BootId;
use crate::pool::mark::Mark;
use crate::pool::on::{self, On};
use crate::pool::parts::{check_data, check_mark};
use crate::pool::{Layout, bad, pool_name};

/// Bytes that are read at a time.
const STEP_BYTES: u64 = 1 << 20;

/// How a pool is checked: by default without its contents, and nothing is changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Whether the contents of files are read too.
    pub reads_data: bool,
    /// Whether what is wrong is repaired, where that loses nothing that is not lost already.
    pub repairs: bool,
}

impl CheckOptions {
    /// Has the contents of files read too.
    #[must_use]
    pub const fn read_data(mut self) -> Self {
        self.reads_data = true;
        self
    }

    /// Has what is wrong repaired, where that loses nothing that is not lost already.
    #[must_use]
    pub const fn repair(mut self) -> Self {
        self.repairs = true;
        self
    }
}

/// What is wrong with a pool, and what was done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The thing: `catalog`, `data`, or a file.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
    /// What was done; `None` if nothing was.
    pub repair: Option<String>,
}

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Files that were looked at.
    pub nr_files: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Files that the pool drops when it is opened next: the machine was restarted before they were
    /// synced.
    pub nr_unsynced: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether nothing is wrong, or everything that was is repaired.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.repair.is_some())
    }
}

/// A pool that is being checked.
struct Check<'p> {
    options: CheckOptions,
    report: CheckReport,
    progress: &'p mut dyn FnMut(u64, u64),
}

/// Checks the pool whose directory, or whose data, is at `place`. `progress` gets how many bytes of
/// how many were read.
///
/// # Errors
/// [`Error::BadPool`] when there is no pool, or it has an owner; [`Error::Os`]. Damage is no error:
/// the report says it.
pub fn check(
    place: impl AsRef<Path>,
    options: CheckOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<CheckReport, Error> {
    let place = place.as_ref();
    let mut check = Check { options, report: CheckReport::default(), progress };
    if holds_a_pool(place)? {
        let directory = Directory::open(place)?;
        directory.check_kinds()?;
        let on = On::read(place)?;
        let data = on.as_ref().map_or_else(|| directory.file(DATA), |on| on.path.clone());
        check.run(Some(&directory), data, on.is_some())?;
    } else if On::is_at(place)? {
        check.run(None, on::place_of(place)?, true)?;
    } else {
        return Err(bad(place, "there is no pool"));
    }
    Ok(check.report)
}

impl Check<'_> {
    fn run(
        &mut self,
        directory: Option<&Directory>,
        path: PathBuf,
        is_apart: bool,
    ) -> Result<(), Error> {
        let data = Arc::new(MemoryFile::open_named(&path, FileAccess::ReadWrite)?);
        let _lock: Option<ParentFd> = is_apart.then(|| on::lock(&path, &data)).transpose()?;
        let beside = directory.map(|directory| directory.file(CATALOG));
        let memory = match beside {
            Some(path) if kind_of(&path)?.is_some() => {
                Arc::new(MemoryFile::open_named(&path, FileAccess::ReadWrite)?)
            }
            _ => Arc::clone(&data),
        };
        let boot = BootId::current()?;
        let catalog = match Catalog::open_in(Arc::clone(&memory), u64::MAX, boot) {
            Err(error @ Error::Catalog { .. }) => match self.mend_header(memory, boot, &error)? {
                Some(catalog) => catalog,
                None => return Ok(()),
            },
            opened => opened?,
        };
        let stored = catalog.pool();
        if let Some(directory) = directory {
            let checked = check_data(directory, catalog.id(), &stored, &data)
                .and_then(|()| check_mark(directory, &catalog, &data));
            if let Err(error) = checked {
                self.found("data", error.to_string(), None);
                return Ok(());
            }
        }
        self.report.nr_unsynced = catalog.unsynced().len() as u64;
        let layout = Layout::of(&stored, &pool_name(Some(&path)))?;
        let head_bytes = layout.head.map_or(0, |head| head.head_bytes);
        let files = catalog.files()?;
        self.report.nr_files = files.len() as u64;
        let wrong = self.check_files(&files, &stored, head_bytes / PAGE_BYTES, &catalog);
        if self.options.repairs {
            for chunk in wrong.chunks(256) {
                let changes: Vec<_> = chunk.iter().map(Change::Delete).collect();
                record(&catalog, &data, &changes)?;
            }
        }
        if self.options.reads_data {
            let files = files.iter().filter(|(name, _)| !wrong.contains(name));
            let media = self.open_media(&catalog, data);
            self.read_files(&files.collect::<Vec<_>>(), &catalog, &media)?;
        }
        Ok(())
    }

    fn found(&mut self, what: impl Into<String>, why: impl Into<String>, repair: Option<String>) {
        self.report.findings.push(Finding { what: what.into(), why: why.into(), repair });
    }

    /// Writes the slot of the header that is damaged again, from the other one, if that is what is
    /// wrong and repairs are asked for.
    fn mend_header(
        &mut self,
        memory: Arc<MemoryFile>,
        boot: BootId,
        error: &Error,
    ) -> Result<Option<Catalog>, Error> {
        let mended = match self.options.repairs {
            true => Catalog::mend(memory, boot)?,
            false => None,
        };
        let repair = mended.as_ref().map(|_| {
            "the damaged header was written again; a change that it alone had, the last one, is \
             lost"
        });
        self.found("catalog", error.to_string(), repair.map(Into::into));
        Ok(mended)
    }

    /// Checks what the catalog says of each file. Returns those that no pool can have.
    fn check_files(
        &mut self,
        files: &BTreeMap<FileName, StoredFile>,
        stored: &StoredPool,
        head_pages: u64,
        catalog: &Catalog,
    ) -> Vec<FileName> {
        let mut wrong: Vec<FileName> = Vec::new();
        let mut claims: Vec<(PfnRange, &FileName)> = Vec::new();
        let nr_pages = stored.capacity_bytes / PAGE_BYTES;
        let head_pages = if stored.head == Head::Nothing { 0 } else { head_pages };
        for (name, file) in files {
            match impossible(file, stored, head_pages..nr_pages, catalog) {
                Some(why) => {
                    self.found_wrong(name, why);
                    wrong.push(name.clone());
                }
                None => {
                    let extents = file.extents().unwrap_or_default();
                    let runs = extents.into_iter().filter(|extent| !extent.is_hole());
                    claims.extend(runs.map(|extent| (extent.run, name)));
                }
            }
        }
        claims.sort_unstable_by_key(|(run, _)| run.start());
        let mut end: Option<(u64, &FileName)> = None;
        for (run, name) in claims {
            if let Some((taken, other)) = end.filter(|&(taken, _)| run.start() < taken) {
                let why = format!("frames {run} up to {taken} are also those of \"{other}\"");
                for name in [name, other] {
                    if !wrong.contains(name) {
                        self.found_wrong(name, why.clone());
                        wrong.push(name.clone());
                    }
                }
            }
            if end.is_none_or(|(taken, _)| run.end() > taken) {
                end = Some((run.end(), name));
            }
        }
        wrong
    }

    fn found_wrong(&mut self, name: &FileName, why: String) {
        let repair = self.options.repairs.then(|| "it was removed".to_owned());
        self.found(format!("file \"{name}\""), why, repair);
    }

    /// Opens further backings beside the `data`. One that is not there is found missing, and what
    /// lies on it is not read.
    fn open_media(&mut self, catalog: &Catalog, data: Arc<MemoryFile>) -> Media {
        let mut media = Media { data, further: Vec::new() };
        for line in catalog.backings().iter().filter(|line| !line.is_retired) {
            let path = path_of(&media.data, line);
            let medium = open_backing(catalog.id(), line, &path);
            if let Err(error) = &medium {
                self.found(format!("backing \"{}\"", line.name), error.to_string(), None);
            }
            media.further.push((line.clone(), medium.ok()));
        }
        media
    }

    /// Reads every byte, and looks at what lies behind each file's end.
    fn read_files(
        &mut self,
        files: &[(&FileName, &StoredFile)],
        catalog: &Catalog,
        media: &Media,
    ) -> Result<(), Error> {
        let total: u64 = files.iter().map(|(_, file)| file.len_bytes).sum();
        let mut failed: Vec<u64> = Vec::new();
        for (name, file) in files {
            let (mut at, mut sum, mut is_all_read) = (0, Checksum::default(), true);
            for extent in file.extents().unwrap_or_default() {
                let end = (at + extent.run.len_bytes()).min(file.len_bytes);
                if let Some((data, start)) = media.of(&extent) {
                    let unread = self.read_run(start..start + (end - at), total, data, &mut sum);
                    is_all_read &= unread.is_empty();
                    for page in unread {
                        let frame = extent.run.start() + page / PAGE_BYTES;
                        if catalog.poisoned().contains(&frame) {
                            continue;
                        }
                        failed.push(frame);
                        let repair =
                            self.options.repairs.then(|| "the page is out of use".to_owned());
                        let why = format!("the page at byte {} cannot be read", at + page);
                        self.found(format!("file \"{name}\""), why, repair);
                    }
                }
                is_all_read &= media.of(&extent).is_some();
                at = end;
            }
            if is_all_read {
                self.check_sum(name, file, sum);
            }
            if !catalog.open_tails().contains(&file.id) {
                self.check_tail(name, file, media);
            }
        }
        if self.options.repairs {
            let changes: Vec<_> = failed.into_iter().map(Change::Poisoned).collect();
            for chunk in changes.chunks(256) {
                record(catalog, &media.data, chunk)?;
            }
        }
        Ok(())
    }

    /// Compares the checksum of a file's bytes with the one on record, if there is one.
    fn check_sum(&mut self, name: &FileName, file: &StoredFile, sum: Checksum) {
        if let Some(expected) = file.metadata.checksum.filter(|&expected| expected != sum.value()) {
            let why = format!(
                "its bytes have the checksum {:#010x}, and {expected:#010x} is on record: they \
                 were changed after it was committed",
                sum.value()
            );
            self.found(format!("file \"{name}\""), why, None);
        }
    }

    /// Reads `range` of the data, and adds it to `sum`. Returns the offsets of pages that do not
    /// answer.
    fn read_run(
        &mut self,
        range: Range<u64>,
        total: u64,
        data: &MemoryFile,
        sum: &mut Checksum,
    ) -> Vec<u64> {
        let (start, len) = (range.start, range.end - range.start);
        let mut bytes = vec![0; STEP_BYTES.min(len) as usize];
        let mut failed = Vec::new();
        let mut at = 0;
        while at < len {
            let step = (len - at).min(STEP_BYTES);
            if data.read_exact_at(&mut bytes[..step as usize], start + at).is_err() {
                let pages = (at..at + step).step_by(PAGE_BYTES as usize);
                failed.extend(pages.filter(|&page| {
                    let part = &mut bytes[..(at + step - page).min(PAGE_BYTES) as usize];
                    data.read_exact_at(part, start + page).is_err()
                }));
            }
            sum.update(&bytes[..step as usize]);
            at += step;
            self.report.read_bytes += step;
            (self.progress)(self.report.read_bytes, total);
        }
        failed
    }

    fn check_tail(&mut self, name: &FileName, file: &StoredFile, media: &Media) {
        let used = file.len_bytes % PAGE_BYTES;
        let mut page = file.len_bytes / PAGE_BYTES;
        if used == 0 {
            return;
        }
        for extent in file.extents().unwrap_or_default() {
            if page >= extent.run.nr_pages() {
                page -= extent.run.nr_pages();
                continue;
            }
            let Some((data, start)) = media.of(&extent) else { return };
            let at = start + page * PAGE_BYTES + used;
            let mut tail = vec![0; (PAGE_BYTES - used) as usize];
            let is_read = data.read_exact_at(&mut tail, at).is_ok();
            if is_read && tail.iter().any(|&byte| byte != 0) {
                tail.fill(0);
                let repair = (self.options.repairs && data.write_all_at(&tail, at).is_ok())
                    .then(|| "they were zeroed".to_owned());
                let why = format!("bytes behind its end, {}, are not zero", file.len_bytes);
                self.found(format!("file \"{name}\""), why, repair);
            }
            return;
        }
    }
}

/// The memories that a pool's frames lie in.
struct Media {
    data: Arc<MemoryFile>,
    further: Vec<(StoredBacking, Option<Medium>)>,
}

impl Media {
    /// Where the frames of an extent lie; `None` for a hole, and where there is nothing.
    fn of(&self, extent: &Extent) -> Option<(&MemoryFile, u64)> {
        let first = extent.run.start();
        let is_its = |line: &StoredBacking| {
            (line.first_pfn..line.first_pfn + line.nr_pages).contains(&first)
        };
        match self.further.iter().find(|(line, _)| is_its(line)) {
            _ if extent.is_hole() => None,
            Some((line, medium)) => {
                let start = line.offset_bytes + (first - line.first_pfn) * PAGE_BYTES;
                Some((&medium.as_ref()?.data, start))
            }
            None => Some((&self.data, first * PAGE_BYTES)),
        }
    }
}

/// Puts changes on record, and keeps data and catalog together: the mark of a stopped owner may be
/// one change ahead, and never behind.
fn record(catalog: &Catalog, data: &MemoryFile, changes: &[Change<'_>]) -> Result<(), Error> {
    let state = catalog.state();
    if state.is_clean && on::has_seal(data) {
        Mark::Closed(state.sequence + 1).write(data, catalog.id())?;
    }
    catalog.record(changes)
}

/// Why no pool can have such a file.
fn impossible(
    file: &StoredFile,
    stored: &StoredPool,
    frames: Range<u64>,
    catalog: &Catalog,
) -> Option<String> {
    let is_of = |line: &StoredBacking, run: PfnRange| {
        let lines = line.first_pfn..line.first_pfn.saturating_add(line.nr_pages);
        !line.is_retired && lines.start <= run.start() && run.end() <= lines.end
    };
    let Some(extents) = file.extents() else {
        return Some("an extent is damaged".into());
    };
    let unit = stored.smallest.nr_pages();
    let mut nr_pages = 0;
    for extent in &extents {
        let run = extent.run;
        nr_pages += run.nr_pages();
        if extent.is_hole() {
            continue;
        }
        let is_inside = frames.start <= run.start() && run.end() <= frames.end;
        if !is_inside && !catalog.backings().iter().any(|line| is_of(line, run)) {
            return Some(format!("frames {run} are not the pool's"));
        }
        if !run.start().is_multiple_of(unit) || !run.nr_pages().is_multiple_of(unit) {
            return Some(format!("frames {run} are not whole folios"));
        }
        if extent.life.stamp().is_some_and(|stamp| stamp.number() >= catalog.stamp_limit()) {
            return Some(format!("frames {run} have a stamp that was never given out"));
        }
    }
    let has = nr_pages * PAGE_BYTES;
    let is_longer = file.len_bytes > has;
    is_longer.then(|| format!("it has {} bytes, and its frames {has}", file.len_bytes))
}
