//! How many buffers of an object Python has out, and filling one in.

// UNSAFETY: a buffer is handed to Python as a C structure that it passes by address.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

/// What may be done with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is read.
    Read,
    /// It is read and written.
    Write,
}

/// Counts views. Locked for moments, with the interpreter's lock held all the while.
#[derive(Debug, Default)]
pub struct Views {
    nr_out: Mutex<usize>,
}

impl Views {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.nr_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more view.
    pub fn add(&self) {
        *self.lock() += 1;
    }

    /// One view less.
    pub fn remove(&self) {
        *self.lock() -= 1;
    }

    /// Refuses to `act` while views live: they would show memory that is no longer held.
    pub fn check_none(&self, act: &str) -> PyResult<()> {
        match *self.lock() {
            0 => Ok(()),
            nr => Err(PyBufferError::new_err(format!("cannot {act}: {nr} views of it live"))),
        }
    }

    /// Fills `view` with `len` bytes at `start`, which `exporter` keeps while its views live.
    ///
    /// # Safety
    /// `view` is a `Py_buffer` to be filled, as `__getbuffer__` gets it. The bytes are mapped until
    /// the view is removed, writable where `access` says so.
    pub unsafe fn fill(
        &self,
        exporter: &Bound<'_, PyAny>,
        view: *mut ffi::Py_buffer,
        (start, len): (*mut u8, usize),
        access: Access,
        flags: c_int,
    ) -> PyResult<()> {
        let len = isize::try_from(len)
            .map_err(|_| PyBufferError::new_err(format!("{len} bytes are too many to address")))?;
        let is_read_only = c_int::from(access == Access::Read);
        let exporter_ptr = exporter.as_ptr();
        // SAFETY: the caller vouches for `view` and the bytes; the exporter is a live object, of
        // which the call takes a reference.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(view, exporter_ptr, start.cast(), len, is_read_only, flags)
        };
        if filled != 0 {
            return Err(PyErr::fetch(exporter.py()));
        }
        self.add();
        Ok(())
    }
}
