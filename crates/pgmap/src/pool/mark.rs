//! The mark: which change of the catalog a pool's data goes with, so that an old copy of either is found.
//!
//! The seal says whose a file is, and a copy made last week carries it too. An old catalog beside newer data
//! names frames that are other files' by now. So the data says in the page of its seal, half a page
//! behind that, how far the catalog was when an owner last began or stopped; see
//! docs/adr/0062-old-copies-are-found.md.
//!
//! # States
//!
//! ```text
//!   none ── an owner begins ──▶ open since change S ── stops ──▶ closed at change T
//!                                        ▲──────── the next begins ────────┘
//! ```
//!
//! An owner writes *open* before its first changes of the catalog, which say that it is there, and once more
//! after them; and *closed* before its last ones, which change nothing but that the catalog is clean. So
//! whenever it is killed the two go together.

use std::fs;
use std::os::unix::fs::FileExt;

use pgmap_mm::level::PAGE_BYTES;
use pgmap_os::{MemoryFile, OsError};

use crate::error::Error;
use crate::owner::catalog::CLOSING_CHANGES;
use crate::pool::identity::PoolId;

/// Where it lies in the last page.
const OFFSET: u64 = 2048;
const MAGIC: u64 = u64::from_le_bytes(*b"pgmapMK1");
const NR_FIELDS: usize = 5;
const MARK_BYTES: usize = NR_FIELDS * 8 + 4;

/// What the data says of the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// An owner took the pool over after this change.
    Open(u64),
    /// An owner stopped, and this was the last change.
    Closed(u64),
}

/// What the catalog says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CatalogState {
    /// The number of its last change.
    pub sequence: u64,
    /// Whether an owner stopped after it had synced all, and none began since.
    pub is_clean: bool,
    /// Whether the machine was restarted and the owner before that had not stopped: what it wrote last
    /// may be lost.
    pub is_unsynced: bool,
}

/// What lies in the place of a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FoundMark {
    /// A mark.
    Mark(Mark),
    /// Nothing was written there yet.
    None,
    /// Something that is no mark of this pool.
    Damaged,
}

impl Mark {
    fn to_bytes(self, id: PoolId) -> [u8; MARK_BYTES] {
        let (state, sequence) = match self {
            Self::Open(sequence) => (1, sequence),
            Self::Closed(sequence) => (2, sequence),
        };
        let (low, high) = (id.0 as u64, (id.0 >> 64) as u64);
        let fields: [u64; NR_FIELDS] = [MAGIC, low, high, state, sequence];
        let mut bytes = [0; MARK_BYTES];
        for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let sum = crc32fast::hash(&bytes[..NR_FIELDS * 8]);
        bytes[NR_FIELDS * 8..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Writes it to `data`, which has its seal.
    pub(crate) fn write(self, data: &MemoryFile, id: PoolId) -> Result<(), Error> {
        let Some(page) = data.len_bytes().checked_sub(PAGE_BYTES) else { return Ok(()) };
        fs::File::from(data.try_clone_fd()?)
            .write_all_at(&self.to_bytes(id), page + OFFSET)
            .map_err(|error| OsError::new("mark", data.name(), error).into())
    }

    /// Reads what `data` says, which has its seal.
    pub(crate) fn read(data: &MemoryFile, id: PoolId) -> Result<FoundMark, Error> {
        let page = data.len_bytes().saturating_sub(PAGE_BYTES);
        let mut bytes = [0; MARK_BYTES];
        fs::File::from(data.try_clone_fd()?)
            .read_exact_at(&mut bytes, page + OFFSET)
            .map_err(|error| OsError::new("read the mark of", data.name(), error))?;
        if bytes == [0; MARK_BYTES] {
            return Ok(FoundMark::None);
        }
        let number = bytes[(NR_FIELDS - 1) * 8..][..8].iter().rev();
        let sequence = number.fold(0, |value, &byte| value << 8 | u64::from(byte));
        let marks = [Self::Open(sequence), Self::Closed(sequence)];
        let mark = marks.into_iter().find(|mark| mark.to_bytes(id) == bytes);
        Ok(mark.map_or(FoundMark::Damaged, FoundMark::Mark))
    }

    /// Why the data that says this does not go with `catalog`; `None` if it does.
    pub(crate) fn mismatch(self, catalog: CatalogState) -> Option<String> {
        let CatalogState { sequence, is_clean, is_unsynced } = catalog;
        let (goes_with, is_older, is_newer) = match self {
            // Until it begins, the owner leaves the catalog as the last one did.
            Self::Open(since) => (since, sequence < since, is_clean && sequence > since),
            // The machine may have stopped before the next owner's mark was on the disk.
            Self::Closed(at) => {
                (at, sequence.saturating_add(CLOSING_CHANGES) < at, sequence > at && !is_unsynced)
            }
        };
        let which = match (is_older, is_newer) {
            (true, _) => "catalog is older than its data",
            (_, true) => "data is older than its catalog",
            _ => return None,
        };
        Some(format!(
            "its {which}: change {sequence} of the catalog and data of change {goes_with} do not \
             go together; put back files that were copied together"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(sequence: u64, is_clean: bool) -> CatalogState {
        CatalogState { sequence, is_clean, is_unsynced: false }
    }

    #[test]
    fn wherever_an_owner_was_killed_catalog_and_data_go_together() {
        let goes = |mark: Mark, catalog| mark.mismatch(catalog).is_none();
        // Between the mark and the first changes; between those and the second mark; after some; between
        // the mark and the last two.
        assert!(goes(Mark::Open(10), state(10, true)));
        assert!(goes(Mark::Open(10), state(12, false)));
        assert!(goes(Mark::Open(12), state(12, false)));
        assert!(goes(Mark::Open(10), state(10, false)));
        assert!(goes(Mark::Open(10), state(30, false)));
        assert!(goes(Mark::Closed(32), state(30, false)));
        assert!(goes(Mark::Closed(32), state(31, true)));
        assert!(goes(Mark::Closed(32), state(32, true)));
        // The next owner's mark was lost with the machine.
        let lost = CatalogState { sequence: 50, is_clean: false, is_unsynced: true };
        assert!(goes(Mark::Closed(32), lost));
    }

    #[test]
    fn an_old_copy_of_either_is_named() {
        let why = |mark: Mark, catalog| mark.mismatch(catalog).unwrap_or_default();
        assert!(why(Mark::Closed(32), state(29, false)).contains("catalog is older"));
        assert!(why(Mark::Open(32), state(30, true)).contains("catalog is older"));
        assert!(why(Mark::Closed(32), state(60, true)).contains("data is older"));
        assert!(why(Mark::Closed(32), state(33, false)).contains("data is older"));
        assert!(why(Mark::Open(32), state(60, true)).contains("data is older"));
    }
}
