//! Huge pages by size: how many the system keeps, and how many are free, also by node.

use super::tree::Tree;

const SIZES: &str = "sys/kernel/mm/hugepages";
const NODES: &str = "sys/devices/system/node";

/// Huge pages of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// Bytes of one.
    pub page_bytes: u64,
    /// How many the system keeps.
    pub nr_total: u64,
    /// How many nobody uses.
    pub nr_free: u64,
    /// How many of the free are promised to somebody.
    pub nr_reserved: u64,
    /// How many more than it keeps the system may make.
    pub nr_overcommit: u64,
    /// The same by node.
    pub nodes: Vec<HugePagesOfNode>,
}

/// Huge pages of one size on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugePagesOfNode {
    /// The node.
    pub node: u32,
    /// How many it keeps.
    pub nr_total: u64,
    /// How many nobody uses.
    pub nr_free: u64,
}

impl HugePages {
    /// How many a new pool can have.
    pub fn nr_available(&self) -> u64 {
        self.nr_free.saturating_sub(self.nr_reserved)
    }
}

pub(super) fn read(tree: &Tree) -> Vec<HugePages> {
    let mut sizes: Vec<HugePages> =
        tree.names(SIZES).iter().filter_map(|name| size(tree, name)).collect();
    sizes.sort_by_key(|size| size.page_bytes);
    sizes
}

fn size(tree: &Tree, name: &str) -> Option<HugePages> {
    let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    let of = |attribute: &str| tree.number(&format!("{SIZES}/{name}/{attribute}"));
    Some(HugePages {
        page_bytes: kib.checked_mul(1024)?,
        nr_total: of("nr_hugepages")?,
        nr_free: of("free_hugepages")?,
        nr_reserved: of("resv_hugepages").unwrap_or(0),
        nr_overcommit: of("nr_overcommit_hugepages").unwrap_or(0),
        nodes: tree.names(NODES).iter().filter_map(|node| of_node(tree, node, name)).collect(),
    })
}

fn of_node(tree: &Tree, node: &str, size: &str) -> Option<HugePagesOfNode> {
    let number = node.strip_prefix("node")?.parse().ok()?;
    let of = |attribute: &str| tree.number(&format!("{NODES}/{node}/hugepages/{size}/{attribute}"));
    Some(HugePagesOfNode {
        node: number,
        nr_total: of("nr_hugepages")?,
        nr_free: of("free_hugepages")?,
    })
}
