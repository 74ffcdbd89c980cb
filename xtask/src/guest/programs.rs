//! pgmap's own programs for the guest: the command, and the test programs that start processes.
//!
//! As a rule they are those that the steps `build` and `test` have built, with the libraries that
//! they name. Static ones are built apart, which takes minutes.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::steps::{SIMULATION, cargo, shown};

/// The target whose programs need no library.
const TARGET: &str = "x86_64-unknown-linux-musl";
/// The programs themselves.
const BINARIES: &[&str] = &["pgmap", "pgmap-bench"];
/// The tests that run inside: those that start, kill and restart processes, and what the kernel
/// itself does.
const TESTS: &[&str] = &["alone", "embedded", "processes", "kernel_dax", "rings"];

/// A program and where it lies.
#[derive(Debug)]
pub struct Program {
    /// Its name in the guest.
    pub name: String,
    /// The file here.
    pub path: PathBuf,
}

/// Why there are no programs.
#[derive(Debug)]
pub enum Trouble {
    /// The compiler has no library for the target.
    NoTarget(String),
    /// They do not build, and cargo has said why.
    DoesNotBuild,
}

/// How the programs find the C library.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Linking {
    /// As the steps `build` and `test` have them.
    #[default]
    Dynamic,
    /// They need none: for [`TARGET`].
    Static,
}

/// Builds them all.
///
/// # Errors
/// A command that could not be started.
pub fn build(root: &Path, linking: Linking) -> io::Result<Result<Vec<Program>, Trouble>> {
    let mut build = cargo(root);
    // In one go: what the command and the tests share is then built once. The same packages as in
    // the steps, so that what those have built is not built again with other features.
    build.args(["build", "--message-format=json"]);
    build.args(BINARIES.iter().flat_map(|binary| ["--bin", binary]));
    build.args(TESTS.iter().flat_map(|test| ["--test", test]));
    match linking {
        Linking::Dynamic => build.args(["--workspace", "--exclude", SIMULATION]),
        Linking::Static if has_target(root)? => {
            build.args(["--target", TARGET, "--package", "pgmap-cli", "--package", "pgmap"]);
            build.args(["--package", "pgmap-uring", "--package", "pgmap-bench"])
        }
        Linking::Static => {
            let why = format!("Rust's target {TARGET} is missing: rustup target add {TARGET}");
            return Ok(Err(Trouble::NoTarget(why)));
        }
    };
    println!("$ {}", shown(&build));
    let built = build.stderr(Stdio::inherit()).output()?;
    if !built.status.success() {
        return Ok(Err(Trouble::DoesNotBuild));
    }
    let mut programs = executables(&String::from_utf8_lossy(&built.stdout));
    // Other packages have programs of their own.
    programs.retain(|it| BINARIES.iter().chain(TESTS).any(|name| *name == it.name));
    Ok(Ok(programs))
}

/// Whether the compiler that cargo uses at `root` can make programs for [`TARGET`].
fn has_target(root: &Path) -> io::Result<bool> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.current_dir(root).args(["--print", "target-libdir", "--target", TARGET]);
    let output = command.output()?;
    let folder = String::from_utf8_lossy(&output.stdout);
    Ok(output.status.success() && Path::new(folder.trim()).is_dir())
}

/// The programs that cargo's messages name.
fn executables(messages: &str) -> Vec<Program> {
    let field = "\"executable\":\"";
    let after = messages.lines().filter_map(|line| line.split_once(field));
    let paths = after.filter_map(|(_, after)| after.split('"').next());
    paths.filter_map(|path| Some(Program { name: plain_name(path)?, path: path.into() })).collect()
}

/// A program's name without the hash that cargo adds to those of tests.
fn plain_name(path: &str) -> Option<String> {
    let name = Path::new(path).file_name()?.to_str()?;
    let is_hash = |text: &str| text.len() == 16 && text.chars().all(|c| c.is_ascii_hexdigit());
    let plain = name.rsplit_once('-').filter(|(_, hash)| is_hash(hash)).map(|(plain, _)| plain);
    Some(plain.unwrap_or(name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_have_the_names_that_people_know() {
        let messages = "{\"executable\":null}\n{\"executable\":\"/t/debug/pgmap\"}\n\
                        {\"executable\":\"/t/deps/alone-0123456789abcdef\"}\n";
        let names: Vec<_> = executables(messages).into_iter().map(|program| program.name).collect();
        assert_eq!(names, ["pgmap", "alone"]);
    }
}
