//! What a verb fails with: a message that names the thing and the way out, and an exit code.

use std::fmt;
use std::io;
use std::process::ExitCode;

use pgmap::{Error, FileName, Refusal};

use crate::verbs::who::HolderRow;

/// What to do about an index without room.
const INDEX_HELP: &str =
    " (room for files is fixed when a pool is made: `pgmap serve --max-files N`)";
/// What to do about memory that failed.
const POISON_HELP: &str = " (memory failed: `pgmap stat NAME` tells where, `pgmap repair NAME \
                           OFFSET --from FILE` writes it again, `pgmap rm NAME` gives it up)";

/// How the command ends. Scripts rely on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It did not work.
    Error = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Somebody holds what was wanted, or is at work on it.
    Busy = 3,
    /// What was wanted is quarantined.
    Quarantined = 4,
    /// The deadline passed.
    Deadline = 124,
    /// SIGHUP ended it.
    HungUp = 129,
    /// SIGINT ended it.
    Interrupted = 130,
    /// SIGTERM ended it.
    Terminated = 143,
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a verb failed.
#[derive(Debug)]
pub struct Failure {
    /// How the command ends.
    pub exit: Exit,
    /// What it was, for programs: a name in snake case that stays what it is.
    pub kind: &'static str,
    /// The Linux error number that says the same; 0 if none does.
    pub errno: i32,
    /// The file of the pool that it concerns.
    pub name: Option<Vec<u8>>,
    /// What to print; `None` if everything was printed.
    pub message: String,
    /// Who holds what was wanted.
    pub holders: Vec<HolderRow>,
}

impl Failure {
    /// An error with exit code 1.
    pub fn new(kind: &'static str, errno: i32, message: impl Into<String>) -> Self {
        Self { kind, errno, ..Self::with_exit(Exit::Error, message) }
    }

    /// A command line that says two things at once.
    pub fn usage(message: impl Into<String>) -> Self {
        let failure = Self::with_exit(Exit::Usage, message);
        Self { kind: "usage", errno: libc::EINVAL, ..failure }
    }

    fn with_exit(exit: Exit, message: impl Into<String>) -> Self {
        let (kind, message, holders) = ("failed", message.into(), Vec::new());
        Self { exit, kind, errno: 0, name: None, message, holders }
    }

    /// A failure of reading or writing `subject`.
    pub fn io(what: &str, subject: impl fmt::Display, error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let advice = match errno {
            libc::EMFILE => "; raise the limit of open files (ulimit -n)",
            _ => "",
        };
        Self::new("system", errno, format!("{what} {subject}: {error}{advice}"))
    }

    /// The same, of a file of the pool.
    #[must_use]
    pub fn of_file(self, name: &[u8]) -> Self {
        Self { name: Some(name.to_vec()), ..self }
    }

    /// Ended by a signal, with the exit code that says so; what was begun is undone.
    pub fn interrupted(exit: Exit) -> Self {
        let failure = Self::with_exit(exit, "interrupted; nothing was left behind");
        Self { kind: "interrupted", errno: libc::EINTR, ..failure }
    }

    /// Nothing more to tell.
    pub fn silent(exit: Exit) -> Self {
        Self::with_exit(exit, "")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        // The first holder is part of the message.
        for holder in self.holders.iter().skip(1) {
            write!(f, "\n  also held by {holder}")?;
        }
        Ok(())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match &error {
            Error::Refused(Refusal::Held { .. } | Refusal::InUse { .. }) | Error::Bind(_)
                if is_busy(error.errno()) =>
            {
                Exit::Busy
            }
            _ => Exit::Error,
        };
        let holders = match error.refusal().map(last) {
            Some(Refusal::Held { holders, .. }) => holders.iter().map(HolderRow::from).collect(),
            _ => Vec::new(),
        };
        let mut message = error.to_string();
        if error.errno() == libc::EHWPOISON {
            message.push_str(POISON_HELP);
        }
        if matches!(error.refusal(), Some(Refusal::IndexFull { .. })) {
            message.push_str(INDEX_HELP);
        }
        let name = error.refusal().and_then(file_of).and_then(FileName::unescape);
        let name = name.map(|name| name.as_bytes().to_vec());
        Self { exit, kind: error.kind(), errno: error.errno(), name, message, holders }
    }
}

/// The refusal of the last owner that was asked.
fn last(refusal: &Refusal) -> &Refusal {
    match refusal {
        Refusal::MayBeDone { refusal, .. } => refusal,
        refusal => refusal,
    }
}

/// The file that a refusal names, as messages show it.
fn file_of(refusal: &Refusal) -> Option<&str> {
    match last(refusal) {
        Refusal::NotFound { name }
        | Refusal::Exists { name }
        | Refusal::BadLength { name, .. }
        | Refusal::Held { name, .. }
        | Refusal::InUse { name, .. }
        | Refusal::Poisoned { name } => Some(name),
        _ => None,
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Error::from(refusal).into()
    }
}

impl From<pgmap::os::OsError> for Failure {
    fn from(error: pgmap::os::OsError) -> Self {
        Error::from(error).into()
    }
}

fn is_busy(errno: i32) -> bool {
    errno == libc::EBUSY || errno == libc::EADDRINUSE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_file_is_busy_and_a_missing_one_is_an_error() {
        let held = Refusal::Held { name: "a".into(), holders: Vec::new(), waited_ms: 1 };
        assert_eq!(Failure::from(held).exit, Exit::Busy);
        let missing = Refusal::NotFound { name: "a".into() };
        assert_eq!(Failure::from(missing).exit, Exit::Error);
    }
}
