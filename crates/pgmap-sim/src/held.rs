//! What clients hold: it stays as it was, and whoever is to let go is notified.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use pgmap::space::PinnedPages;
use pgmap::wire::Event;
use pgmap::{Client, FilePin};

use crate::episode::Episode;
use crate::holders::Holding;
use crate::machine::Pid;
use crate::model::PAGE;
use crate::verdict::{ANY, slack_ns};

/// Within which time somebody hears that its frames are to be reclaimed, in nanoseconds.
const TOLD_NS: u64 = 100_000_000;

/// So many events a queue keeps (`MAX_EVENTS` of a simulation).
const FEW: usize = 4;

enum Pin<'c> {
    File(FilePin<'c>),
    Pages(PinnedPages<'c>),
}

/// A pin that is kept, what it showed, and until when.
pub struct Held<'c> {
    pin: Pin<'c>,
    bytes: Vec<u8>,
    frames: Vec<u64>,
    from: u64,
    pub until_step: u64,
    name: String,
    /// Of which version, and from which byte of it on, where that is known.
    number: Option<(u64, u64)>,
    /// Whether a device caches its translations.
    is_cached: bool,
    /// Since when its reclaim has been requested, in nanoseconds.
    wanted_since: Cell<Option<u64>>,
    holding: Holding,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.holding.forget_pin();
    }
}

impl<'c> Held<'c> {
    pub fn of_file(
        pin: FilePin<'c>,
        (bytes, frames): (Vec<u8>, Vec<u64>),
        until_step: u64,
        (name, number): (String, u64),
        holding: Holding,
    ) -> Self {
        Self::new(Pin::File(pin), (bytes, frames), until_step, (name, Some((number, 0))), holding)
    }

    pub fn by_address(
        pin: PinnedPages<'c>,
        shown: (Vec<u8>, Vec<u64>),
        until_step: u64,
        of: (String, Option<(u64, u64)>),
        is_cached: bool,
        holding: Holding,
    ) -> Self {
        let mut held = Self::new(Pin::Pages(pin), shown, until_step, of, holding);
        held.is_cached = is_cached;
        held
    }

    fn new(
        pin: Pin<'c>,
        (bytes, frames): (Vec<u8>, Vec<u64>),
        until_step: u64,
        (name, number): (String, Option<(u64, u64)>),
        holding: Holding,
    ) -> Self {
        let from = crate::episode::episode().machine.steps();
        let wanted_since = Cell::new(None);
        let is_cached = false;
        Self {
            pin,
            bytes,
            frames,
            from,
            until_step,
            name,
            number,
            is_cached,
            wanted_since,
            holding,
        }
    }

    /// Of which version there is something.
    pub fn version(&self) -> Option<u64> {
        self.number.filter(|_| !self.bytes.is_empty()).map(|(number, _)| number)
    }

    /// First address and the one after the last, if a device caches what they translate to.
    pub fn cached_at(&self) -> Option<(u64, u64)> {
        match &self.pin {
            Pin::Pages(pages) if self.is_cached => {
                Some((pages.address(), pages.address() + pages.len_bytes()))
            }
            _ => None,
        }
    }

    fn read(&self) -> Result<Vec<u8>, String> {
        match &self.pin {
            Pin::File(pin) => pin.to_vec().map_err(|error| error.to_string()),
            Pin::Pages(pages) => {
                let mut bytes = vec![0; self.bytes.len()];
                let read = pages.read_at(0, &mut bytes);
                read.map(|()| bytes).map_err(|error| error.to_string())
            }
        }
    }

    /// Whether it shows what it showed; and of a device's, whether that was reported in time.
    pub fn check(&self, episode: &Episode) {
        match self.read() {
            Ok(bytes) if bytes == self.bytes => {}
            Ok(bytes) => {
                if let Some(number) = self.number {
                    let model = episode.model.borrow();
                    episode.check(model.held(&self.name, number, &self.bytes, &bytes));
                }
            }
            Err(error) => episode.unreadable(&self.name, &error),
        }
        if self.is_cached && self.is_overdue(episode) && self.is_wanted(episode) {
            let at = self.cached_at();
            episode.fail(format!("a device was not told that {:?} at {at:x?} ended", self.name));
        }
    }

    pub fn is_reclaim_requested(&self) -> bool {
        match &self.pin {
            Pin::File(pin) => pin.is_reclaim_requested(),
            Pin::Pages(pages) => pages.is_reclaim_requested(),
        }
    }

    /// Whether its reclaim is requested, and this was not notified yet: the device of one that it
    /// caches, and the client of another.
    pub fn awaits_notice(&self, episode: &Episode) -> bool {
        let own = episode.machine.running();
        let is_told = || episode.heard.borrow().is_told(own, self.from, &self.frames);
        self.note_request(episode).is_some()
            && (self.is_cached || episode.plan.is_polite && !is_told())
    }

    /// Whether all that it holds is to be reclaimed. That its extent has changed may be about other
    /// pages.
    fn is_wanted(&self, episode: &Episode) -> bool {
        if episode.books.borrow().may_drain_others(&self.frames, self.from) {
            return false;
        }
        let nr_pages = self.frames.len() as u64;
        self.number.is_some_and(|(number, start)| {
            episode.model.borrow().is_wanted(number, start / PAGE, nr_pages)
        })
    }

    /// Notes since when its reclaim is requested, in nanoseconds; `None` if it is not.
    fn note_request(&self, episode: &Episode) -> Option<u64> {
        let since = self.wanted_since.get();
        let since =
            self.is_reclaim_requested().then(|| since.unwrap_or_else(|| episode.machine.time_ns()));
        self.wanted_since.set(since);
        since
    }

    /// Whether its reclaim was requested longer ago than it takes to hear of that, and nothing was
    /// in the way of hearing.
    fn is_overdue(&self, episode: &Episode) -> bool {
        let Some(since_ns) = self.note_request(episode) else { return false };
        if episode.machine.time_ns() < since_ns + heard_within_ns(episode) {
            return false;
        }
        let (machine, own, owner) =
            (&episode.machine, episode.machine.running(), episode.owner_pid.get());
        episode.look_at_owner();
        let was_stopped = [own, owner].iter().any(|&pid| machine.stopped_until(pid) >= self.from);
        let was_away = episode.away_at.get() >= self.from;
        // Without a thread there is nobody who hears, and of a full socket nothing comes through.
        let has_lacked =
            [own, owner].iter().any(|&pid| machine.has_failed_since(self.from, pid, &ANY));
        // Whatever memory fails beside it is cut out of what it holds.
        let is_failed = episode.failures.borrow().is_any();
        !was_stopped && !was_away && !has_lacked && !is_failed
    }
}

/// Within which time an event that nothing is in the way of arrives, in nanoseconds.
pub fn heard_within_ns(episode: &Episode) -> u64 {
    TOLD_NS + slack_ns(episode)
}

/// What clients heard of frames to be reclaimed.
#[derive(Debug, Default)]
pub struct Heard {
    /// When, the first frame, and the one after the last.
    of: BTreeMap<Pid, Vec<(u64, u64, u64)>>,
}

impl Heard {
    /// Whether so many events came at `from` or later that some may have been dropped.
    fn is_full_since(&self, pid: Pid, from: u64) -> bool {
        let told = self.of.get(&pid).into_iter().flatten();
        told.filter(|(at, ..)| *at >= from).count() >= FEW
    }

    fn is_told(&self, pid: Pid, from: u64, frames: &[u64]) -> bool {
        let told = self.of.get(&pid).into_iter().flatten();
        let is_meant = |&(at, first, end): &(u64, u64, u64)| {
            at >= from && frames.iter().any(|&frame| (first..end).contains(&frame))
        };
        told.into_iter().any(is_meant)
    }
}

/// Hears what the owner says, and lets go of what is to be reclaimed.
pub fn give_way(episode: &Episode, client: &Client, held: &mut Vec<Held<'_>>) {
    let own = episode.machine.running();
    while let Ok(Some(event)) = client.next_event(Duration::ZERO) {
        episode.machine.note(|| format!("hears {event:?}"));
        let frames = match event {
            Event::ReclaimRequested { first_pfn, nr_pages, .. }
            | Event::LeaseRecalled { first_pfn, nr_pages, .. } => (first_pfn, nr_pages),
            Event::MemoryFailure { pfn, .. } => (pfn, 1),
            Event::BackingGone { .. } if episode.may_lose_backings() => continue,
            _ => {
                episode.fail(format!("nothing of that kind happened: {event:?}"));
                continue;
            }
        };
        let at = episode.machine.steps();
        let mut heard = episode.heard.borrow_mut();
        heard.of.entry(own).or_default().push((at, frames.0, frames.0 + frames.1));
    }
    held.retain(|held| {
        if !held.is_reclaim_requested() {
            return true;
        }
        // Its device is notified, or nobody is.
        if held.is_cached {
            return true;
        }
        if episode.heard.borrow().is_told(own, held.from, &held.frames) {
            return false;
        }
        let is_lossy = episode.plan.knobs.lost_event > 0
            || episode.heard.borrow().is_full_since(own, held.from);
        if held.is_overdue(episode) && !is_lossy && held.is_wanted(episode) {
            let (name, frames) = (&held.name, &held.frames);
            episode.fail(format!("no event for {name:?}, frames {frames:?}, to be reclaimed"));
        }
        // What is lost is not waited for.
        held.wanted_since
            .get()
            .is_some_and(|ns| episode.machine.time_ns() < ns + heard_within_ns(episode) * 2)
    });
}
