//! Water marks: room that is kept free by evicting in advance, so that a create need not wait.
//!
//! When a create or commit leaves less free than the low mark, the owner's loop evicts a few files
//! at each turn, the least recently used first, until as much is free as the high mark says or
//! nothing is left to evict. Where all that is left is held it looks again a second later. As
//! between `WMARK_LOW` and `WMARK_HIGH` of Linux's kswapd (Linux 7.1: mm/vmscan.c,
//! `balance_pgdat`), which also sleeps until the next allocation wakes it.

use pgmap_os::clock;

use crate::owner::core::{Core, bytes};
use crate::owner::evict::Eviction;
use crate::pool::catalog::Change;
use crate::refusal::Refusal;
use crate::wire::{Reply, WaterMarks};

/// After how long it is looked again whether files that were held may go.
const AGAIN_MS: u64 = 1_000;

/// The marks, and whether the owner is evicting because of them.
#[derive(Debug, Default)]
pub(crate) struct Water {
    pub marks: WaterMarks,
    /// What was evicted since the low mark was passed.
    eviction: Option<Eviction>,
    /// When it is looked again, because all that was left was held.
    again_ms: Option<u64>,
}

impl Core {
    /// Sets the marks.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] where the low mark is not below the high one, or that is more than the
    /// pool has; of the catalog.
    pub(crate) fn set_water_marks(&mut self, marks: WaterMarks) -> Result<Reply, Refusal> {
        let WaterMarks { low_bytes, high_bytes } = marks;
        let all_bytes = bytes(self.all_pages());
        let is_off = marks == WaterMarks::default();
        if !is_off && (low_bytes == 0 || low_bytes >= high_bytes || high_bytes > all_bytes) {
            let why = format!(
                "water marks {low_bytes} and {high_bytes}: the low one is less than the high one, \
                 and that is at most the pool's {all_bytes} bytes"
            );
            return Err(Refusal::Invalid { why });
        }
        self.record(&[Change::Marks(marks)])?;
        self.water.marks = marks;
        self.water.eviction = None;
        self.note_level();
        Ok(Reply::Done)
    }

    /// Bytes that are free, or are as soon as the owner comes to it or somebody needs them.
    fn level_bytes(&self) -> u64 {
        let spare_pages = self.files.spare_pages();
        bytes(self.frames.free_pages() + self.frames.backlog_pages() + spare_pages)
    }

    /// Has the loop evict if less is free than the low mark.
    pub(crate) fn note_level(&mut self) {
        if self.water.eviction.is_none() && self.level_bytes() < self.water.marks.low_bytes {
            self.water.eviction = Some(Eviction::default());
        }
    }

    /// Whether the loop has a turn to take.
    pub(crate) const fn evicts_ahead(&self) -> bool {
        self.water.eviction.is_some()
    }

    /// When the loop has a turn to take, if not now.
    pub(crate) const fn evicts_ahead_at_ms(&self) -> Option<u64> {
        self.water.again_ms
    }

    /// Evicts a few files if that is due.
    pub(crate) fn evict_ahead(&mut self) {
        if self.water.again_ms.take_if(|at_ms| clock::monotonic_ms() >= *at_ms).is_some() {
            self.note_level();
        }
        let Some(mut eviction) = self.water.eviction.take() else { return };
        let lacking = self.water.marks.high_bytes.saturating_sub(self.level_bytes());
        if lacking == 0 || self.check_open().is_err() {
            return;
        }
        let pages = lacking.div_ceil(pgmap_mm::level::PAGE_BYTES);
        // Where no file may go at all, the next create or commit begins again.
        if self.evict_of_all(&mut eviction, pages) {
            self.water.eviction = Some(eviction);
        } else if self.evictables.after(None, None).is_some() {
            self.water.again_ms = Some(clock::monotonic_ms() + AGAIN_MS);
        }
    }
}
