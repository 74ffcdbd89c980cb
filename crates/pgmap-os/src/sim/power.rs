//! A device of persistent memory, played by a file, of which a power failure leaves what was
//! flushed.
//!
//! Stores reach such memory by way of the processor's caches. A line that was flushed is in the
//! memory after the next fence; one that was not may be, for a cache writes back what it likes, and
//! in any order. So what a power failure at a fence leaves is: of each line what was last flushed
//! and fenced, or what was flushed since, or what it says now.
//!
//! The machine's own flush and fence say here what they did ([`flushed`], [`fenced`]); the file's
//! contents are real, and what would be left of them is worked out beside it. One device at a time,
//! of the whole process.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that are written back together.
pub const LINE_BYTES: usize = 64;

/// What is broken on purpose, to see that it is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Broken {
    /// Nothing.
    #[default]
    Nothing,
    /// Flushes of lines in this range of bytes do nothing.
    Flushes(Range<u64>),
    /// The fences after a flush of lines in this range of bytes, up to the next of others, do
    /// nothing.
    Fences(Range<u64>),
    /// These bytes cannot be read until something is written there.
    Reads(Range<u64>),
}

/// Told of each fence before it takes effect.
pub type AtFence = Box<dyn FnMut(&mut Device) + Send>;

/// The device.
pub struct Device {
    path: PathBuf,
    number: (u64, u64),
    file: fs::File,
    /// What is in the memory for certain.
    durable: Vec<u8>,
    /// What was flushed since the last fence: where, and the bytes.
    staged: Vec<(usize, Vec<u8>)>,
    broken: Broken,
    are_fences_dropped: bool,
    /// What kept a flush from being taken note of.
    failure: Option<io::Error>,
    boot: u128,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("path", &self.path).finish_non_exhaustive()
    }
}

static DEVICE: Mutex<Option<Device>> = Mutex::new(None);
static AT_FENCE: Mutex<Option<AtFence>> = Mutex::new(None);

fn device() -> MutexGuard<'static, Option<Device>> {
    DEVICE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// What a power failure would leave now; `choose` says of each line that is not certain which
    /// of so many contents it has.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn after_power_failure(
        &mut self,
        mut choose: impl FnMut(usize) -> usize,
    ) -> io::Result<Vec<u8>> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let mut now = vec![0; self.durable.len()];
        self.file.read_exact_at(&mut now, 0)?;
        let mut left = self.durable.clone();
        let mut contents: Vec<&[u8]> = Vec::new();
        for start in (0..left.len()).step_by(LINE_BYTES) {
            let line = start..start + LINE_BYTES;
            let staged = self
                .staged
                .iter()
                .filter(|(at, bytes)| *at <= start && start + LINE_BYTES <= at + bytes.len());
            if now[line.clone()] == self.durable[line.clone()] && self.staged.is_empty() {
                continue;
            }
            contents.clear();
            contents.push(&self.durable[line.clone()]);
            contents.extend(staged.map(|(at, bytes)| &bytes[start - at..][..LINE_BYTES]));
            contents.push(&now[line.clone()]);
            contents.dedup();
            if contents.len() > 1 {
                let chosen = choose(contents.len()).min(contents.len() - 1);
                left[line].copy_from_slice(contents[chosen]);
            }
        }
        Ok(left)
    }

    fn flush(&mut self, start: u64, len: usize) -> io::Result<()> {
        let line = LINE_BYTES as u64;
        let first = start - start % line;
        let end = (start + len as u64).next_multiple_of(line).min(self.durable.len() as u64);
        match &self.broken {
            Broken::Flushes(range) if range.contains(&first) => return Ok(()),
            Broken::Fences(range) => self.are_fences_dropped = range.contains(&first),
            Broken::Reads(range) if range.contains(&first) => self.broken = Broken::Nothing,
            _ => {}
        }
        let mut bytes = vec![0; end.saturating_sub(first) as usize];
        self.file.read_exact_at(&mut bytes, first)?;
        self.staged.push((first as usize, bytes));
        Ok(())
    }

    fn fence(&mut self) {
        if self.are_fences_dropped {
            return;
        }
        for (at, bytes) in self.staged.drain(..) {
            self.durable[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
}

/// Makes the file at `path` a device of this process whose contents are certain now.
///
/// # Errors
/// When the file cannot be read.
pub fn plug(path: &Path, broken: Broken, at_fence: Option<AtFence>) -> io::Result<()> {
    let file = fs::File::open(path)?;
    let metadata = file.metadata()?;
    let mut durable = vec![0; metadata.len() as usize];
    file.read_exact_at(&mut durable, 0)?;
    fs::create_dir_all(directory_of(path).join("driver"))?;
    let mut device = device();
    let boot = device.as_ref().map_or(1, |before| before.boot + 1);
    *device = Some(Device {
        path: path.to_owned(),
        number: (metadata.dev(), metadata.ino()),
        file,
        durable,
        staged: Vec::new(),
        broken,
        are_fences_dropped: false,
        failure: None,
        boot,
    });
    *AT_FENCE.lock().unwrap_or_else(PoisonError::into_inner) = at_fence;
    Ok(())
}

/// Stands for what sysfs says of the device.
pub(crate) fn directory_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sysfs");
    name.into()
}

/// The path of the device, if `number`, of its file system and its own, is its.
pub(crate) fn is_device(number: (u64, u64)) -> Option<PathBuf> {
    device().as_ref().filter(|device| device.number == number).map(|device| device.path.clone())
}

/// Which run of the machine it is, once there was a device.
pub(crate) fn boot_id() -> Option<u128> {
    device().as_ref().map(|device| device.boot)
}

/// The device is read without a mapping.
///
/// # Errors
/// `EIO` where it is broken.
pub(crate) fn read(offset: u64, len: usize) -> io::Result<()> {
    match device().as_ref().map(|device| &device.broken) {
        Some(Broken::Reads(range)) if range.start < offset + len as u64 && offset < range.end => {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
        _ => Ok(()),
    }
}

/// The lines of `len` bytes at `start` were flushed.
pub(crate) fn flushed(start: *const u8, len: usize) {
    let mut device = device();
    let Some(device) = device.as_mut() else { return };
    let Some(offset) = offset_of(start as usize, &device.path) else { return };
    device.failure = device.flush(offset, len).err().or(device.failure.take());
}

/// What was flushed is in memory.
pub(crate) fn fenced() {
    let mut at_fence = AT_FENCE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut device = device();
    let Some(device) = device.as_mut() else { return };
    if device.staged.is_empty() && device.broken == Broken::Nothing {
        return;
    }
    if let Some(at_fence) = at_fence.as_mut() {
        at_fence(device);
    }
    device.fence();
}

/// Where in the file at `path` the byte at `address` of this process lies.
fn offset_of(address: usize, path: &Path) -> Option<u64> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let path = path.to_str()?;
    maps.lines().filter(|line| line.ends_with(path)).find_map(|line| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        let offset = u64::from_str_radix(words.nth(1)?, 16).ok()?;
        (start..end).contains(&address).then(|| offset + (address - start) as u64)
    })
}
