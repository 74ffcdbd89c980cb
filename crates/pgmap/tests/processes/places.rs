//! Where a pool cannot be: file systems that cannot hold one, and control groups that allow less
//! memory.
//!
//! Mounts need user and mount namespaces, limits need root and cgroups with the memory controller.
//! Where they are missing the tests are skipped by name.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support;
use pgmap::{Pool, PoolOptions};

const MIB: u64 = 1 << 20;
const PLACE: &str = "PGMAP_PLACES_PLACE";

/// Runs the test `name` again by way of `script`, whose first argument is the place. Says whether
/// this is the process in which it is to be done.
fn again(name: &str, needs: &str, wrapper: &[&str], script: &str) -> bool {
    if std::env::var_os(PLACE).is_some() {
        return true;
    }
    let directory = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).args(["sh", "-c", script, "sh"]);
        command.arg(directory.path()).args(arguments).env(PLACE, directory.path());
        command
    };
    if !run(&["true"]).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        println!("SKIPPED {name}: needs {needs}, which the system does not allow here");
        return false;
    }
    let program = std::env::current_exe().unwrap();
    let test = support::test_path(module_path!(), name);
    let arguments = [program.to_str().unwrap(), "--exact", &test, "--nocapture"];
    let status = run(&arguments).status().unwrap();
    assert!(status.success(), "{status}");
    false
}

fn refusal(place: &Path, size_bytes: u64) -> String {
    let options = PoolOptions::in_directory(place.join("pool"), size_bytes);
    Pool::create(&options).map(drop).unwrap_err().to_string()
}

#[test]
fn a_file_system_without_a_limit_is_refused_by_name() {
    let name = "a_file_system_without_a_limit_is_refused_by_name";
    let script = "mount -t ramfs ramfs \"$1\" && shift && exec \"$@\"";
    let unshare = ["unshare", "--user", "--map-root-user", "--mount"];
    if !again(name, "user and mount namespaces", &unshare, script) {
        return;
    }
    let place = std::env::var_os(PLACE).unwrap();
    let said = refusal(Path::new(&place), MIB);
    assert!(said.contains("ramfs") && said.contains("choose a directory on"), "{said}");
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "nothing was made there");
}

#[test]
fn a_pool_larger_than_the_control_group_allows_is_refused_by_both_numbers() {
    let name = "a_pool_larger_than_the_control_group_allows_is_refused_by_both_numbers";
    // Either version of cgroups; the test runs in a group below the one with the limit. The shell
    // that outlives it removes both.
    let script = r#"shift; r=1; s=/sys/fs/cgroup
g=$s/memory/pgmap-test-$$; l=memory.limit_in_bytes
if [ -f $s/cgroup.controllers ]; then g=$s/pgmap-test-$$; l=memory.max; fi
[ -d "${g%/*}" ] && [ -f "${g%/*}/cgroup.procs" ] && mkdir $g || exit 1
[ $l = memory.max ] && { echo +memory > $g/cgroup.subtree_control; echo 0 > $g/memory.swap.max; }
join='echo $$ > "$0" && exec "$@"'
mkdir $g/below && [ -f $g/$l ] && echo 48M > $g/$l &&
    { sh -c "$join" $g/below/cgroup.procs "$@"; r=$?; }
rmdir $g/below $g; exit $r"#;
    if !again(name, "root and a writable memory cgroup", &["env"], script) {
        return;
    }
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let said = refusal(directory.path(), 512 * MIB);
    assert!(said.contains(&(512 * MIB).to_string()), "{said}");
    assert!(said.contains(&(48 * MIB).to_string()) && said.contains("cgroup"), "{said}");
    assert!(Pool::create(&PoolOptions::anonymous(512 * MIB)).is_err());
    drop(Pool::create(&PoolOptions::in_directory(directory.path().join("pool"), 8 * MIB)).unwrap());
}
