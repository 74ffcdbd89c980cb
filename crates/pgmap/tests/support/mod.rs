//! What tests with several processes share: the second process, and blocks that prove what they
//! are.
//!
//! A test starts this very program again with [`ROLE`] set; the test `child_entry` of the same
//! module then plays that role instead of returning. Parent and child talk in lines: a command on
//! the child's standard input, an answer that starts with `@` on its standard output. A child whose
//! input ends leaves.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]
#![allow(clippy::expect_used, reason = "as above")]

pub mod block;
pub mod client_role;
pub mod mapper_role;
pub mod owner_role;
pub mod way;

use std::io::{BufRead, BufReader, Write};
use std::panic::Location;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use pgmap::{Client, Error, FolioSize, Owner, Pool, PoolInfo, PoolOptions};

/// The variable that tells a process its role.
pub const ROLE: &str = "PGMAP_TEST_ROLE";
/// The variable with the place to meet at.
pub const PLACE: &str = "PGMAP_TEST_PLACE";
/// Longest wait for anything; reaching it is a failure.
pub const BOUND: Duration = Duration::from_secs(60);

/// Another process of this test.
pub struct Second {
    pub process: Child,
    pub input: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Second {
    /// Starts a process in `role`.
    #[track_caller]
    pub fn start(role: &str, place: &Path) -> Self {
        Self::start_by(&[], role, place)
    }

    /// Starts a process in `role`, which says "ok" when it is ready.
    #[track_caller]
    pub fn ready(role: &str, place: &Path) -> Self {
        let mut second = Self::start(role, place);
        assert_eq!(second.answer(), "ok", "{role}");
        second
    }

    /// Starts a process in `role` by way of `wrapper`, for instance `unshare`.
    #[track_caller]
    pub fn start_by(wrapper: &[&str], role: &str, place: &Path) -> Self {
        let mut process = command(wrapper, role, place).spawn().unwrap();
        let input = process.stdin.take();
        let output = process.stdout.take().unwrap();
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // libtest may have begun the line.
                if let Some(at) = line.find('@')
                    && sender.send(line[at + 1..].to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Self { process, input, answers }
    }

    /// Sends a command.
    pub fn tell(&mut self, command: &str) {
        let input = self.input.as_mut().expect("the child's input is open");
        writeln!(input, "{command}").unwrap();
        input.flush().unwrap();
    }

    /// The next answer.
    #[track_caller]
    pub fn answer(&mut self) -> String {
        match self.answers.recv_timeout(BOUND) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => panic!("the child does not answer for {BOUND:?}"),
            Err(RecvTimeoutError::Disconnected) => {
                // It closed its output, so it ends, or has ended.
                let status = wait_until("the child ends", || self.process.try_wait().unwrap());
                panic!("the child ended without an answer: {status}")
            }
        }
    }

    /// What it said that nobody has asked for yet.
    pub fn said(&self) -> Vec<String> {
        self.answers.try_iter().collect()
    }

    /// Sends a command and returns its answer.
    pub fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer()
    }

    /// Sends a command whose answer must be `ok`.
    pub fn must(&mut self, command: &str) {
        assert_eq!(self.ask(command), "ok", "the child did not {command}");
    }

    pub fn pid(&self) -> i32 {
        self.process.id().try_into().unwrap()
    }

    /// Stops the process, or lets it go on.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Stops the process; returns when every thread of it stands.
    pub fn stop(&self) {
        self.signal(rustix::process::Signal::STOP);
        let tasks = format!("/proc/{}/task", self.pid());
        wait_until("every thread is stopped", || {
            let mut tasks = std::fs::read_dir(&tasks).unwrap().flatten();
            let stands = |stat: String| stat.rsplit_once(") ").unwrap().1.starts_with('T');
            tasks
                .all(|task| std::fs::read_to_string(task.path().join("stat")).is_ok_and(stands))
                .then_some(())
        });
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Ends the child's input and waits for its end.
    pub fn end(mut self) -> ExitStatus {
        drop(self.input.take());
        wait_until("the child ends", || self.process.try_wait().unwrap())
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        // Already dead is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A command that starts this program in `role`, which `child_entry` of the caller's module plays.
#[track_caller]
pub fn command(wrapper: &[&str], role: &str, place: &Path) -> Command {
    let program = std::env::current_exe().unwrap();
    let mut command = match wrapper {
        [] => Command::new(&program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(&program);
            command
        }
    };
    let module = Path::new(Location::caller().file()).file_stem().unwrap().to_str().unwrap();
    command.args(["--exact", &format!("{module}::child_entry"), "--nocapture"]);
    command.arg("--test-threads=1");
    command.env(ROLE, role).env(PLACE, place).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// The test `name` of the module with `module_path`, as `--exact` takes it.
pub fn test_path(module_path: &str, name: &str) -> String {
    let (_program, modules) = module_path.split_once("::").unwrap();
    format!("{modules}::{name}")
}

/// Copies of all connections of process `pid`. `None`, with a line that says so, where the system
/// does not give them out, as container runtimes' filters may refuse.
pub fn sockets_of(pid: i32, test: &str) -> Option<Vec<std::os::fd::OwnedFd>> {
    use rustix::net::{SocketType, sockopt::socket_type};
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let sockets = entries.filter(|entry| {
        std::fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    });
    let mut copies = Vec::new();
    for entry in sockets {
        let number = entry.file_name().to_str().unwrap().parse().unwrap();
        match pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()) {
            // The child's standard error may be a socket, too, of another kind.
            Ok(copy) if socket_type(&copy) == Ok(SocketType::SEQPACKET) => copies.push(copy),
            Ok(_) => {}
            Err(error) => {
                println!(
                    "skipped: {test}: pidfd_getfd: {error}; it needs CAP_SYS_PTRACE or less of a \
                     filter"
                );
                return None;
            }
        }
    }
    Some(copies)
}

/// The output of a child, for tests that read it themselves.
pub fn take_output(process: &mut Child) -> ChildStdout {
    process.stdout.take().unwrap()
}

/// The role this process was started in, and the place; none in the first process.
pub fn role() -> Option<(String, std::path::PathBuf)> {
    let role = std::env::var(ROLE).ok()?;
    // A first process that is itself killed must not leave this one behind.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    // A panic in any thread is the end of the process, so that no test can overlook it.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::exit(101);
    }));
    Some((role, std::env::var_os(PLACE).unwrap().into()))
}

/// Says something to the parent.
pub fn say(answer: impl std::fmt::Display) {
    // One write, so that a kill in between cannot leave half a line.
    let line = format!("@{answer}\n");
    let mut out = std::io::stdout().lock();
    // A parent that is gone ends this process by the end of its input.
    let _ = out.write_all(line.as_bytes());
    let _ = out.flush();
}

/// The commands from the parent until it closes the pipe.
pub fn commands() -> impl Iterator<Item = String> {
    std::io::stdin().lines().map_while(Result::ok)
}

/// Tells helper threads to stop, also when the test fails before it would have.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Looks again and again, with pauses, until `found` says so, and fails after [`BOUND`].
pub fn wait_until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + BOUND;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < until, "waited {BOUND:?} in vain: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Waits until the pool's figures are as `wanted` says.
pub fn wait_for_info(owner: &Owner, what: &str, wanted: impl Fn(&PoolInfo) -> bool) -> PoolInfo {
    let until = Instant::now() + BOUND;
    loop {
        let info = owner.info();
        if wanted(&info) {
            return info;
        }
        assert!(Instant::now() < until, "waited {BOUND:?} in vain: {what}: {info:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// An owner of an anonymous pool that listens.
pub fn serving_owner(size_bytes: u64) -> (Owner, tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(size_bytes)).unwrap()).unwrap();
    owner.serve(&socket).unwrap();
    (owner, directory, socket)
}

/// Creates, fills and commits a file.
pub fn put(client: &Client, name: impl AsRef<[u8]>, bytes: &[u8]) -> Result<(), Error> {
    let mut writer = client.create(name, bytes.len() as u64, FolioSize::BestFit)?;
    writer.write_all_at(0, bytes)?;
    writer.commit()
}

/// Nothing is leaked: what is not free is in a committed file.
pub fn assert_accounted(info: &PoolInfo) {
    assert_eq!(info.free_bytes + info.live_bytes, info.size_bytes, "{info:?}");
    assert_eq!((info.reserved_bytes, info.draining_bytes), (0, 0), "{info:?}");
}

/// The seed of this run: from the environment to repeat one, else from the clock; printed.
pub fn seed() -> u64 {
    let seed = std::env::var("PGMAP_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(pgmap::os::clock::monotonic_ns);
    println!("seed {seed}; repeat with PGMAP_TEST_SEED={seed}");
    seed
}

/// A small generator of numbers (splitmix64): good enough to choose steps.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A directory for pools of up to 256 MiB: in shared memory where that has room, as it mostly does,
/// else in the temporary directory. A plain container's `/dev/shm` is 64 MiB.
pub fn roomy() -> tempfile::TempDir {
    roomy_for(512 << 20).expect("512 MiB are free in /dev/shm or the temporary directory ($TMPDIR)")
}

/// The same for files of so many bytes; `None` where no place could hold them.
pub fn roomy_for(len_bytes: u64) -> Option<tempfile::TempDir> {
    let has_room = |place: &Path| {
        let fs = rustix::fs::statvfs(place);
        fs.is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) >= len_bytes)
    };
    let temporary = std::env::temp_dir();
    let place = [Path::new("/dev/shm"), &temporary].into_iter().find(|place| has_room(place))?;
    Some(tempfile::tempdir_in(place).unwrap())
}
