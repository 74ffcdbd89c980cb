//! vm-memory's guest memory over an address space of pgmap, held while it is used.
//!
//! A [`GuestSpace`] is a `GuestAddressSpace`; its guard, a [`GuestSnapshot`], is a
//! `GuestMemoryBackend`. Code that is generic over these, virtio-queue for one, then runs on an
//! [`AddressSpace`]: what a guard touches is pinned for a short time, block by block at first touch,
//! and stays as it was until the guard is dropped, whatever is unmapped, truncated or mapped over
//! meanwhile. Guards should be short, as any short-term pin: whoever truncates waits for them.
//!
//! Areas that may not be both read and written are no part of it: vm-memory's regions know no
//! permissions. What is written through vm-memory is marked in [`Mm::dirty`](pgmap::mm::mm::Mm::dirty).

mod bitmap;
mod region;
mod snapshot;

pub use bitmap::DirtyPages;
pub use region::GuestRegion;
pub use snapshot::{GuestSnapshot, GuestSpace};

/// The address space that guests' memory lies in.
pub use pgmap::space::AddressSpace;
