//! What a client asks of an owner about the memory itself: failures, repairs, folios, giving back.

use std::time::Duration;

use crate::client::{Client, unexpected};
use crate::deadline::millis;
use crate::error::Error;
use crate::name::FileName;
use crate::wire::{DeadClient, MAX_LIST, Reply, Request, Shape};

impl Client {
    /// Says that the memory of frame `pfn` failed: its holders are notified, pins of it taken later
    /// fail with `EHWPOISON`, everything around it lives on.
    ///
    /// # Errors
    /// [`crate::Refusal::Invalid`] when there is no such frame or it has failed already.
    pub fn memory_failure(&self, pfn: u64) -> Result<(), Error> {
        self.done(Request::MemoryFailure(pfn))
    }

    /// Replaces the memory of a failed page of a file and fills it with `bytes`, 4096 of them.
    ///
    /// # Errors
    /// [`crate::Refusal::Invalid`] when the page at `offset` has not failed,
    /// [`crate::Refusal::Held`] while somebody still holds it.
    pub fn clear_poison(
        &self,
        name: impl AsRef<[u8]>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let name = FileName::new(name)?;
        self.done(Request::ClearPoison { name, offset, bytes: bytes.into() })
    }

    /// Splits the folio around a byte of a file, or merges the folios around it. Pins stand.
    ///
    /// # Errors
    /// [`crate::Refusal::Denied`] when the folios there cannot take that shape; it says why.
    pub fn reshape(&self, name: impl AsRef<[u8]>, offset: u64, shape: Shape) -> Result<(), Error> {
        let name = FileName::new(name)?;
        self.done(Request::Reshape { name, offset, shape })
    }

    /// Replaces the memory of failed frames that no file has, and frees them.
    ///
    /// # Errors
    /// [`Error::OwnerGone`].
    pub fn repair_free(&self) -> Result<(), Error> {
        self.done(Request::RepairFree)
    }

    /// Gives the memory behind free frames back to the system, which takes it again when they are
    /// handed out. Returns how many bytes of memory came back. Pins of files are not concerned;
    /// whoever registered the pool's memory with a device must register it again, as
    /// [`detach_epoch`](Self::detach_epoch) tells.
    ///
    /// # Errors
    /// [`crate::Refusal::Internal`] if the memory cannot be given back, as on a device;
    /// [`Error::OwnerGone`].
    pub fn trim(&self) -> Result<u64, Error> {
        let (mut freed_bytes, mut next) = (0, Some(0));
        while let Some(from_pfn) = next {
            match self.call(Request::Trim { from_pfn })? {
                Reply::Trimmed { freed_bytes: freed, next: after } => {
                    freed_bytes += freed;
                    // Never backwards, whatever an owner says.
                    next = after.filter(|&after| after > from_pfn);
                }
                reply => return Err(unexpected(&reply)),
            }
        }
        Ok(freed_bytes)
    }

    /// Which dead clients' devices may still write to frames that those held. Where the memory
    /// cannot be detached from a device, the frames are kept out of use for as long.
    ///
    /// # Errors
    /// [`Error::OwnerGone`].
    pub fn quarantine(&self) -> Result<Vec<DeadClient>, Error> {
        let mut all: Vec<DeadClient> = Vec::new();
        loop {
            match self.call(Request::Quarantine { after: all.last().map(|last| last.client) })? {
                Reply::Quarantine(some) => {
                    let is_last = some.len() < MAX_LIST;
                    all.extend(some);
                    if is_last {
                        return Ok(all);
                    }
                }
                reply => return Err(unexpected(&reply)),
            }
        }
    }

    /// Has the owner believe that no device of the dead client `client` can write any more: what
    /// it held goes to others. A transfer that is under way after all writes into their data.
    ///
    /// # Errors
    /// [`crate::Refusal::Invalid`] when there is no such client, or a ring of it is known to be
    /// open.
    pub fn release_quarantine(&self, client: u64) -> Result<(), Error> {
        self.done(Request::ReleaseQuarantine(client))
    }

    /// Closes the pool before its memory goes, as before a device is unplugged. Nobody new gets in;
    /// holders are asked for what they hold, and waited for up to `deadline`. Then the owner is
    /// done ([`Owner::is_closed`](crate::Owner::is_closed)), and clients give up a device within
    /// 200 ms. Files stay on record for the next owner; what is not committed is given up.
    ///
    /// # Errors
    /// [`crate::Refusal::Held`] names who holds what after `deadline`; [`crate::Refusal::Denied`]
    /// with `EBUSY` when only devices of dead clients may still be writing, or the pool is being
    /// closed already. The pool is open as before then.
    pub fn close_pool(&self, deadline: Duration) -> Result<(), Error> {
        let deadline_ms = millis(deadline);
        match self.cut(Request::Close { deadline_ms }, deadline)?.first() {
            None => Ok(()),
            Some(_) => {
                Err(Error::Protocol { what: "a drain of the pool that names holders".into() })
            }
        }
    }

    /// Asks for what has no answer but that it is done.
    pub(super) fn done(&self, request: Request) -> Result<(), Error> {
        match self.call(request)? {
            Reply::Done => Ok(()),
            reply => Err(unexpected(&reply)),
        }
    }
}
