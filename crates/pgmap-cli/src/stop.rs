//! SIGINT, SIGTERM and SIGHUP as a question, for verbs that have something to undo.
//!
//! A signal that was ignored when the command started stays ignored, as `nohup` and shells with
//! jobs in the background want it.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pgmap::os::process::is_signal_ignored;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::failure::{Exit, Failure};

/// Knows whether the command was asked to stop. A second signal ends the process at once.
pub struct Stop {
    /// What has come, and a socket that can be read since.
    signals: SignalDelivery<UnixStream, SignalOnly>,
    /// The signal that came.
    asked: Option<i32>,
}

impl Stop {
    /// Listens for the signals from now on.
    ///
    /// # Errors
    /// When the system refuses the handlers.
    pub fn listen() -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::io("listen for", "signals", &error);
        let is_second = Arc::new(AtomicBool::new(false));
        let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter();
        let wanted: Vec<i32> = wanted.filter(|&signal| !is_signal_ignored(signal)).collect();
        // The order matters. What has come is noted before it counts as the first: a signal between
        // the two would be neither heard nor fatal.
        let (read, write) = UnixStream::pair().map_err(failed)?;
        let signals =
            SignalDelivery::with_pipe(read, write, SignalOnly, &wanted).map_err(failed)?;
        for &signal in &wanted {
            // Only the second signal finds the flag set, by the first.
            let code = 128 + signal;
            signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&is_second))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&is_second)))
                .map_err(failed)?;
        }
        Ok(Self { signals, asked: None })
    }

    /// Whether a signal has come.
    pub fn is_asked(&mut self) -> bool {
        self.asked = self.asked.or_else(|| self.signals.pending().next());
        self.asked.is_some()
    }

    /// An error once a signal has come.
    ///
    /// # Errors
    /// [`Failure::interrupted`].
    pub fn check(&mut self) -> Result<(), Failure> {
        if self.is_asked() { Err(self.failure()) } else { Ok(()) }
    }

    /// What the command fails with that a signal ended.
    pub fn failure(&self) -> Failure {
        Failure::interrupted(match self.asked {
            Some(SIGHUP) => Exit::HungUp,
            Some(SIGTERM) => Exit::Terminated,
            _ => Exit::Interrupted,
        })
    }

    /// Sleeps for `pause`, or until a signal comes, whose name is returned.
    pub fn wait_for(&mut self, pause: Duration) -> Option<&'static str> {
        if !self.is_asked() {
            let pause = Timespec {
                tv_sec: i64::try_from(pause.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(pause.subsec_nanos()),
            };
            // An interruption, or an error, is a shorter pause.
            let _ = poll(&mut [PollFd::new(self.signals.get_read(), PollFlags::IN)], Some(&pause));
        }
        self.is_asked().then(|| name_of(self.asked))
    }
}

const fn name_of(signal: Option<i32>) -> &'static str {
    match signal {
        Some(SIGINT) => "SIGINT",
        Some(SIGHUP) => "SIGHUP",
        _ => "SIGTERM",
    }
}

/// Makes writing past `RLIMIT_FSIZE` the error EFBIG: the signal that comes with it would end the
/// process.
pub fn keep_file_size_limit_an_error() {
    // Where the handler is refused the signal ends the process as before.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}
