//! The shortest plan that still fails.
//!
//! Parts are left out, the largest first, as long as the rest fails with the same first words.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::episode;
use crate::knobs::Knobs;
use crate::plan::Plan;

/// What tells two failures apart: their words, without numbers and names.
fn kind(failure: &str) -> String {
    let words = failure.split_whitespace().take(12);
    words.filter(|word| !word.contains(|letter: char| letter.is_ascii_digit())).collect()
}

/// Shortens `plan`, which fails with `failure`, for at most `limit`.
pub fn shrink(plan: &Plan, failure: &str, place: &Path, limit: Duration) -> Plan {
    let start = Instant::now();
    let kind_of_failure = kind(failure);
    let mut best = plan.clone();
    let mut nr_runs = 0;
    let mut fails = |plan: &Plan| {
        nr_runs += 1;
        let directory = place.join(format!("shrink-{nr_runs}"));
        let outcome = run_in(plan, &directory);
        outcome.failure.is_some_and(|failure| kind(&failure) == kind_of_failure)
    };
    // Each part that is left out goes on from the plan without it.
    while let Some(less) =
        candidates(&best).into_iter().take_while(|_| start.elapsed() <= limit).find(&mut fails)
    {
        best = less;
    }
    best
}

/// Runs a plan in a fresh directory, which is gone afterwards.
pub fn run_in(plan: &Plan, directory: &Path) -> episode::Outcome {
    run_traced_in(plan, directory, false)
}

/// As [`run_in`], with a trace.
pub fn run_traced_in(plan: &Plan, directory: &Path, is_traced: bool) -> episode::Outcome {
    if let Err(error) = std::fs::create_dir_all(directory) {
        panic!("no directory for a run at {}: {error}", directory.display());
    }
    let outcome = episode::run(plan, directory, is_traced);
    // What cannot be removed now goes with the place that it lies in.
    let _ = std::fs::remove_dir_all(directory);
    outcome
}

/// Plans that lack something.
fn candidates(plan: &Plan) -> Vec<Plan> {
    let mut found = Vec::new();
    let quiet = |change: fn(&mut Knobs)| {
        let mut less = plan.clone();
        change(&mut less.knobs);
        less
    };
    for (client, script) in plan.scripts.iter().enumerate() {
        let mut part = script.len();
        while part > 0 {
            for start in (0..script.len()).step_by(part) {
                let mut less = plan.clone();
                less.scripts[client].drain(start..(start + part).min(script.len()));
                found.push(less);
            }
            part /= 2;
        }
    }
    for fate in 0..plan.fates.len() {
        let mut less = plan.clone();
        less.fates.remove(fate);
        found.push(less);
    }
    if plan.embedded.is_some() {
        found.push(Plan { embedded: None, ..plan.clone() });
    }
    if plan.has_holder {
        found.push(Plan { has_holder: false, ..plan.clone() });
    }
    if !plan.backings.is_empty() {
        found.push(Plan { backings: Vec::new(), ..plan.clone() });
    }
    if plan.keeps_lock {
        found.push(Plan { keeps_lock: false, ..plan.clone() });
    }
    if plan.threads > 1 {
        found.push(Plan { threads: 1, ..plan.clone() });
    }
    found.extend([
        quiet(|knobs| knobs.no_space = 0),
        quiet(|knobs| knobs.io_error = 0),
        quiet(|knobs| knobs.full_socket = 0),
        quiet(|knobs| knobs.no_memory = 0),
        quiet(|knobs| knobs.no_membarrier = 0),
        quiet(|knobs| knobs.lost_ring = 0),
        quiet(|knobs| knobs.late_event = 0),
        quiet(|knobs| knobs.lost_event = 0),
        quiet(|knobs| knobs.doubled_event = 0),
        quiet(|knobs| knobs.is_attached = false),
        quiet(|knobs| knobs.evicts = false),
    ]);
    found.retain(|less| less != plan);
    found
}
