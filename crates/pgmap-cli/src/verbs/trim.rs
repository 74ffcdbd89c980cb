//! `pgmap trim`: memory behind free frames goes back to the system.

use serde::Serialize;

use crate::attach::{Place, attach};
use crate::failure::Failure;
use crate::output::{Output, Show, Units};
use crate::table::Table;

/// Give the memory behind free frames back to the system
///
/// The memory of removed files stays with the pool, so that new files need not ask for it again.
/// This gives it back and says how much that was. Files, and those who hold them, notice nothing;
/// the next file that is put takes memory from the system again.
#[derive(Debug, clap::Args)]
pub struct Trim {}

#[derive(Debug, Serialize)]
struct Done {
    schema: &'static str,
    freed_bytes: u64,
    /// Memory behind the pool's data afterwards.
    backed_bytes: u64,
    free_bytes: u64,
}

impl Show for Done {
    fn table(&self, units: Units) -> Table {
        let mut table = Table::facts();
        table.fact("given back", units.bytes(self.freed_bytes));
        table.fact("backed by memory", units.bytes(self.backed_bytes));
        table
    }
}

impl Trim {
    /// Gives it back.
    ///
    /// # Errors
    /// When the pool's memory cannot be given back, as on a device.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let client = attach(place)?;
        let freed_bytes = client.trim()?;
        let pool = client.pool_stat()?;
        output.show(&Done {
            schema: "pgmap.trim/1",
            freed_bytes,
            backed_bytes: pool.backed_bytes,
            free_bytes: pool.free_bytes,
        })
    }
}
