//! Words that read as zero and take memory when they are first written to.

// UNSAFETY: zeroed memory is handed out as atomics without a store to each; advice on memory of our
// own.
#![allow(unsafe_code)]

use std::sync::atomic::AtomicU64;

use rustix::mm::Advice;

const HUGE_BYTES: usize = 2 << 20;

/// Returns `nr_words` words that read as zero. Memory is taken page by page as they are written to:
/// large allocations come from the kernel, which gives zeros.
#[must_use]
pub fn zeroed_words(nr_words: usize) -> Box<[AtomicU64]> {
    let words = Box::<[AtomicU64]>::new_zeroed_slice(nr_words);
    // SAFETY: the all-zero bit pattern is an atomic of value 0.
    unsafe { words.assume_init() }
}

/// As [`zeroed_words`], in huge pages where the system gives some to who asks
/// (`transparent_hugepage` is `madvise` or `always`): memory is then taken 2 MiB at a time, and
/// reading all over it misses the processor's address cache less.
#[must_use]
pub fn zeroed_words_in_huge_pages(nr_words: usize) -> Box<[AtomicU64]> {
    let words = zeroed_words(nr_words);
    let (start, len) = (words.as_ptr().addr(), size_of_val(&*words));
    let first = start.next_multiple_of(HUGE_BYTES) - start;
    let whole = len.saturating_sub(first) / HUGE_BYTES * HUGE_BYTES;
    if whole != 0 {
        let inside = words.as_ptr().wrapping_byte_add(first).cast_mut().cast();
        // A kernel without huge pages refuses, and small ones do.
        // SAFETY: the range lies in `words`. The advice changes no byte.
        let _advised = unsafe { rustix::mm::madvise(inside, whole, Advice::LinuxHugepage) };
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_gibibyte_of_zeros_takes_what_is_written() {
        let resident_pages = || -> u64 {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse().unwrap()
        };
        let before = resident_pages();
        let words = zeroed_words(1 << 27);
        words[12_345_678].store(7, Ordering::Relaxed);
        assert_eq!(words[1 << 26].load(Ordering::Relaxed), 0);
        // Other tests of this process may take some megabytes meanwhile.
        assert!(resident_pages() < before + (64 << 20) / 4096);
        assert_eq!(words[12_345_678].load(Ordering::Relaxed), 7);
    }

    #[test]
    fn words_in_huge_pages_are_zero_too_whatever_their_number() {
        for nr_words in [0, 1, HUGE_BYTES / 8, 5 * HUGE_BYTES / 8 + 3] {
            let words = zeroed_words_in_huge_pages(nr_words);
            assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
            words.iter().for_each(|word| word.store(1, Ordering::Relaxed));
        }
    }
}
