//! The copy loops of every other machine: volatile words, then volatile bytes.
//!
//! They know no way out: memory that does not answer kills the process by SIGBUS.
//!
//! The compiler may neither invent, merge nor drop a volatile access, which is what keeps it from
//! building on bytes that change.

// UNSAFETY: volatile access to raw pointers is the point of this file.
#![allow(unsafe_code)]

use super::Fault;
#[cfg(not(target_arch = "x86_64"))]
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const WORD_BYTES: usize = size_of::<u64>();

/// See [`super::copy`].
pub(super) unsafe fn copy(source: *const u8, target: *mut u8, len: usize) -> Result<(), Fault> {
    let mut done = 0;
    let is_aligned = |pointer: *const u8| (pointer as usize).is_multiple_of(WORD_BYTES);
    if is_aligned(source) && is_aligned(target) {
        while len - done >= WORD_BYTES {
            // SAFETY: done + WORD_BYTES <= len, inside the caller's range; aligned as checked.
            let word = unsafe { source.wrapping_add(done).cast::<u64>().read_volatile() };
            // SAFETY: as above.
            unsafe { target.wrapping_add(done).cast::<u64>().write_volatile(word) };
            done += WORD_BYTES;
        }
    }
    while done < len {
        // SAFETY: done < len, inside the caller's range.
        let byte = unsafe { source.wrapping_add(done).read_volatile() };
        // SAFETY: as above.
        unsafe { target.wrapping_add(done).write_volatile(byte) };
        done += 1;
    }
    Ok(())
}

/// See [`super::zero`].
pub(super) unsafe fn zero(target: *mut u8, len: usize) -> Result<(), Fault> {
    let mut done = 0;
    if (target as usize).is_multiple_of(WORD_BYTES) {
        while len - done >= WORD_BYTES {
            // SAFETY: done + WORD_BYTES <= len, inside the caller's range; aligned as checked.
            unsafe { target.wrapping_add(done).cast::<u64>().write_volatile(0) };
            done += WORD_BYTES;
        }
    }
    while done < len {
        // SAFETY: done < len, inside the caller's range.
        unsafe { target.wrapping_add(done).write_volatile(0) };
        done += 1;
    }
    Ok(())
}

/// A copy through the caches.
///
/// # Safety
/// As [`super::copy`].
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn copy_streaming(
    source: *const u8,
    target: *mut u8,
    len: usize,
) -> Result<(), Fault> {
    // SAFETY: the caller's promises are those of the call.
    unsafe { copy(source, target, len) }
}

/// Stores without a flush: elsewhere than on x86-64 no device is said to survive a power failure.
///
/// # Safety
/// As [`super::copy`].
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn copy_flushed(
    source: *const u8,
    target: *mut u8,
    len: usize,
) -> Result<(), Fault> {
    // SAFETY: the caller's promises are those of the call.
    unsafe { copy(source, target, len) }
}

/// See [`copy_flushed`].
///
/// # Safety
/// None is needed.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn flush(_: *const u8, _: usize) -> Result<(), Fault> {
    Ok(())
}

/// See [`copy_flushed`].
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn order_flushes() {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

/// See [`super::load_u64`].
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn load_u64(source: *const u64) -> Result<u64, Fault> {
    // SAFETY: aligned and mapped by the caller's promise; every bit pattern is a u64.
    Ok(unsafe { AtomicU64::from_ptr(source.cast_mut()) }.load(Ordering::Relaxed))
}

/// See [`super::load_run`].
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn load_run(
    source: *const u64,
    target: *mut u64,
    nr_words: usize,
) -> Result<(), Fault> {
    for at in 0..nr_words {
        // SAFETY: at < nr_words, inside the caller's range; every bit pattern is a u64.
        let word = unsafe { AtomicU64::from_ptr(source.wrapping_add(at).cast_mut()) };
        // Acquire: later words are loaded later.
        let loaded = word.load(Ordering::Acquire);
        // SAFETY: as above; the target is the caller's own.
        unsafe { target.wrapping_add(at).write(loaded) };
    }
    Ok(())
}

/// See [`super::load_u32`].
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn load_u32(source: *const u32) -> Result<u32, Fault> {
    // SAFETY: aligned and mapped by the caller's promise; every bit pattern is a u32.
    Ok(unsafe { AtomicU32::from_ptr(source.cast_mut()) }.load(Ordering::Relaxed))
}

/// Ends no copy: see the head of the file.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn end_copy(_context: &mut libc::ucontext_t, _address: usize, _code: i32) -> bool {
    false
}
