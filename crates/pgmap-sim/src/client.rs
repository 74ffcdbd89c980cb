//! Clients: each carries out its script.

use std::time::Duration;

use pgmap::space::AddressSpace;
use pgmap::{Client, ConnectOptions, Error, OnDeadline};

use crate::batches::{put_many, unlink_many};
use crate::changes::{DEADLINE_MS, call_off, cut, draft, put, put_by_device, rename, unlink};
use crate::closing::{close, release};
use crate::episode::{Episode, episode};
use crate::failures::{fail, heal, repair};
use crate::held::{Held, give_way, heard_within_ns};
use crate::mappers::{Mapper, space_of};
use crate::media;
use crate::misdeeds::{babble, fork, scribble};
use crate::model::{Cut, PAGE};
use crate::parts::{self, Part};
use crate::plan::{MAX_NAMES, Op, SLOT_PAGES};
use crate::quotas;
use crate::reads::{get, lease, list, open, stat};
use crate::verdict::{Asked, Verb};

/// How long a client waits before it tries again.
pub const AGAIN: Duration = Duration::from_millis(30);

/// Carries out the script of client `number`, from where an earlier incarnation stopped.
pub fn run(number: usize) {
    let episode = episode();
    while has_more(&episode, number) {
        let Some(client) = attach(&episode) else { return };
        let maps = episode.plan.scripts[number].iter().any(|op| op.is_by_address());
        let space = if maps { space_of(&episode, &client) } else { None };
        let threads: Vec<_> = (1..episode.plan.threads)
            .filter_map(|thread| {
                let (client, space) = (client.clone(), space.clone());
                let run = move || {
                    work(&crate::episode::episode(), &client, space.as_deref(), (number, thread));
                };
                pgmap_os::thread::Builder::new().spawn(run).ok()
            })
            .collect();
        work(&episode, &client, space.as_deref(), (number, 0));
        for thread in threads {
            drop(thread.join());
        }
    }
}

/// Carries out the script of client `number`, who lives in the owner's process, as long as that
/// owner does.
pub fn run_embedded(client: &Client, number: usize) {
    let episode = episode();
    episode.is_embedded_busy.set(true);
    promise(&episode, client);
    client.set_deadline(Duration::from_millis(DEADLINE_MS));
    while has_more(&episode, number) && !episode.is_owner_to_end.get() {
        let maps = episode.plan.scripts[number].iter().any(|op| op.is_by_address());
        let space = if maps { space_of(&episode, client) } else { None };
        work(&episode, client, space.as_deref(), (number, 0));
    }
    episode.is_embedded_busy.set(false);
}

fn has_more(episode: &Episode, number: usize) -> bool {
    episode.next_op.borrow()[number] < episode.plan.scripts[number].len()
}

fn attach(episode: &Episode) -> Option<Client> {
    let options = ConnectOptions::new().deadline(Duration::from_millis(DEADLINE_MS));
    loop {
        let asked = Asked::now(episode);
        let result = Client::connect_with(&episode.socket, &options);
        episode.check(asked.check(episode, Verb::Attach, &result));
        episode.check(asked.check_time(episode, DEADLINE_MS, &result));
        match result {
            Ok(client) => {
                promise(episode, &client);
                return Some(client);
            }
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

/// Promises what the plan says of devices.
fn promise(episode: &Episode, client: &Client) {
    if episode.plan.keeps_lock
        && let Err(error) = client.promise_transfers_keep_lock()
    {
        episode.fail(format!("nothing can be promised: {error}"));
    }
}

fn work(
    episode: &Episode,
    client: &Client,
    space: Option<&AddressSpace>,
    (number, thread): (usize, u8),
) {
    let mut mapper = space.map(|space| Mapper::new(space, thread));
    let mut held: Vec<Held<'_>> = Vec::new();
    let mut last = 0;
    loop {
        if episode.machine.steps() == last {
            // By its step the model knows one from another; a refusal may take none.
            let _did = pgmap_os::sim::word();
        }
        let step = episode.machine.steps();
        last = step;
        // What its device was notified of while it was at something else counts as notified.
        let hear = |held: &mut Vec<Held<'_>>| {
            if let Some(mapper) = &mapper {
                mapper.obey(episode, held);
            }
            if episode.plan.is_polite {
                give_way(episode, client, held);
            }
        };
        hear(&mut held);
        // A hold that is kept long enough is notified.
        if held.iter().any(|held| held.until_step <= step && held.awaits_notice(episode)) {
            pgmap_os::thread::sleep(Duration::from_nanos(heard_within_ns(episode)));
            hear(&mut held);
        }
        held.retain(|held| {
            held.check(episode);
            held.until_step > step
        });
        let is_embedded = episode.plan.embedded == Some(number as u8);
        if is_embedded && episode.is_owner_to_end.get() {
            break;
        }
        let next = episode.next_op.borrow()[number];
        let Some(&op) = episode.plan.scripts[number].get(next) else { break };
        episode.next_op.borrow_mut()[number] = next + 1;
        episode.machine.note(|| format!("{op:?}"));
        match (&mut mapper, op) {
            (_, Op::Leave) => break,
            (_, Op::Close { deadline_ms }) => {
                // Its own holds would be in the way.
                held.clear();
                let _busy = episode.begin_op();
                if let Err(error) = close(episode, client, deadline_ms) {
                    episode.machine.note(|| format!("{op:?}: {error}"));
                }
            }
            // A child of the owner's process has all that the owner has: tests with real processes.
            (_, Op::Fork { .. }) if is_embedded => {}
            (Some(mapper), op) if op.is_by_address() => by_address(episode, mapper, op, &mut held),
            _ => carry_out(episode, client, op, &mut held),
        }
    }
    held.iter().for_each(|held| held.check(episode));
}

/// Carries out what is done at addresses.
fn by_address<'s>(episode: &Episode, mapper: &mut Mapper<'s>, op: Op, held: &mut Vec<Held<'s>>) {
    let _busy = episode.begin_op();
    let _holding = op.takes_pins().then(|| episode.hold(None));
    // No area of an operation goes beyond its slot.
    let part = |at: u8, pages: u8| {
        let left = SLOT_PAGES - at % SLOT_PAGES;
        (usize::from(at), usize::from(pages.min(left)))
    };
    let failed: Option<String> = match op {
        Op::Map { name, page, at, pages, write } => {
            let file = (&*name_of(name), u64::from(page));
            mapper.map(episode, file, part(at, pages), write).err().map(|error| error.to_string())
        }
        Op::Unmap { at, pages } => {
            mapper.unmap(episode, part(at, pages), held);
            None
        }
        Op::Remap { at, to } => {
            mapper.remap(episode, at.into(), to.into());
            None
        }
        Op::Protect { at, pages, write } => {
            mapper.protect(episode, part(at, pages), write);
            None
        }
        Op::Refresh => {
            mapper.refresh(episode, held);
            None
        }
        Op::ReadAt { name, at, pages } => {
            mapper.map_where_none(episode, &name_of(name), part(at, SLOT_PAGES));
            mapper.read(episode, part(at, pages)).map(|error| error.to_string())
        }
        Op::PinAt { name, at, pages, how, steps } => {
            mapper.map_where_none(episode, &name_of(name), part(at, SLOT_PAGES));
            match mapper.pin(episode, part(at, pages), how, steps) {
                Ok(kept) => {
                    held.extend(kept);
                    None
                }
                Err(error) => Some(error.to_string()),
            }
        }
        _ => None,
    };
    if let Some(why) = failed {
        episode.machine.note(|| format!("{op:?}: {why}"));
    }
}

fn name_of(name: u8) -> String {
    format!("file{name}")
}

fn patience((deadline_ms, quarantine): (u32, bool)) -> (u32, OnDeadline) {
    (deadline_ms, if quarantine { OnDeadline::Quarantine } else { OnDeadline::Fail })
}

fn carry_out<'c>(episode: &Episode, client: &'c Client, op: Op, held: &mut Vec<Held<'c>>) {
    let _busy = episode.begin_op();
    let _holding = op.takes_pins().then(|| episode.hold(None));
    let failed = match op {
        Op::Get { name, steps } => keep(get(episode, client, &name_of(name), steps), held),
        Op::Lease { name, steps } => keep(lease(episode, client, &name_of(name), steps), held),
        Op::Open { name, steps } => open(episode, client, &name_of(name), steps).err(),
        Op::List => list(episode, client).err(),
        Op::Who => {
            let asked = Asked::now(episode);
            let result = client.who_all();
            episode.check(asked.check(episode, Verb::Look, &result));
            episode.check(asked.check_time(episode, DEADLINE_MS, &result));
            result.err()
        }
        Op::Stat => stat(episode, client).err(),
        Op::Trim => {
            let asked = Asked::now(episode);
            let result = client.trim();
            episode.check(asked.check(episode, Verb::Look, &result));
            result.err()
        }
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
        op => change(episode, client, op).err(),
    };
    if let Some(error) = failed {
        episode.machine.note(|| format!("{op:?}: {error}"));
    }
}

fn keep<'c>(result: Result<Option<Held<'c>>, Error>, held: &mut Vec<Held<'c>>) -> Option<Error> {
    match result {
        Ok(kept) => {
            held.extend(kept);
            None
        }
        Err(error) => Some(error),
    }
}

fn change(episode: &Episode, client: &Client, op: Op) -> Result<(), Error> {
    match op {
        Op::Put { name, len, replace, on, ahead } => {
            put(episode, client, &name_of(name), (len.into(), on), (replace, ahead))
        }
        Op::PutMany { name, files, stride, len, replace } => {
            let names = (0..files).map(|at| name_of((name + at * stride) % MAX_NAMES)).collect();
            put_many(episode, client, names, len.into(), replace)
        }
        Op::UnlinkMany { name, files, unless_held } => {
            let names = (0..files).map(|at| name_of((name + at) % MAX_NAMES)).collect();
            unlink_many(episode, client, names, unless_held)
        }
        Op::PutByDevice { name, pages, steps, on } => {
            put_by_device(episode, client, &name_of(name), (pages, on), steps)
        }
        Op::Draft { pages, files } => draft(episode, client, pages, files),
        Op::Unlink { name } => unlink(episode, client, &name_of(name)),
        Op::Rename { name, to, replace } => {
            rename(episode, client, (&name_of(name), &name_of(to)), replace)
        }
        Op::Truncate { name, len, deadline_ms, quarantine } => {
            let deed = Cut::Shorten(len.into());
            cut(episode, client, &name_of(name), deed, patience((deadline_ms, quarantine)))
        }
        Op::Punch { name, page, pages, deadline_ms, quarantine } => {
            let (page, pages) = (u64::from(page), u64::from(pages));
            let deed = Cut::Punch(page * PAGE, (page + pages) * PAGE);
            cut(episode, client, &name_of(name), deed, patience((deadline_ms, quarantine)))
        }
        Op::PunchBytes { name, from, to, deadline_ms, quarantine } => {
            let deed = Cut::Punch(from.into(), to.into());
            cut(episode, client, &name_of(name), deed, patience((deadline_ms, quarantine)))
        }
        Op::Fail { name, page } => fail(episode, client, &name_of(name), page),
        Op::Heal { name, page } => heal(episode, client, &name_of(name), page),
        Op::Repair => repair(episode, client),
        Op::CallOff { name } => call_off(episode, client, &name_of(name)),
        Op::AddBacking { which } => media::add(episode, client, which),
        Op::RemoveBacking { which, deadline_ms } => {
            media::remove(episode, client, which, deadline_ms)
        }
        Op::Backings => media::look(episode, client).map(drop),
        Op::SetQuota { which, files, pages } => quotas::set(episode, client, which, (files, pages)),
        Op::Quotas => quotas::look(episode, client),
        Op::SetMarks { low, high } => quotas::set_marks(episode, client, (low, high)),
        Op::Release { nth } => release(episode, client, nth),
        Op::DrainPart { which, page, pages, deadline_ms, rest_ms } => {
            parts::drain(episode, client, Part { which, page, pages }, (deadline_ms, rest_ms))
        }
        _ => Ok(()),
    }
}
