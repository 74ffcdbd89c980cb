//! Byte strings that are checked as they are read: names and metadata, in one piece and not byte by
//! byte.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::refusal::Refusal;

/// Reads bytes and makes a value of them.
pub(crate) fn deserialize<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    check: impl Fn(&[u8]) -> Result<T, Refusal>,
) -> Result<T, D::Error> {
    deserializer.deserialize_bytes(Checked { check, makes: PhantomData })
}

struct Checked<F, T> {
    check: F,
    makes: PhantomData<T>,
}

impl<'de, T, F: Fn(&[u8]) -> Result<T, Refusal>> Visitor<'de> for Checked<F, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<T, E> {
        (self.check)(bytes).map_err(E::custom)
    }

    // As formats have them that know no bytes.
    fn visit_seq<A: SeqAccess<'de>>(self, numbers: A) -> Result<T, A::Error> {
        let bytes = Vec::<u8>::deserialize(serde::de::value::SeqAccessDeserializer::new(numbers))?;
        (self.check)(&bytes).map_err(A::Error::custom)
    }
}
