//! The operator, who looks at a pool that everybody has left.

use pgmap::{Client, ConnectOptions, Error, PoolInfo, Refusal};

use crate::client::AGAIN;
use crate::closing::end_devices;
use crate::episode::{Episode, episode};
use crate::media;
use crate::parts;
use crate::reads::{check_sums, tail_of};
use crate::verdict::ANY;

/// Looks at a pool that everybody has left: nothing is lost, nothing is left over.
pub fn operate() {
    let episode = episode();
    let client = attach(&episode);
    let mut settled = come_to_rest(&episode, &client).and_then(|()| end_devices(&episode, &client));
    // It may have been a client when a backing was taken out, whose frames are kept as long.
    drop(client);
    if settled.is_ok() {
        settled = settle(&episode, &attach(&episode));
    }
    if let Err(error) = settled {
        episode.fail(format!("the operator: {error}"));
    }
    episode.has_operator_ended.set(true);
}

fn attach(episode: &Episode) -> Client {
    loop {
        match Client::connect_with(&episode.socket, &ConnectOptions::new()) {
            Ok(client) => return client,
            Err(error) => episode.machine.note(|| format!("cannot attach: {error}")),
        }
        pgmap_os::thread::sleep(AGAIN);
    }
}

fn settle(episode: &Episode, client: &Client) -> Result<(), Error> {
    let info = client.pool_stat()?;
    if info.quarantined_bytes > 0 {
        episode.fail(format!("frames are out of use without a reason: {info:?}"));
    }
    let lacking = media::add_all(episode, client)?;
    read_all(episode, client)?;
    let info = loop {
        let info = client.pool_stat()?;
        if info.live_bytes == 0 && info.draining_bytes == 0 && info.poisoned_bytes == 0 {
            break info;
        }
        client.repair_free()?;
        pgmap_os::thread::sleep(AGAIN);
    };
    let size_bytes = episode.most_bytes() - lacking;
    if info.free_bytes != info.size_bytes || info.size_bytes != size_bytes {
        episode.fail(format!("frames are lost: {info:?}"));
    }
    media::remove_all(episode, client)?;
    let info = client.pool_stat()?;
    if info.free_bytes != info.size_bytes || info.size_bytes != episode.data_bytes() {
        episode.fail(format!("frames of backings that are gone are left: {info:?}"));
    }
    check_ledgers(episode, &info);
    Ok(())
}

/// Waits until nothing is under way any more.
fn come_to_rest(episode: &Episode, client: &Client) -> Result<(), Error> {
    // An owner that had no memory or disk for something tries again.
    pgmap_os::thread::sleep(AGAIN * 4);
    loop {
        parts::undo_all(client)?;
        let info = client.pool_stat()?;
        let is_at_rest =
            info.reserved_bytes == 0 && info.draining_bytes == 0 && info.nr_clients == 1;
        if is_at_rest {
            if info.quarantined_bytes > 0 && !episode.may_quarantine.get() {
                episode.fail(format!("frames are out of use without a reason: {info:?}"));
            }
            return Ok(());
        }
        if let Some(why) = episode.owner_error.borrow().as_ref() {
            episode.machine.note(|| format!("the owner was away: {why}"));
        }
        episode.machine.note(|| format!("not at rest: {info:?}"));
        pgmap_os::thread::sleep(AGAIN);
    }
}

/// Reads all files, each of which is what it must be, and removes them.
fn read_all(episode: &Episode, client: &Client) -> Result<(), Error> {
    let info = client.pool_stat()?;
    let list = client.list()?;
    let allocated: u64 = list.iter().map(|file| file.allocated_bytes).sum();
    episode.check(check_sums(&info));
    if allocated != info.live_bytes {
        episode.fail(format!("{allocated} bytes of files: {info:?}"));
    }
    let mut names = episode.model.borrow().names();
    for file in &list {
        let name = String::from_utf8_lossy(file.name.as_bytes()).into_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for name in names {
        read(episode, client, &name)?;
        let _removed = client.unlink(&name);
    }
    Ok(())
}

fn read(episode: &Episode, client: &Client, name: &str) -> Result<(), Error> {
    let from = episode.machine.steps();
    match client.get(name) {
        Ok(pin) => {
            let bytes = pin.to_vec()?;
            let to = episode.machine.steps();
            let found = episode.model.borrow().found(name, &bytes, from, to);
            episode.check(found.map(drop));
            if tail_of(episode, &pin).iter().any(|&byte| byte != 0) {
                episode.fail(format!("{name:?} is not zero behind its end"));
            }
        }
        Err(Error::Refused(Refusal::NotFound { .. })) => {
            let missed =
                episode.model.borrow().missed(name, from, episode.machine.steps(), (None, &[]));
            episode.check(missed);
        }
        Err(error) if error.kind() == "memory_failed" && episode.failures.borrow().is_any() => {}
        Err(error) => episode.fail(format!("{name:?} cannot be read at the end: {error}")),
    }
    Ok(())
}

/// Whoever has ended, with all devices of theirs, has no ledger any more.
fn check_ledgers(episode: &Episode, info: &PoolInfo) {
    let pid = episode.owner_pid.get();
    let is_sound = !episode.machine.has_failed_since(episode.owner_from.get(), pid, &ANY);
    let Ok(entries) = std::fs::read_dir(episode.directory.join("ledgers")) else { return };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let ledgers: Vec<String> = names.filter(|name| name.parse::<u64>().is_ok()).collect();
    if is_sound && info.orphaned_bytes == 0 && ledgers.len() as u64 > info.nr_clients {
        episode.fail(format!("ledgers of nobody are left: {ledgers:?}, {info:?}"));
    }
}
