//! Clients: each carries out its script and tells the model what it asked and what it saw.

use std::time::Duration;

use pgmap::{
    Agent, Client, ConnectOptions, CreateSpec, Error, FileName, FilePin, FileWriter, FolioSize,
    OnDeadline, Refusal, Replace,
};

use crate::episode::{Episode, episode};
use crate::model::{Cut, End, PAGE, fill};
use crate::plan::Op;

/// How long it waits before it tries again to attach.
const AGAIN: Duration = Duration::from_millis(30);
/// How long its calls wait for an owner.
const DEADLINE: Duration = Duration::from_millis(800);
/// Most bytes written at a time, so that others may run in between.
const PIECE: usize = 2 * PAGE as usize;

/// Carries out the script of client `number`, from where an earlier incarnation stopped.
pub fn run(number: usize) {
    let episode = episode();
    while has_more(&episode, number) {
        let Some(client) = attach(&episode) else { return };
        let threads: Vec<_> = (1..episode.plan.threads)
            .filter_map(|_| {
                let client = client.clone();
                let run = move || work(&crate::episode::episode(), &client, number);
                pgmap_os::thread::Builder::new().spawn(run).ok()
            })
            .collect();
        work(&episode, &client, number);
        for thread in threads {
            drop(thread.join());
        }
    }
}

fn has_more(episode: &Episode, number: usize) -> bool {
    episode.next_op.borrow()[number] < episode.plan.scripts[number].len()
}

fn attach(episode: &Episode) -> Option<Client> {
    let options = ConnectOptions::new().deadline(DEADLINE);
    loop {
        match Client::connect_with(&episode.socket, &options) {
            Ok(client) => return Some(client),
            Err(error) => episode.machine.note(|| format!("cannot attach: {error}")),
        }
        if episode.is_last.get() && !episode.plan.is_kept {
            return None;
        }
        if episode.is_last.get() && episode.next_op.borrow().iter().all(|&next| next == usize::MAX)
        {
            return None;
        }
        pgmap_os::thread::sleep(AGAIN);
    }
}

/// A pin that is kept, what it showed, and until when.
struct Held<'c> {
    pin: FilePin<'c>,
    bytes: Vec<u8>,
    until_step: u64,
    name: String,
    number: u64,
}

impl Held<'_> {
    fn check(&self, episode: &Episode) {
        match self.pin.to_vec() {
            Ok(bytes) if bytes == self.bytes => {}
            Ok(bytes) => {
                let model = episode.model.borrow();
                episode.check(model.held(&self.name, self.number, &self.bytes, &bytes));
            }
            Err(error) => episode.fail(format!("a pin of {:?} cannot be read: {error}", self.name)),
        }
    }
}

fn work(episode: &Episode, client: &Client, number: usize) {
    let mut held: Vec<Held<'_>> = Vec::new();
    loop {
        let step = episode.machine.steps();
        held.retain(|held| {
            held.check(episode);
            held.until_step > step
        });
        let next = episode.next_op.borrow()[number];
        let Some(&op) = episode.plan.scripts[number].get(next) else { break };
        episode.next_op.borrow_mut()[number] = next + 1;
        episode.machine.note(|| format!("{op:?}"));
        if op == Op::Leave {
            break;
        }
        carry_out(episode, client, op, &mut held);
    }
    held.iter().for_each(|held| held.check(episode));
}

fn name_of(name: u8) -> String {
    format!("file{name}")
}

/// Whether what was asked was not done. A commit whose owner went may have been done; so may a change, by
/// the owner's successor, that could be neither synced nor taken back.
fn is_refused(error: &Error) -> bool {
    use Refusal::{Internal, NoDraft};
    matches!(error, Error::Refused(refusal) if !matches!(refusal, NoDraft { .. } | Internal { .. }))
}

/// When something was asked, and of which owner.
#[derive(Clone, Copy)]
struct Asked {
    from: u64,
    owner: u32,
}

impl Asked {
    fn now(episode: &Episode) -> Self {
        Self { from: episode.machine.steps(), owner: episode.nr_owners.get() }
    }

    /// How it ended. A client asks again if the owner went meanwhile, which may have done it before: a
    /// refusal says nothing then.
    fn end(self, episode: &Episode, result: &Result<(), Error>) -> End {
        let now = episode.machine.steps();
        match result {
            Ok(()) => End::Done(now),
            Err(error) if is_refused(error) && self.owner == episode.nr_owners.get() => {
                End::Refused(now)
            }
            Err(_) => End::Unknown,
        }
    }
}

fn carry_out<'c>(episode: &Episode, client: &'c Client, op: Op, held: &mut Vec<Held<'c>>) {
    let change = u32::from(op.is_change());
    episode.nr_changes.set(episode.nr_changes.get() + u64::from(change));
    episode.nr_under_way.set(episode.nr_under_way.get() + change);
    let failed = match op {
        Op::Put { name, len, replace } => put(episode, client, &name_of(name), len, replace).err(),
        Op::PutByDevice { name, pages, steps } => {
            put_by_device(episode, client, &name_of(name), pages, steps).err()
        }
        Op::Draft { pages, files } => draft(client, pages, files).err(),
        Op::Get { name, steps } => match get(episode, client, &name_of(name), steps) {
            Ok(kept) => {
                held.extend(kept);
                None
            }
            Err(error) => Some(error),
        },
        Op::Open { name, steps } => open(episode, client, &name_of(name), steps).err(),
        Op::Unlink { name } => unlink(episode, client, &name_of(name)).err(),
        Op::Rename { name, to, replace } => {
            rename(episode, client, &name_of(name), &name_of(to), replace).err()
        }
        Op::Truncate { name, len, deadline_ms, quarantine } => {
            let name = name_of(name);
            let deed = Cut::Shorten(len.into());
            cut(episode, client, &name, deed, quarantine, |on_deadline| {
                client.truncate_or(&name, len.into(), deadline_ms.into(), on_deadline).map(drop)
            })
        }
        Op::Punch { name, page, pages, deadline_ms, quarantine } => {
            let name = name_of(name);
            let pages = u64::from(page)..u64::from(page) + u64::from(pages);
            let deed = Cut::Punch(pages.start, pages.end);
            cut(episode, client, &name, deed, quarantine, |on_deadline| {
                let bytes = pages.start * PAGE..pages.end * PAGE;
                client.punch_or(&name, bytes, deadline_ms.into(), on_deadline).map(drop)
            })
        }
        Op::List => client.list().map(drop).err(),
        Op::Who => client.who(None).map(drop).err(),
        Op::Stat => client.pool_stat().map(drop).err(),
        Op::Trim => client.trim().map(drop).err(),
        Op::Sleep { ms } => {
            pgmap_os::thread::sleep(Duration::from_millis(ms.into()));
            None
        }
        Op::Leave => None,
        Op::Fork { steps } => {
            fork(episode, client, steps);
            None
        }
        Op::Scribble { words } => {
            scribble(episode, client, words);
            None
        }
        Op::Babble { messages } => {
            babble(episode, messages);
            None
        }
    };
    if !matches!(failed, Some(Error::TimedOut { .. } | Error::OwnerGone { .. })) {
        episode.nr_under_way.set(episode.nr_under_way.get() - change);
    }
    if let Some(error) = failed {
        episode.machine.note(|| format!("{op:?}: {error}"));
        if matches!(error, Error::Protocol { .. }) {
            episode.fail(format!("{op:?}: {error}"));
        }
    }
}

fn draft(client: &Client, pages: u8, files: u8) -> Result<(), Error> {
    let spec = |file| {
        let name = FileName::new(format!("draft{file}"))?;
        Ok(CreateSpec::new(name, u64::from(pages) * PAGE, FolioSize::BestFit))
    };
    let specs: Result<Vec<_>, Error> = (0..files).map(spec).collect();
    client.create_batch(specs?).map(drop)
}

fn unlink(episode: &Episode, client: &Client, name: &str) -> Result<(), Error> {
    let asked = Asked::now(episode);
    let from = asked.from;
    episode.model.borrow_mut().remove(name, from);
    let result = client.unlink(name);
    let is_certain = asked.owner == episode.nr_owners.get();
    if is_certain && matches!(result, Err(Error::Refused(Refusal::NotFound { .. }))) {
        let to = episode.machine.steps();
        let missed = episode.model.borrow().missed(name, from, to, Some(from));
        episode.check(missed);
    }
    let end = asked.end(episode, &result);
    episode.model.borrow_mut().removal_ended(name, from, end);
    result
}

fn rename(
    episode: &Episode,
    client: &Client,
    name: &str,
    to: &str,
    replace: bool,
) -> Result<(), Error> {
    let asked = Asked::now(episode);
    let from = asked.from;
    episode.model.borrow_mut().rename(name, to, from, replace);
    let how = if replace { Replace::Yes } else { Replace::No };
    let result = client.rename(name, to, how);
    if let Err(error) = &result {
        note_exists(episode, to, from, error);
    }
    let end = asked.end(episode, &result);
    episode.model.borrow_mut().rename_ended(name, to, from, end);
    result
}

fn cut(
    episode: &Episode,
    client: &Client,
    name: &str,
    cut: Cut,
    quarantine: bool,
    call: impl FnOnce(OnDeadline) -> Result<(), Error>,
) -> Option<Error> {
    let asked = Asked::now(episode);
    let from = asked.from;
    episode.model.borrow_mut().cut(name, cut, from);
    let on_deadline = if quarantine { OnDeadline::Quarantine } else { OnDeadline::Fail };
    let is_alone = episode.nr_under_way.get() == 1;
    let nr_changes = episode.nr_changes.get();
    let before = client.stat(name);
    let result = call(on_deadline);
    if is_alone
        && matches!(result, Err(Error::Refused(_)))
        && nr_changes == episode.nr_changes.get()
    {
        let after = client.stat(name);
        if let (Ok(before), Ok(after)) = (before, after)
            && nr_changes == episode.nr_changes.get()
            && before != after
        {
            episode.fail(format!("a refused cut changed {name:?}: {before:?} is {after:?}"));
        }
    }
    let end = asked.end(episode, &result);
    episode.model.borrow_mut().cut_ended(name, from, episode.machine.steps(), end);
    result.err()
}

fn put(
    episode: &Episode,
    client: &Client,
    name: &str,
    len: u32,
    replace: bool,
) -> Result<(), Error> {
    let number = episode.model.borrow_mut().new_number();
    let asked = Asked::now(episode);
    let from = asked.from;
    episode.model.borrow_mut().put(name, number, len.into(), from, replace);
    let ended = |end| episode.model.borrow_mut().put_ended(name, number, end);
    let mut spec = CreateSpec::new(FileName::new(name)?, len.into(), FolioSize::BestFit);
    spec.replace = replace;
    let draft = client.create_batch(vec![spec]).and_then(|mut drafts| match drafts.pop() {
        Some(draft) => draft,
        None => Err(Error::Protocol { what: "no draft".into() }),
    });
    let mut writer = match draft {
        Ok(writer) => writer,
        Err(error) => {
            note_exists(episode, name, from, &error);
            // Without a commit there is no file.
            ended(End::Refused(episode.machine.steps()));
            return Err(error);
        }
    };
    episode.given(number, &pages_of(&mut writer));
    let mut bytes = vec![0; len as usize];
    for (page, bytes) in bytes.chunks_mut(PAGE as usize).enumerate() {
        fill(bytes, number, page as u64);
    }
    for (at, piece) in bytes.chunks(PIECE).enumerate() {
        if let Err(error) = writer.write_all_at((at * PIECE) as u64, piece) {
            ended(End::Refused(episode.machine.steps()));
            return Err(error);
        }
    }
    let result = writer.commit();
    if let Err(error) = &result {
        note_exists(episode, name, from, error);
    }
    ended(asked.end(episode, &result));
    result
}

/// Pages of the pool that a writer was given.
fn pages_of(writer: &mut FileWriter<'_>) -> Vec<u64> {
    let pages =
        |(_, len, offset): (*mut u8, u64, u64)| (offset / PAGE)..(offset + len).div_ceil(PAGE);
    writer.segments().into_iter().flat_map(pages).collect()
}

/// A name can be taken only if somebody took it.
fn note_exists(episode: &Episode, name: &str, from: u64, error: &Error) {
    if matches!(error, Error::Refused(Refusal::Exists { .. })) {
        let to = episode.machine.steps();
        if !episode.model.borrow().may_be(name, from, to) {
            episode.fail(format!("{name:?} is said to exist between steps {from} and {to}"));
        }
    }
}

fn put_by_device(
    episode: &Episode,
    client: &Client,
    name: &str,
    pages: u8,
    steps: u32,
) -> Result<(), Error> {
    if !episode.has_devices() {
        return Ok(());
    }
    let number = episode.model.borrow_mut().new_number();
    let asked = Asked::now(episode);
    let from = asked.from;
    let len = u64::from(pages) * PAGE;
    let mut writer = client.create(name, len, FolioSize::BestFit)?;
    episode.model.borrow_mut().put(name, number, len, from, false);
    writer.set_agent(Agent::Device);
    let pages = pages_of(&mut writer);
    episode.given(number, &pages);
    episode.may_quarantine.set(true);
    let is_done = episode.transfer(number, &pages, steps);
    while !is_done.get() {
        pgmap_os::thread::yield_now();
    }
    writer.set_agent(Agent::Cpu);
    let result = writer.commit();
    let end = asked.end(episode, &result);
    episode.model.borrow_mut().put_ended(name, number, end);
    result
}

fn get<'c>(
    episode: &Episode,
    client: &'c Client,
    name: &str,
    steps: u32,
) -> Result<Option<Held<'c>>, Error> {
    let from = episode.machine.steps();
    let found = client.get(name);
    let to = episode.machine.steps();
    let pin = match found {
        Ok(pin) => pin,
        Err(error) => {
            if matches!(error, Error::Refused(Refusal::NotFound { .. })) {
                let missed = episode.model.borrow().missed(name, from, to, None);
                episode.check(missed);
            }
            return Err(error);
        }
    };
    let bytes = match pin.to_vec() {
        Ok(bytes) => bytes,
        Err(error) => {
            episode.fail(format!("a pin of {name:?} cannot be read: {error}"));
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
    let until_step = to + u64::from(steps);
    Ok(Some(Held { pin, bytes, until_step, name: name.to_owned(), number }))
}

/// A forked child has what its parent has, and must change nothing by it.
fn fork(episode: &Episode, client: &Client, steps: u32) {
    let client = client.clone();
    let until = episode.machine.steps() + u64::from(steps);
    episode.machine.start("child", move || {
        let episode = crate::episode::episode();
        let names = episode.model.borrow().names();
        for name in names {
            let tried = [client.get(&name).map(drop), client.unlink(&name)];
            if tried.iter().any(|tried| !matches!(tried, Err(Error::Detached))) {
                episode.fail(format!("a forked child is served: {tried:?}"));
            }
        }
        while episode.machine.steps() < until && !episode.is_last.get() {
            pgmap_os::thread::sleep(AGAIN);
        }
    });
}

/// Stores what it likes in its ledger: mostly what looks like a hold.
fn scribble(episode: &Episode, client: &Client, words: u8) {
    for _ in 0..words {
        let index = episode.machine.below(1 << 16) as usize;
        let value = match episode.machine.below(3) {
            0 => episode.machine.below(u64::MAX),
            1 => 1 << 63 | episode.machine.below(1 << 12) << 25 | episode.machine.below(1 << 12),
            _ => episode.machine.below(1 << 12),
        };
        client.scribble(index, value);
    }
}

/// Sends what it likes, and reads what comes back.
fn babble(episode: &Episode, messages: u8) {
    let Ok(connection) = pgmap_os::Connection::connect(&episode.socket) else { return };
    if connection.set_blocking(pgmap_os::Blocking::Never).is_err() {
        return;
    }
    for _ in 0..messages {
        let len = 1 + episode.machine.below(40) as usize;
        let message: Vec<u8> = (0..len).map(|_| episode.machine.below(256) as u8 & 0x83).collect();
        let _sent = connection.send(&message, &[]);
        pgmap_os::thread::yield_now();
        let _received = connection.recv(&mut [0; 512]);
    }
}

/// Opens a file and pins it later, when it may be another's frames that lie there.
fn open(episode: &Episode, client: &Client, name: &str, steps: u32) -> Result<(), Error> {
    let from = episode.machine.steps();
    let file = client.open(name)?;
    while episode.machine.steps() < from + u64::from(steps) && !episode.is_last.get() {
        pgmap_os::thread::sleep(AGAIN);
    }
    let pin = file.pin_all()?;
    let to = episode.machine.steps();
    let bytes = pin.to_vec()?;
    let found = episode.model.borrow().found(name, &bytes, from, to);
    episode.check(found.map(drop));
    Ok(())
}

/// What lies behind a file's end in its last page.
fn tail_of(episode: &Episode, pin: &FilePin<'_>) -> Vec<u8> {
    let Some(last) = pin.segments().last() else { return Vec::new() };
    let end = last.pool_offset + last.len_bytes;
    episode.data_at(end, end.next_multiple_of(PAGE) - end)
}

/// Looks at a pool that everybody has left: nothing is lost, nothing is left over.
pub fn operate() {
    let episode = episode();
    let client = loop {
        let options = ConnectOptions::new();
        match Client::connect_with(&episode.socket, &options) {
            Ok(client) => break client,
            Err(error) => episode.machine.note(|| format!("cannot attach: {error}")),
        }
        pgmap_os::thread::sleep(AGAIN);
    };
    let settled = settle(&episode, &client);
    if let Err(error) = settled {
        episode.fail(format!("the operator: {error}"));
    }
    episode.has_operator_ended.set(true);
}

fn settle(episode: &Episode, client: &Client) -> Result<(), Error> {
    // An owner that had no memory or disk for something tries again.
    pgmap_os::thread::sleep(AGAIN * 4);
    let info = loop {
        let info = client.pool_stat()?;
        let is_at_rest =
            info.reserved_bytes == 0 && info.draining_bytes == 0 && info.nr_clients == 1;
        if is_at_rest {
            break info;
        }
        if let Some(why) = episode.owner_error.borrow().as_ref() {
            episode.machine.note(|| format!("the owner was away: {why}"));
        }
        episode.machine.note(|| format!("not at rest: {info:?}"));
        pgmap_os::thread::sleep(AGAIN);
    };
    let list = client.list()?;
    let allocated: u64 = list.iter().map(|file| file.allocated_bytes).sum();
    let sum = info.free_bytes + info.live_bytes + info.quarantined_bytes + info.poisoned_bytes;
    if sum != info.size_bytes || allocated != info.live_bytes {
        episode.fail(format!("{allocated} bytes of files; the sum is {sum}: {info:?}"));
    }
    if info.quarantined_bytes > 0 && !episode.may_quarantine.get() {
        episode.fail(format!("frames are out of use without a reason: {info:?}"));
    }
    let mut names = episode.model.borrow().names();
    for file in &list {
        let name = String::from_utf8_lossy(file.name.as_bytes()).into_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for name in names {
        let from = episode.machine.steps();
        match client.get(&name) {
            Ok(pin) => {
                let bytes = pin.to_vec()?;
                let to = episode.machine.steps();
                let found = episode.model.borrow().found(&name, &bytes, from, to);
                episode.check(found.map(drop));
                if tail_of(episode, &pin).iter().any(|&byte| byte != 0) {
                    episode.fail(format!("{name:?} is not zero behind its end"));
                }
            }
            Err(Error::Refused(Refusal::NotFound { .. })) => {
                let missed =
                    episode.model.borrow().missed(&name, from, episode.machine.steps(), None);
                episode.check(missed);
            }
            Err(error) => episode.fail(format!("{name:?} cannot be read at the end: {error}")),
        }
        let _removed = client.unlink(&name);
    }
    let info = loop {
        let info = client.pool_stat()?;
        if info.live_bytes == 0 && info.draining_bytes == 0 {
            break info;
        }
        pgmap_os::thread::sleep(AGAIN);
    };
    if info.free_bytes + info.quarantined_bytes != info.size_bytes {
        episode.fail(format!("frames are lost: {info:?}"));
    }
    Ok(())
}
