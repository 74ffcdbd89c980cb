//! Progress bars on stderr for what takes a while; the one user of indicatif.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;

/// Transfers below this are over before a bar could be read.
const MIN_BYTES: u64 = 64 << 20;
const STYLE: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
const STEPS_STYLE: &str = "{wide_bar} {pos}/{len} {eta}  {msg:.60}";
const REDRAW: Duration = Duration::from_millis(100);

/// A bar, or nothing: indicatif draws only on a terminal.
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

/// A bar of steps, drawn when it is notified of one and never in between: a thread that draws would
/// take time from what is measured.
#[derive(Debug)]
pub struct Steps {
    bar: ProgressBar,
}

impl Steps {
    /// A bar, where `output` wants one.
    pub fn start(output: &Output) -> Self {
        if output.is_quiet() {
            return Self { bar: ProgressBar::hidden() };
        }
        let target = ProgressDrawTarget::stderr_with_hz(4);
        let bar = ProgressBar::with_draw_target(Some(0), target);
        if let Ok(style) = ProgressStyle::with_template(STEPS_STYLE) {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// So many steps are done, and this is next.
    pub fn show(&self, what: &str, nr_done: usize, nr_steps: usize) {
        self.bar.set_length(nr_steps as u64);
        self.bar.set_message(what.to_owned());
        self.bar.set_position(nr_done as u64);
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
