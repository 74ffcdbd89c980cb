//! What an owner says of its pool: files, memory, backings, dead clients.

use serde::{Deserialize, Serialize};

use crate::metadata::FileMetadata;
use crate::name::FileName;

/// One file of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Its name.
    pub name: FileName,
    /// Its number, never given to another file.
    pub id: u64,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Bytes of the frames it takes.
    pub allocated_bytes: u64,
    /// Its extents.
    pub nr_extents: u64,
    /// Its folios of 4 KiB, 2 MiB and 1 GiB.
    pub nr_folios: [u64; 3],
    /// What it carries beside its contents.
    pub metadata: FileMetadata,
    /// Whether the owner may evict it: 0 for never.
    pub evict_priority: u8,
    /// The user whose client created it.
    pub uid: u32,
}

/// A summary of a pool, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolInfo {
    /// All frames.
    pub size_bytes: u64,
    /// Frames nobody has.
    pub free_bytes: u64,
    /// Frames of committed files.
    pub live_bytes: u64,
    /// Frames of uncommitted files.
    pub reserved_bytes: u64,
    /// Frames that wait for their last holder.
    pub draining_bytes: u64,
    /// Frames kept out of use after a deadline, or because a device cannot be kept out.
    pub quarantined_bytes: u64,
    /// Frames whose memory failed.
    pub poisoned_bytes: u64,
    /// Frames that nobody has, and nobody is given: their memory is drained.
    pub drained_bytes: u64,
    /// Frames a dead client's device may still write to, wherever they are.
    pub orphaned_bytes: u64,
    /// Of the reserved frames, those that were handed out ahead. The owner takes back those that
    /// nobody has begun to use when their room is needed.
    pub spare_bytes: u64,
    /// The longest free run.
    pub longest_free_bytes: u64,
    /// Memory behind the data.
    pub backed_bytes: u64,
    /// Memory of descriptors, index and ledgers.
    pub metadata_bytes: u64,
    /// Committed files.
    pub nr_files: u64,
    /// Clients attached.
    pub nr_clients: u64,
    /// Frames of files that may be evicted.
    pub evictable_bytes: u64,
    /// Files that this owner evicted, and their frames.
    pub nr_evicted: u64,
    /// As above, in bytes.
    pub evicted_bytes: u64,
    /// Of the clients, those that attached read-only.
    pub nr_read_only_clients: u64,
    /// With less free than this the owner evicts in advance; 0 for never.
    pub evict_low_bytes: u64,
    /// Until so much is free.
    pub evict_high_bytes: u64,
}

/// A dead client whose devices may still write to frames that it held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadClient {
    /// Its number.
    pub client: u64,
    /// Its process; 0 if that is not known.
    pub pid: i32,
    /// The name of that.
    pub command: String,
    /// Bytes of the frames, wherever they are.
    pub orphaned_bytes: u64,
    /// Bytes of those that are kept out of use for it.
    pub quarantined_bytes: u64,
    /// For how long it is known to be dead, in milliseconds; `None` if an earlier owner, or nobody,
    /// saw it die.
    pub dead_for_ms: Option<u64>,
    /// Whether it is known that a ring of it is still open.
    pub is_transferring: bool,
}

/// A backing: a memory that frames of the pool lie in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackingInfo {
    /// Its number; 0 is the pool's own data.
    pub id: u64,
    /// As a create names it.
    pub name: String,
    /// Where it is.
    pub path: String,
    /// What it lies in; none if it is not there.
    pub kind: Option<String>,
    /// The NUMA node of a device, where it has one.
    pub numa_node: Option<u32>,
    /// Its first frame.
    pub first_pfn: u64,
    /// Bytes of its frames.
    pub size_bytes: u64,
    /// Where in it the first frame lies, in bytes.
    pub offset_bytes: u64,
    /// Bytes that nobody has.
    pub free_bytes: u64,
    /// The longest free run, in bytes.
    pub longest_free_bytes: u64,
    /// Bytes that are out of use because they were drained.
    pub drained_bytes: u64,
    /// Memory behind it now, in bytes.
    pub backed_bytes: u64,
    /// Why it is not there, if it is not.
    pub missing: Option<String>,
}
