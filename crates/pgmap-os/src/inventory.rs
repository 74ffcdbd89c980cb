//! What on this machine could hold a pool: memory devices, huge pages and file systems, by sysfs
//! and proc.
//!
//! The terms are those of `daxctl list`, `ndctl list` and `cxl list`. Nothing is opened and nothing
//! changed. What cannot be read is listed with the reason; an attribute that a kernel does not have
//! is absent.

mod cxl;
mod dax;
mod huge_pages;
mod mounts;
mod nvdimm;
mod tree;

use std::io;
use std::path::{Path, PathBuf};

pub use cxl::{CxlMemdev, CxlRegion};
pub use dax::{DaxDevice, DaxParent};
pub use huge_pages::{HugePages, HugePagesOfNode};
pub use mounts::{DaxMode, Mount, MountKind, Room};
pub use nvdimm::{PmemMode, PmemNamespace, PmemRegion};

use tree::Tree;

/// Something that could not be read.
#[derive(Debug)]
pub struct Unread {
    /// The file or directory.
    pub path: PathBuf,
    /// Why.
    pub error: io::Error,
}

/// What a machine has.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Devices of the dax bus, in order of name.
    pub dax_devices: Vec<DaxDevice>,
    /// Regions of persistent memory.
    pub pmem_regions: Vec<PmemRegion>,
    /// Namespaces on them.
    pub pmem_namespaces: Vec<PmemNamespace>,
    /// CXL memory devices.
    pub cxl_memdevs: Vec<CxlMemdev>,
    /// CXL regions.
    pub cxl_regions: Vec<CxlRegion>,
    /// Sizes of huge pages.
    pub huge_pages: Vec<HugePages>,
    /// Mounted tmpfs, hugetlbfs and DAX file systems.
    pub mounts: Vec<Mount>,
    /// What could not be read.
    pub unread: Vec<Unread>,
}

impl Inventory {
    /// Reads the machine whose `/sys` and `/proc` lie below `root`, which is `/` but in tests.
    pub fn read(root: &Path) -> Self {
        let tree = Tree::new(root);
        let mut inventory = Self {
            dax_devices: dax::read(&tree),
            pmem_regions: nvdimm::regions(&tree),
            pmem_namespaces: nvdimm::namespaces(&tree),
            cxl_memdevs: cxl::memdevs(&tree),
            cxl_regions: cxl::regions(&tree),
            huge_pages: huge_pages::read(&tree),
            mounts: mounts::read(&tree),
            unread: Vec::new(),
        };
        inventory.unread = tree.into_unread();
        inventory
    }
}
