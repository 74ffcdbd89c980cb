//! What clients do that keep no rules, and forked children, which know of none.

use pgmap::{Client, Error};

use crate::client::AGAIN;
use crate::episode::Episode;

/// A forked child has what its parent has, and must change nothing by it.
pub fn fork(episode: &Episode, client: &Client, steps: u32) {
    let client = client.clone();
    let until = episode.machine.steps() + u64::from(steps);
    episode.machine.start("child", move || {
        let episode = crate::episode::episode();
        let names = episode.model.borrow().names();
        for name in names {
            let tried = [client.get(&name).map(drop), client.unlink(&name)];
            if tried.iter().any(|tried| !matches!(tried, Err(Error::Forked))) {
                episode.fail(format!("a forked child is served: {tried:?}"));
            }
        }
        while episode.machine.steps() < until && !episode.is_last.get() {
            pgmap_os::thread::sleep(AGAIN);
        }
    });
}

/// Stores what it likes in its ledger: mostly what looks like a hold.
pub fn scribble(episode: &Episode, client: &Client, words: u8) {
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
pub fn babble(episode: &Episode, messages: u8) {
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
