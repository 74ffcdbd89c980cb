//! The pool's memory as a client has it mapped: to read and write, or only to read.

use std::ops::Range;

use pgmap_os::{
    CopyError, MemoryFile, OsError, OutOfBounds, PageSize, Populated, ReadMapping, WriteMapping,
};

use crate::error::Error;
use crate::refusal::Refusal;

/// What of the pool's memory is mapped.
#[derive(Debug)]
pub(crate) enum Data {
    /// All of it can be written.
    Writable(WriteMapping),
    /// Nothing of it can: a store is SIGSEGV.
    Readable(ReadMapping),
}

/// Whether a client changes what is in the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stance {
    /// It may.
    #[default]
    Writer,
    /// It attached read-only.
    Reader,
}

impl Data {
    /// As [`WriteMapping::map`] or [`ReadMapping::map`].
    pub(crate) fn map(file: &MemoryFile, len: u64, stance: Stance) -> Result<Self, OsError> {
        Ok(match stance {
            Stance::Writer => Self::Writable(WriteMapping::map(file, 0, len)?),
            Stance::Reader => Self::Readable(ReadMapping::map(file, 0, len)?),
        })
    }

    /// As [`WriteMapping::span`].
    pub(crate) fn span(len: u64, page: PageSize, stance: Stance) -> Result<Self, OsError> {
        Ok(match stance {
            Stance::Writer => Self::Writable(WriteMapping::span(len, page)?),
            Stance::Reader => Self::Readable(ReadMapping::span(len, page)?),
        })
    }

    /// As [`WriteMapping::show`].
    pub(crate) fn show(
        &self,
        at: u64,
        file: &MemoryFile,
        offset: u64,
        len: u64,
    ) -> Result<(), OsError> {
        match self {
            Self::Writable(mapping) => mapping.show(at, file, offset, len),
            Self::Readable(mapping) => mapping.show(at, file, offset, len),
        }
    }

    /// As [`WriteMapping::hide`].
    pub(crate) fn hide(&self, at: u64, len: u64) -> Result<(), OsError> {
        match self {
            Self::Writable(mapping) => mapping.hide(at, len),
            Self::Readable(mapping) => mapping.hide(at, len),
        }
    }

    /// The first byte. Of a read-only client, writing through it is a fault.
    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        match self {
            Self::Writable(mapping) => mapping.as_ptr(),
            Self::Readable(mapping) => mapping.as_ptr().cast_mut(),
        }
    }

    pub(crate) fn addresses(&self) -> Range<usize> {
        match self {
            Self::Writable(mapping) => mapping.addresses(),
            Self::Readable(mapping) => mapping.addresses(),
        }
    }

    #[inline]
    pub(crate) fn len_bytes(&self) -> u64 {
        match self {
            Self::Writable(mapping) => mapping.len_bytes(),
            Self::Readable(mapping) => mapping.len_bytes(),
        }
    }

    /// As [`WriteMapping::copy_out`].
    #[inline]
    pub(crate) fn copy_out(&self, offset: u64, target: &mut [u8]) -> Result<(), CopyError> {
        match self {
            Self::Writable(mapping) => mapping.copy_out(offset, target),
            Self::Readable(mapping) => mapping.copy_out(offset, target),
        }
    }

    /// As [`WriteMapping::copy_in`]. Who attached read-only has nothing in bounds, here and below.
    #[inline]
    pub(crate) fn copy_in(&self, offset: u64, source: &[u8]) -> Result<(), CopyError> {
        self.in_bounds(offset, source.len() as u64)?.copy_in(offset, source)
    }

    /// As [`WriteMapping::copy_in_streaming`].
    pub(crate) fn copy_in_streaming(&self, offset: u64, source: &[u8]) -> Result<(), CopyError> {
        self.in_bounds(offset, source.len() as u64)?.copy_in_streaming(offset, source)
    }

    /// As [`WriteMapping::copy_in_flushed`].
    pub(crate) fn copy_in_flushed(&self, offset: u64, source: &[u8]) -> Result<(), CopyError> {
        self.in_bounds(offset, source.len() as u64)?.copy_in_flushed(offset, source)
    }

    /// As [`WriteMapping::fill_zero`].
    pub(crate) fn fill_zero(&self, offset: u64, len: u64) -> Result<(), CopyError> {
        self.in_bounds(offset, len)?.fill_zero(offset, len)
    }

    /// As [`WriteMapping::flush`].
    pub(crate) fn flush(&self, offset: u64, len: u64) -> Result<(), CopyError> {
        self.in_bounds(offset, len)?.flush(offset, len)
    }

    /// As [`WriteMapping::populate_range`] or [`ReadMapping::populate_range`].
    pub(crate) fn populate(&self, bytes: Range<u64>) -> Result<Populated, OsError> {
        match self {
            Self::Writable(mapping) => mapping.populate_range(bytes),
            Self::Readable(mapping) => mapping.populate_range(bytes),
        }
    }

    /// As [`WriteMapping::populate_for_reading`] or [`ReadMapping::populate_range`].
    pub(crate) fn populate_for_reading(&self, bytes: Range<u64>) -> Result<Populated, OsError> {
        match self {
            Self::Writable(mapping) => mapping.populate_for_reading(bytes),
            Self::Readable(mapping) => mapping.populate_range(bytes),
        }
    }

    /// How it was attached.
    pub(crate) const fn stance(&self) -> Stance {
        match self {
            Self::Writable(_) => Stance::Writer,
            Self::Readable(_) => Stance::Reader,
        }
    }

    /// Refuses what a read-only client cannot do.
    ///
    /// # Errors
    /// [`Refusal::ReadOnlyClient`].
    pub(crate) fn check_writer(&self, call: &str) -> Result<(), Error> {
        match self.stance() {
            Stance::Writer => Ok(()),
            Stance::Reader => Err(Refusal::ReadOnlyClient { call: call.into() }.into()),
        }
    }

    #[inline]
    const fn in_bounds(&self, offset: u64, len: u64) -> Result<&WriteMapping, CopyError> {
        match self {
            Self::Writable(mapping) => Ok(mapping),
            Self::Readable(_) => {
                Err(CopyError::OutOfBounds(OutOfBounds { offset, len, mapping_len: 0 }))
            }
        }
    }
}
