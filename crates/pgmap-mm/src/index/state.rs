//! What an index says of the pool as a whole: how often frames were detached, how often its
//! backings changed, how many files were listed, and whether the owner is done with the memory.

use super::{BACKINGS, CLOSED, DETACH_EPOCH, GENERATION, IndexReader, IndexWriter};
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

    /// How often the pool's backings changed: one was added, taken out, lost or found again. Who
    /// has them mapped asks for them at another number than the last.
    pub fn backings_epoch(&self) -> u64 {
        // Acquire: pairs with Release in `bump_backings_epoch`. The backings themselves are asked
        // for in a message.
        self.words.load(BACKINGS, Ordering::Acquire)
    }

    /// The present generation: how many files were listed, as marks of use say it.
    #[inline]
    pub fn generation(&self) -> u64 {
        // Relaxed: a number for the order of uses, see `used`.
        self.words.load(GENERATION, Ordering::Relaxed)
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

    /// Begins a generation, and returns the one that ends with it.
    pub fn begin_generation(&self) -> u64 {
        // Relaxed: only the owner stores it; see `used`.
        let ended = self.words.load(GENERATION, Ordering::Relaxed);
        self.words.store(GENERATION, ended.wrapping_add(1), Ordering::Relaxed);
        ended
    }

    /// The present generation.
    pub fn generation(&self) -> u64 {
        // Relaxed: as above.
        self.words.load(GENERATION, Ordering::Relaxed)
    }

    /// Takes note that the pool's backings changed.
    pub fn bump_backings_epoch(&self) {
        let epoch = self.words.load(BACKINGS, Ordering::Relaxed);
        // Release: pairs with Acquire in `backings_epoch`.
        self.words.store(BACKINGS, epoch.wrapping_add(1), Ordering::Release);
    }

    /// Takes note that frames were detached from under devices and have fresh backing now.
    pub fn bump_detach_epoch(&self) {
        let epoch = self.words.load(DETACH_EPOCH, Ordering::Relaxed);
        // Release: pairs with Acquire in `detach_epoch`.
        self.words.store(DETACH_EPOCH, epoch.wrapping_add(1), Ordering::Release);
    }
}
