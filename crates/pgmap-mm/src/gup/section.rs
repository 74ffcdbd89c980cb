//! Read sections: translating many addresses for the price of one hold.
//!
//! # States
//!
//! ```text
//!   closed ── windows over all frames published, light barrier ──▶ open
//!   open ── dropped, owner rung ──▶ closed
//! ```
//!
//! # Who may touch what
//!
//! The thread that owns the lane opens and translates. Any thread may drop it.
//!
//! # Orderings
//!
//! `windows (Release); light barrier; life word (Acquire)` against a drain's `life word; heavy
//! barrier; scan`: the pair of [`pin`](crate::pin), with one store for many loads.
//!
//! # Lost races
//!
//! *Translate against drain.* If the translation loads the life word first, the drain's scan comes
//! after the windows were published and waits for the section. If the change is first, the
//! translation sees it and returns nothing.
//!
//! # Differs from Linux
//!
//! The nearest is `gup_fast` with interrupts off and no reference taken, which the kernel never
//! hands out.

use core::marker::PhantomData;

use super::{has_same_layout, known_span};
use crate::error::PinError;
use crate::ledger::Agent;
use crate::level::{Level, PAGE_BYTES};
use crate::mm::Mm;
use crate::page_table::entry::LeafFlags;
use crate::page_table::walk::FoundLeaf;
use crate::pfn::{MAX_RUN_PAGES, PfnRange};
use crate::pin::{ClientSide, Lane, LastLife, Window};

/// Windows of a read section, at most; each covers up to 256 GiB of frames.
const MAX_WINDOWS: usize = 16;

/// While it is open, whatever [`translate`](Self::translate) returns is not reused: a borrow of
/// many pages for the price of one hold, for a reader that touches many addresses once.
///
/// A drain that starts meanwhile waits for the section's end, so keep sections short.
#[derive(Debug)]
pub struct ReadSection<'a, S: ClientSide> {
    mm: &'a Mm,
    /// The life word of the span that a translation met last.
    known: LastLife<'a, S>,
    _windows: Vec<Window<'a, S>>,
}

/// What a section's translation found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Borrowed<'s> {
    run: PfnRange,
    level: Level,
    is_writable: bool,
    section: PhantomData<&'s ()>,
}

impl Borrowed<'_> {
    /// The frame of the address, and those that follow it in the same leaf.
    #[inline]
    #[must_use]
    pub const fn run(&self) -> PfnRange {
        self.run
    }

    /// The size of the leaf.
    #[inline]
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// Whether the leaf allows writes.
    #[inline]
    #[must_use]
    pub const fn is_writable(&self) -> bool {
        self.is_writable
    }
}

impl<'a, S: ClientSide> ReadSection<'a, S> {
    /// Opens a section over every frame of the pool.
    ///
    /// # Errors
    /// [`PinError::LaneFull`], [`PinError::Forked`], and [`PinError::Outside`] for a pool of more
    /// than 4 TiB, which one section cannot cover, and for an address space of another pool.
    pub fn open(mm: &'a Mm, lane: &Lane<'a, S>) -> Result<Self, PinError> {
        let nr_pages = mm.table.vmemmap().nr_pages();
        let mut windows = Vec::new();
        let mut first = 0;
        while let Some(run) = PfnRange::new(first, (nr_pages - first).min(MAX_RUN_PAGES)) {
            if windows.len() == MAX_WINDOWS || !has_same_layout(mm, lane) {
                return Err(PinError::Outside { run });
            }
            windows.push(lane.pin_window(run, Agent::Cpu)?);
            first = run.end();
        }
        Ok(Self { mm, known: LastLife::nothing(lane.pinner()), _windows: windows })
    }

    /// Where the address translates to; stays so until the section is dropped. `None` if
    /// [`Gup::pin`](super::Gup::pin) is needed to fault the page in, to repair its leaf, or to say
    /// with `P2PDMA` that another device's memory will do.
    #[inline(always)]
    #[must_use]
    pub fn translate(&self, address: u64) -> Option<Borrowed<'_>> {
        let page = address / PAGE_BYTES;
        let table = &self.mm.table;
        let Some(found) = table.walk_huge(page) else { return self.translate_elsewhere(page) };
        // The windows were published, and a light barrier passed, before the life word is loaded,
        // here and below: a drain that changes it later finds the windows. The entry need not be
        // read again, for what it said was mapped during this call.
        let life = known_span::life_of(&self.known, table, &found)?;
        if life.is_as_expected() { borrowed(page, &found) } else { None }
    }

    /// [`translate`](Self::translate) where no leaf of 2 MiB maps the page.
    #[inline(never)]
    fn translate_elsewhere(&self, page: u64) -> Option<Borrowed<'_>> {
        let table = &self.mm.table;
        let epoch = table.epoch();
        let found = table.walk(page)?;
        let life = self.known.find(table.life(found.leaf)?);
        // The epoch: so that entry and life word are of one extent.
        let is_held = life.is_as_expected() && table.epoch() == epoch;
        if is_held { borrowed(page, &found) } else { None }
    }
}

/// What the leaf says of the page and those after it; `None` if they can never be pinned, or only
/// with a flag that a section cannot be given.
#[inline(always)]
fn borrowed<'s>(page: u64, found: &FoundLeaf<'_>) -> Option<Borrowed<'s>> {
    let flags = found.leaf.flags();
    let is_lent = !flags.contains(LeafFlags::RAW) && !flags.contains(LeafFlags::PEER);
    is_lent.then_some(Borrowed {
        run: PfnRange::inside(found.frame_of(page), found.pages_from(page)),
        level: found.level,
        is_writable: flags.contains(LeafFlags::WRITE),
        section: PhantomData,
    })
}
