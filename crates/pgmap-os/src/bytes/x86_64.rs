//! The copy loops of x86-64, in assembly, and the way out of them when memory does not answer.
//!
//! All loops stand between two labels and use no stack. So the SIGBUS handler can end a copy from
//! any instruction of it: it writes the answer into the two registers that an answer is returned in
//! and goes on at [`pgmap_os_copy_fixup`], which is a `ret` (after `vzeroupper` for the loop that
//! dirties the upper halves of vector registers). The labels are symbols of the whole program:
//! linking two copies of this crate is an error of the linker, not a surprise.

// UNSAFETY: assembly on raw pointers is the point of this file.
#![allow(unsafe_code)]

use super::{Fault, FaultCause};
use crate::sigbus::BUS_MCEERR_AR;
use std::arch::x86_64::__cpuid_count;
use std::arch::{global_asm, is_x86_feature_detected};
use std::sync::OnceLock;

/// What a loop returns in `rax` and `rdx`: all zero when it came to its end.
#[repr(C)]
struct LoopOutcome {
    /// Where memory did not answer, or what was loaded.
    address: usize,
    /// The signal's `si_code`, never 0.
    code: usize,
}

type CopyLoop = unsafe extern "C" fn(target: *mut u8, source: *const u8, len: usize) -> LoopOutcome;

unsafe extern "C" {
    /// Copies in blocks of 128 bytes by 32-byte registers. First of the guarded instructions.
    fn pgmap_os_copy_avx(target: *mut u8, source: *const u8, len: usize) -> LoopOutcome;
    /// The same by 16-byte registers. What lies before it needs `vzeroupper` on the way out.
    fn pgmap_os_copy_sse(target: *mut u8, source: *const u8, len: usize) -> LoopOutcome;
    fn pgmap_os_zero(target: *mut u8, len: usize) -> LoopOutcome;
    /// Copies past the caches: whole lines, to the start of one.
    fn pgmap_os_copy_past_caches(target: *mut u8, source: *const u8, len: usize) -> LoopOutcome;
    /// Writes lines back and keeps them (CLWB), from the start of one to before `end`.
    fn pgmap_os_write_back(start: *const u8, end: *const u8) -> LoopOutcome;
    /// Writes lines back and drops them (CLFLUSHOPT).
    fn pgmap_os_flush_unordered(start: *const u8, end: *const u8) -> LoopOutcome;
    /// Writes lines back and drops them, one after the other (CLFLUSH).
    fn pgmap_os_flush_in_order(start: *const u8, end: *const u8) -> LoopOutcome;
    /// Loads eight bytes at once. What it loaded comes in place of the address.
    fn pgmap_os_load_u64(source: *const u64) -> LoopOutcome;
    /// Loads `nr_words` words of eight bytes, each at once, the first one first.
    fn pgmap_os_load_run(target: *mut u64, source: *const u64, nr_words: usize) -> LoopOutcome;
    /// Loads four bytes at once.
    fn pgmap_os_load_u32(source: *const u32) -> LoopOutcome;
    /// Only an address: the way out of the loop of 32-byte registers, the end of what is guarded.
    fn pgmap_os_copy_fixup_avx();
    /// Only an address: the way out of everything else.
    fn pgmap_os_copy_fixup();
}

/// See [`super::copy`].
pub(super) unsafe fn copy(source: *const u8, target: *mut u8, len: usize) -> Result<(), Fault> {
    let copy_loop: CopyLoop =
        if is_x86_feature_detected!("avx") { pgmap_os_copy_avx } else { pgmap_os_copy_sse };
    // SAFETY: the caller's promises are those of the loop; AVX is there where it is used.
    let outcome = unsafe { copy_loop(target, source, len) };
    outcome.into_result()
}

/// See [`super::load_u64`].
pub(super) unsafe fn load_u64(source: *const u64) -> Result<u64, Fault> {
    // SAFETY: the caller's promises are those of the load.
    let outcome = unsafe { pgmap_os_load_u64(source) };
    outcome.into_value()
}

/// See [`super::load_run`].
pub(super) unsafe fn load_run(
    source: *const u64,
    target: *mut u64,
    nr_words: usize,
) -> Result<(), Fault> {
    // SAFETY: the caller's promises are those of the loop.
    let outcome = unsafe { pgmap_os_load_run(target, source, nr_words) };
    outcome.into_result()
}

/// See [`super::load_u32`].
pub(super) unsafe fn load_u32(source: *const u32) -> Result<u32, Fault> {
    // SAFETY: the caller's promises are those of the load.
    let outcome = unsafe { pgmap_os_load_u32(source) };
    outcome.into_value().map(|value| value as u32)
}

/// What [`copy`] does on a machine without AVX.
#[cfg(test)]
pub(super) unsafe fn copy_without_avx(
    source: *const u8,
    target: *mut u8,
    len: usize,
) -> Result<(), Fault> {
    // SAFETY: the caller's promises are those of the loop.
    let outcome = unsafe { pgmap_os_copy_sse(target, source, len) };
    outcome.into_result()
}

/// See [`super::zero`].
pub(super) unsafe fn zero(target: *mut u8, len: usize) -> Result<(), Fault> {
    // SAFETY: the caller's promises are those of the loop.
    let outcome = unsafe { pgmap_os_zero(target, len) };
    outcome.into_result()
}

/// Bytes of a line of the caches.
const LINE_BYTES: usize = 64;

type FlushLoop = unsafe extern "C" fn(start: *const u8, end: *const u8) -> LoopOutcome;

/// The best loop that this processor knows (CPUID leaf 7, EBX bits 24 and 23).
fn flush_loop() -> FlushLoop {
    static FOUND: OnceLock<FlushLoop> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let features = __cpuid_count(7, 0).ebx;
        match (features & 1 << 24 != 0, features & 1 << 23 != 0) {
            (true, _) => pgmap_os_write_back,
            (false, true) => pgmap_os_flush_unordered,
            (false, false) => pgmap_os_flush_in_order,
        }
    })
}

/// Writes the lines that `len` bytes from `start` on lie in back to memory.
///
/// # Safety
/// They must lie in a mapping that stays; its memory need not answer.
pub(super) unsafe fn flush(start: *const u8, len: usize) -> Result<(), Fault> {
    let lead = start as usize % LINE_BYTES;
    let (first, end) = (start.wrapping_sub(lead), start.wrapping_add(len));
    if len == 0 {
        return Ok(());
    }
    let flush_loop = flush_loop();
    // SAFETY: the caller's promise; a line never crosses a page.
    let outcome = unsafe { flush_loop(first, end) };
    outcome.into_result()
}

/// As [`super::copy`], and what was written is in memory after [`order_flushes`].
///
/// # Safety
/// As [`super::copy`].
pub(super) unsafe fn copy_flushed(
    source: *const u8,
    target: *mut u8,
    len: usize,
) -> Result<(), Fault> {
    // SAFETY: the ends lie in the target, which is the caller's to write.
    let flush_end = |end: *const u8, len: usize| unsafe { flush(end, len) };
    // SAFETY: the caller's promises are those of the copy.
    unsafe { copy_past_caches(source, target, len, flush_end) }
}

/// As [`super::copy`]; what was written is not in the caches, but for the ends that are not whole
/// lines. Others may see it after a later store only if [`order_flushes`] came before that.
///
/// # Safety
/// As [`super::copy`].
pub(super) unsafe fn copy_streaming(
    source: *const u8,
    target: *mut u8,
    len: usize,
) -> Result<(), Fault> {
    // SAFETY: the caller's promises are those of the copy.
    unsafe { copy_past_caches(source, target, len, |_, _| Ok(())) }
}

/// Copies whole lines past the caches and the ends through them; `after` is called with each end.
///
/// # Safety
/// As [`super::copy`].
#[inline]
unsafe fn copy_past_caches(
    source: *const u8,
    target: *mut u8,
    len: usize,
    after: impl Fn(*const u8, usize) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let lead = ((target as usize).next_multiple_of(LINE_BYTES) - target as usize).min(len);
    let body = (len - lead) / LINE_BYTES * LINE_BYTES;
    let at = |offset: usize| (source.wrapping_add(offset), target.wrapping_add(offset));
    if body > 0 {
        let (source, target) = at(lead);
        // SAFETY: a part of the caller's ranges, whole lines from the start of one.
        let outcome = unsafe { pgmap_os_copy_past_caches(target, source, body) };
        outcome.into_result()?;
    }
    for (offset, len) in [(0, lead), (lead + body, len - lead - body)] {
        let (source, target) = at(offset);
        // SAFETY: a part of the caller's ranges.
        unsafe { copy(source, target, len) }?;
        after(target, len)?;
    }
    Ok(())
}

/// Orders flushes and copies past the caches before all later stores (SFENCE).
pub(crate) fn order_flushes() {
    // SAFETY: the instruction touches no memory and every x86-64 has it.
    unsafe { std::arch::x86_64::_mm_sfence() };
}

/// Makes an interrupted copy return that `address` did not answer, for the reason `code`. Returns
/// false if it was no copy that was interrupted. Safe in a signal handler.
pub(crate) fn end_copy(context: &mut libc::ucontext_t, address: usize, code: i32) -> bool {
    let registers = &mut context.uc_mcontext.gregs;
    let at = registers[libc::REG_RIP as usize] as usize;
    let (start, end) =
        (pgmap_os_copy_avx as *const () as usize, pgmap_os_copy_fixup_avx as *const () as usize);
    if !(start..end).contains(&at) {
        return false;
    }
    let is_avx = at < pgmap_os_copy_sse as *const () as usize;
    let fixup = if is_avx { pgmap_os_copy_fixup_avx } else { pgmap_os_copy_fixup };
    registers[libc::REG_RAX as usize] = address as i64;
    registers[libc::REG_RDX as usize] = code.into();
    registers[libc::REG_RIP as usize] = fixup as *const () as i64;
    true
}

impl LoopOutcome {
    #[inline]
    fn into_value(self) -> Result<u64, Fault> {
        let value = self.address as u64;
        self.into_result().map(|()| value)
    }

    #[inline]
    fn into_result(self) -> Result<(), Fault> {
        if self.code == 0 {
            return Ok(());
        }
        let is_poisoned = self.code == BUS_MCEERR_AR as usize;
        let cause = if is_poisoned { FaultCause::Poisoned } else { FaultCause::Unbacked };
        Err(Fault { address: self.address, cause })
    }
}

// System V calling convention: target in rdi, source in rsi, length in rdx; all registers used here
// are the caller's to save, the direction flag is clear, and no alignment is needed. Every access
// lies inside the two ranges: a rest of 16 bytes or more ends with a chunk that overlaps the one
// before, because copying a byte twice is as good as copying it later, and shorter copies are two
// overlapping halves of 8 or 4 bytes, or single bytes. Lower addresses come first on either side,
// so that the first page that does not answer is the one that is named.
//
// Every 4096 bytes the long loops prefetch a line of the next page of each range. It is there for
// its translation, which is looked up while this page is copied: the processor's own prefetchers
// end at the page. A prefetch never faults.
global_asm!(
    ".pushsection .text.pgmap_os_copy, \"ax\", @progbits",
    ".globl pgmap_os_copy_avx, pgmap_os_copy_sse, pgmap_os_zero",
    ".globl pgmap_os_load_u64, pgmap_os_load_u32, pgmap_os_load_run",
    ".globl pgmap_os_copy_past_caches, pgmap_os_write_back",
    ".globl pgmap_os_flush_unordered, pgmap_os_flush_in_order",
    ".hidden pgmap_os_copy_past_caches, pgmap_os_write_back",
    ".hidden pgmap_os_flush_unordered, pgmap_os_flush_in_order",
    ".globl pgmap_os_copy_fixup_avx, pgmap_os_copy_fixup",
    ".hidden pgmap_os_copy_avx, pgmap_os_copy_sse, pgmap_os_zero",
    ".hidden pgmap_os_load_u64, pgmap_os_load_u32, pgmap_os_load_run",
    ".hidden pgmap_os_copy_fixup_avx, pgmap_os_copy_fixup",
    ".type pgmap_os_copy_avx, @function",
    ".type pgmap_os_copy_sse, @function",
    ".type pgmap_os_zero, @function",
    ".p2align 6",
    ".cfi_startproc",
    "pgmap_os_copy_avx:",
    "mov r8, rdx",
    "mov rcx, rdx",
    "and edx, 127",
    "sub rcx, rdx",
    "jz 3f",
    ".p2align 5",
    "2:",
    "test ecx, 4095",
    "jnz 8f",
    "cmp rcx, 4096",
    "jbe 8f",
    "prefetcht0 [rsi + 4096]",
    "prefetchw [rdi + 4096]",
    "8:",
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
    "jmp 3f",
    ".p2align 5",
    "pgmap_os_copy_sse:",
    "mov r8, rdx",
    "mov rcx, rdx",
    "and edx, 63",
    "sub rcx, rdx",
    "jz 3f",
    ".p2align 5",
    "2:",
    "movdqu xmm0, [rsi]",
    "movdqu xmm1, [rsi + 16]",
    "movdqu xmm2, [rsi + 32]",
    "movdqu xmm3, [rsi + 48]",
    "movdqu [rdi], xmm0",
    "movdqu [rdi + 16], xmm1",
    "movdqu [rdi + 32], xmm2",
    "movdqu [rdi + 48], xmm3",
    "add rsi, 64",
    "add rdi, 64",
    "sub rcx, 64",
    "jnz 2b",
    // The rest, in rdx: fewer bytes than a block; r8 is what was asked for.
    "3:",
    "cmp r8, 16",
    "jb 6f",
    "sub rdx, 16",
    "jb 5f",
    "4:",
    "movdqu xmm0, [rsi]",
    "movdqu [rdi], xmm0",
    "add rsi, 16",
    "add rdi, 16",
    "sub rdx, 16",
    "jae 4b",
    "5:",
    "add rdx, 16",
    "jz 9f",
    "movdqu xmm0, [rsi + rdx - 16]",
    "movdqu [rdi + rdx - 16], xmm0",
    "jmp 9f",
    // A copy of fewer than 16 bytes.
    "6:",
    "test dl, 8",
    "jz 7f",
    "mov rax, [rsi]",
    "mov rcx, [rsi + rdx - 8]",
    "mov [rdi], rax",
    "mov [rdi + rdx - 8], rcx",
    "jmp 9f",
    "7:",
    "test dl, 4",
    "jz 8f",
    "mov eax, [rsi]",
    "mov ecx, [rsi + rdx - 4]",
    "mov [rdi], eax",
    "mov [rdi + rdx - 4], ecx",
    "jmp 9f",
    "8:",
    "test dl, dl",
    "jz 9f",
    // Three bytes or fewer: the first, the middle and the last, which may be one.
    "mov ecx, edx",
    "shr ecx",
    "movzx eax, byte ptr [rsi]",
    "movzx r8d, byte ptr [rsi + rcx]",
    "movzx r9d, byte ptr [rsi + rdx - 1]",
    "mov [rdi], al",
    "mov [rdi + rcx], r8b",
    "mov [rdi + rdx - 1], r9b",
    "9:",
    "xor eax, eax",
    "xor edx, edx",
    "ret",
    "pgmap_os_zero:",
    "mov rcx, rsi",
    "xor eax, eax",
    "rep stosb",
    "xor edx, edx",
    "ret",
    "pgmap_os_copy_past_caches:",
    "2:",
    "test edx, 4095",
    "jnz 8f",
    "cmp rdx, 4096",
    "jbe 8f",
    "prefetchnta [rsi + 4096]",
    "prefetchnta [rdi + 4096]",
    "8:",
    "movdqu xmm0, [rsi]",
    "movdqu xmm1, [rsi + 16]",
    "movdqu xmm2, [rsi + 32]",
    "movdqu xmm3, [rsi + 48]",
    "movntdq [rdi], xmm0",
    "movntdq [rdi + 16], xmm1",
    "movntdq [rdi + 32], xmm2",
    "movntdq [rdi + 48], xmm3",
    "add rsi, 64",
    "add rdi, 64",
    "sub rdx, 64",
    "jnz 2b",
    "jmp 9b",
    "pgmap_os_write_back:",
    "clwb [rdi]",
    "add rdi, 64",
    "cmp rdi, rsi",
    "jb pgmap_os_write_back",
    "jmp 9b",
    "pgmap_os_flush_unordered:",
    "clflushopt [rdi]",
    "add rdi, 64",
    "cmp rdi, rsi",
    "jb pgmap_os_flush_unordered",
    "jmp 9b",
    "pgmap_os_flush_in_order:",
    "clflush [rdi]",
    "add rdi, 64",
    "cmp rdi, rsi",
    "jb pgmap_os_flush_in_order",
    "jmp 9b",
    // A load of an aligned word is one access, and later loads come after it, as on all x86.
    "pgmap_os_load_u64:",
    "mov rax, [rdi]",
    "xor edx, edx",
    "ret",
    "pgmap_os_load_u32:",
    "mov eax, [rdi]",
    "xor edx, edx",
    "ret",
    "pgmap_os_load_run:",
    "test rdx, rdx",
    "jz 3f",
    "2:",
    "mov rax, [rsi]",
    "mov [rdi], rax",
    "add rsi, 8",
    "add rdi, 8",
    "dec rdx",
    "jnz 2b",
    "3:",
    "xor eax, eax",
    "xor edx, edx",
    "ret",
    "pgmap_os_copy_fixup_avx:",
    "vzeroupper",
    "pgmap_os_copy_fixup:",
    "ret",
    ".cfi_endproc",
    ".popsection",
);
