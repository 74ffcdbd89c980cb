//! Who uses a file or a device, without asking it: who has it open, maps it, or has it registered
//! with an io_uring, by proc.
//!
//! A pin by itself cannot be seen from outside. What can be seen is what pins: buffers that are
//! registered with a ring, listed with their addresses, and the bytes that a process has pinned in
//! all. What this process has no right to read is listed too, so that nothing found does not read
//! as nobody there.

mod ring;
mod text;

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::OsError;
use ring::Ring;
use text::MapLine;

/// Who uses a file.
#[derive(Debug, Default)]
pub struct FileUsers {
    /// Each use by a process, in order of its number.
    pub uses: Vec<FileUse>,
    /// Where the block device is mounted.
    pub mounts: Vec<PathBuf>,
    /// What could not be read.
    pub unread: Vec<UnreadProcess>,
}

/// One use by one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileUse {
    /// The process.
    pub pid: i32,
    /// Its name.
    pub command: String,
    /// Its user.
    pub uid: u32,
    /// What it does.
    pub kind: UseKind,
}

/// How a process uses a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UseKind {
    /// It has a descriptor of it.
    Open {
        /// The descriptor.
        fd: i32,
        /// Whether it can write through it.
        is_writable: bool,
    },
    /// It maps it.
    Mapped {
        /// Where.
        address: u64,
        /// How much.
        len_bytes: u64,
        /// From which byte of the file on.
        offset: u64,
        /// Whether it can write to it.
        is_writable: bool,
        /// Whether what it writes goes to the file.
        is_shared: bool,
    },
    /// Buffers of a ring lie in its mappings of the file: these bytes are pinned until they are
    /// unregistered or the ring ends.
    RingBuffers {
        /// The ring's descriptor.
        fd: i32,
        /// How many.
        nr_buffers: u64,
        /// Bytes of them that are the file's.
        len_bytes: u64,
    },
    /// A ring has the file itself registered: it is open there without a descriptor.
    RingFile {
        /// The ring's descriptor.
        fd: i32,
    },
    /// It maps the file and has so much pinned in all, which may be other memory.
    MaybePinned {
        /// Bytes.
        len_bytes: u64,
    },
    /// A ring has buffers where the process maps nothing now; they may be the file's.
    MaybeRingBuffers {
        /// The ring's descriptor.
        fd: i32,
        /// Bytes.
        len_bytes: u64,
    },
}

/// What of a process could not be read.
#[derive(Debug)]
pub struct UnreadProcess {
    /// The process.
    pub pid: i32,
    /// Its name, which everybody may read.
    pub command: String,
    /// `descriptors`, `mappings`, `rings`, `pinned memory`.
    pub what: &'static str,
    /// Why.
    pub error: io::Error,
}

impl FileUsers {
    /// Finds who uses the file or device at `path`. The file is not opened.
    ///
    /// # Errors
    /// When there is no such file, or no `/proc`.
    pub fn of(path: &Path) -> Result<Self, OsError> {
        let shown = path.display().to_string();
        let real = fs::canonicalize(path).map_err(|error| OsError::new("find", &*shown, error))?;
        let metadata =
            fs::metadata(&real).map_err(|error| OsError::new("inspect", &*shown, error))?;
        let target = Target { identity: Identity::of(&metadata), path: real };
        let entries =
            fs::read_dir("/proc").map_err(|error| OsError::new("list", "/proc", error))?;
        let mut pids: Vec<i32> =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        pids.sort_unstable();
        let mut users = Self { mounts: target.mounts()?, ..Self::default() };
        for pid in pids {
            Process::new(pid).look_for(&target, &mut users);
        }
        Ok(users)
    }
}

/// What makes two descriptors the same file: the device's numbers, or file system and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    Character(u64),
    Block(u64),
    Inode { device: u64, inode: u64 },
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        match metadata.file_type() {
            kind if kind.is_char_device() => Self::Character(metadata.rdev()),
            kind if kind.is_block_device() => Self::Block(metadata.rdev()),
            _ => Self::Inode { device: metadata.dev(), inode: metadata.ino() },
        }
    }
}

/// What is looked for.
struct Target {
    identity: Identity,
    path: PathBuf,
}

impl Target {
    fn is_at(&self, path: impl AsRef<Path>) -> bool {
        fs::metadata(path).is_ok_and(|metadata| Identity::of(&metadata) == self.identity)
    }

    fn mounts(&self) -> Result<Vec<PathBuf>, OsError> {
        const TABLE: &str = "/proc/self/mountinfo";
        let Identity::Block(numbers) = self.identity else { return Ok(Vec::new()) };
        let numbers = (rustix::fs::major(numbers), rustix::fs::minor(numbers));
        let table = fs::read(TABLE).map_err(|error| OsError::new("read", TABLE, error))?;
        Ok(text::mounts_of(&table, numbers))
    }
}

/// A process that is looked at.
struct Process {
    pid: i32,
    folder: PathBuf,
    command: String,
    uid: u32,
}

impl Process {
    fn new(pid: i32) -> Self {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let comm = fs::read(folder.join("comm")).unwrap_or_default();
        Self {
            pid,
            command: String::from_utf8_lossy(&comm).trim_end().to_owned(),
            uid: fs::metadata(&folder).map_or(0, |metadata| metadata.uid()),
            folder,
        }
    }

    fn look_for(&self, target: &Target, users: &mut FileUsers) {
        if self.is_of_kernel() {
            return;
        }
        let (mapped, all) = self.mappings(target, users);
        let rings = self.descriptors(target, users);
        for ring in &rings {
            self.buffers(ring, &mapped, all.as_deref(), users);
            if ring.files.iter().any(|file| self.is_ring_file(file, target)) {
                users.uses.push(self.a_use(UseKind::RingFile { fd: ring.fd }));
            }
        }
        if mapped.is_empty() {
            return;
        }
        match self.pinned_bytes() {
            Ok(0) => {}
            Ok(len_bytes) => users.uses.push(self.a_use(UseKind::MaybePinned { len_bytes })),
            Err(error) => self.lost("pinned memory", error, users),
        }
    }

    /// The kernel's own threads have no descriptors and no mappings, and nobody may ask for them.
    fn is_of_kernel(&self) -> bool {
        let stat = fs::read(self.folder.join("stat")).unwrap_or_default();
        text::is_of_kernel(&stat)
    }

    fn a_use(&self, kind: UseKind) -> FileUse {
        FileUse { pid: self.pid, command: self.command.clone(), uid: self.uid, kind }
    }

    fn lost(&self, what: &'static str, error: io::Error, users: &mut FileUsers) {
        // A process that ended meanwhile uses nothing.
        let has_ended = error.raw_os_error() == Some(libc::ESRCH);
        if !has_ended && error.kind() != io::ErrorKind::NotFound {
            let (pid, command) = (self.pid, self.command.clone());
            users.unread.push(UnreadProcess { pid, command, what, error });
        }
    }

    /// The mappings of the target, and all; the latter `None` if they could not be read.
    fn mappings(
        &self,
        target: &Target,
        users: &mut FileUsers,
    ) -> (Vec<MapLine>, Option<Vec<MapLine>>) {
        let maps = match fs::read(self.folder.join("maps")) {
            Ok(maps) => maps,
            Err(error) => {
                self.lost("mappings", error, users);
                return (Vec::new(), None);
            }
        };
        let all: Vec<MapLine> = text::map_lines(&maps);
        let mapped: Vec<MapLine> =
            all.iter().filter(|line| self.is_of(line, target)).cloned().collect();
        for line in &mapped {
            users.uses.push(self.a_use(UseKind::Mapped {
                address: line.start,
                len_bytes: line.end - line.start,
                offset: line.offset,
                is_writable: line.is_writable,
                is_shared: line.is_shared,
            }));
        }
        (mapped, Some(all))
    }

    /// Whether a mapping is of the target: by its numbers, or by what lies at its path in the
    /// process's own view, for devices with several nodes and file systems whose numbers differ in
    /// `maps`.
    fn is_of(&self, line: &MapLine, target: &Target) -> bool {
        if let Identity::Inode { device, inode } = target.identity
            && line.inode == inode
            && (line.major, line.minor) == (rustix::fs::major(device), rustix::fs::minor(device))
        {
            return true;
        }
        let is_device = !matches!(target.identity, Identity::Inode { .. });
        let is_candidate = line.path == target.path || is_device && line.path.starts_with("/dev");
        is_candidate && target.is_at(self.in_its_view(&line.path))
    }

    /// `path` as the process sees it.
    fn in_its_view(&self, path: &Path) -> PathBuf {
        let relative = path.strip_prefix("/").unwrap_or(path);
        self.folder.join("root").join(relative)
    }

    /// Notes descriptors of the target; returns the process's rings.
    fn descriptors(&self, target: &Target, users: &mut FileUsers) -> Vec<Ring> {
        let entries = match fs::read_dir(self.folder.join("fd")) {
            Ok(entries) => entries,
            Err(error) => {
                self.lost("descriptors", error, users);
                return Vec::new();
            }
        };
        let mut rings = Vec::new();
        let mut fds: Vec<i32> =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        fds.sort_unstable();
        for fd in fds {
            let link = self.folder.join(format!("fd/{fd}"));
            let info = || fs::read(self.folder.join(format!("fdinfo/{fd}")));
            if target.is_at(&link) {
                // Of which nobody can say how it is open, it may be written through.
                let is_writable = match info() {
                    Ok(info) => text::is_writable(&info),
                    Err(error) => {
                        self.lost("descriptors", error, users);
                        true
                    }
                };
                users.uses.push(self.a_use(UseKind::Open { fd, is_writable }));
            }
            let is_ring = fs::read_link(&link)
                .is_ok_and(|name| name.as_os_str().as_bytes() == b"anon_inode:[io_uring]");
            if !is_ring {
                continue;
            }
            match info().and_then(|info| Ring::parse(fd, &info)) {
                Ok(ring) => rings.push(ring),
                Err(error) => self.lost("rings", error, users),
            }
        }
        rings
    }

    /// Notes what of a ring's buffers lies in the target's mappings, or where nothing is mapped.
    fn buffers(
        &self,
        ring: &Ring,
        mapped: &[MapLine],
        all: Option<&[MapLine]>,
        users: &mut FileUsers,
    ) {
        let within = |lines: &[MapLine], start: u64, end: u64| -> u64 {
            lines.iter().map(|line| line.overlap(start, end)).sum()
        };
        let (mut nr_buffers, mut len_bytes, mut unmapped_bytes) = (0, 0, 0);
        for &(start, len) in &ring.buffers {
            let end = start.saturating_add(len);
            let bytes = within(mapped, start, end);
            nr_buffers += u64::from(bytes > 0);
            len_bytes += bytes;
            unmapped_bytes += all.map_or(0, |all| len.saturating_sub(within(all, start, end)));
        }
        let fd = ring.fd;
        if nr_buffers > 0 {
            users.uses.push(self.a_use(UseKind::RingBuffers { fd, nr_buffers, len_bytes }));
        }
        if unmapped_bytes > 0 {
            let len_bytes = unmapped_bytes;
            users.uses.push(self.a_use(UseKind::MaybeRingBuffers { fd, len_bytes }));
        }
    }

    /// A ring names its files by path, or on some kernels by the last part of it only.
    fn is_ring_file(&self, file: &Path, target: &Target) -> bool {
        file.is_absolute() && target.is_at(self.in_its_view(file))
    }

    /// What the kernel says that the process has pinned.
    fn pinned_bytes(&self) -> io::Result<u64> {
        let status = fs::read_to_string(self.folder.join("status"))?;
        // A kernel that does not count them has no such line.
        Ok(text::pinned_bytes(&status).unwrap_or(0))
    }
}
