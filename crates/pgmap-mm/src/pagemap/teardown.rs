//! The order in which a pagemap goes (I8): kill, tell, unmap, drain, free.
//!
//! # States
//!
//! ```text
//!   Kill ──▶ Tell ──▶ Unmap ──▶ Drain ──▶ Free ──▶ Done
//!                                │  ▲
//!                                └──┘ somebody still holds a frame
//! ```
//!
//! # Who may touch what
//!
//! The owner does each step and then says so. The machine only knows the order, so no step can be
//! left out, repeated or taken early.
//!
//! # Orderings
//!
//! None of its own; see [`pagemap`](super).
//!
//! # Lost races
//!
//! *Tell against a new holder.* Kill comes first and closes the pagemap to new holders, so whoever
//! is the holder at Tell is the last, and is notified once. The pagemap stays alive until then, so
//! that the holder can still look things up while it is notified.
//!
//! # Differs from Linux
//!
//! There the order is the same up to the drain (Linux 7.1: drivers/dax/super.c, `kill_dax`), but
//! the memory of device-dax and fsdax is handed over while pins last (mm/memremap.c,
//! `memunmap_pages`). Here Drain has a deadline, names who holds, and can be tried again; Free
//! cannot come before it.

use core::fmt;

use super::{Lifecycle, PagemapId, PagemapTable};
use crate::error::errno;

/// One step of a teardown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Let nothing new start: no allocation, mapping or holder. Done as the teardown begins; the
    /// owner closes what it keeps beside the table.
    Kill,
    /// Tell the holder that the memory goes (`MF_MEM_PRE_REMOVE`). Look-ups refuse afterwards.
    Tell,
    /// Remove every mapping.
    Unmap,
    /// Change every life word, then wait until nothing holds a frame.
    Drain,
    /// Call `folio_free` for each folio, free it, give the range up.
    Free,
    /// Nothing is left to do.
    Done,
}

/// Why a teardown does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TeardownError {
    /// There is no such pagemap.
    Absent {
        /// Its id.
        id: PagemapId,
    },
    /// It is being taken down already.
    Begun {
        /// The pagemap.
        id: PagemapId,
    },
    /// Another step is due.
    OutOfTurn {
        /// What was said to be done.
        step: Step,
        /// What is due.
        due: Step,
    },
    /// Holds remain.
    Held {
        /// How many.
        nr_holds: usize,
    },
}

impl TeardownError {
    /// The Linux error number that says the same.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Absent { .. } | Self::OutOfTurn { .. } => errno::EINVAL,
            Self::Begun { .. } | Self::Held { .. } => errno::EBUSY,
        }
    }
}

impl fmt::Display for TeardownError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent { id } => write!(f, "there is no pagemap {}", id.0),
            Self::Begun { id } => write!(f, "pagemap {} is being taken down already", id.0),
            Self::OutOfTurn { step, due } => write!(f, "{step:?} cannot be done before {due:?}"),
            Self::Held { nr_holds } => write!(f, "{nr_holds} holds keep the pagemap's frames"),
        }
    }
}

impl std::error::Error for TeardownError {}

/// A pagemap on its way out. There is at most one for each.
#[derive(Debug, PartialEq, Eq)]
pub struct Teardown {
    id: PagemapId,
    due: Step,
}

impl Teardown {
    pub(super) const fn new(id: PagemapId) -> Self {
        Self { id, due: Step::Kill }
    }

    /// The pagemap.
    #[must_use]
    pub const fn id(&self) -> PagemapId {
        self.id
    }

    /// What the owner does next.
    #[must_use]
    pub const fn next(&self) -> Step {
        self.due
    }

    /// Takes note that `step` is done; returns the one after it. Draining is reported by
    /// [`drained`](Self::drained).
    ///
    /// # Errors
    /// [`TeardownError::OutOfTurn`] when another step is due.
    pub fn done(&mut self, step: Step, table: &mut PagemapTable) -> Result<Step, TeardownError> {
        if step != self.due || step == Step::Drain || step == Step::Done {
            return Err(TeardownError::OutOfTurn { step, due: self.due });
        }
        self.due = match step {
            Step::Kill => Step::Tell,
            Step::Tell => {
                table.advance(self.id, Lifecycle::Dying);
                Step::Unmap
            }
            Step::Unmap => Step::Drain,
            Step::Drain | Step::Free | Step::Done => {
                table.advance(self.id, Lifecycle::Drained);
                Step::Done
            }
        };
        Ok(self.due)
    }

    /// Takes note of what a scan of the pagemap's frames found; with no hold left, Free is next.
    ///
    /// # Errors
    /// [`TeardownError::Held`] while there are holds: the drain goes on, for as long as it takes;
    /// [`TeardownError::OutOfTurn`] when another step is due.
    pub fn drained(&mut self, nr_holds: usize) -> Result<Step, TeardownError> {
        if self.due != Step::Drain {
            return Err(TeardownError::OutOfTurn { step: Step::Drain, due: self.due });
        }
        if nr_holds > 0 {
            return Err(TeardownError::Held { nr_holds });
        }
        self.due = Step::Free;
        Ok(self.due)
    }
}
