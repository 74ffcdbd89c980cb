//! Why an address space over a pool did not do what it was asked.

use pgmap_mm::gup::GupError;
use pgmap_mm::mm::MapError;

use crate::error::Error;

/// Why an address space over a pool did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpaceError {
    /// The addresses cannot be a space: none, not whole pages, or of more than 48 bits.
    #[error("address space of {len_bytes:#x} bytes at {address:#x} is not whole 4 KiB pages")]
    BadSpace {
        /// First address.
        address: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// The file or its pool could not be had.
    #[error(transparent)]
    File(#[from] Error),
    /// The area could not be mapped or changed.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Not even the first page could be held.
    #[error(transparent)]
    Gup(#[from] GupError),
    /// The pages were pinned for reading and were to be written.
    #[error("the pages at {address:#x} are pinned for reading; pin them with WRITE")]
    NotForWriting {
        /// The first pinned address.
        address: u64,
    },
}

impl SpaceError {
    /// The Linux error number that says the same.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::BadSpace { .. } => pgmap_mm::error::errno::EINVAL,
            Self::File(error) => error.errno(),
            Self::Map(error) => error.errno(),
            Self::Gup(error) => error.errno(),
            Self::NotForWriting { .. } => pgmap_mm::error::errno::EACCES,
        }
    }
}
