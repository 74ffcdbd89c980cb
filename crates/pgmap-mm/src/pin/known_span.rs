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
//! It is its thread's own: part of a lane, or of a read section.
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

use core::cell::Cell;

use super::{ClientSide, Life, Pinner};
use crate::descriptor::Descriptor;
use crate::page_table::PageTable;
use crate::page_table::entry::SpanId;
use crate::page_table::walk::{Epoch, Found};
use crate::vmemmap::LifeWord;

/// What a span said in an epoch of a page table.
#[derive(Debug)]
pub(crate) struct KnownSpan<'p, S: ClientSide + 'p> {
    pinner: &'p Pinner<S>,
    epoch: Cell<Epoch>,
    span: Cell<SpanId>,
    life: Cell<Life<'p, S>>,
}

/// A [`KnownSpan`] without its borrow.
#[derive(Clone, Copy, Debug)]
pub(super) struct KnownParts {
    epoch: Epoch,
    span: SpanId,
    life: LifeWord,
}

impl Default for KnownParts {
    fn default() -> Self {
        let life = LifeWord { index: 0, expected: Descriptor::FREE };
        Self { epoch: Epoch::NEVER, span: SpanId::default(), life }
    }
}

impl<'p, S: ClientSide + 'p> KnownSpan<'p, S> {
    /// Nothing is known yet.
    pub(crate) fn nothing(pinner: &'p Pinner<S>) -> Self {
        Self::from_parts(pinner, KnownParts::default())
    }

    #[inline(always)]
    pub(super) fn from_parts(pinner: &'p Pinner<S>, parts: KnownParts) -> Self {
        Self {
            pinner,
            epoch: Cell::new(parts.epoch),
            span: Cell::new(parts.span),
            life: Cell::new(Life::find(pinner, parts.life)),
        }
    }

    #[inline(always)]
    pub(super) fn to_parts(&self) -> KnownParts {
        KnownParts { epoch: self.epoch.get(), span: self.span.get(), life: self.life.get().at }
    }

    /// The life word that frames of the leaf, which was just loaded, are pinned under. `None` if
    /// the page table moved meanwhile.
    #[inline(always)]
    pub(crate) fn life_of(&self, table: &PageTable, found: &Found<'_>) -> Option<Life<'p, S>> {
        let epoch = table.epoch();
        if found.leaf.span() == self.span.get() && epoch == self.epoch.get() {
            return Some(self.life.get());
        }
        self.meet(table, found, epoch)
    }

    /// Takes the leaf's span in place of the one that was known. In line: a thread that pins all
    /// over the place meets another span each time.
    #[inline(always)]
    fn meet(&self, table: &PageTable, found: &Found<'_>, epoch: Epoch) -> Option<Life<'p, S>> {
        let life = Life::find(self.pinner, table.life(found.leaf)?);
        if table.epoch() != epoch || !found.is_unchanged() {
            return None;
        }
        self.epoch.set(epoch);
        self.span.set(found.leaf.span());
        self.life.set(life);
        Some(life)
    }
}
