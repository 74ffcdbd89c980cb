//! `pgmap ls`: the files of a pool.

use std::path::PathBuf;

use pgmap::{Client, FileInfo, Observer};
use serde::Serialize;

use crate::attach::{Place, attach_to_read};
use crate::failure::Failure;
use crate::names::Exact;
use crate::output::{Output, Show, Units};
use crate::table::{Side, Table};
use crate::verbs::condition::{Condition, State};

/// List the files
///
/// Sorted by name. FOLIOS counts those of 4 KiB, 2 MiB and 1 GiB. EVICT is the priority of files
/// that may be evicted to make room, the lowest first. STATE is live, poisoned (memory under it
/// failed; `pgmap stat NAME` says where) or raw (mapped, never pinned); for it each file is pinned
/// for a moment, as a reader would.
#[derive(Debug, clap::Args)]
pub struct Ls {
    /// List the pool whose data is PATH, a device or a file, without its server
    ///
    /// Names and sizes alone, for reading: the server may be on another machine that has the same
    /// memory.
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    from: Option<PathBuf>,
}

/// A file as tables and JSON show it.
#[derive(Debug, Serialize)]
pub struct FileRow {
    /// Its name.
    #[serde(flatten)]
    pub name: Exact,
    /// Its number, never given to another file.
    pub id: u64,
    /// Its length.
    pub len_bytes: u64,
    /// Bytes of the frames it takes.
    pub allocated_bytes: u64,
    /// Its extents.
    pub nr_extents: u64,
    /// Its folios of 4 KiB.
    pub nr_folios_4k: u64,
    /// Its folios of 2 MiB.
    pub nr_folios_2m: u64,
    /// Its folios of 1 GiB.
    pub nr_folios_1g: u64,
    /// The condition of its memory.
    pub state: State,
    /// What it carries beside its contents.
    #[serde(flatten)]
    pub metadata: Exact,
    /// The CRC-32C of its contents, if one was asked for.
    pub checksum: Option<u32>,
    /// In which order it is evicted when others need room, the lowest first; 0 for never.
    pub evict_priority: u8,
    /// The user whose client created it.
    pub uid: u32,
}

impl FileRow {
    /// Its priority as people read it.
    pub fn evictable(&self) -> String {
        match self.evict_priority {
            0 => "-".into(),
            priority => priority.to_string(),
        }
    }
}

impl FileRow {
    /// A row.
    pub fn new(info: FileInfo, state: State) -> Self {
        let [nr_folios_4k, nr_folios_2m, nr_folios_1g] = info.nr_folios;
        Self {
            name: Exact::name(Some(info.name.as_bytes())),
            id: info.id,
            len_bytes: info.len_bytes,
            allocated_bytes: info.allocated_bytes,
            nr_extents: info.nr_extents,
            nr_folios_4k,
            nr_folios_2m,
            nr_folios_1g,
            state,
            metadata: Exact::metadata(info.metadata.user.as_bytes()),
            checksum: info.metadata.checksum,
            evict_priority: info.evict_priority,
            uid: info.uid,
        }
    }
}

#[derive(Debug, Serialize)]
struct Listing {
    schema: &'static str,
    files: Vec<FileRow>,
    nr_files: u64,
    len_bytes: u64,
    allocated_bytes: u64,
    nr_folios_4k: u64,
    nr_folios_2m: u64,
    nr_folios_1g: u64,
    nr_poisoned: u64,
}

impl Show for Listing {
    fn table(&self, units: Units) -> Table {
        let mut table = Table::new(&[
            ("NAME", Side::Left),
            ("SIZE", Side::Right),
            ("ALLOCATED", Side::Right),
            ("EXTENTS", Side::Right),
            ("FOLIOS 4K/2M/1G", Side::Right),
            ("EVICT", Side::Right),
            ("STATE", Side::Left),
        ]);
        for file in &self.files {
            table.row(vec![
                file.name.shown().unwrap_or_default(),
                units.bytes(file.len_bytes),
                units.bytes(file.allocated_bytes),
                file.nr_extents.to_string(),
                format!("{}/{}/{}", file.nr_folios_4k, file.nr_folios_2m, file.nr_folios_1g),
                file.evictable(),
                file.state.name().into(),
            ]);
        }
        let unit = if units == Units::Bytes { " bytes" } else { "" };
        let files = if self.nr_files == 1 { "file" } else { "files" };
        table.closing(format!(
            "{} {files}, {}{unit} in {}{unit} of frames",
            self.nr_files,
            units.bytes(self.len_bytes),
            units.bytes(self.allocated_bytes)
        ));
        table
    }
}

/// A file as somebody sees it who does not ask the server.
#[derive(Debug, Serialize)]
struct ObservedRow {
    #[serde(flatten)]
    name: Exact,
    len_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Observed {
    schema: &'static str,
    files: Vec<ObservedRow>,
}

impl Show for Observed {
    fn table(&self, units: Units) -> Table {
        let mut table = Table::new(&[("NAME", Side::Left), ("SIZE", Side::Right)]);
        for file in &self.files {
            let name = file.name.shown().unwrap_or_default();
            table.row(vec![name, units.bytes(file.len_bytes)]);
        }
        table
    }
}

impl Ls {
    /// Lists them.
    ///
    /// # Errors
    /// When the owner cannot be reached.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        if let Some(from) = &self.from {
            let files = Observer::open(from)?.list()?.into_iter();
            let files = files.map(|(name, len_bytes)| ObservedRow {
                name: Exact::name(Some(name.as_bytes())),
                len_bytes,
            });
            return output.show(&Observed { schema: "pgmap.observed/1", files: files.collect() });
        }
        let client = attach_to_read(place)?;
        let row = |info: FileInfo| {
            let state = state(&client, &info);
            FileRow::new(info, state)
        };
        let files: Vec<FileRow> = client.list()?.into_iter().map(row).collect();
        let sum = |count: fn(&FileRow) -> u64| files.iter().map(count).sum();
        output.show(&Listing {
            schema: "pgmap.ls/1",
            nr_files: files.len() as u64,
            len_bytes: sum(|file| file.len_bytes),
            allocated_bytes: sum(|file| file.allocated_bytes),
            nr_folios_4k: sum(|file| file.nr_folios_4k),
            nr_folios_2m: sum(|file| file.nr_folios_2m),
            nr_folios_1g: sum(|file| file.nr_folios_1g),
            nr_poisoned: sum(|file| u64::from(file.state == State::Poisoned)),
            files,
        })
    }
}

fn state(client: &Client, info: &FileInfo) -> State {
    Condition::of(client, info.name.as_bytes(), 1).state
}
