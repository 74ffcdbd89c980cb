//! A device that writes to the pool by itself: io_uring with the pool as a registered buffer,
//! reading a scratch file, past the page cache where the file system can.
//!
//! Where io_uring is refused a thread does the same with `preadv`, and the figures say so.

// UNSAFETY: a transfer is an address given to the kernel, which writes there later, by itself.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use clap::ValueEnum;
use io_uring::{IoUring, opcode, types};
use pgmap::Client;
use pgmap::os::WriteMapping;
use serde::{Deserialize, Serialize};

/// Transfers that can be under way at a time.
pub const MAX_IN_FLIGHT: usize = 256;
/// Attempts to register the buffer: locked memory of processes that just died comes back late.
const MAX_REGISTRATIONS: u32 = 50;
const REGISTRATION_PAUSE: Duration = Duration::from_millis(10);

/// Which engine moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// io_uring, a thread where that is refused
    Auto,
    /// io_uring or nothing
    IoUring,
    /// A thread with preadv
    Thread,
}

/// Where transfers go.
#[derive(Clone, Debug)]
pub enum Memory {
    /// A pgmap pool.
    Pool(Client),
    /// Plain shared memory.
    Plain(Arc<WriteMapping>),
}

impl Memory {
    /// First byte and length. Mapped and writable for as long as `self` lives.
    fn window(&self) -> (*mut u8, u64) {
        match self {
            Self::Pool(client) => (client.pool_address().0, client.pool_bytes()),
            Self::Plain(mapping) => (mapping.as_ptr(), mapping.len_bytes()),
        }
    }

    /// Changes when registered memory is not the pool's any more.
    fn epoch(&self) -> u64 {
        match self {
            Self::Pool(client) => client.detach_epoch(),
            Self::Plain(_) => 0,
        }
    }
}

/// Bytes on their way from the scratch file to memory.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Where they go, in bytes from the start of the memory.
    pub target: u64,
    /// How many.
    pub len_bytes: u32,
    /// Where they come from.
    pub source: u64,
    /// Comes back with the completion.
    pub tag: u64,
}

/// How the bytes were moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    /// `io_uring` or `preadv-thread`.
    pub engine: String,
    /// Whether the page cache was left out.
    pub is_direct: bool,
    /// Why it is not io_uring with O_DIRECT.
    pub why: Option<String>,
}

/// A source of transfers. Dropping it waits for those under way.
pub struct Dma {
    engine: Engine,
    memory: Memory,
    source: Arc<File>,
    kind: Kind,
    epoch: u64,
    nr_in_flight: usize,
    nr_bytes: u64,
}

enum Engine {
    Ring { ring: Box<IoUring>, done: VecDeque<(u64, i64)> },
    Thread(Worker),
}

impl Dma {
    /// Makes a source of transfers from the file at `source` to `memory`.
    ///
    /// # Errors
    /// When the file cannot be opened, or io_uring is wanted and refused.
    pub fn open(memory: Memory, source: &Path, wanted: Wanted) -> io::Result<Self> {
        let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(source);
        let (source, mut why) = match direct {
            Ok(file) => (file, None),
            Err(error) => (File::open(source)?, Some(format!("O_DIRECT: {error}"))),
        };
        let is_direct = why.is_none();
        let source = Arc::new(source);
        let epoch = memory.epoch();
        let ring = match wanted {
            Wanted::Thread => Err(io::Error::other("a thread was asked for")),
            Wanted::Auto | Wanted::IoUring => open_ring(&memory),
        };
        let (engine, name) = match ring {
            Ok(ring) => (Engine::Ring { ring: Box::new(ring), done: VecDeque::new() }, "io_uring"),
            Err(error) if wanted == Wanted::IoUring => return Err(error),
            Err(error) => {
                why = Some(format!("io_uring: {error}"));
                let worker = Worker::start(memory.clone(), Arc::clone(&source))?;
                (Engine::Thread(worker), "preadv-thread")
            }
        };
        if let Memory::Pool(client) = &memory {
            // The ring has the lock registered, and a thread's transfers end with its process: so
            // frames of memory that cannot be detached, a device's, are free when this has ended.
            client.promise_transfers_keep_lock().map_err(io::Error::other)?;
        }
        let kind = Kind { engine: name.into(), is_direct, why };
        Ok(Self { engine, memory, source, kind, epoch, nr_in_flight: 0, nr_bytes: 0 })
    }

    /// How the bytes are moved.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Bytes moved so far.
    pub fn nr_bytes(&self) -> u64 {
        self.nr_bytes
    }

    /// Transfers under way.
    pub fn nr_in_flight(&self) -> usize {
        self.nr_in_flight
    }

    /// Starts a transfer. The memory is the caller's to keep until its completion.
    ///
    /// # Errors
    /// For a range outside the memory, too many at a time, or what the system says.
    pub fn start(&mut self, transfer: Transfer) -> io::Result<()> {
        let (base, len_bytes) = self.memory.window();
        let end = transfer.target.checked_add(transfer.len_bytes.into());
        if end.is_none_or(|end| end > len_bytes) || self.nr_in_flight >= MAX_IN_FLIGHT {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        self.register_anew_after_detaching()?;
        match &mut self.engine {
            Engine::Thread(worker) => worker.send(transfer)?,
            Engine::Ring { ring, .. } => {
                let address = base.wrapping_add(transfer.target as usize);
                let fd = types::Fd(self.source.as_raw_fd());
                let entry = opcode::ReadFixed::new(fd, address, transfer.len_bytes, 0)
                    .offset(transfer.source)
                    .build()
                    .user_data(transfer.tag);
                // SAFETY: the range lies inside the registered buffer, whose pages the kernel
                // holds until the ring is gone; `self` keeps the file open and the memory mapped
                // until the completion, for `drop` waits. The bytes are shared with other
                // processes: no reference to them exists (I6).
                unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
                ring.submit()?;
            }
        }
        self.nr_in_flight += 1;
        Ok(())
    }

    /// Waits for a transfer and returns its tag.
    ///
    /// # Errors
    /// What the system says of the transfer, or of waiting.
    pub fn wait(&mut self) -> io::Result<u64> {
        let (tag, result) = match &mut self.engine {
            Engine::Thread(worker) => worker.wait()?,
            Engine::Ring { ring, done } => loop {
                if let Some(completion) = done.pop_front() {
                    break completion;
                }
                match ring.submit_and_wait(1) {
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                    _ => {}
                }
                done.extend(ring.completion().map(|e| (e.user_data(), i64::from(e.result()))));
            },
        };
        self.nr_in_flight -= 1;
        let errno = i32::try_from(-result).unwrap_or(libc::EIO);
        let nr_bytes = u64::try_from(result).map_err(|_| io::Error::from_raw_os_error(errno))?;
        self.nr_bytes += nr_bytes;
        Ok(tag)
    }

    /// After a process died with a transfer under way the pool has other pages in some places than
    /// those that were registered.
    fn register_anew_after_detaching(&mut self) -> io::Result<()> {
        let epoch = self.memory.epoch();
        if epoch == self.epoch {
            return Ok(());
        }
        if let Engine::Ring { ring, .. } = &self.engine {
            // The kernel keeps the old pages for transfers that still use them.
            ring.submitter().unregister_buffers()?;
            register(ring, &self.memory)?;
        }
        self.epoch = epoch;
        Ok(())
    }
}

impl Drop for Dma {
    fn drop(&mut self) {
        while self.nr_in_flight > 0 {
            let before = self.nr_in_flight;
            if self.wait().is_err() && self.nr_in_flight == before {
                // Cannot be waited for: the kernel holds the pages themselves, not the mapping.
                return;
            }
        }
    }
}

fn open_ring(memory: &Memory) -> io::Result<IoUring> {
    let ring = IoUring::new(MAX_IN_FLIGHT as u32)?;
    if let Memory::Pool(client) = memory {
        // The ring keeps it until its last transfer has ended.
        let lock = client.transfer_lock().map_err(io::Error::other)?;
        ring.submitter().register_files(&[lock.as_raw_fd()])?;
    }
    register(&ring, memory)?;
    Ok(ring)
}

fn register(ring: &IoUring, memory: &Memory) -> io::Result<()> {
    let (base, len_bytes) = memory.window();
    let buffer = libc::iovec { iov_base: base.cast(), iov_len: len_bytes as usize };
    let mut attempt = 0;
    loop {
        // SAFETY: the range is mapped and writable, and whoever owns the ring keeps `memory`, so it
        // stays so until the ring is gone; the pages are bytes shared with other processes (I6).
        let result = unsafe { ring.submitter().register_buffers(&[buffer]) };
        attempt += 1;
        match result {
            Err(error)
                if error.raw_os_error() == Some(libc::ENOMEM) && attempt < MAX_REGISTRATIONS =>
            {
                std::thread::sleep(REGISTRATION_PAUSE);
            }
            result => return result,
        }
    }
}

/// The thread that stands in for a device.
struct Worker {
    jobs: Option<Sender<Transfer>>,
    done: Receiver<(u64, i64)>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(memory: Memory, source: Arc<File>) -> io::Result<Self> {
        let (jobs, ahead) = channel::<Transfer>();
        let (finished, done) = channel();
        let thread = std::thread::Builder::new().name("dma".into()).spawn(move || {
            for transfer in ahead {
                if finished.send((transfer.tag, read_into(&memory, &source, transfer))).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs: Some(jobs), done, thread: Some(thread) })
    }

    fn send(&self, transfer: Transfer) -> io::Result<()> {
        let gone = || io::Error::other("the transfer thread is gone");
        self.jobs.as_ref().ok_or_else(gone)?.send(transfer).map_err(|_| gone())
    }

    fn wait(&self) -> io::Result<(u64, i64)> {
        self.done.recv().map_err(|_| io::Error::other("the transfer thread is gone"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It panicked: there is nothing left to wait for.
            let _ = thread.join();
        }
    }
}

/// Returns the bytes read, or a negative errno.
fn read_into(memory: &Memory, source: &File, transfer: Transfer) -> i64 {
    let (base, len_bytes) = memory.window();
    let end = transfer.target.checked_add(transfer.len_bytes.into());
    if end.is_none_or(|end| end > len_bytes) {
        return -i64::from(libc::EFAULT);
    }
    let iov_base = base.wrapping_add(transfer.target as usize).cast();
    let part = libc::iovec { iov_base, iov_len: transfer.len_bytes as usize };
    // SAFETY: one iovec on this stack; its range was checked to lie inside the window, which is
    // mapped and writable while `memory` is borrowed; no reference to its bytes exists (I6); the
    // descriptor is open while `source` is borrowed.
    let result =
        unsafe { libc::preadv(source.as_raw_fd(), &raw const part, 1, transfer.source as i64) };
    match result {
        -1 => -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
        nr_bytes => nr_bytes as i64,
    }
}
