//! The one clock that all processes of a machine share: `CLOCK_MONOTONIC`.
//!
//! Its readings can be compared between processes (not between machines or time namespaces) and
//! never go back. It stands still while the machine sleeps.

use rustix::time::{ClockId, clock_gettime};

/// Returns `CLOCK_MONOTONIC` in milliseconds.
pub fn monotonic_ms() -> u64 {
    monotonic_ns() / 1_000_000
}

/// Returns `CLOCK_MONOTONIC` in nanoseconds.
#[inline]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The kernel keeps both fields non-negative, and 2^64 ns are 584 years of uptime.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_never_goes_back_and_both_units_agree() {
        let before_ms = monotonic_ms();
        let first_ns = monotonic_ns();
        let second_ns = monotonic_ns();
        assert!(second_ns >= first_ns);
        assert!(first_ns / 1_000_000 >= before_ms);
    }
}
