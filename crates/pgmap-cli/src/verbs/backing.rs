//! `pgmap backing ls | add PATH | rm NAME`: the memories that a pool lies in.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pgmap::report::BackingInfo;
use pgmap::{BackingOptions, Client, Error, Refusal};
use serde::Serialize;

use crate::attach::{Place, attach};
use crate::failure::{Exit, Failure};
use crate::output::{Output, Show, Units};
use crate::sizes;
use crate::table::{Side, Table};

/// List, add or take out the memories that a pool lies in
///
/// A pool lies in its data, and in further backings that are added while it is served: DRAM beside
/// a device, two devices, two nodes. Each is on record, and found again when the pool is served
/// next. `pgmap create --room` leaves room for them; `pgmap put --only NAME` and `--prefer NAME`
/// say on which of them a file is to lie.
#[derive(Debug, clap::Args)]
pub struct Backing {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Ls(Ls),
    Add(Add),
    Rm(Rm),
}

/// List the backings
///
/// In the order in which a file that may lie anywhere is put on them. One that is missing has its
/// files, and their contents are errors until it is added again.
#[derive(Debug, clap::Args)]
struct Ls {}

/// Add a backing, or take one back that was missing
///
/// PATH is a device-dax device, a file that does not exist, or a directory of hugetlbfs, as with
/// `pgmap create --on`. The server opens it. What is another pool's is refused by name. A device or
/// file that is a backing of this pool on record, and was missing, is taken back with its files,
/// wherever it is now.
#[derive(Debug, clap::Args)]
struct Add {
    /// Device, file that is to be made, or directory of huge pages
    #[arg(value_hint = clap::ValueHint::AnyPath)]
    path: PathBuf,
    /// Size of its frames [default: all of a device]
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse)]
    size: Option<u64>,
    /// How it is called: letters, digits and ._- [default: the last part of PATH]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Take its memory on this NUMA node, or on these in turn [default: where it is first written]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    node: Vec<u32>,
}

/// Take a backing out, waiting for whoever holds frames of it
///
/// No file may lie on it. Nothing new is put on it, and when the last holder has let go it is
/// nobody's: a file that was made for it is removed, a device can be used for something else. Ends
/// at the deadline at the latest: the message then names the holders, the exit code is 124 (3 with
/// --deadline 0, which does not wait), and the backing is as before.
#[derive(Debug, clap::Args)]
struct Rm {
    /// Its name
    name: String,
    /// How long to wait for holders, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    deadline: u64,
}

/// A backing as tables and JSON show it.
#[derive(Debug, Serialize)]
pub struct BackingRow {
    /// Its number; 0 is the pool's data.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: String,
    /// What it lies in; none if it is missing.
    pub kind: Option<String>,
    /// The NUMA node of a device.
    pub numa_node: Option<u32>,
    /// Bytes of its frames.
    pub size_bytes: u64,
    /// Bytes that nobody has.
    pub free_bytes: u64,
    /// The longest free run.
    pub longest_free_bytes: u64,
    /// Bytes that are out of use because they were drained.
    pub drained_bytes: u64,
    /// Memory behind it now.
    pub backed_bytes: u64,
    /// Its first frame.
    pub first_pfn: u64,
    /// Why it is missing, if it is.
    pub missing: Option<String>,
}

impl From<BackingInfo> for BackingRow {
    fn from(info: BackingInfo) -> Self {
        Self {
            id: info.id,
            name: info.name,
            path: info.path,
            kind: info.kind,
            numa_node: info.numa_node,
            size_bytes: info.size_bytes,
            free_bytes: info.free_bytes,
            longest_free_bytes: info.longest_free_bytes,
            drained_bytes: info.drained_bytes,
            backed_bytes: info.backed_bytes,
            first_pfn: info.first_pfn,
            missing: info.missing,
        }
    }
}

impl BackingRow {
    /// The backings of a pool.
    ///
    /// # Errors
    /// When the owner cannot be asked.
    pub fn of(client: &Client) -> Result<Vec<Self>, Failure> {
        Ok(client.backings()?.into_iter().map(Self::from).collect())
    }

    /// What it lies in.
    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("missing")
    }
}

#[derive(Debug, Serialize)]
struct Listing {
    schema: &'static str,
    backings: Vec<BackingRow>,
}

impl Show for Listing {
    fn table(&self, units: Units) -> Table {
        let mut table = Table::new(&[
            ("NAME", Side::Left),
            ("KIND", Side::Left),
            ("NODE", Side::Right),
            ("SIZE", Side::Right),
            ("FREE", Side::Right),
            ("PATH", Side::Left),
        ]);
        for backing in &self.backings {
            let node = backing.numa_node.map_or_else(|| "-".into(), |node| node.to_string());
            let drained = units.bytes(backing.drained_bytes);
            let why = match &backing.missing {
                Some(why) => format!(": {why}"),
                None if backing.drained_bytes > 0 => format!(": {drained} of it are drained"),
                None => String::new(),
            };
            table.row(vec![
                backing.name.clone(),
                backing.kind().into(),
                node,
                units.bytes(backing.size_bytes),
                units.bytes(backing.free_bytes),
                format!("{}{why}", backing.path),
            ]);
        }
        table
    }
}

#[derive(Debug, Serialize)]
struct Removed {
    schema: &'static str,
    name: String,
    waited_ms: u64,
}

impl Backing {
    /// Lists, adds or takes out.
    ///
    /// # Errors
    /// When the owner cannot be reached, or refuses.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let client = attach(place)?;
        match self.what {
            What::Ls(Ls {}) => {}
            What::Add(add) => {
                let mut options =
                    BackingOptions::on(add.path).size(add.size.unwrap_or(0)).nodes(add.node);
                if let Some(name) = add.name {
                    options = options.name(name);
                }
                client.add_backing(&options)?;
            }
            What::Rm(rm) => return rm.run(&client, output),
        }
        let backings = BackingRow::of(&client)?;
        output.show(&Listing { schema: "pgmap.backings/1", backings })
    }
}

impl Rm {
    fn run(self, client: &Client, output: &Output) -> Result<(), Failure> {
        let started = Instant::now();
        client.remove_backing(&self.name, Duration::from_millis(self.deadline)).map_err(
            |error| {
                let is_held = matches!(error, Error::Refused(Refusal::Held { .. }));
                match Failure::from(error) {
                    failure if is_held && self.deadline > 0 => {
                        Failure { exit: Exit::Deadline, ..failure }
                    }
                    failure => failure,
                }
            },
        )?;
        output.show_done(&Removed {
            schema: "pgmap.backing-rm/1",
            name: self.name,
            waited_ms: started.elapsed().as_millis() as u64,
        })
    }
}
