//! The end of a wait.

use std::time::Duration;

use pgmap_os::clock::Instant;

/// A time as messages carry it: in whole milliseconds, as many as fit.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// When a wait is over. One that no clock can tell is never.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    timeout: Duration,
    until: Option<Instant>,
}

impl Deadline {
    /// So long from now.
    pub(crate) fn after(timeout: Duration) -> Self {
        Self { timeout, until: Instant::now().checked_add(timeout) }
    }

    /// How long the wait may last in all.
    pub(crate) const fn timeout(self) -> Duration {
        self.timeout
    }

    /// How long there is left; zero when it is over.
    pub(crate) fn left(self) -> Duration {
        self.until.map_or(self.timeout, |until| until.saturating_duration_since(Instant::now()))
    }
}
