//! Who may hold frames, and what is held for certain.

use std::collections::BTreeMap;

use crate::episode::{Episode, episode};
use crate::machine::Pid;
use crate::model::{Cut, PAGE};
use crate::plan::Op;

/// Who may hold frames.
#[derive(Default)]
pub struct Holders {
    /// How often now, and when it did last.
    of: BTreeMap<Pid, (u32, u64)>,
    /// Pins that are known.
    pub pins: BTreeMap<u64, Pin>,
    next_pin: u64,
    /// Cuts under way that end although somebody holds what they take, and when one last ended.
    nr_quarantines: u32,
    quarantined_at: u64,
    /// Whether frames may be held by somebody who was killed.
    pub was_killed: bool,
}

/// What was pinned at a step or later.
pub struct Pinned {
    pub from: u64,
    pub frames: Vec<u64>,
    /// Of which version, and which of its pages, where that is known.
    pub version: Option<(u64, Vec<u64>)>,
}

/// A pin that is known.
pub struct Pin {
    pub pid: Pid,
    pub since: u64,
    pub frames: Vec<u64>,
    version: Option<(u64, Vec<u64>)>,
}

/// Frames that may be held.
pub struct Holding {
    pid: Pid,
    pin: Option<u64>,
}

impl Holding {
    /// The pin is about to end.
    pub fn forget_pin(&mut self) {
        if let Some(pin) = self.pin.take() {
            episode().holders.borrow_mut().pins.remove(&pin);
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.forget_pin();
        let episode = episode();
        let mut holders = episode.holders.borrow_mut();
        let of = holders.of.entry(self.pid).or_default();
        *of = (of.0 - 1, episode.machine.steps());
    }
}

impl Episode {
    /// The calling party may hold frames from now on; those of a pin for certain.
    pub fn hold(&self, pinned: Option<Pinned>) -> Holding {
        let pid = self.machine.running();
        let mut holders = self.holders.borrow_mut();
        holders.of.entry(pid).or_default().0 += 1;
        let pin = pinned.map(|Pinned { from, frames, version }| {
            let is_certain = holders.nr_quarantines == 0 && holders.quarantined_at < from;
            holders.next_pin += 1;
            let next = holders.next_pin;
            let (since, version) = (self.machine.steps(), version.filter(|_| is_certain));
            holders.pins.insert(next, Pin { pid, since, frames, version });
            next
        });
        Holding { pid, pin }
    }

    /// Whether a process may have held frames at `from` or later. A restarted owner knows no number
    /// of one that has not connected again.
    pub fn may_hold(&self, pid: Pid, from: u64) -> bool {
        let holders = self.holders.borrow();
        let mut of = holders.of.iter().filter(|&(&of, _)| pid == 0 || of == pid);
        // That somebody was killed the owner hears later.
        let is_known =
            of.any(|(&of, &(nr, last))| nr > 0 || last >= from || !self.machine.is_alive(of));
        // Who keeps no rules says it holds whatever it likes; so does the owner of whom it cannot
        // see.
        is_known || self.has_hostile() || self.plan.knobs.no_membarrier > 0
    }

    pub fn has_hostile(&self) -> bool {
        self.plan.scripts.iter().flatten().any(|op| matches!(op, Op::Scribble { .. }))
    }

    /// Whether only the calling party is at work, and nobody holds anything.
    pub fn is_quiet(&self) -> bool {
        let holders = self.holders.borrow();
        // The caller's own operation may take pins.
        let nr_holders: u32 = holders.of.values().map(|of| of.0).sum();
        self.nr_ops.get() == 1
            && holders.pins.is_empty()
            && nr_holders <= 1
            && !holders.was_killed
            && !self.has_hostile()
            && self.plan.knobs.no_membarrier == 0
            && !self.books.borrow().is_anybody_at_work(self.nr_owners.get())
    }

    /// A cut begins that ends although somebody holds what it takes: its holders hold no part of
    /// a file from then on. Which pins those are is known only of pins that were taken at another
    /// time.
    pub fn begin_quarantine(&self) {
        let mut holders = self.holders.borrow_mut();
        holders.nr_quarantines += 1;
        holders.pins.values_mut().for_each(|pin| pin.version = None);
    }

    /// It ended, and will do nothing more.
    pub fn end_quarantine(&self) {
        let mut holders = self.holders.borrow_mut();
        holders.nr_quarantines -= 1;
        holders.quarantined_at = self.machine.steps();
    }

    /// A cut that began at `from` is over, and nobody held what was cut off: then nobody does.
    pub fn check_cut_off(&self, name: &str, cut: Cut, from: u64) {
        let Some(met) = self.model.borrow().met(name, from) else { return };
        let gone = match cut {
            Cut::Shorten(len) => len.div_ceil(PAGE)..u64::MAX,
            Cut::Punch(from, to) => from / PAGE..to.div_ceil(PAGE),
            Cut::Heal(_) => return,
        };
        for pin in self.holders.borrow().pins.values() {
            let Some((number, pages)) = &pin.version else { continue };
            let has = pages.iter().any(|page| gone.contains(page));
            if *number == met && pin.since < from && has {
                let (pid, since) = (pin.pid, pin.since);
                self.fail(format!("{cut:?} of {name:?} is over, and {pid} holds it since {since}"));
            }
        }
    }

    /// The versions of which something was held at `from` or before, and is.
    pub fn held_before(&self, from: u64) -> Vec<u64> {
        let holders = self.holders.borrow();
        let known = holders.pins.values().filter(|pin| pin.since < from);
        let versions = known.filter_map(|pin| pin.version.as_ref());
        versions.filter(|(_, pages)| !pages.is_empty()).map(|(number, _)| *number).collect()
    }

    /// A name was taken away, which began at `from`, on the condition that nobody held the file.
    pub fn check_was_unheld(&self, name: &str, from: u64) {
        let now = self.machine.steps();
        let there: Vec<u64> = self.model.borrow().numbers(name, from, now).collect();
        if let [number] = there[..]
            && self.held_before(from).contains(&number)
        {
            self.fail(format!("{name:?} was taken away although version {number} was held"));
        }
    }
}
