//! How long a cut waits for holders, and what becomes of what they still hold then.

use std::time::Duration;

use pgmap::report::ClientHold;
use pgmap::{Error, OnDeadline, Refusal};

use crate::failure::{Exit, Failure};
use crate::verbs::who::HolderRow;

// No doc comment: clap would make it the help of each verb that has these flags.
#[derive(Debug, clap::Args)]
pub struct Patience {
    /// How long to wait for holders, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    deadline: u64,
    /// At the deadline, cut all the same and quarantine what is still held
    #[arg(long = "quarantine")]
    is_quarantining: bool,
}

impl Patience {
    /// How long to wait.
    pub const fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline)
    }

    /// What happens then.
    pub const fn on_deadline(&self) -> OnDeadline {
        if self.is_quarantining { OnDeadline::Quarantine } else { OnDeadline::Fail }
    }

    /// A refused cut: past the deadline when it waited, busy when it was not to wait.
    pub fn failure(&self, error: Error) -> Failure {
        let is_held = matches!(error, Error::Refused(Refusal::Held { .. }));
        let failure = Failure::from(error);
        if is_held && self.deadline > 0 {
            return Failure { exit: Exit::Deadline, ..failure };
        }
        failure
    }
}

/// Nothing when nobody holds what was cut; else says, after `what` was done, who does.
///
/// # Errors
/// [`Exit::Quarantined`] with the holders.
pub fn check_quarantine(what: &str, holders: &[ClientHold]) -> Result<(), Failure> {
    let holders: Vec<HolderRow> = holders.iter().map(HolderRow::from).collect();
    let Some(first) = holders.first() else { return Ok(()) };
    let message = format!("{what}; what went is quarantined until let go by {first}");
    Err(Failure {
        exit: Exit::Quarantined,
        kind: "quarantined",
        errno: libc::EBUSY,
        name: None,
        message,
        holders,
    })
}
