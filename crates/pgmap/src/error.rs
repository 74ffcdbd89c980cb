//! What a call of this crate can fail with.

use pgmap_mm::error::PinError;
use pgmap_os::OsError;

use crate::refusal::Refusal;

/// Why a call failed. Nothing is held, and nothing was changed, except where
/// [`OwnerGone`](Self::OwnerGone), [`TimedOut`](Self::TimedOut) or [`Refusal::MayBeDone`] say that
/// it may have been.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The owner refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A pin was not taken.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The system refused.
    #[error(transparent)]
    Os(#[from] OsError),
    /// The socket cannot be listened at.
    #[error(transparent)]
    Bind(#[from] pgmap_os::BindError),
    /// A byte range outside the file or the pin.
    #[error("bytes {start}..{end} lie outside a length of {len_bytes}")]
    OutOfRange {
        /// First byte.
        start: u64,
        /// Byte after the last.
        end: u64,
        /// The length.
        len_bytes: u64,
    },
    /// The memory of the pool, or of the caller's buffer, did not answer while it was copied: cut
    /// off, full, or broken. Offsets count from the start of the pool.
    #[error("copy: {0}")]
    Memory(pgmap_os::CopyError),
    /// The owner is gone; pins stay valid, structural calls do not work. A call that it had
    /// received it may have done.
    #[error("the pool's owner is gone ({why}); pins taken before stay valid")]
    OwnerGone {
        /// How that showed.
        why: String,
    },
    /// The owner did not answer in time. Whether it did, or yet does, what it was asked is not
    /// known; what a late answer brings is given back.
    #[error(
        "the owner{} did not answer a {call} within {waited_ms} ms: it is stopped or busy; wait \
         for it, or allow the client a longer deadline",
        match owner_pid { 0 => String::new(), pid => format!(" (pid {pid})") }
    )]
    TimedOut {
        /// What it was asked.
        call: &'static str,
        /// How long the client waited.
        waited_ms: u64,
        /// The owner's process, 0 if it lives in a pid namespace that the client cannot see.
        owner_pid: i32,
    },
    /// The peer said something this version does not understand.
    #[error("the peer sent {what}; are both sides of the same version?")]
    Protocol {
        /// What it sent.
        what: String,
    },
    /// The pool's files are not what they should be.
    #[error("pool {pool}: {why}")]
    BadPool {
        /// Which.
        pool: String,
        /// What is wrong.
        why: String,
    },
    /// The pool's files were to outlive what its memory does not.
    #[error("pool {pool}: files that outlive {needed} were asked for, and {why}")]
    NotDurable {
        /// Which.
        pool: String,
        /// What they were to outlive.
        needed: String,
        /// What the memory outlives.
        why: String,
    },
    /// The catalog could not be read or written.
    #[error("catalog {path}: {why}")]
    Catalog {
        /// Its file.
        path: String,
        /// What its store said.
        why: String,
    },
    /// This process is a forked child of the client's.
    #[error("this process was forked from a client of the pool and must attach again")]
    Forked,
}

impl Error {
    /// Why the owner is gone, said once, however often it is passed on.
    pub(crate) fn why_gone(&self) -> String {
        match self {
            Self::OwnerGone { why } => why.clone(),
            other => other.to_string(),
        }
    }

    /// The same error once more, for another item of a batch whose call failed.
    #[doc(hidden)]
    #[must_use]
    pub fn again(&self) -> Self {
        match self {
            Self::Refused(refusal) => Self::Refused(refusal.clone()),
            Self::OwnerGone { why } => Self::OwnerGone { why: why.clone() },
            Self::Protocol { what } => Self::Protocol { what: what.clone() },
            &Self::TimedOut { call, waited_ms, owner_pid } => {
                Self::TimedOut { call, waited_ms, owner_pid }
            }
            Self::Forked => Self::Forked,
            Self::Pin(error) => Self::Pin(*error),
            // What a call can meet besides: a failure of the connection.
            other => {
                let source = std::io::Error::from_raw_os_error(other.errno());
                Self::Os(OsError::new("call", format!("the owner ({other})"), source))
            }
        }
    }

    /// A name for programs, in snake case. It stays what it is.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.kind(),
            Self::Pin(error) => error.kind(),
            Self::Os(_) | Self::Bind(pgmap_os::BindError::Os(_)) => "system",
            Self::Bind(_) => "socket_in_use",
            Self::OutOfRange { .. } => "out_of_range",
            Self::Memory(_) => "memory",
            Self::OwnerGone { .. } => "owner_gone",
            Self::TimedOut { .. } => "timed_out",
            Self::Protocol { .. } => "protocol",
            Self::BadPool { .. } => "bad_pool",
            Self::NotDurable { .. } => "not_durable",
            Self::Catalog { .. } => "catalog",
            Self::Forked => "forked",
        }
    }

    /// The Linux error number that says the same.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Refused(refusal) => refusal.errno(),
            Self::Pin(error) => error.errno(),
            Self::Os(error) => error.errno(),
            Self::Bind(error) => error.errno(),
            Self::Memory(error) => error.errno(),
            Self::OutOfRange { .. } | Self::BadPool { .. } => 22,
            Self::OwnerGone { .. } => 108,
            Self::TimedOut { .. } => 110,
            Self::Protocol { .. } => 71,
            Self::NotDurable { .. } => pgmap_mm::error::errno::EOPNOTSUPP,
            Self::Catalog { .. } => 5,
            Self::Forked => 10,
        }
    }

    /// The refusal, if the owner refused.
    #[must_use]
    pub const fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

impl From<Error> for Refusal {
    /// What an owner tells a client of a failure of its own.
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => refusal,
            Error::Os(error) if error.errno() == pgmap_mm::error::errno::ENOSPC => {
                Self::NoMemory { why: error.to_string() }
            }
            other => Self::Internal { why: other.to_string() },
        }
    }
}

impl From<pgmap_os::CopyError> for Error {
    fn from(error: pgmap_os::CopyError) -> Self {
        let pgmap_os::CopyError::OutOfBounds(error) = error else { return Self::Memory(error) };
        Self::OutOfRange {
            start: error.offset,
            end: error.offset.saturating_add(error.len),
            len_bytes: error.mapping_len,
        }
    }
}
