//! Running a command for so long and no longer. A test that hangs ends its step, and the step says
//! so.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How often a command is looked at.
const POLL: Duration = Duration::from_millis(50);
/// The variable that multiplies every limit, for machines that are slower than most.
pub const FACTOR: &str = "PGMAP_STEP_LIMIT_FACTOR";

/// The end of a step.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    end: Instant,
    whole: Duration,
}

impl Limit {
    /// A limit that begins now: `whole`, times the factor that the environment gives.
    pub fn start(whole: Duration) -> Limit {
        let factor = std::env::var(FACTOR).ok().and_then(|factor| factor.parse::<u32>().ok());
        let whole = whole * factor.unwrap_or(1).max(1);
        Limit { end: Instant::now() + whole, whole }
    }

    /// Runs `command` with its output where ours goes; whether it succeeded before the limit.
    pub fn run(&self, command: &mut Command) -> io::Result<bool> {
        let mut child = command.spawn()?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.success());
            }
            if Instant::now() >= self.end {
                return self.stop(&mut child);
            }
            thread::sleep(POLL);
        }
    }

    fn stop(&self, child: &mut Child) -> io::Result<bool> {
        println!(
            "the step took longer than its limit of {} s and was stopped; what it printed last is \
             what hung. On a slow machine set {FACTOR}=2",
            self.whole.as_secs()
        );
        kill_family(child.id());
        child.kill()?;
        child.wait()?;
        Ok(false)
    }
}

/// Ends a process and all that it started, from the latest on: killing cargo alone leaves its
/// tests.
fn kill_family(root: u32) {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        // The name in parentheses may have any characters in it.
        let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
        if let Some(parent) = after.split(' ').nth(1).and_then(|parent| parent.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut family = vec![root];
    let mut at = 0;
    while let Some(pid) = family.get(at) {
        family.extend(children.get(pid).into_iter().flatten());
        at += 1;
    }
    let numbers: Vec<String> = family.iter().rev().map(u32::to_string).collect();
    // The shell's own `kill` is everywhere. Who has ended meanwhile makes it complain, and is no
    // loss.
    let script = format!("kill -KILL {}", numbers.join(" "));
    let _ = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_hangs_is_ended_with_all_that_it_started() {
        let limit = Limit::start(Duration::from_millis(300));
        let started = Instant::now();
        let marker = format!("{}.25", 3000 + std::process::id());
        let script = format!("sleep {marker} & sleep {marker}");
        assert!(!limit.run(Command::new("sh").args(["-c", &script])).unwrap());
        assert!(started.elapsed() < Duration::from_secs(60));
        let is_left = |process: fs::DirEntry| {
            fs::read(process.path().join("cmdline"))
                .is_ok_and(|line| line.starts_with(format!("sleep\0{marker}").as_bytes()))
        };
        let end = Instant::now() + Duration::from_secs(20);
        while fs::read_dir("/proc").unwrap().flatten().any(is_left) {
            assert!(Instant::now() < end, "a child is left");
            thread::sleep(POLL);
        }
    }

    #[test]
    fn a_command_that_ends_in_time_has_its_own_result() {
        let limit = Limit::start(Duration::from_secs(60));
        assert!(limit.run(&mut Command::new("true")).unwrap());
        assert!(!limit.run(&mut Command::new("false")).unwrap());
    }
}
