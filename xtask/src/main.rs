//! The workspace's own tool: the house rules as a check, and the one command that runs every test.
//!
//! Run it as `cargo xtask <verb>`; `cargo xtask help` lists the verbs.

mod allowed;
mod breakages;
mod container;
mod fuzz;
mod glossary;
mod guest;
mod layers;
mod outside;
mod steps;
mod test_run;
mod tidy;
mod watch;
mod wheel;

use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, io};

use test_run::Options;

const HELP: &str = "\
House rules and tests of the pgmap workspace.

Usage: cargo xtask <verb> [options]

Verbs:
  test   run every check and every test, in order, and print a table of them
           --only STEP     run this step alone; may be given more than once
           --keep-going    go on after a failing step
           --list          print the steps and stop
  loom   run the loom scenarios of pgmap-mm; the same as `test --only loom`
  tidy   check the house rules (STYLE.md); one line per violation:
           path:line: rule: what to do
  docs   write docs/code-map.md and the index of docs/adr from the files themselves
  fuzz   run the fuzzers of fuzz/ for a while; skipped where cargo-fuzz or nightly are missing
           [TARGET]        this one alone
           --seconds N     for all of them together (120)
  breakages [TEXT]
         put faults of the past back, one by one (those whose names contain TEXT), each of which the
         simulation must find within a minute
  guest  run pgmap inside real kernels under QEMU; `cargo xtask guest --help` says more
  outside
         run LMCache's own tests on pgmap's adapter; skipped unless PGMAP_OUTSIDE_PYTHON names an
         interpreter that has lmcache, pytest and pgmap, and PGMAP_OUTSIDE_LMCACHE LMCache's sources;
         ours with SGLang's own controller run in PGMAP_OUTSIDE_SGLANG_PYTHON, if another has sglang
  help   print this text

Environment:
  CARGO_TARGET_DIR      where builds go; loom's go into its folder `loom`
  LOOM_MAX_PREEMPTIONS  how many preemptions loom explores per run (2 unless set)
  PGMAP_FUZZ_SANITIZER  the sanitizer that fuzzers are built with: address (cargo-fuzz's own), none
  PGMAP_STEP_LIMIT_FACTOR  multiplies the time that each step may take

Exit codes: 0 all good, 1 something failed, 2 the command line is wrong.
";

/// Exit code for a command line that cannot be understood.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["tidy"] => workspace_root().and_then(|root| tidy::run(&root)),
        ["docs"] => workspace_root().and_then(|root| tidy::write_docs(&root)),
        ["loom"] => workspace_root().and_then(|root| test_run::run(&root, &Options::only("loom"))),
        ["test", rest @ ..] => match Options::parse(rest) {
            Ok(options) => workspace_root().and_then(|root| test_run::run(&root, &options)),
            Err(message) => return usage(&message),
        },
        ["fuzz", rest @ ..] if !rest.contains(&"--help") => match fuzz::Options::parse(rest) {
            Ok(options) => workspace_root().and_then(|root| fuzz::run(&root, &options)),
            Err(message) => return usage(&message),
        },
        ["guest", rest @ ..] => match guest::Options::parse(rest) {
            Ok(options) => workspace_root().and_then(|root| {
                guest::run(&root, &options).map(|outcome| outcome != steps::Outcome::Failed)
            }),
            Err(message) => return usage(&message),
        },
        ["outside"] => workspace_root().and_then(|root| outside::run(&root)),
        ["breakages"] => workspace_root().and_then(|root| breakages::run(&root, "")),
        ["breakages", filter] => workspace_root().and_then(|root| breakages::run(&root, filter)),
        ["help" | "--help" | "-h"] | [_, "--help" | "-h"] => {
            print!("{HELP}");
            Ok(true)
        }
        [] => return usage("a verb is missing"),
        [verb, ..] => return usage(&format!("`{verb}`, as given, is not understood")),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage(message: &str) -> ExitCode {
    eprint!("xtask: {message}\n\n{HELP}");
    ExitCode::from(EXIT_USAGE)
}

/// The folder that holds the workspace's manifest. Cargo names this crate's folder when it runs it;
/// run by hand, the tool searches upward from where it stands.
fn workspace_root() -> io::Result<PathBuf> {
    if let Some(root) = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from)
        && let Some(root) = root.parent()
        && root.join("xtask/Cargo.toml").is_file()
    {
        return Ok(root.to_owned());
    }
    let here = env::current_dir()?;
    let root = here.ancestors().find(|folder| folder.join("xtask/Cargo.toml").is_file());
    root.map(PathBuf::from).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("no workspace at or above {}", here.display()),
        )
    })
}
