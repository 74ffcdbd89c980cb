//! One value, shown as a table or as JSON.

use std::env;
use std::io::{self, IsTerminal, StdoutLock, Write};

use serde::Serialize;

use crate::errno;
use crate::failure::{Exit, Failure};
use crate::names::Exact;
use crate::sizes;
use crate::standard_streams::is_stdout_closed;
use crate::table::{Closing, Dress, Table};
use crate::verbs::who::HolderRow;

/// What a verb can show. The same value is serialised, with a `schema` field of its own.
pub trait Show: Serialize {
    /// The value as people read it.
    fn table(&self, units: Units) -> Table;
}

/// How numbers of bytes are written in tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Units {
    /// As integers.
    Bytes,
    /// As `1.5 GiB`.
    Human,
}

impl Units {
    /// Writes a number of bytes.
    pub fn bytes(self, bytes: u64) -> String {
        match self {
            Self::Bytes => bytes.to_string(),
            Self::Human => sizes::human(bytes),
        }
    }
}

/// What results look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A table.
    Table,
    /// One JSON object.
    Json,
}

/// Whether anything but the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Talk {
    /// Notes, bars and closing lines too.
    Usual,
    /// Results and errors only.
    Quiet,
}

/// Where results, notes and errors go.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    format: Format,
    units: Units,
    talk: Talk,
}

#[derive(Serialize)]
struct FailureReport<'a, D> {
    schema: &'static str,
    kind: &'static str,
    errno: Option<Errno>,
    error: String,
    exit_code: u8,
    /// The file of the pool that it concerns.
    #[serde(flatten)]
    name: Exact,
    holders: &'a [HolderRow],
    #[serde(flatten)]
    done: &'a D,
}

/// A Linux error number, as programs compare it and as people read it.
#[derive(Debug, Serialize)]
pub struct Errno {
    name: Option<&'static str>,
    number: i32,
}

impl Errno {
    /// `None` for 0, which is no error.
    pub fn of(number: i32) -> Option<Self> {
        (number != 0).then(|| Self { name: errno::name(number), number })
    }
}

impl Output {
    /// An output.
    pub const fn new(format: Format, units: Units, talk: Talk) -> Self {
        Self { format, units, talk }
    }

    /// Whether results are JSON.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// How numbers of bytes are written for people.
    pub const fn units(&self) -> Units {
        self.units
    }

    /// Whether nothing but results and errors is wanted.
    pub fn is_quiet(&self) -> bool {
        self.talk == Talk::Quiet
    }

    /// Shows a result on stdout.
    ///
    /// # Errors
    /// When stdout cannot be written; silently when its reader has gone.
    pub fn show(&self, value: &impl Show) -> Result<(), Failure> {
        let text = match self.format {
            Format::Json => json(value)?,
            Format::Table => {
                let is_bold = io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none();
                let dress = if is_bold { Dress::Styled } else { Dress::Plain };
                let closing = if self.is_quiet() { Closing::Hidden } else { Closing::Shown };
                value.table(self.units).lines(dress, closing).join("\n")
            }
        };
        if text.is_empty() { Ok(()) } else { print(&text) }
    }

    /// Shows the result of a verb that is silent on success: only where JSON is wanted.
    ///
    /// # Errors
    /// As [`show`](Self::show).
    pub fn show_done(&self, value: &impl Serialize) -> Result<(), Failure> {
        if self.is_json() { print(&json(value)?) } else { Ok(()) }
    }

    /// Tells something on the way, on stderr, where somebody watches.
    pub fn note(&self, text: &str) {
        if !self.is_quiet() && io::stderr().is_terminal() {
            eprintln!("pgmap: {text}");
        }
    }

    /// Tells why the command failed.
    pub fn show_failure(&self, failure: &Failure) {
        if failure.message.is_empty() {
            return;
        }
        eprintln!("pgmap: {failure}");
        self.report(failure);
    }

    /// Prints a failure for programs, where results are JSON.
    pub fn report(&self, failure: &Failure) {
        #[derive(Serialize)]
        struct Nothing {}
        self.report_with(failure, &Nothing {});
    }

    /// The same, with further fields: what was done all the same.
    pub fn report_with(&self, failure: &Failure, done: &impl Serialize) {
        if self.is_json() {
            let report = FailureReport {
                schema: "pgmap.error/1",
                kind: failure.kind,
                errno: Errno::of(failure.errno),
                name: Exact::name(failure.name.as_deref()),
                error: failure.to_string(),
                exit_code: failure.exit.code(),
                holders: &failure.holders,
                done,
            };
            // Stdout may be gone; the exit code and stderr have told.
            let _ = json(&report).and_then(|text| print(&text));
        }
    }
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|error| {
        Failure::new("failed", libc::EIO, format!("the result is no JSON: {error}"))
    })
}

/// A value as one line of JSON, for what has no end.
///
/// # Errors
/// When it is no JSON.
pub fn json_line(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| {
        Failure::new("failed", libc::EIO, format!("the result is no JSON: {error}"))
    })
}

/// Where results are written.
///
/// # Errors
/// When the command was started with stdout closed: whatever is written would be lost.
pub fn stdout() -> Result<StdoutLock<'static>, Failure> {
    if is_stdout_closed() {
        return Err(stdout_failure(&io::Error::from_raw_os_error(libc::EBADF)));
    }
    Ok(io::stdout().lock())
}

/// Prints a line on stdout at once.
///
/// # Errors
/// When stdout cannot be written; silently when its reader has gone.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = stdout()?;
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(|error| stdout_failure(&error))
}

/// A failure to write to stdout. A reader that went away wanted no more: nothing to tell.
pub fn stdout_failure(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Failure::silent(Exit::Error);
    }
    Failure::io("write to", "stdout", error)
}
