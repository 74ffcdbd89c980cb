//! What must be there exactly, wherever only one party was at work on a name.
//!
//! The [model](crate::model) bears with everything that goes on at the same time, and so says
//! little of any one answer. These books say what it must be: of a name on which nobody else worked
//! meanwhile, and whose last change was answered. What is not known so is learned again from the
//! owner.

use std::collections::BTreeMap;
use std::ops::Range;

use pgmap::{Error, FileInfo};

use crate::model::{Cut, PAGE};

/// What a name stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    #[default]
    Unknown,
    Absent,
    /// So many bytes, and whether each page has memory.
    File(u64, Vec<bool>),
}

impl Shape {
    /// A file without holes.
    pub fn whole(len: u64) -> Self {
        Self::File(len, vec![true; len.div_ceil(PAGE) as usize])
    }

    /// Whether it is a file of some bytes and no holes.
    pub fn is_whole(&self) -> bool {
        matches!(self, Self::File(1.., pages) if pages.iter().all(|&is_there| is_there))
    }

    fn allocated(&self) -> u64 {
        match self {
            Self::File(_, pages) => {
                pages.iter().filter(|&&is_there| is_there).count() as u64 * PAGE
            }
            Self::Unknown | Self::Absent => 0,
        }
    }

    /// As [`kind_of`] says it, what a cut of it is refused with.
    pub fn refusal_of_cut(&self, cut: Cut) -> &'static str {
        let Self::File(len, _) = *self else { return self.refusal_of_use() };
        let is_good = match cut {
            Cut::Shorten(shorter) => shorter <= len,
            Cut::Punch(from, to) => {
                let is_whole = from % PAGE == 0 && (to % PAGE == 0 || to == len);
                from < to && to <= len && is_whole
            }
            Cut::Heal(page) => page < len.div_ceil(PAGE),
        };
        if is_good { "" } else { "bad_length" }
    }

    /// What whoever wants the file is refused with.
    pub const fn refusal_of_use(&self) -> &'static str {
        match self {
            Self::Absent => "not_found",
            Self::Unknown => UNKNOWN,
            Self::File(..) => "",
        }
    }

    /// What whoever wants the name is refused with.
    pub const fn refusal_of_name(&self, replaces: bool) -> &'static str {
        match self {
            Self::Unknown => UNKNOWN,
            Self::File(..) if !replaces => "exists",
            Self::File(..) | Self::Absent => "",
        }
    }

    /// What a cut leaves.
    pub fn after(&self, cut: Cut) -> Self {
        let Self::File(len, mut pages) = self.clone() else { return self.clone() };
        match cut {
            Cut::Shorten(len) => {
                pages.truncate(len.div_ceil(PAGE) as usize);
                Self::File(len, pages)
            }
            Cut::Punch(from, to) => {
                let gone = (from / PAGE) as usize..to.div_ceil(PAGE) as usize;
                pages.iter_mut().enumerate().for_each(|(at, page)| *page &= !gone.contains(&at));
                Self::File(len, pages)
            }
            Cut::Heal(_) => Self::File(len, pages),
        }
    }
}

/// What the books do not know.
pub const UNKNOWN: &str = "?";

/// The part of an error that the names it concerns decide; nothing of what the surroundings do.
fn kind_of<T>(result: &Result<T, Error>) -> Option<&'static str> {
    match result {
        Ok(_) => Some(""),
        Err(error) => {
            let kinds = ["not_found", "exists", "bad_length", "in_use", "stale"];
            kinds.into_iter().find(|&kind| error.kind() == kind)
        }
    }
}

#[derive(Debug, Default)]
struct Entry {
    shape: Shape,
    /// Operations under way.
    nr_under_way: u32,
    nr_begun: u64,
    /// The owner that may still do what was asked of it, and whose answer nobody had.
    unanswered_by: u32,
    /// Until which step somebody changed it, cut it, called a cut off.
    busy_until: u64,
    /// When the last of those that have ended was answered.
    answered_until: u64,
    nr_cuts: u32,
    cut_until: u64,
    called_off_until: u64,
}

/// An operation on names. One that is not ended was killed.
#[derive(Debug)]
pub struct Turn {
    names: Vec<(String, u64)>,
    /// Whether nobody else was at work on them when it began.
    was_alone: bool,
    /// How often somebody had asked to have the pool closed.
    nr_closes: u64,
    owner: u32,
    is_change: bool,
    is_ended: bool,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_ended {
            let episode = crate::episode::episode();
            episode.books.borrow_mut().end_turn(self, None, episode.nr_owners.get());
        }
    }
}

/// Who asked to have the pool closed, or a part of it drained.
#[derive(Debug, Default)]
struct Closes {
    nr_under_way: u32,
    nr_begun: u64,
    /// Until which step it may have been closing, or a part have been drained.
    until: u64,
    /// Whether the owner did, or may still do it for somebody who is gone.
    is_unanswered: bool,
    /// How often somebody asked to have what is drained used again.
    nr_undos: u64,
    /// How many of those have their answers; a client that was killed has none.
    nr_undos_answered: u64,
}

/// All names.
#[derive(Debug, Default)]
pub struct Books {
    entries: BTreeMap<String, Entry>,
    closes: Closes,
    /// The frames of each part that was drained, and the step at which it was in use again, or
    /// never so.
    part_drains: Vec<(Range<u64>, u64)>,
    /// Whether owners evict: then what is known of a file may be over at any time.
    evicts: bool,
}

impl Books {
    /// Says whether owners evict.
    pub const fn allow_evictions(&mut self, evicts: bool) {
        self.evicts = evicts;
    }

    /// Somebody begins to change what is under these names.
    pub fn begin(&mut self, names: &[&str], owner: u32) -> Turn {
        let mut names: Vec<&str> = names.to_vec();
        names.dedup();
        let mut turn = Turn {
            names: Vec::new(),
            was_alone: !self.is_closing(),
            nr_closes: self.closes.nr_begun,
            owner,
            is_change: true,
            is_ended: false,
        };
        for name in names {
            let entry = self.entries.entry(name.to_owned()).or_default();
            turn.was_alone &= entry.nr_under_way == 0 && entry.unanswered_by != owner;
            entry.nr_under_way += 1;
            entry.nr_begun += 1;
            entry.busy_until = u64::MAX;
            turn.names.push((name.to_owned(), entry.nr_begun));
        }
        turn
    }

    /// Somebody begins to look at a name.
    pub fn look(&mut self, name: &str, owner: u32) -> Turn {
        let is_closing = self.is_closing();
        let nr_closes = self.closes.nr_begun;
        let entry = self.entries.entry(name.to_owned()).or_default();
        let was_alone = !is_closing && entry.nr_under_way == 0 && entry.unanswered_by != owner;
        let names = vec![(name.to_owned(), entry.nr_begun)];
        Turn { names, was_alone, nr_closes, owner, is_change: false, is_ended: false }
    }

    /// Whether nobody else was at work on its names from its begin until now.
    pub fn is_exact(&self, turn: &Turn, owner: u32) -> bool {
        let is_same = |(name, begun): &(String, u64)| {
            self.entries.get(name).is_some_and(|entry| entry.nr_begun == *begun)
        };
        let is_open = turn.nr_closes == self.closes.nr_begun;
        turn.was_alone && is_open && turn.owner == owner && turn.names.iter().all(is_same)
    }

    /// Somebody asks for a part to be drained. Returns the drain's number.
    pub fn begin_part_drain(&mut self, frames: Range<u64>) -> usize {
        self.part_drains.push((frames, u64::MAX));
        self.part_drains.len() - 1
    }

    /// That was refused, or is undone.
    pub fn end_part_drain(&mut self, number: usize, step: u64) {
        self.part_drains[number].1 = step;
    }

    /// Whether a part without some of these frames may have been drained since a step: that shuts
    /// the whole extent, and is about other frames.
    pub fn may_drain_others(&self, frames: &[u64], from: u64) -> bool {
        let is_beside = |part: &Range<u64>| !frames.iter().all(|frame| part.contains(frame));
        self.part_drains.iter().any(|(part, until)| *until >= from && is_beside(part))
    }

    /// Somebody asks to have what is drained used again.
    pub const fn begin_undo(&mut self) {
        self.closes.nr_undos += 1;
    }

    /// Somebody had an answer to that.
    pub const fn end_undo(&mut self) {
        self.closes.nr_undos_answered += 1;
    }

    /// How often somebody asked for that, and had an answer.
    pub const fn nr_undos_answered(&self) -> u64 {
        self.closes.nr_undos_answered
    }

    /// How often somebody asked for that.
    pub const fn nr_undos(&self) -> u64 {
        self.closes.nr_undos
    }

    /// Somebody asks to have the pool closed.
    pub fn begin_close(&mut self) {
        self.closes.nr_under_way += 1;
        self.closes.nr_begun += 1;
        self.closes.until = u64::MAX;
    }

    /// It was refused at a step, or was done, or nobody knows.
    pub fn end_close(&mut self, refused_at: Option<u64>) {
        self.closes.nr_under_way -= 1;
        self.closes.is_unanswered |= refused_at.is_none();
        if let (0, false, Some(step)) =
            (self.closes.nr_under_way, self.closes.is_unanswered, refused_at)
        {
            self.closes.until = step;
        }
    }

    /// Another owner has opened the pool, and serves.
    pub fn new_owner(&mut self, step: u64) {
        if std::mem::take(&mut self.closes.is_unanswered) && self.closes.nr_under_way == 0 {
            self.closes.until = step;
        }
    }

    const fn is_closing(&self) -> bool {
        self.closes.nr_under_way > 0 || self.closes.is_unanswered
    }

    /// Whether the pool may have been closing at `from` or later.
    pub const fn may_close(&self, from: u64) -> bool {
        self.closes.until >= from
    }

    /// Whether somebody else than the caller may have asked for that, or did it already.
    pub const fn has_other_close(&self, from: u64) -> bool {
        self.closes.nr_begun > 1 || self.closes.until < from
    }

    fn end_turn(&mut self, turn: &mut Turn, answered_at: Option<u64>, owner: u32) {
        turn.is_ended = true;
        if !turn.is_change {
            return;
        }
        let is_known = answered_at.is_some() && self.is_exact(turn, owner);
        for (name, _) in &turn.names {
            let Some(entry) = self.entries.get_mut(name) else { continue };
            entry.nr_under_way -= 1;
            if !is_known {
                entry.shape = Shape::Unknown;
            }
            match answered_at {
                Some(step) => entry.answered_until = entry.answered_until.max(step),
                None => entry.unanswered_by = owner,
            }
            if answered_at.is_some() && entry.nr_under_way == 0 && entry.unanswered_by != owner {
                entry.busy_until = entry.answered_until;
            }
        }
    }

    /// Ends an operation, which was answered at a step or not at all.
    pub fn end(&mut self, mut turn: Turn, answered_at: Option<u64>, owner: u32) {
        self.end_turn(&mut turn, answered_at, owner);
    }

    /// What a name stands for.
    pub fn shape(&self, name: &str) -> Shape {
        self.entries.get(name).map_or(Shape::Unknown, |entry| entry.shape.clone())
    }

    /// From now on a name stands for this.
    pub fn set(&mut self, name: &str, shape: Shape) {
        let is_fickle = self.evicts && matches!(shape, Shape::File(..));
        let shape = if is_fickle { Shape::Unknown } else { shape };
        self.entries.entry(name.to_owned()).or_default().shape = shape;
    }

    /// Nothing is known any more.
    pub fn forget(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.shape = Shape::Unknown);
    }

    /// A cut begins, or one is called off.
    pub fn begin_cut(&mut self, name: &str) {
        let entry = self.entries.entry(name.to_owned()).or_default();
        entry.nr_cuts += 1;
        entry.cut_until = u64::MAX;
    }

    /// A cut ended; or nobody knows when it will.
    pub fn end_cut(&mut self, name: &str, answered_at: Option<u64>) {
        let entry = self.entries.entry(name.to_owned()).or_default();
        entry.nr_cuts -= 1;
        if let (0, Some(step)) = (entry.nr_cuts, answered_at) {
            entry.cut_until = step;
        }
    }

    /// Somebody calls cuts of a name off until `step`.
    pub fn call_off(&mut self, name: &str, step: u64) {
        self.entries.entry(name.to_owned()).or_default().called_off_until = step;
    }

    /// Whether a cut of the name may have gone on at `from` or later.
    pub fn may_be_cut(&self, name: &str, from: u64) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.cut_until >= from)
    }

    /// Whether anything was ever cut.
    pub fn was_any_cut(&self) -> bool {
        self.entries.values().any(|entry| entry.cut_until > 0)
    }

    /// Whether cuts of the name may have been called off at `from` or later.
    pub fn may_be_called_off(&self, name: &str, from: u64) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.called_off_until >= from)
    }

    /// Whether nobody changed the name at `from` or later.
    pub fn is_alone_since(&self, name: &str, from: u64) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.busy_until < from)
    }

    /// Whether somebody may be at work on a name, or the owner for somebody who is gone.
    pub fn is_anybody_at_work(&self, owner: u32) -> bool {
        self.is_closing()
            || self.entries.values().any(|own| own.nr_under_way > 0 || own.unanswered_by == owner)
    }

    /// Bytes of all files, where all of them are known; and how many files.
    pub fn sum(&self) -> Option<(u64, u64)> {
        let mut sum = (0, 0);
        for entry in self.entries.values() {
            match &entry.shape {
                Shape::Unknown if entry.nr_begun > 0 => return None,
                Shape::Unknown | Shape::Absent => {}
                shape @ Shape::File(..) => sum = (sum.0 + shape.allocated(), sum.1 + 1),
            }
        }
        Some(sum)
    }
}

/// Whether an answer is the one that had to be given; `expected` is a kind of error, or nothing.
pub fn agree<T>(what: &str, expected: &str, result: &Result<T, Error>) -> Result<(), String> {
    match kind_of(result) {
        Some(kind) if expected != UNKNOWN && kind != expected => {
            let said = |kind: &str| match kind {
                "" => "success".to_owned(),
                kind => format!("a refusal: {kind}"),
            };
            let error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
            Err(format!("{what} had {} where {} was due {error}", said(kind), said(expected)))
        }
        _ => Ok(()),
    }
}

/// Whether the owner describes a file as it must be. What is not known is learned.
pub fn describes(shape: &Shape, info: Option<&FileInfo>) -> Result<Shape, String> {
    let Some(info) = info else {
        return match shape {
            Shape::File(..) => Err(format!("no file is there, which is {shape:?}")),
            Shape::Unknown | Shape::Absent => Ok(Shape::Absent),
        };
    };
    let most = info.len_bytes.next_multiple_of(PAGE);
    let folios: u64 = info.nr_folios.iter().zip([1, 512, 262_144]).map(|(nr, of)| nr * of).sum();
    let is_sound = info.allocated_bytes <= most
        && folios * PAGE == info.allocated_bytes
        && info.nr_extents * PAGE <= most;
    if !is_sound {
        return Err(format!("a file is described as what cannot be: {info:?}"));
    }
    match shape {
        Shape::Absent => Err(format!("a file is there, and was not: {info:?}")),
        Shape::File(len, _)
            if (*len, shape.allocated()) != (info.len_bytes, info.allocated_bytes) =>
        {
            Err(format!("{info:?} is {shape:?}"))
        }
        Shape::Unknown if info.allocated_bytes == most => Ok(Shape::whole(info.len_bytes)),
        Shape::File(..) | Shape::Unknown => Ok(shape.clone()),
    }
}
