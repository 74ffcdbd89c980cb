//! `pgmap set`: what an operator says of a pool that is served.

use pgmap::{Client, WaterMarks};
use serde::Serialize;

use crate::attach::{Place, attach};
use crate::failure::Failure;
use crate::output::{Output, Show, Units};
use crate::sizes;
use crate::table::Table;

/// Set how much room the server keeps free, or show it
///
/// With less free than the low mark the server evicts files that may be evicted, the least recently
/// used first and never one that somebody holds, a few at a time, until as much is free as the high
/// mark says. Then a put finds room without waiting for that. The marks are on record in the pool,
/// and hold when it is served again. Only root and the server's user may set them.
#[derive(Debug, clap::Args)]
pub struct Set {
    /// Below how many free bytes to evict; 0 with --evict-high 0 for never
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse, requires = "evict_high")]
    evict_low: Option<u64>,
    /// Up to how many free bytes
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse, requires = "evict_low")]
    evict_high: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Settings {
    schema: &'static str,
    evict_low_bytes: u64,
    evict_high_bytes: u64,
}

impl Show for Settings {
    fn table(&self, units: Units) -> Table {
        let mut table = Table::facts();
        table.fact("evict in advance below", units.bytes(self.evict_low_bytes));
        table.fact("evict in advance up to", units.bytes(self.evict_high_bytes));
        table
    }
}

impl Set {
    /// Sets what is named, and shows all.
    ///
    /// # Errors
    /// When the owner cannot be reached, or refuses.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let client = attach(place)?;
        if let (Some(low_bytes), Some(high_bytes)) = (self.evict_low, self.evict_high) {
            client.set_water_marks(WaterMarks { low_bytes, high_bytes })?;
        }
        output.show(&settings(&client)?)
    }
}

fn settings(client: &Client) -> Result<Settings, Failure> {
    let WaterMarks { low_bytes, high_bytes } = client.water_marks()?;
    Ok(Settings {
        schema: "pgmap.settings/1",
        evict_low_bytes: low_bytes,
        evict_high_bytes: high_bytes,
    })
}
