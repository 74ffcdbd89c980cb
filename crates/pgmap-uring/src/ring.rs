//! The ring: registration, transfers, completions.

// UNSAFETY: a transfer is an address given to the kernel, which reads or writes there later, by itself.
#![allow(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};
use pgmap::Client;
use pgmap::mm::gup::{Dirty, GupFlags};
use pgmap::mm::level::PAGE_BYTES;
use pgmap::space::{AddressSpace, PinnedPages, SpaceError};

use crate::error::RingError;

/// The most the kernel takes as one fixed buffer (Linux 7.1: io_uring/rsrc.c).
const BUFFER_BYTES: u64 = 1 << 30;
/// The most that one entry moves: its length has 32 bits and the kernel cuts at 2 GiB less a page.
const PIECE_BYTES: u64 = 1 << 30;

/// The offset that stands for a file's current position (man 2 io_uring_enter, IORING_OP_READV).
const CURRENT_POSITION: u64 = u64::MAX;

/// The longest that one call waits; far from where the kernel's clock overflows.
const WAIT_AT_MOST: Duration = Duration::from_secs(3600);

/// Bits of an entry's tag that number the piece. The kernel makes rings of up to 2^15 entries
/// (Linux 7.1: io_uring/io_uring.h, IORING_MAX_ENTRIES), and a transfer has no more pieces.
const PIECE_BITS: u32 = 16;

/// Names a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId(u64);

/// A transfer that the kernel is done with. Its pages are let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completed {
    /// Which.
    pub id: TransferId,
    /// Bytes from the start of the transfer on that were moved for certain: up to the end of the first
    /// piece of which less than all was moved. Fewer than asked for do not mean that the file ended;
    /// a transfer that goes on behind them tells, by moving none. Bytes further on may have been
    /// moved too, since the pieces of a transfer are moved in any order.
    pub moved_bytes: u64,
    /// The Linux error number of the first piece, in order of address, that failed.
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
    /// Kept open until the kernel has taken it.
    _file: OwnedFd,
    direction: Direction,
    /// Pieces that the kernel is not done with.
    nr_left: usize,
    outcomes: Vec<Outcome>,
}

/// A part of a transfer that lies in one fixed buffer.
struct Piece {
    pool_offset: u64,
    len_bytes: u64,
    range_offset: u64,
}

/// What came of a piece.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    len_bytes: u64,
    /// Bytes moved, or a negative error number; nothing yet while the kernel is not done.
    result: i32,
}

/// A ring with the pool as its fixed buffers. Dropping it waits for the transfers under way. In a forked
/// child it is good for nothing but to be dropped, which does nothing.
pub struct PoolRing<'s> {
    ring: IoUring,
    client: Client,
    nr_entries: u32,
    /// [`Client::detach_epoch`] before the pool was registered.
    epoch: u64,
    next_id: u64,
    nr_pieces: usize,
    in_flight: HashMap<u64, InFlight<'s>>,
    completed: VecDeque<Completed>,
    /// The process that made it. A forked child has the ring's memory in common with its parent, and would
    /// take the parent's completions.
    process: u32,
}

impl std::fmt::Debug for PoolRing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { nr_entries, epoch, nr_pieces, .. } = self;
        f.debug_struct("PoolRing")
            .field("nr_entries", nr_entries)
            .field("epoch", epoch)
            .field("nr_pieces", nr_pieces)
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
    /// [`RingError::Ring`] when the kernel has no io_uring for this process, or no memory to lock.
    pub fn new(client: &Client, nr_entries: u32) -> Result<Self, RingError> {
        let ring = IoUring::new(nr_entries).map_err(refused("making the ring"))?;
        let mut made = Self {
            ring,
            client: client.clone(),
            nr_entries,
            epoch: 0,
            next_id: 0,
            nr_pieces: 0,
            in_flight: HashMap::new(),
            completed: VecDeque::new(),
            process: std::process::id(),
        };
        made.register()?;
        Ok(made)
    }

    /// Reads `len_bytes` of `file` from `file_offset` on to `address`. Both ends may lie within pages;
    /// those count as written as a whole.
    ///
    /// An offset of `u64::MAX` is the file's current position, which moves on: for pipes, sockets and
    /// one transfer at a time. What lies in several pieces is moved in any order and needs an offset.
    ///
    /// # Errors
    /// [`RingError::OtherClient`] when `space` is not of the ring's client or a clone of it,
    /// [`RingError::Space`] and [`RingError::Short`] when the pages cannot be held for writing,
    /// [`RingError::TooManyPieces`], [`RingError::CurrentPosition`] for several pieces there, and
    /// [`RingError::OffsetOverflow`]: nothing was begun. After [`RingError::Ring`] the transfer may be
    /// under way; its pages are held then until it is reaped.
    pub fn read(
        &mut self,
        space: &'s AddressSpace,
        address: u64,
        len_bytes: u64,
        file: impl AsFd,
        file_offset: u64,
    ) -> Result<TransferId, RingError> {
        let flags = GupFlags::WRITE.with(GupFlags::DEVICE);
        let pinned = self.hold(space, address, len_bytes, flags)?;
        let pieces = pieces_of(&pinned, address, len_bytes);
        self.begin(pinned, &pieces, Direction::ToPool, &file, file_offset)
    }

    /// Writes `len_bytes` from `address` on, which may lie within a page, to `file` from `file_offset`
    /// on.
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
        let pinned = self.hold(space, address, len_bytes, GupFlags::DEVICE)?;
        let pieces = pieces_of(&pinned, address, len_bytes);
        self.begin(pinned, &pieces, Direction::FromPool, &file, file_offset)
    }

    /// The next transfer that the kernel is done with, waiting for it; none when none is under way.
    ///
    /// # Errors
    /// [`RingError::Ring`].
    pub fn wait(&mut self) -> Result<Option<Completed>, RingError> {
        self.check_process()?;
        while self.completed.is_empty() && self.nr_pieces > 0 {
            self.reap()?;
        }
        Ok(self.completed.pop_front())
    }

    /// As [`wait`](Self::wait), for up to `timeout`. None also when the time is over; then
    /// [`nr_in_flight`](Self::nr_in_flight) is not zero. Needs Linux 5.11.
    ///
    /// # Errors
    /// [`RingError::Ring`].
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<Completed>, RingError> {
        self.check_process()?;
        // So long that no clock tells it is as good as for ever.
        let Some(deadline) = Instant::now().checked_add(timeout) else { return self.wait() };
        self.take_done();
        while self.completed.is_empty() && self.nr_pieces > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return self.try_wait();
            }
            self.reap_within(left.min(WAIT_AT_MOST))?;
        }
        Ok(self.completed.pop_front())
    }

    /// The next transfer that the kernel is done with, without waiting. None also when those under way
    /// are not done; then [`nr_in_flight`](Self::nr_in_flight) is not zero.
    ///
    /// # Errors
    /// [`RingError::Ring`].
    pub fn try_wait(&mut self) -> Result<Option<Completed>, RingError> {
        self.check_process()?;
        self.take_done();
        if self.completed.is_empty() && self.nr_pieces > 0 {
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
        let (base, len_bytes) = self.client.pool_address();
        let len_bytes = len_bytes as u64;
        let buffer = |start: u64| libc_iovec(base, start, BUFFER_BYTES.min(len_bytes - start));
        let buffers: Vec<_> = (0..len_bytes).step_by(BUFFER_BYTES as usize).map(buffer).collect();
        // SAFETY: the buffers are the client's mapping, which is writable and which `self.client`
        // keeps for as long as the ring.
        unsafe { self.ring.submitter().register_buffers(&buffers) }
            .map_err(refused("registering the pool"))?;
        self.epoch = epoch;
        Ok(())
    }

    /// An error in a forked child.
    fn check_process(&self) -> Result<(), RingError> {
        if std::process::id() == self.process {
            return Ok(());
        }
        Err(SpaceError::from(pgmap::Error::Detached).into())
    }

    /// Registers the pool anew if frames were detached since. The caller has pinned already: what it
    /// pinned is detached no more.
    fn renew(&mut self) -> Result<(), RingError> {
        if self.client.detach_epoch() == self.epoch {
            return Ok(());
        }
        while self.nr_pieces > 0 {
            self.reap()?;
        }
        match self.ring.submitter().unregister_buffers() {
            // None are registered: the last attempt failed after this.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {}
            unregistered => unregistered.map_err(refused("unregistering the pool"))?,
        }
        self.register()
    }

    fn hold(
        &self,
        space: &'s AddressSpace,
        address: u64,
        len_bytes: u64,
        flags: GupFlags,
    ) -> Result<PinnedPages<'s>, RingError> {
        self.check_process()?;
        // Each client has a mapping of its own, and both of them live: one address is one client.
        if space.client().pool_address().0 != self.client.pool_address().0 {
            return Err(RingError::OtherClient);
        }
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
        pinned: PinnedPages<'s>,
        pieces: &[Piece],
        direction: Direction,
        file: &impl AsFd,
        file_offset: u64,
    ) -> Result<TransferId, RingError> {
        if pieces.len() > self.nr_entries as usize {
            let (nr_pieces, nr_entries) = (pieces.len(), self.nr_entries);
            return Err(RingError::TooManyPieces { nr_pieces, nr_entries });
        }
        check_offsets(pieces, file_offset)?;
        let file = file.as_fd().try_clone_to_owned().map_err(refused("keeping the file open"))?;
        self.renew()?;
        while self.nr_pieces + pieces.len() > self.nr_entries as usize {
            self.reap()?;
        }
        let id = self.next_id;
        self.next_id += 1;
        let fd = types::Fd(file.as_raw_fd());
        let tags = (id << PIECE_BITS)..;
        let entry = |(piece, tag)| self.entry(piece, direction, fd, file_offset).user_data(tag);
        let entries: Vec<_> = pieces.iter().zip(tags).map(entry).collect();
        let outcome = |piece: &Piece| Outcome { len_bytes: piece.len_bytes, result: 0 };
        let outcomes = pieces.iter().map(outcome).collect();
        // In the books first: from the push on the kernel may touch the pages.
        let nr_left = pieces.len();
        let transfer = InFlight { pinned, _file: file, direction, nr_left, outcomes };
        self.in_flight.insert(id, transfer);
        // SAFETY: the pieces lie in the registered mapping; `in_flight` holds their frames and the
        // open file until the completions, and is leaked rather than dropped before that.
        let pushed = unsafe { self.ring.submission().push_multiple(&entries) };
        if pushed.is_err() {
            // Not reached: no more pieces are under way than there are entries. None was pushed.
            self.in_flight.remove(&id);
            return Err(refused("queueing")(io::Error::from_raw_os_error(libc::EAGAIN)));
        }
        self.nr_pieces += nr_left;
        // What is not taken now is with the next call.
        unless_passing(self.ring.submit(), "submitting")?;
        Ok(TransferId(id))
    }

    fn entry(
        &self,
        piece: &Piece,
        direction: Direction,
        fd: types::Fd,
        file_offset: u64,
    ) -> io_uring::squeue::Entry {
        let pointer = self.client.pool_address().0.wrapping_add(piece.pool_offset as usize);
        let buffer = (piece.pool_offset / BUFFER_BYTES) as u16;
        // No overflow: `check_offsets`.
        let (len, offset) = (piece.len_bytes as u32, file_offset + piece.range_offset);
        match direction {
            Direction::ToPool => {
                opcode::ReadFixed::new(fd, pointer, len, buffer).offset(offset).build()
            }
            Direction::FromPool => {
                opcode::WriteFixed::new(fd, pointer, len, buffer).offset(offset).build()
            }
        }
    }

    /// Waits for at least one completion and takes all that are there.
    fn reap(&mut self) -> Result<(), RingError> {
        unless_passing(self.ring.submit_and_wait(1), "waiting")?;
        self.take_done();
        Ok(())
    }

    /// As [`reap`](Self::reap), for up to `timeout`, after which nothing need be there.
    fn reap_within(&mut self, timeout: Duration) -> Result<(), RingError> {
        let timeout = types::Timespec::from(timeout);
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
        for (tag, result) in done {
            self.finish_piece(tag, result);
        }
    }

    fn finish_piece(&mut self, tag: u64, result: i32) {
        let (id, piece) = (tag >> PIECE_BITS, tag % (1 << PIECE_BITS));
        let Some(transfer) = self.in_flight.get_mut(&id) else { return };
        self.nr_pieces -= 1;
        transfer.nr_left -= 1;
        if let Some(outcome) = transfer.outcomes.get_mut(piece as usize) {
            outcome.result = result;
        }
        if transfer.nr_left == 0
            && let Some(transfer) = self.in_flight.remove(&id)
        {
            let InFlight { pinned, direction, outcomes, .. } = transfer;
            let dirty = if direction == Direction::ToPool { Dirty::Yes } else { Dirty::No };
            pinned.unpin(dirty);
            self.completed.push_back(completed(TransferId(id), &outcomes));
        }
    }
}

impl Drop for PoolRing<'_> {
    fn drop(&mut self) {
        if self.check_process().is_err() {
            return;
        }
        while self.nr_pieces > 0 {
            if self.reap().is_err() {
                // The kernel may still touch the pages, so nobody else may ever have them.
                std::mem::forget(std::mem::take(&mut self.in_flight));
                std::mem::forget(self.client.clone());
                return;
            }
        }
    }
}

fn libc_iovec(base: *mut u8, start: u64, len_bytes: u64) -> libc::iovec {
    libc::iovec { iov_base: base.wrapping_add(start as usize).cast(), iov_len: len_bytes as usize }
}

/// Lets pass what the next call may find otherwise: interrupted, too much under way just now, the time
/// over.
fn unless_passing(entered: io::Result<usize>, doing: &'static str) -> Result<(), RingError> {
    match entered.map_err(|error| (error.raw_os_error(), error)) {
        Ok(_) | Err((Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME), _)) => Ok(()),
        Err((_, error)) => Err(refused(doing)(error)),
    }
}

/// What came of a transfer whose pieces, in order of address, ended so.
fn completed(id: TransferId, outcomes: &[Outcome]) -> Completed {
    let mut moved_bytes = 0;
    for outcome in outcomes {
        let piece_bytes = u64::try_from(outcome.result).unwrap_or(0);
        moved_bytes += piece_bytes;
        if piece_bytes < outcome.len_bytes {
            break;
        }
    }
    let failed = outcomes.iter().find(|outcome| outcome.result < 0);
    Completed { id, moved_bytes, errno: failed.map(|outcome| -outcome.result) }
}

/// Whether each piece has an offset in the file, other than the one that says "current position".
fn check_offsets(pieces: &[Piece], file_offset: u64) -> Result<(), RingError> {
    if let (CURRENT_POSITION, [first, _, ..]) = (file_offset, pieces) {
        let (nr_pieces, piece_bytes) = (pieces.len(), first.len_bytes);
        return Err(RingError::CurrentPosition { nr_pieces, piece_bytes });
    }
    let len_bytes = pieces.iter().map(|piece| piece.len_bytes).sum();
    if file_offset != CURRENT_POSITION && file_offset.checked_add(len_bytes).is_none() {
        return Err(RingError::OffsetOverflow { file_offset, len_bytes });
    }
    Ok(())
}

/// `len_bytes` from `address` on in pieces, each in one fixed buffer, in order of address.
fn pieces_of(pinned: &PinnedPages<'_>, address: u64, len_bytes: u64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut range_offset = 0;
    for segment in pinned.segments() {
        // Only the first page begins before the transfer.
        let skipped_bytes = address.saturating_sub(segment.address);
        let mut pool_offset = segment.pool_offset + skipped_bytes;
        let mut left_bytes = (segment.len_bytes - skipped_bytes).min(len_bytes - range_offset);
        while left_bytes > 0 {
            let in_buffer = BUFFER_BYTES - pool_offset % BUFFER_BYTES;
            let len_bytes = left_bytes.min(in_buffer).min(PIECE_BYTES);
            pieces.push(Piece { pool_offset, len_bytes, range_offset });
            pool_offset += len_bytes;
            range_offset += len_bytes;
            left_bytes -= len_bytes;
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::{Outcome, TransferId, completed};

    #[test]
    fn what_is_counted_ends_in_the_first_piece_that_is_not_whole() {
        let counted = |results: [i32; 3]| {
            let outcomes = results.map(|result| Outcome { len_bytes: 4096, result });
            let done = completed(TransferId(0), &outcomes);
            (done.moved_bytes, done.errno)
        };
        assert_eq!(counted([4096, 4096, 4096]), (12288, None));
        assert_eq!(counted([4096, 100, 4096]), (4196, None));
        assert_eq!(counted([4096, 0, 4096]), (4096, None));
        assert_eq!(counted([4096, -5, 4096]), (4096, Some(5)));
        assert_eq!(counted([-5, 4096, -28]), (0, Some(5)));
        assert_eq!(counted([1, -5, 0]), (1, Some(5)));
    }
}
