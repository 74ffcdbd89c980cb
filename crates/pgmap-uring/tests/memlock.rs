//! A process that may lock little memory. A program of its own: the limit is the process's.

mod support;

use pgmap_uring::{PoolRing, RingError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// The kernel says ENOMEM, which has many reasons.
#[test]
fn a_limit_of_locked_memory_is_named() {
    let owner = support::owner();
    let client = owner.client().unwrap();
    let before = getrlimit(Resource::Memlock);
    setrlimit(Resource::Memlock, Rlimit { current: Some(65536), ..before }).unwrap();
    // A thread's own: who may lock memory is not limited.
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, sets).unwrap();
    let error = match PoolRing::new(&client, 8) {
        Err(RingError::Ring { source, .. }) if source.raw_os_error() != Some(12) => {
            return println!("SKIPPED a_limit_of_locked_memory_is_named: {source}");
        }
        Ok(_) => return println!("SKIPPED a_limit_of_locked_memory_is_named: it is not kept here"),
        Err(error) => error,
    };
    assert_eq!(error.errno(), 12);
    let text = error.to_string();
    for word in ["RLIMIT_MEMLOCK", "65536", "16777216", "ulimit -l", "CAP_IPC_LOCK"] {
        assert!(text.contains(word), "{text}");
    }
}
