//! Checks docs/parity.md against the tests that it names, and says how many of the scenarios have
//! one. Runs without the test harness, so that the count is always printed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::ExitCode;

/// Scenarios of the kernel's rules.
const NR_SCENARIOS: u32 = 67;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = match fs::read_to_string(root.join("docs/parity.md")) {
        Ok(page) => page,
        Err(error) => {
            println!("docs/parity.md: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut known = BTreeSet::new();
    collect_tests(&root.join("crates"), &mut known);
    let mut faults = Vec::new();
    let mut covered = BTreeMap::new();
    for (number, tests) in rows(&page) {
        if number == 0 || number > NR_SCENARIOS || covered.contains_key(&number) {
            faults.push(format!("scenario {number} is not one of 1..={NR_SCENARIOS}, or twice"));
        }
        for test in tests.iter().filter(|test| !known.contains(*test)) {
            faults.push(format!("scenario {number} names the test {test}, which does not exist"));
        }
        covered.insert(number, !tests.is_empty());
    }
    let nr_covered = covered.values().filter(|&&is_covered| is_covered).count();
    for fault in &faults {
        println!("parity: {fault}");
    }
    println!("parity: {nr_covered} of {NR_SCENARIOS} scenarios have a test by name");
    let (passed, failed) = if faults.is_empty() { (1, 0) } else { (0, 1) };
    println!("{passed} passed, {failed} failed");
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The rows of the page's tables: a scenario's number and the tests in its last cell.
fn rows(page: &str) -> impl Iterator<Item = (u32, Vec<String>)> + '_ {
    page.lines().filter_map(|line| {
        let row = line.strip_prefix('|')?.trim_end().strip_suffix('|')?;
        let (number, _) = row.split_once('|')?;
        let (_, tests) = row.rsplit_once('|')?;
        let number = number.trim().parse().ok()?;
        let names = tests.split('`').skip(1).step_by(2).map(str::to_owned);
        Some((number, names.collect()))
    })
}

/// Adds the name of every function below `directory` that follows a `#[test]`.
fn collect_tests(directory: &Path, known: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            collect_tests(&path, known);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            known.extend(tests_in(&text).map(str::to_owned));
        }
    }
}

/// The functions of a file that are tests: between `#[test]` and one there are only other
/// attributes and comments.
fn tests_in(text: &str) -> impl Iterator<Item = &str> {
    let mut is_marked = false;
    text.lines().filter_map(move |line| {
        let line = line.trim_start();
        if line == "#[test]" {
            is_marked = true;
        } else if let Some(rest) = line.strip_prefix("fn ") {
            return std::mem::take(&mut is_marked)
                .then(|| rest.split_once('('))
                .flatten()
                .map(|found| found.0);
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            is_marked = false;
        }
        None
    })
}
