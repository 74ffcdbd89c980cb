//! What an index says of the pool as a whole: how often frames were detached, and whether the owner
//! is done with the memory.

use super::{CLOSED, DETACH_EPOCH, IndexReader, IndexWriter};
use crate::sync::Ordering;
use crate::words::{ReadWords, WriteWords};

impl<W: ReadWords> IndexReader<W> {
    /// How often frames were detached from under devices: whoever registered the pool's memory with
    /// a device at an earlier number must register it again.
    #[inline]
    pub fn detach_epoch(&self) -> u64 {
        // Acquire: pairs with Release in `bump_detach_epoch`; data: the fresh frames' backing.
        self.words.load(DETACH_EPOCH, Ordering::Acquire)
    }

    /// Whether the owner is done with the memory, and nobody may use it any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        // Acquire: pairs with Release in `IndexWriter::close`.
        self.words.load(CLOSED, Ordering::Acquire) != 0
    }
}

impl<W: WriteWords> IndexWriter<W> {
    /// Says that nobody may use the memory any more.
    pub fn close(&self) {
        // Release: pairs with Acquire in `IndexReader::is_closed`.
        self.words.store(CLOSED, 1, Ordering::Release);
    }

    /// Takes note that frames were detached from under devices and have fresh backing now.
    pub fn bump_detach_epoch(&self) {
        let epoch = self.words.load(DETACH_EPOCH, Ordering::Relaxed);
        // Release: pairs with Acquire in `detach_epoch`.
        self.words.store(DETACH_EPOCH, epoch.wrapping_add(1), Ordering::Release);
    }
}
