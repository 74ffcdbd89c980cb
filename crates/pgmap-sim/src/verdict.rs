//! Whether a refusal can be justified.
//!
//! An error is believed only if its cause was there: a fault that was injected meanwhile, an owner
//! that was away, time that has passed, somebody who was in the way. Anything else is a finding.

use pgmap::report::ClientHold;
use pgmap::{Error, PinError, Refusal};

use crate::changes::{DEADLINE_MS, is_forbidden};
use crate::episode::Episode;
use crate::machine::Pid;
use crate::model::quotas::Limits;
use crate::model::{End, PAGE};
use crate::plan::{On, Op};

/// Errors that a file system gives.
const DISK: [i32; 3] = [libc::ENOSPC, libc::EIO, libc::ENOMEM];
/// All that is injected.
pub const ANY: [i32; 6] =
    [libc::ENOSPC, libc::EIO, libc::ENOMEM, libc::EMFILE, libc::EAGAIN, libc::EPERM];
/// How many turns a thread may have to wait for one of its own.
const MAX_TURNS: u64 = 600;
/// More words than one step of the owner reads: of each slot of `owner/scans.rs` (`STEP_SLOTS`) the
/// word, its tag and its block's.
const MAX_STEP_WORDS: u64 = 4 * 32_768;
/// More words than the owner changes in one turn: it shuts all files of a pool that closes, each
/// folio by some words, and opens them again.
const MAX_TURN_WORDS: u64 = 2 * 4 * 1_024;
/// What a wait takes beside that.
const MOMENT_MS: u64 = 60;
/// More words than the owner reads in a scan for one that was written at random into a ledger.
const MAX_WORDS_FOR_ONE: u64 = 256;
/// The owner's clock counts whole milliseconds.
const NS_PER_MS: u64 = 1_000_000;

/// What somebody asks for, and what beside the surroundings may be in the way of it.
#[derive(Clone, Copy, Debug)]
pub enum Verb<'a> {
    /// To put so many bytes under a name, and under so many in all.
    Put(&'a str, u64, u64),
    /// To reserve so many bytes in so many files.
    Draft(u64, u64),
    Unlink(&'a str),
    /// To take a name away unless somebody holds the file.
    UnlinkUnheld(&'a str),
    Rename(&'a str, &'a str),
    /// To cut, within so many milliseconds.
    Cut(&'a str, u64),
    CallOff(&'a str),
    /// To take a frame out of use.
    Fail,
    /// To have a failed page replaced.
    Heal(&'a str),
    /// To have failed frames replaced that no file has.
    Repair,
    /// To find and pin a file.
    Pin(&'a str),
    /// To pin it long-term.
    Lease(&'a str),
    /// To look at files or the pool.
    Look,
    /// To change the pool itself: its backings, whether it is open, what is kept out of use.
    Change,
    /// To limit what files whose names begin so may take.
    Quota(&'a str),
    Attach,
}

/// When something was asked, by whom and of which owner.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub from: u64,
    pub owner: u32,
    from_ns: u64,
    pid: Pid,
    /// Whether nobody else was at work, and nobody had anything.
    was_quiet: bool,
    nr_begun: u64,
}

impl Asked {
    pub fn now(episode: &Episode) -> Self {
        Self {
            from: episode.machine.steps(),
            owner: episode.nr_owners.get(),
            from_ns: episode.machine.time_ns(),
            pid: episode.machine.running(),
            was_quiet: episode.is_quiet(),
            nr_begun: episode.nr_ops_begun.get(),
        }
    }

    /// How it ended. A client asks again if the owner went meanwhile, which may have done it
    /// before: a refusal says nothing then.
    pub fn end<T>(&self, episode: &Episode, result: &Result<T, Error>) -> End {
        let now = episode.machine.steps();
        match result {
            Ok(_) => End::Done(now),
            Err(error) if is_refused(error) && self.owner == episode.nr_owners.get() => {
                End::Refused(now)
            }
            Err(_) => End::Unknown,
        }
    }

    /// Whether nobody else was at work meanwhile, and nobody had anything.
    pub fn is_quiet(&self, episode: &Episode) -> bool {
        self.was_quiet && self.nr_begun == episode.nr_ops_begun.get() && !self.was_away(episode)
    }

    /// Whether the owner was not there to serve for a while.
    fn was_away(&self, episode: &Episode) -> bool {
        episode.look_at_owner();
        self.owner != episode.nr_owners.get() || episode.away_at.get() >= self.from
    }

    /// Whether somebody was stopped.
    fn was_stopped(&self, episode: &Episode) -> bool {
        let pids = [self.pid, episode.owner_pid.get()];
        pids.iter().any(|&pid| episode.machine.stopped_until(pid) >= self.from)
    }

    fn elapsed_ns(&self, episode: &Episode) -> u64 {
        episode.machine.time_ns() - self.from_ns
    }

    /// Whether the owner could not do something for want of memory, of disk, of descriptors.
    fn owner_lacked(&self, episode: &Episode, errnos: &[i32]) -> bool {
        episode.machine.has_failed_since(self.from, episode.owner_pid.get(), errnos)
    }

    /// Whether the owner was away, stopped or short of something.
    pub fn is_disturbed(&self, episode: &Episode) -> bool {
        self.was_away(episode) || self.was_stopped(episode) || self.owner_lacked(episode, &ANY)
    }

    /// Whether the caller could not do something for want of memory, of disk, of descriptors.
    pub fn self_lacked(&self, episode: &Episode, errnos: &[i32]) -> bool {
        episode.machine.has_failed_since(self.from, self.pid, errnos)
    }

    /// Whether it took longer than a call may that waits for at most `limit_ms`, or ended early
    /// because of a deadline that had not passed.
    pub fn check_time<T>(
        &self,
        episode: &Episode,
        limit_ms: u64,
        result: &Result<T, Error>,
    ) -> Result<(), String> {
        let elapsed_ns = self.elapsed_ns(episode);
        let waited_ms = match result {
            Err(Error::TimedOut { waited_ms, .. }) => Some(*waited_ms),
            Err(Error::Refused(Refusal::Held { waited_ms, .. })) => Some(*waited_ms),
            _ => None,
        };
        if let Some(waited_ms) = waited_ms
            && elapsed_ns + NS_PER_MS < waited_ms * NS_PER_MS
        {
            return Err(format!("{waited_ms} ms are said to have passed after {elapsed_ns} ns"));
        }
        if self.was_stopped(episode) || self.was_away(episode) {
            return Ok(());
        }
        if elapsed_ns > limit_ms * NS_PER_MS + slack_ns(episode) {
            return Err(format!("a call of at most {limit_ms} ms took {elapsed_ns} ns"));
        }
        Ok(())
    }

    /// Whether the error has a cause, if it is one.
    pub fn check<T>(
        &self,
        episode: &Episode,
        verb: Verb<'_>,
        result: &Result<T, Error>,
    ) -> Result<(), String> {
        result.as_ref().map_or_else(|error| self.check_error(episode, verb, error), |_| Ok(()))
    }

    /// Whether `error` has a cause.
    pub fn check_error(
        &self,
        episode: &Episode,
        verb: Verb<'_>,
        error: &Error,
    ) -> Result<(), String> {
        let is_justified = match error {
            Error::OwnerGone { .. } => {
                // Who is refused at the door hears why only if there is room for it.
                let is_at_door = matches!(verb, Verb::Attach);
                self.was_away(episode)
                    || self.was_stopped(episode)
                    || self.owner_lacked(episode, &[libc::EMFILE])
                    || is_at_door && self.owner_lacked(episode, &[libc::EAGAIN])
                    // Another thread of its client was at the door of a busy owner all the while.
                    || self.elapsed_ns(episode) >= DEADLINE_MS * NS_PER_MS
            }
            Error::TimedOut { .. } => true,
            Error::Os(_) => {
                self.self_lacked(episode, &ANY)
                    || matches!(verb, Verb::Attach) && self.was_away(episode)
            }
            Error::OutOfRange { .. } => match verb {
                // It was cut, or another is in its place, since its length was asked.
                Verb::Lease(name) => {
                    let books = episode.books.borrow();
                    books.may_be_cut(name, self.from) || !books.is_alone_since(name, self.from)
                }
                _ => false,
            },
            Error::Pin(PinError::NoRoom) => self.self_lacked(episode, &DISK),
            // Of what was reserved, before its writer could hold it.
            Error::Pin(PinError::Changed { .. } | PinError::NotPinnable { .. })
                if matches!(verb, Verb::Put(..) | Verb::Draft(..)) =>
            {
                // A successor of the owner that reserved it knows of no draft.
                self.was_away(episode)
                    || episode.failures.borrow().may_fail_since(self.from)
                    || episode.books.borrow().may_close(self.from)
            }
            Error::Pin(_) if error.kind() == "memory_failed" => {
                matches!(verb, Verb::Pin(_) | Verb::Lease(_)) && episode.failures.borrow().is_any()
            }
            Error::Refused(Refusal::MayBeDone { refusal, .. }) => {
                return self.check_refusal(episode, verb, refusal);
            }
            Error::Refused(refusal) => return self.check_refusal(episode, verb, refusal),
            _ => false,
        };
        if is_justified { Ok(()) } else { Err(format!("{verb:?} failed without a cause: {error}")) }
    }

    fn check_refusal(
        &self,
        episode: &Episode,
        verb: Verb<'_>,
        refusal: &Refusal,
    ) -> Result<(), String> {
        match (refusal, verb) {
            (Refusal::NotFound { .. } | Refusal::BadLength { .. }, _)
            | (Refusal::Exists { .. }, Verb::Put(..) | Verb::Rename(..)) => {
                self.check_plain(episode, verb, refusal)
            }
            (Refusal::NoSpace { .. }, Verb::Put(..) | Verb::Draft(..)) => {
                self.check_no_space(episode, verb, refusal)
            }
            // Who held it may have let go before it could be named.
            (Refusal::Held { holders, .. }, Verb::UnlinkUnheld(_)) if holders.is_empty() => Ok(()),
            (Refusal::Held { holders, waited_ms, .. }, Verb::Heal(_) | Verb::UnlinkUnheld(_)) => {
                self.check_held(episode, holders, *waited_ms, 0)
            }
            (Refusal::Held { holders, waited_ms, .. }, Verb::Cut(_, deadline_ms)) => {
                self.check_held(episode, holders, *waited_ms, deadline_ms)
            }
            _ if self.has_cause(episode, verb, refusal) => Ok(()),
            _ => Err(format!("{verb:?} failed without a cause: {refusal}")),
        }
    }

    /// Whether something was in the way of `verb` that this refusal is about.
    fn has_cause(&self, episode: &Episode, verb: Verb<'_>, refusal: &Refusal) -> bool {
        if self.has_cause_in_pool(episode, verb, refusal)
            || self.has_cause_in_quotas(episode, verb, refusal)
        {
            return true;
        }
        let books = episode.books.borrow();
        match (refusal, verb) {
            (Refusal::Internal { .. }, _) => {
                let (from, pid) = (episode.owner_from.get(), episode.owner_pid.get());
                self.was_away(episode)
                    || episode.machine.has_failed_since(from, pid, &DISK)
                    || self.owner_lacked(episode, &[libc::EMFILE])
            }
            (Refusal::NoMemory { .. }, _) => {
                self.owner_lacked(episode, &DISK) || self.was_away(episode)
            }
            (Refusal::Full { .. }, _) => {
                self.owner_lacked(episode, &[libc::EMFILE]) || self.was_away(episode)
            }
            (Refusal::NoDraft { .. }, Verb::Put(..)) => self.was_away(episode),
            (Refusal::IndexFull { nr_slots }, Verb::Put(name, len, nr)) => {
                is_index_full(episode, self.from, *nr_slots, (name, len, nr))
            }
            (Refusal::IndexFull { nr_slots }, Verb::Rename(..) | Verb::Cut(..)) => {
                is_index_full(episode, self.from, *nr_slots, ("", u64::MAX, 1))
            }
            (Refusal::TooMuch { limit, .. }, Verb::Put(..) | Verb::Draft(..) | Verb::Cut(..)) => {
                // No file, and no answer, has more extents than the pool has pages between holes.
                episode.most_bytes() / PAGE > *limit
            }
            (
                Refusal::InUse { .. } | Refusal::Stale { .. },
                Verb::Pin(name) | Verb::Lease(name),
            ) => {
                let failures = episode.failures.borrow();
                !books.is_alone_since(name, self.from)
                    || failures.may_fail_since(self.from)
                    || episode.plan.knobs.evicts
            }
            (
                Refusal::InUse { .. },
                Verb::Heal(name)
                | Verb::Unlink(name)
                | Verb::UnlinkUnheld(name)
                | Verb::Cut(name, _)
                | Verb::Put(name, ..),
            ) => books.may_be_cut(name, self.from),
            (Refusal::InUse { .. }, Verb::Rename(name, to)) => {
                [name, to].iter().any(|name| books.may_be_cut(name, self.from))
            }
            (Refusal::CalledOff { .. }, Verb::Cut(name, _)) => {
                books.may_be_called_off(name, self.from) || self.was_away(episode)
            }
            (Refusal::Invalid { .. }, Verb::CallOff(_) | Verb::Heal(_)) => true,
            (Refusal::Denied { .. }, Verb::Fail) => episode.failures.borrow().is_any(),
            (Refusal::Denied { .. }, Verb::Lease(name)) => {
                let now = episode.machine.steps();
                let model = episode.model.borrow();
                // What a cut asked back is leased to nobody else before it is given back.
                episode.plan.has_holder
                    || episode.failures.borrow().is_any()
                    || books.was_any_cut()
                    || books.may_close(self.from)
                    || model.numbers(name, self.from, now).any(is_forbidden)
            }
            (Refusal::Poisoned { .. }, Verb::Put(..)) => {
                episode.failures.borrow().may_fail_since(self.from)
            }
            _ => false,
        }
    }

    /// Whether that was in the pool itself: one of its backings, that it was closing, or the device
    /// of a dead client.
    fn has_cause_in_pool(&self, episode: &Episode, verb: Verb<'_>, refusal: &Refusal) -> bool {
        let may_close = episode.books.borrow().may_close(self.from);
        match (refusal, verb) {
            // A put says itself whether that can be.
            (Refusal::NoSpaceOn { .. } | Refusal::NoBacking { .. }, Verb::Put(..)) => {
                !episode.plan.backings.is_empty()
            }
            (Refusal::NoSpaceOn { .. }, Verb::Draft(..)) => !episode.plan.backings.is_empty(),
            // The frame was that of a backing which was taken out.
            (Refusal::Invalid { .. }, Verb::Fail) => episode.may_lose_backings(),
            // It was taken out, with a file that is gone, or is missing.
            (Refusal::NoBacking { backing, .. }, Verb::Pin(name) | Verb::Lease(name))
                if backing.is_empty() =>
            {
                let is_alone = episode.books.borrow().is_alone_since(name, self.from);
                episode.may_lose_backings() && !is_alone
            }
            (
                Refusal::NoBacking { .. },
                Verb::Pin(_) | Verb::Lease(_) | Verb::Heal(_) | Verb::Repair,
            ) => !episode.plan.backings.is_empty() && episode.may_lack_media(),
            (Refusal::Denied { errno: libc::EBUSY, .. }, Verb::Heal(_) | Verb::Repair)
                if episode.plan.knobs.is_attached && episode.was_killed() =>
            {
                true
            }
            (
                Refusal::Denied { errno: libc::EBUSY, .. },
                Verb::Put(..)
                | Verb::Draft(..)
                | Verb::Unlink(_)
                | Verb::UnlinkUnheld(_)
                | Verb::Rename(..)
                | Verb::Cut(..)
                | Verb::Heal(_)
                | Verb::Change,
            ) => may_close,
            (Refusal::InUse { .. } | Refusal::Stale { .. }, Verb::Pin(_) | Verb::Lease(_)) => {
                may_close
            }
            // Of a file in a part, or a frame there.
            (Refusal::InUse { doing, .. }, _) if doing.starts_with("drained") => may_close,
            (Refusal::Denied { why, .. }, Verb::Fail) if why.contains("is drained") => may_close,
            _ => false,
        }
    }

    /// Whether that was a quota, or that there was none.
    fn has_cause_in_quotas(&self, episode: &Episode, verb: Verb<'_>, refusal: &Refusal) -> bool {
        match (refusal, verb) {
            (Refusal::OverQuota { .. }, _) => self.is_over_quota(episode, verb, refusal),
            (Refusal::Invalid { .. }, Verb::Quota(prefix)) => {
                // There is none to remove.
                let now = episode.machine.steps();
                let quotas = &episode.model.borrow().quotas;
                quotas.must_be(prefix, self.from, now).is_none() || self.was_away(episode)
            }
            _ => false,
        }
    }

    /// Whether there may be a quota that would have been exceeded as the refusal says.
    fn is_over_quota(&self, episode: &Episode, verb: Verb<'_>, refusal: &Refusal) -> bool {
        let Refusal::OverQuota { of, what, limit, used, wanted, .. } = refusal else {
            return false;
        };
        let (name, len) = match verb {
            Verb::Put(name, len, _) => (name, Some(len.next_multiple_of(PAGE))),
            Verb::Draft(len, _) => ("draft", Some(len.next_multiple_of(PAGE))),
            Verb::Rename(_, to) => (to, None),
            _ => return false,
        };
        let is_files = what == "files";
        let is_wanted = if is_files { *wanted == 1 } else { len.is_none_or(|len| len == *wanted) };
        let window = (self.from, episode.machine.steps());
        let is_it = |its: Limits| Some(*limit) == if is_files { its.files } else { its.bytes };
        let quotas = &episode.model.borrow().quotas;
        let is_there = |prefix: &str| {
            *of == format!("prefix \"{prefix}\"") && quotas.may_be(prefix, window, is_it)
        };
        is_wanted && used + wanted > *limit && (1..=name.len()).any(|len| is_there(&name[..len]))
    }

    /// What can be said of a refusal without knowing what is there.
    fn check_plain(
        &self,
        episode: &Episode,
        verb: Verb<'_>,
        refusal: &Refusal,
    ) -> Result<(), String> {
        let now = episode.machine.steps();
        let model = episode.model.borrow();
        // On whichever backing it is to lie.
        let (size, _) = episode.longest_bytes(On::Any);
        let further = episode.plan.backings.iter().map(|&pages| u64::from(pages) * PAGE);
        let size = further.min().unwrap_or(size).min(size);
        match (refusal, verb) {
            (Refusal::BadLength { .. }, Verb::Put(_, len, _) | Verb::Draft(len, _))
                if len <= size =>
            {
                Err(format!("{len} bytes are said to be too many: {refusal}"))
            }
            (
                Refusal::BadLength { .. },
                Verb::Put(..) | Verb::Draft(..) | Verb::Cut(..) | Verb::Lease(_),
            ) => Ok(()),
            (Refusal::NotFound { .. }, Verb::Pin(name)) => {
                let held = episode.held_before(self.from);
                model.missed(name, self.from, now, (None, &held))
            }
            // What was asked may have been done by the owner before.
            (
                Refusal::NotFound { .. },
                Verb::Unlink(_) | Verb::UnlinkUnheld(_) | Verb::Rename(..),
            ) if self.was_away(episode) => Ok(()),
            (
                Refusal::NotFound { .. },
                Verb::Unlink(name)
                | Verb::UnlinkUnheld(name)
                | Verb::Cut(name, _)
                | Verb::Rename(name, _)
                | Verb::CallOff(name)
                | Verb::Heal(name),
            ) => {
                let held = episode.held_before(self.from);
                model.missed(name, self.from, now, (Some(self.from), &held))
            }
            (Refusal::Exists { .. }, Verb::Put(to, ..) | Verb::Rename(_, to))
                if model.may_be(to, self.from, now) =>
            {
                Ok(())
            }
            _ => Err(format!("{verb:?} failed without a cause: {refusal}")),
        }
    }

    /// Frames that nobody has and nobody holds can be had.
    fn check_no_space(
        &self,
        episode: &Episode,
        verb: Verb<'_>,
        refusal: &Refusal,
    ) -> Result<(), String> {
        let Refusal::NoSpace { wanted_bytes, free_bytes, longest_bytes, draining_bytes, .. } =
            *refusal
        else {
            return Ok(());
        };
        let (len, nr_files) = match verb {
            Verb::Put(_, len, nr) => (len, nr),
            Verb::Draft(len, nr_files) => (len, nr_files),
            _ => (0, 0),
        };
        let size = episode.data_bytes();
        let is_sound = wanted_bytes == len.next_multiple_of(PAGE)
            && free_bytes < wanted_bytes
            && longest_bytes <= free_bytes
            && free_bytes + draining_bytes <= size;
        if !is_sound {
            return Err(format!("{verb:?} of {len} bytes failed without a cause: {refusal}"));
        }
        let sum = episode.books.borrow().sum();
        let is_whole = !episode.failures.borrow().is_any();
        if let (true, true, Some((live, _))) = (is_whole, self.is_quiet(episode), sum)
            && live + nr_files * wanted_bytes <= size
        {
            return Err(format!(
                "{verb:?}: {live} of {size} bytes are files', nobody holds any, and yet: {refusal}"
            ));
        }
        Ok(())
    }

    pub fn check_held(
        &self,
        episode: &Episode,
        holders: &[ClientHold],
        waited_ms: u64,
        deadline_ms: u64,
    ) -> Result<(), String> {
        if waited_ms < deadline_ms || holders.is_empty() {
            return Err(format!(
                "a cut of {deadline_ms} ms gave up after {waited_ms}: {holders:?}"
            ));
        }
        let is_late = waited_ms * NS_PER_MS > deadline_ms * NS_PER_MS + slack_ns(episode);
        if is_late && !self.was_stopped(episode) {
            return Err(format!("a cut of {deadline_ms} ms gave up after {waited_ms}"));
        }
        let held = |holder: &&ClientHold| !episode.may_hold(holder.pid, self.from);
        match holders.iter().find(held) {
            None => Ok(()),
            Some(holder) => Err(format!("who holds nothing is said to be in the way: {holder:?}")),
        }
    }
}

/// Whether what was asked was not done. A commit whose owner went may have been done; so may a
/// change, by the owner's successor, that could be neither synced nor taken back.
pub fn is_refused(error: &Error) -> bool {
    use Refusal::{Internal, MayBeDone, NoDraft};
    let is_open =
        |refusal: &Refusal| matches!(refusal, NoDraft { .. } | Internal { .. } | MayBeDone { .. });
    matches!(error, Error::Refused(refusal) if !is_open(refusal))
}

/// Whether an answer came, so that the owner is not at work on what was asked any more.
pub fn is_answered<T>(result: &Result<T, Error>) -> bool {
    result.as_ref().err().is_none_or(is_refused)
}

/// What may pass until somebody who is ready runs, and the owner has read the ledgers, into which a
/// client that keeps no rules may write anything. A client in the owner's process waits at the
/// owner's lock, too, for as long as one step of it.
pub fn slack_ns(episode: &Episode) -> u64 {
    let knobs = episode.plan.knobs;
    let turns = MAX_TURNS * u64::from(knobs.longest_turn);
    let scribbled = episode.plan.scripts.iter().flatten().map(|op| match op {
        Op::Scribble { words } => u64::from(*words) * MAX_WORDS_FOR_ONE,
        _ => 0,
    });
    let locked = match episode.plan.embedded {
        Some(_) => MAX_STEP_WORDS,
        None => MAX_TURN_WORDS + scribbled.sum::<u64>().min(MAX_STEP_WORDS),
    };
    MOMENT_MS * NS_PER_MS + (turns + locked) * u64::from(knobs.step_ns)
}

/// Whether the index may have had no room for a file, or for more extents of one.
fn is_index_full(
    episode: &Episode,
    from: u64,
    nr_slots: u64,
    (name, len, nr): (&str, u64, u64),
) -> bool {
    let now = episode.machine.steps();
    let max_files = u64::from(episode.plan.max_files);
    let pool_pages = episode.most_bytes() / PAGE;
    // See `IndexLayout::for_files` and `slots_for`; the first slot is nobody's.
    let slots = |pages: u64| 1 + pages.min(pool_pages).saturating_sub(8).div_ceil(20);
    let model = episode.model.borrow();
    let lengths = model.lengths(from, now);
    if nr_slots == max_files {
        return lengths.iter().filter(|(other, _)| *other != name).count() as u64 >= max_files;
    }
    let taken: u64 = lengths.iter().map(|(_, len)| slots(len.div_ceil(PAGE))).sum();
    taken + nr * slots(len.div_ceil(PAGE)) > max_files + max_files / 8 + 1
}
