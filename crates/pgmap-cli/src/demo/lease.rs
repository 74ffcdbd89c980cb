//! The board that all processes of the demo share, and on it the usual way to guard a block: a
//! lease that times out.
//!
//! The pgmap half of the demo uses the board only to say which generation of a block is current.
//!
//! # States
//!
//! ```text
//!   block:  nothing ── publish ──▶ generation n ── begin_refill ──▶ refilling n
//!           refilling n ── publish ──▶ generation n + 1
//!                                       ▲                               │
//!                                       └──────── leased after all ─────┘
//!   lease:  none ── take_lease ──▶ block b until t ── give_back, or t passes ──▶ none
//! ```
//!
//! # Who may touch what
//!
//! The writer alone stores generations. Each reader stores its own lease word; the writer reads all
//! of them. The parent alone stores the phase.
//!
//! # Orderings
//!
//! `publish` stores the generation with Release, after the block's bytes; `generation` loads it
//! with Acquire, before they are read. A reader stores its lease, fences, and loads the generation
//! again; the writer stores "refilling", fences, and loads the leases. Both fences are SeqCst.
//!
//! # Lost races
//!
//! *Lease against refill.* If the reader's fence is first, the writer sees the lease and leaves the
//! block alone; if the writer's is first, the reader sees "refilling" and takes another block. So
//! nothing is lost here, as in a careful implementation. What is lost is everything after the time
//! is out: the reader does not know, and the writer does not ask.
//!
//! # Differs from Linux
//!
//! Linux has no hold that ends by time. That is the point of the demo.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use pgmap::os::{MemoryFile, OsError, WriteMapping, clock};

/// Most blocks on a board.
pub const MAX_BLOCKS: u64 = 256;
/// Most readers.
pub const MAX_READERS: u64 = 64;
const FIRST_LEASE: u64 = MAX_BLOCKS;
const PHASE: u64 = MAX_BLOCKS + MAX_READERS;
/// Bytes of a board.
pub const BOARD_BYTES: u64 = 4096;
/// Set in a block's word while it is being refilled.
const REFILLING: u64 = 1 << 63;
/// A lease word is the block and, above these bits, the time it ends in microseconds.
const BLOCK_BITS: u32 = 16;

/// What the processes are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Wait.
    Wait,
    /// Work.
    Go,
    /// Tell what was counted and end.
    Stop,
}

/// The board.
#[derive(Debug)]
pub struct Board {
    words: WriteMapping,
}

impl Board {
    /// The board in `file`, which has [`BOARD_BYTES`].
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn over(file: &MemoryFile) -> Result<Self, OsError> {
        Ok(Self { words: WriteMapping::map(file, 0, BOARD_BYTES)? })
    }

    /// Wipes the board, when no process looks at it.
    pub fn wipe(&self) {
        for word in self.words.words() {
            // Relaxed: whoever looks at it is started afterwards.
            word.store(0, Ordering::Relaxed);
        }
    }

    fn word(&self, index: u64) -> &AtomicU64 {
        &self.words.words()[index as usize]
    }

    /// What to do now.
    pub fn phase(&self) -> Phase {
        // Acquire: pairs with Release in `set_phase`; a test or a table relies on nothing more.
        match self.word(PHASE).load(Ordering::Acquire) {
            0 => Phase::Wait,
            1 => Phase::Go,
            _ => Phase::Stop,
        }
    }

    /// Says what to do.
    pub fn set_phase(&self, phase: Phase) {
        let value = match phase {
            Phase::Wait => 0,
            Phase::Go => 1,
            Phase::Stop => 2,
        };
        // Release: pairs with Acquire in `phase`.
        self.word(PHASE).store(value, Ordering::Release);
    }

    /// The generation that can be read; none before the first and while the block is refilled.
    pub fn generation(&self, block: u64) -> Option<u64> {
        // Acquire: the block's bytes are read afterwards; pairs with Release in `publish`.
        let word = self.word(block).load(Ordering::Acquire);
        (word != 0 && word & REFILLING == 0).then_some(word)
    }

    /// Says that a block can be read at `generation`.
    pub fn publish(&self, block: u64, generation: u64) {
        // Release: publishes the block's bytes; pairs with Acquire in `generation`.
        self.word(block).store(generation, Ordering::Release);
    }

    /// Reader `reader` leases `block` at `generation` for `ttl`; false when it has just changed.
    pub fn take_lease(&self, reader: u64, block: u64, generation: u64, ttl: Duration) -> bool {
        let until_us = (clock::monotonic_ns() + ttl.as_nanos() as u64) / 1000;
        let lease = self.word(FIRST_LEASE + reader);
        // Relaxed: ordered by the fence.
        lease.store(until_us << BLOCK_BITS | block, Ordering::Relaxed);
        // SeqCst: the lease is out before the generation is read again; pairs with `begin_refill`.
        fence(Ordering::SeqCst);
        if self.generation(block) == Some(generation) {
            return true;
        }
        self.give_lease_back(reader);
        false
    }

    /// Reader `reader` has read.
    pub fn give_lease_back(&self, reader: u64) {
        // Release: the reads before are done when the writer sees the word; pairs with the fence in
        // `begin_refill`.
        self.word(FIRST_LEASE + reader).store(0, Ordering::Release);
    }

    /// Takes a block for new contents and returns the generation it had; none while a lease on it
    /// has time left.
    pub fn begin_refill(&self, block: u64) -> Option<u64> {
        let word = self.word(block);
        // Relaxed: only the writer stores it.
        let generation = word.load(Ordering::Relaxed);
        word.store(generation | REFILLING, Ordering::Relaxed);
        // SeqCst: "refilling" is out before the leases are read; pairs with `take_lease`.
        fence(Ordering::SeqCst);
        let now_us = clock::monotonic_ns() / 1000;
        let is_leased = (0..MAX_READERS).any(|reader| {
            // Relaxed: ordered by the fence.
            let lease = self.word(FIRST_LEASE + reader).load(Ordering::Relaxed);
            let (until_us, leased) = (lease >> BLOCK_BITS, lease & ((1 << BLOCK_BITS) - 1));
            lease != 0 && leased == block && until_us > now_us
        });
        if is_leased {
            // Release: as in `publish`, whose bytes these are.
            word.store(generation, Ordering::Release);
            return None;
        }
        // Acquire: the writer overwrites the block after the readers' last reads.
        fence(Ordering::Acquire);
        Some(generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn board() -> (MemoryFile, Board) {
        let file = MemoryFile::anonymous("board", BOARD_BYTES, pgmap::PageSize::Base).unwrap();
        let board = Board::over(&file).unwrap();
        (file, board)
    }

    #[test]
    fn a_leased_block_is_not_refilled_until_given_back() {
        let (_file, board) = board();
        board.publish(7, 1);
        assert!(board.take_lease(0, 7, 1, LONG));
        assert_eq!(board.begin_refill(7), None);
        assert_eq!(board.generation(7), Some(1), "as before");
        board.give_lease_back(0);
        assert_eq!(board.begin_refill(7), Some(1));
        assert_eq!(board.generation(7), None);
        assert!(!board.take_lease(0, 7, 1, LONG));
        board.publish(7, 2);
        assert_eq!(board.generation(7), Some(2));
    }

    #[test]
    fn a_lease_whose_time_is_out_guards_nothing() {
        let (_file, board) = board();
        board.publish(7, 1);
        assert!(board.take_lease(0, 7, 1, Duration::ZERO));
        assert_eq!(board.begin_refill(7), Some(1));
    }

    #[test]
    fn all_processes_see_the_phase() {
        let (file, board) = board();
        let other = Board::over(&file).unwrap();
        for phase in [Phase::Wait, Phase::Go, Phase::Stop] {
            board.set_phase(phase);
            assert_eq!(other.phase(), phase);
        }
    }
}
