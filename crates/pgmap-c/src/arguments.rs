//! What C passes, checked: addresses that must not be null, texts, names, ranges.

// UNSAFETY: everything from C comes as addresses.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::slice;

use crate::failure::Failure;

/// An object that this library made.
///
/// # Safety
/// `object` is null, or an object that was made and not ended; nobody else uses it meanwhile if it
/// is changed.
pub unsafe fn object<'a, T>(object: *mut T, what: &str) -> Result<&'a mut T, Failure> {
    // SAFETY: by the caller's contract it is valid where it is not null.
    unsafe { object.as_mut() }.ok_or_else(|| Failure::invalid(format!("the {what} is null")))
}

/// Ends an object that [`made`] made; `None` for null.
///
/// # Safety
/// As [`object`], and nobody uses it afterwards.
pub unsafe fn ended<T>(object: *mut T) -> Option<Box<T>> {
    // SAFETY: by the caller's contract it comes from `made`, and is ended once.
    (!object.is_null()).then(|| unsafe { Box::from_raw(object) })
}

/// Gives an object to the caller.
///
/// # Safety
/// `target` is null, or has room for an address.
pub unsafe fn made<T>(target: *mut *mut T, object: T) -> Result<(), Failure> {
    if target.is_null() {
        return Err(Failure::invalid("there is no place for the result: its address is null"));
    }
    // SAFETY: by the caller's contract there is room for it.
    unsafe { target.write(Box::into_raw(Box::new(object))) };
    Ok(())
}

/// Bytes to be read during the call.
///
/// # Safety
/// `start` is null, or as many bytes can be read from it until the call ends.
pub unsafe fn bytes<'a>(start: *const c_void, len: usize, what: &str) -> Result<&'a [u8], Failure> {
    match (start.is_null(), len) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Failure::invalid(format!("the {what}: {len} bytes at address null"))),
        // SAFETY: `len` bytes can be read from `start`, by the caller's contract.
        (false, _) => Ok(unsafe { slice::from_raw_parts(start.cast(), len) }),
    }
}

/// Room for items, to be filled during the call.
///
/// # Safety
/// `start` is null, or has room for as many items, used by nobody else until the call ends.
pub unsafe fn room<'a, T>(start: *mut T, len: usize, what: &str) -> Result<&'a mut [T], Failure> {
    match (start.is_null(), len) {
        (_, 0) => Ok(&mut []),
        (true, _) => Err(Failure::invalid(format!("the {what}: room for {len} at address null"))),
        // SAFETY: `start` has room for `len` items that nobody else uses, by the caller's contract.
        (false, _) => Ok(unsafe { slice::from_raw_parts_mut(start, len) }),
    }
}

/// Fills what there is room for; returns how many there are.
pub fn fill<T>(target: &mut [T], all: impl Iterator<Item = T>) -> usize {
    let mut count = 0;
    for item in all {
        if let Some(place) = target.get_mut(count) {
            *place = item;
        }
        count += 1;
    }
    count
}

/// NUL-terminated text; `None` for null.
///
/// # Safety
/// `text` is null or NUL-terminated.
pub unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<Option<&'a str>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: `text` is NUL-terminated, by the caller's contract.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(Some).map_err(|_| Failure::invalid(format!("the {what} is not UTF-8")))
}
