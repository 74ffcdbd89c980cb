//! `pgmap quarantine ls|release`: dead clients whose devices may still write.

use std::time::Duration;

use clap::Subcommand;
use pgmap::report::DeadClient;
use serde::Serialize;

use crate::attach::{Place, attach};
use crate::failure::Failure;
use crate::output::{Output, Show, Units};
use crate::table::{Side, Table};

/// Show dead clients whose devices may still write, and give up waiting for one
///
/// A client that dies while a device transfers leaves frames that the device may still write to.
/// They stay with their file. Before others get them the pool takes other memory for them; where
/// that cannot be, as on a device-dax device, they are kept out of use: in quarantine. If the
/// client promised that its transfers end with a ring of pgmap-uring, or with another holder of the
/// lock of its ledger, their end is seen; else you have to say it.
#[derive(Debug, clap::Args)]
pub struct Quarantine {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the clients, and how much is kept for each
    ///
    /// ORPHANED is what its devices may still write to, wherever that is; QUARANTINED is what of it
    /// is kept out of use. TRANSFERS is open when a ring of the client is known to be open, and
    /// unknown when nobody can tell.
    Ls,
    /// Say that no device of a client can write any more; its frames go to others
    ///
    /// Be sure of it: stop the device, or look with `pgmap who DEVICE` that no process has the
    /// memory registered. A transfer that is under way after all writes into somebody else's data.
    Release {
        /// Numbers of clients, as `ls` shows them
        #[arg(required_unless_present = "is_all", conflicts_with = "is_all")]
        clients: Vec<u64>,
        /// All that `ls` shows
        #[arg(long = "all")]
        is_all: bool,
    },
}

#[derive(Debug, Serialize)]
struct Rows {
    schema: &'static str,
    clients: Vec<DeadClient>,
}

impl Show for Rows {
    fn table(&self, units: Units) -> Table {
        let mut table = Table::new(&[
            ("CLIENT", Side::Right),
            ("PID", Side::Right),
            ("COMMAND", Side::Left),
            ("ORPHANED", Side::Right),
            ("QUARANTINED", Side::Right),
            ("DEAD FOR", Side::Right),
            ("TRANSFERS", Side::Left),
        ]);
        for row in &self.clients {
            let seconds = |ms| format!("{:.1?}", Duration::from_millis(ms));
            table.row(vec![
                row.client.to_string(),
                row.pid.to_string(),
                row.command.clone(),
                units.bytes(row.orphaned_bytes),
                units.bytes(row.quarantined_bytes),
                row.dead_for_ms.map_or_else(|| "-".into(), seconds),
                if row.is_transferring { "open" } else { "unknown" }.into(),
            ]);
        }
        table
    }
}

#[derive(Debug, Serialize)]
struct Released {
    schema: &'static str,
    clients: Vec<u64>,
}

impl Quarantine {
    /// Does it.
    ///
    /// # Errors
    /// When a client is not in the list, or a ring of it is known to be open.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let client = attach(place)?;
        let Action::Release { clients, is_all } = self.action else {
            let clients = client.quarantine()?;
            return output.show(&Rows { schema: "pgmap.quarantine/1", clients });
        };
        let clients = if is_all {
            client.quarantine()?.into_iter().map(|dead| dead.client).collect()
        } else {
            clients
        };
        for &dead in &clients {
            client.release_quarantine(dead)?;
            output.note(&format!("released what was kept for client {dead}"));
        }
        output.show_done(&Released { schema: "pgmap.quarantine.release/1", clients })
    }
}
