//! A progress bar on stderr for transfers that take a while; the one user of indicatif.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;

/// Transfers below this are over before a bar could be read.
const MIN_BYTES: u64 = 64 << 20;
const STYLE: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
const REDRAW: Duration = Duration::from_millis(100);

/// A bar, or nothing: indicatif draws none where stderr is no terminal.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar for `len_bytes`, where `output` wants one and it is worth it.
    pub fn start(output: &Output, what: String, len_bytes: u64) -> Self {
        if output.is_quiet() || len_bytes < MIN_BYTES {
            return Self { bar: ProgressBar::hidden() };
        }
        let bar = ProgressBar::with_draw_target(Some(len_bytes), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(STYLE) {
            bar.set_style(style);
        }
        bar.set_message(what);
        bar.enable_steady_tick(REDRAW);
        Self { bar }
    }

    /// `len_bytes` more are done.
    pub fn advance(&self, len_bytes: u64) {
        self.bar.inc(len_bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
