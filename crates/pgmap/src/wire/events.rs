//! What becomes of files, as events that clients subscribe to.

use serde::{Deserialize, Serialize};

use crate::name::FileName;

/// Most subscriptions of one client.
pub const MAX_SUBSCRIPTIONS: u64 = 8;

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FileChange {
    /// It was committed under this name, or got it by a rename.
    Created,
    /// Its name was taken away: it was unlinked or replaced, or got another name.
    Removed,
    /// The owner removed it to make room: it is evictable, and nobody held it.
    Evicted,
    /// It was removed or evicted since the subscription, and nobody holds any of its frames now.
    Drained,
}

impl FileChange {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Created, Self::Removed, Self::Evicted, Self::Drained];

    /// As tools print it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Removed => "removed",
            Self::Evicted => "evicted",
            Self::Drained => "drained",
        }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEvent {
    /// Its number: the events of a subscription are numbered from 1 on, also those that were lost
    /// because nobody read them.
    pub sequence: u64,
    /// What it is.
    pub change: FileChange,
    /// The file's name.
    pub name: FileName,
    /// The file's number.
    pub id: u64,
    /// Its length in bytes.
    pub len_bytes: u64,
}
