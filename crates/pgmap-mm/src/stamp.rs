//! Stamps: one number for each life of a folio.

use core::fmt;

/// Bits of a stamp. At a million allocations a second they last for nine years.
pub const STAMP_BITS: u32 = 48;

/// A 48-bit number given to each allocation and never again, so that a reference to an earlier
/// life of the same frames can never be mistaken for this one. Zero is no stamp.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(u64);

impl Stamp {
    /// The stamp with this number, unless it is zero or too wide.
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        if number != 0 && number >> STAMP_BITS == 0 { Some(Self(number)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stamp {}", self.0)
    }
}

/// Hands out stamps in rising order (I4). Owner only.
///
/// An owner that may be restarted keeps `limit` in its catalog and starts the next life there, so
/// stamps that were handed out and lost are skipped, never repeated.
#[derive(Debug)]
pub struct StampSource {
    next: u64,
    limit: u64,
}

/// How many stamps one catalog write reserves.
pub const STAMP_RESERVATION: u64 = 1 << 20;

impl StampSource {
    /// A source whose first stamp is `first`. Nothing is reserved yet.
    #[must_use]
    pub fn starting_at(first: u64) -> Self {
        let first = first.max(1);
        Self { next: first, limit: first }
    }

    /// The new limit to put on record before the next stamp may be taken; none while the last
    /// reservation lasts.
    #[must_use]
    pub fn reservation_due(&self) -> Option<u64> {
        (self.next >= self.limit).then(|| self.next.saturating_add(STAMP_RESERVATION))
    }

    /// Takes note that every stamp below `limit` is on record as possibly used.
    pub fn reserved_up_to(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    /// The next stamp; `None` if the reservation is used up or all 2^48 are.
    pub fn take(&mut self) -> Option<Stamp> {
        if self.next >= self.limit {
            return None;
        }
        let stamp = Stamp::new(self.next)?;
        self.next += 1;
        Some(stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_never_taken_before_it_is_on_record() {
        let mut stamps = StampSource::starting_at(1);
        assert_eq!(stamps.take(), None);
        let limit = stamps.reservation_due().unwrap();
        stamps.reserved_up_to(limit);
        assert_eq!(stamps.take(), Stamp::new(1));
        let restarted = StampSource::starting_at(limit);
        assert!(restarted.reservation_due().unwrap() > limit);
    }

    #[test]
    fn stamps_end_instead_of_wrapping() {
        let mut stamps = StampSource::starting_at((1 << STAMP_BITS) - 1);
        stamps.reserved_up_to(u64::MAX);
        assert!(stamps.take().is_some());
        assert_eq!(stamps.take(), None);
    }
}
