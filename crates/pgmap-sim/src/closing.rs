//! Pools that are closed, and dead clients whose devices may still write.

use std::time::Duration;

use pgmap::{Client, Error, Refusal};

use crate::changes::{DEADLINE_MS, answered_at, judge};
use crate::client::AGAIN;
use crate::episode::{Episode, episode};
use crate::media::refusal_of;
use crate::plan::Op;
use crate::verdict::{Asked, Verb};

/// Somebody asks to have the pool closed, or a part of it drained. One that is not ended was
/// killed.
pub struct Attempt {
    is_ended: bool,
}

impl Attempt {
    pub fn begin(episode: &Episode) -> Self {
        episode.books.borrow_mut().begin_close();
        Self { is_ended: false }
    }

    /// All is open again since a step, or is not, or nobody knows.
    pub fn end(&mut self, open_since: Option<u64>) {
        self.is_ended = true;
        episode().books.borrow_mut().end_close(open_since);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.is_ended {
            episode().books.borrow_mut().end_close(None);
        }
    }
}

/// Closes the pool, of which the caller holds nothing itself.
pub fn close(episode: &Episode, client: &Client, deadline_ms: u32) -> Result<(), Error> {
    let asked = Asked::now(episode);
    let mut attempt = Attempt::begin(episode);
    let deadline = u64::from(deadline_ms);
    let result = client.close_pool(Duration::from_millis(deadline));
    let limit = deadline + DEADLINE_MS;
    match result.as_ref().map_err(refusal_of) {
        Ok(()) if asked.owner == episode.nr_owners.get() => {
            episode.check_let_go("the pool is closed", u64::MAX, 0..u64::MAX);
        }
        Ok(()) => episode.check_let_go("the pool is closed", asked.from, 0..u64::MAX),
        Err(Some(Refusal::Held { holders, waited_ms, .. })) => {
            episode.check(asked.check_held(episode, holders, *waited_ms, deadline));
        }
        Err(Some(Refusal::Denied { why, .. })) => {
            let is_so = match why.contains("devices of dead clients") {
                true => episode.was_killed(),
                false => episode.books.borrow().has_other_close(asked.from),
            };
            if !is_so {
                episode.fail(format!("the pool was not closed without a cause: {why}"));
            }
        }
        _ => judge(episode, asked, Verb::Change, None, &result),
    }
    episode.check(asked.check_time(episode, limit, &result));
    attempt.end(answered_at(episode, &result).filter(|_| result.is_err()));
    result
}

/// Says of a dead client that its devices do not write any more, if that is so. If one does that
/// keeps the lock of its client's ledger, it says so too, and must be refused.
pub fn release(episode: &Episode, client: &Client, nth: u8) -> Result<(), Error> {
    let asked = Asked::now(episode);
    let listed = client.quarantine();
    judge(episode, asked, Verb::Look, Some(DEADLINE_MS), &listed);
    let dead = listed?;
    let Some(chosen) = dead.get(usize::from(nth) % dead.len().max(1)) else { return Ok(()) };
    episode.machine.note(|| format!("looks at {chosen:?}"));
    let is_writing = episode.is_writing(chosen.pid);
    let is_locked = episode.plan.keeps_lock && chosen.pid != 0;
    if !episode.plan.keeps_lock && chosen.is_transferring && !episode.has_hostile() {
        episode.fail(format!("no ring of {chosen:?} is open"));
    }
    if is_writing && !is_locked {
        return Ok(());
    }
    // Into memory that is nobody's any more, perhaps.
    let was_open = episode.is_transferring(chosen.pid);
    let asked = Asked::now(episode);
    let result = client.release_quarantine(chosen.client);
    match result.as_ref().map_err(refusal_of) {
        Ok(()) if is_writing && episode.is_writing(chosen.pid) => {
            episode.fail(format!("a device of {chosen:?} writes, and was released"));
        }
        Err(Some(Refusal::Invalid { why })) if why.contains("a ring of client") => {
            // A forked child has what its parent had.
            let mut ops = episode.plan.scripts.iter().flatten();
            if !was_open && !ops.any(|op| matches!(op, Op::Fork { .. })) {
                episode.fail(format!("no ring of {chosen:?} is open: {why}"));
            }
        }
        // It ended by itself, or somebody else said so.
        Err(Some(Refusal::Invalid { .. })) => {}
        _ => judge(episode, asked, Verb::Change, Some(DEADLINE_MS), &result),
    }
    result
}

/// All devices have ended. Of those that keep locks the owner sees that by itself; of the others
/// the operator says so.
pub fn end_devices(episode: &Episode, client: &Client) -> Result<(), Error> {
    pgmap_os::thread::sleep(AGAIN * 20);
    let sees = episode.plan.keeps_lock && !episode.has_hostile();
    for dead in client.quarantine()? {
        if sees {
            episode.fail(format!("nobody sees that the transfers of {dead:?} have ended"));
        }
        let released = client.release_quarantine(dead.client);
        if let Err(error) = &released
            && error.kind() != "invalid"
        {
            return released;
        }
    }
    while !client.quarantine()?.is_empty() || client.pool_stat()?.orphaned_bytes > 0 {
        episode.machine.note(|| "frames of dead clients are left".to_owned());
        pgmap_os::thread::sleep(AGAIN);
    }
    Ok(())
}
