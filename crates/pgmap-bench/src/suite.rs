//! The rows of address spaces as one run, for whoever wants to see them on a machine of their own.

use std::ops::ControlFlow;

use serde::Serialize;

use crate::failure::Failure;
use crate::harness::{Scale, cpus};
use crate::load::{Load, LoadWatch};
use crate::machine::Machine;
use crate::measure::{self, Measured, Measurement, Method, Step, Watch};
use crate::report::Figure;
use crate::rows::by_address::{GROUPS, METADATA_KEY, METADATA_TITLE, Stage, metadata};

/// The form of the report's JSON. Fields are added under one number, never renamed or removed.
const SCHEMA: &str = "pgmap.bench/1";

/// What to measure, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rounds; each runs every row once.
    pub nr_rounds: usize,
    /// Least time of one row in one round, in milliseconds.
    pub cell_ms: u64,
    /// Keys of groups, or text in the names of rows; everything when empty.
    pub only: Vec<String>,
    /// Numbers of threads for the groups that vary them.
    pub threads: Vec<usize>,
    /// Whether to run every row just once, with tiny counts, to see that it works.
    pub scale: Scale,
    /// As typed.
    pub command: String,
}

/// One group, measured.
#[derive(Clone, Debug, Serialize)]
pub struct MeasuredGroup {
    /// `A` to `J`.
    pub key: char,
    /// Its rows and what was measured of them.
    #[serde(flatten)]
    pub measurement: Measurement,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct SuiteReport {
    /// The form of this value as JSON.
    pub schema: &'static str,
    /// The command line.
    pub command: String,
    /// Whether every row ran just once, to see that it works: then no figure means anything.
    pub is_small: bool,
    /// What it ran on.
    pub machine: Machine,
    /// What else ran there.
    pub load: Load,
    /// Numbers of threads of the rows that vary them.
    pub threads: Vec<usize>,
    /// Rounds.
    pub nr_rounds: usize,
    /// What was timed.
    pub groups: Vec<MeasuredGroup>,
    /// What was counted.
    pub figures: Vec<Figure>,
    /// Targets reached.
    pub nr_met: usize,
    /// Targets not reached.
    pub nr_missed: usize,
}

/// Keys and titles of all groups, for a help text.
pub fn titles() -> impl Iterator<Item = (char, &'static str)> {
    let mut titles: Vec<(char, &str)> =
        GROUPS.iter().map(|group| (group.key, group.title)).collect();
    titles.push((METADATA_KEY, METADATA_TITLE));
    titles.sort_unstable();
    titles.into_iter()
}

/// CPUs that this process may use: most threads of a plan.
#[must_use]
pub fn nr_cpus() -> usize {
    cpus().len()
}

impl Plan {
    fn wants_key(&self, key: char) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| is_key(text, key))
    }

    /// Whether some of the texts is none of the keys: then any group may have a row of that name.
    fn has_text(&self) -> bool {
        self.only.iter().any(|text| !titles().any(|(key, _)| is_key(text, key)))
    }

    fn wants_figures(&self) -> bool {
        self.wants_key(METADATA_KEY)
            || self.only.iter().any(|text| text.len() > 1 && METADATA_TITLE.contains(text.as_str()))
    }
}

fn is_key(text: &str, key: char) -> bool {
    text.len() == 1 && text.chars().all(|letter| letter.to_ascii_uppercase() == key)
}

/// Runs `plan`.
///
/// # Errors
/// When a row fails, nothing has such a name, or `watch` wants no more
/// ([`Failure::is_stop`]).
pub fn run(plan: &Plan, watch: &mut Watch<'_>) -> Result<SuiteReport, Failure> {
    // Before any thread is bound to a CPU.
    let _all = cpus();
    let machine = Machine::here();
    let mut tell = |what: &str| match watch(Step { what, nr_done: 0, nr_steps: 0 }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Failure::stopped()),
    };
    // First, while no freed memory lies about.
    let mut figures = Vec::new();
    if plan.wants_figures() {
        tell("counting metadata")?;
        figures = metadata::figures(plan.scale)?;
    }
    let mut stage = Stage::new(plan.scale, plan.threads.clone());
    let (mut keys, mut scenarios) = (Vec::new(), Vec::new());
    for group in GROUPS {
        if !plan.wants_key(group.key) && !plan.has_text() {
            continue;
        }
        tell(&format!("making {}: {}", group.key, group.title))?;
        let built = (group.build)(&mut stage)
            .map_err(|failure| failure.during(group.title))
            .map(|scenario| scenario.titled(group.title))?;
        let is_whole = plan.wants_key(group.key);
        let scenario = if is_whole { Some(built) } else { measure::select_any(built, &plan.only) };
        if let Some(scenario) = scenario.filter(|scenario| !scenario.rows.is_empty()) {
            keys.push(group.key);
            scenarios.push(scenario);
        }
    }
    if scenarios.is_empty() && figures.is_empty() {
        return Err(Failure::new(format!("no row is called {}", plan.only.join(" or "))));
    }
    let Plan { nr_rounds, cell_ms, scale, .. } = *plan;
    let load = LoadWatch::start();
    let measured = measure::run_all(scenarios, Method { nr_rounds, cell_ms, scale }, watch)?;
    let load = load.finish(&measured, scale);
    let groups = keys.into_iter().zip(measured);
    let groups: Vec<MeasuredGroup> =
        groups.map(|(key, measurement)| MeasuredGroup { key, measurement }).collect();
    Ok(SuiteReport::new(plan, machine, load, groups, figures))
}

impl SuiteReport {
    fn new(
        plan: &Plan,
        machine: Machine,
        load: Load,
        groups: Vec<MeasuredGroup>,
        figures: Vec<Figure>,
    ) -> Self {
        let rows = groups.iter().flat_map(|group| &group.measurement.rows);
        let verdicts = rows.filter_map(|row| row.verdict.as_ref());
        let verdicts = verdicts.chain(figures.iter().filter_map(|figure| figure.verdict.as_ref()));
        let (met, missed): (Vec<_>, Vec<_>) = verdicts.partition(|verdict| verdict.is_met);
        Self {
            schema: SCHEMA,
            command: plan.command.clone(),
            is_small: plan.scale == Scale::Small,
            machine,
            load,
            threads: plan.threads.clone(),
            nr_rounds: groups.first().map_or(0, |group| group.measurement.nr_rounds),
            nr_met: met.len(),
            nr_missed: missed.len(),
            groups,
            figures,
        }
    }

    /// Every row with its group's key.
    pub fn rows(&self) -> impl Iterator<Item = (char, &Measured)> {
        self.groups
            .iter()
            .flat_map(|group| group.measurement.rows.iter().map(move |row| (group.key, row)))
    }

    /// What the figures were measured on, in a line.
    #[must_use]
    pub fn machine_line(&self) -> String {
        let Machine { cpu, nr_cpus, kernel, .. } = &self.machine;
        let Load { before, after, others_percent, .. } = &self.load;
        format!(
            "{cpu}, {nr_cpus} CPUs, Linux {kernel}, load {before} before and {after} after, \
             others used {others_percent:.1} % of the CPUs; {} rounds",
            self.nr_rounds
        )
    }
}
