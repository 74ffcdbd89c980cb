//! Several pagemaps in one owner: validation, device files, drivers, teardown.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgmap::mm::level::Level;
use pgmap::mm::pagemap::{
    DeviceRange, FailureFlags, NotSupported, OpsPresent, PagemapOps, PagemapSpec,
};
use pgmap::mm::pfn::{Pfn, PfnRange};
use pgmap::{
    Access, Agent, Error, Event, FolioSize, MemoryType, Owner, Pool, PoolOptions, Refusal,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn owner() -> Owner {
    let options = PoolOptions::anonymous(64 * MIB).capacity(4 * GIB);
    Owner::start(Pool::create(&options).unwrap()).unwrap()
}

fn spec(memory_type: MemoryType, ranges: &[(u64, u64)], level: Level) -> PagemapSpec {
    PagemapSpec {
        memory_type,
        ranges: ranges
            .iter()
            .map(|&(start_bytes, len_bytes)| DeviceRange { start_bytes, len_bytes })
            .collect(),
        owner: None,
        largest_level: level.number(),
        ops: OpsPresent::NONE,
    }
}

/// A driver that writes down each notification.
#[derive(Default)]
struct Driver {
    freed_pages: AtomicU64,
    log: Mutex<Vec<String>>,
}

impl PagemapOps for Driver {
    fn present(&self) -> OpsPresent {
        OpsPresent::FOLIO_FREE.with(OpsPresent::MEMORY_FAILURE)
    }

    fn folio_free(&self, folio: PfnRange) {
        self.freed_pages.fetch_add(folio.nr_pages(), Ordering::Relaxed);
    }

    fn memory_failure(&self, run: PfnRange, _: FailureFlags) -> Result<(), NotSupported> {
        self.log.lock().unwrap().push(format!("failure {run}"));
        Err(NotSupported)
    }

    fn folio_split(&self, folio: PfnRange, at: Pfn, to: Level) {
        self.log.lock().unwrap().push(format!("split {folio} at {at} to {to}"));
    }
}

#[test]
fn a_pagemap_is_one_device_file_with_its_own_type_and_rules() {
    let owner = owner();
    let client = owner.client().unwrap();
    let id = owner
        .add_pagemap("dax0.0", &spec(MemoryType::Generic, &[(GIB, 8 * MIB)], Level::Pmd), None)
        .unwrap();
    let info = client.stat("dax0.0").unwrap();
    assert_eq!((info.len_bytes, info.nr_folios), (8 * MIB, [0, 4, 0]));
    let file = client.open("dax0.0").unwrap();
    let pin = file.lease(0..8 * MIB, Agent::Device, Access::Write).unwrap();
    let pfn = pin.segments().next().unwrap().pool_offset / 4096;
    assert_eq!(owner.pagemap_at(pfn), Some((id, MemoryType::Generic)));
    for refused in [client.unlink("dax0.0"), client.truncate("dax0.0", 1, Duration::ZERO)] {
        assert_eq!(refused.unwrap_err().errno(), 16);
    }
    assert_eq!(owner.info().free_bytes, 64 * MIB, "its frames are not the files'");
    let error = client.create("x", 65 * MIB, FolioSize::BestFit).unwrap_err();
    assert_eq!(error.errno(), 22, "{error}");
}

#[test]
fn a_second_range_that_fails_takes_the_first_down_again() {
    let owner = owner();
    let good = spec(MemoryType::Generic, &[(GIB, 4 * MIB)], Level::Pmd);
    let errno = |result: Result<_, Error>| result.map(drop).map_err(|error| error.errno());
    let add = |name, spec| errno(owner.add_pagemap(name, &spec, None));
    let bad = |ranges: &[(u64, u64)]| add("bad", spec(MemoryType::Generic, ranges, Level::Pmd));
    assert_eq!(bad(&[(GIB, 4 * MIB), (3 * GIB, 4096)]), Err(22), "not 2 MiB aligned");
    assert_eq!(bad(&[]), Err(22), "no range");
    assert_eq!(bad(&[(0, 4 * MIB)]), Err(12), "the pool's own");
    let private = spec(MemoryType::Private, &[(GIB, 4 * MIB)], Level::Pmd);
    assert_eq!(add("bad", private), Err(22), "no ops");
    assert!(owner.client().unwrap().open("bad").is_err());
    assert_eq!(add("good", good.clone()), Ok(()), "the first range was given back");
    assert_eq!(add("again", good), Err(12), "taken");
}

#[test]
fn removal_waits_for_pins_names_the_holder_and_never_hands_the_memory_over_before() {
    let owner = owner();
    let client = owner.client().unwrap();
    let driver = Arc::new(Driver::default());
    let ops: Arc<dyn PagemapOps> = Arc::clone(&driver) as _;
    let wanted = spec(MemoryType::Generic, &[(GIB, 8 * MIB)], Level::Pmd);
    let id = owner.add_pagemap("dax0.0", &wanted, Some(ops)).unwrap();
    let file = client.open("dax0.0").unwrap();
    let pin = file.pin(4096..8192).unwrap();
    let error = owner.remove_pagemap(id, Duration::from_millis(20)).unwrap_err();
    let Error::Refused(Refusal::Held { holders, .. }) = &error else { panic!("{error}") };
    assert_eq!(holders[0].pid, std::process::id() as i32);
    let told = client.next_event(Duration::from_secs(5)).unwrap();
    assert!(matches!(told, Some(Event::ReclaimRequested { .. })), "{told:?}");
    assert_eq!(driver.freed_pages.load(Ordering::Relaxed), 0);
    assert!(client.open("dax0.0").is_err() && file.pin_all().is_err(), "nobody new gets in");
    assert_eq!(owner.pagemap_at(pin.segments().next().unwrap().pool_offset / 4096), None);
    let again = owner.add_pagemap("dax0.1", &wanted, None).unwrap_err();
    assert_eq!(again.errno(), 12, "its bytes are not another's yet");
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| owner.remove_pagemap(id, Duration::from_secs(60)));
        while client.next_event(Duration::from_secs(5)).unwrap().is_none() {}
        drop(pin);
        removal.join().unwrap().unwrap();
    });
    assert_eq!(driver.freed_pages.load(Ordering::Relaxed), 2048, "each folio once");
    owner.add_pagemap("dax0.1", &wanted, None).unwrap();
}

#[test]
fn the_driver_hears_of_failure_first() {
    let owner = owner();
    let client = owner.client().unwrap();
    let driver = Arc::new(Driver::default());
    let ops: Arc<dyn PagemapOps> = Arc::clone(&driver) as _;
    let wanted = spec(MemoryType::Generic, &[(GIB, 4 * MIB)], Level::Pmd);
    owner.add_pagemap("dax0.0", &wanted, Some(ops)).unwrap();
    let file = client.open("dax0.0").unwrap();
    let pfn = file.pin_all().unwrap().segments().next().unwrap().pool_offset / 4096 + 3;
    client.memory_failure(pfn).unwrap();
    assert!(driver.log.lock().unwrap()[0].starts_with("failure"));
    assert_eq!(file.pin(3 * 4096..3 * 4096 + 1).unwrap_err().errno(), 133);
    drop(file.pin(4 * 4096..5 * 4096).unwrap());
}
