//! The steps of `cargo xtask test`: what each runs. One function per step, in the order of
//! [`STEPS`].

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, io};

use crate::watch::Limit;
use crate::{container, guest, tidy, wheel};

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything in it passed.
    Passed,
    /// Something in it failed, and has said so.
    Failed,
    /// There was nothing to run, and the step has said why.
    Skipped,
}

impl Outcome {
    fn of(passed: bool) -> Outcome {
        if passed { Outcome::Passed } else { Outcome::Failed }
    }
}

/// One step of the test run.
pub struct Step {
    /// The name that `--only` takes.
    pub name: &'static str,
    /// What it checks, for `--list` and the heading.
    pub what: &'static str,
    /// How long it may take: several times what it takes on two cores.
    pub limit: Duration,
    /// Runs it.
    pub run: fn(&Run<'_>) -> io::Result<Outcome>,
}

/// What a step works with.
#[derive(Clone, Copy, Debug)]
pub struct Run<'r> {
    /// The workspace.
    pub root: &'r Path,
    /// When the step ends at the latest.
    pub limit: Limit,
}

/// Every step, in the order in which they run: the quick ones first.
pub const STEPS: &[Step] = &[
    step("fmt", 2, "the formatter would change nothing", fmt),
    step("clippy", 20, "no lint fires, in tests and benchmarks too", clippy),
    step("tidy", 2, "the house rules hold", tidy_rules),
    step("build", 20, "the binaries that process tests start", build),
    step("test", 40, "unit, property, process and doc tests", test),
    step("wheel", 15, "the Python package, installed from its wheel", wheel::run),
    step("sim", 15, "the shipped code in a machine that breaks", sim),
    step("container", 15, "pools and the command with little memory, as anybody", container::run),
    step("guest", 15, "pgmap in real kernels, on memory devices", guest_usual),
    step("loom", 30, "every interleaving of the protocols, bounded", loom),
    step("bench", 15, "each benchmark once, small", bench),
];

const fn step(
    name: &'static str,
    minutes: u64,
    what: &'static str,
    run: fn(&Run<'_>) -> io::Result<Outcome>,
) -> Step {
    Step { name, what, limit: Duration::from_secs(60 * minutes), run }
}

/// The test binary that holds loom's scenarios.
const LOOM_TEST: &str = "loom";

/// How many preemptions loom explores unless the environment says otherwise. Two is where the
/// published bugs of lock-free code are found, and the scenarios still end within minutes.
const LOOM_MAX_PREEMPTIONS: &str = "2";

/// The loom scenarios are the tests whose name contains this.
const LOOM_FILTER: &str = "loom";

/// Built by itself: what it has compiled into the other crates does not ship.
pub const SIMULATION: &str = "pgmap-sim";
/// How many steps fresh seeds are run for. Not how long: the same tree has the same runs
/// everywhere.
const SIMULATION_STEPS: &str = "80000000";

fn fmt(run: &Run<'_>) -> io::Result<Outcome> {
    stream(run, cargo(run.root).args(["fmt", "--all", "--check"]))
}

/// Twice: once what ships, and once with the tests, whose helpers may fail as their tests do.
fn clippy(run: &Run<'_>) -> io::Result<Outcome> {
    let mut shipped = cargo(run.root);
    shipped.args(["clippy", "--workspace", "--exclude", SIMULATION, "--", "-D", "warnings"]);
    let shipped = stream(run, &mut shipped)?;
    if !matches!(shipped, Outcome::Passed) {
        return Ok(shipped);
    }
    let mut all = cargo(run.root);
    all.args([
        "clippy",
        "--workspace",
        "--exclude",
        SIMULATION,
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    all.args(["-A", "clippy::unwrap_used", "-A", "clippy::expect_used"]);
    stream(run, &mut all)
}

fn tidy_rules(run: &Run<'_>) -> io::Result<Outcome> {
    tidy::run(run.root).map(Outcome::of)
}

fn build(run: &Run<'_>) -> io::Result<Outcome> {
    stream(run, cargo(run.root).args(["build", "--workspace", "--exclude", SIMULATION, "--bins"]))
}

fn test(run: &Run<'_>) -> io::Result<Outcome> {
    stream(
        run,
        cargo(run.root).args(["test", "--workspace", "--exclude", SIMULATION, "--no-fail-fast"]),
    )
}

/// The plans that failed once, and seeds that no earlier state of the tree was run with.
fn sim(run: &Run<'_>) -> io::Result<Outcome> {
    let mut clippy = cargo(run.root);
    clippy.args(["clippy", "--package", SIMULATION, "--", "-D", "warnings"]);
    let mut tests = cargo(run.root);
    tests.args(["test", "--package", SIMULATION]);
    let mut corpus = cargo(run.root);
    corpus.args(["run", "--package", SIMULATION, "--", "--replay", "crates/pgmap-sim/corpus"]);
    let mut fresh = cargo(run.root);
    fresh.args(["run", "--package", SIMULATION, "--", "--seed", &seed_of_tree(run.root)]);
    fresh.args(["--steps", SIMULATION_STEPS]);
    for command in [&mut clippy, &mut tests, &mut corpus, &mut fresh] {
        let outcome = stream(run, command)?;
        if !matches!(outcome, Outcome::Passed) {
            return Ok(outcome);
        }
    }
    Ok(Outcome::Passed)
}

/// A seed that is the same for the same tree, so that a run can be repeated, and another for each
/// other.
fn seed_of_tree(root: &Path) -> String {
    let asked = Command::new("git").current_dir(root).args(["rev-parse", "HEAD^{tree}"]).output();
    let tree = asked.map(|output| output.stdout).unwrap_or_default();
    let digits = tree.iter().filter_map(|&digit| char::from(digit).to_digit(16)).take(12);
    (1 + digits.fold(0, |seed, digit| seed * 16 + u64::from(digit))).to_string()
}

fn guest_usual(run: &Run<'_>) -> io::Result<Outcome> {
    guest::run(run.root, &guest::Options::usual())
}

fn loom(run: &Run<'_>) -> io::Result<Outcome> {
    let listing = loom_tests(run.root).args(["--", "--list"]).stderr(Stdio::inherit()).output()?;
    if !listing.status.success() {
        return Ok(Outcome::Failed);
    }
    // A filter that matches nothing passes; without this, scenarios could vanish unnoticed.
    if count_listed(&String::from_utf8_lossy(&listing.stdout)) == 0 {
        println!(
            "no test of pgmap-mm has `{LOOM_FILTER}` in its name: the protocols are unchecked"
        );
        return Ok(Outcome::Failed);
    }
    stream(run, &mut loom_tests(run.root))
}

fn loom_tests(root: &Path) -> Command {
    let flags = env::var("RUSTFLAGS").unwrap_or_default();
    let mut command = cargo(root);
    command
        .args(["test", "--package", "pgmap-mm", "--profile", "quick"])
        .args(["--test", LOOM_TEST])
        .arg(LOOM_FILTER)
        .env("RUSTFLAGS", format!("{flags} --cfg loom").trim_start())
        // Other flags mean other builds: a folder of its own keeps both caches warm.
        .env("CARGO_TARGET_DIR", target_dir(root).join("loom"));
    if env::var_os("LOOM_MAX_PREEMPTIONS").is_none() {
        command.env("LOOM_MAX_PREEMPTIONS", LOOM_MAX_PREEMPTIONS);
    }
    command
}

/// How many tests a test runner's `--list` names.
fn count_listed(listing: &str) -> usize {
    listing.lines().filter(|line| line.ends_with(": test")).count()
}

fn bench(run: &Run<'_>) -> io::Result<Outcome> {
    if !run.root.join("crates/pgmap-bench/src/main.rs").is_file() {
        println!("skipped: pgmap-bench has no main.rs");
        return Ok(Outcome::Skipped);
    }
    let small = ["run", "--profile", "quick", "--package", "pgmap-bench", "--", "--small"];
    stream(run, cargo(run.root).args(small))
}

/// Where builds go.
pub fn target_dir(root: &Path) -> PathBuf {
    // A relative folder is meant from where cargo runs, and that is the root.
    root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The cargo that runs this tool, to be run at `root`.
pub fn cargo(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// Runs `command` with its output where ours goes.
fn stream(run: &Run<'_>, command: &mut Command) -> io::Result<Outcome> {
    println!("$ {}", shown(command));
    run.limit.run(command).map(Outcome::of)
}

/// `command` as one would type it.
pub fn shown(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        Some(format!("{}='{}'", name.to_string_lossy(), value?.to_string_lossy()))
    });
    let args = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
    variables.chain(["cargo".to_owned()]).chain(args).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_tests_are_counted_and_benchmarks_are_not() {
        let listing = "pin::tests::loom_a: test\n\n1 test, 1 benchmark\nb: benchmark\n";
        assert_eq!(count_listed(listing), 1);
        assert_eq!(count_listed("0 tests, 0 benchmarks\n"), 0);
    }

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = cargo(Path::new("."));
        command.args(["test", "loom"]).env("RUSTFLAGS", "--cfg loom");
        assert_eq!(shown(&command), "RUSTFLAGS='--cfg loom' cargo test loom");
    }

    #[test]
    fn no_two_steps_share_a_name() {
        for (index, step) in STEPS.iter().enumerate() {
            assert!(STEPS[..index].iter().all(|other| other.name != step.name), "{}", step.name);
        }
    }
}
