//! What the system says of others when this process has no descriptor left: nothing, and not that
//! there are none.

use std::fs;
use std::path::Path;
use std::process::Command;

use pgmap_os::file_users::FileUsers;
use pgmap_os::{Connection, OsError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const ROLE: &str = "PGMAP_OS_TEST_ROLE";
/// How the second process ends that came to its end.
const DONE: i32 = 7;

/// Does `work` without a free number below the limit. No other test runs in this
/// process: it was started for this one.
fn without_descriptors<T>(work: impl FnOnce() -> T) -> T {
    let before = getrlimit(Resource::Nofile);
    let is_free = |number: &u64| fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_err();
    let limit = (0..).find(is_free);
    setrlimit(Resource::Nofile, Rlimit { current: limit, ..before }).unwrap();
    let done = work();
    setrlimit(Resource::Nofile, before).unwrap();
    done
}

/// Story: a peer whose pidfd could not be installed for want of a descriptor was taken for one that
/// is gone, and nobody watched its process.
#[test]
fn without_a_descriptor_nothing_is_believed_of_peers_users_and_limits() {
    if std::env::var_os(ROLE).is_none() {
        let name = "without_a_descriptor_nothing_is_believed_of_peers_users_and_limits";
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &crate::test_path(module_path!(), name), "--nocapture"]);
        assert_eq!(command.env(ROLE, "second").status().unwrap().code(), Some(DONE));
        return;
    }
    let (left, _right) = Connection::pair().unwrap();
    let errnos = without_descriptors(|| {
        let errno = |error: OsError| error.errno();
        [
            left.peer().map(drop).map_err(errno),
            FileUsers::of(Path::new("/dev/null")).map(drop).map_err(errno),
            pgmap_os::memory_limit().map(drop).map_err(errno),
        ]
    });
    assert_eq!(errnos, [Err(libc::EMFILE); 3]);
    assert!(left.peer().unwrap().pidfd.is_some());
    std::process::exit(DONE);
}
