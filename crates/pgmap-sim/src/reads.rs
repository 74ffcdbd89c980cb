//! What clients look at and hold.

use pgmap::{Access, Agent, Client, Error, FilePin, PoolInfo};

use crate::books::{Turn, agree};
use crate::changes::{DEADLINE_MS, is_forbidden, judge, learn};
use crate::client::AGAIN;
use crate::episode::Episode;
use crate::held::Held;
use crate::holders::Pinned;
use crate::model::PAGE;
use crate::verdict::{Asked, Verb};

/// Judges what came of looking for a file, on which nobody else may have worked meanwhile.
pub fn judge_pin<T>(
    episode: &Episode,
    asked: Asked,
    name: &str,
    turn: &Turn,
    result: &Result<T, Error>,
) {
    judge(episode, asked, Verb::Pin(name), None, result);
    let books = episode.books.borrow();
    if books.is_exact(turn, episode.nr_owners.get()) {
        let expected = books.shape(name).refusal_of_use();
        episode.check(agree("a look for a file", expected, result));
    }
}

/// Finds a file, reads it, and holds it for so many steps.
pub fn get<'c>(
    episode: &Episode,
    client: &'c Client,
    name: &str,
    steps: u32,
) -> Result<Option<Held<'c>>, Error> {
    let asked = Asked::now(episode);
    let turn = episode.books.borrow_mut().look(name, asked.owner);
    let found = client.get(name);
    judge_pin(episode, asked, name, &turn, &found);
    hold(episode, name, asked.from, steps, found?)
}

/// As [`get`], long-term and with the owner's consent.
pub fn lease<'c>(
    episode: &Episode,
    client: &'c Client,
    name: &str,
    steps: u32,
) -> Result<Option<Held<'c>>, Error> {
    let asked = Asked::now(episode);
    let turn = episode.books.borrow_mut().look(name, asked.owner);
    let found = client.open(name);
    judge_pin(episode, asked, name, &turn, &found);
    let file = found?;
    let leased = file.lease(0..file.len_bytes(), Agent::Cpu, Access::Write);
    judge(episode, asked, Verb::Lease(name), None, &leased);
    let books = episode.books.borrow();
    let is_denied = matches!(&leased, Err(error) if error.kind() == "denied");
    if books.is_exact(&turn, episode.nr_owners.get()) && books.shape(name).is_whole() && !is_denied
    {
        episode.check(agree("a lease", "", &leased));
    }
    drop(books);
    let held = hold(episode, name, asked.from, steps, leased?)?;
    if let Some(held) = &held
        && let Some(number) = held.version()
        && is_forbidden(number)
    {
        episode.fail(format!("version {number} of {name:?} was pinned long-term"));
    }
    Ok(held)
}

/// Reads what was pinned after step `from`, and keeps the pin.
fn hold<'c>(
    episode: &Episode,
    name: &str,
    from: u64,
    steps: u32,
    pin: FilePin<'c>,
) -> Result<Option<Held<'c>>, Error> {
    let to = episode.machine.steps();
    let bytes = match pin.to_vec() {
        Ok(bytes) => bytes,
        Err(error) => {
            episode.unreadable(name, &error.to_string());
            return Err(error);
        }
    };
    let tail = tail_of(episode, &pin);
    let seen = episode.model.borrow().found(name, &bytes, from, to);
    let number = match seen {
        Ok(number) => number,
        Err(what) => {
            episode.fail(what);
            return Ok(None);
        }
    };
    episode.machine.note(|| format!("{name} is version {number}"));
    if !episode.may_leave_tails() {
        episode.check(episode.model.borrow().tail(name, number, bytes.len() as u64, &tail, from));
    }
    let frames = pin
        .segments()
        .flat_map(|own| own.pool_offset / PAGE..(own.pool_offset + own.len_bytes).div_ceil(PAGE));
    let frames: Vec<u64> = frames.collect();
    episode.check_healthy(&frames, from);
    let has_memory = |(_, bytes): &(usize, &[u8])| bytes.iter().any(|&byte| byte != 0);
    let pages = bytes.chunks(PAGE as usize).enumerate().filter(has_memory);
    let pages = pages.map(|(page, _)| page as u64).collect();
    let version = Some((number, pages));
    let holding = episode.hold(Some(Pinned { from, frames: frames.clone(), version }));
    let until_step = to + u64::from(steps);
    let name = name.to_owned();
    Ok(Some(Held::of_file(pin, (bytes, frames), until_step, (name, number), holding)))
}

/// Opens a file and pins it later, when it may be another's frames that lie there.
pub fn open(episode: &Episode, client: &Client, name: &str, steps: u32) -> Result<(), Error> {
    let asked = Asked::now(episode);
    let turn = episode.books.borrow_mut().look(name, asked.owner);
    let found = client.open(name);
    judge_pin(episode, asked, name, &turn, &found);
    let file = found?;
    let until = asked.from + u64::from(steps);
    while episode.machine.steps() < until && !episode.is_last.get() {
        pgmap_os::thread::sleep(AGAIN);
    }
    let pinned = file.pin_all();
    judge(episode, asked, Verb::Pin(name), None, &pinned);
    let pin = pinned?;
    let to = episode.machine.steps();
    let bytes = pin.to_vec()?;
    let found = episode.model.borrow().found(name, &bytes, asked.from, to);
    episode.check(found.map(drop));
    Ok(())
}

/// What lies behind a file's end in its last page.
pub fn tail_of(episode: &Episode, pin: &FilePin<'_>) -> Vec<u8> {
    let Some(last) = pin.segments().last() else { return Vec::new() };
    let end = last.pool_offset + last.len_bytes;
    episode.data_at(end, end.next_multiple_of(PAGE) - end)
}

/// Lists all files, each of which is what it must be.
pub fn list(episode: &Episode, client: &Client) -> Result<(), Error> {
    let asked = Asked::now(episode);
    let names = episode.model.borrow().names();
    let turns: Vec<(String, Turn)> = names
        .into_iter()
        .map(|name| {
            let turn = episode.books.borrow_mut().look(&name, asked.owner);
            (name, turn)
        })
        .collect();
    let listed = client.list();
    judge(episode, asked, Verb::Look, Some(DEADLINE_MS), &listed);
    let files = listed?;
    for (name, turn) in turns {
        if !episode.books.borrow().is_exact(&turn, episode.nr_owners.get()) {
            continue;
        }
        let file = files.iter().find(|file| file.name.as_bytes() == name.as_bytes());
        match file {
            Some(file) => learn(episode, &name, &Ok(file.clone())),
            None => {
                let refusal = pgmap::Refusal::NotFound { name: name.clone() };
                learn(episode, &name, &Err(refusal.into()));
            }
        }
    }
    let to = episode.machine.steps();
    for file in files {
        let name = String::from_utf8_lossy(file.name.as_bytes()).into_owned();
        if !episode.model.borrow().may_be(&name, asked.from, to) {
            episode.fail(format!("{name:?} is listed between steps {} and {to}", asked.from));
        }
    }
    Ok(())
}

/// Looks at the pool, whose sums are right at any time.
pub fn stat(episode: &Episode, client: &Client) -> Result<(), Error> {
    let asked = Asked::now(episode);
    let result = client.pool_stat();
    judge(episode, asked, Verb::Look, Some(DEADLINE_MS), &result);
    let info = result?;
    episode.check(check_sums(&info));
    let sum = episode.books.borrow().sum();
    if let (true, Some(sum)) = (asked.is_quiet(episode), sum)
        && (info.live_bytes, info.nr_files, info.reserved_bytes) != (sum.0, sum.1, info.spare_bytes)
    {
        episode
            .fail(format!("{} bytes of {} files, and nobody is at work: {info:?}", sum.0, sum.1));
    }
    Ok(())
}

/// Each frame is counted once.
pub fn check_sums(info: &PoolInfo) -> Result<(), String> {
    let sum = info.free_bytes
        + info.live_bytes
        + info.reserved_bytes
        + info.draining_bytes
        + info.quarantined_bytes
        + info.drained_bytes
        + info.poisoned_bytes;
    // What failed is a file's, too, until that lets go of it.
    let is_sum = (info.size_bytes..=info.size_bytes + info.poisoned_bytes).contains(&sum);
    let is_sound = is_sum && info.longest_free_bytes <= info.free_bytes;
    if is_sound { Ok(()) } else { Err(format!("the sum is {sum}: {info:?}")) }
}
