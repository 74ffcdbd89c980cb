//! Admission: who may pin what long-term. The policy, in this one place.
//!
//! Values in, a value out. The questions come in a fixed order, and the first that says no is the
//! answer: the folio, the pagemap's type, the file's or VMA's flags, the holder.
//!
//! | what | asked for | answer | errno |
//! |---|---|---|---|
//! | folio RAW | any | no: it is mapped, never pinned | `EFAULT` |
//! | folio not WRITABLE | write | no | `EFAULT` |
//! | folio LONGTERM_OK | any | yes: this was decided when it was published | |
//! | Private | any | no: a processor cannot touch it; bring it back first | `EFAULT` |
//! | Coherent | any | no: it moves to other memory first | `EBUSY` |
//! | P2pDma | any | no: it must stay removable | `EOPNOTSUPP` |
//! | FsDax, not LEASABLE | any | no: truncate would wait for ever | `EOPNOTSUPP` |
//! | FORBID_LONGTERM | any | no | `EOPNOTSUPP` |
//! | FORBID_DEVICE | a device's pin | no | `EOPNOTSUPP` |
//! | a holder, not asked yet | any | ask it | |
//! | a holder that denies | any | no | `EACCES` |
//! | a holder that leases | any | a lease until then | |
//! | FsDax, LEASABLE | any | a lease without an end, which may be recalled | |
//! | Generic | any | yes | |
//!
//! # Differs from Linux
//!
//! The kernel decides by the VMA alone (Linux 7.1: mm/gup.c, `check_vma_flags`: fsdax is
//! `EOPNOTSUPP`) and by the folio's kind of memory (`collect_longterm_unpinnable_folios`: coherent
//! memory is moved, or `EBUSY`). A file that can be leased, and a holder that can say no, are ours.

use core::fmt;

use crate::descriptor::FolioFlags;
use crate::error::errno;
use crate::flags::flag_set;
use crate::holder::{HolderAnswer, Requester};
use crate::ledger::Agent;
use crate::memory_type::MemoryType;
use crate::pfn::PfnRange;
use crate::prot::Access;

/// What a file or a VMA says about its pages.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct RangeFlags(u8);

flag_set!(RangeFlags);

impl RangeFlags {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// No long-term pins.
    pub const FORBID_LONGTERM: Self = Self(1);
    /// No long-term pins that a device writes through.
    pub const FORBID_DEVICE: Self = Self(1 << 1);
    /// Long-term pins may be had as leases.
    pub const LEASABLE: Self = Self(1 << 2);
    /// Mapped, never pinned.
    pub const RAW: Self = Self(1 << 3);
    /// Only read.
    pub const READ_ONLY: Self = Self(1 << 4);
}

impl fmt::Debug for RangeFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::FORBID_LONGTERM, "FORBID_LONGTERM"),
            (Self::FORBID_DEVICE, "FORBID_DEVICE"),
            (Self::LEASABLE, "LEASABLE"),
            (Self::RAW, "RAW"),
            (Self::READ_ONLY, "READ_ONLY"),
        ];
        f.debug_set()
            .entries(names.iter().filter(|(flag, _)| self.contains(*flag)).map(|(_, name)| name))
            .finish()
    }
}

/// What is known of a pagemap's holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HolderStance {
    /// There is none.
    Absent,
    /// There is one, and it has not been asked.
    NotAsked,
    /// It has answered this very request, or failed to.
    Answered(HolderAnswer),
}

/// A long-term pin that somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongtermRequest {
    /// The frames.
    pub run: PfnRange,
    /// Who wants it, and what for.
    pub who: Requester,
}

/// Where the frames lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ground {
    /// The pagemap's type.
    pub memory_type: MemoryType,
    /// What the descriptors of the frames say.
    pub folio: FolioFlags,
    /// What the file or VMA says.
    pub range: RangeFlags,
    /// What the pagemap's holder says.
    pub holder: HolderStance,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// The pin may be taken, and may last.
    Allow,
    /// Ask the holder, then come back with its answer.
    AskHolder,
    /// The pin may be had as a lease, until then if a time is given.
    Lease {
        /// The end, in milliseconds of the owner's clock.
        until_ms: Option<u64>,
    },
    /// No.
    Deny(Denied),
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DenyReason {
    /// The folio is RAW.
    Raw,
    /// The folio is not WRITABLE.
    ReadOnly,
    /// The type allows none.
    Type(MemoryType),
    /// The bytes must be moved to other memory first.
    MustMigrate(MemoryType),
    /// The file or VMA forbids it.
    Flag,
    /// The holder said no, or nothing in time.
    Holder,
}

/// A refusal, with what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The frames.
    pub run: PfnRange,
    /// Why.
    pub reason: DenyReason,
}

impl Denied {
    /// The Linux error number that says the same.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self.reason {
            DenyReason::Raw | DenyReason::ReadOnly => errno::EFAULT,
            DenyReason::MustMigrate(MemoryType::Private) => errno::EFAULT,
            DenyReason::MustMigrate(_) => errno::EBUSY,
            DenyReason::Type(_) | DenyReason::Flag => errno::EOPNOTSUPP,
            DenyReason::Holder => errno::EACCES,
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frames {} ", self.run)?;
        match self.reason {
            DenyReason::Raw => f.write_str("are raw: they are mapped, never pinned"),
            DenyReason::ReadOnly => f.write_str("may not be written"),
            DenyReason::Type(MemoryType::FsDax) => {
                f.write_str("belong to fsdax: long-term pin refused without a lease")
            }
            DenyReason::Type(memory_type) => {
                write!(f, "are {memory_type} memory: long-term pin refused")
            }
            DenyReason::MustMigrate(memory_type) => {
                write!(
                    f,
                    "are {memory_type} memory and must be moved before they are pinned long-term"
                )
            }
            DenyReason::Flag => f.write_str("are of a file or mapping that forbids long-term pins"),
            DenyReason::Holder => f.write_str(
                "may not be pinned long-term: their holder denies \
                                               it",
            ),
        }
    }
}

impl std::error::Error for Denied {}

/// Decides about one long-term pin.
pub fn admit(request: &LongtermRequest, ground: &Ground) -> Admission {
    let deny = |reason| Admission::Deny(Denied { run: request.run, reason });
    if let Some(reason) = refused_by_folio(request, ground) {
        return deny(reason);
    }
    if ground.folio.contains(FolioFlags::LONGTERM_OK) {
        return Admission::Allow;
    }
    let refused = refused_by_type(ground).or_else(|| refused_by_flag(request, ground));
    if let Some(reason) = refused {
        return deny(reason);
    }
    let is_leased = ground.memory_type == MemoryType::FsDax;
    match ground.holder {
        HolderStance::NotAsked => Admission::AskHolder,
        HolderStance::Answered(HolderAnswer::Deny) => deny(DenyReason::Holder),
        HolderStance::Answered(HolderAnswer::Lease(until_ms)) => {
            Admission::Lease { until_ms: Some(until_ms) }
        }
        HolderStance::Absent | HolderStance::Answered(HolderAnswer::Allow) if is_leased => {
            Admission::Lease { until_ms: None }
        }
        HolderStance::Absent | HolderStance::Answered(HolderAnswer::Allow) => Admission::Allow,
    }
}

fn refused_by_folio(request: &LongtermRequest, ground: &Ground) -> Option<DenyReason> {
    if ground.folio.contains(FolioFlags::RAW) || ground.range.contains(RangeFlags::RAW) {
        return Some(DenyReason::Raw);
    }
    let is_write = request.who.access == Access::Write;
    (is_write && !ground.folio.contains(FolioFlags::WRITABLE)).then_some(DenyReason::ReadOnly)
}

const fn refused_by_type(ground: &Ground) -> Option<DenyReason> {
    let memory_type = ground.memory_type;
    match memory_type {
        MemoryType::Generic => None,
        MemoryType::FsDax if ground.range.contains(RangeFlags::LEASABLE) => None,
        MemoryType::FsDax | MemoryType::P2pDma => Some(DenyReason::Type(memory_type)),
        MemoryType::Private | MemoryType::Coherent => Some(DenyReason::MustMigrate(memory_type)),
    }
}

fn refused_by_flag(request: &LongtermRequest, ground: &Ground) -> Option<DenyReason> {
    let is_forbidden = ground.range.contains(RangeFlags::FORBID_LONGTERM)
        || (request.who.agent == Agent::Device && ground.range.contains(RangeFlags::FORBID_DEVICE));
    is_forbidden.then_some(DenyReason::Flag)
}

/// The flags under which folios are published, so that the fast path needs no other look-up.
///
/// PEER for P2pDma, whatever else is said. LONGTERM_OK only where [`admit`] would answer Allow to
/// everybody: device-dax without a flag against it and without a holder that wants to be asked.
/// When a holder registers later, or a file's flags change, the owner publishes again.
#[must_use]
pub fn publish_flags(
    memory_type: MemoryType,
    range: RangeFlags,
    holder: HolderStance,
) -> FolioFlags {
    let mut flags = match memory_type {
        MemoryType::P2pDma => FolioFlags::PEER,
        _ => FolioFlags::NONE,
    };
    if !range.contains(RangeFlags::READ_ONLY) {
        flags = flags.with(FolioFlags::WRITABLE);
    }
    if range.contains(RangeFlags::RAW) {
        return flags.with(FolioFlags::RAW);
    }
    let is_forbidden =
        range.contains(RangeFlags::FORBID_LONGTERM) || range.contains(RangeFlags::FORBID_DEVICE);
    let needs_nobody = memory_type == MemoryType::Generic
        && !is_forbidden
        && matches!(holder, HolderStance::Absent);
    if needs_nobody { flags.with(FolioFlags::LONGTERM_OK) } else { flags }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::ClientId;
    use crate::error::errno::{EACCES, EBUSY, EFAULT, EOPNOTSUPP};

    const W: FolioFlags = FolioFlags::WRITABLE;
    const NONE: RangeFlags = RangeFlags::NONE;
    const LEASABLE: RangeFlags = RangeFlags::LEASABLE;

    fn request(access: Access, agent: Agent) -> LongtermRequest {
        let who = Requester { client: ClientId(1), access, agent };
        LongtermRequest { run: PfnRange::new(0, 8).unwrap(), who }
    }

    fn answer(ground: &Ground) -> Result<Admission, i32> {
        match admit(&request(Access::Write, Agent::Device), ground) {
            Admission::Deny(denied) => Err(denied.errno()),
            admission => Ok(admission),
        }
    }

    #[test]
    fn the_table_of_the_module_text() {
        use HolderStance::{Absent, Answered, NotAsked};
        use MemoryType::{Coherent, FsDax, Generic, P2pDma, Private};
        let lease = |until_ms| Ok(Admission::Lease { until_ms });
        let raw = W.with(FolioFlags::RAW).with(FolioFlags::LONGTERM_OK);
        for (memory_type, folio, range, holder, expected) in [
            (Generic, raw, NONE, Absent, Err(EFAULT)),
            (Generic, W, RangeFlags::RAW, Absent, Err(EFAULT)),
            (Generic, FolioFlags::LONGTERM_OK, NONE, Absent, Err(EFAULT)),
            (Generic, W.with(FolioFlags::LONGTERM_OK), NONE, NotAsked, Ok(Admission::Allow)),
            (Private, W, LEASABLE, Absent, Err(EFAULT)),
            (Coherent, W, LEASABLE, Absent, Err(EBUSY)),
            (P2pDma, W, LEASABLE, Answered(HolderAnswer::Allow), Err(EOPNOTSUPP)),
            (FsDax, W, NONE, Answered(HolderAnswer::Allow), Err(EOPNOTSUPP)),
            (Generic, W, RangeFlags::FORBID_LONGTERM, Absent, Err(EOPNOTSUPP)),
            (FsDax, W, LEASABLE.with(RangeFlags::FORBID_DEVICE), Absent, Err(EOPNOTSUPP)),
            (Generic, W, NONE, NotAsked, Ok(Admission::AskHolder)),
            (FsDax, W, LEASABLE, NotAsked, Ok(Admission::AskHolder)),
            (Generic, W, NONE, Answered(HolderAnswer::Deny), Err(EACCES)),
            (FsDax, W, LEASABLE, Answered(HolderAnswer::Deny), Err(EACCES)),
            (Generic, W, NONE, Answered(HolderAnswer::Lease(9)), lease(Some(9))),
            (FsDax, W, LEASABLE, Answered(HolderAnswer::Lease(9)), lease(Some(9))),
            (FsDax, W, LEASABLE, Answered(HolderAnswer::Allow), lease(None)),
            (FsDax, W, LEASABLE, Absent, lease(None)),
            (Generic, W, NONE, Answered(HolderAnswer::Allow), Ok(Admission::Allow)),
            (Generic, W, NONE, Absent, Ok(Admission::Allow)),
        ] {
            let ground = Ground { memory_type, folio, range, holder };
            assert_eq!(answer(&ground), expected, "{ground:?}");
        }
    }

    /// The fast path reads LONGTERM_OK and asks nobody, so the flag must never say more than
    /// `admit`.
    #[test]
    fn what_is_published_as_allowed_is_allowed_to_everybody() {
        let ranges: Vec<RangeFlags> = (0..32).map(RangeFlags).collect();
        let stances = [
            HolderStance::Absent,
            HolderStance::NotAsked,
            HolderStance::Answered(HolderAnswer::Allow),
            HolderStance::Answered(HolderAnswer::Deny),
        ];
        for memory_type in MemoryType::ALL {
            for (&range, holder) in ranges.iter().flat_map(|r| stances.map(|s| (r, s))) {
                let published = publish_flags(memory_type, range, holder);
                let is_peer = memory_type == MemoryType::P2pDma;
                assert_eq!(published.contains(FolioFlags::PEER), is_peer);
                if !published.contains(FolioFlags::LONGTERM_OK) {
                    continue;
                }
                assert_eq!(memory_type, MemoryType::Generic);
                let folio = published.without(FolioFlags::LONGTERM_OK);
                let ground = Ground { memory_type, folio, range, holder };
                for agent in [Agent::Cpu, Agent::Device] {
                    let admission = admit(&request(Access::Read, agent), &ground);
                    assert_eq!(admission, Admission::Allow, "{ground:?}");
                }
            }
        }
        let flags = publish_flags(MemoryType::Generic, NONE, HolderStance::Absent);
        assert!(flags.contains(FolioFlags::LONGTERM_OK.with(W)));
    }

    #[test]
    fn a_refusal_names_frames_and_reason() {
        let ground = Ground {
            memory_type: MemoryType::FsDax,
            folio: W,
            range: NONE,
            holder: HolderStance::Absent,
        };
        let Admission::Deny(denied) = admit(&request(Access::Read, Agent::Cpu), &ground) else {
            panic!("fsdax without a lease");
        };
        assert_eq!(
            denied.to_string(),
            "frames 0x0..0x8 belong to fsdax: long-term pin refused without a lease"
        );
    }
}
