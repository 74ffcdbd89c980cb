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
use crate::sync::{Ordering, fence, pause};
use crate::words::{ReadWords, WriteWords};

use self::metadata::METADATA_WORDS;

mod metadata;
mod room;
mod state;
pub use self::metadata::{Facts, MAX_METADATA_BYTES};
pub use self::room::IndexFull;

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
#[expect(
    clippy::large_enum_variant,
    reason = "a look-up that finds a small file allocates nothing"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The file, as one consistent picture.
    Found(FileEntry),
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
    for piece in name.chunks(8) {
        let mut bytes = [0; 8];
        bytes[..piece.len()].copy_from_slice(piece);
        let product = u128::from(hash ^ u64::from_le_bytes(bytes)) * u128::from(PRIME | 1);
        hash = (product as u64) ^ ((product >> 64) as u64) ^ seed.rotate_left(23);
    }
    hash ^ (hash >> 29)
}

fn name_words(name: &[u8]) -> impl Iterator<Item = u64> + '_ {
    name.chunks(8).map(|piece| {
        let mut bytes = [0; 8];
        bytes[..piece.len()].copy_from_slice(piece);
        u64::from_le_bytes(bytes)
    })
}

/// How a walk along a chain, or a look at one entry, ended.
#[expect(
    clippy::large_enum_variant,
    reason = "a look-up that finds a small file allocates nothing"
)]
enum Walk {
    Found(FileEntry),
    End,
    Disturbed,
}

/// A reader's view of the index.
#[derive(Debug)]
pub struct IndexReader<W> {
    layout: IndexLayout,
    words: W,
    seed: u64,
}

impl<W: ReadWords> IndexReader<W> {
    /// Reads the index in `words`; `None` if there are too few or nobody made an index there.
    #[must_use]
    pub fn new(layout: IndexLayout, words: W) -> Option<Self> {
        if words.nr_words() < layout.nr_words() {
            return None;
        }
        // Acquire: pairs with the Release that made the index; data: the seed.
        if words.load(MAGIC, Ordering::Acquire) != INDEX_MAGIC {
            return None;
        }
        let seed = words.load(SEED, Ordering::Relaxed);
        Some(Self { layout, words, seed })
    }

    /// Looks `name` up without a lock.
    pub fn lookup(&self, name: &[u8]) -> Lookup {
        if !is_valid_name(name) {
            return Lookup::Absent;
        }
        let hash = hash_name(self.seed, name);
        for _ in 0..MAX_ATTEMPTS {
            // Acquire: pairs with the writer's Release at the end of a change of links.
            let structure = self.words.load(STRUCTURE, Ordering::Acquire);
            match self.walk(hash, name) {
                Walk::Found(found) => return Lookup::Found(found),
                Walk::Disturbed => {}
                Walk::End => {
                    // Acquire fence: the links were loaded before the second look at the structure
                    // word; pairs with the writer's Release fence.
                    fence(Ordering::Acquire);
                    if structure.is_multiple_of(2)
                        && self.words.load(STRUCTURE, Ordering::Relaxed) == structure
                    {
                        return Lookup::Absent;
                    }
                }
            }
            pause();
        }
        Lookup::Busy
    }

    /// Reads the entry `entry` again, if it is still the file `id`.
    pub fn reread(&self, entry: EntryId, id: FileId) -> Lookup {
        if entry.0 == 0 || entry.0 as usize >= self.layout.nr_slots {
            return Lookup::Absent;
        }
        for _ in 0..MAX_ATTEMPTS {
            match self.read_entry(entry.0, |at| self.word(at, FILE_ID) == id.0) {
                Walk::Found(found) => return Lookup::Found(found),
                Walk::End => return Lookup::Absent,
                Walk::Disturbed => pause(),
            }
        }
        Lookup::Busy
    }

    fn walk(&self, hash: u64, name: &[u8]) -> Walk {
        // Acquire: pairs with the Release that links a filled slot; data: the slot's words.
        let mut next = self.words.load(self.layout.bucket(hash), Ordering::Acquire);
        for _ in 0..MAX_CHAIN {
            if next == 0 {
                return Walk::End;
            }
            let Ok(slot) = u32::try_from(next) else { return Walk::Disturbed };
            if slot as usize >= self.layout.nr_slots {
                return Walk::Disturbed;
            }
            match self.read_entry(slot, |at| self.is_named(at, hash, name)) {
                Walk::End => {}
                // An entry that is being written may be the one that is looked for.
                found_or_disturbed => return found_or_disturbed,
            }
            // Acquire: as for the bucket.
            next = self.words.load(self.layout.slot(slot) + NEXT, Ordering::Acquire);
        }
        Walk::Disturbed
    }

    /// The entry in `slot` if `wanted` says so, [`Walk::End`] when it is another.
    fn read_entry(&self, slot: u32, wanted: impl Fn(usize) -> bool) -> Walk {
        let at = self.layout.slot(slot);
        // Acquire: pairs with Release at the end of a write; data: the entry's words.
        let sequence = self.words.load(at + SEQUENCE, Ordering::Acquire);
        if !sequence.is_multiple_of(2) {
            return Walk::Disturbed;
        }
        let entry = if wanted(at) { self.copy_entry(slot, at) } else { Walk::End };
        // Acquire fence: the words were loaded before the second look at the sequence; pairs with
        // the writer's Release fence after it made the sequence odd.
        fence(Ordering::Acquire);
        if self.words.load(at + SEQUENCE, Ordering::Relaxed) != sequence {
            return Walk::Disturbed;
        }
        entry
    }

    #[inline]
    fn word(&self, at: usize, offset: usize) -> u64 {
        // Relaxed: the sequence word on both sides orders it.
        self.words.load(at + offset, Ordering::Relaxed)
    }

    fn is_named(&self, at: usize, hash: u64, name: &[u8]) -> bool {
        self.word(at, HASH) == hash
            && (self.word(at, SHAPE) & 0xffff) as usize == name.len()
            && name_words(name).enumerate().all(|(i, word)| self.word(at, NAME + i) == word)
    }

    /// The file in the entry at `at`. An entry that names a file and cannot be true was never
    /// written so: to go on along the chain would be to read it again for every turn of a chain
    /// that is a circle.
    fn copy_entry(&self, slot: u32, at: usize) -> Walk {
        let id = FileId(self.word(at, FILE_ID));
        if id.0 == 0 {
            return Walk::End;
        }
        let len_bytes = self.word(at, LEN_BYTES);
        self.copy_extents(at).map_or(Walk::Disturbed, |extents| {
            Walk::Found(FileEntry { entry: EntryId(slot), id, len_bytes, extents })
        })
    }

    fn copy_extents(&self, at: usize) -> Option<ExtentList> {
        let nr_extents = (self.word(at, SHAPE) >> 16) as usize;
        if nr_extents > MAX_EXTENTS {
            return None;
        }
        let mut extents = ExtentList::default();
        for i in 0..nr_extents.min(INLINE_EXTENTS) {
            extents.push(self.extent_at(at + EXTENTS + i * WORDS_PER_EXTENT)?);
        }
        let mut more = self.word(at, MORE);
        while extents.len() < nr_extents {
            let more_slot = u32::try_from(more).ok()?;
            if more_slot == 0 || more_slot as usize >= self.layout.nr_slots {
                return None;
            }
            let base = self.layout.slot(more_slot);
            let left = nr_extents - extents.len();
            for i in 0..left.min(EXTENTS_PER_MORE) {
                extents.push(self.extent_at(base + MORE_EXTENTS + i * WORDS_PER_EXTENT)?);
            }
            more = self.word(base, NEXT);
        }
        Some(extents)
    }

    fn extent_at(&self, at: usize) -> Option<Extent> {
        Extent::from_words([self.word(at, 0), self.word(at, 1), self.word(at, 2)])
    }
}

/// The owner's side of the index.
#[derive(Debug)]
pub struct IndexWriter<W> {
    layout: IndexLayout,
    words: W,
    seed: u64,
    /// Slots below this were used at some time.
    high: u32,
    free: Vec<u32>,
}

impl<W: WriteWords> IndexWriter<W> {
    /// Makes an empty index in all-zero `words`; `None` if there are too few.
    #[must_use]
    pub fn new(layout: IndexLayout, words: W, seed: u64) -> Option<Self> {
        if words.nr_words() < layout.nr_words() {
            return None;
        }
        words.store(SEED, seed, Ordering::Relaxed);
        // Release: pairs with Acquire in `IndexReader::new`; data: the seed.
        words.store(MAGIC, INDEX_MAGIC, Ordering::Release);
        Some(Self { layout, words, seed, high: 1, free: Vec::new() })
    }

    /// Adds a file. The caller knows that no file has this valid name.
    ///
    /// # Errors
    /// [`IndexFull`]; nothing is changed then.
    pub fn insert(
        &mut self,
        name: &[u8],
        facts: Facts<'_>,
        extents: &ExtentList,
    ) -> Result<EntryId, IndexFull> {
        let slot = self.take_slot()?;
        if let Err(full) = self.write_entry(slot, name, facts, extents) {
            self.free.push(slot);
            return Err(full);
        }
        let at = self.layout.slot(slot);
        let bucket = self.layout.bucket(hash_name(self.seed, name));
        let head = self.words.load(bucket, Ordering::Relaxed);
        self.words.store(at + NEXT, head, Ordering::Relaxed);
        // Release: links a filled slot; pairs with Acquire in `walk`.
        self.words.store(bucket, u64::from(slot), Ordering::Release);
        Ok(EntryId(slot))
    }

    /// Writes what is said of a file again.
    ///
    /// # Errors
    /// [`IndexFull`], only where the file has more extents than before; nothing is changed then.
    pub fn update(
        &mut self,
        entry: EntryId,
        name: &[u8],
        facts: Facts<'_>,
        extents: &ExtentList,
    ) -> Result<(), IndexFull> {
        self.write_entry(entry.0, name, facts, extents)
    }

    /// Gives a file another name: links it there, then unlinks it here. Returns its new entry.
    ///
    /// # Errors
    /// [`IndexFull`]; nothing is changed then.
    pub fn rename(
        &mut self,
        entry: EntryId,
        names: (&[u8], &[u8]),
        facts: Facts<'_>,
        extents: &ExtentList,
    ) -> Result<EntryId, IndexFull> {
        let renamed = self.insert(names.1, facts, extents)?;
        self.remove(entry, names.0);
        Ok(renamed)
    }

    /// Removes a file.
    pub fn remove(&mut self, entry: EntryId, name: &[u8]) {
        let at = self.layout.slot(entry.0);
        self.unlink(entry.0, name);
        let more = self.more_slots(at);
        let sequence = self.begin(at);
        self.words.store(at + FILE_ID, 0, Ordering::Relaxed);
        self.words.store(at + HASH, 0, Ordering::Relaxed);
        self.words.store(at + SHAPE, 0, Ordering::Relaxed);
        self.words.store(at + MORE, 0, Ordering::Relaxed);
        self.end(at, sequence);
        self.free.extend(more);
        self.free.push(entry.0);
    }

    /// Makes the sequence odd and returns it.
    fn begin(&self, at: usize) -> u64 {
        let sequence = self.words.load(at + SEQUENCE, Ordering::Relaxed) | 1;
        self.words.store(at + SEQUENCE, sequence, Ordering::Relaxed);
        // Release: the words change after the sequence is odd; pairs with the reader's fence.
        fence(Ordering::Release);
        sequence
    }

    fn end(&self, at: usize, sequence: u64) {
        // Release: the words are whole; pairs with the reader's Acquire.
        self.words.store(at + SEQUENCE, sequence.wrapping_add(1), Ordering::Release);
    }

    fn write_entry(
        &mut self,
        slot: u32,
        name: &[u8],
        facts: Facts<'_>,
        extents: &ExtentList,
    ) -> Result<(), IndexFull> {
        if extents.len() > MAX_EXTENTS {
            return Err(self.full());
        }
        self.reserve_metadata(slot, facts.user)?;
        let at = self.layout.slot(slot);
        let nr_more = extents.len().saturating_sub(INLINE_EXTENTS).div_ceil(EXTENTS_PER_MORE);
        // The slots it has are written over while the sequence is odd, so an entry that does not
        // grow never lacks room.
        let mut more = self.more_slots(at);
        let nr_had = more.len();
        while more.len() < nr_more {
            match self.take_slot() {
                Ok(slot) => more.push(slot),
                Err(full) => {
                    self.free.extend(more.drain(nr_had..));
                    return Err(full);
                }
            }
        }
        let surplus = more.split_off(nr_more);
        let sequence = self.begin(at);
        self.words.store(at + HASH, hash_name(self.seed, name), Ordering::Relaxed);
        self.words.store(at + FILE_ID, facts.id.0, Ordering::Relaxed);
        self.words.store(at + LEN_BYTES, facts.len_bytes, Ordering::Relaxed);
        self.write_metadata(slot, facts);
        let shape = (extents.len() as u64) << 16 | name.len() as u64;
        self.words.store(at + SHAPE, shape, Ordering::Relaxed);
        let first_more = more.first().copied().unwrap_or(0);
        self.words.store(at + MORE, u64::from(first_more), Ordering::Relaxed);
        for (i, word) in name_words(name).enumerate() {
            self.words.store(at + NAME + i, word, Ordering::Relaxed);
        }
        self.write_extents(at, &more, extents);
        self.end(at, sequence);
        self.free.extend(surplus);
        Ok(())
    }

    fn write_extents(&self, at: usize, more_slots: &[u32], extents: &ExtentList) {
        for (i, extent) in extents.iter().enumerate() {
            let place = if i < INLINE_EXTENTS {
                at + EXTENTS + i * WORDS_PER_EXTENT
            } else {
                let further = i - INLINE_EXTENTS;
                self.layout.slot(more_slots[further / EXTENTS_PER_MORE])
                    + MORE_EXTENTS
                    + further % EXTENTS_PER_MORE * WORDS_PER_EXTENT
            };
            for (j, word) in extent.to_words().into_iter().enumerate() {
                self.words.store(place + j, word, Ordering::Relaxed);
            }
        }
        for (i, &more) in more_slots.iter().enumerate() {
            let next = more_slots.get(i + 1).copied().unwrap_or(0);
            let link = self.layout.slot(more) + NEXT;
            self.words.store(link, u64::from(next), Ordering::Relaxed);
        }
    }

    /// The slots of further extents of the entry at `at`; `None` if there is no file in it, for
    /// then the slot may last have held further extents itself.
    fn more_slots(&self, at: usize) -> Vec<u32> {
        let mut slots = Vec::new();
        if self.words.load(at + FILE_ID, Ordering::Relaxed) == 0 {
            return slots;
        }
        let mut more = self.words.load(at + MORE, Ordering::Relaxed);
        while let Ok(slot @ 1..) = u32::try_from(more)
            && slots.len() < MAX_MORE_SLOTS
            && (slot as usize) < self.layout.nr_slots
        {
            slots.push(slot);
            more = self.words.load(self.layout.slot(slot) + NEXT, Ordering::Relaxed);
        }
        slots
    }

    fn unlink(&self, slot: u32, name: &[u8]) {
        let bucket = self.layout.bucket(hash_name(self.seed, name));
        let next = self.words.load(self.layout.slot(slot) + NEXT, Ordering::Relaxed);
        let structure = self.words.load(STRUCTURE, Ordering::Relaxed);
        // It is odd already while an index is being reopened, and stays odd then.
        self.words.store(STRUCTURE, structure | 1, Ordering::Relaxed);
        // Release: links change after the structure word is odd; pairs with the reader's fence.
        fence(Ordering::Release);
        let mut link = bucket;
        for _ in 0..self.layout.nr_slots {
            let here = self.words.load(link, Ordering::Relaxed);
            if here == u64::from(slot) {
                self.words.store(link, next, Ordering::Release);
                break;
            }
            match u32::try_from(here) {
                Ok(other @ 1..) if (other as usize) < self.layout.nr_slots => {
                    link = self.layout.slot(other) + NEXT;
                }
                _ => break,
            }
        }
        // Release: links are whole; pairs with the reader's Acquire.
        self.words.store(STRUCTURE, structure.wrapping_add(2), Ordering::Release);
    }
}
