//! `pgmap-sim`: the shipped owner and clients in a simulated machine that breaks.
//! `docs/simulation.md` explains it.

mod batches;
mod books;
mod changes;
mod client;
mod closing;
mod episode;
mod failures;
mod held;
mod holders;
mod knobs;
mod machine;
mod mappers;
mod media;
mod misdeeds;
mod model;
mod operator;
mod owner;
mod parts;
mod plan;
mod quotas;
mod reads;
mod scheduler;
mod shrink;
mod verdict;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::process::{Resource, getrlimit};

use crate::plan::Plan;

/// Lines of a trace that are printed of a run that failed.
const LAST_LINES: usize = 120;

/// Runs the shipped owner and client code in a simulated machine that breaks.
///
/// Each run has a seed of its own, counted up from --seed, and is the same each time: the seed
/// draws which faults it has, what its clients do, and who runs when. A run that fails is
/// shortened, written to a file, and its trace printed. Exit codes: 0 nothing was wrong, 1 a run
/// failed, 2 the command line is wrong.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Seed of the first run
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Steps in all, over as many runs as that takes
    #[arg(long, default_value_t = 1_000_000)]
    steps: u64,
    /// Ends after so many seconds, if that comes first
    #[arg(long)]
    seconds: Option<u64>,
    /// Steps of one run, about
    #[arg(long, default_value_t = 20_000)]
    run_steps: u64,
    /// Runs the plan in FILE, or each in a directory, instead of drawing plans
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Prints everything that happens
    #[arg(long)]
    trace: bool,
    /// Goes on after a run that failed, and only names it
    #[arg(long)]
    keep_going: bool,
    /// Seconds for shortening a run that failed
    #[arg(long, default_value_t = 60)]
    shrink_seconds: u64,
    /// Where a shortened run is written
    #[arg(long, value_name = "FILE", default_value = "pgmap-sim-failed.json")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    scheduler::install();
    // What a party panics with is part of its run's outcome.
    std::panic::set_hook(Box::new(episode::note_panic));
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pgmap-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Addresses that a run with further backings may need: each client has some for all that its pool
/// has room for, in this one process, and nearly all of them stay empty.
const BACKING_ADDRESSES: u64 = 64 << 30;

/// Whether a plan needs more addresses than there are (`ulimit -v`).
fn lacks_addresses(plan: &Plan) -> bool {
    let limit = getrlimit(Resource::As).current;
    !plan.backings.is_empty() && limit.is_some_and(|limit| limit < BACKING_ADDRESSES)
}

/// Says whether nothing was wrong.
fn run(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    let place = tempfile::Builder::new().prefix("pgmap-sim-").tempdir_in("/dev/shm")?;
    let start = Instant::now();
    let (mut nr_steps, mut nr_runs, mut nr_skipped, mut nr_failed) = (0, 0, 0, 0);
    let mut play = |plan: &Plan| {
        if lacks_addresses(plan) {
            nr_skipped += 1;
            return Ok::<_, Box<dyn Error>>(nr_steps);
        }
        let directory = place.path().join(format!("run-{nr_runs}"));
        let outcome = shrink::run_traced_in(plan, &directory, arguments.trace);
        nr_steps += outcome.nr_steps;
        nr_runs += 1;
        outcome.trace.iter().for_each(|line| println!("{line}"));
        if arguments.trace {
            println!("seed {}: {} steps, sum {:016x}", plan.seed, outcome.nr_steps, outcome.sum);
        }
        match outcome.failure {
            None => Ok(nr_steps),
            Some(failure) => Err(failure.into()),
        }
    };
    if let Some(path) = &arguments.replay {
        for path in plans_at(path)? {
            let plan: Plan = serde_json::from_slice(&std::fs::read(&path)?)?;
            if let Err(failure) = play(&plan) {
                println!("{}: {failure}", path.display());
                return Ok(false);
            }
        }
    } else {
        let limit = arguments.seconds.map(Duration::from_secs);
        for seed in arguments.seed.. {
            let plan = Plan::draw(seed, arguments.run_steps);
            match play(&plan) {
                Ok(nr_steps) if nr_steps >= arguments.steps => break,
                Ok(_) if limit.is_some_and(|limit| start.elapsed() >= limit) => break,
                Ok(_) => {}
                Err(failure) => {
                    let nr_runs = seed - arguments.seed + 1;
                    println!("seed {seed}, run {nr_runs}: {failure}");
                    nr_failed += 1;
                    if !arguments.keep_going {
                        report(arguments, &plan, &failure.to_string(), place.path())?;
                        return Ok(false);
                    }
                }
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let rate = nr_steps as f64 / seconds;
    if nr_skipped > 0 {
        println!(
            "{nr_skipped} runs with further backings left out: addresses are limited (ulimit -v)"
        );
    }
    let outcome = match nr_failed {
        0 => "nothing wrong".to_owned(),
        nr_failed => format!("{nr_failed} failed"),
    };
    println!("{nr_runs} runs, {nr_steps} steps in {seconds:.1} s ({rate:.0} a second): {outcome}");
    Ok(nr_failed == 0)
}

/// The plans in a file or a directory, in order.
fn plans_at(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path)?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    Ok(paths)
}

/// Shortens a plan that failed, writes it down and prints what happens in it.
fn report(
    arguments: &Arguments,
    plan: &Plan,
    failure: &str,
    place: &Path,
) -> Result<(), Box<dyn Error>> {
    let limit = Duration::from_secs(arguments.shrink_seconds);
    let shortest = shrink::shrink(plan, failure, place, limit);
    std::fs::write(&arguments.out, serde_json::to_vec_pretty(&shortest)?)?;
    let outcome = shrink::run_traced_in(&shortest, &place.join("last"), true);
    let skipped = outcome.trace.len().saturating_sub(LAST_LINES);
    outcome.trace.iter().skip(skipped).for_each(|line| println!("{line}"));
    let nr_ops: usize = shortest.scripts.iter().map(Vec::len).sum();
    println!(
        "shortest run: {nr_ops} operations, {} fates, {} steps: {}; repeat it with --replay {}",
        shortest.fates.len(),
        outcome.nr_steps,
        outcome.failure.as_deref().unwrap_or("it no longer fails"),
        arguments.out.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(plan: &Plan) -> (u64, u64, Option<String>) {
        scheduler::install();
        let place = tempfile::Builder::new().tempdir_in("/dev/shm").unwrap();
        let outcome = shrink::run_in(plan, &place.path().join("run"));
        (outcome.nr_steps, outcome.sum, outcome.failure)
    }

    #[test]
    fn a_seed_is_a_run_bit_for_bit() {
        for seed in 1..=12 {
            let plan = Plan::draw(seed, 20_000);
            assert_eq!(sum(&plan), sum(&plan), "seed {seed}");
        }
    }

    /// For mutations: `PGMAP_SIM_SECONDS` says how long.
    #[test]
    fn nothing_is_wrong_with_the_corpus_and_the_first_seeds() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        for path in plans_at(&corpus).unwrap() {
            let plan = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            assert_eq!(sum(&plan).2, None, "{}", path.display());
        }
        let seconds = std::env::var("PGMAP_SIM_SECONDS").ok();
        let limit = Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(3));
        let start = Instant::now();
        for seed in (1..).take_while(|_| start.elapsed() < limit) {
            assert_eq!(sum(&Plan::draw(seed, 20_000)).2, None, "seed {seed}");
        }
    }

    #[test]
    fn a_plan_that_was_written_down_is_the_same_run() {
        let plan = Plan::draw(7, 20_000);
        let read: Plan = serde_json::from_slice(&serde_json::to_vec(&plan).unwrap()).unwrap();
        assert_eq!(sum(&plan), sum(&read));
    }
}
