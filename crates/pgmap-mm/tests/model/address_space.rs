//! An address space against a naive map of 4 KiB pages: random histories of map, unmap, protect,
//! remap, fault, populate, truncate, grow and pin, with the kernel's rules for partial results and
//! errors computed page by page.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::gup_world::{FakeCpu, File, HUGE, MIB2, PAGE, World};
use pgmap_mm::error::errno;
use pgmap_mm::gup::{Dirty, Gup, GupFlags};
use pgmap_mm::level::Level;
use pgmap_mm::mm::{MapRequest, Mm, Placed};
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::prot::{Access, Prot};
use pgmap_mm::vma::VmaKind;
use proptest::prelude::*;

/// Pages of the address space that the histories use.
const PAGES: u64 = 6 * HUGE;
/// Only this many of each 2 MiB, so that histories meet.
const BUSY: u64 = 12;
const DEVICE: usize = 2;
const NR_FILES: usize = 4;

#[derive(Clone, Copy, Debug)]
enum Call {
    Fast,
    /// No page has a leaf any more, so that all of them are held under the lock.
    Slow,
    Pin,
}

#[derive(Clone, Debug)]
enum Step {
    Map {
        file: usize,
        file_page: u64,
        page: u64,
        nr_pages: u64,
        prot: Prot,
        over: bool,
        filled: bool,
    },
    Unmap {
        page: u64,
        nr_pages: u64,
    },
    Protect {
        page: u64,
        nr_pages: u64,
        prot: Prot,
    },
    Remap {
        page: u64,
        nr_pages: u64,
        new_pages: u64,
        to: Option<u64>,
    },
    Fault {
        page: u64,
        access: Access,
    },
    Populate {
        page: u64,
        nr_pages: u64,
    },
    Pin {
        page: u64,
        nr_pages: u64,
        access: Access,
        call: Call,
    },
    Truncate {
        file: usize,
        nr_pages: u64,
        is_told: bool,
    },
    Grow {
        file: usize,
        nr_pages: u64,
    },
}

/// Near the start of one of the 2 MiB blocks, or exactly there.
fn page() -> impl Strategy<Value = u64> {
    (0..6_u64, prop_oneof![Just(0), 0..BUSY, Just(HUGE - 3)]).prop_map(|(b, p)| b * HUGE + p)
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![1..BUSY, Just(HUGE), Just(2 * HUGE), HUGE..3 * HUGE]
}

fn prot() -> impl Strategy<Value = Prot> {
    prop_oneof![
        5 => Just(Prot::READ_WRITE),
        2 => Just(Prot::READ),
        1 => Just(Prot::NONE),
        1 => Just(Prot::WRITE),
    ]
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::Read), Just(Access::Write)]
}

fn file_page() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(HUGE), 0..BUSY, HUGE - 4..HUGE + 4]
}

fn step() -> impl Strategy<Value = Step> {
    let how = any::<(bool, bool)>();
    let map = (0..NR_FILES, file_page(), page(), length(), prot(), how).prop_map(
        |(file, file_page, page, nr_pages, prot, (over, filled))| Step::Map {
            file,
            file_page,
            page,
            nr_pages,
            prot,
            over,
            filled,
        },
    );
    let call = prop_oneof![Just(Call::Fast), Just(Call::Slow), Just(Call::Pin)];
    prop_oneof![
        5 => map,
        2 => (page(), length()).prop_map(|(page, nr_pages)| Step::Unmap { page, nr_pages }),
        2 => (page(), length(), prot())
            .prop_map(|(page, nr_pages, prot)| Step::Protect { page, nr_pages, prot }),
        1 => (page(), length(), length(), prop::option::of(page()))
            .prop_map(|(page, nr_pages, new_pages, to)| {
                Step::Remap { page, nr_pages, new_pages, to }
            }),
        3 => (page(), access()).prop_map(|(page, access)| Step::Fault { page, access }),
        3 => (page(), length()).prop_map(|(page, nr_pages)| Step::Populate { page, nr_pages }),
        7 => (page(), length(), access(), call)
            .prop_map(|(page, nr_pages, access, call)| Step::Pin { page, nr_pages, access, call }),
        1 => (0..NR_FILES, file_page(), any::<bool>())
            .prop_map(|(file, nr_pages, is_told)| Step::Truncate { file, nr_pages, is_told }),
        1 => (0..NR_FILES, prop_oneof![1..BUSY, Just(HUGE)])
            .prop_map(|(file, nr_pages)| Step::Grow { file, nr_pages }),
    ]
}

/// What is mapped at one page.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Naive {
    file: usize,
    file_page: u64,
    prot: Prot,
}

struct Model<'w> {
    world: &'w World,
    files: Vec<Arc<File>>,
    /// Whether leaves of the file may be stale, because it was truncated and nobody was notified.
    is_stale: [bool; NR_FILES],
    mm: Mm,
    /// What the processor sees, in a process's address space.
    cpu: Option<Arc<FakeCpu>>,
    pages: BTreeMap<u64, Naive>,
}

impl Model<'_> {
    fn frame(&self, naive: Naive) -> Option<u64> {
        self.files[naive.file].frame(naive.file_page)
    }

    /// Whether a change of `from..to` would split a device-dax area inside a leaf.
    fn splits_device(&self, from: u64, to: u64) -> bool {
        [from, to].into_iter().any(|edge| {
            let (Some(before), Some(after)) =
                (edge.checked_sub(1).and_then(|page| self.pages.get(&page)), self.pages.get(&edge))
            else {
                return false;
            };
            let is_one_area = before.file == DEVICE
                && after.file == DEVICE
                && before.file_page + 1 == after.file_page
                && before.prot == after.prot;
            is_one_area && edge % HUGE != 0
        })
    }

    fn set(&mut self, from: u64, to: u64, what: impl Fn(u64) -> Option<Naive>) {
        for page in from..to {
            match what(page) {
                Some(naive) => self.pages.insert(page, naive),
                None => self.pages.remove(&page),
            };
        }
    }

    /// Error number of a fault, as the kernel's rules give it page by page.
    fn fault_error(&self, page: u64, access: Access) -> Option<i32> {
        let Some(&naive) = self.pages.get(&page) else { return Some(errno::EFAULT) };
        if !naive.prot.allows(access) {
            return Some(errno::EFAULT);
        }
        if naive.file == DEVICE {
            // All of the leaf must be there.
            let first = naive.file_page - naive.file_page % HUGE;
            let nr_pages = self.files[DEVICE].state.lock().unwrap().nr_pages;
            return (first + HUGE > nr_pages).then_some(errno::EFAULT);
        }
        self.frame(naive).is_none().then_some(errno::EFAULT)
    }

    fn map(&mut self, step: &Step) {
        let &Step::Map { file, file_page, page, nr_pages, prot, over, filled } = step else {
            return;
        };
        let request = MapRequest::new(self.files[file].clone(), nr_pages * PAGE)
            .from_file_page(file_page)
            .with_prot(prot);
        let address = page * PAGE;
        let request = if over { request.over(address) } else { request.at(address) };
        let request = if filled { request.filled() } else { request };
        let end = page + nr_pages;
        let is_misaligned =
            file == DEVICE && [file_page, page, nr_pages].iter().any(|p| p % HUGE != 0);
        let expected = if is_misaligned {
            Some(errno::EINVAL)
        } else if end > PAGES {
            Some(errno::ENOMEM)
        } else if over && self.splits_device(page, end) {
            Some(errno::EINVAL)
        } else if !over && self.pages.range(page..end).next().is_some() {
            Some(17)
        } else {
            None
        };
        assert_eq!(self.mm.map(&request).err().map(|error| error.errno()), expected);
        if expected.is_none() {
            let naive = |at| Some(Naive { file, file_page: file_page + at - page, prot });
            self.set(page, end, naive);
            // A process address space is filled as far as every page goes, and looked at elsewhere.
            if filled && self.cpu.is_none() {
                self.check_filled(page, end, prot);
            }
        }
    }

    /// Pages that were mapped to be filled at once are, up to the first that cannot be had.
    fn check_filled(&self, page: u64, end: u64, prot: Prot) {
        let access = if prot.allows(Access::Read) { Access::Read } else { Access::Write };
        let is_bad = |at: &u64| self.fault_error(*at, access).is_some();
        let first_bad = (page..end).find(is_bad).unwrap_or(end);
        for at in page..end {
            assert_eq!(self.mm.translate(at * PAGE).is_some(), at < first_bad, "page {at:#x}");
        }
    }

    fn unmap(&mut self, page: u64, nr_pages: u64) {
        let end = page + nr_pages;
        let is_refused = end > PAGES || self.splits_device(page, end);
        let found = self.mm.unmap(page * PAGE, nr_pages * PAGE);
        assert_eq!(found.err().map(|error| error.errno()), is_refused.then_some(errno::EINVAL));
        if !is_refused {
            self.set(page, end, |_| None);
        }
    }

    fn protect(&mut self, page: u64, nr_pages: u64, prot: Prot) {
        let end = page + nr_pages;
        // Beyond the end of the address space nothing is mapped.
        let expected = if !(page..end).all(|page| self.pages.contains_key(&page)) {
            Some(errno::ENOMEM)
        } else {
            self.splits_device(page, end).then_some(errno::EINVAL)
        };
        let found = self.mm.protect(page * PAGE, nr_pages * PAGE, prot);
        assert_eq!(found.err().map(|error| error.errno()), expected);
        if expected.is_none() {
            for at in page..end {
                self.pages.get_mut(&at).unwrap().prot = prot;
            }
        }
    }

    /// Refusals of a move have many causes, so the model follows what was done and checks that.
    fn remap(&mut self, page: u64, nr_pages: u64, new_pages: u64, to: Option<u64>) {
        let place = to.map_or(Placed::Anywhere, |to| Placed::Over(to * PAGE));
        let (old, new) = (nr_pages * PAGE, new_pages * PAGE);
        let Ok(address) = self.mm.remap(page * PAGE, old, new, place) else { return };
        let (end, first) = (page + nr_pages, self.pages[&page]);
        for at in page..end {
            let same = Naive { file_page: first.file_page + at - page, ..first };
            assert_eq!(self.pages.get(&at), Some(&same), "what was moved was not one area");
        }
        let start = address / PAGE;
        assert!(to.is_none_or(|to| to == start));
        self.set(page, end, |_| None);
        let naive = |at| Some(Naive { file_page: first.file_page + at - start, ..first });
        self.set(start, start + new_pages, naive);
    }

    fn end_translations(&self, page: u64, nr_pages: u64) {
        for (_, naive) in self.pages.range(page..page + nr_pages) {
            if let Some(frame) = self.frame(*naive) {
                let _ended = self.mm.invalidate(PfnRange::new(frame, 1).unwrap());
            }
        }
    }

    fn pin(&self, page: u64, nr_pages: u64, access: Access, call: Call) {
        let lane = self.world.pinner.lane().unwrap();
        let gup = Gup::new(&self.mm, &lane).unwrap();
        let flags = if access == Access::Write { GupFlags::WRITE } else { GupFlags::NONE };
        let first_bad = (page..page + nr_pages).find(|&at| self.fault_error(at, access).is_some());
        let good = first_bad.map_or(nr_pages, |bad| bad - page);
        let address = page * PAGE;
        if let Call::Slow = call {
            self.end_translations(page, nr_pages);
        }
        let found = match call {
            Call::Fast => gup.pin(address, nr_pages, flags.with(GupFlags::FAST_ONLY)),
            Call::Slow | Call::Pin => gup.pin(address, nr_pages, flags),
        };
        let range = match (found, call) {
            (Err(error), Call::Fast) => {
                assert!(page + nr_pages > PAGES, "{error}");
                return;
            }
            (Err(error), _) => {
                assert!(good == 0 || page + nr_pages > PAGES, "{error}, and {good} pages are good");
                assert_eq!(error.errno(), errno::EFAULT);
                return;
            }
            (Ok(range), _) => range,
        };
        match call {
            // The fast path may stop earlier, and through a leaf that permits reading it may read
            // where the area permits writing only, as in the kernel.
            Call::Fast => assert!(range.nr_pages() <= nr_pages),
            Call::Slow | Call::Pin => assert!(range.nr_pages() >= good),
        }
        for ((address, pfn), at) in range.pages().zip(page..) {
            assert_eq!(address, at * PAGE);
            let naive = self.pages.get(&at).expect("pinned, and not mapped");
            assert!(naive.prot != Prot::NONE);
            assert!(access == Access::Read || naive.prot.contains(Prot::WRITE));
            assert_eq!(Some(pfn.number()), self.frame(*naive), "page {at:#x}");
        }
        for segment in range.segments() {
            assert!(!segment.is_reclaim_requested() && !self.world.held(segment.run()).is_empty());
        }
        range.unpin(Dirty::No);
    }

    fn truncate(&mut self, file: usize, nr_pages: u64, is_told: bool) {
        let gone = self.world.truncate(&self.files[file], nr_pages);
        for run in gone {
            // Whoever shows frames to a processor must be notified.
            if is_told || self.cpu.is_some() {
                let _ended = self.mm.invalidate(run);
            } else {
                self.is_stale[file] = true;
            }
            self.world.free(run);
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Map { .. } => self.map(step),
            Step::Unmap { page, nr_pages } => self.unmap(page, nr_pages),
            Step::Protect { page, nr_pages, prot } => self.protect(page, nr_pages, prot),
            Step::Remap { page, nr_pages, new_pages, to } => {
                self.remap(page, nr_pages, new_pages, to);
            }
            Step::Fault { page, access } => {
                let found = self.mm.fault(page * PAGE, access);
                let expected = self.fault_error(page, access);
                let is_stale = self.pages.get(&page).is_some_and(|naive| self.is_stale[naive.file]);
                // A fault cannot tell that a leaf is stale; only a pin can.
                if !is_stale {
                    assert_eq!(found.err().map(|error| error.errno()), expected);
                }
            }
            Step::Populate { page, nr_pages } => {
                let _ = self.mm.populate(page * PAGE, nr_pages * PAGE);
            }
            Step::Pin { page, nr_pages, access, call } => self.pin(page, nr_pages, access, call),
            Step::Truncate { file, nr_pages, is_told } => self.truncate(file, nr_pages, is_told),
            Step::Grow { file, nr_pages } => {
                let level = if nr_pages == HUGE { Level::Pmd } else { Level::Pte };
                if file != DEVICE && self.files[file].state.lock().unwrap().nr_pages < 8 * HUGE {
                    self.world.grow(&self.files[file], nr_pages, level);
                }
            }
        }
        assert!(self.world.all_holds().is_empty(), "{step:?} left a hold behind");
    }

    /// The processor must see exactly what the page table says.
    fn check_cpu(&self) {
        let Some(cpu) = &self.cpu else { return };
        let seen = cpu.pages.lock().unwrap();
        for page in 0..PAGES {
            let translated = self.mm.translate(page * PAGE).map(|found| found.pfn.number());
            assert_eq!(seen.get(&page).map(|(pfn, _)| *pfn), translated, "page {page:#x}");
            if let Some((_, prot)) = seen.get(&page) {
                assert_eq!(*prot, self.pages[&page].prot);
            }
        }
    }

    /// Every translation must be of what is mapped there, with no more permissions.
    fn check_translations(&self) {
        for page in 0..PAGES {
            let Some(found) = self.mm.translate(page * PAGE) else { continue };
            let naive = self.pages.get(&page).expect("translated, and not mapped");
            assert!(naive.prot != Prot::NONE);
            assert!(!found.is_writable || naive.prot.contains(Prot::WRITE));
            if !self.is_stale[naive.file] {
                assert_eq!(Some(found.pfn.number()), self.frame(*naive), "page {page:#x}");
            }
            if naive.file == DEVICE {
                assert_eq!(found.level, Level::Pmd);
            }
        }
    }
}

fn run(steps: &[Step], is_process: bool) {
    let world = World::new(1);
    let files = vec![
        world.file(VmaKind::Shared, Level::Pte, &[5, 600, 40]),
        world.file(VmaKind::FsDax, Level::Pmd, &[2 * HUGE, HUGE, 7]),
        world.file(VmaKind::DeviceDax { align: Level::Pmd }, Level::Pmd, &[3 * HUGE]),
        world.file(VmaKind::Shared, Level::Pmd, &[3 * HUGE]),
    ];
    let (mm, cpu) = if is_process {
        let (mm, cpu) = world.process_mm(PAGES * PAGE);
        (mm, Some(cpu))
    } else {
        (world.mm(PAGES * PAGE), None)
    };
    let pages = BTreeMap::new();
    let mut model = Model { world: &world, files, is_stale: [false; NR_FILES], mm, cpu, pages };
    for step in steps {
        model.apply(step);
        model.check_cpu();
    }
    model.check_translations();
    let areas = model.mm.areas();
    for page in 0..PAGES {
        let area = areas.iter().find(|vma| (vma.page..vma.end()).contains(&page));
        assert_eq!(area.is_some(), model.pages.contains_key(&page));
    }
    // What is left goes without a trace.
    let _ended = model.mm.unmap(0, 6 * MIB2).unwrap();
    let usage = model.mm.usage();
    assert_eq!((usage.nr_areas, usage.nr_tables, usage.nr_spans), (0, 0, 0));
}

/// Thousands of histories, or as many as `PROPTEST_CASES` says where that is more.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases.max(2000), ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn an_address_space_does_what_a_page_by_page_map_says(
        steps in prop::collection::vec(step(), 1..40),
        is_process in any::<bool>(),
    ) {
        run(&steps, is_process);
    }
}
