//! `pgmap truncate NAME SIZE`: shortens a file, or says who is in the way.

use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

use pgmap::{Error, OnDeadline, Refusal};
use serde::Serialize;

use crate::attach::{attach, name_bytes};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::sizes;
use crate::verbs::who::HolderRow;

/// Shorten a file, waiting for whoever holds what goes
///
/// Ends at the deadline at the latest. If somebody still holds folios that would go, the file stays
/// as it was, the message names process and range, and the exit code is 124 (3 with --deadline 0,
/// which does not wait). With --quarantine the file is shortened all the same: what is held leaves it
/// and is kept out of use until the last holder lets go, and the exit code is 4.
#[derive(Debug, clap::Args)]
pub struct Truncate {
    /// Name in the pool
    name: OsString,
    /// New length, at least 1 byte and at most the present one
    #[arg(value_parser = sizes::parse)]
    size: u64,
    /// How long to wait for holders, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    deadline: u64,
    /// At the deadline, shorten it and quarantine what is still held
    #[arg(long = "quarantine")]
    is_quarantining: bool,
}

#[derive(Debug, Serialize)]
struct Done {
    schema: &'static str,
    name: String,
    len_bytes: u64,
    waited_ms: u64,
}

impl Truncate {
    /// Shortens it.
    ///
    /// # Errors
    /// When somebody still holds what goes, or there is no such file.
    pub fn run(self, socket: &Path, output: &Output) -> Result<(), Failure> {
        let client = attach(socket)?;
        let started = Instant::now();
        let on_deadline =
            if self.is_quarantining { OnDeadline::Quarantine } else { OnDeadline::Fail };
        let holders = client
            .truncate_or(name_bytes(&self.name), self.size, self.deadline, on_deadline)
            .map_err(|error| self.failure(error))?;
        if let Some(first) = holders.first().map(HolderRow::from) {
            let name = self.name.to_string_lossy();
            let message = format!(
                "\"{name}\" is cut to {} bytes; what went is quarantined until let go by {first}",
                self.size
            );
            let holders = holders.iter().map(HolderRow::from).collect();
            return Err(Failure { exit: Exit::Quarantined, message, holders });
        }
        output.show_done(&Done {
            schema: "pgmap.truncate/1",
            name: self.name.to_string_lossy().into_owned(),
            len_bytes: self.size,
            waited_ms: started.elapsed().as_millis() as u64,
        })
    }

    fn failure(&self, error: Error) -> Failure {
        let is_held = matches!(error, Error::Refused(Refusal::Held { .. }));
        let failure = Failure::from(error);
        if is_held && self.deadline > 0 {
            return Failure { exit: Exit::Deadline, ..failure };
        }
        failure
    }
}
