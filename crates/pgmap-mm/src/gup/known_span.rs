//! What a thread remembers of the span that it met last.
//!
//! A pin by address finds a leaf, and through the leaf's span the life word to check. Threads that
//! pin mostly pin in the same few extents, so the thread keeps what the last span said, and the
//! next pin in it goes from the leaf to the life word without a look at the spans.
//!
//! # States
//!
//! ```text
//!   nothing ── a leaf of span s, epoch e ──▶ (e, s, life)
//!   (e, s, life) ── leaf of another span, or epoch moved ──▶ replaced
//! ```
//!
//! # Who may touch what
//!
//! It is its thread's own: [`LastLife`], part of a lane or of a read section.
//!
//! # Orderings
//!
//! Kept: `leaf that names s; epoch = e; span s; epoch = e; the same leaf`. Used:
//! `leaf that names s; epoch = e`. All loads are Acquire. Data: the words of span s.
//!
//! # Lost races
//!
//! *Use against reuse of the span.* Between two descriptions of a span its leaves are cleared, then
//! the epoch moves. If the leaf was still there after the span was read, the epoch that was kept is
//! the one before that step; whoever loads a leaf of the second description sees the step and does
//! not use what was kept, then or ever: no two epochs of a process are the same number. If the leaf
//! was there again, for the same frame under the second description, what was kept is of an extent
//! that lost the frame before, and its life word never is what it was.
//!
//! *Keeping against reuse.* Without the last look at the leaf, a reader that was late could keep
//! the old description under the epoch of the new one: the epoch had moved, and the span not yet
//! been described again (loom found this).
//!
//! # Differs from Linux
//!
//! The nearest is the pgmap that `get_user_pages` kept from one page to the next (Linux 5.15:
//! mm/gup.c, follow_page_context). That held a reference; this holds nothing.

use crate::page_table::PageTable;
use crate::page_table::walk::{Epoch, FoundLeaf};
use crate::pin::{ClientSide, FoundLife, LastLife};

/// The life word that frames of the leaf, which was just loaded, are pinned under. `None` if the
/// page table moved meanwhile.
#[inline(always)]
pub(super) fn life_of<'p, S: ClientSide>(
    known: &LastLife<'p, S>,
    table: &PageTable,
    found: &FoundLeaf<'_>,
) -> Option<FoundLife<'p, S>> {
    let epoch = table.epoch();
    match known.get((epoch.number(), found.leaf.span().number())) {
        Some(life) => Some(life),
        None => meet(known, table, found, epoch),
    }
}

/// Takes the leaf's span in place of the one that was known. In line: a thread that pins all over
/// the place meets another span each time.
#[inline(always)]
fn meet<'p, S: ClientSide>(
    known: &LastLife<'p, S>,
    table: &PageTable,
    found: &FoundLeaf<'_>,
    epoch: Epoch,
) -> Option<FoundLife<'p, S>> {
    let life = known.find(table.life(found.leaf)?);
    if table.epoch() != epoch || !found.is_unchanged() {
        return None;
    }
    known.set((epoch.number(), found.leaf.span().number()), life);
    Some(life)
}
