//! Who is faster: pgmap beside its floors and rivals, in one interleaved run.
//!
//! A *row* is one path measured: so many operations on one or two threads. A *scenario* is a set of
//! rows that are measured together: every round runs each row once, in an order that rotates, so
//! that a slow moment of the machine falls on all of them. What is claimed is the median of the
//! ratios, each of a row to its base in the same round; nanoseconds drift and are only shown.
//!
//! Read [`harness`] for what a row is, [`measure`] for how it is measured, and `rows/` for one path
//! per file. Every row counts what it did, and a row that did less than it was asked fails.
//!
//! The rows of address spaces are also the [`run_suite`] of `pgmap bench`.

mod arguments;
mod children;
mod failure;
mod harness;
mod huge_pages;
mod load;
mod machine;
mod markdown;
mod measure;
mod plot;
mod random;
mod report;
mod rivals;
mod rows;
mod space;
mod suite;

use std::process::ExitCode;

pub use failure::Failure;
pub use harness::{Scale, Whose};
pub use load::Load;
pub use machine::Machine;
pub use measure::{Measured, Measurement, Spread, Step, Verdict, Watch};
pub use report::{Figure, brief};
pub use suite::{MeasuredGroup, Plan, SuiteReport, nr_cpus, run as run_suite, titles};

use arguments::{Arguments, Command};

/// Runs the command line `args`, without the program's name.
#[must_use]
pub fn run(args: Vec<String>) -> ExitCode {
    if children::is_child(&args) {
        return children::play(&args);
    }
    match Arguments::parse(&args) {
        Ok(Command::Help) => {
            print!("{}", arguments::HELP);
            ExitCode::SUCCESS
        }
        Ok(Command::Run(arguments)) => match run_rows(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                eprintln!("pgmap-bench: {failure}");
                ExitCode::FAILURE
            }
        },
        Err(failure) => {
            eprintln!("pgmap-bench: {failure}\n\n{}", arguments::HELP);
            ExitCode::from(2)
        }
    }
}

fn run_rows(arguments: &Arguments) -> Result<(), Failure> {
    let scale = if arguments.is_small { Scale::Small } else { Scale::Full };
    if cfg!(debug_assertions) && scale == Scale::Full {
        eprintln!("pgmap-bench: this is a debug build, its figures say nothing: use --release");
    }
    let mut report = report::Report::new(arguments);
    // A scenario's own name asks for that alone; any other text may be in any row's name.
    let is_name = |text: &str| rows::SCENARIOS.iter().any(|entry| entry.name == text);
    let named = arguments.filter.as_deref().filter(|text| is_name(text));
    for entry in rows::SCENARIOS {
        if named.is_some_and(|name| name != entry.name) {
            continue;
        }
        let scenario = (entry.build)(scale).map_err(|failure| failure.during(entry.name))?;
        if let Some(scenario) = measure::select(scenario, arguments.filter.as_deref()) {
            report.add(measure::run(scenario, arguments, scale)?);
        }
    }
    let mut stage = rows::by_address::Stage::new(scale, vec![1, 2]);
    for group in rows::by_address::GROUPS.iter().filter(|_| named.is_none()) {
        let scenario = (group.build)(&mut stage).map_err(|failure| failure.during(group.title))?;
        let scenario = scenario.titled(&format!("{}: {}", group.key, group.title));
        if let Some(scenario) = measure::select(scenario, arguments.filter.as_deref()) {
            report.add(measure::run(scenario, arguments, scale)?);
        }
    }
    if arguments.filter.as_deref().is_none_or(|filter| "metadata".contains(filter)) {
        report.add_figures(rows::metadata::figures(scale)?);
    }
    report.finish(arguments)
}
