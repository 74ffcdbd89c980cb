//! Several files in one call, each of which has an answer of its own.

use pgmap::{Client, CreateSpec, Error, FileName, FileWriter, FolioSize, Refusal};

use crate::books::Turn;
use crate::changes::{
    DEADLINE_MS, bytes_of, had_room, judge, pages_of, priority_of, put_away, rules_of,
    unlink_ended, write,
};
use crate::episode::Episode;
use crate::model::End;
use crate::plan::On;
use crate::verdict::{Asked, Verb};

/// A file of a batch.
struct Item {
    name: String,
    number: u64,
    turn: Turn,
}

/// Puts `len` bytes under each of several names, one of which may be there twice.
pub fn put_many(
    episode: &Episode,
    client: &Client,
    names: Vec<String>,
    len: u64,
    replaces: bool,
) -> Result<(), Error> {
    let asked = Asked::now(episode);
    let mut specs = Vec::new();
    let mut items = Vec::new();
    for name in names {
        let number = episode.model.borrow_mut().new_number();
        let turn = episode.books.borrow_mut().begin(&[&name], asked.owner);
        episode.model.borrow_mut().put(&name, number, len, asked.from, replaces);
        let mut spec = CreateSpec::new(FileName::new(&name)?, len, FolioSize::BestFit);
        spec.replace = replaces;
        spec.rules = rules_of(number);
        spec.rules.evict_priority = priority_of(number);
        specs.push(spec);
        items.push(Item { name, number, turn });
    }
    // Half of them in one call, which does the rest of this by itself.
    if items.first().is_some_and(|item| item.number % 2 == 0) {
        return put_in_waves(episode, client, asked, (specs, items), (len, replaces));
    }
    let created = client.create_batch(specs);
    judge(episode, asked, Verb::Draft(len, items.len() as u64), None, &created);
    let drafts = match created {
        Ok(drafts) => drafts,
        Err(error) => {
            let end = End::Refused(episode.machine.steps());
            let why = error.to_string();
            for item in items {
                // None of them was answered.
                let result = Err(Error::OwnerGone { why: why.clone() });
                end_put(episode, item, end, len, replaces, &result);
            }
            return Err(error);
        }
    };
    let mut writers: Vec<(Item, FileWriter<'_>)> = Vec::new();
    let nr = items.len() as u64;
    for (item, draft) in items.into_iter().zip(drafts) {
        judge(episode, asked, Verb::Put(&item.name, len, nr), None, &draft);
        if draft.is_ok() {
            had_room(episode, asked, &item.name);
        }
        let number = item.number;
        let written = draft.and_then(|mut writer| {
            episode.given(number, &pages_of(&mut writer), asked.from);
            write(&mut writer, number, len).map(|()| writer)
        });
        match written {
            Ok(writer) => writers.push((item, writer)),
            Err(error) => {
                let end = End::Refused(episode.machine.steps());
                end_put(episode, item, end, len, replaces, &Err(error));
            }
        }
    }
    commit_many(episode, client, asked, writers, len, replaces)
}

/// Puts files by one call.
fn put_in_waves(
    episode: &Episode,
    client: &Client,
    asked: Asked,
    (specs, items): (Vec<CreateSpec>, Vec<Item>),
    (len, replaces): (u64, bool),
) -> Result<(), Error> {
    let contents: Vec<Vec<u8>> = items.iter().map(|item| bytes_of(item.number, len)).collect();
    let files = specs.into_iter().zip(contents.iter().map(Vec::as_slice)).collect();
    let given = |place: usize, writer: &mut FileWriter<'_>| {
        if let Some(item) = items.get(place) {
            episode.given(item.number, &pages_of(writer), asked.from);
        }
    };
    let answered = client.put_batch_seen(files, &given);
    let nr = items.len() as u64;
    let (results, ended) = match answered {
        Ok(results) => (results, Ok(())),
        Err(error) => (items.iter().map(|_| Err(error.again())).collect(), Err(error)),
    };
    for (item, result) in items.into_iter().zip(results) {
        episode.check(asked.check(episode, Verb::Put(&item.name, len, nr), &result));
        if result.is_ok() {
            had_room(episode, asked, &item.name);
        }
        let end = asked.end(episode, &result);
        end_put(episode, item, end, len, replaces, &result);
    }
    ended
}

fn commit_many(
    episode: &Episode,
    client: &Client,
    asked: Asked,
    writers: Vec<(Item, FileWriter<'_>)>,
    len: u64,
    replaces: bool,
) -> Result<(), Error> {
    let commits = Asked::now(episode);
    let (items, writers): (Vec<Item>, Vec<FileWriter<'_>>) = writers.into_iter().unzip();
    let committed = client.commit_batch(writers);
    episode.check(commits.check_time(episode, DEADLINE_MS, &committed));
    let results = match committed {
        Ok(results) => results,
        Err(error) => {
            let result = Err(error);
            episode.check(asked.check(episode, Verb::Change, &result));
            for item in items {
                let end = asked.end(episode, &result);
                end_put(episode, item, end, len, replaces, &result);
            }
            return result;
        }
    };
    let nr = items.len() as u64;
    for (item, result) in items.into_iter().zip(results) {
        let verb = Verb::Put(&item.name, len, nr);
        episode.check(asked.check(episode, verb, &result));
        let end = asked.end(episode, &result);
        end_put(episode, item, end, len, replaces, &result);
    }
    Ok(())
}

fn end_put(
    episode: &Episode,
    item: Item,
    end: End,
    len: u64,
    replaces: bool,
    result: &Result<(), Error>,
) {
    let Item { name, number, turn } = item;
    episode.model.borrow_mut().put_ended(&name, number, end);
    put_away(episode, (&name, turn), (len, On::Any), replaces, result);
}

/// Takes several names away; only of files that nobody holds if `unless_held`.
pub fn unlink_many(
    episode: &Episode,
    client: &Client,
    names: Vec<String>,
    unless_held: bool,
) -> Result<(), Error> {
    let mut files = Vec::new();
    let mut turns = Vec::new();
    for name in names {
        // Each has a step of its own, by which the model knows it.
        let asked = Asked::now(episode);
        turns.push((asked, episode.books.borrow_mut().begin(&[&name], asked.owner)));
        episode.model.borrow_mut().remove(&name, asked.from);
        files.push(FileName::new(&name)?);
    }
    let names: Vec<String> = files.iter().map(ToString::to_string).collect();
    let answer = if unless_held {
        // One of them once more: it can be taken away but once.
        files.extend(files.first().cloned());
        let answer = client.unlink_unless_held_batch(&files);
        answer.inspect(|results| check_last(episode, results))
    } else {
        client.unlink_batch(&files)
    };
    let results: Vec<Result<(), Error>> = match answer {
        Ok(results) => results,
        Err(Error::Refused(refusal)) => {
            let refused = |_| Err(Error::Refused(Refusal::clone(&refusal)));
            names.iter().map(refused).collect()
        }
        Err(error) => {
            let why = error.to_string();
            names.iter().map(|_| Err(Error::OwnerGone { why: why.clone() })).collect()
        }
    };
    for ((name, (asked, turn)), result) in names.iter().zip(turns).zip(results) {
        if !matches!(result, Err(Error::OwnerGone { .. })) {
            let verb = if unless_held { Verb::UnlinkUnheld(name) } else { Verb::Unlink(name) };
            judge(episode, asked, verb, None, &result);
        }
        if unless_held && result.is_ok() {
            episode.check_was_unheld(name, asked.from);
        }
        unlink_ended(episode, name, asked, turn, &result);
    }
    Ok(())
}

/// A file that was named twice was not taken away twice.
fn check_last(episode: &Episode, results: &[Result<(), Error>]) {
    if let ([Ok(()), ..], [.., Ok(())]) = (results, results) {
        episode.fail("a file that was named twice was taken away twice");
    }
}
