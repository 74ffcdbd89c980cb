//! A file of a pool at addresses of this process, where every instruction sees it; another client
//! truncates the file, and the mapping goes before its frames are given to anybody else.
//!
//! Run with `cargo run -p pgmap --example process_space`.

use std::error::Error;
use std::time::Duration;

use pgmap::mm::mm::Placed;
use pgmap::mm::prot::Prot;
use pgmap::space::AddressSpace;
use pgmap::{FolioSize, Owner, Pool, PoolOptions};

const FILE_BYTES: u64 = 4 << 20;
const PAGE_BYTES: u64 = 4096;
const DEADLINE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(64 << 20))?)?;
    let client = owner.client()?;
    client.create("ram", FILE_BYTES, FolioSize::Pages2M)?.commit()?;

    // One GiB of addresses is reserved; a file is mapped anywhere in it.
    let space = AddressSpace::for_process(&client, 1 << 30)?;
    let file = client.open("ram")?;
    let at = space.map(&file, 0, FILE_BYTES, Placed::Anywhere, Prot::READ_WRITE)?;
    space.write_at(at, b"first page")?;
    space.write_at(at + PAGE_BYTES, b"second page")?;
    println!("mapped {FILE_BYTES} bytes at {at:#x}");
    for holder in client.who("ram")?.holders {
        println!("held by the mapping: {holder}");
    }

    // Any client may truncate the file. This program need not do anything for that.
    owner.client()?.truncate("ram", PAGE_BYTES, DEADLINE)?;
    let mut bytes = [0; 10];
    space.read_at(at, &mut bytes)?;
    println!("first page: {}", String::from_utf8_lossy(&bytes));
    match space.read_at(at + PAGE_BYTES, &mut bytes) {
        Ok(()) => Err("the second page was truncated and is still mapped".into()),
        Err(error) => {
            println!("second page: {error}");
            Ok(())
        }
    }
}
