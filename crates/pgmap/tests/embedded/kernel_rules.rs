//! Scenarios of the kernel's rules that pgmap answers with a refusal by name, or for which it has
//! no call at all; docs/parity.md says what Linux does.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use crate::support::{self, Random, block};
use pgmap::mm::gup::{Dirty, GupFlags};
use pgmap::mm::level::Level;
use pgmap::mm::mm::Placed;
use pgmap::mm::pagemap::{DeviceRange, OpsPresent, PagemapSpec};
use pgmap::mm::prot::Prot;
use pgmap::mm::vma::VmaKind;
use pgmap::pool::catalog::{Catalog, Change};
use pgmap::space::{AddressSpace, PinnedPages};
use pgmap::{
    Access, Agent, Client, Durability, Error, FileName, FolioSize, MemoryType, Owner, Pool,
    PoolOptions, Shape,
};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const ENOMEM: i32 = 12;
const EBUSY: i32 = 16;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const EOPNOTSUPP: i32 = 95;
const EREMOTEIO: i32 = 121;

/// A pagemap from 1 GiB on.
fn device(memory_type: MemoryType, level: Level, len_bytes: u64) -> PagemapSpec {
    PagemapSpec {
        memory_type,
        ranges: vec![DeviceRange { start_bytes: GIB, len_bytes }],
        owner: None,
        largest_level: level.number(),
        ops: OpsPresent::NONE,
    }
}

/// Gives the frames of the file `from` to `to` as well, as a reflink would.
fn share_in_catalog(pool: &Path, from: &str, to: &str) {
    let catalog = Catalog::open(&pool.join("catalog")).unwrap();
    let record = catalog.files().unwrap()[&FileName::new(from).unwrap()].clone();
    catalog.record(&[Change::Put(&FileName::new(to).unwrap(), record)]).unwrap();
    // The data says which change of the catalog it goes with; where it says nothing, any does.
    let data = std::fs::File::options().write(true).open(pool.join("data")).unwrap();
    let marks = data.metadata().unwrap().len() - 2048;
    std::os::unix::fs::FileExt::write_all_at(&data, &[0; 2048], marks).unwrap();
}

#[test]
fn scenario_31_and_57_a_frame_belongs_to_one_file() {
    let directory = support::roomy();
    let path = directory.path().join("pool");
    let owner =
        Owner::start(Pool::create(&PoolOptions::in_directory(&path, 16 * MIB)).unwrap()).unwrap();
    let client = owner.client().unwrap();
    support::put(&client, "a", &block::make(1, 3 << 20)).unwrap();
    support::put(&client, "b", &block::make(2, 1 << 20)).unwrap();
    drop((client, owner));
    // The unchanged catalog is accepted: what is refused below is the sharing and nothing else.
    drop(Owner::start(Pool::open(&path).unwrap()).unwrap());
    share_in_catalog(&path, "a", "clone");
    for has_descriptors in [true, false] {
        if !has_descriptors {
            // As after a loss of the machine's memory: the catalog alone says whose frames they
            // are.
            File::create(path.join("vmemmap")).unwrap();
        }
        let error = Owner::start(Pool::open(&path).unwrap()).map(drop).unwrap_err();
        assert!(matches!(error, Error::BadPool { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains("\"clone\" claims") && said.contains("\"a\" has"), "{said}");
        assert_eq!(error.errno(), EINVAL);
    }
}

#[test]
fn scenario_34_longterm_is_refused_by_the_type_of_the_memory() {
    for (memory_type, by_file, by_address, says) in [
        (MemoryType::FsDax, EOPNOTSUPP, EOPNOTSUPP, "fsdax"),
        (MemoryType::Coherent, EBUSY, EBUSY, "coherent"),
        // By address it is another device's first of all.
        (MemoryType::P2pDma, EOPNOTSUPP, EREMOTEIO, "p2pdma"),
    ] {
        let options = PoolOptions::anonymous(16 * MIB).memory_type(memory_type);
        let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
        let client = owner.client().unwrap();
        support::put(&client, "a", &block::make(1, 3 << 20)).unwrap();
        let file = client.open("a").unwrap();
        assert_eq!(file.pin_longterm(0..3 * MIB).unwrap_err().errno(), EOPNOTSUPP);
        let error = file.lease(0..3 * MIB, Agent::Device, Access::Write).unwrap_err();
        assert_eq!(error.errno(), by_file, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        let space = space_over(&client, "a", 3 * MIB);
        for flags in [GupFlags::LONGTERM, GupFlags::LONGTERM.with(GupFlags::WRITE)] {
            let error = space.pin(GIB, 768, flags).unwrap_err();
            assert_eq!(error.errno(), by_address, "{error}");
        }
        assert_eq!(client.who_all().unwrap().holders, [], "a refused request left a hold");
    }
}

#[test]
fn scenario_35_longterm_on_coherent_memory_is_ebusy_and_nothing_is_pinned() {
    let options = PoolOptions::anonymous(16 * MIB).memory_type(MemoryType::Coherent);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let client = owner.client().unwrap();
    support::put(&client, "a", &block::make(1, 3 << 20)).unwrap();
    let file = client.open("a").unwrap();
    drop(file.pin(0..3 * MIB).unwrap());
    for agent in [Agent::Cpu, Agent::Device] {
        let error = file.lease(0..3 * MIB, agent, Access::Write).unwrap_err();
        assert_eq!(error.errno(), EBUSY, "{error}");
        assert!(error.to_string().contains("coherent"), "{error}");
    }
    let space = space_over(&client, "a", 3 * MIB);
    let error = space.pin(GIB, 768, GupFlags::WRITE.with(GupFlags::LONGTERM)).unwrap_err();
    assert_eq!(error.errno(), EBUSY, "{error}");
    assert_eq!(space.pin(GIB, 768, GupFlags::WRITE).unwrap().nr_pages(), 768);
    assert_eq!(client.who_all().unwrap().holders, [], "a refused request left a hold");
}

#[test]
fn scenario_36_a_peer_device_needs_its_flag() {
    let options = PoolOptions::anonymous(16 * MIB).capacity(4 * GIB);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let client = owner.client().unwrap();
    owner.add_pagemap("gpu", &device(MemoryType::P2pDma, Level::Pmd, 8 * MIB), None).unwrap();
    let space = space_over(&client, "gpu", 8 * MIB);
    assert_eq!(space.mm().area_at(GIB).unwrap().kind(), VmaKind::PeerToPeer);
    let errno = |flags| space.pin(GIB, 2048, flags).map(drop).map_err(|error| error.errno());
    let peer = GupFlags::P2PDMA;
    // Before anything is mapped, and when it is.
    for _ in 0..2 {
        for refused in [GupFlags::NONE, GupFlags::WRITE, GupFlags::LONGTERM] {
            assert_eq!(errno(refused), Err(EREMOTEIO), "{refused:?}");
        }
        assert_eq!(errno(peer.with(GupFlags::LONGTERM)), Err(EINVAL));
        space.populate(GIB, 8 * MIB).unwrap();
    }
    assert!(space.pin(GIB, 1, GupFlags::FAST_ONLY).unwrap().is_empty());
    assert!(space.read_section().unwrap().translate(GIB).is_none());
    let pages = space.pin(GIB, 2048, peer.with(GupFlags::WRITE)).unwrap();
    assert_eq!((pages.nr_pages(), pages.segments().next().unwrap().level), (2048, Level::Pmd));
    drop(pages);
    // The processor reaches it; it is other devices that may not.
    space.write_at(GIB + 5 * PAGE, b"bar").unwrap();
    let mut bytes = [0; 3];
    space.read_at(GIB + 5 * PAGE, &mut bytes).unwrap();
    assert_eq!(&bytes, b"bar");
    // Unlike a device-dax area, it may be mapped and split at any page.
    drop(space.unmap(GIB + PAGE, PAGE).unwrap());
    assert_eq!(errno(peer), Ok(()));
    // Where the first frame failed, the rest is what it was.
    client.memory_failure(GIB / PAGE).unwrap();
    let other = space_over(&client, "gpu", 8 * MIB);
    assert_eq!(other.mm().area_at(GIB).unwrap().kind(), VmaKind::PeerToPeer);
    assert_eq!(client.who_all().unwrap().holders, [], "a refused request left a hold");
}

fn space_over(client: &Client, name: &str, len_bytes: u64) -> AddressSpace {
    let space = AddressSpace::for_device(client, GIB, GIB).unwrap();
    let file = client.open(name).unwrap();
    space.map(&file, 0, len_bytes, Placed::At(GIB), Prot::READ_WRITE).unwrap();
    space
}

/// Copies what was written since the last look, page by page, as a migration does.
fn flush(space: &AddressSpace, target: &mut [u8]) {
    let first_page = GIB / PAGE;
    for (page, nr_pages) in space.mm().dirty().take(first_page, target.len() as u64 / PAGE) {
        let pages = space.pin(page * PAGE, nr_pages, GupFlags::NONE).unwrap();
        let from = ((page - first_page) * PAGE) as usize;
        pages.read_at(0, &mut target[from..from + (nr_pages * PAGE) as usize]).unwrap();
    }
}

#[test]
fn scenario_39_dirty_tracking_loses_no_write_under_longterm_pins() {
    const NR_PAGES: u64 = 600;
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(16 * MIB)).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let mut source = block::make(1, (NR_PAGES * PAGE) as usize);
    support::put(&client, "a", &source).unwrap();
    let space = space_over(&client, "a", NR_PAGES * PAGE);
    let mut random = Random(support::seed());
    let mut target = source.clone();
    space.mm().dirty().start();
    let mut pins: Vec<PinnedPages<'_>> = Vec::new();
    for _ in 0..2_000 {
        match random.below(5) {
            0 if pins.len() < 16 => {
                let page = random.below(NR_PAGES);
                let nr_pages = 1 + random.below((NR_PAGES - page).min(40));
                let flags = GupFlags::WRITE.with(GupFlags::LONGTERM);
                pins.push(space.pin(GIB + page * PAGE, nr_pages, flags).unwrap());
            }
            1 if !pins.is_empty() => {
                let pin = pins.swap_remove(random.below(pins.len() as u64) as usize);
                if random.below(2) == 0 { drop(pin) } else { pin.unpin(Dirty::Yes) }
            }
            2 => flush(&space, &mut target),
            _ if !pins.is_empty() => {
                let pin = &pins[random.below(pins.len() as u64) as usize];
                let offset = random.below(pin.len_bytes() - 8);
                let bytes = random.next().to_le_bytes();
                pin.write_at(offset, &bytes).unwrap();
                let at = (pin.address() - GIB + offset) as usize;
                source[at..at + 8].copy_from_slice(&bytes);
            }
            _ => {}
        }
    }
    let held = client.who("a").unwrap().holders;
    assert!(pins.is_empty() || !held.is_empty());
    drop(pins);
    flush(&space, &mut target);
    assert!(target == source, "a write under a long-term pin was never reported");
    assert_eq!(client.who_all().unwrap().holders, []);
}

#[test]
fn scenario_46_the_level_of_a_pagemap_that_is_up_stays() {
    let options = PoolOptions::anonymous(64 * MIB).capacity(4 * GIB);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let spec = |level, len_bytes| device(MemoryType::Generic, level, len_bytes);
    let id = owner.add_pagemap("dax0.0", &spec(Level::Pmd, 8 * MIB), None).unwrap();
    // Under another level, or grown: its range is taken.
    for other in [spec(Level::Pte, 8 * MIB), spec(Level::Pmd, 16 * MIB)] {
        assert_eq!(owner.add_pagemap("dax0.1", &other, None).unwrap_err().errno(), ENOMEM);
    }
    // Its folios one by one, and its size.
    for shape in [Shape::Split { to: 0 }, Shape::Merge { to: 2 }] {
        assert_eq!(client.reshape("dax0.0", 0, shape).unwrap_err().errno(), EBUSY);
    }
    assert_eq!(client.truncate("dax0.0", 4 * MIB, Duration::ZERO).unwrap_err().errno(), EBUSY);
    assert_eq!(client.stat("dax0.0").unwrap().nr_folios, [0, 4, 0]);
    // Down and up again is the way.
    owner.remove_pagemap(id, std::time::Duration::ZERO).unwrap();
    owner.add_pagemap("dax0.0", &spec(Level::Pte, 8 * MIB), None).unwrap();
    assert_eq!(client.stat("dax0.0").unwrap().nr_folios, [2048, 0, 0]);
}

#[test]
fn scenario_46_a_size_above_the_region_is_enospc() {
    let options = PoolOptions::anonymous(16 * MIB).capacity(GIB + 8 * MIB);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let add = |len_bytes| {
        let spec = device(MemoryType::Generic, Level::Pmd, len_bytes);
        owner.add_pagemap("dax0.0", &spec, None)
    };
    // Pagemaps start at whole GiB, and the pool's own is in the first.
    let error = add(10 * MIB).unwrap_err();
    assert_eq!(error.errno(), ENOSPC, "{error}");
    assert!(client.open("dax0.0").is_err());
    add(8 * MIB).unwrap();
    assert_eq!(client.stat("dax0.0").unwrap().len_bytes, 8 * MIB);
}

#[test]
fn scenario_58_memory_that_does_not_outlive_power_is_refused_by_name() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = directory.path().join("pool");
    for options in [PoolOptions::anonymous(MIB), PoolOptions::in_directory(&path, MIB)] {
        let error = Pool::create(&options.clone().durability(Durability::PowerFailure));
        let error = error.unwrap_err();
        assert_eq!(error.errno(), EOPNOTSUPP, "{error}");
        assert!(error.to_string().contains("power failure"), "{error}");
        assert!(!path.join("data").exists(), "nothing is made");
        let _empty = std::fs::remove_dir_all(&path);
        let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
        let client = owner.client().unwrap();
        drop(client.create("a", 1, FolioSize::BestFit).unwrap());
    }
}
