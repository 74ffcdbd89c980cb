//! Changes of an address space, and who is notified of them: what is refused, what a mapping of the
//! processor that can hold no more does to it, and what those who cache translations hear.
use std::sync::{Arc, Mutex};

use crate::gup_world::{File, GIB, HUGE, MIB2, PAGE, World, whole};
use pgmap_mm::error::errno;
use pgmap_mm::extent::Extent;
use pgmap_mm::gup::{Gup, GupFlags};
use pgmap_mm::level::Level;
use pgmap_mm::mm::{
    AckToken, CpuMapping, EndedRange, InvalidateSubscriber, MapError, MapRequest, Mm, Placed,
    TableMemory, Vacancy,
};
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::prot::Prot;
use pgmap_mm::vma::{AreaBacking, Backed, BackingError, VmaKind};

#[derive(Debug, Default)]
struct Cache(Mutex<Vec<(Vec<EndedRange>, Option<AckToken>)>>);

impl InvalidateSubscriber for Cache {
    fn ended(&self, ranges: &[EndedRange], token: AckToken) {
        self.0.lock().unwrap().push((ranges.to_vec(), Some(token)));
    }
}

/// A processor's mapping that takes one range and no more.
#[derive(Debug, Default)]
struct OneStretch(Mutex<bool>);

impl CpuMapping for OneStretch {
    fn map(&self, _: u64, _: &Extent, _: PfnRange, _: Prot) -> Result<(), i32> {
        let was_taken = std::mem::replace(&mut *self.0.lock().unwrap(), true);
        if was_taken { Err(errno::ENOMEM) } else { Ok(()) }
    }

    fn unmap(&self, _: u64, _: u64, _: Vacancy) {}
}

#[test]
fn a_process_area_that_the_processor_cannot_have_is_not_mapped_at_all() {
    let world = World::new(1);
    let cpu = Arc::new(OneStretch::default());
    let mm = Mm::for_process(TableMemory::HEAP, &world.layout, 0, GIB, cpu).unwrap();
    let file = world.file(VmaKind::Shared, Level::Pte, &[2, 3]);
    let refused = mm.map(&whole(&file, MIB2)).unwrap_err();
    assert_eq!(refused, MapError::Refused(errno::ENOMEM));
    assert!(mm.areas().is_empty() && mm.translate(MIB2).is_none());
    assert_eq!(mm.usage().nr_spans, 0);
}

/// A file may be far shorter than its area, and is then asked once where it ends.
#[test]
fn what_lies_beyond_the_end_of_a_file_is_not_asked_for_page_by_page() {
    let world = World::new(1);
    let (mm, _cpu) = world.process_mm(GIB);
    let file = world.file(VmaKind::Shared, Level::Pte, &[2]);
    mm.map(&MapRequest::new(file.clone(), GIB).at(0)).unwrap();
    let _nobody_caches = mm.protect(0, GIB, Prot::READ).unwrap();
    let nr_asked = file.state.lock().unwrap().nr_asked;
    assert!(nr_asked < 10, "{nr_asked} times for two pages");
    assert!(mm.translate(PAGE).is_some() && mm.translate(2 * PAGE).is_none());
}

#[test]
fn ranges_that_cannot_be_moved_or_changed_are_refused_as_the_kernel_does() {
    let world = World::new(1);
    let mm = world.mm(GIB);
    let file = world.file(VmaKind::Shared, Level::Pte, &[4]);
    mm.map(&whole(&file, MIB2)).unwrap();
    let move_to = |from: u64, len: u64, to: Placed| mm.remap(from, len, len, to).unwrap_err();
    let errno_of = |error: MapError| error.errno();
    assert_eq!(errno_of(move_to(0, PAGE, Placed::Anywhere)), errno::EFAULT, "nothing is there");
    assert_eq!(
        errno_of(move_to(MIB2, 5 * PAGE, Placed::Anywhere)),
        errno::EFAULT,
        "across the end"
    );
    assert_eq!(errno_of(move_to(2 * GIB, PAGE, Placed::Anywhere)), errno::EFAULT, "outside");
    let over = Placed::Over(MIB2 + PAGE);
    assert_eq!(errno_of(move_to(MIB2, 4 * PAGE, over)), errno::EINVAL, "over itself");
    assert_eq!(errno_of(mm.protect(2 * GIB, PAGE, Prot::READ).unwrap_err()), errno::ENOMEM);
    assert_eq!(errno_of(mm.unmap(2 * GIB, PAGE).unwrap_err()), errno::EINVAL);
}

#[test]
fn an_area_that_is_moved_nowhere_stays_one_area() {
    let world = World::new(1);
    let mm = world.mm(GIB);
    let file = world.file(VmaKind::Shared, Level::Pte, &[16]);
    mm.map(&MapRequest::new(file.clone(), 8 * PAGE).at(0)).unwrap();
    assert_eq!(mm.remap(0, 4 * PAGE, 4 * PAGE, Placed::Anywhere), Ok(0));
    assert_eq!(mm.usage().nr_areas, 1);
    assert_eq!(mm.remap(0, 8 * PAGE, 12 * PAGE, Placed::Anywhere), Ok(0));
}

#[test]
fn pages_beyond_all_files_are_refused() {
    let world = World::new(1);
    let mm = world.mm(GIB);
    let file = world.file(VmaKind::Shared, Level::Pte, &[4]);
    let request = MapRequest::new(file.clone(), 4 * PAGE).at(0);
    for first in [u64::MAX, u64::MAX - 3, u64::MAX / PAGE - 3] {
        let refused = mm.map(&request.clone().from_file_page(first)).unwrap_err();
        assert_eq!((refused, refused.errno()), (MapError::Overflow { file_page: first }, 75));
    }
    mm.map(&request.from_file_page(u64::MAX / PAGE - 4)).unwrap();
}

#[test]
fn every_page_that_a_range_touches_is_populated() {
    let world = World::new(1);
    let mm = world.mm(GIB);
    let file = world.file(VmaKind::Shared, Level::Pte, &[1, 1]);
    mm.map(&whole(&file, 0)).unwrap();
    mm.populate(PAGE - 1, 2).unwrap();
    assert!(mm.translate(0).is_some() && mm.translate(PAGE).is_some());
}

#[test]
fn subscribers_hear_of_every_translation_that_ends_and_of_no_other() {
    let world = World::new(1);
    let mm = world.mm(GIB);
    let cache = Arc::new(Cache::default());
    mm.on_invalidate(cache.clone());
    let file = world.file(VmaKind::Shared, Level::Pmd, &[HUGE]);
    mm.map(&whole(&file, 0)).unwrap();
    assert!(mm.unmap(0, MIB2).unwrap().acks.is_done(), "there was no leaf");
    mm.map(&whole(&file, MIB2)).unwrap();
    mm.populate(MIB2, MIB2).unwrap();
    let run = file.state.lock().unwrap().extents[0].run;
    let ended = mm.invalidate(run.sub_run(3, 2).unwrap());
    assert_eq!(ended.nr_pages, 2);
    let (ranges, token) = cache.0.lock().unwrap().pop().unwrap();
    assert_eq!(ranges, [EndedRange { address: MIB2 + 3 * PAGE, len_bytes: 2 * PAGE }]);
    assert!(!ended.acks.is_done());
    token.unwrap().acknowledge();
    assert!(ended.acks.is_done());
    assert!(mm.translate(MIB2 + 2 * PAGE).is_some() && mm.translate(MIB2 + 3 * PAGE).is_none());
    let weakened = mm.protect(MIB2, PAGE, Prot::READ).unwrap();
    assert_eq!((weakened.acks.nr_outstanding(), cache.0.lock().unwrap().len()), (1, 1));
}

/// A pin may be the first to find that a leaf is of frames that changed hands.
#[test]
fn subscribers_hear_of_a_stale_leaf_that_a_pin_took_away() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let cache = Arc::new(Cache::default());
    mm.on_invalidate(cache.clone());
    let file = world.file(VmaKind::Shared, Level::Pmd, &[HUGE, HUGE]);
    mm.map(&whole(&file, 0).filled()).unwrap();
    let told = || {
        let mut told = cache.0.lock().unwrap();
        told.drain(..).flat_map(|(ranges, _)| ranges).collect::<Vec<_>>()
    };
    world.truncate(&file, 0);
    world.grow(&file, HUGE, Level::Pmd);
    let gup = Gup::new(&mm, &lane).unwrap();
    assert!(gup.pin(0, 1, GupFlags::WRITE.with(GupFlags::FAST_ONLY)).unwrap().is_empty());
    assert_eq!(told(), [], "the fast path changes nothing");
    drop(gup.pin(0, 1, GupFlags::WRITE).unwrap());
    assert_eq!(told(), [EndedRange { address: 0, len_bytes: MIB2 }], "repaired");
    gup.pin(MIB2, 1, GupFlags::WRITE).unwrap_err();
    assert_eq!(told(), [EndedRange { address: MIB2, len_bytes: MIB2 }], "gone");
}

#[test]
fn subscribers_hear_of_leaves_that_were_replaced_in_place() {
    let world = World::new(1);
    let mm = world.mm(GIB);
    let cache = Arc::new(Cache::default());
    mm.on_invalidate(cache.clone());
    let old = world.file(VmaKind::Shared, Level::Pmd, &[2 * HUGE]);
    let new = world.file(VmaKind::Shared, Level::Pmd, &[HUGE]);
    mm.map(&whole(&old, 0).filled()).unwrap();
    mm.map(&whole(&new, MIB2).over(MIB2).filled()).unwrap();
    let frame = |address| mm.translate(address).map(|found| found.pfn.number());
    assert_eq!((frame(0), frame(MIB2)), (old.frame(0), new.frame(0)));
    let (ranges, _token) = cache.0.lock().unwrap().pop().unwrap();
    assert_eq!(ranges, [EndedRange { address: MIB2, len_bytes: MIB2 }]);
    assert!(cache.0.lock().unwrap().is_empty(), "nothing else ended");
}

/// A file that panics from its second 2 MiB on.
#[derive(Debug)]
struct Panicking(Arc<File>);

impl AreaBacking for Panicking {
    fn kind(&self) -> VmaKind {
        self.0.kind()
    }
    fn nr_pages(&self) -> u64 {
        self.0.nr_pages()
    }
    fn extent_at(&self, page: u64) -> Result<Backed, BackingError> {
        assert!(page < HUGE, "on purpose");
        self.0.extent_at(page)
    }
}

#[test]
fn a_backing_that_panics_leaves_nothing_of_what_it_was_mapped_over() {
    let world = World::new(1);
    let mm = world.mm(GIB);
    let old = world.file(VmaKind::Shared, Level::Pmd, &[2 * HUGE]);
    mm.map(&whole(&old, 0).filled()).unwrap();
    let file = world.file(VmaKind::Shared, Level::Pmd, &[HUGE, HUGE]);
    let new = Arc::new(Panicking(file.clone()));
    let request = MapRequest::new(new, 2 * MIB2).over(0).filled();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| mm.map(&request))).unwrap_err();
    assert_eq!(mm.translate(0).map(|found| found.pfn.number()), file.frame(0));
    assert_eq!(mm.translate(MIB2), None, "the old file under the new file's area");
    assert_eq!(mm.area_at(MIB2).map(|area| area.nr_pages), Some(2 * HUGE));
}
