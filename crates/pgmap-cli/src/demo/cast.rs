//! Starting, hearing and ending the demo's processes.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use pgmap::os::{Interest, Poller};
use serde::de::DeserializeOwned;

use super::child::{READY, Role};
use super::ground::Ground;
use super::stage::Stage;
use super::{PAUSE, TTL};
use crate::failure::Failure;

/// How long a process may take to say something.
const MAX_SILENCE: Duration = Duration::from_secs(15);

/// A process that plays a role. Dropping it kills it.
pub struct Actor {
    child: Child,
    role: String,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

/// Whether a reader is delayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as it can.
    Brisk,
    /// Delayed half-way through each read.
    Slow,
}

impl Actor {
    /// Starts a process. Call it on the main thread: the process ends with the thread it came from.
    ///
    /// # Errors
    /// When the system cannot start one.
    pub fn enter(
        (stage, ground): (&Stage, &Ground),
        role: Role,
        index: u64,
        pace: Pace,
    ) -> Result<Self, Failure> {
        let name = role.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        let dma = stage.dma.to_possible_value().map_or_else(String::new, |v| v.get_name().into());
        let failed = |error: &std::io::Error| Failure::io("start a process for", &name, error);
        let pause = if pace == Pace::Slow { PAUSE } else { Duration::ZERO };
        let mut command = stage.command.again().map_err(|error| failed(&error))?;
        let mut child = command
            .args(["demo-child", &name, "--parent", &std::process::id().to_string()])
            .args(["--index", &index.to_string(), "--dma", &dma])
            .args(["--pause-ms", &pause.as_millis().to_string()])
            .args(["--ttl-ms", &TTL.as_millis().to_string()])
            .arg("--owner")
            .arg(stage.socket())
            .arg("--board")
            .arg(stage.path_of(stage.board()))
            .arg("--plain")
            .arg(stage.path_of(ground.plain().0))
            .args(["--plain-offset", &ground.plain().1.to_string()])
            .arg("--scratch")
            .arg(stage.path_of(stage.scratch()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed(&error))?;
        let stdin = child.stdin.take();
        let Some(stdout) = child.stdout.take() else {
            return Err(failed(&std::io::Error::other("it has no stdout")));
        };
        Ok(Self { child, role: name, stdin, stdout: BufReader::new(stdout) })
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(0)
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends instead, or says nothing.
    pub fn wait_ready(&mut self) -> Result<(), Failure> {
        let line = self.line()?;
        if line == READY { Ok(()) } else { Err(self.failure(&format!("said `{line}`"))) }
    }

    /// Waits for what it counted.
    ///
    /// # Errors
    /// When it ends without a word.
    pub fn tally<T: DeserializeOwned>(mut self) -> Result<T, Failure> {
        let line = self.line()?;
        serde_json::from_str(&line)
            .map_err(|error| self.failure(&format!("said `{line}`: {error}")))
    }

    fn line(&mut self) -> Result<String, Failure> {
        if self.stdout.buffer().is_empty() {
            let mut ready = Vec::new();
            let poller = Poller::new()?;
            poller.add(self.stdout.get_ref().as_fd(), 0, Interest::Read)?;
            let until = Instant::now() + MAX_SILENCE;
            while ready.is_empty() && Instant::now() < until {
                poller.wait(Some(until.saturating_duration_since(Instant::now())), &mut ready)?;
            }
            if ready.is_empty() {
                return Err(self.failure("said nothing"));
            }
        }
        let mut line = String::new();
        match self.stdout.read_line(&mut line) {
            Ok(0) => Err(self.failure("ended")),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(self.failure(&error.to_string())),
        }
    }

    fn failure(&self, what: &str) -> Failure {
        Failure::new("demo", 0, format!("the demo's {} (pid {}) {what}", self.role, self.pid()))
    }

    /// Tells it to go, by the end of its stdin.
    pub fn let_go(&mut self) {
        self.stdin = None;
    }

    /// Kills it, and returns when the call returned. The process is not waited for.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn kill(&mut self) -> Result<Instant, Failure> {
        self.child.kill().map_err(|error| Failure::io("kill", &self.role, &error))?;
        Ok(Instant::now())
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
