//! ZONE_DEVICE for user space: one memory pool for all the processes of a machine.
//!
//! A block cannot be reused while anything still reads it, and a killed process gives everything
//! back in milliseconds, with no time-outs to tune. An [`Owner`] has the pool and hands out frames;
//! a [`Client`] creates, opens and pins files in it, in the owner's process or any other.
//!
//! ```
//! use pgmap::{FolioSize, Owner, Pool, PoolOptions};
//!
//! let owner = Owner::start(Pool::create(&PoolOptions::anonymous(64 << 20))?)?;
//! let client = owner.client()?;
//!
//! let mut writer = client.create("block", 2 << 20, FolioSize::Pages2M)?;
//! writer.write_all_at(0, b"tokens")?;
//! writer.commit()?; // nobody could open it before
//!
//! let pinned = client.get("block")?; // no call to the owner
//! client.unlink("block")?; // the name goes at once
//! let mut first = [0; 6];
//! pinned.read_at(0, &mut first)?; // the bytes stay as long as they are pinned
//! assert_eq!(&first, b"tokens");
//! drop(pinned); // now the frames are free
//! # Ok::<(), pgmap::Error>(())
//! ```

pub(crate) mod client;
mod deadline;
mod device_watch;
pub mod error;
#[doc(hidden)]
pub mod memory;
pub mod metadata;
pub mod name;
pub mod owner;
pub mod pool;
pub mod refusal;
pub mod space;
pub mod wire;

pub use client::Client;
pub use client::failure::FailureReporter;
pub use client::file::File;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub use client::lanes::ThreadLanes;
pub use client::options::{ConnectOptions, DEFAULT_DEADLINE, Replace};
pub use client::owned::OwnedPin;
pub use client::pinned::{FilePin, Segment};
pub use client::side::ProcessSide;
pub use client::subscription::{Notice, SubscribeOptions, Subscription};
pub use client::writer::{FileWriter, OwnedWriter, Writer};
pub use error::Error;
pub use metadata::{Checksum, FileMetadata, UserMetadata};
pub use name::FileName;
pub use owner::Owner;
pub use owner::handle::HolderRegistration;
pub use pgmap_mm as mm;
pub use pgmap_mm::error::PinError;
pub use pgmap_mm::holder::{DrainReason, Holder as PoolHolder, HolderAnswer, HolderId, Requester};
pub use pgmap_mm::ledger::Agent;
pub use pgmap_mm::memory_type::MemoryType;
pub use pgmap_mm::prot::Access;
pub use pgmap_os as os;
pub use pgmap_os::PageSize;
pub use pool::backing::BackingOptions;
pub use pool::check::{CheckOptions, CheckReport, Finding, check};
pub use pool::observer::Observer;
pub use pool::{Durability, Pool, PoolOptions, Populate};
pub use refusal::{ClientHold, FreeOn, HoldKind, Refusal};
pub use wire::{
    BackingInfo, CreateSpec, DeadClient, Event, FileChange, FileEvent, FileInfo, FileRules,
    FolioSize, LongtermRule, OnDeadline, Placement, PoolInfo, Shape,
};

/// The READMEs' examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
#[doc = include_str!("../README.md")]
struct Readme;
