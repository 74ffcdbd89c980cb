//! `pgmap grow`: more memory for a pool, or room for more.

use std::path::PathBuf;

use serde::Serialize;

use crate::attach::{Place, attach};
use crate::failure::Failure;
use crate::output::{Output, Show, Units};
use crate::sizes;
use crate::table::Table;
use crate::verbs::pool::PoolArguments;

/// Give a pool more memory while it is served, or room for more while it is not
///
/// With --by the server takes more memory of the kind that the pool lies in: a file beside the
/// pool's data, which goes where the pool goes. Files are put there from now on; nobody has to stop
/// or attach again. It is a backing: `pgmap backing ls` shows it, `pgmap backing rm` gives it back.
/// A file lies in one backing. A device has what it has: add another (`pgmap backing add`).
///
/// That takes room for addresses, which a pool is made with (`pgmap create --room`). With --room a
/// pool that nobody serves is given room: it costs no memory before it is used.
#[derive(Debug, clap::Args)]
pub struct Grow {
    /// How much more memory
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse, required_unless_present = "room")]
    by: Option<u64>,
    /// Room for further backings in all
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse, conflicts_with = "by")]
    room: Option<u64>,
    /// Directory of the pool that is given room [default: as `serve`]
    #[arg(long, value_name = "DIR", requires = "room", value_hint = clap::ValueHint::DirPath)]
    pool: Option<PathBuf>,
    /// File that is the pool which is given room
    #[arg(long, value_name = "PATH", requires = "room", value_hint = clap::ValueHint::AnyPath)]
    on: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Grown {
    schema: &'static str,
    size_bytes: u64,
    free_bytes: u64,
}

impl Show for Grown {
    fn table(&self, units: Units) -> Table {
        let mut table = Table::facts();
        table.fact("size", units.bytes(self.size_bytes));
        table.fact("free", units.bytes(self.free_bytes));
        table
    }
}

#[derive(Debug, Serialize)]
struct Room {
    schema: &'static str,
    room_bytes: u64,
}

impl Show for Room {
    fn table(&self, units: Units) -> Table {
        let mut table = Table::facts();
        table.fact("room", units.bytes(self.room_bytes));
        table
    }
}

impl Grow {
    /// Grows it.
    ///
    /// # Errors
    /// When there is no room or no memory, or the pool is served and must not be, or the other way
    /// round.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        if let Some(room_bytes) = self.room {
            PoolArguments::open_existing(self.pool, self.on)?.give_room(room_bytes)?;
            return output.show(&Room { schema: "pgmap.room/1", room_bytes });
        }
        let client = attach(place)?;
        client.grow(self.by.unwrap_or(0))?;
        let pool = client.pool_stat()?;
        let (size_bytes, free_bytes) = (pool.size_bytes, pool.free_bytes);
        output.show(&Grown { schema: "pgmap.grow/1", size_bytes, free_bytes })
    }
}
