//! Why a benchmark could not be run: words for a person.

use std::fmt;

/// What went wrong, and at what.
pub struct Failure {
    what: String,
    is_stop: bool,
}

impl Failure {
    /// A failure in the benchmark's own words.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), is_stop: false }
    }

    /// The caller wanted no more.
    pub fn stopped() -> Self {
        Self { what: "stopped before the end".into(), is_stop: true }
    }

    /// The same failure, with what was being done.
    #[must_use]
    pub fn during(self, doing: &str) -> Self {
        Self { what: format!("{doing}: {}", self.what), ..self }
    }

    /// Whether nothing went wrong, but the caller wanted no more.
    #[must_use]
    pub const fn is_stop(&self) -> bool {
        self.is_stop
    }
}

/// Any error: this type is no error itself, so that the two never meet.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}
