//! CXL memory devices and regions: what `cxl list -MR` shows.

use super::tree::Tree;

const DEVICES: &str = "sys/bus/cxl/devices";
/// Most devices that a region is spread over.
const MOST_TARGETS: usize = 32;

/// A CXL memory device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CxlMemdev {
    /// `mem0`.
    pub name: String,
    /// Volatile bytes.
    pub ram_bytes: u64,
    /// Persistent bytes.
    pub pmem_bytes: u64,
    /// Its serial number, as the kernel writes it.
    pub serial: Option<String>,
    /// Its node.
    pub numa_node: Option<u32>,
}

/// A CXL region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CxlRegion {
    /// `region0`.
    pub name: String,
    /// `ram` or `pmem`.
    pub mode: Option<String>,
    /// Its length.
    pub size_bytes: u64,
    /// How many devices it is spread over.
    pub interleave_ways: Option<u64>,
    /// In pieces of how many bytes.
    pub interleave_granularity: Option<u64>,
    /// The decoders behind it, in order.
    pub targets: Vec<String>,
    /// Whether it is in use: a driver has it.
    pub is_enabled: bool,
}

pub(super) fn memdevs(tree: &Tree) -> Vec<CxlMemdev> {
    let names = tree.names(DEVICES).into_iter().filter(|name| name.starts_with("mem"));
    names.map(|name| memdev(tree, name)).collect()
}

fn memdev(tree: &Tree, name: String) -> CxlMemdev {
    let of = |attribute: &str| format!("{DEVICES}/{name}/{attribute}");
    CxlMemdev {
        ram_bytes: tree.number(&of("ram/size")).unwrap_or(0),
        pmem_bytes: tree.number(&of("pmem/size")).unwrap_or(0),
        serial: tree.text(&of("serial")),
        numa_node: tree.node(&of("numa_node")),
        name,
    }
}

pub(super) fn regions(tree: &Tree) -> Vec<CxlRegion> {
    let names = tree.names(DEVICES).into_iter().filter(|name| name.starts_with("region"));
    names.filter_map(|name| region(tree, name)).collect()
}

fn region(tree: &Tree, name: String) -> Option<CxlRegion> {
    let of = |attribute: &str| format!("{DEVICES}/{name}/{attribute}");
    let interleave_ways = tree.number(&of("interleave_ways"));
    let ways = usize::try_from(interleave_ways.unwrap_or(0)).unwrap_or(0).min(MOST_TARGETS);
    let targets = (0..ways).filter_map(|index| tree.text(&of(&format!("target{index}"))));
    Some(CxlRegion {
        mode: tree.text(&of("mode")),
        size_bytes: tree.number(&of("size"))?,
        interleave_granularity: tree.number(&of("interleave_granularity")),
        targets: targets.filter(|target| !target.is_empty()).collect(),
        is_enabled: tree.link(&of("driver")).is_some(),
        interleave_ways,
        name,
    })
}
