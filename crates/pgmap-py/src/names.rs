//! File names: `str` or `bytes` in, `str` out.

use std::borrow::Cow;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

/// The bytes of a name. A `str` is UTF-8; what [`shown`] could not decode is as it was.
pub fn bytes<'a>(name: &'a Bound<'_, PyAny>) -> PyResult<Cow<'a, [u8]>> {
    if let Ok(text) = name.cast::<PyString>() {
        if let Ok(text) = text.to_str() {
            return Ok(Cow::Borrowed(text.as_bytes()));
        }
        let encoded = text.call_method1("encode", ("utf-8", "surrogateescape"))?;
        return Ok(Cow::Owned(encoded.cast_into::<PyBytes>()?.as_bytes().to_vec()));
    }
    match name.cast::<PyBytes>() {
        Ok(name) => Ok(Cow::Borrowed(name.as_bytes())),
        Err(_) => {
            let kind = name.get_type().name()?.to_string();
            Err(PyTypeError::new_err(format!("a name is str or bytes, not {kind}")))
        }
    }
}

/// A name as a `str`, from which the same bytes come back.
pub fn shown<'py>(py: Python<'py>, name: &[u8]) -> PyResult<Bound<'py, PyString>> {
    if let Ok(text) = str::from_utf8(name) {
        return Ok(PyString::new(py, text));
    }
    let decoded = PyBytes::new(py, name).call_method1("decode", ("utf-8", "surrogateescape"))?;
    Ok(decoded.cast_into::<PyString>()?)
}
