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
/// Whoever has a file pinned goes on reading it. Names that are not there are told, the others go.
#[derive(Debug, clap::Args)]
pub struct Rm {
    /// Names in the pool
    #[arg(required = true, value_name = "NAME")]
    names: Vec<OsString>,
}

#[derive(Debug, Serialize)]
struct Done {
    schema: &'static str,
    removed: Vec<String>,
    /// The same names, byte for byte.
    removed_base64: Vec<String>,
    failed: Vec<NotRemoved>,
}

#[derive(Debug, Serialize)]
struct NotRemoved {
    #[serde(flatten)]
    name: Exact,
    kind: &'static str,
    errno: Option<Errno>,
    error: String,
}

impl Done {
    fn removed(&mut self, name: &[u8]) {
        self.removed.push(names::text_of(name));
        self.removed_base64.push(names::base64_of(name));
    }

    fn failed(&mut self, name: &[u8], failure: Failure) {
        eprintln!("pgmap: {failure}");
        let (kind, errno) = (failure.kind, Errno::of(failure.errno));
        let name = Exact::name(Some(name));
        self.failed.push(NotRemoved { name, kind, errno, error: failure.message });
    }
}

impl Rm {
    /// Takes them away.
    ///
    /// # Errors
    /// When one of them could not be.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let client = attach(place)?;
        let mut done = Done {
            schema: "pgmap.rm/1",
            removed: Vec::new(),
            removed_base64: Vec::new(),
            failed: Vec::new(),
        };
        let mut exit = None;
        let mut names: Vec<FileName> = Vec::with_capacity(self.names.len());
        for name in self.names.iter().map(|name| name_bytes(name)) {
            match FileName::new(name) {
                Ok(name) => names.push(name),
                Err(refusal) => {
                    exit = Some(Exit::Error);
                    done.failed(name, refusal.into());
                }
            }
        }
        for batch in names.chunks(MAX_BATCH) {
            for (name, result) in batch.iter().zip(client.unlink_batch(batch.to_vec())?) {
                let Err(error) = result else {
                    done.removed(name.as_bytes());
                    continue;
                };
                let failure = Failure::from(error);
                exit = Some(worse(exit, failure.exit));
                done.failed(name.as_bytes(), failure);
            }
        }
        output.show_done(&done)?;
        match exit {
            None => Ok(()),
            Some(exit) => Err(Failure::silent(exit)),
        }
    }
}

/// An error outweighs a file that is only busy.
fn worse(so_far: Option<Exit>, next: Exit) -> Exit {
    match so_far {
        Some(Exit::Error) => Exit::Error,
        _ => next,
    }
}
