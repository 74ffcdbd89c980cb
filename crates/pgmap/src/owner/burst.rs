//! Waiting for the next message of a burst without falling asleep.
//!
//! To fall asleep and be woken takes longer than most requests: on a virtual machine some 50 us.
//! Requests come in bursts, for most jobs are several calls. So after a message that came soon
//! after another the loop looks for the next one for a while; after one that came alone it does
//! not, and an owner that is asked now and then costs no more than its answers.
//!
//! How long, the operator may say: with a processor of its own the owner keeps no message waiting.
//!
//! A client that is about to copy what it will ask the owner to publish says so first, if the owner
//! may be asleep: then it wakes up, and looks, while the client copies.

use std::time::Duration;

use pgmap_os::clock::Instant;
use pgmap_os::{OsError, Poller, Ready, thread};

use crate::refusal::Refusal;

/// How long a message that was announced is looked for: to copy 4 MiB takes less.
const ANNOUNCED: Duration = Duration::from_millis(1);

/// Messages that come within this time of each other are one burst, and the next one of a burst is
/// looked for this long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BusyPoll(Duration);

impl BusyPoll {
    pub(crate) const MAX: Duration = Duration::from_secs(60);
}

impl Default for BusyPoll {
    fn default() -> Self {
        Self(Duration::from_micros(250))
    }
}

impl TryFrom<Duration> for BusyPoll {
    type Error = Refusal;

    fn try_from(time: Duration) -> Result<Self, Refusal> {
        let max = Self::MAX;
        if time > max {
            let why = format!("a busy poll of {time:?}: it may last {max:?} at most");
            return Err(Refusal::Invalid { why });
        }
        Ok(Self(time))
    }
}

/// The burst that goes on, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Burst {
    last: Option<Instant>,
    busy_until: Option<Instant>,
}

impl Burst {
    /// Takes note of a message.
    pub(crate) fn note_message(&mut self, BusyPoll(busy_poll): BusyPoll) {
        let now = Instant::now();
        let is_burst = self.last.is_some_and(|last| now < last + busy_poll);
        self.busy_until = is_burst.then(|| now + busy_poll);
        self.last = Some(now);
    }

    /// Takes note that a message follows soon, if the owner looks for any.
    pub(crate) fn expect_message(&mut self, BusyPoll(busy_poll): BusyPoll) {
        if !busy_poll.is_zero() {
            self.busy_until = Some(Instant::now() + busy_poll.max(ANNOUNCED));
        }
    }

    /// As [`Poller::wait`], after looking for a while if a burst goes on.
    ///
    /// # Errors
    /// The same.
    pub(crate) fn wait(
        &mut self,
        poller: &Poller,
        timeout: Option<Duration>,
        ready: &mut Vec<Ready>,
    ) -> Result<(), OsError> {
        // A simulation's owner waits in its own time.
        if self.busy_until.is_none() || timeout == Some(Duration::ZERO) || cfg!(feature = "sim") {
            return poller.wait(timeout, ready);
        }
        let waits_until = timeout.map(|timeout| Instant::now() + timeout);
        while let Some(until) = self.busy_until {
            poller.wait(Some(Duration::ZERO), ready)?;
            let now = Instant::now();
            if !ready.is_empty() || waits_until.is_some_and(|end| now >= end) {
                return Ok(());
            }
            if now >= until {
                self.busy_until = None;
            }
            // Who is to send it may wait for this processor.
            thread::yield_now();
        }
        let left = waits_until.map(|end| end.saturating_duration_since(Instant::now()));
        poller.wait(left, ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_message_soon_after_another_is_a_burst() {
        let (mut burst, busy_poll) = (Burst::default(), BusyPoll::default());
        let BusyPoll(gap) = busy_poll;
        burst.note_message(busy_poll);
        assert!(burst.busy_until.is_none(), "the first one");
        burst.last = Instant::now().checked_sub(2 * gap);
        burst.note_message(busy_poll);
        assert!(burst.busy_until.is_none(), "one that comes late");
        burst.note_message(busy_poll);
        assert!(burst.busy_until.is_some_and(|until| until <= Instant::now() + gap));
        // It ends by itself.
        let (poller, mut ready) = (Poller::new().unwrap(), Vec::new());
        burst.wait(&poller, Some(Duration::from_millis(1)), &mut ready).unwrap();
        assert!(burst.busy_until.is_none() && ready.is_empty());
        burst.note_message(BusyPoll(Duration::ZERO));
        assert!(burst.busy_until.is_none(), "nobody looks");
    }

    #[test]
    fn a_message_that_was_announced_is_looked_for() {
        let mut burst = Burst::default();
        burst.note_message(BusyPoll::default());
        burst.expect_message(BusyPoll(Duration::ZERO));
        assert!(burst.busy_until.is_none(), "nobody looks");
        let before = Instant::now();
        burst.expect_message(BusyPoll::default());
        assert!(burst.busy_until.is_some_and(|until| until >= before + ANNOUNCED));
        let (poller, mut ready) = (Poller::new().unwrap(), Vec::new());
        burst.wait(&poller, Some(20 * ANNOUNCED), &mut ready).unwrap();
        assert!(burst.busy_until.is_none(), "it ends by itself");
    }

    /// A busy poll of 100 ms delayed all deadlines by as much.
    #[test]
    fn a_burst_keeps_nothing_from_its_time() {
        let mut burst = Burst::default();
        burst.note_message(BusyPoll(BusyPoll::MAX));
        burst.note_message(BusyPoll(BusyPoll::MAX));
        let (poller, mut ready) = (Poller::new().unwrap(), Vec::new());
        let start = Instant::now();
        burst.wait(&poller, Some(Duration::from_millis(1)), &mut ready).unwrap();
        assert!(start.elapsed() < BusyPoll::MAX / 2 && ready.is_empty());
        assert!(burst.busy_until.is_some(), "it goes on afterwards");
    }

    #[test]
    fn a_busy_poll_of_more_than_a_minute_is_refused() {
        for time in [Duration::ZERO, Duration::from_millis(100), BusyPoll::MAX] {
            assert!(matches!(BusyPoll::try_from(time), Ok(BusyPoll(same)) if same == time));
        }
        for time in [BusyPoll::MAX + Duration::from_nanos(1), Duration::MAX] {
            let Err(Refusal::Invalid { why }) = BusyPoll::try_from(time) else {
                panic!("{time:?}")
            };
            assert!(why.contains("60s at most"), "{why}");
        }
    }
}
