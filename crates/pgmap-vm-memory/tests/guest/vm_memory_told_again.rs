//! What vm-memory's own tests ask of its memory, asked of pgmap's, in layouts that vm-memory never
//! sees.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{MIB, PAGE, in_every_layout, map, owner, put_filled, space};
use pgmap_vm_memory::{GuestSnapshot, GuestSpace};
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryError,
    GuestMemoryRegion, MemoryRegionAddress, VolatileMemory,
};

const AT: u64 = 2 * MIB - 4 * PAGE;
const LEN: u64 = 8 * PAGE;

fn at(offset: u64) -> GuestAddress {
    GuestAddress(AT + offset)
}

/// Memory at two places with a gap between them.
fn with_two_regions(check: impl Fn(&GuestSnapshot<'_>)) {
    let owner = owner(4 * MIB);
    let client = owner.client().unwrap();
    let space = space(&client);
    for (name, at) in [("low", 0), ("high", 4 * PAGE)] {
        put_filled(&client, name, pgmap::FolioSize::Pages4K, 2 * PAGE, 0);
        map(&space, name, 0, 2 * PAGE, at);
    }
    check(&GuestSpace::new(&space).memory());
}

#[test]
fn an_address_is_told_with_its_region_and_its_place_there() {
    with_two_regions(|memory| {
        assert!(memory.to_region_addr(GuestAddress(2 * PAGE)).is_none());
        let (first, offset) = memory.to_region_addr(GuestAddress(4 * PAGE)).unwrap();
        let (second, further) = memory.to_region_addr(GuestAddress(5 * PAGE + 7)).unwrap();
        assert!(std::ptr::eq(first, second));
        assert_eq!((offset.0, further.0), (0, PAGE + 7));
        assert!(memory.address_in_range(GuestAddress(2 * PAGE - 1)));
        assert!(!memory.address_in_range(GuestAddress(6 * PAGE)));
        assert_eq!(memory.check_address(GuestAddress(3 * PAGE)), None);
        let offset = |from, by| memory.checked_offset(GuestAddress(from), by);
        assert_eq!(offset(0, PAGE as usize), Some(GuestAddress(PAGE)));
        assert_eq!(offset(0, 2 * PAGE as usize), None);
        assert_eq!(offset(0, 4 * PAGE as usize), Some(GuestAddress(4 * PAGE)));
        assert_eq!(offset(4 * PAGE, usize::MAX), None);
        assert_eq!((memory.num_regions(), memory.last_addr()), (2, GuestAddress(6 * PAGE - 1)));
    });
}

#[test]
fn pointers_of_one_region_differ_as_its_addresses_do() {
    with_two_regions(|memory| {
        assert!(memory.get_host_address(GuestAddress(3 * PAGE)).is_err());
        let first = memory.get_host_address(GuestAddress(4 * PAGE)).unwrap() as usize;
        let second = memory.get_host_address(GuestAddress(5 * PAGE + 512)).unwrap() as usize;
        assert_eq!(second - first, PAGE as usize + 512);
    });
}

#[test]
fn a_range_is_good_up_to_the_first_gap() {
    with_two_regions(|memory| {
        let good = |from, len| memory.check_range(GuestAddress(from), len);
        let page = PAGE as usize;
        assert!(good(0, 0) && good(0, 2 * page) && good(4 * PAGE, 2 * page));
        assert!(!good(0, 2 * page + 1) && !good(0, 6 * page) && !good(0, usize::MAX));
        assert!(!good(4 * PAGE + 1, 2 * page) && !good(2 * PAGE, 1));
    });
}

#[test]
fn slices_are_of_the_length_asked_for_or_an_error() {
    with_two_regions(|memory| {
        let len = |from, len| memory.get_slice(GuestAddress(from), len).map(|slice| slice.len());
        assert_eq!(len(0x500, 0x900).unwrap(), 0x900);
        assert_eq!(len(4 * PAGE, 0).unwrap(), 0);
        assert!(len(0, 2 * PAGE as usize + 1).is_err() && len(2 * PAGE, 8).is_err());
        let lens = |from, len| {
            let slices = memory.get_slices(GuestAddress(from), len);
            slices.map(|slice| slice.map(|slice| slice.len()).ok()).collect::<Vec<_>>()
        };
        assert_eq!(lens(0, 0), []);
        assert_eq!(lens(0x100, 0x200), [Some(0x200)]);
        assert_eq!(lens(PAGE, 2 * PAGE as usize), [Some(PAGE as usize), None]);
        assert_eq!(lens(3 * PAGE, 5), [None]);
        let region = memory.find_region(GuestAddress(4 * PAGE)).unwrap();
        assert!(region.get_slice(MemoryRegionAddress(2 * PAGE), 1).is_err());
        assert!(region.get_slice(MemoryRegionAddress(2 * PAGE), 0).unwrap().is_empty());
        assert!(region.file_offset().is_none() && region.is_hugetlbfs().is_none());
    });
}

#[test]
fn what_does_not_fit_is_done_in_part_or_refused() {
    with_two_regions(|memory| {
        let last = GuestAddress(2 * PAGE - 1);
        assert_eq!(memory.write(&[1, 2, 3, 4, 5], last).unwrap(), 1);
        let mut bytes = [0; 5];
        assert_eq!(memory.read(&mut bytes, last).unwrap(), 1);
        assert_eq!(bytes, [1, 0, 0, 0, 0]);
        let partial = |result| match result {
            Err(GuestMemoryError::PartialBuffer { expected, completed }) => (expected, completed),
            other => panic!("{other:?}"),
        };
        assert_eq!(partial(memory.write_slice(&[9; 5], last)), (5, 1));
        assert_eq!(partial(memory.read_slice(&mut bytes, last)), (5, 1));
        assert_eq!(partial(memory.read_obj::<u64>(last).map(drop)), (8, 1));
        let gap = GuestAddress(3 * PAGE);
        let is_gap =
            |error| matches!(error, GuestMemoryError::InvalidGuestAddress(at) if at == gap);
        assert!(memory.read_obj::<u8>(gap).is_err_and(is_gap));
        assert!(memory.write(&[1], gap).is_err_and(is_gap));
        assert!(memory.load::<u32>(gap, Ordering::Relaxed).is_err_and(is_gap));
    });
}

#[test]
fn nothing_can_be_read_and_written_anywhere() {
    in_every_layout(AT, LEN, |memory, _| {
        assert_eq!(memory.write(&[], at(0)).unwrap(), 0);
        assert_eq!(memory.read(&mut [], at(LEN + PAGE)).unwrap(), 0);
        assert!(
            memory.write_slice(&[], at(0)).is_ok() && memory.read_slice(&mut [], at(0)).is_ok()
        );
        assert_eq!(memory.read_volatile_from(at(0), &mut &b"abc"[..], 0).unwrap(), 0);
        assert_eq!(memory.write_volatile_to(at(0), &mut Vec::new(), 0).unwrap(), 0);
        assert!(memory.read_exact_volatile_from(at(0), &mut &b"abc"[..], 0).is_ok());
        assert!(memory.write_all_volatile_to(at(0), &mut Vec::new(), 0).is_ok());
    });
}

#[test]
fn objects_and_streams_go_over_every_border() {
    in_every_layout(AT, LEN, |memory, _| {
        for border in (PAGE..LEN).step_by(PAGE as usize) {
            memory.write_obj(0x0102_0304_0506_0708_u64, at(border - 3)).unwrap();
            assert_eq!(memory.read_obj::<u64>(at(border - 3)).unwrap(), 0x0102_0304_0506_0708);
            let image: Vec<u8> = (0..64).collect();
            assert_eq!(memory.read_volatile_from(at(border - 31), &mut &*image, 64).unwrap(), 64);
            let mut sink = Vec::new();
            memory.write_all_volatile_to(at(border - 31), &mut sink, 64).unwrap();
            assert_eq!(sink, image);
            // A source that ends is a short read, and an error for a call that wants all.
            let short = memory.read_volatile_from(at(border - 1), &mut &image[..5], 64).unwrap();
            assert_eq!(short, 5);
            assert!(memory.read_exact_volatile_from(at(border), &mut &image[..5], 64).is_err());
        }
        let whole = memory.get_slice(at(0), LEN as usize).unwrap();
        let words = whole.get_array_ref::<u32>(0, LEN as usize / 4).unwrap();
        for number in 0..words.len() {
            words.store(number, number as u32);
        }
        assert_eq!(memory.read_obj::<u32>(at(6 * PAGE)).unwrap(), 6 * PAGE as u32 / 4);
    });
}

#[test]
fn atomics_are_where_they_are_aligned_and_nowhere_else() {
    in_every_layout(AT, LEN, |memory, _| {
        for offset in (0..LEN).step_by(1024) {
            assert_eq!(memory.load::<u32>(at(offset), Ordering::Relaxed).unwrap(), 0);
            memory.store(offset as u32 + 1, at(offset), Ordering::Relaxed).unwrap();
            assert_eq!(
                memory.load::<u32>(at(offset), Ordering::Relaxed).unwrap(),
                offset as u32 + 1
            );
            assert!(memory.load::<u64>(at(offset + 4), Ordering::Relaxed).is_err());
        }
        assert!(memory.load::<u32>(at(LEN), Ordering::Relaxed).is_err());
        assert!(memory.store(1_u64, at(LEN - 4), Ordering::Relaxed).is_err());
    });
}

/// A word at the end of a page and more behind it: a read of it while it is written finds one of
/// two.
fn is_whole<T>(memory: &GuestSnapshot<'_>)
where
    T: ByteValued + From<u8> + std::ops::Not<Output = T> + PartialEq + std::fmt::Debug,
{
    let word = at(4 * PAGE - size_of::<T>() as u64);
    let (one, other) = (T::from(0), !T::from(0));
    memory.write_obj(one, word).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..100_000 {
                memory.write_obj(other, word).unwrap();
                memory.write_obj(one, word).unwrap();
            }
            is_over.store(true, Ordering::Relaxed);
        });
        while !is_over.load(Ordering::Relaxed) {
            let found: T = memory.read_obj(word).unwrap();
            assert!(found == one || found == other, "{found:?} is half of each");
        }
    });
}

#[test]
fn words_are_read_whole_while_others_write_them() {
    in_every_layout(AT, LEN, |memory, _| {
        is_whole::<u16>(memory);
        is_whole::<u32>(memory);
        is_whole::<u64>(memory);
    });
}

#[test]
fn every_kind_of_write_is_marked_and_no_read_is() {
    in_every_layout(AT, LEN, |memory, space| {
        space.mm().dirty().start();
        let page = PAGE as usize;
        let (region, offset) = memory.to_region_addr(at(0)).unwrap();
        let is_marked = |number: usize| {
            let slice = memory.get_slice(at(number as u64 * PAGE), page).unwrap();
            let by_region = region.bitmap().dirty_at(offset.0 as usize + number * page);
            assert_eq!(slice.bitmap().dirty_at(0), by_region);
            by_region
        };
        let place = |number: u64| at(number * PAGE + 8);
        assert!((0..8).all(|number| !is_marked(number)));
        let region_place = |number: u64| MemoryRegionAddress(offset.0 + number * PAGE + 8);
        let writes: [&dyn Fn(u64); 8] = [
            &|it| assert_eq!(memory.write(&[1; 100], place(it)).unwrap(), 100),
            &|it| memory.write_slice(&[1; 100], place(it)).unwrap(),
            &|it| memory.write_obj(1_u64, place(it)).unwrap(),
            &|it| memory.store(1_u64, place(it), Ordering::Relaxed).unwrap(),
            &|it| assert_eq!(memory.read_volatile_from(place(it), &mut &[1; 9][..], 9).unwrap(), 9),
            &|it| region.write_obj(1_u64, region_place(it)).unwrap(),
            &|it| region.store(1_u64, region_place(it), Ordering::Relaxed).unwrap(),
            &|it| {
                let slice = memory.get_slice(place(it), 64).unwrap();
                slice.get_ref::<u64>(8).unwrap().store(1);
            },
        ];
        for (number, write) in writes.iter().enumerate() {
            let _read = memory.read_obj::<u64>(place(number as u64)).unwrap();
            assert!(!is_marked(number), "a read marks {number}");
            write(number as u64);
            assert!(is_marked(number), "write {number} is not marked");
        }
        let first = AT / PAGE;
        assert_eq!(space.mm().dirty().take(0, u64::MAX), [(first, 8)]);
        assert!((0..8).all(|number| !is_marked(number)));
        // Across a border, both sides and no more.
        memory.write_slice(&[1; 16], at(3 * PAGE - 8)).unwrap();
        assert_eq!(space.mm().dirty().take(0, u64::MAX), [(first + 2, 2)]);
    });
}
