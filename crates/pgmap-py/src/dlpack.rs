//! Pinned bytes for array libraries: DLPack 1.0, which can say that memory is read-only.

// UNSAFETY: DLPack is a C structure in a capsule, freed by whoever took it.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::ptr;

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::pin::Pin;

/// Device type and number of the CPU.
pub const CPU: (i32, i32) = (1, 0);
const MAJOR: u32 = 1;
const READ_ONLY: u64 = 1;
/// Unsigned integers of 8 bits.
const UINT8: DataType = DataType { code: 1, bits: 8, lanes: 1 };

const FRESH: &CStr = c"dltensor_versioned";

#[repr(C)]
struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device: (i32, i32),
    ndim: i32,
    dtype: DataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
struct Managed {
    version: (u32, u32),
    manager_ctx: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
    flags: u64,
    tensor: Tensor,
    // What follows is ours.
    shape: i64,
    stride: i64,
    pin: Option<Py<Pin>>,
}

/// A capsule that keeps `pin` until the tensor made of it goes.
pub fn export<'py>(
    pin: &Bound<'py, Pin>,
    max_version: Option<(u32, u32)>,
    device: Option<(i32, i32)>,
    copy: Option<bool>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = pin.py();
    if max_version.is_none_or(|(major, _)| major < MAJOR) {
        return Err(PyBufferError::new_err(
            "a pin is read-only, which DLPack says from 1.0 on: pass max_version=(1, 0), or use \
             the buffer protocol (numpy.frombuffer, torch.frombuffer)",
        ));
    }
    if device.is_some_and(|device| device != CPU) || copy == Some(true) {
        return Err(PyBufferError::new_err(
            "a pin lies in the memory of the CPU, and is not copied",
        ));
    }
    let (start, len) = pin.borrow_mut().lend(py)?;
    let mut managed = Box::new(Managed {
        version: (MAJOR, 0),
        manager_ctx: ptr::null_mut(),
        deleter: Some(delete),
        flags: READ_ONLY,
        tensor: Tensor {
            data: start.cast(),
            device: CPU,
            ndim: 1,
            dtype: UINT8,
            shape: ptr::null_mut(),
            strides: ptr::null_mut(),
            byte_offset: 0,
        },
        shape: i64::try_from(len).unwrap_or(i64::MAX),
        stride: 1,
        pin: Some(pin.clone().unbind()),
    });
    managed.tensor.shape = &raw mut managed.shape;
    managed.tensor.strides = &raw mut managed.stride;
    let managed = Box::into_raw(managed);
    // SAFETY: the pointer is not null, and the name is static.
    let capsule =
        unsafe { ffi::PyCapsule_New(managed.cast(), FRESH.as_ptr(), Some(delete_unused)) };
    if capsule.is_null() {
        // SAFETY: nobody else has it.
        unsafe { delete(managed) };
        return Err(PyErr::fetch(py));
    }
    // SAFETY: a new capsule, whose reference is ours.
    Ok(unsafe { Bound::from_owned_ptr(py, capsule) })
}

/// Ends what nobody made a tensor of.
unsafe extern "C" fn delete_unused(capsule: *mut ffi::PyObject) {
    // SAFETY: Python passes the capsule that ends. One that was used has another name.
    if unsafe { ffi::PyCapsule_IsValid(capsule, FRESH.as_ptr()) } == 0 {
        return;
    }
    // SAFETY: it is valid, under that name.
    let managed = unsafe { ffi::PyCapsule_GetPointer(capsule, FRESH.as_ptr()) };
    // SAFETY: the pointer is `export`'s, and nobody took it.
    unsafe { delete(managed.cast()) };
}

unsafe extern "C" fn delete(managed: *mut Managed) {
    // SAFETY: the pointer is `export`'s, and this is called once, by its taker or in its stead.
    let mut managed = unsafe { Box::from_raw(managed) };
    let Some(pin) = managed.pin.take() else { return };
    // An interpreter that is at its end gives nothing back; the process does.
    let mut pin = Some(pin);
    Python::try_attach(|py| {
        if let Some(pin) = pin.take() {
            pin.borrow(py).end_loan();
        }
    });
    std::mem::forget(pin);
}
