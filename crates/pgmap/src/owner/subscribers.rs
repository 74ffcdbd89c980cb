//! Subscribers to changes of files: events by name prefix, in order, each subscriber at its own
//! pace.
//!
//! The core queues events for each subscriber and waits for nobody. A full queue loses its oldest
//! event; the sequence numbers count every event of a subscriber, sent or not, so that a gap shows
//! with the next one that arrives. Each subscriber has a connection of its own: the service sends
//! (`lines`), and a reader that is slow or gone delays nobody else.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use pgmap_mm::drain::ClientId;
use pgmap_mm::index::{FileId, MAX_NAME_BYTES};
use pgmap_os::{Blocking, Connection};

use crate::error::Error;
use crate::name::FileName;
use crate::owner::core::Core;
use crate::owner::file_book::FileRecord;
use crate::refusal::Refusal;
use crate::wire::{FileChange, FileEvent, MAX_SUBSCRIPTIONS, Reply};

/// Most events that wait for one subscriber, beside those in its connection.
const MAX_QUEUED: usize = 1024;
/// Subscriptions that take the place of one client: each costs a descriptor, a client four.
const SUBSCRIPTIONS_PER_PLACE: u64 = 4;

/// One subscription.
#[derive(Debug)]
struct Subscriber {
    client: ClientId,
    prefix: Vec<u8>,
    changes: Vec<FileChange>,
    /// The number of its last event.
    sequence: u64,
    queue: VecDeque<FileEvent>,
}

/// All subscriptions.
#[derive(Debug, Default)]
pub(crate) struct Subscribers {
    all: BTreeMap<u64, Subscriber>,
    last: u64,
    /// Connections that the service has not taken yet.
    new_lines: Vec<(u64, Connection)>,
    /// Whether there is something for the service to do.
    has_news: bool,
}

impl Subscribers {
    fn wants(&self, change: FileChange) -> bool {
        self.all.values().any(|one| one.changes.contains(&change))
    }

    /// How many clients they take the place of.
    pub(crate) fn places(&self) -> u64 {
        (self.all.len() as u64).div_ceil(SUBSCRIPTIONS_PER_PLACE)
    }

    pub(crate) const fn has_news(&self) -> bool {
        self.has_news
    }

    /// Whether there was something to do since somebody last asked.
    pub(crate) const fn take_news(&mut self) -> bool {
        std::mem::replace(&mut self.has_news, false)
    }

    pub(crate) fn take_new_lines(&mut self) -> Vec<(u64, Connection)> {
        std::mem::take(&mut self.new_lines)
    }

    pub(crate) fn has(&self, id: u64) -> bool {
        self.all.contains_key(&id)
    }

    pub(crate) fn end(&mut self, id: u64) {
        self.all.remove(&id);
    }

    /// The next events of a subscriber, at most so many.
    pub(crate) fn queued(&self, id: u64, most: usize) -> Vec<FileEvent> {
        self.all
            .get(&id)
            .map_or_else(Vec::new, |one| one.queue.iter().take(most).cloned().collect())
    }

    /// Takes note that the next `nr_sent` events were sent.
    pub(crate) fn sent(&mut self, id: u64, nr_sent: usize) {
        if let Some(one) = self.all.get_mut(&id) {
            one.queue.drain(..nr_sent.min(one.queue.len()));
        }
    }
}

/// A file whose name is gone and whose frames may still be held. It ends when the last of them is
/// free.
#[derive(Debug)]
pub(crate) struct Fading {
    name: FileName,
    id: FileId,
    len_bytes: u64,
}

impl Core {
    /// Subscribes a client to changes of files.
    pub(crate) fn subscribe(
        &mut self,
        client: ClientId,
        prefix: Vec<u8>,
        changes: Vec<FileChange>,
    ) -> Result<Reply, Refusal> {
        if prefix.len() > MAX_NAME_BYTES || changes.is_empty() {
            let why = format!(
                "a subscription to {} kinds of changes of names that begin with {} bytes; name at \
                 least one kind, and at most {MAX_NAME_BYTES} bytes",
                changes.len(),
                prefix.len()
            );
            return Err(Refusal::Invalid { why });
        }
        let too_many =
            |what: &str, value, limit| Refusal::TooMuch { what: what.into(), value, limit };
        let all = &self.subscribers.all;
        let nr_theirs = all.values().filter(|one| one.client == client).count() as u64 + 1;
        if nr_theirs > MAX_SUBSCRIPTIONS {
            let what = "subscriptions of one client; drop one";
            return Err(too_many(what, nr_theirs, MAX_SUBSCRIPTIONS));
        }
        let places = (all.len() as u64 + 1).div_ceil(SUBSCRIPTIONS_PER_PLACE);
        let nr_places = self.clients.len() + places;
        if nr_places > self.clients.limit() {
            let what = "clients and subscriptions of the pool; allow its owner more open files";
            return Err(too_many(what, nr_places, self.clients.limit()));
        }
        self.subscribers.last += 1;
        let (id, queue) = (self.subscribers.last, VecDeque::new());
        let subscriber = Subscriber { client, prefix, changes, sequence: 0, queue };
        self.subscribers.all.insert(id, subscriber);
        Ok(Reply::Subscribed { subscription: id })
    }

    /// Makes the connection of a new subscriber: its end of it.
    ///
    /// # Errors
    /// [`Error::Os`] without descriptors; there is no such subscriber then.
    pub(crate) fn open_line(&mut self, id: u64) -> Result<OwnedFd, Error> {
        let made = Connection::pair().and_then(|(ours, theirs)| {
            ours.set_blocking(Blocking::Never)?;
            Ok((ours, theirs))
        });
        let (ours, theirs) = made.inspect_err(|_| self.subscribers.end(id))?;
        self.subscribers.new_lines.push((id, ours));
        self.subscribers.has_news = true;
        Ok(theirs.into())
    }

    /// Ends the subscriptions of a client that is gone.
    pub(crate) fn end_subscriptions(&mut self, client: ClientId) {
        let subscribers = &mut self.subscribers;
        let nr_before = subscribers.all.len();
        subscribers.all.retain(|_, one| one.client != client);
        subscribers.has_news |= subscribers.all.len() != nr_before;
    }

    /// Queues an event for every subscriber that it matches.
    pub(crate) fn announce(
        &mut self,
        change: FileChange,
        name: &FileName,
        id: FileId,
        len_bytes: u64,
    ) {
        let subscribers = &mut self.subscribers;
        for one in subscribers.all.values_mut() {
            let is_its = one.changes.contains(&change) && name.as_bytes().starts_with(&one.prefix);
            if !is_its {
                continue;
            }
            one.sequence += 1;
            if one.queue.len() >= MAX_QUEUED {
                one.queue.pop_front();
            }
            let (sequence, name) = (one.sequence, name.clone());
            one.queue.push_back(FileEvent { sequence, change, name, id: id.0, len_bytes });
            subscribers.has_news = true;
        }
    }

    /// What reports that the frames of a removed file are free; `None` if nobody subscribed to it.
    pub(crate) fn fading(&self, name: &FileName, file: &FileRecord) -> Option<Arc<Fading>> {
        let (id, len_bytes) = (file.id, file.len_bytes);
        let is_wanted = self.subscribers.wants(FileChange::Drained);
        is_wanted.then(|| Arc::new(Fading { name: name.clone(), id, len_bytes }))
    }

    /// A part of a removed file is free.
    pub(crate) fn faded(&mut self, part: Option<Arc<Fading>>) {
        if let Some(Fading { name, id, len_bytes }) = part.and_then(Arc::into_inner) {
            self.announce(FileChange::Drained, &name, id, len_bytes);
        }
    }
}
