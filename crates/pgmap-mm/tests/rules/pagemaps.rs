//! The kernel's rules for pagemaps: what is refused, how one goes, who holds it.
//!
//! Tests are numbered as the scenarios of the project's list of kernel semantics.

use pgmap_mm::error::errno;
use pgmap_mm::holder::{HolderId, HolderSlot};
use pgmap_mm::memory_type::MemoryType;
use pgmap_mm::pagemap::{
    DeviceRange, Lifecycle, OpsPresent, PagemapError, PagemapSpec, PagemapTable, PlacedRange, Step,
    TeardownError,
};
use pgmap_mm::pfn::Pfn;

const MIB: u64 = 1 << 20;
const ENXIO: i32 = 6;

fn range(start_mib: u64, len_mib: u64) -> DeviceRange {
    DeviceRange { start_bytes: start_mib * MIB, len_bytes: len_mib * MIB }
}

fn spec(memory_type: MemoryType, ranges: &[DeviceRange]) -> PagemapSpec {
    PagemapSpec {
        memory_type,
        ranges: ranges.to_vec(),
        owner: Some(7),
        largest_level: 2,
        ops: OpsPresent::FOLIO_FREE.with(OpsPresent::MIGRATE_TO_RAM),
    }
}

fn generic(ranges: &[DeviceRange]) -> PagemapSpec {
    spec(MemoryType::Generic, ranges)
}

/// 64 GiB of pfn space; the first GiB of the machine is system RAM, the last byte is at 1 TiB.
fn table() -> PagemapTable {
    PagemapTable::new(64 << 18, vec![range(0, 1024)], 1 << 40)
}

/// The errno with which `spec` is refused; the table must be as it was.
fn refusal(table: &mut PagemapTable, spec: &PagemapSpec) -> i32 {
    let before = table.clone();
    let error = table.add(spec).unwrap_err();
    assert_eq!(*table, before, "{error}");
    error.errno()
}

#[test]
fn scenario_01_no_range_is_einval() {
    assert_eq!(refusal(&mut table(), &generic(&[])), errno::EINVAL);
}

#[test]
fn scenario_02_a_folio_above_the_largest_is_einval() {
    let spec = PagemapSpec { largest_level: 3, ..generic(&[range(2048, 2)]) };
    assert_eq!(refusal(&mut table(), &spec), errno::EINVAL);
}

#[test]
fn scenario_03_private_memory_needs_its_ops_and_an_owner() {
    let needed = [OpsPresent::MIGRATE_TO_RAM, OpsPresent::FOLIO_FREE];
    for op in needed {
        let spec = PagemapSpec { ops: op, ..spec(MemoryType::Private, &[range(2048, 2)]) };
        assert_eq!(refusal(&mut table(), &spec), errno::EINVAL);
    }
    for memory_type in [MemoryType::Private, MemoryType::Coherent] {
        let whole = spec(memory_type, &[range(2048, 2)]);
        assert_eq!(
            refusal(&mut table(), &PagemapSpec { owner: None, ..whole.clone() }),
            errno::EINVAL
        );
        assert!(table().add(&whole).is_ok());
    }
    let coherent = spec(MemoryType::Coherent, &[range(2048, 2)]);
    assert_eq!(
        refusal(&mut table(), &PagemapSpec { ops: OpsPresent::NONE, ..coherent }),
        errno::EINVAL
    );
    let bare = PagemapSpec { ops: OpsPresent::NONE, owner: None, ..generic(&[range(2048, 2)]) };
    assert!(table().add(&bare).is_ok(), "generic memory needs nothing");
}

#[test]
fn scenario_04_bytes_of_a_live_pagemap_are_enomem() {
    let mut table = table();
    let id = table.add(&generic(&[range(4096, 8)])).unwrap();
    // First frame, last frame, and where the kernel does not look: in the middle.
    for taken in [range(4100, 64), range(4090, 8), range(4090, 64)] {
        assert_eq!(refusal(&mut table, &generic(&[taken])), errno::ENOMEM);
    }
    assert!(matches!(
        table.add(&generic(&[range(4096, 2)])),
        Err(PagemapError::Taken { by, .. }) if by == id
    ));
    assert_eq!(refusal(&mut table, &generic(&[range(8192, 4), range(8194, 4)])), errno::ENOMEM);
}

#[test]
fn scenario_05_system_ram_is_enxio() {
    for ram in [range(0, 1024), range(512, 2), range(1022, 4)] {
        assert_eq!(refusal(&mut table(), &generic(&[ram])), ENXIO);
    }
}

#[test]
fn scenario_06_a_range_off_two_mebibytes_is_einval() {
    for crooked in [range(2049, 2), range(2048, 3), range(2048, 0), range(1 << 20, 2)] {
        assert_eq!(refusal(&mut table(), &generic(&[crooked])), errno::EINVAL);
    }
    let wrapping = DeviceRange { start_bytes: u64::MAX - MIB, len_bytes: 2 * MIB };
    assert_eq!(refusal(&mut table(), &generic(&[wrapping])), errno::EINVAL);
}

#[test]
fn rules_are_checked_in_the_kernels_order() {
    let mut table = table();
    table.add(&generic(&[range(1025, 0)])).unwrap_err();
    table.add(&generic(&[range(4096, 8)])).unwrap();
    let all_wrong = DeviceRange { start_bytes: 1, len_bytes: 8192 * MIB };
    assert_eq!(refusal(&mut table, &generic(&[all_wrong])), errno::ENOMEM, "taken, then RAM");
    let ram_and_crooked = DeviceRange { start_bytes: 1, len_bytes: 5 };
    assert_eq!(refusal(&mut table, &generic(&[ram_and_crooked])), ENXIO, "RAM, then alignment");
}

#[test]
fn ranges_start_at_their_own_gibibyte_and_none_is_kept_when_one_fails() {
    let mut table = table();
    let twice = generic(&[range(8192, 2), range(8196, 2), range(8192, 2)]);
    assert_eq!(table.add(&twice).unwrap_err().errno(), errno::ENOMEM);
    let three = generic(&[range(8192, 2), range(8196, 2), range(8208, 2)]);
    let id = table.add(&three).unwrap();
    let starts: Vec<u64> =
        table.by_id(id).unwrap().ranges().iter().map(PlacedRange::start).collect();
    assert_eq!(starts, [0, 1 << 18, 2 << 18], "each at a 1 GiB boundary");
    let second = Pfn::new((1 << 18) + 3).unwrap();
    assert_eq!(table.get(second).map(|pagemap| pagemap.id()), Some(id));
    assert_eq!(table.get(Pfn::new(512).unwrap()), None, "past the first range");
}

#[test]
fn scenario_08_a_look_up_refuses_once_the_pagemap_is_dying() {
    let mut table = table();
    let id = table.add(&generic(&[range(2048, 2)])).unwrap();
    let other = table.add(&generic(&[range(4096, 2)])).unwrap();
    let pfn = Pfn::new(5).unwrap();
    assert_eq!(table.get(pfn).map(|pagemap| pagemap.id()), Some(id));
    let mut teardown = table.begin_teardown(id).unwrap();
    assert_eq!(table.begin_teardown(id).map_err(|e| e.errno()), Err(errno::EBUSY));
    teardown.done(Step::Kill, &mut table).unwrap();
    assert!(table.get(pfn).is_some(), "alive while the holder is notified");
    teardown.done(Step::Tell, &mut table).unwrap();
    assert_eq!(table.get(pfn), None);
    assert_eq!(table.covering(pfn).unwrap().lifecycle(), Lifecycle::Dying);
    assert!(table.get(Pfn::new(1 << 18).unwrap()).is_some_and(|p| p.id() == other));
}

#[test]
fn teardown_steps_cannot_be_left_out_repeated_or_taken_early() {
    let mut table = table();
    let id = table.add(&generic(&[range(2048, 2)])).unwrap();
    let mut teardown = table.begin_teardown(id).unwrap();
    for due in [Step::Kill, Step::Tell, Step::Unmap, Step::Drain, Step::Free, Step::Done] {
        assert_eq!(teardown.next(), due);
        for early in [Step::Kill, Step::Tell, Step::Unmap, Step::Drain, Step::Free, Step::Done] {
            if early != due || due == Step::Drain {
                assert!(teardown.done(early, &mut table).is_err());
            }
        }
        match due {
            Step::Drain => {
                assert_eq!(teardown.drained(2), Err(TeardownError::Held { nr_holds: 2 }));
                assert_eq!(teardown.drained(0), Ok(Step::Free));
            }
            Step::Done => assert!(teardown.done(due, &mut table).is_err()),
            _ => {
                assert!(teardown.drained(0).is_err());
                teardown.done(due, &mut table).unwrap();
            }
        }
    }
    assert!(table.by_id(id).is_none());
    let again = table.add(&generic(&[range(2048, 2)])).unwrap();
    assert_ne!(again, id, "the bytes are free, the id is never given twice");
}

#[test]
fn scenario_60_one_holder_and_it_is_told_before_alive_clears() {
    let (slot, mut table) = (HolderSlot::new(), table());
    let id = table.add(&generic(&[range(2048, 2)])).unwrap();
    let [one, two] = [1, 2].map(|number| HolderId::new(number).unwrap());
    slot.register(one).unwrap();
    assert_eq!(slot.register(two).map_err(|e| e.errno()), Err(errno::EBUSY));
    let mut teardown = table.begin_teardown(id).unwrap();
    teardown.done(Step::Kill, &mut table).unwrap();
    assert_eq!(teardown.next(), Step::Tell);
    assert!(table.get(Pfn::new(0).unwrap()).is_some(), "alive while it is notified");
    teardown.done(Step::Tell, &mut table).unwrap();
    assert!(table.get(Pfn::new(0).unwrap()).is_none());
    assert!(teardown.done(Step::Tell, &mut table).is_err(), "once");
}
