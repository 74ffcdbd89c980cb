//! The catalog's header: which pool it is, and which part of the log is committed.
//!
//! Two slots, each in a page of its own: a page is what a device loses at once. Each change writes
//! the older slot, so the other one is whole whatever happens to the write. Both are whole after
//! every change that ended, so a slot that is not whole is damage, or the machine stopped in the
//! middle of the write; one that cannot be read is a page that failed.

use std::io;
use std::path::Path;

use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::memory_type::MemoryType;
use pgmap_os::{FileAccess, MemoryFile, OsError};

use crate::error::Error;
use crate::pool::catalog::log::FIRST_AREA_BYTES;
use crate::pool::catalog::{Head, StoredPool};
use crate::pool::directory::kind_of;
use crate::pool::identity::{BootId, FORMAT, PoolId};
use crate::pool::options::Durability;

/// Bytes before the log.
pub(crate) const HEADER_BYTES: u64 = 2 * PAGE_BYTES;
const SLOT_STEP_BYTES: u64 = PAGE_BYTES;
/// More than the records of all files that a pool has room for.
const MAX_AREA_BYTES: u64 = 1 << 48;
const MAGIC: [u8; 7] = *b"pgmapCT";
const NR_FIELDS: usize = 21;
pub(super) const SLOT_BYTES: usize = NR_FIELDS * 8 + 4;
/// How a catalog of format 1 begins, in a file of its own and on the device.
const FORMAT_1: [&[u8]; 2] = [b"redb", b"pgmapSB1"];

/// What a slot says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub id: PoolId,
    pub pool: StoredPool,
    /// Rises by one with each change.
    pub sequence: u64,
    /// Where the log starts.
    pub start: u64,
    /// Where its committed part ends.
    pub end: u64,
    /// Bytes of each of the two areas that it may lie in.
    pub area_bytes: u64,
    /// Files with numbers below this were synced, catalog and contents.
    pub synced_below: u64,
    /// The boot of the last owner.
    pub boot: BootId,
    /// Whether that owner stopped after it had synced all.
    pub is_clean: bool,
}

/// What lies in the place of a slot.
#[derive(Debug)]
pub(super) enum Slot {
    Whole(Box<Header>),
    Damaged,
    OtherFormat(u64),
    /// The memory gives an error.
    Unreadable(io::Error),
}

const fn low_high(number: u128) -> (u64, u64) {
    (number as u64, (number >> 64) as u64)
}

impl Header {
    /// Where in the file the slot of a change lies.
    pub(super) const fn offset(sequence: u64) -> u64 {
        sequence % 2 * SLOT_STEP_BYTES
    }

    /// Whether any log is so: where it lies and ends, and that there is a change after this one.
    pub(super) fn is_possible(&self) -> bool {
        let area_bytes = self.area_bytes;
        let is_area = (1..=MAX_AREA_BYTES).contains(&area_bytes);
        is_area
            && [HEADER_BYTES, HEADER_BYTES + area_bytes].contains(&self.start)
            && (self.start..=self.start + area_bytes).contains(&self.end)
            && self.sequence < u64::MAX / 2
            && self.pool.is_possible()
    }

    /// Bytes of a file with both areas.
    pub(super) const fn file_bytes(&self) -> u64 {
        HEADER_BYTES + 2 * self.area_bytes
    }

    pub(super) fn to_bytes(&self) -> [u8; SLOT_BYTES] {
        let mut magic = [b'0' + FORMAT as u8; 8];
        magic[..MAGIC.len()].copy_from_slice(&MAGIC);
        let (pool, (id, id_high), (boot, boot_high)) =
            (&self.pool, low_high(self.id.0), low_high(self.boot.0));
        let fields: [u64; NR_FIELDS] = [
            u64::from_le_bytes(magic),
            FORMAT,
            id,
            id_high,
            pool.size_bytes,
            pool.capacity_bytes,
            pool.max_files,
            u64::from(pool.memory_type.number()),
            u64::from(pool.smallest.number()),
            pool.head.number(),
            self.sequence,
            self.start,
            self.end,
            self.area_bytes,
            self.synced_below,
            boot,
            boot_high,
            u64::from(self.is_clean),
            u64::from(pool.page.number()),
            pool.durability.number(),
            pool.span_bytes,
        ];
        let mut bytes = [0; SLOT_BYTES];
        for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let sum = crc32fast::hash(&bytes[..NR_FIELDS * 8]);
        bytes[NR_FIELDS * 8..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let field = |number: usize| {
            bytes[number * 8..][..8]
                .iter()
                .rev()
                .fold(0, |value, &byte| value << 8 | u64::from(byte))
        };
        let wide = |number| u128::from(field(number)) | u128::from(field(number + 1)) << 64;
        let pool = StoredPool {
            size_bytes: field(4),
            capacity_bytes: field(5),
            max_files: field(6),
            memory_type: MemoryType::from_number(u8::try_from(field(7)).ok()?)?,
            smallest: Level::from_number(u8::try_from(field(8)).ok()?)?,
            head: Head::from_number(field(9))?,
            page: Level::from_number(u8::try_from(field(18)).ok()?)?,
            durability: Durability::from_number(field(19))?,
            span_bytes: field(20),
        };
        let header = Self {
            id: PoolId(wide(2)),
            pool,
            sequence: field(10),
            start: field(11),
            end: field(12),
            area_bytes: field(13),
            synced_below: field(14),
            boot: BootId(wide(15)),
            is_clean: field(17) != 0,
        };
        // Whatever reads back as written is whole: magic, format and checksum are part of it.
        (header.to_bytes() == *bytes).then_some(header)
    }
}

/// Reads both slots.
pub(super) fn read_slots(memory: &MemoryFile) -> [Slot; 2] {
    [0, 1].map(|place| read_slot(memory, place * SLOT_STEP_BYTES))
}

fn read_slot(memory: &MemoryFile, at: u64) -> Slot {
    let mut bytes = [0; SLOT_BYTES];
    let there = memory.len_bytes().saturating_sub(at).min(SLOT_BYTES as u64) as usize;
    if let Err(error) = memory.read_exact_at(&mut bytes[..there], at) {
        return Slot::Unreadable(error);
    }
    if let Some(header) = Header::from_bytes(&bytes) {
        // A slot in the other's place is as wrong as one that is not whole.
        let is_at_home = Header::offset(header.sequence) == at;
        return if is_at_home { Slot::Whole(Box::new(header)) } else { Slot::Damaged };
    }
    if FORMAT_1.iter().any(|magic| bytes.starts_with(magic)) {
        return Slot::OtherFormat(1);
    }
    match bytes.strip_prefix(&MAGIC) {
        Some([digit @ b'0'..=b'9', ..]) if u64::from(digit - b'0') != FORMAT => {
            Slot::OtherFormat(u64::from(digit - b'0'))
        }
        _ => Slot::Damaged,
    }
}

/// Whether `memory` begins as a catalog of any format does, or as a damaged one.
///
/// # Errors
/// What reading it says: what cannot be read may be a catalog.
pub(crate) fn is_catalog(memory: &MemoryFile) -> Result<bool, Error> {
    let slots = read_slots(memory);
    let is_any = slots.iter().any(|slot| !matches!(slot, Slot::Damaged | Slot::Unreadable(_)));
    let error = slots.into_iter().find_map(|slot| match slot {
        Slot::Unreadable(error) if !is_any => Some(error),
        _ => None,
    });
    match error {
        Some(error) => Err(OsError::new("read", memory.name(), error).into()),
        None => Ok(is_any),
    }
}

/// Whether the file at `path` is the catalog of a pool whose creation did not end. Such a file is
/// empty, zero, or a catalog: it is made with its room first and its header last.
pub(crate) fn is_unfinished(path: &Path) -> Result<bool, Error> {
    if !kind_of(path)?.is_some_and(|kind| kind.is_file()) {
        return Ok(false);
    }
    let memory = MemoryFile::open_named(path, FileAccess::ReadOnly)?;
    Ok(is_catalog(&memory)? || is_zero(&memory)?)
}

/// Whether a file is no longer than an empty catalog and zero throughout: the machine stopped
/// before its header was on the disk.
fn is_zero(memory: &MemoryFile) -> Result<bool, Error> {
    let len = memory.len_bytes();
    if len > HEADER_BYTES + 2 * FIRST_AREA_BYTES {
        return Ok(false);
    }
    let mut bytes = vec![0; len as usize];
    memory
        .read_exact_at(&mut bytes, 0)
        .map_err(|error| OsError::new("read", memory.name(), error))?;
    Ok(bytes.iter().all(|&byte| byte == 0))
}
