//! What clients change: each operation tells the model what it asked, and has its answer judged.

use std::time::Duration;

use pgmap::{
    Agent, Client, CreateSpec, Error, FileInfo, FileName, FileRules, FileWriter, FolioSize,
    LongtermRule, OnDeadline, Refusal, Replace,
};

use crate::books::{Books, Shape, Turn, UNKNOWN, agree, describes};
use crate::episode::Episode;
use crate::media::placement_of;
use crate::model::{Cut, End, PAGE, fill, is_evictable};
use crate::plan::On;
use crate::verdict::{Asked, Verb, is_answered};

/// Most bytes written at a time, so that others may run in between.
const PIECE: usize = 2 * PAGE as usize;
/// How long calls wait for an owner, in milliseconds.
pub const DEADLINE_MS: u64 = 800;

/// Judges the answer to a call that waits for at most `limit_ms`.
pub fn judge<T>(
    episode: &Episode,
    asked: Asked,
    verb: Verb<'_>,
    limit_ms: Option<u64>,
    result: &Result<T, Error>,
) {
    episode.check(asked.check(episode, verb, result));
    if let Some(limit_ms) = limit_ms {
        episode.check(asked.check_time(episode, limit_ms, result));
    }
}

/// The step at which an answer came, if one did.
pub fn answered_at<T>(episode: &Episode, result: &Result<T, Error>) -> Option<u64> {
    is_answered(result).then(|| episode.machine.steps())
}

pub fn draft(episode: &Episode, client: &Client, pages: u32, files: u8) -> Result<(), Error> {
    let len = u64::from(pages) * PAGE;
    let spec = |file| {
        let name = FileName::new(format!("draft{file}"))?;
        Ok(CreateSpec::new(name, len, FolioSize::BestFit))
    };
    let specs: Result<Vec<_>, Error> = (0..files).map(spec).collect();
    let specs = specs?;
    let asked = Asked::now(episode);
    // Whoever is killed, or has no answer, may have left drafts that are given up later.
    let turn = episode.books.borrow_mut().begin(&["draft"], asked.owner);
    let verb = Verb::Draft(len, files.into());
    let result = client.create_batch(specs);
    judge(episode, asked, verb, None, &result);
    let answered_at = answered_at(episode, &result);
    let ended = match result {
        Ok(drafts) => {
            drafts.iter().for_each(|draft| judge(episode, asked, verb, None, draft));
            Ok(())
        }
        Err(error) => Err(error),
    };
    let mut books = episode.books.borrow_mut();
    books.end(turn, answered_at, episode.nr_owners.get());
    books.set("draft", Shape::Absent);
    ended
}

pub fn unlink(episode: &Episode, client: &Client, name: &str) -> Result<(), Error> {
    let asked = Asked::now(episode);
    let turn = episode.books.borrow_mut().begin(&[name], asked.owner);
    episode.model.borrow_mut().remove(name, asked.from);
    let result = client.unlink(name);
    judge(episode, asked, Verb::Unlink(name), Some(DEADLINE_MS), &result);
    unlink_ended(episode, name, asked, turn, &result);
    result
}

/// An unlink ended so, alone or in a batch.
pub fn unlink_ended(
    episode: &Episode,
    name: &str,
    asked: Asked,
    turn: Turn,
    result: &Result<(), Error>,
) {
    let end = asked.end(episode, result);
    episode.model.borrow_mut().removal_ended(name, asked.from, end);
    let mut books = episode.books.borrow_mut();
    if books.is_exact(&turn, episode.nr_owners.get()) {
        let shape = books.shape(name);
        if !matches!(result, Err(Error::Refused(Refusal::Held { .. }))) {
            episode.check(agree("an unlink", shape.refusal_of_use(), result));
        }
        if result.is_ok() {
            books.set(name, Shape::Absent);
        }
    }
    books.end(turn, answered_at(episode, result), episode.nr_owners.get());
}

pub fn rename(
    episode: &Episode,
    client: &Client,
    (name, to): (&str, &str),
    replaces: bool,
) -> Result<(), Error> {
    let asked = Asked::now(episode);
    let turn = episode.books.borrow_mut().begin(&[name, to], asked.owner);
    episode.model.borrow_mut().rename(name, to, asked.from, replaces);
    let how = if replaces { Replace::Yes } else { Replace::No };
    let result = client.rename(name, to, how);
    judge(episode, asked, Verb::Rename(name, to), Some(DEADLINE_MS), &result);
    let end = asked.end(episode, &result);
    episode.model.borrow_mut().rename_ended(name, to, asked.from, end);
    let mut books = episode.books.borrow_mut();
    if books.is_exact(&turn, episode.nr_owners.get()) {
        let shape = books.shape(name);
        let expected = match shape.refusal_of_use() {
            "" if name != to => books.shape(to).refusal_of_name(replaces),
            expected => expected,
        };
        episode.check(agree("a rename", expected, &result));
        if result.is_ok() && name != to {
            books.set(name, Shape::Absent);
            books.set(to, shape);
        }
    }
    books.end(turn, answered_at(episode, &result), episode.nr_owners.get());
    result
}

/// Cuts a file, of which it holds nothing itself.
pub fn cut(
    episode: &Episode,
    client: &Client,
    name: &str,
    cut: Cut,
    (deadline_ms, on_deadline): (u32, OnDeadline),
) -> Result<(), Error> {
    let mut asked = Asked::now(episode);
    let turn = episode.books.borrow_mut().begin(&[name], asked.owner);
    let before = client.stat(name);
    judge(episode, asked, Verb::Pin(name), Some(DEADLINE_MS), &before);
    if episode.books.borrow().is_exact(&turn, episode.nr_owners.get()) {
        learn(episode, name, &before);
    }
    asked = Asked::now(episode);
    episode.model.borrow_mut().cut(name, cut, asked.from);
    episode.books.borrow_mut().begin_cut(name);
    if on_deadline == OnDeadline::Quarantine {
        episode.begin_quarantine();
    }
    let deadline = u64::from(deadline_ms);
    let called = match cut {
        Cut::Shorten(len) => {
            client.truncate_or(name, len, Duration::from_millis(deadline), on_deadline)
        }
        Cut::Punch(from, to) => {
            client.punch_or(name, from..to, Duration::from_millis(deadline), on_deadline)
        }
        Cut::Heal(page) => {
            let zeros = [0; PAGE as usize];
            client.clear_poison(name, page * PAGE, &zeros).map(|()| Vec::new())
        }
    };
    // A cut waits until its own deadline, and then as long as any call.
    judge(episode, asked, Verb::Cut(name, deadline), Some(deadline + DEADLINE_MS), &called);
    if on_deadline == OnDeadline::Quarantine && is_answered(&called) {
        episode.end_quarantine();
    }
    let is_done = matches!(&called, Ok(holders) if holders.is_empty());
    let result = called.map(drop);
    let end = asked.end(episode, &result);
    let now = episode.machine.steps();
    episode.model.borrow_mut().cut_ended(name, asked.from, now, end);
    if is_done {
        episode.check_cut_off(name, cut, asked.from);
    }
    let answered_at = answered_at(episode, &result);
    let mut is_exact = episode.books.borrow().is_exact(&turn, episode.nr_owners.get());
    if is_exact {
        let mut books = episode.books.borrow_mut();
        let shape = books.shape(name);
        episode.check(agree("a cut", shape.refusal_of_cut(cut), &result));
        if result.is_ok() {
            let after = shape.after(cut);
            books.set(name, after);
        }
    }
    if let (Ok(before), Err(Error::Refused(_)), true) = (&before, &result, is_exact) {
        let after = client.stat(name);
        is_exact = episode.books.borrow().is_exact(&turn, episode.nr_owners.get());
        // Memory that failed meanwhile stays cut out.
        let is_whole = !episode.failures.borrow().is_any();
        if let (Ok(after), true, true) = (after, is_exact, is_whole)
            && *before != after
        {
            episode.fail(format!("a refused cut changed {name:?}: {before:?} is {after:?}"));
        }
    }
    let mut books = episode.books.borrow_mut();
    books.end_cut(name, answered_at);
    books.end(turn, answered_at, episode.nr_owners.get());
    result
}

/// The owner described a file on which nobody else works.
pub fn learn(episode: &Episode, name: &str, info: &Result<FileInfo, Error>) {
    let mut books = episode.books.borrow_mut();
    let shape = books.shape(name);
    let learned = match info {
        Ok(info) => describes(&shape, Some(info)),
        Err(error) if error.kind() == "not_found" => describes(&shape, None),
        Err(_) => return,
    };
    match learned {
        Ok(shape) => books.set(name, shape),
        Err(what) => episode.fail(format!("{name:?}: {what}")),
    }
}

pub fn call_off(episode: &Episode, client: &Client, name: &str) -> Result<(), Error> {
    let asked = Asked::now(episode);
    episode.books.borrow_mut().call_off(name, u64::MAX);
    let result = client.cancel_cut(name);
    if is_answered(&result) && asked.owner == episode.nr_owners.get() {
        episode.books.borrow_mut().call_off(name, episode.machine.steps());
    }
    judge(episode, asked, Verb::CallOff(name), Some(DEADLINE_MS), &result);
    // While the pool closes nothing is given back, so that one that was called off is still there.
    let may_be_there =
        |books: &Books| books.may_be_cut(name, asked.from) || books.may_close(asked.from);
    if result.is_ok() && !may_be_there(&episode.books.borrow()) {
        episode.fail(format!("a cut of {name:?} was called off that nobody asked for"));
    }
    result
}

/// Puts `len` bytes under a name.
pub fn put(
    episode: &Episode,
    client: &Client,
    name: &str,
    (len, on): (u64, On),
    (replaces, ahead): (bool, bool),
) -> Result<(), Error> {
    let number = episode.model.borrow_mut().new_number();
    let asked = Asked::now(episode);
    let turn = episode.books.borrow_mut().begin(&[name], asked.owner);
    episode.model.borrow_mut().put(name, number, len, asked.from, replaces);
    let draft = reserve(client, (name, number), (len, on), (replaces, ahead));
    judge_draft(episode, asked, name, (len, on), &draft);
    if draft.is_ok() && !ahead {
        had_room(episode, asked, name);
    }
    let written = draft.and_then(|mut writer| {
        let pages = pages_of(&mut writer);
        episode.check_place(on, &pages);
        episode.given(number, &pages, asked.from);
        write(&mut writer, number, len).map(|()| writer)
    });
    let (result, end) = match written {
        Ok(writer) => commit(episode, asked, writer, Verb::Put(name, len, 1)),
        // Without a commit there is no file.
        Err(error) => (Err(error), End::Refused(episode.machine.steps())),
    };
    if result.is_ok() && ahead {
        // Frames without a name were in no quota of it.
        had_room(episode, asked, name);
    }
    episode.model.borrow_mut().put_ended(name, number, end);
    put_away(episode, (name, turn), (len, on), replaces, &result);
    result
}

/// Judges what came of reserving frames.
fn judge_draft<T>(
    episode: &Episode,
    asked: Asked,
    name: &str,
    (len, on): (u64, On),
    draft: &Result<T, Error>,
) {
    judge(episode, asked, Verb::Put(name, len, 1), None, draft);
    let (_, size) = episode.longest_bytes(on);
    match draft {
        Ok(_) if len > size => episode.fail(format!("{len} bytes were reserved of {size}")),
        Ok(_) => {}
        Err(error) => episode.check_no_place(on, len, asked.from, error),
    }
}

/// A file was reserved: no quota was in the way.
pub fn had_room(episode: &Episode, asked: Asked, name: &str) {
    let now = episode.machine.steps();
    let had = episode.model.borrow().had_room(name, asked.from, now);
    episode.check(had);
}

/// Reserves frames for contents.
fn reserve<'c>(
    client: &'c Client,
    (name, number): (&str, u64),
    (len, on): (u64, On),
    (replaces, ahead): (bool, bool),
) -> Result<FileWriter<'c>, Error> {
    let mut spec = CreateSpec::new(FileName::new(name)?, len, FolioSize::BestFit);
    spec.replace = replaces;
    spec.rules = rules_of(number);
    spec.rules.evict_priority = priority_of(number);
    spec.placement = placement_of(on);
    if ahead {
        return client.create_ahead(spec);
    }
    match client.create_batch(vec![spec])?.pop() {
        Some(draft) => draft,
        None => Err(Error::Protocol { what: "no draft".into() }),
    }
}

/// What may be done with a file: the number of its contents says so.
pub fn rules_of(number: u64) -> FileRules {
    let longterm = match number % 8 {
        1 | 5 => LongtermRule::ForbidDevice,
        2 | 6 => LongtermRule::Leasable,
        FORBIDDEN => LongtermRule::Forbid,
        _ => LongtermRule::AsType,
    };
    FileRules { longterm, ..FileRules::default() }
}

/// Whether the owner may evict these contents, and how soon.
pub fn priority_of(number: u64) -> u8 {
    let may_go = crate::episode::episode().plan.knobs.evicts && is_evictable(number);
    if may_go { 1 + (number / 2 % 2) as u8 } else { 0 }
}

/// Whether nobody may pin these contents long-term.
pub const fn is_forbidden(number: u64) -> bool {
    number % 8 == FORBIDDEN
}

const FORBIDDEN: u64 = 3;

/// Publishes a file that began to be put when `asked` says.
fn commit(
    episode: &Episode,
    asked: Asked,
    writer: FileWriter<'_>,
    verb: Verb<'_>,
) -> (Result<(), Error>, End) {
    let commits = Asked::now(episode);
    let result = writer.commit();
    episode.check(asked.check(episode, verb, &result));
    episode.check(commits.check_time(episode, DEADLINE_MS, &result));
    let end = asked.end(episode, &result);
    (result, end)
}

/// Puts what became of a put into the books.
pub fn put_away(
    episode: &Episode,
    (name, turn): (&str, Turn),
    (len, on): (u64, On),
    replaces: bool,
    result: &Result<(), Error>,
) {
    let mut books = episode.books.borrow_mut();
    if books.is_exact(&turn, episode.nr_owners.get()) {
        let (at_least, at_most) = episode.longest_bytes(on);
        let expected = match books.shape(name).refusal_of_name(replaces) {
            "" if len > at_most => "bad_length",
            "" if len > at_least => UNKNOWN,
            expected => expected,
        };
        episode.check(agree("a put", expected, result));
        if let (Shape::File(..), Err(error)) = (books.shape(name), result)
            && matches!(error, Error::Refused(Refusal::IndexFull { nr_slots })
                if *nr_slots == u64::from(episode.plan.max_files))
        {
            episode.fail(format!("{name:?} is there, and was not put again: {error}"));
        }
        if result.is_ok() {
            books.set(name, Shape::whole(len));
        }
    }
    books.end(turn, answered_at(episode, result), episode.nr_owners.get());
}

pub fn write(writer: &mut FileWriter<'_>, number: u64, len: u64) -> Result<(), Error> {
    for (at, piece) in bytes_of(number, len).chunks(PIECE).enumerate() {
        writer.write_all_at((at * PIECE) as u64, piece)?;
    }
    Ok(())
}

/// Contents `number`.
pub fn bytes_of(number: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    for (page, bytes) in bytes.chunks_mut(PAGE as usize).enumerate() {
        fill(bytes, number, page as u64);
    }
    bytes
}

/// Pages of the pool that a writer was given.
pub fn pages_of(writer: &mut FileWriter<'_>) -> Vec<u64> {
    let pages =
        |(_, len, offset): (*mut u8, u64, u64)| (offset / PAGE)..(offset + len).div_ceil(PAGE);
    writer.segments().into_iter().flat_map(pages).collect()
}

/// As [`put`], and a device writes it, which takes so many steps.
pub fn put_by_device(
    episode: &Episode,
    client: &Client,
    name: &str,
    (pages, on): (u8, On),
    steps: u32,
) -> Result<(), Error> {
    if !episode.has_devices() {
        return Ok(());
    }
    let number = episode.model.borrow_mut().new_number();
    let asked = Asked::now(episode);
    let turn = episode.books.borrow_mut().begin(&[name], asked.owner);
    let len = u64::from(pages) * PAGE;
    let draft = reserve(client, (name, number), (len, on), (false, false));
    judge_draft(episode, asked, name, (len, on), &draft);
    if draft.is_ok() {
        had_room(episode, asked, name);
    }
    let mut writer = match draft {
        Ok(writer) => writer,
        Err(error) => {
            let result = Err(error);
            put_away(episode, (name, turn), (len, on), false, &result);
            return result;
        }
    };
    episode.model.borrow_mut().put(name, number, len, asked.from, false);
    let pages = pages_of(&mut writer);
    episode.check_place(on, &pages);
    episode.given(number, &pages, asked.from);
    let (result, end) = match write_by_device(episode, client, &writer, (number, &pages), steps) {
        Ok(()) => commit(episode, asked, writer, Verb::Put(name, len, 1)),
        Err(error) => (Err(error), End::Refused(episode.machine.steps())),
    };
    episode.model.borrow_mut().put_ended(name, number, end);
    put_away(episode, (name, turn), (len, on), false, &result);
    result
}

/// Has a device write what was reserved, and waits for it.
fn write_by_device(
    episode: &Episode,
    client: &Client,
    writer: &FileWriter<'_>,
    (number, pages): (u64, &[u64]),
    steps: u32,
) -> Result<(), Error> {
    if episode.media.borrow().of(pages[0]).is_none() {
        crate::media::look(episode, client)?;
    }
    let medium = episode.media.borrow().of(pages[0]);
    let Some(medium) = medium else {
        return Err(Error::OwnerGone { why: "the device does not reach that memory".into() });
    };
    let lock = episode.plan.keeps_lock.then(|| client.transfer_lock()).transpose()?;
    writer.set_agent(Agent::Device);
    episode.may_quarantine.set(true);
    let is_done = episode.transfer(number, (medium, pages), steps, lock);
    while !is_done.get() {
        pgmap_os::thread::yield_now();
    }
    writer.set_agent(Agent::Cpu);
    Ok(())
}
