//! Reshaping: folios split and merged, extents cut and joined, under live pins.
//!
//! # States
//!
//! ```text
//!            children written, then the parent says Split
//!   whole ─────────────────────────────────────────────────▶ split
//!     ▲                                                        │
//!     └── children say Tail, then the parent's fresh word, ◀───┘
//!         then the table is punched out
//! ```
//!
//! Neither takes anything out of use: a folio's state stays what it was, and so do the holds on its
//! frames, because slots and leases are ranges of frames and a scan looks for counts at every
//! level. What moves is the *place* of the life word of an extent whose first folio is reshaped.
//!
//! # Who may touch what
//!
//! The owner alone (I2). A reader only compares a word at the place that it was given with the word
//! that it was given.
//!
//! # Orderings
//!
//! Split: the child words, then the parent's Split, each Release in [`Vmemmap::set`]; whoever loads
//! Split (Acquire) sees the children. Merge: the children's Tail, then the parent's word, then the
//! punch; whoever loads the parent's word as anything but Split does not go down. A child that lies
//! one table further down is announced in its own table before that table is filled, so that a
//! successor of a killed owner finds every word to discard ([`Folios::discard_stale_below`]).
//!
//! # Lost races
//!
//! *Split against pin.* If the pin's check comes first, it read the parent's word, the pin holds
//! the same frames as before, and the scan of any later drain sees its slot. If the Split comes
//! first, the check sees it, the pin is undone, and the client asks again and gets the new place.
//!
//! *Merge against pin.* If the check comes first, as above. If Tail comes first, the check sees it
//! and the pin is undone. A pin that reads the punched-out table reads zero, which equals no word
//! that anybody was given.
//!
//! *A word read again.* Were a merged folio to get its old word back, a reference from before the
//! split would hold again, although part of its extent may have been given away in between. So a
//! merge always takes a fresh stamp, and an extent that was handed out ends only by a change of its
//! life word: [`Folios::cut_out`] changes the word of the extent that it cuts, [`Folios::join`]
//! that of the one which is absorbed.
//!
//! # Differs from Linux
//!
//! A pinned folio cannot be split there, and an fsdax folio not at all until its last mapping goes
//! (Linux 7.1: mm/huge_memory.c, `__folio_split`; fs/dax.c, `dax_folio_reset_order`). Here pins do
//! not lie in the folio's own words, so splitting disturbs none of them. As there, the split is not
//! uniform: only the folio around the frame asked for becomes as small as asked.
//!
//! [`Vmemmap::set`]: crate::vmemmap::Vmemmap::set

use core::fmt;

use crate::descriptor::{Descriptor, FolioFlags, FolioState};
use crate::error::errno;
use crate::extent::Extent;
use crate::folio::Folios;
use crate::ledger::{Hold, HoldPlace};
use crate::level::{FANOUT, Level};
use crate::pfn::{Pfn, PfnRange};
use crate::stamp::Stamp;
use crate::words::WriteWords;

/// Why a folio or an extent keeps its shape. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReshapeError {
    /// There is no memory for the descriptors of smaller folios.
    NoDescriptors {
        /// The folio.
        folio: PfnRange,
    },
    /// The frame is not described.
    Outside {
        /// The frame.
        pfn: Pfn,
    },
    /// The folio is in a state that keeps its shape.
    WrongState {
        /// The folio.
        folio: PfnRange,
        /// Its descriptor.
        word: Descriptor,
    },
    /// The folio is not larger than what it was to be split into, or not smaller than what it was
    /// to be merged into.
    WrongLevel {
        /// The folio.
        folio: PfnRange,
        /// The level asked for.
        asked: Level,
    },
    /// There is no room for descriptors of folios so small.
    BelowSmallest {
        /// The frames that were to become folios of their own, or where they were to begin.
        run: PfnRange,
        /// The smallest folio that can be described.
        smallest: Level,
    },
    /// The folio or the hole lies, in part at least, outside the extent.
    OutsideExtent {
        /// The frames.
        run: PfnRange,
        /// The extent's frames.
        extent: PfnRange,
    },
    /// What was to become one folio is made of folios of several sizes, states or policies.
    Mixed {
        /// The first folio that differs.
        folio: PfnRange,
        /// Its descriptor.
        word: Descriptor,
    },
    /// Frames are held long-term by smaller folios than the one that was to be made.
    HeldBelow {
        /// One of the folios held.
        folio: PfnRange,
    },
    /// The extent is not what the caller takes it for.
    Changed {
        /// The extent's frames.
        extent: PfnRange,
        /// Its life word now.
        now: Descriptor,
    },
}

impl ReshapeError {
    /// The Linux error number that says the same.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Outside { .. } => errno::EFAULT,
            Self::WrongState { word, .. } | Self::Mixed { word, .. }
                if matches!(word.state(), FolioState::Poisoned) =>
            {
                errno::EHWPOISON
            }
            Self::WrongState { .. } | Self::Mixed { .. } | Self::HeldBelow { .. } => errno::EBUSY,
            Self::WrongLevel { .. } | Self::BelowSmallest { .. } | Self::OutsideExtent { .. } => {
                errno::EINVAL
            }
            Self::NoDescriptors { .. } => errno::ENOSPC,
            Self::Changed { .. } => errno::ESTALE,
        }
    }
}

impl fmt::Display for ReshapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDescriptors { folio } => write!(
                f,
                "folio {folio} cannot be split: there is no memory for its parts' descriptors; \
                 make room on the pool's file system"
            ),
            Self::Outside { pfn } => write!(f, "pfn {pfn} is not described"),
            Self::WrongState { folio, word } => {
                write!(f, "folio {folio} is {word:?} and keeps its shape")
            }
            Self::WrongLevel { folio, asked } => {
                let level = Level::largest_fitting(folio.start(), folio.nr_pages());
                let now = level.unwrap_or(Level::Pte);
                write!(f, "folio {folio} is of {now} now and cannot be made {asked} this way")
            }
            Self::BelowSmallest { run, smallest } => write!(
                f,
                "frames {run} cannot be split off: the pool describes folios of {smallest} and \
                 larger"
            ),
            Self::OutsideExtent { run, extent } => {
                write!(f, "frames {run} are not all of one extent: that is {extent}")
            }
            Self::Mixed { folio, word } => {
                write!(f, "folio {folio} is {word:?}, unlike those it was to be merged with")
            }
            Self::HeldBelow { folio } => {
                write!(
                    f,
                    "folio {folio} is pinned long-term and cannot be merged into a larger \
                           one"
                )
            }
            Self::Changed { extent, now } => {
                write!(f, "extent {extent} is not what it was: its life word is {now:?}")
            }
        }
    }
}

impl std::error::Error for ReshapeError {}

/// A folio's new shape, and so where the life word of an extent that starts with it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reshaped {
    folio: PfnRange,
    from: Level,
    to: Level,
    head_level: Level,
    head: Descriptor,
}

impl Reshaped {
    /// The frames of the larger folio.
    #[must_use]
    pub const fn folio(&self) -> PfnRange {
        self.folio
    }

    /// Level of the folio that was.
    #[must_use]
    pub const fn from(&self) -> Level {
        self.from
    }

    /// Level of the folio that is, around the frame asked for.
    #[must_use]
    pub const fn to(&self) -> Level {
        self.to
    }

    /// What readers must be given for `extent` from now on. Only an extent whose first folio was
    /// reshaped changes; no other extent can start inside.
    #[must_use]
    pub fn extent_after(&self, extent: &Extent) -> Extent {
        if extent.first() == self.folio.first() && extent.head_level == self.from {
            Extent { head_level: self.head_level, life: self.head, ..*extent }
        } else {
            *extent
        }
    }
}

/// That a scan found no long-term pin on less than the folio to be made.
///
/// A count taken after the scan does no harm, because counts are found at any level; the proof
/// keeps the owner from tying a small hold of long standing to a large folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSmallCounts {
    folio: PfnRange,
}

impl NoSmallCounts {
    /// For a folio that was split a moment ago and is to be as it was: small holds that were taken
    /// in between are tied to it again.
    #[must_use]
    pub const fn of_a_folio_that_was_whole(folio: PfnRange) -> Self {
        Self { folio }
    }

    /// Looks through what a scan of every ledger found.
    ///
    /// # Errors
    /// The first long-term hold of less than `folio`.
    pub fn among(folio: PfnRange, holds: impl IntoIterator<Item = Hold>) -> Result<Self, Hold> {
        let is_small = |hold: &Hold| {
            matches!(hold.place, HoldPlace::Count(_) | HoldPlace::LongSlot(_))
                && hold.run.nr_pages() < folio.nr_pages()
                && hold.run.overlaps(folio)
        };
        match holds.into_iter().find(is_small) {
            Some(hold) => Err(hold),
            None => Ok(Self { folio }),
        }
    }
}

/// An extent cut in two or three. Each part is an extent of its own from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutOut {
    /// What lies before the hole.
    pub before: Option<Extent>,
    /// The hole itself: whole folios, in the state they were in.
    pub hole: Extent,
    /// What lies after the hole.
    pub after: Option<Extent>,
}

impl<W: WriteWords> Folios<W> {
    /// What [`split`](Self::split) would do, so that it can be put on record before anybody sees it
    /// (I10).
    ///
    /// # Errors
    /// As [`split`](Self::split).
    pub fn plan_split(&self, pfn: Pfn, to: Level) -> Result<Reshaped, ReshapeError> {
        let (from, word) = self.vmemmap().folio_of(pfn).ok_or(ReshapeError::Outside { pfn })?;
        let folio = PfnRange::folio(pfn, from);
        if to < self.smallest() {
            let run = PfnRange::folio(pfn, to);
            return Err(ReshapeError::BelowSmallest { run, smallest: self.smallest() });
        }
        if !is_splittable(word.state()) {
            return Err(ReshapeError::WrongState { folio, word });
        }
        let Some(largest) = from.below().filter(|_| to < from) else {
            return Err(ReshapeError::WrongLevel { folio, asked: to });
        };
        self.reserve_down(from, to, pfn)?;
        let is_at_head = pfn.align_down(largest) == folio.first();
        let head_level = if is_at_head { to } else { largest };
        Ok(Reshaped { folio, from, to, head_level, head: word })
    }

    /// Splits the folio around `pfn` so that the frame lies in a folio of level `to`; the others
    /// stay as large as they can. Holds stand; pins under the old life word fail from now on.
    ///
    /// # Errors
    /// [`ReshapeError::WrongLevel`] when the folio is not larger, [`ReshapeError::WrongState`] when
    /// it is Poisoned or Offline, [`ReshapeError::Outside`] when there is none,
    /// [`ReshapeError::BelowSmallest`] when such a small folio cannot be described.
    pub fn split(&mut self, pfn: Pfn, to: Level) -> Result<Reshaped, ReshapeError> {
        let reshaped = self.plan_split(pfn, to)?;
        let mut parent = reshaped.from;
        while let Some(level) = parent.below().filter(|&level| level >= to) {
            self.write_children(&reshaped, pfn, level);
            parent = level;
        }
        self.vmemmap().set(reshaped.from, pfn, Descriptor::SPLIT);
        if reshaped.head == Descriptor::FREE {
            for level in [Level::Pmd, Level::Pud].into_iter().filter(|&level| level > to) {
                self.note_empty_tables(PfnRange::folio(pfn, level), level);
            }
        }
        Ok(reshaped)
    }

    /// Writes the 512 words of `level` that lie below the folio one level up around `pfn`.
    fn write_children(&self, reshaped: &Reshaped, pfn: Pfn, level: Level) {
        let head = reshaped.head;
        let rest = without_partial(head);
        for child in children(pfn, level) {
            let word = if level > reshaped.to && child == pfn.align_down(level) {
                Descriptor::SPLIT
            } else if child == reshaped.folio.first() {
                head
            } else {
                rest
            };
            // All-zero is Free already; storing it would only populate the page.
            if word != Descriptor::FREE {
                self.vmemmap().set(level, child, word);
            }
        }
    }

    /// What [`merge`](Self::merge) would do.
    fn plan_merge(
        &self,
        extent: &Extent,
        pfn: Pfn,
        to: Level,
        fresh: Stamp,
        proof: &NoSmallCounts,
    ) -> Result<Reshaped, ReshapeError> {
        let folio = PfnRange::folio(pfn, to);
        if !extent.run.covers(folio) {
            return Err(ReshapeError::OutsideExtent { run: folio, extent: extent.run });
        }
        if proof.folio != folio {
            return Err(ReshapeError::HeldBelow { folio });
        }
        self.check_life(extent)?;
        let (from, word) =
            self.vmemmap().folio_of(folio.first()).ok_or(ReshapeError::Outside { pfn })?;
        let Some(below) = to.below().filter(|_| from < to) else {
            return Err(ReshapeError::WrongLevel { folio, asked: to });
        };
        if !matches!(word.state(), FolioState::Live | FolioState::Reserved) {
            return Err(ReshapeError::WrongState { folio: PfnRange::folio(pfn, from), word });
        }
        for child in children(folio.first(), below) {
            let now = self.vmemmap().load(below, child).unwrap_or(Descriptor::OFFLINE);
            let is_alike = now.state() == word.state()
                && without_partial(now).flags() == without_partial(word).flags();
            if !is_alike {
                return Err(ReshapeError::Mixed {
                    folio: PfnRange::folio(child, below),
                    word: now,
                });
            }
        }
        let head = Descriptor::new(word.state(), without_partial(word).flags(), fresh);
        Ok(Reshaped { folio, from, to, head_level: to, head })
    }

    /// Makes one folio of level `to` around `pfn` out of 512 of the level below, all of `extent`,
    /// and gives their table back. Holds stand; pins under a life word that lay inside fail.
    ///
    /// # Errors
    /// [`ReshapeError::OutsideExtent`] when the folio is not all of `extent`: join the extents
    /// first; [`ReshapeError::Mixed`] when its parts differ in size, state or flags, or one of them
    /// failed; [`ReshapeError::WrongState`] when they are neither Live nor Reserved;
    /// [`ReshapeError::WrongLevel`] when the folio is as large already; [`ReshapeError::HeldBelow`]
    /// when `proof` is of other frames.
    pub fn merge(
        &mut self,
        extent: &Extent,
        pfn: Pfn,
        to: Level,
        fresh: Stamp,
        proof: &NoSmallCounts,
    ) -> Result<Reshaped, ReshapeError> {
        self.merge_after((extent, pfn), to, fresh, proof, |_| Ok(()))
    }

    /// As [`merge`](Self::merge) of the folios of `extent` around `pfn`, after `record` put on
    /// record what that does, before anybody sees it (I10).
    ///
    /// # Errors
    /// As [`merge`](Self::merge), and as `record`; nothing is changed then.
    pub fn merge_after<E: From<ReshapeError>>(
        &mut self,
        (extent, pfn): (&Extent, Pfn),
        to: Level,
        fresh: Stamp,
        proof: &NoSmallCounts,
        record: impl FnOnce(&Reshaped) -> Result<(), E>,
    ) -> Result<Reshaped, E> {
        let reshaped = self.plan_merge(extent, pfn, to, fresh, proof)?;
        record(&reshaped)?;
        for child in children(reshaped.folio.first(), reshaped.from) {
            let word = self.vmemmap().load(reshaped.from, child).unwrap_or(Descriptor::FREE);
            // The stamp stays, so that a successor of an owner killed here knows whose frames these
            // are.
            self.vmemmap().set(reshaped.from, child, word.in_state(FolioState::Tail));
        }
        self.vmemmap().set(to, pfn, reshaped.head);
        self.vmemmap().discard_below(to, pfn);
        Ok(reshaped)
    }

    /// Makes `hole` an extent of its own and what is left of `extent` before and after it too,
    /// splitting the folios at its edges. The old life word is changed, so no pin of the whole
    /// succeeds from now on. `hole` stays in the state that it is in.
    ///
    /// # Errors
    /// [`ReshapeError::OutsideExtent`] when `hole` is not inside, [`ReshapeError::Changed`] when
    /// `extent` is not what it is now, [`ReshapeError::WrongState`] when a folio at an edge cannot
    /// be split, [`ReshapeError::BelowSmallest`] when no folio can begin at an edge.
    pub fn cut_out(
        &mut self,
        extent: &Extent,
        hole: PfnRange,
        fresh: Stamp,
    ) -> Result<CutOut, ReshapeError> {
        if !extent.run.covers(hole) {
            return Err(ReshapeError::OutsideExtent { run: hole, extent: extent.run });
        }
        self.check_life(extent)?;
        let edges = [hole.start(), hole.end()]
            .map(|edge| Pfn::new(edge).filter(|&edge| extent.run.contains(edge)));
        for edge in edges.into_iter().flatten() {
            self.check_edge(edge)?;
        }
        let mut head = *extent;
        for edge in edges.into_iter().flatten() {
            self.split_at(edge, &mut head)?;
        }
        let head = self.change_life(&head, fresh);
        let (before, after) = extent.run.without(hole);
        let before = before.and_then(|run| Extent::new(run, head.head_level, head.life));
        let hole = match before {
            Some(_) => self.piece(hole),
            None => Extent::new(hole, head.head_level, head.life),
        };
        let hole =
            hole.ok_or(ReshapeError::OutsideExtent { run: extent.run, extent: extent.run })?;
        Ok(CutOut { before, hole, after: after.and_then(|run| self.piece(run)) })
    }

    /// Whether a folio boundary can be made at `edge`.
    fn check_edge(&self, edge: Pfn) -> Result<(), ReshapeError> {
        let (level, word) =
            self.vmemmap().folio_of(edge).ok_or(ReshapeError::Outside { pfn: edge })?;
        if !edge.is_aligned(self.smallest()) {
            let run = PfnRange::folio(edge, Level::Pte);
            return Err(ReshapeError::BelowSmallest { run, smallest: self.smallest() });
        }
        if edge.is_aligned(level) {
            return Ok(());
        }
        if !is_splittable(word.state()) {
            return Err(ReshapeError::WrongState { folio: PfnRange::folio(edge, level), word });
        }
        let to = Level::ALL.into_iter().rev().find(|&to| edge.is_aligned(to)).unwrap_or(Level::Pte);
        self.reserve_down(level, to, edge)
    }

    /// Takes memory for the descriptors that splitting the folio of level `from` around `pfn` down
    /// to `to` writes.
    fn reserve_down(&self, from: Level, to: Level, pfn: Pfn) -> Result<(), ReshapeError> {
        let parents = Level::ALL.into_iter().filter(|&parent| parent > to && parent <= from);
        if parents.into_iter().all(|parent| self.vmemmap().reserve_below(parent, pfn)) {
            return Ok(());
        }
        Err(ReshapeError::NoDescriptors { folio: PfnRange::folio(pfn, from) })
    }

    /// Splits until a folio starts at `edge`. `head` is kept up to date.
    fn split_at(&mut self, edge: Pfn, head: &mut Extent) -> Result<(), ReshapeError> {
        while let Some((level, _)) = self.vmemmap().folio_of(edge) {
            let Some(below) = level.below().filter(|_| !edge.is_aligned(level)) else { break };
            *head = self.split(edge, below)?.extent_after(head);
        }
        Ok(())
    }

    /// Makes one extent of two that lie one after the other: `second` ends, `first` grows.
    ///
    /// # Errors
    /// [`ReshapeError::OutsideExtent`] when they do not touch or are too long together,
    /// [`ReshapeError::Changed`] when one is not what it is now, [`ReshapeError::WrongState`] when
    /// they are neither Live nor Reserved, [`ReshapeError::Mixed`] when they differ in state or
    /// flags.
    pub fn join(
        &mut self,
        first: &Extent,
        second: &Extent,
        fresh: Stamp,
    ) -> Result<Extent, ReshapeError> {
        let outside = ReshapeError::OutsideExtent { run: second.run, extent: first.run };
        let nr_pages = first.run.nr_pages() + second.run.nr_pages();
        let run = PfnRange::new(first.run.start(), nr_pages).ok_or(outside)?;
        if first.run.end() != second.run.start() {
            return Err(outside);
        }
        self.check_life(first)?;
        self.check_life(second)?;
        if !matches!(first.life.state(), FolioState::Live | FolioState::Reserved) {
            let folio = PfnRange::folio(first.first(), first.head_level);
            return Err(ReshapeError::WrongState { folio, word: first.life });
        }
        let (one, other) = (without_partial(first.life), without_partial(second.life));
        if one.state() != other.state() || one.flags() != other.flags() {
            return Err(ReshapeError::Mixed { folio: second.run, word: second.life });
        }
        let ended = Descriptor::new(other.state(), other.flags(), fresh);
        self.vmemmap().set(second.head_level, second.first(), ended);
        Ok(Extent { run, ..*first })
    }

    /// The extent of a catalog as the descriptors have it, for an owner whose predecessor was
    /// killed between putting a new shape on record and making it, or the other way round; `None`
    /// if no descriptor survived. The catalog says whose frames these are, so a word with any stamp
    /// is one of this extent's lives; its state may be Dying or Tail, where the predecessor was in
    /// the middle.
    #[must_use]
    pub fn as_found(&self, extent: &Extent) -> Option<Extent> {
        self.piece(extent.run).filter(|found| found.life.stamp().is_some())
    }

    /// Discards what an owner killed in the middle of a split or a merge left below the whole
    /// folios of `run`. A restarted owner calls it before it splits or allocates there.
    pub fn discard_stale_below(&mut self, run: PfnRange) {
        let whole: Vec<(Pfn, Level)> = self
            .vmemmap()
            .folios(run)
            .filter(|&(_, level, _)| level > Level::Pte)
            .map(|(first, level, _)| (first, level))
            .collect();
        for (first, level) in whole {
            self.discard_tables_below(level, first);
        }
    }

    fn check_life(&self, extent: &Extent) -> Result<(), ReshapeError> {
        if extent.is_hole() {
            return Err(ReshapeError::Changed { extent: extent.run, now: extent.life });
        }
        let now = self.vmemmap().load(extent.head_level, extent.first());
        let now = now.ok_or(ReshapeError::Outside { pfn: extent.first() })?;
        if now == extent.life {
            Ok(())
        } else {
            Err(ReshapeError::Changed { extent: extent.run, now })
        }
    }
}

/// States in which a folio may be split.
const fn is_splittable(state: FolioState) -> bool {
    match state {
        FolioState::Free
        | FolioState::Reserved
        | FolioState::Live
        | FolioState::Dying
        | FolioState::Quarantined => true,
        FolioState::Split | FolioState::Tail | FolioState::Poisoned | FolioState::Offline => false,
    }
}

/// PARTIAL says something about an extent and so only where one starts.
const fn without_partial(word: Descriptor) -> Descriptor {
    word.with_flags(word.flags().without(FolioFlags::PARTIAL))
}

/// The first frames of the 512 folios of `level` that lie in the folio one level up around `pfn`.
fn children(pfn: Pfn, level: Level) -> impl Iterator<Item = Pfn> {
    let parent = level.above().unwrap_or(level);
    let first = pfn.align_down(parent).number();
    (0..FANOUT).filter_map(move |child| Pfn::new(first + child * level.nr_pages()))
}
