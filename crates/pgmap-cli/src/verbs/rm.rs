//! `pgmap rm NAME...`: takes names away.

use std::ffi::OsString;
use std::path::Path;

use pgmap::FileName;
use pgmap::wire::MAX_BATCH;
use serde::Serialize;

use crate::attach::{attach, name_bytes};
use crate::failure::{Exit, Failure};
use crate::output::Output;

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
    failed: Vec<NotRemoved>,
}

#[derive(Debug, Serialize)]
struct NotRemoved {
    name: String,
    error: String,
}

impl Rm {
    /// Takes them away.
    ///
    /// # Errors
    /// When one of them could not be.
    pub fn run(self, socket: &Path, output: &Output) -> Result<(), Failure> {
        let names = self.names.iter().map(|name| FileName::new(name_bytes(name)));
        let names: Vec<FileName> = names.collect::<Result<_, _>>()?;
        let client = attach(socket)?;
        let mut done = Done { schema: "pgmap.rm/1", removed: Vec::new(), failed: Vec::new() };
        let mut exit = None;
        for batch in names.chunks(MAX_BATCH) {
            for (name, result) in batch.iter().zip(client.unlink_batch(batch.to_vec())?) {
                let name = name.to_string();
                let Err(error) = result else {
                    done.removed.push(name);
                    continue;
                };
                let failure = Failure::from(error);
                eprintln!("pgmap: {failure}");
                exit = Some(worse(exit, failure.exit));
                done.failed.push(NotRemoved { name, error: failure.message });
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
