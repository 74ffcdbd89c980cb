//! The copy loops of x86-64, in assembly.

// UNSAFETY: inline assembly on raw pointers is the point of this file.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::is_x86_feature_detected;

/// What one turn of the block loops copies: two cache lines.
const BLOCK_BYTES: usize = 128;
const CHUNK_BYTES: usize = 16;

/// See [`super::copy`].
#[inline]
pub(super) unsafe fn copy(source: *const u8, target: *mut u8, len: usize) {
    let in_blocks = len - len % BLOCK_BYTES;
    if in_blocks > 0 {
        if is_x86_feature_detected!("avx") {
            // SAFETY: a part of the caller's ranges, a multiple of the block and not 0; AVX is there.
            unsafe { copy_blocks_avx(source, target, in_blocks) };
        } else {
            // SAFETY: as above, without need of AVX.
            unsafe { copy_blocks_sse(source, target, in_blocks) };
        }
    }
    // SAFETY: the caller's ranges; `in_blocks` is at most `len`.
    unsafe { copy_rest(source, target, in_blocks, len) };
}

/// What [`copy`] does on a machine without AVX.
#[cfg(test)]
pub(super) unsafe fn copy_without_avx(source: *const u8, target: *mut u8, len: usize) {
    let in_blocks = len - len % BLOCK_BYTES;
    if in_blocks > 0 {
        // SAFETY: as in `copy`.
        unsafe { copy_blocks_sse(source, target, in_blocks) };
    }
    // SAFETY: as in `copy`.
    unsafe { copy_rest(source, target, in_blocks, len) };
}

/// See [`super::zero`].
#[inline]
pub(super) unsafe fn zero(target: *mut u8, len: usize) {
    // SAFETY: `rep stosb` writes exactly the range that the caller vouches for; the direction flag
    // is clear on entry to every asm block; the registers it changes are declared.
    unsafe {
        asm!(
            "rep stosb",
            inout("rcx") len => _,
            inout("rdi") target => _,
            in("al") 0u8,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies the bytes from `done` to `len`, fewer than a block.
#[inline]
unsafe fn copy_rest(source: *const u8, target: *mut u8, mut done: usize, len: usize) {
    if len < CHUNK_BYTES {
        // SAFETY: the caller's whole ranges: `done` is 0 when not even a chunk was asked for.
        return unsafe { copy_bytes(source, target, len) };
    }
    while len - done >= CHUNK_BYTES {
        // SAFETY: done + CHUNK_BYTES <= len, so the chunk lies inside both of the caller's ranges.
        unsafe { copy_chunk(source.wrapping_add(done), target.wrapping_add(done)) };
        done += CHUNK_BYTES;
    }
    if done < len {
        // The last chunk overlaps the one before: cheaper than single bytes, and copying a byte
        // twice is as good as copying it later.
        let last = len - CHUNK_BYTES;
        // SAFETY: len >= CHUNK_BYTES, so the chunk lies inside both of the caller's ranges.
        unsafe { copy_chunk(source.wrapping_add(last), target.wrapping_add(last)) };
    }
}

/// Copies `len` bytes, a multiple of the block and not 0, on a machine with AVX.
#[inline]
unsafe fn copy_blocks_avx(source: *const u8, target: *mut u8, len: usize) {
    // SAFETY: the loop reads and writes exactly the two ranges that the caller vouches for, and
    // needs no alignment. `clobber_abi` declares every vector register that vzeroupper touches.
    unsafe {
        asm!(
            "2:",
            "vmovdqu ymm0, [rsi]",
            "vmovdqu ymm1, [rsi + 32]",
            "vmovdqu ymm2, [rsi + 64]",
            "vmovdqu ymm3, [rsi + 96]",
            "vmovdqu [rdi], ymm0",
            "vmovdqu [rdi + 32], ymm1",
            "vmovdqu [rdi + 64], ymm2",
            "vmovdqu [rdi + 96], ymm3",
            "add rsi, 128",
            "add rdi, 128",
            "sub rcx, 128",
            "jnz 2b",
            "vzeroupper",
            inout("rsi") source => _,
            inout("rdi") target => _,
            inout("rcx") len => _,
            clobber_abi("C"),
            options(nostack),
        );
    }
}

/// Copies `len` bytes, a multiple of the block and not 0, on any machine.
#[inline]
unsafe fn copy_blocks_sse(source: *const u8, target: *mut u8, len: usize) {
    // SAFETY: the loop reads and writes exactly the two ranges that the caller vouches for, half a
    // block per turn, and needs no alignment; the registers it changes are declared.
    unsafe {
        asm!(
            "2:",
            "movdqu {a}, [{source}]",
            "movdqu {b}, [{source} + 16]",
            "movdqu {c}, [{source} + 32]",
            "movdqu {d}, [{source} + 48]",
            "movdqu [{target}], {a}",
            "movdqu [{target} + 16], {b}",
            "movdqu [{target} + 32], {c}",
            "movdqu [{target} + 48], {d}",
            "add {source}, 64",
            "add {target}, 64",
            "sub {left}, 64",
            "jnz 2b",
            source = inout(reg) source => _,
            target = inout(reg) target => _,
            left = inout(reg) len => _,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack),
        );
    }
}

/// Copies 16 bytes.
#[inline]
unsafe fn copy_chunk(source: *const u8, target: *mut u8) {
    // SAFETY: reads and writes exactly the 16 bytes that the caller vouches for, at any alignment.
    unsafe {
        asm!(
            "movdqu {chunk}, [{source}]",
            "movdqu [{target}], {chunk}",
            source = in(reg) source,
            target = in(reg) target,
            chunk = out(xmm_reg) _,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies a few bytes, or none.
#[inline]
unsafe fn copy_bytes(source: *const u8, target: *mut u8, len: usize) {
    // SAFETY: `rep movsb` reads and writes exactly the ranges that the caller vouches for; the
    // direction flag is clear on entry to every asm block; the changed registers are declared.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rsi") source => _,
            inout("rdi") target => _,
            options(nostack, preserves_flags),
        );
    }
}
