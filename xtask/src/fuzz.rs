//! `cargo xtask fuzz`: each target under libFuzzer for a while, where cargo-fuzz and a nightly
//! toolchain are.
//!
//! What is found goes to `target/fuzz`; the corpora in `fuzz/corpus` are read and not written. The
//! tests of pgmap-fuzz run the same targets on stable, and are part of `cargo xtask test`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

/// Seconds for all targets together, unless the command line says otherwise.
const SECONDS: u64 = 120;
/// Longest input.
const MOST_BYTES: u32 = 4096;
/// Longest time for one input.
const MOST_SECONDS: u32 = 20;
/// Most memory.
const MOST_MIB: u32 = 4096;

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    seconds: u64,
    /// `None` for all.
    target: Option<String>,
}

impl Options {
    /// Understands what follows `fuzz` on the command line.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(args: &[&str]) -> Result<Options, String> {
        let mut options = Options { seconds: SECONDS, target: None };
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            match arg {
                "--seconds" => {
                    let seconds = args.next().and_then(|seconds| seconds.parse().ok());
                    options.seconds = seconds.ok_or("--seconds needs a number")?;
                }
                name if !name.starts_with('-') => options.target = Some(name.to_owned()),
                _ => return Err(format!("fuzz: `{arg}` is not an option")),
            }
        }
        Ok(options)
    }
}

/// Runs the fuzzers; true if none found anything, or if they are not there, which is said.
///
/// # Errors
/// A command that could not be started, a folder that could not be read or made.
pub fn run(root: &Path, options: &Options) -> io::Result<bool> {
    if let Some(missing) = missing_toolchain(root).or_else(|| missing_fuzzer(root)) {
        println!("skipped: fuzz: {missing}");
        return Ok(true);
    }
    let mut targets = targets(root)?;
    if let Some(only) = &options.target {
        targets.retain(|target| target == only);
    }
    if targets.is_empty() {
        println!("fuzz/fuzz_targets has no such target");
        return Ok(false);
    }
    let seconds = (options.seconds / targets.len() as u64).max(1);
    let mut failed = Vec::new();
    for target in targets {
        println!("\n=== {target}: {seconds} s");
        let found = root.join("target/fuzz").join(&target);
        fs::create_dir_all(&found)?;
        let mut fuzz = cargo_fuzz(root, "run");
        fuzz.arg(&target).arg(&found).arg(PathBuf::from("fuzz/corpus").join(&target)).arg("--");
        fuzz.arg(format!("-max_total_time={seconds}"));
        fuzz.arg(format!("-max_len={MOST_BYTES}")).arg(format!("-timeout={MOST_SECONDS}"));
        fuzz.arg(format!("-rss_limit_mb={MOST_MIB}")).arg("-print_final_stats=1");
        if !fuzz.status()?.success() {
            failed.push(target);
        }
    }
    match failed.as_slice() {
        [] => println!("\nno target found anything"),
        failed => {
            println!("\nfailed: {}; docs/fuzzing.md says how to repeat it", failed.join(", "))
        }
    }
    Ok(failed.is_empty())
}

/// `cargo fuzz VERB`, by the nightly toolchain: the one that runs this tool is another.
fn cargo_fuzz(root: &Path, verb: &str) -> Command {
    let mut command = Command::new("rustup");
    // The workspace is no package, so cargo-fuzz does not find the folder by itself.
    command.args(["run", "nightly", "cargo", "fuzz", verb, "--fuzz-dir", "fuzz"]).current_dir(root);
    for variable in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO_TARGET_DIR"] {
        command.env_remove(variable);
    }
    if let Ok(sanitizer) = std::env::var("PGMAP_FUZZ_SANITIZER") {
        command.arg(format!("--sanitizer={sanitizer}"));
    }
    command
}

fn missing_toolchain(root: &Path) -> Option<&'static str> {
    let mut version = Command::new("rustup");
    version.args(["run", "nightly", "rustc", "--version"]).current_dir(root);
    let is_there = succeeds(&mut version);
    (!is_there).then_some("there is no nightly toolchain; rustup toolchain install nightly")
}

fn missing_fuzzer(root: &Path) -> Option<&'static str> {
    let mut version = Command::new("cargo");
    version.args(["fuzz", "--version"]).current_dir(root);
    let is_there = succeeds(&mut version);
    (!is_there).then_some("there is no cargo-fuzz; cargo install cargo-fuzz --locked")
}

fn succeeds(command: &mut Command) -> bool {
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The names of the targets, in order.
fn targets(root: &Path) -> io::Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(root.join("fuzz/fuzz_targets"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        targets.extend(name.strip_suffix(".rs").map(str::to_owned));
    }
    targets.sort();
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_understood_and_wrong_ones_named() {
        let all = Options { seconds: SECONDS, target: None };
        assert_eq!(Options::parse(&[]), Ok(all));
        let one = Options { seconds: 9, target: Some("wire".into()) };
        assert_eq!(Options::parse(&["wire", "--seconds", "9"]), Ok(one));
        assert!(Options::parse(&["--seconds", "soon"]).unwrap_err().contains("--seconds"));
        assert!(Options::parse(&["--fast"]).unwrap_err().contains("--fast"));
    }
}
