//! Names and paths in results: as people read them, and byte for byte.
//!
//! A name is any bytes, and JSON strings are Unicode. So each name in JSON has a companion, called
//! as the field with `_base64` behind it, that has the exact bytes. The field itself is the name if
//! that is UTF-8; else what is not is escaped.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use pgmap::Escaped;
use pgmap::FileName;
use serde::ser::{Serialize, SerializeMap, Serializer};

/// A name in JSON: two fields, to be flattened into the object that has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exact {
    fields: [&'static str; 2],
    bytes: Option<Vec<u8>>,
}

impl Exact {
    const fn new(fields: [&'static str; 2], bytes: Option<Vec<u8>>) -> Self {
        Self { fields, bytes }
    }

    /// The field `name`, null if there is no name.
    pub fn name(name: Option<&[u8]>) -> Self {
        Self::new(["name", "name_base64"], name.map(<[u8]>::to_vec))
    }

    /// The field `prefix`, null if there is none.
    pub fn prefix(prefix: Option<&[u8]>) -> Self {
        Self::new(["prefix", "prefix_base64"], prefix.map(<[u8]>::to_vec))
    }

    /// The field `old`.
    pub fn old(name: &OsStr) -> Self {
        Self::new(["old", "old_base64"], Some(name.as_bytes().to_vec()))
    }

    /// The field `new`, of a renamed file.
    pub fn new_name(name: &OsStr) -> Self {
        Self::new(["new", "new_base64"], Some(name.as_bytes().to_vec()))
    }

    /// The field `file`: a name in the pool as messages show it, null if there is none.
    pub fn file_shown(shown: Option<&str>) -> Self {
        let bytes = shown.map(|shown| match FileName::unescape(shown) {
            Some(name) => name.as_bytes().to_vec(),
            None => shown.as_bytes().to_vec(),
        });
        Self::new(["file", "file_base64"], bytes)
    }

    /// The field `file`: a path on disk.
    pub fn file(path: &Path) -> Self {
        Self::new(["file", "file_base64"], Some(path.as_os_str().as_bytes().to_vec()))
    }

    /// The field `pool`: a directory, null if the pool has none.
    pub fn pool(path: Option<&Path>) -> Self {
        Self::new(["pool", "pool_base64"], path.map(|path| path.as_os_str().as_bytes().to_vec()))
    }

    /// The field `socket`: a path.
    pub fn socket(path: &Path) -> Self {
        Self::new(["socket", "socket_base64"], Some(path.as_os_str().as_bytes().to_vec()))
    }

    /// The field `metadata`: bytes that a file carries, null if it has none.
    pub fn metadata(bytes: &[u8]) -> Self {
        let bytes = (!bytes.is_empty()).then(|| bytes.to_vec());
        Self::new(["metadata", "metadata_base64"], bytes)
    }

    /// As tables and messages show it; `None` if there is no name.
    pub fn shown(&self) -> Option<String> {
        self.bytes.as_deref().map(|bytes| Escaped(bytes).to_string())
    }
}

impl Serialize for Exact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        let [text, base64] = self.fields;
        map.serialize_entry(text, &self.bytes.as_deref().map(text_of))?;
        map.serialize_entry(base64, &self.bytes.as_deref().map(base64_of))?;
        map.end()
    }
}

/// The name itself if it is UTF-8, else escaped.
pub fn text_of(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(name) => name.to_owned(),
        Err(_) => Escaped(bytes).to_string(),
    }
}

/// The exact bytes.
pub fn base64_of(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// A name of the command line as messages show it.
pub fn shown(name: &OsStr) -> String {
    Escaped(name.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_itself_in_json_if_it_can_be_and_always_exact_beside_that() {
        let json = |bytes: &[u8]| serde_json::to_value(Exact::name(Some(bytes))).unwrap();
        assert_eq!(json(b"a\nb")["name"], "a\nb");
        assert_eq!(json(b"a\\nb")["name"], "a\\nb");
        assert_eq!(json("é".as_bytes())["name"], "é");
        assert_eq!(json(b"\xff\\")["name"], "\\xff\\\\");
        for bytes in [&b"a\nb"[..], b"a\\nb", b"\xff\\", b"\x01", "é".as_bytes()] {
            let exact = json(bytes)["name_base64"].as_str().unwrap().to_owned();
            assert_eq!(BASE64_STANDARD.decode(exact).unwrap(), bytes);
        }
        let none = serde_json::to_value(Exact::name(None)).unwrap();
        assert_eq!(none, serde_json::json!({"name": null, "name_base64": null}));
    }
}
