//! Which machine measured.

use serde::Serialize;
use std::fs;

/// What a figure is worth nothing without.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's own name for itself.
    pub cpu: String,
    /// CPUs that this process may use.
    pub nr_cpus: usize,
    /// Linux's release.
    pub kernel: String,
    /// `/proc/loadavg`.
    pub load: String,
}

impl Machine {
    /// This one, now.
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().to_owned());
        Self {
            cpu,
            nr_cpus: crate::harness::cpus().len(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").trim().to_owned(),
        }
    }
}
