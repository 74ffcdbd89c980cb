//! What a run does: who is there, what each is asked to do, and what befalls them when.
//!
//! A plan is data, drawn from a seed, so that a failing one can be written down, shortened by
//! leaving parts out, and run again.

mod further;

use serde::{Deserialize, Serialize};

use crate::knobs::Knobs;

/// Most names in use; few, so that parties meet.
pub const MAX_NAMES: u8 = 6;
/// A thread's addresses: so many ranges of so many pages.
pub const NR_SLOTS: u8 = 3;
pub const SLOT_PAGES: u8 = 8;

/// How pages are held by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hold {
    Short,
    Write,
    Long,
    /// Only if that takes no lock.
    Fast,
    Device,
    /// By a device that caches the translations, and lets go when it is notified that they ended.
    Cached,
}

/// On which backing a file is to lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum On {
    #[default]
    Any,
    Data,
    /// On this further backing alone.
    Only(u8),
    /// On this one rather than on others.
    Prefer(u8),
}

/// What a client is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Creates, fills and commits a file of so many bytes.
    Put {
        name: u8,
        len: u32,
        replace: bool,
        #[serde(default)]
        on: On,
        /// In frames that were handed out ahead, if there are any.
        #[serde(default)]
        ahead: bool,
    },
    /// As `Put`, several at once, under every `stride`th name.
    PutMany {
        name: u8,
        files: u8,
        stride: u8,
        len: u32,
        replace: bool,
    },
    /// Takes several names away at once.
    UnlinkMany {
        name: u8,
        files: u8,
        /// Only those that nobody holds.
        #[serde(default)]
        unless_held: bool,
    },
    /// As `Put`, and a device writes it, which takes so many steps.
    PutByDevice {
        name: u8,
        pages: u8,
        steps: u32,
        #[serde(default)]
        on: On,
    },
    /// Creates files and gives them up.
    Draft {
        pages: u32,
        files: u8,
    },
    /// Reads a file, and holds it for so many steps.
    Get {
        name: u8,
        steps: u32,
    },
    /// As `Get`, long-term.
    Lease {
        name: u8,
        steps: u32,
    },
    /// Opens a file, and pins it so many steps later.
    Open {
        name: u8,
        steps: u32,
    },
    Unlink {
        name: u8,
    },
    Rename {
        name: u8,
        to: u8,
        replace: bool,
    },
    Truncate {
        name: u8,
        len: u32,
        deadline_ms: u32,
        quarantine: bool,
    },
    Punch {
        name: u8,
        page: u8,
        pages: u8,
        deadline_ms: u32,
        quarantine: bool,
    },
    /// As `Punch`, of any bytes.
    PunchBytes {
        name: u8,
        from: u32,
        to: u32,
        deadline_ms: u32,
        quarantine: bool,
    },
    /// The memory of a page of a file fails, or of a frame if there is no such page.
    Fail {
        name: u8,
        page: u8,
    },
    /// Somebody has it replaced.
    Heal {
        name: u8,
        page: u8,
    },
    /// Somebody has failed frames replaced that no file has.
    Repair,
    /// Calls off whatever cut of a file waits.
    CallOff {
        name: u8,
    },
    List,
    Who,
    Stat,
    Trim,
    Sleep {
        ms: u32,
    },
    /// Detaches and attaches again.
    Leave,
    /// A forked child has a copy of the client for so many steps.
    Fork {
        steps: u32,
    },
    /// Maps pages of a file, from `page` on, at page `at` of the thread's addresses.
    Map {
        name: u8,
        page: u8,
        at: u8,
        pages: u8,
        write: bool,
    },
    Unmap {
        at: u8,
        pages: u8,
    },
    /// Moves what one mapping has from a page on.
    Remap {
        at: u8,
        to: u8,
    },
    Protect {
        at: u8,
        pages: u8,
        write: bool,
    },
    /// Looks at all mapped files.
    Refresh,
    /// Copies what is mapped; where nothing is, a file is mapped first, mostly.
    ReadAt {
        name: u8,
        at: u8,
        pages: u8,
    },
    /// Holds what is mapped for so many steps, likewise.
    PinAt {
        name: u8,
        at: u8,
        pages: u8,
        how: Hold,
        steps: u32,
    },
    /// Adds a further backing to the pool.
    AddBacking {
        which: u8,
    },
    /// Takes one out.
    RemoveBacking {
        which: u8,
        deadline_ms: u32,
    },
    /// Looks at all backings.
    Backings,
    /// Limits what files with one of a few prefixes may take; to nothing where both are 0.
    SetQuota {
        which: u8,
        files: u8,
        pages: u16,
    },
    /// Looks at all quotas.
    Quotas,
    /// Has the owner evict in advance.
    SetMarks {
        low: u16,
        high: u16,
    },
    /// Drains a part of a backing, and has it used again after a while.
    DrainPart {
        which: u8,
        page: u8,
        pages: u8,
        deadline_ms: u32,
        rest_ms: u32,
    },
    /// Closes the pool.
    Close {
        deadline_ms: u32,
    },
    /// Looks at the dead clients whose devices may still write, and says of one that they do not,
    /// if that is so.
    Release {
        nth: u8,
    },
    /// Stores so many words of no meaning in its ledger. Only clients that keep no rules do.
    Scribble {
        words: u8,
    },
    /// Sends so many messages of no meaning. Only clients that keep no rules do.
    Babble {
        messages: u8,
    },
}

impl Op {
    /// Whether it takes pins.
    pub const fn takes_pins(self) -> bool {
        matches!(
            self,
            Self::Put { .. }
                | Self::PutByDevice { .. }
                | Self::PutMany { .. }
                | Self::Draft { .. }
                | Self::Get { .. }
                | Self::Lease { .. }
                | Self::Open { .. }
                | Self::Fail { .. }
                | Self::ReadAt { .. }
                | Self::PinAt { .. }
        )
    }

    /// Whether it is done at addresses.
    pub const fn is_by_address(self) -> bool {
        matches!(
            self,
            Self::Map { .. }
                | Self::Unmap { .. }
                | Self::Remap { .. }
                | Self::Protect { .. }
                | Self::Refresh
                | Self::ReadAt { .. }
                | Self::PinAt { .. }
        )
    }
}

/// What befalls a party.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    KillOwner,
    KillClient(u8),
    /// The owner is asked to stop.
    EndOwner,
    StopOwner {
        steps: u32,
    },
    StopClient {
        client: u8,
        steps: u32,
    },
    /// The file system is full for so many steps.
    FullDisk {
        steps: u32,
    },
    /// The file system fails for so many steps.
    BrokenDisk {
        steps: u32,
    },
    /// The owner may open no descriptor for so many steps.
    NoDescriptors {
        steps: u32,
    },
    LosePower,
    /// The owner is killed, and the medium of a further backing is away for so many steps.
    TakeMedium {
        which: u8,
        steps: u32,
    },
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub seed: u64,
    pub knobs: Knobs,
    pub pool_pages: u32,
    pub max_files: u32,
    /// Whether the pool lies in a directory, and so outlives its owner.
    pub is_kept: bool,
    /// Whether clients let go of what is to be reclaimed.
    #[serde(default)]
    pub is_polite: bool,
    /// Which client lives in the owner's process.
    #[serde(default)]
    pub embedded: Option<u8>,
    /// Whether somebody decides on long-term pins.
    #[serde(default)]
    pub has_holder: bool,
    /// Pages of each backing that may be added.
    #[serde(default)]
    pub backings: Vec<u16>,
    /// Whether clients promise that their devices keep the locks of their ledgers.
    #[serde(default)]
    pub keeps_lock: bool,
    /// Threads of each client.
    pub threads: u8,
    /// What each client does.
    pub scripts: Vec<Vec<Op>>,
    /// What happens at which step.
    pub fates: Vec<(u64, Fate)>,
}

impl Plan {
    /// Draws a plan of about `nr_steps` steps.
    pub fn draw(seed: u64, nr_steps: u64) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut knobs = Knobs::draw(&mut chance);
        let is_kept = chance.u32(0..8) != 0;
        let mut pool_pages =
            [24, 48, 96, 96, 256, 256, 1024, 1024, 1024, 3072][chance.usize(0..10)];
        if is_kept && chance.u32(0..4) == 0 {
            (knobs.is_disk, knobs.is_flushed) = (true, chance.bool());
            // Each flush looks at all of it.
            pool_pages = pool_pages.min(256);
        }
        let nr_clients = chance.usize(1..=4);
        let nr_ops = (nr_steps / 400).max(4) as usize;
        let keeps_no_rules = nr_clients > 1 && chance.u32(0..4) == 0;
        let mut scripts = vec![Vec::new(); nr_clients];
        let weights = Weights::draw(&mut chance);
        let names = chance.u8(1..=MAX_NAMES);
        // In part of the runs some of them work by address.
        let mappers: Vec<bool> = match chance.u32(0..5) < 2 {
            true => (0..nr_clients).map(|_| chance.bool()).collect(),
            false => vec![false; nr_clients],
        };
        for _ in 0..nr_ops {
            let script = chance.usize(0..nr_clients);
            let op = match script {
                0 if keeps_no_rules => draw_misdeed(&mut chance),
                script if mappers[script] && chance.u32(0..10) < 7 => {
                    draw_by_address(&mut chance, names)
                }
                _ => weights.op(&mut chance, names, pool_pages),
            };
            scripts[script].push(op);
        }
        let mut fates = Vec::new();
        let nr_fates = chance.usize(0..=8);
        let kinds: Vec<u8> = (0..9).filter(|_| chance.bool()).collect();
        for _ in 0..nr_fates {
            let at = chance.u64(0..nr_steps);
            if let Some(fate) = draw_fate(&mut chance, &kinds, nr_clients, nr_steps) {
                fates.push((at, fate));
            }
        }
        if chance.u32(0..4) == 0 {
            // What a dead client's devices may still write to its owner's successor must know.
            let at = chance.u64(nr_steps / 4..nr_steps);
            fates.push((at, Fate::KillClient(chance.u8(0..nr_clients as u8))));
            fates.push((at + chance.u64(0..nr_steps / 8), Fate::KillOwner));
        }
        let mut plan = Self {
            seed,
            knobs,
            pool_pages,
            max_files: [4, 16, 64][chance.usize(0..3)],
            is_kept,
            is_polite: chance.u32(0..3) == 0,
            embedded: (chance.u32(0..5) == 0).then(|| nr_clients as u8 - 1),
            has_holder: chance.u32(0..4) == 0,
            backings: Vec::new(),
            keeps_lock: false,
            threads: chance.u8(1..=2),
            scripts,
            fates,
        };
        plan.draw_further(nr_steps);
        plan.fates.sort_by_key(|&(at, _)| at);
        plan
    }
}

/// What a client does that keeps no rules: none of it may concern others.
fn draw_misdeed(chance: &mut fastrand::Rng) -> Op {
    match chance.u32(0..5) {
        0 => Op::Draft { pages: chance.u32(0..8), files: chance.u8(1..=4) },
        1 => Op::Babble { messages: chance.u8(1..=8) },
        2 => Op::Sleep { ms: chance.u32(0..400) },
        _ => Op::Scribble { words: chance.u8(..) },
    }
}

/// What a client does at addresses. It keeps to its first slots, so that it meets what it did.
fn draw_by_address(chance: &mut fastrand::Rng, names: u8) -> Op {
    let slot = |chance: &mut fastrand::Rng| {
        chance.u8(0..NR_SLOTS).min(chance.u8(0..NR_SLOTS)) * SLOT_PAGES
    };
    let inside = |chance: &mut fastrand::Rng| {
        let skip = if chance.bool() { 0 } else { chance.u8(0..SLOT_PAGES) };
        slot(chance) + skip
    };
    let pages = chance.u8(1..=SLOT_PAGES);
    let at = inside(chance);
    let name = chance.u8(0..names);
    let steps = if chance.u32(0..4) == 0 { 40_000 } else { 3_000 };
    let steps = chance.u32(0..steps);
    match chance.u32(0..24) {
        0..=5 => {
            let page = if chance.u32(0..3) == 0 { chance.u8(0..8) } else { 0 };
            Op::Map { name, page, at: slot(chance), pages, write: chance.bool() }
        }
        6 => Op::Unmap { at, pages },
        7 => Op::Remap { at, to: inside(chance) },
        8 => Op::Protect { at, pages, write: chance.bool() },
        9 => Op::Refresh,
        10..=15 => Op::ReadAt { name, at, pages },
        _ => {
            let hows = [
                Hold::Short,
                Hold::Short,
                Hold::Write,
                Hold::Long,
                Hold::Fast,
                Hold::Device,
                Hold::Cached,
                Hold::Cached,
            ];
            Op::PinAt { name, at, pages, how: hows[chance.usize(0..hows.len())], steps }
        }
    }
}

fn draw_fate(
    chance: &mut fastrand::Rng,
    kinds: &[u8],
    nr_clients: usize,
    nr_steps: u64,
) -> Option<Fate> {
    let kind = *kinds.get(chance.usize(0..kinds.len().max(1)))?;
    let client = chance.u8(0..nr_clients as u8);
    let steps = chance.u32(1..=(nr_steps / 4).max(2) as u32);
    Some(match kind {
        0 => Fate::KillOwner,
        1 => Fate::KillClient(client),
        2 => Fate::EndOwner,
        3 => Fate::StopOwner { steps },
        4 => Fate::StopClient { client, steps },
        5 => Fate::FullDisk { steps },
        6 => Fate::BrokenDisk { steps },
        7 => Fate::NoDescriptors { steps },
        _ => Fate::LosePower,
    })
}

/// A byte near the start, or the end, of a page.
fn draw_edge(chance: &mut fastrand::Rng) -> u32 {
    chance.u32(0..8) * 4096 + [0, 0, 0, 1, 4095][chance.usize(0..5)]
}

/// How often a run has each kind of operation.
struct Weights([u32; 24]);

impl Weights {
    fn draw(chance: &mut fastrand::Rng) -> Self {
        let most = [30, 15, 5, 30, 10, 10, 10, 4, 2, 4, 1, 4, 2, 6, 6, 2, 6, 4, 4, 4, 4, 2, 6, 3];
        let mut weights =
            most.map(|most| if chance.u32(0..3) == 0 { 0 } else { chance.u32(1..=most) });
        if chance.u32(0..4) != 0 {
            // Most memory does not fail.
            weights[19..22].fill(0);
        }
        // Without files nothing happens.
        weights[0] = weights[0].max(10);
        Self(weights)
    }

    fn op(&self, chance: &mut fastrand::Rng, names: u8, pool_pages: u32) -> Op {
        let mut at = chance.u32(0..self.0.iter().sum());
        let mut kind = 0;
        while at >= self.0[kind] {
            at -= self.0[kind];
            kind += 1;
        }
        let name = chance.u8(0..names);
        let pages = match chance.u32(0..12) {
            0 => 0,
            1 => (pool_pages / 2).min(600),
            // More than there is, now and then.
            5 if chance.u32(0..4) == 0 => pool_pages * chance.u32(1..=8) / 4,
            2..=4 => chance.u32(1..=16),
            _ => chance.u32(1..=3),
        };
        let len = pages * 4096 - if pages > 0 && chance.bool() { chance.u32(0..4096) } else { 0 };
        let (deadline_ms, quarantine) = ([0, 1, 30, 2_000][chance.usize(0..4)], chance.bool());
        // As long as it takes to restart an owner, now and then.
        let steps = if chance.u32(0..4) == 0 { 40_000 } else { 3_000 };
        let steps = chance.u32(0..steps);
        match kind {
            0 => Op::Put { name, len, replace: chance.bool(), on: On::Any, ahead: false },
            1 => Op::PutByDevice { name, pages: pages.clamp(1, 40) as u8, steps, on: On::Any },
            2 => Op::Draft { pages, files: chance.u8(1..=4) },
            3 => Op::Get { name, steps },
            4 => Op::Unlink { name },
            5 => Op::Truncate { name, len: len / 2, deadline_ms, quarantine },
            6 => {
                let page = chance.u8(0..8);
                Op::Punch { name, page, pages: chance.u8(1..=4), deadline_ms, quarantine }
            }
            7 => Op::List,
            8 => Op::Who,
            9 => Op::Stat,
            10 => Op::Trim,
            11 => Op::Sleep { ms: chance.u32(0..400) },
            12 => Op::Leave,
            13 => Op::Rename { name, to: chance.u8(0..names), replace: chance.bool() },
            14 => Op::Open { name, steps },
            15 => Op::Fork { steps },
            16 => Op::Lease { name, steps },
            17 => {
                let (from, to) = (draw_edge(chance), draw_edge(chance));
                Op::PunchBytes { name, from, to, deadline_ms, quarantine }
            }
            18 => Op::CallOff { name },
            19 => Op::Fail { name, page: chance.u8(0..6) },
            20 => Op::Heal { name, page: chance.u8(0..6) },
            21 => Op::Repair,
            22 => Op::PutMany {
                name,
                files: chance.u8(1..=4),
                stride: chance.u8(0..=1),
                len: len.min(40_000),
                replace: chance.bool(),
            },
            _ => Op::UnlinkMany { name, files: chance.u8(1..=4), unless_held: false },
        }
    }
}
