//! What a request is like: whether it waits, what it changes, who may make it.

use crate::wire::Request;

impl Request {
    /// Whether a client that attached read-only may ask it.
    pub(crate) const fn is_for_readers(&self) -> bool {
        match self {
            Self::Lease(spec) => !spec.is_write,
            Self::ReleaseLeases(_)
            | Self::Locate(_)
            | Self::Stat(_)
            | Self::List(_)
            | Self::MemoryFailure(_)
            | Self::PoolStat
            | Self::Who(_)
            | Self::Leave
            | Self::Quarantine { .. }
            | Self::Forget(_)
            | Self::Backings
            | Self::Quotas
            | Self::Subscribe { .. } => true,
            _ => false,
        }
    }

    /// Whether its answer may come later.
    pub(crate) const fn may_wait(&self) -> bool {
        matches!(
            self,
            Self::Create(_)
                | Self::Truncate { .. }
                | Self::Punch { .. }
                | Self::Lease(_)
                | Self::RemoveBacking { .. }
                | Self::Close { .. }
                | Self::DrainPart { .. }
        )
    }

    /// Whether a pool that is closing refuses it: it would change what is in the way.
    pub(crate) const fn needs_open_pool(&self) -> bool {
        matches!(
            self,
            Self::Create(_)
                | Self::Commit(_)
                | Self::Unlink(_)
                | Self::UnlinkUnlessHeld(_)
                | Self::Rename { .. }
                | Self::Truncate { .. }
                | Self::Punch { .. }
                | Self::Lease(_)
                | Self::ClearPoison { .. }
                | Self::Reshape { .. }
                | Self::AddBacking { .. }
                | Self::Grow { .. }
                | Self::RemoveBacking { .. }
                | Self::DrainPart { .. }
                | Self::UndoDrain { .. }
        )
    }

    /// Whether an owner that did this has changed what anybody else can see. Drafts and leases end
    /// with the owner that gave them.
    pub(crate) const fn changes_pool(&self) -> bool {
        matches!(
            self,
            Self::Commit(_)
                | Self::Unlink(_)
                | Self::UnlinkUnlessHeld(_)
                | Self::Rename { .. }
                | Self::Truncate { .. }
                | Self::Punch { .. }
                | Self::MemoryFailure(_)
                | Self::ClearPoison { .. }
                | Self::Reshape { .. }
                | Self::CancelCut(_)
                | Self::AddBacking { .. }
                | Self::Grow { .. }
                | Self::RemoveBacking { .. }
                | Self::DrainPart { .. }
                | Self::UndoDrain { .. }
                | Self::SetQuota { .. }
                | Self::RemoveQuota(_)
                | Self::SetWaterMarks(_)
        )
    }

    /// As messages call it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Commit(_) => "commit",
            Self::Abort(_) => "abort",
            Self::Unlink(_) => "unlink",
            Self::UnlinkUnlessHeld(_) => "unlink unless held",
            Self::Rename { .. } => "rename",
            Self::Truncate { .. } => "truncate",
            Self::Punch { .. } => "punch",
            Self::Lease(_) => "lease",
            Self::ReleaseLeases(_) => "release of leases",
            Self::Locate(_) => "locate",
            Self::Stat(_) => "stat",
            Self::List(_) => "list",
            Self::MemoryFailure(_) => "report of failed memory",
            Self::ClearPoison { .. } => "clearing of poison",
            Self::Reshape { .. } => "reshape",
            Self::RepairFree => "repair of free frames",
            Self::PoolStat => "stat of the pool",
            Self::Who(_) => "who",
            Self::Leave => "leave",
            Self::Forget(_) => "forget",
            Self::CancelCut(_) => "cancel",
            Self::Trim { .. } => "trim",
            Self::Backings => "list of backings",
            Self::AddBacking { .. } => "adding of a backing",
            Self::Grow { .. } => "growing of the pool",
            Self::RemoveBacking { .. } => "removal of a backing",
            Self::Subscribe { .. } => "subscription",
            Self::SetQuota { .. } => "setting of a quota",
            Self::RemoveQuota(_) => "removal of a quota",
            Self::SetWaterMarks(_) => "setting of water marks",
            Self::Quotas => "list of quotas",
            Self::Quarantine { .. } => "listing of the quarantine",
            Self::Close { .. } => "drain of the pool",
            Self::DrainPart { .. } => "drain of a part of the pool",
            Self::UndoDrain { .. } => "undoing of a drain",
            Self::ReleaseQuarantine(_) => "release from quarantine",
        }
    }
}
