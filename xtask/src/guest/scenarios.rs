//! The scenarios by name, and what each is given. What they do is in the scripts of `xtask/guest`:
//! the name before the slash is the script's, what follows is the place that the script works on.

use std::time::Duration;

use super::kernel::Line;
use super::machine::USUAL_MEMORY;

/// One scenario.
#[derive(Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Its name: `SCRIPT/PLACE`.
    pub name: &'static str,
    /// What it shows.
    pub what: &'static str,
    /// The kernels that it runs in when nobody asks for more.
    pub usual: &'static [Line],
    /// How long it may take: several times what it takes on two busy cores.
    pub limit: Duration,
}

const BOTH: &[Line] = Line::ALL;
const OLD: &[Line] = &[Line::SixTwelve];
const NEW: &[Line] = &[Line::Seven];
const NONE: &[Line] = &[];

/// Every scenario, in the order in which they run.
pub const ALL: &[Scenario] = &[
    scenario("demo/tmpfs", 120, NONE, DEMO),
    scenario("demo/devdax-2M", 120, OLD, DEMO),
    scenario("demo/devdax-1G", 180, NEW, DEMO),
    scenario("demo/devdax-4K", 120, NONE, DEMO),
    scenario("demo/ext4-dax", 120, OLD, DEMO),
    scenario("demo/xfs-dax", 120, NEW, DEMO),
    scenario("demo/hugetlbfs", 120, NONE, DEMO),
    scenario("cycle/tmpfs", 120, NONE, CYCLE),
    scenario("cycle/ext4", 120, NONE, CYCLE),
    scenario("cycle/on-ext4-dax", 180, OLD, CYCLE),
    scenario("cycle/xfs", 120, NEW, CYCLE),
    scenario("cycle/ext4-dax", 120, NONE, CYCLE),
    scenario("cycle/xfs-dax", 120, NONE, CYCLE),
    scenario("cycle/devdax-2M", 180, OLD, CYCLE),
    scenario("cycle/devdax-1G", 180, NEW, CYCLE),
    scenario("cycle/devdax-4K", 180, NONE, CYCLE),
    scenario("cycle/cxl-ram", 180, NONE, CYCLE),
    scenario("cycle/cxl-pmem", 180, NONE, CYCLE),
    scenario("cycle/on-tmpfs", 180, NONE, CYCLE),
    scenario("cycle/on-ext4", 180, NONE, CYCLE),
    scenario("cycle/on-xfs", 180, NONE, CYCLE),
    scenario("cycle/on-xfs-dax", 180, NEW, CYCLE),
    scenario("cycle/on-hugetlbfs", 180, OLD, CYCLE),
    scenario("soak/devdax-2M", 180, OLD, SOAK),
    scenario("soak/devdax-1G", 180, NEW, SOAK),
    scenario("soak/devdax-4K", 180, NONE, SOAK),
    scenario("repair/devdax-2M", 60, OLD, REPAIR),
    scenario("repair/ext4-dax", 60, NONE, REPAIR),
    scenario("dead/devdax-2M", 60, OLD, DEAD),
    scenario("drain/devdax-2M", 90, NEW, DRAIN),
    scenario("drain/cxl-ram", 180, NONE, DRAIN),
    scenario("backing/devdax-2M", 240, NEW, BACKING),
    scenario("backing/devdax-1G", 240, NONE, BACKING),
    scenario("unplug/devdax-2M", 180, BOTH, UNPLUG),
    scenario("unplug/devdax-4K", 180, NONE, UNPLUG),
    scenario("huge/2M", 120, OLD, "a pool of huge pages: put, get, compare"),
    scenario(
        "huge/1G",
        240,
        NONE,
        "a pool of pages of 1 GiB, which the kernel keeps from its start",
    ),
    scenario("parity/devdax-2M", 120, NEW, PARITY),
    scenario("parity/devdax-4K", 120, NONE, PARITY),
    scenario("parity/ext4-dax", 120, NEW, PARITY),
    scenario("parity/xfs-dax", 120, NONE, PARITY),
    scenario("figures/devdax-2M", 300, NONE, FIGURES),
    scenario("who/devdax-2M", 60, BOTH, "who holds a device, by /proc; and the list of devices"),
    scenario("refused/all", 120, NEW, REFUSED),
    scenario("record/both", 60, NONE, RECORD),
    scenario("tests/tmpfs", 300, OLD, TESTS),
    scenario("tests/ext4", 300, NONE, TESTS),
    scenario("tests/xfs", 300, NONE, TESTS),
    scenario("tests/ext4-dax", 300, NEW, TESTS),
    scenario("tests/xfs-dax", 300, NONE, TESTS),
    scenario("terabyte/devdax-1T", 300, NONE, TERABYTE),
    scenario("cxl/cxl-ram", 180, NONE, CXL),
    scenario("shared/devdax-2M", 240, NONE, SHARED),
    scenario("persistence/devdax-2M", 120, OLD, PERSISTENCE),
    scenario("persistence/devdax-1G", 120, NONE, PERSISTENCE),
    scenario("persistence/on-ext4-dax", 120, NONE, PERSISTENCE),
    scenario("persistence/on-xfs-dax", 120, NONE, PERSISTENCE),
];

const DEMO: &str = "the demo, on a memfd or on that memory";
const FIGURES: &str = "puts and gets beside copies into the same memory, emulated";
const TERABYTE: &str = "a pool on a device of 1 TiB, a sparse image";
const SOAK: &str = "the kill soak, its pool on that device";
const REPAIR: &str = "memory that failed is written over and used again";
const DEAD: &str = "clients killed while a ring of theirs transfers into the device";
const DRAIN: &str = "a pool is drained before daxctl takes its device away";
const BACKING: &str = "a device as a further backing: unplugged, bound again, taken out";
const UNPLUG: &str = "a device that goes away under a pool, and comes back";
const PARITY: &str = "the kernel's own rules and pgmap's on the same device, row by row";
const PERSISTENCE: &str = "the guest killed again and again: what was committed is there";
const CXL: &str = "CXL memory taken away under a pool: the region, and the device";
const SHARED: &str = "two guests on one device: one serves a pool, the other reads it";
const REFUSED: &str =
    "what cannot hold a pool is refused by name: vfat, ramfs, NFS, read-only, short";
const RECORD: &str = "what sysfs says, for the tests of `pgmap list --devices`";
const CYCLE: &str = "put, get, compare; owner and clients killed; the pool opened again";
const TESTS: &str = "pgmap's process tests and the kill soak";

const fn scenario(
    name: &'static str,
    seconds: u64,
    usual: &'static [Line],
    what: &'static str,
) -> Scenario {
    Scenario { name, what, usual, limit: Duration::from_secs(seconds) }
}

impl Scenario {
    /// Whether the guest is killed in it, so that it takes boots of its own.
    pub fn is_killed(&self) -> bool {
        self.name.starts_with("persistence/")
    }

    /// What else is on its kernel's command line, and how much memory the guest has: pages of 1 GiB
    /// are kept when the kernel starts.
    pub fn boots_with(&self) -> (&'static str, &'static str) {
        if self.name == "huge/1G" {
            ("hugepagesz=1G hugepages=2", "5G")
        } else {
            ("", USUAL_MEMORY)
        }
    }

    /// Whether two guests run it together.
    pub fn is_shared(&self) -> bool {
        self.name.starts_with("shared/")
    }

    /// Whether it needs an NVDIMM of 1 TiB.
    pub fn is_large(&self) -> bool {
        self.name.ends_with("-1T")
    }

    /// Whether it needs CXL memory devices.
    pub fn is_on_cxl(&self) -> bool {
        self.name.contains("/cxl-")
    }
}

/// Whether `scenario` is `name`, or one of those whose script is `name`.
pub fn begins_with(scenario: &Scenario, name: &str) -> bool {
    let rest = scenario.name.strip_prefix(name);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The scenarios that `name` stands for.
pub fn begin_with(name: &str) -> impl Iterator<Item = &'static Scenario> {
    ALL.iter().filter(move |scenario| begins_with(scenario, name))
}

/// Prints them all.
pub fn print() {
    for scenario in ALL {
        let kernels: Vec<String> = scenario.usual.iter().map(Line::to_string).collect();
        let kernels = if kernels.is_empty() { "--all".to_owned() } else { kernels.join(" ") };
        println!("{:<24} {:<8} {}", scenario.name, kernels, scenario.what);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn each_scenario_has_its_script_and_a_name_of_its_own() {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
        for (index, scenario) in ALL.iter().enumerate() {
            let (script, place) = scenario.name.split_once('/').unwrap();
            assert!(scripts.join(format!("{script}.sh")).is_file(), "{}", scenario.name);
            assert!(!place.is_empty());
            assert!(ALL[..index].iter().all(|other| other.name != scenario.name));
        }
    }
}
