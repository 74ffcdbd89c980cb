//! What a guard holds: others' frames are never reached, whatever is cut, punched, unlinked, mapped
//! over or failed under the guest; what was used stays until the guard is dropped; and a forked
//! child has nothing.

// UNSAFETY: bytes are read and written through raw addresses, as monitors do, and fork is a
// subject.
#![allow(unsafe_code)]
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{self, MIB, PAGE, Random, map, map_by_turns, owner, put_filled, space};
use pgmap::space::AddressSpace;
use pgmap::{Client, FolioSize, Owner};
use pgmap_vm_memory::GuestSpace;
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryError,
    GuestMemoryRegion, MemoryRegionAddress,
};

fn four_pages(client: &Client, name: &str, byte: u8) {
    put_filled(client, name, FolioSize::Pages4K, 4 * PAGE, byte);
}

fn byte_at<M: GuestMemoryBackend>(memory: &M, page: u64) -> Option<u8> {
    memory.read_obj(GuestAddress(page * PAGE)).ok()
}

/// Fills whatever is free with files of this byte.
fn fill(owner: &Owner, client: &Client, byte: u8) -> Vec<String> {
    let mut names = Vec::new();
    while owner.info().free_bytes >= PAGE {
        let name = format!("filler{}-{byte}", names.len());
        let len_bytes = owner.info().free_bytes.min(64 * PAGE);
        put_filled(client, &name, FolioSize::Pages4K, len_bytes, byte);
        names.push(name);
    }
    names
}

fn assert_untouched(client: &Client, names: &[String], byte: u8) {
    for name in names {
        let bytes = client.get(name.as_str()).unwrap().to_vec().unwrap();
        assert!(bytes.iter().all(|&found| found == byte), "{name} was written by the guest");
    }
}

#[test]
fn guards_of_before_and_after_a_change_see_what_they_saw_at_one_address() {
    let owner = owner(16 * MIB);
    let client = owner.client().unwrap();
    for (name, byte) in [("a", 1), ("b", 2), ("c", 3)] {
        four_pages(&client, name, byte);
    }
    let space = space(&client);
    map(&space, "a", 0, 4 * PAGE, 0);
    map(&space, "a", 0, 4 * PAGE, 4 * PAGE);
    let guest = GuestSpace::new(&space);
    let before = guest.memory();
    assert_eq!(byte_at(&*before, 1), Some(1));
    map(&space, "b", 0, 4 * PAGE, 0);
    let after = guest.memory();
    assert_eq!((byte_at(&*before, 1), byte_at(&*after, 1)), (Some(1), Some(2)));
    map(&space, "c", 0, 4 * PAGE, 0);
    let last = guest.memory();
    // Each writes to its own.
    for (memory, byte) in [(&before, 11_u8), (&after, 12), (&last, 13)] {
        let slice = memory.get_slice(GuestAddress(PAGE), 6 * PAGE as usize).unwrap();
        slice.write_slice(&[byte; 6 * PAGE as usize], 0).unwrap();
    }
    for (name, byte) in [("b", 12), ("c", 13)] {
        let bytes = client.get(name).unwrap().to_vec().unwrap();
        assert!(bytes[PAGE as usize..].iter().all(|&found| found == byte), "{name}");
    }
    drop((before, after, last));
    assert_eq!(byte_at(&*guest.memory(), 0), Some(3));
}

#[test]
fn what_a_guard_uses_later_goes_on_from_what_it_used_before_though_another_keeps_the_old() {
    let owner = owner(32 * MIB);
    let client = owner.client().unwrap();
    put_filled(&client, "low", FolioSize::Pages4K, 2 * MIB, 1);
    put_filled(&client, "high", FolioSize::Pages4K, 2 * MIB, 2);
    put_filled(&client, "new", FolioSize::Pages4K, 2 * MIB, 3);
    let space = space(&client);
    map(&space, "low", 0, 2 * MIB, 0);
    map(&space, "high", 0, 2 * MIB, 2 * MIB);
    let guest = GuestSpace::new(&space);
    let (old, young) = (guest.memory(), guest.memory());
    let line = GuestAddress(2 * MIB - 8);
    assert_eq!(old.read_obj::<u64>(GuestAddress(2 * MIB)).unwrap(), 0x0202_0202_0202_0202);
    let kept = young.get_slice(line, 8).unwrap();
    map(&space, "new", 0, 2 * MIB, 2 * MIB);
    // One slice of a block that it has held before the change, and of one that the other holds.
    let across = young.get_slice(line, 16).unwrap();
    let mut bytes = [0; 16];
    across.read_slice(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 3, 3, 3, 3, 3, 3]);
    assert_eq!(old.read_obj::<u8>(GuestAddress(2 * MIB)).unwrap(), 2);
    let pointer = young.get_host_address(line).unwrap();
    // SAFETY: the guard holds the region, and pointers into it go on.
    assert_eq!(unsafe { pointer.wrapping_add(8).read_volatile() }, 3);
    // What was handed out before is still the same memory.
    kept.write_obj(0x0909_0909_0909_0909_u64, 0).unwrap();
    assert_eq!(young.read_obj::<u64>(line).unwrap(), 0x0909_0909_0909_0909);
}

#[test]
fn a_guest_cut_under_its_guards_reaches_nobody_elses_frames() {
    let owner = owner(4 * MIB);
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    let nr_pages = 64;
    for (round, byte) in (0..12_u64).zip(0x40_u8..) {
        put_filled(&client, "ram", FolioSize::Pages4K, nr_pages * PAGE, 7);
        four_pages(&client, "tail", 8);
        let space = space(&client);
        map(&space, "ram", 0, nr_pages * PAGE, 0);
        map(&space, "tail", 0, 4 * PAGE, nr_pages * PAGE);
        let guest = GuestSpace::new(&space);
        // All of it is shown, and remembered.
        let whole = (nr_pages + 4) * PAGE;
        guest.memory().write_slice(&vec![6; whole as usize], GuestAddress(0)).unwrap();
        let memory = guest.memory();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 6);
        let early = Some(memory).filter(|_| round % 2 == 0);
        let cut = || match round % 3 {
            0 => other.truncate("ram", 8 * PAGE, Duration::from_secs(10)).unwrap(),
            1 => other.punch("ram", 8 * PAGE..40 * PAGE, Duration::from_secs(10)).unwrap(),
            _ => other.unlink("ram").unwrap(),
        };
        std::thread::scope(|scope| {
            let cutter = scope.spawn(cut);
            if let Some(memory) = early {
                // The owner waits for what the guard holds; what it holds stays as it is.
                let started = Instant::now();
                while started.elapsed() < Duration::from_millis(30) {
                    assert_eq!(memory.read_obj::<u8>(GuestAddress(20 * PAGE)).unwrap(), 6);
                }
            }
            cutter.join().unwrap();
        });
        support::wait_for_drains(&owner);
        let fillers = fill(&owner, &other, byte);
        assert!(!fillers.is_empty());
        let memory = guest.memory();
        for page in 0..nr_pages + 6 {
            let at = GuestAddress(page * PAGE + 16);
            let _refused = memory.write_obj(0xbad_u64, at);
            let _refused = memory.write(&[0xbb; 3 * PAGE as usize], at);
            let mut bytes = [0; 8];
            if memory.read_slice(&mut bytes, at).is_ok() {
                assert!(!bytes.contains(&byte), "read page {page} of somebody else");
            }
            if let Ok(pointer) = memory.get_host_address(GuestAddress(page * PAGE)) {
                // SAFETY: what the pointer is for is held.
                unsafe { pointer.write_volatile(0xbb) };
            }
        }
        drop(memory);
        assert_untouched(&other, &fillers, byte);
        for name in fillers.iter().map(String::as_str).chain(["ram", "tail"]) {
            let _gone_before = other.unlink(name);
        }
        support::wait_for_drains(&owner);
    }
}

#[test]
fn an_unlinked_file_stays_while_a_guard_uses_it_and_is_gone_for_the_next() {
    let owner = owner(16 * MIB);
    let client = owner.client().unwrap();
    four_pages(&client, "a", 1);
    four_pages(&client, "b", 2);
    let space = space(&client);
    map(&space, "a", 0, 4 * PAGE, 0);
    map(&space, "b", 0, 4 * PAGE, 4 * PAGE);
    let guest = GuestSpace::new(&space);
    let memory = guest.memory();
    assert_eq!(byte_at(&*memory, 0), Some(1));
    client.unlink("a").unwrap();
    assert_eq!((byte_at(&*memory, 3), byte_at(&*memory, 4)), (Some(1), Some(2)));
    assert!(owner.info().draining_bytes > 0);
    drop(memory);
    support::wait_for_drains(&owner);
    let memory = guest.memory();
    assert_eq!((byte_at(&*memory, 0), byte_at(&*memory, 4)), (None, Some(2)));
    let regions: Vec<_> = memory.iter().map(|it| (it.start_addr().0, it.len())).collect();
    assert_eq!(regions, [(4 * PAGE, 4 * PAGE)]);
}

/// The permissions of the mapping at an address, as the kernel shows them.
fn permissions(address: *mut u8) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        (number(start)..number(end)).contains(&(address as usize))
    });
    line.map_or_else(String::new, |line| line.split(' ').nth(1).unwrap().to_owned())
}

#[test]
fn failed_memory_is_an_error_and_the_pages_around_it_are_not() {
    let owner = owner(16 * MIB);
    let client = owner.client().unwrap();
    put_filled(&client, "ram", FolioSize::Pages4K, 8 * PAGE, 7);
    let space = space(&client);
    map(&space, "ram", 0, 8 * PAGE, 0);
    let well = GuestSpace::new(&space).memory().get_host_address(GuestAddress(0)).unwrap();
    assert_eq!(permissions(well.wrapping_add(3 * PAGE as usize)), "rw-s");
    let pfn = space.mm().translate(3 * PAGE).unwrap().pfn;
    client.memory_failure(pfn.number()).unwrap();
    let memory = GuestSpace::new(&space).memory();
    for page in 0..8 {
        assert_eq!(byte_at(&*memory, page).is_some(), page != 3, "page {page}");
    }
    let error = memory.read_slice(&mut [0; 2 * PAGE as usize], GuestAddress(2 * PAGE)).unwrap_err();
    assert!(error.to_string().contains("failed"), "{error}");
    assert!(memory.get_host_address(GuestAddress(3 * PAGE)).is_err());
    // Who goes on by pointer does not come upon the memory that failed, though it was shown before.
    let pointer = memory.get_host_address(GuestAddress(0)).unwrap();
    let seen = |page| permissions(pointer.wrapping_add((page * PAGE) as usize));
    assert_eq!([2, 3, 4].map(seen), ["rw-s", "---p", "rw-s"]);
    assert!(!memory.check_range(GuestAddress(0), 8 * PAGE as usize));
    assert!(memory.check_range(GuestAddress(4 * PAGE), 4 * PAGE as usize));
    assert_eq!(memory.num_regions(), 1);
}

#[test]
fn what_is_written_to_a_hole_is_refused_and_reaches_nobody() {
    let owner = owner(16 * MIB);
    let client = owner.client().unwrap();
    put_filled(&client, "ram", FolioSize::Pages4K, 8 * PAGE, 7);
    client.punch("ram", 2 * PAGE..4 * PAGE, Duration::ZERO).unwrap();
    let space = space(&client);
    map(&space, "ram", 0, 8 * PAGE, 0);
    map(&space, "ram", 0, PAGE, 64 * PAGE);
    space.mm().dirty().start();
    let guest = GuestSpace::new(&space);
    let hole = GuestAddress(2 * PAGE + 100);
    let (memory, beside) = (guest.memory(), guest.memory());
    // The region's calls know that they write.
    let region = memory.find_region(hole).unwrap();
    let error = region.write_obj(5_u64, MemoryRegionAddress(hole.0)).unwrap_err();
    assert!(error.to_string().contains("hole"), "{error}");
    assert!(region.store(5_u32, MemoryRegionAddress(hole.0), Ordering::Relaxed).is_err());
    assert_eq!(region.read_obj::<u64>(MemoryRegionAddress(hole.0)).unwrap(), 0);
    assert_eq!(space.mm().dirty().take(0, 1 << 20), []);
    // The guard's own calls know it, too, and take nothing from a source.
    let mut source = &[5; 100][..];
    for error in [
        memory.write_obj(5_u64, hole).unwrap_err(),
        memory.write(&[5; 9], hole).unwrap_err(),
        memory.write_slice(&[5; 2 * PAGE as usize], GuestAddress(PAGE)).unwrap_err(),
        memory.store(5_u32, hole, Ordering::Relaxed).unwrap_err(),
        memory.read_volatile_from(hole, &mut source, 100).unwrap_err(),
        memory.read_exact_volatile_from(hole, &mut source, 100).unwrap_err(),
    ] {
        assert!(error.to_string().contains("hole"), "{error}");
    }
    assert_eq!((source.len(), memory.read_obj::<u64>(hole).unwrap()), (100, 0));
    assert_eq!(space.mm().dirty().take(0, 1 << 20), []);
    // A slice does not know, nor does code that is generic over the memory; the next use of the
    // guard says so, once.
    let slice = memory.get_slice(GuestAddress(PAGE), 4 * PAGE as usize).unwrap();
    slice.write_slice(&[9; 4 * PAGE as usize], 0).unwrap();
    assert!(slice.bitmap().dirty_at(0) && !slice.bitmap().dirty_at(PAGE as usize));
    assert_eq!(space.mm().dirty().take(0, 1 << 20), [(1, 1), (4, 1)]);
    let elsewhere = GuestAddress(64 * PAGE);
    let error = memory.read_obj::<u8>(elsewhere).unwrap_err();
    assert!(error.to_string().contains("hole"), "{error}");
    assert_eq!(memory.read_obj::<u8>(elsewhere).unwrap(), 7);
    Bytes::write_obj(&*memory, 9_u8, hole).unwrap();
    let error = memory.read_obj::<u8>(GuestAddress(0)).unwrap_err();
    assert!(error.to_string().contains("hole"), "{error}");
    assert_eq!(memory.read_obj::<u8>(GuestAddress(PAGE)).unwrap(), 9);
    // Nobody else sees it, now or later.
    assert_eq!(beside.read_obj::<u64>(hole).unwrap(), 0);
    drop((memory, beside));
    assert_eq!(guest.memory().read_obj::<u64>(hole).unwrap(), 0);
    let mut bytes = [1; 8];
    space.read_at(hole.0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 8]);
}

/// Files of one byte each by turns at one place, and readers who must never see one mixed with
/// another.
#[test]
fn slices_are_of_one_time_while_the_memory_below_is_replaced() {
    const NR_PAGES: u64 = 24;
    let owner = owner(32 * MIB);
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    let space = space(&client);
    let at = 2 * MIB - 10 * PAGE;
    let is_over = AtomicBool::new(false);
    let seed = Random::of_now().next();
    println!("seed {seed}");
    let read = |number: u64| {
        let mut random = Random::new(seed + number);
        let guest = GuestSpace::new(&space);
        let (mut nr_read, mut nr_missing) = (0_u64, 0_u64);
        while !is_over.load(Ordering::Relaxed) {
            let memory = guest.memory();
            for _ in 0..random.below(6) {
                let from = random.below(NR_PAGES);
                let len = (1 + random.below(NR_PAGES - from)) * PAGE;
                let Ok(slice) = memory.get_slice(GuestAddress(at + from * PAGE), len as usize)
                else {
                    nr_missing += 1;
                    continue;
                };
                let mut bytes = vec![0; len as usize];
                slice.read_slice(&mut bytes, 0).unwrap();
                for (page, bytes) in bytes.chunks(PAGE as usize).enumerate() {
                    let (first, page) = (bytes[0], from + page as u64);
                    assert!(bytes.iter().all(|&byte| byte == first), "page {page} of two files");
                    // Even pages are of even files: nobody else's.
                    assert_eq!(u64::from(first) % 2, page % 2, "seed {seed}: a foreign page");
                }
                nr_read += 1;
            }
        }
        (nr_read, nr_missing)
    };
    let replace = || replace_for(Duration::from_secs(3), &space, &other, NR_PAGES, at);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3).map(|number| scope.spawn(move || read(number))).collect();
        let nr_rounds = replace();
        is_over.store(true, Ordering::Relaxed);
        let counts: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        println!("{nr_rounds} changes; reads and misses: {counts:?}");
        assert!(counts.iter().all(|&(nr_read, _)| nr_read > 0) && nr_rounds > 5);
    });
}

/// Maps files of ever other bytes over each other, and unlinks what was mapped before.
fn replace_for(
    time: Duration,
    space: &AddressSpace,
    other: &Client,
    nr_pages: u64,
    at: u64,
) -> u64 {
    let started = Instant::now();
    let mut nr_rounds = 0;
    while started.elapsed() < time {
        let byte = 2 + (nr_rounds % 120 * 2) as u8;
        let names = [format!("even{nr_rounds}"), format!("odd{nr_rounds}")];
        for (name, byte) in names.iter().zip([byte, byte + 1]) {
            put_filled(other, name, FolioSize::Pages4K, nr_pages / 2 * PAGE, byte);
        }
        map_by_turns(space, [&names[0], &names[1]], nr_pages, at);
        match nr_rounds % 3 {
            0 => drop(space.unmap(at + 3 * PAGE, 5 * PAGE).unwrap()),
            1 => other.truncate(&*names[0], PAGE, Duration::from_secs(10)).unwrap(),
            _ => {}
        }
        for name in &names {
            other.unlink(name.as_str()).unwrap();
        }
        nr_rounds += 1;
    }
    nr_rounds
}

#[test]
fn a_forked_child_gets_errors_and_the_parent_goes_on() {
    let owner = owner(16 * MIB);
    let client = owner.client().unwrap();
    four_pages(&client, "a", 1);
    let space = space(&client);
    map(&space, "a", 0, 4 * PAGE, 0);
    let guest = GuestSpace::new(&space);
    let memory = guest.memory();
    assert_eq!(byte_at(&*memory, 0), Some(1));
    let region = memory.find_region(GuestAddress(0)).unwrap();
    // SAFETY: the child makes no call but those under test and leaves without exit handlers; no
    // other thread of this process is in the library.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let unavailable = |error| matches!(error, GuestMemoryError::HostAddressNotAvailable);
        let answers = [
            region.get_slice(MemoryRegionAddress(0), 8).is_err_and(unavailable),
            region.get_host_address(MemoryRegionAddress(0)).is_err_and(unavailable),
            region.read_obj::<u8>(MemoryRegionAddress(0)).is_err_and(unavailable),
            region.write_obj(9_u8, MemoryRegionAddress(0)).is_err_and(unavailable),
            memory.read_obj::<u8>(GuestAddress(0)).is_err(),
            memory.write_obj(9_u8, GuestAddress(0)).is_err(),
            memory.get_host_address(GuestAddress(0)).is_err(),
            memory.iter().count() == 0,
            guest.memory().read_obj::<u8>(GuestAddress(0)).is_err(),
            guest.memory().iter().count() == 0,
        ];
        drop(memory);
        let wrong = answers.iter().position(|&is_told| !is_told).map_or(0, |at| at as i32 + 1);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(wrong) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child; the status lives on this stack.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
    // The child dropped what it inherited; the parent's is held still.
    assert!(client.truncate("a", PAGE, Duration::from_millis(20)).is_err());
    assert_eq!(memory.read_obj::<u8>(GuestAddress(2 * PAGE)).unwrap(), 1);
    drop(memory);
    client.truncate("a", PAGE, Duration::from_secs(10)).unwrap();
}
