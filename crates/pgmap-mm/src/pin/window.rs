//! Windows: holds of whatever lies in a run of frames.
//!
//! # States
//!
//! ```text
//!   (empty) ── store slot ──▶ held ── drop: slot cleared, doorbell ──▶ (empty)
//! ```
//!
//! # Who may touch what
//!
//! As [`pin`](crate::pin).
//!
//! # Orderings
//!
//! `slot = run (Release); light barrier; life words (Acquire)` against a drain's
//! `life word; heavy barrier; scan`: the pair of [`pin`](crate::pin), with many life words for one
//! slot. Clearing is Release and pairs with the scan's Acquire; data: what the holder did to the
//! bytes.
//!
//! # Lost races
//!
//! *Window against drain.* A drain that changed a life word before the window was stored is seen by
//! whoever reads that word under the window; one that changes it later finds the window and waits,
//! whether or not anybody looked at its frames.
//!
//! # Differs from Linux
//!
//! See [`gup::ReadSection`](crate::gup::ReadSection), which is made of these.

use super::{ClientSide, Lane, Pinner, SlotOf};
use crate::error::PinError;
use crate::ledger::{Agent, SlotWord};
use crate::pfn::PfnRange;

impl<'p, S: ClientSide> Lane<'p, S> {
    /// Holds whatever lies in `run` from now on, for a reader that checks the life word of each
    /// extent *after* this and uses only those it finds as expected. A drain that starts later
    /// waits for the window, whether or not the reader looked at its frames, so keep windows short.
    ///
    /// # Errors
    /// [`PinError::LaneFull`] and [`PinError::Forked`], as [`pin`](Self::pin).
    pub fn pin_window(&self, run: PfnRange, agent: Agent) -> Result<Window<'p, S>, PinError> {
        let (pinner, slot) = (self.pinner, self.free_slot()?);
        if !pinner.store_slot(slot, SlotWord::new(run, agent).bits()) {
            return Err(PinError::Forked);
        }
        Ok(Window { pinner, slot, run })
    }
}

/// A hold of whatever lies in a run of frames. See [`Lane::pin_window`].
#[derive(Debug)]
#[must_use = "dropping a window releases the frames"]
pub struct Window<'p, S: ClientSide> {
    pinner: &'p Pinner<S>,
    slot: SlotOf<'p, S>,
    run: PfnRange,
}

impl<S: ClientSide> Window<'_, S> {
    /// The frames held.
    #[must_use]
    pub const fn run(&self) -> PfnRange {
        self.run
    }
}

impl<S: ClientSide> Drop for Window<'_, S> {
    fn drop(&mut self) {
        if self.pinner.store_slot(self.slot, 0) {
            // No life word says whether a drain waits for this window, so ring always.
            self.pinner.side.ring_doorbell();
        }
    }
}
