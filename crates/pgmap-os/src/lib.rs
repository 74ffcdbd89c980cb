//! What Linux offers: mappings, memory files, locks, barriers, doorbells and sockets.
//!
//! This crate is the only place of the workspace that talks to the kernel about memory. It knows
//! bytes, files, descriptors and processes; what the bytes *mean* is decided one crate higher. Read
//! it bottom-up:
//!
//! | module | one concept |
//! |---|---|
//! | [`error`] | [`OsError`]: what was tried, on what, the errno, and the way out |
//! | [`memory_file`] | a file whose contents are memory: memfd, tmpfs, hugetlbfs, DAX, a disk |
//! | [`mapping`] | a shared window on a memory file, read-only or writable |
//! | [`bytes`] | copies that stay defined while another process changes the bytes |
//! | [`sigbus`] | memory that does not answer: copies return an error, failures are reported |
//! | [`touch`] | touches of addresses that nobody has mapped: offered, and answered |
//! | [`reservation`] | a range of addresses kept for one use, with pieces of files in it |
//! | [`membarrier`] | the heavy half of an asymmetric barrier |
//! | [`file_system`] | what a directory lies on |
//! | [`file_users`] | who uses a file or device, by proc |
//! | [`inventory`] | what on this machine could hold a pool |
//! | [`memory_limit`](mod@memory_limit) | how much memory this process may have |
//! | [`file_lock`] | a lock that dies with the open file description |
//! | [`doorbell`] | "something happened", across processes (eventfd) |
//! | [`seqpacket`] | messages and descriptors between processes, and who sent them |
//! | [`fork_guard`] | "am I the child of the process that made this?" in one load |
//! | [`parent_fd`] | descriptors that a forked child does not keep |
//! | [`poll`] | which descriptor is ready (epoll, level-triggered) |
//! | [`process`] | names, deaths and CPUs of processes |
//! | [`places`] | where the sockets and pools of a user live |
//! | [`disk`] | names of files: made, replaced, removed |
//! | [`sync`], [`thread`] | locks and threads, the standard library's unless simulated |
//! | [`identity`] | numbers that nobody else has |
//! | [`clock`] | the one clock that all processes of a machine share |
//!
//! Linux only, 64-bit only.

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("pgmap-os needs 64-bit Linux: file offsets are used as addresses without a check");

pub mod bytes;
pub mod clock;
pub mod disk;
pub mod doorbell;
pub mod error;
pub mod file_lock;
pub mod file_system;
pub mod file_users;
pub mod fork_guard;
pub mod identity;
pub mod inventory;
pub mod mapping;
pub mod membarrier;
pub mod memory_file;
pub mod memory_limit;
pub mod numa;
pub mod parent_fd;
pub mod places;
pub mod poll;
pub mod process;
pub mod reservation;
pub mod seqpacket;
pub mod sigbus;
mod signal_chain;
#[doc(hidden)]
pub mod sim;
pub mod sync;
pub mod thread;
pub mod touch;
pub mod zeroed;

pub use bytes::{CopyError, FaultCause, MemoryFault, OutOfBounds};
pub use doorbell::Doorbell;
pub use error::OsError;
pub use file_system::FileSystem;
pub use fork_guard::ForkGuard;
pub use mapping::{Populated, ReadMapping, ReadOnlyWord, WriteMapping};
pub use membarrier::Membarrier;
pub use memory_file::{
    FileAccess, LongTerm, MemoryFile, MemoryKind, PageSize, Persistence, device_binding,
};
pub use memory_limit::{MemoryLimit, memory_limit};
pub use parent_fd::ParentFd;
pub use poll::{Interest, Poller, Ready};
pub use reservation::Reservation;
pub use seqpacket::{BindError, Blocking, Connection, Listener, Peer, Received, TransferError};
pub use sigbus::{FailureKind, FailureWatch, MemoryFailure};
pub use touch::{Touch, TouchAccess, TouchAnswer, TouchWatch};
pub use zeroed::{zeroed_words, zeroed_words_in_huge_pages};
