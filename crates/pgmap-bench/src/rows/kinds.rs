//! Putting and getting on each kind of memory that this machine has, beside a memcpy into and out
//! of the same memory. And pins of pages at random, where a pool lies in huge pages.

use std::fs::File as StdFile;
use std::hint::black_box;
use std::sync::{Arc, Mutex, PoisonError};

use pgmap::os::{MemoryFile, MemoryKind, PageSize};
use pgmap::{Client, FolioSize, Owner, Pool, PoolOptions};

use crate::children::Folder;
use crate::failure::Failure;
use crate::harness::{Done, Row, Scale, Scenario};
use crate::rivals::memcpy::Faulted;
use crate::rows::BLOCK_BYTES;

const SMALL_BYTES: u64 = 64 << 10;
/// Files that puts go round, and blocks that copies do.
const NR_FILES: u64 = 16;

/// A kind of memory that this machine has.
struct Kind {
    name: &'static str,
    place: Place,
}

enum Place {
    Anonymous(PageSize),
    /// A folder of a file system.
    In(Arc<Folder>),
}

impl Kind {
    fn options(&self, what: &str, bytes: u64) -> PoolOptions {
        match &self.place {
            Place::Anonymous(page) => PoolOptions::anonymous(bytes).huge_pages(*page),
            Place::In(folder) => PoolOptions::in_directory(folder.join(what), bytes),
        }
    }

    fn file(&self, what: &str, bytes: u64) -> Result<MemoryFile, Failure> {
        Ok(match &self.place {
            Place::Anonymous(page) => MemoryFile::anonymous("bench-kind", bytes, *page)?,
            Place::In(folder) => MemoryFile::create_named(&folder.join(what), bytes)?,
        })
    }
}

/// What there is, and a note for each kind that there is not.
fn kinds(page_bytes: u64) -> Result<(Vec<Kind>, Vec<String>), Failure> {
    let mut kinds = vec![
        Kind { name: "memfd", place: Place::Anonymous(PageSize::Base) },
        Kind { name: "tmpfs", place: Place::In(Arc::new(Folder::new("kinds")?)) },
    ];
    let mut notes = Vec::new();
    match MemoryFile::anonymous("bench-huge", page_bytes, PageSize::Huge2M) {
        Ok(_) => {
            kinds.push(Kind { name: "hugetlb 2M", place: Place::Anonymous(PageSize::Huge2M) });
        }
        Err(error) => notes.push(format!("no rows of huge pages: {error}")),
    }
    let disk = Arc::new(Folder::on_disk("kinds")?);
    if is_on_disk(&disk)? {
        kinds.push(Kind { name: "disk", place: Place::In(disk) });
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
    _owner: Owner,
}

impl Files {
    fn new(kind: &Kind, what: &str, len_bytes: u64) -> Result<Self, Failure> {
        let bytes = (NR_FILES + 1) * len_bytes.max(BLOCK_BYTES);
        let owner = Owner::start(Pool::create(&kind.options(what, bytes).max_files(1024))?)?;
        let client = owner.client()?;
        let source = vec![0x5a; len_bytes as usize];
        let mut files = Self { client, source, next: 0, _owner: owner };
        for _ in 0..3 * NR_FILES {
            files.put()?;
        }
        Ok(files)
    }

    fn put(&mut self) -> Result<(), Failure> {
        let len_bytes = self.source.len() as u64;
        let mut writer = self.client.create(name(self.next), len_bytes, FolioSize::BestFit)?;
        writer.write_all_at(0, &self.source)?;
        writer.commit()?;
        if let Some(oldest) = self.next.checked_sub(NR_FILES - 1) {
            self.client.unlink(name(oldest))?;
        }
        self.next += 1;
        Ok(())
    }

    fn get(&self, turn: u64, to: &mut [u8]) -> Result<(), Failure> {
        let number = self.next - 1 - turn % (NR_FILES - 1);
        self.client.get(name(number))?.read_at(0, to)?;
        Ok(())
    }
}

fn name(number: u64) -> String {
    format!("file-{number:035}")
}

fn copies(kind: &Kind, size: &str, len_bytes: u64) -> Result<[Row; 2], Failure> {
    let whole = (NR_FILES * len_bytes).next_multiple_of(BLOCK_BYTES);
    let file = kind.file(&format!("copy-{len_bytes}"), whole)?;
    let file = StdFile::from(file.try_clone_fd()?);
    let faulted = Arc::new(Faulted::over(file, NR_FILES, len_bytes)?);
    let source = vec![0x5a; len_bytes as usize];
    let into = Arc::clone(&faulted);
    let put = Row::new(format!("memcpy into {}, {size}", kind.name), move |mut worker| {
        let first = worker.random.below(NR_FILES);
        for turn in 0..worker.nr_ops {
            into.copy(first + turn, &source)?;
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
    Ok([put, get])
}

fn rows_of(kind: &Kind, size: &str, len_bytes: u64) -> Result<Vec<Row>, Failure> {
    let [into, out] = copies(kind, size, len_bytes)?;
    let files = Arc::new(Mutex::new(Files::new(kind, &format!("pool-{len_bytes}"), len_bytes)?));
    let putter = Arc::clone(&files);
    let put = Row::new(format!("pgmap: put on {}, {size}", kind.name), move |worker| {
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
    let (put, get) = (put.against(&into.name), get.against(&out.name));
    Ok(vec![into, put, out, get])
}

/// The scenario.
pub fn scenario(_: Scale) -> Result<Scenario, Failure> {
    let most_bytes = 2 * (2 * NR_FILES + 1) * (BLOCK_BYTES + SMALL_BYTES);
    let (kinds, mut notes) = kinds(most_bytes.next_multiple_of(BLOCK_BYTES))?;
    let mut rows = Vec::new();
    for kind in &kinds {
        rows.extend(rows_of(kind, "2 MiB", BLOCK_BYTES)?);
        rows.extend(rows_of(kind, "64 KiB", SMALL_BYTES)?);
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
    let owner = Owner::start(Pool::create(&kind.options("reads", bytes + BLOCK_BYTES))?)?;
    let client = owner.client()?;
    let mut writer = client.create("file", bytes, folio_size)?;
    let block = vec![0x5a; BLOCK_BYTES as usize];
    for at in (0..bytes).step_by(block.len()) {
        writer.write_all_at(at, &block)?;
    }
    writer.commit()?;
    let name = format!("pgmap: pinned read of 4 KiB, {folio} folios on {}", kind.name);
    Ok(Row::new(name, move |mut worker| {
        let _owner = &owner;
        let file = client.open("file")?;
        let mut page = [0; 4096];
        for _ in 0..worker.nr_ops {
            let at = worker.random.below(bytes / 4096) * 4096;
            file.pin(at, 4096)?.read_at(0, &mut page)?;
        }
        black_box(page);
        Ok(Done::ops(worker.nr_ops))
    }))
}

/// The scenario of reads at random.
pub fn reads_scenario(scale: Scale) -> Result<Scenario, Failure> {
    let bytes = scale.pick(1 << 30, 8 << 20);
    let (kinds, mut notes) = kinds(2 * (bytes + BLOCK_BYTES))?;
    let mut rows = Vec::new();
    for kind in kinds.iter().filter(|kind| matches!(kind.place, Place::Anonymous(_))) {
        for (folio_size, folio) in [(FolioSize::Pages4K, "4 KiB"), (FolioSize::Pages2M, "2 MiB")] {
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
