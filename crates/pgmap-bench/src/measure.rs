//! How a scenario is measured: calibrated, then in rounds.

use serde::Serialize;
use std::time::Duration;

use crate::arguments::Arguments;
use crate::failure::Failure;
use crate::harness::{Row, Scale, Scenario, Target, run_cell};

/// Operations of a row's first try, and of its only one in the small mode.
const FIRST_OPS: u64 = 1;
const SMALL_OPS: u64 = 64;
/// Doublings while calibrating: more than any row needs.
const MAX_TRIES: usize = 40;

/// Least, middle and greatest of a row of numbers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
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
    pub target: String,
    pub is_met: bool,
}

/// What was measured of a row.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub name: String,
    pub nr_threads: usize,
    pub nr_ops: u64,
    pub ns: Spread,
    pub base: String,
    pub ratio: Spread,
    /// The least time over the base's least: what a loaded machine disturbs least. Claims nothing.
    pub ratio_of_least: f64,
    pub verdict: Option<Verdict>,
}

/// What was measured of a scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    pub title: String,
    pub notes: Vec<String>,
    pub nr_rounds: usize,
    pub rows: Vec<Measured>,
}

/// The rows that `filter` asks for, with the bases that they need; none when there are none.
pub fn select(mut scenario: Scenario, filter: Option<&str>) -> Option<Scenario> {
    let Some(filter) = filter.filter(|filter| !scenario.title.contains(filter)) else {
        return Some(scenario);
    };
    let wanted = |row: &Row| row.name.contains(filter);
    let bases: Vec<String> =
        scenario.rows.iter().filter(|row| wanted(row)).map(|row| row.base.clone()).collect();
    scenario.rows.retain(|row| wanted(row) || bases.contains(&row.name));
    (!scenario.rows.is_empty()).then_some(scenario)
}

/// Measures `scenario`, or in the small mode runs each of its rows once.
pub fn run(
    scenario: Scenario,
    arguments: &Arguments,
    scale: Scale,
) -> Result<Measurement, Failure> {
    let nr_cpus = pgmap::os::process::online_cpus().len();
    let mut notes = scenario.notes;
    let (rows, too_wide): (Vec<Row>, Vec<Row>) =
        scenario.rows.into_iter().partition(|row| row.nr_threads <= nr_cpus);
    notes.extend(too_wide.iter().map(|row| format!("not run, too few CPUs: {}", row.name)));
    let nr_rounds = if scale == Scale::Small { 1 } else { arguments.nr_rounds };
    let mut nr_ops = Vec::with_capacity(rows.len());
    for row in &rows {
        let ops = match scale {
            Scale::Small => SMALL_OPS.min(row.most_ops),
            Scale::Full => calibrate(row, Duration::from_millis(arguments.cell_ms))
                .map_err(|failure| failure.during(&row.name))?,
        };
        nr_ops.push(ops);
    }
    let mut times = vec![vec![0.0; rows.len()]; nr_rounds];
    for (round, times) in times.iter_mut().enumerate() {
        for turn in 0..rows.len() {
            let at = (turn + round) % rows.len();
            let seed = (round * rows.len() + turn) as u64 + 1;
            let cell = run_cell(&rows[at], nr_ops[at], seed);
            (times[at], _) = cell.map_err(|failure| failure.during(&rows[at].name))?;
        }
    }
    let measured = (0..rows.len()).map(|at| summary(&rows, at, nr_ops[at], &times)).collect();
    Ok(Measurement { title: scenario.title, notes, nr_rounds, rows: measured })
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
            Verdict { target: format!("<= {most:.0} ns"), is_met: ns.median <= most }
        }
    });
    Measured {
        name: row.name.clone(),
        nr_threads: row.nr_threads,
        nr_ops,
        ns,
        base: rows[base].name.clone(),
        ratio,
        ratio_of_least: ns.min / base_ns,
        verdict,
    }
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
