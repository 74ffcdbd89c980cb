//! Quotas: what a user, or all files whose names begin alike, may take of a pool, and how much room
//! the owner keeps free.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::FileName;

/// Most quotas of a pool: one answer describes all of them.
pub const MAX_QUOTAS: usize = 128;

/// Whom a quota is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum QuotaOf {
    /// The files that clients of this user create, and those clients.
    Uid(u32),
    /// The files whose names begin so.
    Prefix(FileName),
}

impl fmt::Display for QuotaOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid {uid}"),
            Self::Prefix(prefix) => write!(f, "prefix \"{prefix}\""),
        }
    }
}

impl QuotaOf {
    /// Whether a file of this user and name counts.
    pub(crate) fn has(&self, uid: u32, name: &FileName) -> bool {
        match self {
            Self::Uid(its) => *its == uid,
            Self::Prefix(prefix) => name.as_bytes().starts_with(prefix.as_bytes()),
        }
    }
}

/// What a quota allows. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaLimits {
    /// Bytes of the frames of its files, those that are being written among them.
    pub bytes: Option<u64>,
    /// Its files, those that are being written among them.
    pub files: Option<u64>,
    /// Clients of a user at a time. Each has one ledger, and so a bounded number of pins.
    pub clients: Option<u64>,
}

impl QuotaLimits {
    /// Limits nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Allows as many bytes of frames.
    #[must_use]
    pub const fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// Allows as many files.
    #[must_use]
    pub const fn files(mut self, files: u64) -> Self {
        self.files = Some(files);
        self
    }

    /// Allows a user as many clients at a time.
    #[must_use]
    pub const fn clients(mut self, clients: u64) -> Self {
        self.clients = Some(clients);
        self
    }
}

/// A quota, and how much of it is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaInfo {
    /// Whom it is for.
    pub of: QuotaOf,
    /// What it allows.
    pub limits: QuotaLimits,
    /// Bytes of the frames that its files have.
    pub used_bytes: u64,
    /// Its files.
    pub used_files: u64,
    /// The clients of its user that are attached; 0 for a prefix.
    pub used_clients: u64,
}

/// How much room the owner keeps free by evicting in advance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaterMarks {
    /// With fewer bytes free the owner begins to evict; 0 for never.
    pub low_bytes: u64,
    /// With as many bytes free it stops.
    pub high_bytes: u64,
}
