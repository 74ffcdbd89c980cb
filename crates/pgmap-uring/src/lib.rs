//! io_uring over a pool of pgmap: the pool registered once, transfers by pin.
//!
//! A [`PoolRing`] registers the client's mapping of the pool as fixed buffers. A transfer names
//! addresses of an [`AddressSpace`](pgmap::space::AddressSpace) of that client or a clone of it;
//! what lies there is pinned with a DEVICE hold until the kernel says that it is done, so that
//! truncating or unlinking the file meanwhile waits, and the death of this process gives the frames
//! to nobody while they may still be written.
//!
//! ```no_run
//! use pgmap::mm::mm::Placed;
//! use pgmap::mm::prot::Prot;
//! use pgmap::space::AddressSpace;
//! use pgmap_uring::PoolRing;
//! # fn demo(client: &pgmap::Client) -> Result<(), Box<dyn std::error::Error>> {
//! let space = AddressSpace::for_device(client, 0, 1 << 40)?;
//! let at = space.map(&client.open("block")?, 0, 1 << 20, Placed::Anywhere, Prot::READ_WRITE)?;
//! let mut ring = PoolRing::new(client, 64)?;
//! let file = std::fs::File::open("/some/file")?;
//! ring.read(&space, at, 1 << 20, &file, 0)?;
//! let done = ring.wait()?;
//! assert_eq!(done.map(|done| done.moved_bytes), Some(1 << 20));
//! # Ok(())
//! # }
//! ```

mod error;
mod ring;

pub use error::RingError;
pub use ring::{Completed, PoolRing, TransferId};
