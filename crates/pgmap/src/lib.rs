//! ZONE_DEVICE for user space: one memory pool for all the processes of a machine.
//!
//! ```
//! use pgmap::{FolioSize, Owner, Pool, PoolOptions};
//!
//! let owner = Owner::start(Pool::create(&PoolOptions::anonymous(64 << 20))?)?;
//! let client = owner.client()?; // in another process: Client::connect(socket)
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
//!
//! A block cannot be reused while anything still reads it, and a killed process gives everything
//! back in milliseconds, with no time-outs to tune.
//!
//! | to do this | see |
//! |---|---|
//! | make a pool and serve it | [`Pool`], [`PoolOptions`], [`Owner`] |
//! | create, find, cut and remove files, also in batches | [`Client`], [`FileWriter`], [`File`] |
//! | read what is pinned | [`FilePin`]; [`OwnedPin`], which keeps its client |
//! | map files at addresses, pin by address | [`AddressSpace`], [`Prot`], [`PinFlags`] |
//! | hear what the owner wants, and what becomes of files | [`Event`], [`Subscription`] |
//! | know why not | [`Error`], [`Refusal`], [`PinError`], [`SpaceError`] |
//! | look at a pool from outside | [`Observer`], [`check`](mod@check), [`report`] |
//! | limit users, or prefixes of names | [`quota`] |
//! | be asked before memory is pinned long-term | [`holder`] |
//! | register device memory | [`pagemap`] |
//!
//! What is not documented here is internal, and may change in any release; so may the layers below,
//! [`mm`] and [`os`].

mod byte_strings;
pub(crate) mod client;
mod deadline;
mod device_watch;
mod error;
#[doc(hidden)]
pub mod memory;
mod metadata;
mod name;
#[doc(hidden)]
pub mod owner;
#[doc(hidden)]
pub mod pool;
mod refusal;
pub mod space;
mod spare_places;
#[doc(hidden)]
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
pub use client::prefault::Prefault;
#[doc(hidden)]
pub use client::side::ProcessSide;
pub use client::subscription::{Notice, SubscribeOptions, Subscription};
pub use client::writer::{FileWriter, OwnedWriter, Writer};
pub use error::Error;
pub use metadata::{Checksum, MAX_METADATA_BYTES, UserMetadata};
pub use name::{Escaped, FileName, MAX_NAME_BYTES};
#[doc(inline)]
pub use owner::Owner;
/// The page model that the library is built on, as a whole. Unstable: it may change in any release
/// (ADR 0098). What the library's functions name is exported here, or in a module of its own, too.
#[doc(no_inline)]
pub use pgmap_mm as mm;
pub use pgmap_mm::error::PinError;
pub use pgmap_mm::gup::{GupError, GupFlags as PinFlags};
pub use pgmap_mm::ledger::Agent;
pub use pgmap_mm::level::{Level, PAGE_BYTES};
pub use pgmap_mm::memory_type::MemoryType;
pub use pgmap_mm::mm::Placed;
pub use pgmap_mm::prot::{Access, Prot};
/// What the library needs from Linux, as a whole. Unstable, as [`mm`].
#[doc(no_inline)]
pub use pgmap_os as os;
pub use pgmap_os::PageSize;
#[doc(inline)]
pub use pool::backing::BackingOptions;
#[doc(inline)]
pub use pool::observer::Observer;
#[doc(inline)]
pub use pool::{Durability, MAX_POOL_BYTES, MIN_POOL_BYTES, Pool, PoolOptions, Populate};
pub use refusal::Refusal;
pub use space::{AddressSpace, PinnedPages, SpaceError, SpaceLane};
#[doc(inline)]
pub use wire::{
    CreateSpec, Event, FileChange, FileEvent, FileInfo, FileRules, FolioSize, LongtermRule,
    OnDeadline, Placement, PoolInfo, Shape, WaterMarks,
};

/// What is said of a pool, its backings and who holds what.
pub mod report {
    pub use crate::metadata::FileMetadata;
    pub use crate::refusal::{ClientHold, FreeOn, HoldKind, HolderList};
    #[doc(inline)]
    pub use crate::wire::{BackingInfo, DeadClient};
}

/// How much users and prefixes of names may have.
pub mod quota {
    #[doc(inline)]
    pub use crate::wire::{MAX_QUOTAS, QuotaInfo, QuotaLimits, QuotaOf};
}

/// Whether a pool that nobody owns is whole, and repairing it.
pub mod check {
    #[doc(inline)]
    pub use crate::pool::check::{CheckOptions, CheckReport, Finding, check};
}

/// Holders that are asked before memory is pinned long-term, and when it is reclaimed.
pub mod holder {
    #[doc(inline)]
    pub use crate::owner::handle::HolderRegistration;
    pub use pgmap_mm::holder::{DrainReason, Holder, HolderAnswer, HolderId, Requester};
}

/// Ranges of device memory that an owner registers beside its pool's.
pub mod pagemap {
    pub use pgmap_mm::pagemap::{DeviceRange, OpsPresent, PagemapId, PagemapOps, PagemapSpec};
}

/// The READMEs' examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
#[doc = include_str!("../README.md")]
struct Readme;
