//! What a thread remembers of the span that it met last.
//!
//! A pin by address finds a leaf, and through the leaf's span the life word to check. Threads that
//! pin mostly pin in the same few extents, so the thread keeps what the last span said, and the next
//! pin in it goes from the leaf to the life word without a look at the spans.
//!
//! # States
//!
//! ```text
//!   nothing ── a leaf of span s, epoch e ──▶ (e, s, life) ── leaf of another span, or epoch moved ──▶ replaced
//! ```
//!
//! # Who may touch what
//!
//! It is its thread's own: part of a lane, or of a read section.
//!
//! # Orderings
//!
//! Kept: `epoch = e; span s; epoch = e`. Used: `leaf that names s; epoch = e`. All loads are Acquire.
//! Data: the words of span s.
//!
//! # Lost races
//!
//! *Use against reuse of the span.* If the user's load of the epoch still gives e, the span was not
//! described anew when the leaf was loaded, for the epoch moves before a span is (see
//! [`page_table`](crate::mm)); so the leaf means the span that was kept. If the epoch has moved, the
//! kept span is not used, then or ever: no two epochs of a process are the same number.
//!
//! # Differs from Linux
//!
//! The nearest is the pgmap that `get_user_pages` kept from one page to the next (Linux 5.15:
//! mm/gup.c, follow_page_context). That held a reference; this holds nothing.

use core::cell::Cell;

use super::{ClientSide, Life, Pinner};
use crate::descriptor::Descriptor;
use crate::page_table::PageTable;
use crate::page_table::entry::{Leaf, SpanId};
use crate::page_table::walk::Epoch;
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

    /// The life word that frames of the leaf, which was just loaded, are pinned under. None where the
    /// page table moved meanwhile.
    #[inline(always)]
    pub(crate) fn life_of(&self, table: &PageTable, leaf: Leaf) -> Option<Life<'p, S>> {
        let is_known = leaf.span() == self.span.get() && table.epoch() == self.epoch.get();
        (is_known || self.meet(table, leaf)).then(|| self.life.get())
    }

    /// Takes the leaf's span in place of the one that was known; false where the page table moved
    /// meanwhile.
    #[inline(never)]
    fn meet(&self, table: &PageTable, leaf: Leaf) -> bool {
        let epoch = table.epoch();
        let Some(life) = table.life(leaf) else { return false };
        let life = Life::find(self.pinner, life);
        if table.epoch() != epoch {
            return false;
        }
        self.epoch.set(epoch);
        self.span.set(leaf.span());
        self.life.set(life);
        true
    }
}
