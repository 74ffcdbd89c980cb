//! What an owner says no to, and why: the part of an error that travels.

use pgmap_mm::error::errno;
use serde::{Deserialize, Serialize};

/// How frames are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum HoldKind {
    /// A short-term pin.
    Short,
    /// Long-term pins.
    Longterm,
    /// A long-term pin that the owner granted and may ask back.
    Lease,
    /// A writer that has not committed.
    Writer,
    /// Unknown: the client relies on `membarrier`, which the owner may not use any more. Ends with
    /// the client.
    Unseen,
    /// Perhaps: the client's ledger was cut short, and cannot say.
    Unreadable,
}

impl HoldKind {
    /// As tools print it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Longterm => "long-term",
            Self::Lease => "lease",
            Self::Writer => "writer",
            Self::Unseen => "unseen",
            Self::Unreadable => "unreadable",
        }
    }
}

/// What is free on a backing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreeOn {
    /// Its name.
    pub backing: String,
    /// Bytes free.
    pub free_bytes: u64,
    /// The longest free run.
    pub longest_bytes: u64,
}

impl std::fmt::Display for FreeOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { backing, free_bytes, longest_bytes } = self;
        write!(f, "{free_bytes} free on \"{backing}\" (longest run {longest_bytes})")
    }
}

/// Who holds a file, or anything of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HolderList {
    /// The holders and what they hold.
    pub holders: Vec<ClientHold>,
    /// Whether there are more than are named.
    pub is_cut: bool,
}

/// Who holds which frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientHold {
    /// The owner's number for the client.
    pub client: u64,
    /// The client's process, as its owner's pid namespace numbers it; for people, never for
    /// deciding whether it lives.
    pub pid: i32,
    /// The process's user.
    pub uid: u32,
    /// The process's name when it attached.
    pub command: String,
    /// What the client calls itself.
    pub label: String,
    /// Whether it attached read-only.
    pub is_read_only: bool,
    /// How it holds.
    pub kind: HoldKind,
    /// Whether a device may be writing through the hold.
    pub is_device: bool,
    /// First frame held.
    pub first_pfn: u64,
    /// Frames held, in 4 KiB pages.
    pub nr_pages: u64,
    /// Pins this stands for.
    pub nr_pins: u32,
    /// What the client said the pin is for; 0 when it said nothing.
    pub tag: u64,
    /// The file, where the frames belong to one.
    pub file: Option<String>,
    /// Milliseconds since the owner first saw the hold; `None` if it just saw it first.
    pub seen_for_ms: Option<u64>,
}

impl std::fmt::Display for ClientHold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let device = if self.is_device { " device" } else { "" };
        let end = self.first_pfn.saturating_add(self.nr_pages);
        // Without a number the process lives where the owner cannot see it: it names itself.
        match self.pid {
            0 => write!(f, "{} (outside the owner's pid namespace)", self.label)?,
            pid => write!(f, "{} (pid {pid})", self.command)?,
        }
        write!(f, ": {}{device} pin of {:#x}..{end:#x}", self.kind.name(), self.first_pfn)
    }
}

/// Why an owner did not do what it was asked. Nothing was changed, except where
/// [`MayBeDone`](Self::MayBeDone) says that something may have been.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Not a name a pool can hold.
    #[error("file name \"{starts_with}\" ({len_bytes} bytes): {why}; use 1 to 255 bytes, no NUL")]
    BadName {
        /// How it starts.
        starts_with: String,
        /// Its length.
        len_bytes: u64,
        /// What is wrong.
        why: String,
    },
    /// No file has this name.
    #[error("no file \"{name}\" in the pool")]
    NotFound {
        /// The name.
        name: String,
    },
    /// A file has this name already.
    #[error("a file \"{name}\" exists; unlink it first, or create with replace")]
    Exists {
        /// The name.
        name: String,
    },
    /// The file was unlinked or replaced since it was opened.
    #[error("file {id} is gone: it was unlinked or replaced since it was opened")]
    Stale {
        /// Its number.
        id: u64,
    },
    /// A length that no file can have.
    #[error("length {len_bytes} of \"{name}\": {why}")]
    BadLength {
        /// The file.
        name: String,
        /// The length asked for.
        len_bytes: u64,
        /// What is wrong.
        why: String,
    },
    /// Not enough free frames, or only in too many pieces.
    #[error(
        "{wanted_bytes} bytes wanted, {free_bytes} free (longest run {longest_bytes}, waiting for \
         holders {draining_bytes}, evictable but held {evictable_held_bytes}); unlink files, or \
         ask who holds these"
    )]
    NoSpace {
        /// Bytes asked for, rounded up to whole folios.
        wanted_bytes: u64,
        /// Bytes free.
        free_bytes: u64,
        /// The longest free run.
        longest_bytes: u64,
        /// Bytes that will be free when their last holders let go.
        draining_bytes: u64,
        /// Bytes of files that could be evicted if nobody held them.
        evictable_held_bytes: u64,
    },
    /// The file system behind the pool has no memory for frames that were free.
    #[error("the pool's backing has no memory: {why}")]
    NoMemory {
        /// What the system said.
        why: String,
    },
    /// The index has no room.
    #[error("the pool holds as many files as its index has room for ({nr_slots}); make it larger")]
    IndexFull {
        /// Its slots.
        nr_slots: u64,
    },
    /// Somebody still holds the frames and the deadline is over.
    #[error(
        "\"{name}\" is still held after {waited_ms} ms by {}{}",
        holders.first().map_or_else(|| NO_HOLDER.to_owned(), ToString::to_string),
        match holders.len() { 0 | 1 => String::new(), n => format!(" and {} more", n - 1) }
    )]
    Held {
        /// What was to be taken out of use.
        name: String,
        /// Who holds it.
        holders: Vec<ClientHold>,
        /// How long the owner waited.
        waited_ms: u64,
    },
    /// Another operation on the file has not ended.
    #[error("\"{name}\" is being {doing}; try again when that has ended")]
    InUse {
        /// The file.
        name: String,
        /// What is being done to it.
        doing: String,
    },
    /// No such draft, or somebody else's.
    #[error(
        "there is no uncommitted file {id} of this client{}",
        if why.is_empty() { String::new() } else { format!(": {why}") }
    )]
    NoDraft {
        /// Its number.
        id: u64,
        /// Why not, where that is known.
        why: String,
    },
    /// Memory under the file failed.
    #[error("memory of \"{name}\" failed while it was written; create it again")]
    Poisoned {
        /// The file.
        name: String,
    },
    /// Policy says no to a long-term pin.
    #[error("{why}")]
    Denied {
        /// What was asked and why not.
        why: String,
        /// The Linux error number that says the same.
        errno: i32,
    },
    /// A message or batch beyond the wire's bounds.
    #[error("{what}: {value} is over the limit of {limit}")]
    TooMuch {
        /// What was too much.
        what: String,
        /// How much it was.
        value: u64,
        /// How much is allowed.
        limit: u64,
    },
    /// Something else is wrong with the request.
    #[error("{why}")]
    Invalid {
        /// What.
        why: String,
    },
    /// The owner itself failed; its log says more.
    #[error("the owner failed: {why}")]
    Internal {
        /// What it can say.
        why: String,
    },
    /// A truncate or punch was called off while it waited for holders; the file is as before.
    #[error("the change of \"{name}\" was called off; the file is as before")]
    CalledOff {
        /// The file.
        name: String,
    },
    /// The owner serves as many clients as it can.
    #[error(
        "the pool is full: {nr_clients} clients of at most {limit}, {nr_disconnected} of which \
         have no connection; end some of them, or start the owner with a higher limit of open \
         files"
    )]
    Full {
        /// Clients attached.
        nr_clients: u64,
        /// How many there may be.
        limit: u64,
        /// Those that closed their connection and keep their ledger.
        nr_disconnected: u64,
    },
    /// The backing that was meant, or that a file lies on, is not there.
    #[error("backing \"{backing}\": {why}")]
    NoBacking {
        /// Which.
        backing: String,
        /// What is wrong.
        why: String,
    },
    /// None of the backings that were allowed has the frames, or only in too many pieces.
    #[error(
        "{wanted_bytes} bytes wanted; {}; evictable but held {evictable_held_bytes}; unlink files \
         there, or allow another backing",
        tried.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    NoSpaceOn {
        /// Bytes asked for, rounded up to whole folios.
        wanted_bytes: u64,
        /// The backings that were tried, in order.
        tried: Vec<FreeOn>,
        /// Bytes of files there that could be evicted if nobody held them.
        evictable_held_bytes: u64,
    },
    /// It would take more than a quota allows.
    #[error(
        "the quota of {of} is {limit} {what}: {used} are used, and {wanted} more wanted (evictable \
         but held {evictable_held_bytes} bytes); {}",
        match what.as_str() {
            "clients" => "end some of them, or have the operator raise it (pgmap quota set)",
            _ => "remove some of its files, or have the operator raise it (pgmap quota set)",
        }
    )]
    OverQuota {
        /// Whose: `uid 1000`, or `prefix "kv/"`.
        of: String,
        /// Of what: `bytes`, `files` or `clients`.
        what: String,
        /// How many it allows.
        limit: u64,
        /// How many are used.
        used: u64,
        /// How many more were wanted.
        wanted: u64,
        /// Bytes of its files that could be evicted if nobody held them.
        evictable_held_bytes: u64,
    },
    /// The client attached read-only.
    #[error("{call}: this client attached read-only; attach another one that may write")]
    ReadOnlyClient {
        /// What it asked.
        call: String,
    },
    /// The owner that was asked first was lost before it answered, and may have done it; its
    /// successor did not, or the client could ask none. Said by the client, never by an owner.
    #[error(
        "the {call} may have been done: the owner that was asked first was lost before it \
         answered. Asked again: {refusal}"
    )]
    #[serde(skip)]
    MayBeDone {
        /// What was asked.
        call: String,
        /// Why it was not done when it was asked again.
        refusal: Box<Refusal>,
    },
}

/// What is kept of a name in a refusal that has to be short, in characters.
const SHORT_NAME_CHARS: usize = 32;

/// What is said of holders that let go before they could be named.
const NO_HOLDER: &str = "a client that has let go since";

impl Refusal {
    /// A name for programs, in snake case. It stays what it is.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::BadName { .. } => "bad_name",
            Self::NotFound { .. } => "not_found",
            Self::Exists { .. } => "exists",
            Self::Stale { .. } => "stale",
            Self::BadLength { .. } => "bad_length",
            Self::NoSpace { .. } => "no_space",
            Self::NoMemory { .. } => "no_memory",
            Self::IndexFull { .. } => "index_full",
            Self::Held { .. } => "held",
            Self::InUse { .. } => "in_use",
            Self::NoDraft { .. } => "no_draft",
            Self::Poisoned { .. } => "memory_failed",
            Self::Denied { .. } => "denied",
            Self::TooMuch { .. } => "too_much",
            Self::Invalid { .. } => "invalid",
            Self::Internal { .. } => "owner_failed",
            Self::CalledOff { .. } => "called_off",
            Self::Full { .. } => "pool_full",
            Self::MayBeDone { .. } => "may_be_done",
            Self::NoBacking { .. } => "no_backing",
            Self::NoSpaceOn { .. } => "no_space",
            Self::OverQuota { .. } => "over_quota",
            Self::ReadOnlyClient { .. } => "read_only_client",
        }
    }

    /// This refusal of a `call` that was made before, to an owner that may have done it.
    pub(crate) fn after_a_lost(self, call: &str) -> Self {
        Self::MayBeDone { call: call.to_owned(), refusal: Box::new(self) }
    }

    /// Cuts long names and reasons; false if there were none.
    pub(crate) fn shorten(&mut self) -> bool {
        let text = match self {
            Self::NotFound { name }
            | Self::Exists { name }
            | Self::BadLength { name, .. }
            | Self::Held { name, .. }
            | Self::InUse { name, .. }
            | Self::CalledOff { name }
            | Self::Poisoned { name } => name,
            Self::BadName { starts_with, .. } => starts_with,
            Self::OverQuota { of, .. } => of,
            Self::NoMemory { why }
            | Self::NoDraft { why, .. }
            | Self::Denied { why, .. }
            | Self::NoBacking { why, .. }
            | Self::Invalid { why }
            | Self::Internal { why } => why,
            _ => return false,
        };
        let mut ends = text.char_indices().skip(SHORT_NAME_CHARS);
        let (Some((end, _)), Some(_)) = (ends.next(), ends.nth(2)) else { return false };
        text.truncate(end);
        // Without the dots it would name another file.
        text.push_str("...");
        true
    }

    /// The Linux error number that says the same.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::BadName { .. } | Self::BadLength { .. } | Self::Invalid { .. } => errno::EINVAL,
            Self::NotFound { .. } | Self::NoDraft { .. } => 2,
            Self::Exists { .. } => 17,
            Self::Stale { .. } => errno::ESTALE,
            Self::NoSpace { .. } | Self::NoSpaceOn { .. } | Self::IndexFull { .. } => errno::ENOSPC,
            Self::NoBacking { .. } => 19,
            Self::NoMemory { .. } => errno::ENOMEM,
            Self::Held { .. } | Self::InUse { .. } => errno::EBUSY,
            Self::TooMuch { .. } => 7,
            Self::Denied { errno, .. } => *errno,
            Self::Poisoned { .. } => errno::EHWPOISON,
            Self::Internal { .. } => 5,
            Self::CalledOff { .. } => 125,
            Self::Full { .. } => 23,
            Self::OverQuota { .. } => 122,
            Self::ReadOnlyClient { .. } => 30,
            // That of the second answer would be taken for one to the first.
            Self::MayBeDone { .. } => errno::ESTALE,
        }
    }
}
