//! Copies a file through a pool with io_uring and compares checksums:
//! `cargo run -p pgmap-uring --example copy_file -- FROM TO`.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::path::Path;

use pgmap::mm::mm::Placed;
use pgmap::mm::prot::Prot;
use pgmap::space::AddressSpace;
use pgmap::{FolioSize, Owner, Pool, PoolOptions};
use pgmap_uring::PoolRing;

type Failure = Box<dyn std::error::Error>;

/// What is in the pool at a time.
const WINDOW_BYTES: u64 = 8 << 20;
const NR_WINDOWS: u64 = 2;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let (Some(from), Some(to)) = (arguments.next(), arguments.next()) else {
        return Err("usage: copy_file FROM TO".into());
    };
    let (from, to) = (Path::new(&from), Path::new(&to));
    let nr_bytes = copy(from, to)?;
    let (before, after) = (checksum(from)?, checksum(to)?);
    println!("{nr_bytes} bytes copied; checksums {before:016x} and {after:016x}");
    if before != after {
        return Err("the copy is not the same".into());
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<u64, Failure> {
    let pool = Pool::create(&PoolOptions::anonymous(NR_WINDOWS * WINDOW_BYTES))?;
    let owner = Owner::start(pool)?;
    let client = owner.client()?;
    let pool_bytes = NR_WINDOWS * WINDOW_BYTES;
    client.create("windows", pool_bytes, FolioSize::BestFit)?.commit()?;
    let space = AddressSpace::for_device(&client, 0, 1 << 40)?;
    let file = client.open("windows")?;
    let base = space.map(&file, 0, pool_bytes, Placed::Anywhere, Prot::READ_WRITE)?;
    let mut ring = PoolRing::new(&client, 64)?;
    let (source, target) = (File::open(from)?, File::create(to)?);
    let mut done_bytes = 0;
    for window in (0..NR_WINDOWS).cycle().map(|nr| base + nr * WINDOW_BYTES) {
        ring.read(&space, window, WINDOW_BYTES, &source, done_bytes)?;
        let read_bytes = moved(&mut ring)?;
        // Less than a window may be all that came at once: only nothing is the end.
        if read_bytes == 0 {
            break;
        }
        let mut written_bytes = 0;
        while written_bytes < read_bytes {
            let (from, left_bytes) = (window + written_bytes, read_bytes - written_bytes);
            ring.write(&space, from, left_bytes, &target, done_bytes + written_bytes)?;
            match moved(&mut ring)? {
                0 => return Err("the target takes no more".into()),
                nr_bytes => written_bytes += nr_bytes,
            }
        }
        done_bytes += read_bytes;
    }
    Ok(done_bytes)
}

fn moved(ring: &mut PoolRing<'_>) -> Result<u64, Failure> {
    let done = ring.wait()?.ok_or("nothing was under way")?;
    match done.errno {
        Some(errno) => Err(std::io::Error::from_raw_os_error(errno).into()),
        None => Ok(done.moved_bytes),
    }
}

fn checksum(path: &Path) -> Result<u64, Failure> {
    let mut file = File::open(path)?;
    let mut hasher = DefaultHasher::new();
    let mut bytes = vec![0; 1 << 20];
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(hasher.finish()),
            nr => hasher.write(&bytes[..nr]),
        }
    }
}
