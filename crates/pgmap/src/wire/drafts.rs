//! Files on their way into the pool: what is asked for, what is reserved, what is committed.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::metadata::UserMetadata;
use crate::name::FileName;
use crate::refusal::Refusal;
use crate::wire::{FileRules, FolioSize, Placement};

/// A file to be created.
///
/// ```
/// # use pgmap::{CreateSpec, FolioSize, Owner, Pool, PoolOptions, UserMetadata};
/// # let owner = Owner::start(Pool::create(&PoolOptions::anonymous(64 << 20))?)?;
/// # let client = owner.client()?;
/// let spec = CreateSpec::named("block/7", 6, FolioSize::BestFit)?
///     .metadata(UserMetadata::new("model=m")?)
///     .checksummed()
///     .evictable(1);
/// let mut writers = client.create_batch(vec![spec])?;
/// # drop(writers);
/// # Ok::<(), pgmap::Error>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateSpec {
    /// Its name from the commit on.
    pub name: FileName,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Its folios.
    pub folio_size: FolioSize,
    /// Whether it takes the place of a file with the same name.
    pub replace: bool,
    /// What may be done with it.
    pub rules: FileRules,
    /// Where it may lie.
    pub placement: Placement,
    /// What its users want to know of it.
    pub metadata: UserMetadata,
    /// Whether it gets a checksum of its contents when it is committed.
    pub is_checksummed: bool,
}

impl CreateSpec {
    /// A new file without special rules, on any backing.
    #[must_use]
    pub fn new(name: FileName, len_bytes: u64, folio_size: FolioSize) -> Self {
        Self {
            name,
            len_bytes,
            folio_size,
            replace: false,
            rules: FileRules::default(),
            placement: Placement::Any,
            metadata: UserMetadata::default(),
            is_checksummed: false,
        }
    }

    /// As [`new`](Self::new), of a name that is yet to be checked.
    ///
    /// # Errors
    /// [`Refusal::BadName`].
    pub fn named(
        name: impl AsRef<[u8]>,
        len_bytes: u64,
        folio_size: FolioSize,
    ) -> Result<Self, Refusal> {
        Ok(Self::new(FileName::new(name)?, len_bytes, folio_size))
    }

    /// Whether the frames of one could be those of the other.
    pub(crate) fn has_like_frames(&self, other: &Self) -> bool {
        self.len_bytes == other.len_bytes
            && self.folio_size == other.folio_size
            && self.placement == other.placement
    }

    /// Lets the file take the place of one with the same name.
    #[must_use]
    pub const fn replacing(mut self) -> Self {
        self.replace = true;
        self
    }

    /// Says what may be done with the file.
    #[must_use]
    pub const fn rules(mut self, rules: FileRules) -> Self {
        self.rules = rules;
        self
    }

    /// Says where the file may lie.
    #[must_use]
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// Gives the file what its users want to know of it.
    #[must_use]
    pub fn metadata(mut self, metadata: UserMetadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// Has the commit keep a checksum of the contents.
    #[must_use]
    pub const fn checksummed(mut self) -> Self {
        self.is_checksummed = true;
        self
    }

    /// Lets the owner evict the file: when a create needs room, and nobody holds the file, it is
    /// removed, the least recently used first. Files of lower `priority` go before those of higher
    /// ones; 0 is never.
    #[must_use]
    pub const fn evictable(mut self, priority: u8) -> Self {
        self.rules.evict_priority = priority;
        self
    }
}

/// A file that was created and not committed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Draft {
    /// Its number.
    pub id: u64,
    /// Its frames, under their Reserved life words.
    pub extents: SmallVec<[[u64; 3]; 1]>,
}

/// A file to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitSpec {
    /// Its number.
    pub id: u64,
    /// The checksum of its contents. Kept if the create asked for one.
    pub checksum: Option<u32>,
}

impl CommitSpec {
    /// A commit without a checksum.
    #[must_use]
    pub const fn new(id: u64) -> Self {
        Self { id, checksum: None }
    }
}

/// A file to be committed whose name and rules are given only now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PutSpec {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: FileName,
    /// Whether it takes the place of a file with the same name.
    pub replace: bool,
    /// What may be done with it.
    pub rules: FileRules,
    /// What its users want to know of it.
    pub metadata: UserMetadata,
    /// The checksum of its contents, if it is to have one.
    pub checksum: Option<u32>,
    /// For so many more files of this size frames are to be handed out with the answer.
    pub nr_spares: u8,
}

/// A file that was committed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Committed {
    /// The life words of its extents now.
    pub life: SmallVec<[u64; 1]>,
}

/// What became of a put.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PutAnswer {
    /// The file, or why there is none.
    pub committed: Result<Committed, Refusal>,
    /// Frames for more files of its size, each, as many as were asked for if there is room.
    pub spares: SmallVec<[Draft; 1]>,
}
