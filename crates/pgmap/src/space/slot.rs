//! Memory slots: a range of an address space that is contiguous in the process, too, as a virtual
//! machine monitor's slots of guest memory are, and held where it is used.
//!
//! # States
//! Of a block of the range, for one slot:
//! ```text
//!            first use: pin, then show                     dropped: release, then unpin
//!   unknown ───────────────────────────▶ held and shown ───────────────────────────────▶ unknown
//! ```
//!
//! # Who may touch what
//! Any thread, under the slot's lock. Bytes are for those who had them held, while the slot lives.
//!
//! # Lost races
//! *Use against a cut of the file.* If the pin is first, the owner waits for the slot. If the owner
//! is first, the pin fails, and the use is an error.
//!
//! *Use against a change of the address space.* What was used before stays as it was. What is used
//! afterwards is what is mapped then.
//!
//! # Differs from Linux
//! KVM's slots follow the process's mappings through `mmu_notifier` (Linux 7.1:
//! virt/kvm/kvm_main.c). Here a slot keeps what was used, and a new slot has the new memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use pgmap_mm::fault::FaultError;
use pgmap_mm::gup::{Dirty, GupError, GupFlags};
use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::mm::FillError;
use pgmap_mm::pin::ClientSide;
use pgmap_mm::vma::BackingError;
use pgmap_os::OsError;
use pgmap_os::sync::{Mutex, MutexGuard};

use super::copy::is_hole;
use super::run::{Run, end_in};
use super::view::{BLOCK_BYTES, BlockToShow, NotShown, Piece, PieceContents, View, block_of, push};
use super::{AddressSpace, PinnedPages, SpaceError};
use crate::error::Error;

/// It is the processor that reads and writes, and it reaches a device's memory too.
const FLAGS: GupFlags = GupFlags::WRITE.with(GupFlags::HWPOISON).with(GupFlags::P2PDMA);

/// The shared view, another shared one, and one of the slot's own, which nobody else can have
/// taken.
const MAX_VIEWS_TRIED: usize = 3;

/// A range of an address space at process addresses in a row.
///
/// What is used of it is held, block by block of 2 MiB, from the first use on until the slot is
/// dropped, whatever becomes of the mapping and the file. What nobody says was written stays clean
/// in [`Mm::dirty`](pgmap_mm::mm::Mm::dirty).
#[derive(Debug)]
pub struct MemorySlot<'s> {
    space: &'s AddressSpace,
    range: Range<u64>,
    held: Mutex<BlockHold<'s>>,
}

/// Bytes of a slot that are held.
#[derive(Debug)]
pub struct SlotBytes {
    /// The first of them; the others follow.
    pub ptr: *mut u8,
    /// Which of the addresses lie in holes of files: they read as zeros, and what is written there
    /// is of this slot alone and goes with it.
    pub holes: Vec<Range<u64>>,
}

#[derive(Debug, Default)]
struct BlockHold<'s> {
    blocks: BTreeMap<u64, HeldBlock>,
    views: Vec<UsedView>,
    /// The number of the view that shows the whole slot.
    whole: Option<usize>,
    pins: Vec<CleanPin<'s>>,
}

/// A block that is held.
#[derive(Debug)]
struct HeldBlock {
    /// What it has; addresses without a piece have nothing that could be held.
    pieces: Vec<Piece>,
    /// The number of the last view that shows it.
    view: Option<usize>,
}

/// A view, and which of its blocks this slot has shown there.
#[derive(Debug)]
struct UsedView {
    view: Arc<View>,
    blocks: Vec<u64>,
}

/// Pages whose writers have marked them.
#[derive(Debug)]
struct CleanPin<'s>(Option<PinnedPages<'s>>);

impl Drop for CleanPin<'_> {
    fn drop(&mut self) {
        if let Some(pages) = self.0.take() {
            pages.unpin(Dirty::No);
        }
    }
}

impl AddressSpace {
    /// The memory around `address`, as far as areas that may be read and written adjoin each other
    /// and their files reach, inside `within`. Returns `None` if there is no such memory at the
    /// address, and in a forked child.
    ///
    /// A hole in a file or failed memory is no end of it: [`MemorySlot::hold`] tells.
    #[must_use]
    pub fn memory_slot(&self, address: u64, within: Range<u64>) -> Option<MemorySlot<'_>> {
        if self.is_forked() {
            return None;
        }
        let found = self.runs.at(address).filter(|run| run.is_current(self.mm()));
        let run = match found {
            Some(run) => run,
            None => self.runs.keep(Run::find(self.mm(), address)?),
        };
        let range = run.range.start.max(within.start)..run.range.end.min(within.end);
        range.contains(&address).then(|| MemorySlot { space: self, range, held: Mutex::default() })
    }

    /// Whether this process is a forked child of the one that has the address space, where nothing
    /// is held and nothing can be.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        self.client.inner.pinner.side().is_forked()
    }

    /// How many bytes from `address` on, which lies in a hole, are of that hole.
    fn hole_bytes(&self, address: u64) -> u64 {
        let page = address / PAGE_BYTES;
        let nr_pages = self.mm().area_at(address).map_or(1, |area| {
            let file = self.file_of(&area);
            let nr_pages = file.map_or(1, |file| file.hole_pages(area.file_page_of(page)));
            nr_pages.clamp(1, area.end() - page)
        });
        nr_pages * PAGE_BYTES
    }

    /// The next address that may have memory behind a page that has none.
    fn after_missing(&self, address: u64) -> u64 {
        let page = address / PAGE_BYTES;
        let end = self
            .mm()
            .area_at(address)
            .map_or(page + 1, |area| if end_in(&area) <= page { area.end() } else { page + 1 });
        end * PAGE_BYTES
    }
}

impl<'s> MemorySlot<'s> {
    /// Its addresses.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Holds `len_bytes` bytes from `address` on, at least one, and says where they are in the
    /// process. They stay there for as long as the slot lives, and may be read and written by
    /// volatile or atomic accesses (I6).
    ///
    /// # Errors
    /// [`SpaceError::Gup`] names the first address that has nothing to be held, and says why;
    /// [`SpaceError::File`] in a forked child, and when the kernel can map no more.
    pub fn hold(&self, address: u64, len_bytes: u64) -> Result<SlotBytes, SpaceError> {
        let bytes = self.checked(address, len_bytes)?;
        let mut held = self.lock();
        self.pin(&mut held, &bytes)?;
        let holes = held.holes(&bytes).map_err(|missing| self.why_missing(missing))?;
        let ptr = self.show(&mut held, &bytes)?;
        Ok(SlotBytes { ptr, holes })
    }

    /// Holds the whole slot, as far as that can be had, and says where `address` is in the process:
    /// for a caller that goes on from there by pointer. What cannot be had is inaccessible.
    ///
    /// # Errors
    /// As [`hold`](Self::hold); also when there are more pieces than this client can hold.
    pub fn hold_all(&self, address: u64) -> Result<*mut u8, SpaceError> {
        let byte = self.checked(address, 1)?;
        let mut held = self.lock();
        self.pin(&mut held, &self.range)?;
        held.holes(&byte).map_err(|missing| self.why_missing(missing))?;
        if let Some(number) = held.whole {
            return Ok(held.views[number].view.pointer(address));
        }
        let start = self.show(&mut held, &self.range)?;
        held.whole = held
            .last_view()
            .filter(|(_, view)| view.pointer(self.range.start) == start)
            .map(|(number, _)| number);
        Ok(start.wrapping_add((address - self.range.start) as usize))
    }

    fn lock(&self) -> MutexGuard<'_, BlockHold<'s>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn checked(&self, address: u64, len_bytes: u64) -> Result<Range<u64>, SpaceError> {
        if self.space.is_forked() {
            return Err(Error::Forked.into());
        }
        let end = address.checked_add(len_bytes).filter(|&end| end <= self.range.end);
        match end {
            Some(end) if address >= self.range.start && address < end => Ok(address..end),
            _ => Err(GupError::Outside { address }.into()),
        }
    }

    /// Holds the blocks with these bytes that are not held yet.
    fn pin(&self, held: &mut BlockHold<'s>, bytes: &Range<u64>) -> Result<(), SpaceError> {
        let mut at = block_of(bytes.start);
        while at < bytes.end {
            let mut end = at;
            while end < bytes.end && !held.blocks.contains_key(&end) {
                end += BLOCK_BYTES;
            }
            if at < end {
                self.pin_blocks(held, at, end)?;
            }
            at = end + BLOCK_BYTES;
        }
        Ok(())
    }

    /// Holds what the blocks from `first` up to `end` have.
    fn pin_blocks(&self, held: &mut BlockHold<'s>, first: u64, end: u64) -> Result<(), SpaceError> {
        let (mut at, to) = (first.max(self.range.start), end.min(self.range.end));
        let (mut pieces, mut pins) = (Vec::new(), Vec::new());
        while at < to {
            match self.space.pin(at, (to - at) / PAGE_BYTES, FLAGS) {
                Ok(pages) => {
                    for segment in pages.segments() {
                        let contents = PieceContents::Pool(segment.pool_offset);
                        let (address, len_bytes) = (segment.address, segment.len_bytes);
                        push(&mut pieces, Piece { address, len_bytes, contents });
                    }
                    // Asked for a page without FAST_ONLY, a pin holds one or fails.
                    at += pages.len_bytes().max(PAGE_BYTES);
                    pins.push(CleanPin(Some(pages)));
                }
                Err(error) if is_hole(&error) => {
                    let len_bytes = self.space.hole_bytes(at).min(to - at);
                    push(
                        &mut pieces,
                        Piece { address: at, len_bytes, contents: PieceContents::Hole },
                    );
                    at += len_bytes;
                }
                Err(error) if is_missing(&error) => at = self.space.after_missing(at).min(to),
                // Another try may do better, so nothing is settled.
                Err(error) => return Err(error),
            }
        }
        held.pins.append(&mut pins);
        let mut pieces = pieces.as_slice();
        for at in (first..end).step_by(BLOCK_BYTES as usize) {
            let (here, _) =
                pieces.split_at(pieces.partition_point(|it| it.address < at + BLOCK_BYTES));
            let parts = here.iter().filter_map(|piece| piece.part(at, at + BLOCK_BYTES));
            held.blocks.insert(at, HeldBlock { pieces: parts.collect(), view: None });
            pieces = &pieces[pieces.partition_point(|it| it.end() <= at + BLOCK_BYTES)..];
        }
        Ok(())
    }

    /// Why there is nothing at an address.
    fn why_missing(&self, address: u64) -> SpaceError {
        match self.space.pin(address, 1, FLAGS) {
            // It is there by now; this slot stays as it is.
            Ok(pages) => {
                pages.unpin(Dirty::No);
                GupError::Unstable { address }.into()
            }
            Err(error) => error,
        }
    }

    /// Shows the bytes, which are held, side by side; says where.
    fn show(&self, held: &mut BlockHold<'s>, bytes: &Range<u64>) -> Result<*mut u8, SpaceError> {
        for nr_tried in 0..MAX_VIEWS_TRIED {
            if nr_tried > 0 || held.views.is_empty() {
                match self.next_view(held, nr_tried) {
                    Ok(view) => held.views.push(UsedView { view, blocks: Vec::new() }),
                    Err(error) => return self.in_pool(held, bytes).ok_or_else(|| error.into()),
                }
            }
            match held.show_in_last(bytes) {
                Ok(Some(pointer)) => return Ok(pointer),
                Ok(None) => {}
                Err(error) => {
                    return self.in_pool(held, bytes).ok_or_else(|| Error::from(error).into());
                }
            }
        }
        Err(GupError::Unstable { address: bytes.start }.into())
    }

    fn next_view(&self, held: &BlockHold<'s>, nr_tried: usize) -> Result<Arc<View>, Error> {
        let (client, range) = (&self.space.client, &self.range);
        if nr_tried + 1 == MAX_VIEWS_TRIED {
            return View::new(client, range.clone()).map(Arc::new);
        }
        self.space.views.of(client, range, held.views.last().map(|used| &used.view))
    }

    /// Where the client's window on the pool has the bytes, if they are in a row there.
    fn in_pool(&self, held: &BlockHold<'s>, bytes: &Range<u64>) -> Option<*mut u8> {
        let mut pieces = Vec::new();
        held.pieces(bytes).for_each(|piece| push(&mut pieces, piece));
        match *pieces.as_slice() {
            [Piece { address, contents: PieceContents::Pool(offset), .. }] => {
                let (base, _) = self.space.client.pool_address();
                Some(base.wrapping_add((offset + (bytes.start - address)) as usize))
            }
            _ => None,
        }
    }
}

impl BlockHold<'_> {
    fn blocks_of(&mut self, bytes: &Range<u64>) -> impl Iterator<Item = (u64, &mut HeldBlock)> {
        let blocks = self.blocks.range_mut(block_of(bytes.start)..bytes.end);
        blocks.map(|(&at, block)| (at, block))
    }

    /// What the bytes consist of, in order.
    fn pieces(&self, bytes: &Range<u64>) -> impl Iterator<Item = Piece> {
        let Range { start, end } = *bytes;
        self.blocks.range(block_of(start)..end).flat_map(move |(_, block)| {
            let first = block.pieces.partition_point(|piece| piece.end() <= start);
            block.pieces[first..].iter().map_while(move |piece| piece.part(start, end))
        })
    }

    /// The holes among the bytes; the first address that has nothing, if one has not.
    fn holes(&self, bytes: &Range<u64>) -> Result<Vec<Range<u64>>, u64> {
        let (mut at, mut holes) = (bytes.start, Vec::new());
        for piece in self.pieces(bytes) {
            if piece.address != at {
                break;
            }
            at = piece.end();
            if piece.contents == PieceContents::Hole {
                holes.push(piece.address..at);
            }
        }
        if at == bytes.end { Ok(holes) } else { Err(at) }
    }

    fn last_view(&self) -> Option<(usize, &View)> {
        let number = self.views.len().checked_sub(1)?;
        Some((number, &self.views[number].view))
    }

    /// Has the last view show the bytes; `None` where another slot uses a block of it for something
    /// else.
    fn show_in_last(&mut self, bytes: &Range<u64>) -> Result<Option<*mut u8>, OsError> {
        let Some(number) = self.views.len().checked_sub(1) else { return Ok(None) };
        let blocks = self.blocks.range(block_of(bytes.start)..bytes.end);
        let is_new = |(_, block): &(&u64, &HeldBlock)| block.view != Some(number);
        let new: Vec<BlockToShow<'_>> =
            blocks.filter(is_new).map(|(&at, block)| (at, block.pieces.as_slice())).collect();
        let UsedView { view, blocks: used } = &mut self.views[number];
        if !new.is_empty() {
            match view.show(&new) {
                Ok(()) => used.extend(new.iter().map(|(at, _)| at)),
                Err(NotShown::Taken) => return Ok(None),
                Err(NotShown::Os(error)) => return Err(error),
            }
        }
        let pointer = view.pointer(bytes.start);
        self.blocks_of(bytes).for_each(|(_, block)| block.view = Some(number));
        Ok(Some(pointer))
    }
}

impl Drop for MemorySlot<'_> {
    fn drop(&mut self) {
        // In a forked child the views are not there, and their locks may be taken for ever.
        if self.space.is_forked() {
            return;
        }
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        for UsedView { view, blocks } in held.views.drain(..) {
            view.release(&blocks);
        }
        held.pins.clear();
    }
}

/// Whether a page has nothing that could be held, and will not have for this slot.
const fn is_missing(error: &SpaceError) -> bool {
    match error {
        SpaceError::Gup(GupError::Fault(FaultError::Fill { error, .. })) => matches!(
            error,
            FillError::Backing(
                BackingError::BeyondEnd | BackingError::Dead | BackingError::Poisoned
            ) | FillError::Misfit { .. }
                | FillError::Foreign { .. }
        ),
        SpaceError::Gup(error) => matches!(
            error,
            GupError::Fault(_)
                | GupError::Outside { .. }
                | GupError::NotPresent { .. }
                | GupError::Raw { .. }
                | GupError::Peer { .. }
                | GupError::Poisoned { .. }
        ),
        _ => false,
    }
}
