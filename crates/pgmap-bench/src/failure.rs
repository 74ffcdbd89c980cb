//! Why a benchmark could not be run: words for a person.

use std::fmt;

/// What went wrong, and at what.
pub struct Failure(String);

impl Failure {
    /// A failure in the benchmark's own words.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    /// The same failure, with what was being done.
    pub fn during(self, doing: &str) -> Self {
        Self(format!("{doing}: {}", self.0))
    }
}

/// Any error: this type is no error itself, so that the two never meet.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
