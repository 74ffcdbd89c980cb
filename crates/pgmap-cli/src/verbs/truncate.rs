//! `pgmap truncate NAME SIZE`: shortens a file, or says who is in the way.

use std::ffi::OsString;
use std::time::Instant;

use serde::Serialize;

use crate::attach::{Place, attach, name_bytes};
use crate::failure::Failure;
use crate::names::{self, Exact};
use crate::output::Output;
use crate::sizes;
use crate::verbs::patience::{Patience, check_quarantine};

/// Shorten a file, waiting for whoever holds what goes
///
/// Ends at the deadline at the latest. If somebody still holds folios that would go, the file stays
/// as it was, the message names process and range, and the exit code is 124 (3 with --deadline 0,
/// which does not wait). With --quarantine the file is shortened all the same: what is held leaves
/// it and is kept out of use until the last holder lets go, and the exit code is 4.
#[derive(Debug, clap::Args)]
pub struct Truncate {
    /// Name in the pool
    name: OsString,
    /// New length, at most the present one
    #[arg(value_parser = sizes::parse)]
    size: u64,
    #[command(flatten)]
    patience: Patience,
}

#[derive(Debug, Serialize)]
struct Done {
    schema: &'static str,
    #[serde(flatten)]
    name: Exact,
    len_bytes: u64,
    waited_ms: u64,
}

impl Truncate {
    /// Shortens it.
    ///
    /// # Errors
    /// When somebody still holds what goes, or there is no such file.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let client = attach(place)?;
        let started = Instant::now();
        let (deadline, on_deadline) = (self.patience.deadline(), self.patience.on_deadline());
        let holders = client
            .truncate_or(name_bytes(&self.name), self.size, deadline, on_deadline)
            .map_err(|error| self.patience.failure(error))?;
        let name = names::shown(&self.name);
        check_quarantine(&format!("\"{name}\" is cut to {} bytes", self.size), &holders)?;
        output.show_done(&Done {
            schema: "pgmap.truncate/1",
            name: Exact::name(Some(name_bytes(&self.name))),
            len_bytes: self.size,
            waited_ms: started.elapsed().as_millis() as u64,
        })
    }
}
