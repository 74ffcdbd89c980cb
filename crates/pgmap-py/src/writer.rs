//! A file that is being written, for Python.

// UNSAFETY: the buffer protocol hands out addresses.
#![allow(unsafe_code)]

use std::ffi::c_int;

use pgmap::OwnedWriter;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::errors::{OrRaise, closed};
use crate::memory::Source;
use crate::views::{Access, Views};

/// A file that nobody else sees before it is committed.
///
/// Fill it with `write`, or through `memoryview(writer)`, which is writable and shows the file's
/// memory itself: what is not written there has any bytes. Used as a context manager it is
/// committed at the end, and given up after an exception. Dropping it gives it up.
#[pyclass(module = "pgmap", weakref)]
pub struct Writer {
    writer: Option<OwnedWriter>,
    /// The bytes in one piece, where the file is in several and somebody looked.
    staged: Option<Box<[u8]>>,
    position: u64,
    views: Views,
}

impl Writer {
    /// Of a writer of the library.
    pub fn new(writer: OwnedWriter) -> Self {
        Self { writer: Some(writer), staged: None, position: 0, views: Views::default() }
    }

    fn open(&self) -> PyResult<&OwnedWriter> {
        self.writer.as_ref().ok_or_else(|| closed("writer"))
    }

    /// Where the bytes are, in one piece.
    fn bytes(&mut self) -> PyResult<(*mut u8, usize)> {
        let writer = self.writer.as_mut().ok_or_else(|| closed("writer"))?;
        let segments = writer.segments();
        if let [(start, len_bytes, _)] = segments[..] {
            return Ok((start, len_bytes as usize));
        }
        let staged = self.staged.get_or_insert_with(|| {
            let mut written = Vec::with_capacity(writer.len_bytes() as usize);
            for (start, len_bytes, _) in segments {
                // SAFETY: the segment is memory of the draft, mapped and held while the writer
                // lives, and written by nobody else.
                written.extend_from_slice(unsafe {
                    std::slice::from_raw_parts(start.cast_const(), len_bytes as usize)
                });
            }
            written.into()
        });
        Ok((staged.as_mut_ptr(), staged.len()))
    }
}

#[pymethods]
impl Writer {
    /// The file's length in bytes.
    #[getter]
    fn nbytes(&self) -> PyResult<u64> {
        Ok(self.open()?.len_bytes())
    }

    /// The number that the file will have.
    #[getter]
    fn id(&self) -> PyResult<u64> {
        Ok(self.open()?.id())
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(self.open()?.len_bytes() as usize)
    }

    /// Copies `data` into the file, after what was written last or at `offset`. Returns its length.
    #[pyo3(signature = (data, offset = None))]
    fn write(&mut self, data: &Bound<'_, PyAny>, offset: Option<u64>) -> PyResult<usize> {
        let py = data.py();
        let source = Source::of(data)?;
        let writer = self.writer.as_mut().ok_or_else(|| closed("writer"))?;
        let offset = offset.unwrap_or(self.position);
        let bytes = source.bytes();
        match &mut self.staged {
            Some(staged) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(bytes.len());
                let len_bytes = staged.len() as u64;
                let outside =
                    pgmap::Error::OutOfRange { start: offset, end: end as u64, len_bytes };
                let target = staged.get_mut(start..end).ok_or(outside).or_raise(py)?;
                target.copy_from_slice(bytes);
            }
            None => py.detach(|| writer.write_all_at(offset, bytes)).or_raise(py)?,
        }
        self.position = offset + bytes.len() as u64;
        Ok(bytes.len())
    }

    /// Publishes the file under its name.
    ///
    /// Raises BufferError while views of it live: a file that others read is not to change.
    fn commit(&mut self, py: Python<'_>) -> PyResult<()> {
        self.views.check_none("commit the file")?;
        let mut writer = self.writer.take().ok_or_else(|| closed("writer"))?;
        let staged = self.staged.take();
        py.detach(|| {
            if let Some(staged) = staged {
                writer.write_all_at(0, &staged)?;
            }
            writer.commit()
        })
        .or_raise(py)
    }

    /// Gives the file up.
    fn abort(&mut self) -> PyResult<()> {
        self.views.check_none("give the file up")?;
        self.writer = None;
        self.staged = None;
        Ok(())
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __exit__(
        &mut self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        match (kind.is_none(), &self.writer) {
            (true, Some(_)) => self.commit(py),
            (false, Some(_)) => self.abort(),
            (_, None) => Ok(()),
        }
    }

    fn __repr__(&self) -> String {
        match &self.writer {
            None => "<pgmap.Writer, closed>".into(),
            Some(writer) => format!("<pgmap.Writer of {} bytes>", writer.len_bytes()),
        }
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let bytes = slf.borrow_mut().bytes()?;
        let writer = slf.borrow();
        // SAFETY: Python passes a view to be filled. The bytes are the draft's, which this client
        // holds, or this object's own: neither goes before `commit` or `abort`, which refuse while
        // a view lives, or the object's end, which the view's reference puts off.
        unsafe { writer.views.fill(slf.as_any(), view, bytes, Access::Write, flags) }
    }

    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.views.remove();
    }
}
