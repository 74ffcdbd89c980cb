//! The one clock that all processes of a machine share: `CLOCK_MONOTONIC`.
//!
//! Its readings can be compared between processes (not between machines or time namespaces) and
//! never go back. It stands still while the machine sleeps.

use rustix::time::{ClockId, clock_gettime};

#[cfg(feature = "sim")]
pub use simulated::Instant;
#[cfg(not(feature = "sim"))]
pub use std::time::Instant;

/// Returns `CLOCK_MONOTONIC` in milliseconds.
pub fn monotonic_ms() -> u64 {
    monotonic_ns() / 1_000_000
}

/// Returns `CLOCK_MONOTONIC` in nanoseconds.
#[inline]
pub fn monotonic_ns() -> u64 {
    #[cfg(feature = "sim")]
    if let Some(now_ns) = crate::sim::with(|world| world.now_ns()) {
        return now_ns;
    }
    let now = clock_gettime(ClockId::Monotonic);
    // The kernel keeps both fields non-negative, and 2^64 ns are 584 years of uptime.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

#[cfg(feature = "sim")]
mod simulated {
    use std::ops::Add;
    use std::time::Duration;

    /// As the standard library's, on the clock of this module.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub struct Instant(Duration);

    impl Instant {
        /// As the standard library's.
        #[must_use]
        pub fn now() -> Self {
            Self(Duration::from_nanos(super::monotonic_ns()))
        }

        /// As the standard library's.
        #[must_use]
        pub fn elapsed(self) -> Duration {
            Self::now().saturating_duration_since(self)
        }

        /// As the standard library's.
        #[must_use]
        pub fn checked_add(self, by: Duration) -> Option<Self> {
            self.0.checked_add(by).map(Self)
        }

        /// As the standard library's.
        #[must_use]
        pub fn saturating_duration_since(self, earlier: Self) -> Duration {
            self.0.saturating_sub(earlier.0)
        }
    }

    impl Add<Duration> for Instant {
        type Output = Self;

        fn add(self, by: Duration) -> Self {
            Self(self.0 + by)
        }
    }
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
