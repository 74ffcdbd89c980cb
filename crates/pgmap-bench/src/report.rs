//! What is printed and written.

use serde::Serialize;

use crate::arguments::Arguments;
use crate::failure::Failure;
use crate::machine::Machine;
use crate::measure::{Measured, Measurement, Verdict};

/// A figure that is counted, not timed.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was counted.
    pub name: String,
    /// How many.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What became of its target, where it has one.
    pub verdict: Option<Verdict>,
}

#[derive(Serialize)]
struct Document<'r> {
    schema: &'static str,
    command: &'r str,
    machine: &'r Machine,
    load_after: &'r str,
    scenarios: &'r [Measurement],
    figures: &'r [Figure],
}

/// Everything that was measured.
pub struct Report {
    machine: Machine,
    is_small: bool,
    measurements: Vec<Measurement>,
    figures: Vec<Figure>,
}

impl Report {
    /// Starts a report; prints what it will be about.
    pub fn new(arguments: &Arguments) -> Self {
        let machine = Machine::here();
        println!("{}", arguments.line);
        let Machine { cpu, nr_cpus, kernel, load } = &machine;
        println!("{cpu}, {nr_cpus} CPUs, Linux {kernel}, load {load}");
        Self {
            machine,
            is_small: arguments.is_small,
            measurements: Vec::new(),
            figures: Vec::new(),
        }
    }

    /// Takes and prints a scenario.
    pub fn add(&mut self, measurement: Measurement) {
        if self.is_small {
            for row in &measurement.rows {
                println!("ok {}: {}", measurement.title, row.name);
            }
        } else {
            print_measurement(&measurement);
        }
        self.measurements.push(measurement);
    }

    /// Takes and prints figures.
    pub fn add_figures(&mut self, figures: Vec<Figure>) {
        println!("\n# Counted");
        for figure in &figures {
            let Figure { name, value, unit, verdict } = figure;
            println!("{name:<58} {value:>12.1} {unit:<8} {}", shown(verdict.as_ref()));
        }
        self.figures.extend(figures);
    }

    /// Prints what became of the targets; writes the JSON file.
    pub fn finish(self, arguments: &Arguments) -> Result<(), Failure> {
        let load_after = Machine::here().load;
        if let Some(path) = &arguments.json {
            let document = Document {
                schema: "pgmap-bench/1",
                command: &arguments.line,
                machine: &self.machine,
                load_after: &load_after,
                scenarios: &self.measurements,
                figures: &self.figures,
            };
            std::fs::write(path, serde_json::to_vec_pretty(&document)?)
                .map_err(|error| Failure::from(error).during(&path.display().to_string()))?;
        }
        let nr_rows: usize = self.measurements.iter().map(|m| m.rows.len()).sum();
        if nr_rows + self.figures.len() == 0 {
            return Err(Failure::new("no row has such a name"));
        }
        if self.is_small {
            println!("{} passed, 0 failed", nr_rows + self.figures.len());
            return Ok(());
        }
        println!("\n# Targets (load after the run: {load_after})");
        let rows = self.measurements.iter().flat_map(|m| m.rows.iter().map(move |row| (m, row)));
        for (measurement, row) in rows {
            if let Some(verdict) = &row.verdict {
                let title = format!("{}: {}", measurement.title, row.name);
                println!("{:<7} {title:<80} {}", met(verdict), reached(row, verdict));
            }
        }
        for figure in &self.figures {
            if let Some(verdict) = &figure.verdict {
                let Figure { name, value, unit, .. } = figure;
                println!("{:<7} {name:<80} {value:.1} {unit}, {}", met(verdict), verdict.target);
            }
        }
        Ok(())
    }
}

fn met(verdict: &Verdict) -> &'static str {
    if verdict.is_met { "met" } else { "MISSED" }
}

fn reached(row: &Measured, verdict: &Verdict) -> String {
    if verdict.target.ends_with('x') {
        format!("{:.2} x [{}], {}", row.ratio.median, row.base, verdict.target)
    } else {
        format!("{:.0} ns, {}", row.ns.median, verdict.target)
    }
}

fn shown(verdict: Option<&Verdict>) -> String {
    verdict.map_or_else(String::new, |verdict| format!("{} {}", verdict.target, met(verdict)))
}

fn print_measurement(measurement: &Measurement) {
    println!("\n# {} ({} rounds)", measurement.title, measurement.nr_rounds);
    for note in &measurement.notes {
        println!("  {note}");
    }
    println!(
        "{:<62} {:>31} {:>22} {:>8}  base, target",
        "row", "ns/op min/median/max", "x median [min-max]", "x least"
    );
    for row in &measurement.rows {
        let ns = [row.ns.min, row.ns.median, row.ns.max].map(brief).join("/");
        let ratio = format!(
            "{} [{}-{}]",
            brief(row.ratio.median),
            brief(row.ratio.min),
            brief(row.ratio.max)
        );
        let base = if row.base == row.name { "is a base" } else { row.base.as_str() };
        let least = brief(row.ratio_of_least);
        let verdict = shown(row.verdict.as_ref());
        println!("{:<62} {ns:>31} {ratio:>22} {least:>8}  {base} {verdict}", row.name);
    }
}

/// A number with about three digits that count.
pub fn brief(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 0.1 || value == 0.0 => format!("{value:.2}"),
        value => format!("{value:.4}"),
    }
}
