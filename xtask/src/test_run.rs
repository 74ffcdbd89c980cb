//! `cargo xtask test`: runs the steps in order, each under a heading, and closes with a table.

use std::path::Path;
use std::time::{Duration, Instant};
use std::{fmt, io};

use crate::steps::{Outcome, Run, STEPS, Step};
use crate::watch::Limit;

/// What the command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Names of the steps to run; empty for all.
    only: Vec<String>,
    after_failure: AfterFailure,
    /// Print the steps and stop.
    is_listing: bool,
}

/// What to do when a step has failed.
#[derive(Debug, Default, PartialEq, Eq)]
enum AfterFailure {
    #[default]
    Stop,
    GoOn,
}

impl Options {
    /// Options to run one step.
    pub fn only(step: &str) -> Options {
        Options { only: vec![step.to_owned()], ..Options::default() }
    }

    /// Understands what follows `test` on the command line.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(args: &[&str]) -> Result<Options, String> {
        let mut options = Options::default();
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            match arg {
                "--list" => options.is_listing = true,
                "--keep-going" => options.after_failure = AfterFailure::GoOn,
                "--only" => {
                    let step = args.next().ok_or("--only needs the name of a step")?;
                    options.only.push(known_step(step)?);
                }
                _ => match arg.strip_prefix("--only=") {
                    Some(step) => options.only.push(known_step(step)?),
                    None => return Err(format!("test: `{arg}` is not an option")),
                },
            }
        }
        Ok(options)
    }

    fn wants(&self, step: &Step) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == step.name)
    }
}

fn known_step(name: &str) -> Result<String, String> {
    if STEPS.iter().any(|step| step.name == name) {
        return Ok(name.to_owned());
    }
    let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
    Err(format!("`{name}` is not a step; the steps are {}", names.join(", ")))
}

/// One line of the closing table.
struct Row {
    name: &'static str,
    outcome: Outcome,
    elapsed: Duration,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = match self.outcome {
            Outcome::Passed => "ok",
            Outcome::Failed => "FAILED",
            Outcome::Skipped => "skipped",
        };
        write!(f, "{:<9} {outcome:<8} {:>8.1} s", self.name, self.elapsed.as_secs_f64())
    }
}

/// Runs what `options` ask for in the workspace at `root`; true if no step failed.
///
/// # Errors
/// A step that could not be started at all.
pub fn run(root: &Path, options: &Options) -> io::Result<bool> {
    if options.is_listing {
        for step in STEPS {
            let minutes = step.limit.as_secs() / 60;
            println!("{:<9} {} (at most {minutes} min)", step.name, step.what);
        }
        return Ok(true);
    }
    let started = Instant::now();
    let mut rows: Vec<Row> = Vec::new();
    for step in STEPS.iter().filter(|step| options.wants(step)) {
        println!("\n=== {}: {}", step.name, step.what);
        let step_started = Instant::now();
        let outcome = (step.run)(&Run { root, limit: Limit::start(step.limit) })?;
        let row = Row { name: step.name, outcome, elapsed: step_started.elapsed() };
        println!("=== {row}");
        rows.push(row);
        if outcome == Outcome::Failed && options.after_failure == AfterFailure::Stop {
            break;
        }
    }
    println!();
    for row in &rows {
        println!("{row}");
    }
    println!("{}", verdict(&rows, started.elapsed()));
    Ok(rows.iter().all(|row| row.outcome != Outcome::Failed))
}

/// The last line: how many steps passed, or which failed and how to run them alone.
fn verdict(rows: &[Row], elapsed: Duration) -> String {
    let names = |outcome| {
        rows.iter().filter(|row| row.outcome == outcome).map(|row| row.name).collect::<Vec<_>>()
    };
    let failed = names(Outcome::Failed);
    let seconds = elapsed.as_secs_f64();
    if failed.is_empty() {
        let nr_passed = names(Outcome::Passed).len();
        let nr_skipped = names(Outcome::Skipped).len();
        return format!("all good: {nr_passed} passed, {nr_skipped} skipped, in {seconds:.1} s");
    }
    format!(
        "failed after {seconds:.1} s: {}; to repeat: cargo xtask test --only {}",
        failed.join(", "),
        failed.join(" --only ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, outcome: Outcome) -> Row {
        Row { name, outcome, elapsed: Duration::from_millis(1500) }
    }

    #[test]
    fn options_are_understood() {
        assert_eq!(Options::parse(&[]), Ok(Options::default()));
        let options = Options::parse(&["--only", "fmt", "--keep-going", "--only=tidy"]).unwrap();
        assert_eq!(options.only, ["fmt", "tidy"]);
        assert_eq!(options.after_failure, AfterFailure::GoOn);
        let wanted: Vec<_> =
            STEPS.iter().filter(|step| options.wants(step)).map(|step| step.name).collect();
        assert_eq!(wanted, ["fmt", "tidy"]);
    }

    #[test]
    fn wrong_options_are_named() {
        assert!(Options::parse(&["--fast"]).unwrap_err().contains("--fast"));
        assert!(Options::parse(&["--only"]).is_err());
        let unknown = Options::parse(&["--only", "lint"]).unwrap_err();
        assert!(unknown.contains("lint") && unknown.contains("clippy"), "{unknown}");
    }

    #[test]
    fn a_row_lines_up() {
        assert_eq!(row("fmt", Outcome::Passed).to_string(), "fmt       ok            1.5 s");
        assert_eq!(row("clippy", Outcome::Failed).to_string(), "clippy    FAILED        1.5 s");
    }

    #[test]
    fn the_verdict_names_what_failed_and_how_to_repeat_it() {
        let second = Duration::from_secs(1);
        let rows = [row("fmt", Outcome::Passed), row("bench", Outcome::Skipped)];
        assert_eq!(verdict(&rows, second), "all good: 1 passed, 1 skipped, in 1.0 s");
        let rows = [row("fmt", Outcome::Failed), row("tidy", Outcome::Failed)];
        assert_eq!(
            verdict(&rows, second),
            "failed after 1.0 s: fmt, tidy; to repeat: cargo xtask test --only fmt --only tidy"
        );
    }
}
