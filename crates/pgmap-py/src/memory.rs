//! Memory that Python lends for a call: an object with a buffer, or an address and a length.

// UNSAFETY: the buffer protocol passes a C structure by address, and what it shows is reached
// through a pointer.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::slice;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// A view of an object's buffer. It stays where it is, since what it says may point into itself;
/// and on its thread, which has the interpreter's lock when the view ends.
struct View(Box<ffi::Py_buffer>);

impl View {
    fn of(lender: &Bound<'_, PyAny>, flags: std::ffi::c_int) -> PyResult<Self> {
        let mut view = Box::new(ffi::Py_buffer::new());
        // SAFETY: the lender is a live object, and the view is to be filled.
        let filled = unsafe { ffi::PyObject_GetBuffer(lender.as_ptr(), &raw mut *view, flags) };
        if filled != 0 {
            return Err(PyErr::fetch(lender.py()));
        }
        Ok(Self(view))
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the view was filled and is released once. It is not sent to other threads, so
        // this one has the interpreter's lock, as when it was made.
        unsafe { ffi::PyBuffer_Release(&raw mut *self.0) };
    }
}

/// Where lent memory is, and what keeps it there.
struct Lent {
    start: *mut u8,
    len: usize,
    _view: Option<View>,
}

impl Lent {
    fn of(lender: &Bound<'_, PyAny>, flags: std::ffi::c_int) -> PyResult<Self> {
        if let Ok(pair) = lender.cast::<PyTuple>() {
            let (address, len) = pair.extract::<(usize, usize)>().map_err(|_| {
                PyTypeError::new_err("memory is an object with a buffer, or (address, nbytes)")
            })?;
            if address == 0 && len != 0 {
                return Err(PyValueError::new_err(format!("{len} bytes at address 0")));
            }
            let start = std::ptr::with_exposed_provenance_mut(address);
            return Ok(Self { start, len, _view: None });
        }
        let view = View::of(lender, flags)?;
        let len = usize::try_from(view.0.len).unwrap_or(0);
        Ok(Self { start: view.0.buf.cast(), len, _view: Some(view) })
    }

    /// The first byte; anywhere if there is none.
    const fn first(&self) -> NonNull<u8> {
        match NonNull::new(self.start) {
            Some(start) if self.len > 0 => start,
            _ => NonNull::dangling(),
        }
    }
}

/// Bytes to be copied from.
pub struct Source<'a> {
    lent: Lent,
    lender: PhantomData<&'a ()>,
}

impl<'a> Source<'a> {
    /// The bytes that `lender` shows, or that it says where they are.
    pub fn of(lender: &'a Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self { lent: Lent::of(lender, ffi::PyBUF_SIMPLE)?, lender: PhantomData })
    }

    /// The bytes. Who writes to them meanwhile gets a mixture of old and new ones into the file.
    pub const fn bytes(&self) -> &[u8] {
        // SAFETY: the view keeps the bytes where they are, and an address is the caller's word for
        // as much; the library reads them by an assembly copy, which takes any bytes.
        unsafe { slice::from_raw_parts(self.lent.first().as_ptr(), self.lent.len) }
    }
}

/// Bytes to be copied to.
pub struct Target<'a> {
    lent: Lent,
    lender: PhantomData<&'a ()>,
}

impl<'a> Target<'a> {
    /// The writable bytes that `lender` shows, or that it says where they are.
    pub fn of(lender: &'a Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self { lent: Lent::of(lender, ffi::PyBUF_WRITABLE)?, lender: PhantomData })
    }

    /// The bytes. Who looks at them meanwhile sees a mixture.
    pub const fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: as in `Source::bytes`; the view is writable, and this target is lent once.
        unsafe { slice::from_raw_parts_mut(self.lent.first().as_ptr(), self.lent.len) }
    }
}
