//! Who a pool is: a random number that each of its files carries, and the boot it was last owned
//! in.
//!
//! Each file of a pool in a directory ends with one page that its layout does not count, the
//! *seal*: what the file is, which pool it belongs to and how long it is. A copy of the file takes
//! it along, which extended attributes and inode numbers do not do; see
//! docs/adr/0050-the-catalog-is-a-log.md.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;

use pgmap_mm::level::PAGE_BYTES;
use pgmap_os::{MemoryFile, MemoryKind, OsError, identity};

use crate::error::Error;

/// The format of pools that this version makes and opens.
pub(crate) const FORMAT: u64 = 8;

const MAGIC: u64 = u64::from_le_bytes(*b"pgmapID2");
/// Fields of a ledger's seal; those of other files have two less.
const MAX_FIELDS: usize = 8;
const MAX_SEAL_BYTES: usize = MAX_FIELDS * 8 + 4;

/// A pool's number, which no other pool has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PoolId(pub(crate) u128);

impl PoolId {
    /// A fresh one.
    pub(crate) fn random() -> Result<Self, Error> {
        Ok(Self(identity::random_id()?))
    }
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A boot of the machine: what was not synced before it ended may be lost after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BootId(pub(crate) u128);

impl BootId {
    /// The boot that the machine is in.
    pub(crate) fn current() -> Result<Self, Error> {
        Ok(Self(identity::boot_id()?))
    }
}

/// Which file of this machine a file is, as long as that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileNumber(u64);

impl FileNumber {
    pub(crate) const fn number(self) -> u64 {
        self.0
    }

    pub(crate) fn of(file: &MemoryFile) -> Result<Self, Error> {
        let metadata = fs::File::from(file.try_clone_fd()?)
            .metadata()
            .map_err(|error| OsError::new("inspect", file.name(), error))?;
        // A device has another file after it was unbound and bound again.
        let number = match file.kind() {
            MemoryKind::DevDax => metadata.rdev(),
            _ => metadata.ino() ^ metadata.dev().rotate_left(40),
        };
        Ok(Self(number))
    }
}

/// What a file of a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// The contents of files.
    Data,
    /// The same, with the catalog at its head, and perhaps the descriptors.
    DataWithHead,
    /// Descriptors.
    Vmemmap,
    /// The index.
    Index,
    /// The ledger of the client with this number, with the numbers of this very file and of the
    /// data file that the client maps: copies of either are other files.
    Ledger { client: u64, file: FileNumber, data: FileNumber },
}

impl FileKind {
    const fn numbers(self) -> (u64, u64) {
        match self {
            Self::Data => (1, 0),
            Self::DataWithHead => (2, 0),
            Self::Vmemmap => (3, 0),
            Self::Index => (4, 0),
            Self::Ledger { client, .. } => (5, client),
        }
    }

    const fn from_numbers(kind: u64, client: u64, files: [u64; 2]) -> Option<Self> {
        Some(match kind {
            1 => Self::Data,
            2 => Self::DataWithHead,
            3 => Self::Vmemmap,
            4 => Self::Index,
            5 => {
                let [file, data] = files;
                Self::Ledger { client, file: FileNumber(file), data: FileNumber(data) }
            }
            _ => return None,
        })
    }
}

/// The last page of a pool's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub id: PoolId,
    pub kind: FileKind,
    /// Bytes of the file before the seal.
    pub len_bytes: u64,
}

impl Seal {
    /// The length of a file whose layout needs `len_bytes`.
    pub(crate) const fn file_bytes(len_bytes: u64) -> u64 {
        len_bytes.next_multiple_of(PAGE_BYTES) + PAGE_BYTES
    }

    fn to_bytes(self) -> Vec<u8> {
        let (kind, client) = self.kind.numbers();
        let (low, high) = (self.id.0 as u64, (self.id.0 >> 64) as u64);
        let mut fields = vec![MAGIC, kind, client, low, high, self.len_bytes];
        if let FileKind::Ledger { file, data, .. } = self.kind {
            fields.extend([file.0, data.0]);
        }
        let mut bytes: Vec<u8> = fields.into_iter().flat_map(u64::to_le_bytes).collect();
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Makes `file` as long as it must be and writes the seal, whose page then has memory.
    pub(crate) fn write(self, file: &MemoryFile) -> Result<(), Error> {
        let at = Self::file_bytes(self.len_bytes) - PAGE_BYTES;
        file.reserve(at..at + PAGE_BYTES)?;
        file.write_all_at(&self.to_bytes(), at)
            .map_err(|error| OsError::new("write the seal of", file.name(), error).into())
    }

    /// Reads what `file` ends with.
    pub(crate) fn read(file: &MemoryFile) -> Result<Option<Self>, Error> {
        let Some(at) = file.len_bytes().checked_sub(PAGE_BYTES) else { return Ok(None) };
        let mut bytes = [0; MAX_SEAL_BYTES];
        file.read_exact_at(&mut bytes, at)
            .map_err(|error| OsError::new("read the seal of", file.name(), error))?;
        let field = |number: usize| {
            bytes[number * 8..][..8]
                .iter()
                .rev()
                .fold(0, |value, &byte| value << 8 | u64::from(byte))
        };
        let Some(kind) = FileKind::from_numbers(field(1), field(2), [field(6), field(7)]) else {
            return Ok(None);
        };
        let id = PoolId(u128::from(field(3)) | u128::from(field(4)) << 64);
        let seal = Self { id, kind, len_bytes: field(5) };
        let is_whole = bytes.starts_with(&seal.to_bytes())
            && seal.len_bytes.checked_next_multiple_of(PAGE_BYTES) == Some(at);
        Ok(if is_whole { Some(seal) } else { None })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use super::*;
    use pgmap_os::PageSize;

    #[test]
    fn a_seal_is_read_as_written_and_not_when_a_bit_of_it_changed() {
        let file = MemoryFile::anonymous("seal-test", 0, PageSize::Base).unwrap();
        let id = PoolId::random().unwrap();
        let kind = FileKind::Ledger { client: 7, file: FileNumber(8), data: FileNumber(9) };
        let seal = Seal { id, kind, len_bytes: 5000 };
        seal.write(&file).unwrap();
        assert_eq!(file.len_bytes(), 12288);
        assert_eq!(Seal::read(&file).unwrap(), Some(seal));
        let raw = fs::File::from(file.try_clone_fd().unwrap());
        for bit in 0..MAX_SEAL_BYTES as u64 * 8 {
            let mut byte = [0];
            raw.read_exact_at(&mut byte, 8192 + bit / 8).unwrap();
            raw.write_all_at(&[byte[0] ^ 1 << (bit % 8)], 8192 + bit / 8).unwrap();
            assert_eq!(Seal::read(&file).unwrap(), None, "bit {bit}");
            raw.write_all_at(&byte, 8192 + bit / 8).unwrap();
        }
        file.set_len(8192).unwrap();
        assert_eq!(Seal::read(&file).unwrap(), None);
    }

    /// A seal with the right checksum that says a length near 2^64 was an overflow where it was
    /// rounded up.
    #[test]
    fn a_seal_of_an_impossible_length_is_none() {
        let file = MemoryFile::anonymous("seal-test", 8192, PageSize::Base).unwrap();
        let id = PoolId::random().unwrap();
        for len_bytes in [u64::MAX, u64::MAX - 4096, 4097] {
            let seal = Seal { id, kind: FileKind::Data, len_bytes };
            let raw = fs::File::from(file.try_clone_fd().unwrap());
            raw.write_all_at(&seal.to_bytes(), 4096).unwrap();
            assert_eq!(Seal::read(&file).unwrap(), None);
        }
    }

    #[test]
    fn two_pools_have_two_numbers_and_one_boot() {
        assert!(PoolId::random().unwrap() != PoolId::random().unwrap());
        assert_eq!(BootId::current().unwrap(), BootId::current().unwrap());
    }
}
