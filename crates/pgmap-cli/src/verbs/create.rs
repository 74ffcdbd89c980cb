//! `pgmap create`: makes a pool and leaves it.

use serde::Serialize;

use crate::failure::Failure;
use crate::names::Exact;
use crate::output::{Output, Show, Units};
use crate::sizes;
use crate::table::Table;
use crate::verbs::pool::{Existing, PoolArguments};

/// Make a pool, for `serve` to open
///
/// An existing pool is left as it is, and an error. `serve` makes a pool by itself where there is
/// none; this is for those who want to know that it can be made before anybody serves it.
#[derive(Debug, clap::Args)]
pub struct Create {
    #[command(flatten)]
    pool: PoolArguments,
}

#[derive(Debug, Serialize)]
struct Created {
    schema: &'static str,
    #[serde(flatten)]
    pool: Exact,
    size_bytes: u64,
    max_files: u64,
}

impl Show for Created {
    fn table(&self, _: Units) -> Table {
        let mut table = Table::facts();
        let (size, place) = (sizes::human(self.size_bytes), self.pool.shown().unwrap_or_default());
        table.row(vec![format!("made the pool in {place} ({size}, {} files)", self.max_files)]);
        table
    }
}

impl Create {
    /// Makes the pool.
    ///
    /// # Errors
    /// As [`PoolArguments::open`].
    pub fn run(self, output: &Output) -> Result<(), Failure> {
        let pool = self.pool.open(Existing::Refuse)?;
        if pool.directory().is_none() {
            let why = "a pool of anonymous huge pages ends with its server; use serve --huge";
            return Err(Failure::new("bad_pool", libc::EINVAL, why));
        }
        let created = Created {
            schema: "pgmap.create/1",
            pool: Exact::pool(pool.directory()),
            size_bytes: pool.size_bytes(),
            max_files: pool.max_files(),
        };
        output.show(&created)
    }
}
