//! Parts of the pool that are drained before their memory goes, and are in use again after that.

use std::ops::Range;
use std::time::Duration;

use pgmap::report::BackingInfo;
use pgmap::{Client, Error, Refusal};

use crate::changes::{DEADLINE_MS, answered_at, judge};
use crate::closing::Attempt;
use crate::episode::Episode;
use crate::media::{look, refusal_of};
use crate::model::PAGE;
use crate::verdict::{Asked, Verb};

/// A part: of the data (0) or of a further backing, from a page on.
#[derive(Clone, Copy)]
pub struct Part {
    pub which: u8,
    pub page: u8,
    pub pages: u8,
}

impl Part {
    /// The backing that it is of, its bytes there, and its frames. Nothing if there is none.
    fn of(self, infos: &[BackingInfo]) -> Option<(&BackingInfo, Range<u64>, Range<u64>)> {
        let info = infos.get(usize::from(self.which) % infos.len().max(1))?;
        let nr_pages = info.size_bytes / PAGE;
        let first = u64::from(self.page) % nr_pages;
        let pages = first..nr_pages.min(first + u64::from(self.pages));
        let bytes = info.offset_bytes + pages.start * PAGE..info.offset_bytes + pages.end * PAGE;
        let frames = info.first_pfn + pages.start..info.first_pfn + pages.end;
        (info.missing.is_none() && !pages.is_empty()).then_some((info, bytes, frames))
    }
}

/// Drains a part, leaves it so for a while, and has it used again.
pub fn drain(
    episode: &Episode,
    client: &Client,
    part: Part,
    (deadline_ms, rest_ms): (u32, u32),
) -> Result<(), Error> {
    let infos = look(episode, client)?;
    let Some((info, bytes, frames)) = part.of(&infos) else { return Ok(()) };
    let asked = Asked::now(episode);
    let mut attempt = Attempt::begin(episode);
    let nr_undos = episode.books.borrow().nr_undos_answered();
    let deadline = u64::from(deadline_ms);
    let range = Some(bytes.clone());
    let number = episode.books.borrow_mut().begin_part_drain(frames.clone());
    let drained = client.drain_backing(&info.name, range, Duration::from_millis(deadline));
    episode.check(asked.check_time(episode, deadline + DEADLINE_MS, &drained));
    let result = match &drained {
        Ok(()) => {
            let what = format!("{} {bytes:?} is drained", info.name);
            episode.check_let_go(&what, asked.from, frames);
            pgmap_os::thread::sleep(Duration::from_millis(rest_ms.into()));
            undo(episode, client, (asked, nr_undos), (&info.name, bytes))
        }
        Err(error) => {
            judge_refusal(episode, asked, deadline, error);
            drained
        }
    };
    episode.books.borrow_mut().end_part_drain(number, episode.machine.steps());
    attempt.end(answered_at(episode, &result));
    result
}

fn judge_refusal(episode: &Episode, asked: Asked, deadline_ms: u64, error: &Error) {
    let is_known = match refusal_of(error) {
        Some(Refusal::Held { holders, waited_ms, .. }) => {
            episode.check(asked.check_held(episode, holders, *waited_ms, deadline_ms));
            true
        }
        // A file that is being changed or not committed, a dead client's device, another drain.
        Some(Refusal::InUse { .. }) => true,
        // One that closes the pool calls off all that are waited for.
        Some(Refusal::CalledOff { .. }) => {
            episode.books.borrow().has_other_close(asked.from) || asked.is_disturbed(episode)
        }
        // What says whose it is lies at the front of a medium.
        Some(Refusal::Invalid { why }) => why.contains("lies there: drain"),
        // It was taken out since it was looked at, or went.
        Some(Refusal::NoBacking { .. }) => !episode.plan.backings.is_empty(),
        _ => false,
    };
    if !is_known {
        episode.check(asked.check_error(episode, Verb::Change, error));
    }
}

fn undo(
    episode: &Episode,
    client: &Client,
    (drained, nr_undos): (Asked, u64),
    (name, bytes): (&str, Range<u64>),
) -> Result<(), Error> {
    let asked = Asked::now(episode);
    episode.books.borrow_mut().begin_undo();
    let result = client.undo_drain(name, Some(bytes));
    episode.books.borrow_mut().end_undo();
    // Those that were under way when the drain began, and those since, but for this one.
    let has_others = episode.books.borrow().nr_undos() > nr_undos + 1;
    match result.as_ref().map_err(refusal_of) {
        // An owner that ended took the drain with it, and a client that had drained some of it
        // before may have undone it.
        Err(Some(Refusal::Invalid { why })) if why.contains("is drained") => {
            let is_so = drained.owner != episode.nr_owners.get()
                || has_others
                || asked.is_disturbed(episode);
            if !is_so {
                episode.fail(format!("a drain of {name} was undone by nobody: {why}"));
            }
        }
        Err(Some(Refusal::NoBacking { .. })) if !episode.plan.backings.is_empty() => {}
        _ => judge(episode, asked, Verb::Change, Some(DEADLINE_MS), &result),
    }
    result
}

/// Has everything used again that was drained by somebody who was killed.
pub fn undo_all(client: &Client) -> Result<(), Error> {
    for info in client.backings()? {
        match client.undo_drain(&info.name, None) {
            Err(error) if !matches!(error.kind(), "invalid" | "no_backing") => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
