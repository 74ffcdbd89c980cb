//! `pgmap debug split|merge`: other folios under the same bytes, for the curious.

use std::ffi::OsString;

use clap::Subcommand;
use pgmap::Shape;
use pgmap::mm::level::Level;
use serde::Serialize;

use crate::attach::{Place, attach, name_bytes};
use crate::failure::Failure;
use crate::names::Exact;
use crate::output::Output;
use crate::sizes;
use crate::verbs::folio_level::FolioLevel;

/// Split and merge folios, for the curious
///
/// Nothing needs this: what cuts files splits by itself. The bytes stay what they are, and pins
/// stand.
#[derive(Debug, clap::Args)]
pub struct Debug {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Split the folio around a byte until the one that has the byte is of that size
    Split(Target),
    /// Merge the folios around a byte into one of that size
    Merge(Target),
}

// No doc comment: clap would make it the help of both.
#[derive(Debug, clap::Args)]
struct Target {
    /// Name in the pool
    name: OsString,
    /// A byte of the folio
    #[arg(value_parser = sizes::parse)]
    offset: u64,
    /// Size of the folio afterwards
    level: FolioLevel,
}

#[derive(Debug, Serialize)]
struct Done {
    schema: &'static str,
    #[serde(flatten)]
    name: Exact,
    offset: u64,
    folio_bytes: u64,
    nr_folios_4k: u64,
    nr_folios_2m: u64,
    nr_folios_1g: u64,
}

impl Debug {
    /// Does it.
    ///
    /// # Errors
    /// When the folios there cannot take that shape; the message says why.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let (schema, target) = match &self.what {
            What::Split(target) => ("pgmap.debug.split/1", target),
            What::Merge(target) => ("pgmap.debug.merge/1", target),
        };
        let level = Level::from(target.level);
        let shape = match &self.what {
            What::Split(_) => Shape::Split { to: level.number() },
            What::Merge(_) => Shape::Merge { to: level.number() },
        };
        let client = attach(place)?;
        client.reshape(name_bytes(&target.name), target.offset, shape)?;
        let [nr_folios_4k, nr_folios_2m, nr_folios_1g] =
            client.stat(name_bytes(&target.name))?.nr_folios;
        output.show_done(&Done {
            schema,
            name: Exact::name(Some(name_bytes(&target.name))),
            offset: target.offset,
            folio_bytes: level.size_bytes(),
            nr_folios_4k,
            nr_folios_2m,
            nr_folios_1g,
        })
    }
}
