//! A shared window on a memory file: [`ReadMapping`] or [`WriteMapping`].
//!
//! Other processes may change the bytes at any moment, so no `&[u8]` is ever handed out. The bytes
//! are reached in three ways: as atomic words, copied in and out ([`crate::bytes`]), or as a raw
//! pointer whose user answers for the access.
//!
//! A [`ReadMapping`] is mapped without the right to write. It hands out values, never a
//! `&AtomicU64`: a store through that would be a fault in safe code. Loads from such memory are
//! only promised by the language as relaxed loads (`std::sync::atomic`, "Atomic accesses to
//! read-only memory"), so stronger orderings are made of a relaxed load and a fence; on x86-64 an
//! acquire fence is no instruction.
//!
//! Give one range of memory one use: as words, as counts, or as bytes. Mixing sizes at the same
//! address, at the same time, tears.
//!
//! A mapping keeps the file's memory alive; the `MemoryFile` may be dropped. If the file is cut
//! shorter behind the mapping's back, or its memory breaks, copies of the lost part are errors;
//! touching it in the two other ways kills the process (SIGBUS): see `MemoryFile::seal_size`.

// UNSAFETY: this file turns an address range into atomics; the kernel, not the compiler, owns it.
#![allow(unsafe_code)]

use crate::{FaultCause, MemoryFile, OsError, PageSize};
use region::{HarmlessAdvice, Region};
use rustix::io::Errno;
use rustix::mm::ProtFlags;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

pub(crate) mod region;

/// A window for reading. Unmapped on drop; may be used by many threads.
#[derive(Debug)]
pub struct ReadMapping {
    region: Region,
}

/// A window for reading and writing. Unmapped on drop; may be used by many threads.
#[derive(Debug)]
pub struct WriteMapping {
    region: Region,
}

/// A word of a [`ReadMapping`]: may be loaded, and nothing else.
#[derive(Debug, Clone, Copy)]
pub struct ReadOnlyWord<'m> {
    word: &'m AtomicU64,
}

impl ReadOnlyWord<'_> {
    /// Loads the word.
    ///
    /// # Panics
    /// For an ordering that a load cannot have.
    #[inline(always)]
    #[must_use]
    pub fn load(self, order: Ordering) -> u64 {
        load_with_fences(|| self.word.load(Ordering::Relaxed), order)
    }
}

/// The answer of [`WriteMapping::populate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Populated {
    /// Every page is there and mapped, for writing if it can be written.
    Done,
    /// This kernel (before 5.14) cannot: pages are taken when they are first touched.
    Unsupported,
}

impl ReadMapping {
    /// Maps `len` bytes of `file` from `offset` on. A mapping of 2 MiB or more starts at a multiple
    /// of 2 MiB. The first mapping of a process installs the handler of [`crate::sigbus`].
    ///
    /// # Errors
    /// `EINVAL` if `len` is 0, if `offset` is not a multiple of 4 KiB, or beyond the end of the
    /// file; `ENOMEM` when address space or the number of mappings runs out.
    pub fn map(file: &MemoryFile, offset: u64, len: u64) -> Result<Self, OsError> {
        Ok(Self { region: Region::map(file, offset, len, ProtFlags::READ)? })
    }

    /// Loads the 8-byte word number `index`.
    ///
    /// # Panics
    /// If the word is out of bounds, as a slice does, and for an ordering that a load cannot have.
    #[inline]
    #[must_use]
    pub fn load_u64(&self, index: usize, order: Ordering) -> u64 {
        self.word(index).load(order)
    }

    /// Finds the 8-byte word number `index`, to be loaded more than once.
    ///
    /// # Panics
    /// If the word is out of bounds, as a slice does.
    #[inline(always)]
    #[must_use]
    pub fn word(&self, index: usize) -> ReadOnlyWord<'_> {
        let nr_words = self.region.len() / size_of::<u64>();
        if index >= nr_words {
            out_of_bounds(index, nr_words);
        }
        // SAFETY: the index was checked, so the word lies inside the mapping.
        let word = unsafe { self.region.base().cast::<AtomicU64>().add(index) };
        // SAFETY: mapped and readable until `self` is dropped, aligned (the base is page-aligned),
        // any bit pattern is a u64, and only loads of relaxed order are done through it, which the
        // language allows on read-only memory: `ReadOnlyWord` hands out nothing else.
        ReadOnlyWord { word: unsafe { word.as_ref() } }
    }

    /// Loads the 4-byte count number `index`.
    ///
    /// # Panics
    /// As [`Self::load_u64`].
    #[inline]
    #[must_use]
    pub fn load_u32(&self, index: usize, order: Ordering) -> u32 {
        let nr_counts = self.region.len() / size_of::<u32>();
        if index >= nr_counts {
            out_of_bounds(index, nr_counts);
        }
        // SAFETY: the index was checked, so the count lies inside the mapping.
        let count = unsafe { self.region.base().cast::<AtomicU32>().add(index) };
        // SAFETY: as in `load_u64`.
        let count = unsafe { count.as_ref() };
        load_with_fences(|| count.load(Ordering::Relaxed), order)
    }

    /// Loads the 8-byte word number `index`, which an error answers where its memory does not: for
    /// files that somebody else may cut shorter. An acquire load. On machines other than x86-64
    /// such a load kills, as any other does.
    ///
    /// # Errors
    /// Why its memory did not answer.
    ///
    /// # Panics
    /// If the word is out of bounds, as a slice does.
    #[inline]
    pub fn try_load_u64(&self, index: usize) -> Result<u64, FaultCause> {
        let nr_words = self.region.len() / size_of::<u64>();
        if index >= nr_words {
            out_of_bounds(index, nr_words);
        }
        let word = self.region.base().as_ptr().cast::<u64>().wrapping_add(index);
        // SAFETY: the index was checked, so the word lies inside the mapping, aligned as its base
        // is.
        let loaded = unsafe { crate::bytes::load_u64(word) };
        // Acquire: pairs with whatever release the writer did.
        fence(Ordering::Acquire);
        loaded
    }

    /// As [`Self::try_load_u64`], as many words as `loaded` has room for from number `index` on,
    /// one after the other. Those before a word that does not answer were loaded.
    ///
    /// # Errors
    /// As [`Self::try_load_u64`].
    ///
    /// # Panics
    /// As [`Self::try_load_u64`].
    #[inline]
    pub fn try_load_run(&self, index: usize, loaded: &mut [u64]) -> Result<(), FaultCause> {
        let nr_words = self.region.len() / size_of::<u64>();
        let end = index.saturating_add(loaded.len());
        if end > nr_words {
            out_of_bounds(end - 1, nr_words);
        }
        let first = self.region.base().as_ptr().cast::<u64>().wrapping_add(index);
        // SAFETY: the last index was checked, so the words lie inside the mapping, aligned as its
        // base is; the target is a slice of the caller's.
        let done = unsafe { crate::bytes::load_run(first, loaded.as_mut_ptr(), loaded.len()) };
        // Acquire: as above.
        fence(Ordering::Acquire);
        done
    }

    /// As [`Self::try_load_u64`], the 4-byte count number `index`.
    ///
    /// # Errors
    /// As [`Self::try_load_u64`].
    ///
    /// # Panics
    /// As [`Self::try_load_u64`].
    #[inline]
    pub fn try_load_u32(&self, index: usize) -> Result<u32, FaultCause> {
        let nr_counts = self.region.len() / size_of::<u32>();
        if index >= nr_counts {
            out_of_bounds(index, nr_counts);
        }
        let count = self.region.base().as_ptr().cast::<u32>().wrapping_add(index);
        // SAFETY: the index was checked, so the count lies inside the mapping, aligned as its base
        // is.
        let loaded = unsafe { crate::bytes::load_u32(count) };
        // Acquire: as above.
        fence(Ordering::Acquire);
        loaded
    }

    /// As [`WriteMapping::span`], to read.
    ///
    /// # Errors
    /// As there.
    pub fn span(len: u64, page: PageSize) -> Result<Self, OsError> {
        Ok(Self { region: Region::span(len, page, ProtFlags::READ)? })
    }

    /// As [`WriteMapping::show`].
    ///
    /// # Errors
    /// As there; a read-only file is shown.
    pub fn show(&self, at: u64, file: &MemoryFile, offset: u64, len: u64) -> Result<(), OsError> {
        self.region.show(at, file, offset, len)
    }

    /// As [`WriteMapping::hide`].
    ///
    /// # Errors
    /// As there.
    pub fn hide(&self, at: u64, len: u64) -> Result<(), OsError> {
        self.region.hide(at, len)
    }

    /// Returns the address of the first byte. Reading through it is the caller's to answer for;
    /// writing through it is a fault.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.region.base().as_ptr()
    }

    /// Returns the addresses of the bytes that were asked for, for instance to
    /// [`watch`](crate::sigbus::watch) them.
    #[inline]
    #[must_use]
    pub fn addresses(&self) -> Range<usize> {
        let start = self.as_ptr() as usize;
        start..start + self.region.len()
    }

    /// Gives up what is mapped: copies fail from now on ([`FaultCause::Unbacked`]), other touches
    /// are SIGBUS, and nothing of the file is kept. A device can then be removed or bound again.
    ///
    /// # Errors
    /// `EMFILE`, `ENOMEM`: it is mapped as before then.
    pub fn abandon(&self) -> Result<(), OsError> {
        self.region.abandon()
    }

    /// Returns the length that was asked for.
    #[inline]
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.region.len() as u64
    }

    /// Maps the pages around some bytes now, so that no later read of them faults.
    ///
    /// # Errors
    /// As [`WriteMapping::populate_range`].
    pub fn populate_range(&self, bytes: Range<u64>) -> Result<Populated, OsError> {
        let advice = HarmlessAdvice::PopulateRead;
        populate(|| self.region.advise_range(bytes.clone(), advice), &self.region)
    }
}

impl WriteMapping {
    /// Maps `len` bytes of `file` from `offset` on. A mapping of 2 MiB or more starts at a multiple
    /// of 2 MiB.
    ///
    /// # Errors
    /// As [`ReadMapping::map`]; also `EACCES` for a read-only file, `EPERM` after a write seal.
    pub fn map(file: &MemoryFile, offset: u64, len: u64) -> Result<Self, OsError> {
        Ok(Self { region: Region::map(file, offset, len, ProtFlags::READ | ProtFlags::WRITE)? })
    }

    /// Keeps `len` bytes of addresses, from a multiple of `page` on where they are 2 MiB or more,
    /// in which files are shown one beside the other by [`show`](Self::show). There is nothing
    /// behind them before: copies fail, other touches are SIGBUS.
    ///
    /// # Errors
    /// `ENOMEM` when address space or the number of mappings runs out.
    pub fn span(len: u64, page: PageSize) -> Result<Self, OsError> {
        Ok(Self { region: Region::span(len, page, ProtFlags::READ | ProtFlags::WRITE)? })
    }

    /// Shows `len` bytes of `file` from `offset` on at byte `at` of a [`span`](Self::span), in the
    /// place of what was shown there. Offset and place are multiples of the file's page size.
    ///
    /// # Errors
    /// `EINVAL` for other places, and beyond the end of the file or the span; `EACCES` for a
    /// read-only file; `ENOMEM` when the number of mappings runs out.
    pub fn show(&self, at: u64, file: &MemoryFile, offset: u64, len: u64) -> Result<(), OsError> {
        self.region.show(at, file, offset, len)
    }

    /// Ends what [`show`](Self::show) did, for the whole pages of `len` bytes from `at` on: as
    /// [`abandon`](Self::abandon), of a part.
    ///
    /// # Errors
    /// `EINVAL` outside the span; `EMFILE`, `ENOMEM`: it is mapped as before then.
    pub fn hide(&self, at: u64, len: u64) -> Result<(), OsError> {
        self.region.hide(at, len)
    }

    /// Returns the mapping as 8-byte words. A rest of less than a word is left out.
    #[inline]
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        let nr_words = self.region.len() / size_of::<u64>();
        let base = self.region.base().cast::<AtomicU64>();
        // SAFETY: the range is mapped readable and writable until `self` is dropped, page-aligned,
        // shorter than isize::MAX (a file's length is an i64), and any bit pattern is a u64.
        unsafe { std::slice::from_raw_parts(base.as_ptr(), nr_words) }
    }

    /// Returns the mapping as 4-byte counts. A rest of less than a count is left out.
    #[inline]
    #[must_use]
    pub fn counts(&self) -> &[AtomicU32] {
        let nr_counts = self.region.len() / size_of::<u32>();
        let base = self.region.base().cast::<AtomicU32>();
        // SAFETY: as in `words`.
        unsafe { std::slice::from_raw_parts(base.as_ptr(), nr_counts) }
    }

    /// Returns the address of the first byte. Access through it is the caller's to answer for.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.region.base().as_ptr()
    }

    /// Returns the addresses of the bytes that were asked for, for instance to
    /// [`watch`](crate::sigbus::watch) them.
    #[inline]
    #[must_use]
    pub fn addresses(&self) -> Range<usize> {
        let start = self.as_ptr() as usize;
        start..start + self.region.len()
    }

    /// Gives up what is mapped: copies fail from now on ([`FaultCause::Unbacked`]), other touches
    /// are SIGBUS, and nothing of the file is kept. A device can then be removed or bound again.
    ///
    /// # Errors
    /// `EMFILE`, `ENOMEM`: it is mapped as before then.
    pub fn abandon(&self) -> Result<(), OsError> {
        self.region.abandon()
    }

    /// Returns the length that was asked for.
    #[inline]
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.region.len() as u64
    }

    /// Takes and maps every page now, so that no later touch of it faults.
    ///
    /// # Errors
    /// `ENOMEM` or `EFAULT` when memory or the file system is full, `EHWPOISON` on a broken page;
    /// part of the range may then be populated.
    pub fn populate(&self) -> Result<Populated, OsError> {
        populate(|| self.region.advise(HarmlessAdvice::PopulateWrite), &self.region)
    }

    /// As [`populate`](Self::populate), for the pages around some bytes.
    ///
    /// # Errors
    /// The same; `ERANGE` for none, or outside the mapping.
    pub fn populate_range(&self, bytes: Range<u64>) -> Result<Populated, OsError> {
        let advice = HarmlessAdvice::PopulateWrite;
        populate(|| self.region.advise_range(bytes.clone(), advice), &self.region)
    }

    /// Maps the pages around some bytes now, as a read of them would, and others around them where
    /// the kernel does so at a read.
    ///
    /// # Errors
    /// As [`populate_range`](Self::populate_range).
    pub fn populate_for_reading(&self, bytes: Range<u64>) -> Result<Populated, OsError> {
        let advice = HarmlessAdvice::PopulateRead;
        populate(|| self.region.advise_range(bytes.clone(), advice), &self.region)
    }

    /// Leaves the mapping out of children made by `fork`: touching it there is a fault.
    ///
    /// # Errors
    /// `ENOMEM` when the number of mappings runs out.
    pub fn advise_dont_fork(&self) -> Result<(), OsError> {
        self.advise("leave out of forks", HarmlessAdvice::DontFork)
    }

    /// Leaves the mapping out of core dumps.
    ///
    /// # Errors
    /// `ENOMEM` when the number of mappings runs out.
    pub fn advise_dont_dump(&self) -> Result<(), OsError> {
        self.advise("leave out of core dumps", HarmlessAdvice::DontDump)
    }

    /// Asks for transparent huge pages; on memfd and tmpfs only where
    /// `/sys/kernel/mm/transparent_hugepage/shmem_enabled` is not `never` or `deny`.
    ///
    /// # Errors
    /// `EINVAL` on a kernel without them.
    pub fn advise_huge_pages(&self) -> Result<(), OsError> {
        self.advise("use huge pages for", HarmlessAdvice::HugePages)
    }

    fn advise(&self, what: &'static str, advice: HarmlessAdvice) -> Result<(), OsError> {
        self.region.advise(advice).map_err(|errno| failed(&self.region, what, errno))
    }
}

/// Populates by `advise`, a call for pages of `region`.
fn populate(
    mut advise: impl FnMut() -> Result<(), Errno>,
    region: &Region,
) -> Result<Populated, OsError> {
    loop {
        return match advise() {
            Ok(()) => Ok(Populated::Done),
            // Pages populated so far stay; a signal cannot hold the rest up for ever.
            Err(Errno::INTR | Errno::AGAIN) => continue,
            // A mapping of ours is valid, so this can only mean that the advice is unknown.
            Err(Errno::INVAL) => Ok(Populated::Unsupported),
            Err(errno) => Err(failed(region, "populate", errno)
                .with_advice("memory or its file system is full; reserve the file's bytes first")),
        };
    }
}

fn failed(region: &Region, what: &'static str, errno: Errno) -> OsError {
    let (base, len) = (region.base(), region.len());
    OsError::new(what, format!("a mapping of {len} bytes at {base:?}"), errno)
}

/// Out of line: the checks are on the path of every pin.
#[cold]
#[inline(never)]
fn out_of_bounds(index: usize, len: usize) -> ! {
    panic!("word or count {index} of a mapping that has {len}");
}

/// Makes a load of any order out of a relaxed one and fences.
#[inline(always)]
fn load_with_fences<T>(load_relaxed: impl Fn() -> T, order: Ordering) -> T {
    match order {
        Ordering::Relaxed => load_relaxed(),
        // Acquire fence after a relaxed load: pairs with whatever release the writer did.
        Ordering::Acquire => {
            let value = load_relaxed();
            fence(Ordering::Acquire);
            value
        }
        // A fence before orders the load after the caller's earlier stores; the one after makes it
        // an acquire load.
        Ordering::SeqCst => {
            fence(Ordering::SeqCst);
            let value = load_relaxed();
            fence(Ordering::Acquire);
            value
        }
        _ => panic!("{order:?} is no ordering of a load"),
    }
}

#[cfg(test)]
mod tests {
    use super::region::LARGE_ALIGNMENT_BYTES;
    use super::*;
    use crate::{FileAccess, PageSize};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    const MIB: u64 = 1 << 20;

    fn file(len: u64) -> MemoryFile {
        MemoryFile::anonymous("mapping-test", len, PageSize::Base).unwrap()
    }

    #[test]
    fn store_through_one_mapping_is_loaded_through_another() {
        let file = file(4 * MIB);
        let writer = WriteMapping::map(&file, 0, 4 * MIB).unwrap();
        let reader =
            ReadMapping::map(&file.reopen(FileAccess::ReadOnly).unwrap(), 0, 4 * MIB).unwrap();
        drop(file);
        writer.words()[7].store(u64::MAX - 1, Ordering::Release);
        for order in [Ordering::Relaxed, Ordering::Acquire, Ordering::SeqCst] {
            assert_eq!(reader.load_u64(7, order), u64::MAX - 1);
            assert_eq!(reader.load_u32(15, order), u32::MAX);
        }
        assert_eq!(writer.counts()[14].load(Ordering::Relaxed), u32::MAX - 1);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_load_where_the_file_was_cut_shorter_is_an_error_and_others_go_on() {
        let file = file(8192);
        let writer = WriteMapping::map(&file, 0, 8192).unwrap();
        let reader = ReadMapping::map(&file, 0, 8192).unwrap();
        writer.words()[3].store(u64::MAX - 7, Ordering::Relaxed);
        writer.counts()[1030].store(77, Ordering::Relaxed);
        assert_eq!(reader.try_load_u64(3), Ok(u64::MAX - 7));
        assert_eq!(reader.try_load_u32(1030), Ok(77));
        file.set_len(4096).unwrap();
        assert_eq!(reader.try_load_u64(3), Ok(u64::MAX - 7));
        assert_eq!(reader.try_load_u64(512), Err(FaultCause::Unbacked));
        assert_eq!(reader.try_load_u32(1030), Err(FaultCause::Unbacked));
        let mut loaded = [1; 3];
        assert_eq!(reader.try_load_run(510, &mut loaded), Err(FaultCause::Unbacked));
        assert_eq!(loaded, [0, 0, 1]);
        assert_eq!(reader.try_load_run(2, &mut loaded), Ok(()));
        assert_eq!(loaded, [0, u64::MAX - 7, 0]);
        assert_eq!(reader.try_load_run(1024, &mut []), Ok(()));
        file.set_len(8192).unwrap();
        assert_eq!(reader.try_load_u64(512), Ok(0));
    }

    #[test]
    fn mapping_at_an_offset_sees_the_bytes_from_there() {
        let file = file(2 * MIB);
        let whole = WriteMapping::map(&file, 0, 2 * MIB).unwrap();
        let part = ReadMapping::map(&file, MIB, 4096).unwrap();
        whole.words()[(MIB / 8) as usize].store(42, Ordering::Relaxed);
        assert_eq!(part.load_u64(0, Ordering::Relaxed), 42);
    }

    #[test]
    fn a_span_shows_files_side_by_side_and_copies_fail_where_it_shows_none() {
        let span = WriteMapping::span(16 * MIB, PageSize::Base).unwrap();
        let (one, other) = (file(MIB), file(4 * MIB));
        span.show(0, &one, 0, MIB).unwrap();
        span.show(8 * MIB, &other, 2 * MIB, 2 * MIB).unwrap();
        span.copy_in(8 * MIB, &[7; 4096]).unwrap();
        let mut bytes = [0; 1];
        other.read_exact_at(&mut bytes, 2 * MIB + 4095).unwrap();
        assert_eq!(bytes, [7]);
        for nowhere in [4 * MIB, MIB, 10 * MIB, 16 * MIB - 1] {
            assert!(span.copy_out(nowhere, &mut bytes).is_err(), "{nowhere}");
        }
        span.hide(8 * MIB, 2 * MIB).unwrap();
        assert!(span.copy_out(8 * MIB, &mut bytes).is_err());
        span.copy_out(0, &mut bytes).unwrap();
        for (at, offset, len) in [(0, MIB, 1), (0, 0, 0), (15 * MIB, 0, 2 * MIB), (8, 0, 8)] {
            let error = span.show(at, &other, offset + 3 * MIB, len).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL, "{at} {offset} {len}");
        }
        assert_eq!(span.hide(15 * MIB, 2 * MIB).unwrap_err().errno(), libc::EINVAL);
    }

    #[test]
    fn out_of_bounds_load_panics_and_so_does_a_store_ordering() {
        let mapping = ReadMapping::map(&file(4096), 0, 4090).unwrap();
        assert_eq!(mapping.load_u64(510, Ordering::Relaxed), 0);
        let panics = |load: &dyn Fn() -> u64| catch_unwind(AssertUnwindSafe(load)).is_err();
        assert!(panics(&|| mapping.load_u64(511, Ordering::Relaxed)), "a word cut by the end");
        assert!(panics(&|| mapping.load_u64(usize::MAX, Ordering::Relaxed)));
        assert!(panics(&|| mapping.try_load_run(509, &mut [0; 3]).map_or(1, |()| 0)));
        assert!(panics(&|| mapping.load_u32(1023, Ordering::Relaxed).into()));
        assert!(panics(&|| mapping.load_u64(0, Ordering::Release)));
    }

    #[test]
    fn mapping_beyond_the_file_is_refused_and_says_where_it_ends() {
        let file = file(8192);
        for (offset, len) in [(0, 8193), (8192, 1), (4096, u64::MAX), (u64::MAX - 4095, 4096)] {
            let error = ReadMapping::map(&file, offset, len).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL);
            assert!(error.to_string().contains("ends at 8192"), "{error}");
        }
        assert_eq!(ReadMapping::map(&file, 0, 0).unwrap_err().errno(), libc::EINVAL);
        assert_eq!(ReadMapping::map(&file, 8, 8).unwrap_err().errno(), libc::EINVAL);
    }

    #[test]
    fn large_mappings_start_at_a_multiple_of_two_mib() {
        let file = file(64 * MIB);
        let mappings: Vec<_> = (0..5)
            .map(|turn| WriteMapping::map(&file, turn * 4096, 2 * MIB + turn * 4096).unwrap())
            .collect();
        for mapping in &mappings {
            assert!((mapping.as_ptr() as u64).is_multiple_of(LARGE_ALIGNMENT_BYTES));
        }
        let small = ReadMapping::map(&file, 0, 4096).unwrap();
        assert!((small.as_ptr() as u64).is_multiple_of(4096));
        assert_eq!(small.len_bytes(), 4096);
    }

    #[test]
    fn read_only_file_and_sealed_file_refuse_a_writable_mapping() {
        let file = file(4096);
        let reader = file.reopen(FileAccess::ReadOnly).unwrap();
        assert_eq!(WriteMapping::map(&reader, 0, 4096).unwrap_err().errno(), libc::EACCES);
        let before = WriteMapping::map(&file, 0, 4096).unwrap();
        file.seal_against_future_writes().unwrap();
        assert_eq!(WriteMapping::map(&file, 0, 4096).unwrap_err().errno(), libc::EPERM);
        before.words()[0].store(1, Ordering::Relaxed);
        assert_eq!(ReadMapping::map(&file, 0, 8).unwrap().load_u64(0, Ordering::Relaxed), 1);
    }

    #[test]
    fn populated_mapping_is_resident() {
        let file = file(4 * MIB);
        let mapping = WriteMapping::map(&file, 0, 4 * MIB).unwrap();
        assert_eq!(file.resident_bytes(), 0);
        match mapping.populate().unwrap() {
            Populated::Done => assert_eq!(file.resident_bytes(), 4 * MIB),
            Populated::Unsupported => {
                println!("SKIPPED populated_mapping_is_resident: Linux before 5.14");
            }
        }
        mapping.advise_dont_dump().unwrap();
    }

    #[test]
    fn huge_page_advice_is_taken_or_refused_with_a_reason() {
        let file = file(4 * MIB);
        let mapping = WriteMapping::map(&file, 0, 4 * MIB).unwrap();
        match mapping.advise_huge_pages() {
            Ok(()) => mapping.words()[0].store(1, Ordering::Relaxed),
            Err(error) => assert_eq!(error.errno(), libc::EINVAL, "{error}"),
        }
    }

    #[test]
    fn whole_tebibyte_maps_without_taking_memory() {
        let file = file(1 << 40);
        let mapping = WriteMapping::map(&file, 0, 1 << 40).unwrap();
        mapping.words().last().unwrap().store(9, Ordering::Relaxed);
        assert_eq!(mapping.words().len(), 1 << 37);
        assert_eq!(file.resident_bytes(), 4096);
    }
}
