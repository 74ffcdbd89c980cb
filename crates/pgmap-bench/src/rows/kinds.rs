//! Putting and getting on each kind of memory that this machine has, beside a memcpy into and out
//! of the same memory, and a copy past the processor's caches. And pins of pages at random, where a
//! pool lies in huge pages.
//!
//! `PGMAP_BENCH_ON` names the only memory that is measured, a device for instance, which is
//! overwritten.

use std::fs::File as StdFile;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pgmap::os::{FileAccess, MemoryFile, MemoryKind, PageSize, WriteMapping};
use pgmap::{Client, FolioSize, Owner, Pool, PoolOptions};

use crate::children::Folder;
use crate::failure::Failure;
use crate::harness::{Done, Row, Scale, Scenario};
use crate::huge_pages::Reserved;
use crate::rivals::memcpy::Faulted;
use crate::rows::BLOCK_BYTES;

const SMALL_BYTES: u64 = 64 << 10;
/// Files that puts go round, and blocks that copies do.
const NR_FILES: u64 = 16;
/// Bytes for the files of both lengths, and for the head of data on a path.
const POOL_BYTES: u64 = 2 * (NR_FILES + 1) * BLOCK_BYTES + HEAD_BYTES;
const HEAD_BYTES: u64 = 16 << 20;
/// Names the only memory.
const ON: &str = "PGMAP_BENCH_ON";

/// A kind of memory that this machine has.
struct Kind {
    name: String,
    place: Place,
    /// Kept as long as something lies there.
    pages: Option<Arc<Reserved>>,
}

enum Place {
    Anonymous(PageSize),
    /// A folder of a file system.
    In(Arc<Folder>),
    /// A device, or what the option `on` takes beside that; what a pool has beside it is in the
    /// folder.
    On(PathBuf, Arc<Folder>),
}

impl Kind {
    fn new(name: &str, place: Place) -> Self {
        Self { name: name.into(), place, pages: None }
    }

    fn options(&self, what: &str, bytes: u64) -> PoolOptions {
        match &self.place {
            Place::Anonymous(page) => PoolOptions::anonymous(bytes).huge_pages(*page),
            Place::In(folder) => PoolOptions::in_directory(folder.join(what), bytes),
            Place::On(path, folder) => PoolOptions::on(path, folder.join(what)).size(bytes),
        }
    }

    /// A file for copies, and where in it they may go. On a device that is behind the pool.
    fn file(&self, what: &str, bytes: u64, place: u64) -> Result<(MemoryFile, u64), Failure> {
        Ok(match &self.place {
            Place::Anonymous(page) => (MemoryFile::anonymous("bench-kind", bytes, *page)?, 0),
            Place::In(folder) => (MemoryFile::create_named(&folder.join(what), bytes)?, 0),
            Place::On(path, _) => {
                let data = MemoryFile::open_named(path, FileAccess::ReadWrite)?;
                let page = data.page_size().len_bytes();
                (data, (POOL_BYTES + place).next_multiple_of(page))
            }
        })
    }

    /// As many bytes as are needed in whole pages, which the file may have to be.
    fn huge(name: &str, page: PageSize, bytes: u64) -> Result<Self, Failure> {
        let pages = Some(Arc::new(Reserved::new(page, bytes)?));
        Ok(Self { pages, ..Self::new(name, Place::Anonymous(page)) })
    }
}

/// What there is, and a note for each kind that there is not.
fn kinds(huge_bytes: u64) -> Result<(Vec<Kind>, Vec<String>), Failure> {
    if let Some(path) = std::env::var_os(ON).map(PathBuf::from) {
        let name = path.display().to_string();
        let only = Kind::new(&name, Place::On(path, Arc::new(Folder::new("kinds-on")?)));
        return Ok((vec![only], Vec::new()));
    }
    let mut kinds = vec![
        Kind::new("memfd", Place::Anonymous(PageSize::Base)),
        Kind::new("tmpfs", Place::In(Arc::new(Folder::new("kinds")?))),
    ];
    let mut notes = Vec::new();
    match Kind::huge("hugetlb 2M", PageSize::Huge2M, huge_bytes) {
        Ok(kind) => kinds.push(kind),
        Err(error) => notes.push(format!("no rows of huge pages: {error}")),
    }
    let disk = Arc::new(Folder::on_disk("kinds")?);
    if is_on_disk(&disk)? {
        kinds.push(Kind::new("disk", Place::In(disk)));
    } else {
        notes.push("no rows of a disk: the temporary directory is in memory".into());
    }
    Ok((kinds, notes))
}

/// A client with an owner in the process, and files of one length.
struct Files {
    client: Client,
    source: Vec<u8>,
    next: u64,
    _owner: Arc<Owner>,
}

impl Files {
    fn new(owner: &Arc<Owner>, len_bytes: u64) -> Result<Self, Failure> {
        let client = owner.client()?;
        let source = vec![0x5a; len_bytes as usize];
        let mut files = Self { client, source, next: 0, _owner: Arc::clone(owner) };
        for _ in 0..3 * NR_FILES {
            files.put()?;
        }
        Ok(files)
    }

    /// As long as names may be that do not tell two lengths apart.
    fn name(&self, number: u64) -> String {
        format!("file-{}-{number:027}", self.source.len())
    }

    fn put(&mut self) -> Result<(), Failure> {
        let len_bytes = self.source.len() as u64;
        let mut writer = self.client.create(self.name(self.next), len_bytes, FolioSize::BestFit)?;
        writer.write_all_at(0, &self.source)?;
        writer.commit()?;
        if let Some(oldest) = self.next.checked_sub(NR_FILES - 1) {
            self.client.unlink(self.name(oldest))?;
        }
        self.next += 1;
        Ok(())
    }

    fn get(&self, turn: u64, to: &mut [u8]) -> Result<(), Failure> {
        let number = self.next - 1 - turn % (NR_FILES - 1);
        self.client.get(self.name(number))?.read_at(0, to)?;
        Ok(())
    }
}

/// Copies into and out of plain memory of the kind, and copies into it past the caches.
fn copies(kind: &Kind, size: &str, len_bytes: u64) -> Result<[Row; 3], Failure> {
    let whole = (NR_FILES * len_bytes).next_multiple_of(BLOCK_BYTES);
    // Two lengths are measured, each in a place of its own.
    let place = if len_bytes == BLOCK_BYTES { 0 } else { NR_FILES * BLOCK_BYTES };
    let (file, start) = kind.file(&format!("copy-{len_bytes}"), whole, place)?;
    let past = WriteMapping::map(&file, start, whole)?;
    let file = StdFile::from(file.try_clone_fd()?);
    let faulted = Arc::new(Faulted::over((file, start), NR_FILES, len_bytes)?);
    let source = vec![0x5a; len_bytes as usize];
    let (into, other_source) = (Arc::clone(&faulted), source.clone());
    let put = Row::new(format!("memcpy into {}, {size}", kind.name), move |mut worker| {
        let first = worker.random.below(NR_FILES);
        for turn in 0..worker.nr_ops {
            into.copy(first + turn, &source)?;
        }
        Ok(Done::ops(worker.nr_ops))
    });
    let name = format!("non-temporal copy into {}, {size}", kind.name);
    let past = Row::new(name, move |mut worker| {
        let first = worker.random.below(NR_FILES);
        for turn in 0..worker.nr_ops {
            past.copy_in_flushed((first + turn) % NR_FILES * len_bytes, &other_source)?;
        }
        Ok(Done::ops(worker.nr_ops))
    });
    let target = Mutex::new(vec![0; len_bytes as usize]);
    let get = Row::new(format!("memcpy out of {}, {size}", kind.name), move |worker| {
        let mut target = target.lock().unwrap_or_else(PoisonError::into_inner);
        for turn in 0..worker.nr_ops {
            faulted.copy_out(turn, &mut target)?;
        }
        black_box(&target[..]);
        Ok(Done::ops(worker.nr_ops))
    });
    Ok([put, past, get])
}

fn rows_of(
    kind: &Kind,
    owner: &Arc<Owner>,
    size: &str,
    len_bytes: u64,
) -> Result<Vec<Row>, Failure> {
    let [into, past, out] = copies(kind, size, len_bytes)?;
    let files = Arc::new(Mutex::new(Files::new(owner, len_bytes)?));
    let (putter, pages) = (Arc::clone(&files), kind.pages.clone());
    let put = Row::new(format!("pgmap: put on {}, {size}", kind.name), move |worker| {
        let _pages = &pages;
        let mut files = putter.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..worker.nr_ops {
            files.put()?;
        }
        Ok(Done::ops(worker.nr_ops))
    });
    let get = Row::new(format!("pgmap: get on {}, {size}", kind.name), move |worker| {
        let files = files.lock().unwrap_or_else(PoisonError::into_inner);
        let mut target = vec![0; files.source.len()];
        for turn in 0..worker.nr_ops {
            files.get(turn, &mut target)?;
        }
        if target != files.source {
            return Err(Failure::new("a file does not hold what was put"));
        }
        Ok(Done::ops(worker.nr_ops))
    });
    // What goes past the caches for a device is measured beside what does so.
    let base = if matches!(kind.place, Place::On(..)) { &past.name } else { &into.name };
    let (put, past) = (put.against(base), past.against(&into.name));
    let get = get.against(&out.name);
    Ok(vec![into, past, put, out, get])
}

/// The scenario.
pub fn scenario(_: Scale) -> Result<Scenario, Failure> {
    let copied_bytes = 2 * NR_FILES * BLOCK_BYTES;
    let (kinds, mut notes) = kinds(POOL_BYTES + copied_bytes)?;
    let mut rows = Vec::new();
    for kind in &kinds {
        let options = kind.options("pool", POOL_BYTES).max_files(1024);
        let owner = Arc::new(Owner::start(Pool::create(&options)?)?);
        rows.extend(rows_of(kind, &owner, "2 MiB", BLOCK_BYTES)?);
        rows.extend(rows_of(kind, &owner, "64 KiB", SMALL_BYTES)?);
    }
    notes.push(
        "a put is create + copy + commit, and the unlink of the file 16 puts ago; a get is a \
         look-up, a pin, the copy and the release; owner in the process; all memory is faulted \
         before"
            .into(),
    );
    Ok(Scenario { title: "kinds of memory".into(), notes, rows })
}

/// Pins of 4 KiB at random places of one file, and a copy of what is there.
fn random_reads(
    kind: &Kind,
    folio_size: FolioSize,
    folio: &str,
    bytes: u64,
) -> Result<Row, Failure> {
    let owner = Owner::start(Pool::create(&kind.options("reads", bytes))?)?;
    let client = owner.client()?;
    let mut writer = client.create("file", bytes, folio_size)?;
    let block = vec![0x5a; BLOCK_BYTES as usize];
    for at in (0..bytes).step_by(block.len()) {
        writer.write_all_at(at, &block)?;
    }
    writer.commit()?;
    let name = format!("pgmap: pinned read of 4 KiB, {folio} folios on {}", kind.name);
    let pages = kind.pages.clone();
    Ok(Row::new(name, move |mut worker| {
        let (_owner, _pages) = (&owner, &pages);
        let file = client.open("file")?;
        let mut page = [0; 4096];
        for _ in 0..worker.nr_ops {
            let at = worker.random.below(bytes / 4096) * 4096;
            file.pin(at..at + 4096)?.read_at(0, &mut page)?;
        }
        black_box(page);
        Ok(Done::ops(worker.nr_ops))
    }))
}

/// The scenario of reads at random.
pub fn reads_scenario(scale: Scale) -> Result<Scenario, Failure> {
    let bytes = scale.pick(1 << 30, 8 << 20);
    let sizes = [
        (FolioSize::Pages4K, "4 KiB"),
        (FolioSize::Pages2M, "2 MiB"),
        (FolioSize::Pages1G, "1 GiB"),
    ];
    let nr_sizes = if bytes < 1 << 30 { 2 } else { sizes.len() };
    let (mut kinds, mut notes) = kinds(nr_sizes as u64 * bytes)?;
    if bytes >= 1 << 30 {
        match Kind::huge("hugetlb 1G", PageSize::Huge1G, nr_sizes as u64 * bytes) {
            Ok(kind) => kinds.push(kind),
            Err(error) => notes.push(format!("no rows of pages of 1 GiB: {error}")),
        }
    }
    let mut rows = Vec::new();
    for kind in kinds.iter().filter(|kind| matches!(kind.place, Place::Anonymous(_))) {
        for (folio_size, folio) in sizes.into_iter().take(nr_sizes) {
            let row = random_reads(kind, folio_size, folio, bytes)?;
            rows.push(match rows.first() {
                Some(Row { name, .. }) => row.against(&name.clone()),
                None => row,
            });
        }
    }
    notes
        .push(format!("one file of {} MiB, any page of it; memory is faulted before", bytes >> 20));
    Ok(Scenario { title: "pinned reads".into(), notes, rows })
}

/// Whether a folder is on a disk.
pub fn is_on_disk(folder: &Folder) -> Result<bool, Failure> {
    let probe = MemoryFile::create_named(&folder.join("probe"), 4096)?;
    Ok(probe.kind() == MemoryKind::PageCache)
}
