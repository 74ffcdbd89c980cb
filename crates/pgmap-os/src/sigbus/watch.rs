//! Machine checks of a range of addresses, handed from the signal handler to ordinary code.
//!
//! A [`FailureWatch`] owns one slot of a fixed table. The handler looks for slots whose range the
//! broken memory touches, puts the failure into a free cell of each, and rings its bell. One
//! failure is one word, so that a cell needs no protocol of its own; one that is already there is
//! not put in twice.
//!
//! # States
//! ```text
//!          watch()             watch()                drop             no visitor left
//!   Free ----------> Opening ----------> Watching ----------> Closing -----------------> Free
//!                                                                |
//!                                         a visitor does not leave: lost for good
//! ```
//!
//! # Who may touch what
//! The range and the bell's number: written by the watch while Opening, read by visitors that saw
//! Watching after they had entered. A cell: filled by visitors, emptied by the watch. A *visitor*
//! is a run of the handler on any thread; it enters by counting itself and leaves by counting
//! itself out, in a bounded number of steps, and may be interrupted by another visitor on its own
//! thread.
//!
//! # Orderings
//! - writer `state = Watching` (Release), reader `state == Watching` (Acquire): range, bell, cells;
//! - writer `visitors -= 1` (Release), reader `visitors == 0` (Acquire): the visitor's last use;
//! - `visitors += 1; fence(SeqCst); read state` against `state = Closing; fence(SeqCst); read
//!   visitors`: not both miss the other.
//!
//! # Lost races
//! - *Visit against drop.* If the visitor counts itself first, the drop sees it and waits; the
//!   failure is lost with the watch. If the drop is first, the visitor sees Closing (or the next
//!   Watching, with all that belongs to it) and touches nothing.
//! - *Fill against `next`.* If the fill is first, `next` takes it and the bell rings for nothing.
//!   If `next` is first, it finds nothing and the bell rings afterwards: clear first, look
//!   afterwards.
//!
//! # Differs from Linux
//! The kernel queues one SIGBUS per failure and thread; here one that is pending already is merged,
//! and those that find every cell full are only counted ([`FailureWatch::nr_lost`]).

// UNSAFETY: the handler rings a bell that it knows by its number only.
#![allow(unsafe_code)]

use crate::{Doorbell, OsError};
use rustix::io::Errno;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// At most this many ranges are watched by one process.
pub const MAX_WATCHES: usize = 64;

/// At most this many different failures wait for one watch to collect them.
pub const MAX_PENDING: usize = 32;

/// How often a drop yields to visitors before it gives its slot up.
const MAX_YIELDS: usize = 10_000;

/// Memory of a watched range that broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryFailure {
    /// Where it starts, in bytes from the start of the range.
    pub offset_bytes: u64,
    /// How much of the range is lost: the page, huge or not, cut to the range.
    pub len_bytes: u64,
    /// Whether somebody touched it.
    pub kind: FailureKind,
}

/// How a failure showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// A thread touched the memory and cannot go on (`BUS_MCEERR_AR`).
    ActionRequired,
    /// The machine found it by itself; nobody has read it yet (`BUS_MCEERR_AO`).
    ActionOptional,
}

/// The right to hear of failures in one range of addresses. Poll its descriptor for reading.
#[derive(Debug)]
pub struct FailureWatch {
    slot: &'static WatchSlot,
    range: Range<usize>,
    /// Closed only once no visitor can ring it any more.
    bell: ManuallyDrop<Doorbell>,
}

/// Watches `addresses`, usually those of a mapping, from now on.
///
/// Drop the watch before what is mapped there: addresses are all it knows.
///
/// # Errors
/// `EINVAL` for an empty range; `ENOSPC` when [`MAX_WATCHES`] are in use; `EMFILE` or `ENFILE` when
/// descriptors run out.
pub fn watch(addresses: Range<usize>) -> Result<FailureWatch, OsError> {
    let failed = |errno| {
        let Range { start, end } = addresses;
        OsError::new("watch", format!("addresses {start:#x}..{end:#x} for failures"), errno)
    };
    if addresses.is_empty() {
        return Err(failed(Errno::INVAL));
    }
    super::install()?;
    let bell = Doorbell::new()?;
    let slot = SLOTS.iter().find(|slot| slot.open(&addresses, bell.as_fd()));
    let Some(slot) = slot else {
        return Err(failed(Errno::NOSPC)
            .with_advice(format!("a process may watch {MAX_WATCHES} ranges; drop one")));
    };
    Ok(FailureWatch { slot, range: addresses, bell: ManuallyDrop::new(bell) })
}

impl FailureWatch {
    /// Takes one failure that was not taken before. Never waits. In no particular order.
    ///
    /// When the descriptor is readable: [`Self::clear_bell`], then this until it says `None`.
    pub fn next(&self) -> Option<MemoryFailure> {
        let taken = self.slot.cells.iter().find_map(Cell::take)?;
        Some(taken.within(&self.range))
    }

    /// Silences the descriptor. Clear first, look afterwards.
    ///
    /// # Errors
    /// As [`Doorbell::clear`].
    pub fn clear_bell(&self) -> Result<bool, OsError> {
        self.bell.clear()
    }

    /// Returns how many failures found [`MAX_PENDING`] others waiting, since the watch began. If it
    /// is not 0, more of the range is broken than [`Self::next`] can say.
    pub fn nr_lost(&self) -> u64 {
        // Relaxed: a count that nothing hangs on.
        self.slot.nr_lost.load(Ordering::Relaxed)
    }
}

impl AsFd for FailureWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl Drop for FailureWatch {
    fn drop(&mut self) {
        // Else a visitor may still ring, and its number must not become somebody else's.
        if self.slot.close() {
            // SAFETY: the watch is going, so the bell is dropped here only and used no more.
            unsafe { ManuallyDrop::drop(&mut self.bell) };
        }
    }
}

/// Leaves a failure for every watch that it touches and says whether there was one. Called by the
/// signal handler alone: no locks, no allocation, no panic.
pub(super) fn tell(address: usize, address_lsb: i16, kind: FailureKind) -> bool {
    let failure = Failure::new(address, address_lsb, kind);
    let mut is_told = false;
    for slot in &SLOTS {
        is_told |= slot.visit(failure);
    }
    is_told
}

/// What the signal says: the memory of one page, whose size is a power of two.
#[derive(Debug, Clone, Copy)]
struct Failure {
    /// The first address of the page.
    start: usize,
    log2_len: u32,
    kind: FailureKind,
}

impl Failure {
    /// A size below 4 KiB counts as 4 KiB, the least that the kernel takes away.
    fn new(address: usize, address_lsb: i16, kind: FailureKind) -> Self {
        let log2_len = u32::from(address_lsb.clamp(LOG2_MIN_PAGE, LOG2_MAX_PAGE).unsigned_abs());
        Self { start: address >> log2_len << log2_len, log2_len, kind }
    }

    /// The address after the last one.
    fn end(self) -> usize {
        self.start.saturating_add(1 << self.log2_len)
    }

    fn touches(self, range: &Range<usize>) -> bool {
        self.start < range.end && range.start < self.end()
    }

    fn within(self, range: &Range<usize>) -> MemoryFailure {
        let (start, end) = (self.start.max(range.start), self.end().min(range.end));
        MemoryFailure {
            offset_bytes: start.saturating_sub(range.start) as u64,
            len_bytes: end.saturating_sub(start) as u64,
            kind: self.kind,
        }
    }
}

const LOG2_MIN_PAGE: i16 = 12;
const LOG2_MAX_PAGE: i16 = 62;

/// One failure in a word, or 0 for none.
///
/// The page's address keeps its place, bits 12 to 63. Of the twelve low bits, which an address of a
/// page has none of, 0 to 5 are the size, 6 is the kind, 7 is 1 in every failure.
#[derive(Debug)]
struct Cell(AtomicU64);

impl Cell {
    const EMPTY: u64 = 0;
    const SIZE_BITS: u64 = 63;
    const IS_REQUIRED: u64 = 1 << 6;
    const IS_FULL: u64 = 1 << 7;
    const ADDRESS_BITS: u64 = !0xfff;

    fn word(failure: Failure) -> u64 {
        let kind = match failure.kind {
            FailureKind::ActionRequired => Self::IS_REQUIRED,
            FailureKind::ActionOptional => 0,
        };
        failure.start as u64 | u64::from(failure.log2_len) | kind | Self::IS_FULL
    }

    /// Returns true if the failure is in this cell now, put by us or by another before.
    fn put(&self, word: u64) -> bool {
        // Release: publishes nothing but the word itself; pairs with Acquire in `take`.
        match self.0.compare_exchange(Self::EMPTY, word, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => true,
            Err(other) => other == word,
        }
    }

    fn take(&self) -> Option<Failure> {
        // Acquire: pairs with Release in `put`; the word is all there is.
        let word = self.0.swap(Self::EMPTY, Ordering::Acquire);
        if word == Self::EMPTY {
            return None;
        }
        let kind = match word & Self::IS_REQUIRED {
            0 => FailureKind::ActionOptional,
            _ => FailureKind::ActionRequired,
        };
        let start = (word & Self::ADDRESS_BITS) as usize;
        Some(Failure { start, log2_len: (word & Self::SIZE_BITS) as u32, kind })
    }
}

const FREE: u32 = 0;
const OPENING: u32 = 1;
const WATCHING: u32 = 2;
const CLOSING: u32 = 3;

static SLOTS: [WatchSlot; MAX_WATCHES] = [const { WatchSlot::new() }; MAX_WATCHES];

#[derive(Debug)]
struct WatchSlot {
    state: AtomicU32,
    visitors: AtomicU32,
    start: AtomicUsize,
    end: AtomicUsize,
    bell: AtomicI32,
    nr_lost: AtomicU64,
    cells: [Cell; MAX_PENDING],
}

impl WatchSlot {
    const fn new() -> Self {
        Self {
            state: AtomicU32::new(FREE),
            visitors: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            bell: AtomicI32::new(-1),
            nr_lost: AtomicU64::new(0),
            cells: [const { Cell(AtomicU64::new(Cell::EMPTY)) }; MAX_PENDING],
        }
    }

    /// Takes the slot if it is free.
    fn open(&self, range: &Range<usize>, bell: BorrowedFd<'_>) -> bool {
        // Acquire: pairs with Release in `close`; what was stored before comes before what follows.
        let taken =
            self.state.compare_exchange(FREE, OPENING, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_err() {
            return false;
        }
        // Relaxed: published by the store of the state below; nobody reads them before.
        self.start.store(range.start, Ordering::Relaxed);
        self.end.store(range.end, Ordering::Relaxed);
        self.bell.store(bell.as_raw_fd(), Ordering::Relaxed);
        self.nr_lost.store(0, Ordering::Relaxed);
        for cell in &self.cells {
            cell.0.store(Cell::EMPTY, Ordering::Relaxed);
        }
        // Release: publishes range, bell and cells; pairs with Acquire in `visit`.
        self.state.store(WATCHING, Ordering::Release);
        true
    }

    /// Ends the watch and says whether the slot is free again.
    fn close(&self) -> bool {
        // Relaxed: ordered by the fence; takes nothing away yet.
        self.state.store(CLOSING, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `visit`, see the head of the file.
        fence(Ordering::SeqCst);
        for _ in 0..MAX_YIELDS {
            // Acquire: pairs with Release in `visit`; the visitor's uses lie before what follows.
            if self.visitors.load(Ordering::Acquire) == 0 {
                // Release: all uses lie before the next watch of the slot; pairs with `open`.
                self.state.store(FREE, Ordering::Release);
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    /// Leaves the failure here if it touches the range, and says so.
    fn visit(&self, failure: Failure) -> bool {
        // Relaxed: ordered by the fence.
        self.visitors.fetch_add(1, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `close`, see the head of the file.
        fence(Ordering::SeqCst);
        // Acquire: range, bell and cells; pairs with Release in `open`.
        let is_watching = self.state.load(Ordering::Acquire) == WATCHING;
        let is_told = is_watching && self.take_in(failure);
        // Release: the uses above lie before it; pairs with Acquire in `close`.
        self.visitors.fetch_sub(1, Ordering::Release);
        is_told
    }

    /// For a visitor that saw Watching.
    fn take_in(&self, failure: Failure) -> bool {
        // Relaxed: ordered by the state that the visitor read.
        let range = self.start.load(Ordering::Relaxed)..self.end.load(Ordering::Relaxed);
        if !failure.touches(&range) {
            return false;
        }
        let word = Cell::word(failure);
        if !self.cells.iter().any(|cell| cell.put(word)) {
            // Relaxed: a count that nothing hangs on.
            self.nr_lost.fetch_add(1, Ordering::Relaxed);
        }
        // Relaxed: as the range.
        ring(self.bell.load(Ordering::Relaxed));
        true
    }
}

/// Rings by number. A bell at its limit counts as rung; nothing else can go wrong, and if it did
/// there would be nobody to tell.
fn ring(bell: RawFd) {
    // SAFETY: the watch keeps the descriptor open until no visitor is left, and we are one.
    let bell = unsafe { BorrowedFd::borrow_raw(bell) };
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use FailureKind::{ActionOptional, ActionRequired};
    use std::time::{Duration, Instant};

    /// Tests of one process share the table: each takes addresses of its own, none of them mapped.
    fn addresses(test: usize) -> Range<usize> {
        let start = test << 40;
        start..start + 0x4000
    }

    #[test]
    fn failure_is_cut_to_the_range_and_told_once() {
        let range = addresses(1);
        let watch = watch(range.start + 0x1000..range.end).unwrap();
        assert_eq!(watch.next(), None);
        assert!(tell(range.start + 0x2345, 12, ActionOptional));
        assert!(tell(range.start + 0x2000, 12, ActionOptional));
        assert!(watch.clear_bell().unwrap());
        let page = MemoryFailure { offset_bytes: 0x1000, len_bytes: 4096, kind: ActionOptional };
        assert_eq!((watch.next(), watch.next()), (Some(page), None));
        assert!(tell(range.end - 1, 21, ActionRequired), "a huge page around all of it");
        let all = MemoryFailure { offset_bytes: 0, len_bytes: 0x3000, kind: ActionRequired };
        assert_eq!((watch.next(), watch.next()), (Some(all), None));
        assert_eq!(watch.nr_lost(), 0);
    }

    #[test]
    fn failure_elsewhere_is_not_told() {
        let range = addresses(2);
        let watch = watch(range.clone()).unwrap();
        assert!(!tell(range.start - 1, 12, ActionOptional));
        assert!(!tell(range.end, 12, ActionOptional));
        assert!(!watch.clear_bell().unwrap());
        drop(watch);
        assert!(!tell(range.start, 12, ActionOptional), "nobody watches any more");
    }

    #[test]
    fn odd_sizes_of_a_signal_are_taken_for_a_page() {
        let range = addresses(3);
        let watch = watch(range.clone()).unwrap();
        for lsb in [i16::MIN, -1, 0, 11] {
            assert!(tell(range.start + 1, lsb, ActionOptional));
            assert_eq!(watch.next().map(|failure| failure.len_bytes), Some(4096), "lsb {lsb}");
        }
    }

    /// Not told: a page that large touches the ranges of all other tests as well, which fail then.
    #[test]
    fn size_beyond_all_memory_is_cut_to_the_range() {
        let range = addresses(3);
        let failure = Failure::new(range.start, i16::MAX, ActionOptional);
        assert!(failure.touches(&range));
        let all = MemoryFailure { offset_bytes: 0, len_bytes: 0x4000, kind: ActionOptional };
        assert_eq!(failure.within(&range), all);
    }

    #[test]
    fn failures_beyond_the_bound_are_counted() {
        let start = addresses(4).start;
        let watch = watch(start..start + (MAX_PENDING + 3) * 4096).unwrap();
        for page in 0..MAX_PENDING + 3 {
            assert!(tell(start + page * 4096, 12, ActionRequired));
        }
        assert_eq!(watch.nr_lost(), 3);
        assert_eq!(std::iter::from_fn(|| watch.next()).count(), MAX_PENDING);
        assert!(tell(start, 12, ActionRequired), "there is room again");
        assert!(watch.next().is_some());
    }

    #[test]
    fn two_watches_of_one_page_both_hear_of_it() {
        let range = addresses(5);
        let watches = [watch(range.clone()).unwrap(), watch(range.start..range.end).unwrap()];
        assert!(tell(range.start, 12, ActionOptional));
        assert!(watches.iter().all(|watch| watch.next().is_some()));
    }

    #[test]
    fn visitor_that_does_not_leave_keeps_slot_and_bell() {
        let range = addresses(8);
        let watch = watch(range.clone()).unwrap();
        let (slot, bell) = (watch.slot, watch.as_fd().as_raw_fd());
        slot.visitors.fetch_add(1, Ordering::Relaxed);
        drop(watch);
        assert_eq!(slot.state.load(Ordering::Relaxed), CLOSING, "not free for others");
        let target = std::fs::read_link(format!("/proc/self/fd/{bell}")).unwrap();
        assert_eq!(target.to_str(), Some("anon_inode:[eventfd]"), "the visitor may ring");
        assert!(!tell(range.start, 12, ActionOptional), "later visitors find nobody");
        slot.visitors.fetch_sub(1, Ordering::Relaxed);
    }

    #[test]
    fn empty_range_is_refused() {
        assert_eq!(watch(4096..4096).unwrap_err().errno(), libc::EINVAL);
    }

    /// A failure left for a watch that has ended, or for its slot's next user, would show as a
    /// wrong offset.
    #[test]
    fn watches_come_and_go_while_failures_are_told() {
        const NR_WATCHES: usize = 100;
        const MAX_LOOKS: usize = 100;
        let until = Instant::now() + Duration::from_secs(60);
        let (even, odd) = (addresses(6), addresses(7));
        let listen = || {
            let mut nr_heard = 0;
            for turn in 0..NR_WATCHES {
                let (range, offset) = if turn % 2 == 0 { (&even, 0x1000) } else { (&odd, 0x2000) };
                let watch = watch(range.clone()).unwrap();
                let mut nr_looks = 0;
                // One at least must hear something, however long the other thread gets no
                // processor.
                let heard = loop {
                    std::thread::yield_now();
                    nr_looks += 1;
                    let heard = watch.next();
                    let is_enough =
                        nr_looks >= MAX_LOOKS && (nr_heard > 0 || until < Instant::now());
                    if heard.is_some() || is_enough {
                        break heard;
                    }
                };
                if let Some(failure) = heard {
                    assert_eq!(failure.offset_bytes, offset, "turn {turn}");
                    nr_heard += 1;
                }
            }
            nr_heard
        };
        let nr_heard = std::thread::scope(|scope| {
            let listener = scope.spawn(listen);
            while !listener.is_finished() {
                tell(even.start + 0x1000, 12, ActionOptional);
                tell(odd.start + 0x2000, 12, ActionOptional);
            }
            listener.join().unwrap()
        });
        println!("{nr_heard} of {NR_WATCHES} watches heard of a failure");
        assert!(nr_heard > 0);
    }
}
