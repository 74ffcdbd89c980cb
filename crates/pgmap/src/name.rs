//! File names, checked once.

use std::fmt::{self, Write};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::byte_strings;
use crate::refusal::Refusal;

/// Longest name in bytes.
pub use pgmap_mm::index::MAX_NAME_BYTES;

/// A name that a pool can hold: 1 to 255 bytes without NUL. Any other bytes are allowed, `/` too:
/// a pool has one flat directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(Arc<[u8]>);

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
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for FileName {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl FileName {
    /// Reads back what a name is displayed as: messages and a
    /// [`ClientHold`](crate::report::ClientHold) carry names so. Returns `None` if the text is no
    /// name's.
    #[must_use]
    pub fn unescape(shown: &str) -> Option<Self> {
        let mut bytes = Vec::with_capacity(shown.len());
        let mut rest = shown.as_bytes();
        while let Some((&first, after)) = rest.split_first() {
            rest = after;
            if first != b'\\' {
                bytes.push(first);
                continue;
            }
            let (&kind, after) = rest.split_first()?;
            rest = after;
            bytes.push(match kind {
                b'\\' => b'\\',
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'x' => {
                    let (digits, after) = rest.split_at_checked(2)?;
                    rest = after;
                    let digit = |at: usize| char::from(digits[at]).to_digit(16);
                    u8::try_from(digit(0)? * 16 + digit(1)?).ok()?
                }
                _ => return None,
            });
        }
        Self::new(bytes).ok()
    }
}

/// Bytes as people read them, so that no two look alike: what is no UTF-8 and control characters as
/// `\xff` and `\n`, a backslash as two.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                match character {
                    '\\' => f.write_str("\\\\")?,
                    '\n' => f.write_str("\\n")?,
                    '\r' => f.write_str("\\r")?,
                    '\t' => f.write_str("\\t")?,
                    control if control.is_control() => {
                        let mut bytes = [0; 4];
                        hexadecimal(f, control.encode_utf8(&mut bytes).as_bytes())?;
                    }
                    other => f.write_char(other)?,
                }
            }
            hexadecimal(f, chunk.invalid())?;
        }
        Ok(())
    }
}

fn hexadecimal(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
}

impl Serialize for FileName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for FileName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        byte_strings::deserialize(deserializer, |bytes| Self::new(bytes))
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(&self.0).fmt(f)
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
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

    #[test]
    fn no_two_names_are_displayed_alike_and_each_is_read_back() {
        use std::collections::BTreeSet;
        let mut all = BTreeSet::new();
        let mut names: BTreeSet<Vec<u8>> = (1..=255_u8).map(|byte| vec![byte]).collect();
        for odd in [
            &b"a\\nb"[..],
            b"a\nb",
            b"\\x0a",
            b"\\\\",
            b"\\",
            b"\xff\xfe",
            "é".as_bytes(),
            b"\xc3",
            b"\xa9",
            "\u{85}\u{202e}".as_bytes(),
            b"x\\xc3\xc3",
            b"plain name/with \"quotes\"",
        ] {
            names.insert(odd.to_vec());
        }
        let nr_names = names.len();
        for bytes in names {
            let name = FileName::new(&bytes).unwrap();
            let shown = name.to_string();
            assert!(!shown.chars().any(char::is_control), "{shown}");
            assert_eq!(FileName::unescape(&shown), Some(name), "{shown}");
            all.insert(shown);
        }
        assert_eq!(all.len(), nr_names);
        for junk in ["\\", "\\x", "\\x1", "\\xg0", "\\q", "", "\\x00", "\\x+1"] {
            assert_eq!(FileName::unescape(junk), None, "{junk}");
        }
    }
}
