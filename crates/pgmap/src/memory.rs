//! Mappings as the page model's words and counts: where the two lower crates meet.

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use pgmap_mm::barrier::{HeavyBarrier, Reached};
use pgmap_mm::words::{
    Indexed, ReadCounts, ReadWord, ReadWords, WriteCounts, WriteWord, WriteWords,
};
use pgmap_os::sim;
use pgmap_os::{Membarrier, MemoryFile, ReadMapping, ReadOnlyWord, WriteMapping};

/// Bytes of a word, of a count and of a page.
const WORD_BYTES: u64 = 8;
const COUNT_BYTES: u64 = 4;
const PAGE_BYTES: u64 = 4096;
/// Attempts of a heavy barrier for which the kernel has no memory just now.
const MAX_BARRIER_ATTEMPTS: usize = 64;

/// Words somebody else writes.
#[derive(Debug)]
pub struct Readable {
    mapping: ReadMapping,
    #[cfg(feature = "sim")]
    memory: Option<BackedPages>,
}

impl Readable {
    /// Words of `mapping`.
    #[must_use]
    pub const fn new(mapping: ReadMapping) -> Self {
        Self {
            mapping,
            #[cfg(feature = "sim")]
            memory: None,
        }
    }

    /// The same words, which begin at `offset` of `file`: a simulation fails where one is read that
    /// nobody took memory for.
    #[must_use]
    #[cfg_attr(
        not(feature = "sim"),
        allow(unused_mut, unused_variables, clippy::missing_const_for_fn)
    )]
    pub fn of_file(mut self, file: &Arc<MemoryFile>, offset: u64) -> Self {
        #[cfg(feature = "sim")]
        {
            let len_bytes = self.mapping.len_bytes();
            self.memory = Some(BackedPages::new(Arc::clone(file), offset, len_bytes));
        }
        self
    }

    #[inline(always)]
    #[cfg_attr(not(feature = "sim"), allow(unused_variables, clippy::missing_const_for_fn))]
    fn at(&self, index: usize) -> &ReadMapping {
        #[cfg(feature = "sim")]
        if let Some(memory) = &self.memory {
            memory.check(index as u64 * WORD_BYTES);
        }
        &self.mapping
    }
}

/// A word somebody else writes.
#[derive(Clone, Copy, Debug)]
pub struct ReadableWord<'m>(ReadOnlyWord<'m>);

impl ReadWord for ReadableWord<'_> {
    #[inline(always)]
    fn load(self, order: Ordering) -> u64 {
        sim::word();
        self.0.load(order)
    }
}

impl ReadWords for Readable {
    type Word<'w> = ReadableWord<'w>;

    fn nr_words(&self) -> usize {
        (self.mapping.len_bytes() / WORD_BYTES) as usize
    }

    #[inline(always)]
    fn word(&self, index: usize) -> ReadableWord<'_> {
        ReadableWord(self.at(index).word(index))
    }

    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u64 {
        sim::word();
        self.at(index).load_u64(index, order)
    }
}

/// A window on a client's ledger. Its file may be cut shorter by somebody who has no business to:
/// what lay there is then lost. A hole for which there is no memory is none of that: it reads as
/// zero, as any hole does.
#[derive(Debug)]
struct LedgerWindow {
    mapping: ReadMapping,
    file: Arc<MemoryFile>,
    /// Where in the file the window starts, and how long the file is as long as nobody cuts it.
    start_bytes: u64,
    whole_bytes: u64,
    /// Where the file ended when something turned out to be missing; nothing from there on is
    /// looked at again.
    end_bytes: AtomicU64,
}

impl LedgerWindow {
    fn new(mapping: ReadMapping, file: &Arc<MemoryFile>, start: u64, whole_bytes: u64) -> Self {
        let (file, end_bytes) = (Arc::clone(file), AtomicU64::new(u64::MAX));
        Self { mapping, file, start_bytes: start, whole_bytes, end_bytes }
    }

    /// What lies `at` bytes into the window, as `load` finds it.
    #[inline]
    fn load<T: Default, E>(&self, at: u64, load: impl FnOnce(&ReadMapping) -> Result<T, E>) -> T {
        // Relaxed here and below: the owner's lock orders those who ask.
        sim::word();
        if self.start_bytes + at >= self.end_bytes.load(Ordering::Relaxed) {
            return T::default();
        }
        load(&self.mapping).unwrap_or_else(|_| self.missing())
    }

    /// Loads words from number `index` on. Says whether all of them answered.
    #[inline]
    fn load_run(&self, index: usize, loaded: &mut [u64]) -> bool {
        let end = self.start_bytes + (index + loaded.len()) as u64 * WORD_BYTES;
        // Relaxed: as above.
        end <= self.end_bytes.load(Ordering::Relaxed)
            && self.mapping.try_load_run(index, loaded).is_ok()
    }

    /// What is read where the memory did not answer.
    #[cold]
    fn missing<T: Default>(&self) -> T {
        let len_bytes = self.file.len_bytes();
        if len_bytes < self.whole_bytes {
            self.end_bytes.store(len_bytes.next_multiple_of(PAGE_BYTES), Ordering::Relaxed);
        }
        T::default()
    }

    fn is_lost(&self) -> bool {
        self.end_bytes.load(Ordering::Relaxed) != u64::MAX
    }
}

/// The words of a client's ledger.
#[derive(Debug)]
pub struct LedgerWords(LedgerWindow);

impl LedgerWords {
    /// Words of `mapping`, which begins at `start_bytes` of a file that has `whole_bytes` as long
    /// as nobody cuts it.
    #[must_use]
    pub fn new(
        mapping: ReadMapping,
        file: &Arc<MemoryFile>,
        start_bytes: u64,
        whole_bytes: u64,
    ) -> Self {
        Self(LedgerWindow::new(mapping, file, start_bytes, whole_bytes))
    }
}

impl ReadWords for LedgerWords {
    type Word<'w> = Indexed<'w, Self>;

    fn nr_words(&self) -> usize {
        (self.0.mapping.len_bytes() / WORD_BYTES) as usize
    }

    fn word(&self, index: usize) -> Indexed<'_, Self> {
        Indexed::new(self, index)
    }

    /// An acquire load, whatever less is asked for.
    #[inline]
    fn load(&self, index: usize, _order: Ordering) -> u64 {
        self.0.load(index as u64 * WORD_BYTES, |mapping| mapping.try_load_u64(index))
    }

    /// In one go where all of them are there, and word by word where that turns out not to be so.
    #[inline]
    fn load_run(&self, index: usize, loaded: &mut [u64]) {
        // A simulation lets others run before each word.
        if cfg!(feature = "sim") || !self.0.load_run(index, loaded) {
            for (at, word) in loaded.iter_mut().enumerate() {
                *word = self.load(index + at, Ordering::Acquire);
            }
        }
    }

    fn is_lost(&self) -> bool {
        self.0.is_lost()
    }
}

/// The counts of a client's ledger.
#[derive(Debug)]
pub struct LedgerCounts(LedgerWindow);

impl LedgerCounts {
    /// As [`LedgerWords::new`].
    #[must_use]
    pub fn new(
        mapping: ReadMapping,
        file: &Arc<MemoryFile>,
        start_bytes: u64,
        whole_bytes: u64,
    ) -> Self {
        Self(LedgerWindow::new(mapping, file, start_bytes, whole_bytes))
    }
}

impl ReadCounts for LedgerCounts {
    /// An acquire load, whatever less is asked for.
    #[inline]
    fn load(&self, index: usize, _order: Ordering) -> u32 {
        self.0.load(index as u64 * COUNT_BYTES, |mapping| mapping.try_load_u32(index))
    }

    fn is_lost(&self) -> bool {
        self.0.is_lost()
    }
}

/// Which pages of a part of a file have memory, in a file system that may be full.
#[derive(Debug)]
struct BackedPages {
    file: Arc<MemoryFile>,
    /// Where in the file the part starts.
    offset: u64,
    /// A bit for each page that was reserved.
    reserved: Box<[AtomicU64]>,
}

impl BackedPages {
    fn new(file: Arc<MemoryFile>, offset: u64, len_bytes: u64) -> Self {
        let nr_pages = len_bytes.div_ceil(PAGE_BYTES);
        Self { file, offset, reserved: pgmap_os::zeroed_words(nr_pages.div_ceil(64) as usize) }
    }

    /// Takes memory for the pages of `bytes`. Says whether there is some.
    fn reserve(&self, bytes: Range<u64>) -> bool {
        let pages = bytes.start / PAGE_BYTES..bytes.end.div_ceil(PAGE_BYTES);
        let (mut at, mut is_there) = (pages.start, true);
        while at < pages.end && is_there {
            let missing = at..(at..pages.end).find(|&page| self.has(page)).unwrap_or(pages.end);
            if !missing.is_empty() {
                let bytes = missing.start * PAGE_BYTES..missing.end * PAGE_BYTES;
                is_there = self.reserve_pages(bytes);
                if is_there {
                    missing.clone().for_each(|page| self.note(page));
                }
            }
            at = missing.end + 1;
        }
        is_there
    }

    #[cold]
    fn reserve_pages(&self, bytes: Range<u64>) -> bool {
        let range = self.offset + bytes.start..self.offset + bytes.end;
        match self.file.reserve(range) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "there is no memory for metadata");
                false
            }
        }
    }

    fn has(&self, page: u64) -> bool {
        // Relaxed: a bit is a note of what the kernel did, which is there for everybody.
        self.reserved[(page / 64) as usize].load(Ordering::Relaxed) & 1 << (page % 64) != 0
    }

    fn note(&self, page: u64) {
        // Relaxed: as above.
        self.reserved[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::Relaxed);
    }

    /// The next of `bytes` that may have been written to. The rest reads as zero.
    fn next_written(&self, bytes: Range<u64>) -> Option<Range<u64>> {
        if bytes.is_empty() {
            return None;
        }
        let page = bytes.start / PAGE_BYTES;
        if self.has(page) {
            return Some(bytes.start..bytes.end.min((page + 1) * PAGE_BYTES));
        }
        let wanted = self.offset + bytes.start..self.offset + bytes.end;
        let written = self.file.next_with_memory(wanted)?;
        Some(written.start - self.offset..written.end - self.offset)
    }

    /// Fails if there is no memory for the byte at `at`: where the file system is full, the touch
    /// would be a SIGBUS.
    #[cfg(feature = "sim")]
    fn check(&self, at: u64) {
        let page = at / PAGE_BYTES;
        if self.has(page) {
            return;
        }
        let start = self.offset + page * PAGE_BYTES;
        let is_there = self.file.is_reserved(start..start + PAGE_BYTES);
        assert!(is_there, "nobody reserved page {page} of a part of {}", self.file.name());
        self.note(page);
    }

    /// Checks nothing from now on.
    #[cfg(feature = "sim")]
    fn leave_unchecked(&self) {
        self.reserved.iter().for_each(|pages| pages.store(u64::MAX, Ordering::Relaxed));
    }
}

/// What is behind words that this process writes.
#[derive(Debug)]
enum WordMemory {
    /// Memory that is there.
    Memory,
    /// A file of the system's memory, without a limit of its own, and where in it the words start:
    /// whole pages can be given back.
    Unlimited(Arc<MemoryFile>, u64),
    /// A file in a file system. Its pages are kept: a reader that was given them before may still
    /// look, and must find memory there.
    Limited(BackedPages),
}

/// Words this process writes.
#[derive(Debug)]
pub struct Writable {
    mapping: WriteMapping,
    memory: WordMemory,
    /// What they are, for the trace of a simulation.
    #[cfg(feature = "sim")]
    name: &'static str,
}

impl Writable {
    /// Words of `mapping`, all of which have memory. Discarding stores zeros.
    #[must_use]
    pub const fn new(mapping: WriteMapping) -> Self {
        Self {
            mapping,
            memory: WordMemory::Memory,
            #[cfg(feature = "sim")]
            name: "word",
        }
    }

    /// Words of `mapping`, which begins at `offset` of the memfd `file`.
    #[must_use]
    pub const fn over_memory(mapping: WriteMapping, file: Arc<MemoryFile>, offset: u64) -> Self {
        Self {
            mapping,
            memory: WordMemory::Unlimited(file, offset),
            #[cfg(feature = "sim")]
            name: "word",
        }
    }

    /// Words of `mapping`, which begins at `offset` of `file`, in a file system that may be full.
    #[must_use]
    pub fn over_file(mapping: WriteMapping, file: Arc<MemoryFile>, offset: u64) -> Self {
        let room = BackedPages::new(file, offset, mapping.len_bytes());
        Self {
            mapping,
            memory: WordMemory::Limited(room),
            #[cfg(feature = "sim")]
            name: "word",
        }
    }

    /// Has a simulation look no more whether there is memory for the words that are used.
    #[cfg(feature = "sim")]
    pub fn leave_unchecked(&self) {
        if let WordMemory::Limited(room) = &self.memory {
            room.leave_unchecked();
        }
    }

    /// The same words, called `name` in the trace of a simulation.
    #[must_use]
    #[cfg_attr(not(feature = "sim"), allow(unused_mut, unused_variables))]
    pub const fn named(mut self, name: &'static str) -> Self {
        #[cfg(feature = "sim")]
        {
            self.name = name;
        }
        self
    }
}

/// A word that this process writes.
#[cfg(not(feature = "sim"))]
type WritableWord<'w> = &'w AtomicU64;

/// A word that this process writes, where others may run before each load and store.
#[cfg(feature = "sim")]
#[derive(Clone, Copy, Debug)]
pub struct WritableWord<'w> {
    word: &'w AtomicU64,
    name: &'static str,
    index: usize,
}

#[cfg(feature = "sim")]
impl WritableWord<'_> {
    /// Tells the trace of a simulation that the word was changed.
    fn changed(self, old: u64, new: u64) {
        if old == new {
            return;
        }
        let say = |word: u64| match self.name {
            "descriptor" => format!("{:?}", pgmap_mm::descriptor::Descriptor::from_bits(word)),
            _ => format!("{word:#x}"),
        };
        sim::changed(|| format!("{} {}: {} -> {}", self.name, self.index, say(old), say(new)));
    }
}

#[cfg(feature = "sim")]
impl ReadWord for WritableWord<'_> {
    fn load(self, order: Ordering) -> u64 {
        sim::word();
        self.word.load(order)
    }
}

#[cfg(feature = "sim")]
impl WriteWord for WritableWord<'_> {
    fn store(self, value: u64, order: Ordering) {
        if sim::word() {
            // Relaxed: for people only.
            let old = self.word.load(Ordering::Relaxed);
            self.word.store(value, order);
            self.changed(old, value);
        }
    }
}

impl Writable {
    #[inline(always)]
    fn at(&self, index: usize) -> WritableWord<'_> {
        #[cfg(feature = "sim")]
        if let WordMemory::Limited(room) = &self.memory {
            room.check(index as u64 * WORD_BYTES);
        }
        let word = &self.mapping.words()[index];
        #[cfg(feature = "sim")]
        let word = WritableWord { word, name: self.name, index };
        word
    }
}

impl ReadWords for Writable {
    type Word<'w> = WritableWord<'w>;

    fn nr_words(&self) -> usize {
        self.mapping.words().len()
    }

    #[inline(always)]
    fn word(&self, index: usize) -> WritableWord<'_> {
        self.at(index)
    }

    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.at(index).load(order)
    }
}

impl WriteWords for Writable {
    type Slot<'w> = WritableWord<'w>;

    #[inline(always)]
    fn slot(&self, index: usize) -> WritableWord<'_> {
        self.at(index)
    }

    #[inline]
    fn store(&self, index: usize, value: u64, order: Ordering) {
        WriteWord::store(self.at(index), value, order);
    }

    fn fetch_or(&self, index: usize, bits: u64, order: Ordering) -> u64 {
        if !sim::word() {
            return 0;
        }
        let old = self.mapping.words()[index].fetch_or(bits, order);
        #[cfg(feature = "sim")]
        self.at(index).changed(old, old | bits);
        old
    }

    fn reserve(&self, range: Range<usize>) -> bool {
        match &self.memory {
            WordMemory::Limited(room) => {
                room.reserve(range.start as u64 * WORD_BYTES..range.end as u64 * WORD_BYTES)
            }
            WordMemory::Memory | WordMemory::Unlimited(..) => true,
        }
    }

    fn discard(&self, range: Range<usize>) {
        let bytes = range.start as u64 * WORD_BYTES..range.end as u64 * WORD_BYTES;
        let is_whole_pages = bytes.start % PAGE_BYTES == 0 && bytes.end % PAGE_BYTES == 0;
        if is_whole_pages
            && let WordMemory::Unlimited(file, offset) = &self.memory
            && file.punch(offset + bytes.start..offset + bytes.end).is_ok()
        {
            return;
        }
        if !sim::word() {
            return;
        }
        let clear = |bytes: Range<u64>| {
            let words = (bytes.start / WORD_BYTES) as usize..(bytes.end / WORD_BYTES) as usize;
            for word in &self.mapping.words()[words] {
                // Relaxed: readers compare for equality with words that zero is not.
                word.store(0, Ordering::Relaxed);
            }
        };
        let WordMemory::Limited(room) = &self.memory else { return clear(bytes) };
        // A page without memory may have to stay so: the file system may be full.
        let mut rest = bytes;
        while let Some(written) = room.next_written(rest.clone()) {
            rest.start = written.end;
            clear(written);
        }
    }
}

/// Counts this process writes.
#[derive(Debug)]
pub struct WritableCounts {
    mapping: WriteMapping,
    room: Option<BackedPages>,
}

impl WritableCounts {
    /// Counts of `mapping`, which begins at `offset` of `file`, in a file system that may be full.
    #[must_use]
    pub fn over_file(mapping: WriteMapping, file: Arc<MemoryFile>, offset: u64) -> Self {
        let room = BackedPages::new(file, offset, mapping.len_bytes());
        Self { mapping, room: Some(room) }
    }

    /// As [`Writable::leave_unchecked`].
    #[cfg(feature = "sim")]
    pub fn leave_unchecked(&self) {
        self.room.iter().for_each(BackedPages::leave_unchecked);
    }

    #[inline(always)]
    fn at(&self, index: usize) -> &AtomicU32 {
        #[cfg(feature = "sim")]
        if let Some(room) = &self.room {
            room.check(index as u64 * COUNT_BYTES);
        }
        &self.mapping.counts()[index]
    }
}

impl ReadCounts for WritableCounts {
    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u32 {
        self.at(index).load(order)
    }
}

impl WriteCounts for WritableCounts {
    #[inline]
    fn fetch_add(&self, index: usize, by: u32, order: Ordering) -> u32 {
        if !sim::word() {
            return 0;
        }
        let old = self.at(index).fetch_add(by, order);
        #[cfg(feature = "sim")]
        sim::changed(|| format!("count {index}: {old} -> {}", old.wrapping_add(by)));
        old
    }

    #[inline]
    fn fetch_sub(&self, index: usize, by: u32, order: Ordering) -> u32 {
        if !sim::word() {
            return 1;
        }
        let old = self.at(index).fetch_sub(by, order);
        #[cfg(feature = "sim")]
        sim::changed(|| format!("count {index}: {old} -> {}", old.wrapping_sub(by)));
        old
    }

    #[inline]
    fn store(&self, index: usize, value: u32, order: Ordering) {
        if sim::word() {
            self.at(index).store(value, order);
        }
    }

    fn reserve(&self, range: Range<usize>) -> bool {
        let bytes = range.start as u64 * COUNT_BYTES..range.end as u64 * COUNT_BYTES;
        self.room.as_ref().is_none_or(|room| room.reserve(bytes))
    }
}

/// The owner's heavy barrier: `membarrier` for clients that are registered, and the fence that
/// pairs with the others'.
///
/// What this process was granted when it registered may be refused later, by a sandbox that it
/// enters. Then clients that rely on it are not reached any more (ADR 0045).
#[derive(Debug)]
pub struct OwnerBarrier {
    membarrier: Membarrier,
    was_refused: AtomicBool,
}

impl OwnerBarrier {
    /// Registers this process.
    #[must_use]
    pub fn register() -> Self {
        Self { membarrier: Membarrier::register(), was_refused: AtomicBool::new(false) }
    }

    /// Whether clients may rely on a compiler fence from now on: tries it.
    #[must_use]
    pub fn is_asymmetric(&self) -> bool {
        self.interrupt()
    }

    /// Has every processor that runs a registered process make a full barrier. False if that is
    /// refused.
    fn interrupt(&self) -> bool {
        if !self.membarrier.is_global_available() {
            return false;
        }
        for _ in 0..MAX_BARRIER_ATTEMPTS {
            match self.membarrier.global_expedited() {
                Ok(()) => return true,
                // For the list of processors (Linux 7.1: kernel/sched/membarrier.c).
                Err(error) if error.kind() == ErrorKind::OutOfMemory => {
                    pgmap_os::thread::yield_now()
                }
                Err(error) => {
                    // Relaxed: says it once, more or less.
                    if !self.was_refused.swap(true, Ordering::Relaxed) {
                        tracing::error!(
                            %error,
                            "membarrier was granted to this process and is refused now: what \
                             clients that attached before may hold is freed when they leave; start \
                             the owner inside its sandbox, or allow membarrier there"
                        );
                    }
                    return false;
                }
            }
        }
        tracing::error!("membarrier finds no memory, {MAX_BARRIER_ATTEMPTS} times in a row");
        false
    }
}

impl HeavyBarrier for OwnerBarrier {
    fn heavy(&self) -> Reached {
        // SeqCst: pairs with the fence of a light barrier in fenced mode.
        std::sync::atomic::fence(Ordering::SeqCst);
        let reached = if self.interrupt() { Reached::All } else { Reached::Fenced };
        // SeqCst: the scan's loads come after the barrier.
        std::sync::atomic::fence(Ordering::SeqCst);
        reached
    }
}
