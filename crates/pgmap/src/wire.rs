//! What clients and owners say to each other.
//!
//! One message is one `SOCK_SEQPACKET` datagram of at most [`MAX_MESSAGE_BYTES`], postcard-encoded,
//! a request with a number and a reply with the same number. Nothing here is in the data path: a
//! client calls its owner to create, commit, truncate, rename, unlink and list, in batches, never
//! to open, pin or release.
//!
//! What arrives is an allegation (I9): decoding checks shape and names, [`Extent::from_words`]
//! checks extents, and the owner checks every number against its own books.

use std::ops::Range;

mod drafts;
mod events;
mod info;
mod quotas;
mod requests;

pub use drafts::{CommitSpec, Committed, CreateSpec, Draft, PutAnswer, PutSpec};
pub use events::{FileChange, FileEvent, MAX_SUBSCRIPTIONS};
pub use info::{BackingInfo, DeadClient, FileInfo, PoolInfo};
use pgmap_mm::admission::RangeFlags;
use pgmap_mm::extent::Extent;
use pgmap_mm::folio::Sizing;
use pgmap_mm::level::Level;
pub use quotas::{MAX_QUOTAS, QuotaInfo, QuotaLimits, QuotaOf, WaterMarks};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::error::Error;
use crate::name::FileName;
use crate::refusal::{ClientHold, Refusal};

/// Spoken by both sides; a difference is an error at once.
pub const VERSION: u32 = 13;
/// Longest message.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Most items of one batch.
pub const MAX_BATCH: usize = 256;
/// Most extents one reply carries for all items together.
pub const MAX_REPLY_EXTENTS: usize = 2000;
/// Most spares that a client has at a time: frames handed out ahead, before it asked for them.
pub const MAX_SPARES: usize = 128;
/// And most bytes of them together.
pub const MAX_SPARES_BYTES: u64 = 32 << 20;
/// Largest file of which there are spares: what a larger one costs is its copy.
pub const MAX_SPARE_BYTES: u64 = 4 << 20;
/// Longest label of a client, in characters.
pub const MAX_LABEL_CHARS: usize = 64;
/// Most files one page of a listing carries.
pub const MAX_LIST: usize = 100;

/// The first message of a connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// Whether the client's process is registered for `membarrier`.
    pub is_registered: bool,
    /// The client that this connection continues, after a restart of the owner.
    pub resume: Option<u64>,
    /// What the client calls itself: for people, above all where the owner cannot see its process.
    pub label: String,
    /// Whether it changes nothing, and is handed memory that it can only read.
    pub is_read_only: bool,
}

/// A label as tools may print it: at most [`MAX_LABEL_CHARS`] characters, none of which controls a
/// terminal or turns a line around.
#[must_use]
pub fn clean_label(label: &str) -> String {
    let is_plain =
        |c: char| c.is_ascii_graphic() || c == ' ' || (!c.is_ascii() && c.is_alphanumeric());
    label.chars().take(MAX_LABEL_CHARS).map(|c| if is_plain(c) { c } else { '?' }).collect()
}

/// The owner's answer; with it come the descriptors of data, vmemmap, index, doorbell and, unless
/// it resumes, ledger.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Welcome {
    /// [`VERSION`] of the owner.
    pub version: u32,
    /// The owner's number for this client.
    pub client: u64,
    /// Frames of the pfn space.
    pub nr_pages: u64,
    /// Bytes of the data file.
    pub data_bytes: u64,
    /// Frames that further backings may have lie behind that, up to here, in bytes.
    pub span_bytes: u64,
    /// Where in their file the descriptors start.
    pub vmemmap_start: u64,
    /// The smallest folio that is described, as `Level` numbers it.
    pub smallest_level: u8,
    /// What the index was made for.
    pub max_files: u64,
    /// Whether a compiler fence is light barrier enough.
    pub is_asymmetric: bool,
    /// Whether what a file holds is flushed before the file is committed, for it is to outlive a
    /// power failure.
    pub is_flushed: bool,
}

/// How large a file's folios are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[non_exhaustive]
pub enum FolioSize {
    /// The largest that fit, the length rounded up to 4 KiB.
    #[default]
    BestFit,
    /// 4 KiB each.
    Pages4K,
    /// 2 MiB each.
    Pages2M,
    /// 1 GiB each.
    Pages1G,
}

impl FolioSize {
    pub(crate) const fn sizing(self) -> Sizing {
        match self {
            Self::BestFit => Sizing::BestFit,
            Self::Pages4K => Sizing::Fixed(Level::Pte),
            Self::Pages2M => Sizing::Fixed(Level::Pmd),
            Self::Pages1G => Sizing::Fixed(Level::Pud),
        }
    }
}

/// Which long-term pins of a file are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[non_exhaustive]
pub enum LongtermRule {
    /// What the pool's memory type says: device-dax allows, fsdax refuses.
    #[default]
    AsType,
    /// No long-term pins.
    Forbid,
    /// None that a device writes through.
    ForbidDevice,
    /// As leases, which the owner may ask back.
    Leasable,
}

/// A file's rules, fixed when it is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
pub struct FileRules {
    /// Long-term pins.
    pub longterm: LongtermRule,
    /// Mapped, never pinned (`VM_PFNMAP`).
    pub is_raw: bool,
    /// Not to be pinned for writing.
    pub is_read_only: bool,
    /// Whether the owner may evict it, when a create needs room and nobody holds it: 0 for never;
    /// of the others, files of lower priority go first.
    pub evict_priority: u8,
}

impl FileRules {
    pub(crate) const fn range_flags(self) -> RangeFlags {
        let mut flags = match self.longterm {
            LongtermRule::AsType => RangeFlags::NONE,
            LongtermRule::Forbid => RangeFlags::FORBID_LONGTERM,
            LongtermRule::ForbidDevice => RangeFlags::FORBID_DEVICE,
            LongtermRule::Leasable => RangeFlags::LEASABLE,
        };
        if self.is_raw {
            flags = flags.with(RangeFlags::RAW);
        }
        if self.is_read_only {
            flags = flags.with(RangeFlags::READ_ONLY);
        }
        flags
    }
}

/// A long-term pin that needs the owner's consent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseSpec {
    /// The file's number.
    pub file: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len_bytes: u64,
    /// Whether a device will use it.
    pub is_device: bool,
    /// Whether it will be written through.
    pub is_write: bool,
}

/// One lease: consent to hold these frames. The client then holds them in its ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGrant {
    /// Its number.
    pub lease: u64,
    /// The extent that the frames lie in.
    pub extent: [u64; 3],
    /// First frame.
    pub first_pfn: u64,
    /// Frames, in 4 KiB pages.
    pub nr_pages: u64,
}

/// What a folio becomes; levels 0, 1 and 2 are 4 KiB, 2 MiB and 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shape {
    /// Smaller.
    Split {
        /// The level around the byte.
        to: u8,
    },
    /// Larger.
    Merge {
        /// The level around the byte.
        to: u8,
    },
}

/// What becomes of a cut whose deadline passes while somebody holds its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
pub enum OnDeadline {
    /// It fails and the file is as before.
    #[default]
    Fail,
    /// The file is cut; the held frames are kept out of use until they are let go.
    Quarantine,
}

/// On which of the pool's backings a file may lie. It lies on one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[non_exhaustive]
pub enum Placement {
    /// On any: the pool's data first, then further backings in the order of their frames.
    #[default]
    Any,
    /// On the first of these that has room, and on no other. Named as [`BackingInfo::name`] says.
    Only(Vec<String>),
    /// On the first of these that has room, then as [`Any`](Self::Any).
    Prefer(Vec<String>),
}

/// What a client asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Reserve frames for files.
    Create(Vec<CreateSpec>),
    /// Publish files created by this client.
    Commit(Vec<CommitSpec>),
    /// Name and publish files, and hand out frames for the next ones where that is asked for.
    Put(Vec<PutSpec>),
    /// Give up files created by this client.
    Abort(Vec<u64>),
    /// Take names away; the frames follow when their last holder lets go.
    Unlink(Vec<FileName>),
    /// Take names away, and the frames with them, of files that nobody holds.
    UnlinkUnlessHeld(Vec<FileName>),
    /// Give a file another name.
    Rename {
        /// The name it has.
        from: FileName,
        /// The name it gets.
        to: FileName,
        /// Whether it takes the place of a file that has that name.
        replace: bool,
    },
    /// Shorten a file, waiting for holders of what is cut off.
    Truncate {
        /// The file.
        name: FileName,
        /// Its new length in bytes.
        len_bytes: u64,
        /// How long to wait.
        deadline_ms: u64,
        /// And then.
        on_deadline: OnDeadline,
    },
    /// Take whole pages out of a file, waiting for their holders. They read as zero then.
    Punch {
        /// The file.
        name: FileName,
        /// First byte, a multiple of 4096.
        offset: u64,
        /// Bytes, a multiple of 4096 or up to the file's end.
        len_bytes: u64,
        /// How long to wait.
        deadline_ms: u64,
        /// And then.
        on_deadline: OnDeadline,
    },
    /// Pin long-term with the owner's consent.
    Lease(LeaseSpec),
    /// Give leases back.
    ReleaseLeases(Vec<u64>),
    /// Where a file is, by its number.
    Locate(u64),
    /// Describe files by name.
    Stat(FileName),
    /// Describe files from the first name after this one.
    List(Option<FileName>),
    /// The memory of this frame failed.
    MemoryFailure(u64),
    /// Replace the memory of a failed page of a file and fill it with these 4096 bytes.
    ClearPoison {
        /// The file.
        name: FileName,
        /// The page's first byte in it.
        offset: u64,
        /// Its new contents.
        bytes: Vec<u8>,
    },
    /// Split or merge the folios of a file.
    Reshape {
        /// The file.
        name: FileName,
        /// A byte in the folio.
        offset: u64,
        /// What it becomes.
        shape: Shape,
    },
    /// Replace the memory of failed frames that no file has, and free them.
    RepairFree,
    /// Describe the pool.
    PoolStat,
    /// Who holds a file, or anything.
    Who(Option<FileName>),
    /// The client holds nothing any more and goes.
    Leave,
    /// Give memory behind free frames back to the system, a step's worth from this frame on.
    Trim {
        /// The first frame to look at.
        from_pfn: u64,
    },
    /// Describe dead clients whose devices may still write, after this one.
    Quarantine {
        /// The last client of the answer before.
        after: Option<u64>,
    },
    /// Close the pool: its memory is about to go. Waits for whoever holds any of it.
    Close {
        /// For how long, in milliseconds.
        deadline_ms: u64,
    },
    /// Believe that no device of this dead client can write any more.
    ReleaseQuarantine(u64),
    /// Nobody waits for the answer to the request of this number any more: what it waits for is
    /// called off. Has no answer.
    Forget(u64),
    /// Another request follows soon, which is to find the owner awake. Has no answer.
    Wake,
    /// Call off the truncate or punch of this file that waits for holders, whoever asked for it.
    CancelCut(FileName),
    /// Describe the pool's backings. The further ones that are there come as descriptors, in order.
    Backings,
    /// Add a backing, or take one back that was missing.
    AddBacking {
        /// Where it is: the bytes of an absolute path.
        path: Vec<u8>,
        /// Bytes of its frames; 0 for all of a device.
        size_bytes: u64,
        /// How it is called, if not as its path ends.
        name: Option<String>,
        /// On which NUMA nodes its memory is taken; none for where it is first written.
        nodes: Vec<u32>,
    },
    /// Take more memory, beside the data and of the same kind.
    Grow {
        /// How much.
        by_bytes: u64,
    },
    /// Take out a backing on which no file lies.
    RemoveBacking {
        /// Its name.
        name: String,
        /// How long to wait for holders.
        deadline_ms: u64,
    },
    /// Have everybody let go of a part of the pool, before its memory goes.
    DrainPart {
        /// The name of the backing.
        backing: String,
        /// Bytes of its medium; all of it if none are named.
        bytes: Option<Range<u64>>,
        /// How long to wait for holders.
        deadline_ms: u64,
    },
    /// Have what was drained be in use again.
    UndoDrain {
        /// The name of the backing.
        backing: String,
        /// Bytes of its medium; all that was drained of it if none are named.
        bytes: Option<Range<u64>>,
    },
    /// Follow what becomes of files. The events come through the descriptor that the answer brings,
    /// several to a message.
    Subscribe {
        /// How the names begin that are followed.
        prefix: Vec<u8>,
        /// Which changes.
        changes: Vec<FileChange>,
    },
    /// Limit what a user, or a name prefix, may take. What it allowed before is forgotten.
    SetQuota {
        /// Whom.
        of: QuotaOf,
        /// To what.
        limits: QuotaLimits,
    },
    /// Limit that no more.
    RemoveQuota(QuotaOf),
    /// Keep room free by evicting in advance.
    SetWaterMarks(WaterMarks),
    /// Describe the quotas and the water marks.
    Quotas,
    /// Do what an owner was asked that is gone, and may have done it: but only to the files that
    /// had the names when it was asked first. It answers as if there were no others.
    Again {
        /// What was asked, encoded: a message that holds itself cannot be decoded without end.
        request: Vec<u8>,
        /// For each name whose file it changes, that file's number.
        seen: Vec<Option<u64>>,
    },
}

/// An unsolicited event, from an owner to a client. Its number is [`EVENT_NUMBER`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Event {
    /// Reclaim of frames that this client holds was requested: release them.
    ReclaimRequested {
        /// The file they belonged to, where the owner knows.
        file: Option<String>,
        /// First frame.
        first_pfn: u64,
        /// Frames, in 4 KiB pages.
        nr_pages: u64,
        /// Until when, in milliseconds from now; `None` if there is no hurry.
        deadline_ms: Option<u64>,
    },
    /// A lease of this client is asked back.
    LeaseRecalled {
        /// Which.
        lease: u64,
        /// First frame.
        first_pfn: u64,
        /// Frames, in 4 KiB pages.
        nr_pages: u64,
        /// Until when, in milliseconds from now; `None` if there is no hurry.
        deadline_ms: Option<u64>,
    },
    /// Memory that this client holds failed. Other pages of the file are well.
    MemoryFailure {
        /// The file it belonged to.
        file: Option<String>,
        /// The frame.
        pfn: u64,
    },
    /// The device that the pool lies on is gone. Nothing of it is mapped any more, and what was
    /// held is held for nothing, until it is back. Each client finds that out by itself.
    DeviceGone,
    /// A further backing is gone: it was taken out, or its device went away. Nothing of it is
    /// mapped any more. Each client that had it mapped finds that out by itself.
    BackingGone {
        /// Its name.
        backing: String,
        /// Its first frame.
        first_pfn: u64,
        /// Its frames, in 4 KiB pages.
        nr_pages: u64,
    },
}

/// The number of messages that answer nothing.
pub const EVENT_NUMBER: u64 = 0;

/// What an owner answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// To nothing: something happened.
    Event(Event),
    /// To Create.
    Created(Vec<Result<Draft, Refusal>>),
    /// To Commit.
    Committed(Vec<Result<Committed, Refusal>>),
    /// To Put, with the spare that was asked for if there is one.
    Put(Vec<PutAnswer>),
    /// To Truncate and Punch whose deadline passed: the file is cut, these hold what was cut off.
    Quarantined(Vec<ClientHold>),
    /// To Lease; the time is from now.
    Leased {
        /// One per extent.
        grants: Vec<LeaseGrant>,
        /// When it ends, in milliseconds from now.
        until_ms: Option<u64>,
    },
    /// To Abort, Rename, Truncate and Leave.
    Done,
    /// To Unlink and UnlinkUnlessHeld.
    Unlinked(Vec<Result<(), Refusal>>),
    /// To Locate: the file's index entry and name.
    Located {
        /// Number of the index entry.
        entry: u32,
        /// Its name.
        name: FileName,
    },
    /// To Stat.
    Stat(FileInfo),
    /// To List; shorter than [`MAX_LIST`] means that it is the last.
    List(Vec<FileInfo>),
    /// To PoolStat.
    PoolStat(PoolInfo),
    /// To Who; the flag says that there are more than fit.
    Who(Vec<ClientHold>, bool),
    /// To any of them.
    Refused(Refusal),
    /// To Trim.
    Trimmed {
        /// Bytes of memory that came back.
        freed_bytes: u64,
        /// Where to go on; `None` at the end.
        next: Option<u64>,
    },
    /// To Backings.
    Backings(Vec<BackingInfo>),
    /// To Quarantine; shorter than [`MAX_LIST`] means that it is the last.
    Quarantine(Vec<DeadClient>),
    /// To Subscribe.
    Subscribed {
        /// The owner's number for it.
        subscription: u64,
    },
    /// To Quotas.
    Quotas(Vec<QuotaInfo>, WaterMarks),
    /// To any that takes long: the owner is at work on it, and the answer comes later.
    Working,
}

impl Reply {
    /// This reply to a `call` that was made before, to an owner that was lost and may have done it.
    pub(crate) fn after_a_lost(self, call: &str) -> Self {
        let doubt = |refusal: Refusal| refusal.after_a_lost(call);
        match self {
            Self::Refused(refusal) => Self::Refused(doubt(refusal)),
            Self::Unlinked(each) => {
                Self::Unlinked(each.into_iter().map(|one| one.map_err(doubt)).collect())
            }
            Self::Committed(each) => {
                Self::Committed(each.into_iter().map(|one| one.map_err(doubt)).collect())
            }
            answer => answer,
        }
    }
}

/// A request or reply and the number that joins them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Numbered<T> {
    /// The number.
    pub number: u64,
    /// The message.
    pub body: T,
}

/// Most messages are not longer.
const USUAL_BYTES: usize = 1024;

/// Encodes a message.
///
/// # Errors
/// [`Refusal::TooMuch`] when it does not fit into [`MAX_MESSAGE_BYTES`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let bytes = postcard::to_extend(message, Vec::with_capacity(USUAL_BYTES))
        .map_err(|error| Error::Protocol { what: format!("nothing: {error}") })?;
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(Refusal::TooMuch {
            what: "message of a batch; split it".into(),
            value: bytes.len() as u64,
            limit: MAX_MESSAGE_BYTES as u64,
        }
        .into());
    }
    Ok(bytes)
}

/// Decodes a message, all of it.
///
/// # Errors
/// [`Error::Protocol`] when it is not one.
pub fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, Error> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => {
            Err(Error::Protocol { what: format!("a message with {} bytes too many", rest.len()) })
        }
        Err(error) => Err(Error::Protocol {
            what: format!("{} bytes that are no message ({error})", bytes.len()),
        }),
    }
}

/// Extents as they travel.
pub(crate) fn extents_to_words<W: FromIterator<[u64; 3]>>(extents: &[Extent]) -> W {
    extents.iter().map(|extent| extent.to_words()).collect()
}

/// Extents from a peer.
///
/// # Errors
/// [`Error::Protocol`] when one is none.
pub(crate) fn extents_from_words(words: &[[u64; 3]]) -> Result<SmallVec<[Extent; 1]>, Error> {
    words
        .iter()
        .map(|&words| {
            Extent::from_words(words)
                .ok_or_else(|| Error::Protocol { what: format!("extent {words:x?}") })
        })
        .collect()
}
