//! Pinned bytes of a file, for Python.

// UNSAFETY: the buffer protocol hands out addresses.
#![allow(unsafe_code)]

use std::ffi::c_int;

use pgmap::OwnedPin;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::dlpack;
use crate::errors::{OrRaise, closed};
use crate::memory::Target;
use crate::views::{Access, Views};

/// A file's bytes, pinned: while this or any view of it lives, they are this file's bytes and are
/// given to nobody else, whether the file is unlinked, its owner ends or its client is closed.
///
/// `memoryview(pin)` shows them without a copy, read-only. Where a file lies in several pieces the
/// first view makes a copy; `pieces` says so beforehand.
#[pyclass(module = "pgmap", weakref)]
pub struct Pin {
    pin: Option<OwnedPin>,
    /// The bytes in one piece, where the file is in several and somebody looked.
    copy: Option<Box<[u8]>>,
    views: Views,
}

impl Pin {
    /// Of a pin of the library.
    pub fn new(pin: OwnedPin) -> Self {
        Self { pin: Some(pin), copy: None, views: Views::default() }
    }

    fn pinned(&self) -> PyResult<&OwnedPin> {
        self.pin.as_ref().ok_or_else(|| closed("pin"))
    }

    /// Where the bytes are, in one piece.
    fn bytes(&mut self, py: Python<'_>) -> PyResult<(*mut u8, usize)> {
        let pin = self.pin.as_ref().ok_or_else(|| closed("pin"))?;
        let len_bytes = pin.len_bytes();
        let mut segments = pin.segments();
        match (segments.next(), segments.next()) {
            (Some(all), None) if all.len_bytes == len_bytes => {
                return Ok((all.ptr, len_bytes as usize));
            }
            _ => drop(segments),
        }
        if self.copy.is_none() {
            self.copy = Some(py.detach(|| pin.to_vec()).or_raise(py)?.into());
        }
        let copy = self.copy.as_mut().map_or(&mut [][..], |copy| copy);
        Ok((copy.as_mut_ptr(), copy.len()))
    }

    /// Counts a view outside the buffer protocol, and says where the bytes are.
    pub fn lend(&mut self, py: Python<'_>) -> PyResult<(*mut u8, usize)> {
        let bytes = self.bytes(py)?;
        self.views.add();
        Ok(bytes)
    }

    /// Ends a view that [`lend`](Self::lend) counted.
    pub fn end_loan(&self) {
        self.views.remove();
    }
}

#[pymethods]
impl Pin {
    /// Bytes pinned.
    #[getter]
    fn nbytes(&self) -> PyResult<u64> {
        Ok(self.pinned()?.len_bytes())
    }

    /// In how many pieces they lie; those of a hole are none.
    #[getter]
    fn pieces(&self) -> PyResult<usize> {
        Ok(self.pinned()?.segments().count())
    }

    /// Whether the file was unlinked or is being cut, and waits for this pin.
    #[getter]
    fn is_reclaim_requested(&self) -> PyResult<bool> {
        Ok(self.pinned()?.is_reclaim_requested())
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(self.pinned()?.len_bytes() as usize)
    }

    /// Copies the bytes from `offset` on, all of them or `nbytes`.
    #[pyo3(signature = (offset = 0, nbytes = None))]
    fn read<'py>(
        &self,
        py: Python<'py>,
        offset: u64,
        nbytes: Option<u64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let pin = self.pinned()?;
        let len_bytes = nbytes.unwrap_or_else(|| pin.len_bytes().saturating_sub(offset));
        if offset.checked_add(len_bytes).is_none_or(|end| end > pin.len_bytes()) {
            let end = offset.saturating_add(len_bytes);
            let error = pgmap::Error::OutOfRange { start: offset, end, len_bytes: pin.len_bytes() };
            return Err(error).or_raise(py);
        }
        PyBytes::new_with(py, len_bytes as usize, |target| {
            py.detach(|| pin.read_at(offset, target)).or_raise(py)
        })
    }

    /// Copies bytes from `offset` on into `target`, an object with a writable buffer or (address,
    /// nbytes): as many as both have. Returns how many the pin has from there.
    #[pyo3(signature = (target, offset = 0))]
    fn read_into(&self, target: &Bound<'_, PyAny>, offset: u64) -> PyResult<u64> {
        let (py, pin) = (target.py(), self.pinned()?);
        let left = pin.len_bytes().saturating_sub(offset);
        let mut target = Target::of(target)?;
        let bytes = target.bytes();
        let nr_copied = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        py.detach(|| pin.read_at(offset, &mut bytes[..nr_copied])).or_raise(py)?;
        Ok(left)
    }

    /// Gives the bytes up now.
    ///
    /// Raises BufferError while views of it live. Dropping the last reference does the same.
    fn release(&mut self) -> PyResult<()> {
        self.views.check_none("release the pin")?;
        self.pin = None;
        self.copy = None;
        Ok(())
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __exit__(
        &mut self,
        _kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.release()
    }

    fn __repr__(&self) -> String {
        match &self.pin {
            None => "<pgmap.Pin, released>".into(),
            Some(pin) => format!("<pgmap.Pin of {} bytes>", pin.len_bytes()),
        }
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
            return Err(PyBufferError::new_err("a committed file is read-only"));
        }
        let bytes = slf.borrow_mut().bytes(slf.py())?;
        let pin = slf.borrow();
        // SAFETY: Python passes a view to be filled. The bytes are pinned, or this object's copy:
        // neither goes before `release`, which refuses while a view lives, or the object's end,
        // which the view's reference puts off.
        unsafe { pin.views.fill(slf.as_any(), view, bytes, Access::Read, flags) }
    }

    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.views.remove();
    }

    /// A DLPack capsule of the bytes, one row of `uint8` in the memory of the CPU, read-only.
    #[pyo3(signature = (*, stream = None, max_version = None, dl_device = None, copy = None))]
    fn __dlpack__<'py>(
        slf: Bound<'py, Self>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        drop(stream);
        dlpack::export(&slf, max_version, dl_device, copy)
    }

    /// The CPU.
    const fn __dlpack_device__(&self) -> (i32, i32) {
        dlpack::CPU
    }
}
