//! Create, commit and unlink without bytes: what the owner and its socket cost.

use std::sync::{Mutex, PoisonError};

use pgmap::os::Connection;

use crate::children::{Other, Role};
use crate::failure::Failure;
use crate::harness::{Done, Row, Scale, Scenario};
use crate::rows::put::{Putter, Timed};

const BASE: &str = "bare SEQPACKET round trip of 64 bytes";
const MESSAGE_BYTES: usize = 64;
const BATCH: u64 = 64;
const KEEP: u64 = 16;

fn round_trip_row() -> Result<Row, Failure> {
    let other = Other::start(&Role::Echo, "echo")?;
    let connection = Mutex::new((Connection::connect(&other.socket())?, other));
    Ok(Row::new(BASE, move |worker| {
        let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [7; MESSAGE_BYTES];
        let mut answered = 0;
        for _ in 0..worker.nr_ops {
            connection.0.send(&buffer, &[])?;
            answered += u64::from(connection.0.recv(&mut buffer)?.len == MESSAGE_BYTES);
        }
        Ok(Done::ops(answered))
    }))
}

/// The scenario.
pub fn scenario(scale: Scale) -> Result<Scenario, Failure> {
    let batch = scale.pick(BATCH, 4);
    let rows = vec![
        round_trip_row()?,
        Putter::remote("churn-1", KEEP, 1, false)?
            .row("pgmap: create + commit + unlink, one file", Timed::Churn),
        Putter::remote("churn-64", batch, batch, false)?
            .row("pgmap: create + commit + unlink, of 64 files, per file", Timed::Churn),
        Putter::embedded(KEEP, 1)?
            .row("pgmap: create + commit + unlink, owner in the process", Timed::Churn),
        Putter::remote("churn-dir-1", KEEP, 1, true)?
            .row("pgmap: the same, one file, pool in a directory", Timed::Churn),
        Putter::remote("churn-dir-64", batch, batch, true)?
            .row("pgmap: the same, of 64 files, per file, in a directory", Timed::Churn),
    ];
    let notes = vec![
        "files of 2 MiB, no byte written; singly three calls per file, in batches three per 64"
            .into(),
        "the directory is in /dev/shm and its pool has a catalog; other owners have none".into(),
    ];
    let rows = rows.into_iter().map(|row| row.against(BASE)).collect();
    Ok(Scenario { title: "churn".into(), notes, rows })
}
