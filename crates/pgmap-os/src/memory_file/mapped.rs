//! Reading and writing files that the kernel reads and writes by mapping only: device-dax, huge
//! pages.
//!
//! What is written to a device is flushed from the processor's caches, so that a fence makes it
//! last ([`MemoryFile::sync`]).

use super::{FileAccess, MemoryFile, MemoryKind};
use crate::{CopyError, OsError, ReadMapping, WriteMapping};
use std::io;

/// A mapping of a whole device, made when it is first read or written.
#[derive(Debug)]
pub(super) enum FileMapping {
    Read(ReadMapping),
    Write(WriteMapping),
}

impl FileMapping {
    fn map(file: &MemoryFile, offset: u64, len: u64) -> Result<Self, OsError> {
        Ok(match file.access {
            FileAccess::ReadOnly => Self::Read(ReadMapping::map(file, offset, len)?),
            FileAccess::ReadWrite => Self::Write(WriteMapping::map(file, offset, len)?),
        })
    }

    fn copy_out(&self, offset: u64, bytes: &mut [u8]) -> Result<(), CopyError> {
        match self {
            Self::Read(mapping) => mapping.copy_out(offset, bytes),
            Self::Write(mapping) => mapping.copy_out(offset, bytes),
        }
    }

    /// Has every touch from now on fail, and keeps nothing of the device.
    pub(super) fn abandon(&self) -> Result<(), OsError> {
        match self {
            Self::Read(mapping) => mapping.abandon(),
            Self::Write(mapping) => mapping.abandon(),
        }
    }
}

impl MemoryFile {
    /// As [`read_exact_at`](Self::read_exact_at).
    pub(super) fn read_mapped(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.check_inside(offset, bytes.len(), io::ErrorKind::UnexpectedEof)?;
        self.with_window(offset, bytes.len(), |window, at| window.copy_out(at, bytes))
    }

    /// As [`write_all_at`](Self::write_all_at).
    pub(super) fn write_mapped(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.check_inside(offset, bytes.len(), io::ErrorKind::WriteZero)?;
        if self.access == FileAccess::ReadOnly {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        self.with_window(offset, bytes.len(), |window, at| match window {
            FileMapping::Read(_) => Ok(()),
            FileMapping::Write(mapping) if self.kind == MemoryKind::DevDax => {
                mapping.copy_in_flushed(at, bytes)
            }
            FileMapping::Write(mapping) => mapping.copy_in(at, bytes),
        })
    }

    /// Fills `range` with zeros through a mapping, a step at a time.
    pub(super) fn zero_mapped(&self, mut offset: u64, end: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        while offset < end {
            let step = (end - offset).min(ZEROS.len() as u64);
            self.write_mapped(&ZEROS[..step as usize], offset)?;
            offset += step;
        }
        Ok(())
    }

    /// Flushes `range` of a device from the processor's caches.
    pub(super) fn flush_mapped(&self, offset: u64, len: u64) -> io::Result<()> {
        self.with_window(offset, len as usize, |window, at| match window {
            FileMapping::Read(_) => Ok(()),
            FileMapping::Write(mapping) => mapping.flush(at, len),
        })
    }

    fn check_inside(&self, offset: u64, len: usize, or: io::ErrorKind) -> io::Result<()> {
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.len_bytes()) { Err(or.into()) } else { Ok(()) }
    }

    fn with_window(
        &self,
        offset: u64,
        len: usize,
        copy: impl FnOnce(&FileMapping, u64) -> Result<(), CopyError>,
    ) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let failed = |error: OsError| io::Error::from_raw_os_error(error.errno());
        let copied = if self.kind == MemoryKind::DevDax {
            // A device keeps its length.
            if self.window.get().is_none() {
                // Of two threads one mapping stays.
                let _ =
                    self.window.set(FileMapping::map(self, 0, self.len_bytes()).map_err(failed)?);
            }
            self.window.get().map_or(Ok(()), |window| copy(window, offset))
        } else {
            let page = self.page_size.len_bytes();
            let start = offset - offset % page;
            let mapped = (offset + len as u64 - start).next_multiple_of(page);
            copy(&FileMapping::map(self, start, mapped).map_err(failed)?, offset - start)
        };
        copied.map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}
