//! A server in a directory of its own, and the command as its users run it.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure of the stage fails the test"
)]

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use signal_hook::consts::SIGINT;
use tempfile::TempDir;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `is_so`; fails when it never is.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How a child ended. One that does not end fails the test, which says where its threads sleep.
pub fn ended(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() >= end {
            let threads = threads_of(child.id());
            let _ = child.kill();
            panic!("process {} does not end:\n{threads}", child.id());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a child wrote, and how it ended, under the same condition.
pub fn output_of(child: Child) -> Output {
    let pid = child.id();
    let (ended, has_ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || ended.send(child.wait_with_output()));
    has_ended.recv_timeout(PATIENCE).map_or_else(
        |_| {
            let threads = threads_of(pid);
            let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
            panic!("process {pid} does not end:\n{threads}");
        },
        Result::unwrap,
    )
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Output {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    output_of(command.spawn().unwrap())
}

/// A line for each thread of a process: its name, what it sleeps in, and its system call.
fn threads_of(pid: u32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |task: &Path, file| std::fs::read_to_string(task.join(file)).unwrap_or_default();
    let lines = tasks.map(|task| {
        let files = ["comm", "wchan", "syscall"].map(|file| of(&task.path(), file));
        files.each_ref().map(|file| file.trim()).join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// How many descriptors below `limit`, beyond the standard streams, a child of this process starts
/// with: those that exec does not close.
pub fn nr_inherited_descriptors(limit: u32) -> u32 {
    const CLOSE_ON_EXEC: u32 = 0o2_000_000;
    let is_inherited = |number: &u32| {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"));
        let info = info.unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        flags
            .is_some_and(|flags| u32::from_str_radix(flags.trim(), 8).unwrap() & CLOSE_ON_EXEC == 0)
    };
    (3..limit).filter(is_inherited).count() as u32
}

/// Makes SIGINT end the children of tests that were started to ignore it, as a shell's job in the
/// background is: a signal that is caught here has its default action in a child.
fn heed_interrupts() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        signal_hook::flag::register_conditional_default(SIGINT, Arc::new(true.into())).unwrap();
    });
}

/// The command, told nothing by the environment.
pub fn pgmap() -> Command {
    heed_interrupts();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgmap"));
    command.env_remove("PGMAP_SOCKET").env_remove("PGMAP_LOG").env_remove("XDG_RUNTIME_DIR");
    command
}

/// A directory for pools: in shared memory where that has room, as it mostly does, else in the
/// temporary directory. A plain container's `/dev/shm` is 64 MiB.
pub fn roomy() -> TempDir {
    let has_room = |place: &Path| {
        let fs = rustix::fs::statvfs(place);
        fs.is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) >= 1 << 30)
    };
    let temporary = std::env::temp_dir();
    let place = [Path::new("/dev/shm"), &temporary].into_iter().find(|place| has_room(place));
    let place = place.expect("1 GiB is free in /dev/shm or the temporary directory ($TMPDIR)");
    tempfile::tempdir_in(place).unwrap()
}

/// An ordinary user, as whom root runs the command.
pub struct User {
    pub id: u32,
    /// The command, where that user can read it.
    program: PathBuf,
    _directory: TempDir,
}

impl User {
    /// `None`, with a line that says so, where this process cannot become another user.
    pub fn new(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: {test}: it becomes another user; run the tests as root");
            return None;
        }
        let directory = roomy();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).unwrap();
        let program = directory.path().join("pgmap");
        std::fs::copy(env!("CARGO_BIN_EXE_pgmap"), &program).unwrap();
        let user = Self { id: 54_000 + std::process::id() % 1000, program, _directory: directory };
        // Without capabilities some containers run root.
        let output = user.command().arg("--version").output();
        if !output.is_ok_and(|output| output.status.success()) {
            println!("skipped: {test}: this root may not become another user (CAP_SETUID)");
            return None;
        }
        Some(user)
    }

    /// The command as this user runs it.
    pub fn command(&self) -> Command {
        self.command_as(self.id)
    }

    /// The command as user `id` runs it.
    pub fn command_as(&self, id: u32) -> Command {
        let mut command = Command::new(&self.program);
        command.env_remove("PGMAP_SOCKET").env_remove("PGMAP_LOG").env_remove("XDG_RUNTIME_DIR");
        command.uid(id).gid(id);
        command
    }
}

/// A served pool.
pub struct Server {
    pub directory: TempDir,
    pub child: Child,
    user: Option<(PathBuf, u32)>,
}

impl Server {
    /// Serves a new pool of 64 MiB.
    pub fn start() -> Self {
        let directory = roomy();
        let child = Self::serve_in(directory.path(), pgmap(), &["--size", "64M"]);
        Self { directory, child, user: None }
    }

    /// The same, with further options for a new pool.
    pub fn start_with(options: &[&str]) -> Self {
        let directory = roomy();
        let options = [&["--size", "64M"], options].concat();
        let child = Self::serve_in(directory.path(), pgmap(), &options);
        Self { directory, child, user: None }
    }

    /// Serves a new pool of 8 MiB in shared memory, wherever others are: devices may hold that for
    /// as long as they like, and the page cache of a disk they may not.
    pub fn start_in_memory() -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let child = Self::serve_in(directory.path(), pgmap(), &["--size", "8M"]);
        Self { directory, child, user: None }
    }

    /// The same, all of it as `user`, in a directory of the user's.
    pub fn start_as(user: &User) -> Self {
        let directory = roomy();
        std::os::unix::fs::chown(directory.path(), Some(user.id), Some(user.id)).unwrap();
        let child = Self::serve_in(directory.path(), user.command(), &["--size", "64M"]);
        Self { directory, child, user: Some((user.program.clone(), user.id)) }
    }

    fn serve_in(directory: &Path, mut command: Command, options: &[&str]) -> Child {
        let is_new = !directory.join("pool").exists();
        command.arg("serve").arg("--pool").arg(directory.join("pool"));
        command.arg("--socket").arg(directory.join("socket"));
        if is_new {
            command.args(options);
        }
        let mut child =
            command.arg("--json").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let ready = std::io::BufReader::new(child.stdout.take().unwrap());
        let ready: Value =
            serde_json::Deserializer::from_reader(ready).into_iter().next().unwrap().unwrap();
        assert_eq!(ready["schema"], "pgmap.serve/1");
        child
    }

    /// Serves the same pool again, after the first server ended.
    pub fn restart(&mut self) {
        ended(&mut self.child);
        self.child = Self::serve_in(self.directory.path(), pgmap(), &["--size", "64M"]);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.bare_command();
        command.args(arguments);
        command
    }

    fn bare_command(&self) -> Command {
        let mut command = pgmap();
        if let Some((program, id)) = &self.user {
            command = Command::new(program);
            command.env_remove("PGMAP_LOG").env_remove("XDG_RUNTIME_DIR").uid(*id).gid(*id);
        }
        command.env("PGMAP_SOCKET", self.path("socket"));
        command
    }

    /// Runs a verb whose arguments are any bytes with `--json`, and returns what it prints.
    pub fn json_os(&self, arguments: &[&OsStr]) -> Value {
        let mut command = self.bare_command();
        let output = run(command.args(arguments).arg("--json"));
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", text(&output.stderr)))
    }

    /// The same of one that must fail.
    pub fn error(&self, arguments: &[&OsStr]) -> Value {
        let error = self.json_os(arguments);
        assert_eq!(error["schema"], "pgmap.error/1", "{arguments:?}");
        error
    }

    /// Runs a verb to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        run(&mut self.command(arguments))
    }

    /// Runs a verb that must succeed, with `stdin`, and returns its stdout.
    pub fn pipe(&self, arguments: &[&str], stdin: &[u8]) -> Vec<u8> {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(stdin).unwrap();
        drop(pipe);
        let output = output_of(child);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        output.stdout
    }

    /// Runs a verb that must succeed and returns its stdout.
    pub fn good(&self, arguments: &[&str]) -> String {
        text(&self.pipe(arguments, b""))
    }

    /// Runs a verb with `--json` that must succeed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.good(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// Runs a verb that must fail with `code`, and returns its stderr.
    pub fn fails(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        stderr
    }

    /// Writes a file beside the pool and returns its path.
    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub fn signal(&self, signal: Signal) {
        send(&self.child, signal);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Bytes of which no two runs of a page are alike.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
