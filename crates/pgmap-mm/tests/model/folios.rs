//! Random histories of folios against an array of 4 KiB frames.
//!
//! The model knows of each frame its state and its file. What it holds the real thing to, after
//! every step: every descriptor says what the array says; the free frames are the array's; a whole
//! folio has no table below it; every extent that a file has now can be pinned; and *no extent that
//! was ever told to anybody can be pinned unless all its frames still belong to the same file*.

use std::collections::BTreeMap;

use pgmap_mm::descriptor::{Descriptor, FolioFlags, FolioState};
use pgmap_mm::extent::Extent;
use pgmap_mm::folio::{Folios, Sizing};
use pgmap_mm::level::Level;
use pgmap_mm::memory_failure::FailureError;
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::split::NoSmallCounts;
use pgmap_mm::stamp::Stamp;
use pgmap_mm::vmemmap::{Vmemmap, VmemmapLayout};
use pgmap_mm::words::HeapWords;
use proptest::prelude::*;

/// One thing that an owner does. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Op {
    Create {
        nr_pages: u64,
        sizing: Sizing,
        is_published: bool,
    },
    Unlink {
        file: usize,
    },
    Punch {
        file: usize,
        extent: usize,
        at: u64,
        nr_pages: u64,
    },
    /// A punch that its caller gave up: the file keeps all frames, as up to three extents.
    Cut {
        file: usize,
        extent: usize,
        at: u64,
        nr_pages: u64,
    },
    Split {
        file: usize,
        extent: usize,
        at: u64,
        to: Level,
    },
    Merge {
        file: usize,
        extent: usize,
        at: u64,
        to: Level,
    },
    Join {
        file: usize,
        extent: usize,
    },
    Poison {
        at: u64,
    },
    Clear {
        at: u64,
    },
    SplitFree {
        at: u64,
        to: Level,
    },
    Trim,
    /// What a restarted owner does before anything else.
    DiscardStale,
}

/// How a cut ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    GivenUp,
}

/// What the model knows of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    state: FolioState,
    /// 0 is no file.
    file: u32,
}

const FREE: Frame = Frame { state: FolioState::Free, file: 0 };

struct World {
    folios: Folios<HeapWords>,
    frames: Vec<Frame>,
    files: BTreeMap<u32, Vec<Extent>>,
    told: Vec<(Extent, u32)>,
    last_file: u32,
    last_stamp: u64,
}

impl World {
    fn new(nr_pages: u64) -> Self {
        let layout = VmemmapLayout::for_pages(nr_pages).unwrap();
        let vmemmap = Vmemmap::new(layout, HeapWords::new(layout.nr_words())).unwrap();
        let mut folios = Folios::new(vmemmap);
        folios.bring_online(Pfn::new(0).unwrap(), nr_pages);
        Self {
            folios,
            frames: vec![FREE; nr_pages as usize],
            files: BTreeMap::new(),
            told: Vec::new(),
            last_file: 0,
            last_stamp: 0,
        }
    }

    fn stamp(&mut self) -> Stamp {
        self.last_stamp += 1;
        Stamp::new(self.last_stamp).unwrap()
    }

    fn pfn(&self, at: u64) -> Pfn {
        Pfn::new(at % self.frames.len() as u64).unwrap()
    }

    fn mark(&mut self, run: PfnRange, change: impl Fn(&mut Frame)) {
        self.frames[run.start() as usize..run.end() as usize].iter_mut().for_each(change);
    }

    /// The `file`th file and its `extent`th extent.
    fn pick(&self, file: usize, extent: usize) -> Option<(u32, usize, Extent)> {
        let (&id, extents) = self.files.iter().nth(file % self.files.len().max(1))?;
        let index = extent % extents.len().max(1);
        Some((id, index, *extents.get(index)?))
    }

    /// Puts `pieces` in the place of `nr` extents of a file and tells of them.
    fn replace(&mut self, file: u32, index: usize, nr: usize, pieces: Vec<Extent>) {
        self.told.extend(pieces.iter().map(|&piece| (piece, file)));
        self.files.get_mut(&file).unwrap().splice(index..index + nr, pieces);
    }

    /// Takes frames out of use that nobody holds. What failed stays out of the free ones.
    fn retire(&mut self, run: PfnRange) {
        self.folios.change_healthy(run, |word| word.in_state(FolioState::Dying));
        let kept = self.folios.free_healthy(run);
        let mut nr_failed = 0;
        for frame in &mut self.frames[run.start() as usize..run.end() as usize] {
            if frame.state == FolioState::Poisoned {
                frame.file = 0;
                nr_failed += 1;
            } else {
                *frame = FREE;
            }
        }
        assert_eq!(kept.iter().map(|run| run.nr_pages()).sum::<u64>(), nr_failed);
    }

    fn create(&mut self, nr_pages: u64, sizing: Sizing, is_published: bool) {
        let stamp = self.stamp();
        let nr_pages = match sizing {
            Sizing::Fixed(level) => nr_pages.next_multiple_of(level.nr_pages()),
            Sizing::BestFit => nr_pages,
        };
        let Ok(mut extents) = self.folios.reserve(nr_pages, sizing, stamp) else { return };
        self.last_file += 1;
        let file = self.last_file;
        let mut state = FolioState::Reserved;
        if is_published {
            state = FolioState::Live;
            extents = self.folios.publish(&extents, FolioFlags::WRITABLE);
        }
        for extent in &extents {
            let run = extent.run;
            self.frames[run.start() as usize..run.end() as usize].iter().for_each(|frame| {
                assert_eq!(*frame, FREE, "handed out twice");
            });
            self.mark(run, |frame| *frame = Frame { state, file });
        }
        self.files.insert(file, Vec::new());
        self.replace(file, 0, 0, extents);
    }

    fn cut(&mut self, (file, extent): (usize, usize), at: u64, nr_pages: u64, end: End) {
        let Some((file, index, extent)) = self.pick(file, extent) else { return };
        let at = at % extent.run.nr_pages();
        let nr_pages = nr_pages.clamp(1, extent.run.nr_pages() - at);
        let hole = extent.run.sub_run(at, nr_pages).unwrap();
        let fresh = self.stamp();
        let cut = self.folios.cut_out(&extent, hole, fresh).unwrap();
        assert_eq!(cut.hole.run, hole);
        let kept = (end == End::GivenUp).then_some(cut.hole);
        let pieces = cut.before.into_iter().chain(kept).chain(cut.after).collect();
        self.replace(file, index, 1, pieces);
        if end == End::Done {
            self.retire(hole);
        }
    }

    fn split(&mut self, file: usize, extent: usize, at: u64, to: Level) {
        let Some((file, index, extent)) = self.pick(file, extent) else { return };
        let pfn = Pfn::new(extent.run.start() + at % extent.run.nr_pages()).unwrap();
        let planned = self.folios.plan_split(pfn, to);
        let done = self.folios.split(pfn, to);
        assert_eq!(planned, done);
        let Ok(reshaped) = done else { return };
        assert_eq!(self.folios.vmemmap().folio_of(pfn).unwrap().0, to);
        self.replace(file, index, 1, vec![reshaped.extent_after(&extent)]);
    }

    fn merge(&mut self, file: usize, extent: usize, at: u64, to: Level) {
        let Some((file, index, extent)) = self.pick(file, extent) else { return };
        let pfn = Pfn::new(extent.run.start() + at % extent.run.nr_pages()).unwrap();
        let fresh = self.stamp();
        let proof = NoSmallCounts::among(PfnRange::folio(pfn, to), []).unwrap();
        let Ok(reshaped) = self.folios.merge(&extent, pfn, to, fresh, &proof) else { return };
        assert_eq!(self.folios.vmemmap().folio_of(pfn).unwrap().0, to);
        self.replace(file, index, 1, vec![reshaped.extent_after(&extent)]);
    }

    fn join(&mut self, file: usize, extent: usize) {
        let Some((file, index, first)) = self.pick(file, extent) else { return };
        let Some(&second) = self.files[&file].get(index + 1) else { return };
        let fresh = self.stamp();
        let Ok(joined) = self.folios.join(&first, &second, fresh) else { return };
        self.replace(file, index, 2, vec![joined]);
    }

    fn poison(&mut self, at: u64) {
        let pfn = self.pfn(at);
        let frame = self.frames[pfn.number() as usize];
        let found = self.files.get(&frame.file).and_then(|extents| {
            let index = extents.iter().position(|extent| extent.run.contains(pfn))?;
            Some((index, extents[index]))
        });
        let fresh = self.stamp();
        let isolated = self.folios.isolate(pfn, found.as_ref().map(|(_, extent)| extent), fresh);
        if frame.state == FolioState::Poisoned {
            assert_eq!(isolated, Err(FailureError::AlreadyPoisoned { pfn }));
            return;
        }
        let isolated = isolated.unwrap();
        assert_eq!((isolated.was, isolated.frame.nr_pages()), (frame.state, 1));
        if let Some((index, extent)) = found {
            let nr_pages: u64 = isolated.pieces.iter().map(|piece| piece.run.nr_pages()).sum();
            assert_eq!(nr_pages, extent.run.nr_pages(), "offsets stay");
            self.replace(frame.file, index, 1, isolated.pieces);
        }
        self.mark(isolated.frame, |frame| frame.state = FolioState::Poisoned);
    }

    /// Clears the first failed frame from `at` on.
    fn clear(&mut self, at: u64) {
        let from = (at % self.frames.len() as u64) as usize;
        let failed = self.frames[from..].iter().position(|f| f.state == FolioState::Poisoned);
        let Some(skip) = failed else { return };
        let frame = self.frames[from + skip];
        let run = PfnRange::new((from + skip) as u64, 1).unwrap();
        if frame.file == 0 {
            self.folios.return_repaired(run).unwrap();
            self.mark(run, |frame| *frame = FREE);
            return;
        }
        let word = Descriptor::new(FolioState::Live, FolioFlags::WRITABLE, self.stamp());
        let extent = self.folios.clear_poison(run, word).unwrap();
        let index = self.files[&frame.file].iter().position(|e| e.run == run).unwrap();
        self.replace(frame.file, index, 1, vec![extent]);
        self.mark(run, |frame| frame.state = FolioState::Live);
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Create { nr_pages, sizing, is_published } => {
                self.create(nr_pages, sizing, is_published);
            }
            Op::Unlink { file } => {
                let Some((file, ..)) = self.pick(file, 0) else { return };
                for extent in self.files.remove(&file).unwrap() {
                    self.retire(extent.run);
                }
            }
            Op::Punch { file, extent, at, nr_pages } => {
                self.cut((file, extent), at, nr_pages, End::Done);
            }
            Op::Cut { file, extent, at, nr_pages } => {
                self.cut((file, extent), at, nr_pages, End::GivenUp);
            }
            Op::Split { file, extent, at, to } => self.split(file, extent, at, to),
            Op::Merge { file, extent, at, to } => self.merge(file, extent, at, to),
            Op::Join { file, extent } => self.join(file, extent),
            Op::Poison { at } => self.poison(at),
            Op::Clear { at } => self.clear(at),
            Op::SplitFree { at, to } => {
                let pfn = self.pfn(at);
                if self.frames[pfn.number() as usize] == FREE {
                    let _ = self.folios.split(pfn, to);
                }
            }
            Op::Trim => self.folios.trim(),
            Op::DiscardStale => {
                let whole = PfnRange::new(0, self.frames.len() as u64).unwrap();
                self.folios.discard_stale_below(whole);
            }
        }
        // A file without an extent is none.
        self.files.retain(|_, extents| !extents.is_empty());
    }

    fn check(&self) {
        let vmemmap = self.folios.vmemmap();
        let whole = PfnRange::new(0, self.frames.len() as u64).unwrap();
        for (first, level, word) in vmemmap.folios(whole) {
            let frames = first.number()..first.number() + level.nr_pages();
            for frame in frames.clone() {
                assert_eq!(word.state(), self.frames[frame as usize].state, "frame {frame:#x}");
            }
            if word.state() == FolioState::Poisoned {
                assert_eq!(level, Level::Pte);
            }
            if level > Level::Pte {
                let below = level.below().unwrap();
                for child in frames.step_by(below.nr_pages() as usize) {
                    let word = vmemmap.load(below, Pfn::new(child).unwrap());
                    assert_eq!(word, Some(Descriptor::FREE), "a table below a whole folio");
                }
            }
        }
        let nr_free = self.frames.iter().filter(|frame| **frame == FREE).count();
        assert_eq!(self.folios.frames().free_pages(), nr_free as u64);
        for (file, extents) in &self.files {
            for extent in extents {
                let life = vmemmap.load(extent.head_level, extent.first());
                assert_eq!(life, Some(extent.life), "file {file}: wrong life word for {extent:?}");
            }
        }
        for (extent, file) in &self.told {
            let is_pinned = extent.life.is_pinnable()
                && vmemmap.load(extent.head_level, extent.first()) == Some(extent.life);
            let frames = extent.run.start() as usize..extent.run.end() as usize;
            let is_safe = |frame: &Frame| {
                frame.file == *file
                    && matches!(frame.state, FolioState::Live | FolioState::Reserved)
            };
            assert!(
                !is_pinned || self.frames[frames].iter().all(is_safe),
                "{extent:?}, told once of file {file}, can be pinned and is not that file's"
            );
        }
    }
}

fn level(most: u8) -> impl Strategy<Value = Level> {
    (0..=most).prop_map(|number| Level::from_number(number).unwrap())
}

/// Operations on a pool of `nr_pages` frames with folios up to `most`.
fn op(nr_pages: u64, most: u8) -> impl Strategy<Value = Op> {
    let at = 0..nr_pages;
    // Small numbers, whole folios and their neighbours are where things go wrong.
    let len = prop_oneof![1u64..8, Just(511), Just(512), Just(513), Just(1024), 1..nr_pages / 2,];
    let sizing = prop_oneof![level(most).prop_map(Sizing::Fixed), Just(Sizing::BestFit)];
    let more = len.clone();
    let file = 0usize..8;
    let extent = 0usize..8;
    let edge = prop_oneof![0u64..4, 510u64..514, at.clone()];
    let create = (len.clone(), sizing, prop::bool::weighted(0.8))
        .prop_map(|(nr_pages, sizing, p)| Op::Create { nr_pages, sizing, is_published: p });
    let place = || (0usize..8, 0usize..8, prop_oneof![0u64..4, 510u64..514, 0..nr_pages]);
    prop_oneof![
        4 => create,
        1 => file.clone().prop_map(|file| Op::Unlink { file }),
        4 => (place(), len).prop_map(|((file, extent, at), nr_pages)| {
            Op::Punch { file, extent, at, nr_pages }
        }),
        3 => (place(), more).prop_map(|((file, extent, at), nr_pages)| {
            Op::Cut { file, extent, at, nr_pages }
        }),
        4 => (place(), level(most)).prop_map(|((file, extent, at), to)| {
            Op::Split { file, extent, at, to }
        }),
        4 => (place(), 1..=most).prop_map(|((file, extent, at), to)| {
            Op::Merge { file, extent, at, to: Level::from_number(to).unwrap() }
        }),
        3 => (file, extent).prop_map(|(file, extent)| Op::Join { file, extent }),
        3 => edge.clone().prop_map(|at| Op::Poison { at }),
        2 => edge.prop_map(|at| Op::Clear { at }),
        1 => (at, level(most)).prop_map(|(at, to)| Op::SplitFree { at, to }),
        1 => Just(Op::Trim),
        1 => Just(Op::DiscardStale),
    ]
}

fn run(nr_pages: u64, ops: &[Op]) {
    let mut world = World::new(nr_pages);
    for op in ops {
        world.step(op);
        world.check();
    }
}

const SMALL_POOL: u64 = 6 * 512 + 100;
const LARGE_POOL: u64 = 2 << 18;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..Default::default() }
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn histories_of_a_small_pool_agree_with_an_array_of_frames(
        ops in prop::collection::vec(op(SMALL_POOL, 1), 1..40)
    ) {
        run(SMALL_POOL, &ops);
    }
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn histories_with_gigabyte_folios_agree_with_an_array_of_frames(
        ops in prop::collection::vec(op(LARGE_POOL, 2), 1..16)
    ) {
        run(LARGE_POOL, &ops);
    }
}

/// The story behind [`Folios::join`]: a piece that was given out once, joined again without a new
/// life word, would let its old reference pin frames that a later truncate gave away.
#[test]
fn a_piece_told_once_is_not_believed_after_it_was_joined_again() {
    let mut world = World::new(4 * 512);
    world.create(4 * 512, Sizing::Fixed(Level::Pmd), true);
    let whole = world.files[&1][0];
    let fresh = world.stamp();
    let cut = world.folios.cut_out(&whole, whole.run.sub_run(512, 512).unwrap(), fresh).unwrap();
    let (before, told) = (cut.before.unwrap(), cut.after.unwrap());
    // The hole punch is given up: the file is one extent again, and then its last folio goes.
    let fresh = world.stamp();
    let joined = world.folios.join(&before, &cut.hole, fresh).unwrap();
    let joined = world.folios.join(&joined, &told, fresh).unwrap();
    assert_eq!(joined.run, whole.run);
    let fresh = world.stamp();
    let last = world.folios.cut_out(&joined, joined.run.sub_run(3 * 512, 512).unwrap(), fresh);
    world.retire(last.unwrap().hole.run);
    let now = world.folios.vmemmap().load(told.head_level, told.first());
    assert_ne!(now, Some(told.life), "{told:?} reaches into what was freed");
}

#[test]
fn a_split_populates_one_table_and_a_merge_gives_it_back() {
    let mut world = World::new(2 * 512);
    world.create(512, Sizing::Fixed(Level::Pmd), true);
    let extent = world.files[&1][0];
    let small = |world: &World| {
        let words = (0..512).map(|n| world.folios.vmemmap().load(Level::Pte, Pfn::new(n).unwrap()));
        words.filter(|word| *word != Some(Descriptor::FREE)).count()
    };
    assert_eq!(small(&world), 0, "tails cost nothing");
    let reshaped = world.folios.split(extent.first(), Level::Pte).unwrap();
    let split = reshaped.extent_after(&extent);
    assert_eq!((split.head_level, split.life), (Level::Pte, extent.life));
    assert_eq!(small(&world), 512);
    let proof = NoSmallCounts::among(extent.run, []).unwrap();
    let fresh = world.stamp();
    let merged = world.folios.merge(&split, extent.first(), Level::Pmd, fresh, &proof).unwrap();
    assert_ne!(merged.extent_after(&split).life, extent.life, "never the same word again");
    assert_eq!(small(&world), 0);
}

/// An owner killed in the middle of a split leaves a full table below a folio that is still whole.
#[test]
fn what_a_killed_owner_left_below_a_whole_folio_is_discarded() {
    let mut world = World::new(LARGE_POOL);
    world.create(Level::Pud.nr_pages(), Sizing::Fixed(Level::Pud), true);
    let extent = world.files[&1][0];
    let pfn = Pfn::new(extent.run.start() + 700).unwrap();
    world.folios.split(pfn, Level::Pte).unwrap();
    // The last store of the split, which makes it visible, did not happen.
    world.folios.vmemmap().set(Level::Pud, pfn, extent.life);
    assert_eq!(world.folios.as_found(&extent), Some(extent));
    world.folios.discard_stale_below(extent.run);
    world.check();
}
