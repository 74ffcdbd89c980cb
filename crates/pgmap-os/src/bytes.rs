//! Copies that stay defined while another process changes the bytes.
//!
//! `ptr::copy` tells the compiler that nobody else touches either side; over shared memory that is
//! a lie, and the compiler may build on it. Here the copy is done by instructions that the compiler
//! cannot see into: to the language it is some function that copies byte by byte with relaxed
//! atomics. What arrives is whatever the bytes were, each byte at some moment of the copy; whether
//! they belong together is a question for the protocol above.
//!
//! On x86-64 a copy is a loop of 32-byte loads and stores, where AVX is missing of 16-byte ones. It
//! is not `rep movsb`: on AMD Zen that runs 1.4 to 6 times slower when one side is not aligned to
//! its line, and what `malloc` returns for 2 MiB never is (ADR 0008). Filling
//! with zero is `rep stosb`, which does not mind. Elsewhere volatile words are copied.
//!
//! # Memory that does not answer
//! A file may be cut shorter under a mapping, its file system may be full, memory may break:
//! touching such a byte is SIGBUS, which kills. A copy comes back as an error instead
//! ([`CopyError::Fault`]), by the handler that every mapping installs ([`crate::sigbus`]); it costs
//! a copy that succeeds nothing. Part of the range may then have been copied, and which part is not
//! said. This holds on x86-64; elsewhere a copy dies like every other access.

// UNSAFETY: raw pointers and assembly are what a copy the compiler cannot see is made of.
#![allow(unsafe_code)]

use crate::sim;
use crate::{ReadMapping, WriteMapping};
use std::ops::Range;

mod error;
pub use error::{CopyError, FaultCause, MemoryFault, OutOfBounds};

impl ReadMapping {
    /// Copies the bytes from `offset` on into `target`.
    ///
    /// # Errors
    /// [`CopyError::OutOfBounds`]: nothing is then copied. [`CopyError::Fault`] where the file no
    /// longer has the bytes or its memory is broken: `target` may then hold some of them.
    #[inline]
    pub fn copy_out(&self, offset: u64, target: &mut [u8]) -> Result<(), CopyError> {
        let range = MappedRange::new(self.addresses(), offset, target.len() as u64)?;
        let source = self.as_ptr().wrapping_add(offset as usize);
        // SAFETY: the source range was checked against the mapping, which is readable until `self`
        // is dropped; the target is an exclusive slice of the same length.
        let copied = unsafe { copy(source, target.as_mut_ptr(), target.len()) };
        copied.map_err(|fault| range.error(fault, target.as_ptr()))
    }
}

impl WriteMapping {
    /// Copies the bytes from `offset` on into `target`.
    ///
    /// # Errors
    /// As [`ReadMapping::copy_out`].
    #[inline]
    pub fn copy_out(&self, offset: u64, target: &mut [u8]) -> Result<(), CopyError> {
        let range = MappedRange::new(self.addresses(), offset, target.len() as u64)?;
        let source = self.as_ptr().wrapping_add(offset as usize);
        // SAFETY: as in `ReadMapping::copy_out`.
        let copied = unsafe { copy(source, target.as_mut_ptr(), target.len()) };
        copied.map_err(|fault| range.error(fault, target.as_ptr()))
    }

    /// Copies `source` over the bytes from `offset` on.
    ///
    /// # Errors
    /// [`CopyError::OutOfBounds`]: nothing is then written. [`CopyError::Fault`] where the file no
    /// longer has the bytes, has no space for them, or its memory is broken: some of them may then
    /// have been written.
    #[inline]
    pub fn copy_in(&self, offset: u64, source: &[u8]) -> Result<(), CopyError> {
        let range = MappedRange::new(self.addresses(), offset, source.len() as u64)?;
        if !sim::word() {
            return Ok(());
        }
        let target = self.as_ptr().wrapping_add(offset as usize);
        // SAFETY: the target range was checked against the mapping, which is writable until `self`
        // is dropped; no reference to plain bytes of a mapping exists; the source is a slice of the
        // same length.
        let copied = unsafe { copy(source.as_ptr(), target, source.len()) };
        copied.map_err(|fault| range.error(fault, source.as_ptr()))
    }

    /// As [`Self::copy_in`], past the processor's caches (non-temporal stores): for many bytes, to
    /// memory that is not in the caches. Such a copy need not read the target's lines first, and
    /// leaves what others have in the caches there. It is slower where the target is in them.
    ///
    /// # Errors
    /// As [`Self::copy_in`].
    pub fn copy_in_streaming(&self, offset: u64, source: &[u8]) -> Result<(), CopyError> {
        let range = MappedRange::new(self.addresses(), offset, source.len() as u64)?;
        if !sim::word() {
            return Ok(());
        }
        let target = self.as_ptr().wrapping_add(offset as usize);
        // SAFETY: as in `copy_in`.
        let copied = unsafe { machine::copy_streaming(source.as_ptr(), target, source.len()) };
        // These stores are ordered by nothing else, not even by a Release store.
        order_flushes();
        copied.map_err(|fault| range.error(fault, source.as_ptr()))
    }

    /// As [`Self::copy_in_streaming`]: the bytes are in the memory itself, or in
    /// the part of the machine that survives a power failure with it, when all earlier flushes are.
    ///
    /// # Errors
    /// As [`Self::copy_in`].
    pub fn copy_in_flushed(&self, offset: u64, source: &[u8]) -> Result<(), CopyError> {
        let range = MappedRange::new(self.addresses(), offset, source.len() as u64)?;
        let target = self.as_ptr().wrapping_add(offset as usize);
        // SAFETY: as in `copy_in`.
        let copied = unsafe { machine::copy_flushed(source.as_ptr(), target, source.len()) };
        #[cfg(feature = "sim")]
        sim::power::flushed(target, source.len());
        order_flushes();
        copied.map_err(|fault| range.error(fault, source.as_ptr()))
    }

    /// Writes the bytes back from the caches of all processors to the memory itself, whoever stored
    /// them, before any later store.
    ///
    /// # Errors
    /// As [`Self::copy_out`].
    pub fn flush(&self, offset: u64, len: u64) -> Result<(), CopyError> {
        let range = MappedRange::new(self.addresses(), offset, len)?;
        let start = self.as_ptr().wrapping_add(offset as usize);
        // SAFETY: the range was checked against the mapping, which stays until `self` is dropped.
        let flushed = unsafe { machine::flush(start, len as usize) };
        #[cfg(feature = "sim")]
        sim::power::flushed(start, len as usize);
        order_flushes();
        flushed.map_err(|fault| range.error(fault, start))
    }

    /// Fills `len` bytes from `offset` on with zero.
    ///
    /// # Errors
    /// As [`Self::copy_in`].
    #[inline]
    pub fn fill_zero(&self, offset: u64, len: u64) -> Result<(), CopyError> {
        let range = MappedRange::new(self.addresses(), offset, len)?;
        if !sim::word() {
            return Ok(());
        }
        let target = self.as_ptr().wrapping_add(offset as usize);
        // SAFETY: as in `copy_in`.
        let filled = unsafe { zero(target, len as usize) };
        filled.map_err(|fault| range.error(fault, target))
    }
}

/// Loads one word, aligned, that others may change or take away meanwhile.
///
/// # Safety
/// `source` must be aligned and lie in a mapping that stays; its memory need not answer.
#[inline]
pub(crate) unsafe fn load_u64(source: *const u64) -> Result<u64, FaultCause> {
    // SAFETY: the caller's promises are those of the call.
    unsafe { machine::load_u64(source) }.map_err(|fault| fault.cause)
}

/// Loads `nr_words` words, each as [`load_u64`] does, the first one first.
///
/// # Safety
/// As [`load_u64`] for each; `target` must be writable for as many, and nobody else's.
#[inline]
pub(crate) unsafe fn load_run(
    source: *const u64,
    target: *mut u64,
    nr_words: usize,
) -> Result<(), FaultCause> {
    // SAFETY: the caller's promises are those of the call.
    unsafe { machine::load_run(source, target, nr_words) }.map_err(|fault| fault.cause)
}

/// As [`load_u64`], four bytes.
///
/// # Safety
/// As [`load_u64`].
#[inline]
pub(crate) unsafe fn load_u32(source: *const u32) -> Result<u32, FaultCause> {
    // SAFETY: the caller's promises are those of the call.
    unsafe { machine::load_u32(source) }.map_err(|fault| fault.cause)
}

/// A range that was found to lie inside its mapping.
struct MappedRange {
    mapping: Range<usize>,
    offset: u64,
    len: u64,
}

impl MappedRange {
    #[inline]
    fn new(mapping: Range<usize>, offset: u64, len: u64) -> Result<Self, OutOfBounds> {
        let mapping_len = mapping.len() as u64;
        match offset.checked_add(len) {
            Some(end) if end <= mapping_len => Ok(Self { mapping, offset, len }),
            _ => Err(OutOfBounds { offset, len, mapping_len }),
        }
    }

    /// Says which side of the copy did not answer, and where. `slice` is the caller's side.
    #[cold]
    fn error(self, fault: Fault, slice: *const u8) -> CopyError {
        let Fault { address, cause } = fault;
        // Broken memory is reported by the start of its page, which may lie before the range.
        let last = self.len.saturating_sub(1);
        if self.mapping.contains(&address) {
            let offset = (address - self.mapping.start) as u64;
            let offset = offset.clamp(self.offset, self.offset.saturating_add(last));
            return CopyError::Fault(MemoryFault { offset, cause });
        }
        let offset = (address.saturating_sub(slice as usize) as u64).min(last);
        CopyError::SliceFault(MemoryFault { offset, cause })
    }
}

/// Memory that did not answer, by its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fault {
    address: usize,
    cause: FaultCause,
}

/// Copies `len` bytes that others may change meanwhile.
///
/// # Safety
/// `source` must be readable and `target` writable for `len` bytes, the two must not overlap, and
/// neither may lie under a reference that promises otherwise (a foreign `&mut` to either, a `&` to
/// plain bytes of the target). Either side may be changed by others during the copy, or not answer.
#[inline]
unsafe fn copy(source: *const u8, target: *mut u8, len: usize) -> Result<(), Fault> {
    // SAFETY: the caller's promises are those of the call.
    unsafe { machine::copy(source, target, len) }
}

/// Fills `len` bytes with zero while others may look.
///
/// # Safety
/// As [`copy`], of the target alone.
#[inline]
unsafe fn zero(target: *mut u8, len: usize) -> Result<(), Fault> {
    // SAFETY: the caller's promises are those of the call.
    unsafe { machine::zero(target, len) }
}

pub(crate) use machine::end_copy;

/// Orders flushes, and copies past the caches, before all later stores.
pub(crate) fn order_flushes() {
    machine::order_flushes();
    #[cfg(feature = "sim")]
    sim::power::fenced();
}

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
use x86_64 as machine;

// Compiled for tests everywhere, so that it cannot rot.
#[cfg(any(test, not(target_arch = "x86_64")))]
mod portable;
#[cfg(not(target_arch = "x86_64"))]
use portable as machine;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryFile, PageSize};

    fn mappings() -> (ReadMapping, WriteMapping) {
        let file = MemoryFile::anonymous("bytes-test", 8192, PageSize::Base).unwrap();
        (ReadMapping::map(&file, 0, 8192).unwrap(), WriteMapping::map(&file, 0, 8192).unwrap())
    }

    #[test]
    fn bytes_copied_in_come_out_of_both_kinds_of_mapping() {
        let (reader, writer) = mappings();
        writer.copy_in(4090, b"across a page").unwrap();
        let mut bytes = [0; 13];
        reader.copy_out(4090, &mut bytes).unwrap();
        assert_eq!(&bytes, b"across a page");
        writer.fill_zero(4095, 1).unwrap();
        writer.copy_out(4090, &mut bytes).unwrap();
        assert_eq!(&bytes, b"acros\0 a page");
    }

    #[test]
    fn bytes_copied_past_the_caches_arrive_at_every_offset_and_length() {
        for copy in [WriteMapping::copy_in_flushed, WriteMapping::copy_in_streaming] {
            exercise_past_caches(copy);
        }
    }

    fn exercise_past_caches(copy: fn(&WriteMapping, u64, &[u8]) -> Result<(), CopyError>) {
        let (reader, writer) = mappings();
        let source: Vec<u8> = (0..400_u32).map(|at| at as u8 ^ 0x5a).collect();
        for offset in [0_usize, 1, 15, 63, 64, 65, 4090] {
            for len in [0_usize, 1, 63, 64, 65, 127, 128, 200, 331] {
                writer.fill_zero(0, 8192).unwrap();
                copy(&writer, offset as u64, &source[3..3 + len]).unwrap();
                let mut bytes = vec![0; len + 2];
                let from = offset.saturating_sub(1);
                reader.copy_out(from as u64, &mut bytes).unwrap();
                let skipped = offset - from;
                assert_eq!(&bytes[skipped..skipped + len], &source[3..3 + len]);
                assert_eq!(bytes[skipped + len], 0, "one byte too many at {offset}, {len}");
                assert!(skipped == 0 || bytes[0] == 0, "a byte before {offset}");
                writer.flush(offset as u64, len as u64).unwrap();
            }
        }
        assert!(writer.flush(8192, 1).is_err());
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn flushes_and_copies_of_memory_that_was_given_up_are_errors() {
        let (_, writer) = mappings();
        writer.abandon().unwrap();
        let gone = |offset| CopyError::Fault(MemoryFault { offset, cause: FaultCause::Unbacked });
        let mut bytes = [1; 300];
        for copy in [WriteMapping::copy_in_flushed, WriteMapping::copy_in_streaming] {
            let copied = copy(&writer, 4100, &bytes);
            assert_eq!(copied.map_err(|error| error.errno()), Err(libc::EIO));
        }
        assert_eq!(writer.copy_out(100, &mut bytes), Err(gone(100)));
        assert!(matches!(writer.flush(128, 64), Err(CopyError::Fault(_))));
        assert_eq!(writer.copy_in(0, &bytes), Err(gone(0)));
    }

    #[test]
    fn range_outside_is_an_error_that_touches_nothing() {
        let (reader, writer) = mappings();
        let mut bytes = [7; 2];
        for offset in [8191, 8192, u64::MAX] {
            let error = reader.copy_out(offset, &mut bytes).unwrap_err();
            assert_eq!(error, OutOfBounds { offset, len: 2, mapping_len: 8192 }.into());
            assert_eq!(error.errno(), libc::EFAULT);
            assert!(writer.copy_out(offset, &mut bytes).is_err());
            assert!(writer.copy_in(offset, &bytes).is_err());
            assert!(writer.fill_zero(offset, 2).is_err());
        }
        assert_eq!(bytes, [7; 2]);
        assert!(writer.fill_zero(1, u64::MAX).is_err());
        writer.fill_zero(8192, 0).unwrap();
        writer.copy_in(8192, &[]).unwrap();
    }

    type Copy = unsafe fn(*const u8, *mut u8, usize) -> Result<(), Fault>;
    type Zero = unsafe fn(*mut u8, usize) -> Result<(), Fault>;

    /// Every length up to a few blocks, at every alignment that matters, with guards around.
    fn exercise(copy: Copy, zero: Zero) {
        const GUARD: usize = 32;
        let source: Vec<u8> = (0..1024u32).map(|i| (i * 7 + i / 256) as u8 | 1).collect();
        for len in (0..300).chain([511, 512, 513, 900]) {
            for (from, to) in [(0, 0), (1, 0), (0, 1), (3, 13), (16, 8), (31, 32)] {
                let mut target = vec![0xEE; 1024 + 2 * GUARD];
                let start = GUARD + to;
                // SAFETY: from + len is at most 931 of the source's 1024 bytes.
                let first = unsafe { source.as_ptr().add(from) };
                // SAFETY: start + len is at most 964 of the target's 1088 bytes.
                let place = unsafe { target.as_mut_ptr().add(start) };
                // SAFETY: both ranges lie inside their own allocation, as computed above.
                unsafe { copy(first, place, len) }.unwrap();
                assert_eq!(target[start..start + len], source[from..from + len], "length {len}");
                assert!(target[..start].iter().all(|&byte| byte == 0xEE), "length {len}");
                assert!(target[start + len..].iter().all(|&byte| byte == 0xEE), "length {len}");
                // SAFETY: start + len is at most 964 of the target's 1088 bytes.
                let place = unsafe { target.as_mut_ptr().add(start) };
                // SAFETY: as above.
                unsafe { zero(place, len) }.unwrap();
                assert!(target[start..start + len].iter().all(|&byte| byte == 0), "length {len}");
                assert!(target[..start].iter().all(|&byte| byte == 0xEE), "length {len}");
                assert!(target[start + len..].iter().all(|&byte| byte == 0xEE), "length {len}");
            }
        }
    }

    #[test]
    fn every_length_and_alignment_copies_exactly_its_bytes() {
        exercise(copy, zero);
    }

    #[test]
    fn portable_twin_copies_exactly_its_bytes() {
        exercise(portable::copy, portable::zero);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn loop_without_avx_copies_exactly_its_bytes() {
        exercise(x86_64::copy_without_avx, zero);
    }
}
