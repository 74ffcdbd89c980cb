//! An owner that may be asleep is woken before much is copied.

use std::time::Duration;

use pgmap::{CreateSpec, FolioSize};

use crate::support::way::Way;

const MIB: u64 = 1 << 20;

/// How many messages a put costs, some time after the last one.
fn nr_messages_of_a_put(way: &Way, name: &str, len_bytes: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(20));
    let nr_before = way.nr_messages();
    let spec = CreateSpec::named(name, len_bytes, FolioSize::BestFit).unwrap();
    way.client.put(spec, &vec![7; len_bytes as usize]).unwrap();
    assert!(way.client.get(name).unwrap().to_vec().unwrap() == vec![7; len_bytes as usize]);
    way.client.unlink(name).unwrap();
    way.nr_messages() - nr_before - 1
}

#[test]
fn a_put_of_much_wakes_the_owner_and_one_of_little_is_one_message() {
    let way = Way::new();
    let small = ["a", "b", "c", "d"].map(|name| nr_messages_of_a_put(&way, name, MIB / 16));
    assert_eq!(small, [2, 2, 1, 1], "the first two have no frames that were handed out ahead");
    let large = ["a", "b", "c", "d"].map(|name| nr_messages_of_a_put(&way, name, MIB));
    assert_eq!(large, [2, 2, 2, 2]);
    let stat = way.client.pool_stat().unwrap();
    assert!(stat.spare_bytes >= MIB, "the last two had such frames");
    // Nobody answers that message, and the calls have their own answers.
    assert!(way.names().is_empty());
}
