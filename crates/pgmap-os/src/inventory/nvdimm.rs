//! Regions of persistent memory and the namespaces on them: what `ndctl list -RN` shows.

use super::tree::Tree;

const DEVICES: &str = "sys/bus/nd/devices";

/// A region of persistent memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PmemRegion {
    /// `region0`.
    pub name: String,
    /// Its length.
    pub size_bytes: u64,
    /// What no namespace has.
    pub available_bytes: Option<u64>,
    /// The node that it is nearest to.
    pub numa_node: Option<u32>,
    /// What keeps a store when the power fails: `memory_controller`, `cpu_cache`, `unknown`.
    pub persistence_domain: Option<String>,
    /// Bad sectors, as the kernel knows them.
    pub nr_badblocks: u64,
}

/// What a namespace is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmemMode {
    /// A block device whose file systems can map its memory.
    Fsdax,
    /// A character device.
    Devdax,
    /// A block device whose sectors are written whole or not at all.
    Sector,
    /// A block device without descriptors of its pages.
    Raw,
}

impl PmemMode {
    /// As `ndctl` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fsdax => "fsdax",
            Self::Devdax => "devdax",
            Self::Sector => "sector",
            Self::Raw => "raw",
        }
    }
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PmemNamespace {
    /// `namespace0.0`.
    pub name: String,
    /// The region that it is on.
    pub region: String,
    /// What it is for.
    pub mode: PmemMode,
    /// Its usable length.
    pub size_bytes: u64,
    /// The unit that it is mapped in.
    pub align_bytes: Option<u64>,
    /// Its block device, as `pmem0`.
    pub block_device: Option<String>,
    /// Its dax device, as `dax0.0`.
    pub dax_device: Option<String>,
    /// Its node.
    pub numa_node: Option<u32>,
}

pub(super) fn regions(tree: &Tree) -> Vec<PmemRegion> {
    let names = tree.names(DEVICES).into_iter().filter(|name| name.starts_with("region"));
    names.filter_map(|name| region(tree, name)).collect()
}

fn region(tree: &Tree, name: String) -> Option<PmemRegion> {
    let of = |attribute: &str| format!("{DEVICES}/{name}/{attribute}");
    let badblocks = tree.text(&of("badblocks")).unwrap_or_default();
    Some(PmemRegion {
        size_bytes: tree.number(&of("size"))?,
        available_bytes: tree.number(&of("available_size")),
        numa_node: tree.node(&of("numa_node")),
        persistence_domain: tree.text(&of("persistence_domain")),
        // A line is a first sector and how many.
        nr_badblocks: badblocks
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum(),
        name,
    })
}

pub(super) fn namespaces(tree: &Tree) -> Vec<PmemNamespace> {
    let names = tree.names(DEVICES).into_iter().filter(|name| name.starts_with("namespace"));
    names.filter_map(|name| namespace(tree, name)).collect()
}

/// A namespace in use is claimed by another device of the bus, which has the length and alignment
/// that count.
fn namespace(tree: &Tree, name: String) -> Option<PmemNamespace> {
    let of = |attribute: &str| format!("{DEVICES}/{name}/{attribute}");
    let claim = tree.text(&of("holder")).filter(|claim| !claim.is_empty());
    let device = claim.clone().unwrap_or_else(|| name.clone());
    let of_device = |attribute: &str| format!("{DEVICES}/{device}/{attribute}");
    let mode = match tree.text(&of("mode")).as_deref() {
        Some("memory" | "fsdax") => PmemMode::Fsdax,
        Some("dax" | "devdax") => PmemMode::Devdax,
        Some("safe" | "sector") => PmemMode::Sector,
        _ => PmemMode::Raw,
    };
    let size_bytes = tree.number(&of_device("size")).or_else(|| tree.number(&of("size")))?;
    // A seed has no memory yet.
    if size_bytes == 0 {
        return None;
    }
    let number = name.strip_prefix("namespace")?.split('.').next()?;
    let children = |folder: &str| tree.names(&of_device(folder));
    let is_dax_device = |child: &String| {
        mode == PmemMode::Devdax && child.starts_with("dax") && child.contains('.')
    };
    Some(PmemNamespace {
        region: format!("region{number}"),
        mode,
        size_bytes,
        align_bytes: tree.number(&of_device("align")),
        block_device: children("block").into_iter().next(),
        dax_device: children("").into_iter().find(is_dax_device),
        numa_node: tree.node(&of("numa_node")),
        name,
    })
}
