//! The mark: which change of the catalog a pool's data goes with, so that an old copy of either is
//! found.
//!
//! The seal says whose a file is, and a copy made last week carries it too. An old catalog beside
//! newer data names frames that are other files' by now. So the data says in the page of its seal,
//! half a page behind that, how far the catalog was when an owner last began or stopped; see
//! docs/adr/0062-old-copies-are-found.md.
//!
//! There are two places for it, in different sectors, and each mark goes to the older one: whoever
//! is killed in the middle of a write leaves the mark before it, which goes with the catalog just
//! as well.
//!
//! # States
//!
//! ```text
//!   none ── an owner begins ──▶ open since change S ── stops ──▶ closed at change T
//!                                        ▲──────── the next begins ────────┘
//! ```
//!
//! An owner writes *open* before its first changes of the catalog, which say that it is there, and
//! once more after them; and *closed* before its last ones, which change nothing but that the
//! catalog is clean. So whenever it is killed the two go together.

use pgmap_mm::level::PAGE_BYTES;
use pgmap_os::{MemoryFile, OsError};

use crate::error::Error;
use crate::pool::catalog::CLOSING_CHANGES;
use crate::pool::identity::PoolId;

/// Where the two places lie in the last page.
const OFFSETS: [u64; 2] = [2048, 3072];
const MAGIC: u64 = u64::from_le_bytes(*b"pgmapMK1");
const NR_FIELDS: usize = 6;
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
    /// Whether the machine was restarted and the owner before that had not stopped: what it wrote
    /// last may be lost.
    pub is_unsynced: bool,
}

/// What data says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FoundMark {
    /// The newest mark that is whole; the other place may hold none.
    Mark {
        /// It.
        mark: Mark,
        /// Rises by one with each mark.
        serial: u64,
        /// Whether the other place is damaged.
        is_alone: bool,
    },
    /// Nothing was written there yet, or not to the end.
    None,
    /// Something that is no mark of this pool.
    Damaged,
}

/// What lies in one place.
enum MarkPlace {
    Mark(Mark, u64),
    Empty,
    Damaged,
}

impl Mark {
    fn to_bytes(self, id: PoolId, serial: u64) -> [u8; MARK_BYTES] {
        let (state, sequence) = match self {
            Self::Open(sequence) => (1, sequence),
            Self::Closed(sequence) => (2, sequence),
        };
        let (low, high) = (id.0 as u64, (id.0 >> 64) as u64);
        let fields: [u64; NR_FIELDS] = [MAGIC, low, high, serial, state, sequence];
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
        let serial = match Self::read(data, id)? {
            FoundMark::Mark { serial, .. } => serial.wrapping_add(1),
            FoundMark::None | FoundMark::Damaged => 0,
        };
        let Some(page) = data.len_bytes().checked_sub(PAGE_BYTES) else { return Ok(()) };
        let at = page + OFFSETS[(serial % 2) as usize];
        data.write_all_at(&self.to_bytes(id, serial), at)
            .map_err(|error| OsError::new("mark", data.name(), error).into())
    }

    /// Reads what `data` says, which has its seal.
    pub(crate) fn read(data: &MemoryFile, id: PoolId) -> Result<FoundMark, Error> {
        let places = [Self::read_place(data, id, 0)?, Self::read_place(data, id, 1)?];
        let is_alone = places.iter().any(|place| matches!(place, MarkPlace::Damaged));
        Ok(match places {
            [MarkPlace::Mark(_, older), MarkPlace::Mark(mark, serial)] if serial > older => {
                FoundMark::Mark { mark, serial, is_alone }
            }
            [MarkPlace::Mark(mark, serial), _] | [_, MarkPlace::Mark(mark, serial)] => {
                FoundMark::Mark { mark, serial, is_alone }
            }
            // The first one goes to the first place, and may not have been written to the end.
            [_, MarkPlace::Empty] => FoundMark::None,
            _ => FoundMark::Damaged,
        })
    }

    fn read_place(data: &MemoryFile, id: PoolId, place: usize) -> Result<MarkPlace, Error> {
        let page = data.len_bytes().saturating_sub(PAGE_BYTES);
        let mut bytes = [0; MARK_BYTES];
        data.read_exact_at(&mut bytes, page + OFFSETS[place])
            .map_err(|error| OsError::new("read the mark of", data.name(), error))?;
        if bytes == [0; MARK_BYTES] {
            return Ok(MarkPlace::Empty);
        }
        let field = |number: usize| {
            let bytes = bytes[number * 8..][..8].iter().rev();
            bytes.fold(0, |value, &byte| value << 8 | u64::from(byte))
        };
        let (serial, sequence) = (field(NR_FIELDS - 3), field(NR_FIELDS - 1));
        let marks = [Self::Open(sequence), Self::Closed(sequence)];
        let mark = marks.into_iter().find(|mark| mark.to_bytes(id, serial) == bytes);
        let is_at_home = serial % 2 == place as u64;
        Ok(match mark.filter(|_| is_at_home) {
            Some(mark) => MarkPlace::Mark(mark, serial),
            None => MarkPlace::Damaged,
        })
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
        // Between the mark and the first changes; between those and the second mark; after some;
        // between the mark and the last two.
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
    fn a_mark_that_was_not_written_to_the_end_leaves_the_one_before() {
        let page = PAGE_BYTES;
        let file = MemoryFile::anonymous("mark-test", 2 * page, pgmap_os::PageSize::Base).unwrap();
        let id = PoolId(7);
        let found = || match Mark::read(&file, id).unwrap() {
            FoundMark::Mark { mark, is_alone, .. } => Some((mark, is_alone)),
            FoundMark::None => None,
            FoundMark::Damaged => panic!("no mark is left"),
        };
        assert_eq!(found(), None);
        // The first ever, not to the end.
        file.write_all_at(&[7; 20], page + OFFSETS[0]).unwrap();
        assert_eq!(found(), None);
        let mut before = None;
        for sequence in 1..10 {
            let mark = Mark::Open(sequence);
            mark.write(&file, id).unwrap();
            let (now, is_alone) = found().unwrap();
            assert!(now == mark && !is_alone);
            if let Some(before) = before {
                let place = page + OFFSETS[usize::from(sequence % 2 == 0)];
                let mut whole = [0; MARK_BYTES];
                file.read_exact_at(&mut whole, place).unwrap();
                file.write_all_at(&[0; 7], place + 30).unwrap();
                file.write_all_at(&[1], place + 45).unwrap();
                assert_eq!(found(), Some((before, true)));
                file.write_all_at(&whole, place).unwrap();
            }
            before = Some(mark);
        }
        file.write_all_at(&[1; 2048], page + 2048).unwrap();
        assert_eq!(Mark::read(&file, id).unwrap(), FoundMark::Damaged);
        assert_eq!(Mark::read(&file, PoolId(8)).unwrap(), FoundMark::Damaged);
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
