//! Memory that fails, is replaced, and is used again.

use std::collections::BTreeMap;

use pgmap::{Client, Error};

use crate::changes::{DEADLINE_MS, judge};
use crate::episode::Episode;
use crate::model::{Cut, PAGE};
use crate::verdict::{Asked, Verb};

/// Frames that failed.
#[derive(Debug, Default)]
pub struct Failures {
    /// Since when each is known to be out of use; never once it may have been replaced.
    frames: BTreeMap<u64, Option<u64>>,
    /// How many say that one failed, and had no answer yet, or never will.
    nr_under_way: u32,
    /// When one of the others last had an answer.
    last: u64,
    /// Repairs that are not known to be over.
    nr_repairs: u32,
    /// When the last of the others was over.
    repaired_at: u64,
}

impl Failures {
    /// Whether there are any, or were.
    pub fn is_any(&self) -> bool {
        !self.frames.is_empty()
    }

    /// Whether one may have failed at `from` or later.
    pub const fn may_fail_since(&self, from: u64) -> bool {
        self.nr_under_way > 0 || self.last >= from
    }

    /// Whether a frame was out of use before `from`, and is.
    pub fn is_failed_before(&self, frame: u64, from: u64) -> bool {
        matches!(self.frames.get(&frame), Some(Some(since)) if *since < from)
    }

    fn begin(&mut self, frame: u64) {
        self.frames.entry(frame).or_default();
        self.nr_under_way += 1;
    }

    fn ended(&mut self, frame: u64, from: u64, answered_at: Option<u64>, is_failed: bool) {
        self.nr_under_way -= u32::from(answered_at.is_some());
        self.last = self.last.max(answered_at.unwrap_or(0));
        if is_failed && self.nr_repairs == 0 && self.repaired_at < from {
            self.frames.insert(frame, answered_at);
        }
    }

    /// Any of them may be replaced from now on.
    fn begin_repair(&mut self) {
        self.frames.values_mut().for_each(|since| *since = None);
        self.nr_repairs += 1;
    }

    /// Nothing is replaced any more, if somebody was answered so.
    fn end_repair(&mut self, now: u64, is_answered: bool) {
        self.repaired_at = now;
        self.frames.values_mut().for_each(|since| *since = None);
        self.nr_repairs -= u32::from(is_answered);
    }
}

/// The memory of a page of a file fails; of the frame with that number, if there is no such page.
pub fn fail(episode: &Episode, client: &Client, name: &str, page: u8) -> Result<(), Error> {
    let page = u64::from(page);
    let pinned = client.get(name);
    let offset = pinned.as_ref().ok().and_then(|pin| {
        let mut segments = pin.segments();
        let at = page * PAGE;
        let segment = segments
            .find(|own| (own.range_offset..own.range_offset + own.len_bytes).contains(&at))?;
        Some(segment.pool_offset + at - segment.range_offset)
    });
    drop(pinned);
    let frame = offset.map_or(page, |offset| offset / PAGE);
    let asked = Asked::now(episode);
    episode.failures.borrow_mut().begin(frame);
    let result = client.memory_failure(frame);
    let is_certain = result.is_ok() && asked.owner == episode.nr_owners.get();
    let now = episode.machine.steps();
    let answered_at = crate::verdict::is_answered(&result).then_some(now);
    episode.failures.borrow_mut().ended(frame, asked.from, answered_at, is_certain);
    judge(episode, asked, Verb::Fail, Some(DEADLINE_MS), &result);
    result
}

/// Somebody has a page of a file whose memory failed replaced by zeros.
pub fn heal(episode: &Episode, client: &Client, name: &str, page: u8) -> Result<(), Error> {
    let asked = Asked::now(episode);
    let turn = episode.books.borrow_mut().begin(&[name], asked.owner);
    episode.failures.borrow_mut().begin_repair();
    episode.model.borrow_mut().cut(name, Cut::Heal(page.into()), asked.from);
    let result = client.clear_poison(name, u64::from(page) * PAGE, &[0; PAGE as usize]);
    judge(episode, asked, Verb::Heal(name), Some(DEADLINE_MS), &result);
    let end = asked.end(episode, &result);
    let now = episode.machine.steps();
    episode.model.borrow_mut().cut_ended(name, asked.from, now, end);
    episode.failures.borrow_mut().end_repair(now, crate::verdict::is_answered(&result));
    let answered_at = crate::verdict::is_answered(&result).then_some(now);
    episode.books.borrow_mut().end(turn, answered_at, episode.nr_owners.get());
    result
}

/// Somebody has failed frames replaced that no file has.
pub fn repair(episode: &Episode, client: &Client) -> Result<(), Error> {
    let asked = Asked::now(episode);
    episode.failures.borrow_mut().begin_repair();
    let result = client.repair_free();
    let now = episode.machine.steps();
    episode.failures.borrow_mut().end_repair(now, crate::verdict::is_answered(&result));
    judge(episode, asked, Verb::Repair, Some(DEADLINE_MS), &result);
    result
}
