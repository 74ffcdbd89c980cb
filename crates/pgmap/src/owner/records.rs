//! Putting what is known of files where others read it: the catalog, the index, the books.

use crate::name::FileName;
use crate::owner::core::Core;
use crate::owner::file_book::FileRecord;
use crate::pool::catalog::Change;
use crate::refusal::Refusal;

impl Core {
    /// Puts changes on record where the pool has a catalog.
    pub(crate) fn record(&self, changes: &[Change<'_>]) -> Result<(), Refusal> {
        self.pool.record(changes)
    }

    /// Puts a file's record into the catalog. What is being cut is put there when the cut has ended
    /// or was undone: a successor does not know who waits for it. A pagemap's file is not put
    /// there: it ends with its owner.
    pub(crate) fn record_file(&self, name: &FileName, file: &FileRecord) -> Result<(), Refusal> {
        if file.doing.is_some() {
            return Ok(());
        }
        self.record(&[Change::Put(name, file.stored())])
    }

    /// Writes what the index says of a file again; the file has no more extents than there is room
    /// for.
    pub(crate) fn relist(&mut self, name: &FileName, file: &FileRecord) -> Result<(), Refusal> {
        self.frames.relist(file.entry, file.listed(name), &file.extents)
    }

    /// Puts a file's new extents, which its frames have already, into the index and the books. That
    /// the catalog cannot be written is only logged: a successor finds descriptors that do not fit
    /// the catalog, and mends them.
    pub(crate) fn adopt(&mut self, name: &FileName, file: FileRecord) {
        if let Err(refusal) = self.record_file(name, &file) {
            tracing::warn!(file = %name, %refusal, "the catalog is behind");
        }
        if let Err(refusal) = self.relist(name, &file) {
            tracing::error!(file = %name, %refusal, "a file keeps its old entry");
        }
        self.files.update(name, file);
    }
}
