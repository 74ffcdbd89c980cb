//! How much memory this process may have: the lowest limit of its control groups.
//!
//! Both versions of cgroups are asked, and every group up to the root of what this process sees: a
//! limit of a parent holds for its children. Memory of tmpfs counts for whoever touches it first
//! and cannot be dropped, so a process that goes over the limit with it is killed, not refused.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::OsError;
use crate::error::is_shortage;

/// For how long what was found is taken to be so: a program that makes many pools asks once, not
/// each time, which would be a third of a pool's way up. Who changes a limit, or moves a process to
/// another group, cannot tell to within so short a time which of two calls comes first.
const KEPT: Duration = Duration::from_millis(100);
/// More than the files of /proc and of control groups say that are read here, in most places.
const SHORT_BYTES: usize = 1024;

/// A limit and where it is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Bytes of memory and swap.
    pub len_bytes: u64,
    /// The file that says so.
    pub path: PathBuf,
}

/// What was found, when, and of which process.
type Known = (Instant, u32, Option<MemoryLimit>);

/// Returns the lowest limit that this process lies under, as it was at most 100 ms ago; `None`
/// where there is none, or nothing that says so.
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOMEM`: what would say so cannot be read now.
pub fn memory_limit() -> Result<Option<MemoryLimit>, OsError> {
    static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
    // A child of fork may find it locked by a thread that it has not, and is in a group of its own.
    let known = KNOWN.try_lock();
    if let Ok(Some((when, pid, limit))) = known.as_deref()
        && *pid == std::process::id()
        && when.elapsed() < KEPT
    {
        return Ok(limit.clone());
    }
    let limit = limit_now()?;
    if let Ok(mut known) = known {
        *known = Some((Instant::now(), std::process::id(), limit.clone()));
    }
    Ok(limit)
}

fn limit_now() -> Result<Option<MemoryLimit>, OsError> {
    match read_short(Path::new("/proc/self/cgroup"))? {
        Some(groups) => lowest(&groups, mounts()?),
        None => Ok(None),
    }
}

/// The mounts of this process. Read once: hierarchies of control groups are mounted before it
/// starts and stay, and the kernel takes tens of microseconds to list all mounts, half as long as a
/// pool to come up.
fn mounts() -> Result<&'static str, OsError> {
    static MOUNTS: OnceLock<String> = OnceLock::new();
    if let Some(mounts) = MOUNTS.get() {
        return Ok(mounts);
    }
    let path = Path::new("/proc/self/mountinfo");
    let mounts = unless_short(path, fs::read_to_string(path))?.unwrap_or_default();
    Ok(MOUNTS.get_or_init(|| mounts))
}

/// As [`memory_limit`], of what the two files of /proc say.
fn lowest(groups: &str, mounts: &str) -> Result<Option<MemoryLimit>, OsError> {
    let group = |line: &str| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let kind = match (number, controllers) {
            ("0", "") => Version::Two,
            (_, names) if names.split(',').any(|name| name == "memory") => Version::One,
            _ => return None,
        };
        Some((kind, path.to_owned()))
    };
    let groups: Vec<(Version, String)> = groups.lines().filter_map(group).collect();
    // A controller is in one hierarchy only: where memory is in one of its own, the other has no
    // limits.
    let is_one = groups.iter().any(|(kind, _)| *kind == Version::One);
    let groups = groups.iter().filter(|(kind, _)| !is_one || *kind == Version::One);
    let mut limits = Vec::new();
    for (kind, path) in groups {
        let Some((place, root)) = mount_of(*kind, mounts) else { continue };
        // Under a mount that shows only a part of the tree, paths begin at that part.
        let Ok(below) = Path::new(path).strip_prefix(&root) else { continue };
        // Of the group itself and of all that it lies in.
        for group in below.ancestors() {
            limits.extend(limit_of(*kind, &place.join(group))?);
        }
    }
    Ok(limits.into_iter().min_by_key(|limit| limit.len_bytes))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where the groups of a version are mounted, and which group is the mount's root.
fn mount_of(kind: Version, mounts: &str) -> Option<(PathBuf, PathBuf)> {
    mounts.lines().find_map(|line| {
        let (place, file_system) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, place) = (place.next()?, place.next()?);
        let mut file_system = file_system.split(' ');
        let (name, options) = (file_system.next()?, file_system.nth(1)?);
        let is_it = match kind {
            Version::One => name == "cgroup" && options.split(',').any(|one| one == "memory"),
            Version::Two => name == "cgroup2",
        };
        is_it.then(|| (PathBuf::from(place), PathBuf::from(root)))
    })
}

fn limit_of(kind: Version, group: &Path) -> Result<Option<MemoryLimit>, OsError> {
    let number = |name: &str| -> Result<Option<u64>, OsError> {
        let text = read_short(&group.join(name))?;
        Ok(text.and_then(|text| text.trim().parse().ok()))
    };
    let limit = |name: &str, len_bytes| Ok(Some(MemoryLimit { len_bytes, path: group.join(name) }));
    match kind {
        Version::Two => {
            let Some(memory) = number("memory.max")? else { return Ok(None) };
            // A limit of "max" and a group without the file leave swap to the machine.
            let swap = number("memory.swap.max")?.unwrap_or(u64::MAX).min(swap_bytes());
            limit("memory.max", memory.saturating_add(swap))
        }
        Version::One => {
            // "No limit" is the largest number of whole pages there. One with swap is never the
            // lower.
            let memory = number("memory.limit_in_bytes")?;
            let Some(memory) = memory.filter(|&memory| memory < i64::MAX as u64 / 2) else {
                return Ok(None);
            };
            let both = number("memory.memsw.limit_in_bytes")?.unwrap_or(u64::MAX);
            let with_swap = memory.saturating_add(swap_bytes()).min(both);
            limit("memory.limit_in_bytes", with_swap)
        }
    }
}

/// What a file says that is short, as nearly all are here: without asking for a length that the
/// kernel does not know. `None` where there is no such file, or nobody may read it.
fn read_short(path: &Path) -> Result<Option<String>, OsError> {
    let read = || {
        let mut file = File::open(path)?;
        let mut bytes = vec![0; SHORT_BYTES];
        let mut len = 0;
        while len < bytes.len() {
            match file.read(&mut bytes[len..])? {
                0 => {
                    bytes.truncate(len);
                    return String::from_utf8(bytes).map_err(io::Error::other);
                }
                nr_bytes => len += nr_bytes,
            }
        }
        fs::read_to_string(path)
    };
    unless_short(path, read())
}

/// What was read of `path`; `None` where there is nothing to read.
fn unless_short(path: &Path, read: io::Result<String>) -> Result<Option<String>, OsError> {
    match read {
        Ok(text) => Ok(Some(text)),
        Err(error) if is_shortage(&error) => {
            Err(OsError::new("read", path.display().to_string(), error))
        }
        Err(_) => Ok(None),
    }
}

/// The machine's swap.
fn swap_bytes() -> u64 {
    let machine = rustix::system::sysinfo();
    machine.totalswap.saturating_mul(u64::from(machine.mem_unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A tree of groups as files, and the line of mountinfo that leads to it.
    fn tree(options: &str, name: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let place = directory.path().display().to_string();
        (directory, format!("30 20 0:1 / {place} rw shared:1 - {name} {name} rw,{options}\n"))
    }

    #[test]
    fn the_lowest_limit_of_all_groups_above_holds() {
        let files = [
            ("memory.max", "max\n"),
            ("a/memory.max", "50331648\n"),
            ("a/memory.swap.max", "0\n"),
            ("a/b/memory.max", "max\n"),
            ("a/b/c/memory.max", "1073741824\n"),
        ];
        let (directory, mounts) = tree("nsdelegate", "cgroup2", &files);
        let lowest = |groups: &str| super::lowest(groups, &mounts).unwrap();
        let limit = lowest("0::/a/b/c\n").unwrap();
        let path = directory.path().join("a/memory.max");
        assert_eq!(limit, MemoryLimit { len_bytes: 48 * MIB, path });
        assert_eq!(lowest("0::/elsewhere\n"), None);
        assert_eq!(lowest(""), None);
    }

    #[test]
    fn groups_of_the_first_version_are_asked_by_their_controller() {
        let files = [
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("docker/x/memory.limit_in_bytes", "33554432\n"),
            ("docker/x/memory.memsw.limit_in_bytes", "33554432\n"),
        ];
        let (_directory, mounts) = tree("memory", "cgroup", &files);
        let lowest = |groups: &str| super::lowest(groups, &mounts).unwrap();
        let limit = lowest("4:cpu,memory:/docker/x\n1:pids:/\n0::/\n").unwrap();
        assert_eq!(limit.len_bytes, 32 * MIB);
        assert_eq!(lowest("4:memory:/docker\n"), None);
    }

    #[test]
    fn a_mount_of_a_part_of_the_tree_is_read_from_that_part() {
        let (directory, _) = tree("", "cgroup2", &[("b/memory.max", "4096\n")]);
        let place = directory.path().display();
        let mounts = format!("30 20 0:1 /a {place} rw - cgroup2 cgroup2 rw\n");
        assert!(lowest("0::/a/b\n", &mounts).unwrap().unwrap().len_bytes >= 4096);
    }
}
