//! The kernel's rules for `get_user_pages` and for faults on device-dax and fsdax, one test each:
//! `scenario_NN` is number NN of docs/parity.md.
use crate::gup_world::{FLAGS, GIB, GIGANTIC, HUGE, MIB2, PAGE, World, whole};
use pgmap_mm::descriptor::{FolioFlags, FolioState};
use pgmap_mm::error::errno;
use pgmap_mm::fault::Signal;
use pgmap_mm::gup::{Dirty, Gup, GupError, GupFlags, ReadSection};
use pgmap_mm::ledger::{Agent, Hold, HoldPlace};
use pgmap_mm::level::Level;
use pgmap_mm::mm::{MapRequest, Placed};
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::prot::{Access, Prot};
use pgmap_mm::vma::{BackingError, VmaKind};

const WRITE: GupFlags = GupFlags::WRITE;
const LONGTERM: GupFlags = GupFlags::LONGTERM;
const DAX_2M: VmaKind = VmaKind::DeviceDax { align: Level::Pmd };
const ENXIO: i32 = 6;
const EREMOTEIO: i32 = 121;

#[test]
fn scenario_24_flags_that_exclude_each_other() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let gup = Gup::new(&mm, &lane).unwrap();
    for bad in [LONGTERM.with(GupFlags::GET), LONGTERM.with(GupFlags::P2PDMA)] {
        assert_eq!(
            gup.pin(0, 1, bad.with(GupFlags::FAST_ONLY)).unwrap_err().errno(),
            errno::EINVAL
        );
        assert_eq!(gup.pin(0, 1, bad).unwrap_err().errno(), errno::EINVAL);
    }
    assert_eq!(GupFlags::from_bits(1 << 15), None);
    assert!(gup.pin(0, 0, WRITE).unwrap().is_empty());
}

#[test]
fn scenario_25_pages_up_to_a_gap_then_the_error() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let file = world.file(VmaKind::Shared, Level::Pte, &[10]);
    mm.map(&whole(&file, 0)).unwrap();
    let gup = Gup::new(&mm, &lane).unwrap();
    let range = gup.pin(0, 16, WRITE).unwrap();
    assert_eq!(range.nr_pages(), 10);
    let frames: Vec<_> = range.pages().map(|(_, pfn)| pfn.number()).collect();
    assert!(frames.into_iter().eq((0..10).map(|page| file.frame(page).unwrap())));
    assert_eq!(gup.pin(10 * PAGE, 6, WRITE).unwrap_err().errno(), errno::EFAULT);
    range.unpin(Dirty::Yes);
    assert!(world.all_holds().is_empty());
}

#[test]
fn scenario_26_raw_areas_are_never_pinned() {
    let world = World::new(2);
    let (mm, lane) = (world.mm(4 * GIB), world.pinner.lane().unwrap());
    let gup = Gup::new(&mm, &lane).unwrap();
    for (address, level) in [(0, Level::Pmd), (GIB, Level::Pud)] {
        let file = world.file(VmaKind::Raw, level, &[level.nr_pages()]);
        mm.map(&whole(&file, address)).unwrap();
        assert_eq!(mm.fault(address, Access::Write).unwrap().level, level);
        assert!(mm.translate(address).is_some());
        for flags in [WRITE, GupFlags::NONE, LONGTERM] {
            assert!(gup.pin(address, 1, flags.with(GupFlags::FAST_ONLY)).unwrap().is_empty());
            assert_eq!(gup.pin(address, 1, flags).unwrap_err().errno(), errno::EFAULT);
        }
        assert_eq!(ReadSection::open(&mm, &lane).unwrap().translate(address), None);
    }
}

#[test]
fn scenario_27_longterm_on_fsdax_is_refused() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let file = world.file_with(VmaKind::FsDax, Level::Pmd, &[HUGE], FolioFlags::WRITABLE);
    mm.map(&whole(&file, 0)).unwrap();
    let gup = Gup::new(&mm, &lane).unwrap();
    assert_eq!(gup.pin(0, 1, LONGTERM).unwrap_err().errno(), errno::EOPNOTSUPP);
    assert!(gup.pin(0, 1, LONGTERM.with(GupFlags::FAST_ONLY)).unwrap().is_empty());
    assert!(world.all_holds().is_empty(), "a refused request left a hold");
}

#[test]
fn scenario_28_better_longterm_write_on_device_dax_needs_no_slow_path() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let device = world.file(DAX_2M, Level::Pmd, &[4 * HUGE]);
    mm.map(&whole(&device, 0)).unwrap();
    mm.populate(0, 4 * MIB2).unwrap();
    let gup = Gup::new(&mm, &lane).unwrap();
    let range = gup.pin(0, 4 * HUGE, LONGTERM.with(WRITE).with(GupFlags::FAST_ONLY)).unwrap();
    assert_eq!((range.nr_pages(), range.segments().count()), (4 * HUGE, 1));
    assert_eq!(world.all_holds().len(), 1, "one slot for all four folios");
    drop(range);
    assert!(world.all_holds().is_empty());
}

#[test]
fn longterm_pins_beyond_the_slots_of_a_lane_are_counted_by_folio() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let device = world.file(DAX_2M, Level::Pmd, &[4 * HUGE]);
    mm.map(&whole(&device, 0).filled()).unwrap();
    let gup = Gup::new(&mm, &lane).unwrap();
    let in_slots: Vec<_> =
        (0..8).map(|_| gup.fast_leaf_long(0, HUGE, WRITE).expect("a slot")).collect();
    let counted = gup.fast_run_long(MIB2, 2 * HUGE, LONGTERM.with(WRITE)).expect("counts");
    let places = |world: &World| {
        let holds = world.all_holds();
        let is_slot = |hold: &&Hold| matches!(hold.place, HoldPlace::LongSlot(_));
        (holds.iter().filter(is_slot).count(), holds.len())
    };
    assert_eq!(places(&world), (8, 10), "two folios, a count each");
    drop(in_slots);
    assert_eq!(places(&world), (0, 2));
    let again = gup.fast_leaf_long(0, HUGE, WRITE).expect("a slot that is free again");
    assert_eq!(places(&world), (1, 3));
    drop((counted, again));
    assert!(world.all_holds().is_empty());
}

#[test]
fn a_longterm_pin_left_in_a_lane_that_is_given_back_is_found() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let device = world.file(DAX_2M, Level::Pmd, &[HUGE]);
    mm.map(&whole(&device, 0).filled()).unwrap();
    let held = Gup::new(&mm, &lane).unwrap().fast_leaf_long(0, HUGE, WRITE).expect("a slot");
    drop(lane);
    let run = PfnRange::new(device.frame(0).unwrap(), 1).unwrap();
    assert_eq!((world.held(run).len(), world.all_holds().len()), (1, 1));
    drop(held);
    assert_eq!((world.held(run).len(), world.all_holds().len()), (0, 0));
}

#[test]
fn scenario_29_device_dax_pins_need_no_slow_path() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let device = world.file(DAX_2M, Level::Pmd, &[4 * HUGE]);
    mm.map(&whole(&device, 0)).unwrap();
    let gup = Gup::new(&mm, &lane).unwrap();
    assert!(
        gup.pin(0, HUGE, WRITE.with(GupFlags::FAST_ONLY)).unwrap().is_empty(),
        "nothing was faulted in"
    );
    mm.populate(0, 4 * MIB2).unwrap();
    let asked = device.state.lock().unwrap().nr_asked;
    let range = gup.pin(PAGE, 4 * HUGE - 1, WRITE.with(GupFlags::FAST_ONLY)).unwrap();
    assert_eq!((range.nr_pages(), range.segments().count()), (4 * HUGE - 1, 1));
    assert_eq!(world.all_holds().len(), 1, "one slot for the whole extent");
    assert_eq!(device.state.lock().unwrap().nr_asked, asked);
}

#[test]
fn scenario_30_private_file_mappings_are_refused() {
    let world = World::new(1);
    let mm = world.mm(GIB);
    let file = world.file(VmaKind::FsDax, Level::Pmd, &[HUGE]);
    assert_eq!(mm.map(&whole(&file, 0).private()).unwrap_err().errno(), errno::EOPNOTSUPP);
}

#[test]
fn scenario_32_a_pin_of_a_stale_leaf_is_undone_exactly_and_repaired() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let file = world.file(VmaKind::Shared, Level::Pmd, &[HUGE, HUGE]);
    mm.map(&whole(&file, 0)).unwrap();
    mm.populate(0, 2 * MIB2).unwrap();
    world.truncate(&file, 0);
    world.grow(&file, HUGE, Level::Pmd);
    let gup = Gup::new(&mm, &lane).unwrap();
    assert!(gup.pin(0, 1, WRITE.with(GupFlags::FAST_ONLY)).unwrap().is_empty());
    assert!(world.all_holds().is_empty());
    let range = gup.pin(0, 2 * HUGE, WRITE).unwrap();
    assert_eq!(range.nr_pages(), HUGE, "the second extent is gone");
    assert_eq!(range.pages().next().unwrap().1.number(), file.frame(0).unwrap());
    drop(range);
    assert_eq!(
        gup.pin(0, HUGE, WRITE.with(GupFlags::FAST_ONLY)).unwrap().nr_pages(),
        HUGE,
        "the leaf was not repaired"
    );
    assert_eq!(gup.pin(MIB2, 1, WRITE).unwrap_err().errno(), errno::EFAULT);
}

#[test]
fn scenario_34_a_refused_longterm_pin_leaves_nothing_pinned() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let file = world.file_with(VmaKind::Shared, Level::Pmd, &[HUGE], FolioFlags::WRITABLE);
    mm.map(&whole(&file, 0)).unwrap();
    let gup = Gup::new(&mm, &lane).unwrap();
    assert_eq!(gup.pin(0, 8, LONGTERM).unwrap_err().errno(), errno::EOPNOTSUPP);
    assert!(world.all_holds().is_empty());
}

#[test]
fn scenario_36_peer_memory_needs_its_flag() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let file = world.file(VmaKind::PeerToPeer, Level::Pmd, &[HUGE]);
    mm.map(&whole(&file, 0)).unwrap();
    mm.populate(0, MIB2).unwrap();
    let gup = Gup::new(&mm, &lane).unwrap();
    assert!(gup.pin(0, 1, WRITE.with(GupFlags::FAST_ONLY)).unwrap().is_empty());
    assert_eq!(gup.pin(0, 1, WRITE).unwrap_err().errno(), EREMOTEIO);
    assert_eq!(
        gup.pin(0, 1, WRITE.with(GupFlags::P2PDMA).with(GupFlags::FAST_ONLY)).unwrap().nr_pages(),
        1
    );
    let section = ReadSection::open(&mm, &lane).unwrap();
    assert!(section.translate(0).is_none(), "a section has no flag to ask with");
}

#[test]
fn scenario_37_failed_memory_is_told_to_who_asks() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let file = world.file(VmaKind::Shared, Level::Pmd, &[HUGE]);
    mm.map(&whole(&file, 0)).unwrap();
    mm.populate(0, MIB2).unwrap();
    let gup = Gup::new(&mm, &lane).unwrap();
    // Known to the descriptor, and not to the backing yet.
    let extent = file.state.lock().unwrap().extents[0];
    world.set_life(&extent, extent.life.in_state(FolioState::Poisoned));
    assert_eq!(gup.pin(0, 1, WRITE).unwrap_err().errno(), errno::EFAULT);
    let told = WRITE.with(GupFlags::HWPOISON);
    assert_eq!(gup.pin(0, 1, told).unwrap_err().errno(), errno::EHWPOISON);
    // Known to both.
    let _ended = mm.invalidate(extent.run);
    file.state.lock().unwrap().failing = Some((0, BackingError::Poisoned));
    assert_eq!(gup.pin(0, 1, WRITE).unwrap_err().errno(), errno::EFAULT);
    assert_eq!(gup.pin(0, 1, told).unwrap_err().errno(), errno::EHWPOISON);
    assert_eq!(mm.fault(0, Access::Read).unwrap_err().signal(), Signal::BusHwPoison);
}

#[test]
fn scenario_38_a_range_that_wraps_is_an_overflow() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let gup = Gup::new(&mm, &lane).unwrap();
    for (address, nr_pages) in [(u64::MAX - PAGE, 2), (PAGE, u64::MAX / PAGE), (0, u64::MAX)] {
        assert_eq!(gup.pin(address, nr_pages, WRITE).unwrap_err().errno(), errno::EOVERFLOW);
        assert_eq!(
            gup.pin(address, nr_pages, WRITE.with(GupFlags::FAST_ONLY)).unwrap_err().errno(),
            errno::EOVERFLOW
        );
    }
    assert_eq!(gup.pin(GIB - PAGE, 2, WRITE).unwrap_err().errno(), errno::EFAULT);
}

#[test]
fn permissions_are_checked_as_check_vma_flags_does() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let file = world.file(VmaKind::Shared, Level::Pmd, &[HUGE]);
    let gup = Gup::new(&mm, &lane).unwrap();
    let errno_of = |flags| gup.pin(0, 1, flags).err().map(|error: GupError| error.errno());
    for (prot, read, write) in [
        (Prot::READ, None, Some(errno::EFAULT)),
        (Prot::READ_WRITE, None, None),
        (Prot::NONE, Some(errno::EFAULT), Some(errno::EFAULT)),
        (Prot::WRITE, Some(errno::EFAULT), None),
    ] {
        mm.map(&whole(&file, 0).over(0).with_prot(prot)).unwrap();
        assert_eq!((errno_of(GupFlags::NONE), errno_of(WRITE)), (read, write), "{prot:?}");
        let _ended = mm.unmap(0, MIB2).unwrap();
    }
    let sealed = world.file_with(VmaKind::Shared, Level::Pmd, &[HUGE], FolioFlags::LONGTERM_OK);
    mm.map(&whole(&sealed, 0)).unwrap();
    assert_eq!(errno_of(GupFlags::NONE), None);
    assert_eq!(errno_of(WRITE), Some(errno::EFAULT), "the folio itself is read-only");
}

#[test]
fn nofault_takes_only_what_is_there() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let file = world.file(VmaKind::Shared, Level::Pte, &[8]);
    mm.map(&whole(&file, 0)).unwrap();
    mm.populate(0, 3 * PAGE).unwrap();
    let gup = Gup::new(&mm, &lane).unwrap();
    let flags = WRITE.with(GupFlags::NOFAULT);
    assert_eq!(gup.pin(0, 8, flags).unwrap().nr_pages(), 3);
    assert_eq!(gup.pin(3 * PAGE, 8, flags).unwrap_err().errno(), errno::EFAULT);
    assert_eq!(gup.pin(0, 8, WRITE).unwrap().nr_pages(), 8);
}

#[test]
fn device_holds_are_published_as_such() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let file = world.file(VmaKind::Shared, Level::Pte, &[8]);
    mm.map(&whole(&file, 0)).unwrap();
    let gup = Gup::new(&mm, &lane).unwrap();
    let range = gup.pin(0, 8, WRITE.with(GupFlags::DEVICE)).unwrap();
    assert_eq!(world.all_holds()[0].agent, Agent::Device);
    drop(range);
}

#[test]
fn scenario_40_device_dax_mappings_are_shared_aligned_and_alive() {
    let world = World::new(1);
    let mm = world.mm(GIB);
    let device = world.file(DAX_2M, Level::Pmd, &[4 * HUGE]);
    let request = whole(&device, 0);
    let errno_of = |request: &MapRequest| mm.map(request).unwrap_err().errno();
    assert_eq!(errno_of(&request.clone().private()), errno::EINVAL);
    assert_eq!(errno_of(&request.clone().at(PAGE)), errno::EINVAL);
    let short = MapRequest { len_bytes: MIB2 + PAGE, ..request.clone() };
    assert_eq!(errno_of(&short), errno::EINVAL);
    // Linux 6.12 and 7.3 were seen to refuse a misaligned offset too: linux-truth.md, section 2.
    assert_eq!(errno_of(&request.clone().from_file_page(1)), errno::EINVAL);
    device.state.lock().unwrap().is_dead = true;
    assert_eq!(errno_of(&request), ENXIO);
    device.state.lock().unwrap().is_dead = false;
    let anywhere = MapRequest { place: Placed::Anywhere, ..request };
    assert!(mm.map(&anywhere).unwrap().is_multiple_of(MIB2));
}

#[test]
fn scenario_41_every_leaf_of_device_dax_is_its_alignment() {
    let world = World::new(3);
    let (mm, lane) = (world.mm(4 * GIB), world.pinner.lane().unwrap());
    // The frames would allow a leaf of 1 GiB.
    let device = world.file(DAX_2M, Level::Pud, &[GIGANTIC]);
    mm.map(&whole(&device, GIB)).unwrap();
    let faulted = mm.fault(GIB + 5 * PAGE, Access::Read).unwrap();
    assert_eq!((faulted.level, faulted.address), (Level::Pmd, GIB));
    // Seen on Linux: a read fault maps writable.
    assert!(mm.fault(GIB, Access::Write).unwrap().was_present);
    mm.populate(GIB, GIB).unwrap();
    for page in [0, HUGE - 1, GIGANTIC - 1] {
        assert_eq!(mm.translate(GIB + page * PAGE).unwrap().level, Level::Pmd);
    }
    let range =
        Gup::new(&mm, &lane).unwrap().pin(GIB, GIGANTIC, WRITE.with(GupFlags::FAST_ONLY)).unwrap();
    assert_eq!((range.nr_pages(), range.segments().count()), (GIGANTIC, 1));
}

#[test]
fn scenario_42_no_leaf_smaller_than_the_alignment() {
    let world = World::new(3);
    let mm = world.mm(4 * GIB);
    let gib = VmaKind::DeviceDax { align: Level::Pud };
    let device = world.file(gib, Level::Pud, &[GIGANTIC]);
    mm.map(&whole(&device, GIB)).unwrap();
    assert_eq!(mm.fault(GIB + MIB2, Access::Write).unwrap().level, Level::Pud);
    // Frames that allow only 2 MiB leaves: nothing may be mapped.
    let pieces = world.file(gib, Level::Pmd, &[GIGANTIC / 2, GIGANTIC / 2]);
    mm.map(&whole(&pieces, 2 * GIB)).unwrap();
    assert_eq!(mm.fault(2 * GIB, Access::Write).unwrap_err().signal(), Signal::Bus);
    let small = VmaKind::DeviceDax { align: Level::Pte };
    let device = world.file(small, Level::Pmd, &[HUGE]);
    mm.map(&whole(&device, 0)).unwrap();
    assert_eq!(mm.fault(0, Access::Write).unwrap().level, Level::Pte);
}

#[test]
fn scenario_43_a_mapping_past_the_device_end_faults_only_there() {
    let world = World::new(1);
    let mm = world.mm(GIB);
    let device = world.file(DAX_2M, Level::Pmd, &[2 * HUGE]);
    mm.map(&MapRequest::new(device, 4 * MIB2).at(0)).unwrap();
    assert!(mm.fault(2 * MIB2 - 1, Access::Write).is_ok());
    assert_eq!(mm.fault(2 * MIB2, Access::Write).unwrap_err().signal(), Signal::Bus);
}

#[test]
fn scenario_44_a_device_dax_area_is_not_split_inside_a_leaf() {
    let world = World::new(1);
    let mm = world.mm(GIB);
    let device = world.file(DAX_2M, Level::Pmd, &[4 * HUGE]);
    mm.map(&whole(&device, 0)).unwrap();
    mm.populate(0, 4 * MIB2).unwrap();
    assert_eq!(mm.unmap(0, MIB2 / 2).unwrap_err().errno(), errno::EINVAL);
    assert_eq!(mm.unmap(MIB2 / 2, MIB2 / 2).unwrap_err().errno(), errno::EINVAL);
    assert_eq!(mm.protect(PAGE, PAGE, Prot::READ).unwrap_err().errno(), errno::EINVAL);
    let other = world.file(VmaKind::Shared, Level::Pte, &[1]);
    assert_eq!(mm.map(&whole(&other, 0).over(PAGE)).unwrap_err().errno(), errno::EINVAL);
    let cut = mm.remap(0, MIB2 / 2, MIB2 / 2, Placed::Anywhere);
    assert_eq!(cut.unwrap_err().errno(), errno::EINVAL);
    assert!(mm.translate(PAGE).is_some(), "a refused change changed something");
    assert_eq!(mm.unmap(MIB2, MIB2).unwrap().nr_pages, HUGE);
    assert_eq!(mm.area_at(0).unwrap().nr_pages, HUGE);
}

#[test]
fn scenario_45_a_removed_device_is_no_longer_mapped() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let device = world.file(DAX_2M, Level::Pmd, &[2 * HUGE]);
    mm.map(&whole(&device, 0)).unwrap();
    mm.populate(0, 2 * MIB2).unwrap();
    let extent = device.state.lock().unwrap().extents[0];
    device.state.lock().unwrap().is_dead = true;
    world.set_life(&extent, extent.life.in_state(FolioState::Dying));
    assert_eq!(mm.invalidate(extent.run).nr_pages, 2 * HUGE);
    assert_eq!(mm.translate(0), None);
    assert_eq!(mm.fault(0, Access::Read).unwrap_err().signal(), Signal::Bus);
    let gup = Gup::new(&mm, &lane).unwrap();
    assert_eq!(gup.pin(0, 1, WRITE).unwrap_err().errno(), errno::EFAULT);
    assert_eq!(mm.map(&whole(&device, GIB / 2)).unwrap_err().errno(), ENXIO);
}

#[test]
fn scenario_48_a_leaf_does_not_reach_past_the_end_of_the_file() {
    let world = World::new(1);
    let mm = world.mm(GIB);
    let file = world.file(VmaKind::FsDax, Level::Pmd, &[HUGE]);
    file.state.lock().unwrap().nr_pages = HUGE / 2;
    mm.map(&MapRequest::new(file, MIB2).at(0)).unwrap();
    assert_eq!(mm.fault(0, Access::Write).unwrap().level, Level::Pte);
    let past = mm.fault(MIB2 / 2, Access::Write).unwrap_err();
    assert_eq!((past.signal(), past.errno()), (Signal::Bus, errno::EFAULT));
}

#[test]
fn scenario_49_small_leaves_win_and_a_huge_leaf_stays() {
    let world = World::new(1);
    let mm = world.mm(GIB);
    let file = world.file(VmaKind::FsDax, Level::Pmd, &[2 * HUGE]);
    mm.map(&whole(&file, 0)).unwrap();
    // A 4 KiB leaf in the first block: its neighbours are 4 KiB too.
    let _ended = mm.unmap(PAGE, MIB2 - PAGE).unwrap();
    assert_eq!(mm.fault(0, Access::Write).unwrap().level, Level::Pte);
    mm.map(&MapRequest::new(file, MIB2 - PAGE).from_file_page(1).at(PAGE)).unwrap();
    assert_eq!(mm.fault(PAGE, Access::Write).unwrap().level, Level::Pte);
    // A huge leaf in the second: a fault in the middle keeps it.
    assert_eq!(mm.fault(MIB2, Access::Read).unwrap().level, Level::Pmd);
    let again = mm.fault(MIB2 + 7 * PAGE, Access::Write).unwrap();
    assert_eq!((again.level, again.was_present), (Level::Pmd, true));
    // What is written in it is one page's matter.
    mm.dirty().start();
    let lane = world.pinner.lane().unwrap();
    let range = Gup::new(&mm, &lane).unwrap().pin(MIB2 + 7 * PAGE, 1, WRITE).unwrap();
    assert_eq!(range.segments().next().unwrap().level(), Level::Pmd);
    range.unpin(Dirty::Yes);
    assert_eq!(mm.dirty().take(0, 2 * HUGE), [(HUGE + 7, 1)]);
}

#[test]
fn scenario_50_better_files_have_leaves_of_1_gib() {
    let world = World::new(2);
    let (mm, lane) = (world.mm(4 * GIB), world.pinner.lane().unwrap());
    let file = world.file(VmaKind::FsDax, Level::Pud, &[GIGANTIC]);
    mm.map(&whole(&file, GIB)).unwrap();
    assert_eq!(mm.fault(GIB + 3 * PAGE, Access::Write).unwrap().level, Level::Pud);
    // Colour differs: address and frame are not aligned alike.
    mm.map(&MapRequest::new(file, GIB - PAGE).from_file_page(1).at(2 * GIB)).unwrap();
    assert_eq!(mm.fault(2 * GIB, Access::Write).unwrap().level, Level::Pte);
    let gup = Gup::new(&mm, &lane).unwrap();
    assert_eq!(gup.pin(GIB, GIGANTIC, WRITE).unwrap().segments().count(), 1);
}

#[test]
fn pins_outlive_the_mapping() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let file = world.file(VmaKind::Shared, Level::Pmd, &[HUGE]);
    mm.map(&whole(&file, 0)).unwrap();
    let range = Gup::new(&mm, &lane).unwrap().pin(0, HUGE, WRITE).unwrap();
    let _ended = mm.unmap(0, MIB2).unwrap();
    let run = file.state.lock().unwrap().extents[0].run;
    world.truncate(&file, 0);
    assert_eq!(world.held(run).len(), 1);
    assert!(range.segments().all(|segment| segment.is_reclaim_requested()));
    range.unpin(Dirty::No);
    assert!(world.held(run).is_empty());
}

#[test]
fn an_open_read_section_holds_off_a_drain() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let file = world.file(VmaKind::Shared, Level::Pmd, &[HUGE]);
    mm.map(&whole(&file, 0)).unwrap();
    mm.populate(0, MIB2).unwrap();
    let run = file.state.lock().unwrap().extents[0].run;
    let section = ReadSection::open(&mm, &lane).unwrap();
    let found = section.translate(5 * PAGE).unwrap();
    assert_eq!(found.run().start(), run.start() + 5);
    world.truncate(&file, 0);
    assert_eq!(section.translate(5 * PAGE), None, "a dying extent was handed out");
    assert_eq!(world.held(run).len(), 1);
    drop(section);
    assert!(world.held(run).is_empty());
}

#[test]
fn what_was_pinned_for_writing_and_dropped_counts_as_written() {
    let world = World::new(1);
    let (mm, lane) = (world.mm(GIB), world.pinner.lane().unwrap());
    let file = world.file(VmaKind::Shared, Level::Pte, &[64]);
    mm.map(&whole(&file, 0)).unwrap();
    let gup = Gup::new(&mm, &lane).unwrap();
    drop(gup.pin(0, 4, WRITE).unwrap());
    assert!(mm.dirty().take(0, 64).is_empty(), "nobody tracks yet");
    mm.dirty().start();
    gup.pin(0, 4, WRITE).unwrap().unpin(Dirty::No);
    drop(gup.pin(8 * PAGE, 4, GupFlags::NONE).unwrap());
    gup.pin(16 * PAGE, 4, WRITE).unwrap().unpin(Dirty::Yes);
    drop(gup.pin(32 * PAGE, 4, WRITE).unwrap());
    assert_eq!(mm.dirty().take(0, 64), [(16, 4), (32, 4)]);
    assert!(mm.dirty().take(0, 64).is_empty());
}

#[test]
fn an_address_space_of_another_pool_is_refused() {
    let (world, other) = (World::new(1), World::new(2));
    let foreign = other.mm(GIB);
    let lane = world.pinner.lane().unwrap();
    assert!(Gup::new(&foreign, &lane).is_none());
    let mm = world.mm(GIB);
    let foreign = other.file(VmaKind::Shared, Level::Pud, &[GIGANTIC, GIGANTIC]);
    mm.map(&MapRequest::new(foreign, PAGE).from_file_page(GIGANTIC).at(0)).unwrap();
    assert_eq!(mm.fault(0, Access::Read).unwrap_err().errno(), errno::EFAULT);
    let _flags = FLAGS;
}
