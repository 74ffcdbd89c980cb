//! Sizes as people write them: `64MiB`, `2G`, or a number of bytes.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

/// Letters of units, by powers of 1024.
const LETTERS: [&str; 5] = ["", "K", "M", "G", "T"];

/// The bytes that an `int` or a `str` stands for.
pub fn bytes(size: &Bound<'_, PyAny>) -> PyResult<u64> {
    if let Ok(bytes) = size.extract::<u64>() {
        return Ok(bytes);
    }
    let Ok(text) = size.extract::<String>() else {
        return Err(PyTypeError::new_err("a size is a number of bytes, or text like '64MiB'"));
    };
    parse(&text).ok_or_else(|| {
        PyValueError::new_err(format!("'{text}' is no size: write bytes, or 512K, 64MiB, 2G"))
    })
}

fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let unit = unit.trim_start().to_ascii_uppercase();
    let letter = unit.strip_suffix("IB").unwrap_or(&unit);
    let power = LETTERS.iter().position(|&known| known == letter)?;
    let is_unit = !letter.is_empty() || unit.is_empty();
    digits.parse::<u64>().ok().filter(|_| is_unit)?.checked_mul(1 << (10 * power))
}
