//! What the kernel's own device-dax and fsdax do, row by row of docs/parity.md, on a real device.
//!
//! Without arguments it says that it is skipped: it needs a device, and
//! `cargo xtask guest --only parity` gives it one. `kernel_dax devdax DEVICE ALIGN` and
//! `kernel_dax fsdax DIRECTORY` print `seen ROW TEXT` for each row; `kernel_dax hold DEVICE ALIGN`
//! registers a buffer with a ring and waits for the end of its input.

// UNSAFETY: raw mappings, pages in a pipe and registered buffers are the subject; nothing here
// reads or writes them but through system calls.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use io_uring::IoUring;

/// How long pages are held.
const HELD: Duration = Duration::from_millis(600);
const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["devdax", device, align] => devdax(Path::new(device), align.parse().unwrap()),
        ["fsdax", directory] => fsdax(Path::new(directory)),
        ["hold", device, align] => hold(Path::new(device), align.parse().unwrap()),
        _ => println!(
            "skipped: kernel_dax: it needs a dax device, which `cargo xtask guest --only parity` \
             has"
        ),
    }
}

fn seen(row: &str, text: impl std::fmt::Display) {
    println!("seen {row} {text}");
}

/// A mapping that nothing is read from or written to, but by the kernel.
struct Raw {
    address: *mut libc::c_void,
    len: usize,
}

impl Raw {
    fn map(file: &File, len: usize, offset: usize, flags: i32) -> io::Result<Self> {
        let (prot, offset) = (libc::PROT_READ | libc::PROT_WRITE, offset as libc::off_t);
        // SAFETY: no address is asked for, so nothing that is mapped is replaced.
        let address =
            unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, file.as_raw_fd(), offset) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { address, len })
    }

    fn shared(file: &File, len: usize) -> io::Result<Self> {
        Self::map(file, len, 0, libc::MAP_SHARED)
    }

    /// A touch for reading, by the kernel: where it would be SIGBUS it is EFAULT.
    fn touch(&self, offset: usize) -> io::Result<u8> {
        let mut pipe = pipe();
        let address = self.address.wrapping_byte_add(offset);
        // SAFETY: the kernel reads one byte at an address that may be anything.
        let count = unsafe { libc::write(pipe.1.as_raw_fd(), address, 1) };
        done(count as i32)?;
        let mut byte = [0];
        pipe.0.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    /// A write of one byte, by the kernel.
    fn poke(&self, offset: usize, byte: u8) -> io::Result<()> {
        let mut pipe = pipe();
        pipe.1.write_all(&[byte])?;
        let address = self.address.wrapping_byte_add(offset);
        // SAFETY: the kernel writes one byte into this mapping, which no reference points to.
        let count = unsafe { libc::read(pipe.0.as_raw_fd(), address, 1) };
        done(count as i32)
    }

    /// Puts a page into a pipe: it is held until the pipe is read.
    fn to_pipe(&self, offset: usize) -> io::Result<(File, File)> {
        let pipe = pipe();
        let part = libc::iovec { iov_base: self.address.wrapping_byte_add(offset), iov_len: PAGE };
        // SAFETY: one part of this mapping; the pipe holds its page, not its address.
        let count = unsafe { libc::vmsplice(pipe.1.as_raw_fd(), &raw const part, 1, 0) };
        done(count as i32)?;
        Ok(pipe)
    }

    /// A long-term pin: registers the first `len` bytes with a ring.
    fn register(&self, len: usize) -> io::Result<IoUring> {
        let ring = IoUring::new(2)?;
        let part = [libc::iovec { iov_base: self.address, iov_len: len }];
        // SAFETY: no entry of the ring uses the buffer.
        unsafe { ring.submitter().register_buffers(&part) }?;
        Ok(ring)
    }

    fn advise(&self, offset: usize, len: usize, advice: i32) -> io::Result<()> {
        let address = self.address.wrapping_byte_add(offset);
        // SAFETY: whatever becomes of this memory, no reference points to it.
        done(unsafe { libc::madvise(address, len, advice) })
    }

    /// Faults that one touch in each `step` bytes from `from` to `to` takes.
    fn faults(&self, from: usize, to: usize, step: usize) -> i64 {
        let mut pipe = pipe();
        let count = || {
            // SAFETY: a place for an answer, of which any bytes are one.
            let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
            // SAFETY: as above.
            let _ = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
            usage.ru_minflt
        };
        let mut byte = [0];
        let before = count();
        for offset in (from..to).step_by(step) {
            let address = self.address.wrapping_byte_add(offset);
            // SAFETY: the kernel reads one byte of this mapping.
            let _ = unsafe { libc::write(pipe.1.as_raw_fd(), address, 1) };
            pipe.0.read_exact(&mut byte).unwrap();
        }
        count() - before
    }

    /// What /proc says of the size of its pages.
    fn page_size_of_smaps(&self) -> String {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", self.address as usize);
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let line = lines.find(|line| line.starts_with("KernelPageSize"));
        line.map_or_else(String::new, |line| line.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Addresses with nothing behind them.
    fn nowhere(len: usize) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: no address is asked for, so nothing that is mapped is replaced.
        let address = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(address, libc::MAP_FAILED);
        Self { address, len }
    }

    /// Bytes up to the next multiple of `unit`.
    fn lead_to(&self, unit: usize) -> usize {
        (self.address as usize).next_multiple_of(unit) - self.address as usize
    }

    fn move_to(&self, place: *mut libc::c_void) -> io::Result<()> {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: moves a mapping that no reference points to over addresses without anything.
        let moved = unsafe { libc::mremap(self.address, self.len, self.len, flags, place) };
        if moved == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn protect(&self, offset: usize, len: usize) -> io::Result<()> {
        let address = self.address.wrapping_byte_add(offset);
        // SAFETY: a part of this mapping, which no reference points to.
        done(unsafe { libc::mprotect(address, len, libc::PROT_READ) })
    }

    fn unmap(&self, offset: usize, len: usize) -> io::Result<()> {
        let address = self.address.wrapping_byte_add(offset);
        // SAFETY: a part of this mapping, which no reference points to.
        done(unsafe { libc::munmap(address, len) })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = self.unmap(0, self.len);
    }
}

fn done(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn pipe() -> (File, File) {
    let (reader, writer): (OwnedFd, OwnedFd) = rustix::pipe::pipe().unwrap();
    (reader.into(), writer.into())
}

/// The name of what a call ended with.
fn outcome<T>(result: &io::Result<T>) -> String {
    let Err(error) = result else { return "succeeds".into() };
    let names = [
        (libc::EINVAL, "EINVAL"),
        (libc::ENXIO, "ENXIO"),
        (libc::EFAULT, "EFAULT"),
        (libc::EBUSY, "EBUSY"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EIO, "EIO"),
        (libc::EACCES, "EACCES"),
        (libc::EROFS, "EROFS"),
        (libc::EPERM, "EPERM"),
        (libc::EHWPOISON, "EHWPOISON"),
    ];
    let name = names.iter().find(|(errno, _)| error.raw_os_error() == Some(*errno));
    name.map_or_else(|| error.to_string(), |name| name.1.to_owned())
}

/// Runs `call` while a page lies in a pipe that is emptied after [`HELD`]; says whether it waited
/// for that.
fn under_hold<T>(pipe: (File, File), call: impl FnOnce() -> io::Result<T>) -> String {
    let (mut reader, writer) = pipe;
    let emptier = thread::spawn(move || {
        thread::sleep(HELD);
        let mut page = vec![0; PAGE];
        reader.read_exact(&mut page).map(|()| page[0])
    });
    let started = Instant::now();
    let result = call();
    let waited = started.elapsed() * 10 > HELD * 8;
    let byte = emptier.join().unwrap();
    drop(writer);
    let what = if waited { "waits, then" } else { "at once" };
    let read = byte.map_or_else(|error| error.to_string(), |byte| format!("{byte:#04x}"));
    format!("{what} {}; the held page reads {read}", outcome(&result))
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn devdax(path: &Path, align: usize) {
    let device = open(path);
    let name = path.file_name().unwrap().to_str().unwrap();
    let sysfs = Path::new("/sys/bus/dax/devices").join(name);
    let attribute = |attribute: &str| fs::read_to_string(sysfs.join(attribute)).unwrap();
    let size: usize = attribute("size").trim().parse().unwrap();
    let map = |len, offset, flags| outcome(&Raw::map(&device, len, offset, flags).map(drop));
    seen(
        "40",
        format!(
            "private: {}; half a unit: {}; offset of half a unit: {}; MAP_SYNC: {}",
            map(align, 0, libc::MAP_PRIVATE),
            map(align / 2, 0, libc::MAP_SHARED),
            map(align, align / 2, libc::MAP_SHARED),
            map(align, 0, libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC),
        ),
    );
    let last = size - align;
    let past = Raw::map(&device, 2 * align, last, libc::MAP_SHARED);
    let touches = past.as_ref().map(|past| (outcome(&past.touch(0)), outcome(&past.touch(align))));
    seen(
        "43",
        format!(
            "mmap past the end: {}; touch of the last unit and behind it: {touches:?}",
            outcome(&past)
        ),
    );
    drop(past);
    let raw = Raw::shared(&device, 2 * align).unwrap();
    // Half of a page is a page to munmap.
    if align > PAGE {
        let half = outcome(&raw.unmap(0, align / 2));
        let unit = outcome(&raw.unmap(align, align));
        seen("44", format!("munmap of half a unit: {half}; of a unit: {unit}"));
    }
    seen(
        "28 29",
        format!(
            "long-term pin: {}; page into a pipe: {}",
            outcome(&raw.register(align)),
            outcome(&raw.to_pipe(0)),
        ),
    );
    seen(
        "46",
        format!(
            "align while bound: {}; size above the region: {}",
            outcome(&fs::write(sysfs.join("align"), "4096")),
            outcome(&fs::write(sysfs.join("size"), (size + (1 << 40)).to_string())),
        ),
    );
    leaves_of_device(&device, align);
    raw.poke(0, 0x11).unwrap();
    let poison = raw.advise(0, PAGE, libc::MADV_HWPOISON);
    seen(
        "59",
        format!(
            "poison: {}; touch after it: {}; pin after it: {}",
            outcome(&poison),
            outcome(&raw.touch(0)),
            outcome(&raw.register(align)),
        ),
    );
    // What a removal under a hold does ends in an oops of the kernel: only mapped memory is tried
    // here.
    let driver = fs::canonicalize(sysfs.join("driver")).unwrap();
    let gone = fs::write(driver.join("unbind"), name);
    seen(
        "45",
        format!(
            "unbind while mapped: {}; touch: {}; mmap of the old descriptor: {}; pin: {}",
            outcome(&gone),
            outcome(&raw.touch(0)),
            outcome(&Raw::shared(&device, align).map(drop)),
            outcome(&raw.register(align)),
        ),
    );
    drop((raw, device));
    seen("45", format!("bound again: {}", outcome(&fs::write(driver.join("bind"), name))));
}

/// Rows 41 and 42: how large a leaf is, by the faults that touching every page of some takes.
fn leaves_of_device(device: &File, align: usize) {
    let nr_units = if align > 2 * MIB { 1 } else { 4 };
    let raw = Raw::shared(device, nr_units * align).unwrap();
    let step = if align > 2 * MIB { MIB } else { PAGE };
    let taken = raw.faults(0, nr_units * align, step);
    let moved = Raw::shared(device, align).unwrap();
    seen(
        "41",
        format!("{nr_units} units touched through: {taken} faults; {}", raw.page_size_of_smaps()),
    );
    let half = outcome(&raw.protect(0, align / 2));
    // Off the unit by a page, where there is room for it.
    let off = Raw::nowhere(2 * align.max(2 * MIB));
    let place = off.address.wrapping_byte_add(off.lead_to(align) + PAGE);
    let to = outcome(&moved.move_to(place));
    let touch = outcome(&moved_touch(place));
    seen(
        "42",
        format!("mprotect of half a unit: {half}; moved off the unit: {to}, then touched: {touch}"),
    );
    std::mem::forget(moved);
}

/// A touch at an address of no mapping of ours.
fn moved_touch(address: *mut libc::c_void) -> io::Result<u8> {
    let here = std::mem::ManuallyDrop::new(Raw { address, len: 1 });
    here.touch(0)
}

/// Rows 48 to 50: what a fault maps of a file on DAX, by the faults that touching every page takes.
fn leaves_of_file(directory: &Path) {
    let written = |raw: &Raw, from: usize, to: usize| raw.faults(from, to, PAGE);
    let (_file, raw) = file_of(directory, 6, 3 * MIB);
    let (whole, rest) = (written(&raw, 0, 2 * MIB), written(&raw, 2 * MIB, 3 * MIB));
    seen("48", format!("3 MiB of a file: {whole} faults for the first 2 MiB, {rest} for the last"));
    drop(raw);
    let (file, raw) = file_of(directory, 7, 8 * MIB);
    drop(raw);
    let small = Raw::shared(&file, PAGE).unwrap();
    let first = written(&small, 0, PAGE);
    let around = Raw::shared(&file, 2 * MIB).unwrap();
    let after_small = written(&around, 0, 2 * MIB);
    let other = Raw::map(&file, 2 * MIB, 2 * MIB, libc::MAP_SHARED).unwrap();
    let huge = written(&other, 0, 2 * MIB);
    let inside = Raw::map(&file, PAGE, 2 * MIB, libc::MAP_SHARED).unwrap();
    let after_huge = written(&inside, 0, PAGE);
    let still = written(&other, 0, 2 * MIB);
    seen(
        "49",
        format!(
            "a page alone: {first} faults, then the 2 MiB around it: {after_small}; 2 MiB first: \
             {huge}, then a page of them alone: {after_huge}, the 2 MiB again: {still}"
        ),
    );
    seen("50", format!("8 MiB: {}; no file of 1 GiB fits here", raw_of_all(&file)));
    let copy = File::create(directory.join("kernel-copy")).unwrap();
    // SAFETY: two descriptors that are open.
    let cloned = done(unsafe { libc::ioctl(copy.as_raw_fd(), libc::FICLONE, file.as_raw_fd()) });
    seen("57", format!("reflink (FICLONE): {}", outcome(&cloned)));
}

fn raw_of_all(file: &File) -> String {
    let all = Raw::shared(file, 8 * MIB).unwrap();
    format!("{} faults", all.faults(0, 8 * MIB, PAGE))
}

/// A file of `len` bytes of `byte`, with its mapping.
fn file_of(directory: &Path, byte: u8, len: usize) -> (File, Raw) {
    let path = directory.join(format!("kernel-{byte}"));
    let file =
        File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    file.write_all_at(&vec![byte; len], 0).unwrap();
    let raw = Raw::shared(&file, len).unwrap();
    (file, raw)
}

fn fsdax(directory: &Path) {
    leaves_of_file(directory);
    let len = 8 * MIB;
    let (file, raw) = file_of(directory, 1, len);
    raw.touch(0).unwrap();
    seen("27", format!("long-term pin: {}", outcome(&raw.register(PAGE))));
    let punch = |offset: usize| {
        move |file: &File| {
            let (offset, mode) =
                (offset as i64, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE);
            // SAFETY: numbers only.
            done(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, PAGE as i64) })
        }
    };
    punch(6 * MIB)(&file).unwrap();
    seen(
        "47",
        format!(
            "a hole reads {}; written: {}",
            raw.touch(6 * MIB).map_or_else(|error| error.to_string(), |byte| byte.to_string()),
            outcome(&raw.poke(6 * MIB, 7)),
        ),
    );
    let pipe_of = |offset: usize| raw.to_pipe(offset).unwrap();
    seen(
        "53",
        format!(
            "hole beside a held page of the same 2 MiB: {}",
            under_hold(pipe_of(0), || punch(8 * PAGE)(&file))
        ),
    );
    seen(
        "53",
        format!("hole in another 2 MiB: {}", under_hold(pipe_of(0), || punch(4 * MIB)(&file))),
    );
    seen(
        "55",
        format!(
            "write(2) over the held bytes: {}",
            under_hold(pipe_of(0), || file.write_all_at(&[9; PAGE], 0))
        ),
    );
    let (held, raw_of_held) = file_of(directory, 2, len);
    let pipe = raw_of_held.to_pipe(0).unwrap();
    seen("52", format!("truncate, still mapped: {}", under_hold(pipe, || held.set_len(0))));
    let (held, raw_of_held) = file_of(directory, 3, len);
    let pipe = raw_of_held.to_pipe(0).unwrap();
    drop(raw_of_held);
    seen("52", format!("truncate, unmapped before: {}", under_hold(pipe, || held.set_len(0))));
    let (held, raw_of_held) = file_of(directory, 4, len);
    drop(raw_of_held);
    let started = Instant::now();
    held.set_len(0).unwrap();
    let is_quick = started.elapsed() < HELD;
    seen("51", format!("truncate without holds: {}", if is_quick { "at once" } else { "waits" }));
    let (held, raw_of_held) = file_of(directory, 5, len);
    let pipe = raw_of_held.to_pipe(0).unwrap();
    drop(raw_of_held);
    fs::remove_file(directory.join("kernel-5")).unwrap();
    seen(
        "56",
        format!(
            "unlink and last close: {}",
            under_hold(pipe, || {
                drop(held);
                Ok(())
            })
        ),
    );
    let poison = raw.advise(2 * MIB, PAGE, libc::MADV_HWPOISON);
    let mut page = [0; PAGE];
    seen(
        "59",
        format!(
            "poison: {}; touch: {}; read(2): {}; write(2): {}",
            outcome(&poison),
            outcome(&raw.touch(2 * MIB)),
            outcome(&file.read_exact_at(&mut page, 2 * MIB as u64)),
            outcome(&file.write_all_at(&page, 2 * MIB as u64)),
        ),
    );
}

fn hold(path: &Path, align: usize) {
    let device = open(path);
    let raw = Raw::shared(&device, align).unwrap();
    let ring = raw.register(align);
    println!("holding: {}", outcome(&ring));
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
}
