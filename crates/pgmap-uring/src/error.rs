//! Why a transfer was not begun, or the ring not made.

use pgmap::space::SpaceError;

/// Why a transfer was not begun, or the ring not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The address space is of another client than the ring, so its pages need not lie in the pool
    /// that the ring has registered.
    #[error("the space is another client's; make it of the ring's client or of a clone of that")]
    OtherClient,
    /// The pages could not be held.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// Fewer bytes could be held than were to be moved; nothing was begun.
    #[error("only {held_bytes} of {wanted_bytes} bytes at {address:#x} can be pinned")]
    Short {
        /// First address.
        address: u64,
        /// Bytes that could be held.
        held_bytes: u64,
        /// Bytes asked for.
        wanted_bytes: u64,
    },
    /// The pages lie in more pieces than one call moves.
    #[error("{nr_pieces} pieces, and one transfer moves {most_pieces}; move less at a time")]
    TooManyPieces {
        /// Pieces.
        nr_pieces: usize,
        /// The most of one transfer.
        most_pieces: usize,
    },
    /// The pages lie in several pieces, and what they are to be moved to or from takes each as a
    /// message of its own.
    #[error(
        "{nr_pieces} pieces for a descriptor that takes whole messages, as an eventfd does: move \
         one piece at a time, here {piece_bytes} bytes"
    )]
    OnePiece {
        /// Pieces.
        nr_pieces: usize,
        /// Bytes of the first.
        piece_bytes: u64,
    },
    /// As many transfers are under way as the ring has entries, and none ended within a second.
    #[error("all {nr_entries} entries of the ring are in flight; wait for one, or cancel one")]
    Full {
        /// Entries.
        nr_entries: u32,
    },
    /// The transfer would end behind the last offset that a file can have.
    #[error("{len_bytes} bytes at offset {file_offset:#x} end past the largest file offset")]
    OffsetOverflow {
        /// First offset in the file.
        file_offset: u64,
        /// Bytes asked for.
        len_bytes: u64,
    },
    /// The kernel did not let the pool be registered, for want of memory that may be locked.
    #[error(
        "io_uring, registering the pool of {pool_bytes} bytes: {source}; RLIMIT_MEMLOCK is \
         {limit_bytes} bytes: raise it (ulimit -l, or LimitMEMLOCK= of a service), or give the \
         process CAP_IPC_LOCK"
    )]
    MemoryLock {
        /// Bytes to be locked.
        pool_bytes: u64,
        /// The limit, for all that the user has locked.
        limit_bytes: u64,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel refused.
    #[error("io_uring, {doing}: {source}")]
    Ring {
        /// What was being done.
        doing: &'static str,
        /// What it said.
        source: std::io::Error,
    },
}

impl RingError {
    /// The Linux error number that says the same.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Space(error) => error.errno(),
            Self::Short { .. } => pgmap::mm::error::errno::EFAULT,
            Self::OtherClient
            | Self::TooManyPieces { .. }
            | Self::OnePiece { .. }
            | Self::OffsetOverflow { .. } => pgmap::mm::error::errno::EINVAL,
            Self::Full { .. } => pgmap::mm::error::errno::EAGAIN,
            Self::MemoryLock { source, .. } | Self::Ring { source, .. } => {
                source.raw_os_error().unwrap_or(5)
            }
        }
    }
}
