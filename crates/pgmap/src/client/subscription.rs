//! Following what becomes of files, and waiting for one.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use pgmap_mm::pin::ClientSide;
use pgmap_os::poll::wait_for;
use pgmap_os::{Blocking, Connection, Interest, TransferError};

use crate::client::file::File;
use crate::client::{Client, unexpected};
use crate::deadline::Deadline;
use crate::error::Error;
use crate::refusal::Refusal;
use crate::wire::{self, FileChange, FileEvent, MAX_MESSAGE_BYTES, Reply, Request};

/// What is followed: all changes of all files, unless something less is said.
#[derive(Clone, Debug)]
pub struct SubscribeOptions {
    prefix: Vec<u8>,
    changes: Vec<FileChange>,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self { prefix: Vec::new(), changes: FileChange::ALL.to_vec() }
    }
}

impl SubscribeOptions {
    /// All changes of all files.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Only files whose names begin with `prefix`.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefix = prefix.as_ref().to_vec();
        self
    }

    /// Only these changes.
    #[must_use]
    pub fn only(mut self, changes: &[FileChange]) -> Self {
        self.changes = changes.to_vec();
        self
    }
}

/// An event, and whether others were lost before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The event.
    pub event: FileEvent,
    /// Events just before it that this subscriber did not get, because it was slow to read.
    pub nr_missed: u64,
}

/// What becomes of files from the subscription on, in order.
///
/// The owner never waits for a reader: of one that does not read it keeps about a thousand events,
/// and loses the oldest. A subscription ends with the owner; [`Error::OwnerGone`] says so, and what
/// happened in between only a listing tells.
///
/// ```
/// use std::time::Duration;
/// use pgmap::{FileChange, FolioSize, Owner, Pool, PoolOptions, SubscribeOptions};
///
/// let owner = Owner::start(Pool::create(&PoolOptions::anonymous(16 << 20))?)?;
/// let client = owner.client()?;
/// let mut changes = client.subscribe(&SubscribeOptions::new().prefix("kv/"))?;
/// client.create("kv/1", 4096, FolioSize::BestFit)?.commit()?;
/// let notice = changes.next(Duration::from_secs(5))?.expect("it was created");
/// assert_eq!((notice.event.change, notice.nr_missed), (FileChange::Created, 0));
/// # Ok::<(), pgmap::Error>(())
/// ```
#[derive(Debug)]
pub struct Subscription {
    client: Client,
    connection: Connection,
    received: VecDeque<FileEvent>,
    /// The number of the last event.
    sequence: u64,
    buffer: Vec<u8>,
}

impl Subscription {
    /// The next event, waiting up to `timeout` for it; `None` if there is none by then.
    ///
    /// # Errors
    /// [`Error::OwnerGone`]; [`Error::Forked`] in a forked child.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Notice>, Error> {
        let deadline = Deadline::after(timeout);
        loop {
            if let Some(notice) = self.try_next()? {
                return Ok(Some(notice));
            }
            let left = deadline.left();
            if left.is_zero() {
                return Ok(None);
            }
            wait_for([(self.connection.as_fd(), Interest::Read)], left)?;
        }
    }

    /// The next event that is there. Whoever waits for the descriptor takes events until there are
    /// no more: one message brings several.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn try_next(&mut self) -> Result<Option<Notice>, Error> {
        if self.client.inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        if self.received.is_empty() {
            self.receive()?;
        }
        let Some(event) = self.received.pop_front() else { return Ok(None) };
        let Some(nr_missed) = event.sequence.checked_sub(self.sequence + 1) else {
            let what = format!("event {} after event {}", event.sequence, self.sequence);
            return Err(Error::Protocol { what });
        };
        self.sequence = event.sequence;
        Ok(Some(Notice { event, nr_missed }))
    }

    fn receive(&mut self) -> Result<(), Error> {
        let why = match self.connection.recv(&mut self.buffer) {
            Ok(received) if received.is_end() => "it ended the subscription".into(),
            Ok(received) => {
                let events: Vec<FileEvent> = wire::decode(&self.buffer[..received.len])?;
                self.received.extend(events);
                return Ok(());
            }
            Err(TransferError::WouldBlock) => return Ok(()),
            Err(error) => error.to_string(),
        };
        Err(Error::OwnerGone { why })
    }
}

impl AsFd for Subscription {
    /// Readable when there may be an event: for `poll`, and never to be read from.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl Client {
    /// Follows what becomes of files.
    ///
    /// # Errors
    /// [`Refusal::TooMuch`] for more than [`MAX_SUBSCRIPTIONS`](wire::MAX_SUBSCRIPTIONS) of a
    /// client; [`Error::OwnerGone`].
    pub fn subscribe(&self, options: &SubscribeOptions) -> Result<Subscription, Error> {
        self.subscribe_within(options, self.deadline())
    }

    fn subscribe_within(
        &self,
        options: &SubscribeOptions,
        limit: Duration,
    ) -> Result<Subscription, Error> {
        let SubscribeOptions { prefix, changes } = options.clone();
        let answer = self.call_for_fds(Request::Subscribe { prefix, changes }, limit)?;
        let (Reply::Subscribed { .. }, mut fds) = answer else {
            return Err(unexpected(&answer.0));
        };
        let Some(fd) = fds.pop().filter(|_| fds.is_empty()) else {
            return Err(Error::Protocol { what: "a subscription without a descriptor".into() });
        };
        let connection = Connection::from_fd(fd)?;
        connection.set_blocking(Blocking::Never)?;
        let buffer = vec![0; MAX_MESSAGE_BYTES];
        let client = self.clone();
        Ok(Subscription { client, connection, received: VecDeque::new(), sequence: 0, buffer })
    }

    /// Waits up to `timeout` until a file of this name is committed; `None` if there is none by
    /// then. One that is there already is found without a call. Goes on when the owner is restarted
    /// meanwhile.
    ///
    /// # Errors
    /// [`Error::OwnerGone`] when the owner is gone and no other comes, and as
    /// [`open`](Self::open).
    pub fn wait_for(
        &self,
        name: impl AsRef<[u8]>,
        timeout: Duration,
    ) -> Result<Option<File<'_>>, Error> {
        let name = name.as_ref();
        let deadline = Deadline::after(timeout);
        if let Some(file) = self.open_if_there(name)? {
            return Ok(Some(file));
        }
        let options = SubscribeOptions::new().prefix(name).only(&[FileChange::Created]);
        loop {
            let limit = deadline.left().min(self.deadline());
            let mut created = match self.subscribe_within(&options, limit) {
                Err(Error::TimedOut { .. } | Error::OwnerGone { .. })
                    if deadline.left().is_zero() =>
                {
                    return Ok(None);
                }
                subscribed => subscribed?,
            };
            // What was committed before the subscription is found here, and of what is committed
            // after it there is an event.
            loop {
                if let Some(file) = self.open_if_there(name)? {
                    return Ok(Some(file));
                }
                match self.next_of(&mut created, name, deadline) {
                    Err(Error::OwnerGone { .. }) => break,
                    told => match told? {
                        true => {}
                        false => return Ok(None),
                    },
                }
            }
        }
    }

    /// Waits until a file of this name may have been created: false if the deadline passed.
    fn next_of(
        &self,
        created: &mut Subscription,
        name: &[u8],
        deadline: Deadline,
    ) -> Result<bool, Error> {
        loop {
            match created.next(deadline.left())? {
                None => return Ok(false),
                Some(Notice { event, nr_missed })
                    if nr_missed > 0 || event.name.as_bytes() == name =>
                {
                    return Ok(true);
                }
                Some(_) => {}
            }
        }
    }

    fn open_if_there(&self, name: &[u8]) -> Result<Option<File<'_>>, Error> {
        match self.open(name) {
            Err(Error::Refused(Refusal::NotFound { .. })) => Ok(None),
            found => found.map(Some),
        }
    }
}
