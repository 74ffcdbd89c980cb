//! Whole pages and sectors of a file that ends within one.

use std::time::Duration;

use crate::support::{BASE, holding, owner, ring, space};
use pgmap::FolioSize;
use pgmap::mm::mm::Placed;
use pgmap::mm::prot::Prot;

const PAGE: usize = 4096;

/// What a transfer brought lay behind the end for everybody to see, and went out with the next
/// sector.
#[test]
fn what_is_read_behind_the_end_of_a_file_is_zeros_afterwards() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = space(&client, "short", 5000);
    let Some(mut ring) = ring(&client, 8) else { return };
    let file = holding(&[0xee; 2 * PAGE]);
    ring.read(&space, BASE, 2 * PAGE as u64, &file, 0).unwrap();
    assert_eq!(ring.wait().unwrap().unwrap().moved_bytes, 2 * PAGE as u64);
    let mut bytes = [1; 2 * PAGE];
    space.read_at(BASE, &mut bytes).unwrap();
    assert!(bytes[..5000] == [0xee; 5000]);
    assert!(bytes[5000..] == [0; 2 * PAGE - 5000]);
}

#[test]
fn what_is_written_behind_the_end_of_a_file_is_zeros() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = space(&client, "short", 5000);
    let Some(mut ring) = ring(&client, 8) else { return };
    // As any store through a mapping may leave it.
    space.write_at(BASE, &[0xaa; 2 * PAGE]).unwrap();
    let file = holding(&[1; 2 * PAGE]);
    ring.write(&space, BASE, 5120, &file, 0).unwrap();
    assert_eq!(ring.wait().unwrap().unwrap().moved_bytes, 5120);
    let mut bytes = [1; 2 * PAGE];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    assert!(bytes[..5000] == [0xaa; 5000]);
    assert!(bytes[5000..5120] == [0; 120]);
    assert!(bytes[5120..] == [1; 2 * PAGE - 5120]);
}

/// The file was cut while the transfer was under way: its end then is what counts.
#[test]
fn the_end_that_a_file_has_when_the_transfer_is_over_counts() {
    let owner = owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    let space = space(&client, "short", 4000);
    let Some(mut ring) = ring(&client, 8) else { return };
    let (reader, mut writer) = std::io::pipe().unwrap();
    ring.read(&space, BASE, PAGE as u64, &reader, u64::MAX).unwrap();
    // Keeps the page, so it need not wait.
    other.truncate("short", 100, Duration::from_secs(1)).unwrap();
    std::io::Write::write_all(&mut writer, &[0xee; PAGE]).unwrap();
    assert_eq!(ring.wait().unwrap().unwrap().moved_bytes, PAGE as u64);
    let mut bytes = [1; PAGE];
    space.read_at(BASE, &mut bytes).unwrap();
    assert!(bytes[..100] == [0xee; 100]);
    assert!(bytes[100..] == [0; PAGE - 100]);
}

/// Only the page that has the end is touched, and only of the file that it is the end of.
#[test]
fn files_side_by_side_keep_their_bytes() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = space(&client, "first", 100);
    client.create("second", 2 * PAGE as u64, FolioSize::Pages4K).unwrap().commit().unwrap();
    let second = client.open("second").unwrap();
    let at = Placed::At(BASE + PAGE as u64);
    space.map(&second, 0, 2 * PAGE as u64, at, Prot::READ_WRITE).unwrap();
    let Some(mut ring) = ring(&client, 8) else { return };
    let file = holding(&[0xee; 3 * PAGE]);
    ring.read(&space, BASE, 3 * PAGE as u64, &file, 0).unwrap();
    assert_eq!(ring.wait().unwrap().unwrap().moved_bytes, 3 * PAGE as u64);
    let mut bytes = [1; 3 * PAGE];
    space.read_at(BASE, &mut bytes).unwrap();
    assert!(bytes[..100] == [0xee; 100] && bytes[100..PAGE] == [0; PAGE - 100]);
    assert!(bytes[PAGE..] == [0xee; 2 * PAGE]);
}
