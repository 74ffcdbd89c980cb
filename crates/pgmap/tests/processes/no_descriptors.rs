//! What a pool believes when descriptors run out: nothing. An error is an error, and never "there
//! is none".
//!
//! Story: a server with one descriptor too few could not open `/proc/self/fd`, took that for no
//! open file, and served nobody for ever. What else was read like that: whether a client ever
//! attached by a ledger, whether data has a catalog at its head, and what the control group allows.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::{self, Second};
use pgmap::{Client, Error, FolioSize, Owner, Pool, PoolOptions};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const MIB: u64 = 1 << 20;
/// More descriptors than opening a pool and serving it takes.
const ENOUGH: usize = 40;

/// Does `work` with no more than `nr_left` free numbers below the limit. No other test runs in this
/// process: it was started for this one.
fn with_descriptors<T>(nr_left: usize, work: impl FnOnce() -> T) -> T {
    let before = getrlimit(Resource::Nofile);
    let is_free = |number: &u64| fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_err();
    let limit = (0..).filter(is_free).nth(nr_left).unwrap();
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), ..before }).unwrap();
    let done = work();
    setrlimit(Resource::Nofile, before).unwrap();
    done
}

fn is_shortage(error: &Error) -> bool {
    matches!(error, Error::Os(error) if error.errno() == 24)
}

/// Does `work` with ever more descriptors until it succeeds. Every failure before that must say
/// that there were too few.
fn until_enough<T>(what: &str, work: impl Fn() -> Result<T, Error>) -> T {
    for nr_left in 0..ENOUGH {
        match with_descriptors(nr_left, &work) {
            Ok(done) => {
                assert!(nr_left > 0, "{what} takes no descriptor: nothing was tried");
                return done;
            }
            Err(error) => {
                assert!(is_shortage(&error), "{what} with {nr_left} descriptors: {error}")
            }
        }
    }
    panic!("{what} takes more than {ENOUGH} descriptors");
}

/// A pool with one file, whose only client is gone, and whose ledger was cut short before.
fn with_a_ledger_cut_short(directory: &Path, socket: &Path) {
    let options = PoolOptions::in_directory(directory, 16 * MIB);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    owner.serve(socket).unwrap();
    let client = Client::connect(socket).unwrap();
    client.create("a", MIB, FolioSize::BestFit).unwrap().commit().unwrap();
    drop(owner);
    let ledgers: Vec<_> = fs::read_dir(directory.join("ledgers")).unwrap().flatten().collect();
    let number = |entry: &&fs::DirEntry| entry.file_name().to_str().unwrap().parse::<u64>().is_ok();
    let ledger = ledgers.iter().find(number).unwrap().path();
    fs::File::options().write(true).open(ledger).unwrap().set_len(4096).unwrap();
    drop(client);
}

#[test]
fn whoever_runs_out_of_descriptors_believes_nothing_and_says_so() {
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut child = Second::start("few-descriptors", place.path());
    assert_eq!(child.answer(), "done");
}

#[test]
fn child_entry() {
    let Some((_, place)) = support::role() else { return };
    run_out_of_descriptors(&place);
    support::say("done");
    std::process::exit(0);
}

fn run_out_of_descriptors(place: &Path) {
    // A ledger that could not be opened a second time was taken for one that nobody attached by,
    // and removed, with all that its client's device may still write to.
    let directory = place.join("cut-short");
    with_a_ledger_cut_short(&directory, &place.join("s"));
    let start = || Pool::open(&directory).and_then(Owner::start);
    let owner = until_enough("opening a pool and owning it", start);
    assert_eq!(owner.info().orphaned_bytes, MIB, "what a device may write to is forgotten");
    drop(owner);

    // Data that could not be opened was taken for data without a catalog at its head.
    let directory = place.join("with-head");
    let options = PoolOptions::in_directory(&directory, 16 * MIB).metadata_on_device();
    drop(Pool::create(&options).unwrap());
    assert!(until_enough("looking for a pool", || Pool::is_in(&directory)));
    let make = || match Pool::create(&options) {
        Err(Error::BadPool { why, .. }) => Ok(why),
        made => made.map(|_| String::new()),
    };
    let why = until_enough("making a pool where there is one", make);
    assert!(why.contains("there is a pool already"), "{why}");

    // A limit that could not be read was taken for no limit.
    std::thread::sleep(Duration::from_millis(200));
    let limit = || pgmap::os::memory_limit().map_err(Error::from);
    let found = until_enough("reading the limit of memory", limit);
    assert_eq!(found, pgmap::os::memory_limit().unwrap());
}
