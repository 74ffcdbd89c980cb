//! What only part of the runs have: further backings, pools that are closed, devices that outlive
//! their clients, files that are evicted, quotas, frames handed out ahead.
//!
//! Drawn by itself, so that the rest of a run is as it was before this was there.

use super::{Fate, MAX_NAMES, On, Op, Plan};

/// Has the chances of this part differ from those of the rest.
const SALT: u64 = 0x6261_636b_696e_6773;

impl Plan {
    pub(super) fn draw_further(&mut self, nr_steps: u64) {
        let mut chance = fastrand::Rng::with_seed(self.seed ^ SALT);
        if self.is_kept && chance.u32(0..4) == 0 {
            self.draw_backings(&mut chance, nr_steps);
        }
        if chance.u32(0..5) == 0 {
            let nr = chance.usize(1..=4);
            (0..nr).for_each(|_| {
                let deadline_ms = [0, 1, 30, 600, 2_000][chance.usize(0..5)];
                self.insert(&mut chance, Op::Close { deadline_ms });
            });
        }
        if chance.u32(0..3) == 0 {
            self.knobs.is_attached = chance.bool();
            self.keeps_lock = chance.bool();
            for _ in 0..chance.usize(2..=8) {
                let nth = chance.u8(0..3);
                self.insert(&mut chance, Op::Release { nth });
            }
            self.draw_outlived(&mut chance, nr_steps);
        }
        if chance.u32(0..3) == 0 {
            self.knobs.evicts = true;
            if chance.bool() {
                self.pool_pages = self.pool_pages.min(48);
            }
        }
        if chance.u32(0..3) == 0 {
            self.draw_quotas(&mut chance);
        }
        if chance.u32(0..3) == 0 {
            self.draw_drains(&mut chance);
        }
        if chance.u32(0..3) == 0 {
            for _ in 0..chance.usize(2..=12) {
                let (name, files) = (chance.u8(0..MAX_NAMES), chance.u8(1..=4));
                self.insert(&mut chance, Op::UnlinkMany { name, files, unless_held: true });
            }
        }
        if chance.u32(0..3) == 0 {
            self.draw_ahead(&mut chance);
        }
    }

    /// Frames are handed out ahead for files of a few lengths.
    fn draw_ahead(&mut self, chance: &mut fastrand::Rng) {
        let lengths = [4096, chance.u32(1..40_000), 1 << 14];
        for op in self.scripts.iter_mut().flatten() {
            if let Op::Put { len, ahead, .. } = op
                && chance.u32(0..4) > 0
            {
                *len = lengths[chance.usize(0..3)];
                *ahead = true;
            }
        }
        for _ in 0..chance.usize(4..=24) {
            let (name, len) = (chance.u8(0..MAX_NAMES), lengths[chance.usize(0..3)]);
            let (replace, on) = (chance.u32(0..4) > 0, On::Any);
            self.insert(chance, Op::Put { name, len, replace, on, ahead: true });
        }
    }

    fn draw_drains(&mut self, chance: &mut fastrand::Rng) {
        for _ in 0..chance.usize(1..=8) {
            let (which, page) = (chance.u8(0..3), chance.u8(0..64));
            let pages = [1, 4, 16, 255][chance.usize(0..4)];
            let deadline_ms = [0, 1, 30, 2_000][chance.usize(0..4)];
            let rest_ms = [0, 1, 100][chance.usize(0..3)];
            self.insert(chance, Op::DrainPart { which, page, pages, deadline_ms, rest_ms });
        }
    }

    /// Somewhere in the script of a client that keeps the rules.
    fn insert(&mut self, chance: &mut fastrand::Rng, op: Op) {
        let is_hostile = |script: &[Op]| script.iter().any(|op| matches!(op, Op::Scribble { .. }));
        let place = chance.usize(0..self.scripts.len());
        let script = &mut self.scripts[place];
        if !is_hostile(script) {
            let at = chance.usize(0..=script.len());
            script.insert(at, op);
        }
    }

    /// Somebody sets and removes quotas, and water marks where files may be evicted.
    fn draw_quotas(&mut self, chance: &mut fastrand::Rng) {
        let prefixes = chance.u8(1..=4);
        for _ in 0..chance.usize(2..=10) {
            let which = chance.u8(0..prefixes);
            let op = match chance.u32(0..8) {
                0 => Op::SetQuota { which, files: 0, pages: 0 },
                1 => Op::Quotas,
                2 if self.knobs.evicts => {
                    let high = chance.u16(2..=(self.pool_pages.min(256) as u16));
                    Op::SetMarks { low: chance.u16(1..high), high }
                }
                _ => {
                    let files = [0, 1, 2, 3, 5][chance.usize(0..5)];
                    let pages = if files == 0 { chance.u16(1..40) } else { chance.u16(0..40) };
                    Op::SetQuota { which, files, pages }
                }
            };
            self.insert(chance, op);
        }
        // At first, too, so that there is one.
        let files = chance.u8(1..=3);
        self.insert_first(Op::SetQuota { which: 0, files, pages: 0 });
    }

    /// At the start of a script of a client that keeps the rules.
    fn insert_first(&mut self, op: Op) {
        let is_hostile = |script: &[Op]| script.iter().any(|op| matches!(op, Op::Scribble { .. }));
        if let Some(script) = self.scripts.iter_mut().find(|script| !is_hostile(script)) {
            script.insert(0, op);
        }
    }

    fn draw_backings(&mut self, chance: &mut fastrand::Rng, nr_steps: u64) {
        let nr = chance.u8(1..=3);
        self.backings = (0..nr).map(|_| [4, 16, 64, 256][chance.usize(0..4)]).collect();
        for op in self.scripts.iter_mut().flatten() {
            if let Op::Put { on, .. } | Op::PutByDevice { on, .. } = op {
                *on = match chance.u32(0..8) {
                    0 | 1 => On::Any,
                    2 => On::Data,
                    3 => On::Prefer(chance.u8(0..nr)),
                    _ => On::Only(chance.u8(0..nr)),
                };
            }
        }
        let nr_ops: usize = self.scripts.iter().map(Vec::len).sum();
        for _ in 0..(nr_ops / 6).max(3) {
            let which = chance.u8(0..nr);
            let deadline_ms = [0, 1, 30, 2_000][chance.usize(0..4)];
            let op = match chance.u32(0..8) {
                0..=3 => Op::AddBacking { which },
                4..=6 => Op::RemoveBacking { which, deadline_ms },
                _ => Op::Backings,
            };
            self.insert(chance, op);
        }
        // At first, too, so that there is one.
        for script in &mut self.scripts {
            if !script.iter().any(|op| matches!(op, Op::Scribble { .. })) {
                script.insert(0, Op::AddBacking { which: chance.u8(0..nr) });
            }
        }
        if chance.u32(0..3) == 0 {
            let steps = chance.u32(1..=(nr_steps / 3).max(2) as u32);
            let fate = Fate::TakeMedium { which: chance.u8(0..nr), steps };
            self.fates.push((chance.u64(0..nr_steps), fate));
        }
    }

    /// A client whose device writes is killed, while it does.
    fn draw_outlived(&mut self, chance: &mut fastrand::Rng, nr_steps: u64) {
        let client = chance.usize(0..self.scripts.len());
        let on = if self.backings.is_empty() { On::Any } else { On::Only(0) };
        let steps = chance.u32(1_000..40_000);
        let op = Op::PutByDevice { name: 0, pages: chance.u8(1..8), steps, on };
        if !self.scripts[client].iter().any(|op| matches!(op, Op::Scribble { .. })) {
            self.scripts[client].insert(0, op);
            let at = chance.u64(nr_steps / 20..nr_steps / 2);
            self.fates.push((at, Fate::KillClient(client as u8)));
        }
    }
}
