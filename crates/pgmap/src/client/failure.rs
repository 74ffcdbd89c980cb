//! Memory failures that the machine tells this process of, passed on to the owner.

use std::os::fd::{AsFd, BorrowedFd};

use pgmap_mm::level::PAGE_BYTES;
use pgmap_os::sigbus::{self, FailureWatch};

use crate::client::Client;
use crate::error::Error;

/// Hears of machine checks in the pool's memory. Readable (poll it) when there is something to
/// report.
#[derive(Debug)]
pub struct FailureReporter<'c> {
    client: &'c Client,
    watch: FailureWatch,
}

impl Client {
    /// Listens for machine checks (`SIGBUS` with `BUS_MCEERR_AR` or `BUS_MCEERR_AO`) on this
    /// process's mapping of the pool, and asks the kernel to tell the calling thread of failures
    /// early.
    ///
    /// # Errors
    /// [`Error::Os`] when the signal handler cannot be installed.
    pub fn watch_memory(&self) -> Result<FailureReporter<'_>, Error> {
        let watch = sigbus::watch(self.inner.data.addresses())?;
        sigbus::ask_for_early_notice()?;
        Ok(FailureReporter { client: self, watch })
    }
}

impl FailureReporter<'_> {
    /// Tells the owner of every failure heard of since the last call, and returns how many frames
    /// those are. A frame that is known to have failed counts too.
    ///
    /// # Errors
    /// [`Error::OwnerGone`] and the like; what was not reported is lost, the machine tells of it
    /// again when it is touched.
    pub fn report(&self) -> Result<u64, Error> {
        self.watch.clear_bell()?;
        let mut nr_frames = 0;
        while let Some(failure) = self.watch.next() {
            let first = failure.offset_bytes / PAGE_BYTES;
            let end = (failure.offset_bytes + failure.len_bytes).div_ceil(PAGE_BYTES);
            for pfn in first..end {
                match self.client.memory_failure(pfn) {
                    Ok(()) | Err(Error::Refused(_)) => nr_frames += 1,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(nr_frames)
    }
}

impl AsFd for FailureReporter<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}
