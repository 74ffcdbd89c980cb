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
    #[error("only {held_bytes} of {wanted_bytes} bytes from {address:#x} on can be held")]
    Short {
        /// First address.
        address: u64,
        /// Bytes that could be held.
        held_bytes: u64,
        /// Bytes asked for.
        wanted_bytes: u64,
    },
    /// The pages lie in more pieces than the ring has entries.
    #[error("{nr_pieces} pieces in a ring of {nr_entries} entries; move less at a time")]
    TooManyPieces {
        /// Pieces.
        nr_pieces: usize,
        /// Entries.
        nr_entries: u32,
    },
    /// The current position of a file was asked for, but the pages lie in several pieces, which are
    /// moved in any order.
    #[error(
        "{nr_pieces} pieces at the current position (offset u64::MAX): give an offset, or move one \
         piece at a time, here {piece_bytes} bytes"
    )]
    CurrentPosition {
        /// Pieces.
        nr_pieces: usize,
        /// Bytes of the first.
        piece_bytes: u64,
    },
    /// The transfer would end behind the last offset that a file can have.
    #[error("{len_bytes} bytes from {file_offset:#x} on end behind the last offset of any file")]
    OffsetOverflow {
        /// First offset in the file.
        file_offset: u64,
        /// Bytes asked for.
        len_bytes: u64,
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
            | Self::CurrentPosition { .. }
            | Self::OffsetOverflow { .. } => pgmap::mm::error::errno::EINVAL,
            Self::Ring { source, .. } => source.raw_os_error().unwrap_or(5),
        }
    }
}
