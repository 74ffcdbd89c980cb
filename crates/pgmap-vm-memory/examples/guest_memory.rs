//! Guest memory in a pool: two files lie side by side in the guest's addresses, a device writes
//! across their border, and a file that is unlinked stays as long as a guard uses it.
//!
//! Run with `cargo run -p pgmap-vm-memory --example guest_memory`.

use std::error::Error;

use pgmap::mm::mm::Placed;
use pgmap::mm::prot::Prot;
use pgmap::{FolioSize, Owner, Pool, PoolOptions};
use pgmap_vm_memory::{AddressSpace, GuestSpace};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

const FILE_BYTES: u64 = 2 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(64 << 20))?)?;
    let client = owner.client()?;
    let space = AddressSpace::for_device(&client, 0, 1 << 32)?;
    for (name, at) in [("low", 0), ("high", FILE_BYTES)] {
        client.create(name, FILE_BYTES, FolioSize::Pages2M)?.commit()?;
        let file = client.open(name)?;
        space.map(&file, 0, FILE_BYTES, Placed::At(at), Prot::READ_WRITE)?;
    }

    let guest = GuestSpace::new(&space);
    let border = GuestAddress(FILE_BYTES - 4);
    let memory = guest.memory();
    memory.write_slice(b"one mapping", border)?; // over the end of one file into the next
    client.unlink("low")?;
    client.unlink("high")?;
    let mut bytes = [0; 11];
    memory.read_slice(&mut bytes, border)?;
    println!("across two files: {}", String::from_utf8_lossy(&bytes));
    drop(memory); // now the frames are free, and the addresses lead nowhere
    match guest.memory().read_slice(&mut bytes, border) {
        Ok(()) => Err("both files were unlinked and can still be read".into()),
        Err(error) => {
            println!("after the guard: {error}");
            Ok(())
        }
    }
}
