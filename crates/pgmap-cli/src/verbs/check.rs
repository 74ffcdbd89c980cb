//! `pgmap check`: what is wrong with a pool that nobody owns, and what can be done about it.

use std::path::PathBuf;

use pgmap::check::{CheckOptions, CheckReport};
use pgmap::os::places;
use serde::Serialize;

use crate::failure::Failure;
use crate::output::{Output, Show, Units};
use crate::progress::Progress;
use crate::table::Table;

/// Check a pool that no server owns
///
/// Looks at the catalog, that the data is the catalog's, and that each frame is in one file.
/// Nothing is changed without --repair. Exits with 1 if something is wrong and was not repaired;
/// the error's kind is `damaged`. With --data, bytes that changed and can be read are found in
/// files that were put with --checksum.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// The pool's directory, or the device or file that its data lies on [default: the default
    /// pool]
    #[arg(value_name = "POOL", value_hint = clap::ValueHint::AnyPath)]
    pool: Option<PathBuf>,
    /// Read every byte of every file too
    #[arg(long = "data")]
    reads_data: bool,
    /// Repair what can be: a damaged header, files that no pool can have, pages that cannot be read
    ///
    /// A header is written again from its copy; files whose frames are not theirs are removed;
    /// pages that cannot be read are taken out of use; bytes behind a file's end are zeroed. What
    /// was done is said line by line.
    #[arg(long = "repair")]
    repairs: bool,
}

#[derive(Debug, Serialize)]
struct Checked {
    schema: &'static str,
    pool: String,
    is_sound: bool,
    nr_files: u64,
    read_bytes: u64,
    nr_unsynced: u64,
    findings: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    what: String,
    why: String,
    repair: Option<String>,
}

impl Show for Checked {
    fn table(&self, units: Units) -> Table {
        let mut table = Table::facts();
        for row in &self.findings {
            let repair = row.repair.as_deref().unwrap_or("not repaired");
            table.row(vec![format!("{}: {}; {repair}", row.what, row.why)]);
        }
        let read = match self.read_bytes {
            0 => String::new(),
            bytes => format!(", {} read", units.bytes(bytes)),
        };
        let unsynced = match self.nr_unsynced {
            0 => String::new(),
            number => format!(", {number} of them not synced before the machine restarted"),
        };
        let verdict = match (self.findings.len(), self.is_sound) {
            (0, _) => "nothing wrong".to_owned(),
            (number, true) => format!("{number} faults, all repaired"),
            (number, false) => format!("{number} faults"),
        };
        table.row(vec![format!(
            "{}: {} files{unsynced}{read}: {verdict}",
            self.pool, self.nr_files
        )]);
        table
    }
}

impl Check {
    /// Checks the pool.
    ///
    /// # Errors
    /// When there is none, when it has an owner, and with kind `damaged` when something is wrong.
    pub fn run(self, output: &Output) -> Result<(), Failure> {
        let place = self.pool.unwrap_or_else(places::default_pool_dir);
        let options = CheckOptions { reads_data: self.reads_data, repairs: self.repairs };
        let mut bar: Option<(Progress, u64)> = None;
        let mut progress = |read: u64, total: u64| {
            let what = || Progress::start(output, "reading".into(), total);
            let (bar, shown) = bar.get_or_insert_with(|| (what(), 0));
            bar.advance(read - *shown);
            *shown = read;
        };
        let report = pgmap::check::check(&place, options, &mut progress)?;
        let (is_sound, nr_findings) = (report.is_sound(), report.findings.len());
        output.show(&checked(place.display().to_string(), report))?;
        if is_sound {
            return Ok(());
        }
        let why = format!(
            "the pool {} has {nr_findings} faults; --repair does what can be done",
            place.display()
        );
        Err(Failure::new("damaged", libc::EIO, why))
    }
}

fn checked(pool: String, report: CheckReport) -> Checked {
    let is_sound = report.is_sound();
    let rows = report.findings.into_iter().map(|finding| Row {
        what: finding.what,
        why: finding.why,
        repair: finding.repair,
    });
    Checked {
        schema: "pgmap.check/1",
        pool,
        is_sound,
        nr_files: report.nr_files,
        read_bytes: report.read_bytes,
        nr_unsynced: report.nr_unsynced,
        findings: rows.collect(),
    }
}
