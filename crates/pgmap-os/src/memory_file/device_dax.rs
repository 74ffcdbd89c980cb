//! What sysfs says of a device-dax character device: its size, its alignment, where it lies.
//!
//! `st_size` of such a device is 0. Its directory is found by its number,
//! `/sys/dev/char/MAJOR:MINOR`, which works for a descriptor that another process sent and where
//! `/dev` has no such name. The region that the device is a part of is one of the directories above
//! it and says what survives a power failure (Linux: Documentation/ABI/testing/sysfs-bus-nd,
//! `persistence_domain`).

// UNSAFETY: putting another file under the number of a descriptor that others use is dup3 of a
// number.
#![allow(unsafe_code)]

use super::kind::Persistence;
use super::{MemoryFile, PageSize};
use crate::OsError;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What `badblocks` counts in.
const SECTOR_BYTES: u64 = 512;

/// A device-dax device as it was when it was opened.
#[derive(Debug, Clone)]
pub(super) struct DeviceDax {
    pub len_bytes: u64,
    /// What offsets and lengths of mappings are multiples of.
    pub alignment: PageSize,
    pub numa_node: Option<u32>,
    pub persistence: Persistence,
    directory: PathBuf,
    /// Which binding to its driver it was opened in.
    binding: Option<u64>,
}

impl DeviceDax {
    /// Finds the device with number `rdev`.
    ///
    /// # Errors
    /// `EINVAL` for any other character device; what reading sysfs says.
    pub(super) fn find(name: &str, rdev: u64) -> Result<Self, OsError> {
        let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
        Self::read(name, Path::new(&format!("/sys/dev/char/{major}:{minor}")))
    }

    fn read(name: &str, link: &Path) -> Result<Self, OsError> {
        let refused = |why: String| {
            OsError::new("accept", format!("{name} as shared memory"), Errno::INVAL)
                .with_advice(why)
        };
        let no_dax = || {
            refused(
                "of devices only device-dax can be: /dev/daxX.Y, which `daxctl list` shows".into(),
            )
        };
        let directory = fs::canonicalize(link).map_err(|_| no_dax())?;
        let subsystem = fs::canonicalize(directory.join("subsystem")).map_err(|_| no_dax())?;
        if !subsystem.ends_with("bus/dax") && !subsystem.ends_with("class/dax") {
            return Err(no_dax());
        }
        let number = |file: &str| -> Result<u64, OsError> {
            let path = directory.join(file);
            let failed = |error| OsError::new("read", path.display().to_string(), error);
            let text = fs::read_to_string(&path).map_err(failed)?;
            let text = text.trim();
            text.parse().map_err(|_| failed(io::Error::other(format!("it says \"{text}\""))))
        };
        let (len_bytes, align_bytes) = (number("size")?, number("align")?);
        let base = PageSize::Base.len_bytes();
        let alignment = match align_bytes {
            bytes if bytes == base => PageSize::Base,
            bytes => PageSize::huge_from_bytes(bytes).ok_or_else(|| {
                refused(format!("its alignment is {bytes} bytes; use 4K, 2M or 1G"))
            })?,
        };
        let whole = alignment.len_bytes();
        if let Some(start) = region_start(&directory).filter(|start| !start.is_multiple_of(whole)) {
            // Linux maps it all the same: pins of its pages fail on 6.12, on 7.3 it warns.
            return Err(refused(format!(
                "its pages have {whole} bytes and its region starts at {start:#x}, which is no \
                 multiple of that; use a smaller alignment (ndctl create-namespace -a 2M)"
            )));
        }
        let numa_node = number("numa_node").ok().and_then(|node| u32::try_from(node).ok());
        let persistence = persistence_of(&directory)?;
        let binding = binding_of(&directory).ok().flatten();
        Ok(Self { len_bytes, alignment, numa_node, persistence, directory, binding })
    }

    /// A file that plays a device in a simulation.
    #[cfg(feature = "sim")]
    pub(super) fn simulated(stat: &rustix::fs::Stat) -> Option<Self> {
        let path = crate::sim::power::is_device((stat.st_dev, stat.st_ino))?;
        Some(Self {
            len_bytes: stat.st_size.unsigned_abs(),
            alignment: PageSize::Base,
            numa_node: None,
            persistence: Persistence::PowerFailure,
            directory: crate::sim::power::directory_of(&path),
            binding: None,
        })
    }

    /// Outside simulations no file does.
    #[cfg(not(feature = "sim"))]
    pub(super) const fn simulated(_stat: &rustix::fs::Stat) -> Option<Self> {
        None
    }

    /// Whether the device is still there as it was opened. One that was taken from its driver and
    /// bound again is another: what was mapped and open before is of no use.
    pub(super) fn is_present(&self) -> bool {
        match binding_of(&self.directory) {
            Ok(now) => now.is_some_and(|now| self.binding.is_none_or(|then| then == now)),
            // What cannot be asked is no sign that it went: who believes that gives up what is
            // there.
            Err(_) => true,
        }
    }

    fn bad_bytes(&self) -> Result<Vec<Range<u64>>, OsError> {
        let Some(region) = region_of(&self.directory) else { return Ok(Vec::new()) };
        let failed = |path: &Path, error| OsError::new("read", path.display().to_string(), error);
        let path = region.join("badblocks");
        let listed = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed.map_err(|error| failed(&path, error))?,
        };
        if listed.trim().is_empty() {
            return Ok(Vec::new());
        }
        let address = |directory: &Path| {
            let path = directory.join("resource");
            address_in(&path).map_err(|error| failed(&path, error))
        };
        let start = address(&self.directory)?.saturating_sub(address(region)?);
        Ok(bad_bytes(&listed, start, self.len_bytes))
    }

    /// Whether a device has its number now, the same or another, which can be opened.
    pub(super) fn is_bound(&self) -> bool {
        binding_of(&self.directory).is_ok_and(|now| now.is_some())
    }
}

impl MemoryFile {
    /// The bytes of a device that have failed, as its region knows (Linux: nvdimm, `badblocks`, in
    /// sectors of 512 bytes). Empty for what is no device, or one whose region keeps no such list.
    ///
    /// # Errors
    /// What reading sysfs says: where a device lies is root's to know.
    pub fn bad_bytes(&self) -> Result<Vec<Range<u64>>, OsError> {
        self.device.as_ref().map_or(Ok(Vec::new()), DeviceDax::bad_bytes)
    }

    /// Gives up a file for good, its descriptor and what was mapped to read and write it: a device
    /// can then be removed or bound again. Mappings of the caller's have
    /// [`crate::WriteMapping::abandon`].
    ///
    /// The descriptor stands for an empty file from now on that stays so: reads and writes are
    /// errors.
    ///
    /// # Errors
    /// `EMFILE`, `ENOMEM`; it may be called again.
    pub fn abandon(&self) -> Result<(), OsError> {
        if let Some(window) = self.window.get() {
            window.abandon()?;
        }
        let failed = |errno| OsError::new("give up", self.name.clone(), errno);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let nothing = rustix::fs::memfd_create("pgmap-nothing", flags).map_err(failed)?;
        let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&nothing, seals).map_err(failed)?;
        // SAFETY: both numbers are open descriptors for as long as this call lasts; the second is
        // owned by `self.fd`, which goes on to own what lies under it.
        let made = unsafe { libc::dup3(nothing.as_raw_fd(), self.fd.as_raw_fd(), libc::O_CLOEXEC) };
        if made < 0 {
            let error = io::Error::last_os_error();
            return Err(OsError::new("give up", self.name.clone(), error));
        }
        Ok(())
    }
}

/// Names the binding of the device at `path` to its driver; `None` for what is no device, or one
/// without a driver, which has no memory. Another number is another binding. Opens nothing: a
/// device without a driver must not be opened (Linux 7.3: drivers/dax/device.c, `check_vma` follows
/// what is gone).
#[must_use]
pub fn device_binding(path: &Path) -> Option<u64> {
    let stat = rustix::fs::stat(path).ok()?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::CharacterDevice {
        return None;
    }
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    binding_of(Path::new(&format!("/sys/dev/char/{major}:{minor}"))).ok().flatten()
}

/// The number of the link to the driver, which is made when a device is bound.
fn binding_of(directory: &Path) -> Result<Option<u64>, io::Error> {
    match fs::symlink_metadata(directory.join("driver")) {
        Ok(link) => Ok(Some(link.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The directory of the region that a device is a part of.
fn region_of(device: &Path) -> Option<&Path> {
    let is_region = |above: &&Path| {
        let name = above.file_name().map(std::ffi::OsStr::as_encoded_bytes);
        name.is_some_and(|name| name.starts_with(b"region"))
    };
    device.ancestors().find(is_region)
}

/// The physical address at which the region of a device starts; `None` where it has none, or this
/// user may not read it.
fn region_start(device: &Path) -> Option<u64> {
    address_in(&region_of(device)?.join("resource")).ok()
}

fn address_in(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    let digits = text.trim().trim_start_matches("0x");
    u64::from_str_radix(digits, 16).map_err(|_| io::Error::other(format!("it says \"{text}\"")))
}

/// The bytes that `badblocks` names, lines of a first sector and a number of sectors, of a device
/// of `len` bytes that starts `start` bytes behind what the sectors are counted from.
fn bad_bytes(badblocks: &str, start: u64, len: u64) -> Vec<Range<u64>> {
    let line = |line: &str| {
        let mut words = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(count))) = (words.next(), words.next()) else { return None };
        let from = first.checked_mul(SECTOR_BYTES)?;
        let to = from.saturating_add(count.saturating_mul(SECTOR_BYTES));
        let range = from.saturating_sub(start)..to.saturating_sub(start).min(len);
        (range.start < range.end).then_some(range)
    };
    badblocks.lines().filter_map(line).collect()
}

/// What the region of a device says. A region without such a file is volatile: memory of CXL that
/// is no pmem, or memory that the firmware reserved for one purpose.
fn persistence_of(device: &Path) -> Result<Persistence, OsError> {
    for above in device.ancestors() {
        let path = above.join("persistence_domain");
        match fs::read_to_string(&path) {
            Ok(domain) => {
                return Ok(match domain.trim() {
                    // The flushes are instructions of x86-64: `bytes/x86_64.rs`.
                    "cpu_cache" | "memory_controller" if cfg!(target_arch = "x86_64") => {
                        Persistence::PowerFailure
                    }
                    _ => Persistence::Restart,
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(OsError::new("read", path.display().to_string(), error)),
        }
    }
    Ok(Persistence::Processes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A tree as sysfs has it.
    fn device(root: &Path, files: &[(&str, &str)], domain: Option<&str>) -> PathBuf {
        let directory = root.join("region0/dax0.0");
        fs::create_dir_all(&directory).unwrap();
        fs::create_dir_all(root.join("bus/dax")).unwrap();
        symlink(root.join("bus/dax"), directory.join("subsystem")).unwrap();
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
        if let Some(domain) = domain {
            fs::write(root.join("region0/persistence_domain"), domain).unwrap();
        }
        directory
    }

    #[test]
    fn a_device_is_as_sysfs_says() {
        let cases = [
            (Some("memory_controller\n"), Persistence::PowerFailure),
            (Some("cpu_cache\n"), Persistence::PowerFailure),
            (Some("unknown\n"), Persistence::Restart),
            (None, Persistence::Processes),
        ];
        for (domain, persistence) in cases {
            let root = tempfile::tempdir().unwrap();
            let files = [("size", "4294967296\n"), ("align", "2097152\n"), ("numa_node", "1\n")];
            let directory = device(root.path(), &files, domain);
            let found = DeviceDax::read("/dev/dax0.0", &directory).unwrap();
            assert_eq!((found.len_bytes, found.alignment), (4 << 30, PageSize::Huge2M));
            assert_eq!((found.numa_node, found.persistence), (Some(1), persistence));
            assert!(!found.is_present(), "no driver");
            fs::write(directory.join("driver"), "").unwrap();
            assert!(found.is_present() && found.is_bound());
            let bound = DeviceDax::read("/dev/dax0.0", &directory).unwrap();
            assert!(bound.is_present());
            // Away and back between two looks: another file in the place of the link.
            fs::write(directory.join("other"), "").unwrap();
            fs::rename(directory.join("other"), directory.join("driver")).unwrap();
            assert!(!bound.is_present() && bound.is_bound());
        }
    }

    #[test]
    fn pages_of_1_gib_need_a_region_that_starts_at_such_an_address() {
        for (start, align, is_fit) in [
            ("0x140000000", 1_u64 << 30, true),
            ("0x14c000000", 1 << 30, false),
            ("0x14c000000", 2 << 20, true),
            ("", 1 << 30, true),
        ] {
            let root = tempfile::tempdir().unwrap();
            let align = align.to_string();
            let directory = device(root.path(), &[("size", "4294967296"), ("align", &align)], None);
            fs::write(root.path().join("region0/resource"), start).unwrap();
            let found = DeviceDax::read("/dev/dax0.0", &directory).map(drop);
            let told = found.as_ref().err().map(ToString::to_string).unwrap_or_default();
            assert_eq!(found.is_ok(), is_fit, "{start} {align}: {told}");
            assert!(is_fit || told.contains("/dev/dax0.0") && told.contains(start), "{told}");
        }
    }

    #[test]
    fn what_failed_is_where_its_region_says_counted_from_the_device() {
        let root = tempfile::tempdir().unwrap();
        let files = [("size", "1048576"), ("align", "4096"), ("resource", "0x100200000\n")];
        let directory = device(root.path(), &files, None);
        let bad = || DeviceDax::read("/dev/dax0.0", &directory).unwrap().bad_bytes();
        assert_eq!(bad().unwrap(), [], "no list");
        let list = root.path().join("region0/badblocks");
        fs::write(&list, "\n").unwrap();
        assert_eq!(bad().unwrap(), [], "an empty one");
        // Before the device, across its start, inside, across its end, behind it, and no sense.
        let text = "0 8\n4088 16\n4104 1\n6136 16\n9000 8\nsome 3\n";
        fs::write(&list, text).unwrap();
        assert!(bad().unwrap_err().to_string().contains("resource"), "where the region starts");
        fs::write(root.path().join("region0/resource"), "0x100000000\n").unwrap();
        let expected = [0..4096, 4096..4608, (1 << 20) - 4096..1 << 20];
        assert_eq!(bad().unwrap(), expected);
    }

    #[test]
    fn what_is_no_such_device_or_has_another_alignment_is_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        let other = device(root.path(), &[("size", "1"), ("align", "65536\n")], None);
        let text = DeviceDax::read("/dev/dax0.0", &other).unwrap_err().to_string();
        assert!(text.contains("/dev/dax0.0") && text.contains("65536"), "{text}");
        fs::write(other.join("align"), "often\n").unwrap();
        let text = DeviceDax::read("/dev/dax0.0", &other).unwrap_err().to_string();
        assert!(text.contains("align") && text.contains("often"), "{text}");
        for other in [Path::new("/sys/dev/char/1:3"), Path::new("/nowhere")] {
            let error = DeviceDax::read("/dev/null", other).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL);
            assert!(error.to_string().contains("device-dax"), "{error}");
        }
    }
}
