//! `pgmap stat [NAME]`: the figures of a file or of the pool.

use std::ffi::OsString;

use pgmap::PoolInfo;
use serde::Serialize;

use super::backing::BackingRow;
use super::ls::FileRow;
use crate::attach::{Place, attach_to_read, name_bytes};
use crate::failure::Failure;
use crate::output::{Output, Show, Units};
use crate::table::Table;
use crate::verbs::condition::{Condition, MAX_FAILED, is_longterm_free};

/// Describe a file, or the pool
///
/// Of the pool, frames are free, live (of files), reserved (being written), draining (removed and
/// still held), quarantined (kept out of use) or poisoned (their memory failed); orphaned ones (a
/// dead process's device may still write to them) are among any of these. Folios are those of its
/// files. Of a file, its folios by size, the state of its memory, and the pages that failed; for
/// those two it is pinned for a moment.
#[derive(Debug, clap::Args)]
pub struct Stat {
    /// Name in the pool; the pool itself when absent
    name: Option<OsString>,
}

#[derive(Debug, Serialize)]
struct FileStat {
    schema: &'static str,
    #[serde(flatten)]
    file: FileRow,
    /// Where its failed pages start.
    poisoned_offsets: Vec<u64>,
    /// Whether it may be pinned long-term without asking.
    is_longterm_free: Option<bool>,
}

impl Show for FileStat {
    fn table(&self, units: Units) -> Table {
        let file = &self.file;
        let mut table = Table::facts();
        table.fact("name", file.name.shown().unwrap_or_default());
        table.fact("id", file.id);
        table.fact("size", units.bytes(file.len_bytes));
        table.fact("allocated", units.bytes(file.allocated_bytes));
        table.fact("extents", file.nr_extents);
        table.fact("folios of 4 KiB", file.nr_folios_4k);
        table.fact("folios of 2 MiB", file.nr_folios_2m);
        table.fact("folios of 1 GiB", file.nr_folios_1g);
        table.fact("evictable", file.evictable());
        table.fact("uid", file.uid);
        table.fact("state", file.state.name());
        if let Some(metadata) = file.metadata.shown() {
            table.fact("metadata", metadata);
        }
        if let Some(checksum) = file.checksum {
            table.fact("CRC-32C", format!("{checksum:#010x}"));
        }
        for offset in &self.poisoned_offsets {
            table.fact("failed page at", offset);
        }
        let longterm = match self.is_longterm_free {
            Some(true) => "allowed",
            Some(false) => "if the owner consents",
            None => "-",
        };
        table.fact("long-term pins", longterm);
        table
    }
}

#[derive(Debug, Serialize)]
struct PoolStat {
    schema: &'static str,
    #[serde(flatten)]
    pool: PoolInfo,
    /// Folios of committed files.
    nr_folios_4k: u64,
    nr_folios_2m: u64,
    nr_folios_1g: u64,
    /// The memories that it lies in.
    backings: Vec<BackingRow>,
}

impl Show for PoolStat {
    fn table(&self, units: Units) -> Table {
        let pool = &self.pool;
        let mut table = Table::facts();
        for (what, bytes) in [
            ("size", pool.size_bytes),
            ("free", pool.free_bytes),
            ("longest free run", pool.longest_free_bytes),
            ("live", pool.live_bytes),
            ("reserved", pool.reserved_bytes),
            ("handed out ahead", pool.spare_bytes),
            ("draining", pool.draining_bytes),
            ("quarantined", pool.quarantined_bytes),
            ("poisoned", pool.poisoned_bytes),
            ("drained", pool.drained_bytes),
            ("orphaned", pool.orphaned_bytes),
            ("evictable", pool.evictable_bytes),
            ("evicted so far", pool.evicted_bytes),
            ("backed by memory", pool.backed_bytes),
            ("metadata", pool.metadata_bytes),
        ] {
            table.fact(what, units.bytes(bytes));
        }
        table.fact("files", pool.nr_files);
        table.fact("files evicted so far", pool.nr_evicted);
        table.fact("folios of 4 KiB", self.nr_folios_4k);
        table.fact("folios of 2 MiB", self.nr_folios_2m);
        table.fact("folios of 1 GiB", self.nr_folios_1g);
        table.fact("clients", pool.nr_clients);
        if pool.nr_read_only_clients > 0 {
            table.fact("clients that attached read-only", pool.nr_read_only_clients);
        }
        if pool.evict_low_bytes > 0 {
            table.fact("evict in advance below", units.bytes(pool.evict_low_bytes));
            table.fact("evict in advance up to", units.bytes(pool.evict_high_bytes));
        }
        for backing in self.backings.iter().filter(|_| self.backings.len() > 1) {
            let node = backing.numa_node.map(|node| format!(", node {node}")).unwrap_or_default();
            let (size, free) = (units.bytes(backing.size_bytes), units.bytes(backing.free_bytes));
            let what = format!("{}, {size}, {free} free{node}", backing.kind());
            table.fact(&format!("backing {}", backing.name), what);
        }
        table
    }
}

impl Stat {
    /// Describes it.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let client = attach_to_read(place)?;
        match &self.name {
            Some(name) => {
                let name = name_bytes(name);
                let info = client.stat(name)?;
                let condition = Condition::of(&client, name, MAX_FAILED);
                output.show(&FileStat {
                    schema: "pgmap.stat/1",
                    file: FileRow::new(info, condition.state),
                    poisoned_offsets: condition.failed,
                    is_longterm_free: is_longterm_free(&client, name),
                })
            }
            None => {
                let pool = client.pool_stat()?;
                let files = client.list()?;
                let of_level = |level: usize| files.iter().map(|file| file.nr_folios[level]).sum();
                output.show(&PoolStat {
                    schema: "pgmap.pool/1",
                    pool,
                    nr_folios_4k: of_level(0),
                    nr_folios_2m: of_level(1),
                    nr_folios_1g: of_level(2),
                    backings: BackingRow::of(&client)?,
                })
            }
        }
    }
}
