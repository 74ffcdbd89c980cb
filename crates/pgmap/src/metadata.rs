//! What a file carries beside its contents: user metadata, and a checksum of the contents.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::byte_strings;
use crate::refusal::Refusal;

/// Most bytes of user metadata of one file.
pub use pgmap_mm::index::MAX_METADATA_BYTES;

/// Bytes that are copied at a time for a checksum: they stay in a processor's cache.
pub(crate) const CHECKSUM_STEP_BYTES: u64 = 64 << 10;

/// Bytes that belong to a file and mean something to its users alone: up to
/// [`MAX_METADATA_BYTES`] of them, fixed when the file is created.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct UserMetadata(Box<[u8]>);

impl UserMetadata {
    /// Checks `bytes`.
    ///
    /// # Errors
    /// [`Refusal::TooMuch`] for more than [`MAX_METADATA_BYTES`].
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, Refusal> {
        let bytes = bytes.as_ref();
        if bytes.len() > MAX_METADATA_BYTES {
            return Err(Refusal::TooMuch {
                what: "bytes of user metadata; keep the rest in the file".into(),
                value: bytes.len() as u64,
                limit: MAX_METADATA_BYTES as u64,
            });
        }
        Ok(Self(bytes.into()))
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for UserMetadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for UserMetadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        byte_strings::deserialize(deserializer, |bytes| Self::new(bytes))
    }
}

/// What a file carries beside its contents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileMetadata {
    /// What its creator said of it.
    pub user: UserMetadata,
    /// The CRC-32C of its contents when it was committed, if its creator asked for one and nothing
    /// was cut out of it or replaced in it since.
    pub checksum: Option<u32>,
}

impl FileMetadata {
    /// That of a file whose contents are changed.
    pub(crate) fn without_checksum(&self) -> Self {
        Self { user: self.user.clone(), checksum: None }
    }
}

/// A CRC-32C (Castagnoli) of bytes that come piece by piece.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checksum(u32);

impl Checksum {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, bytes);
    }

    /// The checksum of all bytes so far.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_pieces_is_that_of_the_whole_and_is_castagnolis() {
        let mut sum = Checksum::default();
        assert_eq!(sum.value(), 0);
        sum.update(b"1234");
        sum.update(b"56789");
        // The check value that RFC 3720 and its errata use.
        assert_eq!(sum.value(), 0xe306_9283);
    }

    #[test]
    fn metadata_of_256_bytes_is_taken_and_257_are_refused_by_number() {
        assert_eq!(UserMetadata::new([7; 256]).unwrap().as_bytes(), [7; 256]);
        let refused = UserMetadata::new([7; 257]).unwrap_err().to_string();
        assert!(refused.contains("257") && refused.contains("256"), "{refused}");
        let sent = postcard::to_stdvec(&vec![7_u8; 257]).unwrap();
        assert!(postcard::from_bytes::<UserMetadata>(&sent).is_err());
    }
}
