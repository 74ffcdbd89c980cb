//! `pgmap events`: follows what becomes of files.

use std::ffi::OsString;
use std::time::Duration;

use clap::ValueEnum;
use pgmap::{FileChange, Notice, SubscribeOptions};
use serde::Serialize;

use crate::attach::{Place, attach_to_read, name_bytes};
use crate::failure::Failure;
use crate::names::Exact;
use crate::output::{Output, json_line, print};

/// How long one wait for an event lasts; then comes the next.
const TURN: Duration = Duration::from_secs(3600);

/// Follow what becomes of files, from now on
///
/// One line per event, at once: its number, what happened, the file's number, length and name; with
/// --json one object per line. Created is a file that was committed, or got the name; removed one
/// that was unlinked or replaced, or got another name; evicted one that the owner removed to make
/// room; drained one of which nobody holds a frame any more. A gap in the numbers are events that
/// were lost because nobody read them: the owner waits for no reader. Ends when the owner does.
#[derive(Debug, clap::Args)]
pub struct Events {
    /// Only files whose names begin with this
    #[arg(long, value_name = "PREFIX", default_value = "")]
    prefix: OsString,
    /// Only these changes
    #[arg(long = "only", value_name = "CHANGE", value_delimiter = ',')]
    only: Vec<Change>,
    /// End after so many events
    #[arg(long = "count", value_name = "N")]
    count: Option<u64>,
}

/// What becomes of files.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Change {
    /// It is there
    Created,
    /// Its name is gone
    Removed,
    /// The owner removed it
    Evicted,
    /// Its frames are free
    Drained,
}

impl From<Change> for FileChange {
    fn from(change: Change) -> Self {
        match change {
            Change::Created => Self::Created,
            Change::Removed => Self::Removed,
            Change::Evicted => Self::Evicted,
            Change::Drained => Self::Drained,
        }
    }
}

#[derive(Debug, Serialize)]
struct Row {
    schema: &'static str,
    sequence: u64,
    nr_missed: u64,
    change: &'static str,
    #[serde(flatten)]
    name: Exact,
    id: u64,
    len_bytes: u64,
}

impl Row {
    fn new(notice: &Notice) -> Self {
        let event = &notice.event;
        Self {
            schema: "pgmap.event/1",
            sequence: event.sequence,
            nr_missed: notice.nr_missed,
            change: event.change.name(),
            name: Exact::name(Some(event.name.as_bytes())),
            id: event.id,
            len_bytes: event.len_bytes,
        }
    }

    fn line(&self, output: &Output) -> Result<String, Failure> {
        if output.is_json() {
            return json_line(self);
        }
        let Self { sequence, change, id, .. } = self;
        let name = self.name.shown().unwrap_or_default();
        Ok(format!("{sequence} {change} {id} {} {name}", output.units().bytes(self.len_bytes)))
    }
}

impl Events {
    /// Follows them.
    ///
    /// # Errors
    /// When the owner cannot be reached, or ends.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let client = attach_to_read(place)?;
        let mut options = SubscribeOptions::new().prefix(name_bytes(&self.prefix));
        if !self.only.is_empty() {
            let only: Vec<FileChange> = self.only.iter().map(|&change| change.into()).collect();
            options = options.only(&only);
        }
        let mut subscription = client.subscribe(&options)?;
        output.note("following; end it with Ctrl-C");
        let mut nr_left = self.count;
        while nr_left != Some(0) {
            let Some(notice) = subscription.next(TURN)? else { continue };
            if notice.nr_missed > 0 {
                output.note(&format!("{} events were lost", notice.nr_missed));
            }
            print(&Row::new(&notice).line(output)?)?;
            nr_left = nr_left.map(|nr_left| nr_left - 1);
        }
        Ok(())
    }
}
