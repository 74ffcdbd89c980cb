//! Whether the machine was quiet enough for what was measured to mean anything.

use std::fs;
use std::time::Instant;

use serde::Serialize;

use crate::harness::{Scale, Whose, cpus};
use crate::measure::Measurement;

/// Most of the CPUs' time that others may use, in percent.
const MOST_OTHERS: f64 = 5.0;
/// Most that a floor on one thread may vary, greatest over middle.
const MOST_SPREAD: f64 = 1.5;
/// `/proc/stat` and `/proc/self/stat` count in this many ticks a second, on every Linux.
const TICKS_A_SECOND: f64 = 100.0;

/// What else went on while it was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Load {
    /// Load average of the last minute, before.
    pub before: String,
    /// The same, after.
    pub after: String,
    /// Time of all CPUs that other processes, or other guests of the host, used.
    pub others_percent: f64,
    /// Greatest over middle time of the floors on one thread, the worst of them.
    pub floor_spread: f64,
    /// Whether the figures can be trusted.
    pub is_trusted: bool,
    /// Why not.
    pub doubts: Vec<String>,
}

/// Ticks of the machine's CPUs and of this process.
#[derive(Clone, Copy, Debug, Default)]
struct Ticks {
    /// Not idle, and stolen by the host.
    busy: u64,
    own: u64,
}

impl Ticks {
    fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        Self { busy: busy_of(&stat).unwrap_or(0), own: own_of(&own).unwrap_or(0) }
    }
}

/// User, nice, system, irq, softirq and steal of the first line.
fn busy_of(stat: &str) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    Some([0, 1, 2, 5, 6, 7].iter().filter_map(|&at| ticks.get(at)).sum())
}

/// User and system time. The command's name may contain anything, but nothing after it does.
fn own_of(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    Some(words.get(11)?.parse::<u64>().ok()? + words.get(12)?.parse::<u64>().ok()?)
}

fn load_average() -> String {
    let read = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    read.split_whitespace().next().unwrap_or("?").to_owned()
}

/// Watches the machine while it is measured.
pub struct LoadWatch {
    before: String,
    ticks: Ticks,
    start: Instant,
}

impl LoadWatch {
    /// Starts.
    pub fn start() -> Self {
        Self { before: load_average(), ticks: Ticks::now(), start: Instant::now() }
    }

    /// What was seen since.
    pub fn finish(self, measured: &[Measurement], scale: Scale) -> Load {
        let now = Ticks::now();
        let busy = now.busy.saturating_sub(self.ticks.busy);
        let others = busy.saturating_sub(now.own.saturating_sub(self.ticks.own)) as f64;
        let all = self.start.elapsed().as_secs_f64() * TICKS_A_SECOND * cpus().len() as f64;
        let others_percent = (100.0 * others / all.max(1.0)).min(100.0);
        let floor_spread = measured
            .iter()
            .flat_map(|measurement| &measurement.rows)
            .filter(|row| row.whose == Whose::Floor && row.nr_threads == 1)
            .map(|row| row.ns.max / row.ns.median)
            .fold(1.0, f64::max);
        let doubts = doubts(others_percent, floor_spread, scale);
        let is_trusted = doubts.is_empty();
        let (before, after) = (self.before, load_average());
        Load { before, after, others_percent, floor_spread, is_trusted, doubts }
    }
}

fn doubts(others_percent: f64, floor_spread: f64, scale: Scale) -> Vec<String> {
    if scale == Scale::Small {
        return vec!["the small mode measures nothing: it shows that every row works".into()];
    }
    let mut doubts = Vec::new();
    if cfg!(debug_assertions) {
        doubts.push("this is a debug build".into());
    }
    if others_percent > MOST_OTHERS {
        doubts.push(format!(
            "others used {others_percent:.1} % of the CPUs, more than {MOST_OTHERS:.0} %"
        ));
    }
    if floor_spread > MOST_SPREAD {
        doubts.push(format!(
            "a floor on one thread took up to {floor_spread:.1} times its middle time, more than \
             {MOST_SPREAD} times"
        ));
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_read_past_a_name_with_brackets() {
        assert_eq!(busy_of("cpu  1 2 4 1000 1000 8 16 32 5 0\ncpu0 1"), Some(63));
        let own = "7 (a) b) R 1 1 1 0 -1 0 0 0 0 0 30 12 0 0 20 0";
        assert_eq!(own_of(own), Some(42));
    }

    #[test]
    fn a_busy_machine_is_doubted_and_a_quiet_one_is_not() {
        assert_eq!(doubts(20.0, 1.1, Scale::Full).len(), 1 + usize::from(cfg!(debug_assertions)));
        assert_eq!(doubts(1.0, 1.1, Scale::Full).len(), usize::from(cfg!(debug_assertions)));
        assert_eq!(doubts(1.0, 1.1, Scale::Small).len(), 1);
    }
}
