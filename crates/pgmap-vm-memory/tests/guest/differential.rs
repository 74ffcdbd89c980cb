//! Random calls of vm-memory on pgmap's guest memory and on vm-memory's own, over random layouts:
//! every answer, every byte, and every byte that a socket or a pipe gives and gets must be alike.
//! `PGMAP_SEED` repeats a run.

// UNSAFETY: bytes are compared through the address that `get_host_address` gives.
#![allow(unsafe_code)]
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::support::{MIB, PAGE, Random, map, owner, put, space};
use pgmap::space::AddressSpace;
use pgmap::{Client, FolioSize, Owner};
use pgmap_vm_memory::GuestSpace;
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress,
};

const LINE: u64 = 2 * MIB;
const POOL_BYTES: u64 = 64 * MIB;

/// The guest's memory twice.
struct Twins {
    _owner: Owner,
    space: AddressSpace,
    reference: GuestMemoryMmap<()>,
    /// First page and pages of each region.
    regions: Vec<(u64, u64)>,
    /// Pages of holes in files, which are not written to.
    holes: Vec<u64>,
}

/// A piece of a file that is mapped in one go.
struct Chunk {
    name: String,
    file_pages: u64,
    from: u64,
    nr_pages: u64,
}

/// Cuts `nr_pages` pages into pieces of new files of every shape.
fn chunks(random: &mut Random, client: &Client, mut nr_pages: u64, names: &mut u64) -> Vec<Chunk> {
    let folios = [FolioSize::Pages4K, FolioSize::BestFit, FolioSize::Pages4K, FolioSize::Pages2M];
    let mut chunks = Vec::new();
    while nr_pages > 0 {
        let most = if random.one_in(3) { nr_pages } else { nr_pages.min(1 + random.below(9)) };
        let from = random.below(3);
        let folio = folios[random.below(4) as usize];
        *names += 1;
        let name = format!("f{names}");
        let file_pages = most + from + random.below(3);
        put(client, &name, folio, &random.bytes((file_pages * PAGE) as usize));
        // Somebody else's, in between.
        if random.one_in(2) {
            put(client, &format!("x{names}"), FolioSize::Pages4K, &[0xee; PAGE as usize]);
        }
        chunks.push(Chunk { name, file_pages, from, nr_pages: most });
        nr_pages -= most;
    }
    chunks
}

fn twins(random: &mut Random) -> Twins {
    let owner = owner(POOL_BYTES);
    let client = owner.client().unwrap();
    let space = space(&client);
    let (mut regions, mut holes, mut names) = (Vec::new(), Vec::new(), 0);
    // Near a line of 2 MiB, or on it.
    let mut at = LINE / PAGE * random.below(3) + random.below(4);
    for _ in 0..1 + random.below(4) {
        let nr_pages = match random.below(4) {
            0 => 1 + random.below(4),
            1 => 512 - at % 512 + random.below(5),
            2 => 1 + random.below(40),
            _ => 600 + random.below(700),
        };
        let mut to = at;
        let chunks = chunks(random, &client, nr_pages, &mut names);
        for Chunk { name, file_pages, from, nr_pages } in &chunks {
            if *nr_pages > 2 && random.one_in(4) {
                let hole = random.below(nr_pages - 1);
                let len = 1 + random.below(nr_pages - hole - 1);
                client
                    .punch(
                        name,
                        (from + hole) * PAGE..(from + hole) * PAGE + len * PAGE,
                        Duration::ZERO,
                    )
                    .unwrap();
                holes.extend(to + hole..to + hole + len);
            }
            if to + nr_pages == at + chunks.iter().map(|chunk| chunk.nr_pages).sum::<u64>()
                && random.one_in(2)
            {
                // The last file ends before its area does.
                client
                    .truncate(name, (from + nr_pages) * PAGE - random.below(100), Duration::ZERO)
                    .unwrap();
                map(&space, name, from * PAGE, (file_pages + 7) * PAGE, to * PAGE);
            } else {
                map(&space, name, from * PAGE, nr_pages * PAGE, to * PAGE);
            }
            to += nr_pages;
        }
        regions.push((at, to - at));
        // Behind the end of a file there may be more of its area.
        at = to + 10 + random.below(600);
    }
    let ranges: Vec<_> = regions
        .iter()
        .map(|&(page, nr_pages)| (GuestAddress(page * PAGE), (nr_pages * PAGE) as usize))
        .collect();
    let reference = GuestMemoryMmap::from_ranges(&ranges).unwrap();
    let twins = Twins { _owner: owner, space, reference, regions, holes };
    // By address, which is another way than the one that is tried.
    for &(page, nr_pages) in &twins.regions {
        let mut bytes = vec![0; (nr_pages * PAGE) as usize];
        twins.space.read_at(page * PAGE, &mut bytes).unwrap();
        twins.reference.write_slice(&bytes, GuestAddress(page * PAGE)).unwrap();
    }
    twins
}

#[derive(Clone, Debug)]
struct Call {
    number: u64,
    address: u64,
    len: usize,
    /// What a socket or a pipe has, in pieces.
    sent: Vec<Vec<u8>>,
    seed: u64,
}

impl Twins {
    fn call(&self, random: &mut Random) -> Call {
        let &(page, nr_pages) = random.pick(&self.regions);
        let (start, end) = (page * PAGE, (page + nr_pages) * PAGE);
        let address = match random.below(8) {
            0 => start.saturating_sub(random.below(20)),
            1 => end.saturating_sub(random.below(5000)),
            2 => {
                (start + random.below(end - start)).next_multiple_of(LINE)
                    - random.below(5000).min(LINE)
            }
            3 => (start + random.below(end - start)) / PAGE * PAGE,
            4 if random.one_in(10) => u64::MAX - random.below(20),
            _ => start + random.below(end - start),
        };
        let len = match random.below(6) {
            0 => random.below(10),
            1 => random.below(2 * PAGE),
            2 => random.below(100_000),
            3 if random.one_in(4) => random.below(5 * MIB),
            4 if random.one_in(20) => u64::MAX - random.below(3),
            _ => random.below(6000),
        };
        let number = random.below(NR_CALLS);
        let sent = (0..random.below(3)).map(|_| {
            let len = if random.one_in(2) { random.below(300) } else { random.below(9000) };
            random.bytes(1 + len as usize)
        });
        let sent = sent.collect();
        Call { number, address, len: len as usize, sent, seed: random.next() }
    }

    /// Whether the call may write where a file has a hole.
    fn writes_to_a_hole(&self, call: &Call) -> bool {
        let (from, to) = (
            call.address / PAGE,
            call.address.saturating_add(call.len as u64).saturating_add(8) / PAGE,
        );
        WRITES.contains(&call.number) && self.holes.iter().any(|page| (from..=to).contains(page))
    }
}

const NR_CALLS: u64 = 22;
/// The calls of `answer` that write to the guest.
const WRITES: [u64; 10] = [1, 3, 5, 7, 8, 9, 10, 11, 18, 20];
/// Buffers of callers are not longer than this.
const MAX_BUFFER: usize = 6 << 20;

fn told<T: std::fmt::Debug, E: std::fmt::Debug>(result: Result<T, E>) -> String {
    format!("{result:?}")
}

fn nonblocking(fd: &OwnedFd) {
    rustix::io::ioctl_fionbio(fd, true).unwrap();
}

/// What is left in the descriptor, message by message or all at once.
fn left_in(fd: &OwnedFd) -> String {
    let mut buffer = vec![0; MAX_BUFFER];
    let mut left = String::new();
    while let Ok(nr @ 1..) = rustix::io::read(fd, &mut buffer) {
        let _fits = write!(left, "[{nr}: {:x}]", checksum(&buffer[..nr]));
    }
    left
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Makes the call and says all that can be seen of it.
fn answer<M: GuestMemoryBackend>(memory: &M, call: &Call) -> String {
    let at = GuestAddress(call.address);
    let len = call.len.min(MAX_BUFFER);
    let mut random = Random::new(call.seed);
    match call.number {
        0 => {
            let mut buffer = vec![7; len];
            format!("{} {:x}", told(memory.read(&mut buffer, at)), checksum(&buffer))
        }
        1 => told(memory.write(&random.bytes(len), at)),
        2 => {
            let mut buffer = vec![7; len];
            let result = told(memory.read_slice(&mut buffer, at));
            format!("{result} {:x}", checksum(&buffer))
        }
        3 => told(memory.write_slice(&random.bytes(len), at)),
        4 => format!("{} {}", told(memory.read_obj::<u64>(at)), told(memory.read_obj::<u16>(at))),
        5 => told(memory.write_obj(random.next() as u128, at)),
        6 => format!(
            "{} {}",
            told(memory.load::<u32>(at, Ordering::Acquire)),
            told(memory.load::<u64>(at, Ordering::Relaxed))
        ),
        7 => told(memory.store(random.next() as u32, at, Ordering::Release)),
        8..=14 => transfer(memory, call, at),
        15 => {
            let checked = memory.check_range(at, call.len);
            let lens: Vec<_> = memory
                .get_slices(at, call.len)
                .map(|slice| slice.map(|slice| slice.len()))
                .collect();
            format!("{checked} {lens:?} {}", told(memory.get_slice(at, len).map(|it| it.len())))
        }
        16 => match memory.to_region_addr(at) {
            None => format!("no region; {}", told(memory.get_host_address(at))),
            Some((region, offset)) => format!(
                "{:?} {:?} of {:?}+{:#x}, {:?}",
                offset,
                memory.check_address(at),
                region.start_addr(),
                region.len(),
                region.checked_offset(offset, len)
            ),
        },
        17 => by_pointer(memory, at, len.min(100_000)),
        18 => by_region(memory, at, &random.bytes(len), true),
        19 => by_region(memory, at, &random.bytes(len), false),
        20 => {
            let mut source = &*random.bytes(len.min(9000));
            let exact = told(memory.read_exact_volatile_from(at, &mut source, len));
            format!("{exact}, {} left", source.len())
        }
        _ => format!(
            "{} {:?} {:?} {:?} {:?}",
            memory.num_regions(),
            memory.last_addr(),
            memory.iter().map(|region| (region.start_addr(), region.len())).collect::<Vec<_>>(),
            memory.address_in_range(at),
            memory.checked_offset(at, call.len)
        ),
    }
}

/// Between guest memory and a descriptor.
fn transfer<M: GuestMemoryBackend>(memory: &M, call: &Call, at: GuestAddress) -> String {
    let len = call.len.min(100_000);
    let (mut ours, theirs): (OwnedFd, OwnedFd) = match call.number {
        8 | 12 => {
            let (ours, theirs) = UnixStream::pair().unwrap();
            (ours.into(), theirs.into())
        }
        9 | 13 => {
            let (ours, theirs) = UnixDatagram::pair().unwrap();
            (ours.into(), theirs.into())
        }
        _ => {
            let (reader, writer) = std::io::pipe().unwrap();
            match call.number {
                14 => (writer.into(), reader.into()),
                _ => (reader.into(), writer.into()),
            }
        }
    };
    nonblocking(&theirs);
    let result = match call.number {
        12..=14 => {
            if call.number != 13 || call.seed.is_multiple_of(2) {
                nonblocking(&ours);
            }
            told(memory.write_volatile_to(at, &mut ours, len.min(60_000)))
        }
        _ => {
            for message in &call.sent {
                rustix::io::write(&theirs, message).unwrap();
            }
            // A read that would wait is one that would fail, and else neither waits.
            if call.sent.is_empty() || call.seed.is_multiple_of(2) {
                nonblocking(&ours);
            }
            match call.number {
                11 if call.seed.is_multiple_of(3) => {
                    drop(theirs);
                    let whole = told(memory.read_exact_volatile_from(at, &mut ours, len));
                    nonblocking(&ours);
                    return format!("{whole} {}", left_in(&ours));
                }
                _ => told(memory.read_volatile_from(at, &mut ours, len)),
            }
        }
    };
    nonblocking(&ours);
    let left = if (12..=14).contains(&call.number) { left_in(&theirs) } else { left_in(&ours) };
    format!("{result} {left}")
}

/// As a monitor does: asks whether the range is there, then goes on from one pointer.
fn by_pointer<M: GuestMemoryBackend>(memory: &M, at: GuestAddress, len: usize) -> String {
    let Some((region, offset)) = memory.to_region_addr(at) else { return "no region".into() };
    let len = len.min((region.len() - offset.0) as usize);
    if !memory.check_range(at, len) {
        return "not there".into();
    }
    let pointer = memory.get_host_address(at).unwrap();
    // SAFETY: the range is in one region, and guest memory is one mapping.
    let bytes = (0..len).map(|at| unsafe { pointer.wrapping_add(at).read_volatile() });
    format!("{:x}", checksum(&bytes.collect::<Vec<_>>()))
}

/// The region's own calls.
fn by_region<M: GuestMemoryBackend>(
    memory: &M,
    at: GuestAddress,
    bytes: &[u8],
    is_write: bool,
) -> String {
    let Some(region) = memory.find_region(at) else { return "no region".into() };
    let offset = MemoryRegionAddress(at.0 - region.start_addr().0);
    let beyond = MemoryRegionAddress(region.len() + at.0 % 3);
    if is_write {
        let mut source = bytes;
        return format!(
            "{} {} {} {} {} {}",
            told(region.write(&bytes[..bytes.len() / 2], offset)),
            told(region.write_slice(bytes, offset)),
            told(region.read_volatile_from(offset, &mut source, bytes.len())),
            told(region.store(bytes.len() as u64, offset, Ordering::Relaxed)),
            told(region.write(bytes, beyond)),
            told(region.write_obj(1_u64, beyond)),
        );
    }
    let mut buffer = vec![3; bytes.len()];
    let mut sink = Vec::new();
    let results = [
        told(region.read(&mut buffer, offset)),
        told(region.read_slice(&mut buffer, offset)),
        told(region.write_volatile_to(offset, &mut sink, bytes.len())),
        told(region.write_all_volatile_to(offset, &mut sink, bytes.len())),
        told(region.load::<u16>(offset, Ordering::Relaxed)),
        told(region.read(&mut buffer, beyond)),
        told(region.write_volatile_to(beyond, &mut sink, 5)),
        told(region.get_slice(offset, bytes.len()).map(|slice| slice.len())),
        told(region.get_host_address(beyond)),
    ];
    format!("{results:?} {:x} {:x}", checksum(&buffer), checksum(&sink))
}

fn compare(seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let twins = twins(&mut random);
    let guest = GuestSpace::new(&twins.space);
    let mut nr_calls = 0;
    for _ in 0..30 {
        let memory = guest.memory();
        for _ in 0..1 + random.below(30) {
            let call = twins.call(&mut random);
            if twins.writes_to_a_hole(&call) {
                continue;
            }
            let (ours, theirs) = (answer(&*memory, &call), answer(&twins.reference, &call));
            let short = |answer: &str| answer.chars().take(600).collect::<String>();
            assert_eq!(
                short(&ours),
                short(&theirs),
                "seed {seed}: {:?}",
                Call { sent: vec![], ..call }
            );
            nr_calls += 1;
        }
    }
    for &(page, nr_pages) in &twins.regions {
        let (mut ours, mut theirs) =
            (vec![0; (nr_pages * PAGE) as usize], vec![0; (nr_pages * PAGE) as usize]);
        twins.space.read_at(page * PAGE, &mut ours).unwrap();
        twins.reference.read_slice(&mut theirs, GuestAddress(page * PAGE)).unwrap();
        let first = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
        assert_eq!(first, None, "seed {seed}: a byte differs in the region at page {page}");
    }
    nr_calls
}

#[test]
fn every_call_answers_as_over_one_mapping_whatever_lies_below() {
    if let Some(seed) = std::env::var_os("PGMAP_SEED") {
        let seed = seed.to_str().unwrap().parse().unwrap();
        println!("seed {seed}: {} calls", compare(seed));
        return;
    }
    let first = Random::of_now().next() >> 20;
    println!("seeds from {first} on; PGMAP_SEED=... repeats one");
    let (started, mut nr_calls, mut nr_worlds) = (Instant::now(), 0, 0);
    while started.elapsed() < Duration::from_secs(10) || nr_worlds < 8 {
        nr_calls += compare(first + nr_worlds);
        nr_worlds += 1;
    }
    println!("{nr_calls} calls in {nr_worlds} layouts answered alike");
}

#[test]
fn a_stream_and_its_twin_are_read_to_the_end() {
    let mut random = Random::of_now();
    let seed = random.next();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let twins = twins(&mut random);
    let guest = GuestSpace::new(&twins.space);
    let &(page, nr_pages) = random.pick(&twins.regions);
    let bytes = random.bytes((nr_pages * PAGE) as usize);
    // Without the holes, which are not written to.
    if twins.holes.iter().any(|hole| (page..page + nr_pages).contains(hole)) {
        println!("a region with holes; the other test has such");
        return;
    }
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let sent = &bytes;
        scope.spawn(move || {
            theirs.write_all(sent).unwrap();
            drop(theirs);
        });
        let memory = guest.memory();
        memory
            .read_exact_volatile_from(GuestAddress(page * PAGE), &mut ours, bytes.len())
            .map_or_else(
                |error| {
                    // A short read ends the call, as it does there; the rest is read by the caller.
                    let vm_memory::GuestMemoryError::PartialBuffer { completed, .. } = error else {
                        panic!("{error}")
                    };
                    let mut at = completed;
                    while at < bytes.len() {
                        let to = GuestAddress(page * PAGE + at as u64);
                        at += memory.read_volatile_from(to, &mut ours, bytes.len() - at).unwrap();
                    }
                },
                |()| {},
            );
    });
    assert_eq!(ours.read(&mut [0; 8]).unwrap(), 0, "all was read");
    let mut received = vec![0; bytes.len()];
    twins.space.read_at(page * PAGE, &mut received).unwrap();
    assert_eq!(checksum(&received), checksum(&bytes), "seed {seed}");
}
