//! `pgmap drain`: a pool, or a part of it, is left by everybody before its memory goes.

use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use pgmap::os::poll::wait_for;
use pgmap::os::{Connection, Interest};
use pgmap::{Client, Error};
use serde::Serialize;

use crate::attach::{Place, attach};
use crate::durations;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::sizes;

/// How long the owner's process may take to end.
const OWNER_END: Duration = Duration::from_secs(2);

/// Have everybody let go of a pool, or of a part of it: before its memory is unplugged
///
/// Nobody new gets in: pins, new files and changes are refused from now on. Whoever holds any of
/// it is asked to let go, and waited for. Then `daxctl disable-device`, `cxl disable-region` or an
/// unbind pulls memory from under nobody. Files stay.
///
/// Without PART that is the whole pool. When nobody holds anything the owner ends, and owner and
/// clients give up what they have mapped and open of a device, clients within 200 ms. `pgmap
/// serve` finds the files when the memory is back. Files that were being written and are not
/// committed are given up.
///
/// PART is a backing by its name (see `pgmap backing ls`), or a range of its bytes:
/// `far`, `far:1G..3G`, `data:2G..`. The rest of the pool is served all the time. A backing as a
/// whole is given up; `pgmap backing add` has its files again, and so has a device that was away
/// and is bound again. A range of bytes, in whole pages of the memory around it, and what is
/// named of the pool's own data, stays out of use until `--undo`, or until the owner ends; files
/// of which some lies there cannot be read until then.
///
/// At the deadline everything is open as before; the message names who still holds what, and the
/// exit code is 124 (3 with --deadline 0, which does not wait).
#[derive(Debug, clap::Args)]
pub struct Drain {
    /// A backing, or bytes of one: NAME, NAME:START..END, NAME:START.. [default: the whole pool]
    #[arg(value_name = "PART", value_parser = parse_part)]
    part: Option<Part>,
    /// How long to wait for holders: 30s, 500ms, 2m; a bare number is milliseconds
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = durations::parse)]
    deadline: Duration,
    /// Have PART be in use again
    #[arg(long = "undo", requires = "part", conflicts_with = "deadline")]
    is_undone: bool,
}

/// A part of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    backing: String,
    /// From where, and up to where if not to the end; all of it if none.
    bytes: Option<(u64, Option<u64>)>,
}

fn parse_part(text: &str) -> Result<Part, String> {
    let Some((backing, bytes)) = text.split_once(':') else {
        return Ok(Part { backing: text.to_owned(), bytes: None });
    };
    let Some((start, end)) = bytes.split_once("..") else {
        return Err(format!("`{bytes}` is no range: write START..END, as in far:1G..3G"));
    };
    let size = |text: &str| (!text.is_empty()).then(|| sizes::parse(text)).transpose();
    let (start, end) = (size(start)?.unwrap_or(0), size(end)?);
    if end.is_some_and(|end| end <= start) {
        return Err(format!("`{bytes}` ends where it starts, or before"));
    }
    Ok(Part { backing: backing.to_owned(), bytes: Some((start, end)) })
}

impl Part {
    /// The bytes that are meant; none for all.
    fn bytes_of(&self, client: &Client) -> Result<Option<Range<u64>>, Failure> {
        let (start, end) = match self.bytes {
            None => return Ok(None),
            Some((start, Some(end))) => return Ok(Some(start..end)),
            Some((start, None)) => (start, client.backings()?),
        };
        let backing = end.iter().find(|backing| backing.name == self.backing);
        // The owner says that there is none.
        let end = backing.map_or(u64::MAX, |it| it.offset_bytes + it.size_bytes);
        Ok(Some(start..end))
    }
}

#[derive(Debug, Serialize)]
struct Done {
    schema: &'static str,
    /// The backing of which a part, or all, was drained; the pool if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    backing: Option<String>,
    waited_ms: u64,
}

impl Drain {
    /// Drains it.
    ///
    /// # Errors
    /// When somebody holds some of it at the deadline, or a device of a dead client may still be
    /// writing.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let client = attach(place)?;
        let started = Instant::now();
        if let Some(part) = &self.part {
            self.drain_part(part, &client, started)?;
            output.note(match (self.is_undone, part.bytes.is_some() || part.backing == "data") {
                (true, _) => "it is in use again",
                (false, true) => "nobody holds any of it, and it is out of use",
                (false, false) => "nobody holds any of it, and it is given up",
            });
        } else {
            let owner = Connection::connect(&place.socket).ok().and_then(|owner| owner.peer().ok());
            let drained = client.close_pool(self.deadline);
            drained.map_err(|error| self.failure(error, started))?;
            if let Some(owner) = owner.and_then(|owner| owner.pidfd) {
                // Whoever serves the pool next, or unplugs the device, finds nobody. An owner that
                // is a part of a larger program does not end.
                let _ended = wait_for([(owner.as_fd(), Interest::Read)], OWNER_END);
            }
            output.note("nobody holds any of the pool, and its owner ends");
        }
        let waited_ms = started.elapsed().as_millis() as u64;
        let backing = self.part.map(|part| part.backing);
        output.show_done(&Done { schema: "pgmap.drain/1", backing, waited_ms })
    }

    fn drain_part(&self, part: &Part, client: &Client, started: Instant) -> Result<(), Failure> {
        let bytes = part.bytes_of(client)?;
        if self.is_undone {
            return Ok(client.undo_drain(&part.backing, bytes)?);
        }
        let drained = client.drain_backing(&part.backing, bytes, self.deadline);
        drained.map_err(|error| self.failure(error, started))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_a_backing_or_a_range_of_its_bytes() {
        let part = |backing: &str, bytes| Ok(Part { backing: backing.into(), bytes });
        assert_eq!(parse_part("far"), part("far", None));
        assert_eq!(parse_part("far:1G..3G"), part("far", Some((1 << 30, Some(3 << 30)))));
        assert_eq!(parse_part("data:2M.."), part("data", Some((2 << 20, None))));
        assert_eq!(parse_part("data:..2M"), part("data", Some((0, Some(2 << 20)))));
        for wrong in ["far:", "far:1G", "far:2G..1G", "far:1G..1G", "far:x..2G"] {
            assert!(parse_part(wrong).is_err(), "{wrong}");
        }
    }
}
