//! The life word that a thread found last, kept under a key that only whoever found it understands.
//!
//! What is kept may be of an extent that is no more: the finder's key says whether it may still be
//! used (`gup/known_span.rs`), and the pin under it compares the life word as every pin does.

use core::cell::Cell;

use super::{ClientSide, FoundLife, Pinner};
use crate::descriptor::Descriptor;
use crate::vmemmap::LifeWord;

/// What a life word was found by: the finder's epoch, never 0, and the place.
type LifeKey = (u64, u32);

/// What was found last. A thread's own: part of a lane, or of a read section.
#[derive(Debug)]
pub(crate) struct LastLife<'p, S: ClientSide + 'p> {
    pinner: &'p Pinner<S>,
    epoch: Cell<u64>,
    place: Cell<u32>,
    life: Cell<FoundLife<'p, S>>,
}

/// A [`LastLife`] without its borrow.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastLifeParts {
    key: LifeKey,
    life: LifeWord,
}

impl<'p, S: ClientSide + 'p> LastLife<'p, S> {
    /// Nothing was found yet.
    pub(crate) fn nothing(pinner: &'p Pinner<S>) -> Self {
        let life = LifeWord { index: 0, expected: Descriptor::FREE };
        Self::from_parts(pinner, LastLifeParts { key: (0, 0), life })
    }

    #[inline(always)]
    pub(super) fn from_parts(pinner: &'p Pinner<S>, parts: LastLifeParts) -> Self {
        Self {
            pinner,
            epoch: Cell::new(parts.key.0),
            place: Cell::new(parts.key.1),
            life: Cell::new(FoundLife::find(pinner, parts.life)),
        }
    }

    #[inline(always)]
    pub(super) fn to_parts(&self) -> LastLifeParts {
        LastLifeParts { key: (self.epoch.get(), self.place.get()), life: self.life.get().at }
    }

    /// What was kept under `key`.
    #[inline(always)]
    pub(crate) fn get(&self, (epoch, place): LifeKey) -> Option<FoundLife<'p, S>> {
        (place == self.place.get() && epoch == self.epoch.get()).then(|| self.life.get())
    }

    /// Keeps `life` under `key`, in place of what was kept.
    #[inline(always)]
    pub(crate) fn set(&self, (epoch, place): LifeKey, life: FoundLife<'p, S>) {
        self.epoch.set(epoch);
        self.place.set(place);
        self.life.set(life);
    }

    /// Finds the life word that `life` speaks of.
    #[inline(always)]
    pub(crate) fn find(&self, life: LifeWord) -> FoundLife<'p, S> {
        FoundLife::find(self.pinner, life)
    }
}
