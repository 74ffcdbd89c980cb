//! The other processes: this very program, started again with a role.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use pgmap::os::{Blocking, Connection, Listener, Membarrier};
use pgmap::{Owner, Pool, PoolOptions};
use rustix::process::{Pid, Signal, kill_process};

use crate::failure::Failure;

const CHILD: &str = "--child";
const READY: &str = "ready";
/// How long a signal may take to be seen.
const SIGNAL_WAIT: Duration = Duration::from_secs(5);
/// Longest message of the echo.
const ECHO_BYTES: usize = 4096;

/// What another process is there for.
#[derive(Clone, Debug)]
pub enum Role {
    /// Owns a pool and serves it.
    Owner { bytes: u64, max_files: u64, directory: Option<PathBuf> },
    /// Answers each message with the same.
    Echo,
    /// Is registered for the heavy barrier and keeps its CPU busy.
    Spin,
}

impl Role {
    fn words(&self) -> Vec<String> {
        match self {
            Self::Owner { bytes, max_files, directory } => {
                let directory = directory.as_ref().map(|path| path.display().to_string());
                let words = ["owner".into(), bytes.to_string(), max_files.to_string()];
                words.into_iter().chain(directory).collect()
            }
            Self::Echo => vec!["echo".into()],
            Self::Spin => vec!["spin".into()],
        }
    }

    fn from_words(words: &[String]) -> Option<Self> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["owner", bytes, max_files, directory @ ..] => Some(Self::Owner {
                bytes: bytes.parse().ok()?,
                max_files: max_files.parse().ok()?,
                directory: directory.first().map(PathBuf::from),
            }),
            ["echo"] => Some(Self::Echo),
            ["spin"] => Some(Self::Spin),
            _ => None,
        }
    }
}

/// A folder for sockets and pools, removed on drop.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes one in memory, where there is such a place.
    pub fn new(what: &str) -> Result<Self, Failure> {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        Self::in_folder(&parent, what)
    }

    /// Makes one in the temporary directory, which mostly lies on a disk.
    pub fn on_disk(what: &str) -> Result<Self, Failure> {
        Self::in_folder(&std::env::temp_dir(), &format!("{what}-disk"))
    }

    fn in_folder(parent: &Path, what: &str) -> Result<Self, Failure> {
        let path = parent.join(format!("pgmap-bench-{}-{what}", std::process::id()));
        // What a killed run of the same number left is nobody's.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// A path inside.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing is lost with it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process of a role, ended with this value.
pub struct Other {
    child: Child,
    // Removed after the process has ended: `drop` comes before the fields.
    folder: Folder,
    /// The pool's, where it has one.
    _pool: Option<Folder>,
}

impl Other {
    /// Starts a process and returns when it is ready. It runs on the last CPU, what is measured on
    /// the first.
    pub fn start(role: &Role, what: &str) -> Result<Self, Failure> {
        let folder = Folder::new(what)?;
        let program = std::env::current_exe()?;
        let mut child = Command::new(program)
            .arg(CHILD)
            .arg(folder.join("socket"))
            .args(role.words())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| Failure::new("a child without output"))?;
        let other = Self { child, folder, _pool: None };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim_end() != READY {
            return Err(Failure::new(format!("the other process ({role:?}) did not come up")));
        }
        Ok(other)
    }

    /// Keeps the folder of its pool for as long as it runs.
    pub fn with_folder(mut self, pool: Folder) -> Self {
        self._pool = Some(pool);
        self
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// Stops the process where it stands; returns when it has.
    pub fn stop(&self) -> Result<(), Failure> {
        self.signal(Signal::STOP, |state| state == 'T')
    }

    /// Lets a stopped process go on; returns when it runs or sleeps.
    pub fn go_on(&self) -> Result<(), Failure> {
        self.signal(Signal::CONT, |state| state != 'T')
    }

    fn signal(&self, signal: Signal, is_there: impl Fn(char) -> bool) -> Result<(), Failure> {
        let pid = i32::try_from(self.child.id())?;
        let pid = Pid::from_raw(pid).ok_or_else(|| Failure::new("a child without a number"))?;
        kill_process(pid, signal)?;
        let until = Instant::now() + SIGNAL_WAIT;
        while Instant::now() < until {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            if state.is_some_and(&is_there) {
                return Ok(());
            }
        }
        Err(Failure::new("a signal had no effect"))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // Ended already is as good; nothing of it is needed any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether this process was started as another's child.
pub fn is_child(args: &[String]) -> bool {
    args.first().is_some_and(|arg| arg == CHILD)
}

/// Plays the role that the command line names.
pub fn play(args: &[String]) -> ExitCode {
    let role = args.get(2..).and_then(Role::from_words);
    let result = match (args.get(1), role) {
        (Some(socket), Some(role)) => play_role(Path::new(socket), &role),
        _ => Err(Failure::new("unknown role")),
    };
    if let Err(failure) = result {
        eprintln!("pgmap-bench (other process): {failure}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn play_role(socket: &Path, role: &Role) -> Result<(), Failure> {
    // The last one that this process may have; it was started by a thread with a CPU of its own.
    let cpus = pgmap::os::process::online_cpus();
    let _kept = cpus.into_iter().rev().find(|&cpu| pgmap::os::process::pin_to_cpu(cpu).is_ok());
    match role {
        Role::Owner { bytes, max_files, directory } => {
            let options = match directory {
                Some(directory) => PoolOptions::in_directory(directory, *bytes),
                None => PoolOptions::anonymous(*bytes),
            };
            let owner = Owner::start(Pool::create(&options.max_files(*max_files))?)?;
            owner.serve(socket)?;
            say_ready_and_wait()
        }
        Role::Echo => {
            let listener = Listener::bind(socket, 0o600)?;
            std::thread::spawn(move || echo(&listener));
            say_ready_and_wait()
        }
        Role::Spin => {
            let _registered = Membarrier::register();
            std::thread::spawn(|| {
                loop {
                    std::hint::spin_loop();
                }
            });
            say_ready_and_wait()
        }
    }
}

/// Says that all is ready; returns when the parent has gone.
fn say_ready_and_wait() -> Result<(), Failure> {
    println!("{READY}");
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Answers the one caller until it hangs up.
fn echo(listener: &Listener) -> Result<(), Failure> {
    let connection: Connection = loop {
        if let Some(connection) = listener.accept()? {
            break connection;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    connection.set_blocking(Blocking::Wait)?;
    let mut buffer = vec![0; ECHO_BYTES];
    loop {
        let received = connection.recv(&mut buffer)?;
        if received.is_end() {
            return Ok(());
        }
        connection.send(&buffer[..received.len], &[])?;
    }
}
