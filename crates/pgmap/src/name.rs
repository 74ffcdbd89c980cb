//! File names, checked once.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;

/// Longest name in bytes.
pub use pgmap_mm::index::MAX_NAME_BYTES;

/// A name that a pool can hold: 1 to 255 bytes without NUL. Any other bytes are allowed, `/` too:
/// a pool has one flat directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct FileName(Box<[u8]>);

impl FileName {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`Refusal::BadName`] when it is empty, longer than [`MAX_NAME_BYTES`] or contains NUL.
    pub fn new(name: impl AsRef<[u8]>) -> Result<Self, Refusal> {
        let name = name.as_ref();
        let why = match name {
            [] => "it is empty",
            long if long.len() > MAX_NAME_BYTES => "it is longer than 255 bytes",
            nul if nul.contains(&0) => "it contains a NUL byte",
            _ => return Ok(Self(name.into())),
        };
        let shown = String::from_utf8_lossy(&name[..name.len().min(32)]).escape_debug().to_string();
        Err(Refusal::BadName { starts_with: shown, len_bytes: name.len() as u64, why: why.into() })
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for FileName {
    type Error = Refusal;

    fn try_from(name: Vec<u8>) -> Result<Self, Refusal> {
        Self::new(name)
    }
}

impl From<FileName> for Vec<u8> {
    fn from(name: FileName) -> Self {
        name.0.into_vec()
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(name) if !name.chars().any(char::is_control) => f.write_str(name),
            _ => write!(f, "{}", self.0.escape_ascii()),
        }
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_nul_and_5000_bytes_are_refused_by_name() {
        let nul = FileName::new(b"a\0b").unwrap_err().to_string();
        assert!(nul.contains("NUL") && nul.contains("a\\0b"), "{nul}");
        let long = FileName::new([b'x'; 5000]).unwrap_err().to_string();
        assert!(long.contains("5000") && long.contains("255"), "{long}");
        assert!(FileName::new("").is_err());
        assert!(FileName::new([b'x'; 255]).is_ok());
    }
}
