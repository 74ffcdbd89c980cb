//! The error of a system call, with what the errno alone does not say.
//!
//! `ENOSPC` on its own helps nobody. An [`OsError`] says what was tried, on which thing, which
//! errno came back, and where it can, the way out:
//!
//! ```text
//! reserve bytes 0..4194304 of /dev/shm/pool: No space left on device (os error 28);
//! 1048576 bytes are missing, free some or enlarge the file system
//! ```

use std::error::Error;
use std::fmt;
use std::io;

/// Returns whether a call failed because something ran short: descriptors, or memory of the kernel.
///
/// What such a call would have said is not known. Who takes its error for "there is none" believes
/// something wrong just when it matters.
pub fn is_shortage(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    matches!(errno, Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS))
}

/// A system call that failed: what was tried, on what, why, and the way out.
#[derive(Debug)]
pub struct OsError {
    what: &'static str,
    subject: String,
    source: io::Error,
    advice: Option<String>,
}

impl OsError {
    /// Describes the failure of `what` ("reserve") on `subject` ("bytes 0..4096 of /dev/shm/pool").
    pub fn new(
        what: &'static str,
        subject: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Self {
        let source = source.into();
        let advice = match source.raw_os_error() {
            Some(libc::EMFILE) => Some("raise the limit of open files (ulimit -n)".into()),
            _ => None,
        };
        Self { what, subject: subject.into(), source, advice }
    }

    /// Adds the way out, one clause without a full stop.
    #[must_use]
    pub fn with_advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Returns what was tried: a verb.
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// Returns the thing that it was tried on.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Returns the way out, where one is known.
    pub fn advice(&self) -> Option<&str> {
        self.advice.as_deref()
    }

    /// Returns the errno as a positive number, `EIO` where the failure had none.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(libc::EIO)
    }

    /// Returns the kind that the standard library gives the errno.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.what, self.subject, self.source)?;
        match &self.advice {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

impl Error for OsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn message_names_the_act_the_thing_the_errno_and_the_way_out() {
        let error = OsError::new("open", "/pool/data", Errno::NOENT).with_advice("create it first");
        let text = error.to_string();
        assert!(text.starts_with("open /pool/data: No such file"), "{text}");
        assert!(text.ends_with("; create it first"), "{text}");
        assert_eq!(error.errno(), libc::ENOENT);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn failure_without_an_errno_reads_as_eio() {
        let error = OsError::new("parse", "/proc", io::Error::other("odd"));
        assert_eq!(error.errno(), libc::EIO);
    }
}
