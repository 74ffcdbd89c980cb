//! Devices of the dax bus: what `daxctl list` shows.

use super::tree::Tree;

const DEVICES: &str = "sys/bus/dax/devices";

/// A dax device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaxDevice {
    /// `dax0.0`.
    pub name: String,
    /// Its length.
    pub size_bytes: u64,
    /// The unit that it is mapped in.
    pub align_bytes: Option<u64>,
    /// The node that its memory is nearest to.
    pub numa_node: Option<u32>,
    /// The node that its memory would be if it were the system's.
    pub target_node: Option<u32>,
    /// `device_dax` for a character device, `kmem` for memory that the system uses.
    pub driver: Option<String>,
    /// Numbers of its character device, as `MAJOR:MINOR`.
    pub device_numbers: Option<String>,
    /// What it is a part of.
    pub parent: DaxParent,
}

/// What a dax device is a part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DaxParent {
    /// A region of persistent memory.
    Pmem(String),
    /// A CXL region.
    Cxl(String),
    /// Memory that the firmware set aside for one purpose.
    SoftReserved,
    /// Something else.
    Unknown,
}

impl DaxDevice {
    /// Whether it has a character device, which a pool can be on.
    pub fn is_character_device(&self) -> bool {
        self.device_numbers.is_some() && self.driver.as_deref() != Some("kmem")
    }
}

pub(super) fn read(tree: &Tree) -> Vec<DaxDevice> {
    tree.names(DEVICES).into_iter().filter_map(|name| device(tree, name)).collect()
}

fn device(tree: &Tree, name: String) -> Option<DaxDevice> {
    let of = |attribute: &str| format!("{DEVICES}/{name}/{attribute}");
    Some(DaxDevice {
        size_bytes: tree.number(&of("size"))?,
        align_bytes: tree.number(&of("align")),
        numa_node: tree.node(&of("numa_node")),
        target_node: tree.node(&of("target_node")),
        driver: tree.link(&of("driver")),
        device_numbers: tree.text(&of("dev")),
        parent: parent(tree, &name),
        name,
    })
}

/// By the directories that the device lies in: a region of the bus `nd` or `cxl`, or a platform
/// device.
fn parent(tree: &Tree, name: &str) -> DaxParent {
    let ancestry = tree.ancestry(&format!("{DEVICES}/{name}"));
    let Some(region) = ancestry.iter().rev().find(|name| is_region(name)) else {
        let is_reserved = ancestry.iter().any(|name| name.starts_with("hmem"));
        return if is_reserved { DaxParent::SoftReserved } else { DaxParent::Unknown };
    };
    // Both buses have regions; the one of persistent memory hangs below a bus of its own, and on
    // CXL below that again.
    let is_pmem = ancestry.iter().any(|name| name.starts_with("ndbus"));
    if is_pmem { DaxParent::Pmem(region.clone()) } else { DaxParent::Cxl(region.clone()) }
}

fn is_region(name: &str) -> bool {
    let digits = name.strip_prefix("region").unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}
