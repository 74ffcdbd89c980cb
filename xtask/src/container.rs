//! The step `container`: tests of pools and of the command in a place like a plain container's.
//!
//! 64 MiB of `/dev/shm`, at most 1,024 descriptors, a user without capabilities. Namespaces make
//! that place out of any machine; where they are not allowed the step is skipped and says so.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use crate::steps::{Outcome, Run, cargo, shown};

/// The packages whose tests take memory and descriptors, their programs, and which modules run.
const PROGRAMS: &[(&str, &str, &[&str])] = &[
    ("pgmap", "embedded", &["files::", "on_device::"]),
    ("pgmap", "processes", &["owner_restart::"]),
    ("pgmap", "alone", &["hostile::", "kill_soak::", "soak_all::"]),
    ("pgmap-cli", "command", &["ends::", "files::", "memory::"]),
];

/// How long the soaks last here: long enough to attach, fill and kill.
const SOAK_SECONDS: &str = "3";

/// Makes the place, as root of a user namespace of its own or as root: `"$@"` is the program.
const PLACE: &str = "mount --make-rprivate / && mount -t tmpfs -o size=64M,mode=1777 none /dev/shm && \
                     exec \"$@\"";

/// Runs the step.
///
/// # Errors
/// A command that could not be started at all.
pub fn run(run: &Run<'_>) -> io::Result<Outcome> {
    let Some(place) = Place::find(run.root) else { return Ok(Outcome::Skipped) };
    let mut failed = Vec::new();
    for (package, program, modules) in PROGRAMS {
        let mut build = cargo(run.root);
        build.args(["test", "--no-run", "--message-format=json", "--package", package]);
        build.args(["--test", program]);
        println!("$ {}", shown(&build));
        let built = build.stderr(Stdio::inherit()).output()?;
        if !built.status.success() {
            return Ok(Outcome::Failed);
        }
        let folder = run.root.join("crates").join(package);
        for program in executables(&String::from_utf8_lossy(&built.stdout)) {
            println!("--- {} in a container", program.display());
            let mut inside = place.command(&program);
            inside.args(*modules).current_dir(&folder).env("PGMAP_SOAK_SECONDS", SOAK_SECONDS);
            inside.env_remove("XDG_RUNTIME_DIR").env("TMPDIR", "/tmp").env("HOME", "/tmp");
            if !run.limit.run(&mut inside)? {
                failed.push(program.display().to_string());
            }
        }
    }
    if failed.is_empty() {
        return Ok(Outcome::Passed);
    }
    println!("failed in a container: {}", failed.join(", "));
    Ok(Outcome::Failed)
}

/// How a program gets into the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// From root, as `nobody`.
    ByRoot,
    /// From an ordinary user, through two user namespaces.
    ByUser,
}

impl Place {
    /// The way that works here; prints why if there is none.
    fn find(root: &Path) -> Option<Place> {
        if let Some(folder) = root.ancestors().find(|folder| !is_open_to_all(folder)) {
            println!("skipped: container: others may not read {}", folder.display());
            return None;
        }
        let mut why = String::new();
        for place in [Place::ByRoot, Place::ByUser] {
            match place.command(Path::new("/bin/true")).output() {
                Ok(output) if output.status.success() => return Some(place),
                Ok(output) => why = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                Err(error) => why = error.to_string(),
            }
        }
        println!(
            "skipped: container: unshare, mount, prlimit and setpriv do not work here ({why})"
        );
        None
    }

    /// `program`, in the place.
    fn command(self, program: &Path) -> Command {
        let mut words = vec!["unshare"];
        words.extend_from_slice(match self {
            Place::ByRoot => &["--mount"],
            Place::ByUser => &["--user", "--map-root-user", "--mount"],
        });
        words.extend_from_slice(&["sh", "-c", PLACE, "sh", "prlimit", "--nofile=1024:1024"]);
        words.extend_from_slice(match self {
            Place::ByRoot => &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
            // Root of a namespace may be one user only; the next namespace calls it another.
            Place::ByUser => {
                &["unshare", "--user", "--map-user=1000", "--map-group=1000", "setpriv"]
            }
        });
        words.extend_from_slice(&["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(program);
        command
    }
}

fn is_open_to_all(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|metadata| metadata.permissions().mode() & 0o5 == 0o5)
}

/// The test programs that cargo's messages name: they lie in `deps`, and the command that they
/// start does not.
fn executables(messages: &str) -> Vec<PathBuf> {
    let field = "\"executable\":\"";
    let after = messages.lines().filter_map(|line| line.split_once(field));
    let paths = after.filter_map(|(_, after)| after.split('"').next());
    paths.filter(|path| path.contains("/deps/")).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_those_that_cargo_names() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/pgmap\",\"fresh\":true}\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/deps/files-1\",\"fresh\":true}\n";
        assert_eq!(executables(messages), [PathBuf::from("/t/deps/files-1")]);
    }
}
