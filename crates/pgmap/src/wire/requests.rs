//! What each request is like: a table with a row for each.

use crate::name::FileName;
use crate::wire::Request;

/// A row: what messages call the request, and which of the following are true of it.
struct Row(&'static str, u8);

/// A client that attached read-only may ask it.
const FOR_READERS: u8 = 1 << 0;
/// Its answer may come later.
const MAY_WAIT: u8 = 1 << 1;
/// A pool that is closing refuses it: it would change what is in the way.
const NEEDS_OPEN: u8 = 1 << 2;
/// An owner that did it has changed what anybody else can see. Drafts and leases end with the owner
/// that gave them.
const CHANGES_POOL: u8 = 1 << 3;

impl Request {
    const fn row(&self) -> Row {
        match self {
            Self::Create(_) => Row("create", MAY_WAIT | NEEDS_OPEN),
            Self::Commit(_) => Row("commit", NEEDS_OPEN | CHANGES_POOL),
            Self::Put(_) => Row("put", NEEDS_OPEN | CHANGES_POOL),
            Self::Abort(_) => Row("abort", 0),
            Self::Unlink(_) => Row("unlink", NEEDS_OPEN | CHANGES_POOL),
            Self::UnlinkUnlessHeld(_) => Row("unlink unless held", NEEDS_OPEN | CHANGES_POOL),
            Self::Rename { .. } => Row("rename", NEEDS_OPEN | CHANGES_POOL),
            Self::Truncate { .. } => Row("truncate", MAY_WAIT | NEEDS_OPEN | CHANGES_POOL),
            Self::Punch { .. } => Row("punch", MAY_WAIT | NEEDS_OPEN | CHANGES_POOL),
            Self::Lease(spec) if spec.is_write => Row("lease", MAY_WAIT | NEEDS_OPEN),
            Self::Lease(_) => Row("lease", FOR_READERS | MAY_WAIT | NEEDS_OPEN),
            Self::ReleaseLeases(_) => Row("release of leases", FOR_READERS),
            Self::Locate(_) => Row("locate", FOR_READERS),
            Self::Stat(_) => Row("stat", FOR_READERS),
            Self::List(_) => Row("list", FOR_READERS),
            Self::MemoryFailure(_) => Row("report of failed memory", FOR_READERS | CHANGES_POOL),
            Self::ClearPoison { .. } => Row("clearing of poison", NEEDS_OPEN | CHANGES_POOL),
            Self::Reshape { .. } => Row("reshape", NEEDS_OPEN | CHANGES_POOL),
            Self::RepairFree => Row("repair of free frames", 0),
            Self::PoolStat => Row("stat of the pool", FOR_READERS),
            Self::Who(_) => Row("who", FOR_READERS),
            Self::Leave => Row("leave", FOR_READERS),
            Self::Forget(_) => Row("forget", FOR_READERS),
            Self::Wake => Row("wake", FOR_READERS),
            Self::CancelCut(_) => Row("cancel", CHANGES_POOL),
            Self::Trim { .. } => Row("trim", 0),
            Self::Backings => Row("list of backings", FOR_READERS),
            Self::AddBacking { .. } => Row("adding of a backing", NEEDS_OPEN | CHANGES_POOL),
            Self::Grow { .. } => Row("growing of the pool", NEEDS_OPEN | CHANGES_POOL),
            Self::RemoveBacking { .. } => {
                Row("removal of a backing", MAY_WAIT | NEEDS_OPEN | CHANGES_POOL)
            }
            Self::Subscribe { .. } => Row("subscription", FOR_READERS),
            Self::SetQuota { .. } => Row("setting of a quota", CHANGES_POOL),
            Self::RemoveQuota(_) => Row("removal of a quota", CHANGES_POOL),
            Self::SetWaterMarks(_) => Row("setting of water marks", CHANGES_POOL),
            Self::Quotas => Row("list of quotas", FOR_READERS),
            Self::Quarantine { .. } => Row("listing of the quarantine", FOR_READERS),
            Self::Close { .. } => Row("drain of the pool", MAY_WAIT),
            Self::DrainPart { .. } => {
                Row("drain of a part of the pool", MAY_WAIT | NEEDS_OPEN | CHANGES_POOL)
            }
            Self::UndoDrain { .. } => Row("undoing of a drain", NEEDS_OPEN | CHANGES_POOL),
            Self::Again { .. } => Row("call made again", MAY_WAIT | NEEDS_OPEN | CHANGES_POOL),
            Self::ReleaseQuarantine(_) => Row("release from quarantine", 0),
        }
    }

    const fn is(&self, what: u8) -> bool {
        self.row().1 & what != 0
    }

    /// Whether a client that attached read-only may ask it.
    pub(crate) const fn is_for_readers(&self) -> bool {
        self.is(FOR_READERS)
    }

    /// Whether its answer may come later.
    pub(crate) const fn may_wait(&self) -> bool {
        self.is(MAY_WAIT)
    }

    /// Whether a pool that is closing refuses it.
    pub(crate) const fn needs_open_pool(&self) -> bool {
        self.is(NEEDS_OPEN)
    }

    /// Whether an owner that did this has changed what anybody else can see.
    pub(crate) const fn changes_pool(&self) -> bool {
        self.is(CHANGES_POOL)
    }

    /// The names whose files it changes; `None` if it changes no file by its name.
    pub(crate) fn changed_names(&self) -> Option<&[FileName]> {
        match self {
            Self::Unlink(names) | Self::UnlinkUnlessHeld(names) => Some(names),
            Self::Rename { from: name, .. }
            | Self::Truncate { name, .. }
            | Self::Punch { name, .. }
            | Self::ClearPoison { name, .. }
            | Self::Reshape { name, .. } => Some(std::slice::from_ref(name)),
            _ => None,
        }
    }

    /// As messages call it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.row().0
    }
}
