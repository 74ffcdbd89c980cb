//! Translating and pinning under loom, against everything that moves the page table or ends a life.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p pgmap-mm --release --test loom gup`. The first thread
//! changes the address space, because loom 0.7 tries the orders of a store best against loads that
//! come later in its first execution; the others pin. Under loom a chunk of tables is one table and
//! an epoch serves one retired table or span, so reuse happens at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Client, Frame, Side, World, explore_up_to, extent, folio, leak};
use loom::thread;
use pgmap_mm::barrier::PortableBarrier;
use pgmap_mm::drain::{ClientId, Drain};
use pgmap_mm::extent::Extent;
use pgmap_mm::gup::{Gup, GupFlags, ReadSection, ShortSegment};
use pgmap_mm::level::{Level, PAGE_BYTES};
use pgmap_mm::mm::{MapRequest, Mm};
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::vma::{AreaBacking, Backed, BackingError, VmaKind};
use pgmap_mm::vmemmap::VmemmapLayout;

const HUGE: u64 = Level::Pmd.nr_pages();
const MIB2: u64 = Level::Pmd.size_bytes();
const PREEMPTIONS: usize = 3;

/// A file of one extent.
#[derive(Debug)]
struct File(Extent);

impl AreaBacking for File {
    fn kind(&self) -> VmaKind {
        VmaKind::Shared
    }
    fn nr_pages(&self) -> u64 {
        self.0.run.nr_pages()
    }
    fn extent_at(&self, page: u64) -> Result<Backed, BackingError> {
        Ok(Backed { extent: self.0, skip: page })
    }
}

fn file(n: u64) -> Arc<dyn AreaBacking> {
    Arc::new(File(extent(n)))
}

/// A file of one extent of four folios of 2 MiB, under the life word of folio 0.
fn long_file() -> Arc<dyn AreaBacking> {
    let run = PfnRange::new(0, 4 * HUGE).unwrap();
    Arc::new(File(Extent::new(run, Level::Pmd, extent(0).life).unwrap()))
}

struct Space {
    world: World,
    client: Client,
    mm: Arc<Mm>,
    frames: [Arc<Frame>; 2],
}

impl Space {
    fn new() -> Self {
        let world = World::new();
        let client = world.client(1, 2, 2);
        let layout = VmemmapLayout::for_pages(1).unwrap();
        let mm = Arc::new(Mm::for_device(&layout, 0, 4 * MIB2).unwrap());
        Self { world, client, mm, frames: [Frame::new(0), Frame::new(0)] }
    }

    /// Maps file `n` at this page, and fills it.
    fn map(&self, n: u64, file_page: u64, page: u64, nr_pages: u64) {
        let address = page * PAGE_BYTES;
        let request = MapRequest::new(file(n), nr_pages * PAGE_BYTES).from_file_page(file_page);
        self.mm.map(&request.over(address)).unwrap();
        self.mm.populate(address, nr_pages * PAGE_BYTES).unwrap();
    }

    /// Maps two leaves of the long file, from this page of it on, at page 0.
    fn map_two_leaves(&self, file_page: u64) {
        let request = MapRequest::new(long_file(), 2 * MIB2).from_file_page(file_page);
        self.mm.map(&request.over(0).filled()).unwrap();
    }

    fn unmap(&self, page: u64, nr_pages: u64) {
        let _ended = self.mm.unmap(page * PAGE_BYTES, nr_pages * PAGE_BYTES).unwrap();
    }

    /// Ends folio `n` as its owner does, and gives its frames to somebody else.
    fn end_life(&self, n: u64) {
        self.world.kill(n);
        self.world.drain(&[n], &[&self.client.reader]);
        self.frames[n as usize].reuse();
    }

    /// A thread that pins one page at `page` and uses what it got; it must be of one of `files`.
    fn pin_once(&self, page: u64, files: &'static [u64]) -> thread::JoinHandle<()> {
        let (mm, pinner) = (self.mm.clone(), self.client.pinner.clone());
        let frames = self.frames.clone();
        thread::spawn(move || {
            let lane = pinner.lane().unwrap();
            let gup = Gup::new(&mm, &lane).unwrap();
            if let Some(held) = gup.fast_leaf(page * PAGE_BYTES, 1, GupFlags::WRITE) {
                let n = file_of(held.run());
                assert!(files.contains(&n), "page {page} was never of file {n}");
                frames[n as usize].use_while_held();
            }
        })
    }
}

fn file_of(run: PfnRange) -> u64 {
    (0..2).find(|&n| folio(n).covers(run)).expect("frames of no folio")
}

#[test]
fn loom_fast_walk_vs_unmap_and_truncate() {
    explore_up_to(PREEMPTIONS, || {
        let space = Space::new();
        space.map(0, 0, 0, HUGE);
        let pinning = space.pin_once(5, &[0]);
        space.unmap(0, HUGE);
        space.end_life(0);
        pinning.join().unwrap();
    });
}

#[test]
fn loom_fast_walk_vs_truncate_that_tells_nobody() {
    explore_up_to(PREEMPTIONS, || {
        let space = Space::new();
        space.map(0, 0, 0, HUGE);
        let pinning = space.pin_once(5, &[0]);
        space.end_life(0);
        pinning.join().unwrap();
    });
}

#[test]
fn loom_fast_walk_vs_remap_of_the_same_address() {
    explore_up_to(PREEMPTIONS, || {
        let space = Space::new();
        space.map(0, 0, 0, HUGE);
        let pinning = space.pin_once(5, &[0, 1]);
        space.map(1, 0, 0, HUGE);
        space.end_life(0);
        pinning.join().unwrap();
    });
}

/// A leaf that is mapped over and filled at once is replaced in place: whoever walks finds the old
/// leaf or the new one, and holds what it found under the life word that belongs to it.
#[test]
fn loom_fast_walk_vs_a_leaf_replaced_in_place() {
    explore_up_to(PREEMPTIONS, || {
        let space = Space::new();
        space.map(0, 0, 0, HUGE);
        let (mm, pinning) = (space.mm.clone(), space.pin_once(5, &[0, 1]));
        let walking = thread::spawn(move || assert!(mm.translate(5 * PAGE_BYTES).is_some()));
        let request = MapRequest::new(file(1), MIB2).over(0).filled();
        space.mm.map(&request).unwrap();
        space.end_life(0);
        walking.join().unwrap();
        pinning.join().unwrap();
    });
}

/// The span of the old mapping is reused for the new one elsewhere: a reader that mixes the two
/// would hold folio 0 under the life word of folio 1.
#[test]
fn loom_fast_walk_vs_reuse_of_the_span() {
    explore_up_to(PREEMPTIONS, || {
        let space = Space::new();
        space.map(0, 0, 0, HUGE);
        let pinning = space.pin_once(5, &[0]);
        space.unmap(0, HUGE);
        space.map(1, 0, HUGE, HUGE);
        space.end_life(0);
        pinning.join().unwrap();
    });
}

/// As above, for a thread that knows the span from a pin before. The first version kept what a span
/// said without a last look at the leaf: a thread that was late kept the old life word under the
/// epoch of the new one, and held folio 1 under the life word of folio 0.
#[test]
fn loom_known_span_vs_reuse_of_the_span() {
    explore_up_to(PREEMPTIONS - 1, || {
        let space = Space::new();
        space.map(0, 0, 0, HUGE);
        let (mm, pinner) = (space.mm.clone(), space.client.pinner.clone());
        let frames = space.frames.clone();
        let pinning = thread::spawn(move || {
            let lane = pinner.lane().unwrap();
            let gup = Gup::new(&mm, &lane).unwrap();
            for turn in 0..2 {
                if let Some(held) = gup.fast_leaf(5 * PAGE_BYTES, 1, GupFlags::WRITE) {
                    let n = file_of(held.run());
                    assert_eq!(held.pin().expected_life(), extent(n).life, "turn {turn}");
                    frames[n as usize].use_while_held();
                }
            }
        });
        space.unmap(0, HUGE);
        // The same span for the same page, and another life word: who took the old one for it would
        // hold what is about to be given away.
        space.map(1, 0, 0, HUGE);
        space.end_life(1);
        pinning.join().unwrap();
    });
}

/// A long-term pin in a slot, taken and dropped while the file is truncated.
#[test]
fn loom_longterm_slot_vs_truncate() {
    explore_up_to(PREEMPTIONS, || {
        let mut space = Space::new();
        space.client = space.world.client_with_long_slot(2);
        space.map(0, 0, 0, HUGE);
        let (mm, pinner) = (space.mm.clone(), space.client.pinner.clone());
        let frames = space.frames.clone();
        let pinning = thread::spawn(move || {
            let lane = pinner.lane().unwrap();
            let gup = Gup::new(&mm, &lane).unwrap();
            if let Some(held) = gup.fast_leaf_long(0, HUGE, GupFlags::WRITE) {
                frames[file_of(held.run()) as usize].use_while_held();
            }
        });
        space.end_life(0);
        pinning.join().unwrap();
    });
}

/// The table page of the old mapping is reused for the new one elsewhere: a reader that is on its
/// way into it would find another address's leaf.
#[test]
fn loom_fast_walk_vs_reuse_of_the_table() {
    explore_up_to(PREEMPTIONS, || {
        let space = Space::new();
        // Off colour, so that leaves are of 4 KiB.
        space.map(0, 1, 0, 1);
        space.map(0, 1, 2 * HUGE, 1);
        let pinning = space.pin_once(0, &[0]);
        space.unmap(0, 1);
        space.map(1, 1, HUGE, 1);
        pinning.join().unwrap();
    });
}

/// Pages that were unmapped and that a scan after a heavy barrier finds nobody to hold are held by
/// nobody, and by nobody later, though their life goes on: what a migration or a hot-unplug of
/// guest memory asks for. One page of the range goes, the first or the last.
fn unmap_then_scan(gone: u64) {
    explore_up_to(PREEMPTIONS, move || {
        let space = Space::new();
        // Off colour, so that leaves are of 4 KiB.
        space.map(0, 1, 0, 2);
        let is_quiet = Arc::new(AtomicBool::new(false));
        let (mm, pinner) = (space.mm.clone(), space.client.pinner.clone());
        let quiet = Arc::clone(&is_quiet);
        let pinning = thread::spawn(move || {
            let lane = pinner.lane().unwrap();
            let gup = Gup::new(&mm, &lane).unwrap();
            let held = gup.fast_run(0, 2, GupFlags::WRITE);
            let frame = folio(0).start() + 1 + gone;
            if held.as_ref().is_some_and(|held| held.run().contains(Pfn::new(frame).unwrap())) {
                assert!(!quiet.load(Ordering::SeqCst), "held after a scan found nobody");
                thread::yield_now();
                assert!(!quiet.load(Ordering::SeqCst), "a scan passed over the hold");
            }
        });
        space.unmap(gone, 1);
        let run = PfnRange::new(folio(0).start() + 1 + gone, 1).unwrap();
        let ledgers = [(ClientId(0), &space.client.reader)];
        if Drain::start([run].into_iter().collect(), &PortableBarrier, ledgers).is_idle() {
            is_quiet.store(true, Ordering::SeqCst);
        }
        pinning.join().unwrap();
    });
}

#[test]
fn loom_fast_walk_vs_unmap_of_its_page_and_scan() {
    unmap_then_scan(0);
}

#[test]
fn loom_long_read_vs_unmap_of_its_last_page_and_scan() {
    unmap_then_scan(1);
}

/// The two halves of a range are never mapped at the same time, so no pin may cover both.
#[test]
fn loom_long_read_vs_a_range_that_moves() {
    explore_up_to(PREEMPTIONS, || {
        let space = Space::new();
        space.map(0, 1, 0, 1);
        let (mm, pinner) = (space.mm.clone(), space.client.pinner.clone());
        let pinning = thread::spawn(move || {
            let lane = pinner.lane().unwrap();
            let gup = Gup::new(&mm, &lane).unwrap();
            let held = gup.fast_run(0, 2, GupFlags::WRITE);
            assert!(held.is_none_or(|held| held.run().nr_pages() == 1), "two halves at once");
        });
        space.unmap(0, 1);
        space.map(0, 2, 1, 1);
        pinning.join().unwrap();
    });
}

/// A way to hold pages from address 0 on.
type Way = fn(&Gup<'_, 'static, Side>) -> Option<ShortSegment<'static, Side>>;

/// Two leaves of 2 MiB with one hold.
fn two_leaves(gup: &Gup<'_, 'static, Side>) -> Option<ShortSegment<'static, Side>> {
    gup.fast_run(0, 2 * HUGE, GupFlags::WRITE)
}

/// Pages of one leaf of 2 MiB.
fn one_leaf(gup: &Gup<'_, 'static, Side>) -> Option<ShortSegment<'static, Side>> {
    gup.fast_leaf(0, 2, GupFlags::WRITE)
}

/// A thread that knows the span holds pages of two leaves of 2 MiB on the fast path, while `change`
/// changes what is mapped: it unmaps the leaf `gone` and has [`Quiet::scan`] look whether somebody
/// holds it.
fn fast_vs(preemptions: usize, hold: Way, gone: u64, change: fn(&Space, &Quiet)) {
    explore_up_to(preemptions, move || {
        let space = Space::new();
        space.map_two_leaves(0);
        // Both live for ever, so that the lane that knows the span can be handed to a thread.
        let (mm, pinner) = (leak_space(&space.mm), leak(space.client.pinner.clone()));
        let lane = pinner.lane().unwrap();
        drop(hold(&Gup::new(mm, &lane).unwrap()).unwrap());
        let quiet = Arc::new(Quiet { run: folio(gone), is_found: AtomicBool::new(false) });
        let seen = Arc::clone(&quiet);
        let pinning = thread::spawn(move || {
            let gup = Gup::new(mm, &lane).unwrap();
            let held = hold(&gup);
            if held.as_ref().is_some_and(|held| held.run().intersection(seen.run).is_some()) {
                seen.check("held after a scan found nobody");
                thread::yield_now();
                seen.check("a scan passed over the hold");
            }
        });
        change(&space, &quiet);
        pinning.join().unwrap();
    });
}

fn leak_space(mm: &Arc<Mm>) -> &'static Mm {
    Box::leak(Box::new(Arc::clone(mm)))
}

/// Whether a scan found that nobody holds the pages.
struct Quiet {
    run: PfnRange,
    is_found: AtomicBool,
}

impl Quiet {
    fn scan(&self, space: &Space) {
        let ledgers = [(ClientId(0), &space.client.reader)];
        let runs = [self.run].into_iter().collect();
        if Drain::start(runs, &PortableBarrier, ledgers).is_idle() {
            self.is_found.store(true, Ordering::SeqCst);
        }
    }

    fn check(&self, story: &str) {
        assert!(!self.is_found.load(Ordering::SeqCst), "{story}");
    }
}

#[test]
fn loom_huge_leaf_vs_unmap_and_scan() {
    fast_vs(PREEMPTIONS, one_leaf, 0, |space, quiet| {
        space.unmap(0, HUGE);
        quiet.scan(space);
    });
}

/// Only the second look at the entry tells: a thread that read the reach after it was cut sees it
/// unchanged, and the epoch does not move.
#[test]
fn loom_range_vs_unmap_of_its_first_leaf_and_scan() {
    fast_vs(PREEMPTIONS, two_leaves, 0, |space, quiet| {
        space.unmap(0, HUGE);
        quiet.scan(space);
    });
}

/// Only the second look at the reach tells: the first leaf stays, and the epoch does not move.
#[test]
fn loom_range_vs_unmap_of_its_second_leaf_and_scan() {
    fast_vs(PREEMPTIONS, two_leaves, 1, |space, quiet| {
        space.unmap(HUGE, HUGE);
        quiet.scan(space);
    });
}

/// Only the second look at the epoch tells, and only if it is the last: the entry was looked at
/// while the first leaf was still there, and the reach when the same span covered the same pages
/// for other frames. One switch is enough, for a thread may load what was stored long ago; two take
/// a minute.
#[test]
fn loom_range_vs_reuse_of_its_span_at_the_same_address() {
    fast_vs(PREEMPTIONS - 2, two_leaves, 1, |space, quiet| {
        space.unmap(HUGE, HUGE);
        quiet.scan(space);
        space.unmap(0, HUGE);
        space.map_two_leaves(2 * HUGE);
    });
}

/// As above over leaves of 4 KiB. The first version looked at the reach after the epoch: the entry
/// and the epoch were as before, then the span was reused at the same address, and its reach was
/// the same.
#[test]
fn loom_long_read_vs_reuse_of_its_span_at_the_same_address() {
    explore_up_to(PREEMPTIONS - 2, || {
        let space = Space::new();
        // Off colour, so that leaves are of 4 KiB.
        space.map(0, 1, 0, 2);
        let (mm, pinner) = (space.mm.clone(), space.client.pinner.clone());
        let run = PfnRange::new(folio(0).start() + 2, 1).unwrap();
        let quiet = Arc::new(Quiet { run, is_found: AtomicBool::new(false) });
        let seen = Arc::clone(&quiet);
        let pinning = thread::spawn(move || {
            let lane = pinner.lane().unwrap();
            let gup = Gup::new(&mm, &lane).unwrap();
            let held = gup.fast_run(0, 2, GupFlags::WRITE);
            if held.as_ref().is_some_and(|held| held.run().intersection(seen.run).is_some()) {
                seen.check("held after a scan found nobody");
            }
        });
        space.unmap(1, 1);
        quiet.scan(&space);
        space.unmap(0, 1);
        space.map(0, 3, 0, 2);
        pinning.join().unwrap();
    });
}

#[test]
fn loom_read_section_vs_truncate() {
    explore_up_to(PREEMPTIONS, || {
        let space = Space::new();
        space.map(0, 0, 0, HUGE);
        let (mm, pinner) = (space.mm.clone(), space.client.pinner.clone());
        let frames = space.frames.clone();
        let reading = thread::spawn(move || {
            let lane = pinner.lane().unwrap();
            let section = ReadSection::open(&mm, &lane).unwrap();
            if section.translate(0).is_some() {
                frames[0].use_while_held();
            }
        });
        space.end_life(0);
        reading.join().unwrap();
    });
}
