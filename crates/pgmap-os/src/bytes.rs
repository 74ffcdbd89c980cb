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
//! its line, and what `malloc` returns for 2 MiB never is (`tests/copy_speed.rs` measures). Filling
//! with zero is `rep stosb`, which does not mind. Elsewhere volatile words are copied.

// UNSAFETY: raw pointers and inline assembly are what a copy the compiler cannot see is made of.
#![allow(unsafe_code)]

use crate::{ReadMapping, WriteMapping};
use std::error::Error;
use std::fmt;

/// A range that does not lie inside the mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfBounds {
    /// Where the range starts, in bytes from the start of the mapping.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
    /// How long the mapping is.
    pub mapping_len: u64,
}

impl OutOfBounds {
    /// Returns `EFAULT`: what the kernel says of an address outside.
    pub fn errno(&self) -> i32 {
        libc::EFAULT
    }
}

impl fmt::Display for OutOfBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, len, mapping_len } = self;
        write!(f, "{len} bytes at {offset} do not lie inside a mapping of {mapping_len} bytes")
    }
}

impl Error for OutOfBounds {}

impl ReadMapping {
    /// Copies the bytes from `offset` on into `target`.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is then copied.
    #[inline]
    pub fn copy_out(&self, offset: u64, target: &mut [u8]) -> Result<(), OutOfBounds> {
        check(offset, target.len() as u64, self.len_bytes())?;
        let source = self.as_ptr().wrapping_add(offset as usize);
        // SAFETY: the source range was checked against the mapping, which is readable until `self`
        // is dropped; the target is an exclusive slice of the same length.
        unsafe { copy(source, target.as_mut_ptr(), target.len()) };
        Ok(())
    }
}

impl WriteMapping {
    /// Copies the bytes from `offset` on into `target`.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is then copied.
    #[inline]
    pub fn copy_out(&self, offset: u64, target: &mut [u8]) -> Result<(), OutOfBounds> {
        check(offset, target.len() as u64, self.len_bytes())?;
        let source = self.as_ptr().wrapping_add(offset as usize);
        // SAFETY: as in `ReadMapping::copy_out`.
        unsafe { copy(source, target.as_mut_ptr(), target.len()) };
        Ok(())
    }

    /// Copies `source` over the bytes from `offset` on.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is then written.
    #[inline]
    pub fn copy_in(&self, offset: u64, source: &[u8]) -> Result<(), OutOfBounds> {
        check(offset, source.len() as u64, self.len_bytes())?;
        let target = self.as_ptr().wrapping_add(offset as usize);
        // SAFETY: the target range was checked against the mapping, which is writable until `self`
        // is dropped; no reference to plain bytes of a mapping exists; the source is a slice of the
        // same length.
        unsafe { copy(source.as_ptr(), target, source.len()) };
        Ok(())
    }

    /// Fills `len` bytes from `offset` on with zero.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is then written.
    #[inline]
    pub fn fill_zero(&self, offset: u64, len: u64) -> Result<(), OutOfBounds> {
        check(offset, len, self.len_bytes())?;
        let target = self.as_ptr().wrapping_add(offset as usize);
        // SAFETY: as in `copy_in`.
        unsafe { zero(target, len as usize) };
        Ok(())
    }
}

#[inline]
fn check(offset: u64, len: u64, mapping_len: u64) -> Result<(), OutOfBounds> {
    match offset.checked_add(len) {
        Some(end) if end <= mapping_len => Ok(()),
        _ => Err(OutOfBounds { offset, len, mapping_len }),
    }
}

/// Copies `len` bytes that others may change meanwhile.
///
/// # Safety
/// `source` must be readable and `target` writable for `len` bytes, the two must not overlap, and
/// neither may lie under a reference that promises otherwise (a foreign `&mut` to either, a `&` to
/// plain bytes of the target). Either side may be changed by others during the copy.
#[inline]
pub unsafe fn copy(source: *const u8, target: *mut u8, len: usize) {
    // SAFETY: the caller's promises are those of the call.
    unsafe { machine::copy(source, target, len) }
}

/// Fills `len` bytes with zero while others may look.
///
/// # Safety
/// As [`copy`], of the target alone.
#[inline]
pub unsafe fn zero(target: *mut u8, len: usize) {
    // SAFETY: the caller's promises are those of the call.
    unsafe { machine::zero(target, len) }
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
    fn range_outside_is_an_error_that_touches_nothing() {
        let (reader, writer) = mappings();
        let mut bytes = [7; 2];
        for offset in [8191, 8192, u64::MAX] {
            let error = reader.copy_out(offset, &mut bytes).unwrap_err();
            assert_eq!((error.offset, error.len, error.mapping_len), (offset, 2, 8192));
            assert_eq!(error.errno(), libc::EFAULT);
            assert!(writer.copy_out(offset, &mut bytes).is_err());
            assert!(writer.copy_in(offset, &bytes).is_err());
            assert!(writer.fill_zero(offset, 2).is_err());
        }
        assert_eq!(bytes, [7; 2]);
        assert!(writer.fill_zero(1, u64::MAX).is_err());
        writer.fill_zero(8192, 0).unwrap();
        writer.copy_in(8192, &[]).unwrap();
        let error = OutOfBounds { offset: 9, len: 2, mapping_len: 10 };
        assert_eq!(error.to_string(), "2 bytes at 9 do not lie inside a mapping of 10 bytes");
    }

    type Copy = unsafe fn(*const u8, *mut u8, usize);
    type Zero = unsafe fn(*mut u8, usize);

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
                unsafe { copy(first, place, len) };
                assert_eq!(target[start..start + len], source[from..from + len], "length {len}");
                assert!(target[..start].iter().all(|&byte| byte == 0xEE), "length {len}");
                assert!(target[start + len..].iter().all(|&byte| byte == 0xEE), "length {len}");
                // SAFETY: start + len is at most 964 of the target's 1088 bytes.
                let place = unsafe { target.as_mut_ptr().add(start) };
                // SAFETY: as above.
                unsafe { zero(place, len) };
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
