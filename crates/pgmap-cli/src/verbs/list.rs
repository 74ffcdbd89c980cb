//! `pgmap list --devices`: what on this machine could hold a pool.

use std::path::Path;

use pgmap::os::file_users::FileUsers;
use pgmap::os::inventory::{
    CxlMemdev, CxlRegion, DaxDevice, DaxMode, DaxParent, HugePages, Inventory, Mount, MountKind,
    PmemNamespace, PmemRegion,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::names;
use crate::output::{Output, Show, Units};
use crate::table::{Side, Table};

/// Show what on this machine could hold a pool
///
/// With --devices: dax devices with their size, alignment, node, driver and who has them open;
/// regions and namespaces of persistent memory; CXL memory devices and regions; sizes of huge pages
/// with how many are free; tmpfs, hugetlbfs and file systems that map their device (dax) with the
/// room in them. The terms are those of daxctl, ndctl and cxl list. Nothing is opened or changed.
///
/// It asks /sys and /proc and needs no right for most of it; what it may not read is named below
/// the table. The files of a pool are shown by `pgmap ls`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// The machine's memory devices, huge pages and file systems whose files are memory
    #[arg(long = "devices", required = true)]
    is_of_devices: bool,
    /// Directory that has the `sys` and `proc` to read, such as those of another machine
    #[arg(long, value_name = "DIR", default_value = "/", value_hint = clap::ValueHint::DirPath)]
    root: std::path::PathBuf,
}

/// A thing that could hold a pool, as a row.
struct Row {
    kind: &'static str,
    name: String,
    size: Option<u64>,
    free: Option<u64>,
    align: Option<u64>,
    node: Option<u32>,
    driver: String,
    more: String,
}

/// A process that has a dax device open or maps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct DeviceHolder {
    pid: i32,
    command: String,
}

#[derive(Serialize)]
struct Devices {
    schema: &'static str,
    dax_devices: Vec<Value>,
    pmem_regions: Vec<Value>,
    pmem_namespaces: Vec<Value>,
    cxl_memdevs: Vec<Value>,
    cxl_regions: Vec<Value>,
    huge_pages: Vec<Value>,
    mounts: Vec<Value>,
    unread: Vec<Value>,
    #[serde(skip)]
    rows: Vec<Row>,
    #[serde(skip)]
    notes: Vec<String>,
}

impl Show for Devices {
    fn table(&self, units: Units) -> Table {
        let mut table = Table::new(&[
            ("KIND", Side::Left),
            ("NAME", Side::Left),
            ("SIZE", Side::Right),
            ("FREE", Side::Right),
            ("ALIGN", Side::Right),
            ("NODE", Side::Right),
            ("DRIVER", Side::Left),
            ("MORE", Side::Left),
        ]);
        let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".into(), |b| units.bytes(b));
        for row in &self.rows {
            table.row(vec![
                row.kind.into(),
                row.name.clone(),
                bytes(row.size),
                bytes(row.free),
                bytes(row.align),
                row.node.map_or_else(|| "-".into(), |node| node.to_string()),
                row.driver.clone(),
                row.more.clone(),
            ]);
        }
        for note in &self.notes {
            table.closing(note.clone());
        }
        table
    }
}

impl List {
    /// Shows them.
    ///
    /// # Errors
    /// When nothing can be shown at all: there is no `sys` there.
    pub fn run(self, output: &Output) -> Result<(), Failure> {
        debug_assert!(self.is_of_devices, "clap requires it");
        let sys = self.root.join("sys");
        std::fs::read_dir(&sys).map_err(|error| Failure::io("list", sys.display(), &error))?;
        let inventory = Inventory::read(&self.root);
        // Processes are those of the machine whose devices these are, and of no other.
        let is_here = self.root == Path::new("/");
        output.show(&devices(&inventory, is_here))
    }
}

fn devices(inventory: &Inventory, is_here: bool) -> Devices {
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    let mut dax_devices = Vec::new();
    for device in &inventory.dax_devices {
        let holders = if is_here { holders(device, &mut notes) } else { Vec::new() };
        dax_devices.push(dax_value(device, &holders));
        rows.push(dax_row(device, &holders));
    }
    rows.extend(inventory.pmem_regions.iter().map(pmem_region_row));
    rows.extend(inventory.pmem_namespaces.iter().map(namespace_row));
    rows.extend(inventory.cxl_memdevs.iter().map(memdev_row));
    rows.extend(inventory.cxl_regions.iter().map(cxl_region_row));
    rows.extend(inventory.huge_pages.iter().map(huge_row));
    rows.extend(inventory.mounts.iter().map(mount_row));
    for unread in &inventory.unread {
        notes.push(format!("{} was not read: {}", unread.path.display(), unread.error));
    }
    Devices {
        schema: "pgmap.devices/1",
        dax_devices,
        pmem_regions: inventory.pmem_regions.iter().map(pmem_region_value).collect(),
        pmem_namespaces: inventory.pmem_namespaces.iter().map(namespace_value).collect(),
        cxl_memdevs: inventory.cxl_memdevs.iter().map(memdev_value).collect(),
        cxl_regions: inventory.cxl_regions.iter().map(cxl_region_value).collect(),
        huge_pages: inventory.huge_pages.iter().map(huge_value).collect(),
        mounts: inventory.mounts.iter().map(mount_value).collect(),
        unread: inventory
            .unread
            .iter()
            .map(|unread| {
                json!({ "path": unread.path.display().to_string(),
                        "errno": unread.error.raw_os_error(), "error": unread.error.to_string() })
            })
            .collect(),
        rows,
        notes,
    }
}

/// Who has the device's character device open or maps it.
fn holders(device: &DaxDevice, notes: &mut Vec<String>) -> Vec<DeviceHolder> {
    if !device.is_character_device() {
        return Vec::new();
    }
    let path = format!("/dev/{}", device.name);
    let users = match FileUsers::of(Path::new(&path)) {
        Ok(users) => users,
        Err(error) => {
            notes.push(format!("who holds {} is not known: {error}", device.name));
            return Vec::new();
        }
    };
    if !users.unread.is_empty() {
        notes.push(format!(
            "{} of /proc's processes were not read for {}; `pgmap who {path}` names them",
            users.unread.len(),
            device.name
        ));
    }
    let mut holders: Vec<DeviceHolder> = users
        .uses
        .into_iter()
        .map(|a_use| DeviceHolder { pid: a_use.pid, command: a_use.command })
        .collect();
    holders.dedup();
    holders
}

fn parent_name(parent: &DaxParent) -> String {
    match parent {
        DaxParent::Pmem(region) => format!("pmem {region}"),
        DaxParent::Cxl(region) => format!("cxl {region}"),
        DaxParent::SoftReserved => "soft-reserved".into(),
        DaxParent::Unknown => "unknown".into(),
    }
}

fn dax_row(device: &DaxDevice, holders: &[DeviceHolder]) -> Row {
    let mut more = vec![parent_name(&device.parent)];
    if device.driver.as_deref() == Some("kmem") {
        more.push("the system uses it: daxctl reconfigure-device -m devdax".into());
    } else if !device.is_character_device() {
        more.push("no driver".into());
    }
    more.extend(
        holders.iter().map(|holder| format!("held by {} ({})", holder.command, holder.pid)),
    );
    Row {
        kind: "dax",
        name: device.name.clone(),
        size: Some(device.size_bytes),
        free: None,
        align: device.align_bytes,
        node: device.numa_node.or(device.target_node),
        driver: device.driver.clone().unwrap_or_else(|| "-".into()),
        more: more.join(", "),
    }
}

fn dax_value(device: &DaxDevice, holders: &[DeviceHolder]) -> Value {
    let mode = match device.driver.as_deref() {
        Some("kmem") => Some("system-ram"),
        Some(_) => Some("devdax"),
        None => None,
    };
    json!({
        "chardev": device.name, "size": device.size_bytes, "align": device.align_bytes,
        "numa_node": device.numa_node, "target_node": device.target_node,
        "driver": device.driver, "mode": mode, "parent": parent_name(&device.parent),
        "device_numbers": device.device_numbers, "holders": holders,
    })
}

fn pmem_region_row(region: &PmemRegion) -> Row {
    let domain = region.persistence_domain.as_deref().unwrap_or("unknown");
    let bad = match region.nr_badblocks {
        0 => String::new(),
        nr => format!(", {nr} bad sectors"),
    };
    Row {
        kind: "pmem-region",
        name: region.name.clone(),
        size: Some(region.size_bytes),
        free: region.available_bytes,
        align: None,
        node: region.numa_node,
        driver: "-".into(),
        more: format!("persistence domain {domain}{bad}"),
    }
}

fn pmem_region_value(region: &PmemRegion) -> Value {
    json!({
        "dev": region.name, "size": region.size_bytes, "available_size": region.available_bytes,
        "numa_node": region.numa_node, "persistence_domain": region.persistence_domain,
        "badblock_count": region.nr_badblocks,
    })
}

fn namespace_row(namespace: &PmemNamespace) -> Row {
    let device = namespace.block_device.as_ref().or(namespace.dax_device.as_ref());
    Row {
        kind: "namespace",
        name: namespace.name.clone(),
        size: Some(namespace.size_bytes),
        free: None,
        align: namespace.align_bytes,
        node: namespace.numa_node,
        driver: "-".into(),
        more: match device {
            Some(device) => format!("{}, /dev/{device}", namespace.mode.name()),
            None => format!("{}, disabled", namespace.mode.name()),
        },
    }
}

fn namespace_value(namespace: &PmemNamespace) -> Value {
    json!({
        "dev": namespace.name, "region": namespace.region, "mode": namespace.mode.name(),
        "size": namespace.size_bytes, "align": namespace.align_bytes,
        "blockdev": namespace.block_device, "chardev": namespace.dax_device,
        "numa_node": namespace.numa_node,
    })
}

fn memdev_row(memdev: &CxlMemdev) -> Row {
    Row {
        kind: "cxl-memdev",
        name: memdev.name.clone(),
        size: Some(memdev.ram_bytes.saturating_add(memdev.pmem_bytes)),
        free: None,
        align: None,
        node: memdev.numa_node,
        driver: "-".into(),
        more: format!("ram {}, pmem {}", memdev.ram_bytes, memdev.pmem_bytes),
    }
}

fn memdev_value(memdev: &CxlMemdev) -> Value {
    json!({
        "memdev": memdev.name, "ram_size": memdev.ram_bytes, "pmem_size": memdev.pmem_bytes,
        "serial": memdev.serial, "numa_node": memdev.numa_node,
    })
}

fn cxl_region_row(region: &CxlRegion) -> Row {
    let ways = region.interleave_ways.unwrap_or(1);
    let state = if region.is_enabled { "enabled" } else { "disabled" };
    Row {
        kind: "cxl-region",
        name: region.name.clone(),
        size: Some(region.size_bytes),
        free: None,
        align: None,
        node: None,
        driver: "-".into(),
        more: format!("{}, {ways} ways, {state}", region.mode.as_deref().unwrap_or("?")),
    }
}

fn cxl_region_value(region: &CxlRegion) -> Value {
    json!({
        "region": region.name, "type": region.mode, "size": region.size_bytes,
        "interleave_ways": region.interleave_ways,
        "interleave_granularity": region.interleave_granularity, "targets": region.targets,
        "enabled": region.is_enabled,
    })
}

fn huge_row(pages: &HugePages) -> Row {
    let by_node = pages.nodes.iter().filter(|node| node.nr_total > 0);
    let by_node: Vec<String> = by_node
        .map(|node| format!("node {}: {} of {} free", node.node, node.nr_free, node.nr_total))
        .collect();
    let advice = match pages.nr_total {
        0 => vec![format!("none: raise vm.nr_hugepages ({} kB)", pages.page_bytes / 1024)],
        _ => by_node,
    };
    Row {
        kind: "huge-pages",
        name: format!("{} kB", pages.page_bytes / 1024),
        size: Some(pages.nr_total.saturating_mul(pages.page_bytes)),
        free: Some(pages.nr_available().saturating_mul(pages.page_bytes)),
        align: Some(pages.page_bytes),
        node: None,
        driver: "-".into(),
        more: advice.join(", "),
    }
}

fn huge_value(pages: &HugePages) -> Value {
    let by_node = pages
        .nodes
        .iter()
        .map(|node| json!({ "node": node.node, "total": node.nr_total, "free": node.nr_free }));
    json!({
        "page_size": pages.page_bytes, "total": pages.nr_total, "free": pages.nr_free,
        "reserved": pages.nr_reserved, "overcommit": pages.nr_overcommit,
        "available": pages.nr_available(), "nodes": by_node.collect::<Vec<_>>(),
    })
}

/// The type of a mount's file system, and how it maps its device.
fn mount_type(mount: &Mount) -> (String, Option<&'static str>) {
    match &mount.kind {
        MountKind::Tmpfs => ("tmpfs".into(), None),
        MountKind::Hugetlbfs(_) => ("hugetlbfs".into(), None),
        MountKind::Dax { file_system, mode } => {
            let mode = if *mode == DaxMode::Always { "always" } else { "inode" };
            (file_system.clone(), Some(mode))
        }
    }
}

fn page_bytes(mount: &Mount) -> Option<u64> {
    match mount.kind {
        MountKind::Hugetlbfs(page_bytes) => page_bytes,
        _ => None,
    }
}

fn mount_row(mount: &Mount) -> Row {
    let (file_system, dax) = mount_type(mount);
    let mut more = vec![file_system];
    more.extend(dax.map(|mode| format!("dax={mode} on {}", mount.source)));
    if !mount.is_writable {
        more.push("read-only".into());
    }
    Row {
        kind: "mount",
        name: names::shown(mount.path.as_os_str()),
        size: mount.room.map(|room| room.total_bytes),
        free: mount.room.map(|room| room.available_bytes),
        align: page_bytes(mount),
        node: None,
        driver: "-".into(),
        more: more.join(", "),
    }
}

fn mount_value(mount: &Mount) -> Value {
    let (file_system, dax) = mount_type(mount);
    json!({
        "path": names::shown(mount.path.as_os_str()), "type": file_system, "dax": dax,
        "source": mount.source, "page_size": page_bytes(mount), "writable": mount.is_writable,
        "size": mount.room.map(|room| room.total_bytes),
        "available": mount.room.map(|room| room.available_bytes),
    })
}
