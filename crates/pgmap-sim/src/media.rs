//! Further backings: added, taken out, away for a while, and what must be so of them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use pgmap::report::BackingInfo;
use pgmap::{BackingOptions, Client, Error, Placement, Refusal};
use pgmap_os::{FileAccess, MemoryFile, WriteMapping};

use crate::changes::{DEADLINE_MS, judge};
use crate::episode::Episode;
use crate::machine::Machine;
use crate::model::{Model, PAGE};
use crate::plan::On;
use crate::verdict::{ANY, Asked, Verb};

/// Further backings start at multiples of so many frames.
const STEP_FRAMES: u64 = 1 << 18;

/// The memory of a backing, as devices reach it.
pub struct Medium {
    first: u64,
    nr_pages: u64,
    /// Page of the file that the first frame is.
    file_page: u64,
    inode: u64,
    path: PathBuf,
    mapping: WriteMapping,
}

impl Medium {
    /// Maps `nr_pages` frames from `first` on, which lie at `offset_bytes` of a file.
    pub fn open(path: &Path, (first, nr_pages): (u64, u64), offset_bytes: u64) -> Option<Self> {
        let file = MemoryFile::open_named(path, FileAccess::ReadWrite).ok()?;
        let inode = std::fs::metadata(path).ok()?.ino();
        let mapping = WriteMapping::map(&file, offset_bytes, nr_pages * PAGE).ok()?;
        let (path, file_page) = (path.to_owned(), offset_bytes / PAGE);
        Some(Self { first, nr_pages, file_page, inode, path, mapping })
    }

    fn has(&self, frame: u64) -> bool {
        (self.first..self.first + self.nr_pages).contains(&frame)
    }

    fn is_of(&self, path: &Path, frames: (u64, u64)) -> bool {
        self.path == path && (self.first, self.nr_pages) == frames
    }

    /// Whether it lies where it was found.
    fn is_there(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| found.ino() == self.inode)
    }

    /// How often the memory behind a frame was given back.
    pub fn times_punched(&self, machine: &Machine, frame: u64) -> u64 {
        machine.times_punched(self.inode, self.file_page + frame - self.first)
    }

    pub fn write(&self, frame: u64, bytes: &[u8]) -> Result<(), String> {
        let at = (frame - self.first) * PAGE;
        self.mapping.copy_in(at, bytes).map_err(|error| error.to_string())
    }

    /// What lies from a byte of the pool on.
    pub fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; len as usize];
        let read = self.mapping.copy_out(offset - self.first * PAGE, &mut bytes);
        read.map(|()| bytes).map_err(|error| error.to_string())
    }
}

/// Further backings.
#[derive(Default)]
pub struct Media {
    /// Which may be the pool's, and which must.
    names: Model,
    known: Vec<Rc<Medium>>,
    /// Whether one was ever taken out, so that its frames may be kept for a while.
    is_any_retired: bool,
    /// Whether one was ever away.
    is_any_away: bool,
}

impl Media {
    /// The memory that a frame lies in, if that is known.
    pub fn of(&self, frame: u64) -> Option<Rc<Medium>> {
        let own = self.known.iter().rev().find(|own| own.has(frame))?;
        own.is_there().then(|| Rc::clone(own))
    }

    pub fn know(&mut self, medium: Medium) {
        // Frames of a backing that was removed may be another's by now, and its file still there:
        // power was lost before it was unlinked.
        let end = medium.first + medium.nr_pages;
        let is_apart =
            |own: &Rc<Medium>| own.first + own.nr_pages <= medium.first || end <= own.first;
        self.known.retain(is_apart);
        self.known.push(Rc::new(medium));
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The medium of one is taken away. An owner that starts without it has its files, and not
    /// their contents.
    pub fn took_away(&mut self) {
        self.is_any_away = true;
    }

    /// The power failed, and whatever was on record may be lost.
    pub fn power_failed(&mut self, at: u64) {
        self.names.forget(at);
    }
}

/// How a backing is called, and its file.
pub fn name_of(which: u8) -> String {
    format!("b{which}")
}

pub fn placement_of(on: On) -> Placement {
    match on {
        On::Any => Placement::Any,
        On::Data => Placement::Only(vec!["data".into()]),
        On::Only(which) => Placement::Only(vec![name_of(which)]),
        On::Prefer(which) => Placement::Prefer(vec![name_of(which)]),
    }
}

impl Episode {
    pub fn data_bytes(&self) -> u64 {
        u64::from(self.plan.pool_pages) * PAGE
    }

    fn backing_bytes(&self, which: u8) -> u64 {
        self.plan.backings.get(usize::from(which)).map_or(0, |&pages| u64::from(pages) * PAGE)
    }

    /// Bytes of the pool with all backings that it may have.
    pub fn most_bytes(&self) -> u64 {
        self.data_bytes()
            + self.plan.backings.iter().map(|&pages| u64::from(pages) * PAGE).sum::<u64>()
    }

    /// Bytes of the largest backing that a file may lie on there, at least and at most.
    pub fn longest_bytes(&self, on: On) -> (u64, u64) {
        let data = self.data_bytes();
        match on {
            On::Data => (data, data),
            On::Only(which) => (self.backing_bytes(which), self.backing_bytes(which)),
            On::Any | On::Prefer(_) => {
                let further = self.plan.backings.iter().map(|&pages| u64::from(pages) * PAGE);
                (data, further.max().unwrap_or(0).max(data))
            }
        }
    }

    fn medium_path(&self, which: u8) -> PathBuf {
        self.media_directory.join(name_of(which))
    }

    fn away_path(&self, which: u8) -> PathBuf {
        self.media_directory.join(format!("away-{}", name_of(which)))
    }

    /// The medium of a backing is not there any more.
    pub fn take_medium(&self, which: u8) {
        if std::fs::rename(self.medium_path(which), self.away_path(which)).is_ok() {
            self.media.borrow_mut().took_away();
            self.machine.note(|| format!("{} is away", name_of(which)));
        }
    }

    /// It is back.
    pub fn bring_medium(&self, which: u8) {
        let (path, away) = (self.medium_path(which), self.away_path(which));
        if !path.exists() && std::fs::rename(away, path).is_ok() {
            self.machine.note(|| format!("{} is back", name_of(which)));
        }
    }

    /// Whether an owner may have started without one: its medium was away, or could not be opened.
    pub fn may_lack_media(&self) -> bool {
        let (from, owner) = (self.owner_from.get(), self.owner_pid.get());
        let mut media = self.media.borrow_mut();
        media.is_any_away |= self.machine.has_failed_since(from, owner, &ANY);
        media.is_any_away
    }

    /// Whether somebody may have heard that one is no more.
    pub fn may_lose_backings(&self) -> bool {
        self.may_lack_media() || self.media.borrow().is_any_retired
    }

    /// A pin of a file cannot be read: its backing is away.
    pub fn unreadable(&self, name: &str, error: &str) {
        if !error.contains("has nothing behind") || !self.may_lack_media() {
            self.fail(format!("a pin of {name:?} cannot be read: {error}"));
        }
    }

    /// Whether a backing must be the pool's all the while, as far as that is known.
    fn must_have(&self, which: u8, from: u64) -> bool {
        let now = self.machine.steps();
        self.media.borrow().names.missed(&name_of(which), from, now, (None, &[])).is_err()
    }

    fn may_have(&self, which: u8, from: u64) -> bool {
        let now = self.machine.steps();
        self.media.borrow().names.may_be(&name_of(which), from, now)
    }

    /// Frames were given to a file that was to lie there.
    pub fn check_place(&self, on: On, frames: &[u64]) {
        let end = u64::from(self.plan.pool_pages);
        let is_right = |&frame: &u64| match on {
            On::Any | On::Prefer(_) => true,
            On::Data => frame < end,
            On::Only(_) => frame >= end,
        };
        let part = |frame: &u64| if *frame < end { 0 } else { frame / STEP_FRAMES };
        let is_one = frames.iter().all(|frame| part(frame) == part(&frames[0]));
        if !is_one || !frames.iter().all(is_right) {
            self.fail(format!("a file on {on:?} has frames {frames:?}"));
        }
    }

    /// Frames were refused for a file of `len` bytes that was to lie there.
    pub fn check_no_place(&self, on: On, len: u64, from: u64, error: &Error) {
        match error {
            Error::Refused(Refusal::NoSpaceOn { wanted_bytes, tried, .. }) => {
                let names: Vec<&str> = tried.iter().map(|free| free.backing.as_str()).collect();
                let has = |name: &str| names.contains(&name);
                let is_complete = match on {
                    On::Any => has("data"),
                    On::Data => names == ["data"],
                    On::Only(which) => names == [name_of(which)],
                    On::Prefer(which) => {
                        let may_be_missing = self.may_lack_media() || !self.must_have(which, from);
                        has("data") && (may_be_missing || has(&name_of(which)))
                    }
                };
                let is_short = |free: &pgmap::report::FreeOn| {
                    free.longest_bytes <= free.free_bytes && free.free_bytes < *wanted_bytes
                };
                let is_sound = *wanted_bytes == len.next_multiple_of(PAGE)
                    && is_complete
                    && tried.iter().all(is_short);
                if !is_sound {
                    self.fail(format!("{len} bytes on {on:?} were refused so: {error}"));
                }
            }
            Error::Refused(Refusal::NoBacking { backing, .. }) => {
                let is_sound = match on {
                    On::Any | On::Data => false,
                    On::Only(which) | On::Prefer(which) => {
                        // An owner that ended took with it what it had given.
                        self.look_at_owner();
                        backing.is_empty() && self.away_at.get() >= from
                            || *backing == name_of(which)
                                && (self.may_lack_media() || !self.must_have(which, from))
                    }
                };
                if !is_sound {
                    self.fail(format!("a file on {on:?} was refused without a cause: {error}"));
                }
            }
            _ => {}
        }
    }

    /// Learns where the memory of backings lies.
    fn learn_media(&self, infos: &[BackingInfo]) {
        for info in infos.iter().filter(|info| info.id != 0 && info.missing.is_none()) {
            let frames = (info.first_pfn, info.size_bytes / PAGE);
            let is_known = |medium: Rc<Medium>| medium.is_of(Path::new(&info.path), frames);
            if self.media.borrow().of(info.first_pfn).is_some_and(is_known) {
                continue;
            }
            let medium = Medium::open(Path::new(&info.path), frames, info.offset_bytes);
            if let Some(medium) = medium {
                self.media.borrow_mut().know(medium);
            }
        }
    }
}

/// Looks at all backings, each of which is what it must be.
pub fn look(episode: &Episode, client: &Client) -> Result<Vec<BackingInfo>, Error> {
    let asked = Asked::now(episode);
    let listed = client.backings();
    judge(episode, asked, Verb::Look, Some(DEADLINE_MS), &listed);
    let infos = listed?;
    episode.learn_media(&infos);
    let is_data = infos.first().is_some_and(|first| (first.id, first.first_pfn) == (0, 0));
    if !is_data {
        episode.fail(format!("the data is not the first backing: {infos:?}"));
    }
    for which in 0..episode.plan.backings.len() as u8 {
        let info = infos.iter().find(|info| info.name == name_of(which));
        let is_sound = match info {
            None => !episode.must_have(which, asked.from),
            Some(info) => {
                let path = episode.medium_path(which);
                episode.may_have(which, asked.from)
                    && info.size_bytes == episode.backing_bytes(which)
                    && info.longest_free_bytes <= info.free_bytes
                    && info.free_bytes <= info.size_bytes
                    && info.first_pfn > 0
                    && info.first_pfn % STEP_FRAMES == 0
                    && info.path == path.display().to_string()
                    && (info.missing.is_none() || episode.may_lack_media())
            }
        };
        if !is_sound {
            episode.fail(format!("backing {} is {info:?} after {}", name_of(which), asked.from));
        }
    }
    Ok(infos)
}

/// Adds a backing, or takes one back that was away.
pub fn add(episode: &Episode, client: &Client, which: u8) -> Result<(), Error> {
    let size = episode.backing_bytes(which);
    if size == 0 {
        return Ok(());
    }
    let name = name_of(which);
    let asked = Asked::now(episode);
    let number = episode.media.borrow_mut().names.new_number();
    episode.media.borrow_mut().names.put(&name, number, 0, asked.from, false);
    let options = BackingOptions::on(episode.medium_path(which)).size(size).name(&name);
    let result = client.add_backing(&options);
    let was_there = episode.must_have(which, asked.from);
    if result.is_ok() && was_there && !episode.may_lack_media() {
        episode.fail(format!("{name} was added, and was there"));
    }
    let end = asked.end(episode, &result);
    episode.media.borrow_mut().names.put_ended(&name, number, end);
    episode.check(asked.check_time(episode, DEADLINE_MS, &result));
    let Err(error) = &result else {
        look(episode, client)?;
        return result;
    };
    match refusal_of(error) {
        Some(Refusal::Invalid { why })
            if ["already", "give this another name"].iter().any(|text| why.contains(text)) =>
        {
            if !episode.may_have(which, asked.from) {
                episode.fail(format!("{name} is not there: {error}"));
            }
        }
        Some(Refusal::Invalid { why }) if why.contains("do not fit into the room") => {
            if !episode.media.borrow().is_any_retired {
                episode.fail(format!("there is room for {name}: {error}"));
            }
        }
        Some(Refusal::Invalid { why }) if is_leftover(why) => {
            // Of an owner that was killed, or had no room on its disk. The error says what to do.
            if episode.nr_owners.get() == 1 && !episode.machine.has_any_failed() {
                episode.fail(format!("nobody left {name} behind: {error}"));
            }
            tidy(episode, client, which, number)?;
        }
        _ => judge(episode, asked, Verb::Change, None, &result),
    }
    result
}

/// Whether a file is there that is no backing of the pool.
fn is_leftover(why: &str) -> bool {
    why.contains("on record; if nothing of it is needed") || why.contains("there is a file of")
}

/// Removes a file that is left of a backing, unless it may be one by now.
fn tidy(episode: &Episode, client: &Client, which: u8, number: u64) -> Result<(), Error> {
    let infos = look(episode, client)?;
    let is_last = episode.media.borrow().names.nr_versions() == number;
    if is_last && !infos.iter().any(|info| info.name == name_of(which)) {
        let path = episode.medium_path(which);
        episode.machine.note(|| format!("removes {}", path.display()));
        // It may be on record without that its owner could be certain.
        episode.media.borrow_mut().took_away();
        // What is not there any more was somebody else's to remove.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// Takes a backing out.
pub fn remove(
    episode: &Episode,
    client: &Client,
    which: u8,
    deadline_ms: u32,
) -> Result<(), Error> {
    if episode.backing_bytes(which) == 0 {
        return Ok(());
    }
    let name = name_of(which);
    let infos = look(episode, client)?;
    let asked = Asked::now(episode);
    episode.media.borrow_mut().names.remove(&name, asked.from);
    episode.media.borrow_mut().is_any_retired = true;
    let deadline = u64::from(deadline_ms);
    let result = client.remove_backing(&name, Duration::from_millis(deadline));
    let end = asked.end(episode, &result);
    episode.media.borrow_mut().names.removal_ended(&name, asked.from, end);
    episode.check(asked.check_time(episode, deadline + DEADLINE_MS, &result));
    let Err(error) = &result else {
        let info = infos.iter().find(|info| info.name == name);
        if let Some(info) = info {
            let frames = info.first_pfn..info.first_pfn + info.size_bytes / PAGE;
            episode.check_let_go(&format!("{name} was taken out"), asked.from, frames);
            check_gone(episode, asked, which);
        }
        return result;
    };
    let now = episode.machine.steps();
    match refusal_of(error) {
        // An owner that ended had done it.
        Some(Refusal::NoBacking { .. })
            if matches!(error.refusal(), Some(Refusal::MayBeDone { .. })) => {}
        Some(Refusal::NoBacking { .. }) => {
            let missed = episode.media.borrow().names.missed(
                &name,
                asked.from,
                now,
                (Some(asked.from), &[]),
            );
            episode.check(missed);
        }
        Some(Refusal::InUse { doing, .. }) if doing.contains("; unlink them") => {
            if episode.model.borrow().lengths(asked.from, now).is_empty() {
                episode.fail(format!("no file is there: {error}"));
            }
        }
        // Somebody else does, or did for somebody who was killed; or frames are on their way.
        Some(Refusal::InUse { doing, .. })
            if ["already", "not committed", "given back", "undo that"]
                .iter()
                .any(|why| doing.contains(why)) => {}
        Some(Refusal::InUse { .. }) => {
            if !episode.failures.borrow().is_any() && !episode.was_killed() {
                episode.fail(format!("no frame is kept: {error}"));
            }
        }
        Some(Refusal::Held { holders, waited_ms, .. }) => {
            episode.check(asked.check_held(episode, holders, *waited_ms, deadline));
        }
        _ => judge(episode, asked, Verb::Change, None, &result),
    }
    result
}

/// Its file is gone, unless somebody made it again, or it could not be removed.
fn check_gone(episode: &Episode, asked: Asked, which: u8) {
    let path = episode.medium_path(which);
    let was_lacking = episode.machine.has_failed_since(asked.from, episode.owner_pid.get(), &ANY);
    let is_excused = was_lacking
        || asked.owner != episode.nr_owners.get()
        || episode.may_lack_media()
        || episode.may_have(which, episode.machine.steps());
    if !is_excused && path.exists() {
        episode.fail(format!("{} was left behind", path.display()));
    }
}

pub fn refusal_of(error: &Error) -> Option<&Refusal> {
    match error.refusal() {
        Some(Refusal::MayBeDone { refusal, .. }) => Some(refusal),
        refusal => refusal,
    }
}

/// The operator takes back what was away, and adds what is not there. Returns the bytes that could
/// not be had for want of room.
pub fn add_all(episode: &Episode, client: &Client) -> Result<u64, Error> {
    let mut lacking = 0;
    for which in 0..episode.plan.backings.len() as u8 {
        episode.bring_medium(which);
        let mut added = add(episode, client, which);
        if matches!(&added, Err(error) if error.to_string().contains("there is a file of")
            || error.to_string().contains("if nothing of it is needed"))
        {
            added = add(episode, client, which);
        }
        if matches!(&added, Err(error) if error.to_string().contains("take it out, or give")) {
            // It was added, could not be taken off the record when that failed, and its memory is
            // gone.
            remove(episode, client, which, 2_000)?;
            added = add(episode, client, which);
        }
        let infos = look(episode, client)?;
        let info = infos.iter().find(|info| info.name == name_of(which));
        // What was taken out while somebody may have it mapped has its room until then.
        let lacks_room = matches!(&added, Err(error) if error.to_string().contains("into the room"))
            && episode.media.borrow().is_any_retired;
        if info.is_none() && lacks_room {
            lacking += episode.backing_bytes(which);
        } else if info.is_none_or(|info| info.missing.is_some()) {
            episode.fail(format!("{} cannot be had: {added:?}, {info:?}", name_of(which)));
        }
    }
    Ok(lacking)
}

/// The operator takes all of them out, on which no file lies any more.
pub fn remove_all(episode: &Episode, client: &Client) -> Result<(), Error> {
    for which in 0..episode.plan.backings.len() as u8 {
        let infos = look(episode, client)?;
        if !infos.iter().any(|info| info.name == name_of(which)) {
            continue;
        }
        remove(episode, client, which, 2_000)?;
        if look(episode, client)?.iter().any(|info| info.name == name_of(which)) {
            episode.fail(format!("{} is still there", name_of(which)));
        }
    }
    Ok(())
}
