//! How a scenario is measured: calibrated, then in rounds.

use serde::Serialize;
use std::ops::ControlFlow;
use std::time::Duration;

use crate::arguments::Arguments;
use crate::failure::Failure;
use crate::harness::{Row, Scale, Scenario, Target, Whose, cpus, run_cell};

/// Operations of a row's first try, and of its only one in the small mode.
const FIRST_OPS: u64 = 1;
const SMALL_OPS: u64 = 64;
/// Doublings while calibrating: more than any row needs.
const MAX_TRIES: usize = 40;

/// Least, middle and greatest of a row of numbers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { min: at(0), median: at(values.len() / 2), max: at(values.len().saturating_sub(1)) }
    }
}

/// What became of a target.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// What was to be reached, in words.
    pub target: String,
    /// Whether it was.
    pub is_met: bool,
}

/// What was measured of a row.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Its name, of no other row of the scenario.
    pub name: String,
    /// Whose path it is.
    pub whose: Whose,
    /// Threads that ran it at once.
    pub nr_threads: usize,
    /// Operations of each thread in one round.
    pub nr_ops: u64,
    /// Nanoseconds per operation and thread.
    pub ns: Spread,
    /// The row it is compared to.
    pub base: String,
    /// Its time over the base's in the same round.
    pub ratio: Spread,
    /// The least time over the base's least: what a loaded machine disturbs least. Claims nothing.
    pub ratio_of_least: f64,
    /// The most that its target allows, where that is a ratio to the base.
    pub most_ratio: Option<f64>,
    /// What became of its target, where it has one.
    pub verdict: Option<Verdict>,
}

/// What was measured of a scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// What it measures.
    pub title: String,
    /// What one has to know to read the figures.
    pub notes: Vec<String>,
    /// How often each row ran.
    pub nr_rounds: usize,
    /// Its rows.
    pub rows: Vec<Measured>,
}

/// The rows that `filter` asks for, with the bases that they need; empty if there are none.
pub fn select(scenario: Scenario, filter: Option<&str>) -> Option<Scenario> {
    match filter.filter(|filter| !scenario.title.contains(filter)) {
        Some(filter) => select_any(scenario, &[filter.to_owned()]),
        None => Some(scenario),
    }
}

/// The rows whose names contain any of `texts`, with the bases that they need.
pub fn select_any(mut scenario: Scenario, texts: &[String]) -> Option<Scenario> {
    let wanted = |row: &Row| texts.iter().any(|text| row.name.contains(text.as_str()));
    let bases: Vec<String> =
        scenario.rows.iter().filter(|row| wanted(row)).map(|row| row.base.clone()).collect();
    scenario.rows.retain(|row| wanted(row) || bases.contains(&row.name));
    (!scenario.rows.is_empty()).then_some(scenario)
}

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    pub nr_rounds: usize,
    /// Least time of one row in one round, in milliseconds.
    pub cell_ms: u64,
    pub scale: Scale,
}

/// Where a run is: told before each cell, so that a caller can show it and end the run.
#[derive(Clone, Copy, Debug)]
pub struct Step<'s> {
    /// What is next.
    pub what: &'s str,
    /// Steps that are done.
    pub nr_done: usize,
    /// Steps in all.
    pub nr_steps: usize,
}

/// Called for each step; says whether to go on.
pub type Watch<'w> = dyn FnMut(Step<'_>) -> ControlFlow<()> + 'w;

/// A scenario, and what one cell of each of its rows does.
struct Prepared {
    scenario: Scenario,
    nr_ops: Vec<u64>,
    /// Nanoseconds of each row, by round.
    times: Vec<Vec<f64>>,
}

/// Measures one scenario, or in the small mode runs each of its rows once.
pub fn run(
    scenario: Scenario,
    arguments: &Arguments,
    scale: Scale,
) -> Result<Measurement, Failure> {
    let method = Method { nr_rounds: arguments.nr_rounds, cell_ms: arguments.cell_ms, scale };
    let measured = run_all(vec![scenario], method, &mut |_| ControlFlow::Continue(()))?;
    measured.into_iter().next().ok_or_else(|| Failure::new("nothing was measured"))
}

/// Measures scenarios together: every round runs each row of each scenario once, a scenario's rows
/// one after the other, in an order that rotates.
pub fn run_all(
    scenarios: Vec<Scenario>,
    method: Method,
    watch: &mut Watch<'_>,
) -> Result<Vec<Measurement>, Failure> {
    let Method { cell_ms, scale, .. } = method;
    let nr_rounds = if scale == Scale::Small { 1 } else { method.nr_rounds };
    let nr_cpus = cpus().len();
    let nr_rows: usize = scenarios.iter().map(|scenario| scenario.rows.len()).sum();
    let nr_steps = nr_rows * (nr_rounds + 1);
    let mut nr_done = 0;
    let mut step = |what: &str| {
        let told = watch(Step { what, nr_done, nr_steps });
        nr_done += 1;
        if told.is_break() { Err(Failure::stopped()) } else { Ok(()) }
    };
    let mut all = Vec::new();
    for mut scenario in scenarios {
        let (rows, too_wide): (Vec<Row>, Vec<Row>) =
            scenario.rows.into_iter().partition(|row| row.nr_threads <= nr_cpus);
        let too_wide = too_wide.iter().map(|row| format!("not run, too few CPUs: {}", row.name));
        scenario.notes.extend(too_wide);
        scenario.rows = rows;
        let mut nr_ops = Vec::with_capacity(scenario.rows.len());
        for row in &scenario.rows {
            step(&format!("calibrating {}", row.name))?;
            nr_ops.push(match scale {
                Scale::Small => SMALL_OPS.min(row.most_ops),
                Scale::Full => calibrate(row, Duration::from_millis(cell_ms))
                    .map_err(|failure| failure.during(&row.name))?,
            });
        }
        all.push(Prepared { scenario, nr_ops, times: Vec::new() });
    }
    for round in 0..nr_rounds {
        for prepared in &mut all {
            let mut tell = |row: &Row| step(&format!("round {}: {}", round + 1, row.name));
            prepared.run_round(round, &mut tell)?;
        }
    }
    Ok(all.into_iter().map(|prepared| prepared.measurement(nr_rounds)).collect())
}

impl Prepared {
    fn run_round(
        &mut self,
        round: usize,
        tell: &mut dyn FnMut(&Row) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let rows = &self.scenario.rows;
        let mut times = vec![0.0; rows.len()];
        for turn in 0..rows.len() {
            let at = (turn + round) % rows.len();
            let seed = (round * rows.len() + turn) as u64 + 1;
            tell(&rows[at])?;
            let cell = run_cell(&rows[at], self.nr_ops[at], seed);
            (times[at], _) = cell.map_err(|failure| failure.during(&rows[at].name))?;
        }
        self.times.push(times);
        Ok(())
    }

    fn measurement(self, nr_rounds: usize) -> Measurement {
        let Self { scenario, nr_ops, times } = self;
        let rows = (0..scenario.rows.len())
            .map(|at| summary(&scenario.rows, at, nr_ops[at], &times))
            .collect();
        Measurement { title: scenario.title, notes: scenario.notes, nr_rounds, rows }
    }
}

/// Operations that make a cell of at least `cell` long; warms the row up on the way.
fn calibrate(row: &Row, cell: Duration) -> Result<u64, Failure> {
    let mut nr_ops = FIRST_OPS;
    for attempt in 0..MAX_TRIES {
        let (_, spent) = run_cell(row, nr_ops, attempt as u64)?;
        if spent >= cell || nr_ops >= row.most_ops {
            break;
        }
        let missing = cell.as_secs_f64() / spent.as_secs_f64().max(1e-9);
        // Not past the aim by much: the first tries are cold and say too little of the speed.
        let factor = (missing * 1.1).clamp(1.2, 8.0);
        nr_ops = ((nr_ops as f64 * factor).ceil() as u64).min(row.most_ops);
    }
    Ok(nr_ops)
}

fn summary(rows: &[Row], at: usize, nr_ops: u64, times: &[Vec<f64>]) -> Measured {
    let row = &rows[at];
    let base = rows.iter().position(|base| base.name == row.base).unwrap_or(at);
    let ns = Spread::of(times.iter().map(|round| round[at]).collect());
    let ratio = Spread::of(times.iter().map(|round| round[at] / round[base]).collect());
    let base_ns = times.iter().map(|round| round[base]).fold(f64::INFINITY, f64::min);
    let verdict = row.target.map(|target| match target {
        Target::Ratio(most) => {
            Verdict { target: format!("<= {most:.2} x"), is_met: ratio.median <= most }
        }
        Target::Nanoseconds(most) => {
            Verdict { target: format!("<= {}", duration(most)), is_met: ns.median <= most }
        }
        Target::Both(most_ns, most) => Verdict {
            target: format!("<= {} and <= {most:.2} x", duration(most_ns)),
            is_met: ns.median <= most_ns && ratio.median <= most,
        },
    });
    Measured {
        name: row.name.clone(),
        whose: Whose::of(&row.name),
        nr_threads: row.nr_threads,
        nr_ops,
        ns,
        base: rows[base].name.clone(),
        ratio,
        ratio_of_least: ns.min / base_ns,
        most_ratio: row.target.and_then(Target::ratio),
        verdict,
    }
}

/// A time that a target names: in milliseconds where it has some.
fn duration(ns: f64) -> String {
    if ns >= 1e6 { format!("{:.0} ms", ns / 1e6) } else { format!("{ns:.0} ns") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Done;

    #[test]
    fn a_row_that_does_less_than_it_was_asked_fails() {
        let lazy = Row::new("lazy", |worker| Ok(Done::ops(worker.nr_ops - 1)));
        assert!(run_cell(&lazy, 10, 1).is_err());
    }

    #[test]
    fn a_filter_keeps_the_base_of_what_it_keeps() {
        let row = |name: &str| Row::new(name, |worker| Ok(Done::ops(worker.nr_ops)));
        let rows = vec![row("floor"), row("pin").against("floor"), row("other").against("floor")];
        let scenario = Scenario { title: "short".into(), notes: Vec::new(), rows };
        let kept = select(scenario, Some("pin")).unwrap();
        let names: Vec<&str> = kept.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["floor", "pin"]);
    }

    #[test]
    fn the_median_is_the_middle_one() {
        let spread = Spread::of(vec![3.0, 1.0, 9.0]);
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 3.0, 9.0));
    }
}
