//! How an owner learns that the transfers of a dead client have ended.

use std::os::fd::{AsFd, OwnedFd};

use pgmap_mm::pin::ClientSide;
use pgmap_os::OsError;

use crate::client::Client;
use crate::error::Error;

impl Client {
    /// A duplicate of the descriptor whose open file description has the lock of this client's
    /// ledger. What keeps it open keeps the lock, after this process has ended, too: a ring of
    /// io_uring in which it is registered as a file does until its last transfer has ended, as
    /// `PoolRing` of the crate `pgmap-uring` sees to. A forked child does not inherit it.
    ///
    /// # Errors
    /// [`Error::Forked`] in a forked child; [`Error::Os`] with `EMFILE`.
    pub fn transfer_lock(&self) -> Result<OwnedFd, Error> {
        if self.inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        let duplicate = self.inner.ledger.as_fd().try_clone_to_owned();
        duplicate.map_err(|error| OsError::new("duplicate", "a ledger", error).into())
    }

    /// Promises that each device for which this client holds frames, with
    /// [`File::pin_for_device`](crate::File::pin_for_device) or
    /// [`GupFlags::DEVICE`](pgmap_mm::gup::GupFlags::DEVICE), keeps a duplicate of
    /// [`transfer_lock`](Self::transfer_lock) open for as long as it can write to them; a client
    /// whose only transfers are those of a `PoolRing` may do so. Once it is dead, and the lock is
    /// free, its frames go to others at once. Without the promise nobody knows when its transfers
    /// end: the frames are detached before others get them, and where that cannot be, as on a
    /// device-dax device, they stay in quarantine.
    ///
    /// To be called before the first such hold, and never taken back.
    ///
    /// # Errors
    /// [`Error::Forked`] in a forked child.
    pub fn promise_transfers_keep_lock(&self) -> Result<(), Error> {
        if self.inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        self.inner.pinner.promise_transfers_keep_lock();
        Ok(())
    }
}
