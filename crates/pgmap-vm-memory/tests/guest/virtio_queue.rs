//! A real virtio queue over an address space: descriptor chains are read, followed and answered
//! while regions come and go.

use std::time::{Duration, Instant};

use pgmap::mm::mm::Placed;
use pgmap::mm::prot::Prot;
use pgmap::space::AddressSpace;
use pgmap::{Client, Error, FolioSize, Owner, Pool, PoolOptions};
use pgmap_vm_memory::GuestSpace;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion, Permissions,
};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const RING_AT: u64 = 0x1_0000;
/// A buffer across the border of two files.
const BORDER: u64 = 64 * MIB;
const HOTPLUG_AT: u64 = 128 * MIB;
const QUEUE_LEN: u16 = 16;

fn owner() -> Owner {
    Owner::start(Pool::create(&PoolOptions::anonymous(64 * MIB)).unwrap()).unwrap()
}

fn put(client: &Client, name: &str, len_bytes: u64, byte: u8) {
    let mut writer = client.create(name, len_bytes, FolioSize::BestFit).unwrap();
    writer.write_all_at(0, &vec![byte; len_bytes as usize]).unwrap();
    writer.commit().unwrap();
}

fn map(space: &AddressSpace, name: &str, len_bytes: u64, at: u64) {
    let file = space.client().open(name).unwrap();
    space.map(&file, 0, len_bytes, Placed::Over(at), Prot::READ_WRITE).unwrap();
}

fn guest(client: &Client) -> AddressSpace {
    let space = AddressSpace::for_device(client, 0, 1 << 32).unwrap();
    put(client, "low", MIB, 0);
    put(client, "left", MIB, 1);
    put(client, "right", MIB, 2);
    map(&space, "low", MIB, 0);
    map(&space, "left", MIB, BORDER - MIB);
    map(&space, "right", MIB, BORDER);
    space
}

/// Two buffers the device reads, one it writes.
fn chain(readable: [u64; 2], writable: u64) -> [RawDescriptor; 3] {
    let (next, write) = (VRING_DESC_F_NEXT as u16, VRING_DESC_F_WRITE as u16);
    [
        RawDescriptor::from(Descriptor::new(readable[0], 256, next, 1)),
        RawDescriptor::from(Descriptor::new(readable[1], 256, next, 2)),
        RawDescriptor::from(Descriptor::new(writable, 256, write, 0)),
    ]
}

/// The device: adds up what it reads, writes the sum. `None` if the chain leads nowhere.
fn serve(queue: &mut Queue, guest: GuestSpace<'_>) -> Option<u64> {
    let memory = guest.memory();
    let chain = queue.iter(memory.clone()).ok()?.next()?;
    let head = chain.head_index();
    let mut sum = 0;
    for descriptor in chain.clone().readable() {
        let mut bytes = vec![0; descriptor.len() as usize];
        memory.read_slice(&mut bytes, descriptor.addr()).ok()?;
        sum += bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    }
    for descriptor in chain.writable() {
        memory.write_obj(sum, descriptor.addr()).ok()?;
    }
    queue.add_used(&*memory, head, 8).ok()?;
    Some(sum)
}

#[test]
fn a_descriptor_chain_reaches_across_files_and_its_writes_are_marked() {
    let owner = owner();
    let client = owner.client().unwrap();
    let space = guest(&client);
    let guest = GuestSpace::new(&space);
    let memory = guest.memory();
    let mock = MockSplitQueue::create(&*memory, GuestAddress(RING_AT), QUEUE_LEN);
    mock.add_desc_chains(&chain([BORDER - 128, BORDER + PAGE], 0x8_0000), 0).unwrap();
    let mut queue: Queue = mock.create_queue().unwrap();
    assert!(queue.is_valid(&*memory));
    space.mm().dirty().start();
    let sum = serve(&mut queue, guest).unwrap();
    assert_eq!(sum, 128 + 2 * 128 + 2 * 256);
    assert_eq!(memory.read_obj::<u64>(GuestAddress(0x8_0000)).unwrap(), sum);
    assert_eq!(mock.used().idx().load(), 1);
    let written = space.mm().dirty().take(0, 1 << 20);
    let used_page = mock.used_addr().0 / PAGE;
    assert_eq!(written, [(used_page, 1), (0x80, 1)], "and not whole blocks");
}

#[test]
fn a_guard_keeps_what_it_touched_and_the_next_sees_what_is_there_now() {
    let owner = owner();
    let client = owner.client().unwrap();
    let other = owner.client().unwrap();
    let space = guest(&client);
    let guest = GuestSpace::new(&space);
    let memory = guest.memory();
    assert_eq!(memory.read_obj::<u8>(GuestAddress(BORDER)).unwrap(), 2);
    let _told = space.unmap(BORDER, MIB).unwrap();
    let error = other.truncate("right", PAGE, Duration::from_millis(20)).unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error}: the guard holds it");
    assert_eq!(memory.read_obj::<u8>(GuestAddress(BORDER + MIB - 1)).unwrap(), 2);
    drop(memory);
    other.truncate("right", PAGE, Duration::from_secs(10)).unwrap();
    let memory = guest.memory();
    assert!(memory.read_obj::<u8>(GuestAddress(BORDER)).is_err());
    let across = memory.get_slices(GuestAddress(BORDER - 8), 16);
    assert_eq!(across.filter(Result::is_ok).count(), 1);
    map(&space, "right", MIB, BORDER);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(BORDER)).unwrap(), 2);
    assert!(memory.read_obj::<u8>(GuestAddress(BORDER + PAGE)).is_err(), "beyond the end");
    let read_only = client.open("low").unwrap();
    space.map(&read_only, 0, MIB, Placed::At(HOTPLUG_AT), Prot::READ).unwrap();
    assert!(!vm_memory::GuestMemory::check_range(
        &*memory,
        GuestAddress(HOTPLUG_AT),
        1,
        Permissions::Read
    ));
    assert_eq!(memory.iter().map(|region| region.len()).sum::<u64>(), 2 * MIB + PAGE);
    assert_eq!(memory.last_addr(), GuestAddress(BORDER + PAGE - 1));
}

/// Hot-plugs, cuts and unplugs the memory at [`HOTPLUG_AT`] until told to stop; returns how often.
fn churn(space: &AddressSpace, other: &Client, is_over: impl Fn() -> bool) -> u64 {
    let mut nr_rounds = 0;
    while !is_over() {
        let byte = 3 + (nr_rounds % 5) as u8;
        put(other, "plug", MIB, byte);
        map(space, "plug", MIB, HOTPLUG_AT);
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(200) {
            std::thread::yield_now();
        }
        match nr_rounds % 3 {
            0 => drop(space.unmap(HOTPLUG_AT, MIB).unwrap()),
            1 => other.truncate("plug", PAGE, Duration::from_secs(10)).unwrap(),
            _ => {}
        }
        other.unlink("plug").unwrap();
        nr_rounds += 1;
    }
    nr_rounds
}

#[test]
fn chains_are_served_while_regions_come_and_go() {
    let owner = owner();
    let client = owner.client().unwrap();
    let other = owner.client().unwrap();
    let space = guest(&client);
    let guest = GuestSpace::new(&space);
    let serve_all = || {
        let (mut nr_served, mut nr_lost, mut sums) = (0, 0, std::collections::BTreeSet::new());
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            let setup = guest.memory();
            let mock = MockSplitQueue::create(&*setup, GuestAddress(RING_AT), QUEUE_LEN);
            // Both buffers in the region that comes and goes.
            let buffers = [HOTPLUG_AT + 64, HOTPLUG_AT + MIB / 2];
            mock.avail().idx().store(0);
            mock.add_desc_chains(&chain(buffers, 0x8_0000), 0).unwrap();
            let mut queue: Queue = mock.create_queue().unwrap();
            drop(setup);
            match serve(&mut queue, guest) {
                Some(sum) => {
                    nr_served += 1;
                    // Each buffer is of one file, never half of one and half of the next.
                    assert!(sum % 256 == 0 && (6..15).contains(&(sum / 256)), "{sum}");
                    sums.insert(sum);
                }
                None => nr_lost += 1,
            }
        }
        (nr_served, nr_lost, sums)
    };
    std::thread::scope(|scope| {
        let server = scope.spawn(serve_all);
        let nr_rounds = churn(&space, &other, || server.is_finished());
        let (nr_served, nr_lost, sums) = server.join().unwrap();
        println!("{nr_served} chains served, {nr_lost} led nowhere, {nr_rounds} plugs");
        assert!(nr_served > 0 && nr_lost > 0 && nr_rounds > 10 && sums.len() > 1);
    });
}
