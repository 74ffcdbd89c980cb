//! What happens in a history, and how likely.

use pgmap::{Access, Agent, FileRules, FolioSize, LongtermRule, OnDeadline, Replace, Shape};
use proptest::prelude::*;
use proptest::sample::select;

use super::POOL_PAGES;

#[derive(Clone, Debug)]
pub enum Step {
    /// The host or the guest does something.
    Act(Who, Action),
    /// The guest dies with all that it holds, and another comes.
    KillGuest,
    /// The guest lets go of everything and leaves, and another comes.
    GuestLeaves,
    /// Both leave and the owner is started again on what it left.
    RestartOwner,
}

#[derive(Clone, Copy, Debug)]
pub enum Who {
    Host,
    Guest,
}

#[derive(Clone, Copy, Debug)]
pub enum Term {
    Short,
    ShortForDevice,
    Longterm,
    Lease(Agent, Access),
}

#[derive(Clone, Debug)]
pub enum Action {
    Create {
        name: u8,
        len: u64,
        size: FolioSize,
        rules: FileRules,
        replace: Replace,
    },
    Commit(u8),
    Abort(u8),
    Pin {
        name: u8,
        from: u64,
        len: u64,
        term: Term,
    },
    PinAll(u8),
    LetGo(u8),
    Truncate {
        name: u8,
        len: u64,
        on_deadline: OnDeadline,
    },
    Punch {
        name: u8,
        from_page: u64,
        nr_pages: u64,
        on_deadline: OnDeadline,
    },
    Reshape {
        name: u8,
        offset: u64,
        shape: Shape,
    },
    MemoryFailure(Place),
    ClearPoison {
        name: u8,
        place: u8,
    },
    RepairFree,
    Rename {
        from: u8,
        to: u8,
        replace: Replace,
    },
    Unlink(u8),
    /// Of a file with a failed page: what failed is nobody's then, unless somebody still holds it.
    UnlinkDamaged(u8),
}

/// Which frame fails.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    Frame(u64),
    PageOf {
        name: u8,
        page: u64,
    },
    /// One that the client holds.
    Pinned {
        pin: u8,
        frame: u8,
    },
}

pub fn rules() -> impl Strategy<Value = FileRules> {
    let longterm = select(vec![
        LongtermRule::AsType,
        LongtermRule::Leasable,
        LongtermRule::Forbid,
        LongtermRule::ForbidDevice,
    ]);
    let rarely = || prop::bool::weighted(0.1);
    (longterm, rarely(), rarely()).prop_map(|(longterm, is_raw, is_read_only)| FileRules {
        longterm,
        is_raw,
        is_read_only,
        ..FileRules::default()
    })
}

pub fn action() -> impl Strategy<Value = Action> {
    let name = || 0..5u8;
    let len = || {
        prop_oneof![
            4 => 0..60_000u64, 2 => 1..3_000_000u64, 1 => Just(2u64 << 20), 1 => Just(9_000_000),
            1 => Just(0u64),
        ]
    };
    let size = select(vec![FolioSize::BestFit, FolioSize::Pages4K, FolioSize::Pages2M]);
    let replace = || select(vec![Replace::No, Replace::Yes]);
    let on_deadline = || select(vec![OnDeadline::Fail, OnDeadline::Quarantine]);
    let agent = || select(vec![Agent::Cpu, Agent::Device]);
    let access = || select(vec![Access::Read, Access::Write]);
    let term = prop_oneof![
        Just(Term::Short),
        Just(Term::ShortForDevice),
        Just(Term::Longterm),
        (agent(), access()).prop_map(|(agent, access)| Term::Lease(agent, access)),
    ];
    let page = || prop_oneof![0..16u64, 0..700u64];
    let shape = select(vec![
        Shape::Split { to: 0 },
        Shape::Split { to: 1 },
        Shape::Merge { to: 1 },
        Shape::Merge { to: 1 },
    ]);
    let place = prop_oneof![
        1 => (0..POOL_PAGES + 8).prop_map(Place::Frame),
        3 => (name(), page()).prop_map(|(name, page)| Place::PageOf { name, page }),
        3 => any::<(u8, u8)>().prop_map(|(pin, frame)| Place::Pinned { pin, frame }),
    ];
    prop_oneof![
        6 => (name(), len(), size, rules(), replace()).prop_map(
            |(name, len, size, rules, replace)| Action::Create { name, len, size, rules, replace }),
        6 => any::<u8>().prop_map(Action::Commit),
        1 => any::<u8>().prop_map(Action::Abort),
        6 => (name(), prop_oneof![0..8_000u64, 0..60_000u64], 1..12_000u64, term)
            .prop_map(|(name, from, len, term)| Action::Pin { name, from, len, term }),
        2 => name().prop_map(Action::PinAll),
        4 => any::<u8>().prop_map(Action::LetGo),
        3 => (name(), len(), on_deadline())
            .prop_map(|(name, len, on_deadline)| Action::Truncate { name, len, on_deadline }),
        3 => (name(), page(), page(), on_deadline()).prop_map(
            |(name, from_page, nr_pages, on_deadline)|
                Action::Punch { name, from_page, nr_pages, on_deadline }),
        4 => (name(), 0..3_000_000u64, shape)
            .prop_map(|(name, offset, shape)| Action::Reshape { name, offset, shape }),
        3 => place.prop_map(Action::MemoryFailure),
        2 => (name(), any::<u8>()).prop_map(|(name, place)| Action::ClearPoison { name, place }),
        4 => Just(Action::RepairFree),
        2 => (name(), name(), replace())
            .prop_map(|(from, to, replace)| Action::Rename { from, to, replace }),
        2 => name().prop_map(Action::Unlink),
        3 => any::<u8>().prop_map(Action::UnlinkDamaged),
    ]
}

/// Steps that chance alone brings together too rarely: a file is held, memory under the hold fails,
/// the file goes, and what is free is repaired.
fn failure_under_a_pin() -> impl Strategy<Value = Vec<Step>> {
    let who = select(vec![Who::Host, Who::Guest]);
    (who, 0..5u8, 1..60_000u64, any::<(u8, u8, u8)>()).prop_map(|(who, name, len, chance)| {
        let (rules, replace) = (FileRules::default(), Replace::Yes);
        let (pin, frame, damaged) = chance;
        let size = FolioSize::BestFit;
        [
            Action::Create { name, len, size, rules, replace },
            Action::Commit(damaged),
            Action::PinAll(name),
            Action::MemoryFailure(Place::Pinned { pin, frame }),
            Action::UnlinkDamaged(damaged),
            Action::RepairFree,
        ]
        .map(|action| Step::Act(who, action))
        .into()
    })
}

/// A history.
pub fn history() -> impl Strategy<Value = Vec<Step>> {
    let part = prop_oneof![
        30 => step().prop_map(|step| vec![step]),
        1 => failure_under_a_pin(),
    ];
    prop::collection::vec(part, 1..50).prop_map(|parts| parts.concat())
}

pub fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => (select(vec![Who::Host, Who::Guest]), action())
            .prop_map(|(who, action)| Step::Act(who, action)),
        1 => Just(Step::KillGuest),
        1 => Just(Step::GuestLeaves),
        1 => Just(Step::RestartOwner),
    ]
}
