//! Prefaulting: mapping the pool's memory in this process before it is touched, in steps.
//!
//! A client maps the whole pool when it attaches, and the kernel fills the page table in as pages
//! are touched: the first put into a frame, and the first read of one, cost a page fault for every
//! few pages. A prefault pays that ahead; on tmpfs by reading, which maps for writing too, and
//! several pages at a time (see `fault_around`). Only what has memory is mapped: a pool that takes
//! memory on demand takes none for this. No lock is held meanwhile, and what is freed, written or
//! taken out is so as without it.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Duration;

use pgmap_mm::pin::ClientSide;
use pgmap_os::{MemoryFile, MemoryKind, OsError};

use crate::client::Client;
use crate::deadline::Deadline;
use crate::error::Error;

/// How much is mapped in one step: some milliseconds.
const STEP_BYTES: u64 = 16 << 20;

/// How far a prefault is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefault {
    /// Bytes of the pool, with its backings.
    pub total_bytes: u64,
    /// Bytes of those that were looked at.
    pub seen_bytes: u64,
    /// Bytes of those that had memory, and are mapped.
    pub mapped_bytes: u64,
}

impl Prefault {
    /// Whether all of the pool was looked at.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.seen_bytes == self.total_bytes
    }
}

impl Client {
    /// Maps all of the pool's memory that there is in this process now, so that no later touch of
    /// it has to: for writing, or for reading where the client attached read-only. `step` is called
    /// after every 16 MiB at most, and ends it with [`ControlFlow::Break`]; so does the deadline.
    /// Returns how far it came. Other threads use the client meanwhile.
    ///
    /// # Errors
    /// [`Error::Forked`] in a forked child; [`Error::Os`] with `EOPNOTSUPP` before Linux 5.14, and
    /// as a touch of the memory would fail.
    ///
    /// ```
    /// # use std::{ops::ControlFlow, time::Duration};
    /// # use pgmap::{FolioSize, Owner, Pool, PoolOptions};
    /// # let owner = Owner::start(Pool::create(&PoolOptions::anonymous(64 << 20))?)?;
    /// # let client = owner.client()?;
    /// let prefault = client.prefault(Duration::from_secs(10), |so_far| {
    ///     println!("{} of {} bytes", so_far.seen_bytes, so_far.total_bytes);
    ///     ControlFlow::Continue(())
    /// })?;
    /// assert!(prefault.is_complete());
    /// # Ok::<(), pgmap::Error>(())
    /// ```
    pub fn prefault(
        &self,
        deadline: Duration,
        mut step: impl FnMut(Prefault) -> ControlFlow<()>,
    ) -> Result<Prefault, Error> {
        if self.inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        let deadline = Deadline::after(deadline);
        let parts = self.inner.backings.files();
        let total_bytes = parts.iter().map(|(bytes, ..)| bytes.end - bytes.start).sum();
        let mut so_far = Prefault { total_bytes, ..Prefault::default() };
        for (bytes, offset, file) in parts {
            let mut at = bytes.start;
            while at < bytes.end {
                if deadline.left().is_zero() {
                    return Ok(so_far);
                }
                // Of what has memory, the next that is not mapped.
                let skipped = at - bytes.start + offset;
                let wanted = skipped..bytes.end - bytes.start + offset;
                let Some(there) = file.next_with_memory(wanted) else {
                    so_far.seen_bytes += bytes.end - at;
                    break;
                };
                let from = at + (there.start - skipped);
                let to = (from + (there.end - there.start)).min(from + STEP_BYTES).min(bytes.end);
                self.map_now(from..to, &file)?;
                so_far.seen_bytes += to - at;
                so_far.mapped_bytes += to - from;
                at = to;
                if step(so_far).is_break() {
                    return Ok(so_far);
                }
            }
        }
        Ok(so_far)
    }

    fn map_now(&self, bytes: Range<u64>, file: &Arc<MemoryFile>) -> Result<(), Error> {
        let data = &self.inner.data;
        let populated = match file.kind() {
            MemoryKind::Shmem => data.populate_for_reading(bytes.clone()),
            _ => data.populate(bytes.clone()),
        };
        match populated {
            Ok(pgmap_os::Populated::Done) => {
                self.inner.fault_around.set(bytes);
                Ok(())
            }
            Ok(pgmap_os::Populated::Unsupported) => {
                let errno = std::io::Error::from_raw_os_error(pgmap_mm::error::errno::EOPNOTSUPP);
                let what = OsError::new("prefault", file.name(), errno);
                Err(what.with_advice("this needs Linux 5.14 or later").into())
            }
            // The backing was taken out meanwhile.
            Err(_) if !self.inner.backings.has_bytes(&bytes) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
