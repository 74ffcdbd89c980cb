//! Waking the owner ahead of a request.
//!
//! To wake a thread that sleeps takes as long as to copy a mebibyte, and its caches are cold then.
//! So a client that is about to copy much, and then to make a call, says so first: the owner wakes
//! up meanwhile. It is a message without an answer. Whether it arrives changes nothing else.

use std::time::Duration;

use pgmap_os::thread;

use crate::client::link::{Link, Remote};
use crate::wire::Request;

/// An owner that was asked something so lately may be awake.
const MAYBE_AWAKE: Duration = Duration::from_micros(250);

impl Link {
    /// Has an owner in another process wake up, if it may be asleep.
    pub(in crate::client) fn wake_owner(&self) {
        if let Self::Remote(remote) = self
            && remote.send_wake()
        {
            // As where a call is begun: it may have been placed on this processor.
            thread::yield_now();
        }
    }
}

impl Remote {
    /// Returns whether it was sent.
    fn send_wake(&self) -> bool {
        let mut state = self.lock();
        let is_awake = state.last_sent.is_some_and(|last| last.elapsed() < MAYBE_AWAKE);
        if is_awake || state.failed.is_some() {
            return false;
        }
        // A connection without room has messages that wake it.
        matches!(state.send_unanswered(&Request::Wake), Ok(true))
    }
}
