//! Which descriptor is ready: a level-triggered epoll.
//!
//! Level-triggered means that a descriptor which is still ready is reported again by the next
//! [`Poller::wait`], so a caller that reads only part of what is there loses nothing. A descriptor
//! is known by the caller's own `u64` token. Remove a descriptor before closing it: epoll watches
//! the open file description, which a copy elsewhere may keep alive.

use crate::OsError;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// At most this many descriptors are reported by one wait; the rest comes with the next.
pub const MAX_READY: usize = 128;

/// What to wait for. Hang-up and errors are always reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// There is something to read, to accept, or the end of it.
    Read,
    /// There is room to write.
    Write,
    /// Either of the two.
    ReadWrite,
    /// Only hang-up and errors.
    HangUp,
}

/// One descriptor that is ready, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// The token it was added under.
    pub token: u64,
    /// There is something to read, or the end of it.
    pub is_readable: bool,
    /// There is room to write.
    pub is_writable: bool,
    /// The peer is gone, or will send no more.
    pub is_hung_up: bool,
    /// The descriptor is in error; reading or writing tells which.
    pub is_failed: bool,
}

/// A set of watched descriptors.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// Makes an empty set.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE` when descriptors run out.
    pub fn new() -> Result<Self, OsError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|errno| OsError::new("create", "an epoll set", errno))?;
        Ok(Self { epoll })
    }

    /// Watches `fd` under `token`.
    ///
    /// # Errors
    /// `EEXIST` if it is already watched; `EPERM` for a regular file, which is always ready.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> Result<(), OsError> {
        epoll::add(&self.epoll, fd.as_fd(), EventData::new_u64(token), interest.flags())
            .map_err(|errno| failed("watch", fd.as_fd(), token, errno))
    }

    /// Changes the token and interest of a watched `fd`.
    ///
    /// # Errors
    /// `ENOENT` if it is not watched.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> Result<(), OsError> {
        epoll::modify(&self.epoll, fd.as_fd(), EventData::new_u64(token), interest.flags())
            .map_err(|errno| failed("re-watch", fd.as_fd(), token, errno))
    }

    /// Stops watching `fd`.
    ///
    /// # Errors
    /// `ENOENT` if it is not watched.
    pub fn remove(&self, fd: impl AsFd) -> Result<(), OsError> {
        epoll::delete(&self.epoll, fd.as_fd()).map_err(|errno| {
            OsError::new("stop watching", format!("descriptor {}", fd.as_fd().as_raw_fd()), errno)
        })
    }

    /// Waits until something is ready or `timeout` has passed (`None`: for ever), and replaces the
    /// contents of `ready` by what is. Empty after a time-out. Signals do not end the wait.
    ///
    /// # Errors
    /// What the kernel says; none is known for a valid set.
    pub fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> Result<(), OsError> {
        ready.clear();
        #[cfg(feature = "sim")]
        if crate::sim::with(|_| ()).is_some() {
            return self.wait_simulated(timeout, ready);
        }
        // A time-out too long for the clock is no time-out.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut events: Vec<Event> = Vec::with_capacity(MAX_READY);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let room = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, room, left.as_ref()) {
                Ok(_) => break,
                // Bounded by the deadline: the time that is left shrinks with each turn.
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(OsError::new("wait for", "an epoll set", errno)),
            }
        }
        ready.extend(events.iter().map(|event| Ready::new(event.data.u64(), event.flags)));
        Ok(())
    }

    /// As [`Self::wait`], in a simulation, which never makes the thread of the machine wait.
    #[cfg(feature = "sim")]
    fn wait_simulated(
        &self,
        timeout: Option<Duration>,
        ready: &mut Vec<Ready>,
    ) -> Result<(), OsError> {
        crate::sim::wait(timeout, || {
            let mut events: Vec<Event> = Vec::with_capacity(MAX_READY);
            let room = rustix::buffer::spare_capacity(&mut events);
            let waited = epoll::wait(&self.epoll, room, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
            waited.map_err(|errno| OsError::new("wait for", "an epoll set", errno))?;
            ready.extend(events.iter().map(|event| Ready::new(event.data.u64(), event.flags)));
            crate::sim::with(|world| world.arrange(ready));
            Ok((!ready.is_empty()).then_some(()))
        })
        .map(drop)
    }
}

/// Waits until one of a few descriptors is ready for what it is listed with, or hung up, or
/// `timeout` has passed, and says which are. For waits that come and go; a [`Poller`] is for those
/// that stay.
///
/// # Errors
/// What the kernel says; none is known for open descriptors.
pub fn wait_for<const N: usize>(
    fds: [(BorrowedFd<'_>, Interest); N],
    timeout: Duration,
) -> Result<[bool; N], OsError> {
    let deadline = Instant::now().checked_add(timeout);
    let mut polled = fds.map(|(fd, interest)| PollFd::from_borrowed_fd(fd, interest.poll_flags()));
    #[cfg(feature = "sim")]
    if crate::sim::with(|_| ()).is_some() {
        let is_ready =
            |polled: &[PollFd<'_>; N]| std::array::from_fn(|at| !polled[at].revents().is_empty());
        let ready = crate::sim::wait(Some(timeout), || {
            rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
                .map_err(|errno| OsError::new("wait for", "a few descriptors", errno))?;
            let ready: [bool; N] = is_ready(&polled);
            Ok(ready.contains(&true).then_some(ready))
        })?;
        return Ok(ready.unwrap_or([false; N]));
    }
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(&mut polled, left.as_ref()) {
            Ok(_) => return Ok(polled.map(|one| !one.revents().is_empty())),
            // Bounded by the deadline, as above.
            Err(Errno::INTR) => {}
            Err(errno) => return Err(OsError::new("wait for", "a few descriptors", errno)),
        }
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Interest {
    fn flags(self) -> EventFlags {
        match self {
            Self::Read => EventFlags::IN | EventFlags::RDHUP,
            Self::Write => EventFlags::OUT | EventFlags::RDHUP,
            Self::ReadWrite => EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP,
            Self::HangUp => EventFlags::RDHUP,
        }
    }
}

impl Interest {
    fn poll_flags(self) -> PollFlags {
        match self {
            Self::Read => PollFlags::IN | PollFlags::RDHUP,
            Self::Write => PollFlags::OUT | PollFlags::RDHUP,
            Self::ReadWrite => PollFlags::IN | PollFlags::OUT | PollFlags::RDHUP,
            Self::HangUp => PollFlags::RDHUP,
        }
    }
}

impl Ready {
    fn new(token: u64, flags: EventFlags) -> Self {
        Self {
            token,
            is_readable: flags.contains(EventFlags::IN),
            is_writable: flags.contains(EventFlags::OUT),
            is_hung_up: flags.intersects(EventFlags::HUP | EventFlags::RDHUP),
            is_failed: flags.contains(EventFlags::ERR),
        }
    }
}

fn failed(what: &'static str, fd: BorrowedFd<'_>, token: u64, errno: Errno) -> OsError {
    OsError::new(what, format!("descriptor {} as token {token}", fd.as_raw_fd()), errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Doorbell;

    const NOW: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn ringing_doorbell_is_reported_until_it_is_cleared() {
        let (poller, bell) = (Poller::new().unwrap(), Doorbell::new().unwrap());
        poller.add(&bell, 7, Interest::Read).unwrap();
        let mut ready = Vec::new();
        poller.wait(NOW, &mut ready).unwrap();
        assert!(ready.is_empty());
        bell.ring().unwrap();
        for _ in 0..2 {
            poller.wait(None, &mut ready).unwrap();
            assert_eq!(ready.len(), 1, "level-triggered: reported again while it rings");
            assert_eq!(ready[0].token, 7);
            assert!(ready[0].is_readable && !ready[0].is_hung_up);
        }
        bell.clear().unwrap();
        poller.wait(NOW, &mut ready).unwrap();
        assert!(ready.is_empty());
    }

    #[test]
    fn token_and_interest_can_change_and_removal_ends_the_reports() {
        let (poller, bell) = (Poller::new().unwrap(), Doorbell::new().unwrap());
        poller.add(&bell, 1, Interest::Read).unwrap();
        poller.modify(&bell, 2, Interest::ReadWrite).unwrap();
        let mut ready = Vec::new();
        poller.wait(NOW, &mut ready).unwrap();
        assert_eq!((ready[0].token, ready[0].is_writable), (2, true));
        poller.remove(&bell).unwrap();
        poller.wait(NOW, &mut ready).unwrap();
        assert!(ready.is_empty());
        assert_eq!(poller.remove(&bell).unwrap_err().errno(), libc::ENOENT);
    }

    #[test]
    fn closed_peer_is_a_hang_up_without_any_interest() {
        let (poller, (reader, writer)) = (Poller::new().unwrap(), rustix::pipe::pipe().unwrap());
        poller.add(&reader, 3, Interest::HangUp).unwrap();
        drop(writer);
        let mut ready = Vec::new();
        poller.wait(None, &mut ready).unwrap();
        assert!(ready[0].is_hung_up);
    }

    #[test]
    fn a_wait_for_a_few_says_which_are_ready_and_ends_by_itself() {
        let (left, right) = (Doorbell::new().unwrap(), Doorbell::new().unwrap());
        let both = || [(left.as_fd(), Interest::Read), (right.as_fd(), Interest::Read)];
        assert_eq!(wait_for(both(), Duration::from_millis(1)).unwrap(), [false, false]);
        right.ring().unwrap();
        assert_eq!(wait_for(both(), Duration::MAX).unwrap(), [false, true]);
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let hung_up = || wait_for([(reader.as_fd(), Interest::HangUp)], Duration::ZERO).unwrap();
        assert_eq!(hung_up(), [false]);
        drop(writer);
        assert_eq!(hung_up(), [true]);
    }

    #[test]
    fn more_ready_descriptors_than_the_bound_come_with_the_next_wait() {
        let poller = Poller::new().unwrap();
        let bells: Vec<_> = (0..MAX_READY + 5).map(|_| Doorbell::new().unwrap()).collect();
        for (token, bell) in bells.iter().enumerate() {
            poller.add(bell, token as u64, Interest::Read).unwrap();
            bell.ring().unwrap();
        }
        let (mut ready, mut nr_left) = (Vec::new(), bells.len());
        for _ in 0..2 {
            poller.wait(NOW, &mut ready).unwrap();
            ready.iter().for_each(|one| assert!(bells[one.token as usize].clear().unwrap()));
            nr_left -= ready.len();
        }
        assert_eq!(nr_left, 0);
    }
}
