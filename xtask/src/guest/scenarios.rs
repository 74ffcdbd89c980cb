//! The scenarios by name, and what each is given. What they do is in the scripts of `xtask/guest`: the
//! name before the slash is the script's, what follows is the place that the script works on.

use std::time::Duration;

use super::kernel::Line;

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
    scenario("demo/tmpfs", 120, BOTH, "the demo"),
    scenario("demo/ext4-dax", 120, NONE, "the demo, its scratch file on ext4 with dax"),
    scenario("cycle/tmpfs", 120, NONE, CYCLE),
    scenario("cycle/ext4", 120, OLD, CYCLE),
    scenario("cycle/xfs", 120, NEW, CYCLE),
    scenario("cycle/ext4-dax", 120, BOTH, CYCLE),
    scenario("cycle/xfs-dax", 120, BOTH, CYCLE),
    scenario("huge/2M", 120, OLD, "a pool of huge pages: put, get, compare"),
    scenario("record/both", 60, NONE, RECORD),
    scenario("tests/tmpfs", 300, OLD, TESTS),
    scenario("tests/ext4", 300, NONE, TESTS),
    scenario("tests/xfs", 300, NONE, TESTS),
    scenario("tests/ext4-dax", 300, NEW, TESTS),
    scenario("tests/xfs-dax", 300, NONE, TESTS),
];

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
        println!("{:<18} {:<8} {}", scenario.name, kernels, scenario.what);
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
