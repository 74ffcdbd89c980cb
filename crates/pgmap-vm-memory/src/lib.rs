//! vm-memory's guest memory over an address space of pgmap, held while it is used.
//!
//! A [`GuestSpace`] is a `GuestAddressSpace`; its guard, a [`GuestSnapshot`], is a
//! `GuestMemoryBackend`. Code that is generic over these, virtio-queue for one, then runs on an
//! [`AddressSpace`], as over one mapping: a region ends where the guest's memory does, whatever
//! files, folios and frames lie below, and slices and pointers go on inside it.
//!
//! What a guard uses is pinned for a short time, block by block at first use, and stays as it was
//! until the guard is dropped, whatever is unmapped, truncated or mapped over meanwhile. Guards
//! should be short, as any short-term pin: a truncate waits for them. `get_host_address` holds the
//! whole region, for a pointer says nothing of a length. In a forked child everything is an error.
//!
//! Areas that may not be both read and written are no part of it: vm-memory's regions know no
//! permissions. What is written through vm-memory, and nothing else, is marked in
//! [`Mm::dirty`](pgmap::mm::mm::Mm::dirty). A hole of a file reads as zeros, and is not written to:
//! the guard's and the region's own calls refuse; where only a slice was asked for, what is written
//! is dropped, and the next use of the guard says so.

mod bitmap;
mod region;
mod snapshot;

pub use bitmap::DirtyPages;
pub use region::GuestRegion;
pub use snapshot::{GuestSnapshot, GuestSpace};

/// The address space that guests' memory lies in.
pub use pgmap::space::AddressSpace;
