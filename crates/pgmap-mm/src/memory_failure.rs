//! Memory failure: one frame out of use, everything around it alive.
//!
//! # States
//!
//! ```text
//!   Free ───────────────────────────────┐
//!   Reserved, Live ── extent cut ───────┼──▶ Poisoned ── overwritten in full ──▶ Live, Reserved
//!   Dying, Quarantined ── folio split ──┘        └────── memory replaced ──────▶ Free
//! ```
//!
//! Poisoned is always a folio of the smallest level that is described: 4 KiB, unless the pagemap
//! was made without room for such descriptors. It keeps its stamp, so whose it was can still be
//! notified.
//!
//! # Who may touch what
//!
//! The owner alone (I2).
//!
//! # Orderings
//!
//! Those of a drain: the life word of the extent changes, the frame says Poisoned, then the owner's
//! heavy barrier and scan find whom to tell.
//!
//! # Lost races
//!
//! *Poison against pin.* If the slot's store comes first, the scan finds the holder, which is
//! notified. If the change of the life word comes first, the pin sees it and fails; asking again,
//! the client gets an extent that says Poisoned, and that is `EHWPOISON`.
//!
//! *Poison against drain.* Both are the owner's, one after the other. A frame that fails while it
//! is Dying stays Poisoned when the drain ends: [`Folios::change_healthy`] and
//! [`Folios::free_healthy`] pass it over.
//!
//! # Differs from Linux
//!
//! The kernel unmaps and poisons the largest mapping, so one bad line costs 2 MiB or 1 GiB, and
//! refuses for private and coherent memory with `ENXIO` (Linux 7.1: mm/memory-failure.c,
//! `mf_generic_kill_procs`). Here the folio is split first, and the memory's type plays no part.

use core::fmt;

use crate::descriptor::{Descriptor, FolioFlags, FolioState};
use crate::error::errno;
use crate::extent::Extent;
use crate::folio::Folios;
use crate::pfn::{Pfn, PfnRange};
use crate::runs::SortedRuns;
use crate::split::ReshapeError;
use crate::stamp::Stamp;
use crate::words::WriteWords;

/// Why a failure could not be recorded or cleared. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureError {
    /// There is no memory for the descriptor of the frame, which is free.
    NoRoom {
        /// The frame.
        pfn: Pfn,
    },
    /// No memory is described at this frame.
    NoMemory {
        /// The frame.
        pfn: Pfn,
    },
    /// The frame is known to have failed.
    AlreadyPoisoned {
        /// The frame.
        pfn: Pfn,
    },
    /// The frame is in use, and the caller did not say by which extent.
    NeedsExtent {
        /// The frame.
        pfn: Pfn,
        /// Its descriptor.
        word: Descriptor,
    },
    /// The folio around the frame could not be split.
    Reshape(ReshapeError),
    /// Not all of the frames are Poisoned.
    NotPoisoned {
        /// The first folio that is not.
        folio: PfnRange,
    },
    /// A cleared frame can only become Live or Reserved.
    WrongState {
        /// The state asked for.
        state: FolioState,
    },
}

impl FailureError {
    /// The Linux error number that says the same.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::NoMemory { .. } => errno::ENXIO,
            Self::NoRoom { .. } => errno::ENOSPC,
            Self::AlreadyPoisoned { .. } => errno::EHWPOISON,
            Self::NeedsExtent { .. } => errno::EBUSY,
            Self::Reshape(error) => error.errno(),
            Self::NotPoisoned { .. } | Self::WrongState { .. } => errno::EINVAL,
        }
    }
}

impl fmt::Display for FailureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory { pfn } => write!(f, "pfn {pfn} has no memory that could fail"),
            Self::NoRoom { pfn } => write!(
                f,
                "pfn {pfn} failed, and the pool's file system has no room to describe it; make \
                 room and report it again"
            ),
            Self::AlreadyPoisoned { pfn } => write!(f, "pfn {pfn} is poisoned already"),
            Self::NeedsExtent { pfn, word } => {
                write!(f, "pfn {pfn} is {word:?} and no extent was given to cut it out of")
            }
            Self::Reshape(error) => write!(f, "the failed frame cannot be isolated: {error}"),
            Self::NotPoisoned { folio } => write!(f, "folio {folio} is not poisoned"),
            Self::WrongState { state } => {
                write!(f, "a cleared frame cannot become {}", state.name())
            }
        }
    }
}

impl std::error::Error for FailureError {}

impl From<ReshapeError> for FailureError {
    fn from(error: ReshapeError) -> Self {
        Self::Reshape(error)
    }
}

/// One frame that is out of use, and what that did to the extent around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolated {
    /// The frame, or the smallest folio around it that can be described.
    pub frame: PfnRange,
    /// What it was in use for.
    pub was: FolioState,
    /// The extents that take the place of the one it lay in, in order; the frame is one of them, so
    /// offsets into the file stay what they were. Empty when it lay in none.
    pub pieces: Vec<Extent>,
}

impl<W: WriteWords> Folios<W> {
    /// Takes the frame `pfn` out of use because its memory failed: splits the folio around it, cuts
    /// the extent that it lies in, marks it Poisoned. `extent` is needed for a frame in use; a
    /// Dying or Quarantined frame has none any more, nor has a free one. The caller then runs a
    /// heavy barrier and a scan to learn whom to tell.
    ///
    /// # Errors
    /// [`FailureError::AlreadyPoisoned`], [`FailureError::NoMemory`],
    /// [`FailureError::NeedsExtent`], [`FailureError::NoRoom`] and [`FailureError::Reshape`] when
    /// `extent` is not what it is now.
    pub fn isolate(
        &mut self,
        pfn: Pfn,
        extent: Option<&Extent>,
        fresh: Stamp,
    ) -> Result<Isolated, FailureError> {
        let (level, word) = self.vmemmap().folio_of(pfn).ok_or(FailureError::NoMemory { pfn })?;
        let smallest = self.smallest();
        let frame = PfnRange::folio(pfn, smallest);
        let was = word.state();
        let pieces = match was {
            FolioState::Poisoned => return Err(FailureError::AlreadyPoisoned { pfn }),
            FolioState::Offline | FolioState::Tail | FolioState::Split => {
                return Err(FailureError::NoMemory { pfn });
            }
            FolioState::Free => {
                let word = Descriptor::new(FolioState::Poisoned, FolioFlags::NONE, fresh);
                if !self.frames().is_free(frame) {
                    return Err(FailureError::NeedsExtent { pfn, word });
                }
                if !self.reclaim(frame, smallest, word) {
                    return Err(FailureError::NoRoom { pfn });
                }
                Vec::new()
            }
            FolioState::Dying | FolioState::Quarantined => {
                if level > smallest {
                    self.split(pfn, smallest)?;
                }
                self.change(frame, poisoned);
                Vec::new()
            }
            FolioState::Reserved | FolioState::Live => {
                let extent = extent.ok_or(FailureError::NeedsExtent { pfn, word })?;
                let cut = self.cut_out(extent, frame, fresh)?;
                self.change(frame, poisoned);
                let hole = Extent { life: poisoned(cut.hole.life), ..cut.hole };
                cut.before.into_iter().chain([hole]).chain(cut.after).collect()
            }
        };
        Ok(Isolated { frame, was, pieces })
    }

    /// As [`isolate`](Self::isolate), for a file that can have no more extents: all of `extent` is
    /// withheld under a Quarantined life word, because the frame cannot be cut out of it. Its other
    /// frames are free again with the file.
    ///
    /// # Errors
    /// As [`isolate`](Self::isolate).
    pub fn isolate_in_whole(
        &mut self,
        pfn: Pfn,
        extent: &Extent,
        fresh: Stamp,
    ) -> Result<Isolated, FailureError> {
        let smallest = self.smallest();
        let frame = PfnRange::folio(pfn, smallest);
        let (level, word) = self.vmemmap().folio_of(pfn).ok_or(FailureError::NoMemory { pfn })?;
        let was = word.state();
        if !matches!(was, FolioState::Reserved | FolioState::Live) || !extent.run.covers(frame) {
            return Err(FailureError::NeedsExtent { pfn, word });
        }
        let mut withheld = *extent;
        if level > smallest {
            withheld = self.split(pfn, smallest)?.extent_after(&withheld);
        }
        let flags = withheld.life.flags().without(FolioFlags::PARTIAL);
        let is_head_lost =
            frame.first() == extent.first() || extent.life.state() == FolioState::Poisoned;
        let state = if is_head_lost { FolioState::Poisoned } else { FolioState::Quarantined };
        withheld.life = Descriptor::new(state, flags, fresh);
        self.vmemmap().set(withheld.head_level, withheld.first(), withheld.life);
        self.change(frame, poisoned);
        Ok(Isolated { frame, was, pieces: vec![withheld] })
    }

    /// As [`change`](Self::change), but what failed stays Poisoned.
    pub fn change_healthy(&mut self, run: PfnRange, change: impl Fn(Descriptor) -> Descriptor) {
        self.change(run, |word| match word.state() {
            FolioState::Poisoned => word,
            _ => change(word),
        });
    }

    /// Frees what is not Poisoned of `run`, made of whole folios that nothing holds, and returns
    /// the rest: it stays out of the free frames until [`return_repaired`](Self::return_repaired).
    #[must_use]
    pub fn free_healthy(&mut self, run: PfnRange) -> Vec<PfnRange> {
        let failed = self.poisoned(run);
        let mut rest = Some(run);
        for &bad in &failed {
            let Some(healthy) = rest else { break };
            let (before, after) = healthy.without(bad);
            if let Some(before) = before {
                self.free(before);
            }
            rest = after;
        }
        if let Some(rest) = rest {
            self.free(rest);
        }
        failed
    }

    /// What of `run` is Poisoned, as runs in order.
    #[must_use]
    pub fn poisoned(&self, run: PfnRange) -> Vec<PfnRange> {
        let failed: SortedRuns = self
            .vmemmap()
            .folios(run)
            .filter(|(_, _, word)| word.state() == FolioState::Poisoned)
            .filter_map(|(first, level, _)| PfnRange::folio(first, level).intersection(run))
            .collect();
        failed.iter().collect()
    }

    /// The extents to tell of instead of `extent` when some of its frames are Poisoned: what a
    /// restarted owner needs whose catalog is older than the failure. Without one, `extent` itself.
    ///
    /// # Errors
    /// As [`cut_out`](Self::cut_out).
    pub fn cut_around_poison(
        &mut self,
        extent: &Extent,
        fresh: Stamp,
    ) -> Result<Vec<Extent>, ReshapeError> {
        let mut pieces = Vec::new();
        let mut rest = Some(*extent);
        for failed in self.poisoned(extent.run) {
            let Some(whole) = rest else { break };
            let cut = self.cut_out(&whole, failed, fresh)?;
            pieces.extend(cut.before.into_iter().chain([cut.hole]));
            rest = cut.after;
        }
        pieces.extend(rest);
        Ok(pieces)
    }

    /// Puts the Poisoned frames of `run` back into use under `word`, which must be Live or Reserved
    /// and carry a stamp that was never given. The caller has overwritten every byte of them.
    ///
    /// # Errors
    /// [`FailureError::NotPoisoned`] when a frame is not, [`FailureError::WrongState`] for another
    /// state.
    pub fn clear_poison(
        &mut self,
        run: PfnRange,
        word: Descriptor,
    ) -> Result<Extent, FailureError> {
        if !matches!(word.state(), FolioState::Live | FolioState::Reserved) {
            return Err(FailureError::WrongState { state: word.state() });
        }
        self.check_poisoned(run)?;
        let smallest = self.smallest();
        let cleared =
            Extent::new(run, smallest, word).ok_or(FailureError::NoMemory { pfn: run.first() })?;
        let head = PfnRange::folio(run.first(), smallest);
        if let (_, Some(rest)) = run.without(head) {
            self.change(rest, |_| word);
        }
        self.change(head, |_| word);
        Ok(cleared)
    }

    /// Gives Poisoned frames that no extent has any more back to the free ones: their memory was
    /// replaced or repaired.
    ///
    /// # Errors
    /// [`FailureError::NotPoisoned`] when a frame is not.
    pub fn return_repaired(&mut self, run: PfnRange) -> Result<(), FailureError> {
        self.check_poisoned(run)?;
        self.free(run);
        Ok(())
    }

    fn check_poisoned(&self, run: PfnRange) -> Result<(), FailureError> {
        if !self.vmemmap().layout().covers(run) {
            return Err(FailureError::NoMemory { pfn: run.first() });
        }
        let healthy =
            self.vmemmap().folios(run).find(|(_, _, word)| word.state() != FolioState::Poisoned);
        match healthy {
            Some((first, level, _)) => {
                Err(FailureError::NotPoisoned { folio: PfnRange::folio(first, level) })
            }
            None => Ok(()),
        }
    }
}

const fn poisoned(word: Descriptor) -> Descriptor {
    word.in_state(FolioState::Poisoned)
}
