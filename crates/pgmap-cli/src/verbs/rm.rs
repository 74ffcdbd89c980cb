//! `pgmap rm NAME...`: takes names away.

use std::ffi::OsString;

use pgmap::FileName;
use pgmap::wire::MAX_BATCH;
use serde::Serialize;

use crate::attach::{Place, attach, name_bytes};
use crate::failure::{Exit, Failure};
use crate::names::{self, Exact};
use crate::output::{Errno, Output};

/// Take names away; memory is free when its last holder lets go
///
/// Whoever has a file pinned goes on reading it. Names that are not there are reported, the others
/// go; with --json the one object is then a "pgmap.error/1" that says both.
#[derive(Debug, clap::Args)]
pub struct Rm {
    /// Names in the pool
    #[arg(required = true, value_name = "NAME")]
    names: Vec<OsString>,
    /// Leave alone what somebody holds
    #[arg(long = "unless-held")]
    is_unless_held: bool,
}

#[derive(Debug, Serialize)]
struct Done<'a> {
    schema: &'static str,
    #[serde(flatten)]
    names: &'a Names,
}

/// What became of each name.
#[derive(Debug, Default, Serialize)]
struct Names {
    removed: Vec<String>,
    /// The same names, byte for byte.
    removed_base64: Vec<String>,
    failed: Vec<NotRemoved>,
    /// The failure that the command ends with.
    #[serde(skip)]
    worst: Option<Failure>,
}

#[derive(Debug, Serialize)]
struct NotRemoved {
    #[serde(flatten)]
    name: Exact,
    kind: &'static str,
    errno: Option<Errno>,
    error: String,
}

impl Names {
    fn removed(&mut self, name: &[u8]) {
        self.removed.push(names::text_of(name));
        self.removed_base64.push(names::base64_of(name));
    }

    fn failed(&mut self, name: &[u8], failure: Failure) {
        let failure = failure.of_file(name);
        let (kind, errno) = (failure.kind, Errno::of(failure.errno));
        let (name, error) = (Exact::name(Some(name)), failure.message.clone());
        self.failed.push(NotRemoved { name, kind, errno, error });
        self.end_with(failure);
    }

    fn end_with(&mut self, failure: Failure) {
        eprintln!("pgmap: {failure}");
        // The first error; it outweighs a file that is only busy.
        let is_worse = |worst: &Failure| worst.exit != Exit::Error && failure.exit == Exit::Error;
        if self.worst.as_ref().is_none_or(is_worse) {
            self.worst = Some(failure);
        }
    }
}

impl Rm {
    /// Takes them away.
    ///
    /// # Errors
    /// When one of them could not be.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let client = attach(place)?;
        let mut done = Names::default();
        let mut names: Vec<FileName> = Vec::with_capacity(self.names.len());
        for name in self.names.iter().map(|name| name_bytes(name)) {
            match FileName::new(name) {
                Ok(name) => names.push(name),
                Err(refusal) => done.failed(name, refusal.into()),
            }
        }
        for batch in names.chunks(MAX_BATCH) {
            let batch_results = match self.is_unless_held {
                true => client.unlink_unless_held_batch(batch),
                false => client.unlink_batch(batch),
            };
            let results = match batch_results {
                Ok(results) => results,
                Err(error) => {
                    done.end_with(error.into());
                    break;
                }
            };
            for (name, result) in batch.iter().zip(results) {
                match result {
                    Ok(()) => done.removed(name.as_bytes()),
                    Err(error) => done.failed(name.as_bytes(), error.into()),
                }
            }
        }
        let Some(failure) = &done.worst else {
            return output.show_done(&Done { schema: "pgmap.rm/1", names: &done });
        };
        output.report_with(failure, &done);
        Err(Failure::silent(failure.exit))
    }
}
