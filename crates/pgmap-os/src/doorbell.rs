//! "Something happened", across processes: an eventfd without a payload.
//!
//! Rings add up into one: a doorbell says *that* there is something to look at, never what or how
//! much. Whoever waits clears it first and looks afterwards, so that a ring in between is not lost.
//!
//! # Trust
//! Both ends share one open file description, hence its `O_NONBLOCK` flag and its counter. A peer
//! that turns the flag off and fills the counter can make [`Doorbell::ring`] block. Towards a peer
//! that is not trusted send a message on a non-blocking socket instead; being *rung* by such a peer
//! is harmless.

use crate::OsError;
use crate::sim;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// An eventfd used as a bell. Poll its descriptor for reading.
#[derive(Debug)]
pub struct Doorbell {
    fd: OwnedFd,
    /// Whether another process made it, which may never hear it.
    #[cfg(feature = "sim")]
    is_foreign: bool,
}

impl Doorbell {
    /// Makes a silent doorbell: non-blocking, closed on exec.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE` when descriptors run out.
    pub fn new() -> Result<Self, OsError> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| OsError::new("create", "a doorbell (eventfd)", errno))?;
        Ok(Self {
            fd,
            #[cfg(feature = "sim")]
            is_foreign: false,
        })
    }

    /// Takes over a doorbell that another process sent.
    ///
    /// # Errors
    /// `EINVAL` if the descriptor is anything but an eventfd: writing into a pipe could block.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, OsError> {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let kind = rustix::fs::readlink(&*link, Vec::new())
            .map_err(|errno| OsError::new("identify", link, errno))?;
        if kind.as_bytes() != b"anon_inode:[eventfd]" {
            let subject = format!("{} as a doorbell", kind.to_string_lossy());
            return Err(
                OsError::new("accept", subject, Errno::INVAL).with_advice("send an eventfd")
            );
        }
        let flags = rustix::fs::fcntl_getfl(&fd)
            .map_err(|errno| OsError::new("read the flags of", "a doorbell", errno))?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)
            .map_err(|errno| OsError::new("set the flags of", "a doorbell", errno))?;
        Ok(Self {
            fd,
            #[cfg(feature = "sim")]
            is_foreign: true,
        })
    }

    /// Rings. A bell that is already ringing as loud as it can counts as rung.
    ///
    /// # Errors
    /// What the kernel says; none is known for an eventfd.
    pub fn ring(&self) -> Result<(), OsError> {
        let write = || rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        #[cfg(feature = "sim")]
        let heard = sim::ring(self.is_foreign);
        #[cfg(not(feature = "sim"))]
        let heard = sim::ring();
        let rung = heard.and_then(|is_heard| match is_heard {
            true => rustix::io::retry_on_intr(write),
            false => Ok(0),
        });
        sim::happened();
        match rung {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(OsError::new("ring", "a doorbell", errno)),
        }
    }

    /// Silences the bell and says whether it was ringing. Clear first, look afterwards.
    ///
    /// # Errors
    /// What the kernel says; none is known for an eventfd.
    pub fn clear(&self) -> Result<bool, OsError> {
        let mut count = [0u8; 8];
        let read = || rustix::io::read(&self.fd, &mut count);
        match sim::call("clear").and_then(|()| rustix::io::retry_on_intr(read)) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(errno) => Err(OsError::new("clear", "a doorbell", errno)),
        }
    }

    /// Makes another handle of the same bell, to give away.
    ///
    /// # Errors
    /// `EMFILE` when descriptors run out.
    pub fn try_clone(&self) -> Result<Self, OsError> {
        let fd = sim::call("dup")
            .and_then(|()| rustix::io::fcntl_dupfd_cloexec(&self.fd, 0))
            .map_err(|errno| OsError::new("duplicate", "a doorbell", errno))?;
        Ok(Self {
            fd,
            #[cfg(feature = "sim")]
            is_foreign: self.is_foreign,
        })
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Doorbell> for OwnedFd {
    fn from(bell: Doorbell) -> Self {
        bell.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_add_up_into_one() {
        let bell = Doorbell::new().unwrap();
        assert!(!bell.clear().unwrap());
        bell.ring().unwrap();
        bell.try_clone().unwrap().ring().unwrap();
        assert!(bell.clear().unwrap());
        assert!(!bell.clear().unwrap());
    }

    #[test]
    fn bell_at_its_limit_counts_as_rung() {
        let bell = Doorbell::new().unwrap();
        rustix::io::write(&bell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        bell.ring().unwrap();
        assert!(bell.clear().unwrap());
    }

    #[test]
    fn foreign_descriptor_is_not_a_doorbell() {
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let error = Doorbell::from_fd(writer).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL);
        assert!(error.to_string().contains("pipe:"), "{error}");
    }

    #[test]
    fn blocking_bell_from_a_peer_is_made_non_blocking() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let bell = Doorbell::from_fd(fd).unwrap();
        assert!(!bell.clear().unwrap());
    }
}
