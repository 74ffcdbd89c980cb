//! Names, deaths and CPUs of processes.

use crate::OsError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, pidfd_send_signal, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs;
use std::os::fd::BorrowedFd;

pub use rustix::process::Signal;

/// Returns the user that this process acts as.
pub fn effective_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Returns the number of this process.
pub fn id() -> u32 {
    #[cfg(feature = "sim")]
    if let Some(pid) = crate::sim::with(|world| world.pid()) {
        return pid.unsigned_abs();
    }
    std::process::id()
}

/// Returns the command name of a process as `ps` shows it (at most 15 bytes), if it can be read.
///
/// The number may name another process by the time of the answer: for people, never for decisions.
pub fn command_name(pid: i32) -> Option<String> {
    #[cfg(feature = "sim")]
    if crate::sim::with(|_| ()).is_some() {
        return Some(format!("party-{pid}"));
    }
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned())
}

/// Returns when the process of this number began, in the kernel's clock ticks after the machine
/// did: with the number it names a process of this machine's run. `None` if there is none that
/// lives.
///
/// # Errors
/// What reading `/proc` says, except that there is no such process.
pub fn started_at(pid: i32) -> Result<Option<u64>, OsError> {
    #[cfg(feature = "sim")]
    if let Some(started) = crate::sim::with(|world| world.started_at(pid)) {
        return Ok(started);
    }
    let path = format!("/proc/{pid}/stat");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        // It ended between the opening and the reading.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(OsError::new("read", path, error)),
    };
    parse_start(&text).ok_or_else(|| OsError::new("understand", path, Errno::INVAL))
}

/// What a line of `/proc/PID/stat` says: `Some(None)` of a process that has ended.
fn parse_start(line: &[u8]) -> Option<Option<u64>> {
    // The name may have spaces and brackets of its own.
    let after_name = line.iter().rposition(|&byte| byte == b')')? + 1;
    let fields = std::str::from_utf8(&line[after_name..]).ok()?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    // Field 22, where the state is field 3 (Linux 7.1: Documentation/filesystems/proc.rst).
    let started = fields.nth(18)?.parse().ok()?;
    Some((!matches!(state, "Z" | "X" | "x")).then_some(started))
}

/// Returns what tells the namespace of process numbers that this process is in from others.
pub fn namespace() -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

/// Returns true if the process behind a pidfd has exited, reaped or not. Never waits.
///
/// A descriptor that cannot be polled says false; one that is no pidfd says nothing of use.
pub fn pidfd_has_exited(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let nr_ready = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&at_once)));
    // POLLHUP without POLLIN: the process was reaped (Linux 6.9 and later).
    nr_ready.is_ok() && fds[0].revents().intersects(PollFlags::IN | PollFlags::HUP)
}

/// Sends a signal to the process behind a pidfd, which no other process can be mistaken for.
///
/// # Errors
/// `ESRCH` if it has been reaped, `EPERM` if it belongs to someone else, `EBADF` for no pidfd.
pub fn kill_by_pidfd(pidfd: BorrowedFd<'_>, signal: Signal) -> Result<(), OsError> {
    pidfd_send_signal(pidfd, signal).map_err(|errno| {
        OsError::new("signal", format!("a process by pidfd with {signal:?}"), errno)
    })
}

/// Returns whether this process ignores the signal of this number now, as `nohup`, and shells with
/// jobs in the background, start programs. False for a number that is no signal's.
pub fn is_signal_ignored(number: i32) -> bool {
    crate::signal_chain::is_ignored(number)
}

/// Raises the process's soft limit of open files to its hard one.
///
/// # Errors
/// What the kernel says; none is known for a limit that stays below the hard one.
pub fn raise_descriptor_limit() -> Result<(), OsError> {
    let limits = getrlimit(Resource::Nofile);
    if limits.current == limits.maximum {
        return Ok(());
    }
    let raised = Rlimit { current: limits.maximum, ..limits };
    setrlimit(Resource::Nofile, raised)
        .map_err(|errno| OsError::new("raise", "the limit of open files (RLIMIT_NOFILE)", errno))
}

/// Returns how many more descriptors this process may open now. Without a `/proc` that says what is
/// open, that is the whole limit.
pub fn descriptors_left() -> u64 {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    match fs::read_dir("/proc/self/fd") {
        Ok(open) => {
            // The limit is one of numbers. What is beyond it was open before it was lowered.
            let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u64>().ok();
            let numbers = open.flatten().filter_map(number);
            // One of them is the directory itself.
            let nr_open = numbers.filter(|&number| number < limit).count().saturating_sub(1);
            limit.saturating_sub(nr_open as u64)
        }
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::MFILE | Errno::NFILE)) => {
            0
        }
        Err(_) => limit,
    }
}

/// Lets the calling thread, and those that it starts from now on, run on one CPU only.
///
/// # Errors
/// `EINVAL` for a CPU that does not exist, is offline, or that the cpuset of the process forbids.
pub fn pin_to_cpu(cpu: usize) -> Result<(), OsError> {
    let failed = |errno| {
        OsError::new("pin to", format!("CPU {cpu}"), errno)
            .with_advice(format!("this thread may run on {:?}", allowed_cpus()))
    };
    if cpu >= CpuSet::MAX_CPU {
        return Err(failed(Errno::INVAL));
    }
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).map_err(failed)
}

/// Returns the CPUs that the calling thread may run on now, in ascending order.
pub fn allowed_cpus() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(cpus) => (0..CpuSet::MAX_CPU).filter(|&cpu| cpus.is_set(cpu)).collect(),
        Err(_) => Vec::new(),
    }
}

/// Returns the CPUs of the machine that are online, in ascending order.
///
/// Where `/sys` cannot be read these are the [`allowed_cpus`].
pub fn online_cpus() -> Vec<usize> {
    let listed = fs::read_to_string("/sys/devices/system/cpu/online").ok();
    listed.and_then(|list| parse_cpu_list(list.trim())).unwrap_or_else(allowed_cpus)
}

/// Reads the kernel's list format, for instance `0-3,8`.
fn parse_cpu_list(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last >= CpuSet::MAX_CPU {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_known() {
        // The standard library has every program begin with this one ignored.
        assert!(is_signal_ignored(libc::SIGPIPE));
        assert!(!is_signal_ignored(libc::SIGUSR2));
        assert!(!is_signal_ignored(-1) && !is_signal_ignored(10_000));
    }

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number_by_when_it_began() {
        let pid = std::process::id() as i32;
        let started = started_at(pid).unwrap();
        assert!(started.is_some() && started == started_at(pid).unwrap());
        assert_ne!(started, started_at(1).unwrap());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert_eq!(started_at(child.id() as i32).unwrap(), None);
        assert_ne!(namespace(), 0);
        let line =
            |state| format!("7 (a) b) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 77 0");
        assert_eq!(parse_start(line("S").as_bytes()), Some(Some(77)));
        assert_eq!(parse_start(line("Z").as_bytes()), Some(None));
        assert_eq!(parse_start(b"7 (a"), None);
    }

    #[test]
    fn own_name_is_known_and_a_wild_pid_has_none() {
        let own = command_name(std::process::id() as i32).unwrap();
        assert!(!own.is_empty() && !own.contains('\n'), "{own:?}");
        assert_eq!(command_name(-1), None);
    }

    #[test]
    fn cpu_lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_cpu_list("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_cpu_list("7"), Some(vec![7]));
        assert_eq!(parse_cpu_list("0-99999999999"), None);
        assert_eq!(parse_cpu_list("none"), None);
    }

    #[test]
    fn pinned_thread_may_run_on_that_cpu_only() {
        std::thread::spawn(|| {
            let cpu = *allowed_cpus().last().unwrap();
            pin_to_cpu(cpu).unwrap();
            assert_eq!(allowed_cpus(), [cpu]);
        })
        .join()
        .unwrap();
        assert!(!online_cpus().is_empty());
    }

    #[test]
    fn absent_cpu_is_refused_with_the_choice_that_there_is() {
        for cpu in [CpuSet::MAX_CPU - 1, usize::MAX] {
            let error = pin_to_cpu(cpu).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL);
            let choice = format!("may run on [{}", allowed_cpus()[0]);
            assert!(error.to_string().contains(&choice), "{error}");
        }
    }
}
