//! The inventory over trees that `cargo xtask guest --only record` wrote down in kernels with
//! NVDIMMs, and over trees made up here for what these guests do not have.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use pgmap_os::inventory::{DaxMode, DaxParent, Inventory, MountKind, PmemMode};

const RECORDS: [&str; 2] =
    [include_str!("../data/devices-6.12.txt"), include_str!("../data/devices-7.3.txt")];

/// Builds a recorded tree again.
fn build(record: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let at = |path: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    let mut mounts = String::new();
    for line in record.lines() {
        let (kind, rest) = line.split_once(' ').unwrap();
        let (path, value) = rest.split_once(' ').unwrap_or((rest, ""));
        match kind {
            "F" => fs::write(at(path), format!("{value}\n")).unwrap(),
            "L" => symlink(value, at(path)).unwrap(),
            "D" => fs::create_dir_all(root.join(path)).unwrap(),
            "M" => mounts.push_str(&format!("{rest}\n")),
            _ => panic!("{line}"),
        }
    }
    fs::write(at("proc/self/mountinfo"), mounts).unwrap();
    for path in ["tmp", "dev/shm", "mnt/pool"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    directory
}

#[test]
fn a_guests_nvdimms_are_found_with_what_is_on_them() {
    for record in RECORDS {
        let tree = build(record);
        let found = Inventory::read(tree.path());
        assert!(found.unread.is_empty(), "{:?}", found.unread);
        let [dax] = &found.dax_devices[..] else { panic!("{:?}", found.dax_devices) };
        assert_eq!((&*dax.name, dax.size_bytes), ("dax0.0", 4_292_870_144));
        assert_eq!((dax.align_bytes, dax.numa_node), (Some(2 << 20), Some(0)));
        assert_eq!(dax.driver.as_deref(), Some("device_dax"));
        assert!(dax.is_character_device());
        assert_eq!(dax.parent, DaxParent::Pmem("region0".into()));
        let sizes: Vec<_> =
            found.pmem_regions.iter().map(|region| (&*region.name, region.size_bytes)).collect();
        assert_eq!(sizes, [("region0", 4 << 30), ("region1", 1 << 30)]);
        let [devdax, fsdax] = &found.pmem_namespaces[..] else {
            panic!("{:?}", found.pmem_namespaces)
        };
        assert_eq!((devdax.mode, fsdax.mode), (PmemMode::Devdax, PmemMode::Fsdax));
        assert_eq!(devdax.dax_device.as_deref(), Some("dax0.0"));
        assert_eq!(devdax.size_bytes, dax.size_bytes);
        assert_eq!(fsdax.block_device.as_deref(), Some("pmem1"));
        assert_eq!((&*fsdax.region, fsdax.align_bytes), ("region1", Some(2 << 20)));
    }
}

#[test]
fn mounts_and_huge_pages_of_a_guest_are_found() {
    for record in RECORDS {
        let tree = build(record);
        let found = Inventory::read(tree.path());
        let paths: Vec<_> = found.mounts.iter().map(|mount| mount.path.clone()).collect();
        assert_eq!(paths, ["/tmp", "/dev/shm", "/mnt/pool"].map(PathBuf::from));
        let dax = MountKind::Dax { file_system: "ext4".into(), mode: DaxMode::Always };
        assert_eq!((&found.mounts[2].kind, &*found.mounts[2].source), (&dax, "/dev/pmem1"));
        assert!(found.mounts.iter().all(|mount| mount.room.is_some() && mount.is_writable));
        let [small, large] = &found.huge_pages[..] else { panic!("{:?}", found.huge_pages) };
        assert_eq!((small.page_bytes, small.nr_available()), (2 << 20, 1));
        assert_eq!((large.page_bytes, large.nr_total), (1 << 30, 0));
        assert_eq!(small.nodes.len(), 1);
    }
}

/// A CXL memory device and region with a dax device that the system uses, and one of soft-reserved
/// memory.
const CXL: &str = "\
D sys/devices/pci0/mem0
L sys/bus/cxl/devices/mem0 ../../../devices/pci0/mem0
F sys/devices/pci0/mem0/ram/size 0x10000000
F sys/devices/pci0/mem0/pmem/size 0x20000000
F sys/devices/pci0/mem0/serial 0x7
F sys/devices/pci0/mem0/numa_node -1
L sys/bus/cxl/devices/region0 ../../../devices/root0/decoder0.0/region0
F sys/devices/root0/decoder0.0/region0/size 0x10000000
F sys/devices/root0/decoder0.0/region0/mode ram
F sys/devices/root0/decoder0.0/region0/interleave_ways 2
F sys/devices/root0/decoder0.0/region0/interleave_granularity 4096
F sys/devices/root0/decoder0.0/region0/target0 decoder2.0
F sys/devices/root0/decoder0.0/region0/target1 decoder3.0
L sys/devices/root0/decoder0.0/region0/driver ../../../../bus/cxl/drivers/cxl_region
L sys/bus/dax/devices/dax10.0 ../../../devices/root0/decoder0.0/region0/dax_region0/dax10.0
F sys/devices/root0/decoder0.0/region0/dax_region0/dax10.0/size 268435456
F sys/devices/root0/decoder0.0/region0/dax_region0/dax10.0/numa_node -1
F sys/devices/root0/decoder0.0/region0/dax_region0/dax10.0/target_node 3
L sys/devices/root0/decoder0.0/region0/dax_region0/dax10.0/driver ../../bus/dax/drivers/kmem
L sys/bus/dax/devices/dax2.0 ../../../devices/platform/hmem.2/dax2.0
F sys/devices/platform/hmem.2/dax2.0/size 4096
";

#[test]
fn cxl_memory_is_told_from_other_memory() {
    let tree = build(CXL);
    let found = Inventory::read(tree.path());
    let [reserved, cxl] = &found.dax_devices[..] else { panic!("{:?}", found.dax_devices) };
    // In order of number, not of spelling.
    assert_eq!((&*reserved.name, &reserved.parent), ("dax2.0", &DaxParent::SoftReserved));
    assert_eq!(cxl.parent, DaxParent::Cxl("region0".into()));
    assert_eq!((cxl.numa_node, cxl.target_node), (None, Some(3)));
    assert!(!cxl.is_character_device() && cxl.align_bytes.is_none());
    let [memdev] = &found.cxl_memdevs[..] else { panic!("{:?}", found.cxl_memdevs) };
    assert_eq!((memdev.ram_bytes, memdev.pmem_bytes), (256 << 20, 512 << 20));
    let [region] = &found.cxl_regions[..] else { panic!("{:?}", found.cxl_regions) };
    assert_eq!(region.targets, ["decoder2.0", "decoder3.0"]);
    assert!(region.is_enabled);
    assert_eq!(region.interleave_granularity, Some(4096));
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_found() {
    if rustix::process::geteuid().is_root() {
        println!("skipped: what_cannot_be_read_is_named...: root may read everything");
        return;
    }
    let tree = build(RECORDS[0]);
    let hidden = tree.path().join("sys/bus/dax/devices/dax0.0/align");
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o000)).unwrap();
    check_hidden(&Inventory::read(tree.path()));
}

#[test]
fn an_attribute_that_is_no_file_is_named() {
    let tree = build(RECORDS[0]);
    let hidden = tree.path().join("sys/bus/dax/devices/dax0.0/align");
    fs::remove_file(&hidden).unwrap();
    fs::create_dir(&hidden).unwrap();
    check_hidden(&Inventory::read(tree.path()));
}

fn check_hidden(found: &Inventory) {
    let [unread] = &found.unread[..] else { panic!("{:?}", found.unread) };
    assert_eq!(unread.path, Path::new("/sys/bus/dax/devices/dax0.0/align"));
    assert_eq!(found.dax_devices[0].align_bytes, None);
    assert_eq!(found.pmem_regions.len(), 2);
}

#[test]
fn a_machine_without_memory_devices_has_none_and_nothing_is_unread() {
    let tree = tempfile::tempdir().unwrap();
    let found = Inventory::read(tree.path());
    assert!(found.dax_devices.is_empty() && found.mounts.is_empty() && found.unread.is_empty());
}
