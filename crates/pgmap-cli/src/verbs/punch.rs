//! `pgmap punch NAME OFFSET LEN`: takes pages out of the middle of a file.

use std::ffi::OsString;
use std::time::Instant;

use serde::Serialize;

use crate::attach::{Place, attach, name_bytes};
use crate::failure::Failure;
use crate::names::{self, Exact};
use crate::output::Output;
use crate::sizes;
use crate::verbs::patience::{Patience, check_quarantine};

/// Take pages out of a file; they read as zero, and their memory is free
///
/// The file keeps its length. A folio of which only a part goes is split, so that who holds other
/// pages is never in the way. Deadline, quarantine and exit codes are those of truncate.
#[derive(Debug, clap::Args)]
pub struct Punch {
    /// Name in the pool
    name: OsString,
    /// First byte, a multiple of 4096
    #[arg(value_parser = sizes::parse)]
    offset: u64,
    /// Bytes: a multiple of 4096, or up to the file's end
    #[arg(value_parser = sizes::parse)]
    len: u64,
    #[command(flatten)]
    patience: Patience,
}

#[derive(Debug, Serialize)]
struct Done {
    schema: &'static str,
    #[serde(flatten)]
    name: Exact,
    offset: u64,
    len_bytes: u64,
    waited_ms: u64,
}

impl Punch {
    /// Takes them out.
    ///
    /// # Errors
    /// When somebody still holds them, they lie outside the file, or there is no such file.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let client = attach(place)?;
        let started = Instant::now();
        let end = self.offset.saturating_add(self.len);
        let (deadline, on_deadline) = (self.patience.deadline(), self.patience.on_deadline());
        let holders = client
            .punch_or(name_bytes(&self.name), self.offset..end, deadline, on_deadline)
            .map_err(|error| self.patience.failure(error))?;
        let name = names::shown(&self.name);
        check_quarantine(&format!("\"{name}\" has a hole at {}..{end}", self.offset), &holders)?;
        output.show_done(&Done {
            schema: "pgmap.punch/1",
            name: Exact::name(Some(name_bytes(&self.name))),
            offset: self.offset,
            len_bytes: self.len,
            waited_ms: started.elapsed().as_millis() as u64,
        })
    }
}
