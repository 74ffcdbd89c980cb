//! The index: names to extents in shared memory, one writer, readers without a lock and a call.
//!
//! # States
//!
//! ```text
//!   slot:   free ── filled, then linked ──▶ in a chain ── unlinked, then emptied ──▶ free
//!   entry:  even sequence = whole        odd sequence = being written
//! ```
//!
//! # Layout
//!
//! A header page, a power of two of bucket words, slots of 64 words, and 32 words of user metadata
//! for each slot. A bucket word is the number of the first slot of its chain; slot 0 is never used,
//! so 0 ends a chain. A slot is an entry (sequence, hash, next, id, length, counts, name, eight
//! extents) or holds further extents of one.
//!
//! # Who may touch what
//!
//! The owner writes. Readers load, and believe nothing (I9): numbers are range-checked, walks have
//! a named bound, extents pass through their constructor.
//!
//! # Orderings
//!
//! Writer of an entry: `sequence = odd; fence(Release); words; sequence = even (Release)`. Reader:
//! `sequence (Acquire); words; fence(Acquire); sequence`: equal and even means that the words are
//! of one write. Writer of a chain: `structure = odd; fence(Release); links; structure = even
//! (Release)` around every unlinking; a reader that found nothing believes it only if the structure
//! word did not move and was even.
//!
//! # Lost races
//!
//! *Look-up against unlink.* If the look-up is first it returns extents whose life words the owner
//! is about to change; the pin that follows fails its check (I5) and the caller looks up again. If
//! the unlink is first the reader sees the sequence move, or finds nothing.
//!
//! *Look-up against unlink and re-create of the same name.* Either sequence or life word tells: the
//! new file has a new stamp, and stamps are never given twice (I4).
//!
//! *Look-up against rename.* The new name is linked before the old one is unlinked, so one of them
//! is always found by a reader that asks for the old one first; it may find both for a moment.
//!
//! # Differs from Linux
//!
//! A directory look-up takes no reference on the inode here: the pin does, on the frames.

use crate::descriptor::Descriptor;
use crate::extent::Extent;
use crate::level::Level;
use crate::pfn::PfnRange;

use self::metadata::METADATA_WORDS;

mod metadata;
mod reader;
mod room;
mod state;
mod writer;
pub use self::metadata::{Facts, MAX_METADATA_BYTES};
pub use self::reader::IndexReader;
pub use self::room::IndexFull;
pub use self::writer::IndexWriter;

/// Longest name in bytes, as `NAME_MAX`.
pub const MAX_NAME_BYTES: usize = 255;
/// Extents in the entry itself.
pub const INLINE_EXTENTS: usize = 8;
/// Most extents of one file.
pub const MAX_EXTENTS: usize = INLINE_EXTENTS + MAX_MORE_SLOTS * EXTENTS_PER_MORE;

const MAX_MORE_SLOTS: usize = 50;
const EXTENTS_PER_MORE: usize = 20;
/// Entries one look-up walks before it gives the chain up as being changed under it.
const MAX_CHAIN: usize = 4096;
/// Attempts of one look-up before it says [`Lookup::Busy`].
const MAX_ATTEMPTS: usize = 64;

const SLOT_WORDS: usize = 64;
const HEADER_WORDS: usize = 512;
// Header words.
const MAGIC: usize = 0;
const STRUCTURE: usize = 1;
const SEED: usize = 2;
const DETACH_EPOCH: usize = 3;
const HIGH: usize = 4;
const CLOSED: usize = 5;
const BACKINGS: usize = 6;
const GENERATION: usize = 7;
// Words of an entry.
const SEQUENCE: usize = 0;
const HASH: usize = 1;
const NEXT: usize = 2;
const FILE_ID: usize = 3;
const LEN_BYTES: usize = 4;
const SHAPE: usize = 5;
const MORE: usize = 6;
const METADATA: usize = 7;
const NAME: usize = 8;
const NAME_WORDS: usize = 32;
const EXTENTS: usize = NAME + NAME_WORDS;
const WORDS_PER_EXTENT: usize = 3;
/// Where extents start in a slot of further ones. Its `NEXT` says which slot follows; its `FILE_ID`
/// stays 0, so that a reader who takes it for the entry that it once was finds no file there.
const MORE_EXTENTS: usize = 4;

const INDEX_MAGIC: u64 = u64::from_le_bytes(*b"pgmapIX3");

/// How many buckets and slots an index has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexLayout {
    nr_buckets: usize,
    nr_slots: usize,
}

impl IndexLayout {
    /// Room for `max_files` files of few extents each, and some of many.
    #[must_use]
    pub const fn for_files(max_files: usize) -> Self {
        let max_files = if max_files == 0 { 1 } else { max_files };
        Self { nr_buckets: max_files.next_power_of_two(), nr_slots: max_files + max_files / 8 + 2 }
    }

    /// Slots, of which the first is never used.
    #[must_use]
    pub const fn nr_slots(&self) -> usize {
        self.nr_slots
    }

    /// Words the index needs, whole pages.
    #[must_use]
    pub const fn nr_words(&self) -> usize {
        (self.metadata_start() + self.nr_slots * METADATA_WORDS).next_multiple_of(HEADER_WORDS)
    }

    const fn slots_start(&self) -> usize {
        HEADER_WORDS + self.nr_buckets.next_multiple_of(SLOT_WORDS)
    }

    const fn bucket(&self, hash: u64) -> usize {
        HEADER_WORDS + (hash as usize & (self.nr_buckets - 1))
    }

    const fn slot(&self, slot: u32) -> usize {
        self.slots_start() + slot as usize * SLOT_WORDS
    }
}

/// Number of an entry. Says nothing without the file id that it is checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryId(u32);

impl EntryId {
    /// An entry number that somebody else named; checked when it is used.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// A number that no other file of the pool has or had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

/// What the index says of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Where it is said.
    pub entry: EntryId,
    /// Which file.
    pub id: FileId,
    /// Its length in bytes; the extents may be longer.
    pub len_bytes: u64,
    /// Its frames in file order.
    pub extents: ExtentList,
}

/// What the index says of a file that lies in one extent, as most do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OneExtentFile {
    /// Where it is said.
    pub entry: EntryId,
    /// Its length in bytes; the extent may be longer.
    pub len_bytes: u64,
    /// Its frames.
    pub extent: Extent,
}

/// Extents in file order; the first few need no allocation.
#[derive(Clone, PartialEq, Eq)]
pub struct ExtentList {
    nr_inline: usize,
    inline: [Extent; INLINE_EXTENTS],
    more: Vec<Extent>,
}

const NO_EXTENT: Extent = Extent {
    run: match PfnRange::new(0, 1) {
        Some(run) => run,
        None => panic!("a run of one frame exists"),
    },
    head_level: Level::Pte,
    life: Descriptor::FREE,
};

impl Default for ExtentList {
    fn default() -> Self {
        Self { nr_inline: 0, inline: [NO_EXTENT; INLINE_EXTENTS], more: Vec::new() }
    }
}

impl core::fmt::Debug for ExtentList {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl ExtentList {
    /// Adds an extent at the end.
    pub fn push(&mut self, extent: Extent) {
        if self.nr_inline < INLINE_EXTENTS {
            self.inline[self.nr_inline] = extent;
            self.nr_inline += 1;
        } else {
            self.more.push(extent);
        }
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.nr_inline + self.more.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The extents in file order.
    pub fn iter(&self) -> impl Iterator<Item = &Extent> {
        self.inline[..self.nr_inline].iter().chain(&self.more)
    }

    /// The only extent; `None` if there are more or none.
    #[inline]
    #[must_use]
    pub fn only(&self) -> Option<&Extent> {
        self.first().filter(|_| self.len() == 1)
    }

    /// The first extent.
    #[inline]
    #[must_use]
    pub fn first(&self) -> Option<&Extent> {
        self.inline[..self.nr_inline].first()
    }

    /// Frames in all extents together.
    #[must_use]
    pub fn nr_pages(&self) -> u64 {
        self.iter().map(|extent| extent.run.nr_pages()).sum()
    }
}

impl FromIterator<Extent> for ExtentList {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let mut list = Self::default();
        for extent in extents {
            list.push(extent);
        }
        list
    }
}

/// What a look-up found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup<T = FileEntry> {
    /// The file, as one consistent picture, or what was asked of it.
    Found(T),
    /// No file had this name at some moment of the look-up.
    Absent,
    /// The owner changed the chain each time; ask again, or ask the owner.
    Busy,
}

/// A name that an index can hold: 1 to [`MAX_NAME_BYTES`] bytes, none of them NUL.
#[must_use]
pub fn is_valid_name(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME_BYTES && !name.contains(&0)
}

fn hash_name(seed: u64, name: &[u8]) -> u64 {
    // Multiply-and-fold over 8-byte pieces; the seed is the pool's, so that chains cannot be aimed
    // at.
    const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = seed ^ (name.len() as u64).wrapping_mul(PRIME);
    for word in name_words(name) {
        let product = u128::from(hash ^ word) * u128::from(PRIME | 1);
        hash = (product as u64) ^ ((product >> 64) as u64) ^ seed.rotate_left(23);
    }
    hash ^ (hash >> 29)
}

fn name_words(name: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let (pieces, rest) = name.as_chunks();
    // Not copied as a slice: that is a call for each word.
    let last = rest.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    let last = (!rest.is_empty()).then_some(last);
    pieces.iter().map(|&piece| u64::from_le_bytes(piece)).chain(last)
}
