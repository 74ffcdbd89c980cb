//! SIGINT and SIGTERM as a question, for verbs that have something to undo.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::Failure;

/// Knows whether the command was told to stop. A second signal ends the process at once.
#[derive(Debug)]
pub struct Stop {
    signals: Signals,
    is_asked: bool,
}

impl Stop {
    /// Listens for the signals from now on.
    ///
    /// # Errors
    /// When the system refuses the handlers.
    pub fn listen() -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::io("listen for", "signals", &error);
        let is_second = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // The order matters: only the second signal finds the flag set, by the first.
            let code = 128 + signal;
            signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&is_second))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&is_second)))
                .map_err(failed)?;
        }
        Ok(Self { signals: Signals::new([SIGINT, SIGTERM]).map_err(failed)?, is_asked: false })
    }

    /// Whether a signal has come.
    pub fn is_asked(&mut self) -> bool {
        self.is_asked |= self.signals.pending().next().is_some();
        self.is_asked
    }

    /// An error once a signal has come.
    ///
    /// # Errors
    /// [`Failure::interrupted`].
    pub fn check(&mut self) -> Result<(), Failure> {
        if self.is_asked() { Err(Failure::interrupted()) } else { Ok(()) }
    }

    /// Sleeps until one comes and returns its name.
    pub fn wait(&mut self) -> &'static str {
        match self.signals.forever().next() {
            Some(SIGINT) => "SIGINT",
            _ => "SIGTERM",
        }
    }
}
