//! The step `wheel`: builds the Python package, installs it from the wheel into an environment of
//! its own, and runs its tests there.
//!
//! Nothing is installed outside `target/wheel`. What is missing is named, and the step is skipped:
//! a Python that is new enough, its module `venv`, or a package index that has maturin and pytest.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use crate::steps::{Outcome, Run, target_dir};

/// The package, with its tests.
const PACKAGE: &str = "crates/pgmap-py";
/// What builds the wheel.
const BUILDER: &str = "maturin>=1.9,<2";
/// What the tests need. Those of arrays are skipped without numpy.
const TESTERS: &[&str] = &["pytest>=8,<10"];
const ARRAYS: &str = "numpy>=2.1";
/// How long an index may be silent before it is taken to be none.
const PIP_PATIENCE: [&str; 4] = ["--timeout", "15", "--retries", "1"];
/// Which Python is new enough, and can make environments.
const PROBE: &str = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))";

/// Runs the step.
///
/// # Errors
/// A command that could not be started at all.
pub fn run(run: &Run<'_>) -> io::Result<Outcome> {
    let folder = target_dir(run.root).join("wheel");
    if !is_success(Command::new("python3").args(["-c", PROBE])) {
        println!(
            "skipped: wheel: no python3 of version 3.11 or later with the modules venv and ensurepip"
        );
        return Ok(Outcome::Skipped);
    }
    let (tools, place) = (folder.join("tools"), folder.join("env"));
    if !has_builder(run, &tools)? {
        println!("skipped: wheel: pip finds no {BUILDER}");
        return Ok(Outcome::Skipped);
    }
    let Some(wheel) = build(run, &tools, &folder.join("dist"))? else {
        return Ok(Outcome::Failed);
    };
    if !make_environment(run, &place)? || !pip(run, &place, TESTERS)? {
        println!("skipped: wheel: pip finds no {}", TESTERS.join(", "));
        return Ok(Outcome::Skipped);
    }
    if !pip(run, &place, &[ARRAYS])? {
        println!("no {ARRAYS}: the tests of arrays are skipped");
    }
    let Some(wheel) = wheel.to_str() else { return Ok(Outcome::Failed) };
    if !pip(run, &place, &["--no-index", wheel])? {
        return Ok(Outcome::Failed);
    }
    let mut tests = Command::new(place.join("bin/python"));
    // From elsewhere, so that what is imported is what was installed.
    tests.current_dir(&folder).args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]);
    tests.env("PYTHONDONTWRITEBYTECODE", "1").arg(run.root.join(PACKAGE).join("tests"));
    let passed = ran(run, &mut tests)?;
    Ok(if passed { Outcome::Passed } else { Outcome::Failed })
}

/// Whether maturin is in the environment of tools, where it stays from one run to the next.
fn has_builder(run: &Run<'_>, tools: &Path) -> io::Result<bool> {
    if is_success(Command::new(tools.join("bin/maturin")).arg("--version")) {
        return Ok(true);
    }
    Ok(make_environment(run, tools)? && pip(run, tools, &[BUILDER])?)
}

/// Builds the wheel; where it is.
fn build(run: &Run<'_>, tools: &Path, dist: &Path) -> io::Result<Option<PathBuf>> {
    if dist.exists() {
        fs::remove_dir_all(dist)?;
    }
    let mut command = Command::new(tools.join("bin/maturin"));
    command.current_dir(run.root.join(PACKAGE)).args(["build", "--release", "--out"]).arg(dist);
    if !ran(run, &mut command)? {
        return Ok(None);
    }
    let mut files = fs::read_dir(dist)?.flatten().map(|entry| entry.path());
    Ok(files.find(|path| path.extension().is_some_and(|extension| extension == "whl")))
}

fn make_environment(run: &Run<'_>, place: &Path) -> io::Result<bool> {
    ran(run, Command::new("python3").args(["-m", "venv", "--clear"]).arg(place))
}

fn pip(run: &Run<'_>, place: &Path, packages: &[&str]) -> io::Result<bool> {
    let mut command = Command::new(place.join("bin/python"));
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    ran(run, command.args(PIP_PATIENCE).args(packages))
}

fn ran(run: &Run<'_>, command: &mut Command) -> io::Result<bool> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    println!("$ {}", words.join(" "));
    run.limit.run(command)
}

fn is_success(command: &mut Command) -> bool {
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}
