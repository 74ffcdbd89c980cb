//! The ring: registration, transfers, completions.

// UNSAFETY: a transfer is an address given to the kernel, which reads or writes there later, by
// itself.
#![allow(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use pgmap::Client;
use pgmap::mm::gup::{Dirty, GupFlags};
use pgmap::mm::level::PAGE_BYTES;
use pgmap::space::{AddressSpace, PinnedPages, SpaceError, Tails};

use crate::error::RingError;

/// The most the kernel takes as one fixed buffer (Linux 7.1: io_uring/rsrc.c).
const BUFFER_BYTES: u64 = 1 << 30;

/// The most pieces of one vectored call (Linux 7.1: include/uapi/linux/uio.h, `UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

/// The offset that stands for a file's current position (man 2 io_uring_enter, IORING_OP_READV).
const CURRENT_POSITION: u64 = u64::MAX;

/// The longest that one call waits; far from where the kernel's clock overflows.
const WAIT_AT_MOST: Duration = Duration::from_secs(3600);

/// How long a transfer waits for an entry when all are under way.
const ENTRY_WAIT: Duration = Duration::from_secs(1);

/// How long a ring that is dropped waits for transfers that cannot be cancelled any more, as those
/// of a disk that is slow.
const DROP_WAIT: Duration = Duration::from_secs(30);

/// Tags what asks for a cancellation. No transfer has this number.
const CANCEL_TAG: u64 = u64::MAX;

/// Names a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId(u64);

/// A transfer that the kernel is done with. Its pages are let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completed {
    /// Which.
    pub id: TransferId,
    /// Bytes moved, from the start of the transfer on: what one `preadv(2)` or `pwritev(2)` would
    /// have returned. Fewer than asked for do not mean that the file ended; a transfer that goes on
    /// behind them tells, by moving none.
    pub moved_bytes: u64,
    /// The Linux error number, when it failed; `ECANCELED` when it was cancelled before it moved
    /// anything.
    pub errno: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    ToPool,
    FromPool,
}

/// What the kernel may still touch.
#[derive(Debug)]
struct InFlight<'s> {
    pinned: PinnedPages<'s>,
    /// The files whose ends may lie in the pages.
    tails: Tails,
    /// Kept open until the kernel has taken it.
    _file: File,
    /// Read by the kernel when it takes the entry.
    _pieces: Vec<Piece>,
    direction: Direction,
}

/// A contiguous part of a transfer.
#[derive(Debug)]
#[repr(transparent)]
struct Piece(libc::iovec);

// SAFETY: an address and a length, which nothing here follows.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

/// A ring with the pool as its fixed buffers, and with the client's
/// [`transfer_lock`](Client::transfer_lock) as a registered file. Each transfer is one entry, so
/// what has an order, as the bytes of a pipe have, keeps it. Dropping the ring cancels the
/// transfers under way and waits for their end; those that do not end within half a minute keep
/// their pages held until this process ends. In a forked child it is good for nothing but to be
/// dropped, which does nothing.
pub struct PoolRing<'s> {
    ring: IoUring,
    client: Client,
    nr_entries: u32,
    /// [`Client::detach_epoch`] before the pool was registered.
    epoch: u64,
    next_id: u64,
    in_flight: HashMap<u64, InFlight<'s>>,
    completed: VecDeque<Completed>,
    /// The process that made it. A forked child has the ring's memory in common with its parent,
    /// and would take the parent's completions.
    process: u32,
}

impl std::fmt::Debug for PoolRing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { nr_entries, epoch, in_flight, .. } = self;
        f.debug_struct("PoolRing")
            .field("nr_entries", nr_entries)
            .field("epoch", epoch)
            .field("nr_in_flight", &in_flight.len())
            .finish_non_exhaustive()
    }
}

fn refused(doing: &'static str) -> impl FnOnce(io::Error) -> RingError {
    move |source| RingError::Ring { doing, source }
}

impl<'s> PoolRing<'s> {
    /// A ring of `nr_entries` entries, with all of the client's pool registered. That takes the
    /// memory behind the whole pool from the system, and counts against `RLIMIT_MEMLOCK`.
    ///
    /// # Errors
    /// [`RingError::MemoryLock`] when `RLIMIT_MEMLOCK` is less than the pool and this process may
    /// not lock more; [`RingError::Ring`] when the kernel has no io_uring for this process, or no
    /// memory.
    pub fn new(client: &Client, nr_entries: u32) -> Result<Self, RingError> {
        let ring = IoUring::new(nr_entries).map_err(refused("making the ring"))?;
        let mut made = Self {
            ring,
            client: client.clone(),
            nr_entries,
            epoch: 0,
            next_id: 0,
            in_flight: HashMap::new(),
            completed: VecDeque::new(),
            process: std::process::id(),
        };
        // Before the first transfer: the lock is free once the last has ended, not earlier.
        let lock = client.transfer_lock().map_err(SpaceError::from)?;
        let registered = made.ring.submitter().register_files(&[lock.as_raw_fd()]);
        registered.map_err(refused("registering the ledger"))?;
        made.register()?;
        Ok(made)
    }

    /// Reads `len_bytes` of `file` from `file_offset` on to `address`, as one `preadv(2)`. Both
    /// ends may lie within pages; those count as written as a whole, and what is read behind the
    /// end of a pool's file is zeros afterwards, as behind the end of a mapped file.
    ///
    /// An offset of `u64::MAX` is the file's current position, which moves on. Pipes, sockets,
    /// terminals and the like have no other, whatever offset is given; transfers of one of them
    /// that are under way at the same time have no order between them.
    ///
    /// When all entries are under way, this waits up to a second for one of them.
    ///
    /// # Errors
    /// [`RingError::OtherClient`] when `space` is not of the ring's client or a clone of it,
    /// [`RingError::Space`] and [`RingError::Short`] when the pages cannot be held for writing,
    /// [`RingError::TooManyPieces`] and [`RingError::OnePiece`] when the pages lie in too many
    /// places, [`RingError::OffsetOverflow`], and [`RingError::Full`]: nothing was begun. After
    /// [`RingError::Ring`] the transfer may be under way; its pages are held then until it is
    /// reaped.
    pub fn read(
        &mut self,
        space: &'s AddressSpace,
        address: u64,
        len_bytes: u64,
        file: impl AsFd,
        file_offset: u64,
    ) -> Result<TransferId, RingError> {
        let range = Range { address, len_bytes, direction: Direction::ToPool };
        self.begin(space, range, &file, file_offset)
    }

    /// Writes `len_bytes` from `address` on, which may lie within a page, to `file` from
    /// `file_offset` on, as one `pwritev(2)`: a file opened with `O_APPEND` is appended to,
    /// whatever the offset. Bytes behind the end of a pool's file are written as zeros.
    ///
    /// # Errors
    /// As [`read`](Self::read), but the pages need not be writable.
    pub fn write(
        &mut self,
        space: &'s AddressSpace,
        address: u64,
        len_bytes: u64,
        file: impl AsFd,
        file_offset: u64,
    ) -> Result<TransferId, RingError> {
        let range = Range { address, len_bytes, direction: Direction::FromPool };
        self.begin(space, range, &file, file_offset)
    }

    /// Asks the kernel to end a transfer. It is reaped like any other, with `ECANCELED`, or with
    /// what it came to before; its pages are held until then. What a disk is at work on ends by
    /// itself only. False when the transfer is not under way any more.
    ///
    /// # Errors
    /// [`RingError::Ring`].
    pub fn cancel(&mut self, id: TransferId) -> Result<bool, RingError> {
        self.check_process()?;
        self.take_done();
        if !self.in_flight.contains_key(&id.0) {
            return Ok(false);
        }
        self.ask_to_cancel(id.0)?;
        unless_passing(self.ring.submit(), "cancelling")?;
        self.take_done();
        Ok(true)
    }

    /// The next transfer that the kernel is done with, waiting for as long as it takes; `None` when
    /// none is under way.
    ///
    /// # Errors
    /// [`RingError::Ring`].
    pub fn wait(&mut self) -> Result<Option<Completed>, RingError> {
        self.check_process()?;
        while self.completed.is_empty() && !self.in_flight.is_empty() {
            self.reap()?;
        }
        Ok(self.completed.pop_front())
    }

    /// As [`wait`](Self::wait), for up to `timeout`. `None` also when the time is over; then
    /// [`nr_in_flight`](Self::nr_in_flight) is not zero. Needs Linux 5.11.
    ///
    /// # Errors
    /// [`RingError::Ring`].
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<Completed>, RingError> {
        self.check_process()?;
        // So long that no clock tells it is as good as without end.
        let Some(deadline) = Instant::now().checked_add(timeout) else { return self.wait() };
        self.take_done();
        while self.completed.is_empty() && !self.in_flight.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return self.try_wait();
            }
            self.reap_within(left)?;
        }
        Ok(self.completed.pop_front())
    }

    /// The next transfer that the kernel is done with, without waiting. `None` also when those
    /// under way are not done; then [`nr_in_flight`](Self::nr_in_flight) is not zero.
    ///
    /// # Errors
    /// [`RingError::Ring`].
    pub fn try_wait(&mut self) -> Result<Option<Completed>, RingError> {
        self.check_process()?;
        self.take_done();
        if self.completed.is_empty() && !self.in_flight.is_empty() {
            // Has the kernel take what it did not before, and report what it did meanwhile.
            unless_passing(self.ring.submit(), "submitting")?;
            self.take_done();
        }
        Ok(self.completed.pop_front())
    }

    /// Transfers under way.
    #[must_use]
    pub fn nr_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn register(&mut self) -> Result<(), RingError> {
        // Before the registration: what is detached during it shows as a difference.
        let epoch = self.client.detach_epoch();
        let (base, pool_bytes) = self.client.pool_address();
        let pool_bytes = pool_bytes as u64;
        let buffer = |start: u64| iovec_at(base, start, BUFFER_BYTES.min(pool_bytes - start));
        let buffers: Vec<_> = (0..pool_bytes).step_by(BUFFER_BYTES as usize).map(buffer).collect();
        // SAFETY: the buffers are the client's mapping, which is writable and which `self.client`
        // keeps for as long as the ring.
        let registered = unsafe { self.ring.submitter().register_buffers(&buffers) };
        registered.map_err(|source| not_registered(source, pool_bytes))?;
        self.epoch = epoch;
        Ok(())
    }

    /// An error in a forked child.
    fn check_process(&self) -> Result<(), RingError> {
        if std::process::id() == self.process {
            return Ok(());
        }
        Err(SpaceError::from(pgmap::Error::Forked).into())
    }

    /// Whether the registered pool is the pool as it is now: registers it again if frames were
    /// detached since and nothing is under way. The caller has pinned already: what it pinned is
    /// detached no more.
    fn is_registered(&mut self) -> Result<bool, RingError> {
        if self.client.detach_epoch() == self.epoch {
            return Ok(true);
        }
        if !self.in_flight.is_empty() {
            return Ok(false);
        }
        match self.ring.submitter().unregister_buffers() {
            // None are registered: the last attempt failed after this.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {}
            unregistered => unregistered.map_err(refused("unregistering the pool"))?,
        }
        self.register()?;
        Ok(true)
    }

    fn hold(&self, space: &'s AddressSpace, range: Range) -> Result<PinnedPages<'s>, RingError> {
        let Range { address, len_bytes, direction } = range;
        // Each client has a mapping of its own, and both of them live: one address is one client.
        if space.client().pool_address().0 != self.client.pool_address().0 {
            return Err(RingError::OtherClient);
        }
        let flags = match direction {
            Direction::ToPool => GupFlags::WRITE.with(GupFlags::DEVICE),
            Direction::FromPool => GupFlags::DEVICE,
        };
        let in_page = address % PAGE_BYTES;
        let nr_pages = len_bytes.saturating_add(in_page).div_ceil(PAGE_BYTES);
        let pinned = space.pin(address - in_page, nr_pages, flags)?;
        let held_bytes = pinned.len_bytes().saturating_sub(in_page).min(len_bytes);
        if held_bytes < len_bytes || len_bytes == 0 {
            return Err(RingError::Short { address, held_bytes, wanted_bytes: len_bytes });
        }
        Ok(pinned)
    }

    fn begin(
        &mut self,
        space: &'s AddressSpace,
        range: Range,
        file: &impl AsFd,
        file_offset: u64,
    ) -> Result<TransferId, RingError> {
        self.check_process()?;
        self.wait_for_entry()?;
        let Range { address, len_bytes, direction } = range;
        let pinned = self.hold(space, range)?;
        let pieces = pieces_of(&pinned, address, len_bytes);
        if file_offset != CURRENT_POSITION && file_offset.checked_add(len_bytes).is_none() {
            return Err(RingError::OffsetOverflow { file_offset, len_bytes });
        }
        let file = file.as_fd().try_clone_to_owned().map_err(refused("keeping the file open"))?;
        let file = File::from(file);
        check_pieces(&pieces, &file)?;
        let tails = space.tails(address, len_bytes);
        if direction == Direction::FromPool {
            pinned.clear_tails(&tails);
        }
        let id = self.next_id;
        self.next_id += 1;
        let is_registered = self.is_registered()?;
        let entry = self.entry(&pieces, is_registered, direction, &file, file_offset).user_data(id);
        // In the books first: from the push on the kernel may touch the pages.
        let transfer = InFlight { pinned, tails, _file: file, _pieces: pieces, direction };
        self.in_flight.insert(id, transfer);
        // SAFETY: the pieces lie in the client's mapping; `in_flight` holds their frames, their
        // list and the open file until the completion, and is leaked rather than dropped before
        // that.
        let pushed = unsafe { self.push(&entry) };
        if let Err(error) = pushed {
            self.in_flight.remove(&id);
            return Err(error);
        }
        // What is not taken now is with the next call.
        unless_passing(self.ring.submit(), "submitting")?;
        Ok(TransferId(id))
    }

    /// Waits a while until a transfer more can be under way.
    fn wait_for_entry(&mut self) -> Result<(), RingError> {
        self.take_done();
        let start = Instant::now();
        while self.in_flight.len() >= self.nr_entries as usize {
            let left = ENTRY_WAIT.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(RingError::Full { nr_entries: self.nr_entries });
            }
            self.reap_within(left)?;
        }
        Ok(())
    }

    /// The entry of a transfer: by the registered pool where it is one piece of one fixed buffer,
    /// else by the addresses themselves.
    fn entry(
        &self,
        pieces: &[Piece],
        is_registered: bool,
        direction: Direction,
        file: &File,
        offset: u64,
    ) -> Entry {
        let fd = types::Fd(file.as_raw_fd());
        let fixed = match pieces {
            [piece] if is_registered => self.fixed_buffer(&piece.0),
            _ => None,
        };
        match (direction, fixed) {
            (Direction::ToPool, Some((at, len, buffer))) => {
                opcode::ReadFixed::new(fd, at, len, buffer).offset(offset).build()
            }
            (Direction::FromPool, Some((at, len, buffer))) => {
                opcode::WriteFixed::new(fd, at, len, buffer).offset(offset).build()
            }
            (Direction::ToPool, None) => {
                let (list, nr) = list_of(pieces);
                opcode::Readv::new(fd, list, nr).offset(offset).build()
            }
            (Direction::FromPool, None) => {
                let (list, nr) = list_of(pieces);
                opcode::Writev::new(fd, list, nr).offset(offset).build()
            }
        }
    }

    /// Address, length and number of the one fixed buffer that has all of `piece`.
    fn fixed_buffer(&self, piece: &libc::iovec) -> Option<(*mut u8, u32, u16)> {
        let at = piece.iov_base.cast::<u8>();
        let start = (at as usize).checked_sub(self.client.pool_address().0 as usize)? as u64;
        let (first, last) = (start, start + (piece.iov_len as u64).checked_sub(1)?);
        if last >= self.client.pool_bytes() {
            // On a further backing, of which nothing is registered.
            return None;
        }
        let buffer = first / BUFFER_BYTES;
        let len = u32::try_from(piece.iov_len).ok()?;
        (last / BUFFER_BYTES == buffer).then_some((at, len, u16::try_from(buffer).ok()?))
    }

    /// Queues an entry.
    ///
    /// # Safety
    /// What the entry speaks of must stay until its completion.
    unsafe fn push(&mut self, entry: &Entry) -> Result<(), RingError> {
        // SAFETY: the caller's promise.
        if unsafe { self.ring.submission().push(entry) }.is_ok() {
            return Ok(());
        }
        // Full of what the kernel did not take before.
        unless_passing(self.ring.submit(), "submitting")?;
        // SAFETY: the caller's promise.
        unsafe { self.ring.submission().push(entry) }
            .map_err(|_| refused("queueing")(io::Error::from_raw_os_error(libc::EAGAIN)))
    }

    fn ask_to_cancel(&mut self, id: u64) -> Result<(), RingError> {
        let entry = opcode::AsyncCancel::new(id).build().user_data(CANCEL_TAG);
        // SAFETY: the entry names a transfer by number and no memory.
        unsafe { self.push(&entry) }
    }

    /// Waits for at least one completion and takes all that are there.
    fn reap(&mut self) -> Result<(), RingError> {
        unless_passing(self.ring.submit_and_wait(1), "waiting")?;
        self.take_done();
        Ok(())
    }

    /// As [`reap`](Self::reap), for up to `timeout`, after which nothing need be there.
    fn reap_within(&mut self, timeout: Duration) -> Result<(), RingError> {
        let timeout = types::Timespec::from(timeout.min(WAIT_AT_MOST));
        let arguments = types::SubmitArgs::new().timespec(&timeout);
        let waited = self.ring.submitter().submit_with_args(1, &arguments);
        unless_passing(waited, "waiting up to a time")?;
        self.take_done();
        Ok(())
    }

    /// Takes all completions that are there.
    fn take_done(&mut self) {
        let done: Vec<_> =
            self.ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (id, result) in done {
            // A cancellation's own end says nothing: its transfer has one of its own.
            if let Some(transfer) = self.in_flight.remove(&id) {
                self.completed.push_back(transfer.end(TransferId(id), result));
            }
        }
    }

    /// Cancels what is under way and waits for its end. False if that did not come.
    fn end_all(&mut self) -> bool {
        let ids: Vec<u64> = self.in_flight.keys().copied().collect();
        for id in ids {
            // What cannot be cancelled may end by itself.
            let _asked = self.ask_to_cancel(id);
        }
        let start = Instant::now();
        while !self.in_flight.is_empty() {
            let left = DROP_WAIT.saturating_sub(start.elapsed());
            if left.is_zero() || self.reap_within(left).is_err() {
                return false;
            }
        }
        true
    }
}

impl InFlight<'_> {
    /// The kernel is done with it: lets the pages go.
    fn end(self, id: TransferId, result: i32) -> Completed {
        let dirty = match self.direction {
            Direction::ToPool => {
                self.pinned.clear_tails(&self.tails);
                Dirty::Yes
            }
            Direction::FromPool => Dirty::No,
        };
        self.pinned.unpin(dirty);
        let moved_bytes = u64::try_from(result).unwrap_or(0);
        Completed { id, moved_bytes, errno: (result < 0).then_some(-result) }
    }
}

impl Drop for PoolRing<'_> {
    fn drop(&mut self) {
        if self.check_process().is_ok() && !self.end_all() {
            // The kernel may still touch the pages, so nobody else may ever have them.
            std::mem::forget(std::mem::take(&mut self.in_flight));
            std::mem::forget(self.client.clone());
        }
    }
}

/// What a transfer is about in the address space.
#[derive(Clone, Copy)]
struct Range {
    address: u64,
    len_bytes: u64,
    direction: Direction,
}

fn iovec_at(base: *mut u8, start: u64, len_bytes: u64) -> libc::iovec {
    libc::iovec { iov_base: base.wrapping_add(start as usize).cast(), iov_len: len_bytes as usize }
}

/// A list of pieces as the kernel reads it; no longer than [`MAX_PIECES`].
fn list_of(pieces: &[Piece]) -> (*const libc::iovec, u32) {
    (pieces.as_ptr().cast(), pieces.len() as u32)
}

/// Why the pool could not be registered. `ENOMEM` is what the kernel says of `RLIMIT_MEMLOCK`, too
/// (Linux 7.1: io_uring/rsrc.c, `__io_account_mem`).
fn not_registered(source: io::Error, pool_bytes: u64) -> RingError {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    match (source.raw_os_error(), limit) {
        (Some(libc::ENOMEM | libc::EPERM), Some(limit_bytes)) => {
            RingError::MemoryLock { pool_bytes, limit_bytes, source }
        }
        _ => refused("registering the pool")(source),
    }
}

/// Lets pass what the next call may find otherwise: interrupted, too much under way just now, the
/// time over.
fn unless_passing(entered: io::Result<usize>, doing: &'static str) -> Result<(), RingError> {
    match entered.map_err(|error| (error.raw_os_error(), error)) {
        Ok(_) | Err((Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME), _)) => Ok(()),
        Err((_, error)) => Err(refused(doing)(error)),
    }
}

/// Whether one call can move the pieces as one contiguous range would be moved.
fn check_pieces(pieces: &[Piece], file: &File) -> Result<(), RingError> {
    let nr_pieces = pieces.len();
    if nr_pieces > MAX_PIECES {
        return Err(RingError::TooManyPieces { nr_pieces, most_pieces: MAX_PIECES });
    }
    let [first, _, ..] = pieces else { return Ok(()) };
    let mode = file.metadata().map_err(refused("looking at the file"))?.mode();
    // What has no type has no vectored calls of its own, as an eventfd: each piece would be a
    // message.
    if mode & libc::S_IFMT == 0 {
        return Err(RingError::OnePiece { nr_pieces, piece_bytes: first.0.iov_len as u64 });
    }
    Ok(())
}

/// `len_bytes` from `address` on in contiguous pieces, in order of address.
fn pieces_of(pinned: &PinnedPages<'_>, address: u64, len_bytes: u64) -> Vec<Piece> {
    let end = address + len_bytes;
    let mut pieces: Vec<Piece> = Vec::new();
    for segment in pinned.segments() {
        // Only the first page begins before the transfer.
        let skipped_bytes = address.saturating_sub(segment.address);
        let at = segment.ptr.wrapping_add(skipped_bytes as usize);
        let from = segment.address + skipped_bytes;
        let len_bytes = (segment.address + segment.len_bytes).min(end).saturating_sub(from);
        match pieces.last_mut() {
            _ if len_bytes == 0 => {}
            Some(Piece(last)) if last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == at => {
                last.iov_len += len_bytes as usize;
            }
            _ => pieces.push(Piece(iovec_at(at, 0, len_bytes))),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::PoolRing;

    #[test]
    fn a_ring_may_go_to_another_thread() {
        fn goes_anywhere<T: Send>() {}
        goes_anywhere::<PoolRing<'static>>();
    }
}
