//! Process addresses at which a range of an address space is shown: side by side, as its
//! addresses are, whatever files and frames lie below.
//!
//! A view is a window and no hold, as the client's window on the pool is. A user of it holds the
//! frames by pins of its own: it pins first, then has the frames shown, and unpins last. Views are
//! shared: mapping takes system calls, and the next user mostly wants what the last one saw.
//!
//! # States
//! Of a block of addresses:
//! ```text
//!   empty ─────────── show ───────────────────────▶ shown, used
//!   shown, used ───── last release ───────────────▶ shown, unused
//!   shown, used ───── last release, with holes ───▶ empty
//!   shown, unused ─── show, of whatever is there ─▶ shown, used
//!   shown, unused ─── too many mappings ──────────▶ empty
//! ```
//!
//! # Who may touch what
//! The lock is held while mappings change. Bytes of a block are for those who had it shown and have
//! not released it: what is left of an unused block may be anybody's by now.
//!
//! # Lost races
//! *Two who want different things at one address*, because the address space changed in between and
//! the first one's frames are still held: the second is refused, and has itself shown what it wants
//! in another view.
//!
//! # Differs from Linux
//! A process has one mapping of an address, and an unmap takes it from everybody. Here what
//! was shown stays until it is released.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use pgmap_os::sync::{Mutex, MutexGuard};
use pgmap_os::{FileAccess, OsError, Reservation};

use crate::client::Client;
use crate::error::Error;

/// What is shown and released as one, at most: an aligned block of this size.
pub(super) const BLOCK_BYTES: u64 = 2 << 20;

/// Views that are kept although nobody uses them.
const MAX_IDLE_VIEWS: usize = 4096;
/// The error number of a place that has no memory.
const ENODEV: i32 = 19;

/// The first address of the block with this address.
pub(super) const fn block_of(address: u64) -> u64 {
    address - address % BLOCK_BYTES
}

/// Addresses in a row, and what lies behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub address: u64,
    pub len_bytes: u64,
    pub contents: PieceContents,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceContents {
    /// The pool's bytes from this offset on.
    Pool(u64),
    /// A hole in a file.
    Hole,
}

impl Piece {
    pub(super) const fn end(&self) -> u64 {
        self.address + self.len_bytes
    }

    /// What it has from `from` up to `to`.
    pub(super) fn part(&self, from: u64, to: u64) -> Option<Self> {
        let (address, end) = (self.address.max(from), self.end().min(to));
        let contents = match self.contents {
            PieceContents::Pool(offset) => PieceContents::Pool(offset + (address - self.address)),
            PieceContents::Hole => PieceContents::Hole,
        };
        (address < end).then(|| Self { address, len_bytes: end - address, contents })
    }

    fn goes_on_as(&self, next: &Self) -> bool {
        self.end() == next.address
            && match (self.contents, next.contents) {
                (PieceContents::Pool(offset), PieceContents::Pool(next)) => {
                    offset + self.len_bytes == next
                }
                (PieceContents::Hole, PieceContents::Hole) => true,
                _ => false,
            }
    }
}

/// Adds a piece behind the others, as a part of the last one if it carries that on.
pub(super) fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    match pieces.last_mut() {
        Some(last) if last.goes_on_as(&piece) => last.len_bytes += piece.len_bytes,
        _ => pieces.push(piece),
    }
}

/// Why a view does not show what it was asked to.
#[derive(Debug)]
pub(super) enum NotShown {
    /// Somebody uses a block that shows something else.
    Taken,
    /// The kernel refused.
    Os(OsError),
}

/// A block and what is to be shown of it; addresses without a piece are to be inaccessible.
pub(super) type BlockToShow<'p> = (u64, &'p [Piece]);

/// Process addresses for a range of an address space.
#[derive(Debug)]
pub(super) struct View {
    client: Client,
    range: Range<u64>,
    addresses: Reservation,
    /// Where the first address of `range` lies in the reservation.
    lead: usize,
    blocks: Mutex<BTreeMap<u64, Shown>>,
}

#[derive(Debug)]
struct Shown {
    /// `None` after a change that failed half way.
    pieces: Option<Vec<Piece>>,
    nr_users: usize,
}

impl Shown {
    /// Whether it may be shared with one who wants these. Zeros of a hole can be written to, so
    /// those are not shared.
    fn is(&self, wanted: &[Piece]) -> bool {
        self.pieces.as_deref() == Some(wanted) && !has_hole(wanted)
    }
}

fn has_hole(pieces: &[Piece]) -> bool {
    pieces.iter().any(|piece| piece.contents == PieceContents::Hole)
}

impl View {
    /// Addresses for `range`, all inaccessible; congruent to it, so that huge pages fit.
    pub(super) fn new(client: &Client, range: Range<u64>) -> Result<Self, Error> {
        let lead = (range.start % BLOCK_BYTES) as usize;
        let len = (range.end - range.start) as usize + lead;
        let addresses = Reservation::anywhere(len, BLOCK_BYTES as usize)?;
        Ok(Self { client: client.clone(), range, addresses, lead, blocks: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Shown>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where an address of the range is shown.
    pub(super) fn pointer(&self, address: u64) -> *mut u8 {
        let offset = self.offset(address);
        std::ptr::with_exposed_provenance_mut(self.addresses.addresses().start + offset)
    }

    fn offset(&self, address: u64) -> usize {
        (address - self.range.start) as usize + self.lead
    }

    /// Shows all of this, and nothing else in these blocks, until each is released: all or nothing.
    pub(super) fn show(&self, wanted: &[BlockToShow<'_>]) -> Result<(), NotShown> {
        let mut blocks = self.lock();
        let is_taken = |&(at, pieces): &BlockToShow<'_>| {
            blocks.get(&at).is_some_and(|shown| shown.nr_users > 0 && !shown.is(pieces))
        };
        if wanted.iter().any(is_taken) {
            return Err(NotShown::Taken);
        }
        if self.put(&mut blocks, wanted).is_err() {
            // The process may have too many mappings, some of which nobody uses.
            self.clear_unused(&mut blocks);
            self.put(&mut blocks, wanted).map_err(NotShown::Os)?;
        }
        for (at, _) in wanted {
            if let Some(shown) = blocks.get_mut(at) {
                shown.nr_users += 1;
            }
        }
        Ok(())
    }

    /// Shows what is not shown yet, in blocks that nobody uses.
    fn put(
        &self,
        blocks: &mut BTreeMap<u64, Shown>,
        wanted: &[BlockToShow<'_>],
    ) -> Result<(), OsError> {
        let is_new =
            |(at, pieces): &&BlockToShow<'_>| !blocks.get(at).is_some_and(|it| it.is(pieces));
        let new: Vec<&BlockToShow<'_>> = wanted.iter().filter(is_new).collect();
        // Neighbours are mapped in one call.
        let mut pieces = Vec::new();
        for &&(at, wanted) in &new {
            // Until all is done nobody knows what is there.
            if blocks.insert(at, Shown { pieces: None, nr_users: 0 }).is_some() {
                self.vacate(at)?;
            }
            wanted.iter().for_each(|&piece| push(&mut pieces, piece));
        }
        pieces.iter().try_for_each(|piece| self.map(piece))?;
        for &&(at, wanted) in &new {
            blocks.insert(at, Shown { pieces: Some(wanted.to_vec()), nr_users: 0 });
        }
        Ok(())
    }

    fn map(&self, piece: &Piece) -> Result<(), OsError> {
        let (offset, len) = (self.offset(piece.address), piece.len_bytes as usize);
        match piece.contents {
            PieceContents::Pool(at) => {
                let gone = || {
                    let error = std::io::Error::from_raw_os_error(ENODEV);
                    OsError::new("map", format!("byte {at} of the pool"), error)
                };
                let (file, at) = self.client.file_at(at).ok_or_else(gone)?;
                self.addresses.map(offset, &file, at, len, FileAccess::ReadWrite)
            }
            PieceContents::Hole => self.addresses.map_zeros(offset, len),
        }
    }

    /// The addresses of a block that are of the range.
    fn inside(&self, block: u64) -> (u64, u64) {
        (block.max(self.range.start), (block + BLOCK_BYTES).min(self.range.end))
    }

    fn vacate(&self, block: u64) -> Result<(), OsError> {
        let (from, to) = self.inside(block);
        self.addresses.vacate(self.offset(from), (to - from) as usize)
    }

    fn clear_unused(&self, blocks: &mut BTreeMap<u64, Shown>) {
        self.clear_unused_of(blocks, |_| true);
    }

    fn clear_unused_of(
        &self,
        blocks: &mut BTreeMap<u64, Shown>,
        is_to_go: impl Fn(&Shown) -> bool,
    ) {
        // What cannot be taken away is taken away before something else is shown there.
        blocks.retain(|&at, shown| {
            shown.nr_users > 0 || !is_to_go(shown) || self.vacate(at).is_err()
        });
    }

    /// Ends a use of each of these blocks.
    pub(super) fn release(&self, used: &[u64]) {
        let mut blocks = self.lock();
        for at in used {
            let Some(shown) = blocks.get_mut(at) else { continue };
            shown.nr_users -= 1;
            let is_to_go =
                shown.nr_users == 0 && !shown.pieces.as_deref().is_some_and(|it| shown.is(it));
            if is_to_go && self.vacate(*at).is_ok() {
                blocks.remove(at);
            }
        }
    }
}

/// The views of an address space that the next user of the same range gets, by first address.
#[derive(Debug, Default)]
pub(super) struct Views(Mutex<BTreeMap<u64, Arc<View>>>);

impl View {
    /// Keeps nothing of the pool's `bytes`, which are gone. Where somebody uses what is shown
    /// there, copies fail from now on.
    fn lose(&self, bytes: &Range<u64>) {
        let is_lost = |piece: &Piece| match piece.contents {
            PieceContents::Pool(at) => at < bytes.end && bytes.start < at + piece.len_bytes,
            PieceContents::Hole => false,
        };
        let shows_it =
            |shown: &Shown| shown.pieces.as_deref().is_none_or(|pieces| pieces.iter().any(is_lost));
        let mut blocks = self.lock();
        for (&at, shown) in blocks.iter_mut().filter(|(_, shown)| shows_it(shown)) {
            shown.pieces = None;
            let (from, to) = self.inside(at);
            if let Err(error) = self.addresses.map_nothing(self.offset(from), (to - from) as usize)
            {
                tracing::warn!(%error, "a part of memory that is gone stays mapped");
            }
        }
        self.clear_unused_of(&mut blocks, |shown| shown.pieces.is_none());
    }
}

impl Views {
    /// As [`View::lose`], of every view.
    pub(super) fn lose(&self, bytes: &Range<u64>) {
        let all: Vec<Arc<View>> = {
            let views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            views.values().map(Arc::clone).collect()
        };
        all.iter().for_each(|view| view.lose(bytes));
    }

    /// The view of `range`; another one than `refused`, which did not do.
    pub(super) fn of(
        &self,
        client: &Client,
        range: &Range<u64>,
        refused: Option<&Arc<View>>,
    ) -> Result<Arc<View>, Error> {
        let mut views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = views.get(&range.start).filter(|view| view.range == *range);
        if let Some(view) = known.filter(|view| !refused.is_some_and(|it| Arc::ptr_eq(it, view))) {
            return Ok(Arc::clone(view));
        }
        let view = Arc::new(View::new(client, range.clone())?);
        // Those of other ranges there are of areas that are no more, or not as they were.
        while let Some((&at, last)) = views.range(..range.end).next_back()
            && last.range.end > range.start
        {
            views.remove(&at);
        }
        if views.len() >= MAX_IDLE_VIEWS {
            views.retain(|_, view| Arc::strong_count(view) > 1);
        }
        views.insert(range.start, Arc::clone(&view));
        Ok(view)
    }
}
