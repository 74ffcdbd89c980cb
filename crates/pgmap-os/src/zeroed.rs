//! Words that read as zero and take memory when they are first written to.

// UNSAFETY: zeroed memory is handed out as atomics without a store to each.
#![allow(unsafe_code)]

use std::sync::atomic::AtomicU64;

/// Returns `nr_words` words that read as zero. Memory is taken page by page as they are written to:
/// large allocations come from the kernel, which gives zeros.
#[must_use]
pub fn zeroed_words(nr_words: usize) -> Box<[AtomicU64]> {
    let words = Box::<[AtomicU64]>::new_zeroed_slice(nr_words);
    // SAFETY: the all-zero bit pattern is an atomic of value 0.
    unsafe { words.assume_init() }
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
}
