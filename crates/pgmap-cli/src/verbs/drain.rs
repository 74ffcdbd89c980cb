//! `pgmap drain`: a pool is left by everybody before its memory goes.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use pgmap::Error;
use pgmap::os::poll::wait_for;
use pgmap::os::{Connection, Interest};
use serde::Serialize;

use crate::attach::{Place, attach};
use crate::durations;
use crate::failure::{Exit, Failure};
use crate::output::Output;

/// How long the owner's process may take to end.
const OWNER_END: Duration = Duration::from_secs(2);

/// Have everybody let go of the pool, and end its owner: before a device is unplugged
///
/// Nobody new gets in: pins, new files and changes are refused from now on. Whoever holds any of
/// the pool is asked to let go, and waited for. When nobody holds anything the owner ends, and
/// owner and clients give up what they have mapped and open of a device, clients within 200 ms.
/// Then `daxctl disable-device`, `cxl disable-region` or an unbind pulls memory from under nobody.
///
/// Files stay: `pgmap serve` finds them when the memory is back. Files that were being written and
/// are not committed are given up.
///
/// At the deadline the pool is open as before; the message names who still holds what, and the exit
/// code is 124 (3 with --deadline 0, which does not wait).
#[derive(Debug, clap::Args)]
pub struct Drain {
    /// How long to wait for holders: 30s, 500ms, 2m; a bare number is milliseconds
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = durations::parse)]
    deadline: Duration,
}

#[derive(Debug, Serialize)]
struct Done {
    schema: &'static str,
    waited_ms: u64,
}

impl Drain {
    /// Drains it.
    ///
    /// # Errors
    /// When somebody holds some of the pool at the deadline, or a device of a dead client may still
    /// be writing.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let client = attach(place)?;
        let owner = Connection::connect(&place.socket).ok().and_then(|owner| owner.peer().ok());
        let started = Instant::now();
        client.close_pool(self.deadline).map_err(|error| self.failure(error, started))?;
        if let Some(owner) = owner.and_then(|owner| owner.pidfd) {
            // Whoever serves the pool next, or unplugs the device, finds nobody. An owner that is a
            // part of a larger program does not end.
            let _ended = wait_for([(owner.as_fd(), Interest::Read)], OWNER_END);
        }
        let waited_ms = started.elapsed().as_millis() as u64;
        output.note("nobody holds any of the pool, and its owner ends");
        output.show_done(&Done { schema: "pgmap.drain/1", waited_ms })
    }

    /// Past the deadline when it waited; busy when it was not to wait, or somebody drains already.
    fn failure(&self, error: Error, started: Instant) -> Failure {
        // The owner's clock counts whole milliseconds; who drains already is known at once.
        let is_late = !self.deadline.is_zero() && started.elapsed() >= self.deadline / 2;
        let failure = Failure::from(error);
        match failure.errno {
            libc::EBUSY if is_late => Failure { exit: Exit::Deadline, ..failure },
            libc::EBUSY => Failure { exit: Exit::Busy, ..failure },
            _ => failure,
        }
    }
}
