//! `cargo xtask outside`: the tests that others wrote, run on pgmap's adapters.
//!
//! Their packages are large (LMCache brings torch: 6 GB), so this is no step of the test run. It
//! installs nothing: whoever runs it names an interpreter that has the packages, and a folder with
//! their tests. SGLang wants another version of torch than LMCache does, so it may have an
//! interpreter of its own. What is missing is named, and skipped.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs, io};

use crate::steps::target_dir;

/// An interpreter that has lmcache, pytest and pgmap.
const PYTHON: &str = "PGMAP_OUTSIDE_PYTHON";
/// Where LMCache's source distribution was unpacked.
const LMCACHE: &str = "PGMAP_OUTSIDE_LMCACHE";
/// An interpreter that has sglang, pytest and pgmap; unless it is set, the other one is asked.
const SGLANG_PYTHON: &str = "PGMAP_OUTSIDE_SGLANG_PYTHON";

/// The plugin that puts pgmap's adapter in the place of another.
const PLUGINS: &str = "crates/pgmap-py/tests/outside";

/// LMCache's tests of an L2 adapter.
const CONFORMANCE: &str = "tests/v1/distributed/test_mock_l2_adapter.py";

/// Of those, what is left out: the mock pretends to be slow.
const LEFT_OUT: &str = "not test_store_completion_is_delayed_by_bandwidth";

/// LMCache's tests of what makes adapters, and of what they say of their memory (from 0.5.7 on).
const THEIRS: &[&str] = &[
    "tests/v1/distributed/test_l2_adapter_factory.py",
    "tests/v1/distributed/test_memory_tags.py",
];

/// How pytest ends where everything was skipped.
const NOTHING_RUN: Option<i32> = Some(5);

/// Tests of ours that need an engine.
const OURS: &[&str] =
    &["lmcache_adapter.py", "lmcache_storage.py", "lmcache_engines.py", "vllm_tier.py"];

/// Those that need SGLang.
const OURS_SGLANG: &[&str] = &["sglang_storage.py", "sglang_controller.py", "sglang_engines.py"];

/// Runs what there is; true if nothing of it failed.
///
/// # Errors
/// A command that could not be started at all.
pub fn run(root: &Path) -> io::Result<bool> {
    // By themselves: beside LMCache's sources they would import those, which are not built.
    let folder = target_dir(root).join("outside");
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder)?;
    let (python, lmcache) = (env::var_os(PYTHON), env::var_os(LMCACHE));
    let mut is_good = true;
    match (&python, &lmcache) {
        (Some(python), Some(lmcache)) => {
            is_good &= run_lmcache(root, &folder, python, Path::new(lmcache))?;
        }
        _ => println!("skipped: outside: {PYTHON} and {LMCACHE} are not both set"),
    }
    match env::var_os(SGLANG_PYTHON).or(python) {
        Some(python) if has(&python, "sglang")? => {
            is_good &= run_ours(root, &folder, &python, OURS_SGLANG)?;
        }
        Some(python) => println!("skipped: outside: {} lacks sglang or pgmap", python.display()),
        None => println!("skipped: outside: {SGLANG_PYTHON} is not set"),
    }
    Ok(is_good)
}

/// Whether an interpreter has an engine, of a version that its adapter knows; names it if so.
fn has(python: &OsStr, engine: &str) -> io::Result<bool> {
    let probe = format!("import pgmap.{engine} as ours; print('{engine}', ours.require())");
    let probed = Command::new(python).args(["-c", &probe]).stderr(Stdio::inherit()).output()?;
    print!("{}", String::from_utf8_lossy(&probed.stdout));
    Ok(probed.status.success())
}

fn pytest(python: &OsStr, folder: &Path) -> Command {
    let mut tests = Command::new(python);
    tests.args(["-m", "pytest", "-q", "-rs", "-W", "ignore", "-p", "no:cacheprovider"]);
    tests.current_dir(folder).env("LMCACHE_TRACK_USAGE", "false");
    tests
}

fn run_lmcache(root: &Path, folder: &Path, python: &OsStr, lmcache: &Path) -> io::Result<bool> {
    if !has(python, "lmcache")? {
        println!("skipped: outside: {} lacks lmcache or pgmap", python.display());
        return Ok(true);
    }
    let mut copy = Command::new("cp");
    copy.arg("-rT").arg(lmcache.join("tests")).arg(folder.join("tests"));
    let mut is_good = copy.status()?.success();
    for suite in std::iter::once(&CONFORMANCE).chain(THEIRS) {
        if !folder.join(suite).is_file() {
            println!("skipped: outside: LMCache has no {suite}");
            continue;
        }
        println!("--- {suite}");
        let mut tests = pytest(python, folder);
        if *suite == CONFORMANCE {
            tests.args(["-p", "pgmap_conformance", "-k", LEFT_OUT]);
            // pgmap may be on it too.
            let path = env::var_os("PYTHONPATH").unwrap_or_default();
            let folders = std::iter::once(root.join(PLUGINS)).chain(env::split_paths(&path));
            tests.env("PYTHONPATH", env::join_paths(folders).map_err(io::Error::other)?);
        }
        is_good &= tests.arg(suite).status()?.success();
    }
    Ok(is_good & run_ours(root, folder, python, OURS)?)
}

fn run_ours(root: &Path, folder: &Path, python: &OsStr, suites: &[&str]) -> io::Result<bool> {
    let mut is_good = true;
    for suite in suites {
        println!("--- {suite}, skipped without its engine");
        let mut tests = pytest(python, folder);
        // What they count is printed, LMCache's log is not.
        tests.args(["-s"]).env("LMCACHE_LOG_LEVEL", "ERROR");
        let code = tests.arg(root.join(PLUGINS).join(suite)).status()?.code();
        is_good &= code == Some(0) || code == NOTHING_RUN;
    }
    Ok(is_good)
}
