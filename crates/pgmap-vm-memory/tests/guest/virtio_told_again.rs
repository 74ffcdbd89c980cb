//! What virtio-queue's own tests ask of a queue, asked of one in pgmap's memory: rings and buffers
//! lie over every border that files, pages and lines of 2 MiB make.

use std::io::{Read, Write};
use std::num::Wrapping;
use std::sync::atomic::Ordering;

use crate::support::{MIB, PAGE, in_every_layout};
use pgmap_vm_memory::GuestSnapshot;
use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::{DescriptorTable, MockSplitQueue};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT, Reader, Writer};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// Where the memory starts: the line of 2 MiB goes through the ring.
const START: u64 = 2 * MIB - PAGE;
const LEN: u64 = 32 * PAGE;
/// The descriptor table reaches over the line.
const RING: u64 = 2 * MIB - 64;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

type Mock<'m, 's> = MockSplitQueue<'m, GuestSnapshot<'s>>;

/// A buffer of a page that begins in the middle of one: number `number`, from 0 on.
const fn buffer(number: u64) -> u64 {
    START + (4 + number) * PAGE + PAGE / 2
}

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(address, len, flags, next))
}

/// Chains of these lengths, one after the other; `is_writable` says which descriptors the device
/// writes.
fn chains(lens: &[u16], is_writable: impl Fn(u16) -> bool) -> Vec<RawDescriptor> {
    let mut descriptors = Vec::new();
    for &len in lens {
        for place in 0..len {
            let number = descriptors.len() as u16;
            let next = if place + 1 < len { NEXT } else { 0 };
            let write = if is_writable(number) { WRITE } else { 0 };
            descriptors.push(descriptor(buffer(number.into()), 0x1000, next | write, number + 1));
        }
    }
    descriptors
}

/// A queue of 16 entries, in every layout.
fn with_queue(check: impl Fn(&GuestSnapshot<'_>, &Mock<'_, '_>, Queue)) {
    in_every_layout(START, LEN, |memory, _| {
        let mock = MockSplitQueue::create(memory, GuestAddress(RING), 16);
        let queue = mock.create_queue().unwrap();
        check(memory, &mock, queue);
    });
}

/// Answers all there is, as a device does that switches notifications off meanwhile; returns how
/// often it looked.
fn serve(memory: &GuestSnapshot<'_>, queue: &mut Queue, mut meanwhile: impl FnMut()) -> usize {
    let mut nr_looks = 0;
    loop {
        nr_looks += 1;
        queue.disable_notification(memory).unwrap();
        while let Some(chain) = queue.iter(memory).unwrap().next() {
            let head = chain.head_index();
            let writable = chain.filter(|descriptor| descriptor.is_write_only());
            let len = writable.map(|descriptor| descriptor.len()).sum();
            queue.add_used(memory, head, len).unwrap();
        }
        meanwhile();
        if !queue.enable_notification(memory).unwrap() {
            return nr_looks;
        }
    }
}

/// The chain that begins with entry `head` of the table at `table`.
fn chain<'m, 's>(
    memory: &'m GuestSnapshot<'s>,
    mock: &Mock<'_, '_>,
    table: GuestAddress,
    head: u16,
) -> DescriptorChain<&'m GuestSnapshot<'s>> {
    mock.avail().ring().ref_at(0).unwrap().store(head.to_le());
    mock.avail().idx().store(1_u16.to_le());
    let mut queue: Queue = mock.create_queue().unwrap();
    queue.try_set_desc_table_address(table).unwrap();
    queue.iter(memory).unwrap().next().unwrap()
}

#[test]
fn a_queue_is_valid_where_all_its_rings_are_memory() {
    with_queue(|memory, mock, mut queue| {
        assert!(queue.is_valid(memory));
        queue.set_ready(false);
        assert!(!queue.is_valid(memory));
        queue.set_ready(true);
        for outside in [START + LEN - 16, START - 16, 0xffff_fff0] {
            queue.try_set_desc_table_address(GuestAddress(outside)).unwrap();
            assert!(!queue.is_valid(memory), "{outside:#x}");
        }
        queue.try_set_desc_table_address(mock.desc_table_addr()).unwrap();
        queue.try_set_used_ring_address(GuestAddress(START + LEN - 4)).unwrap();
        assert!(!queue.is_valid(memory));
        queue.try_set_used_ring_address(mock.used_addr()).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(START + LEN)).unwrap();
        assert!(!queue.is_valid(memory));
        queue.try_set_avail_ring_address(mock.avail_addr()).unwrap();
        assert!(queue.is_valid(memory));
    });
}

#[test]
fn a_chain_is_followed_to_its_end_and_not_beyond_the_table() {
    with_queue(|memory, mock, _| {
        let chain_from = |head| chain(memory, mock, mock.start(), head);
        assert!(chain_from(16).next().is_none(), "no such entry");
        let lost = GuestAddress(0xff_ffff_fff0);
        assert!(chain(memory, mock, lost, 0).next().is_none());
        mock.desc_table().store(0, descriptor(buffer(0), 0x1000, NEXT, 16)).unwrap();
        let mut broken = chain_from(0);
        assert!(broken.next().is_some() && broken.next().is_none());
        mock.desc_table().store(0, descriptor(buffer(0), 0x1000, NEXT, 1)).unwrap();
        mock.desc_table().store(1, descriptor(buffer(1), 0x800, 0, 0)).unwrap();
        let mut good = chain_from(0);
        let first = good.next().unwrap();
        assert_eq!((first.addr().0, first.len(), first.next()), (buffer(0), 0x1000, 1));
        assert_eq!(good.next().unwrap().len(), 0x800);
        assert!(good.next().is_none() && good.next().is_none());
        // All entries in one chain, over the line of 2 MiB.
        for entry in 0..15 {
            let next = descriptor(buffer(entry.into()), 16, NEXT, entry + 1);
            mock.desc_table().store(entry, next).unwrap();
        }
        mock.desc_table().store(15, descriptor(buffer(15), 16, 0, 0)).unwrap();
        assert_eq!(chain_from(0).count(), 16);
        // One that leads to itself ends as well.
        mock.desc_table().store(0, descriptor(buffer(0), 0xffff_ffff, NEXT, 0)).unwrap();
        assert!(chain_from(0).count() <= 16);
    });
}

#[test]
fn an_indirect_table_lies_anywhere_also_over_a_border() {
    with_queue(|memory, mock, _| {
        for table in [START + 9 * PAGE, START + 10 * PAGE - 24, START + 11 * PAGE + 1] {
            mock.desc_table().store(0, descriptor(buffer(0), 0x1000, NEXT, 1)).unwrap();
            mock.desc_table().store(1, descriptor(table, 4 * 16, INDIRECT, 0)).unwrap();
            let entries = DescriptorTable::new(memory, GuestAddress(table), 4);
            for entry in 0..4 {
                let next = if entry < 3 { NEXT } else { 0 };
                let to = buffer(u64::from(entry) + 1);
                entries.store(entry, descriptor(to, 16, next, entry + 1)).unwrap();
            }
            let whole = chain(memory, mock, mock.start(), 0);
            let addresses: Vec<_> = whole.map(|descriptor| descriptor.addr().0).collect();
            assert_eq!(addresses, [0, 1, 2, 3, 4].map(buffer));
            // A table in a table is refused, and so is half a descriptor.
            entries.store(0, descriptor(table, 16, INDIRECT, 0)).unwrap();
            let nr_found = || chain(memory, mock, mock.start(), 0).count();
            assert_eq!(nr_found(), 1);
            mock.desc_table().store(1, descriptor(table, 4 * 16 + 1, INDIRECT, 0)).unwrap();
            assert_eq!(nr_found(), 1);
        }
    });
}

#[test]
fn used_entries_are_written_and_bad_ones_refused() {
    with_queue(|memory, mock, mut queue| {
        assert_eq!(queue.used_idx(memory, Ordering::Acquire).unwrap(), Wrapping(0));
        assert!(queue.add_used(memory, 16, 0x1000).is_err());
        assert_eq!(mock.used().idx().load(), 0);
        for number in 0..40_u16 {
            queue.add_used(memory, number % 16, u32::from(number) * 3).unwrap();
            assert_eq!(queue.used_idx(memory, Ordering::Acquire).unwrap(), Wrapping(number + 1));
            let entry = mock.used().ring().ref_at(usize::from(number % 16)).unwrap().load();
            assert_eq!((entry.id(), entry.len()), (u32::from(number % 16), u32::from(number) * 3));
        }
    });
}

#[test]
fn notifications_are_switched_and_wanted_by_what_the_memory_says() {
    with_queue(|memory, mock, mut queue| {
        let flags = || memory.read_obj::<u16>(mock.used_addr()).map(u16::from_le).unwrap();
        queue.enable_notification(memory).unwrap();
        assert_eq!(flags(), 0);
        queue.disable_notification(memory).unwrap();
        assert_eq!(flags(), VRING_USED_F_NO_NOTIFY as u16);
        queue.enable_notification(memory).unwrap();
        assert_eq!(flags(), 0);
        assert!(queue.needs_notification(memory).unwrap());
        queue.set_event_idx(true);
        let avail_index = GuestAddress(mock.avail_addr().0 + 2);
        for index in [2_u16, 8] {
            memory.write_obj(index.to_le(), avail_index).unwrap();
            assert!(queue.enable_notification(memory).unwrap(), "there is more");
            queue.set_next_avail(index);
            assert!(!queue.enable_notification(memory).unwrap());
        }
        // The driver wants to hear of entry 4, and of no other.
        let used_event = GuestAddress(mock.avail_addr().0 + 4 + 16 * 2);
        // The mock's used ring begins inside its available ring.
        queue.try_set_used_ring_address(GuestAddress(START + 20 * PAGE - 8)).unwrap();
        memory.write_obj(4_u16.to_le(), used_event).unwrap();
        for number in 0..12 {
            queue.add_used(memory, number, 1).unwrap();
            assert_eq!(queue.needs_notification(memory).unwrap(), number == 4, "{number}");
        }
    });
}

#[test]
fn chains_are_taken_as_far_as_the_driver_offers_them() {
    with_queue(|memory, mock, mut queue| {
        mock.add_desc_chains(&chains(&[2, 3, 2, 2, 4], |_| false), 0).unwrap();
        mock.avail().idx().store(2_u16.to_le());
        assert_eq!(serve(memory, &mut queue, || {}), 1);
        assert_eq!((queue.next_avail(), queue.next_used()), (2, 2));
        mock.avail().idx().store(3_u16.to_le());
        assert_eq!(serve(memory, &mut queue, || mock.avail().idx().store(4_u16.to_le())), 2);
        assert_eq!((queue.next_avail(), queue.next_used()), (4, 4));
        // More than there are entries is nonsense, and so is less than were taken.
        mock.avail().idx().store((4 + 17_u16).to_le());
        assert!(queue.iter(memory).is_err());
        mock.avail().idx().store(1_u16.to_le());
        assert!(queue.iter(memory).is_err());
        queue.set_next_avail(u16::MAX);
        mock.avail().idx().store(15_u16.to_le());
        assert!(queue.iter(memory).is_ok(), "the index wraps");
    });
}

#[test]
fn readable_and_writable_descriptors_are_told_apart() {
    with_queue(|memory, mock, mut queue| {
        let writable = |number| [2, 4, 5].contains(&number);
        mock.add_desc_chains(&chains(&[2, 3, 2], writable), 0).unwrap();
        let mut chains = queue.iter(memory).unwrap();
        let counts = |chain: DescriptorChain<&GuestSnapshot<'_>>| {
            (chain.head_index(), chain.clone().readable().count(), chain.writable().count())
        };
        assert_eq!(counts(chains.next().unwrap()), (0, 2, 0));
        assert_eq!(counts(chains.next().unwrap()), (2, 1, 2));
        assert_eq!(counts(chains.next().unwrap()), (5, 1, 1));
        assert!(chains.next().is_none());
        chains.go_to_previous_position();
        assert_eq!(counts(queue.iter(memory).unwrap().next().unwrap()).0, 5);
    });
}

#[test]
fn a_reader_and_a_writer_go_through_buffers_over_borders() {
    with_queue(|memory, mock, mut queue| {
        let bytes: Vec<u8> = (0..2 * PAGE as usize).map(|at| (at % 241) as u8).collect();
        memory.write_slice(&bytes, GuestAddress(buffer(0))).unwrap();
        let len = 2 * PAGE as u32;
        let descriptors = [
            descriptor(buffer(0), len, NEXT, 1),
            descriptor(buffer(4) - 3, len, NEXT | WRITE, 2),
            descriptor(buffer(8), 5, WRITE, 0),
        ];
        mock.add_desc_chains(&descriptors, 0).unwrap();
        let chain = queue.iter(memory).unwrap().next().unwrap();
        let mut reader = Reader::new(memory, chain.clone()).unwrap();
        let mut writer = Writer::new(memory, chain).unwrap();
        assert_eq!(
            (reader.available_bytes(), writer.available_bytes()),
            (len as usize, len as usize + 5)
        );
        let mut tail = reader.split_at(5000).unwrap();
        let mut copy = vec![0; 5000];
        reader.read_exact(&mut copy).unwrap();
        assert_eq!(reader.read(&mut [0; 9]).unwrap(), 0);
        let mut rest = Vec::new();
        tail.read_to_end(&mut rest).unwrap();
        copy.append(&mut rest);
        assert_eq!(copy, bytes);
        writer.write_all(&bytes).unwrap();
        writer.write_obj(0x1122_3344_u32).unwrap();
        assert_eq!((writer.available_bytes(), writer.bytes_written()), (1, len as usize + 4));
        assert!(writer.write_obj(7_u64).is_err(), "no room for all of it");
        let mut written = vec![0; bytes.len()];
        memory.read_slice(&mut written, GuestAddress(buffer(4) - 3)).unwrap();
        assert_eq!(written, bytes);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(buffer(8))).unwrap(), 0x1122_3344);
    });
}

/// As vsock's packets do, which want their header and their data in one fragment each.
#[test]
fn a_buffer_is_one_slice_wherever_it_lies() {
    with_queue(|memory, _, _| {
        for at in (START..START + LEN - 6000).step_by(777) {
            let slice = memory.get_slice(GuestAddress(at), 6000).unwrap();
            assert_eq!(slice.len(), 6000);
            assert_eq!(memory.get_slices(GuestAddress(at), 6000).count(), 1);
        }
    });
}

#[test]
fn buffers_that_are_no_memory_are_refused() {
    with_queue(|memory, mock, mut queue| {
        for (address, len) in [(START + LEN, 1), (START + LEN - 8, 9), (0, 8), (u64::MAX - 4, 16)] {
            mock.add_desc_chains(&[descriptor(address, len, 0, 0)], 0).unwrap();
            let chain = queue.iter(memory).unwrap().last().unwrap();
            assert!(Reader::new(memory, chain).is_err(), "{len} bytes at {address:#x}");
        }
    });
}
