//! A file whose contents are memory: memfd, tmpfs, hugetlbfs, any regular file, or a device-dax
//! device.
//!
//! What it can do follows from what it lies in ([`MemoryKind`]), which it finds out by itself.
//!
//! A [`MemoryFile`] is the thing that processes share; a mapping is only a window on it. It owns
//! one descriptor, knows whether that descriptor may write, and asks the kernel for everything
//! else, so that two processes never disagree about a length.
//!
//! # SIGBUS
//! A process that touches a mapped byte which the file cannot provide is killed, unless the touch
//! is a copy of [`crate::bytes`], which then fails. Three things do that: the file was cut shorter
//! ([`MemoryFile::seal_size`] forbids it on a memfd), its file system is full
//! ([`MemoryFile::check_capacity`] and [`MemoryFile::reserve`] say so beforehand), or huge pages
//! ran out (booked when the file is created).

use crate::OsError;
use crate::sim;
use rustix::fs::{
    CWD, FallocateFlags, FileType, MemfdFlags, Mode, OFlags, SealFlags, SeekFrom, StatFs,
};
use rustix::io::Errno;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

mod device_dax;
mod huge_pages;
mod kind;
mod mapped;
use device_dax::DeviceDax;
pub use device_dax::device_binding;
pub use huge_pages::PageSize;
use kind::HUGETLBFS_MAGIC;
pub use kind::{LongTerm, MemoryKind, Persistence};
use mapped::FileMapping;

/// What `st_blocks` counts in, whatever the file system's own block is.
const STAT_BLOCK_BYTES: u64 = 512;

/// What a descriptor may do to the contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAccess {
    /// Read and map for reading.
    ReadOnly,
    /// Also write, resize and punch.
    ReadWrite,
}

/// A shared memory object: one descriptor and what is known of it.
#[derive(Debug)]
pub struct MemoryFile {
    fd: OwnedFd,
    name: String,
    access: FileAccess,
    page_size: PageSize,
    kind: MemoryKind,
    /// What sysfs says, of a device.
    device: Option<DeviceDax>,
    /// A device, mapped where it was read or written without a mapping of the caller's.
    window: OnceLock<FileMapping>,
}

impl MemoryFile {
    /// Makes a nameless file of `len` zero bytes. `name` is for people (`/proc/PID/maps`).
    ///
    /// Base pages are taken when they are first touched; huge pages are booked at once.
    ///
    /// # Errors
    /// `EINVAL` for a name over 249 bytes, or a length that is no multiple of a huge page;
    /// `ENOMEM` when too few huge pages are free, with the number missing and the way to get them.
    pub fn anonymous(name: &str, len: u64, page_size: PageSize) -> Result<Self, OsError> {
        let subject = format!("memfd:{name}");
        let basic = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | page_size.memfd_flags();
        // Linux before 6.3 does not know NOEXEC_SEAL and refuses it.
        let fd = sim::call("memfd_create")
            .and_then(|()| {
                rustix::fs::memfd_create(name, basic | MemfdFlags::NOEXEC_SEAL)
                    .or_else(|_| rustix::fs::memfd_create(name, basic))
            })
            .map_err(|errno| match page_size {
                PageSize::Base => OsError::new("create", subject.clone(), errno),
                _ => huge_pages::shortage("create", &subject, page_size, len, errno),
            })?;
        // A memfd is born open to everybody, so that whoever is sent a read-only descriptor could
        // reopen it for writing. Mode 0600 leaves that to its own user.
        rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| OsError::new("set the mode of", subject.clone(), errno))?;
        let file = Self::inspect(fd, subject)?;
        file.give_length(len)?;
        Ok(file)
    }

    /// Creates a file of `len` zero bytes at `path`, readable and writable by its owner alone.
    ///
    /// # Errors
    /// `EEXIST` if the name is taken; as [`Self::anonymous`] on hugetlbfs. Nothing is left behind.
    pub fn create_named(path: &Path, len: u64) -> Result<Self, OsError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let subject = path.display().to_string();
        let fd = sim::call("open")
            .and_then(|()| rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR))
            .map_err(|errno| OsError::new("create", subject.clone(), errno))?;
        #[cfg(feature = "sim")]
        sim::with(|world| world.naming(sim::Naming::Made(path)));
        let made = Self::inspect(fd, subject).and_then(|file| {
            file.give_length(len)?;
            Ok(file)
        });
        if made.is_err() {
            // The first error is the one to tell; a name that cannot be removed changes nothing.
            let _ = rustix::fs::unlink(path);
        }
        made
    }

    /// Opens an existing file, not through a link.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`, `ELOOP` for a symbolic link, and `EINVAL` for anything else but a
    /// regular file or a device-dax device (a pipe is not waited for).
    pub fn open_named(path: &Path, access: FileAccess) -> Result<Self, OsError> {
        let subject = path.display().to_string();
        // NONBLOCK: opening a named pipe must fail below, not hang here. Regular files ignore it.
        let flags = access.flags() | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = sim::call("open")
            .and_then(|()| rustix::fs::open(path, flags, Mode::empty()))
            .map_err(|errno| OsError::new("open", subject.clone(), errno))?;
        Self::inspect(fd, subject)
    }

    /// Takes over a descriptor, for instance one that another process sent.
    ///
    /// # Errors
    /// `EINVAL` for anything but a regular file or a device-dax device;
    /// `EBADF` for a descriptor that cannot be read (write-only, `O_PATH`).
    pub fn from_fd(fd: OwnedFd) -> Result<Self, OsError> {
        let subject = match rustix::fs::readlink(proc_path(fd.as_fd()), Vec::new()) {
            Ok(target) => target.to_string_lossy().into_owned(),
            Err(_) => format!("descriptor {}", fd.as_raw_fd()),
        };
        Self::inspect(fd, subject)
    }

    /// Returns the file's length now. Asks the kernel: other processes may change it.
    pub fn len_bytes(&self) -> u64 {
        if let Some(device) = &self.device {
            return device.len_bytes;
        }
        // fstat of an owned descriptor fails only on a remote file system that lost its server; a
        // file of length 0 is then the safe answer, because nothing can be mapped of it.
        rustix::fs::fstat(&self.fd).map_or(0, |stat| stat.st_size.unsigned_abs())
    }

    /// Changes the length. New bytes read as zero; bytes cut off are lost, mapped or not. Huge
    /// pages are booked for all of it.
    ///
    /// # Errors
    /// `EPERM` after [`Self::seal_size`]; `EINVAL` when read-only, for part of a huge page, or for
    /// any other length of a device; `EFBIG` beyond the process's limit for the size of files.
    pub fn set_len(&self, len: u64) -> Result<(), OsError> {
        if let Some(device) = &self.device {
            return if len == device.len_bytes {
                Ok(())
            } else {
                let subject = format!("{} to {len} bytes", self.name);
                Err(OsError::new("set the length of", subject, Errno::INVAL)
                    .with_advice(format!("the device has {} bytes", device.len_bytes)))
            };
        }
        self.check_size_limit(len)?;
        sim::call("ftruncate").and_then(|()| rustix::fs::ftruncate(&self.fd, len)).map_err(
            |errno| {
                OsError::new("set the length of", format!("{} to {len} bytes", self.name), errno)
            },
        )?;
        if self.page_size == PageSize::Base || len == 0 {
            return Ok(());
        }
        huge_pages::book(self.fd.as_fd(), &self.name, self.page_size, len)
    }

    /// Makes sure that memory or disk is there for `range`, and enlarges the file to hold it.
    ///
    /// Afterwards no touch of the range can fail for want of space, until it is punched.
    ///
    /// # Errors
    /// `ENOSPC` (also `ENOMEM` on hugetlbfs), with the bytes that are missing where that is known;
    /// `EFBIG` beyond the process's limit for the size of files.
    pub fn reserve(&self, range: Range<u64>) -> Result<(), OsError> {
        if let Some(device) = &self.device {
            return match range.end {
                end if end <= device.len_bytes => Ok(()),
                end => {
                    let subject = format!("bytes {}..{end} of {}", range.start, self.name);
                    Err(OsError::new("reserve", subject, Errno::NOSPC)
                        .with_advice(format!("the device has {} bytes", device.len_bytes)))
                }
            };
        }
        self.check_size_limit(range.end)?;
        let len = range.end.saturating_sub(range.start);
        let call = || rustix::fs::fallocate(&self.fd, FallocateFlags::empty(), range.start, len);
        sim::call("fallocate").and_then(|()| rustix::io::retry_on_intr(call)).map_err(|errno| {
            let subject = format!("bytes {}..{} of {}", range.start, range.end, self.name);
            match (self.page_size, errno) {
                (PageSize::Base, Errno::NOSPC) => self.no_space("reserve", subject, len, errno),
                (PageSize::Base, _) => OsError::new("reserve", subject, errno),
                (huge, _) => huge_pages::shortage("reserve", &subject, huge, len, errno),
            }
        })
    }

    /// Gives the memory or disk behind `range` back; it reads as zero. The length stays.
    ///
    /// Memory that a device is still writing to stays with the device: the file gets fresh memory
    /// on the next touch. Only whole pages are given back, the rest of the range is zeroed.
    ///
    /// # Errors
    /// `EPERM` after [`Self::seal_against_future_writes`]; `EBADF` when read-only; `EOPNOTSUPP` on
    /// a file system without holes; `ENODEV` of a device.
    pub fn punch(&self, range: Range<u64>) -> Result<(), OsError> {
        if !self.kind.can_punch() {
            let subject = format!("bytes {}..{} out of {}", range.start, range.end, self.name);
            return Err(OsError::new("punch", subject, Errno::NODEV)
                .with_advice("a device keeps its memory: write over it"));
        }
        let len = range.end.saturating_sub(range.start);
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let call = || rustix::fs::fallocate(&self.fd, mode, range.start, len);
        sim::call("punch").and_then(|()| rustix::io::retry_on_intr(call)).map_err(|errno| {
            let subject = format!("bytes {}..{} out of {}", range.start, range.end, self.name);
            OsError::new("punch", subject, errno)
        })?;
        #[cfg(feature = "sim")]
        sim::with(|world| world.punched(self.fd.as_fd(), range.clone()));
        Ok(())
    }

    /// Has `range` read as zero, with or without memory behind it.
    ///
    /// # Errors
    /// As [`punch`](Self::punch); of a device, what writing says.
    pub fn clear(&self, range: Range<u64>) -> Result<(), OsError> {
        if self.kind.can_punch() {
            return self.punch(range);
        }
        self.zero_mapped(range.start, range.end).map_err(|error| {
            let subject = format!("bytes {}..{} of {}", range.start, range.end, self.name);
            OsError::new("clear", subject, error)
        })
    }

    /// Has what was written to `range`, by whichever process, outlive a power failure, where the
    /// memory can: of a device by flushing the processor's caches, elsewhere as
    /// [`sync`](Self::sync).
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    pub fn flush(&self, range: Range<u64>) -> Result<(), OsError> {
        if self.kind != MemoryKind::DevDax {
            return self.sync();
        }
        let len = range.end.saturating_sub(range.start);
        self.flush_mapped(range.start, len).map_err(|error| {
            let subject = format!("bytes {}..{} of {}", range.start, range.end, self.name);
            OsError::new("flush", subject, error)
        })
    }

    /// Returns the bytes that the file really occupies, in memory, in swap or on disk.
    pub fn resident_bytes(&self) -> u64 {
        if let Some(device) = &self.device {
            return device.len_bytes;
        }
        let stat = rustix::fs::fstat(&self.fd);
        stat.map_or(0, |stat| stat.st_blocks.unsigned_abs() * STAT_BLOCK_BYTES)
    }

    /// Returns the next of `bytes` that have memory behind them. On a device, where the file system
    /// does not say, and where the whole file has memory, all have. Else what was reserved counts
    /// once it was touched: until then tmpfs calls it a hole.
    pub fn next_with_memory(&self, bytes: Range<u64>) -> Option<Range<u64>> {
        if bytes.is_empty() || self.resident_bytes() >= self.len_bytes() {
            return (!bytes.is_empty()).then_some(bytes);
        }
        // The position is nobody's: this file is mapped, and read and written at offsets.
        let start = match rustix::fs::seek(&self.fd, SeekFrom::Data(bytes.start)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return None,
            Err(_) => return Some(bytes),
        };
        if start >= bytes.end {
            return None;
        }
        let end = rustix::fs::seek(&self.fd, SeekFrom::Hole(start)).unwrap_or(bytes.end);
        Some(start..end.clamp(start + 1, bytes.end))
    }

    /// Whether no touch of `range` could fail for want of space; after this call none can.
    #[cfg(feature = "sim")]
    pub fn is_reserved(&self, range: Range<u64>) -> bool {
        if self.available_bytes().is_none() {
            return true;
        }
        // A page that was reserved and not touched is a hole to tmpfs, so the file's size in memory
        // is asked. The file may be open for reading only here.
        let before = self.resident_bytes();
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let taken = rustix::fs::open(path, flags, Mode::empty()).and_then(|file| {
            let len = range.end - range.start;
            rustix::fs::fallocate(file, FallocateFlags::empty(), range.start, len)
        });
        taken.is_ok() && self.resident_bytes() == before
    }

    /// Returns the bytes that this file could still take, where its file system has a limit.
    ///
    /// `None` for a memfd: its limit is the machine's memory, which no single number describes.
    pub fn available_bytes(&self) -> Option<u64> {
        if self.device.is_some() {
            return Some(0);
        }
        if self.page_size != PageSize::Base {
            return huge_pages::available_bytes(self.page_size);
        }
        let fs: StatFs = rustix::fs::fstatfs(&self.fd).ok()?;
        let has_limit = fs.f_blocks != 0;
        has_limit.then(|| fs.f_bavail.saturating_mul(fs.f_bsize as u64))
    }

    /// Says now, rather than by SIGBUS later, whether the file system can hold `len` bytes of this
    /// file. What the file already occupies counts in its favour.
    ///
    /// # Errors
    /// `ENOSPC`, naming both sizes.
    pub fn check_capacity(&self, len: u64) -> Result<(), OsError> {
        // Huge pages up to the present length were booked when the file was made.
        let has_already = match self.page_size {
            PageSize::Base => self.resident_bytes(),
            _ => self.len_bytes(),
        };
        let missing = len.saturating_sub(has_already);
        match self.available_bytes() {
            Some(available) if missing > available => {
                let subject = format!("{len} bytes in {}", self.name);
                Err(self.no_space("hold", subject, missing, Errno::NOSPC))
            }
            _ => Ok(()),
        }
    }

    /// Has the file system write what it keeps of the contents, where that outlives the machine. Of
    /// a device it orders what [`write_all_at`](Self::write_all_at) wrote before all later stores;
    /// [`flush`](Self::flush) is for what was written through mappings.
    ///
    /// # Errors
    /// `EIO`, `ENOSPC`: what was written since the last time may be lost.
    pub fn sync(&self) -> Result<(), OsError> {
        if self.device.is_some() {
            crate::bytes::order_flushes();
            return Ok(());
        }
        sim::call("fdatasync")
            .and_then(|()| rustix::fs::fdatasync(&self.fd))
            .map_err(|errno| OsError::new("sync", self.name.clone(), errno))?;
        #[cfg(feature = "sim")]
        sim::with(|world| world.synced(self.fd.as_fd()));
        Ok(())
    }

    /// Reads `bytes.len()` bytes from `offset` on, without a mapping.
    ///
    /// # Errors
    /// `EIO`; an end of the file before the last byte has kind `UnexpectedEof`.
    pub fn read_exact_at(&self, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
        sim::call("pread")?;
        #[cfg(feature = "sim")]
        if self.device.is_some() {
            sim::power::read(offset, bytes.len())?;
        }
        if !self.kind.has_pread() {
            return self.read_mapped(bytes, offset);
        }
        while !bytes.is_empty() {
            let call = || rustix::io::pread(&self.fd, &mut *bytes, offset);
            let nr_read = rustix::io::retry_on_intr(call)?;
            if nr_read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes = &mut bytes[nr_read..];
            offset += nr_read as u64;
        }
        Ok(())
    }

    /// Writes `bytes` from `offset` on, without a mapping. After an error some may have been
    /// written.
    ///
    /// # Errors
    /// `ENOSPC`, `EIO`, `EBADF` when read-only; `EFBIG` beyond the process's limit for the size of
    /// files.
    pub fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        if !self.kind.has_pread() {
            return self.write_mapped(bytes, offset);
        }
        self.check_size_limit(end).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        while !bytes.is_empty() {
            let piece = sim::writable(bytes.len(), offset)?;
            let call = || rustix::io::pwrite(&self.fd, &bytes[..piece], offset);
            let nr_written = rustix::io::retry_on_intr(call)?;
            if nr_written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[nr_written..];
            offset += nr_written as u64;
        }
        Ok(())
    }

    /// Says as an error what Linux says by SIGXFSZ, which ends the process.
    fn check_size_limit(&self, len: u64) -> Result<(), OsError> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
        match limit {
            Some(limit) if len > limit && len > self.len_bytes() => {
                let subject = format!("{} to {len} bytes", self.name);
                Err(OsError::new("enlarge", subject, Errno::FBIG).with_advice(format!(
                    "this process may make files of {limit} bytes (RLIMIT_FSIZE): raise ulimit -f"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Opens the same file again: a *new* open file description, with its own access and locks.
    ///
    /// # Errors
    /// `EACCES` when the file's mode forbids it, `EPERM` for writing after a write seal,
    /// `ENOENT` without `/proc`.
    pub fn reopen(&self, access: FileAccess) -> Result<Self, OsError> {
        let fd = self.reopen_handle(access)?;
        Ok(Self {
            fd,
            name: self.name.clone(),
            access,
            device: self.device.clone(),
            window: OnceLock::new(),
            ..*self
        })
    }

    /// As [`Self::reopen`], as a bare descriptor: to lock, or to send to another process.
    ///
    /// The new description is made with *our* rights, so it can be sent to a user who may not open
    /// the file. A read-only descriptor does not keep the file's own user (or root) from reopening
    /// it for writing, as this method does; [`Self::seal_against_future_writes`] does.
    ///
    /// # Errors
    /// As [`Self::reopen`].
    pub fn reopen_handle(&self, access: FileAccess) -> Result<OwnedFd, OsError> {
        let flags = access.flags();
        sim::call("open")
            .and_then(|()| {
                rustix::fs::openat(CWD, proc_path(self.fd.as_fd()), flags, Mode::empty())
            })
            .map_err(|errno| OsError::new("reopen", format!("{} {access:?}", self.name), errno))
    }

    /// Forbids new writable mappings and writes, by anybody, for ever. Mappings that are writable
    /// now stay so: the caller maps first and seals afterwards. memfd only.
    ///
    /// Beware: Linux then refuses [`Self::punch`] as well (mm/shmem.c, `shmem_fallocate`), through
    /// this or any other descriptor.
    ///
    /// # Errors
    /// `EINVAL` or `EPERM` on a file that is not a memfd, or is sealed against seals.
    pub fn seal_against_future_writes(&self) -> Result<(), OsError> {
        self.seal(SealFlags::FUTURE_WRITE, "seal against future writes")
    }

    /// Forbids any change of the length, by anybody, for ever: no mapping can be cut off. memfd
    /// only.
    ///
    /// # Errors
    /// As [`Self::seal_against_future_writes`].
    pub fn seal_size(&self) -> Result<(), OsError> {
        self.seal(SealFlags::SHRINK | SealFlags::GROW, "seal the size of")
    }

    /// Returns true if the length can never shrink: what to check of a file that a stranger sent.
    pub fn is_shrink_sealed(&self) -> bool {
        rustix::fs::fcntl_get_seals(&self.fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
    }

    /// Returns what the descriptor may do.
    pub fn access(&self) -> FileAccess {
        self.access
    }

    /// Returns the size of the pages that the contents come in.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Returns what the contents lie in.
    pub fn kind(&self) -> MemoryKind {
        self.kind
    }

    /// Returns what the contents outlive.
    pub fn persistence(&self) -> Persistence {
        match (&self.device, self.kind) {
            (Some(device), _) => device.persistence,
            (None, MemoryKind::PageCache | MemoryKind::FsDax) => Persistence::PowerFailure,
            (None, _) if sim::is_disk() => Persistence::PowerFailure,
            (None, _) => Persistence::Processes,
        }
    }

    /// Returns the NUMA node of a device, where it has one.
    pub fn numa_node(&self) -> Option<u32> {
        self.device.as_ref()?.numa_node
    }

    /// Returns false of a device that is gone: it has no driver, was removed, or was bound to its
    /// driver again since it was opened.
    pub fn is_present(&self) -> bool {
        self.device.as_ref().is_none_or(DeviceDax::is_present)
    }

    /// Returns whether a device can be opened by the same name again, after it was gone.
    pub fn is_device_back(&self) -> bool {
        self.device.as_ref().is_some_and(DeviceDax::is_bound)
    }

    /// Returns the path it was opened by, or `memfd:NAME`: for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes another descriptor of the same open file description, sharing access and locks.
    ///
    /// # Errors
    /// `EMFILE` when descriptors run out.
    pub fn try_clone_fd(&self) -> Result<OwnedFd, OsError> {
        sim::call("dup")
            .and_then(|()| rustix::io::fcntl_dupfd_cloexec(&self.fd, 0))
            .map_err(|errno| OsError::new("duplicate", self.name.clone(), errno))
    }

    /// Finds out what the descriptor is, and refuses what cannot be shared memory.
    fn inspect(fd: OwnedFd, name: String) -> Result<Self, OsError> {
        let failed = |errno| OsError::new("inspect", name.clone(), errno);
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let device = match file_type {
            FileType::RegularFile => DeviceDax::simulated(&stat),
            FileType::CharacterDevice => Some(DeviceDax::find(&name, stat.st_rdev)?),
            _ => {
                let subject = format!("{name} ({file_type:?}) as shared memory");
                return Err(OsError::new("accept", subject, Errno::INVAL)
                    .with_advice("only regular files, memfds and device-dax devices can be"));
            }
        };
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(failed)?;
        let access = FileAccess::from_flags(flags).ok_or_else(|| {
            OsError::new("accept", format!("{name} as shared memory"), Errno::BADF)
                .with_advice("open it for reading, or for reading and writing")
        })?;
        let (kind, page_size) = match &device {
            Some(device) => (MemoryKind::DevDax, device.alignment),
            None => {
                let fs = rustix::fs::fstatfs(&fd).map_err(failed)?;
                let (fs_type, block) = (fs.f_type as u64, fs.f_bsize as u64);
                let page_size = match fs_type {
                    HUGETLBFS_MAGIC => PageSize::huge_from_bytes(block).ok_or_else(|| {
                        OsError::new("accept", format!("{name} as shared memory"), Errno::INVAL)
                            .with_advice(format!("huge pages of {block} bytes are not supported"))
                    })?,
                    _ => PageSize::Base,
                };
                (MemoryKind::of_file(fd.as_fd(), fs_type), page_size)
            }
        };
        Ok(Self { fd, name, access, page_size, kind, device, window: OnceLock::new() })
    }

    fn give_length(&self, len: u64) -> Result<(), OsError> {
        let page = self.page_size.len_bytes();
        if self.page_size != PageSize::Base && !len.is_multiple_of(page) {
            let subject = format!("{} to {len} bytes", self.name);
            return Err(OsError::new("set the length of", subject, Errno::INVAL)
                .with_advice(format!("use a multiple of the page size, {page} bytes")));
        }
        self.set_len(len)
    }

    fn seal(&self, seals: SealFlags, what: &'static str) -> Result<(), OsError> {
        rustix::fs::fcntl_add_seals(&self.fd, seals).map_err(|errno| {
            OsError::new(what, self.name.clone(), errno)
                .with_advice("only a memfd opened for writing can be sealed")
        })
    }

    fn no_space(&self, what: &'static str, subject: String, len: u64, errno: Errno) -> OsError {
        let error = OsError::new(what, subject, errno);
        let Some(available) = self.available_bytes() else { return error };
        let missing = len.saturating_sub(available);
        error.with_advice(format!(
            "{available} bytes are free on its file system, {missing} are missing: free some or \
             enlarge it (tmpfs: mount -o remount,size=...)"
        ))
    }
}

impl AsFd for MemoryFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl FileAccess {
    fn flags(self) -> OFlags {
        OFlags::CLOEXEC
            | match self {
                Self::ReadOnly => OFlags::RDONLY,
                Self::ReadWrite => OFlags::RDWR,
            }
    }

    /// None for a descriptor that cannot be read.
    fn from_flags(flags: OFlags) -> Option<Self> {
        if flags.contains(OFlags::PATH) {
            return None;
        }
        match flags & OFlags::RWMODE {
            OFlags::RDONLY => Some(Self::ReadOnly),
            OFlags::RDWR => Some(Self::ReadWrite),
            _ => None,
        }
    }
}

fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests;
