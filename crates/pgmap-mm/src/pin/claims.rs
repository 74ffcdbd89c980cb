//! Which lanes of a client are taken.
//!
//! # States
//!
//! ```text
//!   free ── take ──▶ taken ── give_back ──▶ free
//! ```
//!
//! # Who may touch what
//!
//! Any thread of the client. Most lanes are kept by the thread that took them, so that its next pin
//! finds one at hand; the last ones are shared, and each is given back after one pin.
//!
//! # Orderings
//!
//! Taking is Acquire, giving back is Release: who takes a lane sees what the last to have it
//! stored.
//!
//! # Lost races
//!
//! Two threads that see the same lane free: one sets the bit first, the other sees that and goes on
//! to the next lane.
//!
//! # Differs from Linux
//!
//! There is nothing like it: a page's count is shared by all who pin it.

use crate::ledger::{LedgerLayout, MAX_LANES};
use crate::sync::{AtomicU64, Ordering};

/// Lanes of one word.
const WORD_LANES: usize = u64::BITS as usize;

/// One bit for each lane of a client.
#[derive(Debug)]
pub(super) struct LaneClaims {
    words: [AtomicU64; MAX_LANES / WORD_LANES],
    nr_lanes: usize,
    kept_lanes: usize,
    /// Where the last pin of each shared lane went: the next search for a slot begins with it.
    cursors: Vec<AtomicU64>,
}

impl LaneClaims {
    /// Every lane of `layout`, free.
    pub(super) fn new(layout: &LedgerLayout) -> Self {
        let (nr_lanes, kept_lanes) = (layout.nr_lanes(), layout.kept_lanes());
        let cursors = (kept_lanes..nr_lanes).map(|_| AtomicU64::new(0)).collect();
        Self { words: std::array::from_fn(|_| AtomicU64::new(0)), nr_lanes, kept_lanes, cursors }
    }

    /// Takes the first lane that is free: its number, and the slot to begin at.
    pub(super) fn take(&self) -> Option<(usize, usize)> {
        (0..self.nr_lanes.div_ceil(WORD_LANES)).find_map(|word| self.take_of(word))
    }

    /// Takes the first free lane of those of one word.
    fn take_of(&self, number: usize) -> Option<(usize, usize)> {
        let word = &self.words[number];
        // Relaxed: a first look; the claim below decides.
        let mut taken = word.load(Ordering::Relaxed);
        // Each round finds a lane that was not known to be taken, so there are at most 64.
        loop {
            let at = taken.trailing_ones() as usize;
            let lane = number * WORD_LANES + at;
            if at == WORD_LANES || lane >= self.nr_lanes {
                return None;
            }
            // Acquire: pairs with Release in `give_back`; data: slot stores and the cursor.
            let before = word.fetch_or(1 << at, Ordering::Acquire);
            if before & (1 << at) == 0 {
                // Relaxed: written and read by the one who has the lane.
                let cursor = self.cursor(lane).map_or(0, |cursor| cursor.load(Ordering::Relaxed));
                return Some((lane, cursor as usize));
            }
            taken |= before;
        }
    }

    /// Gives a lane back whose last pin went to slot `cursor`.
    pub(super) fn give_back(&self, lane: usize, cursor: usize) {
        if let Some(place) = self.cursor(lane) {
            // Relaxed: as in `take_of`.
            place.store(cursor as u64, Ordering::Relaxed);
        }
        // Release: pairs with Acquire in `take_of`.
        self.words[lane / WORD_LANES].fetch_and(!(1 << (lane % WORD_LANES)), Ordering::Release);
    }

    fn cursor(&self, lane: usize) -> Option<&AtomicU64> {
        self.cursors.get(lane.checked_sub(self.kept_lanes)?)
    }
}
