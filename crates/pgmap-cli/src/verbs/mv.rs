//! `pgmap mv OLD NEW`: gives a file another name.

use std::ffi::OsString;

use pgmap::Replace;
use serde::Serialize;

use crate::attach::{Place, attach, name_bytes};
use crate::failure::Failure;
use crate::names::Exact;
use crate::output::Output;

/// Give a file another name
///
/// Whoever has it open or pinned does not notice.
#[derive(Debug, clap::Args)]
pub struct Mv {
    /// The name it has
    old: OsString,
    /// The name it gets
    new: OsString,
    /// Take the place of a file that has that name, in one step
    #[arg(long = "replace")]
    is_replacing: bool,
}

#[derive(Debug, Serialize)]
struct Done {
    schema: &'static str,
    #[serde(flatten)]
    old: Exact,
    #[serde(flatten)]
    new: Exact,
}

impl Mv {
    /// Renames it.
    ///
    /// # Errors
    /// When there is no such file, or the new name is taken.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let replace = if self.is_replacing { Replace::Yes } else { Replace::No };
        attach(place)?.rename(name_bytes(&self.old), name_bytes(&self.new), replace)?;
        output.show_done(&Done {
            schema: "pgmap.mv/1",
            old: Exact::old(&self.old),
            new: Exact::new_name(&self.new),
        })
    }
}
