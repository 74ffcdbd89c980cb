//! Scenarios with two guests that have the same NVDIMMs: one owns a pool, the other reads it.
//!
//! The owner's guest works until it is killed, which is when the reader has said how it went.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::kernel::Kernel;
use super::machine::{self, Devices, MEMORIES, Next, Wanted};
use super::report::Report;
use super::scenarios::Scenario;

/// The second guest's own files, below those of the first.
const SECOND: &str = "second";

/// Runs `scenario` in two guests at once.
///
/// # Errors
/// A file that could not be made, a QEMU that could not be started.
pub fn run(
    place: &Path,
    kernel: &Kernel,
    image: &Path,
    scenario: &'static Scenario,
    report: &mut Report,
) -> io::Result<()> {
    let second = place.join(SECOND);
    fs::create_dir_all(&second)?;
    report.hear(&format!("begin {}", scenario.name));
    let wanted = |role| Wanted {
        names: &[],
        words: role,
        memory: machine::USUAL_MEMORY,
        devices: &Devices::Nvdimms,
        limit: scenario.limit + machine::BOOT,
    };
    let names = [scenario.name];
    let (owner, reader) = (
        Wanted { names: &names, ..wanted("pgmap.role=owner") },
        Wanted { names: &names, ..wanted("pgmap.role=reader") },
    );
    let mut said = Vec::new();
    thread::scope(|scope| {
        let mut reading = None;
        let mut failure = None;
        machine::run(place, kernel, image, &owner, |line| {
            if line.starts_with("failed ") || line.starts_with("skipped ") {
                failure = Some(line.to_owned());
            }
            if line.starts_with("turn ") && reading.is_none() {
                reading = Some(scope.spawn(|| {
                    share(place, &second)?;
                    let mut said = Vec::new();
                    machine::run(&second, kernel, image, &reader, |line| {
                        said.push(line.to_owned());
                        Next::GoOn
                    })?;
                    Ok::<_, io::Error>(said)
                }));
            }
            match &reading {
                Some(reading) if reading.is_finished() => Next::KillAfter(Duration::ZERO),
                _ => Next::GoOn,
            }
        })?;
        said = match reading {
            Some(reading) => {
                reading.join().map_err(|_| io::Error::other("the second guest's thread died"))??
            }
            None => Vec::new(),
        };
        said.extend(failure);
        Ok::<(), io::Error>(())
    })?;
    let verdicts = ["ok ", "failed ", "skipped "];
    let is_told = |line: &&String| {
        line.starts_with("note ") || verdicts.iter().any(|verdict| line.starts_with(verdict))
    };
    said.iter().filter(is_told).for_each(|line| report.hear(line));
    Ok(())
}

/// Gives the second guest the memory of the first: the same files.
fn share(first: &Path, second: &Path) -> io::Result<()> {
    for name in MEMORIES {
        let (from, to) = (first.join(name), second.join(name));
        let _ = fs::remove_file(&to);
        fs::hard_link(from, to)?;
    }
    Ok(())
}
