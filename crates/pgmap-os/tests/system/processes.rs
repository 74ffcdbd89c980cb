//! What holds between processes, and after `kill -9`: with real processes.
//!
//! Each test that needs a second process starts this very program again, for that one test, with
//! `ROLE` set; the second process then plays its part and never returns to the test harness.

use pgmap_os::process::{Signal, kill_by_pidfd, pidfd_has_exited};
use pgmap_os::{
    Blocking, Connection, Doorbell, FileAccess, Listener, MemoryFile, PageSize, Poller,
    ReadMapping, TransferError, WriteMapping, file_lock, poll,
};
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

const ROLE: &str = "PGMAP_OS_TEST_ROLE";
const READY: &str = "the second process is ready";

/// The second process of a test, killed with the test.
struct Second {
    child: Child,
}

impl Second {
    /// Starts the second process of `test`, and returns when it says that it is ready.
    fn start(test: &str, place: &Path) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new(program);
        let test = crate::test_path(module_path!(), test);
        command.args(["--exact", &test, "--nocapture"]).env(ROLE, place);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with(READY)), "the second process has failed");
        Self { child }
    }

    fn kill_and_reap(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        // Already dead is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the place to meet at, in the second process only.
fn role() -> Option<PathBuf> {
    let place = std::env::var_os(ROLE).map(PathBuf::from)?;
    // A first process that is itself killed must not leave this one behind.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    Some(place)
}

/// Says that all is set up, and stays until killed.
fn be_ready() -> ! {
    println!("{READY}");
    loop {
        std::thread::park();
    }
}

fn wait_for_exit(pidfd: &OwnedFd) {
    let poller = Poller::new().unwrap();
    poller.add(pidfd, 0, poll::Interest::Read).unwrap();
    let mut ready = Vec::new();
    poller.wait(Some(Duration::from_secs(60)), &mut ready).unwrap();
    assert_eq!(ready.len(), 1, "the killed process did not exit within a minute");
}

#[test]
fn killed_process_frees_its_lock() {
    if let Some(path) = role() {
        let file = MemoryFile::open_named(&path, FileAccess::ReadWrite).unwrap();
        assert!(file_lock::try_lock_exclusive(&file).unwrap());
        be_ready();
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let file = MemoryFile::create_named(&path, 4096).unwrap();
    assert!(!file_lock::is_locked(&file).unwrap());
    let mut second = Second::start("killed_process_frees_its_lock", &path);
    assert!(file_lock::is_locked(&file).unwrap());
    assert!(!file_lock::try_lock_exclusive(&file).unwrap());
    second.kill_and_reap();
    assert!(!file_lock::is_locked(&file).unwrap());
    assert!(file_lock::try_lock_exclusive(&file).unwrap());
}

#[test]
fn memory_and_bell_cross_processes_and_the_sender_is_known_dead() {
    if let Some(path) = role() {
        let owner = Connection::connect(&path).unwrap();
        let file = MemoryFile::anonymous("sent", 4096, PageSize::Base).unwrap();
        let mapping = WriteMapping::map(&file, 0, 4096).unwrap();
        mapping.words()[3].store(33, Ordering::Release);
        let bell = Doorbell::new().unwrap();
        bell.ring().unwrap();
        owner.send(b"take these", &[file.as_fd(), bell.as_fd()]).unwrap();
        be_ready();
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let listener = Listener::bind(&path, 0o600).unwrap();
    let test = "memory_and_bell_cross_processes_and_the_sender_is_known_dead";
    let mut second = Second::start(test, &path);
    let client = listener.accept().unwrap().unwrap();

    let peer = client.peer().unwrap();
    assert_eq!(peer.pid, second.child.id() as i32);
    let pidfd = peer.pidfd.unwrap();
    assert!(!pidfd_has_exited(pidfd.as_fd()));

    let mut received = client.recv(&mut [0; 64]).unwrap();
    let bell = Doorbell::from_fd(received.fds.pop().unwrap()).unwrap();
    assert!(bell.clear().unwrap());
    let file = MemoryFile::from_fd(received.fds.pop().unwrap()).unwrap();
    let mapping = ReadMapping::map(&file, 0, 4096).unwrap();
    assert_eq!(mapping.load_u64(3, Ordering::Acquire), 33);

    kill_by_pidfd(pidfd.as_fd(), Signal::KILL).unwrap();
    wait_for_exit(&pidfd);
    assert!(pidfd_has_exited(pidfd.as_fd()));
    assert!(client.recv(&mut [0; 64]).unwrap().is_end(), "its end of the connection is closed");
    assert!(matches!(client.send(b"x", &[]), Err(TransferError::Closed)));
    assert_eq!(mapping.load_u64(3, Ordering::Acquire), 33, "the memory outlives its maker");
    second.kill_and_reap();
    assert!(pidfd_has_exited(pidfd.as_fd()), "reaped is exited, too");
    let error = kill_by_pidfd(pidfd.as_fd(), Signal::KILL).unwrap_err();
    assert_eq!(error.errno(), libc::ESRCH);
}

#[test]
fn socket_of_a_killed_listener_is_taken_over_and_a_live_one_is_not() {
    if let Some(path) = role() {
        let _listener = Listener::bind(&path, 0o600).unwrap();
        be_ready();
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let test = "socket_of_a_killed_listener_is_taken_over_and_a_live_one_is_not";
    let mut second = Second::start(test, &path);
    let error = Listener::bind(&path, 0o600).unwrap_err();
    assert_eq!(error.errno(), libc::EADDRINUSE);
    assert!(error.to_string().contains(&format!("(pid {})", second.child.id())), "{error}");
    second.kill_and_reap();
    assert!(path.exists(), "kill -9 leaves the name behind");
    assert_eq!(Connection::connect(&path).unwrap_err().errno(), libc::ECONNREFUSED);
    let listener = Listener::bind(&path, 0o600).unwrap();
    let caller = Connection::connect(&path).unwrap();
    caller.set_blocking(Blocking::Never).unwrap();
    assert!(listener.accept().unwrap().is_some());
}
