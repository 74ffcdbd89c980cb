//! The connections of those who follow what becomes of files.
//!
//! One way only: the service sends, and hears nothing but the end. What finds no room in a
//! connection stays in the subscriber's queue until there is room.

use std::collections::HashMap;
use std::os::fd::AsFd;

use pgmap_os::{Connection, Interest, OsError, Poller, Ready, TransferError};

use crate::owner::core::Core;
use crate::wire;

/// The bit of a token that says that it is a subscriber's number.
pub(crate) const LINE: u64 = 1 << 63;
/// Most events of one message.
const MAX_SENT: usize = 64;

struct Line {
    connection: Connection,
    /// Whether nothing is sent until there is room.
    is_full: bool,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Lines {
    lines: HashMap<u64, Line>,
}

impl Lines {
    /// Takes new subscribers, ends those that are over, and sends what is queued.
    pub(crate) fn hand_out(&mut self, core: &mut Core, poller: &Poller) {
        if !core.subscribers.take_news() {
            return;
        }
        for (id, connection) in core.subscribers.take_new_lines() {
            match poller.add(connection.as_fd(), LINE | id, Interest::HangUp) {
                Ok(()) => drop(self.lines.insert(id, Line { connection, is_full: false })),
                Err(error) => {
                    tracing::warn!(%error, "a subscriber cannot be watched");
                    core.subscribers.end(id);
                }
            }
        }
        let numbers: Vec<u64> = self.lines.keys().copied().collect();
        for id in numbers {
            match core.subscribers.has(id) {
                true => self.send(id, core, poller),
                false => self.end(id, core, poller),
            }
        }
    }

    /// What happened to the connection of this token.
    pub(crate) fn on_event(&mut self, event: &Ready, core: &mut Core, poller: &Poller) {
        let id = event.token & !LINE;
        if event.is_hung_up || event.is_failed {
            return self.end(id, core, poller);
        }
        if let Some(line) = self.lines.get_mut(&id).filter(|_| event.is_writable) {
            line.is_full = false;
            self.send(id, core, poller);
            self.watch(id, poller);
        }
    }

    fn send(&mut self, id: u64, core: &mut Core, poller: &Poller) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        while !line.is_full {
            let events = core.subscribers.queued(id, MAX_SENT);
            if events.is_empty() {
                return;
            }
            let sent = wire::encode(&events).map(|message| line.connection.send(&message, &[]));
            match sent {
                Ok(Ok(())) => core.subscribers.sent(id, events.len()),
                Ok(Err(TransferError::WouldBlock)) => line.is_full = true,
                Ok(Err(_)) | Err(_) => return self.end(id, core, poller),
            }
        }
        self.watch(id, poller);
    }

    /// Has the poller tell of room where there is none.
    fn watch(&self, id: u64, poller: &Poller) {
        let Some(line) = self.lines.get(&id) else { return };
        let interest = if line.is_full { Interest::Write } else { Interest::HangUp };
        warn(poller.modify(line.connection.as_fd(), LINE | id, interest));
    }

    fn end(&mut self, id: u64, core: &mut Core, poller: &Poller) {
        core.subscribers.end(id);
        if let Some(line) = self.lines.remove(&id) {
            warn(poller.remove(line.connection.as_fd()));
        }
    }
}

fn warn(done: Result<(), OsError>) {
    if let Err(error) = done {
        tracing::warn!(%error, "a subscriber cannot be watched");
    }
}
