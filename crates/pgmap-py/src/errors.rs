//! Errors of the library as exceptions: `pgmap.Error` and one class below it for each kind.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// Makes an exception from kind, errno and message.
static MAKE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// The exception that says what `error` says.
pub fn exception<'py>(py: Python<'py>, error: &pgmap::Error) -> PyResult<Bound<'py, PyAny>> {
    let make = MAKE.get_or_try_init(py, || {
        Ok::<_, PyErr>(py.import("pgmap._errors")?.getattr("make")?.unbind())
    })?;
    make.bind(py).call1((error.kind(), error.errno(), error.to_string()))
}

/// To be raised for `error`.
pub fn raised(py: Python<'_>, error: &pgmap::Error) -> PyErr {
    match exception(py, error) {
        Ok(exception) => PyErr::from_value(exception),
        Err(failed) => failed,
    }
}

/// Has an error of the library raised.
pub trait OrRaise<T> {
    /// The value, or the exception that says why there is none.
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for Result<T, pgmap::Error> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| raised(py, &error))
    }
}

/// Whatever is used after its end.
pub fn closed(what: &str) -> PyErr {
    PyRuntimeError::new_err(format!("the {what} was closed"))
}
