//! What a client asks of an owner about the memory itself: failures, repairs, folios, giving back.

use pgmap_os::MemoryFile;

use crate::client::{Client, Inner, unexpected};
use crate::device_watch::HasDevice;
use crate::error::Error;
use crate::name::FileName;
use crate::wire::{Reply, Request, Shape};

impl HasDevice for Inner {
    fn data(&self) -> &MemoryFile {
        &self.data_file
    }

    fn give_up(&self) -> Result<(), Error> {
        self.data.abandon()?;
        self.data_file.abandon()?;
        // Mappings of address spaces go with the translations.
        self.events.tell_device_gone();
        self.link.interrupt(self.id);
        Ok(())
    }
}

impl Client {
    /// Says that the memory of frame `pfn` failed: its holders are told, pins of it taken later
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
}
