//! What an index says of a file beside its frames: user metadata, and a checksum of the contents.
//!
//! One word of the entry has the metadata's length and the checksum; the bytes lie in an area of
//! their own, which takes memory only where there are some. Both are written and read under the
//! entry's sequence, as the rest of it.

use core::ops::Range;

use super::{
    EntryId, FILE_ID, FileId, HEADER_WORDS, IndexFull, IndexLayout, IndexReader, IndexWriter,
    MAX_ATTEMPTS, METADATA, SEQUENCE, SLOT_WORDS,
};
use crate::sync::{Ordering, fence, pause};
use crate::words::{ReadWords, WriteWords};

/// Most bytes of user metadata of one file.
pub const MAX_METADATA_BYTES: usize = 256;
pub(super) const METADATA_WORDS: usize = MAX_METADATA_BYTES / 8;

// The word in the entry.
const LEN_MASK: u64 = 0xffff;
const HAS_CHECKSUM: u64 = 1 << 16;
const CHECKSUM_SHIFT: u32 = 32;

/// What is said of a file beside its name and extents.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Which file.
    pub id: FileId,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Its user metadata, at most [`MAX_METADATA_BYTES`].
    pub user: &'a [u8],
    /// The checksum of its contents, if it has one.
    pub checksum: Option<u32>,
}

impl Facts<'_> {
    /// A file without metadata.
    #[must_use]
    pub const fn new(id: FileId, len_bytes: u64) -> Self {
        Self { id, len_bytes, user: &[], checksum: None }
    }
}

impl IndexLayout {
    /// Where the metadata of all slots starts.
    pub(super) const fn metadata_start(&self) -> usize {
        (self.slots_start() + self.nr_slots * SLOT_WORDS).next_multiple_of(HEADER_WORDS)
    }

    const fn metadata(&self, slot: u32) -> Range<usize> {
        let start = self.metadata_start() + slot as usize * METADATA_WORDS;
        start..start + METADATA_WORDS
    }
}

impl<W: ReadWords> IndexReader<W> {
    /// The user metadata and the checksum of the file `id` in the entry `entry`. `None` if
    /// it is not there, or the owner wrote the entry each time.
    pub fn metadata(&self, entry: EntryId, id: FileId) -> Option<(Vec<u8>, Option<u32>)> {
        if entry.0 == 0 || entry.0 as usize >= self.layout.nr_slots {
            return None;
        }
        let at = self.layout.slot(entry.0);
        for _ in 0..MAX_ATTEMPTS {
            // Acquire: pairs with Release at the end of a write; data: the entry's words.
            let sequence = self.words.load(at + SEQUENCE, Ordering::Acquire);
            if sequence.is_multiple_of(2) {
                let is_it = self.word(at, FILE_ID) == id.0;
                let copied = if is_it { self.copy_metadata(entry.0, at) } else { None };
                // Acquire fence: the words were loaded before the second look at the sequence.
                fence(Ordering::Acquire);
                if self.words.load(at + SEQUENCE, Ordering::Relaxed) == sequence {
                    return copied;
                }
            }
            pause();
        }
        None
    }

    fn copy_metadata(&self, slot: u32, at: usize) -> Option<(Vec<u8>, Option<u32>)> {
        let word = self.word(at, METADATA);
        let len = (word & LEN_MASK) as usize;
        if len > MAX_METADATA_BYTES {
            return None;
        }
        let start = self.layout.metadata(slot).start;
        let words = (0..len.div_ceil(8)).map(|i| self.word(start, i));
        let mut user: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        user.truncate(len);
        let checksum = (word & HAS_CHECKSUM != 0).then_some((word >> CHECKSUM_SHIFT) as u32);
        Some((user, checksum))
    }
}

impl<W: WriteWords> IndexWriter<W> {
    /// Whether the next `nr_slots` slots can have metadata. Takes memory for it.
    ///
    /// # Errors
    /// [`IndexFull`] when not.
    pub fn check_metadata_room(&self, nr_slots: usize) -> Result<(), IndexFull> {
        let used_again = self.free.iter().rev().take(nr_slots).copied();
        let nr_never_used = nr_slots.saturating_sub(self.free.len()) as u32;
        let never_used = self.high..self.high.saturating_add(nr_never_used);
        used_again.chain(never_used).try_for_each(|slot| self.reserve_metadata(slot, &[0]))
    }

    /// Takes memory for the metadata of a slot, if there is any.
    pub(super) fn reserve_metadata(&self, slot: u32, user: &[u8]) -> Result<(), IndexFull> {
        if user.is_empty() || self.words.reserve(self.layout.metadata(slot)) {
            return Ok(());
        }
        Err(IndexFull { lacks_memory: true, ..self.full() })
    }

    /// Writes the metadata of the entry in `slot`, whose sequence is odd.
    pub(super) fn write_metadata(&self, slot: u32, facts: Facts<'_>) {
        let user = &facts.user[..facts.user.len().min(MAX_METADATA_BYTES)];
        let checksum = match facts.checksum {
            Some(checksum) => u64::from(checksum) << CHECKSUM_SHIFT | HAS_CHECKSUM,
            None => 0,
        };
        // Relaxed: the sequence word orders it.
        let word = self.layout.slot(slot) + METADATA;
        self.words.store(word, checksum | user.len() as u64, Ordering::Relaxed);
        let start = self.layout.metadata(slot).start;
        for (i, piece) in user.chunks(8).enumerate() {
            let mut bytes = [0; 8];
            bytes[..piece.len()].copy_from_slice(piece);
            self.words.store(start + i, u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
    }
}
