//! A process that may have no mapping more: guest memory that lies in a row in the pool is had
//! through the client's window, the rest is an error, and all is well once there is room.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]
// UNSAFETY: mappings are made until the kernel refuses.
#![allow(unsafe_code)]

mod support;

use pgmap::FolioSize;
use pgmap_vm_memory::GuestSpace;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use support::{MIB, PAGE, map, map_by_turns, owner, put_filled, space};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend};

/// Every other page of this is readable, so that each is a mapping.
struct Crowd {
    base: *mut std::ffi::c_void,
    len: usize,
}

impl Crowd {
    /// Makes mappings until there can be no more.
    fn new(most: usize) -> Self {
        let len = most * PAGE as usize;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses a fresh place.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), flags) }
            .unwrap();
        let crowd = Self { base, len };
        let refused = (0..most).step_by(2).any(|page| {
            let place = base.wrapping_byte_add(page * PAGE as usize);
            // SAFETY: a page of the range that was mapped above and that nobody else knows.
            unsafe { mprotect(place, PAGE as usize, MprotectFlags::READ) }.is_err()
        });
        assert!(refused, "{most} mappings and more may be had");
        crowd
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // SAFETY: the range that was mapped in `new`, of which nobody has a reference.
        unsafe { munmap(self.base, self.len) }.unwrap();
    }
}

#[test]
fn where_nothing_more_can_be_mapped_what_is_in_a_row_is_had_and_the_rest_is_an_error() {
    let most = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let most: usize = most.trim().parse().unwrap();
    if most > 1 << 20 {
        println!("skipped: vm.max_map_count is {most}, more than this test fills");
        return;
    }
    let owner = owner(16 * MIB);
    let client = owner.client().unwrap();
    for (name, byte) in [("a", 1), ("b", 2), ("row", 3)] {
        put_filled(&client, name, FolioSize::Pages4K, 64 * PAGE, byte);
    }
    let space = space(&client);
    map(&space, "row", 0, 64 * PAGE, 0);
    map_by_turns(&space, ["a", "b"], 128, 8 * MIB);
    let guest = GuestSpace::new(&space);
    // Mappings that nobody uses any more make room for others.
    assert!(guest.memory().check_range(GuestAddress(0), 64 * PAGE as usize));
    let crowd = Crowd::new(4 * most);
    let memory = guest.memory();
    assert_eq!(memory.read_obj::<u8>(GuestAddress(5 * PAGE)).unwrap(), 3);
    memory.write_slice(&[9; 3 * PAGE as usize], GuestAddress(6 * PAGE)).unwrap();
    let single = memory.read_obj::<u8>(GuestAddress(8 * MIB + 3 * PAGE));
    assert_eq!(single.unwrap(), 2, "one page is in a row");
    let across = memory.get_slice(GuestAddress(8 * MIB), 2 * PAGE as usize).map(|it| it.len());
    assert!(across.is_err(), "two pages of two files are not");
    assert!(memory.get_host_address(GuestAddress(8 * MIB)).is_err());
    drop(crowd);
    let across = memory.get_slice(GuestAddress(8 * MIB), 128 * PAGE as usize).unwrap();
    let mut bytes = vec![0; 128 * PAGE as usize];
    across.read_slice(&mut bytes, 0).unwrap();
    assert!(bytes.chunks(PAGE as usize).zip(0_u8..).all(|(page, at)| page[0] == 1 + at % 2));
}
