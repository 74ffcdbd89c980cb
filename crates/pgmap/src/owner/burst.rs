//! Waiting for the next message of a burst without falling asleep.
//!
//! To fall asleep and be woken takes longer than most requests: on a virtual machine some 50 us.
//! Requests come in bursts, for most jobs are several calls. So after a message that came soon
//! after another the loop looks for the next one for a while; after one that came alone it does
//! not, and an owner that is asked now and then costs no more than its answers.

use std::time::Duration;

use pgmap_os::clock::Instant;
use pgmap_os::{OsError, Poller, Ready, thread};

/// Messages that come so soon after each other are one burst.
const BURST_GAP: Duration = Duration::from_micros(250);
/// How long the next one of a burst is looked for. Other threads that want the processor get it.
const BUSY_POLL: Duration = Duration::from_micros(250);

/// The burst that goes on, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Burst {
    last: Option<Instant>,
    busy_until: Option<Instant>,
}

impl Burst {
    /// Takes note of a message.
    pub(crate) fn note_message(&mut self) {
        let now = Instant::now();
        let is_burst = self.last.is_some_and(|last| now < last + BURST_GAP);
        self.busy_until = is_burst.then(|| now + BUSY_POLL);
        self.last = Some(now);
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
        let may_look = timeout != Some(Duration::ZERO) && !cfg!(feature = "sim");
        while let Some(until) = self.busy_until.filter(|_| may_look) {
            poller.wait(Some(Duration::ZERO), ready)?;
            if !ready.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                self.busy_until = None;
            }
            // Who is to send it may wait for this processor.
            thread::yield_now();
        }
        poller.wait(timeout, ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_message_soon_after_another_is_a_burst() {
        let mut burst = Burst::default();
        burst.note_message();
        assert!(burst.busy_until.is_none(), "the first one");
        burst.last = Instant::now().checked_sub(2 * BURST_GAP);
        burst.note_message();
        assert!(burst.busy_until.is_none(), "one that comes late");
        burst.note_message();
        assert!(burst.busy_until.is_some_and(|until| until <= Instant::now() + BUSY_POLL));
        // It ends by itself.
        let (poller, mut ready) = (Poller::new().unwrap(), Vec::new());
        burst.wait(&poller, Some(Duration::from_millis(1)), &mut ready).unwrap();
        assert!(burst.busy_until.is_none() && ready.is_empty());
    }
}
