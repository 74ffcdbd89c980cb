//! What a client pays for the first touch of frames that others have used before.

use std::ops::ControlFlow;

use pgmap::{Client, CreateSpec, FolioSize, Owner};

use crate::support::{BOUND, block, serving_owner};

const MIB: u64 = 1 << 20;
const NR_PAGES: u64 = 2 * MIB / 4096;

/// Page faults of this thread that needed no input.
fn nr_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    after_name.split_whitespace().nth(7).unwrap().parse().unwrap()
}

fn faults_of_a_put(client: &Client, name: &str) -> u64 {
    let bytes = block::make(1, 2 * MIB as usize);
    let spec = CreateSpec::named(name, 2 * MIB, FolioSize::BestFit).unwrap();
    let before = nr_faults();
    client.put(spec, &bytes).unwrap();
    nr_faults() - before
}

/// A client that has touched none of the frames that another one has used.
fn client_of_used_frames() -> (Owner, tempfile::TempDir, Client) {
    let (owner, place, socket) = serving_owner(3 * MIB);
    let first = Client::connect(&socket).unwrap();
    faults_of_a_put(&first, "a");
    first.unlink("a").unwrap();
    let second = Client::connect(&socket).unwrap();
    (owner, place, second)
}

/// Each page was a fault of its own, which took three times as long as to copy it.
#[test]
fn frames_that_were_in_use_are_mapped_some_at_a_time_to_be_written() {
    let (_owner, _place, client) = client_of_used_frames();
    let nr = faults_of_a_put(&client, "b");
    assert!(nr < NR_PAGES / 4, "{nr} faults for {NR_PAGES} pages");
}

#[test]
fn frames_that_were_prefaulted_are_written_without_a_fault() {
    let (_owner, _place, client) = client_of_used_frames();
    let prefault = client.prefault(BOUND, |_| ControlFlow::Continue(())).unwrap();
    assert!(prefault.is_complete() && prefault.mapped_bytes >= 2 * MIB, "{prefault:?}");
    let nr = faults_of_a_put(&client, "b");
    assert!(nr < NR_PAGES / 16, "{nr} faults for {NR_PAGES} pages");
}
